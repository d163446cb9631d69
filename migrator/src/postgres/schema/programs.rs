//! PostgreSQL's own programs: where they are, and how one is run to its end or stopped with its call.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

use super::database::WRITES_FLOW;
use crate::BackendError;
use crate::postgres::session::Place;

/// Outranks what the server, the database or the role sets, for sessions of programs.
///
/// The role `replica` keeps the application's event triggers quiet when a restore is repeated.
const OPTIONS: &str = "-c default_transaction_read_only=off -c role=none -c session_replication_role=replica \
    -c lc_messages=C -c idle_session_timeout=0";

/// What a server says when the same may work later.
const PASSES: &[&str] = &[
    "could not connect",
    "connection to server",
    "server closed the connection",
    "terminating connection",
    "the database system is",
    "deadlock detected",
    "canceling statement due to",
    "could not obtain lock",
    "too many clients",
    "is being accessed by other users",
];

/// A server that is gone, or a link that hangs, is noticed within seconds.
const KEEPALIVE: &str = "keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000";

/// The folder of the programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Finds the programs of version `major`: in the folder that is set, in Debian's, on the search path. Those of another
    /// version are refused: a later `pg_restore` sets what an earlier server does not know.
    ///
    /// # Errors
    /// If there are none.
    pub async fn find(folder: &Path, major: i32) -> Result<Self, BackendError> {
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let places = if folder.as_os_str().is_empty() { vec![debian, PathBuf::new()] } else { vec![folder.into()] };
        let mut seen = Vec::new();
        for folder in places {
            let programs = Self { folder };
            let mut command = programs.alone("pg_restore");
            let said = command.arg("--version").output().await;
            let version = said.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
            if major_of(&version) == Some(major) {
                return Ok(programs);
            }
            seen.push(format!("{:?}: {}", programs.folder, if version.is_empty() { "nothing" } else { &version }));
        }
        Err(BackendError::Permanent {
            doing: "looking for pg_dump and pg_restore".into(),
            why: format!(
                "those of version {major} are needed ({}); install postgresql-client-{major}, or set `programs`",
                seen.join(", ")
            ),
        })
    }

    /// A program that needs no server.
    pub(super) fn alone(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join(name));
        // What is set around this process must not lead a program to another server.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A program that works on a database. The password is in its environment: arguments can be read by everybody.
    pub(super) fn on(&self, name: &str, place: &Place, database: &str, application: &str) -> Command {
        let mut command = self.alone(name);
        command
            .env("PGPASSWORD", &place.login.password)
            .env("PGAPPNAME", application)
            .env("PGOPTIONS", format!("{OPTIONS} -c {}={}", WRITES_FLOW.0, WRITES_FLOW.1))
            .env("PGCONNECT_TIMEOUT", "5")
            .args(["--no-password", "--host", &place.address.host])
            .args(["--port", &place.address.port.to_string(), "--username", &place.login.user])
            // What has no owner of its own must outlive a term's role.
            .args((place.login.user != place.address.user).then(|| format!("--role={}", place.address.user)))
            // As a parameter of its own a name with `=` would be taken for a connection string.
            .arg(format!("--dbname=dbname='{}' {KEEPALIVE}", database.replace('\\', "\\\\").replace('\'', "\\'")));
        command
    }
}

fn major_of(version: &str) -> Option<i32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Runs a program to its end and returns what it writes; it is killed if the call is dropped.
///
/// # Errors
/// If it fails, with everything that it says.
pub(super) async fn run(mut command: Command, doing: &str) -> Result<String, BackendError> {
    let output = command.output().await;
    let output = output.map_err(|e| BackendError::Permanent {
        doing: doing.to_owned(),
        why: format!("{} cannot be started: {e}", command.as_std().get_program().to_string_lossy()),
    })?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = if said.is_empty() { output.status.to_string() } else { said };
    if PASSES.iter().any(|words| why.contains(words)) {
        return Err(BackendError::Transient { doing: doing.to_owned(), source: why.into() });
    }
    Err(BackendError::Permanent { doing: doing.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_write_them() {
        assert_eq!(major_of("pg_restore (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_of("pg_restore (PostgreSQL) 17beta1"), Some(17));
        assert_eq!(major_of(""), None);
    }

    #[tokio::test]
    async fn programs_of_another_version_are_refused() {
        let error = Programs::find(Path::new("/nowhere"), 15).await.unwrap_err().to_string();
        assert!(error.contains("version 15") && error.contains("/nowhere"), "{error}");
    }
}
