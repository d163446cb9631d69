//! Taking connections in.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{Connection, Inside, Io, Opening, Tls};

/// Pause after the system could not give a connection (no file handles are left), so that the loop does not spin.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// Accepted connections that wait for the server above to take them.
const AHEAD: usize = 16;

/// How many connections there may be, and how long each lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// Open at once.
    pub(crate) most: usize,
    /// A connection that has not said its opening so long after it was made is closed.
    pub(crate) speak_within: Duration,
    /// One that has is closed after so long, whatever it does.
    pub(crate) hard_age: Duration,
}

impl ConnectionLimits {
    fn bound(self, io: Io, inside: Inside, slot: OwnedSemaphorePermit) -> Connection {
        Connection::new(io, Opening::of(inside), (self.speak_within, self.hard_age), slot)
    }
}

/// What became of connections.
#[derive(Debug)]
pub(crate) struct ConnectionCounts {
    slots: Arc<Semaphore>,
    most: usize,
    refused: AtomicU64,
}

impl ConnectionCounts {
    fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { slots: Arc::new(Semaphore::new(most)), most, refused: AtomicU64::new(0) }
    }

    /// Open now.
    pub(crate) fn open(&self) -> usize {
        self.most.saturating_sub(self.slots.available_permits())
    }

    /// Closed at once since there were too many.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok();
        if slot.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        slot
    }
}

/// The connections of one port, in the order in which they came.
pub(crate) type Incoming = ReceiverStream<io::Result<Connection>>;

/// Takes connections that are to speak `inside` from `listener` until `stop` or until nobody wants them any more; the port is
/// closed then.
pub(crate) fn accept(
    listener: TcpListener,
    limits: ConnectionLimits,
    (inside, tls): (Inside, Option<Arc<Tls>>),
    stop: CancellationToken,
) -> (Incoming, Arc<ConnectionCounts>) {
    let counts = Arc::new(ConnectionCounts::new(limits.most));
    let (sender, receiver) = mpsc::channel(AHEAD);
    let door = Door { listener, limits, inside, tls, counts: Arc::clone(&counts), sender };
    tokio::spawn(door.keep_open(stop));
    (ReceiverStream::new(receiver), counts)
}

struct Door {
    listener: TcpListener,
    limits: ConnectionLimits,
    inside: Inside,
    tls: Option<Arc<Tls>>,
    counts: Arc<ConnectionCounts>,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Door {
    async fn keep_open(self, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                () = self.sender.closed() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            let Some(slot) = self.counts.slot() else { continue };
            // Without it small answers wait for the acknowledgement of those before; with an error the connection is gone.
            _ = stream.set_nodelay(true);
            match &self.tls {
                None => {
                    let connection = self.limits.bound(Io::Plain(stream), self.inside, slot);
                    if self.sender.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                // A slow handshake holds up nobody else; the slots bound how many there are.
                Some(tls) => {
                    let offered = (tls.acceptor(self.inside), self.inside);
                    tokio::spawn(shake_hands(stream, slot, offered, self.limits, self.sender.clone()));
                }
            }
        }
    }
}

/// Makes a TLS connection of one that was just opened, unless that takes too long.
async fn shake_hands(
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    (acceptor, inside): (TlsAcceptor, Inside),
    limits: ConnectionLimits,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    match tokio::time::timeout(limits.speak_within, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => _ = sender.send(Ok(limits.bound(Io::Tls(Box::new(stream)), inside, slot))).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    fn limits(most: usize) -> ConnectionLimits {
        ConnectionLimits { most, speak_within: Duration::from_millis(200), hard_age: Duration::from_millis(1500) }
    }

    async fn open(limits: ConnectionLimits) -> (Incoming, Arc<ConnectionCounts>, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (incoming, counts) = accept(listener, limits, (Inside::Grpc, None), CancellationToken::new());
        (incoming, counts, addr)
    }

    #[tokio::test]
    async fn a_connection_too_many_is_closed_at_once() {
        let (mut incoming, counts, addr) = open(limits(1)).await;
        let _first = TcpStream::connect(addr).await.unwrap();
        let taken = incoming.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(addr).await.unwrap();
        assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0, "closed");
        assert_eq!((counts.open(), counts.refused()), (1, 1));
        drop(taken);
        assert_eq!(counts.open(), 0);
        let _third = TcpStream::connect(addr).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_does_not_come_to_the_point_is_closed_soon_and_who_does_later() {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let (mut incoming, _, addr) = open(limits(9)).await;
        let _silent = TcpStream::connect(addr).await.unwrap();
        let mut taken = incoming.next().await.unwrap().unwrap();
        let ended = taken.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);

        // Were a byte enough, this would last until its age, and longer than a test may.
        let old = ConnectionLimits { hard_age: Duration::from_secs(3600), ..limits(9) };
        let (mut to_old, _, old) = open(old).await;
        let mut hesitates = TcpStream::connect(old).await.unwrap();
        let mut taken = to_old.next().await.unwrap().unwrap();
        hesitates.write_all(&PREFACE[..23]).await.unwrap();
        assert_eq!(taken.read(&mut [0; 64]).await.unwrap(), 23);
        assert_eq!(taken.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::TimedOut, "all but a byte");

        let mut speaks = TcpStream::connect(addr).await.unwrap();
        let mut taken = incoming.next().await.unwrap().unwrap();
        speaks.write_all(PREFACE).await.unwrap();
        assert_eq!(taken.read(&mut [0; 64]).await.unwrap(), PREFACE.len());
        tokio::time::sleep(Duration::from_millis(250)).await;
        speaks.write_all(b"again").await.unwrap();
        assert_eq!(taken.read(&mut [0; 8]).await.unwrap(), 5, "longer than the silent one was borne");
        assert_eq!(taken.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::TimedOut, "old");
        assert_eq!(taken.write(b"late").await.unwrap_err().kind(), io::ErrorKind::TimedOut, "old, and only written to");
    }

    #[tokio::test]
    async fn the_port_is_closed_when_nobody_wants_connections() {
        let (incoming, _, addr) = open(limits(9)).await;
        drop(incoming);
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
