//! Errors as gRPC wants them: a code, a text, and details of `google.rpc` that a program can act on.

use foreshard_api::WireError;
use foreshard_domain::ShardId;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetail, ErrorDetails, PreconditionViolation, ResourceInfo, RetryInfo, StatusExt as _};

use crate::IngestError;
use crate::context::NothingToForecast;
use crate::engine::QueueFull;
use crate::ingest::{LogError, reason};

/// When a refused caller may come again if nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Never sooner than this, nor later.
const RETRY_WITHIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// gRPC's own word for it: clients with a retry policy wait so many milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Most names in the details of one error; they travel in a header, whose size peers limit.
const MOST_NAMES: usize = 30;

/// A field holds what it may not.
pub(super) fn invalid(field: &str, what: impl Into<String>) -> Status {
    let what = what.into();
    let text = format!("{field}: {what}");
    Status::with_error_details(Code::InvalidArgument, text, ErrorDetails::with_bad_request_violation(field, what))
}

pub(super) fn wire(error: &WireError) -> Status {
    invalid(error.field(), reason(error))
}

pub(super) fn nothing(why: NothingToForecast) -> Status {
    match why {
        NothingToForecast::NothingObserved => {
            precondition("OBSERVATIONS", "nothing was observed yet; ingest rows before asking for forecasts")
        }
        NothingToForecast::NoSuchMetric => {
            precondition("METRIC", "none of these shards was ever observed in a wanted metric")
        }
        NothingToForecast::UnknownShards(shards) => unknown_shards(&shards),
    }
}

/// Nobody knows where any shard lies.
pub(super) fn nowhere() -> Status {
    precondition("PLACEMENT", "no row ever named a node; ingest rows with node_id before asking for nodes")
}

fn precondition(kind: &str, text: &str) -> Status {
    let violation = PreconditionViolation::new(kind, "foreshard.v1.ForecastService", text);
    let details = ErrorDetails::with_precondition_failure(vec![violation]);
    Status::with_error_details(Code::FailedPrecondition, text, details)
}

/// Nothing was ever observed of these.
pub(super) fn unknown_shards(shards: &[ShardId]) -> Status {
    let names: Vec<&str> = shards.iter().take(MOST_NAMES).map(ShardId::as_str).collect();
    let more = shards.len().saturating_sub(names.len());
    let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let text = format!("nothing was ever observed of shard {}{and_more}", names.join(", "));
    let detail = |name: &&str| -> ErrorDetail {
        ResourceInfo::new("foreshard.v1.Shard", *name, "", "nothing was ever observed of it").into()
    };
    let details: Vec<ErrorDetail> = names.iter().map(detail).collect();
    Status::with_error_details_vec(Code::NotFound, text, details)
}

pub(super) fn busy(full: QueueFull) -> Status {
    match full {
        QueueFull::Full { waiting, wait } => {
            exhausted(format!("{waiting} rows wait to be computed already; come again"), half_of(wait))
        }
        QueueFull::Slow { wait } => exhausted(
            format!("what is before it would take {wait:.1?}, longer than it may wait; come again"),
            half_of(wait),
        ),
        QueueFull::Closed => stopped(),
    }
}

/// The server stops and cannot wait for the call.
pub(super) fn stopped() -> Status {
    Status::unavailable("the server is stopping")
}

/// Half of what waits is worked off by then, so that whoever comes again finds room and the queue does not run dry.
fn half_of(wait: Duration) -> Duration {
    let (least, most) = RETRY_WITHIN;
    if wait.is_zero() { RETRY_AFTER } else { (wait / 2).clamp(least, most) }
}

/// Refused for now.
pub(super) fn exhausted(text: String, retry_after: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(retry_after));
    let mut status = Status::with_error_details(Code::ResourceExhausted, text, details);
    let wait = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    status.metadata_mut().insert(PUSHBACK, wait.into());
    status
}

/// Refused for now, and nobody knows for how long.
pub(super) fn exhausted_a_while(text: String) -> Status {
    exhausted(text, RETRY_AFTER)
}

pub(super) fn ingest(error: &IngestError) -> Status {
    let text = reason(error);
    match error {
        IngestError::Backlog { .. } => exhausted_a_while(text),
        IngestError::Log(LogError::TooLong { .. }) => invalid("rows", text),
        IngestError::Log(_) | IngestError::History(_) => {
            let details: Vec<ErrorDetail> = vec![RetryInfo::new(Some(RETRY_AFTER)).into()];
            Status::with_error_details_vec(Code::Unavailable, text, details)
        }
    }
}

/// What went wrong inside; the caller can do nothing about it.
pub(super) fn internal(error: &dyn std::error::Error) -> Status {
    let text = reason(error);
    tracing::error!(error = %text, "a request failed");
    Status::internal(text)
}
