//! Latency and bandwidth between nodes by index: the links of the topology, looked up once.

use foreshard_domain::{Link, Topology};
use std::collections::{BTreeMap, HashMap};

/// Latency on one node, within a zone and between zones where no link says otherwise, milliseconds; the rule of
/// [`Topology::latency_ms`].
const DEFAULT_MS: [f64; 3] = [0.0, 0.1, 1.0];

/// Links by the indices of what they join. A name that is both a node's and a zone's counts as both.
pub(crate) struct Distances<'a> {
    zones: Vec<usize>,
    nodes: HashMap<(usize, usize), &'a Link>,
    zone_links: HashMap<(usize, usize), &'a Link>,
    limited: bool,
}

impl<'a> Distances<'a> {
    /// `zones` is the zone of each node; zones are numbered in the order of their first node.
    pub fn new(topology: &'a Topology, zones: Vec<usize>) -> Self {
        let node: BTreeMap<&str, usize> = topology.nodes.iter().enumerate().map(|(i, n)| (n.id.as_str(), i)).collect();
        let named = topology.nodes.iter().zip(&zones).map(|(n, zone)| (n.zone.as_str(), *zone));
        let zone: BTreeMap<&str, usize> = named.collect();
        let by = |index: &BTreeMap<&str, usize>| {
            let mut links = HashMap::new();
            for link in &topology.links {
                if let (Some(a), Some(b)) = (index.get(link.a.as_str()), index.get(link.b.as_str())) {
                    // The first link of a pair counts.
                    links.entry((*a, *b)).or_insert(link);
                    links.entry((*b, *a)).or_insert(link);
                }
            }
            links
        };
        let limited = topology.links.iter().any(|l| l.bandwidth_bytes_per_s.is_some());
        Self { nodes: by(&node), zone_links: by(&zone), zones, limited }
    }

    fn link(&self, a: usize, b: usize) -> Option<&'a Link> {
        let zones = (self.zones.get(a).copied()?, self.zones.get(b).copied()?);
        self.nodes.get(&(a, b)).or_else(|| self.zone_links.get(&zones)).copied()
    }

    /// One-way latency in milliseconds.
    pub fn latency_ms(&self, a: usize, b: usize) -> f64 {
        let [same_node, same_zone, apart] = DEFAULT_MS;
        if a == b {
            return same_node;
        }
        let default = if self.zones.get(a) == self.zones.get(b) { same_zone } else { apart };
        self.link(a, b).map_or(default, |link| link.latency_ms)
    }

    /// Bytes per second, if they are limited.
    pub fn bandwidth(&self, a: usize, b: usize) -> Option<f64> {
        if !self.limited {
            return None;
        }
        self.link(a, b).and_then(|link| link.bandwidth_bytes_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Node, NodeId, NodeState, PerResource, ZoneId};

    #[test]
    fn distances_are_those_of_the_topology() {
        let node = |id: &str, zone: &str| Node {
            id: NodeId::new(id).unwrap(),
            zone: ZoneId::new(zone).unwrap(),
            speed: 1.0,
            capacity: PerResource { cpu: Some(1.0), memory: None, io: None },
            state: NodeState::Active,
        };
        let link = |a: &str, b: &str, latency_ms, bandwidth_bytes_per_s| Link {
            a: a.into(),
            b: b.into(),
            latency_ms,
            bandwidth_bytes_per_s,
        };
        let topology = Topology {
            nodes: vec![node("a", "z1"), node("b", "z1"), node("c", "z2"), node("d", "z3")],
            links: vec![link("z2", "z1", 4.0, Some(5.0)), link("c", "a", 2.0, None), link("z1", "z1", 0.3, None)],
            ..Topology::default()
        };
        let distances = Distances::new(&topology, vec![0, 0, 1, 2]);
        for (i, a) in topology.nodes.iter().enumerate() {
            for (j, b) in topology.nodes.iter().enumerate() {
                assert_eq!(distances.latency_ms(i, j), topology.latency_ms(&a.id, &b.id), "{} {}", a.id, b.id);
                assert_eq!(distances.bandwidth(i, j), topology.bandwidth_bytes_per_s(&a.id, &b.id), "{i} {j}");
            }
        }
    }
}
