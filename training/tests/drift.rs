//! Whether a version still fits: nothing is said while the loads go on as before, and what changed is named when they do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use foreshard_datasets::{BoundedHistory, Bounds, History};
use foreshard_domain::{Observation, QuantileLevels, ShardId, Step, SystemClock, Timestamp};
use foreshard_model::{ForecastSpec, ModelKind, Version};
use foreshard_training::{
    DriftError, DriftLimits, DriftReport, FitControl, GateLimits, ProductSpec, Registry, TrainOptions, TrainParams,
    drift, train_version_of,
};

const HOUR: i64 = 3_600_000;
/// Days that the version was trained and judged on.
const KNOWN: i64 = 35;

/// Between -.5 and .5, another for each hour of each shard.
fn random(s: i64, i: i64) -> f64 {
    let mut noise = (i * 64 + s + 7) as u64;
    for _ in 0..4 {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
    }
    (noise % 1000) as f64 / 1000.0 - 0.5
}

/// `shards` shards over `days` days; what happens after the known days is up to `after`.
fn history(shards: i64, days: i64, after: impl Fn(i64, i64, f64) -> Option<f64>) -> BoundedHistory {
    let load = |s: i64, i: i64| {
        let usual =
            60.0 + 15.0 * ((i % 24) as f64 / 24.0 * std::f64::consts::TAU + s as f64).sin() + 6.0 * random(s, i);
        if i < KNOWN * 24 && s < 6 {
            Some(usual)
        } else if i < KNOWN * 24 {
            None
        } else {
            after(s, i, usual)
        }
    };
    let row = |s: i64, i: i64| {
        let mut row = Observation::empty(ShardId::new(format!("s{s}")).unwrap(), Timestamp::from_ms(i * HOUR));
        row.cpu_util = Some(load(s, i)?);
        Some(row)
    };
    let row = &row;
    History::from_observations((0..shards).flat_map(|s| (0..days * 24).filter_map(move |i| row(s, i)))).unwrap().into()
}

fn version() -> (tempfile::TempDir, Version) {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    let (step, levels) = (Step::from_ms(HOUR).unwrap(), QuantileLevels::standard());
    let forecast =
        ForecastSpec { step, horizon: 12, season_steps: 24, levels, bounds: Bounds::Load, zone: "UTC".to_owned() };
    let products = vec![ProductSpec { name: "hours".into(), forecast }];
    let params = TrainParams { model: ModelKind::Ridge, products, origins: 1500, threads: 1, ..Default::default() };
    let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false };
    let options = TrainOptions {
        limits: GateLimits::default(),
        events: Arc::default(),
        rivals: &[],
        clock: &SystemClock,
        render: &|_| String::new(),
    };
    let known = history(6, KNOWN, |_, _, _| None);
    let trained =
        train_version_of(&known, &params.check().unwrap(), &registry, "load", &options, &mut control).unwrap();
    let version = registry.load("load", trained.version.number).unwrap();
    (folder, version)
}

fn told(version: &Version, history: &BoundedHistory) -> DriftReport {
    drift(history, version, &Arc::default(), &DriftLimits::default()).unwrap()
}

fn says(report: &DriftReport, text: &str) -> bool {
    report.reasons.iter().any(|reason| reason.contains(text))
}

#[test]
fn loads_that_go_on_are_no_drift_and_changed_ones_are_named() {
    let (_folder, version) = version();
    let spans: Vec<_> = version.manifest().products.iter().map(|p| p.judged.unwrap()).collect();
    assert_eq!(spans[0].until, Timestamp::from_ms(KNOWN * 24 * HOUR));
    assert!(spans[0].from < spans[0].until && spans[0].from == version.manifest().trained_until);

    let same = told(&version, &history(6, KNOWN + 10, |_, _, usual| Some(usual)));
    assert!(!same.drifted(), "{same:?}");
    assert_eq!((same.live[0].windows, same.unseen_shards, same.shards), (20, 0, 6));
    assert!(same.live[0].cusum.is_some() && same.live[0].coverage_since.is_some_and(|c| c > 0.6), "{same:?}");
    assert!(same.stability[0].index.is_some_and(|index| index < 0.1), "{same:?}");

    // Wilder around the same rhythm: intervals are too narrow.
    let wild = told(&version, &history(6, KNOWN + 10, |s, i, usual| Some(usual + 40.0 * random(s, i + 9999))));
    assert!(says(&wild, "the 80 % interval held"), "{:?}", wild.reasons);

    // The noise is gone, and every day is as the day before: what was learned is worse than saying just that.
    let quiet = told(&version, &history(6, KNOWN + 10, |s, i, usual| Some(usual - 6.0 * random(s, i))));
    assert!(says(&quiet, "losses have risen beside those of seasonal naive, CUSUM"), "{:?}", quiet.reasons);

    // Twice the load in the same rhythm: a forecaster that scales may well cope, the loads are others all the same.
    let grown = told(&version, &history(6, KNOWN + 10, |_, _, usual| Some(2.0 * usual)));
    assert!(says(&grown, "cpu_util: values lie elsewhere than in the weeks before"), "{:?}", grown.reasons);

    let come = told(&version, &history(9, KNOWN + 10, |_, _, usual| Some(usual)));
    assert!(says(&come, "3 of 9 shards were not there when it was trained, limit 20 %"), "{:?}", come.reasons);
    assert_eq!(come.reasons.len(), 1, "{:?}", come.reasons);

    let old = told(&version, &history(6, KNOWN + 31, |_, _, usual| Some(usual)));
    assert!(says(&old, "its history ended 31.0 days before this one, limit 30.0"), "{:?}", old.reasons);
}

#[test]
fn too_little_since_says_nothing() {
    let (_folder, version) = version();
    let none = told(&version, &history(6, KNOWN, |_, _, _| None));
    assert!(!none.drifted() && none.live.is_empty() && none.stability[0].index.is_none(), "{none:?}");
    // A wild day alone: two windows are fewer than what anything is concluded from.
    let short = told(&version, &history(6, KNOWN + 1, |s, i, usual| Some(usual + 40.0 * random(s, i + 9999))));
    assert!(!says(&short, "CUSUM") && !says(&short, "interval"), "{:?}", short.reasons);
    assert_eq!(short.live[0].windows, 2);
}

#[test]
fn a_version_that_was_not_judged_is_told() {
    let (folder, version) = version();
    let path = folder.path().join("load").join(version.manifest().number.to_string()).join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    manifest["products"][0].as_object_mut().unwrap().remove("judged").unwrap();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let version = Version::load(path.parent().unwrap()).unwrap();
    let history = history(6, KNOWN + 5, |_, _, usual| Some(usual));
    let error = drift(&history, &version, &Arc::default(), &DriftLimits::default()).unwrap_err();
    assert!(matches!(error, DriftError::NotJudged { .. }) && error.to_string().contains("train anew"), "{error}");
}
