//! The states of a migration and what each of them means.

use foreshard_domain::{Epoch, RealTime, Timestamp};
use serde::{Deserialize, Serialize};

use super::Action;
use crate::{Position, Proof, Verification, Way};

/// One of the two owner changes of a migration, while it can still be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "way")]
pub enum Leg {
    /// To the planned target.
    There {
        /// How many more fences may be tried after the present one.
        fences_left: u32,
    },
    /// Rollback to the planned source.
    Back {
        /// How many more fences may be tried after the present one.
        fences_left: u32,
        /// End of the retention, to which the migration returns if the rollback is given up.
        until: Timestamp,
    },
}

impl Leg {
    /// There or back.
    pub const fn way(self) -> Way {
        match self {
            Leg::There { .. } => Way::There,
            Leg::Back { .. } => Way::Back,
        }
    }

    /// The leg with one try spent, or `None` if none was left.
    pub(super) fn spend_fence(self) -> Option<Self> {
        match self {
            Leg::There { fences_left } => Some(Leg::There { fences_left: fences_left.checked_sub(1)? }),
            Leg::Back { fences_left, until } => Some(Leg::Back { fences_left: fences_left.checked_sub(1)?, until }),
        }
    }
}

/// How a migration that is being undone will end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ending")]
pub enum Ending {
    /// Somebody asked for it.
    Cancelled,
    /// Something broke.
    Failed {
        /// What.
        why: String,
    },
}

/// Where a migration stands; durable before the action that it implies is begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum MigrationState {
    /// Recorded; nothing exists outside the state store.
    Planned,
    /// The rows of the external objects are committed; the objects are being made.
    Preparing {
        /// How many more fences may be tried after the first.
        fences_left: u32,
    },
    /// The snapshot is being copied.
    Copying {
        /// How many more fences may be tried after the first.
        fences_left: u32,
        /// From where to go on; `None` at the beginning.
        cursor: Option<String>,
    },
    /// Changes since the snapshot are being applied.
    CatchingUp {
        /// There or back.
        leg: Leg,
    },
    /// Source and target are being compared while writes go on.
    Verifying {
        /// There or back.
        leg: Leg,
        /// What has been found so far, with the cursor from which to go on; `None` at the beginning.
        #[serde(default)]
        so_far: Option<Verification>,
    },
    /// The way back is being tried (M8).
    TryingWayBack {
        /// How many more fences may be tried after the first.
        fences_left: u32,
        /// What the comparison found: no difference.
        verified: Verification,
    },
    /// Changes since the comparison are being applied until the fence would be short.
    Nearing {
        /// There or back.
        leg: Leg,
        /// What the comparison found: no difference.
        verified: Verification,
    },
    /// Writes are being stopped; whether they are is not known.
    Fencing {
        /// There or back.
        leg: Leg,
        /// What the comparison found: no difference.
        verified: Verification,
        /// When the fence expires by itself (M7).
        deadline: RealTime,
    },
    /// Writes wait; the target is being brought up to the fence and compared.
    Proving {
        /// There or back.
        leg: Leg,
        /// What the comparison before the fence found: no difference.
        verified: Verification,
        /// Where writes stopped.
        fence_at: Position,
        /// When the fence expires by itself (M7).
        deadline: RealTime,
    },
    /// The source is being sealed; whether it is, only the engine knows.
    Sealing {
        /// There or back.
        leg: Leg,
        /// Proof that the target has everything (M4).
        proof: Proof,
        /// When the fence expires by itself (M7).
        deadline: RealTime,
    },
    /// Past the point of no return: the source is closed for good, the owner is to be changed.
    Sealed {
        /// There or back.
        way: Way,
    },
    /// The owner has changed; its node is being opened.
    Opening {
        /// There or back.
        way: Way,
        /// The new epoch.
        epoch: Epoch,
    },
    /// The new owner is open; clients are being sent to it.
    Routing {
        /// There or back.
        way: Way,
        /// The new epoch.
        epoch: Epoch,
    },
    /// The target serves; what is written there begins to be carried back to the source.
    OpeningWayBack {
        /// End of the retention, model time.
        until: Timestamp,
    },
    /// The target serves; the source's data is kept (M5) and the move can be taken back.
    Reversible {
        /// End of the retention, model time.
        until: Timestamp,
    },
    /// A rollback has been given up; its fence is being lifted.
    Releasing {
        /// End of the retention, model time.
        until: Timestamp,
        /// Why it was given up.
        why: String,
    },
    /// The copy on the node that is no longer owner is being removed.
    Finishing {
        /// After the move there, or after the rollback.
        way: Way,
    },
    /// Given up before the seal; everything that was made is being removed.
    Undoing {
        /// What it will end as.
        ending: Ending,
    },
    /// Stands still by request.
    Paused {
        /// Where it will go on.
        at: Box<MigrationState>,
    },
    /// Ended: the target owns the shard, nothing is left on the source.
    Done,
    /// Ended before the seal by request; nothing is left behind.
    Cancelled,
    /// Ended before the seal because something broke; nothing is left behind.
    Failed {
        /// What broke.
        why: String,
    },
    /// Ended: the source owns the shard again, nothing is left on the target.
    RolledBack,
}

/// Which owner change has been committed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tenure {
    /// The planned source owns the shard, in the epoch in which the migration found it.
    First,
    /// The planned target owns it, one epoch later.
    Second,
    /// The planned source owns it again, two epochs later.
    Third,
}

impl Tenure {
    const fn before(way: Way) -> Self {
        match way {
            Way::There => Tenure::First,
            Way::Back => Tenure::Second,
        }
    }

    const fn after(way: Way) -> Self {
        match way {
            Way::There => Tenure::Second,
            Way::Back => Tenure::Third,
        }
    }
}

impl MigrationState {
    /// Its name in files and output.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Preparing { .. } => "preparing",
            Self::Copying { .. } => "copying",
            Self::CatchingUp { .. } => "catching_up",
            Self::Verifying { .. } => "verifying",
            Self::TryingWayBack { .. } => "trying_way_back",
            Self::Nearing { .. } => "nearing",
            Self::Fencing { .. } => "fencing",
            Self::Proving { .. } => "proving",
            Self::Sealing { .. } => "sealing",
            Self::Sealed { .. } => "sealed",
            Self::Opening { .. } => "opening",
            Self::Routing { .. } => "routing",
            Self::OpeningWayBack { .. } => "opening_way_back",
            Self::Reversible { .. } => "reversible",
            Self::Releasing { .. } => "releasing",
            Self::Finishing { .. } => "finishing",
            Self::Undoing { .. } => "undoing",
            Self::Paused { .. } => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed { .. } => "failed",
            Self::RolledBack => "rolled_back",
        }
    }

    /// What is to be done in this state, in order; nothing if it waits for a person or for time, or has ended.
    pub fn actions(&self) -> Vec<Action> {
        match self {
            Self::Planned => vec![Action::Preflight],
            Self::Preparing { .. } => vec![Action::Prepare],
            Self::Copying { cursor, .. } => vec![Action::Copy { cursor: cursor.clone() }],
            Self::CatchingUp { leg } => vec![Action::CatchUp { way: leg.way() }],
            Self::Verifying { leg, so_far } => vec![Action::Verify { way: leg.way(), so_far: so_far.clone() }],
            Self::TryingWayBack { .. } => vec![Action::TryWayBack],
            Self::Nearing { leg, .. } => vec![Action::CloseIn { way: leg.way() }],
            Self::Fencing { leg, deadline, .. } => vec![Action::Fence { way: leg.way(), deadline: *deadline }],
            Self::Proving { leg, verified, fence_at, deadline } => vec![Action::Prove {
                way: leg.way(),
                fence_at: *fence_at,
                verified: verified.clone(),
                deadline: *deadline,
            }],
            Self::Sealing { leg, proof, .. } => vec![Action::Seal { way: leg.way(), proof: proof.clone() }],
            Self::Sealed { way } => vec![Action::SwitchOwner { way: *way }],
            Self::Opening { way, epoch } => vec![Action::OpenTarget { way: *way, epoch: *epoch }],
            Self::Routing { way, epoch } => vec![Action::Route { way: *way, epoch: *epoch }],
            Self::OpeningWayBack { .. } => vec![Action::OpenWayBack],
            Self::Releasing { .. } => vec![Action::LiftFence { way: Way::Back }],
            Self::Finishing { way } => vec![Action::Finish { way: *way }],
            Self::Undoing { .. } => vec![Action::LiftFence { way: Way::There }, Action::Undo],
            Self::Reversible { .. }
            | Self::Paused { .. }
            | Self::Done
            | Self::Cancelled
            | Self::Failed { .. }
            | Self::RolledBack => Vec::new(),
        }
    }

    /// Whether nothing will ever happen to it again.
    pub const fn is_terminal(&self) -> bool {
        match self {
            Self::Done | Self::Cancelled | Self::Failed { .. } | Self::RolledBack => true,
            Self::Planned
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::CatchingUp { .. }
            | Self::Verifying { .. }
            | Self::TryingWayBack { .. }
            | Self::Nearing { .. }
            | Self::Fencing { .. }
            | Self::Proving { .. }
            | Self::Sealing { .. }
            | Self::Sealed { .. }
            | Self::Opening { .. }
            | Self::Routing { .. }
            | Self::OpeningWayBack { .. }
            | Self::Reversible { .. }
            | Self::Releasing { .. }
            | Self::Finishing { .. }
            | Self::Undoing { .. }
            | Self::Paused { .. } => false,
        }
    }

    /// Whether a driver has nothing to do: ended, paused, or waiting for the end of the retention.
    pub fn is_at_rest(&self) -> bool {
        self.actions().is_empty()
    }

    /// Whether the owner change under way can no longer be given up, so that any controller must finish it (M7).
    pub const fn must_go_forward(&self) -> bool {
        match self {
            Self::Sealed { .. }
            | Self::Opening { .. }
            | Self::Routing { .. }
            | Self::OpeningWayBack { .. }
            | Self::Finishing { .. } => true,
            Self::Planned
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::CatchingUp { .. }
            | Self::Verifying { .. }
            | Self::TryingWayBack { .. }
            | Self::Nearing { .. }
            | Self::Fencing { .. }
            | Self::Proving { .. }
            | Self::Sealing { .. }
            | Self::Reversible { .. }
            | Self::Releasing { .. }
            | Self::Undoing { .. }
            | Self::Paused { .. }
            | Self::Done
            | Self::Cancelled
            | Self::Failed { .. }
            | Self::RolledBack => false,
        }
    }

    /// Whether it may be paused: only before the fence, where standing still costs nobody anything.
    pub const fn may_pause(&self) -> bool {
        match self {
            Self::Planned
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::CatchingUp { .. }
            | Self::Verifying { .. }
            | Self::TryingWayBack { .. }
            | Self::Nearing { .. } => true,
            Self::Fencing { .. }
            | Self::Proving { .. }
            | Self::Sealing { .. }
            | Self::Sealed { .. }
            | Self::Opening { .. }
            | Self::Routing { .. }
            | Self::OpeningWayBack { .. }
            | Self::Reversible { .. }
            | Self::Releasing { .. }
            | Self::Finishing { .. }
            | Self::Undoing { .. }
            | Self::Paused { .. }
            | Self::Done
            | Self::Cancelled
            | Self::Failed { .. }
            | Self::RolledBack => false,
        }
    }

    /// Whether external objects of this migration may exist, so that their rows must (M6).
    pub fn may_have_objects(&self) -> bool {
        match self {
            Self::Paused { at } => at.may_have_objects(),
            Self::Planned | Self::Done | Self::Cancelled | Self::Failed { .. } | Self::RolledBack => false,
            Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::CatchingUp { .. }
            | Self::Verifying { .. }
            | Self::TryingWayBack { .. }
            | Self::Nearing { .. }
            | Self::Fencing { .. }
            | Self::Proving { .. }
            | Self::Sealing { .. }
            | Self::Sealed { .. }
            | Self::Opening { .. }
            | Self::Routing { .. }
            | Self::OpeningWayBack { .. }
            | Self::Reversible { .. }
            | Self::Releasing { .. }
            | Self::Finishing { .. }
            | Self::Undoing { .. } => true,
        }
    }

    /// The fence that stops writes in this state, with its deadline while it can still expire.
    pub(crate) const fn fence(&self) -> Option<(Way, Option<RealTime>)> {
        match self {
            Self::Fencing { leg, deadline, .. }
            | Self::Proving { leg, deadline, .. }
            | Self::Sealing { leg, deadline, .. } => Some((leg.way(), Some(*deadline))),
            Self::Sealed { way } | Self::Opening { way, .. } | Self::Routing { way, .. } => Some((*way, None)),
            Self::Planned
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::CatchingUp { .. }
            | Self::Verifying { .. }
            | Self::TryingWayBack { .. }
            | Self::Nearing { .. }
            | Self::OpeningWayBack { .. }
            | Self::Reversible { .. }
            | Self::Releasing { .. }
            | Self::Finishing { .. }
            | Self::Undoing { .. }
            | Self::Paused { .. }
            | Self::Done
            | Self::Cancelled
            | Self::Failed { .. }
            | Self::RolledBack => None,
        }
    }

    /// Until when the old copy is kept for the way back, model time, once that is known.
    pub(crate) fn kept_until(&self) -> Option<Timestamp> {
        match self {
            Self::OpeningWayBack { until } | Self::Reversible { until } | Self::Releasing { until, .. } => Some(*until),
            Self::CatchingUp { leg }
            | Self::Verifying { leg, .. }
            | Self::Nearing { leg, .. }
            | Self::Fencing { leg, .. }
            | Self::Proving { leg, .. }
            | Self::Sealing { leg, .. } => match leg {
                Leg::There { .. } => None,
                Leg::Back { until, .. } => Some(*until),
            },
            Self::Paused { at } => at.kept_until(),
            Self::Planned
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::TryingWayBack { .. }
            | Self::Sealed { .. }
            | Self::Opening { .. }
            | Self::Routing { .. }
            | Self::Finishing { .. }
            | Self::Undoing { .. }
            | Self::Done
            | Self::Cancelled
            | Self::Failed { .. }
            | Self::RolledBack => None,
        }
    }

    /// Who owns the shard in this state.
    pub(crate) fn tenure(&self) -> Tenure {
        match self {
            Self::Planned
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::TryingWayBack { .. }
            | Self::Undoing { .. }
            | Self::Cancelled
            | Self::Failed { .. } => Tenure::First,
            Self::CatchingUp { leg }
            | Self::Verifying { leg, .. }
            | Self::Nearing { leg, .. }
            | Self::Fencing { leg, .. }
            | Self::Proving { leg, .. }
            | Self::Sealing { leg, .. } => Tenure::before(leg.way()),
            Self::Sealed { way } => Tenure::before(*way),
            Self::Opening { way, .. } | Self::Routing { way, .. } | Self::Finishing { way } => Tenure::after(*way),
            Self::OpeningWayBack { .. } | Self::Reversible { .. } | Self::Releasing { .. } | Self::Done => {
                Tenure::Second
            }
            Self::RolledBack => Tenure::Third,
            Self::Paused { at } => at.tenure(),
        }
    }
}
