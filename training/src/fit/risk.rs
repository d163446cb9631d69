//! Corrections of probabilities, read from past forecasts: what was said of limits, beside what then came.
//!
//! The past loads are the shards' own, summed in groups as if they shared a node, whether they did or not: observed demand,
//! not what a placement made of it. So a move that kept a node from its limit does not make the forecast that asked for it
//! look like a false alarm.

use std::collections::BTreeMap;

use foreshard_domain::{Metric, RiskCalibration, RiskCalibrations, ShardId, Timestamp};
use foreshard_model::{Features, GroupMember, RankTemplates, past_risk};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::after::Seen;
use super::sampling::Ready;

/// Limits of a series, as quantiles of its own past.
const SERIES_LIMITS: [f64; 4] = [0.8, 0.9, 0.95, 0.98];
/// Limits of a group, as quantiles of its summed past.
const GROUP_LIMITS: [f64; 3] = [0.9, 0.95, 0.98];
/// Most series, groups, and moments of a group that are looked at.
const MOST_SERIES: usize = 256;
const GROUPS: usize = 48;
const MOMENTS: usize = 12;
/// Fewest and most series of a group.
const SIZES: (usize, usize) = (2, 8);

/// Past forecasts by moment and place of their series.
type ByMoment<'a> = BTreeMap<Timestamp, BTreeMap<usize, &'a Seen<'a>>>;

/// The corrections that fit the past forecasts best; each is judged by the templates of other moments, whose windows do not
/// touch its own.
pub(super) fn calibrations(
    seen: &[Seen<'_>],
    templates: &RankTemplates,
    features: &Features,
    seed: u64,
) -> RiskCalibrations {
    let mut places: BTreeMap<(Metric, &ShardId), usize> = BTreeMap::new();
    let mut series: Vec<&Ready> = Vec::new();
    let mut by_moment: ByMoment<'_> = BTreeMap::new();
    for one in seen {
        let place = *places.entry((one.series.metric, &one.series.shard)).or_insert(series.len());
        if place == series.len() {
            series.push(one.series);
        }
        by_moment.entry(one.issued_at).or_default().insert(place, one);
    }
    let past = Past { templates, features, series, by_moment };
    RiskCalibrations { series: past.of_series(), groups: past.of_groups(seed) }
}

struct Past<'a> {
    templates: &'a RankTemplates,
    features: &'a Features,
    series: Vec<&'a Ready>,
    by_moment: ByMoment<'a>,
}

impl Past<'_> {
    /// What was said and what came for some series at a moment, by limit; nothing where too little is known.
    fn judged(&self, members: &[&Seen<'_>], limits: &[f64]) -> Vec<(f64, bool)> {
        let Some(first) = members.first() else { return Vec::new() };
        let window =
            self.features.step.as_ms().saturating_mul(i64::try_from(self.features.horizon).unwrap_or(i64::MAX));
        let apart = |at: Timestamp| at.since_ms(first.issued_at).saturating_abs() >= window;
        let group: Vec<GroupMember<'_>> = members
            .iter()
            .map(|s| GroupMember { shard: &s.series.shard, metric: s.series.metric, forecast: &s.forecast })
            .collect();
        let sum =
            |step: usize| members.iter().map(|s| s.truth.get(step).map_or(f64::NAN, |v| f64::from(*v))).sum::<f64>();
        let truth: Vec<f64> = (0..self.features.horizon).map(sum).collect();
        if truth.iter().filter(|v| v.is_finite()).count() * 2 < truth.len() {
            return Vec::new();
        }
        let said = past_risk(self.templates, &group, limits, apart).unwrap_or_default();
        said.into_iter().zip(limits).map(|(p, limit)| (p, truth.iter().any(|v| v > limit))).collect()
    }

    fn of_series(&self) -> RiskCalibration {
        let every = self.series.len().div_ceil(MOST_SERIES).max(1);
        let limits: BTreeMap<usize, Vec<f64>> = (0..self.series.len())
            .step_by(every)
            .filter_map(|place| Some((place, limits_of(&[self.series.get(place)?], &SERIES_LIMITS)?)))
            .collect();
        let mut samples = Vec::new();
        for forecasts in self.by_moment.values() {
            for (place, limits) in &limits {
                if let Some(one) = forecasts.get(place) {
                    samples.extend(self.judged(&[one], limits));
                }
            }
        }
        RiskCalibration::fit(&samples)
    }

    fn of_groups(&self, seed: u64) -> RiskCalibration {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut by_metric: BTreeMap<Metric, Vec<usize>> = BTreeMap::new();
        for (place, series) in self.series.iter().enumerate().filter(|(_, s)| s.metric.resource().is_some()) {
            by_metric.entry(series.metric).or_default().push(place);
        }
        by_metric.retain(|_, places| places.len() >= SIZES.0);
        let mut moments: Vec<_> = self.by_moment.values().collect();
        let mut samples = Vec::new();
        let metrics: Vec<&Vec<usize>> = by_metric.values().collect();
        for number in 0..GROUPS {
            let Some(places) = metrics.get(number % metrics.len().max(1)) else { break };
            let mut drawn = (*places).clone();
            let size = rng.random_range(SIZES.0..=SIZES.1).min(drawn.len());
            let group: Vec<usize> = drawn.partial_shuffle(&mut rng, size).0.to_vec();
            let own: Vec<&Ready> = group.iter().filter_map(|place| self.series.get(*place).copied()).collect();
            let Some(limits) = limits_of(&own, &GROUP_LIMITS) else { continue };
            for forecasts in moments.partial_shuffle(&mut rng, MOMENTS).0 {
                let members: Option<Vec<&Seen<'_>>> = group.iter().map(|place| forecasts.get(place).copied()).collect();
                samples.extend(members.map(|members| self.judged(&members, &limits)).unwrap_or_default());
            }
        }
        RiskCalibration::fit(&samples)
    }
}

/// Quantiles of the summed past of some series over the time that all of them have; `None` if that is empty.
fn limits_of(series: &[&Ready], levels: &[f64]) -> Option<Vec<f64>> {
    let shortest = series.iter().map(|s| s.raw.len()).min()?;
    let newest = |s: &&Ready| s.raw.get(s.raw.len() - shortest..).unwrap_or(&[]).to_vec();
    let mut sum = vec![0.0f64; shortest];
    for one in series {
        sum.iter_mut().zip(newest(one)).for_each(|(sum, v)| *sum += f64::from(v));
    }
    sum.retain(|v| v.is_finite());
    sum.sort_unstable_by(f64::total_cmp);
    levels.iter().map(|level| sorted_quantile(&sum, *level)).collect()
}

/// Quantile of values in rising order, linear between the two nearest; `None` of nothing.
fn sorted_quantile(sorted: &[f64], level: f64) -> Option<f64> {
    let place = level * sorted.len().checked_sub(1)? as f64;
    // Not negative and at most the last index.
    let below = place.floor() as usize;
    let (a, b) = (*sorted.get(below)?, *sorted.get(below + 1).or(sorted.get(below))?);
    Some(a + (b - a) * (place - place.floor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_past_are_linear_between_its_values() {
        assert_eq!(sorted_quantile(&[1.0, 2.0, 4.0], 0.5), Some(2.0));
        assert_eq!(sorted_quantile(&[1.0, 2.0, 4.0], 0.75), Some(3.0));
        assert_eq!((sorted_quantile(&[7.0], 0.98), sorted_quantile(&[], 0.5)), (Some(7.0), None));
    }
}
