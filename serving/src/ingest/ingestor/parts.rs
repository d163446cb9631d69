//! Rows that come in parts: a sender that knows series tells the CPU of a shard now and its memory a moment later, both of the
//! same time. Each part joins what is known of its shard and time, where a row of `take` would replace it.

use foreshard_datasets::prometheus::Measurement;
use foreshard_datasets::{ReadFilter, newest_day, stream_history};
use foreshard_domain::{Observation, ShardId, Step, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::{IngestError, Ingestor, Taken, Writing, locked, payload};

/// How far the rows reach back that are read from the history at the start, since other parts of them may come: senders try
/// again what was under way when the server stopped.
const PARTS_WITHIN_MS: i64 = 10 * 60_000;

/// Rows that went into the history and are remembered.
#[derive(Debug, Default)]
pub(super) struct Flushed {
    /// Those that went last, ordered by shard and time.
    rows: Arc<Vec<Observation>>,
    /// Up to here the history may have rows that are not remembered; behind it, it has none.
    settled: Option<Timestamp>,
}

impl Flushed {
    /// Remembers what went into the history now instead of what went before.
    pub(super) fn replace(&mut self, rows: Arc<Vec<Observation>>) {
        self.settled = self.rows.iter().map(|row| row.ts).chain(self.settled).max();
        self.rows = rows;
    }
}

/// What the history says of rows; `None` for those that it has not.
type LookedUp = BTreeMap<(ShardId, Timestamp), Option<Observation>>;

impl Ingestor {
    /// From now on parts come: rows that go into the history are remembered until the next ones go, so that what comes a little
    /// later joins all of them at once. Reads the newest rows of the history; blocks on the disk.
    pub(crate) fn expect_parts(&self) -> Result<(), IngestError> {
        let newest = self.contexts.read().unwrap_or_else(PoisonError::into_inner).newest();
        let from = newest.map(|newest| newest.plus_ms(-PARTS_WITHIN_MS));
        let mut rows = Vec::new();
        if let Some(from) = from {
            let filter = ReadFilter { from: Some(from), ..ReadFilter::default() };
            self.read(&filter, &mut |row| rows.push(row.clone()))?;
        }
        // Of rows of one shard and time the last, as everywhere.
        rows.reverse();
        rows.sort_by(|a, b| key(a).cmp(&key(b)));
        rows.dedup_by(|a, b| key(a) == key(b));
        let settled = from.map(|from| from.plus_ms(-1));
        locked(&self.writing).flushed = Some(Flushed { rows: Arc::new(rows), settled });
        Ok(())
    }

    /// Takes checked parts, of which no two are of one shard and time; they are on disk when this returns. What they repeat is
    /// not written again. Blocks on the disk.
    ///
    /// A part of an old row joins what the history has of it: the history is read for such, outside of the lock.
    pub(crate) fn take_parts(&self, parts: Vec<Observation>) -> Result<Taken, IngestError> {
        let mut looked_up = LookedUp::new();
        loop {
            let mut writing = locked(&self.writing);
            let open = |part: &&Observation| {
                !looked_up.contains_key(&(part.shard.clone(), part.ts)) && writing.may_be_settled(&part.shard, part.ts)
            };
            let open: Vec<&Observation> = parts.iter().filter(open).collect();
            if open.is_empty() {
                return self.join(&mut writing, parts, &mut looked_up);
            }
            drop(writing);
            self.look_up(&open, &mut looked_up)?;
        }
    }

    fn join(
        &self,
        writing: &mut Writing,
        parts: Vec<Observation>,
        looked_up: &mut LookedUp,
    ) -> Result<Taken, IngestError> {
        let (mut rows, mut taken) = (Vec::with_capacity(parts.len()), Taken::default());
        for part in parts {
            taken.accepted += 1;
            let base = writing.remembered(&part.shard, part.ts).cloned();
            let Some(base) = base.or_else(|| looked_up.remove(&(part.shard.clone(), part.ts)).flatten()) else {
                rows.push(part);
                continue;
            };
            let (row, was_there, is_new) = joined(base, part);
            taken.duplicates += u64::from(was_there);
            rows.extend(is_new.then_some(row));
        }
        if !rows.is_empty() {
            let payload = payload(&rows);
            taken.flush_now = self.put(writing, rows, &payload)?.flush_now;
        }
        Ok(taken)
    }

    /// Reads what the history has of some rows, day by day.
    fn look_up(&self, open: &[&Observation], looked_up: &mut LookedUp) -> Result<(), IngestError> {
        let mut by_day: BTreeMap<i64, Vec<&Observation>> = BTreeMap::new();
        for part in open {
            looked_up.insert((part.shard.clone(), part.ts), None);
            by_day.entry(part.ts.as_ms().div_euclid(Step::DAY.as_ms())).or_default().push(part);
        }
        for parts in by_day.into_values() {
            let times = || parts.iter().map(|part| part.ts);
            let (from, to) = (times().min(), times().max().map(|last| last.plus_ms(1)));
            let shards = Some(parts.iter().map(|part| part.shard.clone()).collect());
            let filter = ReadFilter { from, to, shards, ..ReadFilter::default() };
            self.read(&filter, &mut |row| {
                if let Some(found) = looked_up.get_mut(&(row.shard.clone(), row.ts)) {
                    *found = Some(row.clone());
                }
            })?;
        }
        Ok(())
    }

    /// Shows rows of the history; of rows of one shard and time the last comes last.
    fn read(&self, filter: &ReadFilter, on: &mut dyn FnMut(&Observation)) -> Result<(), IngestError> {
        if newest_day(&self.dir)?.is_none() {
            return Ok(());
        }
        stream_history(&self.dir, filter, &mut |some| {
            some.iter().for_each(&mut *on);
            Ok(())
        })?;
        Ok(())
    }
}

impl Writing {
    /// All that is known of a shard at a time, if it did not leave for the history before the last rows.
    fn remembered(&self, shard: &ShardId, ts: Timestamp) -> Option<&Observation> {
        let find = |rows: &'_ Arc<Vec<Observation>>| rows.binary_search_by(|row| key(row).cmp(&(shard, ts))).ok();
        let pending = self.pending.get(&(shard.clone(), ts));
        let under_way = || find(&self.under_way).and_then(|at| self.under_way.get(at));
        let flushed = || self.flushed.as_ref().and_then(|last| last.rows.get(find(&last.rows)?));
        pending.or_else(under_way).or_else(flushed)
    }

    /// Whether only the history can say what is known of a shard at a time.
    fn may_be_settled(&self, shard: &ShardId, ts: Timestamp) -> bool {
        let settled = self.flushed.as_ref().and_then(|last| last.settled);
        settled.is_some_and(|settled| ts <= settled) && self.remembered(shard, ts).is_none()
    }
}

fn key(row: &Observation) -> (&ShardId, Timestamp) {
    (&row.shard, row.ts)
}

/// A row with a part in it; whether a measurement of it was there already, and whether anything is new.
fn joined(mut row: Observation, part: Observation) -> (Observation, bool, bool) {
    let (mut was_there, mut is_new) = (false, false);
    for measurement in Measurement::ALL {
        let Some(value) = measurement.of(&part) else { continue };
        let before = measurement.of(&row);
        was_there |= before.is_some();
        is_new |= before != Some(value);
        measurement.put(&mut row, Some(value));
    }
    row.node = part.node.or(row.node);
    (row, was_there, is_new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_datasets::read_history;
    use foreshard_domain::NodeId;
    use std::path::Path;

    fn open(dir: &Path) -> Ingestor {
        let ingestor = Ingestor::open(&dir.join("history"), &dir.join("log"), 2).unwrap();
        ingestor.expect_parts().unwrap();
        ingestor
    }

    fn part(minute: i64, measurement: Measurement, value: f64) -> Observation {
        let mut row = Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(minute * 60_000));
        measurement.put(&mut row, Some(value));
        row
    }

    fn history(dir: &Path) -> Vec<Observation> {
        read_history(&dir.join("history"), &ReadFilter::default()).unwrap().observations().collect()
    }

    const PARTS: [(Measurement, f64); 3] =
        [(Measurement::DataBytes, 7.0), (Measurement::CpuUtil, 1.0), (Measurement::IoOps, 2.0)];

    fn is_whole(rows: &[Observation]) {
        let rows: Vec<&Observation> = rows.iter().filter(|row| row.shard.as_str() == "s").collect();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].node.as_ref().map(|node| node.as_str()), Some("n1"));
        for (measurement, value) in PARTS {
            assert_eq!(measurement.of(rows[0]), Some(value), "{measurement}");
        }
    }

    #[test]
    fn parts_become_one_row_whatever_happens_between_them() {
        type Between<'a> = &'a dyn Fn(&Path, Ingestor) -> Ingestor;
        let between: [Between<'_>; 4] = [
            &|_, ingestor| ingestor,
            &|_, ingestor| {
                ingestor.flush().unwrap();
                ingestor.flush().unwrap();
                ingestor
            },
            &|dir, ingestor| {
                drop(ingestor);
                open(dir)
            },
            &|dir, ingestor| {
                ingestor.flush().unwrap();
                drop(ingestor);
                open(dir)
            },
        ];
        for step in between {
            let dir = tempfile::tempdir().unwrap();
            let mut ingestor = open(dir.path());
            for (measurement, value) in PARTS {
                let mut one = part(5, measurement, value);
                one.node = (measurement == Measurement::DataBytes).then(|| NodeId::new("n1").unwrap());
                ingestor.take_parts(vec![one]).unwrap();
                ingestor = step(dir.path(), ingestor);
            }
            ingestor.flush().unwrap();
            is_whole(&history(dir.path()));
        }
    }

    #[test]
    fn what_repeats_is_not_written_again_and_what_differs_wins() {
        let dir = tempfile::tempdir().unwrap();
        let ingestor = open(dir.path());
        let take = |value| ingestor.take_parts(vec![part(5, Measurement::CpuUtil, value)]).unwrap();
        assert_eq!((take(1.0).duplicates, take(1.0).duplicates), (0, 1));
        assert_eq!(ingestor.flush().unwrap(), 1);
        assert_eq!((take(1.0).accepted, ingestor.flush().unwrap()), (1, 0), "it lies in the history already");
        assert_eq!((take(3.0).duplicates, ingestor.flush().unwrap()), (1, 1));
        assert_eq!(history(dir.path())[0].cpu_util, Some(3.0));
    }
}
