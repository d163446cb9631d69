//! How models are learned and judged: fitting, rolling-origin evaluation, the gate, the registry, and the cost model of
//! moves.

mod checkpoint;
mod cost;
mod fit;
mod gate;
mod labels;
mod numbered;
mod scores;
mod statistics;

pub use checkpoint::CheckpointError;
pub use cost::{
    CostEvidence, CostFitError, CostRegistry, CostRegistryError, CostVerdict, PRIOR_WEIGHT, fit_cost_model,
    judge_cost_model,
};
pub use fit::{
    AdamW, Average, CheckpointPolicy, FitControl, FitProgress, FittedModel, FittedProduct, MemberSpec, ProductSpec,
    TrainError, TrainErrors, TrainParams, TrainProblem, TrainSeries, TrainSpec, fit, learning_rate,
};
pub use gate::{Contest, GateLimits, gate};
pub use labels::Labels;
pub use numbered::{FileError, Reservation};
pub use scores::{ScoreError, ScoredSeries, SeriesScores, score};
