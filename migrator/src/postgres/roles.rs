//! A login role for each leader term: whoever takes over disables the roles of earlier terms and ends their connections, so
//! that a controller that was only paused can do nothing when it wakes up.

use foreshard_domain::LeaderTerm;
use tokio_postgres::types::Type;

use super::names::TERM_ROLE;
use super::session::{Login, Session, get, ident, literal};
use crate::BackendError;

/// The lock under which terms change on one server; any number will do, as long as nobody else uses it.
const LOCK: i64 = 0x666f_7265_7368_6172;

/// Takes over a server, by a session of the configured superuser: makes the role of `term` and shuts out earlier ones.
///
/// # Errors
/// [`BackendError::Fenced`] if a later term has taken over.
pub(super) async fn take_over(server: &Session, term: LeaderTerm) -> Result<Login, BackendError> {
    let doing = format!("taking over node {} in leader term {term}", server.node());
    let row = server.one(&doing, "SELECT gen_random_uuid()::text || gen_random_uuid()::text", &[]).await?;
    let login = Login { user: format!("{TERM_ROLE}{}", term.0), password: get(&row, 0)? };
    server.run(&doing, &format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let made = make(server, &doing, term, &login).await;
    let end = if made.is_ok() { "COMMIT" } else { "ROLLBACK" };
    server.run(&doing, end).await?;
    let earlier = made?;
    shut_out(server, &doing, &earlier).await?;
    Ok(login)
}

/// Makes the role in the transaction under way; returns the roles of earlier terms, which can log in no more.
async fn make(server: &Session, doing: &str, term: LeaderTerm, login: &Login) -> Result<Vec<String>, BackendError> {
    let roles = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE $1";
    let pattern = format!("{}%", TERM_ROLE.replace('_', "\\_"));
    let (mut earlier, mut mine) = (Vec::new(), false);
    for row in server.query(doing, roles, &[(&pattern, Type::TEXT)]).await? {
        let role: String = get(&row, 0)?;
        match role.strip_prefix(TERM_ROLE).and_then(|n| n.parse::<u64>().ok()) {
            Some(n) if n > term.0 => {
                let why = format!("term {n} has taken over there: this controller must stop");
                return Err(BackendError::Fenced { doing: doing.to_owned(), why });
            }
            Some(n) if n == term.0 => mine = true,
            _ => earlier.push(role),
        }
    }
    let verb = if mine { "ALTER" } else { "CREATE" };
    let sql = format!(
        "{verb} ROLE {} SUPERUSER LOGIN PASSWORD {}; {}",
        ident(&login.user),
        literal(&login.password),
        earlier.iter().map(|role| format!("ALTER ROLE {} NOLOGIN;", ident(role))).collect::<String>()
    );
    server.run(doing, &sql).await?;
    Ok(earlier)
}

/// Ends the connections of roles that can log in no more, and drops the roles. They own nothing, since sessions work as the
/// configured superuser.
async fn shut_out(server: &Session, doing: &str, earlier: &[String]) -> Result<(), BackendError> {
    for role in earlier {
        let ended = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = $1";
        while get::<i64>(&server.one(doing, ended, &[(role, Type::TEXT)]).await?, 0)? > 0 {}
        if let Err(error) = server.run(doing, &format!("DROP ROLE IF EXISTS {}", ident(role))).await {
            tracing::warn!(
                role,
                error = crate::cause::with_causes(&error),
                "the role of an earlier term stays, without login"
            );
        }
    }
    Ok(())
}
