//! Requests at moments that were fixed before, and what came of them.

use foreshard_api::v1::forecast_service_client::ForecastServiceClient;
use foreshard_api::v1::{ForecastRequest, Metric, Product};
use foreshard_api::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::place::shard;

pub type Client = ForecastServiceClient<Channel>;

/// The threads of the client.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

pub async fn connected(endpoint: &str) -> Client {
    let channel = Channel::from_shared(endpoint.to_owned()).expect("an endpoint").tcp_nodelay(true);
    ForecastServiceClient::new(channel.connect().await.expect("a connection"))
        .max_encoding_message_size(MAX_REQUEST_BYTES)
        .max_decoding_message_size(MAX_RESPONSE_BYTES)
}

/// The next day of one metric of `n` shards, others at every call.
pub fn request(call: usize, n: usize, shards: usize) -> ForecastRequest {
    ForecastRequest {
        shard_ids: (0..n).map(|k| shard((call * n + k) % shards)).collect(),
        metrics: vec![Metric::CpuUtil.into()],
        product: Product::NextDay.into(),
        levels: Vec::new(),
    }
}

/// What became of one request.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// When it was due, from the beginning of the load.
    pub due: Duration,
    /// From then to the last byte of the answer, decoded.
    pub took: Duration,
    pub code: Code,
}

/// How requests come.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub rate: f64,
    pub lasts: Duration,
    /// Shards of one request.
    pub rows: usize,
    /// Shards that there are.
    pub shards: usize,
    pub deadline: Duration,
}

/// Sends them; an answer with a fallback in place of the network counts as an error of the benchmark.
pub fn open_loop(runtime: &Runtime, client: &Client, load: Load) -> Vec<Outcome> {
    let count = (load.rate * load.lasts.as_secs_f64()) as usize;
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let begin = Instant::now();
    for call in 0..count {
        let due = Duration::from_secs_f64(call as f64 / load.rate);
        // Sleeping on this thread is finer than the timers of the runtime.
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        let (mut client, sender) = (client.clone(), sender.clone());
        let mut request = Request::new(request(call, load.rows, load.shards));
        request.set_timeout(load.deadline);
        runtime.spawn(async move {
            let code = match client.forecast(request).await {
                Ok(answer) => {
                    let series = answer.into_inner().series;
                    assert_eq!(series.len(), load.rows, "every shard is answered");
                    let by_network = series.iter().all(|s| s.provenance.as_ref().is_some_and(|p| p.version.is_some()));
                    assert!(by_network, "the network answers");
                    Code::Ok
                }
                Err(status) => status.code(),
            };
            _ = sender.send(Outcome { due, took: begin.elapsed().saturating_sub(due), code });
        });
    }
    drop(sender);
    let mut all = Vec::with_capacity(count);
    while let Some(outcome) = outcomes.blocking_recv() {
        all.push(outcome);
    }
    assert_eq!(all.len(), count, "every request has an outcome");
    all
}

/// Answered requests a second if `callers` ask as fast as they are answered.
pub fn closed_loop(runtime: &Runtime, client: &Client, callers: usize, load: Load) -> f64 {
    let (calls, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (mut client, calls) = (client.clone(), Arc::clone(&calls));
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let call = calls.fetch_add(1, Ordering::Relaxed) as usize;
                    let answer = client.forecast(request(call, load.rows, load.shards)).await;
                    answered.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
                }
            })
        })
        .collect();
    std::thread::sleep(load.lasts);
    stop.store(true, Ordering::Relaxed);
    let rate = answered.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
    tasks.into_iter().for_each(|task| runtime.block_on(task).expect("a caller"));
    rate
}

/// Quantile of durations in milliseconds, exact.
pub fn quantile(outcomes: &[Outcome], code: Code, q: f64) -> f64 {
    let mut took: Vec<Duration> = outcomes.iter().filter(|o| o.code == code).map(|o| o.took).collect();
    took.sort_unstable();
    let i = ((took.len() as f64 * q).ceil() as usize).saturating_sub(1);
    took.get(i).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
}

pub fn count(outcomes: &[Outcome], code: Code) -> usize {
    outcomes.iter().filter(|o| o.code == code).count()
}
