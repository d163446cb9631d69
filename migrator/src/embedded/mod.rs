//! The embedded engine: nodes in this process, each with a store of its own, and real moves of shards between them.
//!
//! From the bottom up:
//! - [`KvStore`]: ordered keyspaces with atomic, durable batches; on disk ([`FjallStore`]) or deterministic in memory with
//!   faults ([`MemoryStore`]).
//! - [`EmbeddedNode`]: shards on one store. The node itself refuses stale epochs (M2), ends a fence at its deadline (M7)
//!   and seals in one conditional batch; nobody has to be trusted for that.
//! - [`EmbeddedEngine`]: nodes behind one routing table. Clients see only latency while a shard changes its owner.
//! - [`EmbeddedBackend`]: the engine as a [`crate::Backend`], so that the driver can move shards on it.
//!
//! # One line of positions for a shard's whole life
//! Every write of a shard gets the next position, and positions go on where they were when the owner changes: the target
//! of a move opens at the position at which its source was sealed. A position therefore means the same on every copy, and
//! carrying changes forward (before the seal) and back (after it) is the same work with the nodes exchanged.
//!
//! # What is in one batch
//! The row, the identifier of the write and, while a move captures changes, the log entry. An acknowledged write is
//! therefore on disk together with all that a retry or a move needs to know of it (M1).

mod apply;
mod backend;
mod compare;
mod engine;
mod error;
mod fence_end;
mod keys;
mod kv;
mod kv_fjall;
mod kv_memory;
mod load;
mod node;
mod node_move;
mod piece;
mod router;
mod service;
mod shard;
mod steps;
mod verify;

pub use backend::{EmbeddedBackend, MoveSettings};
pub use engine::{EmbeddedEngine, EngineSettings};
pub use error::{EngineError, ReadError, WriteError};
pub use kv::{Batch, Keyspace, KvError, KvSnapshot, KvStore, Pairs};
pub use kv_fjall::FjallStore;
pub use kv_memory::{Fate, Fault, Faults, MemoryStore};
pub use load::{Cost, LoadScale};
pub use node::{EmbeddedNode, NodeError, Written};
pub use service::{NodeService, Overloaded};
pub use shard::{Refusal, ShardMeta, ShardState};
