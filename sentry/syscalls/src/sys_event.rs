//! eventfd(2), timerfd_create(2), signalfd(2).

use std::sync::{Arc, Weak};

use abi::signal::{SigInfo, SigSet};
use abi::time::Itimerspec;
use fs_event::{EventFd, SignalFd, SignalSource, TimerClock, TimerFd, TimerFile, TimerSetting};
use sentry_base::{Errno, Result, WaitQueue};
use sentry_kernel::{Current, Task, ThreadGroup};
use sentry_vfs::{Caller, OpenFlags};
use zerocopy::IntoBytes;

use crate::args::{Bits, Ptr};
use crate::files::add_file;
use crate::table::syscalls;

syscalls! {
    282 signalfd(fd: i32, mask: Ptr, size: usize) [sync];
    283 timerfd_create(clock: i32, flags: Bits) [sync];
    284 eventfd(initial: u32) [sync];
    286 timerfd_settime(fd: i32, flags: Bits, new: Ptr, old: Ptr) [sync, "clock changes do not cancel"];
    287 timerfd_gettime(fd: i32, current: Ptr) [sync];
    289 signalfd4(fd: i32, mask: Ptr, size: usize, flags: Bits) [sync];
    290 eventfd2(initial: u32, flags: Bits) [sync];
}

const EFD_SEMAPHORE: u32 = 1;
/// `TFD_TIMER_ABSTIME` and `TFD_TIMER_CANCEL_ON_SET`.
const TFD_ABSTIME: u32 = 1;
const TFD_SETTIME_ALL: u32 = 3;
/// `CAP_WAKE_ALARM`.
const CAP_WAKE_ALARM: u32 = 35;

/// The flags of these calls beside their own are `O_CLOEXEC` and `O_NONBLOCK`.
fn split_flags(flags: u32) -> Result<(OpenFlags, bool)> {
    let flags = OpenFlags::from_bits_retain(flags);
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK).contains(flags) {
        return Err(Errno::EINVAL);
    }
    Ok((OpenFlags::RDWR | flags & OpenFlags::NONBLOCK, flags.contains(OpenFlags::CLOEXEC)))
}

fn eventfd(cx: &mut Current, initial: u32) -> Result<i32> {
    eventfd2(cx, initial, Bits(0))
}

fn eventfd2(cx: &mut Current, initial: u32, flags: Bits) -> Result<i32> {
    let (status, cloexec) = split_flags(flags.0 & !EFD_SEMAPHORE)?;
    add_file(cx, EventFd::new(initial, flags.0 & EFD_SEMAPHORE != 0), status, cloexec)
}

fn timerfd_create(cx: &mut Current, clock: i32, flags: Bits) -> Result<i32> {
    let (status, cloexec) = split_flags(flags.0)?;
    let kind = TimerClock::from_id(clock).ok_or(Errno::EINVAL)?;
    if matches!(clock, libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM)
        && !cx.creds().has_cap(CAP_WAKE_ALARM)
    {
        return Err(Errno::EPERM);
    }
    let timer = TimerFd::new(Arc::clone(cx.kernel().executor()), kind);
    add_file(cx, Arc::new(TimerFile(timer)), status, cloexec)
}

fn timer_of(cx: &Current, fd: i32) -> Result<Arc<TimerFd>> {
    let file = cx.file(fd)?;
    let timer = file.ops().as_any().downcast_ref::<TimerFile>().ok_or(Errno::EINVAL)?;
    Ok(Arc::clone(&timer.0))
}

fn store_setting(cx: &Current, at: Ptr, setting: TimerSetting) -> Result<()> {
    cx.write_obj(
        at.0,
        &Itimerspec {
            interval: abi::time::Timespec::from_nanos(setting.interval),
            value: abi::time::Timespec::from_nanos(setting.value),
        },
    )
}

fn timerfd_settime(cx: &mut Current, fd: i32, flags: Bits, new: Ptr, old: Ptr) -> Result<()> {
    let new: Itimerspec = cx.read_obj(new.0)?;
    if flags.0 & !TFD_SETTIME_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let value = new.value.to_nanos().ok_or(Errno::EINVAL)?;
    let interval = new.interval.to_nanos().ok_or(Errno::EINVAL)?;
    let timer = timer_of(cx, fd)?;
    let before = timer.set(TimerSetting { value, interval }, flags.0 & TFD_ABSTIME != 0);
    if old.is_null() { Ok(()) } else { store_setting(cx, old, before) }
}

fn timerfd_gettime(cx: &mut Current, fd: i32, current: Ptr) -> Result<()> {
    let now = timer_of(cx, fd)?.get();
    store_setting(cx, current, now)
}

/// The signals of the process that made a signalfd; reading takes the reader's own, as Linux does.
struct ProcessSignals {
    group: Arc<ThreadGroup>,
    maker: Weak<Task>,
}

impl SignalSource for ProcessSignals {
    fn dequeue(&self, caller: &dyn Caller, mask: u64) -> Option<[u8; 128]> {
        let task = caller.as_any().downcast_ref::<Task>()?;
        let info: SigInfo = task.take_signal(SigSet(mask))?;
        info.as_bytes().try_into().ok()
    }

    fn pending(&self) -> u64 {
        match self.maker.upgrade() {
            Some(task) => task.pending_signals().0,
            None => self.group.pending_signals().0,
        }
    }

    fn wait_queue(&self) -> &WaitQueue {
        self.group.signal_events()
    }
}

fn signalfd(cx: &mut Current, fd: i32, mask: Ptr, size: usize) -> Result<i32> {
    signalfd4(cx, fd, mask, size, Bits(0))
}

fn signalfd4(cx: &mut Current, fd: i32, mask: Ptr, size: usize, flags: Bits) -> Result<i32> {
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = cx.read_obj(mask.0)?;
    let (status, cloexec) = split_flags(flags.0)?;
    if fd == -1 {
        let source = ProcessSignals { group: Arc::clone(cx.group()), maker: Arc::downgrade(&cx.task) };
        return add_file(cx, SignalFd::new(Arc::new(source), mask), status, cloexec);
    }
    let file = cx.file(fd)?;
    file.ops().as_any().downcast_ref::<SignalFd>().ok_or(Errno::EINVAL)?.set_mask(mask);
    Ok(fd)
}
