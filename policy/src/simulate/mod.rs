//! Replaying a history under a policy: what would it have done, and what would the nodes have suffered.
//!
//! Shards are series on a grid; moves and overload are accounted by the minute; a policy decides at every step and sees
//! only completed ones. The first half of a history is for training and tuning, the second is replayed. Capacities are
//! facts of the replayed half and input of no forecast. Every policy starts from where `reactive` leaves the cluster
//! after the last days of the first half, so that none gains by mending a careless start.

mod bars;
mod cell;
mod engine;
mod error;
mod fixed;
mod loads;
mod measure;
mod report;
mod ridge;
mod sources;
mod truth;
mod tune;

use std::ops::Range;

use crate::PolicySettings;

pub use bars::{Bars, COUNTABLE, CellBars, PolicyBars, bars};
pub use cell::{Cell, SimSpec};
pub use error::SimError;
pub use loads::{Seen, SimLoads};
pub use report::{Balance, LeadTime, SimMove, SimReport};
pub use ridge::{RidgeModel, RidgePaths, RidgeSpec};
pub use sources::{LastObserved, ScenarioSource, SourceError, TrueFuture, Yesterday};
pub use tune::{SourceOf, Tried, TuneGrid, Tuned, tune_predictive, tune_reactive};

use engine::State;

/// Who decides.
pub enum SimPolicy<'a> {
    /// Nobody.
    None,
    /// The planner, believing that every load stays as last observed.
    Reactive,
    /// The planner, believing that yesterday repeats.
    Seasonal,
    /// The planner, knowing the future.
    Oracle,
    /// Nobody, from the best placement that a search finds with the whole replay known.
    Static,
    /// The planner with scenarios of the caller's.
    Predictive(&'a mut dyn ScenarioSource),
}

impl SimPolicy<'_> {
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            SimPolicy::None => "none",
            SimPolicy::Reactive => "reactive",
            SimPolicy::Seasonal => "seasonal",
            SimPolicy::Oracle => "oracle",
            SimPolicy::Static => "static",
            SimPolicy::Predictive(_) => "predictive",
        }
    }
}

/// The settings of the planner from which tuning begins: the rules that act on overload. Balancing for its own sake is
/// off, since only overload and moves are counted. So are repeated searches: a replay plans again at every step, which
/// does as much for its moves, and most of its plans have none that starts before the next. For the same reason a move
/// binds capacity no longer than until its shard could move again, which is more than this hour.
pub fn base_settings() -> PolicySettings {
    let mut settings = PolicySettings::default();
    settings.rules.proactive_balancing = false;
    settings.search.repeats = 0;
    settings.capacity_window_ms = 3_600_000;
    settings
}

/// Replays the second half of a cell. `reactive` are the settings of the run that makes the starting placement and of
/// the policy `reactive` itself; `settings` are those of the policy that is simulated.
///
/// # Errors
/// [`SimError`] if the settings are out of range or a source of scenarios fails.
pub fn simulate(
    cell: &Cell,
    policy: SimPolicy<'_>,
    reactive: &PolicySettings,
    settings: &PolicySettings,
) -> Result<SimReport, SimError> {
    let mut state = settle(cell, reactive, cell.half())?;
    replay(cell, policy, settings, &mut state, cell.half()..cell.steps())
}

/// Replays the steps on which settings are tuned: the last third of the first half, from where `reactive` leaves the cluster
/// before them.
///
/// # Errors
/// [`SimError`] if the settings are out of range or a source of scenarios fails.
pub fn simulate_tuning(
    cell: &Cell,
    policy: SimPolicy<'_>,
    reactive: &PolicySettings,
    settings: &PolicySettings,
) -> Result<SimReport, SimError> {
    let mut state = settle(cell, reactive, cell.tuning().start)?;
    replay(cell, policy, settings, &mut state, cell.tuning())
}

/// Where `reactive` leaves the cluster at a step, after the last days before it, from the ring.
pub(crate) fn settle(cell: &Cell, reactive: &PolicySettings, until: usize) -> Result<State, SimError> {
    let mut state = State::new(cell);
    let from = until.saturating_sub(cell.start_steps());
    replay(cell, SimPolicy::Reactive, reactive, &mut state, from..until)?;
    state.finish_running();
    Ok(state)
}

/// Replays some steps from a state.
pub(crate) fn replay(
    cell: &Cell,
    policy: SimPolicy<'_>,
    settings: &PolicySettings,
    state: &mut State,
    span: Range<usize>,
) -> Result<SimReport, SimError> {
    let name = policy.name();
    let (horizon, outlook) = (cell.spec().horizon, cell.spec().outlook);
    let (mut last, mut yesterday, mut future);
    let source: Option<&mut dyn ScenarioSource> = match policy {
        SimPolicy::None => None,
        SimPolicy::Static => {
            state.place(fixed::best(cell, span.clone()));
            None
        }
        SimPolicy::Reactive => {
            last = LastObserved { horizon };
            Some(&mut last)
        }
        SimPolicy::Seasonal => {
            yesterday = Yesterday { horizon: outlook };
            Some(&mut yesterday)
        }
        SimPolicy::Oracle => {
            future = TrueFuture::new(cell.loads().clone(), outlook);
            Some(&mut future)
        }
        SimPolicy::Predictive(source) => Some(source),
    };
    engine::run(cell, name, source, settings, state, span)
}
