//! How servers are asked.

use foreshard_api::{ClientCertificate, Credentials, Secret};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use crate::layers::variable;

/// Holds a token for those who have no file for it.
const TOKEN: &str = "FORESHARD_TOKEN";

/// `[client]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSettings {
    /// Authorities that the server's certificate must come from; needed for https.
    pub ca: PathBuf,
    /// The name in the server's certificate, where it differs from that of the address; empty if it does not.
    pub server_name: String,
    /// The client's own certificate; empty for none.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// File of a token; empty for none.
    pub token_file: PathBuf,
    /// Lets a token go to other machines over http.
    pub without_tls: bool,
}

impl ClientSettings {
    /// What is shown to servers, and whom to trust.
    ///
    /// # Errors
    /// If a file cannot be read, or one of certificate and key is there without the other.
    pub fn credentials(&self) -> Result<Credentials, String> {
        let certificate = match (read(&self.cert)?, read(&self.key)?) {
            (Some(cert), Some(key)) => {
                let key = String::from_utf8(key).map_err(|_| format!("{} is no PEM file", self.key.display()))?;
                Some(ClientCertificate { cert, key: Secret::new(key) })
            }
            (None, None) => None,
            _ => return Err("client.cert and client.key go together: the certificate and its private key".to_owned()),
        };
        let token = match read(&self.token_file)? {
            Some(token) => String::from_utf8(token).map_err(|_| format!("{} is no text", self.token_file.display()))?,
            None => variable(TOKEN)?.unwrap_or_default(),
        };
        Ok(Credentials {
            ca: read(&self.ca)?,
            server_name: Some(self.server_name.clone()).filter(|name| !name.is_empty()),
            certificate,
            token: Some(token.trim()).filter(|token| !token.is_empty()).map(Secret::new),
            without_tls: self.without_tls,
        })
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    std::fs::read(path).map(Some).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}
