//! What Prometheus sends: what is taken, what is refused with which status, and that nothing acknowledged is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::plain_http::{REMOTE_WRITE, packed, post};
use common::*;
use foreshard_api::Secret;
use foreshard_datasets::prometheus::ReceivedSeries;
use foreshard_datasets::{ReadFilter, read_history};
use foreshard_domain::Observation;
use foreshard_serving::{RunningServer, ServingConfig, ServingError, start_with};
use std::sync::Arc;

/// Before the clock of a place.
const NOW: i64 = 40 * 24 * 60 * MINUTE;

fn mapping(select: &str, metric: &str, scale: f64) -> ReceivedSeries {
    ReceivedSeries {
        select: select.parse().unwrap(),
        metric: serde_json::from_value(metric.into()).unwrap(),
        shard: "${db}".parse().unwrap(),
        node: None,
        scale,
    }
}

fn config(place: &Place) -> ServingConfig {
    ServingConfig {
        http: Some("127.0.0.1:0".parse().unwrap()),
        received: vec![mapping("cores", "cpu_util", 25.0), mapping("bytes", "data_bytes", 1.0)],
        ..place.config()
    }
}

async fn write(server: &RunningServer, headers: &str, body: &[u8]) -> (u16, String) {
    let headers = format!("{REMOTE_WRITE}{headers}");
    post(server.http_addr().unwrap(), "/api/v1/write", &headers, body).await.unwrap()
}

fn cores<'a>(samples: &'a [(i64, f64)]) -> plain_http::Series<'a> {
    (&[("__name__", "cores"), ("db", "a")], samples)
}

fn steps(n: i64) -> Vec<(i64, f64)> {
    (0..n).map(|i| (NOW - (n - i) * 5 * MINUTE, i as f64)).collect()
}

fn history(place: &Place) -> Vec<Observation> {
    read_history(&place.config().history, &ReadFilter::default()).unwrap().observations().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_forecast_and_survives_a_crash() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(config(&place)).await;
    let samples = steps(100);
    let body = packed(&[cores(&samples), (&[("__name__", "else")], &[(NOW, 1.0)])]);
    for _ in 0..2 {
        let (status, answer) = write(&server, "", &body).await;
        assert_eq!(status, 204, "{answer}");
    }
    // Another measurement of the newest time, and a sample that is late.
    let newest = samples[99].0;
    let bytes: plain_http::Series<'_> = (&[("__name__", "bytes"), ("db", "a")], &[(newest, 7e9)]);
    assert_eq!(write(&server, "", &packed(&[bytes])).await.0, 204);
    assert_eq!(write(&server, "", &packed(&[cores(&[(samples[50].0, 1.0)])])).await.0, 204);
    let series = client(&server).await.forecast(&next_hours(&["a"])).await.unwrap();
    assert_eq!(median(&series[0]), 99.0 * 25.0);
    let (_, metrics) = plain_http::get(server.http_addr().unwrap(), "/metrics").await.unwrap();
    for line in [
        r#"remote_write_requests_total{result="taken"} 4"#,
        r#"remote_write_samples_total{result="taken"} 202"#,
        r#"remote_write_samples_total{result="unmapped"} 2"#,
        r#"ingest_rows_total{result="duplicate"} 101"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    drop(server);
    // A server that begins again on the same log: nothing was flushed before.
    let again = start_again(&place).await;
    again.shutdown().await.unwrap();
    let rows = history(&place);
    assert_eq!((rows.len(), rows[99].cpu_util, rows[99].data_bytes), (100, Some(2475.0), Some(7e9)));
    assert_eq!(rows[50].cpu_util, Some(25.0));
}

/// Starts again once the tasks of the one before have let go of the log.
async fn start_again(place: &Place) -> RunningServer {
    loop {
        let loader = Arc::new(TestLoader(Arc::clone(&place.gate)));
        match start_with(config(place), Arc::clone(&place.clock) as _, loader).await {
            Ok(server) => return server,
            Err(ServingError::Ingest(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_says_why_and_the_rest_is_taken() {
    let place = Place::new();
    let server = place.start(config(&place)).await;
    let body = packed(&[
        cores(&[(NOW - MINUTE, 1.0), (NOW, -1.0), (NOW + 60 * MINUTE, 1.0)]),
        (&[("__name__", "cores"), ("db", "a"), ("replica", "b")], &[(NOW - MINUTE, 2.0)]),
        (&[("__name__", "cores")], &[(NOW - MINUTE, 2.0)]),
    ]);
    let (status, answer) = write(&server, "", &body).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("4 samples were not taken, all others are stored"), "{answer}");
    assert!(answer.contains(r#"series cores{db="a"}: cpu_util is -25; it cannot be negative"#), "{answer}");
    assert_eq!(server.flush().await.unwrap(), 1);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_has_its_status() {
    let place = Place::new();
    let server = place.start(config(&place)).await;
    let http = server.http_addr().unwrap();
    let whole = packed(&[cores(&[(NOW, 1.0)])]);
    let status = async |headers: &str, body: &[u8]| post(http, "/api/v1/write", headers, body).await.unwrap();
    let (code, text) = status("content-type: application/x-protobuf\r\n", &whole).await;
    assert_eq!((code, text.contains("must be snappy")), (415, true), "{text}");
    let newer = REMOTE_WRITE.replace("protobuf\r\n", "protobuf;proto=io.prometheus.write.v2.Request\r\n");
    assert_eq!(status(&newer, &whole).await.0, 415);
    let named = REMOTE_WRITE.replace("protobuf\r\n", "protobuf;proto=prometheus.WriteRequest\r\n");
    assert_eq!(status(&named, &whole).await.0, 204);
    assert_eq!(status(REMOTE_WRITE, b"\xff\xff\xff\xff\x0f").await.0, 413, "gigabytes are promised");
    assert_eq!(status(REMOTE_WRITE, b"no snappy").await.0, 400);
    let torn = snap::raw::Encoder::new().compress_vec(&[10, 100, 1]).unwrap();
    let (code, text) = status(REMOTE_WRITE, &torn).await;
    assert_eq!((code, text.contains("cannot be decoded")), (400, true), "{text}");
    assert_eq!(plain_http::get(http, "/api/v1/write").await.unwrap().0, 405);
    server.shutdown().await.unwrap();

    let unmapped = place.start(ServingConfig { received: vec![], ..config(&place) }).await;
    let (code, text) = write(&unmapped, "", &whole).await;
    assert_eq!((code, text.contains("serve.remote_write.series")), (404, true), "{text}");
    unmapped.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_needs_the_right_to_ingest() {
    let place = Place::new();
    let tokens = "sender ingest the-token-of-a-sender\nreader read the-token-of-a-reader\n";
    let server = place.start(ServingConfig { token_text: Some(Secret::new(tokens)), ..config(&place) }).await;
    let body = packed(&[cores(&[(NOW, 1.0)])]);
    let token = |name: &str| format!("authorization: Bearer the-token-of-a-{name}\r\n");
    assert_eq!(write(&server, "", &body).await.0, 401);
    assert_eq!(write(&server, &token("nobody"), &body).await.0, 401);
    assert_eq!(write(&server, &token("reader"), &body).await.0, 403);
    assert_eq!(write(&server, &token("sender"), &body).await.0, 204);
    server.shutdown().await.unwrap();
}
