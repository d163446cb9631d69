//! Every call of a move x every fault: clients lose nothing, the move ends finished or back at the start, and nothing is left.
//!
//! `scripts/test` runs a seeded dozen. `FORESHARD_FAULTS=all` (`scripts/nightly`) runs every cell, `2/3` the second of three
//! parts, and any other word the cells whose names contain it. A cell that fails holds up no other.

mod cell;
mod process;
mod world;

use cell::{Cell, Fault, Journey};
use foreshard_domain::MigrationId;
use foreshard_migrator::{Driver, DriverError, MigrationRecord};
use futures::FutureExt;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use world::World;

/// No cell takes nearly as long.
const CELL: Duration = Duration::from_secs(400);

/// What the controller does in a cell.
async fn travel(driver: &Driver, id: &MigrationId, journey: Journey) -> Result<MigrationRecord, DriverError> {
    if let Some(request) = journey.request() {
        driver.ask(id, request).await?;
    }
    driver.run(id).await
}

/// The cells that are asked for, in an order that the seed says.
fn chosen(asked: Option<&str>, seed: u64) -> Vec<Cell> {
    let mut cells = cell::all();
    cells.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let part = |asked: &str| {
        let (part, of) = asked.split_once('/')?;
        Some((part.parse::<usize>().ok()?, of.parse::<usize>().ok()?))
    };
    match asked {
        None => cells.truncate(12),
        Some("all") => {}
        Some(asked) => match part(asked) {
            Some((part, of)) => {
                assert!((1..=of).contains(&part), "{part}/{of} is no part");
                let mut n = 0..;
                cells.retain(|_| n.next().is_some_and(|n: usize| n % of == part - 1));
            }
            None => cells.retain(|cell| cell.to_string().contains(asked)),
        },
    }
    assert!(!cells.is_empty(), "no cell is called {asked:?}");
    cells
}

#[test]
fn parts_of_the_matrix_are_the_whole_and_no_cell_is_twice_in_it() {
    let mut names: Vec<_> = chosen(Some("all"), 1).iter().map(Cell::to_string).collect();
    let mut parts: Vec<_> =
        (1..=3).flat_map(|part| chosen(Some(&format!("{part}/3")), 1)).map(|cell| cell.to_string()).collect();
    names.sort();
    parts.sort();
    assert_eq!(names, parts);
    names.dedup();
    assert_eq!(names.len(), parts.len());
    assert_eq!(chosen(None, 7).len(), 12);
    println!("{} cells", names.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m1_to_m8_a_fault_at_any_call_loses_nothing_and_leaves_nothing() {
    let seed = std::env::var("FORESHARD_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let asked = std::env::var("FORESHARD_FAULTS").ok();
    let cells = chosen(asked.as_deref(), seed);
    println!("{} cells, seed {seed}", cells.len());
    let (mut world, mut failed, mut skipped) = (None, Vec::new(), 0);
    for (n, cell) in cells.iter().enumerate() {
        let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_add(n as u64));
        let mut here = match world.take() {
            Some(here) => here,
            None => World::new().await,
        };
        if matches!(cell.fault, Fault::DiskIsFull | Fault::DiskIsFullForItsLog) && !here.has_small_disks() {
            println!("{cell}: SKIPPED, mounting a small disk is not allowed here");
            skipped += 1;
            world = Some(here);
            continue;
        }
        println!("-- {cell}");
        let began = Instant::now();
        // The world is thrown away if the cell fails.
        match AssertUnwindSafe(timeout(CELL, here.cell(cell, &mut random))).catch_unwind().await {
            Ok(Ok(ended)) => {
                println!("{cell}: {ended}; {:.1?}", began.elapsed());
                world = Some(here);
            }
            late_or_panicked => {
                let how = if late_or_panicked.is_ok() { "never ended" } else { "failed" };
                println!("{cell}: FAILED: {how} after {:.1?}", began.elapsed());
                failed.push(cell.to_string());
                here.tell().await;
            }
        }
    }
    println!("{} cells, {} failed, {skipped} skipped", cells.len(), failed.len());
    assert!(failed.is_empty(), "{} of {} cells failed:\n{}", failed.len(), cells.len(), failed.join("\n"));
}
