//! Why a request, or a part of it, was not taken, and what its sender is told.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use std::borrow::Cow;

use crate::IngestError;
use crate::ingest::{LogError, reason};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no series are mapped to shards here: name them in serve.remote_write.series")]
    NoMappings,
    #[error("{0}")]
    Form(String),
    #[error("the request is longer than {most} bytes; send fewer samples at once (max_samples_per_send)")]
    TooLong { most: usize },
    #[error("the request has samples of more than {most} rows; send fewer at once (max_samples_per_send)")]
    TooManyRows { most: usize },
    #[error("the request cannot be decoded: {0}")]
    Undecodable(Cow<'static, str>),
    #[error("{refused} samples were not taken, all others are stored; {example}")]
    Samples { refused: u64, example: String },
    #[error("the request did not come in time")]
    Slow,
    #[error("too many requests at once; come again")]
    Busy,
    #[error("the server is stopping")]
    Stopping,
    #[error("the samples cannot be stored now")]
    Ingest(#[source] IngestError),
    #[error("storing the samples failed: {0}")]
    Panicked(String),
}

impl Refusal {
    /// What it is counted as.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Refusal::NoMappings => "unmapped",
            Refusal::Form(_) | Refusal::TooLong { .. } | Refusal::TooManyRows { .. } | Refusal::Undecodable(_) => {
                "undecodable"
            }
            Refusal::Samples { .. } => "partly_taken",
            Refusal::Busy | Refusal::Slow | Refusal::Stopping => "busy",
            Refusal::Ingest(_) | Refusal::Panicked(_) => "failed",
        }
    }

    /// Prometheus drops what is answered with 4xx, and tries again after 5xx; after 429 only if it is told to, so that is not
    /// answered.
    fn status(&self) -> StatusCode {
        match self {
            Refusal::NoMappings => StatusCode::NOT_FOUND,
            Refusal::Form(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::TooLong { .. }
            | Refusal::TooManyRows { .. }
            | Refusal::Ingest(IngestError::Log(LogError::TooLong { .. })) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Undecodable(_) | Refusal::Samples { .. } => StatusCode::BAD_REQUEST,
            Refusal::Slow | Refusal::Busy | Refusal::Stopping | Refusal::Ingest(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Panicked(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether whoever runs the server should know: being busy passes by itself.
    pub(super) fn is_worth_telling(&self) -> bool {
        !matches!(self, Refusal::Busy | Refusal::Slow | Refusal::Stopping)
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(format!("{}\n", reason(self)).into()));
        let status = self.status();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
