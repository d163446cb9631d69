//! Calls of the backend: with a time limit, and again if they failed for now.

use foreshard_domain::RealTime;
use futures::future::BoxFuture;
use std::time::Duration;

use super::Driver;
use crate::{BackendError, MoveSpec, SourceState};

impl Driver {
    /// Calls until it succeeds, fails for good, or has been tried often enough; under a fence, until its deadline.
    pub(super) async fn call<'a, T>(
        &self,
        doing: &str,
        deadline: Option<RealTime>,
        call: impl Fn() -> BoxFuture<'a, Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let mut failures = 0;
        loop {
            let limit = self.limit(doing, deadline)?;
            let error = match tokio::time::timeout(limit, call()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error @ BackendError::Transient { .. })) => error,
                Ok(Err(error)) => return Err(error),
                Err(elapsed) => BackendError::Transient { doing: doing.to_owned(), source: Box::new(elapsed) },
            };
            if failures >= self.config.retries {
                return Err(error);
            }
            tracing::warn!(doing, failures, error = crate::cause::with_causes(&error), "a backend call failed for now");
            tokio::time::sleep(self.config.backoff(failures)).await;
            failures += 1;
        }
    }

    /// How long the next try may take.
    fn limit(&self, doing: &str, deadline: Option<RealTime>) -> Result<Duration, BackendError> {
        let limit = self.backend.call_timeout();
        let Some(deadline) = deadline else { return Ok(limit) };
        let left = deadline.since(self.clock.real());
        if left.is_zero() {
            let why = "the fence expired before it was done".to_owned();
            return Err(BackendError::Fenced { doing: doing.to_owned(), why });
        }
        Ok(limit.min(left))
    }

    /// Lifts the fence and asks the source what it is; returns whether it is sealed. Only when it is known to be open can a
    /// seal that is still on its way do no harm.
    pub(super) async fn lift_fence(&self, spec: &MoveSpec) -> Result<bool, BackendError> {
        let mut looks = 0;
        loop {
            self.call("lifting the fence", None, || self.backend.unfence(spec)).await?;
            match self.call("asking the source for its state", None, || self.backend.source_state(spec)).await? {
                SourceState::Sealed => return Ok(true),
                SourceState::Open => return Ok(false),
                SourceState::Fenced if looks >= self.config.retries => {
                    let source = "the source is still fenced after its fence was lifted".into();
                    return Err(BackendError::Transient { doing: "lifting the fence".into(), source });
                }
                SourceState::Fenced => tokio::time::sleep(self.config.backoff(looks)).await,
            }
            looks += 1;
        }
    }
}
