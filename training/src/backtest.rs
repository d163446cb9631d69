//! The backtest of a version: which windows it is judged on, and by whose side.
//!
//! The last windows of every series are set aside before anything is fitted; fitting, its validation cut and the
//! calibration see only values before a series' first window. The version that is judged is the version that is published:
//! it is not fitted again on the windows afterwards, because nobody would have checked the result. What that costs in
//! freshness is little, since the context of a forecast always reaches up to the present.

use foreshard_datasets::{
    EvalSeries, Event, EventCalendar, History, LeftOut, Protocol, Refit, ScaleBasis, Target, evaluation_series,
};
use foreshard_domain::{ContenderRole, EvaluationSection, Metric, Step, Timestamp};
use foreshard_model::{ForecastSpec, MIN_HISTORY_DAYS, SeasonalNaive};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::evaluate::{Entrant, EvaluateError, Evaluation, evaluate, section};
use crate::gate::Contest;

/// Most windows of a series.
const MOST_WINDOWS: usize = 12;
/// Most seasons that the windows of a series cover together.
const MOST_SEASONS: usize = 7;
/// The windows take at most one part in so many of the longest series.
const SHARE: usize = 5;
/// Least windows: one alone may be any day.
const LEAST_WINDOWS: usize = 2;
/// The part of a series that fitting holds back for its own validation, as one in so many.
const VALIDATION: usize = 10;
/// The event of the backtest: any step over this quantile of the values before the windows.
const EVENT_LEVEL: f64 = 0.95;

/// A product that could not be trained or judged, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedProduct {
    /// Its name.
    pub product: String,
    /// Why, in words.
    pub why: String,
}

impl fmt::Display for SkippedProduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.product, self.why)
    }
}

/// The windows of one metric of one product.
#[derive(Debug, Clone)]
pub struct MetricWindows {
    /// The product.
    pub product: String,
    /// The metric.
    pub metric: Metric,
    /// How they are scored.
    pub protocol: Protocol,
    /// The series and their windows; not empty.
    pub series: Vec<EvalSeries>,
}

/// What a backtest covers.
#[derive(Debug, Clone, Default)]
pub struct BacktestPlan {
    /// By product and metric, in this order.
    pub windows: Vec<MetricWindows>,
    /// Products without any.
    pub skipped: Vec<SkippedProduct>,
    /// Shards left out: product and metric, shard, why.
    pub left_out: Vec<(String, LeftOut)>,
}

impl BacktestPlan {
    /// Sets the windows of each product aside. A product for which the history is too short is skipped and says so.
    pub fn new<'a>(
        history: &History,
        products: impl IntoIterator<Item = (&'a str, &'a ForecastSpec)>,
        metrics: Option<&[Metric]>,
    ) -> Self {
        let known: BTreeSet<Metric> = history.shards().flat_map(|s| history.metrics_of(s)).collect();
        let metrics: Vec<Metric> =
            known.into_iter().filter(|m| metrics.is_none_or(|wanted| wanted.contains(m))).collect();
        let mut plan = Self::default();
        for (product, spec) in products {
            let before = plan.windows.len();
            match window_count(history, spec) {
                Ok(windows) => metrics.iter().for_each(|m| plan.lay(history, product, spec, *m, windows)),
                Err(why) => plan.skip(product, why),
            }
            if plan.windows.len() == before && plan.skipped.last().is_none_or(|s| s.product != product) {
                plan.skip(product, "no series is long enough, or none has a value of the metrics".to_owned());
            }
        }
        plan
    }

    /// Tells every series which events are known.
    pub fn announce(&mut self, events: &Arc<EventCalendar>) {
        self.windows.iter_mut().flat_map(|w| &mut w.series).for_each(|s| s.events = events.clone());
    }

    fn skip(&mut self, product: &str, why: String) {
        self.skipped.push(SkippedProduct { product: product.to_owned(), why });
    }

    fn lay(&mut self, history: &History, product: &str, spec: &ForecastSpec, metric: Metric, windows: usize) {
        let protocol = protocol(product, spec, metric, windows);
        let (series, left_out) = evaluation_series(history, &protocol);
        let place = format!("{product}, {metric}");
        self.left_out.extend(left_out.into_iter().map(|l| (place.clone(), l)));
        if !series.is_empty() {
            self.windows.push(MetricWindows { product: product.to_owned(), metric, protocol, series });
        }
    }

    /// Gives a product up for a reason that showed later.
    pub(crate) fn drop_product(&mut self, product: &str, why: String) {
        self.windows.retain(|w| w.product != product);
        self.skip(product, why);
    }

    /// Names of the products that can be trained.
    pub fn products(&self) -> BTreeSet<&str> {
        self.windows.iter().map(|w| w.product.as_str()).collect()
    }

    /// The first moment that any window covers: nothing from here on was learned from in full.
    pub fn first_window(&self) -> Option<Timestamp> {
        self.all_series().map(|s| s.series.time_of(s.first)).min()
    }

    /// The first moment that no series was learned from.
    pub fn trained_until(&self) -> Option<Timestamp> {
        self.all_series().map(|s| s.series.time_of(s.first)).max()
    }

    /// The first moment of the data.
    pub fn trained_from(&self) -> Option<Timestamp> {
        self.all_series().map(|s| s.series.start).min()
    }

    fn all_series(&self) -> impl Iterator<Item = &EvalSeries> {
        self.windows.iter().flat_map(|w| &w.series)
    }
}

fn protocol(product: &str, spec: &ForecastSpec, metric: Metric, windows: usize) -> Protocol {
    let season = i64::try_from(spec.season_steps).unwrap_or(1).saturating_mul(spec.step.as_ms());
    Protocol {
        name: product.to_owned(),
        target: Target::Metric(metric),
        step: spec.step,
        horizon: spec.horizon,
        windows,
        stride: spec.horizon,
        season: Step::from_ms(season).unwrap_or(spec.step),
        levels: spec.levels.clone(),
        refit: Refit::Never,
        event: Event::TrainQuantile(EVENT_LEVEL),
        bounds: spec.bounds,
        scale: ScaleBasis::FirstWindow,
        max_series: None,
    }
}

/// How many windows the history can spare, or why it has none to spare.
fn window_count(history: &History, spec: &ForecastSpec) -> Result<usize, String> {
    let (horizon, season) = (spec.horizon.max(1), spec.season_steps.max(1));
    // The last row covers the time up to the next one.
    let last = history.native_step().map_or(0, Step::as_ms);
    let span = history.span().map_or(0, |(from, to)| to.since_ms(from).saturating_add(last));
    let steps = usize::try_from(spec.step.count_in(span)).unwrap_or(0);
    // Context of the first origin, then targets to learn from and as many again to choose among.
    let before = (MIN_HISTORY_DAYS * season + 2 * horizon) * VALIDATION / (VALIDATION - 1);
    let spare = (steps / SHARE).min(steps.saturating_sub(before)) / horizon;
    let windows = spare.min(MOST_WINDOWS).min((MOST_SEASONS * season / horizon).max(LEAST_WINDOWS));
    if windows >= LEAST_WINDOWS {
        return Ok(windows);
    }
    let days = |steps: usize| steps as f64 * spec.step.as_minutes() / 1440.0;
    let needed = (before + LEAST_WINDOWS * horizon).max(LEAST_WINDOWS * horizon * SHARE);
    Err(format!("it needs {:.1} days of history, there are {:.1}", days(needed), days(steps)))
}

/// Figures of everybody on the windows of one metric of one product.
#[derive(Debug, Clone)]
pub struct MetricBacktest<'a> {
    /// The windows.
    pub windows: &'a MetricWindows,
    /// The version that wants to serve.
    pub challenger: Evaluation,
    /// The version that serves, where it offers this product.
    pub champion: Option<Evaluation>,
    /// Seasonal naive.
    pub naive: Evaluation,
}

/// Lets challenger, champion and seasonal naive answer in all windows of the plan. A product that the challenger does not
/// offer is left out.
///
/// # Errors
/// [`EvaluateError`] if somebody's forecasts cannot be scored.
pub fn run_backtest<'a>(
    plan: &'a BacktestPlan,
    challenger: &dyn Fn(&str) -> Option<Entrant<'a>>,
    champion: &dyn Fn(&str) -> Option<Entrant<'a>>,
) -> Result<Vec<MetricBacktest<'a>>, EvaluateError> {
    let mut done = Vec::with_capacity(plan.windows.len());
    for windows in &plan.windows {
        let MetricWindows { product, protocol, series, .. } = windows;
        let Some(entrant) = challenger(product) else { continue };
        let naive = SeasonalNaive::new(entrant.forecaster.spec().clone());
        // A champion of other steps or horizon does not offer this product as it is wanted now.
        let spec = entrant.forecaster.spec();
        let same =
            |e: &Entrant<'_>| e.forecaster.spec().step == spec.step && e.forecaster.spec().horizon == spec.horizon;
        let champion = champion(product).filter(same);
        done.push(MetricBacktest {
            windows,
            challenger: entrant.evaluate(series, protocol)?,
            champion: champion.map(|c| c.evaluate(series, protocol)).transpose()?,
            naive: evaluate(&naive, None, series, protocol)?,
        });
    }
    Ok(done)
}

impl MetricBacktest<'_> {
    /// The figures that the gate decides by.
    pub fn contest(&self) -> Contest<'_> {
        Contest {
            product: &self.windows.product,
            metric: self.windows.metric.name(),
            challenger: &self.challenger.scores,
            champion: self.champion.as_ref().map(|c| &c.scores),
            naive: &self.naive.scores,
        }
    }

    /// The part of the report on these windows.
    pub fn section(&self) -> EvaluationSection {
        let MetricWindows { product, metric, protocol, series } = self.windows;
        let mut all = vec![(ContenderRole::Subject, &self.challenger)];
        all.extend(self.champion.as_ref().map(|c| (ContenderRole::Champion, c)));
        all.push((ContenderRole::SeasonalNaive, &self.naive));
        section(&format!("{product}, {metric}"), series, protocol, &all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Observation, Product, ShardId};

    /// Two shards with a daily rhythm on five-minute steps; the second one starts later.
    fn history(days: i64) -> History {
        let row = |shard: &str, i: i64| {
            let ts = Timestamp::from_ms(i * 300_000);
            let load = 30.0 + 20.0 * ((i % 288) as f64 / 288.0 * std::f64::consts::TAU).sin();
            let mut row = Observation::empty(ShardId::new(shard).unwrap(), ts);
            row.cpu_util = Some(load);
            row.txn_rate = (shard == "a").then_some(load * 7.0);
            row
        };
        let late = days * 288 / 2;
        let rows = (0..days * 288).map(|i| row("a", i)).chain((late..days * 288).map(|i| row("b", i)));
        History::from_observations(rows).unwrap()
    }

    fn plan(days: i64) -> BacktestPlan {
        let (hours, day) = (ForecastSpec::of_product(Product::NextHours), ForecastSpec::of_product(Product::NextDay));
        BacktestPlan::new(&history(days), [("next_hours", &hours), ("next_day", &day)], None)
    }

    #[test]
    fn windows_lie_at_the_end_and_leave_enough_before() {
        let plan = plan(42);
        assert_eq!(plan.windows.len(), 4);
        assert!(plan.skipped.is_empty());
        let counts: Vec<usize> = plan.windows.iter().map(|w| w.protocol.windows).collect();
        assert_eq!(counts, [12, 12, 7, 7]);
        for s in plan.windows.iter().flat_map(|w| &w.series) {
            assert_eq!(s.origin(s.windows - 1) + s.horizon, s.series.values.len());
        }
        let of_b = plan.left_out.iter().filter(|(_, l)| l.shard.as_str() == "b").count();
        assert_eq!(of_b, 2, "shard b has no transactions: {:?}", plan.left_out);
        let end = Timestamp::from_ms(42 * 86_400_000);
        assert_eq!(plan.trained_until().map(|t| end.since_ms(t)), Some(2 * 86_400_000));
        assert_eq!(plan.first_window().map(|t| end.since_ms(t)), Some(7 * 86_400_000));
    }

    #[test]
    fn a_history_too_short_for_a_product_skips_it_and_says_so() {
        let short = plan(12);
        assert_eq!(short.products(), ["next_hours", "next_day"].into());
        let shorter = plan(11);
        assert_eq!(shorter.products(), ["next_hours"].into());
        assert_eq!(shorter.skipped[0].product, "next_day");
        assert_eq!(shorter.skipped[0].why, "it needs 12.0 days of history, there are 11.0");
        assert_eq!(plan(5).skipped.len(), 2);
    }

    #[test]
    fn nothing_measured_is_nothing_to_train() {
        let spec = ForecastSpec::of_product(Product::NextHours);
        let plan = BacktestPlan::new(&history(20), [("next_hours", &spec)], Some(&[Metric::IoOps]));
        assert!(plan.windows.is_empty());
        assert!(plan.skipped[0].why.contains("none has a value"), "{:?}", plan.skipped);
    }
}
