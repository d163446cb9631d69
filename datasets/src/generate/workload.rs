//! The workload itself: what each shard does at any moment.

use foreshard_domain::{Observation, ShardId, Timestamp};

use super::campaign::Rises;
use super::noise::Stream;
use super::shape::{Rhythm, plateau};
use super::spec::{SpecProblem, WorkloadError, WorkloadSpec};
use crate::{Calendar, CommunicationEdge, LoadEvent};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
const GIB: f64 = 1_073_741_824.0;
/// Transactions per second of a shard of mean size.
const MEAN_RATE: f64 = 150.0;
/// How far beyond the history campaigns are announced.
const ANNOUNCED_DAYS: i64 = 28;

/// Customers whose shards rise and fall together.
#[derive(Debug)]
struct Tenant {
    rhythm: Rhythm,
    campaigns: Rises,
    stream: Stream,
}

/// What does not change about a shard.
#[derive(Debug)]
struct Shard {
    id: ShardId,
    tenant: usize,
    stream: Stream,
    bursts: Rises,
    /// Transactions per second at the start, mean over a week.
    rate: f64,
    /// Growth of load in 30 days.
    growth: f64,
    cpu_per_txn: f64,
    io_per_txn: f64,
    bytes_per_txn: f64,
    /// Stored bytes at the start.
    data_bytes: f64,
    /// Memory that holds its hot data at the start, as load.
    memory: f64,
    /// Latency without load.
    latency_ms: f64,
    /// Minute of the day (wall clock) of the nightly backup, which reads and uses some CPU.
    backup_minute: f64,
}

/// A made-up workload. The same specification gives the same values; the value at a moment does not depend on what was
/// asked before, so that a live day is the continuation of a generated history.
#[derive(Debug)]
pub struct Workload {
    spec: WorkloadSpec,
    calendar: Calendar,
    tenants: Vec<Tenant>,
    shards: Vec<Shard>,
}

impl Workload {
    /// Checks a specification and lays out tenants and shards.
    ///
    /// # Errors
    /// [`WorkloadError`] with everything that is wrong.
    pub fn new(spec: WorkloadSpec) -> Result<Self, WorkloadError> {
        let problems = spec.problems();
        if !problems.is_empty() {
            return Err(WorkloadError::Spec(problems));
        }
        let calendar = Calendar::new(&spec.zone, Vec::new()).map_err(WorkloadError::Calendar)?;
        let root = Stream::new(spec.seed);
        let tenants = (0..spec.tenants)
            .map(|k| {
                let stream = root.of("tenant", k);
                let campaigns = Rises::campaigns(stream.of("campaign", 0), spec.campaigns_per_month);
                Tenant { rhythm: Rhythm::of_tenant(stream, k, spec.tenants), campaigns, stream }
            })
            .collect();
        let sizes = mean_one((0..spec.shards).map(|i| (0.45 * root.of("size", i).normal(0)).exp()).collect());
        let stored = mean_one((0..spec.shards).map(|i| (0.4 * root.of("data", i).normal(0)).exp()).collect());
        let shards = sizes.iter().zip(&stored).enumerate().map(|(i, (size, data))| shard(&spec, root, i, *size, *data));
        let shards = shards.collect::<Result<_, _>>().map_err(|problem| WorkloadError::Spec(vec![problem]))?;
        Ok(Self { spec, calendar, tenants, shards })
    }

    /// What it was made from.
    pub fn spec(&self) -> &WorkloadSpec {
        &self.spec
    }

    /// The shards, in order; place = index for [`Self::at`].
    pub fn shard_ids(&self) -> Vec<ShardId> {
        self.shards.iter().map(|s| s.id.clone()).collect()
    }

    /// The tenant that a shard belongs to.
    pub fn tenant_of(&self, shard: usize) -> usize {
        self.pick(shard).tenant
    }

    /// First time after the history: where a live continuation starts.
    pub fn end(&self) -> Timestamp {
        self.spec.start.plus_ms(i64::from(self.spec.days) * DAY_MS)
    }

    /// The history: rows of all shards from the start on, by shard, then time, with its gaps.
    pub fn rows(&self) -> impl Iterator<Item = Observation> {
        let steps = self.spec.step.count_in(i64::from(self.spec.days) * DAY_MS);
        (0..self.shards.len()).flat_map(move |shard| {
            (0..steps).filter_map(move |k| {
                let ts = self.spec.start.plus_steps(k, self.spec.step);
                (!self.in_gap(shard, ts)).then(|| self.at(shard, ts))
            })
        })
    }

    /// What a shard does at any time, also before and after the history, without gaps. `shard` counts modulo the number of
    /// shards.
    pub fn at(&self, shard: usize, ts: Timestamp) -> Observation {
        let shard = self.pick(shard);
        let days = ts.since_ms(self.spec.start) as f64 / DAY_MS as f64;
        let point = self.calendar.at(ts);
        let minute = f64::from(point.minute_of_day) + ts.as_ms().rem_euclid(MINUTE_MS) as f64 / MINUTE_MS as f64;
        let rate = self.rate(shard, ts, days, self.tenant(shard).rhythm.level(point, minute));
        // What was hot an hour and a half ago is still cached.
        let earlier = ts.plus_ms(-90 * MINUTE_MS);
        let cached = self.tenant(shard).rhythm.level(self.calendar.at(earlier), (minute - 90.0).rem_euclid(1440.0));
        let backup = Self::backup(shard, minute);
        let jitter = |purpose: &str, deviation: f64| {
            let i = ts.as_ms().div_euclid(MINUTE_MS);
            (self.spec.noise * deviation * shard.stream.of(purpose, 0).normal(i)).exp()
        };
        let cpu =
            (0.25 + rate * shard.cpu_per_txn) * jitter("cpu", 0.03) + 0.12 * shard.rate * shard.cpu_per_txn * backup;
        let data_bytes = shard.data_bytes * grown(shard.growth.max(0.0) + 0.01, days);
        let write_bytes = rate * shard.bytes_per_txn * jitter("write", 0.08);
        // Data that outgrows its memory is read from disk more often.
        let misses = (data_bytes / shard.data_bytes).sqrt();
        let io = rate * shard.io_per_txn * misses * jitter("io", 0.06) + 0.7 * shard.rate * shard.io_per_txn * backup;
        let memory = shard.memory * misses * (0.75 + 0.2 * cached.min(3.0)) * jitter("memory", 0.01);
        // Waiting as in a queue whose utilisation is the load over five times the usual one.
        let busy = (cpu / (5.0 * shard.rate * shard.cpu_per_txn)).clamp(0.0, 0.9);
        let latency = shard.latency_ms * (1.0 + busy / (1.0 - busy)) * jitter("latency", 0.08);
        Observation {
            cpu_util: Some(cpu),
            mem_util: Some(memory),
            io_ops: Some(io),
            latency_ms: Some(latency),
            txn_rate: Some(rate),
            data_bytes: Some(data_bytes.round()),
            write_bytes_per_s: Some(write_bytes),
            ..Observation::empty(shard.id.clone(), ts)
        }
    }

    /// Transactions per second: rhythm, growth, campaigns and bursts, times noise that the tenant's shards share and
    /// noise of the shard's own.
    fn rate(&self, shard: &Shard, ts: Timestamp, days: f64, level: f64) -> f64 {
        let tenant = self.tenant(shard);
        let shared = 0.12 * tenant.stream.of("day", 0).smooth(ts, 60 * HOUR_MS)
            + 0.13 * tenant.stream.of("hours", 0).smooth(ts, 5 * HOUR_MS)
            + 0.06 * tenant.stream.of("hour", 0).smooth(ts, HOUR_MS);
        let own = 0.13 * shard.stream.of("hours", 0).smooth(ts, 4 * HOUR_MS)
            + 0.09 * shard.stream.of("minutes", 0).smooth(ts, 25 * MINUTE_MS)
            + 0.08 * shard.stream.of("rate", 0).normal(ts.as_ms().div_euclid(MINUTE_MS));
        let raised = (1.0 + tenant.campaigns.at(ts)) * (1.0 + shard.bursts.at(ts));
        shard.rate * grown(shard.growth, days) * level * raised * (self.spec.noise * (shared + own)).exp()
    }

    /// How far the nightly backup is at work, 0 to 1.
    fn backup(shard: &Shard, minute: f64) -> f64 {
        let since = (minute - shard.backup_minute).rem_euclid(1440.0);
        plateau(since / 40.0, 0.1, 0.2)
    }

    fn pick(&self, shard: usize) -> &Shard {
        &self.shards[shard % self.shards.len()]
    }

    fn tenant(&self, shard: &Shard) -> &Tenant {
        &self.tenants[shard.tenant % self.tenants.len()]
    }

    fn in_gap(&self, shard: usize, ts: Timestamp) -> bool {
        let half = self.spec.gap_share / 2.0;
        if half <= 0.0 {
            return false;
        }
        let stream = self.pick(shard).stream.of("gap", 0);
        if stream.uniform(ts.as_ms().div_euclid(self.spec.step.as_ms())) < half {
            return true;
        }
        // At most one outage in six hours, 75 minutes long on average, wholly inside them.
        let span = 6 * HOUR_MS;
        let outages = stream.of("outage", 0);
        let place = ts.as_ms().div_euclid(span).wrapping_mul(4);
        if outages.uniform(place) >= (half * 360.0 / 75.0).min(1.0) {
            return false;
        }
        let minutes = outages.between(place + 1, 30.0, 120.0);
        let begin = outages.between(place + 2, 0.0, 360.0 - minutes);
        let now = ts.as_ms().rem_euclid(span) as f64 / MINUTE_MS as f64;
        (begin..begin + minutes).contains(&now)
    }

    /// The campaigns of the history and of four weeks after it, one entry for each shard that they touch.
    pub fn events(&self) -> Vec<LoadEvent> {
        let to = self.end().plus_ms(ANNOUNCED_DAYS * DAY_MS);
        let mut events: Vec<LoadEvent> = Vec::new();
        for shard in &self.shards {
            for rise in self.tenant(shard).campaigns.between(self.spec.start, to) {
                let (start, end, name) = (rise.start, rise.end, "campaign".to_owned());
                events.push(LoadEvent { start, end, name, shard: Some(shard.id.clone()) });
            }
        }
        events.sort_by(|a, b| (a.start, &a.shard).cmp(&(b.start, &b.shard)));
        events
    }

    /// Who talks to whom: the shards of a tenant in a ring, each with traffic in proportion to the smaller of the two.
    pub fn communication(&self) -> Vec<CommunicationEdge> {
        let mut edges = Vec::new();
        for (i, a) in self.shards.iter().enumerate() {
            let same = |s: &&Shard| s.tenant == a.tenant;
            let after = self.shards.get(i + 1..).unwrap_or_default().iter().find(same);
            let Some(b) = after else { continue };
            let share = a.stream.between(-7, 0.1, 0.5);
            let bytes_per_s = a.rate.min(b.rate) * 2048.0 * share;
            edges.push(CommunicationEdge { shard_a: a.id.clone(), shard_b: b.id.clone(), bytes_per_s });
        }
        edges
    }
}

/// Factor of growth after some days at a share in 30 days.
fn grown(share: f64, days: f64) -> f64 {
    (days / 30.0 * share.ln_1p()).exp()
}

fn mean_one(values: Vec<f64>) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    values.into_iter().map(|v| v / mean).collect()
}

fn shard(spec: &WorkloadSpec, root: Stream, i: usize, size: f64, data: f64) -> Result<Shard, SpecProblem> {
    let stream = root.of("shard", i);
    let draw = |index: i64, low: f64, high: f64| stream.between(index, low, high);
    let id = ShardId::new(format!("shard-{i:05}"));
    let rate = MEAN_RATE * size * draw(-1, 0.7, 1.3);
    Ok(Shard {
        id: id.map_err(|e| SpecProblem { field: "shards", what: e.to_string() })?,
        tenant: i % spec.tenants.max(1),
        stream,
        bursts: Rises::bursts(stream.of("burst", 0), spec.bursts_per_week),
        rate,
        growth: (spec.growth * draw(-2, 0.0, 2.0)).max(-0.9),
        cpu_per_txn: (spec.mean_cpu * size - 0.25).max(0.05 * spec.mean_cpu * size) / rate,
        io_per_txn: draw(-3, 1.5, 4.0),
        bytes_per_txn: draw(-4, 300.0, 1500.0),
        data_bytes: spec.data_gib * GIB * data,
        memory: spec.mean_cpu * (0.6 * size + 0.4 * data) * draw(-5, 0.8, 1.2),
        latency_ms: draw(-6, 1.5, 5.0),
        backup_minute: draw(-8, 0.5 * 60.0, 5.0 * 60.0),
    })
}
