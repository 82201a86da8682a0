//! Length-prefixed messages (RFC 1035 §4.2.2), for tokio-util's `Framed`.

use std::io;

use futures_util::SinkExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_util::codec::{Decoder, Encoder, Framed};

use crate::connections::Place;

/// The input buffer of a connection: any query without excessive padding.
const INPUT: usize = 4 * 1024;

/// The output buffer that a connection keeps.
pub(super) const CHUNK: usize = 16 * 1024;

/// The messages of one connection.
pub(super) struct Frames(Place);

/// The messages of a stream.
pub(super) fn open<S: AsyncRead + AsyncWrite>(stream: S, place: Place) -> Framed<S, Frames> {
    let mut frames = Framed::with_capacity(stream, Frames(place), INPUT);
    frames.set_backpressure_boundary(CHUNK);
    frames
}

impl Decoder for Frames {
    type Item = BytesMut;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        let whole = input.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length)) + 2);
        let Some(whole) = whole.filter(|whole| *whole <= input.len()) else {
            // A length alone allocates no memory: a client has to send what is buffered.
            let is_kept = self.0.may_keep(input.len().saturating_sub(INPUT));
            return if is_kept { Ok(None) } else { Err(io::ErrorKind::OutOfMemory.into()) };
        };
        let mut message = input.split_to(whole);
        if whole > INPUT {
            // Both halves share the memory of a long message.
            *input = BytesMut::from(&input[..]);
        }
        message.advance(2);
        Ok(Some(message))
    }
}

impl Encoder<&[u8]> for Frames {
    type Error = io::Error;

    fn encode(&mut self, message: &[u8], output: &mut BytesMut) -> io::Result<()> {
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        output.reserve(2 + message.len());
        output.put_u16(length);
        output.put_slice(message);
        Ok(())
    }
}

/// Writes all replies, and releases the memory of a long one.
pub(super) async fn flush<S: AsyncWrite + Unpin>(frames: &mut Framed<S, Frames>) -> io::Result<()> {
    SinkExt::<&[u8]>::flush(frames).await?;
    if frames.write_buffer().capacity() > CHUNK {
        *frames.write_buffer_mut() = BytesMut::new();
    }
    Ok(())
}
