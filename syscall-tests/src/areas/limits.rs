//! What each resource limit does when it is reached: getrlimit(2).

use crate::harness::Outcome;
use crate::sys::{self, fork};
use libc::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

cases![
    cpu_limit_sends_sigxcpu,
    cpu_limit_comes_again_every_second,
    hard_cpu_limit_kills,
    cpu_limit_is_watched_in_a_child,
    nofile_bounds_every_way_to_a_descriptor,
    nofile_is_a_bound_on_numbers,
    nofile_bounds_poll_and_select,
    fsize_sends_sigxfsz_and_is_efbig,
    fsize_cuts_a_write,
    fsize_bounds_truncation,
    sigpending_bounds_queued_signals,
    sigpending_lets_kill_through,
    nice_limit_is_the_floor,
    rtprio_limit_allows_that_much,
    nproc_after_setuid_fails_exec,
    core_limit_of_zero_leaves_no_core,
    hard_limit_follows_the_soft_one_down,
    infinity_is_kept,
];

fn set(resource: u32, cur: u64, max: u64) -> i32 {
    let l = rlimit { rlim_cur: cur, rlim_max: max };
    unsafe { setrlimit(resource, &raw const l) }
}

fn get(resource: u32) -> Result<(u64, u64), String> {
    let mut l = rlimit { rlim_cur: 0, rlim_max: 0 };
    ok!(getrlimit(resource, &raw mut l));
    Ok((l.rlim_cur, l.rlim_max))
}

static XCPU: AtomicI32 = AtomicI32::new(0);

extern "C" fn count_xcpu(_: i32) {
    XCPU.fetch_add(1, SeqCst);
}

fn burn_until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::hint::spin_loop();
    }
}

fn cpu_limit_sends_sigxcpu() -> Outcome {
    unsafe { signal(SIGXCPU, count_xcpu as *const () as usize) };
    ok!(set(RLIMIT_CPU, 1, 20));
    let start = std::time::Instant::now();
    burn_until(|| XCPU.load(SeqCst) > 0 || start.elapsed().as_secs() > 15);
    same!(XCPU.load(SeqCst), 1);
    Ok(())
}

fn cpu_limit_comes_again_every_second() -> Outcome {
    unsafe { signal(SIGXCPU, count_xcpu as *const () as usize) };
    ok!(set(RLIMIT_CPU, 1, 20));
    let start = std::time::Instant::now();
    burn_until(|| XCPU.load(SeqCst) > 1 || start.elapsed().as_secs() > 20);
    same!(XCPU.load(SeqCst), 2);
    same!(get(RLIMIT_CPU)?, (3, 20));
    Ok(())
}

fn hard_cpu_limit_kills() -> Outcome {
    sys::dies_of(SIGKILL, || {
        unsafe { signal(SIGXCPU, SIG_IGN) };
        set(RLIMIT_CPU, 1, 1);
        let start = std::time::Instant::now();
        burn_until(|| start.elapsed().as_secs() > 15);
    })
}

fn cpu_limit_is_watched_in_a_child() -> Outcome {
    ok!(set(RLIMIT_CPU, 1, 10));
    sys::dies_of(SIGXCPU, || {
        let start = std::time::Instant::now();
        burn_until(|| start.elapsed().as_secs() > 15);
    })
}

fn nofile_bounds_every_way_to_a_descriptor() -> Outcome {
    ok!(set(RLIMIT_NOFILE, 3, 3));
    fails!(EMFILE, open(c"/dev/null".as_ptr(), O_RDONLY));
    fails!(EMFILE, dup(0));
    let mut two = [0; 2];
    fails!(EMFILE, pipe(two.as_mut_ptr()));
    fails!(EMFILE, socketpair(AF_UNIX, SOCK_STREAM, 0, two.as_mut_ptr()));
    fails!(EMFILE, eventfd(0, 0));
    fails!(EMFILE, epoll_create1(0));
    fails!(EMFILE, timerfd_create(CLOCK_MONOTONIC, 0));
    fails!(EMFILE, memfd_create(c"x".as_ptr(), 0));
    fails!(EMFILE, inotify_init());
    fails!(EINVAL, fcntl(0, F_DUPFD, 3));
    fails!(EBADF, dup2(0, 3));
    fails!(EBADF, dup3(0, 3, O_CLOEXEC));
    fails!(EMFILE, syscall(SYS_pidfd_open, getpid(), 0));
    Ok(())
}

fn nofile_is_a_bound_on_numbers() -> Outcome {
    ok!(dup2(0, 50));
    ok!(set(RLIMIT_NOFILE, 10, 20));
    ok!(fcntl(50, F_GETFD));
    fails!(EBADF, dup2(0, 15));
    ok!(dup2(0, 9));
    Ok(())
}

fn nofile_bounds_poll_and_select() -> Outcome {
    let mut fds = vec![pollfd { fd: -1, events: 0, revents: 0 }; 30];
    ok!(set(RLIMIT_NOFILE, 20, 20));
    ok!(poll(fds.as_mut_ptr(), 20, 0));
    fails!(EINVAL, poll(fds.as_mut_ptr(), 21, 0));
    Ok(())
}

fn fsize_sends_sigxfsz_and_is_efbig() -> Outcome {
    sys::dies_of(SIGXFSZ, || {
        let Ok(f) = sys::create("f") else { return };
        set(RLIMIT_FSIZE, 4, 4);
        unsafe {
            write(f.as_raw_fd(), c"abcd".as_ptr().cast(), 4);
            write(f.as_raw_fd(), c"abcd".as_ptr().cast(), 4);
        }
    })?;
    unsafe { signal(SIGXFSZ, SIG_IGN) };
    let f = sys::create("g")?;
    ok!(set(RLIMIT_FSIZE, 4, 4));
    ok!(write(f.as_raw_fd(), c"abcd".as_ptr().cast(), 4));
    fails!(EFBIG, write(f.as_raw_fd(), c"abcd".as_ptr().cast(), 1));
    fails!(EFBIG, pwrite(f.as_raw_fd(), c"abcd".as_ptr().cast(), 1, 100));
    ok!(pwrite(f.as_raw_fd(), c"abcd".as_ptr().cast(), 1, 3));
    Ok(())
}

fn fsize_cuts_a_write() -> Outcome {
    unsafe { signal(SIGXFSZ, SIG_IGN) };
    let f = sys::create("f")?;
    ok!(set(RLIMIT_FSIZE, 6, 6));
    same!(ok!(write(f.as_raw_fd(), c"0123456789".as_ptr().cast(), 10)), 6);
    same!(sys::fstat(&f)?.st_size, 6);
    Ok(())
}

fn fsize_bounds_truncation() -> Outcome {
    unsafe { signal(SIGXFSZ, SIG_IGN) };
    let f = sys::create("f")?;
    ok!(set(RLIMIT_FSIZE, 100, 100));
    ok!(ftruncate(f.as_raw_fd(), 100));
    fails!(EFBIG, ftruncate(f.as_raw_fd(), 101));
    fails!(EFBIG, fallocate(f.as_raw_fd(), 0, 0, 200));
    Ok(())
}

fn queue(signo: i32) -> i32 {
    let value = sigval { sival_ptr: std::ptr::null_mut() };
    unsafe { sigqueue(getpid(), signo, value) }
}

fn sigpending_bounds_queued_signals() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        sys::block(&[SIGRTMIN(), SIGRTMIN() + 1])?;
        ok!(set(RLIMIT_SIGPENDING, 3, 3));
        for _ in 0..3 {
            ok!(queue(SIGRTMIN()));
        }
        fails!(EAGAIN, queue(SIGRTMIN()));
        // Taking one makes room for one.
        let set = sys::sigset(&[SIGRTMIN()]);
        ok!(sigwaitinfo(&raw const set, std::ptr::null_mut()));
        ok!(queue(SIGRTMIN()));
        fails!(EAGAIN, queue(SIGRTMIN()));
        Ok(())
    })?
    .ok()
}

fn sigpending_lets_kill_through() -> Outcome {
    sys::fork(|| {
        sys::drop_root()?;
        sys::block(&[SIGRTMIN(), SIGUSR1])?;
        ok!(set(RLIMIT_SIGPENDING, 0, 0));
        ok!(kill(getpid(), SIGUSR1));
        want!(sys::pending(SIGUSR1)?, "SIGUSR1 is not pending");
        fails!(EAGAIN, queue(SIGRTMIN()));
        ok!(queue(SIGUSR1));
        Ok(())
    })?
    .ok()
}

fn nice_limit_is_the_floor() -> Outcome {
    if set(RLIMIT_NICE, 15, 15) != 0 {
        skip!("no right to raise the limit");
    }
    sys::fork(|| {
        sys::drop_root()?;
        ok!(setpriority(PRIO_PROCESS, 0, 10));
        ok!(setpriority(PRIO_PROCESS, 0, 5));
        fails!(EACCES, setpriority(PRIO_PROCESS, 0, 4));
        Ok(())
    })?
    .ok()
}

fn rtprio_limit_allows_that_much() -> Outcome {
    if set(RLIMIT_RTPRIO, 5, 5) != 0 {
        skip!("no right to raise the limit");
    }
    sys::fork(|| {
        sys::drop_root()?;
        let become_rt = |policy, p| {
            let param = sched_param { sched_priority: p };
            unsafe { sched_setscheduler(0, policy, &raw const param) }
        };
        fails!(EPERM, become_rt(SCHED_RR, 6));
        ok!(become_rt(SCHED_RR, 5));
        ok!(become_rt(SCHED_OTHER, 0));
        Ok(())
    })?
    .ok()
}

fn nproc_after_setuid_fails_exec() -> Outcome {
    // A user that nobody else has, with a process of its own.
    let (rd, wr) = sys::pipe()?;
    let other = fork(|| {
        ok!(setresuid(4322, 4322, 4322));
        sys::fd_write(&wr, b"x")?;
        ok!(pause());
        Ok(())
    })?;
    sys::fd_read(&rd, 1)?;
    let exe = sys::self_exe()?;
    let result = fork(|| {
        // The caller itself is not counted when it changes its user.
        ok!(set(RLIMIT_NPROC, 0, 0));
        ok!(setresuid(4322, 4322, 4322));
        let argv = [exe.as_ptr(), c"none".as_ptr(), std::ptr::null()];
        fails!(EAGAIN, execv(exe.as_ptr(), argv.as_ptr()));
        Ok(())
    })?
    .ok();
    unsafe { kill(other.pid, SIGKILL) };
    other.status()?;
    result
}

fn core_limit_of_zero_leaves_no_core() -> Outcome {
    ok!(set(RLIMIT_CORE, 0, 0));
    let status = sys::status_of(|| unsafe { abort() })?;
    want!(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status {status:#x}");
    want!(!WCOREDUMP(status), "a core was dumped");
    Ok(())
}

fn hard_limit_follows_the_soft_one_down() -> Outcome {
    ok!(set(RLIMIT_STACK, 1 << 20, 4 << 20));
    same!(get(RLIMIT_STACK)?, (1 << 20, 4 << 20));
    fails!(EINVAL, set(RLIMIT_STACK, 8 << 20, 4 << 20));
    Ok(())
}

fn infinity_is_kept() -> Outcome {
    for resource in [RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_AS, RLIMIT_RTTIME, RLIMIT_LOCKS] {
        ok!(set(resource, RLIM_INFINITY, RLIM_INFINITY));
        same!(get(resource)?, (RLIM_INFINITY, RLIM_INFINITY));
    }
    Ok(())
}
