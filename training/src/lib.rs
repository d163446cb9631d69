//! How models are learned and judged: fitting, rolling-origin evaluation, the gate, the registry, and the cost model of
//! moves.

mod backtest;
mod card;
mod checkpoint;
mod cost;
mod drift;
mod each;
mod evaluate;
mod fit;
mod gate;
mod judge;
mod labels;
mod local;
mod node_risk;
mod numbered;
mod pipeline;
mod registry;
mod rivals;
mod schedule;
mod scores;
mod significance;
mod statistics;
mod steadiness;

pub use backtest::{BacktestPlan, LaidSeries, MetricBacktest, MetricWindows, SkippedProduct, run_backtest};
pub use checkpoint::CheckpointError;
pub use cost::{
    CostEvidence, CostFitError, CostRegistry, CostRegistryError, CostVerdict, PRIOR_WEIGHT, fit_cost_model,
    judge_cost_model,
};
pub use drift::{DriftError, DriftLimits, DriftReport, LiveFigures, Stability, drift};
pub use evaluate::{Entrant, EvaluateError, Evaluation, EventProbability, evaluate, section};
pub use fit::{
    AdamW, Average, CheckpointPolicy, FitControl, FitProgress, FittedModel, FittedProduct, MemberSpec, ProductSpec,
    SeriesSource, TrainError, TrainErrors, TrainParams, TrainProblem, TrainSeries, TrainSpec, fit, learning_rate,
};
pub use gate::{ClassRatio, Contest, GateLimits, gate};
pub use judge::Judged;
pub use labels::Labels;
pub use local::{PROPHET, mstl};
pub use node_risk::{NodeRiskSpec, node_risk};
pub use numbered::{FileError, Reservation};
pub use pipeline::{PipelineError, TrainOptions, TrainReport, train_version, train_version_of};
pub use registry::{Registry, RegistryError, TrainingTurn, VersionEntry};
pub use schedule::{Schedule, ScheduleError};
pub use scores::{ScoreError, ScoredSeries, SeriesScores, score};
pub use steadiness::Steadiness;
