//! A deterministic store in memory whose commits can be made to fail or to end the world at a chosen write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kv::{Batch, Change, Keyspace, KvError, KvSnapshot, KvStore, Pairs};

/// What goes wrong, counted in commits (of all stores that share a [`Faults`]) from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This commit fails without effect; later ones work.
    FailBefore(u64),
    /// This commit has no effect, and from then on every call fails: the process died before the write.
    CrashBefore(u64),
    /// This commit is made durable, and from then on every call fails, this one included: the process died before it could
    /// tell.
    CrashAfter(u64),
}

#[derive(Debug, Default)]
struct FaultState {
    commits: u64,
    fault: Option<Fault>,
    down: bool,
}

/// What becomes of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is made and told.
    Done,
    /// It has no effect and is told to have failed.
    Failed,
    /// It is made, but told to have failed: the process died in between.
    DoneUntold,
}

/// One fault shared by all stores of a process, since a crash takes all of them down at once.
#[derive(Debug, Default)]
pub struct Faults(Mutex<FaultState>);

impl Faults {
    /// No fault; commits are counted.
    pub fn none() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// One fault.
    pub fn one(fault: Fault) -> Arc<Self> {
        Arc::new(Self(Mutex::new(FaultState { fault: Some(fault), ..FaultState::default() })))
    }

    /// Commits tried so far, over all stores.
    pub fn commits(&self) -> u64 {
        self.state().commits
    }

    /// Whether the crash has happened and nothing was reopened since.
    pub fn is_down(&self) -> bool {
        self.state().down
    }

    /// Starts the process anew: calls work again and the fault is spent.
    pub fn reopen(&self) {
        let mut state = self.state();
        state.down = false;
        state.fault = None;
    }

    /// Counts one commit and decides its fate; for wrappers of other stores that share this fault.
    pub fn commit(&self) -> Fate {
        let mut state = self.state();
        if state.down {
            return Fate::Failed;
        }
        let this = state.commits;
        state.commits += 1;
        let fate = match state.fault {
            Some(Fault::FailBefore(n)) if n == this => Fate::Failed,
            Some(Fault::CrashBefore(n)) if n == this => {
                state.down = true;
                Fate::Failed
            }
            Some(Fault::CrashAfter(n)) if n == this => {
                state.down = true;
                Fate::DoneUntold
            }
            _ => Fate::Done,
        };
        drop(state);
        fate
    }

    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Tree = BTreeMap<Keyspace, Arc<BTreeMap<Vec<u8>, Vec<u8>>>>;

#[derive(Debug, Default)]
struct Trees {
    /// What readers see.
    seen: Tree,
    /// What a crash leaves.
    durable: Tree,
    /// Buffered batches since the last durable one: seen, not yet durable.
    pending: Vec<Batch>,
}

/// The store; deterministic, single process, for tests and rehearsals.
#[derive(Debug)]
pub struct MemoryStore {
    trees: Mutex<Trees>,
    faults: Arc<Faults>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_faults(Faults::none())
    }
}

impl MemoryStore {
    /// An empty store whose commits count into `faults`.
    pub fn with_faults(faults: Arc<Faults>) -> Self {
        Self { trees: Mutex::default(), faults }
    }

    /// What a process finds that starts after the last one died: exactly what was durable. The old handle is left as it is.
    #[must_use]
    pub fn reopened(&self, faults: Arc<Faults>) -> Self {
        let durable = self.trees().durable.clone();
        Self { trees: Mutex::new(Trees { seen: durable.clone(), durable, pending: Vec::new() }), faults }
    }

    /// All pairs of a keyspace, whether the store is down or not; for looking at what a crash left.
    pub fn contents(&self, keyspace: Keyspace) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.trees().seen.get(&keyspace).map(|tree| tree.as_ref().clone()).unwrap_or_default()
    }

    fn trees(&self) -> MutexGuard<'_, Trees> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Result<(), KvError> {
        if self.faults.is_down() { Err(KvError::Down) } else { Ok(()) }
    }
}

fn make(tree: &mut Tree, batch: Batch) {
    for change in batch.changes {
        match change {
            Change::Put(keyspace, key, value) => {
                Arc::make_mut(tree.entry(keyspace).or_default()).insert(key, value);
            }
            Change::Remove(keyspace, key) => {
                Arc::make_mut(tree.entry(keyspace).or_default()).remove(&key);
            }
        }
    }
}

impl KvStore for MemoryStore {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.up()?;
        Ok(self.trees().seen.get(&keyspace).and_then(|tree| tree.get(key).cloned()))
    }

    fn snapshot(&self) -> Result<Box<dyn KvSnapshot>, KvError> {
        self.up()?;
        Ok(Box::new(MemorySnapshot { seen: self.trees().seen.clone(), faults: Arc::clone(&self.faults) }))
    }

    fn commit(&self, batch: Batch) -> Result<(), KvError> {
        if batch.is_empty() {
            return self.up();
        }
        let mut trees = self.trees();
        let fate = self.faults.commit();
        if fate != Fate::Failed {
            make(&mut trees.seen, batch.clone());
            let durable = !batch.buffered;
            trees.pending.push(batch);
            if durable {
                for batch in std::mem::take(&mut trees.pending) {
                    make(&mut trees.durable, batch);
                }
            }
        }
        match fate {
            Fate::Done => Ok(()),
            Fate::Failed | Fate::DoneUntold if self.faults.is_down() => Err(KvError::Down),
            Fate::Failed | Fate::DoneUntold => {
                Err(KvError::Commit { source: Box::new(std::io::Error::other("injected fault")) })
            }
        }
    }

    fn waits_for_device(&self) -> bool {
        false
    }
}

struct MemorySnapshot {
    seen: Tree,
    faults: Arc<Faults>,
}

impl KvSnapshot for MemorySnapshot {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if self.faults.is_down() {
            return Err(KvError::Down);
        }
        Ok(self.seen.get(&keyspace).and_then(|tree| tree.get(key).cloned()))
    }

    fn range(&self, keyspace: Keyspace, from: &[u8], to: &[u8], limit: usize) -> Result<Pairs, KvError> {
        if self.faults.is_down() {
            return Err(KvError::Down);
        }
        let Some(tree) = self.seen.get(&keyspace).filter(|_| from < to) else { return Ok(Vec::new()) };
        let range = tree.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        Ok(range.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8]) -> Batch {
        let mut batch = Batch::new();
        batch.put(Keyspace::Rows, key.to_vec(), b"v".to_vec());
        batch
    }

    #[test]
    fn crash_keeps_exactly_what_was_durable() {
        for (fault, kept) in [(Fault::CrashBefore(1), 1), (Fault::CrashAfter(1), 2)] {
            let store = MemoryStore::with_faults(Faults::one(fault));
            store.commit(put(b"a")).unwrap();
            assert!(matches!(store.commit(put(b"b")), Err(KvError::Down)));
            assert!(store.get(Keyspace::Rows, b"a").is_err(), "everything fails after the crash");
            let again = store.reopened(Faults::none());
            assert_eq!(again.contents(Keyspace::Rows).len(), kept, "{fault:?}");
        }
    }

    #[test]
    fn buffered_batches_are_lost_until_a_durable_one_follows() {
        let store = MemoryStore::default();
        let mut buffered = Batch::buffered();
        buffered.put(Keyspace::Rows, b"a".to_vec(), b"v".to_vec());
        store.commit(buffered).unwrap();
        assert_eq!(store.reopened(Faults::none()).contents(Keyspace::Rows).len(), 0);
        store.commit(put(b"b")).unwrap();
        assert_eq!(store.reopened(Faults::none()).contents(Keyspace::Rows).len(), 2);
    }

    #[test]
    fn a_failed_commit_has_no_effect_and_is_not_the_end() {
        let store = MemoryStore::with_faults(Faults::one(Fault::FailBefore(0)));
        assert!(matches!(store.commit(put(b"a")), Err(KvError::Commit { .. })));
        store.commit(put(b"b")).unwrap();
        assert_eq!(store.contents(Keyspace::Rows).into_keys().collect::<Vec<_>>(), [b"b".to_vec()]);
    }

    #[test]
    fn snapshots_do_not_move() {
        let store = MemoryStore::default();
        store.commit(put(b"a")).unwrap();
        let snapshot = store.snapshot().unwrap();
        store.commit(put(b"b")).unwrap();
        assert_eq!(snapshot.range(Keyspace::Rows, b"", b"z", 9).unwrap().len(), 1);
        assert_eq!(snapshot.range(Keyspace::Rows, b"z", b"a", 9).unwrap().len(), 0, "an empty range is no error");
    }
}
