//! What the migration driver asks of an engine.
//!
//! Every call is idempotent: the driver repeats a call whose outcome it does not know. Positions are opaque to the driver
//! and ordered by the engine.

use async_trait::async_trait;
use foreshard_domain::{
    BackendKind, Consistency, Epoch, LeaderTerm, MigrationId, NodeId, Observation, RealTime, ShardId,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Why a backend could not do what was asked; the class steers the driver.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// May work when tried again.
    #[error("{doing} failed for now")]
    Transient {
        /// What was being done.
        doing: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Will not work however often it is tried; before the seal the move goes back.
    #[error("{doing} cannot be done: {why}")]
    Permanent {
        /// What was being done.
        doing: String,
        /// Why not, and how to mend it.
        why: String,
    },
    /// The epoch, the leader term or the deadline has passed by: somebody else may be in charge.
    #[error("{doing} was refused: {why}")]
    Fenced {
        /// What was being done.
        doing: String,
        /// Which check refused it.
        why: String,
    },
    /// Something that must not happen.
    #[error("bug: {what}")]
    Bug {
        /// What was seen.
        what: String,
    },
}

/// What an engine can do; an unsupported request fails while planning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Guarantees that it can give.
    pub consistency: Vec<Consistency>,
    /// Whether a finished move can be taken back without loss by a reverse log.
    pub reverse_log: bool,
    /// Whether a copy resumes where it stopped.
    pub resumable_copy: bool,
}

/// Which of the two owner changes of a migration a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the planned source to the planned target.
    There,
    /// The rollback: from the planned target, which owns the shard by now, to the planned source, fed by the reverse log.
    Back,
}

/// The move that a backend call is about.
///
/// In a rollback (`way` is [`Way::Back`]) `source` is the node that owns the shard now, the planned target, and `target` is
/// the planned source, whose copy still exists. Then `verify`, `fence`, `unfence`, `prove`, `seal`, `source_state`,
/// `open_target` and `finish` get this reversed spec; what they bring to the target comes from the reverse log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveSpec {
    /// Which migration; names of external objects derive from it.
    pub migration: MigrationId,
    /// What moves.
    pub shard: ShardId,
    /// From where.
    pub source: NodeId,
    /// To where.
    pub target: NodeId,
    /// Epoch of the source's ownership.
    pub epoch: Epoch,
    /// Guarantee.
    pub consistency: Consistency,
    /// There or back.
    pub way: Way,
}

impl MoveSpec {
    /// The same migration the other way, by a source that owns the shard in `epoch`.
    #[must_use]
    pub fn reversed(&self, epoch: Epoch) -> Self {
        let way = match self.way {
            Way::There => Way::Back,
            Way::Back => Way::There,
        };
        Self { source: self.target.clone(), target: self.source.clone(), epoch, way, ..self.clone() }
    }
}

/// A place in the source's change log, opaque and ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Position(pub u64);

/// How far the copy has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Opaque cursor from which to go on; `None` when the copy is complete.
    pub next: Option<String>,
    /// Position of the change log at which the snapshot was taken.
    pub snapshot_at: Position,
    /// Rows copied by this call.
    pub rows: u64,
    /// Bytes copied by this call.
    pub bytes: u64,
}

/// How far the target is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Changes not yet applied.
    pub changes: u64,
    /// The position that has been applied.
    pub applied: Position,
}

/// What a comparison of source and target found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Key ranges compared.
    pub ranges: u64,
    /// Rows compared.
    pub rows: u64,
    /// Ranges that differ, named for a person; empty if equal.
    pub differing: Vec<String>,
    /// Every change up to here was compared; what was changed later may have been compared or not.
    pub up_to: Position,
    /// Opaque cursor from which to go on; `None` when every range has been compared.
    #[serde(default)]
    pub next: Option<String>,
}

/// What a call that removes something has left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing: all of it is gone.
    Nothing,
    /// Something was removed and something is left: call again.
    More,
}

/// Proof that the target holds everything up to the fence; only then may the source be sealed (M4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The position at which the fence stopped writes.
    pub fence_at: Position,
    /// What the target has applied; at least `fence_at`.
    pub applied: Position,
    /// The comparison of what changed since the verification before the fence.
    pub verification: Verification,
}

/// Whether what a migration keeps back on its nodes is still within their limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// It is.
    Enough,
    /// It is not, and the nodes are in danger.
    Spent {
        /// What is kept back, where, and how much of it.
        why: String,
    },
}

/// What a look for leftovers found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// What was removed.
    pub removed: Vec<String>,
    /// What was left for a person to look at, and why.
    pub left: Vec<String>,
}

/// A node that holds a shard, as the engine itself tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The node.
    pub node: NodeId,
    /// Bytes of the shard there, 0 if the engine cannot tell.
    pub bytes: u64,
}

/// State of a shard on a source node, as the engine itself tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Accepts writes.
    Open,
    /// Refuses writes until its deadline, then opens by itself (M7).
    Fenced,
    /// Closed for good in this epoch.
    Sealed,
}

/// One engine that shards can be moved on.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Which kind it is.
    fn kind(&self) -> BackendKind;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Names of the external objects that this move will create, so that the driver can commit a row for each before it
    /// exists (M6).
    fn external_objects(&self, spec: &MoveSpec) -> Vec<String>;

    /// Puts a leader term in charge: from now on the engine itself refuses calls of controllers of earlier terms, if it can
    /// tell them apart. The driver calls it before any other work of its term.
    ///
    /// # Errors
    /// [`BackendError::Fenced`] if a later term is in charge.
    async fn take_over(&self, _term: LeaderTerm) -> Result<(), BackendError> {
        Ok(())
    }

    /// The nodes that hold a shard, ordered by name, or `on` alone if it does: to adopt a shard that is not in the shard map, and
    /// to tell how much a move has to copy. Reads only.
    ///
    /// # Errors
    /// [`BackendError::Transient`] if a node cannot be asked: then it is not known who else holds the shard.
    async fn find(&self, _shard: &ShardId, _on: Option<&NodeId>) -> Result<Vec<Found>, BackendError> {
        let why = "this engine does not tell: enter the shard into the shard map first".to_owned();
        Err(BackendError::Permanent { doing: "looking for the shard".to_owned(), why })
    }

    /// Read-only checks before anything is changed; all findings at once in the error.
    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError>;

    /// Makes an empty, closed place for the shard on the target and starts capturing changes on the source.
    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError>;

    /// Copies the next piece from `cursor` (`None` to begin).
    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError>;

    /// Applies changes captured since the snapshot, as many as one call may.
    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError>;

    /// Compares some more ranges of source and target while writes go on, beginning where `so_far` ended (`None`: at the
    /// beginning), and returns all that has been found, `so_far` included. A call does no more than fits well into
    /// [`Backend::call_timeout`]; the driver goes on while the returned `next` is there and no difference was found.
    ///
    /// Calls compare at different positions of the change log, so `up_to` is one that every range was compared at or after:
    /// a later change of a range that had been compared is for [`Backend::prove`] to find.
    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError>;

    /// Tries the way back: a probe written on the target is seen on the source and removed again (M8).
    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError>;

    /// Refuses writes on the source until `deadline`, which the engine itself checks (M7); returns where writes stopped.
    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError>;

    /// Lifts a fence that has not been sealed; nothing happens if there is none.
    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError>;

    /// Brings the target up to `fence_at` and compares what changed since `verified`, all of it in this call: the proof's
    /// verification has no `next`.
    ///
    /// # Errors
    /// [`BackendError::Fenced`] if writes have gone on after `fence_at`, because the fence expired or was lifted: a difference
    /// that they make must not be taken for a fault of the copy.
    async fn prove(&self, spec: &MoveSpec, fence_at: Position, verified: &Verification) -> Result<Proof, BackendError>;

    /// The point of no return: in one step, if the source is fenced in `spec.epoch` at `proof.fence_at` and its deadline has
    /// not passed, closes it for good. Sealing what this migration has already sealed succeeds. The position matters: a
    /// controller that slept through its own fence must not seal a later one with its old proof.
    ///
    /// # Errors
    /// [`BackendError::Fenced`] if the source is open, its deadline has passed, or its epoch or fence position differs.
    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError>;

    /// What the source says of itself; [`SourceState::Sealed`] only if this migration sealed it in `spec.epoch`, and a seal by
    /// another is an error. [`Backend::seal`] being conditional, such a source stands at the fence position of a proof that
    /// this migration had.
    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError>;

    /// Opens the target in the new epoch and, on [`Way::There`], starts recording its changes for the way back.
    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError>;

    /// Sends clients to the owner and releases their queued writes.
    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError>;

    /// After clients have been sent to the target: ends what the way there has left running and lets changes of the target be
    /// carried back to the old source from now on, without anybody's help. Gets the spec of [`Way::There`]. Nothing to do for
    /// an engine that records changes from [`Backend::open_target`] on and carries them when asked.
    async fn open_way_back(&self, _spec: &MoveSpec) -> Result<(), BackendError> {
        Ok(())
    }

    /// Carries changes of the target back to the old source, so that it can take over again; returns how far it is behind.
    /// Gets the spec of [`Way::There`].
    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError>;

    /// Before the seal: removes everything that this move made; the source serves as before. Like [`Backend::finish`] it
    /// removes only so much as fits well into [`Backend::call_timeout`], and at least something while something is left.
    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError>;

    /// After retention: removes the source's copy and the reverse log (M5). After a rollback ([`Way::Back`], so that the
    /// source is the planned target): removes that copy and both logs.
    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError>;

    /// Removes what this move made on the node that owns the shard, and asks nothing of the other, which is gone for good.
    /// Gets the spec of [`Way::There`] and the owner, one of its two nodes. Works in pieces as [`Backend::finish`].
    async fn clear_owner(&self, _spec: &MoveSpec, _owner: &NodeId) -> Result<Left, BackendError> {
        let why = "this engine cannot end a move without one of its nodes".to_owned();
        Err(BackendError::Permanent { doing: "ending without the lost node".to_owned(), why })
    }

    /// Whether what this move keeps back on its nodes (logs, the horizon of old rows) is within their limits. The driver asks it
    /// of moves that stand still; a call that works on one looks by itself. Gets the spec of [`Way::There`].
    async fn room(&self, _spec: &MoveSpec) -> Result<Room, BackendError> {
        Ok(Room::Enough)
    }

    /// Gives the way back up, so that it keeps back nothing more on the owner; from then on a rollback is refused. Gets the spec
    /// of [`Way::There`].
    async fn close_way_back(&self, _spec: &MoveSpec) -> Result<(), BackendError> {
        Ok(())
    }

    /// Looks on all nodes that can be reached for what a migration leaves behind if its row is lost (M6), by the names of such
    /// things, and removes what belongs to none of `known`. Nothing that holds rows is ever removed: that is told.
    async fn sweep(&self, _known: &[MigrationId]) -> Result<Swept, BackendError> {
        Ok(Swept::default())
    }

    /// Forgets what is kept in memory of a migration that has ended or was only rehearsed.
    fn let_go(&self, _spec: &MoveSpec) {}

    /// Rows of load per shard and of each node's residual since the last call.
    async fn observe(&self) -> Result<Vec<Observation>, BackendError>;

    /// How long a call may take before the driver counts it as failed for now.
    fn call_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }
}
