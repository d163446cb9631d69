//! Tests of the tests: a protocol with one step left out must be caught, the whole one must not.

use crate::cluster::{Cluster, SHOP, node, shop};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::server::{PgServer, ServerOptions};
use crate::watched::{CALLS, Watched, When};
use foreshard_domain::{MigrationId, SystemClock};
use foreshard_migrator::MigrationState;
use foreshard_migrator::postgres::{Mutant, PostgresBackend};
use std::sync::Arc;
use std::time::Duration;

/// What was wrong with a move, for whatever reason it was noticed.
async fn noticed(mutant: Option<Mutant>, planted: bool) -> Vec<String> {
    let cluster = Cluster::start(&ServerOptions::fast(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    let plain = PostgresBackend::new(cluster.settings.clone(), Arc::new(SystemClock));
    let backend = Arc::new(Watched::new(match mutant {
        Some(mutant) => plain.mutated(mutant),
        None => plain,
    }));
    let through = cluster.poolers[0].app_address(SHOP);
    let checker = Checker::start(&[through], &CheckerOptions { rate: 60.0, ..CheckerOptions::default() });
    checker.acknowledges(50).await;
    let driver = cluster.controller_with(backend.clone()).await;
    let mut found = Vec::new();

    let stop = backend.stop_at(if planted { "verify" } else { "fence" }, When::Before);
    let id = cluster.start_move(&driver, 1).await;
    let (runner, name) = (driver.clone(), id.clone());
    let mut running = tokio::spawn(async move { runner.run(&name).await });
    stop.reached().await;
    found.extend(objects_without_a_row(&cluster, &id).await);
    let blocker = if mutant == Some(Mutant::SkipMarker) {
        // The target is late: applying waits for a lock.
        let session = cluster.target.connect(SHOP).await;
        session.batch_execute("BEGIN; LOCK TABLE ledger IN SHARE MODE").await.unwrap();
        checker.acknowledges(20).await;
        Some(session)
    } else {
        None
    };
    if planted {
        // One row that the target has lost.
        let sql = "SET session_replication_role = replica; SET application_name = 'foreshard fs_test'; \
                   DELETE FROM events WHERE n = (SELECT min(n) FROM events)";
        cluster.target.sql(SHOP, sql).await;
    }
    stop.go_on();
    let limit = Duration::from_secs(40);
    match tokio::time::timeout(limit, &mut running).await {
        Err(_) => {
            running.abort();
            found.push("it does not end".into());
        }
        Ok(ended) => match ended.unwrap() {
            Ok(record) if matches!(record.state, MigrationState::Reversible { .. }) => {}
            Ok(record) => found.push(format!("it ended {}: {:?}", record.state.name(), record.why)),
            Err(error) => found.push(format!("it stopped: {error}")),
        },
    }
    drop(blocker);
    if found.is_empty() {
        checker.acknowledges(30).await;
        // Longer than any fence: who is only fenced opens again.
        tokio::time::sleep(crate::cluster::config().fence_limit + Duration::from_millis(500)).await;
        if takes_writes(&cluster.source).await {
            found.push("M2: the old owner takes writes".into());
        }
    }
    let owner = if cluster.owner().await.node == node("source") { &cluster.source } else { &cluster.target };
    // By the superuser: a database that has not been opened lets nobody else in.
    let report = checker.finish(&owner.address(SHOP)).await;
    found.extend(report.lost.iter().chain(&report.doubled).chain(&report.wrong).take(3).cloned());
    if report.failed > 0 {
        found.push(format!("{} operations failed: {:?}", report.failed, report.errors.first()));
    }
    found
}

/// Objects of a move on the servers of which the state store knows nothing (M6).
async fn objects_without_a_row(cluster: &Cluster, id: &MigrationId) -> Vec<String> {
    let known: Vec<String> = cluster.store.read().await.unwrap().objects.keys().cloned().collect();
    let mut missing = Vec::new();
    for server in [&cluster.source, &cluster.target] {
        let sql = "SELECT 'slot/' || slot_name FROM pg_replication_slots WHERE slot_name LIKE 'fs%' \
                   UNION ALL SELECT 'publication/' || pubname FROM pg_publication \
                   UNION ALL SELECT 'subscription/' || subname FROM pg_subscription WHERE subdbid = \
                     (SELECT oid FROM pg_database WHERE datname = current_database()) \
                   UNION ALL SELECT 'schema/' || nspname FROM pg_namespace WHERE nspname = 'foreshard'";
        for object in server.column(SHOP, sql).await {
            let name = format!("{}/{}/{object}", server.name(), shop());
            if !known.contains(&name) {
                missing.push(format!("M6: {name} of {id} has no row"));
            }
        }
    }
    missing
}

/// Whether a client that comes past the poolers can write.
async fn takes_writes(server: &PgServer) -> bool {
    let Ok(session) = server.address(SHOP).connect().await else { return false };
    session.batch_execute("UPDATE accounts SET balance = balance WHERE id = 1").await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_the_protocol_is_caught_and_the_protocol_is_not() {
    assert_eq!(noticed(None, false).await, Vec::<String>::new());
    for mutant in [
        Mutant::SkipFence,
        Mutant::SkipMarker,
        Mutant::SkipComparison,
        Mutant::SkipSeal,
        Mutant::ForgetSlots,
        Mutant::ReuseEpoch,
        Mutant::SkipSequences,
    ] {
        let found = noticed(Some(mutant), mutant == Mutant::SkipComparison).await;
        println!("{mutant:?}: {}", found.first().map_or("not noticed", String::as_str));
        assert!(!found.is_empty(), "{mutant:?} was not noticed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m4_one_row_that_differs_stops_the_seal_and_is_named() {
    let found = noticed(None, true).await;
    assert_eq!(found.len(), 1, "the move ends, and clients notice nothing: {found:?}");
    assert!(found[0].contains("it ended failed") && found[0].contains("events"), "{found:?}");
}

#[test]
fn calls_are_named_once() {
    let distinct: std::collections::BTreeSet<_> = CALLS.iter().collect();
    assert_eq!(distinct.len(), CALLS.len());
}
