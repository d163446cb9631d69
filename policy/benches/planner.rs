//! How long a plan takes, and the check of it: `cargo bench -p foreshard-policy --bench planner`.
//!
//! Fleets with 32 scenarios, 24 steps and three resources; one node in twenty runs hot. Settings are the defaults: a plan has
//! at most eight moves, and the last group shows what 64 take. After the times the highest memory is printed, as the
//! operating system counts it; `-- largest` runs the one that needs some GiB alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use foreshard_policy::{PlanningInput, check, plan};
use std::hint::black_box;
use std::time::Duration;

#[path = "../tests/inputs/fleet.rs"]
mod fleet;

/// Highest resident memory of this process so far in MiB, where the operating system tells.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Time that this thread has had a processor, where the operating system tells: what counts where others use it as well.
fn on_cpu() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn report(input: &PlanningInput, name: &str) {
    let times = (0..5).filter_map(|_| {
        let before = on_cpu()?;
        black_box(plan(black_box(input)).unwrap());
        Some(on_cpu()? - before)
    });
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    if let Some(median) = times.get(2) {
        println!("{name}: {:.1} ms of processor time, median of 5", median.as_secs_f64() * 1000.0);
    }
    let planned = plan(input).unwrap();
    let moves = planned.plan.moves.len();
    let gain: f64 = planned.plan.moves.iter().map(|m| m.expected_gain - m.expected_cost).sum();
    let (asking, evaluated) = (planned.report.nodes_asking, planned.report.evaluated);
    println!(
        "{name}: {moves} moves, net {gain:.1} overload minutes, {asking} nodes ask, {evaluated} evaluated, memory at most {} MiB",
        peak_mib().map_or_else(|| "?".to_owned(), |m| m.to_string())
    );
}

fn planning(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(3));
    for (name, shards, nodes) in [("small", 1_000, 50), ("large", 10_000, 100), ("largest", 100_000, 1_000)] {
        // Made only when it is asked for: the largest takes a while and a gigabyte.
        let mut made: Option<PlanningInput> = None;
        group.bench_function(format!("{name}/{shards}x{nodes}"), |b| {
            let input = made.get_or_insert_with(|| fleet::fleet(shards, nodes, 1));
            b.iter(|| plan(black_box(input)).unwrap());
        });
        if let Some(input) = made {
            report(&input, name);
        }
    }
    group.bench_function("large, 64 moves/10000x100", |b| {
        let mut input = fleet::fleet(10_000, 100, 1);
        (input.settings.moves_per_plan, input.settings.moves_in_flight) = (64, 64);
        b.iter(|| plan(black_box(&input)).unwrap());
    });
    group.finish();
}

fn checking(c: &mut Criterion) {
    let mut group = c.benchmark_group("check");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    group.bench_function("small/1000x50", |b| {
        let input = fleet::fleet(1_000, 50, 1);
        let planned = plan(&input).unwrap().plan;
        b.iter_batched(|| planned.clone(), |p| check(&input, &p).unwrap(), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, planning, checking);
criterion_main!(benches);
