use foreshard_domain::MigrationId;
use std::time::Duration;
use tokio::time::Instant;

use super::{CopyBetween, CopyError, SnapshotCopy};
use crate::postgres::names::Names;
use crate::postgres::session::Session;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::test_pair::TestPair;
use crate::{BackendError, Way};

const LIMIT: Duration = Duration::from_secs(20);

/// A shard with a table of some hundred pages and a small one, and the empty tables on the target.
struct Shard {
    source: Session,
    target: Session,
    between: CopyBetween,
    names: Names,
}

impl Shard {
    async fn new(pair: &TestPair, rows: u32) -> Self {
        let shard = pair.source.database().await;
        let names = Names::new(&MigrationId::new(&shard).unwrap());
        let (source, server) = (pair.on_source(&shard).await, pair.on_target("postgres").await);
        server.run("database", &format!("CREATE DATABASE {shard}")).await.unwrap();
        let target = pair.on_target(&shard).await;
        let tables = "CREATE TABLE public.big (id int PRIMARY KEY, v text); CREATE TABLE public.small (id int)";
        source.run("tables", tables).await.unwrap();
        // Without a key on the target: a row that is written twice must show, not fail.
        target.run("tables", &tables.replace("PRIMARY KEY", "")).await.unwrap();
        let fill = format!(
            "INSERT INTO public.big SELECT g, repeat(md5(g::text), 10) FROM generate_series(1, {rows}) g; \
             INSERT INTO public.small VALUES (1), (2)"
        );
        source.run("rows", &fill).await.unwrap();
        let between = CopyBetween {
            source: pair.source_place(),
            target: pair.target_place(),
            shard,
            application: names.application(),
        };
        Self { source, target, between, names }
    }

    async fn begin(&self, settings: &PostgresSettings) -> SnapshotCopy {
        SnapshotCopy::begin(self.between.clone(), &self.names.slot(Way::There), settings, LIMIT).await.unwrap()
    }

    async fn rows(session: &Session) -> Vec<Vec<Option<String>>> {
        let sql = "SELECT count(*), count(DISTINCT id), sum(hashtextextended(b::text, 0)) FROM public.big b \
                   UNION ALL SELECT count(*), count(DISTINCT id), sum(hashtextextended(s::text, 0)) FROM public.small s";
        session.texts("rows", sql).await.unwrap()
    }
}

fn small_pieces() -> PostgresSettings {
    PostgresSettings { copy_piece_bytes: 64 << 10, ..PostgresSettings::default() }
}

/// Copies to the end through errors that pass; how many there were.
async fn finish(copy: &SnapshotCopy) -> usize {
    let mut errors = 0;
    loop {
        match copy.next().await {
            Ok(copied) if copied.left == 0 => return errors,
            Ok(_) => {}
            Err(CopyError::Failed(BackendError::Transient { .. })) if errors < 100 => errors += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_after_the_snapshot_is_not_copied() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = Shard::new(&pair, 2_000).await;
    let before = Shard::rows(&shard.source).await;
    let copy = shard.begin(&small_pieces()).await;
    let writes = "UPDATE public.big SET v = v || 'x'; DELETE FROM public.big WHERE id < 100; \
                  INSERT INTO public.big SELECT g, 'new' FROM generate_series(10001, 12000) g; VACUUM public.big";
    for write in writes.split(';') {
        shard.source.run("writes", write).await.unwrap();
    }
    assert_eq!(finish(&copy).await, 0);
    assert_eq!(Shard::rows(&shard.target).await, before);
    assert!(copy.is_alive());
    assert_eq!(copy.next().await.unwrap(), super::Copied::default());
    let slot = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{}'", shard.names.slot(Way::There));
    assert_eq!(shard.source.texts("slot", &slot).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_is_lost_or_copied_twice_when_connections_break_and_calls_are_dropped() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = Shard::new(&pair, 60_000).await;
    let before = Shard::rows(&shard.source).await;
    let copy = shard.begin(&small_pieces()).await;
    let killer = async {
        let (source, target) = (pair.on_source("postgres").await, pair.on_target("postgres").await);
        let kill = |kind: &str| {
            format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND backend_type = '{kind}' \
                 AND application_name = '{}'",
                shard.between.shard,
                shard.names.application()
            )
        };
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            source.texts("kill", &kill("client backend")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
            target.texts("kill", &kill("client backend")).await.unwrap();
        }
    };
    let copier = async {
        let mut dropped = 0;
        for n in 0..40 {
            let limit = Duration::from_millis(40 + 10 * n);
            match tokio::time::timeout(limit, copy.next()).await {
                Err(_) => dropped += 1,
                Ok(Ok(_) | Err(CopyError::Failed(BackendError::Transient { .. }))) => {}
                Ok(Err(error)) => panic!("{error:?}"),
            }
        }
        dropped
    };
    let ((), dropped) = tokio::join!(killer, copier);
    let broken = finish(&copy).await;
    eprintln!("{dropped} calls were dropped, {broken} broke after them");
    assert!(dropped > 0);
    assert_eq!(Shard::rows(&shard.target).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_gets_a_new_file_is_copied_again() {
    let Some(pair) = TestPair::shared() else { return };
    for (change, what) in [("VACUUM FULL public.big", "rewritten"), ("TRUNCATE public.big", "emptied")] {
        let shard = Shard::new(&pair, 30_000).await;
        let before = Shard::rows(&shard.source).await;
        shard.source.run("holes", "DELETE FROM public.big WHERE id % 3 = 0").await.unwrap();
        let between = Shard::rows(&shard.source).await;
        let copy = shard.begin(&small_pieces()).await;
        copy.set_pace(Some(2e6));
        let copied = copy.next().await.unwrap();
        assert!(copied.left > 0 && copied.rows > 100, "{copied:?}");
        copy.set_pace(None);
        // Must not wait for the copy.
        shard.source.run("lock timeout", "SET lock_timeout = '1s'").await.unwrap();
        shard.source.run("change", change).await.unwrap();
        assert_eq!(finish(&copy).await, 0);
        let after = Shard::rows(&shard.target).await;
        match what {
            "rewritten" => assert_eq!(after, between),
            // The truncation comes after the snapshot and is in the stream, whatever the copy saw.
            _ => assert_eq!(after[0][0].as_deref(), Some("0")),
        }
        assert_ne!(before, between);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_the_target_lost_are_copied_again() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = Shard::new(&pair, 30_000).await;
    let before = Shard::rows(&shard.source).await;
    let copy = shard.begin(&small_pieces()).await;
    copy.set_pace(Some(2e6));
    let copied = copy.next().await.unwrap();
    assert!(copied.left > 0 && copied.rows > 100, "{copied:?}");
    // As after a crash: what was committed last is gone.
    shard.target.run("loss", "TRUNCATE public.big; DELETE FROM foreshard.copied").await.unwrap();
    copy.set_pace(None);
    finish(&copy).await;
    assert_eq!(Shard::rows(&shard.target).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_snapshot_is_told_from_other_errors() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = Shard::new(&pair, 30_000).await;
    let copy = shard.begin(&small_pieces()).await;
    copy.set_pace(Some(1e6));
    copy.next().await.unwrap();
    let kill = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND application_name = '{}'",
        shard.between.shard,
        shard.names.application()
    );
    shard.source.texts("kill", &kill).await.unwrap();
    // The readers may end before the connection that holds the snapshot: then the call after tells.
    let error = loop {
        match copy.next().await.unwrap_err() {
            CopyError::Failed(BackendError::Transient { .. }) => {}
            error => break error,
        }
    };
    assert!(matches!(error, CopyError::Lost { .. }), "{error:?}");
    // A reader may be told before the connection that holds the snapshot is found to be closed.
    for _ in 0..100 {
        if !copy.is_alive() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!copy.is_alive());
    drop(copy);

    // Rows of the first copy must not stay beside those of a second one.
    let sql = format!("SELECT pg_drop_replication_slot('{}')", shard.names.slot(Way::There));
    shard.source.texts("slot", &sql).await.unwrap();
    let again = shard.begin(&small_pieces()).await;
    let error = again.next().await.unwrap_err();
    assert!(error.to_string().contains("rows of another copy"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_keeps_its_pace_and_its_calls_stay_short() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = Shard::new(&pair, 20_000).await;
    let settings = PostgresSettings { copy_bytes_per_s: Some(1e6), ..PostgresSettings::default() };
    let copy = shard.begin(&settings).await;
    let began = Instant::now();
    let copied = copy.next().await.unwrap();
    let took = began.elapsed();
    let rate = copied.bytes as f64 / took.as_secs_f64();
    assert!((3e5..=1.5e6).contains(&rate), "{copied:?} in {took:?}");
    assert!(took < Duration::from_secs(10), "a piece of the default size would take 16 s: {took:?}");
    copy.set_pace(None);
    finish(&copy).await;
    assert_eq!(Shard::rows(&shard.target).await, Shard::rows(&shard.source).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_is_read_by_several_statements_is_whole_in_either_format() {
    let Some(pair) = TestPair::shared() else { return };
    for (column, is_binary) in [("n int DEFAULT 7", true), ("n regtype DEFAULT 'int4'", false)] {
        let shard = Shard::new(&pair, 10_000).await;
        for side in [&shard.source, &shard.target] {
            side.run("a column", &format!("ALTER TABLE public.big ADD COLUMN {column}")).await.unwrap();
        }
        // Whole ranges of pages without a row: their statements answer with nothing but header and trailer.
        let holes = "DELETE FROM public.big WHERE id BETWEEN 4000 AND 7000";
        shard.source.run("holes", holes).await.unwrap();
        // The least that a statement reads is about a 32nd of the table, which is one piece.
        let settings = PostgresSettings { copy_bytes_per_s: Some(8e6), ..PostgresSettings::default() };
        let copy = shard.begin(&settings).await;
        let big = copy.work().tables.iter().find(|t| t.table.name == "big").cloned().unwrap();
        assert_eq!(big.is_binary, is_binary);
        assert!(big.bytes > 24 * super::piece::LEAST_STEP, "{big:?}");
        finish(&copy).await;
        let statements = copy.statements.load(std::sync::atomic::Ordering::Relaxed);
        assert!(statements > 20, "the whole table was read by {statements} statements");
        assert_eq!(Shard::rows(&shard.target).await, Shard::rows(&shard.source).await, "{column}");
    }
}
