//! Corrections of probabilities, read from past forecasts: what was said of limits, beside what then came.
//!
//! The past loads are the shards' own, summed in groups as if they shared a node, whether they did or not: observed demand,
//! not what a placement made of it. So a move that kept a node from its limit does not make the forecast that asked for it
//! look like a false alarm.

use std::collections::BTreeMap;

use foreshard_datasets::quantile;
use foreshard_domain::{Metric, QuantileForecast, RiskCalibration, RiskCalibrations, Timestamp};
use foreshard_model::{Features, GroupMember, RankTemplates, past_risk};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::after::AnsweredPast;

/// Most series that are looked at.
pub(super) const MOST_SERIES: usize = 96;
/// Limits of a series, as quantiles of its own past.
const SERIES_LIMITS: [f64; 4] = [0.8, 0.9, 0.95, 0.98];
/// Limits of a group, as quantiles of its summed past.
const GROUP_LIMITS: [f64; 3] = [0.9, 0.95, 0.98];
/// Groups, and moments of each that are looked at.
const GROUPS: usize = 48;
const MOMENTS: usize = 12;
/// Fewest and most series of a group.
const SIZES: (usize, usize) = (2, 8);

/// A forecast of the past and what came.
type Told<'a> = (&'a QuantileForecast, &'a [f32]);

/// The corrections that fit the past forecasts best; each is judged by the templates of other moments, whose windows do not
/// touch its own.
pub(super) fn calibrations(
    series: &[AnsweredPast<'_>],
    templates: &RankTemplates,
    features: &Features,
    seed: u64,
) -> RiskCalibrations {
    let past = Past { templates, features, series };
    RiskCalibrations { series: past.of_series(), groups: past.of_groups(seed) }
}

struct Past<'a> {
    templates: &'a RankTemplates,
    features: &'a Features,
    series: &'a [AnsweredPast<'a>],
}

impl Past<'_> {
    /// What was said and what came for some series at a moment, by limit; nothing where too little is known.
    fn judged(&self, at: Timestamp, members: &[(&AnsweredPast<'_>, Told<'_>)], limits: &[f64]) -> Vec<(f64, bool)> {
        let steps = i64::try_from(self.features.horizon).unwrap_or(i64::MAX);
        let window = self.features.step.as_ms().saturating_mul(steps);
        let apart = |other: Timestamp| other.since_ms(at).saturating_abs() >= window;
        let group: Vec<GroupMember<'_>> = members
            .iter()
            .map(|(past, (forecast, _))| {
                let (shard, metric) = (&past.series.shard, past.series.metric);
                GroupMember { shard, metric, forecast }
            })
            .collect();
        let mut truth = vec![0.0f64; self.features.horizon];
        for (step, sum) in truth.iter_mut().enumerate() {
            for (_, (_, came)) in members {
                *sum += came.get(step).map_or(f64::NAN, |v| f64::from(*v));
            }
        }
        if truth.iter().filter(|v| v.is_finite()).count() * 2 < truth.len() {
            return Vec::new();
        }
        let said = past_risk(self.templates, &group, limits, apart).unwrap_or_default();
        said.into_iter().zip(limits).map(|(p, limit)| (p, truth.iter().any(|v| v > limit))).collect()
    }

    fn of_series(&self) -> RiskCalibration {
        let mut samples = Vec::new();
        for past in self.series {
            let Some(limits) = limits_of(&[past], &SERIES_LIMITS) else { continue };
            for (at, forecast, truth) in &past.forecasts {
                samples.extend(self.judged(*at, &[(past, (forecast, truth))], &limits));
            }
        }
        RiskCalibration::fit(&samples)
    }

    fn of_groups(&self, seed: u64) -> RiskCalibration {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut by_metric: BTreeMap<Metric, Vec<&AnsweredPast<'_>>> = BTreeMap::new();
        for past in self.series.iter().filter(|past| past.series.metric.resource().is_some()) {
            by_metric.entry(past.series.metric).or_default().push(past);
        }
        by_metric.retain(|_, alike| alike.len() >= SIZES.0);
        let metrics: Vec<_> = by_metric.into_values().collect();
        let mut samples = Vec::new();
        for number in 0..GROUPS {
            let Some(mut drawn) = metrics.get(number % metrics.len().max(1)).cloned() else { break };
            let size = rng.random_range(SIZES.0..=SIZES.1).min(drawn.len());
            samples.extend(self.of_group(drawn.partial_shuffle(&mut rng, size).0, &mut rng));
        }
        RiskCalibration::fit(&samples)
    }

    /// One group at some of the moments at which all its series were forecast.
    fn of_group(&self, group: &[&AnsweredPast<'_>], rng: &mut ChaCha8Rng) -> Vec<(f64, bool)> {
        let Some(limits) = limits_of(group, &GROUP_LIMITS) else { return Vec::new() };
        let mut by_moment: BTreeMap<Timestamp, Vec<(&AnsweredPast<'_>, Told<'_>)>> = BTreeMap::new();
        for past in group {
            for (at, forecast, truth) in &past.forecasts {
                by_moment.entry(*at).or_default().push((*past, (forecast, truth.as_slice())));
            }
        }
        by_moment.retain(|_, members| members.len() == group.len());
        let mut moments: Vec<_> = by_moment.into_iter().collect();
        let drawn = moments.partial_shuffle(rng, MOMENTS).0.iter();
        drawn.flat_map(|(at, members)| self.judged(*at, members, &limits)).collect()
    }
}

/// Quantiles of the summed past of some series over the time that all of them have; `None` if that is empty.
fn limits_of(series: &[&AnsweredPast<'_>], levels: &[f64]) -> Option<Vec<f64>> {
    let shortest = series.iter().map(|s| s.values.raw.len()).min()?;
    let mut sum = vec![0.0f64; shortest];
    for one in series {
        let newest = one.values.raw.len() - shortest;
        sum.iter_mut().zip(one.values.raw.iter().skip(newest)).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    sum.retain(|v| v.is_finite());
    sum.sort_unstable_by(f64::total_cmp);
    (!sum.is_empty()).then(|| levels.iter().map(|level| quantile(&sum, *level)).collect())
}
