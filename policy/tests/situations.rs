//! Situations that an operator knows, each with the text and the JSON of its plan on file. `FORESHARD_BLESS=1` writes them
//! anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use foreshard_domain::{Group, GroupId, NodeState, Spread};
use foreshard_policy::{Communication, Plan, PlanningInput, PolicySettings, RuleName, check, explain, plan};
use inputs::{NO_RULES, carried_out, constant, node, node_id, only, shard};

/// Makes the plan, has it checked, and compares its text and JSON with those on file.
fn golden(name: &str, input: &PlanningInput) -> Plan {
    let made = plan(input).unwrap().plan;
    check(input, &made).unwrap_or_else(|v| panic!("{v:#?}"));
    let json = serde_json::to_string_pretty(&made).unwrap() + "\n";
    for (suffix, text) in [("txt", explain(&made, None)), ("json", json)] {
        let path = format!("{}/tests/golden/{name}.{suffix}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("FORESHARD_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path} has changed");
    }
    made
}

#[test]
fn chatty_shards_in_two_zones_are_brought_together_when_the_saving_exceeds_the_move() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z2", 100.0), node("n3", "z1", 100.0)];
    let mut input = constant(nodes, &[("cart", "n1", 10.0), ("orders", "n2", 10.0)], PolicySettings::default());
    let talk = |mib: f64| Communication { a: shard("cart"), b: shard("orders"), bytes_per_s: mib * 1_048_576.0 };
    input.communication = vec![talk(200.0)];
    let made = golden("chatty", &input);
    assert_eq!(made.moves.len(), 1);
    let after = carried_out(&input, &made);
    assert_eq!(after.placement.node_of(&shard("cart")), after.placement.node_of(&shard("orders")));
    input.settings.communication_weight = 0.0;
    assert_eq!(plan(&input).unwrap().plan.moves, [], "the weight is 0");
    input.settings.communication_weight = 0.01;
    input.communication = vec![talk(50.0)];
    assert_eq!(plan(&input).unwrap().plan.moves, [], "half a minute saved does not pay for the move");
}

#[test]
fn replicas_of_a_group_never_share_a_node_or_zone() {
    let nodes =
        vec![node("n1", "z1", 100.0), node("n2", "z1", 100.0), node("n3", "z2", 100.0), node("n4", "z3", 100.0)];
    let shards = [("db-1", "n1", 30.0), ("db-2", "n2", 30.0), ("db-3", "n3", 30.0), ("web", "n1", 80.0)];
    let mut input = constant(nodes, &shards, PolicySettings::default());
    let members = ["db-1", "db-2", "db-3"].map(shard).into();
    input.topology.groups = vec![Group { id: GroupId::new("db").unwrap(), shards: members, spread: Spread::Zone }];
    let made = golden("replicas", &input);
    let after = carried_out(&input, &made);
    let zones = ["db-1", "db-2", "db-3"].map(|s| {
        let node = after.placement.node_of(&shard(s)).unwrap();
        after.topology.node(node).unwrap().zone.clone()
    });
    assert!(zones[0] != zones[1] && zones[1] != zones[2] && zones[0] != zones[2], "{zones:?}");
}

#[test]
fn draining_empties_a_node_without_overload() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z1", 100.0), node("n3", "z1", 100.0)];
    let shards = [("a", "n1", 35.0), ("b", "n1", 40.0), ("c", "n1", 10.0), ("d", "n2", 40.0), ("e", "n3", 45.0)];
    let mut input = constant(nodes, &shards, only(NO_RULES));
    input.topology.nodes[0].state = NodeState::Draining;
    let made = golden("draining", &input);
    let after = carried_out(&input, &made);
    assert_eq!(after.placement.shards_on(&node_id("n1")).count(), 0);
    assert!(made.nodes.iter().all(|n| n.after.cpu == 0.0), "{:?}", made.nodes);
}

#[test]
fn a_node_that_was_added_takes_what_the_others_have_too_much() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z1", 100.0), node("n3-new", "z1", 100.0)];
    let shards = [("a", "n1", 50.0), ("b", "n1", 45.0), ("c", "n1", 15.0), ("d", "n2", 60.0), ("e", "n2", 50.0)];
    let input = constant(nodes, &shards, PolicySettings::default());
    let made = golden("node-added", &input);
    assert!(!made.moves.is_empty() && made.moves.iter().all(|m| m.target == node_id("n3-new")));
    assert!(made.nodes.iter().all(|n| n.excess_minutes.1 <= n.excess_minutes.0));
    // Losing n1 or n2 would have left shards without room before.
    assert!(made.nodes[0].if_lost.0.homeless > 0 || made.nodes[1].if_lost.0.homeless > 0, "{:?}", made.nodes);
}

#[test]
fn an_override_goes_back_to_the_ring_when_its_gain_is_gone() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z1", 100.0)];
    let mut input = constant(nodes, &[("a", "n2", 30.0), ("b", "n1", 40.0)], PolicySettings::default());
    input.settings.rules.proactive_balancing = false;
    assert_eq!(plan(&input).unwrap().plan.moves, [], "no ring, nothing to return to");
    input.homes = [(shard("a"), node_id("n1")), (shard("b"), node_id("n1"))].into();
    let made = golden("ring-return", &input);
    assert_eq!(
        made.moves.iter().map(|m| (m.shard.as_str(), m.reason.rule)).collect::<Vec<_>>(),
        [("a", RuleName::RingReturn)]
    );
    // Once home it stays, and it does not go home while that would overload it.
    let mut home = carried_out(&input, &made);
    home.shards.values_mut().for_each(|f| f.last_moved = None);
    assert_eq!(plan(&home).unwrap().plan.moves, []);
    inputs::with_lane(&mut input, "b", &[85.0; 48]);
    assert_eq!(plan(&input).unwrap().plan.moves, [], "its gain is not gone");
}

#[test]
fn a_forecast_without_a_vote_moves_nothing_and_that_is_said() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z2", 100.0)];
    let mut input = constant(nodes, &[("a", "n1", 40.0), ("b", "n1", 40.0)], PolicySettings::default());
    input.settings.rules.proactive_balancing = false;
    inputs::with_lane(&mut input, "a", &[90.0; 48]);
    assert_eq!(plan(&input).unwrap().plan.moves.len(), 1, "its forecast says that it grows");
    input.voteless = [shard("a")].into();
    let made = plan(&input).unwrap().plan;
    check(&input, &made).unwrap();
    assert_eq!(made.moves, []);
    assert!(made.notes.iter().any(|n| n.contains("no vote, such as a")), "{:?}", made.notes);
    // A reactive balancer would see what is already there.
    inputs::facts_of(&mut input, "a").current.cpu = 90.0;
    let made = plan(&input).unwrap().plan;
    check(&input, &made).unwrap();
    assert_eq!(made.moves.len(), 1);
}
