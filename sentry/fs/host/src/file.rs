//! A donated descriptor as an open file.

use std::any::Any;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use abi::tty::{Termios, ioc};
use hostsys::terminal_query::{Query, ask, flush_input, set_attributes};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::{Errno as HostErrno, ReadWriteFlags};
use rustix::net::{RecvFlags, SendFlags};
use sentry_base::lock::rank;
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, WatchedQueue};
use sentry_memory::{UserReader, UserWriter};
use sentry_mm::{Mappable, MappedPiece};
use sentry_vfs::{
    Attr, FileDescription, FileKind, FileOps, IoCtx, IoStart, OpenFlags, Pos, Timestamp, Whence,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::from_rustix;
use crate::watcher::{Watcher, ready_now};

/// What a pipe takes as a whole once it has said that it can be written (`PIPE_BUF`).
const ATOMIC: usize = 4096;

/// The device number of `/dev/null`.
const DEV_NULL: u64 = 0x103;

/// The modes of `struct termios` that programs set; above are a kernel's own.
const MODE_BITS: u32 = 0xffff;

/// The most bytes that one call moves.
const CHUNK: usize = 64 * 1024;

/// The offset that stands for the description's own (`preadv2(2)`).
const CURRENT: u64 = u64::MAX;

/// Reads and writes differ by what keeps them from blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Regular files: always ready, with an offset that is shared with the caller.
    Regular,
    /// Devices that are always ready, such as `/dev/null`.
    Ready,
    Socket,
    /// Pipes and terminals.
    Stream,
}

/// An open file of the caller.
pub struct HostFile {
    fd: Arc<OwnedFd>,
    class: Class,
    kind: FileKind,
    is_terminal: bool,
    rdev: u64,
    /// The user and group that it shows: the host's mean nothing inside.
    owner: (u32, u32),
    flags: OpenFlags,
    watcher: Arc<Watcher>,
    token: Option<u64>,
    queue: Arc<WatchedQueue>,
    /// Of a regular file: the position that this file's user has when the host's offset is where he left it.
    expected: Mutex<u64, { rank::LEAF }>,
}

impl core::fmt::Debug for HostFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "HostFile({:?}, {:?})", self.fd, self.class)
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.watcher.leave(self.fd.as_fd(), token);
        }
    }
}

/// Why a descriptor cannot be given to the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum HostFileError {
    #[error("it cannot be examined: {0}")]
    Io(#[from] io::Error),
    #[error("it is a directory, and would lead to the host's files")]
    Directory,
    #[error("it is a block device")]
    BlockDevice,
}

impl HostFile {
    /// Makes an open file of `fd`, whose changes `watcher` tells; `owner` is the user and group that it shows. Access mode,
    /// append flag and position of the description are the host's.
    pub fn open(
        fd: OwnedFd,
        watcher: &Arc<Watcher>,
        owner: (u32, u32),
    ) -> core::result::Result<Arc<FileDescription>, HostFileError> {
        let file = Self::new(fd, watcher, owner)?;
        let (flags, position) = (file.flags, *file.expected.lock());
        let description = FileDescription::new(Arc::new(file), flags, None);
        *description.position().lock() = position;
        Ok(description)
    }

    pub(crate) fn new(
        fd: OwnedFd,
        watcher: &Arc<Watcher>,
        owner: (u32, u32),
    ) -> core::result::Result<Self, HostFileError> {
        let st = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
        let kind = match FileKind::from_mode(st.st_mode) {
            Some(FileKind::Directory | FileKind::Symlink) => return Err(HostFileError::Directory),
            Some(FileKind::BlockDevice) => return Err(HostFileError::BlockDevice),
            Some(kind) => kind,
            // An anonymous file, such as an eventfd.
            None => FileKind::CharDevice,
        };
        let host = rustix::fs::fcntl_getfl(&fd).map_err(io::Error::from)?;
        let mut flags = OpenFlags::from_bits_retain(host.bits() & OFlags::RWMODE.bits());
        flags.set(OpenFlags::APPEND, host.contains(OFlags::APPEND));
        let queue = Arc::new(WatchedQueue::default());
        let token = match watcher.enter(fd.as_fd(), queue.observer()) {
            Ok(token) => Some(token),
            Err(Errno::EPERM) => None,
            Err(e) => return Err(io::Error::from_raw_os_error(e.raw()).into()),
        };
        let class = match (kind, token) {
            (FileKind::Regular, _) => Class::Regular,
            (FileKind::Socket, Some(_)) => Class::Socket,
            (_, Some(_)) => Class::Stream,
            (_, None) => Class::Ready,
        };
        let expected =
            if class == Class::Regular { rustix::fs::tell(&fd).map_err(io::Error::from)? } else { 0 };
        let is_terminal = kind == FileKind::CharDevice && ask(fd.as_fd(), Query::Attributes).is_ok();
        Ok(Self {
            fd: Arc::new(fd),
            class,
            kind,
            is_terminal,
            rdev: st.st_rdev,
            owner,
            flags,
            watcher: Arc::clone(watcher),
            token,
            queue,
            expected: Mutex::new(expected),
        })
    }

    /// Asks to be told of `events`, for those who wait on the queue.
    fn arm(&self, events: Events) {
        if let Some(token) = self.token {
            self.watcher.arm(self.fd.as_fd(), token, events);
        }
    }

    fn would_block<T>(&self, events: Events) -> IoStart<T> {
        self.arm(events);
        IoStart::WouldBlock
    }

    /// Reads from a regular file. Whoever reads on from where he was uses the host's offset and moves it, as the caller
    /// of a command expects; others leave it alone.
    fn read_regular(&self, buf: &mut [u8], pos: u64) -> rustix::io::Result<usize> {
        let mut expected = self.expected.lock();
        if pos != *expected {
            return rustix::io::pread(&*self.fd, buf, pos);
        }
        let n = rustix::io::read(&*self.fd, buf)?;
        *expected = pos.saturating_add(n as u64);
        Ok(n)
    }

    fn write_regular(&self, buf: &[u8], pos: Pos) -> rustix::io::Result<usize> {
        let mut expected = self.expected.lock();
        match pos {
            Pos::At(at) if at != *expected => rustix::io::pwrite(&*self.fd, buf, at),
            _ => {
                let n = rustix::io::write(&*self.fd, buf)?;
                *expected = match pos {
                    Pos::At(at) => at.saturating_add(n as u64),
                    _ => rustix::fs::tell(&*self.fd).unwrap_or(*expected),
                };
                Ok(n)
            }
        }
    }

    /// One read that does not wait; `AGAIN` where it would.
    fn read_stream(&self, buf: &mut [u8]) -> rustix::io::Result<usize> {
        if self.class == Class::Socket {
            return rustix::net::recv(&*self.fd, buf, RecvFlags::DONTWAIT).map(|(n, _)| n);
        }
        match rustix::io::preadv2(&*self.fd, &mut [IoSliceMut::new(buf)], CURRENT, ReadWriteFlags::NOWAIT) {
            // Terminals, and pipes of older kernels, cannot be asked that way.
            Err(HostErrno::OPNOTSUPP | HostErrno::SPIPE | HostErrno::INVAL | HostErrno::NOSYS) => {
                match ready_now(self.fd.as_fd(), Events::IN) {
                    Ok(ready) if ready.is_empty() => Err(HostErrno::AGAIN),
                    Ok(_) => rustix::io::read(&*self.fd, buf),
                    Err(_) => Err(HostErrno::IO),
                }
            }
            other => other,
        }
    }

    /// One write that does not wait, of a part if need be; `AGAIN` where it would.
    fn write_stream(&self, buf: &[u8]) -> rustix::io::Result<usize> {
        if self.class == Class::Socket {
            return rustix::net::send(&*self.fd, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        match rustix::io::pwritev2(&*self.fd, &[IoSlice::new(buf)], CURRENT, ReadWriteFlags::NOWAIT) {
            Err(HostErrno::OPNOTSUPP | HostErrno::SPIPE | HostErrno::INVAL | HostErrno::NOSYS) => {
                match ready_now(self.fd.as_fd(), Events::OUT) {
                    Ok(ready) if ready.is_empty() => Err(HostErrno::AGAIN),
                    Ok(_) => rustix::io::write(&*self.fd, buf.get(..ATOMIC).unwrap_or(buf)),
                    Err(_) => Err(HostErrno::IO),
                }
            }
            other => other,
        }
    }

    fn answer(&self, io: &IoCtx<'_>, query: Query, arg: u64) -> Result<i64> {
        let answer = ask(self.fd.as_fd(), query).map_err(|e| Errno::from_io(&e))?;
        io.caller.mem().copy_out(arg, answer.get(..query.answer_len()).unwrap_or_default())?;
        Ok(0)
    }
}

impl HostFile {
    /// Sets modes and characters of the caller's terminal, as a program of his may. Speed, size of a character and line
    /// discipline stay: they are the line's own, and a speed of 0 would hang it up.
    fn set_attributes(&self, io: &IoCtx<'_>, arg: u64, flush: bool) -> Result<i64> {
        let mut wanted = [0; size_of::<Termios>()];
        io.caller.mem().copy_in(arg, &mut wanted)?;
        let host = |error: io::Error| Errno::from_io(&error);
        let now = ask(self.fd.as_fd(), Query::Attributes).map_err(host)?;
        let now = now.get(..wanted.len()).and_then(|now| Termios::read_from_bytes(now).ok());
        let (Some(now), Ok(wanted)) = (now, Termios::read_from_bytes(&wanted)) else {
            return Err(Errno::EIO);
        };
        let set = Termios {
            iflag: wanted.iflag & MODE_BITS,
            oflag: wanted.oflag & MODE_BITS,
            lflag: wanted.lflag & MODE_BITS,
            cc: wanted.cc,
            ..now
        };
        if flush {
            flush_input(self.fd.as_fd()).map_err(host)?;
        }
        let bytes = set.as_bytes().try_into().map_err(|_| Errno::EIO)?;
        set_attributes(self.fd.as_fd(), bytes).map_err(host)?;
        Ok(0)
    }
}

impl FileOps for HostFile {
    fn readiness(&self) -> Events {
        let all = Events::READABLE | Events::WRITABLE;
        if self.token.is_none() {
            return all;
        }
        let asked = all | Events::PRI | Events::RDHUP;
        let found = ready_now(self.fd.as_fd(), asked).unwrap_or(Events::ERR);
        let (reads, writes) = (self.flags.reads(), self.flags.writes());
        let mut missing = Events::empty();
        missing.set(Events::IN, reads && !found.contains(Events::IN));
        missing.set(Events::OUT, writes && !found.contains(Events::OUT));
        if !missing.is_empty() && !found.intersects(Events::ALWAYS) {
            self.arm(missing);
        }
        found
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.token.is_some().then_some(&self.queue.0)
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let mut buf = vec![0; dst.remaining().min(CHUNK)];
        if buf.is_empty() {
            return Ok(IoStart::Done(0));
        }
        let got = match (self.class, pos) {
            (Class::Regular, Pos::At(at)) => self.read_regular(&mut buf, at),
            (Class::Regular | Class::Ready, _) => rustix::io::read(&*self.fd, &mut buf),
            _ => match self.read_stream(&mut buf) {
                // What comes before it is armed is reported at once, to whoever waits on the queue by then.
                Err(HostErrno::AGAIN) => return Ok(self.would_block(Events::IN)),
                other => other,
            },
        };
        let got = got.map_err(from_rustix)?;
        dst.write(buf.get(..got).unwrap_or_default()).map(IoStart::Done)
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let mut buf = vec![0; src.remaining().min(CHUNK)];
        let mut done = 0_usize;
        while src.remaining() > 0 {
            let got = match src.clone().read(&mut buf) {
                Ok(got) => got,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            };
            let part = buf.get(..got).unwrap_or_default();
            let at = match pos {
                Pos::At(at) => Pos::At(at.saturating_add(done as u64)),
                other => other,
            };
            let wrote = match self.class {
                Class::Regular => self.write_regular(part, at),
                Class::Ready => rustix::io::write(&*self.fd, part),
                Class::Socket | Class::Stream => self.write_stream(part),
            };
            match wrote {
                Ok(0) => break,
                Ok(n) => done += src.skip(n),
                Err(_) if done > 0 => break,
                Err(HostErrno::AGAIN) => return Ok(self.would_block(Events::OUT)),
                Err(HostErrno::PIPE) => {
                    io.caller.signal_self(libc::SIGPIPE);
                    return Err(Errno::EPIPE);
                }
                Err(e) => return Err(from_rustix(e)),
            }
        }
        Ok(IoStart::Done(done))
    }

    fn seekable(&self) -> bool {
        matches!(self.class, Class::Regular | Class::Ready)
    }

    fn seek(&self, offset: i64, whence: Whence, current: u64, _size: u64) -> Result<u64> {
        if self.class == Class::Ready {
            // As `/dev/null` answers.
            return Ok(0);
        }
        let unsigned = || u64::try_from(offset).map_err(|_| Errno::EINVAL);
        let mut expected = self.expected.lock();
        let to = match whence {
            Whence::Set => SeekFrom::Start(unsigned()?),
            // Where the user and the host agree, the host's offset counts: others may have moved it.
            Whence::Current if current == *expected => SeekFrom::Current(offset),
            Whence::Current => SeekFrom::Start(current.checked_add_signed(offset).ok_or(Errno::EINVAL)?),
            Whence::End => SeekFrom::End(offset),
            Whence::Data => SeekFrom::Data(unsigned().map_err(|_| Errno::ENXIO)?),
            Whence::Hole => SeekFrom::Hole(unsigned().map_err(|_| Errno::ENXIO)?),
        };
        let now = rustix::fs::seek(&*self.fd, to).map_err(from_rustix)?;
        *expected = now;
        Ok(now)
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        match command {
            ioc::FIONREAD if self.class != Class::Ready => self.answer(io, Query::Readable, arg),
            ioc::TCGETS if self.is_terminal => self.answer(io, Query::Attributes, arg),
            ioc::TIOCGWINSZ if self.is_terminal => self.answer(io, Query::WindowSize, arg),
            ioc::TCSETS | ioc::TCSETSW | ioc::TCSETSF if self.is_terminal => {
                self.set_attributes(io, arg, command == ioc::TCSETSF)
            }
            // The terminal is the caller's: nobody else types on it or says how large it is.
            ioc::TIOCSWINSZ | ioc::TIOCSTI if self.is_terminal => Err(Errno::EPERM),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        if self.kind != FileKind::Regular {
            return Err(Errno::ENODEV);
        }
        let st = rustix::fs::fstat(&*self.fd).map_err(from_rustix)?;
        Ok(Arc::new(HostMapping { fd: Arc::clone(&self.fd), identity: (st.st_dev, st.st_ino) }))
    }

    fn attr(&self) -> Option<Result<Attr>> {
        Some(rustix::fs::fstat(&*self.fd).map_err(from_rustix).map(|st| {
            let time = |sec: i64, nsec: u64| Timestamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
            Attr {
                dev: st.st_dev,
                ino: st.st_ino,
                mode: st.st_mode,
                nlink: u32::try_from(st.st_nlink).unwrap_or(u32::MAX),
                uid: self.owner.0,
                gid: self.owner.1,
                rdev: st.st_rdev,
                size: st.st_size.cast_unsigned(),
                blksize: u32::try_from(st.st_blksize).unwrap_or(4096),
                blocks: st.st_blocks.cast_unsigned(),
                atime: time(st.st_atime, st.st_atime_nsec),
                mtime: time(st.st_mtime, st.st_mtime_nsec),
                ctime: time(st.st_ctime, st.st_ctime_nsec),
                btime: None,
            }
        }))
    }

    fn truncate(&self, len: u64) -> Result<()> {
        rustix::fs::ftruncate(&*self.fd, len).map_err(from_rustix)
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        rustix::fs::fallocate(&*self.fd, mode, offset, len).map_err(from_rustix)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        if self.class != Class::Regular {
            return Err(Errno::EINVAL);
        }
        let done = if data_only { rustix::fs::fdatasync(&*self.fd) } else { rustix::fs::fsync(&*self.fd) };
        done.map_err(from_rustix)
    }

    fn link_text(&self) -> Option<String> {
        let ino = rustix::fs::fstat(&*self.fd).map_or(0, |st| st.st_ino);
        Some(match self.kind {
            FileKind::Fifo => format!("pipe:[{ino}]"),
            FileKind::Socket => format!("socket:[{ino}]"),
            FileKind::CharDevice if self.rdev == DEV_NULL => "/dev/null".to_owned(),
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

/// A regular file of the caller to be mapped. The host allows what the descriptor's access mode allows.
struct HostMapping {
    fd: Arc<OwnedFd>,
    identity: (u64, u64),
}

impl Mappable for HostMapping {
    fn pieces(&self, offset: u64, len: u64, _write: bool) -> Result<Vec<MappedPiece>> {
        Ok(vec![MappedPiece { offset, len, fd: Arc::clone(&self.fd), fd_offset: offset, pin: None }])
    }

    fn is_host_file(&self) -> bool {
        true
    }

    fn identity(&self) -> (u64, u64) {
        self.identity
    }

    fn sync(&self, _offset: u64, _len: u64) -> Result<()> {
        rustix::fs::fdatasync(&*self.fd).map_err(from_rustix)
    }
}
