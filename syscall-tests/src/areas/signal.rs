//! sigaction(2), sigprocmask(2), kill(2) and the calls that wait for or are interrupted by signals.

use crate::harness::Outcome;
use crate::sys::{self, HITS, Map, count_handler, fork, hits, on_signal};
use libc::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

cases![
    kill_fills_siginfo,
    tgkill_fills_siginfo,
    sigqueue_carries_a_value,
    sigqueue_cannot_forge_a_kernel_code,
    realtime_signals_queue_in_order,
    standard_signals_coalesce,
    lower_realtime_signal_comes_first,
    blocked_signal_waits_and_is_delivered_on_unblock,
    sigprocmask_reports_the_old_mask,
    sigprocmask_cannot_block_kill_and_stop,
    sigprocmask_errors,
    sigaction_errors,
    sigaction_returns_the_old_action,
    sa_mask_and_own_signal_are_blocked_in_the_handler,
    sa_nodefer_allows_nesting,
    sa_resethand_restores_the_default,
    read_without_sa_restart_is_eintr,
    read_with_sa_restart_goes_on,
    wait_with_sa_restart_goes_on,
    nanosleep_is_eintr_with_the_rest,
    nanosleep_goes_on_over_stop_and_continue,
    poll_is_eintr_even_with_sa_restart,
    pause_is_eintr,
    sigsuspend_swaps_the_mask,
    sigtimedwait_takes_a_pending_signal,
    sigtimedwait_times_out_with_eagain,
    sigwaitinfo_waits,
    ignored_signal_does_not_interrupt,
    kill_of_missing_process_is_esrch,
    kill_of_bad_signal_is_einval,
    kill_zero_checks_only,
    kill_group_reaches_all,
    kill_needs_permission,
    tgkill_checks_the_group,
    default_actions_ignore_chld_urg_winch,
    sigpipe_kills_the_writer,
    epipe_when_sigpipe_is_ignored,
    continue_discards_pending_stop,
    stop_discards_pending_continue,
    continue_runs_its_handler,
    stopped_process_dies_of_kill,
    blocked_segv_kills_all_the_same,
    ignored_segv_kills_all_the_same,
    unblocked_thread_gets_the_process_signal,
    alarm_gives_the_rest_and_fires,
    signal_to_self_arrives_before_kill_returns,
    sigchld_carries_the_child,
];

static LAST_SIGNO: AtomicI32 = AtomicI32::new(0);
static LAST_CODE: AtomicI32 = AtomicI32::new(0);
static LAST_PID: AtomicI32 = AtomicI32::new(-1);
static LAST_UID: AtomicI32 = AtomicI32::new(-1);
static LAST_VALUE: AtomicUsize = AtomicUsize::new(0);
static ORDER: [AtomicI32; 16] = [const { AtomicI32::new(0) }; 16];

extern "C" fn record(sig: i32, info: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        LAST_SIGNO.store((*info).si_signo, SeqCst);
        LAST_CODE.store((*info).si_code, SeqCst);
        LAST_PID.store((*info).si_pid(), SeqCst);
        LAST_UID.store((*info).si_uid() as i32, SeqCst);
        LAST_VALUE.store((*info).si_value().sival_ptr as usize, SeqCst);
        let n = HITS.fetch_add(1, SeqCst);
        let tag =
            if sig >= SIGRTMIN() { (sig << 8) | ((*info).si_value().sival_ptr as i32 & 0xff) } else { sig };
        if let Some(slot) = ORDER.get(n) {
            slot.store(tag, SeqCst);
        }
    }
}

fn kill_fills_siginfo() -> Outcome {
    on_signal(SIGUSR1, record, 0)?;
    ok!(kill(getpid(), SIGUSR1));
    same!(hits(), 1);
    same!(LAST_SIGNO.load(SeqCst), SIGUSR1);
    same!(LAST_CODE.load(SeqCst), SI_USER);
    same!(LAST_PID.load(SeqCst), ok!(getpid()));
    same!(LAST_UID.load(SeqCst), 0);
    Ok(())
}

fn tgkill_fills_siginfo() -> Outcome {
    on_signal(SIGUSR1, record, 0)?;
    ok!(syscall(SYS_tgkill, getpid(), sys::gettid(), SIGUSR1));
    same!(hits(), 1);
    same!(LAST_CODE.load(SeqCst), SI_TKILL);
    same!(LAST_PID.load(SeqCst), ok!(getpid()));
    Ok(())
}

fn sigqueue_carries_a_value() -> Outcome {
    on_signal(SIGRTMIN() + 3, record, 0)?;
    ok!(sigqueue(getpid(), SIGRTMIN() + 3, sigval { sival_ptr: 0x1234_5678_9abc as *mut c_void }));
    same!(hits(), 1);
    same!(LAST_CODE.load(SeqCst), SI_QUEUE);
    same!(LAST_VALUE.load(SeqCst), 0x1234_5678_9abc);
    Ok(())
}

fn sigqueue_cannot_forge_a_kernel_code() -> Outcome {
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    let kid = fork(|| {
        loop {
            unsafe { pause() };
        }
    })?;
    info.si_code = SI_USER;
    fails!(EPERM, syscall(SYS_rt_sigqueueinfo, kid.pid, SIGUSR1, &raw mut info));
    info.si_code = SI_QUEUE;
    ok!(syscall(SYS_rt_sigqueueinfo, kid.pid, SIGUSR1, &raw mut info));
    same!(WTERMSIG(kid.status()?), SIGUSR1);
    Ok(())
}

fn realtime_signals_queue_in_order() -> Outcome {
    let sig = SIGRTMIN() + 1;
    on_signal(sig, record, 0)?;
    sys::block(&[sig])?;
    for v in 1..=5usize {
        ok!(sigqueue(getpid(), sig, sigval { sival_ptr: v as *mut c_void }));
    }
    sys::mask(SIG_UNBLOCK, &[sig])?;
    same!(hits(), 5);
    let order: Vec<i32> = ORDER[..5].iter().map(|o| o.load(SeqCst) & 0xff).collect();
    same!(order, [1, 2, 3, 4, 5]);
    Ok(())
}

fn standard_signals_coalesce() -> Outcome {
    on_signal(SIGUSR1, count_handler, 0)?;
    sys::block(&[SIGUSR1])?;
    for _ in 0..5 {
        ok!(kill(getpid(), SIGUSR1));
    }
    sys::mask(SIG_UNBLOCK, &[SIGUSR1])?;
    same!(hits(), 1);
    Ok(())
}

fn lower_realtime_signal_comes_first() -> Outcome {
    let (a, b) = (SIGRTMIN() + 2, SIGRTMIN() + 5);
    // Each handler keeps the other out, so that the order of entry is the order of choice.
    for s in [a, b] {
        sys::on_signal_masking(s, record, 0, &[a, b])?;
    }
    sys::block(&[a, b])?;
    ok!(kill(getpid(), b));
    ok!(kill(getpid(), a));
    sys::mask(SIG_UNBLOCK, &[a, b])?;
    same!(hits(), 2);
    same!(ORDER[0].load(SeqCst) >> 8, a);
    same!(ORDER[1].load(SeqCst) >> 8, b);
    Ok(())
}

fn blocked_signal_waits_and_is_delivered_on_unblock() -> Outcome {
    on_signal(SIGUSR1, count_handler, 0)?;
    sys::block(&[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    same!(hits(), 0);
    want!(sys::pending(SIGUSR1)?, "not pending");
    sys::mask(SIG_UNBLOCK, &[SIGUSR1])?;
    same!(hits(), 1);
    want!(!sys::pending(SIGUSR1)?, "still pending after delivery");
    Ok(())
}

fn sigprocmask_reports_the_old_mask() -> Outcome {
    sys::mask(SIG_SETMASK, &[SIGUSR1, SIGHUP])?;
    let old = sys::mask(SIG_SETMASK, &[SIGUSR2])?;
    for (sig, want) in [(SIGUSR1, 1), (SIGHUP, 1), (SIGUSR2, 0)] {
        same!(unsafe { sigismember(&raw const old, sig) }, want);
    }
    Ok(())
}

fn sigprocmask_cannot_block_kill_and_stop() -> Outcome {
    let all = [u64::MAX; 1];
    let mut now = [0u64; 1];
    ok!(syscall(SYS_rt_sigprocmask, SIG_SETMASK, all.as_ptr(), 0, 8));
    ok!(syscall(SYS_rt_sigprocmask, SIG_SETMASK, 0, now.as_mut_ptr(), 8));
    same!(now[0], !((1 << (SIGKILL - 1)) | (1 << (SIGSTOP - 1))));
    Ok(())
}

fn sigprocmask_errors() -> Outcome {
    let set = [0u64; 1];
    fails!(EINVAL, syscall(SYS_rt_sigprocmask, 77, set.as_ptr(), 0, 8));
    fails!(EINVAL, syscall(SYS_rt_sigprocmask, SIG_BLOCK, set.as_ptr(), 0, 4));
    fails!(EFAULT, syscall(SYS_rt_sigprocmask, SIG_BLOCK, 8, 0, 8));
    fails!(EFAULT, syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, 8, 8));
    Ok(())
}

fn sigaction_errors() -> Outcome {
    let act = [0u64; 4];
    fails!(EINVAL, syscall(SYS_rt_sigaction, SIGKILL, act.as_ptr(), 0, 8));
    fails!(EINVAL, syscall(SYS_rt_sigaction, SIGSTOP, act.as_ptr(), 0, 8));
    fails!(EINVAL, syscall(SYS_rt_sigaction, 0, act.as_ptr(), 0, 8));
    fails!(EINVAL, syscall(SYS_rt_sigaction, 65, act.as_ptr(), 0, 8));
    fails!(EINVAL, syscall(SYS_rt_sigaction, SIGUSR1, act.as_ptr(), 0, 16));
    fails!(EFAULT, syscall(SYS_rt_sigaction, SIGUSR1, 8, 0, 8));
    // The action of SIGKILL may be read.
    let mut old = [1u64; 4];
    ok!(syscall(SYS_rt_sigaction, SIGKILL, 0, old.as_mut_ptr(), 8));
    same!(old[0], 0);
    Ok(())
}

fn sigaction_returns_the_old_action() -> Outcome {
    sys::on_signal_masking(SIGUSR1, count_handler, SA_RESTART | SA_NODEFER, &[SIGHUP])?;
    let mut old: sigaction = unsafe { std::mem::zeroed() };
    ok!(sigaction(SIGUSR1, std::ptr::null(), &raw mut old));
    same!(old.sa_sigaction, count_handler as *const () as usize);
    same!(old.sa_flags & (SA_RESTART | SA_NODEFER | SA_SIGINFO), SA_RESTART | SA_NODEFER | SA_SIGINFO);
    same!(unsafe { sigismember(&raw const old.sa_mask, SIGHUP) }, 1);
    Ok(())
}

static DEPTH: AtomicI32 = AtomicI32::new(0);
static MAX_DEPTH: AtomicI32 = AtomicI32::new(0);

extern "C" fn nest(sig: i32, _: *mut siginfo_t, _: *mut c_void) {
    let depth = DEPTH.fetch_add(1, SeqCst) + 1;
    MAX_DEPTH.fetch_max(depth, SeqCst);
    if HITS.fetch_add(1, SeqCst) < 2 {
        unsafe {
            kill(getpid(), sig);
            kill(getpid(), SIGUSR2);
        }
    }
    DEPTH.fetch_sub(1, SeqCst);
}

fn sa_mask_and_own_signal_are_blocked_in_the_handler() -> Outcome {
    sys::on_signal_masking(SIGUSR1, nest, 0, &[SIGUSR2])?;
    sys::on_signal_masking(SIGUSR2, nest, 0, &[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    same!(MAX_DEPTH.load(SeqCst), 1);
    want!(hits() >= 3, "only {} handlers ran", hits());
    Ok(())
}

fn sa_nodefer_allows_nesting() -> Outcome {
    on_signal(SIGUSR1, nest, SA_NODEFER)?;
    unsafe { signal(SIGUSR2, SIG_IGN) };
    ok!(raise(SIGUSR1));
    same!(MAX_DEPTH.load(SeqCst), 3);
    same!(hits(), 3);
    Ok(())
}

fn sa_resethand_restores_the_default() -> Outcome {
    sys::dies_of(SIGUSR1, || {
        let _ = on_signal(SIGUSR1, count_handler, SA_RESETHAND);
        unsafe {
            raise(SIGUSR1);
            raise(SIGUSR1);
        }
    })
}

fn read_without_sa_restart_is_eintr() -> Outcome {
    let (rd, _wr) = sys::pipe()?;
    on_signal(SIGALRM, count_handler, 0)?;
    sys::tick(10)?;
    let mut b = 0u8;
    fails!(EINTR, read(rd.as_raw_fd(), (&raw mut b).cast(), 1));
    Ok(())
}

static WAKE_FD: AtomicI32 = AtomicI32::new(-1);

/// Lets the call be restarted twice, then gives it something to read.
extern "C" fn third_time_write(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    if HITS.fetch_add(1, SeqCst) == 2 {
        unsafe { write(WAKE_FD.load(SeqCst), c"x".as_ptr().cast(), 1) };
    }
}

fn read_with_sa_restart_goes_on() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    WAKE_FD.store(wr.as_raw_fd(), SeqCst);
    on_signal(SIGALRM, third_time_write, SA_RESTART)?;
    sys::tick(10)?;
    let mut b = 0u8;
    same!(ok!(read(rd.as_raw_fd(), (&raw mut b).cast(), 1)), 1);
    want!(hits() >= 3, "read came back after {} signals", hits());
    Ok(())
}

fn wait_with_sa_restart_goes_on() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::fd_read(&rd, 1)?;
        unsafe { _exit(8) }
    })?;
    WAKE_FD.store(wr.as_raw_fd(), SeqCst);
    on_signal(SIGALRM, third_time_write, SA_RESTART)?;
    sys::tick(10)?;
    let mut status = 0;
    same!(ok!(waitpid(kid.pid, &raw mut status, 0)), kid.pid);
    same!(WEXITSTATUS(status), 8);
    want!(hits() >= 3, "wait came back after {} signals", hits());
    Ok(())
}

fn nanosleep_is_eintr_with_the_rest() -> Outcome {
    on_signal(SIGALRM, count_handler, SA_RESTART)?;
    sys::tick(20)?;
    let long = sys::ts(100_000);
    let mut rest = sys::ts(0);
    fails!(EINTR, nanosleep(&raw const long, &raw mut rest));
    want!(rest.tv_sec < 100 && rest.tv_sec >= 60, "{} s remain of 100", rest.tv_sec);
    Ok(())
}

fn nanosleep_goes_on_over_stop_and_continue() -> Outcome {
    let kid = fork(|| {
        let start = sys::clock(CLOCK_MONOTONIC)?;
        let t = sys::ts(300);
        ok!(nanosleep(&raw const t, std::ptr::null_mut()));
        want!(sys::clock(CLOCK_MONOTONIC)? - start >= 300_000_000, "slept too little");
        Ok(())
    })?;
    for _ in 0..3 {
        sys::sleep_ms(20);
        ok!(kill(kid.pid, SIGSTOP));
        let mut status = 0;
        ok!(waitpid(kid.pid, &raw mut status, WUNTRACED));
        want!(WIFSTOPPED(status), "status {status:#x} is not a stop");
        ok!(kill(kid.pid, SIGCONT));
    }
    kid.ok()
}

fn poll_is_eintr_even_with_sa_restart() -> Outcome {
    on_signal(SIGALRM, count_handler, SA_RESTART)?;
    sys::tick(10)?;
    fails!(EINTR, poll(std::ptr::null_mut(), 0, 20_000));
    Ok(())
}

fn pause_is_eintr() -> Outcome {
    on_signal(SIGALRM, count_handler, SA_RESTART)?;
    sys::tick(10)?;
    fails!(EINTR, pause());
    want!(hits() >= 1, "no handler ran");
    Ok(())
}

fn sigsuspend_swaps_the_mask() -> Outcome {
    on_signal(SIGUSR1, count_handler, 0)?;
    sys::block(&[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    same!(hits(), 0);
    let none = sys::sigset(&[]);
    fails!(EINTR, sigsuspend(&raw const none));
    same!(hits(), 1);
    // The old mask is back.
    ok!(raise(SIGUSR1));
    same!(hits(), 1);
    Ok(())
}

fn sigtimedwait_takes_a_pending_signal() -> Outcome {
    let sig = SIGRTMIN() + 4;
    sys::block(&[sig, SIGUSR1])?;
    ok!(sigqueue(getpid(), sig, sigval { sival_ptr: 77 as *mut c_void }));
    let set = sys::sigset(&[sig, SIGUSR1]);
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    let now = sys::ts(0);
    same!(ok!(sigtimedwait(&raw const set, &raw mut info, &raw const now)), sig);
    same!(info.si_code, SI_QUEUE);
    same!(unsafe { info.si_value().sival_ptr as usize }, 77);
    want!(!sys::pending(sig)?, "the signal is still pending");
    Ok(())
}

fn sigtimedwait_times_out_with_eagain() -> Outcome {
    sys::block(&[SIGUSR1])?;
    let set = sys::sigset(&[SIGUSR1]);
    let t = sys::ts(30);
    let start = sys::clock(CLOCK_MONOTONIC)?;
    fails!(EAGAIN, sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const t));
    want!(sys::clock(CLOCK_MONOTONIC)? - start >= 29_000_000, "came back too early");
    let bad = timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    fails!(EINVAL, sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const bad));
    Ok(())
}

fn sigwaitinfo_waits() -> Outcome {
    sys::block(&[SIGUSR1])?;
    let me = ok!(getpid());
    let kid = fork(|| {
        sys::sleep_ms(20);
        ok!(kill(me, SIGUSR1));
        Ok(())
    })?;
    let set = sys::sigset(&[SIGUSR1]);
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    same!(ok!(sigwaitinfo(&raw const set, &raw mut info)), SIGUSR1);
    same!(unsafe { info.si_pid() }, kid.pid);
    kid.ok()
}

fn ignored_signal_does_not_interrupt() -> Outcome {
    unsafe { signal(SIGALRM, SIG_IGN) };
    sys::tick(5)?;
    let t = sys::ts(60);
    ok!(nanosleep(&raw const t, std::ptr::null_mut()));
    Ok(())
}

fn kill_of_missing_process_is_esrch() -> Outcome {
    let kid = fork(|| Ok(()))?;
    let pid = kid.pid;
    kid.ok()?;
    fails!(ESRCH, kill(pid, SIGTERM));
    fails!(ESRCH, kill(-pid, SIGTERM));
    Ok(())
}

fn kill_of_bad_signal_is_einval() -> Outcome {
    fails!(EINVAL, kill(getpid(), 65));
    fails!(EINVAL, kill(getpid(), -1));
    Ok(())
}

fn kill_zero_checks_only() -> Outcome {
    ok!(kill(getpid(), 0));
    ok!(kill(0, 0));
    Ok(())
}

fn kill_group_reaches_all() -> Outcome {
    let mut kids = Vec::new();
    for _ in 0..3 {
        let kid = fork(|| {
            loop {
                unsafe { pause() };
            }
        })?;
        let leader = kids.first().map_or(kid.pid, |k: &sys::Kid| k.pid);
        ok!(setpgid(kid.pid, leader));
        kids.push(kid);
    }
    ok!(kill(-kids[0].pid, SIGTERM));
    for kid in kids {
        same!(WTERMSIG(kid.status()?), SIGTERM);
    }
    Ok(())
}

fn kill_needs_permission() -> Outcome {
    let me = ok!(getpid());
    fork(|| {
        sys::drop_root()?;
        fails!(EPERM, kill(me, SIGTERM));
        fails!(EPERM, kill(me, 0));
        Ok(())
    })?
    .ok()
}

fn tgkill_checks_the_group() -> Outcome {
    let kid = fork(|| {
        loop {
            unsafe { pause() };
        }
    })?;
    fails!(ESRCH, syscall(SYS_tgkill, getpid(), kid.pid, 0));
    fails!(EINVAL, syscall(SYS_tgkill, 0, kid.pid, 0));
    fails!(EINVAL, syscall(SYS_tgkill, kid.pid, -1, 0));
    ok!(syscall(SYS_tgkill, kid.pid, kid.pid, SIGKILL));
    kid.status().map(drop)
}

fn default_actions_ignore_chld_urg_winch() -> Outcome {
    for sig in [SIGCHLD, SIGURG, SIGWINCH, SIGCONT] {
        ok!(raise(sig));
    }
    Ok(())
}

fn sigpipe_kills_the_writer() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    drop(rd);
    sys::dies_of(SIGPIPE, || {
        let _ = sys::fd_write(&wr, b"x");
    })
}

fn epipe_when_sigpipe_is_ignored() -> Outcome {
    unsafe { signal(SIGPIPE, SIG_IGN) };
    let (rd, wr) = sys::pipe()?;
    drop(rd);
    fails!(EPIPE, write(wr.as_raw_fd(), c"x".as_ptr().cast(), 1));
    Ok(())
}

fn continue_discards_pending_stop() -> Outcome {
    sys::block(&[SIGTSTP])?;
    ok!(raise(SIGTSTP));
    want!(sys::pending(SIGTSTP)?, "SIGTSTP is not pending");
    ok!(raise(SIGCONT));
    want!(!sys::pending(SIGTSTP)?, "SIGTSTP is pending after SIGCONT");
    Ok(())
}

fn stop_discards_pending_continue() -> Outcome {
    sys::block(&[SIGCONT, SIGTSTP])?;
    ok!(raise(SIGCONT));
    want!(sys::pending(SIGCONT)?, "SIGCONT is not pending");
    ok!(raise(SIGTSTP));
    want!(!sys::pending(SIGCONT)?, "SIGCONT is pending after SIGTSTP");
    Ok(())
}

fn continue_runs_its_handler() -> Outcome {
    let kid = fork(|| {
        on_signal(SIGCONT, count_handler, 0)?;
        ok!(raise(SIGSTOP));
        same!(hits(), 1);
        Ok(())
    })?;
    let mut status = 0;
    ok!(waitpid(kid.pid, &raw mut status, WUNTRACED));
    want!(WIFSTOPPED(status), "status {status:#x} is not a stop");
    ok!(kill(kid.pid, SIGCONT));
    kid.ok()
}

fn stopped_process_dies_of_kill() -> Outcome {
    let kid = fork(|| {
        ok!(raise(SIGSTOP));
        Ok(())
    })?;
    let mut status = 0;
    ok!(waitpid(kid.pid, &raw mut status, WUNTRACED));
    want!(WIFSTOPPED(status), "status {status:#x} is not a stop");
    // SIGTERM waits for the continue, SIGKILL does not.
    ok!(kill(kid.pid, SIGTERM));
    ok!(kill(kid.pid, SIGKILL));
    same!(WTERMSIG(kid.status()?), SIGKILL);
    Ok(())
}

fn blocked_segv_kills_all_the_same() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        let _ = on_signal(SIGSEGV, count_handler, 0);
        let _ = sys::block(&[SIGSEGV]);
        unsafe { (8 as *mut u8).write_volatile(1) };
    })
}

fn ignored_segv_kills_all_the_same() -> Outcome {
    sys::dies_of(SIGSEGV, || unsafe {
        signal(SIGSEGV, SIG_IGN);
        (8 as *mut u8).write_volatile(1);
    })
}

static HANDLER_TID: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_tid(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    HANDLER_TID.store(sys::gettid(), SeqCst);
}

fn unblocked_thread_gets_the_process_signal() -> Outcome {
    on_signal(SIGUSR1, note_tid, 0)?;
    sys::block(&[SIGUSR1])?;
    let tid = std::sync::Arc::new(AtomicI32::new(0));
    let seen = tid.clone();
    let thread = std::thread::spawn(move || -> Outcome {
        sys::mask(SIG_UNBLOCK, &[SIGUSR1])?;
        seen.store(sys::gettid(), SeqCst);
        sys::eventually("the handler in this thread", || HANDLER_TID.load(SeqCst) != 0)
    });
    sys::eventually("the thread is ready", || tid.load(SeqCst) != 0)?;
    ok!(kill(getpid(), SIGUSR1));
    thread.join().map_err(|_| "the thread panicked".to_string())??;
    same!(HANDLER_TID.load(SeqCst), tid.load(SeqCst));
    Ok(())
}

fn alarm_gives_the_rest_and_fires() -> Outcome {
    on_signal(SIGALRM, count_handler, 0)?;
    same!(unsafe { alarm(100) }, 0);
    let rest = unsafe { alarm(1) };
    want!((99..=100).contains(&rest), "{rest} s remain of 100");
    fails!(EINTR, pause());
    same!(hits(), 1);
    same!(unsafe { alarm(0) }, 0);
    Ok(())
}

fn signal_to_self_arrives_before_kill_returns() -> Outcome {
    on_signal(SIGUSR1, count_handler, 0)?;
    for i in 1..=200 {
        ok!(kill(getpid(), SIGUSR1));
        same!(hits(), i);
    }
    Ok(())
}

fn sigchld_carries_the_child() -> Outcome {
    on_signal(SIGCHLD, record, SA_RESTART)?;
    let kid = fork(|| unsafe { _exit(5) })?;
    let pid = kid.pid;
    kid.status()?;
    sys::eventually("SIGCHLD", || hits() == 1)?;
    same!(LAST_CODE.load(SeqCst), CLD_EXITED);
    same!(LAST_PID.load(SeqCst), pid);
    let _keep = Map::anon(sys::PAGE)?;
    Ok(())
}
