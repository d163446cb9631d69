//! What those who run the server see: health, readiness, metrics, connections that come and go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::v1::forecast_service_client::ForecastServiceClient;
use foreshard_api::v1::{ForecastRequest, Product};
use foreshard_serving::{RunningServer, ServingConfig};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

fn with_http(config: ServingConfig) -> ServingConfig {
    ServingConfig { http: Some("127.0.0.1:0".parse().unwrap()), ..config }
}

async fn started(config: impl FnOnce(ServingConfig) -> ServingConfig) -> (Place, RunningServer) {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(config(with_http(place.config()))).await;
    (place, server)
}

/// Status and body of one request.
async fn ask(addr: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn metrics(server: &RunningServer) -> String {
    let (status, text) = ask(server.http_addr().unwrap(), "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "the OpenMetrics form ends so");
    text
}

/// The value of the one line that begins with `name`, labels included.
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(found, _)| found == name));
    let line = line.unwrap_or_else(|| panic!("no line {name} in\n{text}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

async fn health(server: &RunningServer, service: &str) -> i32 {
    let channel = tonic::transport::Channel::from_shared(server.endpoint()).unwrap().connect().await.unwrap();
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel).check(request).await.unwrap().into_inner().status
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_http_port() {
    let (_place, server) = started(|config| config).await;
    let http = server.http_addr().unwrap();
    assert_eq!(ask(http, "GET", "/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(ask(http, "GET", "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(ask(http, "HEAD", "/readyz").await, (200, String::new()));
    assert_eq!(ask(http, "POST", "/readyz").await.0, 405);
    assert_eq!(ask(http, "GET", "/").await.0, 404);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_not_ready_but_alive_everywhere() {
    let (place, server) = started(|config| ServingConfig { queue_rows: 2, ..config }).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    client.ingest(rows("b", 20)).await.unwrap();
    place.gate.hold(1);
    let ask_for = |shards: &'static [&'static str]| {
        let client = client.clone();
        tokio::spawn(async move { client.forecast(&next_hours(shards)).await })
    };
    let computing = ask_for(&["a"]);
    until(|| !place.gate.asked().is_empty()).await;
    let waiting = ask_for(&["a", "b"]);
    until(|| server.waiting_rows() == 2).await;
    let http = server.http_addr().unwrap();
    let (status, why) = ask(http, "GET", "/readyz").await;
    assert!(status == 503 && why.contains("more waits"), "{status} {why}");
    assert_eq!(ask(http, "GET", "/livez").await.0, 200);
    while health(&server, "foreshard.v1.ForecastService").await != NOT_SERVING {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code(client.forecast(&next_hours(&["a"])).await), Code::ResourceExhausted);
    place.gate.release(1);
    computing.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(ask(http, "GET", "/readyz").await.0, 200);
    while health(&server, "").await != SERVING {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_is_not_ready_but_alive_to_the_end() {
    let (place, server) = started(|config| config).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    place.gate.hold(1);
    let computing = tokio::spawn({
        let client = client.clone();
        async move { client.forecast(&next_hours(&["a"])).await }
    });
    until(|| !place.gate.asked().is_empty()).await;
    let http = server.http_addr().unwrap();
    let stopping = tokio::spawn(server.shutdown());
    while ask(http, "GET", "/readyz").await != (503, "not ready: the server is stopping\n".to_owned()) {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(http, "GET", "/livez").await.0, 200);
    place.gate.release(1);
    assert_eq!(computing.await.unwrap().unwrap().len(), 1);
    stopping.await.unwrap().unwrap();
    assert!(TcpStream::connect(http).await.is_err(), "both ports are closed");
}

/// Longer than a test may take: what waits for it never ends.
const VERY_LONG: Duration = Duration::from_secs(24 * 3600);

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_never_end_hold_no_stop_up() {
    let (_place, server) = started(|config| ServingConfig { drain_for: VERY_LONG, ..config }).await;
    let channel = tonic::transport::Channel::from_shared(server.endpoint()).unwrap().connect().await.unwrap();
    let request = HealthCheckRequest { service: "foreshard.v1.ForecastService".to_owned() };
    let mut watched = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status, SERVING);
    let mut reflection = ServerReflectionClient::new(channel);
    let (asking, asked) = tokio::sync::mpsc::channel(1);
    let question = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    asking.send(question).await.unwrap();
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut reflected = reflection.server_reflection_info(asked).await.unwrap().into_inner();
    assert!(reflected.message().await.unwrap().is_some());

    server.shutdown().await.unwrap();
    assert_eq!(watched.message().await.unwrap().unwrap().status, NOT_SERVING, "told before it ends");
    assert_eq!(watched.message().await.unwrap_err().code(), Code::Unavailable);
    // Its service may see the end of the questions first, and end by itself.
    let ended = reflected.message().await;
    assert!(ended.as_ref().map_or_else(|status| status.code() == Code::Unavailable, Option::is_none), "{ended:?}");
    drop(asking);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_never_finishes_loading_holds_no_stop_up() {
    let short = Duration::from_millis(20);
    let config = |config| ServingConfig { reload_every: short, drain_for: short, ..config };
    let (place, server) = started(config).await;
    place.publish(2);
    place.gate.hold_loading(2);
    place.label(2);
    until(|| place.gate.loads(2)).await;
    server.shutdown().await.unwrap();
    place.gate.release_loading(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_while_a_version_takes_its_time() {
    let place = Place::new();
    let tokens = place.dir.path().join("tokens");
    std::fs::write(&tokens, "planner read the-token-of-before\n").unwrap();
    place.publish(1);
    place.label(1);
    let config = ServingConfig {
        tokens: Some(tokens.clone()),
        reload_every: Duration::from_millis(20),
        ..with_http(place.config())
    };
    let server = place.start(config).await;
    place.publish(2);
    place.gate.hold_loading(2);
    place.label(2);
    until(|| place.gate.loads(2)).await;
    std::fs::write(&tokens, "planner read the-token-of-today\n").unwrap();
    let page = "/metrics HTTP/1.1\r\nauthorization: Bearer the-token-of-today\r\nx-rest: ";
    while ask(server.http_addr().unwrap(), "GET", page).await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    place.gate.release_loading(2);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_was_done() {
    let (_place, server) = started(|config| config).await;
    let client = client(&server).await;
    let mut bad = row("a", 5, -1.0);
    bad.io_ops = None;
    client.ingest([rows("a", 20), vec![row("a", 0, 1.0), bad]].concat()).await.unwrap();
    client.forecast(&next_hours(&["a", "new"])).await.unwrap();
    assert_eq!(code(client.forecast(&next_hours(&["typo"])).await), Code::NotFound);
    // A path that nobody serves must not become a label.
    let channel = tonic::transport::Channel::from_shared(server.endpoint()).unwrap().connect().await.unwrap();
    let mut raw = tonic::client::Grpc::new(channel);
    raw.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<ForecastRequest, ForecastRequest>::default();
    let unknown = http::uri::PathAndQuery::from_static("/made.Up/Name");
    let refused = raw.unary(tonic::Request::new(ForecastRequest::default()), unknown, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);

    let text = metrics(&server).await;
    let service = r#"service="foreshard.v1.ForecastService""#;
    let calls = |method: &str, code: &str| {
        value(&text, &format!(r#"foreshard_grpc_calls_total{{{service},method="{method}",code="{code}"}}"#))
    };
    assert_eq!((calls("Ingest", "Ok"), calls("Forecast", "Ok"), calls("Forecast", "NotFound")), (1.0, 1.0, 1.0));
    let other = r#"foreshard_grpc_calls_total{service="other",method="other",code="Unimplemented"}"#;
    assert_eq!(value(&text, other), 1.0);
    assert!(!text.contains("made.Up"));
    let timed = format!(r#"foreshard_grpc_call_duration_seconds_count{{{service},method="Forecast"}}"#);
    assert_eq!(value(&text, &timed), 2.0);
    let rows = |result: &str| value(&text, &format!(r#"foreshard_ingest_rows_total{{result="{result}"}}"#));
    assert_eq!((rows("accepted"), rows("duplicate"), rows("refused")), (21.0, 1.0, 1.0));
    let by = |fallback: &str| value(&text, &format!(r#"foreshard_forecasts_total{{fallback="{fallback}"}}"#));
    assert_eq!((by("none"), by("unknown_series")), (1.0, 1.0));
    assert_eq!(value(&text, r#"foreshard_model_info{model="load",version="1"}"#), 1.0);
    assert_eq!(value(&text, "foreshard_reloads_total"), 1.0);
    assert_eq!(value(&text, "foreshard_context_shards"), 1.0);
    assert_eq!(value(&text, "foreshard_newest_observation_timestamp_seconds"), 95.0 * 60.0);
    assert_eq!(value(&text, "foreshard_queue_computed_total"), 1.0);
    assert_eq!(value(&text, "foreshard_grpc_calls_under_way"), 0.0);
    assert!(value(&text, r#"foreshard_connections{port="grpc"}"#) >= 2.0);
    for histogram in ["foreshard_batch_rows", "foreshard_batch_compute_seconds", "foreshard_queue_wait_seconds"] {
        assert_eq!(value(&text, &format!("{histogram}_count")), 1.0, "{histogram}");
    }
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_leave_count_as_cancelled() {
    let (place, server) = started(|config| config).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    place.gate.hold(1);
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { client.forecast(&next_hours(&["a"])).await }
    });
    until(|| !place.gate.asked().is_empty()).await;
    assert_eq!(value(&metrics(&server).await, "foreshard_grpc_calls_under_way"), 1.0);
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    let cancelled = r#"method="Forecast",code="Cancelled"} 1"#;
    while !metrics(&server).await.contains(cancelled) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(value(&metrics(&server).await, "foreshard_grpc_calls_under_way"), 0.0);
    place.gate.release(1);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_a_freed_place_is_given_again() {
    let (_place, server) = started(|config| ServingConfig { connections: 2, ..config }).await;
    let first = client(&server).await;
    first.ingest(rows("a", 20)).await.unwrap();
    let idle = TcpStream::connect(server.addr()).await.unwrap();
    let counted = || async { value(&metrics(&server).await, r#"foreshard_connections{port="grpc"}"#) };
    while counted().await < 2.0 {
        tokio::task::yield_now().await;
    }
    let mut third = TcpStream::connect(server.addr()).await.unwrap();
    assert_eq!(third.read(&mut [0; 1]).await.unwrap(), 0, "closed at once");
    assert_eq!(value(&metrics(&server).await, "foreshard_connections_refused_total"), 1.0);
    assert_eq!(first.forecast(&next_hours(&["a"])).await.unwrap().len(), 1, "those that are there go on");
    drop(idle);
    while counted().await > 1.0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(client(&server).await.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_is_replaced_without_a_failed_call() {
    let age = Duration::from_millis(60);
    let (_place, server) = started(|config| ServingConfig { connection_age: age, ..config }).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    for _ in 0..40 {
        assert_eq!(client.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_outlives_the_grace_of_its_connection_is_cut() {
    let (age, grace) = (Duration::from_millis(50), Duration::from_millis(50));
    let config = |config| ServingConfig { connection_age: age, connection_grace: grace, ..config };
    let (place, server) = started(config).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    place.gate.hold(1);
    assert!(client.forecast(&next_hours(&["a"])).await.is_err(), "its connection came to its end");
    place.gate.release(1);
    // A call may still meet the connection while it closes; the next one makes another.
    while client.forecast(&next_hours(&["a"])).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_and_huge_messages_harm_nobody() {
    let (_place, server) = started(|config| config).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    for addr in [server.addr(), server.http_addr().unwrap()] {
        let mut state = 7u64;
        for _ in 0..50 {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let bytes: Vec<u8> = (0..500)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect();
            _ = stream.write_all(&bytes).await;
        }
    }
    let mut raw = ForecastServiceClient::connect(server.endpoint()).await.unwrap();
    let product = Product::NextHours.into();
    let huge = ForecastRequest { shard_ids: vec!["x".repeat(17 << 20)], product, ..Default::default() };
    let refused = raw.forecast(huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    let million = ForecastRequest { shard_ids: vec!["s".to_owned(); 1_000_000], product, ..Default::default() };
    assert_eq!(raw.forecast(million).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
    assert_eq!(ask(server.http_addr().unwrap(), "GET", "/livez").await.0, 200);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tokens_the_metrics_need_one_and_health_does_not() {
    let tokens =
        foreshard_api::Secret::new("prometheus read the-token-of-prometheus\nagent ingest the-token-of-an-agent");
    let (_place, server) = started(|config| ServingConfig { token_text: Some(tokens), ..config }).await;
    let http = server.http_addr().unwrap();
    assert_eq!(ask(http, "GET", "/livez").await.0, 200);
    assert_eq!(ask(http, "GET", "/readyz").await.0, 200);
    assert_eq!(health(&server, "").await, SERVING);
    assert_eq!(ask(http, "GET", "/metrics").await.0, 401);
    // The path of a request is the last thing before its version: headers follow it.
    let with = |token: &str| format!("/metrics HTTP/1.1\r\nauthorization: Bearer {token}\r\nx-rest: ");
    assert_eq!(ask(http, "GET", &with("the-token-of-an-agent")).await.0, 403);
    assert_eq!(ask(http, "GET", &with("the-token-of-prometheus")).await.0, 200);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_kept_until_something_came_that_changes_it() {
    let (place, server) = started(|config| ServingConfig { cache_mib: 1, ..config }).await;
    let client = client(&server).await;
    client.ingest([rows("a", 20), rows("b", 20)].concat()).await.unwrap();
    let ask_both = || async { client.forecast(&next_hours(&["a", "b"])).await.unwrap() };
    let first = ask_both().await;
    assert_eq!(ask_both().await, first);
    assert_eq!(place.gate.asked(), ["a", "b"], "the second time nothing is computed");
    let of_both = client.forecast(&next_hours(&["b", "never-seen"])).await.unwrap();
    assert_eq!((of_both.len(), &of_both[0]), (2, &first[1]), "kept and new answers keep their order");

    // A late row of one shard: its past is another one, although the newest row is the same.
    client.ingest(vec![row("b", 90, 33.0)]).await.unwrap();
    let second = ask_both().await;
    assert_eq!(second[0], first[0]);
    assert_eq!(place.gate.asked(), ["a", "b", "b"], "only that shard is computed again");
    place.publish(2);
    place.label(2);
    server.reload().await.unwrap();
    let third = ask_both().await;
    assert_eq!(third[0].provenance.version.as_ref().map(|v| v.number), Some(2), "never the answer of a version before");
    // A new step is complete: all is new.
    client.ingest(vec![row("a", 100, 1.0)]).await.unwrap();
    let fourth = ask_both().await;
    assert!(fourth[1].issued_at > third[1].issued_at);
    assert_eq!(place.gate.asked().len(), 7);
    let text = metrics(&server).await;
    assert_eq!(value(&text, "foreshard_cache_hits_total"), 4.0);
    assert!(value(&text, "foreshard_cache_misses_total") >= 7.0);
    assert!(value(&text, "foreshard_cache_bytes") > 0.0);
    server.shutdown().await.unwrap();
}
