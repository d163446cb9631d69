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
use finish::{Appended, finish};
use search::{Search, Tabu};

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
    let untouched = Search::new(&model);
    let mut first = untouched.clone();
    first.run();
    let tabus = tabus(&first);
    let mut evaluated = first.evaluated;
    let budget = evaluated.saturating_add(input.settings.search.repeat_evaluations);
    let mut best = Appended::new(first);
    for tabu in tabus {
        if evaluated >= budget || !leaves_something(&best) {
            break;
        }
        let mut search = untouched.clone();
        search.tabu = Some(tabu);
        search.run();
        // What was left out is allowed again at the end, so that nothing worth it is left for the next plan (P2).
        search.tabu = None;
        search.run();
        evaluated += search.evaluated;
        let other = Appended::new(search);
        if other.better_than(&best) {
            best = other;
        }
    }
    best.search.evaluated = evaluated;
    finish(best, fingerprint)
}

/// Share of what a plan nets that another must be able to net more, for a search for it to be worth its time.
const WORTH_A_SEARCH: f64 = 0.05;

/// Whether another plan could be better by as much as one move must gain.
fn leaves_something(plan: &Appended<'_, '_>) -> bool {
    let settings = &plan.search.model.input.settings;
    plan.could_net_more() > settings.needed(settings.churn_weight).max(plan.net() * WORTH_A_SEARCH)
}

/// What a search begins without when it is tried again: a choice of the first search, so that it takes another way. Only
/// where a search is small enough to be repeated.
fn tabus(search: &Search<'_, '_>) -> Vec<Tabu> {
    let limits = &search.model.input.settings.search;
    if search.evaluated > limits.repeat_evaluations {
        return Vec::new();
    }
    let moves = || search.chosen.iter().filter(|c| c.because.is_none()).map(|c| &c.start.transfer);
    let targets = moves().map(|t| Tabu { shard: t.shard, target: Some(t.target) });
    let shards = moves().map(|t| Tabu { shard: t.shard, target: None });
    targets.chain(shards).take(limits.repeats).collect()
}
