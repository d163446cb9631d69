//! Copies a shard's rows at one snapshot, in pieces, over several pairs of connections.
//!
//! A slot is made with an exported snapshot: the snapshot has every change before the slot's beginning, the slot all that
//! come after. A piece is a range of pages of a table, read and written by `COPY` without a look at its rows. The target
//! records each piece in the transaction that writes it, so that none is written twice, whatever call was lost.
//!
//! The source's locks are let go with each piece: holding them all along, as `pg_dump` does, would make a client's
//! `TRUNCATE` wait for the whole copy, and everybody else behind it. What may happen to a table meanwhile is seen by its
//! file: `TRUNCATE`, `CLUSTER` and `VACUUM FULL` give it a new one, and its copy begins again.

mod piece;
mod plan;
mod record;
mod splice;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

use super::lsn::Lsn;
use super::pace::Pace;
use super::session::{Place, passes};
use super::settings::PostgresSettings;
use super::wire::{ConnectParams, ExportedSnapshot, ReplicationConnection, SlotLife, WireError};
use crate::BackendError;
use crate::cause::with_causes;
use piece::{Outcome, Pair};
use plan::{Piece, Planned};

/// How long a call begins new pieces.
const CALL: Duration = Duration::from_secs(2);

/// Why a copy could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// Its snapshot is gone: it can only begin again, in an empty database with a new slot.
    #[error("the snapshot of {shard} is lost, the copy has to begin again")]
    Lost {
        /// The shard.
        shard: String,
        /// What was noticed.
        #[source]
        source: BackendError,
    },
    /// Anything else; the copy goes on with the next call if the class says so.
    #[error(transparent)]
    Failed(#[from] BackendError),
}

/// From where to where a shard is copied.
#[derive(Clone)]
pub(crate) struct CopyBetween {
    pub source: Place,
    pub target: Place,
    /// Name of the database on both.
    pub shard: String,
    /// Application name of all connections.
    pub application: String,
}

/// What a call did and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub rows: u64,
    pub bytes: u64,
    /// Pieces not yet copied; none once all rows are safe on the target's disk.
    pub left: usize,
}

/// A copy under way. Calls may be dropped at any time.
pub(crate) struct SnapshotCopy {
    between: CopyBetween,
    snapshot: Mutex<ExportedSnapshot>,
    name: String,
    at: Lsn,
    connections: usize,
    piece_bytes: u64,
    pace: Arc<Pace>,
    work: Mutex<Work>,
    /// How many have read rows.
    #[cfg(test)]
    statements: std::sync::atomic::AtomicUsize,
}

#[derive(Default)]
struct Work {
    tables: Vec<Planned>,
    queue: VecDeque<Piece>,
    /// Pieces that the target said it had committed, by table and first page.
    done: BTreeMap<(usize, u32), Piece>,
    /// Tables that have a new file.
    rewritten: BTreeSet<usize>,
    idle: Vec<Pair>,
    is_prepared: bool,
    is_complete: bool,
}

impl SnapshotCopy {
    /// Makes the slot, within `limit` (the server waits for running transactions), and plans the pieces.
    ///
    /// # Errors
    /// If the slot cannot be made or the source not be read; a slot may be left then.
    pub async fn begin(
        between: CopyBetween,
        slot: &str,
        settings: &PostgresSettings,
        limit: Duration,
    ) -> Result<Self, CopyError> {
        let CopyBetween { source, shard, application, .. } = &between;
        let params = ConnectParams {
            host: source.address.host.clone(),
            port: source.address.port,
            database: shard.clone(),
            user: source.login.user.clone(),
            password: Some(source.login.password.clone()),
            application_name: application.clone(),
        };
        let connection = ReplicationConnection::connect(&params, limit).await.map_err(failed)?;
        let snapshot = connection.export_snapshot(slot, SlotLife::Lasting, limit).await.map_err(failed)?;
        let (name, at) = (snapshot.name().to_owned(), snapshot.slot().consistent_point);
        let copy = Self {
            connections: settings.copy_connections.max(1),
            piece_bytes: settings.copy_piece_bytes,
            pace: Arc::new(Pace::new(settings.copy_bytes_per_s)),
            snapshot: Mutex::new(snapshot),
            work: Mutex::default(),
            #[cfg(test)]
            statements: std::sync::atomic::AtomicUsize::new(0),
            between,
            name,
            at,
        };
        let reader = copy.open_reader().await?;
        let tables = plan::tables(&reader).await?;
        {
            let mut work = copy.work();
            work.queue = plan::pieces(&tables, copy.piece_bytes);
            work.tables = tables;
        }
        Ok(copy)
    }

    /// Name of the snapshot, for whoever else has to see the same.
    pub fn snapshot(&self) -> &str {
        &self.name
    }

    /// Where the slot begins.
    pub fn at(&self) -> Lsn {
        self.at
    }

    /// The same at a pace that somebody else sets, instead of the one of the settings.
    #[must_use]
    pub fn at_pace(self, pace: Arc<Pace>) -> Self {
        Self { pace, ..self }
    }

    /// Sets the most bytes per second; no limit if `None`. Holds from the next chunk on.
    #[cfg(test)]
    pub fn set_pace(&self, bytes_per_s: Option<f64>) {
        self.pace.set(bytes_per_s);
    }

    /// Whether the snapshot is still there as far as this side knows.
    pub fn is_alive(&self) -> bool {
        self.held().is_ok()
    }

    fn held(&self) -> Result<(), WireError> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).still_held()
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies pieces for about two seconds. The target's tables must be there.
    ///
    /// # Errors
    /// [`CopyError`]; pieces that were under way are copied by a later call.
    pub async fn next(&self) -> Result<Copied, CopyError> {
        if self.work().is_complete {
            return Ok(Copied::default());
        }
        self.prepare().await?;
        let until = Instant::now() + CALL;
        let sum = Mutex::new(Copied::default());
        let workers = (0..self.connections).map(|_| self.copy_until(until, &sum));
        let outcomes = futures::future::join_all(workers).await;
        // A reader that is cut off says little; that the snapshot is gone says what to do.
        if outcomes.iter().any(Result::is_err) {
            self.held().map_err(|e| self.lost(failed(e)))?;
        }
        outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
        self.begin_tables_again().await?;
        if self.work().queue.is_empty() {
            self.settle().await?;
        }
        let mut copied = *sum.lock().unwrap_or_else(PoisonError::into_inner);
        copied.left = self.work().queue.len();
        Ok(copied)
    }

    async fn copy_until(&self, until: Instant, sum: &Mutex<Copied>) -> Result<(), CopyError> {
        let mut pair = None;
        while Instant::now() < until {
            let Some(mut taken) = self.take() else { break };
            let (table, piece) = (taken.table.clone(), taken.piece);
            let with = match pair.take() {
                Some(pair) => pair,
                None => self.pair().await?,
            };
            match with.copy(self, &table, &piece).await? {
                Outcome::Copied { rows, bytes } => {
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.rows += rows;
                    sum.bytes += bytes;
                    taken.is_done = true;
                }
                Outcome::Rewritten => _ = self.work().rewritten.insert(piece.table),
            }
            pair = Some(with);
        }
        self.work().idle.extend(pair);
        Ok(())
    }

    /// The next piece; small enough to take about a second at the pace set.
    fn take(&self) -> Option<Taken<'_>> {
        let mut work = self.work();
        loop {
            let piece = work.queue.pop_front()?;
            if work.rewritten.contains(&piece.table) {
                continue;
            }
            let table = work.tables.get(piece.table)?.clone();
            let (mut piece, rest) = match self.pace.get() {
                Some(rate) => piece.split(table.pages_of(rate as u64)),
                None => (piece, None),
            };
            if let Some(rest) = rest {
                work.queue.push_front(rest);
            }
            piece.is_tried = true;
            return Some(Taken { copy: self, table, piece, is_done: false });
        }
    }

    async fn pair(&self) -> Result<Pair, CopyError> {
        let idle = self.work().idle.pop();
        match idle.filter(Pair::is_open) {
            Some(pair) => Ok(pair),
            None => Ok(Pair { reader: self.open_reader().await?, writer: self.open_writer().await? }),
        }
    }

    /// Tables whose file is new are emptied on the target and planned anew. No piece is under way.
    async fn begin_tables_again(&self) -> Result<(), CopyError> {
        let rewritten = self.work().rewritten.clone();
        if rewritten.is_empty() {
            return Ok(());
        }
        let pair = self.pair().await?;
        let now = plan::tables(&pair.reader).await?;
        for number in rewritten {
            let Some(old) = self.work().tables.get(number).cloned() else { continue };
            let new = now.iter().find(|t| t.oid == old.oid).cloned().ok_or_else(|| BackendError::Permanent {
                doing: format!("copying {}", old.table.sql()),
                why: "the table is gone; begin the move again".into(),
            })?;
            record::forget(&pair.writer, &self.record_id(), &old).await?;
            let mut work = self.work();
            work.done.retain(|(table, _), _| *table != number);
            work.queue.retain(|piece| piece.table != number);
            work.queue.extend(plan::pieces_of(number, &new, self.piece_bytes));
            if let Some(table) = work.tables.get_mut(number) {
                *table = new;
            }
            work.rewritten.remove(&number);
        }
        self.work().idle.push(pair);
        Ok(())
    }

    /// Makes everything durable and looks that it is there: a target that crashed may have lost what it had committed
    /// last. What is missing is copied again.
    async fn settle(&self) -> Result<(), CopyError> {
        let pair = self.pair().await?;
        let recorded = record::settle(&pair.writer, &self.record_id()).await?;
        let mut work = self.work();
        let Work { done, tables, queue, .. } = &mut *work;
        done.retain(|(table, from), piece| {
            let is_there = tables.get(*table).is_some_and(|t| recorded.contains(&(t.oid, *from)));
            if !is_there {
                queue.push_back(*piece);
            }
            is_there
        });
        work.is_complete = work.queue.is_empty();
        if work.is_complete {
            // Their transactions would keep the source from cleaning up.
            work.idle.clear();
        }
        Ok(())
    }

    fn record_id(&self) -> String {
        self.at.to_string()
    }

    fn lost(&self, source: BackendError) -> CopyError {
        CopyError::Lost { shard: self.between.shard.clone(), source }
    }
}

/// A piece that is being copied; goes back to the queue unless it is done.
struct Taken<'a> {
    copy: &'a SnapshotCopy,
    table: Planned,
    piece: Piece,
    is_done: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut work = self.copy.work();
        if self.is_done {
            work.done.insert((self.piece.table, self.piece.from), self.piece);
        } else {
            work.queue.push_front(self.piece);
        }
    }
}

/// An error of a replication connection as the driver's class.
fn failed(error: WireError) -> BackendError {
    if error.sql_state().is_none_or(passes) {
        BackendError::Transient { doing: "copying at a snapshot".into(), source: Box::new(error) }
    } else {
        BackendError::Permanent { doing: "copying at a snapshot".into(), why: with_causes(&error) }
    }
}
