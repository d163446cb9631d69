//! What goes wrong, and where: the cells of the matrix.

use crate::watched::{CALLS, CALLS_BACK, When};
use foreshard_migrator::{Request, Way};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One of the two servers of the owner change under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Target,
}

impl End {
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

/// What goes wrong while a call waits to begin, while it is under way, or when it has just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the controller's process; another takes over.
    ControllerIsKilled,
    /// The controller's process is stopped for longer than any fence lasts, and continued.
    ControllerIsStopped,
    /// Another controller takes over while the first sleeps; then the first wakes up.
    ControllerIsReplaced,
    /// `kill -9` of a server.
    ServerIsKilled(End),
    /// `kill -9` of PgBouncer.
    PoolerIsKilled,
    /// Connections of the controller to a server are cut, and refused for a while.
    LinkIsCut(End),
    /// Connections of the controller to a server stay, and carry nothing for longer than any fence lasts.
    LinkHangs(End),
    /// The target has no byte left for a while.
    DiskIsFull,
    /// The same, and its log of changes needs a new file at once: the server ends itself.
    DiskIsFullForItsLog,
}

use Fault as F;

/// What the controller is about when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Journey {
    /// The move, up to the point from where it can be taken back.
    Move,
    /// The end of its retention.
    Finish,
    /// A cancelled move.
    Undo,
    /// A move is taken back.
    RollBack,
    /// A rollback is given up.
    Release,
}

impl Journey {
    /// Which owner change its calls belong to.
    pub const fn way(self) -> Way {
        match self {
            Self::Move | Self::Finish | Self::Undo => Way::There,
            Self::RollBack | Self::Release => Way::Back,
        }
    }

    /// What is asked for at its beginning.
    pub const fn request(self) -> Option<Request> {
        match self {
            Self::Move => None,
            Self::Finish => Some(Request::Finish),
            Self::Undo | Self::Release => Some(Request::Cancel),
            Self::RollBack => Some(Request::RollBack),
        }
    }
}

/// A fault at a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub journey: Journey,
    pub call: &'static str,
    pub when: When,
    pub fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { journey, call, when, fault } = self;
        write!(f, "{journey:?} {call} {when:?} {fault:?}")
    }
}

/// All cells. Before a call every fault; within it all that can hit it half done; after it, where only its outcome is not
/// recorded yet, what befalls the controller. A rollback has the calls of a move again, with source and target exchanged:
/// before each of them every fault, within them what befalls the controller.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (n, call) in CALLS.into_iter().enumerate() {
        cells.extend(whole(Journey::Move, call, n));
    }
    cells.extend(whole(Journey::Finish, "finish", 0));
    cells.extend(whole(Journey::Undo, "undo", 1));
    for (n, call) in CALLS_BACK.into_iter().enumerate() {
        cells.extend(of(Journey::RollBack, call, When::Before, &before(n)));
        cells.extend(of(Journey::RollBack, call, When::Within, &[F::ControllerIsKilled, F::ControllerIsStopped]));
    }
    cells.extend(of(Journey::Release, "unfence", When::Before, &before(0)));
    cells
}

fn whole(journey: Journey, call: &'static str, n: usize) -> Vec<Cell> {
    let mut cells = of(journey, call, When::Before, &before(n));
    cells.extend(of(journey, call, When::Within, &within(n)));
    let after = [F::ControllerIsKilled, F::ControllerIsStopped, F::ControllerIsReplaced];
    cells.extend(of(journey, call, When::After, &after));
    cells
}

fn of(journey: Journey, call: &'static str, when: When, faults: &[Fault]) -> Vec<Cell> {
    faults.iter().map(|fault| Cell { journey, call, when, fault: *fault }).collect()
}

/// Every fault; those that could hit either end hit one before the `n`th call, and the other within it.
fn before(n: usize) -> Vec<Fault> {
    let (end, full) =
        if n.is_multiple_of(2) { (End::Source, F::DiskIsFull) } else { (End::Target, F::DiskIsFullForItsLog) };
    let mut faults = vec![F::ControllerIsReplaced];
    faults.extend(except_replaced(end, full));
    faults
}

fn within(n: usize) -> [Fault; 8] {
    let (end, full) =
        if n.is_multiple_of(2) { (End::Target, F::DiskIsFullForItsLog) } else { (End::Source, F::DiskIsFull) };
    except_replaced(end, full)
}

fn except_replaced(end: End, full: Fault) -> [Fault; 8] {
    [
        F::ControllerIsKilled,
        F::ControllerIsStopped,
        F::ServerIsKilled(End::Source),
        F::ServerIsKilled(End::Target),
        F::PoolerIsKilled,
        F::LinkIsCut(end),
        F::LinkHangs(end.other()),
        full,
    ]
}
