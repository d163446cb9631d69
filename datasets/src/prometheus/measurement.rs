//! The columns that a series can become.

use foreshard_domain::Observation;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A column of numbers of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measurement {
    /// CPU load; 100 = all CPU of a reference node.
    CpuUtil,
    /// Memory load; 100 = all memory of a reference node.
    MemUtil,
    /// I/O operations per second.
    IoOps,
    /// Latency in milliseconds.
    LatencyMs,
    /// Transactions per second.
    TxnRate,
    /// Stored bytes.
    DataBytes,
    /// Bytes written per second.
    WriteBytesPerS,
}

impl Measurement {
    /// All, in the order of the columns of a history.
    pub const ALL: [Measurement; 7] = [
        Measurement::CpuUtil,
        Measurement::MemUtil,
        Measurement::IoOps,
        Measurement::LatencyMs,
        Measurement::TxnRate,
        Measurement::DataBytes,
        Measurement::WriteBytesPerS,
    ];

    /// The name of the column.
    pub const fn name(self) -> &'static str {
        match self {
            Measurement::CpuUtil => "cpu_util",
            Measurement::MemUtil => "mem_util",
            Measurement::IoOps => "io_ops",
            Measurement::LatencyMs => "latency_ms",
            Measurement::TxnRate => "txn_rate",
            Measurement::DataBytes => "data_bytes",
            Measurement::WriteBytesPerS => "write_bytes_per_s",
        }
    }

    /// The value of the column.
    pub const fn of(self, row: &Observation) -> Option<f64> {
        match self {
            Measurement::CpuUtil => row.cpu_util,
            Measurement::MemUtil => row.mem_util,
            Measurement::IoOps => row.io_ops,
            Measurement::LatencyMs => row.latency_ms,
            Measurement::TxnRate => row.txn_rate,
            Measurement::DataBytes => row.data_bytes,
            Measurement::WriteBytesPerS => row.write_bytes_per_s,
        }
    }

    /// Puts a value into the column.
    pub const fn put(self, row: &mut Observation, value: Option<f64>) {
        let column = match self {
            Measurement::CpuUtil => &mut row.cpu_util,
            Measurement::MemUtil => &mut row.mem_util,
            Measurement::IoOps => &mut row.io_ops,
            Measurement::LatencyMs => &mut row.latency_ms,
            Measurement::TxnRate => &mut row.txn_rate,
            Measurement::DataBytes => &mut row.data_bytes,
            Measurement::WriteBytesPerS => &mut row.write_bytes_per_s,
        };
        *column = value;
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{ShardId, Timestamp};

    #[test]
    fn each_has_a_column_of_its_own() {
        let mut row = Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(0));
        for (i, measurement) in Measurement::ALL.into_iter().enumerate() {
            assert_eq!(measurement.of(&row), None);
            measurement.put(&mut row, Some(i as f64));
            let json = serde_json::to_value(measurement).unwrap();
            assert_eq!(json, measurement.name());
        }
        for (i, measurement) in Measurement::ALL.into_iter().enumerate() {
            assert_eq!(measurement.of(&row), Some(i as f64));
        }
    }
}
