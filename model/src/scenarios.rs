//! Joint sample paths: template ranks pushed through today's quantiles.

use std::collections::{BTreeMap, BTreeSet};

use foreshard_domain::{
    Metric, QuantileForecast, Resource, RiskCalibration, ScenarioError, ScenarioSet, SeriesForecast, ShardId, Step,
    Timestamp,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::RankTemplates;
use crate::templates::{probability_of, stable_hash};

/// What is less likely than this by the quantiles of every single step is told as impossible.
const IMPOSSIBLE: f64 = 1e-6;
/// Fewest moments from which a probability is read.
pub const FEWEST_MOMENTS: usize = 10;
/// How far the middle ranks of a template move when it is drawn again. Outer ones move less, so that no extreme is made that
/// never was: risk is about extremes.
const JITTER: f64 = 0.02;

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
                        let drawn = rank(*template).map_or(0.5, |rank| probability_of(*rank));
                        (drawn + shift * 4.0 * drawn * (1.0 - drawn)).clamp(0.002, 0.998)
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
    let hits = lane.chunks_exact(templates.slots()).filter(|template| passes(templates, template, &below)).count();
    hits as f64 / templates.len().max(1) as f64
}

/// The same, corrected. What the quantiles themselves rule out, or what no load can be, stays out of the question: there is
/// nothing in the past that it could be corrected by.
pub fn any_step_corrected(
    calibration: &RiskCalibration,
    templates: Option<&RankTemplates>,
    series: (&ShardId, Metric),
    forecast: &QuantileForecast,
    limit: f64,
) -> f64 {
    let (shard, metric) = series;
    let each = (0..forecast.horizon()).map(|step| forecast.exceedance(step, limit));
    let (largest, sum) = each.fold((0.0, 0.0), |(largest, sum), p| (f64::max(largest, p), sum + p));
    if largest < IMPOSSIBLE {
        return 0.0;
    }
    if largest > 1.0 - IMPOSSIBLE || metric.lower_bound().is_some_and(|bound| limit < bound) {
        return 1.0;
    }
    // Past the highest rank that ever was no moment counts any more; what the steps say each goes on falling (Boole).
    calibration.apply_within(any_step(templates, shard, metric, forecast, limit), sum)
}

/// Whether the ranks of a template are over the limit at any step; `below` holds P(value <= limit) by step.
fn passes(templates: &RankTemplates, template: &[u8], below: &[f64]) -> bool {
    let over =
        |(step, p): (usize, &f64)| template.get(templates.slot(step)).is_some_and(|rank| probability_of(*rank) > *p);
    below.iter().enumerate().any(over)
}

/// A past forecast of one of the series of a group.
#[derive(Debug, Clone, Copy)]
pub struct GroupMember<'a> {
    /// Whose.
    pub shard: &'a ShardId,
    /// Of what.
    pub metric: Metric,
    /// The forecast.
    pub forecast: &'a QuantileForecast,
}

/// What would have been said at a past moment about the sum of some series: the probabilities that it exceeds each of
/// `limits` at any step, from the templates of those moments that `counts` lets count, such as those whose windows do not
/// touch this one. `None` where fewer than [`FEWEST_MOMENTS`] count.
pub fn past_risk(
    templates: &RankTemplates,
    members: &[GroupMember<'_>],
    limits: &[f64],
    counts: impl Fn(Timestamp) -> bool,
) -> Option<Vec<f64>> {
    let counted = templates.issued_at().iter().enumerate().filter(|(_, at)| counts(**at));
    let moments: Vec<usize> = counted.map(|(i, _)| i).collect();
    if moments.len() < FEWEST_MOMENTS {
        return None;
    }
    let lanes: Vec<Vec<u8>> = members.iter().map(|m| templates.lane(m.shard, m.metric)).collect();
    let hits = match (members, lanes.as_slice()) {
        // One series needs no sum: its ranks are compared with the limit's, as in service.
        ([one], [lane]) => limits.iter().map(|limit| hits_of_one(templates, one, lane, &moments, *limit)).collect(),
        _ => hits_of_sum(templates, members, &lanes, &moments, limits),
    };
    Some(hits.into_iter().map(|hits: usize| hits as f64 / moments.len() as f64).collect())
}

fn hits_of_one(templates: &RankTemplates, one: &GroupMember<'_>, lane: &[u8], moments: &[usize], limit: f64) -> usize {
    let slots = templates.slots();
    let below: Vec<f64> = (0..one.forecast.horizon()).map(|s| 1.0 - one.forecast.exceedance(s, limit)).collect();
    let own = moments.iter().filter_map(|moment| lane.get(moment * slots..(moment + 1) * slots));
    own.filter(|template| passes(templates, template, &below)).count()
}

fn hits_of_sum(
    templates: &RankTemplates,
    members: &[GroupMember<'_>],
    lanes: &[Vec<u8>],
    moments: &[usize],
    limits: &[f64],
) -> Vec<usize> {
    let mut hits = vec![0usize; limits.len()];
    for moment in moments {
        let value = |(member, lane): (&GroupMember<'_>, &Vec<u8>), step: usize| {
            let rank = lane.get(moment * templates.slots() + templates.slot(step));
            let u = rank.map_or(0.5, |rank| probability_of(*rank)).clamp(0.002, 0.998);
            let floor = member.metric.lower_bound().unwrap_or(f64::NEG_INFINITY);
            f64::from(member.forecast.sample(step, u)).max(floor)
        };
        let sum = |step: usize| members.iter().zip(lanes).map(|one| value(one, step)).sum::<f64>();
        let highest = (0..templates.horizon()).map(sum).fold(f64::NEG_INFINITY, f64::max);
        hits.iter_mut().zip(limits).for_each(|(hits, limit)| *hits += usize::from(highest > *limit));
    }
    hits
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
    fn what_is_ruled_out_is_not_corrected() {
        let (templates, name) = (templates(), shard("a"));
        let doubtful = RiskCalibration { bias: -0.5, slope: 0.5 };
        let p = |limit| any_step_corrected(&doubtful, Some(&templates), (&name, Metric::CpuUtil), &forecast(), limit);
        assert_eq!((p(-1.0), p(1e9)), (1.0, 0.0));
        assert!((p(90.0) - doubtful.apply(0.25)).abs() < 1e-12);
        assert!(p(10.0) >= p(90.0));
        // The highest rank that ever was is .95; beyond it the tails tell one limit from another.
        let beyond = [104.0, 108.0, 112.0].map(p);
        assert!(beyond.is_sorted_by(|a, b| a > b) && p(101.0) <= p(90.0) && beyond[0] <= p(101.0), "{beyond:?}");
    }

    #[test]
    fn past_risk_is_read_from_the_moments_that_count() {
        let templates = templates();
        let (a, b, f) = (shard("a"), shard("b"), forecast());
        let member = |shard| GroupMember { shard, metric: Metric::CpuUtil, forecast: &f };
        let (one, both) = ([member(&a)], [member(&a), member(&b)]);
        assert_eq!(past_risk(&templates, &one, &[10.0, 90.0, 99.9], |_| true), Some(vec![1.0, 0.25, 0.0]));
        assert_eq!(past_risk(&templates, &both, &[20.0, 180.0, 199.9], |_| true), Some(vec![1.0, 0.25, 0.0]));
        // Every fourth moment was high; the others alone know of no risk.
        let calm = |at: Timestamp| at.as_ms() % 4 != 0;
        assert_eq!(past_risk(&templates, &both, &[180.0], calm), Some(vec![0.0]));
        assert_eq!(past_risk(&templates, &one, &[90.0], |at| at.as_ms() < 9), None);
    }

    #[test]
    fn templates_drawn_again_make_no_extreme_that_never_was() {
        let templates = templates();
        let once = scenarios_from(Some(&templates), &[series("a", Metric::CpuUtil, 0)], 40, 7).unwrap();
        let thrice = scenarios_from(Some(&templates), &[series("a", Metric::CpuUtil, 0)], 120, 7).unwrap();
        let highest = |set: &ScenarioSet| set.lane(0, 0).unwrap().iter().copied().fold(0.0f32, f32::max);
        assert!(highest(&thrice) < highest(&once) + 0.5, "{} {}", highest(&thrice), highest(&once));
        let mut paths: Vec<u32> = thrice.lane(0, 0).unwrap().iter().take(120).map(|v| v.to_bits()).collect();
        paths.sort_unstable();
        paths.dedup();
        assert!(paths.len() > 4, "paths drawn again differ");
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
