//! What a shard's database holds, as far as a move must know it: tables with their columns and keys, and sequences.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::names::SCHEMA;
use super::session::{Session, get, qualified};
use crate::BackendError;

/// Schemas that belong to the server, not to the shard.
pub(crate) const NOT_SYSTEM: &str = "n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND n.nspname <> 'foreshard' \
     AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// A column that holds data of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub name: String,
    /// As `format_type` writes it.
    pub type_name: String,
}

/// A table that holds rows of its own: an ordinary one or a leaf of a partitioned one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub schema: String,
    pub name: String,
    /// All columns but generated ones, in their order.
    pub columns: Vec<Column>,
    /// Columns that identify a row in the change stream: of the primary key or the index named as replica identity. Empty if
    /// the whole row does, or nothing.
    pub key: Vec<Column>,
    /// `relreplident`: `d`efault, `i`ndex, `f`ull or `n`othing.
    pub identity: char,
    /// Pages of the main fork.
    pub pages: u32,
    /// Bytes of table, indexes and large values.
    pub bytes: u64,
}

impl Table {
    /// Its name as SQL wants it.
    pub fn sql(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Whether its changes can be told by a key, or by the whole row.
    pub fn is_identified(&self) -> bool {
        self.identity == 'f' || !self.key.is_empty()
    }

    /// The columns as a list of SQL identifiers.
    pub fn column_list(&self) -> String {
        list(&self.columns)
    }
}

fn list(columns: &[Column]) -> String {
    columns.iter().map(|c| super::session::ident(&c.name)).collect::<Vec<_>>().join(", ")
}

/// Tables of the shard that hold rows, in the order of their names.
pub(crate) async fn tables(session: &Session) -> Result<Vec<Table>, BackendError> {
    let sql = format!(
        "SELECT n.nspname, c.relname, c.relreplident, \
                (pg_relation_size(c.oid) / current_setting('block_size')::bigint)::bigint, \
                pg_total_relation_size(c.oid)::bigint, \
                COALESCE((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a \
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '{{}}'), \
                COALESCE((SELECT array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) FROM pg_attribute a \
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '{{}}'), \
                COALESCE((SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_index i, \
                  LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place), pg_attribute a \
                  WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND a.attnum = k.attnum AND k.place <= i.indnkeyatts \
                    AND i.indisvalid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident \
                    ELSE false END), '{{}}') \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {NOT_SYSTEM} ORDER BY 1, 2"
    );
    let rows = session.query("reading the tables", &sql, &[]).await?;
    rows.iter().map(table).collect()
}

fn table(row: &Row) -> Result<Table, BackendError> {
    let (names, types): (Vec<String>, Vec<String>) = (get(row, 5)?, get(row, 6)?);
    let columns: Vec<Column> =
        names.into_iter().zip(types).map(|(name, type_name)| Column { name, type_name }).collect();
    let key: Vec<String> = get(row, 7)?;
    let key = key.iter().filter_map(|name| columns.iter().find(|c| c.name == *name).cloned()).collect();
    let identity: i8 = get(row, 2)?;
    Ok(Table {
        schema: get(row, 0)?,
        name: get(row, 1)?,
        columns,
        key,
        identity: char::from(identity.unsigned_abs()),
        pages: u32::try_from(get::<i64>(row, 3)?).unwrap_or(u32::MAX),
        bytes: u64::try_from(get::<i64>(row, 4)?).unwrap_or(0),
    })
}

/// A sequence and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub schema: String,
    pub name: String,
}

/// Sequences of the shard, also those of identity columns, in the order of their names.
pub(crate) async fn sequences(session: &Session) -> Result<Vec<Sequence>, BackendError> {
    let sql = format!(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND {NOT_SYSTEM} ORDER BY 1, 2"
    );
    let rows = session.query("reading the sequences", &sql, &[]).await?;
    rows.iter().map(|row| Ok(Sequence { schema: get(row, 0)?, name: get(row, 1)? })).collect()
}

/// Whether the server has the database.
pub(crate) async fn has_database(session: &Session, database: &str) -> Result<bool, BackendError> {
    let sql = "SELECT 1 FROM pg_database WHERE datname = $1";
    Ok(session.maybe("looking for the database", sql, &[(&database, Type::TEXT)]).await?.is_some())
}

/// Whether the server has the database, but only what an interrupted `DROP DATABASE` has left of it (from 15.4 on the server
/// marks such a one by this limit, and lets nobody in).
pub(crate) async fn is_half_dropped(session: &Session, database: &str) -> Result<bool, BackendError> {
    let sql = "SELECT 1 FROM pg_database WHERE datname = $1 AND datconnlimit = -2";
    Ok(session.maybe("looking for the database", sql, &[(&database, Type::TEXT)]).await?.is_some())
}

/// Whether the shard's database has the move's own schema.
pub(crate) async fn has_own_schema(session: &Session) -> Result<bool, BackendError> {
    let sql = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    Ok(session.maybe("looking for the schema foreshard", sql, &[(&SCHEMA, Type::TEXT)]).await?.is_some())
}
