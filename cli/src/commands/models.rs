//! `foreshard models`: what is in the registry, and which version is in charge.

use foreshard_training::{Registry, VersionEntry};
use serde::Serialize;

use crate::args::{ModelsCommand, RegistryArgs};
use crate::commands::path;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Runs one of the subcommands.
pub fn run(command: &ModelsCommand, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let (ModelsCommand::List(at)
    | ModelsCommand::Show { at, .. }
    | ModelsCommand::Promote { at, .. }
    | ModelsCommand::Rollback(at)) = command;
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
    }
}

fn open(at: &RegistryArgs, settings: &Settings) -> Result<(Registry, String), Failure> {
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
    trained_from: String,
    trained_until: String,
    products: Vec<String>,
}

fn list(registry: &Registry, model: &str, format: Format) -> Result<Verdict, Failure> {
    let mut versions = Vec::new();
    for VersionEntry { number, labels, .. } in registry.list(model)? {
        let manifest = registry.show(model, number)?;
        let (from, until) = (manifest.trained_from.to_string(), manifest.trained_until.to_string());
        let products = manifest.products.iter().map(|p| p.name.clone()).collect();
        versions.push(Entry { number, labels, trained_from: from, trained_until: until, products });
    }
    output::print(format, &Listed { model: model.to_owned(), versions }, |l| {
        if l.versions.is_empty() {
            return format!("model {} has no version yet; `foreshard train` makes one", l.model);
        }
        let row = |e: &Entry| {
            vec![
                e.number.to_string(),
                e.labels.join(", "),
                e.trained_from.clone(),
                e.trained_until.clone(),
                e.products.join(", "),
            ]
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
