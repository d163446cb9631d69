//! Passing rises of load: campaigns of tenants, which are known beforehand, and bursts of shards, which are not.

use foreshard_domain::{Step, Timestamp};

use super::noise::Stream;
use super::shape::plateau;

/// One passing rise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rise {
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    /// Share by which load rises at its height.
    height: f64,
}

impl Rise {
    fn at(&self, ts: Timestamp) -> f64 {
        let share = ts.since_ms(self.start) as f64 / self.end.since_ms(self.start).max(1) as f64;
        self.height * plateau(share, 0.2, 0.4)
    }
}

/// Rises that come by chance, at most one in each span of time; where they lie is known at any time without looking at
/// earlier ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rises {
    stream: Stream,
    span_ms: i64,
    chance: f64,
    minutes: (f64, f64),
    height: (f64, f64),
    /// Fixed hour (UTC) around which rises begin; any time if absent.
    hour: Option<f64>,
}

const HOUR_MS: f64 = 3_600_000.0;

impl Rises {
    /// Unforeseeable ones of a shard.
    pub(crate) fn bursts(stream: Stream, per_week: f64) -> Self {
        let span_ms = Step::DAY.as_ms() / 4;
        Self { stream, span_ms, chance: per_week / 28.0, minutes: (10.0, 60.0), height: (0.5, 1.5), hour: None }
    }

    /// Announced ones of a tenant, at its busy hour.
    pub(crate) fn campaigns(stream: Stream, per_month: f64) -> Self {
        let span_ms = 10 * Step::DAY.as_ms();
        let hour = Some(stream.between(-1, 6.0, 18.0));
        Self { stream, span_ms, chance: per_month / 3.0, minutes: (120.0, 300.0), height: (0.25, 0.6), hour }
    }

    fn of_span(&self, span: i64) -> Option<Rise> {
        let draw = |i: i64| self.stream.uniform(span.wrapping_mul(8).wrapping_add(i));
        if draw(0) >= self.chance {
            return None;
        }
        let within = match self.hour {
            // A whole day of the span, then the hour, give or take one.
            Some(hour) => {
                let days = (self.span_ms / Step::DAY.as_ms() - 1).max(0) as f64;
                (draw(1) * days).floor() * 24.0 * HOUR_MS + (hour + 2.0 * draw(2) - 1.0) * HOUR_MS
            }
            None => draw(1) * self.span_ms as f64,
        };
        let minutes = self.minutes.0 + (self.minutes.1 - self.minutes.0) * draw(3);
        // Both are far below what an integer of milliseconds can hold.
        let start = Timestamp::from_ms(span.saturating_mul(self.span_ms)).plus_ms(within as i64);
        let height = self.height.0 + (self.height.1 - self.height.0) * draw(4);
        Some(Rise { start, end: start.plus_ms((minutes * 60_000.0) as i64), height })
    }

    /// Share by which load is raised at a moment.
    pub(crate) fn at(&self, ts: Timestamp) -> f64 {
        // A rise may last into the span after its own.
        let span = ts.as_ms().div_euclid(self.span_ms);
        [span - 1, span].into_iter().filter_map(|s| self.of_span(s)).map(|rise| rise.at(ts)).sum()
    }

    /// All rises that touch `from..to`.
    pub(crate) fn between(&self, from: Timestamp, to: Timestamp) -> impl Iterator<Item = Rise> {
        let spans = from.as_ms().div_euclid(self.span_ms) - 1..=to.as_ms().div_euclid(self.span_ms);
        spans.filter_map(|s| self.of_span(s)).filter(move |rise| rise.start < to && from < rise.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_are_as_many_as_asked_for_and_listed_where_they_act() {
        let campaigns = Rises::campaigns(Stream::new(5), 1.5);
        let year = Timestamp::from_ms(360 * Step::DAY.as_ms());
        let listed: Vec<Rise> = campaigns.between(Timestamp::from_ms(0), year).collect();
        assert!((10..=26).contains(&listed.len()), "{}", listed.len());
        let mut ts = Timestamp::from_ms(0);
        while ts < year {
            let acts = campaigns.at(ts) > 1e-6;
            let inside = listed.iter().any(|r| r.start <= ts && ts < r.end);
            assert!(!acts || inside, "{ts}");
            ts = ts.plus_ms(Step::QUARTER_HOUR.as_ms());
        }
        assert!(listed.iter().all(|r| campaigns.at(r.start.plus_ms(r.end.since_ms(r.start) / 2)) > 0.2));
    }
}
