use std::time::Duration;

use super::facts::{self, Facts, Locale, Provided, Server, Shard, Transaction};
use super::judge::judge;
use super::{Finding, Sides, findings};
use crate::postgres::catalog::{Column, Table};
use crate::postgres::session::Session;
use crate::postgres::settings::{LongTransactions, PostgresSettings, WithoutKey};
use crate::postgres::test_pair::TestPair;

const MARK: &str = "foreshard fs_0123456789abcdef";

fn server(node: &str) -> Server {
    Server {
        node: node.into(),
        user: "admin".into(),
        is_superuser: true,
        version: 150_018,
        wal_level: "logical".into(),
        free_slots: 4,
        free_senders: 4,
        free_appliers: 2,
        free_workers: 2,
        locks: 6_400,
        free_bytes: Some(100 << 30),
    }
}

fn locale(provider: &str, name: &str, version: Option<&str>) -> Locale {
    Locale { provider: provider.into(), name: name.into(), version: version.map(Into::into) }
}

fn table(identity: char, key: &[&str], types: &[&str]) -> Table {
    let column = |name: &str, type_name: &str| Column { name: name.into(), type_name: type_name.into() };
    Table {
        schema: "s".into(),
        name: "t".into(),
        columns: types.iter().map(|t| column("c", t)).collect(),
        key: key.iter().map(|k| column(k, "integer")).collect(),
        identity,
        pages: 1,
        bytes: 1,
    }
}

/// A move that nothing stands in the way of.
fn clear() -> Facts {
    let locales = vec![locale("c", "en_US.UTF-8", Some("2.36"))];
    let known = locale("c", "en_US.utf8", None).key();
    Facts {
        source: server("a"),
        target: server("b"),
        shard: Shard {
            name: "shop".into(),
            bytes: 10 << 30,
            locales,
            extensions: vec![("hstore".into(), "1.8".into())],
            roles: vec!["app".into()],
            relations: 100,
            tables: vec![table('d', &["id"], &["integer"])],
            ..Shard::default()
        },
        provided: Provided {
            locales: [(known, Some("2.36".into()))].into(),
            extensions: vec![("hstore".into(), "1.7".into()), ("hstore".into(), "1.8".into())],
            ..Provided::default()
        },
        pool_modes: vec![("p1".into(), "transaction".into()), ("p2".into(), "statement".into())],
    }
}

fn codes(facts: &Facts, settings: &PostgresSettings) -> Vec<&'static str> {
    judge(facts, settings, MARK).iter().map(|f| f.code).collect()
}

fn codes_after(change: impl FnOnce(&mut Facts)) -> Vec<&'static str> {
    let mut facts = clear();
    change(&mut facts);
    codes(&facts, &PostgresSettings::default())
}

#[test]
fn a_clear_move_has_no_findings() {
    assert_eq!(codes_after(|_| {}), Vec::<&str>::new());
}

#[test]
fn every_rule_refuses_what_it_is_for() {
    type Change = fn(&mut Facts);
    let rules: &[(&str, Change)] = &[
        ("rights", |f| f.source.is_superuser = false),
        ("rights", |f| f.target.is_superuser = false),
        ("wal_level", |f| f.source.wal_level = "replica".into()),
        ("wal_level", |f| f.target.wal_level = "replica".into()),
        ("slots", |f| f.source.free_slots = 3),
        ("slots", |f| f.target.free_slots = 2),
        ("senders", |f| f.source.free_senders = 3),
        ("senders", |f| f.target.free_senders = 2),
        ("appliers", |f| f.source.free_appliers = 1),
        ("appliers", |f| f.target.free_appliers = 0),
        ("workers", |f| f.source.free_workers = 1),
        ("workers", |f| f.target.free_workers = -1),
        ("locks", |f| f.target.locks = 99),
        ("version", |f| f.target.version = 160_001),
        ("collation", |f| f.provided.locales.clear()),
        ("collation", |f| f.shard.locales.push(locale("i", "und-x-icu", None))),
        ("collation_version", |f| {
            f.provided.locales.insert(locale("c", "en_US.UTF-8", None).key(), Some("2.37".into()));
        }),
        ("extensions", |f| f.provided.extensions.clear()),
        ("extensions", |f| f.shard.extensions.push(("hstore".into(), "1.9".into()))),
        ("extension_rows", |f| f.shard.extension_rows.push("public.spatial_ref_sys".into())),
        ("roles", |f| f.provided.missing_roles.push("app".into())),
        ("tablespaces", |f| f.provided.missing_tablespaces.push("fast".into())),
        ("database", |f| f.provided.database = Some(None)),
        ("database", |f| f.provided.database = Some(Some("foreshard fs_another".into()))),
        ("large_objects", |f| f.shard.large_objects = 1),
        ("unlogged", |f| f.shard.unlogged.push("s.u".into())),
        ("foreign_tables", |f| f.shard.foreign.push("s.f".into())),
        ("temporary", |f| f.shard.temporary.push("x of pid 7".into())),
        ("prepared", |f| f.shard.prepared.push("gid".into())),
        ("without_key", |f| f.shard.tables.push(table('d', &[], &["integer"]))),
        ("without_key", |f| f.shard.tables.push(table('n', &[], &["integer"]))),
        ("identity_index", |f| f.shard.tables.push(table('i', &[], &["integer"]))),
        ("without_equality", |f| f.shard.tables.push(table('f', &[], &["integer", "json"]))),
        ("pool_mode", |f| f.pool_modes.push(("p3".into(), "session".into()))),
        ("subscriptions", |f| f.shard.subscriptions.push("theirs".into())),
        ("publications", |f| f.shard.publications.push("fs_of_another_move".into())),
        ("disk", |f| f.target.free_bytes = Some(11 << 30)),
        ("wal_keep", |f| f.shard.slot_keeps = Some(1 << 29)),
        ("wal_room", |f| f.source.free_bytes = Some(1 << 29)),
    ];
    for (n, (code, change)) in rules.iter().enumerate() {
        let mut facts = clear();
        change(&mut facts);
        let found = judge(&facts, &PostgresSettings::default(), MARK);
        assert_eq!(found.iter().map(|f| f.code).collect::<Vec<_>>(), [*code], "rule {n}");
        assert!(found.iter().all(|f| f.refuses), "rule {n}");
        assert!(!found.iter().any(|f| f.mend.is_empty() || f.to_string().contains('\n')), "rule {n}");
    }
}

#[test]
fn what_does_not_stand_in_the_way_is_let_pass() {
    type Change = fn(&mut Facts);
    let passes: &[Change] = &[
        |f| f.provided.database = Some(Some(MARK.into())),
        |f| f.shard.publications.push("fs_0123456789abcdef_there_pub".into()),
        |f| f.shard.subscriptions.push("fs_0123456789abcdef_back".into()),
        |f| f.shard.locales = vec![locale("c", "C", None), locale("c", "POSIX", None)],
        |f| f.provided.locales = [(locale("c", "en_US.UTF-8", None).key(), None)].into(),
        |f| f.shard.tables.push(table('f', &[], &["integer"])),
        |f| f.shard.slot_keeps = Some(1 << 30),
        |f| {
            f.shard.slot_keeps = Some(3 << 20);
            f.shard.bytes = 12 << 20;
        },
        |f| f.target.version = 150_001,
        |f| f.shard.transactions.push(transaction(1e6)),
    ];
    for (n, change) in passes.iter().enumerate() {
        assert_eq!(codes_after(change), Vec::<&str>::new(), "case {n}");
    }
}

fn transaction(age_s: f64) -> Transaction {
    let (database, application) = ("shop".into(), "report".into());
    Transaction { pid: 7, age_s, database, application, query: "SELECT\n 1".into() }
}

#[test]
fn settings_decide_about_tables_without_keys_and_long_transactions() {
    let mut facts = clear();
    facts.shard.tables.push(table('d', &[], &["integer"]));
    facts.shard.transactions = vec![transaction(59.0), transaction(61.0)];
    let full = PostgresSettings { without_key: WithoutKey::Full, ..PostgresSettings::default() };
    assert_eq!(codes(&facts, &full), Vec::<&str>::new());
    facts.shard.tables.push(table('d', &[], &["xml"]));
    assert_eq!(codes(&facts, &full), ["without_equality"]);
    let long_transactions = LongTransactions::Refuse { after: Duration::from_secs(60) };
    let settings = PostgresSettings { long_transactions, ..full };
    facts.shard.tables.clear();
    let found = judge(&facts, &settings, MARK);
    let [Finding { code: "long_transactions", what, .. }] = found.as_slice() else { panic!("{found:?}") };
    assert!(what.contains("pid 7 for 61 s") && !what.contains("59 s"), "{what}");
}

#[test]
fn what_cannot_be_told_is_a_warning() {
    let mut facts = clear();
    facts.target.free_bytes = None;
    facts.source.free_bytes = None;
    facts.shard.object_numbers = (0..30).map(|n| format!("s.t{n}.c (oid)")).collect();
    let found = judge(&facts, &PostgresSettings::default(), MARK);
    assert_eq!(
        found.iter().map(|f| (f.code, f.refuses)).collect::<Vec<_>>(),
        [("object_numbers", false), ("disk_unknown", false)]
    );
    let text = found[0].to_string();
    assert!(text.starts_with("warning: object_numbers: ") && text.contains("s.t19.c (oid) and 10 more"), "{text}");
}

/// Codes of what is found with real servers.
async fn found(source: &Session, pair: &TestPair, settings: &PostgresSettings, mode: &str) -> Vec<Finding> {
    let (source_server, target_server) = (pair.on_source("postgres").await, pair.on_target("postgres").await);
    let sides = Sides { source, source_server: &source_server, target_server: &target_server };
    findings(&sides, settings, &[("pooler".into(), mode.into())], MARK).await.unwrap()
}

fn what<'a>(found: &'a [Finding], code: &str) -> &'a str {
    let finding = found.iter().find(|f| f.code == code);
    &finding.unwrap_or_else(|| panic!("no {code} in {found:#?}")).what
}

#[tokio::test(flavor = "multi_thread")]
async fn real_servers_are_read_and_everything_is_found_at_once() {
    let Some(pair) = TestPair::own() else { return };
    let shard = pair.source.database().await;
    let source = pair.on_source(&shard).await;
    source.run("a good table", "CREATE TABLE public.good (id int PRIMARY KEY, c text COLLATE \"C\")").await.unwrap();
    let settings = PostgresSettings::default();
    assert_eq!(found(&source, &pair, &settings, "transaction").await, vec![]);

    let client = pair.source.session(&shard).await;
    client.batch_execute("CREATE TEMPORARY TABLE fleeting (a int)").await.unwrap();
    source.run("large object", "DO 'BEGIN PERFORM lo_create(0); END'").await.unwrap();
    let bad = "CREATE UNLOGGED TABLE public.quick (id int PRIMARY KEY); CREATE TABLE public.keyless (a regclass, b oid[]); \
               CREATE ROLE nobody; ALTER TABLE public.keyless OWNER TO nobody; CREATE EXTENSION file_fdw SCHEMA public; \
               CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; \
               CREATE FOREIGN TABLE public.\"far \n away\" (a int) SERVER files OPTIONS (filename '/dev/null'); \
               CREATE PUBLICATION theirs FOR TABLE public.good; CREATE PUBLICATION fs_0123456789abcdef_there_pub; \
               CREATE SUBSCRIPTION fed CONNECTION 'dbname=x' PUBLICATION y WITH (connect = false); \
               CREATE TABLE public.by_index (a int NOT NULL); CREATE UNIQUE INDEX ia ON public.by_index (a); \
               ALTER TABLE public.by_index REPLICA IDENTITY USING INDEX ia; DROP INDEX public.ia";
    for statement in bad.split("; ") {
        source.run("bad things", statement).await.unwrap();
    }
    let prepared = "BEGIN; INSERT INTO public.good VALUES (1); PREPARE TRANSACTION 'not ended'";
    pair.source.session(&shard).await.batch_execute(prepared).await.unwrap();
    source.run("settings", "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await.unwrap();
    source.run("settings", "SELECT pg_reload_conf()").await.unwrap();
    let target_server = pair.on_target("postgres").await;
    target_server.run("database", &format!("CREATE DATABASE {shard}")).await.unwrap();
    let old = pair.source.session(&shard).await;
    old.batch_execute("SET application_name = 'report'; BEGIN; SELECT 'an old one'").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let settings = PostgresSettings {
        disk_share: 1e-9,
        long_transactions: LongTransactions::Refuse { after: Duration::from_millis(10) },
        ..settings
    };
    let found = found(&source, &pair, &settings, "session").await;
    let expected = [
        ("roles", "nobody"),
        ("database", "target already has a database"),
        ("large_objects", "1 large objects"),
        ("unlogged", "public.quick"),
        ("foreign_tables", "public.\"far"),
        ("temporary", "fleeting of one of pids"),
        ("prepared", "not ended of postgres"),
        ("object_numbers", "public.keyless.a (regclass), public.keyless.b (oid[])"),
        ("identity_index", "by_index"),
        ("without_key", "keyless"),
        ("pool_mode", "session pooling"),
        ("long_transactions", "by \"report\""),
        ("subscriptions", "fed"),
        ("publications", "theirs"),
        ("disk", "free on node target"),
        ("wal_keep", "1 MiB"),
    ];
    for (code, text) in expected {
        assert!(what(&found, code).contains(text), "{code}: {}", what(&found, code));
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    assert!(!what(&found, "publications").contains("fs_0123456789abcdef"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_rights_is_found_and_the_rest_still_read() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = pair.source.database().await;
    pair.on_source("postgres").await.run("role", "CREATE ROLE weak LOGIN").await.unwrap();
    let mut place = pair.source_place();
    place.login.user = "weak".into();
    place.address.user = "weak".into();
    let (source, source_server) = (place.open(&shard, "t").await.unwrap(), place.open("postgres", "t").await.unwrap());
    let target_server = pair.on_target("postgres").await;
    let sides = Sides { source: &source, source_server: &source_server, target_server: &target_server };
    let found = findings(&sides, &PostgresSettings::default(), &[], MARK).await.unwrap();
    assert_eq!(found.iter().map(|f| f.code).collect::<Vec<_>>(), ["rights"], "{found:#?}");
    assert!(what(&found, "rights").contains("weak on node source"));
}

#[tokio::test(flavor = "multi_thread")]
async fn free_room_and_collations_are_known() {
    let Some(pair) = TestPair::shared() else { return };
    let shard = pair.source.database().await;
    let source = pair.on_source(&shard).await;
    source.run("table", "CREATE TABLE public.sorted (a text COLLATE \"de-x-icu\")").await.unwrap();
    let (source_server, target_server) = (pair.on_source("postgres").await, pair.on_target("postgres").await);
    let sides = Sides { source: &source, source_server: &source_server, target_server: &target_server };
    let facts = facts::read(&sides, &[]).await.unwrap();
    assert!(facts.target.free_bytes.is_some_and(|bytes| bytes > 1 << 20), "{:?}", facts.target.free_bytes);
    assert!(facts.source.free_bytes.is_some());
    let german = facts.shard.locales.iter().find(|l| l.name == "de").unwrap();
    assert_eq!(german.provider, "i");
    assert!(german.version.is_some());
    assert_eq!(facts.provided.locales.get(&german.key()), Some(&german.version));
    let left = "SELECT 1 FROM pg_class WHERE relname = 'foreshard_room'";
    assert!(target_server.texts("left", left).await.unwrap().is_empty());
}
