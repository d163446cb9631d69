//! Each subcommand: a thin call into the library crates and the printing of what came of it.

pub mod check;
pub mod control;
pub mod data;
pub mod demo;
pub mod evaluate;
pub mod forecast;
pub mod migrate;
pub mod models;
pub mod plan;
pub mod serve;
pub mod simulate;
pub mod train;

mod advice;
mod foresight;
mod local;
mod progress;

use foreshard_datasets::{EventCalendar, read_events};
use foreshard_domain::{Contender, LossRatio};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

use crate::output::Failure;

/// Time for what still runs on other threads when a command is done; what hangs then is left to the end of the process.
const LEAVES_WITHIN: Duration = Duration::from_secs(2);

/// The runtime of commands that talk over the network.
fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Does what a command does over the network. It is done when that is, also where a thread hangs that worked for it.
fn until_done<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LEAVES_WITHIN);
    done
}

/// What a flag says, else what the settings say.
fn path<'a>(flag: &'a Option<PathBuf>, setting: &'a Path) -> &'a Path {
    flag.as_deref().unwrap_or(setting)
}

/// The known events of a file; none where no file is named.
fn events(file: &Path) -> Result<Arc<EventCalendar>, Failure> {
    let events = if file.as_os_str().is_empty() { Vec::new() } else { read_events(file)? };
    Ok(Arc::new(EventCalendar::new(events)))
}

/// The loss of the first in a table over that of a contender, and the interval of it.
fn loss_ratio(contender: &Contender) -> String {
    let shown = |r: LossRatio| format!("{:.3} ({:.3} to {:.3})", r.ratio, r.low, r.high);
    contender.subject_to_it.map_or_else(|| "-".to_owned(), shown)
}

/// A share as percent, for people.
fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_keeps_no_command() {
        let (_held, hangs) = std::sync::mpsc::channel::<()>();
        let done = until_done(async move {
            tokio::task::spawn_blocking(move || hangs.recv());
            Ok(7)
        });
        assert_eq!(done.unwrap(), 7, "before, this never came back");
    }
}
