//! Two servers for tests of what goes from one to the other.

use foreshard_domain::NodeId;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::session::{Login, Place, Session};
use super::settings::ServerAddress;
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
        place("source", &self.source)
    }

    pub fn target_place(&self) -> Place {
        place("target", &self.target)
    }

    pub async fn on_source(&self, database: &str) -> Session {
        self.source_place().open(database, "foreshard tests").await.unwrap()
    }

    pub async fn on_target(&self, database: &str) -> Session {
        self.target_place().open(database, "foreshard tests").await.unwrap()
    }
}

fn place(node: &str, server: &TestServer) -> Place {
    let params = server.params("postgres");
    Place {
        node: NodeId::new(node).unwrap(),
        address: ServerAddress {
            host: params.host,
            port: params.port,
            user: params.user.clone(),
            password: String::new(),
            peer_host: None,
            peer_port: None,
            database: "postgres".into(),
            ..ServerAddress::default()
        },
        login: Login { user: params.user, password: String::new() },
    }
}
