//! The list of a dump's entries, and which stage each belongs to.

use std::collections::BTreeSet;

/// When a part of the schema that is not needed to take rows is brought over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Primary keys, unique and exclusion constraints, and indexes that identify rows: before changes are applied.
    Keys,
    /// All other indexes of tables.
    Indexes,
    /// Foreign keys, triggers, rules, policies and all else, once the target has caught up.
    ///
    /// Foreign keys are added and checked in one step, as `pg_restore` does it: that keeps the apply worker waiting (it
    /// takes `ROW EXCLUSIVE`, the check `SHARE ROW EXCLUSIVE`), which makes it late for so long and nothing else; no
    /// client is on the target yet. What the worker has committed is always a state that the source had, so that the
    /// check holds at any moment.
    Rest,
}

/// An object by the source's catalog: the catalog's own number and that in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    pub class: i64,
    pub oid: i64,
}

/// Objects that their kind does not tell enough of.
#[derive(Debug, Default)]
pub(super) struct Oids {
    /// Not brought over.
    pub dropped: BTreeSet<Object>,
    /// Made otherwise than by the dump; their remarks come with it.
    pub held: BTreeSet<Object>,
    /// Indexes that identify rows.
    pub keys: BTreeSet<Object>,
    /// Indexes of materialised views, which may themselves come late.
    pub late: BTreeSet<Object>,
}

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// As `pg_restore --use-list` reads it.
    pub line: String,
    pub object: Object,
    /// Kind, schema, name and owner.
    pub what: String,
    /// After the copy; `None` before it.
    pub stage: Option<Stage>,
}

impl Entry {
    pub fn is(&self, kind: &str) -> bool {
        self.what.strip_prefix(kind).is_some_and(|rest| rest.starts_with(' '))
    }

    /// Belongs to the entry before it and can be restored twice.
    fn is_remark(&self) -> bool {
        ["COMMENT", "ACL", "SECURITY LABEL"].iter().any(|kind| self.is(kind))
    }
}

/// Reads what `pg_restore --list` writes: `217; 1259 16391 TABLE public t owner`.
pub(super) fn parse(list: &str) -> Vec<Entry> {
    list.lines().filter_map(entry).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let (id, rest) = line.split_once("; ")?;
    id.parse::<u64>().ok()?;
    let mut parts = rest.splitn(3, ' ');
    let object = Object { class: parts.next()?.parse().ok()?, oid: parts.next()?.parse().ok()? };
    Some(Entry { line: line.to_owned(), object, what: parts.next()?.to_owned(), stage: None })
}

/// Gives each entry of the part after the data its stage and leaves out what is dropped, with its remarks.
pub(super) fn staged(entries: Vec<Entry>, oids: &Oids) -> Vec<Entry> {
    let mut previous = Some(Stage::Rest);
    let mut kept = Vec::with_capacity(entries.len());
    for mut entry in entries {
        if !entry.is_remark() {
            previous = (!oids.dropped.contains(&entry.object)).then(|| stage(&entry, oids));
        }
        if oids.held.contains(&entry.object) {
            continue;
        }
        if previous.is_some() {
            entry.stage = previous;
            kept.push(entry);
        }
    }
    kept
}

fn stage(entry: &Entry, oids: &Oids) -> Stage {
    if oids.late.contains(&entry.object) {
        Stage::Rest
    } else if entry.is("CONSTRAINT") || oids.keys.contains(&entry.object) {
        Stage::Keys
    } else if entry.is("INDEX") {
        Stage::Indexes
    } else {
        Stage::Rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
;
; Archive created at 2026-01-01 00:00:00 UTC
3210; 2606 16400 CONSTRAINT public t t_pkey app
3211; 0 0 COMMENT public CONSTRAINT t_pkey ON t app
3212; 1259 16401 INDEX public identifies app
3213; 1259 16402 INDEX public t_b app
3214; 0 0 INDEX ATTACH public part_pkey app
3215; 1259 16403 INDEX public of_view app
3216; 2620 16404 TRIGGER public t foreshard_guard admin
3217; 0 0 COMMENT public TRIGGER foreshard_guard ON t admin
3300; 2620 16407 TRIGGER public t fires_on_replica app
3301; 0 0 COMMENT public TRIGGER fires_on_replica ON t app
3218; 2606 16405 FK CONSTRAINT public u u_t_fkey app
3219; 2620 16406 TRIGGER public odd; 1 2 name app
";

    #[test]
    fn every_entry_has_its_stage() {
        let class = |class, oid| BTreeSet::from([Object { class, oid }]);
        let oids = Oids {
            dropped: class(2620, 16404),
            held: class(2620, 16407),
            keys: class(1259, 16401),
            late: class(1259, 16403),
        };
        let staged: Vec<_> = staged(parse(LIST), &oids)
            .into_iter()
            .map(|e| (e.line.split(';').next().unwrap().parse::<u32>().unwrap(), e.stage.unwrap()))
            .collect();
        let expected = vec![
            (3210, Stage::Keys),
            (3211, Stage::Keys),
            (3212, Stage::Keys),
            (3213, Stage::Indexes),
            (3214, Stage::Indexes),
            (3215, Stage::Rest),
            (3301, Stage::Rest),
            (3218, Stage::Rest),
            (3219, Stage::Rest),
        ];
        assert_eq!(staged, expected);
    }
}
