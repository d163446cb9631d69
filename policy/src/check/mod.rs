//! The independent checker (P4): replays a plan move by move and accepts or refuses it.
//!
//! It shares the plan's and the input's types with the planner and nothing else: loads are summed here per scenario in
//! `f64`, quantiles are read off sorted rows, constraints are spelled out again.

mod figures;
mod replay;
mod rules;

use foreshard_domain::{Placement, ShardId};
use serde::{Deserialize, Serialize};
use std::fmt;

use crate::{FORMAT, Plan, PlanningInput};

/// What was checked of a plan that was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Moves, and so prefixes, that were replayed.
    pub moves: usize,
    /// Where the shards are when the plan has been carried out.
    pub placement: Placement,
    /// Sum of gains less sum of costs, recomputed, overload minutes.
    pub net_gain: f64,
}

/// One thing that is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// Stable code.
    pub code: String,
    /// The shard whose move it is, if it is about one.
    pub shard: Option<ShardId>,
    /// What is wrong, with figures.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shard {
            Some(shard) => write!(f, "{}: move of {shard}: {}", self.code, self.text),
            None => write!(f, "{}: {}", self.code, self.text),
        }
    }
}

impl std::error::Error for Violation {}

/// Collects violations.
#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn plan(&mut self, code: &str, text: String) {
        self.0.push(Violation { code: code.to_owned(), shard: None, text });
    }

    fn of(&mut self, shard: &ShardId, code: &str, text: String) {
        self.0.push(Violation { code: code.to_owned(), shard: Some(shard.clone()), text });
    }
}

/// Checks a plan against the input that it was made from: format, parent and freshness; every prefix against
/// constraints, limits and capacity; and the gains and costs that it claims.
///
/// # Errors
/// Everything that is wrong.
pub fn check(input: &PlanningInput, plan: &Plan) -> Result<CheckReport, Vec<Violation>> {
    let mut found = Found::default();
    if let Err(errors) = input.validate() {
        errors.0.iter().for_each(|error| found.plan("input", error.to_string()));
        return Err(found.0);
    }
    head(input, plan, &mut found);
    rules::check(input, plan, &mut found);
    // Loads can only be replayed if the moves name what exists and start where the shards are.
    if found.0.iter().any(|v| rules::STRUCTURAL.contains(&v.code.as_str())) {
        return Err(found.0);
    }
    let net_gain = replay::check(input, plan, &mut found);
    if !found.0.is_empty() {
        return Err(found.0);
    }
    let mut placement = input.placement.clone();
    for m in &plan.moves {
        placement.assign(m.shard.clone(), m.target.clone());
    }
    Ok(CheckReport { moves: plan.moves.len(), placement, net_gain })
}

fn head(input: &PlanningInput, plan: &Plan, found: &mut Found) {
    if plan.format != FORMAT {
        found.plan("format", format!("the plan has format {}, known is {FORMAT}", plan.format));
    }
    if plan.parent != input.parent {
        let name = |p: &Option<foreshard_domain::PlanId>| p.as_ref().map_or("none".to_owned(), ToString::to_string);
        found.plan("parent", format!("its parent is {}, in force is {}", name(&plan.parent), name(&input.parent)));
    }
    let fingerprint = input.fingerprint();
    if plan.input_fingerprint != fingerprint {
        let theirs = &plan.input_fingerprint;
        found.plan("input_fingerprint", format!("it was made from another input: {theirs}, not {fingerprint}"));
    }
    let id = Plan::content_id(&plan.input_fingerprint, &plan.moves);
    if plan.id.as_str() != id {
        found.plan("id", format!("{} does not follow from the fingerprint and the moves, {id} does", plan.id));
    }
    if plan.created_at != input.now {
        found.plan("created_at", format!("it says {}, the input {}", plan.created_at, input.now));
    }
    let order = |m: &crate::Move| (m.start, m.shard.clone());
    if plan.moves.windows(2).any(|pair| order(&pair[0]) > order(&pair[1])) {
        found.plan("order", "the moves are not in the order of their starts".to_owned());
    }
    let most = input.settings.moves_per_plan;
    if plan.moves.len() > most {
        found.plan("moves_per_plan", format!("{} moves, allowed are {most}", plan.moves.len()));
    }
}
