//! Mounts that multiply: shared trees bound into themselves, the limit of a namespace, files of mount namespaces.

use super::mount::{NULL, dir, stage, tmpfs as tmpfs_over};
use crate::harness::Outcome;
use crate::sys::{self, c};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    a_shared_tree_bound_into_itself_multiplies,
    a_loose_copy_of_a_shared_tree_receives_nothing_of_itself,
    a_full_namespace_leaves_a_moved_tree_where_it_was,
    a_peer_moved_into_its_group_receives_itself,
    a_namespace_holds_newer_ones_alone,
    a_copied_namespace_holds_no_other,
    files_of_mount_namespaces_do_not_travel,
    a_loose_copy_of_the_own_namespace_is_eloop,
    a_long_chain_of_namespaces_goes_at_once,
    a_high_stack_comes_off_one_by_one,
    a_stack_is_received_below_what_is_there,
];

fn try_mount(from: &str, to: &str, flags: c_ulong) -> i32 {
    unsafe { mount(c(from).as_ptr(), c(to).as_ptr(), NULL, flags, NULL.cast()) }
}

fn tmpfs(at: &str) -> Outcome {
    dir(at)?;
    tmpfs_over(at)
}

/// The same with a shared tmpfs `p`, its directory `x`, and its peer `q`.
fn peers() -> Outcome {
    stage()?;
    tmpfs("p")?;
    ok!(try_mount("none", "p", MS_SHARED));
    dir("p/x")?;
    dir("q")?;
    ok!(try_mount("p", "q", MS_BIND));
    Ok(())
}

/// The lines of mountinfo at `m/PREFIX` and below.
fn lines(prefix: &str) -> Result<Vec<String>, String> {
    let inner = format!("/m/{prefix}");
    let all = sys::slurp("/proc/self/mountinfo")?;
    Ok(all.lines().filter(|l| l.contains(&inner)).map(str::to_owned).collect())
}

/// Four times the shared `s` bound onto a directory in it: each place there is gets all mounts there are.
fn multiply() -> Outcome {
    tmpfs("s")?;
    ok!(try_mount("none", "s", MS_SHARED));
    for (round, all) in [2, 6, 42, 1806].into_iter().enumerate() {
        let place = format!("s/{round}");
        dir(&place)?;
        ok!(try_mount("s", &place, MS_BIND | MS_REC));
        same!(lines("s")?.len(), all);
    }
    dir("s/more")
}

fn a_shared_tree_bound_into_itself_multiplies() -> Outcome {
    stage()?;
    multiply()?;
    let before = lines("")?;
    for _ in 0..2 {
        fails!(ENOSPC, try_mount("s", "s/more", MS_BIND | MS_REC));
    }
    same!(lines("")?, before);
    ok!(try_mount("s", "s/more", MS_BIND));
    same!(lines("s")?.len(), 3612);
    ok!(umount2(c"s".as_ptr(), MNT_DETACH));
    same!(lines("s")?.len(), 0);
    Ok(())
}

/// What `open_tree(2)` of a path gives, with `OPEN_TREE_CLONE`.
fn loose(path: &str, flags: i32) -> Result<OwnedFd, String> {
    let fd = unsafe { syscall(SYS_open_tree, AT_FDCWD, c(path).as_ptr(), flags | 1) } as i32;
    if fd < 0 && crate::harness::errno() == ENOSYS {
        skip!("no open_tree");
    }
    Ok(sys::own(ok!(fd)))
}

fn put_in_place(fd: &OwnedFd, at: &str) -> c_long {
    const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
    let empty = c"".as_ptr();
    let at = c(at);
    unsafe { syscall(SYS_move_mount, fd.as_raw_fd(), empty, AT_FDCWD, at.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH) }
}

fn a_loose_copy_of_a_shared_tree_receives_nothing_of_itself() -> Outcome {
    const AT_RECURSIVE: i32 = 0x8000;
    stage()?;
    tmpfs("s")?;
    ok!(try_mount("none", "s", MS_SHARED));
    for (round, all) in [2, 6, 42].into_iter().enumerate() {
        let place = format!("s/{round}");
        dir(&place)?;
        let fd = loose("s", AT_RECURSIVE)?;
        ok!(put_in_place(&fd, &place));
        same!(lines("s")?.len(), all);
    }
    Ok(())
}

fn a_full_namespace_leaves_a_moved_tree_where_it_was() -> Outcome {
    stage()?;
    multiply()?;
    tmpfs("tree")?;
    for n in 0..60 {
        tmpfs(&format!("tree/{n}"))?;
    }
    let before = lines("")?;
    fails!(ENOSPC, try_mount("tree", "s/more", MS_MOVE));
    same!(lines("")?, before);
    dir("elsewhere")?;
    ok!(try_mount("tree", "elsewhere", MS_MOVE));
    same!(lines("elsewhere")?.len(), 61);
    Ok(())
}

fn a_peer_moved_into_its_group_receives_itself() -> Outcome {
    peers()?;
    ok!(try_mount("q", "p/x", MS_MOVE));
    same!(lines("q")?.len(), 0);
    let points: Vec<String> =
        lines("p")?.iter().filter_map(|l| Some(l.split(' ').nth(4)?.to_owned())).collect();
    want!(points.iter().any(|p| p.ends_with("/m/p/x/x")), "nothing at p/x/x in {points:?}");
    same!(points.len(), 3);
    Ok(())
}

/// Keeps to one processor: newer kernels number namespaces in batches of each processor, and tell their age by that.
fn on_one_processor() -> Outcome {
    let mut set: cpu_set_t = unsafe { std::mem::zeroed() };
    unsafe { CPU_SET(usize::try_from(sched_getcpu()).unwrap_or(0), &mut set) };
    ok!(sched_setaffinity(0, size_of::<cpu_set_t>(), &raw const set));
    Ok(())
}

fn own_namespace() -> Result<(OwnedFd, String), String> {
    let fd = sys::open("/proc/self/ns/mnt", O_RDONLY)?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok((fd, path))
}

/// Goes to the stage of the namespace that the process is in.
fn enter_stage() -> Outcome {
    let info = sys::slurp("/proc/self/mountinfo")?;
    let stage = info.lines().filter_map(|l| l.split(' ').nth(4)).rfind(|p| p.ends_with("/m"));
    ok!(chdir(c(stage.ok_or("the stage is gone")?).as_ptr()));
    Ok(())
}

/// Leaves the process in a namespace with files `f` and `g`; gives a newer namespace.
fn with_newer() -> Result<(OwnedFd, String), String> {
    on_one_processor()?;
    stage()?;
    sys::put("f", b"")?;
    sys::put("g", b"")?;
    let (older, _) = own_namespace()?;
    ok!(unshare(CLONE_NEWNS));
    let newer = own_namespace()?;
    ok!(setns(older.as_raw_fd(), CLONE_NEWNS));
    enter_stage()?;
    Ok(newer)
}

fn a_namespace_holds_newer_ones_alone() -> Outcome {
    let (newer, path) = with_newer()?;
    let (_older, old_path) = own_namespace()?;
    fails!(EINVAL, try_mount("/proc/self/ns/mnt", "f", MS_BIND));
    ok!(try_mount(&path, "f", MS_BIND));
    ok!(try_mount("f", "g", MS_BIND));
    ok!(setns(newer.as_raw_fd(), CLONE_NEWNS));
    enter_stage()?;
    fails!(EINVAL, try_mount(&old_path, "f", MS_BIND));
    fails!(EINVAL, try_mount(&path, "f", MS_BIND));
    Ok(())
}

fn a_copied_namespace_holds_no_other() -> Outcome {
    let (_newer, path) = with_newer()?;
    ok!(try_mount(&path, "f", MS_BIND));
    same!(lines("f")?.len(), 1);
    ok!(unshare(CLONE_NEWNS));
    same!(lines("f")?.len(), 0);
    Ok(())
}

fn files_of_mount_namespaces_do_not_travel() -> Outcome {
    let (_newer, path) = with_newer()?;
    for name in ["d", "t"] {
        tmpfs(name)?;
    }
    for name in ["d/f", "t/f"] {
        sys::put(name, b"")?;
    }
    dir("d/x")?;
    dir("e")?;
    ok!(try_mount("none", "d", MS_SHARED));
    ok!(try_mount(&path, "d/f", MS_BIND));
    ok!(umount2(c"d/f".as_ptr(), 0));
    ok!(try_mount("d", "e", MS_BIND));
    let before = lines("")?;
    fails!(EINVAL, try_mount(&path, "d/f", MS_BIND));
    same!(lines("")?, before);
    ok!(try_mount(&path, "t/f", MS_BIND));
    ok!(try_mount("t", "d/x", MS_BIND | MS_REC));
    same!(lines("d/x")?.len(), 2);
    same!(lines("e/x")?.len(), 1);
    Ok(())
}

fn a_loose_copy_of_the_own_namespace_is_eloop() -> Outcome {
    let (_newer, path) = with_newer()?;
    let own = loose("/proc/self/ns/mnt", 0)?;
    same!(put_in_place(&own, "f"), -1);
    same!(crate::harness::errno(), ELOOP);
    let newer = loose(&path, 0)?;
    ok!(put_in_place(&newer, "f"));
    Ok(())
}

/// Namespaces of which each holds the next: the end of the first is the end of all.
fn a_long_chain_of_namespaces_goes_at_once() -> Outcome {
    on_one_processor()?;
    stage()?;
    sys::put("f", b"")?;
    let (first, _) = own_namespace()?;
    for _ in 0..2000 {
        let (here, _) = own_namespace()?;
        ok!(unshare(CLONE_NEWNS));
        let (next, path) = own_namespace()?;
        ok!(setns(here.as_raw_fd(), CLONE_NEWNS));
        enter_stage()?;
        ok!(try_mount(&path, "f", MS_BIND));
        ok!(setns(next.as_raw_fd(), CLONE_NEWNS));
        enter_stage()?;
    }
    ok!(setns(first.as_raw_fd(), CLONE_NEWNS));
    enter_stage()?;
    ok!(umount2(c"f".as_ptr(), 0));
    Ok(())
}

fn a_high_stack_comes_off_one_by_one() -> Outcome {
    stage()?;
    dir("d")?;
    for n in 0..600 {
        tmpfs_over("d")?;
        sys::put(&format!("d/{n}"), b"")?;
    }
    same!(lines("d")?.len(), 600);
    ok!(try_mount("d", "d", MS_BIND));
    sys::stat("d/599")?;
    ok!(umount2(c"d".as_ptr(), 0));
    for n in (0..600).rev() {
        sys::stat(&format!("d/{n}"))?;
        ok!(umount2(c"d".as_ptr(), 0));
    }
    fails!(EINVAL, umount2(c"d".as_ptr(), 0));
    Ok(())
}

fn a_stack_is_received_below_what_is_there() -> Outcome {
    peers()?;
    ok!(try_mount("none", "q", MS_SLAVE));
    tmpfs_over("q/x")?;
    sys::put("q/x/own", b"")?;
    tmpfs("t")?;
    sys::put("t/below", b"")?;
    ok!(chdir(c"t".as_ptr()));
    tmpfs_over("../t")?;
    sys::put("../t/above", b"")?;
    // The working directory is the lower one's root.
    ok!(try_mount(".", "../p/x", MS_BIND | MS_REC));
    ok!(chdir(c"..".as_ptr()));
    same!(lines("p/x")?.len(), 2);
    same!(lines("q/x")?.len(), 3);
    for name in ["own", "above", "below"] {
        sys::stat(&format!("q/x/{name}"))?;
        ok!(umount2(c"q/x".as_ptr(), 0));
    }
    same!(lines("q/x")?.len(), 0);
    Ok(())
}
