//! Servers behind poolers, a backend on them, and a driver with a state store: what a controller has.

use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::debris::{debris, paused_pools};
use crate::harness::pooler::{POOLER_ADMIN, POOLER_ADMIN_PASSWORD, Pooler};
use crate::harness::server::{ADMIN, ADMIN_PASSWORD, PgServer, ServerOptions};
use foreshard_domain::{
    Consistency, Epoch, MigrationId, MovePrediction, NodeId, Owner, PerResource, PlanId, ShardId, SystemClock,
    Timestamp,
};
use foreshard_migrator::postgres::{PoolerAddress, PostgresBackend, PostgresSettings, ServerAddress};
use foreshard_migrator::{
    Backend, Change, Driver, DriverConfig, MemoryStore, MigrationRecord, RedbStore, StateStore, StoreError,
};
use foreshard_policy::{Move, Reason, RuleName};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The shard that moves.
pub const SHOP: &str = "shop";

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn shop() -> ShardId {
    ShardId::new(SHOP).unwrap()
}

/// Two servers, `source` and `target`, with the shard open on the source in epoch 1, and poolers before them.
pub struct Cluster {
    pub source: PgServer,
    pub target: PgServer,
    pub poolers: Vec<Pooler>,
    pub store: Arc<dyn StateStore>,
    pub settings: PostgresSettings,
    folder: tempfile::TempDir,
}

pub fn address(port: u16) -> ServerAddress {
    ServerAddress {
        host: "127.0.0.1".into(),
        port,
        user: ADMIN.into(),
        password: ADMIN_PASSWORD.into(),
        peer_host: None,
        peer_port: None,
        database: "postgres".into(),
        ..ServerAddress::default()
    }
}

impl Cluster {
    pub async fn start(options: &ServerOptions, poolers: usize) -> Self {
        Self::start_on([options, options], poolers).await
    }

    /// The same with source and target set up each in its own way.
    pub async fn start_on([of_source, of_target]: [&ServerOptions; 2], poolers: usize) -> Self {
        let (source, target) = tokio::join!(PgServer::start("source", of_source), PgServer::start("target", of_target));
        source.create_database(SHOP).await;
        let mut running = Vec::new();
        for n in 0..poolers {
            running.push(Pooler::start(&format!("p{n}"), &[(SHOP, &source.address(SHOP))]).await);
        }
        let settings = PostgresSettings {
            nodes: [(node("source"), address(source.port())), (node("target"), address(target.port()))].into(),
            poolers: running.iter().map(pooler_address).collect(),
            ..PostgresSettings::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(RedbStore::open(&store_in(folder.path())).unwrap());
        let term = store.take_leadership("setup").await.unwrap();
        let at = store.read().await.unwrap().revision;
        let owner = Owner { node: node("source"), epoch: Epoch(1) };
        store.commit(at, term, vec![Change::SetOwner { shard: shop(), expected: None, owner }]).await.unwrap();
        Self { source, target, poolers: running, store, settings, folder }
    }

    /// Where the state store is, which one process at a time has open.
    pub fn store_file(&self) -> PathBuf {
        store_in(self.folder.path())
    }

    /// Leaves the state store to another process; no driver of this one may be left.
    pub async fn close_store(&mut self) {
        self.store = Arc::new(MemoryStore::default());
        drop(opened(&self.store_file()).await);
    }

    /// Takes the state store back.
    pub async fn open_store(&mut self) {
        self.store = Arc::new(opened(&self.store_file()).await);
    }

    /// Servers of no durability, one pooler, and the checker's tables.
    pub async fn of_the_checker() -> Self {
        let cluster = Self::start(&ServerOptions::fast(), 1).await;
        create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
        cluster
    }

    /// A few clients that write all the time.
    pub fn checker(&self) -> Checker {
        let options = CheckerOptions { rate: 40.0, ..CheckerOptions::default() };
        Checker::start(&[self.poolers[0].app_address(SHOP)], &options)
    }

    /// A new controller: the next leader term, on a backend of its own.
    pub async fn controller(&self) -> Arc<Driver> {
        self.controller_with(Arc::new(self.backend())).await
    }

    pub fn backend(&self) -> PostgresBackend {
        PostgresBackend::new(self.settings.clone(), Arc::new(SystemClock))
    }

    pub async fn controller_with(&self, backend: Arc<dyn Backend>) -> Arc<Driver> {
        let term = self.store.take_leadership("test").await.unwrap();
        let driver = Driver::new(self.store.clone(), backend, Arc::new(SystemClock), config(), term);
        driver.recover().await.unwrap();
        Arc::new(driver)
    }

    pub async fn owner(&self) -> Owner {
        self.store.read().await.unwrap().owners[&shop()].clone()
    }

    pub async fn record(&self, id: &MigrationId) -> MigrationRecord {
        let state = self.store.read().await.unwrap();
        MigrationRecord::clone(&state.migrations[id])
    }

    /// The server that owns the shard.
    pub async fn owning(&self) -> &PgServer {
        if self.owner().await.node == node("source") { &self.source } else { &self.target }
    }

    /// Records a move of the shard away from its owner.
    pub async fn start_move(&self, driver: &Driver, n: usize) -> MigrationId {
        let from = self.owner().await.node;
        let to = if from == node("source") { "target" } else { "source" };
        driver
            .start(a_move(&from, &node(to)), PlanId::new(format!("p{n}")).unwrap(), Consistency::Strict)
            .await
            .unwrap()
    }

    /// Nothing but the shard's database on its owner is left, nothing is paused, and no object is recorded.
    pub async fn assert_clean(&self) {
        let owning = self.owning().await;
        for server in [&self.source, &self.target] {
            let databases: &[&str] = if std::ptr::eq(server, owning) { &[SHOP] } else { &[] };
            let left: Vec<String> = debris(server, databases).await.into_iter().filter(|d| !is_the_leader(d)).collect();
            assert_eq!(left, Vec::<String>::new(), "left on {}", server.name());
        }
        for pooler in &self.poolers {
            assert_eq!(paused_pools(pooler).await, Vec::<String>::new());
            assert_eq!(pooler.route_of(SHOP).await.unwrap().0, owning.port(), "{}", pooler.name());
        }
        assert!(self.store.read().await.unwrap().objects.is_empty());
    }
}

fn store_in(folder: &Path) -> PathBuf {
    folder.join("state.redb")
}

/// Opens a store that somebody may be about to close.
async fn opened(file: &Path) -> RedbStore {
    let began = tokio::time::Instant::now();
    loop {
        match RedbStore::open(file) {
            Err(StoreError::Held { .. }) if began.elapsed() < Duration::from_secs(10) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

/// The role of the present leader term, and the epoch that the last move left, are no debris.
fn is_the_leader(left: &str) -> bool {
    left.contains("foreshard_term_") || left.contains("foreshard.epoch")
}

pub fn pooler_address(pooler: &Pooler) -> PoolerAddress {
    PoolerAddress {
        name: pooler.name().into(),
        host: "127.0.0.1".into(),
        port: pooler.port(),
        user: POOLER_ADMIN.into(),
        password: POOLER_ADMIN_PASSWORD.into(),
        routes: pooler.routes_file(),
    }
}

pub fn config() -> DriverConfig {
    DriverConfig {
        // A test machine may be busy with other tests; how long fences are is measured elsewhere.
        fence_limit: Duration::from_secs(3),
        retries: 4,
        max_backoff: Duration::from_secs(1),
        retention_ms: 0,
        ..DriverConfig::default()
    }
}

pub fn a_move(source: &NodeId, target: &NodeId) -> Move {
    Move {
        shard: shop(),
        source: source.clone(),
        target: target.clone(),
        start: Timestamp::from_ms(0),
        reason: Reason {
            rule: RuleName::Threshold,
            resource: None,
            source_risk_before: 0.9,
            source_risk_after: 0.1,
            target_risk_before: 0.0,
            target_risk_after: 0.1,
            first_crossing: None,
            text: "a test".into(),
        },
        expected_gain: 10.0,
        expected_cost: 1.0,
        predicted: MovePrediction {
            duration_ms: 1_000,
            duration_p90_ms: 2_000,
            fence_ms: 50.0,
            extra_share: PerResource { cpu: 0.1, memory: 0.0, io: 0.1 },
        },
        data_bytes: 1e6,
        write_bytes_per_s: 1e3,
        cpu_share: (0.9, 0.3),
        with: None,
    }
}
