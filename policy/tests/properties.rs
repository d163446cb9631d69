//! The invariants of planning over random inputs: P1 to P4.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use foreshard_domain::{LoadPaths, NodeId, NodeState, Resource, ShardId};
use foreshard_policy::{Move, Plan, PlanningInput, RuleName, Violation, check, decisions, explain, plan};
use inputs::{carried_out, node_id, random, shard};

const SEEDS: std::ops::Range<u64> = 0..400;

#[test]
fn p1_equal_inputs_give_equal_plans() {
    let mut moves = 0;
    for seed in SEEDS.take(100) {
        let input = random(seed);
        let first = plan(&input).unwrap();
        let copy: PlanningInput = serde_json::from_str(&serde_json::to_string(&input).unwrap()).unwrap();
        assert_eq!(plan(&copy).unwrap(), first, "seed {seed}");
        let text = serde_json::to_string(&first.plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), first.plan);
        let mut other = input.clone();
        other.seed += 1;
        assert_ne!(plan(&other).unwrap().plan.id, first.plan.id);
        moves += first.plan.moves.len();
    }
    assert!(moves > 50, "only {moves} moves: the inputs ask for too little");
}

#[test]
fn p2_planning_again_on_the_result_changes_nothing() {
    let (mut settled, mut chains) = (0, 0);
    for seed in SEEDS {
        let mut input = random(seed);
        let mut planned = plan(&input).unwrap();
        for round in 0.. {
            let moved_before = planned.plan.moves.len();
            input = carried_out(&input, &planned.plan);
            let again = plan(&input).unwrap();
            if planned.report.deferred.is_empty() {
                assert_eq!(again.plan.moves, [], "seed {seed} round {round}");
                settled += usize::from(moved_before > 0);
                break;
            }
            // Something was left for later; it comes to an end, as every shard moves at most once.
            chains += 1;
            assert!(round < 20, "seed {seed} does not settle");
            if again.plan.moves.is_empty() {
                break;
            }
            planned = again;
        }
    }
    println!("{settled} plans with moves settled at once, {chains} had something left");
    assert!(settled > 60, "only {settled} plans settled at once");
}

/// Load of a node after a prefix by a plain reading of the rules, with the copies of shards that leave it or not.
fn load_after(input: &PlanningInput, prefix: &[Move], node: &NodeId, resource: Resource, outgoing: bool) -> LoadPaths {
    let set = &input.scenarios;
    let step = set.step();
    let index = |shard: &ShardId| set.resource_index(resource).and(set.shard_index(shard));
    let mut load = LoadPaths::zero(set.steps(), set.scenarios());
    let begin = |i: usize| set.issued_at().plus_steps(i as i64 + 1, step);
    let mut add = |shard: &ShardId, steps: std::ops::Range<usize>| match index(shard) {
        Some(i) => load.add_scaled(set.lane(set.resource_index(resource).unwrap(), i).unwrap(), 1.0, steps),
        None => {
            let current = input.shards.get(shard).map_or(0.0, |f| f.current[resource]);
            load.add_constant(current as f32, steps);
        }
    };
    add(&ShardId::residual(node), 0..set.steps());
    for (shard, home) in input.placement.iter() {
        let running = input.in_flight.iter().find(|f| f.shard == *shard && f.source == *home);
        let running = running.map(|f| {
            let end = f.expected_end.max(input.now.plus_ms(step.as_ms()));
            (&f.target, end, end)
        });
        let moved = prefix.iter().find(|m| m.shard == *shard).map(|m| {
            let p = &m.predicted;
            (&m.target, m.start.plus_ms(p.duration_ms), m.start.plus_ms(p.duration_p90_ms))
        });
        let moved = moved.or(running);
        for i in 0..set.steps() {
            let here = match moved {
                None => home == node,
                Some((_, _, leaves)) if home == node => begin(i) < leaves,
                Some((target, arrives, _)) => target == node && begin(i + 1) > arrives,
            };
            if here {
                add(shard, i..i + 1);
            }
        }
    }
    let capacity = input.topology.node(node).unwrap().capacity[resource].unwrap();
    let copy = (input.cost_model.extra_share[resource] * capacity) as f32;
    let planned = prefix.iter().filter(|m| m.target == *node || (m.source == *node && outgoing));
    let planned = planned.map(|m| (m.start, m.start.plus_ms(m.predicted.duration_p90_ms)));
    let running = input.in_flight.iter().filter(|f| f.source == *node || f.target == *node);
    let running = running.map(|f| (f.started, f.expected_end.max(input.now.plus_ms(step.as_ms()))));
    for (from, to) in planned.chain(running) {
        for i in 0..set.steps() {
            let covered = to.min(begin(i + 1)).since_ms(from.max(begin(i))).max(0) as f32;
            load.add_constant(copy * covered / step.as_ms() as f32, i..i + 1);
        }
    }
    load
}

#[test]
fn p3_no_prefix_breaks_a_constraint_or_overloads_a_node() {
    let (mut strict, mut relieved) = (0, 0);
    for seed in SEEDS {
        let input = random(seed);
        let planned = plan(&input).unwrap().plan;
        let level = input.settings.capacity_quantile;
        let set = &input.scenarios;
        let first =
            (0..set.steps()).find(|i| set.issued_at().plus_steps(*i as i64 + 2, set.step()) > input.now).unwrap();
        for k in 1..=planned.moves.len() {
            let prefix = &planned.moves[..k];
            let m = &prefix[k - 1];
            let topology = &input.topology;
            assert_eq!(topology.node(&m.target).unwrap().state, NodeState::Active, "seed {seed}");
            assert!(!topology.exclusions.iter().any(|r| r.shard == m.shard && r.node == m.target), "seed {seed}");
            assert!(topology.pins.iter().all(|r| r.shard != m.shard || r.node == m.target), "seed {seed}");
            for node in &topology.nodes {
                let limited: Vec<Resource> =
                    Resource::ALL.into_iter().filter(|r| node.capacity[*r].is_some()).collect();
                let unmoved = |r: Resource| load_after(&input, &[], &node.id, r, true);
                let warm = |r: &Resource| {
                    let limit = node.capacity[*r].unwrap() * input.settings.limit.min(1.0);
                    f64::from(unmoved(*r).peak_quantile(level, first..set.steps())) > limit * (1.0 - 1e-5)
                };
                let draining = node.state == NodeState::Draining;
                let relief = input.settings.relief_copies && (draining || limited.iter().any(warm));
                for r in limited {
                    let (before, after) = (unmoved(r), load_after(&input, prefix, &node.id, r, !relief));
                    for step in first..set.steps() {
                        let capacity = node.capacity[r].unwrap() as f32;
                        let bound = before.quantile(step, level).unwrap().max(capacity);
                        let is = after.quantile(step, level).unwrap();
                        assert!(
                            is <= bound * 1.0001,
                            "seed {seed}, {} moves, {r} of {}: {is} over {bound}",
                            k,
                            node.id
                        );
                    }
                }
                if relief { relieved += 1 } else { strict += 1 }
            }
        }
    }
    assert!(strict > 500 && relieved > 100, "{strict} strict, {relieved} relieved");
}

#[test]
fn p4_the_checker_accepts_every_plan() {
    let mut moves = 0;
    for seed in SEEDS {
        let input = random(seed);
        let planned = plan(&input).unwrap();
        let report = check(&input, &planned.plan).unwrap_or_else(|v| panic!("seed {seed}: {v:#?}"));
        assert_eq!(report.placement, carried_out(&input, &planned.plan).placement);
        moves += report.moves;
        let records = decisions(&input, &planned, None);
        for m in &planned.plan.moves {
            assert!(records.iter().any(|r| r.shard == m.shard && r.decision == "move"), "seed {seed}");
            assert!(explain(&planned.plan, Some(&m.shard)).contains(m.target.as_str()));
            let partner = planned.plan.moves.iter().find(|o| Some(&o.shard) == m.with.as_ref());
            let both = [Some(m), partner].into_iter().flatten();
            let net: f64 = both.map(|m| m.expected_gain - m.expected_cost).sum();
            assert!(net > 0.0 || m.reason.rule == RuleName::Constraint, "seed {seed}");
        }
    }
    assert!(moves > 300, "only {moves} moves");
}

fn codes(violations: &[Violation]) -> Vec<&str> {
    violations.iter().map(|v| v.code.as_str()).collect()
}

/// A way to spoil a plan.
type Mutation = (&'static str, fn(&mut Plan, &PlanningInput));

#[test]
fn p4_mutated_plans_are_refused() {
    let mutations: [Mutation; 10] = [
        ("wrong_source", |p, i| {
            let other = i.topology.nodes.iter().find(|n| n.id != p.moves[0].source && n.id != p.moves[0].target);
            p.moves[0].source = other.map_or_else(|| node_id("nowhere"), |n| n.id.clone());
        }),
        ("unknown_shard", |p, _| p.moves[0].shard = shard("nobody")),
        ("unknown_node", |p, _| p.moves[0].target = node_id("nowhere")),
        ("same_node", |p, _| p.moves[0].target = p.moves[0].source.clone()),
        ("shard_twice", |p, _| p.moves.push(p.moves[0].clone())),
        ("start_in_past", |p, i| p.moves[0].start = i.now.plus_ms(-1)),
        ("gain", |p, _| p.moves[0].expected_gain += 5.0),
        ("cost", |p, _| p.moves[0].expected_cost = 0.0),
        ("prediction", |p, _| p.moves[0].predicted.duration_p90_ms /= 2),
        ("input_fingerprint", |p, _| p.input_fingerprint.push('0')),
    ];
    let mut tried = 0;
    for seed in SEEDS {
        let input = random(seed);
        let planned = plan(&input).unwrap().plan;
        if planned.moves.is_empty() {
            continue;
        }
        for (code, mutate) in mutations {
            let mut spoilt = planned.clone();
            mutate(&mut spoilt, &input);
            let violations = check(&input, &spoilt).expect_err(code);
            assert!(codes(&violations).contains(&code), "seed {seed}: {code} gave {:?}", codes(&violations));
            tried += 1;
        }
    }
    assert!(tried > 1000, "only {tried} mutated plans");
}

/// Sends moves elsewhere, one at a time: whatever the checker still accepts must be a sound plan in its own right, so
/// the claims of the original must betray nearly all.
#[test]
fn p4_moves_sent_elsewhere_are_refused() {
    let (mut refused, mut accepted) = (0u32, 0u32);
    for seed in SEEDS {
        let input = random(seed);
        let planned = plan(&input).unwrap().plan;
        for k in 0..planned.moves.len() {
            for node in input.topology.nodes.iter().filter(|n| n.id != planned.moves[k].target) {
                let mut spoilt = planned.clone();
                spoilt.moves[k].target = node.id.clone();
                match check(&input, &spoilt) {
                    Ok(_) => accepted += 1,
                    Err(_) => refused += 1,
                }
            }
        }
    }
    println!("{refused} refused, {accepted} equivalent");
    assert!(refused > 9 * accepted && refused > 300, "{refused} refused, {accepted} accepted");
}
