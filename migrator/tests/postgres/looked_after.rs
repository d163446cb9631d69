//! What a move owes the servers it works on: no disk filled, nothing left behind, a backup first, an end also without one of
//! them.

use crate::cluster::{Cluster, SHOP, node};
use crate::harness::bench;
use crate::harness::debris::debris;
use crate::harness::server::{PgServer, ServerOptions};
use crate::watched::{Watched, When};
use foreshard_domain::MigrationId;
use foreshard_migrator::{Driver, DriverError, MigrationState};
use std::sync::Arc;
use std::time::Duration;

/// Runs a move until it can be taken back.
async fn reversible(cluster: &Cluster, driver: &Driver) -> MigrationId {
    let id = cluster.start_move(driver, 1).await;
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    id
}

/// A move that stands still, paused after its first copied piece.
async fn paused(cluster: &Cluster) -> (Arc<Driver>, MigrationId) {
    let backend = Arc::new(Watched::new(cluster.backend()));
    let stop = backend.stop_at("copy", When::After);
    let driver = cluster.controller_with(backend).await;
    let id = cluster.start_move(&driver, 1).await;
    let (runner, name) = (driver.clone(), id.clone());
    let running = tokio::spawn(async move { runner.run(&name).await });
    stop.reached().await;
    driver.pause(&id).await.unwrap();
    stop.go_on();
    assert_eq!(running.await.unwrap().unwrap().state.name(), "paused");
    (driver, id)
}

/// Writes more log than so many megabytes.
async fn write_log(server: &PgServer, megabytes: u32) {
    server.sql("postgres", "CREATE TABLE IF NOT EXISTS filler (t text)").await;
    for _ in 0..megabytes {
        let sql = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 1100)";
        server.sql("postgres", sql).await;
    }
    server.sql("postgres", "DROP TABLE filler").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_ends_without_the_old_server_if_that_is_gone_for_good() {
    let mut cluster = Cluster::of_the_checker().await;
    let checker = cluster.checker();
    let driver = cluster.controller().await;
    let id = reversible(&cluster, &driver).await;
    cluster.source.kill9();
    checker.acknowledges(20).await;

    let refused = driver.give_up_node(&id, &node("target")).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSpare { .. }), "{refused}");
    assert!(refused.to_string().contains("source"), "it says which node it could be: {refused}");
    driver.give_up_node(&id, &node("source")).await.unwrap();
    let record = driver.run(&id).await.unwrap();
    assert_eq!(record.state, MigrationState::Done, "{:?}", record.why);
    assert_eq!(record.lost, Some(node("source")));
    checker.acknowledges(20).await;
    checker.finish(&cluster.target.app_address(SHOP)).await.assert_unnoticed();
    let left = debris(&cluster.target, &[SHOP]).await;
    let left: Vec<_> =
        left.iter().filter(|l| !l.contains("foreshard_term_") && !l.contains("foreshard.epoch")).collect();
    assert_eq!(left, Vec::<&String>::new());

    // Should it come back after all, its copy takes no writes, and a person is told that it is there.
    cluster.source.start_again().await;
    let refused = cluster.source.app_address(SHOP).connect().await;
    assert!(refused.is_err(), "the old copy lets nobody in");
    cluster.controller().await;
    assert!(cluster.source.has_database(SHOP).await, "rows are never removed without a person");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_gone_for_good_does_not_keep_a_move_from_being_undone() {
    let mut cluster = Cluster::of_the_checker().await;
    let checker = cluster.checker();
    let (driver, id) = paused(&cluster).await;
    cluster.target.kill9();
    assert!(driver.cancel(&id).await.is_err(), "the copy there cannot be removed");
    driver.give_up_node(&id, &node("target")).await.unwrap();
    assert_eq!(driver.run(&id).await.unwrap().state, MigrationState::Cancelled);
    checker.acknowledges(20).await;
    checker.finish(&cluster.source.app_address(SHOP)).await.assert_unnoticed();
    // What the target has of it is swept up, or told, by whoever finds it again.
    cluster.target.start_again().await;
    cluster.target.sql("postgres", &format!("DROP DATABASE {SHOP} WITH (FORCE)")).await;
    cluster.controller().await;
    cluster.assert_clean().await;
}

/// A server that dies, or runs out of disk, while it drops a database keeps one that lets nobody in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_dropped_in_part_is_dropped() {
    let cluster = Cluster::of_the_checker().await;
    let (driver, id) = paused(&cluster).await;
    // The shard's connections there end first, as they do when it is dropped.
    let half = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{SHOP}'; \
         UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{SHOP}'"
    );
    cluster.target.sql("postgres", &half).await;
    assert!(cluster.target.address(SHOP).connect().await.is_err());
    assert_eq!(driver.cancel(&id).await.unwrap().state, MigrationState::Cancelled);
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_move_that_keeps_back_too_much_log_is_given_up() {
    let mut cluster = Cluster::of_the_checker().await;
    cluster.settings.wal_limit_bytes = 4 << 20;
    let checker = cluster.checker();
    let (driver, id) = paused(&cluster).await;
    assert_eq!(driver.guard_room().await.unwrap(), [], "there is room enough");
    write_log(&cluster.source, 8).await;
    assert_eq!(driver.guard_room().await.unwrap(), std::slice::from_ref(&id));
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(&record.state, MigrationState::Failed { why } if why.contains("wal_limit_bytes")), "{record:?}");
    checker.finish(&cluster.source.app_address(SHOP)).await.assert_unnoticed();
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_keeps_back_too_much_log_is_given_up() {
    let mut cluster = Cluster::of_the_checker().await;
    cluster.settings.wal_limit_bytes = 4 << 20;
    let (driver, id) = paused(&cluster).await;
    write_log(&cluster.source, 8).await;
    let record = driver.resume(&id).await.unwrap();
    assert!(matches!(&record.state, MigrationState::Failed { why } if why.contains("wal_limit_bytes")), "{record:?}");
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_holds_an_old_snapshot_for_too_long_is_given_up() {
    let mut cluster = Cluster::of_the_checker().await;
    cluster.settings.horizon_limit = 100;
    let (driver, id) = paused(&cluster).await;
    let session = cluster.source.connect("postgres").await;
    for _ in 0..200 {
        session.rows("SELECT pg_current_xact_id()").await.unwrap();
    }
    assert_eq!(driver.guard_room().await.unwrap(), std::slice::from_ref(&id));
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(&record.state, MigrationState::Failed { why } if why.contains("horizon_limit")), "{record:?}");
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_server_that_is_away_too_long_loses_the_way_back_not_the_new_ones_disk() {
    let mut cluster = Cluster::of_the_checker().await;
    cluster.settings.wal_limit_bytes = 4 << 20;
    let checker = cluster.checker();
    let driver = cluster.controller().await;
    let id = reversible(&cluster, &driver).await;
    cluster.source.kill9();
    write_log(&cluster.target, 8).await;
    assert_eq!(driver.guard_room().await.unwrap(), [], "there is nothing to be done about it");
    let slots = cluster.target.column("postgres", "SELECT slot_name FROM pg_replication_slots").await;
    assert_eq!(slots, Vec::<String>::new());
    let why = cluster.record(&id).await.why.unwrap();
    assert!(why.contains("wal_limit_bytes"), "{why}");

    cluster.source.start_again().await;
    let record = driver.rollback(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "it stays where it is: {:?}", record.state);
    assert!(record.why.as_ref().is_some_and(|why| why.contains("missing")), "{:?}", record.why);
    assert_eq!(driver.finish(&id).await.unwrap().state, MigrationState::Done);
    checker.finish(&cluster.target.app_address(SHOP)).await.assert_unnoticed();
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m6_what_belongs_to_no_migration_is_removed_and_what_does_stays() {
    let cluster = Cluster::of_the_checker().await;
    let (_driver, id) = paused(&cluster).await;
    let slots = || cluster.source.column("postgres", "SELECT slot_name FROM pg_replication_slots ORDER BY 1");
    let mine = slots().await;
    assert!(!mine.is_empty());
    let stem = "fs_0123456789abcdef";
    cluster.target.create_database("other").await;
    for (server, database, sql) in [
        (&cluster.source, SHOP, format!("SELECT pg_create_logical_replication_slot('{stem}_there', 'pgoutput')")),
        (&cluster.target, "other", format!("CREATE PUBLICATION {stem}_back_pub FOR ALL TABLES")),
        (&cluster.target, "other", format!("SELECT pg_create_logical_replication_slot('{stem}_back', 'pgoutput')")),
        (
            &cluster.target,
            "other",
            format!("CREATE SUBSCRIPTION {stem}_there CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false)"),
        ),
        (&cluster.target, "postgres", format!("CREATE DATABASE {stem}_new")),
        (
            &cluster.target,
            "other",
            "SELECT pg_create_logical_replication_slot('fs_of_somebody_else', 'pgoutput')".into(),
        ),
    ] {
        server.sql(database, &sql).await;
    }
    // The next controller looks for what its store does not know.
    let driver = cluster.controller().await;
    assert_eq!(slots().await, mine, "what belongs to the paused move stays");
    let other = debris(&cluster.target, &[SHOP, "other"]).await;
    assert!(!other.iter().any(|line| line.contains(stem)), "{other:?}");
    assert!(other.iter().any(|line| line.contains("fs_of_somebody_else")), "{other:?}");
    cluster.target.sql("other", "SELECT pg_drop_replication_slot('fs_of_somebody_else')").await;
    cluster.target.sql("postgres", "DROP DATABASE other").await;
    assert_eq!(driver.cancel(&id).await.unwrap().state, MigrationState::Cancelled);
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_copy_stays_until_there_is_a_backup_of_the_new_one() {
    let mut cluster = Cluster::of_the_checker().await;
    bench::fill(&cluster.source, SHOP, 5).await;
    let folder = tempfile::tempdir().unwrap();
    let (ready, told) = (folder.path().join("ready"), folder.path().join("told"));
    let script = format!(
        "echo $FORESHARD_SHARD $FORESHARD_NODE $PGPORT $PGDATABASE > {told}; test -e {ready} || {{ echo not yet >&2; exit 3; }}",
        told = told.display(),
        ready = ready.display()
    );
    cluster.settings.backup_hook = vec!["/bin/sh".into(), "-c".into(), script];
    let driver = cluster.controller().await;
    let id = reversible(&cluster, &driver).await;
    let stuck = driver.finish(&id).await.unwrap_err();
    let chain = format!("{stuck:?}");
    assert!(matches!(stuck, DriverError::Stuck { .. }) && chain.contains("not yet"), "{chain}");
    assert!(cluster.source.has_database(SHOP).await);
    assert_eq!(cluster.record(&id).await.state.name(), "finishing");

    std::fs::write(&ready, "").unwrap();
    assert_eq!(driver.finish(&id).await.unwrap().state, MigrationState::Done);
    let expected = format!("{SHOP} target {} {SHOP}\n", cluster.target.port());
    assert_eq!(std::fs::read_to_string(&told).unwrap(), expected);
    cluster.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_new_owners_cache_is_filled_before_clients_come() {
    let options = ServerOptions { settings: vec![("track_functions", "'all'".into())], ..ServerOptions::fast() };
    let mut cluster = Cluster::start(&options, 1).await;
    bench::fill(&cluster.source, SHOP, 15).await;
    for (share, is_warm) in [(0.5, true), (0.0, false)] {
        cluster.settings.warm_share = share;
        let driver = cluster.controller().await;
        let id = reversible(&cluster, &driver).await;
        let read = "SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions \
                    WHERE schemaname = 'foreshard' AND funcname = 'prewarm'";
        // A session tells its numbers when it is idle.
        let began = tokio::time::Instant::now();
        let calls = loop {
            let calls: u32 = cluster.owning().await.value(SHOP, read).await.parse().unwrap();
            if calls > 0 || began.elapsed() > Duration::from_secs(if is_warm { 30 } else { 2 }) {
                break calls;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        // Tables and their keys, each at least once.
        assert!(if is_warm { calls >= 4 } else { calls == 0 }, "share {share}: {calls}");
        assert_eq!(driver.finish(&id).await.unwrap().state, MigrationState::Done);
        cluster.assert_clean().await;
    }
}
