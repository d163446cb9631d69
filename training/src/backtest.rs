//! The backtest of a version: which windows it is judged on, and by whose side.
//!
//! The last windows of every series are set aside before anything is fitted; fitting, its validation cut and the
//! calibration see only values before a series' first window. The version that is judged is the version that is published:
//! it is not fitted again on the windows afterwards, because nobody would have checked the result. What that costs in
//! freshness is little, since the context of a forecast always reaches up to the present.

#[cfg(test)]
mod tests;

use foreshard_datasets::{
    BoundedHistory, EvalSeries, Event, EventCalendar, HistoryError, LeftOut, LeftOutReason, Protocol, Refit,
    ScaleBasis, Target,
};
use foreshard_domain::{
    ClassFigure, Clock, ContenderRole, EvaluationSection, FanWindow, LossRatio, Metric, ShardId, Step, Timestamp,
};
use foreshard_model::{ForecastSpec, Forecaster, JudgedSpan, LastValue, MIN_HISTORY_DAYS, SeasonalMean, SeasonalNaive};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::evaluate::{Entrant, EvaluateError};
use crate::gate::{ClassRatio, Contest, NEGLIGIBLE};
use crate::judge::{Bench, Candidate, Judged};
use crate::scores::ScoreError;
use crate::significance::class_loss_ratio;
use crate::steadiness::{Steadiness, steadiness};
use crate::{SeriesSource, TrainSeries};

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

/// A series with windows at its end, without its values.
#[derive(Debug, Clone, PartialEq)]
pub struct LaidSeries {
    /// Whose.
    pub shard: ShardId,
    /// Time of its first value.
    pub start: Timestamp,
    /// Time of the first step of its first window.
    pub first_window: Timestamp,
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
    /// The series that have windows; not empty.
    pub series: Vec<LaidSeries>,
}

/// What a backtest covers. Values stay in the history and are read series by series.
#[derive(Debug, Clone)]
pub struct BacktestPlan {
    /// By product and metric, in this order.
    pub windows: Vec<MetricWindows>,
    /// Products without any.
    pub skipped: Vec<SkippedProduct>,
    /// Shards left out: product and metric, shard, why.
    pub left_out: Vec<(String, LeftOut)>,
    history: BoundedHistory,
    /// Distance of the rows of the history.
    native: Option<Step>,
    events: Arc<EventCalendar>,
}

impl BacktestPlan {
    /// Sets the windows of each product aside. A product for which the history is too short is skipped and says so.
    ///
    /// # Errors
    /// [`HistoryError`] if the history cannot be read.
    pub fn new<'a>(
        history: &BoundedHistory,
        products: impl IntoIterator<Item = (&'a str, &'a ForecastSpec)>,
        metrics: Option<&[Metric]>,
    ) -> Result<Self, HistoryError> {
        let known: BTreeSet<Metric> = history.shards().flat_map(|(_, metrics)| metrics).collect();
        let metrics: Vec<Metric> =
            known.into_iter().filter(|m| metrics.is_none_or(|wanted| wanted.contains(m))).collect();
        let native = history.native_step();
        let history = history.clone();
        let mut plan = Self {
            windows: Vec::new(),
            skipped: Vec::new(),
            left_out: Vec::new(),
            history,
            native,
            events: Arc::default(),
        };
        for (product, spec) in products {
            let before = plan.windows.len();
            match plan.window_count(spec) {
                Ok(windows) => {
                    let protocols = metrics.iter().map(|m| (*m, protocol(product, spec, *m, windows)));
                    plan.lay(product, &protocols.collect::<Vec<_>>())?;
                }
                Err(why) => plan.skip(product, why),
            }
            if plan.windows.len() == before && plan.skipped.last().is_none_or(|s| s.product != product) {
                plan.skip(product, "no series is long enough, or none has a value of the metrics".to_owned());
            }
        }
        Ok(plan)
    }

    /// Tells every series which events are known.
    pub fn announce(&mut self, events: Arc<EventCalendar>) {
        self.events = events;
    }

    /// The events that are known.
    pub fn events(&self) -> &EventCalendar {
        &self.events
    }

    fn skip(&mut self, product: &str, why: String) {
        self.skipped.push(SkippedProduct { product: product.to_owned(), why });
    }

    /// Lays the windows of each metric of a product; every shard is read once.
    fn lay(&mut self, product: &str, protocols: &[(Metric, Protocol)]) -> Result<(), HistoryError> {
        type Laid = Result<LaidSeries, LeftOutReason>;
        let metrics: Vec<Metric> = protocols.iter().map(|(metric, _)| *metric).collect();
        let shards: Vec<(&ShardId, Vec<Metric>)> = self.history.shards().collect();
        let of_shard = |(shard, has): &(&ShardId, Vec<Metric>)| -> Result<Vec<Laid>, HistoryError> {
            let alone = self.history.shard(shard, &metrics)?;
            let one = |(metric, protocol): &(Metric, Protocol)| {
                let native = self.native.unwrap_or(protocol.step);
                if !has.contains(metric) {
                    return Err(LeftOutReason::NoTarget);
                }
                let laid = EvalSeries::lay(&alone, shard, *metric, native, protocol)?;
                let (start, first_window) = (laid.series.start, laid.series.time_of(laid.first));
                Ok(LaidSeries { shard: (*shard).clone(), start, first_window })
            };
            Ok(protocols.iter().map(one).collect())
        };
        let laid: Vec<Vec<Laid>> = shards.par_iter().map(of_shard).collect::<Result<_, _>>()?;
        let mut windows = Vec::new();
        for (i, (metric, protocol)) in protocols.iter().enumerate() {
            let place = format!("{product}, {metric}");
            let mut series = Vec::new();
            for ((shard, _), of_shard) in shards.iter().zip(&laid) {
                match of_shard.get(i) {
                    Some(Ok(one)) => series.push(one.clone()),
                    Some(Err(why)) => {
                        self.left_out.push((place.clone(), LeftOut { shard: (*shard).clone(), why: *why }));
                    }
                    None => {}
                }
            }
            if !series.is_empty() {
                let (product, protocol) = (product.to_owned(), protocol.clone());
                windows.push(MetricWindows { product, metric: *metric, protocol, series });
            }
        }
        self.windows.extend(windows);
        Ok(())
    }

    /// The values and windows of a series.
    ///
    /// # Errors
    /// [`HistoryError`] if the history cannot be read, or is no longer what it was.
    pub fn read(&self, windows: &MetricWindows, i: usize) -> Result<EvalSeries, HistoryError> {
        let gone = || HistoryError::Changed { series: i, metric: windows.metric };
        let shard = &windows.series.get(i).ok_or_else(gone)?.shard;
        let alone = self.history.shard(shard, &[windows.metric])?;
        let native = self.native.unwrap_or(windows.protocol.step);
        let laid = EvalSeries::lay(&alone, shard, windows.metric, native, &windows.protocol).map_err(|_| gone())?;
        Ok(EvalSeries { events: self.events.clone(), ..laid })
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
        self.all_series().map(|s| s.first_window).min()
    }

    /// The first moment that no series was learned from.
    pub fn trained_until(&self) -> Option<Timestamp> {
        self.all_series().map(|s| s.first_window).max()
    }

    /// What a product is judged on; `None` for one without windows.
    pub fn judged(&self, product: &str) -> Option<JudgedSpan> {
        let series = self.windows.iter().filter(|w| w.product == product).flat_map(|w| &w.series);
        let from = series.map(|s| s.first_window).max()?;
        let until = end_of(&self.history)?;
        Some(JudgedSpan { from, until })
    }

    /// The first moment of the data.
    pub fn trained_from(&self) -> Option<Timestamp> {
        self.all_series().map(|s| s.start).min()
    }

    fn all_series(&self) -> impl Iterator<Item = &LaidSeries> {
        self.windows.iter().flat_map(|w| &w.series)
    }

    /// The windows of a product, and of them that which holds its series `i`, counted over all metrics.
    fn place(&self, product: &str, i: usize) -> Option<(&MetricWindows, usize)> {
        let mut before = 0;
        for windows in self.windows.iter().filter(|w| w.product == product) {
            if i - before < windows.series.len() {
                return Some((windows, i - before));
            }
            before += windows.series.len();
        }
        None
    }

    /// How many windows the history can spare, or why it has none to spare.
    fn window_count(&self, spec: &ForecastSpec) -> Result<usize, String> {
        let (horizon, season) = (spec.horizon.max(1), spec.season_steps.max(1));
        // The last row covers the time up to the next one.
        let last = self.native.map_or(0, Step::as_ms);
        let span = self.history.span().map_or(0, |(from, to)| to.since_ms(from).saturating_add(last));
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
}

/// What may be learned from: every series up to its first window, in the order of the windows.
impl SeriesSource for BacktestPlan {
    fn products(&self) -> Vec<&str> {
        BacktestPlan::products(self).into_iter().collect()
    }

    fn count(&self, product: &str) -> usize {
        self.windows.iter().filter(|w| w.product == product).map(|w| w.series.len()).sum()
    }

    fn get(&self, product: &str, i: usize) -> Result<Option<Cow<'_, TrainSeries>>, HistoryError> {
        let Some((windows, i)) = self.place(product, i) else { return Ok(None) };
        let EvalSeries { shard, metric, series, first, events, .. } = self.read(windows, i)?;
        Ok(Some(Cow::Owned(TrainSeries { shard, metric, series, usable: first, events })))
    }
}

/// The first moment after a history: its last row covers the time up to the next one.
pub(crate) fn end_of(history: &BoundedHistory) -> Option<Timestamp> {
    let (_, last) = history.span()?;
    Some(last.plus_ms(history.native_step().map_or(0, Step::as_ms)))
}

pub(crate) fn protocol(product: &str, spec: &ForecastSpec, metric: Metric, windows: usize) -> Protocol {
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

/// Figures of everybody on the windows of one metric of one product.
#[derive(Debug, Clone)]
pub struct MetricBacktest<'a> {
    /// The windows.
    pub windows: &'a MetricWindows,
    /// The version that wants to serve.
    pub challenger: Judged,
    /// The version that serves, where it offers this product.
    pub champion: Option<Judged>,
    /// Seasonal naive.
    pub naive: Judged,
    /// The other rivals.
    pub rivals: Vec<Judged>,
    /// Windows of the challenger that are drawn.
    pub fans: Vec<FanWindow>,
    /// How steady the challenger is, and the champion; `None` where nothing can be said.
    pub steadiness: [Option<Steadiness>; 2],
}

/// Lets challenger, champion, seasonal naive and the other rivals answer in all windows of the plan. A product that the challenger does not
/// offer is left out.
///
/// # Errors
/// [`EvaluateError`] if somebody's forecasts cannot be scored, or the history cannot be read.
pub fn run_backtest<'a>(
    plan: &'a BacktestPlan,
    challenger: &dyn Fn(&str) -> Option<Entrant<'a>>,
    champion: &dyn Fn(&str) -> Option<Entrant<'a>>,
    rivals: &dyn Fn(&str) -> Vec<Entrant<'a>>,
    clock: &dyn Clock,
) -> Result<Vec<MetricBacktest<'a>>, EvaluateError> {
    let mut done = Vec::with_capacity(plan.windows.len());
    for windows in &plan.windows {
        let Some(challenger) = challenger(&windows.product) else { continue };
        // A champion of other steps or horizon does not offer this product as it is wanted now.
        let spec = challenger.forecaster.spec();
        let same =
            |e: &Entrant<'_>| e.forecaster.spec().step == spec.step && e.forecaster.spec().horizon == spec.horizon;
        let champion = champion(&windows.product).filter(same);
        done.push(backtest_of(plan, windows, (&challenger, champion.as_ref()), &rivals(&windows.product), clock)?);
    }
    Ok(done)
}

fn backtest_of<'a>(
    plan: &BacktestPlan,
    windows: &'a MetricWindows,
    (challenger, serving): (&Entrant<'_>, Option<&Entrant<'_>>),
    fitted: &[Entrant<'_>],
    clock: &dyn Clock,
) -> Result<MetricBacktest<'a>, EvaluateError> {
    let spec = challenger.forecaster.spec();
    let naive = SeasonalNaive::new(spec.clone());
    // The rivals that need no fit.
    let plain: [Box<dyn Forecaster>; 3] = [
        Box::new(LastValue::new(spec.clone())),
        Box::new(SeasonalNaive::weekly(spec.clone())),
        Box::new(SeasonalMean::new(spec.clone())),
    ];
    let all: Vec<&Entrant<'_>> = [challenger].into_iter().chain(serving).chain(fitted).collect();
    let probabilities: Vec<_> = all.iter().map(|entrant| entrant.probability()).collect();
    let mut candidates: Vec<Candidate<'_>> = all
        .iter()
        .zip(&probabilities)
        .map(|(e, p_any)| Candidate { name: &e.name, forecaster: e.forecaster, p_any: Some(p_any) })
        .collect();
    let without = plain.iter().map(AsRef::as_ref).chain([&naive as &dyn Forecaster]);
    candidates.extend(without.map(|f| Candidate { name: f.name(), forecaster: f, p_any: None }));
    let read = |i| plan.read(windows, i);
    let bench = Bench { count: windows.series.len(), read: &read, protocol: &windows.protocol };
    let mut judged = bench.judge(&candidates)?.into_iter();
    let mut next = || judged.next().ok_or(EvaluateError::Score(ScoreError::NoSeries));
    let own = next()?;
    let champion = serving.map(|_| next()).transpose()?;
    let rivals = (0..fitted.len() + plain.len()).map(|_| next()).collect::<Result<_, _>>()?;
    let fans = bench.fans(challenger, &own)?;
    let steady = |entrant: &Entrant<'_>| steadiness(entrant.forecaster, (bench.count, &read), clock);
    let steadiness = [steady(challenger)?, serving.map(steady).transpose()?.flatten()];
    Ok(MetricBacktest { windows, challenger: own, champion, naive: next()?, rivals, fans, steadiness })
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
            rivals: self.rivals.iter().map(|r| (r.name.as_str(), &r.scores)).collect(),
            classes: self.champion.as_ref().map_or_else(Vec::new, |champion| class_ratios(&self.challenger, champion)),
            steadiness: self.steadiness,
        }
    }

    /// The part of the report on these windows.
    pub fn section(&self) -> EvaluationSection {
        let mut contenders = vec![self.challenger.contender(ContenderRole::Subject, &self.challenger)];
        contenders.extend(self.champion.as_ref().map(|c| c.contender(ContenderRole::Champion, &self.challenger)));
        contenders.push(self.naive.contender(ContenderRole::SeasonalNaive, &self.challenger));
        contenders.extend(self.rivals.iter().map(|rival| rival.contender(ContenderRole::Rival, &self.challenger)));
        EvaluationSection {
            name: format!("{}, {}", self.windows.product, self.windows.metric),
            step: self.windows.protocol.step,
            contenders,
            fans: self.fans.clone(),
            node_risk: None,
        }
    }
}

/// How each class of series fares under the challenger.
fn class_ratios(challenger: &Judged, champion: &Judged) -> Vec<ClassRatio> {
    let of = |figure: &ClassFigure| {
        let before = champion.scores.wql_by_class.iter().find(|before| before.class == figure.class)?.value?;
        let loss = class_loss_ratio(&challenger.by_series, &champion.by_series, figure.class)?;
        // Losses of less than a thousandth of the demand do not decide.
        let loss = LossRatio { ratio: (figure.value? + NEGLIGIBLE) / (before + NEGLIGIBLE), ..loss };
        Some(ClassRatio { class: figure.class, series: figure.series, loss })
    };
    challenger.scores.wql_by_class.iter().filter_map(of).collect()
}
