//! Whether a new version may serve: better than seasonal naive and than the best rival, and not worse than the champion, on
//! the same windows (F3).

use foreshard_domain::{GateVerdict, LossRatio, Scores, SeriesClass};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::Steadiness;
use crate::statistics::mean;

/// What a version has to keep to be promoted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateLimits {
    /// WQL over that of seasonal naive, geometric mean over products and metrics, must be below this.
    pub ratio_to_naive: f64,
    /// The same of every single product and metric: one may be a little worse where the others gain.
    pub worst_ratio_to_naive: f64,
    /// WQL over that of the best rival, the one with the least geometric mean, must be below this.
    pub ratio_to_rival: f64,
    /// WQL over that of the champion, geometric mean, must not be above this.
    pub ratio_to_champion: f64,
    /// WQL over that of the champion of one class of series of a product and metric, beyond what chance can make of it, must not
    /// be above this.
    pub class_ratio_to_champion: f64,
    /// How much further from .80 than the champion's the coverage of a product may be.
    pub coverage_from_champion: f64,
    /// Least coverage of the .1 to .9 interval of each product, mean over its metrics.
    pub least_coverage: f64,
    /// Highest coverage of the same: intervals that hold everything say nothing.
    pub most_coverage: f64,
    /// Most that means may change while half a window passes, over the error that they had ([`Steadiness::revision`]), of
    /// each product and metric; or as much as the champion's change.
    pub most_revision: f64,
    /// Longest that the forecast of one series alone may take, in milliseconds.
    pub most_latency_ms: f64,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            ratio_to_naive: 1.0,
            worst_ratio_to_naive: 1.1,
            ratio_to_rival: 1.0,
            ratio_to_champion: 1.02,
            class_ratio_to_champion: 1.02,
            coverage_from_champion: 0.03,
            least_coverage: 0.6,
            most_coverage: 0.95,
            most_revision: 1.0,
            most_latency_ms: 250.0,
        }
    }
}

/// Figures of everybody on the same windows: one product (or protocol) and metric.
#[derive(Debug, Clone)]
pub struct Contest<'a> {
    /// The product or protocol.
    pub product: &'a str,
    /// The metric.
    pub metric: &'a str,
    /// The version that wants to serve.
    pub challenger: &'a Scores,
    /// The version that serves, where it offers this product.
    pub champion: Option<&'a Scores>,
    /// Seasonal naive.
    pub naive: &'a Scores,
    /// Other rivals, by name.
    pub rivals: Vec<(&'a str, &'a Scores)>,
    /// The challenger's loss over the champion's by class of series, where there is a champion.
    pub classes: Vec<ClassRatio>,
    /// How steady and how fast the challenger is, and the champion; `None` where nothing can be said.
    pub steadiness: [Option<Steadiness>; 2],
}

/// How a class of series fares under the challenger, beside the champion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassRatio {
    /// The class.
    pub class: SeriesClass,
    /// Series of it.
    pub series: usize,
    /// The challenger's loss over the champion's.
    pub loss: LossRatio,
}

/// Least series of a class before it decides: fewer are anecdotes.
const LEAST_OF_CLASS: usize = 5;
/// The goal of the 80 % interval.
const COVERAGE_GOAL: f64 = 0.8;

/// Added to both sides of a ratio: losses of less than a thousandth of the demand do not tell forecasters apart, and a
/// metric that never changes must not decide by the last digit.
pub(crate) const NEGLIGIBLE: f64 = 1e-3;

/// One check and what it found.
struct Check {
    passed: bool,
    reason: String,
}

fn check(passed: bool, reason: String) -> Check {
    Check { passed, reason }
}

/// Decides from figures alone. `withdrawn` are products that the champion offers and the challenger does not.
///
/// Promotion takes all of: something to compare, the same windows for everybody, better than seasonal naive over all, in no
/// part much worse, better than the best rival, not worse than the champion beyond the stated margin, no class of series worse
/// than under the champion beyond it and beyond chance, coverage inside its bounds and not much further from its goal than the
/// champion's, means that follow what becomes known and not noise, answers in time, no product less.
pub fn gate(contests: &[Contest<'_>], withdrawn: &[String], limits: &GateLimits) -> GateVerdict {
    let mut checks = Vec::new();
    if contests.iter().all(|c| c.challenger.wql.is_none()) {
        checks.push(check(false, "the backtest has no window with demand, so nothing was proved".to_owned()));
    }
    checks.extend(contests.iter().filter_map(same_windows));
    checks.extend(against_naive(contests, limits));
    checks.extend(against_rivals(contests, limits));
    checks.extend(against_champion(contests, limits));
    checks.extend(classes(contests, limits));
    checks.extend(coverage(contests, limits));
    checks.extend(steady(contests, limits));
    checks.extend(in_time(contests, limits));
    let gone =
        |product: &String| check(false, format!("{product} would no longer be offered, but the champion offers it"));
    checks.extend(withdrawn.iter().map(gone));
    // Stable: failed ones first, otherwise in the order of the checks.
    checks.sort_by_key(|c| c.passed);
    GateVerdict { promoted: checks.iter().all(|c| c.passed), reasons: checks.into_iter().map(|c| c.reason).collect() }
}

fn same_windows(contest: &Contest<'_>) -> Option<Check> {
    let size = |s: &Scores| (s.series, s.windows, s.points);
    let all = [Some(contest.naive), contest.champion].into_iter().flatten();
    let mut all = all.chain(contest.rivals.iter().map(|(_, scores)| *scores));
    let odd = all.any(|s| size(s) != size(contest.challenger));
    odd.then(|| {
        check(false, format!("{}, {}: not everybody was scored on the same windows", contest.product, contest.metric))
    })
}

/// Who changes its mind by more than it was wrong: nothing is said of those that do not.
fn steady(contests: &[Contest<'_>], limits: &GateLimits) -> Vec<Check> {
    let told = |c: &Contest<'_>| {
        let [own, champion] = c.steadiness.map(|s| s?.revision);
        let (own, limit) = (own?, champion.map_or(limits.most_revision, |champion| champion.max(limits.most_revision)));
        let reason = format!(
            "{}, {}: means change by {own:.2} of their error while half a window passes, limit {limit:.2}",
            c.product, c.metric
        );
        (own.is_nan() || own > limit).then(|| check(false, reason))
    };
    contests.iter().filter_map(told).collect()
}

/// Whose answers take too long. What was measured is told only then: two trainings of one history are to say the same.
fn in_time(contests: &[Contest<'_>], limits: &GateLimits) -> Vec<Check> {
    let slow = |c: &Contest<'_>| {
        let (took, limit) = (c.steadiness[0]?.latency.as_secs_f64() * 1e3, limits.most_latency_ms);
        let reason = format!("{}, {}: one forecast takes {took:.1} ms, limit {limit} ms", c.product, c.metric);
        (took > limit).then(|| check(false, reason))
    };
    contests.iter().filter_map(slow).collect()
}

/// Ratio of two losses; `None` if either is not known or not a number.
fn ratio(ours: &Scores, theirs: &Scores) -> Option<f64> {
    let ratio = (ours.wql? + NEGLIGIBLE) / (theirs.wql? + NEGLIGIBLE);
    ratio.is_finite().then_some(ratio)
}

fn geometric_mean(ratios: &[f64]) -> Option<f64> {
    (!ratios.is_empty()).then(|| (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp())
}

fn against_naive(contests: &[Contest<'_>], limits: &GateLimits) -> Vec<Check> {
    let mut checks = Vec::new();
    let ratios: Vec<(&Contest<'_>, f64)> =
        contests.iter().filter_map(|c| Some((c, ratio(c.challenger, c.naive)?))).collect();
    let unknown = contests.iter().filter(|c| c.naive.wql.is_some() && ratio(c.challenger, c.naive).is_none());
    for c in unknown {
        checks.push(check(false, format!("{}, {}: its WQL is not a number", c.product, c.metric)));
    }
    let values: Vec<f64> = ratios.iter().map(|(_, r)| *r).collect();
    if let Some(mean) = geometric_mean(&values) {
        let better = mean < limits.ratio_to_naive;
        let word = if better { "better than" } else { "not better than" };
        let reason = format!("{word} seasonal naive: WQL {mean:.3} of its, limit below {:.3}", limits.ratio_to_naive);
        checks.push(check(better, reason));
    }
    for (c, r) in ratios.iter().filter(|(_, r)| *r > limits.worst_ratio_to_naive) {
        let limit = limits.worst_ratio_to_naive;
        let reason = format!("{}, {}: WQL {r:.3} of seasonal naive, limit {limit:.3}", c.product, c.metric);
        checks.push(check(false, reason));
    }
    checks
}

/// Every rival over all contests that it took part in; the best of them decides.
fn against_rivals(contests: &[Contest<'_>], limits: &GateLimits) -> Option<Check> {
    let mut ratios: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for contest in contests {
        for (name, scores) in &contest.rivals {
            ratios.entry(name).or_default().extend(ratio(contest.challenger, scores));
        }
    }
    let means = ratios.iter().filter_map(|(name, ratios)| Some((*name, geometric_mean(ratios)?)));
    let (name, mean) = means.max_by(|a, b| a.1.total_cmp(&b.1))?;
    let better = mean < limits.ratio_to_rival;
    let word = if better { "better than" } else { "not better than" };
    let limit = limits.ratio_to_rival;
    Some(check(better, format!("{word} the best rival, {name}: WQL {mean:.3} of its, limit below {limit:.3}")))
}

fn against_champion(contests: &[Contest<'_>], limits: &GateLimits) -> Option<Check> {
    let ratios: Vec<f64> = contests.iter().filter_map(|c| ratio(c.challenger, c.champion?)).collect();
    let mean = geometric_mean(&ratios)?;
    let held = mean <= limits.ratio_to_champion;
    let word = if held { "not worse than" } else { "worse than" };
    Some(check(held, format!("{word} the champion: WQL {mean:.3} of its, limit {:.3}", limits.ratio_to_champion)))
}

/// Classes that lose: nothing is said of those that do not.
fn classes(contests: &[Contest<'_>], limits: &GateLimits) -> Vec<Check> {
    let limit = limits.class_ratio_to_champion;
    let counts = |c: &&ClassRatio| c.series >= LEAST_OF_CLASS;
    let looks = contests.iter().flat_map(|c| &c.classes).filter(counts).count();
    let loses = |c: &&ClassRatio| counts(c) && c.loss.ratio > limit && beyond_chance(&c.loss, looks);
    let told = |contest: &Contest<'_>, c: &ClassRatio| {
        let LossRatio { ratio, low, high } = c.loss;
        let (class, n) = (c.class.name(), c.series);
        let place = format!("{}, {}", contest.product, contest.metric);
        check(
            false,
            format!(
                "{place}: {n} {class} series are worse off than under the champion: WQL {ratio:.3} of its ({low:.3} to {high:.3}), limit {limit:.3}"
            ),
        )
    };
    contests.iter().flat_map(|contest| contest.classes.iter().filter(loses).map(move |c| told(contest, c))).collect()
}

/// Whether a ratio is above 1 by more than chance makes of the worst of `looks` ratios in one of twenty backtests. Its logarithm
/// is taken for normal; P(z > x) is at most exp(-x^2 / 2), and of several ratios at most their sum.
fn beyond_chance(loss: &LossRatio, looks: usize) -> bool {
    // The interval leaves out a twentieth on each side.
    let deviation = (loss.high.ln() - loss.low.ln()) / (2.0 * 1.645);
    let needed = (2.0 * (looks.max(1) as f64 / 0.05).ln()).sqrt();
    loss.ratio.ln() > needed * deviation.max(0.0)
}

/// Mean over the metrics of a product of the 80 % coverage that `of` says.
fn mean_coverage<'a>(
    contests: &[Contest<'a>],
    product: &str,
    of: impl Fn(&Contest<'a>) -> Option<&'a Scores>,
) -> Option<f64> {
    let of_product = contests.iter().filter(|c| c.product == product);
    let covered: Vec<f64> = of_product.filter_map(|c| of(c)?.coverage_80).collect();
    mean(&covered)
}

fn coverage(contests: &[Contest<'_>], limits: &GateLimits) -> Vec<Check> {
    let mut products: Vec<&str> = contests.iter().map(|c| c.product).collect();
    products.dedup();
    let percent = |share: f64| share * 100.0;
    let inside = |product: &&str| {
        let mean = mean_coverage(contests, product, |c| Some(c.challenger))?;
        let inside = (limits.least_coverage..=limits.most_coverage).contains(&mean);
        let (mean, least, most) = (percent(mean), percent(limits.least_coverage), percent(limits.most_coverage));
        let reason =
            format!("{product}: the 80 % interval holds {mean:.1} % of what came, allowed {least:.0} to {most:.0} %");
        Some(check(inside, reason))
    };
    let kept = |product: &&str| {
        let mean = mean_coverage(contests, product, |c| Some(c.challenger))?;
        let before = mean_coverage(contests, product, |c| c.champion)?;
        let further = (mean - COVERAGE_GOAL).abs() - (before - COVERAGE_GOAL).abs();
        let (mean, before, limit) = (percent(mean), percent(before), percent(limits.coverage_from_champion));
        let reason = format!(
            "{product}: the 80 % interval holds {mean:.1} % of what came, the champion's {before:.1} %; at most {limit:.0} points further off are allowed"
        );
        // Rounding must not decide at the limit itself.
        (further > limits.coverage_from_champion + 1e-9).then(|| check(false, reason))
    };
    products.iter().filter_map(inside).chain(products.iter().filter_map(kept)).collect()
}

#[cfg(test)]
mod tests;
