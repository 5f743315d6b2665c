//! getrlimit(2), prlimit(2).

use crate::harness::Outcome;
use crate::sys;
use libc::*;

cases![
    limits_are_read_and_set,
    hard_limits_only_fall_without_the_right,
    prlimit_reads_and_sets_at_once,
    limits_pass_to_children,
    process_limit_is_eagain,
    errors,
];

fn get(resource: u32) -> Result<(u64, u64), String> {
    let mut l = rlimit { rlim_cur: 0, rlim_max: 0 };
    ok!(getrlimit(resource, &raw mut l));
    Ok((l.rlim_cur, l.rlim_max))
}

fn set(resource: u32, cur: u64, max: u64) -> i32 {
    let l = rlimit { rlim_cur: cur, rlim_max: max };
    unsafe { setrlimit(resource, &raw const l) }
}

fn limits_are_read_and_set() -> Outcome {
    for resource in 0..16 {
        let (cur, max) = get(resource)?;
        want!(cur <= max, "limit {resource}: {cur} above {max}");
    }
    ok!(set(RLIMIT_CORE, 0, 0));
    same!(get(RLIMIT_CORE)?, (0, 0));
    Ok(())
}

fn hard_limits_only_fall_without_the_right() -> Outcome {
    ok!(set(RLIMIT_NOFILE, 100, 200));
    sys::drop_root()?;
    ok!(set(RLIMIT_NOFILE, 150, 200));
    ok!(set(RLIMIT_NOFILE, 50, 150));
    fails!(EPERM, set(RLIMIT_NOFILE, 50, 200));
    fails!(EINVAL, set(RLIMIT_NOFILE, 100, 90));
    Ok(())
}

fn prlimit_reads_and_sets_at_once() -> Outcome {
    ok!(set(RLIMIT_NOFILE, 100, 200));
    let new = rlimit { rlim_cur: 90, rlim_max: 180 };
    let mut old = rlimit { rlim_cur: 0, rlim_max: 0 };
    ok!(prlimit(0, RLIMIT_NOFILE, &raw const new, &raw mut old));
    same!((old.rlim_cur, old.rlim_max), (100, 200));
    same!(get(RLIMIT_NOFILE)?, (90, 180));
    fails!(ESRCH, prlimit(4_000_000, RLIMIT_NOFILE, std::ptr::null(), &raw mut old));
    Ok(())
}

fn limits_pass_to_children() -> Outcome {
    ok!(set(RLIMIT_NOFILE, 77, 177));
    sys::fork(|| {
        same!(get(RLIMIT_NOFILE)?, (77, 177));
        ok!(set(RLIMIT_NOFILE, 70, 170));
        Ok(())
    })?
    .ok()?;
    same!(get(RLIMIT_NOFILE)?, (77, 177));
    Ok(())
}

fn process_limit_is_eagain() -> Outcome {
    sys::fork(|| {
        ok!(setresgid(4321, 4321, 4321));
        ok!(setresuid(4321, 4321, 4321));
        ok!(set(RLIMIT_NPROC, 1, 1));
        fails!(EAGAIN, fork());
        Ok(())
    })?
    .ok()
}

fn errors() -> Outcome {
    let mut l = rlimit { rlim_cur: 0, rlim_max: 0 };
    fails!(EINVAL, getrlimit(99, &raw mut l));
    fails!(EFAULT, getrlimit(RLIMIT_NOFILE, std::ptr::dangling_mut::<rlimit>()));
    Ok(())
}
