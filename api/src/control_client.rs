//! A typed client of `ControlService`.

use foreshard_domain::{MigrationId, NodeId};
use std::path::Path;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

use crate::convert::migration::{migration_from_wire, start_to_wire};
use crate::v1::control_service_client::ControlServiceClient;
use crate::{
    ClientError, DryRunReport, MAX_RESPONSE_BYTES, Migration, MigrationDetails, ShardOwner, StartMigration, WireError,
    v1,
};

/// Deadline of a call: a start looks at every node, and a dry run checks both.
const TIMEOUT: Duration = Duration::from_secs(300);

/// How long a connection attempt may take: the holder is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the process that holds the state store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlClient {
    inner: ControlServiceClient<Channel>,
}

impl ControlClient {
    /// Connects to the Unix socket of the process that holds the store.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let endpoint = format!("unix:{}", socket.display());
        let address = Endpoint::from_shared(endpoint.clone())
            .map_err(|source| ClientError::Endpoint { endpoint: endpoint.clone(), source })?
            .connect_timeout(CONNECT_TIMEOUT);
        let channel = address.connect().await.map_err(|source| ClientError::Connect { endpoint, source })?;
        Ok(Self { inner: ControlServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES) })
    }

    /// Records a move and begins it; returns when it is recorded. The holder goes on by itself.
    ///
    /// # Errors
    /// [`ClientError::Call`] with `NotFound` if no node holds the shard, `FailedPrecondition` if it moves already, belongs to
    /// another node or is held by several, `InvalidArgument` for a move that cannot be.
    pub async fn start(&self, asked: &StartMigration) -> Result<Migration, ClientError> {
        let method = "StartMigration";
        let request = request(start_to_wire(asked, false));
        let answer = self.inner.clone().start_migration(request).await.map_err(failed(method))?;
        migration_from_wire(answer.into_inner().migration).map_err(refused(method))
    }

    /// What [`ControlClient::start`] would do; only the checks are done.
    ///
    /// # Errors
    /// As [`ControlClient::start`].
    pub async fn dry_run(&self, asked: &StartMigration) -> Result<DryRunReport, ClientError> {
        let method = "StartMigration";
        let request = request(start_to_wire(asked, true));
        let answer = self.inner.clone().start_migration(request).await.map_err(failed(method))?.into_inner();
        let migration = migration_from_wire(answer.migration).map_err(refused(method))?;
        Ok(DryRunReport { migration, steps: answer.steps })
    }

    /// All migrations, oldest first.
    ///
    /// # Errors
    /// [`ClientError::Call`] or [`ClientError::Answer`].
    pub async fn list(&self) -> Result<Vec<Migration>, ClientError> {
        let method = "ListMigrations";
        let answer =
            self.inner.clone().list_migrations(request(v1::ListMigrationsRequest {})).await.map_err(failed(method))?;
        let migrations = answer.into_inner().migrations.into_iter().map(TryInto::try_into);
        migrations.collect::<Result<_, _>>().map_err(refused(method))
    }

    /// One migration.
    ///
    /// # Errors
    /// [`ClientError::Call`] with `NotFound` if it is not known.
    pub async fn show(&self, id: &MigrationId) -> Result<MigrationDetails, ClientError> {
        let method = "ShowMigration";
        let asked = request(v1::ShowMigrationRequest { id: id.to_string() });
        let answer = self.inner.clone().show_migration(asked).await.map_err(failed(method))?;
        answer.into_inner().try_into().map_err(refused(method))
    }

    /// Who owns which shard, ordered by shard.
    ///
    /// # Errors
    /// [`ClientError::Call`] or [`ClientError::Answer`].
    pub async fn shard_map(&self) -> Result<Vec<ShardOwner>, ClientError> {
        let method = "ShardMap";
        let answer = self.inner.clone().shard_map(request(v1::ShardMapRequest {})).await.map_err(failed(method))?;
        answer.into_inner().shards.into_iter().map(TryInto::try_into).collect::<Result<_, _>>().map_err(refused(method))
    }
}

/// A verb on one migration: they differ only in their name.
macro_rules! verb {
    ($(#[$doc:meta])* $verb:ident, $call:ident, $method:literal, $request:ident) => {
        impl ControlClient {
            $(#[$doc])*
            ///
            /// # Errors
            /// [`ClientError::Call`] with `NotFound` if the migration is not known, `FailedPrecondition` if its state does not
            /// allow this.
            pub async fn $verb(&self, id: &MigrationId) -> Result<Migration, ClientError> {
                let asked = request(v1::$request { id: id.to_string() });
                let answer = self.inner.clone().$call(asked).await.map_err(failed($method))?;
                migration_from_wire(answer.into_inner().migration).map_err(refused($method))
            }
        }
    };
}

verb!(
    /// Lets a migration stand still, if it is before the fence.
    pause, pause_migration, "PauseMigration", PauseMigrationRequest
);
verb!(
    /// Goes on with a migration that is paused, or that nobody carries.
    resume, resume_migration, "ResumeMigration", ResumeMigrationRequest
);
verb!(
    /// Gives up the owner change under way, if it is before the seal.
    cancel, cancel_migration, "CancelMigration", CancelMigrationRequest
);
verb!(
    /// Takes a move back while the source's data is kept.
    rollback, rollback_migration, "RollbackMigration", RollbackMigrationRequest
);
impl ControlClient {
    /// Removes the source's copy after its retention; or, if `lost` names the node that does not own the shard and is gone for
    /// good, ends without it.
    ///
    /// # Errors
    /// [`ClientError::Call`] with `NotFound` if the migration is not known, `FailedPrecondition` if its state does not allow
    /// this or another node would have to be named.
    pub async fn finish(&self, id: &MigrationId, lost: Option<&NodeId>) -> Result<Migration, ClientError> {
        const METHOD: &str = "FinishMigration";
        let lost_node = lost.map(ToString::to_string).unwrap_or_default();
        let asked = request(v1::FinishMigrationRequest { id: id.to_string(), lost_node });
        let answer = self.inner.clone().finish_migration(asked).await.map_err(failed(METHOD))?;
        migration_from_wire(answer.into_inner().migration).map_err(refused(METHOD))
    }
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn failed(method: &'static str) -> impl Fn(tonic::Status) -> ClientError {
    move |status| ClientError::Call { method, source: Box::new(status) }
}

fn refused(method: &'static str) -> impl Fn(WireError) -> ClientError {
    move |source| ClientError::Answer { method, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_no_connection() {
        let nobody = ControlClient::connect(Path::new("/nonexistent/foreshard.sock")).await;
        assert!(matches!(nobody, Err(ClientError::Connect { .. })), "{nobody:?}");
    }
}
