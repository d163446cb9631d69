//! Trend and seasons of each series by itself, as Prophet's model has them, evaluated without Prophet.
//!
//! Fitting takes Stan (`foreshard-training`, feature `prophet`); what it found is a few dozen numbers a series, and to
//! forecast is to evaluate them at the time of each step. A version that holds them is served by every build.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use foreshard_domain::{Metric, ShardId, Timestamp};
use serde::{Deserialize, Serialize};

use super::Tensor;
use crate::TENSOR_LEVELS;

const LEVELS: usize = TENSOR_LEVELS.len();
const DAY_MS: f64 = 86_400_000.0;
/// Days of a week: the period of the second season.
const WEEK_DAYS: f64 = 7.0;
/// Numbers before the lists: span, unit, rate, offset.
const HEAD: usize = 4;

/// Whose fit stands in a row, and from when its time is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProphetSeries {
    /// Whose.
    pub shard: ShardId,
    /// Of what.
    pub metric: Metric,
    /// The first moment that it was fitted on.
    pub start: Timestamp,
}

/// Sizes of the fits of a product, and whose they are; in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProphetShape {
    /// Moments at which the rate of a trend may change.
    pub changepoints: usize,
    /// Waves of the day.
    pub daily: usize,
    /// Waves of the week.
    pub weekly: usize,
    /// The series, one row each.
    pub series: Vec<ProphetSeries>,
}

impl ProphetShape {
    fn waves(&self) -> usize {
        2 * (self.daily + self.weekly)
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        HEAD + 2 * self.changepoints + self.waves() + LEVELS
    }
}

/// The fit of one series. Time runs from 0 at its start to 1 at the end of what it was fitted on, values are in units of
/// the largest.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SeriesFit {
    /// Seconds from start to end.
    pub span_s: f32,
    /// The unit of values, in units of the metric.
    pub unit: f32,
    /// Growth until the first change.
    pub rate: f32,
    /// Value at the start.
    pub offset: f32,
    /// When the rate changes, rising.
    pub changes: Vec<f32>,
    /// By how much.
    pub deltas: Vec<f32>,
    /// Sine and cosine of each wave: those of the day, then those of the week.
    pub waves: Vec<f32>,
    /// Quantiles of the errors at the learned levels, in units of the metric.
    pub errors: [f32; LEVELS],
}

/// Sine and cosine of the waves of the day and the week at a moment, in this order.
pub fn waves_at(at: Timestamp, daily: usize, weekly: usize) -> impl Iterator<Item = f64> {
    let days = at.as_ms() as f64 / DAY_MS;
    let of = move |order: usize, period: f64| {
        (1..=order).flat_map(move |i| {
            let angle = days * TAU * i as f64 / period;
            [angle.sin(), angle.cos()]
        })
    };
    of(daily, 1.0).chain(of(weekly, WEEK_DAYS))
}

impl SeriesFit {
    /// Trend and seasons at a moment, in units of the metric.
    pub fn centre(&self, shape: &ProphetShape, start: Timestamp, at: Timestamp) -> f32 {
        let t = at.since_ms(start) as f64 / 1000.0 / f64::from(self.span_s).max(1.0);
        let (mut rate, mut offset) = (f64::from(self.rate), f64::from(self.offset));
        for (change, delta) in self.changes.iter().zip(&self.deltas) {
            let (change, delta) = (f64::from(*change), f64::from(*delta));
            if t >= change {
                rate += delta;
                offset -= change * delta;
            }
        }
        let seasons = self.waves.iter().zip(waves_at(at, shape.daily, shape.weekly));
        let seasons: f64 = seasons.map(|(beta, wave)| f64::from(*beta) * wave).sum();
        ((rate * t + offset + seasons) * f64::from(self.unit)) as f32
    }

    fn numbers(&self) -> impl Iterator<Item = f32> + '_ {
        let head = [self.span_s, self.unit, self.rate, self.offset];
        let lists = self.changes.iter().chain(&self.deltas).chain(&self.waves).chain(&self.errors);
        head.into_iter().chain(lists.copied())
    }

    fn from_row(row: &[f32], shape: &ProphetShape) -> Self {
        let mut rest = row.iter().copied();
        let mut take = |n: usize| rest.by_ref().take(n).collect::<Vec<f32>>();
        let head = take(HEAD);
        let of = |i: usize| head.get(i).copied().unwrap_or(0.0);
        let (changes, deltas, waves) = (take(shape.changepoints), take(shape.changepoints), take(shape.waves()));
        let mut errors = [0.0; LEVELS];
        errors.iter_mut().zip(take(LEVELS)).for_each(|(error, value)| *error = value);
        Self { span_s: of(0), unit: of(1), rate: of(2), offset: of(3), changes, deltas, waves, errors }
    }
}

/// The fits of all series of a product.
#[derive(Debug, Clone, PartialEq)]
pub struct Prophet {
    shape: ProphetShape,
    /// One after the other, as the shape names them; every row as wide as the shape says.
    rows: Vec<f32>,
    places: BTreeMap<(Metric, ShardId), usize>,
}

impl Prophet {
    /// From the fits of some series; lists shorter than the shape's are filled up with zeros, which change nothing.
    pub fn new(sizes: (usize, usize, usize), fits: Vec<(ProphetSeries, SeriesFit)>) -> Self {
        let (changepoints, daily, weekly) = sizes;
        let mut shape = ProphetShape { changepoints, daily, weekly, series: Vec::new() };
        let mut rows = Vec::new();
        for (series, mut fit) in fits {
            fit.changes.resize(changepoints, 0.0);
            fit.deltas.resize(changepoints, 0.0);
            fit.waves.resize(shape.waves(), 0.0);
            rows.extend(fit.numbers());
            shape.series.push(series);
        }
        Self::from_rows(shape, &rows)
    }

    pub(super) fn from_rows(shape: ProphetShape, rows: &[f32]) -> Self {
        let names = shape.series.iter().enumerate();
        let places = names.map(|(i, s)| ((s.metric, s.shard.clone()), i)).collect();
        Self { shape, rows: rows.to_vec(), places }
    }

    /// Sizes and series.
    pub fn shape(&self) -> &ProphetShape {
        &self.shape
    }

    /// The fit of a series and its start, if it has one.
    pub fn fit_of(&self, shard: &ShardId, metric: Metric) -> Option<(Timestamp, SeriesFit)> {
        let place = *self.places.get(&(metric, shard.clone()))?;
        let width = self.shape.width();
        let row = self.rows.get(place * width..(place + 1) * width)?;
        Some((self.shape.series.get(place)?.start, SeriesFit::from_row(row, &self.shape)))
    }

    /// Quantiles in units of the metric at the given times; `None` for a series without a fit.
    pub(crate) fn rows(
        &self,
        shard: &ShardId,
        metric: Metric,
        times: impl Iterator<Item = Timestamp>,
    ) -> Option<Vec<[f32; LEVELS]>> {
        let (start, fit) = self.fit_of(shard, metric)?;
        let row = |at| {
            let centre = fit.centre(&self.shape, start, at);
            fit.errors.map(|error| centre + error)
        };
        Some(times.map(row).collect())
    }

    pub(super) fn problem(&self) -> Option<String> {
        if self.places.len() != self.shape.series.len() {
            return Some("it has two fits of one series".to_owned());
        }
        let width = self.shape.width();
        if self.rows.len() != width * self.shape.series.len() {
            let (got, want) = (self.rows.len(), width * self.shape.series.len());
            return Some(format!("its fits have {got} numbers instead of {want}"));
        }
        let mut errors = self.rows.chunks_exact(width).map(|row| row.get(width - LEVELS..).unwrap_or(&[]));
        errors.any(|row| !row.is_sorted()).then(|| "quantiles of its errors fall".to_owned())
    }

    pub(super) fn name_of(product: &str) -> String {
        format!("{product}.prophet")
    }

    pub(super) fn tensor(&self, product: &str) -> Tensor<'_> {
        let shape = (self.shape.series.len(), self.shape.width());
        Tensor { name: Self::name_of(product), shape, values: &self.rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> SeriesFit {
        let errors = TENSOR_LEVELS.map(|l| l as f32 - 0.5);
        let waves = vec![0.5, 0.0, 0.0, 0.25];
        let (changes, deltas) = (vec![0.5], vec![-1.0]);
        SeriesFit { span_s: 1000.0, unit: 10.0, rate: 1.0, offset: 2.0, changes, deltas, waves, errors }
    }

    #[test]
    fn trend_bends_at_its_changes_and_seasons_return() {
        let shape = ProphetShape { changepoints: 1, daily: 1, weekly: 1, series: Vec::new() };
        let plain = SeriesFit { waves: vec![0.0; 4], ..fit() };
        let start = Timestamp::from_ms(5_000_000);
        let at = |s: i64| plain.centre(&shape, start, start.plus_ms(s * 1000));
        // 2 + t until .5, level from there on; times 10.
        assert_eq!((at(0), at(250), at(500), at(900)), (20.0, 22.5, 25.0, 25.0));
        let waving = |ms: i64| fit().centre(&shape, Timestamp::from_ms(0), Timestamp::from_ms(ms));
        let quarter = 21_600_000;
        let trend = 25.0;
        // A quarter of a day in: the day's sine is at its top, the week's cosine a little below.
        let week = 2.5 * (TAU / 28.0).cos() as f32;
        assert!((waving(quarter) - (trend + 5.0 + week)).abs() < 1e-4);
        assert!((waving(quarter) - waving(quarter + 7 * 86_400_000)).abs() < 1e-4);
    }

    #[test]
    fn rows_go_both_ways_and_unknown_series_have_none() {
        let shard = ShardId::new("a").unwrap();
        let series = ProphetSeries { shard: shard.clone(), metric: Metric::CpuUtil, start: Timestamp::from_ms(7) };
        let prophet = Prophet::new((3, 1, 1), vec![(series.clone(), fit())]);
        assert_eq!(prophet.problem(), None);
        let (start, read) = prophet.fit_of(&shard, Metric::CpuUtil).unwrap();
        assert_eq!((start, read.changes.len(), &read.waves), (series.start, 3, &fit().waves));
        let times = || (0..4).map(|i| Timestamp::from_ms(i * 300_000));
        let rows = prophet.rows(&shard, Metric::CpuUtil, times()).unwrap();
        assert!(rows.iter().all(|row| row.is_sorted()));
        assert!(prophet.rows(&shard, Metric::IoOps, times()).is_none());
        let twice = Prophet::new((3, 1, 1), vec![(series.clone(), fit()), (series, fit())]);
        assert!(twice.problem().is_some());
    }
}
