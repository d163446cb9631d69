//! Why a move is done: figures and one sentence.

use foreshard_domain::{PerResource, Resource, Risk, Timestamp};

use super::rules::{current_share, mean_share, peak_of_mean};
use super::search::{Chosen, Search};
use crate::dense::NodeLoad;
use crate::{Reason, RuleName};

/// What a reason is made from; loads are those of source and target in the plan's order.
pub(crate) struct Figures<'f, 'm, 'a> {
    pub search: &'f Search<'m, 'a>,
    pub chosen: &'f Chosen,
    pub before: &'f [NodeLoad; 2],
    pub after: &'f [NodeLoad; 2],
    pub gain: f64,
    pub cost: f64,
}

pub(crate) fn reason(figures: &Figures<'_, '_, '_>) -> Reason {
    let Figures { search, chosen, before, after, .. } = figures;
    let model = search.model;
    let t = &chosen.start.transfer;
    let limit = model.input.settings.limit;
    let unmoved = model.risk(t.source, &search.base[t.source].0, limit);
    let resource = chosen.resource.unwrap_or_else(|| worst(&model.resources, &unmoved));
    let risk = |node: usize, load: &NodeLoad| model.risk(node, load, limit)[resource].probability;
    let first_crossing = unmoved[resource].first_crossing.map(|step| model.grid.time(step));
    let mut reason = Reason {
        rule: chosen.rule,
        resource: chosen.resource,
        source_risk_before: risk(t.source, &before[0]),
        source_risk_after: risk(t.source, &after[0]),
        target_risk_before: risk(t.target, &before[1]),
        target_risk_after: risk(t.target, &after[1]),
        first_crossing,
        text: String::new(),
    };
    reason.text = text(figures, &reason, resource);
    reason
}

/// Above this share of its capacity a node is felt to be full.
const NEARLY_FULL: f64 = 0.98;

fn worst(resources: &[Resource], risk: &PerResource<Risk>) -> Resource {
    let mut worst = resources.first().copied().unwrap_or(Resource::Cpu);
    for r in resources {
        if risk[*r].probability > risk[worst].probability {
            worst = *r;
        }
    }
    worst
}

fn text(figures: &Figures<'_, '_, '_>, reason: &Reason, resource: Resource) -> String {
    let Figures { search, chosen, gain, cost, .. } = figures;
    let model = search.model;
    let settings = &model.input.settings;
    let t = &chosen.start.transfer;
    let (source, target) = (&model.nodes[t.source].node.id, &model.nodes[t.target].node.id);
    let load = &search.base[t.source].0;
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let limit = percent(settings.limit);
    let first = reason.first_crossing.map(|at| format!(", first at {at}")).unwrap_or_default();
    let before = reason.source_risk_before;
    let why = match chosen.rule {
        RuleName::Threshold => format!(
            "{resource} of {source} goes over {limit} with probability {before:.2} (more than {:.2} asks){first}",
            settings.confidence
        ),
        RuleName::Reactive => {
            let now = percent(current_share(model, t.source, resource, &model.on[t.source]));
            let peak = percent(peak_of_mean(model, t.source, load, resource));
            format!("{resource} of {source} is at {now} and predicted to reach {peak}")
        }
        RuleName::CostBenefit if before == 0.0 && peak_of_mean(model, t.source, load, resource) > NEARLY_FULL => {
            format!(
                "the move avoids {gain:.1} overload minutes and costs {cost:.1}; {resource} of {source} comes within 2 % of its \
             capacity"
            )
        }
        RuleName::CostBenefit => format!(
            "the move avoids {gain:.1} overload minutes and costs {cost:.1}; {resource} of {source} goes over {limit} with \
             probability {before:.2}{first}"
        ),
        RuleName::ProactiveBalancing => {
            let mean = |node: usize| mean_share(model, node, &search.base[node].0, resource).unwrap_or(0.0);
            let (high, low) = (percent(mean(t.source)), percent(mean(t.target)));
            format!("predicted {resource} of {source} is {high}, of {target} {low}")
        }
        RuleName::RingReturn => {
            format!("{source} was to relieve {target}, where the ring would have the shard; the gain of that is gone")
        }
        RuleName::Constraint => {
            let because = chosen.because.as_deref().unwrap_or("it must not stay where it is");
            format!("the shard must leave {source}: {because}")
        }
    };
    format!("{why}; {}", when(chosen, reason.first_crossing, model.input.now))
}

/// Why it starts when it starts.
fn when(chosen: &Chosen, unmoved: Option<Timestamp>, now: Timestamp) -> &'static str {
    let at_once = chosen.start.transfer.start <= now;
    match (unmoved.and(chosen.crossing).is_some(), chosen.start.in_time, at_once) {
        (_, false, true) => "no start lets the copy end before the first crossing, so it starts at once",
        (_, false, false) => "no start lets the copy end before the first crossing; this is the least bad",
        (true, true, true) => "it starts at once and ends before that",
        (true, true, false) => "it waits until the copy costs least and still ends before that",
        (false, true, true) => "it starts at once",
        (false, true, false) => "it waits until the copy costs least",
    }
}
