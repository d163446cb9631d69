//! Which windows are set aside, and what is seen of them.

use super::*;
use foreshard_datasets::History;
use foreshard_domain::{Observation, Product};

/// Two shards with a daily rhythm on five-minute steps; the second one starts later.
fn history(days: i64) -> History {
    let row = |shard: &str, i: i64| {
        let ts = Timestamp::from_ms(i * 300_000);
        let load = 30.0 + 20.0 * ((i % 288) as f64 / 288.0 * std::f64::consts::TAU).sin();
        let mut row = Observation::empty(ShardId::new(shard).unwrap(), ts);
        row.cpu_util = Some(load);
        row.txn_rate = (shard == "a").then_some(load * 7.0);
        row
    };
    let late = days * 288 / 2;
    let rows = (0..days * 288).map(|i| row("a", i)).chain((late..days * 288).map(|i| row("b", i)));
    History::from_observations(rows).unwrap()
}

fn plan(days: i64) -> BacktestPlan {
    let (hours, day) = (ForecastSpec::of_product(Product::NextHours), ForecastSpec::of_product(Product::NextDay));
    BacktestPlan::new(&history(days).into(), [("next_hours", &hours), ("next_day", &day)], None).unwrap()
}

#[test]
fn windows_lie_at_the_end_and_leave_enough_before() {
    let plan = plan(42);
    assert_eq!(plan.windows.len(), 4);
    assert!(plan.skipped.is_empty());
    let counts: Vec<usize> = plan.windows.iter().map(|w| w.protocol.windows).collect();
    assert_eq!(counts, [12, 12, 7, 7]);
    for windows in &plan.windows {
        for (i, laid) in windows.series.iter().enumerate() {
            let s = plan.read(windows, i).unwrap();
            assert_eq!(s.origin(s.windows - 1) + s.horizon, s.series.values.len());
            assert_eq!((laid.start, laid.first_window), (s.series.start, s.series.time_of(s.first)));
        }
    }
    let of_b = plan.left_out.iter().filter(|(_, l)| l.shard.as_str() == "b").count();
    assert_eq!(of_b, 2, "shard b has no transactions: {:?}", plan.left_out);
    let end = Timestamp::from_ms(42 * 86_400_000);
    assert_eq!(plan.trained_until().map(|t| end.since_ms(t)), Some(2 * 86_400_000));
    assert_eq!(plan.first_window().map(|t| end.since_ms(t)), Some(7 * 86_400_000));
}

#[test]
fn a_history_too_short_for_a_product_skips_it_and_says_so() {
    let short = plan(12);
    assert_eq!(short.products(), ["next_hours", "next_day"].into());
    let shorter = plan(11);
    assert_eq!(shorter.products(), ["next_hours"].into());
    assert_eq!(shorter.skipped[0].product, "next_day");
    assert_eq!(shorter.skipped[0].why, "it needs 12.0 days of history, there are 11.0");
    assert_eq!(plan(5).skipped.len(), 2);
}

#[test]
fn nothing_measured_is_nothing_to_train() {
    let spec = ForecastSpec::of_product(Product::NextHours);
    let plan = BacktestPlan::new(&history(20).into(), [("next_hours", &spec)], Some(&[Metric::IoOps])).unwrap();
    assert!(plan.windows.is_empty());
    assert!(plan.skipped[0].why.contains("none has a value"), "{:?}", plan.skipped);
}
