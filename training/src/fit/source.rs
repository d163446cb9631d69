//! Where a fit takes its series from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use foreshard_datasets::HistoryError;

use super::spec::TrainSeries;

/// The series of a fit, handed out one at a time and by each thread for itself, so that what is learned from may be larger
/// than memory. Asked again, it must hand out the same.
pub trait SeriesSource: Sync {
    /// The names of the products, in order.
    fn products(&self) -> Vec<&str>;

    /// How many series a product has.
    fn count(&self, product: &str) -> usize;

    /// Series `i` of a product; `None` beyond the last.
    ///
    /// # Errors
    /// [`HistoryError`] if it cannot be read.
    fn get(&self, product: &str, i: usize) -> Result<Option<Cow<'_, TrainSeries>>, HistoryError>;
}

/// Series that lie in memory.
impl SeriesSource for BTreeMap<String, Vec<TrainSeries>> {
    fn products(&self) -> Vec<&str> {
        self.keys().map(String::as_str).collect()
    }

    fn count(&self, product: &str) -> usize {
        BTreeMap::get(self, product).map_or(0, Vec::len)
    }

    fn get(&self, product: &str, i: usize) -> Result<Option<Cow<'_, TrainSeries>>, HistoryError> {
        Ok(BTreeMap::get(self, product).and_then(|own| own.get(i)).map(Cow::Borrowed))
    }
}
