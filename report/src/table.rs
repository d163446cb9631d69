//! Tables of figures, the subject beside its rivals and all beside seasonal naive.

use foreshard_domain::{Contender, ContenderRole, EventFigures, LossRatio, NodeRiskFigures, Scores};
use std::fmt::Write as _;

use crate::text::{escape, figure, percent};

/// The score table.
pub(crate) fn scores(contenders: &[Contender], colors: &[&str]) -> String {
    let naive = contenders.iter().find(|c| c.role == ContenderRole::SeasonalNaive).map(|c| &c.scores);
    let mut html = String::from(
        "<table><thead><tr><th></th><th>WQL</th><th>to naive</th><th>SQL geo.</th><th>to naive</th><th>SQL</th>\
         <th>MASE</th><th>MASE med.</th><th>coverage 80 %</th><th>width 80 %</th><th>first to it</th></tr></thead><tbody>",
    );
    for (contender, color) in contenders.iter().zip(colors) {
        let s = &contender.scores;
        let ratio = |of: fn(&Scores) -> Option<f64>| ratio_cell(of(s), naive.and_then(of), contender.role);
        let class = if contender.role == ContenderRole::Subject { " class='subject'" } else { "" };
        let _ = write!(
            html,
            "<tr{class}><th><i style='background:{color}'></i>{}</th><td>{}</td>{}<td>{}</td>{}<td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&contender.name),
            figure(s.wql),
            ratio(|s| s.wql),
            figure(s.sql_geo),
            ratio(|s| s.sql_geo),
            figure(s.sql),
            figure(s.mase),
            figure(s.mase_median),
            percent(s.coverage_80),
            percent(s.width_80),
            contender.subject_to_it.map_or_else(|| "–".to_owned(), loss_ratio)
        );
    }
    html.push_str("</tbody></table>");
    html
}

/// A ratio with its interval.
fn loss_ratio(loss: LossRatio) -> String {
    format!("{:.3} ({:.3} – {:.3})", loss.ratio, loss.low, loss.high)
}

/// WQL by class of series; nothing if all are of one class.
pub(crate) fn classes(contenders: &[Contender], colors: &[&str]) -> Option<String> {
    let classes = contenders.first().map(|c| &c.scores.wql_by_class).filter(|classes| classes.len() > 1)?;
    let mut html = String::from("<h3>WQL by class of series</h3><table><thead><tr><th></th>");
    for class in classes {
        let _ = write!(html, "<th>{} ({})</th>", class.class.name(), class.series);
    }
    html.push_str("</tr></thead><tbody>");
    for (contender, color) in contenders.iter().zip(colors) {
        let _ = write!(html, "<tr><th><i style='background:{color}'></i>{}</th>", escape(&contender.name));
        for class in classes {
            let own = contender.scores.wql_by_class.iter().find(|own| own.class == class.class);
            let _ = write!(html, "<td>{}</td>", figure(own.and_then(|own| own.value)));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table>");
    Some(html)
}

/// A ratio to seasonal naive: below one is better, and says so in colour and shape.
fn ratio_cell(value: Option<f64>, naive: Option<f64>, role: ContenderRole) -> String {
    let (Some(value), Some(naive)) = (value, naive.filter(|n| *n > 0.0)) else { return "<td>–</td>".to_owned() };
    if role == ContenderRole::SeasonalNaive {
        return "<td>1</td>".to_owned();
    }
    let ratio = value / naive;
    let (class, arrow) = if ratio < 1.0 { ("better", "▼") } else { ("worse", "▲") };
    format!("<td class='{class}'>{ratio:.3} {arrow}</td>")
}

/// The table of the event; nothing if no contender has one.
pub(crate) fn event(contenders: &[Contender], colors: &[&str]) -> Option<String> {
    let (windows, rate) = contenders.iter().find_map(|c| c.scores.event.map(|e| (e.windows, e.rate)))?;
    let mut html = format!(
        "<h3>Event: any step of the window over the limit</h3><p>It happened in {} of {windows} windows. Brier score (lower \
         is better; mean probability in brackets).</p>",
        percent(Some(rate))
    );
    html.push_str(
        "<table><thead><tr><th></th><th>joint paths</th><th>as if independent</th><th>largest step</th>\
         <th>climatology</th></tr></thead><tbody>",
    );
    for (contender, color) in contenders.iter().zip(colors) {
        let Some(event) = contender.scores.event else { continue };
        let cell = |of: fn(&EventFigures) -> Option<f64>| {
            let brier = of(&event.brier);
            let mean = of(&event.mean_probability).map_or(String::new(), |m| format!(" ({m:.3})"));
            format!("<td>{}{mean}</td>", figure(brier))
        };
        let _ = write!(
            html,
            "<tr><th><i style='background:{color}'></i>{}</th>{}{}{}{}</tr>",
            escape(&contender.name),
            cell(|f| f.p_any),
            cell(|f| Some(f.independent)),
            cell(|f| Some(f.max_marginal)),
            cell(|f| Some(f.climatology))
        );
    }
    html.push_str("</tbody></table>");
    Some(html)
}

/// The table of the risk of groups of shards.
pub(crate) fn node_risk(risk: &NodeRiskFigures) -> String {
    let mut html = format!(
        "<h3>Risk of random groups of shards, as if each shared a node</h3><p>{} groups, {} windows; in {} of them any step \
         was over the limit. Brier score: {} by joint paths, {} as if independent, {} by the largest step.</p>\
         <table><thead><tr><th>windows</th><th>predicted</th><th>observed</th></tr></thead><tbody>",
        risk.groups,
        risk.windows,
        percent(Some(risk.observed)),
        figure(Some(risk.joint)),
        figure(Some(risk.independent)),
        figure(Some(risk.max_marginal)),
    );
    for bin in &risk.bins {
        let (predicted, observed) = (percent(Some(bin.predicted)), percent(Some(bin.observed)));
        let _ = write!(html, "<tr><td>{}</td><td>{predicted}</td><td>{observed}</td></tr>", bin.windows);
    }
    html.push_str("</tbody></table>");
    html
}
