//! What has not been found equal yet, and what is known of why.

use foreshard_domain::RealTime;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::statements::Key;
use crate::Position;

/// Rows or tables that the source's log tells as changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Changed {
    /// By schema and name of the table.
    pub tables: BTreeMap<(String, String), ChangedRows>,
    /// Everything committed up to here has been told, now or before.
    pub up_to: Position,
}

/// What has changed in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChangedRows {
    /// Rows with these keys: names of the columns, and their values as text.
    Keys {
        /// The columns that tell a row.
        columns: Vec<String>,
        /// Their values.
        keys: BTreeSet<Vec<Option<String>>>,
    },
    /// Any row.
    Whole,
}

/// When an unexplained difference is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Found at least so often.
    pub times: u32,
    /// Over at least so long.
    pub lasting: Duration,
}

impl Default for Patience {
    /// One proof would do, were a commit seen by all at once: the log has it a little earlier than a statement on the source,
    /// and much earlier if the commit waits for a standby.
    fn default() -> Self {
        Self { times: 5, lasting: Duration::from_secs(5) }
    }
}

/// A comparison that found a difference which no change explains so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Evidence {
    /// Position of the source after it: once changes are known up to here, and none is the row's, nothing explains it.
    at: Position,
    /// How often nothing explained one.
    times: u32,
    /// When the first was found.
    first: RealTime,
}

/// A row or table that has not been found equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// Its known changes are no later. Only what was compared when the target had applied this is a proof of anything.
    pub since: Position,
    /// Whether a change was told; otherwise a comparison found a difference.
    pub told: bool,
    evidence: Option<Evidence>,
}

impl Doubt {
    fn new(since: Position, told: bool) -> Self {
        Self { since, told, evidence: None }
    }

    fn renew(&mut self, since: Position, told: bool) {
        self.since = self.since.max(since);
        if told {
            self.told = true;
            self.evidence = None;
        }
    }

    /// Notes a difference that was found when the target had applied `since`; `at` is the position of the source after that,
    /// `seen` that up to which changes are known. Returns whether it is believed.
    fn differed(&mut self, at: Position, seen: Position, now: RealTime, patience: Patience) -> bool {
        let Some(evidence) = &mut self.evidence else {
            self.evidence = Some(Evidence { at, times: 0, first: now });
            return false;
        };
        // A later `at` would put the proof off for ever if changes are always known a little late.
        if seen >= evidence.at {
            evidence.times += 1;
            evidence.at = at;
        }
        evidence.times >= patience.times && now.since(evidence.first) >= patience.lasting
    }
}

/// A table that has not been found equal as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableDoubt {
    /// What is known of it.
    pub doubt: Doubt,
    /// How often it has been compared again.
    pub rounds: u32,
}

/// All rows and tables, by the number of the table, that have not been found equal.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    rows: BTreeMap<usize, BTreeMap<Key, Doubt>>,
    tables: BTreeMap<usize, TableDoubt>,
    /// Rows of which no change was told.
    untold: usize,
    seen: Position,
}

impl Doubts {
    /// Up to where changes are known.
    pub fn seen(&self) -> Position {
        self.seen
    }

    /// How many rows and tables are in doubt.
    pub fn len(&self) -> usize {
        self.rows.values().map(BTreeMap::len).sum::<usize>() + self.tables.len()
    }

    /// Rows that differed, of which no change was told.
    pub fn untold(&self) -> usize {
        self.untold
    }

    /// The tables in doubt.
    pub fn tables(&self) -> impl Iterator<Item = (usize, TableDoubt)> + '_ {
        self.tables.iter().map(|(table, doubt)| (*table, *doubt))
    }

    /// The doubt about a table.
    pub fn table(&self, table: usize) -> Option<TableDoubt> {
        self.tables.get(&table).copied()
    }

    /// The last position that must be applied before all untold doubts can be looked at.
    pub fn waits_for(&self) -> Option<Position> {
        let rows = self.rows.values().flat_map(BTreeMap::values).filter(|doubt| !doubt.told).map(|doubt| doubt.since);
        rows.chain(self.tables.values().map(|table| table.doubt.since)).max()
    }

    /// Everything committed up to `position` has been told.
    pub fn saw(&mut self, position: Position) {
        self.seen = self.seen.max(position);
    }

    /// A change of a row, committed no later than `up_to`.
    pub fn told(&mut self, table: usize, key: Key, up_to: Position) {
        self.add(table, key, up_to, true);
    }

    /// A row that differed when the source stood no further than at `position`.
    pub fn found(&mut self, table: usize, key: Key, position: Position) {
        self.add(table, key, position, false);
    }

    fn add(&mut self, table: usize, key: Key, since: Position, told: bool) {
        let rows = self.rows.entry(table).or_default();
        match rows.get_mut(&key) {
            Some(doubt) => {
                self.untold -= usize::from(told && !doubt.told);
                doubt.renew(since, told);
            }
            None => {
                self.untold += usize::from(!told);
                rows.insert(key, Doubt::new(since, told));
            }
        }
    }

    /// Any row of a table has changed, or differed, no later than at `since`.
    pub fn whole(&mut self, table: usize, since: Position, told: bool) {
        let new = || TableDoubt { doubt: Doubt::new(since, told), rounds: 0 };
        self.tables.entry(table).or_insert_with(new).doubt.renew(since, told);
    }

    /// A row was found equal when the target had applied everything up to `applied`.
    pub fn settled(&mut self, table: usize, key: &Key, applied: Position) {
        let doubt = self.rows.get(&table).and_then(|rows| rows.get(key));
        if doubt.is_some_and(|doubt| doubt.since <= applied) {
            self.reported(table, key);
        }
    }

    /// The difference of a row has been reported.
    pub fn reported(&mut self, table: usize, key: &Key) {
        let Some(rows) = self.rows.get_mut(&table) else { return };
        if let Some(doubt) = rows.remove(key) {
            self.untold -= usize::from(!doubt.told);
        }
        if rows.is_empty() {
            self.rows.remove(&table);
        }
    }

    /// Every range of a table has been compared after the target had applied `covered`.
    pub fn compared(&mut self, table: usize, covered: Option<Position>) {
        if let Some(whole) = self.tables.get_mut(&table) {
            whole.rounds += 1;
            if covered.is_some_and(|covered| whole.doubt.since <= covered) {
                self.tables.remove(&table);
            }
        }
    }

    /// A row differed; see [`Doubt::differed`].
    pub fn differed(&mut self, table: usize, key: &Key, at: Position, now: RealTime, patience: Patience) -> bool {
        let seen = self.seen;
        let doubt = self.rows.get_mut(&table).and_then(|rows| rows.get_mut(key));
        doubt.is_some_and(|doubt| doubt.differed(at, seen, now, patience))
    }

    /// A table without a key differed; see [`Doubt::differed`].
    pub fn table_differed(&mut self, table: usize, at: Position, now: RealTime, patience: Patience) -> bool {
        let seen = self.seen;
        self.tables.get_mut(&table).is_some_and(|whole| whole.doubt.differed(at, seen, now, patience))
    }

    /// The next rows of one table after `after`, at most `limit`, that can be compared when the target has applied `applied`.
    pub fn ripe(&self, after: Option<&(usize, Key)>, applied: Position, limit: usize) -> Option<(usize, Vec<Key>)> {
        let first = after.map_or(0, |(table, _)| *table);
        self.rows.range(first..).find_map(|(table, rows)| {
            let from = match after {
                Some((same, key)) if same == table => Bound::Excluded(key),
                _ => Bound::Unbounded,
            };
            let later = rows.range::<Key, (Bound<&Key>, Bound<&Key>)>((from, Bound::Unbounded));
            let ripe = later.filter(|(_, doubt)| doubt.since <= applied).map(|(key, _)| key.clone());
            let keys: Vec<Key> = ripe.take(limit).collect();
            (!keys.is_empty()).then_some((*table, keys))
        })
    }

    /// If there are more than `limit` rows in doubt, puts the table with the most of them in doubt as a whole instead.
    pub fn bound(&mut self, limit: usize) {
        while self.rows.values().map(BTreeMap::len).sum::<usize>() > limit {
            let most = self.rows.iter().max_by_key(|(_, rows)| rows.len()).map(|(table, _)| *table);
            let Some((table, rows)) = most.and_then(|table| self.rows.remove_entry(&table)) else { return };
            self.untold -= rows.values().filter(|doubt| !doubt.told).count();
            let since = rows.values().map(|doubt| doubt.since).max().unwrap_or_default();
            self.whole(table, since, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { times: 2, lasting: Duration::from_secs(1) };

    fn key(name: &str) -> Key {
        vec![name.to_owned()]
    }

    fn at(ms: i64) -> RealTime {
        RealTime::from_ms(ms)
    }

    /// What `differed` says of the row `a` of table 0.
    fn differs(doubts: &mut Doubts, position: u64, ms: i64) -> bool {
        doubts.differed(0, &key("a"), Position(position), at(ms), PATIENCE)
    }

    #[test]
    fn a_difference_is_believed_when_no_change_explains_it_often_and_long_enough() {
        let mut doubts = Doubts::default();
        doubts.found(0, key("a"), Position(10));
        assert!(!differs(&mut doubts, 20, 0));
        assert!(!differs(&mut doubts, 30, 5000), "changes are known up to 0 only");
        doubts.saw(Position(20));
        assert!(!differs(&mut doubts, 40, 5000), "once");
        assert!(!differs(&mut doubts, 41, 5001), "changes up to 40 are not known yet");
        doubts.saw(Position(40));
        assert!(differs(&mut doubts, 50, 5002), "twice, over more than a second");
        let mut hasty = Doubts::default();
        hasty.found(0, key("a"), Position(10));
        hasty.saw(Position(100));
        assert!(!(0..10).any(|i| differs(&mut hasty, 20, i * 10)), "often, but within 100 ms");
    }

    #[test]
    fn a_told_change_explains_what_was_found_before() {
        let mut doubts = Doubts::default();
        doubts.found(0, key("a"), Position(10));
        doubts.saw(Position(100));
        assert!(!differs(&mut doubts, 20, 0) && !differs(&mut doubts, 21, 2000));
        assert_eq!(doubts.untold(), 1);
        doubts.told(0, key("a"), Position(110));
        assert_eq!(doubts.untold(), 0);
        assert!(!differs(&mut doubts, 120, 3000) && !differs(&mut doubts, 121, 4000), "it counts from anew");
        doubts.saw(Position(200));
        assert!(!differs(&mut doubts, 130, 4000) && differs(&mut doubts, 131, 4001), "also a told one is believed");
    }

    #[test]
    fn only_rows_whose_changes_are_applied_are_compared() {
        let mut doubts = Doubts::default();
        for (table, name, position) in [(0, "a", 10), (0, "b", 30), (0, "c", 20), (2, "a", 10)] {
            doubts.told(table, key(name), Position(position));
        }
        let ripe = |after: Option<(usize, Key)>, limit| doubts.ripe(after.as_ref(), Position(20), limit);
        assert_eq!(ripe(None, 5), Some((0, vec![key("a"), key("c")])));
        assert_eq!(ripe(None, 1), Some((0, vec![key("a")])));
        assert_eq!(ripe(Some((0, key("a"))), 5), Some((0, vec![key("c")])));
        assert_eq!(ripe(Some((0, key("c"))), 5), Some((2, vec![key("a")])));
        assert_eq!(ripe(Some((2, key("a"))), 5), None);
    }

    #[test]
    fn a_later_change_keeps_a_row_back() {
        let mut doubts = Doubts::default();
        doubts.told(0, key("a"), Position(10));
        doubts.told(0, key("a"), Position(30));
        doubts.found(0, key("a"), Position(20));
        assert_eq!(doubts.ripe(None, Position(29), 5), None);
        assert_eq!(doubts.ripe(None, Position(30), 5), Some((0, vec![key("a")])));
        doubts.settled(0, &key("a"), Position(29));
        assert_eq!(doubts.len(), 1, "equal before the target had applied its changes");
        doubts.settled(0, &key("a"), Position(30));
        assert_eq!((doubts.len(), doubts.untold()), (0, 0));
    }

    #[test]
    fn a_table_stays_in_doubt_if_it_changed_while_it_was_compared() {
        let mut doubts = Doubts::default();
        doubts.whole(3, Position(10), true);
        doubts.whole(3, Position(12), true);
        doubts.compared(3, Some(Position(10)));
        assert_eq!(doubts.table(3).map(|t| (t.doubt.since, t.rounds)), Some((Position(12), 1)));
        doubts.compared(3, None);
        assert!(doubts.table(3).is_some());
        doubts.compared(3, Some(Position(12)));
        assert_eq!(doubts.table(3), None);
    }

    #[test]
    fn too_many_rows_become_a_table() {
        let mut doubts = Doubts::default();
        for i in 0..10 {
            doubts.told(1, key(&i.to_string()), Position(i));
        }
        doubts.found(1, key("x"), Position(50));
        doubts.found(0, key("x"), Position(60));
        doubts.bound(12);
        assert_eq!((doubts.len(), doubts.untold()), (12, 2));
        doubts.bound(11);
        assert_eq!((doubts.len(), doubts.untold()), (2, 1));
        assert_eq!(doubts.table(1).map(|t| t.doubt.since), Some(Position(50)));
    }
}
