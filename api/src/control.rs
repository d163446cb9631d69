//! What `ControlService` is asked and what it tells, in domain types.

use foreshard_domain::{
    BackendKind, Consistency, Epoch, LeaderTerm, MigrationId, NodeId, Owner, PlanId, ShardId, Timestamp,
};

/// Asks for a move by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartMigration {
    /// What moves.
    pub shard: ShardId,
    /// From where; `None` for its owner or, if it is not in the shard map, the only node that holds it.
    pub source: Option<NodeId>,
    /// To where.
    pub target: NodeId,
    /// With which guarantee.
    pub consistency: Consistency,
}

/// How far a migration has come.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MigrationProgress {
    /// Rows copied.
    pub rows: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Bytes that were expected to be copied; 0 if that was not known.
    pub expected_bytes: f64,
    /// Changes that the target was behind when last seen.
    pub behind: u64,
    /// Rows compared by the last verification.
    pub verified_rows: u64,
    /// Fences begun.
    pub fences: u32,
    /// How long writes were stopped on the way there, real milliseconds.
    pub fence_ms: u64,
    /// The same on the way back.
    pub fence_back_ms: u64,
}

/// Where one migration stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Migration {
    /// Its name.
    pub id: MigrationId,
    /// The plan that it carries out.
    pub plan: PlanId,
    /// What moves.
    pub shard: ShardId,
    /// From where.
    pub source: NodeId,
    /// To where.
    pub target: NodeId,
    /// On which engine.
    pub backend: BackendKind,
    /// With which guarantee.
    pub consistency: Consistency,
    /// Epoch of the source's ownership when it was recorded.
    pub epoch: Epoch,
    /// Name of its state.
    pub state: String,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Nothing is to be done: ended, paused, or waiting for the end of its retention.
    pub at_rest: bool,
    /// Nothing will ever happen to it again.
    pub ended: bool,
    /// A task of the holder works on it.
    pub carried: bool,
    /// How far it has come.
    pub progress: MigrationProgress,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it was admitted.
    pub started_at: Option<Timestamp>,
    /// When clients were sent to the target.
    pub moved_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When the copy will be complete at the pace so far; `None` where that cannot be told.
    pub copied_by: Option<Timestamp>,
    /// The last thing that went wrong, with its causes.
    pub last_error: Option<String>,
    /// What will be done next, for a person.
    pub next_step: String,
    /// How to take it back, for a person.
    pub undo: String,
}

/// One migration with all that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct MigrationDetails {
    /// Where it stands.
    pub migration: Migration,
    /// Names of external objects that may exist now, sorted.
    pub objects: Vec<String>,
    /// What happened to it, oldest first.
    pub journal: Vec<JournalLine>,
}

/// One line of a migration's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalLine {
    /// When.
    pub at: Timestamp,
    /// Who was in charge.
    pub term: LeaderTerm,
    /// Name of the event.
    pub event: String,
    /// Name of the state that followed.
    pub state: String,
    /// What a person would want to know besides.
    pub note: Option<String>,
}

/// What a dry run found.
#[derive(Debug, Clone, PartialEq)]
pub struct DryRunReport {
    /// The migration as it would end: `failed` if the checks refuse it.
    pub migration: Migration,
    /// What would be done, in order.
    pub steps: Vec<String>,
}

/// Who owns one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOwner {
    /// The shard.
    pub shard: ShardId,
    /// Its owner.
    pub owner: Owner,
    /// It is there on purpose, not by the ring.
    pub by_override: bool,
}
