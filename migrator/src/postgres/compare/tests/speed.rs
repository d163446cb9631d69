//! How fast comparisons are; run by hand, alone.

use super::statements::hash_of;
use super::*;
use tokio::time::Instant;

#[tokio::test]
#[ignore = "measures: cargo test --release --workspace --lib -- --ignored --nocapture postgres::compare::tests::speed"]
async fn rows_per_second() {
    const ROWS: u32 = 400_000;
    let Some(pair) = Pair::new(
        "CREATE TABLE t (id bigint PRIMARY KEY, a int, name text, note varchar(100), amount numeric(12,2), \
        r float8, at timestamptz, flag bool, u uuid)",
    )
    .await
    else {
        return;
    };
    let rows = format!(
        "INSERT INTO t SELECT i, i % 1000, md5(i::text), 'note number ' || i, i * 0.37, i / 7.0, \
        timestamptz '2026-01-01' + i * interval '1 s', i % 2 = 0, md5(i::text)::uuid FROM generate_series(1, {ROWS}) i"
    );
    pair.both(&rows).await;
    for _ in 0..2 {
        let begun = Instant::now();
        assert_eq!(pair.verified(10_000).await.rows, u64::from(ROWS));
        println!("ranges of 10,000: {:.0} rows/s on each side", f64::from(ROWS) / begun.elapsed().as_secs_f64());
    }
    pair.both("SET max_parallel_workers_per_gather = 0").await;
    let binary = hash_of(pair.layouts().await.first().unwrap(), &Range::default());
    let text = "SELECT sum(hashtextextended(t::text, 0)) FROM public.t".to_owned();
    for (form, sql) in [("binary", &binary), ("text", &text), ("binary", &binary), ("text", &text)] {
        let begun = Instant::now();
        tokio::try_join!(pair.source.texts("hashing", sql), pair.target.texts("hashing", sql)).unwrap();
        let speed = f64::from(ROWS) / begun.elapsed().as_secs_f64();
        println!("whole table, {form} form: {speed:.0} rows/s on each side");
    }
    let layouts = pair.layouts().await;
    let layout = layouts.first().unwrap();
    for _ in 0..5 {
        let keys: Vec<Key> = (0..200).map(|i| vec![(i * 1987 % ROWS + 1).to_string()]).collect();
        let begun = Instant::now();
        let differences = pair.sides().rows(layout, &keys).await.unwrap();
        println!("200 rows by key: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
        assert!(differences.iter().all(Option::is_none));
    }
}
