//! Moving bytes: read(2), write(2) and their vectored and positioned kin, lseek(2), sendfile(2),
//! copy_file_range(2).

use std::sync::Arc;

use abi::fs::rwf;
use sentry_base::{Errno, Events, Result, Sleeper, mono_now};
use sentry_kernel::{BlockEnd, Call, CallerMemory, Current, Restart, Stop, SysResult, Task};
use sentry_memory::{IoSeg, UserReader, UserWriter};
use sentry_vfs::watch::event;
use sentry_vfs::{FileDescription, FileKind, FileOps, IoCtx, IoStart, OpenFlags, Pos, Whence, as_dir};

use crate::args::{Bits, Ptr};
use crate::at_hand;
use crate::fs_args::{MAX_RW, cut, segments, total};
use crate::table::syscalls;
use crate::turn::{PIECE, Turn};

syscalls! {
    0 read(fd: i32, buf: Ptr, count: usize) [call];
    1 write(fd: i32, buf: Ptr, count: usize) [call];
    8 lseek(fd: i32, offset: i64, whence: i32) [sync];
    17 pread64(fd: i32, buf: Ptr, count: usize, offset: i64) [call];
    18 pwrite64(fd: i32, buf: Ptr, count: usize, offset: i64) [call];
    19 readv(fd: i32, iov: Ptr, count: usize) [call];
    20 writev(fd: i32, iov: Ptr, count: usize) [call];
    40 sendfile(out_fd: i32, in_fd: i32, offset: Ptr, count: usize) [wait];
    295 preadv(fd: i32, iov: Ptr, count: usize, offset: i64) [call];
    296 pwritev(fd: i32, iov: Ptr, count: usize, offset: i64) [call];
    326 copy_file_range(in_fd: i32, in_offset: Ptr, out_fd: i32, out_offset: Ptr, len: usize, flags: Bits) [wait];
    327 preadv2(fd: i32, iov: Ptr, count: usize, offset: i64, high: u64, flags: i32) [call];
    328 pwritev2(fd: i32, iov: Ptr, count: usize, offset: i64, high: u64, flags: i32) [call];
}

/// One read or write: which file, where, and how.
struct Transfer {
    file: Arc<FileDescription>,
    /// `None` for the file's own position.
    at: Option<u64>,
    flags: OpenFlags,
    /// `RWF_NOAPPEND`
    no_append: bool,
}

fn done(result: Result<usize>) -> Call<'static> {
    Call::Done(result.map(|n| n as u64).map_err(Stop::from))
}

fn one(buf: Ptr, count: usize) -> [IoSeg; 1] {
    [IoSeg { addr: buf.0, len: count.min(MAX_RW) as u64 }]
}

impl Transfer {
    /// A range must not pass the largest offset (`rw_verify_area`).
    fn check_range(&self, len: u64) -> Result<()> {
        match self.at {
            Some(at) if at.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) => {
                Err(Errno::EINVAL)
            }
            _ => Ok(()),
        }
    }

    fn new(cx: &Current, fd: i32, offset: Option<i64>, flags: i32, writing: bool) -> Result<Self> {
        let file = cx.file(fd)?;
        let allowed = if writing { file.flags().writes() } else { file.flags().reads() };
        let at = match offset {
            Some(offset) => {
                let at = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
                if !file.ops().seekable() {
                    return Err(if allowed { Errno::ESPIPE } else { Errno::EBADF });
                }
                Some(at)
            }
            None => None,
        };
        Self::of(file, at, flags, writing)
    }

    fn of(file: Arc<FileDescription>, at: Option<u64>, flags: i32, writing: bool) -> Result<Self> {
        let allowed = if writing { file.flags().writes() } else { file.flags().reads() };
        if !allowed {
            return Err(Errno::EBADF);
        }
        const KNOWN: i32 = rwf::HIPRI | rwf::DSYNC | rwf::SYNC | rwf::NOWAIT | rwf::APPEND | rwf::NOAPPEND;
        if flags & !KNOWN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut status = file.flags();
        if flags & rwf::NOWAIT != 0 {
            status |= OpenFlags::NONBLOCK;
        }
        if flags & rwf::APPEND != 0 {
            status |= OpenFlags::APPEND;
        }
        Ok(Self { file, at, flags: status, no_append: flags & rwf::NOAPPEND != 0 })
    }

    /// Whether a transfer of `len` bytes would keep a worker for long, and can be done in pieces: the file never blocks.
    fn is_long(&self, len: u64) -> bool {
        len > PIECE && self.file.ops().wait_queue().is_none()
    }

    fn blocks(&self) -> bool {
        !self.flags.contains(OpenFlags::NONBLOCK) && self.file.ops().wait_queue().is_some()
    }

    fn read_once(&self, task: &Task, dst: &mut UserWriter<'_>) -> Result<IoStart<usize>> {
        let start = self.read_quietly(task, dst)?;
        if let IoStart::Done(n) = start {
            task.io().add_read(n as u64);
        }
        self.notify(&start, event::ACCESS);
        Ok(start)
    }

    fn write_once(&self, task: &Task, src: &mut UserReader<'_>) -> Result<IoStart<usize>> {
        let start = self.write_quietly(task, src)?;
        if let IoStart::Done(n) = start {
            task.io().add_written(n as u64);
        }
        self.notify(&start, event::MODIFY);
        Ok(start)
    }

    fn notify(&self, start: &IoStart<usize>, mask: u32) {
        if let (IoStart::Done(1..), Some(at)) = (start, self.file.location()) {
            at.notify(mask);
        }
    }

    fn read_quietly(&self, task: &Task, dst: &mut UserWriter<'_>) -> Result<IoStart<usize>> {
        let io = IoCtx { caller: task, flags: self.flags };
        let ops = self.file.ops();
        match self.at {
            Some(at) => ops.try_read(&io, dst, Pos::At(at)),
            None if !ops.seekable() => ops.try_read(&io, dst, Pos::Stream),
            None => {
                let mut position = self.file.position().lock();
                let start = ops.try_read(&io, dst, Pos::At(*position))?;
                if let IoStart::Done(n) = start {
                    *position += n as u64;
                }
                Ok(start)
            }
        }
    }

    fn write_quietly(&self, task: &Task, src: &mut UserReader<'_>) -> Result<IoStart<usize>> {
        let io = IoCtx { caller: task, flags: self.flags };
        let ops = self.file.ops();
        if !ops.seekable() {
            return ops.try_write(&io, src, Pos::Stream);
        }
        let append = self.flags.contains(OpenFlags::APPEND) && !self.no_append;
        match self.at {
            Some(_) if append => ops.try_write(&io, src, Pos::Append),
            Some(at) => ops.try_write(&io, src, Pos::At(at)),
            None => {
                let mut position = self.file.position().lock();
                let pos = if append { Pos::Append } else { Pos::At(*position) };
                let start = ops.try_write(&io, src, pos)?;
                if let IoStart::Done(n) = start {
                    *position = if append { self.file.attr()?.size } else { *position + n as u64 };
                }
                Ok(start)
            }
        }
    }

    /// How many of `len` bytes [`size_limit`] lets a write have.
    fn size_limit(&self, task: &Task, len: u64) -> Result<u64> {
        if task.rlimit(libc::RLIMIT_FSIZE) == u64::MAX {
            return Ok(len);
        }
        let start = match self.at {
            _ if self.flags.contains(OpenFlags::APPEND) => self.file.attr()?.size,
            Some(at) => at,
            None => *self.file.position().lock(),
        };
        size_limit(task, &self.file, start, len)
    }

    /// Writes the bytes that the limit lets it have.
    fn write_limited(&self, task: &Task, bytes: &[u8]) -> Result<IoStart<usize>> {
        let allowed = usize::try_from(self.size_limit(task, bytes.len() as u64)?).unwrap_or(usize::MAX);
        let bytes = bytes.get(..allowed).unwrap_or(bytes);
        self.write_once(task, &mut UserReader::buffer(bytes))
    }
}

/// How many of `len` bytes `RLIMIT_FSIZE` lets a write to a regular file have from `start` on: `EFBIG` and SIGXFSZ for
/// none (`generic_write_check_limits`).
pub(crate) fn size_limit(task: &Task, file: &FileDescription, start: u64, len: u64) -> Result<u64> {
    let limit = task.rlimit(libc::RLIMIT_FSIZE);
    let counts = || file.inode().is_some_and(|inode| inode.kind() == FileKind::Regular);
    if limit == u64::MAX || len == 0 || !counts() {
        return Ok(len);
    }
    if start >= limit {
        sentry_vfs::Caller::signal_self(task, libc::SIGXFSZ);
        return Err(Errno::EFBIG);
    }
    Ok(len.min(limit - start))
}

/// A read: answered at once if it can be.
fn read_call<'a>(cx: &'a mut Current, transfer: Result<Transfer>, segs: Result<&[IoSeg]>) -> Call<'a> {
    let (transfer, segs) = match (transfer, segs) {
        (Ok(transfer), Ok(segs)) => (transfer, segs),
        (Err(e), _) | (_, Err(e)) => return done(Err(e)),
    };
    if let Err(e) = transfer.check_range(total(segs)) {
        return done(Err(e));
    }
    cx.task.io().count_read();
    if transfer.is_long(total(segs)) {
        return Call::Wait(Box::pin(in_pieces(
            cx,
            transfer,
            segs.to_vec(),
            |transfer, task, memory, segs| transfer.read_once(task, &mut UserWriter::user(memory, segs)),
        )));
    }
    let memory = cx.memory();
    match transfer.read_once(&cx.task, &mut UserWriter::user(&memory, segs)) {
        Ok(IoStart::Done(n)) => done(Ok(n)),
        Ok(IoStart::WouldBlock) if transfer.blocks() => {
            let segs = segs.to_vec();
            Call::Wait(Box::pin(read_waiting(cx, transfer, segs)))
        }
        Ok(IoStart::WouldBlock) => done(Err(Errno::EAGAIN)),
        Err(e) => done(Err(e)),
    }
}

/// A read or a write of some segments.
type Once = fn(&Transfer, &Task, &CallerMemory, &[IoSeg]) -> Result<IoStart<usize>>;

/// Moves much, a piece at a time: other tasks have their turn in between. A signal ends it for a device, and for a file
/// one that kills (`read_iter_zero`, `generic_perform_write`). A task that shares the position may have its turn as well.
async fn in_pieces(cx: &mut Current, mut transfer: Transfer, segs: Vec<IoSeg>, once: Once) -> SysResult {
    let len = total(&segs);
    let mut moved = 0;
    let mut turn = Turn::new();
    let device = transfer.kind() == FileKind::CharDevice;
    let ends = |sleeper: &Sleeper| sleeper.is_killed() || (device && sleeper.is_interrupted());
    while moved < len && !(moved > 0 && ends(cx.sleeper())) {
        turn.took(moved).await;
        let piece = cut(&segs, moved, PIECE.min(len - moved));
        let n = match once(&transfer, &cx.task, &cx.memory(), &piece) {
            Ok(IoStart::Done(n)) => n as u64,
            Ok(IoStart::WouldBlock) if moved == 0 => return Err(Errno::EAGAIN.into()),
            Err(errno) if moved == 0 => return Err(errno.into()),
            Ok(IoStart::WouldBlock) | Err(_) => break,
        };
        moved += n;
        if let Some(at) = &mut transfer.at {
            *at += n;
        }
        if n < total(&piece) {
            break;
        }
    }
    Ok(moved)
}

async fn read_waiting(cx: &mut Current, transfer: Transfer, segs: Vec<IoSeg>) -> SysResult {
    let task = Arc::clone(&cx.task);
    let memory = cx.memory();
    loop {
        let ops = transfer.file.ops();
        let Some(queue) = ops.wait_queue() else { return Err(Errno::EAGAIN.into()) };
        let limit = ops.wait_limit(false);
        let deadline = limit.map(|l| mono_now().saturating_add(l.ns));
        let mask = Events::READABLE | Events::PRI | Events::RDHUP;
        let stamp = ops.wait_stamp();
        let mut anew = false;
        let attempt = |_: &Task| {
            let start = transfer.read_once(&task, &mut UserWriter::user(&memory, &segs))?;
            if matches!(start, IoStart::WouldBlock) && ops.wait_stamp() != stamp {
                anew = true;
                return Err(Errno::EAGAIN);
            }
            Ok(start)
        };
        let end = cx.block_on(queue, mask, deadline, attempt).await;
        match end {
            Ok(n) => return Ok(n as u64),
            Err(BlockEnd::Errno(_)) if anew => {}
            Err(BlockEnd::TimedOut) => {
                if let IoStart::Done(n) = transfer.read_once(&task, &mut UserWriter::user(&memory, &segs))? {
                    return Ok(n as u64);
                }
                if let Some(limit) = limit {
                    return limit.then.map(|n| n as u64).map_err(Stop::from);
                }
            }
            // A socket with a timeout does not restart (`sock_intr_errno`), a terminal with one does.
            Err(BlockEnd::Interrupted) if limit.is_some_and(|limit| limit.then.is_err()) => {
                return Err(Errno::EINTR.into());
            }
            Err(end) => return Err(end.or_restart(Restart::Sys)),
        }
    }
}

/// A write: answered at once if it can be. A file that takes bytes as they fit gets all of them unless it is
/// non-blocking.
fn write_call<'a>(cx: &'a mut Current, transfer: Result<Transfer>, segs: Result<&[IoSeg]>) -> Call<'a> {
    let (transfer, mut segs) = match (transfer, segs) {
        (Ok(transfer), Ok(segs)) => (transfer, segs),
        (Err(e), _) | (_, Err(e)) => return done(Err(e)),
    };
    let task = &*cx.task;
    let len = total(segs);
    if let Err(e) = transfer.check_range(len) {
        return done(Err(e));
    }
    task.io().count_write();
    let allowed = match transfer.size_limit(task, len) {
        Ok(allowed) => allowed,
        Err(e) => return done(Err(e)),
    };
    if transfer.is_long(allowed) && !transfer.flags.contains(OpenFlags::APPEND) {
        let segs = cut(segs, 0, allowed);
        return Call::Wait(Box::pin(in_pieces(cx, transfer, segs, |transfer, task, _, segs| {
            transfer.write_once(task, &mut UserReader::user(task, segs))
        })));
    }
    let shorter;
    if allowed < len {
        shorter = cut(segs, 0, allowed);
        segs = &shorter;
    }
    // What the trap carried along needs no copy from the application.
    let staged = match segs {
        [seg] => usize::try_from(seg.len).ok().and_then(|n| cx.context.staged(seg.addr)?.get(..n)),
        _ => None,
    };
    let mut src = staged.map_or_else(|| UserReader::user(task, segs), UserReader::buffer);
    match transfer.write_once(task, &mut src) {
        Ok(IoStart::Done(n)) if !transfer.is_partial(n, allowed) => done(Ok(n)),
        Ok(start) if transfer.blocks() => {
            let moved = if let IoStart::Done(n) = start { n } else { 0 };
            let segs = segs.to_vec();
            Call::Wait(Box::pin(write_waiting(cx, transfer, segs, moved as u64)))
        }
        Ok(IoStart::Done(n)) => done(Ok(n)),
        Ok(IoStart::WouldBlock) => done(Err(Errno::EAGAIN)),
        Err(e) => done(Err(e)),
    }
}

impl Transfer {
    fn kind(&self) -> FileKind {
        self.file.inode().map_or_else(|| self.file.ops().kind(), |inode| inode.kind())
    }

    /// Whether a write of `len` bytes that moved `n` goes on.
    fn is_partial(&self, n: usize, len: u64) -> bool {
        (n as u64) < len
            && n > 0
            && matches!(self.kind(), FileKind::Fifo | FileKind::Socket | FileKind::CharDevice)
    }
}

async fn write_waiting(cx: &mut Current, transfer: Transfer, segs: Vec<IoSeg>, moved: u64) -> SysResult {
    let task = Arc::clone(&cx.task);
    let len = total(&segs);
    let mut moved = moved;
    loop {
        let ops = transfer.file.ops();
        let Some(queue) = ops.wait_queue() else { return Err(Errno::EAGAIN.into()) };
        let limit = ops.wait_limit(true);
        let deadline = limit.map(|l| mono_now().saturating_add(l.ns));
        let rest = cut(&segs, moved, u64::MAX);
        let attempt = |_: &Task| transfer.write_once(&task, &mut UserReader::user(&*task, &rest));
        let end = match cx.block_on(queue, Events::WRITABLE, deadline, attempt).await {
            Ok(n) => {
                moved += n as u64;
                if !transfer.is_partial(n, len - (moved - n as u64)) {
                    return Ok(moved);
                }
                continue;
            }
            Err(end) => end,
        };
        if moved > 0 {
            return Ok(moved);
        }
        return match end {
            BlockEnd::TimedOut => match limit {
                Some(limit) => limit.then.map(|n| n as u64).map_err(Stop::from),
                None => continue,
            },
            BlockEnd::Interrupted if limit.is_some() => Err(Errno::EINTR.into()),
            end => Err(end.or_restart(Restart::Sys)),
        };
    }
}

/// A transfer that was asked for by other means than a call of its own (`io_submit(2)`).
pub(crate) struct Queued {
    transfer: Transfer,
    segs: Vec<IoSeg>,
    writing: bool,
}

impl Queued {
    /// `at` does not matter to a file without a position. Fails as the submission does: `EBADF`, `EINVAL` and
    /// `EOPNOTSUPP` for what cannot be tried.
    pub fn new(
        file: Arc<FileDescription>,
        at: u64,
        flags: i32,
        segs: Vec<IoSeg>,
        writing: bool,
    ) -> Result<Self> {
        let at = file.ops().seekable().then_some(at);
        let transfer = Transfer::of(file, at, flags, writing)?;
        transfer.check_range(total(&segs))?;
        if as_dir(transfer.file.ops()).is_some() {
            return Err(Errno::EINVAL);
        }
        Ok(Self { transfer, segs, writing })
    }

    pub async fn run(self, cx: &mut Current) -> SysResult {
        let call = if self.writing {
            write_call(cx, Ok(self.transfer), Ok(&self.segs))
        } else {
            read_call(cx, Ok(self.transfer), Ok(&self.segs))
        };
        match call {
            Call::Done(result) => result,
            Call::Wait(future) => future.await,
        }
    }
}

fn read(cx: &mut Current, fd: i32, buf: Ptr, count: usize) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, None, 0, false);
    read_call(cx, transfer, Ok(&one(buf, count)))
}

fn write(cx: &mut Current, fd: i32, buf: Ptr, count: usize) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, None, 0, true);
    write_call(cx, transfer, Ok(&one(buf, count)))
}

fn pread64(cx: &mut Current, fd: i32, buf: Ptr, count: usize, offset: i64) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, Some(offset), 0, false);
    read_call(cx, transfer, Ok(&one(buf, count)))
}

fn pwrite64(cx: &mut Current, fd: i32, buf: Ptr, count: usize, offset: i64) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, Some(offset), 0, true);
    write_call(cx, transfer, Ok(&one(buf, count)))
}

fn vectored(cx: &mut Current, transfer: Result<Transfer>, iov: Ptr, count: usize, writing: bool) -> Call<'_> {
    let segs = segments(cx, iov, count);
    let segs = segs.as_deref().map_err(|e| *e);
    if writing { write_call(cx, transfer, segs) } else { read_call(cx, transfer, segs) }
}

fn readv(cx: &mut Current, fd: i32, iov: Ptr, count: usize) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, None, 0, false);
    vectored(cx, transfer, iov, count, false)
}

fn writev(cx: &mut Current, fd: i32, iov: Ptr, count: usize) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, None, 0, true);
    vectored(cx, transfer, iov, count, true)
}

fn preadv(cx: &mut Current, fd: i32, iov: Ptr, count: usize, offset: i64) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, Some(offset), 0, false);
    vectored(cx, transfer, iov, count, false)
}

fn pwritev(cx: &mut Current, fd: i32, iov: Ptr, count: usize, offset: i64) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, Some(offset), 0, true);
    vectored(cx, transfer, iov, count, true)
}

fn preadv2(
    cx: &mut Current,
    fd: i32,
    iov: Ptr,
    count: usize,
    offset: i64,
    _high: u64,
    flags: i32,
) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, (offset != -1).then_some(offset), flags, false);
    vectored(cx, transfer, iov, count, false)
}

fn pwritev2(
    cx: &mut Current,
    fd: i32,
    iov: Ptr,
    count: usize,
    offset: i64,
    _high: u64,
    flags: i32,
) -> Call<'_> {
    let transfer = Transfer::new(cx, fd, (offset != -1).then_some(offset), flags, true);
    vectored(cx, transfer, iov, count, true)
}

fn lseek(cx: &mut Current, fd: i32, offset: i64, whence: i32) -> Result<u64> {
    let file = cx.file(fd)?;
    let whence = match whence {
        libc::SEEK_SET => Whence::Set,
        libc::SEEK_CUR => Whence::Current,
        libc::SEEK_END => Whence::End,
        libc::SEEK_DATA => Whence::Data,
        libc::SEEK_HOLE => Whence::Hole,
        _ => return Err(Errno::EINVAL),
    };
    if !file.ops().seekable() {
        return Err(Errno::ESPIPE);
    }
    let needs_size = matches!(whence, Whence::End | Whence::Data | Whence::Hole);
    let size = if needs_size && as_dir(file.ops()).is_none() { file.attr()?.size } else { 0 };
    let now = {
        let mut position = file.position().lock();
        *position = file.ops().seek(offset, whence, *position, size)?;
        *position
    };
    at_hand::offer_moved(cx, fd, &file, now);
    Ok(now)
}

/// The piece that a copy between files goes through.
const COPY_PIECE: usize = 64 * 1024;

/// Reads a piece of `file` at `at` (its own position where `None`) without moving the position.
fn peek(task: &Task, file: &FileDescription, at: u64, buf: &mut [u8]) -> Result<IoStart<usize>> {
    let io = IoCtx { caller: task, flags: file.flags() };
    let pos = if file.ops().seekable() { Pos::At(at) } else { Pos::Stream };
    file.ops().try_read(&io, &mut UserWriter::buffer(buf), pos)
}

async fn sendfile(cx: &mut Current, out_fd: i32, in_fd: i32, offset: Ptr, count: usize) -> SysResult {
    let (input, output) = (cx.file(in_fd)?, cx.file(out_fd)?);
    if !input.flags().reads() || !output.flags().writes() {
        return Err(Errno::EBADF.into());
    }
    if output.flags().contains(OpenFlags::APPEND) {
        return Err(Errno::EINVAL.into());
    }
    if !offset.is_null() && !input.ops().seekable() {
        return Err(Errno::ESPIPE.into());
    }
    if as_dir(input.ops()).is_some() {
        return Err(Errno::EINVAL.into());
    }
    if count > 0
        && let Some(moved) = crate::sys_pipe::send_to_pipe(cx, &input, &output, offset, count).await
    {
        return moved;
    }
    // What is read goes through a pipe of the kernel's own: a stream would lose what the output does not take.
    if !input.ops().seekable() {
        return Err(Errno::EINVAL.into());
    }
    let own_position = offset.is_null();
    let mut at = if own_position {
        *input.position().lock()
    } else {
        let at: i64 = cx.read_obj(offset.0)?;
        u64::try_from(at).map_err(|_| Errno::EINVAL)?
    };
    let task = Arc::clone(&cx.task);
    let out = Transfer { flags: output.flags(), file: Arc::clone(&output), at: None, no_append: false };
    let mut left = count.min(MAX_RW);
    let mut sent = 0_u64;
    let mut piece = vec![0; left.min(COPY_PIECE)];
    let mut turn = Turn::new();
    let result = 'copy: loop {
        // A signal ends it between two pieces (`splice_from_pipe_next`).
        if left == 0 || (sent > 0 && cx.sleeper().is_interrupted()) {
            break Ok(());
        }
        turn.took(sent).await;
        let part = piece.get_mut(..left.min(COPY_PIECE)).unwrap_or_default();
        let got = match peek(&task, &input, at, part) {
            Ok(IoStart::Done(0)) => break Ok(()),
            Ok(IoStart::Done(n)) => n,
            Ok(IoStart::WouldBlock) => break Err(Stop::from(Errno::EAGAIN)),
            Err(e) => break Err(e.into()),
        };
        let mut written = 0;
        while written < got {
            let bytes = part.get(written..got).unwrap_or_default();
            let start = match out.write_limited(&task, bytes) {
                Ok(IoStart::WouldBlock) if out.blocks() => {
                    let Some(queue) = output.ops().wait_queue() else { break 'copy Ok(()) };
                    let attempt = |_: &Task| out.write_limited(&task, bytes);
                    match cx.block_on(queue, Events::WRITABLE, None, attempt).await {
                        Ok(n) => n,
                        Err(end) => break 'copy Err(end.or_restart(Restart::Sys)),
                    }
                }
                Ok(IoStart::WouldBlock) => break 'copy Err(Errno::EAGAIN.into()),
                Ok(IoStart::Done(n)) => n,
                Err(e) => break 'copy Err(e.into()),
            };
            if start == 0 {
                break 'copy Ok(());
            }
            written += start;
            at += start as u64;
            sent += start as u64;
            left -= start;
        }
    };
    if own_position {
        *input.position().lock() = at;
    } else {
        cx.write_obj(offset.0, &at)?;
    }
    match result {
        Err(e) if sent == 0 => Err(e),
        _ => Ok(sent),
    }
}

/// An offset argument: the pointed-to one or the file's position.
fn copy_offset(cx: &Current, file: &FileDescription, at: Ptr) -> Result<u64> {
    if at.is_null() {
        return Ok(*file.position().lock());
    }
    u64::try_from(cx.read_obj::<i64>(at.0)?).map_err(|_| Errno::EINVAL)
}

async fn copy_file_range(
    cx: &mut Current,
    in_fd: i32,
    in_offset: Ptr,
    out_fd: i32,
    out_offset: Ptr,
    len: usize,
    flags: Bits,
) -> Result<u64> {
    let (input, output) = (cx.file(in_fd)?, cx.file(out_fd)?);
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    if !input.flags().reads() || !output.flags().writes() || output.flags().contains(OpenFlags::APPEND) {
        return Err(Errno::EBADF);
    }
    for file in [&input, &output] {
        match file.inode().map(|i| i.kind()) {
            Some(FileKind::Directory) => return Err(Errno::EISDIR),
            Some(FileKind::Regular) => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    let (from, to) = (copy_offset(cx, &input, in_offset)?, copy_offset(cx, &output, out_offset)?);
    let left = usize::try_from(input.attr()?.size.saturating_sub(from)).unwrap_or(usize::MAX);
    let len = len.min(MAX_RW).min(left);
    let same = input.inode().zip(output.inode()).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
    if same && from < to.saturating_add(len as u64) && to < from.saturating_add(len as u64) {
        return Err(Errno::EINVAL);
    }
    let task = Arc::clone(&cx.task);
    let mut piece = vec![0; len.min(COPY_PIECE)];
    let mut moved = 0;
    let mut turn = Turn::new();
    while moved < len && !(moved > 0 && cx.sleeper().is_interrupted()) {
        turn.took(moved as u64).await;
        let part = piece.get_mut(..(len - moved).min(COPY_PIECE)).unwrap_or_default();
        let IoStart::Done(got) = peek(&task, &input, from + moved as u64, part)? else { break };
        if got == 0 {
            break;
        }
        let out = Transfer {
            flags: output.flags(),
            file: Arc::clone(&output),
            at: Some(to + moved as u64),
            no_append: true,
        };
        match out.write_limited(&task, part.get(..got).unwrap_or_default()) {
            Ok(IoStart::Done(n)) => {
                moved += n;
                if n < got {
                    break;
                }
            }
            Ok(IoStart::WouldBlock) => break,
            Err(e) if moved == 0 => return Err(e),
            Err(_) => break,
        }
    }
    for (file, at, start) in [(&input, in_offset, from), (&output, out_offset, to)] {
        let end = start + moved as u64;
        if at.is_null() {
            *file.position().lock() = end;
        } else {
            cx.write_obj(at.0, &end)?;
        }
    }
    Ok(moved as u64)
}

/// Bytes that a read of a regular file would find (`FIONREAD`).
pub(crate) fn readable_bytes(file: &FileDescription, ops: &Arc<dyn FileOps>) -> Option<i64> {
    let inode = file.inode().filter(|i| i.kind() == FileKind::Regular)?;
    if !ops.seekable() {
        return None;
    }
    let size = inode.attr().ok()?.size.cast_signed();
    Some(size - file.position().lock().cast_signed())
}
