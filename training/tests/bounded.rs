//! A history that is larger than its budget of memory: the same version, in less memory.
//!
//! One test alone, since it measures the memory of its process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use foreshard_datasets::{
    BoundedHistory, Bounds, MemoryBudget, ReadFilter, Workload, WorkloadSpec, read_history, write_history,
};
use foreshard_domain::{EvaluationReport, QuantileLevels, Step, SystemClock};
use foreshard_model::ForecastSpec;
use foreshard_training::{
    CheckpointPolicy, FitControl, GateLimits, MemberSpec, ProductSpec, Registry, TrainOptions, TrainParams,
    train_version_of,
};

const MIB: usize = 1 << 20;

/// Most memory that this process had at once since the last [`forget_peak`], in bytes.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn train(history: &BoundedHistory, root: &Path) -> PathBuf {
    let step = Step::from_ms(3_600_000).unwrap();
    let forecast = ForecastSpec {
        step,
        horizon: 6,
        season_steps: 24,
        levels: QuantileLevels::standard(),
        bounds: Bounds::Load,
        zone: "UTC".to_owned(),
    };
    let params = TrainParams {
        products: vec![ProductSpec { name: "hours".into(), forecast }],
        members: vec![MemberSpec { encoder: 0, decoder: 16, hide_quantiles: 0.5, pretrained: false }],
        steps: 60,
        batch: 32,
        origins: 1500,
        warm_up: 10,
        validate_every: 20,
        threads: 2,
        ..TrainParams::default()
    };
    let registry = Registry::open(root).unwrap();
    let render = |report: &EvaluationReport| report.title.clone();
    let options = TrainOptions {
        limits: GateLimits::default(),
        events: Default::default(),
        rivals: &[],
        clock: &SystemClock,
        render: &render,
    };
    let checkpoint = Some(CheckpointPolicy { dir: root.join("checkpoint"), every_steps: 1000 });
    let mut control = FitControl { progress: &mut |_| {}, checkpoint, stop: &|| false };
    let spec = params.check().unwrap();
    train_version_of(history, &spec, &registry, "load", &options, &mut control).unwrap().path
}

#[test]
fn f2_a_history_beyond_the_budget_gives_the_same_version_in_less_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.parquet");
    let workload = WorkloadSpec { shards: 120, days: 40, ..WorkloadSpec::default() };
    let rows = write_history(&path, Workload::new(workload).unwrap().rows()).unwrap();
    assert!(rows > 1_300_000);
    let measured = |run: &dyn Fn() -> PathBuf| {
        forget_peak();
        let before = peak();
        let version = run();
        (version, peak() - before)
    };
    let (bounded, little) = measured(&|| {
        let budget = MemoryBudget { bytes: 8 * MIB, scratch: dir.path().to_owned() };
        let history = BoundedHistory::read(&path, &ReadFilter::default(), &budget).unwrap();
        assert!(history.is_on_disk());
        train(&history, &dir.path().join("bounded"))
    });
    let (whole, much) = measured(&|| {
        let history = read_history(&path, &ReadFilter::default()).unwrap();
        train(&history.into(), &dir.path().join("whole"))
    });
    for entry in fs::read_dir(&whole).unwrap() {
        let name = entry.unwrap().file_name();
        let bytes = |version: &Path| fs::read(version.join(&name)).unwrap();
        assert!(bytes(&bounded) == bytes(&whole), "{} differs", name.display());
    }
    println!("{} MiB instead of {} MiB", little / MIB, much / MIB);
    // The rows alone take 80 MiB.
    assert!(little < 60 * MIB && little * 3 / 2 < much, "{} MiB instead of {} MiB", little / MIB, much / MIB);
}
