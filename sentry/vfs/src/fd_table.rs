//! Descriptor tables (`open(2)`, `dup(2)`, `close_range(2)`, `fs/file.c`).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::HashMap;
use std::sync::Arc;

use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result, RwLock};

use crate::lock_table::{FileKey, FileLocks, LockOwner};
use crate::{FileDescription, OpenFlags};

/// `fs.nr_open`: no table grows beyond it, whatever `RLIMIT_NOFILE` says.
pub const NR_OPEN: u64 = 1024 * 1024;

#[derive(Default, Clone)]
struct Slots {
    files: Vec<Option<Arc<FileDescription>>>,
    /// Bit per descriptor.
    used: Vec<u64>,
    cloexec: Vec<u64>,
    /// No descriptor below it is free.
    first_free: usize,
}

fn bit(fd: usize) -> (usize, u64) {
    (fd / 64, 1 << (fd % 64))
}

impl Slots {
    fn get(&self, fd: usize) -> Option<&Arc<FileDescription>> {
        self.files.get(fd)?.as_ref()
    }

    fn lowest_free(&self, from: usize) -> usize {
        let from = from.max(self.first_free);
        let (word, _) = bit(from);
        let mut skip = from % 64;
        for (at, used) in self.used.iter().enumerate().skip(word) {
            let free = !used & (u64::MAX << skip);
            if free != 0 {
                return at * 64 + free.trailing_zeros() as usize;
            }
            skip = 0;
        }
        from.max(self.used.len() * 64)
    }

    fn put(&mut self, fd: usize, file: Arc<FileDescription>, cloexec: bool) -> Option<Arc<FileDescription>> {
        let (word, mask) = bit(fd);
        if self.files.len() <= fd {
            self.files.resize(fd + 1, None);
        }
        if self.used.len() <= word {
            self.used.resize(word + 1, 0);
            self.cloexec.resize(word + 1, 0);
        }
        let old = self.files.get_mut(fd).and_then(|slot| slot.replace(file));
        if let (Some(used), Some(on_exec)) = (self.used.get_mut(word), self.cloexec.get_mut(word)) {
            *used |= mask;
            *on_exec = if cloexec { *on_exec | mask } else { *on_exec & !mask };
        }
        if fd == self.first_free {
            self.first_free = fd + 1;
        }
        old
    }

    fn take(&mut self, fd: usize) -> Option<Arc<FileDescription>> {
        let file = self.files.get_mut(fd)?.take()?;
        let (word, mask) = bit(fd);
        if let (Some(used), Some(on_exec)) = (self.used.get_mut(word), self.cloexec.get_mut(word)) {
            *used &= !mask;
            *on_exec &= !mask;
        }
        self.first_free = self.first_free.min(fd);
        Some(file)
    }

    fn is_cloexec(&self, fd: usize) -> bool {
        let (word, mask) = bit(fd);
        self.cloexec.get(word).is_some_and(|w| w & mask != 0)
    }
}

/// The descriptors of a process, shared by its threads.
///
/// Files that a call takes out of the table are flushed and dropped after the table's lock is released.
pub struct FdTable {
    id: u64,
    slots: RwLock<Slots, { rank::FD_TABLE }>,
    /// Files on which this table has taken POSIX locks.
    locked: Mutex<HashMap<FileKey, Arc<FileLocks>>, { rank::LEAF }>,
    has_locked: AtomicBool,
}

impl core::fmt::Debug for FdTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FdTable({})", self.id)
    }
}

impl Default for FdTable {
    fn default() -> Self {
        Self::with(Slots::default())
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        let owner = self.lock_owner();
        for locks in self.locked.get_mut().values() {
            locks.release(owner);
        }
    }
}

fn index(fd: i32) -> Result<usize> {
    usize::try_from(fd).map_err(|_| Errno::EBADF)
}

impl FdTable {
    fn with(slots: Slots) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            slots: RwLock::new(slots),
            locked: Mutex::default(),
            has_locked: AtomicBool::new(false),
        }
    }

    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A copy for a child (`clone(2)` without `CLONE_FILES`). POSIX locks are not inherited.
    pub fn fork(&self) -> Arc<Self> {
        Arc::new(Self::with(self.slots.read().clone()))
    }

    /// The owner of this table's POSIX locks.
    pub fn lock_owner(&self) -> LockOwner {
        LockOwner::Table(self.id)
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// The description behind a descriptor, an `O_PATH` one as well; `EBADF`.
    pub fn get(&self, fd: i32) -> Result<Arc<FileDescription>> {
        self.slots.read().get(index(fd)?).cloned().ok_or(Errno::EBADF)
    }

    /// The description behind a descriptor; `EBADF` if there is none or it was opened with `O_PATH`.
    pub fn file(&self, fd: i32) -> Result<Arc<FileDescription>> {
        let file = self.get(fd)?;
        if file.flags().contains(OpenFlags::PATH) { Err(Errno::EBADF) } else { Ok(file) }
    }

    /// Enters a file at the lowest free descriptor from `from` on. `limit` is `RLIMIT_NOFILE`; `EMFILE` when there is
    /// none below it, `EINVAL` when `from` is not below it (`F_DUPFD`).
    pub fn add_from(&self, from: i32, file: Arc<FileDescription>, cloexec: bool, limit: u64) -> Result<i32> {
        let from = usize::try_from(from).map_err(|_| Errno::EINVAL)?;
        let limit = usize::try_from(limit.min(NR_OPEN)).map_err(|_| Errno::EMFILE)?;
        if from >= limit && from > 0 {
            return Err(Errno::EINVAL);
        }
        let mut slots = self.slots.write();
        let fd = slots.lowest_free(from);
        if fd >= limit {
            return Err(Errno::EMFILE);
        }
        slots.put(fd, file, cloexec);
        i32::try_from(fd).map_err(|_| Errno::EMFILE)
    }

    /// `EMFILE` unless a descriptor below `limit` is free: asked before a call that makes something to enter.
    pub fn check_room(&self, limit: u64) -> Result<()> {
        if (self.slots.read().lowest_free(0) as u64) < limit.min(NR_OPEN) {
            Ok(())
        } else {
            Err(Errno::EMFILE)
        }
    }

    /// Enters a file at the lowest free descriptor.
    pub fn add(&self, file: Arc<FileDescription>, cloexec: bool, limit: u64) -> Result<i32> {
        self.add_from(0, file, cloexec, limit)
    }

    /// Enters a file at `fd` and returns the one it displaced, which the caller passes to [`FdTable::closed`]
    /// (`dup2(2)`). `EBADF` where `fd` is at or over the limit.
    pub fn set(
        &self,
        fd: i32,
        file: Arc<FileDescription>,
        cloexec: bool,
        limit: u64,
    ) -> Result<Option<Arc<FileDescription>>> {
        let at = index(fd)?;
        if at as u64 >= limit.min(NR_OPEN) {
            return Err(Errno::EBADF);
        }
        Ok(self.slots.write().put(at, file, cloexec))
    }

    /// Takes a file out; the caller passes it to [`FdTable::closed`].
    pub fn remove(&self, fd: i32) -> Result<Arc<FileDescription>> {
        self.slots.write().take(index(fd)?).ok_or(Errno::EBADF)
    }

    /// `close(2)` by process `pid`.
    pub fn close(&self, fd: i32, pid: i32) -> Result<()> {
        let file = self.remove(fd)?;
        self.closed(file, pid);
        Ok(())
    }

    /// What closing a descriptor means for its file: flush, and the end of all this table's POSIX locks on it
    /// (`fcntl_locking(2)`).
    pub fn closed(&self, file: Arc<FileDescription>, pid: i32) {
        file.ops().flush(pid);
        if self.has_locked.load(Ordering::Acquire)
            && let Ok(attr) = file.attr()
        {
            let locks = self.locked.lock().remove(&(attr.dev, attr.ino));
            if let Some(locks) = locks {
                locks.unlock(self.lock_owner(), 0, u64::MAX);
            }
        }
        drop(file);
    }

    /// Whether closing a descriptor may give up POSIX locks.
    pub fn has_posix_locks(&self) -> bool {
        self.has_locked.load(Ordering::Acquire)
    }

    /// Remembers that this table may hold POSIX locks on a file.
    pub fn note_posix_lock(&self, key: FileKey, locks: &Arc<FileLocks>) {
        self.locked.lock().insert(key, Arc::clone(locks));
        self.has_locked.store(true, Ordering::Release);
    }

    /// `FD_CLOEXEC` of a descriptor.
    pub fn cloexec(&self, fd: i32) -> Result<bool> {
        let at = index(fd)?;
        let slots = self.slots.read();
        slots.get(at).ok_or(Errno::EBADF)?;
        Ok(slots.is_cloexec(at))
    }

    pub fn set_cloexec(&self, fd: i32, on: bool) -> Result<()> {
        let at = index(fd)?;
        let mut slots = self.slots.write();
        slots.get(at).ok_or(Errno::EBADF)?;
        let (word, mask) = bit(at);
        if let Some(bits) = slots.cloexec.get_mut(word) {
            *bits = if on { *bits | mask } else { *bits & !mask };
        }
        Ok(())
    }

    /// `close_range(2)`: closes the descriptors from `first` to `last`, or only marks them close-on-exec.
    pub fn close_range(&self, first: u32, last: u32, only_mark: bool, pid: i32) {
        let mut removed = Vec::new();
        {
            let mut slots = self.slots.write();
            let end = (last as usize).saturating_add(1).min(slots.files.len());
            for fd in first as usize..end {
                if only_mark {
                    let (word, mask) = bit(fd);
                    if slots.get(fd).is_some()
                        && let Some(bits) = slots.cloexec.get_mut(word)
                    {
                        *bits |= mask;
                    }
                } else {
                    removed.extend(slots.take(fd));
                }
            }
        }
        for file in removed {
            self.closed(file, pid);
        }
    }

    /// Closes what is marked close-on-exec (`execve(2)`).
    pub fn close_on_exec(&self, pid: i32) {
        let mut removed = Vec::new();
        {
            let mut slots = self.slots.write();
            for fd in 0..slots.files.len() {
                if slots.is_cloexec(fd) {
                    removed.extend(slots.take(fd));
                }
            }
        }
        for file in removed {
            self.closed(file, pid);
        }
    }

    /// Closes everything: the last task that used the table has exited.
    pub fn close_all(&self, pid: i32) {
        let slots = core::mem::take(&mut *self.slots.write());
        for file in slots.files.into_iter().flatten() {
            self.closed(file, pid);
        }
    }

    /// The open descriptors in order, from `from` on; at most `max`.
    pub fn list(&self, from: u32, max: usize) -> Vec<i32> {
        let slots = self.slots.read();
        (from as usize..slots.files.len())
            .filter(|fd| slots.get(*fd).is_some())
            .filter_map(|fd| i32::try_from(fd).ok())
            .take(max)
            .collect()
    }

    /// Descriptors that are open.
    pub fn count(&self) -> usize {
        self.slots.read().used.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Slots of the table, a multiple of 64 (`FDSize` of `/proc/PID/status`).
    pub fn capacity(&self) -> usize {
        (self.slots.read().used.len() * 64).max(64)
    }
}
