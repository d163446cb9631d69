//! The statements that compare. Values of keys are written as literals: a literal is read by the input function of its type, as
//! the server's answer was written by its output function, whatever casts the type has.

use std::fmt::Write as _;

use super::layout::Layout;
use crate::postgres::session::{ident, literal};

/// The values of a key's columns as text.
pub(crate) type Key = Vec<String>;

/// Rows whose key is greater than `after` and not greater than `upto`; open at an end that is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Range {
    /// The last key before it.
    pub after: Option<Key>,
    /// Its last key.
    pub upto: Option<Key>,
}

impl Range {
    /// Its name for a person.
    pub fn readable(&self, layout: &Layout) -> String {
        let end = |words: &str, key: &Option<Key>| key.as_ref().map(|key| format!("{words} {}", readable_key(key)));
        let ends: Vec<_> = [end(" after", &self.after), end(" up to", &self.upto)].into_iter().flatten().collect();
        if ends.is_empty() { layout.readable() } else { format!("{} keys{}", layout.readable(), ends.concat()) }
    }
}

/// A key for a person.
pub(crate) fn readable_key(key: &[String]) -> String {
    format!("({})", key.join(", "))
}

/// Number of rows and sum of their hashes.
pub(crate) fn hash_of(layout: &Layout, range: &Range) -> String {
    format!("SELECT count(*), COALESCE(sum({}), 0) FROM ONLY {} t{}", layout.hash, layout.table, within(layout, range))
}

/// Key and hash of each row, of at most `limit` rows.
pub(crate) fn rows_of(layout: &Layout, range: &Range, limit: usize) -> String {
    let keys = key_list(layout);
    format!("SELECT {keys}, {} FROM ONLY {} t{} LIMIT {limit}", layout.hash, layout.table, within(layout, range))
}

/// The key of the `rows`th row after `after`, or no row if there are fewer.
pub(crate) fn bound(layout: &Layout, after: Option<&Key>, rows: u64) -> String {
    let range = Range { after: after.cloned(), upto: None };
    let by: Vec<String> = layout
        .key
        .iter()
        .map(|column| match column.operators.first() {
            Some(less) if less != "<" => format!("t.{} USING {less}", ident(&column.name)),
            _ => format!("t.{}", ident(&column.name)),
        })
        .collect();
    let skipped = rows.saturating_sub(1);
    let (keys, within, by) = (key_list(layout), within(layout, &range), by.join(", "));
    format!("SELECT {keys} FROM ONLY {} t{within} ORDER BY {by} OFFSET {skipped} LIMIT 1", layout.table)
}

/// Number (from 0) and hash of those rows of `keys` that exist. Each is looked up by the index, whatever the planner knows of
/// the table: the target's has never been analysed.
pub(crate) fn rows_by_key<'a>(layout: &Layout, keys: impl IntoIterator<Item = &'a Key>) -> String {
    let mut sql = "SELECT v.number, r.hash FROM (VALUES ".to_owned();
    for (number, key) in keys.into_iter().enumerate() {
        let comma = if number == 0 { "" } else { ", " };
        // Writing to a text cannot fail.
        let _ = write!(sql, "{comma}({number}, {})", literals(layout, key).join(", "));
    }
    let names: Vec<String> = (0..layout.key.len()).map(|i| format!("k{i}")).collect();
    let equal: Vec<String> = layout
        .key
        .iter()
        .zip(&names)
        .map(|(column, name)| {
            let [_, _, equal, _, _] = &column.operators;
            format!("t.{} {equal} v.{name}", ident(&column.name))
        })
        .collect();
    let _ = write!(
        sql,
        ") v(number, {}) CROSS JOIN LATERAL (SELECT {} AS hash FROM ONLY {} t WHERE {} OFFSET 0) r",
        names.join(", "),
        layout.hash,
        layout.table,
        equal.join(" AND ")
    );
    sql
}

fn key_list(layout: &Layout) -> String {
    layout.key.iter().map(|column| format!("t.{}", ident(&column.name))).collect::<Vec<_>>().join(", ")
}

fn literals(layout: &Layout, key: &Key) -> Vec<String> {
    layout.key.iter().zip(key).map(|(column, value)| format!("{}::{}", literal(value), column.type_name)).collect()
}

fn within(layout: &Layout, range: &Range) -> String {
    let after = range.after.as_ref().map(|key| side(layout, key, true));
    let upto = range.upto.as_ref().map(|key| side(layout, key, false));
    let both: Vec<String> = [after, upto].into_iter().flatten().collect();
    if both.is_empty() { String::new() } else { format!(" WHERE {}", both.join(" AND ")) }
}

/// Rows after `key`, or up to it.
fn side(layout: &Layout, key: &Key, after: bool) -> String {
    if layout.has_plain_order() {
        let (columns, values) = (key_list(layout), literals(layout, key).join(", "));
        return format!("ROW({columns}) {} ROW({values})", if after { ">" } else { "<=" });
    }
    let mut condition = String::new();
    // From the last column to the first: (a > 1) becomes (b > 1 OR (b = 1 AND a > 1)). What the first column must be is said
    // once more, in a form that the index serves.
    for (i, (column, value)) in layout.key.iter().zip(literals(layout, key)).enumerate().rev() {
        let [less, up_to, equal, from, greater] = &column.operators;
        let name = format!("t.{}", ident(&column.name));
        let strict = if after { greater } else { less };
        let loose = if after { from } else { up_to };
        condition = match condition.as_str() {
            "" => format!("{name} {} {value}", if after { strict } else { loose }),
            rest => format!("({name} {strict} {value} OR ({name} {equal} {value} AND {rest}))"),
        };
        if i == 0 && layout.key.len() > 1 {
            condition = format!("({name} {loose} {value} AND {condition})");
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::super::layout::KeyColumn;
    use super::*;

    fn layout(schema: Option<&str>, key: &[&str]) -> Layout {
        let operators = ["<", "<=", "=", ">=", ">"]
            .map(|name| schema.map_or_else(|| name.to_owned(), |schema| format!("OPERATOR({schema}.{name})")));
        let column = |name: &&str| KeyColumn {
            name: (*name).to_owned(),
            type_name: "text".to_owned(),
            operators: operators.clone(),
        };
        Layout {
            schema: "s".into(),
            name: "x".into(),
            table: "s.x".into(),
            key: key.iter().map(column).collect(),
            hash: "h(t)".into(),
            row_bytes: 1,
        }
    }

    fn key(values: &[&str]) -> Key {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    #[test]
    fn ranges_are_compared_as_rows_where_the_server_orders_them() {
        let range = Range { after: Some(key(&["a", "it's"])), upto: Some(key(&["b", "\\"])) };
        assert_eq!(
            hash_of(&layout(None, &["k", "l"]), &range),
            "SELECT count(*), COALESCE(sum(h(t)), 0) FROM ONLY s.x t WHERE ROW(t.\"k\", t.\"l\") > ROW('a'::text, \
             'it''s'::text) AND ROW(t.\"k\", t.\"l\") <= ROW('b'::text, E'\\\\'::text)"
        );
        assert_eq!(range.readable(&layout(None, &["k", "l"])), "table s.x keys after (a, it's) up to (b, \\)");
        assert_eq!(Range::default().readable(&layout(None, &["k"])), "table s.x");
    }

    #[test]
    fn ranges_are_written_out_where_an_extension_orders_them() {
        let one = layout(Some("p"), &["k"]);
        assert_eq!(side(&one, &key(&["a"]), true), "t.\"k\" OPERATOR(p.>) 'a'::text");
        let two = layout(Some("p"), &["k", "l"]);
        assert_eq!(
            side(&two, &key(&["a", "b"]), false).replace("OPERATOR(p.", "(").replace("::text", ""),
            "(t.\"k\" (<=) 'a' AND (t.\"k\" (<) 'a' OR (t.\"k\" (=) 'a' AND t.\"l\" (<=) 'b')))"
        );
        assert!(bound(&one, None, 5).ends_with("ORDER BY t.\"k\" USING OPERATOR(p.<) OFFSET 4 LIMIT 1"));
    }
}
