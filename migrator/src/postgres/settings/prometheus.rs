//! Where Prometheus is, and what is asked there.

use foreshard_domain::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What stands for a node's instance in a query.
pub(crate) const INSTANCE: &str = "$instance";

/// Where CPU and memory of machines are read that servers elsewhere run on.
///
/// Each query must have one number for an answer. `$instance` stands for the node's instance. Those left out ask for what node
/// exporters tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrometheusSettings {
    /// Its address, such as `http://10.0.0.9:9090`, with the path that it is served under, if there is one; nothing is asked if
    /// left out.
    pub url: Option<PrometheusUrl>,
    /// What Prometheus calls the machine of a node (label `instance`). Of nodes that are not listed, CPU and memory are known only
    /// if their server runs on this machine.
    pub instances: BTreeMap<NodeId, String>,
    /// How long an answer may take; five seconds at most, so that what the server itself tells is not lost with it.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Cores that were busy of late, as a mean.
    pub busy_cores: String,
    /// Cores that there are.
    pub cores: String,
    /// Bytes of memory that are taken.
    pub used_memory: String,
    /// Bytes of memory that there are.
    pub memory: String,
}

impl Default for PrometheusSettings {
    fn default() -> Self {
        let of_instance = |metric: &str| format!(r#"{metric}{{instance="{INSTANCE}"}}"#);
        let memory = of_instance("node_memory_MemTotal_bytes");
        Self {
            url: None,
            instances: BTreeMap::new(),
            timeout: Duration::from_secs(2),
            // A rate takes two scrapes, which may be a minute apart. Time that a hypervisor gave to others is no load of this
            // machine.
            busy_cores: format!(
                r#"sum(rate(node_cpu_seconds_total{{instance="{INSTANCE}",mode!~"idle|iowait|steal"}}[2m]))"#
            ),
            cores: format!(r#"count(node_cpu_seconds_total{{instance="{INSTANCE}",mode="idle"}})"#),
            used_memory: format!("{memory} - {}", of_instance("node_memory_MemAvailable_bytes")),
            memory,
        }
    }
}

/// An `http://` address: host, port, and the path that everything is below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PrometheusUrl {
    host: String,
    port: u16,
    path: String,
}

impl PrometheusUrl {
    /// Host and port.
    pub(crate) fn peer(&self) -> (&str, u16) {
        (self.host.trim_start_matches('[').trim_end_matches(']'), self.port)
    }

    /// Host and port as a request names them.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Path of the query that has one answer for now.
    pub(crate) fn query_path(&self) -> String {
        format!("{}/api/v1/query", self.path)
    }
}

impl fmt::Display for PrometheusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

impl From<PrometheusUrl> for String {
    fn from(url: PrometheusUrl) -> Self {
        url.to_string()
    }
}

/// A text that is no address of Prometheus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no address of Prometheus: {why}; write http://HOST:PORT, and the path that it is served under, if any"
)]
pub struct PrometheusUrlError {
    text: String,
    why: &'static str,
}

impl TryFrom<String> for PrometheusUrl {
    type Error = PrometheusUrlError;

    fn try_from(text: String) -> Result<Self, PrometheusUrlError> {
        let no = |why| PrometheusUrlError { text: text.clone(), why };
        let uri: hyper::Uri = text.parse().map_err(|_| no("it cannot be read"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(no("only plain http is spoken, a proxy on this machine can add the rest")),
            _ => return Err(no("http:// is missing")),
        }
        if uri.query().is_some() {
            return Err(no("a query belongs into the settings of queries"));
        }
        let authority = uri.authority().filter(|a| !a.as_str().contains('@'));
        let host = authority.map(|a| a.host().to_owned()).filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| no("it must name a host and no user"))?;
        let has_port = authority.is_some_and(|a| a.as_str() != a.host());
        let port = uri.port_u16().or((!has_port).then_some(80));
        let port = port.ok_or_else(|| no("its port is no number up to 65535"))?;
        Ok(Self { host, port, path: uri.path().trim_end_matches('/').to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<PrometheusUrl, PrometheusUrlError> {
        text.to_owned().try_into()
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for (text, peer, shown) in [
            ("http://db:9090", ("db", 9090), "http://db:9090"),
            ("http://10.0.0.9", ("10.0.0.9", 80), "http://10.0.0.9:80"),
            ("http://[::1]:9090/prom/", ("::1", 9090), "http://[::1]:9090/prom"),
        ] {
            let read = url(text).unwrap();
            assert_eq!((read.peer(), read.to_string().as_str()), (peer, shown));
            assert_eq!(url(shown).unwrap(), read);
        }
        assert_eq!(url("http://a/b").unwrap().query_path(), "/b/api/v1/query");
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, why) in [
            ("https://db:9090", "plain http"),
            ("db:9090", "http:// is missing"),
            ("", "cannot be read"),
            ("http://", "cannot be read"),
            ("http://me:secret@db:9090", "no user"),
            ("http://db:9090/?query=x", "query"),
            ("http://db:999999", "up to 65535"),
            ("http://db:", "up to 65535"),
        ] {
            let error = url(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_usual_queries_name_the_instance() {
        let settings = PrometheusSettings::default();
        for query in [&settings.busy_cores, &settings.cores, &settings.used_memory, &settings.memory] {
            assert!(query.contains(r#"{instance="$instance""#), "{query}");
        }
    }
}
