//! Records of what was considered for each shard, to be scored later against what really happened.

use foreshard_domain::{DecisionRecord, ModelVersion, NodeId, Resource, ShardId};
use std::collections::BTreeMap;

use crate::{Considered, Plan, Planned, PlanningInput, Refused};

/// One record for each shard that moves or was considered, by shard.
///
/// The risks are those of the shard's present node over the planning window: on the unmoved placement, and with the
/// whole plan carried out. For a shard that stays, gain and cost are those of its best target, as far as it was scored.
pub fn decisions(input: &PlanningInput, planned: &Planned, version: Option<ModelVersion>) -> Vec<DecisionRecord> {
    let plan = &planned.plan;
    let mut by_shard: BTreeMap<&ShardId, Vec<&Considered>> = BTreeMap::new();
    plan.considered.iter().for_each(|c| by_shard.entry(&c.shard).or_default().push(c));
    for m in &plan.moves {
        by_shard.entry(&m.shard).or_default();
    }
    let records = by_shard.into_iter().filter_map(|(shard, considered)| {
        let source = input.placement.node_of(shard)?.clone();
        let (risk_unmoved, risk_chosen) = risks(plan, &source);
        let moved = plan.moves.iter().find(|m| m.shard == *shard);
        let (decision, expected_gain, expected_cost) = match moved {
            Some(m) => ("move".to_owned(), m.expected_gain, m.expected_cost),
            None => stay(&considered),
        };
        Some(DecisionRecord {
            plan: plan.id.clone(),
            decided_at: plan.created_at,
            shard: shard.clone(),
            source,
            target: moved.map(|m| m.target.clone()),
            decision,
            rule: moved.map(|m| m.reason.rule.name().to_owned()),
            risk_unmoved,
            risk_chosen,
            expected_gain,
            expected_cost,
            version: version.clone(),
        })
    });
    records.collect()
}

/// Highest probability over the resources of a node, before and after.
fn risks(plan: &Plan, node: &NodeId) -> (f64, f64) {
    let Some(risk) = plan.nodes.iter().find(|n| n.node == *node) else { return (0.0, 0.0) };
    let highest =
        |per: foreshard_domain::PerResource<f64>| Resource::ALL.into_iter().map(|r| per[r]).fold(0.0, f64::max);
    (highest(risk.before), highest(risk.after))
}

/// Why a shard stays, by its best target: considered targets are listed best first.
fn stay(considered: &[&Considered]) -> (String, f64, f64) {
    match considered.first().map(|c| &c.outcome) {
        Some(Ok(score)) => ("not_chosen".to_owned(), score.gain, score.cost),
        Some(Err(Refused::NotWorthIt { gain, needed })) => ("not_worth_it".to_owned(), *gain, *needed),
        Some(Err(refused)) => (refused.code().to_owned(), 0.0, 0.0),
        None => ("not_considered".to_owned(), 0.0, 0.0),
    }
}
