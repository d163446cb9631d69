//! Client latencies and how they look around the moves; pure.

use foreshard_domain::{ShardId, Timestamp};
use serde::Serialize;

/// One answered request.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Whose.
    pub shard: ShardId,
    /// When the client wanted to send it, model time.
    pub asked_at: Timestamp,
    /// From then until the answer, real milliseconds: waiting counts, however late the request was sent.
    pub latency_ms: f64,
}

/// The span of one move of a shard, model time.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveSpan {
    /// What moved.
    pub shard: ShardId,
    /// Start of the migration.
    pub from: Timestamp,
    /// End of the migration.
    pub to: Timestamp,
}

/// A high percentile before, during and after; `None` where no request fell.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct AroundMoves {
    /// In the window before a move's start.
    pub before: Option<f64>,
    /// From start to end of a move.
    pub during: Option<f64>,
    /// In the window after its end.
    pub after: Option<f64>,
}

/// The p99 of the requests to shards that moved, pooled over all moves; `window_ms` of model time before and after.
pub fn p99_around(samples: &[Sample], moves: &[MoveSpan], window_ms: i64) -> AroundMoves {
    let pooled = |span: &dyn Fn(&MoveSpan) -> (Timestamp, Timestamp)| {
        let inside = |sample: &Sample| {
            moves.iter().filter(|m| m.shard == sample.shard).any(|m| {
                let (from, to) = span(m);
                from <= sample.asked_at && sample.asked_at < to
            })
        };
        percentile(samples.iter().filter(|s| inside(s)).map(|s| s.latency_ms).collect(), 0.99)
    };
    AroundMoves {
        before: pooled(&|m| (m.from.plus_ms(-window_ms), m.from)),
        during: pooled(&|m| (m.from, m.to)),
        after: pooled(&|m| (m.to, m.to.plus_ms(window_ms))),
    }
}

/// The nearest-rank percentile `p` of (0, 1]; `None` of nothing.
pub fn percentile(mut values: Vec<f64>, p: f64) -> Option<f64> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let rank = (p.clamp(0.0, 1.0) * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(shard: &str, at: i64, latency_ms: f64) -> Sample {
        Sample { shard: ShardId::new(shard).unwrap(), asked_at: Timestamp::from_ms(at), latency_ms }
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(hundred.clone(), 0.99), Some(99.0));
        assert_eq!(percentile(hundred.clone(), 0.5), Some(50.0));
        assert_eq!(percentile(hundred, 1.0), Some(100.0));
        assert_eq!(percentile(vec![3.0, f64::NAN], 0.01), Some(3.0));
        assert_eq!(percentile(vec![], 0.5), None);
    }

    #[test]
    fn only_the_moved_shard_and_its_windows_count() {
        let samples = [
            sample("a", 5, 1.0),
            sample("a", 15, 9.0),
            sample("a", 25, 2.0),
            sample("b", 15, 99.0),
            sample("a", 99, 7.0),
        ];
        let span =
            MoveSpan { shard: ShardId::new("a").unwrap(), from: Timestamp::from_ms(10), to: Timestamp::from_ms(20) };
        let around = p99_around(&samples, &[span], 10);
        assert_eq!(around, AroundMoves { before: Some(1.0), during: Some(9.0), after: Some(2.0) });
    }
}
