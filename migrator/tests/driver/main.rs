//! The driver on a scripted engine: whole lives of a migration, with a failure at every call and every commit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/faulty_backend.rs"]
mod faulty_backend;
#[path = "../common/world.rs"]
mod world;

mod asked;
mod crashes;
mod lives;
mod rig;
mod seal;
