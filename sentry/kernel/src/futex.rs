//! Futexes: waiting on a word of application memory (`futex(2)`, `kernel/futex/`).
//!
//! A waiter is queued before its word is read, so no user memory is touched under a bucket's lock: whoever changes the
//! word and then wakes finds the waiter queued, or the waiter finds the word changed.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use platform::AtomicOp;
use sentry_base::{Errno, Mutex, MutexGuard, Nanos, Result, Sleeper, WaitClass, WaitEnd, lock::rank};
use sentry_mm::{FutexKey, Mm};

use crate::{BlockEnd, Current};

/// Every bit of a wake mask.
pub const MATCH_ANY: u32 = u32::MAX;

const BUCKETS: usize = 256;

/// A task that waits on a word.
#[derive(Debug)]
struct Waiter {
    sleeper: Arc<Sleeper>,
    bitset: u32,
    /// Changed by a requeue, under the locks of both buckets.
    key: Mutex<FutexKey, { rank::LEAF }>,
    woken: AtomicBool,
}

type Bucket = Mutex<Vec<Arc<Waiter>>, { rank::FUTEX_BUCKET }>;

/// All futexes of a sandbox.
#[derive(Debug)]
pub struct Futexes {
    buckets: Box<[Bucket]>,
}

impl Default for Futexes {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Mutex::new(Vec::new())).collect() }
    }
}

fn bucket_index(key: &FutexKey) -> usize {
    let (a, b) = match *key {
        FutexKey::Private { mm, addr } => (mm, addr),
        FutexKey::Shared { device, inode, offset } => (device ^ inode.rotate_left(32), offset),
    };
    let mixed = (a ^ (b >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as usize % BUCKETS
}

impl Futexes {
    fn bucket(&self, key: &FutexKey) -> Option<&Bucket> {
        self.buckets.get(bucket_index(key))
    }

    /// Takes up to `count` waiters of `key` out of a bucket.
    fn take(bucket: &mut Vec<Arc<Waiter>>, key: &FutexKey, count: usize, bitset: u32) -> Vec<Arc<Waiter>> {
        let mut taken = Vec::new();
        bucket.retain(|waiter| {
            let hit = taken.len() < count && waiter.bitset & bitset != 0 && *waiter.key.lock() == *key;
            if hit {
                waiter.woken.store(true, Ordering::SeqCst);
                taken.push(Arc::clone(waiter));
            }
            !hit
        });
        taken
    }

    /// Wakes up to `count` waiters whose mask meets `bitset`; returns how many.
    pub fn wake(&self, key: &FutexKey, count: usize, bitset: u32) -> usize {
        let Some(bucket) = self.bucket(key) else { return 0 };
        let taken = Self::take(&mut bucket.lock(), key, count, bitset);
        for waiter in &taken {
            waiter.sleeper.wake();
        }
        taken.len()
    }

    /// Wakes up to `wake` waiters of `from` and moves up to `requeue` others to `to`; returns how many were woken and how
    /// many moved.
    pub fn requeue(&self, from: &FutexKey, to: &FutexKey, wake: usize, requeue: usize) -> (usize, usize) {
        let (Some(source), Some(target)) = (self.bucket(from), self.bucket(to)) else { return (0, 0) };
        let mut moved = 0;
        let taken;
        {
            let (mut first, mut second) = lock_both(source, target, bucket_index(from), bucket_index(to));
            taken = Self::take(&mut first, from, wake, MATCH_ANY);
            if from != to {
                let mut movers = Vec::new();
                first.retain(|waiter| {
                    let hit = moved < requeue && *waiter.key.lock() == *from;
                    if hit {
                        moved += 1;
                        *waiter.key.lock() = *to;
                        movers.push(Arc::clone(waiter));
                    }
                    !hit
                });
                match &mut second {
                    Some(second) => second.append(&mut movers),
                    None => first.append(&mut movers),
                }
            }
        }
        for waiter in &taken {
            waiter.sleeper.wake();
        }
        (taken.len(), moved)
    }

    fn add(&self, waiter: &Arc<Waiter>) {
        let key = *waiter.key.lock();
        if let Some(bucket) = self.bucket(&key) {
            bucket.lock().push(Arc::clone(waiter));
        }
    }

    /// Takes a waiter out of whatever bucket it is in; false if it was woken.
    fn remove(&self, waiter: &Arc<Waiter>) -> bool {
        loop {
            let key = *waiter.key.lock();
            let Some(bucket) = self.bucket(&key) else { return true };
            let mut bucket = bucket.lock();
            if *waiter.key.lock() != key {
                continue;
            }
            if waiter.woken.load(Ordering::SeqCst) {
                return false;
            }
            bucket.retain(|w| !Arc::ptr_eq(w, waiter));
            return true;
        }
    }
}

type BucketGuard<'a> = MutexGuard<'a, Vec<Arc<Waiter>>, { rank::FUTEX_BUCKET }>;

/// Locks two buckets in the order of their indices; the second is `None` where both are one.
fn lock_both<'a>(
    a: &'a Bucket,
    b: &'a Bucket,
    a_index: usize,
    b_index: usize,
) -> (BucketGuard<'a>, Option<BucketGuard<'a>>) {
    if a_index == b_index {
        return (a.lock(), None);
    }
    if a_index < b_index {
        let first = a.lock();
        (first, Some(b.lock()))
    } else {
        let second = b.lock();
        (a.lock(), Some(second))
    }
}

/// Waits until the word at `addr` is woken, if it holds `value`. `EAGAIN` if it does not.
pub async fn wait(
    cx: &mut Current,
    addr: u64,
    private: bool,
    value: u32,
    bitset: u32,
    deadline: Option<Nanos>,
) -> Result<(), BlockEnd> {
    if bitset == 0 || !addr.is_multiple_of(4) {
        return Err(BlockEnd::Errno(Errno::EINVAL));
    }
    let mm = cx.task.mm();
    let key = mm.futex_key(addr, private)?;
    let kernel = Arc::clone(cx.task.kernel());
    let futexes = kernel.futexes();
    let waiter = Arc::new(Waiter {
        sleeper: Arc::clone(cx.task.sleeper()),
        bitset,
        key: Mutex::new(key),
        woken: AtomicBool::new(false),
    });
    waiter.sleeper.arm();
    futexes.add(&waiter);
    let end = match mm.load_u32(addr) {
        Ok(found) if found == value => loop {
            if waiter.woken.load(Ordering::SeqCst) {
                return Ok(());
            }
            match cx.sleep(WaitClass::Interruptible, deadline).await {
                WaitEnd::Ready => {}
                WaitEnd::TimedOut => break BlockEnd::TimedOut,
                WaitEnd::Interrupted | WaitEnd::Killed => break BlockEnd::Interrupted,
            }
        },
        Ok(_) => BlockEnd::Errno(Errno::EAGAIN),
        Err(errno) => BlockEnd::Errno(errno),
    };
    // Woken meanwhile: the wake is used up and must not be lost.
    if futexes.remove(&waiter) { Err(end) } else { Ok(()) }
}

/// The operation of `FUTEX_WAKE_OP` on the second word; true if its old value meets the comparison.
pub fn wake_op(mm: &Mm, addr: u64, encoded: u32) -> Result<bool> {
    let op = encoded >> 28 & 0x7;
    let shift = encoded >> 31 != 0;
    let compare = encoded >> 24 & 0xf;
    // Both operands are signed 12-bit fields.
    let signed12 = |v: u32| ((v << 20).cast_signed() >> 20).cast_unsigned();
    let mut operand = signed12(encoded >> 12 & 0xfff);
    let against = signed12(encoded & 0xfff).cast_signed();
    if shift {
        operand = 1_u32 << (operand & 31);
    }
    let old = match op {
        0 => exchange(mm, addr, operand)?,
        1 => mm.atomic_u32(addr, AtomicOp::Add(operand))?,
        2 => mm.atomic_u32(addr, AtomicOp::Or(operand))?,
        3 => mm.atomic_u32(addr, AtomicOp::And(!operand))?,
        4 => mm.atomic_u32(addr, AtomicOp::Xor(operand))?,
        _ => return Err(Errno::ENOSYS),
    }
    .cast_signed();
    Ok(match compare {
        0 => old == against,
        1 => old != against,
        2 => old < against,
        3 => old <= against,
        4 => old > against,
        5 => old >= against,
        _ => return Err(Errno::ENOSYS),
    })
}

fn exchange(mm: &Mm, addr: u64, new: u32) -> Result<u32> {
    let mut current = mm.load_u32(addr)?;
    loop {
        let seen = mm.cmpxchg_u32(addr, current, new)?;
        if seen == current {
            return Ok(seen);
        }
        current = seen;
    }
}

/// A thread died with its id in the word, or never.
const WAITERS: u32 = 0x8000_0000;
const OWNER_DIED: u32 = 0x4000_0000;
const TID_MASK: u32 = 0x3fff_ffff;
/// A list longer than this is not walked on (`ROBUST_LIST_LIMIT`).
const ROBUST_LIMIT: usize = 2048;

/// Marks every robust futex that a dying task holds and wakes one waiter of each (`exit_robust_list`). The list is the
/// application's: the walk is bounded and ends at the first bad pointer.
pub(crate) fn release_robust_list(task: &crate::Task, head_addr: u64) {
    use sentry_memory::UserMemory;
    use zerocopy::{FromZeros, IntoBytes};

    let mm = task.mm();
    let mut head = abi::process::RobustListHead::new_zeroed();
    if mm.copy_in(head_addr, head.as_mut_bytes()).is_err() {
        return;
    }
    let word = |entry: u64| (entry & !1).wrapping_add_signed(head.futex_offset);
    let pending = head.pending;
    let mut entry = head.next;
    for _ in 0..ROBUST_LIMIT {
        if entry & !1 == head_addr {
            break;
        }
        // The next pointer is read first: a woken owner may free the entry.
        let mut next = 0_u64;
        let read = mm.copy_in(entry & !1, next.as_mut_bytes());
        if entry & !1 != pending & !1 && release_word(task, &mm, word(entry), entry & 1 != 0, false).is_err()
        {
            return;
        }
        if read.is_err() {
            return;
        }
        entry = next;
    }
    if pending & !1 != 0 {
        let _ = release_word(task, &mm, word(pending), pending & 1 != 0, true);
    }
}

/// `handle_futex_death`.
fn release_word(task: &crate::Task, mm: &Mm, addr: u64, pi: bool, pending: bool) -> Result<()> {
    if !addr.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    let mut value = mm.load_u32(addr)?;
    let wake = || -> Result<()> {
        let key = mm.futex_key(addr, false)?;
        task.kernel().futexes().wake(&key, 1, MATCH_ANY);
        Ok(())
    };
    if pending && !pi && value == 0 {
        return wake();
    }
    loop {
        if value & TID_MASK != task.tid().cast_unsigned() {
            return Ok(());
        }
        let seen = mm.cmpxchg_u32(addr, value, value & WAITERS | OWNER_DIED)?;
        if seen == value {
            break;
        }
        value = seen;
    }
    if !pi && value & WAITERS != 0 { wake() } else { Ok(()) }
}
