//! Days that are known to differ: those on which the clock is changed, and those of announced events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use foreshard_datasets::{EventCalendar, GridSeries, History, Workload, WorkloadSpec};
use foreshard_domain::{Metric, Product, ShardId, Step, Timestamp};
use foreshard_model::{
    Architecture, Context, EventEffects, EventSource, Features, ForecastSpec, Forecaster, Lanes, Learned, Trained,
    TrainedParts, pretrained,
};

const DAY_MS: i64 = 86_400_000;

fn ts(text: &str) -> Timestamp {
    Timestamp::from_ms(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

/// The shipped network as it is, without any fit.
fn forecaster(product: Product, zone: &str, events: EventEffects) -> Trained {
    let spec = ForecastSpec { zone: zone.to_owned(), ..ForecastSpec::of_product(product) };
    let features = Features::new(&spec);
    let members = vec![pretrained(&features, Architecture::new(&features)).unwrap()];
    let parts = TrainedParts {
        name: product.name().to_owned(),
        spec,
        learned: Learned::Lstm(members),
        widths: None,
        events,
        risk: Default::default(),
    };
    Trained::new(parts, Arc::new(Lanes::new(2).unwrap())).unwrap()
}

/// Shards that live by the clock of Berlin.
fn workload(start: Timestamp, days: u32, campaigns_per_month: f64) -> Workload {
    let spec = WorkloadSpec {
        shards: 12,
        tenants: 6,
        days,
        start,
        zone: "Europe/Berlin".to_owned(),
        campaigns_per_month,
        bursts_per_week: 0.0,
        noise: 0.3,
        ..WorkloadSpec::default()
    };
    Workload::new(spec).unwrap()
}

fn series(workload: &Workload, step: Step) -> Vec<(ShardId, GridSeries)> {
    let history = History::from_observations(workload.rows()).unwrap();
    let grid = |shard: &ShardId| Some((shard.clone(), history.grid(shard, Metric::TxnRate, step)?));
    history.shards().filter_map(grid).collect()
}

/// Mean pinball loss over the steps of a window that `counts` lets count, over the mean load.
fn loss(
    forecaster: &Trained,
    data: &[(ShardId, GridSeries)],
    events: Option<&EventCalendar>,
    window: Timestamp,
    counts: impl Fn(&ShardId, Timestamp) -> bool,
) -> f64 {
    let horizon = forecaster.spec().horizon;
    let (mut total, mut size) = (0.0, 0.0);
    for (shard, series) in data {
        let origin = usize::try_from(series.step.count_in(window.since_ms(series.start))).unwrap();
        let (start, step, values) = (series.start, series.step, series.window_up_to(origin));
        let context = Context { shard, metric: Metric::TxnRate, start, step, values, events };
        let answer = forecaster.forecast(&[context]).remove(0);
        assert_eq!(answer.fallback, None);
        let levels = answer.forecast.levels().as_slice().to_vec();
        for (i, y) in series.values[origin..origin + horizon].iter().enumerate() {
            if !y.is_finite() || !counts(shard, series.time_of(origin + i)) {
                continue;
            }
            size += f64::from(*y);
            for (level, q) in levels.iter().zip(answer.forecast.row(i).unwrap()) {
                let error = f64::from(y - q);
                total += (level * error).max((level - 1.0) * error) / levels.len() as f64;
            }
        }
    }
    total / size
}

#[test]
fn on_both_daylight_saving_days_and_after_them_loads_follow_the_clock() {
    // The clock is changed at one o'clock (UTC) of these days.
    for changed in ["2024-03-31T00:00:00Z", "2024-10-27T00:00:00Z"].map(ts) {
        let workload = workload(changed.plus_ms(-35 * DAY_MS), 40, 0.0);
        for product in Product::ALL {
            let data = series(&workload, product.step());
            let of = |zone| forecaster(product, zone, EventEffects::default());
            let (utc, local) = (of("UTC"), of("Europe/Berlin"));
            let all = |forecaster: &Trained, window| loss(forecaster, &data, None, window, |_, _| true);
            let hours = product.step().as_ms() * i64::try_from(product.horizon()).unwrap();
            // A window with the change in it, then those of the days after.
            let windows: Vec<Timestamp> = (0..4 * DAY_MS / hours).map(|k| changed.plus_ms(k * hours)).collect();
            let sum = |forecaster: &Trained| windows.iter().map(|window| all(forecaster, *window)).sum::<f64>();
            let ratio = sum(&local) / sum(&utc);
            assert!(ratio < 0.8, "{} from {changed} on: {ratio}", product.name());
            let first = all(&local, windows[0]) / all(&utc, windows[0]);
            assert!(first < 1.1, "{} from {changed} on, first window: {first}", product.name());
            // Those of its steps that live on yesterday have it by their own clock.
            let far = |forecaster: &Trained| {
                let noon = changed.plus_ms(DAY_MS / 2);
                loss(forecaster, &data, None, windows[0], |_, ts| ts >= noon)
            };
            if product == Product::NextDay {
                let ratio = far(&local) / far(&utc);
                assert!(ratio < 0.9, "from {changed} on, the second half of the first day: {ratio}");
            }
            // Long before the change and with it nowhere in sight, the zone only shifts the calendar by a constant.
            let before = changed.plus_ms(-5 * DAY_MS);
            let calm = all(&local, before) / all(&utc, before);
            assert!((calm - 1.0).abs() < 1e-6, "{calm}");
        }
    }
}

#[test]
fn events_lower_the_loss_on_their_days() {
    let workload = workload(ts("2024-05-01T00:00:00Z"), 84, 3.0);
    let events = EventCalendar::new(workload.events());
    for product in Product::ALL {
        let data = series(&workload, product.step());
        let learned = 63 * DAY_MS;
        let sources: Vec<EventSource<'_>> = data
            .iter()
            .map(|(shard, series)| {
                let until = usize::try_from(series.step.count_in(learned)).unwrap();
                let (start, step, values) = (series.start, series.step, series.window_up_to(until));
                let context = Context { shard, metric: Metric::TxnRate, start, step, values, events: Some(&events) };
                EventSource { context, season: usize::try_from(DAY_MS / step.as_ms()).unwrap() }
            })
            .collect();
        let effects = EventEffects::fit(sources.iter().flat_map(EventSource::occurrences));
        let (blind, knowing) = (
            forecaster(product, "Europe/Berlin", EventEffects::default()),
            forecaster(product, "Europe/Berlin", effects),
        );
        let hours = product.step().as_ms() * i64::try_from(product.horizon()).unwrap();
        let within = |shard: &ShardId, ts: Timestamp| events.of(shard).any(|e| e.start <= ts && ts < e.end);
        let (mut with, mut without, mut rest, mut rest_without) = (0.0, 0.0, 0.0, 0.0);
        for window in (0..20 * DAY_MS / hours).map(|k| workload.spec().start.plus_ms(learned + k * hours)) {
            let add = |total: &mut f64, forecaster: &Trained, inside: bool| {
                let loss = loss(forecaster, &data, Some(&events), window, |shard, ts| within(shard, ts) == inside);
                *total += if loss.is_finite() { loss } else { 0.0 };
            };
            add(&mut with, &knowing, true);
            add(&mut without, &blind, true);
            add(&mut rest, &knowing, false);
            add(&mut rest_without, &blind, false);
        }
        assert!(with < 0.85 * without, "{}: {with} with events, {without} without", product.name());
        assert!(rest < 1.02 * rest_without, "{}: {rest} and {rest_without} at other times", product.name());
    }
}
