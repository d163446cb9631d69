//! Prometheus sends to the server: what it scraped, and what others wrote into it.

use crate::PATIENCE;
use crate::common::plain_http::{REMOTE_WRITE, Series, packed, post};
use crate::common::*;
use crate::prometheus::{prometheus, ready};
use foreshard_api::Secret;
use foreshard_datasets::prometheus::ReceivedSeries;
use foreshard_datasets::{ReadFilter, read_history};
use foreshard_domain::{Clock as _, ManualClock, RealTime, SystemClock, Timestamp};
use foreshard_serving::{RunningServer, ServingConfig, ServingError, start_with};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const TOKEN: &str = "the-token-of-a-sender";

fn mapping(select: &str, metric: &str) -> ReceivedSeries {
    ReceivedSeries {
        select: select.parse().unwrap(),
        metric: serde_json::from_value(metric.into()).unwrap(),
        shard: "${datname}".parse().unwrap(),
        node: Some("${host}".parse().unwrap()),
        scale: 10.0,
    }
}

fn config(place: &Place, http: SocketAddr) -> ServingConfig {
    ServingConfig {
        http: Some(http),
        token_text: Some(Secret::new(format!("sender ingest,read {TOKEN}"))),
        received: vec![mapping("db_cores", "cpu_util"), mapping("db_io", "io_ops")],
        ..place.config()
    }
}

/// Answers every request with two loads of a shard.
async fn exporter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            _ = stream.read(&mut head).await;
            let text = "db_cores{datname=\"scraped\",host=\"n1\"} 4\ndb_io{datname=\"scraped\",host=\"n1\"} 2\n";
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    addr
}

/// Starts on a port; the one before may still end.
async fn start_on(place: &Place, http: SocketAddr) -> RunningServer {
    loop {
        let loader = Arc::new(TestLoader(Arc::clone(&place.gate)));
        match start_with(config(place, http), Arc::clone(&place.clock) as _, loader).await {
            Ok(server) => return server,
            Err(ServingError::Ingest(_) | ServingError::Listen { .. }) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn newest(server: &RunningServer, shard: &str) -> Option<f32> {
    let credentials = foreshard_api::Credentials { token: Some(Secret::new(TOKEN)), ..Default::default() };
    let client = foreshard_api::ForecastClient::connect_with(&server.endpoint(), &credentials).await.unwrap();
    let series = client.forecast(&next_hours(&[shard])).await.ok()?;
    Some(median(&series[0]))
}

async fn arrives(server: &RunningServer, shard: &str, value: f32) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while newest(server, shard).await != Some(value) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(waited.await.is_ok(), "{shard}: {:?} where {value} should be", newest(server, shard).await);
}

async fn scraped(place: &Place, server: &RunningServer) {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            server.flush().await.unwrap();
            let history = read_history(&place.config().history, &ReadFilter::default());
            if history.is_ok_and(|history| history.observations().count() > 1) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(waited.await.is_ok(), "nothing that was scraped arrives");
}

/// Prometheus sends only what is newer than its own start. So the past of the shard is written into it as a future, and the
/// clock of the server is set behind that.
#[tokio::test(flavor = "multi_thread")]
async fn what_prometheus_sends_is_forecast_and_what_was_lost_is_sent_again() {
    let now = SystemClock.model();
    let clock = ManualClock::new(now.plus_ms(24 * 60 * MINUTE), RealTime::from_ms(now.as_ms()));
    let place = Place { clock: Arc::new(clock), ..Place::new() };
    place.publish(1);
    place.label(1);
    let server = start_on(&place, "127.0.0.1:0".parse().unwrap()).await;
    let http = server.http_addr().unwrap();
    let config = format!(
        "global: {{ scrape_interval: 500ms, scrape_timeout: 400ms }}\nscrape_configs:\n  - job_name: db\n    \
         static_configs: [{{ targets: ['{}'] }}]\nremote_write:\n  - url: http://{http}/api/v1/write\n    \
         authorization: {{ credentials: {TOKEN} }}\n    queue_config: {{ batch_send_deadline: 100ms, max_backoff: 200ms }}\n",
        exporter().await
    );
    let Some((_peer, peer)) = prometheus(place.dir.path(), &config) else {
        return server.shutdown().await.unwrap();
    };
    ready(peer).await;
    // Once it has samples of the future it takes none of the present.
    scraped(&place, &server).await;
    let first = foreshard_domain::Step::FIVE_MINUTES.floor(now).plus_ms(10 * MINUTE);
    let steps = |from: i64, to: i64| -> Vec<(i64, f64)> {
        (from..to).map(|i| (first.plus_ms(i * 5 * MINUTE).as_ms(), i as f64)).collect()
    };
    let labels: &[(&str, &str)] = &[("__name__", "db_cores"), ("datname", "written"), ("host", "n2")];
    let write = async |samples: Vec<(i64, f64)>| {
        let series: Series<'_> = (labels, &samples);
        let (status, answer) = post(peer, "/api/v1/write", REMOTE_WRITE, &packed(&[series])).await.unwrap();
        assert_eq!(status, 204, "{answer}");
    };
    write(steps(0, 100)).await;
    // Of rows that come twice a second the last five minutes are not over yet.
    arrives(&server, "written", 980.0).await;

    // As a crash would end it, with samples on their way: Prometheus tries again until a server is there.
    write(steps(100, 150)).await;
    drop(server);
    write(steps(150, 200)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let server = start_on(&place, http).await;
    arrives(&server, "written", 1980.0).await;
    server.flush().await.unwrap();
    server.shutdown().await.unwrap();
    stored(&place, first, 200);
}

/// Nothing is missing, and what was scraped together is one row.
fn stored(place: &Place, first: Timestamp, steps: i64) {
    let rows = read_history(&place.config().history, &ReadFilter::default()).unwrap();
    let rows: Vec<_> = rows.observations().collect();
    let of = |shard: &'static str| rows.iter().filter(move |row| row.shard.as_str() == shard);
    let written: Vec<_> = of("written").map(|row| (row.ts.since_ms(first), row.cpu_util.unwrap())).collect();
    let expected: Vec<_> = (0..steps).map(|i| (i * 5 * MINUTE, 10.0 * i as f64)).collect();
    assert_eq!(written, expected);
    let scraped: Vec<_> = of("scraped").map(|row| (row.cpu_util, row.io_ops, row.node.clone())).collect();
    assert!(scraped.len() > 1, "{} rows were scraped", scraped.len());
    let node = foreshard_domain::NodeId::new("n1").unwrap();
    assert!(scraped.iter().all(|row| *row == (Some(40.0), Some(20.0), Some(node.clone()))), "{scraped:?}");
}
