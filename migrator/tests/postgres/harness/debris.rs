//! What a move could leave behind on a server, a pooler or in a database: nothing, when it is over.

use super::address::Session;
use super::pooler::Pooler;
use super::server::{ADMIN, APP, PgServer};

/// Kinds of things of the whole server, and how to list them. `$known` stands for the names of databases.
const OF_SERVER: &[(&str, &str)] = &[
    ("replication slot", "SELECT slot_name || ' of ' || coalesce(database, '-') FROM pg_replication_slots"),
    (
        "subscription",
        "SELECT subname || ' in ' || coalesce(datname, '?') FROM pg_subscription s LEFT JOIN pg_database d ON d.oid = subdbid",
    ),
    ("replication origin", "SELECT roname FROM pg_replication_origin"),
    ("prepared transaction", "SELECT gid || ' in ' || database FROM pg_prepared_xacts"),
    ("role", "SELECT rolname FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' AND rolname NOT IN ($roles)"),
    ("database", "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1', $known)"),
    ("connection limit", "SELECT datname || ' ' || datconnlimit FROM pg_database WHERE datconnlimit <> -1"),
    ("role's connection limit", "SELECT rolname || ' ' || rolconnlimit FROM pg_roles WHERE rolconnlimit <> -1"),
    ("closed database", "SELECT datname FROM pg_database WHERE NOT datallowconn AND datname <> 'template0'"),
    ("role without login", "SELECT rolname FROM pg_roles WHERE NOT rolcanlogin AND rolname IN ($roles)"),
    (
        "setting",
        "SELECT coalesce(datname, '*') || ' ' || coalesce(rolname, '*') || ' ' || setconfig::text FROM pg_db_role_setting \
         LEFT JOIN pg_database d ON d.oid = setdatabase LEFT JOIN pg_roles r ON r.oid = setrole",
    ),
    ("setting of the server", "SELECT name FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf'"),
    (
        "database's rights",
        "SELECT datname || ' ' || datacl::text FROM pg_database WHERE datacl IS NOT NULL AND datname NOT LIKE 'template_'",
    ),
    ("replication connection", "SELECT application_name FROM pg_stat_replication"),
    (
        "temporary walsender",
        "SELECT application_name FROM pg_stat_activity WHERE backend_type IN ('walsender', 'logical replication worker')",
    ),
];

/// The same within one database.
const OF_DATABASE: &[(&str, &str)] = &[
    ("publication", "SELECT pubname FROM pg_publication"),
    ("event trigger", "SELECT evtname FROM pg_event_trigger"),
    ("schema", "SELECT nspname FROM pg_namespace WHERE nspname ~ '^(foreshard|fs_)'"),
    ("function", "SELECT oid::regprocedure::text FROM pg_proc WHERE proname ~ '^(foreshard|fs_)'"),
    ("trigger", "SELECT tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE tgname ~ '^(foreshard|fs_)'"),
    ("relation", "SELECT oid::regclass::text FROM pg_class WHERE relname ~ '^(foreshard|fs_)'"),
    (
        "disabled trigger",
        "SELECT tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE tgenabled <> 'O' AND NOT tgisinternal",
    ),
    (
        "disabled internal trigger",
        "SELECT tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE tgenabled <> 'O' AND tgisinternal",
    ),
    (
        "replica identity",
        "SELECT oid::regclass || ' ' || relreplident::text FROM pg_class WHERE relkind IN ('r', 'p') \
      AND relreplident <> 'd' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)",
    ),
    (
        "advisory lock",
        "SELECT classid || ' ' || objid FROM pg_locks WHERE locktype = 'advisory' \
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    ),
    ("invalid index", "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"),
    ("unvalidated constraint", "SELECT conname FROM pg_constraint WHERE NOT convalidated"),
];

/// Everything on a server that is not there on a fresh one with these databases of the clients. One line for each
/// thing. Names of the clients' own that begin like the mover's are not told apart from its own.
pub async fn debris(server: &PgServer, databases: &[&str]) -> Vec<String> {
    let quoted = |names: &[&str]| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let known = if databases.is_empty() { "''".into() } else { quoted(databases) };
    let fill = |sql: &str| sql.replace("$known", &known).replace("$roles", &quoted(&[ADMIN, APP]));
    let mut found = list(&server.connect("postgres").await, OF_SERVER, server.name(), fill).await;
    for database in databases.iter().chain(&["postgres"]) {
        let open = format!("SELECT 1 FROM pg_database WHERE datname = '{database}' AND datallowconn");
        if server.column("postgres", &open).await.is_empty() {
            continue; // moved away, or closed, which is told above
        }
        let place = format!("{}, {database}", server.name());
        found.extend(list(&server.connect(database).await, OF_DATABASE, &place, str::to_owned).await);
    }
    found
}

async fn list(session: &Session, kinds: &[(&str, &str)], place: &str, fill: impl Fn(&str) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, sql) in kinds {
        let things = session.rows(&fill(sql)).await.unwrap_or_else(|error| panic!("{place}: {sql}: {error:?}"));
        found.extend(things.iter().map(|thing| format!("{place}: {kind} {}", thing.first())));
    }
    found
}

/// Databases that a pooler holds back.
pub async fn paused_pools(pooler: &Pooler) -> Vec<String> {
    let paused = pooler.paused().await;
    paused.iter().map(|database| format!("pooler {}: {database} is paused", pooler.name())).collect()
}

#[tokio::test]
async fn all_that_a_move_could_leave_is_found() {
    use super::server::ServerOptions;
    let server = PgServer::start("debris", &ServerOptions::fast()).await;
    server.create_database("shop").await;
    server.sql("shop", "CREATE TABLE t (n int PRIMARY KEY)").await;
    let pooler = Pooler::start("debris", &[("shop", &server.address("shop"))]).await;
    let none: [String; 0] = [];
    assert_eq!(debris(&server, &["shop"]).await, none);
    assert_eq!(paused_pools(&pooler).await, none);

    // What is left, how it is removed, and how it is told.
    let left = [
        (
            "SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
            "SELECT pg_drop_replication_slot('s')",
            "replication slot s of shop",
        ),
        ("CREATE PUBLICATION p FOR ALL TABLES", "DROP PUBLICATION p", "publication p"),
        (
            "CREATE SUBSCRIPTION s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false)",
            "ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s",
            "subscription s in shop",
        ),
        ("SELECT pg_replication_origin_create('o')", "SELECT pg_replication_origin_drop('o')", "replication origin o"),
        (
            "CREATE FUNCTION fs_f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; \
             CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION fs_f()",
            "DROP EVENT TRIGGER e; DROP FUNCTION fs_f",
            "event trigger e",
        ),
        (
            "CREATE FUNCTION foreshard_f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
             CREATE TRIGGER fs_t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION foreshard_f()",
            "DROP FUNCTION foreshard_f CASCADE",
            "trigger fs_t on t",
        ),
        ("CREATE SCHEMA foreshard", "DROP SCHEMA foreshard", "schema foreshard"),
        ("CREATE TABLE fs_owner (n int)", "DROP TABLE fs_owner", "relation fs_owner"),
        ("CREATE ROLE foreshard_term_1 LOGIN", "DROP ROLE foreshard_term_1", "role foreshard_term_1"),
        (
            "ALTER DATABASE shop CONNECTION LIMIT 0",
            "ALTER DATABASE shop CONNECTION LIMIT -1",
            "connection limit shop 0",
        ),
        ("ALTER ROLE app CONNECTION LIMIT 3", "ALTER ROLE app CONNECTION LIMIT -1", "role's connection limit app 3"),
        ("ALTER ROLE app NOLOGIN", "ALTER ROLE app LOGIN", "role without login app"),
        (
            "ALTER DATABASE shop SET default_transaction_read_only = on",
            "ALTER DATABASE shop RESET default_transaction_read_only",
            "setting shop * {default_transaction_read_only=on}",
        ),
        (
            "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'x'",
            "ROLLBACK PREPARED 'x'",
            "prepared transaction x in shop",
        ),
        ("ALTER TABLE t REPLICA IDENTITY FULL", "ALTER TABLE t REPLICA IDENTITY DEFAULT", "replica identity t f"),
        (
            "ALTER DATABASE shop ALLOW_CONNECTIONS false",
            "ALTER DATABASE shop ALLOW_CONNECTIONS true",
            "closed database shop",
        ),
    ];
    for (leave, remove, told) in left {
        // No database closes itself, and nothing is changed in one that is read-only: that is done from another one.
        let left_from = if told.starts_with("closed") { "postgres" } else { "shop" };
        let removed_from = if told.starts_with("setting") { "postgres" } else { left_from };
        server.sql(left_from, leave).await;
        let found = debris(&server, &["shop"]).await;
        assert!(found.iter().any(|line| line.ends_with(told)), "{leave}: {found:?}");
        server.sql(removed_from, remove).await;
        assert_eq!(debris(&server, &["shop"]).await, none, "{remove}");
    }
    server.create_database("shop_copy").await;
    assert_eq!(debris(&server, &["shop"]).await, ["debris: database shop_copy"]);
    pooler.pause("shop").await;
    assert_eq!(paused_pools(&pooler).await, ["pooler debris: shop is paused"]);
}
