//! The check around all services.

use http::{Request, Response};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::{Layer, Service};

use super::Access;

/// Lets only those calls through that may be made.
#[derive(Clone)]
pub(crate) struct AccessLayer(pub(crate) Arc<Access>);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, access: Arc::clone(&self.0) }
    }
}

/// A service whose callers are checked.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    access: Arc<Access>,
}

impl<S, I> Service<Request<I>> for Guarded<S>
where
    S: Service<Request<I>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        match self.access.check_call(request.uri().path(), request.headers()) {
            Ok(()) => Answer::Inner(Box::pin(self.inner.call(request))),
            Err(status) => Answer::Refused(Some(Box::new(status.into_http()))),
        }
    }
}

/// What comes: the service's own answer, or the refusal.
pub(crate) enum Answer<F> {
    Inner(Pin<Box<F>>),
    /// Taken when it is given.
    Refused(Option<Box<Response<Body>>>),
}

impl<F, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Answer::Inner(answer) => answer.as_mut().poll(cx),
            Answer::Refused(answer) => answer.take().map_or(Poll::Pending, |answer| Poll::Ready(Ok(*answer))),
        }
    }
}
