use super::*;
use foreshard_datasets::{Event, GridSeries, ScaleBasis};
use foreshard_domain::{QuantileLevels, Step, Timestamp};
use proptest::prelude::*;

/// A protocol with a season of so many steps of five minutes; the event is a value over the 95th percentile.
fn protocol(season: i64, scale: ScaleBasis) -> Protocol {
    let season = Step::from_ms(season * Step::FIVE_MINUTES.as_ms()).unwrap();
    let event = if scale == ScaleBasis::FirstWindow { Event::TrainQuantile(0.95) } else { Event::None };
    Protocol { season, scale, event, ..Protocol::builtin("5T").unwrap() }
}

fn rules() -> Protocol {
    protocol(4, ScaleBasis::FirstWindow)
}

fn levels() -> QuantileLevels {
    QuantileLevels::new(DECILES.to_vec()).unwrap()
}

fn shard(name: &str) -> ShardId {
    ShardId::new(name).unwrap()
}

/// Forecasts whose rows are the truth plus the given offsets, one a level.
fn around(values: &[f32], first: usize, horizon: usize, windows: usize, offsets: &[f32; 9]) -> Vec<QuantileForecast> {
    let window = |w: usize| {
        let steps = &values[first + w * horizon..first + (w + 1) * horizon];
        let rows = steps.iter().flat_map(|y| offsets.iter().map(move |o| if y.is_finite() { y + o } else { *o }));
        QuantileForecast::new(levels(), rows.collect()).unwrap()
    };
    (0..windows).map(window).collect()
}

fn series(name: &str, values: &[f32], horizon: usize, windows: usize) -> EvalSeries {
    EvalSeries {
        shard: shard(name),
        metric: Metric::CpuUtil,
        series: GridSeries { start: Timestamp::from_ms(0), step: Step::FIVE_MINUTES, values: values.to_vec() },
        measured: values.iter().map(|v| f64::from(*v)).collect(),
        first: values.len() - horizon * windows,
        horizon,
        windows,
        stride: horizon,
        events: Default::default(),
    }
}

fn scored<'a>(series: &'a EvalSeries, forecasts: &'a [QuantileForecast]) -> ScoredSeries<'a> {
    ScoredSeries { series, forecasts, p_any: None }
}

#[test]
fn figures_by_hand() {
    // Season 4, scale |1 - 3| = 2 throughout; one window of two steps, y = 4 and missing.
    let values = [1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 4.0, f32::NAN];
    let offsets = [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0];
    let forecasts = around(&values, 8, 2, 1, &offsets);
    let series = series("a", &values, 2, 1);
    let (scores, by_series) = score(&[scored(&series, &forecasts)], &rules()).unwrap();
    let loss: f64 =
        DECILES.iter().zip(offsets).map(|(l, o)| 2.0 * (l * -f64::from(o)).max((l - 1.0) * -f64::from(o))).sum::<f64>()
            / 9.0;
    assert_eq!((scores.points, scores.missing_points, scores.series, scores.windows), (1, 1, 1, 1));
    assert!((scores.wql.unwrap() - loss / 4.0).abs() < 1e-12);
    assert!((scores.sql.unwrap() - loss / 2.0).abs() < 1e-12);
    assert_eq!(scores.mase, Some(0.0));
    assert_eq!(scores.coverage_80, Some(1.0));
    assert_eq!(scores.width_80, Some(2.0));
    let below: Vec<f64> = scores.below_by_level.iter().map(|f| f.value).collect();
    assert_eq!(below, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(by_series[0].scale, Some(2.0));
    // The 95th percentile of the first eight values is 3, and 4 is over it; of the four earlier windows two were not.
    let event = scores.event.unwrap();
    assert_eq!((event.windows, event.rate), (1, 1.0));
    assert!((event.mean_probability.climatology - 0.5 / 5.0).abs() < 1e-12, "{event:?}");
    assert!((event.brier.max_marginal - (1.0f64 - 0.6).powi(2)).abs() < 1e-9, "{event:?}");
}

#[test]
fn each_window_by_its_own_scale() {
    // Season 2. Before window 0 the scale is 1; before window 1, five differences: 1 1 and then 1 1 (0, 0 missing).
    let values = [0.0, 0.0, 1.0, 1.0, 3.0, 3.0, 9.0, 9.0];
    let forecasts = around(&values, 4, 2, 2, &[1.0; 9]);
    let series = series("a", &values, 2, 2);
    let rules = protocol(2, ScaleBasis::EachWindow);
    let (scores, _) = score(&[scored(&series, &forecasts)], &rules).unwrap();
    // |y - q.5| = 1 everywhere; scales 1 and (1 + 1 + 2 + 2) / 4 = 1.5.
    assert!((scores.mase.unwrap() - (1.0 + 1.0 / 1.5) / 2.0).abs() < 1e-12);
    assert!(scores.event.is_none());
}

#[test]
fn without_change_or_demand_there_is_no_figure() {
    let values = [0.0; 12];
    let forecasts = around(&values, 8, 4, 1, &[0.0; 9]);
    let series = series("flat", &values, 4, 1);
    let (scores, _) = score(&[scored(&series, &forecasts)], &rules()).unwrap();
    assert_eq!((scores.wql, scores.sql, scores.sql_geo, scores.series_without_scale), (None, None, None, 1));
    assert_eq!(scores.coverage_80, Some(1.0));
}

#[test]
fn what_does_not_fit_is_refused() {
    let values = [1.0; 12];
    let forecasts = around(&values, 8, 4, 1, &[0.0; 9]);
    let fits = series("a", &values, 4, 1);
    let good = scored(&fits, &forecasts);
    assert_eq!(score(&[], &rules()).unwrap_err(), ScoreError::NoSeries);
    let late = EvalSeries { first: 9, ..fits.clone() };
    assert!(matches!(score(&[scored(&late, &forecasts)], &rules()), Err(ScoreError::Windows { .. })));
    let odd = ScoredSeries { p_any: Some(&[0.1, 0.2]), ..good };
    assert!(matches!(score(&[odd], &rules()), Err(ScoreError::Windows { .. })));
    let few = vec![QuantileForecast::new(QuantileLevels::new(vec![0.1, 0.9]).unwrap(), vec![0.0; 8]).unwrap()];
    assert!(matches!(score(&[scored(&fits, &few)], &rules()), Err(ScoreError::LevelMissing { .. })));
    let mixed = [good, scored(&fits, &few)];
    assert!(matches!(score(&mixed, &rules()), Err(ScoreError::Mixed { .. })));
}

#[test]
fn blocks_end_with_the_horizon() {
    let ends = |h| blocks(h, |_| None).into_iter().map(|b| (b.first, b.last)).collect::<Vec<_>>();
    assert_eq!(ends(2), [(1, 2)]);
    assert_eq!(ends(48), [(1, 3), (4, 12), (13, 24), (25, 48)]);
    assert_eq!(ends(168), [(1, 3), (4, 12), (13, 24), (25, 48), (49, 96), (97, 168)]);
}

fn loads() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(prop_oneof![9 => 0.1f32..90.0, 1 => Just(f32::NAN)], 24)
}

proptest! {
    #[test]
    fn a_perfect_forecast_loses_nothing(values in loads()) {
        let forecasts = around(&values, 16, 4, 2, &[0.0; 9]);
        let series = series("a", &values, 4, 2);
        let (scores, _) = score(&[scored(&series, &forecasts)], &rules()).unwrap();
        prop_assert!(scores.wql.is_none_or(|w| w == 0.0));
        prop_assert!(scores.mase.is_none_or(|w| w == 0.0));
        prop_assert!(scores.coverage_80.is_none_or(|c| c == 1.0));
    }

    #[test]
    fn the_order_of_series_does_not_show(all in proptest::collection::vec(loads(), 2..6), turn in 1usize..5) {
        let offsets = [-3.0, -2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 5.0];
        let series: Vec<_> = all.iter().enumerate().map(|(i, v)| series(&format!("s{i}"), v, 4, 2)).collect();
        let forecasts: Vec<_> = all.iter().map(|v| around(v, 16, 4, 2, &offsets)).collect();
        let mut given: Vec<_> = series.iter().zip(&forecasts).map(|(s, f)| scored(s, f)).collect();
        let before = score(&given, &rules()).unwrap().0;
        given.rotate_left(turn % all.len());
        prop_assert_eq!(before, score(&given, &rules()).unwrap().0);
    }

    #[test]
    fn figures_do_not_depend_on_the_unit(values in loads(), power in -3i32..8) {
        // Powers of two, so that scaling is exact.
        let factor = 2f32.powi(power);
        let offsets = [-3.0, -2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 5.0];
        let scaled: Vec<f32> = values.iter().map(|v| v * factor).collect();
        let (small, large) = (series("a", &values, 4, 2), series("a", &scaled, 4, 2));
        let plain = around(&values, 16, 4, 2, &offsets);
        let times = |f: &QuantileForecast| {
            QuantileForecast::new(f.levels().clone(), f.values().iter().map(|v| v * factor).collect()).unwrap()
        };
        let larger: Vec<_> = plain.iter().map(times).collect();
        let (a, _) = score(&[scored(&small, &plain)], &rules()).unwrap();
        let (b, _) = score(&[scored(&large, &larger)], &rules()).unwrap();
        let close = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(1.0),
            (a, b) => a == b,
        };
        prop_assert!(close(a.wql, b.wql) && close(a.sql_geo, b.sql_geo) && close(a.mase, b.mase));
        prop_assert_eq!(a.coverage_80, b.coverage_80);
    }
}
