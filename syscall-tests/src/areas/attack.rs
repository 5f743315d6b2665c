//! Attacks on the kernel from inside: malformed programs, huge argument lists, signal storms, hostile tracers.

use crate::harness::{Outcome, errno};
use crate::sys::{self, Map, PAGE, fork};
use crate::tracing::*;
use libc::*;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;

cases![
    elf_headers_that_are_none,
    elf_interpreters_that_are_none,
    elf_segments_that_do_not_fit,
    elf_bytes_flipped_at_random,
    elf_interpreter_is_itself,
    an_empty_argv_gets_a_name,
    a_long_argument_is_e2big,
    many_arguments_are_e2big,
    a_million_arguments_are_bounded,
    script_chains_end,
    signal_storm_between_processes,
    signal_queue_is_bounded,
    alternate_stack_overflow_is_a_segv,
    nested_alternate_stacks_overflow,
    forged_frames_by_the_hundred,
    seize_races_with_exec,
    attach_races_with_exit,
    registers_set_at_random,
    a_spoilt_vdso_is_ones_own,
    a_thread_that_hides_its_number_can_be_killed,
    stepping_oneself_over_a_call_ends,
];

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

/// A small program that ends with 7, as one loadable segment of a 64-bit executable.
fn program() -> Vec<u8> {
    let mut out = vec![0u8; 120];
    out[..4].copy_from_slice(b"\x7fELF");
    out[4..8].copy_from_slice(&[2, 1, 1, 0]);
    put16(&mut out, 16, 2);
    put16(&mut out, 18, 62);
    put32(&mut out, 20, 1);
    put64(&mut out, 24, 0x40_0078);
    put64(&mut out, 32, 64);
    put16(&mut out, 52, 64);
    put16(&mut out, 54, 56);
    put16(&mut out, 56, 1);
    put32(&mut out, 64, PT_LOAD);
    put32(&mut out, 68, 5);
    put64(&mut out, 64 + 16, 0x40_0000);
    put64(&mut out, 64 + 24, 0x40_0000);
    put64(&mut out, 64 + 48, 0x1000);
    // mov edi, 7; mov eax, 60; syscall
    out.extend([0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    let len = out.len() as u64;
    put64(&mut out, 64 + 32, len);
    put64(&mut out, 64 + 40, len);
    out
}

fn put16(out: &mut [u8], at: usize, v: u16) {
    out[at..at + 2].copy_from_slice(&v.to_le_bytes());
}
fn put32(out: &mut [u8], at: usize, v: u32) {
    out[at..at + 4].copy_from_slice(&v.to_le_bytes());
}
fn put64(out: &mut [u8], at: usize, v: u64) {
    out[at..at + 8].copy_from_slice(&v.to_le_bytes());
}

fn install(name: &str, bytes: &[u8]) -> Outcome {
    sys::put(name, bytes)?;
    ok!(chmod(sys::c(name).as_ptr(), 0o755));
    Ok(())
}

/// How executing a file ends: the wait status, or minus the errno of `execve`.
fn end_of(name: &str) -> Result<i32, String> {
    let path = sys::c(name);
    let failed = Map::shared(PAGE)?;
    let status = sys::status_of(|| unsafe {
        let argv = [path.as_ptr(), std::ptr::null()];
        execv(path.as_ptr(), argv.as_ptr());
        failed.word(0).store(errno(), SeqCst);
        _exit(0);
    })?;
    let failed = failed.word(0).load(SeqCst);
    Ok(if failed == 0 { status } else { -failed })
}

fn ends_with(bytes: &[u8], want: i32) -> Outcome {
    install("prog", bytes)?;
    let end = end_of("prog")?;
    want!(end == want, "the program ends with {end:#x}, expected {want:#x}");
    Ok(())
}

/// What is spoiled, and how.
type Edit = (&'static str, fn(&mut Vec<u8>));

fn elf_headers_that_are_none() -> Outcome {
    let good = program();
    ends_with(&good, 7 << 8)?;
    let edits: &[Edit] = &[
        ("magic", |b| b[3] = b'G'),
        ("cut", |b| b.truncate(40)),
        ("relocatable object", |b| put16(b, 16, 1)),
        ("core", |b| put16(b, 16, 4)),
        ("another machine", |b| put16(b, 18, 3)),
        ("program header size", |b| put16(b, 54, 32)),
        ("no program headers", |b| put16(b, 56, 0)),
        ("too many program headers", |b| put16(b, 56, 65535)),
        ("program headers past the end", |b| put64(b, 32, 1 << 40)),
        ("negative program header offset", |b| put64(b, 32, u64::MAX - 10)),
    ];
    for (what, edit) in edits {
        let mut bad = good.clone();
        edit(&mut bad);
        install("prog", &bad)?;
        let end = end_of("prog")?;
        let fine = end == -ENOEXEC || end == -EIO || end == -EINVAL;
        want!(fine, "{what}: ends with {end:#x}");
    }
    Ok(())
}

/// The program with a second header that asks for the interpreter of `text` bytes.
fn with_interpreter(text: &[u8], size: u64) -> Vec<u8> {
    let mut out = program();
    let code = out.split_off(120);
    put16(&mut out, 56, 2);
    out.extend([0; 56]);
    let at = out.len() as u64 + code.len() as u64;
    put32(&mut out, 120, PT_INTERP);
    put32(&mut out, 124, 4);
    put64(&mut out, 128, at);
    put64(&mut out, 152, size);
    put64(&mut out, 160, size);
    out.extend(code);
    out.extend(text);
    put64(&mut out, 24, 0x40_00b0);
    out
}

fn elf_interpreters_that_are_none() -> Outcome {
    std::fs::create_dir("dir").map_err(|e| e.to_string())?;
    sys::put("plain", b"x")?;
    let cases: &[(&[u8], u64, i32)] = &[
        (b"missing\0", 8, ENOENT),
        (b"unterminated", 12, ENOEXEC),
        (b"\0", 1, ENOEXEC),
        (b"x\0", 1 << 20, ENOEXEC),
        (b"dir\0", 4, EACCES),
        (b"plain\0", 6, EACCES),
        (b"plain/x\0", 8, ENOTDIR),
    ];
    for (text, size, want) in cases {
        install("prog", &with_interpreter(text, *size))?;
        let end = end_of("prog")?;
        let text = String::from_utf8_lossy(text);
        want!(end == -want, "interpreter {text:?}: ends with {end:#x}, expected errno {want}");
    }
    Ok(())
}

/// Whether an end is a refusal, or the death of the task alone.
fn is_contained(end: i32) -> bool {
    let refused = [-ENOEXEC, -ENOMEM, -EINVAL, -EIO, -ELIBBAD, -EFAULT].contains(&end);
    let dead = end > 0 && [SIGSEGV, SIGKILL, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS].contains(&(end & 0x7f));
    refused || dead || (end >= 0 && end & 0x7f == 0)
}

fn elf_segments_that_do_not_fit() -> Outcome {
    let good = program();
    let edits: &[Edit] = &[
        ("more in the file than in memory", |b| put64(b, 64 + 40, 8)),
        ("memory that wraps", |b| put64(b, 64 + 40, u64::MAX - 4096)),
        ("more memory than there is", |b| put64(b, 64 + 40, 1 << 60)),
        ("an address of the kernel", |b| put64(b, 64 + 16, 0xffff_8000_0000_0000)),
        ("an address near the top", |b| put64(b, 64 + 16, 0x7fff_ffff_e000)),
        ("address zero", |b| put64(b, 64 + 16, 0)),
        ("offset and address apart", |b| put64(b, 64 + 8, 1)),
        ("an offset past the file", |b| put64(b, 64 + 8, 1 << 40)),
        ("no alignment", |b| put64(b, 64 + 48, 3)),
        ("write and execute", |b| put32(b, 68, 7)),
        ("an entry elsewhere", |b| put64(b, 24, 0x1234)),
        ("a negative offset", |b| put64(b, 64 + 8, !0xfff)),
    ];
    for (what, edit) in edits {
        let mut bad = good.clone();
        edit(&mut bad);
        install("prog", &bad)?;
        let end = end_of("prog")?;
        want!(is_contained(end), "{what}: ends with {end:#x}");
    }
    ends_with(&good, 7 << 8)
}

/// A small generator: the cases must be the same on both sides.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn elf_bytes_flipped_at_random() -> Outcome {
    let good = with_interpreter(b"prog2\0", 6);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..60 {
        let mut bad = good.clone();
        for _ in 0..1 + random.next() % 4 {
            // The headers, not the code: what runs is to be this program or nothing.
            let at = 4 + (random.next() % 172) as usize;
            bad[at] = random.next() as u8;
        }
        install("prog", &bad)?;
        let end = end_of("prog")?;
        want!(is_contained(end) || end == -ENOENT || end == -EACCES || end == -ENOTDIR, "{bad:x?}: {end:#x}");
    }
    Ok(())
}

fn elf_interpreter_is_itself() -> Outcome {
    // An interpreter's own interpreter does not count, so this is no loop.
    install("prog", &with_interpreter(b"prog\0", 5))?;
    let end = end_of("prog")?;
    want!(is_contained(end), "ends with {end:#x}");
    Ok(())
}

fn an_empty_argv_gets_a_name() -> Outcome {
    let exe = sys::self_exe()?;
    let status = sys::status_of(|| unsafe {
        let none: [*const c_char; 1] = [std::ptr::null()];
        syscall(SYS_execve, exe.as_ptr(), none.as_ptr(), none.as_ptr());
        _exit(99);
    })?;
    // It runs, and finds no command among its arguments.
    same!(status, 2 << 8);
    Ok(())
}

/// Executes this program with `argv`; the errno, or 0 if it ran.
fn try_exec(argv: &[*const c_char], envp: &[*const c_char]) -> Result<i32, String> {
    let exe = sys::self_exe()?;
    let failed = Map::shared(PAGE)?;
    let status = sys::status_of(|| unsafe {
        execve(exe.as_ptr(), argv.as_ptr(), envp.as_ptr());
        failed.word(0).store(errno(), SeqCst);
        _exit(0);
    })?;
    let failed = failed.word(0).load(SeqCst);
    want!(failed != 0 || status & 0x7f == 0, "the program died: {status:#x}");
    Ok(failed)
}

fn a_long_argument_is_e2big() -> Outcome {
    let none = [std::ptr::null()];
    let fits = CString::new(vec![b'x'; 128 * 1024 - 1]).unwrap();
    let over = CString::new(vec![b'x'; 128 * 1024]).unwrap();
    let head = c"x".as_ptr();
    same!(try_exec(&[head, fits.as_ptr(), std::ptr::null()], &none)?, 0);
    same!(try_exec(&[head, over.as_ptr(), std::ptr::null()], &none)?, E2BIG);
    same!(try_exec(&[head, std::ptr::null()], &[over.as_ptr(), std::ptr::null()])?, E2BIG);
    Ok(())
}

fn many_arguments_are_e2big() -> Outcome {
    let none = [std::ptr::null()];
    let part = CString::new(vec![b'x'; 100_000]).unwrap();
    let mut argv = vec![part.as_ptr(); 18];
    argv.push(std::ptr::null());
    same!(try_exec(&argv, &none)?, 0);
    let mut argv = vec![part.as_ptr(); 24];
    argv.push(std::ptr::null());
    same!(try_exec(&argv, &none)?, E2BIG);
    // A smaller stack gives less room.
    fork(|| {
        let l = rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        ok!(setrlimit(RLIMIT_STACK, &raw const l));
        let mut argv = vec![part.as_ptr(); 4];
        argv.push(std::ptr::null());
        same!(try_exec(&argv, &[std::ptr::null()])?, E2BIG);
        Ok(())
    })?
    .ok()
}

fn a_million_arguments_are_bounded() -> Outcome {
    let none = [std::ptr::null()];
    let mut argv = vec![c"".as_ptr(); 1_000_000];
    argv.push(std::ptr::null());
    same!(try_exec(&argv, &none)?, E2BIG);
    Ok(())
}

fn script_chains_end() -> Outcome {
    let dir = std::env::current_dir().map_err(|e| e.to_string())?;
    let dir = dir.display();
    install("s0", b"#!/proc/self/exe helper exit 3\n")?;
    for n in 1..8 {
        install(&format!("s{n}"), format!("#!{dir}/s{}\n", n - 1).as_bytes())?;
    }
    same!(end_of("s7")?, -ELOOP);
    install("self", format!("#!{dir}/self\n").as_bytes())?;
    same!(end_of("self")?, -ELOOP);
    install("empty", b"#!\n")?;
    same!(end_of("empty")?, -ENOEXEC);
    install("spaces", b"#!   \t  \n")?;
    same!(end_of("spaces")?, -ENOEXEC);
    install("long", format!("#!/{}\n", "x".repeat(300)).as_bytes())?;
    same!(end_of("long")?, -ENOEXEC);
    Ok(())
}

fn signal_storm_between_processes() -> Outcome {
    let shared = Map::shared(PAGE)?;
    let ready = shared.word(0);
    let kid = fork(|| {
        sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
        sys::on_signal(SIGRTMIN(), sys::count_handler, SA_RESTART)?;
        ready.store(1, SeqCst);
        while ready.load(SeqCst) == 1 {
            unsafe { sched_yield() };
        }
        want!(sys::hits() > 0, "no handler ran");
        Ok(())
    })?;
    sys::eventually("the handlers are there", || ready.load(SeqCst) == 1)?;
    for n in 0..20_000 {
        let signal = if n % 2 == 0 { SIGUSR1 } else { SIGRTMIN() };
        unsafe { kill(kid.pid, signal) };
    }
    ready.store(2, SeqCst);
    kid.ok()
}

fn signal_queue_is_bounded() -> Outcome {
    fork(|| {
        let l = rlimit { rlim_cur: 64, rlim_max: 64 };
        ok!(setrlimit(RLIMIT_SIGPENDING, &raw const l));
        sys::drop_root()?;
        sys::block(&[SIGRTMIN()])?;
        let value = sigval { sival_ptr: std::ptr::null_mut() };
        let mut sent = 0;
        while unsafe { sigqueue(getpid(), SIGRTMIN(), value) } == 0 {
            sent += 1;
            want!(sent < 1000, "no end to the queue");
        }
        same!(errno(), EAGAIN);
        want!((1..=64).contains(&sent), "{sent} signals queued");
        // One that the kernel owes arrives all the same.
        ok!(kill(getpid(), SIGRTMIN()));
        Ok(())
    })?
    .ok()
}

fn alternate_stack(map: &Map) -> Outcome {
    let stack = stack_t { ss_sp: map.ptr.cast(), ss_flags: 0, ss_size: map.len };
    ok!(sigaltstack(&raw const stack, std::ptr::null_mut()));
    Ok(())
}

extern "C" fn eat_stack(_: i32, _: *mut siginfo_t, _: *mut c_void) {
    fn down(n: usize) -> usize {
        let page = std::hint::black_box([n as u8; 2048]);
        if page.len() == n {
            n
        } else {
            down(n.wrapping_add(page[3] as usize | 1) & !2048) + page[4] as usize
        }
    }
    std::hint::black_box(down(0));
}

fn alternate_stack_overflow_is_a_segv() -> Outcome {
    sys::dies_of(SIGSEGV, || {
        let room = Map::new(64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0).unwrap();
        unsafe { mprotect(room.at(32 * PAGE).cast(), 16 * PAGE, PROT_READ | PROT_WRITE) };
        let map = std::mem::ManuallyDrop::new(Map { ptr: room.at(32 * PAGE), len: 16 * PAGE });
        alternate_stack(&map).unwrap();
        sys::on_signal(SIGUSR1, eat_stack, SA_ONSTACK).unwrap();
        unsafe {
            signal(SIGSEGV, SIG_DFL);
            raise(SIGUSR1);
        }
    })
}

extern "C" fn raise_again(signal: i32, _: *mut siginfo_t, _: *mut c_void) {
    unsafe { raise(signal) };
}

fn nested_alternate_stacks_overflow() -> Outcome {
    // Frame upon frame on one alternate stack, until none fits.
    sys::dies_of(SIGSEGV, || {
        let map = std::mem::ManuallyDrop::new(Map::anon(16 * PAGE).unwrap());
        alternate_stack(&map).unwrap();
        sys::on_signal(SIGUSR1, raise_again, SA_ONSTACK | SA_NODEFER).unwrap();
        sys::on_signal(SIGSEGV, raise_again, SA_ONSTACK).unwrap();
        unsafe { raise(SIGUSR1) };
    })
}

fn forged_frames_by_the_hundred() -> Outcome {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..60 {
        let mut frame = [0u64; 256];
        for word in &mut frame {
            *word = match random.next() % 4 {
                0 => random.next(),
                1 => 0,
                2 => frame_address(&random),
                _ => random.next() & 0xffff,
            };
        }
        let status = sys::status_of(|| unsafe {
            std::arch::asm!(
                "mov rsp, {frame}", "mov eax, 15", "syscall", "ud2",
                frame = in(reg) frame.as_ptr().wrapping_add(16), options(noreturn),
            );
        })?;
        let killed = status & 0x7f;
        let fine = [SIGSEGV, SIGILL, SIGBUS, SIGTRAP, SIGFPE, SIGSYS].contains(&killed);
        want!(fine, "round {round}: wait status {status:#x}");
    }
    Ok(())
}

fn frame_address(random: &Random) -> u64 {
    std::ptr::from_ref(random) as u64 & !63
}

fn seize_races_with_exec() -> Outcome {
    let exe = sys::self_exe()?;
    for _ in 0..20 {
        let kid = fork(|| {
            let argv = [exe.as_ptr(), c"helper".as_ptr(), c"exit".as_ptr(), c"4".as_ptr(), std::ptr::null()];
            ok!(execv(exe.as_ptr(), argv.as_ptr()));
            Ok(())
        })?;
        let seized = pt(SEIZE, kid.pid, 0, 0) == 0;
        if seized {
            let _ = pt(INTERRUPT, kid.pid, 0, 0);
        }
        loop {
            let status = change(kid.pid)?;
            if status & 0xff == 0x7f {
                let _ = pt(CONT, kid.pid, 0, 0);
                continue;
            }
            same!(status, 4 << 8);
            break;
        }
    }
    Ok(())
}

fn attach_races_with_exit() -> Outcome {
    for _ in 0..40 {
        let kid = fork(|| Ok(()))?;
        let _ = pt(ATTACH, kid.pid, 0, 0);
        loop {
            let status = change(kid.pid)?;
            if status & 0xff == 0x7f {
                let _ = pt(CONT, kid.pid, 0, 0);
                continue;
            }
            same!(status, 0);
            break;
        }
    }
    Ok(())
}

fn registers_set_at_random() -> Outcome {
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..40 {
        let kid = tracee(|| Ok(()))?;
        for _ in 0..6 {
            let at = (random.next() % 30) as usize * 8;
            let value = match random.next() % 3 {
                0 => random.next(),
                1 => random.next() & 0xffff,
                _ => 1 << (random.next() % 64),
            };
            let _ = pt(POKEUSR, kid.pid, at, value as usize);
        }
        let _ = pt(STEP, kid.pid, 0, 0);
        sys::sleep_ms(1);
        ok!(kill(kid.pid, SIGKILL));
        loop {
            let status = change(kid.pid)?;
            if status & 0xff != 0x7f {
                want!(status & 0x7f != 0 || status == 0 || status == 1 << 8, "round {round}: {status:#x}");
                break;
            }
        }
    }
    let fd = sys::open("/dev/null", O_RDONLY)?;
    want!(fd.as_raw_fd() >= 0, "the kernel is gone");
    Ok(())
}

fn a_spoilt_vdso_is_ones_own() -> Outcome {
    let at = unsafe { getauxval(AT_SYSINFO_EHDR) } as usize;
    want!(at != 0, "no vDSO");
    let page = at as *mut u8;
    let head = unsafe { std::slice::from_raw_parts(page, 64) }.to_vec();
    want!(head.starts_with(b"\x7fELF"), "{:?}", &head[..4]);
    // Writing to it is refused, by the processor and by a call; made writable, it becomes the process's own copy.
    sys::dies_of(SIGSEGV, || unsafe { page.write_volatile(0) })?;
    fork(|| {
        let (rd, wr) = sys::pipe()?;
        sys::fd_write(&wr, b"spoilt")?;
        fails!(EFAULT, read(rd.as_raw_fd(), page.cast(), 6));
        if unsafe { mprotect(page.cast(), PAGE, PROT_READ | PROT_WRITE) } == 0 {
            unsafe { std::ptr::write_bytes(page, 0xcc, 64) };
        }
        Ok(())
    })?
    .ok()?;
    want!(unsafe { std::slice::from_raw_parts(page, 64) } == head, "the parent sees what the child wrote");
    // Whoever runs next has a sound one, and so has this process.
    ok!(clock_gettime(CLOCK_MONOTONIC, &mut unsafe { std::mem::zeroed() }));
    Ok(())
}

/// Where a stub keeps the host's number of a thread, from the base of GS on; the host leaves that base at 0.
const HIDDEN_NUMBER: usize = 0x44;

fn a_thread_that_hides_its_number_can_be_killed() -> Outcome {
    let shared = Map::shared(PAGE)?;
    let ready = shared.word(0);
    let kid = fork(|| {
        let base: usize;
        unsafe { std::arch::asm!("rdgsbase {}", out(reg) base, options(nomem, nostack)) };
        if base != 0 {
            unsafe { ((base + HIDDEN_NUMBER) as *mut u32).write_volatile(0) };
        }
        ready.store(1, SeqCst);
        loop {
            std::hint::spin_loop();
        }
    })?;
    sys::eventually("it spins", || ready.load(SeqCst) == 1)?;
    ok!(kill(kid.pid, SIGKILL));
    let mut status = 0;
    sys::eventually("it is dead", || unsafe { waitpid(kid.pid, &mut status, WNOHANG) } == kid.pid)?;
    want!(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status {status:#x}");
    Ok(())
}

fn stepping_oneself_over_a_call_ends() -> Outcome {
    sys::on_signal(SIGTRAP, sys::count_handler, 0)?;
    let number: i64;
    unsafe {
        std::arch::asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "mov eax, 110",
            "syscall",
            "pushfq",
            "and qword ptr [rsp], -0x101",
            "popfq",
            out("rax") number,
            out("rcx") _,
            out("r11") _,
        );
    }
    want!(number == i64::from(unsafe { getppid() }), "getppid gave {number}");
    let steps = sys::hits();
    want!((4..=9).contains(&steps), "{steps} steps");
    Ok(())
}
