//! Why the server does not start or stops.

use std::io;
use std::net::SocketAddr;

use crate::{ConfigProblem, EventsError, IngestError, TlsError, TokenError};

/// Why a server does not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// Settings are wrong; all of them are listed.
    #[error("settings of serving are wrong: {}", list(.0))]
    Config(Vec<ConfigProblem>),
    /// The history or the log cannot be read or written.
    #[error("what was ingested before cannot be read, or what waits cannot be written")]
    Ingest(#[from] IngestError),
    /// The events cannot be read.
    #[error("the known events cannot be used")]
    Events(#[from] EventsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; is another server running there")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A compute thread cannot be started.
    #[error("cannot start a compute thread")]
    Thread(#[source] io::Error),
    /// TLS cannot be offered.
    #[error("TLS cannot be offered")]
    Tls(#[from] TlsError),
    /// The tokens cannot be used.
    #[error("the tokens cannot be used")]
    Tokens(#[from] TokenError),
    /// The descriptors that name the methods cannot be read.
    #[error("cannot read the descriptors of the services")]
    Descriptors(#[source] prost::DecodeError),
    /// The reflection service cannot be built from the descriptors.
    #[error("cannot build the reflection service")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The server ended by itself.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
    /// A task of the server panicked or was cancelled.
    #[error("a task of the server ended abnormally")]
    Task(#[from] tokio::task::JoinError),
}

fn list(problems: &[ConfigProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
