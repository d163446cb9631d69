//! Keys of all kinds of types.

use super::*;

/// A table with the key `columns`, whose rows have the keys `keys`; `after` is done on both sides.
async fn check(columns: &str, key: &str, keys: &[&str], after: &str) {
    let table = format!("CREATE TABLE t ({columns}, v int); {key}; ALTER TABLE t ALTER v SET DEFAULT 0");
    let Some(pair) = Pair::new(&table).await else { return };
    let names = columns.split(", ").map(|c| c.split(' ').next().unwrap()).collect::<Vec<_>>().join(", ");
    let values = keys.join("), (");
    pair.both(&format!("INSERT INTO t ({names}) VALUES ({values}); {after}")).await;
    let equal = pair.verified(2).await;
    let rows = keys.len() as u64;
    assert_eq!(equal, Found { ranges: rows / 2 + 1, rows, differing: Vec::new() }, "{columns}");
    // Each row in turn differs, is looked up by its key, and is the only one that is named.
    for key in keys {
        let this = format!("WHERE ({names}) = ({key})");
        pair.at_target(&format!("UPDATE t SET v = 1 {this}")).await;
        let differing = pair.verified(2).await.differing;
        assert_eq!(differing.len(), 1, "{columns} {key}: {differing:?}");
        let named = pair
            .source
            .texts(
                "reading a key",
                &format!("SET search_path = public; SELECT {names} FROM t {this}; SET search_path = pg_catalog"),
            )
            .await
            .unwrap();
        let named: Vec<_> = named.first().unwrap().iter().map(|v| v.clone().unwrap()).collect();
        assert_eq!(differing, [format!("table public.t key ({}) differs", named.join(", "))]);
        pair.at_target(&format!("UPDATE t SET v = 0 {this}")).await;
    }
}

const PRIMARY: &str = "ALTER TABLE t ADD PRIMARY KEY (k)";

#[tokio::test]
async fn texts_with_odd_characters() {
    let odd = [
        "''",
        "' '",
        "'it''s'",
        "E'back\\\\slash'",
        "E'line\\nbreak'",
        "'ä'",
        "'\u{1F980}'",
        "'NULL'",
        "'(a, b)'",
        "'\"'",
        "'A'",
        "'a'",
        "'a '",
        "'$1'",
        "'::int'",
    ];
    check("k text", PRIMARY, &odd, "SELECT").await;
    check("k varchar(40) COLLATE \"C\"", PRIMARY, &odd, "SELECT").await;
}

#[tokio::test]
async fn numbers_and_times() {
    check("k numeric", PRIMARY, &["1.0", "1.50", "-3", "1e30", "0.000000000000000000001", "'NaN'"], "SELECT").await;
    check("k float8", PRIMARY, &["0.1", "1e300", "-1.5", "'Infinity'", "1e-300", "0.30000000000000004"], "SELECT")
        .await;
    check(
        "k timestamptz",
        PRIMARY,
        &[
            "'2026-03-29 01:30+01'",
            "'2026-03-29 03:30+02'",
            "'infinity'",
            "'0044-03-15 BC'",
            "'2026-01-01 00:00:00.000001'",
        ],
        "SELECT",
    )
    .await;
    check("k bigint", PRIMARY, &["1", "-9223372036854775808", "9223372036854775807", "0"], "SELECT").await;
}

#[tokio::test]
async fn other_types() {
    check(
        "k uuid",
        PRIMARY,
        &[
            "'00000000-0000-0000-0000-000000000001'",
            "'ffffffff-0000-0000-0000-000000000001'",
            "'80000000-0000-0000-0000-000000000001'",
        ],
        "SELECT",
    )
    .await;
    check("k bytea", PRIMARY, &["'\\x'", "'\\x00'", "'\\x5c27'", "'\\xff'"], "SELECT").await;
    check("k character(4)", PRIMARY, &["'a'", "'b  '", "'ab'", "''"], "SELECT").await;
    check("k date[]", PRIMARY, &["'{2026-01-01}'", "'{}'", "'{2026-01-01,2026-01-02}'"], "SELECT").await;
    check("k inet", PRIMARY, &["'10.0.0.1'", "'10.0.0.0/8'", "'::1'"], "SELECT").await;
}

#[tokio::test]
async fn composite_keys() {
    let key = "ALTER TABLE t ADD PRIMARY KEY (a, b, c)";
    let keys = [
        "'x', 1, '2026-01-01'",
        "'x', 2, '2026-01-01'",
        "'x', 2, '2025-01-01'",
        "'', 1, '2026-01-01'",
        "'y', -1, '2026-01-01'",
    ];
    check("a text, b int, c date", key, &keys, "SELECT").await;
}

#[tokio::test]
async fn types_and_orders_of_users_and_extensions() {
    let mood = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad'); ALTER TABLE t ALTER k TYPE mood USING k::mood; ALTER TABLE t ADD PRIMARY KEY (k)";
    check("k text", mood, &["'glad'", "'sad'", "'ok'"], "SELECT").await;
    let code = "CREATE DOMAIN code AS varchar(9); ALTER TABLE t ALTER k TYPE code; ALTER TABLE t ADD PRIMARY KEY (k)";
    check("k text", code, &["'b'", "'a'", "'c'"], "SELECT").await;
    let citext = "CREATE EXTENSION citext; ALTER TABLE t ALTER k TYPE citext; ALTER TABLE t ADD PRIMARY KEY (k)";
    check("k text", citext, &["'b'", "'A'", "'C'", "'d'", "'B2'", "'a1'", "'D1'"], "SELECT").await;
    let both = "CREATE EXTENSION citext; ALTER TABLE t ALTER k TYPE citext; ALTER TABLE t ADD PRIMARY KEY (k, l)";
    check("k text, l int", both, &["'b', 1", "'A', 2", "'a', 1", "'C', 1", "'c', 2", "'c', 0"], "SELECT").await;
    let pattern = "ALTER TABLE t ALTER k SET NOT NULL; CREATE UNIQUE INDEX i ON t (k text_pattern_ops) INCLUDE (v); \
        ALTER TABLE t REPLICA IDENTITY USING INDEX i";
    check("k text", pattern, &["'b'", "'A'", "'a'", "'B'"], "SELECT").await;
    check("k int", PRIMARY, &["3", "1", "2"], "ALTER TABLE t REPLICA IDENTITY FULL").await;
}

#[tokio::test]
async fn keys_that_are_equal_but_not_the_same_are_told_apart() {
    let Some(pair) = Pair::new("CREATE TABLE t (k numeric PRIMARY KEY)").await else { return };
    pair.at_source("INSERT INTO t VALUES (1.0), (2)").await;
    pair.at_target("INSERT INTO t VALUES (1.00), (2)").await;
    let expected = ["table public.t key (1.0) differs", "table public.t key (1.00) differs"];
    assert_eq!(sorted(pair.verified(10).await.differing), expected);
}
