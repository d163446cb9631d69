//! The `foreshard` binary: arguments and settings in, a thin call into the library crates, output out.
//!
//! Exit codes: 0 done, 1 a "no" (a check failed, nothing was promoted), 2 an error whose chain is printed on stderr.

mod args;
mod commands;
mod demo;
mod layers;
mod output;
mod settings;

use clap::Parser;
use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::output::{Failure, Verdict};
use crate::settings::Settings;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(&cli.log);
    match run(&cli) {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{}", output::chain(error.as_ref()));
            ExitCode::from(2)
        }
    }
}

fn start_logging(filter: &str) {
    let parsed = tracing_subscriber::EnvFilter::try_new(filter);
    let wrong = parsed.is_err();
    let filter = parsed.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if wrong {
        tracing::warn!("the log filter could not be read; logging warnings and errors");
    }
}

fn run(cli: &Cli) -> Result<Verdict, Failure> {
    let format = cli.output;
    if let Command::Demo(args) = &cli.command {
        // The demonstration takes no settings, so that it shows the same everywhere.
        return commands::demo::run(args, format);
    }
    let file = layers::settings_file(cli.config.clone());
    let settings = Settings::load(file.as_deref())?;
    match &cli.command {
        Command::Demo(args) => commands::demo::run(args, format),
        Command::Data(command) => commands::data::run(command, &settings, format),
        Command::Train(args) => commands::train::run(args, &settings, format),
        Command::Evaluate(args) => commands::evaluate::run(args, &settings, format),
        Command::Forecast(args) => commands::forecast::run(args, &settings, format),
        Command::Serve(args) => commands::serve::run(args, &settings, format),
        Command::Plan(args) => commands::plan::run(args, &settings, format),
        Command::Check(args) => commands::check::run(args, format),
        Command::Simulate(args) => commands::simulate::run(args, &settings, format),
        Command::Control(args) => commands::control::run(args, &settings, format),
        Command::Migrate(command) => commands::migrate::run(command, &settings, format),
        Command::Models(command) => commands::models::run(command, &settings, format),
    }
}
