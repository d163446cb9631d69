//! The second port: HTTP/1.1 for whoever looks after the process.
//!
//! | path | answer |
//! | --- | --- |
//! | `/livez` | 200 as long as the process can compute; anything else means: restart it |
//! | `/readyz` | 200 if new requests would be taken, 503 and why if not: it starts, stops, or too much waits |
//! | `POST /api/v1/write` | takes what Prometheus sends; needs the right `ingest` where there are tokens |
//! | `/metrics` | what Prometheus scrapes; needs a token with the right `read` where there are tokens |

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming as Asked;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;

use crate::access::{Access, Right};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::remote_write::Receiver;
use crate::transport::{Connection, Incoming};

/// A client must have sent the head of its request by then.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Where Prometheus sends to, as at its own receiver.
const REMOTE_WRITE: &str = "/api/v1/write";

/// The form of `/metrics`.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: Arc<Access>,
    pub(crate) receiver: Arc<Receiver>,
}

/// Answers until `stop`; then the requests under way are finished.
pub(crate) async fn serve(mut incoming: Incoming, pages: Pages, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            () = stop.cancelled() => break,
            connection = incoming.next() => connection,
        };
        match connection {
            Some(Ok(connection)) => {
                connections.spawn(talk(connection, pages.clone(), stop.clone()));
            }
            Some(Err(error)) => tracing::debug!(%error, "a connection was lost before it spoke"),
            None => break,
        }
    }
    connections.close();
    connections.wait().await;
}

async fn talk(connection: Connection, pages: Pages, stop: CancellationToken) {
    let answering = service_fn(move |request: Request<Asked>| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.respond(request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    let mut talking = std::pin::pin!(http.serve_connection(TokioIo::new(connection), answering));
    let ended = tokio::select! {
        ended = talking.as_mut() => ended,
        () = stop.cancelled() => {
            talking.as_mut().graceful_shutdown();
            talking.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the HTTP port ended");
    }
}

impl Pages {
    async fn respond(&self, request: Request<Asked>) -> Response<Full<Bytes>> {
        if request.uri().path() != REMOTE_WRITE {
            return self.answer(request.method(), request.uri().path(), request.headers());
        }
        if request.method() != Method::POST {
            return other_method("POST");
        }
        match self.access.check(Right::Ingest, request.headers()) {
            Ok(()) => self.receiver.answer(request).await,
            Err(refused) => text(http_status(refused.code()), format!("{}\n", refused.message())),
        }
    }

    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return other_method("GET, HEAD");
        }
        match path {
            "/livez" if self.readiness.alive() => text(StatusCode::OK, "alive\n"),
            "/livez" => text(StatusCode::INTERNAL_SERVER_ERROR, "no compute thread is left; restart the process\n"),
            "/readyz" => match self.readiness.look() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            },
            "/metrics" => match self.access.check(Right::Read, headers) {
                Ok(()) => self.metrics(),
                Err(refused) => text(http_status(refused.code()), format!("{}\n", refused.message())),
            },
            _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz, /metrics and, to write to, /api/v1/write\n"),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.metrics.text() {
            Ok(metrics) => {
                let mut response = text(StatusCode::OK, metrics);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
                response
            }
            Err(error) => {
                tracing::error!(%error, "the metrics cannot be written down");
                text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written down\n")
            }
        }
    }
}

fn other_method(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed} is answered here\n"));
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refused
}

fn http_status(code: Code) -> StatusCode {
    if code == Code::PermissionDenied { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
