//! `foreshard migrate`: moves by hand, those under way, and who owns which shard.

mod access;
mod ring;
mod text;
mod watch;

pub use access::stay;

use foreshard_api::{DryRunReport, MigrationDetails, StartMigration};
use foreshard_control::{details, dry_run, migrations};
use foreshard_domain::{Clock, Consistency, MigrationId, SystemClock};
use foreshard_migrator::DriverConfig;
use foreshard_migrator::postgres::Watchdog;
use std::sync::Arc;
use std::time::Duration;

use crate::args::{MigrateCommand, MigrateStartArgs};
use crate::commands::runtime;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;
use access::{Access, View, engine};
use text::{DryRun, Listed, Shown};
use watch::{Watched, watch};

/// A dry run tries again once what failed for now: it is a question, not a move.
const DRY_RUN_RETRIES: u32 = 1;

/// Runs one of the subcommands.
pub fn run(command: &MigrateCommand, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    runtime()?.block_on(async {
        match command {
            MigrateCommand::Start(args) if args.dry_run => tell(args, settings, format).await,
            MigrateCommand::Start(args) => {
                let asked = asked(args);
                act(settings, format, &["reversible", "done"], async |access: &Access| {
                    Ok(access.client.start(&asked).await?.id)
                })
                .await
            }
            MigrateCommand::List => list(settings, format).await,
            MigrateCommand::Show { id, watch: false } => show(id, settings, format).await,
            MigrateCommand::Show { id, watch: true } => follow(id, settings, format).await,
            MigrateCommand::Pause { id } => {
                act(settings, format, &["paused"], async |access: &Access| Ok(access.client.pause(id).await?.id)).await
            }
            MigrateCommand::Resume { id } => {
                let wanted = ["reversible", "done", "rolled_back"];
                act(settings, format, &wanted, async |access: &Access| Ok(access.client.resume(id).await?.id)).await
            }
            MigrateCommand::Cancel { id } => {
                let wanted = ["cancelled", "reversible"];
                act(settings, format, &wanted, async |access: &Access| Ok(access.client.cancel(id).await?.id)).await
            }
            MigrateCommand::Rollback { id } => {
                let wanted = ["rolled_back"];
                act(settings, format, &wanted, async |access: &Access| Ok(access.client.rollback(id).await?.id)).await
            }
            MigrateCommand::Finish { id, lost_node } => {
                let wanted: &[&str] =
                    if lost_node.is_some() { &["done", "rolled_back", "cancelled", "failed"] } else { &["done"] };
                let lost = lost_node.as_ref();
                act(settings, format, wanted, async |access: &Access| Ok(access.client.finish(id, lost).await?.id))
                    .await
            }
            MigrateCommand::Watchdog { once, every } => watchdog(settings, format, *once, *every).await,
            MigrateCommand::Ring { topology } => ring::run(topology.as_deref(), settings, format).await,
        }
    })
}

/// Looks at every pooler, once or until it is interrupted.
async fn watchdog(settings: &Settings, format: Format, once: bool, every: Duration) -> Result<Verdict, Failure> {
    if settings.postgres.poolers.is_empty() {
        return Err("no pooler is configured: add one to postgres.poolers of foreshard.toml".into());
    }
    let watchdog = Watchdog::new(settings.postgres.clone(), settings.migrate.fence_limit);
    if !once {
        tokio::select! {
            () = watchdog.run(every) => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        return Ok(Verdict::Done);
    }
    let resumed = watchdog.look().await?;
    output::print(format, &resumed, |resumed| match resumed.as_slice() {
        [] => "no pooler waits for a fence that has run out".to_owned(),
        some => some.iter().map(|what| format!("resumed {what}")).collect::<Vec<_>>().join("\n"),
    })?;
    Ok(Verdict::Done)
}

fn asked(args: &MigrateStartArgs) -> StartMigration {
    let (shard, source, target) = (args.shard.clone(), args.from.clone(), args.to.clone());
    StartMigration { shard, source, target, consistency: Consistency::Strict }
}

/// Asks for something, watches until the migration is at rest, and shows it. Done if it rests in one of the `wanted` states.
async fn act(
    settings: &Settings,
    format: Format,
    wanted: &[&str],
    ask: impl AsyncFnOnce(&Access) -> Result<MigrationId, Failure>,
) -> Result<Verdict, Failure> {
    let access = Access::open(settings).await?;
    let acted = async {
        let id = ask(&access).await?;
        watch(&access.client, &id).await
    };
    let watched = acted.await;
    let interrupted = matches!(watched, Ok(Watched::Interrupted(_)));
    let elsewhere = access.is_elsewhere();
    access.close(interrupted).await;
    let (shown, verdict) = match watched? {
        Watched::AtRest(shown) => {
            let reached = wanted.contains(&shown.migration.state.as_str());
            (shown, if reached { Verdict::Done } else { Verdict::No })
        }
        Watched::Interrupted(shown) => {
            eprintln!("{}", text::left(&shown.migration, elsewhere));
            (shown, Verdict::No)
        }
    };
    print_details(format, &shown)?;
    Ok(verdict)
}

fn print_details(format: Format, details: &MigrationDetails) -> Result<(), Failure> {
    output::print(format, &Shown::from(details), text::details)
}

/// A dry run: by the holder, or on what the store's file says. Refused by the checks is a "no".
async fn tell(args: &MigrateStartArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let asked = asked(args);
    let report: DryRunReport = match View::open(settings).await? {
        View::Holder(client) => client.dry_run(&asked).await?,
        View::File(state) => {
            let config = DriverConfig { retries: DRY_RUN_RETRIES, ..settings.migrate.driver() };
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            dry_run(*state, engine(settings)?, clock, config, &asked).await?
        }
    };
    let shown = DryRun::from(&report);
    let refused = shown.refused.is_some();
    output::print(format, &shown, text::dry_run)?;
    Ok(if refused { Verdict::No } else { Verdict::Done })
}

async fn list(settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let all = match View::open(settings).await? {
        View::Holder(client) => client.list().await?,
        View::File(state) => migrations(&state, SystemClock.model()),
    };
    output::print(format, &Listed::from(all.as_slice()), text::list)?;
    Ok(Verdict::Done)
}

async fn show(id: &MigrationId, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let found = match View::open(settings).await? {
        View::Holder(client) => client.show(id).await?,
        View::File(state) => details(&state, id, SystemClock.model())
            .ok_or_else(|| format!("migration {id} is not known; see `foreshard migrate list`"))?,
    };
    print_details(format, &found)?;
    Ok(Verdict::Done)
}

/// Watches a migration that some process carries; one that nobody carries is only shown.
async fn follow(id: &MigrationId, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let View::Holder(client) = View::open(settings).await? else { return show(id, settings, format).await };
    let (Watched::AtRest(shown) | Watched::Interrupted(shown)) = watch(&client, id).await?;
    print_details(format, &shown)?;
    Ok(Verdict::Done)
}
