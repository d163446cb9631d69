//! Whether what a version learned still holds: the loads themselves, its losses, its coverage, and who is there.
//!
//! Everything is compared with the days on which the version was judged before it served, so that a version is measured by
//! its own promise. Nothing is concluded of losses and coverage from fewer than [`LEAST_WINDOWS`] windows.

mod cusum;
mod live;
mod stability;

use foreshard_datasets::{BoundedHistory, EventCalendar, HistoryError};
use foreshard_domain::{Metric, ModelVersion, Timestamp};
use foreshard_model::{JudgedSpan, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::backtest::end_of;
use crate::evaluate::EvaluateError;

use self::live::Live;
use self::stability::stability;

/// Least windows after a version was made before its losses and coverage say anything.
const LEAST_WINDOWS: usize = 4;

/// From where on a version counts as no longer fit for the loads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriftLimits {
    /// Population stability index of a metric: .1 is a slight change of its distribution, .25 a marked one.
    pub population_stability: f64,
    /// Sum of standardised losses beside seasonal naive beyond what is usual (CUSUM), in standard deviations.
    pub cusum: f64,
    /// Least coverage of the .1 to .9 interval since it was made.
    pub least_coverage: f64,
    /// Highest coverage of the same.
    pub most_coverage: f64,
    /// Share of shards that were not there when it was trained.
    pub unseen: f64,
    /// How long ago its history may have ended.
    #[serde(with = "humantime_serde")]
    pub oldest: Duration,
}

impl Default for DriftLimits {
    fn default() -> Self {
        Self {
            population_stability: 0.25,
            cusum: 5.0,
            least_coverage: 0.65,
            most_coverage: 0.95,
            unseen: 0.2,
            oldest: Duration::from_secs(30 * 86_400),
        }
    }
}

/// How a version did on one metric of one product since it was made, beside how it did when it was judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LiveFigures {
    /// The product.
    pub product: String,
    /// The metric.
    pub metric: Metric,
    /// Windows since, one after the other, of the series with the most.
    pub windows: usize,
    /// WQL when it was judged.
    pub wql_before: Option<f64>,
    /// WQL since.
    pub wql_since: Option<f64>,
    /// WQL of seasonal naive when it was judged.
    pub naive_before: Option<f64>,
    /// The same since.
    pub naive_since: Option<f64>,
    /// Coverage of the 80 % interval when it was judged.
    pub coverage_before: Option<f64>,
    /// The same since.
    pub coverage_since: Option<f64>,
    /// CUSUM, as it stands now, of the losses over those of seasonal naive, standardised; `None` where too little was judged to
    /// know what is usual.
    pub cusum: Option<f64>,
}

/// How far a metric's values lie from where they lay at the same times of the week before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stability {
    /// The metric.
    pub metric: Metric,
    /// Population stability index over the deciles of each series; `None` with less than a day to compare.
    pub index: Option<f64>,
}

/// What was looked at, and what of it is beyond its limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DriftReport {
    /// The version.
    pub version: ModelVersion,
    /// Where its history ended.
    pub since: Timestamp,
    /// Where the history ends now.
    pub until: Timestamp,
    /// How it did, by product and metric.
    pub live: Vec<LiveFigures>,
    /// Where the loads lie, by metric.
    pub stability: Vec<Stability>,
    /// Shards that were not there when it was trained.
    pub unseen_shards: usize,
    /// Shards that have values since.
    pub shards: usize,
    /// What is beyond its limit, in words; empty if nothing is.
    pub reasons: Vec<String>,
}

impl DriftReport {
    /// Whether anything is beyond its limit.
    pub fn drifted(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// Why drift cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// The version does not say what it was judged on.
    #[error(
        "version {version} was written without saying what it was judged on, so nothing can be compared with it: train anew"
    )]
    NotJudged {
        /// The version.
        version: ModelVersion,
    },
    /// There is nothing in the history.
    #[error("the history holds no rows")]
    Empty,
    /// The history could not be read.
    #[error("cannot read the history")]
    History(#[from] HistoryError),
    /// The version's forecasts could not be scored.
    #[error("the version's forecasts cannot be compared with what came")]
    Evaluate(#[from] EvaluateError),
}

/// Compares what came after a version was made with what was there when it was judged.
///
/// # Errors
/// [`DriftError`] if the version cannot be compared with, or the history cannot be read.
pub fn drift(
    history: &BoundedHistory,
    version: &Version,
    events: &Arc<EventCalendar>,
    limits: &DriftLimits,
) -> Result<DriftReport, DriftError> {
    let manifest = version.manifest();
    let spans = manifest.products.iter().filter_map(|p| Some((p.name.as_str(), p.judged?)));
    let spans: Vec<(&str, JudgedSpan)> = spans.collect();
    let until = end_of(history).ok_or(DriftError::Empty)?;
    let since = spans.iter().map(|(_, span)| span.until).max();
    let since = since.ok_or_else(|| DriftError::NotJudged { version: version.id() })?;
    let metrics: BTreeSet<Metric> = manifest.metrics.iter().copied().collect();
    let mut live = Vec::new();
    for (product, span) in &spans {
        let Some(forecaster) = version.forecaster(product) else { continue };
        for metric in &metrics {
            let one = Live { history, forecaster, events, span: *span, metric: *metric };
            live.extend(one.figures(product)?);
        }
    }
    let learned_from = spans.iter().map(|(_, span)| span.from).min().unwrap_or(since);
    let (unseen_shards, shards) = presence(history, since)?;
    let stability = metrics.iter().map(|m| stability(history, *m, (learned_from, since), until));
    let stability = stability.collect::<Result<_, _>>()?;
    let report = DriftReport {
        version: version.id(),
        since,
        until,
        live,
        stability,
        unseen_shards,
        shards,
        reasons: Vec::new(),
    };
    let reasons = reasons(&report, limits);
    Ok(DriftReport { reasons, ..report })
}

/// How many shards have come since, and how many have values since.
fn presence(history: &BoundedHistory, since: Timestamp) -> Result<(usize, usize), HistoryError> {
    let (mut new, mut all) = (0, 0);
    for (shard, metrics) in history.shards() {
        let Some((first, last)) = history.shard(shard, &metrics)?.span_of(shard) else { continue };
        all += usize::from(last >= since);
        new += usize::from(first >= since);
    }
    Ok((new, all))
}

/// What is beyond its limit, the gravest kind first.
fn reasons(report: &DriftReport, limits: &DriftLimits) -> Vec<String> {
    let mut reasons = Vec::new();
    for one in report.live.iter().filter(|one| one.windows >= LEAST_WINDOWS) {
        let place = format!("{}, {}", one.product, one.metric);
        if let Some(cusum) = one.cusum.filter(|c| *c > limits.cusum) {
            let to_naive = |wql: Option<f64>, naive: Option<f64>| {
                wql.zip(naive)
                    .filter(|(_, n)| *n > 0.0)
                    .map_or_else(|| "-".to_owned(), |(w, n)| format!("{:.3}", w / n))
            };
            let before = to_naive(one.wql_before, one.naive_before);
            let since = to_naive(one.wql_since, one.naive_since);
            reasons.push(format!(
                "{place}: losses have risen beside those of seasonal naive, CUSUM {cusum:.1}, limit {:.1} \
                 (WQL {since} of its since, {before} when it was judged)",
                limits.cusum
            ));
        }
        let outside = |c: &f64| !(limits.least_coverage..=limits.most_coverage).contains(c);
        if let Some(coverage) = one.coverage_since.filter(outside) {
            reasons.push(format!(
                "{place}: the 80 % interval held {:.1} % of what came, allowed {:.0} to {:.0} %",
                coverage * 100.0,
                limits.least_coverage * 100.0,
                limits.most_coverage * 100.0
            ));
        }
    }
    for one in &report.stability {
        if let Some(index) = one.index.filter(|index| *index > limits.population_stability) {
            let limit = limits.population_stability;
            reasons.push(format!(
                "{}: values lie elsewhere than in the weeks before, population stability index {index:.2}, limit {limit:.2}",
                one.metric
            ));
        }
    }
    if report.unseen_shards as f64 > limits.unseen * report.shards as f64 {
        let (new, all, limit) = (report.unseen_shards, report.shards, limits.unseen * 100.0);
        reasons.push(format!("{new} of {all} shards were not there when it was trained, limit {limit:.0} %"));
    }
    let age_ms = u128::try_from(report.until.since_ms(report.since)).unwrap_or(0);
    if age_ms > limits.oldest.as_millis() {
        let days = age_ms as f64 / 86_400_000.0;
        let limit = limits.oldest.as_secs_f64() / 86_400.0;
        reasons.push(format!("its history ended {days:.1} days before this one, limit {limit:.1}"));
    }
    reasons
}
