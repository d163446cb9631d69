//! What can go wrong on the wire and beyond it.

use foreshard_domain::{ForecastError, IdError, ScenarioError};
use std::time::Duration;
use tonic_types::StatusExt as _;

/// Why a message is no domain value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("field {field} is missing")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// An enumeration holds a number that this side does not know, or none.
    #[error("field {field} holds {value}, which names no {expected}")]
    UnknownEnum {
        /// Which field.
        field: &'static str,
        /// The number on the wire.
        value: i32,
        /// What it should have named.
        expected: &'static str,
    },
    /// A number lies outside what the field allows.
    #[error("field {field} holds {value}; it must be {expected}")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// A name is no identifier.
    #[error("field {field} holds no identifier")]
    Id {
        /// Which field.
        field: &'static str,
        /// Why not.
        #[source]
        source: IdError,
    },
    /// Quantiles break a forecast's invariants: they cross, are not finite, or do not fill the matrix.
    #[error("the quantiles of {shard} {metric} are no forecast")]
    Forecast {
        /// Whose.
        shard: String,
        /// Of what.
        metric: &'static str,
        /// Why not.
        #[source]
        source: ForecastError,
    },
    /// Quantile levels are not rising inside (0, 1).
    #[error("field levels holds no quantile levels")]
    Levels(#[source] ForecastError),
    /// Scenario values are no scenario set.
    #[error("the streamed values are no scenario set")]
    Scenarios(#[source] ScenarioError),
    /// The parts of a scenario stream come in the wrong order or do not add up.
    #[error("scenario stream is broken: {what}")]
    Stream {
        /// How.
        what: String,
    },
}

impl WireError {
    /// The field of the message that is wrong, where one can be named.
    pub fn field(&self) -> &'static str {
        match self {
            WireError::Missing { field }
            | WireError::UnknownEnum { field, .. }
            | WireError::Range { field, .. }
            | WireError::Id { field, .. } => field,
            WireError::Levels(_) => "levels",
            WireError::Forecast { .. } | WireError::Scenarios(_) | WireError::Stream { .. } => "values",
        }
    }
}

/// Why a call of [`crate::ForecastClient`] brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint is no URI such as `http://127.0.0.1:7450`.
    #[error("{endpoint:?} is no endpoint; give a URI such as http://127.0.0.1:7450")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// A server that speaks TLS is asked without a word whom to trust.
    #[error("{endpoint} speaks TLS, and no authority was named that its certificate must come from; name one")]
    NoAuthority {
        /// Where.
        endpoint: String,
    },
    /// What only TLS keeps safe would go over the network in plain, or could not be used at all.
    #[error(
        "{endpoint} is asked without TLS, and {what}; ask over https, or say that something else encrypts what goes there \
         (without_tls)"
    )]
    Plain {
        /// Where.
        endpoint: String,
        /// What must not be.
        what: &'static str,
    },
    /// A token holds what no header can.
    #[error("the token holds characters that cannot be sent; tokens are plain letters, digits and signs")]
    Token,
    /// Nobody answers there.
    #[error("cannot connect to {endpoint}; is the server running")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The server, or the connection to it, refused the call.
    #[error("call {method} failed")]
    Call {
        /// Which call.
        method: &'static str,
        /// What came back.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The answer breaks the contract.
    #[error("answer to {method} cannot be taken")]
    Answer {
        /// Which call.
        method: &'static str,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
}

impl ClientError {
    /// The status that the server gave, if it gave one.
    pub fn code(&self) -> Option<tonic::Code> {
        self.status().map(tonic::Status::code)
    }

    /// How long the server asks to wait before the call is tried again (it was too busy).
    pub fn retry_after(&self) -> Option<Duration> {
        self.status()?.get_details_retry_info()?.retry_delay
    }

    /// The names of the shards that the server never heard of, if that was the error.
    pub fn unknown_shards(&self) -> Vec<String> {
        let details = self.status().map(|status| status.get_error_details_vec()).unwrap_or_default();
        let names = details.into_iter().filter_map(|detail| match detail {
            tonic_types::ErrorDetail::ResourceInfo(info) => Some(info.resource_name),
            _ => None,
        });
        names.collect()
    }

    fn status(&self) -> Option<&tonic::Status> {
        match self {
            ClientError::Call { source, .. } => Some(source),
            ClientError::Endpoint { .. }
            | ClientError::NoAuthority { .. }
            | ClientError::Plain { .. }
            | ClientError::Token
            | ClientError::Connect { .. }
            | ClientError::Answer { .. } => None,
        }
    }
}
