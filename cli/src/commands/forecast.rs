//! `foreshard forecast`: one query, answered by a server or from the registry.

use foreshard_api::{ForecastClient, ForecastQuery};
use foreshard_domain::{QuantileForecast, QuantileLevels, SeriesForecast};

use crate::args::ForecastArgs;
use crate::commands::local::Local;
use crate::commands::{path, until_done};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Steps shown to people: enough to see the shape.
const SHOWN: usize = 12;

/// Asks and prints.
pub fn run(args: &ForecastArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let forecasts = match &args.server {
        Some(server) => from_server(server, args, settings)?,
        None => from_registry(args, settings)?,
    };
    output::print(format, &forecasts, |f| text(f))?;
    Ok(Verdict::Done)
}

fn from_server(server: &str, args: &ForecastArgs, settings: &Settings) -> Result<Vec<SeriesForecast>, Failure> {
    let query = ForecastQuery {
        shards: args.shards.clone(),
        metrics: args.metrics.clone(),
        product: args.product,
        levels: args.levels.clone(),
    };
    let credentials = settings.client.credentials()?;
    until_done(async {
        let client = ForecastClient::connect_with(server, &credentials).await?;
        Ok(client.forecast(&query).await?)
    })
}

fn from_registry(args: &ForecastArgs, settings: &Settings) -> Result<Vec<SeriesForecast>, Failure> {
    let registry = path(&args.registry, &settings.registry.path);
    let (history, events) = (path(&args.history, &settings.data.history), path(&args.events, &settings.data.events));
    let local = Local::open(history, events, registry, &settings.registry.model)?;
    let forecasts = local.forecast(&args.shards, &args.metrics, args.product)?;
    if args.levels.is_empty() {
        return Ok(forecasts);
    }
    let mut levels = args.levels.clone();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    forecasts.into_iter().map(|f| at_levels(f, &levels)).collect()
}

/// The same forecast at other levels, interpolated between the trained ones.
fn at_levels(mut series: SeriesForecast, levels: &[f64]) -> Result<SeriesForecast, Failure> {
    let trained = &series.forecast;
    let mut values = Vec::with_capacity(trained.horizon() * levels.len());
    for step in 0..trained.horizon() {
        for level in levels {
            values.push(trained.quantile(step, *level)?);
        }
    }
    series.forecast = QuantileForecast::new(QuantileLevels::new(levels.to_vec())?, values)?;
    Ok(series)
}

fn text(forecasts: &[SeriesForecast]) -> String {
    let mut text = String::new();
    for f in forecasts {
        let p = &f.provenance;
        let by = p.version.as_ref().map_or("no model".to_owned(), ToString::to_string);
        let fallback = p.fallback.map_or(String::new(), |f| format!(", fallback: {}", f.code()));
        let missing = f64::from(p.missing_share) * 100.0;
        text.push_str(&format!(
            "\n{} {} from {} ({by}{fallback}; {missing:.0} % of the context missing)\n",
            f.shard, f.metric, f.issued_at
        ));
        let levels = f.forecast.levels().as_slice();
        let header: Vec<String> =
            std::iter::once("time".to_owned()).chain(levels.iter().map(|l| format!("q{l}"))).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let row = |step: usize| {
            let ts = f.issued_at.plus_steps(i64::try_from(step + 1).unwrap_or(i64::MAX), f.step);
            let values = f.forecast.row(step).unwrap_or(&[]).iter().map(|v| format!("{v:.2}"));
            std::iter::once(ts.to_string()).chain(values).collect::<Vec<String>>()
        };
        let rows: Vec<Vec<String>> = (0..f.forecast.horizon().min(SHOWN)).map(row).collect();
        text.push_str(&output::table(&header, &rows));
        if f.forecast.horizon() > SHOWN {
            text.push_str(&format!("... and {} more steps (--output json has all)\n", f.forecast.horizon() - SHOWN));
        }
    }
    if forecasts.is_empty() { "no series matches".to_owned() } else { text.trim_start().to_owned() }
}
