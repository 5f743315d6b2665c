//! Locks with ranks: taking them out of order panics in debug builds, on the first try and not on the rare race.

use core::ops::{Deref, DerefMut};

/// The ranks, outer to inner. A thread may take a lock only if its rank is higher than that of every lock it holds;
/// equal ranks are allowed where the text says in which order.
pub mod rank {
    pub const LIFECYCLE: u16 = 10;
    pub const RENAME: u16 = 30;
    /// Ancestor first, then by id.
    pub const DIR_INODE: u16 = 40;
    /// Outside of file data: an epoll instance asks its files for their readiness under it. Nested instances: outer
    /// first.
    pub const EPOLL_INTEREST: u16 = 48;
    /// Two files: by id.
    pub const FILE_DATA: u16 = 50;
    pub const FD_TABLE: u16 = 60;
    pub const TASK_SET: u16 = 70;
    /// Two processes: by id.
    pub const SIG_HAND: u16 = 80;
    pub const TASK: u16 = 90;
    /// Two address spaces: by address.
    pub const MM_MAPPING: u16 = 100;
    pub const FILE_RMAP: u16 = 110;
    pub const ADDRESS_SPACE: u16 = 120;
    pub const MEMORY_FILE: u16 = 130;
    pub const FUTEX_BUCKET: u16 = 140;
    /// One at a time.
    pub const PI_BUCKET: u16 = 145;
    pub const WAIT_QUEUE: u16 = 150;
    pub const RUN_QUEUE: u16 = 160;
    /// The tree of mounts: only leaves are taken under it.
    pub const MOUNT_TREE: u16 = 190;
    /// A leaf: nothing else is taken under it.
    pub const LEAF: u16 = 200;
}

#[cfg(debug_assertions)]
mod check {
    use std::cell::RefCell;

    thread_local! {
        static HELD: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
    }

    pub fn take(rank: u16) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(top) = held.iter().max() {
                assert!(*top <= rank, "lock of rank {rank} taken while one of rank {top} is held");
            }
            held.push(rank);
        });
    }

    pub fn release(rank: u16) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|r| *r == rank) {
                held.remove(at);
            }
        });
    }
}

#[cfg(not(debug_assertions))]
mod check {
    #[inline(always)]
    pub fn take(_rank: u16) {}
    #[inline(always)]
    pub fn release(_rank: u16) {}
}

/// A mutual exclusion lock of a rank. Not poisoned by panics, which abort the process.
pub struct Mutex<T, const RANK: u16>(parking_lot::Mutex<T>);

impl<T, const RANK: u16> Mutex<T, RANK> {
    pub const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T, RANK> {
        check::take(RANK);
        MutexGuard(self.0.lock())
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T, RANK>> {
        let guard = self.0.try_lock()?;
        check::take(RANK);
        Some(MutexGuard(guard))
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: Default, const RANK: u16> Default for Mutex<T, RANK> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T, const RANK: u16> core::fmt::Debug for Mutex<T, RANK> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Mutex(rank {RANK})")
    }
}

pub struct MutexGuard<'a, T, const RANK: u16>(parking_lot::MutexGuard<'a, T>);

impl<T, const RANK: u16> Deref for MutexGuard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T, const RANK: u16> DerefMut for MutexGuard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T, const RANK: u16> Drop for MutexGuard<'_, T, RANK> {
    fn drop(&mut self) {
        check::release(RANK);
    }
}

impl<T, const RANK: u16> core::fmt::Debug for MutexGuard<'_, T, RANK> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "MutexGuard(rank {RANK})")
    }
}

/// A readers-writer lock of a rank.
pub struct RwLock<T, const RANK: u16>(parking_lot::RwLock<T>);

impl<T, const RANK: u16> RwLock<T, RANK> {
    pub const fn new(value: T) -> Self {
        Self(parking_lot::RwLock::new(value))
    }

    pub fn read(&self) -> ReadGuard<'_, T, RANK> {
        check::take(RANK);
        ReadGuard(self.0.read())
    }

    pub fn write(&self) -> WriteGuard<'_, T, RANK> {
        check::take(RANK);
        WriteGuard(self.0.write())
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<T: Default, const RANK: u16> Default for RwLock<T, RANK> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T, const RANK: u16> core::fmt::Debug for RwLock<T, RANK> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RwLock(rank {RANK})")
    }
}

#[derive(Debug)]
pub struct ReadGuard<'a, T, const RANK: u16>(parking_lot::RwLockReadGuard<'a, T>);

impl<T, const RANK: u16> Deref for ReadGuard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T, const RANK: u16> Drop for ReadGuard<'_, T, RANK> {
    fn drop(&mut self) {
        check::release(RANK);
    }
}

#[derive(Debug)]
pub struct WriteGuard<'a, T, const RANK: u16>(parking_lot::RwLockWriteGuard<'a, T>);

impl<T, const RANK: u16> Deref for WriteGuard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T, const RANK: u16> DerefMut for WriteGuard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T, const RANK: u16> Drop for WriteGuard<'_, T, RANK> {
    fn drop(&mut self) {
        check::release(RANK);
    }
}
