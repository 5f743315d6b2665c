//! Priority-inheritance futexes: locks whose owner's thread id is in the word (`kernel/futex/pi.c`, `requeue.c`).
//!
//! The word is changed under one lock for all of them, so that word and queue agree. An unlock with waiters hands the lock
//! to the next one: the word never looks free while somebody waits. The host schedules, so no priority is lent; waiters
//! are served by real-time priority and then by arrival.
//!
//! **Threat.** The word is the application's and may hold anything; what is found in it is compared with what the
//! queue says, and refused if they differ.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// Every lock that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct PiLocks {
    locks: Mutex<Locks, { rank::FUTEX_BUCKET }>,
    /// As many as there are, for a look without the lock.
    count: AtomicUsize,
}

impl PiLocks {
    fn lock(&self) -> MutexGuard<'_, Locks, { rank::FUTEX_BUCKET }> {
        self.locks.lock()
    }
}

/// What an attempt to lock came to.
#[derive(Debug)]
pub enum PiAttempt {
    Acquired,
    /// The waiter is queued.
    Queued,
    /// The owner is just going away: again after others have run.
    Again,
}

/// Attempts of a loop over a word that others change before it is given up.
const TRIES: usize = 10_000;

/// The owner that the word names, if it lives.
fn owner_of(task: &Task, word: u32) -> Option<Arc<Task>> {
    task.find_task((word & TID_MASK).cast_signed())
}

/// Replaces the word if it is `current`; false if it is another. The page must be there.
fn exchange(mm: &Mm, addr: u64, current: u32, new: u32) -> Result<bool> {
    let old = mm.space().atomic_u32(addr, AtomicOp::CompareExchange { current, new });
    Ok(old.map_err(|_| Errno::EFAULT)? == current)
}

impl FutexTable {
    /// Takes the lock of `waiter`, or queues it unless `try_only` (`futex_lock_pi_atomic`). `EDEADLK` if the caller has
    /// it, `ESRCH` if the owner is nobody, `EINVAL` if word and queue disagree, `EAGAIN` with `try_only` if another has it.
    pub fn pi_lock(&self, waiter: &Arc<PiWaiter>, try_only: bool) -> Result<PiAttempt> {
        let (task, mm, addr) = (&waiter.task, &waiter.mm, waiter.addr);
        for _ in 0..TRIES {
            let word = mm.load_u32(addr)?;
            // Makes the page writable before the lock is taken.
            if mm.cmpxchg_u32(addr, word, word)? != word {
                continue;
            }
            let holder = word & TID_MASK;
            if holder == waiter.tid() {
                return Err(Errno::EDEADLK);
            }
            let owner = if holder == 0 { None } else { owner_of(task, word) };
            let mut locks = self.pi.lock();
            if peek(mm, addr).map_err(|_| Errno::EFAULT)? != word {
                continue;
            }
            let queue = locks.get_mut(&waiter.key);
            if holder == 0 {
                if queue.is_some() {
                    // A dying owner has left the word and is about to hand the lock over.
                    return Ok(PiAttempt::Again);
                }
                if exchange(mm, addr, word, word & OWNER_DIED | waiter.tid())? {
                    return Ok(PiAttempt::Acquired);
                }
                continue;
            }
            if queue.as_ref().is_some_and(|q| q.owner.ns_tid().cast_unsigned() != holder) {
                return Err(Errno::EINVAL);
            }
            if try_only {
                return Err(Errno::EAGAIN);
            }
            let owner = owner.ok_or(Errno::ESRCH)?;
            match owner.state() {
                TaskState::Exiting => return Ok(PiAttempt::Again),
                // It has given its locks away, and left this one to nobody (`handle_exit_race`).
                TaskState::Dead => return Err(Errno::ESRCH),
                _ => {}
            }
            if !exchange(mm, addr, word, word | WAITERS)? {
                continue;
            }
            if let Some(queue) = queue {
                queue.add(waiter);
            } else {
                let lock = PiLock { owner, waiters: vec![Arc::clone(waiter)] };
                locks.insert(waiter.key, lock);
                self.pi.count.store(locks.len(), Ordering::SeqCst);
            }
            return Ok(PiAttempt::Queued);
        }
        Err(Errno::EAGAIN)
    }

    /// Takes a waiter out of its queue; false if it has the lock already.
    pub fn pi_cancel(&self, waiter: &Arc<PiWaiter>) -> bool {
        let mut locks = self.pi.lock();
        let Some(lock) = locks.get_mut(&waiter.key) else { return !waiter.is_granted() };
        let Some(at) = lock.waiters.iter().position(|w| Arc::ptr_eq(w, waiter)) else {
            return !waiter.is_granted();
        };
        lock.waiters.remove(at);
        if lock.waiters.is_empty() {
            locks.remove(&waiter.key);
            self.pi.count.store(locks.len(), Ordering::SeqCst);
        }
        true
    }

    /// Gives the caller's lock to the next waiter, or frees it (`futex_unlock_pi`). `EPERM` if it is not the caller's.
    pub fn pi_unlock(&self, task: &Arc<Task>, mm: &Mm, addr: u64, key: &FutexKey) -> Result<()> {
        let own = task.ns_tid().cast_unsigned();
        for _ in 0..TRIES {
            let word = mm.load_u32(addr)?;
            if word & TID_MASK != own {
                return Err(Errno::EPERM);
            }
            if mm.cmpxchg_u32(addr, word, word)? != word {
                continue;
            }
            let mut locks = self.pi.lock();
            let Some(lock) = locks.get_mut(key) else {
                if exchange(mm, addr, word, 0)? {
                    return Ok(());
                }
                continue;
            };
            if !Arc::ptr_eq(&lock.owner, task) {
                return Err(Errno::EINVAL);
            }
            let Some(next) = lock.waiters.first().cloned() else { return Err(Errno::EINVAL) };
            if !exchange(mm, addr, word, next.tid() | WAITERS)? {
                continue;
            }
            self.pass_on(&mut locks, key, &next);
            drop(locks);
            next.grant();
            return Ok(());
        }
        Err(Errno::EAGAIN)
    }

    /// Makes the first waiter the owner.
    fn pass_on(&self, locks: &mut Locks, key: &FutexKey, next: &Arc<PiWaiter>) {
        let Some(lock) = locks.get_mut(key) else { return };
        lock.waiters.retain(|w| !Arc::ptr_eq(w, next));
        lock.owner = Arc::clone(&next.task);
        if lock.waiters.is_empty() {
            locks.remove(key);
            self.pi.count.store(locks.len(), Ordering::SeqCst);
        }
    }

    /// The locks of a task that dies go to their next waiters, who learn that their owner died (`exit_pi_state_list`).
    pub(crate) fn pi_owner_died(&self, task: &Arc<Task>) {
        if self.pi.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut heirs = Vec::new();
        {
            let mut locks = self.pi.lock();
            let owned: Vec<_> =
                locks.iter().filter(|(_, l)| Arc::ptr_eq(&l.owner, task)).map(|(key, _)| *key).collect();
            for key in owned {
                let Some(next) = locks.get(&key).and_then(|l| l.waiters.first()).cloned() else { continue };
                let new = next.tid() | WAITERS | OWNER_DIED;
                // A word that cannot be written is the application's loss.
                for _ in 0..TRIES {
                    let Ok(word) = peek(&next.mm, next.addr) else { break };
                    if exchange(&next.mm, next.addr, word, new) != Ok(false) {
                        break;
                    }
                }
                self.pass_on(&mut locks, &key, &next);
                heirs.push(next);
            }
            drop(locks);
        }
        for heir in heirs {
            heir.grant();
        }
    }

    /// Moves the waiters of `FUTEX_WAIT_REQUEUE_PI` on the word at `addr` to the lock that they want, the first of them
    /// into its possession if it is free (`FUTEX_CMP_REQUEUE_PI`). Returns how many were moved or woken. `EAGAIN` if the
    /// word is not `expect`, `EINVAL` if a waiter wants another lock.
    pub fn pi_requeue(
        &self,
        task: &Task,
        (from, addr): (&FutexKey, u64),
        (to, lock_addr): (&FutexKey, u64),
        nr_requeue: usize,
        expect: u32,
    ) -> Result<usize> {
        let mm = task.mm();
        if from == to {
            return Err(Errno::EINVAL);
        }
        for _ in 0..TRIES {
            mm.load_u32(addr)?;
            let word = mm.load_u32(lock_addr)?;
            if mm.cmpxchg_u32(lock_addr, word, word)? != word {
                continue;
            }
            let holder = word & TID_MASK;
            let owner = if holder == 0 { None } else { owner_of(task, word) };
            let mut waiters = self.bucket_of(from)?.lock();
            let mut locks = self.pi.lock();
            if peek(&mm, addr).map_err(|_| Errno::EFAULT)? != expect {
                return Err(Errno::EAGAIN);
            }
            if peek(&mm, lock_addr).map_err(|_| Errno::EFAULT)? != word {
                continue;
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
            let Some(first) = wanting.first().cloned() else { return Ok(0) };
            let free = holder == 0 && !locks.contains_key(to);
            let new = match (free, wanting.len()) {
                (true, 1) => word & OWNER_DIED | first.tid(),
                (true, _) => word & OWNER_DIED | first.tid() | WAITERS,
                (false, _) => word | WAITERS,
            };
            let owner = match (free, owner) {
                (true, _) => Arc::clone(&first.task),
                (false, Some(owner)) if !matches!(owner.state(), TaskState::Exiting | TaskState::Dead) => {
                    owner
                }
                (false, None) if holder != 0 => return Err(Errno::ESRCH),
                // The owner is about to hand over.
                (false, _) => return Err(Errno::EAGAIN),
            };
            if !exchange(&mm, lock_addr, word, new)? {
                continue;
            }
            let queued = if free { wanting.get(1..).unwrap_or_default() } else { &wanting };
            if !queued.is_empty() {
                let lock = locks.entry(*to).or_insert_with(|| PiLock { owner, waiters: Vec::new() });
                for waiter in queued {
                    lock.add(waiter);
                }
                self.pi.count.store(locks.len(), Ordering::SeqCst);
            }
            waiters.retain(|w| !due.iter().any(|d| Arc::ptr_eq(d, w)));
            for waiter in &due {
                waiter.leave();
            }
            drop(locks);
            drop(waiters);
            if free {
                first.grant();
            }
            return Ok(due.len());
        }
        Err(Errno::EAGAIN)
    }
}
