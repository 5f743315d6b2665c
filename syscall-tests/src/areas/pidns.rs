//! PID namespaces (pid_namespaces(7)): numbers, init's rules, procfs.

use crate::harness::Outcome;
use crate::sys::{self, c};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    first_child_is_number_one,
    the_caller_stays_where_it_is,
    parent_outside_is_zero,
    numbers_count_up_inside,
    clone_gives_the_outer_number,
    clone_writes_both_numbers,
    wait_takes_and_gives_own_numbers,
    waitid_gives_own_numbers,
    kill_uses_own_numbers,
    outside_cannot_be_named,
    kill_all_stays_inside,
    init_ignores_unhandled_signals_from_inside,
    init_takes_handled_signals_from_inside,
    init_ignores_sigkill_from_inside,
    init_dies_of_sigkill_from_outside,
    init_ignores_sigterm_from_outside,
    death_of_init_kills_all,
    death_of_init_waits_for_all,
    fork_after_death_of_init_is_enomem,
    orphans_go_to_init,
    subreapers_work_inside,
    signal_senders_outside_are_zero,
    child_signal_names_the_child,
    sessions_and_groups_are_translated,
    second_unshare_makes_it_deeper,
    setns_then_fork_enters,
    setns_upwards_is_einval,
    threads_after_unshare_are_einval,
    mounted_proc_shows_the_namespace,
    outer_proc_shows_outer_numbers,
    status_lists_all_numbers,
    proc_self_of_a_stranger_is_enoent,
    pid_for_children_follows_unshare,
    message_credentials_are_translated,
    pidfd_reaches_across,
    clone_parent_of_init_is_einval,
    lock_owner_is_translated,
    clone3_makes_a_namespace,
    reboot_ends_the_namespace,
];

fn own_ns() -> Outcome {
    if unsafe { unshare(CLONE_NEWPID) } != 0 {
        skip!("no PID namespaces here");
    }
    Ok(())
}

/// Runs `f` as init of a new PID namespace.
fn inside(f: impl FnOnce() -> Outcome) -> Outcome {
    own_ns()?;
    sys::fork(f)?.ok()
}

fn first_child_is_number_one() -> Outcome {
    inside(|| {
        same!(unsafe { getpid() }, 1);
        same!(sys::gettid(), 1);
        Ok(())
    })
}

fn the_caller_stays_where_it_is() -> Outcome {
    let before = unsafe { getpid() };
    own_ns()?;
    same!(unsafe { syscall(SYS_getpid) as i32 }, before);
    Ok(())
}

fn parent_outside_is_zero() -> Outcome {
    inside(|| {
        same!(unsafe { getppid() }, 0);
        Ok(())
    })
}

fn numbers_count_up_inside() -> Outcome {
    inside(|| {
        for want in 2..5 {
            let kid = sys::fork(|| {
                same!(unsafe { getpid() }, want);
                same!(unsafe { getppid() }, 1);
                Ok(())
            })?;
            same!(kid.pid, want);
            kid.ok()?;
        }
        Ok(())
    })
}

fn clone_gives_the_outer_number() -> Outcome {
    own_ns()?;
    let kid = sys::fork(|| Ok(()))?;
    want!(kid.pid > 1, "the parent sees {}", kid.pid);
    kid.ok()
}

fn clone_writes_both_numbers() -> Outcome {
    own_ns()?;
    let map = sys::Map::shared(4096)?;
    let flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD;
    let mut parent_tid = 0i32;
    let mut child_tid = 0i32;
    let pid = ok!(syscall(SYS_clone, i64::from(flags), 0, &raw mut parent_tid, &raw mut child_tid, 0));
    if pid == 0 {
        let seen = unsafe { (&raw const child_tid).read_volatile() };
        map.set(0, u8::from(seen == 1));
        unsafe { _exit(0) };
    }
    same!(sys::wait_status(pid as i32)?, 0);
    same!(i64::from(unsafe { (&raw const parent_tid).read_volatile() }), pid);
    same!(map.get(0), 1);
    Ok(())
}

fn wait_takes_and_gives_own_numbers() -> Outcome {
    inside(|| {
        let kid = sys::fork(|| Ok(()))?;
        let mut status = 0;
        same!(ok!(waitpid(-1, &raw mut status, 0)), kid.pid);
        fails!(ECHILD, waitpid(99999, &raw mut status, 0));
        Ok(())
    })
}

fn waitid_gives_own_numbers() -> Outcome {
    inside(|| {
        let kid = sys::fork(|| Ok(()))?;
        let mut info: siginfo_t = unsafe { std::mem::zeroed() };
        ok!(waitid(P_PID, kid.pid as u32, &raw mut info, WEXITED));
        same!(unsafe { info.si_pid() }, kid.pid);
        Ok(())
    })
}

fn kill_uses_own_numbers() -> Outcome {
    inside(|| {
        let kid = sys::fork(|| {
            loop {
                unsafe { pause() };
            }
        })?;
        ok!(kill(kid.pid, SIGTERM));
        same!(WTERMSIG(kid.status()?), SIGTERM);
        Ok(())
    })
}

fn outside_cannot_be_named() -> Outcome {
    let outer = unsafe { getpid() };
    inside(|| {
        let free = if outer > 100 { outer } else { 31999 };
        fails!(ESRCH, kill(free, 0));
        fails!(ESRCH, getpgid(free));
        fails!(ESRCH, getsid(free));
        fails!(ESRCH, setpgid(free, 0));
        fails!(ESRCH, syscall(SYS_pidfd_open, free, 0));
        fails!(ESRCH, getpriority(PRIO_PROCESS, free as u32));
        Ok(())
    })
}

fn kill_all_stays_inside() -> Outcome {
    inside(|| {
        let kid = sys::fork(|| {
            loop {
                unsafe { pause() };
            }
        })?;
        ok!(kill(-1, SIGTERM));
        same!(WTERMSIG(kid.status()?), SIGTERM);
        Ok(())
    })
}

fn init_ignores_unhandled_signals_from_inside() -> Outcome {
    inside(|| {
        for signal in [SIGTERM, SIGHUP, SIGUSR1, SIGINT] {
            ok!(kill(1, signal));
        }
        let kid = sys::fork(|| {
            ok!(kill(1, SIGTERM));
            Ok(())
        })?;
        kid.ok()
    })
}

fn init_takes_handled_signals_from_inside() -> Outcome {
    inside(|| {
        sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
        ok!(kill(1, SIGUSR1));
        same!(sys::hits(), 1);
        Ok(())
    })
}

fn init_ignores_sigkill_from_inside() -> Outcome {
    inside(|| {
        ok!(kill(1, SIGKILL));
        ok!(kill(1, SIGSTOP));
        Ok(())
    })
}

fn init_dies_of_sigkill_from_outside() -> Outcome {
    own_ns()?;
    let kid = sys::fork(|| {
        loop {
            unsafe { pause() };
        }
    })?;
    ok!(kill(kid.pid, SIGKILL));
    same!(WTERMSIG(kid.status()?), SIGKILL);
    Ok(())
}

fn init_ignores_sigterm_from_outside() -> Outcome {
    own_ns()?;
    let (hold, keep) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    ok!(kill(kid.pid, SIGTERM));
    drop(keep);
    kid.ok()
}

fn death_of_init_kills_all() -> Outcome {
    own_ns()?;
    let (watch, held) = sys::pipe()?;
    let kid = sys::fork(|| {
        for _ in 0..3 {
            sys::fork(|| {
                loop {
                    unsafe { pause() };
                }
            })?;
        }
        Ok(())
    })?;
    drop(held);
    kid.ok()?;
    // Everybody who held the other end is gone.
    same!(sys::fd_read(&watch, 1)?, b"");
    Ok(())
}

fn death_of_init_waits_for_all() -> Outcome {
    own_ns()?;
    let map = sys::Map::shared(4096)?;
    let init = sys::fork(|| {
        loop {
            unsafe { pause() };
        }
    })?;
    // A process of the namespace whose parent is outside, and who waits for it late.
    let member = sys::fork(|| {
        map.word(0).store(unsafe { getpid() }, std::sync::atomic::Ordering::SeqCst);
        loop {
            unsafe { pause() };
        }
    })?;
    sys::eventually("the member runs", || map.word(0).load(std::sync::atomic::Ordering::SeqCst) != 0)?;
    same!(map.word(0).load(std::sync::atomic::Ordering::SeqCst), 2);
    ok!(kill(init.pid, SIGKILL));
    sys::sleep_ms(30);
    let mut status = 0;
    same!(ok!(waitpid(init.pid, &raw mut status, WNOHANG)), 0);
    same!(WTERMSIG(member.status()?), SIGKILL);
    same!(WTERMSIG(init.status()?), SIGKILL);
    Ok(())
}

fn fork_after_death_of_init_is_enomem() -> Outcome {
    own_ns()?;
    sys::fork(|| Ok(()))?.ok()?;
    fails!(ENOMEM, fork());
    Ok(())
}

fn orphans_go_to_init() -> Outcome {
    inside(|| {
        let map = sys::Map::shared(4096)?;
        sys::fork(|| {
            sys::fork(|| {
                sys::eventually("init is the parent", || unsafe { getppid() } == 1)?;
                map.set(0, 1);
                Ok(())
            })?;
            Ok(())
        })?
        .ok()?;
        let mut status = 0;
        ok!(waitpid(-1, &raw mut status, 0));
        same!(status, 0);
        same!(map.get(0), 1);
        Ok(())
    })
}

fn subreapers_work_inside() -> Outcome {
    inside(|| {
        sys::fork(|| {
            ok!(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
            let own = unsafe { getpid() };
            sys::fork(|| {
                sys::fork(|| sys::eventually("the subreaper is the parent", || unsafe { getppid() } == own))?;
                Ok(())
            })?
            .ok()?;
            let mut status = 0;
            ok!(waitpid(-1, &raw mut status, 0));
            same!(status, 0);
            Ok(())
        })?
        .ok()
    })
}

fn signal_senders_outside_are_zero() -> Outcome {
    own_ns()?;
    let (ready, tell) = sys::pipe()?;
    let kid = sys::fork(|| {
        sys::block(&[SIGUSR1])?;
        sys::fd_write(&tell, b"x")?;
        let set = sys::sigset(&[SIGUSR1]);
        let mut info: siginfo_t = unsafe { std::mem::zeroed() };
        ok!(sigwaitinfo(&raw const set, &raw mut info));
        same!(unsafe { info.si_pid() }, 0);
        Ok(())
    })?;
    sys::fd_read(&ready, 1)?;
    ok!(kill(kid.pid, SIGUSR1));
    kid.ok()
}

fn child_signal_names_the_child() -> Outcome {
    own_ns()?;
    sys::block(&[SIGCHLD])?;
    let kid = sys::fork(|| Ok(()))?;
    let set = sys::sigset(&[SIGCHLD]);
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    ok!(sigwaitinfo(&raw const set, &raw mut info));
    same!(unsafe { info.si_pid() }, kid.pid);
    kid.ok()
}

fn sessions_and_groups_are_translated() -> Outcome {
    inside(|| {
        // Those of the outside have no number here.
        same!(unsafe { (getpgrp(), getsid(0)) }, (0, 0));
        same!(ok!(setsid()), 1);
        same!(unsafe { (getpgrp(), getsid(0)) }, (1, 1));
        sys::fork(|| {
            let own = unsafe { getpid() };
            ok!(setpgid(0, 0));
            same!(unsafe { (getpgrp(), getsid(0)) }, (own, 1));
            Ok(())
        })?
        .ok()
    })
}

fn second_unshare_makes_it_deeper() -> Outcome {
    inside(|| {
        sys::fork(|| Ok(()))?.ok()?;
        ok!(unshare(CLONE_NEWPID));
        let kid = sys::fork(|| {
            same!(unsafe { getpid() }, 1);
            Ok(())
        })?;
        same!(kid.pid, 3);
        kid.ok()
    })
}

fn setns_then_fork_enters() -> Outcome {
    let before = sys::open("/proc/self/ns/pid", O_RDONLY)?;
    own_ns()?;
    let (hold, keep) = sys::pipe()?;
    let init = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    let fd = sys::open(&format!("/proc/{}/ns/pid", init.pid), O_RDONLY)?;
    ok!(setns(before.as_raw_fd(), CLONE_NEWPID));
    let outer = sys::fork(|| {
        want!(unsafe { getpid() } > 1, "inside");
        Ok(())
    })?;
    outer.ok()?;
    ok!(setns(fd.as_raw_fd(), CLONE_NEWPID));
    sys::fork(|| {
        same!(unsafe { getpid() }, 2);
        Ok(())
    })?
    .ok()?;
    drop(keep);
    init.ok()
}

fn setns_upwards_is_einval() -> Outcome {
    let outer = sys::open("/proc/self/ns/pid", O_RDONLY)?;
    inside(|| {
        fails!(EINVAL, setns(outer.as_raw_fd(), CLONE_NEWPID));
        Ok(())
    })
}

fn threads_after_unshare_are_einval() -> Outcome {
    own_ns()?;
    let flags = CLONE_THREAD | CLONE_SIGHAND | CLONE_VM;
    fails!(EINVAL, syscall(SYS_clone, i64::from(flags), 0, 0, 0, 0));
    Ok(())
}

/// Mounts a fresh procfs at `p` in a mount namespace of its own.
fn own_proc() -> Outcome {
    ok!(unshare(CLONE_NEWNS));
    let null = std::ptr::null();
    ok!(mount(null, c"/".as_ptr(), null, MS_REC | MS_PRIVATE, null.cast()));
    ok!(mkdir(c("p").as_ptr(), 0o755));
    ok!(mount(c"proc".as_ptr(), c("p").as_ptr(), c"proc".as_ptr(), 0, null.cast()));
    Ok(())
}

fn mounted_proc_shows_the_namespace() -> Outcome {
    inside(|| {
        own_proc()?;
        let mut numbers: Vec<String> = std::fs::read_dir("p")
            .map_err(|e| e.to_string())?
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
            .collect();
        numbers.sort();
        same!(numbers, ["1"]);
        let target = std::fs::read_link("p/self").map_err(|e| e.to_string())?;
        same!(target.display().to_string(), "1");
        let stat = sys::slurp("p/1/stat")?;
        want!(stat.starts_with("1 ("), "{stat}");
        let status = sys::slurp("p/self/status")?;
        want!(status.contains("\nTgid:\t1\n") && status.contains("\nPPid:\t0\n"), "{status}");
        want!(status.contains("\nNSpid:\t1\n"), "{status}");
        Ok(())
    })
}

fn outer_proc_shows_outer_numbers() -> Outcome {
    own_ns()?;
    let (hold, keep) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    let stat = sys::slurp(&format!("/proc/{}/stat", kid.pid))?;
    want!(stat.starts_with(&format!("{} (", kid.pid)), "{stat}");
    drop(keep);
    kid.ok()
}

fn status_lists_all_numbers() -> Outcome {
    own_ns()?;
    let (hold, keep) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    let status = sys::slurp(&format!("/proc/{}/status", kid.pid))?;
    want!(status.contains(&format!("\nNSpid:\t{}\t1\n", kid.pid)), "{status}");
    drop(keep);
    kid.ok()
}

fn proc_self_of_a_stranger_is_enoent() -> Outcome {
    let (ready, tell) = sys::pipe()?;
    let (hold, keep) = sys::pipe()?;
    ok!(chmod(c(".").as_ptr(), 0o777));
    own_ns()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        own_proc()?;
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    sys::fd_read(&ready, 1)?;
    // Seen through the root of the child, from outside of its namespace.
    let cwd = std::env::current_dir().map_err(|e| e.to_string())?;
    let path = format!("/proc/{}/root{}/p/self", kid.pid, cwd.display());
    let mut buf = [0 as c_char; 64];
    fails!(ENOENT, readlink(c(&path).as_ptr(), buf.as_mut_ptr(), 64));
    drop(keep);
    kid.ok()
}

fn pid_for_children_follows_unshare() -> Outcome {
    let link =
        |path: &str| std::fs::read_link(path).map(|p| p.display().to_string()).map_err(|e| e.to_string());
    let own = link("/proc/self/ns/pid")?;
    own_ns()?;
    same!(link("/proc/self/ns/pid")?, own);
    let (hold, keep) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    let child = link(&format!("/proc/{}/ns/pid", kid.pid))?;
    want!(child != own, "the same namespace");
    same!(link("/proc/self/ns/pid_for_children")?, child);
    drop(keep);
    kid.ok()
}

fn message_credentials_are_translated() -> Outcome {
    let (a, b) = sys::socketpair(SOCK_STREAM)?;
    let on = 1i32;
    ok!(setsockopt(b.as_raw_fd(), SOL_SOCKET, SO_PASSCRED, (&raw const on).cast(), 4));
    own_ns()?;
    let kid = sys::fork(|| {
        same!(unsafe { getpid() }, 1);
        sys::fd_write(&a, b"x")?;
        Ok(())
    })?;
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
    same!(creds.pid, kid.pid);
    kid.ok()
}

fn pidfd_reaches_across() -> Outcome {
    own_ns()?;
    let kid = sys::fork(|| {
        loop {
            unsafe { pause() };
        }
    })?;
    let fd = sys::own(ok!(syscall(SYS_pidfd_open, kid.pid, 0) as i32));
    ok!(syscall(SYS_pidfd_send_signal, fd.as_raw_fd(), SIGKILL, 0, 0));
    same!(WTERMSIG(kid.status()?), SIGKILL);
    Ok(())
}

fn clone_parent_of_init_is_einval() -> Outcome {
    inside(|| {
        fails!(EINVAL, syscall(SYS_clone, i64::from(CLONE_PARENT | SIGCHLD), 0, 0, 0, 0));
        Ok(())
    })
}

fn lock_owner_is_translated() -> Outcome {
    own_ns()?;
    let fd = sys::create("locked")?;
    let (ready, tell) = sys::pipe()?;
    let (hold, keep) = sys::pipe()?;
    let kid = sys::fork(|| {
        unsafe { close(keep.as_raw_fd()) };
        let mut lock: flock = unsafe { std::mem::zeroed() };
        lock.l_type = F_WRLCK as i16;
        ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const lock));
        sys::fd_write(&tell, b"x")?;
        sys::fd_read(&hold, 1)?;
        Ok(())
    })?;
    sys::fd_read(&ready, 1)?;
    let mut lock: flock = unsafe { std::mem::zeroed() };
    lock.l_type = F_WRLCK as i16;
    ok!(fcntl(fd.as_raw_fd(), F_GETLK, &raw mut lock));
    same!(lock.l_pid, kid.pid);
    drop(keep);
    kid.ok()
}

fn clone3_makes_a_namespace() -> Outcome {
    #[repr(C)]
    struct Args([u64; 8]);
    let mut args = Args([0; 8]);
    args.0[0] = CLONE_NEWPID as u64;
    args.0[4] = SIGCHLD as u64;
    let pid = unsafe { syscall(SYS_clone3, &raw mut args, 64) };
    if pid == 0 {
        let fine = unsafe { syscall(SYS_getpid) } == 1;
        unsafe { _exit(i32::from(!fine)) };
    }
    if pid < 0 {
        skip!("clone3 with a PID namespace: {}", crate::harness::errno_name(crate::harness::errno()));
    }
    same!(sys::wait_status(pid as i32)?, 0);
    Ok(())
}

fn reboot_ends_the_namespace() -> Outcome {
    let magic = (0xfee1_dead_u32, 672_274_793);
    for (command, signal) in [(0x0123_4567_u32, SIGHUP), (0x4321_fedc, SIGINT)] {
        sys::fork(|| {
            own_ns()?;
            let status = sys::status_of(|| unsafe {
                // Never outside of a namespace of one's own.
                if getpid() != 1 {
                    _exit(9);
                }
                if libc::fork() == 0 {
                    pause();
                }
                if syscall(SYS_reboot, magic.0, magic.1, 0x0bad_u32, 0) == 0
                    || crate::harness::errno() != EINVAL
                {
                    _exit(8);
                }
                syscall(SYS_reboot, magic.0, magic.1, command, 0);
                pause();
            })?;
            want!(WIFSIGNALED(status) && WTERMSIG(status) == signal, "wait status {status:#x}");
            Ok(())
        })?
        .ok()?;
    }
    Ok(())
}
