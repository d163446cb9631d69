//! Which node owns which shard, and the numbers that only grow.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

use crate::{NodeId, ShardId};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The next number.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter!(
    /// Grows with every change of owner of a shard (M3); engines refuse stale ones.
    Epoch
);
counter!(
    /// Grows with every change of the controlling process; a stale one can commit nothing.
    LeaderTerm
);
counter!(
    /// Grows with every commit of the state store.
    Revision
);

/// Who may accept writes of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The owning node.
    pub node: NodeId,
    /// Since which epoch.
    pub epoch: Epoch,
}

/// Which node holds each shard.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Placement(BTreeMap<ShardId, NodeId>);

impl Placement {
    /// A placement without shards.
    pub fn new() -> Self {
        Self::default()
    }

    /// The node of a shard.
    pub fn node_of(&self, shard: &ShardId) -> Option<&NodeId> {
        self.0.get(shard)
    }

    /// Puts a shard on a node; returns where it was.
    pub fn assign(&mut self, shard: ShardId, node: NodeId) -> Option<NodeId> {
        self.0.insert(shard, node)
    }

    /// All pairs, by shard.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ShardId, &NodeId)> {
        self.0.iter()
    }

    /// The shards of one node, in order.
    pub fn shards_on<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a ShardId> {
        self.0.iter().filter(move |(_, n)| *n == node).map(|(shard, _)| shard)
    }

    /// Number of shards.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds no shard.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(ShardId, NodeId)> for Placement {
    fn from_iter<I: IntoIterator<Item = (ShardId, NodeId)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}
