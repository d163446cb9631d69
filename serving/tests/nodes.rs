//! Loads of nodes, as they are and as they would be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::NodeQuery;
use foreshard_domain::{NodeId, Observation, PerResource, Product, Resource};
use tonic::Code;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// Rows of a shard with a steady load on a node.
fn on(name: &str, lies: &str, cpu: f64) -> Vec<Observation> {
    let at = |row: Observation| Observation { node: Some(node(lies)), cpu_util: Some(cpu), io_ops: None, ..row };
    rows(name, 20).into_iter().map(at).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_sums_of_what_lies_there_and_moves_are_only_asked_about() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    let query = NodeQuery {
        nodes: vec![],
        product: Product::NextHours,
        moves: vec![],
        limits: [(node("n1"), PerResource { cpu: Some(60.0), memory: None, io: None })].into(),
        window_steps: None,
        levels: vec![],
    };
    client.ingest(rows("unplaced", 20)).await.unwrap();
    assert_eq!(code(client.node_forecast(&query).await), Code::FailedPrecondition, "no row names a node");
    for rows in [on("a", "n1", 30.0), on("b", "n1", 40.0), on("@node/n1", "n1", 5.0), on("c", "n2", 10.0)] {
        client.ingest(rows).await.unwrap();
    }
    let loads = client.node_forecast(&query).await.unwrap();
    let told = |loads: &[foreshard_api::NodeLoad]| {
        let one = |l: &foreshard_api::NodeLoad| {
            (l.node.to_string(), l.moved, l.shards, l.forecast.quantile(0, 0.5).unwrap().round())
        };
        loads.iter().filter(|l| l.resource == Resource::Cpu).map(one).collect::<Vec<_>>()
    };
    let n = |name: &str, moved, shards, load: f32| (name.to_owned(), moved, shards, load);
    assert_eq!(told(&loads), [n("n1", false, 3, 75.0), n("n2", false, 1, 10.0)]);
    let risk = loads[0].risk.unwrap();
    assert!(risk.probability > 0.99 && risk.first_crossing == Some(0) && risk.expected_excess > 0.0, "{risk:?}");

    let moving = NodeQuery { moves: vec![(shard("b"), node("n3"))], ..query.clone() };
    let loads = client.node_forecast(&moving).await.unwrap();
    assert_eq!(
        told(&loads),
        [
            n("n1", false, 3, 75.0),
            n("n1", true, 2, 35.0),
            n("n2", false, 1, 10.0),
            n("n2", true, 1, 10.0),
            n("n3", false, 0, 0.0),
            n("n3", true, 1, 40.0),
        ]
    );
    let after = loads.iter().find(|l| l.node == node("n1") && l.moved).unwrap();
    assert_eq!(after.risk.unwrap().probability, 0.0, "what the quantiles rule out");
    let only = NodeQuery { nodes: vec![node("n2")], ..query.clone() };
    assert_eq!(told(&client.node_forecast(&only).await.unwrap()), [n("n2", false, 1, 10.0)]);

    // The engine moved it meanwhile: the newest row counts, an older one that comes late does not.
    client.ingest(vec![Observation { node: Some(node("n2")), ..row("b", 100, 40.0) }]).await.unwrap();
    client.ingest(vec![Observation { node: Some(node("n9")), ..row("b", 3, 40.0) }]).await.unwrap();
    let loads = client.node_forecast(&query).await.unwrap();
    assert_eq!(told(&loads).iter().map(|l| (l.0.as_str(), l.2)).collect::<Vec<_>>(), [("n1", 2), ("n2", 2)]);

    let unknown = NodeQuery { nodes: vec![node("n7")], ..query.clone() };
    assert_eq!(code(client.node_forecast(&unknown).await), Code::NotFound);
    let unknown = NodeQuery { moves: vec![(shard("typo"), node("n1"))], ..query.clone() };
    assert_eq!(code(client.node_forecast(&unknown).await), Code::NotFound);
    let residual = NodeQuery { moves: vec![(shard("@node/n1"), node("n2"))], ..query.clone() };
    assert_eq!(code(client.node_forecast(&residual).await), Code::InvalidArgument);
    let levels = NodeQuery { levels: vec![0.9, 0.1], ..query };
    assert_eq!(code(client.node_forecast(&levels).await), Code::InvalidArgument);
    server.shutdown().await.unwrap();
}
