//! PostgreSQL: a shard is a database on one of several servers, and clients reach it through PgBouncer.

mod catalog;
mod guard;
mod names;
mod pooler;
mod replication;
mod roles;
mod sequences;
mod session;
mod settings;

pub use settings::{LongTransactions, PoolerAddress, PostgresSettings, ServerAddress, WithoutKey};
