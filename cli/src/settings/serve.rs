//! How forecasts are served.

use foreshard_serving::{ServingConfig, TlsFiles};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

use super::{ExportSettings, PullSettings, RemoteWriteSettings};

/// `[serve]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeSettings {
    /// Address to listen on; beyond loopback only with TLS, or if something else encrypts.
    pub listen: String,
    /// Address of the HTTP port for health and metrics; `none` for none.
    pub http: String,
    /// The server's certificate; empty for no TLS.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of clients; empty if clients need no certificate.
    pub client_ca: PathBuf,
    /// Lets a port beyond loopback speak without TLS.
    pub without_tls: bool,
    /// File of tokens; empty for none.
    pub tokens: PathBuf,
    /// Rows that may wait for compute before requests are refused.
    pub queue_rows: usize,
    /// How long a request may have to wait for compute before it is refused.
    #[serde(with = "humantime_serde")]
    pub queue_wait: Duration,
    /// MiB of answers that are kept to be given again; 0 keeps none.
    pub cache_mib: u32,
    /// MiB of all scenario sets that are made or sent at once, before requests are refused.
    pub scenario_mib: u32,
    /// Connections of each port that may be open at once.
    pub connections: usize,
    /// How old a gRPC connection becomes before its client is asked to make another.
    #[serde(with = "humantime_serde")]
    pub connection_age: Duration,
    /// How long calls may go on over a connection of that age.
    #[serde(with = "humantime_serde")]
    pub connection_grace: Duration,
    /// How long requests in flight may go on when the server stops.
    #[serde(with = "humantime_serde")]
    pub drain_for: Duration,
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
    /// What Prometheus sends.
    pub remote_write: RemoteWriteSettings,
    /// What is asked of a Prometheus.
    pub prometheus: PullSettings,
    /// What `/metrics` shows of forecasts.
    pub export: ExportSettings,
}

impl Default for ServeSettings {
    fn default() -> Self {
        let ServingConfig {
            queue_rows,
            queue_wait,
            cache_mib,
            scenario_mib,
            connections,
            connection_age,
            connection_grace,
            drain_for,
            flush_every,
            reload_every,
            stale_after,
            ahead_at_most,
            ..
        } = ServingConfig::default();
        Self {
            listen: "127.0.0.1:7654".into(),
            http: "127.0.0.1:7655".into(),
            cert: PathBuf::new(),
            key: PathBuf::new(),
            client_ca: PathBuf::new(),
            without_tls: false,
            tokens: PathBuf::new(),
            queue_rows,
            queue_wait,
            cache_mib,
            scenario_mib,
            connections,
            connection_age,
            connection_grace,
            drain_for,
            flush_every,
            reload_every,
            context_days: 35,
            stale_after,
            ahead_at_most,
            remote_write: RemoteWriteSettings::default(),
            prometheus: PullSettings::default(),
            export: ExportSettings::default(),
        }
    }
}

impl ServeSettings {
    /// The files of TLS, if there is to be any.
    ///
    /// # Errors
    /// If one of certificate and key is there without the other.
    pub fn tls(&self) -> Result<Option<TlsFiles>, String> {
        let given = |path: &PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
        match (given(&self.cert), given(&self.key), given(&self.client_ca)) {
            (Some(cert), Some(key), client_ca) => Ok(Some(TlsFiles { cert, key, client_ca })),
            (None, None, None) => Ok(None),
            (None, None, Some(_)) => Err("serve.client_ca needs serve.cert and serve.key".to_owned()),
            _ => Err("serve.cert and serve.key go together: the certificate and its private key".to_owned()),
        }
    }
}
