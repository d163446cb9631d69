//! The frame that all plots share: scales, grid lines, axes, lines and bands as SVG.

use std::fmt::Write as _;

use crate::text::{escape, tick};

/// Size of a plot and the room for its axes, in SVG units.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) width: f64,
    pub(crate) height: f64,
}

const LEFT: f64 = 52.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 36.0;

/// Numbers along one axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Range {
    /// The range of the finite numbers, widened a little; 0 to 1 if there are none.
    pub(crate) fn around(values: impl Iterator<Item = f64>) -> Self {
        let ends = values.filter(|v| v.is_finite()).fold(None, |ends: Option<(f64, f64)>, v| {
            Some(ends.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        });
        let (low, high) = ends.unwrap_or((0.0, 1.0));
        let room = if high > low { (high - low) * 0.05 } else { high.abs().max(1.0) * 0.1 };
        Self { low: low - room, high: high + room }
    }

    /// The same range, reaching down to zero if it lies above.
    pub(crate) fn down_to_zero(self) -> Self {
        Self { low: self.low.min(0.0), ..self }
    }

    /// Cut at zero from below, for what cannot be negative.
    pub(crate) fn not_below(self, least: f64) -> Self {
        Self { low: self.low.max(least), ..self }
    }

    fn share(&self, value: f64) -> f64 {
        let width = self.high - self.low;
        if width > 0.0 { (value - self.low) / width } else { 0.5 }
    }

    /// Distance between grid lines: 1, 2 or 5 times a power of ten, about `count` of them.
    fn tick_distance(&self, count: f64) -> f64 {
        let raw = ((self.high - self.low) / count).max(f64::MIN_POSITIVE);
        let power = 10f64.powf(raw.log10().floor());
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|d| *d >= raw * 0.999).unwrap_or(10.0 * power)
    }

    /// Grid lines and their distance.
    fn ticks(&self, count: f64) -> (Vec<f64>, f64) {
        let distance = self.tick_distance(count);
        let first = (self.low / distance).ceil();
        // At most a few dozen lines whatever the numbers.
        let lines =
            (0..40).map(|i| (first + f64::from(i)) * distance).take_while(|v| *v <= self.high + distance * 1e-9);
        (lines.collect(), distance)
    }
}

/// A plot being drawn.
#[derive(Debug)]
pub(crate) struct Plot {
    frame: Frame,
    x: Range,
    y: Range,
    body: String,
}

impl Plot {
    pub(crate) fn new(frame: Frame, x: Range, y: Range) -> Self {
        Self { frame, x, y, body: String::new() }
    }

    pub(crate) fn px(&self, x: f64) -> f64 {
        LEFT + self.x.share(x) * (self.frame.width - LEFT - RIGHT)
    }

    /// What lies outside the range is drawn on its edge.
    pub(crate) fn py(&self, y: f64) -> f64 {
        self.frame.height - BOTTOM - self.y.share(y).clamp(0.0, 1.0) * (self.frame.height - TOP - BOTTOM)
    }

    /// Adds raw SVG.
    pub(crate) fn push(&mut self, svg: &str) {
        self.body.push_str(svg);
    }

    /// Horizontal grid lines with numbers, and the name of the axis.
    pub(crate) fn y_axis(&mut self, name: &str) {
        let (ticks, distance) = self.y.ticks(5.0);
        for value in ticks {
            let (y, left, right) = (self.py(value), LEFT, self.frame.width - RIGHT);
            let _ = write!(
                self.body,
                "<line class='grid' x1='{left:.1}' y1='{y:.1}' x2='{right:.1}' y2='{y:.1}'/>\
                 <text class='tick' x='{:.1}' y='{:.1}' text-anchor='end'>{}</text>",
                left - 5.0,
                y + 3.5,
                tick(value, distance)
            );
        }
        let middle = (self.frame.height - BOTTOM + TOP) / 2.0;
        let _ = write!(
            self.body,
            "<text class='axis' transform='translate(11 {middle:.1}) rotate(-90)' text-anchor='middle'>{}</text>",
            escape(name)
        );
    }

    /// Numbers along the horizontal axis, at `ticks` (or wherever fits), and its name.
    pub(crate) fn x_axis(&mut self, name: &str, ticks: Option<Vec<(f64, String)>>) {
        let ticks = ticks.unwrap_or_else(|| {
            let (values, distance) = self.x.ticks(6.0);
            values.into_iter().map(|v| (v, tick(v, distance))).collect()
        });
        let bottom = self.frame.height - BOTTOM;
        for (value, label) in ticks {
            let x = self.px(value);
            let _ = write!(
                self.body,
                "<line class='mark' x1='{x:.1}' y1='{bottom:.1}' x2='{x:.1}' y2='{:.1}'/>\
                 <text class='tick' x='{x:.1}' y='{:.1}' text-anchor='middle'>{}</text>",
                bottom + 4.0,
                bottom + 15.0,
                escape(&label)
            );
        }
        let _ = write!(
            self.body,
            "<line class='mark' x1='{LEFT}' y1='{bottom:.1}' x2='{:.1}' y2='{bottom:.1}'/>\
             <text class='axis' x='{:.1}' y='{:.1}' text-anchor='middle'>{}</text>",
            self.frame.width - RIGHT,
            (LEFT + self.frame.width - RIGHT) / 2.0,
            self.frame.height - 5.0,
            escape(name)
        );
    }

    /// A line through points; it is broken where a value is missing.
    pub(crate) fn line(&mut self, points: impl Iterator<Item = (f64, Option<f64>)>, style: &str) {
        let mut path = String::new();
        let mut pen_down = false;
        for (x, y) in points {
            let Some(y) = y.filter(|y| y.is_finite()) else {
                pen_down = false;
                continue;
            };
            let command = if pen_down { 'L' } else { 'M' };
            // A zero-length line is still drawn as a dot by round caps: a lone value between gaps stays visible.
            let dot = if pen_down { "" } else { "h0" };
            let _ = write!(path, "{command}{:.1} {:.1}{dot}", self.px(x), self.py(y));
            pen_down = true;
        }
        if !path.is_empty() {
            let _ = write!(self.body, "<path d='{path}' fill='none' stroke-linecap='round' style='{style}'/>");
        }
    }

    /// The area between two lines over the same points.
    pub(crate) fn band(&mut self, points: &[(f64, f64, f64)], style: &str) {
        let upper = points.iter().map(|(x, _, high)| (*x, *high));
        let lower = points.iter().rev().map(|(x, low, _)| (*x, *low));
        let mut path = String::new();
        for (i, (x, y)) in upper.chain(lower).enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, self.px(x), self.py(y));
        }
        if !path.is_empty() {
            let _ = write!(self.body, "<path d='{path}Z' stroke='none' style='{style}'/>");
        }
    }

    /// A vertical line through the whole plot.
    pub(crate) fn vertical(&mut self, x: f64) {
        let x = self.px(x);
        let _ = write!(
            self.body,
            "<line class='origin' x1='{x:.1}' y1='{TOP}' x2='{x:.1}' y2='{:.1}'/>",
            self.frame.height - BOTTOM
        );
    }

    /// The finished picture; `title` is what a screen reader says.
    pub(crate) fn finish(self, title: &str) -> String {
        let Frame { width, height } = self.frame;
        format!(
            "<svg role='img' viewBox='0 0 {width} {height}' width='{width}' height='{height}'><title>{}</title>{}</svg>",
            escape(title),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few_for_any_range() {
        for (low, high) in [(0.0, 1.0), (-3.0, 97.0), (1e-9, 2e-9), (0.0, 1e12), (5.0, 5.0)] {
            let (ticks, distance) = Range::around([low, high].into_iter()).ticks(5.0);
            assert!((2..=12).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
            assert!(distance > 0.0);
        }
        assert_eq!(Range { low: 0.0, high: 10.0 }.ticks(5.0).0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    }

    #[test]
    fn lines_break_at_gaps() {
        let mut plot = Plot::new(
            Frame { width: 200.0, height: 100.0 },
            Range { low: 0.0, high: 3.0 },
            Range::around([0.0].into_iter()),
        );
        plot.line([(0.0, Some(1.0)), (1.0, None), (2.0, Some(f64::NAN)), (3.0, Some(2.0))].into_iter(), "");
        assert_eq!(plot.finish("t").matches('M').count(), 2);
    }
}
