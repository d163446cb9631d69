//! Settings in layers: defaults < file < environment, with all errors at once. Flags go before all of them; each command
//! looks at its own first.
//!
//! Which options there are is told by a tree: the defaults, with an example value for each option that has none. A value of that
//! tree that is no table, or an empty one (a table whose keys the operator names), is one option, given as a whole.
//!
//! Each layer is a tree of TOML values. What a layer gives is laid over the defaults one option at a time, so that every
//! wrong option is named together with where it came from, not only the first.

use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Prefix of the environment variables that set options.
const PREFIX: &str = "FORESHARD_";

/// Variables with that prefix which are no options: the settings file, the log filter, what computes the network, and secrets,
/// which belong in no settings: the tokens of a client, of a server, and for Prometheus.
const NOT_OPTIONS: [&str; 6] = [
    "FORESHARD_CONFIG",
    "FORESHARD_LOG",
    "FORESHARD_PROMETHEUS_TOKEN",
    "FORESHARD_SIMD",
    "FORESHARD_TOKEN",
    "FORESHARD_TOKENS",
];

/// One thing wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The option, as `section.key`; empty for a whole file.
    pub option: String,
    /// File, variable or flag.
    pub origin: String,
    /// What is wrong and how to mend it.
    pub what: String,
}

/// All that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings have {} error{}", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        for Problem { option, origin, what } in &self.0 {
            let separator = if option.is_empty() { "" } else { ": " };
            write!(f, "\n  - {option}{separator}{what} ({origin})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One layer: options by their dotted path, each with its origin.
#[derive(Debug, Clone, Default)]
pub struct Layer(Vec<(String, Value, String)>);

impl Layer {
    /// Options of a settings file.
    pub fn file(path: &Path, known: &Table) -> Result<Self, Problems> {
        let origin = path.display().to_string();
        let problem = |what: String| Problems(vec![Problem { option: String::new(), origin: origin.clone(), what }]);
        let text = std::fs::read_to_string(path).map_err(|e| problem(format!("cannot be read: {e}")))?;
        let table: Table = text.parse().map_err(|e: toml::de::Error| problem(format!("is no TOML: {e}")))?;
        let mut options = Vec::new();
        given("", &Value::Table(table), known, &mut |path, value| options.push((path, value.clone(), origin.clone())));
        // A section whose options are all commented out says nothing; if it is unknown, that is found like any option.
        Ok(Self(options))
    }

    /// Options of environment variables: `FORESHARD_SERVE_LISTEN` sets `serve.listen`. Values are read as TOML, else as
    /// text. Variables of others may hold what they like.
    pub fn environment(vars: impl Iterator<Item = (OsString, OsString)>, options: &Table) -> Result<Self, Problems> {
        let mut known = BTreeMap::new();
        leaves("", &Value::Table(options.clone()), &mut |path, value| {
            known.insert(format!("{PREFIX}{}", path.replace('.', "_").to_uppercase()), (path, value.clone()));
        });
        let (mut options, mut problems) = (Vec::new(), Vec::new());
        for (name, text) in vars.filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes())) {
            let name = name.to_string_lossy().into_owned();
            if NOT_OPTIONS.contains(&name.as_str()) {
                continue;
            }
            let mut problem = |option: &str, what: String| {
                let origin = format!("environment variable {name}");
                problems.push(Problem { option: option.to_owned(), what, origin });
            };
            match (known.get(&name), text.to_str()) {
                (Some((path, default)), Some(text)) => options.push((path.clone(), read_value(text, default), name)),
                (Some((path, _)), None) => problem(path, "holds what is no text (UTF-8)".to_owned()),
                (None, _) => problem("", format!("sets no known option{}", nearest(&name, known.keys()))),
            }
        }
        if problems.is_empty() { Ok(Self(options)) } else { Err(Problems(problems)) }
    }
}

/// What a variable that is no option holds, if it is set.
///
/// # Errors
/// If that is no text: it must not look like a variable that is not set.
pub fn variable(name: &str) -> Result<Option<String>, String> {
    match std::env::var_os(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(format!("the environment variable {name} holds what is no text (UTF-8)")),
    }
}

fn read_value(text: &str, default: &Value) -> Value {
    if default.is_str() {
        return Value::String(text.to_owned());
    }
    let parsed = format!("x = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("x"));
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Calls `found` with each value that is no table, by its dotted path.
fn leaves(prefix: &str, value: &Value, found: &mut dyn FnMut(String, &Value)) {
    match value {
        Value::Table(table) if !table.is_empty() || prefix.is_empty() => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                leaves(&path, value, found);
            }
        }
        _ => found(prefix.to_owned(), value),
    }
}

/// As [`leaves`], for what somebody gives: what is one option is not taken apart.
fn given(prefix: &str, value: &Value, known: &Table, found: &mut dyn FnMut(String, &Value)) {
    let whole = at(known, prefix).is_some_and(|option| option.as_table().is_none_or(Table::is_empty));
    match value {
        Value::Table(table) if prefix.is_empty() || !table.is_empty() && !whole => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                given(&path, value, known, found);
            }
        }
        _ => found(prefix.to_owned(), value),
    }
}

fn at<'t>(root: &'t Table, path: &str) -> Option<&'t Value> {
    let mut parts = path.split('.');
    let first = parts.next().and_then(|key| root.get(key));
    parts.try_fold(first, |value, key| value?.as_table().map(|t| t.get(key))).flatten()
}

fn exists(root: &Table, path: &str) -> bool {
    at(root, path).is_some()
}

fn is_section(root: &Table, path: &str) -> bool {
    at(root, path).is_some_and(Value::is_table)
}

fn set(root: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            root.insert(path.to_owned(), value);
        }
        Some((key, rest)) => {
            let inner = root.entry(key).or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// Lays `layers` over `defaults`, lowest first, and reads the result. `known` tells which options there are.
///
/// # Errors
/// [`Problems`]: every unknown option and every value that does not fit its option.
pub fn resolve<T: DeserializeOwned>(defaults: &Table, known: &Table, layers: Vec<Layer>) -> Result<T, Problems> {
    let mut problems = Vec::new();
    let mut merged = defaults.clone();
    for (path, value, origin) in layers.into_iter().flat_map(|layer| layer.0) {
        if !exists(known, &path) {
            let mut options = Vec::new();
            leaves("", &Value::Table(known.clone()), &mut |p, _| options.push(p));
            let what = format!("is no known option{}", nearest(&path, options.iter()));
            problems.push(Problem { option: path, origin, what });
            continue;
        }
        if value.as_table().is_some_and(Table::is_empty) && is_section(known, &path) {
            continue;
        }
        let mut alone = defaults.clone();
        set(&mut alone, &path, value.clone());
        if let Err(error) = alone.try_into::<T>() {
            let what = error.message().trim().replace('\n', "; ");
            problems.push(Problem { option: path, origin, what });
            continue;
        }
        set(&mut merged, &path, value);
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    merged.try_into::<T>().map_err(|error| {
        let what = error.message().trim().to_owned();
        Problems(vec![Problem { option: String::new(), origin: "all layers together".into(), what }])
    })
}

/// `; did you mean X?` for a name that is close to a known one.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let best = known.map(|k| (distance(name, k), k)).min();
    best.filter(|(d, _)| *d <= 3).map_or(String::new(), |(_, k)| format!("; did you mean {k}?"))
}

/// Levenshtein distance, for suggestions only.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The settings file to read: the one that was named, else `foreshard.toml` here if there is one.
pub fn settings_file(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| Some(PathBuf::from("foreshard.toml")).filter(|p| p.exists()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        port: u16,
        name: String,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        serve: Inner,
        seed: u64,
        nodes: BTreeMap<String, Inner>,
        pace: Option<f64>,
    }

    fn outer(port: u16, name: &str, seed: u64) -> Outer {
        Outer { serve: Inner { port, name: name.into() }, seed, nodes: BTreeMap::new(), pace: None }
    }

    fn defaults() -> Table {
        Table::try_from(outer(1, "a", 7)).unwrap()
    }

    fn known() -> Table {
        Table::try_from(Outer { pace: Some(1.0), ..outer(1, "a", 7) }).unwrap()
    }

    fn read(path: &Path) -> Result<Outer, Problems> {
        resolve(&defaults(), &known(), vec![Layer::file(path, &known())?])
    }

    #[test]
    fn later_layers_win() {
        let env = [("FORESHARD_SERVE_PORT".into(), "3".into()), ("FORESHARD_SERVE_NAME".into(), "5".into())];
        let env = Layer::environment(env.into_iter(), &known()).unwrap();
        let file = Layer(vec![
            ("seed".into(), Value::Integer(9), "file".into()),
            ("serve.port".into(), Value::Integer(2), "file".into()),
        ]);
        let got: Outer = resolve(&defaults(), &known(), vec![file, env]).unwrap();
        assert_eq!(got, outer(3, "5", 9));
    }

    #[test]
    fn all_errors_at_once_with_origin_and_suggestion() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("foreshard.toml");
        std::fs::write(&path, "sead = 1\n[serve]\nport = 70000\nname = 3\n").unwrap();
        let error = read(&path).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.0.len(), 3, "{text}");
        assert!(text.contains("sead: is no known option; did you mean seed?"), "{text}");
        assert!(text.contains("serve.port: ") && text.contains("serve.name: "), "{text}");
        assert!(text.contains("foreshard.toml"), "{text}");
    }

    #[test]
    fn a_section_without_options_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("foreshard.toml");
        std::fs::write(&path, "seed = 9\n[serve]\n# port = 5\n").unwrap();
        let got: Outer = read(&path).unwrap();
        assert_eq!((got.seed, got.serve.port), (9, 1));
        std::fs::write(&path, "[sreve]\n").unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains("sreve: is no known option"), "{error}");
    }

    #[test]
    fn tables_with_names_of_the_operator_and_options_without_a_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("foreshard.toml");
        std::fs::write(
            &path,
            "pace = 2.5\n[nodes.\"db1.example\"]\nport = 5\nname = \"x\"\n[nodes.b]\nport = 6\nname = \"y\"\n",
        )
        .unwrap();
        let got = read(&path).unwrap();
        assert_eq!(got.pace, Some(2.5));
        assert_eq!(got.nodes.keys().collect::<Vec<_>>(), ["b", "db1.example"]);
        assert_eq!(got.nodes["db1.example"], Inner { port: 5, name: "x".into() });
        std::fs::write(&path, "[nodes.b]\nport = 6\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("nodes: ") && error.contains("name"), "{error}");
        let env = [("FORESHARD_PACE".into(), "3".into())];
        let env = Layer::environment(env.into_iter(), &known()).unwrap();
        let got: Outer = resolve(&defaults(), &known(), vec![env]).unwrap();
        assert_eq!(got.pace, Some(3.0));
    }

    #[test]
    fn unknown_variables_are_errors() {
        let env = [("FORESHARD_SERVE_PRT".into(), "3".into()), ("FORESHARD_CONFIG".into(), "x".into())];
        let error = Layer::environment(env.into_iter(), &known()).unwrap_err();
        assert!(error.to_string().contains("did you mean FORESHARD_SERVE_PORT?"), "{error}");
    }

    #[test]
    fn what_is_no_text_harms_nobody_and_is_told_of_options() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = || OsString::from_vec(vec![b'x', 0xff]);
        let others = [("OTHER".into(), odd()), (odd(), odd())];
        assert!(Layer::environment(others.into_iter(), &known()).unwrap().0.is_empty());
        let ours = [("FORESHARD_SERVE_NAME".into(), odd()), ("FORESHARD_SEED".into(), "1".into())];
        let error = Layer::environment(ours.into_iter(), &known()).unwrap_err().to_string();
        assert!(
            error.contains("serve.name: holds what is no text") && error.contains("FORESHARD_SERVE_NAME"),
            "{error}"
        );
    }
}
