//! Comparisons of two databases of a real server.

mod differences;
mod keys;
mod server;
mod speed;
mod writers;

use foreshard_domain::SystemClock;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::postgres::catalog::tables;
use crate::postgres::session::Session;
use server::TestServer;

/// Long enough for whatever a test waits for.
const LIMIT: Duration = Duration::from_secs(60);

/// A source and a target.
struct Pair {
    server: Arc<TestServer>,
    names: [String; 2],
    source: Session,
    target: Session,
}

impl Pair {
    /// Two databases in which `sql` was run.
    async fn new(sql: &str) -> Option<Self> {
        let server = TestServer::shared()?;
        let names = [server.database().await, server.database().await];
        let [source, target] = &names;
        let (source, target) = (server.session("a", source).await, server.session("b", target).await);
        let pair = Self { server, names, source, target };
        pair.both(sql).await;
        Some(pair)
    }

    async fn both(&self, sql: &str) {
        self.at_source(sql).await;
        self.at_target(sql).await;
    }

    async fn at_source(&self, sql: &str) {
        run(&self.source, sql).await;
    }

    async fn at_target(&self, sql: &str) {
        run(&self.target, sql).await;
    }

    fn sides(&self) -> Sides<'_> {
        Sides { source: &self.source, target: &self.target }
    }

    async fn comparison(&self, limits: Limits) -> Comparison {
        Comparison::new(self.layouts().await, limits, Arc::new(SystemClock))
    }

    async fn layouts(&self) -> Vec<Layout> {
        layouts(&self.source, &tables(&self.source).await.unwrap()).await.unwrap()
    }

    /// Compares everything while nobody writes.
    async fn verified(&self, range_rows: u64) -> Found {
        let mut comparison = self.comparison(quick(range_rows)).await;
        self.finish(&mut comparison).await;
        comparison.found().clone()
    }

    /// Goes on to the end while nobody writes.
    async fn finish(&self, comparison: &mut Comparison) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let applied = self.nothing_changed(comparison).await;
            if comparison.step(self.sides(), applied, Duration::from_secs(1)).await.unwrap() == Step::Done {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "not done, {} in doubt", comparison.in_doubt());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Tells that nothing has changed, and that the target has applied it.
    async fn nothing_changed(&self, comparison: &mut Comparison) -> Position {
        let up_to = self.sides().position().await.unwrap();
        comparison.absorb(Changed { up_to, ..Changed::default() }).unwrap();
        up_to
    }
}

async fn run(session: &Session, sql: &str) {
    session
        .run("preparing a test", &format!("SET search_path = public; {sql}; SET search_path = pg_catalog"))
        .await
        .unwrap();
}

/// The usual limits, with a patience fit for tests.
fn quick(range_rows: u64) -> Limits {
    Limits { patience: Patience { times: 3, lasting: Duration::from_millis(50) }, ..Limits::new(range_rows) }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}
