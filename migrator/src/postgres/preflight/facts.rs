//! What both servers say.

use std::collections::BTreeMap;
use tokio_postgres::types::Type;

use super::Sides;
use crate::BackendError;
use crate::postgres::catalog::{self, NOT_SYSTEM, Table};
use crate::postgres::session::{Session, get, ident, literal};

/// One side's server.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    pub node: String,
    pub user: String,
    pub is_superuser: bool,
    pub version: i32,
    pub wal_level: String,
    pub free_slots: i64,
    pub free_senders: i64,
    pub free_appliers: i64,
    pub free_workers: i64,
    /// How many locks all transactions can hold together, at least.
    pub locks: i64,
    /// Bytes free where the shard's files, or on the source its log, lie; `None` if the server cannot tell.
    pub free_bytes: Option<u64>,
}

/// Rules by which texts are compared, and the version of them where the library tells one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Locale {
    /// `c` for the operating system's, `i` for ICU's, `b` for the server's own.
    pub provider: String,
    pub name: String,
    pub version: Option<String>,
}

impl Locale {
    /// Spellings of the same locale are equal: `en_US.UTF-8` is `en_US.utf8`.
    pub fn key(&self) -> (String, String) {
        (self.provider.clone(), self.name.to_lowercase().replace('-', ""))
    }
}

/// The shard's database on the source.
#[derive(Debug, Clone, Default)]
pub(super) struct Shard {
    pub name: String,
    pub bytes: u64,
    /// The database's own and those that columns and indexes name.
    pub locales: Vec<Locale>,
    /// Names and versions.
    pub extensions: Vec<(String, String)>,
    /// Tables of extensions that hold rows which belong to the shard.
    pub extension_rows: Vec<String>,
    pub roles: Vec<String>,
    pub tablespaces: Vec<String>,
    pub large_objects: i64,
    pub relations: i64,
    pub unlogged: Vec<String>,
    pub foreign: Vec<String>,
    /// Temporary tables and whose they are.
    pub temporary: Vec<String>,
    pub prepared: Vec<String>,
    pub tables: Vec<Table>,
    pub subscriptions: Vec<String>,
    pub publications: Vec<String>,
    /// Columns that hold numbers of objects, which differ from database to database.
    pub object_numbers: Vec<String>,
    pub transactions: Vec<Transaction>,
    /// Bytes of log that a slot may keep back; `None` for no limit.
    pub slot_keeps: Option<u64>,
}

/// A transaction that runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Transaction {
    pub pid: i32,
    pub age_s: f64,
    pub database: String,
    pub application: String,
    pub query: String,
}

/// What the target's server has of what the shard needs.
#[derive(Debug, Clone, Default)]
pub(super) struct Provided {
    pub locales: BTreeMap<(String, String), Option<String>>,
    pub extensions: Vec<(String, String)>,
    pub missing_roles: Vec<String>,
    pub missing_tablespaces: Vec<String>,
    /// The comment of a database of the shard's name, if there is such a database.
    pub database: Option<Option<String>>,
}

/// Everything that [`super::judge`] needs.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub source: Server,
    pub target: Server,
    pub shard: Shard,
    pub provided: Provided,
    pub pool_modes: Vec<(String, String)>,
}

/// Reads both sides.
pub(super) async fn read(sides: &Sides<'_>, pool_modes: &[(String, String)]) -> Result<Facts, BackendError> {
    let Sides { source, source_server, target_server } = sides;
    let mut facts = Facts {
        source: server(source_server).await?,
        target: server(target_server).await?,
        pool_modes: pool_modes.to_vec(),
        ..Facts::default()
    };
    facts.shard = shard(source, facts.source.is_superuser).await?;
    facts.provided = provided(target_server, &facts.shard).await?;
    if facts.source.is_superuser {
        facts.source.free_bytes = free_bytes(source_server, "current_setting('data_directory') || '/pg_wal'").await;
    }
    if facts.target.is_superuser {
        facts.target.free_bytes = free_bytes(target_server, &home(&facts.shard.tablespaces)).await;
    }
    Ok(facts)
}

/// SQL for the folder in which the shard's files will lie.
fn home(tablespaces: &[String]) -> String {
    let own = tablespaces.first().map(|name| {
        let name = literal(name);
        format!("NULLIF((SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = {name}), ''), ")
    });
    format!("COALESCE({}current_setting('data_directory'))", own.unwrap_or_default())
}

async fn server(session: &Session) -> Result<Server, BackendError> {
    let busy = |kind: &str| format!("(SELECT count(*) FROM pg_stat_activity WHERE backend_type = '{kind}')");
    let sql = format!(
        "SELECT current_user::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), \
           current_setting('server_version_num')::int4, current_setting('wal_level'), \
           current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
           current_setting('max_wal_senders')::int8 - {}, \
           current_setting('max_logical_replication_workers')::int8 - {}, \
           current_setting('max_worker_processes')::int8 - (SELECT count(*) FROM pg_stat_activity WHERE backend_type NOT IN \
             ('client backend', 'walsender', 'autovacuum launcher', 'autovacuum worker', 'checkpointer', \
              'background writer', 'walwriter', 'startup', 'walreceiver', 'archiver', 'parallel worker')), \
           current_setting('max_locks_per_transaction')::int8 * (current_setting('max_connections')::int8 \
             + current_setting('max_prepared_transactions')::int8)",
        busy("walsender"),
        busy("logical replication worker"),
    );
    let row = session.one("reading the server's settings", &sql, &[]).await?;
    Ok(Server {
        node: session.node().to_string(),
        user: get(&row, 0)?,
        is_superuser: get(&row, 1)?,
        version: get(&row, 2)?,
        wal_level: get(&row, 3)?,
        free_slots: get(&row, 4)?,
        free_senders: get(&row, 5)?,
        free_appliers: get(&row, 6)?,
        free_workers: get(&row, 7)?,
        locks: get(&row, 8)?,
        free_bytes: None,
    })
}

/// SQL has no word for free room: the server's machine is asked. The table for its answer is temporary and never committed.
async fn free_bytes(session: &Session, folder: &str) -> Option<u64> {
    let folder = session.one("asking for the folder", &format!("SELECT {folder}"), &[]).await.ok()?;
    let folder: String = get(&folder, 0).ok()?;
    let program = format!("LC_ALL=C df -B1 --output=avail -- '{}'", folder.replace('\'', "'\\''"));
    let sql = format!(
        "BEGIN; SET LOCAL statement_timeout = '5s'; CREATE TEMPORARY TABLE foreshard_room (line text); \
         COPY pg_temp.foreshard_room FROM PROGRAM {}; SELECT line FROM pg_temp.foreshard_room; ROLLBACK",
        literal(&program)
    );
    let asked = session.texts("asking for free room", &sql).await;
    if asked.is_err() {
        // The transaction may have been left open by the error.
        session.run("ending the question for free room", "ROLLBACK").await.ok()?;
    }
    asked.ok()?.iter().flatten().flatten().find_map(|line| line.trim().parse().ok())
}

async fn shard(session: &Session, is_superuser: bool) -> Result<Shard, BackendError> {
    let sql = "SELECT pg_database_size(oid)::int8, datlocprovider::text, datcollate::text, \
                 datctype::text, COALESCE(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), \
                 pg_database_collation_actual_version(oid), \
                 (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                 (SELECT count(*) FROM pg_largeobject_metadata), \
                 (SELECT count(*) FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p', 'i', 'I', 'S', 'v', 'm', 'f')) \
               FROM pg_database d WHERE datname = current_database()";
    let row = session.one("reading the database", sql, &[]).await?;
    let keeps: i64 = get(&row, 6)?;
    let mut shard = Shard {
        name: session.database().to_owned(),
        bytes: u64::try_from(get::<i64>(&row, 0)?).unwrap_or(0),
        slot_keeps: u64::try_from(keeps).ok().map(|megabytes| megabytes << 20),
        large_objects: get(&row, 7)?,
        relations: get(&row, 8)?,
        tables: catalog::tables(session).await?,
        transactions: transactions(session).await?,
        temporary: temporary(session).await?,
        ..Shard::default()
    };
    let (provider, collate, ctype): (String, String, String) = (get(&row, 1)?, get(&row, 2)?, get(&row, 3)?);
    let version: Option<String> = get(&row, 5)?;
    match get::<Option<String>>(&row, 4)? {
        Some(name) if provider != "c" => {
            shard.locales.push(Locale { provider, name, version });
            shard.locales.push(Locale { provider: "c".into(), name: collate, version: None });
        }
        _ => shard.locales.push(Locale { provider, name: collate, version }),
    }
    shard.locales.push(Locale { provider: "c".into(), name: ctype, version: None });
    shard.locales.extend(named_locales(session).await?);
    shard.extensions = pairs(session, "SELECT extname::text, extversion FROM pg_extension ORDER BY 1").await?;
    if is_superuser {
        shard.extension_rows = extension_rows(session).await?;
    }
    lists(session, &mut shard).await?;
    Ok(shard)
}

async fn pairs(session: &Session, sql: &str) -> Result<Vec<(String, String)>, BackendError> {
    let rows = session.query("reading the database", sql, &[]).await?;
    rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
}

async fn names(session: &Session, sql: &str) -> Result<Vec<String>, BackendError> {
    let rows = session.query("reading the database", sql, &[]).await?;
    rows.iter().map(|row| get(row, 0)).collect()
}

async fn lists(session: &Session, shard: &mut Shard) -> Result<(), BackendError> {
    let relations = |which: &str| {
        format!(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE {which} AND {NOT_SYSTEM} ORDER BY 1"
        )
    };
    shard.unlogged = names(session, &relations("c.relkind IN ('r', 'p') AND c.relpersistence = 'u'")).await?;
    shard.foreign = names(session, &relations("c.relkind = 'f'")).await?;
    let prepared =
        "SELECT format('%s of %s', gid, owner) FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1";
    shard.prepared = names(session, prepared).await?;
    let here = "(SELECT oid FROM pg_database WHERE datname = current_database())";
    let subscriptions = format!("SELECT subname::text FROM pg_subscription WHERE subdbid = {here} ORDER BY 1");
    shard.subscriptions = names(session, &subscriptions).await?;
    shard.publications = names(session, "SELECT pubname::text FROM pg_publication ORDER BY 1").await?;
    // Dependencies on the role that the server was made with are not kept: its objects are looked for.
    let owned = |table: &str, owner: &str| format!("SELECT {owner} FROM {table} WHERE oid >= 16384 AND {owner} = 10");
    let roles = format!(
        "SELECT DISTINCT r.rolname::text FROM pg_roles r WHERE r.rolname NOT LIKE 'foreshard\\_%' AND r.oid IN ( \
           SELECT refobjid FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass \
             AND (dbid = {here} OR dbid = 0 AND classid = 'pg_database'::regclass AND objid = {here}) \
           UNION SELECT datdba FROM pg_database WHERE oid = {here} \
           UNION SELECT setrole FROM pg_db_role_setting WHERE setdatabase = {here} \
           UNION {} UNION {} UNION {} UNION {}) ORDER BY 1",
        owned("pg_class", "relowner"),
        owned("pg_namespace", "nspowner"),
        owned("pg_proc", "proowner"),
        owned("pg_type", "typowner"),
    );
    shard.roles = names(session, &roles).await?;
    let tablespaces = format!(
        "SELECT spcname::text FROM (SELECT dattablespace AS id, 0 AS place FROM pg_database WHERE oid = {here} \
           UNION SELECT reltablespace, 1 FROM pg_class WHERE reltablespace <> 0 AND oid >= 16384) used \
         JOIN pg_tablespace t ON t.oid = used.id WHERE spcname NOT LIKE 'pg\\_%' GROUP BY 1 ORDER BY min(place), 1"
    );
    shard.tablespaces = names(session, &tablespaces).await?;
    let numbers = format!(
        "SELECT format('%I.%I.%I (%s)', n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod)) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid \
         WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND {NOT_SYSTEM} \
           AND format_type(a.atttypid, NULL) ~ '^(oid|reg(class|proc|procedure|oper|operator|role|type|config|dictionary|namespace|collation))(\\[\\])?$' \
         ORDER BY 1"
    );
    shard.object_numbers = names(session, &numbers).await?;
    Ok(())
}

/// Collations that columns and indexes name and that come with the server, not with the dump.
async fn named_locales(session: &Session) -> Result<Vec<Locale>, BackendError> {
    let sql = "SELECT DISTINCT l.collprovider::text, \
                 COALESCE(to_jsonb(l) ->> 'colllocale', to_jsonb(l) ->> 'colliculocale', l.collcollate::text, l.collname::text), \
                 pg_collation_actual_version(l.oid) \
               FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace \
               WHERE n.nspname = 'pg_catalog' AND l.collprovider IN ('c', 'i') AND l.collname NOT IN ('C', 'POSIX', 'ucs_basic') \
                 AND (EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attcollation = l.oid AND a.attrelid >= 16384) \
                   OR EXISTS (SELECT 1 FROM pg_index i WHERE l.oid = ANY (i.indcollation::oid[]) AND i.indexrelid >= 16384)) \
               ORDER BY 1, 2";
    let rows = session.query("reading the collations", sql, &[]).await?;
    rows.iter().map(|row| Ok(Locale { provider: get(row, 0)?, name: get(row, 1)?, version: get(row, 2)? })).collect()
}

/// Tables of extensions with rows that a dump of the data would hold: they are copied by nobody.
async fn extension_rows(session: &Session) -> Result<Vec<String>, BackendError> {
    let sql = "SELECT n.nspname::text, c.relname::text, k.filter FROM pg_extension e, \
               LATERAL unnest(e.extconfig, e.extcondition) k(relation, filter), pg_class c, pg_namespace n \
               WHERE c.oid = k.relation AND n.oid = c.relnamespace AND c.relkind = 'r' ORDER BY 1, 2";
    let mut found = Vec::new();
    for row in session.query("reading the extensions", sql, &[]).await? {
        let (schema, name, filter): (String, String, String) = (get(&row, 0)?, get(&row, 1)?, get(&row, 2)?);
        let table = format!("{}.{}", ident(&schema), ident(&name));
        let any = format!("SELECT 1 FROM {table} {filter} LIMIT 1");
        if !session.query("looking for rows of extensions", &any, &[]).await?.is_empty() {
            found.push(table);
        }
    }
    Ok(found)
}

/// Temporary tables of living sessions, with who may be told to end. Before version 16 the server does not say whose a
/// temporary schema is unless its session is in a transaction.
async fn temporary(session: &Session) -> Result<Vec<String>, BackendError> {
    let sql = "SELECT format('%I', c.relname), \
                 COALESCE((SELECT 'pid ' || min(l.pid) FROM pg_locks l WHERE l.locktype = 'virtualxid' \
                     AND split_part(l.virtualtransaction, '/', 1) = substr(n.nspname, 9)), \
                   (SELECT 'one of pids ' || string_agg(a.pid::text, ', ' ORDER BY a.pid) FROM pg_stat_activity a \
                     WHERE a.datname = current_database() AND a.backend_type = 'client backend' \
                       AND a.pid <> pg_backend_pid() AND a.application_name NOT LIKE 'foreshard%'), 'a session that ended') \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relpersistence = 't' AND c.relkind IN ('r', 'p', 'S', 'v') AND n.nspname LIKE 'pg\\_temp\\_%' ORDER BY 1";
    let found = pairs(session, sql).await?;
    Ok(found.into_iter().map(|(table, who)| format!("{table} of {who}")).collect())
}

async fn transactions(session: &Session) -> Result<Vec<Transaction>, BackendError> {
    // Those of other databases matter if they have written: the slot waits for them too.
    let sql = "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8, COALESCE(datname::text, ''), \
                 COALESCE(application_name, ''), COALESCE(left(query, 60), '') \
               FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend' \
                 AND (datname = current_database() OR backend_xid IS NOT NULL) \
                 AND application_name NOT LIKE 'foreshard%' ORDER BY xact_start";
    let rows = session.query("reading the transactions", sql, &[]).await?;
    let transaction = |row: &tokio_postgres::Row| {
        Ok(Transaction {
            pid: get(row, 0)?,
            age_s: get(row, 1)?,
            database: get(row, 2)?,
            application: get(row, 3)?,
            query: get(row, 4)?,
        })
    };
    rows.iter().map(transaction).collect()
}

async fn provided(target: &Session, shard: &Shard) -> Result<Provided, BackendError> {
    let keys: Vec<String> = shard.locales.iter().map(|l| l.key().1).collect();
    let sql = "SELECT provider, lower(replace(name, '-', '')), max(version) FROM ( \
                 SELECT collprovider::text AS provider, COALESCE(to_jsonb(l) ->> 'colllocale', to_jsonb(l) ->> 'colliculocale', \
                     collcollate::text, collname::text) AS name, pg_collation_actual_version(oid) AS version FROM pg_collation l \
                   WHERE lower(replace(COALESCE(to_jsonb(l) ->> 'colllocale', to_jsonb(l) ->> 'colliculocale', \
                     collcollate::text, collname::text), '-', '')) = ANY ($1) \
                 UNION ALL SELECT datlocprovider::text, \
                     COALESCE(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', datcollate::text), \
                     pg_database_collation_actual_version(oid) FROM pg_database d \
                 UNION ALL SELECT 'c', datctype::text, NULL FROM pg_database \
                 UNION ALL SELECT 'c', datcollate::text, NULL FROM pg_database) AS known \
               WHERE lower(replace(name, '-', '')) = ANY ($1) GROUP BY 1, 2";
    let mut provided = Provided::default();
    for row in target.query("reading the collations", sql, &[(&keys, Type::TEXT_ARRAY)]).await? {
        provided.locales.insert((get(&row, 0)?, get(&row, 1)?), get(&row, 2)?);
    }
    let extensions: Vec<&str> = shard.extensions.iter().map(|(name, _)| name.as_str()).collect();
    let sql = "SELECT name::text, version FROM pg_available_extension_versions WHERE name = ANY ($1) ORDER BY 1, 2";
    for row in target.query("reading the extensions", sql, &[(&extensions, Type::TEXT_ARRAY)]).await? {
        provided.extensions.push((get(&row, 0)?, get(&row, 1)?));
    }
    provided.missing_roles = missing(target, &shard.roles, "SELECT rolname::text FROM pg_roles").await?;
    provided.missing_tablespaces =
        missing(target, &shard.tablespaces, "SELECT spcname::text FROM pg_tablespace").await?;
    let sql = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
    let database = target.maybe("looking for the database", sql, &[(&shard.name, Type::TEXT)]).await?;
    provided.database = database.map(|row| get(&row, 0)).transpose()?;
    Ok(provided)
}

async fn missing(target: &Session, wanted: &[String], had: &str) -> Result<Vec<String>, BackendError> {
    let sql = format!("SELECT w FROM unnest($1) w WHERE w NOT IN ({had}) ORDER BY 1");
    let rows = target.query("looking for what is missing", &sql, &[(&wanted, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| get(row, 0)).collect()
}
