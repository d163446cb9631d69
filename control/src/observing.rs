//! Observe and hand over.

use crate::ControlError;
use crate::assemble::telling;
use crate::control_loop::ControlLoop;
use crate::report::TickReport;

impl ControlLoop {
    /// Observes the engine, remembers, and hands over to serving what it will take. Serving being away is no reason to stop
    /// observing: rows wait, and the oldest go when there are too many.
    pub(crate) async fn observe(&mut self, report: &mut TickReport) {
        match self.parts.backend.observe().await {
            Ok(rows) => {
                let rows = telling(rows);
                report.observed = rows.len();
                self.recent.observe(&rows);
                let dropped = self.buffer.push(rows);
                if dropped > 0 {
                    report.dropped = dropped;
                    report.note(ControlError::Dropped { rows: dropped });
                }
            }
            Err(source) => report.note(ControlError::Observe(source)),
        }
        self.hand_over(report).await;
        report.waiting = self.buffer.len();
    }

    async fn hand_over(&mut self, report: &mut TickReport) {
        while !self.buffer.is_empty() {
            let batch = self.buffer.batch(self.settings.ingest_batch);
            let sent = batch.len();
            match self.parts.source.ingest(batch).await {
                Ok(summary) => {
                    // What was refused would be refused again: it leaves the buffer too, and is said.
                    self.buffer.taken(sent);
                    report.ingested += usize::try_from(summary.accepted).unwrap_or(usize::MAX);
                    if let Some((shard, why)) = summary.refused.into_iter().next() {
                        report.note(ControlError::Refused { count: summary.refused_total, shard, why });
                    }
                }
                Err(source) => {
                    report.note(ControlError::Ingest { rows: self.buffer.len(), source });
                    return;
                }
            }
        }
    }
}
