//! How long the shipped network takes to forecast the next day of one metric of 100,000 shards: from values to corrected
//! quantiles, on as many threads as the machine has cores, without any server.
//!
//! `cargo bench -p foreshard-model --bench shards [-- SHARDS THREADS]`
#![allow(missing_docs, clippy::expect_used)]

use std::sync::Arc;

use foreshard_domain::{Metric, Product, ShardId, Timestamp};
use foreshard_model::{
    Architecture, Context, EventEffects, Features, ForecastSpec, Forecaster, Lanes, Learned, Trained, TrainedParts,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Days of context of every shard.
const DAYS: usize = 28;
/// Series with values of their own; shards take turns with them.
const SERIES: usize = 2000;
/// Shards in one call.
const CALL: usize = 1000;

/// A daily rhythm of its own, with noise that needs no generator.
fn series(number: usize, steps: usize) -> Vec<f32> {
    let mut state = number as u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let phase = noise() * std::f32::consts::TAU;
    let wave = |i: usize| (i as f32 / 96.0 * std::f32::consts::TAU + phase).sin();
    (0..steps).map(|i| 40.0 + 20.0 * wave(i) + 10.0 * noise()).collect()
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let shards = numbers.first().copied().unwrap_or(100_000);
    let lanes = Arc::new(Lanes::new(numbers.get(1).copied().unwrap_or(0)).expect("threads"));
    let threads = lanes.threads();
    let spec = ForecastSpec::of_product(Product::NextDay);
    let sizes = Architecture::new(&Features::new(&spec));
    let members = (1..=3).map(|seed| sizes.initial(&mut ChaCha8Rng::seed_from_u64(seed))).collect();
    let parts = TrainedParts {
        name: "next_day".into(),
        spec: spec.clone(),
        learned: Learned::Lstm(members),
        widths: None,
        events: EventEffects::default(),
        risk: Default::default(),
    };
    let trained = Trained::new(parts, lanes).expect("fitting weights");
    let values: Vec<Vec<f32>> = (0..SERIES).map(|i| series(i, DAYS * spec.season_steps)).collect();
    let shard = ShardId::new("shard").expect("a name");
    let context = |i: usize| Context {
        shard: &shard,
        metric: Metric::CpuUtil,
        values: &values[i % SERIES],
        start: Timestamp::from_ms(1_700_006_400_000),
        step: spec.step,
        events: None,
    };
    let call = |from: usize, until: usize| trained.forecast(&(from..until).map(context).collect::<Vec<_>>());
    call(0, CALL.min(shards));
    let start = std::time::Instant::now();
    let mut answered = 0;
    for first in (0..shards).step_by(CALL) {
        let answers = call(first, (first + CALL).min(shards));
        answered += answers.iter().filter(|a| a.fallback.is_none()).count();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{answered} of {shards} shards forecast in {seconds:.1} s on {threads} threads: {:.0} a second",
        shards as f64 / seconds
    );
}
