//! Which rows have changed since they were last compared.
//!
//! Verification must not trust the side that applies changes: a row that it dropped would not be noticed by asking it. The
//! tracker therefore reads the source's log itself, by a slot of its own. Every range is compared before the fence, then the
//! keys that have changed meanwhile, again and again until they are few, and the last of them within the fence.

mod changed;
mod follow;

#[cfg(test)]
pub(crate) use changed::Why;
pub(crate) use changed::{Changed, ChangedKeys, Limits};
pub(crate) use follow::FollowError;

use super::lsn::{Lsn, WalGeometry};
use super::wire::{ConnectParams, ReplicationConnection, Row, SlotLife, StreamFrom, WireCause, WireError};
use follow::{End, Order, Pace, Shared};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Between two questions to the server while somebody waits: at first, and at most.
const ASK_FIRST: Duration = Duration::from_millis(1);
const ASK_LAST: Duration = Duration::from_millis(50);

/// How often the server is told how far we are and asked for a sign of life.
const TICK: Duration = Duration::from_secs(10);

/// Why changes are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackerError {
    /// The tracker could not begin.
    #[error("cannot follow the changes of {publication:?}")]
    Start {
        /// The publication.
        publication: String,
        /// The cause.
        #[source]
        source: WireError,
    },
    /// The stream has ended, and with it what had changed is lost: verification starts again with every range.
    #[error("the changes were lost sight of; every range has to be compared again")]
    Lost(#[source] Arc<FollowError>),
    /// It was stopped before.
    #[error("the tracker has been stopped")]
    Stopped,
    /// The server did not end the stream in time; the connection has been cut, and the slot is free when the server notices.
    #[error("the stream of changes was not ended within {} ms and has been cut off", .0.as_millis())]
    StillRunning(Duration),
    /// The position was not reached in time.
    #[error("changes up to {wanted} were not seen within {} ms, only up to {seen}", .within.as_millis())]
    TooSlow {
        /// What was waited for.
        wanted: Lsn,
        /// How far everything is known.
        seen: Lsn,
        /// How long was waited.
        within: Duration,
    },
}

impl From<End> for TrackerError {
    fn from(end: End) -> Self {
        match end {
            End::Stopped => Self::Stopped,
            End::Failed(error) => Self::Lost(error),
        }
    }
}

/// The slot that a tracker reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TrackedSlot {
    /// One of its own that goes with its connection: nothing is left behind, whatever happens.
    Temporary(String),
    /// One that exists, whose owner removes it. It is read from where it was confirmed, and confirmed as it is read.
    #[cfg_attr(not(test), expect(dead_code, reason = "for a slot that outlives its reader"))]
    Existing(String),
}

/// Follows the changes of a publication's tables in a task of its own.
///
/// Dropping it ends the task and the connection at once; [`Self::stop`] also waits until the slot is free.
#[derive(Debug)]
pub(crate) struct ChangeTracker {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
    wal: WalGeometry,
}

impl ChangeTracker {
    /// Begins to follow the changes of `publication`; each exchange with the server has at most `limit`. When this
    /// returns, every transaction that commits later will be seen.
    ///
    /// # Errors
    /// [`TrackerError::Start`]. A publication that does not exist is noticed at the first change only.
    pub(crate) async fn start(
        params: &ConnectParams,
        slot: TrackedSlot,
        publication: &str,
        limits: Limits,
        limit: Duration,
    ) -> Result<Self, TrackerError> {
        let begun = begin(params, slot, publication, limit).await;
        let (stream, seen, wal) =
            begun.map_err(|source| TrackerError::Start { publication: publication.to_owned(), source })?;
        let shared = Arc::new(Shared::new(seen, limits));
        let (orders, ordered) = mpsc::channel(4);
        let task = tokio::spawn(follow::follow(stream, shared.clone(), ordered, Pace { tick: TICK, limit }));
        Ok(Self { shared, orders, task, wal })
    }

    /// Hands over what has changed since the last time; a key that changes again comes again.
    ///
    /// # Errors
    /// [`TrackerError::Lost`] once the stream has failed, on every call from then on.
    pub(crate) fn take(&self) -> Result<Changed, TrackerError> {
        Ok(self.shared.take()?)
    }

    /// How far everything committed is known.
    ///
    /// # Errors
    /// Like [`Self::take`].
    pub(crate) fn seen_up_to(&self) -> Result<Lsn, TrackerError> {
        Ok(self.shared.seen()?)
    }

    /// Waits until everything committed up to `lsn` has been seen, at most `within`. `lsn` is a position of the source that
    /// exists already, from `pg_current_wal_insert_lsn` or `pg_current_wal_flush_lsn` after the commits in question. On an
    /// idle server it takes a question and its answer; what has not been flushed yet (asynchronous commits) comes when
    /// the server's log writer flushes it.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`TrackerError::TooSlow`] if time is up, [`TrackerError::Lost`] once the stream has failed.
    pub(crate) async fn wait_until(&self, lsn: Lsn, within: Duration) -> Result<(), TrackerError> {
        let wanted = self.wal.end_of_records(lsn);
        match tokio::time::timeout(within, self.reached(wanted)).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(TrackerError::TooSlow { wanted: lsn, seen: self.seen_up_to()?, within }),
        }
    }

    async fn reached(&self, wanted: Lsn) -> Result<(), End> {
        let mut moved = self.shared.watch();
        let mut pause = ASK_FIRST;
        loop {
            moved.mark_unchanged();
            if self.shared.seen()? >= wanted {
                return Ok(());
            }
            // A full queue has a question in it already; a closed one is told by `seen`.
            let _ = self.orders.try_send(Order::Ask);
            let asked_again = tokio::time::sleep(pause);
            tokio::pin!(asked_again);
            loop {
                tokio::select! {
                    _ = moved.changed() => if self.shared.seen()? >= wanted { return Ok(()) },
                    () = &mut asked_again => break,
                }
            }
            pause = (pause * 2).min(ASK_LAST);
        }
    }

    /// Ends the stream and waits, at most `within`, until the server has ended the session and the slot is free.
    ///
    /// # Errors
    /// [`TrackerError::Lost`] if the stream had failed or could not be ended in order, [`TrackerError::StillRunning`] if time
    /// is up; the connection is closed anyway.
    #[cfg_attr(not(test), expect(dead_code, reason = "for a slot that outlives its reader"))]
    pub(crate) async fn stop(mut self, within: Duration) -> Result<(), TrackerError> {
        let ended = tokio::time::timeout(within, async {
            // An error means that the task has ended.
            let _ = self.orders.send(Order::Stop).await;
            let _ = (&mut self.task).await;
        });
        match ended.await {
            Ok(()) => {}
            Err(_) => return Err(TrackerError::StillRunning(within)),
        }
        match self.shared.seen() {
            Err(End::Failed(error)) => Err(TrackerError::Lost(error)),
            Ok(_) | Err(End::Stopped) => Ok(()),
        }
    }
}

impl Drop for ChangeTracker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects, has a slot and starts its stream; also tells up to where everything is known.
async fn begin(
    params: &ConnectParams,
    slot: TrackedSlot,
    publication: &str,
    limit: Duration,
) -> Result<(super::wire::LogicalStream, Lsn, WalGeometry), WireError> {
    let mut connection = ReplicationConnection::connect(params, limit).await?;
    let wal = geometry(params, &mut connection, limit).await?;
    let (slot, from) = match slot {
        TrackedSlot::Temporary(name) => {
            let slot = connection.create_logical_slot(&name, SlotLife::Temporary, limit).await?;
            (slot.name, slot.consistent_point)
        }
        // The server knows where this one was confirmed.
        TrackedSlot::Existing(name) => (name, Lsn(0)),
    };
    let what = StreamFrom { slot, from, publications: vec![publication.to_owned()], messages: false };
    Ok((connection.start_logical(&what, limit).await?, from, wal))
}

async fn geometry(
    params: &ConnectParams,
    connection: &mut ReplicationConnection,
    limit: Duration,
) -> Result<WalGeometry, WireError> {
    const QUERY: &str = "SELECT b.setting, s.setting FROM pg_settings b, pg_settings s \
                         WHERE b.name = 'wal_block_size' AND s.name = 'wal_segment_size'";
    let rows = connection.simple_query(QUERY, limit).await?;
    let number = |at: usize| rows.first().and_then(|row: &Row| row.get(at)?.as_deref()?.parse().ok());
    match (number(0), number(1)) {
        (Some(block), Some(segment)) => Ok(WalGeometry { block, segment }),
        _ => Err(WireError {
            doing: "asking for the sizes of the write-ahead log".into(),
            server: params.to_string(),
            cause: WireCause::Missing("wal_block_size and wal_segment_size"),
        }),
    }
}

#[cfg(test)]
mod tests;
