//! Comparisons while clients write to the source and the target follows late.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

const ROWS: i64 = 2000;
const TABLE: &str =
    "CREATE TABLE w (id bigint PRIMARY KEY, v text); INSERT INTO w SELECT i, 'v' FROM generate_series(1, 2000) i";
/// How late the target is.
const LATE: Duration = Duration::from_millis(50);

/// A change of one row of the source.
struct Write {
    at: Position,
    due: Instant,
    sql: String,
}

#[derive(Default)]
struct Queue {
    changed: Changed,
    late: VecDeque<Write>,
    applied: Position,
}

/// Plays the part of replication: what is written through it reaches the target later, and its key is told.
struct Replication {
    queue: Mutex<Queue>,
    writer: Session,
    applier: Session,
    /// A row whose changes are not applied.
    skipped: AtomicU64,
    /// Clients end after the write at hand: one that is cut off would be on the source without being told.
    fenced: AtomicBool,
    stopped: AtomicBool,
}

impl Replication {
    async fn new(pair: &Pair) -> Arc<Self> {
        let [source, target] = &pair.names;
        Arc::new(Self {
            queue: Mutex::default(),
            writer: pair.server.session("a", source).await,
            applier: pair.server.session("b", target).await,
            skipped: AtomicU64::new(u64::MAX),
            fenced: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        })
    }

    async fn position(&self) -> Position {
        Sides { source: &self.writer, target: &self.applier }.position().await.unwrap()
    }

    /// Writes one row on the source.
    async fn write(&self, id: i64, sql: &str) {
        let mut queue = self.queue.lock().await;
        self.writer.run("writing", sql).await.unwrap();
        let at = self.position().await;
        let rows = queue.changed.tables.entry(("public".into(), "w".into()));
        let empty = || ChangedRows::Keys { columns: vec!["id".into()], keys: BTreeSet::new() };
        if let ChangedRows::Keys { keys, .. } = rows.or_insert_with(empty) {
            keys.insert(vec![Some(id.to_string())]);
        }
        let skipped = self.skipped.load(Ordering::SeqCst) == id.unsigned_abs();
        let sql = if skipped { String::new() } else { sql.to_owned() };
        queue.late.push_back(Write { at, due: Instant::now() + LATE, sql });
    }

    async fn set(&self, id: i64, value: &str) {
        self.write(id, &format!("UPDATE public.w SET v = '{value}' WHERE id = {id}")).await;
    }

    /// What has changed since the last time. Nobody writes meanwhile, so that everything up to the log's end is known.
    async fn take(&self) -> Changed {
        let mut queue = self.queue.lock().await;
        let up_to = self.position().await;
        Changed { up_to, ..std::mem::take(&mut queue.changed) }
    }

    async fn applied(&self) -> Position {
        let queue = self.queue.lock().await;
        if queue.late.is_empty() { self.position().await } else { queue.applied }
    }

    /// Applies late until stopped.
    async fn follow(self: Arc<Self>) {
        while !self.stopped.load(Ordering::SeqCst) {
            let next = self.queue.lock().await.late.front().map(|write| (write.due, write.sql.clone()));
            let Some((due, sql)) = next else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            tokio::time::sleep_until(due).await;
            self.applier.run("applying", &sql).await.unwrap();
            let mut queue = self.queue.lock().await;
            queue.applied = queue.late.pop_front().unwrap().at;
        }
    }

    /// Clients that change, add and remove rows, most of them few ones, until fenced.
    async fn clients(self: Arc<Self>, seed: u64) {
        let mut random = seed;
        for number in 0_u64.. {
            if self.fenced.load(Ordering::SeqCst) {
                return;
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let any = i64::try_from(random >> 33).unwrap();
            let hot = any % 20 + 1;
            // Rows 1990 to 1999 are left alone for the tests.
            match number % 4 {
                0 => self.set(any % 1989 + 1, &number.to_string()).await,
                1 | 2 => self.set(hot, &(number % 3).to_string()).await,
                _ => {
                    let id = ROWS + any % 50 + 1;
                    let sql = format!(
                        "WITH gone AS (DELETE FROM public.w WHERE id = {id} RETURNING 1) \
                         INSERT INTO public.w SELECT {id}, '{number}' WHERE NOT EXISTS (SELECT 1 FROM gone)"
                    );
                    self.write(id, &sql).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A comparison under writes.
struct Live {
    pair: Pair,
    replication: Arc<Replication>,
    comparison: Comparison,
    tasks: Vec<JoinHandle<()>>,
}

impl Live {
    async fn new(planted: &str) -> Option<Self> {
        let pair = Pair::new(TABLE).await?;
        pair.at_target(planted).await;
        let replication = Replication::new(&pair).await;
        let comparison = pair.comparison(quick(100)).await;
        let tasks = vec![tokio::spawn(replication.clone().follow()), tokio::spawn(replication.clone().clients(7))];
        tokio::time::sleep(LATE * 2).await;
        Some(Self { pair, replication, comparison, tasks })
    }

    async fn take(&mut self) -> Position {
        self.comparison.absorb(self.replication.take().await).unwrap();
        self.replication.applied().await
    }

    /// Compares every range; returns how many rows were in doubt at most.
    async fn verify(&mut self) -> usize {
        let (deadline, mut most) = (Instant::now() + LIMIT, 0);
        loop {
            let applied = self.take().await;
            let step = self.comparison.step(self.pair.sides(), applied, Duration::from_millis(20)).await.unwrap();
            most = most.max(self.comparison.in_doubt());
            if step == Step::Done {
                return most;
            }
            assert!(Instant::now() < deadline, "not done: {step:?}, {} in doubt", self.comparison.in_doubt());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Stops the clients, waits for the target and compares the rest.
    async fn fence(mut self) -> Found {
        self.replication.fenced.store(true, Ordering::SeqCst);
        self.tasks.pop().unwrap().await.unwrap();
        while !self.replication.queue.lock().await.late.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.take().await;
        let fence_at = self.comparison.seen();
        let found = self.comparison.finish_in_fence(self.pair.sides(), fence_at).await.unwrap();
        self.replication.stopped.store(true, Ordering::SeqCst);
        found
    }
}

#[tokio::test]
async fn copies_that_follow_late_are_found_equal() {
    let Some(mut live) = Live::new("SELECT").await else { return };
    let most = live.verify().await;
    assert!(most > 5, "only {most} rows were ever in doubt: the writes were too few");
    assert_eq!(live.comparison.found().differing, Vec::<String>::new());
    assert!(live.comparison.found().rows >= 2000 && live.comparison.found().ranges >= 20);
    for _ in 0..20 {
        let applied = live.take().await;
        live.comparison.settle(live.pair.sides(), applied, LIMIT).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left = live.comparison.in_doubt();
    assert!(left < 150, "{left} rows are left for the fence: those of the last moments only should be");
    let found = live.fence().await;
    assert_eq!(found.differing, Vec::<String>::new());
    assert!(found.rows > 0, "nothing was left for the fence");
}

#[tokio::test]
async fn a_difference_is_found_among_late_changes() {
    let Some(mut live) = Live::new(
        "UPDATE w SET v = 'wrong' WHERE id = 1995; DELETE FROM w WHERE id = 1996; INSERT INTO w VALUES (0, 'more')",
    )
    .await
    else {
        return;
    };
    live.verify().await;
    let expected = [
        "table public.w key (0) is missing on the source",
        "table public.w key (1995) differs",
        "table public.w key (1996) is missing on the target",
    ];
    assert_eq!(sorted(live.comparison.found().differing.clone()), expected);
}

#[tokio::test]
async fn a_change_that_was_not_applied_is_found_before_or_in_the_fence() {
    for settles in [true, false] {
        let Some(mut live) = Live::new("SELECT").await else { return };
        live.verify().await;
        live.replication.skipped.store(1997, Ordering::SeqCst);
        live.replication.set(1997, "lost").await;
        for _ in 0..if settles { 200 } else { 0 } {
            let applied = live.take().await;
            live.comparison.settle(live.pair.sides(), applied, LIMIT).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let expected = ["table public.w key (1997) differs"];
        let before = live.comparison.found().differing.clone();
        assert_eq!(before, if settles { expected.as_slice() } else { &[] });
        assert_eq!(live.fence().await.differing, expected);
    }
}

/// The documented limit: the target's rows are not compared again unless they change on the source.
#[tokio::test]
async fn what_the_target_changes_by_itself_after_the_comparison_is_not_found() {
    let Some(mut live) = Live::new("SELECT").await else { return };
    live.verify().await;
    live.pair.at_target("UPDATE w SET v = 'by itself' WHERE id = 1998").await;
    assert_eq!(live.fence().await.differing, Vec::<String>::new());
}

#[tokio::test]
async fn a_change_told_after_its_row_was_found_equal_puts_it_in_doubt_again() {
    let Some(pair) = Pair::new(TABLE).await else { return };
    let mut comparison = pair.comparison(quick(100)).await;
    let told = |up_to| {
        let keys = ChangedRows::Keys { columns: vec!["id".into()], keys: BTreeSet::from([vec![Some("5".into())]]) };
        Changed { tables: [(("public".into(), "w".into()), keys)].into(), up_to }
    };
    let before = pair.nothing_changed(&mut comparison).await;
    // The source has the change already; the target will get it late, and gets it wrong.
    pair.at_source("UPDATE w SET v = 'new' WHERE id = 5").await;
    pair.at_target("UPDATE w SET v = 'new' WHERE id = 5").await;
    comparison.absorb(told(pair.sides().position().await.unwrap())).unwrap();
    comparison.step(pair.sides(), before, Duration::from_secs(5)).await.unwrap();
    assert_eq!(comparison.in_doubt(), 1, "equal, but not when the target had applied the change");
    let now = pair.nothing_changed(&mut comparison).await;
    comparison.settle(pair.sides(), now, LIMIT).await.unwrap();
    assert_eq!(comparison.in_doubt(), 0);
    pair.at_source("UPDATE w SET v = 'newer' WHERE id = 5").await;
    let fence_at = pair.sides().position().await.unwrap();
    let early = comparison.finish_in_fence(pair.sides(), fence_at).await;
    assert!(matches!(early, Err(BackendError::Bug { .. })), "its changes have not been taken");
    comparison.absorb(told(fence_at)).unwrap();
    let found = comparison.finish_in_fence(pair.sides(), fence_at).await.unwrap();
    assert_eq!(found, Found { ranges: 0, rows: 1, differing: vec!["table public.w key (5) differs".into()] });
    pair.at_target("UPDATE w SET v = 'newer' WHERE id = 5").await;
    let found = comparison.finish_in_fence(pair.sides(), fence_at).await.unwrap();
    assert_eq!((found.rows, found.differing.len(), comparison.in_doubt()), (1, 0, 0));
    // A fence that was lifted, and a change after it.
    comparison.absorb(told(Position(fence_at.0 + 1))).unwrap();
    let found = comparison.finish_in_fence(pair.sides(), fence_at).await.unwrap();
    assert_eq!((found.rows, found.differing.len(), comparison.in_doubt()), (1, 0, 1));
}

#[tokio::test]
async fn tables_that_changed_as_a_whole_are_compared_again() {
    let Some(pair) = Pair::new(TABLE).await else { return };
    pair.both("CREATE TABLE nokey (a int); INSERT INTO nokey VALUES (1), (1)").await;
    let mut comparison = pair.comparison(quick(100)).await;
    pair.finish(&mut comparison).await;
    assert_eq!(comparison.cursor(), None);
    let whole =
        |name: &str, up_to| Changed { tables: [(("public".into(), name.into()), ChangedRows::Whole)].into(), up_to };
    let at = pair.sides().position().await.unwrap();
    comparison.absorb(whole("w", at)).unwrap();
    comparison.absorb(whole("nokey", at)).unwrap();
    let unknown = comparison.absorb(whole("new", at));
    assert!(matches!(unknown, Err(BackendError::Bug { .. })));
    comparison
        .absorb(Changed { tables: [(("foreshard".into(), "fence".into()), ChangedRows::Whole)].into(), up_to: at })
        .unwrap();
    assert_eq!(comparison.in_doubt(), 2);
    let fenced = comparison.finish_in_fence(pair.sides(), at).await.unwrap();
    assert_eq!(fenced, Found { ranges: 2, rows: 2002, differing: Vec::new() });
    assert_eq!(comparison.in_doubt(), 0);
    pair.at_target("UPDATE w SET v = 'wrong' WHERE id = 9; INSERT INTO nokey VALUES (2)").await;
    comparison.absorb(whole("w", at)).unwrap();
    comparison.absorb(whole("nokey", at)).unwrap();
    let fenced = comparison.finish_in_fence(pair.sides(), at).await.unwrap();
    assert_eq!(sorted(fenced.differing), ["table public.nokey differs", "table public.w differs"]);
    pair.finish(&mut comparison).await;
    assert_eq!(
        comparison.found().differing,
        ["table public.w key (9) differs"],
        "one that had changed is left for the fence"
    );
    pair.both("TRUNCATE w, nokey").await;
    let at = pair.nothing_changed(&mut comparison).await;
    comparison.absorb(whole("w", at)).unwrap();
    comparison.absorb(whole("nokey", at)).unwrap();
    let fenced = comparison.finish_in_fence(pair.sides(), at).await.unwrap();
    assert_eq!((fenced.rows, fenced.differing), (0, vec!["table public.w key (9) differs".to_owned()]));
}
