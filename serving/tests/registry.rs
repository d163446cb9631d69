//! Versions as training writes them: verified, served, and refused when damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::ScenarioQuery;
use foreshard_domain::{Clock, Metric, Product, Timestamp};
use foreshard_model::{
    Architecture, EventEffects, Features, ForecastSpec, Learned, TrainedParts, VersionError, VersionParts,
    VersionProduct, Weights, write_version,
};
use foreshard_serving::{ReloadError, start};
use std::fs;
use std::sync::Arc;

/// A version whose networks say nothing beyond the features' anchors; enough to be loaded and to answer.
fn write(place: &Place, number: u64) {
    let product = |product: Product| {
        let spec = ForecastSpec::of_product(product);
        let architecture = Architecture::new(&Features::new(&spec));
        let members = vec![Weights { architecture, values: vec![0.0; architecture.size()] }];
        let trained = TrainedParts {
            name: product.name().to_owned(),
            spec,
            learned: Learned::Lstm(members),
            widths: None,
            events: EventEffects::default(),
            risk: Default::default(),
        };
        VersionProduct { trained, templates: None }
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
