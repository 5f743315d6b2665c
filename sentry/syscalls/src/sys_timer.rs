//! Interval timers, alarms and POSIX timers (`setitimer(2)`, `alarm(2)`, `timer_create(2)`).

use abi::signal::sig;
use abi::time::{Itimerspec, Itimerval, SigEvent, Timespec, Timeval};
use sentry_base::{Errno, Nanos, Result};
use sentry_kernel::{Current, TimerClock, TimerKey, TimerSetting};

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    36 getitimer(which: u32, value: Ptr) [sync];
    37 alarm(seconds: u32) [sync];
    38 setitimer(which: u32, new: Ptr, old: Ptr) [sync];
    222 timer_create(clock: i32, event: Ptr, id: Ptr) [sync];
    223 timer_settime(id: i32, flags: Bits, new: Ptr, old: Ptr) [sync];
    224 timer_gettime(id: i32, value: Ptr) [sync];
    225 timer_getoverrun(id: i32) [sync];
    226 timer_delete(id: i32) [sync];
}

/// The last of `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
const ITIMER_MAX: u32 = 2;

fn to_itimerval(setting: TimerSetting) -> Itimerval {
    // Never rounded down to zero, which would look disarmed.
    let left = if setting.left == 0 { 0 } else { setting.left.max(1000) };
    Itimerval { interval: Timeval::from_nanos(setting.interval), value: Timeval::from_nanos(left) }
}

fn getitimer(cx: &mut Current, which: u32, value: Ptr) -> Result<()> {
    if which > ITIMER_MAX {
        return Err(Errno::EINVAL);
    }
    let setting = cx.group().timer(TimerKey::Interval(which));
    cx.write_obj(value.0, &to_itimerval(setting))
}

/// Sets an interval timer to a time from now.
fn set_interval(cx: &Current, which: u32, value: Nanos, interval: Nanos) -> Result<TimerSetting> {
    let group = cx.group();
    let key = TimerKey::Interval(which);
    let now = match which {
        0 => TimerClock::Monotonic.now(group),
        1 => TimerClock::ProcessUser.now(group),
        _ => TimerClock::ProcessCpu.now(group),
    };
    let deadline = (value != 0).then(|| now.saturating_add(value));
    group.set_timer(key, deadline, interval)
}

fn setitimer(cx: &mut Current, which: u32, new: Ptr, old: Ptr) -> Result<()> {
    if which > ITIMER_MAX {
        return Err(Errno::EINVAL);
    }
    // A null pointer disarms, as Linux still allows.
    let value: Itimerval = if new.is_null() { Itimerval::default() } else { cx.read_obj(new.0)? };
    let time = value.value.to_nanos().ok_or(Errno::EINVAL)?;
    let interval = value.interval.to_nanos().ok_or(Errno::EINVAL)?;
    let previous = set_interval(cx, which, time, interval)?;
    if old.is_null() { Ok(()) } else { cx.write_obj(old.0, &to_itimerval(previous)) }
}

fn alarm(cx: &mut Current, seconds: u32) -> Result<u32> {
    let previous = set_interval(cx, 0, u64::from(seconds) * 1_000_000_000, 0)?.left;
    let (whole, rest) = (previous / 1_000_000_000, previous % 1_000_000_000);
    // To the nearest second, and never to none.
    let up = rest >= 500_000_000 || (whole == 0 && rest > 0);
    Ok(u32::try_from(whole + u64::from(up)).unwrap_or(u32::MAX))
}

/// The clock of a POSIX timer.
fn timer_clock(cx: &Current, clock: i32) -> Result<TimerClock> {
    Ok(match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM | libc::CLOCK_TAI => TimerClock::Realtime,
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => TimerClock::Monotonic,
        libc::CLOCK_PROCESS_CPUTIME_ID => TimerClock::ProcessCpu,
        libc::CLOCK_THREAD_CPUTIME_ID => TimerClock::ThreadCpu(cx.tid()),
        // Clocks of other tasks: those of the caller's own process alone.
        clock if clock < 0 => {
            let id = !(clock >> 3);
            let per_thread = clock & 4 != 0;
            let id = if id == 0 { if per_thread { cx.ns_tid() } else { cx.ns_pid() } } else { id };
            let task = cx.find_task(id).filter(|t| t.pid() == cx.pid()).ok_or(Errno::EINVAL)?;
            if per_thread { TimerClock::ThreadCpu(task.tid()) } else { TimerClock::ProcessCpu }
        }
        _ => return Err(Errno::EINVAL),
    })
}

fn timer_create(cx: &mut Current, clock: i32, event: Ptr, id: Ptr) -> Result<()> {
    const SIGEV_SIGNAL: i32 = 0;
    const SIGEV_NONE: i32 = 1;
    const SIGEV_THREAD: i32 = 2;
    const SIGEV_THREAD_ID: i32 = 4;
    let clock = timer_clock(cx, clock)?;
    let signal = if event.is_null() {
        Some((sig::ALRM, 0, None))
    } else {
        let event: SigEvent = cx.read_obj(event.0)?;
        let checked = (1..=sig::MAX).contains(&event.signo).then_some(event.signo);
        match event.notify {
            SIGEV_NONE => None,
            SIGEV_SIGNAL | SIGEV_THREAD => Some((checked.ok_or(Errno::EINVAL)?, event.value, None)),
            SIGEV_THREAD_ID => {
                let task = cx.find_task(event.tid).filter(|t| t.pid() == cx.pid());
                let tid = task.ok_or(Errno::EINVAL)?.tid();
                Some((checked.ok_or(Errno::EINVAL)?, event.value, Some(tid)))
            }
            _ => return Err(Errno::EINVAL),
        }
    };
    let new = cx.group().create_timer(clock, signal, event.is_null())?;
    let written = cx.write_obj(id.0, &new);
    if written.is_err() {
        // It cannot be named by its maker.
        cx.group().delete_timer(new)?;
    }
    written
}

fn to_itimerspec(setting: TimerSetting) -> Itimerspec {
    Itimerspec { interval: Timespec::from_nanos(setting.interval), value: Timespec::from_nanos(setting.left) }
}

fn timer_settime(cx: &mut Current, id: i32, flags: Bits, new: Ptr, old: Ptr) -> Result<()> {
    const TIMER_ABSTIME: u32 = 1;
    let value: Itimerspec = cx.read_obj(new.0)?;
    let time = value.value.to_nanos().ok_or(Errno::EINVAL)?;
    let interval = value.interval.to_nanos().ok_or(Errno::EINVAL)?;
    let key = TimerKey::Posix(id);
    let group = cx.group();
    let clock = group.timer_clock(key)?;
    let deadline = match time {
        0 => None,
        time if flags.0 & TIMER_ABSTIME != 0 => Some(time),
        time => Some(clock.now(group).saturating_add(time)),
    };
    let previous = group.set_timer(key, deadline, interval)?;
    if old.is_null() { Ok(()) } else { cx.write_obj(old.0, &to_itimerspec(previous)) }
}

fn timer_gettime(cx: &mut Current, id: i32, value: Ptr) -> Result<()> {
    let key = TimerKey::Posix(id);
    cx.group().timer_clock(key)?;
    cx.write_obj(value.0, &to_itimerspec(cx.group().timer(key)))
}

fn timer_getoverrun(cx: &mut Current, id: i32) -> Result<i32> {
    cx.group().timer_overrun(id)
}

fn timer_delete(cx: &mut Current, id: i32) -> Result<()> {
    cx.group().delete_timer(id)
}
