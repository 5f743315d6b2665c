//! The executor: a task is one future, a few workers poll them.
//!
//! A future that a worker readies while it runs another goes to that worker's own slot and runs next, on the same
//! thread: a writer completes its reader without a second host wake-up.

use core::cell::{Cell, RefCell};
use core::future::Future;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::sync::Arc;

use async_task::Runnable;

use crate::clock::Nanos;
use crate::lock::{Mutex, rank};
use crate::timer::Timers;

/// Where workers look for trapped contexts and sleep: the platform, seen from below.
pub trait Reactor: Send + Sync {
    /// Readies the tasks whose contexts have trapped; returns how many.
    fn poll(&self) -> usize;
    /// Sleeps until something happens, [`Reactor::unpark`] or `until` (`CLOCK_MONOTONIC`).
    fn park(&self, worker: usize, until: Option<Nanos>, spin: bool);
    /// The calling worker is about to run something.
    fn at_work(&self) {}
    /// Ends the present or next park of `worker`.
    fn unpark(&self, worker: usize);
}

thread_local! {
    /// The executor's address and index of the worker that runs on this thread.
    static WORKER: Cell<Option<usize>> = const { Cell::new(None) };
    static NEXT: RefCell<Option<Runnable>> = const { RefCell::new(None) };
}

/// At most 64 workers: the idle set is one word.
const MAX_WORKERS: usize = 64;

/// Runs futures on a fixed set of workers.
pub struct Executor {
    queue: Mutex<VecDeque<Runnable>, { rank::RUN_QUEUE }>,
    queued: AtomicUsize,
    idle: AtomicU64,
    stop: AtomicBool,
    timers: Timers,
    reactor: Arc<dyn Reactor>,
}

impl core::fmt::Debug for Executor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Executor")
    }
}

impl Executor {
    pub fn new(reactor: Arc<dyn Reactor>) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(VecDeque::new()),
            queued: AtomicUsize::new(0),
            idle: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            timers: Timers::default(),
            reactor,
        })
    }

    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// Starts a future. It runs to its end: there is no handle to drop.
    pub fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        let this = Arc::clone(self);
        let (runnable, task) = async_task::spawn(future, move |r| this.schedule(r));
        task.detach();
        runnable.schedule();
    }

    fn schedule(&self, runnable: Runnable) {
        let runnable = if WORKER.get().is_some() {
            match NEXT.with_borrow_mut(|next| next.replace(runnable)) {
                None => return,
                // The slot holds the newest: the older one may be taken by any worker.
                Some(older) => older,
            }
        } else {
            runnable
        };
        self.queue.lock().push_back(runnable);
        self.queued.fetch_add(1, Ordering::SeqCst);
        self.wake_one();
    }

    /// Whether something waits for a worker: what this thread has readied last, or anything that any of them may take.
    pub fn has_work(&self) -> bool {
        self.queued.load(Ordering::Relaxed) != 0 || NEXT.with_borrow(Option::is_some)
    }

    /// Wakes one idle worker, if there is one.
    pub fn wake_one(&self) {
        let mut idle = self.idle.load(Ordering::SeqCst);
        while idle != 0 {
            let bit = idle & idle.wrapping_neg();
            match self.idle.compare_exchange(idle, idle & !bit, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    self.reactor.unpark(bit.trailing_zeros() as usize);
                    return;
                }
                Err(now) => idle = now,
            }
        }
    }

    fn pop(&self) -> Option<Runnable> {
        if let Some(next) = NEXT.with_borrow_mut(Option::take) {
            return Some(next);
        }
        if self.queued.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let runnable = self.queue.lock().pop_front()?;
        self.queued.fetch_sub(1, Ordering::SeqCst);
        Some(runnable)
    }

    /// Works until [`Executor::stop`]. `worker` is this thread's number, from 0 to 63, used by no other.
    pub fn run_worker(&self, worker: usize) {
        let bit = 1_u64 << (worker % MAX_WORKERS);
        WORKER.set(Some(worker));
        // A task that keeps readying itself must not starve traps and timers.
        let mut streak = 0_u32;
        while !self.stop.load(Ordering::SeqCst) {
            if streak < 16
                && let Some(runnable) = self.pop()
            {
                streak += 1;
                self.reactor.at_work();
                runnable.run();
                continue;
            }
            let starved = streak >= 16;
            streak = 0;
            let found = self.timers.fire_due() + self.reactor.poll();
            if found > 0 || starved {
                continue;
            }
            self.idle.fetch_or(bit, Ordering::SeqCst);
            if self.queued.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
                self.reactor.park(worker, self.timers.earliest(), true);
            }
            self.idle.fetch_and(!bit, Ordering::SeqCst);
        }
        WORKER.set(None);
    }

    /// Makes every worker return.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        for worker in 0..MAX_WORKERS {
            if self.idle.load(Ordering::SeqCst) & (1 << worker) != 0 {
                self.reactor.unpark(worker);
            }
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{Events, Sleeper, WaitClass, WaitEnd, WaitQueue};
    use crate::{Observer, mono_now};

    /// Parks on a condition variable; knows no traps.
    #[derive(Default)]
    struct NoTraps {
        tokens: parking_lot::Mutex<u64>,
        changed: parking_lot::Condvar,
        runs: AtomicUsize,
    }

    impl Reactor for NoTraps {
        fn poll(&self) -> usize {
            0
        }
        fn park(&self, worker: usize, until: Option<Nanos>, _spin: bool) {
            let mut tokens = self.tokens.lock();
            let wait = until.map_or(100_000_000, |at| at.saturating_sub(mono_now()));
            if *tokens & (1 << worker) == 0 {
                self.changed.wait_for(&mut tokens, core::time::Duration::from_nanos(wait));
            }
            *tokens &= !(1 << worker);
        }
        fn at_work(&self) {
            self.runs.fetch_add(1, Ordering::Relaxed);
        }
        fn unpark(&self, worker: usize) {
            *self.tokens.lock() |= 1 << worker;
            self.changed.notify_all();
        }
    }

    #[test]
    fn sleepers_wake_time_out_and_are_interrupted() {
        let reactor = Arc::new(NoTraps::default());
        let executor = Executor::new(Arc::clone(&reactor) as Arc<dyn Reactor>);
        let queue = Arc::new(WaitQueue::new());
        let ends = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let sleeper = Arc::new(Sleeper::default());
        let (ex, q, e, s) =
            (Arc::clone(&executor), Arc::clone(&queue), Arc::clone(&ends), Arc::clone(&sleeper));
        executor.spawn(async move {
            let timers = ex.timers();
            let id = q.add(Events::IN, Arc::clone(&s) as Arc<dyn Observer>);
            let end = s.sleep(WaitClass::Interruptible, None, timers).await;
            e.lock().push(end);
            q.remove(id);
            let end = s.sleep(WaitClass::Killable, Some(mono_now() + 1_000_000), timers).await;
            e.lock().push(end);
            s.interrupt();
            let end = s.sleep(WaitClass::Interruptible, None, timers).await;
            e.lock().push(end);
            s.clear_interrupt();
            s.kill();
            let end = s.sleep(WaitClass::Killable, None, timers).await;
            e.lock().push(end);
            ex.stop();
        });
        let q = Arc::clone(&queue);
        executor.spawn(async move { q.notify(Events::IN) });
        let ex = Arc::clone(&executor);
        let other = std::thread::spawn(move || ex.run_worker(1));
        executor.run_worker(0);
        other.join().unwrap();
        let ends = ends.lock();
        assert_eq!(*ends, [WaitEnd::Ready, WaitEnd::TimedOut, WaitEnd::Interrupted, WaitEnd::Killed]);
        // Two tasks, and three times the one that slept.
        assert!(reactor.runs.load(Ordering::Relaxed) >= 4);
    }
}
