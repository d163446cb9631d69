//! The new owner opens to clients: one transaction, and clients wait for it.
//!
//! Triggers that fire on replicated changes are put in force in it, which takes their tables' locks. Only autovacuum has a
//! reason to hold one of these then, and it gives way to whoever waits - after `deadlock_timeout`, and not at all if it runs
//! against wraparound. So that time is made short here, and a worker that stays is ended: another one begins again later.

use foreshard_domain::Epoch;
use std::time::Duration;

use super::guard::{control, refusal, refused};
use super::names::SCHEMA;
use super::session::{Session, ident, literal, sqlstate};
use crate::{BackendError, MoveSpec};

/// Longest wait for locks in one try.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// After so many tries whoever holds a lock is no passer-by: the driver says that the migration is stuck, and tries again.
const TRIES: u32 = 50;

/// Opens the shard here in `epoch`, to everybody who could log in where it comes from; nothing happens if it is already.
pub(super) async fn open(session: &Session, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
    let doing = "opening the new owner";
    let Some(found) = control(session).await?.filter(|c| c.migration == spec.migration.as_str()) else {
        return Err(refusal(session, doing, spec).await);
    };
    if found.state == "open" && found.epoch == epoch {
        return Ok(());
    }
    if found.epoch >= epoch || !matches!(found.state.as_str(), "importing" | "sealed") {
        return Err(refusal(session, doing, spec).await);
    }
    if found.fence_at.is_none() {
        return Err(refused(doing, format!("node {} was never proven to hold everything", session.node())));
    }
    // The condition is asked for again in the transaction itself; the division fails, and with it all of it, if it does not hold.
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL deadlock_timeout = '1ms'; SET LOCAL lock_timeout = '{wait}ms'; \
         UPDATE {SCHEMA}.control SET state = 'open', epoch = {e}, deadline = NULL, fence_at = NULL, opening = NULL \
           WHERE migration = {m} AND epoch < {e} AND state IN ('importing', 'sealed'); \
         SELECT 1 / count(*) FROM {SCHEMA}.control WHERE migration = {m} AND epoch = {e} AND state = 'open'; \
         {opening}; ALTER DATABASE {database} SET foreshard.epoch = '{e}'; COMMIT",
        wait = LOCK_TIMEOUT.as_millis(),
        opening = found.opening.as_deref().filter(|o| !o.is_empty()).unwrap_or("SELECT 1"),
        database = ident(session.database()),
        e = epoch.0,
        m = literal(spec.migration.as_str())
    );
    let mut tries = 0;
    loop {
        let error = match session.run(doing, &sql).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        tries += 1;
        if sqlstate(&error) != Some("55P03") || tries >= TRIES {
            return Err(error);
        }
        let workers = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE datname = current_database() AND backend_type = 'autovacuum worker'";
        session.query("ending autovacuum, which holds up the opening", workers, &[]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::guard;
    use crate::postgres::test_server::{LIMIT, TestServer};
    use crate::{Position, Way};
    use foreshard_domain::{Consistency, MigrationId, NodeId, ShardId};
    use std::sync::Arc;
    use tokio::time::Instant;

    /// A database that is about to open, with a table whose trigger fires on replicated changes then.
    async fn about_to_open(server: &TestServer) -> (Arc<Session>, MoveSpec) {
        let database = server.database().await;
        let node = |name| NodeId::new(name).unwrap();
        let spec = MoveSpec {
            migration: MigrationId::new("m-opening").unwrap(),
            shard: ShardId::new(&database).unwrap(),
            source: node("source"),
            target: node("target"),
            epoch: Epoch(1),
            consistency: Consistency::Strict,
            way: Way::There,
        };
        let session = Arc::new(server.place("target").open(&database, "foreshard tests").await.unwrap());
        guard::install(&session, &spec, "importing").await.unwrap();
        let made = "CREATE TABLE public.t (n int); INSERT INTO public.t SELECT generate_series(1, 20000); DELETE FROM public.t WHERE n % 2 = 0; \
                    CREATE TRIGGER r BEFORE UPDATE ON public.t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger(); \
                    ALTER TABLE public.t DISABLE TRIGGER r";
        session.run("making a table", made).await.unwrap();
        let opening = ["ALTER TABLE ONLY public.t ENABLE REPLICA TRIGGER r".to_owned()];
        guard::note_opening(&session, &opening, &["SELECT 1".to_owned()]).await.unwrap();
        guard::note_proven(&session, &spec, Position(1)).await.unwrap();
        (session, spec)
    }

    async fn is_open(session: &Session) -> bool {
        let enabled = session.texts("looking", "SELECT tgenabled FROM pg_trigger WHERE tgname = 'r'").await.unwrap();
        let state = control(session).await.unwrap().unwrap().state;
        state == "open" && enabled == [[Some("R".to_owned())]]
    }

    #[tokio::test]
    async fn autovacuum_gives_way_at_once() {
        let Some(server) = TestServer::own() else { return };
        let (session, spec) = about_to_open(&server).await;
        let slow = "ALTER TABLE public.t SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, \
                    autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0)";
        session.run("slowing autovacuum", slow).await.unwrap();
        // By itself it would go on for as long as PostgreSQL looks for no deadlock.
        for setting in [
            "ALTER SYSTEM SET autovacuum = on",
            "ALTER SYSTEM SET autovacuum_naptime = '1s'",
            "ALTER SYSTEM SET deadlock_timeout = '60s'",
        ] {
            session.run("setting", setting).await.unwrap();
        }
        session.run("reloading", "SELECT pg_reload_conf()").await.unwrap();
        let works = "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = 'public.t'::regclass \
                     AND backend_type = 'autovacuum worker' AND mode = 'ShareUpdateExclusiveLock' AND granted";
        let began = Instant::now();
        while session.texts("looking for autovacuum", works).await.unwrap().is_empty() {
            assert!(began.elapsed() < LIMIT, "autovacuum does not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let began = Instant::now();
        open(&session, &spec, Epoch(2)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "clients wait for autovacuum: {:?}", began.elapsed());
        assert!(is_open(&session).await);
    }

    #[tokio::test]
    async fn a_lock_that_somebody_holds_holds_up_the_opening_and_spoils_nothing() {
        let Some(server) = TestServer::shared() else { return };
        let (session, spec) = about_to_open(&server).await;
        let holder = server.session(session.database()).await;
        holder.batch_execute("BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
        let opener = tokio::spawn({
            let session = Arc::clone(&session);
            async move { open(&session, &spec, Epoch(2)).await }
        });
        tokio::time::sleep(LOCK_TIMEOUT * 3).await;
        assert!(!opener.is_finished(), "{:?}", opener.await);
        holder.batch_execute("COMMIT").await.unwrap();
        opener.await.unwrap().unwrap();
        assert!(is_open(&session).await);
    }
}
