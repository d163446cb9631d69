//! Prometheus is asked for the past of series.

use crate::PATIENCE;
use crate::common::plain_http::{REMOTE_WRITE, Series, get, packed, post};
use crate::common::*;
use crate::prometheus::{Peer, prometheus, ready};
use foreshard_datasets::prometheus::{
    MOST_POINTS, Measurement, PrometheusSource, PulledSeries, RangeImport, SourceError, SourceSettings, import_range,
};
use foreshard_datasets::{ReadFilter, read_history};
use foreshard_domain::{Clock as _, ManualClock, RealTime, Step, SystemClock, Timestamp};
use foreshard_serving::{PullConfig, RunningServer, ServingConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// More than one question may ask for.
const MINUTES: i64 = MOST_POINTS + 1_000;

/// A Prometheus that has more points of two shards than it answers at once; the last one is at the time that is returned.
async fn filled(dir: &Path) -> Option<(Peer, SocketAddr, Timestamp)> {
    let (peer, addr) = prometheus(dir, "global: { scrape_interval: 1h }\n")?;
    ready(addr).await;
    // So that every fifth minute from 0 on begins a step of forecasts, whatever time it is.
    let last = Step::FIVE_MINUTES.floor(SystemClock.model()).plus_ms(-MINUTE);
    let samples: Vec<Vec<(i64, f64)>> = [1.0, 1000.0]
        .map(|factor| (0..MINUTES).map(|i| (minute(last, i).as_ms(), factor * (i % 1440) as f64)).collect())
        .to_vec();
    let a: Series<'_> = (&[("__name__", "cores"), ("datname", "a"), ("host", "n1")], &samples[0]);
    let b: Series<'_> = (&[("__name__", "ops"), ("datname", "a"), ("host", "n1")], &samples[1]);
    let (status, answer) = post(addr, "/api/v1/write", REMOTE_WRITE, &packed(&[a, b])).await.unwrap();
    assert_eq!(status, 204, "{answer}");
    Some((peer, addr, last))
}

fn minute(last: Timestamp, i: i64) -> Timestamp {
    last.plus_ms((i + 1 - MINUTES) * MINUTE)
}

fn series(query: &str, metric: Measurement, scale: f64) -> PulledSeries {
    let node = Some("${host}".parse().unwrap());
    PulledSeries { query: query.to_owned(), metric, shard: "${datname}".parse().unwrap(), node, scale }
}

fn both() -> Vec<PulledSeries> {
    let cores = "sum by (datname, host) (cores)";
    vec![series(cores, Measurement::CpuUtil, 0.5), series("ops{datname!=''}", Measurement::IoOps, 1.0)]
}

#[tokio::test(flavor = "multi_thread")]
async fn its_past_becomes_a_history() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_peer, addr, last)) = filled(dir.path()).await else { return };
    let settings = |url: String| SourceSettings { url, timeout: PATIENCE, tries: 2, ..SourceSettings::default() };
    let source = PrometheusSource::new(&settings(format!("http://{addr}"))).unwrap();
    let file = dir.path().join("history.parquet");
    let what = RangeImport {
        series: both(),
        from: minute(last, 0),
        to: last.plus_ms(1),
        step: Step::MINUTE,
        speeds: Default::default(),
    };
    let asked = (source.clone(), what.clone(), file.clone());
    let import = move || import_range(&asked.0, &asked.1, &asked.2, &mut |_| ());
    let report = tokio::task::spawn_blocking(import).await.unwrap().unwrap();
    assert_eq!((report.rows, report.shards, report.values.taken), (12_000, 1, 24_000));
    let rows: Vec<_> = read_history(&file, &ReadFilter::default()).unwrap().observations().collect();
    for (i, row) in (0..).zip(&rows) {
        let day = (i % 1440) as f64;
        assert_eq!((row.ts, row.cpu_util, row.io_ops), (minute(last, i), Some(day / 2.0), Some(day * 1000.0)));
        assert_eq!(row.node.as_ref().unwrap().as_str(), "n1");
    }

    let wrong = RangeImport { series: vec![series("sum(", Measurement::CpuUtil, 1.0)], ..what };
    let asking = move || import_range(&source, &wrong, &file, &mut |_| ());
    let error = tokio::task::spawn_blocking(asking).await.unwrap().unwrap_err();
    let told = format!("{:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(told.contains("bad_data") && told.contains("parse error"), "{told}");
    let is_refused =
        matches!(error, foreshard_datasets::prometheus::RangeImportError::Source(SourceError::Refused { .. }));
    assert!(is_refused);
}

async fn arrived(place: &Place, server: &RunningServer, rows: usize) {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            server.flush().await.unwrap();
            let history = read_history(&place.config().history, &ReadFilter::default());
            if history.is_ok_and(|history| history.observations().count() == rows) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(waited.await.is_ok(), "{rows} rows do not arrive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_pulls_what_is_new_and_goes_on_after_a_restart() {
    let mut place = Place::new();
    let Some((_peer, addr, last)) = filled(place.dir.path()).await else { return };
    place.clock = Arc::new(ManualClock::new(minute(last, 999), RealTime::from_ms(0)));
    place.publish(1);
    place.label(1);
    let pulled = PullConfig {
        url: format!("http://{addr}"),
        every: Duration::from_millis(50),
        delay: Duration::ZERO,
        reach_back: Duration::from_secs(600 * 60),
        series: both(),
        ..PullConfig::default()
    };
    let http = Some("127.0.0.1:0".parse().unwrap());
    let config = ServingConfig { pulled: Some(pulled.clone()), http, ..place.config() };
    let server = place.start(config.clone()).await;
    // From ten hours before 999 up to there.
    arrived(&place, &server, 601).await;
    let forecast = client(&server).await.forecast(&next_hours(&["a"])).await.unwrap();
    let mean = (995..1000).map(|i| f64::from(i) / 2.0).sum::<f64>() / 5.0;
    assert!((f64::from(median(&forecast[0])) - mean).abs() < 1e-3, "{} and {mean}", median(&forecast[0]));
    place.clock.advance_ms(60 * MINUTE);
    arrived(&place, &server, 661).await;
    server.shutdown().await.unwrap();

    // Away for two hours, with a query that Prometheus refuses beside the others.
    place.clock.advance_ms(120 * MINUTE);
    let mut more = pulled.clone();
    more.series.push(series("sum(", Measurement::TxnRate, 1.0));
    let server = place.start(ServingConfig { pulled: Some(more), ..config.clone() }).await;
    arrived(&place, &server, 781).await;
    let (_, metrics) = get(server.http_addr().unwrap(), "/metrics").await.unwrap();
    assert!(metrics.contains(r#"pulls_total{result="failed"}"#), "{metrics}");
    // Only what was new: what was there already was not asked for again.
    let taken = metrics.split(r#"pulled_values_total{result="taken"} "#).nth(1).unwrap();
    assert_eq!(taken.split('\n').next().unwrap(), "240");
    server.shutdown().await.unwrap();
}
