//! What the loop reads off the state store; pure.

use foreshard_domain::{MigrationId, Placement, PlanId, ShardId, Timestamp};
use foreshard_migrator::{Change, MigrationRecord, MigrationState, State};
use foreshard_policy::{InFlight, Plan};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A migration that outlasts its prediction is expected to end this much later than now, in model milliseconds: it holds its
/// nodes' copies for as long as it runs.
const OVERDUE_MS: i64 = 60_000;

/// Plans kept in the state store: at a plan every five minutes some 16 hours to look back on.
const KEEP_PLANS: usize = 200;

/// The state store as planning sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The plan in force.
    pub plan: Option<PlanId>,
    /// Who owns what.
    pub placement: Placement,
    /// Migrations whose source still owns the shard.
    pub in_flight: Vec<InFlight>,
    /// Shards that cannot be moved yet because an earlier migration of them has not ended: its way back is kept (M5), until
    /// then.
    pub retained: BTreeMap<ShardId, Timestamp>,
    /// When each shard last changed its owner.
    pub last_moved: BTreeMap<ShardId, Timestamp>,
    /// Migrations whose retention has passed by now.
    pub to_finish: Vec<MigrationId>,
}

impl View {
    /// Reads a state at model time `now`.
    pub fn of(state: &State, now: Timestamp) -> Self {
        let placement = state.placement();
        let mut view = Self {
            plan: state.plan_in_force.clone(),
            in_flight: Vec::new(),
            retained: state.held_by_retention(),
            last_moved: BTreeMap::new(),
            to_finish: Vec::new(),
            placement,
        };
        for record in state.migrations.values() {
            view.take(record, now);
        }
        view
    }

    fn take(&mut self, record: &MigrationRecord, now: Timestamp) {
        let shard = record.shard();
        if let Some(moved_at) = record.moved_at {
            let last = self.last_moved.entry(shard.clone()).or_insert(moved_at);
            *last = moved_at.max(*last);
        }
        if record.state.is_terminal() {
            return;
        }
        if !self.retained.contains_key(shard) {
            self.in_flight.push(in_flight(record, now));
        }
        if matches!(record.state, MigrationState::Reversible { until } if until <= now) {
            self.to_finish.push(record.id.clone());
        }
    }
}

fn in_flight(record: &MigrationRecord, now: Timestamp) -> InFlight {
    let started = record.started_at.unwrap_or(record.created_at).min(now);
    let predicted = started.plus_ms(record.planned.predicted.duration_ms);
    InFlight {
        shard: record.shard().clone(),
        source: record.source().clone(),
        target: record.target().clone(),
        started,
        expected_end: predicted.max(now.plus_ms(OVERDUE_MS)),
    }
}

/// The changes that put a plan into force, and forget the oldest plans that nobody needs any more.
pub fn acceptance(state: &State, plan: &Arc<Plan>) -> Vec<Change> {
    let mut changes = vec![
        Change::PutPlan { plan: Arc::clone(plan) },
        Change::AcceptPlan { id: plan.id.clone(), expected_parent: plan.parent.clone() },
    ];
    let needed: BTreeSet<&PlanId> = state.migrations.values().map(|record| &record.plan).chain([&plan.id]).collect();
    let mut known: Vec<&Arc<Plan>> = state.plans.values().collect();
    known.sort_by_key(|plan| (plan.created_at, plan.id.clone()));
    let over = known.len().saturating_sub(KEEP_PLANS);
    let old = known.into_iter().take(over).filter(|plan| !needed.contains(&plan.id));
    changes.extend(old.map(|plan| Change::ForgetPlan { id: plan.id.clone() }));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{BackendKind, Consistency, Epoch, MovePrediction, NodeId, Owner, PerResource};
    use foreshard_migrator::Progress;
    use foreshard_policy::{FORMAT, Move, Reason, RuleName};

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_ms(minute * 60_000)
    }

    fn plan(minute: i64) -> Arc<Plan> {
        Arc::new(Plan {
            format: FORMAT,
            id: PlanId::new(format!("p{minute}")).unwrap(),
            parent: None,
            input_fingerprint: String::new(),
            created_at: at(minute),
            moves: Vec::new(),
            considered: Vec::new(),
            refused: BTreeMap::new(),
            nodes: Vec::new(),
            notes: Vec::new(),
        })
    }

    fn record(shard: &str, state: MigrationState, moved_at: Option<Timestamp>) -> MigrationRecord {
        let reason = Reason {
            rule: RuleName::Threshold,
            resource: None,
            source_risk_before: 1.0,
            source_risk_after: 0.0,
            target_risk_before: 0.0,
            target_risk_after: 0.0,
            first_crossing: None,
            text: String::new(),
        };
        let extra_share = PerResource::default();
        let planned = Move {
            shard: ShardId::new(shard).unwrap(),
            source: NodeId::new("n1").unwrap(),
            target: NodeId::new("n2").unwrap(),
            start: at(0),
            reason,
            expected_gain: 1.0,
            expected_cost: 0.0,
            predicted: MovePrediction { duration_ms: 300_000, duration_p90_ms: 400_000, fence_ms: 1.0, extra_share },
            data_bytes: 1.0,
            write_bytes_per_s: 0.0,
            cpu_share: (0.9, 0.1),
            with: None,
        };
        MigrationRecord {
            id: MigrationId::new(format!("m-{shard}")).unwrap(),
            plan: plan(0).id.clone(),
            planned: Arc::new(planned),
            planned_at: at(0),
            backend: BackendKind::Embedded,
            consistency: Consistency::Strict,
            epoch: Epoch(1),
            objects: Vec::new(),
            state,
            progress: Progress::default(),
            created_at: at(1),
            started_at: Some(at(2)),
            moved_at,
            ended_at: None,
            fenced_since: None,
            fence_ms: 0,
            fence_back_ms: 0,
            proof: None,
            why: None,
            lost: None,
        }
    }

    fn state(records: Vec<(MigrationRecord, &str)>) -> State {
        let owner = |node: &str| Owner { node: NodeId::new(node).unwrap(), epoch: Epoch(1) };
        let owners = records.iter().map(|(r, node)| (r.shard().clone(), owner(node))).collect();
        let migrations = records.into_iter().map(|(r, _)| (r.id.clone(), Arc::new(r))).collect();
        State { owners: Arc::new(owners), migrations: Arc::new(migrations), ..State::default() }
    }

    #[test]
    fn a_migration_is_in_flight_until_the_owner_changes_and_holds_its_shard_until_it_ends() {
        let copying = record("a", MigrationState::Copying { fences_left: 1, cursor: None }, None);
        let kept = record("b", MigrationState::Reversible { until: at(30) }, Some(at(9)));
        let over = record("c", MigrationState::Done, Some(at(4)));
        let state = state(vec![(copying, "n1"), (kept, "n2"), (over, "n2")]);
        let view = View::of(&state, at(29));
        let shards: Vec<&str> = view.in_flight.iter().map(|f| f.shard.as_str()).collect();
        assert_eq!(shards, ["a"]);
        assert_eq!(view.in_flight[0].expected_end, at(30), "overdue, so a minute from now");
        assert_eq!(View::of(&state, at(3)).in_flight[0].expected_end, at(7), "start and prediction");
        assert_eq!(view.retained, BTreeMap::from([(ShardId::new("b").unwrap(), at(30))]));
        assert_eq!(view.last_moved.values().copied().collect::<Vec<_>>(), [at(9), at(4)]);
        assert!(view.to_finish.is_empty(), "M5: the retention has not passed");
        assert_eq!(View::of(&state, at(30)).to_finish.len(), 1);
    }

    #[test]
    fn old_plans_are_forgotten_but_not_those_in_use() {
        let mut state = state(vec![(record("a", MigrationState::Planned, None), "n1")]);
        for minute in 0..=KEEP_PLANS as i64 + 1 {
            Arc::make_mut(&mut state.plans).insert(plan(minute).id.clone(), plan(minute));
        }
        let changes = acceptance(&state, &plan(1000));
        let forgotten: Vec<&str> = changes
            .iter()
            .filter_map(|change| if let Change::ForgetPlan { id } = change { Some(id.as_str()) } else { None })
            .collect();
        // p0 is carried out by the migration.
        assert_eq!(forgotten, ["p1"]);
        assert!(matches!(changes[0], Change::PutPlan { .. }) && matches!(changes[1], Change::AcceptPlan { .. }));
    }
}
