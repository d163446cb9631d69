//! What clients feel in the first minute after the owner has changed, beside the minutes before.

use super::from_environment;
use crate::cluster::{Cluster, SHOP};
use crate::harness::bench::{self, Bench, BenchOptions};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::latency::Latencies;
use crate::harness::server::ServerOptions;
use foreshard_migrator::MigrationState;
use std::time::Duration;
use tokio::time::sleep;

const MINUTE: Duration = Duration::from_secs(60);

/// A database of `FORESHARD_MB` (200) megabytes under pgbench at 100 transactions a second and the checker at 50 operations a
/// second is moved once: a quiet minute, the move, a minute on the new owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/bench-postgres minute runs it"]
async fn first_minute_after_a_change_of_owner() {
    let megabytes = from_environment("FORESHARD_MB", 200);
    let cluster = Cluster::start(&ServerOptions::default(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    bench::fill(&cluster.source, SHOP, megabytes).await;
    for server in [&cluster.source, &cluster.target] {
        server.sql("postgres", "CHECKPOINT").await;
    }
    let through = cluster.poolers[0].app_address(SHOP);
    let seconds = 240 + megabytes / 10;
    let load = BenchOptions { clients: 4, seconds, rate: Some(100.0), ..BenchOptions::default() };
    let checker =
        Checker::start(std::slice::from_ref(&through), &CheckerOptions { rate: 50.0, ..CheckerOptions::default() });
    let bench_began = checker.elapsed();
    let bench = Bench::start(&through, &load);
    // The first seconds fill the old owner's caches.
    sleep(Duration::from_secs(10)).await;
    let quiet = checker.elapsed();
    sleep(MINUTE).await;
    let driver = cluster.controller().await;
    let began = checker.elapsed();
    let id = cluster.start_move(&driver, 1).await;
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    let moved = checker.elapsed();
    sleep(MINUTE).await;
    let benched = bench.wait().await;
    let report = checker.finish(&cluster.target.app_address(SHOP)).await;
    let mut all = report.latencies.0.clone();
    all.extend(benched.latencies.shifted(bench_began).0);
    let all = Latencies(all);
    println!(
        "{megabytes} MB moved in {:.1} s, writes stopped for {} ms",
        (moved - began).as_secs_f64(),
        record.fence_ms
    );
    println!("a minute without a move:   {}", all.between(quiet..quiet + MINUTE));
    println!("the minute before the end: {}", all.between(moved.saturating_sub(MINUTE)..moved));
    println!("the first minute after:    {}", all.between(moved..moved + MINUTE));
    for (from, to) in [(0, 5), (5, 20), (20, 60)] {
        let span = moved + Duration::from_secs(from)..moved + Duration::from_secs(to);
        println!("  seconds {from} to {to} of it: {}", all.between(span));
    }
    let ratio = |span| all.between(span).percentile(0.99).as_secs_f64();
    println!(
        "p99 of the first minute after is {:.2} of that of a minute without a move",
        ratio(moved..moved + MINUTE) / ratio(quiet..quiet + MINUTE)
    );
    benched.assert_unnoticed();
    report.assert_unnoticed();
    driver.finish(&id).await.unwrap();
    cluster.assert_clean().await;
}
