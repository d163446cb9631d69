//! Every option with its default; `config/example.toml` shows the same to people, and a test compares them.

use foreshard_policy::PolicySettings;
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
    /// How the control loop runs.
    pub control: ControlSettings,
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
    /// Seed of initial weights, sampling and dropout.
    pub seed: u64,
    /// Optimiser steps for each product, at most; early stopping may end sooner.
    pub steps: usize,
    /// Threads; 0 takes all cores. The result does not depend on it.
    pub threads: usize,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self { seed: 1, steps: 500, threads: 0 }
    }
}

/// `[serve]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeSettings {
    /// Address to listen on; anything but loopback is refused, since there is no TLS yet.
    pub listen: String,
    /// Rows that may wait for compute before requests are refused.
    pub queue_rows: usize,
    /// MiB of all scenario sets that are made or sent at once, before requests are refused.
    pub scenario_mib: u32,
    /// How often observations become pieces of the history.
    #[serde(with = "humantime_serde")]
    pub flush_every: Duration,
    /// How often the champion's label is looked at.
    #[serde(with = "humantime_serde")]
    pub reload_every: Duration,
    /// Days of observations kept in memory for each series.
    pub context_days: u32,
    /// How old the newest observation of a series may be before a fallback answers for it.
    #[serde(with = "humantime_serde")]
    pub stale_after: Duration,
    /// How far ahead of the clock an observation may lie before it is refused.
    #[serde(with = "humantime_serde")]
    pub ahead_at_most: Duration,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7654".into(),
            queue_rows: 65_536,
            scenario_mib: 1024,
            flush_every: Duration::from_secs(60),
            reload_every: Duration::from_secs(5),
            context_days: 35,
            stale_after: Duration::from_secs(3600),
            ahead_at_most: Duration::from_secs(15 * 60),
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

impl Settings {
    /// The defaults as a tree.
    pub fn default_table() -> Result<Table, toml::ser::Error> {
        Table::try_from(Self::default())
    }

    /// Reads settings: defaults < `file` < environment.
    ///
    /// # Errors
    /// All problems of all layers.
    pub fn load(file: Option<&Path>) -> Result<Self, crate::output::Failure> {
        let defaults = Self::default_table()?;
        let (mut layers, mut problems) = (Vec::new(), Vec::new());
        for layer in [file.map_or(Ok(Layer::default()), Layer::file), Layer::environment(std::env::vars(), &defaults)] {
            match layer {
                Ok(layer) => layers.push(layer),
                Err(Problems(found)) => problems.extend(found),
            }
        }
        let resolved = layers::resolve::<Self>(&defaults, layers);
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
}
