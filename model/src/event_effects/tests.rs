//! Effects as they are learned, taken out and put in.

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
    let later = EventCalendar::new(sales.into_iter().filter(|day| *day < 20).map(sale));
    let cut = EventSource { context: context(&a, &all[..20 * 24], &later), season: 24 };
    assert_eq!(known(&all[..20 * 24]), EventEffects::fit(cut.occurrences()), "events to come teach nothing");
}

fn effects_of(values: &[f32], events: &EventCalendar) -> EventEffects {
    let a = shard("a");
    let effects = EventEffects::fit(EventSource { context: context(&a, values, events), season: 24 }.occurrences());
    assert!(effects.is_sound());
    effects
}

/// The factor at noon of a day that the effects put into a flat window after `values`, 24 steps later.
fn factor_after(effects: &EventEffects, values: &[f32], events: &EventCalendar) -> f32 {
    let (a, mut window) = (shard("a"), vec![1.0; 24]);
    effects.put_into(&context(&a, values, events), &[0.5], &mut window);
    window[12]
}

#[test]
fn events_told_twice_act_once() {
    let sales = [8, 15, 23, 31, 40];
    let once = EventCalendar::new(sales.map(sale));
    let own = |day| LoadEvent { shard: Some(shard("a")), ..sale(day) };
    let longer = |day| LoadEvent { end: sale(day).end.plus_ms(HOUR_MS), ..own(day) };
    let all = values(DAYS, &sales, 2.0);
    let effects = effects_of(&all, &once);
    let expected = factor_after(&effects, &all, &once);
    assert!((1.6..2.2).contains(&expected), "{expected}");
    let twice = [sales.map(sale), sales.map(sale)].concat();
    let by_shard = [sales.map(sale), sales.map(own)].concat();
    for told in [twice, by_shard].map(EventCalendar::new) {
        assert_eq!(effects_of(&all, &told), effects);
        assert_eq!(factor_after(&effects, &all, &told), expected);
    }
    let overlapping = EventCalendar::new([sales.map(sale), sales.map(longer)].concat());
    let factor = factor_after(&effects, &all, &overlapping);
    assert!((factor / expected - 1.0).abs() < 0.2, "{factor} {expected}");
}

#[test]
fn events_of_two_names_at_a_time_are_told_apart() {
    let raid = |day| LoadEvent { name: "raid".to_owned(), ..sale(day) };
    // The sale alone on three days, with the raid on two others.
    let (sales, both) = ([8, 15, 23], [26, 31]);
    let alone = values(DAYS, &sales, 2.0);
    let all: Vec<f32> = alone
        .iter()
        .zip(values(DAYS, &both, 3.0))
        .enumerate()
        .map(|(i, (a, b))| if both.contains(&((i / 24) as i64)) { b } else { *a })
        .collect();
    let events = |more: Option<LoadEvent>| {
        let known = sales.map(sale).into_iter().chain(both.map(sale)).chain(both.map(raid));
        EventCalendar::new(known.chain(more))
    };
    let effects = effects_of(&all, &events(None));
    let (sale_only, with_raid) = (events(Some(sale(40))), EventCalendar::new([sale(40), raid(40)]));
    let factor = factor_after(&effects, &all, &sale_only);
    assert!((1.5..2.1).contains(&factor), "a sale is what it was alone: {factor}");
    // The raid never was alone: half of what came with both is taken for its part.
    let factor = factor_after(&effects, &all, &with_raid);
    assert!((2.0..3.6).contains(&factor), "{factor}");
    let (a, quiet) = (shard("a"), 26 * 24 + 12);
    let removed = effects.removed(&context(&a, &all, &events(None)))[quiet];
    assert!((0.6..1.5).contains(&(removed / usual(quiet))), "{removed} {}", usual(quiet));
}

#[test]
fn events_that_always_come_together_share_what_they_do() {
    // One sticks out before the other, which sticks out behind it: neither was ever alone in its middle.
    let days = [8, 15, 23, 31, 40];
    let at = |day: i64, name: &str, from: i64, to: i64| {
        let start = Timestamp::from_ms((day * 24 + from) * HOUR_MS);
        LoadEvent { start, end: start.plus_ms((to - from) * HOUR_MS), name: name.to_owned(), shard: None }
    };
    let both = days.iter().flat_map(|day| [at(*day, "campaign", 8, 14), at(*day, "letter", 10, 16)]);
    let events = EventCalendar::new(both);
    let on = |i: usize| days.contains(&((i / 24) as i64)) && (10..14).contains(&(i % 24));
    let all: Vec<f32> = (0..DAYS * 24).map(|i| usual(i) * if on(i) { 4.0 } else { 1.0 }).collect();
    let effects = effects_of(&all, &events);
    let factor = factor_after(&effects, &all, &events);
    assert!((1.8..4.5).contains(&factor), "{factor}");
}

#[test]
fn days_on_which_nothing_happened_are_taken_out_of_the_past() {
    let days = [8, 15, 23, 31, 40];
    let events = EventCalendar::new(days.map(sale));
    let closed = values(DAYS, &days, 0.0);
    let effects = effects_of(&closed, &events);
    let a = shard("a");
    let removed = effects.removed(&context(&a, &closed, &events));
    assert!(removed[31 * 24 + 12].is_nan() && removed[31 * 24 + 2] == closed[31 * 24 + 2]);
    let factor = factor_after(&effects, &closed, &events);
    assert!(factor < 0.05, "{factor}");
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
