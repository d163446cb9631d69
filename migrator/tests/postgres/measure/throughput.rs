//! A whole move beside PostgreSQL's own programs on the same database in the same run.

use super::from_environment;
use super::phases::Phases;
use crate::cluster::{Cluster, SHOP};
use crate::harness::bench;
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::process::{folder, run};
use crate::harness::server::{PgServer, ServerOptions, program};
use foreshard_migrator::MigrationState;
use std::time::Duration;
use tokio::time::Instant;

/// `pg_dump -Fc` into a file and `pg_restore -j2` of it into a database that is dropped again.
async fn by_programs(from: &PgServer, to: &PgServer) -> Duration {
    const RESTORED: &str = "restored";
    to.create_database(RESTORED).await;
    let scratch = folder("foreshard-dump-", None);
    let file = scratch.path().join("dump");
    let began = Instant::now();
    let source = from.address(SHOP);
    let mut dump = program("pg_dump", &source);
    dump.args(["-Fc", "-d", &source.conninfo_without_password(), "-f"]).arg(&file);
    run(dump).await;
    let target = to.address(RESTORED);
    let mut restore = program("pg_restore", &target);
    restore.args(["--exit-on-error", "-j2", "-d", &target.conninfo_without_password()]).arg(&file);
    run(restore).await;
    let took = began.elapsed();
    to.sql("postgres", &format!("DROP DATABASE {RESTORED}")).await;
    took
}

/// What was written before is on disk, so that nobody pays for somebody else's checkpoint.
async fn rest(cluster: &Cluster) {
    for server in [&cluster.source, &cluster.target] {
        server.sql("postgres", "CHECKPOINT").await;
    }
}

/// `FORESHARD_MB` (1000) megabytes, `FORESHARD_ROUNDS` (2) times: by the programs, then by the driver with catch-up, comparison and
/// the way back, in turns and from the same owner. Nobody else asks anything meanwhile: clients would hold the move's pace, and not
/// that of the programs. Between the rounds a checker writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/bench-postgres throughput runs it"]
async fn throughput_of_a_move_beside_dump_and_restore() {
    let (megabytes, rounds) = (from_environment("FORESHARD_MB", 1000), from_environment("FORESHARD_ROUNDS", 2));
    let cluster = Cluster::start(&ServerOptions::default(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    bench::fill(&cluster.source, SHOP, megabytes).await;
    cluster.source.sql(SHOP, "CREATE INDEX ON pgbench_accounts (bid, abalance)").await;
    let size = cluster.source.value(SHOP, "SELECT pg_database_size(current_database()) / 1000000").await;
    let through = cluster.poolers[0].app_address(SHOP);
    let driver = cluster.controller().await;
    let (mut theirs, mut ours, mut shares) = (Duration::MAX, Duration::MAX, Vec::new());
    let mut histories = Vec::new();
    for n in 0..rounds {
        let client = i32::try_from(n).unwrap() * 10 + 1;
        let options = CheckerOptions { first_client: client, ..CheckerOptions::default() };
        let checker = Checker::start(std::slice::from_ref(&through), &options);
        checker.acknowledges(100).await;
        histories.push(checker.stop().await);
        let owner = cluster.owner().await.node;
        let (from, to) = match owner.as_str() {
            "source" => (&cluster.source, &cluster.target),
            _ => (&cluster.target, &cluster.source),
        };
        rest(&cluster).await;
        let programs = by_programs(from, to).await;
        rest(&cluster).await;
        let id = cluster.start_move(&driver, n as usize).await;
        let phases = Phases::of(&cluster.store, &id).await;
        let record = driver.run(&id).await.unwrap();
        assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
        tokio::time::sleep(Duration::from_millis(100)).await;
        // From the first check to the last row compared: everything but the fence and what comes after it.
        let moved = phases.between("planned", "verifying");
        println!("round {n}: pg_dump -Fc and pg_restore -j2 {:.2} s", programs.as_secs_f64());
        println!("round {n}: move {:.2} s up to the end of the comparison; {phases}", moved.as_secs_f64());
        shares.push(programs.as_secs_f64() / moved.as_secs_f64());
        (theirs, ours) = (theirs.min(programs), ours.min(moved));
        let record = driver.finish(&id).await.unwrap();
        assert_eq!(record.state, MigrationState::Done);
    }
    let session = cluster.owning().await.connect(SHOP).await;
    for history in histories {
        history.check(&session).await.assert_unnoticed();
    }
    drop(session);
    println!(
        "{size} MB, {rounds} rounds: {:.2} of their throughput (best of each; by round {shares:.2?})",
        theirs.as_secs_f64() / ours.as_secs_f64()
    );
    cluster.assert_clean().await;
}
