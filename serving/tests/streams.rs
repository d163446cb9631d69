//! Streams of forecasts: many series in parts from one origin, and a push for every new step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_domain::{SeriesForecast, Timestamp};
use foreshard_serving::{RunningServer, ServingConfig};
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::Code;

async fn started(config: impl FnOnce(ServingConfig) -> ServingConfig) -> (Place, RunningServer) {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(config(place.config())).await;
    (place, server)
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("shard-{i:05}")).collect()
}

fn minutes(part: &[SeriesForecast]) -> i64 {
    let at = part[0].issued_at;
    assert!(part.iter().all(|series| series.issued_at == at), "one origin");
    at.as_ms() / MINUTE
}

#[tokio::test(flavor = "multi_thread")]
async fn many_series_come_in_parts_from_one_origin_whatever_arrives_meanwhile() {
    let (place, server) = started(|config| config).await;
    let client = client(&server).await;
    let names = names(1300);
    for step in 0..3 {
        client.ingest(names.iter().map(|name| row(name, 5 * step, 1.0)).collect()).await.unwrap();
    }
    let mut parts = client.forecast_stream(&next_hours(&[])).await.unwrap();
    let first = parts.next().await.unwrap().unwrap();
    // The next step comes while the rest is waited for.
    place.gate.hold(1);
    client.ingest(vec![row(&names[0], 15, 9.0)]).await.unwrap();
    place.gate.release(1);
    let mut all = first;
    while let Some(part) = parts.next().await {
        let part = part.unwrap();
        assert!(part.len() <= 512, "{}", part.len());
        all.extend(part);
    }
    assert_eq!(minutes(&all), 10);
    let found: Vec<&str> = all.iter().map(|series| series.shard.as_str()).collect();
    assert_eq!(found, names, "each once, in order");
    let whole = client.forecast(&next_hours(&[])).await.unwrap();
    assert_eq!((whole.len(), minutes(&whole)), (1300, 15));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_part_is_refused_later_ones_wait() {
    let (place, server) = started(|config| ServingConfig { queue_rows: 600, ..config }).await;
    let client = client(&server).await;
    let names = names(600);
    client.ingest(names.iter().map(|name| row(name, 0, 1.0)).collect()).await.unwrap();
    place.gate.hold(1);
    let ask = |shards: Vec<String>| {
        let client = client.clone();
        tokio::spawn(async move {
            let shards: Vec<&str> = shards.iter().map(String::as_str).collect();
            client.forecast(&next_hours(&shards)).await
        })
    };
    let computing = ask(names[..1].to_vec());
    until(|| !place.gate.asked().is_empty()).await;
    let waiting = ask(names.clone());
    until(|| server.waiting_rows() == 600).await;
    let refused = client.forecast_stream(&next_hours(&[])).await.map(drop);
    assert_eq!(code(refused), Code::ResourceExhausted);
    place.gate.release(1);
    computing.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();

    let mut parts = client.forecast_stream(&next_hours(&[])).await.unwrap();
    let mut series = 0;
    while let Some(part) = parts.next().await {
        series += part.unwrap().len();
    }
    assert_eq!(series, 600);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_told_every_new_step_and_new_shards_once() {
    let (_place, server) = started(|config| config).await;
    let client = client(&server).await;
    assert_eq!(code(client.watch(&next_hours(&[])).await.map(drop)), Code::FailedPrecondition, "nothing is known");
    client.ingest(rows("a", 20)).await.unwrap();
    assert_eq!(code(client.watch(&next_hours(&["typo"])).await.map(drop)), Code::NotFound);
    let mut watched = client.watch(&next_hours(&[])).await.unwrap();
    let now = watched.next().await.unwrap().unwrap();
    assert_eq!((now.len(), minutes(&now), median(&now[0])), (1, 95, 19.0));
    // The same step again says nothing new.
    client.ingest(vec![row("a", 95, 30.0)]).await.unwrap();
    client.ingest(vec![row("a", 100, 40.0), row("b", 100, 7.0)]).await.unwrap();
    let next = watched.next().await.unwrap().unwrap();
    assert_eq!((next.len(), minutes(&next)), (2, 100));
    assert_eq!((median(&next[0]), median(&next[1])), (40.0, 7.0));
    client.ingest(vec![row("a", 105, 50.0)]).await.unwrap();
    let next = watched.next().await.unwrap().unwrap();
    assert_eq!((minutes(&next), next[1].provenance.last_observed), (105, Some(Timestamp::from_ms(100 * MINUTE))));
    drop(watched);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_the_watches() {
    let (_place, server) = started(|config| ServingConfig { drain_for: Duration::from_secs(3600), ..config }).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    let mut watched = client.watch(&next_hours(&["a"])).await.unwrap();
    assert_eq!(watched.next().await.unwrap().unwrap().len(), 1);
    server.shutdown().await.unwrap();
    let ended = watched.next().await.unwrap();
    assert!(matches!(code(ended), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled));
}
