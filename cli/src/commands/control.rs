//! `foreshard control --mode advise`: plans in a loop on what a serving process knows, and records the advice.
//!
//! It moves nothing by itself. Where servers are configured it holds the state store meanwhile: it carries the moves that
//! `foreshard migrate` asks for, takes up interrupted ones, and removes copies whose retention is over. The loop that moves
//! shards by itself is `foreshard_control::ControlLoop`; `foreshard demo` runs it on the embedded engine.

use foreshard_api::ForecastClient;
use foreshard_control::ControlServer;
use foreshard_datasets::{DecisionLog, ReadFilter, read_history};
use foreshard_policy::{Plan, check, decisions, explain};
use serde::Serialize;
use std::path::Path;

use crate::args::ControlArgs;
use crate::commands::advice::{Advice, Source, advise};
use crate::commands::serve::interrupted;
use crate::commands::{migrate, path, runtime};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

#[derive(Serialize)]
struct Round<'a> {
    plan: &'a Plan,
    accepted: bool,
    violations: Vec<String>,
    notes: &'a [String],
}

/// Plans every `control.every` until interrupted, or once.
pub fn run(args: &ControlArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let server = args.server.as_deref().unwrap_or(&settings.control.server);
    let topology = path(&args.topology, &settings.data.topology);
    let log = DecisionLog::open(&settings.data.decisions)?;
    runtime()?.block_on(async {
        if args.once {
            return one_round(server, topology, settings, &log, None, format).await;
        }
        let holder = if settings.postgres.nodes.is_empty() { None } else { Some(migrate::stay(settings).await?) };
        if holder.is_some() {
            eprintln!("moves are carried here; `foreshard migrate` talks to {}", settings.store.socket.display());
        }
        let rounds = async {
            loop {
                if let Err(error) = one_round(server, topology, settings, &log, holder.as_ref(), format).await {
                    // The next round may find serving again; an operator sees why this one did not happen.
                    eprintln!("{}", output::chain(error.as_ref()));
                }
                tokio::time::sleep(settings.control.every).await;
            }
        };
        let verdict = tokio::select! {
            ended = interrupted() => ended.map(|()| Verdict::Done),
            verdict = rounds => verdict,
        };
        if let Some(holder) = holder {
            holder.shutdown().await;
        }
        verdict
    })
}

async fn one_round(
    server: &str,
    topology: &Path,
    settings: &Settings,
    log: &DecisionLog,
    holder: Option<&ControlServer>,
    format: Format,
) -> Result<Verdict, Failure> {
    let client = ForecastClient::connect_with(server, &settings.client.credentials()?).await?;
    let history = read_history(&settings.data.history, &ReadFilter::default())?;
    let held = match holder {
        Some(holder) => Some(holder.view().await?),
        None => None,
    };
    let Advice { input, planned, version, notes } =
        advise(settings, topology, &history, Source::Server(&client), held.as_ref()).await?;
    let violations: Vec<String> = match check(&input, &planned.plan) {
        Ok(_) => Vec::new(),
        Err(found) => found.iter().map(ToString::to_string).collect(),
    };
    let accepted = violations.is_empty();
    if accepted {
        log.append(&decisions(&input, &planned, version))?;
    }
    let round = Round { plan: &planned.plan, accepted, violations, notes: &notes };
    output::print(format, &round, |round| {
        let notes: String = round.notes.iter().map(|n| format!("note: {n}\n")).collect();
        let refused: String = round.violations.iter().map(|v| format!("refused by the checker: {v}\n")).collect();
        format!("{notes}{refused}{}", explain(round.plan, None))
    })?;
    Ok(if accepted { Verdict::Done } else { Verdict::No })
}
