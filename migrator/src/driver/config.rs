//! How a driver goes about its work, and why it may stop.

use foreshard_domain::{BackendKind, Consistency, IdError, LeaderTerm, MigrationId, NodeId, Owner, ShardId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::{BackendError, IllegalTransition, StoreError};

/// How a driver goes about its work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriverConfig {
    /// How long a fence may last before it expires by itself, real time.
    pub fence_limit: Duration,
    /// How many fences may be tried after the first before a move is given up.
    pub more_fences: u32,
    /// How many changes the target may be behind when the fence begins; each lengthens it.
    pub near_changes: u64,
    /// How often changes may be applied without coming that near before a move is given up.
    pub catch_up_rounds: u32,
    /// How often a call that failed for now is tried again.
    pub retries: u32,
    /// Pause before the first of these tries, doubled for each further one, real time.
    pub first_backoff: Duration,
    /// The longest of these pauses.
    pub max_backoff: Duration,
    /// How long the source's data is kept after a move, model milliseconds (M5).
    pub retention_ms: i64,
    /// How long migrations that have ended are remembered, with their journals and plans, model milliseconds.
    pub keep_ms: i64,
    /// How many of the last ended ones are remembered however old they are.
    pub keep_newest: usize,
    /// Bytes copied per second of model time; as fast as possible if left out.
    pub pace_bytes_per_s: Option<f64>,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            // Clients time out after seconds; a write that waits one second is slow, not lost.
            fence_limit: Duration::from_secs(1),
            // A fence that is too short five times in a row will be too short the sixth time.
            more_fences: 4,
            // Applying a hundred changes takes milliseconds on every engine.
            near_changes: 100,
            // With thousands of changes a call, this is a backlog that only a source faster than the copy can make.
            catch_up_rounds: 10_000,
            // With the pauses below: a node may be away for about half a minute.
            retries: 10,
            first_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            // One daily cycle, so that a night's move has met a day's load before it becomes final.
            retention_ms: 86_400_000,
            // A month to look back on; what moves cost and brought is logged for good elsewhere.
            keep_ms: 30 * 86_400_000,
            keep_newest: 1_000,
            pace_bytes_per_s: None,
        }
    }
}

impl DriverConfig {
    /// Pause before try `n` (from 0) of a call that failed for now.
    pub(super) fn backoff(&self, n: u32) -> Duration {
        let factor = 2u32.saturating_pow(n.min(30));
        self.first_backoff.saturating_mul(factor).min(self.max_backoff)
    }
}

/// Why a driver stopped working on a migration; what is durable stays as it is, and `run` or `recover` goes on from it.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The state store did not do what was asked.
    #[error("the state store refused or failed")]
    Store {
        /// Why.
        #[source]
        source: StoreError,
    },
    /// Another controller has taken over.
    #[error("another controller has taken over from leader term {term}: this one does nothing more")]
    Deposed {
        /// The term of this driver.
        term: LeaderTerm,
    },
    /// The engine did not accept this controller.
    #[error("the engine could not be taken over in leader term {term}")]
    Engine {
        /// The term of this driver.
        term: LeaderTerm,
        /// What the engine says.
        #[source]
        source: BackendError,
    },
    /// There is no such migration.
    #[error("migration {id} is not known")]
    Unknown {
        /// The name.
        id: MigrationId,
    },
    /// The migration's state does not allow what was asked.
    #[error("migration {id} cannot do that now")]
    Illegal {
        /// The migration.
        id: MigrationId,
        /// Why not.
        #[source]
        source: IllegalTransition,
    },
    /// A migration cannot be ended without that node.
    #[error(
        "migration {id}, which is {state}, cannot be ended without node {node}{}",
        spare.as_ref().map_or(": cancel it, or wait until it has come through".to_owned(), |spare| format!(
            ": the node that does not own the shard is {spare}"
        ))
    )]
    NotSpare {
        /// The migration.
        id: MigrationId,
        /// The node that is said to be gone.
        node: NodeId,
        /// Name of the state.
        state: &'static str,
        /// The node without which it could be ended, if there is one now.
        spare: Option<NodeId>,
    },
    /// The source of a move does not own its shard.
    #[error("shard {shard} cannot move from {from}: it is owned by {}", owner.as_ref().map_or("nobody", |o| o.node.as_str()))]
    NotOwner {
        /// The shard.
        shard: ShardId,
        /// The source of the move.
        from: NodeId,
        /// The owner.
        owner: Option<Owner>,
    },
    /// Source and target of a move are the same.
    #[error("shard {shard} cannot move from {node} to itself")]
    SameNode {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The engine cannot give the guarantee.
    #[error("the {} backend cannot move with guarantee {}", backend.name(), consistency.name())]
    Unsupported {
        /// The engine.
        backend: BackendKind,
        /// The guarantee.
        consistency: Consistency,
    },
    /// The engine keeps no reverse log.
    #[error("the {} backend keeps no reverse log: move shard {shard} back by a new move", backend.name())]
    NoReverseLog {
        /// The engine.
        backend: BackendKind,
        /// The shard.
        shard: ShardId,
    },
    /// An action that cannot be given up does not succeed; it will be tried again by `run` or `recover`.
    #[error("migration {id} is stuck while {state}")]
    Stuck {
        /// The migration.
        id: MigrationId,
        /// Name of its state.
        state: &'static str,
        /// What the engine says.
        #[source]
        source: BackendError,
    },
    /// The engine and the state store contradict each other; nothing more is done, so that a person can look.
    #[error("migration {id} stopped while {state}: {what}")]
    Contradiction {
        /// The migration.
        id: MigrationId,
        /// Name of its state.
        state: &'static str,
        /// What was seen.
        what: String,
    },
    /// No name could be made for a migration.
    #[error("no name could be made for the migration")]
    Name {
        /// Why.
        #[source]
        source: IdError,
    },
}
