//! Nodes, their capacities and zones, and the rules that bind shards to them.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{GroupId, NodeId, PerResource, Resource, ShardId, Timestamp, ZoneId};

/// Whether a node may take shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Takes and keeps shards.
    #[default]
    Active,
    /// Takes none and is to be emptied.
    Draining,
    /// Takes none, keeps what it has.
    Closed,
}

/// A server that holds shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Its failure domain.
    pub zone: ZoneId,
    /// CPU speed relative to the reference node; measured utilisation times this is load.
    #[serde(default = "one")]
    pub speed: f64,
    /// What it can carry, in units of load; a resource left out has no limit.
    #[serde(default)]
    pub capacity: PerResource<Option<f64>>,
    /// Whether it may take shards.
    #[serde(default)]
    pub state: NodeState,
}

fn one() -> f64 {
    1.0
}

/// What the shards of a group must not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// A node.
    #[default]
    Node,
    /// A zone (and so no node either).
    Zone,
}

/// Shards that must be kept apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub id: GroupId,
    /// Its shards.
    pub shards: BTreeSet<ShardId>,
    /// What they must not share.
    #[serde(default)]
    pub spread: Spread,
}

/// A shard bound to a node (`pins`) or kept off it (`exclusions`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The shard.
    pub shard: ShardId,
    /// The node.
    pub node: NodeId,
}

/// A span of model time in which no move may run on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceWindow {
    /// The node; all nodes if left out.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// First moment, milliseconds since the epoch.
    pub start: Timestamp,
    /// First moment after it.
    pub end: Timestamp,
}

/// Latency and bandwidth between two nodes or two zones; a link of nodes goes before one of their zones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// A node or a zone.
    pub a: String,
    /// A node or a zone; may equal `a` for traffic within a zone.
    pub b: String,
    /// One-way latency in milliseconds.
    pub latency_ms: f64,
    /// Bandwidth in bytes per second; no limit if left out.
    #[serde(default)]
    pub bandwidth_bytes_per_s: Option<f64>,
}

/// Everything that is fixed about where shards may be.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// The servers.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// Sets of shards to keep apart.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Shards that stay where they are told.
    #[serde(default)]
    pub pins: Vec<Rule>,
    /// Nodes that a shard must not be on.
    #[serde(default)]
    pub exclusions: Vec<Rule>,
    /// When no move may run.
    #[serde(default)]
    pub windows: Vec<MaintenanceWindow>,
    /// Distances.
    #[serde(default)]
    pub links: Vec<Link>,
}

/// One thing wrong with a topology.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TopologyError {
    /// Two nodes or two groups share a name.
    #[error("{what} {name} is defined more than once")]
    Twice {
        /// `node` or `group`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A rule, window or link names something that does not exist.
    #[error("{place} names {name}, which is no {expected} of this topology")]
    Unknown {
        /// Where.
        place: &'static str,
        /// The name.
        name: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A number is not positive and finite.
    #[error("{what} of {name} must be a positive finite number, not {value}")]
    Number {
        /// Which number.
        what: String,
        /// Whose.
        name: String,
        /// What was given.
        value: f64,
    },
    /// A window ends before it starts.
    #[error("maintenance window from {start} ends at {end}, before it starts")]
    Window {
        /// Its start.
        start: Timestamp,
        /// Its end.
        end: Timestamp,
    },
    /// A shard is pinned to two nodes, or pinned to a node that it is excluded from.
    #[error("shard {shard} is pinned to {node} and to another node, or is excluded from it")]
    Contradiction {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
}

/// All that is wrong with a topology, so that it can be mended in one go.
#[derive(Debug, Clone, PartialEq)]
pub struct TopologyErrors(pub Vec<TopologyError>);

impl fmt::Display for TopologyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TopologyErrors {}

impl Topology {
    /// The node of this name.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.id == *id)
    }

    /// Checks names, numbers and contradictions; finds all of them.
    ///
    /// # Errors
    /// [`TopologyErrors`] with everything that is wrong.
    pub fn validate(&self) -> Result<(), TopologyErrors> {
        let mut errors = Vec::new();
        self.check_names(&mut errors);
        self.check_numbers(&mut errors);
        self.check_references(&mut errors);
        self.check_contradictions(&mut errors);
        if errors.is_empty() { Ok(()) } else { Err(TopologyErrors(errors)) }
    }

    fn check_names(&self, errors: &mut Vec<TopologyError>) {
        let mut seen = BTreeSet::new();
        for node in &self.nodes {
            if !seen.insert(node.id.as_str()) {
                errors.push(TopologyError::Twice { what: "node", name: node.id.to_string() });
            }
        }
        let mut seen = BTreeSet::new();
        for group in &self.groups {
            if !seen.insert(group.id.as_str()) {
                errors.push(TopologyError::Twice { what: "group", name: group.id.to_string() });
            }
        }
    }

    fn check_numbers(&self, errors: &mut Vec<TopologyError>) {
        let mut positive = |what: String, name: &str, value: f64, or_zero: bool| {
            if !(value.is_finite() && (value > 0.0 || (or_zero && value == 0.0))) {
                errors.push(TopologyError::Number { what, name: name.to_owned(), value });
            }
        };
        for node in &self.nodes {
            positive("speed".into(), node.id.as_str(), node.speed, false);
            for resource in Resource::ALL {
                if let Some(capacity) = node.capacity[resource] {
                    positive(format!("{resource} capacity"), node.id.as_str(), capacity, false);
                }
            }
        }
        for link in &self.links {
            let name = format!("link {} - {}", link.a, link.b);
            positive("latency_ms".into(), &name, link.latency_ms, true);
            if let Some(bandwidth) = link.bandwidth_bytes_per_s {
                positive("bandwidth_bytes_per_s".into(), &name, bandwidth, false);
            }
        }
        for window in self.windows.iter().filter(|w| w.end <= w.start) {
            errors.push(TopologyError::Window { start: window.start, end: window.end });
        }
    }

    fn check_references(&self, errors: &mut Vec<TopologyError>) {
        let nodes: BTreeSet<&str> = self.nodes.iter().map(|n| n.id.as_str()).collect();
        let zones: BTreeSet<&str> = self.nodes.iter().map(|n| n.zone.as_str()).collect();
        let mut node = |place, name: &str| {
            if !nodes.contains(name) {
                errors.push(TopologyError::Unknown { place, name: name.to_owned(), expected: "node" });
            }
        };
        self.pins.iter().for_each(|rule| node("a pin", rule.node.as_str()));
        self.exclusions.iter().for_each(|rule| node("an exclusion", rule.node.as_str()));
        self.windows.iter().filter_map(|w| w.node.as_ref()).for_each(|id| node("a window", id.as_str()));
        for name in self.links.iter().flat_map(|l| [&l.a, &l.b]) {
            if !nodes.contains(name.as_str()) && !zones.contains(name.as_str()) {
                let error = TopologyError::Unknown { place: "a link", name: name.clone(), expected: "node or zone" };
                errors.push(error);
            }
        }
    }

    fn check_contradictions(&self, errors: &mut Vec<TopologyError>) {
        let mut pinned: BTreeMap<&ShardId, &NodeId> = BTreeMap::new();
        for rule in &self.pins {
            let twice = pinned.insert(&rule.shard, &rule.node).is_some_and(|other| *other != rule.node);
            let excluded = self.exclusions.contains(rule);
            if twice || excluded {
                errors.push(TopologyError::Contradiction { shard: rule.shard.clone(), node: rule.node.clone() });
            }
        }
    }

    /// One-way latency between two nodes in milliseconds: the link of the nodes, else of their zones, else 0 on one node,
    /// .1 within a zone and 1 between zones.
    pub fn latency_ms(&self, a: &NodeId, b: &NodeId) -> f64 {
        if a == b {
            return 0.0;
        }
        if let Some(link) = self.link(a, b) {
            return link.latency_ms;
        }
        let same_zone = matches!((self.node(a), self.node(b)), (Some(a), Some(b)) if a.zone == b.zone);
        if same_zone { 0.1 } else { 1.0 }
    }

    /// Bandwidth between two nodes in bytes per second, if it is limited.
    pub fn bandwidth_bytes_per_s(&self, a: &NodeId, b: &NodeId) -> Option<f64> {
        self.link(a, b).and_then(|link| link.bandwidth_bytes_per_s)
    }

    fn link(&self, a: &NodeId, b: &NodeId) -> Option<&Link> {
        let between = |x: &str, y: &str| self.links.iter().find(|l| (l.a == x && l.b == y) || (l.a == y && l.b == x));
        between(a.as_str(), b.as_str()).or_else(|| {
            let (a, b) = (self.node(a)?, self.node(b)?);
            between(a.zone.as_str(), b.zone.as_str())
        })
    }

    /// Whether a maintenance window closes `node` for moves at any moment of `from..to`.
    pub fn in_window(&self, node: &NodeId, from: Timestamp, to: Timestamp) -> bool {
        let mut windows = self.windows.iter();
        windows.any(|w| w.node.as_ref().is_none_or(|n| n == node) && w.start < to && from < w.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, zone: &str) -> Node {
        Node {
            id: NodeId::new(id).unwrap(),
            zone: ZoneId::new(zone).unwrap(),
            speed: 1.0,
            capacity: PerResource { cpu: Some(100.0), memory: None, io: None },
            state: NodeState::Active,
        }
    }

    #[test]
    fn all_errors_at_once() {
        let mut bad = node("n1", "z1");
        bad.speed = 0.0;
        bad.capacity.io = Some(f64::NAN);
        let rule = |node: &str| Rule { shard: ShardId::new("s").unwrap(), node: NodeId::new(node).unwrap() };
        let topology = Topology {
            nodes: vec![bad, node("n1", "z1")],
            pins: vec![rule("n1"), rule("n9")],
            exclusions: vec![rule("n1")],
            ..Topology::default()
        };
        let errors = topology.validate().unwrap_err().0;
        assert_eq!(errors.len(), 6, "{errors:?}");
    }

    #[test]
    fn links_of_nodes_go_before_links_of_zones() {
        let link =
            |a: &str, b: &str, ms| Link { a: a.into(), b: b.into(), latency_ms: ms, bandwidth_bytes_per_s: None };
        let topology = Topology {
            nodes: vec![node("n1", "z1"), node("n2", "z2"), node("n3", "z2")],
            links: vec![link("z2", "z1", 5.0), link("n1", "n2", 2.0)],
            ..Topology::default()
        };
        topology.validate().unwrap();
        let ms = |a: &str, b: &str| topology.latency_ms(&NodeId::new(a).unwrap(), &NodeId::new(b).unwrap());
        assert_eq!((ms("n1", "n2"), ms("n3", "n1"), ms("n2", "n3"), ms("n1", "n1")), (2.0, 5.0, 0.1, 0.0));
    }
}
