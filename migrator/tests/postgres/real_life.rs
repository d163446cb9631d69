//! What servers in use have that fresh ones have not: standbys that commits wait for, and transactions that take their time.

use crate::cluster::{Cluster, SHOP};
use crate::harness::checker::{Checker, CheckerOptions};
use crate::harness::server::PgServer;
use crate::watched::{Watched, When};
use foreshard_migrator::MigrationState;
use foreshard_migrator::postgres::LongTransactions;
use std::sync::Arc;
use std::time::Duration;

/// A standby that every commit of `primary` waits for.
async fn synchronous_standby(primary: &PgServer, name: &str) -> PgServer {
    let standby = PgServer::standby_of(primary, name).await;
    let follows =
        format!("SELECT 1 FROM pg_stat_replication WHERE application_name = '{name}' AND state = 'streaming'");
    let began = tokio::time::Instant::now();
    while primary.column("postgres", &follows).await.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "{name} does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    primary.set("synchronous_standby_names", &format!("'{name}'")).await;
    standby
}

/// Ends a standby, so that nothing of it is taken for debris of a move.
async fn let_go(primary: &PgServer, standby: PgServer) {
    primary.set("synchronous_standby_names", "''").await;
    drop(standby);
    let began = tokio::time::Instant::now();
    while !primary.column("postgres", "SELECT application_name FROM pg_stat_replication").await.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "the standby is still followed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m1_a_database_moves_between_servers_with_synchronous_standbys() {
    let cluster = Cluster::of_the_checker().await;
    let (of_source, of_target) = tokio::join!(
        synchronous_standby(&cluster.source, "standby_a"),
        synchronous_standby(&cluster.target, "standby_b")
    );
    let checker = cluster.checker();
    checker.acknowledges(30).await;
    let driver = cluster.controller().await;
    let id = cluster.start_move(&driver, 1).await;
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    checker.acknowledges(30).await;
    let record = driver.rollback(&id).await.unwrap();
    assert_eq!(record.state, MigrationState::RolledBack, "{:?}", record.why);
    checker.acknowledges(30).await;
    let report = checker.finish(&cluster.source.app_address(SHOP)).await;
    report.assert_unnoticed();
    let_go(&cluster.source, of_source).await;
    let_go(&cluster.target, of_target).await;
    cluster.assert_clean().await;
}

/// Whichever side's standby stops answering, and whenever: commits on that side wait, the fence ends, and when the standby is
/// back the move comes through or goes back; nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m7_a_synchronous_standby_that_hangs_costs_time_and_no_write() {
    let cluster = Cluster::of_the_checker().await;
    let (mut of_source, mut of_target) = tokio::join!(
        synchronous_standby(&cluster.source, "standby_a"),
        synchronous_standby(&cluster.target, "standby_b")
    );
    let mut moves = 0;
    for (call, sources) in [("fence", true), ("seal", true), ("prove", false), ("open_target", false)] {
        moves += 1;
        // The one that the side of this move is waited for: the shard goes back and forth.
        let is_home = cluster.owner().await.node.as_str() == "source";
        let first = i32::try_from(moves * 100).unwrap();
        let options = CheckerOptions { rate: 30.0, first_client: first, ..CheckerOptions::default() };
        let checker = Checker::start(&[cluster.poolers[0].app_address(SHOP)], &options);
        let backend = Arc::new(Watched::new(cluster.backend()));
        let stop = backend.stop_at(call, When::Before);
        let driver = cluster.controller_with(backend).await;
        let id = cluster.start_move(&driver, moves).await;
        let (runner, name) = (driver.clone(), id.clone());
        let mut running = tokio::spawn(async move { runner.run(&name).await });
        tokio::select! {
            () = stop.reached() => {}
            ended = &mut running => panic!("{call} was never called: {ended:?}"),
        }
        let standby = if sources == is_home { &mut of_source } else { &mut of_target };
        standby.freeze();
        stop.go_on();
        tokio::time::sleep(Duration::from_secs(5)).await;
        standby.unfreeze();
        let ran = tokio::time::timeout(Duration::from_secs(120), running).await.expect("it hangs").unwrap();
        println!("{call}: {:?}", ran.map(|record| (record.state, record.why)));
        let mut tries = 0;
        let record = loop {
            let record = cluster.record(&id).await;
            if record.state.is_at_rest() {
                break record;
            }
            tries += 1;
            assert!(tries < 10, "{record:?}");
            let _ = driver.run(&id).await;
        };
        if matches!(record.state, MigrationState::Reversible { .. }) {
            assert_eq!(driver.finish(&id).await.unwrap().state, MigrationState::Done);
        } else {
            assert!(matches!(record.state, MigrationState::Failed { .. }), "{record:?}");
        }
        checker.acknowledges(20).await;
        let report = checker.finish(&cluster.owning().await.app_address(SHOP)).await;
        report.assert_nothing_lost();
    }
    let_go(&cluster.source, of_source).await;
    let_go(&cluster.target, of_target).await;
    cluster.assert_clean().await;
}

/// A transaction that has written and is not ended.
async fn open_transaction(cluster: &Cluster) -> crate::harness::address::Session {
    let session = cluster.poolers[0].app_address(SHOP).connect().await.unwrap();
    session.batch_execute("BEGIN; UPDATE accounts SET balance = balance WHERE id = 1").await.unwrap();
    session
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_waits_for_long_transactions_if_it_is_to_wait() {
    let cluster = Cluster::of_the_checker().await;
    let backend = Arc::new(Watched::new(cluster.backend()));
    let stop = backend.stop_at("fence", When::Before);
    let driver = cluster.controller_with(backend).await;
    let id = cluster.start_move(&driver, 1).await;
    let (runner, name) = (driver.clone(), id.clone());
    let running = tokio::spawn(async move { runner.run(&name).await });
    stop.reached().await;
    let long = open_transaction(&cluster).await;
    stop.go_on();
    // Longer than a fence lasts.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(cluster.owner().await.node.as_str(), "source");
    long.batch_execute("COMMIT").await.expect("it is not hurt");
    let record = running.await.unwrap().unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    assert!(record.progress.fences > 1, "{:?}", record.progress);
    assert_eq!(driver.finish(&id).await.unwrap().state, MigrationState::Done);
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_ends_long_transactions_if_it_is_to_end_them() {
    let mut cluster = Cluster::of_the_checker().await;
    cluster.settings.long_transactions = LongTransactions::End { after: Duration::from_secs(1) };
    let long = open_transaction(&cluster).await;
    let checker = cluster.checker();
    let driver = cluster.controller().await;
    let id = cluster.start_move(&driver, 1).await;
    // The slot of the copy waits for the transaction as well.
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    assert!(long.batch_execute("COMMIT").await.is_err(), "it was ended");
    checker.acknowledges(20).await;
    checker.finish(&cluster.target.app_address(SHOP)).await.assert_nothing_lost();
    assert_eq!(driver.finish(&id).await.unwrap().state, MigrationState::Done);
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_refused_beside_long_transactions_if_it_is_to_be() {
    let mut cluster = Cluster::of_the_checker().await;
    cluster.settings.long_transactions = LongTransactions::Refuse { after: Duration::from_millis(200) };
    let long = open_transaction(&cluster).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let driver = cluster.controller().await;
    let id = cluster.start_move(&driver, 1).await;
    let record = driver.run(&id).await.unwrap();
    let MigrationState::Failed { why } = &record.state else { panic!("{record:?}") };
    assert!(why.contains("long_transactions") && why.contains("pg_terminate_backend"), "{why}");
    long.batch_execute("COMMIT").await.unwrap();
    cluster.assert_clean().await;
}
