//! The rows of one shard, column by column.

use foreshard_domain::{Metric, NodeId, Observation, ShardId, Timestamp};

use crate::columns::{self, DATA_BYTES, VALUES, WRITE_BYTES};

/// Code of a row without a node.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Which node carried each row; names are few, so rows hold codes.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeColumn {
    names: Vec<NodeId>,
    codes: Vec<u32>,
}

impl NodeColumn {
    pub(crate) fn get(&self, row: usize) -> Option<&NodeId> {
        self.codes.get(row).and_then(|code| self.names.get(*code as usize))
    }

    pub(crate) fn push(&mut self, node: Option<&NodeId>) {
        let code = node.map_or(NOWHERE, |node| self.code(node));
        self.codes.push(code);
    }

    fn code(&mut self, node: &NodeId) -> u32 {
        let recent = self.codes.last().and_then(|c| self.names.get(*c as usize).map(|name| (*c, name)));
        if let Some((code, _)) = recent.filter(|(_, name)| *name == node) {
            return code;
        }
        let known = self.names.iter().position(|name| name == node);
        let index = known.unwrap_or_else(|| {
            self.names.push(node.clone());
            self.names.len() - 1
        });
        u32::try_from(index).unwrap_or(NOWHERE)
    }

    /// The names that there are, and for each row the place of its own among them.
    pub(crate) fn parts(&self) -> (&[NodeId], &[u32]) {
        (&self.names, &self.codes)
    }

    fn gather(&self, order: &[usize]) -> Self {
        let codes = order.iter().map(|i| self.codes.get(*i).copied().unwrap_or(NOWHERE)).collect();
        Self { names: self.names.clone(), codes }
    }
}

/// A stretch of rows of one shard as it comes from a file.
pub(crate) struct Run<'a> {
    pub(crate) shard: &'a ShardId,
    /// One entry a row, or empty if no row has a node.
    pub(crate) nodes: &'a [Option<NodeId>],
    pub(crate) ts: &'a [i64],
    /// By slot; NaN = missing.
    pub(crate) values: [Option<&'a [f64]>; VALUES],
}

impl Run<'_> {
    /// Row `i` as observation. A `value` of a wide file has no place in one.
    pub(crate) fn observation(&self, i: usize) -> Option<Observation> {
        let ts = Timestamp::from_ms(*self.ts.get(i)?);
        let node = self.nodes.get(i).cloned().flatten();
        let at = |slot: usize| self.values[slot].and_then(|v| v.get(i)).copied();
        Some(observation(self.shard, node, ts, at))
    }
}

fn observation(shard: &ShardId, node: Option<NodeId>, ts: Timestamp, at: impl Fn(usize) -> Option<f64>) -> Observation {
    let at = |slot| at(slot).filter(|v| v.is_finite());
    Observation {
        shard: shard.clone(),
        node,
        ts,
        cpu_util: at(0),
        mem_util: at(1),
        io_ops: at(2),
        latency_ms: at(3),
        txn_rate: at(4),
        data_bytes: at(DATA_BYTES),
        write_bytes_per_s: at(WRITE_BYTES),
    }
}

/// All rows of one shard. While being filled they lie in order of arrival; [`ShardRows::finish`] sorts them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardRows {
    pub(crate) ts: Vec<i64>,
    pub(crate) nodes: Option<NodeColumn>,
    /// By slot; `None` = missing throughout, NaN = missing in that row.
    pub(crate) values: [Option<Vec<f64>>; VALUES],
}

impl ShardRows {
    pub(crate) fn len(&self) -> usize {
        self.ts.len()
    }

    /// Bytes of memory that the rows take.
    pub(crate) fn bytes(&self) -> usize {
        let columns: usize = self.values.iter().flatten().map(|column| column.capacity() * size_of::<f64>()).sum();
        let nodes = self.nodes.as_ref().map_or(0, |nodes| nodes.codes.capacity() * size_of::<u32>());
        size_of::<Self>() + self.ts.capacity() * size_of::<i64>() + columns + nodes
    }

    pub(crate) fn push_run(&mut self, run: &Run<'_>) {
        let before = self.ts.len();
        self.ts.extend_from_slice(run.ts);
        if !run.nodes.is_empty() {
            let nodes = self.nodes_filled_to(before);
            run.nodes.iter().for_each(|node| nodes.push(node.as_ref()));
        } else if let Some(nodes) = &mut self.nodes {
            nodes.codes.resize(before + run.ts.len(), NOWHERE);
        }
        for (column, values) in self.values.iter_mut().zip(run.values) {
            match (column, values) {
                (Some(column), Some(values)) => column.extend_from_slice(values),
                (Some(column), None) => column.resize(before + run.ts.len(), f64::NAN),
                (column @ None, Some(values)) if values.iter().any(|v| !v.is_nan()) => {
                    let mut filled = vec![f64::NAN; before];
                    filled.extend_from_slice(values);
                    *column = Some(filled);
                }
                (None, _) => {}
            }
        }
    }

    pub(crate) fn push(&mut self, row: &Observation) {
        let before = self.ts.len();
        self.ts.push(row.ts.as_ms());
        if row.node.is_some() || self.nodes.is_some() {
            self.nodes_filled_to(before).push(row.node.as_ref());
        }
        for (column, value) in self.values.iter_mut().zip(columns::numbers(row)) {
            if let Some(column) = column {
                column.push(value);
            } else if !value.is_nan() {
                let mut filled = vec![f64::NAN; before];
                filled.push(value);
                *column = Some(filled);
            }
        }
    }

    fn nodes_filled_to(&mut self, rows: usize) -> &mut NodeColumn {
        self.nodes.get_or_insert_with(|| NodeColumn { names: Vec::new(), codes: vec![NOWHERE; rows] })
    }

    /// Sorts by time; of rows of one time the last that came wins. Returns how many rows lost.
    pub(crate) fn finish(mut self) -> (Self, u64) {
        if self.ts.windows(2).all(|pair| pair[0] < pair[1]) {
            return (self, 0);
        }
        let mut order: Vec<usize> = (0..self.ts.len()).collect();
        order.sort_by_key(|i| self.ts[*i]);
        let all = order.len();
        let kept: Vec<usize> = order
            .iter()
            .enumerate()
            .filter(|(k, i)| order.get(k + 1).is_none_or(|next| self.ts[*next] != self.ts[**i]))
            .map(|(_, i)| *i)
            .collect();
        self = self.gather(&kept);
        (self, (all - kept.len()) as u64)
    }

    fn gather(&self, order: &[usize]) -> Self {
        let values = std::array::from_fn(|slot| {
            let column = self.values[slot].as_ref()?;
            let gathered: Vec<f64> = order.iter().map(|i| column[*i]).collect();
            gathered.iter().any(|v| !v.is_nan()).then_some(gathered)
        });
        Self {
            ts: order.iter().map(|i| self.ts[*i]).collect(),
            nodes: self.nodes.as_ref().map(|nodes| nodes.gather(order)),
            values,
        }
    }

    /// The rows whose place is in `range`; columns that have no value there are dropped.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> Self {
        self.gather(&range.collect::<Vec<_>>())
    }

    pub(crate) fn observation(&self, shard: &ShardId, i: usize) -> Option<Observation> {
        let ts = Timestamp::from_ms(*self.ts.get(i)?);
        let node = self.nodes.as_ref().and_then(|nodes| nodes.get(i)).cloned();
        Some(observation(shard, node, ts, |slot| self.values[slot].as_ref().and_then(|v| v.get(i)).copied()))
    }

    /// The newest value of a column.
    pub(crate) fn last(&self, slot: usize) -> Option<f64> {
        self.values.get(slot)?.as_ref()?.iter().rev().copied().find(|v| !v.is_nan())
    }

    /// The newest node that a row names.
    pub(crate) fn last_node(&self) -> Option<&NodeId> {
        let nodes = self.nodes.as_ref()?;
        (0..self.len()).rev().find_map(|i| nodes.get(i))
    }

    /// Multiplies a column by a factor that depends on the node of the row.
    pub(crate) fn scale(&mut self, slot: usize, factor: impl Fn(&NodeId) -> Option<f64>) {
        let Some(nodes) = &self.nodes else { return };
        let Some(Some(column)) = self.values.get_mut(slot) else { return };
        for (i, value) in column.iter_mut().enumerate() {
            if let Some(factor) = nodes.get(i).and_then(&factor) {
                *value *= factor;
            }
        }
    }

    /// The metrics that have any value.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        Metric::ALL.into_iter().filter(|m| self.values[columns::slot(*m)].is_some()).collect()
    }

    /// Smallest distance between two rows in milliseconds.
    pub(crate) fn smallest_gap(&self) -> Option<i64> {
        self.ts.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap > 0).min()
    }
}
