//! What of the caps of nodes and of all moves together one move may take: each as much as every other that is under way.

use foreshard_domain::{MigrationId, NodeId};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

use crate::postgres::settings::PostgresSettings;

/// A move that has not looked for so long does not copy: it is paused, or waits for something.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// The moves of one process that copy or compare.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<BTreeMap<MigrationId, At>>);

#[derive(Debug, Clone)]
struct At {
    nodes: [NodeId; 2],
    looked: Instant,
}

impl Shares {
    /// Most bytes per second for a move between `nodes`, which is under way from now on; infinite if there is no cap.
    pub fn of(&self, migration: &MigrationId, nodes: &[NodeId; 2], settings: &PostgresSettings, now: Instant) -> f64 {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(migration.clone(), At { nodes: nodes.clone(), looked: now });
        all.retain(|_, at| now.saturating_duration_since(at.looked) <= FORGOTTEN);
        let caps = [settings.copy_bytes_per_s, settings.pace.node_bytes_per_s, settings.pace.total_bytes_per_s];
        let on = |node: &NodeId| all.values().filter(|at| at.nodes.contains(node)).count();
        let [most, second] = nodes;
        let moves = [1, on(most).max(on(second)), all.len()];
        let share = |(cap, moves): (Option<f64>, usize)| cap.unwrap_or(f64::INFINITY) / moves.max(1) as f64;
        caps.into_iter().zip(moves).map(share).fold(f64::INFINITY, f64::min)
    }

    /// The move is under way no longer.
    pub fn leave(&self, migration: &MigrationId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(migration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(own: Option<f64>, node: Option<f64>, total: Option<f64>) -> PostgresSettings {
        let mut settings = PostgresSettings { copy_bytes_per_s: own, ..PostgresSettings::default() };
        settings.pace.node_bytes_per_s = node;
        settings.pace.total_bytes_per_s = total;
        settings
    }

    fn migration(n: usize) -> MigrationId {
        MigrationId::new(format!("m-{n}")).unwrap()
    }

    fn nodes(from: usize, to: usize) -> [NodeId; 2] {
        [from, to].map(|n| NodeId::new(format!("n{n}")).unwrap())
    }

    #[test]
    fn a_move_gets_its_share_of_every_cap() {
        let (shares, now) = (Shares::default(), Instant::now());
        let of = |n, from, to, settings: &PostgresSettings| shares.of(&migration(n), &nodes(from, to), settings, now);
        assert_eq!(of(1, 1, 2, &settings(None, None, None)), f64::INFINITY);
        assert_eq!(of(1, 1, 2, &settings(Some(5.0), None, None)), 5.0);
        assert_eq!(of(2, 1, 3, &settings(Some(5.0), Some(8.0), None)), 4.0, "both read from node 1");
        assert_eq!(of(3, 4, 5, &settings(Some(5.0), Some(8.0), Some(9.0))), 3.0, "three moves in all");
        shares.leave(&migration(2));
        assert_eq!(of(1, 1, 2, &settings(None, Some(8.0), None)), 8.0);
        let later = now + FORGOTTEN * 2;
        assert_eq!(shares.of(&migration(1), &nodes(1, 2), &settings(None, None, Some(9.0)), later), 9.0, "3 is paused");
    }

    proptest! {
        #[test]
        fn together_they_never_exceed_a_cap(
            moves in prop::collection::vec((0usize..4, 0usize..4), 1..8), node in 1.0f64..1e9, total in 1.0f64..1e9,
        ) {
            let (shares, now, settings) = (Shares::default(), Instant::now(), settings(None, Some(node), Some(total)));
            let all = || moves.iter().enumerate().map(|(n, (from, to))| {
                (*from, *to, shares.of(&migration(n), &nodes(*from, *to), &settings, now))
            }).collect::<Vec<_>>();
            all();
            let rates = all();
            prop_assert!(rates.iter().map(|(_, _, rate)| rate).sum::<f64>() <= total * (1.0 + 1e-9));
            for on in 0..4 {
                let of_node = rates.iter().filter(|(from, to, _)| *from == on || *to == on);
                prop_assert!(of_node.map(|(_, _, rate)| rate).sum::<f64>() <= node * (1.0 + 1e-9));
            }
        }
    }
}
