use super::*;
use std::time::Duration;

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
    let contest = Contest {
        product: "next_hours",
        metric: "cpu_util",
        challenger,
        champion,
        naive,
        rivals: Vec::new(),
        classes: Vec::new(),
        steadiness: [None; 2],
    };
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
        classes: Vec::new(),
        steadiness: [None; 2],
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
            classes: Vec::new(),
            steadiness: [None; 2],
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
            classes: Vec::new(),
            steadiness: [None; 2],
        },
        Contest {
            product: "p",
            metric: "mem_util",
            challenger: &flat,
            champion: None,
            naive: &perfect,
            rivals: vec![("last_value", &perfect)],
            classes: Vec::new(),
            steadiness: [None; 2],
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
            classes: Vec::new(),
            steadiness: [None; 2],
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
        classes: Vec::new(),
        steadiness: [None; 2],
    };
    assert!(says(&gate(&[contest], &[], &GateLimits::default()), "the same windows"));
}

#[test]
fn a_class_of_series_is_not_sacrificed() {
    let (naive, ours) = (scores(0.2, 0.8), scores(0.1, 0.8));
    // Series of the class, their ratio and its lower end, promoted. A lower end just above 1 may be chance.
    let table = [
        (12, 1.08, 1.05, false),
        (12, 1.08, 1.01, true),
        (12, 1.08, 0.99, true),
        (12, 1.015, 1.01, true),
        (4, 1.5, 1.4, true),
    ];
    for (series, ratio, low, promoted) in table {
        let loss = LossRatio { ratio, low, high: ratio * ratio / low };
        let contest = Contest {
            product: "next_hours",
            metric: "cpu_util",
            challenger: &ours,
            champion: Some(&ours),
            naive: &naive,
            rivals: Vec::new(),
            classes: vec![ClassRatio { class: SeriesClass::Erratic, series, loss }],
            steadiness: [None; 2],
        };
        let verdict = gate(&[contest], &[], &GateLimits::default());
        assert_eq!(verdict.promoted, promoted, "{series} {ratio}: {:?}", verdict.reasons);
        let says = verdict.reasons[0].contains("12 erratic series are worse off than under the champion: WQL 1.080");
        assert_eq!(says, !promoted, "{:?}", verdict.reasons);
    }
}

#[test]
fn coverage_may_not_go_far_from_that_of_the_champion() {
    let table = [(0.80, 0.78, true), (0.80, 0.76, false), (0.80, 0.84, false), (0.72, 0.88, true), (0.66, 0.92, true)];
    for (before, now, promoted) in table {
        let verdict = judge(&scores(0.1, now), Some(&scores(0.1, before)), &scores(0.2, 0.8));
        assert_eq!(verdict.promoted, promoted, "{before} {now}: {:?}", verdict.reasons);
        let says = verdict.reasons[0].contains("at most 3 points further off are allowed");
        assert_eq!(says, !promoted, "{:?}", verdict.reasons);
    }
}

#[test]
fn who_is_unsteady_or_slow_does_not_serve() {
    let (good, naive) = (scores(0.10, 0.8), scores(0.14, 0.8));
    let judged = |own: (f64, u64), champion: Option<f64>| {
        let of = |revision, ms| Steadiness { revision: Some(revision), latency: Duration::from_millis(ms) };
        let contest = Contest {
            product: "next_hours",
            metric: "cpu_util",
            challenger: &good,
            champion: champion.map(|_| &good),
            naive: &naive,
            rivals: Vec::new(),
            classes: Vec::new(),
            steadiness: [Some(of(own.0, own.1)), champion.map(|revision| of(revision, 1))],
        };
        gate(&[contest], &[], &GateLimits::default())
    };
    assert!(judged((0.9, 249), None).promoted && judged((1.2, 5), Some(1.3)).promoted);
    for (verdict, told) in [
        (judged((1.1, 1), None), "means change by 1.10 of their error while half a window passes, limit 1.00"),
        (judged((1.1, 1), Some(0.5)), "limit 1.00"),
        (judged((1.4, 1), Some(1.3)), "limit 1.30"),
        (judged((f64::NAN, 1), None), "means change by NaN"),
        (judged((0.1, 251), None), "one forecast takes 251.0 ms, limit 250 ms"),
    ] {
        assert!(!verdict.promoted && verdict.reasons[0].contains(told), "{:?}", verdict.reasons);
    }
}
