//! One connection with an end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::Opening;

/// What bytes go through.
pub(crate) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    fn tcp(&self) -> &TcpStream {
        match self {
            Io::Plain(io) => io,
            Io::Tls(io) => io.get_ref().0,
        }
    }
}

/// A connection that ends by itself: soon if its owner does not come to the point, at a great age otherwise.
///
/// The age is a hard stop. The server above asks politely before (HTTP/2 GOAWAY); what is still there then does not listen.
pub(crate) struct Connection {
    io: Io,
    ends: Pin<Box<Sleep>>,
    /// What is still to be heard, and how long it may live from then on; taken when it was heard.
    opening: Option<(Opening, Duration)>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// `io`, to be closed unless the whole `opening` is read within `first`, and `then` after that.
    pub(crate) fn new(
        io: Io,
        opening: Opening,
        (first, then): (Duration, Duration),
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self { io, ends: Box::pin(sleep(first)), opening: Some((opening, then)), _slot: slot }
    }
}

impl Connection {
    /// Fails once the connection has come to its end, whether it is read from or written to.
    fn check_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ends.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the connection has come to its end")),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.io.tcp().connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Err(ended) = this.check_end(cx) {
            return Poll::Ready(Err(ended));
        }
        let before = buf.filled().len();
        let read = match &mut this.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        };
        let heard = buf.filled().get(before..).unwrap_or_default();
        if let Some((opening, then)) = &mut this.opening
            && opening.hear(heard)
        {
            this.ends.as_mut().reset(Instant::now() + *then);
            this.opening = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Err(ended) = this.check_end(cx) {
            return Poll::Ready(Err(ended));
        }
        match &mut this.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Err(ended) = this.check_end(cx) {
            return Poll::Ready(Err(ended));
        }
        match &mut this.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Err(ended) = this.check_end(cx) {
            return Poll::Ready(Err(ended));
        }
        match &mut this.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, parts),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}
