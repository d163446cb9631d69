//! How fast batches are computed, learned from those that were.

use std::time::Duration;

/// Weight that a batch has left after the next one: about the last fifty count.
const FADE: f64 = 0.98;

/// Least squares of `seconds = each_batch + each_row * rows` over past batches, newer ones first.
///
/// A batch costs something as such, and its rows cost something: requests that come alone say nothing of what a row costs
/// among many. Until batches of different sizes were seen the rows count as free, which takes too much work on rather than
/// too little, until the first large batch tells better.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    n: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
}

impl Pace {
    /// Learns that `rows` took `took`.
    pub(crate) fn learn(&mut self, rows: usize, took: Duration) {
        let (rows, seconds) = (rows as f64, took.as_secs_f64());
        let fade = |sum: f64, value: f64| sum * FADE + value;
        *self = Self {
            n: fade(self.n, 1.0),
            rows: fade(self.rows, rows),
            seconds: fade(self.seconds, seconds),
            rows_rows: fade(self.rows_rows, rows * rows),
            rows_seconds: fade(self.rows_seconds, rows * seconds),
        };
    }

    /// How long `rows` take in batches of at most `batch_rows`.
    pub(crate) fn estimate(&self, rows: usize, batch_rows: usize) -> Duration {
        let (each_batch, each_row) = self.line();
        let batches = rows.div_ceil(batch_rows.max(1)) as f64;
        Duration::try_from_secs_f64(batches * each_batch + rows as f64 * each_row).unwrap_or(Duration::MAX)
    }

    /// Seconds of a batch as such, and of each of its rows; neither is negative.
    fn line(&self) -> (f64, f64) {
        if self.n <= 0.0 {
            return (0.0, 0.0);
        }
        let spread = self.n * self.rows_rows - self.rows * self.rows;
        let told = spread > 1e-9 * self.n * self.rows_rows;
        let slope = if told { (self.n * self.rows_seconds - self.rows * self.seconds) / spread } else { 0.0 };
        let each_row = slope.max(0.0);
        let each_batch = (self.seconds - each_row * self.rows) / self.n;
        if each_batch >= 0.0 { (each_batch, each_row) } else { (0.0, self.seconds / self.rows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    fn near(found: Duration, wanted_ms: f64) {
        let found = found.as_secs_f64() * 1e3;
        assert!((found - wanted_ms).abs() < 0.02 * wanted_ms + 1e-6, "{found} is not {wanted_ms}");
    }

    #[test]
    fn both_costs_are_told_apart() {
        let mut pace = Pace::default();
        for rows in [1, 500, 20, 4000, 1, 1, 700] {
            pace.learn(rows, ms(2.0 + 0.1 * rows as f64));
        }
        near(pace.estimate(1, 4096), 2.1);
        near(pace.estimate(1000, 4096), 102.0);
        near(pace.estimate(8192, 4096), 4.0 + 819.2);
    }

    #[test]
    fn single_rows_say_nothing_of_many() {
        let mut pace = Pace::default();
        assert_eq!(pace.estimate(1000, 100), Duration::ZERO, "nothing is known");
        (0..100).for_each(|_| pace.learn(1, ms(3.0)));
        near(pace.estimate(4096, 4096), 3.0);
    }

    #[test]
    fn it_follows_a_change() {
        let mut pace = Pace::default();
        let learn = |pace: &mut Pace, each_row: f64| {
            for i in 0..300 {
                let rows = 1 + i * 37 % 500;
                pace.learn(rows, ms(1.0 + each_row * rows as f64));
            }
        };
        learn(&mut pace, 0.1);
        learn(&mut pace, 0.5);
        near(pace.estimate(1000, 1000), 501.0);
    }

    #[test]
    fn a_line_never_gives_time_back() {
        let mut pace = Pace::default();
        pace.learn(100, ms(1.0));
        pace.learn(1, ms(5.0));
        assert!(pace.estimate(1000, 1000) > Duration::ZERO);
        let mut steep = Pace::default();
        steep.learn(10, ms(1.0));
        steep.learn(20, ms(9.0));
        assert!(steep.estimate(1, 1) > Duration::ZERO && steep.estimate(0, 1) == Duration::ZERO);
    }
}
