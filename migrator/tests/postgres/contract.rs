//! The contract of every backend, on PostgreSQL.
//!
//! Left out are clauses that set the clock by which deadlines are judged, which is the server's own here, and those about pieces:
//! 300 rows are compared in one call, a database is dropped by one statement.

use async_trait::async_trait;
use foreshard_domain::{Clock, Epoch, NodeId, RealTime, ShardId, SystemClock};
use foreshard_migrator::postgres::{PostgresBackend, PostgresSettings};
use foreshard_migrator::{Backend, MoveSpec};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::ToSql;

use crate::cluster::{address, pooler_address};
use crate::harness::address::Session;
use crate::harness::debris::debris;
use crate::harness::pooler::Pooler;
use crate::harness::server::{PgServer, ServerOptions};

#[path = "../backends/contract/mod.rs"]
#[allow(dead_code, reason = "clauses that do not apply here")]
mod clauses;
use clauses::{Bench, Rows, node};

const SHARD: &str = "shard";
const TABLES: &str = "CREATE TABLE pairs (key bytea PRIMARY KEY, value bytea NOT NULL); \
                      CREATE TABLE written (id text PRIMARY KEY)";
/// A transaction of the contract's clients: the id of the write travels with the rows.
const PUT: &str = "WITH first AS (INSERT INTO written VALUES ($1) ON CONFLICT DO NOTHING RETURNING 1) \
                   INSERT INTO pairs SELECT $2, $3 FROM first ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const REMOVE: &str = "WITH first AS (INSERT INTO written VALUES ($1) ON CONFLICT DO NOTHING RETURNING 1) \
                      DELETE FROM pairs USING first WHERE key = $2";

struct PostgresBench {
    servers: BTreeMap<NodeId, PgServer>,
    _pooler: Pooler,
    backend: PostgresBackend,
    /// A client's connection by node and the epoch that it believes in.
    clients: tokio::sync::Mutex<BTreeMap<(NodeId, Epoch), Session>>,
}

impl PostgresBench {
    async fn new() -> Self {
        let options = ServerOptions::fast();
        let (source, target) = tokio::join!(PgServer::start("source", &options), PgServer::start("target", &options));
        source.create_database(SHARD).await;
        source.app_address(SHARD).connect().await.unwrap().batch_execute(TABLES).await.unwrap();
        source.sql("postgres", &format!("ALTER DATABASE {SHARD} SET foreshard.epoch = '1'")).await;
        let pooler = Pooler::start("p", &[(SHARD, &source.address(SHARD))]).await;
        let settings = PostgresSettings {
            nodes: [(node("source"), address(source.port())), (node("target"), address(target.port()))].into(),
            poolers: vec![pooler_address(&pooler)],
            range_rows: 8,
            ..PostgresSettings::default()
        };
        let backend = PostgresBackend::new(settings, Arc::new(SystemClock));
        let servers = [(node("source"), source), (node("target"), target)].into();
        Self { servers, _pooler: pooler, backend, clients: tokio::sync::Mutex::default() }
    }

    /// A client of a node; none if it is not let in, or if the node is in another epoch than the client believes.
    async fn client(&self, node: &NodeId, epoch: Epoch) -> Option<Session> {
        let kept = self.clients.lock().await.remove(&(node.clone(), epoch));
        if let Some(client) = kept.filter(|client| !client.is_closed()) {
            return Some(client);
        }
        let client = self.servers[node].app_address(SHARD).connect().await.ok()?;
        let known = client.query_one("SELECT current_setting('foreshard.epoch', true)", &[]).await.ok()?;
        let known: Option<String> = known.get(0);
        (known == Some(epoch.0.to_string())).then_some(client)
    }
}

#[async_trait]
impl Bench for PostgresBench {
    fn backend(&self) -> &dyn Backend {
        &self.backend
    }

    fn now(&self) -> RealTime {
        SystemClock.real()
    }

    async fn pass(&self, ms: i64) {
        tokio::time::sleep(Duration::from_millis(u64::try_from(ms).unwrap() * self.slowness())).await;
    }

    fn slowness(&self) -> u64 {
        100
    }

    async fn carried_over(&self, spec: &MoveSpec) {
        let began = tokio::time::Instant::now();
        while self.rows(&spec.source).await != self.rows(&spec.target).await {
            assert!(began.elapsed() < Duration::from_secs(20), "changes do not come over");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn write(&self, node: &NodeId, epoch: Epoch, key: &[u8], value: Option<&[u8]>, write_id: u128) -> bool {
        let Some(client) = self.client(node, epoch).await else { return false };
        let id = write_id.to_string();
        let (sql, parameters): (&str, Vec<&(dyn ToSql + Sync)>) = match &value {
            Some(value) => (PUT, vec![&id, &key, value]),
            None => (REMOVE, vec![&id, &key]),
        };
        let written = client.execute(sql, &parameters).await.is_ok();
        self.clients.lock().await.insert((node.clone(), epoch), client);
        written
    }

    async fn rows(&self, node: &NodeId) -> Rows {
        let session = self.servers[node].connect(SHARD).await;
        let rows = session.query("SELECT key, value FROM pairs", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn plant(&self, node: &NodeId, key: &[u8], value: Option<&[u8]>) {
        let session = self.servers[node].connect(SHARD).await;
        let disguise = "SET session_replication_role = replica; SET application_name = 'foreshard fs_plant'";
        session.batch_execute(disguise).await.unwrap();
        let insert = "INSERT INTO pairs VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        let planted = match &value {
            Some(value) => session.execute(insert, &[&key, value]).await,
            None => session.execute("DELETE FROM pairs WHERE key = $1", &[&key]).await,
        };
        assert_eq!(planted.unwrap(), 1);
    }

    async fn things(&self, node: &NodeId) -> usize {
        let server = &self.servers[node];
        let has = server.has_database(SHARD).await;
        let databases: &[&str] = if has { &[SHARD] } else { &[] };
        debris(server, databases).await.len() + usize::from(has)
    }
}

#[test]
fn the_shard_is_the_contracts() {
    assert_eq!(clauses::spec().shard, ShardId::new(SHARD).unwrap());
}

macro_rules! keeps_the_contract {
    ($($clause:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $clause() {
            clauses::$clause(&PostgresBench::new().await).await;
        })*
    };
}

keeps_the_contract! {
    resumed_copy_equals_uninterrupted_copy
    m1_a_retry_after_the_cut_over_is_made_once
    m2_write_with_old_epoch_is_refused
    m3_the_target_opens_only_in_a_new_epoch
    m4_a_planted_difference_stops_the_seal
    m5_finish_removes_the_source_and_the_log
    m7_fence_expires_by_itself
    m8_the_way_back_is_tried_without_a_trace
    another_migration_cannot_use_the_fence
    preflight_tells_everything_at_once
    rollback_brings_back_every_change
    undo_twice_is_undo_once
}
