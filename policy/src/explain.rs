//! A plan as text for a person who was just woken up.

use foreshard_domain::{Resource, ShardId};
use std::collections::BTreeMap;
use std::fmt::Write;

use crate::{Considered, Move, NodeRisk, Plan, Refused};

/// Tells what moves when and why, what stays and why; with a shard, all that the plan knows of it.
pub fn explain(plan: &Plan, shard: Option<&ShardId>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match shard {
        Some(shard) => one(&mut text, plan, shard),
        None => whole(&mut text, plan),
    };
    text
}

fn whole(out: &mut String, plan: &Plan) -> std::fmt::Result {
    heading(out, plan)?;
    for (i, m) in plan.moves.iter().enumerate() {
        writeln!(out)?;
        a_move(out, i + 1, m)?;
    }
    let at_risk: Vec<&NodeRisk> = plan.nodes.iter().filter(|n| risky(n)).collect();
    if !at_risk.is_empty() {
        writeln!(out, "\nnodes at risk (probability of any overload in the window, before -> after the plan):")?;
        at_risk.iter().try_for_each(|n| a_node(out, n))?;
    }
    let mut stays: BTreeMap<&ShardId, &Considered> = BTreeMap::new();
    for c in plan.considered.iter().filter(|c| !plan.moves.iter().any(|m| m.shard == c.shard)) {
        stays.entry(&c.shard).or_insert(c);
    }
    if !stays.is_empty() {
        writeln!(out, "\nshards on such nodes that stay (best target and why not):")?;
        stays.values().try_for_each(|c| writeln!(out, "  {}: {}", c.shard, outcome(c)))?;
    }
    losses(out, plan)?;
    if !plan.refused.is_empty() {
        let counts: Vec<String> = plan.refused.iter().map(|(code, n)| format!("{code} {n}")).collect();
        writeln!(out, "\nother targets refused: {}", counts.join(", "))?;
    }
    if !plan.notes.is_empty() {
        writeln!(out, "\nnote:")?;
        plan.notes.iter().try_for_each(|note| writeln!(out, "  {note}"))?;
    }
    Ok(())
}

/// Which nodes the cluster could not do without.
fn losses(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let needed: Vec<String> = plan
        .nodes
        .iter()
        .filter(|n| n.if_lost.0.homeless > 0 || n.if_lost.1.homeless > 0)
        .map(|n| format!("{} {} -> {}", n.node, n.if_lost.0.homeless, n.if_lost.1.homeless))
        .collect();
    if plan.nodes.len() < 2 {
        return Ok(());
    }
    match needed.len() {
        0 => writeln!(out, "\nloss of any one node: all its shards find room on the others"),
        _ => writeln!(out, "\nshards without room if a node is lost (before -> after): {}", needed.join(", ")),
    }
}

fn heading(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let moves = match plan.moves.len() {
        0 => "nothing moves".to_owned(),
        1 => "1 move".to_owned(),
        n => format!("{n} moves"),
    };
    writeln!(out, "{} of {}: {moves}", plan.id, plan.created_at)?;
    if let Some(parent) = &plan.parent {
        writeln!(out, "replaces {parent}")?;
    }
    Ok(())
}

fn a_move(out: &mut String, number: usize, m: &Move) -> std::fmt::Result {
    let p = &m.predicted;
    writeln!(out, "{number}. {}  {}: {} -> {}", m.start, m.shard, m.source, m.target)?;
    writeln!(
        out,
        "   {} in about {} (90 %: {}), writes wait about {:.0} ms",
        bytes(m.data_bytes),
        duration(p.duration_ms),
        duration(p.duration_p90_ms),
        p.fence_ms
    )?;
    writeln!(out, "   why: [{}] {}", m.reason.rule.name(), m.reason.text)?;
    let r = &m.reason;
    writeln!(
        out,
        "   probability over the limit: {} {:.2} -> {:.2}, {} {:.2} -> {:.2}",
        m.source, r.source_risk_before, r.source_risk_after, m.target, r.target_risk_before, r.target_risk_after
    )?;
    writeln!(out, "   gains {:.2}, costs {:.2} overload minutes", m.expected_gain, m.expected_cost)?;
    m.with.as_ref().map_or(Ok(()), |with| writeln!(out, "   worth it together with the move of {with}, not alone"))
}

fn risky(n: &NodeRisk) -> bool {
    Resource::ALL.into_iter().any(|r| n.before[r] > 0.0 || n.after[r] > 0.0)
}

fn a_node(out: &mut String, n: &NodeRisk) -> std::fmt::Result {
    let shown = Resource::ALL.into_iter().filter(|r| n.before[*r] > 0.0 || n.after[*r] > 0.0);
    let risks: Vec<String> = shown.map(|r| format!("{r} {:.2} -> {:.2}", n.before[r], n.after[r])).collect();
    let (before, after) = n.excess_minutes;
    writeln!(out, "  {}: {}; expected excess {before:.2} -> {after:.2} min", n.node, risks.join(", "))
}

fn outcome(c: &Considered) -> String {
    match &c.outcome {
        Ok(score) => {
            format!("{} would gain {:.2} for {:.2}; another move was better", c.target, score.gain, score.cost)
        }
        Err(Refused::NotWorthIt { gain, needed }) => {
            format!("{} not worth it: gains {gain:.2}, needs {needed:.2} overload minutes", c.target)
        }
        Err(Refused::Hard { code, detail }) => format!("{} refused, {code}: {detail}", c.target),
        Err(Refused::Limit { code, used, allowed }) => {
            let unit = if code.ends_with("cool_down") { " min" } else { "" };
            format!("{} not now, {code}: {used:.0} of {allowed:.0}{unit}", c.target)
        }
    }
}

fn one(out: &mut String, plan: &Plan, shard: &ShardId) -> std::fmt::Result {
    heading(out, plan)?;
    writeln!(out)?;
    let moves: Vec<(usize, &Move)> = plan.moves.iter().enumerate().filter(|(_, m)| m.shard == *shard).collect();
    moves.iter().try_for_each(|(i, m)| a_move(out, i + 1, m))?;
    let considered: Vec<&Considered> = plan.considered.iter().filter(|c| c.shard == *shard).collect();
    if moves.is_empty() && considered.is_empty() {
        writeln!(out, "{shard} stays: no rule asks for a move of it, and nothing forces it to leave its node")?;
    } else if moves.is_empty() {
        writeln!(out, "{shard} stays")?;
    }
    let others = considered.iter().filter(|c| !moves.iter().any(|(_, m)| m.target == c.target));
    let others: Vec<String> = others.map(|c| format!("  {}", outcome(c))).collect();
    if !others.is_empty() {
        writeln!(out, "targets considered, best first:\n{}", others.join("\n"))?;
    }
    let about = plan.notes.iter().filter(|note| note.contains(&format!("shard {shard} ")));
    about.into_iter().try_for_each(|note| writeln!(out, "note: {note}"))
}

fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

fn duration(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        60_000..7_200_000 => format!("{:.1} min", ms as f64 / 60_000.0),
        _ => format!("{:.1} h", ms as f64 / 3_600_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!([bytes(12.0), bytes(21_474_836_480.0)], ["12.0 B", "20.0 GiB"]);
        assert_eq!(
            ["1 ms", "1.5 s", "5.7 min", "2.0 h"].map(str::to_owned),
            [1, 1_500, 341_350, 7_200_000].map(duration)
        );
    }
}
