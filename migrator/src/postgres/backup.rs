//! The operator's word that there is a backup of the new owner, before the old owner's copy goes.

use std::process::Stdio;
use tokio::process::Command;

use super::backend::{PostgresBackend, permanent};
use crate::{BackendError, MoveSpec};

/// How much of what a hook says is told.
const SAID: usize = 400;

impl PostgresBackend {
    /// Runs the hook once; fails unless it ends with success in time. A controller that looks after its migrations comes again by
    /// itself, so that trying at once would only run it in vain. Without a hook nothing happens.
    pub(super) async fn backed_up(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let doing = "waiting for a backup of the new owner";
        let Some((program, arguments)) = self.settings.backup_hook.split_first() else { return Ok(()) };
        let address = self.address(&spec.target)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("FORESHARD_MIGRATION", spec.migration.as_str())
            .env("FORESHARD_SHARD", spec.shard.as_str())
            .env("FORESHARD_NODE", spec.target.as_str())
            .env("PGHOST", &address.host)
            .env("PGPORT", address.port.to_string())
            .env("PGUSER", &address.user)
            .env("PGPASSWORD", &address.password)
            .env("PGDATABASE", spec.shard.as_str())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let limit = self.settings.backup_timeout;
        let transient = |source: Box<dyn std::error::Error + Send + Sync>| BackendError::Transient {
            doing: format!("{doing} by {program}"),
            source,
        };
        match tokio::time::timeout(limit, command.output()).await {
            Err(_) => Err(permanent(doing, format!("{program} did not end within {} s", limit.as_secs()))),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(permanent(doing, format!("there is no program {program}: mend postgres.backup_hook")))
            }
            Ok(Err(error)) => Err(transient(Box::new(error))),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said: String = said.trim().chars().take(SAID).collect();
                Err(permanent(doing, format!("{program} ended with {}: {said}", output.status)))
            }
        }
    }
}
