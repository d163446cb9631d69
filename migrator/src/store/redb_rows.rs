//! The tables of the redb store: which rows a commit touches, and the state that all rows make.
//!
//! | table | key | value, JSON |
//! | --- | --- | --- |
//! | `owners`, `overrides` | shard | owner |
//! | `migrations` | migration | record |
//! | `journal` | migration, number from 0 | row |
//! | `objects` | name | object |
//! | `plans` | plan | plan |
//! | `meta` | `format`, `revision`, `term`, `leader`, `plan_in_force` | number, name or null |

use ::redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};
use foreshard_domain::MigrationId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Change, JournalRow, State};

/// Version of the tables; a store of another version is refused.
pub(super) const FORMAT: u32 = 1;

type Json = TableDefinition<'static, &'static str, &'static [u8]>;

const OWNERS: Json = TableDefinition::new("owners");
const OVERRIDES: Json = TableDefinition::new("overrides");
const MIGRATIONS: Json = TableDefinition::new("migrations");
const OBJECTS: Json = TableDefinition::new("objects");
const PLANS: Json = TableDefinition::new("plans");
const META: Json = TableDefinition::new("meta");
const JOURNAL: TableDefinition<'static, (&'static str, u64), &'static [u8]> = TableDefinition::new("journal");

/// Why rows could not be read or written.
pub(super) enum RowError {
    /// redb says so.
    Redb(::redb::Error),
    /// A row is not what was written.
    Row { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The tables are of another version.
    Format { found: String },
}

impl<E: Into<::redb::Error>> From<E> for RowError {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

fn encode<V: Serialize>(what: &str, value: &V) -> Result<Vec<u8>, RowError> {
    serde_json::to_vec(value).map_err(|e| RowError::Row { what: what.to_owned(), source: Box::new(e) })
}

fn decode<V: DeserializeOwned>(what: &str, key: &str, json: &[u8]) -> Result<V, RowError> {
    serde_json::from_slice(json)
        .map_err(|e| RowError::Row { what: format!("row {key} of {what}"), source: Box::new(e) })
}

/// Makes what the row holds equal to `value`.
fn put<V: Serialize>(txn: &WriteTransaction, table: Json, key: &str, value: Option<&V>) -> Result<(), RowError> {
    use ::redb::TableHandle;
    let what = table.name().to_owned();
    let mut rows = txn.open_table(table)?;
    match value {
        Some(value) => rows.insert(key, encode(&what, value)?.as_slice())?,
        None => rows.remove(key)?,
    };
    Ok(())
}

/// Writes the rows that `changes` touched, as they are in `next`.
pub(super) fn write(txn: &WriteTransaction, next: &State, changes: &[Change]) -> Result<(), RowError> {
    for change in changes {
        match change {
            Change::PutMigration { record } => {
                put(txn, MIGRATIONS, record.id.as_str(), next.migrations.get(&record.id))?;
            }
            Change::ForgetMigration { id } => put(txn, MIGRATIONS, id.as_str(), next.migrations.get(id))?,
            Change::SetOwner { shard, .. } => put(txn, OWNERS, shard.as_str(), next.owners.get(shard))?,
            Change::PutOverride { shard, .. } | Change::RemoveOverride { shard } => {
                put(txn, OVERRIDES, shard.as_str(), next.overrides.get(shard))?;
            }
            Change::PutObject { object } => put(txn, OBJECTS, &object.name, next.objects.get(&object.name))?,
            Change::RemoveObject { name } => put(txn, OBJECTS, name, next.objects.get(name))?,
            Change::PutPlan { plan } => put(txn, PLANS, plan.id.as_str(), next.plans.get(&plan.id))?,
            Change::ForgetPlan { id } => put(txn, PLANS, id.as_str(), next.plans.get(id))?,
            Change::Journal { .. } | Change::AcceptPlan { .. } => {}
        }
    }
    write_journal(txn, next, changes)?;
    write_meta(txn, next)
}

/// Appends the new lines; a migration that was forgotten loses the old ones.
fn write_journal(txn: &WriteTransaction, next: &State, changes: &[Change]) -> Result<(), RowError> {
    let mut added: BTreeMap<&MigrationId, usize> = BTreeMap::new();
    let mut forgotten: BTreeSet<&MigrationId> = BTreeSet::new();
    for change in changes {
        match change {
            Change::Journal { row } => *added.entry(&row.migration).or_default() += 1,
            Change::ForgetMigration { id } => {
                forgotten.insert(id);
            }
            _ => {}
        }
    }
    let mut rows = txn.open_table(JOURNAL)?;
    for id in &forgotten {
        rows.retain_in((id.as_str(), 0)..=(id.as_str(), u64::MAX), |_, _| false)?;
        added.insert(id, usize::MAX);
    }
    for (id, count) in added {
        let lines = next.journal.get(id).map_or(&[][..], |lines| lines.as_slice());
        let first = lines.len().saturating_sub(count);
        for (number, line) in lines.iter().enumerate().skip(first) {
            rows.insert((id.as_str(), number as u64), encode("journal", line)?.as_slice())?;
        }
    }
    Ok(())
}

/// Writes what is kept beside the tables.
pub(super) fn write_meta(txn: &WriteTransaction, next: &State) -> Result<(), RowError> {
    put(txn, META, "format", Some(&FORMAT))?;
    put(txn, META, "revision", Some(&next.revision))?;
    put(txn, META, "term", Some(&next.term))?;
    put(txn, META, "leader", Some(&next.leader))?;
    put(txn, META, "plan_in_force", Some(&next.plan_in_force))
}

/// Makes all tables, so that reading never misses one.
pub(super) fn create(txn: &WriteTransaction) -> Result<(), RowError> {
    for table in [OWNERS, OVERRIDES, MIGRATIONS, OBJECTS, PLANS, META] {
        txn.open_table(table)?;
    }
    txn.open_table(JOURNAL)?;
    write_meta(txn, &State::default())
}

/// The state that the rows make; `None` if there are no tables yet.
pub(super) fn load(txn: &ReadTransaction) -> Result<Option<State>, RowError> {
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(other) => return Err(other.into()),
    };
    let text = |key: &str| -> Result<Vec<u8>, RowError> {
        let row = meta.get(key)?;
        row.map(|r| r.value().to_vec())
            .ok_or_else(|| RowError::Row { what: format!("row {key} of meta"), source: "the row is missing".into() })
    };
    let format = text("format")?;
    if decode::<u32>("meta", "format", &format).ok() != Some(FORMAT) {
        return Err(RowError::Format { found: String::from_utf8_lossy(&format).into_owned() });
    }
    Ok(Some(State {
        revision: decode("meta", "revision", &text("revision")?)?,
        term: decode("meta", "term", &text("term")?)?,
        leader: decode("meta", "leader", &text("leader")?)?,
        owners: Arc::new(load_table(txn, OWNERS)?),
        overrides: Arc::new(load_table(txn, OVERRIDES)?),
        migrations: Arc::new(load_table(txn, MIGRATIONS)?),
        journal: Arc::new(load_journal(txn)?),
        objects: Arc::new(load_table(txn, OBJECTS)?),
        plans: Arc::new(load_table(txn, PLANS)?),
        plan_in_force: decode("meta", "plan_in_force", &text("plan_in_force")?)?,
    }))
}

fn load_table<K, V>(txn: &ReadTransaction, table: Json) -> Result<BTreeMap<K, V>, RowError>
where
    K: TryFrom<String> + Ord,
    K::Error: std::error::Error + Send + Sync + 'static,
    V: DeserializeOwned,
{
    use ::redb::TableHandle;
    let what = table.name().to_owned();
    let mut loaded = BTreeMap::new();
    for row in txn.open_table(table)?.iter()? {
        let (key, value) = row?;
        let value = decode(&what, key.value(), value.value())?;
        loaded.insert(load_key(&what, key.value())?, value);
    }
    Ok(loaded)
}

fn load_key<K: TryFrom<String>>(what: &str, key: &str) -> Result<K, RowError>
where
    K::Error: std::error::Error + Send + Sync + 'static,
{
    K::try_from(key.to_owned())
        .map_err(|e| RowError::Row { what: format!("key {key:?} of {what}"), source: Box::new(e) })
}

fn load_journal(txn: &ReadTransaction) -> Result<BTreeMap<MigrationId, Arc<Vec<JournalRow>>>, RowError> {
    let mut journal: BTreeMap<MigrationId, Vec<JournalRow>> = BTreeMap::new();
    for row in txn.open_table(JOURNAL)?.iter()? {
        let (key, value) = row?;
        let (id, _) = key.value();
        let line = decode("journal", id, value.value())?;
        journal.entry(load_key("journal", id)?).or_default().push(line);
    }
    Ok(journal.into_iter().map(|(id, lines)| (id, Arc::new(lines))).collect())
}
