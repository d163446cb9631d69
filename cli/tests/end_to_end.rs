//! The binary as an operator uses it: real processes, real files, real gRPC on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use support::{Server, json, run, trained};

fn topology(folder: &Path, cpu: f64) {
    let nodes: String =
        (0..3).map(|n| format!("[[nodes]]\nid = \"n{n}\"\nzone = \"z{n}\"\n[nodes.capacity]\ncpu = {cpu}\n")).collect();
    std::fs::write(folder.join("topology.toml"), nodes).unwrap();
}

#[test]
fn the_whole_way_over_processes() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    run(here, &["data", "generate", "--to", "raw.parquet", "--shards", "6", "--days", "21", "--seed", "5"], 0);
    // The serving process owns a dated folder; importing fills it the same way.
    run(here, &["data", "import", "--from", "raw.parquet", "--to", "history"], 0);
    let seen = json(here, &["data", "inspect", "history"], 0);
    assert_eq!(seen["shards"], 6, "{seen}");

    let trained = trained(here, &["--steps", "80"]);
    assert_eq!(trained["number"], 1, "{trained}");
    let listed = json(here, &["models", "list"], 0);
    assert_eq!(listed["versions"].as_array().map(Vec::len), Some(1), "{listed}");

    let server = Server::start(here, &[]);
    let asked = json(
        here,
        &["forecast", "--server", &server.address, "--metric", "cpu_util", "--level", "0.25", "--level", "0.75"],
        0,
    );
    let first = &asked.as_array().unwrap()[0];
    assert_eq!(asked.as_array().map(Vec::len), Some(6), "{asked}");
    assert_eq!(first["forecast"]["values"].as_array().map(Vec::len), Some(96), "{first}");
    for from in [&["--server", &server.address][..], &[]] {
        let one = json(here, &[&["forecast", "--metric", "cpu_util", "--level", "0.9"], from].concat(), 0);
        assert_eq!(one[0]["forecast"]["levels"], serde_json::json!([0.9]), "{one}");
        assert_eq!(one[0]["forecast"]["values"].as_array().map(Vec::len), Some(48), "{one}");
    }
    let refused = run(here, &["forecast", "--server", &server.address, "--level", "0.5", "--level", "0.999"], 2);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("0.999"));

    topology(here, 60.0);
    let advised = json(here, &["control", "--once", "--server", &server.address], 0);
    assert!(advised["plan"]["moves"].is_array(), "{advised}");
    drop(server);

    let plan = json(here, &["plan", "--save", "saved"], 0);
    assert!(plan["moves"].is_array(), "{plan}");
    run(here, &["check", "--input", "saved/input.json", "--plan", "saved/plan.json"], 0);
    let text = std::fs::read_to_string(here.join("saved/plan.json")).unwrap();
    let mut spoiled: serde_json::Value = serde_json::from_str(&text).unwrap();
    spoiled["input_fingerprint"] = "something else".into();
    std::fs::write(here.join("saved/spoiled.json"), spoiled.to_string()).unwrap();
    run(here, &["check", "--input", "saved/input.json", "--plan", "saved/spoiled.json"], 1);
    run(here, &["plan", "--why", "no-such-shard"], 2);

    let args = ["simulate", "--history", "raw.parquet", "--nodes", "3", "--policy", "none,reactive,seasonal"];
    let simulated = json(here, &args, 0);
    assert_eq!(simulated["policies"].as_array().map(Vec::len), Some(3), "{simulated}");
}

#[test]
fn a_ridge_goes_the_whole_way_too() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let generate = ["data", "generate", "--to", "raw.parquet", "--events", "events.parquet"];
    run(here, &[&generate[..], &["--shards", "4", "--days", "21", "--seed", "5"]].concat(), 0);
    run(here, &["data", "import", "--from", "raw.parquet", "--to", "history"], 0);
    let trained = trained(here, &["--model", "ridge", "--events", "events.parquet"]);
    let names = trained["evaluation"]["sections"][0]["contenders"].as_array().unwrap();
    let names: Vec<&str> = names.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["load/1", "seasonal_naive", "last_value", "weekly_naive", "seasonal_mean"]);
    let manifest = std::fs::read_to_string(here.join("registry/load/1/manifest.json")).unwrap();
    assert!(manifest.contains("\"kind\": \"ridge\""), "{manifest}");
    let calibration = std::fs::read_to_string(here.join("registry/load/1/calibration.json")).unwrap();
    assert!(calibration.contains("\"campaign\""), "what the campaign in the history did is known: {calibration}");

    // The generated days are long past: whoever serves them must not call them stale.
    let told = [("FORESHARD_SERVE_STALE_AFTER", "36500days"), ("FORESHARD_DATA_EVENTS", "events.parquet")];
    let server = Server::start(here, &told);
    let ask = |from: &[&str]| json(here, &[&["forecast", "--metric", "cpu_util"], from].concat(), 0);
    let (served, local) = (ask(&["--server", &server.address]), ask(&["--events", "events.parquet"]));
    assert_eq!(served.as_array().map(Vec::len), Some(4), "{served}");
    for (served, local) in served.as_array().unwrap().iter().zip(local.as_array().unwrap()) {
        for one in [served, local] {
            assert_eq!(one["provenance"]["version"], serde_json::json!({ "model": "load", "number": 1 }), "{one}");
            assert!(one["provenance"]["fallback"].is_null(), "{one}");
        }
        assert_eq!((&served["shard"], &served["issued_at"]), (&local["shard"], &local["issued_at"]));
        let values = |of: &serde_json::Value| -> Vec<f64> {
            of["forecast"]["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let (served, local) = (values(served), values(local));
        assert!(served.len() == 48 * 13 && served.chunks(13).all(|row| row.is_sorted()), "F1");
        // The serving process keeps means of its own, which differ in the last digit.
        let near = served.iter().zip(&local).all(|(a, b)| (a - b).abs() <= 1e-3 * b.abs().max(1.0));
        assert!(near, "{served:?} {local:?}");
    }
    drop(server);

    let protocol = ["evaluate", "--history", "raw.parquet", "--protocol", "5T"];
    let evaluated = json(here, &[&protocol[..], &["--model", "ridge", "--compare", "all"]].concat(), 0);
    let rows = evaluated["sections"][0]["contenders"].as_array().unwrap();
    let of = |name: &str| rows.iter().find(|c| c["name"] == name).and_then(|c| c["scores"]["wql"].as_f64());
    assert!(of("ridge").unwrap() < of("seasonal_naive").unwrap(), "{evaluated}");
    assert!(of("seasonal_mean").is_some() && of("weekly_naive").is_some() && of("last_value").is_some());

    let unknown = run(here, &["train", "--model", "forest"], 2).stderr;
    assert!(String::from_utf8_lossy(&unknown).contains("known are lstm, ridge and prophet"));
    if !cfg!(feature = "prophet") {
        for args in [&["train", "--model", "prophet"][..], &[&protocol[..], &["--model", "mstl"]].concat()] {
            let refused = run(here, args, 2).stderr;
            assert!(String::from_utf8_lossy(&refused).contains("build it with --features prophet"), "{refused:?}");
        }
    }
}

#[test]
fn bad_input_gets_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let stderr = |args: &[&str]| String::from_utf8(run(here, args, 2).stderr).unwrap();

    let missing = stderr(&["data", "inspect", "nowhere.parquet"]);
    assert!(missing.contains("nowhere.parquet"), "{missing}");
    std::fs::write(here.join("broken.parquet"), b"PAR1 and then nothing").unwrap();
    let broken = stderr(&["data", "inspect", "broken.parquet"]);
    assert!(broken.contains("broken.parquet"), "{broken}");

    std::fs::write(here.join("foreshard.toml"), "[serve]\nlisten = 5\nqueue_row = 1\n[nowhere]\nx = 1\n").unwrap();
    let settings = stderr(&["models", "list"]);
    for part in ["serve.listen", "serve.queue_row", "did you mean serve.queue_rows?", "nowhere.x"] {
        assert!(settings.contains(part), "{part} in {settings}");
    }
    std::fs::remove_file(here.join("foreshard.toml")).unwrap();

    let open = stderr(&["serve", "--listen", "0.0.0.0:0"]);
    assert!(open.contains("loopback"), "{open}");
    let untrained = stderr(&["forecast"]);
    assert!(untrained.contains("history"), "{untrained}");
    let unknown = stderr(&["models", "promote", "7"]);
    assert!(unknown.contains('7'), "{unknown}");
}

#[test]
fn a_damaged_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    run(here, &["data", "generate", "--to", "history.parquet", "--shards", "3", "--days", "21"], 0);
    trained(here, &["--history", "history.parquet", "--steps", "20"]);
    let weights = here.join("registry/load/1/weights.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = run(here, &["forecast", "--history", "history.parquet"], 2).stderr;
    let error = String::from_utf8(error).unwrap();
    assert!(error.contains("weights.safetensors is damaged"), "{error}");
    let listed = json(here, &["models", "list"], 0);
    assert!(listed["versions"][0]["damaged"].is_string(), "{listed}");
}
