//! Which ranges of which tables are copied, the biggest tables first.

use std::collections::VecDeque;
use tokio_postgres::Row;

use crate::BackendError;
use crate::postgres::catalog::{self, NOT_SYSTEM, Table};
use crate::postgres::session::{Session, get, ident};

/// Up to so many bytes a table is read as a whole.
const WHOLE: u64 = 1 << 20;

/// A table as it is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub table: Table,
    pub oid: i64,
    /// Its file: another one if it has been rewritten.
    pub file: i64,
    pub pages: u32,
    /// With the large values that are kept beside it.
    pub bytes: u64,
    /// Whether its values mean the same as bytes on both sides.
    pub is_binary: bool,
}

impl Planned {
    /// How many pages hold about `bytes`; at least one.
    pub fn pages_of(&self, bytes: u64) -> u32 {
        let pages = u128::from(self.pages) * u128::from(bytes) / u128::from(self.bytes.max(1));
        u32::try_from(pages).unwrap_or(u32::MAX).max(1)
    }

    pub fn copy_out(&self, piece: &Piece, encoding: &str) -> String {
        let columns = self.table.column_list();
        let range = piece.condition();
        format!("COPY (SELECT {columns} FROM ONLY {}{range}) TO STDOUT ({})", self.table.sql(), self.options(encoding))
    }

    pub fn copy_in(&self, encoding: &str) -> String {
        let columns: Vec<String> = self.table.columns.iter().map(|c| ident(&c.name)).collect();
        let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
        format!("COPY {}{columns} FROM STDIN ({})", self.table.sql(), self.options(encoding))
    }

    /// Texts are passed on in the encoding that they are kept in, unread.
    fn options(&self, encoding: &str) -> String {
        let format = if self.is_binary { "binary" } else { "text" };
        format!("FORMAT {format}, ENCODING '{encoding}'")
    }
}

/// Pages of a table; the last piece has no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its place in the list of tables.
    pub table: usize,
    pub from: u32,
    pub to: Option<u32>,
    /// Whether it may have been committed: its record is known by its beginning, so that it must keep its end.
    pub is_tried: bool,
}

impl Piece {
    fn condition(&self) -> String {
        match (self.from, self.to) {
            (0, None) => String::new(),
            (from, None) => format!(" WHERE ctid >= '({from},0)'::tid"),
            (from, Some(to)) => format!(" WHERE ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid"),
        }
    }

    /// The first `pages` of it, and what is left. A piece without an end, or that was tried, stays whole.
    pub fn split(self, pages: u32) -> (Self, Option<Self>) {
        if self.is_tried { (self, None) } else { self.step(pages) }
    }

    /// The first `pages` of it to be read by a statement of their own, and what is left to be read. Without an end it is read whole.
    pub fn step(self, pages: u32) -> (Self, Option<Self>) {
        match (self.from.checked_add(pages), self.to) {
            (Some(middle), Some(to)) if middle < to => {
                (Self { to: Some(middle), ..self }, Some(Self { from: middle, ..self }))
            }
            _ => (self, None),
        }
    }
}

/// All pieces of all tables.
pub(super) fn pieces(tables: &[Planned], piece_bytes: u64) -> VecDeque<Piece> {
    let mut order: Vec<usize> = (0..tables.len()).collect();
    order.sort_by_key(|n| std::cmp::Reverse(tables.get(*n).map_or(0, |t| t.bytes)));
    order.into_iter().filter_map(|n| Some(pieces_of(n, tables.get(n)?, piece_bytes))).flatten().collect()
}

/// All pieces of one table; at least one, as it may grow before it is read.
pub(super) fn pieces_of(number: usize, table: &Planned, piece_bytes: u64) -> Vec<Piece> {
    let step = table.pages_of(piece_bytes);
    let mut pieces = Vec::new();
    let mut from = 0;
    // The end is a piece of its own, nearly always empty: all others can be split.
    while from < table.pages {
        let to = from.saturating_add(step).min(table.pages);
        pieces.push(Piece { table: number, from, to: Some(to), is_tried: false });
        from = to;
    }
    match pieces.as_mut_slice() {
        [only] if table.bytes <= WHOLE => only.to = None,
        _ => pieces.push(Piece { table: number, from, to: None, is_tried: false }),
    }
    pieces
}

/// The tables as the session's snapshot has them, and their files as they are.
///
/// Values go over as bytes if their types are the server's own, or enumerations: those of other types may hold numbers of
/// types (arrays, records) and objects (`regclass`) that the target has under other numbers.
pub(super) async fn tables(session: &Session) -> Result<Vec<Planned>, BackendError> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, c.oid::int8, COALESCE(pg_relation_filenode(c.oid), 0)::int8, \
           pg_relation_size(c.oid)::int8 / current_setting('block_size')::int8, pg_table_size(c.oid)::int8, \
           COALESCE((SELECT bool_and(CASE \
               WHEN t.typtype = 'e' THEN true \
               ELSE t.oid < 16384 AND t.typsend <> 0 AND t.typreceive <> 0 AND t.typname !~ '^_?reg' END) \
             FROM pg_attribute a JOIN pg_type u ON u.oid = a.atttypid \
               JOIN pg_type t ON t.oid = CASE u.typtype WHEN 'd' THEN u.typbasetype ELSE u.oid END \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), true) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {NOT_SYSTEM}"
    );
    let tables = catalog::tables(session).await?;
    let rows = session.query("measuring the tables", &sql, &[]).await?;
    let planned = |row: &Row| -> Result<Option<Planned>, BackendError> {
        let (schema, name): (&str, &str) = (get(row, 0)?, get(row, 1)?);
        let Some(table) = tables.iter().find(|t| t.schema == schema && t.name == name).cloned() else {
            return Ok(None);
        };
        Ok(Some(Planned {
            table,
            oid: get(row, 2)?,
            file: get(row, 3)?,
            pages: u32::try_from(get::<i64>(row, 4)?).unwrap_or(u32::MAX),
            bytes: u64::try_from(get::<i64>(row, 5)?).unwrap_or(0),
            is_binary: get(row, 6)?,
        }))
    };
    rows.iter().filter_map(|row| planned(row).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn planned(pages: u32, bytes: u64) -> Planned {
        let table =
            Table { schema: "s".into(), name: "t".into(), columns: vec![], key: vec![], identity: 'd', pages, bytes };
        Planned { table, oid: 1, file: 1, pages, bytes, is_binary: true }
    }

    #[test]
    fn statements_name_what_they_copy() {
        let table = planned(10, 81_920);
        let piece = |from, to| Piece { table: 0, from, to, is_tried: false };
        let out = |p| table.copy_out(&p, "UTF8");
        let end = "TO STDOUT (FORMAT binary, ENCODING 'UTF8')";
        assert_eq!(out(piece(0, None)), format!("COPY (SELECT  FROM ONLY \"s\".\"t\") {end}"));
        let range = "WHERE ctid >= '(2,0)'::tid AND ctid < '(4,0)'::tid";
        assert_eq!(out(piece(2, Some(4))), format!("COPY (SELECT  FROM ONLY \"s\".\"t\" {range}) {end}"));
        assert_eq!(table.copy_in("UTF8"), "COPY \"s\".\"t\" FROM STDIN (FORMAT binary, ENCODING 'UTF8')");
    }

    #[test]
    fn the_biggest_table_is_first() {
        let tables = [planned(1, 8_192), planned(100, 819_200), planned(0, 0)];
        let order: Vec<usize> = pieces(&tables, 1 << 30).iter().map(|p| p.table).collect();
        assert_eq!(order, [1, 0, 2]);
    }

    proptest! {
        #[test]
        fn pieces_cover_every_page_once(pages in 0u32..5_000, density in 1u64..100_000, piece in 1u64..10_000_000) {
            let table = planned(pages, u64::from(pages) * density);
            let mut next = Some(0);
            for piece in pieces_of(3, &table, piece) {
                prop_assert_eq!(Some(piece.from), next);
                next = piece.to;
            }
            prop_assert_eq!(next, None);
        }

        #[test]
        fn steps_join_whether_a_piece_was_tried_or_not(
            from in 0u32..100, length in 1u32..100, at in 1u32..40, is_tried: bool, has_end: bool,
        ) {
            let piece = Piece { table: 0, from, to: has_end.then_some(from + length), is_tried };
            let (mut left, mut next) = (Some(piece), Some(from));
            while let Some(rest) = left {
                let (step, after) = rest.step(at);
                prop_assert_eq!(Some(step.from), next);
                prop_assert!(step.to.is_none_or(|to| to > step.from && to - step.from <= at));
                (next, left) = (step.to, after);
            }
            prop_assert_eq!(next, piece.to);
        }

        #[test]
        fn a_split_piece_is_whole(from in 0u32..100, length in 1u32..100, at in 1u32..200) {
            let piece = Piece { table: 0, from, to: Some(from + length), is_tried: false };
            let tried = Piece { is_tried: true, ..piece };
            prop_assert_eq!(tried.split(at), (tried, None));
            let (first, rest) = piece.split(at);
            prop_assert_eq!(first.from, from);
            match rest {
                Some(rest) => {
                    prop_assert_eq!(first.to, Some(rest.from));
                    prop_assert_eq!(rest.to, piece.to);
                    prop_assert!(rest.from > from && rest.from < from + length);
                }
                None => prop_assert_eq!(first, piece),
            }
        }
    }
}
