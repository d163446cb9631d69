//! Debian's Prometheus as a process of a test.

use crate::PATIENCE;
use crate::common::plain_http::get;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process that ends with the test.
pub struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Prometheus with a configuration, and where it listens; `None`, which is said, where it is not installed.
pub fn prometheus(dir: &Path, config: &str) -> Option<(Peer, SocketAddr)> {
    let file = dir.join("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    // A port that is free now; whoever takes it meanwhile makes the test fail, not pass.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let log = std::fs::File::create(dir.join("prometheus.log")).unwrap();
    let process = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg(format!("--web.listen-address={port}"))
        .args(["--web.enable-remote-write-receiver", "--query.lookback-delta=5m"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    match process {
        Ok(process) => Some((Peer(process), port)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: prometheus is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The newest value of a series in Prometheus, once it has one.
pub async fn asked(prometheus: SocketAddr, query: &str) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut last = String::new();
    while tokio::time::Instant::now() < deadline {
        last = get(prometheus, &format!("/api/v1/query?query={query}")).await.map(|(_, text)| text).unwrap_or_default();
        if let Some((_, value)) = last.split_once(r#""value":["#) {
            return value.split('"').nth(1).unwrap().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("Prometheus has nothing for {query}: {last}");
}

/// Waits until Prometheus takes requests.
pub async fn ready(prometheus: SocketAddr) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < deadline {
        if get(prometheus, "/-/ready").await.is_ok_and(|(status, _)| status == 200) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("Prometheus does not become ready");
}
