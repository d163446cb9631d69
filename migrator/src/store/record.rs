//! What is kept of one migration.

use foreshard_domain::{
    BackendKind, Consistency, Epoch, LeaderTerm, MigrationId, NodeId, Owner, PlanId, RealTime, ShardId, Timestamp,
};
use foreshard_policy::Move;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::transition::{MigrationState, Tenure};
use crate::{MoveSpec, Proof, Way};

/// How far a migration has come, beside its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Rows copied; a copy that began again counts again.
    pub rows: u64,
    /// Bytes copied; a copy that began again counts again.
    pub bytes: u64,
    /// Calls that applied changes since the state was entered.
    pub rounds: u32,
    /// Changes that the target was behind when last seen.
    pub behind: u64,
    /// Rows compared by the last verification.
    pub verified_rows: u64,
    /// Fences begun.
    pub fences: u32,
}

/// One migration, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationRecord {
    /// Its name.
    pub id: MigrationId,
    /// The plan that it carries out.
    pub plan: PlanId,
    /// The move, as planned.
    pub planned: Arc<Move>,
    /// When it was planned, model time.
    pub planned_at: Timestamp,
    /// On which engine.
    pub backend: BackendKind,
    /// With which guarantee.
    pub consistency: Consistency,
    /// Epoch of the source's ownership when the migration was recorded.
    pub epoch: Epoch,
    /// Names of the external objects that it makes (M6).
    pub objects: Vec<String>,
    /// Where it stands.
    pub state: MigrationState,
    /// How far it has come.
    pub progress: Progress,
    /// When it was recorded, model time.
    pub created_at: Timestamp,
    /// When it was admitted, model time.
    pub started_at: Option<Timestamp>,
    /// When clients were sent to the target, model time.
    pub moved_at: Option<Timestamp>,
    /// When it ended, model time.
    pub ended_at: Option<Timestamp>,
    /// Since when writes are stopped, if they are, real time.
    pub fenced_since: Option<RealTime>,
    /// How long writes were stopped on the way there, all fences together, real milliseconds.
    pub fence_ms: u64,
    /// The same on the way back.
    pub fence_back_ms: u64,
    /// The last proof with which the source's seal was asked for, in the owner change under way.
    #[serde(default)]
    pub proof: Option<Proof>,
    /// The last thing that went wrong.
    pub why: Option<String>,
    /// The node without which it ends, since that is gone for good.
    #[serde(default)]
    pub lost: Option<NodeId>,
}

impl MigrationRecord {
    /// The shard that moves.
    pub fn shard(&self) -> &ShardId {
        &self.planned.shard
    }

    /// The planned source.
    pub fn source(&self) -> &NodeId {
        &self.planned.source
    }

    /// The planned target.
    pub fn target(&self) -> &NodeId {
        &self.planned.target
    }

    /// The node that does not own the shard, in states from which the migration can be ended without it.
    pub fn spare(&self) -> Option<&NodeId> {
        use MigrationState as S;
        match &self.state {
            S::OpeningWayBack { .. } | S::Reversible { .. } | S::Finishing { way: Way::There } => Some(self.source()),
            S::Finishing { way: Way::Back } | S::Undoing { .. } => Some(self.target()),
            _ => None,
        }
    }

    /// What a backend is told of it.
    pub fn spec(&self, way: Way) -> MoveSpec {
        let there = MoveSpec {
            migration: self.id.clone(),
            shard: self.shard().clone(),
            source: self.source().clone(),
            target: self.target().clone(),
            epoch: self.epoch,
            consistency: self.consistency,
            way: Way::There,
        };
        match way {
            Way::There => there,
            Way::Back => there.reversed(self.epoch.next()),
        }
    }

    /// Who owns the shard in the present state.
    pub fn owner(&self) -> Owner {
        match self.state.tenure() {
            Tenure::First => self.previous_owner(Way::There),
            Tenure::Second => self.next_owner(Way::There),
            Tenure::Third => self.next_owner(Way::Back),
        }
    }

    /// Who owns the shard before the owner change of this way.
    pub fn previous_owner(&self, way: Way) -> Owner {
        match way {
            Way::There => Owner { node: self.source().clone(), epoch: self.epoch },
            Way::Back => self.next_owner(Way::There),
        }
    }

    /// Who is to own the shard after the owner change of this way.
    pub fn next_owner(&self, way: Way) -> Owner {
        let (node, epoch) = match way {
            Way::There => (self.target(), self.epoch.next()),
            Way::Back => (self.source(), self.epoch.next().next()),
        };
        Owner { node: node.clone(), epoch }
    }
}

/// Something outside the state store that a migration makes and must remove (M6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalObject {
    /// Its name on the engine.
    pub name: String,
    /// Which migration makes it.
    pub migration: MigrationId,
    /// When its row was committed, model time.
    pub recorded_at: Timestamp,
}

/// One line of a migration's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRow {
    /// Which migration.
    pub migration: MigrationId,
    /// When, real time.
    pub at: RealTime,
    /// When, model time.
    pub model_at: Timestamp,
    /// Who was in charge.
    pub term: LeaderTerm,
    /// Name of the event.
    pub event: String,
    /// Name of the state that followed.
    pub state: String,
    /// What a person would want to know besides.
    pub note: Option<String>,
}
