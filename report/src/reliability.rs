//! Reliability diagram: of what was said to be exceeded in 10 % of cases, how much was.

use foreshard_domain::Contender;
use std::fmt::Write as _;

use crate::plot::{Frame, Plot, Range};

const FRAME: Frame = Frame { width: 340.0, height: 300.0 };
const UNIT: Range = Range { low: 0.0, high: 1.0 };

/// The diagram of all contenders.
pub(crate) fn render(contenders: &[Contender], colors: &[&str]) -> String {
    let mut plot = Plot::new(FRAME, UNIT, UNIT);
    plot.y_axis("share observed at or below");
    plot.x_axis("quantile level", None);
    plot.line([(0.0, Some(0.0)), (1.0, Some(1.0))].into_iter(), "stroke:#9ca3af;stroke-width:1;stroke-dasharray:4 3");
    for (contender, color) in contenders.iter().zip(colors).rev() {
        let figures = &contender.scores.below_by_level;
        plot.line(figures.iter().map(|f| (f.level, Some(f.value))), &format!("stroke:{color};stroke-width:1.6"));
        let mut dots = String::new();
        for f in figures {
            let _ = write!(
                dots,
                "<circle cx='{:.1}' cy='{:.1}' r='2.6' fill='{color}'/>",
                plot.px(f.level),
                plot.py(f.value)
            );
        }
        plot.push(&dots);
    }
    format!(
        "<figure>{}<figcaption><b>Reliability</b> on the diagonal: a quantile means what it says</figcaption></figure>",
        plot.finish("reliability by quantile level")
    )
}
