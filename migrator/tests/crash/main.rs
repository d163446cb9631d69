//! A crash before and after every write, of the state store and of the nodes' stores, during whole migrations on the
//! embedded engine: whatever the moment, the next process finds its way, and nothing that a client was told is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod world;

use foreshard_migrator::embedded::{Fault, Faults};
use std::sync::Arc;
use world::{Goal, World};

/// Runs to the goal without a fault; how many writes that takes.
async fn writes_of(goal: Goal, who: fn(Arc<Faults>) -> World) -> u64 {
    let world = who(Faults::none());
    world.found().await;
    let before = world.faults.commits();
    world.live(goal).await.unwrap();
    let writes = world.faults.commits();
    assert!(before > 0 && writes > before + 10, "the fault counts what it should: {before}, {writes}");
    world.check_the_end(goal).await;
    writes
}

/// Every fault at every write.
async fn at_every_write(goal: Goal, who: fn(Arc<Faults>) -> World, faults: &[fn(u64) -> Fault]) {
    let writes = writes_of(goal, who).await;
    for fault in faults {
        for n in 0..writes {
            let fault = fault(n);
            let mut world = who(Faults::one(fault));
            let context = format!("goal={goal:?} fault={fault:?} of {writes} writes");
            println!("{context}");
            world.live_and_recover(goal).await;
            world.check_the_end(goal).await;
        }
    }
}

const CRASHES: [fn(u64) -> Fault; 2] = [Fault::CrashBefore, Fault::CrashAfter];

#[tokio::test]
async fn m1_to_m7_process_dies_at_every_write_of_a_move() {
    at_every_write(Goal::Move, World::whole_process, &CRASHES).await;
}

#[tokio::test]
async fn m1_to_m7_process_dies_at_every_write_of_a_rollback() {
    at_every_write(Goal::Rollback, World::whole_process, &CRASHES).await;
}

#[tokio::test]
async fn m1_to_m7_process_dies_at_every_write_of_a_move_given_up() {
    at_every_write(Goal::GiveUp, World::whole_process, &CRASHES).await;
}

#[tokio::test]
async fn m7_controller_alone_dies_at_every_commit_of_a_move() {
    at_every_write(Goal::Move, World::controller_alone, &CRASHES).await;
}

#[tokio::test]
async fn m7_controller_alone_dies_at_every_commit_of_a_rollback() {
    at_every_write(Goal::Rollback, World::controller_alone, &CRASHES).await;
}

#[tokio::test]
async fn m1_one_write_of_a_node_fails_for_now() {
    at_every_write(Goal::Move, World::nodes_alone, &[Fault::FailBefore]).await;
    at_every_write(Goal::Rollback, World::nodes_alone, &[Fault::FailBefore]).await;
}
