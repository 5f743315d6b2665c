//! Namespaces: unshare(2), setns(2), user_namespaces(7), uts_namespaces(7), ioctl_nsfs(2).

use crate::harness::Outcome;
use crate::sys::{self, c};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    links_name_kinds_and_numbers,
    children_share_namespaces,
    unshared_uts_has_its_own_name,
    unshare_flags_are_checked,
    unshare_without_privilege_is_eperm,
    files_of_namespaces_have_their_numbers,
    files_of_namespaces_are_read_only,
    nsfs_tells_its_magic,
    setns_enters_a_childs_uts,
    setns_checks_the_kind,
    setns_refuses_other_files,
    setns_with_a_pidfd,
    setns_with_a_pidfd_needs_kinds,
    namespace_kept_by_descriptor,
    namespace_kept_by_bind_mount,
    ioctl_tells_the_kind,
    ioctl_gives_the_owner,
    ioctl_parent_is_for_hierarchies,
    ioctl_parent_outside_is_eperm,
    ioctl_owner_uid,
    clone_with_new_uts,
    clone_flags_that_clash,
    ipc_namespace_is_another,
    net_namespace_is_another,
    abstract_sockets_belong_to_the_network_namespace,
    cgroup_namespace_is_another,
    user_namespace_without_maps_shows_overflow_ids,
    user_namespace_gives_all_capabilities,
    user_namespace_by_an_ordinary_user,
    uid_map_is_written_once,
    uid_map_text_is_checked,
    uid_map_of_others_is_refused,
    gid_map_needs_setgroups_denied,
    setgroups_file_rules,
    setgroups_call_follows_the_file,
    mapped_root_is_not_root_outside,
    mapped_root_sees_files_of_others_as_nobody,
    chown_to_unmapped_ids_is_einval,
    setuid_to_unmapped_ids_is_einval,
    set_user_id_calls_use_mapped_ids,
    capabilities_end_at_the_namespace,
    owner_in_the_parent_is_capable,
    user_namespace_after_chroot_is_eperm,
    user_namespace_of_threads_is_einval,
    setns_to_own_user_namespace_is_einval,
    joining_a_user_namespace_gives_capabilities,
    hostname_in_foreign_uts_is_eperm,
    exec_in_a_user_namespace_keeps_root,
    exec_unmapped_drops_capabilities,
    peer_credentials_are_translated,
    signals_show_mapped_ids,
    map_file_shows_readers_view,
    nested_maps_compose,
    mount_namespace_of_a_user_namespace_is_locked,
];

/// Root, as most namespaces need; skipped elsewhere.
fn as_root() -> Outcome {
    if unsafe { geteuid() } != 0 {
        skip!("needs root");
    }
    if unsafe { unshare(CLONE_NEWUTS) } != 0 {
        skip!("no namespaces here");
    }
    Ok(())
}

fn link(path: &str) -> Result<String, String> {
    std::fs::read_link(path).map(|p| p.display().to_string()).map_err(|e| format!("readlink {path}: {e}"))
}

fn write_file(path: &str, text: &str) -> Result<isize, String> {
    let fd = sys::open(path, O_WRONLY)?;
    Ok(unsafe { write(fd.as_raw_fd(), text.as_ptr().cast(), text.len()) })
}

/// In a new user namespace with `uid` and `gid` mapped to the present ids.
fn enter_user_ns(uid: u32, gid: u32) -> Outcome {
    let (outer_uid, outer_gid) = unsafe { (geteuid(), getegid()) };
    if unsafe { unshare(CLONE_NEWUSER) } != 0 {
        skip!("no user namespaces here");
    }
    same!(write_file("/proc/self/setgroups", "deny")?, 4);
    want!(write_file("/proc/self/uid_map", &format!("{uid} {outer_uid} 1"))? > 0, "uid_map is refused");
    want!(write_file("/proc/self/gid_map", &format!("{gid} {outer_gid} 1"))? > 0, "gid_map is refused");
    Ok(())
}

fn name() -> Result<String, String> {
    let mut buf = [0 as c_char; 65];
    ok!(gethostname(buf.as_mut_ptr(), 65));
    Ok(unsafe { std::ffi::CStr::from_ptr(buf.as_ptr()) }.to_string_lossy().into_owned())
}

fn set_name(text: &str) -> i32 {
    unsafe { sethostname(text.as_ptr().cast(), text.len()) }
}

fn effective() -> Result<String, String> {
    let status = sys::slurp("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("CapEff:")).unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

fn no_caps() -> &'static str {
    "0000000000000000"
}

fn links_name_kinds_and_numbers() -> Outcome {
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let text = link(&format!("/proc/self/ns/{kind}"))?;
        let inner = text.strip_prefix(&format!("{kind}:[")).and_then(|t| t.strip_suffix(']'));
        want!(inner.is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > 0xf000_0000 - 100)), "{kind}: {text}");
    }
    let text = link("/proc/self/ns/pid_for_children")?;
    same!(text, link("/proc/self/ns/pid")?);
    Ok(())
}

fn children_share_namespaces() -> Outcome {
    let own = link("/proc/self/ns/uts")?;
    sys::fork(|| {
        same!(link("/proc/self/ns/uts")?, own);
        Ok(())
    })?
    .ok()
}

fn unshared_uts_has_its_own_name() -> Outcome {
    as_root()?;
    ok!(set_name("before"));
    sys::fork(|| {
        ok!(unshare(CLONE_NEWUTS));
        same!(name()?, "before");
        ok!(set_name("inside"));
        same!(name()?, "inside");
        same!(sys::slurp("/proc/sys/kernel/hostname")?, "inside\n");
        Ok(())
    })?
    .ok()?;
    same!(name()?, "before");
    Ok(())
}

fn unshare_flags_are_checked() -> Outcome {
    fails!(EINVAL, unshare(CLONE_PARENT));
    fails!(EINVAL, unshare(CLONE_VFORK));
    fails!(EINVAL, unshare(1));
    ok!(unshare(0));
    ok!(unshare(CLONE_FS | CLONE_FILES));
    ok!(unshare(CLONE_THREAD));
    Ok(())
}

fn unshare_without_privilege_is_eperm() -> Outcome {
    as_root()?;
    sys::drop_root()?;
    for flag in [CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP] {
        fails!(EPERM, unshare(flag));
    }
    Ok(())
}

fn files_of_namespaces_have_their_numbers() -> Outcome {
    let text = link("/proc/self/ns/uts")?;
    let st = sys::stat("/proc/self/ns/uts")?;
    same!(text, format!("uts:[{}]", st.st_ino));
    same!(st.st_mode & S_IFMT, S_IFREG);
    same!(st.st_mode & 0o777, 0o444);
    let fd = sys::open("/proc/self/ns/uts", O_RDONLY)?;
    same!(sys::fstat(&fd)?.st_ino, st.st_ino);
    same!(link(&format!("/proc/self/fd/{}", fd.as_raw_fd()))?, text);
    same!(sys::lstat("/proc/self/ns/uts")?.st_mode & S_IFMT, S_IFLNK);
    Ok(())
}

fn files_of_namespaces_are_read_only() -> Outcome {
    let fd = sys::open("/proc/self/ns/uts", O_RDONLY)?;
    let mut byte = 0u8;
    fails!(EINVAL, read(fd.as_raw_fd(), (&raw mut byte).cast(), 1));
    fails!(EBADF, write(fd.as_raw_fd(), (&raw const byte).cast(), 1));
    fails!(ENOENT, open(c("/proc/self/ns/none").as_ptr(), O_RDONLY));
    Ok(())
}

fn nsfs_tells_its_magic() -> Outcome {
    let fd = sys::open("/proc/self/ns/mnt", O_RDONLY)?;
    let mut fs: statfs = unsafe { std::mem::zeroed() };
    ok!(fstatfs(fd.as_raw_fd(), &raw mut fs));
    same!(fs.f_type, 0x6e73_6673);
    Ok(())
}

/// A child in namespaces of its own, after `prepare`; it lives until the pipe is closed.
fn stranger(flags: i32, prepare: impl FnOnce() -> Outcome) -> Result<(sys::Kid, OwnedFd), String> {
    let (hold, keep) = sys::pipe()?;
    let (ready, tell) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        ok!(unshare(flags));
        prepare()?;
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    drop(tell);
    if sys::fd_read(&ready, 1)?.is_empty() {
        kid.ok()?;
        return Err("the child ended early".into());
    }
    Ok((kid, keep))
}

fn setns_enters_a_childs_uts() -> Outcome {
    as_root()?;
    let (kid, keep) = stranger(CLONE_NEWUTS, || {
        ok!(set_name("stranger"));
        Ok(())
    })?;
    let fd = sys::open(&format!("/proc/{}/ns/uts", kid.pid), O_RDONLY)?;
    ok!(setns(fd.as_raw_fd(), CLONE_NEWUTS));
    same!(name()?, "stranger");
    same!(link("/proc/self/ns/uts")?, link(&format!("/proc/{}/ns/uts", kid.pid))?);
    drop(keep);
    kid.ok()
}

fn setns_checks_the_kind() -> Outcome {
    as_root()?;
    let fd = sys::open("/proc/self/ns/uts", O_RDONLY)?;
    fails!(EINVAL, setns(fd.as_raw_fd(), CLONE_NEWIPC));
    fails!(EINVAL, setns(fd.as_raw_fd(), CLONE_NEWUTS | CLONE_NEWIPC));
    ok!(setns(fd.as_raw_fd(), 0));
    fails!(EBADF, setns(-1, 0));
    Ok(())
}

fn setns_refuses_other_files() -> Outcome {
    let fd = sys::open("/proc/self/status", O_RDONLY)?;
    fails!(EINVAL, setns(fd.as_raw_fd(), 0));
    Ok(())
}

fn pidfd(pid: i32) -> Result<OwnedFd, String> {
    Ok(sys::own(ok!(syscall(SYS_pidfd_open, pid, 0) as i32)))
}

fn setns_with_a_pidfd() -> Outcome {
    as_root()?;
    let (kid, keep) = stranger(CLONE_NEWUTS | CLONE_NEWIPC, || Ok(()))?;
    let fd = pidfd(kid.pid)?;
    let ipc = link("/proc/self/ns/ipc")?;
    ok!(setns(fd.as_raw_fd(), CLONE_NEWUTS));
    same!(link("/proc/self/ns/uts")?, link(&format!("/proc/{}/ns/uts", kid.pid))?);
    same!(link("/proc/self/ns/ipc")?, ipc);
    ok!(setns(fd.as_raw_fd(), CLONE_NEWUTS | CLONE_NEWIPC));
    same!(link("/proc/self/ns/ipc")?, link(&format!("/proc/{}/ns/ipc", kid.pid))?);
    drop(keep);
    kid.ok()
}

fn setns_with_a_pidfd_needs_kinds() -> Outcome {
    let fd = pidfd(unsafe { getpid() })?;
    fails!(EINVAL, setns(fd.as_raw_fd(), 0));
    fails!(EINVAL, setns(fd.as_raw_fd(), CLONE_VM));
    Ok(())
}

fn namespace_kept_by_descriptor() -> Outcome {
    as_root()?;
    let (kid, keep) = stranger(CLONE_NEWUTS, || {
        ok!(set_name("kept"));
        Ok(())
    })?;
    let fd = sys::open(&format!("/proc/{}/ns/uts", kid.pid), O_RDONLY)?;
    drop(keep);
    kid.ok()?;
    ok!(setns(fd.as_raw_fd(), 0));
    same!(name()?, "kept");
    Ok(())
}

fn namespace_kept_by_bind_mount() -> Outcome {
    as_root()?;
    ok!(unshare(CLONE_NEWNS));
    let null = std::ptr::null();
    ok!(mount(null, c"/".as_ptr(), null, MS_REC | MS_PRIVATE, null.cast()));
    sys::put("f", b"")?;
    sys::fork(|| {
        ok!(unshare(CLONE_NEWUTS));
        ok!(set_name("bound"));
        Ok(())
    })?
    .ok()?;
    let (kid, keep) = stranger(CLONE_NEWUTS, || {
        ok!(set_name("bound"));
        Ok(())
    })?;
    let source = c(&format!("/proc/{}/ns/uts", kid.pid));
    ok!(mount(source.as_ptr(), c("f").as_ptr(), null, MS_BIND, null.cast()));
    drop(keep);
    kid.ok()?;
    let fd = sys::open("f", O_RDONLY)?;
    ok!(setns(fd.as_raw_fd(), CLONE_NEWUTS));
    same!(name()?, "bound");
    let info = sys::slurp("/proc/self/mountinfo")?;
    want!(
        info.lines().any(|l| l.contains(" uts:[") && l.contains(" - nsfs nsfs ")),
        "no line of nsfs in {info}"
    );
    drop(fd);
    ok!(umount2(c("f").as_ptr(), 0));
    Ok(())
}

const NS_GET_USERNS: c_ulong = 0xb701;
const NS_GET_PARENT: c_ulong = 0xb702;
const NS_GET_NSTYPE: c_ulong = 0xb703;
const NS_GET_OWNER_UID: c_ulong = 0xb704;

fn ioctl_tells_the_kind() -> Outcome {
    for (kind, flag) in
        [("uts", CLONE_NEWUTS), ("user", CLONE_NEWUSER), ("mnt", CLONE_NEWNS), ("pid", CLONE_NEWPID)]
    {
        let fd = sys::open(&format!("/proc/self/ns/{kind}"), O_RDONLY)?;
        same!(ok!(ioctl(fd.as_raw_fd(), NS_GET_NSTYPE)), flag);
    }
    let fd = sys::open("/proc/self/ns/uts", O_RDONLY)?;
    fails!(ENOTTY, ioctl(fd.as_raw_fd(), 0xb7ff));
    Ok(())
}

fn ioctl_gives_the_owner() -> Outcome {
    enter_user_ns(0, 0)?;
    ok!(unshare(CLONE_NEWUTS));
    let fd = sys::open("/proc/self/ns/uts", O_RDONLY)?;
    let owner = sys::own(ok!(ioctl(fd.as_raw_fd(), NS_GET_USERNS)));
    same!(sys::fstat(&owner)?.st_ino, sys::stat("/proc/self/ns/user")?.st_ino);
    let flags = ok!(fcntl(owner.as_raw_fd(), F_GETFD));
    same!(flags, FD_CLOEXEC);
    Ok(())
}

fn ioctl_parent_is_for_hierarchies() -> Outcome {
    let fd = sys::open("/proc/self/ns/uts", O_RDONLY)?;
    fails!(EINVAL, ioctl(fd.as_raw_fd(), NS_GET_PARENT));
    Ok(())
}

fn ioctl_parent_outside_is_eperm() -> Outcome {
    let outer = sys::stat("/proc/self/ns/user")?.st_ino;
    let fd = {
        let (kid, keep) = stranger(CLONE_NEWUSER, || Ok(()))?;
        let fd = sys::open(&format!("/proc/{}/ns/user", kid.pid), O_RDONLY)?;
        drop(keep);
        kid.ok()?;
        fd
    };
    let parent = sys::own(ok!(ioctl(fd.as_raw_fd(), NS_GET_PARENT)));
    same!(sys::fstat(&parent)?.st_ino, outer);
    enter_user_ns(0, 0)?;
    let own = sys::open("/proc/self/ns/user", O_RDONLY)?;
    fails!(EPERM, ioctl(own.as_raw_fd(), NS_GET_PARENT));
    Ok(())
}

fn ioctl_owner_uid() -> Outcome {
    let (kid, keep) = stranger(CLONE_NEWUSER, || Ok(()))?;
    let fd = sys::open(&format!("/proc/{}/ns/user", kid.pid), O_RDONLY)?;
    let mut uid: uid_t = 77;
    ok!(ioctl(fd.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid));
    same!(uid, unsafe { geteuid() });
    let uts = sys::open("/proc/self/ns/uts", O_RDONLY)?;
    fails!(EINVAL, ioctl(uts.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid));
    drop(keep);
    kid.ok()
}

/// `fork` with flags.
fn clone_process(flags: i32) -> i64 {
    unsafe { syscall(SYS_clone, i64::from(flags | SIGCHLD), 0, 0, 0, 0) }
}

fn clone_with_new_uts() -> Outcome {
    as_root()?;
    ok!(set_name("parent"));
    let pid = ok!(clone_process(CLONE_NEWUTS));
    if pid == 0 {
        let fine = set_name("child") == 0;
        unsafe { _exit(i32::from(!fine)) };
    }
    same!(sys::wait_status(pid as i32)?, 0);
    same!(name()?, "parent");
    Ok(())
}

fn clone_flags_that_clash() -> Outcome {
    fails!(EINVAL, clone_process(CLONE_NEWNS | CLONE_FS));
    fails!(EINVAL, clone_process(CLONE_NEWUSER | CLONE_FS));
    fails!(EINVAL, clone_process(CLONE_NEWIPC | CLONE_SYSVSEM));
    fails!(EINVAL, clone_process(CLONE_THREAD | CLONE_SIGHAND | CLONE_VM | CLONE_NEWPID));
    Ok(())
}

fn is_another(kind: &str, flag: i32) -> Outcome {
    as_root()?;
    let path = format!("/proc/self/ns/{kind}");
    let before = link(&path)?;
    ok!(unshare(flag));
    let inside = link(&path)?;
    want!(inside != before, "still {before}");
    same!(link(&path)?, inside);
    Ok(())
}

fn ipc_namespace_is_another() -> Outcome {
    is_another("ipc", CLONE_NEWIPC)
}

fn net_namespace_is_another() -> Outcome {
    is_another("net", CLONE_NEWNET)
}

fn cgroup_namespace_is_another() -> Outcome {
    is_another("cgroup", CLONE_NEWCGROUP)
}

fn abstract_sockets_belong_to_the_network_namespace() -> Outcome {
    as_root()?;
    let mut addr: sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = AF_UNIX as u16;
    let text = format!("\0syscall-tests-{}", unsafe { getpid() });
    for (slot, byte) in addr.sun_path.iter_mut().zip(text.bytes()) {
        *slot = byte as c_char;
    }
    let len = (2 + text.len()) as u32;
    let listener = sys::own(ok!(socket(AF_UNIX, SOCK_STREAM, 0)));
    ok!(bind(listener.as_raw_fd(), (&raw const addr).cast(), len));
    ok!(listen(listener.as_raw_fd(), 1));
    sys::fork(|| {
        ok!(unshare(CLONE_NEWNET));
        let s = sys::own(ok!(socket(AF_UNIX, SOCK_STREAM, 0)));
        fails!(ECONNREFUSED, connect(s.as_raw_fd(), (&raw const addr).cast(), len));
        ok!(bind(s.as_raw_fd(), (&raw const addr).cast(), len));
        Ok(())
    })?
    .ok()
}

fn user_namespace_without_maps_shows_overflow_ids() -> Outcome {
    ok!(unshare(CLONE_NEWUSER));
    same!(unsafe { (getuid(), geteuid(), getgid(), getegid()) }, (65534, 65534, 65534, 65534));
    same!(sys::stat("/")?.st_uid, 65534);
    same!(sys::slurp("/proc/self/uid_map")?, "");
    same!(sys::slurp("/proc/self/setgroups")?, "allow\n");
    Ok(())
}

fn user_namespace_gives_all_capabilities() -> Outcome {
    sys::drop_root()?;
    same!(effective()?, no_caps());
    ok!(unshare(CLONE_NEWUSER));
    want!(effective()? != no_caps(), "no capabilities inside");
    Ok(())
}

fn user_namespace_by_an_ordinary_user() -> Outcome {
    sys::drop_root()?;
    ok!(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    enter_user_ns(0, 0)?;
    same!(unsafe { (getuid(), getgid()) }, (0, 0));
    ok!(unshare(CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID));
    ok!(set_name("mine"));
    same!(name()?, "mine");
    Ok(())
}

fn uid_map_is_written_once() -> Outcome {
    enter_user_ns(0, 0)?;
    same!(write_file("/proc/self/uid_map", "0 0 1")?, -1);
    same!(crate::harness::errno(), EPERM);
    Ok(())
}

fn uid_map_text_is_checked() -> Outcome {
    ok!(unshare(CLONE_NEWUSER));
    for text in
        ["", "0", "0 0", "0 0 0", "0 0 1 1", "a 0 1", "-1 0 1", "0 0 4294967295\n5 5 1", "4294967295 0 2"]
    {
        let n = write_file("/proc/self/uid_map", text)?;
        if text.is_empty() {
            continue;
        }
        want!(n == -1 && crate::harness::errno() == EINVAL, "{text:?} gave {n}");
    }
    Ok(())
}

fn uid_map_of_others_is_refused() -> Outcome {
    sys::drop_root()?;
    ok!(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    ok!(unshare(CLONE_NEWUSER));
    // Another user's id, and more than one.
    for text in ["0 0 1", "0 1234 2"] {
        same!(write_file("/proc/self/uid_map", text)?, -1);
        same!(crate::harness::errno(), EPERM);
    }
    want!(write_file("/proc/self/uid_map", "5 1234 1")? > 0, "the own id is refused");
    same!(unsafe { getuid() }, 5);
    Ok(())
}

fn gid_map_needs_setgroups_denied() -> Outcome {
    sys::drop_root()?;
    ok!(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    ok!(unshare(CLONE_NEWUSER));
    same!(write_file("/proc/self/gid_map", "0 1234 1")?, -1);
    same!(crate::harness::errno(), EPERM);
    same!(write_file("/proc/self/setgroups", "deny")?, 4);
    want!(write_file("/proc/self/gid_map", "0 1234 1")? > 0, "the own group is refused");
    Ok(())
}

fn setgroups_file_rules() -> Outcome {
    ok!(unshare(CLONE_NEWUSER));
    same!(write_file("/proc/self/setgroups", "maybe")?, -1);
    same!(crate::harness::errno(), EINVAL);
    same!(write_file("/proc/self/setgroups", "allow\n")?, 6);
    same!(write_file("/proc/self/setgroups", "deny\n")?, 5);
    same!(sys::slurp("/proc/self/setgroups")?, "deny\n");
    same!(write_file("/proc/self/setgroups", "allow")?, -1);
    same!(crate::harness::errno(), EPERM);
    Ok(())
}

fn setgroups_call_follows_the_file() -> Outcome {
    enter_user_ns(0, 0)?;
    fails!(EPERM, setgroups(0, std::ptr::null()));
    Ok(())
}

fn mapped_root_is_not_root_outside() -> Outcome {
    sys::put("rootfile", b"secret")?;
    ok!(chmod(c("rootfile").as_ptr(), 0o600));
    ok!(chmod(c(".").as_ptr(), 0o777));
    sys::drop_root()?;
    ok!(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    enter_user_ns(0, 0)?;
    fails!(EACCES, open(c("rootfile").as_ptr(), O_RDONLY));
    fails!(EPERM, chmod(c("rootfile").as_ptr(), 0o666));
    sys::put("own", b"mine")?;
    same!(sys::stat("own")?.st_uid, 0);
    ok!(chmod(c("own").as_ptr(), 0));
    ok!(access(c("own").as_ptr(), R_OK | W_OK));
    Ok(())
}

fn mapped_root_sees_files_of_others_as_nobody() -> Outcome {
    sys::put("f", b"")?;
    ok!(chown(c("f").as_ptr(), 4321, 4321));
    enter_user_ns(0, 0)?;
    let st = sys::stat("f")?;
    same!((st.st_uid, st.st_gid), (65534, 65534));
    Ok(())
}

fn chown_to_unmapped_ids_is_einval() -> Outcome {
    sys::put("f", b"")?;
    enter_user_ns(0, 0)?;
    fails!(EINVAL, chown(c("f").as_ptr(), 1, 0));
    fails!(EINVAL, chown(c("f").as_ptr(), 0, 1));
    ok!(chown(c("f").as_ptr(), 0, 0));
    Ok(())
}

fn setuid_to_unmapped_ids_is_einval() -> Outcome {
    enter_user_ns(0, 0)?;
    fails!(EINVAL, syscall(SYS_setuid, 5));
    fails!(EINVAL, syscall(SYS_setgid, 5));
    fails!(EINVAL, syscall(SYS_setresuid, 5, -1, -1));
    fails!(EINVAL, syscall(SYS_setregid, 0, 5));
    ok!(syscall(SYS_setuid, 0));
    Ok(())
}

fn set_user_id_calls_use_mapped_ids() -> Outcome {
    as_root()?;
    let (hold, go) = sys::pipe()?;
    let (ready, tell) = sys::pipe()?;
    let kid = sys::fork(|| {
        ok!(unshare(CLONE_NEWUSER));
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&hold, 1)?;
        same!(unsafe { getuid() }, 0);
        ok!(syscall(SYS_setresgid, 7, 7, 7));
        ok!(syscall(SYS_setresuid, 9, 9, 9));
        same!(unsafe { (getuid(), getgid()) }, (9, 7));
        let status = sys::slurp("/proc/self/status")?;
        want!(status.contains("Uid:\t9\t9\t9\t9\n"), "{status}");
        same!(effective()?, no_caps());
        sys::fd_write(&tell, b"y")?;
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    sys::fd_read(&ready, 1)?;
    want!(write_file(&format!("/proc/{}/uid_map", kid.pid), "0 0 1\n9 1009 1\n")? > 0, "uid_map");
    want!(write_file(&format!("/proc/{}/gid_map", kid.pid), "0 0 1\n7 1007 1\n")? > 0, "gid_map");
    sys::fd_write(&go, b"x")?;
    sys::fd_read(&ready, 1)?;
    let status = sys::slurp(&format!("/proc/{}/status", kid.pid))?;
    want!(status.contains("Uid:\t1009\t1009\t1009\t1009\n"), "{status}");
    sys::fd_write(&go, b"y")?;
    kid.ok()
}

fn capabilities_end_at_the_namespace() -> Outcome {
    enter_user_ns(0, 0)?;
    fails!(EPERM, set_name("outside"));
    fails!(EPERM, mount(c"none".as_ptr(), c("/").as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()));
    let ts = sys::ts(0);
    fails!(EPERM, clock_settime(CLOCK_REALTIME, &raw const ts));
    fails!(EPERM, mknod(c("dev").as_ptr(), S_IFCHR | 0o600, makedev(1, 3)));
    ok!(mkdir(c("root").as_ptr(), 0o755));
    ok!(chroot(c("root").as_ptr()));
    Ok(())
}

fn owner_in_the_parent_is_capable() -> Outcome {
    sys::drop_root()?;
    ok!(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    let (kid, keep) = stranger(CLONE_NEWUSER | CLONE_NEWUTS, || Ok(()))?;
    // The owner of the namespace may map its own id from outside and enter.
    same!(write_file(&format!("/proc/{}/setgroups", kid.pid), "deny")?, 4);
    want!(write_file(&format!("/proc/{}/uid_map", kid.pid), "0 1234 1")? > 0, "uid_map");
    let user = sys::open(&format!("/proc/{}/ns/user", kid.pid), O_RDONLY)?;
    let uts = sys::open(&format!("/proc/{}/ns/uts", kid.pid), O_RDONLY)?;
    fails!(EPERM, setns(uts.as_raw_fd(), 0));
    ok!(setns(user.as_raw_fd(), CLONE_NEWUSER));
    same!(unsafe { getuid() }, 0);
    ok!(setns(uts.as_raw_fd(), 0));
    ok!(set_name("entered"));
    drop(keep);
    kid.ok()
}

fn user_namespace_after_chroot_is_eperm() -> Outcome {
    as_root()?;
    ok!(mkdir(c("root").as_ptr(), 0o755));
    ok!(chroot(c("root").as_ptr()));
    fails!(EPERM, unshare(CLONE_NEWUSER));
    Ok(())
}

fn user_namespace_of_threads_is_einval() -> Outcome {
    let (hold, keep) = sys::pipe()?;
    let thread = std::thread::spawn(move || sys::fd_read(&hold, 1));
    fails!(EINVAL, unshare(CLONE_NEWUSER));
    drop(keep);
    let _ = thread.join();
    Ok(())
}

fn setns_to_own_user_namespace_is_einval() -> Outcome {
    let fd = sys::open("/proc/self/ns/user", O_RDONLY)?;
    fails!(EINVAL, setns(fd.as_raw_fd(), CLONE_NEWUSER));
    Ok(())
}

fn joining_a_user_namespace_gives_capabilities() -> Outcome {
    as_root()?;
    let (kid, keep) = stranger(CLONE_NEWUSER, || Ok(()))?;
    let fd = sys::open(&format!("/proc/{}/ns/user", kid.pid), O_RDONLY)?;
    ok!(setns(fd.as_raw_fd(), 0));
    want!(effective()? != no_caps(), "no capabilities inside");
    same!(unsafe { getuid() }, 65534);
    fails!(EPERM, set_name("x"));
    drop(keep);
    kid.ok()
}

fn hostname_in_foreign_uts_is_eperm() -> Outcome {
    as_root()?;
    ok!(set_name("outer"));
    enter_user_ns(0, 0)?;
    fails!(EPERM, set_name("x"));
    ok!(unshare(CLONE_NEWUTS));
    ok!(set_name("x"));
    Ok(())
}

fn exec_in_a_user_namespace_keeps_root() -> Outcome {
    let (out, status) = sys::helper(&["ids"], &[], || enter_user_ns(0, 0))?;
    same!(status, 0);
    same!(out, "0 0 0 0");
    Ok(())
}

fn exec_unmapped_drops_capabilities() -> Outcome {
    let (out, status) = sys::exec_capture(
        c"/bin/sh",
        &["sh", "-c", "while read k v; do [ $k = CapEff: ] && echo $v; done < /proc/self/status; exit 0"],
        &[],
        || {
            ok!(unshare(CLONE_NEWUSER));
            Ok(())
        },
    )?;
    same!(status, 0);
    same!(out.trim(), no_caps());
    Ok(())
}

fn peer_credentials_are_translated() -> Outcome {
    as_root()?;
    let (a, b) = sys::socketpair(SOCK_STREAM)?;
    let on = 1i32;
    ok!(setsockopt(b.as_raw_fd(), SOL_SOCKET, SO_PASSCRED, (&raw const on).cast(), 4));
    let kid = sys::fork(|| {
        ok!(unshare(CLONE_NEWUSER));
        let mut peer: ucred = unsafe { std::mem::zeroed() };
        let mut len = 12;
        ok!(getsockopt(a.as_raw_fd(), SOL_SOCKET, SO_PEERCRED, (&raw mut peer).cast(), &raw mut len));
        same!((peer.uid, peer.gid), (65534, 65534));
        sys::fd_write(&a, b"x")?;
        Ok(())
    })?;
    kid.ok()?;
    let mut byte = [0u8; 1];
    let mut iov = iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 8];
    let mut msg: msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = 64;
    ok!(recvmsg(b.as_raw_fd(), &raw mut msg, 0));
    let header = unsafe { CMSG_FIRSTHDR(&raw const msg) };
    want!(!header.is_null(), "no control message");
    let creds = unsafe { CMSG_DATA(header).cast::<ucred>().read_unaligned() };
    same!((creds.uid, creds.gid), (0, 0));
    Ok(())
}

fn signals_show_mapped_ids() -> Outcome {
    as_root()?;
    sys::block(&[SIGUSR1])?;
    let pid = unsafe { getpid() };
    let kid = sys::fork(|| {
        ok!(syscall(SYS_setresuid, 0, 0, 0));
        ok!(kill(pid, SIGUSR1));
        Ok(())
    })?;
    kid.ok()?;
    ok!(unshare(CLONE_NEWUSER));
    let set = sys::sigset(&[SIGUSR1]);
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    ok!(sigwaitinfo(&raw const set, &raw mut info));
    // The sender's id was translated when the signal was sent.
    same!(unsafe { info.si_uid() }, 0);
    sys::block(&[SIGUSR2])?;
    ok!(kill(pid, SIGUSR2));
    let set = sys::sigset(&[SIGUSR2]);
    ok!(sigwaitinfo(&raw const set, &raw mut info));
    same!(unsafe { info.si_uid() }, 65534);
    Ok(())
}

fn map_file_shows_readers_view() -> Outcome {
    as_root()?;
    let (kid, keep) = stranger(CLONE_NEWUSER, || Ok(()))?;
    let path = format!("/proc/{}/uid_map", kid.pid);
    want!(write_file(&path, "0 1000 10\n20 3000 5\n")? > 0, "uid_map");
    same!(sys::slurp(&path)?, "         0       1000         10\n        20       3000          5\n");
    drop(keep);
    kid.ok()
}

fn nested_maps_compose() -> Outcome {
    enter_user_ns(5, 5)?;
    ok!(unshare(CLONE_NEWUSER));
    same!(unsafe { getuid() }, 65534);
    // Its own id there is 5.
    same!(write_file("/proc/self/uid_map", "0 0 1")?, -1);
    want!(write_file("/proc/self/uid_map", "0 5 1")? > 0, "uid_map");
    same!(unsafe { getuid() }, 0);
    same!(sys::slurp("/proc/self/uid_map")?, "         0          5          1\n");
    Ok(())
}

fn mount_namespace_of_a_user_namespace_is_locked() -> Outcome {
    as_root()?;
    ok!(unshare(CLONE_NEWNS));
    let null = std::ptr::null();
    ok!(mount(null, c"/".as_ptr(), null, MS_REC | MS_PRIVATE, null.cast()));
    ok!(mkdir(c("m").as_ptr(), 0o755));
    ok!(mount(c"t".as_ptr(), c("m").as_ptr(), c"tmpfs".as_ptr(), MS_NOSUID | MS_RDONLY, null.cast()));
    enter_user_ns(0, 0)?;
    ok!(unshare(CLONE_NEWNS));
    fails!(EINVAL, umount2(c("m").as_ptr(), 0));
    fails!(EINVAL, umount2(c("m").as_ptr(), MNT_DETACH));
    fails!(EPERM, mount(null, c("m").as_ptr(), null, MS_REMOUNT | MS_BIND | MS_NOSUID, null.cast()));
    fails!(EPERM, mount(null, c("m").as_ptr(), null, MS_REMOUNT | MS_BIND | MS_RDONLY, null.cast()));
    ok!(mount(
        null,
        c("m").as_ptr(),
        null,
        MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV,
        null.cast()
    ));
    // A bind mount of what is above would show what is hidden.
    ok!(mkdir(c("b").as_ptr(), 0o755));
    fails!(EINVAL, mount(c(".").as_ptr(), c("b").as_ptr(), null, MS_BIND, null.cast()));
    ok!(mount(c(".").as_ptr(), c("b").as_ptr(), null, MS_BIND | MS_REC, null.cast()));
    Ok(())
}
