//! `foreshard migrate ring`: the shard map beside what the ring would say.

use foreshard_api::ShardOwner;
use foreshard_control::shard_map;
use foreshard_datasets::read_topology;
use foreshard_domain::{Node, NodeId, ShardId};
use foreshard_migrator::Ring;
use serde::Serialize;
use std::path::Path;

use super::access::View;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

#[derive(Serialize)]
struct Map {
    shards: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    shard: ShardId,
    node: NodeId,
    epoch: u64,
    /// It is there on purpose.
    by_override: bool,
    /// Where the ring would put it, if nodes are known.
    home: Option<NodeId>,
}

/// Shows who owns which shard.
pub async fn run(topology: Option<&Path>, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let owners = match View::open(settings).await? {
        View::Holder(client) => client.shard_map().await?,
        View::File(state) => shard_map(&state),
    };
    let ring = ring(topology, settings, &owners)?;
    let row = |ShardOwner { shard, owner, by_override }: ShardOwner| Row {
        home: ring.as_ref().map(|ring| ring.home(&shard).clone()),
        shard,
        node: owner.node,
        epoch: owner.epoch.0,
        by_override,
    };
    output::print(format, &Map { shards: owners.into_iter().map(row).collect() }, text)?;
    Ok(Verdict::Done)
}

/// The ring of the topology's nodes; none without nodes or shards. Larger nodes get more of it, as the planner's do.
fn ring(topology: Option<&Path>, settings: &Settings, owners: &[ShardOwner]) -> Result<Option<Ring>, Failure> {
    let named = topology.is_some();
    let path = topology.unwrap_or(&settings.data.topology);
    if owners.is_empty() || !named && !path.exists() {
        return Ok(None);
    }
    let weight = |node: &Node| (node.id.clone(), node.capacity.cpu.unwrap_or(100.0 * node.speed));
    let nodes = read_topology(path)?.nodes.iter().map(weight).collect();
    Ok(Some(Ring::new(0, owners.iter().map(|o| o.shard.clone()).collect(), nodes)?))
}

fn text(map: &Map) -> String {
    if map.shards.is_empty() {
        return "no shard has an owner yet; `foreshard migrate start` enters the shard that it moves".to_owned();
    }
    let row = |r: &Row| {
        let home = r.home.as_ref().map_or("-", NodeId::as_str);
        let placed = if r.by_override { "override" } else { "" };
        vec![r.shard.to_string(), r.node.to_string(), r.epoch.to_string(), placed.to_owned(), home.to_owned()]
    };
    let rows: Vec<_> = map.shards.iter().map(row).collect();
    output::table(&["shard", "node", "epoch", "placed by", "ring's choice"], &rows)
}
