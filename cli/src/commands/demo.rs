//! `foreshard demo`: the whole loop in one process; ends with a table.

use async_trait::async_trait;
use std::net::SocketAddr;

use crate::args::DemoArgs;
use crate::commands::progress::Progress;
use crate::commands::runtime;
use crate::demo::{self, DemoOptions, DemoProgress, DemoReport};
use crate::output::{self, Failure, Format, Verdict};

struct Told {
    progress: Progress,
    format: Format,
    serve: bool,
}

#[async_trait]
impl DemoProgress for Told {
    fn say(&mut self, line: &str) {
        self.progress.say(line);
    }

    fn progress(&mut self, what: &str, done: u64, total: u64) {
        self.progress.set(what, done as f64 / total.max(1) as f64, "");
    }

    async fn finished(&mut self, report: &DemoReport, server: SocketAddr) {
        if let Err(error) = output::print(self.format, report, demo::render_table) {
            self.progress.say(&output::chain(error.as_ref()));
        }
        if self.serve {
            self.progress.say(&format!("still serving on http://{server}; Ctrl-C stops"));
            // Where no signal can be waited for, there is nothing to wait for.
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

/// Runs the demonstration; a write lost or doubled, or a move that failed, is a "no".
pub fn run(args: &DemoArgs, format: Format) -> Result<Verdict, Failure> {
    let options = DemoOptions { seed: args.seed, folder: args.keep.clone() };
    let mut told = Told { progress: Progress::new(), format, serve: args.serve };
    let report = runtime()?.block_on(demo::run(options, &mut told))?;
    Ok(if report.passed() { Verdict::Done } else { Verdict::No })
}
