//! The store on disk: a log-structured tree by fjall.

use fjall::{Database, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::kv::{Batch, Change, Keyspace, KvError, KvSnapshot, KvStore, Pairs};

/// Room for cached blocks a store: several nodes share one process and its memory.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Threads for flushing and compaction a store.
const WORKER_THREADS: usize = 1;

type Keyspaces = Arc<BTreeMap<Keyspace, fjall::Keyspace>>;

/// A store in a folder of its own. Batches are synced to the device before anything of them can be read.
#[derive(Clone)]
pub struct FjallStore {
    database: Database,
    keyspaces: Keyspaces,
}

impl std::fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallStore").finish_non_exhaustive()
    }
}

impl FjallStore {
    /// Opens the store in `folder`, or creates it there.
    ///
    /// # Errors
    /// [`KvError::Open`] if the folder cannot be used.
    pub fn open(folder: &Path) -> Result<Self, KvError> {
        let open =
            |source: fjall::Error| KvError::Open { place: folder.display().to_string(), source: Box::new(source) };
        let database =
            Database::builder(folder).cache_size(CACHE_BYTES).worker_threads(WORKER_THREADS).open().map_err(open)?;
        let mut keyspaces = BTreeMap::new();
        for keyspace in Keyspace::ALL {
            let tree = database.keyspace(keyspace.name(), KeyspaceCreateOptions::default).map_err(open)?;
            keyspaces.insert(keyspace, tree);
        }
        Ok(Self { database, keyspaces: Arc::new(keyspaces) })
    }
}

/// The tree of a keyspace; all exist since [`FjallStore::open`].
fn tree(keyspaces: &Keyspaces, keyspace: Keyspace) -> Result<&fjall::Keyspace, KvError> {
    keyspaces.get(&keyspace).ok_or(KvError::Down)
}

fn read_error(keyspace: Keyspace, source: fjall::Error) -> KvError {
    KvError::Read { keyspace, source: Box::new(source) }
}

impl KvStore for FjallStore {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let value = tree(&self.keyspaces, keyspace)?.get(key).map_err(|e| read_error(keyspace, e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn snapshot(&self) -> Result<Box<dyn KvSnapshot>, KvError> {
        Ok(Box::new(FjallSnapshot { snapshot: self.database.snapshot(), keyspaces: Arc::clone(&self.keyspaces) }))
    }

    fn commit(&self, batch: Batch) -> Result<(), KvError> {
        // Without a durability a batch only reaches the operating system's buffers.
        let durability = if batch.buffered { None } else { Some(PersistMode::SyncData) };
        let mut write = self.database.batch().durability(durability);
        for change in batch.changes {
            match change {
                Change::Put(keyspace, key, value) => write.insert(tree(&self.keyspaces, keyspace)?, key, value),
                Change::Remove(keyspace, key) => write.remove(tree(&self.keyspaces, keyspace)?, key),
            }
        }
        write.commit().map_err(|source| KvError::Commit { source: Box::new(source) })
    }

    fn waits_for_device(&self) -> bool {
        true
    }
}

struct FjallSnapshot {
    snapshot: Snapshot,
    keyspaces: Keyspaces,
}

impl KvSnapshot for FjallSnapshot {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let value = self.snapshot.get(tree(&self.keyspaces, keyspace)?, key).map_err(|e| read_error(keyspace, e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn range(&self, keyspace: Keyspace, from: &[u8], to: &[u8], limit: usize) -> Result<Pairs, KvError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self.snapshot.range(tree(&self.keyspaces, keyspace)?, from..to);
        let mut pairs = Vec::new();
        for guard in range.take(limit) {
            let (key, value) = guard.into_inner().map_err(|e| read_error(keyspace, e))?;
            pairs.push((key.to_vec(), value.to_vec()));
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_survive_reopening() {
        let folder = tempfile::tempdir().unwrap();
        {
            let store = FjallStore::open(folder.path()).unwrap();
            let mut batch = Batch::new();
            for key in [b"a", b"b", b"c"] {
                batch.put(Keyspace::Rows, key.to_vec(), b"1".to_vec());
            }
            store.commit(batch).unwrap();
            let before = store.snapshot().unwrap();
            let mut batch = Batch::new();
            batch.remove(Keyspace::Rows, b"b".to_vec());
            batch.put(Keyspace::Log, b"x".to_vec(), b"2".to_vec());
            store.commit(batch).unwrap();
            assert_eq!(before.range(Keyspace::Rows, b"a", b"z", 10).unwrap().len(), 3, "the snapshot stands");
        }
        let store = FjallStore::open(folder.path()).unwrap();
        let rows = store.snapshot().unwrap().range(Keyspace::Rows, b"a", b"z", 10).unwrap();
        assert_eq!(rows, [(b"a".to_vec(), b"1".to_vec()), (b"c".to_vec(), b"1".to_vec())]);
        assert_eq!(store.get(Keyspace::Log, b"x").unwrap(), Some(b"2".to_vec()));
    }

    #[test]
    fn an_unusable_folder_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"no folder").unwrap();
        assert!(matches!(FjallStore::open(&file), Err(KvError::Open { .. })));
    }
}
