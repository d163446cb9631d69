//! How much slower clients' statements are than while nothing is copied: pure.

use foreshard_domain::NodeId;
use std::collections::{BTreeMap, VecDeque};

/// Statements that say something of their mean.
const ENOUGH: f64 = 20.0;
/// Looks that are taken together at least.
const WINDOW: usize = 4;
/// Looks that are taken together at most, where there are too few statements in fewer.
const LONGEST_WINDOW: usize = 40;
/// What one look can say at most: a report that ran for a minute ends once.
const WORST: f64 = 5.0;
/// What is left of what was measured in earlier rests with each further one.
const FADES: f64 = 0.8;

/// Where statements are counted: pooler and database, or a node where we time our own.
pub(super) type Counter = (String, String);

/// Counted since the counter began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres) struct Total {
    /// Statements that have ended.
    pub statements: u64,
    /// What they took, waits for a connection included, in microseconds.
    pub micros: u64,
}

/// All counters, and the node that their statements go to.
pub(super) type Totals = BTreeMap<Counter, (NodeId, Total)>;

/// Statements and what they took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Spent {
    statements: f64,
    micros: f64,
}

/// What clients' statements took, with and without the copy.
#[derive(Debug, Default)]
pub(super) struct Clients {
    before: Totals,
    /// Without the copy.
    at_rest: BTreeMap<Counter, Spent>,
    /// The last looks at the copy: by node, what statements took in units of what they take at rest, and how many they were.
    window: VecDeque<BTreeMap<NodeId, Spent>>,
    /// Since the last look; `None` if it is not known.
    statements: Option<f64>,
}

impl Clients {
    /// Takes in the counters as they are now; `resting`: nothing was copied since the last time.
    pub fn saw(&mut self, now: &Totals, resting: bool) {
        let mut since: BTreeMap<&Counter, (&NodeId, Spent)> = BTreeMap::new();
        for (counter, (node, total)) in now {
            let Some((_, before)) = self.before.get(counter) else { continue };
            // A counter that goes back has begun anew.
            let Some(statements) = total.statements.checked_sub(before.statements) else { continue };
            let micros = total.micros.saturating_sub(before.micros);
            since.insert(counter, (node, Spent { statements: statements as f64, micros: micros as f64 }));
        }
        self.statements = (!since.is_empty()).then(|| since.values().map(|(_, spent)| spent.statements).sum());
        if resting {
            self.rested(&since);
        } else {
            self.worked(&since);
        }
        self.before.clone_from(now);
    }

    fn rested(&mut self, since: &BTreeMap<&Counter, (&NodeId, Spent)>) {
        for (counter, (_, spent)) in since.iter().filter(|(_, (_, spent))| spent.statements > 0.0) {
            let rest = self.at_rest.entry((*counter).clone()).or_default();
            // Few statements are worth keeping until there are enough of them.
            let fades = if rest.statements > ENOUGH { FADES } else { 1.0 };
            rest.statements = rest.statements * fades + spent.statements;
            rest.micros = rest.micros * fades + spent.micros;
        }
    }

    fn worked(&mut self, since: &BTreeMap<&Counter, (&NodeId, Spent)>) {
        let mut by_node: BTreeMap<NodeId, Spent> = BTreeMap::new();
        for (counter, (node, spent)) in since {
            let Some(rest) = self.at_rest.get(*counter).filter(|rest| rest.statements >= ENOUGH) else { continue };
            // No statement takes no time at all, whatever a pooler's clock says.
            let usual = (rest.micros / rest.statements).max(1.0);
            let of_node = by_node.entry((*node).clone()).or_default();
            of_node.statements += spent.statements;
            of_node.micros += (spent.micros / usual).min(spent.statements * WORST);
        }
        self.window.push_back(by_node);
        while self.window.len() > LONGEST_WINDOW {
            self.window.pop_front();
        }
    }

    /// The pace has changed: what was seen before says nothing of it.
    pub fn begin_window(&mut self) {
        self.window.clear();
    }

    /// Statements of clients since the last look; `None` if it is not known.
    pub fn statements(&self) -> Option<f64> {
        self.statements
    }

    /// Whether it is known what statements take at rest.
    pub fn knows_rest(&self) -> bool {
        self.at_rest.values().any(|rest| rest.statements >= ENOUGH)
    }

    /// What statements took over the last looks in units of what they take at rest, on the node where that is most; less what
    /// the mean of so few, which differ as much as statements do, can be off by chance.
    pub fn slowdown(&self) -> Option<f64> {
        let mut by_node: BTreeMap<&NodeId, Spent> = BTreeMap::new();
        for (n, looked) in self.window.iter().rev().enumerate() {
            for (node, spent) in looked {
                let all = by_node.entry(node).or_default();
                // Of a node with enough statements only the last looks count.
                if n < WINDOW || all.statements < ENOUGH {
                    all.statements += spent.statements;
                    all.micros += spent.micros;
                }
            }
        }
        let enough = by_node.values().filter(|spent| spent.statements >= ENOUGH);
        let surely = |spent: &Spent| spent.micros / spent.statements * (1.0 - spent.statements.sqrt().recip());
        enough.map(surely).max_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn totals(rows: &[(&str, &str, u64, u64)]) -> Totals {
        let row = |(database, on, statements, micros): &(&str, &str, u64, u64)| {
            let total = Total { statements: *statements, micros: *micros };
            (("p".to_owned(), (*database).to_owned()), (node(on), total))
        };
        rows.iter().map(row).collect()
    }

    fn near(clients: &Clients, slowdown: f64) -> bool {
        clients.slowdown().is_some_and(|found| (found - slowdown).abs() < 1e-9)
    }

    #[test]
    fn a_slowdown_is_told_in_units_of_what_statements_take_at_rest() {
        let mut clients = Clients::default();
        clients.saw(&totals(&[("a", "x", 0, 0)]), true);
        assert_eq!((clients.statements(), clients.knows_rest(), clients.slowdown()), (None, false, None));
        clients.saw(&totals(&[("a", "x", 100, 10_000)]), true);
        assert_eq!((clients.statements(), clients.knows_rest()), (Some(100.0), true));
        clients.saw(&totals(&[("a", "x", 200, 25_000)]), false);
        assert!(near(&clients, 1.5 * 0.9), "a hundred may be off by a tenth: {:?}", clients.slowdown());
        clients.saw(&totals(&[("a", "x", 500, 50_000)]), false);
        assert!(near(&clients, 0.95), "400 over both looks: {:?}", clients.slowdown());
        clients.begin_window();
        assert_eq!(clients.slowdown(), None);
    }

    #[test]
    fn the_node_whose_clients_suffer_most_counts_and_a_change_of_the_mix_does_not() {
        let mut clients = Clients::default();
        clients.saw(&totals(&[("quick", "x", 0, 0), ("slow", "x", 0, 0), ("other", "y", 0, 0)]), true);
        clients.saw(
            &totals(&[("quick", "x", 100, 100_000), ("slow", "x", 20, 2_000_000), ("other", "y", 50, 50_000)]),
            true,
        );
        // Many more of the slow statements, each as fast as ever.
        clients.saw(
            &totals(&[("quick", "x", 110, 110_000), ("slow", "x", 120, 12_000_000), ("other", "y", 100, 100_000)]),
            false,
        );
        assert!(near(&clients, 1.0 - 110f64.sqrt().recip()), "{:?}", clients.slowdown());
        clients.saw(
            &totals(&[("quick", "x", 110, 110_000), ("slow", "x", 120, 12_000_000), ("other", "y", 150, 200_000)]),
            false,
        );
        assert!(near(&clients, 1.5 * 0.9), "{:?}", clients.slowdown());
    }

    #[test]
    fn few_statements_and_counters_that_begin_anew_say_nothing() {
        let mut clients = Clients::default();
        clients.saw(&totals(&[("a", "x", 0, 0)]), true);
        clients.saw(&totals(&[("a", "x", 100, 10_000)]), true);
        clients.saw(&totals(&[("a", "x", 119, 100_000)]), false);
        assert_eq!(clients.slowdown(), None, "19 statements");
        clients.saw(&totals(&[("a", "x", 5, 100)]), false);
        assert_eq!((clients.slowdown(), clients.statements()), (None, None), "the pooler was started again");
        clients.saw(&totals(&[("a", "x", 5, 100)]), false);
        assert_eq!(clients.statements(), Some(0.0), "nobody asks");
    }

    proptest! {
        #[test]
        fn a_slowdown_is_found_whatever_the_mix(
            rest in prop::collection::vec((20u64..1_000, 10u64..10_000), 1..5),
            work in prop::collection::vec(20u64..1_000, 5),
            factor in 1u64..5,
        ) {
            let mut clients = Clients::default();
            let names = ["a", "b", "c", "d", "e"];
            let row = |n: usize, statements, micros| (names[n], "x", statements, micros);
            let begin: Vec<_> = (0..rest.len()).map(|n| row(n, 0, 0)).collect();
            let quiet: Vec<_> = rest.iter().enumerate().map(|(n, (count, each))| row(n, *count, count * each)).collect();
            let busy: Vec<_> = rest.iter().enumerate().map(|(n, (count, each))| {
                row(n, count + work[n], count * each + work[n] * each * factor)
            }).collect();
            clients.saw(&totals(&begin), true);
            clients.saw(&totals(&quiet), true);
            clients.saw(&totals(&busy), false);
            let found = clients.slowdown().unwrap();
            let statements: u64 = work.iter().take(rest.len()).sum();
            let surely = factor as f64 * (1.0 - (statements as f64).sqrt().recip());
            prop_assert!((found - surely).abs() < 1e-9, "{found}");
        }
    }
}
