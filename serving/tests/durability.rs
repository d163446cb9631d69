//! Nothing that was acknowledged is lost: restarts, torn and damaged logs, flushes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_datasets::{ReadFilter, read_history};
use foreshard_domain::Observation;
use foreshard_serving::{IngestError, LogError, RunningServer, ServingError, start_with};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn history(place: &Place) -> Vec<Observation> {
    read_history(&place.config().history, &ReadFilter::default()).unwrap().observations().collect()
}

fn segments(log: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    paths.sort();
    paths
}

/// Stops a server as a crash would, as far as files are concerned: without the last flush.
async fn crash(server: RunningServer) {
    let addr = server.addr();
    drop(server);
    // The port is free once the server's task has ended, and with it the locks of its files.
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

async fn start_again(place: &Place) -> RunningServer {
    loop {
        let loader = Arc::new(TestLoader(Arc::clone(&place.gate)));
        match start_with(place.config(), Arc::clone(&place.clock) as _, loader).await {
            Ok(server) => return server,
            // The background tasks of the one before still end.
            Err(ServingError::Ingest(IngestError::Log(LogError::Busy { .. }) | IngestError::History(_))) => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_reads_log_and_history_again() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    let client_one = client(&server).await;
    client_one.ingest(rows("a", 100)).await.unwrap();
    assert_eq!(server.flush().await.unwrap(), 100);
    assert!(segments(&place.log()).is_empty(), "what lies in the history leaves the log");
    client_one.ingest(vec![row("a", 500, 33.0), row("a", 495, 7.0)]).await.unwrap();
    let before = client_one.forecast(&next_hours(&[])).await.unwrap();
    drop(client_one);
    crash(server).await;
    assert_eq!(history(&place).len(), 100);

    let server = start_again(&place).await;
    let client_two = client(&server).await;
    assert_eq!(client_two.forecast(&next_hours(&[])).await.unwrap(), before);
    drop(client_two);
    server.shutdown().await.unwrap();
    let rows = history(&place);
    assert_eq!(rows.len(), 101);
    assert_eq!(rows[99].cpu_util, Some(7.0), "the repeated row won");
    assert!(segments(&place.log()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_read_twice_does_no_harm() {
    let place = Place::new();
    let server = place.start(place.config()).await;
    let client_one = client(&server).await;
    client_one.ingest(rows("a", 50)).await.unwrap();
    let segment = segments(&place.log()).remove(0);
    let bytes = fs::read(&segment).unwrap();
    drop(client_one);
    server.shutdown().await.unwrap();
    let before = history(&place);
    // As if the process had died between writing the piece and removing the segment.
    fs::write(&segment, bytes).unwrap();
    let server = start_again(&place).await;
    server.shutdown().await.unwrap();
    assert_eq!(history(&place), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn torn_tail_keeps_all_whole_records() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    let client_one = client(&server).await;
    for i in 0..10 {
        client_one.ingest(vec![row("a", 5 * i, i as f64)]).await.unwrap();
    }
    drop(client_one);
    crash(server).await;
    let segment = segments(&place.log()).remove(0);
    let length = fs::metadata(&segment).unwrap().len();
    fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(length - 7).unwrap();

    let server = start_again(&place).await;
    let client_two = client(&server).await;
    assert_eq!(median(&client_two.forecast(&next_hours(&[])).await.unwrap()[0]), 8.0);
    client_two.ingest(vec![row("a", 45, 9.5)]).await.unwrap();
    drop(client_two);
    server.shutdown().await.unwrap();
    let loads: Vec<f64> = history(&place).iter().filter_map(|row| row.cpu_util).collect();
    assert_eq!(loads, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_stops_the_start_and_is_left_alone() {
    let place = Place::new();
    let server = place.start(place.config()).await;
    let client_one = client(&server).await;
    client_one.ingest(vec![row("a", 0, 1.0)]).await.unwrap();
    client_one.ingest(vec![row("a", 5, 2.0)]).await.unwrap();
    drop(client_one);
    crash(server).await;
    let segment = segments(&place.log()).remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[20] ^= 0xff;
    fs::write(&segment, &bytes).unwrap();
    let failed = loop {
        let loader = Arc::new(TestLoader(Arc::clone(&place.gate)));
        match start_with(place.config(), Arc::clone(&place.clock) as _, loader).await {
            Ok(_) => panic!("started on a damaged log"),
            Err(ServingError::Ingest(IngestError::Log(LogError::Busy { .. }) | IngestError::History(_))) => {
                tokio::task::yield_now().await;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(failed, ServingError::Ingest(IngestError::Log(LogError::Damaged { .. }))), "{failed:?}");
    assert_eq!(fs::read(&segment).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_flush_keeps_rows_until_the_disk_is_mended() {
    let place = Place::new();
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    client.ingest(rows("a", 10)).await.unwrap();
    // A file stands where the folder of the day should be.
    let day = place.config().history.join("date=1970-01-01");
    fs::write(&day, b"in the way").unwrap();
    assert!(matches!(server.flush().await, Err(ServingError::Ingest(IngestError::History(_)))));
    assert!(!segments(&place.log()).is_empty(), "the log keeps what the history has not");
    client.ingest(vec![row("a", 0, 44.0)]).await.unwrap();
    fs::remove_file(&day).unwrap();
    assert_eq!(server.flush().await.unwrap(), 10);
    let rows = history(&place);
    assert_eq!((rows.len(), rows[0].cpu_util), (10, Some(44.0)));
    drop(client);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_reach_the_history_and_labels_the_server_by_themselves() {
    let place = Place::new();
    let often = std::time::Duration::from_millis(5);
    let config = foreshard_serving::ServingConfig { flush_every: often, reload_every: often, ..place.config() };
    let server = place.start(config).await;
    let client = client(&server).await;
    client.ingest(rows("a", 10)).await.unwrap();
    until(|| segments(&place.log()).is_empty()).await;
    assert_eq!(history(&place).len(), 10);
    // The next day has begun: pieces of the day before become one.
    for i in 0..3 {
        client.ingest(vec![row("a", 50 + 5 * i, 1.0)]).await.unwrap();
        until(|| segments(&place.log()).is_empty()).await;
    }
    client.ingest(vec![row("a", 24 * 60, 1.0)]).await.unwrap();
    let pieces = || fs::read_dir(place.config().history.join("date=1970-01-01")).unwrap().count();
    until(|| pieces() == 1).await;
    assert_eq!(history(&place).len(), 14);
    place.publish(1);
    place.label(1);
    until(|| server.version().is_some()).await;
    drop(client);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_is_kept_off_the_same_files() {
    let place = Place::new();
    let server = place.start(place.config()).await;
    let loader = Arc::new(TestLoader(Arc::clone(&place.gate)));
    let second = start_with(place.config(), Arc::clone(&place.clock) as _, loader).await;
    assert!(matches!(second.err(), Some(ServingError::Ingest(_))));
    let config = foreshard_serving::ServingConfig { listen: server.addr(), ..place.config() };
    let loader = Arc::new(TestLoader(Arc::clone(&place.gate)));
    let third = start_with(config, Arc::clone(&place.clock) as _, loader).await;
    assert!(matches!(third.err(), Some(ServingError::Listen { .. })));
    server.shutdown().await.unwrap();
}
