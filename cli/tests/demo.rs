//! The demonstration keeps what it promises, on one seed; `scripts/nightly` runs others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::json;

#[test]
fn the_demonstration_keeps_its_promises() {
    let folder = tempfile::tempdir().unwrap();
    let done = json(folder.path(), &["demo", "--seed", "1"], 0);
    let number = |path: &str| {
        done.pointer(path).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("{path} in {done}"))
    };
    assert_eq!((number("/writes/lost"), number("/writes/doubled")), (0.0, 0.0), "{done}");
    assert!(number("/writes/acknowledged") >= 1_000.0, "{done}");
    // Write ids have to travel with their shards, and something has to try them on the other side.
    assert!(number("/writes/repeated_after_move") >= 1.0, "{done}");
    assert!(number("/writes/repeated") > number("/writes/repeated_after_move"), "{done}");
    assert!(number("/moves/done") >= 1.0 && number("/moves/failed") == 0.0, "{done}");
    assert!(number("/overload_minutes/with") < number("/overload_minutes/without"), "{done}");
    assert!(number("/forecast/wql") < number("/forecast/wql_naive"), "{done}");
    assert!(number("/fence_ms/max") >= number("/fence_ms/p50"), "{done}");
    for path in ["/bytes_moved", "/client_p99_ms/before", "/client_p99_ms/during", "/client_p99_ms/after", "/seed"] {
        assert!(number(path) > 0.0, "{path} in {done}");
    }
    assert!(done["model_version"]["before"].is_string() && done["model_version"]["after"].is_string(), "{done}");
}
