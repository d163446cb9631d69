//! `foreshard train --schedule`: a turn of training whenever it is due, until stopped.
//!
//! A turn that fails is told and the next one comes when it is due: what was wrong at night may be mended by then, and the
//! champion serves meanwhile. Turns that came due while one was running are not made up for.

use foreshard_domain::{Clock, SystemClock, Timestamp};
use foreshard_training::Schedule;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::args::TrainArgs;
use crate::commands::runtime;
use crate::commands::serve::interrupted;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Longest sleep: somebody may set the clock, or the machine may have slept.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Trains whenever `text` is due; ends well when it is asked to stop.
pub fn run(text: &str, args: &TrainArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let clock = SystemClock;
    let schedule = Schedule::new(text, &settings.data.zone, clock.model())?;
    let stop = Stop::on_signals()?;
    while let Some(due) = schedule.next_after(clock.model()) {
        if format == Format::Text {
            // Nobody may be listening any more; the trainer goes on all the same.
            _ = output::say(&format!("next training: {due} ({text}, {})", settings.data.zone));
        }
        if !stop.wait_until(due, &clock) {
            break;
        }
        match super::turn(args, settings, format, &|| stop.asked()) {
            Ok(_) => prune(args, settings),
            Err(error) => eprintln!("{}", output::chain(error.as_ref())),
        }
    }
    Ok(Verdict::Done)
}

/// Versions beyond those to keep are removed; that this fails is told and no reason to end.
fn prune(args: &TrainArgs, settings: &Settings) {
    let pruned = super::registry(args, settings)
        .and_then(|registry| Ok(registry.prune(&settings.registry.model, settings.train.keep)?));
    match pruned {
        Ok(gone) if !gone.is_empty() => tracing::info!(versions = ?gone, "old versions were removed"),
        Ok(_) => {}
        Err(error) => eprintln!("{}", output::chain(error.as_ref())),
    }
}

/// Whether the process was asked to stop.
struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Set by Ctrl-C or a polite request.
    fn on_signals() -> Result<Self, Failure> {
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let (runtime, told) = (runtime()?, Arc::clone(&shared));
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let waited = runtime.block_on(interrupted());
            if let Err(error) = waited {
                tracing::error!(%error, "signals cannot be waited for; the process stops");
            }
            *told.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            told.1.notify_all();
        })?;
        Ok(Self(shared))
    }

    fn asked(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until a moment; false if it was asked to stop before.
    fn wait_until(&self, due: Timestamp, clock: &dyn Clock) -> bool {
        let mut asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if *asked {
                return false;
            }
            let left = clock.real_duration(due.since_ms(clock.model()));
            if left.is_zero() {
                return true;
            }
            let waited = self.0.1.wait_timeout(asked, left.min(LOOK_AGAIN));
            asked = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
