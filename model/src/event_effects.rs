//! What known events do to loads: factors by event name, learned once, taken out of the past and put into the forecast.
//!
//! A network that sees an event flag has to learn from the few days that carry it what the event does, and yesterday's event
//! stands in its lags. So events are kept out of its sight: the past is divided by what its events did, the network forecasts
//! days as they would be without any, and what events of the window will do is multiplied in again, with the spread that
//! earlier events of the name had among themselves. Where no event is known nothing changes, to the bit.

mod occurrence;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use foreshard_datasets::LoadEvent;
use foreshard_domain::{Metric, ShardId, Step, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Context;
use crate::forecaster::as_steps;
pub use occurrence::{EventSource, Occurrence};

/// Stretches of an event: its lead, itself, its tail.
const LEAD: usize = 2;
const INSIDE: usize = 8;
const BINS: usize = LEAD + INSIDE + LEAD;
const PARTS: [Range<usize>; 3] = [0..LEAD, LEAD..LEAD + INSIDE, LEAD + INSIDE..BINS];
/// Lead and tail last a quarter of the event each, an hour at most.
const MOST_SHOULDER_MS: i64 = 3_600_000;
/// Most that an event may do to a load, as log of a factor: ten times as much, a hundredth of it.
const MOST: f32 = 2.3;
const LEAST: f32 = -4.6;
/// Where an event leaves less than a fifth of a load, what is left does not tell what it would have been: it counts as missing.
const CLOSED: f32 = -1.6;
/// How many occurrences the expectation of no effect, and of the effect on the others, is worth.
const PRIOR: f32 = 1.0;
const PRIOR_OWN: f32 = 2.0;
/// The spread that is expected between occurrences, as share of the effect.
const PRIOR_SCATTER: f32 = 0.3;
/// Most that an event may do to one series, in units of what it does to all.
const MOST_OWN: f32 = 3.0;

/// What events of one name do to one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Effect {
    /// Log factor by stretch of the event.
    profile: [f32; BINS],
    /// Deviation of the log factor between occurrences, inside the event.
    scatter: f32,
    /// Effect on one series, in units of the profile; 1 for a series left out.
    own: BTreeMap<ShardId, f32>,
}

/// What events do, by name and metric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventEffects {
    by_name: BTreeMap<String, BTreeMap<Metric, Effect>>,
}

impl EventEffects {
    /// Learns from what events did in all series ([`EventSource::occurrences`]). An event that never occurred has no effect.
    pub fn fit(occurrences: impl IntoIterator<Item = Occurrence>) -> Self {
        let mut seen: BTreeMap<(String, Metric), Vec<Occurrence>> = BTreeMap::new();
        for one in occurrences {
            seen.entry((one.name.clone(), one.metric)).or_default().push(one);
        }
        let mut by_name: BTreeMap<String, BTreeMap<Metric, Effect>> = BTreeMap::new();
        for ((name, metric), mut occurrences) in seen {
            // What it does is read where it was alone; only where it never was, its part of what came is guessed.
            for bin in 0..BINS {
                if !occurrences.iter().any(|one| one.was_alone(bin)) {
                    occurrences.iter_mut().for_each(|one| one.guess(bin));
                }
            }
            by_name.entry(name).or_default().insert(metric, Effect::of(&occurrences));
        }
        Self { by_name }
    }

    /// Whether no event has an effect.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Whether all numbers are such as [`Self::fit`] could have given.
    pub fn is_sound(&self) -> bool {
        let mut effects = self.by_name.values().flat_map(BTreeMap::values);
        // No number that is no number is within.
        effects.all(|e| {
            e.profile.iter().all(|p| (LEAST..=MOST).contains(p))
                && (0.0..=MOST).contains(&e.scatter)
                && e.own.values().all(|own| (0.0..=MOST_OWN).contains(own))
        })
    }

    /// Whether some event leaves less than a tenth of a load.
    pub(crate) fn close_loads(&self) -> bool {
        self.by_name.values().flat_map(BTreeMap::values).flat_map(|effect| effect.profile).any(|log| log < -MOST)
    }

    /// The past of a series without what its events did: divided by their factors, missing where they left next to nothing.
    pub fn removed<'a>(&self, context: &Context<'a>) -> Cow<'a, [f32]> {
        let mut values = Cow::Borrowed(context.values);
        let Some(done) = self.done(context, context.start, context.values.len()) else { return values };
        for (value, Done { log, .. }) in values.to_mut().iter_mut().zip(done) {
            if log < CLOSED {
                *value = f32::NAN;
            } else if log != 0.0 {
                *value *= (-log).exp();
            }
        }
        values
    }

    /// Puts what the events of a window do into its quantiles: `values` holds a row of `levels` for each step after the
    /// context. Rows stay in order (F1).
    pub fn put_into(&self, context: &Context<'_>, levels: &[f64], values: &mut [f32]) {
        if levels.is_empty() {
            return;
        }
        let start = context.start.plus_steps(as_steps(context.values.len()), context.step);
        let Some(done) = self.done(context, start, values.len() / levels.len()) else { return };
        for (row, Done { log, variance }) in values.chunks_exact_mut(levels.len()).zip(done) {
            if log != 0.0 || variance != 0.0 {
                change(row, levels, log.exp(), variance.sqrt());
            }
        }
    }

    /// What the events of a context do at each of some steps; `None` if none of them acts there.
    ///
    /// Events of different names act together. Several of one name at a time are told once, by the one that does most: a sale
    /// of the whole shop and of one department is one sale.
    fn done(&self, context: &Context<'_>, start: Timestamp, steps: usize) -> Option<Vec<Done>> {
        let mut by_name: BTreeMap<&str, BTreeMap<usize, Done>> = BTreeMap::new();
        for (event, effect, own) in self.acting(context) {
            let name = by_name.entry(&event.name).or_default();
            for i in steps_of(event, start, context.step, steps) {
                let (log, spread) = effect.at(event, middle(start, i, context.step));
                let one = Done { log: own * log, variance: (own * spread).powi(2) };
                let before = name.entry(i).or_insert(one);
                if one.log.abs() > before.log.abs() {
                    *before = one;
                }
            }
        }
        let mut total: Option<Vec<Done>> = None;
        for (i, one) in by_name.into_values().flatten() {
            if let Some(sum) = total.get_or_insert_with(|| vec![Done::default(); steps]).get_mut(i) {
                *sum = Done { log: sum.log + one.log, variance: sum.variance + one.variance };
            }
        }
        total.iter_mut().flatten().for_each(|one| one.log = one.log.clamp(LEAST, MOST));
        total
    }

    /// The events of a context that have an effect, and how much of it the series takes.
    fn acting<'a>(&'a self, context: &Context<'a>) -> impl Iterator<Item = (&'a LoadEvent, &'a Effect, f32)> {
        let events = if self.is_empty() { None } else { context.events };
        let (shard, metric) = (context.shard, context.metric);
        events.into_iter().flat_map(move |events| events.of(shard)).filter_map(move |event| {
            let effect = self.by_name.get(&event.name)?.get(&metric)?;
            Some((event, effect, effect.own.get(shard).copied().unwrap_or(1.0)))
        })
    }
}

/// What all events together do at one step: the log of the factor, and its variance.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    log: f32,
    variance: f32,
}

/// Multiplies a row by a factor, and widens it by what events of one name differ by.
fn change(row: &mut [f32], levels: &[f64], factor: f32, spread: f32) {
    row.iter_mut().for_each(|q| *q *= factor);
    let off = |level: &f64| (level - 0.5).abs();
    let middle = levels.iter().enumerate().min_by(|(_, a), (_, b)| off(a).total_cmp(&off(b)));
    let Some(median) = middle.and_then(|(i, _)| row.get(i)).copied() else { return };
    for (q, level) in row.iter_mut().zip(levels) {
        let own = *q - median;
        let more = normal_quantile(*level) * spread * median.abs();
        // Both grow outward from the median, and so does the root of the sum of their squares.
        let width = own.hypot(more);
        *q = if *level < 0.5 { median - width } else { median + width };
    }
}

/// The quantile of the normal distribution, within a hundredth: enough for a spread that is a guess itself (Tukey's lambda).
fn normal_quantile(level: f64) -> f32 {
    ((level.powf(0.135) - (1.0 - level).powf(0.135)) / 0.1975) as f32
}

/// How long before an event its effect begins, and after it ends.
fn shoulder_ms(event: &LoadEvent) -> i64 {
    (event.end.since_ms(event.start) / 4).clamp(1, MOST_SHOULDER_MS)
}

/// Whether a moment lies within an event, its lead or its tail.
fn is_near(event: &LoadEvent, moment: Timestamp) -> bool {
    let shoulder = shoulder_ms(event);
    event.start.plus_ms(-shoulder) <= moment && moment < event.end.plus_ms(shoulder)
}

fn middle(start: Timestamp, i: usize, step: Step) -> Timestamp {
    start.plus_steps(as_steps(i), step).plus_ms(step.as_ms() / 2)
}

/// The steps of a grid whose middles lie within an event, its lead or its tail.
fn steps_of(event: &LoadEvent, start: Timestamp, step: Step, n: usize) -> Range<usize> {
    let shoulder = shoulder_ms(event);
    let place = |ts: Timestamp| {
        let ms = ts.since_ms(start).saturating_sub(step.as_ms() / 2);
        let steps = ms.div_euclid(step.as_ms()) + i64::from(ms.rem_euclid(step.as_ms()) > 0);
        usize::try_from(steps.max(0)).unwrap_or(usize::MAX).min(n)
    };
    let from = place(event.start.plus_ms(-shoulder));
    from..place(event.end.plus_ms(shoulder)).max(from)
}

/// Where in the profile of an event a moment lies: 0 where its lead begins, [`BINS`] where its tail ends.
fn position(event: &LoadEvent, ts: Timestamp) -> f32 {
    let share = |from: Timestamp, long: i64| (ts.since_ms(from) as f64 / long.max(1) as f64) as f32;
    let shoulder = shoulder_ms(event);
    if ts < event.start {
        share(event.start.plus_ms(-shoulder), shoulder) * LEAD as f32
    } else if ts < event.end {
        LEAD as f32 + share(event.start, event.end.since_ms(event.start)) * INSIDE as f32
    } else {
        (LEAD + INSIDE) as f32 + share(event.end, shoulder) * LEAD as f32
    }
}

impl Effect {
    fn of(occurrences: &[Occurrence]) -> Self {
        let mut profile = [f32::NAN; BINS];
        for (bin, target) in profile.iter_mut().enumerate() {
            let known = occurrences.iter().filter_map(|o| o.factors.get(bin)).filter(|f| f.is_finite());
            let (n, total) = known.fold((0.0f32, 0.0f32), |(n, total), f| (n + 1.0, total + f));
            *target = if n > 0.0 { total / (n + PRIOR) } else { f32::NAN };
        }
        fill(&mut profile);
        let power: f32 = profile.iter().map(|p| p * p).sum();
        let mut sums: BTreeMap<&ShardId, (f32, f32)> = BTreeMap::new();
        for occurrence in occurrences {
            let (along, own_power) = sums.entry(&occurrence.shard).or_default();
            for (p, f) in profile.iter().zip(occurrence.factors).filter(|(_, f)| f.is_finite()) {
                *along += p * f;
                *own_power += p * p;
            }
        }
        let share = |(along, own_power): (f32, f32)| {
            let prior = PRIOR_OWN * power;
            if power > 0.0 { ((along + prior) / (own_power + prior)).clamp(0.0, MOST_OWN) } else { 1.0 }
        };
        let own: BTreeMap<ShardId, f32> = sums.into_iter().map(|(shard, s)| (shard.clone(), share(s))).collect();
        let scatter = scatter(&profile, occurrences, &own);
        Self { profile, scatter, own }
    }

    /// Log factor at a moment, linear between the middles of the stretches, and its deviation there.
    fn at(&self, event: &LoadEvent, ts: Timestamp) -> (f32, f32) {
        let place = position(event, ts) - 0.5;
        let below = place.floor();
        // Outside of lead and tail nothing happens: the profile goes on with zeros.
        let value = |bin: f32| -> f32 {
            let inside = bin >= 0.0 && bin < BINS as f32;
            // In 0..BINS by the line before.
            if inside { self.profile.get(bin as usize).copied().unwrap_or(0.0) } else { 0.0 }
        };
        let log = value(below) + (value(below + 1.0) - value(below)) * (place - below);
        let most = self.profile.iter().fold(0.0f32, |most, p| most.max(p.abs()));
        let share = if most > 0.0 { (log.abs() / most).min(1.0) } else { 0.0 };
        (log, self.scatter * share)
    }
}

/// Steps may be longer than a stretch of a short event: a stretch of which nothing is known takes what is known nearest to it
/// of the same part, where lead and tail of which nothing is known have no effect.
fn fill(profile: &mut [f32; BINS]) {
    let known = *profile;
    for part in PARTS {
        for bin in part.clone() {
            let nearest = part.clone().filter(|b| known[*b].is_finite()).min_by_key(|b| b.abs_diff(bin));
            profile[bin] = nearest.map_or(0.0, |b| known[b]);
        }
    }
}

/// Deviation of the mean log factor inside the event from what is expected of its series, between occurrences.
fn scatter(profile: &[f32; BINS], occurrences: &[Occurrence], own: &BTreeMap<ShardId, f32>) -> f32 {
    let inside = LEAD..LEAD + INSIDE;
    let typical = inside.clone().filter_map(|bin| profile.get(bin)).sum::<f32>() / INSIDE as f32;
    let expected = PRIOR_SCATTER * typical;
    let (mut n, mut squares) = (2.0f32, 2.0 * expected * expected);
    for occurrence in occurrences {
        let share = own.get(&occurrence.shard).copied().unwrap_or(1.0);
        let differences = inside.clone().filter_map(|bin| {
            let difference = occurrence.factors.get(bin)? - share * profile.get(bin)?;
            difference.is_finite().then_some(difference)
        });
        let (count, total) = differences.fold((0.0f32, 0.0f32), |(count, total), d| (count + 1.0, total + d));
        if count > 0.0 {
            n += 1.0;
            squares += (total / count).powi(2);
        }
    }
    (squares / n).sqrt().min(MOST)
}
