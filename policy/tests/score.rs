//! Decisions beside what came: on the counterfactual, and only where it is known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use foreshard_domain::{NodeId, Resource, ShardId, Step, Timestamp};
use foreshard_policy::{DecisionScores, Demand, PolicySettings, decisions, judge, plan};
use inputs::{NOW, constant, node, shard};

const WINDOW_MS: i64 = 24 * 300_000;

/// Constant demand of each shard; one of them may be unknown.
struct World {
    shards: Vec<(&'static str, &'static str, f64)>,
    unknown: Option<&'static str>,
}

impl Demand for World {
    fn step(&self) -> Step {
        Step::FIVE_MINUTES
    }

    fn shards_on(&self, node: &NodeId, at: Timestamp) -> Vec<ShardId> {
        assert_eq!(at, NOW, "the placement that counts is that of the decision");
        self.shards.iter().filter(|s| s.1 == node.as_str()).map(|s| shard(s.0)).collect()
    }

    fn demand(&self, shard: &ShardId, _: Resource, _: Timestamp) -> Option<f64> {
        let found = self.shards.iter().find(|s| s.0 == shard.as_str()).unwrap();
        (self.unknown != Some(found.0)).then_some(found.2)
    }

    fn capacity(&self, _: &NodeId, resource: Resource) -> Option<f64> {
        (resource == Resource::Cpu).then_some(100.0)
    }
}

fn settings() -> PolicySettings {
    let mut settings = PolicySettings { foresight_half_life_ms: 0, ..PolicySettings::default() };
    settings.rules.proactive_balancing = false;
    settings
}

/// n1 is said to run at 120 %, and one of its shards is moved to n2.
fn records() -> Vec<foreshard_domain::DecisionRecord> {
    let nodes = vec![node("n1", "z", 100.0), node("n2", "z", 100.0)];
    let input = constant(nodes, &[("a", "n1", 60.0), ("b", "n1", 60.0), ("c", "n2", 10.0)], settings());
    let planned = plan(&input).unwrap();
    assert_eq!(planned.plan.moves.len(), 1);
    decisions(&input, &planned, None)
}

fn scores(world: &World) -> DecisionScores {
    DecisionScores::of(&judge(&records(), world, WINDOW_MS, &settings()))
}

#[test]
fn an_overload_that_a_move_avoided_is_no_false_alarm() {
    let scores =
        scores(&World { shards: vec![("a", "n1", 60.0), ("b", "n1", 60.0), ("c", "n2", 10.0)], unknown: None });
    assert_eq!((scores.risks, scores.moves, scores.harmful), (1, 1, 0));
    assert_eq!(scores.brier, Some(0.0));
    assert_eq!((scores.reliability[0].said, scores.reliability[0].came), (1.0, 1.0));
    // 20 % too much for two hours, and a tenth for each minute of being over at all; the copy takes a step of what was
    // expected.
    assert!((scores.realised_gain - (0.2 + 0.1) * 120.0).abs() < 1e-9, "{scores:?}");
    assert!(scores.expected_gain > 0.9 * scores.realised_gain && scores.expected_gain <= scores.realised_gain + 1e-3);
}

#[test]
fn an_alarm_without_a_fire_and_a_move_that_harmed_are_told() {
    // Both shards of n1 stay small, and n2 is what runs hot with one more.
    let scores =
        scores(&World { shards: vec![("a", "n1", 40.0), ("b", "n1", 40.0), ("c", "n2", 90.0)], unknown: None });
    assert_eq!((scores.brier, scores.brier_of_rate), (Some(1.0), Some(0.0)));
    assert_eq!((scores.moves, scores.harmful), (1, 1));
    assert!((scores.realised_gain + (0.3 + 0.1) * 120.0).abs() < 1e-9, "{scores:?}");
}

#[test]
fn what_cannot_be_known_is_left_out() {
    let shards = || vec![("a", "n1", 60.0), ("b", "n1", 60.0), ("c", "n2", 10.0)];
    for id in ["a", "b"] {
        assert_eq!(scores(&World { shards: shards(), unknown: Some(id) }).risks, 0);
    }
    // The risk of n1 is known without n2, the gain of the move is not.
    let scores = scores(&World { shards: shards(), unknown: Some("c") });
    assert_eq!((scores.risks, scores.moves), (1, 0));
    assert_eq!(DecisionScores::of(&[]), DecisionScores::default());
}
