//! Forecast files: one row for each series, origin and step.

use std::path::{Path, PathBuf};

use foreshard_domain::{ForecastError, Metric, QuantileLevels, ShardId, Timestamp};

use crate::TableError;
use crate::table::{Table, TableBuilder};

/// One step of one forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct ForecastRow {
    /// Whose series.
    pub shard: ShardId,
    /// Which metric.
    pub metric: Metric,
    /// Grid time of the last complete step before the window.
    pub issued_at: Timestamp,
    /// Grid time of the last step before the window that was observed.
    pub last_observed: Option<Timestamp>,
    /// Grid time of the step.
    pub target_ts: Timestamp,
    /// One value for each level of the file.
    pub quantiles: Vec<f32>,
    /// Probability that any step of the window meets the event; the same in all rows of a window.
    pub p_any: Option<f64>,
    /// The model version that it came from, or the name of a rival.
    pub model_version: String,
    /// Why it did not come from the model, if so.
    pub fallback: Option<String>,
}

/// Why a forecast file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ForecastsError {
    /// The file is wrong.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A row has another number of quantiles than there are levels.
    #[error("row {row} has {got} quantiles for {levels} levels")]
    Quantiles {
        /// The row, counted from 0.
        row: usize,
        /// Its quantiles.
        got: usize,
        /// The levels of the file.
        levels: usize,
    },
    /// The columns `q...` are no levels.
    #[error("{path} has no usable quantile columns; expected q0.1 to q0.9 or the like, found {found}")]
    Levels {
        /// The file.
        path: PathBuf,
        /// The columns that are there.
        found: String,
        /// What is wrong with them.
        #[source]
        source: ForecastError,
    },
}

/// Writes forecasts in the order given; columns `q<level>` as 32-bit floats.
///
/// # Errors
/// [`ForecastsError::Quantiles`] if a row does not fit the levels; otherwise I/O or encoding.
pub fn write_forecasts(path: &Path, levels: &QuantileLevels, rows: &[ForecastRow]) -> Result<(), ForecastsError> {
    let misfit = rows.iter().enumerate().find(|(_, r)| r.quantiles.len() != levels.len());
    if let Some((row, wrong)) = misfit {
        return Err(ForecastsError::Quantiles { row, got: wrong.quantiles.len(), levels: levels.len() });
    }
    let mut table = TableBuilder::default()
        .text("shard_id", rows.iter().map(|r| Some(r.shard.as_str())))
        .text("metric", rows.iter().map(|r| Some(r.metric.name())))
        .times("issued_at", rows.iter().map(|r| Some(r.issued_at)))
        .times("last_observed", rows.iter().map(|r| r.last_observed))
        .times("target_ts", rows.iter().map(|r| Some(r.target_ts)));
    for (i, level) in levels.as_slice().iter().enumerate() {
        table = table.floats(format!("q{level}"), rows.iter().map(|r| r.quantiles.get(i).copied()));
    }
    table
        .numbers("p_any", rows.iter().map(|r| r.p_any))
        .text("model_version", rows.iter().map(|r| Some(r.model_version.as_str())))
        .text("fallback", rows.iter().map(|r| r.fallback.as_deref()))
        .write(path)?;
    Ok(())
}

/// Reads forecasts in the order of the file. `metric`, `last_observed`, `p_any`, `model_version` and `fallback` may be
/// absent, so that files of other programs can be compared; without `metric` it is taken to be `cpu_util`.
///
/// # Errors
/// [`ForecastsError`]: damaged files, missing columns, absent quantiles.
pub fn read_forecasts(path: &Path) -> Result<(QuantileLevels, Vec<ForecastRow>), ForecastsError> {
    let table = Table::read(path)?;
    let names = table.names();
    let level = |name: &String| name.strip_prefix('q').and_then(|l| l.parse::<f64>().ok()).map(|l| (l, name.clone()));
    let mut columns: Vec<(f64, String)> = names.iter().filter_map(level).collect();
    columns.sort_by(|a, b| a.0.total_cmp(&b.0));
    let levels = QuantileLevels::new(columns.iter().map(|(l, _)| *l).collect());
    let levels =
        levels.map_err(|source| ForecastsError::Levels { path: path.into(), found: names.join(", "), source })?;
    let quantiles = columns.iter().map(|(_, name)| table.numbers(name)).collect::<Result<Vec<_>, _>>()?;
    let (shard, metric) = (table.text("shard_id")?, table.text_or_none("metric")?);
    let (issued_at, target_ts) = (table.times("issued_at")?, table.times("target_ts")?);
    let observed = if names.iter().any(|n| n == "last_observed") { Some(table.times("last_observed")?) } else { None };
    let p_any = table.numbers_or_none("p_any")?;
    let (version, fallback) = (table.text_or_none("model_version")?, table.text_or_none("fallback")?);
    let mut rows = Vec::with_capacity(table.rows());
    for i in 0..table.rows() {
        rows.push(ForecastRow {
            shard: shard.parse(i)?,
            metric: metric.parse_optional(i)?.unwrap_or(Metric::CpuUtil),
            issued_at: issued_at.need(i)?,
            last_observed: observed.as_ref().and_then(|o| o.get(i)),
            target_ts: target_ts.need(i)?,
            // Quantiles are 32-bit floats everywhere; wider ones of other programs are rounded.
            quantiles: quantiles.iter().map(|q| Ok(q.need(i)? as f32)).collect::<Result<_, TableError>>()?,
            p_any: p_any.get(i),
            model_version: version.get(i).unwrap_or_default().to_owned(),
            fallback: fallback.get(i).map(str::to_owned),
        });
    }
    Ok((levels, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: i64) -> ForecastRow {
        let issued_at = Timestamp::from_ms(1_700_000_100_000);
        ForecastRow {
            shard: ShardId::new("s").unwrap(),
            metric: Metric::TxnRate,
            issued_at,
            last_observed: (step > 1).then_some(issued_at),
            target_ts: issued_at.plus_ms(step * 300_000),
            quantiles: vec![0.1, 0.2, 0.3],
            p_any: (step > 1).then_some(0.25),
            model_version: "lstm/1".into(),
            fallback: (step == 1).then(|| "too_short".to_owned()),
        }
    }

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        let levels = QuantileLevels::new(vec![0.1, 0.5, 0.95]).unwrap();
        let rows = vec![row(1), row(2)];
        write_forecasts(&path, &levels, &rows).unwrap();
        assert_eq!(read_forecasts(&path).unwrap(), (levels.clone(), rows));
        write_forecasts(&path, &levels, &[]).unwrap();
        assert_eq!(read_forecasts(&path).unwrap(), (levels, vec![]));
    }

    #[test]
    fn refuses_misfits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        let levels = QuantileLevels::new(vec![0.1, 0.5]).unwrap();
        let wrong = write_forecasts(&path, &levels, &[row(1)]);
        assert!(matches!(wrong, Err(ForecastsError::Quantiles { row: 0, got: 3, levels: 2 })));
        TableBuilder::default().text("shard_id", [Some("s")].into_iter()).write(&path).unwrap();
        assert!(matches!(read_forecasts(&path), Err(ForecastsError::Levels { .. })));
        let levels = QuantileLevels::new(vec![0.1, 0.5, 0.9]).unwrap();
        let mut gap = row(1);
        gap.quantiles[1] = f32::NAN;
        write_forecasts(&path, &levels, &[gap]).unwrap();
        let Err(ForecastsError::Table(TableError::MissingValue { column, .. })) = read_forecasts(&path) else {
            panic!("accepted")
        };
        assert_eq!(column, "q0.5");
    }
}
