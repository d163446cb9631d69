//! Every kind of difference is found and named.

use super::*;

const TABLE: &str = "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN code AS character(4); \
    CREATE TABLE d (id int PRIMARY KEY, name text, gone int, blanks varchar(20), padded character(6), r float8, plain json, n numeric, \
      at timestamptz, mood mood, code code, list text[], shape point, x xml, big bigint DEFAULT 1, twice int GENERATED ALWAYS AS (id * 2) STORED); \
    ALTER TABLE d DROP COLUMN gone; \
    INSERT INTO d (id, name, blanks, padded, r, plain, n, at, mood, code, list, shape, x) SELECT i, 'name ' || i, 'b', 'p', 0, '{\"a\": 1}', 1.0, timestamptz '2026-01-01' + i * interval '1 s', 'sad', \
      'ab', ARRAY['a', NULL], point(i, i), '<a/>' FROM generate_series(1, 60) i";

#[tokio::test]
async fn equal_copies_are_equal() {
    let Some(pair) = Pair::new(TABLE).await else { return };
    let found = pair.verified(10).await;
    assert_eq!(found, Found { ranges: 7, rows: 60, differing: Vec::new() });
}

#[tokio::test]
async fn one_row_that_differs_in_one_bit_is_named() {
    let Some(pair) = Pair::new(TABLE).await else { return };
    let differences = [
        "name = 'name 0' WHERE id = 1",
        "name = NULL WHERE id = 2",
        "name = '' WHERE id = 3",
        "blanks = 'b ' WHERE id = 4",
        "r = '-0' WHERE id = 5",
        "plain = '{\"a\":1}' WHERE id = 6",
        "n = 1.00 WHERE id = 7",
        "at = at + interval '1 microsecond' WHERE id = 8",
        "mood = 'glad' WHERE id = 9",
        "code = 'abc' WHERE id = 10",
        "list = '[0:1]={a,NULL}' WHERE id = 11",
        "list = ARRAY['a', 'NULL'] WHERE id = 12",
        "shape = point(13, '-0') WHERE id = 13",
        "x = '<a />' WHERE id = 14",
        "padded = NULL WHERE id = 15",
        // The server's hash of a bigint lets it meet 1.
        "big = 4294967296 WHERE id = 16",
        // Nor does it tell this from what was there.
        "at = at - interval '4294.967295 s' WHERE id = 17",
        "at = '-infinity' WHERE id = 18",
    ];
    pair.at_source("UPDATE d SET name = NULL WHERE id = 3").await;
    let mut expected = Vec::new();
    for (id, difference) in (1..).zip(differences) {
        pair.at_target(&format!("UPDATE d SET {difference}")).await;
        expected.push(format!("table public.d key ({id}) differs"));
    }
    assert_eq!(sorted(pair.verified(10).await.differing), sorted(expected));
}

/// A type without a hash of its own would be an error of the statement.
#[tokio::test]
async fn every_type_of_the_server_is_hashed_and_so_is_a_list_of_it_and_a_domain_over_it() {
    let mut sql = "CREATE TABLE every (id int PRIMARY KEY".to_owned();
    for (number, name) in super::super::layout::BINARY.iter().enumerate() {
        sql = format!("CREATE DOMAIN domain{number} AS pg_catalog.\"{name}\"; {sql}");
        sql +=
            &format!(", a{number} pg_catalog.\"{name}\", b{number} pg_catalog.\"{name}\"[], c{number} domain{number}");
    }
    let Some(pair) = Pair::new(&format!("{sql}); INSERT INTO every VALUES (1), (2)")).await else { return };
    pair.both("UPDATE every SET a5 = 'f', b5 = '{a,b}', c5 = 'x' WHERE id = 1").await;
    assert_eq!(pair.verified(10).await, Found { ranges: 1, rows: 2, differing: Vec::new() });
    pair.at_target("UPDATE every SET b5 = '{a,b,NULL}' WHERE id = 1").await;
    assert_eq!(pair.verified(10).await.differing, ["table public.every key (1) differs"]);
}

#[tokio::test]
async fn rows_that_one_side_lacks_are_named_wherever_they_are() {
    let Some(pair) = Pair::new(TABLE).await else { return };
    pair.at_target("DELETE FROM d WHERE id IN (1, 10, 60)").await;
    pair.at_target("INSERT INTO d (id) VALUES (-5), (100)").await;
    pair.at_source("DELETE FROM d WHERE id = 30").await;
    let on = |side: &str, id: i32| format!("table public.d key ({id}) is missing on the {side}");
    let expected =
        [on("target", 1), on("target", 10), on("target", 60), on("source", -5), on("source", 100), on("source", 30)];
    assert_eq!(sorted(pair.verified(10).await.differing), sorted(expected.to_vec()));
}

#[tokio::test]
async fn values_that_rows_or_columns_have_exchanged_do_not_cancel_out() {
    let Some(pair) = Pair::new("CREATE TABLE e (id int PRIMARY KEY, a text, b text)").await else { return };
    // Each by itself: beside another difference it would be named even if its own did cancel out.
    for (source, target, differing) in [
        ("(1, 'x', 'y'), (2, 'z', 'y')", "(1, 'z', 'y'), (2, 'x', 'y')", vec![1, 2]),
        ("(1, 'x', 'y'), (2, 'z', 'v')", "(1, 'x', 'v'), (2, 'z', 'y')", vec![1, 2]),
        ("(3, 'p', 'q')", "(3, 'q', 'p')", vec![3]),
        ("(4, NULL, 'n')", "(4, 'n', NULL)", vec![4]),
    ] {
        pair.both("DELETE FROM e").await;
        pair.at_source(&format!("INSERT INTO e VALUES {source}")).await;
        pair.at_target(&format!("INSERT INTO e VALUES {target}")).await;
        let expected: Vec<_> = differing.iter().map(|id| format!("table public.e key ({id}) differs")).collect();
        assert_eq!(sorted(pair.verified(10).await.differing), expected, "{source}");
    }
}

#[tokio::test]
async fn what_a_generated_column_holds_counts() {
    let Some(pair) = Pair::new("SELECT").await else { return };
    pair.at_source("CREATE TABLE g (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id % 7) STORED)").await;
    pair.at_target("CREATE TABLE g (v int GENERATED ALWAYS AS (id % 5) STORED, id int PRIMARY KEY)").await;
    pair.both("INSERT INTO g (id) SELECT generate_series(1, 7)").await;
    let expected: Vec<_> = (5..=7).map(|id| format!("table public.g key ({id}) differs")).collect();
    assert_eq!(sorted(pair.verified(3).await.differing), expected, "the order of columns does not count");
}

#[tokio::test]
async fn tables_without_a_key_are_compared_as_multisets() {
    let Some(pair) =
        Pair::new("CREATE TABLE k (a int, b json); ALTER TABLE k REPLICA IDENTITY FULL; CREATE TABLE nothing ()").await
    else {
        return;
    };
    pair.at_source("INSERT INTO k VALUES (1, '1'), (2, '2'), (2, '2')").await;
    pair.at_target("INSERT INTO k VALUES (2, '2'), (1, '1'), (2, '2')").await;
    assert_eq!(pair.verified(2).await, Found { ranges: 2, rows: 3, differing: Vec::new() });
    pair.at_target("DELETE FROM k WHERE a = 2; INSERT INTO k VALUES (1, '1'), (2, '2')").await;
    assert_eq!(pair.verified(2).await.differing, ["table public.k differs"], "two of one and one of the other");
    pair.both("DELETE FROM k").await;
    pair.at_source("INSERT INTO k VALUES (1, '1'), (1, '1')").await;
    pair.at_target("INSERT INTO k VALUES (2, '2'), (2, '2')").await;
    assert_eq!(pair.verified(2).await.differing, ["table public.k differs"], "pairs of equal rows");
}

#[tokio::test]
async fn more_differences_than_can_be_followed_fail_with_their_range() {
    let Some(pair) = Pair::new(TABLE).await else { return };
    pair.at_target("DELETE FROM d WHERE id > 20").await;
    let mut comparison = pair.comparison(Limits { untold: 5, ..quick(10) }).await;
    pair.finish(&mut comparison).await;
    assert_eq!(
        comparison.found().differing.first().map(String::as_str),
        Some("table public.d keys after (20) up to (30): too many rows differ")
    );
    pair.at_target("TRUNCATE d").await;
    let named = pair.verified(10).await.differing;
    assert_eq!(
        (named.len(), named.contains(&"table public.d key (60) is missing on the target".to_owned())),
        (60, true)
    );
}

#[tokio::test]
async fn a_comparison_goes_on_where_another_stopped() {
    let Some(pair) = Pair::new(TABLE).await else { return };
    pair.both(
        "CREATE TABLE e (a text, b int, PRIMARY KEY (a, b)); INSERT INTO e SELECT 'it''s', generate_series(1, 25)",
    )
    .await;
    pair.at_target("UPDATE d SET r = 1 WHERE id = 5; DELETE FROM e WHERE b = 25").await;
    let mut first = pair.comparison(quick(10)).await;
    let mut cursors = Vec::new();
    for _ in 0..9 {
        let applied = pair.nothing_changed(&mut first).await;
        first.step(pair.sides(), applied, Duration::ZERO).await.unwrap();
        cursors.push(first.cursor().unwrap());
    }
    assert_eq!(cursors.first().unwrap(), r#"{"table":0,"after":["10"],"open":1}"#);
    let resumed = |cursor: &str, layouts| Comparison::resume(layouts, quick(10), Arc::new(SystemClock), cursor);
    let mut anew = resumed(cursors.first().unwrap(), pair.layouts().await);
    pair.finish(&mut anew).await;
    assert_eq!((anew.found().rows, anew.found().differing.len()), (85, 2), "a row was in doubt");
    for (cursor, rows, ranges) in
        [(r#"{"table":0,"after":["40"],"open":0}"#, 45, 6), (r#"{"table":1,"after":["it's","10"],"open":0}"#, 15, 2)]
    {
        let mut second = resumed(cursor, pair.layouts().await);
        assert_eq!(second.cursor().as_deref(), Some(cursor));
        pair.finish(&mut second).await;
        assert_eq!((second.found().rows, second.found().ranges), (rows, ranges));
        assert_eq!(second.found().differing, ["table public.e key (it's, 25) is missing on the target"]);
        assert_eq!(second.cursor(), None);
    }
    for other in ["", "{}", r#"{"table":9,"after":null,"open":0}"#, r#"{"table":1,"after":["a"],"open":0}"#] {
        let begin = Some(r#"{"table":0,"after":null,"open":0}"#);
        assert_eq!(resumed(other, pair.layouts().await).cursor().as_deref(), begin, "{other}");
    }
}
