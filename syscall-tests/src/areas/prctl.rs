//! prctl(2), personality(2), arch_prctl(2).

use crate::harness::Outcome;
use crate::sys::{self, Map, c};
use libc::*;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering::SeqCst};

cases![
    name_is_cut_and_read_back,
    name_shows_in_proc,
    pdeathsig_values,
    pdeathsig_is_not_inherited,
    dumpable_values,
    dumpable_is_cleared_by_setuid,
    subreaper_is_set_and_not_inherited,
    timer_slack,
    timer_slack_is_inherited,
    no_new_privs_is_for_good,
    bounding_set_reads,
    keepcaps_values,
    tsc_is_readable,
    thp_disable,
    set_mm_needs_the_right,
    auxv_is_copied,
    mce_kill_arguments,
    tid_address,
    anonymous_mappings_are_named,
    unknown_options_are_einval,
    endian_and_unalign_are_einval,
    timing_is_statistical,
    speculation_of_unknown_features_is_enodev,
    io_flusher_needs_the_right,
    mdwe_is_off,
    perf_events_switch,
    bad_pointers_are_efault,
    personality_is_kept_and_inherited,
    arch_prctl_bases,
    arch_prctl_errors,
    rseq_is_there_or_enosys,
    user_dispatch_catches_calls,
    user_dispatch_spares_a_range,
    user_dispatch_checks_its_arguments,
    user_dispatch_ends_with_a_bad_selector,
    user_dispatch_is_not_inherited,
];

const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;

fn name_is_cut_and_read_back() -> Outcome {
    let mut got = [1u8; 16];
    ok!(prctl(PR_SET_NAME, c"a-name-of-more-than-fifteen".as_ptr(), 0, 0, 0));
    ok!(prctl(PR_GET_NAME, got.as_mut_ptr(), 0, 0, 0));
    same!(&got, b"a-name-of-more-\0");
    ok!(prctl(PR_SET_NAME, c"".as_ptr(), 0, 0, 0));
    ok!(prctl(PR_GET_NAME, got.as_mut_ptr(), 0, 0, 0));
    same!(got, [0; 16]);
    Ok(())
}

fn name_shows_in_proc() -> Outcome {
    ok!(prctl(PR_SET_NAME, c"strange (n) x".as_ptr(), 0, 0, 0));
    let comm = sys::slurp("/proc/self/comm")?;
    same!(comm.as_str(), "strange (n) x\n");
    want!(sys::slurp("/proc/self/stat")?.contains("(strange (n) x)"), "not in stat");
    Ok(())
}

fn pdeathsig_values() -> Outcome {
    let mut got = -1;
    ok!(prctl(PR_GET_PDEATHSIG, &raw mut got, 0, 0, 0));
    same!(got, 0);
    ok!(prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0));
    ok!(prctl(PR_GET_PDEATHSIG, &raw mut got, 0, 0, 0));
    same!(got, SIGUSR2);
    fails!(EINVAL, prctl(PR_SET_PDEATHSIG, 65, 0, 0, 0));
    fails!(EINVAL, prctl(PR_SET_PDEATHSIG, -1, 0, 0, 0));
    Ok(())
}

fn pdeathsig_is_not_inherited() -> Outcome {
    ok!(prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0));
    sys::fork(|| {
        let mut got = -1;
        ok!(prctl(PR_GET_PDEATHSIG, &raw mut got, 0, 0, 0));
        same!(got, 0);
        Ok(())
    })?
    .ok()
}

fn dumpable_values() -> Outcome {
    same!(ok!(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)), 1);
    ok!(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    same!(ok!(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)), 0);
    fails!(EINVAL, prctl(PR_SET_DUMPABLE, 2, 0, 0, 0));
    fails!(EINVAL, prctl(PR_SET_DUMPABLE, 3, 0, 0, 0));
    sys::fork(|| {
        same!(ok!(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)), 0);
        Ok(())
    })?
    .ok()
}

fn dumpable_is_cleared_by_setuid() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        same!(ok!(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)), 0);
        Ok(())
    })?
    .ok()
}

fn subreaper_is_set_and_not_inherited() -> Outcome {
    let get = || -> Result<i32, String> {
        let mut got = -1;
        ok!(prctl(PR_GET_CHILD_SUBREAPER, &raw mut got, 0, 0, 0));
        Ok(got)
    };
    same!(get()?, 0);
    ok!(prctl(PR_SET_CHILD_SUBREAPER, 77, 0, 0, 0));
    same!(get()?, 1);
    sys::fork(|| {
        same!(get()?, 0);
        Ok(())
    })?
    .ok()
}

fn timer_slack() -> Outcome {
    let default = ok!(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
    ok!(prctl(PR_SET_TIMERSLACK, 12345, 0, 0, 0));
    same!(ok!(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)), 12345);
    ok!(prctl(PR_SET_TIMERSLACK, 0, 0, 0, 0));
    same!(ok!(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)), default);
    Ok(())
}

fn timer_slack_is_inherited() -> Outcome {
    ok!(prctl(PR_SET_TIMERSLACK, 999, 0, 0, 0));
    sys::fork(|| {
        same!(ok!(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)), 999);
        // What it began with is its own default.
        ok!(prctl(PR_SET_TIMERSLACK, 5, 0, 0, 0));
        ok!(prctl(PR_SET_TIMERSLACK, 0, 0, 0, 0));
        same!(ok!(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)), 999);
        Ok(())
    })?
    .ok()
}

fn no_new_privs_is_for_good() -> Outcome {
    same!(ok!(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)), 0);
    fails!(EINVAL, prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    fails!(EINVAL, prctl(PR_SET_NO_NEW_PRIVS, 1, 1, 0, 0));
    fails!(EINVAL, prctl(PR_GET_NO_NEW_PRIVS, 1, 0, 0, 0));
    ok!(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    fails!(EINVAL, prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    same!(ok!(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)), 1);
    sys::fork(|| {
        same!(ok!(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)), 1);
        Ok(())
    })?
    .ok()
}

fn bounding_set_reads() -> Outcome {
    same!(ok!(prctl(PR_CAPBSET_READ, 0, 0, 0, 0)), 1);
    fails!(EINVAL, prctl(PR_CAPBSET_READ, 64, 0, 0, 0));
    fails!(EINVAL, prctl(PR_CAPBSET_DROP, 64, 0, 0, 0));
    ok!(prctl(PR_CAPBSET_DROP, 5, 0, 0, 0));
    same!(ok!(prctl(PR_CAPBSET_READ, 5, 0, 0, 0)), 0);
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, prctl(PR_CAPBSET_DROP, 1, 0, 0, 0));
        Ok(())
    })?
    .ok()
}

fn keepcaps_values() -> Outcome {
    same!(ok!(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0)), 0);
    ok!(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    same!(ok!(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0)), 1);
    // One bit by two names.
    same!(ok!(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0)), 16);
    fails!(EINVAL, prctl(PR_SET_KEEPCAPS, 2, 0, 0, 0));
    Ok(())
}

fn tsc_is_readable() -> Outcome {
    let mut got = -1;
    ok!(prctl(PR_GET_TSC, &raw mut got, 0, 0, 0));
    same!(got, PR_TSC_ENABLE);
    ok!(prctl(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0));
    fails!(EINVAL, prctl(PR_SET_TSC, 9, 0, 0, 0));
    Ok(())
}

fn thp_disable() -> Outcome {
    same!(ok!(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)), 0);
    fails!(EINVAL, prctl(PR_GET_THP_DISABLE, 1, 0, 0, 0));
    ok!(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0));
    Ok(())
}

fn set_mm_needs_the_right() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, prctl(PR_SET_MM, PR_SET_MM_START_CODE, 0x10000, 0, 0));
        fails!(EINVAL, prctl(PR_SET_MM, PR_SET_MM_START_CODE, 0x10000, 0, 1));
        Ok(())
    })?
    .ok()
}

fn auxv_is_copied() -> Outcome {
    const PR_GET_AUXV: i32 = 0x4155_5856;
    let mut got = [0u64; 128];
    let size = ok!(prctl(PR_GET_AUXV, got.as_mut_ptr(), 1024usize, 0, 0)) as usize;
    want!(size > 100 && size <= 1024, "size {size}");
    let pagesz = got.chunks(2).find(|p| p[0] == AT_PAGESZ).map(|p| p[1]);
    same!(pagesz, Some(4096));
    let mut little = [0u64; 2];
    same!(ok!(prctl(PR_GET_AUXV, little.as_mut_ptr(), 8usize, 0, 0)) as usize, size);
    same!((little[0], little[1]), (got[0], 0));
    fails!(EINVAL, prctl(PR_GET_AUXV, got.as_mut_ptr(), 8usize, 1, 0));
    Ok(())
}

fn mce_kill_arguments() -> Outcome {
    same!(ok!(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0)), PR_MCE_KILL_DEFAULT);
    fails!(EINVAL, prctl(PR_MCE_KILL_GET, 1, 0, 0, 0));
    ok!(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_DEFAULT, 0, 0));
    fails!(EINVAL, prctl(PR_MCE_KILL, 9, 0, 0, 0));
    fails!(EINVAL, prctl(PR_MCE_KILL, PR_MCE_KILL_SET, 9, 0, 0));
    Ok(())
}

fn tid_address() -> Outcome {
    let mut got = 1usize;
    let mut place = 0i32;
    ok!(syscall(SYS_set_tid_address, &raw mut place));
    match unsafe { prctl(PR_GET_TID_ADDRESS, &raw mut got, 0, 0, 0) } {
        0 => same!(got, &raw mut place as usize),
        _ => skip!("the host is built without it"),
    }
    ok!(syscall(SYS_set_tid_address, 0usize));
    Ok(())
}

fn anonymous_mappings_are_named() -> Outcome {
    let map = Map::anon(4096)?;
    let got = unsafe { prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, map.at(0), 4096usize, c"my heap".as_ptr()) };
    if got != 0 {
        skip!("the host is built without it");
    }
    want!(sys::slurp("/proc/self/maps")?.contains("[anon:my heap]"), "no name");
    fails!(EINVAL, prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, map.at(0), 4096usize, c"bad[name]".as_ptr()));
    fails!(EINVAL, prctl(PR_SET_VMA, 9, map.at(0), 4096usize, c"x".as_ptr()));
    Ok(())
}

fn unknown_options_are_einval() -> Outcome {
    fails!(EINVAL, prctl(9999, 0, 0, 0, 0));
    fails!(EINVAL, prctl(-1, 0, 0, 0, 0));
    Ok(())
}

fn endian_and_unalign_are_einval() -> Outcome {
    let mut got = 0;
    fails!(EINVAL, prctl(PR_GET_ENDIAN, &raw mut got, 0, 0, 0));
    fails!(EINVAL, prctl(PR_GET_UNALIGN, &raw mut got, 0, 0, 0));
    fails!(EINVAL, prctl(PR_GET_FPEXC, &raw mut got, 0, 0, 0));
    fails!(EINVAL, prctl(PR_SET_FP_MODE, 0, 0, 0, 0));
    Ok(())
}

fn timing_is_statistical() -> Outcome {
    same!(ok!(prctl(PR_GET_TIMING, 0, 0, 0, 0)), 0);
    ok!(prctl(PR_SET_TIMING, 0, 0, 0, 0));
    fails!(EINVAL, prctl(PR_SET_TIMING, 1, 0, 0, 0));
    Ok(())
}

fn speculation_of_unknown_features_is_enodev() -> Outcome {
    fails!(ENODEV, prctl(PR_GET_SPECULATION_CTRL, 77, 0, 0, 0));
    fails!(EINVAL, prctl(PR_GET_SPECULATION_CTRL, 0, 1, 0, 0));
    ok!(prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0));
    fails!(ENODEV, prctl(PR_SET_SPECULATION_CTRL, 77, 2, 0, 0));
    Ok(())
}

fn io_flusher_needs_the_right() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0));
        fails!(EPERM, prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0));
        Ok(())
    })?
    .ok()
}

fn mdwe_is_off() -> Outcome {
    same!(ok!(prctl(PR_GET_MDWE, 0, 0, 0, 0)), 0);
    fails!(EINVAL, prctl(PR_GET_MDWE, 1, 0, 0, 0));
    Ok(())
}

fn perf_events_switch() -> Outcome {
    ok!(prctl(PR_TASK_PERF_EVENTS_DISABLE, 0, 0, 0, 0));
    ok!(prctl(PR_TASK_PERF_EVENTS_ENABLE, 0, 0, 0, 0));
    Ok(())
}

fn bad_pointers_are_efault() -> Outcome {
    for option in [PR_GET_PDEATHSIG, PR_GET_NAME, PR_SET_NAME, PR_GET_CHILD_SUBREAPER, PR_GET_TSC] {
        fails!(EFAULT, prctl(option, 8usize, 0, 0, 0));
    }
    Ok(())
}

fn personality_is_kept_and_inherited() -> Outcome {
    let old = ok!(personality(0xffff_ffff));
    same!(ok!(personality(ADDR_NO_RANDOMIZE as u64)), old);
    same!(ok!(personality(0xffff_ffff)), ADDR_NO_RANDOMIZE);
    sys::fork(|| {
        same!(ok!(personality(0xffff_ffff)), ADDR_NO_RANDOMIZE);
        Ok(())
    })?
    .ok()?;
    let exe = sys::self_exe()?;
    let where_is = || -> Result<String, String> {
        Ok(sys::exec_capture(&exe, &["x", "helper", "stack"], &[], || Ok(()))?.0)
    };
    same!(where_is()?, where_is()?);
    let _ = c("x");
    Ok(())
}

fn arch_prctl_bases() -> Outcome {
    let mut fs = 0usize;
    ok!(syscall(SYS_arch_prctl, 0x1003, &raw mut fs));
    want!(fs != 0, "no FS base");
    let mut gs = 1usize;
    ok!(syscall(SYS_arch_prctl, 0x1001, 0x1234_5000usize));
    ok!(syscall(SYS_arch_prctl, 0x1004, &raw mut gs));
    same!(gs, 0x1234_5000);
    sys::fork(|| {
        let mut gs = 1usize;
        ok!(syscall(SYS_arch_prctl, 0x1004, &raw mut gs));
        same!(gs, 0x1234_5000);
        Ok(())
    })?
    .ok()
}

fn arch_prctl_errors() -> Outcome {
    fails!(EPERM, syscall(SYS_arch_prctl, 0x1001, 1usize << 63));
    fails!(EPERM, syscall(SYS_arch_prctl, 0x1002, 0x8000_0000_0000usize));
    fails!(EINVAL, syscall(SYS_arch_prctl, 0x9999, 0usize));
    fails!(EFAULT, syscall(SYS_arch_prctl, 0x1003, 8usize));
    Ok(())
}

fn rseq_is_there_or_enosys() -> Outcome {
    // A length that no version has: refused where the call is, absent where it is not.
    let got = unsafe { syscall(SYS_rseq, 0usize, 7, 0, 0x5305_3053) };
    let e = crate::harness::errno();
    want!(got == -1 && (e == EINVAL || e == ENOSYS || e == EPERM || e == EBUSY), "{got}, errno {e}");
    Ok(())
}

static SELECTOR: AtomicU8 = AtomicU8::new(0);
static CAUGHT: AtomicI32 = AtomicI32::new(0);

const PR_USER_DISPATCH: i32 = 59;

fn dispatch(mode: u64, start: u64, len: u64, selector: u64) -> i32 {
    unsafe { prctl(PR_USER_DISPATCH, mode, start, len, selector) }
}

fn dispatch_on(start: u64, len: u64) -> Outcome {
    if dispatch(1, start, len, &raw const SELECTOR as u64) == -1 && crate::harness::errno() == EINVAL {
        skip!("this kernel has no syscall user dispatch");
    }
    Ok(())
}

extern "C" fn caught(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    SELECTOR.store(0, SeqCst);
    unsafe {
        // The number stands after the address of the call.
        let nr = *info.cast::<i32>().add(6);
        CAUGHT.store(if (*info).si_code == 2 { nr } else { -1 }, SeqCst);
    }
}

fn user_dispatch_catches_calls() -> Outcome {
    sys::on_signal(SIGSYS, caught, 0)?;
    dispatch_on(0, 0)?;
    let pid = unsafe { sys::raw(SYS_getpid, [0; 6]) };
    SELECTOR.store(1, SeqCst);
    // The call is not made: its number stays where a result would be.
    let made = unsafe { sys::raw(SYS_getpid, [0; 6]) };
    same!((made, CAUGHT.load(SeqCst)), (SYS_getpid as isize, SYS_getpid as i32));
    SELECTOR.store(1, SeqCst);
    let made = unsafe { sys::raw(SYS_close, [999, 0, 0, 0, 0, 0]) };
    same!((made, CAUGHT.load(SeqCst)), (SYS_close as isize, SYS_close as i32));
    same!(unsafe { sys::raw(SYS_getpid, [0; 6]) }, pid);
    same!(dispatch(0, 0, 0, 0), 0);
    SELECTOR.store(1, SeqCst);
    same!(unsafe { sys::raw(SYS_getpid, [0; 6]) }, pid);
    Ok(())
}

fn user_dispatch_spares_a_range() -> Outcome {
    sys::on_signal(SIGSYS, caught, 0)?;
    // All of user memory.
    dispatch_on(1, (1 << 47) - 2)?;
    SELECTOR.store(1, SeqCst);
    let pid = unsafe { sys::raw(SYS_getpid, [0; 6]) };
    SELECTOR.store(0, SeqCst);
    same!(pid, unsafe { getpid() } as isize);
    same!(CAUGHT.load(SeqCst), 0);
    Ok(())
}

fn user_dispatch_checks_its_arguments() -> Outcome {
    dispatch_on(0, 0)?;
    fails!(EINVAL, dispatch(1, 4096, 0, 0));
    fails!(EINVAL, dispatch(1, u64::MAX, 2, 0));
    fails!(EFAULT, dispatch(1, 0, 0, u64::MAX));
    fails!(EINVAL, dispatch(0, 1, 0, 0));
    fails!(EINVAL, dispatch(0, 0, 0, 8));
    fails!(EINVAL, dispatch(77, 0, 0, 0));
    Ok(())
}

fn user_dispatch_ends_with_a_bad_selector() -> Outcome {
    sys::fork(|| dispatch_on(0, 0))?.ok()?;
    sys::dies_of(SIGSYS, || {
        let _ = dispatch_on(0, 0);
        SELECTOR.store(7, SeqCst);
        unsafe { getppid() };
    })?;
    let page = sys::Map::anon(4096)?;
    let at = page.at(0);
    sys::dies_of(SIGSEGV, || {
        dispatch(1, 0, 0, at as u64);
        unsafe { munmap(at.cast(), 4096) };
        unsafe { getppid() };
    })
}

fn user_dispatch_is_not_inherited() -> Outcome {
    sys::on_signal(SIGSYS, caught, 0)?;
    dispatch_on(0, 0)?;
    sys::fork(|| {
        SELECTOR.store(1, SeqCst);
        let pid = unsafe { sys::raw(SYS_getpid, [0; 6]) };
        SELECTOR.store(0, SeqCst);
        same!(pid, unsafe { getpid() } as isize);
        same!(CAUGHT.load(SeqCst), 0);
        Ok(())
    })?
    .ok()
}
