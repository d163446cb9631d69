//! Which row groups of a file can hold rows that are wanted, by the bounds that its footer states.

use arrow::datatypes::{DataType, Schema, TimeUnit};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;

use crate::columns::{SHARD, TS};
use crate::history::ReadFilter;

/// Whether a row group can hold rows of the wanted shards and times; yes, where the footer does not tell.
pub(crate) fn may_hold(group: &RowGroupMetaData, schema: &Schema, filter: &ReadFilter) -> bool {
    let bounds = |name: &str| group.columns().iter().find(|c| c.column_path().string() == name).and_then(known);
    let shards = filter.shards.as_ref().zip(bounds(SHARD));
    let shard = shards.is_none_or(|(wanted, statistics)| match text_bounds(statistics) {
        Some((least, most)) => wanted.iter().any(|s| least <= s.as_str().as_bytes() && s.as_str().as_bytes() <= most),
        None => true,
    });
    let in_ms = |t: &DataType| matches!(t, DataType::Timestamp(TimeUnit::Millisecond, _));
    let in_ms = schema.fields().iter().any(|f| f.name() == TS && in_ms(f.data_type()));
    let time = match bounds(TS) {
        Some(Statistics::Int64(ts)) if in_ms => ts.min_opt().zip(ts.max_opt()).is_none_or(|(least, most)| {
            filter.from.is_none_or(|from| from.as_ms() <= *most) && filter.to.is_none_or(|to| *least < to.as_ms())
        }),
        _ => true,
    };
    shard && time
}

/// The bounds of a column, if it has no null: rows without a key have to be found, not passed over.
fn known(column: &ColumnChunkMetaData) -> Option<&Statistics> {
    column.statistics().filter(|s| !s.is_min_max_deprecated() && s.null_count_opt() == Some(0))
}

fn text_bounds(statistics: &Statistics) -> Option<(&[u8], &[u8])> {
    let Statistics::ByteArray(text) = statistics else { return None };
    Some((text.min_bytes_opt()?, text.max_bytes_opt()?))
}
