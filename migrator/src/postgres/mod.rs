//! PostgreSQL: a shard is a database on one of several servers, and clients reach it through PgBouncer.

mod catalog;
mod compare;
mod names;
mod session;
mod settings;

pub use settings::{LongTransactions, PoolerAddress, PostgresSettings, ServerAddress, WithoutKey};
