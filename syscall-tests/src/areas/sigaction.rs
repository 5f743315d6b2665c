//! rt_sigaction(2) of signals that nobody has set, asked again and again as posix_spawn(3) does, while actions change.

use super::process::clone_on_stack;
use super::seccomp::{install, only};
use crate::harness::Outcome;
use crate::sys::{self, Map, PAGE, fork, raw};
use libc::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

cases![
    nobody_has_set_it,
    what_is_set_shows_at_once,
    the_default_keeps_its_flags,
    many_are_set_to_the_same,
    an_ignored_one_shows,
    a_handler_for_one_time_shows,
    the_default_does_what_it_did,
    a_default_that_ignores_discards,
    a_fork_has_what_was_set,
    a_vfork_has_its_own,
    a_process_that_shares_them_sets_them,
    a_thread_sets_them,
    after_a_thread_all_is_as_it_was_set,
    a_child_with_cleared_handlers,
    a_new_program_has_none,
    bad_numbers_and_sizes,
    bad_addresses,
    odd_addresses,
    memory_that_is_not_there_yet,
    a_filter_sees_each_call,
    a_tracer_sees_each_call,
];

/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
type Action = [u64; 4];

const NONE: Action = [0; 4];
/// Signals that no runtime library has set, with those that never change.
const FRESH: [i32; 8] = [SIGHUP, SIGINT, SIGUSR1, SIGCHLD, SIGKILL, SIGSTOP, 40, 64];
const RESTORER: u64 = 0x0400_0000;

/// Asks several times, from the same instruction; the answers must be one. An errno where it fails.
fn asked(signal: i32) -> Result<Action, String> {
    let mut first = None;
    for _ in 0..4 {
        let mut old = [!0; 5];
        let ret = unsafe { raw(SYS_rt_sigaction, [signal as usize, 0, old.as_mut_ptr() as usize, 8, 0, 0]) };
        same!(ret, 0);
        same!(old[4], !0);
        same!(*first.get_or_insert(old), old);
    }
    let [handler, flags, restorer, mask, _] = first.unwrap_or_default();
    Ok([handler, flags, restorer, mask])
}

/// Sets an action, and gives the one before.
fn set(signal: i32, new: Action) -> Result<Action, String> {
    let mut old = [!0; 4];
    let args = [signal as usize, new.as_ptr() as usize, old.as_mut_ptr() as usize, 8, 0, 0];
    same!(unsafe { raw(SYS_rt_sigaction, args) }, 0);
    Ok(old)
}

fn nobody_has_set_it() -> Outcome {
    for signal in FRESH {
        same!(asked(signal)?, NONE);
        // Nobody wants to know.
        same!(unsafe { raw(SYS_rt_sigaction, [signal as usize, 0, 0, 8, 0, 0]) }, 0);
    }
    Ok(())
}

fn what_is_set_shows_at_once() -> Outcome {
    let handler = [sys::count_handler as *const () as u64, RESTORER | SA_RESTART as u64, 0x1234, 1 << 3];
    for signal in [SIGHUP, SIGUSR1, 40, 64] {
        for _ in 0..3 {
            same!(asked(signal)?, NONE);
            same!(set(signal, handler)?, NONE);
            same!(asked(signal)?, handler);
            same!(asked(SIGUSR2)?, NONE);
            same!(set(signal, NONE)?, handler);
        }
    }
    Ok(())
}

fn the_default_keeps_its_flags() -> Outcome {
    for (signal, flags) in
        [(SIGHUP, RESTORER), (SIGUSR1, SA_RESTART as u64), (SIGCHLD, 0), (64, SA_NODEFER as u64)]
    {
        let default = [SIG_DFL as u64, flags, 0x5678, 1 << 9];
        same!(set(signal, default)?, NONE);
        same!(asked(signal)?, default);
        same!(set(signal, default)?, default);
        same!(set(signal, [0, 0, 0, 1])?, default);
        same!(asked(signal)?, [0, 0, 0, 1]);
        same!(set(signal, NONE)?, [0, 0, 0, 1]);
        same!(asked(signal)?, NONE);
    }
    // What has no meaning, and who cannot be blocked, are left out.
    let kept = [0, RESTORER, 7, !(1 << (SIGKILL - 1) | 1 << (SIGSTOP - 1))];
    same!(set(SIGUSR1, [0, RESTORER | 1 << 20 | 1 << 40, 7, !0])?, NONE);
    same!(asked(SIGUSR1)?, kept);
    Ok(())
}

fn many_are_set_to_the_same() -> Outcome {
    let all: Vec<i32> = (1..=64).filter(|s| ![SIGKILL, SIGSTOP].contains(s)).collect();
    let old: Vec<Action> = all.iter().map(|s| asked(*s)).collect::<Result<_, _>>()?;
    // As glibc does in a child that it spawns.
    for (signal, old) in all.iter().zip(&old) {
        same!(asked(*signal)?, *old);
        same!(set(*signal, [0, RESTORER, 0x99, 0])?, *old);
    }
    for signal in &all {
        same!(asked(*signal)?, [0, RESTORER, 0x99, 0]);
    }
    // Others in between, and each its own.
    for (n, signal) in (0..).zip(&all) {
        let handler = if n % 5 == 0 { 0x1000 } else { 0 };
        same!(set(*signal, [handler, RESTORER, 0x99, (n % 3) << 9])?, [0, RESTORER, 0x99, 0]);
    }
    for (n, signal) in (0..).zip(&all) {
        let handler = if n % 5 == 0 { 0x1000 } else { 0 };
        same!(asked(*signal)?, [handler, RESTORER, 0x99, (n % 3) << 9]);
    }
    for signal in [SIGKILL, SIGSTOP] {
        same!(asked(signal)?, NONE);
    }
    Ok(())
}

fn an_ignored_one_shows() -> Outcome {
    let ignored = [SIG_IGN as u64, 0, 0, 0];
    same!(set(SIGUSR1, ignored)?, NONE);
    same!(asked(SIGUSR1)?, ignored);
    ok!(raise(SIGUSR1));
    same!(set(SIGUSR1, NONE)?, ignored);
    same!(asked(SIGUSR1)?, NONE);
    sys::dies_of(SIGUSR1, || unsafe {
        raise(SIGUSR1);
    })
}

fn a_handler_for_one_time_shows() -> Outcome {
    sys::on_signal(SIGUSR1, sys::count_handler, SA_RESETHAND)?;
    let before = asked(SIGUSR1)?;
    same!(before[0], sys::count_handler as *const () as u64);
    ok!(raise(SIGUSR1));
    same!(sys::hits(), 1);
    same!(asked(SIGUSR1)?, [0, before[1], before[2], before[3]]);
    Ok(())
}

fn the_default_does_what_it_did() -> Outcome {
    for signal in [SIGUSR1, SIGTERM, 41] {
        sys::dies_of(signal, || unsafe {
            let _ = asked(signal);
            let _ = set(signal, [0, RESTORER | SA_RESTART as u64, 0x99, 0]);
            raise(signal);
        })?;
    }
    // An ignored one becomes deadly with its default.
    sys::dies_of(SIGUSR1, || unsafe {
        let _ = set(SIGUSR1, [SIG_IGN as u64, 0, 0, 0]);
        raise(SIGUSR1);
        let _ = set(SIGUSR1, [0, RESTORER, 0x99, 0]);
        raise(SIGUSR1);
    })
}

fn a_default_that_ignores_discards() -> Outcome {
    let ignoring = [SIGCHLD, SIGURG, SIGWINCH, SIGCONT];
    sys::block(&ignoring)?;
    for signal in ignoring {
        same!(asked(signal)?, NONE);
        ok!(raise(signal));
        want!(sys::pending(signal)?, "{signal} waits for the mask");
        same!(set(signal, [0, RESTORER, 0x99, 0])?, NONE);
        want!(!sys::pending(signal)?, "{signal} is gone");
        same!(asked(signal)?, [0, RESTORER, 0x99, 0]);
    }
    sys::block(&[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    same!(set(SIGUSR1, [0, RESTORER, 0x99, 0])?, NONE);
    want!(sys::pending(SIGUSR1)?, "a deadly one stays");
    Ok(())
}

fn a_fork_has_what_was_set() -> Outcome {
    let default = [0, RESTORER, 0x99, 0];
    same!(set(SIGHUP, default)?, NONE);
    same!(set(SIGUSR1, [0x1000, 0, 0, 0])?, NONE);
    fork(|| {
        same!(asked(SIGHUP)?, default);
        same!(asked(SIGUSR1)?, [0x1000, 0, 0, 0]);
        same!(asked(SIGUSR2)?, NONE);
        same!(set(SIGUSR2, default)?, NONE);
        same!(set(SIGHUP, NONE)?, default);
        same!(asked(SIGUSR2)?, default);
        same!(asked(SIGHUP)?, NONE);
        Ok(())
    })?
    .ok()?;
    same!(asked(SIGHUP)?, default);
    same!(asked(SIGUSR2)?, NONE);
    Ok(())
}

/// What a child on a stack of its own does, and what it found.
#[repr(C)]
struct Child {
    done: AtomicI32,
    go_on: AtomicI32,
    found: [Action; 3],
}

impl Child {
    fn new(alone: bool) -> Self {
        Self { done: AtomicI32::new(0), go_on: AtomicI32::new(i32::from(alone)), found: [[!0; 4]; 3] }
    }
}

/// Asks, sets, asks, and stays for as long as it is to.
extern "C" fn ask_and_set(arg: *mut c_void) -> i32 {
    let new: Action = [0, RESTORER, 0x77, 0];
    unsafe {
        let child: *mut Child = arg.cast();
        let found = (&raw mut (*child).found).cast::<Action>();
        let call = |new: *const Action, old: *mut Action| {
            raw(SYS_rt_sigaction, [SIGUSR1 as usize, new as usize, old as usize, 8, 0, 0]);
        };
        call(std::ptr::null(), found);
        call(&raw const new, found.wrapping_add(1));
        call(std::ptr::null(), found.wrapping_add(2));
        (*child).done.store(1, SeqCst);
        while (*child).go_on.load(SeqCst) == 0 {
            raw(SYS_sched_yield, [0; 6]);
        }
        raw(SYS_exit, [0; 6]);
    }
    0
}

fn a_vfork_has_its_own() -> Outcome {
    for _ in 0..3 {
        same!(asked(SIGUSR1)?, NONE);
        let mut child = Child::new(true);
        let flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
        let (pid, _stack) = clone_on_stack(ask_and_set, flags, (&raw mut child).cast())?;
        same!(sys::wait_status(pid)?, 0);
        same!(child.found, [NONE, NONE, [0, RESTORER, 0x77, 0]]);
        same!(asked(SIGUSR1)?, NONE);
    }
    Ok(())
}

fn a_process_that_shares_them_sets_them() -> Outcome {
    for first in [NONE, [0, RESTORER, 0x77, 0]] {
        same!(asked(SIGUSR1)?, first);
        let mut child = Child::new(false);
        let flags = CLONE_VM | CLONE_SIGHAND | SIGCHLD;
        let (pid, _stack) = clone_on_stack(ask_and_set, flags, (&raw mut child).cast())?;
        while child.done.load(SeqCst) == 0 {
            std::hint::spin_loop();
        }
        same!(asked(SIGUSR1)?, [0, RESTORER, 0x77, 0]);
        same!(asked(SIGUSR2)?, NONE);
        child.go_on.store(1, SeqCst);
        same!(sys::wait_status(pid)?, 0);
        same!(child.found, [first, first, [0, RESTORER, 0x77, 0]]);
        same!(asked(SIGUSR1)?, [0, RESTORER, 0x77, 0]);
    }
    Ok(())
}

fn a_thread_sets_them() -> Outcome {
    static TURN: AtomicI32 = AtomicI32::new(0);
    let wait = |turn: i32| {
        while TURN.load(SeqCst) != turn {
            std::hint::spin_loop();
        }
    };
    same!(asked(SIGUSR1)?, NONE);
    let other = std::thread::spawn(move || -> Outcome {
        for n in 0..20 {
            wait(2 * n + 1);
            same!(asked(SIGUSR2)?, [0, RESTORER, n as u64, 0]);
            set(SIGUSR1, [0, RESTORER, n as u64, 1])?;
            TURN.store(2 * n + 2, SeqCst);
        }
        Ok(())
    });
    for n in 0..20 {
        set(SIGUSR2, [0, RESTORER, n as u64, 0])?;
        TURN.store(2 * n + 1, SeqCst);
        // Without a call. The other one may have failed, and says so then.
        while TURN.load(SeqCst) != 2 * n + 2 && !other.is_finished() {
            std::hint::spin_loop();
        }
        if !other.is_finished() {
            same!(asked(SIGUSR1)?, [0, RESTORER, n as u64, 1]);
        }
    }
    other.join().map_err(|_| "the thread panicked".to_string())?
}

fn after_a_thread_all_is_as_it_was_set() -> Outcome {
    same!(asked(SIGUSR1)?, NONE);
    let thread = std::thread::spawn(|| -> Outcome {
        same!(set(SIGUSR1, [0, RESTORER, 3, 0])?, NONE);
        Ok(())
    });
    thread.join().map_err(|_| "the thread panicked".to_string())??;
    same!(asked(SIGUSR1)?, [0, RESTORER, 3, 0]);
    same!(set(SIGUSR1, NONE)?, [0, RESTORER, 3, 0]);
    same!(asked(SIGUSR1)?, NONE);
    fork(|| {
        same!(asked(SIGUSR1)?, NONE);
        same!(set(SIGUSR1, [0, RESTORER, 4, 0])?, NONE);
        same!(asked(SIGUSR1)?, [0, RESTORER, 4, 0]);
        Ok(())
    })?
    .ok()
}

fn a_child_with_cleared_handlers() -> Outcome {
    const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
    same!(set(SIGUSR1, [0, RESTORER, 3, 0])?, NONE);
    same!(set(SIGUSR2, [SIG_IGN as u64, RESTORER, 3, 0])?, NONE);
    let args = [CLONE_CLEAR_SIGHAND, 0, 0, 0, SIGCHLD as u64, 0, 0, 0];
    let pid = ok!(syscall(SYS_clone3, args.as_ptr(), size_of_val(&args))) as i32;
    if pid == 0 {
        let good = asked(SIGUSR1) == Ok(NONE) && asked(SIGUSR2) == Ok([SIG_IGN as u64, 0, 0, 0]);
        unsafe { _exit(i32::from(!good)) };
    }
    same!(sys::wait_status(pid)?, 0);
    same!(asked(SIGUSR1)?, [0, RESTORER, 3, 0]);
    Ok(())
}

fn a_new_program_has_none() -> Outcome {
    let (out, status) = sys::helper(&["actions", "10", "12", "40"], &[], || {
        same!(set(SIGUSR1, [0, RESTORER, 3, 1])?, NONE);
        same!(set(SIGUSR2, [SIG_IGN as u64, RESTORER, 3, 1])?, NONE);
        same!(set(40, [0x1000, RESTORER, 3, 1])?, NONE);
        Ok(())
    })?;
    same!(status, 0);
    same!(out, "[0, 0, 0, 0][1, 0, 0, 0][0, 0, 0, 0]");
    Ok(())
}

/// What the call gives for these arguments, several times.
fn answer(args: [usize; 4]) -> Result<isize, String> {
    let mut first = None;
    for _ in 0..4 {
        let ret = unsafe { raw(SYS_rt_sigaction, [args[0], args[1], args[2], args[3], 0, 0]) };
        same!(*first.get_or_insert(ret), ret);
    }
    Ok(first.unwrap_or_default())
}

fn bad_numbers_and_sizes() -> Outcome {
    let mut old = [7_u64; 4];
    let at = old.as_mut_ptr() as usize;
    let invalid = -(EINVAL as isize);
    for signal in [0, 65, 66, 128, 1 << 31, u32::MAX as usize, usize::MAX] {
        same!(answer([signal, 0, at, 8])?, invalid);
    }
    for size in [0, 4, 7, 9, 16, 128, 1 << 32 | 8, usize::MAX] {
        same!(answer([SIGUSR1 as usize, 0, at, size])?, invalid);
    }
    same!(old, [7; 4]);
    // Of a register that holds more than a number the upper half is of no account.
    same!(answer([1 << 32 | SIGUSR1 as usize, 0, at, 8])?, 0);
    same!(old, NONE);
    Ok(())
}

fn bad_addresses() -> Outcome {
    let fault = -(EFAULT as isize);
    let guarded = Map::guarded()?;
    let readable = Map::new(PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    let places = [
        1,
        8,
        guarded.at(PAGE) as usize,
        readable.at(0) as usize,
        0x7ffe_0000_0000,
        0x7fff_ffff_efe0,
        0x7fff_ffff_f000,
        1 << 47,
        1 << 48,
        1 << 63,
        usize::MAX - 31,
        usize::MAX - 7,
        usize::MAX,
    ];
    for place in places {
        for signal in [SIGUSR1, SIGKILL, 64] {
            same!(answer([signal as usize, 0, place, 8])?, fault);
        }
    }
    // What there is room for may be written before.
    for room in 1..32 {
        same!(answer([SIGUSR1 as usize, 0, guarded.at(PAGE - room) as usize, 8])?, fault);
    }
    // Not the place of the new action, which comes first.
    same!(answer([SIGUSR1 as usize, 8, 8, 8])?, fault);
    same!(asked(SIGUSR1)?, NONE);
    Ok(())
}

fn odd_addresses() -> Outcome {
    let map = Map::anon(2 * PAGE)?;
    for at in (0..40).chain(PAGE - 40..PAGE + 10) {
        for off in 0..2 * PAGE {
            map.set(off, 0xaa);
        }
        same!(unsafe { raw(SYS_rt_sigaction, [SIGUSR1 as usize, 0, map.at(at) as usize, 8, 0, 0]) }, 0);
        let zero = map.bytes().iter().filter(|b| **b == 0).count();
        same!(zero, 32);
        same!(map.bytes()[at..at + 32], [0; 32]);
    }
    Ok(())
}

fn memory_that_is_not_there_yet() -> Outcome {
    // Never touched, over the end of a page.
    let map = Map::anon(64 * PAGE)?;
    for page in (1..64).step_by(2) {
        same!(answer([SIGUSR1 as usize, 0, map.at(page * PAGE - 16) as usize, 8])?, 0);
    }
    // Shared with a child that must not see it, and of a file.
    let private = Map::anon(PAGE)?;
    private.set(0, 5);
    fork(|| {
        same!(answer([SIGUSR1 as usize, 0, private.at(0) as usize, 8])?, 0);
        same!(private.get(0), 0);
        Ok(())
    })?
    .ok()?;
    same!(private.get(0), 5);
    let file = sys::create("f")?;
    ok!(ftruncate(file.as_raw_fd(), PAGE as i64));
    same!(ok!(pwrite(file.as_raw_fd(), [9_u8; 64].as_ptr().cast(), 64, 0)), 64);
    let shared = Map::new(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file.as_raw_fd(), 0)?;
    same!(answer([SIGUSR1 as usize, 0, shared.at(0) as usize, 8])?, 0);
    let mut bytes = [1_u8; 40];
    same!(ok!(pread(file.as_raw_fd(), bytes.as_mut_ptr().cast(), 40, 0)), 40);
    same!(bytes[..32], [0; 32]);
    same!(bytes[32..], [9; 8]);
    // Beyond the end of the file.
    same!(answer([SIGUSR1 as usize, 0, shared.at(PAGE) as usize, 8])?, -(EFAULT as isize));
    Ok(())
}

fn a_filter_sees_each_call() -> Outcome {
    same!(asked(SIGUSR1)?, NONE);
    install(&only(SYS_rt_sigaction, SECCOMP_RET_ERRNO | 77))?;
    let mut old = NONE;
    same!(answer([SIGUSR1 as usize, 0, old.as_mut_ptr() as usize, 8])?, -77);
    Ok(())
}

fn a_tracer_sees_each_call() -> Outcome {
    same!(asked(SIGUSR1)?, NONE);
    let kid = fork(|| {
        ok!(ptrace(PTRACE_TRACEME, 0, 0, 0));
        ok!(raise(SIGSTOP));
        same!(asked(SIGUSR1)?, NONE);
        Ok(())
    })?;
    let mut status = kid.status()?;
    want!(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "{status:#x} says that it stops");
    ok!(ptrace(PTRACE_SETOPTIONS, kid.pid, 0, PTRACE_O_TRACESYSGOOD));
    let mut stops = 0;
    while WIFSTOPPED(status) {
        if WSTOPSIG(status) == SIGTRAP | 0x80 {
            let mut regs: user_regs_struct = unsafe { std::mem::zeroed() };
            ok!(ptrace(PTRACE_GETREGS, kid.pid, 0, &raw mut regs));
            stops += i32::from(regs.orig_rax == SYS_rt_sigaction as u64);
        }
        ok!(ptrace(PTRACE_SYSCALL, kid.pid, 0, 0));
        status = kid.status()?;
    }
    // Four times in and out.
    same!(stops, 8);
    same!(status, 0);
    Ok(())
}
