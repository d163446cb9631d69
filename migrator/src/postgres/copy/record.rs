//! The target's record of the pieces that it has.

use std::collections::BTreeSet;
use tokio_postgres::types::Type;

use super::plan::Planned;
use crate::BackendError;
use crate::postgres::names::SCHEMA;
use crate::postgres::session::{Session, get, literal};

/// A piece, whatever copy it belongs to.
pub(super) struct Id {
    pub snapshot: String,
    pub relation: i64,
    pub from: u32,
}

/// Makes the table of pieces.
///
/// # Errors
/// If another copy has written there: its rows would stay beside this one's.
pub(super) async fn prepare(target: &Session, snapshot: &str) -> Result<(), BackendError> {
    let sql = format!(
        "CREATE SCHEMA IF NOT EXISTS {SCHEMA}; \
         CREATE TABLE IF NOT EXISTS {SCHEMA}.copied (snapshot text, relation int8, first_page int8, rows int8 NOT NULL, \
           bytes int8 NOT NULL, PRIMARY KEY (snapshot, relation, first_page))"
    );
    target.run("making the record of copied pieces", &sql).await?;
    let sql = format!("SELECT 1 FROM {SCHEMA}.copied WHERE snapshot <> $1 LIMIT 1");
    match target.maybe("looking for another copy", &sql, &[(&snapshot, Type::TEXT)]).await? {
        None => Ok(()),
        Some(_) => Err(BackendError::Permanent {
            doing: format!("copying into database {} on node {}", target.database(), target.node()),
            why: "it has rows of another copy; drop it and begin again".into(),
        }),
    }
}

/// Begins the transaction of a piece; rows and bytes if it has been committed before, and then there is no transaction.
///
/// A transaction of the same piece that is still under way is waited for.
pub(super) async fn begin(target: &Session, id: &Id) -> Result<Option<(u64, u64)>, BackendError> {
    let Id { snapshot, relation, from } = id;
    let sql = format!(
        "BEGIN; INSERT INTO {SCHEMA}.copied VALUES ({}, {relation}, {from}, 0, 0) ON CONFLICT DO NOTHING RETURNING 1",
        literal(snapshot)
    );
    if !target.texts("recording a piece", &sql).await?.is_empty() {
        return Ok(None);
    }
    target.run("leaving a piece", "ROLLBACK").await?;
    let sql =
        format!("SELECT rows, bytes FROM {SCHEMA}.copied WHERE snapshot = $1 AND relation = $2 AND first_page = $3");
    let from = i64::from(*from);
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(snapshot, Type::TEXT), (relation, Type::INT8), (&from, Type::INT8)];
    let row = target.one("reading the record of a piece", &sql, &params).await?;
    let count = |column| get::<i64>(&row, column).map(|n| u64::try_from(n).unwrap_or(0));
    Ok(Some((count(0)?, count(1)?)))
}

/// Ends the transaction of a piece.
pub(super) async fn commit(target: &Session, id: &Id, rows: u64, bytes: u64) -> Result<(), BackendError> {
    let sql = format!(
        "UPDATE {SCHEMA}.copied SET rows = {rows}, bytes = {bytes} \
         WHERE snapshot = {} AND relation = {} AND first_page = {}; COMMIT",
        literal(&id.snapshot),
        id.relation,
        id.from
    );
    target.run("committing a piece", &sql).await
}

/// Empties a table and forgets its pieces.
pub(super) async fn forget(target: &Session, snapshot: &str, table: &Planned) -> Result<(), BackendError> {
    let sql = format!(
        "BEGIN; TRUNCATE ONLY {}; DELETE FROM {SCHEMA}.copied WHERE snapshot = {} AND relation = {}; COMMIT",
        table.table.sql(),
        literal(snapshot),
        table.oid
    );
    target.run("emptying a table to copy it again", &sql).await
}

/// Commits something so that it, and all that was committed before, is on disk; then says which pieces are recorded, by
/// the source's number of the table and first page.
pub(super) async fn settle(target: &Session, snapshot: &str) -> Result<BTreeSet<(i64, u32)>, BackendError> {
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = on; \
         INSERT INTO {SCHEMA}.copied VALUES ({}, 0, 0, 0, 0) \
           ON CONFLICT (snapshot, relation, first_page) DO UPDATE SET rows = copied.rows + 1; COMMIT",
        literal(snapshot)
    );
    target.run("making the copy durable", &sql).await?;
    let sql = format!("SELECT relation, first_page FROM {SCHEMA}.copied WHERE snapshot = $1 AND relation <> 0");
    let rows = target.query("reading the record of pieces", &sql, &[(&snapshot, Type::TEXT)]).await?;
    rows.iter().map(|row| Ok((get(row, 0)?, u32::try_from(get::<i64>(row, 1)?).unwrap_or(u32::MAX)))).collect()
}
