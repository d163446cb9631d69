//! The way to the state store: the process that holds it, or this one.

use foreshard_api::ControlClient;
use foreshard_control::{ControlServer, HolderError, HolderParts, HolderSettings, SocketError};
use foreshard_domain::{Clock, SystemClock};
use foreshard_migrator::postgres::PostgresBackend;
use foreshard_migrator::{Backend, RedbStore, State, StoreError};
use std::sync::Arc;
use std::time::Duration;

use crate::output::Failure;
use crate::settings::Settings;

/// How long a stop waits for owner changes under way: longer than any fence.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a process that stays looks for retentions that are over.
const KEEP_UP_EVERY: Duration = Duration::from_secs(30);

/// How often, and after which pauses, a store that is held and not served is tried again: five seconds.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// A client of the holder, which may be in this process.
pub struct Access {
    pub client: ControlClient,
    own: Option<ControlServer>,
}

impl Access {
    /// Reaches the process that holds the store, or becomes it for as long as this command lasts.
    ///
    /// # Errors
    /// If the store can be neither reached nor held, or no engine is configured.
    pub async fn open(settings: &Settings) -> Result<Self, Failure> {
        when_free(async || {
            if let Ok(client) = ControlClient::connect(&settings.store.socket).await {
                return Ok(Self { client, own: None });
            }
            let own = hold(settings, "foreshard migrate", None).await?;
            match ControlClient::connect(&settings.store.socket).await {
                Ok(client) => Ok(Self { client, own: Some(own) }),
                Err(error) => {
                    own.shutdown().await;
                    Err(error.into())
                }
            }
        })
        .await
    }

    /// Whether another process holds the store and goes on when this one ends.
    pub fn is_elsewhere(&self) -> bool {
        self.own.is_none()
    }

    /// Ends; if this process holds the store and others have asked it for moves meanwhile, waits for them, unless it was
    /// interrupted.
    pub async fn close(self, interrupted: bool) {
        let Some(own) = self.own else { return };
        if !interrupted {
            // Others may have asked this process for moves: it goes on for them, until it is told to stop.
            tokio::select! {
                () = own.settled() => {}
                _ = crate::commands::serve::interrupted() => {}
            }
        }
        own.shutdown().await;
    }
}

/// Makes this process the holder.
///
/// # Errors
/// If the store is held, the socket is in use, or no engine is configured.
async fn hold(settings: &Settings, role: &str, keep_up_every: Option<Duration>) -> Result<ControlServer, Failure> {
    let backend = engine(settings)?;
    let path = settings.store.path.clone();
    let store = tokio::task::spawn_blocking(move || RedbStore::open(&path)).await??;
    let parts = HolderParts {
        store: Arc::new(store),
        backend,
        clock: Arc::new(SystemClock),
        driver: settings.migrate.driver(),
    };
    let holder = HolderSettings {
        name: format!("{role} (process {})", std::process::id()),
        socket: settings.store.socket.clone(),
        keep_up_every,
        patience: PATIENCE,
    };
    Ok(ControlServer::start(parts, holder).await?)
}

/// Tries again for a while what a process that begins or ends to hold the store stands in the way of: it has the store a moment
/// before and after it can be talked to. So does one that only looks at it.
async fn when_free<T>(attempt: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut tries = 0;
    loop {
        match attempt().await {
            Err(error) if tries < BUSY_TRIES && is_busy(&error) => tokio::time::sleep(BUSY_PAUSE).await,
            done => return done,
        }
        tries += 1;
    }
}

fn is_busy(error: &Failure) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Held { .. }))
        || matches!(error.downcast_ref(), Some(HolderError::Socket(SocketError::InUse { .. })))
}

/// Makes this process the holder for as long as it runs, carrying everything that is left to do.
///
/// # Errors
/// As [`hold`].
pub async fn stay(settings: &Settings) -> Result<ControlServer, Failure> {
    when_free(async || hold(settings, "foreshard control", Some(KEEP_UP_EVERY)).await).await
}

/// The configured engine.
///
/// # Errors
/// If there is none.
pub fn engine(settings: &Settings) -> Result<Arc<dyn Backend>, Failure> {
    if settings.postgres.nodes.is_empty() {
        return Err("no engine is configured: add servers to [postgres.nodes] of foreshard.toml".into());
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Ok(Arc::new(PostgresBackend::new(settings.postgres.clone(), clock)))
}

/// What can be read: the holder's answers, or a store that nobody holds.
pub enum View {
    /// The holder.
    Holder(ControlClient),
    /// The state of the store's file, as it is.
    File(Box<State>),
}

impl View {
    /// Looks without changing anything; a store that is not there yet is empty.
    ///
    /// # Errors
    /// If the store is held by a process that does not answer, or cannot be read.
    pub async fn open(settings: &Settings) -> Result<Self, Failure> {
        when_free(async || {
            if let Ok(client) = ControlClient::connect(&settings.store.socket).await {
                return Ok(Self::Holder(client));
            }
            let path = settings.store.path.clone();
            if !path.exists() {
                return Ok(Self::File(Box::default()));
            }
            let state = tokio::task::spawn_blocking(move || RedbStore::look(&path)).await??;
            Ok(Self::File(Box::new(state)))
        })
        .await
    }
}
