//! What a stream of changes says: the messages of `pgoutput`, protocol version 1, values as text.
//!
//! The parser takes nothing for granted: a message that is too short, too long or has a value without meaning is an error,
//! because a change that is misread here would be a key that is not compared.

use super::cursor::{Cursor, Malformed};
use super::lsn::Lsn;

/// Text of a row's key columns, in the order of the table's columns; `None` is NULL.
pub(crate) type Key = Vec<Option<String>>;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A transaction begins; its changes follow, and nothing of another transaction in between.
    Begin {
        /// Where its commit record is.
        commit_at: Lsn,
        /// Microseconds since 2000-01-01T00:00Z on the server's clock.
        time: i64,
        /// Its number.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// Where its commit record is.
        at: Lsn,
        /// Where the commit record ends: everything committed before is known.
        end: Lsn,
        /// Microseconds since 2000-01-01T00:00Z on the server's clock.
        time: i64,
    },
    /// The transaction was itself brought by replication.
    Origin {
        /// Its commit on the server it came from.
        at: Lsn,
        /// Name of the origin.
        name: &'a str,
    },
    /// What a table looks like, before its first change and whenever it has changed.
    Relation(Relation),
    /// A type that is not built in.
    Type {
        /// Its object identifier.
        oid: u32,
        /// Its schema.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// The table.
        relation: u32,
        /// The key before, if it changed, or the whole row before with replica identity full.
        old: Option<Tuple<'a>>,
        /// The row now.
        new: Tuple<'a>,
    },
    /// A removed row.
    Delete {
        /// The table.
        relation: u32,
        /// Its key, or the whole row with replica identity full.
        old: Tuple<'a>,
    },
    /// Emptied tables.
    Truncate {
        /// The tables.
        relations: Vec<u32>,
        /// `CASCADE` was said.
        cascade: bool,
        /// `RESTART IDENTITY` was said.
        restart_identity: bool,
    },
    /// What somebody wrote with `pg_logical_emit_message`.
    Emitted {
        /// Whether it belongs to a transaction.
        transactional: bool,
        /// Where it is.
        at: Lsn,
        /// Whom it is for.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
}

/// What an old row holds and how rows are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplicaIdentity {
    /// By the primary key, if there is one.
    Default,
    /// Not at all.
    Nothing,
    /// By all columns.
    Full,
    /// By a unique index.
    Index,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    /// Its object identifier, by which changes name it.
    pub(crate) oid: u32,
    /// Its schema.
    pub(crate) schema: String,
    /// Its name.
    pub(crate) name: String,
    /// How its rows are told apart.
    pub(crate) identity: ReplicaIdentity,
    /// Its published columns.
    pub(crate) columns: Vec<Column>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is one of those that tell rows apart; with replica identity full all are.
    pub(crate) key: bool,
    /// Object identifier of its type.
    pub(crate) type_oid: u32,
    /// Modifier of its type, -1 if there is none.
    pub(crate) type_modifier: i32,
}

/// A row, one value for each published column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuple<'a>(pub(crate) Vec<Value<'a>>);

/// A column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// NULL; also a column outside of the key in a row of which only the key is told.
    Null,
    /// Stored apart from the row and not changed, therefore not told.
    Untold,
    /// The value's text.
    Text(&'a str),
}

/// Why the keys of a change are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnknownKey {
    /// The table tells its rows apart by nothing.
    #[error("the table has no key")]
    NoKey,
    /// The key is stored apart from the row and the old key was not told.
    #[error("a column of the key is stored apart from its row and was not told")]
    Untold,
    /// The row does not fit the table.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Relation {
    /// Names of the key columns, in the order of a [`Key`].
    pub(crate) fn key_columns(&self) -> Vec<&str> {
        self.columns.iter().filter(|c| c.key).map(|c| c.name.as_str()).collect()
    }

    /// Keys of all rows that a change touched: of the row before, if it is told, and of the row now.
    pub(crate) fn keys_touched(
        &self,
        old: Option<&Tuple<'_>>,
        new: Option<&Tuple<'_>>,
    ) -> Result<Vec<Key>, UnknownKey> {
        if !self.columns.iter().any(|c| c.key) {
            return Err(UnknownKey::NoKey);
        }
        let mut keys = Vec::with_capacity(2);
        if let Some(old) = old {
            keys.push(self.key_of(old, None)?);
        }
        if let Some(new) = new {
            let key = self.key_of(new, old)?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// The key of `row`; a value that it leaves untold because it has not changed is that of `before`.
    fn key_of(&self, row: &Tuple<'_>, before: Option<&Tuple<'_>>) -> Result<Key, UnknownKey> {
        for width in std::iter::once(row).chain(before).map(|t| t.0.len()) {
            if width != self.columns.len() {
                let value = i64::try_from(width).unwrap_or(i64::MAX);
                return Err(Malformed::Value { what: "the number of columns in a row", value }.into());
            }
        }
        let mut key = Key::new();
        for (at, value) in row.0.iter().enumerate() {
            if !self.columns.get(at).is_some_and(|c| c.key) {
                continue;
            }
            let value = match value {
                Value::Untold => before.and_then(|t| t.0.get(at)).unwrap_or(value),
                told => told,
            };
            key.push(match value {
                Value::Null => None,
                Value::Text(text) => Some((*text).to_owned()),
                Value::Untold => return Err(UnknownKey::Untold),
            });
        }
        Ok(key)
    }
}

impl<'a> Message<'a> {
    /// Reads one message, all of it.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let message = match cursor.u8("kind of the message")? {
            b'B' => begin(&mut cursor),
            b'C' => commit(&mut cursor),
            b'O' => Ok(Self::Origin { at: cursor.lsn("origin's commit")?, name: cursor.c_str("origin's name")? }),
            b'R' => relation(&mut cursor).map(Self::Relation),
            b'Y' => Ok(Self::Type {
                oid: cursor.u32("type")?,
                schema: cursor.c_str("type's schema")?,
                name: cursor.c_str("type's name")?,
            }),
            b'I' => insert(&mut cursor),
            b'U' => update(&mut cursor),
            b'D' => delete(&mut cursor),
            b'T' => truncate(&mut cursor),
            b'M' => emitted(&mut cursor),
            kind => Err(wrong("kind of the message", kind)),
        }?;
        cursor.end("the message")?;
        Ok(message)
    }
}

fn wrong(what: &'static str, value: u8) -> Malformed {
    Malformed::Value { what, value: i64::from(value) }
}

fn begin<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    Ok(Message::Begin {
        commit_at: cursor.lsn("commit's position")?,
        time: cursor.i64("commit's time")?,
        xid: cursor.u32("transaction's number")?,
    })
}

fn commit<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    match cursor.u8("commit's flags")? {
        0 => {}
        flags => return Err(wrong("commit's flags", flags)),
    }
    Ok(Message::Commit {
        at: cursor.lsn("commit's position")?,
        end: cursor.lsn("commit's end")?,
        time: cursor.i64("commit's time")?,
    })
}

fn relation(cursor: &mut Cursor<'_>) -> Result<Relation, Malformed> {
    let oid = cursor.u32("table")?;
    // The server leaves the name of its own schema out.
    let schema = match cursor.c_str("table's schema")? {
        "" => "pg_catalog",
        schema => schema,
    };
    let name = cursor.c_str("table's name")?.to_owned();
    let identity = match cursor.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        other => return Err(wrong("replica identity", other)),
    };
    let count = cursor.u16("number of columns")?;
    let columns = (0..count).map(|_| column(cursor)).collect::<Result<_, _>>()?;
    Ok(Relation { oid, schema: schema.to_owned(), name, identity, columns })
}

fn column(cursor: &mut Cursor<'_>) -> Result<Column, Malformed> {
    let key = match cursor.u8("column's flags")? {
        flags @ 0..=1 => flags == 1,
        flags => return Err(wrong("column's flags", flags)),
    };
    let name = cursor.c_str("column's name")?.to_owned();
    Ok(Column { name, key, type_oid: cursor.u32("column's type")?, type_modifier: cursor.i32("type's modifier")? })
}

fn tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, Malformed> {
    let count = cursor.u16("number of values")?;
    (0..count).map(|_| value(cursor)).collect::<Result<_, _>>().map(Tuple)
}

fn value<'a>(cursor: &mut Cursor<'a>) -> Result<Value<'a>, Malformed> {
    match cursor.u8("kind of a value")? {
        b'n' => Ok(Value::Null),
        b'u' => Ok(Value::Untold),
        b't' => {
            let length = cursor.length("value's length")?;
            cursor.text("value", length).map(Value::Text)
        }
        other => Err(wrong("kind of a value", other)),
    }
}

fn insert<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    let relation = cursor.u32("table")?;
    match cursor.u8("kind of a row")? {
        b'N' => Ok(Message::Insert { relation, new: tuple(cursor)? }),
        kind => Err(wrong("kind of an inserted row", kind)),
    }
}

fn update<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    let relation = cursor.u32("table")?;
    let mut kind = cursor.u8("kind of a row")?;
    let mut old = None;
    if matches!(kind, b'K' | b'O') {
        old = Some(tuple(cursor)?);
        kind = cursor.u8("kind of a row")?;
    }
    match kind {
        b'N' => Ok(Message::Update { relation, old, new: tuple(cursor)? }),
        kind => Err(wrong("kind of an updated row", kind)),
    }
}

fn delete<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    let relation = cursor.u32("table")?;
    match cursor.u8("kind of a row")? {
        b'K' | b'O' => Ok(Message::Delete { relation, old: tuple(cursor)? }),
        kind => Err(wrong("kind of a deleted row", kind)),
    }
}

fn truncate<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    let count = cursor.length("number of tables")?;
    let options = cursor.u8("options of a truncation")?;
    if options > 3 {
        return Err(wrong("options of a truncation", options));
    }
    // Checked before anything is reserved: the count is the sender's word only.
    let needed = count.saturating_mul(4);
    if cursor.left() < needed {
        return Err(Malformed::Short { what: "tables of a truncation", needed, left: cursor.left() });
    }
    let relations = (0..count).map(|_| cursor.u32("table")).collect::<Result<_, _>>()?;
    Ok(Message::Truncate { relations, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
}

fn emitted<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    let transactional = match cursor.u8("flags of an emitted message")? {
        flags @ 0..=1 => flags == 1,
        flags => return Err(wrong("flags of an emitted message", flags)),
    };
    let at = cursor.lsn("position of an emitted message")?;
    let prefix = cursor.c_str("prefix of an emitted message")?;
    let length = cursor.length("length of an emitted message")?;
    Ok(Message::Emitted { transactional, at, prefix, content: cursor.take("emitted message", length)? })
}

#[cfg(test)]
mod tests;
