//! Rows of shards in a file that nobody else sees: what a reader holds beyond its budget of memory.
//!
//! Rows lie in the order in which they came, in segments: a segment is some rows of one shard, column after column. Nothing
//! is sorted or merged here; whoever takes a shard out does that, as it would with rows that never left memory. The file has
//! no name, so that it is gone when the process is, however it ends.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use foreshard_domain::{NodeId, ShardId};

use crate::columns::VALUES;
use crate::rows::{NOWHERE, NodeColumn, ShardRows};

/// Bytes written at a time.
const BLOCK: usize = 1 << 20;
/// Bytes of a number and of the code of a node.
const WIDE: usize = size_of::<u64>();
const NARROW: usize = size_of::<u32>();

/// Where some rows of one shard lie.
#[derive(Debug, Clone)]
struct Segment {
    offset: u64,
    rows: usize,
    /// Whether codes of nodes follow the times.
    nodes: bool,
    /// Which number columns follow then.
    columns: [bool; VALUES],
}

/// The file, and where in it everything lies.
#[derive(Debug)]
pub(crate) struct Scratch {
    file: File,
    end: u64,
    /// What is not in the file yet.
    pending: Vec<u8>,
    shards: BTreeMap<ShardId, Vec<Segment>>,
    nodes: Vec<NodeId>,
    codes: HashMap<NodeId, u32>,
}

impl Scratch {
    /// An empty file in a folder that is there.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            file: tempfile::tempfile_in(folder)?,
            end: 0,
            pending: Vec::new(),
            shards: BTreeMap::new(),
            nodes: Vec::new(),
            codes: HashMap::new(),
        })
    }

    /// The shards that have rows, in order.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &ShardId> {
        self.shards.keys()
    }

    /// Puts rows of a shard behind those that it has here already.
    pub(crate) fn append(&mut self, shard: &ShardId, rows: &ShardRows) -> io::Result<()> {
        let columns = std::array::from_fn(|slot| rows.values[slot].is_some());
        let offset = self.end + self.pending.len() as u64;
        self.pending.extend(rows.ts.iter().flat_map(|t| t.to_le_bytes()));
        if let Some(nodes) = &rows.nodes {
            let (names, codes) = nodes.parts();
            let own: Vec<u32> = names.iter().map(|name| self.code(name)).collect();
            let code = |c: &u32| own.get(*c as usize).copied().unwrap_or(NOWHERE);
            self.pending.extend(codes.iter().flat_map(|c| code(c).to_le_bytes()));
        }
        for column in rows.values.iter().flatten() {
            self.pending.extend(column.iter().flat_map(|v| v.to_le_bytes()));
        }
        let segment = Segment { offset, rows: rows.len(), nodes: rows.nodes.is_some(), columns };
        match self.shards.get_mut(shard) {
            Some(segments) => segments.push(segment),
            None => {
                self.shards.insert(shard.clone(), vec![segment]);
            }
        }
        if self.pending.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    fn code(&mut self, node: &NodeId) -> u32 {
        if let Some(code) = self.codes.get(node) {
            return *code;
        }
        let code = u32::try_from(self.nodes.len()).unwrap_or(NOWHERE);
        self.nodes.push(node.clone());
        self.codes.insert(node.clone(), code);
        code
    }

    /// Writes what is pending; only what is written can be read.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.end)?;
        self.end += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// All rows of a shard, in the order in which they came, with their nodes if `nodes` and the number columns that are
    /// `wanted`.
    pub(crate) fn rows(&self, shard: &ShardId, nodes: bool, wanted: [bool; VALUES]) -> io::Result<ShardRows> {
        let segments = self.shards.get(shard).map(Vec::as_slice).unwrap_or_default();
        let all = segments.iter().map(|s| s.rows).sum();
        let has = |slot: usize| wanted[slot] && segments.iter().any(|s| s.columns[slot]);
        let mut rows = ShardRows {
            ts: Vec::with_capacity(all),
            nodes: (nodes && segments.iter().any(|s| s.nodes)).then(NodeColumn::default),
            values: std::array::from_fn(|slot| has(slot).then(|| Vec::with_capacity(all))),
        };
        let mut bytes = Vec::new();
        for segment in segments {
            self.read_into(segment, &mut rows, &mut bytes)?;
        }
        Ok(rows)
    }

    fn read_into(&self, segment: &Segment, rows: &mut ShardRows, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut at = segment.offset;
        let mut next = |file: &File, width: usize, read: bool, bytes: &mut Vec<u8>| -> io::Result<()> {
            bytes.resize(if read { segment.rows * width } else { 0 }, 0);
            file.read_exact_at(bytes, at)?;
            at += (segment.rows * width) as u64;
            Ok(())
        };
        next(&self.file, WIDE, true, bytes)?;
        rows.ts.extend(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)));
        if segment.nodes {
            next(&self.file, NARROW, rows.nodes.is_some(), bytes)?;
            let codes = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b));
            let names = codes.map(|code| self.nodes.get(code as usize));
            if let Some(nodes) = &mut rows.nodes {
                names.for_each(|name| nodes.push(name));
            }
        } else if let Some(nodes) = &mut rows.nodes {
            (0..segment.rows).for_each(|_| nodes.push(None));
        }
        for (column, there) in rows.values.iter_mut().zip(segment.columns) {
            if there {
                next(&self.file, WIDE, column.is_some(), bytes)?;
            }
            match column {
                Some(column) if there => column.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b))),
                Some(column) => column.resize(column.len() + segment.rows, f64::NAN),
                None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Observation, Timestamp};

    fn rows(from: i64, cpu: bool, node: Option<&str>) -> ShardRows {
        let mut rows = ShardRows::default();
        for i in from..from + 3 {
            let mut row = Observation::empty(ShardId::new("a").unwrap(), Timestamp::from_ms(i));
            row.cpu_util = cpu.then_some(i as f64);
            row.io_ops = (i % 2 == 0).then_some(-1.5);
            row.node = node.map(|n| NodeId::new(n).unwrap());
            rows.push(&row);
        }
        rows
    }

    #[test]
    fn rows_come_back_in_order_with_the_columns_that_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::new(folder.path()).unwrap();
        let (a, b) = (ShardId::new("a").unwrap(), ShardId::new("b").unwrap());
        let parts = [rows(10, false, None), rows(0, true, Some("n1")), rows(20, true, Some("n2"))];
        for part in &parts {
            scratch.append(&a, part).unwrap();
            scratch.append(&b, part).unwrap();
        }
        scratch.flush().unwrap();
        let all = scratch.rows(&b, true, [true; VALUES]).unwrap();
        assert_eq!(all.ts, [10, 11, 12, 0, 1, 2, 20, 21, 22]);
        let node = |i| all.nodes.as_ref().unwrap().get(i).map(NodeId::as_str);
        assert_eq!((node(0), node(3), node(8)), (None, Some("n1"), Some("n2")));
        assert_eq!(all.metrics().len(), 2);
        let mut cpu_alone = [false; VALUES];
        cpu_alone[0] = true;
        let cpu = scratch.rows(&a, false, cpu_alone).unwrap();
        assert!(cpu.nodes.is_none() && cpu.values[2].is_none());
        let values = cpu.values[0].as_ref().unwrap();
        assert!(values[..3].iter().all(|v| v.is_nan()));
        assert_eq!(values[3..], [0.0, 1.0, 2.0, 20.0, 21.0, 22.0]);
        assert_eq!(scratch.shards().count(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }
}
