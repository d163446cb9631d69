//! Who asks: the serving process that takes measurements in and gives forecasts, risks and scenarios out.
//!
//! - *Ingest* puts every accepted row into a log before it acknowledges it, then into memory, then into pieces of the
//!   history; a restart reads both again.
//! - *Remote write*: Prometheus sends series, of which a mapping makes rows that go the same way.
//! - *Context*: the newest days of every series on a 5-minute grid. Forecasts begin after the last complete step, never
//!   inside one, and all series share that origin.
//! - *Engine*: a queue bounded by rows before threads of its own; a full queue refuses at once, expired requests are not
//!   computed (S1).
//! - *Load*: connections are bounded in number and age; a request that would wait too long is refused with a word when to come
//!   again; `/livez`, `/readyz` and `/metrics` on a port of their own tell how things are.
//! - *Access*: TLS with or without certificates of clients, tokens with rights for each method; without TLS only loopback, unless
//!   somebody says otherwise.
//! - *Reload*: when the champion changes, the new version is loaded, verified and tried out beside the old one and then
//!   exchanged in one step; one that fails is refused and the old one goes on (S1).
//! - *Fallback*: what the model cannot answer, seasonal naive answers, and the provenance says so and why.

mod access;
mod config;
mod context;
mod engine;
mod error;
mod events;
mod http;
mod ingest;
mod metrics;
mod readiness;
mod registry;
mod remote_write;
mod server;
mod service;
mod transport;
mod version;
mod watched;

pub use access::TokenError;
pub use config::{ConfigProblem, ServingConfig};
pub use engine::EngineCounts;
pub use error::ServingError;
pub use events::EventsError;
pub use ingest::{IngestError, LogError};
pub use registry::ReloadError;
pub use server::{RunningServer, start, start_with};
pub use transport::{TlsError, TlsFiles};
pub use version::{LoadError, RegistryVersions, ServedVersion, VersionLoader};
