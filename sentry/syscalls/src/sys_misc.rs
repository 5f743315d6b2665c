//! Calls about the system and small attributes of the caller: uname(2), sysinfo(2), getrlimit(2), sched(7), prctl(2),
//! getrandom(2), membarrier(2).

use std::sync::Arc;

use abi::process::{Rlimit, SchedParam, Sysinfo, Utsname, WaitStatus, rlimit};
use abi::time::Timespec;
use platform::Barrier;
use sentry_base::{Errno, Result, mono_now, rand};
use sentry_kernel::{Current, RELEASE, RestartBlock, Stop, SysResult, Task, UserDispatch, UtsNames, VERSION};
use sentry_vfs::{CapSet, Credentials, cap};

use crate::args::{Bits, PathPtr, Ptr};
use crate::table::syscalls;

syscalls! {
    24 sched_yield() [wait];
    63 uname(buf: Ptr) [sync];
    97 getrlimit(resource: u32, rlim: Ptr) [sync];
    99 sysinfo(info: Ptr) [sync];
    103 syslog(kind: i32, buf: Ptr, len: i32) [sync, "the log is empty"];
    135 personality(persona: u32) [sync, "stored, and without effect"];
    140 getpriority(which: i32, who: i32) [sync];
    141 setpriority(which: i32, who: i32, nice: i32) [sync, "stored; the host schedules"];
    142 sched_setparam(pid: i32, param: Ptr) [sync, "stored; the host schedules"];
    143 sched_getparam(pid: i32, param: Ptr) [sync];
    144 sched_setscheduler(pid: i32, policy: i32, param: Ptr) [sync, "stored; the host schedules"];
    145 sched_getscheduler(pid: i32) [sync];
    146 sched_get_priority_max(policy: i32) [sync];
    147 sched_get_priority_min(policy: i32) [sync];
    148 sched_rr_get_interval(pid: i32, tp: Ptr) [sync];
    157 prctl(option: i32, a: u64, b: u64, c: u64, d: u64) [sync];
    158 arch_prctl(code: i32, addr: u64) [sync];
    160 setrlimit(resource: u32, rlim: Ptr) [sync];
    169 reboot(magic: Bits, magic2: Bits, command: Bits, arg: Ptr) [sync, "there is no machine to restart"];
    170 sethostname(name: PathPtr, len: usize) [sync];
    171 setdomainname(name: PathPtr, len: usize) [sync];
    203 sched_setaffinity(pid: i32, len: u32, mask: Ptr) [sync, "stored; the host schedules"];
    204 sched_getaffinity(pid: i32, len: u32, mask: Ptr) [sync];
    219 restart_syscall() [wait];
    302 prlimit64(pid: i32, resource: u32, new: Ptr, old: Ptr) [sync];
    309 getcpu(cpu: Ptr, node: Ptr, cache: Ptr) [sync];
    318 getrandom(buf: Ptr, len: usize, flags: Bits) [sync];
    324 membarrier(command: i32, flags: Bits, cpu: i32) [sync, "no RSEQ commands, as there is no rseq"];
}

fn field(text: &[u8]) -> [u8; 65] {
    let mut out = [0; 65];
    for (slot, byte) in out.iter_mut().zip(text.iter().take(64)) {
        *slot = *byte;
    }
    out
}

fn uname(cx: &mut Current, buf: Ptr) -> Result<()> {
    let names = cx.namespaces().uts.names();
    let uts = Utsname {
        sysname: field(b"Linux"),
        nodename: field(&names.hostname),
        release: field(RELEASE.as_bytes()),
        version: field(VERSION.as_bytes()),
        machine: field(b"x86_64"),
        domainname: field(&names.domainname),
    };
    cx.write_obj(buf.0, &uts)
}

fn set_name(cx: &Current, name: PathPtr, len: usize) -> Result<Vec<u8>> {
    if !cx.creds().has_cap_in(cx.namespaces().uts.user_ns(), cap::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    if len > 64 {
        return Err(Errno::EINVAL);
    }
    let mut text = vec![0; len];
    cx.copy_in(name.0, &mut text)?;
    Ok(text)
}

fn sethostname(cx: &mut Current, name: PathPtr, len: usize) -> Result<()> {
    let hostname = set_name(cx, name, len)?;
    let uts = &cx.namespaces().uts;
    uts.set_names(UtsNames { hostname, ..uts.names() });
    Ok(())
}

fn setdomainname(cx: &mut Current, name: PathPtr, len: usize) -> Result<()> {
    let domainname = set_name(cx, name, len)?;
    let uts = &cx.namespaces().uts;
    uts.set_names(UtsNames { domainname, ..uts.names() });
    Ok(())
}

/// Magic numbers and commands of `linux/reboot.h`.
const REBOOT_MAGIC: u32 = 0xfee1_dead;
const REBOOT_MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
/// Commands that end the system, and the signal that ends init of a pid namespace instead: restarts, halt, power off.
const REBOOT_ENDS: [(u32, i32); 4] = [
    (0x0123_4567, libc::SIGHUP),
    (0xa1b2_c3d4, libc::SIGHUP),
    (0xcdef_0123, libc::SIGINT),
    (0x4321_fedc, libc::SIGINT),
];

/// In a pid namespace below the first, it is that namespace which ends (`reboot_pid_ns`, `kernel/pid_namespace.c`);
/// whether the sandbox ends is for those to say who started it. What concerns the machine alone is unknown in both.
fn reboot(cx: &mut Current, magic: Bits, magic2: Bits, command: Bits, _arg: Ptr) -> Result<()> {
    let ns = Arc::clone(cx.group().pid_ns());
    if !cx.creds().has_cap_in(ns.user_ns(), cap::SYS_BOOT) {
        return Err(Errno::EPERM);
    }
    let known = magic.0 == REBOOT_MAGIC && REBOOT_MAGIC2.contains(&magic2.0);
    let end = REBOOT_ENDS.iter().find(|(end, _)| known && *end == command.0).ok_or(Errno::EINVAL)?;
    if ns.is_first() {
        return Err(Errno::EPERM);
    }
    if let Some(init) = ns.init().and_then(|pid| cx.kernel().process(pid)) {
        init.end(WaitStatus::signaled(end.1, false));
    }
    Ok(())
}

fn sysinfo(cx: &mut Current, info: Ptr) -> Result<()> {
    let kernel = cx.kernel();
    let total = kernel.total_memory();
    let used = cx.mm().memory_file().allocated();
    // `SI_LOAD_SHIFT`
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a load is a small positive number"
    )]
    let load = |average: f64| (average * 65536.0) as u64;
    let value = Sysinfo {
        loads: kernel.load_averages().map(load),
        uptime: i64::try_from(mono_now().saturating_sub(kernel.boot_mono()) / 1_000_000_000).unwrap_or(0),
        totalram: total,
        freeram: total.saturating_sub(used),
        procs: u16::try_from(kernel.tasks().len()).unwrap_or(u16::MAX),
        mem_unit: 1,
        ..Sysinfo::default()
    };
    cx.write_obj(info.0, &value)
}

fn syslog(cx: &mut Current, kind: i32, _buf: Ptr, _len: i32) -> Result<i32> {
    match kind {
        // Close, open, read all, size unread.
        0 | 1 | 3 | 9 => Ok(0),
        10 => Ok(1 << 14),
        2 | 4..=8 if cx.creds().has_cap(cap::SYS_ADMIN) => Ok(0),
        2 | 4..=8 => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

fn personality(cx: &mut Current, persona: u32) -> Result<u32> {
    let old = cx.personality();
    if persona != u32::MAX {
        cx.set_personality(persona);
    }
    Ok(old)
}

// Limits.

fn checked_limit(cx: &Current, resource: u32, new: Rlimit, old: Rlimit) -> Result<()> {
    if new.cur > new.max {
        return Err(Errno::EINVAL);
    }
    if new.max > old.max && !cx.creds().has_cap(cap::SYS_RESOURCE) {
        return Err(Errno::EPERM);
    }
    if resource == rlimit::NOFILE && new.max > 1 << 20 {
        return Err(Errno::EPERM);
    }
    Ok(())
}

fn getrlimit(cx: &mut Current, resource: u32, rlim: Ptr) -> Result<()> {
    let limit = cx.group().limits().get(resource).ok_or(Errno::EINVAL)?;
    cx.write_obj(rlim.0, &limit)
}

fn setrlimit(cx: &mut Current, resource: u32, rlim: Ptr) -> Result<()> {
    let new: Rlimit = cx.read_obj(rlim.0)?;
    let old = cx.group().limits().get(resource).ok_or(Errno::EINVAL)?;
    checked_limit(cx, resource, new, old)?;
    cx.group().set_rlimit(resource, new);
    apply_limit(&cx.task, resource, new);
    Ok(())
}

/// Limits that something else has to know of.
fn apply_limit(task: &Task, resource: u32, new: Rlimit) {
    match resource {
        rlimit::STACK => task.mm().set_stack_limit(new.cur),
        rlimit::CPU => task.group().watch_cpu_limit(),
        _ => {}
    }
}

fn prlimit64(cx: &mut Current, pid: i32, resource: u32, new: Ptr, old: Ptr) -> Result<()> {
    let task = target(cx, pid)?;
    let group = Arc::clone(task.group());
    let present = group.limits().get(resource).ok_or(Errno::EINVAL)?;
    if !Arc::ptr_eq(&group, cx.group()) {
        let (ours, theirs) = (cx.creds(), task.creds());
        let same = [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == ours.uid)
            && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == ours.gid);
        if !same && !ours.has_cap_in(&theirs.user_ns, cap::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
    }
    if !new.is_null() {
        let new: Rlimit = cx.read_obj(new.0)?;
        checked_limit(cx, resource, new, present)?;
        group.set_rlimit(resource, new);
        apply_limit(&task, resource, new);
    }
    if !old.is_null() {
        cx.write_obj(old.0, &present)?;
    }
    Ok(())
}

// Scheduling: stored and shown; the host decides.

fn target(cx: &Current, pid: i32) -> Result<Arc<Task>> {
    match pid {
        0 => Ok(Arc::clone(&cx.task)),
        pid => cx.find_task(pid).ok_or(Errno::ESRCH),
    }
}

async fn sched_yield(_cx: &mut Current) -> Result<()> {
    crate::turn::give_up().await;
    Ok(())
}

/// `PRIO_*`, of the argument's type.
const PRIO_PROCESS: i32 = 0;
const PRIO_PGRP: i32 = 1;
const PRIO_USER: i32 = 2;

fn priority_targets(cx: &Current, which: i32, who: i32) -> Result<Vec<Arc<Task>>> {
    let all = cx.kernel().tasks();
    let found: Vec<_> = match which {
        PRIO_PROCESS => return Ok(vec![target(cx, who)?]),
        PRIO_PGRP => {
            let pgid = if who == 0 { cx.group().pgid() } else { cx.resolve_pid(who)? };
            all.into_iter().filter(|t| t.group().pgid() == pgid).collect()
        }
        PRIO_USER => {
            let creds = cx.creds();
            let uid = if who == 0 { creds.uid } else { creds.user_ns.uid(who.cast_unsigned())? };
            all.into_iter().filter(|t| t.creds().uid == uid).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

/// The call itself returns 20 - nice: 40 to 1.
fn getpriority(cx: &mut Current, which: i32, who: i32) -> Result<i32> {
    let nice = priority_targets(cx, which, who)?.iter().map(|t| t.scheduling().nice).min().unwrap_or(0);
    Ok(20 - nice)
}

fn setpriority(cx: &mut Current, which: i32, who: i32, nice: i32) -> Result<()> {
    let nice = nice.clamp(-20, 19);
    for task in priority_targets(cx, which, who)? {
        let mut scheduling = task.scheduling();
        let (ours, theirs) = (cx.creds(), task.creds());
        if ours.euid != theirs.euid && ours.euid != theirs.uid && !ours.has_cap(cap::SYS_NICE) {
            return Err(Errno::EPERM);
        }
        let floor = 20 - i32::try_from(task.rlimit(rlimit::NICE).min(40)).unwrap_or(40);
        if nice < scheduling.nice && nice < floor && !cx.creds().has_cap(cap::SYS_NICE) {
            return Err(Errno::EACCES);
        }
        scheduling.nice = nice;
        task.set_scheduling(scheduling);
    }
    Ok(())
}

fn is_real_time(policy: i32) -> bool {
    matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR)
}

fn set_policy(cx: &Current, pid: i32, policy: Option<i32>, param: Ptr) -> Result<()> {
    if pid < 0 || param.is_null() {
        return Err(Errno::EINVAL);
    }
    let priority = cx.read_obj::<SchedParam>(param.0)?.priority;
    let task = target(cx, pid)?;
    let mut scheduling = task.scheduling();
    if let Some(policy) = policy {
        scheduling.policy = policy & !libc::SCHED_RESET_ON_FORK;
        scheduling.reset_on_fork = policy & libc::SCHED_RESET_ON_FORK != 0;
    }
    scheduling.priority = priority;
    crate::sys_sched::change(cx, &task, scheduling)
}

fn sched_setparam(cx: &mut Current, pid: i32, param: Ptr) -> Result<()> {
    set_policy(cx, pid, None, param)
}

fn sched_setscheduler(cx: &mut Current, pid: i32, policy: i32, param: Ptr) -> Result<()> {
    if policy < 0 {
        return Err(Errno::EINVAL);
    }
    set_policy(cx, pid, Some(policy), param)
}

fn sched_getparam(cx: &mut Current, pid: i32, param: Ptr) -> Result<()> {
    if pid < 0 || param.is_null() {
        return Err(Errno::EINVAL);
    }
    let priority = target(cx, pid)?.scheduling().priority;
    cx.write_obj(param.0, &SchedParam { priority })
}

fn sched_getscheduler(cx: &mut Current, pid: i32) -> Result<i32> {
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    let scheduling = target(cx, pid)?.scheduling();
    Ok(scheduling.policy | if scheduling.reset_on_fork { libc::SCHED_RESET_ON_FORK } else { 0 })
}

fn sched_get_priority_max(_cx: &mut Current, policy: i32) -> Result<i32> {
    match policy {
        policy if is_real_time(policy) => Ok(99),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE | libc::SCHED_DEADLINE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

fn sched_get_priority_min(cx: &mut Current, policy: i32) -> Result<i32> {
    sched_get_priority_max(cx, policy).map(|max| i32::from(max > 0))
}

fn sched_rr_get_interval(cx: &mut Current, pid: i32, tp: Ptr) -> Result<()> {
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    let policy = target(cx, pid)?.scheduling().policy;
    let slice_ns = match policy {
        libc::SCHED_FIFO => 0,
        libc::SCHED_RR => 100_000_000,
        _ => 4_000_000,
    };
    cx.write_obj(tp.0, &Timespec::from_nanos(slice_ns))
}

fn all_cpus(cx: &Current) -> u128 {
    let cpus = cx.kernel().nr_cpus().min(128);
    if cpus == 128 { u128::MAX } else { (1 << cpus) - 1 }
}

fn sched_setaffinity(cx: &mut Current, pid: i32, len: u32, mask: Ptr) -> Result<()> {
    let mut bytes = [0; 16];
    let len = usize::try_from(len).unwrap_or(0).min(16);
    cx.copy_in(mask.0, bytes.get_mut(..len).unwrap_or_default())?;
    let wanted = u128::from_le_bytes(bytes) & all_cpus(cx);
    if wanted == 0 {
        return Err(Errno::EINVAL);
    }
    let task = target(cx, pid)?;
    let (ours, theirs) = (cx.creds(), task.creds());
    if ours.euid != theirs.euid && ours.euid != theirs.uid && !ours.has_cap_in(&theirs.user_ns, cap::SYS_NICE)
    {
        return Err(Errno::EPERM);
    }
    let mut scheduling = task.scheduling();
    let low = u64::try_from(wanted & u128::from(u64::MAX)).unwrap_or(0);
    scheduling.affinity = [low, u64::try_from(wanted >> 64).unwrap_or(0)];
    task.set_scheduling(scheduling);
    Ok(())
}

/// Returns the bytes of the kernel's mask.
fn sched_getaffinity(cx: &mut Current, pid: i32, len: u32, mask: Ptr) -> Result<usize> {
    let cpus = usize::try_from(cx.kernel().nr_cpus()).unwrap_or(0);
    let size = cpus.div_ceil(64) * 8;
    let len = usize::try_from(len).unwrap_or(0);
    if len * 8 < cpus || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let [low, high] = target(cx, pid)?.scheduling().affinity;
    let set = (u128::from(high) << 64 | u128::from(low)) & all_cpus(cx);
    let n = size.min(len).min(16);
    cx.copy_out(mask.0, set.to_le_bytes().get(..n).unwrap_or_default())?;
    Ok(n)
}

fn getcpu(cx: &mut Current, cpu: Ptr, node: Ptr, _cache: Ptr) -> Result<()> {
    let [low, high] = cx.scheduling().affinity;
    // One that the task may run on: which one it is, only the host knows.
    let allowed = u128::from(high) << 64 | u128::from(low);
    let number = if allowed == 0 { 0 } else { allowed.trailing_zeros() };
    for (place, value) in [(cpu, number), (node, 0)] {
        if !place.is_null() {
            cx.write_obj(place.0, &value)?;
        }
    }
    Ok(())
}

fn getrandom(cx: &mut Current, buf: Ptr, len: usize, flags: Bits) -> Result<usize> {
    const KNOWN: u32 = libc::GRND_NONBLOCK | libc::GRND_RANDOM | libc::GRND_INSECURE;
    const CLASH: u32 = libc::GRND_RANDOM | libc::GRND_INSECURE;
    if flags.0 & !KNOWN != 0 || flags.0 & CLASH == CLASH {
        return Err(Errno::EINVAL);
    }
    let len = len.min(0x1ff_ffff);
    let mut done = 0;
    let mut chunk = vec![0; len.min(64 * 1024)];
    while done < len && !(done > 0 && cx.sleeper().is_interrupted()) {
        let part = chunk.get_mut(..(len - done).min(64 * 1024)).unwrap_or_default();
        rand::fill(part)?;
        match sentry_memory::UserMemory::copy_out_partial(
            cx.task.as_ref(),
            buf.0.wrapping_add(done as u64),
            part,
        ) {
            Ok(n) => {
                done += n;
                if n < part.len() {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Commands of `membarrier(2)` that are there. The RSEQ ones are not, as rseq(2) is not.
mod barrier {
    pub const QUERY: i32 = 0;
    pub const GLOBAL: i32 = 1;
    pub const GLOBAL_EXPEDITED: i32 = 2;
    pub const REGISTER_GLOBAL_EXPEDITED: i32 = 4;
    pub const PRIVATE: i32 = 8;
    pub const REGISTER_PRIVATE: i32 = 16;
    pub const PRIVATE_CODE: i32 = 32;
    pub const REGISTER_PRIVATE_CODE: i32 = 64;
    pub const GET_REGISTRATIONS: i32 = 512;
    pub const ALL: i32 = 0x27f;
}

/// The stub process of the caller's memory makes the barrier: the threads that it is for run there.
fn membarrier(cx: &mut Current, command: i32, flags: Bits, _cpu: i32) -> Result<i32> {
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let mm = cx.mm();
    let registered = |command: i32| mm.barriers() & command.cast_unsigned() != 0;
    let reach = match command {
        barrier::QUERY => return Ok(barrier::ALL),
        barrier::GET_REGISTRATIONS => return Ok(mm.barriers().cast_signed()),
        barrier::REGISTER_GLOBAL_EXPEDITED | barrier::REGISTER_PRIVATE | barrier::REGISTER_PRIVATE_CODE => {
            mm.add_barriers(command.cast_unsigned());
            return Ok(0);
        }
        barrier::GLOBAL | barrier::GLOBAL_EXPEDITED => Barrier::Everywhere,
        barrier::PRIVATE if registered(barrier::REGISTER_PRIVATE) => Barrier::Threads,
        barrier::PRIVATE_CODE if registered(barrier::REGISTER_PRIVATE_CODE) => Barrier::Code,
        barrier::PRIVATE | barrier::PRIVATE_CODE => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    };
    mm.space().barrier(reach).map_err(|_| Errno::ENOMEM)?;
    Ok(0)
}

fn arch_prctl(cx: &mut Current, code: i32, addr: u64) -> Result<()> {
    const SET_GS: i32 = 0x1001;
    const SET_FS: i32 = 0x1002;
    const GET_FS: i32 = 0x1003;
    const GET_GS: i32 = 0x1004;
    match code {
        SET_FS | SET_GS if addr >= 1 << 47 => Err(Errno::EPERM),
        SET_FS => {
            cx.regs.fs_base = addr;
            Ok(())
        }
        SET_GS => {
            cx.regs.gs_base = addr;
            Ok(())
        }
        GET_FS => cx.write_obj(addr, &cx.regs.fs_base),
        GET_GS => cx.write_obj(addr, &cx.regs.gs_base),
        _ => Err(Errno::EINVAL),
    }
}

const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;

/// `set_syscall_user_dispatch`
fn user_dispatch(mode: u64, start: u64, len: u64, selector: u64) -> Result<Option<UserDispatch>> {
    /// `TASK_SIZE_MAX`
    const USER_END: u64 = 0x7fff_ffff_f000;
    match mode {
        0 if start == 0 && len == 0 && selector == 0 => Ok(None),
        1 if start != 0 && start.checked_add(len).is_none_or(|end| end <= start) => Err(Errno::EINVAL),
        1 if selector >= USER_END => Err(Errno::EFAULT),
        1 => Ok(Some(UserDispatch { start, len, selector })),
        _ => Err(Errno::EINVAL),
    }
}

fn prctl(cx: &mut Current, option: i32, a: u64, b: u64, c: u64, d: u64) -> Result<u64> {
    let no_more = b == 0 && c == 0 && d == 0;
    let number = i32::try_from(a).unwrap_or(-1);
    match option {
        libc::PR_SET_PDEATHSIG if (0..=64).contains(&number) => cx.set_pdeath_signal(number),
        libc::PR_GET_PDEATHSIG => cx.write_obj(a, &cx.pdeath_signal())?,
        libc::PR_GET_DUMPABLE => return Ok(u64::from(cx.group().dumpable().unsigned_abs())),
        libc::PR_SET_DUMPABLE if a <= 1 => cx.group().set_dumpable(number),
        libc::PR_GET_KEEPCAPS => return Ok(u64::from(cx.keeps_caps())),
        libc::PR_SET_KEEPCAPS if a <= 1 => cx.set_keep_caps(a == 1)?,
        libc::PR_SET_NAME => {
            let name = sentry_memory::copy_in_cstr(cx.task.as_ref(), a, 16, Errno::E2BIG);
            let name = match name {
                Err(Errno::E2BIG) => {
                    let mut name = vec![0; 15];
                    cx.copy_in(a, &mut name)?;
                    name
                }
                other => other?,
            };
            cx.set_comm(&name);
        }
        libc::PR_GET_NAME => {
            let mut name = cx.comm();
            name.resize(16, 0);
            cx.copy_out(a, &name)?;
        }
        PR_SET_SYSCALL_USER_DISPATCH => cx.user_dispatch = user_dispatch(a, b, c, d)?,
        libc::PR_GET_SECCOMP => return Ok(u64::from(cx.seccomp_mode())),
        libc::PR_SET_SECCOMP => crate::sys_seccomp::set_mode(cx, a, b)?,
        libc::PR_CAPBSET_READ if a <= 40 => {
            return Ok(u64::from(cx.creds().bounding.has(u32::try_from(a).unwrap_or(0))));
        }
        libc::PR_CAPBSET_DROP if a <= 40 => {
            if !cx.creds().has_cap_here(cap::SETPCAP) {
                return Err(Errno::EPERM);
            }
            let old = cx.creds();
            let bounding = CapSet(old.bounding.0 & !(1 << a));
            cx.set_creds(Arc::new(Credentials { bounding, ..Credentials::clone(&old) }));
        }
        libc::PR_GET_SECUREBITS => return Ok(u64::from(cx.creds().securebits)),
        libc::PR_SET_SECUREBITS => {
            if !cx.creds().has_cap_here(cap::SETPCAP) {
                return Err(Errno::EPERM);
            }
            let old = cx.creds().securebits;
            let securebits = u32::try_from(a).ok().filter(|bits| *bits < 1 << 8).ok_or(Errno::EPERM)?;
            // A locked bit stays, and so does its lock.
            let locks = old & SECUREBIT_LOCKS;
            if locks >> 1 & (old ^ securebits) != 0 || locks & !securebits != 0 {
                return Err(Errno::EPERM);
            }
            cx.set_creds(Arc::new(Credentials { securebits, ..Credentials::clone(&cx.creds()) }));
        }
        libc::PR_SET_NO_NEW_PRIVS if a == 1 && no_more => {
            cx.set_creds(Arc::new(Credentials { no_new_privs: true, ..Credentials::clone(&cx.creds()) }));
        }
        libc::PR_GET_NO_NEW_PRIVS if a == 0 && no_more => return Ok(u64::from(cx.creds().no_new_privs)),
        libc::PR_SET_CHILD_SUBREAPER => cx.group().set_subreaper(a != 0),
        libc::PR_GET_CHILD_SUBREAPER => cx.write_obj(a, &i32::from(cx.group().is_subreaper()))?,
        libc::PR_CAP_AMBIENT => return cap_ambient(cx, a, b),
        libc::PR_SET_TIMERSLACK => cx.set_timer_slack_ns(a),
        libc::PR_GET_TIMERSLACK => return Ok(cx.timer_slack_ns()),
        libc::PR_SET_THP_DISABLE if b == 0 && c == 0 => {}
        libc::PR_GET_THP_DISABLE if a == 0 && no_more => return Ok(0),
        libc::PR_GET_TSC => cx.write_obj(a, &libc::PR_TSC_ENABLE)?,
        libc::PR_SET_VMA => return set_vma_name(cx, a, b, c, d),
        libc::PR_MCE_KILL => mce_kill(a, b, c, d)?,
        libc::PR_MCE_KILL_GET if a == 0 && no_more => return Ok(2),
        libc::PR_SET_MM => set_mm(cx, a, b, c, d)?,
        libc::PR_GET_TIMING => {}
        libc::PR_SET_TIMING if a == 0 => {}
        libc::PR_SET_TSC if a == u64::from(libc::PR_TSC_ENABLE.unsigned_abs()) => {}
        libc::PR_TASK_PERF_EVENTS_DISABLE | libc::PR_TASK_PERF_EVENTS_ENABLE => {}
        libc::PR_GET_SPECULATION_CTRL if no_more => return speculation(a, false),
        libc::PR_SET_SPECULATION_CTRL if c == 0 && d == 0 => return speculation(a, true),
        PR_SET_IO_FLUSHER | PR_GET_IO_FLUSHER if !cx.creds().has_cap(cap::SYS_RESOURCE) => {
            return Err(Errno::EPERM);
        }
        PR_SET_IO_FLUSHER if a <= 1 && no_more => {}
        PR_GET_IO_FLUSHER if a == 0 && no_more => return Ok(0),
        libc::PR_GET_MDWE if a == 0 && no_more => return Ok(0),
        PR_GET_AUXV if c == 0 && d == 0 => {
            let auxv = cx.mm().layout().auxv;
            let len = usize::try_from(b).unwrap_or(usize::MAX).min(auxv.len());
            cx.copy_out(a, auxv.get(..len).unwrap_or_default())?;
            return Ok(auxv.len() as u64);
        }
        libc::PR_GET_TID_ADDRESS => cx.write_obj(a, &cx.clear_child_tid())?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// The locks of the secure bits: each above the bit that it locks.
const SECUREBIT_LOCKS: u32 = 0b1010_1010;
/// `SECBIT_NO_CAP_AMBIENT_RAISE`.
const NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;
/// `PR_GET_AUXV`.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// `PR_SET_MM`: where the program's parts are, as `/proc/PID/stat` shows it.
fn set_mm(cx: &Current, what: u64, addr: u64, c: u64, d: u64) -> Result<()> {
    if d != 0 || c != 0 {
        return Err(Errno::EINVAL);
    }
    if !cx.creds().has_cap(cap::SYS_RESOURCE) {
        return Err(Errno::EPERM);
    }
    let mm = cx.mm();
    if addr < 0x1_0000 || addr >= mm.user_range().end {
        return Err(Errno::EINVAL);
    }
    let mapped = mm.find(addr).is_some();
    let needs_mapping = matches!(what, 5 | 8..=11);
    if needs_mapping && !mapped {
        return Err(Errno::EFAULT);
    }
    if !(1..=11).contains(&what) {
        return Err(Errno::EINVAL);
    }
    mm.set_layout(|layout| {
        let place = match what {
            1 => &mut layout.start_code,
            2 => &mut layout.end_code,
            3 => &mut layout.start_data,
            4 => &mut layout.end_data,
            5 => &mut layout.start_stack,
            6 => &mut layout.start_brk,
            7 => &mut layout.brk,
            8 => &mut layout.arg_start,
            9 => &mut layout.arg_end,
            10 => &mut layout.env_start,
            _ => &mut layout.env_end,
        };
        *place = addr;
    });
    Ok(())
}

/// `PR_MCE_KILL`: there are no machine checks here, but wrong requests are refused.
fn mce_kill(a: u64, b: u64, c: u64, d: u64) -> Result<()> {
    let valid = c == 0 && d == 0 && matches!((a, b), (0, 0) | (1, 0..=2));
    if valid { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `PR_GET_SPECULATION_CTRL` and `PR_SET_SPECULATION_CTRL`: the processor is the host's, so nothing can be set.
fn speculation(what: u64, set: bool) -> Result<u64> {
    match what {
        0..=2 if set => Err(Errno::ENXIO),
        // Not affected, as far as a program can do anything about it.
        0..=2 => Ok(0),
        _ => Err(Errno::ENODEV),
    }
}

fn cap_ambient(cx: &Current, command: u64, capability: u64) -> Result<u64> {
    const IS_SET: u64 = 1;
    const RAISE: u64 = 2;
    const LOWER: u64 = 3;
    const CLEAR_ALL: u64 = 4;
    let old = cx.creds();
    let ambient = match command {
        CLEAR_ALL if capability == 0 => CapSet::EMPTY,
        IS_SET | RAISE | LOWER if capability <= 40 => {
            let number = u32::try_from(capability).unwrap_or(0);
            let bit = CapSet(1 << number);
            match command {
                IS_SET => return Ok(u64::from(old.ambient.has(number))),
                LOWER => CapSet(old.ambient.0 & !bit.0),
                _ if !bit.is_subset_of(old.permitted.intersect(old.inheritable))
                    || old.securebits & NO_CAP_AMBIENT_RAISE != 0 =>
                {
                    return Err(Errno::EPERM);
                }
                _ => old.ambient.union(bit),
            }
        }
        _ => return Err(Errno::EINVAL),
    };
    cx.set_creds(Arc::new(Credentials { ambient, ..Credentials::clone(&old) }));
    Ok(0)
}

/// `PR_SET_VMA_ANON_NAME`.
fn set_vma_name(cx: &Current, what: u64, addr: u64, len: u64, name: u64) -> Result<u64> {
    if what != 0 {
        return Err(Errno::EINVAL);
    }
    let name = match name {
        0 => None,
        at => Some(sentry_memory::copy_in_cstr(cx.task.as_ref(), at, 80, Errno::EINVAL)?),
    };
    let valid = |b: &u8| (0x20..0x7f).contains(b) && !b"\\`$[]".contains(b);
    if !name.iter().flatten().all(valid) {
        return Err(Errno::EINVAL);
    }
    cx.mm().set_anon_name(addr, len, name.as_deref())?;
    Ok(0)
}

async fn restart_syscall(cx: &mut Current) -> SysResult {
    match cx.take_restart_block() {
        Some(RestartBlock::Sleep { deadline, remaining }) => {
            crate::sys_time::sleep_until(cx, deadline, remaining).await.map(|()| 0)
        }
        Some(RestartBlock::Futex { addr, value, bitset, shared, deadline }) => {
            crate::sys_futex::restart_wait(cx, addr, value, bitset, shared, deadline).await
        }
        Some(RestartBlock::Poll { fds, nfds, deadline }) => {
            crate::sys_poll::restart_poll(cx, fds, nfds, deadline).await
        }
        None => Err(Stop::Errno(Errno::EINTR)),
    }
}
