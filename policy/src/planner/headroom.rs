//! Whether the cluster could do without a node: where its shards would go if it were lost.

use std::collections::BinaryHeap;

use foreshard_domain::NodeState;

use crate::IfLost;
use crate::dense::{Model, NodeLoad};

/// Room of a node, ordered by its size and then by its place in the topology.
#[derive(PartialEq)]
struct Room(f64, usize);

impl Eq for Room {}

impl PartialOrd for Room {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Room {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
    }
}

/// For every node, what its loss would leave the others with: its shards, the largest first, each to the node with the most
/// room. A simple packing at mean loads, the fullest resource counting: shards that find no room in it may find some by a
/// better one, and groups are not looked at.
pub(crate) fn if_lost(model: &Model<'_>, loads: &[&NodeLoad], on: &[Vec<usize>], weights: &[f64]) -> Vec<IfLost> {
    let peak = |node: usize| {
        let shares = model.resources.iter().filter_map(|r| Some((*r, model.capacity(node, *r)?)));
        let peaks = shares.map(|(r, capacity)| {
            let rows = loads[node].0[r].values().chunks_exact(model.grid.scenarios).skip(model.grid.first);
            let means = rows.map(|row| row.iter().map(|v| f64::from(*v)).sum::<f64>() / row.len() as f64);
            means.fold(0.0, f64::max) / capacity
        });
        peaks.fold(0.0, f64::max)
    };
    let takes = |node: usize| model.nodes[node].node.state == NodeState::Active;
    let rooms: Vec<(f64, usize)> = (0..model.nodes.len()).filter(|n| takes(*n)).map(|n| (1.0 - peak(n), n)).collect();
    let of = |lost: usize| {
        let mut heap: BinaryHeap<Room> = rooms.iter().filter(|(_, n)| *n != lost).map(|(r, n)| Room(*r, *n)).collect();
        let mut shards: Vec<f64> = on[lost].iter().map(|s| weights[*s]).collect();
        shards.sort_by(|a, b| b.total_cmp(a));
        let (mut homeless, mut fullest) = (0, 0.0f64);
        for weight in shards {
            match heap.pop() {
                Some(Room(room, node)) if room >= weight => {
                    fullest = fullest.max(1.0 - (room - weight));
                    heap.push(Room(room - weight, node));
                }
                other => {
                    homeless += 1;
                    heap.extend(other);
                }
            }
        }
        IfLost { homeless, fullest }
    };
    (0..model.nodes.len()).map(of).collect()
}
