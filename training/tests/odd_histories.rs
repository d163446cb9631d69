//! Histories as bad as they come: each gives a model that answers soundly, or a refusal that says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_datasets::{Bounds, EvalSeries, History, evaluation_series};
use foreshard_domain::{EvaluationReport, Metric, Observation, QuantileLevels, ShardId, Step, SystemClock, Timestamp};
use foreshard_model::{Context, ForecastSpec, Forecaster as _, ModelKind, Version};
use foreshard_training::{
    BacktestPlan, FitControl, GateLimits, MemberSpec, PipelineError, ProductSpec, Registry, TrainOptions, TrainParams,
    train_version,
};

const HOUR: i64 = 3_600_000;
const DAYS: usize = 30;

/// The load of a shard in one hour; `None` where nothing was measured.
type Load = fn(shard: usize, hour: usize) -> Option<f64>;

/// Noise without a period, -0.5 to 0.5.
fn noise(shard: usize, hour: usize) -> f64 {
    let mut x = (hour * 64 + shard + 1) as u64;
    for _ in 0..4 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    (x % 1000) as f64 / 1000.0 - 0.5
}

fn healthy(shard: usize, hour: usize) -> Option<f64> {
    Some(50.0 + 12.0 * (hour as f64 / 24.0 * std::f64::consts::TAU + shard as f64).sin() + 20.0 * noise(shard, hour))
}

fn history(shards: usize, hours: usize, load: impl Fn(usize, usize) -> Option<f64>) -> History {
    let rows = (0..shards).flat_map(|s| (0..hours).map(move |i| (s, i)));
    let row = |(s, i): (usize, usize)| {
        let mut row = Observation::empty(ShardId::new(format!("s{s}")).unwrap(), Timestamp::from_ms(i as i64 * HOUR));
        row.cpu_util = load(s, i);
        row
    };
    History::from_observations(rows.map(row)).unwrap()
}

fn product() -> ProductSpec {
    let (step, levels) = (Step::from_ms(HOUR).unwrap(), QuantileLevels::standard());
    let forecast =
        ForecastSpec { step, horizon: 6, season_steps: 24, levels, bounds: Bounds::Load, zone: "UTC".to_owned() };
    ProductSpec { name: "hours".into(), forecast }
}

fn train(history: &History) -> Result<Version, PipelineError> {
    let params = TrainParams {
        products: vec![product()],
        members: vec![
            MemberSpec { encoder: 8, decoder: 16, ..MemberSpec::LSTM },
            MemberSpec { decoder: 16, ..MemberSpec::DECODER },
        ],
        steps: 80,
        batch: 32,
        origins: 800,
        warm_up: 10,
        validate_every: 20,
        threads: 1,
        ..TrainParams::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    let render = |report: &EvaluationReport| report.title.clone();
    let options = TrainOptions {
        limits: GateLimits::default(),
        events: Default::default(),
        rivals: &[ModelKind::Ridge],
        clock: &SystemClock,
        render: &render,
    };
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false };
    let report = train_version(history, &params.check().unwrap(), &registry, "lstm", &options, &mut control)?;
    // The ridge beside it was fitted too.
    assert!(!report.evaluation.notes.iter().any(|n| n.contains("not compared")), "{:?}", report.evaluation.notes);
    Ok(registry.load("lstm", 1).unwrap())
}

/// Forecasts from the end of every series are finite, ordered, within the bounds, and at most three times as large as the data ever were.
fn answers_soundly(name: &str, version: &Version, history: &History, shards: usize) {
    let forecaster = version.forecaster("hours").unwrap();
    let spec = &product().forecast;
    let plan = BacktestPlan::new(&history.clone().into(), [("hours", spec)], None).unwrap();
    let (series, _) = evaluation_series(history, &plan.windows[0].protocol);
    assert_eq!(series.len(), shards, "{name}: nobody was left out");
    for EvalSeries { shard, metric, series, .. } in &series {
        let context = Context {
            shard,
            metric: *metric,
            start: series.start,
            step: series.step,
            values: &series.values,
            events: None,
        };
        let answer = forecaster.forecast(&[context]).remove(0);
        let highest = series.values.iter().copied().filter(|v| v.is_finite()).fold(0.0f32, |a, v| a.max(v.abs()));
        for step in 0..spec.horizon {
            let row = answer.forecast.row(step).unwrap();
            assert!(row.iter().all(|q| q.is_finite() && *q >= 0.0), "{name} {shard} {step}: {row:?}");
            assert!(row.windows(2).all(|p| p[0] <= p[1]), "{name} {shard} {step}: {row:?}");
            assert!(row[row.len() - 1] <= 3.0 * highest + 1e-3, "{name} {shard} {step}: {row:?}, highest {highest}");
        }
    }
}

#[test]
fn histories_that_can_be_learned_from_give_sound_answers() {
    let cases: [(&str, Load); 11] = [
        ("constant", |_, _| Some(42.0)),
        ("repeating exactly", |s, i| Some(((i + s) % 24) as f64)),
        ("idle", |_, _| Some(0.0)),
        ("gappy", |s, i| healthy(s, i).filter(|_| noise(s, i) > -0.2)),
        ("a week lost", |s, i| healthy(s, i).filter(|_| !(300..468).contains(&i))),
        ("spiky", |s, i| Some(if noise(s, i) > 0.49 { 1e6 } else { 1.0 + noise(s, i) })),
        ("saturated", |s, i| healthy(s, i).map(|v| (v * 2.0).min(100.0))),
        ("wildly scaled", |s, i| healthy(s, i).map(|v| v * 10f64.powi(s as i32 * 6 - 9))),
        ("negative", |s, i| healthy(s, i).map(|v| v - 70.0)),
        ("full of NaN and infinity", |s, i| match i % 5 {
            0 => Some(f64::NAN),
            1 => Some(f64::INFINITY),
            _ => healthy(s, i),
        }),
        ("one jump by a thousand", |s, i| healthy(s, i).map(|v| if i > 500 { v * 1000.0 } else { v })),
    ];
    for (name, load) in cases {
        let history = history(4, DAYS * 24, load);
        let version = train(&history).unwrap_or_else(|error| panic!("{name}: {error}"));
        answers_soundly(name, &version, &history, 4);
    }
    let single = history(1, DAYS * 24, healthy);
    answers_soundly("a single shard", &train(&single).unwrap(), &single, 1);
}

#[test]
fn histories_that_cannot_be_learned_from_are_refused_with_the_reason() {
    let refused = |history: History| {
        let error = train(&history).expect_err("nothing can be learned from it");
        std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    };
    let ten = refused(history(3, 10, healthy));
    assert!(ten.contains("days of history, there are 0.4"), "{ten}");
    let none = refused(history(3, DAYS * 24, |_, _| None));
    assert!(none.contains("too short to train any product"), "{none}");
    let nan = refused(history(3, DAYS * 24, |_, _| Some(f64::NAN)));
    assert!(nan.contains("too short to train any product"), "{nan}");
    for factor in [1e20, 1e25, 5e36] {
        let one = |s, i| healthy(s, i).map(|v| if s == 1 { v * factor } else { v });
        let huge = refused(history(3, DAYS * 24, one));
        assert!(huge.contains("cpu_util of s1") && huge.contains("remove them"), "{huge}");
    }
}

#[test]
fn one_wild_shard_does_not_spoil_the_others() {
    let wild: Load = |s, i| if s == 3 { Some(if i % 97 == 0 { 1e9 } else { 0.0 }) } else { healthy(s, i) };
    let (alone, beside) = (history(3, DAYS * 24, healthy), history(4, DAYS * 24, wild));
    let (of_alone, of_beside) = (train(&alone).unwrap(), train(&beside).unwrap());
    answers_soundly("one wild shard", &of_beside, &beside, 4);
    let loss = |version: &Version| {
        let spec = product().forecast;
        let plan = BacktestPlan::new(&alone.clone().into(), [("hours", &spec)], Some(&[Metric::CpuUtil])).unwrap();
        let windows = &plan.windows[0];
        let (series, _) = evaluation_series(&alone, &windows.protocol);
        let entrant = foreshard_training::Entrant::of_version(version, "hours").unwrap();
        entrant.evaluate(&series, &windows.protocol).unwrap().scores.wql.unwrap()
    };
    let (alone, beside) = (loss(&of_alone), loss(&of_beside));
    assert!(beside < 1.1 * alone, "{beside} beside it, {alone} without it");
}
