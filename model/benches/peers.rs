//! Our side of `scripts/bench-peers lstm`: reads `train|infer LAYERS|shipped BATCH THREADS REPEATS wall|cpu` lines, answers each
//! with the milliseconds of every repeat, so that the script can measure us and our rivals in alternation.
#![allow(missing_docs, clippy::expect_used)]

mod network;
mod shipped;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use network::{Inference, Training};
use shipped::{ShippedInference, ShippedTraining};

enum Side {
    Training(Training),
    Inference(Inference),
    ShippedTraining(ShippedTraining),
    ShippedInference(ShippedInference),
}

/// Milliseconds on the wall's clock, or those that this process computed: work, whoever else uses the machine.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn milliseconds(side: &mut Side, repeats: usize, cpu: bool) -> Vec<String> {
    let start = std::time::Instant::now();
    let now = || {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        if cpu { spent.tv_sec as f64 + spent.tv_nsec as f64 * 1e-9 } else { start.elapsed().as_secs_f64() }
    };
    let mut once = || {
        let before = now();
        let _ = match side {
            Side::Training(network) => std::hint::black_box(network.step().expect("a step")),
            Side::Inference(network) => std::hint::black_box(network.call()),
            Side::ShippedTraining(network) => std::hint::black_box(network.step().expect("a step")),
            Side::ShippedInference(network) => std::hint::black_box(network.call()),
        };
        format!("{:.4}", (now() - before) * 1e3)
    };
    (0..repeats).map(|_| once()).collect()
}

fn main() {
    // cargo passes flags such as --bench; without lines on standard input there is nothing to do.
    let mut sides: BTreeMap<String, Side> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words[i].parse::<usize>().expect("a number");
        let key = words[..4].join(" ");
        let side = sides.entry(key).or_insert_with(|| match (words[0], words[1]) {
            ("train", "shipped") => Side::ShippedTraining(ShippedTraining::new(number(2), number(3))),
            (_, "shipped") => Side::ShippedInference(ShippedInference::new(number(2), number(3))),
            ("train", _) => Side::Training(Training::new(number(1), number(2), number(3))),
            _ => Side::Inference(Inference::new(number(1), number(2), number(3))),
        });
        println!("{}", milliseconds(side, number(4), words[5] == "cpu").join(" "));
        std::io::stdout().flush().expect("standard output");
    }
}
