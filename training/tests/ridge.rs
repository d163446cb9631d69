//! Linear maps from a history to a served version: the same way as networks go, and the rival that networks have to beat.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;

use foreshard_datasets::{Bounds, GridSeries, History};
use foreshard_domain::{
    ContenderRole, EvaluationReport, Metric, Observation, Product, QuantileLevels, ShardId, Step, SystemClock,
    Timestamp,
};
use foreshard_model::{Context, ForecastSpec, Forecaster, ModelKind, Version, VersionParts, write_version};
use foreshard_training::{
    CheckpointPolicy, FitControl, FittedModel, GateLimits, MemberSpec, PipelineError, ProductSpec, Registry,
    TrainError, TrainOptions, TrainParams, TrainReport, TrainSeries, fit, train_version,
};

const HOUR: i64 = 3_600_000;

/// By the hour: a daily rhythm under a level that wanders, which yesterday's value and weekly means are bad at. No two
/// calls of the same shard and hour differ.
fn load(s: i64, i: i64) -> f64 {
    let random = |seed: i64| {
        let mut noise = (seed * 4 + s + 1) as u64;
        for _ in 0..4 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
        }
        (noise % 1000) as f64 / 1000.0 - 0.5
    };
    let level: f64 = (0..60).map(|k| 0.95f64.powi(k) * random(i - i64::from(k) + 1000)).sum();
    let rhythm = (i as f64 / 24.0 * std::f64::consts::TAU + s as f64).sin();
    60.0 + 12.0 * rhythm + 8.0 * level + 4.0 * random(i + 500_000)
}

fn history(days: i64, spoil_from: Option<i64>) -> History {
    let row = |s: i64, i: i64| {
        let mut row = Observation::empty(ShardId::new(format!("s{s}")).unwrap(), Timestamp::from_ms(i * HOUR));
        let spoil = if spoil_from.is_some_and(|from| i >= from) { 900.0 } else { 0.0 };
        row.cpu_util = Some(spoil + load(s, i));
        row
    };
    History::from_observations((0..4).flat_map(|s| (0..days * 24).map(move |i| row(s, i)))).unwrap()
}

fn product() -> ProductSpec {
    let step = Step::from_ms(HOUR).unwrap();
    let levels = QuantileLevels::standard();
    let forecast =
        ForecastSpec { step, horizon: 12, season_steps: 24, levels, bounds: Bounds::Load, zone: "UTC".to_owned() };
    ProductSpec { name: "hours".into(), forecast }
}

fn params() -> TrainParams {
    TrainParams { model: ModelKind::Ridge, products: vec![product()], origins: 1500, threads: 1, ..Default::default() }
}

fn series(days: i64) -> BTreeMap<String, Vec<TrainSeries>> {
    let one = |s: i64| {
        let values: Vec<f32> =
            (0..days * 24).map(|i| if i % 53 == 20 { f32::NAN } else { load(s, i) as f32 }).collect();
        let usable = values.len() - 5 * 24;
        let series = GridSeries { start: Timestamp::from_ms(0), step: Step::from_ms(HOUR).unwrap(), values };
        TrainSeries {
            shard: ShardId::new(format!("s{s}")).unwrap(),
            metric: Metric::CpuUtil,
            series,
            usable,
            events: Default::default(),
        }
    };
    BTreeMap::from([("hours".to_owned(), (0..4).map(one).collect())])
}

fn fitted(params: TrainParams, data: &BTreeMap<String, Vec<TrainSeries>>) -> Result<FittedModel, TrainError> {
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false };
    fit(data, &params.check().unwrap(), &mut control)
}

/// The version folder of a fit.
fn written(model: &FittedModel) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let parts = VersionParts {
        model: "load".into(),
        number: 1,
        products: model.version_products(),
        metrics: vec![Metric::CpuUtil],
        trained_from: Timestamp::from_ms(0),
        trained_until: Timestamp::from_ms(1),
        data_fingerprint: "f".into(),
        seed: 1,
        parent: None,
        report_json: "{}".into(),
        report_html: String::new(),
        card_md: String::new(),
    };
    write_version(&folder.path().join("1"), &parts).unwrap();
    folder
}

fn bytes(folder: &tempfile::TempDir) -> Vec<Vec<u8>> {
    let names = ["weights.safetensors", "calibration.json", "templates.parquet"];
    names.iter().map(|name| fs::read(folder.path().join("1").join(name)).unwrap()).collect()
}

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    (dir, registry)
}

fn train(
    history: &History,
    params: TrainParams,
    registry: &Registry,
    rivals: &[ModelKind],
) -> Result<TrainReport, PipelineError> {
    let render = |report: &EvaluationReport| report.title.clone();
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false };
    let options = TrainOptions {
        limits: GateLimits::default(),
        events: Default::default(),
        rivals,
        clock: &SystemClock,
        render: &render,
    };
    train_version(history, &params.check().unwrap(), registry, "load", &options, &mut control)
}

#[test]
fn a_ridge_is_trained_judged_written_and_promoted() {
    let (_dir, registry) = registry();
    let report = train(&history(40, None), params(), &registry, &[ModelKind::Ridge]).unwrap();
    assert!(report.promoted, "{:?}", report.reasons);
    let section = &report.evaluation.sections[0];
    let wql = |name: &str| section.contenders.iter().find(|c| c.name == name).and_then(|c| c.scores.wql).unwrap();
    for rival in ["seasonal_naive", "weekly_naive", "seasonal_mean", "last_value"] {
        assert!(wql("load/1") < 0.9 * wql(rival), "{rival}: {} {}", wql("load/1"), wql(rival));
    }
    assert!(section.contenders.iter().all(|c| c.name != "ridge"), "it is no rival of its own kind");
    assert!(section.contenders[0].scores.event.as_ref().unwrap().brier.p_any.is_some(), "it has rank templates");
    assert!(report.reasons.iter().any(|r| r.starts_with("better than the best rival")), "{:?}", report.reasons);
    let note = report.evaluation.notes.iter().find(|n| n.starts_with("hours: fitted on 4 series")).unwrap();
    assert!(note.contains("penalty"), "{note}");
    let champion = registry.champion("load").unwrap().unwrap();
    assert_eq!(champion.manifest().kind, ModelKind::Ridge);
    assert!(champion.templates("hours").is_some() && champion.manifest().products[0].members.is_empty());
    // A network may follow it, and is compared with it.
    let member = MemberSpec { encoder: 0, decoder: 8, hide_quantiles: 0.5, pretrained: false };
    let network = TrainParams { model: ModelKind::Lstm, members: vec![member], steps: 2, blend: false, ..params() };
    let second = train(&history(40, None), network, &registry, &[]).unwrap();
    let champion = second.evaluation.sections[0].contenders.iter().find(|c| c.role == ContenderRole::Champion);
    assert_eq!(champion.map(|c| c.name.as_str()), Some("load/1"));
    assert!(!second.promoted, "{:?}", second.reasons);
}

#[test]
fn f3_a_network_that_a_ridge_beats_is_not_promoted() {
    let (_dir, registry) = registry();
    let member = MemberSpec { encoder: 0, decoder: 8, hide_quantiles: 0.5, pretrained: false };
    let network = TrainParams { model: ModelKind::Lstm, members: vec![member], steps: 2, blend: false, ..params() };
    let report = train(&history(40, None), network, &registry, &[ModelKind::Ridge]).unwrap();
    assert!(!report.promoted);
    let says = |text: &str| report.reasons.iter().any(|r| r.contains(text));
    assert!(says("not better than the best rival, ridge"), "{:?}", report.reasons);
    // With maps beside it, it is no worse than they are.
    let member = MemberSpec { encoder: 0, decoder: 8, hide_quantiles: 0.5, pretrained: false };
    let blended = TrainParams { model: ModelKind::Lstm, members: vec![member], steps: 2, ..params() };
    let report = train(&history(40, None), blended, &registry, &[ModelKind::Ridge]).unwrap();
    assert!(report.evaluation.notes.iter().any(|n| n.contains("for linear maps")), "{:?}", report.evaluation.notes);
    let version = registry.load("load", report.version.number).unwrap();
    assert!(version.manifest().products[0].ridge_share.is_some_and(|share| share > 0.5));
    let wql = |name: &str| {
        let contenders = &report.evaluation.sections[0].contenders;
        contenders.iter().find(|c| c.name == name).and_then(|c| c.scores.wql).unwrap()
    };
    assert!(wql("load/2") < 1.05 * wql("ridge"), "{} {}", wql("load/2"), wql("ridge"));
    assert!(report.evaluation.sections[0].contenders.iter().any(|c| c.name == "ridge"));
}

#[test]
fn what_was_fitted_answers_the_same_from_its_folder() {
    let data = series(60);
    let model = fitted(params(), &data).unwrap();
    let folder = written(&model);
    let version = Version::load(&folder.path().join("1")).unwrap();
    let context = |s: &'_ TrainSeries, until: usize| -> Vec<f32> { s.series.values[..until].to_vec() };
    for one in &data["hours"] {
        for until in [24 * 8, 24 * 31 + 5, one.series.values.len()] {
            let values = context(one, until);
            let start = one.series.start;
            let step = one.series.step;
            let asked = [Context { shard: &one.shard, metric: one.metric, start, step, values: &values, events: None }];
            let before = model.forecaster("hours").unwrap().forecast(&asked);
            assert_eq!(version.forecaster("hours").unwrap().forecast(&asked), before);
            assert!(before[0].fallback.is_none());
            assert!(before[0].forecast.values().chunks(13).all(|row| row.is_sorted()), "F1");
        }
    }
    let written = version.forecaster("hours").unwrap().parts();
    assert!(written.widths.is_some() && written.learned.networks().is_empty());
}

#[test]
fn f2_same_data_same_bytes_at_any_number_of_threads() {
    let data = series(40);
    let one = bytes(&written(&fitted(params(), &data).unwrap()));
    for threads in [2, 5] {
        assert_eq!(bytes(&written(&fitted(TrainParams { threads, ..params() }, &data).unwrap())), one);
    }
    let other = bytes(&written(&fitted(TrainParams { seed: 2, ..params() }, &data).unwrap()));
    assert_ne!(other[0], one[0], "another seed draws other origins");
}

#[test]
fn d1_the_windows_of_the_backtest_are_not_learned_from() {
    let (_dir, registry) = registry();
    let first_window = 30 * 24 - 12 * 12;
    let [clean, spoilt] = [None, Some(first_window)]
        .map(|from| train(&history(30, from), params(), &registry, &[ModelKind::Ridge]).unwrap());
    for file in ["weights.safetensors", "calibration.json", "templates.parquet"] {
        let bytes = |report: &TrainReport| fs::read(report.path.join(file)).unwrap();
        assert!(bytes(&clean) == bytes(&spoilt), "{file} differs");
    }
    assert_ne!(clean.evaluation.sections[0].contenders[0].scores, spoilt.evaluation.sections[0].contenders[0].scores);
}

#[test]
fn d1_values_beyond_what_may_be_learned_from_change_no_map() {
    let honest = series(40);
    let mut spoilt = honest.clone();
    for one in spoilt.get_mut("hours").unwrap() {
        let usable = one.usable;
        one.series.values[usable..].fill(1e9);
    }
    let of = |data| bytes(&written(&fitted(params(), data).unwrap()));
    assert_eq!(of(&honest), of(&spoilt));
}

#[test]
fn a_ridge_hears_nothing_of_a_calendar_that_is_hidden() {
    let data = series(40);
    let blind = TrainParams { calendar: false, ..params() };
    let model = fitted(blind, &data).unwrap();
    let one = &data["hours"][0];
    let said = |days: i64| {
        let start = one.series.start.plus_ms(days * 24 * HOUR + 7 * HOUR);
        let (step, values) = (one.series.step, &one.series.values[..]);
        let context = Context { shard: &one.shard, metric: one.metric, start, step, values, events: None };
        model.forecaster("hours").unwrap().forecast(&[context]).remove(0).forecast
    };
    assert_eq!(said(0), said(3), "another day and hour, the same values");
}

#[test]
fn too_little_history_and_checkpoints() {
    let (_dir, registry) = registry();
    let shipped = TrainParams { products: Product::ALL.map(ProductSpec::from).to_vec(), ..params() };
    let error = train(&history(9, None), shipped, &registry, &[ModelKind::Ridge]).unwrap_err().to_string();
    assert!(error.contains("too short to train any product: next_hours: ") && error.contains("next_day: "), "{error}");
    let error = fitted(params(), &series(8)).err().unwrap();
    assert!(matches!(error, TrainError::TooLittleHistory { .. }), "{error}");
    // Fits of seconds are not saved on the way, and leave what others saved alone.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("checkpoint.safetensors"), "of a network").unwrap();
    let checkpoint = Some(CheckpointPolicy { dir: folder.path().to_owned(), every_steps: 1 });
    let mut control = FitControl { progress: &mut |_| {}, checkpoint, stop: &|| false };
    fit(&series(40), &params().check().unwrap(), &mut control).unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("checkpoint.safetensors")).unwrap(), "of a network");
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| true };
    let stopped = fit(&series(40), &params().check().unwrap(), &mut control).err().unwrap();
    assert!(matches!(stopped, TrainError::Stopped { step: 0, .. }), "{stopped}");
}

#[cfg(not(feature = "prophet"))]
#[test]
fn a_model_that_is_not_built_in_is_refused_and_says_how_to_get_it() {
    let (_dir, registry) = registry();
    let prophet = TrainParams { model: ModelKind::Prophet, ..params() };
    let error = train(&history(30, None), prophet, &registry, &[]).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "this program was built without prophet; build it with --features prophet");
    assert_eq!(registry.numbers("load").unwrap(), Vec::<u64>::new());
    let mstl = foreshard_training::mstl(product().forecast).err().unwrap().to_string();
    assert!(mstl.contains("without mstl"), "{mstl}");
}
