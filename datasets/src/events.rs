//! Known events that change load: campaigns, sales, closing days.

use std::path::Path;

use foreshard_domain::{ShardId, Timestamp};

use crate::TableError;
use crate::table::{Table, TableBuilder};

/// A span of time in which load is known to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadEvent {
    /// First moment.
    pub start: Timestamp,
    /// First moment after it.
    pub end: Timestamp,
    /// What it is; events of one name resemble each other.
    pub name: String,
    /// Whose load; all shards if absent.
    pub shard: Option<ShardId>,
}

/// Reads `start`, `end`, `name` and, where there is one, `shard_id` from CSV (a file named `.csv`, times like
/// `2024-05-01T10:00:00Z`) or Parquet.
///
/// # Errors
/// [`TableError`]: damaged files, missing columns or values, an end that is not after its start.
pub fn read_events(path: &Path) -> Result<Vec<LoadEvent>, TableError> {
    let table = Table::read(path)?;
    let (start, end) = (table.times("start")?, table.times("end")?);
    let (name, shard) = (table.text("name")?, table.text_or_none("shard_id")?);
    let one = |row: usize| {
        let (start, end) = (start.need(row)?, end.need(row)?);
        if end <= start {
            return Err(table.bad(row, "end", &end.to_string(), format!("it must be after the start {start}")));
        }
        Ok(LoadEvent { start, end, name: name.need(row)?.to_owned(), shard: shard.parse_optional(row)? })
    };
    (0..table.rows()).map(one).collect()
}

/// Writes events as Parquet.
///
/// # Errors
/// [`TableError`]: I/O or encoding.
pub fn write_events(path: &Path, events: &[LoadEvent]) -> Result<(), TableError> {
    TableBuilder::default()
        .times("start", events.iter().map(|e| Some(e.start)))
        .times("end", events.iter().map(|e| Some(e.end)))
        .text("name", events.iter().map(|e| Some(e.name.as_str())))
        .text("shard_id", events.iter().map(|e| e.shard.as_ref().map(|s| s.as_str())))
        .write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_parquet_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let csv = dir.path().join("events.csv");
        let text = "start,end,name,shard_id\n2024-05-01T10:00:00Z,2024-05-01T14:00:00+02:00,sale,\n\
                    2024-05-02 10:00:00,2024-05-02T11:00:00,batch,s1\n";
        std::fs::write(&csv, text).unwrap();
        let events = read_events(&csv).unwrap();
        assert_eq!(events[0].end.since_ms(events[0].start), 7_200_000);
        assert_eq!((events[0].shard.as_ref(), events[1].name.as_str()), (None, "batch"));
        let parquet = dir.path().join("events.parquet");
        write_events(&parquet, &events).unwrap();
        assert_eq!(read_events(&parquet).unwrap(), events);
    }

    #[test]
    fn refuses_bad_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.csv");
        for (times, told) in
            [("yesterday,2024-05-01T10:00:00Z", "yesterday"), ("2024-05-02,2024-05-01", "after the start")]
        {
            std::fs::write(&path, format!("start,end,name\n{times},x\n")).unwrap();
            let error = read_events(&path).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
