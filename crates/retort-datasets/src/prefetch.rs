//! Items made ahead of time, a bounded number of them, by threads of their own.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// More threads or batches than any machine has use for; a larger number is a slip.
const MAX: usize = 1024;

/// Threads that work ahead.
///
/// They are not those of the training: a training that holds all threads of its pool would never let a task of the loader
/// start.
#[derive(Debug)]
pub(crate) struct Prefetch {
    pool: ThreadPool,
    depth: usize,
}

impl Prefetch {
    pub(crate) fn new(threads: usize, depth: usize) -> Result<Self> {
        const OP: &str = "prefetch";
        for (what, count) in [("threads", threads), ("depth", depth)] {
            if !(1..=MAX).contains(&count) {
                return Err(Error::invalid(OP, what, format!("1 to {MAX}"), count));
            }
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("retort-data-{i}"))
            .build()
            .map_err(|e| Error::invalid(OP, "threads", "what the system gives", e))?;
        Ok(Self { pool, depth })
    }

    /// Starts to make the items of `range` in order; one item is the work of all threads together.
    pub(crate) fn start<T: Send + 'static>(
        self: &Arc<Self>,
        range: Range<usize>,
        make: impl Fn(usize) -> T + Send + Sync + 'static,
    ) -> Prefetched<T> {
        // One item waits in the worker's hand, the others in the channel.
        let (sender, receiver) = sync_channel(self.depth - 1);
        let stop = Arc::new(AtomicBool::new(false));
        let (prefetch, stopped) = (self.clone(), stop.clone());
        let feed = move || {
            for number in range {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let item = prefetch.pool.install(|| make(number));
                if sender.send(item).is_err() {
                    return;
                }
            }
        };
        // Without a thread nothing is made ahead, and whoever takes the items makes them.
        drop(std::thread::Builder::new().name("retort-data".into()).spawn(feed));
        Prefetched { receiver, stop }
    }
}

/// Items on their way.
#[derive(Debug)]
pub(crate) struct Prefetched<T> {
    receiver: Receiver<T>,
    stop: Arc<AtomicBool>,
}

impl<T> Prefetched<T> {
    /// The next item; nothing if the worker is gone.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

impl<T> Drop for Prefetched<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
