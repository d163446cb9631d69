//! Measurements on real servers, larger than a test run may be: `scripts/bench-postgres` runs them and prints what they print.
//! They assert what must always hold, never a time.

mod beside_copy;
mod first_minute;
pub mod phases;
mod throughput;

use crate::cluster::{Cluster, SHOP};
use crate::harness::bench::{self, Bench, BenchOptions};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::server::ServerOptions;
use foreshard_migrator::MigrationState;
use std::time::Duration;

fn from_environment(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn percentile(sorted: &[u64], share: f64) -> u64 {
    let at = (sorted.len().saturating_sub(1) as f64 * share).round();
    sorted.get(at as usize).copied().unwrap_or(0)
}

/// A loaded database of `FORESHARD_MB` (200) megabytes is moved `FORESHARD_MOVES` (20) times; how long writes were stopped, and
/// what clients felt in the first minute after each change of owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/bench-postgres fences runs it"]
async fn fences_of_many_moves_of_a_loaded_database() {
    let (megabytes, moves) = (from_environment("FORESHARD_MB", 200), from_environment("FORESHARD_MOVES", 20));
    let cluster = Cluster::start(&ServerOptions::default(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    bench::fill(&cluster.source, SHOP, megabytes).await;
    let through = cluster.poolers[0].app_address(SHOP);
    let seconds = 60 * moves + 60;
    let load = BenchOptions { clients: 4, seconds, rate: Some(100.0), ..BenchOptions::default() };
    let bench = Bench::start(&through, &load);
    let checker = Checker::start(&[through], &CheckerOptions { rate: 50.0, ..CheckerOptions::default() });
    checker.acknowledges(50).await;
    let driver = cluster.controller().await;
    let (mut fences, mut tries, mut after) = (Vec::new(), 0, Vec::new());
    for n in 0..moves {
        let began = checker.elapsed();
        let id = cluster.start_move(&driver, n as usize).await;
        let record = driver.run(&id).await.unwrap();
        assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
        let moved = checker.elapsed();
        tokio::time::sleep(Duration::from_secs(3)).await;
        after.push(moved..checker.elapsed());
        fences.push(record.fence_ms);
        tries += record.progress.fences;
        println!(
            "move {n}: fence {} ms in {} tries, {} rows, {} MB, {:.1} s in all",
            record.fence_ms,
            record.progress.fences,
            record.progress.rows,
            record.progress.bytes / 1_000_000,
            (moved - began).as_secs_f64()
        );
        let record = driver.finish(&id).await.unwrap();
        assert_eq!(record.state, MigrationState::Done);
    }
    let report = checker.finish(&cluster.owning().await.app_address(SHOP)).await;
    drop(bench);
    fences.sort_unstable();
    println!(
        "fences of {moves} moves of {megabytes} MB, {tries} tries: p50 {} ms, p90 {} ms, longest {} ms",
        percentile(&fences, 0.5),
        percentile(&fences, 0.9),
        fences.last().copied().unwrap_or(0)
    );
    println!("all along: {report}");
    for (n, span) in after.into_iter().enumerate() {
        println!("first seconds after move {n}: {}", report.latencies.between(span));
    }
    report.assert_unnoticed();
    cluster.assert_clean().await;
}

/// `FORESHARD_MB` (1000) megabytes there and back by a rollback, under pgbench and the checker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/bench-postgres large runs it"]
async fn m1_a_large_database_moves_there_and_back_and_nobody_notices() {
    let megabytes = from_environment("FORESHARD_MB", 1000);
    let cluster = Cluster::start(&ServerOptions::default(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    bench::fill(&cluster.source, SHOP, megabytes).await;
    let through = cluster.poolers[0].app_address(SHOP);
    let load = BenchOptions { clients: 4, seconds: 7200, rate: Some(100.0), ..BenchOptions::default() };
    let bench = Bench::start(&through, &load);
    let checker = Checker::start(&[through], &CheckerOptions { rate: 50.0, ..CheckerOptions::default() });
    checker.acknowledges(100).await;
    let driver = cluster.controller().await;
    let began = checker.elapsed();
    let id = cluster.start_move(&driver, 1).await;
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    println!(
        "{megabytes} MB there: {:.1} s, {} rows, {} MB, fence {} ms",
        (checker.elapsed() - began).as_secs_f64(),
        record.progress.rows,
        record.progress.bytes / 1_000_000,
        record.fence_ms
    );
    checker.acknowledges(200).await;
    let record = driver.rollback(&id).await.unwrap();
    assert_eq!(record.state, MigrationState::RolledBack, "{:?}", record.why);
    println!("back: fence {} ms", record.fence_back_ms);
    checker.acknowledges(100).await;
    let report = checker.finish(&cluster.source.app_address(SHOP)).await;
    drop(bench);
    println!("{report}");
    report.assert_unnoticed();
    assert!(bench::balances_agree(&cluster.source.connect(SHOP).await).await);
    cluster.assert_clean().await;
}
