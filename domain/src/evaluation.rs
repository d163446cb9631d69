//! What an evaluation found, as plain data: figures, verdict and the windows worth looking at.
//!
//! `training` fills it, `report` draws it, `report.json` of a version folder holds it.

use serde::{Deserialize, Serialize};

use crate::{Metric, QuantileForecast, ShardId, Step, Timestamp};

/// A figure of one quantile level.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelFigure {
    /// The level.
    pub level: f64,
    /// The figure.
    pub value: f64,
}

/// A figure of a block of steps of the horizon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepsFigure {
    /// First step of the block, counted from 1.
    pub first: usize,
    /// Last step of the block.
    pub last: usize,
    /// The figure; `None` where nothing was observed (or demanded) in the block.
    pub value: Option<f64>,
}

/// What a series is like, by its values before it is forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeriesClass {
    /// Less than two weeks are known of it.
    Young,
    /// It repeats itself from season to season.
    Rhythmic,
    /// It does not, but moves little from step to step.
    Wandering,
    /// Neither.
    Erratic,
}

impl SeriesClass {
    /// All of them, in the order of reports.
    pub const ALL: [SeriesClass; 4] =
        [SeriesClass::Young, SeriesClass::Rhythmic, SeriesClass::Wandering, SeriesClass::Erratic];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            SeriesClass::Young => "young",
            SeriesClass::Rhythmic => "rhythmic",
            SeriesClass::Wandering => "wandering",
            SeriesClass::Erratic => "erratic",
        }
    }
}

/// A figure of one class of series.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassFigure {
    /// The class.
    pub class: SeriesClass,
    /// Series of it.
    pub series: usize,
    /// The figure; `None` where nothing was demanded.
    pub value: Option<f64>,
}

/// A ratio of two losses and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRatio {
    /// The ratio.
    pub ratio: f64,
    /// Nineteen in twenty resamples of series and windows give more.
    pub low: f64,
    /// Nineteen in twenty give less.
    pub high: f64,
}

/// Figures of a set of forecasts over all series and windows. Lower is better but for coverage, whose goal is .80.
///
/// Losses are twice the pinball loss, averaged over the levels .1 to .9. A figure is `None` where its denominator is
/// zero: no demand in any window, or no series with a scale.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Series scored.
    pub series: usize,
    /// Windows of each.
    pub windows: usize,
    /// Steps of a window.
    pub horizon: usize,
    /// Observed steps.
    pub points: usize,
    /// Steps without an observation; they take part in nothing.
    pub missing_points: usize,
    /// Loss summed over everything, over the sum of |y|.
    pub wql: Option<f64>,
    /// Mean over series of the mean loss in units of the series' scale (mean |y(t) - y(t - season)| before the windows).
    pub sql: Option<f64>,
    /// Median over series of the same.
    pub sql_median: Option<f64>,
    /// Geometric mean over series of the same, each counted as at least .001.
    pub sql_geo: Option<f64>,
    /// Mean over series of the mean |y - q.5| in units of the scale.
    pub mase: Option<f64>,
    /// Median over series of the same.
    pub mase_median: Option<f64>,
    /// Series that never changed from one season to the next, left out of the scaled figures.
    pub series_without_scale: usize,
    /// Share of observed steps with q.1 <= y <= q.9.
    pub coverage_80: Option<f64>,
    /// Sum of q.9 - q.1 over the sum of |y|.
    pub width_80: Option<f64>,
    /// WQL of each forecast level.
    pub wql_by_level: Vec<LevelFigure>,
    /// Share of observed steps at or below the quantile of each level; a calibrated forecast has the level itself.
    pub below_by_level: Vec<LevelFigure>,
    /// WQL of blocks of steps.
    pub wql_by_steps: Vec<StepsFigure>,
    /// `coverage_80` of the same blocks.
    pub coverage_by_steps: Vec<StepsFigure>,
    /// WQL of each class that has a series.
    #[serde(default)]
    pub wql_by_class: Vec<ClassFigure>,
    /// How well the event "any step of the window is over the limit" was foreseen; `None` where the protocol has none.
    pub event: Option<EventScores>,
}

/// How well an event of a window was foreseen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventScores {
    /// Windows with at least half of their steps observed; only these count.
    pub windows: usize,
    /// Share of them in which it happened.
    pub rate: f64,
    /// Mean squared difference of probability and event.
    pub brier: EventFigures,
    /// Mean of the probabilities.
    pub mean_probability: EventFigures,
}

/// A figure for each way of stating the probability of an event.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventFigures {
    /// As given with the forecast, from joint paths.
    pub p_any: Option<f64>,
    /// From the quantiles, as if steps were independent.
    pub independent: f64,
    /// The largest probability of a single step.
    pub max_marginal: f64,
    /// The share of earlier windows of the series in which it happened.
    pub climatology: f64,
}

/// What a contender is in a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContenderRole {
    /// The one that the report is about.
    Subject,
    /// The version in use.
    Champion,
    /// Yesterday repeats: what everything is measured against.
    SeasonalNaive,
    /// Any other.
    Rival,
}

/// Somebody's forecasts of the same windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    /// Its name.
    pub name: String,
    /// What it is here.
    pub role: ContenderRole,
    /// Its figures.
    pub scores: Scores,
    /// The subject's loss over this one's, below 1 where the subject is better; `None` for the subject itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_to_it: Option<LossRatio>,
}

/// One window of one series: what was known, what was forecast, what came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FanWindow {
    /// Why it is shown, such as "median window".
    pub caption: String,
    /// Whose.
    pub shard: ShardId,
    /// Of what.
    pub metric: Metric,
    /// Time of the last value of `history`.
    pub issued_at: Timestamp,
    /// Length of a step.
    pub step: Step,
    /// The last values before the window, `None` where missing.
    pub history: Vec<Option<f32>>,
    /// What came, `None` where missing.
    pub actual: Vec<Option<f32>>,
    /// What was forecast.
    pub forecast: QuantileForecast,
    /// Loss of this window over its demand.
    pub wql: Option<f64>,
}

/// Contenders compared on the same windows: one product and metric, or one protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSection {
    /// What was forecast, such as "next_hours, cpu_util".
    pub name: String,
    /// Length of a step.
    pub step: Step,
    /// The subject first.
    pub contenders: Vec<Contender>,
    /// Windows of the subject.
    pub fans: Vec<FanWindow>,
    /// How well the subject foretold the risk of groups of shards; left out where it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_risk: Option<NodeRiskFigures>,
}

/// How well the risk of random groups of shards was foretold, each group as if it shared a node whose limit is a quantile of its
/// own summed past. The event: any step of the window is over the limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRiskFigures {
    /// Groups that were drawn.
    pub groups: usize,
    /// Windows of groups that could be judged.
    pub windows: usize,
    /// Share of them with the event.
    pub observed: f64,
    /// Brier score of the probability from joint scenarios.
    pub joint: f64,
    /// The same from 1 - product of (1 - probability of the step), shards independent of each other.
    pub independent: f64,
    /// The same from the largest probability of a single step, shards independent of each other.
    pub max_marginal: f64,
    /// Windows by the probability from joint scenarios, in rising order; bins without a window are left out.
    pub bins: Vec<RiskBin>,
}

/// Windows whose probability was foretold alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskBin {
    /// How many.
    pub windows: usize,
    /// Their mean probability.
    pub predicted: f64,
    /// Share of them with the event.
    pub observed: f64,
}

/// A name and what it stands for, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// Such as "trained until".
    pub name: String,
    /// Such as "2024-05-01T00:00:00Z".
    pub value: String,
}

/// Whether a version may become champion, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateVerdict {
    /// Whether it passed.
    pub promoted: bool,
    /// One sentence a check, failed ones first.
    pub reasons: Vec<String>,
}

/// Everything that a report of an evaluation shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationReport {
    /// Its heading.
    pub title: String,
    /// Where the figures come from: version, data, times, seed.
    pub provenance: Vec<Fact>,
    /// The gate's verdict, where one was asked for.
    pub verdict: Option<GateVerdict>,
    /// The comparisons.
    pub sections: Vec<EvaluationSection>,
    /// What was left out and why, and other remarks.
    pub notes: Vec<String>,
}
