//! fork(2), vfork(2), clone(2), wait(2), exit(2), process groups and sessions.

use crate::harness::Outcome;
use crate::sys::{self, Map, fork, raw};
use libc::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;

cases![
    fork_gives_pid_to_parent_and_zero_to_child,
    fork_copies_memory,
    fork_shares_file_offsets,
    fork_child_has_no_pending_signals,
    wait_gives_low_eight_bits_of_exit_code,
    wait_tells_the_killing_signal,
    wait_nohang_gives_zero_while_child_runs,
    wait_without_children_is_echild,
    wait_bad_options_is_einval,
    wait_null_status_is_allowed,
    wait_bad_status_pointer_is_efault,
    wait_for_one_process_group,
    wait_for_any_reaps_each_child_once,
    wait_reports_stop_and_continue,
    wait4_fills_rusage,
    waitid_fills_siginfo_on_exit,
    waitid_fills_siginfo_on_kill,
    waitid_nowait_leaves_the_zombie,
    waitid_nohang_without_event_zeroes_pid,
    waitid_without_events_is_einval,
    zombie_keeps_its_pid_until_reaped,
    sigchld_ignored_reaps_by_itself,
    sigchld_nocldwait_reaps_by_itself,
    sigchld_nocldstop_is_silent_on_stop,
    orphan_goes_to_the_subreaper,
    pdeathsig_follows_the_parents_death,
    vfork_holds_the_parent_until_exit,
    clone_without_exit_signal_needs_wall,
    clone_settid_flags_store_the_tid,
    clone_files_shares_the_table,
    clone_without_files_copies_the_table,
    clone_fs_shares_cwd_and_umask,
    clone_bad_flag_pairs_are_einval,
    clone3_forks_a_child,
    clone3_bad_sizes_fail,
    exit_group_ends_all_threads,
    setpgid_moves_a_child,
    setpgid_of_a_session_leader_is_eperm,
    setpgid_into_a_foreign_session_is_eperm,
    setpgid_after_the_childs_exec_is_eacces,
    setsid_of_a_group_leader_is_eperm,
    setsid_makes_a_session_and_group,
    getpgid_and_getsid_of_a_missing_process,
    pidfd_becomes_readable_at_exit,
    pidfd_sends_signals,
    getppid_of_a_child_is_the_parent,
    deep_tree_of_forks_returns,
];

fn fork_gives_pid_to_parent_and_zero_to_child() -> Outcome {
    let shared = Map::shared(sys::PAGE)?;
    let kid = fork(|| {
        shared.word(0).store(ok!(getpid()), SeqCst);
        Ok(())
    })?;
    let pid = kid.pid;
    kid.ok()?;
    same!(shared.word(0).load(SeqCst), pid);
    Ok(())
}

fn fork_copies_memory() -> Outcome {
    let map = Map::anon(64 * sys::PAGE)?;
    for p in 0..64 {
        map.set(p * sys::PAGE, p as u8);
    }
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::fd_read(&rd, 1)?;
        for p in 0..64 {
            same!(map.get(p * sys::PAGE), p as u8);
            map.set(p * sys::PAGE, 200);
        }
        Ok(())
    })?;
    for p in 0..32 {
        map.set(p * sys::PAGE, 100);
    }
    sys::fd_write(&wr, b"x")?;
    kid.ok()?;
    for p in 0..64 {
        same!(map.get(p * sys::PAGE), if p < 32 { 100 } else { p as u8 });
    }
    Ok(())
}

fn fork_shares_file_offsets() -> Outcome {
    sys::put("f", b"abcdef")?;
    let fd = sys::open("f", O_RDONLY)?;
    fork(|| {
        same!(sys::fd_read(&fd, 2)?, b"ab");
        Ok(())
    })?
    .ok()?;
    same!(sys::fd_read(&fd, 2)?, b"cd");
    Ok(())
}

fn fork_child_has_no_pending_signals() -> Outcome {
    sys::block(&[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    want!(sys::pending(SIGUSR1)?, "SIGUSR1 is not pending in the parent");
    fork(|| {
        want!(!sys::pending(SIGUSR1)?, "the child inherited a pending signal");
        Ok(())
    })?
    .ok()
}

fn wait_gives_low_eight_bits_of_exit_code() -> Outcome {
    for (code, seen) in [(0, 0), (1, 1), (255, 255), (256, 0), (0x1234, 0x34), (-1, 255)] {
        let status = sys::status_of(|| unsafe { _exit(code) })?;
        want!(WIFEXITED(status), "status {status:#x} is not an exit");
        same!(WEXITSTATUS(status), seen);
    }
    Ok(())
}

fn wait_tells_the_killing_signal() -> Outcome {
    for sig in [SIGKILL, SIGTERM, SIGHUP, SIGUSR1, SIGALRM, SIGABRT, SIGRTMIN()] {
        let status = sys::status_of(|| unsafe {
            kill(getpid(), sig);
        })?;
        want!(WIFSIGNALED(status), "status {status:#x} is not a death by signal {sig}");
        same!(WTERMSIG(status), sig);
        want!(!WCOREDUMP(status), "a core dump with a limit of 0 for signal {sig}");
    }
    Ok(())
}

fn wait_nohang_gives_zero_while_child_runs() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| sys::fd_read(&rd, 1).map(drop))?;
    let mut status = 77;
    same!(ok!(waitpid(kid.pid, &raw mut status, WNOHANG)), 0);
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn wait_without_children_is_echild() -> Outcome {
    fails!(ECHILD, waitpid(-1, std::ptr::null_mut(), 0));
    fails!(ECHILD, waitpid(getpid(), std::ptr::null_mut(), WNOHANG));
    fails!(ECHILD, waitpid(0, std::ptr::null_mut(), 0));
    Ok(())
}

fn wait_bad_options_is_einval() -> Outcome {
    fails!(EINVAL, waitpid(-1, std::ptr::null_mut(), 0x1000));
    Ok(())
}

fn wait_null_status_is_allowed() -> Outcome {
    let kid = fork(|| Ok(()))?;
    same!(ok!(waitpid(kid.pid, std::ptr::null_mut(), 0)), kid.pid);
    Ok(())
}

fn wait_bad_status_pointer_is_efault() -> Outcome {
    let kid = fork(|| Ok(()))?;
    fails!(EFAULT, waitpid(kid.pid, 8 as *mut i32, 0));
    // The child is reaped all the same, as the kernel stores the status last.
    fails!(ECHILD, waitpid(kid.pid, std::ptr::null_mut(), 0));
    Ok(())
}

fn wait_for_one_process_group() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let moved = fork(|| sys::fd_read(&rd, 1).map(drop))?;
    ok!(setpgid(moved.pid, moved.pid));
    let other = fork(|| Ok(()))?;
    sys::fd_write(&wr, b"x")?;
    same!(ok!(waitpid(-moved.pid, std::ptr::null_mut(), 0)), moved.pid);
    same!(ok!(waitpid(0, std::ptr::null_mut(), 0)), other.pid);
    fails!(ECHILD, waitpid(-moved.pid, std::ptr::null_mut(), 0));
    Ok(())
}

fn wait_for_any_reaps_each_child_once() -> Outcome {
    let mut want: Vec<i32> = Vec::new();
    for i in 0..20 {
        want.push(
            fork(|| {
                sys::sleep_ms(i % 3);
                Ok(())
            })?
            .pid,
        );
    }
    let mut got = Vec::new();
    for _ in 0..20 {
        got.push(ok!(wait(std::ptr::null_mut())));
    }
    got.sort_unstable();
    want.sort_unstable();
    same!(got, want);
    fails!(ECHILD, wait(std::ptr::null_mut()));
    Ok(())
}

fn wait_reports_stop_and_continue() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| sys::fd_read(&rd, 1).map(drop))?;
    let mut status = 0;
    ok!(kill(kid.pid, SIGSTOP));
    same!(ok!(waitpid(kid.pid, &raw mut status, WUNTRACED)), kid.pid);
    want!(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "status {status:#x} is not a stop by SIGSTOP");
    same!(ok!(waitpid(kid.pid, &raw mut status, WUNTRACED | WNOHANG)), 0);
    ok!(kill(kid.pid, SIGCONT));
    same!(ok!(waitpid(kid.pid, &raw mut status, WCONTINUED)), kid.pid);
    want!(WIFCONTINUED(status), "status {status:#x} is not a continue");
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn wait4_fills_rusage() -> Outcome {
    let kid = fork(|| {
        let mut x = 1u64;
        let start = sys::clock(CLOCK_PROCESS_CPUTIME_ID)?;
        while sys::clock(CLOCK_PROCESS_CPUTIME_ID)? - start < 30_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        Ok(())
    })?;
    let mut usage: rusage = unsafe { std::mem::zeroed() };
    let mut status = 0;
    same!(ok!(wait4(kid.pid, &raw mut status, 0, &raw mut usage)), kid.pid);
    same!(status, 0);
    let us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1_000_000
        + usage.ru_utime.tv_usec
        + usage.ru_stime.tv_usec;
    want!(us >= 10_000, "the child burnt 30 ms of CPU, rusage has {us} us");
    Ok(())
}

fn waitid_info(pid: i32, options: i32) -> Result<siginfo_t, String> {
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    ok!(waitid(P_PID, pid as u32, &raw mut info, options));
    Ok(info)
}

fn waitid_fills_siginfo_on_exit() -> Outcome {
    let kid = fork(|| unsafe { _exit(42) })?;
    let info = waitid_info(kid.pid, WEXITED)?;
    same!(info.si_signo, SIGCHLD);
    same!(info.si_code, CLD_EXITED);
    same!(unsafe { info.si_pid() }, kid.pid);
    same!(unsafe { info.si_uid() }, 0);
    same!(unsafe { info.si_status() }, 42);
    Ok(())
}

fn waitid_fills_siginfo_on_kill() -> Outcome {
    let kid = fork(|| {
        loop {
            unsafe { pause() };
        }
    })?;
    ok!(kill(kid.pid, SIGKILL));
    let info = waitid_info(kid.pid, WEXITED)?;
    same!(info.si_code, CLD_KILLED);
    same!(unsafe { info.si_status() }, SIGKILL);
    Ok(())
}

fn waitid_nowait_leaves_the_zombie() -> Outcome {
    let kid = fork(|| unsafe { _exit(3) })?;
    for _ in 0..3 {
        same!(unsafe { waitid_info(kid.pid, WEXITED | WNOWAIT)?.si_status() }, 3);
    }
    same!(WEXITSTATUS(kid.status()?), 3);
    Ok(())
}

fn waitid_nohang_without_event_zeroes_pid() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| sys::fd_read(&rd, 1).map(drop))?;
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    info.si_signo = 99;
    ok!(waitid(P_PID, kid.pid as u32, &raw mut info, WEXITED | WNOHANG));
    same!(info.si_signo, 0);
    same!(unsafe { info.si_pid() }, 0);
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn waitid_without_events_is_einval() -> Outcome {
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    fails!(EINVAL, waitid(P_ALL, 0, &raw mut info, WNOHANG));
    fails!(EINVAL, waitid(P_ALL, 0, &raw mut info, WEXITED | 0x100));
    fails!(ECHILD, waitid(P_ALL, 0, &raw mut info, WEXITED));
    Ok(())
}

fn zombie_keeps_its_pid_until_reaped() -> Outcome {
    let kid = fork(|| Ok(()))?;
    waitid_info(kid.pid, WEXITED | WNOWAIT)?;
    ok!(kill(kid.pid, 0));
    ok!(kill(kid.pid, SIGKILL));
    let pid = kid.pid;
    kid.ok()?;
    fails!(ESRCH, kill(pid, 0));
    Ok(())
}

fn sigchld_ignored_reaps_by_itself() -> Outcome {
    unsafe { signal(SIGCHLD, SIG_IGN) };
    let kid = fork(|| Ok(()))?;
    // wait blocks until all children have gone, and then has none to tell of.
    fails!(ECHILD, waitpid(kid.pid, std::ptr::null_mut(), 0));
    fails!(ESRCH, kill(kid.pid, 0));
    Ok(())
}

fn sigchld_nocldwait_reaps_by_itself() -> Outcome {
    sys::on_signal(SIGCHLD, sys::count_handler, SA_NOCLDWAIT | SA_RESTART)?;
    let kid = fork(|| Ok(()))?;
    fails!(ECHILD, waitpid(kid.pid, std::ptr::null_mut(), 0));
    sys::eventually("SIGCHLD is still sent", || sys::hits() == 1)
}

fn sigchld_nocldstop_is_silent_on_stop() -> Outcome {
    sys::on_signal(SIGCHLD, sys::count_handler, SA_NOCLDSTOP)?;
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| sys::fd_read(&rd, 1).map(drop))?;
    ok!(kill(kid.pid, SIGSTOP));
    let mut status = 0;
    same!(ok!(waitpid(kid.pid, &raw mut status, WUNTRACED)), kid.pid);
    same!(sys::hits(), 0);
    ok!(kill(kid.pid, SIGCONT));
    same!(ok!(waitpid(kid.pid, &raw mut status, WCONTINUED)), kid.pid);
    same!(sys::hits(), 0);
    sys::fd_write(&wr, b"x")?;
    kid.ok()?;
    sys::eventually("SIGCHLD at exit", || sys::hits() == 1)
}

fn orphan_goes_to_the_subreaper() -> Outcome {
    ok!(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    let shared = Map::shared(sys::PAGE)?;
    let me = ok!(getpid());
    let middle = fork(|| {
        let parent = ok!(getpid());
        let orphan = fork(|| {
            while ok!(getppid()) == parent {
                sys::sleep_ms(1);
            }
            shared.word(1).store(ok!(getppid()), SeqCst);
            unsafe { _exit(9) }
        })?;
        shared.word(0).store(orphan.pid, SeqCst);
        Ok(())
    })?;
    middle.ok()?;
    let orphan = shared.word(0).load(SeqCst);
    same!(WEXITSTATUS(sys::wait_status(orphan)?), 9);
    same!(shared.word(1).load(SeqCst), me);
    Ok(())
}

fn pdeathsig_follows_the_parents_death() -> Outcome {
    ok!(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    let shared = Map::shared(sys::PAGE)?;
    let (rd, wr) = sys::pipe()?;
    let middle = fork(|| {
        let orphan = fork(|| {
            ok!(prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0));
            sys::fd_write(&wr, b"x")?;
            loop {
                unsafe { pause() };
            }
        })?;
        shared.word(0).store(orphan.pid, SeqCst);
        sys::fd_read(&rd, 1)?;
        Ok(())
    })?;
    middle.ok()?;
    let status = sys::wait_status(shared.word(0).load(SeqCst))?;
    want!(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "status {status:#x}, expected SIGUSR1");
    Ok(())
}

/// Runs `f` on a new stack by clone(2) with the given flags.
pub(super) fn clone_on_stack(
    f: extern "C" fn(*mut c_void) -> i32,
    flags: i32,
    arg: *mut c_void,
) -> Result<(i32, Map), String> {
    let stack = Map::anon(64 * 1024)?;
    let mut ids = [0i32; 2];
    let pid = ok!(clone(
        f,
        stack.at(stack.len).cast(),
        flags,
        arg,
        &raw mut ids[0],
        std::ptr::null_mut::<c_void>(),
        &raw mut ids[1]
    ));
    Ok((pid, stack))
}

extern "C" fn store_after_a_while(arg: *mut c_void) -> i32 {
    let pause = sys::ts(30);
    unsafe {
        raw(SYS_nanosleep, [&raw const pause as usize, 0, 0, 0, 0, 0]);
        (*arg.cast::<std::sync::atomic::AtomicI32>()).store(7, SeqCst);
        raw(SYS_exit, [5, 0, 0, 0, 0, 0]);
    }
    0
}

fn vfork_holds_the_parent_until_exit() -> Outcome {
    let seen = std::sync::atomic::AtomicI32::new(0);
    let (pid, _stack) = clone_on_stack(
        store_after_a_while,
        CLONE_VM | CLONE_VFORK | SIGCHLD,
        (&raw const seen).cast_mut().cast(),
    )?;
    same!(seen.load(SeqCst), 7);
    same!(WEXITSTATUS(sys::wait_status(pid)?), 5);
    Ok(())
}

extern "C" fn exit_at_once(_: *mut c_void) -> i32 {
    unsafe { raw(SYS_exit, [6, 0, 0, 0, 0, 0]) };
    0
}

fn clone_without_exit_signal_needs_wall() -> Outcome {
    let (pid, _stack) = clone_on_stack(exit_at_once, 0, std::ptr::null_mut())?;
    fails!(ECHILD, waitpid(pid, std::ptr::null_mut(), 0));
    let mut status = 0;
    same!(ok!(waitpid(pid, &raw mut status, __WALL)), pid);
    same!(WEXITSTATUS(status), 6);
    Ok(())
}

fn clone_settid_flags_store_the_tid() -> Outcome {
    let shared = Map::shared(sys::PAGE)?;
    let flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD;
    let pid = ok!(syscall(SYS_clone, flags, 0, shared.at(0), shared.at(4), 0)) as i32;
    if pid == 0 {
        let mine = unsafe { getpid() };
        let good = shared.word(1).load(SeqCst) == mine;
        unsafe { _exit(i32::from(!good)) };
    }
    same!(shared.word(0).load(SeqCst), pid);
    same!(sys::wait_status(pid)?, 0);
    Ok(())
}

fn clone_files_shares_the_table() -> Outcome {
    let (rd, _wr) = sys::pipe()?;
    let fd = rd.as_raw_fd();
    let pid = ok!(syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0)) as i32;
    if pid == 0 {
        unsafe {
            close(fd);
            _exit(0)
        };
    }
    same!(sys::wait_status(pid)?, 0);
    fails!(EBADF, fcntl(fd, F_GETFD));
    std::mem::forget(rd);
    Ok(())
}

fn clone_without_files_copies_the_table() -> Outcome {
    let (rd, _wr) = sys::pipe()?;
    let fd = rd.as_raw_fd();
    fork(|| {
        ok!(close(fd));
        std::process::exit(0)
    })?
    .ok()?;
    ok!(fcntl(fd, F_GETFD));
    Ok(())
}

fn clone_fs_shares_cwd_and_umask() -> Outcome {
    std::fs::create_dir("sub").map_err(|e| e.to_string())?;
    let pid = ok!(syscall(SYS_clone, CLONE_FS | SIGCHLD, 0, 0, 0, 0)) as i32;
    if pid == 0 {
        unsafe {
            let bad = chdir(c"sub".as_ptr());
            umask(0o077);
            _exit(i32::from(bad != 0))
        };
    }
    same!(sys::wait_status(pid)?, 0);
    let cwd = std::env::current_dir().map_err(|e| e.to_string())?;
    want!(cwd.ends_with("sub"), "cwd is {}", cwd.display());
    same!(unsafe { umask(0) }, 0o077);
    Ok(())
}

fn clone_bad_flag_pairs_are_einval() -> Outcome {
    fails!(EINVAL, syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0));
    fails!(EINVAL, syscall(SYS_clone, CLONE_THREAD | CLONE_VM, 0, 0, 0, 0));
    fails!(EINVAL, syscall(SYS_clone, CLONE_FS | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0));
    Ok(())
}

fn clone3_forks_a_child() -> Outcome {
    let mut args: clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = SIGCHLD as u64;
    let pid = ok!(syscall(SYS_clone3, &raw mut args, size_of::<clone_args>())) as i32;
    if pid == 0 {
        unsafe { _exit(11) };
    }
    same!(WEXITSTATUS(sys::wait_status(pid)?), 11);
    Ok(())
}

fn clone3_bad_sizes_fail() -> Outcome {
    let mut args: clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = SIGCHLD as u64;
    fails!(EINVAL, syscall(SYS_clone3, &raw mut args, 8));
    fails!(E2BIG, syscall(SYS_clone3, &raw mut args, 8192));
    fails!(EFAULT, syscall(SYS_clone3, 8, size_of::<clone_args>()));
    args.exit_signal = 1 << 40;
    fails!(EINVAL, syscall(SYS_clone3, &raw mut args, size_of::<clone_args>()));
    Ok(())
}

fn exit_group_ends_all_threads() -> Outcome {
    let status = sys::status_of(|| {
        for _ in 0..4 {
            std::thread::spawn(|| {
                loop {
                    unsafe { pause() };
                }
            });
        }
        std::thread::spawn(|| unsafe { syscall(SYS_exit_group, 21) });
        loop {
            unsafe { pause() };
        }
    })?;
    same!(WEXITSTATUS(status), 21);
    Ok(())
}

fn setpgid_moves_a_child() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::fd_read(&rd, 1)?;
        same!(ok!(getpgrp()), ok!(getpid()));
        Ok(())
    })?;
    same!(ok!(getpgid(kid.pid)), ok!(getpgrp()));
    ok!(setpgid(kid.pid, 0));
    same!(ok!(getpgid(kid.pid)), kid.pid);
    fails!(EINVAL, setpgid(kid.pid, -1));
    fails!(EPERM, setpgid(kid.pid, 0x3ffff0));
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn setpgid_of_a_session_leader_is_eperm() -> Outcome {
    // Each case is the leader of a session of its own.
    fails!(EPERM, setpgid(0, 0));
    fails!(ESRCH, setpgid(1, 0));
    Ok(())
}

fn setpgid_into_a_foreign_session_is_eperm() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let (ready_rd, ready_wr) = sys::pipe()?;
    let kid = fork(|| {
        ok!(setsid());
        sys::fd_write(&ready_wr, b"x")?;
        sys::fd_read(&rd, 1).map(drop)
    })?;
    sys::fd_read(&ready_rd, 1)?;
    fails!(EPERM, setpgid(kid.pid, kid.pid));
    let pid = kid.pid;
    fork(|| {
        fails!(EPERM, setpgid(0, pid));
        Ok(())
    })?
    .ok()?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn setpgid_after_the_childs_exec_is_eacces() -> Outcome {
    let exe = sys::self_exe()?;
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        let _keep = &wr;
        let argv = [c"x".as_ptr(), c"helper".as_ptr(), c"sleep".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null()];
        ok!(execve(exe.as_ptr(), argv.as_ptr(), env.as_ptr()));
        Ok(())
    })?;
    drop(wr);
    // The child's copy of the write end closes at exec.
    same!(sys::fd_read(&rd, 1)?, b"");
    fails!(EACCES, setpgid(kid.pid, kid.pid));
    ok!(kill(kid.pid, SIGKILL));
    kid.status().map(drop)
}

fn setsid_of_a_group_leader_is_eperm() -> Outcome {
    fails!(EPERM, setsid());
    fork(|| {
        ok!(setpgid(0, 0));
        fails!(EPERM, setsid());
        Ok(())
    })?
    .ok()
}

fn setsid_makes_a_session_and_group() -> Outcome {
    let old = ok!(getsid(0));
    fork(|| {
        same!(ok!(getsid(0)), old);
        let me = ok!(getpid());
        same!(ok!(setsid()), me);
        same!(ok!(getsid(0)), me);
        same!(ok!(getpgrp()), me);
        Ok(())
    })?
    .ok()
}

fn getpgid_and_getsid_of_a_missing_process() -> Outcome {
    let kid = fork(|| Ok(()))?;
    let pid = kid.pid;
    kid.ok()?;
    fails!(ESRCH, getpgid(pid));
    fails!(ESRCH, getsid(pid));
    fails!(ESRCH, getpgid(-5));
    Ok(())
}

fn pidfd_becomes_readable_at_exit() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::fd_read(&rd, 1)?;
        unsafe { _exit(4) }
    })?;
    let fd = sys::own(ok!(syscall(SYS_pidfd_open, kid.pid, 0)) as i32);
    let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 0)), 0);
    sys::fd_write(&wr, b"x")?;
    same!(ok!(poll(&raw mut p, 1, 10_000)), 1);
    same!(p.revents & POLLIN, POLLIN);
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    ok!(waitid(P_PIDFD, fd.as_raw_fd() as u32, &raw mut info, WEXITED));
    same!(unsafe { info.si_status() }, 4);
    Ok(())
}

fn pidfd_sends_signals() -> Outcome {
    let kid = fork(|| {
        loop {
            unsafe { pause() };
        }
    })?;
    let fd = sys::own(ok!(syscall(SYS_pidfd_open, kid.pid, 0)) as i32);
    ok!(syscall(SYS_pidfd_send_signal, fd.as_raw_fd(), SIGKILL, 0, 0));
    same!(WTERMSIG(kid.status()?), SIGKILL);
    fails!(ESRCH, syscall(SYS_pidfd_send_signal, fd.as_raw_fd(), 0, 0, 0));
    fails!(ESRCH, syscall(SYS_pidfd_open, kid.pid, 0));
    fails!(EINVAL, syscall(SYS_pidfd_open, getpid(), 0x40000));
    Ok(())
}

fn getppid_of_a_child_is_the_parent() -> Outcome {
    let me = ok!(getpid());
    fork(|| {
        same!(ok!(getppid()), me);
        Ok(())
    })?
    .ok()
}

fn deep_tree_of_forks_returns() -> Outcome {
    fn down(n: u32) -> Outcome {
        if n == 0 { Ok(()) } else { fork(|| down(n - 1))?.ok() }
    }
    down(30)
}
