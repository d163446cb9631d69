//! Log first, then memory, then history.

use foreshard_api::v1;
use foreshard_datasets::{HistoryError, HistoryFolder, ReadFilter, newest_day, stream_history};
use foreshard_domain::{Observation, ShardId, Step, Timestamp};
use prost::Message as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::log::{Log, LogError};
use crate::context::ContextStore;

/// Under which name pieces of the history are written.
const WRITER: &str = "serving";

/// Rows that are put into the history at once even if its time has not come: about 40 MB in memory.
pub(crate) const FLUSH_ROWS: usize = 200_000;

/// Rows that may wait for a history that cannot be written; beyond them new ones are refused.
const MOST_PENDING: usize = 2_000_000;

/// Why rows could not be taken or put into the history.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The log failed.
    #[error("rows cannot be logged")]
    Log(#[from] LogError),
    /// The history failed.
    #[error("rows cannot be put into the history")]
    History(#[from] HistoryError),
    /// The history has failed for so long that memory is full.
    #[error("{rows} rows wait for a history that cannot be written; mend its disk")]
    Backlog {
        /// How many.
        rows: usize,
    },
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taken {
    /// Rows on disk now.
    pub(crate) accepted: u64,
    /// Rows among them that replaced one of the same shard and time.
    pub(crate) duplicates: u64,
    /// Whether so many rows wait that they should be flushed at once.
    pub(crate) flush_now: bool,
}

type Pending = BTreeMap<(ShardId, Timestamp), Observation>;

struct Writing {
    log: Log,
    /// Logged rows that lie in no piece yet; of rows of one shard and time the last.
    pending: Pending,
}

/// The way of rows from the wire to the history.
pub(crate) struct Ingestor {
    writing: Mutex<Writing>,
    contexts: Arc<RwLock<ContextStore>>,
    history: HistoryFolder,
    /// The day up to which pieces were compacted; held during a flush, so that there is one at a time.
    compacted: Mutex<Option<Timestamp>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ingestor {
    /// Reads what is known: the newest days of the history, then the log on top.
    pub(crate) fn open(history: &Path, log: &Path, days: u32) -> Result<Self, IngestError> {
        let folder = HistoryFolder::open(history, WRITER)?;
        let mut store = ContextStore::new(days);
        replay_history(history, days, &mut store)?;
        let mut pending = Pending::new();
        let log = Log::open(log, &mut |payload| {
            for row in v1::IngestRequest::decode(payload)?.rows {
                let row = Observation::try_from(row)?;
                store.apply(&row);
                pending.insert((row.shard.clone(), row.ts), row);
            }
            Ok(())
        })?;
        store.forget_gone();
        tracing::info!(shards = store.shards(), most_bins = store.bound(), from_log = pending.len(), "history read");
        Ok(Self {
            writing: Mutex::new(Writing { log, pending }),
            contexts: Arc::new(RwLock::new(store)),
            history: folder,
            compacted: Mutex::new(None),
        })
    }

    /// What forecasts are made from.
    pub(crate) fn contexts(&self) -> Arc<RwLock<ContextStore>> {
        Arc::clone(&self.contexts)
    }

    /// Takes checked rows; they are on disk when this returns. Blocks on the disk.
    pub(crate) fn take(&self, rows: Vec<Observation>) -> Result<Taken, IngestError> {
        if rows.is_empty() {
            return Ok(Taken::default());
        }
        let payload = v1::IngestRequest { rows: rows.iter().map(Into::into).collect() }.encode_to_vec();
        let mut writing = locked(&self.writing);
        if writing.pending.len() >= MOST_PENDING {
            return Err(IngestError::Backlog { rows: writing.pending.len() });
        }
        writing.log.append(&payload)?;
        let mut taken = Taken { accepted: rows.len() as u64, ..Taken::default() };
        {
            // One lock for the batch: a forecast sees all of a tick's rows or none.
            let mut store = self.contexts.write().unwrap_or_else(PoisonError::into_inner);
            for row in rows {
                taken.duplicates += u64::from(store.apply(&row));
                writing.pending.insert((row.shard.clone(), row.ts), row);
            }
        }
        taken.flush_now = writing.pending.len() >= FLUSH_ROWS;
        Ok(taken)
    }

    /// Puts the waiting rows into the history and removes them from the log; returns how many there were. Once a day has
    /// passed its pieces are merged into one. Blocks on the disk.
    ///
    /// After an error the rows wait on, in memory and in the log.
    pub(crate) fn flush(&self) -> Result<usize, IngestError> {
        let mut compacted = locked(&self.compacted);
        let (rows, segments) = {
            let mut writing = locked(&self.writing);
            (std::mem::take(&mut writing.pending), writing.log.seal())
        };
        let batch: Vec<Observation> = rows.into_values().collect();
        if !batch.is_empty()
            && let Err(error) = self.history.append(&batch)
        {
            let mut writing = locked(&self.writing);
            for row in batch {
                // What came meanwhile is newer and stays.
                writing.pending.entry((row.shard.clone(), row.ts)).or_insert(row);
            }
            return Err(error.into());
        }
        locked(&self.writing).log.remove(&segments)?;
        self.contexts.write().unwrap_or_else(PoisonError::into_inner).forget_gone();
        self.compact(&mut compacted)?;
        Ok(batch.len())
    }

    fn compact(&self, compacted: &mut Option<Timestamp>) -> Result<(), IngestError> {
        let newest = self.contexts.read().unwrap_or_else(PoisonError::into_inner).newest();
        let today = newest.map(|newest| Step::DAY.floor(newest));
        if let Some(day) = today.filter(|_| today > *compacted) {
            let days = self.history.compact(day)?;
            tracing::debug!(days, before = %day, "pieces of past days merged");
            *compacted = today;
        }
        Ok(())
    }
}

/// Reads the newest `days` of a dated folder, oldest first.
fn replay_history(dir: &Path, days: u32, store: &mut ContextStore) -> Result<(), HistoryError> {
    let Some(newest) = newest_day(dir)? else { return Ok(()) };
    let from = newest.plus_steps(-i64::from(days), Step::DAY);
    let filter = ReadFilter { from: Some(from), ..ReadFilter::default() };
    stream_history(dir, &filter, &mut |rows| {
        rows.iter().for_each(|row| _ = store.apply(row));
        Ok(())
    })
}
