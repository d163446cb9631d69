//! The columns of a history and how they lie in memory.

use arrow::datatypes::{DataType, Field, TimeUnit};
use foreshard_domain::{Metric, Observation};

/// Whose row it is.
pub(crate) const SHARD: &str = "shard_id";
/// Which node carried it.
pub(crate) const NODE: &str = "node_id";
/// When.
pub(crate) const TS: &str = "ts";

/// Number of columns that hold numbers: the metrics, then stored bytes, then written bytes.
pub(crate) const VALUES: usize = 8;
/// Place of `data_bytes` among them.
pub(crate) const DATA_BYTES: usize = 6;
/// Place of `write_bytes_per_s` among them.
pub(crate) const WRITE_BYTES: usize = 7;

/// Names of the columns that hold numbers, in their order in memory.
pub(crate) const VALUE_NAMES: [&str; VALUES] =
    ["cpu_util", "mem_util", "io_ops", "latency_ms", "txn_rate", "value", "data_bytes", "write_bytes_per_s"];

/// Place of a metric among the columns that hold numbers.
pub(crate) fn slot(metric: Metric) -> usize {
    match metric {
        Metric::CpuUtil => 0,
        Metric::MemUtil => 1,
        Metric::IoOps => 2,
        Metric::LatencyMs => 3,
        Metric::TxnRate => 4,
        Metric::Value => 5,
    }
}

/// The metric of a column that holds numbers; `None` for bytes stored and written.
pub(crate) fn metric_at(slot: usize) -> Option<Metric> {
    Metric::ALL.get(slot).copied()
}

/// The numbers of a row in the order of [`VALUE_NAMES`]; missing is NaN, and so is what is not finite.
pub(crate) fn numbers(row: &Observation) -> [f64; VALUES] {
    let number = |v: Option<f64>| v.filter(|v| v.is_finite()).unwrap_or(f64::NAN);
    [
        number(row.cpu_util),
        number(row.mem_util),
        number(row.io_ops),
        number(row.latency_ms),
        number(row.txn_rate),
        f64::NAN,
        number(row.data_bytes),
        number(row.write_bytes_per_s),
    ]
}

/// The type of `ts` in files that are written.
pub(crate) fn ts_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// The fields of a written history; `value` only where there is a series from a wide file.
pub(crate) fn fields(with_value: bool) -> Vec<Field> {
    let mut fields = vec![
        Field::new(SHARD, DataType::Utf8, false),
        Field::new(NODE, DataType::Utf8, true),
        Field::new(TS, ts_type(), false),
    ];
    for (i, name) in VALUE_NAMES.iter().enumerate() {
        if with_value || i != slot(Metric::Value) {
            fields.push(Field::new(*name, DataType::Float64, true));
        }
    }
    fields
}

/// Earliest time that is taken for a measurement: 1900-01-01.
pub(crate) const EARLIEST_MS: i64 = -2_208_988_800_000;
/// First time that is no longer taken for one: 2200-01-01.
pub(crate) const LATEST_MS: i64 = 7_258_118_400_000;

/// Whether a time can be that of a measurement; a wrong unit puts times far outside.
pub(crate) fn plausible(ms: i64) -> bool {
    (EARLIEST_MS..LATEST_MS).contains(&ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_agree_with_names() {
        for metric in Metric::ALL {
            assert_eq!(VALUE_NAMES[slot(metric)], metric.name());
            assert_eq!(metric_at(slot(metric)), Some(metric));
        }
        assert_eq!(metric_at(DATA_BYTES), None);
        assert_eq!((VALUE_NAMES[DATA_BYTES], VALUE_NAMES[WRITE_BYTES]), ("data_bytes", "write_bytes_per_s"));
    }
}
