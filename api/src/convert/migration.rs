//! Migrations and the shard map.

use foreshard_domain::{Epoch, LeaderTerm, MigrationId, NodeId, Owner, PlanId, Timestamp};

use super::names::{backend_from_wire, consistency_from_wire, shard_from_wire};
use super::{timestamp_from_wire, timestamp_to_wire};
use crate::{
    DryRunReport, JournalLine, Migration, MigrationDetails, MigrationProgress, ShardOwner, StartMigration, WireError,
    v1,
};

/// The migration that field `id` of a request names.
///
/// # Errors
/// [`WireError::Id`] if it names none.
pub fn migration_id_from_wire(name: String) -> Result<MigrationId, WireError> {
    MigrationId::new(name).map_err(|source| WireError::Id { field: "id", source })
}

fn node(field: &'static str, name: String) -> Result<NodeId, WireError> {
    NodeId::new(name).map_err(|source| WireError::Id { field, source })
}

fn perhaps(field: &'static str, at: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, WireError> {
    at.map(|at| timestamp_from_wire(field, Some(at))).transpose()
}

fn text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// A start request as a message.
pub(crate) fn start_to_wire(asked: &StartMigration, dry_run: bool) -> v1::StartMigrationRequest {
    v1::StartMigrationRequest {
        shard_id: asked.shard.to_string(),
        source: asked.source.as_ref().map(ToString::to_string).unwrap_or_default(),
        target: asked.target.to_string(),
        consistency: v1::Consistency::from(asked.consistency).into(),
        dry_run,
    }
}

impl TryFrom<v1::StartMigrationRequest> for StartMigration {
    type Error = WireError;
    fn try_from(request: v1::StartMigrationRequest) -> Result<Self, WireError> {
        let consistency = match v1::Consistency::try_from(request.consistency) {
            Ok(v1::Consistency::Unspecified) => foreshard_domain::Consistency::Strict,
            _ => consistency_from_wire(request.consistency)?,
        };
        Ok(Self {
            shard: shard_from_wire("shard_id", request.shard_id)?,
            source: text(request.source).map(|name| node("source", name)).transpose()?,
            target: node("target", request.target)?,
            consistency,
        })
    }
}

impl From<&MigrationProgress> for v1::Progress {
    fn from(progress: &MigrationProgress) -> Self {
        let MigrationProgress { rows, bytes, expected_bytes, behind, verified_rows, fences, fence_ms, fence_back_ms } =
            *progress;
        Self { rows, bytes, expected_bytes, behind, verified_rows, fences, fence_ms, fence_back_ms }
    }
}

impl From<v1::Progress> for MigrationProgress {
    fn from(progress: v1::Progress) -> Self {
        let v1::Progress { rows, bytes, expected_bytes, behind, verified_rows, fences, fence_ms, fence_back_ms } =
            progress;
        Self { rows, bytes, expected_bytes, behind, verified_rows, fences, fence_ms, fence_back_ms }
    }
}

impl From<&Migration> for v1::Migration {
    fn from(m: &Migration) -> Self {
        Self {
            id: m.id.to_string(),
            plan_id: m.plan.to_string(),
            shard_id: m.shard.to_string(),
            source: m.source.to_string(),
            target: m.target.to_string(),
            backend: v1::BackendKind::from(m.backend).into(),
            consistency: v1::Consistency::from(m.consistency).into(),
            epoch: m.epoch.0,
            state: m.state.clone(),
            since: Some(timestamp_to_wire(m.since)),
            at_rest: m.at_rest,
            ended: m.ended,
            carried: m.carried,
            progress: Some((&m.progress).into()),
            created_at: Some(timestamp_to_wire(m.created_at)),
            started_at: m.started_at.map(timestamp_to_wire),
            moved_at: m.moved_at.map(timestamp_to_wire),
            ended_at: m.ended_at.map(timestamp_to_wire),
            copied_by: m.copied_by.map(timestamp_to_wire),
            last_error: m.last_error.clone().unwrap_or_default(),
            next_step: m.next_step.clone(),
            undo: m.undo.clone(),
        }
    }
}

impl TryFrom<v1::Migration> for Migration {
    type Error = WireError;
    fn try_from(m: v1::Migration) -> Result<Self, WireError> {
        Ok(Self {
            id: migration_id_from_wire(m.id)?,
            plan: PlanId::new(m.plan_id).map_err(|source| WireError::Id { field: "plan_id", source })?,
            shard: shard_from_wire("shard_id", m.shard_id)?,
            source: node("source", m.source)?,
            target: node("target", m.target)?,
            backend: backend_from_wire(m.backend)?,
            consistency: consistency_from_wire(m.consistency)?,
            epoch: Epoch(m.epoch),
            state: text(m.state).ok_or(WireError::Missing { field: "state" })?,
            since: timestamp_from_wire("since", m.since)?,
            at_rest: m.at_rest,
            ended: m.ended,
            carried: m.carried,
            progress: m.progress.ok_or(WireError::Missing { field: "progress" })?.into(),
            created_at: timestamp_from_wire("created_at", m.created_at)?,
            started_at: perhaps("started_at", m.started_at)?,
            moved_at: perhaps("moved_at", m.moved_at)?,
            ended_at: perhaps("ended_at", m.ended_at)?,
            copied_by: perhaps("copied_by", m.copied_by)?,
            last_error: text(m.last_error),
            next_step: m.next_step,
            undo: m.undo,
        })
    }
}

/// A migration that an answer must hold.
pub(crate) fn migration_from_wire(migration: Option<v1::Migration>) -> Result<Migration, WireError> {
    migration.ok_or(WireError::Missing { field: "migration" })?.try_into()
}

impl From<&DryRunReport> for v1::StartMigrationResponse {
    fn from(report: &DryRunReport) -> Self {
        Self { migration: Some((&report.migration).into()), steps: report.steps.clone() }
    }
}

impl From<&MigrationDetails> for v1::ShowMigrationResponse {
    fn from(details: &MigrationDetails) -> Self {
        let line = |line: &JournalLine| v1::JournalLine {
            at: Some(timestamp_to_wire(line.at)),
            term: line.term.0,
            event: line.event.clone(),
            state: line.state.clone(),
            note: line.note.clone().unwrap_or_default(),
        };
        Self {
            migration: Some((&details.migration).into()),
            objects: details.objects.clone(),
            journal: details.journal.iter().map(line).collect(),
        }
    }
}

impl TryFrom<v1::ShowMigrationResponse> for MigrationDetails {
    type Error = WireError;
    fn try_from(answer: v1::ShowMigrationResponse) -> Result<Self, WireError> {
        let line = |line: v1::JournalLine| {
            Ok(JournalLine {
                at: timestamp_from_wire("at", line.at)?,
                term: LeaderTerm(line.term),
                event: line.event,
                state: line.state,
                note: text(line.note),
            })
        };
        Ok(Self {
            migration: migration_from_wire(answer.migration)?,
            objects: answer.objects,
            journal: answer.journal.into_iter().map(line).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&ShardOwner> for v1::ShardOwner {
    fn from(row: &ShardOwner) -> Self {
        Self {
            shard_id: row.shard.to_string(),
            node_id: row.owner.node.to_string(),
            epoch: row.owner.epoch.0,
            by_override: row.by_override,
        }
    }
}

impl TryFrom<v1::ShardOwner> for ShardOwner {
    type Error = WireError;
    fn try_from(row: v1::ShardOwner) -> Result<Self, WireError> {
        let owner = Owner { node: node("node_id", row.node_id)?, epoch: Epoch(row.epoch) };
        Ok(Self { shard: shard_from_wire("shard_id", row.shard_id)?, owner, by_override: row.by_override })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{BackendKind, Consistency, ShardId};

    fn migration() -> Migration {
        Migration {
            id: MigrationId::new("m-1").unwrap(),
            plan: PlanId::new("p-1").unwrap(),
            shard: ShardId::new("orders").unwrap(),
            source: NodeId::new("n1").unwrap(),
            target: NodeId::new("n2").unwrap(),
            backend: BackendKind::Postgres,
            consistency: Consistency::Strict,
            epoch: Epoch(3),
            state: "copying".into(),
            since: Timestamp::from_ms(5),
            at_rest: false,
            ended: false,
            carried: true,
            progress: MigrationProgress { rows: 1, bytes: 2, expected_bytes: 4.5, fences: 3, ..Default::default() },
            created_at: Timestamp::from_ms(1),
            started_at: Some(Timestamp::from_ms(2)),
            moved_at: None,
            ended_at: None,
            copied_by: Some(Timestamp::from_ms(9)),
            last_error: Some("a link broke: reset".into()),
            next_step: "copy on".into(),
            undo: "cancel".into(),
        }
    }

    #[test]
    fn migrations_go_both_ways() {
        let whole = migration();
        assert_eq!(Migration::try_from(v1::Migration::from(&whole)), Ok(whole.clone()));
        let bare = Migration { started_at: None, copied_by: None, last_error: None, ..whole };
        assert_eq!(Migration::try_from(v1::Migration::from(&bare)), Ok(bare.clone()));
        let line = JournalLine {
            at: Timestamp::from_ms(7),
            term: LeaderTerm(2),
            event: "broke".into(),
            state: "undoing".into(),
            note: Some("why".into()),
        };
        let quiet = JournalLine { note: None, ..line.clone() };
        let details =
            MigrationDetails { migration: bare, objects: vec!["n1/slot/x".into()], journal: vec![line, quiet] };
        assert_eq!(MigrationDetails::try_from(v1::ShowMigrationResponse::from(&details)), Ok(details));
    }

    #[test]
    fn starts_and_owners_go_both_ways() {
        let whole = StartMigration {
            shard: ShardId::new("orders").unwrap(),
            source: Some(NodeId::new("n1").unwrap()),
            target: NodeId::new("n2").unwrap(),
            consistency: Consistency::Bounded,
        };
        for asked in [whole.clone(), StartMigration { source: None, ..whole }] {
            assert_eq!(StartMigration::try_from(start_to_wire(&asked, true)), Ok(asked));
        }
        let row = ShardOwner {
            shard: ShardId::new("orders").unwrap(),
            owner: Owner { node: NodeId::new("n2").unwrap(), epoch: Epoch(4) },
            by_override: true,
        };
        assert_eq!(ShardOwner::try_from(v1::ShardOwner::from(&row)), Ok(row));
    }

    #[test]
    fn what_is_missing_is_named() {
        let field = |m: v1::Migration| Migration::try_from(m).unwrap_err().field();
        let whole = v1::Migration::from(&migration());
        assert_eq!(field(v1::Migration { id: String::new(), ..whole.clone() }), "id");
        assert_eq!(field(v1::Migration { state: String::new(), ..whole.clone() }), "state");
        assert_eq!(field(v1::Migration { since: None, ..whole.clone() }), "since");
        assert_eq!(field(v1::Migration { backend: 0, ..whole.clone() }), "backend");
        assert_eq!(field(v1::Migration { consistency: 99, ..whole.clone() }), "consistency");
        assert_eq!(field(v1::Migration { progress: None, ..whole }), "progress");
        let no_target = v1::StartMigrationRequest { shard_id: "s".into(), ..Default::default() };
        assert_eq!(StartMigration::try_from(no_target.clone()).unwrap_err().field(), "target");
        let strict = v1::StartMigrationRequest { target: "n2".into(), ..no_target };
        assert_eq!(StartMigration::try_from(strict.clone()).unwrap().consistency, Consistency::Strict);
        let unknown = v1::StartMigrationRequest { consistency: 99, ..strict };
        assert_eq!(StartMigration::try_from(unknown).unwrap_err().field(), "consistency");
    }
}
