//! Rank templates: where the truth fell in past forecasts, at the same moments for all series.

use std::collections::{BTreeMap, BTreeSet};

use foreshard_domain::{Metric, QuantileForecast, ShardId, Timestamp};

/// Rank of a slot about which nothing is known.
const UNKNOWN: u8 = 0;
/// Ranks run from 1 to this.
const RANKS: u8 = 255;
/// Most slots of a template; longer horizons hold one rank over several steps.
const MOST_SLOTS: usize = 48;

/// Caps on what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateLimits {
    /// Most moments; the newest are kept.
    pub templates: usize,
    /// Most bytes of ranks; beyond it older moments go first, down to 40, then series.
    pub bytes: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self { templates: 240, bytes: 32 << 20 }
    }
}

/// Fewest moments that are kept before series are dropped.
const FEWEST_TEMPLATES: usize = 40;

/// One past forecast of one series and what then happened.
#[derive(Debug, Clone, Copy)]
pub struct TemplateSource<'a> {
    /// Whose.
    pub shard: &'a ShardId,
    /// Of what.
    pub metric: Metric,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// The forecast.
    pub forecast: &'a QuantileForecast,
    /// The values observed, `NaN` where none was.
    pub truth: &'a [f32],
}

/// Why stored ranks are no templates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplatesError {
    /// A template has another number of slots than the horizon asks for.
    #[error("template of {shard}, {metric} has {got} ranks instead of {want}")]
    Slots {
        /// Whose.
        shard: ShardId,
        /// Of what.
        metric: Metric,
        /// Ranks found.
        got: usize,
        /// Ranks wanted.
        want: usize,
    },
}

/// Ranks by series, moment and slot.
///
/// One template is one moment: the ranks of all series at that moment belong together, so a joint draw takes the same
/// template for all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct RankTemplates {
    horizon: usize,
    coarse: usize,
    issued_at: Vec<Timestamp>,
    series: BTreeMap<(Metric, ShardId), Vec<u8>>,
}

/// The rank of a value in a step of a forecast, 1 to 255; 0 if the value is not finite.
///
/// A value on a flat stretch of the quantiles gets the middle of its stretch.
pub fn rank_of(forecast: &QuantileForecast, step: usize, truth: f32) -> u8 {
    if !truth.is_finite() {
        return UNKNOWN;
    }
    let truth = f64::from(truth);
    let near = truth.abs() * 1e-6 + 1e-6;
    let above = (forecast.exceedance(step, truth - near) + forecast.exceedance(step, truth + near)) / 2.0;
    // In 0..=254 by the clamp, so the cast cannot cut.
    1 + ((1.0 - above) * f64::from(RANKS)).clamp(0.0, f64::from(RANKS) - 1.0) as u8
}

/// The probability in the middle of a rank.
pub(crate) fn probability_of(rank: u8) -> f64 {
    (f64::from(rank) - 0.5) / f64::from(RANKS)
}

impl RankTemplates {
    /// Steps over which one rank is held.
    fn coarse_of(horizon: usize) -> usize {
        horizon.div_ceil(MOST_SLOTS).max(1)
    }

    /// Ranks from past forecasts of any series at any moments; series and moments are aligned by time.
    ///
    /// A rank held over several steps is that of the first of them whose truth is known.
    pub fn build(horizon: usize, sources: &[TemplateSource<'_>], limits: &TemplateLimits) -> Self {
        let rows = sources.iter().map(|source| {
            let ranks = Self::ranks_of(horizon, source.forecast, source.truth);
            ((source.metric, source.shard.clone()), source.issued_at, ranks)
        });
        Self::from_ranks(horizon, rows.collect(), limits)
    }

    /// How many series have room within the limits, even with the fewest moments.
    pub fn most_series(horizon: usize, limits: &TemplateLimits) -> usize {
        let slots = horizon.div_ceil(Self::coarse_of(horizon)).max(1);
        (limits.bytes / (slots * FEWEST_TEMPLATES.min(limits.templates).max(1))).max(1)
    }

    /// The ranks of one past forecast, one for each slot of the horizon.
    pub fn ranks_of(horizon: usize, forecast: &QuantileForecast, truth: &[f32]) -> Vec<u8> {
        let coarse = Self::coarse_of(horizon);
        let slot = |from: usize| {
            let mut ranks = (from..(from + coarse).min(horizon))
                .map(|step| truth.get(step).map_or(UNKNOWN, |truth| rank_of(forecast, step, *truth)));
            ranks.find(|rank| *rank != UNKNOWN).unwrap_or(UNKNOWN)
        };
        (0..horizon).step_by(coarse).map(slot).collect()
    }

    /// Templates from ranks already computed, each for a series and a moment.
    pub fn from_ranks(
        horizon: usize,
        rows: Vec<((Metric, ShardId), Timestamp, Vec<u8>)>,
        limits: &TemplateLimits,
    ) -> Self {
        let coarse = Self::coarse_of(horizon);
        let slots = horizon.div_ceil(coarse).max(1);
        let moments: BTreeSet<Timestamp> = rows.iter().map(|(_, at, _)| *at).collect();
        let names: BTreeSet<&(Metric, ShardId)> = rows.iter().map(|(name, _, _)| name).collect();
        let affordable = limits.bytes / (slots * names.len().max(1));
        let keep = limits.templates.min(affordable.max(FEWEST_TEMPLATES.min(limits.templates))).min(moments.len());
        let issued_at: Vec<Timestamp> =
            moments.into_iter().rev().take(keep).collect::<Vec<_>>().into_iter().rev().collect();
        let most_series = (limits.bytes / (slots * keep.max(1))).max(1);
        let every = names.len().div_ceil(most_series).max(1);
        let kept: BTreeSet<(Metric, ShardId)> = names.into_iter().step_by(every).cloned().collect();
        let mut series: BTreeMap<(Metric, ShardId), Vec<u8>> = BTreeMap::new();
        for (name, at, ranks) in rows {
            let Ok(template) = issued_at.binary_search(&at) else { continue };
            if !kept.contains(&name) {
                continue;
            }
            let lane = series.entry(name).or_insert_with(|| vec![UNKNOWN; issued_at.len() * slots]);
            if let Some(target) = lane.get_mut(template * slots..(template + 1) * slots) {
                target.iter_mut().zip(ranks).for_each(|(t, r)| *t = r);
            }
        }
        Self { horizon, coarse, issued_at, series }
    }

    /// How many moments.
    pub fn len(&self) -> usize {
        self.issued_at.len()
    }

    /// Whether there is nothing to draw from.
    pub fn is_empty(&self) -> bool {
        self.issued_at.is_empty() || self.series.is_empty()
    }

    /// Steps of the forecasts that they belong to.
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// Number of ranks in a template of one series.
    pub fn slots(&self) -> usize {
        self.horizon.div_ceil(self.coarse).max(1)
    }

    /// The slot that a step belongs to.
    pub(crate) fn slot(&self, step: usize) -> usize {
        (step / self.coarse).min(self.slots() - 1)
    }

    /// The moments, oldest first.
    pub fn issued_at(&self) -> &[Timestamp] {
        &self.issued_at
    }

    /// All series with their ranks, template after template.
    pub fn series(&self) -> impl Iterator<Item = (&ShardId, Metric, &[u8])> {
        self.series.iter().map(|((metric, shard), ranks)| (shard, *metric, ranks.as_slice()))
    }

    /// Ranks of a series for drawing: known throughout, template after template.
    ///
    /// What a series lacks comes from a donor of the same metric (or, without one, of any) at the same moment, so that
    /// what happened to everybody then still happens to it.
    pub(crate) fn lane(&self, shard: &ShardId, metric: Metric) -> Vec<u8> {
        let own = self.series.get(&(metric, shard.clone()));
        let donor = self.donor(shard, metric);
        let middle = RANKS / 2 + 1;
        let mut previous = middle;
        let mut lane = Vec::with_capacity(self.len() * self.slots());
        for i in 0..self.len() * self.slots() {
            if i % self.slots() == 0 {
                previous = middle;
            }
            let known = [own, donor].into_iter().flatten().filter_map(|ranks| ranks.get(i).copied());
            previous = known.into_iter().find(|rank| *rank != UNKNOWN).unwrap_or(previous);
            lane.push(previous);
        }
        lane
    }

    fn donor(&self, shard: &ShardId, metric: Metric) -> Option<&Vec<u8>> {
        let mut donors: Vec<_> = self.series.iter().filter(|((m, s), _)| *m == metric && s != shard).collect();
        if donors.is_empty() {
            donors = self.series.iter().filter(|((_, s), _)| s != shard).collect();
        }
        let at = usize::try_from(stable_hash(shard.as_str()) % donors.len().max(1) as u64).unwrap_or(0);
        donors.get(at).map(|(_, ranks)| *ranks)
    }

    /// Templates read back from a file.
    pub(crate) fn from_stored(
        horizon: usize,
        rows: Vec<((Metric, ShardId), Timestamp, Vec<u8>)>,
    ) -> Result<Self, TemplatesError> {
        let want = horizon.div_ceil(Self::coarse_of(horizon)).max(1);
        if let Some(((metric, shard), _, ranks)) = rows.iter().find(|(_, _, ranks)| ranks.len() != want) {
            return Err(TemplatesError::Slots { shard: shard.clone(), metric: *metric, got: ranks.len(), want });
        }
        let limits = TemplateLimits { templates: usize::MAX, bytes: usize::MAX };
        Ok(Self::from_ranks(horizon, rows, &limits))
    }
}

/// FNV-1a: the same on every machine and in every version.
pub(crate) fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::QuantileLevels;

    fn forecast(horizon: usize) -> QuantileForecast {
        let levels = QuantileLevels::standard();
        let row: Vec<f32> = levels.as_slice().iter().map(|l| *l as f32 * 100.0).collect();
        QuantileForecast::new(levels, row.repeat(horizon)).unwrap()
    }

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    #[test]
    fn ranks_are_where_the_truth_fell() {
        let f = forecast(1);
        for level in [0.01f32, 0.25, 0.5, 0.9, 0.97] {
            let p = probability_of(rank_of(&f, 0, level * 100.0));
            assert!((p - f64::from(level)).abs() < 0.01, "{level} {p}");
        }
        assert_eq!((rank_of(&f, 0, f32::NAN), rank_of(&f, 0, 1e9), rank_of(&f, 0, -1e9)), (0, 255, 1));
        let flat = QuantileForecast::flat(QuantileLevels::standard(), 1, 3.0);
        assert!((probability_of(rank_of(&flat, 0, 3.0)) - 0.5).abs() < 0.01);
    }

    #[test]
    fn aligned_by_moment_and_capped() {
        let f = forecast(96);
        let names: Vec<ShardId> = (0..5).map(|i| shard(&format!("s{i}"))).collect();
        let truth = vec![50.0; 96];
        let mut sources = Vec::new();
        for (i, name) in names.iter().enumerate() {
            for t in 0..60 {
                let issued_at = Timestamp::from_ms(t * 1000);
                if i != 0 || t % 2 == 0 {
                    sources.push(TemplateSource {
                        shard: name,
                        metric: Metric::CpuUtil,
                        issued_at,
                        forecast: &f,
                        truth: &truth,
                    });
                }
            }
        }
        let all = RankTemplates::build(96, &sources, &TemplateLimits::default());
        assert_eq!((all.len(), all.slots(), all.series().count()), (60, 48, 5));
        assert!(all.lane(&names[0], Metric::CpuUtil).iter().all(|r| *r != 0));
        assert_eq!(all.lane(&shard("new"), Metric::IoOps).len(), 60 * 48);
        let few = RankTemplates::build(96, &sources, &TemplateLimits { templates: 10, bytes: usize::MAX });
        assert_eq!(few.issued_at()[0], Timestamp::from_ms(50_000));
        let small = RankTemplates::build(96, &sources, &TemplateLimits { templates: 240, bytes: 48 * 40 * 2 });
        assert_eq!((small.len(), small.series().count()), (40, 2));
    }
}
