//! NVIDIA's client asks in the Open Inference Protocol.

use crate::common::*;
use crate::{PATIENCE, TOKEN, started};
use foreshard_api::{Credentials, ForecastClient, Secret};

#[tokio::test(flavor = "multi_thread")]
async fn tritonclient_gets_forecasts_as_tensors() {
    let Some(python) = std::env::var_os("TRITON_PYTHON") else {
        println!("SKIPPED: TRITON_PYTHON names no Python with tritonclient[grpc]");
        return;
    };
    let (_place, server) = started().await;
    let credentials = Credentials { token: Some(Secret::new(TOKEN)), ..Credentials::default() };
    let client = ForecastClient::connect_with(&server.endpoint(), &credentials).await.unwrap();
    client.ingest(rows("a", 100)).await.unwrap();
    let half = |mut row: foreshard_domain::Observation| {
        row.io_ops = row.io_ops.map(|load| load - 500.0).filter(|load| *load >= 0.0);
        row
    };
    client.ingest(rows("b", 100).into_iter().map(half).collect()).await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/infer.py");
    let mut command = tokio::process::Command::new(python);
    command.arg(script).arg(server.addr().to_string()).arg(TOKEN).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends in time").unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out.ends_with("all well\n"), "{out}\n{err}");
    server.shutdown().await.unwrap();
}
