//! The harness itself: a move by hand that clients do not notice, and servers, poolers and the network between them do what they say.

use crate::harness::bench::{self, Bench, BenchOptions};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::debris::{debris, paused_pools};
use crate::harness::pooler::Pooler;
use crate::harness::process::folder;
use crate::harness::proxy::Proxy;
use crate::harness::server::{PgServer, ServerOptions, dump_and_restore};
use crate::harness::small_disk::SmallDisk;
use std::time::Duration;
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn a_server_starts_stops_and_comes_back_with_its_data_after_a_kill() {
    let mut server = PgServer::start("alone", &ServerOptions::fast()).await;
    server.create_database("shop").await;
    server.sql("shop", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    assert_eq!(server.value("postgres", "SHOW wal_level").await, "logical");
    assert!(server.app_address("shop").connect().await.is_ok(), "the clients' role logs in");

    let session = server.connect("shop").await;
    server.kill9();
    assert!(!server.runs());
    assert!(session.batch_execute("SELECT 1").await.is_err(), "no process is left to answer");
    assert!(server.address("shop").connect().await.is_err());
    server.start_again().await;
    assert_eq!(server.value("shop", "SELECT n FROM t").await, "1");

    server.restart().await;
    assert_eq!(server.value("shop", "SELECT n FROM t").await, "1");
    let session = server.connect("shop").await;
    server.freeze();
    let late = timeout(Duration::from_millis(300), session.batch_execute("SELECT 1")).await;
    assert!(late.is_err(), "a frozen server does not answer");
    server.unfreeze();
    session.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn a_server_ends_with_its_value_and_leaves_nothing() {
    let server = PgServer::start("gone", &ServerOptions::fast()).await;
    let (address, data) = (server.address("postgres"), server.data_dir());
    let pid: i32 =
        std::fs::read_to_string(data.join("postmaster.pid")).unwrap().lines().next().unwrap().parse().unwrap();
    drop(server);
    assert!(address.connect().await.is_err());
    assert!(!data.exists() && !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_pooler_sends_clients_where_its_file_says_and_forgets_a_pause_when_killed() {
    let one = PgServer::start("one", &ServerOptions::fast()).await;
    one.create_database("shop").await;
    one.create_database("other").await;
    let mut pooler = Pooler::start("p", &[("shop", &one.address("shop"))]).await;
    let database = async |pooler: &Pooler| {
        let session = pooler.app_address("shop").connect().await.unwrap();
        session.rows("SELECT current_database()").await.unwrap()[0].first().to_owned()
    };
    assert_eq!(database(&pooler).await, "shop");
    pooler.pause("shop").await;
    assert_eq!(pooler.paused().await, ["shop"]);
    pooler.write_routes(&[("shop", &one.address("other"))]);
    pooler.reload().await;
    assert_eq!(pooler.route_of("shop").await, Some((one.port(), "other".into())));
    pooler.resume("shop").await;
    assert_eq!(database(&pooler).await, "other");

    pooler.pause("shop").await;
    pooler.kill9();
    assert!(pooler.app_address("shop").connect().await.is_err());
    pooler.start_again().await;
    assert!(pooler.paused().await.is_empty());
    assert_eq!(database(&pooler).await, "other");
}

#[tokio::test]
async fn a_proxy_passes_slows_hangs_cuts_and_heals() {
    let server = PgServer::start("far", &ServerOptions::fast()).await;
    let proxy = Proxy::to(server.port()).await;
    let through = server.address("postgres").through(proxy.port());
    let session = through.connect().await.unwrap();
    session.batch_execute("SELECT 1").await.unwrap();

    proxy.slow(Duration::from_millis(200));
    let began = Instant::now();
    session.batch_execute("SELECT 1").await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(400), "there and back: {:?}", began.elapsed());

    proxy.hang();
    let waits = session.batch_execute("SELECT 1");
    tokio::pin!(waits);
    assert!(timeout(Duration::from_millis(300), &mut waits).await.is_err());
    proxy.heal();
    waits.await.unwrap();

    proxy.cut();
    assert!(session.batch_execute("SELECT 1").await.is_err());
    assert!(through.connect().await.is_err());
    proxy.heal();
    assert!(through.connect().await.is_ok());
}

#[tokio::test]
async fn a_server_on_a_small_disk_runs_out_of_it() {
    let Some(disk) = SmallDisk::mount(100) else {
        eprintln!("SKIPPED: mounting a small disk is not allowed here");
        return;
    };
    let base = Some(disk.path().to_path_buf());
    let options = ServerOptions { base, wal_apart: true, ..ServerOptions::fast() };
    let server = PgServer::start("small", &options).await;
    let session = server.connect("postgres").await;
    let filled =
        session.batch_execute("CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 400000)").await;
    assert_eq!(filled.unwrap_err().code().map(|code| code.code().to_owned()).as_deref(), Some("53100"));
    session.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_a_move_that_is_done_by_hand_while_their_pool_is_paused() {
    let options = ServerOptions::default();
    let (source, target) = tokio::join!(PgServer::start("source", &options), PgServer::start("target", &options));
    source.create_database("shop").await;
    target.create_database("shop").await;
    create_tables(&source.app_address("shop"), CheckerOptions::default().accounts).await;
    bench::fill(&source, "shop", 15).await;
    let pooler = Pooler::start("p", &[("shop", &source.address("shop"))]).await;

    let through = pooler.app_address("shop");
    let options = BenchOptions { seconds: 6, rate: Some(40.0), ..BenchOptions::default() };
    let bench = Bench::start(&through, &options);
    let checker = Checker::start(&[through], &CheckerOptions { rate: 100.0, ..CheckerOptions::default() });
    checker.acknowledges(100).await;

    let scratch = folder("foreshard-dump-", None);
    let paused = checker.elapsed();
    pooler.pause("shop").await;
    dump_and_restore(&source.app_address("shop"), &target.app_address("shop"), scratch.path()).await;
    pooler.write_routes(&[("shop", &target.address("shop"))]);
    pooler.reload().await;
    pooler.resume("shop").await;
    let resumed = checker.elapsed();

    checker.acknowledges(100).await;
    let bench = bench.wait().await;
    let report = checker.finish(&target.app_address("shop")).await;
    println!("{report}pgbench: {}", bench.latencies);
    report.assert_unnoticed();
    bench.assert_unnoticed();
    assert_eq!(bench.latencies.0.len() as u64, bench.transactions);
    assert!(bench::balances_agree(&target.connect("shop").await).await);
    let held = resumed.saturating_sub(paused);
    // The clients were busy when the pool was paused: some wait for nearly as long as it was.
    assert!(report.latencies.between(paused..resumed).longest() > held / 2, "{report}");
    for server in [&source, &target] {
        assert_eq!(debris(server, &["shop"]).await, Vec::<String>::new());
    }
    assert_eq!(paused_pools(&pooler).await, Vec::<String>::new());
    // The source is older now, and the checker knows.
    assert!(!source.column("shop", "SELECT 1 FROM ledger LIMIT 1").await.is_empty());
}
