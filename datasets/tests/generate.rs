//! Made-up workloads: deterministic, continuable, coherent, forecastable but not too well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_datasets::{History, Workload, WorkloadError, WorkloadSpec, inspect};
use foreshard_domain::{Metric, Observation, Step, Timestamp};

fn history(spec: WorkloadSpec) -> History {
    History::from_observations(Workload::new(spec).unwrap().rows()).unwrap()
}

fn small(seed: u64) -> WorkloadSpec {
    WorkloadSpec { shards: 8, tenants: 4, days: 28, seed, ..WorkloadSpec::default() }
}

fn values(history: &History, shard: usize, metric: Metric) -> Vec<f64> {
    let shard = history.shards().nth(shard).unwrap();
    history.samples(shard, metric).map(|(_, v)| v).collect()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().min(b.len()) as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(x, y)| f(x - ma, y - mb)).sum::<f64>();
    sum(&|x, y| x * y) / (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt()
}

#[test]
fn same_seed_same_rows_and_the_live_day_continues_them() {
    let spec = WorkloadSpec { days: 3, ..small(5) };
    let workload = Workload::new(spec.clone()).unwrap();
    let rows: Vec<Observation> = workload.rows().collect();
    assert_eq!(rows, Workload::new(spec.clone()).unwrap().rows().collect::<Vec<_>>());
    assert_ne!(rows, Workload::new(WorkloadSpec { seed: 6, ..spec.clone() }).unwrap().rows().collect::<Vec<_>>());
    assert!(rows.windows(2).all(|p| (&p[0].shard, p[0].ts) < (&p[1].shard, p[1].ts)));
    // A longer history begins like the shorter one: what comes later is what `at` told beforehand.
    let longer = Workload::new(WorkloadSpec { days: 5, ..spec }).unwrap();
    let ids = workload.shard_ids();
    let later: Vec<Observation> = longer.rows().filter(|r| r.ts >= workload.end()).collect();
    assert!(later.len() > 2 * 288 * 7);
    for row in later {
        let shard = ids.iter().position(|id| *id == row.shard).unwrap();
        assert_eq!(workload.at(shard, row.ts), row);
    }
}

#[test]
fn values_are_possible_and_sized_as_asked() {
    let spec = WorkloadSpec { days: 14, growth: 0.0, ..WorkloadSpec::default() };
    let workload = Workload::new(spec.clone()).unwrap();
    let history = History::from_observations(workload.rows()).unwrap();
    let report = inspect(&history);
    assert_eq!((report.shards, report.native_step_ms, report.constant_shards), (24, Some(300_000), 0));
    assert!((0.996..0.9995).contains(&report.coverage), "{}", report.coverage);
    assert!(report.longest_gap_ms >= 1_800_000);
    for metric in [Metric::CpuUtil, Metric::MemUtil, Metric::IoOps, Metric::LatencyMs, Metric::TxnRate] {
        let m = &report.metrics[&metric];
        assert_eq!((m.shards, m.missing, m.below_bound), (24, 0, 0), "{metric}");
        assert!(m.min > 0.0 && m.max < 60.0 * m.mean, "{metric} {m:?}");
    }
    let cpu = report.metrics[&Metric::CpuUtil].mean;
    assert!((cpu / spec.mean_cpu - 1.0).abs() < 0.2, "{cpu}");
    let stored = (0..24).map(|s| workload.at(s, spec.start).data_bytes.unwrap()).sum::<f64>() / 24.0;
    assert!((stored / (20.0 * 1_073_741_824.0) - 1.0).abs() < 1e-6, "{stored}");
}

#[test]
fn metrics_are_coherent() {
    let history = history(small(2));
    for shard in 0..8 {
        let of = |metric| values(&history, shard, metric);
        let (cpu, rate) = (of(Metric::CpuUtil), of(Metric::TxnRate));
        assert!(correlation(&cpu, &rate) > 0.95);
        assert!(correlation(&of(Metric::IoOps), &rate) > 0.5);
        assert!(correlation(&of(Metric::LatencyMs), &cpu) > 0.7);
        assert!(correlation(&of(Metric::MemUtil), &rate) > 0.4);
        let id = history.shards().nth(shard).unwrap();
        let rows: Vec<Observation> = history.observations().filter(|r| r.shard == *id).collect();
        assert!(rows.windows(2).all(|p| p[0].data_bytes <= p[1].data_bytes));
        assert!(rows[0].data_bytes < rows[rows.len() - 1].data_bytes);
    }
}

#[test]
fn shards_of_a_tenant_move_together_beyond_their_rhythm() {
    let history = history(WorkloadSpec { gap_share: 0.0, ..small(3) });
    // What is left after each time of day's mean is taken away.
    let residual = |shard: usize| {
        let v = values(&history, shard, Metric::TxnRate);
        let days = v.len() / 288;
        let mean = |i: usize| (0..days).map(|d| v[d * 288 + i % 288]).sum::<f64>() / days as f64;
        let means: Vec<f64> = (0..288).map(mean).collect();
        v.iter().enumerate().map(|(i, x)| x / means[i % 288] - 1.0).collect::<Vec<f64>>()
    };
    let (mut same, mut other) = (0.0, 0.0);
    for k in 0..4 {
        same += correlation(&residual(k), &residual(k + 4)) / 4.0;
        other += correlation(&residual(k), &residual((k + 1) % 4 + 4)) / 4.0;
    }
    assert!(same > 0.3 && same > other + 0.15, "same tenant {same}, others {other}");
}

#[test]
fn forecastable_but_noisy() {
    for seed in [1, 2, 3] {
        let report = inspect(&history(WorkloadSpec { seed, shards: 12, ..WorkloadSpec::default() }));
        for metric in [Metric::CpuUtil, Metric::TxnRate] {
            let m = &report.metrics[&metric];
            let (daily, lag) = (m.daily_strength.unwrap(), m.lag_1.unwrap());
            println!("seed {seed} {metric}: daily {daily:.3} weekly {:?} lag 1 {lag:.3}", m.weekly_strength);
            assert!((0.55..0.85).contains(&daily), "seed {seed} {metric}: {daily}");
            assert!((0.9..0.995).contains(&lag), "seed {seed} {metric}: {lag}");
        }
    }
}

#[test]
fn hot_spot_wanders_over_tenants_in_a_day() {
    let workload = Workload::new(WorkloadSpec { noise: 0.0, bursts_per_week: 0.0, ..WorkloadSpec::default() }).unwrap();
    let hottest = |hour: i64| {
        let ts = workload.spec().start.plus_ms(hour * 3_600_000);
        let load = |tenant: usize| {
            let of_tenant = (0..24).filter(|s| workload.tenant_of(*s) == tenant);
            of_tenant.map(|s| workload.at(s, ts).cpu_util.unwrap()).sum::<f64>()
        };
        (0..6).max_by(|a, b| load(*a).total_cmp(&load(*b))).unwrap()
    };
    let monday: Vec<usize> = (0..24).map(hottest).collect();
    let distinct: std::collections::BTreeSet<_> = monday.iter().collect();
    assert!(distinct.len() >= 3, "{monday:?}");
}

#[test]
fn campaigns_are_announced_and_act() {
    let quiet = |campaigns_per_month| WorkloadSpec { campaigns_per_month, ..small(4) };
    let (with, without) = (Workload::new(quiet(2.0)).unwrap(), Workload::new(quiet(0.0)).unwrap());
    let events = with.events();
    assert!(!events.is_empty() && without.events().is_empty());
    assert!(events.iter().any(|e| e.start > with.end()), "none announced for the time after the history");
    let ids = with.shard_ids();
    for event in &events {
        let shard = ids.iter().position(|id| Some(id) == event.shard.as_ref()).unwrap();
        let middle = event.start.plus_ms(event.end.since_ms(event.start) / 2);
        let rate = |w: &Workload| w.at(shard, middle).txn_rate.unwrap();
        assert!(rate(&with) > 1.2 * rate(&without));
    }
    assert!(with.communication().iter().all(|e| e.bytes_per_s > 0.0 && e.shard_a != e.shard_b));
}

#[test]
fn everything_wrong_is_told_at_once() {
    let spec = WorkloadSpec {
        shards: 0,
        step: Step::from_ms(7 * 60_000).unwrap(),
        data_gib: f64::NAN,
        gap_share: 2.0,
        start: Timestamp::from_ms(i64::MAX),
        ..WorkloadSpec::default()
    };
    let Err(WorkloadError::Spec(problems)) = Workload::new(spec) else { panic!("accepted") };
    let fields: Vec<_> = problems.iter().map(|p| p.field).collect();
    assert_eq!(fields, ["shards", "tenants", "step", "start", "data_gib", "gap_share"]);
    let lost = Workload::new(WorkloadSpec { zone: "Nowhere".into(), ..WorkloadSpec::default() });
    assert!(matches!(lost, Err(WorkloadError::Calendar(_))));
}
