//! How long schema and rows take, beside PostgreSQL's own programs. Run by hand:
//! `cargo test --release -p foreshard-migrator --lib throughput -- --ignored --nocapture`.

use foreshard_domain::MigrationId;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

use super::database::create_database;
use super::programs::Programs;
use super::restore::RestoreTo;
use super::{Dump, DumpFrom, Stage};
use crate::Way;
use crate::postgres::copy::{CopyBetween, SnapshotCopy};
use crate::postgres::names::Names;
use crate::postgres::session::Place;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::test_pair::TestPair;

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// At least so much of the programs' throughput.
const SHARE: f64 = 0.8;

async fn run(program: &str, place: &Place, arguments: &[&str]) {
    let mut command = Command::new(format!("{BIN}/{program}"));
    command.args(["-h", &place.address.host, "-p", &place.address.port.to_string(), "-U", &place.login.user]);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Brings a database over as a move does, but without changes; how long the parts took.
async fn bring_over(pair: &TestPair, shard: &str) -> Vec<(&'static str, Duration)> {
    let mut parts = Vec::new();
    let mut began = Instant::now();
    let mut part = |name: &'static str| parts.push((name, std::mem::replace(&mut began, Instant::now()).elapsed()));
    let names = Names::new(&MigrationId::new(shard).unwrap());
    let source = pair.on_source(shard).await;
    create_database(&source, &pair.on_target("postgres").await, &names).await.unwrap();
    let (place, target_place) = (pair.source_place(), pair.target_place());
    let between = CopyBetween {
        source: place.clone(),
        target: target_place.clone(),
        shard: shard.into(),
        application: names.application(),
    };
    let slot = names.slot(Way::There);
    let settings = PostgresSettings::default();
    let copy = SnapshotCopy::begin(between, &slot, &settings, Duration::from_secs(20)).await.unwrap();
    let programs = Programs::find(Path::new(""), 15).await.unwrap();
    let from =
        DumpFrom { place: &place, source: &source, application: "foreshard dump", snapshot: Some(copy.snapshot()) };
    let dump = Dump::take(programs, &from).await.unwrap();
    let target = pair.on_target(shard).await;
    let to =
        RestoreTo { place: &target_place, target: &target, source: &source, application: "foreshard restore", jobs: 2 };
    dump.restore_before_data(&to).await.unwrap();
    part("schema");
    while copy.next().await.unwrap().left > 0 {}
    part("copy");
    for (stage, name) in [(Stage::Keys, "keys"), (Stage::Indexes, "indexes"), (Stage::Rest, "rest")] {
        dump.restore_stage(&to, stage).await.unwrap();
        part(name);
    }
    drop(copy);
    source.texts("slot", &format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    parts
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: scripts/bench-postgres throughput runs it"]
async fn throughput_beside_dump_and_restore() {
    let Some(pair) = TestPair::own() else { return };
    let shard = pair.source.database().await;
    let (source, target) = (pair.source_place(), pair.target_place());
    run("pgbench", &source, &["-i", "-q", "-s", "20", &shard]).await;
    let on_source = pair.on_source(&shard).await;
    on_source.run("index", "CREATE INDEX ON public.pgbench_accounts (bid, abalance); CHECKPOINT").await.unwrap();
    let size = on_source.texts("size", "SELECT pg_size_pretty(pg_database_size(current_database()))").await.unwrap();
    let on_target = pair.on_target("postgres").await;
    let (mut theirs, mut ours) = (Duration::MAX, Duration::MAX);
    // The better of two runs each, in turns: others use the machine.
    for _ in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dump").to_str().unwrap().to_owned();
        on_target.run("database", "CREATE DATABASE restored").await.unwrap();
        let began = Instant::now();
        run("pg_dump", &source, &["-Fc", "-f", &file, &shard]).await;
        run("pg_restore", &target, &["-j2", "-d", "restored", &file]).await;
        let took = began.elapsed();
        eprintln!("pg_dump -Fc and pg_restore -j2: {took:?}");
        theirs = theirs.min(took);
        on_target.run("database", "DROP DATABASE restored").await.unwrap();
        let parts = bring_over(&pair, &shard).await;
        let took = parts.iter().map(|(_, took)| *took).sum();
        eprintln!("brought over: {took:?} {parts:?}");
        ours = ours.min(took);
        on_target.run("database", &format!("DROP DATABASE {shard} WITH (FORCE)")).await.unwrap();
    }
    let share = theirs.as_secs_f64() / ours.as_secs_f64();
    eprintln!("{size:?}: {share:.2} of their throughput");
    assert!(share >= SHARE, "{share:.2}");
}
