//! The commands on real load traces, and the independent scorer's opinion of the forecasts file.
//!
//! The traces and the scorer lie beside the checkout; where they are missing the tests say so and pass. The scorer needs
//! numpy, pandas and pyarrow: `scripts/test` installs them into a virtual environment and names it in `SCORER_PYTHON`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Server, beside, json, run, trained};

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} is no number in {value}"))
}

/// What the scorer says of a forecasts file; `None`, loudly, where it cannot run.
fn scorer(history: &Path, protocol: &str, forecasts: &Path) -> Option<Value> {
    let script = beside("score/score.py")?;
    let Ok(python) = std::env::var("SCORER_PYTHON") else {
        println!("SKIPPED: SCORER_PYTHON names no python with numpy, pandas and pyarrow");
        return None;
    };
    let output = Command::new(python)
        .args([script.as_os_str(), "--protocol".as_ref(), protocol.as_ref(), "--history".as_ref(), history.as_os_str()])
        .args(["--forecasts".as_ref(), forecasts.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "the scorer refuses: {}", String::from_utf8_lossy(&output.stdout));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// The figures of the contender with this role.
fn contender<'a>(report: &'a Value, role: &str) -> &'a Value {
    let all = report["sections"][0]["contenders"].as_array().unwrap();
    let found = all.iter().find(|c| c["role"] == role);
    &found.unwrap_or_else(|| panic!("no {role} in {report}"))["scores"]
}

fn evaluate_agrees(file: &str, protocol: &str) {
    let Some(history) = beside(file) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (forecasts, report) = (folder.path().join("forecasts.parquet"), folder.path().join("report.json"));
    let (history_arg, forecasts_arg, report_arg) =
        (history.display().to_string(), forecasts.display().to_string(), report.display().to_string());
    run(
        folder.path(),
        &[
            "evaluate",
            "--history",
            &history_arg,
            "--protocol",
            protocol,
            "--forecasts",
            &forecasts_arg,
            "--report",
            &report_arg,
            "--compare",
            "fast",
        ],
        0,
    );
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    let (ours, naive) = (contender(&report, "subject"), contender(&report, "seasonal_naive"));
    println!("{file} {protocol}: wql {} naive {}", number(ours, "/wql"), number(naive, "/wql"));
    assert!(number(ours, "/wql") < number(naive, "/wql"), "the model loses to seasonal naive");
    let Some(theirs) = scorer(&history, protocol, &forecasts) else { return };
    for name in ["wql", "sql_geo", "mase_median", "coverage_80", "width_80"] {
        let (a, b) = (number(ours, &format!("/{name}")), number(&theirs, &format!("/overall/{name}")));
        assert!((a - b).abs() <= 5e-4 * b.abs().max(0.1), "{name}: report {a}, scorer {b}");
    }
    let (a, b) = (number(ours, "/event/brier/p_any"), number(&theirs, "/overall/event/brier/p_any"));
    assert!((a - b).abs() <= 5e-4, "brier of p_any: report {a}, scorer {b}");
}

/// Four days before the windows are too little for the next day: the product falls back by itself and says so.
#[test]
fn a_history_too_short_for_training_is_answered_by_seasonal_naive() {
    let Some(history) = beside("data/mscloud_rate_1min.parquet") else { return };
    let folder = tempfile::tempdir().unwrap();
    let report =
        json(folder.path(), &["evaluate", "--history", &history.display().to_string(), "--protocol", "15T"], 0);
    assert_eq!(number(contender(&report, "subject"), "/wql"), number(contender(&report, "seasonal_naive"), "/wql"));
    let facts = report["provenance"].as_array().unwrap();
    let said = facts.iter().find(|f| f["name"] == "fallback").unwrap();
    assert!(said["value"].as_str().unwrap().starts_with("seasonal naive, because product 15T has 5 series"), "{said}");
}

#[test]
fn evaluate_web_services_5t() {
    evaluate_agrees("data/web_services.parquet", "5T");
}

#[test]
fn evaluate_web_services_15t() {
    evaluate_agrees("data/web_services.parquet", "15T");
}

#[test]
fn evaluate_bitbrains_5t() {
    evaluate_agrees("data/bitbrains_faststorage.parquet", "5T");
}

#[test]
fn evaluate_bitbrains_15t() {
    evaluate_agrees("data/bitbrains_faststorage.parquet", "15T");
}

/// A topology of `nodes` equal nodes that together carry `headroom` times the peak of the whole history.
fn topology(folder: &Path, nodes: usize, capacity: &[(&str, f64)]) -> PathBuf {
    let path = folder.join("topology.toml");
    let mut text = String::new();
    for n in 0..nodes {
        text += &format!("[[nodes]]\nid = \"n{n}\"\nzone = \"z{}\"\n[nodes.capacity]\n", n % 3);
        for (resource, amount) in capacity {
            text += &format!("{resource} = {amount}\n");
        }
    }
    std::fs::write(&path, text).unwrap();
    path
}

/// Serves the same history by a process of its own and asks it: its answers are those that the registry gave.
fn served_as_from_the_registry(here: &Path, history: &str, expected: &Value) {
    run(here, &["data", "import", "--from", history, "--to", "history"], 0);
    // The traces are years old: without this, every series would be answered as stale.
    let server = Server::start(here, &[("FORESHARD_SERVE_STALE_AFTER", "100y")]);
    let served = json(here, &["forecast", "--server", &server.address], 0);
    let (served, expected) = (served.as_array().unwrap(), expected.as_array().unwrap());
    let name = |f: &Value| ["shard", "metric", "issued_at", "step"].map(|key| f[key].to_string());
    assert_eq!(served.iter().map(name).collect::<Vec<_>>(), expected.iter().map(name).collect::<Vec<_>>());
    let values = |f: &Value| -> Vec<f64> {
        f["forecast"]["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    for (ours, theirs) in served.iter().zip(expected) {
        assert_eq!(ours["provenance"], theirs["provenance"]);
        let (a, b) = (values(ours), values(theirs));
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
        assert!(!a.is_empty() && a.len() == b.len() && a.iter().zip(&b).all(near), "{ours} from the server, {theirs}");
    }
    let by_model = served.iter().filter(|f| f["provenance"]["fallback"].is_null()).count();
    assert!(by_model > served.len() / 2, "the model answers for {by_model} of {} series", served.len());
}

fn train_plan_simulate(file: &str, capacity: &[(&str, f64)]) {
    let Some(history) = beside(file) else { return };
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let history = history.display().to_string();
    let trained = trained(here, &["--history", &history, "--steps", "60"]);
    assert_eq!(trained["number"], 1, "{trained}");
    let forecasts = json(here, &["forecast", "--history", &history], 0);
    assert!(forecasts.as_array().is_some_and(|f| !f.is_empty()), "{forecasts}");
    served_as_from_the_registry(here, &history, &forecasts);
    let topology = topology(here, 4, capacity).display().to_string();
    let plan = json(here, &["plan", "--history", &history, "--topology", &topology, "--save", "saved"], 0);
    assert!(plan["moves"].is_array(), "{plan}");
    run(here, &["check", "--input", "saved/input.json", "--plan", "saved/plan.json"], 0);
    let args = ["simulate", "--history", &history, "--nodes", "4", "--policy", "none,reactive", "--seed", "1"];
    let simulated = json(here, &args, 0);
    assert_eq!(simulated["policies"].as_array().map(Vec::len), Some(2), "{simulated}");
}

#[test]
fn train_plan_simulate_web_services() {
    train_plan_simulate("data/web_services.parquet", &[("cpu", 700.0)]);
}

#[test]
fn train_plan_simulate_bitbrains() {
    train_plan_simulate("data/bitbrains_faststorage.parquet", &[("cpu", 2500.0), ("memory", 3000.0), ("io", 200000.0)]);
}
