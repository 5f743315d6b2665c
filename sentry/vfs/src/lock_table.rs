//! File locks: POSIX record locks, open-file-description locks and `flock` (`fcntl(2)`, `flock(2)`, `fs/locks.c`).

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use sentry_base::lock::rank;
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue};

use crate::IoStart;

/// Device and inode number of a file.
pub type FileKey = (u64, u64);

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockOwner {
    /// A descriptor table (POSIX locks), by its id.
    Table(u64),
    /// An open file description (OFD locks and `flock`), by its id.
    Description(u64),
}

/// A byte range lock. `end` is exclusive; `u64::MAX` means to the end of the file, however it grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLock {
    pub owner: LockOwner,
    /// The process shown by `F_GETLK`; -1 for OFD locks.
    pub pid: i32,
    pub exclusive: bool,
    pub start: u64,
    pub end: u64,
}

impl RangeLock {
    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.owner != other.owner && (self.exclusive || other.exclusive) && self.overlaps(other)
    }
}

#[derive(Default)]
struct Held {
    ranges: Vec<RangeLock>,
    whole: Vec<(LockOwner, bool)>,
}

/// The locks of one file.
#[derive(Default)]
pub struct FileLocks {
    held: Mutex<Held, { rank::LEAF }>,
    queue: WaitQueue,
}

impl core::fmt::Debug for FileLocks {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FileLocks")
    }
}

impl FileLocks {
    /// Notified whenever a lock was given up.
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// The first lock that stands against `wanted` (`F_GETLK`).
    pub fn conflicting(&self, wanted: &RangeLock) -> Option<RangeLock> {
        self.held.lock().ranges.iter().find(|l| l.conflicts(wanted)).copied()
    }

    /// Takes or changes a range lock.
    pub fn try_lock(&self, wanted: RangeLock) -> IoStart<()> {
        let downgraded = {
            let mut held = self.held.lock();
            if held.ranges.iter().any(|l| l.conflicts(&wanted)) {
                return IoStart::WouldBlock;
            }
            let downgraded = !wanted.exclusive;
            carve(&mut held.ranges, wanted.owner, wanted.start, wanted.end);
            merge(&mut held.ranges, wanted);
            downgraded
        };
        if downgraded {
            self.queue.notify(Events::OUT);
        }
        IoStart::Done(())
    }

    /// Gives up the owner's locks in a range.
    pub fn unlock(&self, owner: LockOwner, start: u64, end: u64) {
        let changed = {
            let mut held = self.held.lock();
            carve(&mut held.ranges, owner, start, end)
        };
        if changed {
            self.queue.notify(Events::OUT);
        }
    }

    /// `flock(2)`. Changing a lock gives the old one up first, as Linux does.
    pub fn try_flock(&self, owner: LockOwner, exclusive: bool) -> IoStart<()> {
        let (end, released) = {
            let mut held = self.held.lock();
            let before = held.whole.len();
            if held.whole.contains(&(owner, exclusive)) {
                return IoStart::Done(());
            }
            held.whole.retain(|(o, _)| *o != owner);
            let released = held.whole.len() != before;
            if held.whole.iter().any(|(_, x)| *x || exclusive) {
                (IoStart::WouldBlock, released)
            } else {
                held.whole.push((owner, exclusive));
                (IoStart::Done(()), released)
            }
        };
        if released {
            self.queue.notify(Events::OUT);
        }
        end
    }

    /// `LOCK_UN`.
    pub fn unflock(&self, owner: LockOwner) {
        let changed = {
            let mut held = self.held.lock();
            let before = held.whole.len();
            held.whole.retain(|(o, _)| *o != owner);
            held.whole.len() != before
        };
        if changed {
            self.queue.notify(Events::OUT);
        }
    }

    /// Gives up everything the owner holds.
    pub fn release(&self, owner: LockOwner) {
        self.unlock(owner, 0, u64::MAX);
        self.unflock(owner);
    }

    /// The range locks and the `flock` locks, for `/proc/locks`.
    pub fn snapshot(&self) -> (Vec<RangeLock>, Vec<(LockOwner, bool)>) {
        let held = self.held.lock();
        (held.ranges.clone(), held.whole.clone())
    }
}

/// Cuts a range out of the owner's locks; true if there was something to cut.
fn carve(ranges: &mut Vec<RangeLock>, owner: LockOwner, start: u64, end: u64) -> bool {
    let beside = |lock: &RangeLock| lock.owner != owner || lock.start >= end || start >= lock.end;
    if ranges.iter().all(beside) {
        return false;
    }
    let mut out = Vec::with_capacity(ranges.len() + 1);
    for lock in ranges.drain(..) {
        if beside(&lock) {
            out.push(lock);
            continue;
        }
        if lock.start < start {
            out.push(RangeLock { end: start, ..lock });
        }
        if end < lock.end {
            out.push(RangeLock { start: end, ..lock });
        }
    }
    *ranges = out;
    true
}

/// Adds a lock, joined with the owner's neighbours of the same kind.
fn merge(ranges: &mut Vec<RangeLock>, mut lock: RangeLock) {
    let (owner, exclusive, start, end) = (lock.owner, lock.exclusive, lock.start, lock.end);
    let joins =
        |l: &RangeLock| l.owner == owner && l.exclusive == exclusive && (l.end == start || end == l.start);
    // One before it and one behind it at most: locks of one owner do not overlap.
    while let Some(at) = ranges.iter().position(joins) {
        let joined = ranges.remove(at);
        lock.start = lock.start.min(joined.start);
        lock.end = lock.end.max(joined.end);
    }
    let at = ranges.partition_point(|l| l.start <= lock.start);
    ranges.insert(at, lock);
}

#[derive(Default)]
struct Table {
    files: HashMap<FileKey, Weak<FileLocks>>,
    /// Which POSIX owner waits for which, to find deadlocks.
    waits: HashMap<u64, u64>,
    sweep_at: usize,
}

/// The locks of all files.
#[derive(Default)]
pub struct LockTable {
    table: Mutex<Table, { rank::LEAF }>,
    /// Locks handed out so far, for diagnosis.
    used: AtomicU64,
}

impl core::fmt::Debug for LockTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "LockTable({} uses)", self.used.load(Ordering::Relaxed))
    }
}

impl LockTable {
    /// The locks of a file; kept alive by whoever holds or waits for one.
    pub fn of(&self, key: FileKey) -> Arc<FileLocks> {
        self.used.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table.lock();
        if let Some(locks) = table.files.get(&key).and_then(Weak::upgrade) {
            return locks;
        }
        if table.files.len() >= table.sweep_at.max(64) {
            table.files.retain(|_, weak| weak.strong_count() > 0);
            table.sweep_at = table.files.len() * 2;
        }
        let locks = Arc::new(FileLocks::default());
        table.files.insert(key, Arc::downgrade(&locks));
        locks
    }

    /// Notes that POSIX owner `waiter` is about to wait for `holder`; `EDEADLK` where that closes a circle.
    pub fn begin_wait(&self, waiter: u64, holder: u64) -> Result<()> {
        let mut table = self.table.lock();
        let mut at = holder;
        // As many steps as Linux takes (`MAX_DEADLK_ITERATIONS`).
        for _ in 0..10 {
            if at == waiter {
                return Err(Errno::EDEADLK);
            }
            match table.waits.get(&at) {
                Some(next) => at = *next,
                None => break,
            }
        }
        table.waits.insert(waiter, holder);
        Ok(())
    }

    /// The wait has ended, one way or the other.
    pub fn end_wait(&self, waiter: u64) {
        self.table.lock().waits.remove(&waiter);
    }

    /// Every file with locks.
    pub fn snapshot(&self) -> Vec<(FileKey, Arc<FileLocks>)> {
        self.table.lock().files.iter().filter_map(|(k, w)| Some((*k, w.upgrade()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(owner: u64, exclusive: bool, start: u64, end: u64) -> RangeLock {
        RangeLock { owner: LockOwner::Table(owner), pid: 1, exclusive, start, end }
    }

    #[test]
    fn ranges_split_join_and_conflict() {
        let locks = FileLocks::default();
        assert_eq!(locks.try_lock(lock(1, true, 0, 100)), IoStart::Done(()));
        assert_eq!(locks.try_lock(lock(2, false, 50, 60)), IoStart::WouldBlock);
        locks.unlock(LockOwner::Table(1), 40, 70);
        assert_eq!(locks.try_lock(lock(2, false, 50, 60)), IoStart::Done(()));
        assert_eq!(locks.try_lock(lock(1, true, 40, 50)), IoStart::Done(()));
        assert_eq!(locks.conflicting(&lock(3, false, 0, 1)), Some(lock(1, true, 0, 50)));
        assert_eq!(locks.conflicting(&lock(3, false, 55, 56)), None);
        assert_eq!(locks.try_lock(lock(1, true, 0, u64::MAX)), IoStart::WouldBlock);
        locks.release(LockOwner::Table(2));
        assert_eq!(locks.try_lock(lock(1, true, 0, u64::MAX)), IoStart::Done(()));
        assert_eq!(locks.snapshot().0.len(), 1);
    }

    #[test]
    fn flock_is_per_description() {
        let locks = FileLocks::default();
        let (a, b) = (LockOwner::Description(1), LockOwner::Description(2));
        assert_eq!(locks.try_flock(a, false), IoStart::Done(()));
        assert_eq!(locks.try_flock(b, false), IoStart::Done(()));
        assert_eq!(locks.try_flock(a, true), IoStart::WouldBlock);
        locks.unflock(b);
        assert_eq!(locks.try_flock(a, true), IoStart::Done(()));
    }

    #[test]
    fn a_circle_of_waits_is_refused() {
        let table = LockTable::default();
        table.begin_wait(1, 2).unwrap();
        table.begin_wait(2, 3).unwrap();
        assert_eq!(table.begin_wait(3, 1), Err(Errno::EDEADLK));
        table.end_wait(2);
        table.begin_wait(3, 1).unwrap();
    }
}
