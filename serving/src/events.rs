//! Known events: read at the start, and again whenever their file changes, so that what is announced today counts today.

use foreshard_datasets::{EventCalendar, TableError, read_events};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::{fs, io};

use crate::context::ContextStore;
use crate::ingest::reason;
use crate::watched::{Look, Watched};

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

/// Watches a file of events and tells the contexts.
pub(crate) struct EventWatch {
    file: Option<Watched>,
    contexts: Arc<RwLock<ContextStore>>,
}

impl EventWatch {
    pub(crate) fn new(path: Option<PathBuf>, contexts: Arc<RwLock<ContextStore>>) -> Self {
        Self { file: path.map(Watched::new), contexts }
    }

    /// Reads the file, if there is one. What was known before stays where that fails. Blocks on disk.
    pub(crate) fn read(&self) -> Result<(), EventsError> {
        let Some(path) = self.file.as_ref().map(Watched::path) else { return Ok(()) };
        fs::metadata(path).map_err(|source| EventsError::Io { path: path.to_owned(), source })?;
        let events = read_events(path)?;
        let count = events.len();
        let calendar = Arc::new(EventCalendar::new(events));
        self.contexts.write().unwrap_or_else(PoisonError::into_inner).announce(calendar);
        tracing::info!(events = count, file = %path.display(), "events are known");
        Ok(())
    }

    /// Reads the file again if it has changed, and one that could not be read at every look. True if it is being written, so
    /// that the next look should come soon.
    pub(crate) fn look(&self) -> bool {
        let Some(file) = &self.file else { return false };
        match file.look() {
            Look::Same => return false,
            Look::Settling => return true,
            Look::Changed => {}
        }
        match self.read() {
            Ok(()) => file.used(),
            Err(error) => {
                let why = reason(&error);
                if file.try_again(&why) {
                    tracing::error!(error = %why, "events cannot be read; those known before hold");
                }
            }
        }
        false
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
        // A change counts when it has settled.
        let look = || watch.look() && !watch.look();
        assert!(matches!(watch.read(), Err(EventsError::Io { .. })));
        let row = "2024-05-01T10:00:00Z,2024-05-01T12:00:00Z,sale\n";
        fs::write(&path, format!("start,end,name\n{row}")).unwrap();
        assert!(look());
        let one = known();
        assert!(!one.is_empty());
        let mut seen = Observation::empty(ShardId::new("a").unwrap(), Timestamp::from_ms(0));
        seen.cpu_util = Some(1.0);
        contexts.write().unwrap().apply(&seen);
        let key = (seen.shard.clone(), Metric::CpuUtil);
        let made = contexts.read().unwrap().contexts(Step::FIVE_MINUTES, &[key], Timestamp::from_ms(900_000));
        assert_eq!(made[0].as_context().events, Some(one.as_ref()), "what is forecast from knows them");
        fs::write(&path, format!("start,end,name\n{row}never,ever,party\n")).unwrap();
        assert!(matches!(watch.read(), Err(EventsError::Table(_))));
        assert!(look());
        assert_eq!(known(), one);
        let other = row.replace("sale", "raid");
        fs::write(&path, format!("start,end,name\n{row}{other}")).unwrap();
        assert!(look());
        assert_ne!(known(), one);
        let without = EventWatch::new(None, contexts);
        assert!(without.read().is_ok() && !without.look());
    }

    #[test]
    fn a_file_that_could_not_be_read_is_tried_again_although_it_did_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("events.csv"), dir.path().join("away.csv"));
        let row = "2024-05-01T10:00:00Z,2024-05-01T12:00:00Z,sale\n";
        fs::write(&away, format!("start,end,name\n{row}")).unwrap();
        // A folder in its place is there, and cannot be read.
        fs::create_dir(&path).unwrap();
        let contexts = Arc::new(RwLock::new(ContextStore::new(1)));
        let watch = EventWatch::new(Some(path.clone()), Arc::clone(&contexts));
        assert!(!watch.look(), "nothing has changed");
        fs::write(path.join("changed"), "").unwrap();
        assert!(watch.look() && !watch.look());
        let file = watch.file.as_ref().unwrap();
        assert_eq!(file.look(), Look::Changed, "tried again at the next look");
        file.wait();
        fs::remove_dir_all(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        assert!(watch.look() && !watch.look());
        assert!(!contexts.read().unwrap().events().is_empty());
    }
}
