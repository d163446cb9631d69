//! Settings of a serving process.

use foreshard_api::Secret;
use foreshard_datasets::prometheus::ReceivedSeries;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::{ExportConfig, PullConfig, TlsFiles};

/// Settings of a serving process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServingConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where `/livez`, `/readyz` and `/metrics` are answered over HTTP; nowhere if not set. Port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// Certificate and key of both ports, and who may connect; without it both speak in plain.
    pub tls: Option<TlsFiles>,
    /// Lets a port beyond loopback speak without TLS: where something else encrypts what goes over the network.
    pub without_tls: bool,
    /// File of tokens; without it, and without [`Self::token_text`], everybody who can connect may do everything.
    pub tokens: Option<PathBuf>,
    /// Tokens as such, in the form of the file.
    #[serde(skip)]
    pub token_text: Option<Secret>,
    /// Folder of the registry.
    pub registry: PathBuf,
    /// The model whose champion answers.
    pub model: String,
    /// Dated folder of history that ingest writes; made if it is not there.
    pub history: PathBuf,
    /// File of known events (CSV or Parquet: start, end, name and perhaps shard_id); read again whenever it changes.
    pub events: Option<PathBuf>,
    /// Series that Prometheus sends to the HTTP port, and what they become; without any, nothing is taken.
    pub received: Vec<ReceivedSeries>,
    /// What is pulled from Prometheus; nothing if not set.
    pub pulled: Option<PullConfig>,
    /// Forecasts and risks that `/metrics` shows; none if not set.
    pub exported: Option<ExportConfig>,
    /// Folder of the log that rows are in before they are acknowledged; `<history>.log` unless set.
    pub log: Option<PathBuf>,
    /// Rows (forecasts of one series) that may wait to be computed; beyond them requests are refused.
    pub queue_rows: usize,
    /// How long a request may have to wait for compute, real time; one that would wait longer is refused at once.
    #[serde(with = "humantime_serde")]
    pub queue_wait: Duration,
    /// Rows that are computed together at most.
    pub batch_rows: usize,
    /// MiB of answers that are kept to be given again as long as they would be the same; 0 keeps none.
    pub cache_mib: u32,
    /// MiB of all scenario sets that are made or sent at once; beyond them requests are refused.
    pub scenario_mib: u32,
    /// Threads that compute; the model spreads a batch over all cores by itself, so one is usually best.
    pub compute_threads: usize,
    /// How often logged rows are put into the history, real time.
    #[serde(with = "humantime_serde")]
    pub flush_every: Duration,
    /// How often the labels of the model are looked at, real time.
    #[serde(with = "humantime_serde")]
    pub reload_every: Duration,
    /// Days of each series that are kept in memory to forecast from; the model needs 7, more sharpen the fallback.
    pub context_days: u32,
    /// How old the newest observation of a series may be, model time, before a fallback answers for it.
    #[serde(with = "humantime_serde")]
    pub stale_after: Duration,
    /// How far ahead of the clock a row may lie, model time, before it is refused: a few steps, for clocks that differ.
    #[serde(with = "humantime_serde")]
    pub ahead_at_most: Duration,
    /// Connections of each port that may be open at once; one more is closed at once.
    pub connections: usize,
    /// How old a gRPC connection becomes before its client is asked to make another, real time.
    #[serde(with = "humantime_serde")]
    pub connection_age: Duration,
    /// How long calls may go on over a connection of that age, real time, before it is closed.
    #[serde(with = "humantime_serde")]
    pub connection_grace: Duration,
    /// How long requests in flight may go on when the server stops, real time.
    #[serde(with = "humantime_serde")]
    pub drain_for: Duration,
}

impl Default for ServingConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7450)),
            http: None,
            tls: None,
            without_tls: false,
            tokens: None,
            token_text: None,
            registry: PathBuf::from("registry"),
            model: "load".to_owned(),
            history: PathBuf::from("history"),
            events: None,
            received: Vec::new(),
            pulled: None,
            exported: None,
            log: None,
            queue_rows: 65_536,
            queue_wait: Duration::from_secs(1),
            batch_rows: 4_096,
            cache_mib: 64,
            scenario_mib: 1024,
            compute_threads: 1,
            flush_every: Duration::from_secs(60),
            reload_every: Duration::from_secs(5),
            context_days: 15,
            stale_after: Duration::from_secs(3600),
            ahead_at_most: Duration::from_secs(15 * 60),
            connections: 4_096,
            connection_age: Duration::from_secs(3600),
            connection_grace: Duration::from_secs(300),
            drain_for: Duration::from_secs(10),
        }
    }
}

/// One thing wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option} {what}")]
pub struct ConfigProblem {
    /// Which setting.
    pub option: &'static str,
    /// What is wrong with it.
    pub what: String,
}

impl ServingConfig {
    /// Everything that is wrong with the settings.
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut check = |option, good: bool, what: &str| {
            if !good {
                problems.push(ConfigProblem { option, what: what.to_owned() });
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = !self.model.is_empty() && !self.model.starts_with('.') && self.model.chars().all(plain);
        let open = |address: Option<SocketAddr>| address.is_some_and(|address| !address.ip().is_loopback());
        let bare = self.tls.is_none() && !self.without_tls;
        let beyond = "is no loopback address, and without TLS anybody on the way could read and change what goes over it; \
                      give a certificate and its key (tls), or say that something else encrypts it (without_tls)";
        check("listen", !(bare && open(Some(self.listen))), beyond);
        check("http", !(bare && open(self.http)), beyond);
        check("model", name, "must be the name of a folder of the registry");
        check("registry", !self.registry.as_os_str().is_empty(), "must be a folder");
        check("history", !self.history.as_os_str().is_empty(), "must be a folder");
        check("log", self.log.as_ref() != Some(&self.history), "must not be the folder of the history");
        let scale = "has a scale that is no positive finite number";
        check("received", self.received.iter().all(|series| series.check().is_ok()), scale);
        check("received", self.received.is_empty() || self.http.is_some(), "needs the HTTP port, where series come in");
        check("queue_rows", self.queue_rows > 0, "must be at least 1");
        check("queue_wait", !self.queue_wait.is_zero(), "must be longer than nothing");
        check("connections", self.connections > 0, "must be at least 1");
        check("connection_age", !self.connection_age.is_zero(), "must be longer than nothing");
        check("batch_rows", self.batch_rows > 0, "must be at least 1");
        check("scenario_mib", self.scenario_mib > 0, "must be at least 1");
        check("compute_threads", (1..=256).contains(&self.compute_threads), "must be 1 to 256");
        check("flush_every", !self.flush_every.is_zero(), "must be longer than nothing");
        check("reload_every", !self.reload_every.is_zero(), "must be longer than nothing");
        check("context_days", (1..=400).contains(&self.context_days), "must be 1 to 400");
        for what in self.pulled.iter().flat_map(PullConfig::problems) {
            problems.push(ConfigProblem { option: "pulled", what });
        }
        for what in self.exported.iter().flat_map(ExportConfig::problems) {
            problems.push(ConfigProblem { option: "exported", what });
        }
        problems
    }

    /// The folder of the log.
    pub fn log_dir(&self) -> PathBuf {
        self.log.clone().unwrap_or_else(|| {
            let mut name = self.history.as_os_str().to_owned();
            name.push(".log");
            PathBuf::from(name)
        })
    }
}

/// A span of model time in milliseconds; spans beyond what can be expressed never end.
pub(crate) fn model_ms(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_survive_a_file() {
        let config = ServingConfig::default();
        assert!(config.problems().is_empty());
        assert_eq!(config.log_dir(), PathBuf::from("history.log"));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ServingConfig>(&text).unwrap(), config);
        assert!(serde_json::from_str::<ServingConfig>(r#"{"listn": 1}"#).is_err());
    }

    #[test]
    fn a_port_beyond_loopback_needs_tls_or_a_word() {
        let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let options = |config: ServingConfig| config.problems().into_iter().map(|p| p.option).collect::<Vec<_>>();
        let open = ServingConfig { listen: everywhere, http: Some(everywhere), ..ServingConfig::default() };
        assert_eq!(options(open.clone()), ["listen", "http"]);
        assert_eq!(options(ServingConfig { without_tls: true, ..open.clone() }), [""; 0]);
        let tls = TlsFiles { cert: "cert.pem".into(), key: "key.pem".into(), client_ca: None };
        assert_eq!(options(ServingConfig { tls: Some(tls), ..open }), [""; 0]);
    }

    #[test]
    fn all_problems_are_found_at_once() {
        let config = ServingConfig {
            model: "../x".into(),
            queue_rows: 0,
            log: Some("history".into()),
            context_days: 0,
            ..ServingConfig::default()
        };
        let options: Vec<_> = config.problems().into_iter().map(|problem| problem.option).collect();
        assert_eq!(options, ["model", "log", "queue_rows", "context_days"]);
    }
}
