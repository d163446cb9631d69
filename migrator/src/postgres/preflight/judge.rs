//! Which facts stand in the way.

use std::time::Duration;

use super::Finding;
use super::facts::{Facts, Server};
use crate::postgres::names::PREFIX;
use crate::postgres::settings::{LongTransactions, PostgresSettings, WithoutKey};

/// What a move takes of a server, beyond what is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    slots: i64,
    senders: i64,
    appliers: i64,
}

impl Needs {
    /// Slots: the stream there, the changed keys of both ways, the probe. Appliers: the stream back and the probe.
    const SOURCE: Self = Self { slots: 4, senders: 4, appliers: 2 };
    /// The stream back, its changed keys, the probe; the stream there is applied.
    const TARGET: Self = Self { slots: 3, senders: 3, appliers: 1 };
}

/// Types that have no equality: rows with such columns cannot be found again by their whole.
const WITHOUT_EQUALITY: &[&str] =
    &["json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "txid_snapshot"];

/// How many names are listed at most.
const LISTED: usize = 20;

/// Log that a copy needs at least to be kept back, unless the shard is so small that a quarter of it is less.
const WAL_ROOM: u64 = 1 << 30;

struct Findings(Vec<Finding>);

impl Findings {
    fn refuse(&mut self, when: bool, code: &'static str, found: impl FnOnce() -> (String, String)) {
        self.add(when, code, true, found);
    }

    fn warn(&mut self, when: bool, code: &'static str, found: impl FnOnce() -> (String, String)) {
        self.add(when, code, false, found);
    }

    fn add(&mut self, when: bool, code: &'static str, refuses: bool, found: impl FnOnce() -> (String, String)) {
        if when {
            let (what, mend) = found();
            self.0.push(Finding { code, what, mend, refuses });
        }
    }

    /// One finding for all of a list, if there is anything in it.
    fn refuse_any<S: AsRef<str>>(&mut self, code: &'static str, list: &[S], what: &str, mend: &str) {
        self.refuse(!list.is_empty(), code, || (format!("{what}: {}", listed(list)), mend.to_owned()));
    }
}

fn listed<S: AsRef<str>>(list: &[S]) -> String {
    let mut text = list.iter().take(LISTED).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if let Some(more) = list.len().checked_sub(LISTED).filter(|more| *more > 0) {
        text += &format!(" and {more} more");
    }
    text
}

/// All findings.
pub(super) fn judge(facts: &Facts, settings: &PostgresSettings, mark: &str) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    servers(&mut found, facts);
    texts(&mut found, facts);
    provided(&mut found, facts, mark);
    not_carried(&mut found, facts);
    keys(&mut found, facts, settings);
    clients(&mut found, facts, settings);
    streams(&mut found, facts, mark);
    room(&mut found, facts, settings);
    found.0
}

fn servers(found: &mut Findings, facts: &Facts) {
    for (server, needs) in [(&facts.source, Needs::SOURCE), (&facts.target, Needs::TARGET)] {
        let Server { node, user, .. } = server;
        found.refuse(!server.is_superuser, "rights", || {
            let what = format!("{user} on node {node} is no superuser, which subscriptions and event triggers take");
            (what, format!("ALTER ROLE {user} SUPERUSER, or set another user for the node"))
        });
        found.refuse(server.wal_level != "logical", "wal_level", || {
            let what = format!("wal_level is {} on node {node}", server.wal_level);
            (what, "set wal_level = logical and restart the server".into())
        });
        let taken = [
            ("slots", server.free_slots, needs.slots, "max_replication_slots"),
            ("senders", server.free_senders, needs.senders, "max_wal_senders"),
            ("appliers", server.free_appliers, needs.appliers, "max_logical_replication_workers"),
            ("workers", server.free_workers, needs.appliers, "max_worker_processes"),
        ];
        for (code, free, need, setting) in taken {
            found.refuse(free < need, code, || {
                let what = format!("a move needs {need} of {setting} on node {node}, {} are free", free.max(0));
                (what, format!("raise {setting} and restart the server, or end what uses them"))
            });
        }
        found.refuse(facts.shard.relations > server.locks, "locks", || {
            let what = format!("{} relations are more than the locks of node {node}", facts.shard.relations);
            (what, "raise max_locks_per_transaction and restart the server".into())
        });
    }
    let (from, to) = (facts.source.version / 10_000, facts.target.version / 10_000);
    found.refuse(from != to, "version", || {
        (
            format!("the source has version {from} of PostgreSQL, the target {to}"),
            "move between servers of one version".into(),
        )
    });
}

fn texts(found: &mut Findings, facts: &Facts) {
    let mut locales = facts.shard.locales.clone();
    locales.sort();
    locales.dedup_by_key(|l| l.key());
    for locale in &locales {
        let built_in = locale.provider == "b" || matches!(locale.name.as_str(), "C" | "POSIX");
        let key = locale.key();
        match facts.provided.locales.get(&key) {
            None => found.refuse(!built_in, "collation", || {
                let what =
                    format!("the target does not know the locale {} (provider {})", locale.name, locale.provider);
                let mend = "install it on the target's machine and run pg_import_system_collations('pg_catalog') there";
                (what, mend.into())
            }),
            Some(there) => {
                let here = facts.shard.locales.iter().filter(|l| l.key() == key).find_map(|l| l.version.as_ref());
                if let (Some(here), Some(there)) = (here, there) {
                    found.refuse(here != there, "collation_version", || {
                        let name = &locale.name;
                        let what = format!("{name} sorts by version {here} on the source and {there} on the target");
                        (what, "use the same version of the operating system's libraries on both".into())
                    });
                }
            }
        }
    }
}

fn provided(found: &mut Findings, facts: &Facts, mark: &str) {
    let (shard, provided) = (&facts.shard, &facts.provided);
    let missing: Vec<String> = shard
        .extensions
        .iter()
        .filter(|extension| !provided.extensions.contains(extension))
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    let mend = "install them on the target's machine in the same version, or update them on the source";
    found.refuse_any("extensions", &missing, "the target's server does not have these extensions", mend);
    let what = "these roles own or may do something in the shard and are missing on the target";
    found.refuse_any("roles", &provided.missing_roles, what, "create them there");
    let what = "the shard uses tablespaces that are missing on the target";
    found.refuse_any(
        "tablespaces",
        &provided.missing_tablespaces,
        what,
        "create them there, or move the tables out of them",
    );
    let foreign = provided.database.as_ref().is_some_and(|comment| comment.as_deref() != Some(mark));
    found.refuse(foreign, "database", || {
        let comment = provided.database.clone().flatten().unwrap_or_default();
        let left = if comment.starts_with("foreshard ") { ", left by another move" } else { "" };
        let what = format!("node {} already has a database {}{left}", facts.target.node, shard.name);
        (what, "make sure that nobody needs it and drop or rename it".into())
    });
}

fn not_carried(found: &mut Findings, facts: &Facts) {
    let shard = &facts.shard;
    found.refuse(shard.large_objects > 0, "large_objects", || {
        let what = format!("{} large objects, whose changes are not replicated", shard.large_objects);
        (what, "keep them in bytea columns, or lo_unlink them".into())
    });
    let mend = "ALTER TABLE ... SET LOGGED";
    found.refuse_any("unlogged", &shard.unlogged, "changes of unlogged tables are not replicated", mend);
    let mend = "drop them in the shard, or keep them in a database that does not move";
    found.refuse_any("foreign_tables", &shard.foreign, "foreign tables reach their servers from one node only", mend);
    let mend = "drop them, or end these sessions; temporary tables do not go with a pooler of transactions either";
    found.refuse_any("temporary", &shard.temporary, "temporary tables do not move", mend);
    let mend = "COMMIT PREPARED or ROLLBACK PREPARED";
    found.refuse_any("prepared", &shard.prepared, "prepared transactions hold writes that no fence can see", mend);
    let mend = "keep their rows in tables of your own";
    found.refuse_any("extension_rows", &shard.extension_rows, "rows in tables of extensions are not copied", mend);
    found.warn(!shard.object_numbers.is_empty(), "object_numbers", || {
        let list = listed(&shard.object_numbers);
        (
            format!("these columns name objects of the database, whose numbers change: {list}"),
            "names are carried, bare numbers (oid) will point elsewhere: check that nothing depends on them".into(),
        )
    });
}

fn keys(found: &mut Findings, facts: &Facts, settings: &PostgresSettings) {
    let unidentified: Vec<_> = facts.shard.tables.iter().filter(|t| !t.is_identified()).collect();
    let (invalid, without): (Vec<_>, Vec<_>) = unidentified.into_iter().partition(|t| t.identity == 'i');
    let names = |tables: &[&crate::postgres::catalog::Table]| tables.iter().map(|t| t.sql()).collect::<Vec<_>>();
    let what = "the index that identifies the rows of these tables is missing or invalid";
    found.refuse_any("identity_index", &names(&invalid), what, "REINDEX it, or ALTER TABLE ... REPLICA IDENTITY");
    if settings.without_key == WithoutKey::Refuse {
        let mend = "add a primary key, or ALTER TABLE ... REPLICA IDENTITY FULL; or set without_key = \"full\"";
        found.refuse_any(
            "without_key",
            &names(&without),
            "updates and deletes of tables without a key cannot be told",
            mend,
        );
    }
    let whole_row = |t: &&crate::postgres::catalog::Table| {
        t.key.is_empty() && (t.identity == 'f' || settings.without_key == WithoutKey::Full)
    };
    let blind: Vec<String> = facts
        .shard
        .tables
        .iter()
        .filter(whole_row)
        .filter(|t| t.columns.iter().any(|c| WITHOUT_EQUALITY.contains(&c.type_name.as_str())))
        .map(crate::postgres::catalog::Table::sql)
        .collect();
    let what = "rows of these tables are told by all their columns, of which some have no equality";
    found.refuse_any("without_equality", &blind, what, "add a primary key");
}

fn clients(found: &mut Findings, facts: &Facts, settings: &PostgresSettings) {
    for (pooler, mode) in &facts.pool_modes {
        found.refuse(!matches!(mode.as_str(), "transaction" | "statement"), "pool_mode", || {
            let what = format!("pooler {pooler} keeps a server for each client ({mode} pooling): it cannot be paused");
            (what, format!("set pool_mode = transaction for {} there", facts.shard.name))
        });
    }
    let LongTransactions::Refuse { after } = settings.long_transactions else { return };
    let long: Vec<String> = facts
        .shard
        .transactions
        .iter()
        .filter(|t| Duration::try_from_secs_f64(t.age_s).is_ok_and(|age| age > after))
        .map(|t| format!("pid {} for {:.0} s in {} by {:?}: {}", t.pid, t.age_s, t.database, t.application, t.query))
        .collect();
    let mend = "wait for them, or pg_terminate_backend(pid)";
    found.refuse_any("long_transactions", &long, "these transactions are older than a move may wait for", mend);
}

fn streams(found: &mut Findings, facts: &Facts, mark: &str) {
    // `foreshard fs_<hash>`: what this very migration made is no hindrance.
    let stem = mark.rsplit(' ').next().filter(|stem| stem.starts_with(PREFIX));
    let others = |all: &[String]| -> Vec<String> {
        all.iter().filter(|name| stem.is_none_or(|stem| !name.starts_with(stem))).cloned().collect()
    };
    let mend = "drop them, or let the shard's own sources write to it directly";
    let what = "subscriptions would stay behind or apply their changes twice";
    found.refuse_any("subscriptions", &others(&facts.shard.subscriptions), what, mend);
    let what = "subscribers of these publications would not move with the shard";
    found.refuse_any(
        "publications",
        &others(&facts.shard.publications),
        what,
        "drop them and subscribe again afterwards",
    );
}

fn room(found: &mut Findings, facts: &Facts, settings: &PostgresSettings) {
    let (shard, mib) = (&facts.shard, |bytes: u64| bytes >> 20);
    match facts.target.free_bytes {
        Some(free) => found.refuse(shard.bytes as f64 > free as f64 * settings.disk_share, "disk", || {
            let (share, node) = (settings.disk_share, &facts.target.node);
            let what = format!(
                "the shard's {} MiB are more than {share} of the {} MiB free on node {node}",
                mib(shard.bytes),
                mib(free)
            );
            (what, "make room there, or raise disk_share".into())
        }),
        None => found.warn(true, "disk_unknown", || {
            let what = format!("free room of node {} is not known", facts.target.node);
            (what, format!("make sure that {} MiB fit there", mib(shard.bytes)))
        }),
    }
    let need = (shard.bytes / 4).min(WAL_ROOM).min(settings.wal_limit_bytes);
    if let Some(keeps) = shard.slot_keeps {
        found.refuse(keeps < need, "wal_keep", || {
            let node = &facts.source.node;
            let what =
                format!("max_slot_wal_keep_size is {} MiB on node {node}, a copy may need {}", mib(keeps), mib(need));
            (what, "raise it; the configuration has to be reloaded only".into())
        });
    }
    if let Some(free) = facts.source.free_bytes {
        found.refuse(free < need, "wal_room", || {
            let node = &facts.source.node;
            let what = format!("{} MiB are free for the log of node {node}, a copy may need {}", mib(free), mib(need));
            (what, "make room there".into())
        });
    }
}
