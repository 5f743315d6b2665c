//! Native asynchronous I/O: io_setup(2), io_submit(2), io_getevents(2), io_cancel(2), io_destroy(2).
//!
//! Transfers and syncs are done before `io_submit` returns, as on Linux for files that are not opened with `O_DIRECT`.

use std::sync::Arc;

use abi::aio::{FLAG_IOPRIO, FLAG_RESFD, IoEvent, Iocb, KEY_OFFSET, KIOCB_KEY, cmd};
use abi::time::Timespec;
use fs_event::EventFd;
use platform::AddrRange;
use sentry_base::{Errno, Events, Result, mono_now};
use sentry_kernel::aio::{self, AioContext, AioRequest, Bell};
use sentry_kernel::{BlockEnd, Current, Restart, Stop, SysResult, Task};
use sentry_memory::{IoSeg, UserMemory};
use sentry_mm::{MmapArgs, map_flags};
use sentry_vfs::{FileDescription, IoStart, cap};
use zerocopy::{FromBytes, IntoBytes};

use crate::args::Ptr;
use crate::fs_args::{MAX_RW, segments};
use crate::sys_epoll::read_mask;
use crate::sys_io::Queued;
use crate::table::syscalls;

syscalls! {
    206 io_setup(requests: u32, ctxp: Ptr) [sync];
    207 io_destroy(ctx: u64) [sync];
    208 io_getevents(ctx: u64, min: i64, max: i64, events: Ptr, timeout: Ptr) [wait];
    209 io_submit(ctx: u64, count: i64, iocbs: Ptr) [wait, "transfers are done before it returns"];
    210 io_cancel(ctx: u64, iocb: Ptr, result: Ptr) [sync, "polls alone can be cancelled, as on Linux"];
    333 io_pgetevents(ctx: u64, min: i64, max: i64, events: Ptr, timeout: Ptr, mask: Ptr) [wait];
}

const PROT_READ_WRITE: u32 = 3;
/// The end of user memory (`TASK_SIZE_MAX`).
const USER_END: u64 = 0x7fff_ffff_f000;
/// Completions that are copied at once.
const PIECE: usize = 64;

fn io_setup(cx: &mut Current, requests: u32, ctxp: Ptr) -> Result<()> {
    let old: u64 = cx.read_obj(ctxp.0)?;
    if old != 0 || requests == 0 {
        return Err(Errno::EINVAL);
    }
    let kernel = Arc::clone(cx.kernel());
    let (len, slots) = aio::context_size(requests, kernel.nr_cpus())?;
    let mm = cx.mm();
    let flags = map_flags::PRIVATE | map_flags::ANONYMOUS;
    let args = MmapArgs { addr: 0, len, prot: PROT_READ_WRITE, flags, file: None };
    let start = mm.mmap(&args, &cx.mm_limits())?;
    let mapping = AddrRange { start, end: start + len };
    if let Err(errno) = aio::add(&mm, mapping, requests, slots, kernel.aio(), kernel.executor()) {
        mm.munmap(start, len)?;
        return Err(errno);
    }
    // To the application's memory now: a result that does not arrive is no context.
    if let Err(errno) = cx.task.copy_out(ctxp.0, start.as_bytes()) {
        io_destroy(cx, start)?;
        return Err(errno);
    }
    Ok(())
}

fn io_destroy(cx: &mut Current, ctx: u64) -> Result<()> {
    let mm = cx.mm();
    let range = aio::remove(&mm, ctx)?.mapping();
    mm.munmap(range.start, range.len())
}

/// An eventfd that is told of completions.
struct EventBell(Arc<FileDescription>);

impl Bell for EventBell {
    fn ring(&self) {
        if let Some(eventfd) = self.0.ops().as_any().downcast_ref::<EventFd>() {
            eventfd.signal();
        }
    }
}

fn bell(cx: &Current, iocb: &Iocb) -> Result<Option<Arc<dyn Bell>>> {
    if iocb.flags & FLAG_RESFD == 0 {
        return Ok(None);
    }
    let file = cx.file(iocb.resfd.cast_signed())?;
    if !file.ops().as_any().is::<EventFd>() {
        return Err(Errno::EINVAL);
    }
    Ok(Some(Arc::new(EventBell(file))))
}

async fn io_submit(cx: &mut Current, ctx: u64, count: i64, iocbs: Ptr) -> SysResult {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    let context = aio::find(&cx.mm(), ctx)?;
    let mut done = 0;
    for index in 0..count.min(context.slots()) as u64 {
        let result = match cx.read_obj::<u64>(iocbs.0.wrapping_add(index * 8)) {
            Ok(at) => submit(cx, &context, at).await,
            Err(errno) => Err(errno),
        };
        match result {
            Ok(()) => done += 1,
            Err(errno) if done == 0 => return Err(errno.into()),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// One request (`io_submit_one`). An error is one of its submission; how it ended is in its completion.
async fn submit(cx: &mut Current, context: &Arc<AioContext>, at: u64) -> Result<()> {
    let iocb: Iocb = cx.read_obj(at)?;
    if iocb.reserved2 != 0 || i64::try_from(iocb.nbytes).is_err() {
        return Err(Errno::EINVAL);
    }
    context.reserve()?;
    let result = start(cx, context, at, &iocb).await;
    if result.is_err() {
        context.release();
    }
    result
}

async fn start(cx: &mut Current, context: &Arc<AioContext>, at: u64, iocb: &Iocb) -> Result<()> {
    let file = cx.file(iocb.fd.cast_signed())?;
    let bell = bell(cx, iocb)?;
    cx.task.copy_out(at.wrapping_add(KEY_OFFSET), KIOCB_KEY.as_bytes())?;
    let request = AioRequest { data: iocb.data, obj: at, bell };
    let result = match iocb.opcode {
        cmd::PREAD | cmd::PWRITE | cmd::PREADV | cmd::PWRITEV => transfer(cx, file, iocb)?.run(cx).await,
        cmd::FSYNC | cmd::FDSYNC => {
            if iocb.buf != 0 || iocb.offset != 0 || iocb.nbytes != 0 || iocb.rw_flags != 0 {
                return Err(Errno::EINVAL);
            }
            match file.ops().sync(iocb.opcode == cmd::FDSYNC) {
                // A file that cannot be synced.
                Err(Errno::EINVAL) => return Err(Errno::EINVAL),
                other => other.map(|()| 0).map_err(Stop::from),
            }
        }
        cmd::POLL => {
            let events = u16::try_from(iocb.buf).map_err(|_| Errno::EINVAL)?;
            if iocb.offset != 0 || iocb.nbytes != 0 || iocb.rw_flags != 0 {
                return Err(Errno::EINVAL);
            }
            context.poll(request, file, Events::from_bits_truncate(u32::from(events)));
            return Ok(());
        }
        _ => return Err(Errno::EINVAL),
    };
    // Whoever sees the completion sees what was read.
    let settled = cx.settle_memory();
    let negative = |errno: Errno| -i64::from(errno.raw());
    let res = match result {
        Ok(_) if !settled => negative(Errno::EFAULT),
        Ok(moved) => moved.cast_signed(),
        Err(Stop::Errno(errno)) => negative(errno),
        Err(_) => negative(Errno::EINTR),
    };
    context.complete(&request, res);
    Ok(())
}

/// What a read or a write is about (`aio_prep_rw`, `aio_setup_rw`).
fn transfer(cx: &Current, file: Arc<FileDescription>, iocb: &Iocb) -> Result<Queued> {
    if iocb.flags & FLAG_IOPRIO != 0 {
        check_priority(cx, iocb.reqprio)?;
    }
    let writing = matches!(iocb.opcode, cmd::PWRITE | cmd::PWRITEV);
    let segs = if matches!(iocb.opcode, cmd::PREADV | cmd::PWRITEV) {
        segments(cx, Ptr(iocb.buf), usize::try_from(iocb.nbytes).map_err(|_| Errno::EINVAL)?)?
    } else {
        let len = iocb.nbytes.min(MAX_RW as u64);
        if iocb.buf.checked_add(len).is_none_or(|end| end > USER_END) {
            return Err(Errno::EFAULT);
        }
        vec![IoSeg { addr: iocb.buf, len }]
    };
    let offset = u64::try_from(iocb.offset).map_err(|_| Errno::EINVAL)?;
    Queued::new(file, offset, iocb.rw_flags, segs, writing)
}

/// `ioprio_check_cap`
fn check_priority(cx: &Current, priority: u16) -> Result<()> {
    match (priority >> 13, priority & 0x1fff) {
        (0, 0) | (2, 0..=7) | (3, _) => Ok(()),
        (1, 0..=7) if cx.creds().has_cap(cap::SYS_ADMIN) || cx.creds().has_cap(cap::SYS_NICE) => Ok(()),
        (1, 0..=7) => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

fn io_cancel(cx: &mut Current, ctx: u64, iocb: Ptr, _result: Ptr) -> Result<()> {
    let key: u32 = cx.read_obj(iocb.0.wrapping_add(KEY_OFFSET))?;
    if key != KIOCB_KEY {
        return Err(Errno::EINVAL);
    }
    let context = aio::find(&cx.mm(), ctx)?;
    // The completion comes the usual way.
    if context.cancel(iocb.0) { Err(Errno::EINPROGRESS) } else { Err(Errno::EINVAL) }
}

/// Fetching completions.
struct Fetch {
    context: Arc<AioContext>,
    min: usize,
    max: usize,
    at: u64,
    got: usize,
}

impl Fetch {
    fn new(cx: &Current, ctx: u64, min: i64, max: i64, at: Ptr) -> Result<Self> {
        let context = aio::find(&cx.mm(), ctx)?;
        if min > max {
            return Err(Errno::EINVAL);
        }
        let min = usize::try_from(min).map_err(|_| Errno::EINVAL)?;
        let max = usize::try_from(max).map_err(|_| Errno::EINVAL)?;
        Ok(Self { context, min, max, at: at.0, got: 0 })
    }

    /// Copies what is there; says whether it is enough. An error counts only where nothing was copied.
    fn take(&mut self, task: &Task) -> Result<bool> {
        while self.got < self.max {
            let events = match self.context.take((self.max - self.got).min(PIECE)) {
                Ok(events) => events,
                Err(errno) => return self.enough_or(errno),
            };
            if events.is_empty() {
                break;
            }
            let at = self.at.wrapping_add((self.got * size_of::<IoEvent>()) as u64);
            if let Err(errno) = task.copy_out(at, events.as_bytes()) {
                self.context.untake(events);
                return self.enough_or(errno);
            }
            self.got += events.len();
        }
        Ok(self.got >= self.min)
    }

    fn enough_or(&self, errno: Errno) -> Result<bool> {
        if self.got > 0 { Ok(true) } else { Err(errno) }
    }

    /// Fetches until there are enough, `timeout` is over or a signal comes.
    async fn run(mut self, cx: &mut Current, timeout: Option<u64>) -> Result<usize, BlockEnd> {
        let enough = self.take(&cx.task)?;
        if enough || timeout == Some(0) {
            return Ok(self.got);
        }
        let deadline = timeout.map(|ns| mono_now().saturating_add(ns));
        let context = Arc::clone(&self.context);
        let attempt =
            |task: &Task| Ok(if self.take(task)? { IoStart::Done(()) } else { IoStart::WouldBlock });
        match cx.block_on(context.queue(), Events::IN, deadline, attempt).await {
            Ok(()) | Err(BlockEnd::TimedOut) => Ok(self.got),
            Err(_) if self.got > 0 => Ok(self.got),
            Err(end) => Err(end),
        }
    }
}

/// Nanoseconds; `None` for no limit, which for Linux a negative time is too.
fn read_timeout(cx: &Current, at: Ptr) -> Result<Option<u64>> {
    if at.is_null() {
        return Ok(None);
    }
    let time: Timespec = cx.read_obj(at.0)?;
    let ns = i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    Ok(u64::try_from(ns).ok())
}

async fn io_getevents(
    cx: &mut Current,
    ctx: u64,
    min: i64,
    max: i64,
    events: Ptr,
    timeout: Ptr,
) -> SysResult<usize> {
    let timeout = read_timeout(cx, timeout)?;
    let fetch = Fetch::new(cx, ctx, min, max, events)?;
    fetch.run(cx, timeout).await.map_err(|end| match end {
        BlockEnd::Interrupted => Errno::EINTR.into(),
        end => end.or_restart(Restart::Sys),
    })
}

/// The sixth argument of `io_pgetevents`: a mask and its size (`struct __aio_sigset`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct MaskArg {
    mask: u64,
    size: u64,
}

async fn io_pgetevents(
    cx: &mut Current,
    ctx: u64,
    min: i64,
    max: i64,
    events: Ptr,
    timeout: Ptr,
    mask: Ptr,
) -> SysResult<usize> {
    let timeout = read_timeout(cx, timeout)?;
    if !mask.is_null() {
        let arg: MaskArg = cx.read_obj(mask.0)?;
        let size = usize::try_from(arg.size).map_err(|_| Errno::EINVAL)?;
        if let Some(mask) = read_mask(cx, Ptr(arg.mask), size)? {
            cx.set_temporary_mask(mask);
        }
    }
    let fetch = Fetch::new(cx, ctx, min, max, events)?;
    fetch.run(cx, timeout).await.map_err(|end| end.or_restart(Restart::NoHand))
}
