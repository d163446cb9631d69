//! kill -9 while rows come in: whatever was acknowledged is there afterwards, once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use foreshard_api::ForecastClient;
use foreshard_datasets::{ReadFilter, read_history};
use foreshard_domain::{Observation, ShardId, Timestamp};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::Server;
use tokio::runtime::Runtime;

/// How often the server is killed.
const KILLS: usize = 8;

/// Callers that write at once, each a shard of its own.
const WRITERS: usize = 3;

/// Rows of one call.
const ROWS: usize = 40;

/// Flushes and merges of days lie as close together as they can, so that kills fall into all of them.
const SETTINGS: [(&str, &str); 2] = [("FORESHARD_SERVE_FLUSH_EVERY", "15ms"), ("FORESHARD_SERVE_CONTEXT_DAYS", "2")];

type Known = BTreeMap<(ShardId, Timestamp), f64>;

/// One who writes rows in their order, and begins again at the first that was not acknowledged.
struct Writer {
    shard: ShardId,
    next: usize,
    acknowledged: Known,
}

impl Writer {
    fn row(&self, i: usize) -> Observation {
        // Half an hour apart: a day has passed after 48 rows. From 2001 on, so that no writer comes to the present.
        let mut row =
            Observation::empty(self.shard.clone(), Timestamp::from_ms(1_000_000_000_000 + i as i64 * 1_800_000));
        row.cpu_util = Some((i % 1000) as f64);
        row
    }

    /// Writes until the server is gone.
    async fn write(&mut self, client: &ForecastClient, answered: &AtomicUsize) {
        loop {
            let rows: Vec<Observation> = (self.next..self.next + ROWS).map(|i| self.row(i)).collect();
            let Ok(answer) = client.ingest(rows.clone()).await else { return };
            assert_eq!((answer.accepted, answer.refused_total), (ROWS as u64, 0));
            self.acknowledged.extend(rows.into_iter().map(|row| ((row.shard, row.ts), row.cpu_util.unwrap())));
            self.next += ROWS;
            answered.fetch_add(1, Ordering::Relaxed);
            // However fast the machine is, the history stays small.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn written(folder: &Path) -> Known {
    let history = read_history(&folder.join("history"), &ReadFilter::default()).unwrap();
    history.observations().map(|row| ((row.shard, row.ts), row.cpu_util.unwrap())).collect()
}

#[test]
fn nothing_that_was_acknowledged_is_lost_to_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|i| Writer { shard: ShardId::new(format!("shard-{i}")).unwrap(), next: 0, acknowledged: Known::new() })
        .collect();
    for kill in 0..KILLS {
        let server = Server::start(folder.path(), &SETTINGS);
        let client = runtime.block_on(ForecastClient::connect(&server.address)).unwrap();
        let before: usize = writers.iter().map(|writer| writer.next).sum();
        let answered = Arc::new(AtomicUsize::new(0));
        let writing: Vec<_> = writers
            .drain(..)
            .map(|mut writer| {
                let (client, answered) = (client.clone(), Arc::clone(&answered));
                runtime.spawn(async move {
                    writer.write(&client, &answered).await;
                    writer
                })
            })
            .collect();
        // Somebody has been answered, however slow the disk is; then another moment of a flush each time.
        runtime.block_on(async {
            while answered.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await
            }
        });
        std::thread::sleep(Duration::from_millis(120 + 37 * kill as u64));
        drop(server);
        writers.extend(writing.into_iter().map(|writer| runtime.block_on(writer).unwrap()));
        let after: usize = writers.iter().map(|writer| writer.next).sum();
        assert!(after > before, "rows were acknowledged before kill {kill}");
    }
    let server = Server::start(folder.path(), &SETTINGS);
    server.stop();
    let (found, mut acknowledged) = (written(folder.path()), Known::new());
    writers.into_iter().for_each(|writer| acknowledged.extend(writer.acknowledged));
    let lost: Vec<_> = acknowledged.iter().filter(|(key, value)| found.get(*key) != Some(*value)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged rows are lost: {:?}", lost.len(), acknowledged.len(), lost.first());
    // A call that was not acknowledged may have arrived all the same, and nothing else.
    assert!(found.len() <= acknowledged.len() + KILLS * WRITERS * ROWS);
}
