//! The parts of the benchmark.

use foreshard_api::v1::ForecastRequest;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::{Code, Request};

use crate::Options;
use crate::floor::floor;
use crate::load::{Client, Load, Outcome, closed_loop, connected, count, open_loop, quantile, request, runtime};
use crate::place::{Sizes, VERSIONS, label, prepared};
use crate::server::Server;

/// Long enough that nothing expires where nothing should.
const PATIENT: Duration = Duration::from_secs(30);

fn begun(options: &Options, sizes: Sizes) -> (std::path::PathBuf, Server, Runtime, Client) {
    let place = prepared(sizes);
    label(&place, 1);
    let server = Server::start(&place, sizes.days, options.get("cache", 0));
    let runtime = runtime();
    let client = runtime.block_on(connected(&server.endpoint));
    (place, server, runtime, client)
}

fn steady(options: &Options, sizes: Sizes) -> Load {
    Load {
        rate: options.get("rate", 300) as f64,
        lasts: Duration::from_secs(options.get("seconds", 20) as u64),
        rows: 1,
        shards: sizes.shards,
        deadline: PATIENT,
    }
}

fn warm(runtime: &Runtime, client: &Client, load: Load) {
    open_loop(runtime, client, Load { lasts: Duration::from_secs(2), rate: load.rate.min(300.0), ..load });
}

fn told(name: &str, outcomes: &[Outcome]) {
    let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|q| quantile(outcomes, Code::Ok, q));
    let failed = outcomes.len() - count(outcomes, Code::Ok);
    println!(
        "{name}: p50 {p50:.2} ms, p90 {p90:.2}, p99 {p99:.2}, max {most:.1}; {} requests, {failed} failed",
        outcomes.len()
    );
}

pub fn latency(options: &Options) {
    let sizes = Sizes::new(options, 10_000);
    let (p50, p99, many) = floor(sizes);
    println!("floor, the network alone: p50 {p50:.2} ms, p99 {p99:.2}; {many:.0} series/s in batches of 512");
    let (_, server, runtime, client) = begun(options, sizes);
    let load = steady(options, sizes);
    warm(&runtime, &client, load);
    for run in 1..=options.get("runs", 5) {
        told(&format!("latency at {}/s, run {run}", load.rate), &open_loop(&runtime, &client, load));
    }
    println!("memory: {:.0} MiB", server.memory().1);
}

pub fn stream(options: &Options) {
    let sizes = Sizes::new(options, 100_000);
    let (_, _, many) = floor(sizes);
    println!(
        "floor, the network alone: {:.1} s for {} series",
        sizes.shards as f64 / many,
        sizes.shards * sizes.metrics
    );
    let (_, server, runtime, mut client) = begun(options, sizes);
    let (now, most) = server.memory();
    println!(
        "context of {sizes:?}: read in {:.1} s; {now:.0} MiB now, {most:.0} at most",
        server.ready_after.as_secs_f64()
    );
    let ask = ForecastRequest { shard_ids: Vec::new(), metrics: Vec::new(), ..request(0, 1, 1) };
    let begin = Instant::now();
    let (parts, series) = runtime.block_on(async {
        let mut request = Request::new(ask);
        request.set_timeout(Duration::from_secs(600));
        let mut stream = client.forecast_stream(request).await.expect("an answer").into_inner();
        let (mut parts, mut series) = (0, 0);
        while let Some(part) = stream.message().await.expect("a part") {
            parts += 1;
            series += part.series.len();
        }
        (parts, series)
    });
    let (took, (now, most)) = (begin.elapsed().as_secs_f64(), server.memory());
    assert_eq!(series, sizes.shards * sizes.metrics, "every series is answered");
    println!("stream of {series} series in {parts} parts: {took:.1} s; {now:.0} MiB now, {most:.0} at most");
}

/// Exchanges the champion `times` over `lasts`.
fn exchange(place: &Path, lasts: Duration, times: u64, stop: &AtomicBool) {
    let begin = Instant::now();
    for i in 1..=times {
        let due = lasts.mul_f64(i as f64 / (times + 1) as f64);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        if stop.load(Ordering::Relaxed) {
            return;
        }
        label(place, 1 + i % VERSIONS);
    }
}

pub fn reload(options: &Options) {
    let sizes = Sizes::new(options, 10_000);
    let (place, server, runtime, client) = begun(options, sizes);
    let load = steady(options, sizes);
    warm(&runtime, &client, load);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut failed = 0;
    for run in 1..=options.get("runs", 5) {
        let still = open_loop(&runtime, &client, load);
        told(&format!("run {run}, no reload"), &still);
        let before = server.metric("foreshard_reloads_total");
        let stop = Arc::new(AtomicBool::new(false));
        let exchanging = std::thread::spawn({
            let (place, lasts, stop) = (place.clone(), load.lasts, Arc::clone(&stop));
            let times = options.get("reloads", 50) as u64;
            move || exchange(&place, lasts, times, &stop)
        });
        let moved = open_loop(&runtime, &client, load);
        stop.store(true, Ordering::Relaxed);
        exchanging.join().expect("labels");
        told(&format!("run {run}, {} reloads", server.metric("foreshard_reloads_total") - before), &moved);
        failed += [&still, &moved].map(|all| all.len() - count(all, Code::Ok)).iter().sum::<usize>();
        without.push(quantile(&still, Code::Ok, 0.99));
        with.push(quantile(&moved, Code::Ok, 0.99));
    }
    let median = |all: &mut Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (without, with) = (median(&mut without), median(&mut with));
    let memory = server.memory();
    println!("median p99: {without:.2} ms without, {with:.2} with: {:.2} times; {failed} failed", with / without);
    println!("memory: {:.0} MiB now, {:.0} at most", memory.0, memory.1);
}

pub fn overload(options: &Options) {
    let sizes = Sizes::new(options, 10_000);
    let (_, server, runtime, client) = begun(options, sizes);
    let lasts = Duration::from_secs(options.get("seconds", 15) as u64);
    let rows = options.get("rows", 64);
    let load = Load { rate: 0.0, lasts, rows, shards: sizes.shards, deadline: Duration::from_secs(2) };
    closed_loop(&runtime, &client, 8, Load { lasts: Duration::from_secs(3), ..load });
    let most = closed_loop(&runtime, &client, 16, load);
    let (before, _) = server.memory();
    println!("most: {most:.1} requests/s of {rows} series ({:.0} series/s); {before:.0} MiB", most * rows as f64);
    let times = options.get("times", 4) as f64;
    let all = open_loop(&runtime, &client, Load { rate: times * most, ..load });
    let answered = all.iter().filter(|o| o.code == Code::Ok && o.due + o.took <= lasts);
    let goodput = answered.count() as f64 / lasts.as_secs_f64();
    println!("{times} times that: {goodput:.1} answered/s within the time ({:.2} of the most)", goodput / most);
    told("answered", &all);
    let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|q| quantile(&all, Code::ResourceExhausted, q));
    let refused = count(&all, Code::ResourceExhausted);
    println!("refused: {refused}, after p50 {p50:.2} ms, p99 {p99:.2}, max {worst:.1}");
    let other = all.len() - refused - count(&all, Code::Ok);
    let (now, peak) = server.memory();
    println!("neither: {other}; {now:.0} MiB now, {peak:.0} at most");
    let after = open_loop(&runtime, &client, Load { rate: most / 2.0, lasts: Duration::from_secs(5), ..load });
    let bad = after.iter().filter(|o| o.code != Code::Ok || o.took > Duration::from_millis(500));
    let last = bad.map(|o| o.due).max().unwrap_or_default();
    told("half of it right after", &after);
    println!("the last of those that was refused or took over 500 ms came after {:.2} s", last.as_secs_f64());
}

pub fn start(options: &Options) {
    let sizes = Sizes::new(options, 10_000);
    let place = prepared(sizes);
    label(&place, 1);
    for run in 1..=options.get("runs", 5) {
        let server = Server::start(&place, sizes.days, options.get("cache", 0));
        let ready = server.ready_after.as_secs_f64();
        println!("start {run} with {sizes:?}: ready after {ready:.2} s; {:.0} MiB at most", server.memory().1);
    }
}
