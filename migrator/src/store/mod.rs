//! The state store: what must survive a crash, behind one trait.
//!
//! A commit is atomic over journal rows, shard map and plans, and conditional on the revision it was decided on and on the
//! leader term of who decided it. Every implementation computes the new state with [`apply`] and differs only in how it keeps
//! it.

mod apply;
mod faulty;
mod memory;
mod record;
mod redb_rows;
mod redb_store;
mod state;

use async_trait::async_trait;
use foreshard_domain::{LeaderTerm, Revision};

pub use apply::apply;
pub use faulty::{FaultyStore, StoreFault};
pub use memory::MemoryStore;
pub use record::{ExternalObject, JournalRow, MigrationRecord, Progress};
pub use redb_store::RedbStore;
pub use state::{Change, InvalidChange, Shared, State};

/// Why the state store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody committed in between; nothing was changed.
    #[error("the state store is at revision {found}, not {expected}: read it again and decide anew")]
    Conflict {
        /// The revision that the commit was decided on.
        expected: Revision,
        /// The present one.
        found: Revision,
    },
    /// Another controller has taken over; nothing was changed, and nothing ever will be by this one.
    #[error("leader term {term} is over, term {current} is in charge: this controller must stop")]
    StaleTerm {
        /// The term of the commit.
        term: LeaderTerm,
        /// The present one.
        current: LeaderTerm,
    },
    /// A change would break what must always hold; nothing was changed.
    #[error("the commit was refused")]
    Invalid {
        /// What it would break.
        #[source]
        source: InvalidChange,
    },
    /// Another process holds the store.
    #[error(
        "state store {path} is held by another process: stop it, or send the command to it instead of opening its store"
    )]
    Held {
        /// Where the store is.
        path: String,
    },
    /// The store was written by another version of foreshard.
    #[error("state store {path} has format {found}, this version reads {known}: use the version that wrote it")]
    Format {
        /// Where the store is.
        path: String,
        /// Its format.
        found: String,
        /// The format of this version.
        known: u32,
    },
    /// What was read is not what was written.
    #[error("{what} in state store {path} cannot be read: restore the file from a backup")]
    Corrupt {
        /// Where the store is.
        path: String,
        /// Which row.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store could not be read or written. A commit that ends so may have happened or not: read to know.
    #[error("{doing} failed on state store {path}")]
    Io {
        /// Where the store is.
        path: String,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where the state is kept.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// The present state.
    async fn read(&self) -> Result<State, StoreError>;

    /// Makes all changes or none, if the state is still at `expected` and `term` is still in charge; returns the new revision.
    /// No changes at all are a way to ask whether one is still in charge.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::StaleTerm`] and [`StoreError::Invalid`] say that nothing was changed;
    /// [`StoreError::Io`] that it is not known.
    async fn commit(&self, expected: Revision, term: LeaderTerm, changes: Vec<Change>) -> Result<Revision, StoreError>;

    /// Puts `holder` in charge; commits of earlier terms are refused from now on.
    async fn take_leadership(&self, holder: &str) -> Result<LeaderTerm, StoreError>;

    /// Tells of every new revision.
    fn watch(&self) -> tokio::sync::watch::Receiver<Revision>;
}

/// The state after a commit, if it may be made.
fn advance(state: &State, expected: Revision, term: LeaderTerm, changes: &[Change]) -> Result<State, StoreError> {
    if term != state.term {
        return Err(StoreError::StaleTerm { term, current: state.term });
    }
    if expected != state.revision {
        return Err(StoreError::Conflict { expected, found: state.revision });
    }
    apply(state, changes).map_err(|source| StoreError::Invalid { source })
}

/// The state after a change of leader.
fn lead(state: &State, holder: &str) -> State {
    let mut next = state.clone();
    next.term = next.term.next();
    next.revision = next.revision.next();
    next.leader = Some(holder.to_owned());
    next
}
