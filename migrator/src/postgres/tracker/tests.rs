use super::*;
use crate::cause::with_causes;
use crate::postgres::pgoutput::Key;
use crate::postgres::test_server::{LIMIT, TestServer};
use std::collections::BTreeSet;
use tokio_postgres::Client;

/// A database with tables, a publication of all of them and a tracker.
async fn tracked(server: &TestServer, tables: &str) -> (String, Client, ChangeTracker) {
    tracked_with(server, tables, Limits::default()).await
}

async fn tracked_with(server: &TestServer, tables: &str, limits: Limits) -> (String, Client, ChangeTracker) {
    let database = server.database().await;
    let session = server.session(&database).await;
    session.batch_execute(&format!("{tables}; CREATE PUBLICATION p FOR ALL TABLES")).await.unwrap();
    let slot = TrackedSlot::Temporary(format!("tracker_{database}"));
    let tracker = ChangeTracker::start(&server.params(&database), slot, "p", limits, LIMIT).await.unwrap();
    (database, session, tracker)
}

async fn log_end(session: &Client) -> Lsn {
    let row = session.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    row.get::<_, String>(0).parse().unwrap()
}

/// Runs `sql` and takes what changed.
async fn changed_by(session: &Client, tracker: &ChangeTracker, sql: &str) -> Changed {
    session.batch_execute(sql).await.unwrap();
    let end = log_end(session).await;
    tracker.wait_until(end, LIMIT).await.unwrap();
    tracker.take().unwrap()
}

fn key(values: &[Option<&str>]) -> Key {
    values.iter().map(|v| v.map(str::to_owned)).collect()
}

/// The only changed table's key columns and keys.
fn only(changed: &Changed, schema: &str, table: &str) -> (Vec<String>, BTreeSet<Key>) {
    assert_eq!(changed.tables.keys().collect::<Vec<_>>(), [&(schema.to_owned(), table.to_owned())]);
    match changed.tables.values().next() {
        Some(ChangedKeys::Keys { columns, keys, .. }) => (columns.clone(), keys.clone()),
        other => panic!("{other:?}"),
    }
}

fn keys(keys: &[&[Option<&str>]]) -> BTreeSet<Key> {
    keys.iter().map(|k| key(k)).collect()
}

#[tokio::test]
async fn inserts_updates_deletes_and_key_changes_are_seen_with_their_keys() {
    let Some(server) = TestServer::shared() else { return };
    let (_, session, tracker) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let changed = changed_by(&session, &tracker, "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, NULL)").await;
    let (columns, inserted) = only(&changed, "public", "t");
    assert_eq!(columns, ["id"]);
    assert_eq!(inserted, keys(&[&[Some("1")], &[Some("2")], &[Some("3")]]));
    assert!(changed.seen_up_to > Lsn(0) && changed.seen_up_to <= log_end(&session).await);

    let changed = changed_by(&session, &tracker, "UPDATE t SET v = 'x' WHERE id = 2").await;
    assert_eq!(only(&changed, "public", "t").1, keys(&[&[Some("2")]]));
    let changed = changed_by(&session, &tracker, "UPDATE t SET id = 30 WHERE id = 3").await;
    assert_eq!(only(&changed, "public", "t").1, keys(&[&[Some("3")], &[Some("30")]]));
    let changed = changed_by(&session, &tracker, "DELETE FROM t WHERE id = 1").await;
    assert_eq!(only(&changed, "public", "t").1, keys(&[&[Some("1")]]));

    let rolled_back = "BEGIN; INSERT INTO t VALUES (8); SAVEPOINT s; INSERT INTO t VALUES (9); ROLLBACK TO s; COMMIT;
                       BEGIN; DELETE FROM t; ROLLBACK";
    let changed = changed_by(&session, &tracker, rolled_back).await;
    assert_eq!(only(&changed, "public", "t").1, keys(&[&[Some("8")]]));
    let nothing = changed_by(&session, &tracker, "SELECT 1").await;
    assert!(nothing.tables.is_empty(), "{nothing:?}");
    tracker.stop(LIMIT).await.unwrap();
}

#[tokio::test]
async fn odd_names_composite_keys_and_full_identity_are_exact() {
    let Some(server) = TestServer::shared() else { return };
    // Settings of a database must not decide how a key is written.
    let odd = r#"DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kathmandu''', current_database());
            EXECUTE format('ALTER DATABASE %I SET DateStyle = ''German''', current_database());
        END $$;
        CREATE SCHEMA "S ""1"", ä";
        CREATE TABLE "S ""1"", ä"."T'able ☃" ("Value" text, "K 2" text, "k""1" timestamptz, PRIMARY KEY ("k""1", "K 2"))"#;
    let (_, session, tracker) = tracked(&server, odd).await;
    let insert =
        r#"INSERT INTO "S ""1"", ä"."T'able ☃" VALUES ('v', E'O''Brien "x", \\ ☃', '2024-05-06 07:08:09.123456+02')"#;
    let changed = changed_by(&session, &tracker, insert).await;
    let (columns, found) = only(&changed, "S \"1\", ä", "T'able ☃");
    assert_eq!(columns, ["K 2", "k\"1"], "in the order of the table, not of the key");
    assert_eq!(found, keys(&[&[Some("O'Brien \"x\", \\ ☃"), Some("2024-05-06 05:08:09.123456+00")]]));

    let full = "CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL; INSERT INTO f VALUES (1, NULL)";
    let changed = changed_by(&session, &tracker, full).await;
    let (columns, found) = only(&changed, "public", "f");
    assert_eq!((columns, found), (vec!["a".into(), "b".into()], keys(&[&[Some("1"), None]])));
    let changed = changed_by(&session, &tracker, "UPDATE f SET b = '' WHERE a = 1").await;
    assert_eq!(only(&changed, "public", "f").1, keys(&[&[Some("1"), None], &[Some("1"), Some("")]]));
    let changed = changed_by(&session, &tracker, "DELETE FROM f").await;
    assert_eq!(only(&changed, "public", "f").1, keys(&[&[Some("1"), Some("")]]));

    let index = "CREATE TABLE i (a int, b int NOT NULL UNIQUE); ALTER TABLE i REPLICA IDENTITY USING INDEX i_b_key;
                 INSERT INTO i VALUES (1, 2)";
    let changed = changed_by(&session, &tracker, index).await;
    assert_eq!(only(&changed, "public", "i"), (vec!["b".into()], keys(&[&[Some("2")]])));
}

#[tokio::test]
async fn a_key_stored_apart_from_its_row_is_known_when_only_the_rest_changes() {
    let Some(server) = TestServer::shared() else { return };
    let table = "CREATE TABLE t (id text PRIMARY KEY, v int); ALTER TABLE t ALTER id SET STORAGE EXTERNAL";
    let (_, session, tracker) = tracked(&server, table).await;
    let long = "x".repeat(2500);
    changed_by(&session, &tracker, &format!("INSERT INTO t VALUES ('{long}', 1)")).await;
    let apart: i64 = session
        .query_one("SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 't'", &[])
        .await
        .unwrap()
        .get(0);
    assert!(apart > 0, "the key is stored apart");
    let changed = changed_by(&session, &tracker, "UPDATE t SET v = 2").await;
    assert_eq!(only(&changed, "public", "t").1, keys(&[&[Some(&long)]]));
}

#[tokio::test]
async fn what_cannot_be_told_by_key_makes_the_whole_table_count() {
    let Some(server) = TestServer::shared() else { return };
    let tables =
        "CREATE TABLE t (id int PRIMARY KEY, code int NOT NULL); CREATE TABLE child (id int PRIMARY KEY REFERENCES t);
                  CREATE TABLE keyless (v int); CREATE TABLE many (id int PRIMARY KEY)";
    let limits = Limits { keys: 100, ..Limits::default() };
    let (_, session, tracker) = tracked_with(&server, tables, limits).await;
    let why = |changed: &Changed, table: &str| match changed.tables.get(&("public".to_owned(), table.to_owned())) {
        Some(ChangedKeys::WholeTable(why)) => Some(*why),
        _ => None,
    };
    let changed =
        changed_by(&session, &tracker, "INSERT INTO t VALUES (1, 1); TRUNCATE t CASCADE; INSERT INTO t VALUES (2, 2)")
            .await;
    assert_eq!((why(&changed, "t"), why(&changed, "child")), (Some(Why::Truncated), Some(Why::Truncated)));
    let changed = changed_by(&session, &tracker, "INSERT INTO keyless VALUES (1)").await;
    assert_eq!(why(&changed, "keyless"), Some(Why::NoKey));
    let changed = changed_by(&session, &tracker, "INSERT INTO many SELECT generate_series(1, 100)").await;
    assert_eq!(only(&changed, "public", "many").1.len(), 100);
    let changed = changed_by(&session, &tracker, "INSERT INTO many SELECT generate_series(101, 201)").await;
    assert_eq!(why(&changed, "many"), Some(Why::TooMany), "in one transaction");
    let two = "DELETE FROM many WHERE id <= 60; DELETE FROM many WHERE id <= 120";
    let changed = changed_by(&session, &tracker, two).await;
    assert_eq!(why(&changed, "many"), Some(Why::TooMany), "in two");
    let other_key =
        "UPDATE t SET code = 3; ALTER TABLE t DROP CONSTRAINT t_pkey CASCADE; ALTER TABLE t ADD PRIMARY KEY (code);
                     UPDATE t SET id = 3";
    let statements: Vec<_> = other_key.split(';').collect();
    let (last, first) = statements.split_last().unwrap();
    for statement in first {
        session.batch_execute(statement).await.unwrap();
    }
    let changed = changed_by(&session, &tracker, last).await;
    assert_eq!(why(&changed, "t"), Some(Why::KeyColumnsChanged));
}

#[tokio::test]
async fn nothing_is_missed_or_late_while_others_write() {
    let Some(server) = TestServer::shared() else { return };
    let (database, session, tracker) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut writers = Vec::new();
    for writer in 0..3 {
        let session = server.session(&database).await;
        writers.push(tokio::spawn(async move {
            for id in 0..300 {
                session.batch_execute(&format!("INSERT INTO t VALUES ({})", writer * 1000 + id)).await.unwrap();
            }
        }));
    }
    let (mut seen, mut waits, mut last) = (BTreeSet::new(), Vec::new(), Lsn(0));
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let rows = session.query("SELECT id::text FROM t", &[]).await.unwrap();
        waits.push(timed(all_seen(&session, &tracker)).await);
        let changed = tracker.take().unwrap();
        assert!(changed.seen_up_to >= last, "never goes back");
        last = changed.seen_up_to;
        for table in changed.tables.values() {
            let ChangedKeys::Keys { keys, .. } = table else { panic!("{table:?}") };
            seen.extend(keys.iter().cloned());
        }
        for row in rows {
            assert!(seen.contains(&vec![Some(row.get::<_, String>(0))]), "committed before {last}");
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    tracker.wait_until(log_end(&session).await, LIMIT).await.unwrap();
    for table in tracker.take().unwrap().tables.into_values() {
        let ChangedKeys::Keys { keys, .. } = table else { panic!("{table:?}") };
        seen.extend(keys);
    }
    assert_eq!(seen.len(), 900);
    report("busy", waits);
}

#[tokio::test]
async fn on_an_idle_server_waiting_takes_milliseconds() {
    let Some(server) = TestServer::own() else { return };
    let (_, session, tracker) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int)").await;
    let mut waits = Vec::new();
    for id in 0..50 {
        session.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await.unwrap();
        waits.push(timed(all_seen(&session, &tracker)).await);
        // Again with nothing written in between, and for a change that is not published.
        tracker.wait_until(log_end(&session).await, LIMIT).await.unwrap();
        session.batch_execute("SELECT pg_logical_emit_message(true, 'x', 'y')").await.unwrap();
        waits.push(timed(all_seen(&session, &tracker)).await);
    }
    report("idle", waits);
    let future = Lsn(log_end(&session).await.0 + (1 << 20));
    let error = tracker.wait_until(future, Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, TrackerError::TooSlow { wanted, .. } if wanted == future), "{error}");
}

/// Asks where the log ends and waits until everything up to there has been seen: what the fence waits for.
async fn all_seen(session: &Client, tracker: &ChangeTracker) -> Result<(), TrackerError> {
    tracker.wait_until(log_end(session).await, LIMIT).await
}

/// Seconds that a wait took.
#[allow(clippy::disallowed_methods, reason = "a measurement, not behaviour")]
async fn timed(wait: impl Future<Output = Result<(), TrackerError>>) -> f64 {
    let begun = std::time::Instant::now();
    wait.await.unwrap();
    begun.elapsed().as_secs_f64()
}

fn report(server: &str, mut waits: Vec<f64>) {
    waits.sort_by(f64::total_cmp);
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    eprintln!(
        "waits while the server is {server}: {} of them, median {:.3} ms, longest {:.3} ms",
        waits.len(),
        median * 1e3,
        longest * 1e3
    );
    assert!(median < 0.1, "median {median} s");
}

#[tokio::test]
async fn a_position_just_past_the_header_of_a_block_is_reached() {
    let Some(server) = TestServer::own() else { return };
    let (_, session, tracker) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    // Fill the log up to the end of a block: a record takes its overhead and its text, in steps of 8 bytes.
    const EMIT: &str = "SELECT pg_logical_emit_message(false, '', repeat('x', $1))";
    for _ in 0..200 {
        let left = 8192 - log_end(&session).await.0 % 8192;
        if let Some(fill) = left.checked_sub(OVERHEAD).filter(|n| *n > 300) {
            session.execute(EMIT, &[&i32::try_from(fill).unwrap()]).await.unwrap();
        } else {
            session.execute(EMIT, &[&500]).await.unwrap();
        }
        let end = log_end(&session).await;
        if matches!(end.0 % 8192, 24 | 40) {
            tracker.wait_until(end, LIMIT).await.unwrap();
            assert!(tracker.seen_up_to().unwrap() < end, "it was the end of the block that was reached");
            return;
        }
    }
    panic!("no record ended with its block");
}

/// Of an emitted message in the log, with a text of more than 255 bytes: header of the record (24) and of its data (5),
/// header of the message (24) and the end of its prefix (1).
const OVERHEAD: u64 = 54;

#[tokio::test]
async fn the_reason_of_an_end_is_kept_for_every_later_call() {
    let Some(mut server) = TestServer::own() else { return };
    let (_, session, tracker) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let end = log_end(&session).await;
    tracker.wait_until(end, LIMIT).await.unwrap();
    server.kill();
    let error = tracker.wait_until(Lsn(u64::MAX), LIMIT).await.unwrap_err();
    assert!(matches!(error, TrackerError::Lost(_)), "{}", with_causes(&error));
    for _ in 0..2 {
        assert!(matches!(tracker.take(), Err(TrackerError::Lost(_))));
    }
    assert!(matches!(tracker.stop(LIMIT).await, Err(TrackerError::Lost(_))));
}

#[tokio::test]
async fn a_publication_that_does_not_exist_is_told_at_the_first_change() {
    let Some(server) = TestServer::shared() else { return };
    let (_, session, tracker) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    session.batch_execute("DROP PUBLICATION p; INSERT INTO t VALUES (1)").await.unwrap();
    let error = tracker.wait_until(log_end(&session).await, LIMIT).await.unwrap_err();
    let text = with_causes(&error);
    assert!(text.contains("publication \"p\" does not exist") && text.contains("42704"), "{text}");
}

#[tokio::test]
async fn a_slot_is_free_when_the_tracker_has_stopped_and_gone_if_it_was_temporary() {
    let Some(server) = TestServer::shared() else { return };
    let (database, session, temporary) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let params = server.params(&database);
    let mut connection = ReplicationConnection::connect(&params, LIMIT).await.unwrap();
    let name = format!("lasting_{database}");
    connection.create_logical_slot(&name, SlotLife::Lasting, LIMIT).await.unwrap();
    session.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    for id in 1..=2 {
        let slot = TrackedSlot::Existing(name.clone());
        let tracker = ChangeTracker::start(&params, slot, "p", Limits::default(), LIMIT).await.unwrap();
        tracker.wait_until(log_end(&session).await, LIMIT).await.unwrap();
        let changed = tracker.take().unwrap();
        assert_eq!(only(&changed, "public", "t").1, keys(&[&[Some(&id.to_string())]]), "what was seen was confirmed");
        tracker.stop(LIMIT).await.unwrap();
        session.batch_execute(&format!("INSERT INTO t VALUES ({})", id + 1)).await.unwrap();
    }
    connection.drop_slot(&name, LIMIT).await.unwrap();
    temporary.stop(LIMIT).await.unwrap();
    let left = session.query("SELECT 1 FROM pg_replication_slots WHERE database = $1", &[&database]).await.unwrap();
    assert!(left.is_empty());
}

#[tokio::test]
async fn dropping_a_tracker_ends_its_session() {
    let Some(server) = TestServer::shared() else { return };
    let (database, session, tracker) = tracked(&server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    drop(tracker);
    let slots = "SELECT 1 FROM pg_replication_slots WHERE database = $1";
    for _ in 0..1000 {
        if session.query(slots, &[&database]).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the temporary slot is still there");
}
