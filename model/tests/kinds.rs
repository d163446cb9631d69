//! Version folders of models without networks: both ways, damage, no future, no crossing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use foreshard_domain::{Fallback, Metric, Product, ShardId, Timestamp};
use foreshard_model::{
    Architecture, Blend, Context, Features, Filled, ForecastSpec, Forecaster, Lanes, Learned, ModelKind, Origin,
    Prophet, ProphetSeries, RIDGE_INPUTS, Ridge, SPREADS, SeriesFit, TENSOR_LEVELS, Trained, TrainedParts, Version,
    VersionParts, VersionProduct, WIDTH_BLOCKS, Weights, write_version,
};
use proptest::prelude::*;

fn shard(name: &str) -> ShardId {
    ShardId::new(name).unwrap()
}

fn errors() -> [f32; 13] {
    TENSOR_LEVELS.map(|level| (level - 0.5) as f32 * 3.0)
}

/// Maps that look at every input a little.
fn ridge(horizon: usize) -> Learned {
    let coefficients = (0..horizon * RIDGE_INPUTS).map(|i| ((i * 7919) % 211) as f32 / 2110.0 - 0.05).collect();
    let quantiles = errors().repeat(WIDTH_BLOCKS);
    Learned::Ridge(Ridge { coefficients, spreads: vec![0.1; WIDTH_BLOCKS * SPREADS], quantiles })
}

fn network(product: Product) -> Weights {
    let sizes = Architecture::new(&Features::new(&ForecastSpec::of_product(product)));
    Weights { architecture: sizes, values: (0..sizes.size()).map(|i| ((i * 31) % 7) as f32 / 100.0 - 0.03).collect() }
}

/// A network with maps beside it.
fn blend(share: f32) -> Learned {
    let Learned::Ridge(ridge) = ridge(48) else { panic!("it is a ridge") };
    Learned::Blend(Blend { networks: vec![network(Product::NextHours)], ridge, share })
}

/// Fits of two series.
fn prophet() -> Learned {
    let fit = |name: &str, offset: f32| {
        let series = ProphetSeries { shard: shard(name), metric: Metric::CpuUtil, start: Timestamp::from_ms(900_000) };
        let (changes, deltas) = (vec![0.3, 0.6], vec![0.2, -0.1]);
        let waves = vec![0.2, 0.1, -0.05, 0.02];
        let (span_s, unit) = (86_400.0 * 20.0, 80.0);
        (series, SeriesFit { span_s, unit, rate: 0.1, offset, changes, deltas, waves, errors: errors() })
    };
    Learned::Prophet(Prophet::new((2, 1, 1), vec![fit("a", 0.4), fit("b", 0.6)]))
}

fn product(product: Product, learned: Learned) -> VersionProduct {
    let spec = ForecastSpec::of_product(product);
    let trained = TrainedParts {
        name: product.name().to_owned(),
        spec,
        learned,
        widths: None,
        events: Default::default(),
        risk: Default::default(),
    };
    VersionProduct { trained, templates: None, judged: None }
}

fn parts(products: Vec<VersionProduct>) -> VersionParts {
    VersionParts {
        model: "load".into(),
        number: 1,
        products,
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

fn of_ridge() -> VersionParts {
    let [hours, day] = [Product::NextHours, Product::NextDay].map(|p| product(p, ridge(p.horizon())));
    parts(vec![hours, day])
}

fn of_prophet() -> VersionParts {
    parts(vec![product(Product::NextHours, prophet()), product(Product::NextDay, prophet())])
}

fn series(days: usize) -> Vec<f32> {
    let noise = |i: usize| ((i * 7919) % 997) as f32 / 100.0;
    (0..days * 288).map(|i| 40.0 + 20.0 * (i as f32 / 288.0 * std::f32::consts::TAU).sin() + noise(i)).collect()
}

fn context<'a>(shard: &'a ShardId, values: &'a [f32]) -> Context<'a> {
    let step = Product::NextHours.step();
    Context { shard, metric: Metric::CpuUtil, start: Timestamp::from_ms(0), step, values, events: None }
}

#[test]
fn folders_go_both_ways() {
    for (parts, kind) in [(of_ridge(), ModelKind::Ridge), (of_prophet(), ModelKind::Prophet)] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("1");
        let manifest = write_version(&dir, &parts).unwrap();
        assert_eq!(manifest.kind, kind);
        let version = Version::load(&dir).unwrap();
        assert_eq!(version.manifest(), &manifest);
        let (name, values) = (shard("a"), series(20));
        for product in &parts.products {
            let loaded = version.forecaster(&product.trained.name).unwrap();
            assert_eq!((loaded.parts(), loaded.name()), (&product.trained, kind.name()));
            let before = Trained::new(product.trained.clone(), Arc::new(Lanes::new(1).unwrap())).unwrap();
            assert_eq!(before.forecast(&[context(&name, &values)]), loaded.forecast(&[context(&name, &values)]));
        }
        let answer = version.forecast(Product::NextHours, &[context(&name, &values)]).remove(0);
        assert_eq!(answer.provenance.version.as_ref().map(ToString::to_string).as_deref(), Some("load/1"));
        // Equal parts, equal bytes.
        assert_eq!(write_version(&folder.path().join("2"), &parts).unwrap(), manifest);
    }
}

/// Loads a folder after something was done to it; the error's text with its causes.
fn broken(parts: &VersionParts, damage: impl Fn(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("1");
    write_version(&dir, parts).unwrap();
    damage(&dir);
    let error = Version::load(&dir).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn damage_is_refused_and_named() {
    for (parts, kind) in [(of_ridge(), "\"kind\": \"ridge\""), (of_prophet(), "\"kind\": \"prophet\"")] {
        let flipped = broken(&parts, |dir| {
            let file = dir.join("weights.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(file, bytes).unwrap();
        });
        assert!(flipped.contains("weights.safetensors is damaged: sha-256"), "{flipped}");
        let edit = |to: &str| {
            broken(&parts, |dir| {
                let text = fs::read_to_string(dir.join("manifest.json")).unwrap();
                assert!(text.contains(kind), "{text}");
                fs::write(dir.join("manifest.json"), text.replace(kind, to)).unwrap();
            })
        };
        assert!(edit("\"kind\": \"forest\"").contains("damaged"));
        assert!(edit("\"kind\": \"lstm\"").contains("it has no network"));
    }
    let fewer = broken(&of_ridge(), |dir| {
        let text = fs::read_to_string(dir.join("manifest.json")).unwrap();
        fs::write(dir.join("manifest.json"), text.replace("\"horizon\": 48", "\"horizon\": 47")).unwrap();
    });
    assert!(fewer.contains("next_hours.ridge.coefficients"), "{fewer}");
}

#[test]
fn nothing_unusable_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |parts: &VersionParts| write_version(&folder.path().join("1"), parts).unwrap_err().to_string();
    let mixed = parts(vec![product(Product::NextHours, ridge(48)), product(Product::NextDay, prophet())]);
    assert!(refused(&mixed).contains("it is of kind prophet, others are of ridge"));
    assert!(refused(&parts(vec![product(Product::NextDay, ridge(48))])).contains("instead of"));
    let Learned::Ridge(mut falls) = ridge(48) else { panic!("it is a ridge") };
    falls.quantiles.swap(0, 12);
    assert!(refused(&parts(vec![product(Product::NextHours, Learned::Ridge(falls))])).contains("fall"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

fn trained(learned: Learned) -> Trained {
    Trained::new(product(Product::NextHours, learned).trained, Arc::new(Lanes::new(2).unwrap())).unwrap()
}

#[test]
fn d1_the_future_does_not_reach_a_forecast() {
    for trained in [trained(ridge(48)), trained(prophet())] {
        let (name, honest, origin) = (shard("a"), series(20), 288 * 15);
        let rows = |values: &[f32]| {
            let filled = Filled::new(values, 288);
            let start = Timestamp::from_ms(origin as i64 * 300_000);
            let at = Origin { shard: &name, metric: Metric::CpuUtil, filled: &filled, index: origin, start };
            trained.raw_quantiles(&[at]).unwrap()
        };
        let expected = rows(&honest);
        for junk in [1e9, f32::NAN, f32::NEG_INFINITY] {
            let mut corrupt = honest.clone();
            corrupt[origin..].fill(junk);
            assert_eq!(rows(&corrupt), expected);
        }
        assert_eq!(rows(&honest[..origin]), expected);
    }
}

#[test]
fn who_cannot_be_answered_falls_back_and_says_why() {
    let values = series(20);
    let answers = |trained: &Trained, name: &str, values: &[f32]| {
        trained.forecast(&[context(&shard(name), values)]).remove(0).fallback
    };
    let (ridge, prophet) = (trained(ridge(48)), trained(prophet()));
    assert_eq!(answers(&ridge, "new", &values), None, "one model for all series");
    assert_eq!(answers(&prophet, "a", &values), None);
    assert_eq!(answers(&prophet, "new", &values), Some(Fallback::NoModel), "it was not fitted on this one");
    for trained in [&ridge, &prophet] {
        assert_eq!(answers(trained, "a", &values[..288 * 6]), Some(Fallback::ShortHistory));
        assert_eq!(answers(trained, "a", &[f32::NAN; 288 * 8]), Some(Fallback::UnknownSeries));
    }
}

#[test]
fn maps_have_their_share_in_what_networks_say_and_a_folder_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("1");
    write_version(&dir, &parts(vec![product(Product::NextHours, blend(0.25))])).unwrap();
    let version = Version::load(&dir).unwrap();
    assert_eq!((version.manifest().kind, version.manifest().schema), (ModelKind::Lstm, 3));
    assert_eq!(version.manifest().products[0].ridge_share, Some(0.25));
    let values: Vec<f32> =
        (0..288 * 9).map(|i| 40.0 + (i as f32 / 288.0 * std::f32::consts::TAU).sin() * 9.0).collect();
    let name = shard("a");
    let said = |trained: &Trained| trained.forecast(&[context(&name, &values)]).remove(0).forecast.values().to_vec();
    let network = trained(Learned::Lstm(vec![network(Product::NextHours)]));
    let (network, maps, both) = (said(&network), said(&trained(ridge(48))), said(&trained(blend(0.25))));
    assert_eq!(said(version.forecaster("next_hours").unwrap()), both);
    for ((network, maps), both) in network.iter().zip(&maps).zip(&both) {
        assert!((0.75 * network + 0.25 * maps - both).abs() < 1e-3 * both.abs(), "{network} {maps} {both}");
    }
    let refused = |learned| {
        write_version(&folder.path().join("2"), &parts(vec![product(Product::NextHours, learned)])).unwrap_err()
    };
    for share in [0.0, 1.0, f32::NAN] {
        let error = refused(blend(share));
        assert!(error.to_string().contains("1 networks with a share of"), "{error}");
    }
}

#[test]
fn folders_of_the_first_schema_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("1");
    let weights = network(Product::NextHours);
    write_version(&dir, &parts(vec![product(Product::NextHours, Learned::Lstm(vec![weights]))])).unwrap();
    let text = fs::read_to_string(dir.join("manifest.json")).unwrap();
    assert!(text.contains("\"kind\": \"lstm\"") && !text.contains("prophet") && !text.contains("ridge"), "{text}");
    let old = text.replace("\"schema\": 2", "\"schema\": 1").replace("  \"kind\": \"lstm\",\n", "");
    assert_ne!(old, text);
    fs::write(dir.join("manifest.json"), old).unwrap();
    let version = Version::load(&dir).unwrap();
    assert_eq!((version.manifest().schema, version.manifest().kind), (1, ModelKind::Lstm));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn f1_quantiles_never_cross(values in proptest::collection::vec(
        prop_oneof![6 => -10f32..1e4, 1 => Just(f32::NAN), 1 => Just(0.0), 1 => 1e6f32..1e12], 288 * 8)
    ) {
        for trained in [trained(ridge(48)), trained(prophet()), trained(blend(0.4))] {
            let answer = trained.forecast(&[context(&shard("b"), &values)]).remove(0);
            prop_assert_eq!(answer.forecast.horizon(), 48);
            let rows = answer.forecast.values().chunks(13);
            prop_assert!(rows.into_iter().all(|row| row.is_sorted() && row.iter().all(|v| v.is_finite() && *v >= 0.0)));
        }
    }
}
