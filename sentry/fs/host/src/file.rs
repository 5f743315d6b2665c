//! One host descriptor as an open file.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use abi::tty::{Termios, Winsize};
use hostsys::polling::{self, Interest};
use hostsys::terminal;
use rustix::fs::SeekFrom;
use rustix::io::ReadWriteFlags;
use sentry_base::{Errno, Events, Result, WaitQueue};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::{
    Attr, FileDescription, FileKind, FileOps, IoCtx, IoStart, OpenFlags, Pos, Timestamp, Whence,
};
use zerocopy::IntoBytes;

use crate::Watcher;

/// The most that one transfer moves, in bytes.
const PIECE: usize = 64 << 10;

/// A write of this many bytes to a pipe that polls as writable does not wait (`PIPE_BUF`, `pipe(7)`).
const SURE: usize = 4096;

/// "At the present position", for `preadv2(2)` and `pwritev2(2)`.
const HERE: u64 = u64::MAX;

/// Terminal controls (`ioctl_tty(2)`).
const TCGETS: u32 = 0x5401;
const TIOCGWINSZ: u32 = 0x5413;

/// Why a host descriptor cannot be given to the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum HostFileError {
    #[error("it cannot be examined: {0}")]
    Io(#[from] io::Error),
    #[error("it is a directory, and would lead to the host's files")]
    Directory,
    #[error("it is a block device")]
    BlockDevice,
}

/// An open host descriptor.
pub struct HostFile {
    fd: OwnedFd,
    kind: FileKind,
    is_terminal: bool,
    /// The owner that the sandbox sees.
    owner: (u32, u32),
    /// Absent for files that are always ready.
    queue: Option<Arc<WaitQueue>>,
}

impl core::fmt::Debug for HostFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "HostFile({:?})", self.kind)
    }
}

impl HostFile {
    /// Makes a file of `fd`, watched by `watcher`; `owner` is the user and group that it shows.
    pub fn open(
        fd: OwnedFd,
        watcher: &Watcher,
        owner: (u32, u32),
    ) -> core::result::Result<Arc<FileDescription>, HostFileError> {
        let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
        let kind = FileKind::from_mode(stat.st_mode).unwrap_or(FileKind::CharDevice);
        match kind {
            FileKind::Directory | FileKind::Symlink => return Err(HostFileError::Directory),
            FileKind::BlockDevice => return Err(HostFileError::BlockDevice),
            _ => {}
        }
        let host_flags = rustix::fs::fcntl_getfl(&fd).map_err(io::Error::from)?;
        // How it was opened, and whether it appends: the rest is of no concern inside.
        let flags = OpenFlags::from_bits_retain(host_flags.bits())
            & (OpenFlags::WRONLY | OpenFlags::RDWR | OpenFlags::APPEND);
        let queue = Arc::new(WaitQueue::new());
        let watched = kind != FileKind::Regular && watcher.watch(&fd, &queue)?;
        let is_terminal = kind == FileKind::CharDevice && terminal::is_terminal(fd.as_fd());
        let position = match kind {
            FileKind::Regular => rustix::fs::tell(&fd).unwrap_or(0),
            _ => 0,
        };
        let file = Self { fd, kind, is_terminal, owner, queue: watched.then_some(queue) };
        let description = sentry_vfs::anonymous(Arc::new(file), flags);
        *description.position().lock() = position;
        Ok(description)
    }

    fn poll(&self, events: i16) -> i16 {
        let mut interests = [Interest::new(self.fd.as_fd(), events)];
        match polling::wait(&mut interests, Some(0)) {
            Ok(0) | Err(_) => 0,
            Ok(_) => interests.first().map_or(0, Interest::found),
        }
    }

    fn go_to(&self, pos: Pos) -> Result<()> {
        if let (FileKind::Regular, Pos::At(offset)) = (self.kind, pos) {
            rustix::fs::seek(&self.fd, SeekFrom::Start(offset)).map_err(errno)?;
        }
        Ok(())
    }

    /// One read that does not wait.
    fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        if self.queue.is_none() {
            return rustix::io::read(&self.fd, buffer).map_err(errno);
        }
        let mut parts = [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.fd, &mut parts, HERE, ReadWriteFlags::NOWAIT) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            done => return done.map_err(errno),
        }
        if self.poll(libc::POLLIN) == 0 {
            return Err(Errno::EAGAIN);
        }
        rustix::io::read(&self.fd, buffer).map_err(errno)
    }

    /// One write that does not wait.
    fn write(&self, bytes: &[u8]) -> Result<usize> {
        if self.queue.is_none() {
            return rustix::io::write(&self.fd, bytes).map_err(errno);
        }
        let parts = [io::IoSlice::new(bytes)];
        match rustix::io::pwritev2(&self.fd, &parts, HERE, ReadWriteFlags::NOWAIT) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            done => return done.map_err(errno),
        }
        if self.poll(libc::POLLOUT) == 0 {
            return Err(Errno::EAGAIN);
        }
        let sure = bytes.get(..bytes.len().min(SURE)).unwrap_or_default();
        rustix::io::write(&self.fd, sure).map_err(errno)
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

impl FileOps for HostFile {
    fn readiness(&self) -> Events {
        if self.queue.is_none() {
            return Events::READABLE | Events::WRITABLE;
        }
        let found = self.poll(libc::POLLIN | libc::POLLOUT | libc::POLLPRI | libc::POLLRDHUP);
        let mut events = Events::from_bits_truncate(u32::from(found.cast_unsigned()));
        if events.contains(Events::IN) {
            events |= Events::READABLE;
        }
        if events.contains(Events::OUT) {
            events |= Events::WRITABLE;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.queue.as_deref()
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        self.go_to(pos)?;
        let want = dst.remaining();
        match dst.fill(want, |buffer, _| self.read(buffer)) {
            Ok(len) => Ok(IoStart::Done(len)),
            Err(Errno::EAGAIN) => Ok(IoStart::WouldBlock),
            Err(errno) => Err(errno),
        }
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, pos: Pos) -> Result<IoStart<usize>> {
        self.go_to(pos)?;
        let mut total = 0;
        let mut buffer = vec![0; src.remaining().min(PIECE)];
        while src.remaining() > 0 {
            // Looked at before it is taken: what is not written stays with the caller.
            let mut ahead = src.clone();
            let got = match ahead.read(&mut buffer) {
                Ok(got) => got,
                Err(_) if total > 0 => break,
                Err(errno) => return Err(errno),
            };
            match self.write(buffer.get(..got).unwrap_or_default()) {
                Ok(done) => {
                    src.skip(done);
                    total += done;
                }
                Err(_) if total > 0 => break,
                Err(Errno::EAGAIN) => return Ok(IoStart::WouldBlock),
                Err(Errno::EPIPE) => {
                    io.caller.signal_self(libc::SIGPIPE);
                    return Err(Errno::EPIPE);
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(IoStart::Done(total))
    }

    fn seekable(&self) -> bool {
        self.kind == FileKind::Regular
    }

    fn seek(&self, offset: i64, whence: Whence, current: u64, _size: u64) -> Result<u64> {
        let to = match whence {
            Whence::Set => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::EINVAL)?),
            Whence::Current => SeekFrom::Start(current.checked_add_signed(offset).ok_or(Errno::EINVAL)?),
            Whence::End => SeekFrom::End(offset),
            Whence::Data => SeekFrom::Data(u64::try_from(offset).map_err(|_| Errno::ENXIO)?),
            Whence::Hole => SeekFrom::Hole(u64::try_from(offset).map_err(|_| Errno::ENXIO)?),
        };
        rustix::fs::seek(&self.fd, to).map_err(errno)
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        match command {
            TCGETS if self.is_terminal => {
                // Enough to know that it is a terminal. Its real settings are the caller's affair.
                io.caller.mem().copy_out(arg, Termios::COOKED.as_bytes())?;
                Ok(0)
            }
            TIOCGWINSZ if self.is_terminal => {
                let size = terminal::window_size(self.fd.as_fd()).map_err(|e| Errno::from_io(&e))?;
                let size = Winsize { rows: size.rows, cols: size.columns, ..Winsize::default() };
                io.caller.mem().copy_out(arg, size.as_bytes())?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn attr(&self) -> Option<Result<Attr>> {
        let stat = match rustix::fs::fstat(&self.fd) {
            Ok(stat) => stat,
            Err(error) => return Some(Err(errno(error))),
        };
        let time = |sec: i64, nsec: u64| Timestamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
        Some(Ok(Attr {
            nlink: u32::try_from(stat.st_nlink).unwrap_or(1),
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: stat.st_rdev,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            ..Attr::new(self.kind, stat.st_mode & 0o7777, stat.st_ino, stat.st_dev)
        }))
    }

    fn truncate(&self, len: u64) -> Result<()> {
        if self.kind != FileKind::Regular {
            return Err(Errno::EINVAL);
        }
        rustix::fs::ftruncate(&self.fd, len).map_err(errno)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let done = if data_only { rustix::fs::fdatasync(&self.fd) } else { rustix::fs::fsync(&self.fd) };
        done.map_err(errno)
    }

    fn link_text(&self) -> Option<String> {
        let ino = rustix::fs::fstat(&self.fd).map_or(0, |stat| stat.st_ino);
        Some(match self.kind {
            FileKind::Fifo => format!("pipe:[{ino}]"),
            FileKind::Socket => format!("socket:[{ino}]"),
            FileKind::CharDevice if !self.is_terminal => "/dev/null".to_owned(),
            _ => format!("host:[{ino}]"),
        })
    }

    fn kind(&self) -> FileKind {
        self.kind
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
