use super::*;
use proptest::prelude::*;

/// Writes messages as the server does.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self(vec![kind])
    }

    fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn text(self, text: &str) -> Self {
        self.bytes(text).bytes([0])
    }

    fn tuple(mut self, values: &[Value<'_>]) -> Self {
        self = self.bytes(u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            self = match value {
                Value::Null => self.bytes("n"),
                Value::Untold => self.bytes("u"),
                Value::Text(text) => {
                    self.bytes("t").bytes(u32::try_from(text.len()).unwrap().to_be_bytes()).bytes(text)
                }
            };
        }
        self
    }
}

const ROW: &[Value<'static>] = &[Value::Text("7"), Value::Null, Value::Untold, Value::Text("ä\u{1F40E}")];

/// One message of each kind and form.
fn all_kinds() -> Vec<(Vec<u8>, Message<'static>)> {
    let at = 0x16_B374_D848_u64.to_be_bytes();
    let lsn = Lsn(0x16_B374_D848);
    let oid = 16_384_u32.to_be_bytes();
    let row = || Tuple(ROW.to_vec());
    let w = Writer::new;
    let relation = Relation {
        oid: 16_384,
        schema: "Odd \"schema\"".into(),
        name: "tä".into(),
        identity: ReplicaIdentity::Full,
        columns: vec![
            Column { name: "id".into(), key: true, type_oid: 23, type_modifier: -1 },
            Column { name: "v".into(), key: false, type_oid: 1043, type_modifier: 14 },
        ],
    };
    let relation_bytes = w(b'R').bytes(oid).text("Odd \"schema\"").text("tä").bytes("f").bytes([0, 2]);
    let relation_bytes = relation_bytes.bytes([1]).text("id").bytes(23_u32.to_be_bytes()).bytes((-1_i32).to_be_bytes());
    let relation_bytes = relation_bytes.bytes([0]).text("v").bytes(1043_u32.to_be_bytes()).bytes(14_i32.to_be_bytes());
    let time = 5_i64;
    vec![
        (
            w(b'B').bytes(at).bytes(time.to_be_bytes()).bytes(9_u32.to_be_bytes()).0,
            Message::Begin { commit_at: lsn, time, xid: 9 },
        ),
        (
            w(b'C').bytes([0]).bytes(at).bytes(at).bytes(time.to_be_bytes()).0,
            Message::Commit { at: lsn, end: lsn, time },
        ),
        (w(b'O').bytes(at).text("pg_16").0, Message::Origin { at: lsn, name: "pg_16" }),
        (relation_bytes.0, Message::Relation(relation)),
        (
            w(b'Y').bytes(oid).text("public").text("mood").0,
            Message::Type { oid: 16_384, schema: "public", name: "mood" },
        ),
        (w(b'I').bytes(oid).bytes("N").tuple(ROW).0, Message::Insert { relation: 16_384, new: row() }),
        (w(b'U').bytes(oid).bytes("N").tuple(ROW).0, Message::Update { relation: 16_384, old: None, new: row() }),
        (
            w(b'U').bytes(oid).bytes("K").tuple(ROW).bytes("N").tuple(ROW).0,
            Message::Update { relation: 16_384, old: Some(row()), new: row() },
        ),
        (w(b'D').bytes(oid).bytes("O").tuple(ROW).0, Message::Delete { relation: 16_384, old: row() }),
        (
            w(b'T').bytes(2_u32.to_be_bytes()).bytes([3]).bytes(oid).bytes(oid).0,
            Message::Truncate { relations: vec![16_384; 2], cascade: true, restart_identity: true },
        ),
        (
            w(b'M').bytes([1]).bytes(at).text("p").bytes(2_u32.to_be_bytes()).bytes([0, 255]).0,
            Message::Emitted { transactional: true, at: lsn, prefix: "p", content: &[0, 255] },
        ),
    ]
}

#[test]
fn every_kind_of_message_is_read() {
    for (bytes, message) in all_kinds() {
        assert_eq!(Message::parse(&bytes), Ok(message));
    }
}

#[test]
fn a_message_that_is_cut_off_or_goes_on_is_an_error() {
    for (bytes, message) in all_kinds() {
        for end in 0..bytes.len() {
            assert!(Message::parse(&bytes[..end]).is_err(), "{end} bytes of {message:?}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(Message::parse(&longer), Err(Malformed::Long { left: 1, .. })), "{message:?}");
    }
}

#[test]
fn values_without_a_meaning_are_errors() {
    let oid = 1_u32.to_be_bytes();
    let w = Writer::new;
    for wrong in [
        w(b'X').0,
        w(b'C').bytes([1]).bytes([0; 24]).0,
        w(b'R').bytes(oid).text("s").text("t").bytes("x").bytes([0, 0]).0,
        w(b'R').bytes(oid).text("s").text("t").bytes("d").bytes([0, 1, 2]).text("c").bytes([0; 8]).0,
        w(b'I').bytes(oid).bytes("K").tuple(&[]).0,
        w(b'I').bytes(oid).bytes("N").bytes([0, 1]).bytes("b").bytes([0, 0, 0, 0]).0,
        w(b'I').bytes(oid).bytes("N").bytes([0, 1]).bytes("t").bytes((-1_i32).to_be_bytes()).0,
        w(b'U').bytes(oid).bytes("K").tuple(&[]).bytes("K").tuple(&[]).0,
        w(b'D').bytes(oid).bytes("N").tuple(&[]).0,
        w(b'T').bytes([0; 4]).bytes([4]).0,
        w(b'T').bytes((-1_i32).to_be_bytes()).bytes([0]).0,
        w(b'M').bytes([2]).bytes([0; 8]).text("p").bytes([0; 4]).0,
    ] {
        assert!(matches!(Message::parse(&wrong), Err(Malformed::Value { .. })), "{wrong:?}");
    }
    let not_text = w(b'I').bytes(oid).bytes("N").bytes([0, 1]).bytes("t").bytes([0, 0, 0, 1, 0xFF]).0;
    assert_eq!(Message::parse(&not_text), Err(Malformed::NotText { what: "value" }));
    let many = w(b'T').bytes(i32::MAX.to_be_bytes()).bytes([0]).0;
    assert!(matches!(Message::parse(&many), Err(Malformed::Short { .. })), "nothing may be reserved for it");
}

#[test]
fn the_servers_own_schema_has_a_name() {
    let bytes = Writer::new(b'R').bytes([0; 4]).text("").text("pg_class").bytes("n").bytes([0, 0]).0;
    assert!(matches!(Message::parse(&bytes), Ok(Message::Relation(r)) if r.schema == "pg_catalog"));
}

fn table(keys: &[bool]) -> Relation {
    let column =
        |(at, key): (usize, &bool)| Column { name: at.to_string(), key: *key, type_oid: 25, type_modifier: -1 };
    let columns = keys.iter().enumerate().map(column).collect();
    Relation { oid: 1, schema: "s".into(), name: "t".into(), identity: ReplicaIdentity::Default, columns }
}

fn key(values: &[Option<&str>]) -> Key {
    values.iter().map(|v| v.map(str::to_owned)).collect()
}

#[test]
fn keys_of_both_rows_are_touched() {
    use Value::{Null, Text, Untold};
    let table = table(&[true, false, true]);
    assert_eq!(table.key_columns(), ["0", "2"]);
    let old = Tuple(vec![Text("1"), Null, Text("a")]);
    let new = Tuple(vec![Text("2"), Untold, Text("a")]);
    let (one, two) = (key(&[Some("1"), Some("a")]), key(&[Some("2"), Some("a")]));
    assert_eq!(table.keys_touched(None, Some(&new)), Ok(vec![two.clone()]), "insert");
    assert_eq!(table.keys_touched(Some(&old), Some(&new)), Ok(vec![one.clone(), two]), "key changed");
    assert_eq!(table.keys_touched(Some(&old), Some(&old)), Ok(vec![one.clone()]), "key kept");
    assert_eq!(table.keys_touched(Some(&old), None), Ok(vec![one]), "delete");
    let null = Tuple(vec![Null, Text("x"), Text("")]);
    assert_eq!(table.keys_touched(None, Some(&null)), Ok(vec![key(&[None, Some("")])]), "NULL is not empty");
}

#[test]
fn a_key_stored_apart_from_its_row_is_that_of_the_row_before() {
    use Value::{Null, Text, Untold};
    let table = table(&[true, true]);
    let old = Tuple(vec![Text("long"), Text("1")]);
    let new = Tuple(vec![Untold, Text("2")]);
    let keys = table.keys_touched(Some(&old), Some(&new));
    assert_eq!(keys, Ok(vec![key(&[Some("long"), Some("1")]), key(&[Some("long"), Some("2")])]));
    assert_eq!(table.keys_touched(None, Some(&new)), Err(UnknownKey::Untold));
    let narrow = Tuple(vec![Null]);
    assert!(matches!(table.keys_touched(Some(&narrow), Some(&new)), Err(UnknownKey::Malformed(_))));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::parse(&bytes);
    }

    #[test]
    fn garbage_behind_a_known_kind_never_panics(
        kind in prop::sample::select(b"BCORYIUDTM".to_vec()),
        rest in prop::collection::vec(prop_oneof![Just(0), Just(b'N'), Just(b'K'), Just(b't'), Just(1), any::<u8>()], 0..60),
    ) {
        let _ = Message::parse(&[vec![kind], rest].concat());
    }

    #[test]
    fn a_flipped_byte_is_an_error_or_another_message_but_no_panic(which in 0..11_usize, at: usize, flip in 1..=255_u8) {
        let (mut bytes, _) = all_kinds().swap_remove(which);
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let _ = Message::parse(&bytes);
    }

    #[test]
    fn rows_are_read_as_they_were_written(texts in prop::collection::vec(prop::option::of(".{0,20}"), 0..20)) {
        let values: Vec<_> = texts.iter().map(|t| t.as_deref().map_or(Value::Null, Value::Text)).collect();
        let bytes = Writer::new(b'I').bytes([0, 0, 0, 1]).bytes("N").tuple(&values).0;
        prop_assert_eq!(Message::parse(&bytes), Ok(Message::Insert { relation: 1, new: Tuple(values) }));
        for end in 0..bytes.len() {
            prop_assert!(Message::parse(&bytes[..end]).is_err());
        }
    }
}
