//! Joint sample paths: template ranks pushed through today's quantiles.

use std::collections::{BTreeMap, BTreeSet};

use foreshard_domain::{
    Metric, QuantileForecast, Resource, ScenarioError, ScenarioSet, SeriesForecast, ShardId, Step, Timestamp,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::RankTemplates;
use crate::templates::{probability_of, stable_hash};

/// How far the ranks of a template move when it is drawn again.
const JITTER: f64 = 0.04;

/// `n` joint paths of the forecasts' loads; signals (metrics without a resource) are left out.
///
/// Scenario `k` takes the same template for every series, so it is joint over shards, resources and steps. More scenarios
/// than templates draw them again with slightly moved ranks. Without templates every series keeps one rank over all steps
/// (comonotone in time) and series are independent.
///
/// Forecasts may have been issued at different moments: all paths begin after the newest of them, and a path that would
/// need steps past its own horizon holds its last one. A (shard, resource) without forecast is zero throughout.
///
/// # Errors
/// [`ScenarioError`] if there is no forecast of a load, `n` is 0, or a series occurs twice.
pub fn scenarios_from(
    templates: Option<&RankTemplates>,
    forecasts: &[SeriesForecast],
    n: usize,
    seed: u64,
) -> Result<ScenarioSet, ScenarioError> {
    let loads: Vec<(&SeriesForecast, Resource)> =
        forecasts.iter().filter_map(|f| Some((f, f.metric.resource()?))).collect();
    let mut by_lane: BTreeMap<(Resource, &ShardId), &SeriesForecast> = BTreeMap::new();
    for (forecast, resource) in &loads {
        if by_lane.insert((*resource, &forecast.shard), forecast).is_some() {
            return Err(ScenarioError::Twice { name: format!("{} of shard {}", forecast.metric, forecast.shard) });
        }
    }
    let resources: Vec<Resource> = by_lane.keys().map(|(r, _)| *r).collect::<BTreeSet<_>>().into_iter().collect();
    let shards: Vec<ShardId> = by_lane.keys().map(|(_, s)| (*s).clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let newest = loads.iter().map(|(f, _)| f).max_by_key(|f| f.issued_at);
    let (issued_at, step) = newest.map_or((Timestamp::from_ms(0), Step::FIVE_MINUTES), |f| (f.issued_at, f.step));
    let steps = loads.iter().map(|(f, _)| f.forecast.horizon()).max().unwrap_or(0);
    let draw = Draw::new(templates.filter(|t| !t.is_empty()), n, seed);
    let mut values = Vec::with_capacity(resources.len() * shards.len() * steps * n);
    for resource in &resources {
        for shard in &shards {
            match by_lane.get(&(*resource, shard)) {
                Some(forecast) => draw.lane(forecast, issued_at, steps, &mut values),
                None => values.extend(std::iter::repeat_n(0.0, steps * n)),
            }
        }
    }
    ScenarioSet::new(issued_at, step, resources, shards, (steps, n), values)
}

/// Which probability every series takes in every scenario.
struct Draw<'a> {
    templates: Option<&'a RankTemplates>,
    /// Template and shift of the ranks, by scenario; empty without templates.
    picks: Vec<(usize, f64)>,
    n: usize,
    seed: u64,
}

impl<'a> Draw<'a> {
    fn new(templates: Option<&'a RankTemplates>, n: usize, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..templates.map_or(0, RankTemplates::len)).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let rounds = n.div_ceil(order.len().max(1));
        // Later rounds move up and down in turn, further each time, so that no two scenarios are equal.
        let shift = |round: usize| {
            let size = round.div_ceil(2) as f64 / rounds.max(1) as f64 * JITTER;
            if round % 2 == 1 { size } else { -size }
        };
        let picks = order.iter().cycle().take(n).enumerate();
        let picks = picks.map(|(k, template)| (*template, shift(k / order.len().max(1)))).collect();
        Self { templates, picks, n, seed }
    }

    /// Appends the paths of one series, step-major.
    fn lane(&self, series: &SeriesForecast, issued_at: Timestamp, steps: usize, values: &mut Vec<f32>) {
        let late = series.step.count_in(issued_at.since_ms(series.issued_at));
        let late = usize::try_from(late).unwrap_or(0);
        let last = series.forecast.horizon().saturating_sub(1);
        let floor = series.metric.lower_bound().map_or(f32::NEG_INFINITY, |b| b as f32);
        let ranks = self.templates.map(|t| (t, t.lane(&series.shard, series.metric)));
        let held = if ranks.is_none() { self.held(series) } else { Vec::new() };
        for step in (0..steps).map(|step| (step + late).min(last)) {
            let value = |u: f64| series.forecast.sample(step, u).max(floor);
            match &ranks {
                Some((templates, lane)) => {
                    let rank = |template: usize| lane.get(template * templates.slots() + templates.slot(step));
                    let u = |(template, shift): &(usize, f64)| {
                        rank(*template).map_or(0.5, |rank| probability_of(*rank) + shift).clamp(0.002, 0.998)
                    };
                    values.extend(self.picks.iter().map(|pick| value(u(pick))));
                }
                None => values.extend(held.iter().map(|u| value(*u))),
            }
        }
    }

    /// Evenly spread ranks in an order of the series' own.
    fn held(&self, series: &SeriesForecast) -> Vec<f64> {
        let own = stable_hash(series.shard.as_str()) ^ stable_hash(series.metric.name()).rotate_left(17);
        let mut ranks: Vec<f64> = (0..self.n).map(|k| (k as f64 + 0.5) / self.n as f64).collect();
        ranks.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ own));
        ranks
    }
}

/// Probability that the series exceeds `limit` at any step: the share of templates in which the rank of some step passes
/// the limit's. Without templates the largest probability of a single step, which is a lower bound.
pub fn any_step(
    templates: Option<&RankTemplates>,
    shard: &ShardId,
    metric: Metric,
    forecast: &QuantileForecast,
    limit: f64,
) -> f64 {
    let below: Vec<f64> = (0..forecast.horizon()).map(|step| 1.0 - forecast.exceedance(step, limit)).collect();
    let Some(templates) = templates.filter(|t| !t.is_empty()) else {
        return below.iter().map(|p| 1.0 - p).fold(0.0, f64::max);
    };
    let lane = templates.lane(shard, metric);
    let passes = |template: &[u8]| {
        below
            .iter()
            .enumerate()
            .any(|(step, p)| template.get(templates.slot(step)).is_some_and(|rank| probability_of(*rank) > *p))
    };
    let hits = lane.chunks_exact(templates.slots()).filter(|template| passes(template)).count();
    hits as f64 / templates.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TemplateLimits, TemplateSource};
    use foreshard_domain::{Provenance, QuantileLevels};

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    fn forecast() -> QuantileForecast {
        let levels = QuantileLevels::standard();
        let row: Vec<f32> = levels.as_slice().iter().map(|l| *l as f32 * 100.0).collect();
        QuantileForecast::new(levels, row.repeat(4)).unwrap()
    }

    fn series(name: &str, metric: Metric, issued_ms: i64) -> SeriesForecast {
        SeriesForecast {
            shard: shard(name),
            metric,
            issued_at: Timestamp::from_ms(issued_ms),
            step: Step::FIVE_MINUTES,
            forecast: forecast(),
            provenance: Provenance::default(),
        }
    }

    /// Two shards that are always high together or low together; one of four moments is high, and high throughout.
    fn templates() -> RankTemplates {
        let f = forecast();
        let names = [shard("a"), shard("b")];
        let truths: Vec<Vec<f32>> = (0..40).map(|t| vec![if t % 4 == 0 { 95.0 } else { 20.0 }; 4]).collect();
        let mut sources = Vec::new();
        for name in &names {
            for (t, truth) in truths.iter().enumerate() {
                let issued_at = Timestamp::from_ms(t as i64);
                sources.push(TemplateSource { shard: name, metric: Metric::CpuUtil, issued_at, forecast: &f, truth });
            }
        }
        RankTemplates::build(4, &sources, &TemplateLimits::default())
    }

    #[test]
    fn scenarios_are_joint_over_shards_and_steps() {
        let templates = templates();
        let both =
            [series("a", Metric::CpuUtil, 0), series("b", Metric::CpuUtil, 0), series("b", Metric::LatencyMs, 0)];
        let set = scenarios_from(Some(&templates), &both, 40, 7).unwrap();
        assert_eq!((set.shards().len(), set.resources(), set.steps()), (2, &[Resource::Cpu][..], 4));
        // Independent, both would be over 90 in one of sixteen; joint, in one of four, and for the whole window.
        let risk = set.node_sum(0, [0, 1]).risk(180.0, 0..4);
        assert!((risk.probability - 0.25).abs() < 1e-9, "{risk:?}");
        assert_eq!(set, scenarios_from(Some(&templates), &both, 40, 7).unwrap());
        assert_ne!(set, scenarios_from(Some(&templates), &both, 40, 8).unwrap());
        let more = scenarios_from(Some(&templates), &both, 100, 7).unwrap();
        assert!((more.node_sum(0, [0, 1]).risk(175.0, 0..4).probability - 0.25).abs() < 0.06);
    }

    #[test]
    fn without_templates_ranks_are_held_in_time() {
        let set =
            scenarios_from(None, &[series("a", Metric::CpuUtil, 0), series("b", Metric::CpuUtil, 0)], 200, 1).unwrap();
        let one = set.node_sum(0, [0]).risk(90.0, 0..4).probability;
        assert!((one - 0.1).abs() < 0.02, "{one}");
        let both = set.node_sum(0, [0, 1]).risk(190.0, 0..4).probability;
        assert!(both < 0.05, "{both}");
    }

    #[test]
    fn late_and_missing_lanes() {
        let set = scenarios_from(None, &[series("a", Metric::CpuUtil, 0), series("b", Metric::IoOps, 600_000)], 3, 1)
            .unwrap();
        assert_eq!(set.issued_at(), Timestamp::from_ms(600_000));
        assert!(set.lane(0, 1).unwrap().iter().all(|v| *v == 0.0));
        assert!(set.lane(1, 1).unwrap().iter().any(|v| *v > 0.0));
        let twice = [series("a", Metric::CpuUtil, 0), series("a", Metric::CpuUtil, 0)];
        assert!(matches!(scenarios_from(None, &twice, 3, 1), Err(ScenarioError::Twice { .. })));
        assert!(scenarios_from(None, &[], 0, 1).is_err());
    }

    #[test]
    fn any_step_counts_persistent_overload_once() {
        let templates = templates();
        let p = any_step(Some(&templates), &shard("a"), Metric::CpuUtil, &forecast(), 90.0);
        assert!((p - 0.25).abs() < 1e-9);
        let alone = any_step(None, &shard("a"), Metric::CpuUtil, &forecast(), 90.0);
        assert!((alone - 0.1).abs() < 1e-6);
        let donor = any_step(Some(&templates), &shard("new"), Metric::IoOps, &forecast(), 90.0);
        assert!((donor - 0.25).abs() < 1e-9);
    }
}
