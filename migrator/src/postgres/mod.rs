//! PostgreSQL: a shard is a database on one of several servers, and moves by logical replication.
//!
//! - [`wire`]: a replication connection, for slots, exported snapshots and streams of changes.
//! - [`pgoutput`]: what such a stream says.
//! - [`tracker`]: which keys have changed since they were last compared.

mod cursor;
mod lsn;
mod pgoutput;
#[cfg(test)]
mod test_server;
mod tracker;
mod wire;
