//! Bars of a figure over blocks of the horizon, contenders side by side.

use foreshard_domain::{Contender, StepsFigure};
use std::fmt::Write as _;

use crate::plot::{Frame, Plot, Range};
use crate::text::duration;

const FRAME: Frame = Frame { width: 340.0, height: 300.0 };

/// What is shown, and where it should lie.
pub(crate) struct Bars<'a> {
    pub(crate) title: &'a str,
    pub(crate) remark: &'a str,
    pub(crate) goal: Option<f64>,
    /// The figures of a contender.
    pub(crate) of: fn(&Contender) -> &[StepsFigure],
}

/// The bars of all contenders; `minutes` is the length of a step.
pub(crate) fn render(bars: &Bars<'_>, contenders: &[Contender], colors: &[&str], minutes: f64) -> String {
    let blocks = contenders.first().map_or(&[][..], bars.of);
    let values = contenders.iter().flat_map(|c| (bars.of)(c)).filter_map(|f| f.value).chain(bars.goal);
    let x = Range { low: 0.0, high: blocks.len().max(1) as f64 };
    let mut plot = Plot::new(FRAME, x, Range::around(values).down_to_zero());
    plot.y_axis(bars.title);
    let label = |f: &StepsFigure| duration(f.last as f64 * minutes);
    let ticks = blocks.iter().enumerate().map(|(i, f)| (i as f64 + 0.5, format!("≤ {}", label(f)))).collect();
    plot.x_axis("ahead of the origin", Some(ticks));
    let width = 0.8 / contenders.len().max(1) as f64;
    for (i, (contender, color)) in contenders.iter().zip(colors).enumerate() {
        for (block, f) in (bars.of)(contender).iter().enumerate() {
            let Some(value) = f.value else { continue };
            let left = block as f64 + 0.1 + width * i as f64;
            bar(&mut plot, left, width * 0.92, value, color);
        }
    }
    if let Some(goal) = bars.goal {
        plot.line([(x.low, Some(goal)), (x.high, Some(goal))].into_iter(), "stroke:#111827;stroke-dasharray:4 3");
    }
    format!(
        "<figure>{}<figcaption><b>{}</b> {}</figcaption></figure>",
        plot.finish(bars.title),
        bars.title,
        bars.remark
    )
}

fn bar(plot: &mut Plot, left: f64, width: f64, value: f64, color: &str) {
    let (x0, x1) = (plot.px(left), plot.px(left + width));
    let (top, bottom) = (plot.py(value.max(0.0)), plot.py(0.0));
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<rect x='{x0:.1}' y='{top:.1}' width='{:.1}' height='{:.1}' fill='{color}'><title>{value:.4}</title></rect>",
        x1 - x0,
        (bottom - top).max(0.0)
    );
    plot.push(&svg);
}
