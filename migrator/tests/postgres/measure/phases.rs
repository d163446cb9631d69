//! How long a move spends in each state, as its records tell.

use foreshard_domain::MigrationId;
use foreshard_migrator::{MigrationRecord, MigrationState, StateStore};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// States in their order, and how long each lasted.
pub struct Phases {
    seen: Arc<Mutex<Vec<(String, Instant)>>>,
    task: JoinHandle<()>,
}

impl Phases {
    /// Follows a migration from now on.
    pub async fn of(store: &Arc<dyn StateStore>, id: &MigrationId) -> Self {
        let seen = Arc::new(Mutex::new(vec![(String::new(), Instant::now())]));
        let (store, id, notes) = (Arc::clone(store), id.clone(), Arc::clone(&seen));
        let mut revisions = store.watch();
        let task = tokio::spawn(async move {
            loop {
                let state = store.read().await.unwrap();
                let name = state.migrations.get(&id).map(|record| name(record)).unwrap_or_default();
                {
                    let mut notes = notes.lock().unwrap();
                    if notes.last().is_none_or(|(last, _)| *last != name) {
                        notes.push((name, Instant::now()));
                    }
                }
                if revisions.changed().await.is_err() {
                    return;
                }
            }
        });
        Self { seen, task }
    }

    /// How long it took from the beginning of `first` to that of `next`.
    pub fn until(&self, first: &str, next: &str) -> Duration {
        let seen = self.seen.lock().unwrap();
        let begins = |state: &str| seen.iter().find(|(name, _)| name.starts_with(state)).map(|(_, at)| *at);
        let (Some(began), Some(ended)) = (begins(first), begins(next)) else {
            panic!("no {first} or {next}: {seen:?}")
        };
        ended - began
    }

    /// How long all states lasted that are neither before `first` nor after `last`.
    pub fn between(&self, first: &str, last: &str) -> Duration {
        let seen = self.seen.lock().unwrap();
        let began = seen.iter().find(|(name, _)| name.starts_with(first)).map(|(_, at)| *at);
        let after = seen.iter().rposition(|(name, _)| name.starts_with(last)).and_then(|n| seen.get(n + 1));
        let (began, (_, ended)) = (began.unwrap(), after.unwrap());
        *ended - began
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen.lock().unwrap();
        for pair in seen.windows(2) {
            let [(name, began), (_, ended)] = pair else { continue };
            if !name.is_empty() {
                write!(f, "{name} {:.2} s, ", (*ended - *began).as_secs_f64())?;
            }
        }
        write!(f, "then {}", seen.last().map_or("", |(name, _)| name))
    }
}

/// The state, and the stage of a copy.
fn name(record: &MigrationRecord) -> String {
    match &record.state {
        MigrationState::Copying { cursor: Some(cursor), .. } => format!("copying {cursor}"),
        state => state.name().to_owned(),
    }
}
