//! The state store: what must always hold, and that every store keeps the same state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{migration, mv, node, plan, shard};
use foreshard_domain::{Epoch, LeaderTerm, Owner, PlanId, Revision, Timestamp};
use foreshard_migrator::{
    Change, Ending, ExternalObject, FaultyStore, InvalidChange, JournalRow, MemoryStore, MigrationRecord,
    MigrationState, RedbStore, State, StateStore, StoreError, StoreFault, Way, apply,
};
use proptest::prelude::*;
use std::sync::Arc;

fn owner(n: usize, epoch: u64) -> Owner {
    Owner { node: node(n), epoch: Epoch(epoch) }
}

fn set_owner(expected: Option<Owner>, owner: Owner) -> Change {
    Change::SetOwner { shard: shard(0), expected, owner }
}

fn put(record: &MigrationRecord, state: MigrationState) -> Change {
    Change::PutMigration { record: Box::new(MigrationRecord { state, ..record.clone() }) }
}

fn object(record: &MigrationRecord, name: &str) -> Change {
    let object = ExternalObject { name: name.into(), migration: record.id.clone(), recorded_at: Timestamp::from_ms(0) };
    Change::PutObject { object }
}

fn do_all(state: &State, changes: &[Change]) -> State {
    apply(state, changes).unwrap()
}

/// Shard 0 on node 0 in epoch 1, with a migration to node 1.
fn moving(state: MigrationState) -> (State, MigrationRecord) {
    let record = migration("m", 0, 0, 1, Epoch(1));
    let start = do_all(&State::default(), &[set_owner(None, owner(0, 1)), put(&record, MigrationState::Planned)]);
    let changes = [object(&record, "m/log"), object(&record, "m/place"), put(&record, state)];
    (do_all(&start, &changes), record)
}

fn sealed() -> MigrationState {
    MigrationState::Sealed { way: Way::There }
}

fn opening(epoch: u64) -> MigrationState {
    MigrationState::Opening { way: Way::There, epoch: Epoch(epoch) }
}

#[test]
fn m2_owner_changes_by_compare_and_set() {
    let (state, record) = moving(sealed());
    let stale = apply(&state, &[set_owner(Some(owner(2, 1)), owner(1, 2)), put(&record, opening(2))]);
    assert!(matches!(stale, Err(InvalidChange::OwnerChanged { .. })), "{stale:?}");
    let taken = apply(&state, &[set_owner(None, owner(1, 2)), put(&record, opening(2))]);
    assert!(matches!(taken, Err(InvalidChange::OwnerChanged { .. })), "{taken:?}");
    let next = do_all(&state, &[set_owner(Some(owner(0, 1)), owner(1, 2)), put(&record, opening(2))]);
    assert_eq!(next.owners[&shard(0)], owner(1, 2));
    assert_eq!(next.revision, state.revision.next());
}

#[test]
fn m2_the_shard_map_and_the_migration_never_disagree() {
    let (state, record) = moving(sealed());
    let only_owner = apply(&state, &[set_owner(Some(owner(0, 1)), owner(1, 2))]);
    assert!(matches!(only_owner, Err(InvalidChange::OwnerMismatch { .. })), "{only_owner:?}");
    let only_state = apply(&state, &[put(&record, opening(2))]);
    assert!(matches!(only_state, Err(InvalidChange::OwnerMismatch { .. })), "{only_state:?}");
}

#[test]
fn m2_an_override_names_the_owner() {
    let (state, record) = moving(sealed());
    let named = |n, epoch| Change::PutOverride { shard: shard(0), owner: owner(n, epoch) };
    assert!(matches!(apply(&state, &[named(1, 2)]), Err(InvalidChange::OverrideMismatch { .. })));
    let state = do_all(&state, &[named(0, 1)]);
    let switch = [set_owner(Some(owner(0, 1)), owner(1, 2)), put(&record, opening(2))];
    assert!(matches!(apply(&state, &switch), Err(InvalidChange::OverrideMismatch { .. })), "a stale override");
    let [owner_change, new_state] = switch;
    let state = do_all(&state, &[owner_change, named(1, 2), new_state]);
    assert_eq!(state.overrides[&shard(0)], owner(1, 2));
    let state = do_all(&state, &[Change::RemoveOverride { shard: shard(0) }]);
    assert!(state.overrides.is_empty());
}

#[test]
fn m3_epochs_only_grow() {
    let (state, record) = moving(sealed());
    for epoch in [0, 1] {
        let back = apply(&state, &[set_owner(Some(owner(0, 1)), owner(1, epoch)), put(&record, opening(epoch))]);
        assert!(matches!(back, Err(InvalidChange::EpochNotGrowing { .. })), "{back:?}");
    }
}

#[test]
fn m4_owner_changes_only_after_the_seal() {
    for early in [MigrationState::Planned, MigrationState::Copying { fences_left: 1, cursor: None }] {
        let record = migration("m", 0, 0, 1, Epoch(1));
        let mut changes = vec![set_owner(None, owner(0, 1)), put(&record, MigrationState::Planned)];
        if early.may_have_objects() {
            changes.extend([object(&record, "m/log"), object(&record, "m/place"), put(&record, early)]);
        }
        let state = do_all(&State::default(), &changes);
        let switch = apply(&state, &[set_owner(Some(owner(0, 1)), owner(1, 2)), put(&record, opening(2))]);
        assert!(matches!(switch, Err(InvalidChange::NotSealed { .. })), "{switch:?}");
    }
    let (state, _) = moving(sealed());
    let elsewhere = apply(&state, &[set_owner(Some(owner(0, 1)), owner(2, 2))]);
    assert!(matches!(elsewhere, Err(InvalidChange::NotSealed { .. })), "{elsewhere:?}");
}

#[test]
fn m6_external_objects_have_rows_exactly_while_they_may_exist() {
    let record = migration("m", 0, 0, 1, Epoch(1));
    let preparing = MigrationState::Preparing { fences_left: 1 };
    let start = do_all(&State::default(), &[set_owner(None, owner(0, 1)), put(&record, MigrationState::Planned)]);
    let half = apply(&start, &[object(&record, "m/log"), put(&record, preparing.clone())]);
    assert!(matches!(half, Err(InvalidChange::ObjectWithoutRow { object, .. }) if object == "m/place"));
    let admitted = [object(&record, "m/log"), put(&record, preparing), object(&record, "m/place")];
    let state = do_all(&start, &admitted);
    let remove = |name: &str| Change::RemoveObject { name: name.into() };
    let lost = apply(&state, &[remove("m/log")]);
    assert!(matches!(lost, Err(InvalidChange::ObjectWithoutRow { .. })), "{lost:?}");
    let left = apply(&state, &[remove("m/log"), put(&record, MigrationState::Cancelled)]);
    assert!(matches!(left, Err(InvalidChange::ObjectLeft { object, .. }) if object == "m/place"));
    let ended = [remove("m/log"), remove("m/place"), remove("never"), put(&record, MigrationState::Cancelled)];
    assert!(do_all(&state, &ended).objects.is_empty());
    let other = migration("other", 1, 0, 1, Epoch(1));
    let theirs = [
        Change::SetOwner { shard: shard(1), expected: None, owner: owner(0, 1) },
        put(&other, MigrationState::Planned),
    ];
    let taken = apply(&do_all(&state, &theirs), &[object(&other, "m/log")]);
    assert!(matches!(taken, Err(InvalidChange::ObjectTaken { .. })), "{taken:?}");
}

#[test]
fn one_migration_a_shard_and_none_rewritten() {
    let (state, record) = moving(MigrationState::Undoing { ending: Ending::Cancelled });
    let second = apply(&state, &[put(&migration("second", 0, 0, 2, Epoch(1)), MigrationState::Planned)]);
    assert!(matches!(second, Err(InvalidChange::AlreadyMoving { .. })), "{second:?}");
    let retargeted = apply(&state, &[put(&migration("m", 0, 0, 2, Epoch(1)), sealed())]);
    assert!(matches!(retargeted, Err(InvalidChange::Rewritten { what: "its move is another", .. })));
    let forget = Change::ForgetMigration { id: record.id.clone() };
    assert!(matches!(apply(&state, std::slice::from_ref(&forget)), Err(InvalidChange::InUse { .. })));
    let remove = ["m/log", "m/place"].map(|name| Change::RemoveObject { name: name.into() });
    let ended = do_all(&state, &[&remove[..], &[put(&record, MigrationState::Cancelled)]].concat());
    let revived = apply(&ended, &[put(&record, MigrationState::Planned)]);
    assert!(matches!(revived, Err(InvalidChange::Rewritten { what: "it has ended", .. })));
    assert!(do_all(&ended, &[forget]).migrations.is_empty());
}

#[test]
fn m5_a_shard_is_held_until_the_end_of_the_retention() {
    let until = Timestamp::from_ms(9_000);
    let held = |state: MigrationState| {
        let (record, mut kept) = (migration("m", 0, 0, 1, Epoch(1)), State::default());
        Arc::make_mut(&mut kept.migrations).insert(record.id.clone(), Arc::new(MigrationRecord { state, ..record }));
        kept.held_by_retention().get(&shard(0)).copied()
    };
    let back = foreshard_migrator::Leg::Back { fences_left: 0, until };
    assert_eq!(held(MigrationState::Reversible { until }), Some(until));
    assert_eq!(held(MigrationState::CatchingUp { leg: back }), Some(until));
    assert_eq!(held(MigrationState::Paused { at: Box::new(MigrationState::CatchingUp { leg: back }) }), Some(until));
    assert_eq!(held(opening(2)), Some(Timestamp::from_ms(i64::MAX)), "its end is not known yet");
    assert_eq!(held(MigrationState::Finishing { way: Way::There }), Some(Timestamp::from_ms(i64::MAX)));
    for free in [MigrationState::Copying { fences_left: 0, cursor: None }, MigrationState::Done] {
        assert_eq!(held(free), None, "it moves, or nothing of its move is left");
    }
    let forever = Timestamp::from_ms(i64::MAX).to_string();
    assert!(forever.ends_with('Z'), "{forever}");
}

#[test]
fn a_commit_copies_nothing_that_it_does_not_change() {
    let line = |m: &MigrationRecord| JournalRow {
        migration: m.id.clone(),
        at: foreshard_domain::RealTime::from_ms(1),
        model_at: Timestamp::from_ms(2),
        term: LeaderTerm(0),
        event: "e".into(),
        state: "planned".into(),
        note: None,
    };
    let records: Vec<MigrationRecord> = (0..3).map(|s| migration(&format!("m{s}"), s, 0, 1, Epoch(1))).collect();
    let begin = |m: &MigrationRecord| {
        let owner = Change::SetOwner { shard: m.shard().clone(), expected: None, owner: owner(0, 1) };
        [owner, put(m, MigrationState::Planned), Change::Journal { row: line(m) }]
    };
    let before = do_all(&State::default(), &records.iter().flat_map(begin).collect::<Vec<_>>());
    let paused = MigrationState::Paused { at: Box::new(MigrationState::Planned) };
    let after = do_all(&before, &[put(&records[1], paused), Change::Journal { row: line(&records[1]) }]);
    for (n, record) in records.iter().enumerate() {
        let shared = Arc::ptr_eq(&before.migrations[&record.id], &after.migrations[&record.id])
            && Arc::ptr_eq(&before.journal[&record.id], &after.journal[&record.id]);
        assert_eq!(shared, n != 1, "{n}");
    }
    assert!(Arc::ptr_eq(&before.owners, &after.owners) && Arc::ptr_eq(&before.plans, &after.plans));
    assert_eq!((before.journal[&records[1].id].len(), after.journal[&records[1].id].len()), (1, 2));
    assert_eq!(before.migrations[&records[1].id].state, MigrationState::Planned, "what was read stays as it was");
}

#[test]
fn a_plan_comes_into_force_only_while_its_parent_is() {
    let id = |n: &str| PlanId::new(n).unwrap();
    let put = |n: &str, parent: Option<&str>| Change::PutPlan { plan: Arc::new(plan(n, parent)) };
    let accept = |n: &str, parent: Option<&str>| Change::AcceptPlan { id: id(n), expected_parent: parent.map(id) };
    let state = do_all(&State::default(), &[put("a", None), put("b", Some("a")), put("c", Some("a"))]);
    assert!(matches!(apply(&state, &[accept("b", Some("a"))]), Err(InvalidChange::ParentNotInForce { .. })));
    let state = do_all(&state, &[accept("a", None), accept("b", Some("a"))]);
    let late = apply(&state, &[accept("c", Some("a"))]).unwrap_err();
    assert_eq!(late.to_string(), "plan c was made on plan a, but plan b is in force: plan again");
    assert!(matches!(apply(&state, &[accept("c", Some("b"))]), Err(InvalidChange::ParentNotInForce { .. })));
    assert!(matches!(apply(&state, &[accept("z", None)]), Err(InvalidChange::Unknown { .. })));
    assert!(matches!(apply(&state, &[put("b", None)]), Err(InvalidChange::PlanChanged { .. })));
    assert!(matches!(apply(&state, &[Change::ForgetPlan { id: id("b") }]), Err(InvalidChange::InUse { .. })));
    assert_eq!(state.plan_chain().map(|p| p.id.to_string()).collect::<Vec<_>>(), ["b", "a"]);
    let mut infinite = plan("i", Some("b"));
    infinite.moves.push(foreshard_policy::Move { expected_gain: f64::INFINITY, ..mv(0, 0, 1) });
    let refused = apply(&state, &[Change::PutPlan { plan: Arc::new(infinite) }]);
    assert!(matches!(refused, Err(InvalidChange::NotFinite { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_stale_leader_commits_nothing() {
    let store = MemoryStore::new();
    let watch = store.watch();
    let old = store.take_leadership("old").await.unwrap();
    let new = store.take_leadership("new").await.unwrap();
    assert!(new > old);
    let at = store.read().await.unwrap().revision;
    let refused = store.commit(at, old, Vec::new()).await;
    assert!(matches!(refused, Err(StoreError::StaleTerm { term, current }) if term == old && current == new));
    let behind = store.commit(Revision(0), new, Vec::new()).await;
    assert!(matches!(behind, Err(StoreError::Conflict { expected: Revision(0), .. })));
    store.commit(at, new, Vec::new()).await.unwrap();
    assert_eq!(*watch.borrow(), at.next());
    assert_eq!(store.read().await.unwrap().leader.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_faulty_store_fails_where_it_is_told() {
    let cases = [
        (StoreFault::FailBefore(1), [true, false, true], 2),
        (StoreFault::FailAfter(1), [true, false, true], 3),
        (StoreFault::CrashBefore(1), [true, false, false], 1),
        (StoreFault::CrashAfter(1), [true, false, false], 2),
    ];
    for (fault, works, committed) in cases {
        let inner = Arc::new(MemoryStore::new());
        let term = inner.take_leadership("x").await.unwrap();
        let store = FaultyStore::new(inner.clone(), fault);
        for expected in works {
            let at = inner.read().await.unwrap().revision;
            assert_eq!(store.commit(at, term, Vec::new()).await.is_ok(), expected, "{fault:?}");
        }
        assert_eq!(inner.read().await.unwrap().revision, Revision(1 + committed), "{fault:?}");
        assert_eq!(store.read().await.is_err(), store.crashed(), "{fault:?}");
    }
}

#[tokio::test]
async fn only_one_process_holds_a_redb_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let store = RedbStore::open(&path).unwrap();
    let second = RedbStore::open(&path).err().unwrap();
    assert!(matches!(second, StoreError::Held { .. }));
    assert!(second.to_string().contains("is held by another process"), "{second}");
    store.take_leadership("x").await.unwrap();
    drop(store);
    let term = RedbStore::open(&path).unwrap().read().await.unwrap().term;
    assert_eq!(term, LeaderTerm(1));
}

#[tokio::test]
async fn a_store_gets_its_name_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    std::fs::write(folder.path().join(format!("state.redb.{}.new", std::process::id())), b"interrupted").unwrap();
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.read().await.unwrap(), State::default());
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["state.redb"]);
}

#[test]
fn what_is_no_state_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    std::fs::write(&path, b"not a store, but long enough to have a header if it were one".repeat(200)).unwrap();
    assert!(matches!(RedbStore::open(&path), Err(StoreError::Corrupt { .. })));
    std::fs::remove_file(&path).unwrap();
    let table = redb::TableDefinition::<&str, &[u8]>::new("meta");
    let database = redb::Database::create(&path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(table).unwrap().insert("format", b"99".as_slice()).unwrap();
    txn.commit().unwrap();
    drop(database);
    let newer = RedbStore::open(&path).err().unwrap();
    assert!(matches!(&newer, StoreError::Format { found, .. } if found == "99"), "{newer}");
    assert!(matches!(RedbStore::open(&folder.path().join("no/such")), Err(StoreError::Io { .. })));
}

/// One thing that a controller might do, whether allowed or not.
#[derive(Debug, Clone)]
enum Deed {
    Place(usize, usize),
    Begin(usize, usize),
    Proceed(usize, bool),
    Journal(usize),
    Override(usize, bool),
    Plan(usize, Option<usize>),
    Accept(usize),
    Forget(usize),
    ForgetPlan(usize),
    Lead,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        2 => (0..3usize, 0..3usize).prop_map(|(s, n)| Deed::Place(s, n)),
        3 => (0..3usize, 0..3usize).prop_map(|(s, n)| Deed::Begin(s, n)),
        9 => (0..3usize, any::<bool>()).prop_map(|(s, back)| Deed::Proceed(s, back)),
        2 => (0..3usize).prop_map(Deed::Journal),
        2 => (0..3usize, any::<bool>()).prop_map(|(s, on)| Deed::Override(s, on)),
        2 => (0..4usize, prop::option::of(0..4usize)).prop_map(|(p, parent)| Deed::Plan(p, parent)),
        2 => (0..4usize).prop_map(Deed::Accept),
        1 => (0..3usize).prop_map(Deed::Forget),
        1 => (0..4usize).prop_map(Deed::ForgetPlan),
        1 => Just(Deed::Lead),
    ];
    prop::collection::vec(deed, 1..60)
}

/// The changes of a deed on a state; what is refused is part of the test.
fn changes_of(state: &State, deed: &Deed) -> Vec<Change> {
    let id = |p: &usize| PlanId::new(format!("p{p}")).unwrap();
    match deed {
        Deed::Place(s, n) => {
            let (shard, expected) = (shard(*s), state.owners.get(&shard(*s)).cloned());
            let epoch = expected.as_ref().map_or(Epoch(1), |o| o.epoch.next());
            vec![Change::SetOwner { shard, expected, owner: Owner { node: node(*n), epoch } }]
        }
        Deed::Begin(s, n) => {
            let Some(owner) = state.owners.get(&shard(*s)) else { return Vec::new() };
            let source: usize = owner.node.as_str().trim_start_matches('n').parse().unwrap();
            let name = format!("m{s}-{}", state.revision);
            vec![put(&migration(&name, *s, source, *n, owner.epoch), MigrationState::Planned)]
        }
        Deed::Proceed(s, back) => state.active_migration(&shard(*s)).map_or_else(Vec::new, |m| proceed(m, *back)),
        Deed::Journal(s) => {
            let row = |m: &MigrationRecord| JournalRow {
                migration: m.id.clone(),
                at: foreshard_domain::RealTime::from_ms(1),
                model_at: Timestamp::from_ms(2),
                term: state.term,
                event: "e".into(),
                state: m.state.name().into(),
                note: Some(state.revision.to_string()),
            };
            let known = state.migrations.values().filter(|m| *m.shard() == shard(*s));
            known.map(|m| Change::Journal { row: row(m) }).collect()
        }
        Deed::Override(s, true) => {
            let owner = state.owners.get(&shard(*s)).cloned();
            owner.into_iter().map(|owner| Change::PutOverride { shard: shard(*s), owner }).collect()
        }
        Deed::Override(s, false) => vec![Change::RemoveOverride { shard: shard(*s) }],
        Deed::Plan(p, parent) => {
            let parent = parent.map(|p| format!("p{p}"));
            vec![Change::PutPlan { plan: Arc::new(plan(&format!("p{p}"), parent.as_deref())) }]
        }
        Deed::Accept(p) => vec![Change::AcceptPlan { id: id(p), expected_parent: state.plan_in_force.clone() }],
        Deed::Forget(s) => {
            let known = state.migrations.values().filter(|m| *m.shard() == shard(*s));
            known.take(1).map(|m| Change::ForgetMigration { id: m.id.clone() }).collect()
        }
        Deed::ForgetPlan(p) => vec![Change::ForgetPlan { id: id(p) }],
        Deed::Lead => Vec::new(),
    }
}

/// The next state of a migration, roughly as a driver would have it.
fn proceed(m: &MigrationRecord, back: bool) -> Vec<Change> {
    use MigrationState as S;
    let objects = |changes: Vec<Change>| -> Vec<Change> {
        let names = m.objects.iter();
        names.map(|name| Change::RemoveObject { name: name.clone() }).chain(changes).collect()
    };
    match &m.state {
        S::Planned if back => vec![put(m, S::Cancelled)],
        S::Planned => {
            let rows = m.objects.iter().map(|name| object(m, name));
            rows.chain([put(m, S::Preparing { fences_left: 0 })]).collect()
        }
        S::Preparing { .. } if back => vec![put(m, S::Undoing { ending: Ending::Cancelled })],
        S::Preparing { .. } => vec![put(m, sealed())],
        S::Sealed { way } => {
            let owner = m.next_owner(*way);
            let expected = Some(m.previous_owner(*way));
            let next = S::Opening { way: *way, epoch: owner.epoch };
            vec![
                Change::SetOwner { shard: m.shard().clone(), expected, owner: owner.clone() },
                Change::PutOverride { shard: m.shard().clone(), owner },
                put(m, next),
            ]
        }
        S::Opening { way: Way::There, .. } => vec![put(m, S::Reversible { until: Timestamp::from_ms(9) })],
        S::Opening { way: Way::Back, .. } => objects(vec![put(m, S::RolledBack)]),
        S::Reversible { .. } if back => vec![put(m, S::Sealed { way: Way::Back })],
        S::Reversible { .. } => objects(vec![put(m, S::Done)]),
        S::Undoing { .. } => objects(vec![put(m, S::Cancelled)]),
        other => panic!("not reached here: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every store answers the same, refusals included, and a redb store opened again shows what it showed before.
    #[test]
    fn redb_keeps_what_memory_keeps(deeds in deeds(), reopen_after in 0usize..60) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.redb");
            let memory = MemoryStore::new();
            let mut disk = RedbStore::open(&path).unwrap();
            for (n, deed) in deeds.iter().enumerate() {
                let before = memory.read().await.unwrap();
                if matches!(deed, Deed::Lead) {
                    let name = format!("leader-{n}");
                    assert_eq!(memory.take_leadership(&name).await.unwrap(), disk.take_leadership(&name).await.unwrap());
                } else {
                    let changes = changes_of(&before, deed);
                    let kept = memory.commit(before.revision, before.term, changes.clone()).await;
                    let written = disk.commit(before.revision, before.term, changes).await;
                    assert_eq!(format!("{kept:?}"), format!("{written:?}"), "{deed:?}");
                }
                let after = memory.read().await.unwrap();
                check_growth(&before, &after);
                assert_eq!(after, disk.read().await.unwrap(), "{deed:?}");
                if n == reopen_after {
                    drop(disk);
                    disk = RedbStore::open(&path).unwrap();
                }
            }
            drop(disk);
            assert_eq!(memory.read().await.unwrap(), RedbStore::open(&path).unwrap().read().await.unwrap());
        });
    }
}

/// M3, over every commit.
fn check_growth(before: &State, after: &State) {
    for (shard, owner) in before.owners.iter() {
        let now = &after.owners[shard];
        assert!(now == owner || now.epoch > owner.epoch, "{shard}: {owner:?} -> {now:?}");
    }
}
