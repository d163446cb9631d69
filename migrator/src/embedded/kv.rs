//! What the embedded engine asks of a store: a few ordered keyspaces, snapshots, and batches that are atomic and durable.

use std::fmt;

/// Key and value pairs in key order.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The fixed keyspaces of a node's store; keys begin with the shard's name and a zero byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keyspace {
    /// One row a shard: its epoch and state.
    Meta,
    /// The clients' rows.
    Rows,
    /// Position -> identifier of the write at that position, the last few of each shard.
    WriteIds,
    /// Position -> change, while a move captures changes.
    Log,
    /// Probes of the way back (M8).
    Probe,
}

impl Keyspace {
    /// All keyspaces.
    pub const ALL: [Keyspace; 5] = [Keyspace::Meta, Keyspace::Rows, Keyspace::WriteIds, Keyspace::Log, Keyspace::Probe];

    /// Its name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Keyspace::Meta => "meta",
            Keyspace::Rows => "rows",
            Keyspace::WriteIds => "write_ids",
            Keyspace::Log => "log",
            Keyspace::Probe => "probe",
        }
    }
}

impl fmt::Display for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The store's files cannot be opened or created.
    #[error("could not open the store in {place}; check that the folder is writable and used by no other process")]
    Open {
        /// Where it lies.
        place: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading failed.
    #[error("could not read keyspace {keyspace}")]
    Read {
        /// Which one.
        keyspace: Keyspace,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Writing failed; the batch may be there after a restart or not, but never in part.
    #[error("could not commit a batch; whether it is durable is unknown until it is read again")]
    Commit {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store has crashed and was not opened again.
    #[error("the store is down; open it again")]
    Down,
}

/// One change in a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Puts a value.
    Put(Keyspace, Vec<u8>, Vec<u8>),
    /// Removes a key if it is there.
    Remove(Keyspace, Vec<u8>),
}

/// Changes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) buffered: bool,
}

impl Batch {
    /// An empty batch; it is durable when its commit returns.
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch that may be lost by a crash until a later one of the same store is durable. Only for what is done again
    /// anyway when it is found undone, such as removing rows that nobody reads.
    pub fn buffered() -> Self {
        Self { changes: Vec::new(), buffered: true }
    }

    /// Puts a value.
    pub fn put(&mut self, keyspace: Keyspace, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push(Change::Put(keyspace, key, value));
    }

    /// Removes a key if it is there.
    pub fn remove(&mut self, keyspace: Keyspace, key: Vec<u8>) {
        self.changes.push(Change::Remove(keyspace, key));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// A state of the store that no later batch changes.
pub trait KvSnapshot: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// [`KvError`] if reading fails.
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// Up to `limit` pairs with `from <= key < to`, in key order.
    ///
    /// # Errors
    /// [`KvError`] if reading fails.
    fn range(&self, keyspace: Keyspace, from: &[u8], to: &[u8], limit: usize) -> Result<Pairs, KvError>;
}

/// A node's store. Calls block; [`KvStore::waits_for_device`] tells whether for long.
pub trait KvStore: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// [`KvError`] if reading fails.
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// The state after all batches committed so far.
    ///
    /// # Errors
    /// [`KvError`] if the store is down.
    fn snapshot(&self) -> Result<Box<dyn KvSnapshot>, KvError>;

    /// Makes all changes of a batch, or none; durable on return unless the batch is buffered. Nothing of it can be read
    /// before it is durable.
    ///
    /// # Errors
    /// [`KvError::Commit`] or [`KvError::Down`]: the batch may have been committed or not, never in part.
    fn commit(&self, batch: Batch) -> Result<(), KvError>;

    /// Whether calls wait for a device, so that an executor's threads had better not make them.
    fn waits_for_device(&self) -> bool;
}
