//! A state store in memory, for tests and rehearsals.

use async_trait::async_trait;
use foreshard_domain::{LeaderTerm, Revision};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

use super::{Change, State, StateStore, StoreError, advance, lead};

/// Keeps the state as long as the process lives.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    revision: watch::Sender<Revision>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { state: Mutex::new(State::default()), revision: watch::Sender::new(Revision::default()) }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that begins with a given state, such as a copy of another store's.
    pub fn holding(state: State) -> Self {
        let revision = watch::Sender::new(state.revision);
        Self { state: Mutex::new(state), revision }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced as a whole, so a panic elsewhere cannot have left half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl StateStore for MemoryStore {
    async fn read(&self) -> Result<State, StoreError> {
        Ok(self.lock().clone())
    }

    async fn commit(&self, expected: Revision, term: LeaderTerm, changes: Vec<Change>) -> Result<Revision, StoreError> {
        let mut state = self.lock();
        *state = advance(&state, expected, term, &changes)?;
        self.revision.send_replace(state.revision);
        Ok(state.revision)
    }

    async fn take_leadership(&self, holder: &str) -> Result<LeaderTerm, StoreError> {
        let mut state = self.lock();
        *state = lead(&state, holder);
        self.revision.send_replace(state.revision);
        Ok(state.term)
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }
}
