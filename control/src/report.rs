//! What one turn of the loop did, for whoever prints or tests it.

use foreshard_domain::{MigrationId, ModelVersion, Outcome, ShardId, Timestamp};
use foreshard_policy::{Plan, PlanReport};

use crate::ControlError;

/// What a plan rests on.
#[derive(Debug, Clone, PartialEq)]
pub enum Foresight {
    /// Scenarios of serving.
    Forecast {
        /// The version that made them; `None` if none is loaded and fallbacks answered.
        version: Option<ModelVersion>,
        /// Series that a fallback answered for.
        fallbacks: usize,
        /// Shards without any scenario: their load stays as last observed.
        flat: Vec<ShardId>,
    },
    /// Serving could not be asked: every load stays as last observed, so the plan only reacts.
    LastObserved {
        /// Why serving could not be asked.
        why: String,
    },
}

/// What became of one round of planning.
#[derive(Debug)]
pub struct PlanRound {
    /// The plan.
    pub plan: Plan,
    /// What the planner considered.
    pub report: PlanReport,
    /// What it rests on.
    pub foresight: Foresight,
    /// What became of it.
    pub fate: PlanFate,
}

/// What became of a plan.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanFate {
    /// It is in force; in `advise` nothing is moved all the same.
    Accepted,
    /// It says what the plan in force says, or nothing; the plan in force stays.
    Unneeded,
    /// The independent checker refused it (P4); it never runs. All violations, in words.
    Refused(Vec<String>),
    /// Another plan came into force since this one was made.
    Overtaken,
}

/// One turn of the loop.
#[derive(Debug, Default)]
pub struct TickReport {
    /// Model time of the turn.
    pub now: Timestamp,
    /// Rows observed.
    pub observed: usize,
    /// Rows that serving took.
    pub ingested: usize,
    /// Rows that wait for serving.
    pub waiting: usize,
    /// Rows given up because the buffer was full.
    pub dropped: u64,
    /// The round of planning, if one was due.
    pub planned: Option<PlanRound>,
    /// Migrations that were started.
    pub started: Vec<MigrationId>,
    /// Migrations that ended.
    pub ended: Vec<Outcome>,
    /// What went wrong without stopping the loop; each was logged once.
    pub problems: Vec<ControlError>,
}

impl Foresight {
    /// The version whose forecast was used.
    pub fn version(&self) -> Option<ModelVersion> {
        match self {
            Foresight::Forecast { version, .. } => version.clone(),
            Foresight::LastObserved { .. } => None,
        }
    }

    pub(crate) fn with_flat(self, filled: Vec<ShardId>) -> Self {
        match self {
            Foresight::Forecast { version, fallbacks, .. } => Foresight::Forecast { version, fallbacks, flat: filled },
            Foresight::LastObserved { why } => Foresight::LastObserved { why },
        }
    }
}

impl TickReport {
    /// Logs a problem, the only time, and keeps it.
    pub(crate) fn note(&mut self, problem: ControlError) {
        tracing::warn!(causes = causes(&problem), "{problem}");
        self.problems.push(problem);
    }
}

/// What an error comes from, down to the root, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(error.source(), |cause| cause.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
