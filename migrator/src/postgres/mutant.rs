//! Faults of the protocol itself, planted to see that the tests catch them. Nothing but tests sets one.

/// One step that is left out or done wrong.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Writes are not stopped.
    SkipFence,
    /// Neither the marker nor the reader of the log is waited for.
    SkipMarker,
    /// Nothing is compared.
    SkipComparison,
    /// The owner changes although the source was not sealed.
    SkipSeal,
    /// The state store is not told of the slots.
    ForgetSlots,
    /// The new owner opens in the old owner's epoch.
    ReuseEpoch,
    /// The sequences stay where they are.
    SkipSequences,
}
