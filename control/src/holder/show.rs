//! What the state store says, as `ControlService` tells it. Pure: a look at a store that nobody holds shows the same.

use foreshard_api::{JournalLine, Migration, MigrationDetails, MigrationProgress, ShardOwner};
use foreshard_domain::{MigrationId, Timestamp};
use foreshard_migrator::{JournalRow, MigrationRecord, MigrationState, State};

use super::words;

/// All migrations, oldest first.
pub fn migrations(state: &State, now: Timestamp) -> Vec<Migration> {
    let mut all: Vec<Migration> =
        state.migrations.values().map(|record| migration(record, journal(state, &record.id), now)).collect();
    all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    all
}

/// One migration with all that is known of it; `None` if it is not known.
pub fn details(state: &State, id: &MigrationId, now: Timestamp) -> Option<MigrationDetails> {
    let record = state.migrations.get(id)?;
    let rows = journal(state, id);
    let line = |row: &JournalRow| JournalLine {
        at: row.model_at,
        term: row.term,
        event: row.event.clone(),
        state: row.state.clone(),
        note: row.note.clone(),
    };
    let objects = state.objects.values().filter(|object| object.migration == *id).map(|object| object.name.clone());
    Some(MigrationDetails {
        migration: migration(record, rows, now),
        objects: objects.collect(),
        journal: rows.iter().map(line).collect(),
    })
}

/// Who owns which shard, ordered by shard.
pub fn shard_map(state: &State) -> Vec<ShardOwner> {
    let row = |(shard, owner): (&foreshard_domain::ShardId, &foreshard_domain::Owner)| ShardOwner {
        shard: shard.clone(),
        owner: owner.clone(),
        by_override: state.overrides.contains_key(shard),
    };
    state.owners.iter().map(row).collect()
}

fn journal<'s>(state: &'s State, id: &MigrationId) -> &'s [JournalRow] {
    state.journal.get(id).map(|rows| &rows[..]).unwrap_or_default()
}

/// One migration that nobody carries.
pub(crate) fn migration(record: &MigrationRecord, journal: &[JournalRow], now: Timestamp) -> Migration {
    let progress = record.progress;
    Migration {
        id: record.id.clone(),
        plan: record.plan.clone(),
        shard: record.shard().clone(),
        source: record.source().clone(),
        target: record.target().clone(),
        backend: record.backend,
        consistency: record.consistency,
        epoch: record.epoch,
        state: record.state.name().to_owned(),
        since: since(record, journal),
        at_rest: record.state.is_at_rest(),
        ended: record.state.is_terminal(),
        carried: false,
        progress: MigrationProgress {
            rows: progress.rows,
            bytes: progress.bytes,
            expected_bytes: record.planned.data_bytes,
            behind: progress.behind,
            verified_rows: progress.verified_rows,
            fences: progress.fences,
            fence_ms: record.fence_ms,
            fence_back_ms: record.fence_back_ms,
        },
        created_at: record.created_at,
        started_at: record.started_at,
        moved_at: record.moved_at,
        ended_at: record.ended_at,
        copied_by: copied_by(record, journal, now),
        last_error: record.why.clone(),
        next_step: words::next_step(record),
        undo: words::undo(record),
    }
}

/// When the present state was entered: the first of the last lines that name it.
fn since(record: &MigrationRecord, journal: &[JournalRow]) -> Timestamp {
    let name = record.state.name();
    let last = journal.iter().rev().take_while(|row| row.state == name);
    last.last().map_or(record.created_at, |row| row.model_at)
}

/// When the copy will be complete if it goes on as it went; told only where it went without a break from its beginning and
/// the size is known.
fn copied_by(record: &MigrationRecord, journal: &[JournalRow], now: Timestamp) -> Option<Timestamp> {
    let MigrationState::Copying { .. } = record.state else { return None };
    let begun = journal.iter().rposition(|row| row.event == "prepared")?;
    let unbroken = journal.get(begun + 1..).is_some_and(<[JournalRow]>::is_empty);
    let (copied, whole) = (record.progress.bytes as f64, record.planned.data_bytes);
    let took = now.since_ms(journal.get(begun)?.model_at);
    // A first piece tells nothing yet; a copy that is larger than the shard was said to be, nothing either.
    if !unbroken || took < 1000 || copied < whole / 100.0 || copied <= 0.0 || copied >= whole {
        return None;
    }
    // Saturating by the rules of `as` for floats.
    Some(now.plus_ms((took as f64 * (whole - copied) / copied) as i64))
}
