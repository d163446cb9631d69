//! Callers that nobody should have to fear: silent ones by the thousand, slow ones, nonsense, a million names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::v1::forecast_service_client::ForecastServiceClient;
use foreshard_api::v1::{self, ForecastRequest, Limits, Observation, Product, RiskRequest, ScenariosRequest};
use foreshard_serving::RunningServer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Channel;

/// How an HTTP/2 client begins, with settings that say nothing.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn started() -> (Place, RunningServer, ForecastServiceClient<Channel>) {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    client(&server).await.ingest(rows("a", 20)).await.unwrap();
    let raw = ForecastServiceClient::connect(server.endpoint()).await.unwrap();
    (place, server, raw)
}

async fn still_answers(server: &RunningServer) {
    assert_eq!(client(server).await.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_keep_nobody_out() {
    // Both ends of each are in this process, and many a shell allows a process a thousand files.
    let limit = getrlimit(Resource::Nofile);
    let room = limit.maximum.unwrap_or(8192).min(8192);
    if limit.current.is_some_and(|now| now < room) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(room), maximum: limit.maximum }).unwrap();
    }
    let (_place, server, _) = started().await;
    let mut idle = Vec::new();
    for i in 0..1000 {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        // Silent, half-way through the opening, or open and then silent.
        stream.write_all(OPENING.get(..[0, 12, OPENING.len()][i % 3]).unwrap()).await.unwrap();
        idle.push(stream);
    }
    still_answers(&server).await;
    drop(idle);
    still_answers(&server).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_byte_by_byte_holds_nobody_up() {
    let (_place, server, _) = started().await;
    let mut slow = TcpStream::connect(server.addr()).await.unwrap();
    for byte in OPENING {
        slow.write_all(&[*byte]).await.unwrap();
        slow.flush().await.unwrap();
    }
    // The head of a request that never comes to its end: HEADERS without END_HEADERS, then nothing.
    slow.write_all(b"\0\0\x01\x01\0\0\0\0\x01\x82").await.unwrap();
    still_answers(&server).await;
    drop(slow);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_by_name() {
    let (_place, server, mut raw) = started().await;
    let product = Product::NextHours.into();
    let ask = |request: ForecastRequest| {
        let mut raw = raw.clone();
        async move { raw.forecast(request).await.map(|answer| answer.into_inner().series.len()) }
    };
    let of = |levels: Vec<f64>| ForecastRequest { product, levels, ..Default::default() };
    for levels in [vec![f64::NAN], vec![-0.5], vec![1.5], vec![0.9, 0.1], vec![f64::INFINITY], vec![0.5; 300]] {
        let refused = ask(of(levels.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{levels:?}: {refused}");
    }
    for (request, what) in [
        (ForecastRequest { product: -1, ..Default::default() }, "a product"),
        (ForecastRequest { product: i32::MAX, ..Default::default() }, "a product"),
        (ForecastRequest { product, metrics: vec![-7], ..Default::default() }, "a metric"),
        (ForecastRequest { product, shard_ids: vec!["x".repeat(1 << 20)], ..Default::default() }, "a name"),
        (ForecastRequest { product, shard_ids: vec![String::new()], ..Default::default() }, "a name"),
    ] {
        assert_eq!(ask(request).await.unwrap_err().code(), Code::InvalidArgument, "{what} that there is not");
    }
    for limit in [f64::NAN, f64::NEG_INFINITY] {
        let limits = Some(Limits { cpu: Some(limit), ..Default::default() });
        let risk = RiskRequest { product, limits, ..Default::default() };
        assert_eq!(raw.risk(risk).await.unwrap_err().code(), Code::InvalidArgument, "a limit of {limit}");
    }
    let limits = Some(Limits { cpu: Some(50.0), ..Default::default() });
    let endless = RiskRequest { product, limits, window_steps: Some(u32::MAX), ..Default::default() };
    assert_eq!(raw.risk(endless).await.unwrap_err().code(), Code::InvalidArgument);
    for scenarios in [0, u32::MAX] {
        let refused = raw.scenarios(ScenariosRequest { product, scenarios, ..Default::default() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{scenarios} scenarios");
    }
    still_answers(&server).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_are_refused_one_by_one() {
    let (_place, server, mut raw) = started().await;
    let row = |seconds: i64, cpu: f64| Observation {
        shard_id: "a".into(),
        ts: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        cpu_util: Some(cpu),
        ..Default::default()
    };
    let bad = [
        row(6000, f64::NAN),
        row(6000, f64::INFINITY),
        row(6000, -1.0),
        row(i64::MIN, 1.0),
        row(i64::MAX, 1.0),
        row(-5, 1.0),
        Observation { ts: None, ..row(0, 1.0) },
        Observation { shard_id: String::new(), ..row(0, 1.0) },
        Observation { cpu_util: None, ..row(0, 1.0) },
    ];
    let expected = bad.len() as u64;
    let rows = bad.into_iter().chain([row(6000, 7.0)]).collect();
    let answer = raw.ingest(tokio_stream::iter([v1::IngestRequest { rows }])).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.refused_total), (1, expected));
    assert!(answer.refused.iter().all(|row| !row.reason.is_empty()));
    still_answers(&server).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_names_are_answered_or_refused_and_forgotten() {
    let (_place, server, mut raw) = started().await;
    let product = Product::NextHours.into();
    // Some 12 MB of names, none of them known.
    let shard_ids: Vec<String> = (0..1_000_000).map(|i| format!("made-up-{i}")).collect();
    let refused = raw.forecast(ForecastRequest { shard_ids, product, ..Default::default() }).await.unwrap_err();
    assert!(matches!(refused.code(), Code::NotFound | Code::OutOfRange | Code::ResourceExhausted), "{refused:?}");
    // One of them is known. What would be made up for the others alone were gigabytes.
    let mut shard_ids: Vec<String> = (0..900_000).map(|i| format!("made-up-{i}")).collect();
    shard_ids.push("a".into());
    let asked = ForecastRequest { shard_ids, product, metrics: vec![v1::Metric::CpuUtil.into()], ..Default::default() };
    let refused = raw.forecast(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("ForecastStream takes any number"), "{refused:?}");
    still_answers(&server).await;
    server.shutdown().await.unwrap();
}
