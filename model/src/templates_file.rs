//! Templates as a Parquet file: one row for each product, series and moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryBuilder, RecordBatch, StringBuilder, TimestampMillisecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit, TimestampMillisecondType};
use foreshard_domain::{Metric, ShardId, Timestamp};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::{RankTemplates, TemplatesError};

/// Why templates could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TemplatesFileError {
    /// The Parquet library refused.
    #[error("templates are no valid parquet file")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// The columns do not fit.
    #[error("templates do not have the columns product, shard_id, metric, issued_at, ranks")]
    Columns(#[from] arrow::error::ArrowError),
    /// A text of the file is no name.
    #[error("row {row} of the templates names no valid shard or metric")]
    Name {
        /// Counted from 0 within its batch.
        row: usize,
    },
    /// The ranks do not fit the product.
    #[error("templates of {product} do not fit")]
    Ranks {
        /// Which product.
        product: String,
        #[source]
        source: TemplatesError,
    },
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("product", DataType::Utf8, false),
        Field::new("shard_id", DataType::Utf8, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("issued_at", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        Field::new("ranks", DataType::Binary, false),
    ]))
}

/// The bytes of the file; equal templates, equal bytes.
pub(crate) fn templates_bytes(templates: &BTreeMap<String, &RankTemplates>) -> Result<Vec<u8>, TemplatesFileError> {
    let (mut products, mut shards, mut metrics) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut moments, mut ranks) = (TimestampMillisecondBuilder::new().with_timezone("UTC"), BinaryBuilder::new());
    for (product, templates) in templates {
        for (shard, metric, lane) in templates.series() {
            for (at, row) in templates.issued_at().iter().zip(lane.chunks_exact(templates.slots())) {
                products.append_value(product);
                shards.append_value(shard.as_str());
                metrics.append_value(metric.name());
                moments.append_value(at.as_ms());
                ranks.append_value(row);
            }
        }
    }
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(products.finish()),
        Arc::new(shards.finish()),
        Arc::new(metrics.finish()),
        Arc::new(moments.finish()),
        Arc::new(ranks.finish()),
    ];
    let batch = RecordBatch::try_new(schema(), columns)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(bytes)
}

type Row = ((Metric, ShardId), Timestamp, Vec<u8>);

/// Templates by product; `horizons` are those of the products that may occur, others are left out.
pub(crate) fn read_templates(
    bytes: Vec<u8>,
    horizons: &BTreeMap<String, usize>,
) -> Result<BTreeMap<String, RankTemplates>, TemplatesFileError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes))?.build()?;
    let mut rows: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for batch in reader {
        read_batch(&batch?, &mut rows)?;
    }
    let known = rows.into_iter().filter_map(|(product, rows)| Some((*horizons.get(&product)?, product, rows)));
    known
        .map(|(horizon, product, rows)| match RankTemplates::from_stored(horizon, rows) {
            Ok(templates) => Ok((product, templates)),
            Err(source) => Err(TemplatesFileError::Ranks { product, source }),
        })
        .collect()
}

fn read_batch(batch: &RecordBatch, rows: &mut BTreeMap<String, Vec<Row>>) -> Result<(), TemplatesFileError> {
    let wrong =
        |name: &str| arrow::error::ArrowError::SchemaError(format!("column {name} is missing or of another type"));
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| wrong(name));
    let text = |name: &str| column(name).and_then(|c| c.as_string_opt::<i32>().ok_or_else(|| wrong(name)));
    let (products, shards, metrics) = (text("product")?, text("shard_id")?, text("metric")?);
    let moments =
        column("issued_at")?.as_primitive_opt::<TimestampMillisecondType>().ok_or_else(|| wrong("issued_at"))?;
    let ranks = column("ranks")?.as_binary_opt::<i32>().ok_or_else(|| wrong("ranks"))?;
    for row in 0..batch.num_rows() {
        let name = TemplatesFileError::Name { row };
        let (Ok(shard), Ok(metric)) = (ShardId::new(shards.value(row)), metrics.value(row).parse::<Metric>()) else {
            return Err(name);
        };
        let at = Timestamp::from_ms(moments.value(row));
        let of_product = rows.entry(products.value(row).to_owned()).or_default();
        of_product.push(((metric, shard), at, ranks.value(row).to_vec()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TemplateLimits;

    #[test]
    fn bytes_go_both_ways() {
        let shard = |name: &str| ShardId::new(name).unwrap();
        let rows: Vec<Row> = (0..20u8)
            .map(|i| {
                let name = (if i % 2 == 0 { Metric::CpuUtil } else { Metric::IoOps }, shard(&format!("s{}", i % 3)));
                (name, Timestamp::from_ms(i64::from(i) / 6), vec![i + 1; 48])
            })
            .collect();
        let templates = RankTemplates::from_ranks(96, rows, &TemplateLimits::default());
        let by_product = BTreeMap::from([("next_day".to_owned(), &templates)]);
        let bytes = templates_bytes(&by_product).unwrap();
        assert_eq!(bytes, templates_bytes(&by_product).unwrap());
        let read = |horizon| read_templates(bytes.clone(), &BTreeMap::from([("next_day".to_owned(), horizon)]));
        assert_eq!(read(96).unwrap()["next_day"], templates);
        assert!(matches!(read(12), Err(TemplatesFileError::Ranks { .. })));
        assert!(read_templates(b"junk".to_vec(), &BTreeMap::new()).is_err());
        assert!(templates_bytes(&BTreeMap::new()).is_ok());
    }
}
