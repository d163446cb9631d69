//! Calls are counted and timed around all services, by what was answered in the end.

use foreshard_domain::Clock;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Code;
use tower::{Layer, Service};

use super::{Methods, times};

/// Label of paths that name no method of this server.
const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    service: String,
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    service: String,
    method: String,
    code: String,
}

/// Counts and times the calls of whatever is below it.
#[derive(Clone)]
pub(crate) struct CallLayer(Arc<Counted>);

struct Counted {
    clock: Arc<dyn Clock>,
    methods: Methods,
    ended: Family<Outcome, Counter>,
    took: Family<Method, Histogram, fn() -> Histogram>,
    under_way: Gauge,
}

impl CallLayer {
    pub(super) fn new(clock: Arc<dyn Clock>, methods: Methods, registry: &mut Registry) -> Self {
        let (ended, under_way) = (Family::default(), Gauge::default());
        let took = Family::new_with_constructor(times as fn() -> Histogram);
        registry.register("grpc_calls", "Calls that ended, by what was answered", Clone::clone(&ended));
        registry.register_with_unit(
            "grpc_call_duration",
            "Time from the head of a call to the end of its answer",
            Unit::Seconds,
            Clone::clone(&took),
        );
        registry.register("grpc_calls_under_way", "Calls that have not ended", under_way.clone());
        Self(Arc::new(Counted { clock, methods, ended, took, under_way }))
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner, counted: Arc::clone(&self.0) }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(crate) struct Calls<S> {
    inner: S,
    counted: Arc<Counted>,
}

impl<S, I, O> Service<Request<I>> for Calls<S>
where
    S: Service<Request<I>, Response = Response<O>>,
    S::Future: Send + 'static,
{
    type Response = Response<CountedBody<O>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let mut call = Call::begin(&self.counted, request.uri().path());
        let answered = self.inner.call(request);
        Box::pin(async move {
            let response = answered.await?;
            // An error that comes before any answer stands in the head.
            if let Some(code) = code(response.headers()) {
                call.end(code);
            }
            Ok(response.map(|body| CountedBody { body, call }))
        })
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    Some(Code::from_bytes(headers.get("grpc-status")?.as_bytes()))
}

/// A call under way. Dropped before its end it counts as cancelled: its caller is gone.
struct Call {
    counted: Arc<Counted>,
    method: Method,
    start: Duration,
    ended: bool,
}

impl Call {
    fn begin(counted: &Arc<Counted>, path: &str) -> Self {
        let method = match counted.methods.find(path) {
            Some(found) => Method { service: found.service.clone(), method: found.name.clone() },
            None => Method { service: OTHER.to_owned(), method: OTHER.to_owned() },
        };
        counted.under_way.inc();
        Self { counted: Arc::clone(counted), method, start: counted.clock.monotonic(), ended: false }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let Self { counted, method, start, .. } = self;
        let Method { service, method: name } = method.clone();
        counted.under_way.dec();
        counted.ended.get_or_create(&Outcome { service, method: name, code: format!("{code:?}") }).inc();
        let took = counted.clock.monotonic().saturating_sub(*start);
        counted.took.get_or_create(method).observe(took.as_secs_f64());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// An answer whose end is seen.
pub(crate) struct CountedBody<O> {
    body: O,
    call: Call,
}

impl<O: Body + Unpin> Body for CountedBody<O> {
    type Data = O::Data;
    type Error = O::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(code) {
                    this.call.end(code);
                }
            }
            Some(Err(_)) => this.call.end(Code::Internal),
            None => this.call.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
