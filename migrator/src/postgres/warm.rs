//! The new owner's cache: filled before the fence with what clients read most on the present one, so that the first minute after
//! the change of owner is not spent on waiting for its disk.

use std::time::Duration;

use super::backend::{Ends, PostgresBackend};
use super::names::SCHEMA;
use super::session::{Session, get, literal, qualified};
use crate::BackendError;
use crate::cause::with_causes;

/// Size of a block, which is fixed when PostgreSQL is built, and hardly ever another.
const BLOCK: u64 = 8192;
/// Blocks that one statement reads in: 128 MiB.
const SLICE: u64 = 16_384;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A table or an index of the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Relation {
    name: String,
    blocks: u64,
    is_index: bool,
}

/// What is read in: all of a relation, or its last blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part<'a> {
    relation: &'a Relation,
    first: u64,
}

/// What fits into `budget` blocks, in the given order. Of a table that does not fit the end is taken, where the newest rows
/// are; half an index is of little use.
fn chosen(relations: &[Relation], budget: u64) -> Vec<Part<'_>> {
    let mut left = budget;
    let mut parts = Vec::new();
    for relation in relations.iter().filter(|r| r.blocks > 0) {
        let blocks = relation.blocks.min(left);
        if blocks == 0 || (relation.is_index && blocks < relation.blocks) {
            continue;
        }
        left -= blocks;
        parts.push(Part { relation, first: relation.blocks - blocks });
    }
    parts
}

/// Tables and indexes, those that are read most often for their size first.
async fn by_use(owner: &Session) -> Result<Vec<Relation>, BackendError> {
    let sql = "SELECT schemaname::text, name, pg_relation_size(oid) / 8192, is_index FROM (\
                 SELECT relid AS oid, schemaname, relname::text AS name, \
                   COALESCE(heap_blks_hit + heap_blks_read, 0) AS reads, false AS is_index FROM pg_statio_user_tables \
                 UNION ALL SELECT indexrelid, schemaname, indexrelname::text, COALESCE(idx_blks_hit + idx_blks_read, 0), true \
                   FROM pg_statio_user_indexes) r \
               WHERE schemaname <> 'foreshard' AND pg_relation_size(oid) > 0 \
               ORDER BY reads::float8 / pg_relation_size(oid) DESC, schemaname, name";
    let rows = owner.query("looking for what clients read most", sql, &[]).await?;
    let one = |row: &tokio_postgres::Row| {
        Ok(Relation {
            name: qualified(get(row, 0)?, get(row, 1)?),
            blocks: u64::try_from(get::<i64>(row, 2)?).unwrap_or(0),
            is_index: get(row, 3)?,
        })
    };
    rows.iter().map(one).collect()
}

impl PostgresBackend {
    /// Fills the cache of `ends.target` as far as the settings allow. Whatever fails leaves it as cold as it is: no move is given
    /// up for that.
    pub(super) async fn warm(&self, ends: &Ends) {
        if let Err(error) = self.try_warm(ends).await {
            tracing::info!(node = %ends.target.node(), error = with_causes(&error), "the cache stays cold");
        }
    }

    async fn try_warm(&self, ends: &Ends) -> Result<(), BackendError> {
        let share = self.settings.warm_share.clamp(0.0, 1.0);
        if share.is_nan() || share == 0.0 {
            return Ok(());
        }
        // In the move's own schema, with which it goes; the extension would stay. It needs the module `pg_prewarm`.
        let make = format!(
            "CREATE OR REPLACE FUNCTION {SCHEMA}.prewarm(regclass, text, text, bigint, bigint) RETURNS bigint \
             LANGUAGE c AS '$libdir/pg_prewarm', 'pg_prewarm'"
        );
        ends.target.run("preparing to warm the cache", &make).await?;
        let sql = "SELECT pg_size_bytes(current_setting('shared_buffers'))";
        let cache: i64 = get(&ends.target.one("reading the size of the cache", sql, &[]).await?, 0)?;
        // Saturating by the rules of `as` for floats.
        let budget = (cache as f64 * share) as u64 / BLOCK;
        for part in chosen(&by_use(&ends.source).await?, budget) {
            read_in(&ends.target, &part).await?;
        }
        Ok(())
    }
}

/// Reads in a part, a slice at a time.
async fn read_in(target: &Session, part: &Part<'_>) -> Result<(), BackendError> {
    let mut from = part.first;
    while from < part.relation.blocks {
        let to = from.saturating_add(SLICE).min(part.relation.blocks);
        // The copy may be smaller than the original, which has holes.
        let sql = format!(
            "SELECT {SCHEMA}.prewarm(oid, 'buffer', 'main', {from}, LEAST({to}, blocks) - 1) FROM (SELECT oid, \
               pg_relation_size(oid) / current_setting('block_size')::bigint AS blocks \
               FROM pg_class WHERE oid = to_regclass({name})) r WHERE blocks > {from}",
            name = literal(&part.relation.name)
        );
        target.query_within(PATIENCE, "warming the cache", &sql, &[]).await?;
        from = to;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(name: &str, blocks: u64, is_index: bool) -> Relation {
        Relation { name: name.into(), blocks, is_index }
    }

    #[test]
    fn what_is_used_most_comes_in_first_and_nothing_beyond_the_budget() {
        let all = [
            relation("a", 10, false),
            relation("a_key", 4, true),
            relation("empty", 0, true),
            relation("b", 50, false),
        ];
        let taken =
            |budget| chosen(&all, budget).iter().map(|p| (p.relation.name.as_str(), p.first)).collect::<Vec<_>>();
        assert_eq!(taken(1_000), [("a", 0), ("a_key", 0), ("b", 0)]);
        assert_eq!(taken(30), [("a", 0), ("a_key", 0), ("b", 34)], "the end of a table");
        assert_eq!(taken(12), [("a", 0), ("b", 48)], "no half index");
        assert_eq!(taken(4), [("a", 6)]);
        assert_eq!(taken(0), []);
    }
}
