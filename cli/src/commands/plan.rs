//! `foreshard plan`: one plan with its reasons, made from a history and the registry.

use foreshard_policy::{check, explain};
use std::path::Path;

use crate::args::PlanArgs;
use crate::commands::advice::{Advice, Source, advise};
use crate::commands::local::Local;
use crate::commands::{path, runtime};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Plans, has the plan checked, prints it.
pub fn run(args: &PlanArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let registry = path(&args.registry, &settings.registry.path);
    let local = Local::open(
        path(&args.history, &settings.data.history),
        &settings.data.events,
        registry,
        &settings.registry.model,
    )?;
    let topology = path(&args.topology, &settings.data.topology);
    let advice = runtime()?.block_on(advise(settings, topology, &local.history, Source::Local(&local), None))?;
    let plan = &advice.planned.plan;
    if let Some(shard) = args.why.as_ref().filter(|s| advice.input.placement.node_of(s).is_none()) {
        return Err(format!("shard {shard} is not placed on any node; see `foreshard data inspect`").into());
    }
    // What the checker refuses is a fault of the planner: shown, never saved as if it could be carried out.
    let violations = check(&advice.input, plan).err().unwrap_or_default();
    if let Some(folder) = args.save.as_ref().filter(|_| violations.is_empty()) {
        save(folder, &advice)?;
    }
    output::print(format, plan, |plan| {
        let notes: String = advice.notes.iter().map(|n| format!("note: {n}\n")).collect();
        let refused: String = violations.iter().map(|v| format!("refused by the checker: {v}\n")).collect();
        format!("{notes}{refused}{}", explain(plan, args.why.as_ref()))
    })?;
    if !violations.is_empty() && format == Format::Json {
        let words: Vec<String> = violations.iter().map(ToString::to_string).collect();
        eprintln!("refused by the checker: {}", words.join("; "));
    }
    Ok(if violations.is_empty() { Verdict::Done } else { Verdict::No })
}

#[derive(Debug, thiserror::Error)]
#[error("could not write {path}")]
struct Save {
    path: String,
    #[source]
    source: Failure,
}

fn save(folder: &Path, advice: &Advice) -> Result<(), Save> {
    let write = |name: &str, bytes: Result<Vec<u8>, serde_json::Error>| {
        let path = folder.join(name);
        let written = bytes.map_err(Failure::from).and_then(|b| std::fs::write(&path, b).map_err(Failure::from));
        written.map_err(|source| Save { path: path.display().to_string(), source })
    };
    let path = folder.display().to_string();
    std::fs::create_dir_all(folder).map_err(|source| Save { path, source: source.into() })?;
    write("input.json", serde_json::to_vec(&advice.input))?;
    write("plan.json", serde_json::to_vec_pretty(&advice.planned.plan))
}
