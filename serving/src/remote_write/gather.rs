//! From series to rows.

use foreshard_datasets::prometheus::{Measurement, ReceivedSeries, SeriesTarget};
use foreshard_domain::{Observation, ShardId, Timestamp};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

use super::message::TimeSeries;
use super::owners::Owners;
use crate::ingest::{Arrival, reason, sound};

/// The value that says that a series has ended: one NaN among many.
const STALE: u64 = 0x7ff0_0000_0000_0002;

/// Rows of one request. Prometheus sends 500 to 2000 samples at once; a row takes many times the bytes that a sample may have.
pub(super) const MOST_ROWS: usize = 100_000;

/// What became of samples.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Samples {
    pub(super) taken: u64,
    /// No mapping names their series.
    pub(super) unmapped: u64,
    /// Marks of series that ended.
    pub(super) stale: u64,
    /// They say that there was nothing.
    pub(super) missing: u64,
    pub(super) refused: u64,
}

/// What a message has for the mapped series.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) rows: BTreeMap<(ShardId, Timestamp), Observation>,
    pub(super) samples: Samples,
    /// Samples that were not taken.
    pub(super) refused: u64,
    /// Why the first of them was not.
    pub(super) example: Option<String>,
    /// They make more than [`MOST_ROWS`] rows.
    pub(super) too_many: bool,
}

impl Gathered {
    fn refuse(&mut self, samples: usize, why: impl FnOnce() -> String) {
        self.refused += samples as u64;
        self.samples.refused += samples as u64;
        self.example.get_or_insert_with(why);
    }
}

/// Takes note of the ends of a series. All marks of a message come before its samples: a series that takes over from another
/// may stand before it, at the same time.
pub(super) fn end(series: &TimeSeries, mappings: &[ReceivedSeries], owners: &mut Owners) {
    if !series.samples.iter().any(|sample| sample.value.to_bits() == STALE) {
        return;
    }
    let mapping = mappings.iter().find(|mapping| mapping.select.matches(&|name| series.label(name)));
    let Some(mapping) = mapping else { return };
    if let Ok(target) = SeriesTarget::of(&mapping.shard, mapping.node.as_ref(), &|name| series.label(name)) {
        owners.ended(&(target.shard, mapping.metric), identity(series));
    }
}

/// Adds a series to what was gathered. The first mapping that names it says what it is.
pub(super) fn gather(
    series: &TimeSeries,
    (mappings, owners): (&[ReceivedSeries], &mut Owners),
    arrival: Arrival,
    gathered: &mut Gathered,
) {
    let Some(mapping) = mappings.iter().find(|mapping| mapping.select.matches(&|name| series.label(name))) else {
        gathered.samples.unmapped += series.samples.len() as u64;
        return;
    };
    let target = SeriesTarget::of(&mapping.shard, mapping.node.as_ref(), &|name| series.label(name));
    let target = match target {
        Ok(target) => target,
        Err(error) => {
            return gathered.refuse(series.samples.len(), || format!("series {}: {}", series.told(), reason(&error)));
        }
    };
    let (key, id) = ((target.shard.clone(), mapping.metric), identity(series));
    for sample in &series.samples {
        if sample.value.to_bits() == STALE {
            gathered.samples.stale += 1;
            owners.ended(&key, id);
            continue;
        }
        if sample.value.is_nan() {
            gathered.samples.missing += 1;
            continue;
        }
        let value = sample.value * mapping.scale;
        let row = row(&target, mapping.metric, Timestamp::from_ms(sample.timestamp), value);
        if let Err(why) = sound(&row, arrival) {
            gathered.refuse(1, || format!("series {}: {why}", series.told()));
        } else if !owners.may(&key, id, sample.timestamp) {
            gathered.refuse(1, || taken_already(series, mapping.metric, &target.shard));
        } else if gathered.rows.len() >= MOST_ROWS && !gathered.rows.contains_key(&(row.shard.clone(), row.ts)) {
            gathered.too_many = true;
            return;
        } else {
            gathered.samples.taken += 1;
            join(&mut gathered.rows, row, mapping.metric);
        }
    }
}

fn row(target: &SeriesTarget, metric: Measurement, ts: Timestamp, value: f64) -> Observation {
    let mut row = Observation::empty(target.shard.clone(), ts);
    row.node.clone_from(&target.node);
    metric.put(&mut row, Some(value));
    row
}

fn join(rows: &mut BTreeMap<(ShardId, Timestamp), Observation>, part: Observation, metric: Measurement) {
    let value = metric.of(&part);
    let row = rows.entry((part.shard.clone(), part.ts)).or_insert_with(|| part.clone());
    metric.put(row, value);
    if part.node.is_some() {
        row.node = part.node;
    }
}

fn taken_already(series: &TimeSeries, metric: Measurement, shard: &ShardId) -> String {
    format!(
        "series {}: {metric} of shard {shard} comes from another series already; select only one, such as a recording rule that \
         sums them up",
        series.told()
    )
}

/// A number for the labels of a series, in whatever order they come.
fn identity(series: &TimeSeries) -> u64 {
    let mut labels: Vec<_> = series.labels.iter().map(|label| (&label.name, &label.value)).collect();
    labels.sort_unstable();
    let mut hash = Xxh3::new();
    for (name, value) in labels {
        for text in [name, value] {
            hash.update(text.as_bytes());
            // No text holds this byte: what follows each other is told apart.
            hash.update(&[0xff]);
        }
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::series;
    use super::*;

    const M: i64 = 60_000;
    const ARRIVAL: Arrival = Arrival { now: Timestamp::from_ms(100 * M), ahead_at_most_ms: 5 * M };

    fn mappings() -> Vec<ReceivedSeries> {
        let mapping = |select: &str, metric: &str, scale: f64| ReceivedSeries {
            select: select.parse().unwrap(),
            metric: serde_json::from_value(metric.into()).unwrap(),
            shard: "${db}".parse().unwrap(),
            node: Some("${host}".parse().unwrap()),
            scale,
        };
        vec![mapping("cores", "cpu_util", 25.0), mapping("io{db!='x'}", "io_ops", 1.0)]
    }

    fn gathered(all: &[TimeSeries]) -> Gathered {
        let (mut gathered, mut owners) = (Gathered::default(), Owners::default());
        all.iter().for_each(|series| end(series, &mappings(), &mut owners));
        for series in all {
            gather(series, (&mappings(), &mut owners), ARRIVAL, &mut gathered);
        }
        gathered
    }

    fn cores(host: &str, samples: &[(i64, f64)]) -> TimeSeries {
        series(&[("__name__", "cores"), ("db", "a"), ("host", host)], samples)
    }

    #[test]
    fn series_of_one_shard_and_time_become_one_row() {
        let io = series(&[("host", "n1"), ("__name__", "io"), ("db", "a")], &[(5 * M, 7.0)]);
        let other = series(&[("__name__", "io"), ("db", "x"), ("host", "n1")], &[(5 * M, 7.0)]);
        let got = gathered(&[cores("n1", &[(5 * M, 2.0), (6 * M, 3.0)]), io, other]);
        assert_eq!(got.samples, Samples { taken: 3, unmapped: 1, ..Samples::default() });
        let rows: Vec<_> = got.rows.into_values().map(|row| (row.ts.as_ms() / M, row.cpu_util, row.io_ops)).collect();
        assert_eq!(rows, [(5, Some(50.0), Some(7.0)), (6, Some(75.0), None)]);
    }

    #[test]
    fn what_is_no_value_is_told_apart() {
        let stale = f64::from_bits(STALE);
        let got = gathered(&[
            cores("n1", &[(5 * M, 1.0), (6 * M, f64::NAN), (7 * M, stale)]),
            // The first one has ended.
            cores("n2", &[(7 * M, 2.0), (8 * M, f64::INFINITY), (8 * M, -1.0), (106 * M, 1.0)]),
        ]);
        assert_eq!(got.samples, Samples { taken: 2, stale: 1, missing: 1, refused: 3, unmapped: 0 });
        assert_eq!(got.refused, 3);
        assert!(got.example.unwrap().contains(r#"series cores{db="a",host="n2"}: cpu_util is inf"#));
        let nodes: Vec<_> = got.rows.into_values().map(|row| row.node.unwrap().to_string()).collect();
        assert_eq!(nodes, ["n1", "n2"]);
    }

    #[test]
    fn who_takes_over_may_stand_before_the_mark_of_who_ends() {
        let mut owners = Owners::default();
        let mut taken = |all: &[TimeSeries]| {
            let mut gathered = Gathered::default();
            all.iter().for_each(|series| end(series, &mappings(), &mut owners));
            all.iter().for_each(|series| gather(series, (&mappings(), &mut owners), ARRIVAL, &mut gathered));
            (gathered.samples.taken, gathered.refused)
        };
        assert_eq!(taken(&[cores("n1", &[(5 * M, 1.0)])]), (1, 0));
        assert_eq!(taken(&[cores("n2", &[(6 * M, 2.0)]), cores("n1", &[(6 * M, f64::from_bits(STALE))])]), (1, 0));
        assert_eq!(taken(&[cores("n1", &[(7 * M, 1.0)])]), (0, 1));
    }

    #[test]
    fn one_request_makes_only_so_many_rows() {
        let samples: Vec<(i64, f64)> = (0..MOST_ROWS as i64 + 5).map(|i| (i, 1.0)).collect();
        let got = gathered(&[cores("n1", &samples)]);
        assert!(got.too_many && got.rows.len() == MOST_ROWS);
    }

    #[test]
    fn a_second_series_of_the_same_is_refused_and_named() {
        let got = gathered(&[cores("n1", &[(5 * M, 1.0)]), cores("n2", &[(5 * M, 9.0)]), cores("n1", &[(6 * M, 2.0)])]);
        assert_eq!((got.samples.taken, got.refused), (2, 1));
        let told = got.example.unwrap();
        assert!(told.contains("n2") && told.contains("cpu_util of shard a comes from another series"), "{told}");
    }

    #[test]
    fn a_series_without_the_labels_of_a_name_is_refused() {
        let got = gathered(&[series(&[("__name__", "cores"), ("host", "n")], &[(M, 1.0), (2 * M, 1.0)])]);
        assert_eq!(got.refused, 2);
        assert!(got.example.unwrap().contains("its shard has no name: the series has no label db"));
    }
}
