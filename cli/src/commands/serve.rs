//! `foreshard serve`: the serving process, until interrupted.

use foreshard_domain::SystemClock;
use foreshard_serving::{ServingConfig, start};
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::args::ServeArgs;
use crate::commands::{path, runtime};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

#[derive(Serialize)]
struct Serving {
    address: String,
    history: String,
    registry: String,
}

/// Serves until Ctrl-C, then drains.
pub fn run(args: &ServeArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let config = config(args, settings)?;
    let shown = (config.history.display().to_string(), config.registry.display().to_string());
    runtime()?.block_on(async {
        let running = start(config, Arc::new(SystemClock)).await?;
        let serving = Serving { address: format!("http://{}", running.addr()), history: shown.0, registry: shown.1 };
        output::print(format, &serving, |s| {
            format!("serving on {} (history {}, registry {}); Ctrl-C stops", s.address, s.history, s.registry)
        })?;
        interrupted().await?;
        running.shutdown().await?;
        Ok(Verdict::Done)
    })
}

/// Waits for Ctrl-C or a polite request to stop.
pub async fn interrupted() -> Result<(), Failure> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn config(args: &ServeArgs, settings: &Settings) -> Result<ServingConfig, Failure> {
    let listen = args.listen.as_ref().unwrap_or(&settings.serve.listen);
    let listen: SocketAddr =
        listen.parse().map_err(|_| format!("{listen} is no address to listen on, such as 127.0.0.1:7654"))?;
    if !listen.ip().is_loopback() {
        return Err(format!("{listen} is no loopback address; without TLS anybody could read and ingest there").into());
    }
    Ok(ServingConfig {
        listen,
        history: path(&args.history, &settings.data.history).to_owned(),
        registry: path(&args.registry, &settings.registry.path).to_owned(),
        model: settings.registry.model.clone(),
        events: Some(path(&args.events, &settings.data.events).to_owned()).filter(|file| !file.as_os_str().is_empty()),
        queue_rows: settings.serve.queue_rows,
        scenario_mib: settings.serve.scenario_mib,
        flush_every: settings.serve.flush_every,
        reload_every: settings.serve.reload_every,
        context_days: settings.serve.context_days,
        stale_after: settings.serve.stale_after,
        ahead_at_most: settings.serve.ahead_at_most,
        ..ServingConfig::default()
    })
}
