//! What machines elsewhere take, as Prometheus tells.
//!
//! Prometheus counts what it has scraped, every 15 seconds or so; between two looks that are closer the counter of CPU time
//! would stand still or leap. So the mean of busy cores over the last two minutes is asked for, and a count made of it here:
//! what is told of a moment lags by a minute, and sums up.

use async_trait::async_trait;
use foreshard_domain::NodeId;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::machine::{Backend, NodeMetrics, Usage};
use crate::cause::with_causes;
use crate::postgres::settings::{INSTANCE, PrometheusSettings, PrometheusUrl};

/// One number has a hundred bytes; what is a thousand times as long is not read to its end.
const MOST_BYTES: usize = 128 << 10;

/// Longer than this no answer is waited for, whatever the settings say: the look at the server has a limit of its own.
const LONGEST: Duration = Duration::from_secs(5);

/// Why Prometheus did not tell.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error("it cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("it does not answer in time")]
    Late,
    #[error("the exchange failed")]
    Broken(#[source] hyper::Error),
    #[error("the request cannot be made")]
    Request(#[source] hyper::http::Error),
    #[error("its answer is longer than {MOST_BYTES} bytes")]
    TooLong,
    #[error("it refused ({status}): {why}")]
    Refused { status: StatusCode, why: String },
    #[error("its answer cannot be read ({status})")]
    Unreadable {
        status: StatusCode,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{0} series match where one is needed: is the instance right, does the query sum up, and does its range hold two scrapes?"
    )]
    Series(usize),
    #[error("its answer is {0:?}, no number that it can be")]
    Number(String),
}

/// Machines that Prometheus knows.
#[derive(Debug)]
pub(super) struct Prometheus {
    url: PrometheusUrl,
    settings: PrometheusSettings,
    counts: Mutex<BTreeMap<NodeId, Count>>,
}

/// Seconds of CPU since it was first asked for.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    cpu_s: f64,
    at: Option<Instant>,
    /// Whether the last time nothing was told, which is said once.
    is_untold: bool,
}

/// What it tells of a machine.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Told {
    busy_cores: f64,
    cores: f64,
    used_memory: f64,
    memory: f64,
}

impl Prometheus {
    /// None if nothing is to be asked.
    pub fn new(settings: &PrometheusSettings) -> Option<Self> {
        let url = settings.url.clone()?;
        Some(Self { url, settings: settings.clone(), counts: Mutex::default() })
    }

    /// Whether it is to be asked about a node.
    pub fn knows(&self, node: &NodeId) -> bool {
        self.settings.instances.contains_key(node)
    }

    async fn told(&self, instance: &str) -> Result<Told, (String, Untold)> {
        let PrometheusSettings { busy_cores, cores, used_memory, memory, .. } = &self.settings;
        let ask = |query: &str| self.ask(quoted(query, instance));
        let (busy_cores, cores, used_memory, memory) =
            futures::try_join!(ask(busy_cores), ask(cores), ask(used_memory), ask(memory))?;
        Ok(Told { busy_cores, cores, used_memory, memory })
    }

    /// The one number that a query has for an answer; with the query if there is none.
    async fn ask(&self, query: String) -> Result<f64, (String, Untold)> {
        let answer = tokio::time::timeout(self.settings.timeout.min(LONGEST), self.get(&query)).await;
        let number = match answer {
            Ok(Ok((status, body))) => number(status, &body),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Untold::Late),
        };
        number.map_err(|error| (query, error))
    }

    async fn get(&self, query: &str) -> Result<(StatusCode, Bytes), Untold> {
        let url = &self.url;
        let stream = TcpStream::connect(url.peer()).await.map_err(Untold::Unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Untold::Broken)?;
        // Ends with this call, whatever comes.
        let mut pump = JoinSet::new();
        pump.spawn(connection);
        let path = format!("{}?query={}", url.query_path(), utf8_percent_encode(query, NON_ALPHANUMERIC));
        let request = Request::get(path).header(HOST, url.authority()).header(ACCEPT, "application/json");
        let request = request.body(Empty::<Bytes>::new()).map_err(Untold::Request)?;
        let response = sender.send_request(request).await.map_err(Untold::Broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|error| match error
            .downcast::<hyper::Error>(
        ) {
            Ok(error) => Untold::Broken(*error),
            Err(error) if error.is::<LengthLimitError>() => Untold::TooLong,
            Err(error) => Untold::Unreachable(io::Error::other(error)),
        })?;
        Ok((status, body.to_bytes()))
    }

    fn counted(&self, node: &NodeId, told: &Told, now: Instant) -> f64 {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(node.clone()).or_default();
        let passed = count.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        count.cpu_s += told.busy_cores * passed;
        if std::mem::take(&mut count.is_untold) {
            tracing::info!(%node, "Prometheus tells CPU and memory of it again");
        }
        count.at = Some(now);
        count.cpu_s
    }

    /// Says once that nothing is told, and of what.
    fn untold(&self, node: &NodeId, query: &str, error: &Untold) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let was_untold = std::mem::replace(&mut counts.entry(node.clone()).or_default().is_untold, true);
        if !was_untold {
            let (url, error) = (&self.url, with_causes(error));
            tracing::warn!(%node, %url, query, error, "Prometheus does not tell CPU and memory of it: unknown until it does");
        }
    }
}

#[async_trait]
impl NodeMetrics for Prometheus {
    async fn usage(&self, node: &NodeId, _backend: Backend) -> Option<Usage> {
        let told = match self.told(self.settings.instances.get(node)?).await {
            Ok(told) => told,
            Err((query, error)) => {
                self.untold(node, &query, &error);
                return None;
            }
        };
        Some(Usage {
            // The count is this process's own: it does not begin anew with the server.
            incarnation: String::new(),
            cpu_s: self.counted(node, &told, Instant::now()),
            shared_bytes: told.used_memory,
            processes: BTreeMap::new(),
            cores: told.cores,
            memory_bytes: told.memory,
        })
    }
}

/// A query about an instance, whose name stands between double quotes.
fn quoted(query: &str, instance: &str) -> String {
    query.replace(INSTANCE, &instance.replace('\\', "\\\\").replace('"', "\\\""))
}

/// What Prometheus answers (its documentation, "HTTP API", instant queries).
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Series>),
    Scalar((f64, String)),
}

#[derive(Debug, Deserialize)]
struct Series {
    value: (f64, String),
}

fn number(status: StatusCode, body: &[u8]) -> Result<f64, Untold> {
    let answer: Answer = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        // What stands in between (a proxy, a log-in page) answers in its own way.
        Err(_) if !status.is_success() => {
            let why = String::from_utf8_lossy(body).chars().take(200).collect();
            return Err(Untold::Refused { status, why });
        }
        Err(source) => return Err(Untold::Unreadable { status, source }),
    };
    let Some(data) = answer.data.filter(|_| status.is_success()) else {
        return Err(Untold::Refused { status, why: answer.error });
    };
    let value = match data {
        Data::Scalar((_, value)) => value,
        Data::Vector(series) => match <[Series; 1]>::try_from(series) {
            Ok([Series { value: (_, value) }]) => value,
            Err(series) => return Err(Untold::Series(series.len())),
        },
    };
    let number = value.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or(Untold::Number(value))
}

#[cfg(test)]
pub(super) mod tests;
