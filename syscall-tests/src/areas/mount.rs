//! Mounts: mount(2), umount2(2), pivot_root(2), mount_namespaces(7), proc_pid_mountinfo(5).

use crate::harness::Outcome;
use crate::sys::{self, c};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    mount_hides_what_is_below,
    mounts_stack,
    mount_errors_come_in_order,
    mount_without_privilege_is_eperm,
    unknown_types_and_options,
    file_on_directory_is_enotdir,
    bind_of_a_file,
    bind_of_a_subdirectory,
    bind_keeps_open_files,
    plain_bind_leaves_mounts_below_out,
    recursive_bind_takes_mounts_below_along,
    bind_read_only_by_remount,
    remount_changes_flags,
    remount_keeps_access_time_flags,
    remount_of_no_mount_is_einval,
    read_only_mount_of_two_binds,
    nodev_noexec_nosuid,
    nosymfollow_refuses_links,
    umount_busy,
    umount_with_a_mount_on_it_is_busy,
    lazy_umount_keeps_open_files,
    lazy_umount_takes_all_below,
    expire_needs_two_calls,
    umount_flags_are_checked,
    umount_nofollow,
    umount_of_the_root_directory_of_no_mount,
    move_mount_takes_all_below_along,
    move_below_itself_is_eloop,
    move_of_no_mount_is_einval,
    propagation_flags_are_checked,
    new_mounts_are_private_below_private,
    shared_binds_show_new_mounts,
    shared_binds_lose_unmounted,
    slaves_receive_and_do_not_send,
    slave_and_shared,
    unbindable_cannot_be_bound,
    recursive_bind_leaves_unbindable_out,
    private_leaves_the_group,
    peers_across_namespaces,
    slaves_across_namespaces,
    shared_parent_cannot_be_moved_from,
    mountinfo_shows_groups,
    mountinfo_of_binds_shows_roots,
    mounts_file_escapes_blanks,
    mounts_below_a_chroot_alone,
    mountstats_has_lines,
    unshared_namespace_is_a_copy,
    unshared_namespace_keeps_the_working_directory,
    rmdir_of_a_mount_point_is_busy,
    rename_of_a_mount_point_is_busy,
    foreign_mount_point_may_be_removed,
    cross_mount_link_and_rename_are_exdev,
    dot_dot_leaves_a_mount,
    statfs_and_device_numbers,
    pivot_root_swaps,
    pivot_root_onto_itself,
    pivot_root_errors,
    chroot_escapes_nothing,
    chroot_hides_the_outside,
    getcwd_outside_the_root_is_unreachable,
    proc_and_sysfs_can_be_mounted,
    devpts_can_be_mounted,
    tmpfs_options_show,
    mount_source_is_shown,
    mount_point_through_a_link,
    open_tree_and_move_mount,
    open_tree_clone_goes_with_its_descriptor,
    fsopen_fsconfig_fsmount,
    mount_setattr_sets_flags,
    statx_tells_mount_roots,
    proc_needs_a_pid_namespace_of_ones_own,
    tmpfs_in_a_user_namespace,
    devices_in_a_user_namespace_are_dead,
    set_user_id_in_a_user_namespace,
];

pub(super) const NULL: *const c_char = std::ptr::null();

/// A private mount namespace.
pub(super) fn alone() -> Outcome {
    if unsafe { unshare(CLONE_NEWNS) } != 0 {
        skip!("no mount namespace of its own");
    }
    ok!(mount(NULL, c"/".as_ptr(), NULL, MS_REC | MS_PRIVATE, NULL.cast()));
    Ok(())
}

pub(super) fn dir(path: &str) -> Outcome {
    ok!(mkdir(c(path).as_ptr(), 0o755));
    Ok(())
}

pub(super) fn tmpfs(at: &str) -> Outcome {
    ok!(mount(c"t".as_ptr(), c(at).as_ptr(), c"tmpfs".as_ptr(), 0, NULL.cast()));
    Ok(())
}

fn bind(from: &str, to: &str, more: c_ulong) -> Outcome {
    ok!(mount(c(from).as_ptr(), c(to).as_ptr(), NULL, MS_BIND | more, NULL.cast()));
    Ok(())
}

fn set(at: &str, flags: c_ulong) -> Outcome {
    ok!(mount(NULL, c(at).as_ptr(), NULL, flags, NULL.cast()));
    Ok(())
}

fn try_set(at: &str, flags: c_ulong) -> i32 {
    unsafe { mount(NULL, c(at).as_ptr(), NULL, flags, NULL.cast()) }
}

fn exists(path: &str) -> bool {
    unsafe { access(c(path).as_ptr(), F_OK) == 0 }
}

fn umount_it(path: &str, flags: i32) -> i32 {
    unsafe { umount2(c(path).as_ptr(), flags) }
}

/// A namespace with a tmpfs at `m`, which is its working directory.
pub(super) fn stage() -> Outcome {
    alone()?;
    dir("m")?;
    tmpfs("m")?;
    ok!(chdir(c("m").as_ptr()));
    Ok(())
}

/// The line of mountinfo of the last mount at `point`, an ending of its path.
fn info(point: &str) -> Result<String, String> {
    let all = sys::slurp("/proc/self/mountinfo")?;
    let line = all.lines().rfind(|l| l.split(' ').nth(4).is_some_and(|p| p.ends_with(point)));
    line.map(str::to_owned).ok_or_else(|| format!("no mount at {point} in {all}"))
}

fn mount_hides_what_is_below() -> Outcome {
    stage()?;
    dir("d")?;
    sys::put("d/below", b"")?;
    tmpfs("d")?;
    want!(!exists("d/below"), "the file shows through");
    ok!(umount_it("d", 0));
    want!(exists("d/below"), "the file is gone");
    Ok(())
}

fn mounts_stack() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    sys::put("d/one", b"")?;
    tmpfs("d")?;
    sys::put("d/two", b"")?;
    want!(!exists("d/one"), "the lower one shows");
    ok!(umount_it("d", 0));
    want!(exists("d/one") && !exists("d/two"), "the wrong one went");
    ok!(umount_it("d", 0));
    fails!(EINVAL, umount_it("d", 0));
    Ok(())
}

fn mount_errors_come_in_order() -> Outcome {
    stage()?;
    dir("d")?;
    let t = c"tmpfs";
    fails!(ENOENT, mount(c"t".as_ptr(), c("none").as_ptr(), t.as_ptr(), 0, NULL.cast()));
    fails!(EINVAL, mount(c"t".as_ptr(), c("d").as_ptr(), NULL, 0, NULL.cast()));
    fails!(ENODEV, mount(c"t".as_ptr(), c("d").as_ptr(), c"nonsense".as_ptr(), 0, NULL.cast()));
    fails!(EFAULT, mount(c"t".as_ptr(), c("d").as_ptr(), 8 as *const c_char, 0, NULL.cast()));
    fails!(EFAULT, mount(c"t".as_ptr(), 8 as *const c_char, t.as_ptr(), 0, NULL.cast()));
    fails!(EFAULT, mount(c"t".as_ptr(), c("d").as_ptr(), t.as_ptr(), 0, 8 as *const c_void));
    fails!(EINVAL, mount(NULL, c("d").as_ptr(), NULL, MS_BIND, NULL.cast()));
    fails!(ENOENT, mount(c"none".as_ptr(), c("d").as_ptr(), NULL, MS_BIND, NULL.cast()));
    Ok(())
}

fn mount_without_privilege_is_eperm() -> Outcome {
    stage()?;
    dir("d")?;
    ok!(chmod(c(".").as_ptr(), 0o777));
    sys::drop_root()?;
    fails!(EPERM, mount(c"t".as_ptr(), c("d").as_ptr(), c"tmpfs".as_ptr(), 0, NULL.cast()));
    fails!(ENOENT, mount(c"t".as_ptr(), c("none").as_ptr(), c"tmpfs".as_ptr(), 0, NULL.cast()));
    fails!(EPERM, umount_it(".", 0));
    fails!(EPERM, syscall(SYS_pivot_root, c".".as_ptr(), c".".as_ptr()));
    fails!(EPERM, chroot(c".".as_ptr()));
    Ok(())
}

fn unknown_types_and_options() -> Outcome {
    stage()?;
    dir("d")?;
    for options in ["nonsense", "size=1x", "mode=9", "size"] {
        let data = c(options);
        let got =
            unsafe { mount(c"t".as_ptr(), c("d").as_ptr(), c"tmpfs".as_ptr(), 0, data.as_ptr().cast()) };
        want!(got == -1 && crate::harness::errno() == EINVAL, "{options:?} gave {got}");
    }
    Ok(())
}

fn file_on_directory_is_enotdir() -> Outcome {
    stage()?;
    dir("d")?;
    sys::put("f", b"")?;
    fails!(ENOTDIR, mount(c("f").as_ptr(), c("d").as_ptr(), NULL, MS_BIND, NULL.cast()));
    fails!(ENOTDIR, mount(c("d").as_ptr(), c("f").as_ptr(), NULL, MS_BIND, NULL.cast()));
    fails!(ENOTDIR, mount(c"t".as_ptr(), c("f").as_ptr(), c"tmpfs".as_ptr(), 0, NULL.cast()));
    Ok(())
}

fn bind_of_a_file() -> Outcome {
    stage()?;
    sys::put("a", b"one")?;
    sys::put("b", b"two")?;
    bind("a", "b", 0)?;
    same!(sys::slurp("b")?, "one");
    sys::put("b", b"three")?;
    same!(sys::slurp("a")?, "three");
    fails!(EBUSY, unlink(c("b").as_ptr()));
    ok!(umount_it("b", 0));
    same!(sys::slurp("b")?, "two");
    Ok(())
}

fn bind_of_a_subdirectory() -> Outcome {
    stage()?;
    dir("a")?;
    dir("a/b")?;
    dir("x")?;
    sys::put("a/b/f", b"")?;
    bind("a/b", "x", 0)?;
    want!(exists("x/f"), "not bound");
    same!(sys::stat("x")?.st_ino, sys::stat("a/b")?.st_ino);
    Ok(())
}

fn bind_keeps_open_files() -> Outcome {
    stage()?;
    dir("a")?;
    sys::put("a/f", b"open")?;
    let fd = sys::open("a/f", O_RDONLY)?;
    tmpfs("a")?;
    same!(sys::fd_read(&fd, 9)?, b"open");
    Ok(())
}

fn plain_bind_leaves_mounts_below_out() -> Outcome {
    stage()?;
    dir("a")?;
    dir("a/sub")?;
    tmpfs("a/sub")?;
    sys::put("a/sub/f", b"")?;
    dir("x")?;
    bind("a", "x", 0)?;
    want!(exists("x/sub") && !exists("x/sub/f"), "the mount below came along");
    Ok(())
}

fn recursive_bind_takes_mounts_below_along() -> Outcome {
    stage()?;
    dir("a")?;
    dir("a/sub")?;
    tmpfs("a/sub")?;
    sys::put("a/sub/f", b"")?;
    dir("x")?;
    bind("a", "x", MS_REC)?;
    want!(exists("x/sub/f"), "the mount below did not come along");
    fails!(EBUSY, umount_it("x", 0));
    ok!(umount_it("x/sub", 0));
    ok!(umount_it("x", 0));
    want!(exists("a/sub/f"), "the original went too");
    Ok(())
}

fn bind_read_only_by_remount() -> Outcome {
    stage()?;
    dir("a")?;
    dir("x")?;
    bind("a", "x", MS_RDONLY)?;
    sys::put("x/f", b"")?;
    set("x", MS_REMOUNT | MS_BIND | MS_RDONLY)?;
    fails!(EROFS, open(c("x/g").as_ptr(), O_CREAT | O_RDWR, 0o600));
    fails!(EROFS, open(c("x/f").as_ptr(), O_RDWR));
    sys::put("a/g", b"")?;
    set("x", MS_REMOUNT | MS_BIND)?;
    sys::put("x/h", b"")?;
    Ok(())
}

fn options_of(point: &str) -> Result<String, String> {
    Ok(info(point)?.split(' ').nth(5).unwrap_or_default().to_owned())
}

fn remount_changes_flags() -> Outcome {
    stage()?;
    dir("fl")?;
    tmpfs("fl")?;
    same!(options_of("/fl")?, "rw,relatime");
    set("fl", MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME)?;
    same!(options_of("/fl")?, "rw,nosuid,nodev,noexec,noatime");
    set("fl", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_STRICTATIME)?;
    same!(options_of("/fl")?, "ro");
    set("fl", MS_REMOUNT | MS_BIND | MS_NODIRATIME | MS_RELATIME)?;
    same!(options_of("/fl")?, "rw,nodiratime,relatime");
    Ok(())
}

fn remount_keeps_access_time_flags() -> Outcome {
    stage()?;
    dir("fl")?;
    tmpfs("fl")?;
    set("fl", MS_REMOUNT | MS_BIND | MS_NOATIME)?;
    set("fl", MS_REMOUNT | MS_BIND | MS_NOSUID)?;
    same!(options_of("/fl")?, "rw,nosuid,noatime");
    Ok(())
}

fn remount_of_no_mount_is_einval() -> Outcome {
    stage()?;
    dir("d")?;
    fails!(EINVAL, try_set("d", MS_REMOUNT | MS_RDONLY));
    fails!(EINVAL, try_set("d", MS_REMOUNT | MS_BIND | MS_RDONLY));
    fails!(EINVAL, try_set("d", MS_PRIVATE));
    Ok(())
}

fn read_only_mount_of_two_binds() -> Outcome {
    stage()?;
    dir("a")?;
    tmpfs("a")?;
    dir("b")?;
    bind("a", "b", 0)?;
    // Of the file system, not of the mount alone.
    set("a", MS_REMOUNT | MS_RDONLY)?;
    fails!(EROFS, open(c("b/f").as_ptr(), O_CREAT | O_RDWR, 0o600));
    set("b", MS_REMOUNT)?;
    sys::put("b/f", b"")?;
    fails!(EROFS, open(c("a/f").as_ptr(), O_RDWR));
    Ok(())
}

fn nodev_noexec_nosuid() -> Outcome {
    stage()?;
    ok!(mknod(c("null").as_ptr(), S_IFCHR | 0o666, makedev(1, 3)));
    sys::open("null", O_RDWR)?;
    set(".", MS_REMOUNT | MS_BIND | MS_NODEV | MS_NOEXEC)?;
    fails!(EACCES, open(c("null").as_ptr(), O_RDWR));
    sys::put("prog", b"#!/bin/sh\n")?;
    ok!(chmod(c("prog").as_ptr(), 0o755));
    let argv = [c"prog".as_ptr(), NULL];
    fails!(EACCES, execv(c("./prog").as_ptr(), argv.as_ptr()));
    Ok(())
}

fn nosymfollow_refuses_links() -> Outcome {
    stage()?;
    sys::put("f", b"")?;
    ok!(symlink(c("f").as_ptr(), c("l").as_ptr()));
    sys::open("l", O_RDONLY)?;
    set(".", MS_REMOUNT | MS_BIND | MS_NOSYMFOLLOW)?;
    fails!(ELOOP, open(c("l").as_ptr(), O_RDONLY));
    let mut buf = [0 as c_char; 8];
    same!(ok!(readlink(c("l").as_ptr(), buf.as_mut_ptr(), 8)), 1);
    Ok(())
}

fn umount_busy() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    dir("d/in")?;
    let held = sys::open("d/in", O_RDONLY)?;
    fails!(EBUSY, umount_it("d", 0));
    drop(held);
    let held = sys::open("d/in", O_PATH)?;
    fails!(EBUSY, umount_it("d", 0));
    drop(held);
    ok!(chdir(c("d/in").as_ptr()));
    fails!(EBUSY, umount_it("..", 0));
    ok!(chdir(c("../..").as_ptr()));
    ok!(umount_it("d", 0));
    Ok(())
}

fn umount_with_a_mount_on_it_is_busy() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    dir("d/e")?;
    tmpfs("d/e")?;
    fails!(EBUSY, umount_it("d", 0));
    ok!(umount_it("d/e", 0));
    ok!(umount_it("d", 0));
    Ok(())
}

fn lazy_umount_keeps_open_files() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    sys::put("d/f", b"still here")?;
    let held = sys::open("d", O_RDONLY)?;
    ok!(umount_it("d", MNT_DETACH));
    want!(!exists("d/f"), "still mounted");
    let fd = sys::own(ok!(openat(held.as_raw_fd(), c("f").as_ptr(), O_RDONLY)));
    same!(sys::fd_read(&fd, 20)?, b"still here");
    Ok(())
}

fn lazy_umount_takes_all_below() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    dir("d/e")?;
    tmpfs("d/e")?;
    dir("d/e/f")?;
    tmpfs("d/e/f")?;
    ok!(umount_it("d", MNT_DETACH));
    let all = sys::slurp("/proc/self/mountinfo")?;
    want!(!all.contains("/d/e"), "{all}");
    Ok(())
}

fn expire_needs_two_calls() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    fails!(EINVAL, umount_it("d", MNT_EXPIRE | MNT_DETACH));
    fails!(EAGAIN, umount_it("d", MNT_EXPIRE));
    ok!(umount_it("d", MNT_EXPIRE));
    tmpfs("d")?;
    let held = sys::open("d", O_RDONLY)?;
    fails!(EBUSY, umount_it("d", MNT_EXPIRE));
    drop(held);
    Ok(())
}

fn umount_flags_are_checked() -> Outcome {
    stage()?;
    fails!(EINVAL, umount_it(".", 16));
    fails!(EINVAL, umount_it(".", -1));
    fails!(ENOENT, umount_it("none", 0));
    sys::put("f", b"")?;
    fails!(ENOTDIR, umount_it("f/x", 0));
    Ok(())
}

fn umount_nofollow() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    ok!(symlink(c("d").as_ptr(), c("l").as_ptr()));
    fails!(EINVAL, umount_it("l", UMOUNT_NOFOLLOW));
    ok!(umount_it("l", 0));
    Ok(())
}

fn umount_of_the_root_directory_of_no_mount() -> Outcome {
    stage()?;
    dir("d")?;
    fails!(EINVAL, umount_it("d", 0));
    fails!(EINVAL, umount_it("d", MNT_DETACH));
    Ok(())
}

fn move_mount_takes_all_below_along() -> Outcome {
    stage()?;
    dir("a")?;
    tmpfs("a")?;
    dir("a/sub")?;
    tmpfs("a/sub")?;
    sys::put("a/sub/f", b"")?;
    dir("b")?;
    ok!(mount(c("a").as_ptr(), c("b").as_ptr(), NULL, MS_MOVE, NULL.cast()));
    want!(exists("b/sub/f") && !exists("a/sub"), "not moved");
    Ok(())
}

fn move_below_itself_is_eloop() -> Outcome {
    stage()?;
    dir("a")?;
    tmpfs("a")?;
    dir("a/in")?;
    fails!(ELOOP, mount(c("a").as_ptr(), c("a/in").as_ptr(), NULL, MS_MOVE, NULL.cast()));
    Ok(())
}

fn move_of_no_mount_is_einval() -> Outcome {
    stage()?;
    dir("a")?;
    dir("b")?;
    fails!(EINVAL, mount(c("a").as_ptr(), c("b").as_ptr(), NULL, MS_MOVE, NULL.cast()));
    fails!(EINVAL, mount(NULL, c("b").as_ptr(), NULL, MS_MOVE, NULL.cast()));
    Ok(())
}

fn propagation_flags_are_checked() -> Outcome {
    stage()?;
    fails!(EINVAL, try_set(".", MS_SHARED | MS_PRIVATE));
    fails!(EINVAL, try_set(".", MS_SHARED | MS_RDONLY));
    set(".", MS_SHARED | MS_REC | MS_SILENT)?;
    Ok(())
}

fn new_mounts_are_private_below_private() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    want!(!info("/d")?.contains("shared:"), "{}", info("/d")?);
    set(".", MS_SHARED)?;
    dir("e")?;
    tmpfs("e")?;
    want!(info("/e")?.contains("shared:"), "{}", info("/e")?);
    Ok(())
}

/// Two peers `a` and `b` of one shared tmpfs with a directory `sub`.
fn peers() -> Outcome {
    stage()?;
    dir("a")?;
    dir("b")?;
    tmpfs("a")?;
    dir("a/sub")?;
    set("a", MS_SHARED)?;
    bind("a", "b", 0)
}

fn shared_binds_show_new_mounts() -> Outcome {
    peers()?;
    tmpfs("b/sub")?;
    sys::put("b/sub/f", b"")?;
    want!(exists("a/sub/f"), "not propagated");
    dir("a/sub/deep")?;
    tmpfs("a/sub/deep")?;
    sys::put("a/sub/deep/g", b"")?;
    want!(exists("b/sub/deep/g"), "not propagated further");
    Ok(())
}

fn shared_binds_lose_unmounted() -> Outcome {
    peers()?;
    tmpfs("a/sub")?;
    sys::put("a/sub/f", b"")?;
    want!(exists("b/sub/f"), "not propagated");
    ok!(umount_it("b/sub", 0));
    want!(!exists("a/sub/f"), "still mounted at the peer");
    // A peer's that is in use keeps both.
    tmpfs("a/sub")?;
    let held = sys::open("b/sub", O_RDONLY)?;
    fails!(EBUSY, umount_it("a/sub", 0));
    drop(held);
    ok!(umount_it("a/sub", 0));
    Ok(())
}

fn slaves_receive_and_do_not_send() -> Outcome {
    peers()?;
    set("b", MS_SLAVE)?;
    want!(info("/b")?.contains("master:") && !info("/b")?.contains("shared:"), "{}", info("/b")?);
    dir("a/two")?;
    tmpfs("a/sub")?;
    sys::put("a/sub/f", b"")?;
    want!(exists("b/sub/f"), "not received");
    tmpfs("b/two")?;
    sys::put("b/two/g", b"")?;
    want!(!exists("a/two/g"), "sent back");
    ok!(umount_it("a/sub", 0));
    want!(!exists("b/sub/f"), "the unmount was not received");
    Ok(())
}

fn slave_and_shared() -> Outcome {
    peers()?;
    set("b", MS_SLAVE)?;
    set("b", MS_SHARED)?;
    let line = info("/b")?;
    want!(line.contains("master:") && line.contains("shared:"), "{line}");
    dir("c")?;
    bind("b", "c", 0)?;
    tmpfs("a/sub")?;
    sys::put("a/sub/f", b"")?;
    want!(exists("b/sub/f") && exists("c/sub/f"), "not received by both");
    dir("a/two")?;
    tmpfs("c/two")?;
    sys::put("c/two/g", b"")?;
    want!(exists("b/two/g") && !exists("a/two/g"), "wrong receivers");
    Ok(())
}

fn unbindable_cannot_be_bound() -> Outcome {
    stage()?;
    dir("a")?;
    dir("b")?;
    tmpfs("a")?;
    set("a", MS_UNBINDABLE)?;
    want!(info("/a")?.contains("unbindable"), "{}", info("/a")?);
    fails!(EINVAL, mount(c("a").as_ptr(), c("b").as_ptr(), NULL, MS_BIND, NULL.cast()));
    set("a", MS_PRIVATE)?;
    bind("a", "b", 0)
}

fn recursive_bind_leaves_unbindable_out() -> Outcome {
    stage()?;
    dir("a")?;
    dir("b")?;
    dir("a/one")?;
    dir("a/two")?;
    tmpfs("a/one")?;
    tmpfs("a/two")?;
    sys::put("a/one/f", b"")?;
    sys::put("a/two/f", b"")?;
    set("a/one", MS_UNBINDABLE)?;
    bind("a", "b", MS_REC)?;
    want!(!exists("b/one/f") && exists("b/two/f"), "wrong mounts came along");
    Ok(())
}

fn private_leaves_the_group() -> Outcome {
    peers()?;
    set("b", MS_PRIVATE)?;
    tmpfs("a/sub")?;
    sys::put("a/sub/f", b"")?;
    want!(!exists("b/sub/f"), "still a peer");
    Ok(())
}

/// Runs `f` in a child in a mount namespace copied from this one.
fn in_a_copy(before: impl FnOnce() -> Outcome, f: impl FnOnce() -> Outcome) -> Outcome {
    let (go, wake) = sys::pipe()?;
    let (ready, tell) = sys::pipe()?;
    let kid = sys::fork(|| {
        ok!(unshare(CLONE_NEWNS));
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&go, 1)?;
        f()
    })?;
    sys::fd_read(&ready, 1)?;
    before()?;
    sys::fd_write(&wake, b"x")?;
    kid.ok()
}

fn peers_across_namespaces() -> Outcome {
    peers()?;
    in_a_copy(
        || {
            tmpfs("a/sub")?;
            sys::put("a/sub/f", b"")
        },
        || {
            want!(exists("a/sub/f") && exists("b/sub/f"), "not propagated into the copy");
            dir("a/back")?;
            tmpfs("b/back")?;
            sys::put("b/back/g", b"")
        },
    )?;
    want!(exists("a/back/g"), "not propagated out of the copy");
    Ok(())
}

fn slaves_across_namespaces() -> Outcome {
    peers()?;
    let (go, wake) = sys::pipe()?;
    let (ready, tell) = sys::pipe()?;
    let kid = sys::fork(|| {
        ok!(unshare(CLONE_NEWNS));
        set("/", MS_REC | MS_SLAVE)?;
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&go, 1)?;
        want!(exists("a/sub/f"), "not received");
        dir("a/own")?;
        tmpfs("a/own")?;
        sys::put("a/own/g", b"")
    })?;
    sys::fd_read(&ready, 1)?;
    tmpfs("b/sub")?;
    sys::put("b/sub/f", b"")?;
    sys::fd_write(&wake, b"x")?;
    kid.ok()?;
    want!(exists("a/own") && !exists("a/own/g"), "sent back");
    Ok(())
}

fn shared_parent_cannot_be_moved_from() -> Outcome {
    peers()?;
    tmpfs("a/sub")?;
    dir("to")?;
    fails!(EINVAL, mount(c("a/sub").as_ptr(), c("to").as_ptr(), NULL, MS_MOVE, NULL.cast()));
    Ok(())
}

fn mountinfo_shows_groups() -> Outcome {
    peers()?;
    let group = |line: &str| line.split(' ').find_map(|w| w.strip_prefix("shared:").map(str::to_owned));
    let (a, b) = (group(&info("/a")?), group(&info("/b")?));
    want!(a.is_some() && a == b, "{a:?} {b:?}");
    set("b", MS_SLAVE)?;
    let master = info("/b")?.split(' ').find_map(|w| w.strip_prefix("master:").map(str::to_owned));
    same!(master, a);
    Ok(())
}

fn mountinfo_of_binds_shows_roots() -> Outcome {
    stage()?;
    dir("deep")?;
    dir("deep/er")?;
    dir("x")?;
    bind("deep/er", "x", 0)?;
    let line = info("/x")?;
    let words: Vec<&str> = line.split(' ').collect();
    same!(words.get(3), Some(&"/deep/er"));
    let parent = info("/m")?;
    same!(words.get(1).copied(), parent.split(' ').next());
    same!(words.get(2).copied(), parent.split(' ').nth(2));
    want!(line.contains(" - tmpfs t rw"), "{line}");
    Ok(())
}

fn mounts_file_escapes_blanks() -> Outcome {
    stage()?;
    dir("a b\tc\\d")?;
    tmpfs("a b\tc\\d")?;
    let all = sys::slurp("/proc/self/mounts")?;
    want!(all.contains("/a\\040b\\011c\\134d tmpfs rw"), "{all}");
    Ok(())
}

fn mounts_below_a_chroot_alone() -> Outcome {
    stage()?;
    dir("r")?;
    tmpfs("r")?;
    dir("r/proc")?;
    ok!(mount(c"proc".as_ptr(), c("r/proc").as_ptr(), c"proc".as_ptr(), 0, NULL.cast()));
    ok!(chroot(c("r").as_ptr()));
    let all = sys::slurp("/proc/self/mounts")?;
    let points: Vec<&str> = all.lines().filter_map(|l| l.split(' ').nth(1)).collect();
    same!(points, ["/", "/proc"]);
    Ok(())
}

fn mountstats_has_lines() -> Outcome {
    stage()?;
    let all = sys::slurp("/proc/self/mountstats")?;
    want!(
        all.lines().any(|l| l.starts_with("device t mounted on ") && l.ends_with(" with fstype tmpfs")),
        "{all}"
    );
    Ok(())
}

fn unshared_namespace_is_a_copy() -> Outcome {
    stage()?;
    dir("d")?;
    sys::fork(|| {
        ok!(unshare(CLONE_NEWNS));
        tmpfs("d")?;
        sys::put("d/f", b"")
    })?
    .ok()?;
    want!(!exists("d/f"), "mounted outside too");
    Ok(())
}

fn unshared_namespace_keeps_the_working_directory() -> Outcome {
    stage()?;
    let before = std::env::current_dir().map_err(|e| e.to_string())?;
    ok!(unshare(CLONE_NEWNS));
    same!(std::env::current_dir().map_err(|e| e.to_string())?, before);
    // Its mount is the copy: mounting on what it names shows.
    dir("d")?;
    tmpfs("d")?;
    want!(info("/d").is_ok(), "not in the own namespace");
    Ok(())
}

fn rmdir_of_a_mount_point_is_busy() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    fails!(EBUSY, rmdir(c("d").as_ptr()));
    ok!(umount_it("d", 0));
    ok!(rmdir(c("d").as_ptr()));
    Ok(())
}

fn rename_of_a_mount_point_is_busy() -> Outcome {
    stage()?;
    dir("d")?;
    dir("e")?;
    tmpfs("d")?;
    fails!(EBUSY, rename(c("d").as_ptr(), c("x").as_ptr()));
    fails!(EBUSY, rename(c("e").as_ptr(), c("d").as_ptr()));
    Ok(())
}

fn foreign_mount_point_may_be_removed() -> Outcome {
    stage()?;
    dir("d")?;
    in_a_copy(|| Ok(()), || tmpfs("d"))?;
    let (go, wake) = sys::pipe()?;
    let (ready, tell) = sys::pipe()?;
    let kid = sys::fork(|| {
        ok!(unshare(CLONE_NEWNS));
        tmpfs("d")?;
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&go, 1)?;
        let all = sys::slurp("/proc/self/mountinfo")?;
        want!(!all.contains("/m/d"), "{all}");
        Ok(())
    })?;
    sys::fd_read(&ready, 1)?;
    ok!(rmdir(c("d").as_ptr()));
    sys::fd_write(&wake, b"x")?;
    kid.ok()
}

fn cross_mount_link_and_rename_are_exdev() -> Outcome {
    stage()?;
    dir("a")?;
    dir("b")?;
    sys::put("a/f", b"")?;
    bind("a", "b", 0)?;
    fails!(EXDEV, rename(c("a/f").as_ptr(), c("b/g").as_ptr()));
    fails!(EXDEV, link(c("a/f").as_ptr(), c("b/g").as_ptr()));
    Ok(())
}

fn dot_dot_leaves_a_mount() -> Outcome {
    stage()?;
    sys::put("top", b"")?;
    dir("d")?;
    tmpfs("d")?;
    ok!(chdir(c("d").as_ptr()));
    want!(exists("../top"), "no way up");
    Ok(())
}

fn statfs_and_device_numbers() -> Outcome {
    stage()?;
    dir("d")?;
    dir("e")?;
    tmpfs("d")?;
    bind("d", "e", 0)?;
    want!(sys::stat("d")?.st_dev != sys::stat(".")?.st_dev, "one device");
    same!(sys::stat("d")?.st_dev, sys::stat("e")?.st_dev);
    let mut fs: statfs = unsafe { std::mem::zeroed() };
    ok!(statfs(c("d").as_ptr(), &raw mut fs));
    same!(fs.f_type, 0x0102_1994);
    Ok(())
}

fn pivot(new: &str, old: &str) -> i64 {
    unsafe { syscall(SYS_pivot_root, c(new).as_ptr(), c(old).as_ptr()) }
}

fn pivot_root_swaps() -> Outcome {
    stage()?;
    dir("r")?;
    tmpfs("r")?;
    dir("r/old")?;
    sys::put("r/marker", b"")?;
    ok!(pivot("r", "r/old"));
    want!(exists("/marker") && exists("/old/proc"), "not swapped");
    ok!(chdir(c("/").as_ptr()));
    ok!(umount_it("/old", MNT_DETACH));
    want!(!exists("/old/proc"), "the old root is still there");
    Ok(())
}

fn pivot_root_onto_itself() -> Outcome {
    stage()?;
    dir("r")?;
    tmpfs("r")?;
    sys::put("r/marker", b"")?;
    ok!(chdir(c("r").as_ptr()));
    ok!(pivot(".", "."));
    ok!(umount_it(".", MNT_DETACH));
    ok!(chdir(c("/").as_ptr()));
    want!(exists("/marker") && !exists("/proc"), "the old root shows");
    Ok(())
}

fn pivot_root_errors() -> Outcome {
    stage()?;
    dir("d")?;
    dir("r")?;
    tmpfs("r")?;
    dir("r/old")?;
    sys::put("f", b"")?;
    fails!(EINVAL, pivot("d", "d"));
    fails!(EINVAL, pivot("r", "d"));
    fails!(EBUSY, pivot("/", "/"));
    fails!(EBUSY, pivot("r", "/"));
    fails!(ENOTDIR, pivot("f", "d"));
    fails!(ENOENT, pivot("none", "d"));
    set("r", MS_SHARED)?;
    fails!(EINVAL, pivot("r", "r/old"));
    Ok(())
}

fn chroot_escapes_nothing() -> Outcome {
    stage()?;
    dir("r")?;
    dir("r/in")?;
    sys::put("top", b"")?;
    ok!(chroot(c("r").as_ptr()));
    ok!(chdir(c("/").as_ptr()));
    want!(!exists("../top") && !exists("/../../top"), "escaped");
    ok!(symlink(c("/../../top").as_ptr(), c("l").as_ptr()));
    fails!(ENOENT, open(c("l").as_ptr(), O_RDONLY));
    Ok(())
}

fn chroot_hides_the_outside() -> Outcome {
    stage()?;
    dir("r")?;
    sys::put("outside", b"")?;
    let held = sys::open(".", O_RDONLY)?;
    ok!(chroot(c("r").as_ptr()));
    // The working directory and descriptors from before stay outside.
    want!(exists("outside"), "the working directory moved");
    ok!(faccessat(held.as_raw_fd(), c("outside").as_ptr(), F_OK, 0));
    fails!(ENOENT, access(c("/outside").as_ptr(), F_OK));
    Ok(())
}

fn getcwd_outside_the_root_is_unreachable() -> Outcome {
    stage()?;
    dir("r")?;
    ok!(chroot(c("r").as_ptr()));
    let mut buf = [0u8; 4096];
    let n = ok!(syscall(SYS_getcwd, buf.as_mut_ptr(), 4096));
    let text = String::from_utf8_lossy(&buf[..n as usize]).into_owned();
    want!(text.starts_with("(unreachable)/"), "{text}");
    Ok(())
}

fn proc_and_sysfs_can_be_mounted() -> Outcome {
    stage()?;
    dir("p")?;
    dir("s")?;
    ok!(mount(
        c"proc".as_ptr(),
        c("p").as_ptr(),
        c"proc".as_ptr(),
        MS_NOSUID | MS_NODEV | MS_NOEXEC,
        NULL.cast()
    ));
    want!(exists("p/self/status"), "no process");
    fails!(
        EINVAL,
        mount(c"proc".as_ptr(), c("s").as_ptr(), c"proc".as_ptr(), 0, c"nonsense".as_ptr().cast())
    );
    ok!(mount(c"sysfs".as_ptr(), c("s").as_ptr(), c"sysfs".as_ptr(), 0, NULL.cast()));
    want!(exists("s/devices/system/cpu"), "no CPUs");
    let line = info("/p")?;
    want!(line.contains("rw,nosuid,nodev,noexec,relatime") && line.contains(" - proc proc rw"), "{line}");
    Ok(())
}

fn devpts_can_be_mounted() -> Outcome {
    stage()?;
    dir("pts")?;
    let data = c"newinstance,ptmxmode=0666,mode=620,gid=5";
    ok!(mount(c"devpts".as_ptr(), c("pts").as_ptr(), c"devpts".as_ptr(), 0, data.as_ptr().cast()));
    want!(exists("pts/ptmx"), "no ptmx");
    sys::open("pts/ptmx", O_RDWR | O_NOCTTY)?;
    Ok(())
}

fn tmpfs_options_show() -> Outcome {
    stage()?;
    dir("o")?;
    let data = c"size=1m,mode=700,uid=5,gid=6";
    ok!(mount(c"t".as_ptr(), c("o").as_ptr(), c"tmpfs".as_ptr(), 0, data.as_ptr().cast()));
    let line = info("/o")?;
    for option in ["size=1024k", "mode=700", "uid=5", "gid=6"] {
        want!(line.split(&[' ', ','][..]).any(|w| w == option), "{option} in {line}");
    }
    let st = sys::stat("o")?;
    same!((st.st_mode & 0o7777, st.st_uid, st.st_gid), (0o700, 5, 6));
    Ok(())
}

fn mount_source_is_shown() -> Outcome {
    stage()?;
    dir("o")?;
    ok!(mount(c"some where".as_ptr(), c("o").as_ptr(), c"tmpfs".as_ptr(), 0, NULL.cast()));
    want!(info("/o")?.contains(" - tmpfs some\\040where rw"), "{}", info("/o")?);
    Ok(())
}

fn mount_point_through_a_link() -> Outcome {
    stage()?;
    dir("d")?;
    ok!(symlink(c("d").as_ptr(), c("l").as_ptr()));
    tmpfs("l")?;
    want!(info("/m/d").is_ok(), "not at the target");
    Ok(())
}

const OPEN_TREE_CLONE: c_int = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_int = 4;

fn open_tree_and_move_mount() -> Outcome {
    stage()?;
    dir("a")?;
    sys::put("a/f", b"")?;
    dir("b")?;
    let fd = ok!(syscall(SYS_open_tree, AT_FDCWD, c("a").as_ptr(), OPEN_TREE_CLONE | O_CLOEXEC)) as i32;
    let fd = sys::own(fd);
    ok!(faccessat(fd.as_raw_fd(), c("f").as_ptr(), F_OK, 0));
    let empty = c"".as_ptr();
    ok!(syscall(SYS_move_mount, fd.as_raw_fd(), empty, AT_FDCWD, c("b").as_ptr(), MOVE_MOUNT_F_EMPTY_PATH));
    want!(exists("b/f"), "not attached");
    drop(fd);
    ok!(umount_it("b", 0));
    fails!(EINVAL, syscall(SYS_open_tree, AT_FDCWD, c("a").as_ptr(), 2));
    fails!(ENOENT, syscall(SYS_open_tree, AT_FDCWD, c("none").as_ptr(), OPEN_TREE_CLONE));
    Ok(())
}

fn open_tree_clone_goes_with_its_descriptor() -> Outcome {
    stage()?;
    dir("a")?;
    tmpfs("a")?;
    let fd = ok!(syscall(SYS_open_tree, AT_FDCWD, c("a").as_ptr(), OPEN_TREE_CLONE)) as i32;
    drop(sys::own(fd));
    ok!(umount_it("a", 0));
    Ok(())
}

fn fsopen_fsconfig_fsmount() -> Outcome {
    stage()?;
    dir("d")?;
    fails!(ENODEV, syscall(SYS_fsopen, c"nonsense".as_ptr(), 0));
    fails!(EINVAL, syscall(SYS_fsopen, c"tmpfs".as_ptr(), 8));
    let fs = sys::own(ok!(syscall(SYS_fsopen, c"tmpfs".as_ptr(), 1)) as i32);
    let nothing = std::ptr::null::<c_char>();
    // FSCONFIG_SET_STRING and FSCONFIG_CMD_CREATE.
    ok!(syscall(SYS_fsconfig, fs.as_raw_fd(), 1, c"size".as_ptr(), c"64k".as_ptr(), 0));
    ok!(syscall(SYS_fsconfig, fs.as_raw_fd(), 1, c"source".as_ptr(), c"src".as_ptr(), 0));
    fails!(EINVAL, syscall(SYS_fsmount, fs.as_raw_fd(), 0, 0));
    ok!(syscall(SYS_fsconfig, fs.as_raw_fd(), 6, nothing, nothing, 0));
    let top = sys::own(ok!(syscall(SYS_fsmount, fs.as_raw_fd(), 1, 0x2)) as i32);
    ok!(mkdirat(top.as_raw_fd(), c("inside").as_ptr(), 0o755));
    let empty = c"".as_ptr();
    ok!(syscall(SYS_move_mount, top.as_raw_fd(), empty, AT_FDCWD, c("d").as_ptr(), MOVE_MOUNT_F_EMPTY_PATH));
    want!(exists("d/inside"), "not attached");
    let line = info("/d")?;
    want!(line.contains("nosuid") && line.contains("size=64k") && line.contains(" tmpfs src "), "{line}");
    Ok(())
}

fn mount_setattr_sets_flags() -> Outcome {
    stage()?;
    dir("d")?;
    tmpfs("d")?;
    // attr_set, attr_clr, propagation, userns_fd: read-only, and shared.
    let attr: [u64; 4] = [1, 0, MS_SHARED, 0];
    ok!(syscall(SYS_mount_setattr, AT_FDCWD, c("d").as_ptr(), 0, attr.as_ptr(), 32));
    fails!(EROFS, mkdir(c("d/x").as_ptr(), 0o755));
    want!(info("/d")?.contains("shared:"), "{}", info("/d")?);
    let attr: [u64; 4] = [0, 1, 0, 0];
    ok!(syscall(SYS_mount_setattr, AT_FDCWD, c("d").as_ptr(), 0, attr.as_ptr(), 32));
    ok!(mkdir(c("d/x").as_ptr(), 0o755));
    fails!(EINVAL, syscall(SYS_mount_setattr, AT_FDCWD, c("d/x").as_ptr(), 0, attr.as_ptr(), 32));
    fails!(EINVAL, syscall(SYS_mount_setattr, AT_FDCWD, c("d").as_ptr(), 0, attr.as_ptr(), 8));
    let attr: [u64; 4] = [1 << 40, 0, 0, 0];
    fails!(EINVAL, syscall(SYS_mount_setattr, AT_FDCWD, c("d").as_ptr(), 0, attr.as_ptr(), 32));
    Ok(())
}

fn statx_tells_mount_roots() -> Outcome {
    stage()?;
    dir("d")?;
    let mut before: statx = unsafe { std::mem::zeroed() };
    ok!(statx(AT_FDCWD, c("d").as_ptr(), 0, 0x17ff, &raw mut before));
    same!(before.stx_attributes & 0x2000, 0);
    tmpfs("d")?;
    let mut after: statx = unsafe { std::mem::zeroed() };
    ok!(statx(AT_FDCWD, c("d").as_ptr(), 0, 0x17ff, &raw mut after));
    same!(after.stx_attributes & 0x2000, 0x2000);
    want!(before.stx_mnt_id != after.stx_mnt_id, "one mount id");
    let line = info("/d")?;
    same!(after.stx_mnt_id.to_string(), line.split(' ').next().unwrap_or_default());
    Ok(())
}

/// Becomes the root of a user and mount namespace of its own.
fn small_root() -> Outcome {
    let (uid, gid) = unsafe { (geteuid(), getegid()) };
    if unsafe { unshare(CLONE_NEWUSER | CLONE_NEWNS) } != 0 {
        skip!("no user namespaces here");
    }
    for (name, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let fd = sys::open(&format!("/proc/self/{name}"), O_WRONLY)?;
        sys::fd_write(&fd, text.as_bytes())?;
    }
    Ok(())
}

fn proc_needs_a_pid_namespace_of_ones_own() -> Outcome {
    small_root()?;
    dir("p")?;
    fails!(EPERM, mount(c"proc".as_ptr(), c("p").as_ptr(), c"proc".as_ptr(), 0, NULL.cast()));
    Ok(())
}

fn tmpfs_in_a_user_namespace() -> Outcome {
    small_root()?;
    dir("d")?;
    ok!(mount(c"t".as_ptr(), c("d").as_ptr(), c"tmpfs".as_ptr(), 0, NULL.cast()));
    sys::put("d/f", b"")?;
    same!(sys::stat("d/f")?.st_uid, 0);
    let data = c"uid=5";
    fails!(EINVAL, mount(c"t".as_ptr(), c("d").as_ptr(), c"tmpfs".as_ptr(), 0, data.as_ptr().cast()));
    ok!(umount_it("d", 0));
    Ok(())
}

fn devices_in_a_user_namespace_are_dead() -> Outcome {
    small_root()?;
    dir("d")?;
    ok!(mount(c"t".as_ptr(), c("d").as_ptr(), c"tmpfs".as_ptr(), 0, NULL.cast()));
    fails!(EPERM, mknod(c("d/null").as_ptr(), S_IFCHR | 0o666, makedev(1, 3)));
    sys::put("d/null", b"")?;
    bind("/dev/null", "d/null", 0)?;
    sys::open("d/null", O_RDWR)?;
    Ok(())
}

fn set_user_id_in_a_user_namespace() -> Outcome {
    // A set-user-id program of an id that is not mapped runs as its caller.
    sys::put("prog", b"")?;
    let exe = sys::self_exe()?;
    ok!(chmod(c(".").as_ptr(), 0o777));
    std::fs::copy(exe.to_string_lossy().as_ref(), "prog").map_err(|e| e.to_string())?;
    ok!(chown(c("prog").as_ptr(), 4321, 4321));
    ok!(chmod(c("prog").as_ptr(), 0o4755));
    let (out, status) = sys::exec_capture(c"./prog", &["prog", "helper", "ids"], &[], small_root)?;
    same!(status, 0);
    same!(out, "0 0 0 0");
    Ok(())
}
