//! What can be typed. Meaning is given to it in `commands`.

mod migrate;
mod prometheus;

pub use migrate::{MigrateCommand, MigrateStartArgs};
pub use prometheus::RangeArgs;

use clap::{Args, Parser, Subcommand, ValueEnum};
use foreshard_domain::{Metric, NodeId, Product, ShardId, Timestamp};
use foreshard_model::ModelKind;
use std::path::PathBuf;

use crate::output::Format;

/// Moves database shards before their node runs hot.
#[derive(Debug, Parser)]
#[command(name = "foreshard", version, max_term_width = 110)]
pub struct Cli {
    /// Settings file; `foreshard.toml` in the working directory is read if there is one
    #[arg(long, global = true, env = "FORESHARD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Form of what is printed on standard output
    #[arg(long, global = true, default_value = "text", value_name = "FORM")]
    pub output: Format,
    /// What to log on standard error, such as `info` or `foreshard_serving=debug`
    #[arg(long, global = true, env = "FORESHARD_LOG", default_value = "warn", value_name = "FILTER")]
    pub log: String,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole loop in one process: history, training, serving, moves under traffic, retraining
    Demo(DemoArgs),
    /// Import, generate and inspect histories
    #[command(subcommand)]
    Data(DataCommand),
    /// Fit, calibrate, backtest, gate and write a version of the forecaster
    Train(TrainArgs),
    /// Rolling-origin evaluation of a forecaster on histories
    Evaluate(EvaluateArgs),
    /// One forecast, from the registry or from a server
    Forecast(ForecastArgs),
    /// Serve forecasts over gRPC and take observations in
    Serve(ServeArgs),
    /// One plan with its reasons
    Plan(PlanArgs),
    /// Check a plan with the independent checker
    Check(CheckArgs),
    /// Replay a history under a policy and count overload minutes
    Simulate(SimulateArgs),
    /// Run the control loop: observe, forecast, plan, check, record
    Control(ControlArgs),
    /// Moves by hand, those under way, and who owns which shard
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// The registry of versions
    #[command(subcommand)]
    Models(ModelsCommand),
}

fn node_speed(text: &str) -> Result<(NodeId, f64), String> {
    let (node, factor) = text.split_once('=').ok_or("must look like NODE=1.5")?;
    let factor: f64 = factor.parse().map_err(|_| format!("{factor} is no number"))?;
    Ok((NodeId::new(node).map_err(|e| e.to_string())?, factor))
}

fn moment(text: &str) -> Result<Timestamp, String> {
    let parsed: jiff::Timestamp = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    Ok(Timestamp::from_ms(parsed.as_millisecond()))
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Seed of history, traffic and training
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Keep serving after the table, until interrupted
    #[arg(long)]
    pub serve: bool,
    /// Folder for history, registry and stores; a temporary one if left out, removed at the end
    #[arg(long, value_name = "FOLDER")]
    pub keep: Option<PathBuf>,
}

/// Subcommands of `data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Read a history in another form, or series of Prometheus, and write it as a history
    Import {
        /// Parquet or CSV file, or a dated folder
        #[arg(long, value_name = "PATH", required_unless_present = "prometheus")]
        from: Option<PathBuf>,
        /// History file to write (ending in `.parquet`), or folder to fill with dated pieces
        #[arg(long, value_name = "PATH")]
        to: PathBuf,
        /// CPU speed of a node relative to the reference node, as NODE=FACTOR; its utilisation is multiplied by it
        #[arg(long, value_name = "NODE=FACTOR", value_parser = node_speed)]
        speed: Vec<(NodeId, f64)>,
        /// What else can be the source
        #[command(flatten)]
        range: RangeArgs,
    },
    /// Write a seeded workload
    Generate {
        /// History file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Number of shards
        #[arg(long, default_value_t = 24)]
        shards: usize,
        /// Days of history
        #[arg(long, default_value_t = 42)]
        days: u32,
        /// Seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Time zone of the daily and weekly rhythm
        #[arg(long, default_value = "UTC")]
        zone: String,
        /// Parquet file for its campaigns, and for those announced for the four weeks after it
        #[arg(long, value_name = "FILE")]
        events: Option<PathBuf>,
        /// Time after the last row [default: a fixed day, so that the same seed gives the same file]
        #[arg(long, value_name = "RFC3339", value_parser = moment)]
        end: Option<Timestamp>,
    },
    /// Coverage, gaps, ranges and seasonality of a history
    Inspect {
        /// History file or dated folder
        path: PathBuf,
    },
}

/// What is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Evaluated {
    /// The LSTM with quantile heads
    Lstm,
    /// A ridge regression for each step on the same features, with the quantiles of its errors
    Ridge,
    /// Prophet, fitted once for each series (needs a build with `--features prophet`)
    Prophet,
    /// MSTL with exponential smoothing, fitted anew in every window (needs a build with `--features prophet`)
    Mstl,
    /// The value a day earlier, with the errors that this made
    SeasonalNaive,
    /// The value a week earlier, with the errors that this made
    WeeklyNaive,
    /// The mean of the same slot of the week over four weeks, with the errors that this made
    SeasonalMean,
    /// The last value, with the errors that this made
    LastValue,
}

fn model(text: &str) -> Result<ModelKind, String> {
    let known = [ModelKind::Lstm, ModelKind::Ridge, ModelKind::Prophet].into_iter().find(|kind| kind.name() == text);
    known.ok_or_else(|| "known are lstm, ridge and prophet".to_owned())
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// History file or dated folder [default: data.history of the settings]
    #[arg(long, value_name = "PATH")]
    pub history: Option<PathBuf>,
    /// Known events (CSV or Parquet: start, end, name and perhaps shard_id) [default: data.events of the settings]
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Registry [default: registry.path of the settings]
    #[arg(long, value_name = "FOLDER")]
    pub registry: Option<PathBuf>,
    /// `lstm`, `ridge` or `prophet` (which needs a build with `--features prophet`) [default: train.model of the settings]
    #[arg(long, value_parser = model)]
    pub model: Option<ModelKind>,
    /// Seed [default: train.seed of the settings]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Optimiser steps for each product, of networks [default: train.steps of the settings]
    #[arg(long)]
    pub steps: Option<usize>,
    /// Folder for checkpoints; training goes on from the newest one that fits
    #[arg(long, value_name = "FOLDER")]
    pub checkpoint: Option<PathBuf>,
    /// Train only if the champion no longer fits the loads (limits in train.drift of the settings), or there is none
    #[arg(long)]
    pub if_drifted: bool,
    /// Train whenever this cron expression is due, in the time zone data.zone, until stopped; such as "30 2 * * *"
    #[arg(long, value_name = "CRON")]
    pub schedule: Option<String>,
}

/// Rivals to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compare {
    /// No rival but seasonal naive, which every report needs
    None,
    /// Rivals that need no training
    Fast,
    /// Those; `ridge`; beside a network that is trained here the same without its recurrent part (`lags_only`); and, where
    /// built with `--features prophet`, `prophet` and `mstl`
    All,
}

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Histories: files or dated folders
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub history: Vec<PathBuf>,
    /// `5T`, `15T`, `ETT_1H` or a protocol file
    #[arg(long)]
    pub protocol: String,
    /// Known events (CSV or Parquet: start, end, name and perhaps shard_id) [default: data.events of the settings]
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Forecasts file to write (Parquet)
    #[arg(long, value_name = "FILE")]
    pub forecasts: Option<PathBuf>,
    /// Report to write: `.html`, or `.json` for the figures alone
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Score this version instead of training one; refused if its training window overlaps the scored windows
    #[arg(long)]
    pub version: Option<u64>,
    /// Registry of that version [default: registry.path of the settings]
    #[arg(long, value_name = "FOLDER")]
    pub registry: Option<PathBuf>,
    /// What to evaluate
    #[arg(long, default_value = "lstm")]
    pub model: Evaluated,
    /// Rivals
    #[arg(long, default_value = "none")]
    pub compare: Compare,
    /// Judge the risk of so many random groups of 2 to 8 shards, each as if it shared a node (models with templates only)
    #[arg(long, value_name = "GROUPS")]
    pub node_risk: Option<usize>,
    /// Seed [default: train.seed of the settings]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Optimiser steps [default: train.steps of the settings]
    #[arg(long)]
    pub steps: Option<usize>,
}

fn product(text: &str) -> Result<Product, String> {
    let known = Product::ALL.into_iter().find(|p| p.name() == text);
    known.ok_or_else(|| "known are next_hours and next_day".to_owned())
}

/// Arguments of `forecast`.
#[derive(Debug, Args)]
pub struct ForecastArgs {
    /// Ask this server, such as http://127.0.0.1:7654, instead of the registry
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Shards; all if left out
    #[arg(long = "shard", value_name = "SHARD")]
    pub shards: Vec<ShardId>,
    /// Metrics; all that the shard has if left out
    #[arg(long = "metric", value_name = "METRIC")]
    pub metrics: Vec<Metric>,
    /// `next_hours` or `next_day`
    #[arg(long, default_value = "next_hours", value_parser = product)]
    pub product: Product,
    /// Quantile levels; the trained ones if left out, levels in between are interpolated
    #[arg(long = "level", value_name = "LEVEL")]
    pub levels: Vec<f64>,
    /// History, without a server [default: data.history of the settings]
    #[arg(long, value_name = "PATH")]
    pub history: Option<PathBuf>,
    /// Known events (CSV or Parquet: start, end, name and perhaps shard_id), without a server [default: data.events of the settings]
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Registry, without a server [default: registry.path of the settings]
    #[arg(long, value_name = "FOLDER")]
    pub registry: Option<PathBuf>,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes a free one [default: serve.listen of the settings]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Address for /livez, /readyz and /metrics over HTTP, or `none` [default: serve.http of the settings]
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
    /// Folder of the history that is taken in and served from [default: data.history of the settings]
    #[arg(long, value_name = "FOLDER")]
    pub history: Option<PathBuf>,
    /// Known events (CSV or Parquet: start, end, name and perhaps shard_id) [default: data.events of the settings]
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Registry [default: registry.path of the settings]
    #[arg(long, value_name = "FOLDER")]
    pub registry: Option<PathBuf>,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Nodes, capacities and rules [default: data.topology of the settings]
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// History, without a server [default: data.history of the settings]
    #[arg(long, value_name = "PATH")]
    pub history: Option<PathBuf>,
    /// Registry, without a server [default: registry.path of the settings]
    #[arg(long, value_name = "FOLDER")]
    pub registry: Option<PathBuf>,
    /// Explain one shard: why it moves or stays
    #[arg(long, value_name = "SHARD")]
    pub why: Option<ShardId>,
    /// Folder to write `input.json` and `plan.json` into, for `check`
    #[arg(long, value_name = "FOLDER")]
    pub save: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// What the planner was given, as `plan --save` wrote it
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// The plan
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
}

/// Policies of `simulate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyKind {
    /// Nothing moves
    None,
    /// The same planner, load stays as last observed
    Reactive,
    /// The same planner, yesterday repeats
    Seasonal,
    /// The planner on joint scenarios of the forecaster
    Predictive,
    /// The planner, knowing the future
    Oracle,
    /// Nothing moves, from the best placement in hindsight
    Static,
}

/// Forecasters of `simulate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SimForecaster {
    /// The network, trained on what lies before: four hours in steps of five minutes
    Network,
    /// Ridge regression with its own past errors as scenarios: a day in quarters of an hour, fitted in a second
    Ridge,
}

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// History file or dated folder
    #[arg(long, value_name = "PATH")]
    pub history: PathBuf,
    /// Number of nodes; several for several cells
    #[arg(long, default_value = "4", num_args = 1.., value_delimiter = ',')]
    pub nodes: Vec<usize>,
    /// Policies, compared side by side
    #[arg(long = "policy", required = true, num_args = 1.., value_delimiter = ',')]
    pub policies: Vec<PolicyKind>,
    /// Seed of placement, sizes and phases; several for several cells
    #[arg(long, default_value = "1", num_args = 1.., value_delimiter = ',')]
    pub seed: Vec<u64>,
    /// Capacity of a node = this x peak total / nodes; several for several cells
    #[arg(long, default_value = "1.15", num_args = 1.., value_delimiter = ',')]
    pub capacity_multiplier: Vec<f64>,
    /// Mean size of a shard in GiB where the history has none
    #[arg(long, default_value_t = 20.0)]
    pub data_gib: f64,
    /// Shift each shard's clock by 0, 8 or 16 h plus or minus 1 h and scale it
    #[arg(long)]
    pub phases: bool,
    /// What `predictive` looks ahead with
    #[arg(long, value_enum, default_value = "network")]
    pub forecaster: SimForecaster,
    /// Optimiser steps of the network [default: train.steps of the settings]
    #[arg(long)]
    pub steps: Option<usize>,
}

/// Modes of `control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ControlMode {
    /// Plan, check, record and show; move nothing
    Advise,
}

/// Arguments of `control`.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// What the loop may do; `auto` is for engines embedded in a process, see `foreshard demo`
    #[arg(long, default_value = "advise")]
    pub mode: ControlMode,
    /// The serving process [default: control.server of the settings]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Nodes, capacities and rules [default: data.topology of the settings]
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Plan once and stop
    #[arg(long)]
    pub once: bool,
}

/// Subcommands of `models`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// All versions with their labels
    List(RegistryArgs),
    /// Manifest and scores of one version
    Show {
        /// Its number
        number: u64,
        /// Where
        #[command(flatten)]
        at: RegistryArgs,
    },
    /// Make a version the champion
    Promote {
        /// Its number
        number: u64,
        /// Where
        #[command(flatten)]
        at: RegistryArgs,
    },
    /// Make the last good version the champion again
    Rollback(RegistryArgs),
    /// Whether the champion still fits the loads: exit code 0 if it does, 1 if it does not
    Drift {
        /// History file or dated folder [default: data.history of the settings]
        #[arg(long, value_name = "PATH")]
        history: Option<PathBuf>,
        /// Known events [default: data.events of the settings]
        #[arg(long, value_name = "FILE")]
        events: Option<PathBuf>,
        /// Where
        #[command(flatten)]
        at: RegistryArgs,
    },
}

/// Where a registry is.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Registry [default: registry.path of the settings]
    #[arg(long, value_name = "FOLDER")]
    pub registry: Option<PathBuf>,
    /// Name of the model [default: registry.model of the settings]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
