//! Changes of the state: one pure function, used by every store, so that what must always hold is enforced in one place.

use foreshard_domain::{MigrationId, Owner, PlanId, ShardId};
use foreshard_policy::Plan;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Change, ExternalObject, InvalidChange, MigrationRecord, State};
use crate::transition::MigrationState;

/// The state after all of `changes`, one revision later.
///
/// Owners change by compare-and-set and only from a sealed migration, epochs only grow, a plan comes into force only while
/// its parent is, and rows of external objects exist as long as the objects may.
///
/// # Errors
/// [`InvalidChange`] of the first change that cannot be made; then none is.
pub fn apply(state: &State, changes: &[Change]) -> Result<State, InvalidChange> {
    let mut next = state.clone();
    let mut touched = Touched::default();
    for change in changes {
        touched.note(&next, change);
        apply_one(&mut next, change)?;
    }
    touched.check(&next)?;
    next.revision = next.revision.next();
    Ok(next)
}

fn apply_one(state: &mut State, change: &Change) -> Result<(), InvalidChange> {
    match change {
        Change::PutMigration { record } => put_migration(state, record),
        Change::Journal { row } => {
            known_migration(state, &row.migration)?;
            let lines = Arc::make_mut(&mut state.journal).entry(row.migration.clone()).or_default();
            Arc::make_mut(lines).push(row.clone());
            Ok(())
        }
        Change::SetOwner { shard, expected, owner } => set_owner(state, shard, expected.as_ref(), owner),
        Change::PutOverride { shard, owner } => {
            Arc::make_mut(&mut state.overrides).insert(shard.clone(), owner.clone());
            Ok(())
        }
        Change::RemoveOverride { shard } => {
            Arc::make_mut(&mut state.overrides).remove(shard);
            Ok(())
        }
        Change::PutObject { object } => put_object(state, object),
        Change::RemoveObject { name } => {
            Arc::make_mut(&mut state.objects).remove(name);
            Ok(())
        }
        Change::PutPlan { plan } => put_plan(state, plan),
        Change::AcceptPlan { id, expected_parent } => accept_plan(state, id, expected_parent.as_ref()),
        Change::ForgetMigration { id } => forget_migration(state, id),
        Change::ForgetPlan { id } => forget_plan(state, id),
    }
}

fn known_migration(state: &State, id: &MigrationId) -> Result<(), InvalidChange> {
    if state.migrations.contains_key(id) {
        return Ok(());
    }
    Err(InvalidChange::Unknown { what: "migration", name: id.to_string() })
}

fn put_migration(state: &mut State, record: &MigrationRecord) -> Result<(), InvalidChange> {
    match state.migrations.get(&record.id) {
        Some(known) => check_rewrite(known, record)?,
        None => {
            if !survives_json(record.planned.as_ref()) {
                return Err(InvalidChange::NotFinite { what: "migration", name: record.id.to_string() });
            }
            if let Some(other) = state.active_migration(record.shard()) {
                return Err(InvalidChange::AlreadyMoving {
                    shard: record.shard().clone(),
                    migration: record.id.clone(),
                    other: other.id.clone(),
                });
            }
        }
    }
    Arc::make_mut(&mut state.migrations).insert(record.id.clone(), Arc::new(record.clone()));
    Ok(())
}

fn check_rewrite(known: &MigrationRecord, record: &MigrationRecord) -> Result<(), InvalidChange> {
    let what = if known.state.is_terminal() && known != record {
        "it has ended"
    } else if known.planned != record.planned || known.plan != record.plan || known.planned_at != record.planned_at {
        "its move is another"
    } else if known.epoch != record.epoch {
        "its epoch is another"
    } else if known.objects != record.objects {
        "its external objects are others"
    } else if (known.backend, known.consistency) != (record.backend, record.consistency) {
        "its backend or guarantee is another"
    } else {
        return Ok(());
    };
    Err(InvalidChange::Rewritten { migration: record.id.clone(), what })
}

fn set_owner(state: &mut State, shard: &ShardId, expected: Option<&Owner>, owner: &Owner) -> Result<(), InvalidChange> {
    let found = state.owners.get(shard);
    if found != expected {
        return Err(InvalidChange::OwnerChanged {
            shard: shard.clone(),
            expected: expected.cloned(),
            found: found.cloned(),
        });
    }
    if let Some(found) = found {
        if owner.epoch <= found.epoch {
            return Err(InvalidChange::EpochNotGrowing {
                shard: shard.clone(),
                found: found.epoch,
                given: owner.epoch,
            });
        }
        let sealed = state.active_migration(shard).is_some_and(|m| match &m.state {
            MigrationState::Sealed { way } => m.next_owner(*way) == *owner,
            _ => false,
        });
        if !sealed {
            return Err(InvalidChange::NotSealed { shard: shard.clone(), node: owner.node.clone() });
        }
    }
    Arc::make_mut(&mut state.owners).insert(shard.clone(), owner.clone());
    Ok(())
}

fn put_object(state: &mut State, object: &ExternalObject) -> Result<(), InvalidChange> {
    known_migration(state, &object.migration)?;
    if let Some(known) = state.objects.get(&object.name)
        && known.migration != object.migration
    {
        return Err(InvalidChange::ObjectTaken {
            object: object.name.clone(),
            owner: known.migration.clone(),
            migration: object.migration.clone(),
        });
    }
    Arc::make_mut(&mut state.objects).insert(object.name.clone(), object.clone());
    Ok(())
}

fn put_plan(state: &mut State, plan: &Arc<Plan>) -> Result<(), InvalidChange> {
    if state.plans.get(&plan.id).is_some_and(|known| known != plan) {
        return Err(InvalidChange::PlanChanged { plan: plan.id.clone() });
    }
    if !survives_json(plan.as_ref()) {
        return Err(InvalidChange::NotFinite { what: "plan", name: plan.id.to_string() });
    }
    Arc::make_mut(&mut state.plans).insert(plan.id.clone(), Arc::clone(plan));
    Ok(())
}

fn accept_plan(state: &mut State, id: &PlanId, expected_parent: Option<&PlanId>) -> Result<(), InvalidChange> {
    let Some(plan) = state.plans.get(id) else {
        return Err(InvalidChange::Unknown { what: "plan", name: id.to_string() });
    };
    let in_force = state.plan_in_force.as_ref();
    if in_force != expected_parent || plan.parent.as_ref() != expected_parent {
        return Err(InvalidChange::ParentNotInForce {
            plan: id.clone(),
            expected: plan.parent.clone(),
            in_force: in_force.cloned(),
        });
    }
    state.plan_in_force = Some(id.clone());
    Ok(())
}

fn forget_migration(state: &mut State, id: &MigrationId) -> Result<(), InvalidChange> {
    if state.migrations.get(id).is_some_and(|m| !m.state.is_terminal()) {
        return Err(InvalidChange::InUse { what: "migration", name: id.to_string(), why: "it has not ended" });
    }
    Arc::make_mut(&mut state.migrations).remove(id);
    Arc::make_mut(&mut state.journal).remove(id);
    Ok(())
}

fn forget_plan(state: &mut State, id: &PlanId) -> Result<(), InvalidChange> {
    let why = if state.plan_in_force.as_ref() == Some(id) {
        "it is in force"
    } else if state.migrations.values().any(|m| m.plan == *id) {
        "a migration carries it out"
    } else {
        Arc::make_mut(&mut state.plans).remove(id);
        return Ok(());
    };
    Err(InvalidChange::InUse { what: "plan", name: id.to_string(), why })
}

/// Whether a value comes back from JSON as it went in; numbers that are not finite do not.
fn survives_json<T: Serialize + DeserializeOwned + PartialEq>(value: &T) -> bool {
    let text = serde_json::to_vec(value).ok();
    text.and_then(|t| serde_json::from_slice::<T>(&t).ok()).is_some_and(|back| back == *value)
}

/// What a commit touches and must leave consistent as a whole, whatever the order of its changes.
#[derive(Default)]
struct Touched {
    shards: BTreeSet<ShardId>,
    migrations: BTreeSet<MigrationId>,
}

impl Touched {
    fn note(&mut self, before: &State, change: &Change) {
        match change {
            Change::PutMigration { record } => {
                self.shards.insert(record.shard().clone());
                self.migrations.insert(record.id.clone());
            }
            Change::SetOwner { shard, .. } | Change::PutOverride { shard, .. } | Change::RemoveOverride { shard } => {
                self.shards.insert(shard.clone());
            }
            Change::PutObject { object } => {
                self.migrations.insert(object.migration.clone());
            }
            Change::RemoveObject { name } => {
                self.migrations.extend(before.objects.get(name).map(|o| o.migration.clone()));
            }
            Change::Journal { .. }
            | Change::PutPlan { .. }
            | Change::AcceptPlan { .. }
            | Change::ForgetMigration { .. }
            | Change::ForgetPlan { .. } => {}
        }
    }

    fn check(&self, state: &State) -> Result<(), InvalidChange> {
        self.shards.iter().try_for_each(|shard| check_shard(state, shard))?;
        let known = self.migrations.iter().filter_map(|id| state.migrations.get(id));
        known.into_iter().try_for_each(|record| check_objects(state, record))
    }
}

/// The shard map, the override and the migration of a shard tell the same owner (M2).
fn check_shard(state: &State, shard: &ShardId) -> Result<(), InvalidChange> {
    let found = state.owners.get(shard);
    if let Some(named) = state.overrides.get(shard)
        && found != Some(named)
    {
        let (shard, named, found) = (shard.clone(), named.clone(), found.cloned());
        return Err(InvalidChange::OverrideMismatch { shard, named, found });
    }
    if let Some(active) = state.active_migration(shard) {
        let expected = active.owner();
        if found != Some(&expected) {
            return Err(InvalidChange::OwnerMismatch {
                migration: active.id.clone(),
                state: active.state.name(),
                shard: shard.clone(),
                expected,
                found: found.cloned(),
            });
        }
    }
    Ok(())
}

/// External objects have rows exactly as long as they may exist (M6).
fn check_objects(state: &State, record: &MigrationRecord) -> Result<(), InvalidChange> {
    let (migration, name) = (&record.id, record.state.name());
    if record.state.may_have_objects() {
        let missing =
            record.objects.iter().find(|o| state.objects.get(*o).is_none_or(|row| row.migration != *migration));
        return match missing {
            None => Ok(()),
            Some(object) => Err(InvalidChange::ObjectWithoutRow {
                migration: migration.clone(),
                state: name,
                object: object.clone(),
            }),
        };
    }
    match state.objects.values().find(|o| o.migration == *migration) {
        None => Ok(()),
        Some(left) => {
            Err(InvalidChange::ObjectLeft { migration: migration.clone(), state: name, object: left.name.clone() })
        }
    }
}
