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
    let local = Local::open(path(&args.history, &settings.data.history), registry, &settings.registry.model)?;
    let topology = path(&args.topology, &settings.data.topology);
    let advice = runtime()?.block_on(advise(settings, topology, &local.history, Source::Local(&local)))?;
    let plan = &advice.planned.plan;
    if let Some(shard) = args.why.as_ref().filter(|s| advice.input.placement.node_of(s).is_none()) {
        return Err(format!("shard {shard} is not placed on any node; see `foreshard data inspect`").into());
    }
    if let Some(folder) = &args.save {
        save(folder, &advice)?;
    }
    output::print(format, plan, |plan| {
        let notes: String = advice.notes.iter().map(|n| format!("note: {n}\n")).collect();
        format!("{notes}{}", explain(plan, args.why.as_ref()))
    })?;
    if let Err(violations) = check(&advice.input, plan) {
        let words: Vec<String> = violations.iter().map(ToString::to_string).collect();
        return Err(format!("the independent checker refuses this plan: {}", words.join("; ")).into());
    }
    Ok(Verdict::Done)
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
