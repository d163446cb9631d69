//! `foreshard models`: what is in the registry, and which version is in charge.

use foreshard_training::{Registry, VersionEntry};
use serde::Serialize;

use crate::args::{ModelsCommand, RegistryArgs};
use crate::commands::path;
use crate::commands::train::drift;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Runs one of the subcommands.
pub fn run(command: &ModelsCommand, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let (ModelsCommand::List(at)
    | ModelsCommand::Show { at, .. }
    | ModelsCommand::Promote { at, .. }
    | ModelsCommand::Rollback(at)
    | ModelsCommand::Drift { at, .. }) = command;
    let (registry, model) = open(at, settings)?;
    match command {
        ModelsCommand::List(_) => list(&registry, &model, format),
        ModelsCommand::Show { number, .. } => show(&registry, &model, *number, format),
        ModelsCommand::Promote { number, .. } => {
            registry.promote(&model, *number)?;
            list(&registry, &model, format)
        }
        ModelsCommand::Rollback(_) => {
            registry.rollback(&model)?;
            list(&registry, &model, format)
        }
        ModelsCommand::Drift { history, events, .. } => drift::run(at, (history, events), settings, format),
    }
}

/// The registry and the model that are meant.
pub fn open(at: &RegistryArgs, settings: &Settings) -> Result<(Registry, String), Failure> {
    let registry = Registry::open(path(&at.registry, &settings.registry.path))?;
    Ok((registry, at.model.clone().unwrap_or_else(|| settings.registry.model.clone())))
}

#[derive(Serialize)]
struct Listed {
    model: String,
    versions: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    number: u64,
    labels: Vec<&'static str>,
    trained_from: Option<String>,
    trained_until: Option<String>,
    products: Vec<String>,
    /// Why it cannot be loaded, if it cannot.
    damaged: Option<String>,
}

fn entry(registry: &Registry, model: &str, VersionEntry { number, labels, .. }: VersionEntry) -> Entry {
    match registry.show(model, number) {
        Ok(manifest) => Entry {
            number,
            labels,
            trained_from: Some(manifest.trained_from.to_string()),
            trained_until: Some(manifest.trained_until.to_string()),
            products: manifest.products.iter().map(|p| p.name.clone()).collect(),
            damaged: None,
        },
        // An operator lists versions to find a good one: a bad one must not hide it.
        Err(error) => {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Entry { number, labels, trained_from: None, trained_until: None, products: Vec::new(), damaged: Some(why) }
        }
    }
}

fn list(registry: &Registry, model: &str, format: Format) -> Result<Verdict, Failure> {
    let versions = registry.list(model)?.into_iter().map(|v| entry(registry, model, v)).collect();
    output::print(format, &Listed { model: model.to_owned(), versions }, |l| {
        if l.versions.is_empty() {
            return format!("model {} has no version yet; `foreshard train` makes one", l.model);
        }
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let row = |e: &Entry| {
            let what = e.damaged.as_ref().map_or_else(|| e.products.join(", "), |why| format!("damaged: {why}"));
            vec![e.number.to_string(), e.labels.join(", "), or(&e.trained_from), or(&e.trained_until), what]
        };
        let rows: Vec<_> = l.versions.iter().map(row).collect();
        output::table(&["version", "labels", "trained from", "trained until", "products"], &rows)
    })?;
    Ok(Verdict::Done)
}

fn show(registry: &Registry, model: &str, number: u64, format: Format) -> Result<Verdict, Failure> {
    let manifest = registry.show(model, number)?;
    let card = std::fs::read_to_string(registry.path(model, number)?.join("card.md"))?;
    output::print(format, &manifest, |_| card)?;
    Ok(Verdict::Done)
}
