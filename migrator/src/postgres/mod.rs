//! PostgreSQL: a shard is a database on one of several servers, and moves by logical replication.
//!
//! - [`pgoutput`]: what a stream of changes says.

mod cursor;
mod lsn;
mod pgoutput;
