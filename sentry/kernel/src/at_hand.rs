//! The file at hand of a task: what it opened last, as long as its context answers for it by itself ([`platform::AtHand`]).
//!
//! What the context has answered is taken over at each trap, before anything else of the trap is looked at: the position
//! then is what it would be had each read come here. The file stays at hand over calls that have nothing to do with it; any
//! other call takes it away first. The descriptor is its table's alone and the table its task's alone, so that nobody
//! else changes what it stands for; who looks at it from outside asks the context first ([`Task::settle_files`]).
//!
//! A descriptor that the application has closed stays in its table until then. The lowest free number is looked for by calls
//! of the task alone, and those come after; others who would find it are told that it is not there
//! ([`Task::has_closed`]), and who looks for users of a file or a mount has all of them settled first
//! ([`Kernel::settle_files`]).
//!
//! **Threat.** The position and the counts are the application's to forge. A position is one that `lseek(2)` takes, of a file
//! that only this task reads.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use platform::{AtHand, HAND_CALLS, HandFile, TrapEvent};
use sentry_base::Mutex;
use sentry_vfs::{FileDescription, OpenFlags, file_epoch};

use crate::{Current, Kernel, Task};

/// A file at hand.
pub(crate) struct Held {
    place: Arc<dyn AtHand>,
    number: u64,
    fd: i32,
    file: Weak<FileDescription>,
    /// The position as it was taken over last.
    known: AtomicU64,
    /// It is closed, and not only by the application. Held while that is done.
    closed: Mutex<bool, BEFORE_POSITION>,
}

/// Outside of all locks that closing a file takes.
const BEFORE_POSITION: u16 = 14;

impl core::fmt::Debug for Held {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Held({})", self.fd)
    }
}

impl Held {
    /// Takes the position over. One that somebody else has moved meanwhile stays: he got hold of the file while a read of
    /// this task's was under way.
    fn settle_position(&self) {
        let Some(file) = self.file.upgrade() else { return };
        let mut position = file.position().lock();
        if let Some(now) = self.place.position(self.number)
            && *position == self.known.load(Ordering::Relaxed)
        {
            *position = now;
            self.known.store(now, Ordering::Relaxed);
        }
    }

    /// Takes over all. Says whether the file is closed now. No locks are held.
    fn settle(&self, task: &Task) -> bool {
        let mut closed = self.closed.lock();
        if !*closed {
            self.settle_position();
            if self.place.is_closed(self.number) {
                *closed = true;
                // Nobody else could have taken it from the table.
                let _ = task.fds().close(self.fd, task.pid());
            }
        }
        *closed
    }
}

impl Task {
    /// Has this task's open files show what it has done with them, for others who look at them. No locks are held.
    pub fn settle_files(&self) {
        let held = self.at_hand.lock().clone();
        if let Some(held) = held {
            held.settle(self);
        }
    }

    /// As [`Task::settle_files`] of the positions alone, for those who hold locks of directories.
    pub fn settle_positions(&self) {
        let held = self.at_hand.lock().clone();
        if let Some(held) = held {
            held.settle_position();
        }
    }

    /// Whether this task has closed a descriptor that is still in its table.
    pub fn has_closed(&self, fd: i32) -> bool {
        let held = self.at_hand.lock().clone();
        held.is_some_and(|held| held.fd == fd && held.place.is_closed(held.number))
    }

    /// As [`Task::settle_files`], and the task comes here with all that it does with them from now on: somebody else is to
    /// have one of them too.
    pub fn recall_files(&self) {
        let held = self.at_hand.lock().clone();
        if let Some(held) = held {
            held.place.revoke(held.number);
            held.settle(self);
        }
    }
}

impl Kernel {
    /// Has the open files of all tasks show what was done with them before this call. What tasks do with files at hand
    /// from now on they do here. No locks are held.
    pub fn settle_files(&self) {
        file_epoch::advance();
        for task in self.tasks() {
            task.settle_files();
        }
    }
}

/// Whether something is worth its while, by how it went of late.
#[derive(Debug)]
pub(crate) struct Luck<const PAUSE: i8>(i8);

impl<const PAUSE: i8> Luck<PAUSE> {
    const BEST: i8 = 4;

    pub const fn new() -> Self {
        Self(2)
    }

    fn note(&mut self, paid_off: bool) {
        self.0 = match (paid_off, self.0) {
            (true, old) => (old.max(0) + 1).min(Self::BEST),
            (false, 1..) => self.0 - 1,
            (false, _) => -PAUSE,
        };
    }

    fn try_again(&mut self) -> bool {
        let may = self.0 >= 0;
        self.0 += i8::from(!may);
        may
    }
}

/// What a task knows of its file at hand, and of those before.
#[derive(Debug)]
pub(crate) struct Holding {
    held: Option<Arc<Held>>,
    /// What was answered of it so far.
    calls: u32,
    reads: u32,
    has_bytes: bool,
    /// Whether files that are put at hand are asked about, and whether their bytes are read.
    use_of_files: Luck<32>,
    use_of_bytes: Luck<8>,
}

impl Holding {
    pub const fn new() -> Self {
        Self {
            held: None,
            calls: 0,
            reads: 0,
            has_bytes: false,
            use_of_files: Luck::new(),
            use_of_bytes: Luck::new(),
        }
    }
}

/// Flags of a description that make no difference to reads of a regular file.
const PLAIN: OpenFlags =
    OpenFlags::LARGEFILE.union(OpenFlags::NOFOLLOW).union(OpenFlags::NONBLOCK).union(OpenFlags::NOATIME);

impl Current {
    /// Takes over what the context has answered for the file at hand, and takes the file away if what the task is at may
    /// have to do with it.
    pub(crate) fn absorb(&mut self, event: TrapEvent) {
        let Some(held) = self.holding.held.clone() else { return };
        let closed = held.settle(&self.task);
        let used = held.place.take_use(held.number);
        self.holding.calls = self.holding.calls.saturating_add(used.calls);
        self.holding.reads = self.holding.reads.saturating_add(used.reads);
        self.task.io().count_reads(u64::from(used.reads));
        self.task.io().add_read(used.read_bytes);
        if closed {
            self.let_go();
            return;
        }
        if event != TrapEvent::Syscall {
            return;
        }
        let (nr, args) = (self.regs.orig_rax & 0xffff_ffff, self.regs.syscall_args());
        let names_it = i32::try_from(args[0] & 0xffff_ffff).is_ok_and(|fd| fd == held.fd);
        if names_it && !self.holding.has_bytes && matches!(i64::try_from(nr), Ok(libc::SYS_read)) {
            self.holding.use_of_bytes.note(true);
        }
        if !leaves_alone(nr, names_it, args[1]) {
            self.let_go();
        }
    }

    /// The context has no file at hand from here on.
    pub(crate) fn let_go(&mut self) {
        let Some(held) = self.holding.held.take() else { return };
        *self.task.at_hand.lock() = None;
        held.place.clear(held.number);
        let holding = &mut self.holding;
        holding.use_of_files.note(holding.calls > 0);
        if holding.has_bytes {
            holding.use_of_bytes.note(holding.reads > 0);
        }
    }

    /// Whether the context may answer for a file that was just opened, under a descriptor that only this task has, and will
    /// probably be asked to. `file` is the caller's reference besides the table's. For a steady file
    /// ([`sentry_vfs::Inode::is_steady`]).
    pub fn wants_at_hand(&mut self, file: &Arc<FileDescription>) -> bool {
        let may = self.is_answered()
            && PLAIN.contains(file.flags())
            && Arc::strong_count(file) == 2
            && Arc::strong_count(&self.task.fds()) == 2
            && self.task.filters_pass(&HAND_CALLS)
            && file.location().is_some_and(|at| !at.is_watched());
        may && self.holding.use_of_files.try_again()
    }

    /// Whether it is worth while to have a file's bytes at hand.
    pub fn wants_bytes_at_hand(&mut self) -> bool {
        self.holding.use_of_bytes.try_again()
    }

    /// Has the context answer for a file as long as `found.epoch` lasts: see [`Current::wants_at_hand`].
    pub fn put_at_hand(&mut self, file: &Arc<FileDescription>, found: &HandFile<'_>) {
        let (Ok(fd), Some(place)) = (i32::try_from(found.fd), self.context.at_hand()) else { return };
        self.let_go();
        let number = place.put(found);
        let known = AtomicU64::new(found.position);
        let file = Arc::downgrade(file);
        let held = Arc::new(Held { place, number, fd, file, known, closed: Mutex::new(false) });
        *self.task.at_hand.lock() = Some(Arc::clone(&held));
        self.holding.held = Some(held);
        (self.holding.calls, self.holding.reads) = (0, 0);
        self.holding.has_bytes = !found.bytes.is_empty();
    }
}

/// Whether a call neither closes nor moves nor gives away the file at hand; `names_it` says that its first argument is the
/// file's descriptor.
fn leaves_alone(nr: u64, names_it: bool, second: u64) -> bool {
    let Ok(nr) = i64::try_from(nr) else { return false };
    match nr {
        libc::SYS_mmap
        | libc::SYS_munmap
        | libc::SYS_mprotect
        | libc::SYS_mremap
        | libc::SYS_madvise
        | libc::SYS_brk
        | libc::SYS_futex
        | libc::SYS_getrandom
        | libc::SYS_clock_gettime
        | libc::SYS_gettimeofday
        | libc::SYS_rt_sigaction
        | libc::SYS_rt_sigprocmask
        | libc::SYS_rt_sigreturn
        | libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_fstat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_access
        | libc::SYS_faccessat
        | libc::SYS_faccessat2
        | libc::SYS_readlink
        | libc::SYS_readlinkat
        | libc::SYS_getcwd
        | libc::SYS_open
        | libc::SYS_openat
        | libc::SYS_pread64
        | libc::SYS_fadvise64 => true,
        libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_pwrite64
        | libc::SYS_lseek
        | libc::SYS_close
        | libc::SYS_ioctl
        | libc::SYS_getdents64 => !names_it,
        // Of the others some duplicate it, and a lock of another descriptor would end with it.
        libc::SYS_fcntl => {
            matches!(i32::try_from(second), Ok(libc::F_GETFD | libc::F_SETFD | libc::F_GETFL))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luck_runs_out_and_comes_back() {
        let mut luck = Luck::<8>::new();
        assert!(luck.try_again());
        for _ in 0..3 {
            luck.note(false);
        }
        for _ in 0..8 {
            assert!(!luck.try_again());
        }
        assert!(luck.try_again());
        luck.note(false);
        assert!(!luck.try_again());
        luck.note(true);
        assert!(luck.try_again());
    }
}
