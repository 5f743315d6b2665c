//! How tasks are scheduled: sched(7), ioprio_set(2), getcpu(2).

use crate::harness::Outcome;
use crate::sys;
use libc::*;

cases![
    attr_is_set_and_read,
    attr_sizes,
    attr_errors,
    attr_keeps_what_it_is_told_to_keep,
    real_time_needs_the_right,
    nice_needs_the_right_to_fall,
    idle_policy_is_left_with_the_right_alone,
    reset_on_fork_resets,
    policy_is_inherited,
    priority_range,
    rr_interval,
    param_of_another_policy_is_einval,
    affinity_is_set_and_inherited,
    affinity_errors,
    others_need_the_right,
    getcpu_is_in_the_affinity,
    io_priority_is_set_and_inherited,
    io_priority_errors,
    priority_of_a_group_and_user,
    setpriority_errors,
    sched_yield_is_fine,
];

#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util: [u32; 2],
}

fn set(attr: &Attr) -> i64 {
    unsafe { syscall(SYS_sched_setattr, 0, &raw const *attr, 0) }
}

fn get() -> Result<Attr, String> {
    let mut attr = Attr::default();
    ok!(syscall(SYS_sched_getattr, 0, &raw mut attr, 56, 0));
    Ok(attr)
}

const SIZE: u32 = 48;

fn attr_is_set_and_read() -> Outcome {
    ok!(set(&Attr { size: SIZE, policy: SCHED_BATCH as u32, nice: 5, ..Attr::default() }));
    let got = get()?;
    same!((got.size, got.policy, got.nice, got.priority), (56, SCHED_BATCH as u32, 5, 0));
    same!(ok!(sched_getscheduler(0)), SCHED_BATCH);
    same!(ok!(getpriority(PRIO_PROCESS, 0)), 5);
    ok!(set(&Attr { size: 0, policy: SCHED_OTHER as u32, nice: 50, ..Attr::default() }));
    same!(get()?.nice, 19);
    Ok(())
}

fn attr_sizes() -> Outcome {
    let mut attr = Attr { size: 47, ..Attr::default() };
    fails!(E2BIG, syscall(SYS_sched_setattr, 0, &raw mut attr, 0));
    same!(attr.size, 56);
    let mut long = [0u32; 40];
    long[0] = 160;
    ok!(syscall(SYS_sched_setattr, 0, long.as_mut_ptr(), 0));
    long[0] = 160;
    long[30] = 1;
    fails!(E2BIG, syscall(SYS_sched_setattr, 0, long.as_mut_ptr(), 0));
    same!(long[0], 56);
    fails!(EINVAL, syscall(SYS_sched_getattr, 0, long.as_mut_ptr(), 47, 0));
    fails!(EINVAL, syscall(SYS_sched_getattr, 0, long.as_mut_ptr(), 5000, 0));
    ok!(syscall(SYS_sched_getattr, 0, long.as_mut_ptr(), 48, 0));
    same!(long[0], 48);
    Ok(())
}

fn attr_errors() -> Outcome {
    let good = Attr { size: SIZE, ..Attr::default() };
    fails!(EINVAL, syscall(SYS_sched_setattr, 0, &raw const good, 1));
    fails!(EINVAL, syscall(SYS_sched_setattr, 0, 0usize, 0));
    fails!(EFAULT, syscall(SYS_sched_setattr, 0, 8usize, 0));
    fails!(EINVAL, syscall(SYS_sched_setattr, -1, &raw const good, 0));
    fails!(ESRCH, syscall(SYS_sched_setattr, 4_100_000, &raw const good, 0));
    fails!(EINVAL, set(&Attr { policy: 99, ..good }));
    fails!(EINVAL, set(&Attr { policy: u32::MAX, ..good }));
    fails!(EINVAL, set(&Attr { flags: 1 << 40, ..good }));
    fails!(EINVAL, set(&Attr { priority: 1, ..good }));
    fails!(EINVAL, set(&Attr { policy: SCHED_FIFO as u32, priority: 0, ..good }));
    fails!(EINVAL, set(&Attr { policy: SCHED_FIFO as u32, priority: 100, ..good }));
    fails!(EINVAL, syscall(SYS_sched_getattr, -1, &raw const good, 48, 0));
    fails!(EINVAL, syscall(SYS_sched_getattr, 0, &raw const good, 48, 1));
    Ok(())
}

fn attr_keeps_what_it_is_told_to_keep() -> Outcome {
    ok!(set(&Attr { size: SIZE, policy: SCHED_BATCH as u32, nice: 3, ..Attr::default() }));
    ok!(set(&Attr { size: SIZE, flags: 8, nice: 7, ..Attr::default() }));
    same!((get()?.policy, get()?.nice), (SCHED_BATCH as u32, 7));
    ok!(set(&Attr { size: SIZE, flags: 8 | 16, nice: 9, ..Attr::default() }));
    same!((get()?.policy, get()?.nice), (SCHED_BATCH as u32, 7));
    Ok(())
}

fn fifo(priority: i32) -> i32 {
    let param = sched_param { sched_priority: priority };
    unsafe { sched_setscheduler(0, SCHED_FIFO, &raw const param) }
}

fn real_time_needs_the_right() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        let none = rlimit { rlim_cur: 0, rlim_max: 0 };
        ok!(setrlimit(RLIMIT_RTPRIO, &raw const none));
        fails!(EPERM, fifo(1));
        fails!(EPERM, set(&Attr { size: SIZE, policy: SCHED_RR as u32, priority: 1, ..Attr::default() }));
        Ok(())
    })?
    .ok()
}

fn nice_needs_the_right_to_fall() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        let none = rlimit { rlim_cur: 0, rlim_max: 0 };
        ok!(setrlimit(RLIMIT_NICE, &raw const none));
        ok!(set(&Attr { size: SIZE, nice: 4, ..Attr::default() }));
        fails!(EPERM, set(&Attr { size: SIZE, nice: 3, ..Attr::default() }));
        ok!(set(&Attr { size: SIZE, nice: 4, ..Attr::default() }));
        fails!(EACCES, setpriority(PRIO_PROCESS, 0, 3));
        Ok(())
    })?
    .ok()
}

fn idle_policy_is_left_with_the_right_alone() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        let none = rlimit { rlim_cur: 0, rlim_max: 0 };
        ok!(setrlimit(RLIMIT_NICE, &raw const none));
        ok!(set(&Attr { size: SIZE, policy: SCHED_IDLE as u32, ..Attr::default() }));
        fails!(EPERM, set(&Attr { size: SIZE, policy: SCHED_OTHER as u32, ..Attr::default() }));
        Ok(())
    })?
    .ok()
}

fn reset_on_fork_resets() -> Outcome {
    ok!(set(&Attr { size: SIZE, policy: SCHED_BATCH as u32, flags: 1, nice: -3, ..Attr::default() }));
    same!(ok!(sched_getscheduler(0)), SCHED_BATCH | SCHED_RESET_ON_FORK);
    sys::fork(|| {
        let got = get()?;
        same!((got.flags, got.nice), (0, 0));
        Ok(())
    })?
    .ok()?;
    // Only with the right is the flag taken back.
    sys::fork(|| {
        ok!(set(&Attr { size: SIZE, policy: SCHED_BATCH as u32, flags: 1, nice: 0, ..Attr::default() }));
        sys::drop_root()?;
        fails!(EPERM, set(&Attr { size: SIZE, policy: SCHED_BATCH as u32, ..Attr::default() }));
        Ok(())
    })?
    .ok()
}

fn policy_is_inherited() -> Outcome {
    ok!(set(&Attr { size: SIZE, policy: SCHED_BATCH as u32, nice: 2, ..Attr::default() }));
    sys::fork(|| {
        same!((get()?.policy, get()?.nice), (SCHED_BATCH as u32, 2));
        Ok(())
    })?
    .ok()
}

fn priority_range() -> Outcome {
    for (policy, low, high) in
        [(SCHED_FIFO, 1, 99), (SCHED_RR, 1, 99), (SCHED_OTHER, 0, 0), (SCHED_IDLE, 0, 0)]
    {
        same!(ok!(sched_get_priority_min(policy)), low);
        same!(ok!(sched_get_priority_max(policy)), high);
    }
    fails!(EINVAL, sched_get_priority_max(77));
    fails!(EINVAL, sched_get_priority_min(-1));
    Ok(())
}

fn rr_interval() -> Outcome {
    let mut t = timespec { tv_sec: 9, tv_nsec: 9 };
    ok!(sched_rr_get_interval(0, &raw mut t));
    same!(t.tv_sec, 0);
    fails!(EINVAL, sched_rr_get_interval(-1, &raw mut t));
    fails!(ESRCH, sched_rr_get_interval(4_100_000, &raw mut t));
    fails!(EFAULT, sched_rr_get_interval(0, std::ptr::dangling_mut::<timespec>()));
    Ok(())
}

fn param_of_another_policy_is_einval() -> Outcome {
    let one = sched_param { sched_priority: 1 };
    fails!(EINVAL, sched_setparam(0, &raw const one));
    fails!(EINVAL, sched_setscheduler(0, SCHED_OTHER, &raw const one));
    fails!(EINVAL, sched_setscheduler(0, 77, &raw const one));
    fails!(EINVAL, sched_setscheduler(0, -1, &raw const one));
    fails!(EINVAL, sched_setparam(0, std::ptr::null()));
    let mut got = sched_param { sched_priority: 9 };
    ok!(sched_getparam(0, &raw mut got));
    same!(got.sched_priority, 0);
    Ok(())
}

fn cpus() -> Result<Vec<u64>, String> {
    let mut mask = [0u64; 16];
    let n = ok!(syscall(SYS_sched_getaffinity, 0, 128, mask.as_mut_ptr())) as usize;
    want!(n.is_multiple_of(8) && n <= 128, "size {n}");
    Ok(mask.to_vec())
}

fn affinity_is_set_and_inherited() -> Outcome {
    let all = cpus()?;
    let first = 1u64 << all[0].trailing_zeros();
    ok!(syscall(SYS_sched_setaffinity, 0, 8, &raw const first));
    same!(cpus()?[0], first);
    sys::fork(|| {
        same!(cpus()?[0], first);
        want!(sys::slurp("/proc/self/status")?.contains("Cpus_allowed_list:\t"), "no list");
        Ok(())
    })?
    .ok()
}

fn affinity_errors() -> Outcome {
    let mut mask = [0u64; 16];
    fails!(EINVAL, syscall(SYS_sched_getaffinity, 0, 7, mask.as_mut_ptr()));
    fails!(ESRCH, syscall(SYS_sched_getaffinity, 4_100_000, 128, mask.as_mut_ptr()));
    fails!(EFAULT, syscall(SYS_sched_getaffinity, 0, 128, 8usize));
    fails!(EINVAL, syscall(SYS_sched_setaffinity, 0, 128, mask.as_ptr()));
    fails!(EFAULT, syscall(SYS_sched_setaffinity, 0, 8, 8usize));
    Ok(())
}

fn others_need_the_right() -> Outcome {
    let parent = unsafe { getpid() };
    sys::fork(|| {
        sys::drop_root()?;
        let none = sched_param { sched_priority: 0 };
        fails!(EPERM, sched_setscheduler(parent, SCHED_OTHER, &raw const none));
        fails!(EPERM, setpriority(PRIO_PROCESS, parent as u32, 10));
        let mask = !0u64;
        fails!(EPERM, syscall(SYS_sched_setaffinity, parent, 8, &raw const mask));
        fails!(EPERM, syscall(SYS_ioprio_set, 1, parent, 2 << 13 | 4));
        // Reading is free.
        ok!(sched_getscheduler(parent));
        Ok(())
    })?
    .ok()
}

fn getcpu_is_in_the_affinity() -> Outcome {
    let all = cpus()?;
    let (mut cpu, mut node) = (u32::MAX, u32::MAX);
    ok!(syscall(SYS_getcpu, &raw mut cpu, &raw mut node, 0));
    want!(cpu < 64 && all[0] & 1 << cpu != 0, "cpu {cpu} not in {:x}", all[0]);
    same!(node, 0);
    ok!(syscall(SYS_getcpu, 0, 0, 0));
    fails!(EFAULT, syscall(SYS_getcpu, 8usize, 0, 0));
    Ok(())
}

fn io_priority_is_set_and_inherited() -> Outcome {
    let get = |which: i32| unsafe { syscall(SYS_ioprio_get, which, 0) };
    ok!(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
    same!(get(1), 2 << 13 | 6);
    sys::fork(|| {
        same!(get(1), 2 << 13 | 6);
        ok!(syscall(SYS_ioprio_set, 1, 0, 3 << 13));
        same!(get(1), 3 << 13);
        Ok(())
    })?
    .ok()?;
    same!(get(1), 2 << 13 | 6);
    Ok(())
}

fn io_priority_errors() -> Outcome {
    fails!(EINVAL, syscall(SYS_ioprio_set, 9, 0, 2 << 13));
    fails!(EINVAL, syscall(SYS_ioprio_set, 1, 0, 1));
    fails!(EINVAL, syscall(SYS_ioprio_set, 1, 0, 4 << 13));
    fails!(ESRCH, syscall(SYS_ioprio_set, 1, 4_100_000, 2 << 13));
    fails!(EINVAL, syscall(SYS_ioprio_get, 9, 0));
    fails!(ESRCH, syscall(SYS_ioprio_get, 1, 4_100_000));
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, syscall(SYS_ioprio_set, 1, 0, 1 << 13));
        ok!(syscall(SYS_ioprio_set, 1, 0, 3 << 13));
        Ok(())
    })?
    .ok()
}

fn priority_of_a_group_and_user() -> Outcome {
    ok!(setpriority(PRIO_PGRP, 0, 6));
    same!(ok!(getpriority(PRIO_PGRP, 0)), 6);
    same!(ok!(getpriority(PRIO_PROCESS, 0)), 6);
    sys::fork(|| {
        ok!(setresuid(7654, 7654, 7654));
        ok!(setpriority(PRIO_USER, 0, 9));
        same!(ok!(getpriority(PRIO_USER, 7654)), 9);
        Ok(())
    })?
    .ok()
}

fn setpriority_errors() -> Outcome {
    fails!(EINVAL, setpriority(9, 0, 1));
    fails!(ESRCH, setpriority(PRIO_PROCESS, 4_100_000, 1));
    fails!(EINVAL, getpriority(9, 0));
    fails!(ESRCH, getpriority(PRIO_PGRP, 4_100_000));
    ok!(setpriority(PRIO_PROCESS, 0, 100));
    same!(ok!(getpriority(PRIO_PROCESS, 0)), 19);
    Ok(())
}

fn sched_yield_is_fine() -> Outcome {
    for _ in 0..100 {
        ok!(sched_yield());
    }
    Ok(())
}
