//! How a client reaches a server: in plain or by TLS, with or without a token.

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

/// Opens a channel to an endpoint.
pub(crate) async fn channel(endpoint: &str, credentials: &Credentials) -> Result<Channel, ClientError> {
    let bad = |source| ClientError::Endpoint { endpoint: endpoint.to_owned(), source };
    let mut address = Endpoint::from_shared(endpoint.to_owned())
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    if address.uri().scheme_str() == Some("https") {
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
}
