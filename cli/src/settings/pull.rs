//! The Prometheus that is asked for what was observed.

use foreshard_api::Secret;
use foreshard_datasets::prometheus::{PrometheusSource, PulledSeries, SourceSettings};
use foreshard_domain::Step;
use foreshard_serving::PullConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::layers::variable;
use crate::output::Failure;

/// Holds a token for those who have no file for it.
const TOKEN: &str = "FORESHARD_PROMETHEUS_TOKEN";

/// How often a question of an import is asked that failed for now.
const TRIES: u32 = 6;

/// `[serve.prometheus]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullSettings {
    /// Its address; empty if nothing is pulled.
    pub url: String,
    /// Authorities of its certificate; needed for https.
    pub ca: PathBuf,
    /// File of a bearer token; empty for none.
    pub token_file: PathBuf,
    /// How often is pulled.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Distance of the values that are asked for.
    #[serde(with = "humantime_serde")]
    pub step: Duration,
    /// How old values must be, so that Prometheus has all of them.
    #[serde(with = "humantime_serde")]
    pub delay: Duration,
    /// How far back is pulled at the first time, and after a long absence.
    #[serde(with = "humantime_serde")]
    pub reach_back: Duration,
    /// How long one answer may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Queries, and what the series that they give become.
    pub series: Vec<PulledSeries>,
}

impl Default for PullSettings {
    fn default() -> Self {
        let PullConfig { url, step, every, delay, reach_back, timeout, series, .. } = PullConfig::default();
        let step = Duration::from_millis(u64::try_from(step.as_ms()).unwrap_or(0));
        let (ca, token_file) = (PathBuf::new(), PathBuf::new());
        Self { url, ca, token_file, every, step, delay, reach_back, timeout, series }
    }
}

impl PullSettings {
    /// What the serving process is to pull; nothing without an address.
    ///
    /// # Errors
    /// If the step is no distance.
    pub fn config(&self) -> Result<Option<PullConfig>, Failure> {
        if self.url.is_empty() {
            return Ok(None);
        }
        Ok(Some(PullConfig {
            url: self.url.clone(),
            ca: given(&self.ca),
            token_file: given(&self.token_file),
            token: token_of_environment()?.map(Secret::new),
            every: self.every,
            step: self.step()?,
            delay: self.delay,
            reach_back: self.reach_back,
            timeout: self.timeout,
            series: self.series.clone(),
        }))
    }

    /// The distance of values.
    ///
    /// # Errors
    /// If it is none.
    pub fn step(&self) -> Result<Step, Failure> {
        let step = i64::try_from(self.step.as_millis()).ok().and_then(Step::from_ms);
        step.ok_or_else(|| "serve.prometheus.step must be a millisecond at least".into())
    }

    /// What an import asks: the Prometheus at `url`, or that of the settings.
    ///
    /// # Errors
    /// If there is no address, or a file cannot be read.
    pub fn source(&self, url: &str) -> Result<PrometheusSource, Failure> {
        let url = if url.is_empty() { self.url.as_str() } else { url };
        if url.is_empty() {
            return Err("no Prometheus is named: give its address, or set serve.prometheus.url".into());
        }
        let read =
            |path: PathBuf| std::fs::read(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()));
        let ca = given(&self.ca).map(read).transpose()?;
        let token = given(&self.token_file).map(read).transpose()?;
        let token = match token {
            Some(bytes) => Some(String::from_utf8_lossy(&bytes).trim().to_owned()),
            None => token_of_environment()?,
        };
        let settings = SourceSettings { url: url.to_owned(), ca, token, timeout: self.timeout, tries: TRIES };
        Ok(PrometheusSource::new(&settings)?)
    }
}

/// The token in the environment, if there is one.
fn token_of_environment() -> Result<Option<String>, Failure> {
    Ok(variable(TOKEN)?.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
}

fn given(path: &Path) -> Option<PathBuf> {
    Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty())
}
