//! Priority-inheritance futexes: locks whose owner's thread id is in the word (`kernel/futex/pi.c`, `requeue.c`).
//!
//! The word is changed under the lock of its key's bucket, so that word and queue agree. An unlock with waiters hands the lock
//! to the next one: the word never looks free while somebody waits. The host schedules, so no priority is lent; waiters
//! are served by real-time priority and then by arrival.
//!
//! **Threat.** The word is the application's and may hold anything; what is found in it is compared with what the
//! queue says, and refused if they differ.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::collections::HashMap;
use std::sync::Arc;

use platform::AtomicOp;
use sentry_base::{Errno, Mutex, MutexGuard, Result, lock::rank};
use sentry_mm::{FutexKey, Mm};

use crate::futex::{FutexTable, peek};
use crate::robust::{OWNER_DIED, TID_MASK, WAITERS};
use crate::{Task, TaskState};

/// A task that waits for a lock.
#[derive(Debug)]
pub struct PiWaiter {
    task: Arc<Task>,
    mm: Arc<Mm>,
    addr: u64,
    key: FutexKey,
    priority: i32,
    granted: AtomicBool,
}

impl PiWaiter {
    /// A waiter for the lock at `addr` of the memory of `task`.
    pub fn new(task: &Arc<Task>, addr: u64, key: FutexKey) -> Arc<Self> {
        Arc::new(Self {
            task: Arc::clone(task),
            mm: task.mm(),
            addr,
            key,
            priority: task.scheduling().priority,
            granted: AtomicBool::new(false),
        })
    }

    /// Whether the task has the lock.
    pub fn is_granted(&self) -> bool {
        self.granted.load(Ordering::SeqCst)
    }

    /// Gives the task the lock. The word says so already.
    fn grant(&self) {
        self.granted.store(true, Ordering::SeqCst);
        self.task.sleeper().wake();
    }

    fn tid(&self) -> u32 {
        self.task.ns_tid().cast_unsigned()
    }
}

/// A lock that somebody waits for.
#[derive(Debug)]
struct PiLock {
    owner: Arc<Task>,
    /// In the order in which they are served; never empty.
    waiters: Vec<Arc<PiWaiter>>,
}

impl PiLock {
    fn add(&mut self, waiter: &Arc<PiWaiter>) {
        let at = self.waiters.partition_point(|w| w.priority >= waiter.priority);
        self.waiters.insert(at, Arc::clone(waiter));
    }
}

type Locks = HashMap<FutexKey, PiLock>;

/// Every lock that somebody waits for, by the buckets of their keys.
#[derive(Debug)]
pub(crate) struct PiLocks {
    buckets: Vec<Mutex<Locks, { rank::PI_BUCKET }>>,
    /// As many as there are and may be about to come, for a look without the locks.
    count: AtomicUsize,
}

/// Someone is about to wait for a lock, if its owner does not die first.
struct Coming<'a>(&'a AtomicUsize);

impl<'a> Coming<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The locks of a bucket, for as long as they stay as they are.
pub(crate) struct PiGuard<'a> {
    locks: MutexGuard<'a, Locks, { rank::PI_BUCKET }>,
    count: &'a AtomicUsize,
}

impl PiLocks {
    pub fn new(nr_buckets: usize) -> Self {
        let buckets = core::iter::repeat_with(|| Mutex::new(Locks::new())).take(nr_buckets).collect();
        Self { buckets, count: AtomicUsize::new(0) }
    }

    pub fn lock(&self, bucket: usize) -> Option<PiGuard<'_>> {
        Some(PiGuard { locks: self.buckets.get(bucket)?.lock(), count: &self.count })
    }
}

impl PiGuard<'_> {
    /// The lock of `key`, which is made for `owner` if there is none.
    fn of(&mut self, key: FutexKey, owner: Arc<Task>) -> &mut PiLock {
        self.locks.entry(key).or_insert_with(|| {
            self.count.fetch_add(1, Ordering::SeqCst);
            PiLock { owner, waiters: Vec::new() }
        })
    }

    fn remove(&mut self, key: &FutexKey) {
        if self.locks.remove(key).is_some() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Makes the first waiter the owner.
    fn pass_on(&mut self, key: &FutexKey, next: &Arc<PiWaiter>) {
        let Some(lock) = self.locks.get_mut(key) else { return };
        lock.waiters.retain(|w| !Arc::ptr_eq(w, next));
        lock.owner = Arc::clone(&next.task);
        if lock.waiters.is_empty() {
            self.remove(key);
        }
    }
}

/// What an attempt to lock came to.
#[derive(Debug)]
pub enum PiAttempt {
    Acquired,
    /// The waiter is queued.
    Queued,
    /// The owner is just going away, or the word does not keep still: again after others have run.
    Again,
}

/// What became of those who want a lock.
enum Taken {
    /// Nothing: the word has changed.
    Not,
    /// They wait for it.
    Queued,
    /// The first of them has it, the others wait.
    By(Arc<PiWaiter>),
}

/// Attempts at a word that others change, until others are to run. The application may change it for ever.
const TRIES: usize = 8;

/// The owner that the word names, if it lives.
fn owner_of(task: &Task, word: u32) -> Option<Arc<Task>> {
    task.find_task((word & TID_MASK).cast_signed())
}

/// Replaces the word if it is `current`; false if it is another. The page must be there.
fn exchange(mm: &Mm, addr: u64, current: u32, new: u32) -> Result<bool> {
    let old = mm.space().atomic_u32(addr, AtomicOp::CompareExchange { current, new });
    Ok(old.map_err(|_| Errno::EFAULT)? == current)
}

/// Makes attempts with the word as it is read before each, until one has a result; `None` if the word does not keep still.
///
/// Attempts run under locks that allow no fault. One that finds memory it cannot write is made again when that is there, and
/// whatever else fails comes after that, as on Linux.
fn attempt<T>(mm: &Mm, addr: u64, mut attempt: impl FnMut(u32) -> Result<Option<T>>) -> Result<Option<T>> {
    for _ in 0..TRIES {
        let word = mm.load_u32(addr)?;
        match attempt(word) {
            Ok(None) => {}
            Ok(done) => return Ok(done),
            Err(errno) => {
                mm.cmpxchg_u32(addr, word, word)?;
                if errno != Errno::EFAULT {
                    return Err(errno);
                }
            }
        }
    }
    Ok(None)
}

impl FutexTable {
    /// Takes the lock of `waiter`, or queues it unless `try_only` (`futex_lock_pi_atomic`). `EDEADLK` if the caller has
    /// it, `ESRCH` if the owner is nobody, `EINVAL` if word and queue disagree, `EAGAIN` with `try_only` if another has it.
    pub fn pi_lock(&self, waiter: &Arc<PiWaiter>, try_only: bool) -> Result<PiAttempt> {
        let result = attempt(&waiter.mm, waiter.addr, |word| self.pi_try_lock(waiter, word, try_only))?;
        Ok(result.unwrap_or(PiAttempt::Again))
    }

    /// One attempt; `None` if the word has changed.
    fn pi_try_lock(&self, waiter: &Arc<PiWaiter>, word: u32, try_only: bool) -> Result<Option<PiAttempt>> {
        let (mm, addr) = (&waiter.mm, waiter.addr);
        let holder = word & TID_MASK;
        if holder == waiter.tid() {
            return Err(Errno::EDEADLK);
        }
        let owner = if holder == 0 { None } else { owner_of(&waiter.task, word) };
        let mut bucket = self.pi_locks_of(&waiter.key)?;
        let queue = bucket.locks.get(&waiter.key);
        if holder == 0 {
            if queue.is_some() {
                // A dying owner has left the word and is about to hand the lock over.
                return Ok(Some(PiAttempt::Again));
            }
            let taken = exchange(mm, addr, word, word & OWNER_DIED | waiter.tid())?;
            return Ok(taken.then_some(PiAttempt::Acquired));
        }
        if peek(mm, addr).map_err(|_| Errno::EFAULT)? != word {
            return Ok(None);
        }
        if queue.is_some_and(|q| q.owner.ns_tid().cast_unsigned() != holder) {
            return Err(Errno::EINVAL);
        }
        if try_only {
            return Err(Errno::EAGAIN);
        }
        let owner = owner.ok_or(Errno::ESRCH)?;
        let _coming = Coming::new(&self.pi.count);
        match owner.state() {
            TaskState::Exiting => return Ok(Some(PiAttempt::Again)),
            // It has given its locks away, and left this one to nobody (`handle_exit_race`).
            TaskState::Dead => return Err(Errno::ESRCH),
            _ => {}
        }
        if !exchange(mm, addr, word, word | WAITERS)? {
            return Ok(None);
        }
        bucket.of(waiter.key, owner).add(waiter);
        Ok(Some(PiAttempt::Queued))
    }

    /// Takes a waiter out of its queue; false if it has the lock already.
    pub fn pi_cancel(&self, waiter: &Arc<PiWaiter>) -> bool {
        let Ok(mut bucket) = self.pi_locks_of(&waiter.key) else { return !waiter.is_granted() };
        let Some(lock) = bucket.locks.get_mut(&waiter.key) else { return !waiter.is_granted() };
        let Some(at) = lock.waiters.iter().position(|w| Arc::ptr_eq(w, waiter)) else {
            return !waiter.is_granted();
        };
        lock.waiters.remove(at);
        if lock.waiters.is_empty() {
            bucket.remove(&waiter.key);
        }
        true
    }

    /// Gives the caller's lock to the next waiter, or frees it (`futex_unlock_pi`). `EPERM` if it is not the caller's. False
    /// if the word does not keep still: again after others have run.
    pub fn pi_unlock(&self, task: &Arc<Task>, mm: &Mm, addr: u64, key: &FutexKey) -> Result<bool> {
        let result = attempt(mm, addr, |word| {
            if word & TID_MASK != task.ns_tid().cast_unsigned() {
                // Linux looks at this before it looks whether the word can be written.
                return Ok(Some(Err(Errno::EPERM)));
            }
            Ok(self.pi_try_unlock(task, mm, addr, key, word)?.then_some(Ok(())))
        })?;
        result.transpose().map(|done| done.is_some())
    }

    /// One attempt; false if the word has changed.
    fn pi_try_unlock(&self, task: &Arc<Task>, mm: &Mm, addr: u64, key: &FutexKey, word: u32) -> Result<bool> {
        let mut bucket = self.pi_locks_of(key)?;
        let Some(lock) = bucket.locks.get(key) else { return exchange(mm, addr, word, 0) };
        if !Arc::ptr_eq(&lock.owner, task) {
            return Err(Errno::EINVAL);
        }
        let Some(next) = lock.waiters.first().cloned() else { return Err(Errno::EINVAL) };
        if !exchange(mm, addr, word, next.tid() | WAITERS)? {
            return Ok(false);
        }
        bucket.pass_on(key, &next);
        drop(bucket);
        next.grant();
        Ok(true)
    }

    /// The locks of a task that dies go to their next waiters, who learn that their owner died (`exit_pi_state_list`).
    pub(crate) fn pi_owner_died(&self, task: &Arc<Task>) {
        // Either those who come see that the task is exiting, or they are counted.
        fence(Ordering::SeqCst);
        if self.pi.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut heirs = Vec::new();
        for index in 0..self.pi.buckets.len() {
            let Some(mut bucket) = self.pi.lock(index) else { continue };
            let owned: Vec<_> = bucket
                .locks
                .iter()
                .filter(|(_, l)| Arc::ptr_eq(&l.owner, task))
                .map(|(key, _)| *key)
                .collect();
            for key in owned {
                let Some(next) = bucket.locks.get(&key).and_then(|l| l.waiters.first()).cloned() else {
                    continue;
                };
                // A word that cannot be written is the application's loss.
                let new = AtomicOp::Store(next.tid() | WAITERS | OWNER_DIED);
                let _ = next.mm.space().atomic_u32(next.addr, new);
                bucket.pass_on(&key, &next);
                heirs.push(next);
            }
        }
        for heir in heirs {
            heir.grant();
        }
    }

    /// Moves the waiters of `FUTEX_WAIT_REQUEUE_PI` on the word at `addr` to the lock that they want, the first of them
    /// into its possession if it is free (`FUTEX_CMP_REQUEUE_PI`). Returns how many were moved or woken, `None` if the lock's
    /// word does not keep still: again after others have run. `EAGAIN` if the word is not `expect`, `EINVAL` if a waiter
    /// wants another lock.
    pub fn pi_requeue(
        &self,
        task: &Task,
        (from, addr): (&FutexKey, u64),
        (to, lock_addr): (&FutexKey, u64),
        nr_requeue: usize,
        expect: u32,
    ) -> Result<Option<usize>> {
        let mm = task.mm();
        if from == to {
            return Err(Errno::EINVAL);
        }
        // Brings the page in before the locks are taken.
        mm.load_u32(addr)?;
        attempt(&mm, lock_addr, |word| {
            let owner = if word & TID_MASK == 0 { None } else { owner_of(task, word) };
            let mut waiters = self.bucket_of(from)?.lock();
            if peek(&mm, addr).map_err(|_| Errno::EFAULT)? != expect {
                return Err(Errno::EAGAIN);
            }
            let due: Vec<_> = waiters
                .iter()
                .filter(|w| w.waits_on(from))
                .take(nr_requeue.saturating_add(1))
                .cloned()
                .collect();
            let mut wanting = Vec::with_capacity(due.len());
            for waiter in &due {
                match waiter.wants() {
                    Some(wants) if wants.key == *to => wanting.push(Arc::clone(wants)),
                    _ => return Err(Errno::EINVAL),
                }
            }
            let taken = self.pi_take_over(&mm, (to, lock_addr), word, owner, &wanting)?;
            if matches!(taken, Taken::Not) {
                return Ok(None);
            }
            waiters.retain(|w| !due.iter().any(|d| Arc::ptr_eq(d, w)));
            for waiter in &due {
                waiter.leave();
            }
            drop(waiters);
            if let Taken::By(first) = taken {
                first.grant();
            }
            Ok(Some(due.len()))
        })
    }

    /// Queues those who want a lock, of which the first gets it if it is free, and is then to be told.
    fn pi_take_over(
        &self,
        mm: &Mm,
        (key, addr): (&FutexKey, u64),
        word: u32,
        owner: Option<Arc<Task>>,
        wanting: &[Arc<PiWaiter>],
    ) -> Result<Taken> {
        let Some((first, others)) = wanting.split_first() else { return Ok(Taken::Queued) };
        let holder = word & TID_MASK;
        let mut bucket = self.pi_locks_of(key)?;
        if peek(mm, addr).map_err(|_| Errno::EFAULT)? != word {
            return Ok(Taken::Not);
        }
        let free = holder == 0 && !bucket.locks.contains_key(key);
        let new = match (free, others.is_empty()) {
            (true, true) => word & OWNER_DIED | first.tid(),
            (true, false) => word & OWNER_DIED | first.tid() | WAITERS,
            (false, _) => word | WAITERS,
        };
        let _coming = Coming::new(&self.pi.count);
        let owner = match (free, owner) {
            (true, _) => Arc::clone(&first.task),
            (false, Some(owner)) if !matches!(owner.state(), TaskState::Exiting | TaskState::Dead) => owner,
            (false, None) if holder != 0 => return Err(Errno::ESRCH),
            // The owner is about to hand over.
            (false, _) => return Err(Errno::EAGAIN),
        };
        if !exchange(mm, addr, word, new)? {
            return Ok(Taken::Not);
        }
        let queued = if free { others } else { wanting };
        if !queued.is_empty() {
            let lock = bucket.of(*key, owner);
            for waiter in queued {
                lock.add(waiter);
            }
        }
        Ok(if free { Taken::By(Arc::clone(first)) } else { Taken::Queued })
    }
}
