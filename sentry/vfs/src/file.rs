//! Open files: the operations behind a descriptor.

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Events, Nanos, Result, WaitQueue};
use sentry_memory::{UserReader, UserWriter};
use sentry_mm::Mappable;

use crate::{Attr, Caller, FileKind};

bitflags::bitflags! {
    /// Flags of `open(2)`, with Linux's values on x86-64. Unknown bits are kept, as Linux does.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct OpenFlags: u32 {
        const WRONLY = 0o1;
        const RDWR = 0o2;
        const CREAT = 0o100;
        const EXCL = 0o200;
        const NOCTTY = 0o400;
        const TRUNC = 0o1000;
        const APPEND = 0o2000;
        const NONBLOCK = 0o4000;
        const DSYNC = 0o10000;
        const ASYNC = 0o20000;
        const DIRECT = 0o40000;
        const LARGEFILE = 0o100000;
        const DIRECTORY = 0o200000;
        const NOFOLLOW = 0o400000;
        const NOATIME = 0o1000000;
        const CLOEXEC = 0o2000000;
        const SYNC = 0o4010000;
        const PATH = 0o10000000;
        const TMPFILE = 0o20200000;
        const _ = !0;
    }
}

impl OpenFlags {
    pub fn reads(self) -> bool {
        !self.contains(Self::PATH) && matches!(self.bits() & 3, 0 | 2)
    }

    pub fn writes(self) -> bool {
        !self.contains(Self::PATH) && matches!(self.bits() & 3, 1 | 2)
    }
}

/// An operation that answered at once, or did nothing because it would have to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoStart<T> {
    Done(T),
    /// Nothing was moved. Wait on the file's queue and call again; a non-blocking caller gets `EAGAIN`.
    WouldBlock,
}

/// How long a blocking transfer may wait, and what it gives then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitLimit {
    pub ns: Nanos,
    /// The result where one last attempt after `ns` still finds nothing.
    pub then: Result<usize>,
}

/// Where a transfer takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pos {
    /// The file has no position (pipe, socket, terminal).
    Stream,
    At(u64),
    /// At the end, found and moved in one step (`O_APPEND`). Writes only.
    Append,
}

/// The origin of an `lseek(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    Set,
    Current,
    End,
    Data,
    Hole,
}

/// Who does I/O, and how.
#[derive(Clone, Copy)]
pub struct IoCtx<'a> {
    pub caller: &'a dyn Caller,
    /// The description's status flags; `NONBLOCK` is set too for `MSG_DONTWAIT` and `RWF_NOWAIT`.
    pub flags: OpenFlags,
}

impl core::fmt::Debug for IoCtx<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "IoCtx({:?})", self.flags)
    }
}

/// An open file. Dropped when the last description that names it is closed.
pub trait FileOps: Send + Sync {
    /// What would not block now.
    fn readiness(&self) -> Events {
        Events::READABLE | Events::WRITABLE
    }

    /// Where changes of readiness are announced; `None` for a file that is always ready.
    fn wait_queue(&self) -> Option<&WaitQueue> {
        None
    }

    /// Moves bytes to `dst`. `Done(0)` is the end of the file.
    fn try_read(&self, io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let _ = (io, dst, pos);
        Err(Errno::EINVAL)
    }

    /// Moves bytes from `src`. A partial count is a result: the caller decides whether to go on.
    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let _ = (io, src, pos);
        Err(Errno::EINVAL)
    }

    /// The limit of the wait for a read or, with `writing`, a write that would block now (`SO_RCVTIMEO`, `VTIME`).
    /// Asked anew before each wait.
    fn wait_limit(&self, writing: bool) -> Option<WaitLimit> {
        let _ = writing;
        None
    }

    /// Whether the file has a position (`lseek`, `pread`); others give `ESPIPE`.
    fn seekable(&self) -> bool {
        false
    }

    /// The new position for an `lseek`. The default knows the end from [`FileOps::attr`] or the inode's `size`.
    fn seek(&self, offset: i64, whence: Whence, current: u64, size: u64) -> Result<u64> {
        let base = match whence {
            Whence::Set => 0,
            Whence::Current => current,
            Whence::End => size,
            Whence::Data if u64::try_from(offset).is_ok_and(|o| o < size) => 0,
            Whence::Hole if u64::try_from(offset).is_ok_and(|o| o < size) => return Ok(size),
            Whence::Data | Whence::Hole => return Err(Errno::ENXIO),
        };
        base.checked_add_signed(offset).filter(|p| i64::try_from(*p).is_ok()).ok_or(Errno::EINVAL)
    }

    /// Device control; `arg` is the third argument as given.
    /// Changes whenever the limit of a wait is to be counted anew: between the bytes of a raw terminal (`VTIME`).
    fn wait_stamp(&self) -> u64 {
        0
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        let _ = (io, command, arg);
        Err(Errno::ENOTTY)
    }

    /// The file as something to map.
    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        Err(Errno::ENODEV)
    }

    /// Attributes of a file that has no inode in a file system (pipes, sockets, host files); else `None`.
    fn attr(&self) -> Option<Result<Attr>> {
        None
    }

    /// `ftruncate` on a file without an inode (memfd aside): refused by default.
    fn truncate(&self, len: u64) -> Result<()> {
        let _ = len;
        Err(Errno::EINVAL)
    }

    /// `fallocate(2)`; `mode` holds `FALLOC_FL_*`.
    fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        let _ = (mode, offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// `fsync(2)` or, with `data_only`, `fdatasync(2)`.
    fn sync(&self, data_only: bool) -> Result<()> {
        let _ = data_only;
        Err(Errno::EINVAL)
    }

    /// The status flags changed (`fcntl(F_SETFL)`).
    fn flags_changed(&self, flags: OpenFlags) {
        let _ = flags;
    }

    /// A descriptor of this file was closed by `pid` (`file_operations.flush`).
    fn flush(&self, pid: i32) {
        let _ = pid;
    }

    /// What `/proc/PID/fd/N` shows for a file without a path, such as `pipe:[17]`.
    fn link_text(&self) -> Option<String> {
        None
    }

    /// Extra lines of `/proc/PID/fdinfo/N`.
    fn fdinfo(&self) -> String {
        String::new()
    }

    /// The kind of a file without an inode.
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }

    fn as_any(&self) -> &dyn Any;
}

impl core::fmt::Debug for dyn FileOps {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FileOps")
    }
}
