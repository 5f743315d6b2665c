//! Signal frames at their limits: extended registers, overflowing alternate stacks, forged frames, long queues.

use crate::harness::Outcome;
use crate::sys::{self, Map, on_signal};
use libc::*;
use std::arch::asm;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

cases![
    wide_vector_registers_survive_a_handler,
    mask_and_zmm_registers_survive_a_handler,
    rounding_mode_survives_a_handler,
    handler_starts_with_the_default_rounding,
    handler_may_change_a_vector_register,
    frame_describes_its_extended_state,
    overflowing_alternate_stack_is_sigsegv,
    unmapped_alternate_stack_is_sigsegv,
    unmapped_stack_without_alternate_is_sigsegv,
    autodisarm_lets_handlers_move_stacks,
    forged_mxcsr_is_sigsegv,
    sigsegv_for_a_bad_image_finds_the_restored_registers,
    forged_code_segment_is_sigsegv,
    forged_state_pointer_is_sigsegv,
    forged_flags_are_cut,
    forged_address_faults_there,
    forged_state_header_does_no_harm,
    a_thousand_queued_signals_come_in_order,
    queued_values_are_not_merged,
    storm_of_signals_loses_no_other,
];

static SEEN: [AtomicI64; 4] = [const { AtomicI64::new(0) }; 4];

/// `kill(getpid(), signo)`, which leaves vector registers alone.
macro_rules! kill_keeping {
    ($signo:expr, $before:literal, $after:literal, $($operands:tt)*) => {
        asm!(
            $before, "syscall", $after,
            inlateout("rax") SYS_kill => _, in("rdi") getpid(), in("rsi") $signo,
            lateout("rcx") _, lateout("r11") _,
            $($operands)*
        )
    };
}

extern "C" fn clear_vectors(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    if is_x86_feature_detected!("avx") {
        unsafe { asm!("vzeroall", out("xmm0") _, out("xmm1") _, out("xmm15") _) };
    }
}

fn wide_vector_registers_survive_a_handler() -> Outcome {
    if !is_x86_feature_detected!("avx") {
        skip!("no AVX");
    }
    on_signal(SIGUSR1, clear_vectors, 0)?;
    let want = [1u64, 2, 3, 0xfedc_ba98_7654_3210];
    let mut got = [0u64; 4];
    unsafe {
        kill_keeping!(
            SIGUSR1, "vmovdqu ymm15, [{w}]", "vmovdqu [{g}], ymm15",
            w = in(reg) want.as_ptr(), g = in(reg) got.as_mut_ptr(), out("xmm15") _,
        );
    }
    same!(got, want);
    Ok(())
}

extern "C" fn clear_masks(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        asm!("kxorq k1, k1, k1", "vpxorq zmm31, zmm31, zmm31", "vpxorq zmm5, zmm5, zmm5", out("xmm5") _)
    };
}

fn mask_and_zmm_registers_survive_a_handler() -> Outcome {
    if !is_x86_feature_detected!("avx512f") || !is_x86_feature_detected!("avx512bw") {
        skip!("no AVX-512");
    }
    on_signal(SIGUSR1, clear_masks, 0)?;
    let want: [u64; 8] = std::array::from_fn(|i| 0x0101_0101_0101_0101 * (i as u64 + 1));
    let (mut high, mut low) = ([0u64; 8], [0u64; 8]);
    let mask = 0x1234_5678_9abc_def0u64;
    let mut got_mask = 0u64;
    unsafe {
        asm!(
            "vmovdqu64 zmm31, [{w}]", "vmovdqu64 zmm5, [{w}]", "kmovq k1, {m}",
            "syscall",
            "vmovdqu64 [{h}], zmm31", "vmovdqu64 [{l}], zmm5", "kmovq {g}, k1",
            w = in(reg) want.as_ptr(), h = in(reg) high.as_mut_ptr(), l = in(reg) low.as_mut_ptr(),
            m = in(reg) mask, g = out(reg) got_mask,
            inlateout("rax") SYS_kill => _, in("rdi") getpid(), in("rsi") SIGUSR1,
            lateout("rcx") _, lateout("r11") _, out("xmm5") _,
        );
    }
    same!((high, low, got_mask), (want, want, mask));
    Ok(())
}

fn mxcsr() -> u32 {
    let mut value = 0u32;
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value) };
    value
}

fn set_mxcsr(value: u32) {
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value) };
}

extern "C" fn note_and_change_mxcsr(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    SEEN[0].store(i64::from(mxcsr()), SeqCst);
    set_mxcsr(0x1f80 | 0x4000);
}

fn rounding_mode_survives_a_handler() -> Outcome {
    on_signal(SIGUSR1, note_and_change_mxcsr, 0)?;
    set_mxcsr(0x1f80 | 0x6000);
    ok!(kill(getpid(), SIGUSR1));
    let after = mxcsr();
    set_mxcsr(0x1f80);
    same!(after & 0x6000, 0x6000);
    Ok(())
}

fn handler_starts_with_the_default_rounding() -> Outcome {
    on_signal(SIGUSR1, note_and_change_mxcsr, 0)?;
    set_mxcsr(0x1f80 | 0x6000);
    ok!(kill(getpid(), SIGUSR1));
    set_mxcsr(0x1f80);
    same!(SEEN[0].load(SeqCst) & 0x6000, 0);
    Ok(())
}

/// The frame's FXSAVE area; `xmm0` is at byte 160.
unsafe fn fpstate(uc: *mut c_void) -> *mut u8 {
    unsafe { (*uc.cast::<ucontext_t>()).uc_mcontext.fpregs.cast() }
}

extern "C" fn write_xmm3(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    unsafe { fpstate(uc).add(160 + 3 * 16).cast::<u64>().write_unaligned(0x4242) };
}

fn handler_may_change_a_vector_register() -> Outcome {
    on_signal(SIGUSR1, write_xmm3, 0)?;
    let mut got = 0u64;
    unsafe {
        kill_keeping!(SIGUSR1, "pxor xmm3, xmm3", "movq {g}, xmm3", g = lateout(reg) got, out("xmm3") _,);
    }
    same!(got, 0x4242);
    Ok(())
}

extern "C" fn note_magic(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    unsafe {
        let state = fpstate(uc);
        let magic1 = state.add(464).cast::<u32>().read();
        let size = state.add(468).cast::<u32>().read();
        SEEN[0].store(i64::from(magic1), SeqCst);
        SEEN[1].store(i64::from(size), SeqCst);
        if magic1 == 0x4650_5853 {
            SEEN[2].store(i64::from(state.add(size as usize - 4).cast::<u32>().read()), SeqCst);
        }
        SEEN[3].store((*uc.cast::<ucontext_t>()).uc_flags as i64, SeqCst);
    }
}

fn frame_describes_its_extended_state() -> Outcome {
    on_signal(SIGUSR1, note_magic, 0)?;
    ok!(kill(getpid(), SIGUSR1));
    same!(SEEN[0].load(SeqCst), 0x4650_5853);
    same!(SEEN[2].load(SeqCst), 0x4650_5845);
    // Extended state, and a stack segment that is restored.
    same!(SEEN[3].load(SeqCst) & 7, 7);
    Ok(())
}

fn alternate(at: *mut u8, size: usize, flags: i32) -> Outcome {
    let stack = stack_t { ss_sp: at.cast(), ss_flags: flags, ss_size: size };
    ok!(sigaltstack(&raw const stack, std::ptr::null_mut()));
    Ok(())
}

extern "C" fn again(signo: i32, _: *mut siginfo_t, _: *mut c_void) {
    unsafe { kill(getpid(), signo) };
}

fn overflowing_alternate_stack_is_sigsegv() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        plain_sigsegv();
        let Ok(map) = Map::anon(64 << 10) else { return };
        let _ = alternate(map.at(0), map.len, 0);
        let _ = on_signal(SIGUSR1, again, SA_ONSTACK | SA_NODEFER);
        unsafe { kill(getpid(), SIGUSR1) };
    })
}

fn unmapped_alternate_stack_is_sigsegv() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        plain_sigsegv();
        let Ok(map) = Map::new(64 << 10, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) else { return };
        let _ = alternate(map.at(0), map.len, 0);
        let _ = on_signal(SIGUSR1, sys::count_handler, SA_ONSTACK);
        unsafe { kill(getpid(), SIGUSR1) };
    })
}

fn unmapped_stack_without_alternate_is_sigsegv() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        plain_sigsegv();
        let _ = on_signal(SIGUSR1, sys::count_handler, 0);
        unsafe {
            asm!(
                "mov rsp, 8", "syscall", "ud2",
                in("rax") SYS_kill, in("rdi") getpid(), in("rsi") SIGUSR1, options(noreturn)
            );
        }
    })
}

extern "C" fn note_stack(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    let mut now: stack_t = unsafe { std::mem::zeroed() };
    unsafe { sigaltstack(std::ptr::null(), &raw mut now) };
    SEEN[0].store(i64::from(now.ss_flags), SeqCst);
    SEEN[1].store(i64::from(unsafe { (*uc.cast::<ucontext_t>()).uc_stack.ss_flags }), SeqCst);
}

fn autodisarm_lets_handlers_move_stacks() -> Outcome {
    const AUTODISARM: i32 = 1 << 31;
    let map = Map::anon(64 << 10)?;
    alternate(map.at(0), map.len, AUTODISARM)?;
    on_signal(SIGUSR1, note_stack, SA_ONSTACK)?;
    ok!(kill(getpid(), SIGUSR1));
    same!(SEEN[0].load(SeqCst) as i32, SS_DISABLE);
    let mut now: stack_t = unsafe { std::mem::zeroed() };
    ok!(sigaltstack(std::ptr::null(), &raw mut now));
    same!((now.ss_sp.cast::<u8>(), now.ss_flags), (map.at(0), AUTODISARM));
    Ok(())
}

/// Takes away the handler that the language's runtime has for stack overflows.
fn plain_sigsegv() {
    unsafe { signal(SIGSEGV, SIG_DFL) };
}

type Forge = unsafe fn(*mut ucontext_t);

static FORGE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn forge(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    unsafe {
        let forge: Forge = std::mem::transmute(FORGE.load(SeqCst));
        forge(uc.cast());
    }
}

fn forged(how: Forge) -> i32 {
    plain_sigsegv();
    FORGE.store(how as usize, SeqCst);
    let _ = on_signal(SIGUSR1, forge, 0);
    unsafe { kill(getpid(), SIGUSR1) }
}

fn forged_mxcsr_is_sigsegv() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        forged(|uc| unsafe { fpstate(uc.cast()).add(24).cast::<u32>().write(0xffff_ffff) });
    })
}

fn sigsegv_for_a_bad_image_finds_the_restored_registers() -> Outcome {
    // The handler returns, and the program goes on where the signal had come.
    FORGE.store(
        (|uc: *mut ucontext_t| unsafe { fpstate(uc.cast()).add(24).cast::<u32>().write(0xffff_ffff) })
            as Forge as usize,
        SeqCst,
    );
    on_signal(SIGSEGV, sys::count_handler, 0)?;
    on_signal(SIGUSR1, forge, 0)?;
    ok!(kill(getpid(), SIGUSR1));
    same!(sys::hits(), 1);
    Ok(())
}

fn forged_code_segment_is_sigsegv() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        forged(|uc| unsafe { (*uc).uc_mcontext.gregs[REG_CSGSFS as usize] = 0x10 });
    })
}

fn forged_state_pointer_is_sigsegv() -> Outcome {
    for bad in [8usize, 0x8000_0000_0000, usize::MAX & !63] {
        static BAD: AtomicUsize = AtomicUsize::new(0);
        BAD.store(bad, SeqCst);
        sys::dies_of(SIGSEGV, || {
            forged(|uc| unsafe { (*uc).uc_mcontext.fpregs = BAD.load(SeqCst) as *mut _ });
        })?;
    }
    Ok(())
}

fn forged_flags_are_cut() -> Outcome {
    // I/O privilege, virtual mode, nested task: not the application's to set. The direction flag is.
    forged(|uc| unsafe { (*uc).uc_mcontext.gregs[REG_EFL as usize] |= 0x0003_7000 | 0x0018_0000 });
    let flags: u64;
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    same!(flags & 0x0002_7000, 0);
    want!(flags & 0x200 != 0, "interrupts are off: {flags:#x}");
    Ok(())
}

fn forged_address_faults_there() -> Outcome {
    for bad in [0x8000_0000_0000_0000u64 as i64, 8] {
        static BAD: AtomicI64 = AtomicI64::new(0);
        BAD.store(bad, SeqCst);
        sys::dies_of(SIGSEGV, || {
            forged(|uc| unsafe { (*uc).uc_mcontext.gregs[REG_RIP as usize] = BAD.load(SeqCst) });
        })?;
    }
    Ok(())
}

fn forged_state_header_does_no_harm() -> Outcome {
    // Feature bits that do not exist, and a compacted format: either the state is refused or the bits do not count.
    let status = sys::status_of(|| {
        forged(|uc| unsafe {
            let header = fpstate(uc.cast()).add(512).cast::<u64>();
            header.write_unaligned(u64::MAX);
            header.add(1).write_unaligned(u64::MAX);
        });
    })?;
    want!(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV), "status {status:#x}");
    Ok(())
}

fn queue(signo: i32, value: usize) -> i32 {
    unsafe { sigqueue(getpid(), signo, sigval { sival_ptr: value as *mut c_void }) }
}

fn a_thousand_queued_signals_come_in_order() -> Outcome {
    let signo = SIGRTMIN() + 3;
    sys::block(&[signo])?;
    for i in 0..1000 {
        ok!(queue(signo, i));
    }
    let set = sys::sigset(&[signo]);
    for i in 0..1000 {
        let mut info: siginfo_t = unsafe { std::mem::zeroed() };
        ok!(sigwaitinfo(&raw const set, &raw mut info));
        same!(unsafe { info.si_value().sival_ptr } as usize, i);
        same!(info.si_code, SI_QUEUE);
    }
    want!(!sys::pending(signo)?, "still pending");
    Ok(())
}

fn queued_values_are_not_merged() -> Outcome {
    static SUM: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn add(_: i32, info: *mut siginfo_t, _: *mut c_void) {
        SUM.fetch_add(unsafe { (*info).si_value().sival_ptr } as usize, SeqCst);
    }
    let signo = SIGRTMIN() + 1;
    on_signal(signo, add, 0)?;
    sys::block(&[signo])?;
    for i in 1..=100 {
        ok!(queue(signo, i));
    }
    sys::mask(SIG_UNBLOCK, &[signo])?;
    same!(SUM.load(SeqCst), 5050);
    Ok(())
}

fn storm_of_signals_loses_no_other() -> Outcome {
    on_signal(SIGUSR1, sys::count_handler, 0)?;
    let signo = SIGRTMIN();
    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn other(_: i32, _: *mut siginfo_t, _: *mut c_void) {
        OTHERS.fetch_add(1, SeqCst);
    }
    on_signal(signo, other, 0)?;
    let me = unsafe { getpid() };
    let kid = sys::fork(|| {
        for i in 0..2000 {
            ok!(kill(me, SIGUSR1));
            if i % 20 == 0 {
                ok!(sigqueue(me, SIGRTMIN(), sigval { sival_ptr: std::ptr::null_mut() }));
            }
        }
        Ok(())
    })?;
    sys::eventually("every queued signal", || OTHERS.load(SeqCst) == 100)?;
    kid.ok()?;
    want!(sys::hits() > 0, "no ordinary signal came");
    Ok(())
}
