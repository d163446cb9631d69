//! The words of foreshard as plain types: identifiers, metrics and units, time, forecasts, scenarios, topology,
//! placement, move costs and what is recorded of moves.
//!
//! This crate performs no I/O, reads no clock but through [`Clock`], and depends on nothing but serde. Every other crate
//! speaks in these types, so that a load, a limit or an epoch means the same everywhere.

mod cost;
mod evaluation;
mod forecast;
mod ids;
mod levels;
mod metric;
mod observation;
mod outcome;
mod paths;
mod placement;
mod risk_calibration;
mod scenario;
mod time;
mod topology;

pub use cost::{BackendKind, Consistency, CostModel, CostTerms, MoveFeatures, MovePrediction};
pub use evaluation::{
    ClassFigure, Contender, ContenderRole, EvaluationReport, EvaluationSection, EventFigures, EventScores, Fact,
    FanWindow, GateVerdict, LevelFigure, LossRatio, NodeRiskFigures, RiskBin, Scores, SeriesClass, StepsFigure,
};
pub use forecast::{
    Calibration, Fallback, ForecastError, ModelVersion, Product, Provenance, QuantileForecast, SeriesForecast,
};
pub use ids::{GroupId, IdError, MigrationId, NodeId, PlanId, ShardId, ZoneId};
pub use levels::QuantileLevels;
pub use metric::{Metric, PerResource, Resource, UnknownName};
pub use observation::Observation;
pub use outcome::{DecisionRecord, Outcome, OutcomeResult};
pub use paths::{LoadPaths, Risk};
pub use placement::{Epoch, LeaderTerm, Owner, Placement, Revision};
pub use risk_calibration::{RiskCalibration, RiskCalibrations};
pub use scenario::{ScenarioError, ScenarioSet};
pub use time::{Clock, ManualClock, RealTime, ScaledClock, Step, SystemClock, Timestamp};
pub use topology::{
    Group, Link, MaintenanceWindow, Node, NodeState, Rule, Spread, Topology, TopologyError, TopologyErrors,
};
