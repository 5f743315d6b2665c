//! Signals: actions, masks, sending, waiting, alternate stacks, signalfd.

use std::sync::Arc;

use abi::signal::{SI_TKILL, SI_USER, SigAction, SigInfo, SigSet, StackT, sig};
use abi::time::Timespec;
use fs_event::{SignalFd, SignalSource};
use sentry_base::{Errno, Result, WaitClass, WaitEnd, WaitQueue, mono_now};
use sentry_kernel::pidfd::PidFd;
use sentry_kernel::signal;
use sentry_kernel::{Current, Restart, Stop, SysResult, Task, ThreadGroup};
use sentry_vfs::{Caller, OpenFlags, anonymous, cap};
use zerocopy::{FromBytes, IntoBytes};

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    13 rt_sigaction(signal: i32, new: Ptr, old: Ptr, size: usize) [sync];
    14 rt_sigprocmask(how: i32, new: Ptr, old: Ptr, size: usize) [sync];
    15 rt_sigreturn() [wait];
    127 rt_sigpending(set: Ptr, size: usize) [sync];
    128 rt_sigtimedwait(set: Ptr, info: Ptr, timeout: Ptr, size: usize) [wait];
    129 rt_sigqueueinfo(pid: i32, signal: i32, info: Ptr) [sync];
    130 rt_sigsuspend(set: Ptr, size: usize) [wait];
    131 sigaltstack(new: Ptr, old: Ptr) [sync];
    297 rt_tgsigqueueinfo(pid: i32, tid: i32, signal: i32, info: Ptr) [sync];
    34 pause() [wait];
    62 kill(pid: i32, signal: i32) [sync];
    200 tkill(tid: i32, signal: i32) [sync];
    234 tgkill(pid: i32, tid: i32, signal: i32) [sync];
    282 signalfd(fd: i32, mask: Ptr, size: usize) [sync];
    289 signalfd4(fd: i32, mask: Ptr, size: usize, flags: Bits) [sync];
    424 pidfd_send_signal(fd: i32, signal: i32, info: Ptr, flags: Bits) [sync];
}

/// A signal set argument; its size must be the kernel's.
pub(crate) fn read_set(cx: &Current, at: Ptr, size: usize) -> Result<SigSet> {
    if size != size_of::<SigSet>() {
        return Err(Errno::EINVAL);
    }
    cx.read_obj(at.0)
}

fn check_signal(signal: i32) -> Result<()> {
    if (0..=sig::MAX).contains(&signal) { Ok(()) } else { Err(Errno::EINVAL) }
}

fn rt_sigaction(cx: &mut Current, signal: i32, new: Ptr, old: Ptr, size: usize) -> Result<()> {
    if size != size_of::<SigSet>() || !(1..=sig::MAX).contains(&signal) {
        return Err(Errno::EINVAL);
    }
    let group = cx.group();
    let previous = if new.is_null() {
        group.actions().get(signal)
    } else {
        let action: SigAction = cx.read_obj(new.0)?;
        if SigSet::UNBLOCKABLE.has(signal) {
            return Err(Errno::EINVAL);
        }
        group.set_action(signal, action.kept())
    };
    if old.is_null() { Ok(()) } else { cx.write_obj(old.0, &previous) }
}

fn rt_sigprocmask(cx: &mut Current, how: i32, new: Ptr, old: Ptr, size: usize) -> Result<()> {
    if size != size_of::<SigSet>() {
        return Err(Errno::EINVAL);
    }
    let previous = cx.signal_mask();
    if !new.is_null() {
        let set = read_set(cx, new, size)?;
        let mask = match how {
            libc::SIG_BLOCK => previous.union(set),
            libc::SIG_UNBLOCK => previous.without(set),
            libc::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        cx.set_signal_mask(mask);
    }
    if old.is_null() { Ok(()) } else { cx.write_obj(old.0, &previous) }
}

async fn rt_sigreturn(cx: &mut Current) -> Result<(), Stop> {
    Err(signal::sigreturn(cx).await)
}

fn rt_sigpending(cx: &mut Current, set: Ptr, size: usize) -> Result<()> {
    if size > size_of::<SigSet>() {
        return Err(Errno::EINVAL);
    }
    let pending = cx.pending_signals().intersect(cx.signal_mask());
    cx.copy_out(set.0, pending.as_bytes().get(..size).unwrap_or_default())
}

async fn rt_sigtimedwait(cx: &mut Current, set: Ptr, info: Ptr, timeout: Ptr, size: usize) -> SysResult<i32> {
    let wanted = read_set(cx, set, size)?.without(SigSet::UNBLOCKABLE);
    let deadline = if timeout.is_null() {
        None
    } else {
        let wait = cx.read_obj::<Timespec>(timeout.0)?.to_nanos().ok_or(Errno::EINVAL)?;
        Some(mono_now().saturating_add(wait))
    };
    let mut taken = cx.take_signal(wanted);
    if taken.is_none() {
        cx.begin_signal_wait(wanted);
        let mut end = WaitEnd::Ready;
        while end == WaitEnd::Ready {
            cx.sleeper().arm();
            end = cx.sleep(WaitClass::Interruptible, deadline).await;
        }
        cx.end_signal_wait();
        taken = cx.take_signal(wanted);
        if taken.is_none() {
            let timed_out = end == WaitEnd::TimedOut;
            return Err(if timed_out { Errno::EAGAIN } else { Errno::EINTR }.into());
        }
    }
    let Some(found) = taken else { return Err(Errno::EAGAIN.into()) };
    if !info.is_null() {
        cx.write_obj(info.0, &found)?;
    }
    Ok(found.signo)
}

async fn rt_sigsuspend(cx: &mut Current, set: Ptr, size: usize) -> SysResult<()> {
    let mask = read_set(cx, set, size)?;
    cx.set_temporary_mask(mask);
    Err(sleep_for_signal(cx).await)
}

async fn pause(cx: &mut Current) -> SysResult<()> {
    Err(sleep_for_signal(cx).await)
}

async fn sleep_for_signal(cx: &mut Current) -> Stop {
    loop {
        cx.sleeper().arm();
        if cx.sleep(WaitClass::Interruptible, None).await != WaitEnd::Ready {
            return Stop::Restart(Restart::NoHand);
        }
    }
}

fn sigaltstack(cx: &mut Current, new: Ptr, old: Ptr) -> Result<()> {
    let previous = signal::alt_stack(cx);
    if !new.is_null() {
        let stack: StackT = cx.read_obj(new.0)?;
        signal::set_alt_stack(cx, stack)?;
    }
    if old.is_null() { Ok(()) } else { cx.write_obj(old.0, &previous) }
}

/// Whether the caller may send `signal` to a process (`kill_ok_by_cred`).
fn may_signal(cx: &Current, target: &Task, signal: i32) -> Result<()> {
    if target.pid() == cx.pid() {
        return Ok(());
    }
    let (own, its) = (cx.creds(), target.creds());
    let same = own.euid == its.suid || own.euid == its.uid || own.uid == its.suid || own.uid == its.uid;
    let same_session = signal == sig::CONT && cx.group().sid() == target.group().sid();
    if same || same_session || own.has_cap_in(&its.user_ns, cap::KILL) { Ok(()) } else { Err(Errno::EPERM) }
}

/// A process by the id of any of its threads, with a task to check permissions against.
fn find(cx: &Current, pid: i32) -> Result<Arc<Task>> {
    cx.find_task(pid).ok_or(Errno::ESRCH)
}

fn send(cx: &Current, task: &Task, to_thread: bool, info: SigInfo) -> Result<()> {
    may_signal(cx, task, info.signo)?;
    if info.signo == 0 {
        return Ok(());
    }
    let origin = task.group().origin_of(cx);
    if to_thread { task.send(info, origin) } else { task.group().send(info, origin) }
}

/// Sends with the caller's ids as the receiver sees them.
fn send_own(cx: &Current, task: &Task, to_thread: bool, signal: i32, code: i32) -> Result<()> {
    send(cx, task, to_thread, task.group().info_from(signal, code, cx))
}

fn kill(cx: &mut Current, pid: i32, signal: i32) -> Result<()> {
    check_signal(signal)?;
    if pid > 0 {
        return send_own(cx, &*find(cx, pid)?, false, signal, SI_USER);
    }
    let own = cx.pid();
    let pgid = match pid {
        0 => cx.group().pgid(),
        i32::MIN => return Err(Errno::ESRCH),
        pid => cx.resolve_pid(-pid).unwrap_or(-1),
    };
    let all = pid == -1;
    let targets = cx.kernel().processes();
    let ns = cx.group().pid_ns();
    let everybody = |g: &ThreadGroup| ns.local(g.pid()) > 1 && g.pid() != own;
    let targets = targets.iter().filter(|g| if all { everybody(g) } else { g.pgid() == pgid });
    let mut result = Err(Errno::ESRCH);
    for group in targets {
        let Some(leader) = cx.kernel().task(group.pid()) else { continue };
        match send_own(cx, &leader, false, signal, SI_USER) {
            Ok(()) => result = Ok(()),
            Err(errno) if result.is_err() => result = Err(errno),
            Err(_) => {}
        }
    }
    // With -1 a refusal is no failure as long as there was anybody.
    if all && result == Err(Errno::EPERM) { Ok(()) } else { result }
}

fn thread_of(cx: &Current, pid: Option<i32>, tid: i32) -> Result<Arc<Task>> {
    if tid <= 0 || pid.is_some_and(|p| p <= 0) {
        return Err(Errno::EINVAL);
    }
    let task = find(cx, tid)?;
    if pid.is_some_and(|p| cx.resolve_pid(p) != Ok(task.pid())) { Err(Errno::ESRCH) } else { Ok(task) }
}

fn tkill(cx: &mut Current, tid: i32, signal: i32) -> Result<()> {
    let task = thread_of(cx, None, tid)?;
    check_signal(signal)?;
    send_own(cx, &task, true, signal, SI_TKILL)
}

fn tgkill(cx: &mut Current, pid: i32, tid: i32, signal: i32) -> Result<()> {
    let task = thread_of(cx, Some(pid), tid)?;
    check_signal(signal)?;
    send_own(cx, &task, true, signal, SI_TKILL)
}

/// A `siginfo_t` of the caller's making: it may not look like the kernel's, unless it is for the caller itself.
fn forged_info(cx: &Current, pid: i32, signal: i32, at: Ptr) -> Result<SigInfo> {
    let mut info: SigInfo = cx.read_obj(at.0)?;
    info.signo = signal;
    if (info.code >= 0 || info.code == SI_TKILL) && pid != cx.ns_pid() {
        return Err(Errno::EPERM);
    }
    check_signal(signal)?;
    Ok(info)
}

fn rt_sigqueueinfo(cx: &mut Current, pid: i32, signal: i32, info: Ptr) -> Result<()> {
    let info = forged_info(cx, pid, signal, info)?;
    send(cx, &*find(cx, pid)?, false, info)
}

fn rt_tgsigqueueinfo(cx: &mut Current, pid: i32, tid: i32, signal: i32, info: Ptr) -> Result<()> {
    if pid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = forged_info(cx, pid, signal, info)?;
    let task = thread_of(cx, Some(pid), tid)?;
    send(cx, &task, true, info)
}

fn pidfd_send_signal(cx: &mut Current, fd: i32, signal: i32, info: Ptr, flags: Bits) -> Result<()> {
    const THREAD: u32 = 1;
    const THREAD_GROUP: u32 = 2;
    const PROCESS_GROUP: u32 = 4;
    if flags.0 & !(THREAD | THREAD_GROUP | PROCESS_GROUP) != 0 || flags.0.count_ones() > 1 {
        return Err(Errno::EINVAL);
    }
    let file = cx.file(fd)?;
    let group = match PidFd::group_of(&file) {
        // Before there were pidfds, the directory of a process in /proc was to be one (`tgid_pidfd_to_pid`).
        Err(Errno::EBADF) => {
            let pid = file.inode().and_then(|inode| inode.process()).ok_or(Errno::EBADF)?;
            Arc::clone(cx.kernel().task(pid).ok_or(Errno::ESRCH)?.group())
        }
        group => group?,
    };
    let info = if info.is_null() {
        check_signal(signal)?;
        group.info_from(signal, SI_USER, cx)
    } else {
        let given: SigInfo = cx.read_obj(info.0)?;
        if given.signo != signal {
            return Err(Errno::EINVAL);
        }
        forged_info(cx, cx.show_pid(group.pid()), signal, info)?
    };
    // The id may have gone to another process since: the group says who is meant.
    let leader = cx.kernel().task(group.pid()).filter(|t| Arc::ptr_eq(t.group(), &group));
    let leader = leader.ok_or(Errno::ESRCH)?;
    if flags.0 == PROCESS_GROUP {
        return send_to_group(cx, group.pgid(), info);
    }
    send(cx, &leader, flags.0 == THREAD, info)
}

/// Sends to every process of a group that the caller may signal; the last refusal if that is none.
fn send_to_group(cx: &Current, pgid: i32, info: SigInfo) -> Result<()> {
    let mut result = Err(Errno::ESRCH);
    for group in cx.kernel().processes().iter().filter(|g| g.pgid() == pgid) {
        let Some(leader) = cx.kernel().task(group.pid()) else { continue };
        match send(cx, &leader, false, info) {
            Ok(()) => result = Ok(()),
            Err(errno) if result.is_err() => result = Err(errno),
            Err(_) => {}
        }
    }
    result
}

/// The signals of a process, for signalfd.
struct Signals(Arc<ThreadGroup>);

impl SignalSource for Signals {
    fn dequeue(&self, caller: &dyn Caller, mask: u64) -> Option<[u8; 128]> {
        let task = caller.as_any().downcast_ref::<Task>()?;
        let info = task.take_signal(SigSet(mask))?;
        <[u8; 128]>::read_from_bytes(info.as_bytes()).ok()
    }

    fn pending(&self) -> u64 {
        self.0.threads().iter().fold(self.0.pending_signals(), |set, t| set.union(t.pending_signals())).0
    }

    fn wait_queue(&self) -> &WaitQueue {
        self.0.signal_events()
    }
}

fn signalfd(cx: &mut Current, fd: i32, mask: Ptr, size: usize) -> Result<i32> {
    signalfd4(cx, fd, mask, size, Bits(0))
}

fn signalfd4(cx: &mut Current, fd: i32, mask: Ptr, size: usize, flags: Bits) -> Result<i32> {
    let flags = OpenFlags::from_bits_retain(flags.0);
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK).contains(flags) {
        return Err(Errno::EINVAL);
    }
    let mask = read_set(cx, mask, size)?;
    if fd == -1 {
        let file = SignalFd::new(Arc::new(Signals(Arc::clone(cx.group()))), mask.0);
        let file = anonymous(file, flags & OpenFlags::NONBLOCK | OpenFlags::RDWR);
        return cx.fds().add(
            file,
            flags.contains(OpenFlags::CLOEXEC),
            cx.rlimit(abi::process::rlimit::NOFILE),
        );
    }
    let file = cx.file(fd)?;
    let signals = file.ops().as_any().downcast_ref::<SignalFd>().ok_or(Errno::EINVAL)?;
    signals.set_mask(mask.0);
    Ok(fd)
}
