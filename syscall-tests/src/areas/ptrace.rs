//! ptrace(2): attaching, stops, registers, memory, single steps.

use crate::harness::Outcome;
use crate::sys::{self, Map, PAGE, fork};
use crate::tracing::*;
use libc::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;

cases![
    a_signal_stops_a_tracee_and_can_be_suppressed,
    the_tracer_may_inject_another_signal,
    an_injected_signal_comes_from_the_tracer,
    ignored_signals_stop_a_tracee_too,
    blocked_signals_do_not_stop_a_tracee,
    traceme_twice_is_eperm,
    attach_stops_and_detach_lets_go,
    attach_of_oneself_or_a_missing_task,
    attach_of_a_traced_task_is_eperm,
    attach_needs_the_same_user,
    attach_of_one_that_is_not_dumpable_is_eperm,
    attach_of_a_stopped_process_sees_it_stopped,
    requests_on_a_running_tracee_are_esrch,
    requests_by_a_stranger_are_esrch,
    unknown_requests_are_eio,
    a_bad_signal_to_go_on_with_is_eio,
    detach_delivers_a_signal,
    kill_ends_a_tracing_stop,
    ptrace_kill_ends_the_tracee,
    the_tracer_dies_and_the_tracee_goes_on,
    group_stop_has_no_siginfo,
    seize_does_not_stop,
    seize_checks_its_arguments,
    interrupt_stops_a_seized_tracee,
    interrupt_and_listen_need_a_seize,
    listen_waits_for_the_end_of_the_group_stop,
    seized_group_stop_is_an_event,
    registers_can_be_read_and_set,
    bad_segments_and_bases_are_eio,
    privileged_flags_cannot_be_set,
    a_bad_instruction_pointer_is_a_segv,
    user_area_by_word,
    user_area_refuses_bad_places,
    general_register_set,
    register_set_lengths_and_notes,
    float_registers_can_be_read_and_set,
    extended_state_goes_round,
    extended_state_refuses_nonsense,
    arch_prctl_of_the_tracee,
    memory_can_be_peeked_and_poked,
    memory_across_a_page_boundary,
    memory_that_is_not_there_is_eio,
    read_only_private_memory_can_be_poked,
    a_poke_stays_in_its_process,
    read_only_shared_memory_cannot_be_poked,
    memory_without_access_can_be_peeked,
    a_breakpoint_in_text,
    int3_is_a_sigtrap_of_the_kernel,
    one_step_is_one_instruction,
    a_step_over_a_system_call,
    a_step_into_a_handler,
    proc_mem_reads_and_writes,
    proc_mem_of_a_stranger_is_eacces,
    tracer_pid_is_in_status,
    a_traced_child_is_waited_for_without_wuntraced,
    waitid_says_trapped,
];

fn a_signal_stops_a_tracee_and_can_be_suppressed() -> Outcome {
    let kid = tracee(|| {
        ok!(raise(SIGTERM));
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTERM);
    let info = siginfo(kid.pid)?;
    same!((info.si_signo, info.si_code), (SIGTERM, SI_TKILL));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

const SI_TKILL: i32 = -6;
const SI_KERNEL: i32 = 0x80;

fn the_tracer_may_inject_another_signal() -> Outcome {
    let kid = tracee(|| {
        ok!(raise(SIGTERM));
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTERM);
    go(CONT, kid.pid, SIGHUP)?;
    same!(change(kid.pid)?, SIGHUP);
    Ok(())
}

fn an_injected_signal_comes_from_the_tracer() -> Outcome {
    static SEEN: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);
    extern "C" fn handler(_: i32, info: *mut siginfo_t, _: *mut c_void) {
        let sender = unsafe { (*info).si_pid() };
        SEEN.store(if unsafe { (*info).si_code } == 0 { sender } else { -1 }, SeqCst);
    }
    let tracer = std::process::id() as i32;
    let kid = tracee(|| {
        sys::on_signal(SIGUSR2, handler, 0)?;
        ok!(raise(SIGUSR1));
        same!(SEEN.load(SeqCst), tracer);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGUSR1);
    go(CONT, kid.pid, SIGUSR2)?;
    kid.ok()
}

fn ignored_signals_stop_a_tracee_too() -> Outcome {
    let kid = tracee(|| {
        ok!(raise(SIGWINCH));
        unsafe { signal(SIGUSR1, SIG_IGN) };
        ok!(raise(SIGUSR1));
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGWINCH);
    go(CONT, kid.pid, SIGWINCH)?;
    same!(stop_of(kid.pid)?, SIGUSR1);
    go(CONT, kid.pid, SIGUSR1)?;
    kid.ok()
}

fn blocked_signals_do_not_stop_a_tracee() -> Outcome {
    let kid = tracee(|| {
        sys::block(&[SIGUSR1])?;
        ok!(raise(SIGUSR1));
        want!(sys::pending(SIGUSR1)?, "the signal is not pending");
        Ok(())
    })?;
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn traceme_twice_is_eperm() -> Outcome {
    let kid = tracee(|| {
        fails!(EPERM, pt(TRACEME, 0, 0, 0));
        Ok(())
    })?;
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

/// A child that sleeps until it is killed or a byte comes.
fn sleeper() -> Result<(sys::Kid, std::os::fd::OwnedFd), String> {
    let (rd, wr) = sys::pipe()?;
    let keep = wr.as_raw_fd();
    let kid = fork(|| {
        unsafe { close(keep) };
        sys::fd_read(&rd, 1).map(drop)
    })?;
    Ok((kid, wr))
}

fn attach_stops_and_detach_lets_go() -> Outcome {
    let (kid, wr) = sleeper()?;
    ok!(pt(ATTACH, kid.pid, 0, 0));
    same!(stop_of(kid.pid)?, SIGSTOP);
    ok!(pt(DETACH, kid.pid, 0, 0));
    fails!(ESRCH, pt(CONT, kid.pid, 0, 0));
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn attach_of_oneself_or_a_missing_task() -> Outcome {
    fails!(EPERM, pt(ATTACH, std::process::id() as i32, 0, 0));
    let gone = fork(|| Ok(()))?;
    let pid = gone.pid;
    gone.ok()?;
    fails!(ESRCH, pt(ATTACH, pid, 0, 0));
    fails!(ESRCH, pt(SEIZE, pid, 0, 0));
    fails!(ESRCH, pt(CONT, pid, 0, 0));
    Ok(())
}

fn attach_of_a_traced_task_is_eperm() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    fails!(EPERM, pt(ATTACH, kid.pid, 0, 0));
    fails!(EPERM, pt(SEIZE, kid.pid, 0, 0));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn attach_needs_the_same_user() -> Outcome {
    let (kid, wr) = sleeper()?;
    let pid = kid.pid;
    fork(|| {
        sys::drop_root()?;
        fails!(EPERM, pt(ATTACH, pid, 0, 0));
        fails!(EPERM, pt(SEIZE, pid, 0, 0));
        Ok(())
    })?
    .ok()?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn attach_of_one_that_is_not_dumpable_is_eperm() -> Outcome {
    fork(|| {
        sys::drop_root()?;
        let shared = Map::shared(PAGE)?;
        let kid = fork(|| {
            ok!(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
            shared.word(0).store(1, SeqCst);
            while shared.word(0).load(SeqCst) == 1 {
                sys::sleep_ms(1);
            }
            Ok(())
        })?;
        sys::eventually("the child is ready", || shared.word(0).load(SeqCst) == 1)?;
        fails!(EPERM, pt(ATTACH, kid.pid, 0, 0));
        shared.word(0).store(2, SeqCst);
        kid.ok()
    })?
    .ok()
}

fn attach_of_a_stopped_process_sees_it_stopped() -> Outcome {
    let (kid, wr) = sleeper()?;
    ok!(kill(kid.pid, SIGSTOP));
    let mut status = 0;
    same!(ok!(waitpid(kid.pid, &raw mut status, WUNTRACED)), kid.pid);
    ok!(pt(ATTACH, kid.pid, 0, 0));
    same!(stop_of(kid.pid)?, SIGSTOP);
    ok!(kill(kid.pid, SIGCONT));
    ok!(pt(DETACH, kid.pid, 0, 0));
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn requests_on_a_running_tracee_are_esrch() -> Outcome {
    let shared = Map::shared(PAGE)?;
    let kid = tracee(|| {
        while shared.word(0).load(SeqCst) == 0 {
            sys::sleep_ms(1);
        }
        Ok(())
    })?;
    go(CONT, kid.pid, 0)?;
    let mut word = 0u64;
    fails!(ESRCH, pt(PEEKDATA, kid.pid, shared.ptr as usize, &raw mut word as usize));
    fails!(ESRCH, pt(CONT, kid.pid, 0, 0));
    fails!(ESRCH, pt(SETOPTIONS, kid.pid, 0, 0));
    fails!(ESRCH, pt(DETACH, kid.pid, 0, 0));
    shared.word(0).store(1, SeqCst);
    kid.ok()
}

fn requests_by_a_stranger_are_esrch() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let pid = kid.pid;
    fork(|| {
        fails!(ESRCH, pt(CONT, pid, 0, 0));
        fails!(ESRCH, pt(INTERRUPT, pid, 0, 0));
        fails!(EPERM, pt(ATTACH, pid, 0, 0));
        Ok(())
    })?
    .ok()?;
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn unknown_requests_are_eio() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    fails!(EIO, pt(0x7777, kid.pid, 0, 0));
    fails!(EIO, pt(-1, kid.pid, 0, 0));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_bad_signal_to_go_on_with_is_eio() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    fails!(EIO, pt(CONT, kid.pid, 0, 65));
    fails!(EIO, pt(DETACH, kid.pid, 0, 1000));
    fails!(EIO, pt(STEP, kid.pid, 0, usize::MAX));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn detach_delivers_a_signal() -> Outcome {
    let kid = tracee(|| {
        ok!(raise(SIGUSR1));
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGUSR1);
    ok!(pt(DETACH, kid.pid, 0, SIGTERM as usize));
    same!(change(kid.pid)?, SIGTERM);
    Ok(())
}

fn kill_ends_a_tracing_stop() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    ok!(kill(kid.pid, SIGKILL));
    same!(change(kid.pid)?, SIGKILL);
    Ok(())
}

fn ptrace_kill_ends_the_tracee() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    ok!(pt(KILL, kid.pid, 0, 0));
    same!(change(kid.pid)?, SIGKILL);
    Ok(())
}

fn the_tracer_dies_and_the_tracee_goes_on() -> Outcome {
    let (kid, wr) = sleeper()?;
    let pid = kid.pid;
    fork(|| {
        ok!(pt(ATTACH, pid, 0, 0));
        same!(stop_of(pid)?, SIGSTOP);
        Ok(())
    })?
    .ok()?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn group_stop_has_no_siginfo() -> Outcome {
    let kid = tracee(|| {
        ok!(raise(SIGSTOP));
        Ok(())
    })?;
    // The first stop was the signal's; injected, it stops the group.
    go(CONT, kid.pid, SIGSTOP)?;
    same!(stop_of(kid.pid)?, SIGSTOP);
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    fails!(EINVAL, pt(GETSIGINFO, kid.pid, 0, &raw mut info as usize));
    same!(to_stop(CONT, kid.pid)?, SIGSTOP);
    same!(siginfo(kid.pid)?.si_signo, SIGSTOP);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

const EVENT_STOP: i32 = 128;

fn seize_does_not_stop() -> Outcome {
    let (kid, wr) = sleeper()?;
    ok!(pt(SEIZE, kid.pid, 0, 0));
    let mut status = 0;
    same!(ok!(waitpid(kid.pid, &raw mut status, WNOHANG | __WALL)), 0);
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn seize_checks_its_arguments() -> Outcome {
    let (kid, wr) = sleeper()?;
    fails!(EIO, pt(SEIZE, kid.pid, 1, 0));
    fails!(EIO, pt(SEIZE, kid.pid, 0, 1 << 30));
    ok!(pt(SEIZE, kid.pid, 0, 1));
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn interrupt_stops_a_seized_tracee() -> Outcome {
    let (kid, wr) = sleeper()?;
    ok!(pt(SEIZE, kid.pid, 0, 0));
    ok!(pt(INTERRUPT, kid.pid, 0, 0));
    same!(stop_of(kid.pid)?, SIGTRAP | EVENT_STOP << 8);
    let info = siginfo(kid.pid)?;
    same!((info.si_signo, info.si_code), (SIGTRAP, SIGTRAP | EVENT_STOP << 8));
    go(CONT, kid.pid, 0)?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn interrupt_and_listen_need_a_seize() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    fails!(EIO, pt(INTERRUPT, kid.pid, 0, 0));
    fails!(EIO, pt(LISTEN, kid.pid, 0, 0));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn seized_group_stop_is_an_event() -> Outcome {
    let (kid, wr) = sleeper()?;
    ok!(pt(SEIZE, kid.pid, 0, 0));
    ok!(kill(kid.pid, SIGTSTP));
    same!(stop_of(kid.pid)?, SIGTSTP);
    go(CONT, kid.pid, SIGTSTP)?;
    // The group of the case is orphaned, where SIGTSTP stops nobody: SIGSTOP does.
    ok!(kill(kid.pid, SIGSTOP));
    same!(stop_of(kid.pid)?, SIGSTOP);
    go(CONT, kid.pid, SIGSTOP)?;
    same!(stop_of(kid.pid)?, SIGSTOP | EVENT_STOP << 8);
    go(CONT, kid.pid, 0)?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn listen_waits_for_the_end_of_the_group_stop() -> Outcome {
    let (kid, wr) = sleeper()?;
    ok!(pt(SEIZE, kid.pid, 0, 0));
    ok!(kill(kid.pid, SIGSTOP));
    same!(stop_of(kid.pid)?, SIGSTOP);
    go(CONT, kid.pid, SIGSTOP)?;
    same!(stop_of(kid.pid)?, SIGSTOP | EVENT_STOP << 8);
    ok!(pt(LISTEN, kid.pid, 0, 0));
    // It listens, so it is not there for requests.
    let mut status = 0;
    same!(ok!(waitpid(kid.pid, &raw mut status, WNOHANG | __WALL)), 0);
    fails!(ESRCH, pt(CONT, kid.pid, 0, 0));
    ok!(kill(kid.pid, SIGCONT));
    same!(stop_of(kid.pid)?, SIGTRAP | EVENT_STOP << 8);
    go(CONT, kid.pid, 0)?;
    same!(stop_of(kid.pid)?, SIGCONT);
    go(CONT, kid.pid, 0)?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

/// Machine code in a page of its own.
fn code(bytes: &[u8]) -> Result<Map, String> {
    let map = Map::anon(PAGE)?;
    for (at, byte) in bytes.iter().enumerate() {
        map.set(at, *byte);
    }
    ok!(mprotect(map.ptr.cast(), PAGE, PROT_READ | PROT_EXEC));
    Ok(map)
}

fn call(map: &Map) -> u64 {
    let f: extern "C" fn() -> u64 = unsafe { std::mem::transmute(map.ptr) };
    f()
}

/// `int3; ret`
const INT3: &[u8] = &[0xcc, 0xc3];

fn registers_can_be_read_and_set() -> Outcome {
    let page = code(INT3)?;
    let start = page.ptr as u64;
    let kid = tracee(|| {
        same!(call(&page), 0x1122_3344_5566_7788);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTRAP);
    let mut regs = regs(kid.pid)?;
    same!(regs.rip, start + 1);
    same!((regs.cs, regs.ss), (0x33, 0x2b));
    same!(regs.orig_rax, u64::MAX);
    regs.rax = 0x1122_3344_5566_7788;
    set_regs(kid.pid, &regs)?;
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn bad_segments_and_bases_are_eio() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let good = regs(kid.pid)?;
    for (cs, ss) in [(0x10, good.ss), (0, good.ss), (good.cs, 0x18), (good.cs, 0)] {
        let bad = user_regs_struct { cs, ss, ..good };
        fails!(EIO, pt(SETREGS, kid.pid, 0, &raw const bad as usize));
    }
    for base in [1 << 63, 0x0000_8000_0000_0000, u64::MAX] {
        let bad = user_regs_struct { fs_base: base, ..good };
        fails!(EIO, pt(SETREGS, kid.pid, 0, &raw const bad as usize));
        let bad = user_regs_struct { gs_base: base, ..good };
        fails!(EIO, pt(SETREGS, kid.pid, 0, &raw const bad as usize));
    }
    set_regs(kid.pid, &good)?;
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn privileged_flags_cannot_be_set() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let good = regs(kid.pid)?;
    // IOPL, VM, VIF, VIP, ID and IF are not the tracer's.
    let mut all = good;
    all.eflags = good.eflags ^ (0x3000 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 21 | 0x200);
    set_regs(kid.pid, &all)?;
    same!(regs(kid.pid)?.eflags, good.eflags);
    all.eflags = good.eflags ^ 1;
    set_regs(kid.pid, &all)?;
    same!(regs(kid.pid)?.eflags, good.eflags ^ 1);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_bad_instruction_pointer_is_a_segv() -> Outcome {
    for rip in [0, 1 << 63, 0x0000_8000_0000_0000, 0xffff_ffff_ff60_0000] {
        let kid = tracee(|| Ok(()))?;
        let bad = user_regs_struct { rip, orig_rax: u64::MAX, ..regs(kid.pid)? };
        set_regs(kid.pid, &bad)?;
        same!(to_stop(CONT, kid.pid)?, SIGSEGV);
        ok!(kill(kid.pid, SIGKILL));
        same!(change(kid.pid)?, SIGKILL);
    }
    Ok(())
}

fn user_area_by_word() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let all = regs(kid.pid)?;
    let mut word = 0u64;
    ok!(pt(PEEKUSR, kid.pid, 16 * 8, &raw mut word as usize));
    same!(word, all.rip);
    ok!(pt(PEEKUSR, kid.pid, 19 * 8, &raw mut word as usize));
    same!(word, all.rsp);
    ok!(pt(POKEUSR, kid.pid, 5 * 8, 0x1234));
    same!(regs(kid.pid)?.rbx, 0x1234);
    ok!(pt(POKEUSR, kid.pid, 5 * 8, all.rbx as usize));
    // The last debug register, with nothing armed.
    ok!(pt(PEEKUSR, kid.pid, 848 + 56, &raw mut word as usize));
    same!(word, 0);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn user_area_refuses_bad_places() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let mut word = 0u64;
    let at = &raw mut word as usize;
    for bad in [1, 7, 928, 4096, usize::MAX & !7] {
        fails!(EIO, pt(PEEKUSR, kid.pid, bad, at));
        fails!(EIO, pt(POKEUSR, kid.pid, bad, 0));
    }
    // Readable, but nothing that can be set.
    ok!(pt(PEEKUSR, kid.pid, 300 & !7, at));
    fails!(EIO, pt(POKEUSR, kid.pid, 300 & !7, 0));
    fails!(EIO, pt(POKEUSR, kid.pid, 848 + 32, 0));
    fails!(EIO, pt(POKEUSR, kid.pid, 17 * 8, 0x10));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

const NT_PRSTATUS: usize = 1;
const NT_PRFPREG: usize = 2;
const NT_X86_XSTATE: usize = 0x202;

fn general_register_set() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let mut set: user_regs_struct = unsafe { std::mem::zeroed() };
    let mut v = iov(&mut set);
    ok!(pt(GETREGSET, kid.pid, NT_PRSTATUS, &raw mut v as usize));
    same!(v.iov_len, 27 * 8);
    same!(set.rip, regs(kid.pid)?.rip);
    set.rbx = 77;
    let mut v = iov(&mut set);
    ok!(pt(SETREGSET, kid.pid, NT_PRSTATUS, &raw mut v as usize));
    same!(regs(kid.pid)?.rbx, 77);
    ok!(kill(kid.pid, SIGKILL));
    same!(change(kid.pid)?, SIGKILL);
    Ok(())
}

fn register_set_lengths_and_notes() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let mut buf = [0u64; 2048];
    let base = buf.as_mut_ptr().cast();
    let mut v = iovec { iov_base: base, iov_len: 16 };
    ok!(pt(GETREGSET, kid.pid, NT_PRSTATUS, &raw mut v as usize));
    same!(v.iov_len, 16);
    let mut v = iovec { iov_base: base, iov_len: 4096 };
    ok!(pt(GETREGSET, kid.pid, NT_PRSTATUS, &raw mut v as usize));
    same!(v.iov_len, 216);
    let mut v = iovec { iov_base: base, iov_len: 12 };
    fails!(EINVAL, pt(GETREGSET, kid.pid, NT_PRSTATUS, &raw mut v as usize));
    let mut v = iovec { iov_base: base, iov_len: 4096 };
    fails!(EINVAL, pt(GETREGSET, kid.pid, 0x999, &raw mut v as usize));
    fails!(EFAULT, pt(GETREGSET, kid.pid, NT_PRSTATUS, 8));
    let mut v = iovec { iov_base: std::ptr::dangling_mut::<u64>().cast(), iov_len: 216 };
    fails!(EFAULT, pt(GETREGSET, kid.pid, NT_PRSTATUS, &raw mut v as usize));
    let mut v = iovec { iov_base: base, iov_len: 4096 };
    ok!(pt(GETREGSET, kid.pid, NT_PRFPREG, &raw mut v as usize));
    same!(v.iov_len, 512);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

/// `movdqa xmm3, [rdi]`-like work without the compiler in between: load, trap, store.
fn xmm_round(value: u128) -> u128 {
    let mut out = 0u128;
    unsafe {
        std::arch::asm!(
            "movdqu xmm3, [{a}]", "int3", "movdqu [{b}], xmm3",
            a = in(reg) &raw const value, b = in(reg) &raw mut out, out("xmm3") _,
        );
    }
    out
}

const OLD: u128 = 0x1111_2222_3333_4444_5555_6666_7777_8888;
const NEW: u128 = 0x9999_aaaa_bbbb_cccc_dddd_eeee_ffff_0000;

fn float_registers_can_be_read_and_set() -> Outcome {
    let kid = tracee(|| {
        same!(xmm_round(OLD), NEW);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTRAP);
    let mut fp = [0u8; 512];
    ok!(pt(GETFPREGS, kid.pid, 0, fp.as_mut_ptr() as usize));
    same!(fp[160 + 48..160 + 64], OLD.to_le_bytes());
    same!(u32::from_le_bytes([fp[24], fp[25], fp[26], fp[27]]), 0x1f80);
    fp[160 + 48..160 + 64].copy_from_slice(&NEW.to_le_bytes());
    ok!(pt(SETFPREGS, kid.pid, 0, fp.as_mut_ptr() as usize));
    // Bits that MXCSR does not have.
    fp[27] = 0xff;
    fails!(EINVAL, pt(SETFPREGS, kid.pid, 0, fp.as_mut_ptr() as usize));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn xstate(pid: i32) -> Result<Vec<u64>, String> {
    let mut buf = vec![0u64; 2048];
    let mut v = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() * 8 };
    ok!(pt(GETREGSET, pid, NT_X86_XSTATE, &raw mut v as usize));
    buf.truncate(v.iov_len / 8);
    Ok(buf)
}

fn set_xstate(pid: i32, state: &[u64]) -> i64 {
    let mut v = iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() * 8 };
    pt(SETREGSET, pid, NT_X86_XSTATE, &raw mut v as usize)
}

fn extended_state_goes_round() -> Outcome {
    let kid = tracee(|| {
        same!(xmm_round(OLD), NEW);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTRAP);
    let mut state = xstate(kid.pid)?;
    want!(state.len() * 8 >= 576, "{} bytes of extended state", state.len() * 8);
    let (low, high): (u32, u32);
    unsafe { std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    same!(state[58], u64::from(high) << 32 | u64::from(low));
    want!(state[64] & 2 != 0, "SSE is not in use: {:#x}", state[64]);
    let at = (160 + 48) / 8;
    same!(state[at], OLD as u64);
    state[at] = NEW as u64;
    state[at + 1] = (NEW >> 64) as u64;
    ok!(set_xstate(kid.pid, &state));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn extended_state_refuses_nonsense() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let good = xstate(kid.pid)?;
    fails!(EFAULT, set_xstate(kid.pid, &good[..64]));
    let mut bad = good.clone();
    bad[64] |= 1 << 62;
    fails!(EINVAL, set_xstate(kid.pid, &bad));
    let mut bad = good.clone();
    bad[65] = 1 << 63;
    fails!(EINVAL, set_xstate(kid.pid, &bad));
    let mut bad = good.clone();
    bad[3] |= 0xffff_0000;
    fails!(EINVAL, set_xstate(kid.pid, &bad));
    let mut bad = good.clone();
    bad[66] = 1;
    fails!(EINVAL, set_xstate(kid.pid, &bad));
    ok!(set_xstate(kid.pid, &good));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn arch_prctl_of_the_tracee() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let mut base = 0u64;
    ok!(pt(ARCH_PRCTL, kid.pid, &raw mut base as usize, 0x1003));
    same!(base, regs(kid.pid)?.fs_base);
    fails!(EPERM, pt(ARCH_PRCTL, kid.pid, usize::MAX, 0x1002));
    fails!(EINVAL, pt(ARCH_PRCTL, kid.pid, 0, 0x9999));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn memory_can_be_peeked_and_poked() -> Outcome {
    let map = Map::anon(PAGE)?;
    map.set(8, 0x5a);
    let at = map.ptr as usize;
    let kid = tracee(|| {
        same!(map.get(8), 0xa5);
        same!(map.get(9), 1);
        Ok(())
    })?;
    same!(peek(kid.pid, at + 8)?, 0x5a);
    // No alignment is asked for.
    same!(peek(kid.pid, at + 5)?, 0x5a << 24);
    ok!(pt(POKEDATA, kid.pid, at + 8, 0x1a5));
    same!(map.get(8), 0x5a);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn memory_across_a_page_boundary() -> Outcome {
    let map = Map::anon(2 * PAGE)?;
    let at = map.ptr as usize + PAGE - 4;
    let kid = tracee(|| {
        same!(map.get(PAGE - 1), 0x44);
        same!(map.get(PAGE), 0x55);
        Ok(())
    })?;
    ok!(pt(POKEDATA, kid.pid, at, 0x8877_6655_4433_2211));
    same!(peek(kid.pid, at)?, 0x8877_6655_4433_2211);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn memory_that_is_not_there_is_eio() -> Outcome {
    let map = Map::guarded()?;
    let at = map.ptr as usize;
    ok!(munmap(map.at(PAGE).cast(), PAGE));
    let kid = tracee(|| Ok(()))?;
    let mut word = 0u64;
    for bad in [0, at + PAGE, at + PAGE - 3, usize::MAX - 4096, 0xffff_8000_0000_0000] {
        fails!(EIO, pt(PEEKDATA, kid.pid, bad, &raw mut word as usize));
        fails!(EIO, pt(POKEDATA, kid.pid, bad, 0));
    }
    fails!(EFAULT, pt(PEEKDATA, kid.pid, at, 8));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn read_only_private_memory_can_be_poked() -> Outcome {
    sys::put("f", &[7u8; 4096])?;
    let fd = sys::open("f", O_RDONLY)?;
    let file = Map::new(PAGE, PROT_READ, MAP_PRIVATE, fd.as_raw_fd(), 0)?;
    let anon = Map::new(PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    let none = Map::new(PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    let kid = tracee(|| {
        same!((file.get(0), file.get(8)), (1, 7));
        same!(anon.get(0), 2);
        ok!(mprotect(none.ptr.cast(), PAGE, PROT_READ));
        same!(none.get(0), 3);
        // The protection is what it was.
        sys::dies_of(SIGSEGV, || file.set(0, 9))?;
        sys::dies_of(SIGSEGV, || anon.set(0, 9))
    })?;
    ok!(pt(POKEDATA, kid.pid, file.ptr as usize, 1));
    ok!(pt(POKEDATA, kid.pid, anon.ptr as usize, 2));
    ok!(pt(POKEDATA, kid.pid, none.ptr as usize, 3));
    same!(peek(kid.pid, file.ptr as usize)?, 1);
    ok!(pt(DETACH, kid.pid, 0, 0));
    kid.ok()?;
    same!(file.get(0), 7);
    same!(std::fs::read("f").map_err(|e| e.to_string())?, vec![7u8; 4096]);
    Ok(())
}

fn a_poke_stays_in_its_process() -> Outcome {
    // Text that parent and child share until it is written.
    let page = code(INT3)?;
    let kid = tracee(|| Ok(()))?;
    ok!(pt(POKEDATA, kid.pid, page.ptr as usize, 0x9090_9090_9090_9090));
    same!((page.get(0), page.get(1)), (0xcc, 0xc3));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn read_only_shared_memory_cannot_be_poked() -> Outcome {
    sys::put("f", &[7u8; 4096])?;
    let fd = sys::open("f", O_RDONLY)?;
    let file = Map::new(PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
    let kid = tracee(|| Ok(()))?;
    fails!(EIO, pt(POKEDATA, kid.pid, file.ptr as usize, 1));
    same!(peek(kid.pid, file.ptr as usize)? & 0xff, 7);
    go(CONT, kid.pid, 0)?;
    kid.ok()?;
    same!(file.get(0), 7);
    Ok(())
}

fn memory_without_access_can_be_peeked() -> Outcome {
    let map = Map::anon(PAGE)?;
    map.set(0, 0x42);
    ok!(mprotect(map.ptr.cast(), PAGE, PROT_NONE));
    let kid = tracee(|| sys::dies_of(SIGSEGV, || map.set(0, 1)))?;
    same!(peek(kid.pid, map.ptr as usize)? & 0xff, 0x42);
    ok!(pt(DETACH, kid.pid, 0, 0));
    kid.ok()
}

#[inline(never)]
extern "C" fn traced_function(x: u64) -> u64 {
    std::hint::black_box(x).wrapping_mul(3)
}

fn a_breakpoint_in_text() -> Outcome {
    let kid = tracee(|| {
        same!(std::hint::black_box(traced_function as extern "C" fn(u64) -> u64)(14), 42);
        same!(std::hint::black_box(traced_function as extern "C" fn(u64) -> u64)(5), 15);
        Ok(())
    })?;
    let at = traced_function as extern "C" fn(u64) -> u64 as usize;
    let old = peek(kid.pid, at)?;
    ok!(pt(POKEDATA, kid.pid, at, (old & !0xff | 0xcc) as usize));
    for argument in [14, 5] {
        same!(to_stop(CONT, kid.pid)?, SIGTRAP);
        let mut regs = regs(kid.pid)?;
        same!(regs.rip as usize, at + 1);
        same!(regs.rdi, argument);
        // Over the original instruction, and the breakpoint in again.
        ok!(pt(POKEDATA, kid.pid, at, old as usize));
        regs.rip -= 1;
        set_regs(kid.pid, &regs)?;
        same!(to_stop(STEP, kid.pid)?, SIGTRAP);
        same!(siginfo(kid.pid)?.si_code, TRAP_TRACE);
        ok!(pt(POKEDATA, kid.pid, at, (old & !0xff | 0xcc) as usize));
    }
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn int3_is_a_sigtrap_of_the_kernel() -> Outcome {
    let page = code(INT3)?;
    let kid = tracee(|| {
        call(&page);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTRAP);
    let info = siginfo(kid.pid)?;
    same!((info.si_signo, info.si_code), (SIGTRAP, SI_KERNEL));
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn one_step_is_one_instruction() -> Outcome {
    // int3; mov eax, 5; nop; nop; inc eax; ret
    let page = code(&[0xcc, 0xb8, 5, 0, 0, 0, 0x90, 0x90, 0xff, 0xc0, 0xc3])?;
    let start = page.ptr as u64;
    let kid = tracee(|| {
        same!(call(&page) & 0xffff_ffff, 6);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTRAP);
    for offset in [6, 7, 8, 10] {
        same!(to_stop(STEP, kid.pid)?, SIGTRAP);
        let now = regs(kid.pid)?;
        same!(now.rip - start, offset);
        same!(now.eflags & 0x100, 0);
        let info = siginfo(kid.pid)?;
        same!((info.si_code, unsafe { info.si_addr() } as u64), (TRAP_TRACE, now.rip));
    }
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_step_over_a_system_call() -> Outcome {
    // int3; mov eax, 39 (getpid); syscall; nop; ret
    let page = code(&[0xcc, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x90, 0xc3])?;
    let start = page.ptr as u64;
    let kid = tracee(|| {
        same!(call(&page) as i32, ok!(getpid()));
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGTRAP);
    for offset in [6, 8, 9] {
        same!(to_stop(STEP, kid.pid)?, SIGTRAP);
        same!(regs(kid.pid)?.rip - start, offset);
        if offset == 8 {
            same!(regs(kid.pid)?.rax as i32, kid.pid);
        }
    }
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_step_into_a_handler() -> Outcome {
    let kid = tracee(|| {
        sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
        ok!(raise(SIGUSR1));
        same!(sys::hits(), 1);
        Ok(())
    })?;
    same!(to_stop(CONT, kid.pid)?, SIGUSR1);
    go(STEP, kid.pid, SIGUSR1)?;
    same!(stop_of(kid.pid)?, SIGTRAP);
    let now = regs(kid.pid)?;
    same!(now.rip as usize, sys::count_handler as sys::Handler as usize);
    same!(now.rdi as i32, SIGUSR1);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn proc_mem_reads_and_writes() -> Outcome {
    let map = Map::anon(2 * PAGE)?;
    map.set(PAGE - 1, 0x77);
    let text = code(INT3)?;
    let (kid, wr) = {
        let (rd, wr) = sys::pipe()?;
        let kid = fork(|| {
            sys::fd_read(&rd, 1)?;
            same!((map.get(3), text.get(0)), (b'3', b'9'));
            Ok(())
        })?;
        (kid, wr)
    };
    let mem = sys::open(&format!("/proc/{}/mem", kid.pid), O_RDWR)?;
    let mut buf = [0u8; 2];
    let n = ok!(pread(mem.as_raw_fd(), buf.as_mut_ptr().cast(), 2, map.ptr as i64 + PAGE as i64 - 1));
    same!((n, buf), (2, [0x77, 0]));
    same!(ok!(pwrite(mem.as_raw_fd(), c"0123".as_ptr().cast(), 4, map.ptr as i64)), 4);
    // Against the protection, as a debugger needs it.
    same!(ok!(pwrite(mem.as_raw_fd(), c"9".as_ptr().cast(), 1, text.ptr as i64)), 1);
    fails!(EIO, pread(mem.as_raw_fd(), buf.as_mut_ptr().cast(), 2, 64));
    fails!(EIO, pwrite(mem.as_raw_fd(), buf.as_ptr().cast(), 2, 64));
    same!(ok!(lseek(mem.as_raw_fd(), map.ptr as i64, SEEK_SET)), map.ptr as i64);
    same!(sys::fd_read(&mem, 4)?, b"0123");
    fails!(EINVAL, lseek(mem.as_raw_fd(), 0, SEEK_END));
    sys::fd_write(&wr, b"x")?;
    kid.ok()?;
    same!((map.get(3), text.get(0)), (0, 0xcc));
    Ok(())
}

fn proc_mem_of_a_stranger_is_eacces() -> Outcome {
    let (kid, wr) = sleeper()?;
    let path = sys::c(&format!("/proc/{}/mem", kid.pid));
    fork(|| {
        sys::drop_root()?;
        fails!(EACCES, open(path.as_ptr(), O_RDONLY));
        Ok(())
    })?
    .ok()?;
    sys::fd_write(&wr, b"x")?;
    kid.ok()
}

fn tracer_pid_is_in_status() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    let text = sys::slurp(&format!("/proc/{}/status", kid.pid))?;
    let line = format!("TracerPid:\t{}\n", std::process::id());
    want!(text.contains(&line), "no {line:?} in {text}");
    want!(text.contains("State:\tt (tracing stop)\n"), "no tracing stop in {text}");
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_traced_child_is_waited_for_without_wuntraced() -> Outcome {
    let kid = tracee(|| Ok(()))?;
    // Its stop was taken by the wait before.
    let mut status = 0;
    same!(ok!(waitpid(kid.pid, &raw mut status, WNOHANG)), 0);
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn waitid_says_trapped() -> Outcome {
    let kid = tracee(|| {
        ok!(raise(SIGUSR1));
        Ok(())
    })?;
    go(CONT, kid.pid, 0)?;
    for flags in [WNOWAIT, 0] {
        let mut info: siginfo_t = unsafe { std::mem::zeroed() };
        ok!(waitid(P_PID, kid.pid as u32, &raw mut info, WSTOPPED | flags));
        same!((info.si_signo, info.si_code), (SIGCHLD, CLD_TRAPPED));
        same!(unsafe { (info.si_pid(), info.si_status()) }, (kid.pid, SIGUSR1));
    }
    go(CONT, kid.pid, 0)?;
    kid.ok()
}
