//! What forbids a move: rules of the topology, cool-downs, and caps on copies at once.

use foreshard_domain::{NodeState, Timestamp};

use crate::Refused;
use crate::dense::{Model, Transfer};

fn hard(code: &str, detail: String) -> Refused {
    Refused::Hard { code: code.to_owned(), detail }
}

fn limit(code: &str, used: f64, allowed: f64) -> Refused {
    Refused::Limit { code: code.to_owned(), used, allowed }
}

fn minutes(ms: i64) -> f64 {
    ms as f64 / 60_000.0
}

/// Why a shard cannot move at all now.
pub(crate) fn shard_refusal(model: &Model<'_>, shard: usize) -> Option<Refused> {
    let s = &model.shards[shard];
    if s.in_flight {
        return Some(limit("in_flight", 1.0, 0.0));
    }
    if s.pin == Some(s.node) {
        return Some(hard("pinned", format!("{} is pinned to {}", s.id, model.nodes[s.node].node.id)));
    }
    let Some(facts) = s.facts else {
        return Some(hard("unknown_size", format!("nothing is known of {} but its forecast", s.id)));
    };
    if let Some(until) = facts.held_until.filter(|until| model.input.now < *until) {
        let until =
            if until == Timestamp::from_ms(i64::MAX) { "its migration ends".to_owned() } else { until.to_string() };
        return Some(hard("held_by_retention", format!("the way back of {}'s last move is kept until {until}", s.id)));
    }
    let cool_down = model.input.settings.cool_down_shard_ms;
    let since = model.input.now.since_ms(facts.last_moved?);
    (since < cool_down).then(|| limit("cool_down", minutes(since), minutes(cool_down)))
}

/// Why a shard may not be on a target, the other shards being where `places` says.
pub(crate) fn target_refusal<'b>(
    model: &Model<'_>,
    shard: usize,
    target: usize,
    places: impl FnMut(usize) -> &'b [usize],
) -> Option<Refused> {
    let (s, node) = (&model.shards[shard], &model.nodes[target]);
    let id = &node.node.id;
    if let Some(pin) = s.pin.filter(|pin| *pin != target) {
        return Some(hard("pinned", format!("{} is pinned to {}", s.id, model.nodes[pin].node.id)));
    }
    match node.node.state {
        NodeState::Active => {}
        NodeState::Draining => return Some(hard("node_not_active", format!("{id} is being emptied"))),
        NodeState::Closed => return Some(hard("node_not_active", format!("{id} takes no shards"))),
    }
    if s.excluded.contains(&target) {
        return Some(hard("excluded", format!("{} must not be on {id}", s.id)));
    }
    if let Some(other) = model.spread_conflict(shard, target, places) {
        let other = model.shards[other].id;
        return Some(hard("group_spread", format!("{} must be kept apart from {other}, which is there", s.id)));
    }
    let cool_down = model.input.settings.cool_down_node_ms;
    let since = model.input.now.since_ms(node.last_arrival?);
    (since < cool_down).then(|| limit("node_cool_down", minutes(since), minutes(cool_down)))
}

/// A cap or window that keeps a copy from running at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Window,
    InFlight,
    PerNode,
}

/// Copies that run or are planned.
pub(crate) struct Busy<'b>(pub Vec<&'b Transfer>);

impl Busy<'_> {
    /// What keeps a copy from running when it wants to.
    pub fn blocks(&self, model: &Model<'_>, t: &Transfer) -> Option<Limit> {
        let settings = &model.input.settings;
        let topology = &model.input.topology;
        let closed = |node: usize| topology.in_window(&model.nodes[node].node.id, t.start, t.leaves);
        if closed(t.source) || closed(t.target) {
            return Some(Limit::Window);
        }
        if self.most_at_once(t, |_| true) >= settings.moves_in_flight {
            return Some(Limit::InFlight);
        }
        let full = |node: usize| {
            self.most_at_once(t, |other| other.source == node || other.target == node) >= settings.moves_per_node
        };
        (full(t.source) || full(t.target)).then_some(Limit::PerNode)
    }

    /// Most of the other copies that run at one moment of this one.
    fn most_at_once(&self, t: &Transfer, counts: impl Fn(&Transfer) -> bool) -> usize {
        let others = || self.0.iter().copied().filter(|o| o.start < t.leaves && t.start < o.leaves && counts(o));
        let running = |at: Timestamp| others().filter(|o| o.start <= at && at < o.leaves).count();
        let moments = others().map(|o| o.start.max(t.start)).chain(std::iter::once(t.start));
        moments.map(running).max().unwrap_or(0)
    }
}

/// How many starts were blocked by what.
#[derive(Debug, Default)]
pub(crate) struct Blocked {
    window: usize,
    in_flight: usize,
    per_node: usize,
}

impl Blocked {
    pub fn count(&mut self, limit: Limit) {
        match limit {
            Limit::Window => self.window += 1,
            Limit::InFlight => self.in_flight += 1,
            Limit::PerNode => self.per_node += 1,
        }
    }

    /// The limit that blocked most; `None` if capacity alone was in the way.
    pub fn refusal(&self, model: &Model<'_>) -> Option<Refused> {
        let settings = &model.input.settings;
        let most = self.window.max(self.in_flight).max(self.per_node);
        if most == 0 {
            None
        } else if most == self.window {
            Some(limit("maintenance_window", self.window as f64, 0.0))
        } else if most == self.in_flight {
            let allowed = settings.moves_in_flight as f64;
            Some(limit("moves_in_flight", allowed + 1.0, allowed))
        } else {
            let allowed = settings.moves_per_node as f64;
            Some(limit("moves_per_node", allowed + 1.0, allowed))
        }
    }
}
