//! Training by the clock: when it is due, only if it is needed, one at a time, and until somebody asks it to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use support::{foreshard, json, run};

fn stop(process: &std::process::Child) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

#[test]
fn training_comes_round_until_it_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let args = ["train", "--model", "ridge", "--schedule", "* * * * * *"];
    let mut process = foreshard(here).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = BufReader::new(process.stderr.take().unwrap()).lines();
    // There is no history yet: that is told, and the next turn comes all the same.
    let first = errors.by_ref().map(Result::unwrap).find(|line| line.starts_with("error: ")).unwrap();
    assert!(first.contains("history"), "{first}");
    let drain = std::thread::spawn(move || errors.for_each(drop));
    run(here, &["data", "generate", "--to", "raw.parquet", "--shards", "3", "--days", "14", "--seed", "5"], 0);
    // In one step, so that no turn sees half of it.
    std::fs::create_dir(here.join("made")).unwrap();
    run(here, &["data", "import", "--from", "raw.parquet", "--to", "made/history"], 0);
    std::fs::rename(here.join("made/history"), here.join("history")).unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
    let due = lines.next().unwrap();
    assert!(due.starts_with("next training: ") && due.ends_with("(* * * * * *, UTC)"), "{due}");
    let written = lines.by_ref().find(|line| line.starts_with("version load/1 written to ")).unwrap();
    assert!(written.ends_with("registry/load/1"), "{written}");
    // Turns go on after one that was done.
    lines.by_ref().find(|line| line.starts_with("next training: ")).unwrap();
    stop(&process);
    lines.for_each(drop);
    assert_eq!(process.wait().unwrap().code(), Some(0));
    drain.join().unwrap();
}

#[test]
fn what_still_fits_is_not_trained_anew() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    run(here, &["data", "generate", "--to", "raw.parquet", "--shards", "3", "--days", "14", "--seed", "5"], 0);
    let history = ["--history", "raw.parquet"];
    let none = run(here, &[&["models", "drift"], &history[..]].concat(), 2);
    assert!(String::from_utf8_lossy(&none.stderr).contains("has no champion; train one first"));
    // Without a champion there is everything to gain.
    let train = [&["train", "--model", "ridge", "--if-drifted"], &history[..]].concat();
    let trained = foreshard(here).args(&train).output().unwrap();
    assert!(String::from_utf8_lossy(&trained.stdout).contains("version load/1 written"), "{trained:?}");
    run(here, &["models", "promote", "1"], 0);
    let again = run(here, &train, 0);
    let text = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(text.contains("it still fits") && text.contains("nothing was trained"), "{text}");
    let told = json(here, &[&["models", "drift"], &history[..]].concat(), 0);
    assert_eq!((&told["shards"], &told["unseen_shards"]), (&0.into(), &0.into()), "{told}");
    // Five weeks later it is too old, whatever else there is to say.
    run(here, &["data", "generate", "--to", "later.parquet", "--shards", "3", "--days", "50", "--seed", "5"], 0);
    let told = json(here, &["models", "drift", "--history", "later.parquet"], 1);
    let reasons = told["reasons"].as_array().unwrap();
    assert!(reasons.iter().any(|r| r.as_str().unwrap().contains("its history ended 36.0 days before")), "{told}");
    assert!(told["live"].as_array().unwrap().iter().any(|live| live["windows"].as_u64().unwrap() > 30), "{told}");
    let text = run(here, &["models", "drift", "--history", "later.parquet"], 1);
    assert!(String::from_utf8_lossy(&text.stdout).contains("it no longer fits:\n  - "));
}

#[test]
fn a_schedule_that_cannot_be_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (schedule, says) in [("tomorrow", "is no cron expression"), ("0 0 31 2 *", "31")] {
        let refused = run(folder.path(), &["train", "--schedule", schedule], 2);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains(says), "{told}");
    }
}
