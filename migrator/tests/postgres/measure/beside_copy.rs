//! What clients feel while a database is copied: windows without and with a copy under way, in turns.

use super::from_environment;
use crate::cluster::{Cluster, SHOP};
use crate::harness::bench::{self, Bench, BenchOptions};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::latency::Latencies;
use crate::harness::server::ServerOptions;
use foreshard_domain::MigrationId;
use foreshard_migrator::{Driver, MigrationState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// A window in the checker's time, and bytes copied in it.
struct Window {
    span: Range<Duration>,
    bytes: u64,
}

/// Runs the copy for `length`, then lets it stand still.
async fn with_copy(
    cluster: &Cluster,
    driver: &Arc<Driver>,
    id: &MigrationId,
    checker: &Checker,
    length: Duration,
) -> Window {
    let before = copied(cluster).await;
    let began = checker.elapsed();
    let work = {
        let (driver, id) = (Arc::clone(driver), id.clone());
        let is_paused = matches!(cluster.record(&id).await.state, MigrationState::Paused { .. });
        tokio::spawn(async move { if is_paused { driver.resume(&id).await } else { driver.run(&id).await } })
    };
    sleep(length).await;
    driver.pause(id).await.unwrap();
    let record = work.await.unwrap().unwrap();
    let MigrationState::Paused { at } = &record.state else { panic!("{:?} {:?}", record.state, record.why) };
    assert!(matches!(**at, MigrationState::Copying { .. }), "the copy has ended: set FORESHARD_MB higher, {at:?}");
    Window { span: began..checker.elapsed(), bytes: copied(cluster).await - before }
}

/// Bytes that the target has recorded as copied.
async fn copied(cluster: &Cluster) -> u64 {
    if !cluster.target.has_database(SHOP).await
        || cluster.target.value(SHOP, "SELECT to_regclass('foreshard.copied') IS NOT NULL").await != "t"
    {
        return 0;
    }
    cluster.target.value(SHOP, "SELECT coalesce(sum(bytes), 0) FROM foreshard.copied").await.parse().unwrap()
}

/// A database of `FORESHARD_MB` (1800) under pgbench at `FORESHARD_TPS` (100) transactions a second and the checker at 50
/// operations a second; `FORESHARD_PAIRS` (10) pairs of windows of `FORESHARD_WINDOW_S` (8) seconds, the copy held to
/// `FORESHARD_RATE_MB` (12; 0: no limit) megabytes a second, and by what clients feel to no less than `FORESHARD_FLOOR_MB` (11).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/bench-postgres latency runs it"]
async fn latency_of_clients_beside_a_copy() {
    let (megabytes, tps) = (from_environment("FORESHARD_MB", 1800), from_environment("FORESHARD_TPS", 100));
    let (pairs, window) = (from_environment("FORESHARD_PAIRS", 10), from_environment("FORESHARD_WINDOW_S", 8));
    let rate = from_environment("FORESHARD_RATE_MB", 12);
    let mut cluster = Cluster::start(&ServerOptions::default(), 1).await;
    cluster.settings.pace.floor_bytes_per_s = f64::from(from_environment("FORESHARD_FLOOR_MB", 11)) * 1e6;
    cluster.settings.copy_bytes_per_s = (rate > 0).then(|| f64::from(rate) * 1e6);
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    bench::fill(&cluster.source, SHOP, megabytes).await;
    // A server in service writes over old files of its log; a new one fills each file with zeros first. The source has been filled.
    let written =
        "SELECT count(pg_logical_emit_message(false, 'foreshard', repeat('x', 1000000))) FROM generate_series(1, 600)";
    cluster.target.sql("postgres", written).await;
    for server in [&cluster.source, &cluster.target] {
        server.sql("postgres", "CHECKPOINT").await;
    }
    let through = cluster.poolers[0].app_address(SHOP);
    let checker =
        Checker::start(std::slice::from_ref(&through), &CheckerOptions { rate: 50.0, ..CheckerOptions::default() });
    let seconds = pairs * (2 * window + 4) + 30;
    let load = BenchOptions { clients: 4, seconds, rate: Some(tps.into()), ..BenchOptions::default() };
    let bench_began = checker.elapsed();
    let bench = Bench::start(&through, &load);
    let driver = cluster.controller().await;
    let id = cluster.start_move(&driver, 1).await;
    let window = Duration::from_secs(window.into());
    // Prepares, takes the snapshot, and lets the clients' caches become warm.
    with_copy(&cluster, &driver, &id, &checker, Duration::from_secs(4)).await;
    sleep(Duration::from_secs(4)).await;
    let mut windows = Vec::new();
    for _ in 0..pairs {
        let began = checker.elapsed();
        sleep(window).await;
        let off = Window { span: began..checker.elapsed(), bytes: 0 };
        windows.push((off, with_copy(&cluster, &driver, &id, &checker, window).await));
    }
    let cancelled = driver.cancel(&id).await.unwrap();
    assert_eq!(cancelled.state, MigrationState::Cancelled);
    let benched = bench.wait().await;
    let report = checker.finish(&cluster.source.app_address(SHOP)).await;
    let mut all = report.latencies.0.clone();
    all.extend(benched.latencies.shifted(bench_began).0);
    print_pairs(&Latencies(all), &windows);
    benched.assert_unnoticed();
    report.assert_unnoticed();
    cluster.assert_clean().await;
}

fn print_pairs(all: &Latencies, windows: &[(Window, Window)]) {
    let (mut ratios, mut bytes, mut seconds) = (Vec::new(), 0, 0.0);
    for (n, (off, on)) in windows.iter().enumerate() {
        let [quiet, busy] = [off, on].map(|window| all.between(window.span.clone()));
        let ratio = busy.percentile(0.99).as_secs_f64() / quiet.percentile(0.99).as_secs_f64();
        let took = (on.span.end - on.span.start).as_secs_f64();
        println!("pair {n}: without {quiet}");
        println!("pair {n}: with    {busy}; p99 ratio {ratio:.2} at {:.1} MB/s", on.bytes as f64 / 1e6 / took);
        ratios.push(ratio);
        bytes += on.bytes;
        seconds += took;
        assert!(on.bytes > 0, "nothing was copied in window {n}");
    }
    ratios.sort_by(f64::total_cmp);
    let median = (ratios[(ratios.len() - 1) / 2] + ratios[ratios.len() / 2]) / 2.0;
    let joined = |side: fn(&(Window, Window)) -> &Window| {
        let parts = windows.iter().flat_map(|pair| all.between(side(pair).span.clone()).0);
        Latencies(parts.collect())
    };
    println!("all without: {}", joined(|pair| &pair.0));
    println!("all with:    {}", joined(|pair| &pair.1));
    println!(
        "{} pairs: median ratio of p99 {median:.2} (from {:.2} to {:.2}) at {:.1} MB/s",
        windows.len(),
        ratios.first().unwrap(),
        ratios.last().unwrap(),
        bytes as f64 / 1e6 / seconds
    );
}
