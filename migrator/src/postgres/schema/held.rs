//! Triggers that fire on replicated changes: made disabled, enabled when the target opens.
//!
//! The source fired them already, and what they wrote is in the stream; fired again on the target while it follows they
//! would write it twice.

use std::collections::BTreeSet;

use crate::BackendError;
use crate::postgres::names::{GUARD, SCHEMA};
use crate::postgres::session::{Session, get, ident, literal, qualified};

/// A trigger set to `ENABLE REPLICA` or `ENABLE ALWAYS`.
struct Held {
    oid: i64,
    /// The partitioned table's trigger that it was made with.
    parent: i64,
    table: String,
    name: String,
    definition: String,
    is_always: bool,
}

async fn held(source: &Session) -> Result<Vec<Held>, BackendError> {
    let sql = format!(
        "SELECT t.oid::int8, t.tgparentid::int8, n.nspname::text, c.relname::text, t.tgname::text, \
           pg_get_triggerdef(t.oid), t.tgenabled = 'A' \
         FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE t.tgenabled IN ('R', 'A') AND NOT t.tgisinternal AND t.tgname <> '{GUARD}' AND n.nspname <> '{SCHEMA}' \
         ORDER BY t.oid"
    );
    let rows = source.query("reading the triggers", &sql, &[]).await?;
    let one = |row: &tokio_postgres::Row| {
        Ok(Held {
            oid: get(row, 0)?,
            parent: get(row, 1)?,
            table: qualified(get(row, 2)?, get(row, 3)?),
            name: get(row, 4)?,
            definition: get(row, 5)?,
            is_always: get(row, 6)?,
        })
    };
    rows.iter().map(one).collect()
}

/// Makes them on the target, disabled, in one transaction; those that are there stay as they are.
pub(super) async fn make(source: &Session, target: &Session) -> Result<(), BackendError> {
    let held = held(source).await?;
    let all: BTreeSet<i64> = held.iter().map(|h| h.oid).collect();
    let mut sql = String::new();
    for trigger in &held {
        // Those of partitions come with their parent's, if that is held too; otherwise with the dump.
        if trigger.parent != 0 && !all.contains(&trigger.parent) {
            continue;
        }
        let Held { table, name, definition, .. } = trigger;
        let there = format!(
            "EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = to_regclass({}) AND tgname = {})",
            literal(table),
            literal(name)
        );
        let create = if trigger.parent == 0 { format!("EXECUTE {};", literal(definition)) } else { String::new() };
        let disable = literal(&format!("ALTER TABLE ONLY {table} DISABLE TRIGGER {}", ident(name)));
        let skip = if trigger.parent == 0 { format!("IF NOT {there} THEN ") } else { format!("IF {there} THEN ") };
        sql += &format!("{skip}{create} EXECUTE {disable}; END IF;\n");
    }
    if sql.is_empty() {
        return Ok(());
    }
    target.run("making triggers", &format!("DO {}", literal(&format!("BEGIN\n{sql}END")))).await
}

/// Statements for the target that put them in force, for the transaction that opens it.
///
/// # Errors
/// If the source cannot be read; ask it before the fence.
pub(crate) async fn enabling(source: &Session) -> Result<Vec<String>, BackendError> {
    let statement = |h: &Held| {
        let how = if h.is_always { "ALWAYS" } else { "REPLICA" };
        format!("ALTER TABLE ONLY {} ENABLE {how} TRIGGER {}", h.table, ident(&h.name))
    };
    Ok(held(source).await?.iter().map(statement).collect())
}

/// Statements that put them out of force on a node that begins to follow.
///
/// # Errors
/// If the node cannot be read.
pub(crate) async fn disabling(session: &Session) -> Result<Vec<String>, BackendError> {
    let statement = |h: &Held| format!("ALTER TABLE ONLY {} DISABLE TRIGGER {}", h.table, ident(&h.name));
    Ok(held(session).await?.iter().map(statement).collect())
}
