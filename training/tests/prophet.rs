//! Prophet and MSTL, where they are built in (`--features prophet`).
#![cfg(feature = "prophet")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_datasets::{Bounds, History};
use foreshard_domain::{
    EvaluationReport, Fallback, Metric, Observation, QuantileLevels, ShardId, Step, SystemClock, Timestamp,
};
use foreshard_model::{Context, ForecastSpec, Forecaster, ModelKind};
use foreshard_training::{
    FitControl, GateLimits, ProductSpec, Registry, TrainOptions, TrainParams, TrainReport, mstl, train_version,
};
use std::fs;

const HOUR: i64 = 3_600_000;

/// A rhythm of the day and the week under noise: what Prophet is made for.
fn load(s: i64, i: i64) -> f64 {
    let mut noise = (i * 4 + s + 1) as u64;
    for _ in 0..4 {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
    }
    let noise = (noise % 1000) as f64 / 1000.0 - 0.5;
    let wave = |hours: f64| (i as f64 / hours * std::f64::consts::TAU + s as f64).sin();
    50.0 + 12.0 * wave(24.0) + 4.0 * wave(168.0) + 20.0 * noise
}

fn history(days: i64) -> History {
    let row = |s: i64, i: i64| {
        let mut row = Observation::empty(ShardId::new(format!("s{s}")).unwrap(), Timestamp::from_ms(i * HOUR));
        row.cpu_util = Some(load(s, i));
        row
    };
    History::from_observations((0..3).flat_map(|s| (0..days * 24).map(move |i| row(s, i)))).unwrap()
}

fn forecast() -> ForecastSpec {
    let step = Step::from_ms(HOUR).unwrap();
    let (levels, zone) = (QuantileLevels::standard(), "UTC".to_owned());
    ForecastSpec { step, horizon: 6, season_steps: 24, levels, bounds: Bounds::Load, zone }
}

fn train(registry: &Registry, threads: usize) -> TrainReport {
    let products = vec![ProductSpec { name: "hours".into(), forecast: forecast() }];
    let params = TrainParams { model: ModelKind::Prophet, products, threads, ..TrainParams::default() };
    let render = |report: &EvaluationReport| report.title.clone();
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false };
    let options = TrainOptions {
        limits: GateLimits::default(),
        events: Default::default(),
        rivals: &[],
        clock: &SystemClock,
        render: &render,
    };
    train_version(&history(40), &params.check().unwrap(), registry, "load", &options, &mut control).unwrap()
}

#[test]
fn f2_prophet_goes_the_whole_way_and_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    let (first, second) = (train(&registry, 1), train(&registry, 2));
    let section = &first.evaluation.sections[0];
    let wql = |name: &str| section.contenders.iter().find(|c| c.name == name).and_then(|c| c.scores.wql).unwrap();
    assert!(wql("load/1") < 0.9 * wql("seasonal_naive"), "{} {}", wql("load/1"), wql("seasonal_naive"));
    let cover = section.contenders[0].scores.coverage_80.unwrap();
    assert!((0.6..0.95).contains(&cover), "{cover}");
    for file in ["weights.safetensors", "calibration.json", "templates.parquet"] {
        let bytes = |report: &TrainReport| fs::read(report.path.join(file)).unwrap();
        assert!(bytes(&first) == bytes(&second), "{file} differs");
    }
    let version = registry.load("load", 1).unwrap();
    assert_eq!(version.manifest().kind, ModelKind::Prophet);
    let values: Vec<f32> = (0..24 * 39).map(|i| load(0, i) as f32).collect();
    let ask = |name: &str| {
        let shard = ShardId::new(name).unwrap();
        let (start, step) = (Timestamp::from_ms(0), Step::from_ms(HOUR).unwrap());
        let context = Context { shard: &shard, metric: Metric::CpuUtil, start, step, values: &values, events: None };
        version.forecaster("hours").unwrap().forecast(&[context]).remove(0)
    };
    assert_eq!((ask("s0").fallback, ask("new").fallback), (None, Some(Fallback::NoModel)));
    assert!(ask("s0").forecast.values().chunks(13).all(|row| row.is_sorted()), "F1");
}

#[test]
fn mstl_answers_by_itself() {
    let mstl = mstl(forecast()).unwrap();
    let values: Vec<f32> = (0..24 * 30).map(|i| load(1, i) as f32).collect();
    let shard = ShardId::new("s1").unwrap();
    let (start, step) = (Timestamp::from_ms(0), Step::from_ms(HOUR).unwrap());
    let answer = mstl.forecast(&[Context {
        shard: &shard,
        metric: Metric::CpuUtil,
        start,
        step,
        values: &values,
        events: None,
    }]);
    assert_eq!(answer[0].fallback, None);
    let middle = answer[0].forecast.row(0).unwrap()[6];
    // What is left of the load when its noise, of deviation 5.8, is taken away.
    let wave = |hours: f64| (24.0 * 30.0 / hours * std::f64::consts::TAU + 1.0).sin();
    let expected = 50.0 + 12.0 * wave(24.0) + 4.0 * wave(168.0);
    assert!((f64::from(middle) - expected).abs() < 6.0, "{middle}, not {expected}");
}
