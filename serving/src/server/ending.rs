//! Services whose streams never end by themselves, and therefore end when the server stops.
//!
//! Who watches health, or holds a stream of reflection open, waits for nothing that is being computed: a stop that waited for
//! them would always last as long as it may.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// A service whose answers end with `UNAVAILABLE` when the server stops, after all that they have to say at that moment.
#[derive(Clone)]
pub(super) struct Ending<S> {
    inner: S,
    stop: CancellationToken,
}

impl<S> Ending<S> {
    pub(super) fn new(inner: S, stop: CancellationToken) -> Self {
        Self { inner, stop }
    }
}

impl<S: NamedService> NamedService for Ending<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Ending<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let until_stop = |stop: &CancellationToken, end| {
            let stopped = Box::pin(stop.clone().cancelled_owned());
            move |body| Body::new(UntilStop { body, stopped, end, over: false })
        };
        // What is asked ends too: whoever reads it would keep the connection open with a question that does not come.
        let answer = self.inner.call(request.map(until_stop(&self.stop, End::Failure)));
        let until_stop = until_stop(&self.stop, End::Trailers);
        Box::pin(async move { Ok(answer.await?.map(until_stop)) })
    }
}

/// How a body ends before its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With what an answer ends with.
    Trailers,
    /// As one that was cut off.
    Failure,
}

/// A body that ends when the server stops.
struct UntilStop {
    body: Body,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    end: End,
    over: bool,
}

impl HttpBody for UntilStop {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if this.stopped.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.over = true;
        let stopping = Status::unavailable("the server is stopping");
        if this.end == End::Failure {
            return Poll::Ready(Some(Err(stopping)));
        }
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(stopping.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
