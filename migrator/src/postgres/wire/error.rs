//! What can go wrong on a replication connection.

use crate::postgres::cursor::{Cursor, Malformed};
use std::fmt;
use std::io;
use std::time::Duration;

/// A call on a replication connection that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} on {server} failed")]
pub(crate) struct WireError {
    /// What was being done.
    pub(crate) doing: String,
    /// Which server and database.
    pub(crate) server: String,
    /// Why it failed.
    #[source]
    pub(crate) cause: WireCause,
}

/// Why a call on a replication connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireCause {
    /// The network or the operating system.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The server ended the connection without a word.
    #[error("the server closed the connection")]
    Closed,
    /// The server's answer did not come in time.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The server says no.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// A message is longer than any that a server sends: this is no PostgreSQL, or bytes have been lost.
    #[error("a message {:?} of {length} bytes is announced, at most {limit} make sense; is this a PostgreSQL server?",
        char::from(*.tag))]
    TooLong {
        /// Kind of the message.
        tag: u8,
        /// Its length by its own word, in bytes.
        length: i64,
        /// The most that is accepted, in bytes.
        limit: usize,
    },
    /// A message that cannot be read.
    #[error("the server's message cannot be read")]
    Malformed(#[from] Malformed),
    /// A message that does not belong here.
    #[error("the server sent a message {:?} while {expected} was expected", char::from(*.tag))]
    Unexpected {
        /// Kind of the message.
        tag: u8,
        /// What should have come.
        expected: &'static str,
    },
    /// The server asks for what this client cannot give.
    #[error("cannot log in: {0}")]
    Login(String),
    /// An earlier call was given up half-way, and its answer may still arrive.
    #[error("an earlier call on this connection was given up; connect again")]
    OutOfStep,
    /// A second stream on one connection, which a server would end at once.
    #[error("this connection has had a stream before, and servers start no second one on it; connect again")]
    StreamedBefore,
    /// The server has ended the stream of changes.
    #[error("the server ended the stream of changes, as it does when it shuts down")]
    StreamEnded,
    /// A name that the server would refuse or misread.
    #[error("{name:?} cannot be the name of a replication slot: 1 to 63 of a-z, 0-9 and _")]
    SlotName {
        /// The name.
        name: String,
    },
    /// An answer without what was asked for.
    #[error("the server's answer has no {0}")]
    Missing(&'static str),
}

impl From<ServerError> for WireCause {
    fn from(error: ServerError) -> Self {
        Self::Server(Box::new(error))
    }
}

impl WireError {
    /// The server's error code, if it was the server that said no.
    pub(crate) fn sql_state(&self) -> Option<&str> {
        match &self.cause {
            WireCause::Server(error) => Some(&error.code),
            _ => None,
        }
    }

    /// Whether the answer did not come in time.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self.cause, WireCause::TimedOut(_))
    }
}

/// What the server says when it refuses.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
pub(crate) struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`.
    pub(crate) severity: String,
    /// SQLSTATE, five characters.
    pub(crate) code: String,
    /// What is wrong.
    pub(crate) message: String,
    /// More of it.
    pub(crate) detail: Option<String>,
    /// How to mend it.
    pub(crate) hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl ServerError {
    /// Reads the fields of an error or a notice. Text that is not UTF-8 is kept as far as it can be read: before the login
    /// the server speaks in an encoding of its own.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(body);
        let mut error = Self::default();
        loop {
            let field = match cursor.u8("field of an error")? {
                0 => break,
                field => field,
            };
            let text = String::from_utf8_lossy(cursor.c_bytes("text of an error")?).into_owned();
            match field {
                // `V` is never translated; servers before 9.6 send `S` only.
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        cursor.end("an error")?;
        Ok(error)
    }
}
