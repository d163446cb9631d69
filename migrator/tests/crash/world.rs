//! One process after another on the same stores: engine, driver and a client between every two calls of the backend.

use async_trait::async_trait;
use foreshard_domain::{
    BackendKind, Consistency, Epoch, LeaderTerm, ManualClock, MovePrediction, NodeId, Observation, Owner, PerResource,
    PlanId, RealTime, Revision, ShardId, Timestamp,
};
use foreshard_migrator::embedded::{
    EmbeddedBackend, EmbeddedEngine, EngineSettings, Fate, Faults, Keyspace, KvStore, MemoryStore, MoveSettings,
    ShardState,
};
use foreshard_migrator::{
    Backend, BackendError, Capabilities, Change, CopyProgress, Driver, DriverConfig, DriverError, Lag, Left,
    MigrationState, MoveSpec, Position, Proof, SourceState, State, StateStore, StoreError, Verification,
};
use foreshard_policy::{Move, Reason, RuleName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

use crate::client::Client;

/// Where a run is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Moved, retention over, finished.
    Move,
    /// Moved and taken back.
    Rollback,
    /// Given up before the fence, because the way back does not work.
    GiveUp,
}

const RETENTION_MS: i64 = 3_600_000;
const FENCE_MS: u64 = 1000;

/// What outlives a process.
pub struct World {
    clock: Arc<ManualClock>,
    pub faults: Arc<Faults>,
    state_faults: Arc<Faults>,
    node_faults: Arc<Faults>,
    stores: BTreeMap<NodeId, Arc<MemoryStore>>,
    state: Arc<foreshard_migrator::MemoryStore>,
    client: Arc<Mutex<Client>>,
}

fn shard() -> ShardId {
    ShardId::new("shard").unwrap()
}

/// Everything takes several calls, so that there are crashes in between.
fn small() -> MoveSettings {
    MoveSettings { verify_bytes: 64, verify_changes: 2, remove_rows: 9, ..MoveSettings::default() }
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

impl World {
    fn new(faults: &Arc<Faults>, state_faults: Arc<Faults>, node_faults: Arc<Faults>) -> Self {
        let store = |name| (node(name), Arc::new(MemoryStore::with_faults(Arc::clone(&node_faults))));
        Self {
            clock: Arc::new(ManualClock::new(Timestamp::from_ms(0), RealTime::from_ms(1_000_000))),
            faults: Arc::clone(faults),
            stores: ["source", "target"].map(store).into(),
            state: Arc::new(foreshard_migrator::MemoryStore::default()),
            state_faults,
            node_faults,
            client: Arc::default(),
        }
    }

    /// The fault takes down everything.
    pub fn whole_process(faults: Arc<Faults>) -> Self {
        Self::new(&faults, Arc::clone(&faults), Arc::clone(&faults))
    }

    /// The fault takes down the controller; the nodes live on.
    pub fn controller_alone(faults: Arc<Faults>) -> Self {
        Self::new(&faults, Arc::clone(&faults), Faults::none())
    }

    /// The fault is one of the nodes' stores.
    pub fn nodes_alone(faults: Arc<Faults>) -> Self {
        Self::new(&faults, Faults::none(), Arc::clone(&faults))
    }

    fn engine(&self) -> Option<Arc<EmbeddedEngine>> {
        let nodes = self.stores.iter().map(|(id, store)| {
            let store: Arc<dyn KvStore> = store.clone();
            (id.clone(), store, f64::INFINITY)
        });
        // Nobody waits: a refused write is told at once, and the client goes on.
        let settings = EngineSettings { queue_for: Duration::ZERO, write_id_window: 64, ..EngineSettings::default() };
        EmbeddedEngine::new(nodes.collect(), self.clock.clone(), settings).ok().map(Arc::new)
    }

    fn state_store(&self) -> Arc<dyn StateStore> {
        Arc::new(CountedStore { inner: self.state.clone(), faults: Arc::clone(&self.state_faults) })
    }

    /// The shard on its first owner, in the engine and in the shard map, with some writes in it.
    pub async fn found(&self) {
        let Some(engine) = self.engine() else { return };
        let store = self.state_store();
        if let Ok(term) = store.take_leadership("founder").await
            && let Ok(state) = store.read().await
            && state.owners.is_empty()
        {
            let owner = Owner { node: node("source"), epoch: Epoch(1) };
            let change = Change::SetOwner { shard: shard(), expected: None, owner };
            let _ = store.commit(state.revision, term, vec![change]).await;
        }
        // The shard map first: nobody may accept writes of a shard that the map does not know.
        if !engine.owners().contains_key(&shard()) && !self.stored().await.owners.is_empty() {
            let _ = engine.create_shard(&shard(), &node("source"), Epoch(1)).await;
        }
        if engine.owners().contains_key(&shard()) {
            for _ in 0..20 {
                self.client.lock().await.turn(&engine, &shard()).await;
            }
        }
    }

    /// One process, from its start to the goal or to its end.
    pub async fn live(&self, goal: Goal) -> Result<(), DriverError> {
        let engine = self.engine().expect("the stores can be read");
        self.controller(&engine, goal).await
    }

    /// One controller, from its start to the goal or to its end.
    async fn controller(&self, engine: &Arc<EmbeddedEngine>, goal: Goal) -> Result<(), DriverError> {
        let store = self.state_store();
        let term = store.take_leadership("controller").await.map_err(|source| DriverError::Store { source })?;
        let settings = MoveSettings { chunk_bytes: 64, apply_changes: 5, range_rows: 3, ..small() };
        let backend = Accompanied {
            inner: EmbeddedBackend::new(Arc::clone(engine), settings, self.clock.clone()),
            engine: Arc::clone(engine),
            clock: self.clock.clone(),
            client: Arc::clone(&self.client),
            state: Arc::clone(&store),
            way_back_broken: goal == Goal::GiveUp,
        };
        let config = DriverConfig {
            fence_limit: Duration::from_millis(FENCE_MS),
            near_changes: 3,
            retries: 2,
            first_backoff: Duration::ZERO,
            max_backoff: Duration::ZERO,
            retention_ms: RETENTION_MS,
            ..DriverConfig::default()
        };
        let driver = Driver::new(store.clone(), Arc::new(backend), self.clock.clone(), config, term);
        for id in driver.recover().await? {
            driver.run(&id).await?;
        }
        let plan = PlanId::new("plan").unwrap();
        let id = driver.start(planned(), plan, Consistency::Strict).await?;
        driver.run(&id).await?;
        match goal {
            Goal::Move => {
                assert!(driver.finish(&id).await.is_err() || self.is_over().await, "M5: the retention is not over");
                self.clock.advance_ms(RETENTION_MS);
                driver.finish(&id).await.map(|_| ())
            }
            Goal::Rollback => driver.rollback(&id).await.map(|_| ()),
            Goal::GiveUp => Ok(()),
        }
    }

    async fn stored(&self) -> State {
        self.state.read().await.unwrap()
    }

    async fn is_over(&self) -> bool {
        self.faults.is_down() || self.stored().await.migrations.values().any(|m| m.state.is_terminal())
    }

    /// Processes until the goal is reached; what a crash leaves is looked at before the next one starts.
    pub async fn live_and_recover(&mut self, goal: Goal) {
        self.found().await;
        let controller_alone = !Arc::ptr_eq(&self.faults, &self.node_faults);
        let mut engine = self.engine();
        for _ in 0..6 {
            let founded = engine.as_ref().filter(|engine| engine.owners().contains_key(&shard()));
            let ended = match founded {
                Some(engine) => self.controller(engine, goal).await.is_ok(),
                None => false,
            };
            let crashed = self.faults.is_down();
            if ended && !crashed {
                return;
            }
            self.check_between().await;
            if crashed && controller_alone {
                self.check_nodes_alone(engine.as_ref().unwrap()).await;
            }
            self.faults.reopen();
            if crashed && !controller_alone {
                self.stores = std::mem::take(&mut self.stores)
                    .into_iter()
                    .map(|(id, store)| (id, Arc::new(store.reopened(Arc::clone(&self.node_faults)))))
                    .collect();
                engine = None;
            }
            if engine.as_ref().is_none_or(|engine| !engine.owners().contains_key(&shard())) {
                self.found().await;
                engine = self.engine();
            }
        }
        panic!("the goal was not reached");
    }

    /// What must hold at any moment, whoever is alive.
    async fn check_between(&self) {
        let state = self.stored().await;
        let mut accepting = Vec::new();
        for (id, store) in &self.stores {
            let Some(meta) = meta(store) else { continue };
            if matches!(meta.state, ShardState::Open | ShardState::Fenced { .. }) {
                accepting.push((id.clone(), meta.epoch));
            }
            for (kind, there) in [
                ("import", matches!(meta.state, ShardState::Importing { .. })),
                ("capture", !meta.captures.is_empty()),
                ("probe", !store.contents(Keyspace::Probe).is_empty()),
            ] {
                let row = |name: &String| name.contains(&format!("embedded/{id}/{kind}/"));
                assert!(!there || state.objects.keys().any(row), "M6: {kind} on {id} has no row: {:?}", state.objects);
            }
        }
        assert!(accepting.len() <= 1, "M2: {accepting:?}");
        for (id, epoch) in accepting {
            let owner = Owner { node: id, epoch };
            assert_eq!(Some(&owner), state.owners.get(&shard()), "M2: it accepts writes, another is the owner");
        }
    }

    /// With no controller alive, either the fence ends by itself or the source is sealed (M7).
    async fn check_nodes_alone(&self, engine: &EmbeddedEngine) {
        self.clock.advance_ms(i64::try_from(FENCE_MS).unwrap());
        let Some(owner) = engine.owners().get(&shard()).cloned().flatten() else { return };
        let Some(meta) = meta(&self.stores[&owner.node]) else { return };
        if meta.epoch == owner.epoch && matches!(meta.state, ShardState::Open | ShardState::Fenced { .. }) {
            assert!(self.client.lock().await.can_write(engine, &shard()).await, "M7: nobody lifted the fence");
        }
    }

    /// What must hold when the goal is reached.
    pub async fn check_the_end(&self, goal: Goal) {
        // A fault that has not struck by now is too late.
        self.faults.reopen();
        self.check_between().await;
        let engine = self.engine().unwrap();
        for _ in 0..10 {
            self.client.lock().await.turn(&engine, &shard()).await;
        }
        self.client.lock().await.check(&engine, &shard()).await;

        let state = self.stored().await;
        let record = state.migrations.values().next().unwrap();
        let (owner, other, epoch) = match (goal, &record.state) {
            (Goal::Move, MigrationState::Done) => ("target", "source", Epoch(2)),
            (Goal::Rollback, MigrationState::RolledBack) => ("source", "target", Epoch(3)),
            (Goal::GiveUp, MigrationState::Failed { .. }) => ("source", "target", Epoch(1)),
            (_, other) => panic!("ended {other:?}: {:?}", record.why),
        };
        assert_eq!(state.owners[&shard()], Owner { node: node(owner), epoch });
        assert!(state.objects.is_empty(), "M6: no row is left: {:?}", state.objects);
        for keyspace in Keyspace::ALL {
            assert_eq!(self.stores[&node(other)].contents(keyspace), BTreeMap::new(), "no debris on {other}");
        }
        let owner = &self.stores[&node(owner)];
        assert_eq!(meta(owner).unwrap().captures, BTreeMap::new());
        for keyspace in [Keyspace::Log, Keyspace::Probe] {
            assert_eq!(owner.contents(keyspace), BTreeMap::new(), "no debris in {keyspace}");
        }
    }
}

fn meta(store: &MemoryStore) -> Option<foreshard_migrator::embedded::ShardMeta> {
    let rows = store.contents(Keyspace::Meta);
    rows.values().next().map(|bytes| serde_json::from_slice(bytes).unwrap())
}

fn planned() -> Move {
    let reason = Reason {
        rule: RuleName::Threshold,
        resource: None,
        source_risk_before: 0.9,
        source_risk_after: 0.1,
        target_risk_before: 0.0,
        target_risk_after: 0.1,
        first_crossing: None,
        text: "the source would run hot".to_owned(),
    };
    Move {
        shard: shard(),
        source: node("source"),
        target: node("target"),
        start: Timestamp::from_ms(0),
        reason,
        expected_gain: 10.0,
        expected_cost: 1.0,
        predicted: MovePrediction {
            duration_ms: 1000,
            duration_p90_ms: 2000,
            fence_ms: 50.0,
            extra_share: PerResource { cpu: 0.1, memory: 0.0, io: 0.1 },
        },
        data_bytes: 1000.0,
        write_bytes_per_s: 100.0,
        cpu_share: (0.9, 0.1),
        with: None,
    }
}

/// The state store, with the fault of the process that uses it.
struct CountedStore {
    inner: Arc<foreshard_migrator::MemoryStore>,
    faults: Arc<Faults>,
}

impl CountedStore {
    fn down(&self) -> Result<(), StoreError> {
        if self.faults.is_down() { Err(dead()) } else { Ok(()) }
    }
}

fn dead() -> StoreError {
    StoreError::Io { path: "memory".to_owned(), doing: "anything", source: "the process is dead".into() }
}

#[async_trait]
impl StateStore for CountedStore {
    async fn read(&self) -> Result<State, StoreError> {
        self.down()?;
        self.inner.read().await
    }

    async fn commit(&self, expected: Revision, term: LeaderTerm, changes: Vec<Change>) -> Result<Revision, StoreError> {
        self.down()?;
        match self.faults.commit() {
            Fate::Done => self.inner.commit(expected, term, changes).await,
            Fate::Failed => Err(dead()),
            Fate::DoneUntold => {
                self.inner.commit(expected, term, changes).await?;
                Err(dead())
            }
        }
    }

    async fn take_leadership(&self, holder: &str) -> Result<LeaderTerm, StoreError> {
        self.down()?;
        self.inner.take_leadership(holder).await
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.inner.watch()
    }
}

/// The backend, with a client's turn before and after each of its calls, and time that passes.
struct Accompanied {
    inner: EmbeddedBackend,
    engine: Arc<EmbeddedEngine>,
    clock: Arc<ManualClock>,
    client: Arc<Mutex<Client>>,
    state: Arc<dyn StateStore>,
    way_back_broken: bool,
}

impl Accompanied {
    async fn turn(&self) {
        self.clock.advance_ms(1);
        self.client.lock().await.turn(&self.engine, &shard()).await;
    }
}

macro_rules! accompanied {
    ($self:ident, $call:expr) => {{
        $self.turn().await;
        let done = $call.await;
        $self.turn().await;
        done
    }};
}

#[async_trait]
impl Backend for Accompanied {
    fn kind(&self) -> BackendKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn external_objects(&self, spec: &MoveSpec) -> Vec<String> {
        self.inner.external_objects(spec)
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        accompanied!(self, self.inner.preflight(spec))
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        accompanied!(self, self.inner.prepare(spec))
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        accompanied!(self, self.inner.copy(spec, cursor))
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        accompanied!(self, self.inner.catch_up(spec))
    }

    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        accompanied!(self, self.inner.verify(spec, so_far))
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let done = accompanied!(self, self.inner.try_way_back(spec));
        if self.way_back_broken && done.is_ok() {
            return Err(BackendError::Permanent { doing: "trying the way back".to_owned(), why: "no way".to_owned() });
        }
        done
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        accompanied!(self, self.inner.fence(spec, deadline))
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        accompanied!(self, self.inner.unfence(spec))
    }

    async fn prove(&self, spec: &MoveSpec, fence_at: Position, verified: &Verification) -> Result<Proof, BackendError> {
        accompanied!(self, self.inner.prove(spec, fence_at, verified))
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        assert!(proof.applied >= proof.fence_at && proof.verification.differing.is_empty(), "M4");
        assert_eq!(proof.verification.next, None, "M4");
        accompanied!(self, self.inner.seal(spec, proof))
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        accompanied!(self, self.inner.source_state(spec))
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        if let Ok(state) = self.state.read().await {
            assert_eq!(state.owners[&shard()], Owner { node: spec.target.clone(), epoch }, "switched before it opens");
        }
        accompanied!(self, self.inner.open_target(spec, epoch))
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        accompanied!(self, self.inner.route(shard, owner, epoch))
    }

    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        accompanied!(self, self.inner.reverse_catch_up(spec))
    }

    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        accompanied!(self, self.inner.undo(spec))
    }

    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        accompanied!(self, self.inner.finish(spec))
    }

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        self.inner.observe().await
    }
}
