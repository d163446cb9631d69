//! Running independent pieces of work on a fixed number of threads, in an order that never shows in the result.

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Worker threads that each carry a private pool of one thread.
///
/// The tensor library hands larger products to whatever thread pool surrounds it and gets slower by it; inside a pool of
/// one thread it stays on its own core, and parallelism is between pieces of work only.
pub struct Lanes {
    pools: Vec<ThreadPool>,
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").field("threads", &self.pools.len()).finish()
    }
}

/// Why threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start worker thread {thread} of {threads}; allow this process more threads or ask for fewer")]
pub struct LanesError {
    /// Which one.
    pub thread: usize,
    /// How many were wanted.
    pub threads: usize,
    #[source]
    source: rayon::ThreadPoolBuildError,
}

impl Lanes {
    /// Starts `threads` worker threads; 0 means as many as the machine has cores.
    ///
    /// # Errors
    /// [`LanesError`] if the operating system refuses a thread.
    pub fn new(threads: usize) -> Result<Self, LanesError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if threads == 0 { cores() } else { threads };
        let pool = |thread| {
            let builder = ThreadPoolBuilder::new().num_threads(1).stack_size(16 << 20);
            builder.build().map_err(|source| LanesError { thread, threads, source })
        };
        Ok(Self { pools: (0..threads).map(pool).collect::<Result<_, _>>()? })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.pools.len()
    }

    /// Applies `f` to every item and its index; results are in the order of the items, whatever the number of threads.
    pub fn map<T: Sync, R: Send>(&self, items: &[T], f: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
        let lanes = self.pools.len().min(items.len()).max(1);
        let share = |lane: usize| -> Vec<(usize, R)> {
            items.iter().enumerate().skip(lane).step_by(lanes).map(|(i, item)| (i, f(i, item))).collect()
        };
        let share = &share;
        let mut done: Vec<(usize, R)> = Vec::with_capacity(items.len());
        std::thread::scope(|scope| {
            let mut pools = self.pools.iter().take(lanes).enumerate();
            let first = pools.next();
            let others: Vec<_> = pools.map(|(lane, pool)| scope.spawn(move || pool.install(|| share(lane)))).collect();
            if let Some((lane, pool)) = first {
                done.extend(pool.install(|| share(lane)));
            }
            for other in others {
                match other.join() {
                    Ok(part) => done.extend(part),
                    Err(cause) => std::panic::resume_unwind(cause),
                }
            }
        });
        done.sort_unstable_by_key(|(i, _)| *i);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_at_any_number_of_threads() {
        let items: Vec<usize> = (0..37).collect();
        let expected: Vec<usize> = items.iter().map(|i| i * i).collect();
        for threads in [1, 2, 5, 64] {
            let lanes = Lanes::new(threads).unwrap();
            assert_eq!(lanes.map(&items, |i, item| i * item), expected);
        }
        assert!(Lanes::new(0).unwrap().threads() >= 1);
        assert!(Lanes::new(2).unwrap().map(&Vec::<u8>::new(), |_, x| *x).is_empty());
    }
}
