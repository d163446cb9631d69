//! Brings a shard's schema over with PostgreSQL's own programs, in stages around the copy.
//!
//! Before the copy: the database ([`database`]) and all that tables need to take rows. After it: keys, so that the stream
//! of changes finds its rows; then the other indexes; and once the target has caught up, the [`Stage::Rest`]. Triggers
//! come last because the application's must not fire while rows are copied. While changes are applied none fires but
//! those set to `ENABLE REPLICA` or `ENABLE ALWAYS`, and these would repeat what the stream brings anyway: they are made
//! disabled and enabled when the target opens, see [`held`].

pub(crate) mod database;
pub(crate) mod held;
pub(crate) mod programs;
mod restore;
#[cfg(test)]
mod tests;
mod toc;
pub(crate) mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tempfile::TempDir;
use tokio_postgres::types::Type;

use super::names::{GUARD, SCHEMA};
use super::session::{Place, Session, get};
use crate::BackendError;
use programs::Programs;
pub(crate) use restore::RestoreTo;
pub(crate) use toc::Stage;
use toc::{Entry, Object, Oids};

/// A schema as it was dumped, and what the source says of its parts.
pub(crate) struct Dump {
    programs: Programs,
    folder: TempDir,
    before: Vec<Entry>,
    after: Vec<Entry>,
    /// How the objects of both lists are called, whatever number they have.
    identities: BTreeMap<Object, String>,
}

/// What a dump is taken from.
pub(crate) struct DumpFrom<'a> {
    pub place: &'a Place,
    /// In the shard's database there.
    pub source: &'a Session,
    /// Application name of the program's connections.
    pub application: &'a str,
    /// The snapshot that rows are copied at, while it is held.
    pub snapshot: Option<&'a str>,
}

impl Dump {
    /// Dumps the schema, without what belongs to a move.
    ///
    /// # Errors
    /// If `pg_dump` fails or is missing, with all that it says.
    pub async fn take(programs: Programs, from: &DumpFrom<'_>) -> Result<Self, BackendError> {
        let doing = || format!("dumping the schema of {} on node {}", from.source.database(), from.place.node);
        let folder = tempfile::Builder::new()
            .prefix("foreshard-schema-")
            .tempdir()
            .map_err(|e| BackendError::Transient { doing: doing(), source: Box::new(e) })?;
        let file = folder.path().join("schema.dump");
        let mut dump = programs.on("pg_dump", from.place, from.source.database(), from.application);
        dump.args(["--format=custom", "--schema-only", "--no-publications", "--no-subscriptions"])
            .args(["--lock-wait-timeout=10000", &format!("--exclude-schema={SCHEMA}")])
            .arg(format!("--file={}", file.display()));
        if let Some(snapshot) = from.snapshot {
            dump.arg(format!("--snapshot={snapshot}"));
        }
        programs::run(dump, &doing()).await?;
        let mut list = Vec::new();
        for section in ["pre-data", "post-data"] {
            let mut command = programs.alone("pg_restore");
            command.arg("--list").arg(format!("--section={section}")).arg(&file);
            list.push(toc::parse(&programs::run(command, "reading the dump").await?));
        }
        let (after, before) = (list.pop().unwrap_or_default(), list.pop().unwrap_or_default());
        let oids = oids(from.source).await?;
        let after = toc::staged(after, &oids);
        let before: Vec<Entry> = before.into_iter().filter(|e| !oids.dropped.contains(&e.object)).collect();
        let objects: BTreeSet<Object> =
            before.iter().chain(&after).map(|e| e.object).filter(|o| o.class != 0 && o.oid != 0).collect();
        let identities = identities(from.source, &objects).await?;
        Ok(Self { programs, folder, before, after, identities })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("schema.dump")
    }
}

/// What of the dump's objects needs another treatment than its kind says.
async fn oids(source: &Session) -> Result<Oids, BackendError> {
    let sql = "SELECT 'drop', tableoid::int8, oid::int8 FROM pg_trigger WHERE tgname = $1 \
         UNION ALL SELECT 'drop', tableoid::int8, oid::int8 FROM pg_event_trigger WHERE evtname LIKE 'fs\\_%' \
           AND evtfoid IN (SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = $2) \
         UNION ALL SELECT 'held', tableoid::int8, oid::int8 FROM pg_trigger WHERE tgenabled IN ('R', 'A') AND NOT tgisinternal \
         UNION ALL SELECT 'key', 'pg_class'::regclass::int8, indexrelid::int8 FROM pg_index WHERE indisreplident \
         UNION ALL SELECT 'late', 'pg_class'::regclass::int8, i.indexrelid::int8 FROM pg_index i \
           JOIN pg_class c ON c.oid = i.indrelid WHERE c.relkind = 'm'";
    let rows = source.query("reading the schema", sql, &[(&GUARD, Type::TEXT), (&SCHEMA, Type::TEXT)]).await?;
    let mut oids = Oids::default();
    for row in rows {
        let object = Object { class: get(&row, 1)?, oid: get(&row, 2)? };
        match get::<&str>(&row, 0)? {
            "drop" => oids.dropped.insert(object),
            "held" => oids.held.insert(object),
            "key" => oids.keys.insert(object),
            _ => oids.late.insert(object),
        };
    }
    Ok(oids)
}

async fn identities(source: &Session, objects: &BTreeSet<Object>) -> Result<BTreeMap<Object, String>, BackendError> {
    let classes: Vec<i64> = objects.iter().map(|o| o.class).collect();
    let oids: Vec<i64> = objects.iter().map(|o| o.oid).collect();
    // A rule `_RETURN` replaces the stand-in of a view that depends on something of a later stage.
    let sql = "SELECT o.class, o.oid, (pg_identify_object(o.class::oid, o.oid::oid, 0)).identity \
               FROM unnest($1, $2) o(class, oid) \
               WHERE NOT (o.class = 'pg_rewrite'::regclass::int8 \
                 AND EXISTS (SELECT 1 FROM pg_rewrite r WHERE r.oid = o.oid::oid AND r.rulename = '_RETURN'))";
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&classes, Type::INT8_ARRAY), (&oids, Type::INT8_ARRAY)];
    let mut identities = BTreeMap::new();
    for row in source.query("naming the schema's objects", sql, &params).await? {
        if let Some(identity) = get::<Option<String>>(&row, 2)? {
            identities.insert(Object { class: get(&row, 0)?, oid: get(&row, 1)? }, identity);
        }
    }
    Ok(identities)
}
