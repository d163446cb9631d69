//! Three nodes in this process, each on a store of its own on disk, and what a unit of work on them is in load.

use foreshard_domain::{Clock, CostModel, Epoch, NodeId, Owner, PerResource, ShardId, Step, Timestamp};
use foreshard_migrator::embedded::{
    Cost, EmbeddedBackend, EmbeddedEngine, EngineSettings, FjallStore, KvStore, LoadScale, MoveSettings,
};
use foreshard_migrator::{Change, StateStore};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use rand::RngCore as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::DemoError;
use super::clock::DayClock;
use super::scenario::Scenario;

/// Bytes that are really stored of all shards together, at the beginning.
const STORED_BYTES: f64 = 24.0 * 1_048_576.0;
/// Size of the rows that fill the shards.
const ROW_BYTES: usize = 16 * 1024;
/// Bytes of the modelled system copied per model second, as in the simulation.
const COPY_BYTES_PER_S: f64 = 60.0 * 1_048_576.0;
/// Share of a node's capacity that a copy takes, as in the simulation.
pub const COPY_SHARE: PerResource<f64> = PerResource { cpu: 0.08, memory: 0.0, io: 0.15 };
/// How many shards are filled at once.
const FILLING: usize = 8;
/// Identifiers of the writes that fill the shards; no client uses them.
const FILL_PREFIX: u128 = 0xF111 << 112;
/// Bytes that the clients of a shard really write in a real second, about: 7 writes of a list of some 100 bytes.
const WRITTEN_BYTES_PER_REAL_S: f64 = 700.0;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

/// The engine, its moves, and the scale between them and the model.
pub struct Cluster {
    /// Nodes and routes.
    pub engine: Arc<EmbeddedEngine>,
    /// Moves and observations.
    pub backend: Arc<EmbeddedBackend>,
    /// What a unit of real work is in load.
    pub scale: LoadScale,
    /// How many of a shard's last writes its stores recognise when they are repeated.
    pub write_id_window: u64,
}

impl Cluster {
    /// Opens stores under `folder`, puts every shard where hashing puts it, and fills it with its share of data.
    ///
    /// # Errors
    /// [`DemoError`] if a store or the state store fails.
    pub async fn open(
        scenario: &Scenario,
        folder: &Path,
        clock: &Arc<DayClock>,
        store: &dyn StateStore,
    ) -> Result<Self, DemoError> {
        let clock: Arc<dyn Clock> = Arc::clone(clock) as Arc<dyn Clock>;
        let data = data_bytes(scenario);
        let modelled: f64 = data.iter().sum();
        let scale = LoadScale { data: modelled / STORED_BYTES, ..LoadScale::default() };
        let settings = EngineSettings {
            scale,
            queue_for: Duration::from_secs(5),
            service_wait: Duration::from_secs(5),
            ..EngineSettings::default()
        };
        let write_id_window = settings.write_id_window;
        let mut nodes: Vec<(NodeId, Arc<dyn KvStore>, f64)> = Vec::new();
        for node in &scenario.topology.nodes {
            let at = folder.join(node.id.as_str());
            let kv = FjallStore::open(&at).map_err(DemoError::OpenNode)?;
            let capacity = scale.service_capacity(node.capacity.cpu.unwrap_or(f64::INFINITY));
            nodes.push((node.id.clone(), Arc::new(kv), capacity));
        }
        let engine = EmbeddedEngine::new(nodes, Arc::clone(&clock), settings).map_err(DemoError::Engine)?;
        let engine = Arc::new(engine);
        let moves = move_settings(scenario, &scale, clock.as_ref());
        let backend = Arc::new(EmbeddedBackend::new(Arc::clone(&engine), moves, clock));
        let cluster = Self { engine, backend, scale, write_id_window };
        cluster.place(scenario, store).await?;
        cluster.fill(scenario, &data).await?;
        cluster.fit_scales(scenario).await?;
        Ok(cluster)
    }

    /// Lets every shard begin the day with the size, memory and rate of writing that its history ends with: what a stored or
    /// written byte stands for differs from shard to shard.
    async fn fit_scales(&self, scenario: &Scenario) -> Result<(), DemoError> {
        for (index, shard) in scenario.shards.iter().enumerate() {
            let row = scenario.workload.at(index, last_step(scenario));
            let (_, stored) = self.engine.size(shard).await.map_err(DemoError::ReadBack)?;
            let modelled = row.data_bytes.unwrap_or(MIB).max(MIB);
            let scale = LoadScale {
                data: modelled / (stored as f64).max(1.0),
                memory_per_gib: row.mem_util.unwrap_or(0.0) / (modelled / GIB),
                written: row.write_bytes_per_s.unwrap_or(0.0) / WRITTEN_BYTES_PER_REAL_S,
                ..self.scale
            };
            self.engine.set_scale(shard, scale);
        }
        Ok(())
    }

    /// Creates the shards where hashing puts them and tells the state store.
    async fn place(&self, scenario: &Scenario, store: &dyn StateStore) -> Result<(), DemoError> {
        let mut changes = Vec::new();
        for (shard, node) in scenario.initial.iter() {
            self.engine.create_shard(shard, node, Epoch(1)).await.map_err(DemoError::Engine)?;
            let owner = Owner { node: node.clone(), epoch: Epoch(1) };
            changes.push(Change::SetOwner { shard: shard.clone(), expected: None, owner });
        }
        let term = store.take_leadership("demo set-up").await.map_err(DemoError::State)?;
        let revision = store.read().await.map_err(DemoError::State)?.revision;
        store.commit(revision, term, changes).await.map_err(DemoError::State)?;
        Ok(())
    }

    /// Writes rows until each shard holds its share of the data, through the same door as every client.
    async fn fill(&self, scenario: &Scenario, data: &[f64]) -> Result<(), DemoError> {
        let modelled: f64 = data.iter().sum();
        let jobs = scenario.shards.iter().zip(data).enumerate().map(|(index, (shard, bytes))| {
            let rows = (bytes / modelled * STORED_BYTES / ROW_BYTES as f64).ceil().max(1.0) as u64;
            let engine = Arc::clone(&self.engine);
            async move { fill_shard(&engine, shard, index as u64, rows).await }
        });
        stream::iter(jobs).buffer_unordered(FILLING).try_collect::<Vec<()>>().await?;
        Ok(())
    }
}

async fn fill_shard(engine: &EmbeddedEngine, shard: &ShardId, index: u64, rows: u64) -> Result<(), DemoError> {
    let mut rng = ChaCha8Rng::seed_from_u64(index);
    let free = Cost { service: 0.0, io: 0.0, transactions: 0.0 };
    for row in 0..rows {
        let mut value = vec![0; ROW_BYTES];
        rng.fill_bytes(&mut value);
        let id = FILL_PREFIX | u128::from(index) << 64 | u128::from(row);
        let key = format!("data/{row:08}").into_bytes();
        engine.write(shard, &key, Some(&value), id, free).await.map_err(DemoError::Fill)?;
    }
    Ok(())
}

/// The last step of the history.
fn last_step(scenario: &Scenario) -> Timestamp {
    scenario.day.plus_steps(-1, Step::FIVE_MINUTES)
}

/// Modelled bytes of every shard as the day begins.
fn data_bytes(scenario: &Scenario) -> Vec<f64> {
    let last = last_step(scenario);
    (0..scenario.shards.len()).map(|i| scenario.workload.at(i, last).data_bytes.unwrap_or(MIB).max(MIB)).collect()
}

/// How fast a copy goes and what it takes from its nodes: the simulation's figures, brought from the model to real bytes and
/// real seconds.
fn move_settings(scenario: &Scenario, scale: &LoadScale, clock: &dyn Clock) -> MoveSettings {
    let real_second_of_model = 1.0 / clock.real_duration(1000).as_secs_f64().max(1e-9);
    let stored_bytes_per_s = COPY_BYTES_PER_S * real_second_of_model / scale.data;
    let mib_per_s = (stored_bytes_per_s / MIB).max(1e-9);
    let capacity = scenario.topology.nodes.first().map(|node| node.capacity).unwrap_or_default();
    let service = scale.service_capacity(capacity.cpu.unwrap_or(0.0));
    let io = capacity.io.unwrap_or(0.0) / scale.io;
    MoveSettings {
        chunk_bytes: 64 * 1024,
        copy_bytes_per_s: Some(stored_bytes_per_s),
        service_per_mib: COPY_SHARE.cpu * service / mib_per_s,
        io_per_mib: COPY_SHARE.io * io / mib_per_s,
        service_per_change: 0.0,
        ..MoveSettings::default()
    }
}

/// The cost model before any outcome: the copy's rate, and its share of the nodes.
pub fn prior() -> CostModel {
    CostModel::prior(COPY_BYTES_PER_S)
}
