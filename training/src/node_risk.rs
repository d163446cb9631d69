//! How well the risk of nodes is foretold: random groups of shards, each as if it shared a node.

use std::collections::BTreeMap;

use foreshard_datasets::{EvalSeries, GridSeries};
use foreshard_domain::{NodeRiskFigures, Provenance, RiskBin, RiskCalibration, ScenarioSet, SeriesForecast};
use foreshard_model::{RankTemplates, scenarios_from};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Evaluation;
use crate::statistics::mean;

/// Scenarios of a window: as many as templates are kept.
const SCENARIOS: usize = 240;
/// Fewest and most shards of a group.
const SIZES: (usize, usize) = (2, 8);
/// Bins of the probability.
const BINS: usize = 10;

/// What is drawn, and against which limit it is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeRiskSpec {
    /// Groups of 2 to 8 shards.
    pub groups: usize,
    /// The limit of a group is this quantile of its summed values before the first window.
    pub limit: f64,
    /// Seed of groups and scenarios.
    pub seed: u64,
}

/// What was said of a window of a group, and what came.
#[derive(Debug, Clone, Copy)]
struct Judged {
    joint: f64,
    independent: f64,
    max_marginal: f64,
    event: bool,
}

/// Judges the risk of random groups in every window of an evaluation. Shards are drawn among those whose windows lie at the same
/// times, the most that do; `None` if there are not two of them, their metric is no load, or no window can be judged.
pub fn node_risk(
    series: &[EvalSeries],
    evaluation: &Evaluation,
    (templates, calibration): (Option<&RankTemplates>, &RiskCalibration),
    spec: &NodeRiskSpec,
) -> Option<NodeRiskFigures> {
    let mut alike: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, one) in series.iter().enumerate().filter(|(_, s)| s.metric.resource().is_some()) {
        let shape = (one.metric, one.series.end(), one.windows, one.stride, one.series.values.len() - one.first);
        alike.entry(shape).or_default().push(i);
    }
    let candidates = alike.into_values().max_by_key(Vec::len).filter(|c| c.len() >= SIZES.0)?;
    let judged: Vec<Judged> = (0..spec.groups)
        .into_par_iter()
        .flat_map_iter(|number| {
            let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
            rng.set_stream(u64::try_from(number).unwrap_or(u64::MAX));
            let size = rng.random_range(SIZES.0..=SIZES.1).min(candidates.len());
            let mut drawn = candidates.clone();
            let members = drawn.partial_shuffle(&mut rng, size).0.to_vec();
            judge(series, evaluation, (templates, calibration), spec, &members, &mut rng)
        })
        .collect();
    figures(spec.groups, &judged)
}

/// The windows of one group that can be judged.
fn judge(
    series: &[EvalSeries],
    evaluation: &Evaluation,
    (templates, calibration): (Option<&RankTemplates>, &RiskCalibration),
    spec: &NodeRiskSpec,
    members: &[usize],
    rng: &mut ChaCha8Rng,
) -> Vec<Judged> {
    let own: Vec<&EvalSeries> = members.iter().filter_map(|i| series.get(*i)).collect();
    let Some(sum) = summed(&own) else { return Vec::new() };
    let limit = sum.threshold(spec.limit);
    let window = |w: usize| -> Option<Judged> {
        let event = sum.event(w, limit)?;
        let forecast = |(i, one): (&usize, &&EvalSeries)| {
            let forecast = evaluation.forecasts.get(*i)?.get(w)?.clone();
            let (shard, metric, step) = (one.shard.clone(), one.metric, one.series.step);
            Some(SeriesForecast {
                shard,
                metric,
                issued_at: one.issued_at(w),
                step,
                forecast,
                provenance: Provenance::default(),
            })
        };
        let forecasts: Vec<SeriesForecast> = members.iter().zip(&own).map(forecast).collect::<Option<_>>()?;
        let set = scenarios_from(templates, &forecasts, SCENARIOS, spec.seed).ok()?;
        let joint = calibration.apply(set.node_sum(0, 0..own.len()).risk(limit as f32, 0..set.steps()).probability);
        let (independent, max_marginal) = apart(&set, limit, rng);
        Some(Judged { joint, independent, max_marginal, event })
    };
    let mut window = window;
    (0..sum.windows).filter_map(&mut window).collect()
}

/// The group as one series: sums of what its members measured, missing where any of them is.
fn summed(members: &[&EvalSeries]) -> Option<EvalSeries> {
    let shortest = members.iter().map(|m| m.measured.len()).min()?;
    let newest = |m: &EvalSeries| m.measured.get(m.measured.len() - shortest..).unwrap_or_default().to_vec();
    let (head, rest) = members.split_first()?;
    let mut measured = newest(head);
    for member in rest {
        measured.iter_mut().zip(newest(member)).for_each(|(sum, value)| *sum += value);
    }
    let cut = head.measured.len() - shortest;
    let series = GridSeries {
        start: head.series.time_of(cut),
        step: head.series.step,
        values: measured.iter().map(|v| *v as f32).collect(),
    };
    Some(EvalSeries { series, measured, first: head.first.checked_sub(cut)?, ..(*head).clone() })
}

/// Probabilities from the same paths with every shard's scenarios in an order of its own: 1 - product of (1 - p of the step),
/// and the largest p of a step.
fn apart(set: &ScenarioSet, limit: f64, rng: &mut ChaCha8Rng) -> (f64, f64) {
    let n = set.scenarios();
    let mut sums = vec![0.0f64; set.steps() * n];
    for lane in (0..set.shards().len()).filter_map(|shard| set.lane(0, shard)) {
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(rng);
        for (sums, values) in sums.chunks_exact_mut(n.max(1)).zip(lane.chunks_exact(n.max(1))) {
            let drawn = order.iter().filter_map(|k| values.get(*k));
            sums.iter_mut().zip(drawn).for_each(|(sum, value)| *sum += f64::from(*value));
        }
    }
    let over = |step: &[f64]| step.iter().filter(|v| **v > limit).count() as f64 / n.max(1) as f64;
    let steps: Vec<f64> = sums.chunks_exact(n.max(1)).map(over).collect();
    (1.0 - steps.iter().map(|p| 1.0 - p).product::<f64>(), steps.into_iter().fold(0.0, f64::max))
}

fn figures(groups: usize, judged: &[Judged]) -> Option<NodeRiskFigures> {
    let came = |j: &Judged| f64::from(u8::from(j.event));
    let brier = |of: fn(&Judged) -> f64| mean(&judged.iter().map(|j| (of(j) - came(j)).powi(2)).collect::<Vec<_>>());
    let bin = |number: usize| -> Option<RiskBin> {
        let edges = (number as f64 / BINS as f64, (number + 1) as f64 / BINS as f64);
        let last = number + 1 == BINS;
        let own: Vec<&Judged> = judged.iter().filter(|j| j.joint >= edges.0 && (j.joint < edges.1 || last)).collect();
        let predicted = mean(&own.iter().map(|j| j.joint).collect::<Vec<_>>())?;
        let observed = mean(&own.iter().map(|j| came(j)).collect::<Vec<_>>())?;
        Some(RiskBin { windows: own.len(), predicted, observed })
    };
    Some(NodeRiskFigures {
        groups,
        windows: judged.len(),
        observed: mean(&judged.iter().map(came).collect::<Vec<_>>())?,
        joint: brier(|j| j.joint)?,
        independent: brier(|j| j.independent)?,
        max_marginal: brier(|j| j.max_marginal)?,
        bins: (0..BINS).filter_map(bin).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, QuantileForecast, QuantileLevels, ShardId, Step, Timestamp};
    use foreshard_model::{TemplateLimits, TemplateSource};

    const HORIZON: usize = 4;
    const WINDOWS: usize = 40;
    const PAST: usize = 400;

    /// A flat past, then windows in which all shards are high together (one in four) or low together.
    fn shard(name: &str) -> EvalSeries {
        let high = |w: usize| if w.is_multiple_of(4) { 95.0 } else { 20.0 };
        let windows = (0..WINDOWS * HORIZON).map(|i| high(i / HORIZON));
        let measured: Vec<f64> = std::iter::repeat_n(50.0, PAST).chain(windows).collect();
        let values = measured.iter().map(|v| *v as f32).collect();
        EvalSeries {
            shard: ShardId::new(name).unwrap(),
            metric: Metric::CpuUtil,
            series: GridSeries { start: Timestamp::from_ms(0), step: Step::FIVE_MINUTES, values },
            measured,
            first: PAST,
            horizon: HORIZON,
            windows: WINDOWS,
            stride: HORIZON,
            events: Default::default(),
        }
    }

    fn uniform() -> QuantileForecast {
        let levels = QuantileLevels::standard();
        let row: Vec<f32> = levels.as_slice().iter().map(|l| *l as f32 * 100.0).collect();
        QuantileForecast::new(levels, row.repeat(HORIZON)).unwrap()
    }

    fn evaluation(series: &[EvalSeries]) -> Evaluation {
        let protocol = foreshard_datasets::Protocol::load("5T").unwrap();
        let forecasts: Vec<Vec<QuantileForecast>> = series.iter().map(|_| vec![uniform(); WINDOWS]).collect();
        let scored: Vec<crate::ScoredSeries<'_>> = series
            .iter()
            .zip(&forecasts)
            .map(|(series, forecasts)| crate::ScoredSeries { series, forecasts, p_any: None })
            .collect();
        let (scores, by_series) = crate::score(&scored, &protocol).unwrap();
        let levels = QuantileLevels::standard();
        Evaluation { name: "uniform".into(), levels, rows: Vec::new(), scores, by_series, forecasts }
    }

    #[test]
    fn what_comes_together_is_foretold_together() {
        let series: Vec<EvalSeries> = ["a", "b", "c", "d"].map(shard).to_vec();
        let forecast = uniform();
        let truths: Vec<Vec<f32>> = (0..40).map(|t| vec![if t % 4 == 0 { 95.0 } else { 20.0 }; HORIZON]).collect();
        let sources: Vec<TemplateSource<'_>> = series
            .iter()
            .flat_map(|s| {
                truths.iter().enumerate().map(|(t, truth)| TemplateSource {
                    shard: &s.shard,
                    metric: s.metric,
                    issued_at: Timestamp::from_ms(t as i64),
                    forecast: &forecast,
                    truth,
                })
            })
            .collect();
        let templates = RankTemplates::build(HORIZON, &sources, &TemplateLimits::default());
        let spec = NodeRiskSpec { groups: 30, limit: 0.95, seed: 1 };
        let figures =
            node_risk(&series, &evaluation(&series), (Some(&templates), &RiskCalibration::default()), &spec).unwrap();
        assert_eq!((figures.groups, figures.windows, figures.observed), (30, 30 * WINDOWS, 0.25));
        // Every window is one in four, and nobody can know which.
        assert!((figures.joint - 0.25 * 0.75).abs() < 0.01, "{figures:?}");
        assert!(figures.independent > figures.joint + 0.05, "{figures:?}");
        assert!(figures.bins.iter().all(|b| (b.predicted - b.observed).abs() < 0.05), "{figures:?}");
        assert_eq!(figures.bins.iter().map(|b| b.windows).sum::<usize>(), figures.windows);
        assert_eq!(
            node_risk(&series, &evaluation(&series), (Some(&templates), &RiskCalibration::default()), &spec).unwrap(),
            figures
        );
    }

    #[test]
    fn one_shard_is_no_group() {
        let series = [shard("a")];
        let spec = NodeRiskSpec { groups: 3, limit: 0.95, seed: 1 };
        assert_eq!(node_risk(&series, &evaluation(&series), (None, &RiskCalibration::default()), &spec), None);
    }
}
