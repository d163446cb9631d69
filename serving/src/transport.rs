//! Connections as they come in: bounded in number and age, and said good-bye to when they say nothing.
//!
//! TLS, where there is any, is spoken here too (`tls.rs`), so that the servers above see plain bytes.
//!
//! Both ports of the server take their connections from here, so that one set of limits holds for both. A connection
//! beyond the limit is closed at once instead of waiting in the system's queue: its owner learns in microseconds that it
//! must come again.

mod connection;
mod incoming;
mod opening;
mod tls;

pub(crate) use connection::{Connection, Io};
pub(crate) use incoming::{ConnectionCounts, ConnectionLimits, Incoming, accept};
pub(crate) use opening::Opening;
pub(crate) use tls::{Inside, Tls};
pub use tls::{TlsError, TlsFiles};
