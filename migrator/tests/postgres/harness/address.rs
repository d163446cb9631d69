//! Where a database is reached and as whom, and a connection to it that ends with its value.

use std::ops::Deref;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

/// A database as a client names it: on a server, a pooler or a proxy before one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub port: u16,
    pub database: String,
    pub user: String,
    pub password: String,
}

impl Address {
    pub fn new(port: u16, database: &str, (user, password): (&str, &str)) -> Self {
        Self { port, database: database.into(), user: user.into(), password: password.into() }
    }

    /// The same database through another port, such as a proxy's.
    pub fn through(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// As libpq writes it, for subscriptions and PostgreSQL's programs.
    pub fn conninfo(&self) -> String {
        let Self { port, database, user, password } = self;
        format!("host=127.0.0.1 port={port} dbname={database} user={user} password={password}")
    }

    /// The same without the password, which programs take from their environment: an argument is there for all to see.
    pub fn conninfo_without_password(&self) -> String {
        format!("host=127.0.0.1 port={} dbname={} user={}", self.port, self.database, self.user)
    }

    pub async fn connect(&self) -> Result<Session, Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).dbname(&self.database).user(&self.user).password(&self.password);
        config.application_name("test").connect_timeout(Duration::from_secs(60));
        let (client, connection) = config.connect(NoTls).await?;
        let task = tokio::spawn(async move {
            let _ = connection.await; // whoever waits for an answer is told
        });
        Ok(Session { client, task })
    }
}

/// A connection, closed at once when dropped, whatever it waits for.
pub struct Session {
    client: Client,
    task: JoinHandle<()>,
}

impl Session {
    /// Rows of text by the simple protocol, which a pooler's console speaks alone.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Row>, Error> {
        let messages = self.client.simple_query(sql).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let names = row.columns().iter().map(|column| column.name().to_owned());
                let values = (0..row.len()).map(|n| row.get(n).map(str::to_owned));
                Some(Row(names.zip(values).collect()))
            }
            _ => None,
        });
        Ok(rows.collect())
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Names and values of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row(pub Vec<(String, Option<String>)>);

impl Row {
    /// The value of a column, empty for NULL. Fails when there is no such column.
    pub fn get(&self, column: &str) -> &str {
        let found = self.0.iter().find(|(name, _)| name == column);
        let (_, value) = found.unwrap_or_else(|| panic!("no column {column} in {self:?}"));
        value.as_deref().unwrap_or_default()
    }

    /// The first column.
    pub fn first(&self) -> &str {
        self.0.first().and_then(|(_, value)| value.as_deref()).unwrap_or_default()
    }
}
