//! When a fence ends for a node that does not trust the wall clock alone.
//!
//! The stored deadline is wall-clock time, because it must mean something after a restart. Whoever sets the clock back would
//! let the fence last longer with nobody there to lift it (M7), so the node also counts on its monotonic clock: a fence is over
//! when either says so. After a restart the monotonic count is lost and begins anew with the node, at most as long as the fence
//! was to last altogether.

use foreshard_domain::{Clock, RealTime};
use std::time::Duration;

use super::shard::{ShardMeta, ShardState};
use crate::Position;

/// The end of one fence on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FenceEnd {
    /// Which fence, by what was stored of it.
    deadline: RealTime,
    at: Position,
    ends: Duration,
}

impl FenceEnd {
    /// For a fence that begins now.
    pub fn begin(meta: &ShardMeta, clock: &dyn Clock) -> Option<Self> {
        let ShardState::Fenced { deadline, at, .. } = &meta.state else { return None };
        let ends = clock.monotonic().saturating_add(deadline.since(clock.real()));
        Some(Self { deadline: *deadline, at: *at, ends })
    }

    /// For a fence that was found in the store of a node which started at `started` on its monotonic clock.
    pub fn found(meta: &ShardMeta, clock: &dyn Clock, started: Duration) -> Option<Self> {
        let ShardState::Fenced { lasts_ms, .. } = &meta.state else { return None };
        let by_the_deadline = Self::begin(meta, clock)?;
        let longest = lasts_ms.map_or(by_the_deadline.ends, |ms| started.saturating_add(Duration::from_millis(ms)));
        Some(Self { ends: by_the_deadline.ends.min(longest), ..by_the_deadline })
    }

    /// Whether it is of this fence.
    pub fn is_of(&self, meta: &ShardMeta) -> bool {
        matches!(&meta.state, ShardState::Fenced { deadline, at, .. } if (*deadline, *at) == (self.deadline, self.at))
    }

    /// The wall-clock time by which decisions about the fence are made: past its deadline as soon as either clock says so.
    pub fn now(&self, clock: &dyn Clock) -> RealTime {
        let real = clock.real();
        if clock.monotonic() >= self.ends { real.max(self.deadline) } else { real }
    }

    /// The wall-clock time at which it will be over if nobody sets the clock, for whoever waits for that.
    pub fn expected(&self, clock: &dyn Clock) -> RealTime {
        clock.real().plus(self.ends.saturating_sub(clock.monotonic())).min(self.deadline)
    }
}
