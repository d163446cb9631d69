//! Memory and compute for scenario sets, bounded over all calls together.
//!
//! A set is by far the largest thing that a call can ask for: it exists as a whole from when it is computed until the last
//! chunk has left. So each call takes its share of one budget before it queues and gives it back when its set is gone,
//! whether it was sent, given up, or never computed. A budget that is used up refuses at once (S1).

use foreshard_domain::ShardId;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::status;
use crate::context::SeriesKey;
use crate::engine::MAX_SCENARIO_VALUES;

/// Values in one MiB. A smaller set takes a whole one, which bounds how many calls there are.
const VALUES_PER_MIB: usize = 1024 * 1024 / size_of::<f32>();

/// How large a set will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetSize {
    pub(super) shards: usize,
    pub(super) resources: usize,
    pub(super) steps: usize,
    pub(super) scenarios: usize,
}

impl SetSize {
    /// The size of the set for `keys`.
    pub(super) fn new(keys: &[SeriesKey], steps: usize, scenarios: usize) -> Self {
        let shards: BTreeSet<&ShardId> = keys.iter().map(|(shard, _)| shard).collect();
        let metrics: BTreeSet<_> = keys.iter().map(|(_, metric)| *metric).collect();
        Self { shards: shards.len(), resources: metrics.len(), steps, scenarios }
    }

    fn values(self) -> Option<usize> {
        let sizes = [self.shards, self.resources, self.steps, self.scenarios];
        sizes.iter().try_fold(1usize, |a, b| a.checked_mul(*b))
    }
}

/// The budget of all scenario sets.
#[derive(Clone)]
pub(crate) struct ScenarioBudget {
    free: Arc<Semaphore>,
    whole_mib: usize,
}

impl ScenarioBudget {
    /// A budget of so many MiB.
    pub(crate) fn new(mib: u32) -> Self {
        let whole_mib = usize::try_from(mib).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(whole_mib)), whole_mib }
    }

    /// The share of a set; whoever holds it may have the set in memory. Refuses a set that would never fit as invalid, and
    /// one that does not fit beside the others now as exhausted.
    pub(super) fn take(&self, size: SetSize) -> Result<OwnedSemaphorePermit, Status> {
        let most = MAX_SCENARIO_VALUES.min(self.whole_mib.saturating_mul(VALUES_PER_MIB));
        let Some(values) = size.values().filter(|values| *values <= most) else {
            return Err(too_large(size, most));
        };
        let mib = u32::try_from(values.div_ceil(VALUES_PER_MIB).max(1)).unwrap_or(u32::MAX);
        let share = Arc::clone(&self.free).try_acquire_many_owned(mib);
        share.map_err(|_| {
            let used = self.whole_mib.saturating_sub(self.free.available_permits());
            status::exhausted_a_while(format!(
                "scenario sets of {used} MiB are being made and sent already, and {mib} MiB more are over the limit of {} \
                 MiB; come again, or ask for fewer scenarios or shards",
                self.whole_mib
            ))
        })
    }
}

fn too_large(size: SetSize, most: usize) -> Status {
    let SetSize { shards, resources, steps, scenarios } = size;
    let what = format!(
        "{scenarios} scenarios of {shards} shards, {resources} resources and {steps} steps are more than the {most} values \
         that fit; ask for fewer scenarios or shards"
    );
    status::invalid("scenarios", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn size(scenarios: usize) -> SetSize {
        SetSize { shards: 1, resources: 1, steps: 64, scenarios }
    }

    #[test]
    fn s1_shares_are_counted_in_whole_mib_and_given_back() {
        let budget = ScenarioBudget::new(3);
        let small = budget.take(size(1)).unwrap();
        // 64 steps of 4096 scenarios are one MiB.
        let larger = budget.take(size(4097)).unwrap();
        assert_eq!(budget.free.available_permits(), 0);
        let refused = budget.take(size(1)).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("3 MiB are being made"), "{}", refused.message());
        drop(larger);
        drop(small);
        assert!(budget.take(size(3 * 4096)).is_ok(), "all of it");
    }

    #[test]
    fn a_set_that_never_fits_is_invalid_and_takes_nothing() {
        let budget = ScenarioBudget::new(3);
        for scenarios in [3 * 4096 + 1, usize::MAX] {
            assert_eq!(budget.take(size(scenarios)).unwrap_err().code(), Code::InvalidArgument);
        }
        let budget = ScenarioBudget::new(u32::MAX);
        assert_eq!(budget.take(size(MAX_SCENARIO_VALUES / 64 + 1)).unwrap_err().code(), Code::InvalidArgument);
        assert!(budget.take(size(MAX_SCENARIO_VALUES / 64)).is_ok());
    }
}
