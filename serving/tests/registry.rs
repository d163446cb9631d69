//! Versions as training writes them: verified, served, and refused when damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::ScenarioQuery;
use foreshard_domain::{Clock, Metric, Product, Timestamp};
use foreshard_model::{
    Architecture, Context, EventEffects, Features, ForecastSpec, Learned, RIDGE_INPUTS, Ridge, SPREADS, TENSOR_LEVELS,
    TrainedParts, Version, VersionError, VersionParts, VersionProduct, WIDTH_BLOCKS, Weights, write_version,
};
use foreshard_serving::{ReloadError, start};
use std::fs;
use std::sync::Arc;

/// Networks that say nothing beyond the features' anchors; enough to be loaded and to answer.
fn network(spec: &ForecastSpec) -> Learned {
    let architecture = Architecture::new(&Features::new(spec));
    Learned::Lstm(vec![Weights { architecture, values: vec![0.0; architecture.size()] }])
}

/// Linear maps that look at every input a little.
fn ridge(spec: &ForecastSpec) -> Learned {
    let coefficients = (0..spec.horizon * RIDGE_INPUTS).map(|i| ((i * 7919) % 211) as f32 / 2110.0 - 0.05).collect();
    let errors = TENSOR_LEVELS.map(|level| (level - 0.5) as f32);
    Learned::Ridge(Ridge {
        coefficients,
        spreads: vec![0.1; WIDTH_BLOCKS * SPREADS],
        quantiles: errors.repeat(WIDTH_BLOCKS),
    })
}

/// A version of networks.
fn write(place: &Place, number: u64) {
    write_of(place, number, network);
}

fn write_of(place: &Place, number: u64, learned: fn(&ForecastSpec) -> Learned) {
    let product = |product: Product| {
        let spec = ForecastSpec::of_product(product);
        let (name, learned) = (product.name().to_owned(), learned(&spec));
        let (events, risk) = (EventEffects::default(), Default::default());
        let trained = TrainedParts { name, spec, learned, widths: None, events, risk };
        VersionProduct { trained, templates: None, judged: None }
    };
    let parts = VersionParts {
        model: "load".to_owned(),
        number,
        products: Product::ALL.map(product).to_vec(),
        metrics: vec![Metric::CpuUtil, Metric::IoOps],
        trained_from: Timestamp::from_ms(0),
        trained_until: Timestamp::from_ms(1000 * number as i64),
        data_fingerprint: String::new(),
        seed: 1,
        parent: None,
        report_json: "{}".to_owned(),
        report_html: String::new(),
        card_md: String::new(),
    };
    fs::create_dir_all(place.version_dir(number).parent().unwrap()).unwrap();
    write_version(&place.version_dir(number), &parts).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_a_wrong_checksum_is_refused_while_the_old_version_serves() {
    let place = Place::new();
    write(&place, 1);
    place.label(1);
    let clock: Arc<dyn Clock> = place.clock.clone();
    let server = start(place.config(), clock).await.unwrap();
    assert_eq!(server.version().map(|id| id.number), Some(1));
    let client = client(&server).await;
    client.ingest((0..9 * 288).map(|i| row("a", 5 * i, 50.0 + (i % 288) as f64 / 10.0)).collect()).await.unwrap();
    client.ingest(rows("short", 300)).await.unwrap();
    let made = client.forecast(&next_hours(&[])).await.unwrap();
    assert_eq!(made[0].provenance.version.as_ref().map(|id| id.number), Some(1));
    assert_eq!((made[0].provenance.fallback, made[0].provenance.missing_share), (None, 0.0));
    assert!(made[1].provenance.fallback.is_some(), "a day of history does not carry the network");
    let query = ScenarioQuery { shards: vec![], product: Product::NextDay, scenarios: 20, seed: 3 };
    let (set, provenance) = client.scenarios(&query).await.unwrap();
    assert_eq!((set.shards().len(), set.steps(), provenance.len()), (2, 96, 4));

    write(&place, 2);
    let weights = place.version_dir(2).join("weights.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    place.label(2);
    let Err(ReloadError::Load { source, .. }) = server.reload().await else { panic!("a damaged version was taken") };
    assert!(matches!(source.downcast_ref(), Some(VersionError::Checksum { .. })), "{source}");
    assert_eq!(client.forecast(&next_hours(&["a"])).await.unwrap()[0], made[0]);
    let models = client.models().await.unwrap();
    assert!(models[1].refused.as_ref().is_some_and(|why| why.contains("sha-256")), "{models:?}");
    assert_eq!(models[1].trained_until, Some(Timestamp::from_ms(2000)));

    write(&place, 3);
    place.label(3);
    assert_eq!(server.reload().await.unwrap().map(|id| id.number), Some(3));
    let after = client.forecast(&next_hours(&["a"])).await.unwrap();
    assert_eq!(after[0].provenance.version.as_ref().map(|id| id.number), Some(3));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ridge_takes_over_from_a_network_and_answers_as_its_folder_does() {
    let place = Place::new();
    write(&place, 1);
    place.label(1);
    let clock: Arc<dyn Clock> = place.clock.clone();
    let server = start(place.config(), clock).await.unwrap();
    let client = client(&server).await;
    let load = |i: i64| 50.0 + (i % 288) as f64 / 10.0 + (i * 7919 % 101) as f64 / 50.0;
    client.ingest((0..9 * 288).map(|i| row("a", 5 * i, load(i))).collect()).await.unwrap();
    let by_network = client.forecast(&next_hours(&["a"])).await.unwrap().remove(0);

    write_of(&place, 2, ridge);
    place.label(2);
    assert_eq!(server.reload().await.unwrap().map(|id| id.number), Some(2));
    let served = client.forecast(&next_hours(&["a"])).await.unwrap().remove(0);
    assert_eq!(served.provenance.version.as_ref().map(|id| id.number), Some(2));
    assert_eq!((served.provenance.fallback, served.metric), (None, Metric::CpuUtil));
    assert_ne!(served.forecast, by_network.forecast);
    let version = Version::load(&place.version_dir(2)).unwrap();
    let values: Vec<f32> = (0..9 * 288).map(|i| load(i) as f32).collect();
    let (name, step) = (shard("a"), Product::NextHours.step());
    let start = Timestamp::from_ms(0);
    let context = Context { shard: &name, metric: Metric::CpuUtil, start, step, values: &values, events: None };
    let direct = version.forecast(Product::NextHours, &[context]).remove(0);
    assert_eq!((served.issued_at, &served.forecast), (direct.issued_at, &direct.forecast));

    // And back, as after a roll back.
    place.label(1);
    assert_eq!(server.reload().await.unwrap().map(|id| id.number), Some(1));
    assert_eq!(client.forecast(&next_hours(&["a"])).await.unwrap().remove(0), by_network);
    server.shutdown().await.unwrap();
}
