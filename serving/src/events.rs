//! Known events: read at the start, and again whenever their file changes, so that what is announced today counts today.

use foreshard_datasets::{EventCalendar, TableError, read_events};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;
use std::{fs, io};

use crate::context::ContextStore;
use crate::ingest::reason;

/// Why events cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The file is not there or may not be read.
    #[error("cannot look at the file of events {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its rows make no sense.
    #[error("cannot read the events")]
    Table(#[from] TableError),
}

/// A file's state, as far as it tells whether the file is another one now.
type Seen = (Option<SystemTime>, u64);

/// Watches a file of events and tells the contexts.
pub(crate) struct EventWatch {
    path: Option<PathBuf>,
    contexts: Arc<RwLock<ContextStore>>,
    seen: Mutex<Option<Seen>>,
}

impl EventWatch {
    pub(crate) fn new(path: Option<PathBuf>, contexts: Arc<RwLock<ContextStore>>) -> Self {
        Self { path, contexts, seen: Mutex::default() }
    }

    /// Reads the file if it has changed since the last look; true if it had. What was known before stays where that fails.
    /// Blocks on disk.
    pub(crate) fn check(&self) -> Result<bool, EventsError> {
        let Some(path) = &self.path else { return Ok(false) };
        let failed = |source| EventsError::Io { path: path.clone(), source };
        let found = fs::metadata(path).map_err(failed)?;
        let now = (found.modified().ok(), found.len());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == Some(now) {
            return Ok(false);
        }
        // A file that cannot be read is told once, not at every look.
        *seen = Some(now);
        let events = read_events(path)?;
        let count = events.len();
        let calendar = Arc::new(EventCalendar::new(events));
        self.contexts.write().unwrap_or_else(PoisonError::into_inner).announce(calendar);
        tracing::info!(events = count, file = %path.display(), "events are known");
        Ok(true)
    }

    /// The same, for a loop that goes on whatever happens.
    pub(crate) fn look(&self) {
        if let Err(error) = self.check() {
            tracing::error!(error = %reason(&error), "events cannot be read; those known before hold");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, Observation, ShardId, Step, Timestamp};

    #[test]
    fn a_changed_file_is_read_and_a_damaged_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.csv");
        let contexts = Arc::new(RwLock::new(ContextStore::new(1)));
        let watch = EventWatch::new(Some(path.clone()), Arc::clone(&contexts));
        let known = || contexts.read().unwrap().events().clone();
        assert!(matches!(watch.check(), Err(EventsError::Io { .. })));
        let row = "2024-05-01T10:00:00Z,2024-05-01T12:00:00Z,sale\n";
        fs::write(&path, format!("start,end,name\n{row}")).unwrap();
        assert!(watch.check().unwrap());
        assert!(!watch.check().unwrap(), "nothing has changed");
        let one = known();
        assert!(!one.is_empty());
        let mut seen = Observation::empty(ShardId::new("a").unwrap(), Timestamp::from_ms(0));
        seen.cpu_util = Some(1.0);
        contexts.write().unwrap().apply(&seen);
        let key = (seen.shard.clone(), Metric::CpuUtil);
        let made = contexts.read().unwrap().contexts(Step::FIVE_MINUTES, &[key], Timestamp::from_ms(900_000));
        assert_eq!(made[0].as_context().events, Some(one.as_ref()), "what is forecast from knows them");
        fs::write(&path, format!("start,end,name\n{row}never,ever,party\n")).unwrap();
        assert!(matches!(watch.check(), Err(EventsError::Table(_))));
        watch.look();
        assert_eq!(known(), one);
        let other = row.replace("sale", "raid");
        fs::write(&path, format!("start,end,name\n{row}{other}")).unwrap();
        assert!(watch.check().unwrap());
        assert_ne!(known(), one);
        assert!(!EventWatch::new(None, contexts).check().unwrap());
    }
}
