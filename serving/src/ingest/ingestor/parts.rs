//! Rows that come in parts: a sender that knows series tells the CPU of a shard now and its memory a moment later, both of the
//! same time. Each part joins what is known of its shard and time, where a row of `take` would replace it.

use foreshard_datasets::prometheus::Measurement;
use foreshard_datasets::{ReadFilter, newest_day, stream_history};
use foreshard_domain::{Observation, ShardId, Timestamp};
use std::sync::{Arc, PoisonError};

use super::{IngestError, Ingestor, Taken, Writing, locked, payload};

/// How far the rows reach back that are read from the history at the start, since other parts of them may come: senders try
/// again what was under way when the server stopped.
const PARTS_WITHIN_MS: i64 = 10 * 60_000;

impl Ingestor {
    /// From now on parts come: rows that go into the history are remembered until the next ones go, so that what comes a little
    /// later still joins all of them. Reads the newest rows of the history; blocks on the disk.
    pub(crate) fn expect_parts(&self) -> Result<(), IngestError> {
        let newest = self.contexts.read().unwrap_or_else(PoisonError::into_inner).newest();
        let mut rows = Vec::new();
        if let Some(newest) = newest
            && newest_day(&self.dir)?.is_some()
        {
            let from = Some(newest.plus_ms(-PARTS_WITHIN_MS));
            let filter = ReadFilter { from, ..ReadFilter::default() };
            stream_history(&self.dir, &filter, &mut |some| {
                rows.extend(some.iter().cloned());
                Ok(())
            })?;
        }
        // Of rows of one shard and time the last, as everywhere.
        rows.reverse();
        rows.sort_by(|a, b| key(a).cmp(&key(b)));
        rows.dedup_by(|a, b| key(a) == key(b));
        locked(&self.writing).flushed = Some(Arc::new(rows));
        Ok(())
    }

    /// Takes checked parts, of which no two are of one shard and time; they are on disk when this returns. What they repeat is
    /// not written again. Blocks on the disk.
    pub(crate) fn take_parts(&self, parts: Vec<Observation>) -> Result<Taken, IngestError> {
        let mut writing = locked(&self.writing);
        let (mut rows, mut taken) = (Vec::with_capacity(parts.len()), Taken::default());
        for part in parts {
            taken.accepted += 1;
            let Some(base) = self.known(&writing, &part.shard, part.ts) else {
                rows.push(part);
                continue;
            };
            let (row, was_there, is_new) = joined(base, part);
            taken.duplicates += u64::from(was_there);
            rows.extend(is_new.then_some(row));
        }
        if !rows.is_empty() {
            let payload = payload(&rows);
            taken.flush_now = self.put(&mut writing, rows, &payload)?.flush_now;
        }
        Ok(taken)
    }

    /// All that is known of a shard at a time: as far as rows did not leave for the history before the last ones, everything;
    /// else what forecasts are made from.
    fn known(&self, writing: &Writing, shard: &ShardId, ts: Timestamp) -> Option<Observation> {
        if let Some(row) = writing.pending.get(&(shard.clone(), ts)) {
            return Some(row.clone());
        }
        let find = |rows: &Vec<Observation>| {
            rows.binary_search_by(|row| key(row).cmp(&(shard, ts))).ok().and_then(|at| rows.get(at).cloned())
        };
        let flushed = || writing.flushed.as_deref().and_then(find);
        let remembered = || self.contexts.read().unwrap_or_else(PoisonError::into_inner).row(shard, ts);
        find(&writing.under_way).or_else(flushed).or_else(remembered)
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
        assert_eq!(rows.len(), 1);
        for (measurement, value) in PARTS {
            assert_eq!(measurement.of(&rows[0]), Some(value), "{measurement}");
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
                ingestor.take_parts(vec![part(5, measurement, value)]).unwrap();
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
