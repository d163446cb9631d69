//! Which keys of which tables have changed, in bounded memory.

use crate::postgres::lsn::Lsn;
use crate::postgres::pgoutput::{Key, Relation, Tuple, UnknownKey};
use std::collections::{BTreeMap, BTreeSet};

/// Schema and name of a table.
pub(crate) type TableName = (String, String);

/// What has changed since it was last taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Changed {
    /// Tables with changes.
    pub(crate) tables: BTreeMap<TableName, ChangedKeys>,
    /// Everything that was committed up to here is in `tables`, here or in what was taken before; nothing later is.
    pub(crate) seen_up_to: Lsn,
}

/// What has changed in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChangedKeys {
    /// Only rows with these keys.
    Keys {
        /// Names of the key columns, in the table's order.
        columns: Vec<String>,
        /// Their values as text, in the same order.
        keys: BTreeSet<Key>,
        /// Estimate of the memory that the keys take, in bytes.
        bytes: usize,
    },
    /// Any row may have.
    WholeTable(Why),
}

/// Why it is not known which rows of a table have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It was emptied.
    Truncated,
    /// More keys have changed than are kept.
    TooMany,
    /// It tells its rows apart by nothing, or the server did not tell the key.
    NoKey,
    /// Other columns are the key than before.
    KeyColumnsChanged,
}

/// How much is kept of each table before it counts as changed altogether.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Keys.
    pub(crate) keys: usize,
    /// Bytes of memory, by an estimate.
    pub(crate) bytes: usize,
}

impl Default for Limits {
    /// 200,000 keys and 32 MiB: above, comparing the table's ranges is quicker than looking up its keys.
    fn default() -> Self {
        Self { keys: 200_000, bytes: 32 << 20 }
    }
}

/// Memory of a key: its text, and what its vector, strings and place in the set take.
fn size(key: &Key) -> usize {
    let values: usize = key.iter().map(|v| size_of::<Option<String>>() + v.as_ref().map_or(0, String::len)).sum();
    2 * size_of::<Key>() + values
}

impl ChangedKeys {
    /// Adds keys of columns `columns`, as far as `limits` allow.
    fn add(&mut self, columns: &[String], more: impl IntoIterator<Item = Key>, limits: Limits) {
        let Self::Keys { columns: ours, keys, bytes } = self else { return };
        if ours.as_slice() != columns {
            *self = Self::WholeTable(Why::KeyColumnsChanged);
            return;
        }
        for key in more {
            let size = size(&key);
            if keys.insert(key) {
                *bytes += size;
            }
            if keys.len() > limits.keys || *bytes > limits.bytes {
                *self = Self::WholeTable(Why::TooMany);
                return;
            }
        }
    }
}

/// The tables of [`Changed`] as they grow.
#[derive(Debug, Default)]
pub(super) struct Tables {
    tables: BTreeMap<TableName, ChangedKeys>,
}

impl Tables {
    /// Notes one row's change.
    ///
    /// # Errors
    /// [`UnknownKey::Malformed`] if the row does not fit the table; a key that is not told only makes the whole table count.
    pub(super) fn note(
        &mut self,
        relation: &Relation,
        old: Option<&Tuple<'_>>,
        new: Option<&Tuple<'_>>,
        limits: Limits,
    ) -> Result<(), UnknownKey> {
        let name = (relation.schema.clone(), relation.name.clone());
        if matches!(self.tables.get(&name), Some(ChangedKeys::WholeTable(_))) {
            return Ok(());
        }
        match relation.keys_touched(old, new) {
            Ok(keys) => {
                let columns: Vec<_> = relation.key_columns().into_iter().map(str::to_owned).collect();
                self.entry(name, &columns).add(&columns, keys, limits);
            }
            Err(UnknownKey::NoKey | UnknownKey::Untold) => self.whole(name, Why::NoKey),
            Err(malformed @ UnknownKey::Malformed(_)) => return Err(malformed),
        }
        Ok(())
    }

    /// Notes that any row of a table may have changed. The first reason stays, but an emptied table is always told.
    pub(super) fn whole(&mut self, name: TableName, why: Why) {
        match self.tables.get_mut(&name) {
            Some(ChangedKeys::WholeTable(_)) if why != Why::Truncated => {}
            _ => {
                self.tables.insert(name, ChangedKeys::WholeTable(why));
            }
        }
    }

    /// Adds all of `later` and leaves it empty.
    pub(super) fn absorb(&mut self, later: &mut Self, limits: Limits) {
        for (name, changed) in std::mem::take(&mut later.tables) {
            match changed {
                ChangedKeys::WholeTable(why) => self.whole(name, why),
                ChangedKeys::Keys { columns, keys, .. } => self.entry(name, &columns).add(&columns, keys, limits),
            }
        }
    }

    /// Hands everything over and begins anew.
    pub(super) fn take(&mut self) -> BTreeMap<TableName, ChangedKeys> {
        std::mem::take(&mut self.tables)
    }

    fn entry(&mut self, name: TableName, columns: &[String]) -> &mut ChangedKeys {
        let empty = || ChangedKeys::Keys { columns: columns.to_vec(), keys: BTreeSet::new(), bytes: 0 };
        self.tables.entry(name).or_insert_with(empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::pgoutput::{Column, ReplicaIdentity, Value};

    fn table(key: &[&str]) -> Relation {
        let column = |name: &&str| Column { name: (*name).to_owned(), key: true, type_oid: 25, type_modifier: -1 };
        let (schema, name) = ("s".to_owned(), "t".to_owned());
        let columns = key.iter().map(column).collect();
        Relation { oid: 1, schema, name, identity: ReplicaIdentity::Default, columns }
    }

    fn insert(tables: &mut Tables, relation: &Relation, key: &str, limits: Limits) {
        tables.note(relation, None, Some(&Tuple(vec![Value::Text(key)])), limits).unwrap();
    }

    fn only(tables: &mut Tables) -> ChangedKeys {
        let mut taken = tables.take();
        assert_eq!(taken.len(), 1);
        taken.remove(&("s".into(), "t".into())).unwrap()
    }

    #[test]
    fn one_key_too_many_makes_the_whole_table_count() {
        let limits = Limits { keys: 2, bytes: usize::MAX };
        let mut tables = Tables::default();
        for key in ["a", "b", "b", "a"] {
            insert(&mut tables, &table(&["id"]), key, limits);
        }
        assert!(matches!(only(&mut tables), ChangedKeys::Keys { keys, .. } if keys.len() == 2));
        for key in ["a", "b", "c", "a"] {
            insert(&mut tables, &table(&["id"]), key, limits);
        }
        assert_eq!(only(&mut tables), ChangedKeys::WholeTable(Why::TooMany));
    }

    #[test]
    fn large_keys_count_by_their_bytes() {
        let mut tables = Tables::default();
        insert(&mut tables, &table(&["id"]), &"x".repeat(1000), Limits { keys: 10, bytes: 1000 });
        assert_eq!(only(&mut tables), ChangedKeys::WholeTable(Why::TooMany));
    }

    #[test]
    fn absorbing_keeps_to_the_limits_and_forgets_nothing() {
        let limits = Limits { keys: 2, bytes: usize::MAX };
        let (mut all, mut later) = (Tables::default(), Tables::default());
        insert(&mut all, &table(&["id"]), "a", limits);
        insert(&mut later, &table(&["id"]), "b", limits);
        all.absorb(&mut later, limits);
        insert(&mut later, &table(&["id"]), "c", limits);
        all.absorb(&mut later, limits);
        assert_eq!(only(&mut all), ChangedKeys::WholeTable(Why::TooMany));
        assert!(later.take().is_empty());
    }

    #[test]
    fn another_key_makes_the_whole_table_count() {
        let mut tables = Tables::default();
        insert(&mut tables, &table(&["id"]), "a", Limits::default());
        insert(&mut tables, &table(&["code"]), "a", Limits::default());
        assert_eq!(only(&mut tables), ChangedKeys::WholeTable(Why::KeyColumnsChanged));
    }

    #[test]
    fn a_truncation_outlives_later_changes_and_other_reasons() {
        let mut tables = Tables::default();
        tables.whole(("s".into(), "t".into()), Why::TooMany);
        tables.whole(("s".into(), "t".into()), Why::Truncated);
        tables.whole(("s".into(), "t".into()), Why::NoKey);
        insert(&mut tables, &table(&["id"]), "a", Limits::default());
        assert_eq!(only(&mut tables), ChangedKeys::WholeTable(Why::Truncated));
    }

    #[test]
    fn a_table_without_a_key_counts_altogether() {
        let mut tables = Tables::default();
        tables.note(&table(&[]), None, Some(&Tuple(vec![])), Limits::default()).unwrap();
        assert_eq!(only(&mut tables), ChangedKeys::WholeTable(Why::NoKey));
    }

    #[test]
    fn a_row_that_does_not_fit_its_table_is_an_error() {
        let mut tables = Tables::default();
        let wide = Tuple(vec![Value::Null, Value::Null]);
        assert!(tables.note(&table(&["id"]), Some(&wide), None, Limits::default()).is_err());
    }
}
