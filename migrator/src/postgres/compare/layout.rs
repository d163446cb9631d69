//! What comparing needs to know of a table: how its rows are told apart and ordered, and how a row is hashed.
//!
//! A row's hash is that of its columns in the order of their names, and every bit counts: -0 and 0, 1.0 and 1.00, spaces in
//! json, blanks at the end, and a null is no empty text. The server's own hash of a record hashes each column by its type's
//! function and adds them up in different multiples, without a second copy of the row. Some of these functions look at less
//! than every bit, since they serve equality (numeric, float8, bpchar), let values meet by rule (int8, timestamp), or depend on
//! the processor ("char"): such columns are hashed in the binary form in which the server sends them. Binary forms of types that an extension or a user has made
//! can hold object identifiers, which differ from server to server; such columns are hashed as text.
//!
//! The hash has 64 bits; a range has the number and the exact sum of its rows' hashes, so that equal rows do not cancel out. The
//! sum of a row's columns goes through the hash once more, or values that two rows exchanged would cancel out in it. Two
//! ranges that differ look equal with a probability of 2^-64: once in 10^13 moves if each compares a million differing ranges.
//! Values that two columns of one row have exchanged meet more often, since powers of 31 lie close: with 2^-58 to 2^-52 for
//! columns up to 128 apart.

use std::collections::BTreeMap;
use tokio_postgres::types::Type;

use crate::BackendError;
use crate::postgres::catalog::Table;
use crate::postgres::session::{Session, get, ident};

/// Types of the server whose binary form is exact and the same on every server of its version, and arrays of them.
pub(super) const BINARY: &[&str] = &[
    "bit",
    "bool",
    "box",
    "bpchar",
    "bytea",
    "char",
    "cidr",
    "circle",
    "date",
    "float4",
    "float8",
    "inet",
    "int2",
    "int4",
    "int8",
    "interval",
    "json",
    "jsonb",
    "line",
    "lseg",
    "macaddr",
    "macaddr8",
    "money",
    "name",
    "numeric",
    "oid",
    "path",
    "pg_lsn",
    "point",
    "polygon",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "uuid",
    "varbit",
    "varchar",
    "xid8",
];

/// Those of them whose hash function takes every bit, and never lets two values meet by rule.
const HASHED: &[&str] = &["bool", "bytea", "date", "int2", "int4", "oid", "uuid"];

/// Those of them that are the same, once bytes and not a language order them.
const TEXTS: &[&str] = &["text", "varchar"];

/// The strategies of a B-tree, in the order of [`KeyColumn::operators`].
const STRATEGIES: [&str; 5] = ["<", "<=", "=", ">=", ">"];

/// A column of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyColumn {
    /// Its name.
    pub name: String,
    /// Its type, as SQL wants it.
    pub type_name: String,
    /// Less, less or equal, equal, greater or equal, greater: the operators that order the key's index.
    pub operators: [String; 5],
}

/// A table as it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Schema and name as SQL wants them.
    pub table: String,
    /// Columns of the key; empty if the table has none and is compared as one multiset of rows.
    pub key: Vec<KeyColumn>,
    /// Hash of a row of the table, which statements call `t`.
    pub hash: String,
    /// About how many bytes a row takes, for the pace.
    pub row_bytes: u64,
}

impl Layout {
    /// Its name for a person.
    pub fn readable(&self) -> String {
        format!("table {}.{}", self.schema, self.name)
    }

    /// Whether the operators of the key are the server's own, so that rows can be compared as rows.
    pub fn has_plain_order(&self) -> bool {
        self.key.iter().all(|column| column.operators.iter().zip(STRATEGIES).all(|(ours, plain)| ours == plain))
    }
}

/// Reads how `tables` are compared, in their order.
///
/// # Errors
/// [`BackendError`], as reading the catalog fails, or [`BackendError::Permanent`] if a table is not there.
pub(crate) async fn layouts(session: &Session, tables: &[Table]) -> Result<Vec<Layout>, BackendError> {
    let schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.name.as_str()).collect();
    let mut hashes = hashes(session, &schemas, &names).await?;
    let mut keys = keys(session, &schemas, &names).await?;
    let row_bytes = row_bytes(session, &schemas, &names).await?;
    let mut layouts = Vec::with_capacity(tables.len());
    for (number, table) in (1_i64..).zip(tables) {
        let Some(hash) = hashes.remove(&number) else {
            let doing = format!("comparing table {}.{}", table.schema, table.name);
            return Err(BackendError::Permanent {
                doing,
                why: format!("node {} has no such table any more; start the move again", session.node()),
            });
        };
        layouts.push(Layout {
            schema: table.schema.clone(),
            name: table.name.clone(),
            table: table.sql(),
            key: keys.remove(&number).unwrap_or_default(),
            hash,
            row_bytes: row_bytes.get(&number).copied().unwrap_or_default(),
        });
    }
    Ok(layouts)
}

/// What a row takes in the mean, large values included, by the server's own estimate of how many there are; without one, as
/// many bytes as rows often have.
async fn row_bytes(session: &Session, schemas: &[&str], names: &[&str]) -> Result<BTreeMap<i64, u64>, BackendError> {
    let sql = "SELECT w.number, CASE WHEN c.reltuples >= 1 THEN (pg_table_size(c.oid) / c.reltuples)::int8 ELSE 128 END \
         FROM unnest($1, $2) WITH ORDINALITY w(schema_name, table_name, number) \
         JOIN pg_namespace n ON n.nspname = w.schema_name \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.table_name";
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)];
    let rows = session.query("measuring the rows", sql, &parameters).await?;
    rows.iter().map(|row| Ok((get(row, 0)?, u64::try_from(get::<i64>(row, 1)?).unwrap_or(0)))).collect()
}

/// The hash of a row of each table, by its number from 1. Generated columns count too: the target has computed them anew.
async fn hashes(session: &Session, schemas: &[&str], names: &[&str]) -> Result<BTreeMap<i64, String>, BackendError> {
    let sql = "SELECT w.number, a.attname::text, t.typtype = 'd', b.typname::text, bn.nspname = 'pg_catalog', \
           (SELECT p.proname::text FROM pg_proc p WHERE p.oid = b.typsend) \
         FROM unnest($1, $2) WITH ORDINALITY w(schema_name, table_name, number) \
         JOIN pg_namespace n ON n.nspname = w.schema_name \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.table_name \
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         LEFT JOIN pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END \
         LEFT JOIN pg_namespace bn ON bn.oid = b.typnamespace \
         ORDER BY w.number, a.attname COLLATE \"C\"";
    let rows =
        session.query("reading the columns", sql, &[(&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)]).await?;
    let mut columns: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for row in &rows {
        let of_table = columns.entry(get(row, 0)?).or_default();
        if let Some(name) = get::<Option<String>>(row, 1)? {
            let is_own = get::<bool>(row, 4)?;
            let (base, send): (String, Option<String>) = (get(row, 3)?, get(row, 5)?);
            let own = send.as_deref().filter(|_| is_own).map(|send| Own { name: &base, send });
            of_table.push(canonical(&name, get(row, 2)?, own));
        }
    }
    Ok(columns.into_iter().map(|(number, columns)| (number, row_hash(&columns))).collect())
}

/// A type of the server's own.
#[derive(Clone, Copy)]
struct Own<'a> {
    name: &'a str,
    /// The function that makes its binary form.
    send: &'a str,
}

/// A column as it goes into the hash; `own` is its type, or that which its domain restricts, if it is the server's.
fn canonical(name: &str, is_domain: bool, own: Option<Own<'_>>) -> String {
    let column = format!("t.{}", ident(name));
    let Some(own) = own.filter(|own| BINARY.contains(&own.name.strip_prefix('_').unwrap_or(own.name))) else {
        // A row of one column is written by the type's output function; a cast to text need not be (character loses blanks).
        return format!("ROW({column})::text COLLATE pg_catalog.\"C\"");
    };
    let value = if is_domain { format!("{column}::pg_catalog.{}", ident(own.name)) } else { column };
    match own.name {
        name if HASHED.contains(&name) => value,
        name if TEXTS.contains(&name) => format!("{value} COLLATE pg_catalog.\"C\""),
        _ => format!("pg_catalog.{}({value})", ident(own.send)),
    }
}

fn row_hash(columns: &[String]) -> String {
    // The seed of a hash is mixed with its value in all 64 bits, unlike a value of 64 bits.
    format!("hashint4extended(1, hash_record_extended(ROW({}), 0))", columns.join(", "))
}

/// The key of each table that has one: that which tells its changes, or the primary key where the whole row does.
async fn keys(
    session: &Session,
    schemas: &[&str],
    names: &[&str],
) -> Result<BTreeMap<i64, Vec<KeyColumn>>, BackendError> {
    let sql = "SELECT w.number, a.attname::text, format_type(a.atttypid, a.atttypmod), \
             (SELECT array_agg(o.oprname::text ORDER BY m.amopstrategy) FROM pg_amop m JOIN pg_operator o ON o.oid = m.amopopr \
              WHERE m.amopfamily = oc.opcfamily AND m.amoplefttype = oc.opcintype AND m.amoprighttype = oc.opcintype \
                AND m.amoppurpose = 's' AND m.amopstrategy BETWEEN 1 AND 5), \
             (SELECT array_agg(ns.nspname::text ORDER BY m.amopstrategy) FROM pg_amop m JOIN pg_operator o ON o.oid = m.amopopr \
              JOIN pg_namespace ns ON ns.oid = o.oprnamespace \
              WHERE m.amopfamily = oc.opcfamily AND m.amoplefttype = oc.opcintype AND m.amoprighttype = oc.opcintype \
                AND m.amoppurpose = 's' AND m.amopstrategy BETWEEN 1 AND 5) \
         FROM unnest($1, $2) WITH ORDINALITY w(schema_name, table_name, number) \
         JOIN pg_namespace n ON n.nspname = w.schema_name \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.table_name \
         JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid \
           AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END \
         CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY k(attnum, opclass, place) \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
         JOIN pg_opclass oc ON oc.oid = k.opclass \
         WHERE k.place <= i.indnkeyatts ORDER BY w.number, k.place";
    let rows =
        session.query("reading the keys", sql, &[(&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)]).await?;
    let mut keys: BTreeMap<i64, Vec<KeyColumn>> = BTreeMap::new();
    for row in &rows {
        let (names, schemas): (Vec<String>, Vec<String>) = (get(row, 3)?, get(row, 4)?);
        let operators: Vec<String> = names.iter().zip(&schemas).map(|(name, schema)| operator(schema, name)).collect();
        let operators = operators.try_into().map_err(|found: Vec<String>| BackendError::Bug {
            what: format!("the order of a key has {} operators", found.len()),
        })?;
        let column = KeyColumn { name: get(row, 1)?, type_name: get(row, 2)?, operators };
        keys.entry(get(row, 0)?).or_default().push(column);
    }
    Ok(keys)
}

/// An operator; one of an extension is found in its schema only.
fn operator(schema: &str, name: &str) -> String {
    if schema == "pg_catalog" && STRATEGIES.contains(&name) {
        name.to_owned()
    } else {
        format!("OPERATOR({}.{name})", ident(schema))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_hashed_by_their_type_only_where_every_bit_counts() {
        let hashed = |is_domain, name, send| canonical("a", is_domain, Some(Own { name, send }));
        assert_eq!(hashed(false, "int4", "int4send"), "t.\"a\"");
        assert_eq!(hashed(true, "uuid", "uuid_send"), "t.\"a\"::pg_catalog.\"uuid\"");
        assert_eq!(hashed(false, "text", "textsend"), "t.\"a\" COLLATE pg_catalog.\"C\"");
        assert_eq!(hashed(false, "int8", "int8send"), "pg_catalog.\"int8send\"(t.\"a\")");
        // Each of them lets values meet that differ, or has another hash on another processor.
        for name in [
            "char",
            "int8",
            "time",
            "timestamp",
            "timestamptz",
            "timetz",
            "pg_lsn",
            "money",
            "float4",
            "float8",
            "numeric",
            "interval",
            "bpchar",
            "inet",
            "cidr",
            "jsonb",
        ] {
            assert!(hashed(false, name, "send").starts_with("pg_catalog.\"send\"("), "{name}");
        }
        assert_eq!(hashed(false, "_text", "array_send"), "pg_catalog.\"array_send\"(t.\"a\")");
        assert_eq!(hashed(true, "bpchar", "bpcharsend"), "pg_catalog.\"bpcharsend\"(t.\"a\"::pg_catalog.\"bpchar\")");
        assert_eq!(hashed(false, "xml", "xml_send"), "ROW(t.\"a\")::text COLLATE pg_catalog.\"C\"");
        assert_eq!(hashed(false, "regclass", "regclasssend"), "ROW(t.\"a\")::text COLLATE pg_catalog.\"C\"");
        assert_eq!(canonical("a\"b", false, None), "ROW(t.\"a\"\"b\")::text COLLATE pg_catalog.\"C\"");
    }

    #[test]
    fn operators_of_extensions_keep_their_schema() {
        assert_eq!(operator("pg_catalog", "<="), "<=");
        assert_eq!(operator("public", "<="), "OPERATOR(\"public\".<=)");
        assert_eq!(operator("pg_catalog", "~<~"), "OPERATOR(\"pg_catalog\".~<~)");
    }
}
