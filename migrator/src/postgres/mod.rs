//! PostgreSQL: a shard is a database on one of several servers, clients reach it through PgBouncer, and it moves by logical
//! replication.
//!
//! From the bottom up:
//! - `session`: connections, and what their errors mean; `wire`: replication connections, for slots, exported snapshots
//!   and streams of changes; `pgoutput`: what such a stream says; `pooler`: PgBouncer's console and its routes.
//! - `guard`: what refuses writes inside the server; `replication`: publications, slots, subscriptions; `roles`: a login
//!   for each leader term.
//! - `preflight`, `schema`, `copy`: checks, the schema, the rows at one snapshot; `pace`: how fast these may be read.
//! - `tracker` and `compare`: which keys have changed, and whether both sides hold the same.
//! - `bring`, `verify`, `way_back`, `cut_over`, `opening`, `remove`: the steps of a move, made of these.
//! - `room`, `sweep`, `backup`, `warm`: looking after the servers: what a move keeps back, what one left behind, a backup before
//!   the old copy goes, the new owner's cache.
//! - `engine`: the [`crate::Backend`].

mod backend;
mod backup;
mod bring;
mod catalog;
mod compare;
mod copy;
mod cursor;
mod cut_over;
mod engine;
mod find;
mod guard;
mod long_transactions;
mod lsn;
mod mutant;
mod names;
mod observe;
mod opening;
mod pace;
mod pgoutput;
mod pooler;
mod preflight;
mod remove;
mod replication;
mod roles;
mod room;
mod schema;
mod sequences;
mod session;
mod settings;
mod sweep;
#[cfg(test)]
mod test_pair;
#[cfg(test)]
mod test_server;
mod tracker;
mod verify;
mod warm;
mod watch_load;
mod watchdog;
mod way_back;
mod wire;

pub use backend::PostgresBackend;
#[doc(hidden)]
pub use mutant::Mutant;
pub use settings::{
    LongTransactions, Machine, PaceSettings, PoolerAddress, PostgresSettings, PrometheusSettings, PrometheusUrl,
    PrometheusUrlError, ServerAddress, WithoutKey,
};
pub use watchdog::Watchdog;
