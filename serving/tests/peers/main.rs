//! Peers that nobody here wrote: Prometheus scrapes the metrics, and Python's own gRPC finds its way by health and reflection
//! alone. `scripts/test` installs both; where they are missing, the tests say so and end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

use common::*;
use foreshard_api::Secret;
use foreshard_serving::{RunningServer, ServingConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The longest that a peer may take: both answer within a second or two where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(60);

const TOKEN: &str = "the-token-of-a-peer";

/// A process that ends with the test.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

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

async fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The newest value of a series in Prometheus, once it has one.
async fn asked(prometheus: SocketAddr, query: &str) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut last = String::new();
    while tokio::time::Instant::now() < deadline {
        last = get(prometheus, &format!("/api/v1/query?query={query}")).await.unwrap_or_default();
        if let Some((_, value)) = last.split_once(r#""value":["#) {
            return value.split('"').nth(1).unwrap().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("Prometheus has nothing for {query}: {last}");
}

fn prometheus(dir: &Path, scraped: SocketAddr) -> Option<(Peer, SocketAddr)> {
    let config = format!(
        "global: {{ scrape_interval: 500ms, scrape_timeout: 400ms }}\nscrape_configs:\n  - job_name: foreshard\n    \
         authorization: {{ credentials: {TOKEN} }}\n    static_configs: [{{ targets: ['{scraped}'] }}]\n"
    );
    let file = dir.join("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    // A port that is free now; whoever takes it meanwhile makes the test fail, not pass.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let process = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg(format!("--web.listen-address={port}"))
        .stderr(Stdio::null())
        .spawn();
    match process {
        Ok(process) => Some((Peer(process), port)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_what_was_done() {
    let (place, server) = started().await;
    let Some((_peer, prometheus)) = prometheus(place.dir.path(), server.http_addr().unwrap()) else {
        println!("SKIPPED: prometheus is not installed");
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
