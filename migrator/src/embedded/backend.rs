//! The embedded engine as a [`crate::Backend`]: real moves between its nodes. Here is what the steps of
//! [`super::steps`] are made of.
//!
//! | before | during | after |
//! | --- | --- | --- |
//! | source open in epoch e; no copy on the target | source open, its log kept; target *importing* | source *sealed*, follows; target open in e+1, its log kept |
//!
//! Whatever step a crash interrupts, each call can be made again. Moves back after the seal are the same calls with source
//! and target exchanged, in the target's epoch and by the same migration: the sealed copy of the old source takes the place
//! of the copy being filled.

use foreshard_domain::{Clock, NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::compare::{Compared, Copies};
use super::engine::{EmbeddedEngine, Member};
use super::keys;
use super::kv::KvSnapshot;
use super::node::NodeError;
use super::service::NodeService;
use super::shard::Refusal;
use crate::{BackendError, MoveSpec, Position, Verification};

/// How moves are carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveSettings {
    /// Bytes copied by one call, at least one row.
    pub chunk_bytes: usize,
    /// Changes applied in one batch.
    pub apply_changes: usize,
    /// Rows of one compared range.
    pub range_rows: usize,
    /// Most bytes copied per real second by all moves together; no limit if `None`.
    pub copy_bytes_per_s: Option<f64>,
    /// Units of service that copying a MiB takes from source and from target; comparing takes half.
    pub service_per_mib: f64,
    /// I/O operations that copying a MiB takes from source and from target.
    pub io_per_mib: f64,
    /// Units of service that one change takes from the node that applies it.
    pub service_per_change: f64,
}

impl Default for MoveSettings {
    fn default() -> Self {
        Self {
            chunk_bytes: 256 * 1024,
            apply_changes: 256,
            range_rows: 512,
            copy_bytes_per_s: None,
            service_per_mib: 20.0,
            io_per_mib: 16.0,
            service_per_change: 1.0,
        }
    }
}

pub(super) const MIB: f64 = 1_048_576.0;
/// The longest that a piece of copying waits for its turn; shorter than the driver's patience for a call.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// The backend; one for all moves of an engine.
#[derive(Debug)]
pub struct EmbeddedBackend {
    pub(super) engine: Arc<EmbeddedEngine>,
    pub(super) settings: MoveSettings,
    pub(super) throttle: NodeService,
    /// One call at a time for a shard, so that a repeated call finds the first one ended.
    turns: Mutex<BTreeMap<ShardId, Arc<tokio::sync::Mutex<()>>>>,
    /// Shards on their way back, whose log must reach to their verification. Forgotten by a restart: then the proof compares
    /// everything.
    going_back: Mutex<BTreeSet<ShardId>>,
}

/// A failure as the driver's classes. `fenced` tells whether a state that does not fit means that somebody else is in charge.
pub(super) fn failed(doing: &str, error: NodeError, fenced: bool) -> BackendError {
    let doing = doing.to_owned();
    match error {
        NodeError::Refused(refusal @ (Refusal::Epoch { .. } | Refusal::Fenced { .. } | Refusal::Closed { .. })) => {
            BackendError::Fenced { doing, why: refusal.to_string() }
        }
        NodeError::Refused(refusal) if fenced => BackendError::Fenced { doing, why: refusal.to_string() },
        error @ (NodeError::Store { .. } | NodeError::Stopped { .. }) => {
            BackendError::Transient { doing, source: Box::new(error) }
        }
        error @ (NodeError::Refused(_)
        | NodeError::Meta { .. }
        | NodeError::Corrupt { .. }
        | NodeError::TooLong { .. }
        | NodeError::Gap { .. }) => BackendError::Permanent { doing, why: error.to_string() },
    }
}

pub(super) fn permanent(doing: &str, why: impl Into<String>) -> BackendError {
    BackendError::Permanent { doing: doing.to_owned(), why: why.into() }
}

/// Source and target of a move.
pub(super) struct Ends<'a> {
    pub source: &'a Member,
    pub target: &'a Member,
}

impl EmbeddedBackend {
    /// A backend of an engine.
    pub fn new(engine: Arc<EmbeddedEngine>, settings: MoveSettings, clock: Arc<dyn Clock>) -> Self {
        let throttle = NodeService::new(settings.copy_bytes_per_s.unwrap_or(f64::INFINITY), LONGEST_WAIT, clock);
        Self { engine, settings, throttle, turns: Mutex::default(), going_back: Mutex::default() }
    }

    pub(super) async fn turn(&self, shard: &ShardId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(shard.clone()).or_default())
        };
        turn.lock_owned().await
    }

    pub(super) fn going_back(&self) -> MutexGuard<'_, BTreeSet<ShardId>> {
        self.going_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn end(&self, doing: &str, node: &NodeId) -> Result<&Member, BackendError> {
        self.engine.member(node).ok_or_else(|| permanent(doing, format!("node {node} is no node of this engine")))
    }

    pub(super) fn ends(&self, doing: &str, spec: &MoveSpec) -> Result<Ends<'_>, BackendError> {
        if spec.source == spec.target {
            return Err(permanent(doing, format!("source and target are both {}", spec.source)));
        }
        Ok(Ends { source: self.end(doing, &spec.source)?, target: self.end(doing, &spec.target)? })
    }

    /// Takes a node's capacity for work of a move; waits for it unless the work must not wait.
    pub(super) async fn work(&self, member: &Member, service: f64, io: f64, wait: bool) -> Result<(), BackendError> {
        if wait {
            member.service.serve(service).await.map_err(|source| BackendError::Transient {
                doing: format!("waiting for a turn at node {}", member.node.id()),
                source: Box::new(source),
            })?;
        } else {
            member.service.charge(service);
        }
        self.engine.ledger().worked(member.node.id(), service, io);
        Ok(())
    }

    /// Applies the log of `from` to the copy on `to`, one batch; returns where the copy is and where the log ends.
    pub(super) async fn apply_batch(
        &self,
        doing: &str,
        spec: &MoveSpec,
        from: &Member,
        to: &Member,
        upto: Position,
        wait: bool,
    ) -> Result<(Position, Position), BackendError> {
        let fail = |error| failed(doing, error, false);
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let applied = to
            .call(move |node| {
                node.with_shard(&shard, |cell, meta| {
                    meta.follows(&migration)?;
                    Ok(cell.position)
                })
            })
            .await
            .map_err(fail)?;
        let (shard, limit) = (spec.shard.clone(), self.settings.apply_changes.max(1));
        let (entries, newest) =
            from.call(move |node| node.log_after(&shard, applied, upto, limit)).await.map_err(fail)?;
        if entries.is_empty() {
            return Ok((applied, newest));
        }
        let bytes: u64 = entries.iter().map(keys::Entry::bytes).sum();
        let service = entries.len() as f64 * self.settings.service_per_change;
        self.work(to, service, bytes as f64 / MIB * self.settings.io_per_mib, wait).await?;
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let applied = to.call(move |node| node.apply(&shard, &migration, &entries)).await.map_err(fail)?;
        Ok((applied, newest))
    }

    /// Applies the source's log to the target up to and not beyond `upto`.
    pub(super) async fn apply_to(
        &self,
        doing: &str,
        spec: &MoveSpec,
        ends: &Ends<'_>,
        upto: Position,
        wait: bool,
    ) -> Result<Position, BackendError> {
        loop {
            let (applied, _) = self.apply_batch(doing, spec, ends.source, ends.target, upto, wait).await?;
            if applied >= upto {
                return Ok(applied);
            }
        }
    }

    /// Compares all of both copies, which stand at `upto`.
    pub(super) async fn compare_all(
        &self,
        doing: &'static str,
        spec: &MoveSpec,
        ends: &Ends<'_>,
        source: Arc<dyn KvSnapshot>,
        upto: Position,
        wait: bool,
    ) -> Result<Verification, BackendError> {
        let target = snapshot(doing, spec, ends.target, upto).await?;
        let mut found = Verification { ranges: 0, rows: 0, differing: Vec::new(), up_to: upto };
        let mut from = Some(keys::first(&spec.shard));
        while let Some(at) = from {
            let rows = self.settings.range_rows.max(1);
            let compared = compare(doing, spec, ends, &source, &target, move |c| c.rows(&at, rows)).await?;
            self.compared(ends, &compared, wait).await?;
            found.ranges += 1;
            found.rows += compared.rows;
            found.differing.extend(compared.differs);
            from = compared.next;
        }
        let ids = compare(doing, spec, ends, &source, &target, move |c| c.write_ids(None, upto)).await?;
        found.ranges += 1;
        found.differing.extend(ids.differs);
        Ok(found)
    }

    async fn compared(&self, ends: &Ends<'_>, compared: &Compared, wait: bool) -> Result<(), BackendError> {
        let mib = compared.bytes as f64 / MIB / 2.0;
        for member in [ends.source, ends.target] {
            self.work(member, mib * self.settings.service_per_mib, mib * self.settings.io_per_mib, wait).await?;
        }
        Ok(())
    }

    /// Compares what the source's log says has changed after `after`, at `upto`.
    pub(super) async fn compare_changed(
        &self,
        doing: &'static str,
        spec: &MoveSpec,
        ends: &Ends<'_>,
        source: Arc<dyn KvSnapshot>,
        after: Position,
        upto: Position,
    ) -> Result<Verification, BackendError> {
        let target = snapshot(doing, spec, ends.target, upto).await?;
        let rows = self.settings.range_rows.max(1);
        let changed: Vec<Vec<u8>> =
            compare(doing, spec, ends, &source, &target, move |c| c.changed(after, upto)).await?.into_iter().collect();
        let mut found = Verification { ranges: 0, rows: 0, differing: Vec::new(), up_to: upto };
        for keys in changed.chunks(rows).map(<[Vec<u8>]>::to_vec) {
            let compared = compare(doing, spec, ends, &source, &target, move |c| c.named(&keys)).await?;
            self.compared(ends, &compared, false).await?;
            found.ranges += 1;
            found.rows += compared.rows;
            found.differing.extend(compared.differs);
        }
        let ids = compare(doing, spec, ends, &source, &target, move |c| c.write_ids(Some(after), upto)).await?;
        found.ranges += 1;
        found.differing.extend(ids.differs);
        Ok(found)
    }
}

/// A snapshot of a copy, which must stand at exactly this position.
pub(super) async fn snapshot(
    doing: &str,
    spec: &MoveSpec,
    member: &Member,
    at: Position,
) -> Result<Arc<dyn KvSnapshot>, BackendError> {
    let shard = spec.shard.clone();
    let (position, snapshot) =
        member.call(move |node| node.snapshot_at(&shard)).await.map_err(|error| failed(doing, error, false))?;
    if position != at {
        let why = format!("node {} stands at {position:?}, not {at:?}", member.node.id());
        return Err(BackendError::Fenced { doing: doing.to_owned(), why });
    }
    Ok(snapshot)
}

/// Compares something on a thread that may wait for a device.
async fn compare<T: Send + 'static>(
    doing: &str,
    spec: &MoveSpec,
    ends: &Ends<'_>,
    source: &Arc<dyn KvSnapshot>,
    target: &Arc<dyn KvSnapshot>,
    work: impl FnOnce(&Copies<'_>) -> Result<T, NodeError> + Send + 'static,
) -> Result<T, BackendError> {
    let (shard, source, target) = (spec.shard.clone(), Arc::clone(source), Arc::clone(target));
    ends.source
        .call(move |_| work(&Copies { shard: &shard, source: source.as_ref(), target: target.as_ref() }))
        .await
        .map_err(|error| failed(doing, error, false))
}
