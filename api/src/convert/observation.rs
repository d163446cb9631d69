//! Rows of history.

use foreshard_domain::{NodeId, Observation};

use super::names::shard_from_wire;
use super::{timestamp_from_wire, timestamp_to_wire};
use crate::{WireError, v1};

impl From<&Observation> for v1::Observation {
    fn from(row: &Observation) -> Self {
        Self {
            shard_id: row.shard.to_string(),
            node_id: row.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            ts: Some(timestamp_to_wire(row.ts)),
            cpu_util: row.cpu_util,
            mem_util: row.mem_util,
            io_ops: row.io_ops,
            latency_ms: row.latency_ms,
            txn_rate: row.txn_rate,
            data_bytes: row.data_bytes,
            write_bytes_per_s: row.write_bytes_per_s,
        }
    }
}

impl TryFrom<v1::Observation> for Observation {
    type Error = WireError;
    /// Checks what makes a row a row; whether its measurements are possible is for the server to judge.
    fn try_from(row: v1::Observation) -> Result<Self, WireError> {
        let node = match row.node_id.as_str() {
            "" => None,
            _ => Some(NodeId::new(row.node_id).map_err(|source| WireError::Id { field: "node_id", source })?),
        };
        Ok(Self {
            shard: shard_from_wire("shard_id", row.shard_id)?,
            node,
            ts: timestamp_from_wire("ts", row.ts)?,
            cpu_util: row.cpu_util,
            mem_util: row.mem_util,
            io_ops: row.io_ops,
            latency_ms: row.latency_ms,
            txn_rate: row.txn_rate,
            data_bytes: row.data_bytes,
            write_bytes_per_s: row.write_bytes_per_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{ShardId, Timestamp};

    #[test]
    fn rows_go_both_ways_and_absent_stays_absent() {
        let mut row = Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(1_234_567));
        row.cpu_util = Some(0.0);
        assert_eq!(Observation::try_from(v1::Observation::from(&row)), Ok(row.clone()));
        row.node = Some(NodeId::new("n1").unwrap());
        row.write_bytes_per_s = Some(1e9);
        assert_eq!(Observation::try_from(v1::Observation::from(&row)), Ok(row));
    }

    #[test]
    fn rows_without_shard_or_time_are_refused() {
        let row = v1::Observation { shard_id: "s".into(), ..Default::default() };
        assert_eq!(Observation::try_from(row).unwrap_err().field(), "ts");
        assert_eq!(Observation::try_from(v1::Observation::default()).unwrap_err().field(), "shard_id");
        let row = v1::Observation { shard_id: "s".into(), node_id: "a\nb".into(), ..Default::default() };
        assert_eq!(Observation::try_from(row).unwrap_err().field(), "node_id");
    }
}
