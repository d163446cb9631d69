//! What the events of the past did, read from the series that they lie in.

use std::collections::BTreeSet;

use foreshard_datasets::LoadEvent;
use foreshard_domain::{Metric, ShardId, Timestamp};

use super::{BINS, LEAST, MOST, is_near, middle, position, steps_of};
use crate::Context;
use crate::forecaster::as_steps;

/// Days from which the load without the event is read, those of the same weekday first; the first so many that are known.
const USUAL_DAYS: [i64; 8] = [-7, 7, -14, 14, -1, 1, -2, 2];
const USUAL: usize = 4;
/// The share of a series' mean load below which a factor of it means nothing.
const IDLE: f32 = 0.05;

/// A series from which effects are learned.
#[derive(Debug, Clone, Copy)]
pub struct EventSource<'a> {
    /// The series; its last value is the last that may be learned from.
    pub context: Context<'a>,
    /// Steps of a day.
    pub season: usize,
}

/// What one event did in one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Occurrence {
    pub(super) name: String,
    pub(super) metric: Metric,
    pub(super) shard: ShardId,
    /// Mean log factor by stretch, where no event of another name was near; `NaN` where nothing was known.
    pub(super) factors: [f32; BINS],
    /// The same where others were near, divided evenly among them all.
    pub(super) shared: [f32; BINS],
}

impl Occurrence {
    /// Whether it was alone in a stretch of it.
    pub(super) fn was_alone(&self, bin: usize) -> bool {
        self.factors.get(bin).is_some_and(|factor| factor.is_finite())
    }

    /// Takes its part of what came with others in a stretch for what it does.
    pub(super) fn guess(&mut self, bin: usize) {
        if let (Some(factor), Some(shared)) = (self.factors.get_mut(bin), self.shared.get(bin)) {
            *factor = *shared;
        }
    }
}

impl<'a> EventSource<'a> {
    /// What the events that lie in the series did.
    pub fn occurrences(&self) -> Vec<Occurrence> {
        let one = |event: &LoadEvent| {
            let (name, metric, shard) = (event.name.clone(), self.context.metric, self.context.shard.clone());
            let [factors, shared] = self.factors(event)?;
            Some(Occurrence { name, metric, shard, factors, shared })
        };
        self.events().filter_map(one).collect()
    }

    fn events(&self) -> impl Iterator<Item = &'a LoadEvent> + use<'a> {
        let shard = self.context.shard;
        self.context.events.into_iter().flat_map(move |events| events.of(shard))
    }

    /// Mean log factor of an event in this series, by stretch: where it is alone, and where others are near. `None` where
    /// nothing of it is known.
    fn factors(&self, event: &LoadEvent) -> Option<[[f32; BINS]; 2]> {
        let Context { start, step, values, .. } = self.context;
        let span = steps_of(event, start, step, values.len());
        if span.is_empty() {
            return None;
        }
        let known = values.iter().filter(|v| v.is_finite());
        let (n, total) = known.fold((0.0f64, 0.0f64), |(n, total), v| (n + 1.0, total + f64::from(v.abs())));
        let idle = IDLE * (total / n.max(1.0)) as f32;
        let mut sums = [[(0.0f32, 0.0f32); BINS]; 2];
        for i in span {
            let measured = values.get(i).copied().unwrap_or(f32::NAN);
            let Some(usual) = self.usual(i).filter(|usual| *usual > idle) else { continue };
            if !measured.is_finite() {
                continue;
            }
            let moment = middle(start, i, step);
            let others = self.others_at(event, moment);
            let factor = (measured.max(0.1 * idle) / usual).ln().clamp(LEAST, MOST) / (1.0 + others as f32);
            // Not negative: the moment lies within the span.
            let bin = position(event, moment) as usize;
            let kind = sums.get_mut(usize::from(others > 0));
            if let Some((n, total)) = kind.and_then(|sums| sums.get_mut(bin)) {
                *n += 1.0;
                *total += factor;
            }
        }
        let factors = sums.map(|sums| sums.map(|(n, total)| if n > 0.0 { total / n } else { f32::NAN }));
        factors.iter().flatten().any(|f| f.is_finite()).then_some(factors)
    }

    /// How many other names have an event at or near a moment.
    fn others_at(&self, event: &LoadEvent, moment: Timestamp) -> usize {
        let others = self.events().filter(|other| other.name != event.name && is_near(other, moment));
        others.map(|other| other.name.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// The load at the same time on days near by that have no event there.
    fn usual(&self, i: usize) -> Option<f32> {
        let Context { start, step, values, .. } = self.context;
        let season = as_steps(self.season);
        let quiet = |place: &usize| {
            let moment = middle(start, *place, step);
            !self.events().any(|event| is_near(event, moment))
        };
        let days = USUAL_DAYS.iter().filter_map(|day| usize::try_from(as_steps(i) + day * season).ok());
        let known = days.filter(quiet).filter_map(|place| values.get(place).copied()).filter(|v| v.is_finite());
        let (n, total) = known.take(USUAL).fold((0.0f32, 0.0f32), |(n, total), v| (n + 1.0, total + v));
        (n >= 2.0).then(|| total / n)
    }
}
