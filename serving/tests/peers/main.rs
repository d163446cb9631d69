//! Peers that nobody here wrote: Prometheus scrapes the metrics, and Python's own gRPC finds its way by health and reflection
//! alone. `scripts/test` installs both; where they are missing, the tests say so and end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod prometheus;
mod sender;

use common::*;
use foreshard_api::Secret;
use foreshard_serving::{RunningServer, ServingConfig};
use prometheus::{asked, prometheus};
use std::time::Duration;

/// The longest that a peer may take: both answer within a second or two where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(60);

const TOKEN: &str = "the-token-of-a-peer";

async fn started() -> (Place, RunningServer) {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let config = ServingConfig {
        http: Some("127.0.0.1:0".parse().unwrap()),
        token_text: Some(Secret::new(format!("peer read,ingest {TOKEN}"))),
        ..place.config()
    };
    let server = place.start(config).await;
    (place, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_what_was_done() {
    let (place, server) = started().await;
    let config = format!(
        "global: {{ scrape_interval: 500ms, scrape_timeout: 400ms }}\nscrape_configs:\n  - job_name: foreshard\n    \
         authorization: {{ credentials: {TOKEN} }}\n    static_configs: [{{ targets: ['{}'] }}]\n",
        server.http_addr().unwrap()
    );
    let Some((_peer, prometheus)) = prometheus(place.dir.path(), &config) else {
        return server.shutdown().await.unwrap();
    };
    assert_eq!(asked(prometheus, "up%7Bjob=%22foreshard%22%7D%20==%201").await, "1");
    assert_eq!(asked(prometheus, "foreshard_model_info%7Bversion=%221%22%7D").await, "1");
    assert_eq!(asked(prometheus, "foreshard_queue_rows").await, "0");
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn python_finds_its_way_by_health_and_reflection_alone() {
    let Some(python) = std::env::var_os("PEERS_PYTHON") else {
        println!("SKIPPED: PEERS_PYTHON names no Python with grpcio, grpcio-health-checking and grpcio-reflection");
        return;
    };
    let (_place, server) = started().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/peer.py");
    let mut command = tokio::process::Command::new(python);
    command.arg(script).arg(server.addr().to_string()).arg(TOKEN).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends in time").unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out.ends_with("all well\n"), "{out}\n{err}");
    server.shutdown().await.unwrap();
}
