//! What the network alone costs, without any server.

use foreshard_domain::{Metric, Product, ShardId, Timestamp};
use foreshard_model::{Context, Forecaster as _, Lanes, Trained};
use std::sync::Arc;
use std::time::Instant;

use crate::place::{Sizes, product, value};

/// Milliseconds of one series (median, p99), and series a second in batches of 512.
pub fn floor(sizes: Sizes) -> (f64, f64, f64) {
    let lanes = Arc::new(Lanes::new(0).expect("threads"));
    let trained = Trained::new(product(Product::NextDay), lanes).expect("weights");
    let values: Vec<f32> = (0..sizes.days * 96).map(|i| value(1, i, 96) as f32).collect();
    let shard = ShardId::new("shard").expect("a name");
    let start = Timestamp::from_ms(20_000 * 24 * 3_600_000);
    let step = Product::NextDay.step();
    let context = Context { shard: &shard, metric: Metric::CpuUtil, values: &values, start, step, events: None };
    let timed = |contexts: &[Context<'_>]| {
        let begin = Instant::now();
        let made = trained.forecast(contexts);
        assert!(made.iter().all(|answer| answer.fallback.is_none()), "the network answers");
        begin.elapsed().as_secs_f64()
    };
    timed(&[context; 512]);
    let mut alone: Vec<f64> = (0..2000).map(|_| timed(&[context]) * 1e3).collect();
    alone.sort_by(f64::total_cmp);
    let many: f64 = (0..20).map(|_| timed(&[context; 512])).sum();
    (alone[alone.len() / 2], alone[alone.len() * 99 / 100], 20.0 * 512.0 / many)
}
