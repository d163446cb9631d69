//! TLS of both ports, from files that may be exchanged while the server runs.

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

use crate::ingest::reason;
use crate::watched::{Look, Watched};

/// What HTTP/2 is called in a handshake.
const H2: &[u8] = b"h2";

/// What HTTP/1.1 is called.
const HTTP1: &[u8] = b"http/1.1";

/// Where the server's own certificate is, and who may connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The server's certificate and those between it and its authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of clients, PEM; with them only clients that show a certificate of one of them can connect.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {expected} in PEM form", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What was found.
        #[source]
        source: PemError,
    },
    /// Certificate and key do not belong together, or are of a kind that cannot be used.
    #[error("certificate {} cannot be used with key {}", cert.display(), key.display())]
    Identity {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The authorities of clients cannot be used.
    #[error("the authorities of clients in {} cannot be used", path.display())]
    ClientCa {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<VerifierBuilderError>,
    },
}

/// What a port speaks inside of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inside {
    Grpc,
    Http,
}

struct Offered {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
}

/// What is offered to those who connect now.
pub(crate) struct Tls {
    files: TlsFiles,
    watched: Vec<Watched>,
    offered: RwLock<Offered>,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
        let watched = paths.into_iter().flatten().map(|path| Watched::new(path.clone())).collect();
        let offered = RwLock::new(read(&files)?);
        Ok(Self { files, watched, offered })
    }

    /// What shakes hands with the next client.
    pub(crate) fn acceptor(&self, inside: Inside) -> TlsAcceptor {
        let offered = self.offered.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(match inside {
            Inside::Grpc => &offered.grpc,
            Inside::Http => &offered.http,
        }))
    }

    /// Reads the files again if one has changed; connections that are open go on, and what was offered before is offered
    /// on where that fails. A certificate that was exchanged before its key fails until both are there. True if one is being
    /// written, so that the next look should come soon.
    pub(crate) fn look(&self) -> bool {
        // Every file is looked at, so that one that changed together with another is not read for it again.
        let looks: Vec<Look> = self.watched.iter().map(Watched::look).collect();
        let changed =
            || self.watched.iter().zip(&looks).filter(|(_, look)| **look == Look::Changed).map(|(file, _)| file);
        if looks.contains(&Look::Settling) {
            changed().for_each(Watched::wait);
            return true;
        }
        if changed().next().is_none() {
            return false;
        }
        match read(&self.files) {
            Ok(offered) => {
                *self.offered.write().unwrap_or_else(PoisonError::into_inner) = offered;
                self.watched.iter().for_each(Watched::used);
                tracing::info!(cert = %self.files.cert.display(), "the certificate was read again");
            }
            Err(error) => {
                let why = reason(&error);
                let new = self.watched.iter().filter(|file| file.try_again(&why)).count() > 0;
                if new {
                    tracing::error!(error = %why, "the certificate cannot be read; the one before is offered on");
                }
            }
        }
        false
    }
}

fn read(files: &TlsFiles) -> Result<Offered, TlsError> {
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let TlsFiles { cert, key, .. } = files;
    let unusable = |source| TlsError::Identity { cert: cert.clone(), key: key.clone(), source };
    let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(unusable)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|source| TlsError::ClientCa { path: path.clone(), source: Box::new(source) })?,
            )
        }
    };
    let secret = PrivateKeyDer::from_pem_slice(&bytes(key)?).map_err(|source| TlsError::Pem {
        path: key.clone(),
        expected: "private key",
        source,
    })?;
    let config = builder.with_single_cert(certificates(cert)?, secret).map_err(unusable)?;
    let speaking = |name: &[u8]| {
        let mut config = config.clone();
        config.alpn_protocols = vec![name.to_vec()];
        Arc::new(config)
    };
    Ok(Offered { grpc: speaking(H2), http: speaking(HTTP1) })
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem { path: path.to_owned(), expected: "certificate", source };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes(path)?).collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(failed(PemError::NoItemsFound)) } else { Ok(found) }
}
