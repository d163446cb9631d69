//! Asking Prometheus for the past of series.

use foreshard_domain::{Step, Timestamp};
use rustls::crypto::ring::default_provider;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::answer::{Answer, Data, RangeSeries};

/// Prometheus answers at most so many points of a series at once.
pub const MOST_POINTS: i64 = 11_000;

/// What an answer may be long. A range that gives more is asked for in halves.
const MOST_BYTES: u64 = 64 << 20;

/// Pauses before a question is asked again: the first, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where Prometheus is, and what it is shown.
#[derive(Clone, Default)]
pub struct SourceSettings {
    /// Its address, with the path that it is served under if there is one: `http://prometheus:9090`.
    pub url: String,
    /// Authorities of its certificate, PEM; needed for https.
    pub ca: Option<Vec<u8>>,
    /// A bearer token; none if not set.
    pub token: Option<String>,
    /// How long one answer may take.
    pub timeout: Duration,
    /// How often a question is asked that failed for now, with longer and longer pauses; once if 0.
    pub tries: u32,
}

/// Why Prometheus did not tell.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The address is none.
    #[error("{url:?} is no address of Prometheus; write http://HOST:PORT or https://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
    },
    /// Nobody is known whose word about the server's certificate counts.
    #[error("{url} needs the authorities of its certificate (a file of them in PEM form)")]
    NoAuthorities {
        /// The address.
        url: String,
    },
    /// The authorities cannot be read.
    #[error("the authorities of Prometheus's certificate cannot be read; they must be certificates in PEM form")]
    Authorities(#[source] Box<ureq::Error>),
    /// It cannot be reached, or the exchange broke off.
    #[error("Prometheus cannot be asked at {url}")]
    Exchange {
        /// The address.
        url: String,
        /// Why not.
        #[source]
        source: Box<ureq::Error>,
    },
    /// It refused.
    #[error("Prometheus refused {query:?} ({status} {kind}): {why}")]
    Refused {
        /// The query.
        query: String,
        /// The status of HTTP.
        status: u16,
        /// Prometheus's own word for the kind of error; empty if something else answered.
        kind: String,
        /// Its reason.
        why: String,
    },
    /// The answer is no answer of Prometheus.
    #[error("the answer to {query:?} cannot be read; is there a Prometheus at this address")]
    Unreadable {
        /// The query.
        query: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The answer breaks off or is too long.
    #[error("the answer to {query:?} broke off")]
    Broken {
        /// The query.
        query: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer is longer than what is read at once.
    #[error("the answer to {query:?} is longer than {MOST_BYTES} bytes even for a single step; select fewer series")]
    TooLong {
        /// The query.
        query: String,
    },
    /// A query over a range gave no range.
    #[error("{query:?} gives no series over time")]
    NoRange {
        /// The query.
        query: String,
    },
}

impl SourceError {
    /// Whether the same question may have an answer later.
    pub fn is_transient(&self) -> bool {
        match self {
            SourceError::Exchange { source, .. } => {
                use ureq::Error::{BadUri, Rustls, Tls, TooManyRedirects};
                !matches!(**source, BadUri(_) | Rustls(_) | Tls(_) | TooManyRedirects)
            }
            SourceError::Broken { .. } => true,
            SourceError::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// Whether less may be told where this was too much.
    fn is_too_much(&self) -> bool {
        match self {
            SourceError::TooLong { .. } => true,
            // Too many samples at once are an error of execution; a query that takes too long is a timeout.
            SourceError::Refused { status, kind, .. } => {
                (*status == 422 && kind == "execution") || (*status == 503 && kind == "timeout")
            }
            _ => false,
        }
    }
}

/// A Prometheus that can be asked. Calls block.
#[derive(Clone)]
pub struct PrometheusSource {
    agent: Agent,
    url: String,
    authorization: Option<String>,
    tries: u32,
}

impl fmt::Debug for PrometheusSource {
    /// Without its token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrometheusSource").field("url", &self.url).finish_non_exhaustive()
    }
}

impl PrometheusSource {
    /// One that is asked as `settings` say; nothing is asked yet.
    ///
    /// # Errors
    /// [`SourceError`] if the settings cannot be used.
    pub fn new(settings: &SourceSettings) -> Result<Self, SourceError> {
        let url = settings.url.trim_end_matches('/').to_owned();
        let is_encrypted = url.starts_with("https://");
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let parsed = url.parse::<ureq::http::Uri>().ok();
        // Names and passwords in an address would stand in every message about it; a token is for that.
        let has_host = parsed.as_ref().is_some_and(|uri| {
            let named = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
            uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none() && !named
        });
        if rest.is_none_or(str::is_empty) || !has_host {
            let shown = url.rsplit_once('@').map_or(url.clone(), |(_, host)| format!("...@{host}"));
            return Err(SourceError::Url { url: shown });
        }
        let roots = match &settings.ca {
            Some(pem) => authorities(pem)?,
            None if is_encrypted => return Err(SourceError::NoAuthorities { url }),
            None => Vec::new(),
        };
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(roots))
            .unversioned_rustls_crypto_provider(Arc::new(default_provider()))
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(settings.timeout))
            .proxy(None)
            // A token goes nowhere else than it was meant for.
            .max_redirects(0)
            .tls_config(tls)
            .build();
        let authorization = settings.token.as_ref().map(|token| format!("Bearer {token}"));
        Ok(Self { agent: config.new_agent(), url, authorization, tries: settings.tries.max(1) })
    }

    /// The values of a query at `from`, `from + step` and so on before `to`, in as many questions as Prometheus's limits ask
    /// for: `on` gets the series of each part of the range. A part that is too much is asked for in halves.
    ///
    /// # Errors
    /// [`SourceError`]; `on` may have got parts before.
    pub fn range(
        &self,
        query: &str,
        (from, to, step): (Timestamp, Timestamp, Step),
        on: &mut dyn FnMut(Vec<RangeSeries>),
    ) -> Result<(), SourceError> {
        let mut most = MOST_POINTS;
        let mut start = from;
        while start < to {
            let last = last_point(start, to, step, most);
            match self.ask_again(query, start, last, step) {
                Ok(series) => on(series),
                Err(error) if error.is_too_much() && last > start => {
                    let points = last.since_ms(start) / step.as_ms() + 1;
                    most = (points / 2).max(1);
                    tracing::debug!(query, points = most, "the answer would be too much; asking for less at once");
                    continue;
                }
                Err(error) => return Err(error),
            }
            start = last.plus_steps(1, step);
        }
        Ok(())
    }

    fn ask_again(
        &self,
        query: &str,
        start: Timestamp,
        end: Timestamp,
        step: Step,
    ) -> Result<Vec<RangeSeries>, SourceError> {
        let mut pause = FIRST_PAUSE;
        let mut tried = 1;
        loop {
            match self.ask(query, start, end, step) {
                Err(error) if error.is_transient() && !error.is_too_much() && tried < self.tries => {
                    tracing::warn!(query, %error, again_in = ?pause, "asking Prometheus failed");
                    std::thread::sleep(pause);
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                    tried += 1;
                }
                answer => return answer,
            }
        }
    }

    fn ask(&self, query: &str, start: Timestamp, end: Timestamp, step: Step) -> Result<Vec<RangeSeries>, SourceError> {
        let seconds = |ms: i64| format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000));
        let form = [
            ("query", query.to_owned()),
            ("start", seconds(start.as_ms())),
            ("end", seconds(end.as_ms())),
            ("step", seconds(step.as_ms())),
        ];
        let mut request =
            self.agent.post(format!("{}/api/v1/query_range", self.url)).header("accept", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let exchange = |source| SourceError::Exchange { url: self.url.clone(), source: Box::new(source) };
        let (head, body) = request.send_form(form).map_err(exchange)?.into_parts();
        read(query, head.status.as_u16(), body)
    }
}

/// The last point of the next part of a range.
fn last_point(start: Timestamp, to: Timestamp, step: Step, most: i64) -> Timestamp {
    let last_of_all = to.since_ms(start).saturating_sub(1).div_euclid(step.as_ms());
    start.plus_steps(last_of_all.min(most.saturating_sub(1)), step)
}

fn authorities(pem: &[u8]) -> Result<Vec<Certificate<'static>>, SourceError> {
    let mut found = Vec::new();
    for item in parse_pem(pem) {
        match item.map_err(|error| SourceError::Authorities(Box::new(error)))? {
            PemItem::Certificate(certificate) => found.push(certificate),
            _ => continue,
        }
    }
    if found.is_empty() {
        return Err(SourceError::Authorities(Box::new(ureq::Error::Tls("there is no certificate"))));
    }
    Ok(found)
}

fn read(query: &str, status: u16, body: Body) -> Result<Vec<RangeSeries>, SourceError> {
    let query = || query.to_owned();
    let refused = |kind: String, why: String| SourceError::Refused { query: query(), status, kind, why };
    let mut reader = BufReader::new(body.into_with_config().limit(MOST_BYTES).reader());
    if !(200..300).contains(&status) {
        // What stands in between (a proxy, a log-in page) answers in its own way.
        let mut text = String::new();
        _ = reader.take(64 << 10).read_to_string(&mut text);
        return Err(match serde_json::from_str::<Answer>(&text) {
            Ok(answer) => refused(answer.error_type, answer.error),
            Err(_) => refused(String::new(), text.chars().take(200).collect()),
        });
    }
    let answer: Answer = match serde_json::from_reader(&mut reader) {
        Ok(answer) => answer,
        Err(error) if error.is_io() => {
            let source = io::Error::from(error);
            let limit = source.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
            return Err(match limit {
                Some(ureq::Error::BodyExceedsLimit(_)) => SourceError::TooLong { query: query() },
                _ => SourceError::Broken { query: query(), source },
            });
        }
        Err(source) => return Err(SourceError::Unreadable { query: query(), source }),
    };
    for warning in &answer.warnings {
        tracing::warn!(query = query(), warning, "Prometheus warns");
    }
    match answer.data {
        Some(Data { kind, result }) if kind == "matrix" => Ok(result),
        Some(_) => Err(SourceError::NoRange { query: query() }),
        None => Err(refused(answer.error_type, answer.error)),
    }
}

#[cfg(test)]
mod tests;
