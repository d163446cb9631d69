//! Whether source and target hold the same rows, while clients write to the source and the target follows it.
//!
//! Every range of every table is compared before the fence; only what has not been found equal by then, or has changed since,
//! is compared in the fence. The target applies changes late, so that ranges under writes nearly always look different: of a
//! differing range the single rows are put in doubt, and compared again until they are equal.
//!
//! # Why that suffices
//!
//! Write S(p) for a row as the source has it at position p of its log, T(p) for the row as the target has it when it has applied
//! everything up to p. Changes are told from the source's log by a reader of our own, not by the side that applies them. At the
//! fence position F changes up to F have been told, and the target has applied F. Claim: a row with S(F) != T(F) is in doubt.
//!
//! A row is free of doubt only after it was found equal, S(a) = T(b), as part of a range or by itself. Let m be the lesser of a
//! and b.
//! - Without a change of the row in (m, F], S(F) = S(a) = T(b) = T(F): it is equal.
//! - With one at c in (m, F], c is told, as part of what is told up to some u >= c, and the row is in doubt with `since` = u from
//!   then on. If it is told after the comparison, the doubt stands. If it was told before, the comparison has not lifted it: a
//!   comparison of ranges lifts no doubt of rows, and one of rows only if the target had applied `since` before it began, so that
//!   b >= u >= c; and a >= c, since the log tells what is committed. That contradicts m < c.
//!
//! So the order is: take the changes ([`Comparison::absorb`]), wait until the target has applied them, compare; whatever changes
//! later comes with the next take. Three conditions are the caller's: the reader of the log begins before the first comparison
//! and loses nothing; the target has applied the reader's first position before the first comparison; `applied`, where it is
//! asked for, was read before the call. All of it is in memory: if the process or the reader is lost, verification begins anew.
//!
//! What is not found: rows that the target changes by itself, without a change of theirs in the log, after they were found equal.
//! Nobody but the move's own role can write there. And a commit stands in the log a moment before statements on the source
//! see it (as long as it waits for a standby, if it does): a change that the target failed to apply escapes if the row is
//! compared within that moment.
//!
//! # When a difference is a fault
//!
//! A row that differs although the target has applied all its known changes has either changed again, which the log will tell, or
//! is damaged. [`doubts::Doubt`] waits until changes are known up to a position after the comparison; if the row is not among
//! them, nothing explains the difference, and after some more of these it is reported.

mod doubts;
mod layout;
mod ranges;
mod rows;
mod sides;
mod statements;

#[cfg(test)]
mod tests;

pub(crate) use doubts::{Changed, ChangedRows, Patience};
pub(crate) use layout::{Layout, layouts};
pub(crate) use sides::Sides;

use foreshard_domain::Clock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::names::SCHEMA;
use super::pace::Pace;
use crate::{BackendError, Position};
use doubts::Doubts;
use statements::{Key, Range};

/// Rows that one statement compares by key.
const ROWS_AT_ONCE: usize = 500;
/// Differences that are named; more are not looked for.
const NAMED: usize = 100;
/// So often a table that changed as a whole is compared again before it is left for the fence.
const ROUNDS: u32 = 3;

/// How comparisons are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Rows of one range.
    pub range_rows: u64,
    /// Rows in doubt of which no change was told; more are as good as a table in doubt.
    pub untold: usize,
    /// All rows in doubt.
    pub doubts: usize,
    /// When a difference is believed.
    pub patience: Patience,
}

impl Limits {
    /// The usual ones, with ranges of `range_rows` rows.
    pub fn new(range_rows: u64) -> Self {
        Self { range_rows: range_rows.max(1), untold: 200_000, doubts: 1_000_000, patience: Patience::default() }
    }

    /// Rows of a range that are looked at one by one: a side may have some more there than the source had when it was divided.
    fn refined(self) -> usize {
        usize::try_from(self.range_rows.saturating_mul(4)).unwrap_or(usize::MAX).saturating_add(10_000)
    }
}

/// How far a call has brought the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is more to do at once.
    Going,
    /// Nothing more can be done at once: call again a little later, with the changes since, and best when the target has applied
    /// this position.
    Waiting(Position),
    /// Every range has been compared. What is still in doubt has changed again and again, and is left for the fence, or has
    /// been reported as differing.
    Done,
}

/// What the comparison has found so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    /// Ranges compared.
    pub ranges: u64,
    /// Rows of the source in them.
    pub rows: u64,
    /// Differences that no change explains, for a person.
    pub differing: Vec<String>,
}

/// Where a comparison stands, as text for the state store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    table: usize,
    after: Option<Key>,
    open: usize,
}

/// A table whose ranges are being compared.
#[derive(Debug)]
struct Pass {
    table: usize,
    range: Range,
    /// What the target had applied of the changes of the whole table when the pass began.
    covers: Option<Position>,
    again: bool,
}

/// The comparison of one shard's copies in one process.
pub(crate) struct Comparison {
    layouts: Vec<Layout>,
    limits: Limits,
    clock: Arc<dyn Clock>,
    pace: Arc<Pace>,
    doubts: Doubts,
    found: Found,
    /// The first table that has not been begun.
    next: usize,
    /// The key of that table after which it is to be begun.
    after: Option<Key>,
    pass: Option<Pass>,
    /// From where the next round over the rows in doubt goes on.
    round: Option<(usize, Key)>,
    /// Tables that this call has compared again.
    again: BTreeSet<usize>,
}

impl Comparison {
    /// A comparison of all rows of `layouts`.
    pub fn new(layouts: Vec<Layout>, limits: Limits, clock: Arc<dyn Clock>) -> Self {
        Self {
            layouts,
            limits,
            clock,
            pace: Arc::new(Pace::new(None)),
            doubts: Doubts::default(),
            found: Found::default(),
            next: 0,
            after: None,
            pass: None,
            round: None,
            again: BTreeSet::new(),
        }
    }

    /// The same at a pace that somebody else sets: it holds for ranges, not for rows in doubt, which are few.
    #[must_use]
    pub fn at_pace(self, pace: Arc<Pace>) -> Self {
        Self { pace, ..self }
    }

    /// Goes on from a cursor of [`Self::cursor`] if nothing was in doubt there, otherwise from the beginning: doubts are kept in
    /// memory only. The changes since the cursor was given must still be told; a cursor is of no use where they are lost.
    #[cfg_attr(not(test), expect(dead_code, reason = "for a reader of the log that outlives its process"))]
    pub fn resume(layouts: Vec<Layout>, limits: Limits, clock: Arc<dyn Clock>, cursor: &str) -> Self {
        let mut comparison = Self::new(layouts, limits, clock);
        let Ok(cursor) = serde_json::from_str::<Cursor>(cursor) else { return comparison };
        let width = comparison.layouts.get(cursor.table).map(|layout| layout.key.len());
        let fits = cursor.after.as_ref().is_none_or(|key| Some(key.len()) == width);
        if cursor.open == 0 && cursor.table <= comparison.layouts.len() && fits {
            comparison.next = cursor.table;
            comparison.after = cursor.after;
        }
        comparison
    }

    /// Where it stands; `None` when every range has been compared. Equal cursors of two calls do not mean that nothing was done
    /// in between: rows in doubt have no place in it.
    pub fn cursor(&self) -> Option<String> {
        let first = self.pass.as_ref().filter(|pass| !pass.again);
        let (table, after) =
            first.map_or_else(|| (self.next, self.after.clone()), |pass| (pass.table, pass.range.after.clone()));
        if first.is_none() && table >= self.layouts.len() && self.is_settled() {
            return None;
        }
        // Numbers and texts can always be written.
        serde_json::to_string(&Cursor { table, after, open: self.doubts.len() }).ok()
    }

    /// What has been found so far.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// How many rows and tables are in doubt.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look at it"))]
    pub fn in_doubt(&self) -> usize {
        self.doubts.len()
    }

    /// Up to where changes have been told.
    pub fn seen(&self) -> Position {
        self.doubts.seen()
    }

    /// Takes in what has changed since the last time.
    ///
    /// # Errors
    /// [`BackendError::Bug`] if a table has changed that is not compared.
    pub fn absorb(&mut self, changed: Changed) -> Result<(), BackendError> {
        let up_to = changed.up_to;
        for ((schema, name), rows) in changed.tables {
            let number = self.layouts.iter().position(|layout| layout.schema == schema && layout.name == name);
            let Some((table, layout)) = number.and_then(|number| Some((number, self.layouts.get(number)?))) else {
                if schema == SCHEMA {
                    continue;
                }
                let what = format!("table {schema}.{name} has changed, but was not there when the comparison began");
                return Err(BackendError::Bug { what });
            };
            match keys_of(layout, rows) {
                Some(keys) => keys.into_iter().for_each(|key| self.doubts.told(table, key, up_to)),
                None => self.doubts.whole(table, up_to, true),
            }
        }
        self.doubts.bound(self.limits.doubts);
        self.doubts.saw(up_to);
        Ok(())
    }

    /// Compares for about `budget`: rows in doubt first, then ranges. `applied` is what the target had applied before the call.
    ///
    /// # Errors
    /// [`BackendError`], as a statement fails; what was found is kept, and the call can be repeated.
    pub async fn step(&mut self, sides: Sides<'_>, applied: Position, budget: Duration) -> Result<Step, BackendError> {
        let begun = self.clock.real();
        self.again.clear();
        self.settle(sides, applied, budget / 2).await?;
        while self.found.differing.len() < NAMED {
            if self.pass.is_none() && !self.begin(sides, applied).await? {
                break;
            }
            self.compare_range(sides).await?;
            if self.clock.real().since(begun) >= budget {
                return Ok(Step::Going);
            }
        }
        if self.is_settled() {
            return Ok(Step::Done);
        }
        Ok(Step::Waiting(self.doubts.waits_for().unwrap_or(applied)))
    }

    /// Whether nothing but what changes again and again is in doubt.
    fn is_settled(&self) -> bool {
        let enough = self.found.differing.len() >= NAMED;
        let compared = self.next >= self.layouts.len() && self.pass.is_none();
        enough || compared && self.doubts.untold() == 0 && !self.doubts.tables().any(|(table, _)| self.is_due(table))
    }

    /// Whether a table in doubt is to be compared again before the fence.
    fn is_due(&self, table: usize) -> bool {
        let keyless = self.layouts.get(table).is_some_and(|layout| layout.key.is_empty());
        self.doubts.table(table).is_some_and(|whole| whole.rounds < ROUNDS || keyless && !whole.doubt.told)
    }
}

/// The keys of changed rows as `layout` has them; `None` if they are not known.
fn keys_of(layout: &Layout, rows: ChangedRows) -> Option<Vec<Key>> {
    let ChangedRows::Keys { columns, keys } = rows else { return None };
    if layout.key.is_empty() {
        return None;
    }
    // The log may tell whole rows, of which the key is a part.
    let places: Option<Vec<usize>> =
        layout.key.iter().map(|column| columns.iter().position(|name| *name == column.name)).collect();
    let places = places?;
    keys.into_iter().map(|key| places.iter().map(|place| key.get(*place)?.clone()).collect()).collect()
}

/// Adds a difference to those that are named.
fn name(differing: &mut Vec<String>, difference: String) {
    if differing.len() < NAMED {
        differing.push(difference);
    } else if differing.len() == NAMED {
        differing.push("and more".to_owned());
    }
}
