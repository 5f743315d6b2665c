//! seccomp(2): strict mode, filters, actions, and the supervisor's descriptor.

use crate::harness::{Outcome, errno};
use crate::sys::{self, Kid, Map, fork};
use libc::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering::SeqCst};

cases![
    mode_is_zero_without_filters,
    strict_mode_kills_other_calls,
    strict_mode_allows_four_calls,
    strict_through_prctl,
    strict_refuses_arguments,
    filter_needs_no_new_privs_or_the_right,
    root_needs_no_no_new_privs,
    errno_action_fails_the_call,
    errno_action_is_cut_at_4095,
    errno_zero_returns_zero,
    kill_process_ends_the_process,
    kill_thread_ends_one_thread,
    kill_thread_of_a_single_thread_ends_the_process,
    trap_delivers_sigsys_with_its_fields,
    trap_leaves_the_number_in_rax,
    trap_with_sigsys_blocked_kills,
    trace_without_a_tracer_is_enosys,
    log_action_allows,
    unknown_action_kills_the_process,
    arguments_are_seen,
    instruction_pointer_is_seen,
    architecture_is_seen,
    most_restrictive_filter_wins,
    newest_of_equal_answers_wins,
    filters_pass_to_children,
    filters_pass_to_threads,
    filters_survive_exec,
    filters_are_counted_in_status,
    tsync_reaches_other_threads,
    tsync_brings_no_new_privs,
    tsync_fails_on_a_diverged_thread,
    action_availability,
    notification_sizes,
    bad_operations_and_flags,
    bad_programs_are_einval,
    length_limits,
    too_many_instructions_are_enomem,
    prctl_sets_filters,
    scratch_memory_and_arithmetic,
    unknown_calls_are_filtered_too,
    a_bad_pointer_is_efault,
    user_notif_without_listener_is_enosys,
    listener_answers_with_a_value,
    listener_answers_with_an_error,
    listener_lets_the_call_go_on,
    listener_is_polled,
    listener_gives_a_descriptor,
    listener_checks_ids,
    closed_listener_is_enosys,
    listener_hears_of_the_last_task,
    a_signal_takes_the_notification_back,
    one_listener_only,
];

const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_IP: u32 = 8;
const DATA_ARG0: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIF: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

fn insn(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

fn ld(at: u32) -> sock_filter {
    insn(BPF_LD | BPF_W | BPF_ABS, 0, 0, at)
}

fn ret(k: u32) -> sock_filter {
    insn(BPF_RET | BPF_K, 0, 0, k)
}

fn jeq(k: u32, jt: u8, jf: u8) -> sock_filter {
    insn(BPF_JMP | BPF_JEQ | BPF_K, jt, jf, k)
}

/// A filter that answers `answer` to call `nr` and allows the rest.
pub(super) fn only(nr: i64, answer: u32) -> Vec<sock_filter> {
    vec![ld(DATA_NR), jeq(nr as u32, 0, 1), ret(answer), ret(ALLOW)]
}

fn seccomp(op: u32, flags: u32, program: &[sock_filter]) -> i64 {
    let prog = sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    unsafe { syscall(SYS_seccomp, op, flags, &raw const prog) }
}

fn no_new_privs() -> Outcome {
    ok!(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    Ok(())
}

pub(super) fn install(program: &[sock_filter]) -> Outcome {
    no_new_privs()?;
    same!(ok!(seccomp(1, 0, program)), 0);
    Ok(())
}

fn raw(nr: i64) -> i64 {
    unsafe { syscall(nr) }
}

fn mode_is_zero_without_filters() -> Outcome {
    // A container's own filter may be there on the host: then this cannot be judged.
    if sys::slurp("/proc/self/status")?.contains("Seccomp:\t2") {
        skip!("a filter is in force already");
    }
    same!(ok!(prctl(PR_GET_SECCOMP, 0, 0, 0, 0)), 0);
    Ok(())
}

fn strict_mode_kills_other_calls() -> Outcome {
    sys::dies_of(SIGKILL, || unsafe {
        syscall(SYS_seccomp, 0, 0, 0);
        syscall(SYS_getppid);
        syscall(SYS_exit, 0);
    })
}

fn strict_mode_allows_four_calls() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    let kid = fork(|| unsafe {
        if syscall(SYS_seccomp, 0, 0, 0) != 0 {
            syscall(SYS_exit, 9);
        }
        syscall(SYS_write, wr.as_raw_fd(), c"x".as_ptr(), 1);
        let mut b = 0u8;
        syscall(SYS_read, rd.as_raw_fd(), &raw mut b, 1);
        syscall(SYS_exit, i32::from(b));
        Ok(())
    })?;
    same!(WEXITSTATUS(kid.status()?), i32::from(b'x'));
    Ok(())
}

fn strict_through_prctl() -> Outcome {
    sys::dies_of(SIGKILL, || unsafe {
        prctl(PR_SET_SECCOMP, 1, 0, 0, 0);
        syscall(SYS_getppid);
    })
}

fn strict_refuses_arguments() -> Outcome {
    fails!(EINVAL, syscall(SYS_seccomp, 0, 1, 0));
    fails!(EINVAL, syscall(SYS_seccomp, 0, 0, 8));
    fails!(EINVAL, prctl(PR_SET_SECCOMP, 7, 0, 0, 0));
    fork(|| {
        install(&[ret(ALLOW)])?;
        fails!(EINVAL, syscall(SYS_seccomp, 0, 0, 0));
        Ok(())
    })?
    .ok()
}

fn filter_needs_no_new_privs_or_the_right() -> Outcome {
    fork(|| {
        sys::drop_root()?;
        fails!(EACCES, seccomp(1, 0, &[ret(ALLOW)]));
        install(&[ret(ALLOW)])
    })?
    .ok()
}

fn root_needs_no_no_new_privs() -> Outcome {
    fork(|| {
        ok!(seccomp(1, 0, &[ret(ALLOW)]));
        same!(ok!(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)), 0);
        same!(ok!(prctl(PR_GET_SECCOMP, 0, 0, 0, 0)), 2);
        Ok(())
    })?
    .ok()
}

fn errno_action_fails_the_call() -> Outcome {
    install(&only(SYS_getppid, ERRNO | EBUSY as u32))?;
    fails!(EBUSY, raw(SYS_getppid));
    ok!(raw(SYS_getpid));
    Ok(())
}

fn errno_action_is_cut_at_4095() -> Outcome {
    install(&only(SYS_getppid, ERRNO | 0xffff))?;
    same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, -4095);
    Ok(())
}

fn errno_zero_returns_zero() -> Outcome {
    install(&only(SYS_getppid, ERRNO))?;
    same!(ok!(raw(SYS_getppid)), 0);
    Ok(())
}

fn kill_process_ends_the_process() -> Outcome {
    sys::dies_of(SIGSYS, || {
        let _ = install(&only(SYS_getppid, KILL_PROCESS));
        let t = std::thread::spawn(|| raw(SYS_getppid));
        let _ = t.join();
    })
}

fn kill_thread_ends_one_thread() -> Outcome {
    static STARTED: AtomicI32 = AtomicI32::new(0);
    install(&only(SYS_getppid, KILL_THREAD))?;
    std::thread::spawn(|| {
        STARTED.store(1, SeqCst);
        raw(SYS_getppid);
        STARTED.store(2, SeqCst);
    });
    sys::eventually("the thread is gone", || {
        STARTED.load(SeqCst) != 0 && std::fs::read_dir("/proc/self/task").is_ok_and(|d| d.count() == 1)
    })?;
    same!(STARTED.load(SeqCst), 1);
    Ok(())
}

fn kill_thread_of_a_single_thread_ends_the_process() -> Outcome {
    sys::dies_of(SIGSYS, || {
        let _ = install(&only(SYS_getppid, KILL_THREAD));
        raw(SYS_getppid);
    })
}

static SEEN: [AtomicI64; 6] = [const { AtomicI64::new(0) }; 6];
static RAX: AtomicI64 = AtomicI64::new(0);
static CALL_ADDR: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_sys(signo: i32, info: *mut siginfo_t, uc: *mut c_void) {
    unsafe {
        let words = info.cast::<i32>();
        SEEN[0].store(i64::from(signo), SeqCst);
        SEEN[1].store(i64::from((*info).si_code), SeqCst);
        SEEN[2].store(i64::from((*info).si_errno), SeqCst);
        CALL_ADDR.store(words.add(4).cast::<u64>().read_unaligned(), SeqCst);
        SEEN[3].store(i64::from(words.add(6).read()), SeqCst);
        SEEN[4].store(i64::from(words.add(7).cast::<u32>().read()), SeqCst);
        let gregs = &mut (*uc.cast::<ucontext_t>()).uc_mcontext.gregs;
        RAX.store(gregs[REG_RAX as usize], SeqCst);
        SEEN[5].store(gregs[REG_RIP as usize], SeqCst);
        gregs[REG_RAX as usize] = 4711;
    }
}

fn trap_delivers_sigsys_with_its_fields() -> Outcome {
    sys::on_signal(SIGSYS, on_sys, 0)?;
    install(&only(SYS_getppid, TRAP | 77))?;
    // The handler sets the value that the call returns.
    same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, 4711);
    let seen: Vec<i64> = SEEN.iter().map(|s| s.load(SeqCst)).collect();
    same!(&seen[..5], &[i64::from(SIGSYS), 1, 77, SYS_getppid, 0xc000_003e]);
    same!(CALL_ADDR.load(SeqCst) as i64, seen[5]);
    Ok(())
}

fn trap_leaves_the_number_in_rax() -> Outcome {
    sys::on_signal(SIGSYS, on_sys, 0)?;
    install(&only(SYS_getppid, TRAP))?;
    unsafe { sys::raw(SYS_getppid, [0; 6]) };
    same!(RAX.load(SeqCst), SYS_getppid);
    Ok(())
}

fn trap_with_sigsys_blocked_kills() -> Outcome {
    sys::dies_of(SIGSYS, || {
        let _ = sys::on_signal(SIGSYS, on_sys, 0);
        let _ = sys::block(&[SIGSYS]);
        let _ = install(&only(SYS_getppid, TRAP));
        raw(SYS_getppid);
    })
}

fn trace_without_a_tracer_is_enosys() -> Outcome {
    install(&only(SYS_getppid, TRACE | 5))?;
    fails!(ENOSYS, raw(SYS_getppid));
    Ok(())
}

fn log_action_allows() -> Outcome {
    install(&only(SYS_getppid, LOG))?;
    ok!(raw(SYS_getppid));
    Ok(())
}

fn unknown_action_kills_the_process() -> Outcome {
    sys::dies_of(SIGSYS, || {
        let _ = install(&only(SYS_getppid, 0x0001_0000));
        raw(SYS_getppid);
    })
}

fn arguments_are_seen() -> Outcome {
    // dup(77) fails with EXDEV, any other as ever.
    let program = [
        ld(DATA_NR),
        jeq(SYS_dup as u32, 0, 3),
        ld(DATA_ARG0),
        jeq(77, 0, 1),
        ret(ERRNO | EXDEV as u32),
        ret(ALLOW),
    ];
    install(&program)?;
    fails!(EXDEV, dup(77));
    fails!(EBADF, dup(78));
    // The high half of an argument is there too.
    let high = [
        ld(DATA_NR),
        jeq(SYS_close as u32, 0, 3),
        ld(DATA_ARG0 + 4),
        jeq(9, 0, 1),
        ret(ERRNO | 5),
        ret(ALLOW),
    ];
    ok!(seccomp(1, 0, &high));
    same!(unsafe { sys::raw(SYS_close, [9usize << 32 | 88, 0, 0, 0, 0, 0]) }, -5);
    same!(unsafe { sys::raw(SYS_close, [88, 0, 0, 0, 0, 0]) }, -(EBADF as isize));
    Ok(())
}

fn instruction_pointer_is_seen() -> Outcome {
    // The call of `sys::raw` is in this program's text, far below 4 GiB or not, but never at zero.
    let program =
        [ld(DATA_NR), jeq(SYS_getppid as u32, 0, 3), ld(DATA_IP), jeq(0, 1, 0), ret(ERRNO | 3), ret(ALLOW)];
    install(&program)?;
    same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, -3);
    Ok(())
}

fn architecture_is_seen() -> Outcome {
    install(&[ld(DATA_ARCH), jeq(0xc000_003e, 1, 0), ret(KILL_PROCESS), ret(ALLOW)])?;
    ok!(raw(SYS_getppid));
    Ok(())
}

fn most_restrictive_filter_wins() -> Outcome {
    install(&only(SYS_getppid, ERRNO | 7))?;
    ok!(seccomp(1, 0, &only(SYS_getppid, LOG)));
    same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, -7);
    sys::on_signal(SIGSYS, on_sys, 0)?;
    ok!(seccomp(1, 0, &only(SYS_getppid, TRAP)));
    same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, 4711);
    Ok(())
}

fn newest_of_equal_answers_wins() -> Outcome {
    install(&only(SYS_getppid, ERRNO | 7))?;
    ok!(seccomp(1, 0, &only(SYS_getppid, ERRNO | 8)));
    same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, -8);
    Ok(())
}

fn filters_pass_to_children() -> Outcome {
    install(&only(SYS_getppid, ERRNO | EBUSY as u32))?;
    fork(|| {
        fails!(EBUSY, raw(SYS_getppid));
        Ok(())
    })?
    .ok()
}

fn filters_pass_to_threads() -> Outcome {
    install(&only(SYS_getppid, ERRNO | 9))?;
    let got = std::thread::spawn(|| unsafe { sys::raw(SYS_getppid, [0; 6]) }).join();
    same!(got.map_err(|_| "no join".to_string())?, -9);
    Ok(())
}

fn filters_survive_exec() -> Outcome {
    let (out, status) = sys::helper(&["getppid"], &[], || install(&only(SYS_getppid, ERRNO | EBUSY as u32)))?;
    same!(status, 0);
    same!(out.as_str(), "EBUSY");
    Ok(())
}

fn status_line(name: &str) -> Result<i64, String> {
    let text = sys::slurp("/proc/self/status")?;
    let line = text.lines().find_map(|l| l.strip_prefix(name)).ok_or(format!("no {name} line"))?;
    line.trim().parse().map_err(|e| format!("{line:?}: {e}"))
}

fn filters_are_counted_in_status() -> Outcome {
    let before = status_line("Seccomp_filters:")?;
    install(&[ret(ALLOW)])?;
    ok!(seccomp(1, 0, &[ret(ALLOW)]));
    same!(status_line("Seccomp:")?, 2);
    same!(status_line("Seccomp_filters:")? - before, 2);
    same!(status_line("NoNewPrivs:")?, 1);
    Ok(())
}

/// A thread that waits, then does `f` and gives its value.
fn later<T: Send + 'static>(go: &'static AtomicI32, f: fn() -> T) -> std::thread::JoinHandle<T> {
    let thread = std::thread::spawn(move || {
        go.fetch_add(1, SeqCst);
        while go.load(SeqCst) < 100 {
            sys::sleep_ms(1);
        }
        f()
    });
    while go.load(SeqCst) == 0 {
        sys::sleep_ms(1);
    }
    thread
}

fn tsync_reaches_other_threads() -> Outcome {
    static GO: AtomicI32 = AtomicI32::new(0);
    let thread = later(&GO, || unsafe { sys::raw(SYS_getppid, [0; 6]) });
    no_new_privs()?;
    same!(ok!(seccomp(1, 1, &only(SYS_getppid, ERRNO | 11))), 0);
    GO.store(100, SeqCst);
    same!(thread.join().map_err(|_| "no join".to_string())?, -11);
    Ok(())
}

fn tsync_brings_no_new_privs() -> Outcome {
    static GO: AtomicI32 = AtomicI32::new(0);
    let thread = later(&GO, || unsafe { prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) });
    no_new_privs()?;
    ok!(seccomp(1, 1, &[ret(ALLOW)]));
    GO.store(100, SeqCst);
    same!(thread.join().map_err(|_| "no join".to_string())?, 1);
    Ok(())
}

fn tsync_fails_on_a_diverged_thread() -> Outcome {
    static GO: AtomicI32 = AtomicI32::new(0);
    static TID: AtomicI32 = AtomicI32::new(0);
    no_new_privs()?;
    let thread = std::thread::spawn(|| {
        seccomp(1, 0, &[ret(ALLOW)]);
        TID.store(sys::gettid(), SeqCst);
        while GO.load(SeqCst) == 0 {
            sys::sleep_ms(1);
        }
    });
    while TID.load(SeqCst) == 0 {
        sys::sleep_ms(1);
    }
    let got = ok!(seccomp(1, 1, &[ret(ALLOW)]));
    same!(got, i64::from(TID.load(SeqCst)));
    fails!(ESRCH, seccomp(1, 1 | 16, &[ret(ALLOW)]));
    GO.store(1, SeqCst);
    thread.join().map_err(|_| "no join".to_string())
}

fn action_availability() -> Outcome {
    for action in [KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, NOTIF, TRACE, LOG, ALLOW] {
        ok!(syscall(SYS_seccomp, 2, 0, &raw const action));
    }
    let unknown = 0x1234_0000u32;
    fails!(EOPNOTSUPP, syscall(SYS_seccomp, 2, 0, &raw const unknown));
    fails!(EINVAL, syscall(SYS_seccomp, 2, 1, &raw const unknown));
    fails!(EFAULT, syscall(SYS_seccomp, 2, 0, 8usize));
    Ok(())
}

fn notification_sizes() -> Outcome {
    let mut sizes = [0u16; 3];
    ok!(syscall(SYS_seccomp, 3, 0, sizes.as_mut_ptr()));
    same!(sizes, [80, 24, 64]);
    fails!(EINVAL, syscall(SYS_seccomp, 3, 1, sizes.as_mut_ptr()));
    Ok(())
}

fn bad_operations_and_flags() -> Outcome {
    no_new_privs()?;
    fails!(EINVAL, seccomp(99, 0, &[ret(ALLOW)]));
    fails!(EINVAL, seccomp(1, 1 << 20, &[ret(ALLOW)]));
    // A thread id and a descriptor cannot both be returned.
    fails!(EINVAL, seccomp(1, 1 | 8, &[ret(ALLOW)]));
    fails!(EINVAL, seccomp(1, 32, &[ret(ALLOW)]));
    Ok(())
}

fn bad_programs_are_einval() -> Outcome {
    no_new_privs()?;
    let k = BPF_K;
    let bad: &[&[sock_filter]] = &[
        &[ld(DATA_NR)],
        &[ld(2), ret(ALLOW)],
        &[ld(64), ret(ALLOW)],
        &[insn(BPF_LD | BPF_H | BPF_ABS, 0, 0, 0), ret(ALLOW)],
        &[insn(BPF_LD | BPF_W | BPF_IND, 0, 0, 0), ret(ALLOW)],
        &[insn(BPF_ALU | BPF_DIV | k, 0, 0, 0), ret(ALLOW)],
        &[insn(BPF_ALU | BPF_MOD | k, 0, 0, 3), ret(ALLOW)],
        &[insn(BPF_ALU | BPF_LSH | k, 0, 0, 32), ret(ALLOW)],
        &[insn(BPF_LD | BPF_MEM, 0, 0, 0), ret(ALLOW)],
        &[insn(BPF_ST, 0, 0, 16), ret(ALLOW)],
        &[insn(BPF_JMP | BPF_JA, 0, 0, 1), ret(ALLOW)],
        &[jeq(0, 0, 1), ret(ALLOW)],
        &[insn(BPF_JMP | BPF_JA, 0, 0, u32::MAX), ret(ALLOW)],
        &[insn(0xffff, 0, 0, 0), ret(ALLOW)],
        &[insn(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0), ret(ALLOW)],
    ];
    for (i, program) in bad.iter().enumerate() {
        let got = seccomp(1, 0, program);
        want!(got == -1 && errno() == EINVAL, "program {i} gave {got}, errno {}", errno());
    }
    Ok(())
}

fn length_limits() -> Outcome {
    no_new_privs()?;
    fails!(EINVAL, seccomp(1, 0, &[]));
    let mut long = vec![ret(ALLOW); 4097];
    fails!(EINVAL, seccomp(1, 0, &long));
    long.pop();
    ok!(seccomp(1, 0, &long));
    Ok(())
}

fn too_many_instructions_are_enomem() -> Outcome {
    no_new_privs()?;
    let long = vec![ret(ALLOW); 4096];
    let mut installed = 0;
    loop {
        let got = seccomp(1, 0, &long);
        if got != 0 {
            want!(errno() == ENOMEM, "errno {}", errno());
            break;
        }
        installed += 1;
        want!(installed < 20, "no limit");
    }
    // Counted as the kernel translates them: two a return.
    same!(installed, 3);
    Ok(())
}

fn prctl_sets_filters() -> Outcome {
    let program = only(SYS_getppid, ERRNO | EBUSY as u32);
    let prog = sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    no_new_privs()?;
    ok!(prctl(PR_SET_SECCOMP, 2, &raw const prog, 0, 0));
    same!(ok!(prctl(PR_GET_SECCOMP, 0, 0, 0, 0)), 2);
    fails!(EBUSY, raw(SYS_getppid));
    Ok(())
}

fn scratch_memory_and_arithmetic() -> Outcome {
    // errno = ((nr + 5) * 2 - nr) & 0xff, by way of scratch memory and the index register; for getppid alone.
    let program = [
        ld(DATA_NR),
        jeq(SYS_getppid as u32, 1, 0),
        ret(ALLOW),
        insn(BPF_ST, 0, 0, 3),
        insn(BPF_ALU | BPF_ADD | BPF_K, 0, 0, 5),
        insn(BPF_ALU | BPF_LSH | BPF_K, 0, 0, 1),
        insn(BPF_LDX | BPF_MEM, 0, 0, 3),
        insn(BPF_ALU | BPF_SUB | BPF_X, 0, 0, 0),
        insn(BPF_ALU | BPF_AND | BPF_K, 0, 0, 0xff),
        insn(BPF_ALU | BPF_OR | BPF_K, 0, 0, ERRNO),
        insn(BPF_RET | BPF_A, 0, 0, 0),
    ];
    install(&program)?;
    let want = -(((SYS_getppid + 5) * 2 - SYS_getppid) & 0xff) as isize;
    same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, want);
    Ok(())
}

fn unknown_calls_are_filtered_too() -> Outcome {
    install(&only(9999, ERRNO | EBUSY as u32))?;
    fails!(EBUSY, raw(9999));
    Ok(())
}

fn a_bad_pointer_is_efault() -> Outcome {
    no_new_privs()?;
    fails!(EFAULT, syscall(SYS_seccomp, 1, 0, 8usize));
    let prog = sock_fprog { len: 1, filter: 8usize as *mut sock_filter };
    fails!(EFAULT, syscall(SYS_seccomp, 1, 0, &raw const prog));
    Ok(())
}

fn user_notif_without_listener_is_enosys() -> Outcome {
    install(&only(SYS_getppid, NOTIF))?;
    fails!(ENOSYS, raw(SYS_getppid));
    Ok(())
}

// The supervisor's side.

const RECV: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const ID_VALID: u64 = 0x4008_2102;
const ADDFD: u64 = 0x4018_2103;

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Notif {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    ip: u64,
    args: [u64; 6],
}

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Resp {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

/// A child that installs a listener for `nr`, hands its descriptor over, and does `f` once told to.
fn supervised(nr: i64, f: impl FnOnce() -> Outcome) -> Result<(Kid, OwnedFd), String> {
    let (a, b) = sys::socketpair(SOCK_STREAM)?;
    let kid = fork(|| {
        no_new_privs()?;
        let fd = ok!(seccomp(1, 8, &only(nr, NOTIF))) as i32;
        send_fd(&b, fd)?;
        ok!(close(fd));
        f()
    })?;
    drop(b);
    let fd = recv_fd(&a)?;
    Ok((kid, fd))
}

fn send_fd(socket: &OwnedFd, fd: i32) -> Outcome {
    let mut byte = 0u8;
    let mut iov = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 4];
    let mut msg: msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = unsafe { CMSG_SPACE(4) } as usize;
    unsafe {
        let head = CMSG_FIRSTHDR(&raw const msg);
        (*head).cmsg_level = SOL_SOCKET;
        (*head).cmsg_type = SCM_RIGHTS;
        (*head).cmsg_len = CMSG_LEN(4) as usize;
        CMSG_DATA(head).cast::<i32>().write_unaligned(fd);
    }
    ok!(sendmsg(socket.as_raw_fd(), &raw const msg, 0));
    Ok(())
}

fn recv_fd(socket: &OwnedFd) -> Result<OwnedFd, String> {
    let mut byte = 0u8;
    let mut iov = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 4];
    let mut msg: msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = 32;
    ok!(recvmsg(socket.as_raw_fd(), &raw mut msg, 0));
    unsafe {
        let head = CMSG_FIRSTHDR(&raw const msg);
        if head.is_null() {
            return Err("no descriptor came".to_string());
        }
        Ok(OwnedFd::from_raw_fd(CMSG_DATA(head).cast::<i32>().read_unaligned()))
    }
}

fn receive(fd: &OwnedFd) -> Result<Notif, String> {
    let mut notif = Notif::default();
    ok!(ioctl(fd.as_raw_fd(), RECV, &raw mut notif));
    Ok(notif)
}

fn reply(fd: &OwnedFd, resp: Resp) -> i32 {
    unsafe { ioctl(fd.as_raw_fd(), SEND, &raw const resp) }
}

fn listener_answers_with_a_value() -> Outcome {
    let (kid, fd) = supervised(SYS_getppid, || {
        same!(unsafe { sys::raw(SYS_getppid, [11, 22, 0, 0, 0, 66]) }, 1234);
        Ok(())
    })?;
    let n = receive(&fd)?;
    same!(n.pid, kid.pid as u32);
    same!(i64::from(n.nr), SYS_getppid);
    same!((n.args[0], n.args[1], n.args[5]), (11, 22, 66));
    same!(n.arch, 0xc000_003e);
    same!(reply(&fd, Resp { id: n.id, val: 1234, ..Resp::default() }), 0);
    kid.ok()
}

fn listener_answers_with_an_error() -> Outcome {
    let (kid, fd) = supervised(SYS_getppid, || {
        fails!(EXDEV, raw(SYS_getppid));
        Ok(())
    })?;
    let n = receive(&fd)?;
    same!(reply(&fd, Resp { id: n.id, val: 0, error: -EXDEV, flags: 0 }), 0);
    kid.ok()
}

fn listener_lets_the_call_go_on() -> Outcome {
    let parent = unsafe { getpid() };
    let (kid, fd) = supervised(SYS_getppid, || {
        same!(unsafe { sys::raw(SYS_getppid, [0; 6]) }, parent as isize);
        Ok(())
    })?;
    let n = receive(&fd)?;
    fails!(EINVAL, reply(&fd, Resp { id: n.id, val: 1, error: 0, flags: 1 }));
    same!(reply(&fd, Resp { id: n.id, val: 0, error: 0, flags: 1 }), 0);
    kid.ok()
}

fn ready(fd: &OwnedFd, ms: i32) -> i16 {
    let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN | POLLOUT, revents: 0 };
    unsafe { poll(&raw mut p, 1, ms) };
    p.revents
}

fn listener_is_polled() -> Outcome {
    let (go_rd, go_wr) = sys::pipe()?;
    let (kid, fd) = supervised(SYS_getppid, || {
        sys::fd_read(&go_rd, 1)?;
        raw(SYS_getppid);
        Ok(())
    })?;
    same!(ready(&fd, 0) & (POLLIN | POLLOUT), 0);
    sys::fd_write(&go_wr, b"x")?;
    want!(ready(&fd, 10_000) & POLLIN != 0, "no readiness");
    let n = receive(&fd)?;
    same!(ready(&fd, 0) & (POLLIN | POLLOUT), POLLOUT);
    same!(reply(&fd, Resp { id: n.id, ..Resp::default() }), 0);
    kid.ok()
}

fn listener_gives_a_descriptor() -> Outcome {
    let (kid, fd) = supervised(SYS_getppid, || {
        let got = ok!(raw(SYS_getppid)) as i32;
        same!(got, 40);
        let mut buf = [0u8; 5];
        same!(ok!(read(got, buf.as_mut_ptr().cast(), 5)), 5);
        same!(&buf, b"hello");
        same!(ok!(fcntl(got, F_GETFD)), FD_CLOEXEC);
        Ok(())
    })?;
    let n = receive(&fd)?;
    sys::put("gift", b"hello")?;
    let gift = sys::open("gift", O_RDONLY)?;
    let mut add = AddFd { id: n.id, flags: 0, srcfd: gift.as_raw_fd() as u32, newfd: 40, newfd_flags: 0 };
    fails!(EINVAL, ioctl(fd.as_raw_fd(), ADDFD, &raw const add));
    add.flags = 1;
    add.newfd_flags = O_CLOEXEC as u32;
    same!(ok!(ioctl(fd.as_raw_fd(), ADDFD, &raw const add)), 40);
    same!(reply(&fd, Resp { id: n.id, val: 40, ..Resp::default() }), 0);
    kid.ok()
}

fn listener_checks_ids() -> Outcome {
    let (kid, fd) = supervised(SYS_getppid, || {
        raw(SYS_getppid);
        Ok(())
    })?;
    let n = receive(&fd)?;
    ok!(ioctl(fd.as_raw_fd(), ID_VALID, &raw const n.id));
    let wrong = n.id.wrapping_add(99);
    fails!(ENOENT, ioctl(fd.as_raw_fd(), ID_VALID, &raw const wrong));
    fails!(ENOENT, reply(&fd, Resp { id: wrong, ..Resp::default() }));
    let mut dirty = Notif { id: 1, ..Notif::default() };
    fails!(EINVAL, ioctl(fd.as_raw_fd(), RECV, &raw mut dirty));
    fails!(EINVAL, ioctl(fd.as_raw_fd(), 0x1234 as _, 0));
    same!(reply(&fd, Resp { id: n.id, ..Resp::default() }), 0);
    kid.ok()?;
    fails!(ENOENT, ioctl(fd.as_raw_fd(), ID_VALID, &raw const n.id));
    Ok(())
}

fn closed_listener_is_enosys() -> Outcome {
    let (kid, fd) = supervised(SYS_getppid, || {
        fails!(ENOSYS, raw(SYS_getppid));
        fails!(ENOSYS, raw(SYS_getppid));
        Ok(())
    })?;
    receive(&fd)?;
    drop(fd);
    kid.ok()
}

fn listener_hears_of_the_last_task() -> Outcome {
    let (kid, fd) = supervised(SYS_getppid, || Ok(()))?;
    kid.ok()?;
    sys::eventually("a hang-up", || ready(&fd, 0) & POLLHUP != 0)
}

fn a_signal_takes_the_notification_back() -> Outcome {
    let (kid, fd) = supervised(SYS_getppid, || {
        sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
        let got = unsafe { sys::raw(SYS_getppid, [0; 6]) };
        same!(got, -(EINTR as isize));
        same!(sys::hits(), 1);
        Ok(())
    })?;
    let n = receive(&fd)?;
    ok!(kill(kid.pid, SIGUSR1));
    sys::eventually("the notification is gone", || unsafe {
        ioctl(fd.as_raw_fd(), ID_VALID, &raw const n.id) != 0
    })?;
    kid.ok()
}

fn one_listener_only() -> Outcome {
    no_new_privs()?;
    let fd = ok!(seccomp(1, 8, &[ret(ALLOW)])) as i32;
    same!(ok!(fcntl(fd, F_GETFD)), FD_CLOEXEC);
    fails!(EBUSY, seccomp(1, 8, &[ret(ALLOW)]));
    ok!(seccomp(1, 0, &[ret(ALLOW)]));
    let _ = Map::anon(sys::PAGE)?;
    Ok(())
}
