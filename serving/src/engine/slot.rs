//! The version that answers, exchangeable in one step.

use foreshard_domain::ModelVersion;
use std::sync::{Arc, PoisonError, RwLock};

use crate::ServedVersion;

/// Holds the version that answers. Whoever computes with a version keeps it until it is done; an exchange waits for
/// nobody and delays nobody.
#[derive(Default)]
pub(crate) struct Slot {
    /// With how many there were up to it.
    current: RwLock<(u64, Option<Arc<dyn ServedVersion>>)>,
}

impl Slot {
    /// The version that answers from now on.
    pub(crate) fn current(&self) -> Option<Arc<dyn ServedVersion>> {
        self.numbered().1
    }

    /// The same, with a number that no other version of this process ever has.
    pub(crate) fn numbered(&self) -> (u64, Option<Arc<dyn ServedVersion>>) {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which version that is.
    pub(crate) fn id(&self) -> Option<ModelVersion> {
        self.current().map(|version| version.id())
    }

    /// Puts another version in; the one before is freed outside the lock, by its last user.
    pub(crate) fn exchange(&self, version: Arc<dyn ServedVersion>) {
        let before = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            current.0 += 1;
            current.1.replace(version)
        };
        drop(before);
    }
}
