//! What clients ask over real gRPC, and what they are told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::{ForecastQuery, RiskQuery, ScenarioQuery};
use foreshard_domain::{Fallback, Metric, PerResource, Product, Resource, Timestamp};
use std::time::Duration;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn ingest_then_forecast_reflects_the_newest_step() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    let summary = client.ingest(rows("a", 50)).await.unwrap();
    assert_eq!((summary.accepted, summary.duplicates, summary.refused_total), (50, 0, 0));

    let made = client.forecast(&next_hours(&[])).await.unwrap();
    assert_eq!(made.len(), 1);
    assert_eq!((made[0].forecast.horizon(), median(&made[0])), (48, 49.0));
    assert_eq!(made[0].issued_at, Timestamp::from_ms(49 * 5 * MINUTE));
    assert_eq!(made[0].provenance.last_observed, Some(made[0].issued_at));
    assert_eq!(made[0].provenance.version.as_ref().map(|v| v.number), Some(1));
    assert_eq!(made[0].provenance.fallback, None);

    client.ingest(vec![row("a", 250, 77.0)]).await.unwrap();
    let made = client.forecast(&next_hours(&["a"])).await.unwrap();
    assert_eq!((made[0].issued_at, median(&made[0])), (Timestamp::from_ms(250 * MINUTE), 77.0));
    // 15-minute steps are the mean of their rows, and the step at 245 min is not over.
    let day = ForecastQuery { product: Product::NextDay, ..next_hours(&["a"]) };
    let made = client.forecast(&day).await.unwrap();
    assert_eq!((made[0].issued_at, made[0].forecast.horizon()), (Timestamp::from_ms(240 * MINUTE), 96));
    assert_eq!(median(&made[0]), (48.0 + 49.0 + 77.0) / 3.0);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_and_unordered_rows_last_wins() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    let mut shuffled = rows("a", 30);
    shuffled.reverse();
    client.ingest(shuffled.clone()).await.unwrap();
    assert_eq!(median(&client.forecast(&next_hours(&[])).await.unwrap()[0]), 29.0);
    let again = client.ingest(vec![row("a", 29 * 5, 1.0), row("a", 29 * 5, 5.0), row("a", 10, 3.0)]).await.unwrap();
    assert_eq!((again.accepted, again.duplicates), (3, 3));
    assert_eq!(median(&client.forecast(&next_hours(&[])).await.unwrap()[0]), 5.0);
    server.flush().await.unwrap();
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_rows_are_refused_one_by_one() {
    let place = Place::new();
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    let mut bad = row("bad", 5, -3.0);
    bad.io_ops = None;
    let mut nan = row("nan", 5, f64::NAN);
    nan.io_ops = None;
    let future = row("future", 45 * 24 * 60, 1.0);
    let summary = client.ingest(vec![row("a", 0, 1.0), bad, nan, future, row("a", 5, 2.0)]).await.unwrap();
    assert_eq!((summary.accepted, summary.refused_total), (2, 3));
    let shards: Vec<&str> = summary.refused.iter().map(|(shard, _)| shard.as_str()).collect();
    assert_eq!(shards, ["bad", "nan", "future"]);
    assert!(summary.refused.iter().all(|(_, why)| why.len() > 10), "{:?}", summary.refused);
    assert_eq!(client.forecast(&next_hours(&[])).await.unwrap().len(), 1);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_late_or_without_model_is_marked() {
    let place = Place::new();
    let config = foreshard_serving::ServingConfig { stale_after: Duration::from_secs(3600), ..place.config() };
    let server = place.start(config).await;
    let client = client(&server).await;
    assert_eq!(code(client.forecast(&next_hours(&[])).await), Code::FailedPrecondition);
    client.ingest(rows("live", 600)).await.unwrap();
    client.ingest(rows("late", 500)).await.unwrap();
    place.clock.set_model(Timestamp::from_ms(600 * 5 * MINUTE));

    let reasons = |made: Vec<foreshard_domain::SeriesForecast>| {
        let of = |s: foreshard_domain::SeriesForecast| (s.shard.to_string(), s.provenance.fallback);
        made.into_iter().map(of).collect::<Vec<_>>()
    };
    let made = client.forecast(&next_hours(&["live", "late", "new"])).await.unwrap();
    let expected = [("late", Fallback::Stale), ("live", Fallback::NoModel), ("new", Fallback::UnknownSeries)];
    assert_eq!(reasons(made), expected.map(|(shard, why)| (shard.to_owned(), Some(why))));

    let unknown = client.forecast(&next_hours(&["typo", "other"])).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.unknown_shards()), (Some(Code::NotFound), vec!["other".into(), "typo".into()]));

    place.publish(1);
    place.label(1);
    server.reload().await.unwrap();
    let made = client.forecast(&next_hours(&["live", "late"])).await.unwrap();
    assert_eq!(reasons(made), [("late".to_owned(), Some(Fallback::Stale)), ("live".to_owned(), None)]);

    // All rows stop: the clock alone tells.
    place.clock.advance_ms(2 * 60 * MINUTE);
    let made = client.forecast(&next_hours(&["live"])).await.unwrap();
    assert_eq!(reasons(made), [("live".to_owned(), Some(Fallback::Stale))]);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_ahead_of_the_clock_makes_no_other_series_stale() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let stale_after = Duration::from_secs(300);
    let server = place.start(foreshard_serving::ServingConfig { stale_after, ..place.config() }).await;
    let client = client(&server).await;
    let now = 600 * 5;
    place.clock.set_model(Timestamp::from_ms(now * MINUTE));
    client.ingest(rows("live", 601)).await.unwrap();
    let before = client.forecast(&next_hours(&["live"])).await.unwrap();
    assert_eq!(before[0].provenance.fallback, None);

    let ahead = client.ingest(vec![row("ahead", now + 15, 1.0), row("further", now + 16, 1.0)]).await.unwrap();
    assert_eq!((ahead.accepted, ahead.refused_total), (1, 1));
    let (shard, why) = &ahead.refused[0];
    assert!(shard == "further" && why.contains("shard further") && why.contains("960s ahead"), "{why}");
    assert_eq!(client.forecast(&next_hours(&["live"])).await.unwrap(), before, "as if there were no row ahead");

    place.clock.set_model(Timestamp::from_ms((now + 15) * MINUTE));
    client.ingest(vec![row("live", now + 15, 3.0)]).await.unwrap();
    let made = client.forecast(&next_hours(&["ahead", "live"])).await.unwrap();
    assert!(made.iter().all(|series| series.issued_at == Timestamp::from_ms((now + 15) * MINUTE)));
    assert!(made.iter().all(|series| series.provenance.fallback.is_none()), "{made:?}");
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_levels_in_between_are_made_and_outside_refused() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    let at = |levels: &[f64]| ForecastQuery { levels: levels.to_vec(), ..next_hours(&["a"]) };
    let made = client.forecast(&at(&[0.25, 0.75])).await.unwrap();
    let row = made[0].forecast.row(0).unwrap();
    assert!((row[0] - 18.5).abs() < 1e-4 && (row[1] - 19.5).abs() < 1e-4, "{row:?}");
    let alone = client.forecast(&at(&[0.75])).await.unwrap();
    assert_eq!((alone[0].forecast.levels().as_slice(), alone[0].forecast.horizon()), (&[0.75][..], 48));
    assert!((alone[0].forecast.row(0).unwrap()[0] - 19.5).abs() < 1e-4);
    for bad in [&[0.5, 0.999][..], &[0.9, 0.1], &[0.999], &[0.0, 0.5]] {
        assert_eq!(code(client.forecast(&at(bad)).await), Code::InvalidArgument, "{bad:?}");
    }
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_are_joint_repeatable_and_hold_residuals() {
    let place = Place::new();
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    let noise = |i: i64| (i * 7919 % 1009) as f64 / 10.0;
    let noisy = |name: &str| (0..700).map(|i| row(name, 5 * i, noise(i))).collect::<Vec<_>>();
    let mut cpu_only = noisy("@node/n1");
    cpu_only.iter_mut().for_each(|row| row.io_ops = None);
    client.ingest(noisy("a")).await.unwrap();
    client.ingest(cpu_only).await.unwrap();
    let query = ScenarioQuery { shards: vec![], product: Product::NextDay, scenarios: 100, seed: 7 };
    let (set, provenance) = client.scenarios(&query).await.unwrap();
    assert_eq!(set.shards(), [shard("@node/n1"), shard("a")]);
    assert_eq!(set.resources(), [Resource::Cpu, Resource::Io]);
    assert_eq!((set.steps(), set.scenarios()), (96, 100));
    assert!(set.lane(1, 0).unwrap().iter().all(|v| *v == 0.0), "a load that was never observed is zero");
    assert_eq!(provenance.len(), 3);
    assert!(provenance.iter().all(|p| p.provenance.fallback == Some(Fallback::NoModel)));
    assert!(client.scenarios(&query).await.unwrap().0 == set);
    let other = client.scenarios(&ScenarioQuery { seed: 8, ..query.clone() }).await.unwrap().0;
    assert!(other != set);
    let huge = ScenarioQuery { scenarios: 10_000_000, ..query };
    assert_eq!(code(client.scenarios(&huge).await), Code::InvalidArgument);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn risk_is_any_step_per_shard_and_resource() {
    let place = Place::new();
    place.publish(1);
    place.label(1);
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    client.ingest(rows("low", 20)).await.unwrap();
    client
        .ingest(
            rows("high", 20)
                .into_iter()
                .map(|row| foreshard_domain::Observation { cpu_util: Some(80.0), ..row })
                .collect(),
        )
        .await
        .unwrap();
    let limits = PerResource { cpu: Some(80.0), memory: Some(50.0), io: None };
    let query = RiskQuery { shards: vec![], product: Product::NextHours, window_steps: Some(12), limits };
    let risks = client.risk(&query).await.unwrap();
    let found: Vec<_> = risks.iter().map(|r| (r.shard.as_str(), r.resource)).collect();
    assert_eq!(found, [("high", Resource::Cpu), ("low", Resource::Cpu)], "memory was never observed");
    // The median lies on the limit and a path keeps its rank over all steps.
    assert!((risks[0].risk.probability - 0.5).abs() < 0.02, "{:?}", risks[0]);
    assert_eq!(risks[0].risk.first_crossing, Some(0));
    assert!(risks[0].risk.expected_excess > 0.0);
    assert_eq!((risks[1].risk.probability, risks[1].risk.first_crossing), (0.0, None));
    let alone = client.risk(&RiskQuery { shards: vec![shard("high")], ..query.clone() }).await.unwrap();
    assert_eq!(alone[0], risks[0], "the risk of a shard does not depend on the others asked for");
    place.publish(2);
    place.label(2);
    server.reload().await.unwrap();
    let corrected = client.risk(&query).await.unwrap();
    assert!((corrected[0].risk.probability - 1.0 / (1.0 + 1f64.exp())).abs() < 1e-6, "{:?}", corrected[0]);
    assert_eq!(corrected[0].risk.expected_excess, risks[0].risk.expected_excess);
    assert_eq!(corrected[1].risk.probability, 0.0, "what the quantiles rule out stays out");
    let too_long = RiskQuery { window_steps: Some(49), ..query.clone() };
    assert_eq!(code(client.risk(&too_long).await), Code::InvalidArgument);
    let no_limit = RiskQuery { limits: PerResource::default(), ..query };
    assert_eq!(code(client.risk(&no_limit).await), Code::InvalidArgument);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_follow_what_was_observed() {
    let place = Place::new();
    let server = place.start(place.config()).await;
    let client = client(&server).await;
    client.ingest(rows("a", 20)).await.unwrap();
    let all = ForecastQuery { metrics: vec![], ..next_hours(&[]) };
    let made = client.forecast(&all).await.unwrap();
    assert_eq!(made.iter().map(|s| s.metric).collect::<Vec<_>>(), [Metric::CpuUtil, Metric::IoOps]);
    let never = ForecastQuery { metrics: vec![Metric::LatencyMs], ..next_hours(&[]) };
    assert_eq!(code(client.forecast(&never).await), Code::FailedPrecondition);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let place = Place::new();
    let server = place.start(place.config()).await;
    let channel = tonic::transport::Channel::from_shared(server.endpoint()).unwrap().connect().await.unwrap();
    for service in ["", "foreshard.v1.ForecastService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "{service:?} is serving");
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"foreshard.v1.ForecastService") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    drop((client, answers));
    server.shutdown().await.unwrap();
}
