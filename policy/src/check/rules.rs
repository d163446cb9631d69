//! Constraints and limits, move by move.

use foreshard_domain::{MoveFeatures, Node, NodeId, NodeState, ShardId, Spread, Timestamp};

use super::Found;
use crate::{Move, Plan, PlanningInput, RuleName};

/// Codes after which loads cannot be replayed.
pub(super) const STRUCTURAL: [&str; 6] =
    ["unknown_shard", "unknown_node", "wrong_source", "same_node", "shard_twice", "prediction"];

/// When a move's copy is over, at the 90 % level.
pub(super) fn copy_end(m: &Move) -> Timestamp {
    m.start.plus_ms(m.predicted.duration_p90_ms)
}

/// When a running move is over: one that is overdue takes at least another step.
pub(super) fn running_end(input: &PlanningInput, expected: Timestamp) -> Timestamp {
    let least = input.now.plus_ms(input.scenarios.step().as_ms());
    if expected > least { expected } else { least }
}

pub(super) fn check(input: &PlanningInput, plan: &Plan, found: &mut Found) {
    for (k, m) in plan.moves.iter().enumerate() {
        let before = &plan.moves[..k];
        if before.iter().any(|other| other.shard == m.shard) {
            found.of(&m.shard, "shard_twice", "the shard moves more than once".to_owned());
        }
        structure(input, m, found);
        shard_rules(input, m, found);
        target_rules(input, m, found);
        groups(input, before, m, found);
        times(input, plan, m, found);
        claims(input, before, m, found);
    }
}

fn structure(input: &PlanningInput, m: &Move, found: &mut Found) {
    match input.placement.node_of(&m.shard) {
        None => found.of(&m.shard, "unknown_shard", "the shard is not placed".to_owned()),
        Some(node) if *node != m.source => {
            found.of(&m.shard, "wrong_source", format!("it is on {node}, not on {}", m.source));
        }
        Some(_) => {}
    }
    for node in [&m.source, &m.target] {
        if input.topology.node(node).is_none() {
            found.of(&m.shard, "unknown_node", format!("there is no node {node}"));
        }
    }
    if m.source == m.target {
        found.of(&m.shard, "same_node", format!("source and target are both {}", m.source));
    }
    if m.start < input.now {
        found.of(&m.shard, "start_in_past", format!("it starts at {}, now is {}", m.start, input.now));
    }
    if input.in_flight.iter().any(|f| f.shard == m.shard) {
        found.of(&m.shard, "in_flight", "a move of the shard is running".to_owned());
    }
}

fn shard_rules(input: &PlanningInput, m: &Move, found: &mut Found) {
    for rule in input.topology.pins.iter().filter(|r| r.shard == m.shard && r.node != m.target) {
        found.of(&m.shard, "pinned", format!("the shard is pinned to {}", rule.node));
    }
    if input.topology.exclusions.iter().any(|r| r.shard == m.shard && r.node == m.target) {
        found.of(&m.shard, "excluded", format!("the shard must not be on {}", m.target));
    }
    let Some(facts) = input.shards.get(&m.shard) else {
        return found.of(&m.shard, "unknown_size", "nothing is known of the shard".to_owned());
    };
    if let Some(until) = facts.held_until.filter(|until| m.start < *until) {
        found.of(&m.shard, "held_by_retention", format!("its last move can be taken back until {until}"));
    }
    let cool_down = input.settings.cool_down_shard_ms;
    if let Some(moved) = facts.last_moved.filter(|moved| m.start.since_ms(*moved) < cool_down) {
        found.of(&m.shard, "cool_down", format!("it moved at {moved} and stays for {} min", cool_down / 60_000));
    }
    if m.data_bytes != facts.data_bytes || m.write_bytes_per_s != facts.write_bytes_per_s {
        found.of(&m.shard, "data_bytes", "its bytes are not those of the input".to_owned());
    }
    prediction(input, m, found);
}

/// The prediction must be what the cost model says of the figures in the move.
fn prediction(input: &PlanningInput, m: &Move, found: &mut Found) {
    let (source_cpu, target_cpu) = m.cpu_share;
    let features =
        MoveFeatures { data_bytes: m.data_bytes, write_bytes_per_s: m.write_bytes_per_s, source_cpu, target_cpu };
    let mut expected = input.cost_model.predict(&features);
    if let Some(rate) = input.topology.bandwidth_bytes_per_s(&m.source, &m.target) {
        let least = (m.data_bytes * 1000.0 / rate).min(3.15e10);
        let stretch = |ms: i64| if (ms as f64) < least { least as i64 } else { ms };
        expected.duration_ms = stretch(expected.duration_ms);
        expected.duration_p90_ms = stretch(expected.duration_p90_ms);
    }
    let close = |a: i64, b: i64| a.abs_diff(b) <= 1 + b.unsigned_abs() / 1000;
    let p = &m.predicted;
    let fence = (p.fence_ms - expected.fence_ms).abs() <= 1e-6 * (1.0 + expected.fence_ms);
    let durations = close(p.duration_ms, expected.duration_ms) && close(p.duration_p90_ms, expected.duration_p90_ms);
    if !(fence && durations && p.extra_share == expected.extra_share) {
        found.of(&m.shard, "prediction", format!("it claims {p:?}, the cost model says {expected:?}"));
    }
}

fn target_rules(input: &PlanningInput, m: &Move, found: &mut Found) {
    if let Some(node) = input.topology.node(&m.target).filter(|n| n.state != NodeState::Active) {
        found.of(&m.shard, "node_not_active", format!("{} is {:?} and takes no shards", node.id, node.state));
    }
    let cool_down = input.settings.cool_down_node_ms;
    for shard in input.placement.shards_on(&m.target) {
        let arrived = input.shards.get(shard).and_then(|f| f.last_moved);
        if let Some(at) = arrived.filter(|at| m.start.since_ms(*at) < cool_down) {
            found.of(&m.shard, "node_cool_down", format!("{shard} came to {} at {at}", m.target));
        }
    }
}

/// Where a shard may be found at or after `from`, the moves of the prefix being carried out.
fn places<'a>(input: &'a PlanningInput, before: &'a [Move], shard: &ShardId, from: Timestamp) -> Vec<&'a NodeId> {
    let mut places = Vec::new();
    match before.iter().find(|m| m.shard == *shard) {
        Some(m) => {
            places.push(&m.target);
            if copy_end(m) > from {
                places.push(&m.source);
            }
        }
        None => places.extend(input.placement.node_of(shard)),
    }
    for running in input.in_flight.iter().filter(|f| f.shard == *shard) {
        places.extend([&running.source, &running.target]);
    }
    places
}

fn groups(input: &PlanningInput, before: &[Move], m: &Move, found: &mut Found) {
    let zone = |id: &NodeId| input.topology.node(id).map(|n: &Node| &n.zone);
    for group in input.topology.groups.iter().filter(|g| g.shards.contains(&m.shard)) {
        for other in group.shards.iter().filter(|s| **s != m.shard) {
            let together = places(input, before, other, m.start).into_iter().any(|place| match group.spread {
                Spread::Node => *place == m.target,
                Spread::Zone => zone(place) == zone(&m.target),
            });
            if together {
                let text = format!("it would meet {other} of group {} on {} or in its zone", group.id, m.target);
                found.of(&m.shard, "group_spread", text);
            }
        }
    }
}

fn times(input: &PlanningInput, plan: &Plan, m: &Move, found: &mut Found) {
    let end = copy_end(m);
    for window in &input.topology.windows {
        let here = window.node.as_ref().is_none_or(|n| *n == m.source || *n == m.target);
        if here && window.start < end && m.start < window.end {
            let text = format!("it runs to {end}, closed is {} to {}", window.start, window.end);
            found.of(&m.shard, "maintenance_window", text);
        }
    }
    let planned = plan.moves.iter().map(|o| (o.start, copy_end(o), &o.source, &o.target));
    let running = input.in_flight.iter().map(|f| (f.started, running_end(input, f.expected_end), &f.source, &f.target));
    let at_once: Vec<_> = planned.chain(running).filter(|(from, to, ..)| *from <= m.start && m.start < *to).collect();
    if at_once.len() > input.settings.moves_in_flight {
        let text = format!("{} copies at once, allowed are {}", at_once.len(), input.settings.moves_in_flight);
        found.of(&m.shard, "moves_in_flight", text);
    }
    for node in [&m.source, &m.target] {
        let here = at_once.iter().filter(|(_, _, source, target)| *source == node || *target == node).count();
        if here > input.settings.moves_per_node {
            let text = format!("{here} copies at once on {node}, allowed are {}", input.settings.moves_per_node);
            found.of(&m.shard, "moves_per_node", text);
        }
    }
}

/// The rule must be switched on, and a constraint must be one.
fn claims(input: &PlanningInput, before: &[Move], m: &Move, found: &mut Found) {
    let on = match m.reason.rule {
        RuleName::Threshold => input.settings.rules.threshold,
        RuleName::CostBenefit => input.settings.rules.cost_benefit,
        RuleName::ProactiveBalancing => input.settings.rules.proactive_balancing,
        RuleName::Reactive => input.settings.rules.reactive,
        RuleName::RingReturn => input.settings.home_weight > 0.0 && input.homes.get(&m.shard) == Some(&m.target),
        RuleName::Constraint => must_leave(input, before, m),
    };
    if !on {
        let rule = m.reason.rule.name();
        found.of(&m.shard, "rule", format!("rule {rule} is switched off or does not ask for this"));
    }
}

fn must_leave(input: &PlanningInput, before: &[Move], m: &Move) -> bool {
    let topology = &input.topology;
    let pinned_away = topology.pins.iter().any(|r| r.shard == m.shard && r.node != m.source);
    let excluded = topology.exclusions.iter().any(|r| r.shard == m.shard && r.node == m.source);
    let draining = topology.node(&m.source).is_some_and(|n| n.state == NodeState::Draining);
    let zone = |id: &NodeId| topology.node(id).map(|n| &n.zone);
    let crowded = topology.groups.iter().filter(|g| g.shards.contains(&m.shard)).any(|g| {
        let others = g.shards.iter().filter(|s| **s != m.shard);
        others.flat_map(|s| places(input, before, s, input.now)).any(|place| match g.spread {
            Spread::Node => *place == m.source,
            Spread::Zone => zone(place) == zone(&m.source),
        })
    });
    pinned_away || excluded || draining || crowded
}
