//! The simulator: what it accounts, and that knowing the future pays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_domain::{PerResource, Resource, ShardId, Step, Timestamp};
use foreshard_policy::PolicySettings;
use foreshard_policy::simulate::{
    Cell, SimError, SimLoads, SimPolicy, SimSpec, TrueFuture, TuneGrid, base_settings, simulate, simulate_tuning,
    tune_predictive, tune_reactive,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DAY: usize = 288;

/// Loads with a daily shape of their own phase and a rise of one or two hours each day.
fn loads(shards: usize, days: usize, seed: u64) -> SimLoads {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let mut values = Vec::new();
    for _ in 0..shards {
        let (mean, phase, burst) = (rng.random_range(3.0..20.0), rng.random_range(0..DAY), rng.random_range(0..DAY));
        for step in 0..days * DAY {
            let angle = (step + phase) as f64 / DAY as f64 * std::f64::consts::TAU;
            let high = if (step + DAY - burst) % DAY < 18 { 2.0 } else { 0.0 };
            values.push((mean * (1.0 + 0.6 * angle.sin() + high) * rng.random_range(0.95..1.05)) as f32);
        }
    }
    let names = (0..shards).map(|i| ShardId::new(format!("s{i:02}")).unwrap()).collect();
    SimLoads::new(Timestamp::from_ms(0), Step::FIVE_MINUTES, vec![Resource::Cpu], names, days * DAY, values).unwrap()
}

fn cell(seed: u64) -> Cell {
    let spec = SimSpec { nodes: 4, seed, data_gib: 5.0, ..SimSpec::default() };
    Cell::new(&loads(20, 8, 7), None, &spec).unwrap()
}

#[test]
fn perfect_scenarios_beat_reacting_and_reacting_beats_nothing() {
    let reacting = base_settings();
    // One that knows need not wait for much: it may act on small excesses above a lower limit.
    let knowing = PolicySettings { limit: 0.95, min_gain: 0.0, ..base_settings() };
    for seed in [1, 2] {
        let cell = cell(seed);
        let run = |policy: SimPolicy<'_>, settings| simulate(&cell, policy, &reacting, settings).unwrap();
        let mut future = TrueFuture::new(cell.loads().clone(), 288);
        let none = run(SimPolicy::None, &reacting);
        let reactive = run(SimPolicy::Reactive, &reacting);
        let seasonal = run(SimPolicy::Seasonal, &knowing);
        let oracle = run(SimPolicy::Oracle, &knowing);
        let predictive = run(SimPolicy::Predictive(&mut future), &knowing);
        for r in [&none, &reactive, &seasonal, &predictive] {
            let (minutes, area) = (r.overload_minutes, r.overload_area);
            println!("{seed} {}: {minutes} min, area {area:.1}, {} moves, {} plans", r.policy, r.moves, r.plans);
        }
        assert_eq!((predictive.overload_minutes, predictive.moves), (oracle.overload_minutes, oracle.moves));
        assert_eq!((none.moves, none.plans, none.minutes), (0, 0, 4.0 * 1440.0));
        assert!(none.overload_minutes > 60.0, "the cell must have something to mend");
        assert!(reactive.overload_minutes < none.overload_minutes);
        assert!(predictive.overload_minutes < none.overload_minutes);
        assert!(predictive.overload_area < 0.5 * none.overload_area);
        assert!(predictive.overload_area < reactive.overload_area);
        assert!(seasonal.overload_area < none.overload_area);
        assert_eq!(none.unavoidable_minutes, 0.0);
        assert_eq!(none.node_hours, 4.0 * 96.0);
        assert_eq!(run(SimPolicy::Reactive, &reacting), reactive, "the same seed gives the same replay");
    }
}

/// Knowing a day must not be worse than knowing hours, as it was when a plan had to be good for all that it saw: capacity
/// was a hard limit to the end of the window, and overload of tomorrow was charged like that of now.
#[test]
fn seeing_a_day_is_as_good_as_seeing_hours() {
    // The excess alone is charged, as it was then, also by the run that makes the beginning.
    let window = PolicySettings::default().capacity_window_ms;
    let excess = PolicySettings { minute_weight: 0.0, capacity_window_ms: window, ..base_settings() };
    let planner = |capacity_window_ms, foresight_half_life_ms| PolicySettings {
        limit: 0.95,
        min_gain: 0.0,
        capacity_window_ms,
        foresight_half_life_ms,
        ..excess.clone()
    };
    let half_life = excess.foresight_half_life_ms;
    let planners = [(0, 0), (window, 0), (0, half_life), (window, half_life)];
    for seed in [1, 2] {
        let cell = cell(seed);
        let none = simulate(&cell, SimPolicy::None, &excess, &excess).unwrap();
        for (window, half_life) in planners {
            let settings = planner(window, half_life);
            let [hours, day] = [48, 288].map(|horizon| {
                let mut future = TrueFuture::new(cell.loads().clone(), horizon);
                simulate(&cell, SimPolicy::Predictive(&mut future), &excess, &settings).unwrap()
            });
            for (seen, r) in [("4 h", &hours), ("24 h", &day)] {
                let (minutes, area) = (r.overload_minutes, r.overload_area);
                println!(
                    "{seed} binds {window} ms, fades {half_life} ms, {seen}: {minutes} min, area {area:.1}, {} moves",
                    r.moves
                );
            }
            if (window, half_life) == planners[3] {
                assert!(day.overload_minutes <= 0.1 * none.overload_minutes);
                assert!(day.overload_minutes <= hours.overload_minutes.max(0.05 * none.overload_minutes) * 2.0);
                assert!(day.moves <= hours.moves);
            } else if window == 0 {
                assert!(day.overload_minutes > 0.5 * none.overload_minutes, "the cell must show what it is about");
            }
        }
    }
}

/// As many shards, nodes and days as a history has: replanning at every step must stay quick.
#[test]
fn a_large_cell_is_replayed() {
    let spec = SimSpec { nodes: 10, phases: true, ..SimSpec::default() };
    let cell = Cell::new(&loads(150, 15, 11), None, &spec).unwrap();
    let settings = PolicySettings { limit: 0.9, ..base_settings() };
    let report = simulate(&cell, SimPolicy::Reactive, &settings, &settings).unwrap();
    println!("{} min, {} moves, {} plans", report.overload_minutes, report.moves, report.plans);
    assert!(report.moves > 0 && report.plans >= report.moves / 2);
}

#[test]
fn moves_take_their_time_and_their_load() {
    let settings = base_settings();
    let cell = cell(3);
    let report = simulate(&cell, SimPolicy::Oracle, &settings, &settings).unwrap();
    assert!(report.moves > 0 && report.moves == report.moved.len());
    let names = cell.loads().shards();
    for m in &report.moved {
        let shard = names.iter().position(|s| *s == m.shard).unwrap();
        let seconds = cell.data_bytes()[shard] / (60.0 * 1_048_576.0);
        let minutes = m.end.since_ms(m.start) as f64 / 60_000.0;
        assert!((0.0..=1.0).contains(&(minutes - seconds / 60.0)), "{minutes} min for {seconds} s");
        let at_once = report.moved.iter().filter(|o| o.start <= m.start && m.start < o.end).count();
        assert!(at_once <= 2);
        let again = report.moved.iter().filter(|o| o.shard == m.shard && o.start > m.start);
        assert!(again.into_iter().all(|o| o.start.since_ms(m.start) >= 3_600_000), "cool-down");
    }
}

#[test]
fn capacity_follows_the_replayed_half() {
    let loads = loads(20, 8, 7);
    let half = loads.steps() / 2;
    let total = |step: usize| (0..20).map(|s| f64::from(loads.lane(0, s)[step])).sum::<f64>();
    let peak = (half..loads.steps()).map(total).fold(0.0, f64::max);
    let capacity = |multiplier: f64, nodes: usize| {
        let spec = SimSpec { nodes, capacity_multiplier: multiplier, ..SimSpec::default() };
        Cell::new(&loads, None, &spec).unwrap().capacity().cpu.unwrap()
    };
    assert!((capacity(1.15, 4) - 1.15 * peak / 4.0).abs() < 1e-9);
    let largest = (0..20).flat_map(|s| loads.lane(0, s)[half..].to_vec()).fold(0.0, f32::max);
    assert!((capacity(1.0, 1000) - 1.25 * f64::from(largest)).abs() < 1e-4);
}

#[test]
fn phases_shift_and_scale_without_wrapping() {
    let plain = loads(6, 8, 7);
    let spec = SimSpec { phases: true, ..SimSpec::default() };
    let cell = Cell::new(&plain, None, &spec).unwrap();
    assert!(cell.steps() < plain.steps() && cell.steps() >= plain.steps() - 18 * 12);
    for s in 0..6 {
        let (old, new) = (plain.lane(0, s), cell.loads().lane(0, s));
        let scale_at = |shift: usize| new[0] / old[shift];
        let shift = (0..=216).find(|shift| {
            let scale = scale_at(*shift);
            new.iter().zip(&old[*shift..]).all(|(n, o)| (n - o * scale).abs() < 1e-3 * n.max(1.0))
        });
        assert!(shift.is_some_and(|shift| scale_at(shift) <= 2.001), "shard {s}");
    }
    let other = Cell::new(&plain, None, &SimSpec { seed: 1, ..spec }).unwrap();
    assert_ne!(other.loads(), cell.loads());
}

#[test]
fn tuning_prefers_what_pays_and_refuses_an_edge() {
    let cells = [cell(1)];
    let base = base_settings();
    let grid = TuneGrid { triggers: vec![0.9, 1.0], min_gains: vec![0.0, 0.5, 2.0, 8.0, 1e6] };
    let reactive = match tune_reactive(&cells, &base, &grid) {
        Ok(tuned) => tuned,
        Err(SimError::OnEdge { best, .. }) => panic!("on the edge: {best}"),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(reactive.tried.len(), 10);
    let score = |minutes: f64, moves: usize| minutes + moves as f64;
    let best = score(reactive.chosen.overload_minutes, reactive.chosen.moves);
    assert!(reactive.tried.iter().all(|t| score(t.overload_minutes, t.moves) >= best - 1e-9));
    let narrow = TuneGrid { min_gains: vec![reactive.settings.min_gain, 1e6, 2e6], ..grid.clone() };
    assert!(matches!(tune_reactive(&cells, &base, &narrow), Err(SimError::OnEdge { .. })));
    let none = TuneGrid { min_gains: vec![1.0], ..grid.clone() };
    assert!(matches!(tune_reactive(&cells, &base, &none), Err(SimError::NothingToTune)));
    let mut source = |cell: &Cell| -> Result<Box<_>, _> {
        Ok(Box::new(TrueFuture::new(cell.loads().clone(), 288)) as Box<dyn foreshard_policy::simulate::ScenarioSource>)
    };
    let predictive = tune_predictive(&cells, &reactive, &grid, &mut source).unwrap();
    let chosen = &predictive.chosen;
    assert!(chosen.moves <= reactive.chosen.moves);
    let few = predictive.tried.iter().filter(|t| t.moves <= reactive.chosen.moves);
    assert!(few.into_iter().all(|t| t.overload_minutes >= chosen.overload_minutes));
}

/// A setting is left as soon as it is behind; that must not change the choice.
#[test]
fn what_is_behind_is_left_without_changing_the_choice() {
    let cells = [cell(1), cell(2), cell(3)];
    // The second gain is as good as the first, so that the choice is never on the edge.
    let grid = TuneGrid { triggers: vec![0.9, 1.0], min_gains: vec![0.0, 1e-9, 0.5, 2.0, 8.0, 1e6] };
    let tuned = tune_reactive(&cells, &base_settings(), &grid).unwrap();
    let mut best = f64::INFINITY;
    for tried in &tuned.tried {
        let settings = PolicySettings { limit: tried.trigger, min_gain: tried.min_gain, ..base_settings() };
        let all = cells.each_ref().map(|c| simulate_tuning(c, SimPolicy::Reactive, &settings, &settings).unwrap());
        let minutes: f64 = all.iter().map(|r| r.overload_minutes).sum();
        let moves: usize = all.iter().map(|r| r.moves).sum();
        best = best.min(minutes + moves as f64);
        assert!(tried.overload_minutes <= minutes + 1e-9 && tried.moves <= moves && tried.cells <= cells.len());
        assert!(tried.cells < cells.len() || tried.moves == moves);
    }
    let chosen = &tuned.chosen;
    assert_eq!(chosen.cells, cells.len());
    assert!((chosen.overload_minutes + chosen.moves as f64 - best).abs() < 1e-6);
    assert!(tuned.tried.iter().any(|t| t.cells < cells.len()), "nothing was left early");
}

#[test]
fn figures_out_of_range_are_refused() {
    let loads = loads(3, 2, 1);
    let bad = [
        SimSpec { nodes: 0, ..SimSpec::default() },
        SimSpec { capacity_multiplier: f64::NAN, ..SimSpec::default() },
        SimSpec { copy_mib_per_s: 0.0, ..SimSpec::default() },
        SimSpec { copy_share: PerResource { cpu: -0.1, memory: 0.0, io: 0.0 }, ..SimSpec::default() },
    ];
    for spec in bad {
        assert!(matches!(Cell::new(&loads, None, &spec), Err(SimError::Spec { .. })), "{spec:?}");
    }
    assert!(matches!(Cell::new(&loads, Some(&[1.0]), &SimSpec::default()), Err(SimError::Shape { .. })));
}
