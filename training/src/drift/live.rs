//! A version's forecasts of the windows on which it was judged, and of those that have come since.

use foreshard_datasets::{BoundedHistory, EvalSeries, EventCalendar, HistoryError};
use foreshard_domain::{Metric, ShardId};
use foreshard_model::{Forecaster, JudgedSpan, SeasonalNaive, Trained};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::backtest::protocol;
use crate::evaluate::EvaluateError;
use crate::judge::{Bench, Candidate, Judged};
use crate::scores::{ScoreError, SeriesScores};
use crate::statistics::ratio;

use super::LiveFigures;
use super::cusum::cusum;

/// One metric of one product of a version.
pub(super) struct Live<'a> {
    pub(super) history: &'a BoundedHistory,
    pub(super) forecaster: &'a Trained,
    pub(super) events: &'a Arc<EventCalendar>,
    pub(super) span: JudgedSpan,
    pub(super) metric: Metric,
}

/// How many windows of a series lie where.
#[derive(Debug, Clone, PartialEq)]
struct Laid {
    shard: ShardId,
    /// Windows that begin before the version's history ended.
    before: usize,
    /// Windows that begin after it.
    since: usize,
    /// Number of the first window since, in horizons after the end of the version's history.
    number: i64,
}

impl Live<'_> {
    /// The figures; `None` if no series has a window since.
    pub(super) fn figures(&self, product: &str) -> Result<Option<LiveFigures>, EvaluateError> {
        let mut laid = Vec::new();
        for (shard, metrics) in self.history.shards() {
            if metrics.contains(&self.metric) {
                laid.extend(self.lay(shard)?.map(|(_, laid)| laid));
            }
        }
        let with = |count: fn(&Laid) -> usize| laid.iter().filter(|one| count(one) > 0).cloned().collect::<Vec<_>>();
        let (before, since) = (with(|one| one.before), with(|one| one.since));
        if since.is_empty() {
            return Ok(None);
        }
        let judged_since = self.judge(&since, |series, laid| {
            let first = series.origin(laid.before);
            EvalSeries { first, windows: laid.since, ..series }
        })?;
        let judged_before = if before.is_empty() {
            None
        } else {
            Some(self.judge(&before, |s, laid| EvalSeries { windows: laid.before, ..s })?)
        };
        let cusum = judged_before.as_ref().and_then(|judged| {
            let whose: BTreeSet<&ShardId> = before.iter().map(|laid| &laid.shard).collect();
            let then = course(&before, judged, &whose, |l| l.number - signed(l.before));
            let now = course(&since, &judged_since, &whose, |l| l.number);
            cusum(&then, &now)
        });
        Ok(Some(LiveFigures {
            product: product.to_owned(),
            metric: self.metric,
            windows: judged_since.version.scores.windows,
            wql_before: judged_before.as_ref().and_then(|j| j.version.scores.wql),
            wql_since: judged_since.version.scores.wql,
            naive_before: judged_before.as_ref().and_then(|j| j.naive.scores.wql),
            naive_since: judged_since.naive.scores.wql,
            coverage_before: judged_before.as_ref().and_then(|j| j.version.scores.coverage_80),
            coverage_since: judged_since.version.scores.coverage_80,
            cusum,
        }))
    }

    /// The series of a shard with all windows from the first on that was judged; `None` if it has none, or too little before.
    fn lay(&self, shard: &ShardId) -> Result<Option<(EvalSeries, Laid)>, HistoryError> {
        let spec = self.forecaster.spec();
        let alone = self.history.shard(shard, &[self.metric])?;
        let native = self.history.native_step().unwrap_or(spec.step);
        let length = i64::try_from(spec.horizon).unwrap_or(i64::MAX).saturating_mul(spec.step.as_ms());
        let Some((_, last)) = alone.span_of(shard) else { return Ok(None) };
        let covered = spec.step.floor(last).plus_steps(1, spec.step).since_ms(self.span.from);
        let windows = usize::try_from(covered / length.max(1)).unwrap_or(0);
        if windows == 0 {
            return Ok(None);
        }
        let protocol = protocol("drift", spec, self.metric, windows);
        let Ok(series) = EvalSeries::lay(&alone, shard, self.metric, native, &protocol) else { return Ok(None) };
        let series = EvalSeries { events: self.events.clone(), ..series };
        let begins = |w: usize| series.series.time_of(series.origin(w));
        let before = (0..windows).take_while(|w| begins(*w) < self.span.until).count();
        let number = begins(before).since_ms(self.span.until).div_euclid(length.max(1));
        let laid = Laid { shard: shard.clone(), before, since: windows - before, number };
        Ok(Some((series, laid)))
    }

    fn judge(
        &self,
        laid: &[Laid],
        part: impl Fn(EvalSeries, &Laid) -> EvalSeries + Sync,
    ) -> Result<Both, EvaluateError> {
        let gone = |i: usize| HistoryError::Changed { series: i, metric: self.metric };
        let read = |i: usize| {
            let one = laid.get(i).ok_or_else(|| gone(i))?;
            let (series, again) = self.lay(&one.shard)?.ok_or_else(|| gone(i))?;
            if again == *one { Ok(part(series, one)) } else { Err(gone(i)) }
        };
        let protocol = protocol("drift", self.forecaster.spec(), self.metric, 1);
        let bench = Bench { count: laid.len(), read: &read, protocol: &protocol };
        let naive = SeasonalNaive::new(self.forecaster.spec().clone());
        let version = Candidate { name: "version", forecaster: self.forecaster, p_any: None };
        let naive = Candidate { name: naive.name(), forecaster: &naive, p_any: None };
        let mut judged = bench.judge(&[version, naive])?.into_iter();
        let mut next = || judged.next().ok_or(EvaluateError::Score(ScoreError::NoSeries));
        Ok(Both { version: next()?, naive: next()? })
    }
}

/// The version and seasonal naive on the same windows.
struct Both {
    version: Judged,
    naive: Judged,
}

impl Both {
    /// Losses of the version and of seasonal naive in the windows of each series.
    fn losses(&self) -> impl Iterator<Item = impl Iterator<Item = (f64, f64)>> {
        let of_series = |(own, naive): (&'_ SeriesScores, &'_ SeriesScores)| {
            let both = own.loss_by_window.iter().copied().zip(naive.loss_by_window.iter().copied());
            both.collect::<Vec<_>>().into_iter()
        };
        self.version.by_series.iter().zip(&self.naive.by_series).map(of_series)
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The logarithm of the loss over that of seasonal naive (hard days are hard for both), window by window in the order of time,
/// over the series of `whose`. Windows in which fewer than half as many series take part as in the fullest are left out: they
/// would say more of those than of time.
fn course(laid: &[Laid], judged: &Both, whose: &BTreeSet<&ShardId>, first: impl Fn(&Laid) -> i64) -> Vec<f64> {
    let mut by_number: BTreeMap<i64, (usize, f64, f64)> = BTreeMap::new();
    for (laid, losses) in laid.iter().zip(judged.losses()) {
        if !whose.contains(&laid.shard) {
            continue;
        }
        for (number, (own, naive)) in (first(laid)..).zip(losses) {
            let window = by_number.entry(number).or_default();
            *window = (window.0 + 1, window.1 + own, window.2 + naive);
        }
    }
    let most = by_number.values().map(|(series, ..)| *series).max().unwrap_or(0);
    let full = by_number.values().filter(|(series, ..)| series * 2 >= most);
    full.filter_map(|(_, own, naive)| ratio(*own, *naive)).filter(|r| *r > 0.0).map(f64::ln).collect()
}
