//! `ControlService` over gRPC: takes requests apart, has the carrier do them, puts answers together.

use foreshard_api::v1::control_service_server::ControlService;
use foreshard_api::{Migration, StartMigration, migration_id_from_wire, v1};
use foreshard_domain::NodeId;
use foreshard_migrator::Request as Asked;
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

use super::carrier::Carrier;
use super::status;

/// What the service works with.
pub(crate) struct ControlApi(pub(crate) Arc<Carrier>);

impl ControlApi {
    async fn ask(&self, id: String, asked: Asked) -> Result<Option<v1::Migration>, Status> {
        let id = migration_id_from_wire(id).map_err(|e| status::wire(&e))?;
        let migration: Migration = self.0.ask(&id, asked).await.map_err(|e| status::driver(&e))?;
        Ok(Some((&migration).into()))
    }
}

#[async_trait]
impl ControlService for ControlApi {
    async fn start_migration(
        &self,
        request: Request<v1::StartMigrationRequest>,
    ) -> Result<Response<v1::StartMigrationResponse>, Status> {
        let request = request.into_inner();
        let dry_run = request.dry_run;
        let asked = StartMigration::try_from(request).map_err(|e| status::wire(&e))?;
        if dry_run {
            let report = self.0.dry_run(&asked).await.map_err(|e| status::start(&e))?;
            return Ok(Response::new((&report).into()));
        }
        let migration = self.0.start(&asked).await.map_err(|e| status::start(&e))?;
        Ok(Response::new(v1::StartMigrationResponse { migration: Some((&migration).into()), steps: Vec::new() }))
    }

    async fn list_migrations(
        &self,
        _request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsResponse>, Status> {
        let all = self.0.list().await.map_err(|e| status::driver(&e))?;
        Ok(Response::new(v1::ListMigrationsResponse { migrations: all.iter().map(Into::into).collect() }))
    }

    async fn show_migration(
        &self,
        request: Request<v1::ShowMigrationRequest>,
    ) -> Result<Response<v1::ShowMigrationResponse>, Status> {
        let id = migration_id_from_wire(request.into_inner().id).map_err(|e| status::wire(&e))?;
        let details = self.0.show(&id).await.map_err(|e| status::driver(&e))?;
        Ok(Response::new((&details).into()))
    }

    async fn pause_migration(
        &self,
        request: Request<v1::PauseMigrationRequest>,
    ) -> Result<Response<v1::PauseMigrationResponse>, Status> {
        let migration = self.ask(request.into_inner().id, Asked::Pause).await?;
        Ok(Response::new(v1::PauseMigrationResponse { migration }))
    }

    async fn resume_migration(
        &self,
        request: Request<v1::ResumeMigrationRequest>,
    ) -> Result<Response<v1::ResumeMigrationResponse>, Status> {
        let migration = self.ask(request.into_inner().id, Asked::Resume).await?;
        Ok(Response::new(v1::ResumeMigrationResponse { migration }))
    }

    async fn cancel_migration(
        &self,
        request: Request<v1::CancelMigrationRequest>,
    ) -> Result<Response<v1::CancelMigrationResponse>, Status> {
        let migration = self.ask(request.into_inner().id, Asked::Cancel).await?;
        Ok(Response::new(v1::CancelMigrationResponse { migration }))
    }

    async fn rollback_migration(
        &self,
        request: Request<v1::RollbackMigrationRequest>,
    ) -> Result<Response<v1::RollbackMigrationResponse>, Status> {
        let migration = self.ask(request.into_inner().id, Asked::RollBack).await?;
        Ok(Response::new(v1::RollbackMigrationResponse { migration }))
    }

    async fn finish_migration(
        &self,
        request: Request<v1::FinishMigrationRequest>,
    ) -> Result<Response<v1::FinishMigrationResponse>, Status> {
        let v1::FinishMigrationRequest { id, lost_node } = request.into_inner();
        if lost_node.is_empty() {
            let migration = self.ask(id, Asked::Finish).await?;
            return Ok(Response::new(v1::FinishMigrationResponse { migration }));
        }
        let id = migration_id_from_wire(id).map_err(|e| status::wire(&e))?;
        let node = NodeId::new(lost_node).map_err(|e| Status::invalid_argument(format!("lost_node: {e}")))?;
        let migration = self.0.give_up_node(&id, &node).await.map_err(|e| status::driver(&e))?;
        Ok(Response::new(v1::FinishMigrationResponse { migration: Some((&migration).into()) }))
    }

    async fn shard_map(
        &self,
        _request: Request<v1::ShardMapRequest>,
    ) -> Result<Response<v1::ShardMapResponse>, Status> {
        let rows = self.0.shard_map().await.map_err(|e| status::driver(&e))?;
        Ok(Response::new(v1::ShardMapResponse { shards: rows.iter().map(Into::into).collect() }))
    }
}
