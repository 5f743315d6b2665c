//! What a signal handler finds and leaves: registers, the alternate stack, sigreturn(2).

use crate::harness::Outcome;
use crate::sys::{self, Map, on_signal};
use libc::*;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

cases![
    registers_survive_a_handler,
    vector_registers_survive_a_handler,
    handler_sees_and_changes_registers,
    handler_runs_on_the_alternate_stack,
    alternate_stack_rules,
    nested_handlers_return_in_order,
    red_zone_is_left_alone,
    forged_frame_kills_the_task_only,
    siglongjmp_like_escape_keeps_the_mask,
];

fn registers_survive_a_handler() -> Outcome {
    on_signal(SIGUSR1, sys::count_handler, 0)?;
    for i in 0..200u64 {
        let (mut a, mut b, mut c, mut d) = (i, i ^ 0x5555, !i, i << 32);
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") SYS_kill => _,
                in("rdi") getpid(), in("rsi") SIGUSR1,
                inout("r12") a, inout("r13") b, inout("r14") c, inout("r15") d,
                lateout("rcx") _, lateout("r11") _,
            );
        }
        same!((a, b, c, d), (i, i ^ 0x5555, !i, i << 32));
        (a, b, c, d) = (0, 0, 0, 0);
        let _ = (a, b, c, d);
    }
    same!(sys::hits(), 200);
    Ok(())
}

extern "C" fn clobber(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    unsafe {
        std::arch::asm!("pxor xmm0, xmm0", "pxor xmm7, xmm7", "pxor xmm15, xmm15", out("xmm0") _, out("xmm7") _, out("xmm15") _);
    }
}

fn vector_registers_survive_a_handler() -> Outcome {
    on_signal(SIGUSR1, clobber, 0)?;
    let want = [0x0123_4567_89ab_cdefu64, 0xfedc_ba98_7654_3210];
    let mut got = [[0u64; 2]; 3];
    unsafe {
        std::arch::asm!(
            "movdqu xmm0, [{w}]", "movdqu xmm7, [{w}]", "movdqu xmm15, [{w}]",
            "syscall",
            "movdqu [{g}], xmm0", "movdqu [{g} + 16], xmm7", "movdqu [{g} + 32], xmm15",
            w = in(reg) want.as_ptr(), g = in(reg) got.as_mut_ptr(),
            inlateout("rax") SYS_kill => _, in("rdi") getpid(), in("rsi") SIGUSR1,
            lateout("rcx") _, lateout("r11") _, out("xmm0") _, out("xmm7") _, out("xmm15") _,
        );
    }
    same!(got, [want; 3]);
    Ok(())
}

extern "C" fn edit(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    unsafe {
        let uc = uc.cast::<ucontext_t>();
        SEEN.store((*uc).uc_mcontext.gregs[REG_R12 as usize], SeqCst);
        (*uc).uc_mcontext.gregs[REG_R12 as usize] = 99;
    }
}

static SEEN: AtomicI64 = AtomicI64::new(0);

fn handler_sees_and_changes_registers() -> Outcome {
    on_signal(SIGUSR1, edit, 0)?;
    let mut r12 = 41i64;
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") SYS_kill => _, in("rdi") getpid(), in("rsi") SIGUSR1, inout("r12") r12,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    same!((SEEN.load(SeqCst), r12), (41, 99));
    Ok(())
}

static AT: AtomicUsize = AtomicUsize::new(0);
static FLAGS: AtomicI64 = AtomicI64::new(-1);

extern "C" fn note_stack(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    let here = 0u8;
    AT.store(&raw const here as usize, SeqCst);
    unsafe {
        let mut now: stack_t = std::mem::zeroed();
        sigaltstack(std::ptr::null(), &raw mut now);
        FLAGS.store(i64::from(now.ss_flags), SeqCst);
    }
}

fn alt(map: &Map) -> stack_t {
    stack_t { ss_sp: map.at(0).cast(), ss_flags: 0, ss_size: map.len }
}

fn handler_runs_on_the_alternate_stack() -> Outcome {
    let map = Map::anon(65536)?;
    ok!(sigaltstack(&alt(&map), std::ptr::null_mut()));
    on_signal(SIGUSR1, note_stack, SA_ONSTACK)?;
    ok!(raise(SIGUSR1));
    let at = AT.load(SeqCst);
    let (low, high) = (map.at(0) as usize, map.at(0) as usize + map.len);
    want!((low..high).contains(&at), "the handler ran at {at:#x}, the stack is {low:#x} to {high:#x}");
    same!(FLAGS.load(SeqCst), i64::from(SS_ONSTACK));
    on_signal(SIGUSR1, note_stack, 0)?;
    ok!(raise(SIGUSR1));
    want!(!(low..high).contains(&AT.load(SeqCst)), "the handler ran there without SA_ONSTACK");
    same!(FLAGS.load(SeqCst), 0);
    Ok(())
}

fn alternate_stack_rules() -> Outcome {
    let mut now: stack_t = unsafe { std::mem::zeroed() };
    let off = stack_t { ss_sp: std::ptr::null_mut(), ss_flags: SS_DISABLE, ss_size: 0 };
    ok!(sigaltstack(&raw const off, std::ptr::null_mut()));
    ok!(sigaltstack(std::ptr::null(), &raw mut now));
    same!(now.ss_flags, SS_DISABLE);
    let map = Map::anon(65536)?;
    let small = stack_t { ss_size: 100, ..alt(&map) };
    fails!(ENOMEM, sigaltstack(&raw const small, std::ptr::null_mut()));
    let bad = stack_t { ss_flags: 77, ..alt(&map) };
    fails!(EINVAL, sigaltstack(&raw const bad, std::ptr::null_mut()));
    fails!(EFAULT, sigaltstack(std::ptr::dangling::<stack_t>(), std::ptr::null_mut()));
    Ok(())
}

static ORDER: AtomicI64 = AtomicI64::new(0);

extern "C" fn outer(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    ORDER.store(ORDER.load(SeqCst) * 10 + 1, SeqCst);
    unsafe { raise(SIGUSR2) };
    ORDER.store(ORDER.load(SeqCst) * 10 + 3, SeqCst);
}

extern "C" fn inner(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    ORDER.store(ORDER.load(SeqCst) * 10 + 2, SeqCst);
}

fn nested_handlers_return_in_order() -> Outcome {
    on_signal(SIGUSR1, outer, 0)?;
    on_signal(SIGUSR2, inner, 0)?;
    ok!(raise(SIGUSR1));
    same!(ORDER.load(SeqCst), 123);
    Ok(())
}

fn red_zone_is_left_alone() -> Outcome {
    on_signal(SIGUSR1, sys::count_handler, 0)?;
    let mut value = 0u64;
    unsafe {
        std::arch::asm!(
            "mov qword ptr [rsp - 128], 77",
            "syscall",
            "mov {v}, [rsp - 128]",
            v = out(reg) value,
            inlateout("rax") SYS_kill => _, in("rdi") getpid(), in("rsi") SIGUSR1,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    same!(value, 77);
    Ok(())
}

extern "C" fn forge(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    unsafe {
        let uc = uc.cast::<ucontext_t>();
        // A non-canonical instruction pointer.
        (*uc).uc_mcontext.gregs[REG_RIP as usize] = 0x8000_0000_0000_0000u64 as i64;
    }
}

fn forged_frame_kills_the_task_only() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        let _ = on_signal(SIGUSR1, forge, 0);
        unsafe { raise(SIGUSR1) };
    })?;
    Ok(())
}

fn siglongjmp_like_escape_keeps_the_mask() -> Outcome {
    on_signal(SIGUSR1, sys::count_handler, 0)?;
    sys::block(&[SIGUSR2])?;
    ok!(raise(SIGUSR1));
    let now = sys::mask(SIG_BLOCK, &[])?;
    same!(unsafe { (sigismember(&raw const now, SIGUSR1), sigismember(&raw const now, SIGUSR2)) }, (0, 1));
    Ok(())
}
