//! What known events do to loads: factors by event name, learned once, taken out of the past and put into the forecast.
//!
//! A network that sees an event flag has to learn from the few days that carry it what the event does, and yesterday's event
//! stands in its lags. So events are kept out of its sight: the past is divided by what its events did, the network forecasts
//! days as they would be without any, and what events of the window will do is multiplied in again, with the spread that
//! earlier events of the name had among themselves. Where no event is known nothing changes, to the bit.

use std::borrow::Cow;
use std::collections::BTreeMap;

use foreshard_datasets::LoadEvent;
use foreshard_domain::{Metric, ShardId, Step, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Context;
use crate::forecaster::as_steps;

/// Stretches of an event: its lead, itself, its tail.
const LEAD: usize = 2;
const INSIDE: usize = 8;
const BINS: usize = LEAD + INSIDE + LEAD;
/// Lead and tail last a quarter of the event each, an hour at most.
const MOST_SHOULDER_MS: i64 = 3_600_000;
/// Days from which the load without the event is read, those of the same weekday first; the first so many that are known.
const USUAL_DAYS: [i64; 8] = [-7, 7, -14, 14, -1, 1, -2, 2];
const USUAL: usize = 4;
/// Most that an event may do to a load, as log of a factor.
const MOST: f32 = 2.3;
/// The share of a series' mean load below which a factor of it means nothing.
const IDLE: f32 = 0.05;
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
    name: String,
    metric: Metric,
    shard: ShardId,
    /// Mean log factor by stretch; `NaN` where nothing was known.
    factors: [f32; BINS],
}

impl EventEffects {
    /// Learns from what events did in all series ([`EventSource::occurrences`]). An event that never occurred has no effect.
    pub fn fit(occurrences: impl IntoIterator<Item = Occurrence>) -> Self {
        let mut seen: BTreeMap<(String, Metric), Vec<Occurrence>> = BTreeMap::new();
        for one in occurrences {
            seen.entry((one.name.clone(), one.metric)).or_default().push(one);
        }
        let mut by_name: BTreeMap<String, BTreeMap<Metric, Effect>> = BTreeMap::new();
        for ((name, metric), occurrences) in seen {
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
        let within = |v: &f32, most: f32| v.is_finite() && v.abs() <= most;
        let mut effects = self.by_name.values().flat_map(BTreeMap::values);
        effects.all(|e| {
            e.profile.iter().all(|p| within(p, MOST))
                && (within(&e.scatter, MOST) && e.scatter >= 0.0)
                && e.own.values().all(|own| within(own, MOST_OWN) && *own >= 0.0)
        })
    }

    /// The past of a series without what its events did.
    pub fn removed<'a>(&self, context: &Context<'a>) -> Cow<'a, [f32]> {
        let mut values = Cow::Borrowed(context.values);
        for (event, effect, own) in self.acting(context) {
            let span = steps_of(event, context.start, context.step, context.values.len());
            for i in span {
                let (log, _) = effect.at(event, middle(context.start, i, context.step));
                if let Some(v) = values.to_mut().get_mut(i) {
                    *v *= (-own * log).exp();
                }
            }
        }
        values
    }

    /// Puts what the events of a window do into its quantiles: `values` holds a row of `levels` for each step after the
    /// context. Rows stay in order (F1); the middle level is taken as the median.
    pub fn put_into(&self, context: &Context<'_>, levels: &[f64], values: &mut [f32]) {
        if self.is_empty() || levels.is_empty() {
            return;
        }
        let start = context.start.plus_steps(as_steps(context.values.len()), context.step);
        let steps = values.len() / levels.len();
        let mut totals = vec![(0.0f32, 0.0f32); steps];
        let mut any = false;
        for (event, effect, own) in self.acting(context) {
            for i in steps_of(event, start, context.step, steps) {
                let (log, spread) = effect.at(event, middle(start, i, context.step));
                if let Some((total, variance)) = totals.get_mut(i) {
                    *total += own * log;
                    *variance += (own * spread).powi(2);
                    any = true;
                }
            }
        }
        if !any {
            return;
        }
        for (row, (log, variance)) in values.chunks_exact_mut(levels.len()).zip(totals) {
            if log != 0.0 || variance != 0.0 {
                change(row, levels, log.clamp(-MOST, MOST).exp(), variance.sqrt());
            }
        }
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

/// Multiplies a row by a factor, and widens it by what events of one name differ by.
fn change(row: &mut [f32], levels: &[f64], factor: f32, spread: f32) {
    row.iter_mut().for_each(|q| *q *= factor);
    let Some(median) = row.get(row.len() / 2).copied() else { return };
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

fn middle(start: Timestamp, i: usize, step: Step) -> Timestamp {
    start.plus_steps(as_steps(i), step).plus_ms(step.as_ms() / 2)
}

/// The steps of a grid whose middles lie within an event, its lead or its tail.
fn steps_of(event: &LoadEvent, start: Timestamp, step: Step, n: usize) -> std::ops::Range<usize> {
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
    for part in [0..LEAD, LEAD..LEAD + INSIDE, LEAD + INSIDE..BINS] {
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

impl<'a> EventSource<'a> {
    /// What the events that lie in the series did.
    pub fn occurrences(&self) -> Vec<Occurrence> {
        let one = |event: &LoadEvent| {
            let (name, metric, shard) = (event.name.clone(), self.context.metric, self.context.shard.clone());
            Some(Occurrence { name, metric, shard, factors: self.factors(event)? })
        };
        self.events().filter_map(one).collect()
    }

    fn events(&self) -> impl Iterator<Item = &'a LoadEvent> + use<'a> {
        let shard = self.context.shard;
        self.context.events.into_iter().flat_map(move |events| events.of(shard))
    }

    /// Mean log factor of an event in this series, by stretch; `None` where nothing of it is known.
    fn factors(&self, event: &LoadEvent) -> Option<[f32; BINS]> {
        let Context { start, step, values, .. } = self.context;
        let span = steps_of(event, start, step, values.len());
        if span.is_empty() {
            return None;
        }
        let known = values.iter().filter(|v| v.is_finite());
        let (n, total) = known.fold((0.0f64, 0.0f64), |(n, total), v| (n + 1.0, total + f64::from(v.abs())));
        let idle = IDLE * (total / n.max(1.0)) as f32;
        let mut sums = [(0.0f32, 0.0f32); BINS];
        for i in span {
            let measured = values.get(i).copied().unwrap_or(f32::NAN);
            let Some(usual) = self.usual(i).filter(|usual| *usual > idle) else { continue };
            if !measured.is_finite() {
                continue;
            }
            let factor = (measured.max(0.1 * idle) / usual).ln().clamp(-MOST, MOST);
            // Not negative: the moment lies within the span.
            let bin = position(event, middle(start, i, step)) as usize;
            if let Some((n, total)) = sums.get_mut(bin) {
                *n += 1.0;
                *total += factor;
            }
        }
        let factors = sums.map(|(n, total)| if n > 0.0 { total / n } else { f32::NAN });
        factors.iter().any(|f| f.is_finite()).then_some(factors)
    }

    /// The load at the same time on days near by that have no event there.
    fn usual(&self, i: usize) -> Option<f32> {
        let Context { start, step, values, .. } = self.context;
        let season = as_steps(self.season);
        let quiet = |place: &usize| {
            let moment = middle(start, *place, step);
            self.events().all(|e| {
                let shoulder = shoulder_ms(e);
                moment < e.start.plus_ms(-shoulder) || moment >= e.end.plus_ms(shoulder)
            })
        };
        let days = USUAL_DAYS.iter().filter_map(|day| usize::try_from(as_steps(i) + day * season).ok());
        let known = days.filter(quiet).filter_map(|place| values.get(place).copied()).filter(|v| v.is_finite());
        let (n, total) = known.take(USUAL).fold((0.0f32, 0.0f32), |(n, total), v| (n + 1.0, total + v));
        (n >= 2.0).then(|| total / n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_datasets::EventCalendar;
    use foreshard_domain::QuantileLevels;

    const HOUR_MS: i64 = 3_600_000;
    const DAYS: usize = 40;

    fn hour() -> Step {
        Step::from_ms(HOUR_MS).unwrap()
    }

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    fn usual(i: usize) -> f32 {
        50.0 + 30.0 * ((i % 24) as f32 / 24.0 * std::f32::consts::TAU).sin() + (i * 7919 % 13) as f32 * 0.1
    }

    /// Four hours from ten o'clock on.
    fn sale(day: i64) -> LoadEvent {
        let start = Timestamp::from_ms((day * 24 + 10) * HOUR_MS);
        LoadEvent { start, end: start.plus_ms(4 * HOUR_MS), name: "sale".to_owned(), shard: None }
    }

    /// Loads that a sale multiplies, `factor` times.
    fn values(days: usize, sales: &[i64], factor: f32) -> Vec<f32> {
        let on = |i: usize| sales.contains(&((i / 24) as i64)) && (10..14).contains(&(i % 24));
        (0..days * 24).map(|i| usual(i) * if on(i) { factor } else { 1.0 }).collect()
    }

    fn context<'a>(shard: &'a ShardId, values: &'a [f32], events: &'a EventCalendar) -> Context<'a> {
        let (start, events) = (Timestamp::from_ms(0), Some(events));
        Context { shard, metric: Metric::CpuUtil, start, step: hour(), values, events }
    }

    #[test]
    fn what_events_did_is_taken_out_and_put_in_again() {
        let sales = [8, 15, 23, 31, 40];
        let events = EventCalendar::new(sales.map(sale));
        let (a, b) = (shard("a"), shard("b"));
        let (twice, calm) = (values(DAYS, &sales, 2.0), values(DAYS, &sales, 1.2));
        let sources: Vec<EventSource<'_>> = [(&a, &twice), (&b, &calm)]
            .map(|(shard, values)| EventSource { context: context(shard, values, &events), season: 24 })
            .to_vec();
        let effects = EventEffects::fit(sources.iter().flat_map(EventSource::occurrences));
        assert!(effects.is_sound() && !effects.is_empty());
        let noon = 31 * 24 + 12;
        for source in &sources {
            let removed = effects.removed(&source.context);
            assert!((removed[noon] / usual(noon) - 1.0).abs() < 0.2, "{} is not {}", removed[noon], usual(noon));
            assert_eq!(removed[noon + 12], source.context.values[noon + 12], "nothing happens at midnight");
        }
        // The sixth sale lies in the window: what was learned of each series is done to it.
        let levels = QuantileLevels::standard();
        let row: Vec<f32> = levels.as_slice().iter().map(|l| 90.0 + 20.0 * *l as f32).collect();
        let mut window = row.repeat(24);
        effects.put_into(&sources[0].context, levels.as_slice(), &mut window);
        let at = |hour: usize| &window[hour * levels.len()..][..levels.len()];
        assert_eq!(at(2), row, "no event, no change");
        let median = at(12)[6];
        assert!((170.0..220.0).contains(&median), "{median}");
        assert!(at(12)[12] - at(12)[0] > 2.0 * (row[12] - row[0]) * 0.9);
        assert!(at(12).windows(2).all(|pair| pair[0] <= pair[1]));
        let text = serde_json::to_string(&effects).unwrap();
        assert_eq!(serde_json::from_str::<EventEffects>(&text).unwrap(), effects);
    }

    #[test]
    fn an_event_that_does_nothing_has_no_effect_and_one_that_never_was_none_at_all() {
        let sales = [8, 15, 23, 31];
        let events = EventCalendar::new(sales.map(sale));
        let (a, same) = (shard("a"), values(DAYS, &sales, 1.0));
        let learned = |values| EventSource { context: context(&a, values, &events), season: 24 }.occurrences();
        let effects = EventEffects::fit(learned(&same));
        for (now, before) in effects.removed(&context(&a, &same, &events)).iter().zip(&same) {
            assert!((now / before - 1.0).abs() < 0.02, "{now} {before}");
        }
        let unknown = EventCalendar::new([LoadEvent { name: "party".to_owned(), ..sale(12) }]);
        assert!(matches!(effects.removed(&context(&a, &same, &unknown)), Cow::Borrowed(_)));
        assert!(EventEffects::fit(learned(&[])).is_empty());
    }

    #[test]
    fn d1_what_comes_after_the_last_value_is_not_learned_from() {
        let sales = [8, 15, 23, 31];
        let events = EventCalendar::new(sales.map(sale));
        let (a, all) = (shard("a"), values(DAYS, &sales, 2.0));
        let known =
            |values| EventEffects::fit(EventSource { context: context(&a, values, &events), season: 24 }.occurrences());
        assert_ne!(known(&all), known(&all[..20 * 24]));
        let mut corrupt = all.clone();
        corrupt[20 * 24..].fill(1e9);
        assert_eq!(known(&corrupt[..20 * 24]), known(&all[..20 * 24]));
    }

    #[test]
    fn gaps_zeros_and_endless_events_are_borne() {
        let (a, sales) = (shard("a"), [8, 15, 23, 31]);
        let long = LoadEvent { start: Timestamp::from_ms(i64::MIN), end: Timestamp::from_ms(i64::MAX), ..sale(1) };
        for events in [sales.map(sale).to_vec(), vec![long]].map(EventCalendar::new) {
            for odd in [vec![0.0; DAYS * 24], vec![f32::NAN; DAYS * 24], vec![-5.0; DAYS * 24], vec![1e30; DAYS * 24]] {
                let context = context(&a, &odd, &events);
                let effects = EventEffects::fit(EventSource { context, season: 24 }.occurrences());
                assert!(effects.is_sound());
                let mut window = vec![1.0; 24 * 3];
                effects.put_into(&context, &[0.1, 0.5, 0.9], &mut window);
                assert!(window.iter().all(|v| v.is_finite()));
            }
        }
    }
}
