//! Outcome and decision logs: nothing is lost on the way to disk and back, numbers continue, the last outcome counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_datasets::{DecisionLog, OutcomeLog, TableError, read_decisions, read_outcomes};
use foreshard_domain::{
    BackendKind, Consistency, DecisionRecord, MigrationId, ModelVersion, MovePrediction, NodeId, Outcome,
    OutcomeResult, PerResource, PlanId, ShardId, Timestamp,
};

fn outcome(migration: &str, result: OutcomeResult) -> Outcome {
    let at = |minutes: i64| Timestamp::from_ms(1_700_000_000_000 + minutes * 60_000);
    Outcome {
        migration: MigrationId::new(migration).unwrap(),
        plan: PlanId::new("p1").unwrap(),
        shard: ShardId::new("s").unwrap(),
        source: NodeId::new("n1").unwrap(),
        target: NodeId::new("n2").unwrap(),
        backend: BackendKind::Embedded,
        consistency: Consistency::Strict,
        planned_at: at(0),
        started_at: at(5),
        ended_at: at(9),
        hour: 22,
        data_bytes: 2.5e9,
        rows: 123_456,
        write_bytes_per_s: 1024.5,
        source_cpu: 0.9,
        target_cpu: 0.3,
        predicted: MovePrediction {
            duration_ms: 1000,
            duration_p90_ms: 2000,
            fence_ms: 12.5,
            extra_share: PerResource { cpu: 0.08, memory: 0.0, io: 0.15 },
        },
        actual_duration_ms: 1500,
        actual_fence_ms: 7.25,
        actual_extra_share: PerResource { cpu: Some(0.1), memory: None, io: None },
        result,
        why: (result != OutcomeResult::Done).then(|| "disk full".to_owned()),
    }
}

fn decision(shard: &str, moved: bool) -> DecisionRecord {
    DecisionRecord {
        plan: PlanId::new("p1").unwrap(),
        decided_at: Timestamp::from_ms(1_700_000_000_000),
        shard: ShardId::new(shard).unwrap(),
        source: NodeId::new("n1").unwrap(),
        target: moved.then(|| NodeId::new("n2").unwrap()),
        decision: if moved { "move" } else { "no_gain" }.into(),
        rule: moved.then(|| "threshold".to_owned()),
        risk_unmoved: 0.75,
        risk_chosen: 0.05,
        expected_gain: 31.5,
        expected_cost: 1.25,
        version: moved.then(|| ModelVersion { model: "lstm".into(), number: 3 }),
    }
}

#[test]
fn outcomes_come_back_and_the_last_of_a_migration_counts() {
    let dir = tempfile::tempdir().unwrap();
    let log = OutcomeLog::open(dir.path().join("outcomes")).unwrap();
    log.append(&[outcome("m1", OutcomeResult::Done), outcome("m2", OutcomeResult::Failed)]).unwrap();
    drop(log);
    let log = OutcomeLog::open(dir.path().join("outcomes")).unwrap();
    let path = log.append(&[outcome("m1", OutcomeResult::RolledBack)]).unwrap();
    assert!(path.ends_with("outcomes-000002.parquet"));
    std::fs::write(dir.path().join("outcomes/.outcomes-000003.parquet.tmp"), b"PAR1").unwrap();
    let expected = vec![outcome("m1", OutcomeResult::RolledBack), outcome("m2", OutcomeResult::Failed)];
    assert_eq!(read_outcomes(&dir.path().join("outcomes")).unwrap(), expected);
    assert_eq!(read_outcomes(&path).unwrap(), expected[..1]);
}

#[test]
fn decisions_come_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = DecisionLog::open(dir.path()).unwrap();
    log.append(&[decision("b", true)]).unwrap();
    log.append(&[decision("a", false), decision("b", true)]).unwrap();
    let expected = vec![decision("b", true), decision("a", false), decision("b", true)];
    assert_eq!(read_decisions(dir.path()).unwrap(), expected);
}

#[test]
fn a_log_of_the_wrong_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = DecisionLog::open(dir.path()).unwrap().append(&[decision("a", true)]).unwrap();
    let Err(TableError::MissingColumn { column, .. }) = read_outcomes(&path) else { panic!("accepted") };
    assert_eq!(column, "migration");
}
