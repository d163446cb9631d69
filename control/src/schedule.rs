//! Which moves of the accepted plan start now; pure.

use foreshard_domain::{NodeId, NodeState, Placement, ShardId, Timestamp, Topology};
use foreshard_policy::{InFlight, Move, Plan};
use std::collections::{BTreeMap, BTreeSet};

/// How many migrations may run at once, and how late a move may still start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartLimits {
    /// At once in the cluster.
    pub in_flight: usize,
    /// At once on a node, as source or target.
    pub per_node: usize,
    /// A move that could not start within this time of its start, in model milliseconds, is left to the next plan: the
    /// forecast that it rests on has passed by.
    pub lateness_ms: i64,
}

/// Why a move does not start now.
#[derive(Debug, Clone, PartialEq)]
pub enum Held {
    /// Its start lies ahead.
    NotYet {
        /// When it is due.
        start: Timestamp,
    },
    /// As many migrations run as may.
    Limit {
        /// `moves_in_flight`, `moves_per_node`, `retention`.
        code: &'static str,
    },
    /// A migration of this plan or another moves the shard at this moment.
    Running,
    /// It was begun under this plan.
    Begun,
    /// It can no longer be done; the next plan decides anew.
    Void {
        /// Stable code: `owner_changed`, `node_gone`, `node_not_active`, `too_late`.
        code: &'static str,
    },
}

/// One move of the plan and what becomes of it now.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict<'a> {
    /// The move.
    pub planned: &'a Move,
    /// `Ok`: start it now.
    pub outcome: Result<(), Held>,
}

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Model time.
    pub now: Timestamp,
    /// Nodes and their states.
    pub topology: &'a Topology,
    /// Who owns what at this moment.
    pub placement: &'a Placement,
    /// Migrations under way.
    pub in_flight: &'a [InFlight],
    /// Shards whose move was begun under this plan, whatever became of it.
    pub begun: &'a BTreeSet<ShardId>,
    /// Shards whose former copy is still kept (M5), so that the next move of them has to wait.
    pub retained: &'a BTreeMap<ShardId, Timestamp>,
    /// Limits.
    pub limits: StartLimits,
}

/// Decides for every move of `plan`, in its order, whether it starts now. Moves that start count against the limits of
/// those behind them.
pub fn due<'a>(plan: &'a Plan, situation: &Situation<'_>) -> Vec<Verdict<'a>> {
    let mut busy = Busy::of(situation);
    let mut verdicts = Vec::with_capacity(plan.moves.len());
    for planned in &plan.moves {
        let outcome = held(planned, situation, &busy).map_or(Ok(()), Err);
        if outcome.is_ok() {
            busy.add(&planned.shard, &planned.source, &planned.target);
        }
        verdicts.push(Verdict { planned, outcome });
    }
    verdicts
}

fn held(planned: &Move, situation: &Situation<'_>, busy: &Busy) -> Option<Held> {
    let Situation { now, begun, limits, .. } = *situation;
    if begun.contains(&planned.shard) {
        return Some(Held::Begun);
    }
    if busy.shards.contains(&planned.shard) {
        return Some(Held::Running);
    }
    if let Some(code) = void(planned, situation) {
        return Some(Held::Void { code });
    }
    if now < planned.start {
        return Some(Held::NotYet { start: planned.start });
    }
    if now.since_ms(planned.start) > limits.lateness_ms {
        return Some(Held::Void { code: "too_late" });
    }
    if situation.retained.contains_key(&planned.shard) {
        return Some(Held::Limit { code: "retention" });
    }
    if busy.shards.len() >= limits.in_flight {
        return Some(Held::Limit { code: "moves_in_flight" });
    }
    let full = |node: &NodeId| busy.on(node) >= limits.per_node;
    (full(&planned.source) || full(&planned.target)).then_some(Held::Limit { code: "moves_per_node" })
}

/// Whether the world has moved on since the plan was made.
fn void(planned: &Move, situation: &Situation<'_>) -> Option<&'static str> {
    if situation.placement.node_of(&planned.shard) != Some(&planned.source) {
        return Some("owner_changed");
    }
    match situation.topology.node(&planned.target).map(|node| node.state) {
        None => Some("node_gone"),
        Some(NodeState::Draining | NodeState::Closed) => Some("node_not_active"),
        Some(NodeState::Active) => None,
    }
}

/// Shards and nodes that are taken.
struct Busy {
    shards: BTreeSet<ShardId>,
    ends: Vec<NodeId>,
}

impl Busy {
    fn of(situation: &Situation<'_>) -> Self {
        let mut busy = Self { shards: BTreeSet::new(), ends: Vec::new() };
        for running in situation.in_flight {
            busy.add(&running.shard, &running.source, &running.target);
        }
        busy
    }

    fn add(&mut self, shard: &ShardId, source: &NodeId, target: &NodeId) {
        self.shards.insert(shard.clone());
        self.ends.extend([source.clone(), target.clone()]);
    }

    fn on(&self, node: &NodeId) -> usize {
        self.ends.iter().filter(|end| *end == node).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{MovePrediction, Node, PerResource, PlanId, ZoneId};
    use foreshard_policy::{FORMAT, Reason, RuleName};

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_ms(minute * 60_000)
    }

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn planned(name: &str, source: &str, target: &str, minute: i64) -> Move {
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
        let predicted = MovePrediction { duration_ms: 1, duration_p90_ms: 2, fence_ms: 1.0, extra_share };
        Move {
            shard: shard(name),
            source: node(source),
            target: node(target),
            start: at(minute),
            reason,
            expected_gain: 1.0,
            expected_cost: 0.1,
            predicted,
            data_bytes: 1.0,
            write_bytes_per_s: 0.0,
            cpu_share: (0.9, 0.1),
            with: None,
        }
    }

    fn plan(moves: Vec<Move>) -> Plan {
        Plan {
            format: FORMAT,
            id: PlanId::new("p").unwrap(),
            parent: None,
            input_fingerprint: String::new(),
            created_at: at(0),
            moves,
            considered: Vec::new(),
            refused: BTreeMap::new(),
            nodes: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn topology(closed: &str) -> Topology {
        let made = |name: &str| Node {
            id: node(name),
            zone: ZoneId::new("z").unwrap(),
            speed: 1.0,
            capacity: PerResource::default(),
            state: if name == closed { NodeState::Closed } else { NodeState::Active },
        };
        Topology { nodes: ["n1", "n2", "n3"].map(made).to_vec(), ..Topology::default() }
    }

    fn verdicts(plan: &Plan, now: i64, running: &[InFlight], begun: &[&str], closed: &str) -> Vec<Result<(), Held>> {
        let placement: Placement = [("a", "n1"), ("b", "n1"), ("c", "n3"), ("d", "n3")]
            .map(|(s, n)| (shard(s), node(n)))
            .into_iter()
            .collect();
        let situation = Situation {
            now: at(now),
            topology: &topology(closed),
            placement: &placement,
            in_flight: running,
            begun: &begun.iter().map(|s| shard(s)).collect(),
            retained: &BTreeMap::from([(shard("d"), at(60))]),
            limits: StartLimits { in_flight: 2, per_node: 1, lateness_ms: 600_000 },
        };
        due(plan, &situation).into_iter().map(|v| v.outcome).collect()
    }

    #[test]
    fn starts_at_the_start_time_and_within_limits() {
        let plan = plan(vec![planned("a", "n1", "n2", 10), planned("b", "n1", "n3", 10), planned("c", "n3", "n2", 12)]);
        let not_yet = |m| Err(Held::NotYet { start: at(m) });
        assert_eq!(verdicts(&plan, 9, &[], &[], ""), [not_yet(10), not_yet(10), not_yet(12)]);
        let per_node = || Err(Held::Limit { code: "moves_per_node" });
        assert_eq!(verdicts(&plan, 12, &[], &[], ""), [Ok(()), per_node(), per_node()]);
        assert_eq!(verdicts(&plan, 12, &[], &["a"], "")[0], Err(Held::Begun));
        assert_eq!(verdicts(&plan, 21, &[], &["a"], "")[1], Err(Held::Void { code: "too_late" }));
    }

    #[test]
    fn what_runs_counts() {
        let plan = plan(vec![planned("a", "n1", "n2", 0)]);
        let running = |name: &str, source: &str, target: &str| InFlight {
            shard: shard(name),
            source: node(source),
            target: node(target),
            started: at(0),
            expected_end: at(9),
        };
        assert_eq!(verdicts(&plan, 1, &[running("a", "n1", "n3")], &[], ""), [Err(Held::Running)]);
        let two = [running("x", "n3", "n3"), running("y", "n3", "n3")];
        assert_eq!(verdicts(&plan, 1, &two, &[], ""), [Err(Held::Limit { code: "moves_in_flight" })]);
        assert_eq!(
            verdicts(&plan, 1, &[running("x", "n3", "n2")], &[], ""),
            [Err(Held::Limit { code: "moves_per_node" })]
        );
        assert_eq!(verdicts(&plan, 1, &[running("x", "n3", "n3")], &[], ""), [Ok(())]);
    }

    #[test]
    fn m5_a_kept_copy_holds_the_next_move_of_its_shard() {
        let plan = plan(vec![planned("d", "n3", "n2", 0)]);
        assert_eq!(verdicts(&plan, 1, &[], &[], ""), [Err(Held::Limit { code: "retention" })]);
    }

    #[test]
    fn a_changed_world_voids_a_move() {
        let void = |code| [Err(Held::Void { code })];
        assert_eq!(verdicts(&plan(vec![planned("c", "n1", "n2", 0)]), 1, &[], &[], ""), void("owner_changed"));
        assert_eq!(verdicts(&plan(vec![planned("a", "n1", "n9", 0)]), 1, &[], &[], ""), void("node_gone"));
        assert_eq!(verdicts(&plan(vec![planned("a", "n1", "n2", 0)]), 1, &[], &[], "n2"), void("node_not_active"));
    }
}
