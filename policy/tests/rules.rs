//! Tables: what each rule asks for, each refusal and its code, when moves start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use foreshard_domain::{
    Group, GroupId, Link, MaintenanceWindow, NodeState, PerResource, PlanId, Resource, Rule, ScenarioSet, ShardId,
    Spread, Step, Timestamp,
};
use foreshard_policy::{
    Communication, InFlight, InputError, Plan, PlanError, PlanningInput, PolicySettings, RuleName, RuleSwitches, check,
    decisions, explain, plan,
};
use inputs::{NO_RULES, NOW, constant, cpu_scenarios, facts_of, node, node_id, only, shard, with_lane};

fn planned(input: &PlanningInput) -> Plan {
    let planned = plan(input).unwrap();
    check(input, &planned.plan).unwrap_or_else(|violations| panic!("{violations:#?}"));
    planned.plan
}

fn moves(plan: &Plan) -> Vec<(&str, &str, RuleName)> {
    plan.moves.iter().map(|m| (m.shard.as_str(), m.target.as_str(), m.reason.rule)).collect()
}

fn two_nodes(shards: &[(&str, &str, f64)], rules: RuleSwitches) -> PlanningInput {
    constant(vec![node("n1", "z1", 100.0), node("n2", "z1", 100.0)], shards, only(rules))
}

#[test]
fn each_rule_asks_by_name_and_can_be_switched_off() {
    let hot: &[(&str, &str, f64)] = &[("a", "n1", 70.0), ("b", "n1", 50.0)];
    let uneven: &[(&str, &str, f64)] = &[("a", "n1", 40.0), ("b", "n1", 40.0)];
    let table = [
        (RuleName::Threshold, RuleSwitches { threshold: true, ..NO_RULES }, hot),
        (RuleName::CostBenefit, RuleSwitches { cost_benefit: true, ..NO_RULES }, hot),
        (RuleName::Reactive, RuleSwitches { reactive: true, ..NO_RULES }, hot),
        (RuleName::ProactiveBalancing, RuleSwitches { proactive_balancing: true, ..NO_RULES }, uneven),
    ];
    for (rule, switches, shards) in table {
        let input = two_nodes(shards, switches);
        assert_eq!(moves(&planned(&input)), [("a", "n2", rule)]);
        let off = PlanningInput { settings: only(NO_RULES), ..input };
        assert_eq!(moves(&planned(&off)), [], "{rule:?} off");
    }
}

#[test]
fn threshold_needs_the_probability_and_cost_benefit_the_gain() {
    let mut input = two_nodes(&[("a", "n1", 70.0), ("b", "n1", 20.0)], RuleSwitches::default());
    // b is hot in one scenario of two.
    let lane: Vec<f32> = (0..48).map(|i| if i % 2 == 0 { 20.0 } else { 60.0 }).collect();
    with_lane(&mut input, "b", &lane);
    input.settings.rules = RuleSwitches { cost_benefit: true, threshold: true, ..NO_RULES };
    input.settings.capacity_quantile = 0.5;
    assert_eq!(planned(&input).moves[0].reason.rule, RuleName::CostBenefit);
    input.settings.confidence = 0.4;
    let threshold = planned(&input);
    assert_eq!(threshold.moves[0].reason.rule, RuleName::Threshold);
    assert_eq!(threshold.moves[0].reason.source_risk_before, 0.5);
    input.settings.confidence = 0.5;
    input.settings.rules.cost_benefit = false;
    assert_eq!(moves(&planned(&input)), []);
}

#[test]
fn reactive_needs_both_the_prediction_and_the_current_load() {
    let rules = RuleSwitches { reactive: true, ..NO_RULES };
    let mut input = two_nodes(&[("a", "n1", 70.0), ("b", "n1", 50.0)], rules);
    facts_of(&mut input, "a").current.cpu = 20.0;
    assert_eq!(moves(&planned(&input)), [], "currently at 70 %");
    facts_of(&mut input, "a").current.cpu = 35.0;
    assert_eq!(moves(&planned(&input)).len(), 1, "currently at 85 %");
    input.settings.overload_threshold = 1.3;
    assert_eq!(moves(&planned(&input)), [], "predicted 120 %");
}

#[test]
fn draining_empties_a_node_without_overload() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z1", 100.0), node("n3", "z1", 100.0)];
    let shards = [("a", "n1", 30.0), ("b", "n1", 40.0), ("c", "n2", 60.0), ("d", "n3", 50.0)];
    let mut input = constant(nodes, &shards, only(NO_RULES));
    input.topology.nodes[0].state = NodeState::Draining;
    let plan = planned(&input);
    assert!(plan.moves.iter().all(|m| m.reason.rule == RuleName::Constraint && m.source == node_id("n1")));
    assert_eq!(plan.moves.len(), 2);
    assert!(plan.nodes.iter().all(|n| n.after.cpu == 0.0), "{:?}", plan.nodes);
    let before = input.placement.clone();
    input.topology.pins = vec![Rule { shard: shard("a"), node: node_id("n1") }];
    let pinned = planned(&input);
    assert_eq!(moves(&pinned).len(), 1);
    assert!(pinned.notes.iter().any(|n| n.contains("pinned to n1")), "{:?}", pinned.notes);
    assert_eq!(before, input.placement);
}

/// A hot node n1 (residual 50) with one shard a (70), n2 with c (10), n3 with d (10), where a must not go.
fn hot_node() -> PlanningInput {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z2", 100.0), node("n3", "z3", 100.0)];
    let shards = [("a", "n1", 70.0), ("c", "n2", 10.0), ("d", "n3", 10.0)];
    let rules = RuleSwitches { proactive_balancing: false, ..RuleSwitches::default() };
    let mut settings = PolicySettings { rules, ..PolicySettings::default() };
    // Without pairs, another shard would make room where only that is missing.
    settings.search.pairs = 0;
    let mut input = constant(nodes, &shards, settings);
    let constant = |v: f32| vec![v; 48];
    let lanes = [("a", constant(70.0)), ("c", constant(10.0)), ("d", constant(10.0)), ("@node/n1", constant(50.0))];
    input.scenarios = cpu_scenarios(&lanes, 24, 2);
    let exclusion = Rule { shard: shard("a"), node: node_id("n3") };
    input.topology.exclusions = vec![exclusion];
    input
}

fn group(spread: Spread) -> Group {
    Group { id: GroupId::new("g").unwrap(), shards: [shard("a"), shard("c")].into(), spread }
}

fn running(id: &str, source: &str, target: &str) -> InFlight {
    let (source, target) = (node_id(source), node_id(target));
    let (started, expected_end) = (NOW, NOW.plus_ms(86_400_000));
    InFlight { shard: shard(id), source, target, started, expected_end }
}

/// A code and the change that brings it about.
type Case = (&'static str, fn(&mut PlanningInput));

const CASES: [Case; 13] = [
    ("pinned", |i| i.topology.pins = vec![Rule { shard: shard("a"), node: node_id("n1") }]),
    ("excluded", |i| i.topology.exclusions.push(Rule { shard: shard("a"), node: node_id("n2") })),
    ("node_not_active", |i| i.topology.nodes[1].state = NodeState::Closed),
    ("group_spread", |i| i.topology.groups = vec![group(Spread::Node)]),
    ("cool_down", |i| facts_of(i, "a").last_moved = Some(NOW.plus_ms(-60_000))),
    ("held_by_retention", |i| facts_of(i, "a").held_until = Some(NOW.plus_ms(86_400_000))),
    ("node_cool_down", |i| {
        i.settings.cool_down_node_ms = 600_000;
        facts_of(i, "c").last_moved = Some(NOW.plus_ms(-60_000));
    }),
    ("no_capacity", |i| with_lane(i, "c", &[60.0; 48])),
    ("maintenance_window", |i| {
        let end = NOW.plus_ms(86_400_000);
        i.topology.windows = vec![MaintenanceWindow { node: Some(node_id("n2")), start: NOW, end }];
    }),
    ("moves_in_flight", |i| {
        i.settings.moves_in_flight = 1;
        i.in_flight = vec![running("d", "n3", "n2")];
    }),
    ("moves_per_node", |i| {
        i.settings.moves_per_node = 1;
        i.in_flight = vec![running("d", "n3", "n2")];
    }),
    ("in_flight", |i| i.in_flight = vec![running("a", "n1", "n2")]),
    ("unknown_size", |i| {
        i.shards.remove(&shard("a"));
    }),
];

#[test]
fn every_refusal_has_its_code() {
    assert_eq!(moves(&planned(&hot_node())), [("a", "n2", RuleName::Threshold)]);
    let more: [Case; 2] = [
        ("not_worth_it", |i| i.settings.min_gain = 1e6),
        ("group_spread", |i| {
            i.topology.nodes[1].zone = i.topology.nodes[2].zone.clone();
            i.topology.groups = vec![Group { shards: [shard("a"), shard("d")].into(), ..group(Spread::Zone) }];
        }),
    ];
    for (code, change) in CASES.into_iter().chain(more) {
        let mut input = hot_node();
        change(&mut input);
        let planned = plan(&input).unwrap();
        check(&input, &planned.plan).unwrap();
        assert_eq!(moves(&planned.plan), [], "{code}");
        let considered = planned.plan.considered.iter().filter(|c| c.shard == shard("a") && c.target == node_id("n2"));
        let found: Vec<&str> = considered.map(|c| c.outcome.as_ref().unwrap_err().code()).collect();
        assert_eq!(found, [code]);
        let text = explain(&planned.plan, Some(&shard("a")));
        assert!(text.contains("a stays") && text.contains(&code.replace("not_worth_it", "not worth it")), "{text}");
        let record = decisions(&input, &planned, None).into_iter().find(|r| r.shard == shard("a")).unwrap();
        assert!(record.target.is_none() && record.risk_unmoved == 1.0, "{record:?}");
    }
}

/// Where no single move can help, one shard makes room for another; each says so, and neither is accepted alone.
#[test]
fn one_shard_makes_room_for_another() {
    let mut input = hot_node();
    with_lane(&mut input, "c", &[60.0; 48]);
    assert_eq!(moves(&planned(&input)), []);
    input.settings.search.pairs = 100;
    let plan = planned(&input);
    assert_eq!(moves(&plan), [("c", "n3", RuleName::Threshold), ("a", "n2", RuleName::Threshold)]);
    assert_eq!(plan.moves.iter().map(|m| m.with.clone()).collect::<Vec<_>>(), [Some(shard("a")), Some(shard("c"))]);
    let text = explain(&plan, None);
    assert!(text.contains("worth it together with the move of a"), "{text}");
    let mut alone = plan.clone();
    alone.moves.remove(1);
    assert!(check(&input, &alone).unwrap_err().iter().any(|v| v.code == "partner"));
}

/// Two shards change places where moving either of them alone would make things worse.
#[test]
fn two_shards_change_places() {
    let nodes = vec![node("n1", "z1", 180.0), node("n2", "z2", 180.0)];
    let shards = [("a", "n1", 70.0), ("b", "n1", 50.0), ("c", "n2", 60.0), ("d", "n2", 30.0)];
    let mut input = constant(nodes, &shards, PolicySettings { limit: 110.0 / 180.0, ..PolicySettings::default() });
    input.settings.rules.proactive_balancing = false;
    let plan = planned(&input);
    assert_eq!(moves(&plan), [("b", "n2", RuleName::Threshold), ("d", "n1", RuleName::Threshold)]);
    assert!(plan.moves.iter().all(|m| m.with.is_some()));
    input.settings.search.pairs = 0;
    assert_eq!(moves(&planned(&input)), []);
}

#[test]
fn a_shard_moves_again_when_nothing_of_its_last_move_is_kept() {
    let mut input = hot_node();
    facts_of(&mut input, "a").held_until = Some(NOW);
    assert_eq!(moves(&planned(&input)), [("a", "n2", RuleName::Threshold)]);
    // What is not said is not in the fingerprint: inputs of before keep theirs.
    let text = serde_json::to_string(&hot_node()).unwrap();
    assert!(!text.contains("held_until") && serde_json::to_string(&input).unwrap().contains("held_until"));
}

/// A plan that was made when it was allowed is refused once it is not.
#[test]
fn p4_the_checker_refuses_what_the_planner_would() {
    let more: [Case; 8] = [
        ("moves_per_plan", |_| ()),
        ("parent", |i| i.parent = Some(PlanId::new("other").unwrap())),
        ("created_at", |i| i.now = i.now.plus_ms(1)),
        ("rule", |i| i.settings.rules = NO_RULES),
        ("not_worth_it", |i| i.settings.churn_weight = 1e3),
        ("prediction", |i| i.cost_model.fence_ms.intercept += 1.0),
        ("data_bytes", |i| facts_of(i, "a").data_bytes *= 2.0),
        ("gain", |i| i.settings.limit = 0.9),
    ];
    for (code, change) in CASES.into_iter().chain(more) {
        let mut input = hot_node();
        let mut made = planned(&input);
        change(&mut input);
        if code == "moves_per_plan" {
            made.moves = vec![made.moves[0].clone(); 9];
        }
        made.input_fingerprint = input.fingerprint();
        let violations = check(&input, &made).expect_err(code);
        let code = if code == "no_capacity" { "capacity" } else { code };
        assert!(violations.iter().any(|v| v.code == code), "{code}: {violations:#?}");
    }
    let input = hot_node();
    let made = planned(&input);
    let newer = Plan { format: made.format + 1, ..made };
    assert_eq!(check(&input, &newer).unwrap_err()[0].code, "format");
}

#[test]
fn limits_defer_moves_and_say_so() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z1", 200.0)];
    let shards = [("a", "n1", 60.0), ("b", "n1", 60.0), ("c", "n1", 60.0)];
    let mut input = constant(nodes, &shards, PolicySettings::default());
    input.settings.moves_per_plan = 1;
    let one = plan(&input).unwrap();
    assert_eq!(one.plan.moves.len(), 1);
    assert!(one.report.deferred.iter().all(|d| d.code == "moves_per_plan"), "{:?}", one.report);
    assert!(!one.report.deferred.is_empty());
    input.settings.moves_per_plan = 8;
    input.settings.moves_in_flight = 1;
    let two = planned(&input);
    assert_eq!(two.moves.len(), 2);
    let end = two.moves[0].start.plus_ms(two.moves[0].predicted.duration_p90_ms);
    assert!(end <= two.moves[1].start, "one copy at a time");
}

fn at(step: i64) -> Timestamp {
    NOW.plus_steps(step, Step::FIVE_MINUTES)
}

#[test]
fn a_move_waits_for_the_trough_and_ends_before_the_need() {
    let mut input = two_nodes(&[("a", "n1", 30.0), ("b", "n1", 50.0)], RuleSwitches::default());
    let lane: Vec<f32> = (0..48)
        .map(|i| match i / 2 {
            4 | 5 => 20.0,
            12.. => 90.0,
            _ => 50.0,
        })
        .collect();
    with_lane(&mut input, "b", &lane);
    let waits = planned(&input);
    assert_eq!(waits.moves.len(), 1, "{}", explain(&waits, None));
    let m = &waits.moves[0];
    assert_eq!((m.start, m.reason.first_crossing), (at(4), Some(at(12))));
    assert!(m.reason.text.contains("waits until the copy costs least"), "{}", m.reason.text);
    assert_eq!((m.reason.source_risk_before, m.reason.source_risk_after), (1.0, 0.0));
}

#[test]
fn a_move_that_comes_too_late_says_so() {
    let input = two_nodes(&[("a", "n1", 70.0), ("b", "n1", 50.0)], RuleSwitches::default());
    let late = planned(&input);
    assert_eq!(late.moves[0].start, NOW);
    assert!(late.moves[0].reason.text.contains("no start lets the copy end"), "{}", late.moves[0].reason.text);
}

#[test]
fn windows_shift_the_start() {
    let mut input = two_nodes(&[("a", "n1", 70.0), ("b", "n1", 50.0)], RuleSwitches::default());
    input.topology.windows = vec![MaintenanceWindow { node: None, start: NOW, end: at(3) }];
    assert_eq!(planned(&input).moves[0].start, at(3));
}

#[test]
fn bandwidth_bounds_the_rate_of_a_copy() {
    let mut input = two_nodes(&[("a", "n1", 70.0), ("b", "n1", 50.0)], RuleSwitches::default());
    let bandwidth_bytes_per_s = Some(inputs::GIB / 600.0);
    input.topology.links = vec![Link { a: "n1".into(), b: "n2".into(), latency_ms: 0.1, bandwidth_bytes_per_s }];
    assert_eq!(planned(&input).moves[0].predicted.duration_ms, 600_000);
}

#[test]
fn chatty_shards_meet_when_it_pays() {
    let nodes = vec![node("n1", "z1", 100.0), node("n2", "z2", 100.0)];
    let mut input = constant(nodes, &[("a", "n1", 10.0), ("b", "n2", 10.0)], PolicySettings::default());
    input.communication = vec![Communication { a: shard("a"), b: shard("b"), bytes_per_s: 200.0 * 1_048_576.0 }];
    let together = planned(&input);
    assert_eq!(together.moves.len(), 1);
    assert_eq!(together.moves[0].reason.rule, RuleName::CostBenefit);
    assert!((together.moves[0].expected_gain - 2.0).abs() < 1e-9, "200 MiB/s x 1 ms x 0.01");
    input.settings.communication_weight = 0.0;
    assert_eq!(moves(&planned(&input)), []);
}

#[test]
fn a_shard_without_forecast_is_planned_with_its_load_and_that_is_said() {
    let mut input = two_nodes(&[("a", "n1", 70.0), ("b", "n1", 50.0)], RuleSwitches::default());
    input.scenarios = cpu_scenarios(&[("b", vec![50.0; 48])], 24, 2);
    let made = planned(&input);
    assert_eq!(made.moves.len(), 1);
    assert!(made.notes.iter().any(|n| n.contains("shard a has no complete forecast")), "{:?}", made.notes);
}

#[test]
fn a_shard_bigger_than_any_node_is_named() {
    let input = two_nodes(&[("a", "n1", 170.0), ("b", "n2", 50.0)], RuleSwitches::default());
    let made = planned(&input);
    assert_eq!(moves(&made), []);
    assert!(made.notes.iter().any(|n| n.contains("shard a alone")), "{:?}", made.notes);
}

#[test]
fn bad_inputs_are_refused_with_everything_that_is_wrong() {
    let mut input = two_nodes(&[("a", "n1", 70.0), ("b", "n9", 50.0)], RuleSwitches::default());
    facts_of(&mut input, "a").data_bytes = f64::NAN;
    input.settings.limit = -1.0;
    input.in_flight = vec![running("nobody", "n1", "n2")];
    input.now = at(500);
    let PlanError::Input(errors) = plan(&input).unwrap_err() else { panic!("input errors") };
    let found = |wanted: fn(&InputError) -> bool| errors.0.iter().any(wanted);
    assert!(found(|e| matches!(e, InputError::UnknownNode { .. })));
    assert!(found(|e| matches!(e, InputError::Number { .. })));
    assert!(found(|e| matches!(e, InputError::Settings(_))));
    assert!(found(|e| matches!(e, InputError::InFlight { .. })));
    assert!(found(|e| matches!(e, InputError::Stale { .. })));
    assert_eq!(errors.0.len(), 5, "{errors}");
    let mut input = two_nodes(&[("a", "n1", 70.0)], RuleSwitches::default());
    input.topology.nodes.clear();
    input.placement = [(ShardId::residual(&node_id("n1")), node_id("n1"))].into_iter().collect();
    let set = &input.scenarios;
    let shape = (set.steps(), set.scenarios());
    let names = set.shards().to_vec();
    input.scenarios =
        ScenarioSet::new(set.issued_at(), set.step(), vec![Resource::Cpu], names, shape, vec![-1.0; 48]).unwrap();
    let PlanError::Input(errors) = plan(&input).unwrap_err() else { panic!("input errors") };
    assert_eq!(errors.0.len(), 4, "no node, unknown node, placed residual, negative load: {errors}");
}

#[test]
fn resources_add_and_any_of_them_can_ask() {
    let mut input = two_nodes(&[("a", "n1", 30.0), ("b", "n1", 30.0)], RuleSwitches::default());
    input.topology.nodes.iter_mut().for_each(|n| n.capacity.io = Some(1000.0));
    for id in ["a", "b"] {
        facts_of(&mut input, id).current = PerResource { cpu: 30.0, memory: 0.0, io: 600.0 };
    }
    let made = planned(&input);
    assert_eq!(made.moves.len(), 1);
    assert_eq!(made.moves[0].reason.resource, Some(Resource::Io));
}
