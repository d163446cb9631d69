//! From a history to a labelled version: what is learned from, what is judged, what is published and promoted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_datasets::{Bounds, EventCalendar, History, LoadEvent};
use foreshard_domain::{
    ContenderRole, EvaluationReport, Metric, Observation, Product, QuantileLevels, ShardId, Step, SystemClock,
    Timestamp,
};
use foreshard_model::{ForecastSpec, ModelKind};
use foreshard_training::{
    FitControl, GateLimits, Labels, MemberSpec, PipelineError, ProductSpec, Registry, TrainOptions, TrainParams,
    TrainReport, TrainSpec, train_version,
};
use std::fs;
use std::sync::Arc;

const HOUR: i64 = 3_600_000;

/// Four shards by the hour: a daily rhythm under noise that does not repeat, which is what yesterday's value is bad at.
fn history_until(days: i64, spoil_from: Option<i64>) -> History {
    let row = |s: i64, i: i64| {
        let mut row = Observation::empty(ShardId::new(format!("s{s}")).unwrap(), Timestamp::from_ms(i * HOUR));
        let mut noise = (i * 4 + s + 1) as u64;
        // A few rounds of xorshift: noise without a period.
        for _ in 0..4 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
        }
        let noise = (noise % 1000) as f64 / 1000.0 - 0.5;
        let rhythm = (i as f64 / 24.0 * std::f64::consts::TAU + s as f64).sin();
        let load = 50.0 + 12.0 * rhythm + 20.0 * noise;
        row.cpu_util = Some(if spoil_from.is_some_and(|from| i >= from) { 900.0 + load } else { load });
        row
    };
    History::from_observations((0..4).flat_map(|s| (0..days * 24).map(move |i| row(s, i)))).unwrap()
}

fn product(name: &str, horizon: usize) -> ProductSpec {
    let step = Step::from_ms(HOUR).unwrap();
    let levels = QuantileLevels::standard();
    ProductSpec {
        name: name.into(),
        forecast: ForecastSpec {
            step,
            horizon,
            season_steps: 24,
            levels,
            bounds: Bounds::Load,
            zone: "UTC".to_owned(),
        },
    }
}

fn spec(products: Vec<ProductSpec>) -> TrainSpec {
    let member = MemberSpec { encoder: 0, decoder: 16, hide_quantiles: 0.5, pretrained: false };
    let params = TrainParams {
        products,
        members: vec![member],
        steps: 160,
        batch: 64,
        origins: 1500,
        warm_up: 10,
        validate_every: 40,
        threads: 1,
        ..TrainParams::default()
    };
    params.check().unwrap()
}

fn train(
    history: &History,
    spec: &TrainSpec,
    registry: &Registry,
    limits: GateLimits,
) -> Result<TrainReport, PipelineError> {
    train_knowing(Arc::default(), history, spec, registry, limits)
}

fn train_knowing(
    events: Arc<EventCalendar>,
    history: &History,
    spec: &TrainSpec,
    registry: &Registry,
    limits: GateLimits,
) -> Result<TrainReport, PipelineError> {
    let render = |report: &EvaluationReport| format!("<h1>{}</h1>", report.title);
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false };
    let options = TrainOptions { limits, events, rivals: &[], clock: &SystemClock, render: &render };
    train_version(history, spec, registry, "lstm", &options, &mut control)
}

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    (dir, registry)
}

#[test]
fn a_version_is_trained_judged_published_and_promoted() {
    let (_dir, registry) = registry();
    let spec = spec(vec![product("hours", 6)]);
    let first = train(&history_until(40, None), &spec, &registry, GateLimits::default()).unwrap();
    assert!(first.promoted, "{:?}", first.reasons);
    assert_eq!(first.labels, Labels { champion: Some(1), ..Labels::default() });
    let section = &first.evaluation.sections[0];
    assert_eq!(section.name, "hours, cpu_util");
    let of = |role| section.contenders.iter().find(|c| c.role == role).map(|c| c.scores.clone());
    let (ours, naive) = (of(ContenderRole::Subject).unwrap(), of(ContenderRole::SeasonalNaive).unwrap());
    assert!(ours.wql < naive.wql && ours.points == 4 * 12 * 6, "{:?} {:?}", ours.wql, naive.wql);
    assert!(of(ContenderRole::Champion).is_none());
    assert!(ours.event.unwrap().brier.p_any.is_some());

    let version = registry.champion("lstm").unwrap().unwrap();
    let end = Timestamp::from_ms(40 * 24 * HOUR);
    assert_eq!(version.manifest().trained_until, end.plus_ms(-12 * 6 * HOUR));
    let file = |name: &str| fs::read_to_string(first.path.join(name)).unwrap();
    assert_eq!(serde_json::from_str::<EvaluationReport>(&file("report.json")).unwrap(), first.evaluation);
    assert_eq!(file("report.html"), "<h1>Version lstm/1</h1>");
    assert!(file("card.md").contains("| hours, cpu_util |") && file("card.md").contains("Gate: passed"));

    // The next one is compared with it, and what the gate said is what happened (F3).
    let second = train(&history_until(46, None), &spec, &registry, GateLimits::default()).unwrap();
    assert_eq!(second.version.number, 2);
    assert_eq!(second.promoted, second.evaluation.verdict.as_ref().unwrap().promoted);
    let contenders = &second.evaluation.sections[0].contenders;
    let champion = contenders.iter().find(|c| c.name == "lstm/1").unwrap();
    let (ours, loss) = (contenders[0].scores.wql.unwrap(), champion.subject_to_it.unwrap());
    assert!((loss.ratio - ours / champion.scores.wql.unwrap()).abs() < 1e-9, "{loss:?}");
    assert!(loss.low <= loss.ratio && loss.ratio <= loss.high && contenders[0].subject_to_it.is_none());
    let of_class: usize = contenders[0].scores.wql_by_class.iter().map(|c| c.series).sum();
    assert_eq!(of_class, contenders[0].scores.series);
    let champion = if second.promoted { 2 } else { 1 };
    assert_eq!(registry.labels("lstm").unwrap().champion, Some(champion), "{:?}", second.reasons);
}

#[cfg(not(feature = "prophet"))]
#[test]
fn a_rival_that_cannot_be_fitted_is_missing_and_told_of() {
    let (_dir, registry) = registry();
    let (history, spec) = (history_until(40, None), spec(vec![product("hours", 6)]));
    let render = |report: &EvaluationReport| report.title.clone();
    let rivals = &[ModelKind::Prophet, ModelKind::Ridge];
    let options = TrainOptions {
        limits: GateLimits::default(),
        events: Arc::default(),
        rivals,
        clock: &SystemClock,
        render: &render,
    };
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false };
    let report = train_version(&history, &spec, &registry, "lstm", &options, &mut control).unwrap();
    let told = "hours: not compared with prophet: this program was built without prophet";
    assert!(report.evaluation.notes.iter().any(|note| note.starts_with(told)), "{:?}", report.evaluation.notes);
    let names: Vec<&str> = report.evaluation.sections[0].contenders.iter().map(|c| c.name.as_str()).collect();
    assert!(names.contains(&"ridge") && !names.contains(&"prophet"), "{names:?}");
    registry.load("lstm", 1).unwrap();
}

#[test]
fn f3_a_version_that_the_gate_refuses_stays_challenger() {
    let (_dir, registry) = registry();
    let spec = spec(vec![product("hours", 6)]);
    let impossible = GateLimits { ratio_to_naive: 0.01, ..GateLimits::default() };
    let report = train(&history_until(30, None), &spec, &registry, impossible).unwrap();
    assert!(
        !report.promoted && report.reasons[0].starts_with("not better than seasonal naive"),
        "{:?}",
        report.reasons
    );
    assert_eq!(report.labels, Labels { challenger: Some(1), ..Labels::default() });
    assert!(registry.champion("lstm").unwrap().is_none());
    registry.load("lstm", 1).unwrap();
    // A hand may overrule the gate.
    assert_eq!(registry.promote("lstm", 1).unwrap().champion, Some(1));
}

#[test]
fn d1_the_windows_of_the_backtest_are_not_learned_from() {
    let (_dir, registry) = registry();
    let spec = spec(vec![product("hours", 6)]);
    let first_window = 30 * 24 - 12 * 6;
    let clean = train(&history_until(30, None), &spec, &registry, GateLimits::default()).unwrap();
    let spoilt = train(&history_until(30, Some(first_window)), &spec, &registry, GateLimits::default()).unwrap();
    for file in ["weights.safetensors", "calibration.json", "templates.parquet"] {
        let bytes = |report: &TrainReport| fs::read(report.path.join(file)).unwrap();
        assert!(bytes(&clean) == bytes(&spoilt), "{file} differs");
    }
    assert_ne!(clean.evaluation.sections[0].contenders[0].scores, spoilt.evaluation.sections[0].contenders[0].scores);
}

#[test]
fn d1_what_an_event_does_in_the_windows_is_not_learned_there() {
    let (_dir, registry) = registry();
    let spec = spec(vec![product("hours", 6)]);
    let first_window = 30 * 24 - 12 * 6;
    // Every sixth day has one, those of the windows too, whose loads are spoilt in one of the histories.
    let event = |day: i64| {
        let start = Timestamp::from_ms((day * 24 + 9) * HOUR);
        LoadEvent { start, end: start.plus_ms(5 * HOUR), name: "sale".to_owned(), shard: None }
    };
    let events = Arc::new(EventCalendar::new([5, 11, 17, 23, 28].map(event)));
    let trained = |spoil_from| {
        let history = history_until(30, spoil_from);
        train_knowing(events.clone(), &history, &spec, &registry, GateLimits::default()).unwrap()
    };
    let (clean, spoilt) = (trained(None), trained(Some(first_window)));
    let calibration = fs::read_to_string(clean.path.join("calibration.json")).unwrap();
    assert!(calibration.contains("sale"), "{calibration}");
    for file in ["weights.safetensors", "calibration.json", "templates.parquet"] {
        let bytes = |report: &TrainReport| fs::read(report.path.join(file)).unwrap();
        assert!(bytes(&clean) == bytes(&spoilt), "{file} differs");
    }
    assert!(fs::read_to_string(clean.path.join("card.md")).unwrap().contains("- known events: 5, sha256 "));
}

#[test]
fn a_product_for_which_the_history_is_too_short_is_skipped() {
    let (_dir, registry) = registry();
    let spec = spec(vec![product("hours", 6), product("days", 96)]);
    let report = train(&history_until(20, None), &spec, &registry, GateLimits::default()).unwrap();
    assert_eq!(report.skipped.len(), 1);
    assert_eq!(report.skipped[0].product, "days");
    assert!(report.skipped[0].why.contains("days of history, there are 20.0"), "{:?}", report.skipped);
    assert!(report.evaluation.notes.iter().any(|n| n.starts_with("days was not trained")));
    let version = registry.load("lstm", 1).unwrap();
    assert!(version.forecaster("hours").is_some() && version.forecaster("days").is_none());
}

#[test]
fn too_little_history_for_all_is_an_error_and_publishes_nothing() {
    let (_dir, registry) = registry();
    let shipped = spec(Product::ALL.map(ProductSpec::from).to_vec());
    let error = train(&history_until(9, None), &shipped, &registry, GateLimits::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("too short to train any product: next_hours: ") && text.contains("next_day: "), "{text}");
    let other = TrainParams { metrics: Some(vec![Metric::IoOps]), ..spec(vec![product("hours", 6)]).params().clone() };
    let error = train(&history_until(30, None), &other.check().unwrap(), &registry, GateLimits::default()).unwrap_err();
    assert!(matches!(&error, PipelineError::TooShort { skipped } if skipped[0].why.contains("metrics")), "{error}");
    assert_eq!(registry.numbers("lstm").unwrap(), Vec::<u64>::new());
    let broken = registry.root().join("lstm");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("labels.json"), "{").unwrap();
    let error = train(&history_until(30, None), &shipped, &registry, GateLimits::default()).unwrap_err();
    assert!(matches!(error, PipelineError::Registry(_)), "{error}");
}
