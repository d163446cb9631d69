//! Prometheus keeps the forecasts that `/metrics` shows.

use crate::common::*;
use crate::prometheus::{asked, prometheus};
use foreshard_domain::{PerResource, Resource};
use foreshard_serving::{ExportConfig, ServingConfig};

#[tokio::test(flavor = "multi_thread")]
async fn forecasts_and_risks_can_be_asked_of_prometheus_and_what_is_left_out_is_told() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let limit = |resource| (resource == Resource::Cpu).then_some(50.0);
    // Two horizons of two levels and a risk: six series a shard, two of three shards.
    let exported = ExportConfig { most_series: 12, limits: PerResource::from_fn(limit), ..ExportConfig::default() };
    let http = Some("127.0.0.1:0".parse().unwrap());
    let server = place.start(ServingConfig { exported: Some(exported), http, ..place.config() }).await;
    let client = client(&server).await;
    for shard in ["calm", "hot", "left-out"] {
        let load = |mut row: foreshard_domain::Observation| {
            row.cpu_util = Some(if shard == "hot" { 99.0 } else { 1.0 });
            row
        };
        client.ingest(rows(shard, 100).into_iter().map(load).collect()).await.unwrap();
    }
    let config = format!(
        "global: {{ scrape_interval: 500ms, scrape_timeout: 400ms }}\nscrape_configs:\n  - job_name: foreshard\n    \
         static_configs: [{{ targets: ['{}'] }}]\n",
        server.http_addr().unwrap()
    );
    let Some((_peer, peer)) = prometheus(place.dir.path(), &config) else {
        return server.shutdown().await.unwrap();
    };
    let selector = |labels: &str| labels.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
    assert_eq!(asked(peer, "foreshard_export_series_left_out%20==%206").await, "6");
    let all = selector(r#"count(foreshard_forecast{shard!=""})"#);
    assert_eq!(asked(peer, &all).await, "8");
    let hot = asked(peer, &selector(r#"foreshard_forecast{shard="hot",horizon="4h",quantile="0.5"}"#)).await;
    assert_eq!(hot, "99");
    let high = asked(peer, &selector(r#"foreshard_forecast{shard="hot",horizon="1h",quantile="0.9"}"#)).await;
    assert!((high.parse::<f64>().unwrap() - 99.8).abs() < 1e-3, "{high}");
    let risk = async |shard: &str| {
        let query = format!(r#"foreshard_forecast_risk{{shard="{shard}",resource="cpu",horizon="1h"}}"#);
        asked(peer, &selector(&query)).await.parse::<f64>().unwrap()
    };
    assert!(risk("hot").await > 0.99 && risk("calm").await < 0.01);
    assert_eq!(asked(peer, &selector(r#"absent(foreshard_forecast{shard="left-out"})"#)).await, "1");
    server.shutdown().await.unwrap();
}
