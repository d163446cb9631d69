//! What the checker's clients do: each write is one transaction with a number of its own.
//!
//! Nothing is prepared by name: in transaction pooling the next statement may come to another server connection.

use crate::harness::address::{Address, Session};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

/// What a client keeps about one thing. Absent bodies are NULL in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub body: Option<String>,
    pub version: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// One statement.
    Deposit { account: i32, amount: i32 },
    /// Several statements between BEGIN and COMMIT, one of which takes a number from a sequence.
    Transfer { from: i32, to: i32, amount: i32 },
    /// Insert, update or deletion of a row that only this client writes.
    Note { note: i64, before: Option<Note>, after: Option<Note> },
}

/// One write. `id` is never used twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    pub id: i64,
    pub client: i32,
    pub change: Change,
}

/// How one attempt at an operation ended.
#[derive(Debug)]
pub enum Attempt {
    Acknowledged,
    /// Its number is taken: an earlier attempt took effect.
    Already,
    /// It took no effect for certain.
    Refused(Error),
    /// Whether it took effect is unknown.
    Unknown(String),
    /// The database answered what cannot be: something that this client was acknowledged is not there. Rolled back.
    Wrong(String),
}

const TABLES: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, writes bigint NOT NULL);
    CREATE TABLE ledger (
        id bigint PRIMARY KEY, client int NOT NULL, account int REFERENCES accounts, other int REFERENCES accounts,
        amount int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE INDEX ledger_client ON ledger (client, at);
    CREATE TABLE events (n bigserial PRIMARY KEY, op bigint NOT NULL);
    CREATE TABLE notes (id bigint PRIMARY KEY, client int NOT NULL, body text, version int NOT NULL);";

/// Makes the checker's tables in an empty database.
pub async fn create_tables(database: &Address, accounts: i32) {
    let session = database.connect().await.unwrap();
    session.batch_execute(TABLES).await.unwrap();
    let fill = format!("INSERT INTO accounts SELECT n, 0, 0 FROM generate_series(0, {}) n", accounts - 1);
    session.batch_execute(&fill).await.unwrap();
}

impl Operation {
    /// Does it on a connection, which must be dropped unless it was acknowledged.
    pub async fn attempt(&self, session: &Session) -> Attempt {
        match &self.change {
            Change::Deposit { account, amount } => match self.deposit(session, *account, *amount).await {
                Ok(1) => Attempt::Acknowledged,
                Ok(rows) => Attempt::Wrong(format!("write {}: {rows} accounts {account}", self.id)),
                Err(error) => self.ended(error, true),
            },
            _ => self.in_transaction(session).await,
        }
    }

    async fn deposit(&self, session: &Client, account: i32, amount: i32) -> Result<u64, Error> {
        let sql = "WITH l AS (INSERT INTO ledger (id, client, account, amount) VALUES ($1, $2, $3, $4)
                   RETURNING account, amount)
                   UPDATE accounts SET balance = balance + l.amount, writes = writes + 1 FROM l WHERE id = l.account";
        let four = [Type::INT8, Type::INT4, Type::INT4, Type::INT4];
        let [id, client, to, by] = four;
        session.execute_typed(sql, &[(&self.id, id), (&self.client, client), (&account, to), (&amount, by)]).await
    }

    async fn in_transaction(&self, session: &Session) -> Attempt {
        match self.statements(session).await {
            Ok(None) => match session.batch_execute("COMMIT").await {
                Ok(()) => Attempt::Acknowledged,
                Err(error) => self.ended(error, true),
            },
            Ok(Some(wrong)) => {
                let _ = session.batch_execute("ROLLBACK").await;
                Attempt::Wrong(wrong)
            }
            // COMMIT was never sent: the engine rolls it back.
            Err(error) => self.ended(error, false),
        }
    }

    /// All up to the COMMIT; what is wrong with what they found.
    async fn statements(&self, session: &Client) -> Result<Option<String>, Error> {
        session.batch_execute("BEGIN").await?;
        let (account, other, amount) = match &self.change {
            Change::Transfer { from, to, amount } => (Some(*from), Some(*to), *amount),
            _ => (None, None, 0),
        };
        let [id, client, from, to, by] = [Type::INT8, Type::INT4, Type::INT4, Type::INT4, Type::INT4];
        let sql = "INSERT INTO ledger (id, client, account, other, amount) VALUES ($1, $2, $3, $4, $5)";
        let values: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] =
            &[(&self.id, id), (&self.client, client), (&account, from), (&other, to), (&amount, by)];
        session.execute_typed(sql, values).await?;
        let (expected, rows) = match &self.change {
            Change::Note { note, before, after } => (1, self.note(session, *note, before, after).await?),
            Change::Transfer { from, to, amount } => (2, self.transfer(session, *from, *to, *amount).await?),
            Change::Deposit { .. } => (0, 0),
        };
        Ok((rows != expected).then(|| format!("{rows} rows instead of {expected} for {self:?}")))
    }

    async fn transfer(&self, session: &Client, from: i32, to: i32, amount: i32) -> Result<u64, Error> {
        session.execute_typed("INSERT INTO events (op) VALUES ($1)", &[(&self.id, Type::INT8)]).await?;
        let mut parts = [(from, -amount), (to, amount)];
        parts.sort_unstable(); // always in the same order, so that none waits for another in a circle
        let mut rows = 0;
        for (account, amount) in parts {
            let sql = "UPDATE accounts SET balance = balance + $2, writes = writes + 1 WHERE id = $1";
            rows += session.execute_typed(sql, &[(&account, Type::INT4), (&amount, Type::INT4)]).await?;
        }
        Ok(rows)
    }

    async fn note(&self, to: &Client, note: i64, before: &Option<Note>, after: &Option<Note>) -> Result<u64, Error> {
        let (id, client) = ((&note as _, Type::INT8), (&self.client as _, Type::INT4));
        match (before, after) {
            (_, None) => to.execute_typed("DELETE FROM notes WHERE id = $1", &[id]).await,
            (None, Some(Note { body, version })) => {
                let sql = "INSERT INTO notes (id, client, body, version) VALUES ($1, $2, $3, $4)";
                to.execute_typed(sql, &[id, client, (body, Type::TEXT), (version, Type::INT4)]).await
            }
            (Some(before), Some(Note { body, version })) => {
                let sql = "UPDATE notes SET body = $2, version = $3 WHERE id = $1 AND version = $4";
                let (body, version, old) = ((body as _, Type::TEXT), (version as _, Type::INT4), &before.version);
                to.execute_typed(sql, &[id, body, version, (old, Type::INT4)]).await
            }
        }
    }

    /// What an error says about the attempt. `decisive`: it came from the statement that makes it take effect.
    fn ended(&self, error: Error, decisive: bool) -> Attempt {
        let db = error.as_db_error();
        if db.is_some_and(|db| *db.code() == SqlState::UNIQUE_VIOLATION && db.constraint() == Some("ledger_pkey")) {
            return Attempt::Already;
        }
        // An error ends the transaction; what ends the connection may have come after it.
        let answered = db.is_some_and(|db| db.parsed_severity() == Some(Severity::Error));
        if answered || !decisive { Attempt::Refused(error) } else { Attempt::Unknown(in_words(&error)) }
    }

    /// Whether it took effect.
    pub async fn look_up(&self, session: &Client) -> Result<bool, Error> {
        let found = session.query_typed("SELECT 1 FROM ledger WHERE id = $1", &[(&self.id, Type::INT8)]).await?;
        Ok(!found.is_empty())
    }
}

/// A note as the database has it now.
pub async fn read_note(session: &Client, note: i64) -> Result<Option<Note>, Error> {
    let rows = session.query_typed("SELECT body, version FROM notes WHERE id = $1", &[(&note, Type::INT8)]).await?;
    Ok(rows.first().map(|row| Note { body: row.get(0), version: row.get(1) }))
}

/// Whether the engine only asks for the transaction to be done again, as programs expect of it.
pub fn asks_to_repeat(error: &Error) -> bool {
    error
        .code()
        .is_some_and(|code| [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
}

/// An error with its causes.
pub fn in_words(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}: {}", db.severity(), db.code().code(), db.message()),
        None => format!("{error:?}"),
    }
}
