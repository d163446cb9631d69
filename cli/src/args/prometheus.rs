//! Arguments of `data import --prometheus`.

use clap::Args;
use foreshard_datasets::prometheus::{LabelTemplate, Measurement};
use foreshard_domain::{Step, Timestamp};

use super::moment;

/// A range of Prometheus's past as the source.
#[derive(Debug, Args)]
pub struct RangeArgs {
    /// Take a range of the past of a Prometheus, at this address [default: serve.prometheus.url]
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "", conflicts_with = "from")]
    pub prometheus: Option<String>,
    /// What becomes a metric, in Prometheus's language: one series for each shard, in the unit of the metric; may be repeated
    /// [default: serve.prometheus.series]
    #[arg(long, value_name = "METRIC=PROMQL", value_parser = query, requires = "prometheus", requires = "shard")]
    pub query: Vec<(Measurement, String)>,
    /// Name of the shard of a series, with ${label} for the value of a label
    #[arg(long, value_name = "NAME", requires = "query")]
    pub shard: Option<LabelTemplate>,
    /// Name of the node that carried it, likewise
    #[arg(long, value_name = "NAME", requires = "query")]
    pub node: Option<LabelTemplate>,
    /// Begin of the range
    #[arg(long, value_name = "RFC3339", value_parser = moment, requires = "prometheus")]
    pub start: Option<Timestamp>,
    /// End of the range; values at it are left out [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = moment, requires = "prometheus")]
    pub end: Option<Timestamp>,
    /// Distance of the values [default: serve.prometheus.step]
    #[arg(long, value_name = "DURATION", value_parser = step, requires = "prometheus")]
    pub step: Option<Step>,
}

fn query(text: &str) -> Result<(Measurement, String), String> {
    let known = || Measurement::ALL.map(Measurement::name).join(", ");
    let (name, query) = text.split_once('=').ok_or("must look like METRIC=PROMQL")?;
    let found = Measurement::ALL.into_iter().find(|measurement| measurement.name() == name.trim());
    let measurement = found.ok_or_else(|| format!("{name:?} is no metric; known are {}", known()))?;
    Ok((measurement, query.trim().to_owned()))
}

fn step(text: &str) -> Result<Step, String> {
    let span = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let ms = i64::try_from(span.as_millis()).map_err(|error| error.to_string())?;
    Step::from_ms(ms).ok_or_else(|| "must be longer than nothing".to_owned())
}
