//! PostgreSQL: a shard is a database on one of several servers, and clients reach it through PgBouncer.

mod catalog;
mod names;
mod observe;
mod session;
mod settings;

pub use settings::{LongTransactions, Machine, PoolerAddress, PostgresSettings, ServerAddress, WithoutKey};
