//! Who may do what: bearer tokens with rights, checked before any service sees a call.
//!
//! Without tokens everybody who can connect may do everything, which is what a server on loopback, or behind mutual TLS,
//! is for. As soon as there are tokens, every call needs one, but for questions after the server's health.

mod layer;
mod tokens;

pub(crate) use layer::AccessLayer;
pub use tokens::TokenError;
pub(crate) use tokens::{Grants, Right};

use foreshard_api::Secret;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use tonic::Status;

use crate::ingest::reason;
use crate::watched::{Look, Watched};

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Right(Right),
}

/// What the method of a path needs. What is not named here is for admins alone, so that a method that is added one day is
/// closed until somebody decides.
fn needs(path: &str) -> Needs {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return Needs::Right(Right::Admin);
    };
    match (service, method) {
        ("grpc.health.v1.Health", _) => Needs::Nothing,
        ("foreshard.v1.ForecastService", "Ingest") => Needs::Right(Right::Ingest),
        (
            "foreshard.v1.ForecastService",
            "Forecast" | "ForecastStream" | "Watch" | "Risk" | "NodeForecast" | "Scenarios" | "Models",
        )
        | (
            "inference.GRPCInferenceService",
            "ServerLive" | "ServerReady" | "ModelReady" | "ServerMetadata" | "ModelMetadata" | "ModelInfer",
        )
        | ("grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => {
            Needs::Right(Right::Read)
        }
        _ => Needs::Right(Right::Admin),
    }
}

/// Checks calls against the tokens that are known now.
pub(crate) struct Access {
    /// `None`: there are no tokens, and everything is open.
    grants: RwLock<Option<Arc<Grants>>>,
    file: Option<Watched>,
    text: Option<Secret>,
}

impl Access {
    /// Access by the tokens of a file and of a text together; open to all without either.
    ///
    /// # Errors
    /// [`TokenError`] if the file cannot be read or a line makes no sense.
    pub(crate) fn open(file: Option<PathBuf>, text: Option<Secret>) -> Result<Self, TokenError> {
        let access = Self { grants: RwLock::new(None), file: file.map(Watched::new), text };
        if access.file.is_some() || access.text.is_some() {
            access.read()?;
        }
        Ok(access)
    }

    /// Whether there are tokens.
    pub(crate) fn is_guarded(&self) -> bool {
        self.grants().is_some()
    }

    fn grants(&self) -> Option<Arc<Grants>> {
        self.grants.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read(&self) -> Result<(), TokenError> {
        let mut grants = Grants::default();
        if let Some(file) = &self.file {
            let path = file.path();
            let text = fs::read_to_string(path).map_err(|source| TokenError::Io { path: path.to_owned(), source })?;
            grants.add(&path.display().to_string(), &text)?;
        }
        if let Some(text) = &self.text {
            grants.add("FORESHARD_TOKENS", text.expose())?;
        }
        *self.grants.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(grants));
        Ok(())
    }

    /// Reads the file again if it has changed; what was known before holds where that fails. True if it is being written, so
    /// that the next look should come soon.
    pub(crate) fn look(&self) -> bool {
        let Some(file) = &self.file else { return false };
        match file.look() {
            Look::Same => return false,
            Look::Settling => return true,
            Look::Changed => {}
        }
        match self.read() {
            Ok(()) => {
                file.used();
                tracing::info!("the tokens were read again");
            }
            Err(error) => {
                let why = reason(&error);
                if file.try_again(&why) {
                    tracing::error!(error = %why, "tokens cannot be read; those known before hold");
                }
            }
        }
        false
    }

    /// Whether a call may go on.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a known token, `PERMISSION_DENIED` if the token lacks the right.
    pub(crate) fn check_call(&self, path: &str, headers: &HeaderMap) -> Result<(), Status> {
        match needs(path) {
            Needs::Nothing => Ok(()),
            Needs::Right(right) => self.check(right, headers),
        }
    }

    /// Whether whoever sent `headers` has a right.
    ///
    /// # Errors
    /// As [`Self::check_call`].
    pub(crate) fn check(&self, right: Right, headers: &HeaderMap) -> Result<(), Status> {
        let Some(grants) = self.grants() else { return Ok(()) };
        let Some(token) = bearer(headers) else {
            return Err(Status::unauthenticated("a token is needed: send the header authorization: Bearer TOKEN"));
        };
        let Some(grant) = grants.find(token) else {
            return Err(Status::unauthenticated("the token is not known here"));
        };
        if grant.may(right) {
            return Ok(());
        }
        let text = format!("the token {} lacks the right {right}", grant.name());
        Err(Status::permission_denied(text))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const TEXT: &str = "planner read 0123456789abcdef\nagent ingest fedcba9876543210\n";

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    #[test]
    fn every_method_needs_its_right() {
        let access = Access::open(None, Some(Secret::new(TEXT))).unwrap();
        let code =
            |path: &str, authorization: &str| access.check_call(path, &headers(authorization)).map_err(|s| s.code());
        let (read, ingest) = ("Bearer 0123456789abcdef", "bearer  fedcba9876543210");
        let forecast = "/foreshard.v1.ForecastService/Forecast";
        assert_eq!(code("/inference.GRPCInferenceService/ModelInfer", read), Ok(()));
        assert_eq!(code("/inference.GRPCInferenceService/ModelInfer", ingest), Err(Code::PermissionDenied));
        assert_eq!(code(forecast, read), Ok(()));
        assert_eq!(code(forecast, ingest), Err(Code::PermissionDenied));
        assert_eq!(code("/foreshard.v1.ForecastService/Ingest", ingest), Ok(()));
        assert_eq!(code("/foreshard.v1.ForecastService/Ingest", read), Err(Code::PermissionDenied));
        for unknown in ["Bearer 0123456789abcdeX", "Basic 0123456789abcdef", "0123456789abcdef", "Bearer "] {
            assert_eq!(code(forecast, unknown), Err(Code::Unauthenticated), "{unknown}");
        }
        assert_eq!(code("/grpc.health.v1.Health/Check", "nothing"), Ok(()));
        for closed in [
            "/foreshard.v1.AdminService/Reload",
            "/foreshard.v1.ForecastService/Added",
            "/some.Other/Method",
            "/",
            "",
            "no/slash",
        ] {
            assert_eq!(code(closed, read), Err(Code::PermissionDenied), "{closed}");
        }
        assert_eq!(access.check_call(forecast, &HeaderMap::new()).unwrap_err().code(), Code::Unauthenticated);
    }

    #[test]
    fn without_tokens_everything_is_open() {
        let access = Access::open(None, None).unwrap();
        assert!(!access.is_guarded());
        assert!(access.check_call("/foreshard.v1.AdminService/Reload", &HeaderMap::new()).is_ok());
    }

    #[test]
    fn a_changed_file_counts_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        assert!(matches!(Access::open(Some(path.clone()), None), Err(TokenError::Io { .. })));
        fs::write(&path, TEXT).unwrap();
        let access = Access::open(Some(path.clone()), None).unwrap();
        let may = |token: &str| access.check(Right::Read, &headers(&format!("Bearer {token}"))).is_ok();
        assert!(may("0123456789abcdef") && !may("another-secret-of-16"));
        fs::write(&path, "planner read another-secret-of-16\n").unwrap();
        assert!(access.look() && may("0123456789abcdef"), "it may be half written");
        assert!(!access.look() && !may("0123456789abcdef") && may("another-secret-of-16"));
        fs::write(&path, "planner read\n").unwrap();
        assert!(access.look() && !access.look() && may("another-secret-of-16"));
        fs::write(&path, TEXT).unwrap();
        assert!(access.look() && !access.look() && may("0123456789abcdef"), "mended");
    }
}
