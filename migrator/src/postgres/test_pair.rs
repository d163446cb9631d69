//! Two servers for tests of what goes from one to the other.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::session::{Place, Session};
use super::test_server::TestServer;

pub(crate) struct TestPair {
    pub source: TestServer,
    pub target: TestServer,
}

static RUNNING: Mutex<Weak<TestPair>> = Mutex::new(Weak::new());

impl TestPair {
    /// Two servers for the tests that run together, or `None`, said loudly, if the programs are not installed.
    pub fn shared() -> Option<Arc<Self>> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = running.upgrade() {
            return Some(pair);
        }
        let pair = Arc::new(Self::own()?);
        *running = Arc::downgrade(&pair);
        Some(pair)
    }

    /// Two servers of one's own, for tests that change their settings; otherwise like [`Self::shared`].
    pub fn own() -> Option<Self> {
        let pair = TestServer::own().zip(TestServer::own());
        if pair.is_none() {
            eprintln!("NOT TESTED: there is no PostgreSQL 15; install Debian's package postgresql-15");
        }
        pair.map(|(source, target)| Self { source, target })
    }

    pub fn source_place(&self) -> Place {
        self.source.place("source")
    }

    pub fn target_place(&self) -> Place {
        self.target.place("target")
    }

    pub async fn on_source(&self, database: &str) -> Session {
        self.source_place().open(database, "foreshard tests").await.unwrap()
    }

    pub async fn on_target(&self, database: &str) -> Session {
        self.target_place().open(database, "foreshard tests").await.unwrap()
    }
}
