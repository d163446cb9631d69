//! One fixed input and the text of its plan. `FORESHARD_BLESS=1` writes the text anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use foreshard_domain::{Group, GroupId, MaintenanceWindow, NodeState, PlanId, Rule, Spread, Step};
use foreshard_policy::{Communication, PlanningInput, PolicySettings, check, explain, plan};
use inputs::{NOW, constant, cpu_scenarios, facts_of, node, node_id, shard};

/// Four nodes in two zones: n1 runs hot in an hour, n4 is being emptied, n2 is closed for moves at first.
fn input() -> PlanningInput {
    let nodes =
        vec![node("n1", "z1", 100.0), node("n2", "z1", 100.0), node("n3", "z2", 120.0), node("n4", "z2", 100.0)];
    let placed = [
        ("billing", "n1", 35.0),
        ("orders", "n1", 30.0),
        ("orders-replica", "n3", 28.0),
        ("search", "n1", 15.0),
        ("sessions", "n2", 30.0),
        ("mail", "n4", 12.0),
        ("archive", "n4", 5.0),
    ];
    let mut input = constant(nodes, &placed, PolicySettings::default());
    let lane = |load: f32, rise: f32| -> Vec<f32> {
        let value = |step: usize, k: usize| {
            let rising = if step >= 14 { rise } else { 0.0 };
            (load + rising) * (0.9 + 0.05 * k as f32) - if (4..6).contains(&step) { 4.0 } else { 0.0 }
        };
        (0..24).flat_map(|step| (0..5).map(move |k| value(step, k))).collect()
    };
    let lanes = [
        ("billing", lane(35.0, 20.0)),
        ("orders", lane(30.0, 25.0)),
        ("orders-replica", lane(28.0, 0.0)),
        ("search", lane(15.0, 5.0)),
        ("sessions", lane(30.0, 0.0)),
        ("mail", lane(12.0, 0.0)),
    ];
    input.scenarios = cpu_scenarios(&lanes, 24, 5);
    input.parent = Some(PlanId::new("plan-0").unwrap());
    input.topology.nodes[3].state = NodeState::Draining;
    let shards = [shard("orders"), shard("orders-replica")].into();
    input.topology.groups = vec![Group { id: GroupId::new("orders").unwrap(), shards, spread: Spread::Zone }];
    input.topology.pins = vec![Rule { shard: shard("search"), node: node_id("n1") }];
    let end = NOW.plus_steps(2, Step::FIVE_MINUTES);
    input.topology.windows = vec![MaintenanceWindow { node: Some(node_id("n2")), start: NOW, end }];
    input.communication =
        vec![Communication { a: shard("orders"), b: shard("billing"), bytes_per_s: 30.0 * 1_048_576.0 }];
    facts_of(&mut input, "billing").data_bytes = 20.0 * inputs::GIB;
    facts_of(&mut input, "archive").last_moved = Some(NOW.plus_ms(-1_200_000));
    input
}

/// The input as a file, for those who carry the golden plan out: `migrator/tests/golden_plan.rs`.
#[test]
fn the_golden_input_is_on_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/input.json");
    let text = serde_json::to_string_pretty(&input()).unwrap() + "\n";
    if std::env::var_os("FORESHARD_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap(), "the input of the golden plan has changed");
}

#[test]
fn the_golden_plan_reads_as_before() {
    let input = input();
    let planned = plan(&input).unwrap();
    check(&input, &planned.plan).unwrap_or_else(|v| panic!("{v:#?}"));
    let mut text = explain(&planned.plan, None);
    for id in ["billing", "archive", "sessions"] {
        text.push_str(&format!("\n----- why {id}\n{}", explain(&planned.plan, Some(&shard(id)))));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/plan.txt");
    if std::env::var_os("FORESHARD_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, golden, "the text of the plan has changed");
}
