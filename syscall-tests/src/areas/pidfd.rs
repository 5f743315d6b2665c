//! Descriptors and numbers of processes, and running programs without a name: pidfd_open(2), pidfd_getfd(2), kcmp(2),
//! clone3(2), execveat(2).

use crate::harness::Outcome;
use crate::sys::{self, c, fork};
use libc::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

cases![
    open_errors,
    descriptor_is_cloexec,
    getfd_duplicates_a_descriptor,
    getfd_errors,
    getfd_needs_the_right,
    send_signal_flags,
    send_signal_to_the_group,
    send_signal_after_the_end_is_esrch,
    waitid_by_descriptor,
    kcmp_compares_descriptors,
    kcmp_compares_parts_of_processes,
    kcmp_errors,
    clone3_takes_the_chosen_number,
    clone3_chosen_number_errors,
    clone3_chosen_number_needs_the_right,
    clone3_into_no_cgroup_is_ebadf,
    memfd_is_executed_by_descriptor,
    memfd_is_executed_by_its_proc_name,
    memfd_script_needs_a_lasting_descriptor,
    execveat_of_an_o_path_descriptor,
    execveat_errors,
    execveat_does_not_follow_when_told,
    exec_of_an_unlinked_program,
];

fn pidfd(pid: i32, flags: i32) -> i64 {
    unsafe { syscall(SYS_pidfd_open, pid, flags) }
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, String> {
    Ok(unsafe { OwnedFd::from_raw_fd(ok!(pidfd(pid, 0)) as i32) })
}

fn open_errors() -> Outcome {
    fails!(EINVAL, pidfd(0, 0));
    fails!(EINVAL, pidfd(-1, 0));
    fails!(ESRCH, pidfd(4_100_000, 0));
    fails!(EINVAL, pidfd(unsafe { getpid() }, 1 << 20));
    Ok(())
}

fn descriptor_is_cloexec() -> Outcome {
    let fd = open_pidfd(unsafe { getpid() })?;
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETFD)), FD_CLOEXEC);
    let nonblock = ok!(pidfd(getpid(), O_NONBLOCK)) as i32;
    want!(ok!(fcntl(nonblock, F_GETFL)) & O_NONBLOCK != 0, "not non-blocking");
    Ok(())
}

fn getfd(fd: &OwnedFd, target: i32, flags: u32) -> i64 {
    unsafe { syscall(SYS_pidfd_getfd, fd.as_raw_fd(), target, flags) }
}

fn getfd_duplicates_a_descriptor() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let (go_rd, go_wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::put("f", b"hello")?;
        let f = sys::open("f", O_RDONLY)?;
        ok!(dup2(f.as_raw_fd(), 70));
        ok!(lseek(70, 2, SEEK_SET));
        sys::fd_write(&wr, b"x")?;
        sys::fd_read(&go_rd, 1)?;
        // One description: the offset moved.
        same!(ok!(lseek(70, 0, SEEK_CUR)), 4);
        Ok(())
    })?;
    sys::fd_read(&rd, 1)?;
    let fd = open_pidfd(kid.pid)?;
    let got = ok!(getfd(&fd, 70, 0)) as i32;
    same!(ok!(fcntl(got, F_GETFD)), FD_CLOEXEC);
    let mut buf = [0u8; 2];
    ok!(read(got, buf.as_mut_ptr().cast(), 2));
    same!(&buf, b"ll");
    sys::fd_write(&go_wr, b"x")?;
    kid.ok()
}

fn getfd_errors() -> Outcome {
    let me = open_pidfd(unsafe { getpid() })?;
    fails!(EBADF, getfd(&me, 99, 0));
    fails!(EINVAL, getfd(&me, 0, 1));
    let (rd, _wr) = sys::pipe()?;
    fails!(EBADF, getfd(&rd, 0, 0));
    let kid = fork(|| Ok(()))?;
    let fd = open_pidfd(kid.pid)?;
    kid.ok()?;
    fails!(ESRCH, getfd(&fd, 0, 0));
    Ok(())
}

fn getfd_needs_the_right() -> Outcome {
    let parent = open_pidfd(unsafe { getpid() })?;
    fork(|| {
        sys::drop_root()?;
        fails!(EPERM, getfd(&parent, 0, 0));
        Ok(())
    })?
    .ok()
}

fn send(fd: &OwnedFd, signo: i32, flags: u32) -> i64 {
    unsafe { syscall(SYS_pidfd_send_signal, fd.as_raw_fd(), signo, 0, flags) }
}

fn send_signal_flags() -> Outcome {
    sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
    let me = open_pidfd(unsafe { getpid() })?;
    ok!(send(&me, SIGUSR1, 0));
    ok!(send(&me, SIGUSR1, 1));
    ok!(send(&me, SIGUSR1, 2));
    same!(sys::hits(), 3);
    fails!(EINVAL, send(&me, SIGUSR1, 3));
    fails!(EINVAL, send(&me, SIGUSR1, 8));
    fails!(EINVAL, send(&me, 65, 0));
    ok!(send(&me, 0, 0));
    Ok(())
}

fn send_signal_to_the_group() -> Outcome {
    let kid = fork(|| {
        ok!(setpgid(0, 0));
        let other = fork(|| {
            loop {
                unsafe { pause() };
            }
        })?;
        unsafe { signal(SIGUSR2, SIG_IGN) };
        let me = open_pidfd(getpid_safe())?;
        ok!(send(&me, SIGUSR2, 4));
        let status = other.status()?;
        want!(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR2, "status {status:#x}");
        Ok(())
    })?;
    kid.ok()
}

fn getpid_safe() -> i32 {
    unsafe { getpid() }
}

fn send_signal_after_the_end_is_esrch() -> Outcome {
    let kid = fork(|| Ok(()))?;
    let fd = open_pidfd(kid.pid)?;
    kid.ok()?;
    fails!(ESRCH, send(&fd, 0, 0));
    fails!(ESRCH, send(&fd, SIGKILL, 0));
    Ok(())
}

fn waitid_by_descriptor() -> Outcome {
    let kid = fork(|| Err("no".to_string()))?;
    let fd = open_pidfd(kid.pid)?;
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    ok!(waitid(P_PIDFD, fd.as_raw_fd() as u32, &raw mut info, WEXITED));
    same!(unsafe { (info.si_pid(), info.si_status()) }, (kid.pid, 1));
    fails!(ECHILD, waitid(P_PIDFD, fd.as_raw_fd() as u32, &raw mut info, WEXITED));
    fails!(EBADF, waitid(P_PIDFD, 0, &raw mut info, WEXITED));
    Ok(())
}

fn kcmp(a: i32, b: i32, kind: i32, i: u64, j: u64) -> i64 {
    unsafe { syscall(SYS_kcmp, a, b, kind, i, j) }
}

fn kcmp_compares_descriptors() -> Outcome {
    let me = unsafe { getpid() };
    let (rd, wr) = sys::pipe()?;
    ok!(dup2(rd.as_raw_fd(), 60));
    same!(ok!(kcmp(me, me, 0, 60, rd.as_raw_fd() as u64)), 0);
    let (r, w) = (rd.as_raw_fd() as u64, wr.as_raw_fd() as u64);
    let (one, two) = (ok!(kcmp(me, me, 0, r, w)), ok!(kcmp(me, me, 0, w, r)));
    want!((one, two) == (1, 2) || (one, two) == (2, 1), "{one} {two}");
    fork(|| {
        same!(ok!(kcmp(me, getpid_safe(), 0, r, r)), 0);
        Ok(())
    })?
    .ok()
}

fn kcmp_compares_parts_of_processes() -> Outcome {
    let me = unsafe { getpid() };
    for kind in 1..=6 {
        same!(ok!(kcmp(me, me, kind, 0, 0)), 0);
    }
    fork(|| {
        // Memory, files, root and directory, signal actions: each process its own.
        for kind in [1, 2, 3, 4] {
            want!(ok!(kcmp(me, getpid_safe(), kind, 0, 0)) != 0, "kind {kind} is shared");
        }
        Ok(())
    })?
    .ok()?;
    let thread =
        std::thread::spawn(move || (1..=4).map(|k| kcmp(me, sys::gettid(), k, 0, 0)).collect::<Vec<_>>());
    same!(thread.join().map_err(|_| "no join".to_string())?, [0; 4]);
    Ok(())
}

fn kcmp_errors() -> Outcome {
    let me = unsafe { getpid() };
    fails!(ESRCH, kcmp(me, 4_100_000, 1, 0, 0));
    fails!(EINVAL, kcmp(me, me, 99, 0, 0));
    fails!(EBADF, kcmp(me, me, 0, 0, 99));
    fork(|| {
        sys::drop_root()?;
        fails!(EPERM, kcmp(me, getpid_safe(), 1, 0, 0));
        Ok(())
    })?
    .ok()
}

/// `clone3` of a child that ends at once.
fn clone_as(tid: &[i32], size: u64) -> i64 {
    let mut args = [0u64; 11];
    args[4] = SIGCHLD as u64;
    args[8] = tid.as_ptr() as u64;
    args[9] = size;
    if tid.is_empty() {
        args[8] = 0;
    }
    let got = unsafe { syscall(SYS_clone3, args.as_ptr(), 80usize) };
    if got == 0 {
        unsafe { _exit(0) };
    }
    got
}

fn clone3_takes_the_chosen_number() -> Outcome {
    let wanted = 3_999_000 + (unsafe { getpid() } % 900);
    let got = clone_as(&[wanted], 1);
    if got == -1 && crate::harness::errno() == EINVAL {
        skip!("the host's largest number is lower");
    }
    same!(got, i64::from(wanted));
    same!(sys::wait_status(wanted)?, 0);
    // Free again.
    same!(clone_as(&[wanted], 1), i64::from(wanted));
    same!(sys::wait_status(wanted)?, 0);
    Ok(())
}

fn clone3_chosen_number_errors() -> Outcome {
    fails!(EEXIST, clone_as(&[getpid()], 1));
    fails!(EINVAL, clone_as(&[0], 1));
    fails!(EINVAL, clone_as(&[-5], 1));
    fails!(EINVAL, clone_as(&[i32::MAX], 1));
    fails!(EINVAL, clone_as(&[], 1));
    fails!(EINVAL, clone_as(&[500], 0));
    fails!(EINVAL, clone_as(&[500], 33));
    Ok(())
}

fn clone3_chosen_number_needs_the_right() -> Outcome {
    fork(|| {
        sys::drop_root()?;
        fails!(EPERM, clone_as(&[31_000], 1));
        Ok(())
    })?
    .ok()
}

fn clone3_into_no_cgroup_is_ebadf() -> Outcome {
    let mut args = [0u64; 11];
    args[0] = 0x2_0000_0000;
    args[4] = SIGCHLD as u64;
    args[10] = 99;
    fails!(EBADF, syscall(SYS_clone3, args.as_ptr(), 88usize));
    let (rd, _wr) = sys::pipe()?;
    args[10] = rd.as_raw_fd() as u64;
    fails!(EBADF, syscall(SYS_clone3, args.as_ptr(), 88usize));
    args[10] = 1 << 40;
    fails!(EINVAL, syscall(SYS_clone3, args.as_ptr(), 88usize));
    Ok(())
}

/// This program in a memfd.
fn memfd(flags: u32) -> Result<OwnedFd, String> {
    let fd = unsafe { OwnedFd::from_raw_fd(ok!(memfd_create(c"prog".as_ptr(), flags))) };
    let exe = sys::self_exe()?;
    let bytes = std::fs::read(exe.to_str().unwrap_or("")).map_err(|e| e.to_string())?;
    let mut done = 0;
    while done < bytes.len() {
        done += sys::fd_write(&fd, &bytes[done..])?;
    }
    Ok(fd)
}

/// Runs `helper exit 7` through `exec`, which does not return.
fn runs(exec: impl FnOnce(*const *const c_char)) -> Outcome {
    let status = sys::status_of(|| {
        let argv = [c"prog".as_ptr(), c"helper".as_ptr(), c"exit".as_ptr(), c"7".as_ptr(), std::ptr::null()];
        exec(argv.as_ptr());
        unsafe { _exit(crate::harness::errno()) };
    })?;
    same!(WEXITSTATUS(status), 7);
    Ok(())
}

fn execveat(fd: i32, path: &str, argv: *const *const c_char, flags: i32) -> i64 {
    let path = c(path);
    unsafe { syscall(SYS_execveat, fd, path.as_ptr(), argv, 0usize, flags) }
}

fn memfd_is_executed_by_descriptor() -> Outcome {
    let fd = memfd(MFD_CLOEXEC)?;
    runs(|argv| {
        execveat(fd.as_raw_fd(), "", argv, AT_EMPTY_PATH);
    })
}

fn memfd_is_executed_by_its_proc_name() -> Outcome {
    let fd = memfd(0)?;
    let path = c(&format!("/proc/self/fd/{}", fd.as_raw_fd()));
    runs(|argv| {
        let envp = [std::ptr::null()];
        unsafe { execve(path.as_ptr(), argv, envp.as_ptr()) };
    })
}

fn memfd_script_needs_a_lasting_descriptor() -> Outcome {
    let exe = sys::self_exe()?;
    let text = format!("#!{} helper\n", exe.to_str().unwrap_or(""));
    let script = |flags: u32| -> Result<OwnedFd, String> {
        let fd = unsafe { OwnedFd::from_raw_fd(ok!(memfd_create(c"script".as_ptr(), flags))) };
        sys::fd_write(&fd, text.as_bytes())?;
        Ok(fd)
    };
    let closes = script(MFD_CLOEXEC)?;
    let argv = [c"x".as_ptr(), std::ptr::null()];
    fails!(ENOENT, execveat(closes.as_raw_fd(), "", argv.as_ptr(), AT_EMPTY_PATH));
    let stays = script(0)?;
    let status = sys::status_of(|| {
        execveat(stays.as_raw_fd(), "", argv.as_ptr(), AT_EMPTY_PATH);
    })?;
    // The interpreter was run, on a name that is no helper's.
    same!(WEXITSTATUS(status), 2);
    Ok(())
}

fn execveat_of_an_o_path_descriptor() -> Outcome {
    let exe = sys::self_exe()?;
    let fd = unsafe { OwnedFd::from_raw_fd(ok!(open(exe.as_ptr(), O_PATH | O_CLOEXEC))) };
    runs(|argv| {
        execveat(fd.as_raw_fd(), "", argv, AT_EMPTY_PATH);
    })
}

fn execveat_errors() -> Outcome {
    let argv = [c"x".as_ptr(), std::ptr::null()];
    let (rd, _wr) = sys::pipe()?;
    fails!(EINVAL, execveat(AT_FDCWD, "x", argv.as_ptr(), 1));
    fails!(ENOENT, execveat(0, "", argv.as_ptr(), 0));
    fails!(EBADF, execveat(99, "", argv.as_ptr(), AT_EMPTY_PATH));
    fails!(EBADF, execveat(99, "x", argv.as_ptr(), 0));
    fails!(EACCES, execveat(rd.as_raw_fd(), "", argv.as_ptr(), AT_EMPTY_PATH));
    sys::put("plain", b"x")?;
    let plain = sys::open("plain", O_RDONLY)?;
    fails!(ENOTDIR, execveat(plain.as_raw_fd(), "x", argv.as_ptr(), 0));
    fails!(EACCES, execveat(plain.as_raw_fd(), "", argv.as_ptr(), AT_EMPTY_PATH));
    Ok(())
}

fn execveat_does_not_follow_when_told() -> Outcome {
    let exe = sys::self_exe()?;
    ok!(symlink(exe.as_ptr(), c"link".as_ptr()));
    let argv = [c"x".as_ptr(), std::ptr::null()];
    fails!(ELOOP, execveat(AT_FDCWD, "link", argv.as_ptr(), AT_SYMLINK_NOFOLLOW));
    runs(|argv| {
        execveat(AT_FDCWD, "link", argv, 0);
    })
}

fn exec_of_an_unlinked_program() -> Outcome {
    let exe = sys::self_exe()?;
    std::fs::copy(exe.to_str().unwrap_or(""), "copy").map_err(|e| e.to_string())?;
    let fd = sys::open("copy", O_RDONLY)?;
    ok!(unlink(c"copy".as_ptr()));
    runs(|argv| {
        execveat(fd.as_raw_fd(), "", argv, AT_EMPTY_PATH);
    })
}
