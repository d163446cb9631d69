//! Opening a connection: the start-up message and who we are.

use super::error::WireCause;
use super::frame::{AFTER_LOGIN, Frame, Frames};
use super::{CancelKey, ConnectParams};
use crate::postgres::cursor::Cursor;
use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
};
use postgres_protocol::message::frontend;

/// Settings of the session, which outrank those of the server, the database and the role.
///
/// The first group decides how a value becomes text: a key that is read here must be the same text wherever it is compared.
/// The second keeps the server from ending a session that holds an exported snapshot, which to the server is an idle
/// transaction.
pub(crate) const SESSION_SETTINGS: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("search_path", "pg_catalog"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
];

/// Logs in; afterwards the server is ready for a command.
pub(super) async fn log_in(frames: &mut Frames, params: &ConnectParams) -> Result<Option<CancelKey>, WireCause> {
    let who = [
        ("user", params.user.as_str()),
        ("database", params.database.as_str()),
        ("application_name", params.application_name.as_str()),
        ("replication", "database"),
    ];
    let settings = who.into_iter().chain(SESSION_SETTINGS.iter().copied());
    frames.queue(|out| frontend::startup_message(settings, out))?;
    authenticate(frames, params).await?;
    frames.limit = AFTER_LOGIN;
    until_ready(frames).await
}

/// Answers what the server asks until it says that it is content.
async fn authenticate(frames: &mut Frames, params: &ConnectParams) -> Result<(), WireCause> {
    let mut scram: Option<ScramSha256> = None;
    // A server that was asked for SCRAM and lets us in without having proved that it knows the password is not the server.
    let mut unproved = false;
    loop {
        let frame = next(frames).await?;
        if frame.tag != b'R' {
            return Err(frame.unexpected("a request to authenticate"));
        }
        let mut cursor = Cursor::new(&frame.body);
        match cursor.u32("kind of authentication")? {
            0 if unproved => {
                return Err(WireCause::Login("the server has not proved that it knows the password".into()));
            }
            0 => return Ok(cursor.end("authentication")?),
            3 => {
                let password = password(params)?;
                frames.queue(|out| frontend::password_message(password, out))?;
            }
            5 => {
                let salt = cursor.u32("salt")?.to_be_bytes();
                let hash = md5_hash(params.user.as_bytes(), password(params)?, salt);
                frames.queue(|out| frontend::password_message(hash.as_bytes(), out))?;
            }
            10 => {
                offered_scram(&mut cursor)?;
                let exchange = ScramSha256::new(password(params)?, ChannelBinding::unsupported());
                frames.queue(|out| frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), out))?;
                (scram, unproved) = (Some(exchange), true);
            }
            11 => {
                let exchange = scram.as_mut().ok_or_else(out_of_order)?;
                exchange.update(cursor.take("SCRAM", cursor.left())?)?;
                frames.queue(|out| frontend::sasl_response(exchange.message(), out))?;
            }
            12 => {
                scram.take().ok_or_else(out_of_order)?.finish(cursor.take("SCRAM", cursor.left())?)?;
                unproved = false;
            }
            other => {
                let known = "trust, password, md5 and scram-sha-256";
                return Err(WireCause::Login(format!("authentication of kind {other} is not known, only {known}")));
            }
        }
    }
}

fn out_of_order() -> WireCause {
    WireCause::Login("the server's SCRAM messages are out of order".into())
}

fn password(params: &ConnectParams) -> Result<&[u8], WireCause> {
    let missing = || WireCause::Login(format!("the server asks for a password of {:?} and none is given", params.user));
    params.password.as_deref().map(str::as_bytes).ok_or_else(missing)
}

/// The server must offer SCRAM without channel binding: there is no TLS here to bind to.
fn offered_scram(cursor: &mut Cursor<'_>) -> Result<(), WireCause> {
    let mut offered = Vec::new();
    loop {
        match cursor.c_str("name of a SASL mechanism")? {
            "" => break,
            name => offered.push(name),
        }
    }
    cursor.end("SASL mechanisms")?;
    if offered.contains(&SCRAM_SHA_256) {
        return Ok(());
    }
    Err(WireCause::Login(format!("the server offers {}; only {SCRAM_SHA_256} is known", offered.join(", "))))
}

async fn until_ready(frames: &mut Frames) -> Result<Option<CancelKey>, WireCause> {
    let mut key = None;
    loop {
        let frame = next(frames).await?;
        match frame.tag {
            b'K' => {
                let mut cursor = Cursor::new(&frame.body);
                key = Some(CancelKey { process: cursor.i32("process")?, secret: cursor.i32("secret")? });
                cursor.end("key of the session")?;
            }
            b'Z' => return Ok(key),
            _ => return Err(frame.unexpected("the end of the login")),
        }
    }
}

/// The next message that is about the conversation: notices and the server's settings may come at any time.
pub(super) async fn next(frames: &mut Frames) -> Result<Frame, WireCause> {
    loop {
        let frame = frames.next().await?;
        match frame.tag {
            b'S' | b'A' => {}
            b'N' => {
                let notice = super::ServerError::parse(&frame.body)?;
                tracing::debug!(%notice, "the server has a notice");
            }
            _ => return Ok(frame),
        }
    }
}
