//! The registry on disk: labels, crashes, concurrent publishers and readers, damage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_domain::{Metric, Product, Timestamp};
use foreshard_model::{
    Architecture, EventEffects, Features, ForecastSpec, Learned, TrainedParts, VersionParts, VersionProduct,
    write_version,
};
use foreshard_training::{Labels, Registry, RegistryError};
use rand::SeedableRng;
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

/// An untrained version of a tiny product.
fn parts(model: &str, number: u64) -> VersionParts {
    let spec = ForecastSpec { horizon: 4, season_steps: 8, ..ForecastSpec::of_product(Product::NextHours) };
    let weights = Architecture::new(&Features::new(&spec)).initial(&mut rand_chacha::ChaCha8Rng::seed_from_u64(number));
    let trained = TrainedParts {
        name: "next_hours".into(),
        spec,
        learned: Learned::Lstm(vec![weights]),
        widths: None,
        events: EventEffects::default(),
        risk: Default::default(),
    };
    VersionParts {
        model: model.into(),
        number,
        products: vec![VersionProduct { trained, templates: None, judged: None }],
        metrics: vec![Metric::CpuUtil],
        trained_from: Timestamp::from_ms(0),
        trained_until: Timestamp::from_ms(300_000),
        data_fingerprint: "f".into(),
        seed: number,
        parent: None,
        report_json: "{}".into(),
        report_html: "<p>".into(),
        card_md: "# card".into(),
    }
}

fn publish(registry: &Registry, model: &str) -> u64 {
    let reservation = registry.reserve(model).unwrap();
    write_version(&reservation.content(), &parts(model, reservation.number())).unwrap();
    registry.publish(model, reservation).unwrap()
}

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    (dir, registry)
}

#[test]
fn versions_are_published_promoted_and_rolled_back() {
    let (_dir, registry) = registry();
    assert!(registry.champion("lstm").unwrap().is_none());
    assert_eq!((publish(&registry, "lstm"), publish(&registry, "lstm")), (1, 2));
    assert_eq!(registry.labels("lstm").unwrap(), Labels { challenger: Some(2), ..Labels::default() });
    registry.promote("lstm", 1).unwrap();
    assert!(matches!(registry.rollback("lstm"), Err(RegistryError::NothingBefore { .. })));
    let labels = registry.promote("lstm", 2).unwrap();
    assert_eq!(labels, Labels { champion: Some(2), challenger: None, last_good: Some(1) });
    assert_eq!(registry.champion("lstm").unwrap().unwrap().id().number, 2);
    assert_eq!(registry.rollback("lstm").unwrap().champion, Some(1));
    assert_eq!(registry.next_number("lstm").unwrap(), 3);
    assert_eq!(registry.models().unwrap(), ["lstm"]);
    let listed: Vec<_> = registry.list("lstm").unwrap().into_iter().map(|e| (e.number, e.labels)).collect();
    assert_eq!(listed, [(1, vec!["champion", "last_good"]), (2, vec![])]);
    assert_eq!(registry.show("lstm", 2).unwrap().seed, 2);
}

#[test]
fn f3_the_last_good_version_is_never_deleted() {
    let (_dir, registry) = registry();
    (0..6).for_each(|_| assert!(publish(&registry, "m") > 0));
    registry.promote("m", 1).unwrap();
    registry.promote("m", 3).unwrap();
    assert_eq!(registry.labels("m").unwrap(), Labels { champion: Some(3), challenger: Some(6), last_good: Some(1) });
    assert_eq!(registry.prune("m", 1).unwrap(), [2, 4, 5]);
    assert_eq!(registry.numbers("m").unwrap(), [1, 3, 6]);
    assert_eq!(registry.prune("m", 0).unwrap(), Vec::<u64>::new());
    assert_eq!(registry.rollback("m").unwrap().champion, Some(1));
    registry.load("m", 1).unwrap();
    // Numbers are not given out twice, whatever was deleted.
    assert_eq!(publish(&registry, "m"), 7);
}

#[test]
fn concurrent_publishers_get_different_numbers_and_readers_see_whole_versions() {
    let (_dir, registry) = registry();
    let first = publish(&registry, "m");
    registry.promote("m", first).unwrap();
    let done = AtomicBool::new(false);
    let numbers: BTreeSet<u64> = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::SeqCst) || reads == 0 {
                let champion = registry.champion("m").unwrap().unwrap().id().number;
                assert!(registry.numbers("m").unwrap().contains(&champion));
                reads += 1;
            }
        });
        let shared = &registry;
        let publish_and_promote = move || {
            let number = publish(shared, "m");
            shared.promote("m", number).unwrap();
            number
        };
        let writers: Vec<_> =
            (0..4).map(|_| scope.spawn(move || (0..3).map(|_| publish_and_promote()).collect::<Vec<_>>())).collect();
        let numbers = writers.into_iter().flat_map(|w| w.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
        numbers
    });
    assert_eq!(numbers.len(), 12);
    let labels = registry.labels("m").unwrap();
    assert_ne!(labels.champion, labels.last_good);
}

#[test]
fn a_crash_at_any_point_of_publishing_or_labelling_leaves_the_champion() {
    let (dir, registry) = registry();
    let first = publish(&registry, "m");
    registry.promote("m", first).unwrap();
    let folder = dir.path().join("registry/m");
    // Crashed while writing the version: a staging folder, half filled.
    fs::create_dir_all(folder.join(".2.staging/content")).unwrap();
    fs::write(folder.join(".2.staging/content/weights.safetensors"), b"half").unwrap();
    // Crashed while replacing the labels: the temporary file, half written.
    fs::write(folder.join("labels.tmp"), b"{\"champion\": 2,").unwrap();
    // Crashed while deleting.
    fs::create_dir_all(folder.join(".7.removed")).unwrap();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    assert_eq!(registry.numbers("m").unwrap(), [1]);
    assert_eq!(registry.champion("m").unwrap().unwrap().id().number, 1);
    // The half version's number is skipped, and labels can be replaced again.
    let next = publish(&registry, "m");
    assert_eq!(next, 3);
    assert_eq!(registry.promote("m", next).unwrap().last_good, Some(1));
}

#[test]
fn a_version_that_does_not_load_is_neither_published_nor_promoted() {
    let (dir, registry) = registry();
    let reservation = registry.reserve("m").unwrap();
    write_version(&reservation.content(), &parts("m", 1)).unwrap();
    fs::write(reservation.content().join("card.md"), "another card").unwrap();
    assert!(matches!(registry.publish("m", reservation), Err(RegistryError::Version { number: 1, .. })));
    assert_eq!(registry.numbers("m").unwrap(), Vec::<u64>::new());
    let (good, bad) = (publish(&registry, "m"), publish(&registry, "m"));
    registry.promote("m", good).unwrap();
    fs::write(dir.path().join(format!("registry/m/{bad}/weights.safetensors")), "garbage").unwrap();
    let error = registry.promote("m", bad).unwrap_err();
    assert!(error.to_string().contains("cannot be loaded; promote another version"), "{error}");
    assert_eq!(registry.labels("m").unwrap().champion, Some(good));
}

#[test]
fn mistakes_are_told_with_the_way_out() {
    let (dir, registry) = registry();
    let text = |error: RegistryError| error.to_string();
    assert!(text(registry.promote("m", 4).unwrap_err()).contains("no version 4; it has none yet: train one first"));
    let number = publish(&registry, "m");
    assert_eq!(number, 1);
    assert!(text(registry.load("m", 4).unwrap_err()).contains("no version 4; there are 1"));
    let labels = Labels { champion: Some(9), ..Labels::default() };
    assert!(matches!(registry.set_labels("m", &labels), Err(RegistryError::Unknown { number: 9, .. })));
    for name in ["", "cost", "../m", ".hidden", "a/b", "a b"] {
        assert!(matches!(registry.labels(name), Err(RegistryError::Name { .. })), "{name}");
    }
    for broken in ["", "{\"champion\": 1", "{\"champion\": \"x\"}", "{\"champion\": 1, \"chalenger\": 2}"] {
        fs::write(dir.path().join("registry/m/labels.json"), broken).unwrap();
        let error = text(registry.champion("m").unwrap_err());
        assert!(error.contains("labels.json does not hold labels; write {\"champion\": N"), "{error}");
        assert!(matches!(registry.prune("m", 1), Err(RegistryError::Labels { .. })));
    }
    fs::remove_file(dir.path().join("registry/m/labels.json")).unwrap();
    assert_eq!(registry.promote("m", 1).unwrap().champion, Some(1));
}

#[test]
fn one_trainer_at_a_time() {
    let (_dir, registry) = registry();
    let turn = registry.training("m").unwrap();
    let error = registry.training("m").unwrap_err();
    assert!(matches!(&error, RegistryError::Busy { model, .. } if model == "m"), "{error}");
    assert!(error.to_string().contains("wait until it is done"), "{error}");
    let other = registry.training("other").unwrap();
    drop(turn);
    registry.training("m").unwrap();
    drop(other);
    assert_eq!(registry.numbers("m").unwrap(), Vec::<u64>::new(), "the lock is no version");
    publish(&registry, "m");
    assert_eq!(registry.list("m").unwrap().len(), 1);
}
