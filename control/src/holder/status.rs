//! Errors as gRPC wants them: a code, a text with all causes, and details of `google.rpc` that a program can act on.

use foreshard_api::WireError;
use foreshard_migrator::{BackendError, DriverError, StoreError};
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt as _};

use super::by_hand::StartError;
use super::reason;

/// When to come again after what may work the next time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) fn wire(error: &WireError) -> Status {
    invalid(error.field(), reason(error))
}

fn invalid(field: &str, text: String) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, text.clone());
    Status::with_error_details(Code::InvalidArgument, text, details)
}

fn not_found(kind: &str, name: &str, text: String) -> Status {
    let details = ErrorDetails::with_resource_info(format!("foreshard.v1.{kind}"), name, "", "it is not known");
    Status::with_error_details(Code::NotFound, text, details)
}

fn precondition(kind: &str, subject: &str, text: String) -> Status {
    let violation = PreconditionViolation::new(kind, subject, text.clone());
    let details = ErrorDetails::with_precondition_failure(vec![violation]);
    Status::with_error_details(Code::FailedPrecondition, text, details)
}

fn unavailable(text: String) -> Status {
    Status::with_error_details(Code::Unavailable, text, ErrorDetails::with_retry_info(Some(RETRY_AFTER)))
}

pub(super) fn start(error: &StartError) -> Status {
    let text = reason(error);
    match error {
        StartError::Driver(error) => driver(error),
        StartError::NotThere { shard, .. } => not_found("Shard", shard.as_str(), text),
        StartError::Several { shard, .. } => precondition("OWNER", shard.as_str(), text),
        StartError::Adopt { shard, .. } => precondition("SHARD_MAP", shard.as_str(), text),
        StartError::Find { source: BackendError::Transient { .. }, .. } => unavailable(text),
        StartError::Find { shard, .. } => precondition("ENGINE", shard.as_str(), text),
        StartError::Name(_) => invalid("shard_id", text),
    }
}

pub(super) fn driver(error: &DriverError) -> Status {
    let text = reason(error);
    match error {
        DriverError::Unknown { id } => not_found("Migration", id.as_str(), text),
        DriverError::Illegal { id, .. } => precondition("STATE", id.as_str(), text),
        DriverError::NotSpare { id, .. } => precondition("NODE", id.as_str(), text),
        DriverError::NotOwner { shard, .. } => precondition("OWNER", shard.as_str(), text),
        DriverError::NoReverseLog { shard, .. } => precondition("ENGINE", shard.as_str(), text),
        DriverError::Store { source: StoreError::Invalid { .. } } => precondition("STORE", "state store", text),
        DriverError::Deposed { .. } | DriverError::Store { source: StoreError::StaleTerm { .. } } => {
            precondition("LEADER", "state store", text)
        }
        DriverError::SameNode { .. } => invalid("target", text),
        DriverError::Unsupported { .. } => invalid("consistency", text),
        DriverError::Store { .. } | DriverError::Engine { .. } | DriverError::Stuck { .. } => unavailable(text),
        DriverError::Contradiction { .. } | DriverError::Name { .. } => {
            tracing::error!(error = %text, "a request failed");
            Status::internal(text)
        }
    }
}
