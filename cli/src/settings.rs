//! Every option with its default; `config/example.toml` shows the same to people, and a test compares them.

mod client;
mod export;
mod pull;
mod receive;
mod serve;

pub use client::ClientSettings;
pub use export::ExportSettings;
pub use pull::PullSettings;
pub use receive::RemoteWriteSettings;
pub use serve::ServeSettings;

use foreshard_migrator::DriverConfig;
use foreshard_migrator::postgres::{PostgresSettings, PrometheusUrl};
use foreshard_model::ModelKind;
use foreshard_policy::PolicySettings;
use foreshard_training::DriftLimits;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Table;

use crate::layers::{self, Layer, Problems};

/// All settings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where histories and what belongs to them are.
    pub data: DataSettings,
    /// Where versions are.
    pub registry: RegistrySettings,
    /// How a forecaster is fitted.
    pub train: TrainSettings,
    /// How forecasts are served.
    pub serve: ServeSettings,
    /// How servers are asked.
    pub client: ClientSettings,
    /// How the control loop runs.
    pub control: ControlSettings,
    /// Where the state store is, and where its holder is reached.
    pub store: StoreSettings,
    /// How moves are carried out.
    pub migrate: MigrateSettings,
    /// PostgreSQL servers and poolers.
    pub postgres: PostgresSettings,
    /// What the planner wants and may do.
    pub policy: PolicySettings,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// History: a file, or the dated folder that `serve` writes.
    pub history: PathBuf,
    /// Nodes, capacities, zones and rules.
    pub topology: PathBuf,
    /// Communication between shards (CSV or Parquet); empty for none.
    pub communication: PathBuf,
    /// Known events (CSV or Parquet); empty for none.
    pub events: PathBuf,
    /// Time zone whose wall clock the loads follow.
    pub zone: String,
    /// Folder of outcomes of moves.
    pub outcomes: PathBuf,
    /// Folder of decisions.
    pub decisions: PathBuf,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            history: "history".into(),
            topology: "topology.toml".into(),
            communication: PathBuf::new(),
            events: PathBuf::new(),
            zone: "UTC".into(),
            outcomes: "outcomes".into(),
            decisions: "decisions".into(),
        }
    }
}

/// `[registry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// Folder of the registry.
    pub path: PathBuf,
    /// Name of the model in it.
    pub model: String,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { path: "registry".into(), model: "load".into() }
    }
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// What is trained.
    pub model: ModelKind,
    /// Seed of initial weights, sampling and dropout.
    pub seed: u64,
    /// Optimiser steps for each product, at most; early stopping may end sooner.
    pub steps: usize,
    /// Threads; 0 takes all cores. The result does not depend on it.
    pub threads: usize,
    /// MiB of rows of a history that are held in memory; a larger one is read through a scratch file in the registry's
    /// folder. The result does not depend on it.
    pub memory_mib: usize,
    /// Versions of a model that `train --schedule` keeps; those that bear a label always stay.
    pub keep: usize,
    /// From where on the champion counts as no longer fit for the loads.
    pub drift: DriftLimits,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            model: ModelKind::Lstm,
            seed: 1,
            steps: 500,
            threads: 0,
            memory_mib: 512,
            keep: 30,
            drift: DriftLimits::default(),
        }
    }
}

/// `[control]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSettings {
    /// The serving process.
    pub server: String,
    /// How often the loop plans.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Scenarios asked for a plan.
    pub scenarios: usize,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self { server: "http://127.0.0.1:7654".into(), every: Duration::from_secs(300), scenarios: 100 }
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSettings {
    /// File of the state store: owners and epochs, migrations, plans.
    pub path: PathBuf,
    /// Unix socket of the process that holds the store.
    pub socket: PathBuf,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { path: "foreshard.redb".into(), socket: "foreshard.sock".into() }
    }
}

/// `[migrate]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateSettings {
    /// How long a fence may last before it expires by itself.
    #[serde(with = "humantime_serde")]
    pub fence_limit: Duration,
    /// How many fences may be tried after the first.
    pub more_fences: u32,
    /// How many changes the target may be behind when the fence begins.
    pub near_changes: u64,
    /// How often changes may be applied without coming that near.
    pub catch_up_rounds: u32,
    /// How often a call that failed for now is tried again.
    pub retries: u32,
    /// Pause before the first of these tries, doubled for each further one.
    #[serde(with = "humantime_serde")]
    pub first_backoff: Duration,
    /// The longest of these pauses.
    #[serde(with = "humantime_serde")]
    pub max_backoff: Duration,
    /// How long the source's data is kept after a move.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// How long migrations that have ended are remembered.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// How many of the last ended ones are remembered however old they are.
    pub keep_newest: usize,
    /// Bytes copied per second; as fast as possible if left out.
    pub pace_bytes_per_s: Option<f64>,
}

impl Default for MigrateSettings {
    fn default() -> Self {
        let DriverConfig {
            fence_limit,
            more_fences,
            near_changes,
            catch_up_rounds,
            retries,
            first_backoff,
            max_backoff,
            retention_ms,
            keep_ms,
            keep_newest,
            pace_bytes_per_s,
        } = DriverConfig::default();
        let duration = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let (retention, keep) = (duration(retention_ms), duration(keep_ms));
        Self {
            fence_limit,
            more_fences,
            near_changes,
            catch_up_rounds,
            retries,
            first_backoff,
            max_backoff,
            retention,
            keep,
            keep_newest,
            pace_bytes_per_s,
        }
    }
}

impl MigrateSettings {
    /// The same as the driver wants it.
    pub fn driver(&self) -> DriverConfig {
        DriverConfig {
            fence_limit: self.fence_limit,
            more_fences: self.more_fences,
            near_changes: self.near_changes,
            catch_up_rounds: self.catch_up_rounds,
            retries: self.retries,
            first_backoff: self.first_backoff,
            max_backoff: self.max_backoff,
            retention_ms: i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX),
            keep_ms: i64::try_from(self.keep.as_millis()).unwrap_or(i64::MAX),
            keep_newest: self.keep_newest,
            pace_bytes_per_s: self.pace_bytes_per_s,
        }
    }
}

impl Settings {
    /// The defaults as a tree.
    pub fn default_table() -> Result<Table, toml::ser::Error> {
        Table::try_from(Self::default())
    }

    /// Every option as a tree: the defaults, and an example where there is none.
    fn known_table() -> Result<Table, toml::ser::Error> {
        let mut all = Self::default();
        all.migrate.pace_bytes_per_s = Some(0.0);
        all.postgres.copy_bytes_per_s = Some(0.0);
        all.postgres.pace.node_bytes_per_s = Some(0.0);
        all.postgres.pace.total_bytes_per_s = Some(0.0);
        all.postgres.prometheus.url = PrometheusUrl::try_from("http://localhost:9090".to_owned()).ok();
        Table::try_from(all)
    }

    /// Reads settings: defaults < `file` < environment.
    ///
    /// # Errors
    /// All problems of all layers.
    pub fn load(file: Option<&Path>) -> Result<Self, crate::output::Failure> {
        let (defaults, known) = (Self::default_table()?, Self::known_table()?);
        let (mut layers, mut problems) = (Vec::new(), Vec::new());
        let in_file = file.map_or(Ok(Layer::default()), |path| Layer::file(path, &known));
        for layer in [in_file, Layer::environment(std::env::vars_os(), &known)] {
            match layer {
                Ok(layer) => layers.push(layer),
                Err(Problems(found)) => problems.extend(found),
            }
        }
        let resolved = layers::resolve::<Self>(&defaults, &known, layers);
        match resolved {
            Ok(settings) if problems.is_empty() => Ok(settings),
            Ok(_) => Err(Problems(problems).into()),
            Err(Problems(found)) => {
                problems.extend(found);
                Err(Problems(problems).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_file_holds_every_option_with_its_default() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/example.toml"));
        let text = std::fs::read_to_string(path).unwrap();
        let example: Table = text.parse().unwrap();
        let defaults = Settings::default_table().unwrap();
        assert_eq!(toml::to_string(&example).unwrap(), toml::to_string(&defaults).unwrap());
    }

    #[test]
    fn a_cluster_can_be_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("foreshard.toml");
        let text = r#"
[migrate]
retention = "7d"
pace_bytes_per_s = 1e6
[postgres]
long_transactions = { refuse = { after = "1m" } }
poolers = [{ name = "p1", host = "localhost", port = 6432, user = "admin", routes = "/etc/pgbouncer/shards.ini" }]
[postgres.prometheus]
url = "http://prom:9090"
instances = { "db1.example" = "db1:9100" }
[postgres.nodes."db1.example"]
host = "db1"
port = 5432
user = "postgres"
"#;
        std::fs::write(&path, text).unwrap();
        let settings = Settings::load(Some(&path)).unwrap();
        assert_eq!(settings.migrate.driver().retention_ms, 7 * 86_400_000);
        assert_eq!(settings.migrate.driver().pace_bytes_per_s, Some(1e6));
        assert_eq!(settings.postgres.nodes.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["db1.example"]);
        assert_eq!(settings.postgres.poolers.len(), 1);
        assert_eq!(settings.postgres.prometheus.instances.len(), 1);
        assert_eq!(MigrateSettings::default().driver(), foreshard_migrator::DriverConfig::default());
        std::fs::write(&path, "[postgres.nodes.n1]\nhost = \"a\"\nport = 1\nuser = \"u\"\nprot = 2\n").unwrap();
        let error = Settings::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("postgres.nodes") && error.contains("prot"), "{error}");
        std::fs::write(&path, "[postgres.prometheus]\nurl = \"https://prom:9090\"\n").unwrap();
        let error = Settings::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("postgres.prometheus.url") && error.contains("plain http"), "{error}");
    }
}
