//! How a migration goes, on standard error, until it is at rest.

use foreshard_api::{ControlClient, Migration, MigrationDetails};
use foreshard_domain::MigrationId;
use indicatif::ProgressBar;
use std::io::IsTerminal;
use std::time::Duration;

use super::text;
use crate::commands::serve::interrupted;
use crate::output::Failure;

/// How often the holder is asked.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Questions between two plain lines of one state: ten seconds.
const LINE_EVERY: u32 = 40;

/// How watching ended.
pub enum Watched {
    /// The migration is at rest.
    AtRest(MigrationDetails),
    /// Somebody pressed Ctrl-C.
    Interrupted(MigrationDetails),
}

/// Why a migration stopped without being at rest.
#[derive(Debug, thiserror::Error)]
#[error(
    "migration {id} stopped while {state}; what is durable stays as it is, and `foreshard migrate resume {id}` goes on"
)]
struct Stopped {
    id: MigrationId,
    state: String,
    #[source]
    source: Failure,
}

/// Watches until the migration is at rest, its holder stops working on it, or Ctrl-C.
///
/// # Errors
/// If the holder is gone, or stopped with an error.
pub async fn watch(client: &ControlClient, id: &MigrationId) -> Result<Watched, Failure> {
    let mut line = Line::new();
    let stop = interrupted();
    tokio::pin!(stop);
    loop {
        let shown = client.show(id).await?;
        line.tell(&shown.migration);
        if !shown.migration.carried {
            return if shown.migration.at_rest { Ok(Watched::AtRest(shown)) } else { Err(stopped(shown.migration)) };
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            pressed = &mut stop => {
                pressed?;
                return Ok(Watched::Interrupted(client.show(id).await?));
            }
        }
    }
}

fn stopped(migration: Migration) -> Failure {
    let source = migration.last_error.unwrap_or_else(|| "its holder does not work on it any more".to_owned()).into();
    Stopped { id: migration.id, state: migration.state, source }.into()
}

/// A line that changes on a terminal; elsewhere a line for each state, and now and then one in between.
struct Line {
    bar: Option<ProgressBar>,
    state: String,
    said: u32,
}

impl Line {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        Self { bar, state: String::new(), said: 0 }
    }

    fn tell(&mut self, migration: &Migration) {
        let entered = self.state != migration.state;
        if let Some(bar) = &self.bar {
            if entered && !self.state.is_empty() {
                bar.println(format!("{}: {}", migration.id, self.state));
            }
            bar.set_message(text::progress(migration));
            bar.tick();
        } else if entered || self.said >= LINE_EVERY {
            eprintln!("{}", text::progress(migration));
            self.said = 0;
        }
        self.said += 1;
        if entered {
            self.state.clone_from(&migration.state);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
