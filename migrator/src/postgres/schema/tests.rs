use foreshard_domain::MigrationId;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::database::{Opening, create_database};
use super::programs::Programs;
use super::restore::RestoreTo;
use super::{Dump, DumpFrom, Stage, held};
use crate::BackendError;
use crate::postgres::catalog;
use crate::postgres::copy::{CopyBetween, SnapshotCopy};
use crate::postgres::names::Names;
use crate::postgres::session::{Place, Session, ident, literal};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::test_pair::TestPair;
use crate::{BackendError::Permanent, Way};

const NASTY: &str = include_str!("nasty.sql");

/// What both servers have in common: roles belong to no database.
async fn roles(pair: &TestPair) {
    for place in [pair.source_place(), pair.target_place()] {
        let server = place.open("postgres", "foreshard tests").await.unwrap();
        server.run("roles", "CREATE ROLE app_owner; CREATE ROLE app_reader LOGIN").await.unwrap();
    }
}

/// The dump of a database as text, without what differs from run to run.
fn dumped(place: &Place, database: &str) -> String {
    let mut command = Command::new("/usr/lib/postgresql/15/bin/pg_dump");
    command.args(["--create", "--schema-only", "--exclude-schema=foreshard", "--no-publications", "-h"]);
    command.args([&place.address.host, "-p", &place.address.port.to_string(), "-U", &place.login.user, "-d"]);
    let output = command.arg(format!("dbname='{}'", database.replace('\'', "\\'"))).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let differs = |line: &str| line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
    text.lines().filter(|line| !differs(line)).map(|line| format!("{line}\n")).collect()
}

/// Number of rows and the sum of their hashes, of each table and materialised view.
async fn hashes(session: &Session) -> Vec<(String, Option<String>)> {
    let mut names: Vec<String> = catalog::tables(session).await.unwrap().iter().map(catalog::Table::sql).collect();
    let views = "SELECT format('%I.%I', schemaname, matviewname) FROM pg_matviews WHERE ispopulated ORDER BY 1";
    names.extend(session.texts("views", views).await.unwrap().into_iter().flatten().flatten());
    let mut hashes = Vec::new();
    for name in names {
        let sql =
            format!("SELECT count(*) || ' ' || COALESCE(sum(hashtextextended(t::text, 0)), 0) FROM ONLY {name} t");
        let row = session.texts("hashing", &sql).await.unwrap().remove(0).remove(0);
        hashes.push((name, row));
    }
    hashes
}

async fn copy_all(copy: &SnapshotCopy) -> (u64, u64) {
    let (mut rows, mut bytes) = (0, 0);
    loop {
        let copied = copy.next().await.unwrap();
        rows += copied.rows;
        bytes += copied.bytes;
        if copied.left == 0 {
            return (rows, bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nasty_database_arrives_as_it_was() {
    let Some(pair) = TestPair::own() else { return };
    roles(&pair).await;
    let shard = "na'sty \"=.Db";
    let name = ident(shard);
    let (source_server, target_server) = (pair.on_source("postgres").await, pair.on_target("postgres").await);
    source_server.run("database", &format!("CREATE DATABASE {name} TEMPLATE template0")).await.unwrap();
    let source = pair.on_source(shard).await;
    source.run("search path", "SET search_path = public").await.unwrap();
    for statement in [NASTY.to_owned(), about_database(&name)] {
        source.run("making it nasty", &statement).await.unwrap();
    }
    source.run("search path", "SET search_path = pg_catalog").await.unwrap();
    let (before, expected) = (hashes(&source).await, dumped(&pair.source_place(), shard));

    let names = Names::new(&MigrationId::new("nasty").unwrap());
    create_database(&source, &target_server, &names).await.unwrap();
    create_database(&source, &target_server, &names).await.unwrap();
    let another = Names::new(&MigrationId::new("another").unwrap());
    assert!(matches!(create_database(&source, &target_server, &another).await, Err(Permanent { .. })));
    let flows = "SELECT FROM pg_db_role_setting, unnest(setconfig) s JOIN pg_database d ON d.datname = current_database() \
                 WHERE setdatabase = d.oid AND s = 'backend_flush_after=512kB'";
    let while_filled = pair.on_target(shard).await.texts("looking", flows).await.unwrap();
    assert_eq!(while_filled.len(), 1, "what is written while it is filled flows to the disk");
    shut_to_others(&pair, shard).await;

    let settings = PostgresSettings { copy_piece_bytes: 1 << 16, ..PostgresSettings::default() };
    let between = CopyBetween {
        source: pair.source_place(),
        target: pair.target_place(),
        shard: shard.into(),
        application: names.application(),
    };
    let copy = SnapshotCopy::begin(between, &names.slot(Way::There), &settings, Duration::from_secs(20)).await.unwrap();
    let programs = Programs::find(Path::new(""), 15).await.unwrap();
    let place = pair.source_place();
    let from =
        DumpFrom { place: &place, source: &source, application: "foreshard dump", snapshot: Some(copy.snapshot()) };
    let dump = Dump::take(programs, &from).await.unwrap();
    let (target, target_place) = (pair.on_target(shard).await, pair.target_place());
    let to =
        RestoreTo { place: &target_place, target: &target, source: &source, application: "foreshard restore", jobs: 2 };
    // Everything twice: a call whose answer was lost is repeated.
    for _ in 0..2 {
        dump.restore_before_data(&to).await.unwrap();
    }
    source.run("a later row", "INSERT INTO public.notes (what) VALUES ('after the snapshot')").await.unwrap();
    let (rows, bytes) = copy_all(&copy).await;
    assert_eq!(rows, counted(&before), "{bytes} bytes");
    assert!(bytes > 15 << 20, "{bytes}");
    for stage in [Stage::Keys, Stage::Indexes, Stage::Rest] {
        for _ in 0..2 {
            dump.restore_stage(&to, stage).await.unwrap();
        }
    }
    let firing = "SELECT tgname FROM pg_trigger WHERE tgenabled IN ('R', 'A')";
    assert!(target.texts("triggers", firing).await.unwrap().is_empty(), "none may fire on what is applied");
    for _ in 0..2 {
        dump.fill_views(&source, &target).await.unwrap();
    }
    let mut opening = held::enabling(&source).await.unwrap();
    opening.extend(Opening::read(&source).await.unwrap().statements(shard));
    target.run("opening", &opening.join(";")).await.unwrap();

    assert_eq!(hashes(&target).await, before);
    let (expected, arrived) = (without_guard(&expected), dumped(&target_place, shard));
    let differing = expected.lines().zip(arrived.lines()).find(|(a, b)| a != b);
    assert_eq!(expected, arrived, "first: {differing:?}");
}

/// Properties of the database that no dump of its schema holds.
fn about_database(name: &str) -> String {
    format!(
        "ALTER DATABASE {name} OWNER TO app_owner; ALTER DATABASE {name} CONNECTION LIMIT 33; \
         ALTER DATABASE {name} SET search_path = public, \"Übel \"\"x\"\".y\"; ALTER DATABASE {name} SET backend_flush_after = 8; \
         ALTER DATABASE {name} SET work_mem = '7MB'; \
         ALTER DATABASE {name} SET my.own = 'it''s'; ALTER ROLE app_reader IN DATABASE {name} SET statement_timeout = '9s'; \
         REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC; GRANT CREATE ON DATABASE {name} TO app_reader WITH GRANT OPTION; \
         COMMENT ON DATABASE {name} IS 'their own'"
    )
}

fn counted(hashes: &[(String, Option<String>)]) -> u64 {
    // Materialised views come without rows; `format` quotes only what needs it.
    let tables = hashes.iter().filter(|(name, _)| name.starts_with('"'));
    tables.filter_map(|(_, text)| text.as_deref()?.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// The guard's trigger is the move's own and must not be on the other side.
fn without_guard(dump: &str) -> String {
    let mut kept = String::new();
    for part in dump.split("\n--\n-- Name: ") {
        if part.starts_with("tree foreshard_guard;") || part.starts_with("TRIGGER foreshard_guard ON tree;") {
            continue;
        }
        if !kept.is_empty() {
            kept += "\n--\n-- Name: ";
        }
        kept += part;
    }
    kept
}

async fn shut_to_others(pair: &TestPair, shard: &str) {
    let mut place = pair.target_place();
    place.login.user = "app_reader".into();
    let refused = place.open(shard, "an application").await.err().unwrap();
    let BackendError::Transient { source, .. } = refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("db error"), "{source}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_restore_says_all_and_leaves_nothing_of_its_first_stage() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = pair.source.database().await;
    let source = pair.on_source(&shard).await;
    let sql = "CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int); CREATE ROLE only_here; \
               ALTER TABLE public.b OWNER TO only_here";
    source.run("tables", sql).await.unwrap();
    let names = Names::new(&MigrationId::new("failing").unwrap());
    create_database(&source, &pair.on_target("postgres").await, &names).await.unwrap();
    let (place, target_place, target) = (pair.source_place(), pair.target_place(), pair.on_target(&shard).await);
    let programs = Programs::find(Path::new(""), 15).await.unwrap();
    let from = DumpFrom { place: &place, source: &source, application: "foreshard dump 2", snapshot: None };
    let dump = Dump::take(programs, &from).await.unwrap();
    let to = RestoreTo {
        place: &target_place,
        target: &target,
        source: &source,
        application: "foreshard restore 2",
        jobs: 1,
    };
    let error = dump.restore_before_data(&to).await.unwrap_err().to_string();
    assert!(error.contains("role \"only_here\" does not exist") && error.contains(&shard), "{error}");
    assert_eq!(catalog::tables(&target).await.unwrap(), vec![]);

    target.run("role", "CREATE ROLE only_here").await.unwrap();
    dump.restore_before_data(&to).await.unwrap();
    assert_eq!(catalog::tables(&target).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_dropped_does_not_meet_its_repetition() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = pair.source.database().await;
    let source = pair.on_source(&shard).await;
    source.run("tables", "CREATE TABLE public.a (id int, b text); CREATE INDEX slow ON public.a (b)").await.unwrap();
    let names = Names::new(&MigrationId::new("dropped").unwrap());
    create_database(&source, &pair.on_target("postgres").await, &names).await.unwrap();
    let (place, target_place, target) = (pair.source_place(), pair.target_place(), pair.on_target(&shard).await);
    let programs = Programs::find(Path::new(""), 15).await.unwrap();
    let from = DumpFrom { place: &place, source: &source, application: "foreshard dump 3", snapshot: None };
    let dump = Dump::take(programs, &from).await.unwrap();
    let to = RestoreTo {
        place: &target_place,
        target: &target,
        source: &source,
        application: "foreshard restore 3",
        jobs: 2,
    };
    dump.restore_before_data(&to).await.unwrap();
    // Its index cannot be built while somebody writes.
    let writer = pair.on_target(&shard).await;
    writer.run("a write", "BEGIN; INSERT INTO public.a VALUES (1, 'x')").await.unwrap();
    let call = tokio::time::timeout(Duration::from_secs(2), dump.restore_stage(&to, Stage::Indexes)).await;
    assert!(call.is_err(), "it waits for the writer");
    let left = format!("SELECT 1 FROM pg_stat_activity WHERE application_name = {}", literal("foreshard restore 3"));
    assert!(!target.texts("sessions", &left).await.unwrap().is_empty(), "the server goes on without its client");
    writer.run("the end of the write", "COMMIT").await.unwrap();
    dump.restore_stage(&to, Stage::Indexes).await.unwrap();
    let built =
        target.texts("indexes", "SELECT 1 FROM pg_index WHERE indexrelid = 'public.slow'::regclass AND indisvalid");
    assert_eq!(built.await.unwrap().len(), 1);
}
