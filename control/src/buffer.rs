//! Observations that wait until serving takes them.

use foreshard_domain::Observation;
use std::collections::VecDeque;

/// Rows not yet taken by serving, oldest first; never more than its limit.
///
/// When it is full the oldest rows go: the newest are worth most to the next forecast. How many went is counted, so that
/// the gap in the history is said and not silent.
#[derive(Debug)]
pub struct IngestBuffer {
    rows: VecDeque<Observation>,
    limit: usize,
    dropped: u64,
}

impl IngestBuffer {
    /// An empty buffer that holds at most `limit` rows (at least one).
    pub fn new(limit: usize) -> Self {
        Self { rows: VecDeque::new(), limit: limit.max(1), dropped: 0 }
    }

    /// Adds rows; returns how many old ones had to go.
    pub fn push(&mut self, rows: impl IntoIterator<Item = Observation>) -> u64 {
        self.rows.extend(rows);
        let over = self.rows.len().saturating_sub(self.limit);
        self.rows.drain(..over);
        self.dropped = self.dropped.saturating_add(over as u64);
        over as u64
    }

    /// The oldest rows, at most `most`, still held: they leave by [`Self::taken`].
    pub fn batch(&self, most: usize) -> Vec<Observation> {
        self.rows.iter().take(most).cloned().collect()
    }

    /// Removes the oldest `n` rows, which serving has taken.
    pub fn taken(&mut self, n: usize) {
        self.rows.drain(..n.min(self.rows.len()));
    }

    /// Rows that wait.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows that were given up since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{ShardId, Timestamp};

    fn rows(range: std::ops::Range<i64>) -> impl Iterator<Item = Observation> {
        range.map(|i| Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(i)))
    }

    fn times(rows: &[Observation]) -> Vec<i64> {
        rows.iter().map(|r| r.ts.as_ms()).collect()
    }

    #[test]
    fn drops_the_oldest_and_counts_them() {
        let mut buffer = IngestBuffer::new(3);
        assert_eq!(buffer.push(rows(0..2)), 0);
        assert_eq!(buffer.push(rows(2..5)), 2);
        assert_eq!((buffer.len(), buffer.dropped()), (3, 2));
        assert_eq!(times(&buffer.batch(2)), [2, 3]);
        buffer.taken(2);
        assert_eq!(times(&buffer.batch(9)), [4]);
        buffer.taken(9);
        assert!(buffer.is_empty());
    }
}
