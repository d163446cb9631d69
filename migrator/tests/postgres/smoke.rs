//! The harness itself: servers, poolers and the network between them do what they say.

use crate::harness::pooler::Pooler;
use crate::harness::proxy::Proxy;
use crate::harness::server::{PgServer, ServerOptions};
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
    let Some(disk) = SmallDisk::mount(150) else {
        eprintln!("SKIPPED: mounting a small disk is not allowed here");
        return;
    };
    let options = ServerOptions { base: Some(disk.path().to_path_buf()), ..ServerOptions::fast() };
    let server = PgServer::start("small", &options).await;
    let session = server.connect("postgres").await;
    let filled =
        session.batch_execute("CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 400000)").await;
    assert_eq!(filled.unwrap_err().code().map(|code| code.code().to_owned()).as_deref(), Some("53100"));
    session.batch_execute("SELECT 1").await.unwrap();
}
