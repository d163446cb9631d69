//! A state store that fails at a chosen commit, to test what a crash on each line leaves behind.

use async_trait::async_trait;
use foreshard_domain::{LeaderTerm, Revision};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::watch;

use super::{Change, State, StateStore, StoreError};

/// What goes wrong; commits are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFault {
    /// Nothing.
    None,
    /// This commit is not made and ends in an error; the next works again.
    FailBefore(u64),
    /// This commit is made, but its answer is lost.
    FailAfter(u64),
    /// The process dies before this commit: it is not made, and nothing works afterwards.
    CrashBefore(u64),
    /// The process dies after this commit: it is made, but nothing works afterwards.
    CrashAfter(u64),
}

/// Passes everything on to another store until its fault is due. Changes of leader are not counted and never fail by
/// themselves.
pub struct FaultyStore {
    inner: Arc<dyn StateStore>,
    fault: StoreFault,
    commits: AtomicU64,
    crashed: AtomicBool,
}

impl FaultyStore {
    /// A store with one fault.
    pub fn new(inner: Arc<dyn StateStore>, fault: StoreFault) -> Self {
        Self { inner, fault, commits: AtomicU64::new(0), crashed: AtomicBool::new(false) }
    }

    /// How many commits have been asked for.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// Whether the process that uses this store counts as dead.
    pub fn crashed(&self) -> bool {
        self.crashed.load(Ordering::SeqCst)
    }

    fn alive(&self) -> Result<(), StoreError> {
        if self.crashed() { Err(injected("using a crashed store")) } else { Ok(()) }
    }
}

fn injected(doing: &'static str) -> StoreError {
    StoreError::Io { path: "with injected faults".into(), doing, source: "injected fault".into() }
}

#[async_trait]
impl StateStore for FaultyStore {
    async fn read(&self) -> Result<State, StoreError> {
        self.alive()?;
        self.inner.read().await
    }

    async fn commit(&self, expected: Revision, term: LeaderTerm, changes: Vec<Change>) -> Result<Revision, StoreError> {
        self.alive()?;
        let n = self.commits.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            StoreFault::FailBefore(at) if at == n => Err(injected("a commit that was not made")),
            StoreFault::CrashBefore(at) if at == n => {
                self.crashed.store(true, Ordering::SeqCst);
                Err(injected("a commit that was not made"))
            }
            StoreFault::FailAfter(at) if at == n => {
                self.inner.commit(expected, term, changes).await?;
                Err(injected("a commit that was made"))
            }
            StoreFault::CrashAfter(at) if at == n => {
                self.crashed.store(true, Ordering::SeqCst);
                self.inner.commit(expected, term, changes).await?;
                Err(injected("a commit that was made"))
            }
            StoreFault::None
            | StoreFault::FailBefore(_)
            | StoreFault::FailAfter(_)
            | StoreFault::CrashBefore(_)
            | StoreFault::CrashAfter(_) => self.inner.commit(expected, term, changes).await,
        }
    }

    async fn take_leadership(&self, holder: &str) -> Result<LeaderTerm, StoreError> {
        self.alive()?;
        self.inner.take_leadership(holder).await
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.inner.watch()
    }
}
