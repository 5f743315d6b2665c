//! System calls behind short instructions, as compilers and libraries write them: what handlers, tracers and the program
//! itself see of each instruction, whatever a sandbox does to come by the call.
//!
//! Nothing here names an instruction but a function's first by its address, since that would be a way into the midst of
//! what belongs together.

use crate::harness::Outcome;
use crate::sys::{self, HITS, Map, PAGE, fork, on_signal};
use crate::tracing::{
    ATTACH, CONT, DETACH, POKEDATA, STEP, go, peek, pt, regs, set_regs, stop_of, to_stop, tracee,
};
use libc::*;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize};

cases![
    calls_do_what_they_say,
    registers_agree_with_the_place,
    a_fault_has_its_own_place,
    a_fault_without_an_address,
    a_fault_of_another_thread_waits_for_nobody,
    a_page_that_comes_late,
    a_program_steps_itself,
    a_tracer_finds_the_file,
    a_tracer_steps_through,
    a_breakpoint_in_between,
    a_stop_at_any_time,
];

// Calls number `edx` three times a round for `rdi` rounds, of which each must give `rcx`; `rsi` points to a word. Returns
// zero, or the number of the round that had another result.
std::arch::global_asm!(
    "    .text",
    "    .balign 16",
    "    .globl straight_calls",
    "    .type straight_calls, @function",
    "straight_calls:",
    "    .cfi_startproc",
    "    push rbx",
    "    push rbp",
    "    push r12",
    "    push r13",
    "    push r15",
    "    mov r12, rdi",
    "    mov r13, rsi",
    "    mov ebp, edx",
    "    mov r15, rcx",
    "1:  mov ebx, r12d",
    "10: mov edi, ebx",
    "11: mov esi, ebx",
    "12: mov eax, ebp",
    "13: syscall",
    "14: cmp rax, r15",
    "    jne 3f",
    "20: mov eax, ebp",
    "21: mov rsi, [r13]",
    "22: syscall",
    "23: cmp rax, r15",
    "    jne 3f",
    "30: cmp dword ptr [rip + straight_zero], 0",
    "31: jne 2f",
    "32: mov eax, ebp",
    "33: syscall",
    "34: cmp rax, r15",
    "    jne 3f",
    "2:  dec r12",
    "    jnz 1b",
    "3:  mov rax, r12",
    "    pop r15",
    "    pop r13",
    "    pop r12",
    "    pop rbp",
    "    pop rbx",
    "40: ret",
    "    .cfi_endproc",
    "    .size straight_calls, . - straight_calls",
    "    .section .rodata.straight, \"a\"",
    "    .balign 4",
    "    .globl straight_offsets",
    "straight_offsets:",
    "    .long 10b - straight_calls, 11b - straight_calls, 12b - straight_calls, 13b - straight_calls",
    "    .long 14b - straight_calls, 20b - straight_calls, 21b - straight_calls, 22b - straight_calls",
    "    .long 23b - straight_calls, 30b - straight_calls, 31b - straight_calls, 32b - straight_calls",
    "    .long 33b - straight_calls, 34b - straight_calls, 40b - straight_calls",
    "    .globl straight_zero",
    "straight_zero:",
    "    .long 0",
    "    .text",
);

unsafe extern "C" {
    fn straight_calls(rounds: u64, word: *const u64, nr: u32, result: i64) -> u64;
    static straight_offsets: [u32; 15];
}

/// What stands at each of `straight_offsets`, named for the call that it belongs to.
const A: [usize; 5] = [0, 1, 2, 3, 4];
const B: [usize; 4] = [5, 6, 7, 8];
const C: [usize; 5] = [9, 10, 11, 12, 13];
const END: usize = 14;

static WORD: u64 = 0x1122_3344_5566_7788;

fn start() -> usize {
    straight_calls as *const () as usize
}

fn offset(which: usize) -> usize {
    unsafe { straight_offsets[which] as usize }
}

/// Which of the instructions with names stands at `rip`.
fn named(rip: usize) -> Option<usize> {
    (0..=END).find(|which| start() + offset(*which) == rip)
}

fn runs(rounds: u64, word: *const u64, nr: i64) -> Outcome {
    let want = unsafe { syscall(nr) };
    let left = unsafe { straight_calls(rounds, word, nr as u32, want) };
    want!(left == 0, "call {nr} gave something else, {left} rounds before the end");
    Ok(())
}

/// What is answered in other ways inside: from what the program may know, and by the kernel.
const NUMBERS: [i64; 2] = [SYS_getpid, SYS_getppid];

fn calls_do_what_they_say() -> Outcome {
    for nr in NUMBERS {
        runs(1000, &raw const WORD, nr)?;
    }
    // What the processor leaves in rcx, and what it leaves alone. Nobody counts on r11 and the flags, which compilers take
    // for lost: a call that needs no kernel inside gives others.
    let (mut rcx, mut rdx) = (0u64, 7u64);
    let mut next = 0u64;
    for nr in NUMBERS {
        unsafe {
            std::arch::asm!(
                "xor edi, edi",
                "mov esi, edi",
                "mov eax, {nr:e}",
                "syscall",
                "lea {next}, [rip]",
                nr = in(reg) nr as u32, next = out(reg) next,
                out("rax") _, out("rdi") _, out("rsi") _, inout("rdx") rdx, out("rcx") rcx, out("r11") _,
            );
        }
        same!(rcx, next - 7);
        same!(rdx, 7);
    }
    Ok(())
}

/// Whether registers are as they are when the thread is about to run the instruction at `rip` of the function.
fn agree(which: usize, at: &dyn Fn(i32) -> u64) -> bool {
    let (low, reg) = (|reg: i32| at(reg) as u32, at);
    let number = low(REG_RAX) == low(REG_RBP);
    let (first, second) = (low(REG_RDI) == low(REG_RBX), low(REG_RSI) == low(REG_RBX));
    let word = reg(REG_RSI) == LOADED.load(SeqCst);
    match which {
        1 => first,
        2 => first && second,
        3 => first && second && number,
        6 => number,
        7 => number && word,
        12 => number,
        4 | 8 | 13 => reg(REG_RAX) == reg(REG_R15),
        _ => true,
    }
}

/// Executable mappings at the start of a case.
static CODE: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
/// What the function finds in memory.
static LOADED: AtomicU64 = AtomicU64::new(WORD);
static WRONG: AtomicI64 = AtomicI64::new(-1);
/// Signals that found the thread in the function.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

fn note_code() -> Outcome {
    let maps = sys::slurp("/proc/self/maps")?;
    let mut at = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|prot| prot.contains('x'))) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).ok_or("maps")?;
        for end in [from, to] {
            let end = usize::from_str_radix(end, 16).map_err(|e| format!("{line}: {e}"))?;
            CODE[at].store(end, SeqCst);
            at += 1;
        }
    }
    Ok(())
}

fn is_code(rip: usize) -> bool {
    CODE.chunks(2).any(|pair| (pair[0].load(SeqCst)..pair[1].load(SeqCst)).contains(&rip))
}

extern "C" fn look(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    let regs = unsafe { &(*uc.cast::<ucontext_t>()).uc_mcontext.gregs };
    let at = |reg: i32| regs[reg as usize] as u64;
    let rip = at(REG_RIP) as usize;
    if (start()..start() + offset(END)).contains(&rip) {
        INSIDE.fetch_add(1, SeqCst);
    }
    let right = is_code(rip) && named(rip).is_none_or(|which| agree(which, &at));
    if !right {
        WRONG.store(rip as i64 - start() as i64, SeqCst);
    }
    HITS.fetch_add(1, SeqCst);
}

/// Signals as many as come, at any instruction: registers are those of the place, and the place is the program's.
fn registers_agree_with_the_place() -> Outcome {
    note_code()?;
    on_signal(SIGALRM, look, SA_RESTART)?;
    on_signal(SIGUSR1, look, SA_RESTART)?;
    let pid = ok!(getpid());
    let storm = fork(|| {
        while unsafe { kill(pid, SIGUSR1) } == 0 {}
        Ok(())
    })?;
    sys::tick(1)?;
    let mut done = Ok(());
    for _ in 0..2000 {
        for nr in NUMBERS {
            done = done.and_then(|()| runs(200, &raw const WORD, nr));
        }
        if INSIDE.load(SeqCst) > 1000 || done.is_err() || WRONG.load(SeqCst) != -1 {
            break;
        }
    }
    // A signal that comes while a page is fetched finds the thread at the load.
    let page = Map::anon(PAGE)?;
    LOADED.store(0, SeqCst);
    for _ in 0..4000 {
        ok!(madvise(page.ptr.cast(), PAGE, MADV_DONTNEED));
        done = done.and_then(|()| runs(1, page.ptr.cast(), SYS_getppid));
        if done.is_err() || WRONG.load(SeqCst) != -1 {
            break;
        }
    }
    sys::tick(0)?;
    ok!(kill(storm.pid, SIGKILL));
    storm.status()?;
    done?;
    let wrong = WRONG.load(SeqCst);
    want!(wrong == -1, "at {wrong:#x} of the function a handler found something else");
    want!(INSIDE.load(SeqCst) > 0, "no signal came while the function ran");
    Ok(())
}

static PLACES: [AtomicI64; 64] = [const { AtomicI64::new(-1) }; 64];

fn note(value: i64) {
    let free = PLACES.iter().find(|place| place.load(SeqCst) == -1);
    if let Some(place) = free {
        place.store(value, SeqCst);
    }
}

fn noted() -> Vec<i64> {
    PLACES.iter().map(|place| place.swap(-1, SeqCst)).take_while(|value| *value != -1).collect()
}

static PAGE_AT: AtomicUsize = AtomicUsize::new(0);

/// Notes where and how the fault came, and makes the page readable.
extern "C" fn mend(_: i32, info: *mut siginfo_t, uc: *mut c_void) {
    let regs = unsafe { &(*uc.cast::<ucontext_t>()).uc_mcontext.gregs };
    note(regs[REG_RIP as usize] - start() as i64);
    note(regs[REG_RAX as usize]);
    note(unsafe { (*info).si_addr() } as i64);
    note(regs[REG_RSI as usize] & 0xffff_ffff);
    unsafe { mprotect(PAGE_AT.load(SeqCst) as *mut c_void, PAGE, PROT_READ) };
}

fn a_fault_has_its_own_place() -> Outcome {
    on_signal(SIGSEGV, mend, 0)?;
    let page = Map::anon(PAGE)?;
    PAGE_AT.store(page.ptr as usize, SeqCst);
    // The first fault and a later one: what is done about the first must not show in the second.
    for nr in [SYS_getppid, SYS_getpid, SYS_getppid] {
        ok!(mprotect(page.ptr.cast(), PAGE, PROT_NONE));
        runs(3, page.ptr.cast(), nr)?;
        same!(noted(), [offset(B[1]) as i64, nr, page.ptr as i64, 3]);
    }
    Ok(())
}

/// Gives the load an address that there is.
extern "C" fn replace(_: i32, info: *mut siginfo_t, uc: *mut c_void) {
    let regs = unsafe { &mut (*uc.cast::<ucontext_t>()).uc_mcontext.gregs };
    note(regs[REG_RIP as usize] - start() as i64);
    note(regs[REG_RAX as usize]);
    note(unsafe { (*info).si_addr() } as i64);
    regs[REG_R13 as usize] = &raw const WORD as i64;
}

fn a_fault_without_an_address() -> Outcome {
    on_signal(SIGSEGV, replace, 0)?;
    for nr in NUMBERS {
        runs(3, (1u64 << 60) as *const u64, nr)?;
        same!(noted(), [offset(B[1]) as i64, nr, 0]);
    }
    Ok(())
}

/// A thread that stays in the function while another one faults there.
fn a_fault_of_another_thread_waits_for_nobody() -> Outcome {
    on_signal(SIGSEGV, mend, 0)?;
    let page = Map::anon(PAGE)?;
    PAGE_AT.store(page.ptr as usize, SeqCst);
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !end.load(SeqCst) {
                runs(100, &raw const WORD, SYS_getppid)?;
            }
            Ok(())
        });
        let mut mine = Ok(());
        for _ in 0..3 {
            let faulted = (|| {
                ok!(mprotect(page.ptr.cast(), PAGE, PROT_NONE));
                runs(3, page.ptr.cast(), SYS_getppid)?;
                same!(noted()[0], offset(B[1]) as i64);
                Ok(())
            })();
            mine = mine.and(faulted);
        }
        end.store(true, SeqCst);
        mine.and(other.join().map_err(|_| "the other thread panicked".to_owned())?)
    })
}

/// A page of a file that grew after it was mapped: the fault is nobody's, and the load is made after all.
fn a_page_that_comes_late() -> Outcome {
    let fd = sys::own(ok!(memfd_create(c"late".as_ptr(), 0)));
    for nr in NUMBERS {
        ok!(ftruncate(fd.as_raw_fd(), 0));
        let map = Map::new(PAGE, PROT_READ, MAP_SHARED, fd.as_raw_fd(), 0)?;
        ok!(ftruncate(fd.as_raw_fd(), PAGE as i64));
        runs(3, map.ptr.cast(), nr)?;
    }
    Ok(())
}

const TRAP_FLAG: i64 = 0x100;

/// Notes each instruction that has a name, and stops at the function's end.
extern "C" fn step(_: i32, _: *mut siginfo_t, uc: *mut c_void) {
    let regs = unsafe { &mut (*uc.cast::<ucontext_t>()).uc_mcontext.gregs };
    let at = |reg: i32| regs[reg as usize] as u64;
    if let Some(which) = named(at(REG_RIP) as usize) {
        note(if agree(which, &at) { which as i64 } else { 1000 + which as i64 });
        if which == END {
            regs[REG_EFL as usize] &= !TRAP_FLAG;
        }
    }
}

fn a_program_steps_itself() -> Outcome {
    on_signal(SIGTRAP, step, 0)?;
    for nr in NUMBERS {
        let want = unsafe { syscall(nr) };
        let left: u64;
        unsafe {
            std::arch::asm!(
                "pushf",
                "or dword ptr [rsp], 0x100",
                "popf",
                "call {f}",
                f = sym straight_calls,
                in("rdi") 1u64, in("rsi") &raw const WORD, in("rdx") nr, in("rcx") want,
                lateout("rax") left, clobber_abi("C"),
            );
        }
        same!(left, 0);
        // Whether there is a stop right after a call is not the same everywhere.
        let after = [A[4], B[3], C[4]].map(|which| which as i64);
        let seen: Vec<i64> = noted().into_iter().filter(|which| !after.contains(which)).collect();
        same!(seen, (0..=END as i64).filter(|which| !after.contains(which)).collect::<Vec<_>>());
    }
    Ok(())
}

/// The function as its file has it.
fn on_file() -> Result<Vec<u8>, String> {
    let maps = sys::slurp("/proc/self/maps")?;
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (from, to) = words[0].split_once('-').ok_or("maps")?;
        let hex = |text: &str| usize::from_str_radix(text, 16).map_err(|e| format!("{line}: {e}"));
        if (hex(from)?..hex(to)?).contains(&start()) {
            let file = std::fs::File::open("/proc/self/exe").map_err(|e| format!("open: {e}"))?;
            let mut bytes = vec![0; offset(END)];
            let at = start() - hex(from)? + hex(words[2])?;
            file.read_exact_at(&mut bytes, at as u64).map_err(|e| format!("read: {e}"))?;
            return Ok(bytes);
        }
    }
    Err("the function is in no mapping".to_owned())
}

/// A child that runs the function for ever.
fn runner() -> Result<sys::Kid, String> {
    fork(|| {
        loop {
            for nr in NUMBERS {
                runs(100, &raw const WORD, nr)?;
            }
        }
    })
}

fn in_memory(pid: i32) -> Result<Vec<u8>, String> {
    let mem = sys::open(&format!("/proc/{pid}/mem"), O_RDONLY)?;
    let mut bytes = vec![0; offset(END)];
    let n = ok!(pread(mem.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), start() as i64));
    same!(n as usize, bytes.len());
    Ok(bytes)
}

fn a_tracer_finds_the_file() -> Outcome {
    let file = on_file()?;
    let kid = runner()?;
    // Before it is traced, and then by words at any offset.
    same!(in_memory(kid.pid)?, file);
    ok!(pt(ATTACH, kid.pid, 0, 0));
    same!(stop_of(kid.pid)?, SIGSTOP);
    for at in 0..file.len() - 8 {
        let word = peek(kid.pid, start() + at)?;
        same!(word.to_le_bytes(), file[at..at + 8]);
    }
    same!(in_memory(kid.pid)?, file);
    ok!(kill(kid.pid, SIGKILL));
    kid.status()?;
    Ok(())
}

fn a_tracer_steps_through() -> Outcome {
    let kid = tracee(|| runs(1, &raw const WORD, SYS_getppid))?;
    let mut seen = Vec::new();
    while seen.last() != Some(&END) {
        same!(to_stop(STEP, kid.pid)?, SIGTRAP);
        seen.extend(named(regs(kid.pid)?.rip as usize));
    }
    same!(seen, (0..=END).collect::<Vec<_>>());
    go(CONT, kid.pid, 0)?;
    kid.ok()
}

fn a_breakpoint_in_between() -> Outcome {
    for which in [A[1], A[2], A[3], B[1], B[2], C[1], C[2], C[3]] {
        // One round that is not traced, so that whatever is done at a first call has been done.
        let kid = fork(|| {
            loop {
                runs(10, &raw const WORD, SYS_getppid)?;
            }
        })?;
        ok!(pt(ATTACH, kid.pid, 0, 0));
        same!(stop_of(kid.pid)?, SIGSTOP);
        let at = start() + offset(which);
        let old = peek(kid.pid, at)?;
        ok!(pt(POKEDATA, kid.pid, at, (old & !0xff | 0xcc) as usize));
        for _ in 0..3 {
            same!(to_stop(CONT, kid.pid)?, SIGTRAP);
            let mut now = regs(kid.pid)?;
            same!(now.rip as usize, at + 1);
            ok!(pt(POKEDATA, kid.pid, at, old as usize));
            now.rip -= 1;
            set_regs(kid.pid, &now)?;
            same!(to_stop(STEP, kid.pid)?, SIGTRAP);
            ok!(pt(POKEDATA, kid.pid, at, (old & !0xff | 0xcc) as usize));
        }
        ok!(kill(kid.pid, SIGKILL));
        kid.status()?;
    }
    Ok(())
}

/// Where a tracer that comes at any time finds a thread, and that the thread goes on rightly from there.
fn a_stop_at_any_time() -> Outcome {
    note_code()?;
    for _ in 0..40 {
        let kid = runner()?;
        ok!(pt(ATTACH, kid.pid, 0, 0));
        same!(stop_of(kid.pid)?, SIGSTOP);
        let now = regs(kid.pid)?;
        let vdso_or_code = is_code(now.rip as usize);
        want!(vdso_or_code, "the thread stopped at {:#x}, where no code is", now.rip);
        for _ in 0..20 {
            same!(to_stop(STEP, kid.pid)?, SIGTRAP);
            let rip = regs(kid.pid)?.rip as usize;
            want!(is_code(rip), "a step led to {rip:#x}, where no code is");
        }
        ok!(pt(DETACH, kid.pid, 0, 0));
        sys::sleep_ms(1);
        let mut status = 0;
        same!(ok!(waitpid(kid.pid, &raw mut status, WNOHANG)), 0);
        ok!(kill(kid.pid, SIGKILL));
        same!(kid.status()?, SIGKILL);
    }
    Ok(())
}
