//! A pair of connections that copies one piece after the other.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use std::pin::{Pin, pin};
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::{CopyInSink, Error};

use super::plan::{Piece, Planned};
use super::splice::Splice;
use super::{CopyError, SnapshotCopy, record};
use crate::BackendError;
use crate::postgres::session::{Session, literal};

/// Bytes passed on at once. Each side holds a few of them, however large the piece or a value is.
const CHUNK: usize = 64 << 10;

/// What one statement reads, in seconds of the pace and in times that it takes to be opened, and at least.
const STEP_S: f64 = 0.01;
const STEP_OPENINGS: f64 = 2.0;
pub(super) const LEAST_STEP: u64 = 128 << 10;

/// How long either side may neither give nor take a row: a link that hangs must not hang the move.
const STALLED: Duration = Duration::from_secs(60);

/// How long a table may be locked by somebody else, on either side. Thousands of ranges as statements of their own would push
/// those of clients out of `pg_stat_statements`; where that is not loaded, its setting is a name like any other.
const READER: &str = "SET lock_timeout = '5s'; SET pg_stat_statements.track = 'none'";
/// No trigger and no foreign key; durable at the end, not with each piece.
const WRITER: &str = "SET session_replication_role = replica; SET synchronous_commit = off; SET lock_timeout = '10s'";

/// A transaction with the snapshot on the source, and a connection to the target.
pub(super) struct Pair {
    pub reader: Session,
    pub writer: Session,
}

/// What came of a piece.
pub(super) enum Outcome {
    Copied {
        rows: u64,
        bytes: u64,
    },
    /// The table has another file than when it was planned.
    Rewritten,
}

impl SnapshotCopy {
    /// # Errors
    /// [`CopyError::Lost`] if the snapshot cannot be taken any more.
    pub(super) async fn open_reader(&self) -> Result<Session, CopyError> {
        let reader = self.between.source.open(&self.between.shard, &self.between.application).await?;
        reader.run("setting up the connection", READER).await?;
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            literal(self.snapshot())
        );
        reader.run("taking the snapshot", &sql).await.map_err(|e| match e {
            refused @ BackendError::Permanent { .. } => self.lost(refused),
            other => CopyError::Failed(other),
        })?;
        Ok(reader)
    }

    pub(super) async fn open_writer(&self) -> Result<Session, CopyError> {
        let writer = self.between.target.open(&self.between.shard, &self.between.application).await?;
        writer.run("setting up the connection", WRITER).await?;
        Ok(writer)
    }

    /// Makes the target ready to record pieces.
    pub(super) async fn prepare(&self) -> Result<(), CopyError> {
        if !self.work().is_prepared {
            let writer = self.open_writer().await?;
            record::prepare(&writer, &self.record_id()).await?;
            self.work().is_prepared = true;
        }
        Ok(())
    }
}

impl Pair {
    pub fn is_open(&self) -> bool {
        !self.reader.is_closed() && !self.writer.is_closed()
    }

    /// Copies a piece in a transaction of the target that also records it. After an error the pair is of no use.
    pub async fn copy(&self, copy: &SnapshotCopy, table: &Planned, piece: &Piece) -> Result<Outcome, CopyError> {
        let lock = format!(
            "SAVEPOINT piece; LOCK TABLE ONLY {} IN ACCESS SHARE MODE; \
             SELECT COALESCE(pg_relation_filenode({}), 0), current_setting('server_encoding')",
            table.table.sql(),
            table.oid
        );
        let locked = self.reader.texts("locking a table", &lock).await?;
        let [Some(file), Some(encoding)] = locked.last().map(Vec::as_slice).unwrap_or_default() else {
            return Err(BackendError::Bug { what: "a table without a file".into() }.into());
        };
        let outcome = if *file == table.file.to_string() {
            self.copy_locked(copy, table, piece, encoding).await?
        } else {
            Outcome::Rewritten
        };
        // Lets the lock go; the snapshot stays.
        self.reader.run("unlocking a table", "ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece").await?;
        Ok(outcome)
    }

    async fn copy_locked(
        &self,
        copy: &SnapshotCopy,
        table: &Planned,
        piece: &Piece,
        encoding: &str,
    ) -> Result<Outcome, BackendError> {
        let id = record::Id { snapshot: copy.record_id(), relation: table.oid, from: piece.from };
        if let Some((rows, bytes)) = record::begin(&self.writer, &id).await? {
            return Ok(Outcome::Copied { rows, bytes });
        }
        let (rows, bytes) = self.pipe(copy, table, piece, encoding).await?;
        record::commit(&self.writer, &id, rows, bytes).await?;
        Ok(Outcome::Copied { rows, bytes })
    }

    /// Passes rows on, a step after the other: a server sends ahead as much as the sockets between hold, which is megabytes, and
    /// while it makes them its clients wait for the processor. So no more is asked for than the pace lets through soon, as far as
    /// pages allow: a step is at least one, with the large values beside it.
    async fn pipe(
        &self,
        copy: &SnapshotCopy,
        table: &Planned,
        piece: &Piece,
        encoding: &str,
    ) -> Result<(u64, u64), BackendError> {
        let name = table.table.sql();
        let (reading, writing) = (format!("reading rows of {name}"), format!("writing rows of {name}"));
        let into = table.copy_in(encoding);
        let target = self.writer.client().copy_in::<_, Bytes>(&into);
        let mut target = pin!(moving(&self.writer, &writing, target).await?);
        let chunk = copy.pace.get().map_or(CHUNK, |rate| (rate as usize / 4).clamp(1 << 10, CHUNK));
        let mut splice = Splice::new(table.is_binary, chunk);
        let odd = |what: &str| BackendError::Bug { what: format!("{reading}: {what}") };
        let (mut left, mut bytes, mut opened_in) = (Some(*piece), 0, None::<Duration>);
        while let Some(rest) = left {
            let (step, after) = rest.step(table.pages_of(step_bytes(copy.pace.get(), opened_in)));
            left = after;
            let out = table.copy_out(&step, encoding);
            let began = Instant::now();
            let mut source = pin!(moving(&self.reader, &reading, self.reader.client().copy_out(&out)).await?);
            let took = began.elapsed();
            // The quickest is the way there and back; what is above it, the server's own work.
            opened_in = Some(opened_in.map_or(took, |quickest| quickest.min(took)));
            #[cfg(test)]
            copy.statements.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            while let Some(row) = moving(&self.reader, &reading, async { source.next().await.transpose() }).await? {
                if let Some(ready) = splice.take(&row).map_err(odd)? {
                    bytes += self.pass(copy, target.as_mut(), ready, &writing).await?;
                }
            }
            splice.end().map_err(odd)?;
        }
        bytes += self.pass(copy, target.as_mut(), splice.finish(), &writing).await?;
        let rows = moving(&self.writer, &writing, target.finish()).await?;
        Ok((rows, bytes))
    }

    /// Passes a part on when the pace allows; how long it is.
    async fn pass(
        &self,
        copy: &SnapshotCopy,
        mut target: Pin<&mut CopyInSink<Bytes>>,
        part: Bytes,
        writing: &str,
    ) -> Result<u64, BackendError> {
        let bytes = part.len();
        copy.pace.take(bytes).await;
        moving(&self.writer, writing, target.feed(part)).await?;
        Ok(bytes as u64)
    }
}

/// Bytes that the next statement is to read, at a pace and when opening one takes so long: a link on which that is long
/// must not stand idle in between.
fn step_bytes(rate: Option<f64>, opened_in: Option<Duration>) -> u64 {
    let openings = opened_in.map_or(0.0, |opened_in| opened_in.as_secs_f64() * STEP_OPENINGS);
    rate.map_or(u64::MAX, |rate| ((rate * STEP_S.max(openings)) as u64).max(LEAST_STEP))
}

/// Waits for a side of the copy, but not for ever.
async fn moving<T>(
    side: &Session,
    doing: &str,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, BackendError> {
    match tokio::time::timeout(STALLED, step).await {
        Ok(done) => done.map_err(|e| side.failed(doing, e)),
        Err(_) => {
            let source = format!("node {} has not answered for {} s", side.node(), STALLED.as_secs()).into();
            Err(BackendError::Transient { doing: doing.to_owned(), source })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_short_on_a_near_link_and_fills_a_far_one() {
        let far = |ms| Some(Duration::from_millis(ms));
        assert_eq!(step_bytes(None, far(1)), u64::MAX);
        assert_eq!(step_bytes(Some(f64::INFINITY), None), u64::MAX);
        assert_eq!(step_bytes(Some(1e6), far(1)), LEAST_STEP);
        assert_eq!(step_bytes(Some(100e6), None), 1_000_000);
        assert_eq!(step_bytes(Some(100e6), far(2)), 1_000_000);
        assert_eq!(step_bytes(Some(12e6), far(60)), 1_440_000);
    }
}
