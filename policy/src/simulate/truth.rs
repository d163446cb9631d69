//! What comes, as the score of decisions asks for it.

use foreshard_domain::{NodeId, Resource, ShardId, Step, Timestamp};

use super::Cell;
use crate::Demand;

/// The loads of a cell and where its shards are at one moment. In a replay demand is always known: nothing is saturated.
pub(super) struct Truth<'c> {
    pub cell: &'c Cell,
    pub owner: &'c [usize],
}

impl Demand for Truth<'_> {
    fn step(&self) -> Step {
        self.cell.loads().step()
    }

    fn shards_on(&self, node: &NodeId, _at: Timestamp) -> Vec<ShardId> {
        let place = self.cell.topology().nodes.iter().position(|n| n.id == *node);
        let shards = self.cell.loads().shards().iter().zip(self.owner);
        shards.filter(|(_, owner)| Some(**owner) == place).map(|(shard, _)| shard.clone()).collect()
    }

    fn demand(&self, shard: &ShardId, resource: Resource, at: Timestamp) -> Option<f64> {
        let loads = self.cell.loads();
        let shard =
            loads.shards().binary_search(shard).ok().or_else(|| loads.shards().iter().position(|s| s == shard))?;
        let r = loads.resources().iter().position(|known| *known == resource)?;
        let step = usize::try_from(loads.step().count_in(at.since_ms(loads.start()))).ok()?;
        (step < loads.steps()).then(|| f64::from(loads.at(r, shard, step)))
    }

    fn capacity(&self, _node: &NodeId, resource: Resource) -> Option<f64> {
        self.cell.capacity()[resource]
    }
}
