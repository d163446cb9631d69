//! Sequences: the change stream does not carry them, so they are set under the fence.

use super::catalog::{Sequence, sequences};
use super::session::{Session, literal, qualified};
use crate::BackendError;

/// Numbers that are left out, in steps of the sequence: a client that comes past the pooler may have taken a number on the
/// source that it has not been able to use.
const MARGIN: i64 = 32;

/// Sets the target's sequences to where the source's are, and beyond. Each result is read back: a sequence that could not be
/// set would give numbers out twice.
pub(super) async fn carry_over(source: &Session, target: &Session, known: &[Sequence]) -> Result<(), BackendError> {
    let doing = "setting the sequences";
    if known.is_empty() {
        return Ok(());
    }
    let read: Vec<String> = known
        .iter()
        .map(|s| {
            let name = qualified(&s.schema, &s.name);
            format!(
                "SELECT {}, last_value, is_called, seqincrement, seqmin, seqmax, seqcycle FROM {name}, pg_sequence WHERE seqrelid = {}::regclass",
                literal(&name),
                literal(&name)
            )
        })
        .collect();
    let rows = source.texts(doing, &read.join(" UNION ALL ")).await?;
    if rows.len() != known.len() {
        return Err(BackendError::Permanent {
            doing: doing.to_owned(),
            why: format!(
                "the source has {} of {} sequences: its schema has changed during the move",
                rows.len(),
                known.len()
            ),
        });
    }
    let mut wanted = Vec::with_capacity(rows.len());
    for row in &rows {
        wanted.push(Wanted::of(row).ok_or_else(|| BackendError::Bug { what: format!("a sequence reads {row:?}") })?);
    }
    let set: Vec<String> = wanted
        .iter()
        .map(|w| {
            format!("SELECT {}, setval({}::regclass, {}, {})", literal(&w.name), literal(&w.name), w.value, w.called)
        })
        .collect();
    let back = target.texts(doing, &set.join(" UNION ALL ")).await?;
    let is_set = |w: &Wanted| {
        back.iter().any(|r| matches!(r.as_slice(), [Some(n), Some(v)] if *n == w.name && *v == w.value.to_string()))
    };
    match wanted.iter().find(|w| !is_set(w)) {
        None => Ok(()),
        Some(w) => Err(BackendError::Permanent {
            doing: doing.to_owned(),
            why: format!("sequence {} did not take {} on node {}", w.name, w.value, target.node()),
        }),
    }
}

/// Sequences of the shard, read before the fence: the schema cannot change meanwhile.
pub(super) async fn known(source: &Session) -> Result<Vec<Sequence>, BackendError> {
    sequences(source).await
}

/// Where a sequence is to stand on the target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    name: String,
    value: i64,
    called: bool,
}

impl Wanted {
    fn of(row: &[Option<String>]) -> Option<Self> {
        let text = |i: usize| row.get(i).and_then(|t| t.as_deref());
        let number = |i: usize| text(i).and_then(|t| t.parse::<i64>().ok());
        let (last, step, least, most) = (number(1)?, number(3)?, number(4)?, number(5)?);
        let (called, cycles) = (text(2)? == "t", text(6)? == "t");
        let beyond = step.checked_mul(MARGIN).and_then(|margin| last.checked_add(margin));
        // A sequence near its end, one that begins anew there, and one that nobody has used yet stay as they are.
        let value = match beyond {
            Some(beyond) if called && !cycles && (least..=most).contains(&beyond) => beyond,
            _ => last,
        };
        Some(Self { name: text(0)?.to_owned(), value, called })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_set_beyond_what_was_given_out() {
        let wanted = |row: [&str; 7]| {
            let row: Vec<Option<String>> = row.iter().map(|t| Some((*t).to_owned())).collect();
            Wanted::of(&row).map(|w| (w.value, w.called))
        };
        assert_eq!(wanted(["s", "100", "t", "1", "1", "9223372036854775807", "f"]), Some((132, true)));
        assert_eq!(wanted(["s", "1", "f", "1", "1", "9223372036854775807", "f"]), Some((1, false)), "never used");
        assert_eq!(wanted(["s", "-5", "t", "-1", "-100", "-1", "f"]), Some((-37, true)), "downwards");
        assert_eq!(wanted(["s", "-90", "t", "-1", "-100", "-1", "f"]), Some((-90, true)), "near its end");
        assert_eq!(
            wanted(["s", "9223372036854775800", "t", "1", "1", "9223372036854775807", "f"]),
            Some((9_223_372_036_854_775_800, true))
        );
        assert_eq!(wanted(["s", "5", "t", "1", "1", "9", "t"]), Some((5, true)), "a cycle");
        assert_eq!(wanted(["s", "x", "t", "1", "1", "9", "t"]), None);
    }
}
