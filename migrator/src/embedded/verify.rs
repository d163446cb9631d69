//! Comparing two copies of a shard while writes go on, piece by piece.
//!
//! Each piece brings the target up to where the source is and compares on snapshots of that position. First come all ranges of
//! rows. Meanwhile the source goes on, and what has changed behind the cursor is left to the log: its changes are compared
//! again, lap by lap, until no more are left than the proof can compare while clients wait.

use foreshard_domain::ShardId;
use std::sync::Arc;

use super::backend::{EmbeddedBackend, Ends, MIB, failed, permanent, snapshot};
use super::compare::{Compared, Copies};
use super::kv::KvSnapshot;
use super::node::NodeError;
use super::piece::Cursor;
use crate::{BackendError, MoveSpec, Position, Verification};

/// Where a comparison goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// At this row.
    Row(Cursor),
    /// At the first change that is not compared yet, in a lap over the log.
    Lap { from: Position, to: Position },
}

impl Place {
    fn text(&self) -> String {
        match self {
            Place::Row(cursor) => format!("row {}", cursor.text()),
            Place::Lap { from, to } => format!("log {} {}", from.0, to.0),
        }
    }

    fn parse(shard: &ShardId, text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(' ')?;
        match kind {
            "row" => Cursor::parse(shard, rest).map(Place::Row),
            "log" => {
                let (from, to) = rest.split_once(' ')?;
                Some(Place::Lap { from: Position(from.parse().ok()?), to: Position(to.parse().ok()?) })
            }
            _ => None,
        }
    }
}

/// Both copies at one position, for one call of a move.
pub(super) struct Pair<'a> {
    doing: &'static str,
    spec: &'a MoveSpec,
    ends: &'a Ends<'a>,
    source: Arc<dyn KvSnapshot>,
    target: Arc<dyn KvSnapshot>,
    at: Position,
    /// Whether comparing waits for its turn at the nodes.
    wait: bool,
}

pub(super) fn nothing_compared(up_to: Position) -> Verification {
    Verification { ranges: 0, rows: 0, differing: Vec::new(), up_to, next: None }
}

fn note(found: &mut Verification, compared: Compared) {
    found.ranges += 1;
    found.rows += compared.rows;
    found.differing.extend(compared.differs);
}

impl<'a> Pair<'a> {
    /// The source's snapshot with its position, and the target, which must stand at the same one.
    pub async fn new(
        doing: &'static str,
        spec: &'a MoveSpec,
        ends: &'a Ends<'a>,
        (at, source): (Position, Arc<dyn KvSnapshot>),
        wait: bool,
    ) -> Result<Self, BackendError> {
        Ok(Self { doing, spec, ends, source, target: snapshot(doing, spec, &ends.target, at).await?, at, wait })
    }

    /// Compares something on a thread that may wait for a device.
    async fn compare<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Copies<'_>) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (shard, source, target) = (self.spec.shard.clone(), Arc::clone(&self.source), Arc::clone(&self.target));
        self.ends
            .source
            .call(move |_| work(&Copies { shard: &shard, source: source.as_ref(), target: target.as_ref() }))
            .await
            .map_err(|error| failed(self.doing, error, false))
    }
}

impl EmbeddedBackend {
    /// One more piece of the comparison before the fence.
    pub(super) async fn compare_piece(
        &self,
        doing: &'static str,
        spec: &MoveSpec,
        ends: &Ends<'_>,
        so_far: Option<&Verification>,
    ) -> Result<Verification, BackendError> {
        let beginning = || Place::Row(Cursor::first(&spec.shard));
        let place = match so_far.and_then(|found| found.next.as_deref()) {
            None => beginning(),
            Some(text) => Place::parse(&spec.shard, text)
                .ok_or_else(|| permanent(doing, format!("{text:?} is no place from which to go on comparing")))?,
        };
        let shard = spec.shard.clone();
        let newest = ends.source.call(move |node| node.snapshot_at(&shard)).await;
        let (at, source) = newest.map_err(|error| failed(doing, error, false))?;
        self.apply_to(doing, spec, ends, at, true).await?;
        let pair = Pair::new(doing, spec, ends, (at, source), true).await?;
        let mut found = so_far.filter(|found| found.next.is_some()).cloned().unwrap_or_else(|| nothing_compared(at));
        let lap = match place {
            Place::Row(cursor) => {
                if let Some(cursor) = self.compare_rows(&pair, cursor, &mut found).await? {
                    found.next = Some(Place::Row(cursor).text());
                    return Ok(found);
                }
                None
            }
            Place::Lap { from, to } => {
                let upto = Position(found.up_to.0.saturating_add(self.settings.verify_changes.max(1))).min(to).min(at);
                self.compare_changed(&pair, upto, &mut found).await?;
                if upto < to {
                    return Ok(found);
                }
                Some(to.0.saturating_sub(from.0))
            }
        };
        found.next = self.next_lap(&pair, found.up_to, lap).await?.map(|place| place.text());
        if found.next.is_none() {
            self.compare_write_ids(&pair, None, &mut found).await?;
        }
        Ok(found)
    }

    /// A further lap over the log, if more than a little has changed since `compared` and a lap brings it nearer: one that left
    /// more than half of its own length behind does not.
    async fn next_lap(
        &self,
        pair: &Pair<'_>,
        compared: Position,
        last_lap: Option<u64>,
    ) -> Result<Option<Place>, BackendError> {
        let rest = pair.at.0.saturating_sub(compared.0);
        let worth_it = rest > self.settings.verify_changes && last_lap.is_none_or(|last| rest <= last / 2);
        if worth_it && self.is_logged(pair, compared).await? {
            return Ok(Some(Place::Lap { from: compared, to: pair.at }));
        }
        Ok(None)
    }

    /// Whether the source's log tells all that has changed after `after`.
    pub(super) async fn is_logged(&self, pair: &Pair<'_>, after: Position) -> Result<bool, BackendError> {
        let shard = pair.spec.shard.clone();
        let status = pair.ends.source.call(move |node| node.status(&shard)).await;
        let status = status.map_err(|error| failed(pair.doing, error, false))?;
        let from = status.and_then(|(meta, _)| meta.captures.get(&pair.spec.migration).copied());
        Ok(from.is_some_and(|from| from <= after))
    }

    /// Compares everything in one go, for a proof of which the log does not tell what has changed.
    pub(super) async fn compare_all(&self, pair: &Pair<'_>) -> Result<Verification, BackendError> {
        let mut found = nothing_compared(pair.at);
        let mut cursor = Some(Cursor::first(&pair.spec.shard));
        while let Some(from) = cursor {
            cursor = self.compare_rows(pair, from, &mut found).await?;
        }
        self.compare_write_ids(pair, None, &mut found).await?;
        Ok(found)
    }

    /// Compares ranges from `cursor` on, as many as one call may; returns where to go on.
    async fn compare_rows(
        &self,
        pair: &Pair<'_>,
        mut cursor: Cursor,
        found: &mut Verification,
    ) -> Result<Option<Cursor>, BackendError> {
        let rows = self.settings.range_rows.max(1);
        let mut bytes = 0;
        while bytes < self.settings.verify_bytes.max(1) {
            let from = cursor.row;
            let compared = pair.compare(move |copies| copies.rows(&from, rows)).await?;
            self.charge(pair, &compared).await?;
            bytes += compared.bytes;
            let next = compared.next.clone();
            note(found, compared);
            match next {
                Some(row) => cursor = Cursor { row },
                None => return Ok(None),
            }
        }
        Ok(Some(cursor))
    }

    /// Compares what the source's log says has changed after `found.up_to` and up to `upto`.
    pub(super) async fn compare_changed(
        &self,
        pair: &Pair<'_>,
        upto: Position,
        found: &mut Verification,
    ) -> Result<(), BackendError> {
        let after = found.up_to;
        let changed = pair.compare(move |copies| copies.changed(after, upto)).await?;
        let changed: Vec<Vec<u8>> = changed.into_iter().collect();
        for keys in changed.chunks(self.settings.range_rows.max(1)).map(<[Vec<u8>]>::to_vec) {
            let compared = pair.compare(move |copies| copies.named(&keys)).await?;
            self.charge(pair, &compared).await?;
            note(found, compared);
        }
        found.up_to = upto.max(after);
        Ok(())
    }

    /// Compares the identifiers of the last writes after `after`.
    pub(super) async fn compare_write_ids(
        &self,
        pair: &Pair<'_>,
        after: Option<Position>,
        found: &mut Verification,
    ) -> Result<(), BackendError> {
        let upto = pair.at;
        let ids = pair.compare(move |copies| copies.write_ids(after, upto)).await?;
        found.ranges += 1;
        found.differing.extend(ids.differs);
        Ok(())
    }

    /// What comparing takes from both nodes.
    async fn charge(&self, pair: &Pair<'_>, compared: &Compared) -> Result<(), BackendError> {
        let mib = compared.bytes as f64 / MIB / 2.0;
        for member in [pair.ends.source.member, pair.ends.target.member] {
            self.work(member, mib * self.settings.service_per_mib, mib * self.settings.io_per_mib, pair.wait).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn a_place_is_read_back_and_another_shards_is_refused() {
        let shard = ShardId::new("s").unwrap();
        let cursor = Cursor { row: keys::of(&shard, b"\x00key \xff") };
        for place in [Place::Row(cursor), Place::Lap { from: Position(3), to: Position(u64::MAX) }] {
            assert_eq!(Place::parse(&shard, &place.text()), Some(place));
        }
        let other = Place::Row(Cursor::first(&ShardId::new("t").unwrap())).text();
        for text in [other.as_str(), "", "row", "row 7", "log 1", "log 1 x", "leg 1 2"] {
            assert_eq!(Place::parse(&shard, text), None, "{text}");
        }
    }
}
