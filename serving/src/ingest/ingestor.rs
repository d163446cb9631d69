//! Log first, then memory, then history.

mod parts;

use foreshard_api::v1;
use foreshard_datasets::{HistoryError, HistoryFolder, ReadFilter, newest_day, stream_history};
use foreshard_domain::{Observation, ShardId, Step, Timestamp};
use prost::Message as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    /// Logged rows that no flush has taken yet; of rows of one shard and time the last.
    pending: Pending,
    /// Logged rows that a flush has taken. They stay here until their pieces are on disk, so that whatever becomes of the
    /// flush (an error, a panic, its thread never coming back) the next one takes them again before it removes their log.
    under_way: Arc<Vec<Observation>>,
    /// Where rows come in parts: what went into the history last, for what else comes of it.
    flushed: Option<parts::Flushed>,
}

impl Writing {
    /// Rows that lie in no piece for certain.
    fn waiting(&self) -> usize {
        self.pending.len() + self.under_way.len()
    }

    /// All waiting rows as one batch, and the segments of the log that hold no others.
    fn batch(&mut self) -> (Arc<Vec<Observation>>, Vec<PathBuf>) {
        let segments = self.log.seal();
        for row in self.under_way.iter() {
            // What came meanwhile is newer and stays.
            self.pending.entry((row.shard.clone(), row.ts)).or_insert_with(|| row.clone());
        }
        self.under_way = Arc::new(std::mem::take(&mut self.pending).into_values().collect());
        (Arc::clone(&self.under_way), segments)
    }
}

/// The way of rows from the wire to the history.
pub(crate) struct Ingestor {
    writing: Mutex<Writing>,
    contexts: Arc<RwLock<ContextStore>>,
    history: HistoryFolder,
    /// Where its pieces lie.
    dir: PathBuf,
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
                store.apply_all(std::slice::from_ref(&row));
                pending.insert((row.shard.clone(), row.ts), row);
            }
            Ok(())
        })?;
        store.forget_gone();
        tracing::info!(shards = store.shards(), most_bins = store.bound(), from_log = pending.len(), "history read");
        Ok(Self {
            writing: Mutex::new(Writing { log, pending, under_way: Arc::default(), flushed: None }),
            contexts: Arc::new(RwLock::new(store)),
            history: folder,
            dir: history.to_owned(),
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
        let payload = payload(&rows);
        self.put(&mut locked(&self.writing), rows, &payload)
    }

    fn put(&self, writing: &mut Writing, rows: Vec<Observation>, payload: &[u8]) -> Result<Taken, IngestError> {
        if writing.waiting() >= MOST_PENDING {
            return Err(IngestError::Backlog { rows: writing.waiting() });
        }
        writing.log.append(payload)?;
        let mut taken = Taken { accepted: rows.len() as u64, ..Taken::default() };
        {
            // One lock for the batch: a forecast sees all of a tick's rows or none.
            let mut store = self.contexts.write().unwrap_or_else(PoisonError::into_inner);
            taken.duplicates = store.apply_all(&rows);
            for row in rows {
                writing.pending.insert((row.shard.clone(), row.ts), row);
            }
        }
        taken.flush_now = writing.pending.len() >= FLUSH_ROWS;
        Ok(taken)
    }

    /// Puts the waiting rows into the history and removes them from the log; returns how many there were. Once a day has
    /// passed its pieces are merged into one. Blocks on the disk.
    ///
    /// After an error, and after a panic, the rows wait on, in memory and in the log.
    pub(crate) fn flush(&self) -> Result<usize, IngestError> {
        self.flush_by(|rows| self.history.append(rows).map(drop))
    }

    /// The same with another way to append rows to the history; they are there for good when it returns.
    fn flush_by(&self, append: impl FnOnce(&[Observation]) -> Result<(), HistoryError>) -> Result<usize, IngestError> {
        let mut compacted = locked(&self.compacted);
        let (batch, segments) = locked(&self.writing).batch();
        if !batch.is_empty() {
            append(&batch)?;
        }
        {
            let mut writing = locked(&self.writing);
            let flushed = std::mem::take(&mut writing.under_way);
            if let Some(last) = writing.flushed.as_mut().filter(|_| !flushed.is_empty()) {
                last.replace(flushed);
            }
            writing.log.remove(&segments)?;
        }
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

/// Rows as the log holds them.
fn payload(rows: &[Observation]) -> Vec<u8> {
    v1::IngestRequest { rows: rows.iter().map(Into::into).collect() }.encode_to_vec()
}

/// Reads the newest `days` of a dated folder, oldest first.
fn replay_history(dir: &Path, days: u32, store: &mut ContextStore) -> Result<(), HistoryError> {
    let Some(newest) = newest_day(dir)? else { return Ok(()) };
    let from = newest.plus_steps(-i64::from(days), Step::DAY);
    let filter = ReadFilter { from: Some(from), ..ReadFilter::default() };
    stream_history(dir, &filter, &mut |rows| {
        store.apply_all(rows);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_datasets::read_history;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn open(dir: &Path) -> Ingestor {
        Ingestor::open(&dir.join("history"), &dir.join("log"), 2).unwrap()
    }

    fn row(minute: i64, cpu: f64) -> Observation {
        let mut row = Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(minute * 60_000));
        row.cpu_util = Some(cpu);
        row
    }

    fn in_pieces(dir: &Path) -> Vec<f64> {
        let read = read_history(&dir.join("history"), &ReadFilter::default()).unwrap();
        read.observations().filter_map(|row| row.cpu_util).collect()
    }

    /// What a start finds: everything acknowledged, in log and pieces together.
    fn after_a_crash(dir: &Path, ingestor: Ingestor) -> Vec<f64> {
        drop(ingestor);
        let again = open(dir);
        again.flush().unwrap();
        in_pieces(dir)
    }

    fn panicking(ingestor: &Ingestor) {
        let flushed =
            catch_unwind(AssertUnwindSafe(|| ingestor.flush_by(|_| panic!("the writer of pieces is broken"))));
        assert!(flushed.is_err());
    }

    fn failing(ingestor: &Ingestor) {
        let error = || HistoryError::WriterName { name: "any error".to_owned() };
        assert!(matches!(ingestor.flush_by(|_| Err(error())), Err(IngestError::History(_))));
    }

    #[test]
    fn a_flush_that_fails_or_panics_loses_no_row() {
        for broken in [panicking, failing] {
            let dir = tempfile::tempdir().unwrap();
            let ingestor = open(dir.path());
            ingestor.take(vec![row(0, 1.0), row(5, 2.0)]).unwrap();
            broken(&ingestor);
            broken(&ingestor);
            ingestor.take(vec![row(5, 3.0), row(10, 4.0)]).unwrap();
            assert_eq!(ingestor.flush().unwrap(), 3);
            assert_eq!(in_pieces(dir.path()), [1.0, 3.0, 4.0], "a row that came meanwhile is newer");
            assert_eq!(ingestor.flush().unwrap(), 0);
            assert_eq!(after_a_crash(dir.path(), ingestor), [1.0, 3.0, 4.0]);
        }
    }

    #[test]
    fn nothing_new_after_a_panic_still_flushes_the_old_rows() {
        let dir = tempfile::tempdir().unwrap();
        let ingestor = open(dir.path());
        ingestor.take(vec![row(0, 1.0)]).unwrap();
        panicking(&ingestor);
        assert_eq!(ingestor.flush().unwrap(), 1);
        assert_eq!(after_a_crash(dir.path(), ingestor), [1.0]);
    }

    #[test]
    fn the_log_holds_the_rows_until_their_pieces_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let ingestor = open(dir.path());
        ingestor.take(vec![row(0, 1.0)]).unwrap();
        let segments = || std::fs::read_dir(dir.path().join("log")).unwrap().count() - 1;
        let flushed = ingestor.flush_by(|rows| {
            assert_eq!((rows.len(), segments()), (1, 1), "during the append");
            assert_eq!(locked(&ingestor.writing).waiting(), 1, "rows under way count as waiting");
            ingestor.take(vec![row(5, 2.0)]).unwrap();
            Ok(())
        });
        assert_eq!((flushed.unwrap(), segments()), (1, 1), "what came during the append is logged on");
        panicking(&ingestor);
        assert_eq!(after_a_crash(dir.path(), ingestor), [2.0], "the first row's piece was only said to be there");
    }
}
