//! Newer calls on how tasks are scheduled and compared: sched_setattr(2), sched_getattr(2), ioprio_set(2), kcmp(2),
//! pidfd_getfd(2). What is set is kept and shown; the host schedules.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use abi::process::rlimit;
use sentry_base::{Errno, Result};
use sentry_kernel::pidfd::PidFd;
use sentry_kernel::ptrace::{Access, may_access};
use sentry_kernel::{Current, Scheduling, Task};
use sentry_vfs::cap;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::args::{Bits, Ptr};
use crate::table::syscalls;

syscalls! {
    251 ioprio_set(which: i32, who: i32, value: i32) [sync, "kept; the host schedules"];
    252 ioprio_get(which: i32, who: i32) [sync];
    312 kcmp(pid1: i32, pid2: i32, kind: i32, index1: u64, index2: u64) [sync, "no KCMP_EPOLL_TFD"];
    314 sched_setattr(pid: i32, attr: Ptr, flags: Bits) [sync, "kept; the host schedules; no deadlines"];
    315 sched_getattr(pid: i32, attr: Ptr, size: u32, flags: Bits) [sync];
    438 pidfd_getfd(fd: i32, target: i32, flags: Bits) [sync];
}

/// `struct sched_attr`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// The first version of the structure.
const ATTR_V0: usize = 48;
const PAGE: usize = 4096;
const RESET_ON_FORK: u64 = 1;
const KEEP_POLICY: u64 = 8;
const KEEP_PARAMS: u64 = 16;
const UTIL_CLAMP: u64 = 32 | 64;
const KNOWN_FLAGS: u64 = 0x7f;

fn is_real_time(policy: i32) -> bool {
    matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR)
}

/// Whether the caller may change how `task` is scheduled: it is its own or it may change everybody's.
fn same_owner(cx: &Current, task: &Task) -> bool {
    let (ours, theirs) = (cx.creds(), task.creds());
    ours.euid == theirs.euid || ours.euid == theirs.uid
}

/// The lowest nice value that `RLIMIT_NICE` allows.
fn nice_floor(task: &Task) -> i32 {
    20 - i32::try_from(task.rlimit(rlimit::NICE).min(40)).unwrap_or(40)
}

/// Changes a task's scheduling under Linux's rules (`user_check_sched_setscheduler`): `EINVAL` for what cannot be,
/// `EPERM` for what the caller may not.
pub(crate) fn change(cx: &Current, task: &Task, new: Scheduling) -> Result<()> {
    let old = task.scheduling();
    let valid = match new.policy {
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => new.priority == 0,
        policy if is_real_time(policy) => (1..=99).contains(&new.priority),
        _ => false,
    };
    if !valid {
        return Err(Errno::EINVAL);
    }
    let allowed = {
        let nice_ok = new.nice >= old.nice || new.nice >= nice_floor(task);
        let limit = task.rlimit(rlimit::RTPRIO);
        let real_time_ok = !is_real_time(new.policy)
            || ((limit > 0 || new.policy == old.policy)
                && (new.priority <= old.priority || u64::from(new.priority.unsigned_abs()) <= limit));
        let leaves_idle = old.policy == libc::SCHED_IDLE && new.policy != libc::SCHED_IDLE;
        let idle_ok = !leaves_idle || old.nice >= nice_floor(task);
        let fair_ok = is_real_time(new.policy) || nice_ok;
        fair_ok
            && real_time_ok
            && idle_ok
            && same_owner(cx, task)
            && (!old.reset_on_fork || new.reset_on_fork)
    };
    if !allowed && !cx.creds().has_cap(cap::SYS_NICE) {
        return Err(Errno::EPERM);
    }
    task.set_scheduling(new);
    Ok(())
}

fn target(cx: &Current, pid: i32) -> Result<Arc<Task>> {
    match pid {
        0 => Ok(Arc::clone(&cx.task)),
        pid => cx.find_task(pid).ok_or(Errno::ESRCH),
    }
}

fn read_attr(cx: &Current, at: Ptr) -> Result<SchedAttr> {
    let known = u32::try_from(size_of::<SchedAttr>()).unwrap_or(0);
    let too_big = || {
        // The caller learns which size there is.
        let _ = cx.write_obj(at.0, &known);
        Errno::E2BIG
    };
    let size = match cx.read_obj::<u32>(at.0)? {
        0 => ATTR_V0,
        size => usize::try_from(size).unwrap_or(usize::MAX),
    };
    if !(ATTR_V0..=PAGE).contains(&size) {
        return Err(too_big());
    }
    let mut attr = SchedAttr::new_zeroed();
    match crate::args::copy_struct(cx, at, size, ATTR_V0, attr.as_mut_bytes()) {
        Err(Errno::E2BIG) => return Err(too_big()),
        other => other?,
    }
    if attr.flags & UTIL_CLAMP != 0 && size < size_of::<SchedAttr>() {
        return Err(Errno::EINVAL);
    }
    attr.nice = attr.nice.clamp(-20, 19);
    Ok(attr)
}

fn sched_setattr(cx: &mut Current, pid: i32, at: Ptr, flags: Bits) -> Result<()> {
    if at.is_null() || pid < 0 || flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let attr = read_attr(cx, at)?;
    let policy = i32::try_from(attr.policy).map_err(|_| Errno::EINVAL)?;
    let task = target(cx, pid)?;
    let old = task.scheduling();
    if attr.flags & !KNOWN_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let policy = if attr.flags & KEEP_POLICY != 0 { old.policy } else { policy };
    if policy == libc::SCHED_DEADLINE {
        // No bandwidth can be promised.
        let known = attr.runtime > 0 && attr.deadline >= attr.runtime;
        return Err(match (known, cx.creds().has_cap(cap::SYS_NICE)) {
            (false, _) => Errno::EINVAL,
            (true, false) => Errno::EPERM,
            (true, true) => Errno::EBUSY,
        });
    }
    let mut new = Scheduling { policy, reset_on_fork: attr.flags & RESET_ON_FORK != 0, ..old };
    if attr.flags & KEEP_PARAMS == 0 {
        new.priority = i32::try_from(attr.priority).map_err(|_| Errno::EINVAL)?;
        if !is_real_time(policy) {
            new.nice = attr.nice;
        }
    }
    change(cx, &task, new)
}

fn sched_getattr(cx: &mut Current, pid: i32, at: Ptr, size: u32, flags: Bits) -> Result<()> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if at.is_null() || pid < 0 || flags.0 != 0 || !(ATTR_V0..=PAGE).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let now = target(cx, pid)?.scheduling();
    let size = size.min(size_of::<SchedAttr>());
    let real_time = is_real_time(now.policy);
    let attr = SchedAttr {
        size: u32::try_from(size).unwrap_or(0),
        policy: now.policy.unsigned_abs(),
        flags: if now.reset_on_fork { RESET_ON_FORK } else { 0 },
        nice: if real_time { 0 } else { now.nice },
        priority: now.priority.unsigned_abs(),
        ..SchedAttr::default()
    };
    cx.copy_out(at.0, attr.as_bytes().get(..size).unwrap_or_default())
}

// Input and output priorities.

const WHO_PROCESS: i32 = 1;
const WHO_GROUP: i32 = 2;
const WHO_USER: i32 = 3;
const CLASS_SHIFT: i32 = 13;
const CLASS_REAL_TIME: i32 = 1;
const CLASS_BEST_EFFORT: i32 = 2;
const CLASS_IDLE: i32 = 3;

fn io_targets(cx: &Current, which: i32, who: i32) -> Result<Vec<Arc<Task>>> {
    let all = || cx.kernel().tasks().into_iter();
    let found: Vec<_> = match which {
        WHO_PROCESS => return Ok(vec![target(cx, who)?]),
        WHO_GROUP => {
            let pgid = if who == 0 { cx.group().pgid() } else { cx.resolve_pid(who)? };
            all().filter(|t| t.group().pgid() == pgid).collect()
        }
        WHO_USER => {
            let uid = if who == 0 { cx.creds().uid } else { cx.creds().user_ns.uid(who.cast_unsigned())? };
            all().filter(|t| t.creds().uid == uid).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

fn ioprio_set(cx: &mut Current, which: i32, who: i32, value: i32) -> Result<()> {
    let creds = cx.creds();
    match value >> CLASS_SHIFT {
        CLASS_REAL_TIME if !creds.has_cap(cap::SYS_ADMIN) && !creds.has_cap(cap::SYS_NICE) => {
            return Err(Errno::EPERM);
        }
        CLASS_REAL_TIME | CLASS_BEST_EFFORT | CLASS_IDLE => {}
        0 if value == 0 => {}
        _ => return Err(Errno::EINVAL),
    }
    for task in io_targets(cx, which, who)? {
        let theirs = task.creds();
        if creds.euid != theirs.uid && creds.uid != theirs.uid && !creds.has_cap(cap::SYS_NICE) {
            return Err(Errno::EPERM);
        }
        task.set_scheduling(Scheduling { io_priority: value, ..task.scheduling() });
    }
    Ok(())
}

/// What a task without a priority of its own has: best effort, by its nice value.
fn effective(scheduling: &Scheduling) -> i32 {
    match scheduling.io_priority {
        0 if is_real_time(scheduling.policy) => CLASS_REAL_TIME << CLASS_SHIFT | 4,
        0 if scheduling.policy == libc::SCHED_IDLE => CLASS_IDLE << CLASS_SHIFT | 7,
        0 => CLASS_BEST_EFFORT << CLASS_SHIFT | ((scheduling.nice + 20) / 5),
        own => own,
    }
}

fn ioprio_get(cx: &mut Current, which: i32, who: i32) -> Result<i32> {
    let targets = io_targets(cx, which, who)?;
    if which == WHO_PROCESS {
        return Ok(targets.first().map_or(0, |t| t.scheduling().io_priority));
    }
    // The highest of all: a lower number.
    Ok(targets.iter().map(|t| effective(&t.scheduling())).min().unwrap_or(0))
}

// Comparing and taking what processes have.

/// `EPERM` unless the caller may look into `task`.
fn may_look_into(cx: &Current, task: &Task, access: Access) -> Result<()> {
    if may_access(&cx.task, task, access) { Ok(()) } else { Err(Errno::EPERM) }
}

/// The order of objects is real but says nothing of where they are.
#[derive(Debug, Default)]
struct Order(RandomState);

fn kcmp(cx: &mut Current, pid1: i32, pid2: i32, kind: i32, index1: u64, index2: u64) -> Result<i32> {
    let (one, two) = (cx.find_task(pid1).ok_or(Errno::ESRCH)?, cx.find_task(pid2).ok_or(Errno::ESRCH)?);
    may_look_into(cx, &one, Access::Read)?;
    may_look_into(cx, &two, Access::Read)?;
    one.settle_files();
    two.settle_files();
    let place = |task: &Task, index: u64| -> Result<u64> {
        let address = |at: *const ()| at.addr() as u64;
        Ok(match kind {
            0 => {
                let fd = i32::try_from(index).map_err(|_| Errno::EBADF)?;
                task.file_or_path(fd)?.id()
            }
            1 => task.mm().id(),
            2 => task.fds().id(),
            3 => address(Arc::as_ptr(&task.fs()).cast()),
            4 => address(Arc::as_ptr(&task.group().actions()).cast()),
            // No task has a context of its own for input and output, nor semaphores before it uses them.
            5 => 0,
            6 => task.sem_undo_identity(),
            _ => return Err(Errno::EINVAL),
        })
    };
    let (a, b) = (place(&one, index1)?, place(&two, index2)?);
    let order = cx.kernel().extension::<Order>();
    let (a, b) = if a == b { (0, 0) } else { (order.0.hash_one(a), order.0.hash_one(b)) };
    Ok(match a.cmp(&b) {
        core::cmp::Ordering::Equal => 0,
        core::cmp::Ordering::Less => 1,
        core::cmp::Ordering::Greater => 2,
    })
}

/// A duplicate of another process's descriptor.
fn pidfd_getfd(cx: &mut Current, fd: i32, target: i32, flags: Bits) -> Result<i32> {
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let group = PidFd::group_of(&*cx.file(fd)?)?;
    let task = group.threads().first().cloned().ok_or(Errno::ESRCH)?;
    may_look_into(cx, &task, Access::Attach)?;
    task.recall_files();
    let file = task.file_or_path(target)?;
    // It may have been put at hand before it was taken.
    task.recall_files();
    cx.fds().add(file, true, cx.rlimit(rlimit::NOFILE))
}
