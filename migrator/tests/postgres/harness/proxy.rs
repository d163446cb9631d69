//! A network between two processes that can fail: a TCP proxy on loopback in the test process.

use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the network does to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It works.
    Passes,
    /// Connections are closed, new ones too as soon as they come.
    Cut,
    /// Connections stay open, new ones too, and nothing gets through until it is healed.
    Hangs,
    /// Each piece of up to 8 KiB, in each direction, comes so much later.
    Slow(Duration),
}

/// A running proxy. Its connections end with it.
pub struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to a loopback port, which need not listen yet.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (network, state) = watch::channel(Network::Passes);
        let accepting = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((near, _)) => drop(tokio::spawn(join(near, port, state.clone()))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await, // out of file handles
                }
            }
        });
        Self { port: own, network, accepting }
    }

    /// Where to connect to instead.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    pub fn cut(&self) {
        self.set(Network::Cut);
    }

    pub fn hang(&self) {
        self.set(Network::Hangs);
    }

    pub fn slow(&self, delay: Duration) {
        self.set(Network::Slow(delay));
    }

    pub fn heal(&self) {
        self.set(Network::Passes);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort(); // and with the sender's end all connections end
    }
}

/// Joins a connection that came to the port behind, until either side or the network ends it.
async fn join(near: TcpStream, port: u16, state: watch::Receiver<Network>) {
    let mut cut = state.clone();
    let joined = async {
        passes(&mut state.clone()).await;
        let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        // One side may stop sending and still listen.
        tokio::join!(pass_on(near_in, far_out, state.clone()), pass_on(far_in, near_out, state.clone()));
    };
    tokio::select! {
        () = joined => {}
        _ = cut.wait_for(|network| *network == Network::Cut) => {}
    }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<Network>) {
    let mut piece = vec![0; 8 * 1024];
    loop {
        let Ok(length) = from.read(&mut piece).await else { return };
        if let Some(delay) = passes(&mut state).await {
            tokio::time::sleep(delay).await;
        }
        // An end is news too: it does not get through a network that hangs.
        if length == 0 || to.write_all(&piece[..length]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

/// Waits while the network hangs; how long a piece is held up.
async fn passes(state: &mut watch::Receiver<Network>) -> Option<Duration> {
    let network = state.wait_for(|network| !matches!(network, Network::Hangs)).await.map(|network| *network);
    match network {
        Ok(Network::Slow(delay)) => Some(delay),
        _ => None,
    }
}
