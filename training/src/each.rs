//! Independent pieces of work on all cores, where the work itself waits for other threads.
//!
//! A worker of rayon that waits for another pool takes up further work meanwhile, on the same stack: over thousands of series
//! whose forecasters have threads of their own, that ends the stack. These workers wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Applies `f` to 0, 1, .. `count` - 1; results in this order, or the error of the first of those that failed.
pub(crate) fn each<R: Send, E: Send>(count: usize, f: impl Fn(usize) -> Result<R, E> + Sync) -> Result<Vec<R>, E> {
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(count.max(1));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return done;
            }
            let result = f(i);
            if result.is_err() {
                // Whoever comes later need not begin; whoever came before goes on and may fail earlier in the order.
                next.fetch_max(count, Ordering::Relaxed);
            }
            done.push((i, result));
        }
    };
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(part) => done.extend(part),
                Err(cause) => std::panic::resume_unwind(cause),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_first_error() {
        let squares: Result<Vec<usize>, ()> = each(1000, |i| Ok(i * i));
        assert_eq!(squares.unwrap(), (0..1000).map(|i| i * i).collect::<Vec<_>>());
        assert_eq!(each(0, |_| Ok::<_, ()>(1)).unwrap(), Vec::<i32>::new());
        for _ in 0..50 {
            assert_eq!(each(1000, |i| if i >= 7 { Err(i) } else { Ok(i) }), Err(7));
        }
    }
}
