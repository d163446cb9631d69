//! The same question put to source and target at once.

use std::collections::HashMap;

use super::layout::Layout;
use super::statements::{Key, Range, bound, hash_of, rows_by_key, rows_of};
use crate::postgres::session::Session;
use crate::{BackendError, Position};

/// Connections to the shard's database on both nodes.
#[derive(Clone, Copy)]
pub(crate) struct Sides<'a> {
    /// On the node that owns the shard.
    pub source: &'a Session,
    /// On the node that it moves to.
    pub target: &'a Session,
}

type Texts = Vec<Vec<Option<String>>>;

/// Number of rows and sum of their hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hash {
    /// Rows.
    pub rows: u64,
    sum: String,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Its values.
    Values,
    /// The target has none.
    MissingOnTarget,
    /// The source has none.
    MissingOnSource,
}

impl Difference {
    /// In words for a person.
    pub fn readable(self) -> &'static str {
        match self {
            Self::Values => "differs",
            Self::MissingOnTarget => "is missing on the target",
            Self::MissingOnSource => "is missing on the source",
        }
    }

    fn of(source: Option<&String>, target: Option<&String>) -> Option<Self> {
        match (source, target) {
            (Some(_), None) => Some(Self::MissingOnTarget),
            (None, Some(_)) => Some(Self::MissingOnSource),
            (source, target) => (source != target).then_some(Self::Values),
        }
    }
}

impl<'a> Sides<'a> {
    async fn both(self, doing: &str, sql: &str) -> Result<(Texts, Texts), BackendError> {
        tokio::try_join!(self.source.texts(doing, sql), self.target.texts(doing, sql))
    }

    /// Hashes of a range on both sides.
    pub async fn hashes(self, layout: &Layout, range: &Range) -> Result<(Hash, Hash), BackendError> {
        let doing = format!("comparing {}", layout.readable());
        let (source, target) = self.both(&doing, &hash_of(layout, range)).await?;
        Ok((hash(&doing, &source)?, hash(&doing, &target)?))
    }

    /// The last key of the source's next range of `rows` rows after `after`; `None` if there are no more rows.
    pub async fn bound(self, layout: &Layout, after: Option<&Key>, rows: u64) -> Result<Option<Key>, BackendError> {
        let doing = format!("dividing {}", layout.readable());
        let rows = self.source.texts(&doing, &bound(layout, after, rows)).await?;
        rows.into_iter().next().map(|row| key(&doing, row)).transpose()
    }

    /// Keys of the rows that differ within a range, or `None` if one side has more than `limit` rows there.
    pub async fn differing(
        self,
        layout: &Layout,
        range: &Range,
        limit: usize,
    ) -> Result<Option<Vec<Key>>, BackendError> {
        let doing = format!("looking for what differs in {}", layout.readable());
        let (source, target) = self.both(&doing, &rows_of(layout, range, limit.saturating_add(1))).await?;
        if source.len().max(target.len()) > limit {
            return Ok(None);
        }
        let (source, mut target) = (by_key(&doing, source)?, by_key(&doing, target)?);
        let mut keys = Vec::new();
        for (key, hash) in source {
            if target.remove(&key).as_ref() != Some(&hash) {
                keys.push(key);
            }
        }
        keys.extend(target.into_keys());
        Ok(Some(keys))
    }

    /// How each of `keys` differs, in their order; a row that neither side has is equal.
    pub async fn rows(self, layout: &Layout, keys: &[Key]) -> Result<Vec<Option<Difference>>, BackendError> {
        let doing = format!("comparing rows of {}", layout.readable());
        let (source, target) = self.both(&doing, &rows_by_key(layout, keys)).await?;
        let (source, target) = (by_number(&doing, source)?, by_number(&doing, target)?);
        Ok((0..keys.len()).map(|number| Difference::of(source.get(&number), target.get(&number))).collect())
    }

    /// Where the source's log ends: every commit that a statement on it has seen so far is before.
    pub async fn position(self) -> Result<Position, BackendError> {
        // When a record fills its page, the place of the next one is past the header of the next page, where nobody arrives
        // before something is written.
        let sql = "SELECT CASE WHEN p % page = 24 OR p % segment = 40 THEN p - p % page ELSE p END \
             FROM (SELECT (pg_current_wal_insert_lsn() - '0/0')::int8 AS p, \
                          (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_block_size') AS page, \
                          (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size') AS segment) w";
        let doing = "reading the position of the log";
        let rows = self.source.texts(doing, sql).await?;
        number(doing, rows.first().and_then(|row| row.first())).map(Position)
    }
}

fn hash(doing: &str, rows: &Texts) -> Result<Hash, BackendError> {
    let row = rows.first();
    let sum = row.and_then(|row| row.get(1)?.clone()).ok_or_else(|| unreadable(doing))?;
    Ok(Hash { rows: number(doing, row.and_then(|row| row.first()))?, sum })
}

fn key(doing: &str, row: Vec<Option<String>>) -> Result<Key, BackendError> {
    row.into_iter().collect::<Option<Key>>().ok_or_else(|| unreadable(doing))
}

fn by_key(doing: &str, rows: Texts) -> Result<HashMap<Key, Option<String>>, BackendError> {
    rows.into_iter()
        .map(|mut row| {
            let hash = row.pop().flatten();
            Ok((key(doing, row)?, hash))
        })
        .collect()
}

fn by_number(doing: &str, rows: Texts) -> Result<HashMap<usize, String>, BackendError> {
    rows.into_iter()
        .map(|row| {
            let number = number(doing, row.first())?;
            let hash = row.into_iter().nth(1).flatten().ok_or_else(|| unreadable(doing))?;
            Ok((number, hash))
        })
        .collect()
}

fn number<T: std::str::FromStr>(doing: &str, text: Option<&Option<String>>) -> Result<T, BackendError> {
    text.and_then(Option::as_ref).and_then(|text| text.parse().ok()).ok_or_else(|| unreadable(doing))
}

fn unreadable(doing: &str) -> BackendError {
    BackendError::Bug { what: format!("{doing}: an answer is not what was asked for") }
}
