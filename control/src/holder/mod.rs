//! The process that holds the state store: it carries the migrations and serves `ControlService` on a Unix socket, so that
//! every `foreshard migrate` goes to it.
//!
//! What was asked is durable before it is answered. A holder that stops leaves its migrations as they are, and the next one
//! takes them up; only owner changes under way are brought through first, because clients wait for them.

mod by_hand;
mod carrier;
mod service;
mod show;
mod socket;
mod status;
mod words;

use foreshard_api::v1::control_service_server::ControlServiceServer;
use foreshard_api::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES};
use foreshard_migrator::{Driver, DriverError, StoreError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use by_hand::{StartError, dry_run};
pub use carrier::HolderParts;
pub use show::{details, migrations, shard_map};
pub use socket::SocketError;

use crate::View;
use carrier::Carrier;
use service::ControlApi;
use socket::Socket;

/// How long the last answers may take to leave.
const DRAIN: Duration = Duration::from_secs(2);

/// How a holder behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderSettings {
    /// Name under which it takes the lead.
    pub name: String,
    /// Where it serves.
    pub socket: PathBuf,
    /// Takes up all interrupted migrations and, this often, those that stopped and copies whose retention is over. `None`: it
    /// carries what it is asked to and what is past the point of no return, for a process that lives as long as one command.
    pub keep_up_every: Option<Duration>,
    /// How long a stop waits for owner changes under way.
    pub patience: Duration,
}

/// Why a process could not become the holder.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// The socket could not be had.
    #[error("the control socket could not be opened")]
    Socket(#[source] SocketError),
    /// The lead could not be taken.
    #[error("could not take the lead as {name}")]
    Lead {
        /// The name used.
        name: String,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// Interrupted migrations could not be taken up.
    #[error("could not take up interrupted migrations")]
    Recover(#[source] DriverError),
}

/// A holder that serves until it is stopped. Dropping it stops it too, at once and without waiting for anything.
pub struct ControlServer {
    carrier: Arc<Carrier>,
    stop: CancellationToken,
    _stops_when_dropped: (DropGuard, DropGuard),
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    keeping_up: Option<JoinHandle<()>>,
    socket: Socket,
    patience: Duration,
}

impl ControlServer {
    /// Takes the lead, takes up what an earlier holder left, and serves.
    ///
    /// # Errors
    /// [`HolderError`]; then nothing is served.
    pub async fn start(parts: HolderParts, settings: HolderSettings) -> Result<Self, HolderError> {
        let HolderSettings { name, socket, keep_up_every, patience } = settings;
        // First the socket: who cannot serve must not take the lead from who can.
        let (socket, listener) = Socket::bind(&socket).map_err(HolderError::Socket)?;
        let term = match parts.store.take_leadership(&name).await {
            Ok(term) => term,
            Err(source) => return Err(HolderError::Lead { name, source }),
        };
        let HolderParts { store, backend, clock, driver } = parts.clone();
        let driver = Driver::new(store, backend, clock, driver, term);
        let left = driver.recover().await.map_err(HolderError::Recover)?;
        let carrier = Carrier::new(parts, driver, keep_up_every.is_some());
        let stop = CancellationToken::new();
        let keeping_up = keep_up_every.map(|every| {
            left.into_iter().for_each(|id| carrier.carry(id));
            tokio::spawn(keep_up(Arc::clone(&carrier), every, stop.clone()))
        });
        let owner = socket.owner();
        let clients = UnixListenerStream::new(listener)
            .filter(move |client| client.as_ref().map_or(true, |client| socket::may_talk(client, owner)));
        let service = ControlServiceServer::new(ControlApi(Arc::clone(&carrier)))
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES);
        let server = tonic::transport::Server::builder().add_service(service);
        let serving = tokio::spawn(server.serve_with_incoming_shutdown(clients, stop.clone().cancelled_owned()));
        let _stops_when_dropped = (stop.clone().drop_guard(), carrier.stop_guard());
        Ok(Self { carrier, stop, _stops_when_dropped, serving, keeping_up, socket, patience })
    }

    /// What planning has to know of the shards that it holds.
    ///
    /// # Errors
    /// [`DriverError::Store`] if the state store cannot be read.
    pub async fn view(&self) -> Result<View, DriverError> {
        self.carrier.view().await
    }

    /// Waits until no migration is worked on.
    pub async fn settled(&self) {
        self.carrier.settled().await;
    }

    /// Stops: lets owner changes under way come through, lets everything else stand still, takes no more calls, removes the
    /// socket.
    pub async fn shutdown(self) {
        let Self { carrier, stop, _stops_when_dropped, mut serving, keeping_up, socket, patience } = self;
        carrier.stop(patience).await;
        stop.cancel();
        if let Some(task) = keeping_up {
            let _ended = task.await;
        }
        match tokio::time::timeout(DRAIN, &mut serving).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(error = reason(&error), "serving ended with an error"),
            Ok(Err(error)) => tracing::warn!(%error, "serving died"),
            Err(_) => serving.abort(),
        }
        drop(socket);
    }
}

async fn keep_up(carrier: Arc<Carrier>, every: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = carrier.keep_up().await {
            tracing::warn!(error = reason(&error), "the state store could not be read");
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
