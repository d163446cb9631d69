//! Writes that are sent again late: after their shard has changed its owner, or just before the store may forget them.

use foreshard_domain::Epoch;

use super::ledger::WriteId;

/// A write waits for this part of the store's window; the other half is for writes that are on their way.
const PART: u64 = 2;

/// A write that was acknowledged, and whose client will believe for a while that it was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which of the client's keys it went to.
    pub turn: usize,
    /// Its id.
    pub id: WriteId,
    /// The epoch of the owner that acknowledged it.
    pub epoch: Epoch,
    /// Writes of its shard that were sent before it.
    pub sent_before: u64,
}

/// What one client holds back.
#[derive(Debug)]
pub struct HeldBack {
    writes: Vec<Held>,
    /// Other writes of a shard after which a store may take a repeated write for a new one.
    window: u64,
}

impl HeldBack {
    /// Nothing yet, for a store that recognises the last `window` writes of a shard.
    pub fn new(window: u64) -> Self {
        Self { writes: Vec::new(), window }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Holds a write back.
    pub fn hold(&mut self, write: Held) {
        self.writes.push(write);
    }

    /// Takes out what is to be sent again now that the shard's owner is in `epoch` (`None` while nobody knows) and `sent` of
    /// its writes were sent.
    pub fn due(&mut self, epoch: Option<Epoch>, sent: u64) -> Vec<Held> {
        let window = self.window;
        let due = |write: &mut Held| {
            let moved = epoch.is_some_and(|epoch| epoch > write.epoch);
            moved || sent.saturating_sub(write.sent_before) >= window / PART
        };
        self.writes.extract_if(.., due).collect()
    }

    /// Takes out the rest.
    pub fn rest(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(id: WriteId, epoch: u64, sent_before: u64) -> Held {
        Held { turn: 0, id, epoch: Epoch(epoch), sent_before }
    }

    fn ids(writes: Vec<Held>) -> Vec<WriteId> {
        writes.into_iter().map(|write| write.id).collect()
    }

    #[test]
    fn a_write_waits_for_a_new_owner_but_not_until_the_store_forgets_it() {
        let mut back = HeldBack::new(100);
        back.hold(held(1, 1, 10));
        back.hold(held(2, 2, 30));
        assert_eq!(ids(back.due(Some(Epoch(1)), 59)), []);
        assert_eq!(ids(back.due(None, 59)), [], "nobody knows the owner");
        assert_eq!(ids(back.due(Some(Epoch(2)), 59)), [1]);
        assert_eq!(ids(back.due(Some(Epoch(2)), 79)), []);
        assert_eq!(ids(back.due(Some(Epoch(2)), 80)), [2], "half of the window is over");
        back.hold(held(3, 2, 80));
        assert!(!back.is_empty());
        assert_eq!(ids(back.rest()), [3]);
        assert!(back.is_empty());
    }
}
