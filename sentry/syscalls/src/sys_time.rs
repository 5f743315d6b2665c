//! Clocks and sleeps: clock_gettime(2), nanosleep(2), gettimeofday(2), times(2), getrusage(2).

use std::sync::Arc;

use abi::process::Rusage;
use abi::time::{Timespec, Timeval, Tms, ticks};
use sentry_base::{Errno, Nanos, Result, WaitClass, WaitEnd, mono_now, real_now};
use sentry_kernel::{Current, Restart, RestartBlock, Stop, SysResult};
use sentry_vfs::cap;

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    35 nanosleep(req: Ptr, rem: Ptr) [wait];
    96 gettimeofday(tv: Ptr, tz: Ptr) [sync];
    98 getrusage(who: i32, usage: Ptr) [sync, "CPU times; the other fields are zero"];
    100 times(buf: Ptr) [sync];
    164 settimeofday(tv: Ptr, tz: Ptr) [sync, "always EPERM"];
    201 time(tloc: Ptr) [sync];
    227 clock_settime(clock: i32, tp: Ptr) [sync, "always EPERM"];
    228 clock_gettime(clock: i32, tp: Ptr) [sync];
    229 clock_getres(clock: i32, res: Ptr) [sync];
    230 clock_nanosleep(clock: i32, flags: Bits, req: Ptr, rem: Ptr) [wait];
    159 adjtimex(buf: Ptr) [sync, "always EPERM"];
    305 clock_adjtime(clock: i32, buf: Ptr) [sync, "always EPERM"];
}

/// The present time of a clock; `EINVAL` for one that is not there.
pub(crate) fn read_clock(cx: &Current, clock: i32) -> Result<Nanos> {
    Ok(match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_REALTIME_ALARM => real_now(),
        libc::CLOCK_TAI => real_now(),
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_BOOTTIME
        | libc::CLOCK_BOOTTIME_ALARM => mono_now(),
        libc::CLOCK_PROCESS_CPUTIME_ID => total(cx.group().cpu_times()),
        libc::CLOCK_THREAD_CPUTIME_ID => total(cx.cpu_times()),
        clock if clock < 0 => cpu_clock_of(cx, clock)?,
        _ => return Err(Errno::EINVAL),
    })
}

fn total((user, system): (u64, u64)) -> u64 {
    user.saturating_add(system)
}

/// A clock made by `clock_getcpuclockid(3)`: the process or thread is in the upper bits.
fn cpu_clock_of(cx: &Current, clock: i32) -> Result<Nanos> {
    let id = !(clock >> 3);
    let of_thread = clock & 4 != 0;
    if clock & 3 == 3 {
        return Err(Errno::EINVAL);
    }
    if of_thread {
        let task = if id == 0 { Arc::clone(&cx.task) } else { cx.find_task(id).ok_or(Errno::EINVAL)? };
        Ok(total(task.cpu_times()))
    } else {
        let group =
            if id == 0 { Arc::clone(cx.group()) } else { cx.find_process(id).ok_or(Errno::EINVAL)? };
        Ok(total(group.cpu_times()))
    }
}

fn clock_gettime(cx: &mut Current, clock: i32, tp: Ptr) -> Result<()> {
    let now = read_clock(cx, clock)?;
    cx.write_obj(tp.0, &Timespec::from_nanos(now))
}

fn clock_getres(cx: &mut Current, clock: i32, res: Ptr) -> Result<()> {
    read_clock(cx, clock)?;
    if res.is_null() {
        return Ok(());
    }
    let coarse = matches!(clock, libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE);
    cx.write_obj(res.0, &Timespec::from_nanos(if coarse { 4_000_000 } else { 1 }))
}

fn clock_settime(cx: &mut Current, clock: i32, tp: Ptr) -> Result<()> {
    if clock != libc::CLOCK_REALTIME {
        return Err(Errno::EINVAL);
    }
    let _: Timespec = cx.read_obj(tp.0)?;
    Err(Errno::EPERM)
}

fn settimeofday(_cx: &mut Current, _tv: Ptr, _tz: Ptr) -> Result<()> {
    Err(Errno::EPERM)
}

fn adjtimex(_cx: &mut Current, _buf: Ptr) -> Result<()> {
    Err(Errno::EPERM)
}

fn clock_adjtime(_cx: &mut Current, _clock: i32, _buf: Ptr) -> Result<()> {
    Err(Errno::EPERM)
}

fn gettimeofday(cx: &mut Current, tv: Ptr, tz: Ptr) -> Result<()> {
    if !tv.is_null() {
        cx.write_obj(tv.0, &Timeval::from_nanos(real_now()))?;
    }
    if !tz.is_null() {
        cx.write_obj(tz.0, &[0_i32; 2])?;
    }
    Ok(())
}

fn time(cx: &mut Current, tloc: Ptr) -> Result<u64> {
    let now = real_now() / 1_000_000_000;
    if !tloc.is_null() {
        cx.write_obj(tloc.0, &now)?;
    }
    Ok(now)
}

fn times(cx: &mut Current, buf: Ptr) -> Result<u64> {
    if !buf.is_null() {
        let (user, system) = cx.group().cpu_times();
        let (child_user, child_system) = cx.group().children_cpu_times();
        let signed = |ns| i64::try_from(ticks(ns)).unwrap_or(i64::MAX);
        let tms = Tms {
            utime: signed(user),
            stime: signed(system),
            cutime: signed(child_user),
            cstime: signed(child_system),
        };
        cx.write_obj(buf.0, &tms)?;
    }
    Ok(ticks(mono_now()))
}

fn getrusage(cx: &mut Current, who: i32, usage: Ptr) -> Result<()> {
    let (user, system) = match who {
        libc::RUSAGE_SELF => cx.group().cpu_times(),
        libc::RUSAGE_CHILDREN => cx.group().children_cpu_times(),
        libc::RUSAGE_THREAD => cx.cpu_times(),
        _ => return Err(Errno::EINVAL),
    };
    let peak = match who {
        libc::RUSAGE_CHILDREN => cx.group().children_peak_resident(),
        _ => cx.group().note_peak_resident(cx.mm().peak_resident()),
    };
    let maxrss = i64::try_from(peak / 1024).unwrap_or(i64::MAX);
    let rusage = Rusage {
        utime: Timeval::from_nanos(user),
        stime: Timeval::from_nanos(system),
        maxrss,
        ..Rusage::default()
    };
    cx.write_obj(usage.0, &rusage)
}

async fn nanosleep(cx: &mut Current, req: Ptr, rem: Ptr) -> SysResult<()> {
    let length = cx.read_obj::<Timespec>(req.0)?.to_nanos().ok_or(Errno::EINVAL)?;
    sleep_until(cx, mono_now().saturating_add(length), rem.0).await
}

async fn clock_nanosleep(cx: &mut Current, clock: i32, flags: Bits, req: Ptr, rem: Ptr) -> SysResult<()> {
    if clock == libc::CLOCK_THREAD_CPUTIME_ID {
        return Err(Errno::EINVAL.into());
    }
    let now = read_clock(cx, clock)?;
    if matches!(
        clock,
        libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE
    ) || clock < 0
    {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if matches!(clock, libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM)
        && !cx.creds().has_cap(cap::SYS_TIME)
    {
        return Err(Errno::EPERM.into());
    }
    let time = cx.read_obj::<Timespec>(req.0)?.to_nanos().ok_or(Errno::EINVAL)?;
    if flags.0.cast_signed() & libc::TIMER_ABSTIME == 0 {
        return sleep_until(cx, mono_now().saturating_add(time), rem.0).await;
    }
    let deadline = mono_now().saturating_add(time.saturating_sub(now));
    if sleep_only(cx, deadline).await { Ok(()) } else { Err(Stop::Restart(Restart::NoHand)) }
}

/// Sleeps; an interrupted sleep stores what is left at `remaining` (0 for nowhere) and can be gone on with.
pub(crate) async fn sleep_until(cx: &mut Current, deadline: Nanos, remaining: u64) -> SysResult<()> {
    if sleep_only(cx, deadline).await {
        return Ok(());
    }
    if remaining != 0 {
        let left = deadline.saturating_sub(mono_now());
        cx.write_obj(remaining, &Timespec::from_nanos(left))?;
    }
    cx.set_restart_block(RestartBlock::Sleep { deadline, remaining });
    Err(Stop::Restart(Restart::Block))
}

/// Sleeps to the deadline; false when a signal came first.
async fn sleep_only(cx: &mut Current, deadline: Nanos) -> bool {
    cx.sleeper().arm();
    loop {
        match cx.sleep(WaitClass::Interruptible, Some(deadline)).await {
            WaitEnd::TimedOut => return true,
            WaitEnd::Interrupted | WaitEnd::Killed => return false,
            WaitEnd::Ready => {}
        }
    }
}
