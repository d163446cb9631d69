//! Which shards talk to each other, and how much.

use std::path::Path;

use foreshard_domain::ShardId;

use crate::TableError;
use crate::table::{Table, TableBuilder};

/// Traffic between two shards, both directions together.
#[derive(Debug, Clone, PartialEq)]
pub struct CommunicationEdge {
    /// One end.
    pub shard_a: ShardId,
    /// The other end.
    pub shard_b: ShardId,
    /// Mean traffic in bytes per second.
    pub bytes_per_s: f64,
}

/// Reads `shard_a`, `shard_b`, `bytes_per_s` from CSV (a file named `.csv`) or Parquet.
///
/// # Errors
/// [`TableError`]: damaged files, missing columns or values, traffic that is negative or no number.
pub fn read_communication(path: &Path) -> Result<Vec<CommunicationEdge>, TableError> {
    let table = Table::read(path)?;
    let (a, b, traffic) = (table.text("shard_a")?, table.text("shard_b")?, table.numbers("bytes_per_s")?);
    let one = |row: usize| {
        let bytes_per_s = traffic.need(row)?;
        if !(bytes_per_s.is_finite() && bytes_per_s >= 0.0) {
            let why = "expected a number of at least 0".to_owned();
            return Err(table.bad(row, "bytes_per_s", &bytes_per_s.to_string(), why));
        }
        Ok(CommunicationEdge { shard_a: a.parse(row)?, shard_b: b.parse(row)?, bytes_per_s })
    };
    (0..table.rows()).map(one).collect()
}

/// Writes edges as Parquet.
///
/// # Errors
/// [`TableError`]: I/O or encoding.
pub fn write_communication(path: &Path, edges: &[CommunicationEdge]) -> Result<(), TableError> {
    TableBuilder::default()
        .text("shard_a", edges.iter().map(|e| Some(e.shard_a.as_str())))
        .text("shard_b", edges.iter().map(|e| Some(e.shard_b.as_str())))
        .numbers("bytes_per_s", edges.iter().map(|e| Some(e.bytes_per_s)))
        .write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_parquet_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let csv = dir.path().join("edges.csv");
        std::fs::write(&csv, "shard_a, shard_b, bytes_per_s\na, b, 1024.5\nb, c, 0\n").unwrap();
        let edges = read_communication(&csv).unwrap();
        assert_eq!((edges.len(), edges[0].bytes_per_s), (2, 1024.5));
        let parquet = dir.path().join("edges.parquet");
        write_communication(&parquet, &edges).unwrap();
        assert_eq!(read_communication(&parquet).unwrap(), edges);
    }

    #[test]
    fn tells_row_and_column_of_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edges.csv");
        for (text, told) in [
            ("shard_a,shard_b\na,b", "bytes_per_s"),
            ("shard_a,shard_b,bytes_per_s\na,b,1\na,b,many", "row 1"),
            ("shard_a,shard_b,bytes_per_s\na,b,-1", "at least 0"),
            ("shard_a,shard_b,bytes_per_s\na,b,NaN", "at least 0"),
            ("shard_a,shard_b,bytes_per_s\na,,1", "no shard_b"),
            ("shard_a,shard_b,bytes_per_s\na,b", "CSV"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_communication(&path).unwrap_err().to_string();
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }
}
