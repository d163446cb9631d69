//! The planner: moves that improve the placement one by one, each at the time that suits it.
//!
//! Two states are kept. *Settled*: the shards are where the moves chosen so far put them, from now on. In it candidates
//! are compared and rules ask; it depends on nothing but the placement, so planning again on the result asks for
//! nothing new (P2). *Timed*: the moves happen when they are scheduled, their copies included. In it start times are
//! chosen and every prefix is held against capacity (P3). A candidate that is worth it settled but has no time is
//! deferred, and the report says so.

mod candidates;
mod evaluate;
mod finish;
mod headroom;
mod limits;
mod pairs;
mod reasons;
mod rules;
mod schedule;
mod search;

use serde::{Deserialize, Serialize};

use foreshard_domain::{IdError, NodeId, ShardId};

use crate::{InputErrors, Plan, PlanningInput, dense::Model};

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The input does not hold together.
    #[error("the planning input cannot be planned with")]
    Input(#[source] InputErrors),
    /// The fingerprint makes no identifier of a plan.
    #[error("the fingerprint of the input makes no plan id")]
    Id(#[source] IdError),
}

/// A move that would be worth it but found no time or no room under the limits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Deferred {
    /// The shard.
    pub shard: ShardId,
    /// The target.
    pub target: NodeId,
    /// Code of what stood in the way.
    pub code: String,
}

/// How a plan came about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PlanReport {
    /// Nodes that any rule asked for a move of, or that hold a shard that must not be there.
    pub nodes_asking: usize,
    /// Pairs of shard and target that were evaluated.
    pub evaluated: usize,
    /// Moves left for a later plan. When there are none, planning again on the result changes nothing.
    pub deferred: Vec<Deferred>,
}

/// A plan and how it came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// How it came about.
    pub report: PlanReport,
}

/// Makes a plan. Pure: equal inputs give equal plans (P1).
///
/// # Errors
/// [`PlanError`] with everything that is wrong with the input.
pub fn plan(input: &PlanningInput) -> Result<Planned, PlanError> {
    input.validate().map_err(PlanError::Input)?;
    plan_checked(input, input.fingerprint())
}

/// Makes a plan of an input that is known to be valid, under a fingerprint taken elsewhere.
pub(crate) fn plan_checked(input: &PlanningInput, fingerprint: String) -> Result<Planned, PlanError> {
    let model = Model::new(input);
    let mut search = search::Search::new(&model);
    search.run();
    let tabus = tabus(&search);
    let mut best = finish::finish(search, fingerprint.clone())?;
    for tabu in tabus {
        let mut search = search::Search::new(&model);
        search.tabu = Some(tabu);
        search.run();
        // What was left out is allowed again at the end, so that nothing worth it is left for the next plan (P2).
        search.tabu = None;
        search.run();
        let other = finish::finish(search, fingerprint.clone())?;
        best.report.evaluated += other.report.evaluated;
        if better(&other.plan, &best.plan) {
            best =
                Planned { plan: other.plan, report: PlanReport { evaluated: best.report.evaluated, ..other.report } };
        }
    }
    Ok(best)
}

/// What a search begins without when it is tried again: a choice of the first search, so that it takes another way. Only
/// where a search is small enough to be repeated.
fn tabus(search: &search::Search<'_, '_>) -> Vec<search::Tabu> {
    let limits = &search.model.input.settings.search;
    if search.evaluated > limits.repeat_below {
        return Vec::new();
    }
    let moves = || search.chosen.iter().filter(|c| c.because.is_none()).map(|c| &c.start.transfer);
    let targets = moves().map(|t| search::Tabu { shard: t.shard, target: Some(t.target) });
    let shards = moves().map(|t| search::Tabu { shard: t.shard, target: None });
    targets.chain(shards).take(limits.repeats).collect()
}

/// More of what must be done, then a higher net; what floats cannot tell apart is no better.
fn better(a: &Plan, b: &Plan) -> bool {
    let must = |p: &Plan| p.moves.iter().filter(|m| m.reason.rule == crate::RuleName::Constraint).count();
    let net = |p: &Plan| p.moves.iter().map(|m| m.expected_gain - m.expected_cost).sum::<f64>();
    must(a) > must(b) || (must(a) == must(b) && net(a) > net(b) + 1e-3)
}
