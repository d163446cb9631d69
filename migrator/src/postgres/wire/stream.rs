//! The stream of a slot's changes, and what we tell the server of how far we are.

use super::error::{WireCause, WireError};
use super::frame::Frame;
use super::slot::check_slot_name;
use super::{ReplicationConnection, identifier, literal, login, within};
use crate::postgres::cursor::Cursor;
use crate::postgres::lsn::Lsn;
use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend::CopyData;
use std::time::Duration;

/// Unsent bytes above which no further status update is queued: the next one says more anyway.
const UNSENT: usize = 4096;

/// Which changes to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamFrom {
    /// The slot.
    pub(crate) slot: String,
    /// Transactions that commit before are left out; where the slot was last confirmed if that is later.
    pub(crate) from: Lsn,
    /// The publications that say of which tables.
    pub(crate) publications: Vec<String>,
    /// Whether to get what `pg_logical_emit_message` writes.
    pub(crate) messages: bool,
}

/// What the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message of `pgoutput`, see [`crate::postgres::pgoutput::Message`].
    Data(Bytes),
    /// Every transaction that ended before `seen` has been sent.
    KeepAlive {
        /// How far the server has read its log.
        seen: Lsn,
    },
}

/// A slot's changes, as they are committed.
#[derive(Debug)]
pub(crate) struct LogicalStream {
    connection: ReplicationConnection,
    slot: String,
    confirmed: Lsn,
}

impl ReplicationConnection {
    /// Begins to follow a slot's changes, within `limit`.
    ///
    /// # Errors
    /// [`WireCause::Server`] if the slot does not exist (42704), is in use (55006) or has lost its log (55000). A
    /// publication that does not exist (42704) is noticed at the first change only, by [`LogicalStream::next`].
    pub(crate) async fn start_logical(
        mut self,
        what: &StreamFrom,
        limit: Duration,
    ) -> Result<LogicalStream, WireError> {
        let params = self.params.clone();
        within(&params, || format!("starting the stream of slot {}", what.slot), limit, async {
            check_slot_name(&what.slot)?;
            if std::mem::replace(&mut self.streamed, true) {
                return Err(WireCause::StreamedBefore);
            }
            self.send(&start_command(what))?;
            let frame = login::next(&mut self.frames).await?;
            match frame.tag {
                b'W' => Ok(LogicalStream { connection: self, slot: what.slot.clone(), confirmed: what.from }),
                _ => Err(frame.unexpected("the beginning of the stream")),
            }
        })
        .await
    }
}

fn start_command(what: &StreamFrom) -> String {
    let publications: Vec<_> = what.publications.iter().map(|p| identifier(p)).collect();
    let publications = literal(&publications.join(","));
    let messages = if what.messages { ", messages 'true'" } else { "" };
    let (slot, from) = (identifier(&what.slot), what.from);
    format!(
        "START_REPLICATION SLOT {slot} LOGICAL {from} (proto_version '1', publication_names {publications}{messages})"
    )
}

impl LogicalStream {
    /// The next event, within `limit`. A keep-alive that asks for an answer is answered.
    ///
    /// Cancel-safe: a dropped call loses no event, and one that reached its limit can be repeated.
    ///
    /// # Errors
    /// [`WireCause::StreamEnded`] when the server ends the stream, [`WireCause::Server`] when it cannot go on.
    pub(crate) async fn next(&mut self, limit: Duration) -> Result<Event, WireError> {
        let outcome = match tokio::time::timeout(limit, login::next(&mut self.connection.frames)).await {
            Err(_) => Err(WireCause::TimedOut(limit)),
            Ok(Err(cause)) => Err(cause),
            Ok(Ok(frame)) => self.event(frame),
        };
        outcome.map_err(|cause| self.error("following the changes", cause))
    }

    fn event(&mut self, frame: Frame) -> Result<Event, WireCause> {
        match frame.tag {
            b'd' => {}
            // The command ends after the stream, or, while the server shuts down, instead of it.
            b'c' | b'C' => return Err(WireCause::StreamEnded),
            _ => return Err(frame.unexpected("a change")),
        }
        let mut cursor = Cursor::new(&frame.body);
        match cursor.u8("kind of an event")? {
            b'w' => {
                cursor.take("positions and time of a change", 24)?;
                let header = frame.body.len() - cursor.left();
                Ok(Event::Data(frame.body.slice(header..)))
            }
            b'k' => {
                let seen = cursor.lsn("position of a keep-alive")?;
                cursor.take("time of a keep-alive", 8)?;
                if cursor.u8("whether an answer is asked for")? != 0 {
                    self.send_status(false);
                }
                cursor.end("keep-alive")?;
                Ok(Event::KeepAlive { seen })
            }
            tag => Err(WireCause::Unexpected { tag, expected: "a change or a keep-alive" }),
        }
    }

    /// From now on status updates tell the server that everything up to `to` is safe with us: it may forget it, and a later
    /// stream of this slot begins there. Never goes back.
    pub(crate) fn confirm(&mut self, to: Lsn) {
        self.confirmed = self.confirmed.max(to);
    }

    /// Queues a status update, which calls of [`Self::next`] send; with `answer` the server answers at once with a
    /// keep-alive. Does nothing while older ones have not been sent.
    pub(crate) fn send_status(&mut self, answer: bool) {
        if self.connection.frames.unsent() > UNSENT {
            return;
        }
        let queued =
            self.connection.frames.queue(|out| CopyData::new(status(self.confirmed, answer)).map(|c| c.write(out)));
        debug_assert!(queued.is_ok(), "34 bytes fit into a message");
    }

    /// Sends what has been queued, within `limit`, without waiting for an event. Cancel-safe.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests wait by it"))]
    pub(crate) async fn flush(&mut self, limit: Duration) -> Result<(), WireError> {
        let flushed = tokio::time::timeout(limit, self.connection.frames.flush()).await;
        flushed.unwrap_or(Err(WireCause::TimedOut(limit))).map_err(|cause| self.error("sending a status update", cause))
    }

    /// Ends the stream, within `limit`: tells the server what is confirmed and waits until it has let go of the slot. Events
    /// that are under way are lost, and come again in a later stream unless they were confirmed. The connection can be used
    /// for anything but another stream.
    pub(crate) async fn finish(mut self, limit: Duration) -> Result<ReplicationConnection, WireError> {
        let (params, slot) = (self.connection.params.clone(), self.slot.clone());
        within(&params, || format!("ending the stream of slot {slot}"), limit, async {
            self.send_status(false);
            self.connection.frames.queue(|out| {
                postgres_protocol::message::frontend::copy_done(out);
                Ok::<_, WireCause>(())
            })?;
            loop {
                let frame = login::next(&mut self.connection.frames).await?;
                match frame.tag {
                    b'd' | b'c' | b'C' => {}
                    b'Z' => break,
                    _ => return Err(frame.unexpected("the end of the stream")),
                }
            }
            self.connection.in_step = true;
            Ok(())
        })
        .await?;
        Ok(self.connection)
    }

    fn error(&self, doing: &str, cause: WireCause) -> WireError {
        let server = self.connection.params.to_string();
        WireError { doing: format!("{doing} of slot {}", self.slot), server, cause }
    }
}

/// A standby status update: written, flushed and applied up to the same place. The time is left out (zero): the server only
/// shows it.
fn status(confirmed: Lsn, answer: bool) -> Bytes {
    let mut body = BytesMut::with_capacity(34);
    body.put_u8(b'r');
    for _ in 0..3 {
        body.put_u64(confirmed.0);
    }
    body.put_i64(0);
    body.put_u8(u8::from(answer));
    body.freeze()
}
