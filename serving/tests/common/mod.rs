//! A server on a free port in a temporary folder, and versions that can be held, counted and broken.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod plain_http;

use foreshard_api::{ClientError, ForecastClient, ForecastQuery};
use foreshard_domain::{
    Calibration, ManualClock, Metric, ModelVersion, Observation, Product, Provenance, QuantileForecast, RealTime,
    RiskCalibration, ScenarioError, ScenarioSet, SeriesForecast, ShardId, Timestamp,
};
use foreshard_model::{Context, ForecastSpec, any_step_corrected, scenarios_from};
use foreshard_serving::{LoadError, RunningServer, ServedVersion, ServingConfig, VersionLoader, start_with};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub const MINUTE: i64 = 60_000;

/// Where versions of a test are held, and what they were asked.
#[derive(Default)]
pub struct Gate {
    held: Mutex<BTreeSet<u64>>,
    loading_held: Mutex<BTreeSet<u64>>,
    loading: Mutex<BTreeSet<u64>>,
    changed: Condvar,
    asked: Mutex<Vec<String>>,
}

impl Gate {
    /// Lets version `number` wait inside its next forecasts.
    pub fn hold(&self, number: u64) {
        self.held.lock().unwrap().insert(number);
    }

    pub fn release(&self, number: u64) {
        self.held.lock().unwrap().remove(&number);
        self.changed.notify_all();
    }

    /// Lets version `number` wait inside its next load.
    pub fn hold_loading(&self, number: u64) {
        self.loading_held.lock().unwrap().insert(number);
    }

    pub fn release_loading(&self, number: u64) {
        self.loading_held.lock().unwrap().remove(&number);
    }

    /// Whether version `number` began to load.
    pub fn loads(&self, number: u64) -> bool {
        self.loading.lock().unwrap().contains(&number)
    }

    fn pass_loading(&self, number: u64) {
        self.loading.lock().unwrap().insert(number);
        while self.loading_held.lock().unwrap().contains(&number) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The shards that versions began to forecast, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn pass(&self, number: u64, contexts: &[Context<'_>]) {
        self.asked.lock().unwrap().extend(contexts.iter().map(|c| c.shard.to_string()));
        let mut held = self.held.lock().unwrap();
        while held.contains(&number) {
            held = self.changed.wait(held).unwrap();
        }
    }
}

/// Forecasts the last value of a context plus `number` thousandths, with a width of two.
struct TestVersion {
    id: ModelVersion,
    specs: [ForecastSpec; 2],
    /// Added to the log odds of every probability: only the second version corrects.
    bias: f64,
    gate: Arc<Gate>,
}

impl ServedVersion for TestVersion {
    fn id(&self) -> ModelVersion {
        self.id.clone()
    }

    fn spec(&self, product: Product) -> Option<&ForecastSpec> {
        Some(&self.specs[usize::from(product == Product::NextDay)])
    }

    fn forecast(&self, product: Product, contexts: &[Context<'_>]) -> Vec<SeriesForecast> {
        if contexts.iter().all(|c| c.shard.as_str() != "rehearsal") {
            self.gate.pass(self.id.number, contexts);
        }
        assert!(contexts.iter().all(|c| c.shard.as_str() != "panic"), "this shard is poison");
        let spec = self.spec(product).unwrap();
        let one = |context: &Context<'_>| {
            let last = context.values.iter().rev().find(|v| v.is_finite()).copied().unwrap_or(0.0);
            let row = spec.levels.as_slice().iter().map(|level| last + (*level as f32 - 0.5) * 2.0);
            let row: Vec<f32> = row.collect();
            SeriesForecast {
                shard: context.shard.clone(),
                metric: context.metric,
                issued_at: context.issued_at(),
                step: context.step,
                forecast: QuantileForecast::new(spec.levels.clone(), row.repeat(spec.horizon)).unwrap(),
                provenance: Provenance {
                    version: Some(self.id()),
                    last_observed: context.last_observed(),
                    missing_share: 0.0,
                    calibration: Calibration::SplitConformal,
                    fallback: None,
                },
            }
        };
        contexts.iter().map(one).collect()
    }

    fn p_any(&self, _: Product, series: (&ShardId, Metric), forecast: &QuantileForecast, limit: f64) -> f64 {
        any_step_corrected(&RiskCalibration { bias: self.bias, slope: 1.0 }, None, series, forecast, limit)
    }

    fn group_risk(&self, _: Product) -> RiskCalibration {
        RiskCalibration { bias: self.bias, slope: 1.0 }
    }

    fn scenarios(
        &self,
        _: Product,
        forecasts: &[SeriesForecast],
        scenarios: usize,
        seed: u64,
    ) -> Result<ScenarioSet, ScenarioError> {
        scenarios_from(None, forecasts, scenarios, seed)
    }
}

/// Loads folders that hold a file `version` with `<model>/<number>` in it.
pub struct TestLoader(pub Arc<Gate>);

impl VersionLoader for TestLoader {
    fn load(&self, dir: &Path) -> Result<Arc<dyn ServedVersion>, LoadError> {
        let text = fs::read_to_string(dir.join("version"))?;
        let (model, number) = text.split_once('/').ok_or("checksum of the version file is wrong")?;
        let id = ModelVersion { model: model.to_owned(), number: number.parse()? };
        self.0.pass_loading(id.number);
        let specs = [Product::NextHours, Product::NextDay].map(ForecastSpec::of_product);
        let bias = if id.number == 2 { -1.0 } else { 0.0 };
        Ok(Arc::new(TestVersion { id, specs, bias, gate: Arc::clone(&self.0) }))
    }

    fn trained_until(&self, dir: &Path) -> Result<Timestamp, LoadError> {
        fs::metadata(dir.join("version"))?;
        Ok(Timestamp::from_ms(42))
    }
}

/// A folder with a registry and a history, a clock that stands still, and the gate of the versions.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub gate: Arc<Gate>,
}

impl Place {
    pub fn new() -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_ms(40 * 24 * 60 * MINUTE), RealTime::from_ms(0)));
        Self { dir: tempfile::tempdir().unwrap(), clock, gate: Arc::default() }
    }

    /// Ticks are off: what happens in the background is called by the tests. So are kept answers: every question reaches a
    /// version.
    pub fn config(&self) -> ServingConfig {
        ServingConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            registry: self.dir.path().join("registry"),
            model: "load".to_owned(),
            history: self.dir.path().join("history"),
            flush_every: Duration::from_secs(3600),
            reload_every: Duration::from_secs(3600),
            stale_after: Duration::from_secs(100 * 24 * 3600),
            cache_mib: 0,
            ..ServingConfig::default()
        }
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("history.log")
    }

    pub fn version_dir(&self, number: u64) -> PathBuf {
        self.dir.path().join("registry/load").join(number.to_string())
    }

    pub fn publish(&self, number: u64) {
        self.publish_text(number, &format!("load/{number}"));
    }

    pub fn publish_text(&self, number: u64, text: &str) {
        fs::create_dir_all(self.version_dir(number)).unwrap();
        fs::write(self.version_dir(number).join("version"), text).unwrap();
    }

    pub fn label(&self, champion: u64) {
        let path = self.dir.path().join("registry/load");
        let text = format!(r#"{{"champion": {champion}, "challenger": null, "last_good": 1}}"#);
        fs::write(path.join("labels.new"), text).unwrap();
        fs::rename(path.join("labels.new"), path.join("labels.json")).unwrap();
    }

    pub async fn start(&self, config: ServingConfig) -> RunningServer {
        let loader = Arc::new(TestLoader(Arc::clone(&self.gate)));
        start_with(config, Arc::clone(&self.clock) as _, loader).await.unwrap()
    }
}

pub async fn client(server: &RunningServer) -> ForecastClient {
    ForecastClient::connect(&server.endpoint()).await.unwrap()
}

pub fn shard(name: &str) -> ShardId {
    ShardId::new(name).unwrap()
}

/// A row with CPU and I/O load at a minute since the epoch.
pub fn row(name: &str, minute: i64, cpu: f64) -> Observation {
    let mut row = Observation::empty(shard(name), Timestamp::from_ms(minute * MINUTE));
    row.cpu_util = Some(cpu);
    row.io_ops = Some(10.0 * cpu);
    row
}

/// Rows every 5 minutes for `n` steps, of load `i`.
pub fn rows(name: &str, n: i64) -> Vec<Observation> {
    (0..n).map(|i| row(name, 5 * i, i as f64)).collect()
}

pub fn next_hours(shards: &[&str]) -> ForecastQuery {
    ForecastQuery {
        shards: shards.iter().map(|name| shard(name)).collect(),
        metrics: vec![Metric::CpuUtil],
        product: Product::NextHours,
        levels: vec![],
    }
}

/// The median of the first step.
pub fn median(series: &SeriesForecast) -> f32 {
    series.forecast.quantile(0, 0.5).unwrap()
}

pub fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> tonic::Code {
    answer.unwrap_err().code().expect("the server answered")
}

/// Waits until something is so; the test's own limit ends it otherwise.
pub async fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
