//! Known events that change load: campaigns, sales, closing days.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use foreshard_domain::{ShardId, Timestamp};
use sha2::{Digest, Sha256};

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

impl LoadEvent {
    fn span_and_name(&self) -> (Timestamp, Timestamp, &str) {
        (self.start, self.end, &self.name)
    }
}

/// Events found by shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventCalendar {
    everyone: Vec<LoadEvent>,
    by_shard: BTreeMap<ShardId, Vec<LoadEvent>>,
}

impl EventCalendar {
    /// Of events in any order. What is told twice, of a shard and of everybody too, counts once.
    pub fn new(events: impl IntoIterator<Item = LoadEvent>) -> Self {
        let mut calendar = Self::default();
        for event in events {
            match &event.shard {
                Some(shard) => calendar.by_shard.entry(shard.clone()).or_default().push(event),
                None => calendar.everyone.push(event),
            }
        }
        let in_order = |events: &mut Vec<LoadEvent>| {
            events.sort_by(|a, b| a.span_and_name().cmp(&b.span_and_name()));
            events.dedup();
        };
        in_order(&mut calendar.everyone);
        for own in calendar.by_shard.values_mut() {
            in_order(own);
            own.retain(|event| {
                let same = |other: &LoadEvent| other.span_and_name().cmp(&event.span_and_name());
                calendar.everyone.binary_search_by(same).is_err()
            });
        }
        calendar.by_shard.retain(|_, own| !own.is_empty());
        calendar
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.everyone.is_empty() && self.by_shard.is_empty()
    }

    /// All of them: those of everybody first, then by shard, each by start.
    fn all(&self) -> impl Iterator<Item = &LoadEvent> {
        self.everyone.iter().chain(self.by_shard.values().flatten())
    }

    /// The events that concern a shard: those of everybody first, each by start.
    pub fn of<'a>(&'a self, shard: &ShardId) -> impl Iterator<Item = &'a LoadEvent> + use<'a> {
        self.everyone.iter().chain(self.by_shard.get(shard).into_iter().flatten())
    }
}

/// How many there are, and the SHA-256 of what they say: two calendars are the same if their texts are.
impl fmt::Display for EventCalendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut digest = Sha256::new();
        for LoadEvent { start, end, name, shard } in self.all() {
            let shard = shard.as_ref().map_or("", |s| s.as_str());
            // Lengths come along, so that no name can pass for something else.
            digest.update(format!("{start} {end} {} {name} {} {shard}\n", name.len(), shard.len()));
        }
        write!(f, "{}, sha256 ", self.all().count())?;
        digest.finalize().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
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
        let calendar = EventCalendar::new(events.iter().rev().cloned());
        let names = |shard: &str| -> Vec<String> {
            calendar.of(&ShardId::new(shard).unwrap()).map(|e| e.name.clone()).collect()
        };
        assert_eq!((names("s1"), names("s2")), (vec!["sale".to_owned(), "batch".to_owned()], vec!["sale".to_owned()]));
        assert!(!calendar.is_empty() && EventCalendar::default().is_empty());
        let parquet = dir.path().join("events.parquet");
        write_events(&parquet, &events).unwrap();
        assert_eq!(read_events(&parquet).unwrap(), events);
    }

    #[test]
    fn what_is_told_twice_counts_once() {
        let shard = ShardId::new("s1").unwrap();
        let event = |shard: Option<&ShardId>, name: &str| LoadEvent {
            start: Timestamp::from_ms(0),
            end: Timestamp::from_ms(10),
            name: name.to_owned(),
            shard: shard.cloned(),
        };
        let own = Some(&shard);
        let told =
            [event(own, "sale"), event(None, "sale"), event(None, "sale"), event(own, "raid"), event(own, "raid")];
        let calendar = EventCalendar::new(told);
        let names: Vec<&str> = calendar.of(&shard).map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["sale", "raid"]);
        let told = calendar.to_string();
        assert!(told.starts_with("2, sha256 ") && told.len() == 74, "{told}");
        assert_eq!(told, EventCalendar::new([event(own, "raid"), event(None, "sale")]).to_string());
        assert_ne!(told, EventCalendar::new([event(None, "raid"), event(None, "sale")]).to_string());
        assert_eq!(EventCalendar::default().to_string(), "none");
        assert_eq!(EventCalendar::new([event(own, "x"), event(None, "x")]), EventCalendar::new([event(None, "x")]));
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
