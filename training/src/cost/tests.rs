use super::*;
use foreshard_domain::{Consistency, MigrationId, NodeId, PlanId, ShardId, Timestamp};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const MIB: f64 = 1_048_576.0;

fn prior() -> CostModel {
    CostModel::prior(60.0 * MIB)
}

/// A move of `mib`, with the given write rate and loads, that took `seconds` and fenced for `fence_ms`.
pub(crate) fn outcome(i: u64, mib: f64, kib_s: f64, cpu: (f64, f64), seconds: f64, fence_ms: f64) -> Outcome {
    let features =
        MoveFeatures { data_bytes: mib * MIB, write_bytes_per_s: kib_s * 1024.0, source_cpu: cpu.0, target_cpu: cpu.1 };
    let start = Timestamp::from_ms(i64::try_from(i).unwrap() * 3_600_000);
    Outcome {
        migration: MigrationId::new(format!("m{i}")).unwrap(),
        plan: PlanId::new("p").unwrap(),
        shard: ShardId::new("s").unwrap(),
        source: NodeId::new("n1").unwrap(),
        target: NodeId::new("n2").unwrap(),
        backend: BackendKind::Embedded,
        consistency: Consistency::Strict,
        planned_at: start,
        started_at: start,
        ended_at: start.plus_ms((seconds * 1000.0) as i64),
        hour: 0,
        data_bytes: features.data_bytes,
        rows: 1,
        write_bytes_per_s: features.write_bytes_per_s,
        source_cpu: cpu.0,
        target_cpu: cpu.1,
        predicted: prior().predict(&features),
        actual_duration_ms: (seconds * 1000.0) as i64,
        actual_fence_ms: fence_ms,
        actual_extra_share: PerResource { cpu: Some(0.2), memory: None, io: Some(f64::NAN) },
        result: OutcomeResult::Done,
        why: None,
    }
}

/// Moves whose true law is known: seconds = .05 MiB^.9 (1 + KiB/s)^.1 e^(1.2 source) with noise, fence = 20 ms.
pub(crate) fn synthetic(n: u64, seed: u64, noise: f64) -> Vec<Outcome> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut one = |i: u64| {
        let (mib, kib) = (rng.random_range(64.0..50_000.0f64), rng.random_range(1.0..4_000.0f64));
        let cpu = (rng.random_range(0.2..1.1), rng.random_range(0.1..0.7));
        let ln =
            0.05f64.ln() + 0.9 * mib.ln_1p() + 0.1 * kib.ln_1p() + 1.2 * cpu.0 + noise * rng.random_range(-1.0..1.0);
        outcome(i, mib, kib, cpu, ln.exp(), 20.0)
    };
    (0..n).map(&mut one).collect()
}

#[test]
fn hundreds_of_outcomes_recover_the_law() {
    let model = fit_cost_model(&synthetic(400, 7, 0.2), &prior(), 3).unwrap();
    let t = &model.duration_s;
    assert_eq!((model.number, model.outcomes), (3, 400));
    assert!((t.ln_mib - 0.9).abs() < 0.03, "{t:?}");
    assert!((t.ln_write_kib - 0.1).abs() < 0.03, "{t:?}");
    assert!((t.source_cpu - 1.2).abs() < 0.15, "{t:?}");
    assert!(t.target_cpu.abs() < 0.2, "{t:?}");
    assert!((t.sigma - 0.2 / 3f64.sqrt()).abs() < 0.05, "{t:?}");
    let p = model.predict(&features(&outcome(0, 1000.0, 100.0, (0.5, 0.5), 1.0, 1.0)));
    assert!((p.fence_ms - 20.0).abs() < 1.0, "{p:?}");
    assert!((model.extra_share.cpu - 0.2).abs() < 0.01 && model.extra_share.io == 0.15, "{:?}", model.extra_share);
}

#[test]
fn one_outcome_moves_it_a_little_and_a_hundred_rule_it() {
    // Ten times as slow as the prior thinks, all of one size and load.
    let slow: Vec<Outcome> = (0..100).map(|i| outcome(i, 600.0, 10.0, (0.5, 0.5), 100.0, 50.0)).collect();
    let seconds = |outcomes: &[Outcome]| {
        let model = fit_cost_model(outcomes, &prior(), 1).unwrap();
        model.predict(&features(&slow[0])).duration_ms as f64 / 1000.0
    };
    let (one, ten, hundred) = (seconds(&slow[..1]), seconds(&slow[..10]), seconds(&slow));
    assert!(one > 10.5 && one < 20.0, "{one}");
    assert!(ten > 40.0 && ten < 80.0, "{ten}");
    assert!(hundred > 88.0 && hundred <= 100.0, "{hundred}");
    // Nothing was learned about size, so the slope stays where it was.
    let model = fit_cost_model(&slow, &prior(), 1).unwrap();
    assert!((model.duration_s.ln_mib - 1.0).abs() < 1e-6, "{:?}", model.duration_s);
}

#[test]
fn what_failed_or_is_no_number_does_not_count() {
    let good = synthetic(20, 3, 0.1);
    let clean = fit_cost_model(&good, &prior(), 1).unwrap();
    let mut dirty = good.clone();
    let spoilt: [fn(&mut Outcome); 6] = [
        |o| o.result = OutcomeResult::Failed,
        |o| o.result = OutcomeResult::RolledBack,
        |o| o.actual_duration_ms = 0,
        |o| o.actual_duration_ms = -5,
        |o| o.data_bytes = f64::NAN,
        |o| o.source_cpu = f64::INFINITY,
    ];
    for spoil in spoilt {
        let mut o = good[0].clone();
        o.actual_duration_ms = 999_999_999;
        spoil(&mut o);
        dirty.push(o);
    }
    assert_eq!(fit_cost_model(&dirty, &prior(), 1).unwrap(), clean);
    let mut unfenced = good.clone();
    unfenced.iter_mut().for_each(|o| o.actual_fence_ms = 0.0);
    assert_eq!(fit_cost_model(&unfenced, &prior(), 1).unwrap().fence_ms, prior().fence_ms);
    let only_bad = &dirty[20..];
    assert!(matches!(fit_cost_model(only_bad, &prior(), 1), Err(CostFitError::NoOutcome { given: 6 })));
}

#[test]
fn a_prior_that_is_no_number_and_mixed_engines_are_refused() {
    let mut bad = prior();
    bad.fence_ms.intercept = f64::NAN;
    let mut outcomes = synthetic(3, 1, 0.1);
    assert!(matches!(fit_cost_model(&outcomes, &bad, 1), Err(CostFitError::Prior { number: 0 })));
    outcomes[2].backend = BackendKind::Redis;
    assert!(matches!(fit_cost_model(&outcomes, &prior(), 1), Err(CostFitError::MixedBackends { .. })));
}
