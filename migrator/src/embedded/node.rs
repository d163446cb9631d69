//! A node: shards on one store. It trusts nobody: every call tells the epoch that its caller believes in.

use foreshard_domain::{Clock, Epoch, NodeId, RealTime, ShardId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::apply::{Cell, Staged};
use super::fence_end::FenceEnd;
use super::keys::{self, Entry};
use super::kv::{Keyspace, KvError, KvStore};
use super::shard::{Refusal, ShardMeta};
use crate::Position;

/// Longest key: keeps an index block small.
pub(super) const MAX_KEY_BYTES: usize = 16 * 1024;
/// Longest value: a batch with a row and its log entry stays far below what a store takes at once.
pub(super) const MAX_VALUE_BYTES: usize = 8 * 1024 * 1024;

/// Why a node did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It must not be done; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed; whether a change was made is unknown.
    #[error("{doing} shard {shard} failed")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// Of which shard.
        shard: ShardId,
        /// The cause.
        #[source]
        source: KvError,
    },
    /// The meta row of a shard cannot be read.
    #[error("the state of shard {shard} in the store is not understood; was it written by another version?")]
    Meta {
        /// Of which shard.
        shard: ShardId,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A row that this crate wrote cannot be read.
    #[error("keyspace {keyspace} holds a row of shard {shard} that cannot be read; the store is damaged")]
    Corrupt {
        /// Of which shard.
        shard: ShardId,
        /// Where.
        keyspace: Keyspace,
    },
    /// A key or value is too long.
    #[error("{what} of {bytes} bytes is longer than the {limit} allowed")]
    TooLong {
        /// `key` or `value`.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The work was stopped before it ended, because the process is shutting down or the work panicked.
    #[error("work on the shards of node {node} was stopped; whether it was done is unknown")]
    Stopped {
        /// On which node.
        node: NodeId,
        /// The cause.
        #[source]
        source: tokio::task::JoinError,
    },
    /// A change is missing in the log, so that it can be followed no further.
    #[error("the log of shard {shard} goes from {after:?} to {next:?}; what is between is missing")]
    Gap {
        /// Of which shard.
        shard: ShardId,
        /// The last position before the gap.
        after: Position,
        /// The first one behind it.
        next: Position,
    },
}

impl NodeError {
    pub(super) fn store(doing: &'static str, shard: &ShardId, source: KvError) -> Self {
        NodeError::Store { doing, shard: shard.clone(), source }
    }

    pub(super) fn corrupt(shard: &ShardId, keyspace: Keyspace) -> Self {
        NodeError::Corrupt { shard: shard.clone(), keyspace }
    }
}

/// An accepted write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Where it stands in the shard's line of changes.
    pub position: Position,
    /// Whether it had been made before and was only acknowledged again.
    pub repeated: bool,
}

#[derive(Debug, Default)]
struct Held {
    /// `None` if it has to be loaded.
    cell: Option<Cell>,
    /// Kept from a cell that was thrown away: what it tells is not in the store.
    fence_end: Option<FenceEnd>,
}

impl Held {
    /// Throws away what may differ from the store.
    fn unload(&mut self) {
        if let Some(cell) = self.cell.take() {
            self.fence_end = cell.fence_end;
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// Held by whoever changes the shard.
    held: Mutex<Held>,
    /// In which epoch clients may read here, published so that readers need not wait for a writer's device.
    readable: RwLock<Option<Epoch>>,
}

impl Slot {
    fn readable(&self) -> Option<Epoch> {
        *self.readable.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, epoch: Option<Epoch>) {
        *self.readable.write().unwrap_or_else(PoisonError::into_inner) = epoch;
    }
}

/// A node of the embedded engine. Calls block on the store; writes of one shard happen one after the other, so that the
/// order of its log is the order of its commits.
pub struct EmbeddedNode {
    id: NodeId,
    pub(super) store: Arc<dyn KvStore>,
    clock: Arc<dyn Clock>,
    /// When it started, on its monotonic clock.
    started: Duration,
    window: u64,
    slots: RwLock<BTreeMap<ShardId, Arc<Slot>>>,
}

impl std::fmt::Debug for EmbeddedNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedNode").field("id", &self.id).finish_non_exhaustive()
    }
}

impl EmbeddedNode {
    /// A node on a store. The last `write_id_window` writes of each shard are recognised when they are repeated (at least
    /// one); it must be the same on all nodes between which shards move.
    pub fn new(id: NodeId, store: Arc<dyn KvStore>, clock: Arc<dyn Clock>, write_id_window: u64) -> Self {
        let started = clock.monotonic();
        Self { id, store, clock, started, window: write_id_window.max(1), slots: RwLock::default() }
    }

    /// Its name.
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Whether its calls wait for a device.
    pub fn waits_for_device(&self) -> bool {
        self.store.waits_for_device()
    }

    /// Puts (`Some`) or deletes (`None`) a row. A write whose identifier is among the shard's last ones is acknowledged
    /// again without being made again, with whatever it says (M1).
    ///
    /// # Errors
    /// [`NodeError::Refused`] if the epoch is not the node's, the shard is fenced or closed, nothing was changed;
    /// [`NodeError::Store`] if the outcome is unknown: retry with the same identifier.
    pub fn write(
        &self,
        shard: &ShardId,
        epoch: Epoch,
        write_id: u128,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<Written, NodeError> {
        for (what, bytes, limit) in
            [("key", key.len(), MAX_KEY_BYTES), ("value", value.map_or(0, <[u8]>::len), MAX_VALUE_BYTES)]
        {
            if bytes > limit {
                return Err(NodeError::TooLong { what, bytes, limit });
            }
        }
        self.with_shard(shard, |cell, meta| {
            meta.serves(epoch)?;
            if let Some(position) = cell.ids.position(write_id) {
                return Ok(Written { position, repeated: true });
            }
            // Read under the shard's lock: whoever seals this fence waits for the same lock.
            let opened = meta.admit_write(epoch, self.now(cell)).map_err(|refusal| self.refused(cell, refusal))?;
            let position = Position(cell.position.0.saturating_add(1));
            let entry = Entry { position, write_id, key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
            let mut staged = self.staged(shard, cell);
            staged.entry(&entry, meta.log_from().is_some())?;
            if let Some(opened) = opened {
                staged.meta(ShardMeta { position, ..opened })?;
            }
            staged.commit()?;
            Ok(Written { position, repeated: false })
        })
    }

    /// Reads a row. The value is one that the shard had between call and return, while this node was its owner.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if the epoch is not the node's or the shard is closed here.
    pub fn read(&self, shard: &ShardId, epoch: Epoch, key: &[u8]) -> Result<Option<Vec<u8>>, NodeError> {
        let slot = self.slot(shard);
        let key = keys::of(shard, key);
        let get = || {
            self.store.get(Keyspace::Rows, &key).map_err(|source| NodeError::store("reading a row of", shard, source))
        };
        if slot.readable() == Some(epoch) {
            let value = get()?;
            // Still the owner after the read: so it was during the read.
            if slot.readable() == Some(epoch) {
                return Ok(value);
            }
        }
        self.with_shard(shard, |_, meta| {
            meta.serves(epoch)?;
            get()
        })
    }

    /// All copies that the node holds, as they are in the store.
    ///
    /// # Errors
    /// [`NodeError`] if they cannot be read.
    pub fn shards(&self) -> Result<BTreeMap<ShardId, ShardMeta>, NodeError> {
        let everything = ShardId::residual(&self.id);
        let failed = |source| NodeError::store("listing the shards beside", &everything, source);
        let snapshot = self.store.snapshot().map_err(failed)?;
        let pairs = snapshot.range(Keyspace::Meta, &[], &[u8::MAX; 4], usize::MAX).map_err(failed)?;
        let mut shards = BTreeMap::new();
        for (key, value) in pairs {
            let shard = keys::shard_of(&key).ok_or_else(|| NodeError::corrupt(&everything, Keyspace::Meta))?;
            let meta =
                serde_json::from_slice(&value).map_err(|source| NodeError::Meta { shard: shard.clone(), source })?;
            shards.insert(shard, meta);
        }
        Ok(shards)
    }

    /// Rows and bytes (keys and values) of a copy; zero if there is none.
    ///
    /// # Errors
    /// [`NodeError`] if the shard has to be loaded and cannot be.
    pub fn size(&self, shard: &ShardId) -> Result<(u64, u64), NodeError> {
        self.with_cell(shard, |cell| Ok((cell.size.rows, cell.size.bytes)))
    }

    /// The copy's state and position; `None` if there is no copy.
    ///
    /// # Errors
    /// [`NodeError`] if the shard has to be loaded and cannot be.
    pub fn status(&self, shard: &ShardId) -> Result<Option<(ShardMeta, Position)>, NodeError> {
        self.with_cell(shard, |cell| Ok(cell.meta.clone().map(|meta| (meta, cell.position))))
    }

    /// The time by which decisions about a shard are made.
    pub(super) fn now(&self, cell: &Cell) -> RealTime {
        cell.fence_end.map_or_else(|| self.clock.real(), |end| end.now(self.clock.as_ref()))
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// A refusal that tells when the fence will really be over.
    fn refused(&self, cell: &Cell, refusal: Refusal) -> Refusal {
        match (refusal, cell.fence_end) {
            (Refusal::Fenced { by, .. }, Some(end)) => Refusal::Fenced { by, until: end.expected(self.clock()) },
            (refusal, _) => refusal,
        }
    }

    pub(super) fn staged<'a>(&'a self, shard: &'a ShardId, cell: &'a mut Cell) -> Staged<'a> {
        Staged::new(shard, self.store.as_ref(), cell, self.window)
    }

    /// Works on a copy that must exist, holding its lock.
    pub(super) fn with_shard<T>(
        &self,
        shard: &ShardId,
        work: impl FnOnce(&mut Cell, ShardMeta) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        self.with_cell(shard, |cell| match cell.meta.clone() {
            Some(meta) => work(cell, meta),
            None => Err(Refusal::Absent { node: self.id.clone(), shard: shard.clone() }.into()),
        })
    }

    /// Works on a shard's state, holding its lock; loads it first if need be. After a failure of the store what is in memory
    /// may be wrong, so it is thrown away.
    pub(super) fn with_cell<T>(
        &self,
        shard: &ShardId,
        work: impl FnOnce(&mut Cell) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        let slot = self.slot(shard);
        let mut held = slot.held.lock().unwrap_or_else(|poisoned| {
            // Whoever panicked may have staged what was never committed: only the store tells what is true.
            slot.held.clear_poison();
            slot.publish(None);
            let mut held = poisoned.into_inner();
            held.unload();
            held
        });
        let held = &mut *held;
        let cell = match held.cell.as_mut() {
            Some(cell) => cell,
            None => held.cell.insert(self.load(shard, held.fence_end)?),
        };
        let done = work(cell);
        let readable = cell.meta.as_ref().filter(|meta| meta.is_readable()).map(|meta| meta.epoch);
        match done {
            Ok(_) | Err(NodeError::Refused(_) | NodeError::TooLong { .. }) => slot.publish(readable),
            Err(_) => {
                slot.publish(None);
                held.unload();
            }
        }
        done
    }

    fn load(&self, shard: &ShardId, known: Option<FenceEnd>) -> Result<Cell, NodeError> {
        let snapshot = self.store.snapshot().map_err(|e| NodeError::store("reading the state of", shard, e))?;
        let mut cell = Cell::load(shard, snapshot.as_ref())?;
        cell.fence_end = cell.meta.as_ref().and_then(|meta| match known {
            Some(known) if known.is_of(meta) => Some(known),
            _ => FenceEnd::found(meta, self.clock(), self.started),
        });
        Ok(cell)
    }

    fn slot(&self, shard: &ShardId) -> Arc<Slot> {
        let known = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(shard).cloned();
        known.unwrap_or_else(|| {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(shard.clone()).or_default())
        })
    }
}
