//! Restores a dump's stages. Each can be repeated after a call whose outcome is not known.

use std::collections::BTreeSet;
use std::time::Duration;

use super::toc::{Entry, Stage};
use super::{Dump, held, programs};
use crate::BackendError;
use crate::postgres::session::{Place, Session, get, ident, literal};

/// How long an ended session may take to go.
const GONE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Where a dump is restored to.
pub(crate) struct RestoreTo<'a> {
    pub place: &'a Place,
    /// In the shard's database there.
    pub target: &'a Session,
    /// In the shard's database on the source.
    pub source: &'a Session,
    /// Application name of the program's connections; nobody else's may bear it.
    pub application: &'a str,
    /// Indexes built at once.
    pub jobs: usize,
}

impl Dump {
    /// Everything that tables need to take rows: in one transaction, so that it is there as a whole or not at all.
    ///
    /// # Errors
    /// If `pg_restore` fails, with all that it says.
    pub async fn restore_before_data(&self, to: &RestoreTo<'_>) -> Result<(), BackendError> {
        end_earlier(to).await?;
        let existing = existing(to.target).await?;
        let is_there = |entry: &Entry| self.identity(entry).is_some_and(|identity| existing.contains(&identity));
        let (schemas, rest): (Vec<&Entry>, Vec<&Entry>) = self.before.iter().partition(|e| e.is("SCHEMA"));
        let schemas: Vec<&Entry> = schemas.into_iter().filter(|e| !is_there(e)).collect();
        self.restore(to, "schemas", &schemas, &["--single-transaction"]).await?;
        extensions(to).await?;
        if rest.iter().any(|e| !e.is("EXTENSION") && is_there(e)) {
            return Ok(());
        }
        self.restore(to, "tables", &rest, &["--single-transaction"]).await
    }

    /// One stage of what comes after the data; what is there already stays.
    ///
    /// # Errors
    /// If `pg_restore` fails, with all that it says.
    pub async fn restore_stage(&self, to: &RestoreTo<'_>, stage: Stage) -> Result<(), BackendError> {
        end_earlier(to).await?;
        if stage == Stage::Rest {
            held::make(to.source, to.target).await?;
        }
        let existing = existing(to.target).await?;
        let left: Vec<&Entry> = self
            .after
            .iter()
            .filter(|e| e.stage == Some(stage))
            .filter(|e| self.identity(e).is_none_or(|identity| !existing.contains(&identity)))
            .collect();
        let jobs = format!("--jobs={}", to.jobs.max(1));
        let options: &[&str] = if stage == Stage::Rest { &[] } else { &[&jobs] };
        let name = match stage {
            Stage::Keys => "keys",
            Stage::Indexes => "indexes",
            Stage::Rest => "rest",
        };
        self.restore(to, name, &left, options).await
    }

    /// Materialised views in an order in which each finds those that it reads.
    pub(super) fn materialised_views(&self) -> Vec<String> {
        let all = self.before.iter().chain(&self.after).filter(|e| e.is("MATERIALIZED VIEW"));
        all.filter_map(|e| self.identities.get(&e.object).cloned()).collect()
    }

    fn identity(&self, entry: &Entry) -> Option<(i64, String)> {
        Some((entry.object.class, self.identities.get(&entry.object)?.clone()))
    }

    async fn restore(
        &self,
        to: &RestoreTo<'_>,
        name: &str,
        entries: &[&Entry],
        options: &[&str],
    ) -> Result<(), BackendError> {
        if entries.is_empty() {
            return Ok(());
        }
        let doing = format!("restoring the {name} of {} on node {}", to.target.database(), to.place.node);
        let list = self.folder.path().join(name);
        let lines: String = entries.iter().map(|e| format!("{}\n", e.line)).collect();
        let written = tokio::fs::write(&list, lines).await;
        written.map_err(|e| BackendError::Transient { doing: doing.clone(), source: Box::new(e) })?;
        let mut command = self.programs.on("pg_restore", to.place, to.target.database(), to.application);
        command.arg("--exit-on-error").args(options);
        command.arg(format!("--use-list={}", list.display())).arg(self.file());
        programs::run(command, &doing).await.map(drop)
    }
}

/// A program that was killed leaves its last statement running on the server: it must not meet its repetition.
async fn end_earlier(to: &RestoreTo<'_>) -> Result<(), BackendError> {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = {} AND pid <> pg_backend_pid()",
        literal(to.application)
    );
    let ended = tokio::time::timeout(GONE, async {
        while !to.target.query("ending an earlier restore", &sql, &[]).await?.is_empty() {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    });
    let doing = || format!("ending an earlier restore on node {}", to.place.node);
    ended.await.unwrap_or_else(|elapsed| Err(BackendError::Transient { doing: doing(), source: Box::new(elapsed) }))
}

/// What the target has, by catalog and name.
async fn existing(target: &Session) -> Result<BTreeSet<(i64, String)>, BackendError> {
    let catalogs =
        ["pg_class", "pg_constraint", "pg_rewrite", "pg_policy", "pg_event_trigger", "pg_statistic_ext", "pg_proc"];
    let catalogs = catalogs.iter().chain(&["pg_type", "pg_namespace", "pg_extension", "pg_operator", "pg_ts_config"]);
    let of = |catalog: &str, and: &str| {
        format!(
            "SELECT c.tableoid::int8, (pg_identify_object(c.tableoid, c.oid, 0)).identity FROM {catalog} c \
             WHERE c.oid >= 16384 {and}"
        )
    };
    let mut parts: Vec<String> = catalogs.map(|catalog| of(catalog, "")).collect();
    parts.push(of("pg_trigger", "AND NOT c.tgisinternal"));
    let rows = target.query("reading what is there", &parts.join(" UNION "), &[]).await?;
    let mut existing = BTreeSet::new();
    for row in rows {
        if let Some(identity) = get::<Option<String>>(&row, 1)? {
            existing.insert((get(&row, 0)?, identity));
        }
    }
    Ok(existing)
}

/// Makes the extensions in the versions of the source: a dump would take the target's default.
async fn extensions(to: &RestoreTo<'_>) -> Result<(), BackendError> {
    let sql = "SELECT e.extname::text, n.nspname::text, e.extversion FROM pg_extension e \
               JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY e.oid";
    let schemas = to.target.query("reading the schemas", "SELECT nspname::text FROM pg_namespace", &[]).await?;
    let schemas: BTreeSet<String> = schemas.iter().map(|row| get(row, 0)).collect::<Result<_, _>>()?;
    for row in to.source.query("reading the extensions", sql, &[]).await? {
        let (name, schema, version): (String, String, String) = (get(&row, 0)?, get(&row, 1)?, get(&row, 2)?);
        // A schema that is not in the dump is the extension's own.
        let place = if schemas.contains(&schema) { format!("SCHEMA {}", ident(&schema)) } else { String::new() };
        let sql = format!("CREATE EXTENSION IF NOT EXISTS {} {place} VERSION {}", ident(&name), literal(&version));
        to.target.run("making an extension", &sql).await?;
    }
    Ok(())
}
