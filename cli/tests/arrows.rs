//! The dependencies between crates point one way, as `ARCHITECTURE.md` draws them, and some are absent on purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What each crate may depend on.
const ARROWS: [(&str, &[&str]); 11] = [
    ("domain", &[]),
    ("datasets", &["domain"]),
    ("model", &["domain", "datasets"]),
    ("training", &["domain", "datasets", "model"]),
    ("api", &["domain"]),
    ("serving", &["domain", "datasets", "model", "api"]),
    ("policy", &["domain"]),
    ("migrator", &["domain", "policy"]),
    ("control", &["domain", "api", "datasets", "policy", "migrator"]),
    ("report", &["domain"]),
    ("cli", &["domain", "datasets", "model", "training", "api", "serving", "policy", "migrator", "control", "report"]),
];

/// What must not be found in a crate, however far away: the reason is in `ARCHITECTURE.md`.
const ABSENT: [(&str, &[&str]); 3] = [
    ("domain", &["tokio", "arrow", "candle-core", "tonic", "redb", "fjall"]),
    ("policy", &["tokio", "arrow", "parquet", "candle-core", "tonic"]),
    ("api", &["candle-core", "arrow", "parquet"]),
];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn manifest(folder: &str) -> toml::Table {
    std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

fn names(table: &toml::Table, section: &str) -> BTreeSet<String> {
    table.get(section).and_then(|t| t.as_table()).map(|t| t.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn arrows_point_one_way() {
    let members = std::fs::read_to_string(root().join("Cargo.toml")).unwrap().parse::<toml::Table>().unwrap();
    let members: BTreeSet<String> =
        members["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().to_owned()).collect();
    assert_eq!(members, ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect(), "every crate has its arrows here");
    for (name, allowed) in ARROWS {
        let manifest = manifest(name);
        let mut used = names(&manifest, "dependencies");
        used.extend(names(&manifest, "dev-dependencies"));
        for other in used.iter().filter_map(|d| d.strip_prefix("foreshard-")) {
            assert!(allowed.contains(&other), "{name} must not depend on {other}");
        }
    }
}

#[test]
fn what_is_absent_stays_absent() {
    let lock: toml::Table = std::fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let dependencies = package.get("dependencies").and_then(|d| d.as_array()).cloned().unwrap_or_default();
        let bare = dependencies.iter().map(|d| d.as_str().unwrap().split(' ').next().unwrap().to_owned());
        edges.entry(package["name"].as_str().unwrap().to_owned()).or_default().extend(bare);
    }
    for (name, banned) in ABSENT {
        // The lock file does not tell dev-dependencies apart, so the walk starts from the manifest's own.
        let mut todo: Vec<String> = names(&manifest(name), "dependencies").into_iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = todo.pop() {
            assert!(!banned.contains(&next.as_str()), "{name} reaches {next}");
            // Workspace crates are checked by their own manifests; their lock entries hold dev-dependencies too.
            let own = ARROWS.iter().find(|(n, _)| next.strip_prefix("foreshard-") == Some(n));
            let further = match own {
                Some((folder, _)) => names(&manifest(folder), "dependencies"),
                None => edges.get(&next).cloned().unwrap_or_default(),
            };
            todo.extend(further.into_iter().filter(|d| seen.insert(d.clone())));
        }
    }
}

/// Files that only tests are made of: `tests.rs`, `test_*.rs`, and what lies in a folder `tests`.
fn is_test_code(path: &Path) -> bool {
    let named =
        |name: &str| name == "tests" || name == "tests.rs" || (name.starts_with("test_") && name.ends_with(".rs"));
    path.components().any(|part| part.as_os_str().to_str().is_some_and(named))
}

#[test]
fn files_stay_readable_and_quiet() {
    let mut wrong = Vec::new();
    for (name, _) in ARROWS {
        let mut todo = vec![root().join(name).join("src")];
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                continue;
            }
            if path.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().count();
            if lines > 500 {
                wrong.push(format!("{} has {lines} lines; split it by theme", path.display()));
            }
            let library = name != "cli" && !is_test_code(&path);
            let printing = text.lines().take_while(|l| !l.contains("#[cfg(test)]"));
            if library
                && printing
                    .clone()
                    .any(|l| l.trim_start().starts_with("println!") || l.trim_start().starts_with("eprintln!"))
            {
                wrong.push(format!("{} prints; a library logs or returns", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
