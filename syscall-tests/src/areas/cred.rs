//! User and group ids, capabilities: credentials(7), capabilities(7).

use crate::harness::Outcome;
use crate::sys;
use libc::*;

cases![
    ids_of_root,
    setuid_drops_for_good,
    seteuid_comes_back,
    setresuid_rules,
    setreuid_moves_the_saved_id,
    groups_are_set_and_read,
    setfsuid_returns_the_old_one,
    capabilities_go_with_uid_zero,
    keepcaps_keeps_permitted,
    capset_cannot_raise,
    bounding_set_drops,
    kill_needs_the_same_user,
];

fn ids() -> (u32, u32, u32) {
    let (mut r, mut e, mut s) = (9, 9, 9);
    unsafe { getresuid(&raw mut r, &raw mut e, &raw mut s) };
    (r, e, s)
}

fn raw3(nr: i64, a: i64, b: i64, c: i64) -> i64 {
    unsafe { syscall(nr, a, b, c) }
}

fn ids_of_root() -> Outcome {
    same!(ids(), (0, 0, 0));
    same!(unsafe { (getuid(), geteuid(), getgid(), getegid()) }, (0, 0, 0, 0));
    fails!(EFAULT, syscall(SYS_getresuid, 8usize, 8usize, 8usize));
    Ok(())
}

fn setuid_drops_for_good() -> Outcome {
    ok!(raw3(SYS_setuid, 1000, 0, 0));
    same!(ids(), (1000, 1000, 1000));
    fails!(EPERM, raw3(SYS_setuid, 0, 0, 0));
    ok!(raw3(SYS_setuid, 1000, 0, 0));
    Ok(())
}

fn seteuid_comes_back() -> Outcome {
    ok!(raw3(SYS_setresuid, -1, 1000, -1));
    same!(ids(), (0, 1000, 0));
    fails!(EPERM, raw3(SYS_setresuid, -1, 2000, -1));
    ok!(raw3(SYS_setresuid, -1, 0, -1));
    same!(ids(), (0, 0, 0));
    Ok(())
}

fn setresuid_rules() -> Outcome {
    ok!(raw3(SYS_setresuid, 1, 2, 3));
    same!(ids(), (1, 2, 3));
    fails!(EPERM, raw3(SYS_setresuid, 4, -1, -1));
    ok!(raw3(SYS_setresuid, 3, 1, 2));
    same!(ids(), (3, 1, 2));
    ok!(raw3(SYS_setresuid, -1, -1, -1));
    Ok(())
}

fn setreuid_moves_the_saved_id() -> Outcome {
    ok!(raw3(SYS_setreuid, 1000, 2000, 0));
    same!(ids(), (1000, 2000, 2000));
    ok!(raw3(SYS_setreuid, -1, 1000, 0));
    same!(ids(), (1000, 1000, 2000));
    fails!(EPERM, raw3(SYS_setreuid, 2000, -1, 0));
    Ok(())
}

fn groups_are_set_and_read() -> Outcome {
    let set = [5u32, 3, 9];
    ok!(syscall(SYS_setgroups, 3, set.as_ptr()));
    let mut got = [0u32; 8];
    same!(ok!(syscall(SYS_getgroups, 8, got.as_mut_ptr())), 3);
    let mut list = got[..3].to_vec();
    list.sort_unstable();
    same!(list, vec![3, 5, 9]);
    same!(ok!(syscall(SYS_getgroups, 0, 0usize)), 3);
    fails!(EINVAL, syscall(SYS_getgroups, 2, got.as_mut_ptr()));
    fails!(EINVAL, syscall(SYS_setgroups, 70000, set.as_ptr()));
    sys::drop_root()?;
    fails!(EPERM, syscall(SYS_setgroups, 3, set.as_ptr()));
    Ok(())
}

fn setfsuid_returns_the_old_one() -> Outcome {
    same!(raw3(SYS_setfsuid, 1000, 0, 0), 0);
    same!(raw3(SYS_setfsuid, -1, 0, 0), 1000);
    same!(raw3(SYS_setfsgid, 1000, 0, 0), 0);
    Ok(())
}

/// Effective, permitted and inheritable sets.
fn caps() -> Result<[u64; 3], String> {
    let header = [0x2008_0522u32, 0];
    let mut data = [0u32; 6];
    ok!(syscall(SYS_capget, header.as_ptr(), data.as_mut_ptr()));
    Ok([0, 1, 2].map(|i| u64::from(data[i]) | u64::from(data[i + 3]) << 32))
}

fn capset_to(effective: u64, permitted: u64, inheritable: u64) -> i64 {
    let header = [0x2008_0522u32, 0];
    let sets = [effective, permitted, inheritable];
    let data: Vec<u32> =
        sets.iter().map(|s| *s as u32).chain(sets.iter().map(|s| (*s >> 32) as u32)).collect();
    unsafe { syscall(SYS_capset, header.as_ptr(), data.as_ptr()) }
}

fn capabilities_go_with_uid_zero() -> Outcome {
    let [effective, permitted, _] = caps()?;
    want!(permitted != 0 && effective == permitted, "root has {effective:#x} of {permitted:#x}");
    ok!(raw3(SYS_setresuid, -1, 1000, -1));
    let [effective, permitted2, _] = caps()?;
    same!((effective, permitted2), (0, permitted));
    ok!(raw3(SYS_setresuid, -1, 0, -1));
    same!(caps()?[0], permitted);
    ok!(raw3(SYS_setresuid, 1000, 1000, 1000));
    same!(caps()?, [0, 0, 0]);
    Ok(())
}

fn keepcaps_keeps_permitted() -> Outcome {
    let permitted = caps()?[1];
    ok!(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    ok!(raw3(SYS_setresuid, 1000, 1000, 1000));
    same!(caps()?[..2], [0, permitted]);
    ok!(capset_to(1, 1, 0));
    same!(caps()?[..2], [1, 1]);
    Ok(())
}

fn capset_cannot_raise() -> Outcome {
    let permitted = caps()?[1];
    ok!(capset_to(permitted & !1, permitted & !1, 0));
    fails!(EPERM, capset_to(permitted, permitted, 0));
    let header = [0u32, 0];
    fails!(EINVAL, syscall(SYS_capget, header.as_ptr(), [0u32; 6].as_mut_ptr()));
    same!(header[0], header[0]);
    Ok(())
}

fn bounding_set_drops() -> Outcome {
    same!(ok!(prctl(PR_CAPBSET_READ, 0, 0, 0, 0)), 1);
    ok!(prctl(PR_CAPBSET_DROP, 0, 0, 0, 0));
    same!(ok!(prctl(PR_CAPBSET_READ, 0, 0, 0, 0)), 0);
    fails!(EINVAL, prctl(PR_CAPBSET_READ, 1000, 0, 0, 0));
    Ok(())
}

fn kill_needs_the_same_user() -> Outcome {
    let kid = sys::fork(|| {
        sys::sleep_ms(100_000);
        Ok(())
    })?;
    sys::fork(|| {
        sys::drop_root()?;
        fails!(EPERM, kill(kid.pid, SIGTERM));
        fails!(EPERM, kill(kid.pid, 0));
        Ok(())
    })?
    .ok()?;
    ok!(kill(kid.pid, SIGKILL));
    kid.status()?;
    Ok(())
}
