//! Version folders on disk and the forecasts of a loaded version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use foreshard_datasets::{EventCalendar, LoadEvent};
use foreshard_domain::{
    Calibration, Fallback, Metric, Product, Resource, RiskCalibration, RiskCalibrations, ShardId, Timestamp,
};
use foreshard_model::{
    Architecture, Context, EventEffects, EventSource, Features, ForecastSpec, Forecaster, Learned, Origin,
    RankTemplates, TemplateLimits, TrainedParts, Version, VersionError, VersionParts, VersionProduct, WidthFactors,
    WidthSample, write_version,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn shard(name: &str) -> ShardId {
    ShardId::new(name).unwrap()
}

/// Two members with random weights: nobody has to train a network to see whether a folder holds it.
fn product(product: Product) -> VersionProduct {
    let spec = ForecastSpec::of_product(product);
    let sizes = Architecture { encoder: 4, decoder: 8, ..Architecture::new(&Features::new(&spec)) };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let members = vec![sizes.initial(&mut rng), sizes.without_encoder().initial(&mut rng)];
    let samples: Vec<WidthSample> = (0..4800)
        .map(|i| {
            let mut quantiles = [0.0; 13];
            quantiles.iter_mut().enumerate().for_each(|(k, q)| *q = k as f32 - 6.0);
            WidthSample { step: i % spec.horizon, quantiles, truth: ((i * 37) % 30) as f32 - 15.0 }
        })
        .collect();
    let widths = Some(WidthFactors::fit(&samples, spec.horizon));
    let slots = spec.horizon.min(48);
    let ranks = (0..50u8).flat_map(|t| {
        ["a", "b"]
            .map(|name| ((Metric::CpuUtil, shard(name)), Timestamp::from_ms(i64::from(t)), vec![t * 5 + 1; slots]))
    });
    let templates = RankTemplates::from_ranks(spec.horizon, ranks.collect(), &TemplateLimits::default());
    let half = RiskCalibration { bias: -0.5, slope: 0.5 };
    let risk = RiskCalibrations { series: half, groups: RiskCalibration { bias: 0.25, ..half } };
    let learned = Learned::Lstm(members);
    let trained = TrainedParts { name: product.name().to_owned(), spec, learned, widths, events: effects(), risk };
    VersionProduct { trained, templates: Some(templates), judged: None }
}

/// What four sales did, one a week.
fn effects() -> EventEffects {
    let hours = |hours: i64| Timestamp::from_ms(hours * 3_600_000);
    let sale = |week: i64| LoadEvent {
        start: hours(week * 168 + 34),
        end: hours(week * 168 + 38),
        name: "sale".to_owned(),
        shard: None,
    };
    let (events, shard, values) = (EventCalendar::new((0..4).map(sale)), shard("a"), series(28, 3));
    let context = Context { events: Some(&events), ..context(&shard, Product::NextHours, &values) };
    let effects = EventEffects::fit(EventSource { context, season: 288 }.occurrences());
    assert!(!effects.is_empty());
    effects
}

fn parts() -> VersionParts {
    VersionParts {
        model: "default".into(),
        number: 7,
        products: vec![product(Product::NextHours), product(Product::NextDay)],
        metrics: vec![Metric::CpuUtil],
        trained_from: Timestamp::from_ms(0),
        trained_until: Timestamp::from_ms(1_000_000),
        data_fingerprint: "ab".into(),
        seed: 3,
        parent: None,
        report_json: "{}".into(),
        report_html: "<p>".into(),
        card_md: "# card".into(),
    }
}

fn series(days: usize, seed: usize) -> Vec<f32> {
    let noise = |i: usize| ((i * 7919 + seed * 104_729) % 997) as f32 / 100.0;
    (0..days * 288).map(|i| 40.0 + 20.0 * (i as f32 / 288.0 * std::f32::consts::TAU).sin() + noise(i)).collect()
}

fn context<'a>(shard: &'a ShardId, product: Product, values: &'a [f32]) -> Context<'a> {
    Context { shard, metric: Metric::CpuUtil, start: Timestamp::from_ms(0), step: product.step(), values, events: None }
}

#[test]
fn folder_goes_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("default/7");
    fs::create_dir_all(dir.parent().unwrap()).unwrap();
    let parts = parts();
    let manifest = write_version(&dir, &parts).unwrap();
    let version = Version::load(&dir).unwrap();
    assert_eq!(version.manifest(), &manifest);
    assert_eq!(version.id().to_string(), "default/7");
    for product in &parts.products {
        let loaded = version.forecaster(&product.trained.name).unwrap();
        assert_eq!(loaded.parts(), &product.trained);
        assert_eq!(version.templates(&product.trained.name), product.templates.as_ref());
    }
    assert_eq!(manifest.checksums.len(), 6);
    // Immutable: a second writer is refused, and nothing half-written stays beside it.
    assert!(matches!(write_version(&dir, &parts), Err(VersionError::Exists { .. })));
    assert_eq!(fs::read_dir(folder.path().join("default")).unwrap().count(), 1);
    // Equal parts, equal bytes.
    let other = folder.path().join("other");
    assert_eq!(write_version(&other, &parts).unwrap(), manifest);
}

#[test]
fn a_killed_writer_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join(".7.partial");
    fs::create_dir_all(&staging).unwrap();
    fs::write(staging.join("weights.safetensors"), b"half").unwrap();
    let dir = folder.path().join("7");
    assert!(matches!(Version::load(&dir), Err(VersionError::MissingFile { .. })));
    write_version(&dir, &parts()).unwrap();
    Version::load(&dir).unwrap();
}

/// Loads a folder after something was done to it; the error's text with its causes.
fn broken(damage: impl Fn(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("7");
    write_version(&dir, &parts()).unwrap();
    damage(&dir);
    let error = Version::load(&dir).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn damage_is_refused_and_named() {
    for file in
        ["weights.safetensors", "calibration.json", "templates.parquet", "report.json", "report.html", "card.md"]
    {
        let text = broken(|dir| {
            let mut bytes = fs::read(dir.join(file)).unwrap();
            bytes.push(b' ');
            fs::write(dir.join(file), bytes).unwrap();
        });
        assert!(text.contains(file) && text.contains("sha-256"), "{text}");
        let text = broken(|dir| fs::remove_file(dir.join(file)).unwrap());
        assert!(text.contains(file) && text.contains("missing"), "{text}");
    }
    let edit = |from: &'static str, to: &'static str| {
        broken(move |dir| {
            let text = fs::read_to_string(dir.join("manifest.json")).unwrap();
            assert!(text.contains(from));
            fs::write(dir.join("manifest.json"), text.replace(from, to)).unwrap();
        })
    };
    assert!(edit("\"schema\": 2", "\"schema\": 4").contains("has schema 4"));
    assert!(edit("\"decoder\": 8", "\"decoder\": 9").contains("weights of the version"));
    assert!(edit("card.md", "../card.md").contains("card.md"));
    assert!(edit("\"horizon\": 48", "\"horizon\": 0").contains("next_hours"));
    assert!(edit("\"seed\"", "\"sneed\"").contains("damaged"));
}

#[test]
fn forecasts_carry_their_provenance() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("7");
    write_version(&dir, &parts()).unwrap();
    let version = Version::load(&dir).unwrap();
    let names = ["a", "b", "short", "gappy", "silent"].map(shard);
    let long = series(20, 1);
    let (short, silent) = (series(3, 2), vec![f32::NAN; 288 * 10]);
    let mut gappy = long.clone();
    gappy.iter_mut().step_by(2).for_each(|v| *v = f32::NAN);
    gappy[288 * 19..].fill(f32::NAN);
    let values = [&long, &long, &short, &gappy, &silent];
    let contexts: Vec<Context<'_>> =
        names.iter().zip(values).map(|(name, values)| context(name, Product::NextHours, values)).collect();
    let forecasts = version.forecast(Product::NextHours, &contexts);
    let reasons =
        [None, None, Some(Fallback::ShortHistory), Some(Fallback::MissingContext), Some(Fallback::UnknownSeries)];
    for ((forecast, reason), name) in forecasts.iter().zip(reasons).zip(&names) {
        assert_eq!((forecast.provenance.fallback, &forecast.shard), (reason, name));
        assert_eq!(forecast.provenance.version.is_some(), reason.is_none());
        let calibrated = forecast.provenance.calibration == Calibration::SplitConformal;
        assert_eq!(calibrated, reason.is_none());
        assert_eq!(forecast.forecast.horizon(), 48);
        assert!(forecast.forecast.values().iter().all(|v| *v >= 0.0));
    }
    assert!(forecasts[3].provenance.missing_share > 0.5);
    let set = version.scenarios(Product::NextHours, &contexts[..2], 50, 9).unwrap();
    assert_eq!((set.resources(), set.scenarios(), set.steps()), (&[Resource::Cpu][..], 50, 48));
    assert_eq!(set, version.scenarios(Product::NextHours, &contexts[..2], 50, 9).unwrap());
    let p = |limit| version.p_any(Product::NextHours, &contexts[0], &forecasts[0].forecast, limit);
    assert!(p(-1.0) == 1.0 && p(1e9) == 0.0 && p(40.0) >= p(60.0));
}

#[test]
fn batch_equals_single() {
    let trained = product(Product::NextHours).trained;
    let lanes = std::sync::Arc::new(foreshard_model::Lanes::new(3).unwrap());
    let trained = foreshard_model::Trained::new(trained, lanes).unwrap();
    let names: Vec<ShardId> = (0..40).map(|i| shard(&format!("s{i}"))).collect();
    let values: Vec<Vec<f32>> = (0..40).map(|i| series(8 + i % 25, i)).collect();
    let contexts: Vec<Context<'_>> =
        names.iter().zip(&values).map(|(name, values)| context(name, Product::NextHours, values)).collect();
    let batch = trained.forecast(&contexts);
    for (context, together) in contexts.iter().zip(&batch) {
        let alone = &trained.forecast(std::slice::from_ref(context))[0];
        assert_eq!(alone.fallback, together.fallback);
        for (a, b) in alone.forecast.values().iter().zip(together.forecast.values()) {
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{a} {b}");
        }
    }
}

#[test]
fn d1_the_future_does_not_reach_a_forecast() {
    let trained = product(Product::NextHours).trained;
    let lanes = std::sync::Arc::new(foreshard_model::Lanes::new(1).unwrap());
    let trained = foreshard_model::Trained::new(trained, lanes).unwrap();
    let name = shard("a");
    let honest = series(20, 4);
    let origin = 288 * 15;
    let mut corrupt = honest.clone();
    corrupt[origin..].fill(1e9);
    let made = |values: &[f32]| {
        let answer = trained.forecast(&[context(&name, Product::NextHours, &values[..origin])]).remove(0);
        answer.forecast.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(made(&honest), made(&corrupt));
    // The same through the table that training uses, which holds the whole series.
    let rows = |values: &[f32]| {
        let filled = foreshard_model::Filled::new(values, 288);
        let (shard, start) = (&name, Timestamp::from_ms(0));
        let at = Origin { shard, metric: Metric::CpuUtil, filled: &filled, index: origin, start };
        trained.raw_quantiles(&[at]).unwrap()
    };
    assert_eq!(rows(&honest), rows(&corrupt));
    assert_eq!(rows(&honest), rows(&honest[..origin]));
}

#[test]
fn nothing_unusable_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut VersionParts)| {
        let mut parts = parts();
        change(&mut parts);
        let error = write_version(&folder.path().join("1"), &parts).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        error.to_string()
    };
    assert!(refused(&|p| p.products.clear()).contains("at least one product"));
    assert!(refused(&|p| p.products[1] = p.products[0].clone()).contains("twice"));
    assert!(refused(&|p| p.products[0].trained.learned = Learned::Lstm(Vec::new())).contains("no network"));
    assert!(refused(&|p| p.products[0].templates = p.products[1].templates.clone()).contains("another horizon"));
    let none: BTreeMap<String, foreshard_model::Weights> = BTreeMap::new();
    assert!(foreshard_model::weights_bytes(&none).is_ok());
}
