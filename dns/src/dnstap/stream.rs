//! [Frame Streams](https://farsightsec.github.io/fstrm/), the writer's message_type: each frame is preceded by its
//! length, and both sides first agree on the content type.

use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

const CONTENT_TYPE: &[u8] = b"protobuf:dnstap.Dnstap";

/// Timeout of the collector.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum length of control frames.
const MAX_CONTROL: usize = 512;

/// The types of control frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Accept = 1,
    Start = 2,
    Stop = 3,
    Ready = 4,
    Finish = 5,
}

/// The content type field of a control frame.
const FIELD_CONTENT_TYPE: u32 = 1;

/// A connection to a collector.
pub(super) struct Stream(BufWriter<Socket>);

impl Stream {
    /// Connects and negotiates the content type.
    pub(super) fn open(socket: &Path) -> io::Result<Self> {
        let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // First: connecting also waits, for a collector whose backlog is full.
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.connect(&SockAddr::unix(socket)?)?;
        let mut stream = Self(BufWriter::with_capacity(64 * 1024, stream));
        stream.control(Control::Ready, Some(CONTENT_TYPE))?;
        let accepted = stream.read_control(Control::Accept)?;
        // Without a list it accepts any type.
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

    /// Sends the end of the stream, and waits briefly for the collector to acknowledge it.
    pub(super) fn close(mut self) {
        // A collector that has closed the connection has stopped already.
        _ = self.control(Control::Stop, None).and_then(|()| self.read_control(Control::Finish));
    }

    /// A control frame is preceded by a length of zero and its own length.
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

    /// Reads the fields of the next control frame, which must be of this type.
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
