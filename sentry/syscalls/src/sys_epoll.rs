//! epoll_create(2), epoll_ctl(2), epoll_wait(2).

use std::sync::Arc;

use abi::poll::EpollEvent;
use abi::signal::SigSet;
use abi::time::Timespec;
use fs_event::{Epoll, EpollOp};
use sentry_base::{Errno, Events, Nanos, Result, mono_now};
use sentry_kernel::{BlockEnd, Call, Current, IntoRax, Stop, SysResult};
use sentry_vfs::{FileDescription, IoStart, OpenFlags};
use zerocopy::IntoBytes;

use crate::args::{Bits, Ptr};
use crate::files::add_file;
use crate::table::syscalls;

syscalls! {
    213 epoll_create(size: i32) [sync];
    232 epoll_wait(epfd: i32, events: Ptr, max: i32, timeout: i32) [call];
    233 epoll_ctl(epfd: i32, op: i32, fd: i32, event: Ptr) [sync];
    281 epoll_pwait(epfd: i32, events: Ptr, max: i32, timeout: i32, mask: Ptr, size: usize) [call];
    291 epoll_create1(flags: Bits) [sync];
    441 epoll_pwait2(epfd: i32, events: Ptr, max: i32, timeout: Ptr, mask: Ptr, size: usize) [call];
}

/// `EP_MAX_EVENTS`.
const MAX_EVENTS: i32 = i32::MAX / 12;

fn epoll_create(cx: &mut Current, size: i32) -> Result<i32> {
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    epoll_create1(cx, Bits(0))
}

fn epoll_create1(cx: &mut Current, flags: Bits) -> Result<i32> {
    let flags = OpenFlags::from_bits_retain(flags.0);
    if !OpenFlags::CLOEXEC.contains(flags) {
        return Err(Errno::EINVAL);
    }
    add_file(cx, Epoll::new(), OpenFlags::RDWR, flags.contains(OpenFlags::CLOEXEC))
}

fn epoll_of(file: &FileDescription) -> Result<&Epoll> {
    file.ops().as_any().downcast_ref().ok_or(Errno::EINVAL)
}

fn epoll_ctl(cx: &mut Current, epfd: i32, op: i32, fd: i32, event: Ptr) -> Result<()> {
    let needs_event = op != libc::EPOLL_CTL_DEL;
    let event: EpollEvent = if needs_event { cx.read_obj(event.0)? } else { EpollEvent::default() };
    let epoll = cx.file(epfd)?;
    let file = cx.file(fd)?;
    // A file that cannot be waited for comes before an instance that is none.
    if file.ops().wait_queue().is_none() {
        return Err(Errno::EPERM);
    }
    let instance = epoll_of(&epoll)?;
    let op = match op {
        libc::EPOLL_CTL_ADD => EpollOp::Add(event),
        libc::EPOLL_CTL_MOD => EpollOp::Modify(event),
        libc::EPOLL_CTL_DEL => EpollOp::Delete,
        _ => return Err(Errno::EINVAL),
    };
    instance.control(fd, &file, op)
}

/// When a wait ends.
#[derive(Clone, Copy)]
enum Until {
    Now,
    Deadline(Nanos),
    Forever,
}

impl Until {
    fn millis(timeout: i32) -> Self {
        match u64::try_from(timeout) {
            Err(_) => Self::Forever,
            Ok(0) => Self::Now,
            Ok(ms) => Self::Deadline(mono_now().saturating_add(ms * 1_000_000)),
        }
    }
}

/// One look at the instance; `None` if nothing is due.
fn take(cx: &Current, epoll: &Epoll, events: Ptr, max: usize) -> Result<Option<usize>> {
    let due = epoll.collect(max);
    if due.is_empty() {
        return Ok(None);
    }
    cx.copy_out(events.0, due.as_bytes())?;
    Ok(Some(due.len()))
}

fn start(cx: &mut Current, epfd: i32, events: Ptr, max: i32, until: Until, mask: Option<SigSet>) -> Call<'_> {
    let checked = || -> Result<(Arc<FileDescription>, usize)> {
        if max <= 0 || max > MAX_EVENTS {
            return Err(Errno::EINVAL);
        }
        let file = cx.file(epfd)?;
        epoll_of(&file)?;
        Ok((file, usize::try_from(max).unwrap_or(0)))
    };
    let (file, max) = match checked() {
        Ok(checked) => checked,
        Err(errno) => return Call::Done(Err(errno.into())),
    };
    if let Some(mask) = mask {
        cx.set_temporary_mask(mask);
    }
    let first = epoll_of(&file).and_then(|epoll| take(cx, epoll, events, max));
    match (first, until) {
        (Ok(Some(n)), _) => Call::Done(Ok(n.into_rax())),
        (Err(errno), _) => Call::Done(Err(errno.into())),
        (Ok(None), Until::Now) => Call::Done(Ok(0)),
        (Ok(None), until) => {
            Call::Wait(Box::pin(
                async move { wait(cx, &file, events, max, until).await.map(IntoRax::into_rax) },
            ))
        }
    }
}

async fn wait(
    cx: &mut Current,
    file: &FileDescription,
    events: Ptr,
    max: usize,
    until: Until,
) -> SysResult<usize> {
    let epoll = epoll_of(file)?;
    let queue = file.ops().wait_queue().ok_or(Errno::EINVAL)?;
    let deadline = match until {
        Until::Deadline(at) => Some(at),
        _ => None,
    };
    let waited = cx
        .block_on(queue, Events::READABLE, deadline, |_| {
            let due = epoll.collect(max);
            Ok(if due.is_empty() { IoStart::WouldBlock } else { IoStart::Done(due) })
        })
        .await;
    match waited {
        Ok(due) => {
            cx.copy_out(events.0, due.as_bytes())?;
            Ok(due.len())
        }
        Err(BlockEnd::TimedOut) => Ok(take(cx, epoll, events, max)?.unwrap_or(0)),
        // Never restarted (signal(7)).
        Err(BlockEnd::Interrupted) => Err(Stop::Errno(Errno::EINTR)),
        Err(BlockEnd::Errno(errno)) => Err(errno.into()),
    }
}

fn epoll_wait(cx: &mut Current, epfd: i32, events: Ptr, max: i32, timeout: i32) -> Call<'_> {
    start(cx, epfd, events, max, Until::millis(timeout), None)
}

/// The signal mask argument of the `p` calls, checked.
pub(crate) fn read_mask(cx: &Current, mask: Ptr, size: usize) -> Result<Option<SigSet>> {
    if mask.is_null() {
        return Ok(None);
    }
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    Ok(Some(SigSet(cx.read_obj(mask.0)?)))
}

fn epoll_pwait(
    cx: &mut Current,
    epfd: i32,
    events: Ptr,
    max: i32,
    timeout: i32,
    mask: Ptr,
    size: usize,
) -> Call<'_> {
    match read_mask(cx, mask, size) {
        Ok(mask) => start(cx, epfd, events, max, Until::millis(timeout), mask),
        Err(errno) => Call::Done(Err(errno.into())),
    }
}

fn epoll_pwait2(
    cx: &mut Current,
    epfd: i32,
    events: Ptr,
    max: i32,
    timeout: Ptr,
    mask: Ptr,
    size: usize,
) -> Call<'_> {
    let parsed = || -> Result<(Until, Option<SigSet>)> {
        let until = if timeout.is_null() {
            Until::Forever
        } else {
            match cx.read_obj::<Timespec>(timeout.0)?.to_nanos().ok_or(Errno::EINVAL)? {
                0 => Until::Now,
                ns => Until::Deadline(mono_now().saturating_add(ns)),
            }
        };
        Ok((until, read_mask(cx, mask, size)?))
    };
    match parsed() {
        Ok((until, mask)) => start(cx, epfd, events, max, until, mask),
        Err(errno) => Call::Done(Err(errno.into())),
    }
}
