//! The whole loop in one process: history, training, serving, and a day of real traffic under which shards move.
//!
//! Nothing in it is a show: the stores are on disk, the forecasts come over gRPC, an overloaded node makes clients wait in its
//! queue, and the figures are counted by whoever knows them. Clients know the writes. Overload is accounted by the minute from
//! what clients wanted, on the placement as it was and on the one that nothing changed (that day is accounted, not lived
//! again). One thing alone is not real, and that is time: a day passes in about a minute and a half.

mod accounts;
mod clock;
mod cluster;
mod day;
mod error;
mod held;
mod latency;
mod learn;
mod ledger;
mod overload;
mod report;
mod scenario;
mod score;
mod traffic;

use async_trait::async_trait;
use foreshard_datasets::HistoryFolder;
use foreshard_domain::Clock;
use foreshard_migrator::{RedbStore, StateStore};
use foreshard_serving::{RunningServer, ServingConfig};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::time::Instant;

use self::clock::DayClock;
use self::cluster::Cluster;
use self::day::{Lived, Stage};
use self::learn::Learned;
use self::report::{BeforeAfter, Compared, Reads, Writes};
use self::scenario::Scenario;

pub use self::error::DemoError;
pub use self::report::{DemoReport, render_table};

/// Real seconds that the day takes.
const DAY_REAL_S: f64 = 84.0;

/// What a demonstration is run with.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {
    /// Seed of history, placement, traffic and training.
    pub seed: u64,
    /// Where everything is written and stays; a temporary folder, removed at the end, if left out.
    pub folder: Option<PathBuf>,
}

/// Who is told how it goes.
#[async_trait]
pub trait DemoProgress: Send {
    /// One line.
    fn say(&mut self, line: &str);

    /// How far a long part has come.
    fn progress(&mut self, what: &str, done: u64, total: u64);

    /// Everything is known, and serving still answers at `server`; it stops when this returns.
    async fn finished(&mut self, _report: &DemoReport, _server: SocketAddr) {}
}

/// Where things are kept under the folder of a demonstration.
struct Places {
    root: PathBuf,
    /// Removes a temporary folder when dropped.
    _temporary: Option<tempfile::TempDir>,
}

impl Places {
    fn new(folder: Option<PathBuf>) -> Result<Self, DemoError> {
        let made = |source| DemoError::Folder { source };
        if let Some(root) = folder {
            std::fs::create_dir_all(&root).map_err(made)?;
            if std::fs::read_dir(&root).map_err(made)?.next().is_some() {
                return Err(DemoError::NotEmpty { path: root });
            }
            return Ok(Self { root, _temporary: None });
        }
        let temporary = tempfile::Builder::new().prefix("foreshard-demo-").tempdir().map_err(made)?;
        Ok(Self { root: temporary.path().to_owned(), _temporary: Some(temporary) })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// Runs the demonstration.
///
/// # Errors
/// [`DemoError`] if any part cannot do its work. That writes were lost or moves failed is no error but a finding, see
/// [`DemoReport::passed`].
pub async fn run(options: DemoOptions, out: &mut dyn DemoProgress) -> Result<DemoReport, DemoError> {
    let began = Instant::now();
    let seed = options.seed;
    let places = Places::new(options.folder)?;
    let scenario = Arc::new(set_scene(seed, &places, out).await?);
    let before = learn::first(&places.at("history"), &places.at("registry"), seed, out).await?;
    let clock = Arc::new(DayClock::standing_at(scenario.day, 86_400.0 / DAY_REAL_S));
    let (stage, serving) = set_stage(scenario, &clock, &places, seed, out).await?;
    out.say("the day begins: clients read and write, control observes, plans and moves");
    let lived = stage.live(&places.root, out).await?;
    // What serving has in its log becomes history, to learn from and to be scored against.
    serving.flush().await.map_err(DemoError::Serving)?;
    out.say("retraining the forecaster on what was observed, refitting the cost of moves on what they took");
    let learned = learn::again(&places.root, &lived, seed, out).await?;
    let report = report(&stage, &places, lived, (before, learned), began)?;
    out.finished(&report, stage.server).await;
    serving.shutdown().await.map_err(DemoError::Serving)?;
    Ok(report)
}

/// Generates and writes the history.
async fn set_scene(seed: u64, places: &Places, out: &mut dyn DemoProgress) -> Result<Scenario, DemoError> {
    out.say(&format!("seed {seed}: {} days of history for {} shards", scenario::HISTORY_DAYS, scenario::SHARDS));
    let history = places.at("history");
    let (scenario, rows) = blocking(move || {
        let scenario = Scenario::new(seed)?;
        let rows: Vec<_> = scenario.workload.rows().collect();
        let folder = HistoryFolder::open(history, "generator").map_err(DemoError::History)?;
        folder.append(&rows).map_err(DemoError::History)?;
        Ok((scenario, rows.len()))
    })
    .await?;
    out.say(&format!("  {rows} rows written as Parquet"));
    Ok(scenario)
}

/// Opens the stores and starts serving; the clock stands until all is ready.
async fn set_stage(
    scenario: Arc<Scenario>,
    clock: &Arc<DayClock>,
    places: &Places,
    seed: u64,
    out: &mut dyn DemoProgress,
) -> Result<(Stage, RunningServer), DemoError> {
    let serving = serve(places, clock).await?;
    out.say(&format!("serving on {}; three nodes on disk in {}", serving.addr(), places.root.display()));
    let store: Arc<dyn StateStore> = Arc::new(open_state(&places.at("state.redb"))?);
    let cluster = Cluster::open(&scenario, &places.at("nodes"), clock, store.as_ref()).await?;
    let server = serving.addr();
    Ok((Stage { scenario, clock: Arc::clone(clock), cluster, store, server, seed }, serving))
}

fn open_state(path: &Path) -> Result<RedbStore, DemoError> {
    RedbStore::open(path).map_err(DemoError::State)
}

async fn serve(places: &Places, clock: &Arc<DayClock>) -> Result<RunningServer, DemoError> {
    let config = ServingConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        registry: places.at("registry"),
        model: learn::MODEL.to_owned(),
        history: places.at("history"),
        ..ServingConfig::default()
    };
    foreshard_serving::start(config, Arc::clone(clock) as Arc<dyn Clock>).await.map_err(DemoError::Serving)
}

fn report(
    stage: &Stage,
    places: &Places,
    lived: Lived,
    (before, learned): (String, Learned),
    began: Instant,
) -> Result<DemoReport, DemoError> {
    let overload = accounts::overload(&stage.scenario, &lived);
    let (traffic, check) = (&lived.traffic, lived.check);
    Ok(DemoReport {
        seed: stage.seed,
        nodes: scenario::NODES as u64,
        shards: scenario::SHARDS as u64,
        day: stage.scenario.day.to_string(),
        overload_minutes: Compared {
            with: overload.with.minutes.round() as u64,
            without: overload.without.minutes.round() as u64,
        },
        overload_area: Compared { with: overload.with.area, without: overload.without.area },
        moves: accounts::moves(&lived),
        bytes_moved: accounts::bytes_moved(&lived),
        fence_ms: accounts::fence_times(&lived),
        client_p99_ms: accounts::client_p99(&lived),
        writes: Writes {
            acknowledged: check.acknowledged,
            lost: check.lost,
            doubled: check.doubled,
            foreign: check.foreign,
            repeated: traffic.repeated,
            repeated_after_move: traffic.repeated_after_move,
            refused: traffic.refused,
        },
        reads: Reads { answered: traffic.reads, stale: traffic.stale },
        forecast: accounts::forecast_score(&places.at("history"), &lived.issued)?,
        model_version: BeforeAfter { before, after: learned.champion },
        retraining: learned.retraining,
        cost_model: learned.cost_model,
        cost_refit: learned.cost_refit,
        took_s: began.elapsed().as_secs_f64(),
    })
}

/// Runs work that computes or waits for a disk away from the threads that answer clients.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DemoError> + Send + 'static,
) -> Result<T, DemoError> {
    tokio::task::spawn_blocking(work).await.map_err(DemoError::Task)?
}
