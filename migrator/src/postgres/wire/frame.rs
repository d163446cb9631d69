//! Messages on a connection: cut out of what arrives, and sent without losing half of one.

use super::error::{ServerError, WireCause};
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// The most that a message may have before the login, in bytes: whoever answers has not shown yet that it is a server.
pub(super) const BEFORE_LOGIN: usize = 64 << 10;
/// The most that a message may have after it, in bytes: servers build no value longer than 1 GiB.
pub(super) const AFTER_LOGIN: usize = 1 << 30;
/// How much is read at once, in bytes.
const READ: usize = 64 << 10;
/// Tag and length.
const HEADER: usize = 5;

/// A message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// What kind it is.
    pub(super) tag: u8,
    /// What it says.
    pub(super) body: Bytes,
}

impl Frame {
    /// The error for a message that does not belong here, or the server's own if that is what it is.
    pub(super) fn unexpected(&self, expected: &'static str) -> WireCause {
        match self.tag {
            b'E' => ServerError::parse(&self.body).map_or_else(WireCause::from, WireCause::from),
            tag => WireCause::Unexpected { tag, expected },
        }
    }
}

/// Both directions of a connection.
pub(super) struct Frames {
    reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// The most that a message may have, in bytes.
    pub(super) limit: usize,
}

impl Frames {
    /// Messages over TCP.
    pub(super) fn tcp(socket: TcpStream) -> Self {
        let (reader, writer) = socket.into_split();
        Self::new(reader, writer)
    }

    /// Messages over a Unix socket.
    pub(super) fn unix(socket: UnixStream) -> Self {
        let (reader, writer) = socket.into_split();
        Self::new(reader, writer)
    }

    fn new(
        reader: impl AsyncRead + Send + Sync + Unpin + 'static,
        writer: impl AsyncWrite + Send + Sync + Unpin + 'static,
    ) -> Self {
        let (incoming, outgoing) = (BytesMut::new(), BytesMut::new());
        Self { reader: Box::new(reader), writer: Box::new(writer), incoming, outgoing, limit: BEFORE_LOGIN }
    }

    /// Puts a message into the queue of what is sent by [`Self::next`] and [`Self::flush`].
    pub(super) fn queue<E>(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        let before = self.outgoing.len();
        write(&mut self.outgoing).inspect_err(|_| self.outgoing.truncate(before))
    }

    /// Bytes that wait to be sent.
    pub(super) fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// The next message. What waits to be sent is sent meanwhile: a server that waits for us to read must not make us wait
    /// for it to read.
    ///
    /// Cancel-safe: bytes that have arrived or wait to be sent stay where they are.
    pub(super) async fn next(&mut self) -> Result<Frame, WireCause> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(frame);
            }
            self.transfer().await?;
        }
    }

    /// Sends everything that waits. Cancel-safe.
    pub(super) async fn flush(&mut self) -> Result<(), WireCause> {
        while !self.outgoing.is_empty() {
            write(&mut self.writer, &mut self.outgoing).await?;
        }
        Ok(self.writer.flush().await?)
    }

    /// Waits for the server to close the connection; what it still says does not matter. Cancel-safe.
    pub(super) async fn end(&mut self) -> Result<(), WireCause> {
        self.flush().await?;
        loop {
            self.incoming.clear();
            match self.transfer().await {
                Ok(()) => {}
                Err(WireCause::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn transfer(&mut self) -> Result<(), WireCause> {
        let Self { reader, writer, incoming, outgoing, .. } = self;
        incoming.reserve(READ);
        if outgoing.is_empty() {
            return read(reader, incoming).await;
        }
        tokio::select! {
            written = write(writer, outgoing) => written,
            read = read(reader, incoming) => read,
        }
    }

    /// Cuts a message out of what has arrived, if all of it has.
    fn cut(&mut self) -> Result<Option<Frame>, WireCause> {
        let Some((&[tag, a, b, c, d], _)) = self.incoming.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        // The length counts itself but not the tag.
        let announced = i32::from_be_bytes([a, b, c, d]);
        let too_long = WireCause::TooLong { tag, length: i64::from(announced), limit: self.limit };
        let Some(length) = usize::try_from(announced).ok().and_then(|n| n.checked_sub(4)).filter(|n| *n <= self.limit)
        else {
            return Err(too_long);
        };
        if self.incoming.len() - HEADER < length {
            return Ok(None);
        }
        self.incoming.advance(HEADER);
        Ok(Some(Frame { tag, body: self.incoming.split_to(length).freeze() }))
    }
}

async fn read(reader: &mut (impl AsyncRead + Unpin), incoming: &mut BytesMut) -> Result<(), WireCause> {
    match reader.read_buf(incoming).await? {
        0 => Err(WireCause::Closed),
        _ => Ok(()),
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), outgoing: &mut BytesMut) -> Result<(), WireCause> {
    match writer.write_buf(outgoing).await? {
        0 => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn frames(server: &[u8]) -> Frames {
        Frames::new(std::io::Cursor::new(server.to_vec()), tokio::io::sink())
    }

    #[tokio::test]
    async fn messages_are_cut_out_of_what_arrives() {
        let mut frames = frames(b"Z\0\0\0\x05IN\0\0\0\x04S\0\0");
        assert_eq!(frames.next().await.unwrap(), Frame { tag: b'Z', body: Bytes::from_static(b"I") });
        assert_eq!(frames.next().await.unwrap(), Frame { tag: b'N', body: Bytes::new() });
        assert!(matches!(frames.next().await, Err(WireCause::Closed)), "the third is cut off");
    }

    #[tokio::test]
    async fn a_length_that_makes_no_sense_is_an_error_before_anything_is_reserved() {
        for (bytes, announced) in [
            (b"HTTP/1.1 400 Bad Request", 0x5454_502F),
            (b"S\x00\x00\x00\x03aaaaaaaaaaaaaaaaaaa", 3),
            (b"S\xff\xff\xff\xffaaaaaaaaaaaaaaaaaaa", -1),
        ] {
            let error = frames(bytes).next().await.unwrap_err();
            assert!(matches!(error, WireCause::TooLong { length, .. } if length == announced), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_read_does_not_keep_us_from_reading() {
        let (ours, theirs) = tokio::io::duplex(16);
        let (_, stuck) = tokio::io::split(ours);
        let mut frames = Frames::new(std::io::Cursor::new(b"Z\0\0\0\x05I".to_vec()), stuck);
        frames
            .queue(|out| {
                out.extend_from_slice(&[7; 100]);
                Ok::<_, io::Error>(())
            })
            .unwrap();
        assert_eq!(frames.next().await.unwrap().tag, b'Z');
        assert!(frames.unsent() >= 84 && frames.flush().now_or_never().is_none(), "nobody has read");
        drop(theirs);
    }

    #[tokio::test]
    async fn a_message_that_cannot_be_written_leaves_nothing_in_the_queue() {
        let mut frames = frames(b"");
        frames
            .queue(|out| {
                out.extend_from_slice(b"half");
                Err(io::Error::other("no"))
            })
            .unwrap_err();
        assert_eq!(frames.unsent(), 0);
    }
}
