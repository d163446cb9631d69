//! Names of what a move makes on the servers. They derive from the migration alone, so that any controller finds them.

use foreshard_domain::MigrationId;

use crate::{MoveSpec, Way};

/// The schema that holds a move's own tables and functions in the shard's database.
pub(crate) const SCHEMA: &str = "foreshard";
/// The trigger that refuses writes to a table of a shard that is fenced, sealed, or not yet open.
pub(crate) const GUARD: &str = "foreshard_guard";
/// What the name of every slot, publication, subscription and event trigger begins with.
pub(crate) const PREFIX: &str = "fs_";
/// What the application name of every connection that works on a migration begins with.
pub(crate) const APPLICATION: &str = "foreshard fs_";
/// What the login role of a leader term is called, followed by the term.
pub(crate) const TERM_ROLE: &str = "foreshard_term_";

/// Names of one migration's objects; slots and publications of the way back differ from those of the way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    stem: String,
}

impl Names {
    pub fn new(migration: &MigrationId) -> Self {
        // Identifiers may be long and hold any character; a hash is short and plain.
        Self { stem: format!("{PREFIX}{:016x}", xxhash_rust::xxh3::xxh3_64(migration.as_str().as_bytes())) }
    }

    /// What the name of everything of this migration begins with.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// The publication on the node that `way` leads away from.
    pub fn publication(&self, way: Way) -> String {
        format!("{}_{}_pub", self.stem, of(way))
    }

    /// The slot, and the subscription that reads it, of `way`.
    pub fn slot(&self, way: Way) -> String {
        format!("{}_{}", self.stem, of(way))
    }

    /// The subscription on the node that `way` leads to.
    pub fn subscription(&self, way: Way) -> String {
        self.slot(way)
    }

    /// The slot by which changed keys are told for the comparison, on the node that `way` leads away from.
    pub fn tracker(&self, way: Way) -> String {
        format!("{}_{}_changed", self.stem, of(way))
    }

    /// The event trigger that refuses changes of the schema while the move lasts.
    pub fn ddl_guard(&self) -> String {
        format!("{}_ddl", self.stem)
    }

    /// Publication, slot and subscription of the probe of the way back (M8).
    pub fn probe(&self) -> String {
        format!("{}_probe", self.stem)
    }

    /// The target's database before it is known by its comment; renamed to the shard's name then.
    pub fn unfinished_database(&self) -> String {
        format!("{}_new", self.stem)
    }

    /// The comment on the target's database while it belongs to this migration.
    pub fn mark(&self) -> String {
        self.application()
    }

    /// The application name of the programs that bring the schema over; what they left running is ended by it.
    pub fn programs(&self) -> String {
        format!("{} schema", self.application())
    }

    /// The application name of every connection that works on this migration.
    pub fn application(&self) -> String {
        format!("foreshard {}", self.stem)
    }
}

fn of(way: Way) -> &'static str {
    match way {
        Way::There => "there",
        Way::Back => "back",
    }
}

/// Names of all external objects of a move, for the rows that must be there before them (M6). `spec` is that of
/// [`Way::There`].
pub(crate) fn external_objects(spec: &MoveSpec) -> Vec<String> {
    let names = Names::new(&spec.migration);
    let on = |node: &foreshard_domain::NodeId, what: &str, name: &str| format!("{node}/{}/{what}/{name}", spec.shard);
    let (source, target) = (&spec.source, &spec.target);
    let (there, back) = (Way::There, Way::Back);
    let mut objects = vec![
        on(source, "schema", SCHEMA),
        on(source, "event_trigger", &names.ddl_guard()),
        on(source, "publication", &names.publication(there)),
        on(source, "slot", &names.slot(there)),
        on(source, "slot", &names.tracker(there)),
        on(source, "subscription", &names.subscription(back)),
        on(source, "subscription", &names.probe()),
        on(target, "database", spec.shard.as_str()),
        on(target, "database", &names.unfinished_database()),
        on(target, "schema", SCHEMA),
        on(target, "event_trigger", &names.ddl_guard()),
        on(target, "publication", &names.publication(back)),
        on(target, "publication", &names.probe()),
        on(target, "slot", &names.slot(back)),
        on(target, "slot", &names.tracker(back)),
        on(target, "slot", &names.probe()),
        on(target, "subscription", &names.subscription(there)),
        on(source, "trigger", GUARD),
        on(target, "trigger", GUARD),
        format!("poolers/{}/pause", spec.shard),
    ];
    objects.sort();
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let long = MigrationId::new("Ä ".repeat(60)).unwrap();
        for id in [MigrationId::new("m-1").unwrap(), long] {
            let names = Names::new(&id);
            let mut all = vec![names.ddl_guard(), names.probe()];
            for way in [Way::There, Way::Back] {
                all.extend([names.publication(way), names.slot(way), names.tracker(way)]);
            }
            let slot_name = |n: &String| {
                n.len() < 64 && n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            };
            assert!(all.iter().all(slot_name), "{all:?}");
            let distinct: std::collections::BTreeSet<_> = all.iter().collect();
            assert_eq!(distinct.len(), all.len());
        }
        assert_ne!(Names::new(&MigrationId::new("a-b").unwrap()), Names::new(&MigrationId::new("a_b").unwrap()));
    }
}
