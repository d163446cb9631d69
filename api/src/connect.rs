//! How a client reaches a server: in plain or by TLS, with or without a token.

use std::net::IpAddr;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{ClientError, Secret};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent connection is probed this often, so that a vanished server is noticed before the next deadline.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A certificate with its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and those between it and its authority, PEM.
    pub cert: Vec<u8>,
    /// Its key, PEM.
    pub key: Secret,
}

/// What a client shows and whom it trusts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Authorities that the server's certificate must come from, PEM; needed for `https`.
    pub ca: Option<Vec<u8>>,
    /// The name in the server's certificate, where it differs from that of the endpoint.
    pub server_name: Option<String>,
    /// The client's own certificate, where the server asks for one.
    pub certificate: Option<ClientCertificate>,
    /// A token for every call.
    pub token: Option<Secret>,
    /// Lets a token go beyond this machine over `http`, and authorities and certificates lie idle there: for where something
    /// else encrypts what goes over the network.
    pub without_tls: bool,
}

impl Credentials {
    /// The header that goes with every call.
    pub(crate) fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, ClientError> {
        let Some(token) = &self.token else { return Ok(None) };
        let text = format!("Bearer {}", token.expose().trim());
        let mut header: MetadataValue<Ascii> = text.parse().map_err(|_| ClientError::Token)?;
        // Keeps it out of whatever prints headers.
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// Whether they may be used in plain with that host.
    fn check_plain(&self, endpoint: &str, host: &str) -> Result<(), ClientError> {
        let what = if self.without_tls {
            return Ok(());
        } else if self.ca.is_some() || self.certificate.is_some() {
            "authorities and certificates are for https alone"
        } else if self.token.is_some() && !is_this_machine(host) {
            "a token would go over the network in plain"
        } else {
            return Ok(());
        };
        Err(ClientError::Plain { endpoint: endpoint.to_owned(), what })
    }

    fn tls(&self) -> ClientTlsConfig {
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &self.ca {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        if let Some(ClientCertificate { cert, key }) = &self.certificate {
            tls = tls.identity(Identity::from_pem(cert, key.expose()));
        }
        tls
    }
}

/// Whether what is sent to a host never leaves this machine.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Opens a channel to an endpoint.
pub(crate) async fn channel(endpoint: &str, credentials: &Credentials) -> Result<Channel, ClientError> {
    let bad = |source| ClientError::Endpoint { endpoint: endpoint.to_owned(), source };
    let mut address = Endpoint::from_shared(endpoint.to_owned())
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    if address.uri().scheme_str() != Some("https") {
        credentials.check_plain(endpoint, address.uri().host().unwrap_or_default())?;
    } else {
        if credentials.ca.is_none() {
            return Err(ClientError::NoAuthority { endpoint: endpoint.to_owned() });
        }
        address = address.tls_config(credentials.tls()).map_err(bad)?;
    }
    address.connect().await.map_err(|source| ClientError::Connect { endpoint: endpoint.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_and_never_shown() {
        let token = |text: &str| Credentials { token: Some(Secret::new(text)), ..Credentials::default() };
        let header = token("abc-123\n").authorization().unwrap().unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer abc-123");
        assert!(header.is_sensitive() && !format!("{header:?}").contains("abc"));
        assert!(!format!("{:?}", token("abc-123")).contains("abc"));
        assert!(matches!(token("no\u{0}token").authorization(), Err(ClientError::Token)));
        assert!(Credentials::default().authorization().unwrap().is_none());
    }

    #[tokio::test]
    async fn https_needs_an_authority() {
        let refused = channel("https://127.0.0.1:1", &Credentials::default()).await;
        assert!(matches!(refused, Err(ClientError::NoAuthority { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn what_belongs_into_tls_never_goes_in_plain_without_a_word() {
        let token = Credentials { token: Some(Secret::new("abc-123")), ..Credentials::default() };
        let ca = Credentials { ca: Some(Vec::new()), ..Credentials::default() };
        let certificate = ClientCertificate { cert: Vec::new(), key: Secret::new("key") };
        let certificate = Credentials { certificate: Some(certificate), ..Credentials::default() };
        let (far, here) = ("http://192.0.2.1:1", ["http://127.0.0.1:1", "http://[::1]:1", "http://LOCALHOST:1"]);
        for (credentials, endpoint) in [
            (&token, far),
            (&token, "http://localhost.example:1"),
            (&token, "http://[2001:db8::1]:1"),
            (&ca, far),
            (&ca, here[0]),
            (&certificate, here[0]),
        ] {
            let refused = channel(endpoint, credentials).await.unwrap_err();
            assert!(matches!(refused, ClientError::Plain { .. }), "{endpoint}: {refused}");
            assert!(refused.to_string().contains(endpoint) && !refused.to_string().contains("abc"), "{refused}");
        }
        // Nobody listens there, which is found out only by trying.
        for endpoint in here {
            let tried = channel(endpoint, &token).await.unwrap_err();
            assert!(matches!(tried, ClientError::Connect { .. }), "{endpoint}: {tried}");
        }
        let told = Credentials { without_tls: true, ..ca };
        assert!(matches!(channel(here[0], &told).await, Err(ClientError::Connect { .. })));
    }
}
