//! The page around tables and plots.

use foreshard_domain::{Contender, ContenderRole, EvaluationSection, GateVerdict};
use std::fmt::Write as _;

use crate::blocks::Bars;
use crate::text::{duration, escape};
use crate::{ReportData, blocks, fan, reliability, table};

const STYLE: &str = include_str!("style.css");
/// Colours told apart by readers with any colour vision, also in print.
const SUBJECT: &str = "#0b6bcb";
const CHAMPION: &str = "#8b3fa8";
const NAIVE: &str = "#8a8f98";
const RIVALS: [&str; 5] = ["#d97706", "#0f8f6f", "#c2315b", "#5b6b1f", "#4a5568"];

/// The whole page.
pub(crate) fn render(data: &ReportData) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>\
         <title>{0}</title><style>{STYLE}</style></head><body><h1>{0}</h1>",
        escape(&data.title)
    );
    if !data.provenance.is_empty() {
        html.push_str("<dl>");
        for fact in &data.provenance {
            let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(&fact.name), escape(&fact.value));
        }
        html.push_str("</dl>");
    }
    if let Some(verdict) = &data.verdict {
        html.push_str(&gate(verdict));
    }
    for (i, part) in data.sections.iter().enumerate() {
        html.push_str(&section(part, i == 0));
    }
    if !data.notes.is_empty() {
        html.push_str("<h2>Left out, and other remarks</h2><ul>");
        for note in &data.notes {
            let _ = write!(html, "<li>{}</li>", escape(note));
        }
        html.push_str("</ul>");
    }
    html.push_str(LEGEND);
    html.push_str("</body></html>\n");
    html
}

const LEGEND: &str = "<footer>WQL: twice the pinball loss, mean over the levels .1 to .9, over the sum of demand. SQL: the \
     same by series in units of its mean day-to-day difference; geo.: geometric mean over series. MASE: mean |actual - \
     median| in that unit. Coverage: share of actual values between the .1 and .9 quantile, goal 80 %. Width: mean distance \
     of these two over mean demand. First to it: the loss of the first row over that of the row, and what nine in ten \
     resamples of series and windows give. Rhythmic series repeat themselves day by day, wandering ones move little from step \
     to step, erratic ones do neither; young ones are known for less than two weeks.</footer>";

fn gate(verdict: &GateVerdict) -> String {
    let (class, head) = if verdict.promoted { ("yes", "Promoted") } else { ("no", "Not promoted") };
    let reasons: String = verdict.reasons.iter().map(|r| format!("<li>{}</li>", escape(r))).collect();
    format!("<div class='verdict {class}'><b>{head}</b><ul>{reasons}</ul></div>")
}

fn colors(contenders: &[Contender]) -> Vec<&'static str> {
    let mut rivals = RIVALS.into_iter().cycle();
    let mut color = |contender: &Contender| match contender.role {
        ContenderRole::Subject => SUBJECT,
        ContenderRole::Champion => CHAMPION,
        ContenderRole::SeasonalNaive => NAIVE,
        ContenderRole::Rival => rivals.next().unwrap_or(NAIVE),
    };
    contenders.iter().map(&mut color).collect()
}

fn section(part: &EvaluationSection, first: bool) -> String {
    let colors = colors(&part.contenders);
    let class = if first { " class='first'" } else { "" };
    let mut html = format!("<h2{class}>{}</h2>", escape(&part.name));
    let minutes = part.step.as_minutes();
    if let Some(s) = part.contenders.first().map(|c| &c.scores) {
        let _ = write!(
            html,
            "<p>{} series, {} windows of {} steps of {} ({}), {} observed values, {} missing.</p>",
            s.series,
            s.windows,
            s.horizon,
            duration(minutes),
            duration(minutes * s.horizon as f64),
            s.points,
            s.missing_points
        );
    }
    html.push_str(&table::scores(&part.contenders, &colors));
    html.push_str(&table::classes(&part.contenders, &colors).unwrap_or_default());
    html.push_str(&key(&part.contenders, &colors));
    let wql = Bars { title: "WQL", remark: "by how far ahead", goal: None, of: |c| &c.scores.wql_by_steps };
    let coverage = Bars {
        title: "Coverage 80 %",
        remark: "by how far ahead; the goal is the dashed line",
        goal: Some(0.8),
        of: |c| &c.scores.coverage_by_steps,
    };
    let _ = write!(
        html,
        "<div class='plots small'>{}{}{}</div>",
        reliability::render(&part.contenders, &colors),
        blocks::render(&wql, &part.contenders, &colors, minutes),
        blocks::render(&coverage, &part.contenders, &colors, minutes)
    );
    html.push_str(&table::event(&part.contenders, &colors).unwrap_or_default());
    html.push_str(&part.node_risk.as_ref().map(table::node_risk).unwrap_or_default());
    if !part.fans.is_empty() {
        let _ = write!(
            html,
            "<h3>Windows</h3><p class='key'><span><i style='background:#6b7280'></i>known</span>\
             <span><i style='background:#111827'></i>what came</span>\
             <span><i style='background:{SUBJECT}'></i>median and quantile bands</span></p><div class='plots'>"
        );
        part.fans.iter().for_each(|window| html.push_str(&fan::render(window, SUBJECT)));
        html.push_str("</div>");
    }
    html
}

fn key(contenders: &[Contender], colors: &[&str]) -> String {
    let entry =
        |(c, color): (&Contender, &&str)| format!("<span><i style='background:{color}'></i>{}</span>", escape(&c.name));
    format!("<p class='key'>{}</p>", contenders.iter().zip(colors).map(entry).collect::<String>())
}
