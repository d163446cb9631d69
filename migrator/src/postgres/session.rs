//! A connection to one database of one server, and what its errors mean to the driver.

use foreshard_domain::NodeId;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Error, NoTls, Row, SimpleQueryMessage};

use super::schema::database::WRITES_FLOW;
use super::settings::ServerAddress;
use super::wire::SESSION_SETTINGS;
use crate::BackendError;
use crate::cause::with_causes;

/// How long a connection may take; a server that answers later is as good as gone under a fence.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take unless the caller expects a long one: a link that hangs must not hang the move.
const PATIENCE: Duration = Duration::from_secs(15);
/// After so long without an answer to keep-alives a connection is given up.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// More settings than [`SESSION_SETTINGS`], for sessions that change things.
const SETTINGS: &[(&str, &str)] = &[
    ("client_min_messages", "warning"),
    ("row_security", "off"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    // On the source too: a first reading writes hint bits.
    WRITES_FLOW,
];

/// Who logs in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub user: String,
    pub password: String,
}

/// A server and who logs in to it.
#[derive(Clone)]
pub(crate) struct Place {
    pub node: NodeId,
    pub address: ServerAddress,
    pub login: Login,
}

impl Place {
    /// Connects to a database of it, and works as the configured superuser, so that what is made outlives a term's role.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn open(&self, database: &str, application: &str) -> Result<Session, BackendError> {
        let session = Session::open(&self.node, &self.address, &self.login, database, application).await?;
        if self.login.user != self.address.user {
            session.run("setting the role", &format!("SET ROLE {}", ident(&self.address.user))).await?;
        }
        Ok(session)
    }
}

/// A connection to one database.
pub(crate) struct Session {
    client: Client,
    node: NodeId,
    database: String,
    pump: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// The parameters of a connection.
pub(crate) fn config(address: &ServerAddress, login: &Login, database: &str, application: &str) -> Config {
    let mut config = Config::new();
    config
        .host(&address.host)
        .port(address.port)
        .user(&login.user)
        .password(&login.password)
        .dbname(database)
        .application_name(application)
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(5))
        .tcp_user_timeout(TCP_USER_TIMEOUT);
    config
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// [`BackendError`], of the class that [`failed`] gives.
    pub async fn open(
        node: &NodeId,
        address: &ServerAddress,
        login: &Login,
        database: &str,
        application: &str,
    ) -> Result<Self, BackendError> {
        let doing = || format!("connecting to database {database} on node {node}");
        let config = config(address, login, database, application);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await;
        let (client, connection) = match connected {
            Ok(connected) => connected.map_err(|e| failed(doing(), e))?,
            Err(elapsed) => return Err(BackendError::Transient { doing: doing(), source: Box::new(elapsed) }),
        };
        let pump = tokio::spawn(async move {
            // How a connection ended is told to whoever waits for an answer on it.
            let _ended = connection.await;
        });
        let session = Self { client, node: node.clone(), database: database.to_owned(), pump };
        let settings = SESSION_SETTINGS.iter().chain(SETTINGS);
        let pinned: String = settings.map(|(name, value)| format!("SET {name} = {};", literal(value))).collect();
        session.run("setting up the connection", &pinned).await?;
        Ok(session)
    }

    pub fn node(&self) -> &NodeId {
        &self.node
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The connection itself, for COPY.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs statements without parameters, by the simple protocol, in one round trip.
    pub async fn run(&self, doing: &str, sql: &str) -> Result<(), BackendError> {
        self.run_within(PATIENCE, doing, sql).await
    }

    /// As [`Self::run`], for what may take long.
    pub async fn run_within(&self, patience: Duration, doing: &str, sql: &str) -> Result<(), BackendError> {
        let ran = self.within(patience, doing, self.client.batch_execute(sql)).await;
        self.end_transaction(sql, ran).await
    }

    /// A batch that begins a transaction and fails in the middle must not leave its session in it.
    async fn end_transaction<T>(&self, sql: &str, ran: Result<T, BackendError>) -> Result<T, BackendError> {
        if ran.is_err() && sql.starts_with("BEGIN") && !self.is_closed() {
            let ended = self.within(PATIENCE, "ending a transaction", self.client.batch_execute("ROLLBACK")).await;
            if ended.is_err() {
                self.pump.abort();
            }
        }
        ran
    }

    /// Runs statements without parameters, in one round trip, and returns the rows of all as text.
    pub async fn texts(&self, doing: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>, BackendError> {
        let answered = self.within(PATIENCE, doing, self.client.simple_query(sql)).await;
        let messages = self.end_transaction(sql, answered).await?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.try_get(i).ok().flatten().map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// Runs one statement with typed parameters in one round trip, without a named statement.
    pub async fn query(
        &self,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, BackendError> {
        self.query_within(PATIENCE, doing, sql, params).await
    }

    /// As [`Self::query`], for what may take long.
    pub async fn query_within(
        &self,
        patience: Duration,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, BackendError> {
        self.within(patience, doing, self.client.query_typed(sql, params)).await
    }

    /// Waits for an answer; one that does not come makes the connection useless, so it is ended.
    async fn within<T>(
        &self,
        patience: Duration,
        doing: &str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, BackendError> {
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|e| self.failed(doing, e)),
            Err(elapsed) => {
                self.pump.abort();
                let doing = format!("{doing} in database {} on node {}", self.database, self.node);
                Err(BackendError::Transient { doing, source: Box::new(elapsed) })
            }
        }
    }

    /// The first row of [`Self::query`], if there is one.
    pub async fn maybe(
        &self,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Option<Row>, BackendError> {
        Ok(self.query(doing, sql, params).await?.into_iter().next())
    }

    /// The only row of [`Self::query`].
    pub async fn one(
        &self,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row, BackendError> {
        let row = self.maybe(doing, sql, params).await?;
        row.ok_or_else(|| BackendError::Bug { what: format!("{doing} on node {}: no row came back", self.node) })
    }

    /// An error of this connection as the driver's class. One that was left in a transaction that failed is of no more use.
    pub fn failed(&self, doing: &str, error: Error) -> BackendError {
        if error.code() == Some(&tokio_postgres::error::SqlState::IN_FAILED_SQL_TRANSACTION) {
            self.pump.abort();
        }
        failed(format!("{doing} in database {} on node {}", self.database, self.node), error)
    }
}

/// A value of a row, or what is wrong with it.
pub(crate) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, BackendError> {
    row.try_get(column)
        .map_err(|e| BackendError::Bug { what: format!("column {column} of an answer: {}", with_causes(&e)) })
}

/// An error as the driver's class: lost connections, servers that start or stop, locks that were not to be had in time and
/// serialisation failures pass; everything else (a full disk, missing rights, a broken schema) does not mend itself.
pub(crate) fn failed(doing: String, error: Error) -> BackendError {
    if error.code().is_none_or(|code| passes(code.code())) {
        BackendError::Transient { doing, source: Box::new(error) }
    } else {
        BackendError::Permanent { doing, why: with_causes(&error) }
    }
}

/// Whether an error of this SQLSTATE may be gone when the same is tried again.
pub(crate) fn passes(code: &str) -> bool {
    matches!(
        code,
        "40001" | "40P01" | "55P03" | "55006" | "57014" | "57P01" | "57P02" | "57P03" | "53300" | "25006" | "25P02"
    ) || code.starts_with("08")
}

/// The SQLSTATE under an error, if a server sent one.
pub(crate) fn sqlstate(error: &BackendError) -> Option<&str> {
    let BackendError::Transient { source, .. } = error else { return None };
    source.downcast_ref::<Error>().and_then(Error::code).map(tokio_postgres::error::SqlState::code)
}

/// A name as an SQL identifier.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A schema-qualified name.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A text as an SQL literal, also with backslashes.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(qualified("S x", "t"), "\"S x\".\"t\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }
}
