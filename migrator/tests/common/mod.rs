//! What the tests of the state store and of the driver share.
#![allow(dead_code, reason = "each test file uses its part")]

use foreshard_domain::{
    BackendKind, Consistency, Epoch, MigrationId, MovePrediction, NodeId, PerResource, PlanId, ShardId, Timestamp,
};
use foreshard_migrator::{MigrationRecord, MigrationState, Progress};
use foreshard_policy::{FORMAT, Move, Plan, Reason, RuleName};
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn shard(n: usize) -> ShardId {
    ShardId::new(format!("s{n}")).unwrap()
}

pub fn node(n: usize) -> NodeId {
    NodeId::new(format!("n{n}")).unwrap()
}

/// A move of shard `s` from node `source` to node `target`.
pub fn mv(s: usize, source: usize, target: usize) -> Move {
    Move {
        shard: shard(s),
        source: node(source),
        target: node(target),
        start: Timestamp::from_ms(7_200_000),
        reason: Reason {
            rule: RuleName::Threshold,
            resource: None,
            source_risk_before: 0.9,
            source_risk_after: 0.1,
            target_risk_before: 0.0,
            target_risk_after: 0.1,
            first_crossing: None,
            text: "a test".into(),
        },
        expected_gain: 10.0,
        expected_cost: 1.0,
        predicted: MovePrediction {
            duration_ms: 1_000,
            duration_p90_ms: 2_000,
            fence_ms: 5.0,
            extra_share: PerResource { cpu: 0.1, memory: 0.0, io: 0.1 },
        },
        data_bytes: 1e6,
        write_bytes_per_s: 1e3,
        cpu_share: (0.9, 0.3),
        with: None,
    }
}

pub fn plan(id: &str, parent: Option<&str>) -> Plan {
    Plan {
        format: FORMAT,
        id: PlanId::new(id).unwrap(),
        parent: parent.map(|p| PlanId::new(p).unwrap()),
        input_fingerprint: "f".into(),
        created_at: Timestamp::from_ms(3_600_000),
        moves: vec![mv(0, 0, 1)],
        considered: Vec::new(),
        refused: BTreeMap::new(),
        nodes: Vec::new(),
        notes: Vec::new(),
    }
}

/// A migration that has been recorded and no more, with two external objects.
pub fn migration(id: &str, s: usize, source: usize, target: usize, epoch: Epoch) -> MigrationRecord {
    MigrationRecord {
        id: MigrationId::new(id).unwrap(),
        plan: PlanId::new("p0").unwrap(),
        planned: Arc::new(mv(s, source, target)),
        planned_at: Timestamp::from_ms(0),
        backend: BackendKind::Embedded,
        consistency: Consistency::Strict,
        epoch,
        objects: vec![format!("{id}/log"), format!("{id}/place")],
        state: MigrationState::Planned,
        progress: Progress::default(),
        created_at: Timestamp::from_ms(0),
        started_at: None,
        moved_at: None,
        ended_at: None,
        fenced_since: None,
        fence_ms: 0,
        fence_back_ms: 0,
        proof: None,
        why: None,
        lost: None,
    }
}
