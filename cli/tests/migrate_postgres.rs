//! `foreshard migrate` as an operator uses it: real processes that move a database between real servers behind a real pooler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../migrator/tests/postgres/harness/mod.rs"]
mod harness;
mod support;

use foreshard_domain::NodeId;
use foreshard_migrator::DriverConfig;
use foreshard_migrator::postgres::{PoolerAddress, PostgresSettings, ServerAddress};
use harness::pooler::{POOLER_ADMIN, POOLER_ADMIN_PASSWORD, Pooler};
use harness::server::{ADMIN, ADMIN_PASSWORD, PgServer, ServerOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Output, Stdio};
use std::time::Duration;
use support::{foreshard, json, run};

const SHOP: &str = "shop";
const ROWS: u64 = 2000;

/// Two servers with the shard on `one`, a pooler before them, and a folder with the settings.
struct Cluster {
    one: PgServer,
    two: PgServer,
    pooler: Pooler,
    folder: tempfile::TempDir,
}

#[derive(Serialize)]
struct Settings {
    migrate: Migrate,
    postgres: PostgresSettings,
}

#[derive(Serialize)]
struct Migrate {
    retention: &'static str,
}

fn server(server: &PgServer) -> ServerAddress {
    ServerAddress {
        host: "127.0.0.1".into(),
        port: server.port(),
        user: ADMIN.into(),
        password: ADMIN_PASSWORD.into(),
        ..ServerAddress::default()
    }
}

impl Cluster {
    async fn start() -> Self {
        let options = ServerOptions::fast();
        let (one, two) = tokio::join!(PgServer::start("one", &options), PgServer::start("two", &options));
        one.create_database(SHOP).await;
        let rows = format!(
            "CREATE TABLE orders (id bigserial PRIMARY KEY, note text NOT NULL); \
             INSERT INTO orders (note) SELECT repeat('x', 100) FROM generate_series(1, {ROWS}); \
             GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC"
        );
        one.sql(SHOP, &rows).await;
        let pooler = Pooler::start("p", &[(SHOP, &one.address(SHOP))]).await;
        let node = |name: &str| NodeId::new(name).unwrap();
        let postgres = PostgresSettings {
            nodes: [(node("one"), server(&one)), (node("two"), server(&two))].into(),
            poolers: vec![PoolerAddress {
                name: "p".into(),
                host: "127.0.0.1".into(),
                port: pooler.port(),
                user: POOLER_ADMIN.into(),
                password: POOLER_ADMIN_PASSWORD.into(),
                routes: pooler.routes_file(),
            }],
            ..PostgresSettings::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let settings = toml::to_string(&Settings { migrate: Migrate { retention: "0s" }, postgres }).unwrap();
        std::fs::write(folder.path().join("foreshard.toml"), settings).unwrap();
        Self { one, two, pooler, folder }
    }

    fn here(&self) -> &Path {
        self.folder.path()
    }

    /// What a client of the pooler gets.
    async fn ask(&self, sql: &str) -> String {
        let session = self.pooler.app_address(SHOP).connect().await.unwrap();
        session.rows(sql).await.unwrap().first().map(|row| row.first().to_owned()).unwrap_or_default()
    }

    async fn count(&self) -> u64 {
        self.ask("SELECT count(*) FROM orders").await.parse().unwrap()
    }

    async fn buy(&self) {
        self.ask("INSERT INTO orders (note) VALUES ('bought') RETURNING id").await;
    }

    async fn routed_to(&self) -> u16 {
        self.pooler.route_of(SHOP).await.unwrap().0
    }

    /// A start whose copy would take minutes.
    fn slow_start(&self) -> Child {
        foreshard(self.here())
            .args(["migrate", "start", SHOP, "--to", "two"])
            .env("FORESHARD_POSTGRES_COPY_BYTES_PER_S", "8000")
            .env("FORESHARD_POSTGRES_COPY_PIECE_BYTES", "8192")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits until the newest migration is being copied; returns its name.
    async fn copying(&self) -> String {
        for _ in 0..300 {
            let all = json(self.here(), &["migrate", "list"], 0);
            let newest = all["migrations"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
            if newest["state"] == "copying" && newest["carried"] == true && newest["rows"].as_u64() > Some(0) {
                return newest["id"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no migration is ever copying");
    }
}

fn signal(child: Child, signal: Signal) -> Output {
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait_with_output().unwrap()
}

fn state(shown: &serde_json::Value) -> &str {
    shown["migration"]["state"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_moves_by_hand_there_and_back_and_there_for_good() {
    let cluster = Cluster::start().await;
    let here = cluster.here();
    let told = json(here, &["migrate", "start", SHOP, "--to", "two", "--dry-run"], 0);
    assert!(told["steps"].as_array().is_some_and(|steps| steps.len() > 20), "{told}");
    assert!(!cluster.two.has_database(SHOP).await && !here.join("foreshard.redb").exists(), "nothing was changed");

    // Nobody has entered the shard into the shard map: it is adopted where it is.
    let moved = json(here, &["migrate", "start", SHOP, "--to", "two"], 0);
    assert_eq!(state(&moved), "reversible", "{moved}");
    assert_eq!((&moved["migration"]["source"], &moved["migration"]["rows"]), (&"one".into(), &ROWS.into()), "{moved}");
    assert_eq!(moved["migration"]["id"], told["id"], "the dry run told its name");
    assert_eq!((cluster.routed_to().await, cluster.count().await), (cluster.two.port(), ROWS));
    cluster.buy().await;

    let id = told["id"].as_str().unwrap();
    assert_eq!(state(&json(here, &["migrate", "rollback", id], 0)), "rolled_back");
    assert_eq!((cluster.routed_to().await, cluster.count().await), (cluster.one.port(), ROWS + 1));
    assert!(!cluster.two.has_database(SHOP).await, "the copy is gone");
    cluster.buy().await;

    let again = json(here, &["migrate", "start", SHOP, "--from", "one", "--to", "two"], 0);
    let id = again["migration"]["id"].as_str().unwrap();
    assert_eq!(state(&json(here, &["migrate", "finish", id], 0)), "done");
    assert_eq!((cluster.routed_to().await, cluster.count().await), (cluster.two.port(), ROWS + 2));
    assert!(!cluster.one.has_database(SHOP).await, "the source's copy is gone");
    let map = json(here, &["migrate", "ring"], 0);
    assert_eq!((&map["shards"][0]["node"], &map["shards"][0]["epoch"]), (&"two".into(), &4.into()), "{map}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_killed_or_interrupted_goes_on_by_resume() {
    let cluster = Cluster::start().await;
    let here = cluster.here();
    let killed = cluster.slow_start();
    let id = cluster.copying().await;
    signal(killed, Signal::KILL);
    // The store is as the dead process left it, its socket too: both are no hindrance.
    assert!(here.join("foreshard.sock").exists());
    let left = json(here, &["migrate", "show", &id], 0);
    assert_eq!((state(&left), &left["migration"]["carried"]), ("copying", &false.into()), "{left}");

    let resumed = foreshard(here)
        .args(["migrate", "resume", &id])
        .env("FORESHARD_POSTGRES_COPY_BYTES_PER_S", "8000")
        .env("FORESHARD_POSTGRES_COPY_PIECE_BYTES", "8192")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(cluster.copying().await, id);
    let busy = run(here, &["migrate", "start", SHOP, "--to", "two"], 2);
    assert!(String::from_utf8_lossy(&busy.stderr).contains("already being moved"));
    let ended = signal(resumed, Signal::INT);
    let words = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{words}");
    assert!(words.contains(&format!("foreshard migrate resume {id}")), "{words}");
    assert!(!here.join("foreshard.sock").exists(), "a clean end removes its socket");

    assert_eq!(state(&json(here, &["migrate", "resume", &id], 0)), "reversible");
    assert_eq!((cluster.routed_to().await, cluster.count().await), (cluster.two.port(), ROWS));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_checks_refuse_is_a_no() {
    let cluster = Cluster::start().await;
    let here = cluster.here();
    cluster.one.sql(SHOP, "CREATE TABLE no_key (n int)").await;
    let refused = run(here, &["migrate", "start", SHOP, "--to", "two", "--dry-run"], 1);
    assert!(String::from_utf8_lossy(&refused.stdout).contains("no_key"));
    let failed = json(here, &["migrate", "start", SHOP, "--to", "two"], 1);
    assert_eq!(state(&failed), "failed", "{failed}");
    assert!(!cluster.two.has_database(SHOP).await);
    cluster.two.create_database(SHOP).await;
    cluster.two.create_database("twice").await;
    cluster.one.create_database("twice").await;
    let several = run(here, &["migrate", "start", "twice", "--to", "two"], 2);
    assert!(String::from_utf8_lossy(&several.stderr).contains("one, two"), "which one owns it is not guessed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_releases_clients_that_a_dead_process_left_waiting() {
    let cluster = Cluster::start().await;
    let here = cluster.here();
    let looked = run(here, &["migrate", "watchdog", "--once"], 0);
    assert_eq!(String::from_utf8_lossy(&looked.stdout), "no pooler waits for a fence that has run out\n");

    let mut watchdog = Watching::start(here);
    // A person's own pause, with no move about, is theirs to end: it outlasts what a dead process is granted.
    cluster.pooler.pause(SHOP).await;
    tokio::time::sleep(DriverConfig::default().fence_limit * 4).await;
    assert_eq!(cluster.pooler.paused().await, [SHOP]);
    cluster.pooler.resume(SHOP).await;

    // A process that dies between its PAUSE and its fence.
    let killed = cluster.slow_start();
    cluster.copying().await;
    signal(killed, Signal::KILL);
    cluster.pooler.pause(SHOP).await;
    // A client waits for the pooler, and is served in the end.
    assert_eq!(cluster.count().await, ROWS);
    let line = watchdog.next_line();
    assert!(line.contains("nobody resumed the pooler") && line.contains("shop at pooler p"), "{line}");
    assert_eq!(watchdog.interrupt(), Some(0));
}

/// A watchdog that does not outlive its test.
struct Watching {
    process: Child,
    words: BufReader<ChildStderr>,
}

impl Watching {
    fn start(folder: &Path) -> Self {
        let mut process = foreshard(folder).args(["migrate", "watchdog"]).stderr(Stdio::piped()).spawn().unwrap();
        let words = BufReader::new(process.stderr.take().unwrap());
        Self { process, words }
    }

    /// The next thing that it says; waits until it does.
    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.words.read_line(&mut line).unwrap();
        line
    }

    fn interrupt(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.process), Signal::INT).unwrap();
        self.process.wait().unwrap().code()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_ends_without_a_source_that_is_gone_for_good() {
    let mut cluster = Cluster::start().await;
    let moved = json(cluster.here(), &["migrate", "start", SHOP, "--to", "two"], 0);
    let id = moved["migration"]["id"].as_str().unwrap();
    cluster.one.kill9();
    let wrong = run(cluster.here(), &["migrate", "finish", id, "--lost-node", "two"], 2);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("does not own the shard"), "the owner is never given up");
    assert_eq!(state(&json(cluster.here(), &["migrate", "finish", id, "--lost-node", "one"], 0)), "done");
    assert_eq!((cluster.routed_to().await, cluster.count().await), (cluster.two.port(), ROWS));
    let map = json(cluster.here(), &["migrate", "ring"], 0);
    assert_eq!((&map["shards"][0]["node"], &map["shards"][0]["epoch"]), (&"two".into(), &2.into()), "{map}");
}
