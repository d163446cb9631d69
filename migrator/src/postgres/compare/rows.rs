//! The rows in doubt, one by one.

use std::time::Duration;

use super::layout::Layout;
use super::sides::{Difference, Sides};
use super::statements::{Key, Range, readable_key};
use super::{Comparison, Found, ROWS_AT_ONCE, name};
use crate::{BackendError, Position};

impl Comparison {
    /// Compares the rows in doubt whose changes the target has applied, once each or for about `budget`.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn settle(&mut self, sides: Sides<'_>, applied: Position, budget: Duration) -> Result<(), BackendError> {
        let begun = self.clock.real();
        while let Some((table, keys)) = self.doubts.ripe(self.round.as_ref(), applied, ROWS_AT_ONCE) {
            self.compare_rows(sides, table, &keys, applied).await?;
            self.round = keys.into_iter().next_back().map(|key| (table, key));
            if self.clock.real().since(begun) >= budget {
                return Ok(());
            }
        }
        self.round = None;
        Ok(())
    }

    /// In the fence: compares everything that is in doubt and returns what differs. Changes up to `fence_at` must have been
    /// told, and the target must have applied them. What is found equal is no longer in doubt, so that a later fence has less
    /// to do if this one is lifted.
    ///
    /// # Errors
    /// As [`Self::step`]; [`BackendError::Bug`] if it is called too early.
    pub async fn finish_in_fence(&mut self, sides: Sides<'_>, fence_at: Position) -> Result<Found, BackendError> {
        let too_early = |why: String| Err(BackendError::Bug { what: format!("comparing in the fence: {why}") });
        if self.seen() < fence_at {
            return too_early(format!("changes are known up to {} only, not {}", self.seen().0, fence_at.0));
        }
        if self.next < self.layouts.len() || self.pass.as_ref().is_some_and(|pass| !pass.again) {
            return too_early("not every range has been compared".to_owned());
        }
        self.pass = None;
        let mut found = Found { differing: self.found.differing.clone(), ..Found::default() };
        let everything = Position(u64::MAX);
        let mut last = None;
        while let Some((table, keys)) = self.doubts.ripe(last.as_ref(), everything, ROWS_AT_ONCE) {
            let Some(layout) = self.layouts.get(table) else { break };
            let differences = sides.rows(layout, &keys).await?;
            found.rows += keys.len() as u64;
            for (key, difference) in keys.iter().zip(differences) {
                match difference {
                    Some(difference) => name(&mut found.differing, named(layout, key, difference)),
                    None => self.doubts.settled(table, key, fence_at),
                }
            }
            last = keys.into_iter().next_back().map(|key| (table, key));
        }
        let tables: Vec<usize> = self.doubts.tables().map(|(table, _)| table).collect();
        for table in tables {
            let Some(layout) = self.layouts.get(table) else { continue };
            let (source, target) = sides.hashes(layout, &Range::default()).await?;
            (found.ranges, found.rows) = (found.ranges + 1, found.rows + source.rows);
            if source == target {
                self.doubts.compared(table, Some(fence_at));
            } else {
                name(&mut found.differing, format!("{} differs", layout.readable()));
            }
        }
        Ok(found)
    }

    /// Compares rows in doubt whose changes the target has applied.
    async fn compare_rows(
        &mut self,
        sides: Sides<'_>,
        table: usize,
        keys: &[Key],
        applied: Position,
    ) -> Result<(), BackendError> {
        let Some(layout) = self.layouts.get(table) else { return Ok(()) };
        let differences = sides.rows(layout, keys).await?;
        let at = match differences.iter().any(Option::is_some) {
            true => sides.position().await?,
            false => Position::default(),
        };
        let (now, patience) = (self.clock.real(), self.limits.patience);
        for (key, difference) in keys.iter().zip(differences) {
            match difference {
                None => self.doubts.settled(table, key, applied),
                Some(difference) if self.doubts.differed(table, key, at, now, patience) => {
                    name(&mut self.found.differing, named(layout, key, difference));
                    self.doubts.reported(table, key);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn named(layout: &Layout, key: &Key, difference: Difference) -> String {
    format!("{} key {} {}", layout.readable(), readable_key(key), difference.readable())
}
