//! Where keys live: key -> virtual shard by hash -> node by weighted rendezvous, unless an override says otherwise.
//!
//! Rendezvous gives every (shard, node) pair a score; the highest wins. A node that joins takes only the shards that it wins,
//! one that leaves gives away only its own, and shards are spread in proportion to the nodes' weights. Balance of hashes is
//! no balance of load: that is what moves, and their overrides, are for.

use foreshard_domain::{Epoch, NodeId, Owner, Placement, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Why a ring cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RingError {
    /// There is nowhere to put shards.
    #[error("a ring needs at least one node")]
    NoNodes,
    /// There is nothing to put anywhere.
    #[error("a ring needs at least one virtual shard")]
    NoShards,
    /// A shard is listed twice.
    #[error("virtual shard {shard} is listed more than once")]
    Twice {
        /// The shard.
        shard: ShardId,
    },
    /// A node cannot take part in proportion to its weight.
    #[error("weight of node {node} must be a positive finite number, not {weight}")]
    Weight {
        /// The node.
        node: NodeId,
        /// What was given.
        weight: f64,
    },
}

/// Places virtual shards on nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ring {
    seed: u64,
    shards: Vec<ShardId>,
    nodes: BTreeMap<NodeId, f64>,
    /// One of the nodes: a ring has at least one.
    first: NodeId,
}

/// Who decided where a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The ring.
    ByRing,
    /// The override table.
    ByOverride,
}

/// Where a key lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Its virtual shard.
    pub shard: ShardId,
    /// The node.
    pub node: NodeId,
    /// Epoch of the override; `None` if the ring decided.
    pub epoch: Option<Epoch>,
    /// Who decided.
    pub placed: Placed,
}

/// One node's claim to a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its weight.
    pub weight: f64,
    /// Its score; the highest wins, the smaller name if two are equal.
    pub score: f64,
}

/// Why a key lives where it does.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Hash of the key.
    pub hash: u64,
    /// Number of the virtual shard.
    pub number: usize,
    /// All nodes, best first.
    pub candidates: Vec<Candidate>,
    /// The answer.
    pub located: Located,
}

impl Ring {
    /// A ring of virtual shards on weighted nodes. The order of the shards is part of the mapping of keys; 256 to 4096 are
    /// enough for a few dozen nodes.
    ///
    /// # Errors
    /// [`RingError`] if there are no nodes or shards, a shard is listed twice, or a weight is not positive.
    pub fn new(seed: u64, shards: Vec<ShardId>, nodes: BTreeMap<NodeId, f64>) -> Result<Self, RingError> {
        let mut seen = BTreeSet::new();
        if let Some(shard) = shards.iter().find(|shard| !seen.insert(*shard)) {
            return Err(RingError::Twice { shard: shard.clone() });
        }
        if let Some((node, weight)) = nodes.iter().find(|(_, w)| !(w.is_finite() && **w > 0.0)) {
            return Err(RingError::Weight { node: node.clone(), weight: *weight });
        }
        if shards.is_empty() {
            return Err(RingError::NoShards);
        }
        let first = nodes.keys().next().cloned().ok_or(RingError::NoNodes)?;
        Ok(Self { seed, shards, nodes, first })
    }

    /// The virtual shards, in the order that the mapping of keys follows.
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// The virtual shard of a key.
    pub fn shard_of(&self, key: &[u8]) -> &ShardId {
        let (_, number) = self.number_of(key);
        &self.shards[number]
    }

    /// Hash and virtual shard number of a key. The high bits of the product spread a hash over any number of shards evenly,
    /// without the bias of a remainder.
    fn number_of(&self, key: &[u8]) -> (u64, usize) {
        let hash = xxh3_64_with_seed(key, self.seed);
        let product = u128::from(hash) * self.shards.len() as u128;
        // Below the number of shards, since the hash is below 2^64.
        (hash, usize::try_from(product >> 64).unwrap_or(0))
    }

    /// Where the ring alone would put a shard.
    pub fn home(&self, shard: &ShardId) -> &NodeId {
        let scores = self.nodes.iter().map(|(node, weight)| (node, self.score(shard, node, *weight)));
        let lowest = (&self.first, f64::NEG_INFINITY);
        scores.fold(lowest, |best, next| if next.1 > best.1 { next } else { best }).0
    }

    /// Where the ring alone would put all shards.
    pub fn placement(&self) -> Placement {
        self.shards.iter().map(|shard| (shard.clone(), self.home(shard).clone())).collect()
    }

    /// Where a key lives: an override wins, and its epoch comes with it.
    pub fn locate(&self, key: &[u8], overrides: &BTreeMap<ShardId, Owner>) -> Located {
        let shard = self.shard_of(key);
        match overrides.get(shard) {
            Some(owner) => Located {
                shard: shard.clone(),
                node: owner.node.clone(),
                epoch: Some(owner.epoch),
                placed: Placed::ByOverride,
            },
            None => {
                Located { shard: shard.clone(), node: self.home(shard).clone(), epoch: None, placed: Placed::ByRing }
            }
        }
    }

    /// Why a key lives where it does, for a person.
    pub fn explain(&self, key: &[u8], overrides: &BTreeMap<ShardId, Owner>) -> Explanation {
        let (hash, number) = self.number_of(key);
        let located = self.locate(key, overrides);
        let candidate = |(node, weight): (&NodeId, &f64)| Candidate {
            node: node.clone(),
            weight: *weight,
            score: self.score(&located.shard, node, *weight),
        };
        let mut candidates: Vec<Candidate> = self.nodes.iter().map(candidate).collect();
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.node.cmp(&b.node)));
        Explanation { hash, number, candidates, located }
    }

    /// `-weight / ln(u)` for a hash `u` in (0, 1): the probability to win is the node's share of all weights.
    fn score(&self, shard: &ShardId, node: &NodeId, weight: f64) -> f64 {
        // The shard's hash seeds the node's, so that no pair of names runs into another.
        let hash = xxh3_64_with_seed(node.as_str().as_bytes(), xxh3_64_with_seed(shard.as_str().as_bytes(), self.seed));
        // 53 bits, shifted by half a step to exclude 0 and 1.
        let u = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -weight / u.ln()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Located { shard, node, epoch, placed } = &self.located;
        writeln!(f, "hash {:016x} -> virtual shard {} ({shard})", self.hash, self.number)?;
        for candidate in &self.candidates {
            writeln!(f, "  {}: weight {}, score {:.4}", candidate.node, candidate.weight, candidate.score)?;
        }
        match (placed, epoch) {
            (Placed::ByOverride, Some(epoch)) => write!(f, "on {node} by override since epoch {epoch}"),
            (Placed::ByOverride, None) => write!(f, "on {node} by override"),
            (Placed::ByRing, _) => write!(f, "on {node} by the ring"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(i: usize) -> NodeId {
        NodeId::new(format!("n{i:02}")).unwrap()
    }

    fn shards(n: usize) -> Vec<ShardId> {
        (0..n).map(|i| ShardId::new(format!("s{i:04}")).unwrap()).collect()
    }

    fn ring(seed: u64, n: usize, weights: &[f64]) -> Ring {
        let nodes = weights.iter().enumerate().map(|(i, w)| (node(i), *w)).collect();
        Ring::new(seed, shards(n), nodes).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_node_that_joins_takes_and_moves_nothing_else(
            seed: u64, weights in prop::collection::vec(0.1f64..10.0, 2..12),
        ) {
            let (before, after) = (ring(seed, 256, &weights[..weights.len() - 1]), ring(seed, 256, &weights));
            let joined = node(weights.len() - 1);
            for shard in before.shards() {
                let (old, new) = (before.home(shard), after.home(shard));
                prop_assert!(old == new || *new == joined, "{shard} moved from {old} to {new}");
            }
        }

        #[test]
        fn a_heavier_node_loses_no_shard(
            seed: u64, mut weights in prop::collection::vec(0.1f64..10.0, 2..12), factor in 1.0f64..5.0,
        ) {
            let before = ring(seed, 256, &weights);
            weights[0] *= factor;
            let after = ring(seed, 256, &weights);
            for shard in before.shards() {
                let (old, new) = (before.home(shard), after.home(shard));
                prop_assert!(old == new || *new == node(0), "{shard} moved from {old} to {new}");
            }
        }
    }

    #[test]
    fn shards_follow_weights() {
        let ring = ring(7, 4096, &[1.0, 1.0, 2.0]);
        let placement = ring.placement();
        let shares: Vec<f64> = (0..3).map(|i| placement.shards_on(&node(i)).count() as f64 / 4096.0).collect();
        for (share, ideal) in shares.iter().zip([0.25, 0.25, 0.5]) {
            // Three deviations of a binomial share of 4096.
            assert!((share - ideal).abs() < 0.024, "{shares:?}");
        }
    }

    #[test]
    fn keys_spread_evenly_and_by_seed() {
        let (one, other) = (ring(1, 16, &[1.0]), ring(2, 16, &[1.0]));
        let mut counts = BTreeMap::new();
        let mut same = 0;
        for key in 0..16_000u32 {
            *counts.entry(one.shard_of(&key.to_le_bytes()).clone()).or_insert(0u32) += 1;
            same += u32::from(one.shard_of(&key.to_le_bytes()) == other.shard_of(&key.to_le_bytes()));
        }
        assert_eq!(counts.len(), 16);
        assert!(counts.values().all(|c| (880..1120).contains(c)), "{counts:?}");
        assert!((800..1200).contains(&same), "{same}");
    }

    #[test]
    fn an_override_wins_and_is_explained() {
        let ring = ring(3, 64, &[1.0, 1.0, 1.0]);
        let shard = ring.shard_of(b"k").clone();
        let home = ring.home(&shard).clone();
        let elsewhere = (0..3).map(node).find(|n| *n != home).unwrap();
        let none = BTreeMap::new();
        assert_eq!(ring.locate(b"k", &none).node, home);
        let owner = Owner { node: elsewhere.clone(), epoch: Epoch(9) };
        let overrides = BTreeMap::from([(shard, owner)]);
        let explained = ring.explain(b"k", &overrides);
        assert_eq!((&explained.located.node, explained.located.epoch), (&elsewhere, Some(Epoch(9))));
        assert_eq!(explained.candidates[0].node, home);
        assert!(explained.to_string().ends_with(&format!("on {elsewhere} by override since epoch 9")));
        assert!(ring.explain(b"k", &none).to_string().ends_with(&format!("on {home} by the ring")));
    }

    #[test]
    fn refuses_what_cannot_be() {
        let one = BTreeMap::from([(node(0), 1.0)]);
        assert_eq!(Ring::new(0, shards(1), BTreeMap::new()), Err(RingError::NoNodes));
        assert_eq!(Ring::new(0, Vec::new(), one.clone()), Err(RingError::NoShards));
        let twice = vec![shards(1)[0].clone(), shards(1)[0].clone()];
        assert!(matches!(Ring::new(0, twice, one), Err(RingError::Twice { .. })));
        let weight = BTreeMap::from([(node(0), 0.0)]);
        assert!(matches!(Ring::new(0, shards(1), weight), Err(RingError::Weight { .. })));
    }
}
