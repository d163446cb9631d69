//! Why a simulation is refused or fails.

use foreshard_domain::{IdError, ScenarioError, ShardId, Timestamp};

use super::SourceError;
use crate::{InputErrors, PlanError, SettingsError};

/// Why a simulation is refused or fails.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The loads do not have the shape that they say.
    #[error("{got} load values given, {want} wanted ({what})")]
    Shape {
        /// Given.
        got: usize,
        /// Wanted.
        want: usize,
        /// What they are made of.
        what: String,
    },
    /// A load is negative or infinite.
    #[error("shard {shard} has a load of {value}; loads must be finite and not negative")]
    Load {
        /// The shard.
        shard: ShardId,
        /// The value.
        value: f32,
    },
    /// The history is too short to be cut in two.
    #[error("the history has {steps} steps after shifting, at least {least} are needed; give a longer one")]
    Short {
        /// Steps.
        steps: usize,
        /// Least number.
        least: usize,
    },
    /// A figure of the simulation is out of range.
    #[error("{name} is {value}, it must be {wanted}")]
    Spec {
        /// Which.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What would do.
        wanted: &'static str,
    },
    /// Settings of the planner are out of range.
    #[error("the settings of the planner are out of range: {}", list(.0))]
    Settings(Vec<SettingsError>),
    /// An identifier could not be made.
    #[error("a node of the simulation has no valid name")]
    Id(#[source] IdError),
    /// Scenarios of the simulation's own could not be made.
    #[error("the scenarios of a built-in policy have no valid shape")]
    Scenarios(#[source] ScenarioError),
    /// A source of scenarios failed.
    #[error("no scenarios at {at}")]
    Source {
        /// When.
        at: Timestamp,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// The scenarios of a source do not fit the simulation.
    #[error("the scenarios given at {at} cannot be planned with")]
    Input {
        /// When.
        at: Timestamp,
        /// Why.
        #[source]
        source: InputErrors,
    },
    /// The planner failed.
    #[error("no plan at {at}")]
    Plan {
        /// When.
        at: Timestamp,
        /// Why.
        #[source]
        source: PlanError,
    },
    /// There is nothing to tune on.
    #[error("tuning needs at least one cell, one trigger and three gain thresholds")]
    NothingToTune,
    /// The best gain threshold is the least or the greatest that was tried.
    #[error("the best gain threshold, {best}, lies on the edge of the grid {grid:?}; widen the grid")]
    OnEdge {
        /// The best.
        best: f64,
        /// The grid.
        grid: Vec<f64>,
    },
}

fn list(errors: &[SettingsError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
