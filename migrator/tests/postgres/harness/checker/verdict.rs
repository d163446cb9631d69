//! What became of the acknowledged writes: all there, once each, and nothing else.

use super::client::{IDS_PER_CLIENT, Memory};
use super::operation::{Change, Note, Operation};
use crate::harness::address::Session;
use crate::harness::latency::Latencies;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

/// A checker's findings. The lists hold one line for each finding.
#[derive(Debug, Default)]
pub struct Report {
    /// Writes.
    pub acknowledged: usize,
    pub reads: usize,
    /// Acknowledged writes whose effect, or a part of it, is not there.
    pub lost: Vec<String>,
    /// Writes with an effect that is there more than once.
    pub doubled: Vec<String>,
    /// Answers and contents that cannot be: stale reads, writes that took effect though they were refused.
    pub wrong: Vec<String>,
    /// Operations in which a client was shown an error, whatever became of them then.
    pub failed: usize,
    /// Operations repeated because the engine asked for it, as after a deadlock.
    pub retried: usize,
    /// Writes whose acknowledgement never came and whose outcome was found out.
    pub unknown_resolved: usize,
    /// Writes whose outcome could not be found out in time: either is right.
    pub undecided: usize,
    /// All errors that clients were shown, by time since the start.
    pub errors: Vec<(Duration, String)>,
    pub latencies: Latencies,
}

impl Report {
    /// Fails unless every acknowledged write is there exactly once. Clients may have been shown errors.
    pub fn assert_nothing_lost(&self) {
        assert!(self.acknowledged > 0, "the clients did nothing\n{self}");
        let findings = [&self.lost, &self.doubled, &self.wrong].map(Vec::len);
        assert_eq!(findings, [0; 3], "lost, doubled, wrong\n{self}");
    }

    /// The same, and fails when any client was shown an error.
    pub fn assert_unnoticed(&self) {
        self.assert_nothing_lost();
        assert_eq!((self.failed, self.undecided), (0, 0), "clients noticed\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, reads, failed, retried, unknown_resolved, undecided, latencies, .. } = self;
        writeln!(f, "{acknowledged} writes acknowledged and {reads} reads answered: {latencies}")?;
        writeln!(f, "{failed} failed, {retried} retried, {unknown_resolved} found out, {undecided} undecided")?;
        for (name, lines) in [("lost", &self.lost), ("doubled", &self.doubled), ("wrong", &self.wrong)] {
            writeln!(f, "{} {name}", lines.len())?;
            lines.iter().take(10).try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        self.errors.iter().take(10).try_for_each(|(at, said)| writeln!(f, "  error at {at:.3?}: {said}"))
    }
}

/// A row of the ledger: the accounts from, to, and the amount.
type Entry = (Option<i32>, Option<i32>, i32);

/// The contents of the checker's tables.
struct Contents {
    ledger: HashMap<i64, Vec<Entry>>,
    /// How often each operation is in the events.
    events: HashMap<i64, usize>,
    /// Balance and number of writes.
    accounts: BTreeMap<i32, (i64, i64)>,
    notes: BTreeMap<i64, Vec<Note>>,
}

impl Contents {
    async fn read(session: &Session) -> Self {
        let mut contents =
            Self { ledger: HashMap::new(), events: HashMap::new(), accounts: BTreeMap::new(), notes: BTreeMap::new() };
        // No index may answer for the table: one that was damaged would hide rows.
        let snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL enable_indexscan = off;
                        SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off";
        session.batch_execute(snapshot).await.unwrap();
        for row in session.query_typed("SELECT id, account, other, amount FROM ledger", &[]).await.unwrap() {
            contents.ledger.entry(row.get(0)).or_default().push((row.get(1), row.get(2), row.get(3)));
        }
        for row in session.query_typed("SELECT op FROM events", &[]).await.unwrap() {
            *contents.events.entry(row.get(0)).or_default() += 1;
        }
        for row in session.query_typed("SELECT id, balance, writes FROM accounts", &[]).await.unwrap() {
            contents.accounts.insert(row.get(0), (row.get(1), row.get(2)));
        }
        for row in session.query_typed("SELECT id, body, version FROM notes", &[]).await.unwrap() {
            contents.notes.entry(row.get(0)).or_default().push(Note { body: row.get(1), version: row.get(2) });
        }
        session.batch_execute("COMMIT").await.unwrap();
        contents
    }
}

pub async fn check(clients: &[(i32, Memory)], session: &Session) -> Report {
    let contents = Contents::read(session).await;
    let mut report = Report::default();
    for (client, memory) in clients {
        report.take_over(memory);
        report.check_writes(memory, &contents);
        report.check_strangers(*client, memory, &contents);
        report.check_notes(*client, memory, &contents);
    }
    report.check_accounts(&contents);
    report.errors.sort();
    report.latencies.0.sort_by_key(|sample| sample.due);
    report
}

impl Report {
    fn take_over(&mut self, memory: &Memory) {
        self.acknowledged += memory.acknowledged.len();
        self.reads += memory.reads;
        self.failed += memory.failed;
        self.retried += memory.retried;
        self.unknown_resolved += memory.unknown_resolved;
        self.undecided += memory.undecided.len();
        self.errors.extend_from_slice(&memory.errors);
        self.wrong.extend_from_slice(&memory.wrong);
        self.latencies.0.extend_from_slice(&memory.samples);
    }

    fn check_writes(&mut self, memory: &Memory, contents: &Contents) {
        let acknowledged = memory.acknowledged.iter().map(|operation| (operation, true));
        for (operation, acknowledged) in acknowledged.chain(memory.undecided.iter().map(|operation| (operation, false)))
        {
            let id = operation.id;
            let rows = contents.ledger.get(&id).map_or(&[][..], Vec::as_slice);
            match rows {
                [] if acknowledged => self.lost.push(format!("{operation:?}")),
                [] => {}
                [row] if *row == entry_of(operation) => {}
                [row] => self.wrong.push(format!("{row:?} in the ledger for {operation:?}")),
                _ => self.doubled.push(format!("{} times in the ledger: {operation:?}", rows.len())),
            }
            let expected = usize::from(!rows.is_empty() && matches!(operation.change, Change::Transfer { .. }));
            let events = contents.events.get(&id).copied().unwrap_or_default();
            match events.cmp(&expected) {
                std::cmp::Ordering::Less => self.lost.push(format!("no event of {operation:?}")),
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => self.doubled.push(format!("{events} events of {operation:?}")),
            }
        }
    }

    /// Rows of this client that it does not know of: refused, and yet there.
    fn check_strangers(&mut self, client: i32, memory: &Memory, contents: &Contents) {
        let known = memory.acknowledged.iter().chain(&memory.undecided);
        let known: HashSet<_> = known.map(|operation| operation.id).collect();
        let strange = contents.ledger.keys().filter(|id| owner(**id) == client && !known.contains(id));
        self.wrong.extend(strange.map(|id| format!("write {id} took effect though it was refused")));
        let strange = contents.events.keys().filter(|id| owner(**id) == client && !known.contains(id));
        self.wrong.extend(strange.map(|id| format!("an event of write {id}, which was refused")));
    }

    fn check_notes(&mut self, client: i32, memory: &Memory, contents: &Contents) {
        let mut expected = memory.notes.clone();
        for operation in &memory.undecided {
            if let (Change::Note { note, after, .. }, true) =
                (&operation.change, contents.ledger.contains_key(&operation.id))
            {
                match after {
                    Some(after) => drop(expected.insert(*note, after.clone())),
                    None => drop(expected.remove(note)),
                }
            }
        }
        let mine = contents.notes.iter().filter(|(id, _)| owner(**id) == client);
        for (id, found) in mine {
            match (expected.remove(id), found.as_slice()) {
                (Some(right), [one]) if right == *one => {}
                (Some(right), [one]) if one.version < right.version => {
                    self.lost.push(format!("note {id} is {one:?} instead of {right:?}"));
                }
                (None, _) => self.lost.push(format!("the deletion of note {id}: {found:?}")),
                (Some(_), [_, _, ..]) => self.doubled.push(format!("note {id}: {found:?}")),
                (right, _) => self.wrong.push(format!("note {id} is {found:?} instead of {right:?}")),
            }
        }
        self.lost.extend(expected.iter().map(|(id, note)| format!("note {id}: {note:?}")));
    }

    /// The sums must follow from the ledger, whoever wrote it.
    fn check_accounts(&mut self, contents: &Contents) {
        let mut right: BTreeMap<i32, (i64, i64)> = contents.accounts.keys().map(|id| (*id, (0, 0))).collect();
        let mut apply = |account: Option<i32>, amount: i64| {
            if let Some(sum) = account.and_then(|account| right.get_mut(&account)) {
                *sum = (sum.0 + amount, sum.1 + 1);
            }
        };
        // What is twice in the ledger counts once: it was found already.
        for (account, other, amount) in contents.ledger.values().filter_map(|rows| rows.first()) {
            let amount = i64::from(*amount);
            apply(*account, if other.is_some() { -amount } else { amount });
            apply(*other, amount);
        }
        for (id, found) in &contents.accounts {
            let right = right[id];
            let said = || format!("account {id} has balance and writes {found:?} instead of {right:?}");
            match found.1.cmp(&right.1) {
                std::cmp::Ordering::Less => self.lost.push(said()),
                std::cmp::Ordering::Greater => self.doubled.push(said()),
                std::cmp::Ordering::Equal if found.0 != right.0 => self.wrong.push(said()),
                std::cmp::Ordering::Equal => {}
            }
        }
    }
}

fn entry_of(operation: &Operation) -> Entry {
    match operation.change {
        Change::Deposit { account, amount } => (Some(account), None, amount),
        Change::Transfer { from, to, amount } => (Some(from), Some(to), amount),
        Change::Note { .. } => (None, None, 0),
    }
}

/// The client that a number of a write or a note belongs to.
fn owner(id: i64) -> i32 {
    i32::try_from(id / IDS_PER_CLIENT).unwrap_or_default()
}
