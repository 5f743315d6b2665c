//! ptrace(2): system-call stops, events, signal information, threads, and who waits for whom.

use crate::harness::Outcome;
use crate::sys::{self, Map, PAGE, fork};
use crate::tracing::*;
use libc::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;

cases![
    calls_stop_at_both_ends,
    good_calls_are_marked,
    a_call_can_become_another,
    a_call_can_be_cancelled,
    a_result_can_be_changed,
    interrupted_calls_show_how_they_restart,
    a_tracer_may_undo_a_restart,
    emulated_calls_are_not_made,
    call_information_says_what_a_stop_is,
    call_information_is_cut_to_its_room,
    signal_information_can_be_changed,
    pending_signals_can_be_peeked,
    the_mask_can_be_read_and_set,
    unknown_options_are_einval,
    fork_is_an_event,
    vfork_is_an_event_and_so_is_its_end,
    clone_is_an_event,
    exec_is_an_event,
    exec_without_the_option_is_a_sigtrap,
    exec_of_a_thread_takes_the_leaders_number,
    exit_is_an_event,
    a_seized_childs_first_stop_is_an_event,
    untraced_children_are_not_traced,
    exitkill_kills_with_the_tracer,
    a_thread_is_traced_alone,
    threads_are_waited_for_by_number,
    a_zombie_goes_to_its_tracer_first,
    sigchld_of_a_stop_names_the_tracee,
    a_continued_tracee_can_stop_again,
    sigcont_ends_a_stop_under_a_tracer,
];

fn calls_stop_at_both_ends() -> Outcome {
    let kid = tracee(|| {
        let parent = ok!(getppid());
        want!(parent > 0, "no parent");
        Ok(())
    })?;
    let me = std::process::id();
    let mut seen = false;
    for _ in 0..40 {
        same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
        let at_begin = regs(kid.pid)?;
        same!(at_begin.rax as i64, -i64::from(ENOSYS));
        if at_begin.orig_rax == SYS_exit_group as u64 {
            break;
        }
        same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
        let at_end = regs(kid.pid)?;
        same!(at_end.orig_rax, at_begin.orig_rax);
        same!(at_end.rip, at_begin.rip);
        if at_end.orig_rax == SYS_getppid as u64 {
            seen = true;
            same!(at_end.rax, u64::from(me));
        }
    }
    want!(seen, "getppid made no stop");
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

/// Goes on until the begin of call `nr`.
fn to_call(pid: i32, nr: i64) -> Outcome {
    for _ in 0..200 {
        let stop = to_stop(SYSCALL, pid)?;
        want!(stop & 0x7f == SIGTRAP, "stop {stop:#x}");
        let now = regs(pid)?;
        if now.orig_rax == nr as u64 && now.rax as i64 == -i64::from(ENOSYS) {
            return Ok(());
        }
    }
    Err(format!("no call {nr} came"))
}

fn good_calls_are_marked() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1));
    same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP | 0x80);
    let info = siginfo(kid.pid)?;
    same!((info.si_signo, info.si_code), (SIGTRAP, SIGTRAP | 0x80));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_call_can_become_another() -> Outcome {
    let kid = tracee(|| {
        same!(ok!(getppid()), ok!(getpid()));
        Ok(())
    })?;
    to_call(kid.pid, SYS_getppid)?;
    ok!(pt(POKEUSR, kid.pid, 15 * 8, SYS_getpid as usize));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_call_can_be_cancelled() -> Outcome {
    let kid = tracee(|| {
        fails!(ENOSYS, syscall(SYS_getppid));
        fails!(EUCLEAN, syscall(SYS_getppid));
        Ok(())
    })?;
    to_call(kid.pid, SYS_getppid)?;
    ok!(pt(POKEUSR, kid.pid, 15 * 8, usize::MAX));
    same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
    to_call(kid.pid, SYS_getppid)?;
    ok!(pt(POKEUSR, kid.pid, 15 * 8, usize::MAX));
    ok!(pt(POKEUSR, kid.pid, 10 * 8, -i64::from(EUCLEAN) as usize));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_result_can_be_changed() -> Outcome {
    let kid = tracee(|| {
        same!(ok!(getppid()), 424_242);
        Ok(())
    })?;
    to_call(kid.pid, SYS_getppid)?;
    same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
    ok!(pt(POKEUSR, kid.pid, 10 * 8, 424_242));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn interrupted_calls_show_how_they_restart() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = tracee(|| {
        // Restarted, though a signal comes that nobody handles.
        same!(sys::fd_read(&rd, 1)?, b"x");
        sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
        let t = sys::ts(60_000);
        fails!(EINTR, nanosleep(&raw const t, std::ptr::null_mut()));
        Ok(())
    })?;
    to_call(kid.pid, SYS_read)?;
    go(SYSCALL, kid.pid, 0)?;
    sys::sleep_ms(20);
    ok!(kill(kid.pid, SIGUSR1));
    same!(stop_of(kid.pid)?, SIGTRAP);
    same!(regs(kid.pid)?.rax as i64, -512);
    same!(to_stop(SYSCALL, kid.pid)?, SIGUSR1);
    same!(regs(kid.pid)?.rax as i64, -512);
    same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
    same!(regs(kid.pid)?.orig_rax, SYS_read as u64);
    sys::fd_write(&wr, b"x")?;
    same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
    same!(regs(kid.pid)?.rax, 1);
    let nr = if cfg!(target_env = "musl") { SYS_nanosleep } else { SYS_clock_nanosleep };
    to_call(kid.pid, nr)?;
    go(SYSCALL, kid.pid, 0)?;
    sys::sleep_ms(20);
    ok!(kill(kid.pid, SIGUSR1));
    same!(stop_of(kid.pid)?, SIGTRAP);
    same!(regs(kid.pid)?.rax as i64, -516);
    same!(to_stop(SYSCALL, kid.pid)?, SIGUSR1);
    go(CONT, kid.pid, SIGUSR1)?;
    kid.ok()
}

fn a_tracer_may_undo_a_restart() -> Outcome {
    let (rd, _wr) = sys::pipe()?;
    let kid = tracee(|| {
        let mut byte = 0u8;
        fails!(ENOTTY, read(rd.as_raw_fd(), (&raw mut byte).cast(), 1));
        Ok(())
    })?;
    to_call(kid.pid, SYS_read)?;
    go(SYSCALL, kid.pid, 0)?;
    sys::sleep_ms(20);
    ok!(kill(kid.pid, SIGWINCH));
    same!(stop_of(kid.pid)?, SIGTRAP);
    same!(to_stop(CONT, kid.pid)?, SIGWINCH);
    let mut now = regs(kid.pid)?;
    same!(now.orig_rax, SYS_read as u64);
    now.orig_rax = u64::MAX;
    now.rax = -i64::from(ENOTTY) as u64;
    set_regs(kid.pid, &now)?;
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn emulated_calls_are_not_made() -> Outcome {
    let kid = tracee(|| {
        same!(ok!(getppid()), 777);
        want!(std::path::Path::new(".").exists(), "no directory");
        Ok(())
    })?;
    same!(to_stop(SYSEMU, kid.pid)?, SIGTRAP);
    while regs(kid.pid)?.orig_rax != SYS_getppid as u64 {
        // Whatever comes before is made after all.
        let mut now = regs(kid.pid)?;
        now.rip -= 2;
        now.rax = now.orig_rax;
        now.orig_rax = u64::MAX;
        set_regs(kid.pid, &now)?;
        same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
        same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP);
        same!(to_stop(SYSEMU, kid.pid)?, SIGTRAP);
    }
    ok!(pt(POKEUSR, kid.pid, 10 * 8, 777));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn call_information(pid: i32, room: usize) -> Result<(i64, [u8; 88]), String> {
    let mut info = [0xaau8; 88];
    let len = ok!(pt(GET_SYSCALL_INFO, pid, room, info.as_mut_ptr() as usize));
    Ok((len, info))
}

fn word(info: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(info[at..at + 8].try_into().expect("eight bytes"))
}

fn call_information_says_what_a_stop_is() -> Outcome {
    let kid = tracee(|| {
        fails!(EBADF, syscall(SYS_fsync, -1, 2, 3));
        Ok(())
    })?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1));
    let (len, info) = call_information(kid.pid, 88)?;
    same!((len, info[0]), (24, 0));
    same!(u32::from_le_bytes([info[4], info[5], info[6], info[7]]), 0xc000_003e);
    loop {
        same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP | 0x80);
        let (len, info) = call_information(kid.pid, 88)?;
        if info[0] == 1 && word(&info, 24) == SYS_fsync as u64 {
            same!(len, 80);
            same!((word(&info, 32) as i32, word(&info, 40), word(&info, 48)), (-1, 2, 3));
            let now = regs(kid.pid)?;
            same!((word(&info, 8), word(&info, 16)), (now.rip, now.rsp));
            break;
        }
    }
    same!(to_stop(SYSCALL, kid.pid)?, SIGTRAP | 0x80);
    let (len, info) = call_information(kid.pid, 88)?;
    same!((len, info[0], info[32]), (33, 2, 1));
    same!(word(&info, 24) as i64, -i64::from(EBADF));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn call_information_is_cut_to_its_room() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let (len, info) = call_information(kid.pid, 8)?;
    same!((len, info[7] != 0xaa, info[8]), (24, true, 0xaa));
    same!(call_information(kid.pid, 0)?.0, 24);
    fails!(EFAULT, pt(GET_SYSCALL_INFO, kid.pid, 88, 8));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn signal_information_can_be_changed() -> Outcome {
    static VALUE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    extern "C" fn handler(_: i32, info: *mut siginfo_t, _: *mut c_void) {
        VALUE.store(unsafe { (*info).si_value() }.sival_ptr as usize, SeqCst);
    }
    let kid = tracee(|| {
        sys::on_signal(SIGUSR1, handler, 0)?;
        let value = sigval { sival_ptr: std::ptr::without_provenance_mut(11) };
        ok!(sigqueue(getpid(), SIGUSR1, value));
        same!(VALUE.load(SeqCst), 22);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGUSR1);
    let mut info = siginfo(kid.pid)?;
    same!(unsafe { info.si_value() }.sival_ptr as usize, 11);
    let words: *mut u64 = (&raw mut info).cast();
    unsafe { words.add(3).write(22) };
    ok!(pt(SETSIGINFO, kid.pid, 0, &raw mut info as usize));
    go(CONT, kid.pid, SIGUSR1)?;
    kid.ok()
}

#[repr(C)]
struct PeekArgs {
    from: u64,
    flags: u32,
    count: i32,
}

fn pending_signals_can_be_peeked() -> Outcome {
    let kid = tracee(|| {
        sys::block(&[SIGRTMIN(), SIGRTMIN() + 1])?;
        for i in 0..3 {
            let value = sigval { sival_ptr: std::ptr::without_provenance_mut(100 + i) };
            ok!(sigqueue(getpid(), SIGRTMIN(), value));
        }
        ok!(raise(SIGRTMIN() + 1));
        ok!(raise(SIGUSR1));
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGUSR1);
    let mut infos: [siginfo_t; 8] = unsafe { std::mem::zeroed() };
    let at = infos.as_mut_ptr() as usize;
    let peek = |from, flags, count| {
        let args = PeekArgs { from, flags, count };
        pt(PEEKSIGINFO, kid.pid, &raw const args as usize, at)
    };
    same!(ok!(peek(0, 1, 8)), 3);
    same!(unsafe { infos[2].si_value() }.sival_ptr as usize, 102);
    same!(ok!(peek(1, 1, 1)), 1);
    same!(unsafe { infos[0].si_value() }.sival_ptr as usize, 101);
    same!(ok!(peek(7, 1, 1)), 0);
    same!(ok!(peek(0, 0, 8)), 1);
    same!(infos[0].si_signo, SIGRTMIN() + 1);
    fails!(EINVAL, peek(0, 2, 8));
    fails!(EINVAL, peek(0, 0, -1));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn the_mask_can_be_read_and_set() -> Outcome {
    let kid = tracee(|| {
        sys::block(&[SIGUSR2])?;
        ok!(raise(SIGTERM));
        ok!(raise(SIGUSR1));
        want!(sys::pending(SIGUSR1)?, "SIGUSR1 was not blocked");
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTERM);
    let mut mask = 0u64;
    fails!(EINVAL, pt(GETSIGMASK, kid.pid, 4, &raw mut mask as usize));
    fails!(EINVAL, pt(SETSIGMASK, kid.pid, 16, &raw mut mask as usize));
    ok!(pt(GETSIGMASK, kid.pid, 8, &raw mut mask as usize));
    want!(mask >> (SIGUSR2 - 1) & 1 == 1, "mask {mask:#x}");
    mask = u64::MAX;
    ok!(pt(SETSIGMASK, kid.pid, 8, &raw mut mask as usize));
    ok!(pt(GETSIGMASK, kid.pid, 8, &raw mut mask as usize));
    same!(mask, !(1 << (SIGKILL - 1) | 1 << (SIGSTOP - 1)));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn unknown_options_are_einval() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    for bad in [1 << 8, 1 << 19, 1 << 22, 1 << 32] {
        fails!(EINVAL, pt(SETOPTIONS, kid.pid, 0, bad));
    }
    ok!(pt(SETOPTIONS, kid.pid, 0, 0xff));
    ok!(pt(SETOPTIONS, kid.pid, 0, 0));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

const FORK: i32 = 1;
const VFORK: i32 = 2;
const CLONE: i32 = 3;
const EXEC: i32 = 4;
const VFORK_DONE: i32 = 5;
const EXIT: i32 = 6;
const EVENT_STOP: i32 = 128;

fn event(n: i32) -> i32 {
    SIGTRAP | n << 8
}

fn fork_is_an_event() -> Outcome {
    let kid = tracee(|| fork(|| Ok(()))?.ok())?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << FORK));
    same!(to_stop(CONT, kid.pid)?, event(FORK));
    let child = message(kid.pid)? as i32;
    // The child is traced too, and stops before it runs.
    same!(stop_of(child)?, SIGSTOP);
    same!(regs(child)?.rax, 0);
    go(CONT, child, 0)?;
    same!(change(child)?, 0);
    same!(to_stop(CONT, kid.pid)?, SIGCHLD);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn vfork_is_an_event_and_so_is_its_end() -> Outcome {
    let kid = tracee(|| {
        let exe = sys::self_exe()?;
        let argv = [exe.as_ptr(), c"helper".as_ptr(), c"exit".as_ptr(), c"3".as_ptr(), std::ptr::null()];
        #[allow(deprecated, reason = "the child execs at once, as it must")]
        let pid = unsafe { vfork() };
        if pid == 0 {
            unsafe {
                execv(exe.as_ptr(), argv.as_ptr());
                _exit(9);
            }
        }
        same!(sys::wait_status(pid)?, 3 << 8);
        Ok(())
    })?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << VFORK | 1 << VFORK_DONE));
    same!(to_stop(CONT, kid.pid)?, event(VFORK));
    let child = message(kid.pid)? as i32;
    same!(stop_of(child)?, SIGSTOP);
    ok!(pt(DETACH, child, 0, 0));
    same!(to_stop(CONT, kid.pid)?, event(VFORK_DONE));
    same!(message(kid.pid)? as i32, child);
    ok!(pt(DETACH, kid.pid, 0, 0));
    kid.ok()
}

/// Runs `f` on a thread.
fn thread(f: impl FnOnce() -> Outcome + Send) -> Outcome {
    std::thread::scope(|s| s.spawn(f).join().map_err(|_| "the thread panicked".to_owned())?)
}

fn clone_is_an_event() -> Outcome {
    let kid = tracee(|| {
        let pid = ok!(getpid());
        thread(move || {
            want!(sys::gettid() != pid, "no thread of its own");
            Ok(())
        })
    })?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << CLONE));
    same!(to_stop(CONT, kid.pid)?, event(CLONE));
    let child = message(kid.pid)? as i32;
    want!(child != kid.pid, "the event names the parent");
    same!(stop_of(child)?, SIGSTOP);
    go(CONT, child, 0)?;
    go(CONT, kid.pid, 0)?;
    same!(change(child)?, 0);
    kid.ok()
}

fn run_helper() -> Outcome {
    let exe = sys::self_exe()?;
    let argv = [exe.as_ptr(), c"helper".as_ptr(), c"exit".as_ptr(), c"5".as_ptr(), std::ptr::null()];
    ok!(execv(exe.as_ptr(), argv.as_ptr()));
    Ok(())
}

fn exec_is_an_event() -> Outcome {
    let kid = tracee(run_helper)?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << EXEC));
    same!(to_stop(CONT, kid.pid)?, event(EXEC));
    same!(message(kid.pid)? as i32, kid.pid);
    go(CONT, kid.pid, 0)?;
    same!(change(kid.pid)?, 5 << 8);
    Ok(())
}

fn exec_without_the_option_is_a_sigtrap() -> Outcome {
    let kid = tracee(run_helper)?;
    same!(to_stop(CONT, kid.pid)?, SIGTRAP);
    same!(siginfo(kid.pid)?.si_code, SI_USER);
    // The first instruction of the program.
    let word = peek(kid.pid, regs(kid.pid)?.rip as usize)?;
    want!(word != 0, "no code at the entry");
    go(CONT, kid.pid, 0)?;
    same!(change(kid.pid)?, 5 << 8);
    Ok(())
}

const SI_USER: i32 = 0;

fn exec_of_a_thread_takes_the_leaders_number() -> Outcome {
    let kid = tracee(|| thread(run_helper))?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << EXEC | 1 << CLONE));
    same!(to_stop(CONT, kid.pid)?, event(CLONE));
    let child = message(kid.pid)? as i32;
    same!(stop_of(child)?, SIGSTOP);
    go(CONT, kid.pid, 0)?;
    go(CONT, child, 0)?;
    same!(stop_of(kid.pid)?, event(EXEC));
    same!(message(kid.pid)? as i32, child);
    go(CONT, kid.pid, 0)?;
    same!(change(kid.pid)?, 5 << 8);
    Ok(())
}

fn exit_is_an_event() -> Outcome {
    let kid = tracee(|| unsafe { _exit(7) })?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << EXIT));
    same!(to_stop(CONT, kid.pid)?, event(EXIT));
    same!(message(kid.pid)?, 7 << 8);
    // Registers and memory are still there.
    want!(regs(kid.pid)?.rip != 0, "no registers");
    let here = 0x1234_5678u64;
    peek(kid.pid, &raw const here as usize)?;
    go(CONT, kid.pid, 0)?;
    same!(change(kid.pid)?, 7 << 8);
    let kid = tracee(|| {
        ok!(raise(SIGTERM));
        Ok(())
    })?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << EXIT));
    same!(to_stop(CONT, kid.pid)?, SIGTERM);
    go(CONT, kid.pid, SIGTERM)?;
    same!(stop_of(kid.pid)?, event(EXIT));
    same!(message(kid.pid)? as i32, SIGTERM);
    go(CONT, kid.pid, 0)?;
    same!(change(kid.pid)?, SIGTERM);
    Ok(())
}

fn a_seized_childs_first_stop_is_an_event() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| {
        sys::fd_read(&rd, 1)?;
        fork(|| Ok(()))?.ok()
    })?;
    ok!(pt(SEIZE, kid.pid, 0, 1 << FORK));
    sys::fd_write(&wr, b"x")?;
    same!(stop_of(kid.pid)?, event(FORK));
    let child = message(kid.pid)? as i32;
    same!(stop_of(child)?, event(EVENT_STOP));
    ok!(pt(DETACH, child, 0, 0));
    ok!(pt(DETACH, kid.pid, 0, 0));
    kid.ok()
}

fn untraced_children_are_not_traced() -> Outcome {
    let kid = tracee(|| {
        let flags = CLONE_UNTRACED | SIGCHLD;
        let pid = ok!(syscall(SYS_clone, flags as i64, 0, 0, 0, 0)) as i32;
        if pid == 0 {
            unsafe { _exit(0) };
        }
        same!(sys::wait_status(pid)?, 0);
        Ok(())
    })?;
    ok!(pt(SETOPTIONS, kid.pid, 0, 1 << FORK | 1 << CLONE));
    same!(to_stop(CONT, kid.pid)?, SIGCHLD);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn exitkill_kills_with_the_tracer() -> Outcome {
    let (rd, _wr) = sys::pipe()?;
    let kid = fork(|| sys::fd_read(&rd, 1).map(drop))?;
    let pid = kid.pid;
    fork(|| {
        ok!(pt(SEIZE, pid, 0, 1 << 20));
        Ok(())
    })?
    .ok()?;
    same!(kid.status()?, SIGKILL);
    Ok(())
}

fn a_thread_is_traced_alone() -> Outcome {
    let shared = Map::shared(PAGE)?;
    let (id, go_on) = (shared.word(0), shared.word(1));
    let kid = fork(|| {
        thread(|| {
            id.store(sys::gettid(), SeqCst);
            while go_on.load(SeqCst) == 0 {
                sys::sleep_ms(1);
            }
            Ok(())
        })
    })?;
    let kid_pid = kid.pid;
    sys::eventually("the thread runs", || shared.word(0).load(SeqCst) != 0)?;
    let tid = shared.word(0).load(SeqCst);
    ok!(pt(ATTACH, tid, 0, 0));
    same!(stop_of(tid)?, SIGSTOP);
    // The leader is nobody's tracee.
    fails!(ESRCH, pt(CONT, kid_pid, 0, 0));
    let text = sys::slurp(&format!("/proc/{kid_pid}/task/{tid}/status"))?;
    want!(text.contains("t (tracing stop)"), "the thread does not stand: {text}");
    ok!(pt(DETACH, tid, 0, 0));
    shared.word(1).store(1, SeqCst);
    kid.ok()
}

fn threads_are_waited_for_by_number() -> Outcome {
    let shared = Map::shared(PAGE)?;
    let (id, go_on) = (shared.word(0), shared.word(1));
    let kid = fork(|| {
        thread(|| {
            id.store(sys::gettid(), SeqCst);
            while go_on.load(SeqCst) == 0 {
                sys::sleep_ms(1);
            }
            Ok(())
        })?;
        // Until the tracer has seen the thread's end.
        while shared.word(1).load(SeqCst) == 1 {
            sys::sleep_ms(1);
        }
        Ok(())
    })?;
    sys::eventually("the thread runs", || shared.word(0).load(SeqCst) != 0)?;
    let tid = shared.word(0).load(SeqCst);
    // Not a child, and not a tracee yet.
    let mut status = 0;
    fails!(ECHILD, waitpid(tid, &raw mut status, WNOHANG | __WALL));
    ok!(pt(SEIZE, tid, 0, 0));
    same!(ok!(waitpid(tid, &raw mut status, WNOHANG | __WALL)), 0);
    shared.word(1).store(1, SeqCst);
    same!(change(tid)?, 0);
    fails!(ECHILD, waitpid(tid, &raw mut status, WNOHANG | __WALL));
    shared.word(1).store(2, SeqCst);
    kid.ok()
}

fn a_zombie_goes_to_its_tracer_first() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let shared = Map::shared(PAGE)?;
    let keep = wr.as_raw_fd();
    let kid = fork(|| {
        unsafe { close(keep) };
        sys::fd_read(&rd, 1).map(drop)
    })?;
    let pid = kid.pid;
    let tracer = fork(|| {
        ok!(pt(SEIZE, pid, 0, 0));
        shared.word(0).store(1, SeqCst);
        sys::eventually("the parent has looked", || shared.word(0).load(SeqCst) == 2)?;
        same!(change(pid)?, 0);
        Ok(())
    })?;
    sys::eventually("it is seized", || shared.word(0).load(SeqCst) == 1)?;
    sys::fd_write(&wr, b"x")?;
    sys::eventually("it has ended", || {
        sys::slurp(&format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
    })?;
    let mut status = 0;
    same!(ok!(waitpid(pid, &raw mut status, WNOHANG)), 0);
    shared.word(0).store(2, SeqCst);
    tracer.ok()?;
    kid.ok()
}

fn sigchld_of_a_stop_names_the_tracee() -> Outcome {
    sys::block(&[SIGCHLD])?;
    let kid = tracee(|| {
        ok!(raise(SIGUSR1));
        Ok(())
    })?;
    let set = sys::sigset(&[SIGCHLD]);
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    ok!(sigwaitinfo(&raw const set, &raw mut info));
    same!(to_stop(CONT, kid.pid)?, SIGUSR1);
    ok!(sigwaitinfo(&raw const set, &raw mut info));
    same!(info.si_code, CLD_TRAPPED);
    same!(unsafe { (info.si_pid(), info.si_status()) }, (kid.pid, SIGUSR1));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_continued_tracee_can_stop_again() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = tracee(|| sys::fd_read(&rd, 1).map(drop))?;
    go(CONT, kid.pid, 0)?;
    for _ in 0..3 {
        ok!(kill(kid.pid, SIGSTOP));
        same!(stop_of(kid.pid)?, SIGSTOP);
        go(CONT, kid.pid, SIGSTOP)?;
        same!(stop_of(kid.pid)?, SIGSTOP);
        go(CONT, kid.pid, 0)?;
    }
    ok!(kill(kid.pid, SIGCONT));
    same!(stop_of(kid.pid)?, SIGCONT);
    go(CONT, kid.pid, 0)?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn sigcont_ends_a_stop_under_a_tracer() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = tracee(|| sys::fd_read(&rd, 1).map(drop))?;
    go(CONT, kid.pid, 0)?;
    ok!(kill(kid.pid, SIGSTOP));
    same!(stop_of(kid.pid)?, SIGSTOP);
    go(CONT, kid.pid, SIGSTOP)?;
    same!(stop_of(kid.pid)?, SIGSTOP);
    // An attached tracee stays with its tracer, whatever comes.
    ok!(kill(kid.pid, SIGCONT));
    let mut status = 0;
    same!(ok!(waitpid(kid.pid, &raw mut status, WNOHANG)), 0);
    same!(to_stop(CONT, kid.pid)?, SIGCONT);
    ok!(pt(DETACH, kid.pid, 0, 0));
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}
