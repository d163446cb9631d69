//! Fan chart of one window: what was known, the quantiles as nested bands, and what came.

use foreshard_domain::FanWindow;

use crate::plot::{Frame, Plot, Range};
use crate::text::{duration, escape, figure};

const FRAME: Frame = Frame { width: 560.0, height: 230.0 };

/// The chart with its caption.
pub(crate) fn render(fan: &FanWindow, color: &str) -> String {
    let levels = fan.forecast.levels().as_slice();
    let rows: Vec<Vec<f64>> = (0..fan.forecast.horizon())
        .map(|step| fan.forecast.row(step).unwrap_or(&[]).iter().map(|v| f64::from(*v)).collect())
        .collect();
    // Step 0 is the origin, whose value is the last of the history.
    let past = fan.history.iter().rev().enumerate().map(|(i, v)| (-(i as f64), v.map(f64::from)));
    let past: Vec<_> = past.collect();
    let future: Vec<_> = fan.actual.iter().enumerate().map(|(i, v)| (i as f64 + 1.0, v.map(f64::from))).collect();
    let mut plot = Plot::new(FRAME, x_range(&past, rows.len()), y_range(&rows, levels, &past, &future));
    plot.y_axis(fan.metric.name());
    plot.x_axis("time from the origin", Some(time_ticks(past.len(), rows.len(), fan.step.as_minutes())));
    for pair in 0..levels.len() / 2 {
        let points: Vec<_> = rows.iter().enumerate().filter_map(|(i, row)| band(i, row, pair)).collect();
        plot.band(&points, &format!("fill:{color};fill-opacity:.16"));
    }
    plot.vertical(0.5);
    if let Some(median) = fan.forecast.levels().position(0.5) {
        let points = rows.iter().enumerate().map(|(i, row)| (i as f64 + 1.0, row.get(median).copied()));
        plot.line(points, &format!("stroke:{color};stroke-width:1.6"));
    }
    plot.line(past.into_iter(), "stroke:#6b7280;stroke-width:1.1");
    plot.line(future.into_iter(), "stroke:#111827;stroke-width:1.4");
    let title = format!("{}: {} of {}, issued {}", fan.caption, fan.metric, fan.shard, fan.issued_at);
    format!(
        "<figure>{}<figcaption><b>{}</b> {} · {} · issued {} · WQL {}</figcaption></figure>",
        plot.finish(&title),
        escape(&fan.caption),
        escape(fan.shard.as_str()),
        fan.metric,
        fan.issued_at,
        figure(fan.wql)
    )
}

fn band(step: usize, row: &[f64], pair: usize) -> Option<(f64, f64, f64)> {
    let low = row.get(pair)?;
    let high = row.get(row.len().checked_sub(pair + 1)?)?;
    Some((step as f64 + 1.0, *low, *high))
}

fn x_range(past: &[(f64, Option<f64>)], horizon: usize) -> Range {
    Range { low: 1.0 - past.len().max(1) as f64, high: horizon as f64 }
}

/// What is drawn, but the outermost bands only as far as the inner ones and the values suggest: a wild .99 quantile may
/// leave the picture, the rest must stay readable.
fn y_range(rows: &[Vec<f64>], levels: &[f64], past: &[(f64, Option<f64>)], future: &[(f64, Option<f64>)]) -> Range {
    let inner = |level: &f64| (0.049..=0.951).contains(level);
    let quantiles = rows.iter().flat_map(|row| row.iter().zip(levels).filter(|(_, l)| inner(l)).map(|(v, _)| *v));
    let values: Vec<f64> = past.iter().chain(future).filter_map(|(_, v)| *v).chain(quantiles).collect();
    let positive = values.iter().all(|v| *v >= 0.0);
    let range = Range::around(values.into_iter());
    if positive { range.not_below(0.0) } else { range }
}

/// Ticks at quarters of the horizon, and at every half of it into the past.
fn time_ticks(past: usize, horizon: usize, minutes: f64) -> Vec<(f64, String)> {
    let unit = horizon as f64 / 4.0;
    let ahead = (1..=4).map(|i| f64::from(i) * unit);
    let back = (1..=8).map(|i| f64::from(i) * -2.0 * unit).filter(|s| *s > -(past as f64));
    let label = |steps: f64| format!("{}{}", if steps > 0.0 { "+" } else { "" }, duration(steps * minutes));
    ahead.chain(back).map(|s| (s, label(s))).chain([(0.0, "0".to_owned())]).collect()
}
