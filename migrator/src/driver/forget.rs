//! Forgetting what has long been over: the state store is for what is under way and what a person may still ask about.

use foreshard_domain::{PlanId, Timestamp};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Driver, DriverConfig, DriverError};
use crate::store::{Change, MigrationRecord, State};

/// Changes of one commit, so that it holds up no migration for long.
const AT_ONCE: usize = 500;

impl Driver {
    /// Forgets migrations that ended longer ago than [`DriverConfig::keep_ms`], but for the [`DriverConfig::keep_newest`] last
    /// ones, with their journals, and plans of that age that nothing refers to. Does a bounded piece of it; returns how many
    /// were forgotten.
    ///
    /// # Errors
    /// [`DriverError::Deposed`] or [`DriverError::Store`].
    pub async fn forget_old(&self) -> Result<usize, DriverError> {
        let now = self.clock.model();
        let mut failures = 0;
        loop {
            let state = self.read().await?;
            let changes = forgettable(&state, now, &self.config);
            let count = changes.len();
            if count == 0 || self.committed(&state, changes, &mut failures).await? {
                return Ok(count);
            }
        }
    }
}

/// The oldest that may be forgotten. Migrations of the plan in force stay: without them their moves would look as if they were
/// still to be made.
fn forgettable(state: &State, now: Timestamp, config: &DriverConfig) -> Vec<Change> {
    let old = |since: Timestamp| now.since_ms(since) >= config.keep_ms;
    let ended_at = |m: &MigrationRecord| m.ended_at.unwrap_or(m.created_at);
    let in_force = state.plan_in_force.as_ref();
    let mut ended: Vec<&MigrationRecord> =
        state.migrations.values().map(Arc::as_ref).filter(|m| m.state.is_terminal()).collect();
    ended.sort_by_key(|m| Reverse((ended_at(m), &m.id)));
    let over = ended.into_iter().skip(config.keep_newest);
    let over = over.filter(|m| old(ended_at(m)) && in_force != Some(&m.plan));
    let migrations: Vec<&MigrationRecord> = over.collect::<Vec<_>>().into_iter().rev().take(AT_ONCE).collect();

    let gone: BTreeSet<_> = migrations.iter().map(|m| &m.id).collect();
    let kept = state.migrations.values().filter(|m| !gone.contains(&m.id));
    let needed: BTreeSet<&PlanId> = kept.map(|m| &m.plan).chain(in_force).collect();
    let plans = state.plans.values().filter(|plan| old(plan.created_at) && !needed.contains(&plan.id));

    let forgotten = migrations.into_iter().map(|m| Change::ForgetMigration { id: m.id.clone() });
    forgotten.chain(plans.map(|plan| Change::ForgetPlan { id: plan.id.clone() })).take(AT_ONCE).collect()
}
