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

use super::engine::{EmbeddedEngine, Member};
use super::keys;
use super::kv::KvSnapshot;
use super::node::{EmbeddedNode, NodeError};
use super::service::NodeService;
use super::shard::Refusal;
use crate::{BackendError, MoveSpec, Position};

/// How moves are carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveSettings {
    /// Bytes copied by one call, at least one row.
    pub chunk_bytes: usize,
    /// Changes applied in one batch.
    pub apply_changes: usize,
    /// Rows of one compared range.
    pub range_rows: usize,
    /// Bytes compared by one call before the fence, at least one range.
    pub verify_bytes: u64,
    /// Changes compared by one call before the fence; no more need be left for the proof.
    pub verify_changes: u64,
    /// Rows, log entries and identifiers removed by one call, at least one batch of them.
    pub remove_rows: usize,
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
            // A commit of the state store for each; a few of them a second are cheap.
            verify_bytes: 4 * 1024 * 1024,
            verify_changes: 4096,
            // A slow disk removes some ten thousand rows a second.
            remove_rows: 200_000,
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

/// One call's turn at a shard. It is shared by all work that the call has begun, so that a call that was dropped, because it
/// took too long, keeps its turn until the work that it left running has ended.
pub(super) type Turn = Arc<tokio::sync::OwnedMutexGuard<()>>;

/// One node of a move.
#[derive(Clone)]
pub(super) struct End<'a> {
    pub member: &'a Member,
    turn: Option<Turn>,
}

impl End<'_> {
    /// Calls the node, on a thread that may block if its store waits for a device, and holds the turn until the work is done.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&EmbeddedNode) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let turn = self.turn.clone();
        self.member
            .call(move |node| {
                let done = work(node);
                drop(turn);
                done
            })
            .await
    }
}

/// Source and target of a move.
pub(super) struct Ends<'a> {
    pub source: End<'a>,
    pub target: End<'a>,
}

impl EmbeddedBackend {
    /// A backend of an engine.
    pub fn new(engine: Arc<EmbeddedEngine>, settings: MoveSettings, clock: Arc<dyn Clock>) -> Self {
        let throttle = NodeService::new(settings.copy_bytes_per_s.unwrap_or(f64::INFINITY), LONGEST_WAIT, clock);
        Self { engine, settings, throttle, turns: Mutex::default(), going_back: Mutex::default() }
    }

    async fn turn(&self, shard: &ShardId) -> Turn {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(shard.clone()).or_default())
        };
        Arc::new(turn.lock_owned().await)
    }

    pub(super) fn going_back(&self) -> MutexGuard<'_, BTreeSet<ShardId>> {
        self.going_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn member(&self, doing: &str, node: &NodeId) -> Result<&Member, BackendError> {
        self.engine.member(node).ok_or_else(|| permanent(doing, format!("node {node} is no node of this engine")))
    }

    /// Source and target, for work that changes nothing and waits for nobody.
    pub(super) fn ends(&self, doing: &str, spec: &MoveSpec) -> Result<Ends<'_>, BackendError> {
        if spec.source == spec.target {
            return Err(permanent(doing, format!("source and target are both {}", spec.source)));
        }
        let end = |node| Ok(End { member: self.member(doing, node)?, turn: None });
        Ok(Ends { source: end(&spec.source)?, target: end(&spec.target)? })
    }

    /// Source and target, when all earlier calls about the shard and the work that they began have ended.
    pub(super) async fn hold(&self, doing: &str, spec: &MoveSpec) -> Result<Ends<'_>, BackendError> {
        let mut ends = self.ends(doing, spec)?;
        let turn = self.turn(&spec.shard).await;
        ends.source.turn = Some(Arc::clone(&turn));
        ends.target.turn = Some(turn);
        Ok(ends)
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
        from: &End<'_>,
        to: &End<'_>,
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
        self.work(to.member, service, bytes as f64 / MIB * self.settings.io_per_mib, wait).await?;
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
            let (applied, _) = self.apply_batch(doing, spec, &ends.source, &ends.target, upto, wait).await?;
            if applied >= upto {
                return Ok(applied);
            }
        }
    }
}

/// A snapshot of a copy, which must stand at exactly this position.
pub(super) async fn snapshot(
    doing: &str,
    spec: &MoveSpec,
    end: &End<'_>,
    at: Position,
) -> Result<Arc<dyn KvSnapshot>, BackendError> {
    let shard = spec.shard.clone();
    let (position, snapshot) =
        end.call(move |node| node.snapshot_at(&shard)).await.map_err(|error| failed(doing, error, false))?;
    if position != at {
        let why = format!("node {} stands at {position:?}, not {at:?}", end.member.node.id());
        return Err(BackendError::Fenced { doing: doing.to_owned(), why });
    }
    Ok(snapshot)
}
