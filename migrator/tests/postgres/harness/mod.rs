//! Servers, poolers, faults between them, clients that remember what they were told, and a search for what was left.
#![allow(dead_code)] // each test uses its part

pub mod address;
pub mod bench;
pub mod checker;
pub mod debris;
pub mod latency;
pub mod pooler;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod server;
pub mod small_disk;
pub mod template;
