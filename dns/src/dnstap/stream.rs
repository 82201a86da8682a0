//! [Frame Streams](https://farsightsec.github.io/fstrm/), from the side that writes: each frame has its
//! length in front, and both sides agree on what is in them first.

use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

const CONTENT_TYPE: &[u8] = b"protobuf:dnstap.Dnstap";

/// A collector that hangs for so long is left.
const PATIENCE: Duration = Duration::from_secs(1);

/// No control frame may be longer.
const MAX_CONTROL: usize = 512;

/// What control frames are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Accept = 1,
    Start = 2,
    Stop = 3,
    Ready = 4,
    Finish = 5,
}

/// The field of a control frame that names the content.
const FIELD_CONTENT_TYPE: u32 = 1;

/// A collector that takes frames.
pub(super) struct Stream(BufWriter<Socket>);

impl Stream {
    /// Connects, and agrees on the content.
    pub(super) fn open(socket: &Path) -> io::Result<Self> {
        let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // First: connecting waits too, for a collector whose backlog is full.
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.connect(&SockAddr::unix(socket)?)?;
        let mut stream = Self(BufWriter::with_capacity(64 * 1024, stream));
        stream.control(Control::Ready, Some(CONTENT_TYPE))?;
        let accepted = stream.read_control(Control::Accept)?;
        // Without a list it takes anything.
        let takes_ours =
            accepted.is_empty() || accepted.windows(CONTENT_TYPE.len()).any(|w| w == CONTENT_TYPE);
        if !takes_ours {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the collector does not take dnstap"));
        }
        stream.control(Control::Start, Some(CONTENT_TYPE))?;
        Ok(stream)
    }

    /// Writes a frame, at the latest with the next flush.
    pub(super) fn put(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.0.write_all(&length.to_be_bytes())?;
        self.0.write_all(frame)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    /// Says that there is no more, and waits a moment for the collector to have it all.
    pub(super) fn close(mut self) {
        // A collector that has closed the connection has ended already.
        _ = self.control(Control::Stop, None).and_then(|()| self.read_control(Control::Finish));
    }

    /// A control frame has a length of zero before its own.
    fn control(&mut self, control: Control, content: Option<&[u8]>) -> io::Result<()> {
        let mut frame = (control as u32).to_be_bytes().to_vec();
        if let Some(content) = content {
            frame.extend(FIELD_CONTENT_TYPE.to_be_bytes());
            frame.extend(u32::try_from(content.len()).map_err(io::Error::other)?.to_be_bytes());
            frame.extend(content);
        }
        self.0.write_all(&[0; 4])?;
        self.put(&frame)?;
        self.flush()
    }

    /// The fields of the control frame that comes, which must be of this kind.
    fn read_control(&mut self, expected: Control) -> io::Result<Vec<u8>> {
        let mut word = || {
            let mut bytes = [0; 4];
            self.0.get_mut().read_exact(&mut bytes)?;
            Ok::<_, io::Error>(u32::from_be_bytes(bytes))
        };
        let (escape, length, control) = (word()?, word()? as usize, word()?);
        if escape != 0 || !(4..=MAX_CONTROL).contains(&length) || control != expected as u32 {
            let text = format!("the collector does not speak Frame Streams: no {expected:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut fields = vec![0; length - 4];
        self.0.get_mut().read_exact(&mut fields)?;
        Ok(fields)
    }
}
