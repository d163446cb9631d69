//! Series that are asked for, and the rows that they make.

use foreshard_domain::{Observation, ShardId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::answer::RangeSeries;
use super::mapping::{check_scale, one};
use super::{LabelTemplate, MappingError, Measurement, SeriesTarget};

/// A query, and what the series that it gives become. One series for each shard at a time: sums are for the query to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PulledSeries {
    /// In Prometheus's language.
    pub query: String,
    /// What its values are.
    pub metric: Measurement,
    /// Whose.
    pub shard: LabelTemplate,
    /// The node that carried it; not told if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<LabelTemplate>,
    /// What a value is multiplied by to have the unit of the metric.
    #[serde(default = "one")]
    pub scale: f64,
}

impl PulledSeries {
    /// Whether the mapping can be used.
    ///
    /// # Errors
    /// [`MappingError::Scale`]: everything else is found while it is read, or told by Prometheus.
    pub fn check(&self) -> Result<(), MappingError> {
        check_scale(self.scale)
    }
}

/// What became of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PulledCounts {
    /// In rows.
    pub taken: u64,
    /// They say that there was nothing (`NaN`).
    pub missing: u64,
    /// Infinite or negative, or of a series whose labels make no name.
    pub refused: u64,
    /// Of a second series for the same shard, time and metric; the first one counts.
    pub doubled: u64,
}

/// Rows that answers make together.
#[derive(Debug, Default)]
pub struct PulledRows {
    rows: BTreeMap<(ShardId, Timestamp), Observation>,
    counts: PulledCounts,
    example: Option<String>,
}

impl PulledRows {
    /// Adds the series that a query gave for a part of a range.
    pub fn add(&mut self, mapping: &PulledSeries, all: &[RangeSeries]) {
        for series in all {
            match SeriesTarget::of(&mapping.shard, mapping.node.as_ref(), &|name| series.label(name)) {
                Ok(target) => self.add_series(mapping, &target, series),
                Err(error) => {
                    self.counts.refused += series.values.len() as u64;
                    let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
                    self.tell(|| format!("{}: {error}{cause}", told(mapping, series)));
                }
            }
        }
    }

    fn add_series(&mut self, mapping: &PulledSeries, target: &SeriesTarget, series: &RangeSeries) {
        for point in &series.values {
            let value = point.value * mapping.scale;
            if value.is_nan() {
                self.counts.missing += 1;
                continue;
            }
            if value.is_infinite() || value < 0.0 {
                self.counts.refused += 1;
                self.tell(|| format!("{}: {value} is no {}", told(mapping, series), mapping.metric));
                continue;
            }
            let ts = Timestamp::from_ms(point.ts_ms);
            let key = (target.shard.clone(), ts);
            let row = self.rows.entry(key).or_insert_with(|| Observation::empty(target.shard.clone(), ts));
            if mapping.metric.of(row).is_some() {
                self.counts.doubled += 1;
                let shard = &target.shard;
                let why =
                    format!("{} of shard {shard} has a value from another series already; sum up", mapping.metric);
                self.tell(|| format!("{}: {why}", told(mapping, series)));
                continue;
            }
            mapping.metric.put(row, Some(value));
            if target.node.is_some() {
                row.node.clone_from(&target.node);
            }
            self.counts.taken += 1;
        }
    }

    fn tell(&mut self, why: impl FnOnce() -> String) {
        self.example.get_or_insert_with(why);
    }

    /// How many values became what.
    pub fn counts(&self) -> PulledCounts {
        self.counts
    }

    /// Why the first of those values was left out that should not have been there.
    pub fn example(&self) -> Option<&str> {
        self.example.as_deref()
    }

    /// The rows, by shard and time.
    pub fn into_rows(self) -> impl Iterator<Item = Observation> {
        self.rows.into_values()
    }
}

fn told(mapping: &PulledSeries, series: &RangeSeries) -> String {
    let labels: Vec<String> = series.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    let labels: String = labels.join(",").chars().take(300).collect();
    format!("series {{{labels}}} of {:?}", mapping.query)
}

#[cfg(test)]
mod tests {
    use super::super::answer::Point;
    use super::*;

    fn mapping(metric: Measurement) -> PulledSeries {
        PulledSeries {
            query: "q".into(),
            metric,
            shard: "${db}".parse().unwrap(),
            node: Some("${host}".parse().unwrap()),
            scale: 2.0,
        }
    }

    fn series(db: &str, host: &str, values: &[(i64, f64)]) -> RangeSeries {
        let labels = [("db", db), ("host", host)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let values = values.iter().map(|(ts_ms, value)| Point { ts_ms: *ts_ms, value: *value }).collect();
        RangeSeries { labels: labels.into(), values }
    }

    #[test]
    fn answers_make_rows_together() {
        let mut rows = PulledRows::default();
        rows.add(&mapping(Measurement::CpuUtil), &[series("a", "n1", &[(0, 1.0), (1, f64::NAN)])]);
        // It moved: another series goes on where the first one ends.
        rows.add(&mapping(Measurement::IoOps), &[series("a", "n1", &[(0, 3.0)]), series("a", "n2", &[(1, 4.0)])]);
        assert_eq!(
            (rows.counts(), rows.example()),
            (PulledCounts { taken: 3, missing: 1, ..Default::default() }, None)
        );
        let rows: Vec<_> = rows.into_rows().collect();
        let told =
            |row: &Observation| (row.ts.as_ms(), row.cpu_util, row.io_ops, row.node.as_ref().unwrap().to_string());
        assert_eq!(told(&rows[0]), (0, Some(2.0), Some(6.0), "n1".to_owned()));
        assert_eq!(told(&rows[1]), (1, None, Some(8.0), "n2".to_owned()));
    }

    #[test]
    fn what_cannot_be_taken_is_counted_and_told() {
        let mut rows = PulledRows::default();
        rows.add(&mapping(Measurement::CpuUtil), &[series("a", "n1", &[(0, 1.0)]), series("a", "n2", &[(0, 5.0)])]);
        assert!(rows.example().unwrap().contains("cpu_util of shard a has a value from another series"));
        rows.add(&mapping(Measurement::IoOps), &[series("a", "n", &[(0, -1.0), (1, f64::INFINITY)])]);
        rows.add(&mapping(Measurement::IoOps), &[series("", "n", &[(0, 1.0), (1, 1.0)])]);
        assert_eq!(rows.counts(), PulledCounts { taken: 1, missing: 0, refused: 4, doubled: 1 });
        assert_eq!(rows.into_rows().next().unwrap().cpu_util, Some(2.0));
    }
}
