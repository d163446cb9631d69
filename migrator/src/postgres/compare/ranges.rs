//! Table by table, range by range.

use super::sides::Sides;
use super::statements::Range;
use super::{Comparison, Pass, ROUNDS, name};
use crate::{BackendError, Position};

impl Comparison {
    /// Begins with the next table, or again with one that is in doubt; returns whether there was one.
    pub(super) async fn begin(&mut self, sides: Sides<'_>, applied: Position) -> Result<bool, BackendError> {
        let ripe =
            |table: usize| self.doubts.table(table).map(|whole| whole.doubt.since).filter(|since| *since <= applied);
        let first = self.next < self.layouts.len();
        let table = if first {
            self.next
        } else {
            let mut due = self.doubts.tables().map(|(table, _)| table).filter(|table| !self.again.contains(table));
            let Some(table) = due.find(|table| self.is_due(*table) && ripe(*table).is_some()) else { return Ok(false) };
            table
        };
        let covers = ripe(table);
        let Some(layout) = self.layouts.get(table) else { return Ok(false) };
        let after = self.after.clone().filter(|_| first);
        let upto = match layout.key.is_empty() {
            true => None,
            false => sides.bound(layout, after.as_ref(), self.limits.range_rows).await?,
        };
        self.pass = Some(Pass { table, range: Range { after, upto }, covers, again: !first });
        if first {
            self.next += 1;
            self.after = None;
        } else {
            self.again.insert(table);
        }
        Ok(true)
    }

    /// Compares the range at hand and goes on to the next.
    pub(super) async fn compare_range(&mut self, sides: Sides<'_>) -> Result<(), BackendError> {
        let Some(Pass { table, range, .. }) = &self.pass else { return Ok(()) };
        let (table, range) = (*table, range.clone());
        let Some(layout) = self.layouts.get(table) else { return Ok(()) };
        let following = async {
            match &range.upto {
                Some(last) => sides.bound(layout, Some(last), self.limits.range_rows).await,
                None => Ok(None),
            }
        };
        let ((source, target), following) = tokio::try_join!(sides.hashes(layout, &range), following)?;
        let bytes = source.rows.max(target.rows).saturating_mul(layout.row_bytes);
        self.pace.take(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
        let whole = if source == target { None } else { self.refine(sides, table, &range).await? };
        self.found.ranges += 1;
        self.found.rows += source.rows;
        let Some(pass) = &mut self.pass else { return Ok(()) };
        match (range.upto, whole) {
            (Some(last), None) => pass.range = Range { after: Some(last), upto: following },
            // The rest of a table that is compared once more from its beginning need not be compared now.
            (_, whole) => {
                let covers = pass.covers.filter(|_| whole.is_none());
                self.pass = None;
                self.doubts.compared(table, covers);
            }
        }
        Ok(())
    }

    /// Puts the rows of a differing range in doubt. If they are too many, the table is, and its position is returned.
    async fn refine(
        &mut self,
        sides: Sides<'_>,
        table: usize,
        range: &Range,
    ) -> Result<Option<Position>, BackendError> {
        let Some(layout) = self.layouts.get(table) else { return Ok(None) };
        let keys = match layout.key.is_empty() {
            true => None,
            false => sides.differing(layout, range, self.limits.refined()).await?,
        };
        let at = sides.position().await?;
        match keys {
            Some(keys) if self.doubts.untold() + keys.len() <= self.limits.untold => {
                keys.into_iter().for_each(|key| self.doubts.found(table, key, at));
                return Ok(None);
            }
            _ if layout.key.is_empty() => {
                let ripe = self.pass.as_ref().is_some_and(|pass| pass.covers.is_some());
                let (now, patience) = (self.clock.real(), self.limits.patience);
                if ripe && self.doubts.table_differed(table, at, now, patience) {
                    let named = format!("{} differs", layout.readable());
                    name(&mut self.found.differing, named);
                    self.doubts.compared(table, Some(Position(u64::MAX)));
                    return Ok(None);
                }
                if self.doubts.table(table).is_none() {
                    self.doubts.whole(table, at, false);
                }
            }
            _ => {
                if self.doubts.table(table).is_some_and(|whole| whole.rounds + 1 >= ROUNDS) {
                    name(&mut self.found.differing, format!("{}: too many rows differ", range.readable(layout)));
                    return Ok(None);
                }
                self.doubts.whole(table, at, false);
            }
        }
        Ok(Some(at))
    }
}
