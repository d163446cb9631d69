//! `foreshard serve`: the serving process, until interrupted.

use foreshard_api::Secret;
use foreshard_domain::SystemClock;
use foreshard_serving::{ServingConfig, start};
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::ServeArgs;
use crate::commands::{path, until_done};
use crate::layers::variable;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Holds the tokens for those who have no file for them, in the form of the file.
const TOKENS: &str = "FORESHARD_TOKENS";

#[derive(Serialize)]
struct Serving {
    address: String,
    http: Option<String>,
    history: String,
    registry: String,
}

/// Serves until Ctrl-C, then drains.
pub fn run(args: &ServeArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let config = config(args, settings)?;
    let shown = (config.history.display().to_string(), config.registry.display().to_string());
    until_done(async {
        // Before anybody can know that it serves: a request to stop must never find the system's own answer to it.
        let stopping = interruption()?;
        let running = start(config, Arc::new(SystemClock)).await?;
        let serving =
            Serving { address: running.endpoint(), http: running.http_endpoint(), history: shown.0, registry: shown.1 };
        output::print(format, &serving, |s| {
            let http = s.http.as_ref().map_or(String::new(), |http| format!("; health and metrics on {http}"));
            format!("serving on {} (history {}, registry {}){http}; Ctrl-C stops", s.address, s.history, s.registry)
        })?;
        stopping.await?;
        running.shutdown().await?;
        Ok(Verdict::Done)
    })
}

/// Waits for Ctrl-C or a polite request to stop.
pub async fn interrupted() -> Result<(), Failure> {
    interruption()?.await
}

/// The same, heard from now on.
fn interruption() -> Result<impl Future<Output = Result<(), Failure>>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut pressed = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = pressed.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

fn config(args: &ServeArgs, settings: &Settings) -> Result<ServingConfig, Failure> {
    let serve = &settings.serve;
    let listen = address(args.listen.as_ref().unwrap_or(&serve.listen))?;
    let http = match args.http.as_ref().unwrap_or(&serve.http).as_str() {
        "none" => None,
        http => Some(address(http)?),
    };
    Ok(ServingConfig {
        listen,
        http,
        tls: serve.tls()?,
        without_tls: serve.without_tls,
        tokens: Some(serve.tokens.clone()).filter(|file| !file.as_os_str().is_empty()),
        token_text: variable(TOKENS)?.map(Secret::new),
        history: path(&args.history, &settings.data.history).to_owned(),
        registry: path(&args.registry, &settings.registry.path).to_owned(),
        model: settings.registry.model.clone(),
        events: Some(path(&args.events, &settings.data.events).to_owned()).filter(|file| !file.as_os_str().is_empty()),
        queue_rows: serve.queue_rows,
        queue_wait: serve.queue_wait,
        cache_mib: serve.cache_mib,
        scenario_mib: serve.scenario_mib,
        connections: serve.connections,
        connection_age: serve.connection_age,
        connection_grace: serve.connection_grace,
        drain_for: serve.drain_for,
        flush_every: serve.flush_every,
        reload_every: serve.reload_every,
        context_days: serve.context_days,
        stale_after: serve.stale_after,
        ahead_at_most: serve.ahead_at_most,
        received: serve.remote_write.series.clone(),
        pulled: serve.prometheus.config()?,
        exported: serve.export.config()?,
        ..ServingConfig::default()
    })
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    text.parse().map_err(|_| format!("{text} is no address to listen on, such as 127.0.0.1:7654").into())
}
