//! S1: reloads under load, full queues, expired requests, panics, and stopping.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::v1::ScenariosRequest;
use foreshard_api::v1::forecast_service_client::ForecastServiceClient;
use foreshard_api::{ForecastClient, ScenarioQuery};
use foreshard_serving::{ReloadError, ServingConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::Code;

type Asked = JoinHandle<Result<Vec<foreshard_domain::SeriesForecast>, foreshard_api::ClientError>>;

fn ask(client: &ForecastClient, shards: &[&str]) -> Asked {
    let (client, query) = (client.clone(), next_hours(shards));
    tokio::spawn(async move { client.forecast(&query).await })
}

async fn place_with(
    shards: &[&str],
    config: impl FnOnce(ServingConfig) -> ServingConfig,
) -> (Place, foreshard_serving::RunningServer) {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(config(place.config())).await;
    let client = client(&server).await;
    for shard in shards {
        client.ingest(rows(shard, 20)).await.unwrap();
    }
    (place, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_a_full_queue_answers_resource_exhausted_at_once() {
    let (place, server) = place_with(&["a", "b", "c", "d"], |config| ServingConfig { queue_rows: 3, ..config }).await;
    let client = client(&server).await;
    place.gate.hold(1);
    let computing = ask(&client, &["a"]);
    until(|| !place.gate.asked().is_empty()).await;
    let waiting = ask(&client, &["b", "c", "d"]);
    until(|| server.waiting_rows() == 3).await;
    let refused = client.forecast(&next_hours(&["a"])).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::ResourceExhausted));
    assert!(refused.retry_after().is_some_and(|wait| wait > Duration::ZERO));
    place.gate.release(1);
    assert_eq!(computing.await.unwrap().unwrap().len(), 1);
    assert_eq!(waiting.await.unwrap().unwrap().len(), 3);
    assert_eq!((server.counts().refused(), server.counts().computed()), (1, 2));
    server.shutdown().await.unwrap();
}

fn scenarios(scenarios: usize) -> ScenarioQuery {
    ScenarioQuery { shards: vec![shard("a")], product: foreshard_domain::Product::NextDay, scenarios, seed: 1 }
}

/// Asks until a share of the memory is free again.
async fn asked_again(client: &ForecastClient, query: &ScenarioQuery) {
    loop {
        match client.scenarios(query).await {
            Ok((set, _)) => return assert_eq!(set.scenarios(), query.scenarios),
            Err(error) => assert_eq!(error.code(), Some(Code::ResourceExhausted)),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_scenarios_beyond_their_memory_are_refused_at_once() {
    let (place, server) = place_with(&["a"], |config| ServingConfig { scenario_mib: 2, ..config }).await;
    let client = client(&server).await;
    place.gate.hold(1);
    // 2 resources x 96 steps x 1000 scenarios are less than one MiB.
    let ask = || {
        let client = client.clone();
        tokio::spawn(async move { client.scenarios(&scenarios(1000)).await })
    };
    let computing = ask();
    until(|| !place.gate.asked().is_empty()).await;
    let waiting = ask();
    until(|| server.waiting_rows() == 2).await;
    let refused = client.scenarios(&scenarios(1)).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::ResourceExhausted));
    assert!(refused.retry_after().is_some_and(|wait| wait > Duration::ZERO));
    assert_eq!(code(client.scenarios(&scenarios(2731)).await), Code::InvalidArgument, "more than there ever is");
    place.gate.release(1);
    for asked in [computing, waiting] {
        assert_eq!(asked.await.unwrap().unwrap().0.scenarios(), 1000);
    }
    asked_again(&client, &scenarios(2730)).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_scenarios_that_are_given_up_or_not_read_free_their_memory_when_they_end() {
    let (place, server) = place_with(&["a"], |config| ServingConfig { scenario_mib: 30, ..config }).await;
    let client = client(&server).await;
    // 29 MiB, more than connection and channel hold.
    let most = scenarios(39_500);
    let mut raw = ForecastServiceClient::connect(server.endpoint()).await.unwrap();
    let unread = raw.scenarios(ScenariosRequest::from(&most)).await.unwrap();
    assert_eq!(code(client.scenarios(&most).await), Code::ResourceExhausted, "a reader that stalls holds its share");
    assert_eq!(client.scenarios(&scenarios(1)).await.unwrap().0.scenarios(), 1, "there is room for small ones");
    drop((unread, raw));
    asked_again(&client, &most).await;

    place.gate.hold(1);
    let computed = place.gate.asked().len();
    let given_up = tokio::spawn({
        let (client, most) = (client.clone(), most.clone());
        async move { client.scenarios(&most).await }
    });
    until(|| place.gate.asked().len() > computed).await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    place.gate.release(1);
    asked_again(&client, &most).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_expired_and_abandoned_requests_are_not_computed() {
    let (place, server) = place_with(&["a", "late", "left", "last"], |config| config).await;
    let client = client(&server).await;
    place.gate.hold(1);
    let computing = ask(&client, &["a"]);
    until(|| !place.gate.asked().is_empty()).await;

    let hasty = client.clone().with_timeout(Duration::from_millis(20));
    let expired = code(hasty.forecast(&next_hours(&["late"])).await);
    assert!(matches!(expired, Code::DeadlineExceeded | Code::Cancelled), "{expired:?}");
    let left = ask(&client, &["left"]);
    until(|| server.waiting_rows() == 2).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    let last = ask(&client, &["last"]);
    until(|| server.waiting_rows() == 3).await;
    // The server learns of the caller that left from the connection, which the last request followed.
    place.gate.release(1);
    computing.await.unwrap().unwrap();
    last.await.unwrap().unwrap();
    assert_eq!(place.gate.asked(), ["a", "last"]);
    assert_eq!(server.counts().expired(), 2);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s1_reloads_under_load_fail_no_request() {
    let (place, server) = place_with(&["a", "b"], |config| config).await;
    let client = client(&server).await;
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<JoinHandle<Vec<u64>>> = (0..4)
        .map(|_| {
            let (client, done) = (client.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    let made = client.forecast(&next_hours(&[])).await.expect("no request fails during a reload");
                    assert!(made.iter().all(|series| series.provenance.fallback.is_none()));
                    seen.push(made[0].provenance.version.as_ref().unwrap().number);
                }
                seen
            })
        })
        .collect();
    for number in 2..=20 {
        place.publish(number);
        place.label(number);
        assert_eq!(server.reload().await.unwrap().map(|id| id.number), Some(number));
        let made = client.forecast(&next_hours(&["a"])).await.unwrap();
        assert_eq!(made[0].provenance.version.as_ref().unwrap().number, number, "the new version answers at once");
    }
    done.store(true, Ordering::SeqCst);
    for caller in callers {
        let seen = caller.await.unwrap();
        assert!(!seen.is_empty() && seen.is_sorted(), "no caller ever goes back: {seen:?}");
    }
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_a_request_in_flight_keeps_its_version_and_delays_no_reload() {
    let (place, server) = place_with(&["a"], |config| config).await;
    let client = client(&server).await;
    place.gate.hold(1);
    let computing = ask(&client, &["a"]);
    until(|| !place.gate.asked().is_empty()).await;
    place.publish(2);
    place.label(2);
    assert_eq!(server.reload().await.unwrap().map(|id| id.number), Some(2));
    place.gate.release(1);
    let number = |made: &[foreshard_domain::SeriesForecast]| made[0].provenance.version.as_ref().unwrap().number;
    assert_eq!(number(&computing.await.unwrap().unwrap()), 1);
    assert_eq!(number(&client.forecast(&next_hours(&[])).await.unwrap()), 2);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_listing_the_versions_waits_for_no_reload() {
    let (place, server) = place_with(&["a"], |config| config).await;
    let client = client(&server).await;
    place.publish(2);
    place.label(2);
    place.gate.hold_loading(2);
    let (models, reloaded) = tokio::join!(
        async {
            until(|| place.gate.loads(2)).await;
            let listed = client.clone().with_timeout(Duration::from_secs(5)).models().await;
            place.gate.release_loading(2);
            listed
        },
        server.reload()
    );
    let models = models.expect("the versions are listed while one of them is loaded");
    let states: Vec<_> = models.iter().map(|m| (m.number, m.loaded)).collect();
    assert_eq!(states, [(1, true), (2, false)]);
    assert_eq!(reloaded.unwrap().map(|id| id.number), Some(2));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_a_bad_version_is_refused_and_the_old_one_serves() {
    let (place, server) = place_with(&["a"], |config| config).await;
    let client = client(&server).await;
    place.publish_text(2, "damaged");
    place.label(2);
    assert!(matches!(server.reload().await, Err(ReloadError::Load { .. })));
    place.publish_text(3, "load/9");
    place.label(3);
    assert!(matches!(server.reload().await, Err(ReloadError::Mistaken { .. })));
    place.label(4);
    assert!(matches!(server.reload().await, Err(ReloadError::Load { .. })), "there is no such folder");
    std::fs::write(place.dir.path().join("registry/load/labels.json"), "{").unwrap();
    assert!(matches!(server.reload().await, Err(ReloadError::Labels { .. })));
    place.label(2);
    let made = client.forecast(&next_hours(&[])).await.unwrap();
    assert_eq!(made[0].provenance.version.as_ref().map(|v| v.number), Some(1));
    let models = client.models().await.unwrap();
    let states: Vec<_> = models.iter().map(|m| (m.number, m.loaded, m.refused.is_some())).collect();
    assert_eq!(states, [(1, true, false), (2, false, true), (3, false, true)]);
    assert_eq!(
        (models[0].labels.as_slice(), models[1].labels.as_slice()),
        (&["last_good".to_owned()][..], &["champion".to_owned()][..])
    );
    // Once it is mended, the next look takes it.
    place.publish(2);
    assert_eq!(server.reload().await.unwrap().map(|id| id.number), Some(2));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_its_own_request_only() {
    let (_place, server) = place_with(&["panic", "a"], |config| config).await;
    let client = client(&server).await;
    assert_eq!(code(client.forecast(&next_hours(&["panic"])).await), Code::Unavailable);
    assert_eq!(client.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_requests_in_flight_finish() {
    let (place, server) = place_with(&["a"], |config| config).await;
    let client = client(&server).await;
    place.gate.hold(1);
    let computing = ask(&client, &["a"]);
    until(|| !place.gate.asked().is_empty()).await;
    let addr = server.addr();
    let stopping = tokio::spawn(server.shutdown());
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    place.gate.release(1);
    assert_eq!(computing.await.unwrap().unwrap().len(), 1);
    stopping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_cuts_off_what_takes_too_long() {
    let (place, server) =
        place_with(&["a"], |config| ServingConfig { drain_for: Duration::from_millis(50), ..config }).await;
    let client = client(&server).await;
    place.gate.hold(1);
    let computing = ask(&client, &["a"]);
    until(|| !place.gate.asked().is_empty()).await;
    server.shutdown().await.unwrap();
    assert!(computing.await.unwrap().is_err());
    place.gate.release(1);
}
