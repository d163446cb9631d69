//! How far each query was pulled, kept in a file.

use foreshard_domain::Timestamp;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::{PullConfig, Until};

/// By query, the time from which on it is to be pulled next.
///
/// A query is known by all that makes its rows: one that was changed is another one and is pulled from the beginning.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progress {
    keys: Vec<String>,
    until_ms: BTreeMap<String, i64>,
}

impl Progress {
    /// What a file remembers of the queries of `config`; nothing if there is none, or none that can be read: pulling again does
    /// no harm.
    pub(super) fn read(file: &Path, config: &PullConfig) -> io::Result<Self> {
        let keys = config.series.iter().map(|series| serde_json::to_string(series).map_err(io::Error::from));
        let keys: Vec<String> = keys.collect::<Result<_, _>>()?;
        let remembered = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, file = %file.display(), "how far was pulled cannot be read; pulled again from the beginning");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let until_ms = remembered.into_iter().filter(|(key, _)| keys.contains(key)).collect();
        Ok(Self { keys, until_ms })
    }

    /// From where query `i` is to be pulled next.
    pub(super) fn until(&self, i: usize) -> Until {
        self.keys.get(i).and_then(|key| self.until_ms.get(key)).copied().map(Timestamp::from_ms)
    }

    /// Query `i` was pulled up to there.
    pub(super) fn reached(&mut self, i: usize, until: Timestamp) {
        if let Some(key) = self.keys.get(i) {
            self.until_ms.insert(key.clone(), until.as_ms());
        }
    }

    /// Up to when all queries were pulled.
    pub(super) fn least(&self) -> Until {
        let all = (0..self.keys.len()).map(|i| self.until(i));
        all.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Puts it into the file, whole or not at all.
    pub(super) fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        let mut writing = File::create(&new)?;
        writing.write_all(&serde_json::to_vec(&self.until_ms)?)?;
        writing.sync_all()?;
        fs::rename(&new, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_datasets::prometheus::{Measurement, PulledSeries};

    fn config(queries: &[&str]) -> PullConfig {
        let series = queries.iter().map(|query| PulledSeries {
            query: (*query).to_owned(),
            metric: Measurement::CpuUtil,
            shard: "${db}".parse().unwrap(),
            node: None,
            scale: 1.0,
        });
        PullConfig { series: series.collect(), ..PullConfig::default() }
    }

    #[test]
    fn what_was_reached_is_remembered_by_query() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pulled.json");
        let mut progress = Progress::read(&file, &config(&["a", "b"])).unwrap();
        assert_eq!((progress.until(0), progress.least()), (None, None));
        progress.reached(0, Timestamp::from_ms(5));
        progress.reached(1, Timestamp::from_ms(7));
        progress.write(&file).unwrap();
        assert_eq!(Progress::read(&file, &config(&["a", "b"])).unwrap(), progress);
        assert_eq!(progress.least(), Some(Timestamp::from_ms(5)));
        let other = Progress::read(&file, &config(&["c", "b"])).unwrap();
        assert_eq!((other.until(0), other.until(1)), (None, Some(Timestamp::from_ms(7))));
        fs::write(&file, "{").unwrap();
        assert_eq!(Progress::read(&file, &config(&["a"])).unwrap().until(0), None);
    }
}
