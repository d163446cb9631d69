//! PostgreSQL servers, poolers and clients under real load: what the PostgreSQL backend is proven with.
//!
//! Needs PostgreSQL 15 or newer and PgBouncer (`scripts/test` installs both). Every test starts servers of its own on
//! loopback ports nobody else has, in folders of its own, and stops them by process id.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod contract;
mod faults;
mod harness;
mod looked_after;
mod measure;
mod moves;
mod mutants;
mod paced;
mod real_life;
mod smoke;
mod watchdog;
mod watched;
