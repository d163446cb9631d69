//! One contract for every backend, run against each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod contract;
mod embedded;
