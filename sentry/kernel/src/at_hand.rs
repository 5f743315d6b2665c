//! The file at hand of a task: what it opened last, or whose position it has moved last, as long as its context answers for it
//! by itself ([`platform::AtHand`]). Of a file that may change, only the position is at hand.
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

use platform::{AtHand, HAND_CALLS, HandFile, HandPiece, PAGE_SIZE, TrapEvent};
use sentry_base::Mutex;
use sentry_memory::UserWriter;
use sentry_vfs::{FileDescription, FileKind, IoCtx, IoStart, OpenFlags, Pos, file_epoch};

use crate::{Current, Kernel, Task};

/// A file at hand.
pub(crate) struct Held {
    place: Arc<dyn AtHand>,
    number: u64,
    fd: i32,
    file: Weak<FileDescription>,
    /// The epoch for which more is known than the position; zero if no more is.
    steady_in: u64,
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
    /// The task is at a call that reads or moves the position.
    wanted: Option<Wanted>,
    /// Whether files that are put at hand are asked about, and whether their bytes are read; and the first for those that
    /// are put there because their position was moved.
    use_of_files: Luck<32>,
    use_of_bytes: Luck<8>,
    use_of_moved: Luck<32>,
    /// It is one of those.
    is_moved: bool,
}

impl Holding {
    pub const fn new() -> Self {
        Self {
            held: None,
            calls: 0,
            reads: 0,
            has_bytes: false,
            wanted: None,
            use_of_files: Luck::new(),
            use_of_bytes: Luck::new(),
            use_of_moved: Luck::new(),
            is_moved: false,
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
        let wanted = names_it.then(|| Wanted::by(nr, held.known.load(Ordering::Relaxed), args)).flatten();
        if wanted.is_some_and(|wanted| wanted.reads_little) && !self.holding.has_bytes {
            self.holding.use_of_bytes.note(true);
        }
        if wanted.is_some() {
            self.holding.wanted = wanted;
        } else if !leaves_alone(nr, names_it, args[1]) {
            self.let_go();
        }
    }

    /// Has the file at hand go on from where a call has left it. To be called before the task goes on.
    pub(crate) fn follow(&mut self) {
        let Some(wanted) = self.holding.wanted.take() else { return };
        let Some(held) = self.holding.held.clone() else { return };
        let Some(file) = held.file.upgrade() else { return self.let_go() };
        let epoch = file_epoch::present();
        if held.steady_in != 0 && held.steady_in != epoch {
            return self.let_go();
        }
        let now = {
            let position = file.position().lock();
            held.place.renew(held.number, *position, epoch);
            held.known.store(*position, Ordering::Relaxed);
            *position
        };
        if held.steady_in == 0 {
            return;
        }
        if self.holding.has_bytes {
            self.holding.use_of_bytes.note(self.holding.reads > 0);
            (self.holding.has_bytes, self.holding.reads) = (false, 0);
        }
        if (wanted.reads_little || wanted.at.is_none()) && self.holding.use_of_bytes.try_again() {
            let start = wanted.at.unwrap_or(now);
            let start = start - start % PAGE_SIZE;
            let bytes = self.piece_of(&file, start, HAND_PIECE);
            self.holding.has_bytes = !bytes.is_empty();
            held.place.put_piece(held.number, HandPiece { start, bytes: &bytes });
        }
    }

    /// Up to `len` bytes of a file from `start` on; fewer at its end.
    pub fn piece_of(&self, file: &FileDescription, start: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let io = IoCtx { caller: &*self.task, flags: file.flags() };
        let read = file.ops().try_read(&io, &mut UserWriter::buffer(&mut bytes), Pos::At(start));
        bytes.truncate(if let Ok(IoStart::Done(read)) = read { read } else { 0 });
        bytes
    }

    /// The context has no file at hand from here on.
    pub(crate) fn let_go(&mut self) {
        let Some(held) = self.holding.held.take() else { return };
        *self.task.at_hand.lock() = None;
        held.place.clear(held.number);
        let holding = &mut self.holding;
        holding.wanted = None;
        if holding.is_moved {
            holding.use_of_moved.note(holding.calls > 0);
        } else {
            holding.use_of_files.note(holding.calls > 0);
        }
        if holding.has_bytes {
            holding.use_of_bytes.note(holding.reads > 0);
        }
    }

    /// Whether the context may answer for a file that was just opened, under a descriptor that only this task has, and will
    /// probably be asked to. `file` is the caller's reference besides the table's. For a steady file
    /// ([`Current::is_steady`]).
    pub fn wants_at_hand(&mut self, file: &Arc<FileDescription>) -> bool {
        self.alone_moves(file) && self.holding.use_of_files.try_again()
    }

    /// The same for a regular file of any kind whose position has been moved, and will probably be moved again.
    pub fn wants_moved_at_hand(&mut self, file: &Arc<FileDescription>) -> bool {
        let may =
            file.inode().is_some_and(|inode| inode.kind() == FileKind::Regular && inode.usage().is_some())
                && self.alone_moves(file);
        may && self.holding.use_of_moved.try_again()
    }

    /// Whether nobody else has the descriptor or the description, and the context answers calls.
    fn alone_moves(&self, file: &Arc<FileDescription>) -> bool {
        self.is_answered()
            && Arc::strong_count(file) == 2
            && Arc::strong_count(&self.task.fds()) == 2
            && self.task.filters_pass(&HAND_CALLS)
    }

    /// Whether more may be answered of a file than its position, in the present epoch of files: it is open for reading,
    /// its inode is steady ([`sentry_vfs::Inode::is_steady`]), and nobody is to hear of each use.
    pub fn is_steady(file: &FileDescription) -> bool {
        PLAIN.contains(file.flags())
            && file.location().is_some_and(|at| !at.is_watched())
            && file.inode().is_some_and(|inode| inode.is_steady())
    }

    /// Whether it is worth while to have a file's bytes at hand.
    pub fn wants_bytes_at_hand(&mut self) -> bool {
        self.holding.use_of_bytes.try_again()
    }

    /// Has the context answer for a file as long as `found.epoch` lasts: see [`Current::wants_at_hand`].
    /// `is_moved` says that it is for [`Current::wants_moved_at_hand`].
    pub fn put_at_hand(&mut self, file: &Arc<FileDescription>, found: &HandFile<'_>, is_moved: bool) {
        let (Ok(fd), Some(place)) = (i32::try_from(found.fd), self.context.at_hand()) else { return };
        self.let_go();
        let number = place.put(found);
        let known = AtomicU64::new(found.position);
        let steady_in = if found.stat.is_empty() { 0 } else { found.epoch };
        let closed = Mutex::new(false);
        let held = Held { place, number, fd, file: Arc::downgrade(file), steady_in, known, closed };
        let held = Arc::new(held);
        *self.task.at_hand.lock() = Some(Arc::clone(&held));
        self.holding.held = Some(held);
        (self.holding.calls, self.holding.reads) = (0, 0);
        self.holding.has_bytes = !found.piece.bytes.is_empty();
        self.holding.is_moved = is_moved;
        // Who has taken the description meanwhile (`pidfd_getfd(2)`) finds it here, or is found, or has moved it.
        if !self.alone_moves(file) || *file.position().lock() != found.position {
            self.let_go();
        }
    }
}

/// Bytes that are put at hand where a task reads or goes to.
pub const HAND_PIECE: usize = 16 * 1024;

/// What a call wants of the file at hand that reads, writes or moves the position, and does nothing else to it.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Where it reads.
    at: Option<u64>,
    /// It reads no more than what may be at hand afterwards.
    reads_little: bool,
}

impl Wanted {
    /// By the number and the arguments of a call; the first is the file's descriptor.
    fn by(nr: u64, position: u64, [_, _, len, offset, ..]: [u64; 6]) -> Option<Self> {
        let at = match i64::try_from(nr).ok()? {
            libc::SYS_read => Some(position),
            libc::SYS_pread64 => Some(offset),
            libc::SYS_readv | libc::SYS_write | libc::SYS_writev | libc::SYS_pwrite64 | libc::SYS_lseek => {
                None
            }
            _ => return None,
        };
        Some(Self { at, reads_little: at.is_some() && len <= HAND_PIECE as u64 })
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
