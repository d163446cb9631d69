//! What the checker notices: plans that were tampered with, and inputs that are broken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use foreshard_domain::{PlanId, Resource, ScenarioSet, ShardId};
use foreshard_policy::{Plan, PlanningInput, check, explain, plan};
use inputs::{node_id, random, shard};
use rand::{
    Rng, SeedableRng,
    seq::{IndexedMutRandom, IndexedRandom},
};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A way to tamper with a plan; false where it does not apply.
type Mutant = (&'static str, fn(&mut Plan, &PlanningInput, &mut ChaCha8Rng) -> bool);

/// Sorts again what a mutation put out of order, so that the order alone does not betray it.
fn sort(plan: &mut Plan) {
    plan.moves.sort_by(|a, b| (a.start, &a.shard).cmp(&(b.start, &b.shard)));
}

const MUTANTS: [Mutant; 8] = [
    ("targets of two moves swapped", |p, _, rng| {
        let n = p.moves.len();
        if n < 2 {
            return false;
        }
        let (a, b) = (rng.random_range(0..n), rng.random_range(0..n));
        let (ta, tb) = (p.moves[a].target.clone(), p.moves[b].target.clone());
        let changes = ta != tb && p.moves[a].source != tb && p.moves[b].source != ta;
        (p.moves[a].target, p.moves[b].target) = (tb, ta);
        changes
    }),
    ("another target", |p, i, rng| {
        let m = p.moves.choose_mut(rng);
        let Some(m) = m else { return false };
        let others: Vec<_> = i.topology.nodes.iter().filter(|n| n.id != m.target && n.id != m.source).collect();
        others.choose(rng).map(|n| m.target = n.id.clone()).is_some()
    }),
    ("a start moved by one to six steps", |p, i, rng| {
        let step = i.scenarios.step();
        let by = rng.random_range(1..=6);
        let moved = p.moves.choose_mut(rng).map(|m| m.start = m.start.plus_steps(by, step)).is_some();
        sort(p);
        moved
    }),
    ("a start moved to now", |p, i, rng| {
        let moved = p.moves.choose_mut(rng).filter(|m| m.start > i.now).map(|m| m.start = i.now).is_some();
        sort(p);
        moved
    }),
    ("a step dropped", |p, _, rng| {
        let n = p.moves.len();
        n > 0 && {
            p.moves.remove(rng.random_range(0..n));
            true
        }
    }),
    ("another shard of the same source", |p, i, rng| {
        let moved: Vec<ShardId> = p.moves.iter().map(|m| m.shard.clone()).collect();
        let Some(m) = p.moves.choose_mut(rng) else { return false };
        let others = i.placement.shards_on(&m.source).filter(|s| !moved.contains(s)).cloned().collect::<Vec<_>>();
        others.choose(rng).map(|s| m.shard = s.clone()).is_some()
    }),
    ("a shorter copy", |p, _, rng| p.moves.choose_mut(rng).map(|m| m.predicted.duration_ms /= 2).is_some()),
    ("a gain that is doubled", |p, _, rng| {
        p.moves.choose_mut(rng).filter(|m| m.expected_gain > 0.1).map(|m| m.expected_gain *= 2.0).is_some()
    }),
];

/// The share of tampered plans that is refused, by kind. What is accepted with a new id is a sound plan in its own right: a
/// start that was moved where loads are flat, a move fewer on which nothing else depends.
#[test]
fn p4_mutants_are_caught() {
    let mut caught: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    let mut unsigned = (0, 0);
    for seed in 0..400 {
        let input = random(seed);
        let planned = plan(&input).unwrap().plan;
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        for (name, mutate) in MUTANTS {
            let mut mutant = planned.clone();
            if !mutate(&mut mutant, &input, rng) || mutant == planned {
                continue;
            }
            let count = caught.entry(name).or_default();
            count.1 += 1;
            // By its id alone every mutant is caught; with the id made to fit it must be what it says that betrays it.
            unsigned = (unsigned.0 + u32::from(check(&input, &mutant).is_err()), unsigned.1 + 1);
            mutant.id = PlanId::new(Plan::content_id(&mutant.input_fingerprint, &mutant.moves)).unwrap();
            count.0 += u32::from(check(&input, &mutant).is_err());
        }
    }
    let (mut all, mut found) = (0, 0);
    for (name, (caught, tried)) in &caught {
        println!("{name}: {caught} of {tried}");
        (all, found) = (all + tried, found + caught);
    }
    println!("all: {found} of {all} ({:.1} %)", 100.0 * f64::from(found) / f64::from(all));
    assert!(caught.len() == MUTANTS.len() && all > 1000, "{all} mutants of {} kinds", caught.len());
    println!("with the id left as it was: {} of {}", unsigned.0, unsigned.1);
    assert_eq!(unsigned.0, unsigned.1);
    assert!(f64::from(found) >= 0.9 * f64::from(all), "{found} of {all}");
}

/// A way to break an input.
type Break = fn(&mut PlanningInput, &mut ChaCha8Rng);

const BREAKS: [Break; 14] = [
    |i, _| i.topology.nodes.clear(),
    |i, _| i.placement = foreshard_domain::Placement::new(),
    |i, _| drop(i.placement.assign(shard("lost"), node_id("nowhere"))),
    |i, rng| {
        let values = i.scenarios.values().iter().map(|v| if rng.random_bool(0.01) { -v - 1.0 } else { *v }).collect();
        i.scenarios = with_values(&i.scenarios, values);
    },
    |i, _| {
        let values = i.scenarios.values().iter().map(|v| (v * 1e6).min(f32::MAX)).collect();
        i.scenarios = with_values(&i.scenarios, values);
    },
    |i, _| {
        let values = vec![f32::MAX / 4.0; i.scenarios.values().len()];
        i.scenarios = with_values(&i.scenarios, values);
    },
    |i, rng| i.now = i.now.plus_ms(rng.random_range(-90_000_000..90_000_000)),
    |i, _| i.shards.values_mut().for_each(|f| f.data_bytes = f64::INFINITY),
    |i, _| i.shards.values_mut().for_each(|f| f.data_bytes = 1e30),
    |i, _| i.shards.values_mut().for_each(|f| f.current.cpu = f64::NAN),
    |i, _| i.cost_model.duration_s.intercept = f64::NAN,
    |i, _| i.cost_model.extra_share.cpu = 1e9,
    |i, rng| {
        // Contradictions: everything in one group, pinned to one node, excluded from all.
        let shards: std::collections::BTreeSet<ShardId> = i.placement.iter().map(|(s, _)| s.clone()).collect();
        let id = foreshard_domain::GroupId::new("all").unwrap();
        i.topology.groups = vec![foreshard_domain::Group { id, shards, spread: foreshard_domain::Spread::Zone }];
        let (all, nodes) = (i.placement.clone(), i.topology.nodes.clone());
        for (shard, _) in all.iter() {
            let Some(node) = nodes.choose(rng).map(|n| n.id.clone()) else { continue };
            let rule = foreshard_domain::Rule { shard: shard.clone(), node };
            if rng.random() { i.topology.pins.push(rule) } else { i.topology.exclusions.push(rule) }
        }
    },
    |i, _| i.topology.nodes.iter_mut().for_each(|n| n.state = foreshard_domain::NodeState::Draining),
];

fn with_values(set: &ScenarioSet, values: Vec<f32>) -> ScenarioSet {
    let (resources, shards): (Vec<Resource>, _) = (set.resources().to_vec(), set.shards().to_vec());
    ScenarioSet::new(set.issued_at(), set.step(), resources, shards, (set.steps(), set.scenarios()), values).unwrap()
}

/// Broken inputs are refused with words, or planned, accepted by the checker and explained; nothing panics.
#[test]
fn broken_inputs_never_panic() {
    let (mut refused, mut planned) = (0, 0);
    for seed in 0..300u64 {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        for (k, break_it) in BREAKS.iter().enumerate() {
            let mut input = random(seed);
            break_it(&mut input, rng);
            if seed % 3 == 0 {
                BREAKS.choose(rng).unwrap()(&mut input, rng);
            }
            match plan(&input) {
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    assert!(source.is_some_and(|s| !s.is_empty()), "seed {seed}, {k}");
                    assert!(check(&input, &plan(&random(seed)).unwrap().plan).is_err());
                    refused += 1;
                }
                Ok(made) => {
                    let violations = check(&input, &made.plan).err().unwrap_or_default();
                    assert!(violations.is_empty(), "seed {seed}, {k}: {violations:#?}");
                    assert!(!explain(&made.plan, None).is_empty());
                    planned += 1;
                }
            }
        }
    }
    println!("{refused} refused, {planned} planned");
    assert!(refused > 500 && planned > 500);
}
