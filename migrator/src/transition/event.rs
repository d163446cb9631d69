//! What happens to a migration, and what is to be done about it.

use foreshard_domain::{Epoch, NodeId, RealTime, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Position, Proof, Verification, Way};

/// Something that happened: the outcome of an action, or a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The checks before the move found nothing; the rows of its external objects are committed with this event.
    Admitted {
        /// How many fences may be tried after the first.
        fences_left: u32,
    },
    /// The target's place exists and changes are captured.
    Prepared,
    /// A piece has been copied.
    Copied {
        /// From where to go on; `None` when the copy is complete.
        next: Option<String>,
    },
    /// The engine cannot go on from the cursor and must begin again.
    CopyLost,
    /// The target is still too far behind.
    Behind,
    /// The target is near enough for the comparison.
    CaughtUp,
    /// Source and target have been compared, or a piece of them.
    Verified {
        /// What has been found so far; all of it if it has no `next`.
        verification: Verification,
    },
    /// The way back works.
    WayBackTried,
    /// The target is near enough for a short fence.
    Near {
        /// When the fence is to expire by itself.
        deadline: RealTime,
    },
    /// Writes have stopped.
    Fenced {
        /// Where.
        fence_at: Position,
    },
    /// The target has been brought up to the fence and compared.
    Proved {
        /// What was found.
        proof: Proof,
    },
    /// The fence expired or was lifted before the seal; the engine has confirmed that the source is not sealed.
    FenceLost {
        /// What happened.
        why: String,
    },
    /// The source is closed for good.
    SourceSealed,
    /// The source was found closed for good by an earlier seal of this migration whose answer was lost.
    SealFound {
        /// What entitled to that seal (M4).
        proof: Proof,
    },
    /// Owner and epoch have changed in the state store.
    OwnerSwitched {
        /// The new epoch.
        epoch: Epoch,
    },
    /// The new owner accepts writes.
    TargetOpened,
    /// Clients have been sent to the new owner.
    Routed {
        /// Until when the old copy is kept, model time.
        until: Timestamp,
    },
    /// Changes of the new owner are carried back to the old one.
    WayBackOpened,
    /// Something broke before the seal.
    Broke {
        /// What.
        why: String,
    },
    /// Everything that was made has been removed.
    Undone,
    /// The fence of a rollback that was given up is lifted.
    Released,
    /// The old copy has been removed.
    Finished,
    /// Request: stand still.
    Pause,
    /// Request: go on.
    Resume,
    /// Request: give up the owner change under way.
    Cancel,
    /// Request: take the move back.
    RollBack {
        /// How many fences may be tried after the first.
        fences_left: u32,
    },
    /// Request: end without the node that does not own the shard, which is gone for good.
    NodeLost {
        /// Which.
        node: NodeId,
    },
    /// The way back was closed, since it kept back too much on the owner.
    WayBackClosed {
        /// What it kept back.
        why: String,
    },
    /// Request: remove the old copy.
    Finish {
        /// Present model time; the retention must be over (M5).
        now: Timestamp,
    },
}

impl Event {
    /// Its name in files and output.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Admitted { .. } => "admitted",
            Self::Prepared => "prepared",
            Self::Copied { .. } => "copied",
            Self::CopyLost => "copy_lost",
            Self::Behind => "behind",
            Self::CaughtUp => "caught_up",
            Self::Verified { .. } => "verified",
            Self::WayBackTried => "way_back_tried",
            Self::Near { .. } => "near",
            Self::Fenced { .. } => "fenced",
            Self::Proved { .. } => "proved",
            Self::FenceLost { .. } => "fence_lost",
            Self::SourceSealed => "source_sealed",
            Self::SealFound { .. } => "seal_found",
            Self::OwnerSwitched { .. } => "owner_switched",
            Self::TargetOpened => "target_opened",
            Self::Routed { .. } => "routed",
            Self::WayBackOpened => "way_back_opened",
            Self::Broke { .. } => "broke",
            Self::Undone => "undone",
            Self::Released => "released",
            Self::Finished => "finished",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::RollBack { .. } => "roll_back",
            Self::NodeLost { .. } => "node_lost",
            Self::WayBackClosed { .. } => "way_back_closed",
            Self::Finish { .. } => "finish",
        }
    }

    /// What it says beyond its name, if a person would want to know.
    pub fn note(&self) -> Option<String> {
        match self {
            Self::FenceLost { why } | Self::Broke { why } | Self::WayBackClosed { why } => Some(why.clone()),
            Self::NodeLost { node } => Some(format!("node {node} was given up as gone for good")),
            Self::Verified { verification } => differences(verification),
            Self::Proved { proof } => differences(&proof.verification),
            _ => None,
        }
    }
}

/// Names of the first ranges that differ, and how many there are.
pub(super) fn differences(verification: &Verification) -> Option<String> {
    /// Enough to find the fault, short enough for a line of a table.
    const SHOWN: usize = 3;
    let differing = &verification.differing;
    if differing.is_empty() {
        return None;
    }
    let named: Vec<&str> = differing.iter().take(SHOWN).map(String::as_str).collect();
    Some(format!("source and target differ in {} ranges, first: {}", differing.len(), named.join(", ")))
}

/// What a driver is to do; each is idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Check without changing anything.
    Preflight,
    /// Make the target's place and start capturing changes.
    Prepare,
    /// Copy the next piece.
    Copy {
        /// From where; `None` at the beginning.
        cursor: Option<String>,
    },
    /// Apply captured changes before the comparison.
    CatchUp {
        /// There or back.
        way: Way,
    },
    /// Compare source and target.
    Verify {
        /// There or back.
        way: Way,
        /// What has been found so far; `None` at the beginning.
        so_far: Option<Verification>,
    },
    /// Try the way back (M8).
    TryWayBack,
    /// Apply captured changes until the fence would be short.
    CloseIn {
        /// There or back.
        way: Way,
    },
    /// Stop writes.
    Fence {
        /// There or back.
        way: Way,
        /// When the fence expires by itself.
        deadline: RealTime,
    },
    /// Bring the target up to the fence and compare what changed.
    Prove {
        /// There or back.
        way: Way,
        /// Where writes stopped.
        fence_at: Position,
        /// What was compared before.
        verified: Verification,
        /// When the fence expires by itself.
        deadline: RealTime,
    },
    /// Close the source for good.
    Seal {
        /// There or back.
        way: Way,
        /// What entitles to it (M4).
        proof: Proof,
    },
    /// Change owner and epoch in the state store by compare-and-set.
    SwitchOwner {
        /// There or back.
        way: Way,
    },
    /// Let the new owner accept writes.
    OpenTarget {
        /// There or back.
        way: Way,
        /// The new epoch.
        epoch: Epoch,
    },
    /// Send clients to the new owner.
    Route {
        /// There or back.
        way: Way,
        /// The new epoch.
        epoch: Epoch,
    },
    /// Begin to carry changes of the new owner back to the old one.
    OpenWayBack,
    /// Let the source accept writes again.
    LiftFence {
        /// There or back.
        way: Way,
    },
    /// Remove everything that was made.
    Undo,
    /// Remove the old copy.
    Finish {
        /// After the move there, or after the rollback.
        way: Way,
    },
}
