//! The checker finds what is planted: nothing it says counts unless it can say the opposite.

use super::{Checker, CheckerOptions, create_tables};
use crate::harness::address::Address;
use crate::harness::pooler::Pooler;
use crate::harness::proxy::Proxy;
use crate::harness::server::{PgServer, ServerOptions};
use std::time::Duration;
use tokio::time::sleep;

async fn server_with_tables(name: &str) -> (PgServer, Address) {
    let server = PgServer::start(name, &ServerOptions::fast()).await;
    server.create_database("shop").await;
    let address = server.app_address("shop");
    create_tables(&address, CheckerOptions::default().accounts).await;
    (server, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_planted_fault_is_found_and_named() {
    let (server, address) = server_with_tables("faults").await;
    let checker = Checker::start(std::slice::from_ref(&address), &CheckerOptions::default());
    checker.acknowledges(400).await;
    let history = checker.stop().await;
    let check = async || history.check(&address.connect().await.unwrap()).await;
    let clean = check().await;
    clean.assert_unnoticed();
    assert!(clean.reads > 0 && clean.latencies.0.len() == clean.reads + clean.acknowledged, "{clean}");

    // What is done, how it is undone, and how many findings it gives: lost, doubled, wrong.
    let keep = "CREATE TABLE kept AS SELECT * FROM";
    let faults = [
        // The accounts then have one effect more than the ledger.
        (
            format!(
                "{keep} ledger WHERE account IS NOT NULL AND other IS NULL ORDER BY id LIMIT 1; \
                     DELETE FROM ledger WHERE id IN (SELECT id FROM kept)"
            ),
            "INSERT INTO ledger SELECT * FROM kept",
            (1, 1, 0),
        ),
        (
            "UPDATE accounts SET balance = balance + 5, writes = writes + 1 WHERE id = 3".into(),
            "UPDATE accounts SET balance = balance - 5, writes = writes - 1 WHERE id = 3",
            (0, 1, 0),
        ),
        (
            "UPDATE accounts SET balance = balance + 5, writes = writes - 1 WHERE id = 3".into(),
            "UPDATE accounts SET balance = balance - 5, writes = writes + 1 WHERE id = 3",
            (1, 0, 0),
        ),
        (
            "UPDATE accounts SET balance = balance + 1 WHERE id = 3".into(),
            "UPDATE accounts SET balance = balance - 1 WHERE id = 3",
            (0, 0, 1),
        ),
        (
            "ALTER TABLE ledger DROP CONSTRAINT ledger_pkey; \
             INSERT INTO ledger SELECT * FROM ledger WHERE account IS NULL ORDER BY id LIMIT 1"
                .into(),
            "DELETE FROM ledger l USING ledger k WHERE l.id = k.id AND l.ctid > k.ctid; \
             ALTER TABLE ledger ADD PRIMARY KEY (id)",
            (0, 1, 0),
        ),
        (
            "INSERT INTO events (op) SELECT min(op) FROM events".into(),
            "DELETE FROM events WHERE n = (SELECT max(n) FROM events)",
            (0, 1, 0),
        ),
        (
            format!("{keep} events ORDER BY n LIMIT 2; DELETE FROM events WHERE n IN (SELECT n FROM kept)"),
            "INSERT INTO events SELECT * FROM kept",
            (2, 0, 0),
        ),
        (
            format!("{keep} notes ORDER BY id LIMIT 1; DELETE FROM notes WHERE id IN (SELECT id FROM kept)"),
            "INSERT INTO notes SELECT * FROM kept",
            (1, 0, 0),
        ),
        (
            format!("{keep} notes ORDER BY id LIMIT 1; UPDATE notes SET version = 0 WHERE id IN (SELECT id FROM kept)"),
            "UPDATE notes SET version = kept.version FROM kept WHERE notes.id = kept.id",
            (1, 0, 0),
        ),
        // NULL is not an empty text.
        (
            format!(
                "{keep} notes WHERE body IS NULL ORDER BY id LIMIT 1; \
                     UPDATE notes SET body = '' WHERE id IN (SELECT id FROM kept)"
            ),
            "UPDATE notes SET body = NULL WHERE id IN (SELECT id FROM kept)",
            (0, 0, 1),
        ),
        (
            "INSERT INTO notes VALUES (1000000500, 1, 'deleted long ago', 1)".into(),
            "DELETE FROM notes WHERE id = 1000000500",
            (1, 0, 0),
        ),
        (
            "INSERT INTO ledger VALUES (1999999999, 1, NULL, NULL, 0)".into(),
            "DELETE FROM ledger WHERE id = 1999999999",
            (0, 0, 1),
        ),
    ];
    for (fault, remedy, expected) in faults {
        server.sql("shop", &fault).await;
        let found = check().await;
        assert_eq!((found.lost.len(), found.doubled.len(), found.wrong.len()), expected, "{fault}\n{found}");
        server.sql("shop", &format!("{remedy}; DROP TABLE IF EXISTS kept")).await;
        check().await.assert_nothing_lost();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_into_a_server_that_no_longer_owns_the_database_are_found() {
    let (_owner, owner) = server_with_tables("owner").await;
    let (_stale, stale) = server_with_tables("stale").await;
    let checker = Checker::start(&[owner.clone(), stale], &CheckerOptions::default());
    checker.acknowledges(100).await;
    let report = checker.finish(&owner).await;
    // Every second client wrote where nobody looks any more.
    assert!(report.lost.len() > report.acknowledged / 4 && report.doubled.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_an_older_state_is_found() {
    let (server, address) = server_with_tables("reads").await;
    let options = CheckerOptions { notes: 2, ..CheckerOptions::default() };
    let checker = Checker::start(std::slice::from_ref(&address), &options);
    checker.acknowledges(100).await;
    server.sql("shop", "UPDATE notes SET version = version - 1").await;
    checker.acknowledges(400).await;
    let report = checker.finish(&address).await;
    assert!(!report.wrong.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_connection_left_unknown_is_found_out() {
    let (mut server, _) = server_with_tables("unknown").await;
    let mut pooler = Pooler::start("unknown", &[("shop", &server.address("shop"))]).await;
    let proxy = Proxy::to(pooler.port()).await;
    let address = pooler.app_address("shop").through(proxy.port());
    let options = CheckerOptions { attempt_timeout: Duration::from_secs(2), ..CheckerOptions::default() };
    let checker = Checker::start(&[address], &options);
    for _ in 0..4 {
        checker.acknowledges(60).await;
        proxy.cut();
        proxy.heal();
    }
    checker.acknowledges(60).await;
    proxy.hang();
    sleep(Duration::from_secs(3)).await;
    proxy.heal();
    checker.acknowledges(60).await;
    pooler.kill9();
    pooler.start_again().await;
    checker.acknowledges(60).await;
    server.kill9();
    server.start_again().await;
    checker.acknowledges(60).await;
    let report = checker.finish(&server.app_address("shop")).await;
    report.assert_nothing_lost();
    assert!(report.failed > 4 && report.unknown_resolved > 0 && report.undecided == 0, "{report}");
    assert!(
        report.errors.len() >= report.failed && report.latencies.longest() > Duration::from_millis(500),
        "{report}"
    );
}
