//! One row of history.

use serde::{Deserialize, Serialize};

use crate::{Metric, NodeId, ShardId, Timestamp};

/// What was measured of one shard (or of a node's own residual) at one time. Absent is not zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Whose; [`ShardId::residual`] for a node's own load.
    pub shard: ShardId,
    /// The node that carried it, where known.
    pub node: Option<NodeId>,
    /// When, in model time.
    pub ts: Timestamp,
    /// CPU load; 100 = all CPU of a reference node.
    pub cpu_util: Option<f64>,
    /// Memory load; 100 = all memory of a reference node.
    pub mem_util: Option<f64>,
    /// I/O operations per second.
    pub io_ops: Option<f64>,
    /// Latency in milliseconds.
    pub latency_ms: Option<f64>,
    /// Transactions per second.
    pub txn_rate: Option<f64>,
    /// Stored bytes.
    pub data_bytes: Option<f64>,
    /// Bytes written per second.
    pub write_bytes_per_s: Option<f64>,
}

impl Observation {
    /// A row without any measurement.
    pub fn empty(shard: ShardId, ts: Timestamp) -> Self {
        Self {
            shard,
            node: None,
            ts,
            cpu_util: None,
            mem_util: None,
            io_ops: None,
            latency_ms: None,
            txn_rate: None,
            data_bytes: None,
            write_bytes_per_s: None,
        }
    }

    /// The value of a metric; `value` is no column of a history.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::CpuUtil => self.cpu_util,
            Metric::MemUtil => self.mem_util,
            Metric::IoOps => self.io_ops,
            Metric::LatencyMs => self.latency_ms,
            Metric::TxnRate => self.txn_rate,
            Metric::Value => None,
        }
    }

    /// Sets the value of a metric; does nothing for `value`.
    pub fn set(&mut self, metric: Metric, value: Option<f64>) {
        match metric {
            Metric::CpuUtil => self.cpu_util = value,
            Metric::MemUtil => self.mem_util = value,
            Metric::IoOps => self.io_ops = value,
            Metric::LatencyMs => self.latency_ms = value,
            Metric::TxnRate => self.txn_rate = value,
            Metric::Value => {}
        }
    }
}
