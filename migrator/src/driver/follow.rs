//! What an event makes of a migration's record, and the changes that a commit needs for it: pure.

use foreshard_domain::{LeaderTerm, RealTime, Timestamp};

use crate::Way;
use crate::store::{Change, ExternalObject, JournalRow, MigrationRecord};
use crate::transition::{Event, IllegalTransition, MigrationState, step};

/// When and by whom an event is recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub real: RealTime,
    pub model: Timestamp,
    pub term: LeaderTerm,
}

/// Figures that came with an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub rows: u64,
    pub bytes: u64,
    pub behind: Option<u64>,
    pub verified_rows: Option<u64>,
    pub fenced_since: Option<RealTime>,
}

/// The record after all of `events`, and the changes to commit.
pub(super) fn follow(
    record: &MigrationRecord,
    events: &[Event],
    figures: &Figures,
    now: Moment,
) -> Result<(MigrationRecord, Vec<Change>), IllegalTransition> {
    let mut record = record.clone();
    let mut changes = Vec::new();
    for event in events {
        let (state, _) = step(&record.state, event)?;
        let before = std::mem::replace(&mut record.state, state);
        note_figures(&mut record, event, figures);
        note_times(&mut record, &before, event, figures, now);
        note_proof(&mut record);
        record.why = event.note().or(record.why);
        match event {
            Event::NodeLost { node } => record.lost = Some(node.clone()),
            // What was to be undone goes forward after all: it needs both nodes again.
            Event::SealFound { .. } => record.lost = None,
            _ => {}
        }
        owner_change(&record, event, &mut changes);
        objects(&record, event, now, &mut changes);
        changes.push(Change::PutMigration { record: Box::new(record.clone()) });
        if !is_progress_only(event) {
            changes.push(Change::Journal { row: journal_row(&record, event, now) });
        }
    }
    Ok((record, changes))
}

/// Events that repeat often and change only figures would bury the others in the journal.
fn is_progress_only(event: &Event) -> bool {
    match event {
        Event::Behind | Event::Copied { next: Some(_) } => true,
        Event::Verified { verification } => verification.next.is_some() && verification.differing.is_empty(),
        _ => false,
    }
}

pub(super) fn journal_row(record: &MigrationRecord, event: &Event, now: Moment) -> JournalRow {
    JournalRow {
        migration: record.id.clone(),
        at: now.real,
        model_at: now.model,
        term: now.term,
        event: event.name().to_owned(),
        state: record.state.name().to_owned(),
        note: event.note(),
    }
}

fn note_figures(record: &mut MigrationRecord, event: &Event, figures: &Figures) {
    let progress = &mut record.progress;
    progress.rows = progress.rows.saturating_add(figures.rows);
    progress.bytes = progress.bytes.saturating_add(figures.bytes);
    progress.behind = figures.behind.unwrap_or(progress.behind);
    progress.verified_rows = figures.verified_rows.unwrap_or(progress.verified_rows);
    progress.rounds = if matches!(event, Event::Behind) { progress.rounds.saturating_add(1) } else { 0 };
}

fn note_times(record: &mut MigrationRecord, before: &MigrationState, event: &Event, figures: &Figures, now: Moment) {
    match event {
        Event::Admitted { .. } => record.started_at = Some(now.model),
        Event::Near { .. } => {
            record.progress.fences = record.progress.fences.saturating_add(1);
            record.fenced_since = Some(now.real);
        }
        // The intent was recorded a little before; the call itself is what stops writes.
        Event::Fenced { .. } => record.fenced_since = figures.fenced_since.or(record.fenced_since),
        Event::SealFound { .. } => record.fenced_since = record.fenced_since.or(Some(now.real)),
        Event::Routed { .. } if record.moved_at.is_none() => record.moved_at = Some(now.model),
        _ => {}
    }
    if let Some((way, deadline)) = before.fence()
        && record.state.fence().is_none()
    {
        let end = deadline.map_or(now.real, |deadline| deadline.min(now.real));
        let lasted = record.fenced_since.take().map_or(0, |since| end.since(since).as_millis());
        let total = match way {
            Way::There => &mut record.fence_ms,
            Way::Back => &mut record.fence_back_ms,
        };
        *total = total.saturating_add(u64::try_from(lasted).unwrap_or(u64::MAX));
    }
    if record.state.is_terminal() {
        record.ended_at = Some(now.model);
    }
}

/// What entitles to the seal is known from before the seal is asked for until the owner has changed, so that a seal that is
/// found late is recognised.
fn note_proof(record: &mut MigrationRecord) {
    match &record.state {
        MigrationState::Sealing { proof, .. } => record.proof = Some(proof.clone()),
        MigrationState::Opening { .. } => record.proof = None,
        state if state.is_terminal() => record.proof = None,
        _ => {}
    }
}

/// The compare-and-set of owner and epoch, in the same commit as the state that follows from it.
fn owner_change(record: &MigrationRecord, event: &Event, changes: &mut Vec<Change>) {
    let Event::OwnerSwitched { .. } = event else { return };
    let MigrationState::Opening { way, .. } = &record.state else { return };
    let shard = record.shard().clone();
    let expected = Some(record.previous_owner(*way));
    let owner = record.next_owner(*way);
    changes.push(Change::SetOwner { shard: shard.clone(), expected, owner: owner.clone() });
    changes.push(Change::PutOverride { shard, owner });
}

/// Rows of external objects come with the admission and go with the end (M6).
fn objects(record: &MigrationRecord, event: &Event, now: Moment, changes: &mut Vec<Change>) {
    if matches!(event, Event::Admitted { .. }) {
        changes.extend(record.objects.iter().map(|name| Change::PutObject {
            object: ExternalObject { name: name.clone(), migration: record.id.clone(), recorded_at: now.model },
        }));
    }
    if record.state.is_terminal() {
        changes.extend(record.objects.iter().map(|name| Change::RemoveObject { name: name.clone() }));
    }
}
