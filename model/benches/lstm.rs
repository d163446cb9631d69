//! A training step and inference of the fused LSTM; `FORESHARD_SIMD` chooses the instructions.
#![allow(missing_docs, clippy::expect_used)]

mod network;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use network::{Inference, Training};

fn training(c: &mut Criterion) {
    let mut group = c.benchmark_group("training");
    group.sample_size(10);
    for (layers, batch, threads) in [(1, 64, 1), (1, 256, 2), (2, 64, 1)] {
        let mut network = Training::new(layers, batch, threads);
        group.throughput(Throughput::Elements(batch as u64));
        let id = BenchmarkId::new(format!("{layers} layers, {threads} threads"), batch);
        group.bench_function(id, |b| b.iter(|| network.step().expect("a step")));
    }
}

fn inference(c: &mut Criterion) {
    let mut group = c.benchmark_group("inference");
    group.sample_size(10);
    for (layers, batch, threads) in [(1, 1, 1), (1, 32, 1), (1, 1000, 2), (2, 1, 1), (2, 32, 1)] {
        let mut network = Inference::new(layers, batch, threads);
        group.throughput(Throughput::Elements(batch as u64));
        let id = BenchmarkId::new(format!("{layers} layers, {threads} threads"), batch);
        group.bench_function(id, |b| b.iter(|| network.call()));
    }
}

criterion_group!(benches, training, inference);
criterion_main!(benches);
