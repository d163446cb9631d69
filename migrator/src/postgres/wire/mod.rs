//! A replication connection: what the ordinary client does not speak.
//!
//! Creating a slot with an exported snapshot and following a slot's changes need a connection in replication mode. This
//! one speaks so much of the protocol as that takes: log in, simple queries, and the stream in both directions.
//!
//! Every call has a limit. A call that reached it, or whose future was dropped, leaves the connection out of step, and
//! later calls say so instead of reading another call's answer; [`LogicalStream::next`] alone may be dropped at any time.
//! There is no TLS.

mod error;
mod frame;
mod login;
mod slot;
mod stream;

pub(crate) use error::{ServerError, WireCause, WireError};
pub(crate) use login::SESSION_SETTINGS;
pub(crate) use slot::{ExportedSnapshot, SlotLife};
pub(crate) use stream::{Event, LogicalStream, StreamFrom};

use super::cursor::Cursor;
use frame::Frames;
use postgres_protocol::message::frontend;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// Where a server is and who asks.
#[derive(Clone)]
pub(crate) struct ConnectParams {
    /// A name or address, or the folder of a Unix socket if it begins with a slash.
    pub(crate) host: String,
    /// The port; with a Unix socket a part of its name.
    pub(crate) port: u16,
    /// The database.
    pub(crate) database: String,
    /// The role; it needs `REPLICATION`.
    pub(crate) user: String,
    /// Its password, if the server asks for one.
    pub(crate) password: Option<String>,
    /// What `pg_stat_activity` and `pg_stat_replication` show.
    pub(crate) application_name: String,
}

impl fmt::Debug for ConnectParams {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} as {} ({})", self.user, self.application_name)
    }
}

impl fmt::Display for ConnectParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.port, self.database)
    }
}

/// What the server wants to know before it ends a session's command.
#[derive(Debug, Clone, Copy)]
struct CancelKey {
    process: i32,
    secret: i32,
}

/// A row of an answer: each column's text, `None` for NULL.
pub(crate) type Row = Vec<Option<String>>;

/// An answer as far as it has come.
#[derive(Default)]
struct Answer {
    rows: Vec<Row>,
    error: Option<ServerError>,
}

/// A connection in replication mode, ready for a command.
pub(crate) struct ReplicationConnection {
    frames: Frames,
    params: ConnectParams,
    cancel_key: Option<CancelKey>,
    answer: Answer,
    /// No answer is under way.
    in_step: bool,
    /// There has been a stream. PostgreSQL 15 ends a second one on the same connection at once: what it notes at the end of
    /// the first is never cleared.
    streamed: bool,
}

impl fmt::Debug for ReplicationConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { params, in_step, .. } = self;
        f.debug_struct("ReplicationConnection")
            .field("params", params)
            .field("in_step", in_step)
            .finish_non_exhaustive()
    }
}

impl ReplicationConnection {
    /// Connects and logs in, within `limit`.
    ///
    /// # Errors
    /// [`WireCause::Server`] if the server refuses (28P01 for a wrong password, 3D000 for a database that does not exist,
    /// 53300 if all connections or senders are taken), [`WireCause::Login`] if it asks for what is not known or not given.
    pub(crate) async fn connect(params: &ConnectParams, limit: Duration) -> Result<Self, WireError> {
        within(params, || "connecting for replication".into(), limit, async {
            let mut frames = open(params).await?;
            let cancel_key = login::log_in(&mut frames, params).await?;
            let (params, answer) = (params.clone(), Answer::default());
            Ok(Self { frames, params, cancel_key, answer, in_step: true, streamed: false })
        })
        .await
    }

    /// Runs SQL or a replication command and collects its rows, within `limit`.
    ///
    /// # Errors
    /// [`WireCause::Server`] if the server refuses; the connection can be used again, unless the server ended it.
    pub(crate) async fn simple_query(&mut self, query: &str, limit: Duration) -> Result<Vec<Row>, WireError> {
        self.ask(query, || format!("running {} ...", beginning(query)), limit).await
    }

    async fn ask(&mut self, query: &str, doing: impl Fn() -> String, limit: Duration) -> Result<Vec<Row>, WireError> {
        let params = self.params.clone();
        within(&params, doing, limit, async {
            self.send(query)?;
            self.answer().await
        })
        .await
    }

    fn send(&mut self, query: &str) -> Result<(), WireCause> {
        if !std::mem::replace(&mut self.in_step, false) {
            return Err(WireCause::OutOfStep);
        }
        self.answer = Answer::default();
        self.frames.queue(|out| frontend::query(query, out)).inspect_err(|_| self.in_step = true)?;
        Ok(())
    }

    /// Reads an answer to its end. Cancel-safe: called again it goes on.
    async fn answer(&mut self) -> Result<Vec<Row>, WireCause> {
        loop {
            let frame = match login::next(&mut self.frames).await {
                // After a fatal error nothing comes any more; that error says why.
                Err(error) => return Err(self.answer.error.take().map_or(error, WireCause::from)),
                Ok(frame) => frame,
            };
            match frame.tag {
                b'D' => self.answer.rows.push(row(&frame.body)?),
                b'T' | b'C' | b'I' => {}
                b'E' => self.answer.error = Some(ServerError::parse(&frame.body)?),
                b'Z' => {
                    self.in_step = true;
                    let Answer { rows, error } = std::mem::take(&mut self.answer);
                    return error.map_or(Ok(rows), |e| Err(e.into()));
                }
                _ => return Err(frame.unexpected("the answer to a query")),
            }
        }
    }

    /// Asks the server, on a connection of its own, to end the command that runs on this one.
    async fn cancel(&self) -> Result<(), WireCause> {
        let CancelKey { process, secret } = self.cancel_key.ok_or(WireCause::Missing("key to cancel with"))?;
        let mut frames = open(&self.params).await?;
        frames.queue(|out| {
            frontend::cancel_request(process, secret, out);
            Ok::<_, WireCause>(())
        })?;
        frames.end().await
    }

    /// Says good-bye and waits until the server has ended the session, with which its temporary slots go.
    pub(crate) async fn close(mut self, limit: Duration) -> Result<(), WireError> {
        let params = self.params.clone();
        within(&params, || "closing the connection".into(), limit, async {
            self.frames.queue(|out| {
                frontend::terminate(out);
                Ok::<_, WireCause>(())
            })?;
            self.frames.end().await
        })
        .await
    }
}

/// The first words of a command: enough to know it by, and before any password in it.
fn beginning(query: &str) -> String {
    query.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn row(body: &[u8]) -> Result<Row, WireCause> {
    let mut cursor = Cursor::new(body);
    let count = cursor.u16("number of columns")?;
    let mut row = Row::new();
    for _ in 0..count {
        let length = cursor.i32("length of a column")?;
        row.push(match usize::try_from(length) {
            Ok(length) => Some(cursor.text("column", length)?.to_owned()),
            Err(_) => None,
        });
    }
    cursor.end("row")?;
    Ok(row)
}

async fn open(params: &ConnectParams) -> Result<Frames, WireCause> {
    if params.host.starts_with('/') {
        let path = Path::new(&params.host).join(format!(".s.PGSQL.{}", params.port));
        return Ok(Frames::unix(UnixStream::connect(path).await?));
    }
    let socket = TcpStream::connect((params.host.as_str(), params.port)).await?;
    // Status updates are small and must not wait for more.
    socket.set_nodelay(true)?;
    Ok(Frames::tcp(socket))
}

/// Gives a call its limit and its error the place where it happened.
async fn within<T>(
    params: &ConnectParams,
    doing: impl Fn() -> String,
    limit: Duration,
    call: impl Future<Output = Result<T, WireCause>>,
) -> Result<T, WireError> {
    let outcome = tokio::time::timeout(limit, call).await.unwrap_or(Err(WireCause::TimedOut(limit)));
    outcome.map_err(|cause| WireError { doing: doing(), server: params.to_string(), cause })
}

/// `text` as a literal of a replication command.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `name` as a quoted identifier.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests;
