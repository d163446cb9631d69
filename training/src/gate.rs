//! Whether a new version may serve: better than seasonal naive and than the best rival, and not worse than the champion, on
//! the same windows (F3).

use foreshard_domain::{GateVerdict, Scores};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Least coverage of the .1 to .9 interval of each product, mean over its metrics.
    pub least_coverage: f64,
    /// Highest coverage of the same: intervals that hold everything say nothing.
    pub most_coverage: f64,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            ratio_to_naive: 1.0,
            worst_ratio_to_naive: 1.1,
            ratio_to_rival: 1.0,
            ratio_to_champion: 1.02,
            least_coverage: 0.6,
            most_coverage: 0.95,
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
}

/// Added to both sides of a ratio: losses of less than a thousandth of the demand do not tell forecasters apart, and a
/// metric that never changes must not decide by the last digit.
const NEGLIGIBLE: f64 = 1e-3;

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
/// part much worse, better than the best rival, not worse than the champion beyond the stated margin, coverage inside its bounds, no product less.
pub fn gate(contests: &[Contest<'_>], withdrawn: &[String], limits: &GateLimits) -> GateVerdict {
    let mut checks = Vec::new();
    if contests.iter().all(|c| c.challenger.wql.is_none()) {
        checks.push(check(false, "the backtest has no window with demand, so nothing was proved".to_owned()));
    }
    checks.extend(contests.iter().filter_map(same_windows));
    checks.extend(against_naive(contests, limits));
    checks.extend(against_rivals(contests, limits));
    checks.extend(against_champion(contests, limits));
    checks.extend(coverage(contests, limits));
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

fn coverage(contests: &[Contest<'_>], limits: &GateLimits) -> Vec<Check> {
    let mut products: Vec<&str> = contests.iter().map(|c| c.product).collect();
    products.dedup();
    let of_product = |product: &&str| {
        let covered = contests.iter().filter(|c| c.product == *product).filter_map(|c| c.challenger.coverage_80);
        let (sum, n) = covered.fold((0.0, 0.0), |(sum, n), c| (sum + c, n + 1.0));
        let mean = sum / n;
        let inside = (limits.least_coverage..=limits.most_coverage).contains(&mean);
        let reason = format!(
            "{product}: the 80 % interval holds {:.1} % of what came, allowed {:.0} to {:.0} %",
            mean * 100.0,
            limits.least_coverage * 100.0,
            limits.most_coverage * 100.0
        );
        (n > 0.0).then(|| check(inside, reason))
    };
    products.iter().filter_map(of_product).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(wql: f64, coverage: f64) -> Scores {
        let known = wql.is_finite() || wql.is_nan();
        Scores {
            series: 3,
            windows: 2,
            points: 288,
            wql: known.then_some(wql),
            coverage_80: Some(coverage),
            ..Scores::default()
        }
    }

    fn judge(challenger: &Scores, champion: Option<&Scores>, naive: &Scores) -> GateVerdict {
        let contest =
            Contest { product: "next_hours", metric: "cpu_util", challenger, champion, naive, rivals: Vec::new() };
        gate(&[contest], &[], &GateLimits::default())
    }

    #[test]
    fn f3_nothing_that_lost_its_backtest_is_promoted() {
        // WQL and coverage of the challenger, WQL of champion and naive, verdict, what a reason says.
        type Row = (f64, f64, Option<f64>, f64, bool, &'static str);
        let table: [Row; 12] = [
            (0.10, 0.80, None, 0.14, true, "better than seasonal naive: WQL 0.716"),
            (0.14, 0.80, None, 0.14, false, "not better than seasonal naive: WQL 1.000"),
            (0.15, 0.80, None, 0.14, false, "not better than seasonal naive"),
            (0.10, 0.80, Some(0.10), 0.14, true, "not worse than the champion: WQL 1.000"),
            (0.10, 0.80, Some(0.12), 0.14, true, "not worse than the champion: WQL 0.835"),
            (0.101, 0.80, Some(0.10), 0.14, true, "limit 1.020"),
            (0.11, 0.80, Some(0.10), 0.14, false, "worse than the champion: WQL 1.099"),
            (0.10, 0.59, None, 0.14, false, "holds 59.0 % of what came, allowed 60 to 95 %"),
            (0.10, 0.96, None, 0.14, false, "holds 96.0 %"),
            (f64::NAN, 0.80, None, 0.14, false, "its WQL is not a number"),
            (f64::INFINITY, 0.80, None, 0.14, false, "nothing was proved"),
            (0.0, 0.80, Some(0.0), 0.14, true, "WQL 1.000 of its"),
        ];
        for (wql, coverage, champion, naive, promoted, says) in table {
            let champion = champion.map(|w| scores(w, 0.8));
            let verdict = judge(&scores(wql, coverage), champion.as_ref(), &scores(naive, 0.8));
            assert_eq!(verdict.promoted, promoted, "{wql} {champion:?}: {:?}", verdict.reasons);
            assert!(verdict.reasons.iter().any(|r| r.contains(says)), "{says}: {:?}", verdict.reasons);
        }
    }

    #[test]
    fn failed_checks_are_told_first() {
        let verdict = judge(&scores(0.10, 0.5), None, &scores(0.14, 0.8));
        assert!(verdict.reasons[0].contains("80 % interval"), "{:?}", verdict.reasons);
        assert_eq!(verdict.reasons.len(), 2);
    }

    #[test]
    fn f3_other_windows_prove_nothing() {
        let other = Scores { points: 287, ..scores(0.14, 0.8) };
        let verdict = judge(&scores(0.10, 0.8), None, &other);
        assert!(!verdict.promoted && verdict.reasons[0].contains("the same windows"));
        assert!(!gate(&[], &[], &GateLimits::default()).promoted);
    }

    #[test]
    fn a_product_is_not_taken_away() {
        let (challenger, naive) = (scores(0.1, 0.8), scores(0.14, 0.8));
        let contest = Contest {
            product: "next_hours",
            metric: "cpu_util",
            challenger: &challenger,
            champion: None,
            naive: &naive,
            rivals: Vec::new(),
        };
        let verdict = gate(&[contest], &["next_day".to_owned()], &GateLimits::default());
        assert!(!verdict.promoted && verdict.reasons[0].contains("next_day would no longer be offered"));
    }

    #[test]
    fn gains_elsewhere_pay_for_a_little_loss_but_not_for_a_large_one() {
        let naive = scores(0.2, 0.8);
        let verdict = |second: f64| {
            let (good, poor) = (scores(0.1, 0.8), scores(second, 0.8));
            let (champion, naive) = (None, &naive);
            let contest = |metric, challenger| Contest {
                product: "next_day",
                metric,
                challenger,
                champion,
                naive,
                rivals: Vec::new(),
            };
            gate(&[contest("cpu_util", &good), contest("io_ops", &poor)], &[], &GateLimits::default())
        };
        assert!(verdict(0.21).promoted);
        let refused = verdict(0.25);
        assert!(!refused.promoted && refused.reasons[0].contains("io_ops: WQL 1.249"), "{:?}", refused.reasons);
    }

    #[test]
    fn a_metric_that_never_changes_does_not_decide() {
        // Seasonal naive is perfect on a constant; being off by a ten-thousandth of it is no loss.
        let verdict = judge(&scores(0.0001, 0.9), None, &scores(0.0, 1.0));
        assert!(!verdict.promoted);
        let (good, flat) = (scores(0.1, 0.8), scores(0.00005, 0.9));
        let (naive, perfect) = (scores(0.2, 0.8), scores(0.0, 1.0));
        let contests = [
            Contest {
                product: "p",
                metric: "cpu_util",
                challenger: &good,
                champion: None,
                naive: &naive,
                rivals: vec![("last_value", &naive)],
            },
            Contest {
                product: "p",
                metric: "mem_util",
                challenger: &flat,
                champion: None,
                naive: &perfect,
                rivals: vec![("last_value", &perfect)],
            },
        ];
        assert!(gate(&contests, &[], &GateLimits::default()).promoted);
    }

    #[test]
    fn f3_the_best_rival_over_all_parts_has_to_be_beaten() {
        let (naive, ours) = (scores(0.2, 0.8), scores(0.1, 0.8));
        let verdict = |ridge: [f64; 2], last: [f64; 2]| {
            let (ridge, last) = (ridge.map(|wql| scores(wql, 0.8)), last.map(|wql| scores(wql, 0.8)));
            let contest = |metric, i: usize| Contest {
                product: "next_hours",
                metric,
                challenger: &ours,
                champion: None,
                naive: &naive,
                rivals: vec![("last_value", &last[i]), ("ridge", &ridge[i])],
            };
            gate(&[contest("cpu_util", 0), contest("io_ops", 1)], &[], &GateLimits::default())
        };
        // One part lost to ridge is paid for by the other; the mean of ridge is the nearest.
        let passed = verdict([0.09, 0.12], [0.3, 0.3]);
        assert!(passed.promoted, "{:?}", passed.reasons);
        let says = |verdict: &GateVerdict, text: &str| verdict.reasons.iter().any(|r| r.contains(text));
        assert!(says(&passed, "better than the best rival, ridge: WQL 0.963"), "{:?}", passed.reasons);
        let refused = verdict([0.3, 0.3], [0.09, 0.1]);
        assert!(!refused.promoted && refused.reasons[0].starts_with("not better than the best rival, last_value"));
        assert!(!verdict([0.1, 0.1], [0.3, 0.3]).promoted, "as good is not better");
        let other = Scores { points: 1, ..scores(0.3, 0.8) };
        let contest = Contest {
            product: "p",
            metric: "cpu_util",
            challenger: &ours,
            champion: None,
            naive: &naive,
            rivals: vec![("ridge", &other)],
        };
        assert!(says(&gate(&[contest], &[], &GateLimits::default()), "the same windows"));
    }
}
