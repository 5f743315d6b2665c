//! Futexes: who waits on which word (`futex(2)`, `kernel/futex/`).
//!
//! The word is looked at under its bucket's lock, after which the waiter is queued: a wake that follows a change of the
//! word finds either the new value or the waiter. Wakers are fired after the lock is released.

use core::sync::atomic::{AtomicBool, Ordering};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use platform::{AtomicOp, Fault};
use sentry_base::{Errno, Mutex, Result, Sleeper, lock::rank};
use sentry_mm::{FutexKey, Mm};

use crate::Task;
use crate::futex_pi::{PiGuard, PiLocks, PiWaiter};

/// Matches every waiter (`FUTEX_BITSET_MATCH_ANY`).
pub const MATCH_ANY: u32 = u32::MAX;

/// A task that waits on a word.
#[derive(Debug)]
pub struct FutexWaiter {
    key: parking_lot::Mutex<FutexKey>,
    bitset: u32,
    /// Woken, or moved to the queue of a lock.
    woken: AtomicBool,
    sleeper: Arc<Sleeper>,
    /// The lock that it is to be moved to (`FUTEX_WAIT_REQUEUE_PI`). Nothing else ends such a wait.
    wants: Option<Arc<PiWaiter>>,
}

impl FutexWaiter {
    pub(crate) fn waits_on(&self, key: &FutexKey) -> bool {
        *self.key.lock() == *key
    }

    pub(crate) fn wants(&self) -> Option<&Arc<PiWaiter>> {
        self.wants.as_ref()
    }

    /// It is out of its bucket.
    pub(crate) fn leave(&self) {
        self.woken.store(true, Ordering::SeqCst);
    }

    pub fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }
}

pub(crate) type Bucket = Mutex<Vec<Arc<FutexWaiter>>, { rank::FUTEX_BUCKET }>;

/// The waiters of a sandbox.
pub struct FutexTable {
    buckets: Vec<Bucket>,
    hash: RandomState,
    pub(crate) pi: PiLocks,
}

impl core::fmt::Debug for FutexTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FutexTable")
    }
}

impl Default for FutexTable {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            hash: RandomState::new(),
            pi: PiLocks::new(BUCKETS),
        }
    }
}

const BUCKETS: usize = 256;

impl FutexTable {
    fn index(&self, key: &FutexKey) -> usize {
        usize::try_from(self.hash.hash_one(key) % BUCKETS as u64).unwrap_or(0)
    }

    fn bucket(&self, index: usize) -> Result<&Bucket> {
        self.buckets.get(index).ok_or(Errno::EFAULT)
    }

    /// The locks of the bucket of `key` that somebody waits for.
    pub(crate) fn pi_locks_of(&self, key: &FutexKey) -> Result<PiGuard<'_>> {
        self.pi.lock(self.index(key)).ok_or(Errno::EFAULT)
    }

    pub(crate) fn bucket_of(&self, key: &FutexKey) -> Result<&Bucket> {
        self.bucket(self.index(key))
    }

    /// Queues a waiter if the word still holds `value`; `EAGAIN` if not.
    pub fn enqueue(
        &self,
        mm: &Mm,
        addr: u64,
        key: FutexKey,
        value: u32,
        bitset: u32,
        sleeper: &Arc<Sleeper>,
    ) -> Result<Arc<FutexWaiter>> {
        self.enqueue_for(mm, addr, key, value, bitset, sleeper, None)
    }

    /// As [`FutexTable::enqueue`], for a waiter that `wants` a lock afterwards (`FUTEX_WAIT_REQUEUE_PI`).
    pub fn enqueue_for(
        &self,
        mm: &Mm,
        addr: u64,
        key: FutexKey,
        value: u32,
        bitset: u32,
        sleeper: &Arc<Sleeper>,
        wants: Option<Arc<PiWaiter>>,
    ) -> Result<Arc<FutexWaiter>> {
        let waiter = Arc::new(FutexWaiter {
            wants,
            bitset,
            woken: AtomicBool::new(false),
            sleeper: Arc::clone(sleeper),
            key: parking_lot::Mutex::new(key),
        });
        let bucket = self.bucket(self.index(&key))?;
        for _ in 0..3 {
            {
                let mut waiters = bucket.lock();
                match peek(mm, addr) {
                    Ok(now) if now == value => {
                        waiters.push(Arc::clone(&waiter));
                        return Ok(waiter);
                    }
                    Ok(_) => return Err(Errno::EAGAIN),
                    Err(_) => {}
                }
            }
            // The page may only have to be brought in, which no lock of this rank allows.
            mm.load_u32(addr)?;
        }
        Err(Errno::EFAULT)
    }

    /// Takes a waiter out; false if it had been woken.
    pub fn dequeue(&self, waiter: &Arc<FutexWaiter>) -> bool {
        loop {
            let key = *waiter.key.lock();
            let Ok(bucket) = self.bucket(self.index(&key)) else { return false };
            let mut waiters = bucket.lock();
            if let Some(at) = waiters.iter().position(|w| Arc::ptr_eq(w, waiter)) {
                waiters.remove(at);
                return true;
            }
            if waiter.is_woken() {
                return false;
            }
            // It was requeued between the look at its key and the lock.
        }
    }

    /// Wakes at most `count` waiters that share a bit with `bitset`, in order of arrival; returns how many.
    pub fn wake(&self, key: &FutexKey, count: usize, bitset: u32) -> usize {
        let Ok(bucket) = self.bucket(self.index(key)) else { return 0 };
        let due = take(&mut bucket.lock(), key, count, bitset);
        fire(&due);
        due.len()
    }

    /// Wakes up to `wake` waiters of `from` and moves up to `requeue` others to `to`; `EAGAIN` if `expect` is given and
    /// the word at `addr` is another. Returns how many were woken and moved.
    pub fn requeue(
        &self,
        mm: &Mm,
        (from, addr): (&FutexKey, u64),
        to: &FutexKey,
        (wake, requeue): (usize, usize),
        expect: Option<u32>,
    ) -> Result<(usize, usize)> {
        if expect.is_some() {
            // Brings the page in before the locks are taken.
            mm.load_u32(addr)?;
        }
        let (a, b) = (self.index(from), self.index(to));
        let (due, moved) = if a == b {
            let mut waiters = self.bucket(a)?.lock();
            check(mm, addr, expect)?;
            let due = take(&mut waiters, from, wake, MATCH_ANY);
            let mut moved = 0;
            if from != to {
                for waiter in waiters.iter() {
                    let mut key = waiter.key.lock();
                    if *key == *from && moved < requeue {
                        *key = *to;
                        moved += 1;
                    }
                }
            }
            (due, moved)
        } else {
            let (first, second) = (self.bucket(a.min(b))?.lock(), self.bucket(a.max(b))?.lock());
            let (mut source, mut target) = if a < b { (first, second) } else { (second, first) };
            check(mm, addr, expect)?;
            let due = take(&mut source, from, wake, MATCH_ANY);
            let mut moved = 0;
            source.retain(|waiter| {
                let mut key = waiter.key.lock();
                if *key != *from || moved >= requeue {
                    return true;
                }
                *key = *to;
                moved += 1;
                target.push(Arc::clone(waiter));
                false
            });
            (due, moved)
        };
        fire(&due);
        Ok((due.len(), moved))
    }
}

/// The word, without bringing its page in.
pub(crate) fn peek(mm: &Mm, addr: u64) -> Result<u32, Fault> {
    mm.space().atomic_u32(addr, AtomicOp::Load)
}

fn check(mm: &Mm, addr: u64, expect: Option<u32>) -> Result<()> {
    match expect {
        Some(value) if peek(mm, addr).map_err(|_| Errno::EFAULT)? != value => Err(Errno::EAGAIN),
        _ => Ok(()),
    }
}

fn take(
    waiters: &mut Vec<Arc<FutexWaiter>>,
    key: &FutexKey,
    count: usize,
    bitset: u32,
) -> Vec<Arc<FutexWaiter>> {
    let mut due = Vec::new();
    waiters.retain(|waiter| {
        if due.len() >= count
            || waiter.wants.is_some()
            || waiter.bitset & bitset == 0
            || *waiter.key.lock() != *key
        {
            return true;
        }
        waiter.woken.store(true, Ordering::SeqCst);
        due.push(Arc::clone(waiter));
        false
    });
    due
}

fn fire(due: &[Arc<FutexWaiter>]) {
    for waiter in due {
        waiter.sleeper.wake();
    }
}

impl Task {
    /// Wakes up to `count` waiters on the word at `addr` of this task's memory (`clear_child_tid`, robust lists).
    pub fn futex_wake_addr(&self, addr: u64, count: usize) -> usize {
        match self.mm().futex_key(addr, false) {
            Ok(key) => self.kernel().futexes().wake(&key, count, MATCH_ANY),
            Err(_) => 0,
        }
    }
}
