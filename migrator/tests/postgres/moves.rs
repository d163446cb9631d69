//! Whole moves under load: there, back, and there again, with clients that notice nothing but a wait.

use crate::cluster::{Cluster, SHOP};
use crate::harness::bench::{self, Bench, BenchOptions};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::server::ServerOptions;
use crate::watched::{Watched, When};
use foreshard_migrator::MigrationState;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m1_a_database_moves_there_and_back_by_rollback_and_clients_only_wait() {
    let cluster = Cluster::start(&ServerOptions::default(), 2).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    let through: Vec<_> = cluster.poolers.iter().map(|p| p.app_address(SHOP)).collect();
    let checker = Checker::start(&through, &CheckerOptions { rate: 100.0, ..CheckerOptions::default() });
    checker.acknowledges(50).await;

    let driver = cluster.controller().await;
    let id = cluster.start_move(&driver, 1).await;
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    println!("fence there: {} ms", record.fence_ms);
    assert_eq!(cluster.owner().await.node.as_str(), "target");
    checker.acknowledges(100).await;

    let record = driver.rollback(&id).await.unwrap();
    assert_eq!(record.state, MigrationState::RolledBack, "{:?}", record.why);
    println!("fence back: {} ms", record.fence_back_ms);
    assert_eq!(cluster.owner().await.node.as_str(), "source");
    checker.acknowledges(100).await;
    let report = checker.finish(&cluster.source.app_address(SHOP)).await;
    println!("{report}");
    report.assert_unnoticed();
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m1_a_database_moves_there_and_is_finished_and_moves_back_by_a_second_move() {
    let cluster = Cluster::start(&ServerOptions::default(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    bench::fill(&cluster.source, SHOP, 30).await;
    let through = cluster.poolers[0].app_address(SHOP);
    let options = BenchOptions { seconds: 30, rate: Some(60.0), ..BenchOptions::default() };
    let bench = Bench::start(&through, &options);
    let checker = Checker::start(&[through], &CheckerOptions { rate: 60.0, ..CheckerOptions::default() });
    checker.acknowledges(50).await;
    let driver = cluster.controller().await;
    for n in 0..2 {
        let id = cluster.start_move(&driver, n).await;
        let record = driver.run(&id).await.unwrap();
        assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
        println!(
            "move {n}: {} rows, {} bytes, fence {} ms",
            record.progress.rows, record.progress.bytes, record.fence_ms
        );
        checker.acknowledges(50).await;
        let record = driver.finish(&id).await.unwrap();
        assert_eq!(record.state, MigrationState::Done);
        cluster.assert_clean().await;
        checker.acknowledges(20).await;
    }
    let report = checker.finish(&cluster.source.app_address(SHOP)).await;
    let bench = bench.wait().await;
    println!("{report}pgbench: {}", bench.latencies);
    report.assert_unnoticed();
    bench.assert_unnoticed();
    assert!(bench::balances_agree(&cluster.source.connect(SHOP).await).await);
    assert_eq!(cluster.owner().await.epoch.0, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_move_leaves_nothing_whenever_it_is_cancelled() {
    let cluster = Cluster::start(&ServerOptions::fast(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    bench::fill(&cluster.source, SHOP, 15).await;
    let checker = Checker::start(
        &[cluster.poolers[0].app_address(SHOP)],
        &CheckerOptions { rate: 50.0, ..CheckerOptions::default() },
    );
    let backend = Arc::new(Watched::new(cluster.backend()));
    let driver = cluster.controller_with(backend.clone()).await;
    for (n, call) in ["prepare", "copy", "catch_up", "verify", "try_way_back"].into_iter().enumerate() {
        let stop = backend.stop_at(call, When::After);
        let id = cluster.start_move(&driver, n).await;
        let (runner, name) = (driver.clone(), id.clone());
        let running = tokio::spawn(async move { runner.run(&name).await });
        let reached = tokio::time::timeout(std::time::Duration::from_secs(60), stop.reached()).await;
        assert!(reached.is_ok(), "{call} was not reached: {:?}", cluster.record(&id).await);
        let (canceller, name) = (driver.clone(), id.clone());
        let cancelled = tokio::spawn(async move { canceller.cancel(&name).await });
        // The request is committed while the call is still under way.
        while cluster.record(&id).await.state.name() != "undoing" {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        stop.go_on();
        let record = running.await.unwrap().unwrap();
        assert_eq!(record.state, MigrationState::Cancelled, "{call}: {:?}", record.why);
        cancelled.await.unwrap().unwrap();
        cluster.assert_clean().await;
    }
    checker.finish(&cluster.source.app_address(SHOP)).await.assert_unnoticed();
}
