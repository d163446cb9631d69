//! Where the scenarios of a simulated policy come from.

use foreshard_domain::{ScenarioError, ScenarioSet};

use super::{Seen, SimLoads};

/// Why a source has no scenarios.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Makes scenarios from completed steps.
pub trait ScenarioSource {
    /// Scenarios of the steps from [`Seen::now`] on, issued at [`Seen::issued_at`], for all shards.
    ///
    /// # Errors
    /// Whatever keeps the source from answering; it ends the simulation.
    fn scenarios(&mut self, seen: &Seen<'_>) -> Result<ScenarioSet, SourceError>;
}

/// One scenario from a function of resource, shard and steps ahead (0 is the step that comes next).
fn single(
    seen: &Seen<'_>,
    horizon: usize,
    value: impl Fn(usize, usize, usize) -> f32,
) -> Result<ScenarioSet, ScenarioError> {
    let mut values = Vec::with_capacity(seen.resources().len() * seen.shards().len() * horizon);
    for resource in 0..seen.resources().len() {
        for shard in 0..seen.shards().len() {
            values.extend((0..horizon).map(|ahead| value(resource, shard, ahead)));
        }
    }
    let (resources, shards) = (seen.resources().to_vec(), seen.shards().to_vec());
    ScenarioSet::new(seen.issued_at(), seen.step(), resources, shards, (horizon, 1), values)
}

/// Every load stays as last observed.
#[derive(Debug, Clone, Copy)]
pub struct LastObserved {
    /// Steps ahead.
    pub horizon: usize,
}

impl ScenarioSource for LastObserved {
    fn scenarios(&mut self, seen: &Seen<'_>) -> Result<ScenarioSet, SourceError> {
        let last = |r, s, _| seen.lane(r, s).last().copied().unwrap_or(0.0);
        Ok(single(seen, self.horizon, last)?)
    }
}

/// Yesterday repeats; where there was none, the load stays as last observed.
#[derive(Debug, Clone, Copy)]
pub struct Yesterday {
    /// Steps ahead.
    pub horizon: usize,
}

impl ScenarioSource for Yesterday {
    fn scenarios(&mut self, seen: &Seen<'_>) -> Result<ScenarioSet, SourceError> {
        let day = usize::try_from(seen.step().count_in(86_400_000)).unwrap_or(0).max(1);
        let yesterday = |r, s, ahead: usize| {
            let lane = seen.lane(r, s);
            // Further ahead than a day, the last day that is known repeats again.
            let index = (seen.steps() + ahead % day).checked_sub(day);
            index.and_then(|i| lane.get(i)).or_else(|| lane.last()).copied().unwrap_or(0.0)
        };
        Ok(single(seen, self.horizon, yesterday)?)
    }
}

/// What really comes: the bound of what any forecast can bring. Behind the end of the history the last value stays.
#[derive(Debug, Clone)]
pub struct TrueFuture {
    loads: SimLoads,
    horizon: usize,
}

impl TrueFuture {
    /// Knows the loads to come.
    pub fn new(loads: SimLoads, horizon: usize) -> Self {
        Self { loads, horizon }
    }
}

impl ScenarioSource for TrueFuture {
    fn scenarios(&mut self, seen: &Seen<'_>) -> Result<ScenarioSet, SourceError> {
        let last = self.loads.steps().saturating_sub(1);
        let future = |r, s, ahead: usize| self.loads.at(r, s, (seen.steps() + ahead).min(last));
        Ok(single(seen, self.horizon, future)?)
    }
}
