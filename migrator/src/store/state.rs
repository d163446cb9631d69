//! Everything that must survive a crash of the controller, and the one place where it changes.

use foreshard_domain::{
    Epoch, LeaderTerm, MigrationId, NodeId, Owner, Placement, PlanId, Revision, ShardId, Timestamp,
};
use foreshard_policy::Plan;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ExternalObject, JournalRow, MigrationRecord};

/// A part of the state that its copies share until one of them changes it.
pub type Shared<K, V> = Arc<BTreeMap<K, V>>;

/// What the state store holds. A copy is cheap: it shares everything, and a commit copies no more than the pointers of the
/// parts that it changes, never the records and journals that it leaves alone.
///
/// Durable because losing it could lose data: owners and epochs (who may write), migrations (what is half done), objects
/// (what must be removed), plans (what was agreed). The journal is durable so that a person can see afterwards what happened.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// Grows with every commit.
    pub revision: Revision,
    /// Who may commit.
    pub term: LeaderTerm,
    /// Name of the controller of that term.
    pub leader: Option<String>,
    /// The shard map.
    pub owners: Shared<ShardId, Owner>,
    /// Shards that are where they are on purpose, not by the ring; each equals its row of the shard map.
    pub overrides: Shared<ShardId, Owner>,
    /// All migrations that are not forgotten.
    pub migrations: Shared<MigrationId, Arc<MigrationRecord>>,
    /// What happened to them, oldest first.
    pub journal: Shared<MigrationId, Arc<Vec<JournalRow>>>,
    /// External objects that may exist (M6), by name.
    pub objects: Shared<String, ExternalObject>,
    /// Known plans.
    pub plans: Shared<PlanId, Arc<Plan>>,
    /// The plan in force; the next one must have it as parent.
    pub plan_in_force: Option<PlanId>,
}

impl State {
    /// Where every shard is.
    pub fn placement(&self) -> Placement {
        self.owners.iter().map(|(shard, owner)| (shard.clone(), owner.node.clone())).collect()
    }

    /// The migration of a shard that has not ended, if there is one.
    pub fn active_migration(&self, shard: &ShardId) -> Option<&MigrationRecord> {
        self.migrations.values().map(Arc::as_ref).find(|m| m.shard() == shard && !m.state.is_terminal())
    }

    /// Shards that cannot be moved although none of their moves is under way, because the way back of the last one is kept
    /// (M5); with the end of that, or the end of all time where it is not known yet.
    pub fn held_by_retention(&self) -> BTreeMap<ShardId, Timestamp> {
        let held = self.migrations.values().filter(|m| !m.state.is_terminal() && m.owner().node != *m.source());
        held.map(|m| (m.shard().clone(), m.state.kept_until().unwrap_or(Timestamp::from_ms(i64::MAX)))).collect()
    }

    /// The plans from the one in force back to the first that is still known.
    pub fn plan_chain(&self) -> impl Iterator<Item = &Plan> {
        let plan = |id: Option<&PlanId>| id.and_then(|id| self.plans.get(id)).map(Arc::as_ref);
        std::iter::successors(plan(self.plan_in_force.as_ref()), move |p| plan(p.parent.as_ref()))
            .take(self.plans.len())
    }
}

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    /// Records a migration, or what has become of it.
    PutMigration {
        /// The record.
        record: Box<MigrationRecord>,
    },
    /// Adds a line to a migration's journal.
    Journal {
        /// The line.
        row: JournalRow,
    },
    /// Sets the owner of a shard if it is still the expected one.
    SetOwner {
        /// The shard.
        shard: ShardId,
        /// Who must own it before; `None` for a shard that is not in the shard map.
        expected: Option<Owner>,
        /// Who owns it from now on; its epoch must be higher (M3).
        owner: Owner,
    },
    /// Says that a shard is where it is on purpose; must equal its row of the shard map.
    PutOverride {
        /// The shard.
        shard: ShardId,
        /// Its owner.
        owner: Owner,
    },
    /// Lets a shard be placed by the ring again; nothing happens if it was.
    RemoveOverride {
        /// The shard.
        shard: ShardId,
    },
    /// Records an external object before it exists (M6).
    PutObject {
        /// The object.
        object: ExternalObject,
    },
    /// Forgets an external object that has been removed; nothing happens if it is not known.
    RemoveObject {
        /// Its name.
        name: String,
    },
    /// Keeps a plan; plans never change.
    PutPlan {
        /// The plan.
        plan: Arc<Plan>,
    },
    /// Puts a plan in force if its parent still is.
    AcceptPlan {
        /// The plan.
        id: PlanId,
        /// The plan that must be in force before.
        expected_parent: Option<PlanId>,
    },
    /// Forgets a migration that has ended, with its journal; nothing happens if it is not known.
    ForgetMigration {
        /// Its name.
        id: MigrationId,
    },
    /// Forgets a plan that is neither in force nor carried out by a known migration; nothing happens if it is not known.
    ForgetPlan {
        /// Its name.
        id: PlanId,
    },
}

/// Why a change cannot be made; nothing of the same commit has been.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidChange {
    /// The shard has another owner than the change was decided for.
    #[error("shard {shard} is owned by {}, not by {}", owner_text(found.as_ref()), owner_text(expected.as_ref()))]
    OwnerChanged {
        /// The shard.
        shard: ShardId,
        /// Who was expected.
        expected: Option<Owner>,
        /// Who owns it.
        found: Option<Owner>,
    },
    /// The epoch would not grow (M3).
    #[error("epoch of shard {shard} is {found} and can only grow, not become {given}")]
    EpochNotGrowing {
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        found: Epoch,
        /// The epoch of the change.
        given: Epoch,
    },
    /// The source has not been sealed by a migration to the new owner (M4).
    #[error("shard {shard} cannot pass to {node}: no migration to it has sealed the source")]
    NotSealed {
        /// The shard.
        shard: ShardId,
        /// The new owner.
        node: NodeId,
    },
    /// The shard map and a migration would tell different owners.
    #[error("migration {migration}, {state}, needs shard {shard} owned by {}, but it is owned by {}", owner_text(Some(expected)), owner_text(found.as_ref()))]
    OwnerMismatch {
        /// The migration.
        migration: MigrationId,
        /// Name of its state.
        state: &'static str,
        /// The shard.
        shard: ShardId,
        /// Who must own it in that state.
        expected: Owner,
        /// Who does.
        found: Option<Owner>,
    },
    /// An override names another owner than the shard map.
    #[error("override of shard {shard} names {}, but it is owned by {}", owner_text(Some(named)), owner_text(found.as_ref()))]
    OverrideMismatch {
        /// The shard.
        shard: ShardId,
        /// Whom the override names.
        named: Owner,
        /// Who owns it.
        found: Option<Owner>,
    },
    /// The shard already moves.
    #[error("shard {shard} is already being moved by migration {other}, so migration {migration} cannot be recorded")]
    AlreadyMoving {
        /// The shard.
        shard: ShardId,
        /// The migration to be recorded.
        migration: MigrationId,
        /// The migration under way.
        other: MigrationId,
    },
    /// A record would change what must not change.
    #[error("migration {migration} cannot be rewritten: {what}")]
    Rewritten {
        /// The migration.
        migration: MigrationId,
        /// What would change.
        what: &'static str,
    },
    /// An external object may exist without a row (M6).
    #[error("migration {migration} cannot be {state}: external object {object} has no row")]
    ObjectWithoutRow {
        /// The migration.
        migration: MigrationId,
        /// Name of its state.
        state: &'static str,
        /// The object.
        object: String,
    },
    /// A row of an external object would stay behind (M6).
    #[error("migration {migration} cannot be {state}: external object {object} still has a row")]
    ObjectLeft {
        /// The migration.
        migration: MigrationId,
        /// Name of its state.
        state: &'static str,
        /// The object.
        object: String,
    },
    /// Two migrations would share an external object.
    #[error("external object {object} belongs to migration {owner}, not to {migration}")]
    ObjectTaken {
        /// The object.
        object: String,
        /// Whose it is.
        owner: MigrationId,
        /// Who wants it.
        migration: MigrationId,
    },
    /// Something refers to what is not there.
    #[error("{what} {name} is not known")]
    Unknown {
        /// `migration` or `plan`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A plan of this name with other content is known.
    #[error("plan {plan} is known with other content, and plans never change")]
    PlanChanged {
        /// The plan.
        plan: PlanId,
    },
    /// Another plan has come into force since this one was made.
    #[error("plan {plan} was made on {}, but {} is in force: plan again", plan_text(expected.as_ref()), plan_text(in_force.as_ref()))]
    ParentNotInForce {
        /// The plan.
        plan: PlanId,
        /// What must be in force.
        expected: Option<PlanId>,
        /// What is.
        in_force: Option<PlanId>,
    },
    /// Something is still needed.
    #[error("{what} {name} cannot be forgotten: {why}")]
    InUse {
        /// `migration` or `plan`.
        what: &'static str,
        /// Its name.
        name: String,
        /// By what.
        why: &'static str,
    },
    /// A number that JSON cannot hold.
    #[error("{what} {name} holds a number that is not finite")]
    NotFinite {
        /// `migration` or `plan`.
        what: &'static str,
        /// Its name.
        name: String,
    },
}

fn owner_text(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "nobody".to_owned(), |o| format!("{} in epoch {}", o.node, o.epoch))
}

fn plan_text(plan: Option<&PlanId>) -> String {
    plan.map_or_else(|| "no plan".to_owned(), |p| format!("plan {p}"))
}
