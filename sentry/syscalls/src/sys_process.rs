//! Processes: clone(2), exit(2), wait(2), process groups and sessions, pidfds.

use abi::process::{CloneArgs, CloneFlags, Rusage};
use abi::signal::{SigInfo, sig};
use abi::time::Timeval;
use sentry_base::{Errno, Events, Result};
use sentry_kernel::ns;
use sentry_kernel::pidfd::{self, PidFd};
use sentry_kernel::{
    CloneSpec, Current, Restart, Stop, SysResult, WaitFor, WaitOptions, Waited, clone_task, try_wait,
};
use sentry_vfs::{IoStart, OpenFlags, cap};
use zerocopy::{FromZeros, IntoBytes};

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    39 getpid() [sync];
    186 gettid() [sync];
    110 getppid() [sync];
    56 clone(flags: Flags, stack: Ptr, parent_tid: Ptr, child_tid: Ptr, tls: Ptr)
        [wait, "no time namespaces"];
    57 fork() [wait];
    58 vfork() [wait];
    435 clone3(args: Ptr, size: usize) [wait, "no cgroup, no time namespaces, thread ids in the first PID namespace"];
    60 exit(code: i32) [sync];
    231 exit_group(code: i32) [sync];
    61 wait4(pid: i32, status: Ptr, options: Bits, usage: Ptr) [wait];
    247 waitid(kind: i32, id: i32, info: Ptr, options: Bits, usage: Ptr) [wait];
    109 setpgid(pid: i32, pgid: i32) [sync];
    121 getpgid(pid: i32) [sync];
    111 getpgrp() [sync];
    112 setsid() [sync];
    124 getsid(pid: i32) [sync];
    272 unshare(flags: Flags) [sync, "no time namespaces"];
    308 setns(fd: i32, kinds: i32) [sync];
    434 pidfd_open(pid: i32, flags: Bits) [sync];
    334 rseq(area: Ptr, len: u32, flags: Bits, signature: Bits) [sync, "always ENOSYS, which C libraries accept"];
}

/// `CLONE_*` flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u64);

impl crate::args::SysArg for Flags {
    fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    fn show(_cx: &Current, raw: u64, out: &mut String) {
        use core::fmt::Write;
        let _ = write!(out, "{raw:#x}");
    }
}

fn getpid(cx: &mut Current) -> Result<i32> {
    Ok(cx.ns_pid())
}

fn gettid(cx: &mut Current) -> Result<i32> {
    Ok(cx.ns_tid())
}

fn getppid(cx: &mut Current) -> Result<i32> {
    Ok(cx.show_pid(cx.group().ppid()))
}

/// The signal in the low byte of `clone`'s flags.
const CSIGNAL: u64 = 0xff;

async fn clone(
    cx: &mut Current,
    flags: Flags,
    stack: Ptr,
    parent_tid: Ptr,
    child_tid: Ptr,
    tls: Ptr,
) -> Result<i32, Stop> {
    let clone_flags = CloneFlags::from_bits_retain(flags.0 & 0xffff_ffff & !CSIGNAL);
    if clone_flags.contains(CloneFlags::PIDFD | CloneFlags::PARENT_SETTID) {
        // Both results would go to one place.
        return Err(Errno::EINVAL.into());
    }
    let spec = CloneSpec {
        flags: clone_flags,
        exit_signal: i32::try_from(flags.0 & CSIGNAL).unwrap_or(0),
        stack: stack.0,
        tls: tls.0,
        parent_tid: parent_tid.0,
        child_tid: child_tid.0,
        pidfd: parent_tid.0,
        set_tid: 0,
    };
    clone_task(cx, &spec).await
}

async fn fork(cx: &mut Current) -> Result<i32, Stop> {
    clone_task(cx, &CloneSpec { exit_signal: sig::CHLD, ..CloneSpec::default() }).await
}

async fn vfork(cx: &mut Current) -> Result<i32, Stop> {
    let flags = CloneFlags::VFORK | CloneFlags::VM;
    clone_task(cx, &CloneSpec { flags, exit_signal: sig::CHLD, ..CloneSpec::default() }).await
}

/// The first version of `struct clone_args`.
const CLONE_ARGS_V0: usize = 64;

async fn clone3(cx: &mut Current, at: Ptr, size: usize) -> Result<i32, Stop> {
    let mut args = CloneArgs::new_zeroed();
    crate::args::copy_struct(cx, at, size, CLONE_ARGS_V0, args.as_mut_bytes())?;
    let flags = CloneFlags::from_bits_retain(args.flags);
    let known = CloneFlags::NEW_ANY.bits() | 0x3_ffff_ff00 & !0x40_0000;
    if args.flags & !known != 0 || args.exit_signal & !CSIGNAL != 0 || args.exit_signal > 64 {
        return Err(Errno::EINVAL.into());
    }
    if flags.contains(CloneFlags::INTO_CGROUP) {
        // No descriptor is one of a cgroup that tasks can be put into.
        return Err(if args.cgroup > i32::MAX as u64 || size < size_of::<CloneArgs>() {
            Errno::EINVAL.into()
        } else {
            Errno::EBADF.into()
        });
    }
    let set_tid = chosen_tid(cx, &args)?;
    if flags.intersects(CloneFlags::THREAD | CloneFlags::PARENT) && args.exit_signal != 0 {
        return Err(Errno::EINVAL.into());
    }
    if (args.stack == 0) != (args.stack_size == 0) {
        return Err(Errno::EINVAL.into());
    }
    let spec = CloneSpec {
        flags,
        exit_signal: i32::try_from(args.exit_signal).unwrap_or(0),
        stack: args.stack.checked_add(args.stack_size).ok_or(Errno::EINVAL)?,
        tls: args.tls,
        parent_tid: args.parent_tid,
        child_tid: args.child_tid,
        pidfd: args.pidfd,
        set_tid,
    };
    clone_task(cx, &spec).await
}

/// The thread id that the caller has chosen (`set_tid`); 0 for none.
fn chosen_tid(cx: &Current, args: &CloneArgs) -> Result<i32> {
    /// `MAX_PID_NS_LEVEL`.
    const LEVELS: u64 = 32;
    const CHECKPOINT_RESTORE: u32 = 40;
    if args.set_tid_size > LEVELS || (args.set_tid == 0) != (args.set_tid_size == 0) {
        return Err(Errno::EINVAL);
    }
    if args.set_tid == 0 {
        return Ok(0);
    }
    // One number for each namespace up to the first; only the first is here.
    if args.set_tid_size > 1 {
        return Err(Errno::EINVAL);
    }
    let tid: i32 = cx.read_obj(args.set_tid)?;
    if !(1..sentry_kernel::PID_MAX).contains(&tid) {
        return Err(Errno::EINVAL);
    }
    let creds = cx.creds();
    if !creds.has_cap(cap::SYS_ADMIN) && !creds.has_cap(CHECKPOINT_RESTORE) {
        return Err(Errno::EPERM);
    }
    Ok(tid)
}

fn exit(cx: &mut Current, code: i32) -> Result<(), Stop> {
    cx.exit_thread(code);
    Err(Stop::RegistersSet)
}

fn exit_group(cx: &mut Current, code: i32) -> Result<(), Stop> {
    cx.group().end(abi::process::WaitStatus::exited(code));
    Err(Stop::RegistersSet)
}

const WNOHANG: u32 = 1;
const WUNTRACED: u32 = 2;
const WEXITED: u32 = 4;
const WCONTINUED: u32 = 8;
const WNOWAIT: u32 = 0x0100_0000;
const WNOTHREAD: u32 = 0x2000_0000;
const WALL: u32 = 0x4000_0000;
const WCLONE: u32 = 0x8000_0000;

fn wait_options(bits: u32) -> WaitOptions {
    WaitOptions {
        exited: bits & WEXITED != 0,
        stopped: bits & WUNTRACED != 0,
        continued: bits & WCONTINUED != 0,
        nowait: bits & WNOWAIT != 0,
        all: bits & WALL != 0,
        clone: bits & WCLONE != 0,
        own_thread_only: bits & WNOTHREAD != 0,
    }
}

/// Waits for a report; `None` with `WNOHANG` and no report yet.
async fn wait(cx: &mut Current, which: WaitFor, bits: u32) -> SysResult<Option<Waited>> {
    let options = wait_options(bits);
    if bits & WNOHANG != 0 {
        return Ok(match try_wait(&cx.task, which, options)? {
            IoStart::Done(waited) => Some(waited),
            IoStart::WouldBlock => None,
        });
    }
    let group = std::sync::Arc::clone(cx.group());
    let waited = cx
        .block_on(group.child_events(), Events::IN, None, |task| try_wait(task, which, options))
        .await
        .map_err(|end| end.or_restart(Restart::Sys))?;
    Ok(Some(waited))
}

fn write_usage(cx: &Current, usage: Ptr, waited: &Waited) -> Result<()> {
    if usage.is_null() {
        return Ok(());
    }
    let value = Rusage {
        utime: Timeval::from_nanos(waited.utime),
        stime: Timeval::from_nanos(waited.stime),
        maxrss: i64::try_from(waited.peak_resident / 1024).unwrap_or(i64::MAX),
        ..Rusage::default()
    };
    cx.write_obj(usage.0, &value)
}

/// The Sentry's number for one that the caller names, or one that nothing has.
fn named(cx: &Current, number: i32) -> i32 {
    cx.resolve_pid(number).unwrap_or(-1)
}

async fn wait4(cx: &mut Current, pid: i32, status: Ptr, options: Bits, usage: Ptr) -> SysResult<i32> {
    if options.0 & !(WNOHANG | WUNTRACED | WCONTINUED | WNOTHREAD | WALL | WCLONE) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let which = match pid {
        i32::MIN => return Err(Errno::ESRCH.into()),
        -1 => WaitFor::Any,
        0 => WaitFor::Group(cx.group().pgid()),
        pid if pid < 0 => WaitFor::Group(named(cx, -pid)),
        pid => WaitFor::Process(named(cx, pid)),
    };
    let Some(waited) = wait(cx, which, options.0 | WEXITED).await? else { return Ok(0) };
    if !status.is_null() {
        cx.write_obj(status.0, &waited.status.0)?;
    }
    write_usage(cx, usage, &waited)?;
    Ok(waited.pid)
}

async fn waitid(
    cx: &mut Current,
    kind: i32,
    id: i32,
    info: Ptr,
    options: Bits,
    usage: Ptr,
) -> SysResult<i32> {
    const P_ALL: i32 = 0;
    const P_PID: i32 = 1;
    const P_PGID: i32 = 2;
    const P_PIDFD: i32 = 3;
    let known = WNOHANG | WNOWAIT | WEXITED | WUNTRACED | WCONTINUED | WNOTHREAD | WCLONE | WALL;
    if options.0 & !known != 0 || options.0 & (WEXITED | WUNTRACED | WCONTINUED) == 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut bits = options.0;
    let which = match (kind, id) {
        (P_ALL, _) => WaitFor::Any,
        (P_PID, 1..) => WaitFor::Process(named(cx, id)),
        (P_PGID, 0) => WaitFor::Group(cx.group().pgid()),
        (P_PGID, 1..) => WaitFor::Group(named(cx, id)),
        (P_PIDFD, 0..) => {
            let file = cx.file(id)?;
            let group = PidFd::group_of(&file)?;
            if file.flags().contains(OpenFlags::NONBLOCK) {
                bits |= WNOHANG;
            }
            WaitFor::Process(group.pid())
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    let waited = wait(cx, which, bits).await?;
    if waited.is_none() && bits & WNOHANG != options.0 & WNOHANG {
        return Err(Errno::EAGAIN.into());
    }
    if let Some(waited) = &waited {
        write_usage(cx, usage, waited)?;
    }
    if !info.is_null() {
        let value = match &waited {
            Some(w) => {
                let uid = cx.creds().user_ns.show_uid(w.uid);
                SigInfo::child(sig::CHLD, w.code, w.pid, uid, w.value, 0, 0)
            }
            None => SigInfo::kernel(0, 0),
        };
        // Linux writes the fields that it has and no more.
        let bytes = value.as_bytes().get(..28).unwrap_or_default();
        cx.copy_out(info.0, bytes)?;
    }
    Ok(0)
}

fn setpgid(cx: &mut Current, pid: i32, pgid: i32) -> Result<()> {
    if pgid < 0 {
        return Err(Errno::EINVAL);
    }
    let pid = if pid == 0 { 0 } else { cx.resolve_pid(pid)? };
    let pgid = if pgid == 0 { 0 } else { cx.resolve_pid(pgid).map_err(|_| Errno::EPERM)? };
    cx.set_pgid(pid, pgid)
}

fn getpgid(cx: &mut Current, pid: i32) -> Result<i32> {
    let pid = if pid == 0 { 0 } else { cx.resolve_pid(pid)? };
    cx.pgid_of(pid).map(|pgid| cx.show_pid(pgid))
}

fn getpgrp(cx: &mut Current) -> Result<i32> {
    Ok(cx.show_pid(cx.group().pgid()))
}

fn setsid(cx: &mut Current) -> Result<i32> {
    cx.set_sid().map(|sid| cx.show_pid(sid))
}

fn getsid(cx: &mut Current, pid: i32) -> Result<i32> {
    let pid = if pid == 0 { 0 } else { cx.resolve_pid(pid)? };
    cx.sid_of(pid).map(|sid| cx.show_pid(sid))
}

fn unshare(cx: &mut Current, flags: Flags) -> Result<()> {
    ns::unshare(cx, flags.0)
}

fn setns(cx: &mut Current, fd: i32, kinds: i32) -> Result<()> {
    let file = cx.file(fd)?;
    ns::setns(cx, &file, kinds)
}

fn pidfd_open(cx: &mut Current, pid: i32, flags: Bits) -> Result<i32> {
    let flags = OpenFlags::from_bits_retain(flags.0);
    if pid <= 0 || !OpenFlags::NONBLOCK.contains(flags) {
        return Err(Errno::EINVAL);
    }
    match cx.find_process(pid) {
        Some(group) => pidfd::install(&cx.task, &group, flags),
        // A thread that leads no process.
        None if cx.find_task(pid).is_some() => Err(Errno::EINVAL),
        None => Err(Errno::ESRCH),
    }
}

fn rseq(_cx: &mut Current, _area: Ptr, _len: u32, _flags: Bits, _signature: Bits) -> Result<()> {
    Err(Errno::ENOSYS)
}
