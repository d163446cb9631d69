//! Which servers hold a shard's database, and how large it is there.

use foreshard_domain::{NodeId, ShardId};

use super::backend::PostgresBackend;
use super::session::literal;
use crate::{BackendError, Found};

impl PostgresBackend {
    /// All servers are asked, or `on` alone; one that cannot be asked is an error, since it may hold the shard as well.
    pub(super) async fn holders(&self, shard: &ShardId, on: Option<&NodeId>) -> Result<Vec<Found>, BackendError> {
        let doing = "looking for the shard";
        if let Some(on) = on {
            self.address(on)?;
        }
        let sql = format!(
            "SELECT pg_catalog.pg_database_size(oid) FROM pg_catalog.pg_database \
             WHERE datname = {} AND datallowconn AND NOT datistemplate AND datconnlimit <> -2",
            literal(shard.as_str())
        );
        let mut found = Vec::new();
        for node in self.settings.nodes.keys().filter(|node| on.is_none_or(|on| on == *node)) {
            let server = self.session(node, &self.address(node)?.database, "foreshard find").await?;
            if let Some(row) = server.texts(doing, &sql).await?.first() {
                let bytes = row.first().and_then(Option::as_deref).and_then(|text| text.parse().ok());
                found.push(Found { node: node.clone(), bytes: bytes.unwrap_or(0) });
            }
        }
        Ok(found)
    }
}
