//! What applications may rely on: traps, mappings, threads, forks, kicks, copies.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::exit,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![allow(unsafe_code, reason = "reads the addresses of the code that is copied into guests")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use platform::{Advice, AtomicOp, Fault, FaultMode, MapSource, Platform, Prot, Regs, Sharing, TrapEvent};
use platform_systrap::Systrap;

const RW: Prot = Prot::READ.union(Prot::WRITE);
/// A page that no guest maps by itself.
const SPARE: u64 = 0x6000_0000;

guest_code!(count_calls, "2: mov eax, 39\n syscall\n add rbx, rax\n jmp 2b");

fn system_calls_return_what_the_sentry_says(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    guest.regs.rdi = 7;
    for turn in 0..1000 {
        assert_eq!(guest.syscall(), 39);
        assert_eq!(guest.regs.rbx, turn * 2);
        assert_eq!(guest.regs.rdi, 7);
        assert_eq!(guest.regs.rcx, guest.regs.rip);
        guest.regs.rax = 2;
    }
    // The worker sleeps in between.
    guest.spin = false;
    for turn in 1000..1200 {
        guest.syscall();
        assert_eq!(guest.regs.rbx, turn * 2);
        guest.regs.rax = 2;
    }
}

guest_code!(
    all_registers,
    "syscall
     inc rbx; inc rbp; inc r12; inc r13; inc r14; inc r15; inc rdx; inc rdi; inc rsi; inc r8; inc r9; inc r10
     mov eax, 1
     syscall"
);

fn every_register_is_carried(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, all_registers());
    guest.syscall();
    let base = 0x1111_2222_3333_0000;
    let r = &mut guest.regs;
    for (index, register) in [
        &mut r.rbx, &mut r.rbp, &mut r.r12, &mut r.r13, &mut r.r14, &mut r.r15, &mut r.rdx, &mut r.rdi,
        &mut r.rsi, &mut r.r8, &mut r.r9, &mut r.r10,
    ]
    .into_iter()
    .enumerate()
    {
        *register = base + 16 * index as u64;
    }
    r.fs_base = 0x1234_5000;
    r.gs_base = 0x2345_6000;
    let rsp = r.rsp;
    assert_eq!(guest.syscall(), 1);
    let r = &guest.regs;
    for (index, register) in
        [r.rbx, r.rbp, r.r12, r.r13, r.r14, r.r15, r.rdx, r.rdi, r.rsi, r.r8, r.r9, r.r10]
            .into_iter()
            .enumerate()
    {
        assert_eq!(register, base + 16 * index as u64 + 1, "register {index}");
    }
    assert_eq!((r.rsp, r.fs_base, r.gs_base), (rsp, 0x1234_5000, 0x2345_6000));
}

guest_code!(
    store_and_call,
    "2: lock xadd [rdi], rsi
     mov eax, 24
     syscall
     jmp 2b"
);

fn threads_share_memory(platform: &Arc<Systrap>) {
    let mut first = Guest::new(platform, store_and_call());
    // More than one group of channels.
    let mut others: Vec<Guest> = (0..19).map(|_| Guest::on(platform, Arc::clone(&first.space))).collect();
    first.regs.rdi = DATA;
    first.regs.rsi = 1;
    first.syscall();
    for (index, other) in others.iter_mut().enumerate() {
        other.regs.rdi = DATA;
        other.regs.rsi = 1;
        other.syscall();
        assert_eq!(other.regs.rsi, index as u64 + 1);
    }
    assert_eq!(u64::from_ne_bytes(first.read(DATA)), 20);
    // Threads of contexts that are gone serve again.
    others.clear();
    for _ in 0..50 {
        let mut again = Guest::on(platform, Arc::clone(&first.space));
        again.regs.rdi = DATA;
        again.syscall();
        assert_eq!(again.regs.rbx, 0, "a new context starts with clear registers");
    }
}

fn fork_parts_ways(platform: &Arc<Systrap>) {
    let mut parent = Guest::new(platform, store_and_call());
    parent.regs.rdi = DATA;
    parent.regs.rsi = 5;
    parent.syscall();
    let file = hostsys::memory::memfd(c"test").expect("memfd");
    hostsys::memory::set_len(file.as_fd(), PAGE).expect("size");
    let shared = MapSource::File { file: file.as_fd(), offset: 0, writable: true };
    parent.space.map(range(SPARE, PAGE), shared, RW, Sharing::Shared).expect("map");
    let wiped = DATA + 0x4000;
    let skipped = DATA + 0x8000;
    parent.space.copy_out(wiped, b"secret", FaultMode::Normal).expect("write");
    let forked = parent.space.fork(&[range(skipped, PAGE)], &[range(wiped, PAGE)]).expect("fork");
    let mut child = Guest::on(platform, forked);
    child.regs = parent.regs;
    // Both go on, each with its own memory.
    parent.regs.rsi = 10;
    parent.syscall();
    child.regs.rsi = 100;
    child.syscall();
    assert_eq!(u64::from_ne_bytes(parent.read(DATA)), 15);
    assert_eq!(u64::from_ne_bytes(child.read(DATA)), 105);
    assert_eq!(&parent.read::<6>(wiped), b"secret");
    assert_eq!(child.read::<6>(wiped), [0; 6]);
    assert!(child.space.copy_in(skipped, &mut [0; 8], FaultMode::Normal).is_err());
    assert!(parent.space.copy_in(skipped, &mut [0; 8], FaultMode::Normal).is_ok());
    // Shared memory stays shared.
    child.space.copy_out(SPARE, b"hello", FaultMode::Normal).expect("write");
    assert_eq!(&parent.read::<5>(SPARE), b"hello");
    // A grandchild, after the parent is gone.
    drop(parent);
    let mut grandchild = Guest::on(platform, child.space.fork(&[], &[]).expect("fork"));
    grandchild.regs = child.regs;
    drop(child);
    grandchild.regs.rsi = 1000;
    grandchild.syscall();
    assert_eq!(u64::from_ne_bytes(grandchild.read(DATA)), 1105);
}

guest_code!(fault_read, "mov rax, [rdi]\n mov eax, 24\n syscall");
guest_code!(fault_write, "mov [rdi], rax\n mov eax, 24\n syscall");
guest_code!(fault_exec, "jmp rdi");
guest_code!(
    exceptions,
    "int3\n ud2\n xor ecx, ecx\n div ecx\n mov rdi, 0x123456789abcdef0\n mov rax, [rdi]\n hlt"
);

fn faults_name_address_and_access(platform: &Arc<Systrap>) {
    let at = SPARE + 0x123;
    for (code, access) in
        [(fault_read(), Prot::READ), (fault_write(), Prot::WRITE), (fault_exec(), Prot::EXEC)]
    {
        let mut guest = Guest::new(platform, code);
        guest.regs.rdi = at;
        assert_eq!(guest.run(), TrapEvent::Fault { addr: at, access });
        // Mapped now, the same instruction goes on.
        let prot = if access == Prot::READ { Prot::READ } else { RW };
        guest.space.map(range(SPARE, PAGE), MapSource::Zero, prot, Sharing::Private).expect("map");
        if access == Prot::EXEC {
            assert_eq!(guest.run(), TrapEvent::Fault { addr: at, access });
        } else {
            assert_eq!(guest.syscall(), 24);
        }
    }
    let mut guest = Guest::new(platform, fault_write());
    guest.regs.rdi = CODE + 8;
    assert_eq!(guest.run(), TrapEvent::Fault { addr: CODE + 8, access: Prot::WRITE });

    let mut guest = Guest::new(platform, exceptions());
    let mut signals = Vec::new();
    // int3 stops after itself; the others are skipped by hand: ud2, div ecx, mov rax [rdi], hlt.
    for length in [0, 2, 2, 3, 1] {
        let TrapEvent::Exception(info) = guest.run() else { panic!("an exception") };
        signals.push((info.signo, info.code));
        guest.regs.rip += length;
    }
    let general = (libc::SIGSEGV, libc::SI_KERNEL);
    assert_eq!(
        signals,
        [(libc::SIGTRAP, libc::SI_KERNEL), (libc::SIGILL, 2), (libc::SIGFPE, 1), general, general]
    );
}

fn files_are_mapped_private_and_shared(platform: &Arc<Systrap>) {
    let guest = Guest::new(platform, count_calls());
    let file = hostsys::memory::memfd(c"test").expect("memfd");
    hostsys::memory::set_len(file.as_fd(), 2 * PAGE).expect("size");
    let file = std::fs::File::from(file);
    file.write_all_at(b"first", 0).expect("write");
    file.write_all_at(b"second", PAGE).expect("write");
    let source = |offset| MapSource::File { file: file.as_fd(), offset, writable: true };
    let shared = SPARE;
    let private = SPARE + 0x10000;
    guest.space.map(range(shared, 2 * PAGE), source(0), RW, Sharing::Shared).expect("map");
    guest.space.map(range(private, PAGE), source(PAGE), RW, Sharing::Private).expect("map");
    assert_eq!(&guest.read::<5>(shared), b"first");
    assert_eq!(&guest.read::<6>(private), b"second");
    guest.space.copy_out(private, b"mine!!", FaultMode::Normal).expect("write");
    guest.space.copy_out(shared, b"ours!", FaultMode::Normal).expect("write");
    let mut seen = [0; 6];
    file.read_exact_at(&mut seen, PAGE).expect("read");
    assert_eq!(&seen, b"second");
    file.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!(&seen, b"ours!\0");
    // A refused mapping leaves the agent usable, and says why.
    let read_only = std::fs::File::open("/proc/self/exe").expect("open");
    let source = MapSource::File { file: read_only.as_fd(), offset: 0, writable: false };
    let refused = guest.space.map(range(private, PAGE), source, RW, Sharing::Shared);
    assert_eq!(refused, Err(platform::SpaceError::Host(libc::EACCES)));
    guest.space.map(range(private, PAGE), source, Prot::READ, Sharing::Shared).expect("map");
    assert_eq!(&guest.read::<4>(private), b"\x7fELF");
}

fn pages_move(platform: &Arc<Systrap>) {
    let guest = Guest::new(platform, count_calls());
    guest.space.map(range(SPARE, 8 * PAGE), MapSource::Zero, RW, Sharing::Private).expect("map");
    for page in 0..8 {
        guest.space.copy_out(SPARE + page * PAGE, &[page as u8 + 1], FaultMode::Normal).expect("write");
    }
    // Several host mappings under what the application sees as one.
    guest.space.protect(range(SPARE + 3 * PAGE, PAGE), Prot::READ).expect("protect");
    let to = SPARE + 0x10_0000;
    guest.space.move_pages(range(SPARE, 8 * PAGE), to, 8 * PAGE).expect("move");
    for page in 0..8 {
        assert_eq!(guest.read::<1>(to + page * PAGE), [page as u8 + 1]);
    }
    assert!(guest.space.copy_in(SPARE, &mut [0], FaultMode::Normal).is_err());
    // Growing and shrinking.
    guest.space.move_pages(range(to + 4 * PAGE, 4 * PAGE), SPARE, 16 * PAGE).expect("grow");
    assert_eq!((guest.read::<1>(SPARE), guest.read::<1>(SPARE + 15 * PAGE)), ([5], [0]));
    guest.space.move_pages(range(SPARE, 16 * PAGE), to + 0x10_0000, PAGE).expect("shrink");
    assert_eq!(guest.read::<1>(to + 0x10_0000), [5]);
    assert!(guest.space.copy_in(to + 0x10_1000, &mut [0], FaultMode::Normal).is_err());
    guest.space.advise(range(to, PAGE), Advice::DontNeed).expect("advise");
    assert_eq!(guest.read::<1>(to), [0]);
}

guest_code!(spin_forever, "2: inc rbx\n jmp 2b");

fn kicks_are_never_lost(platform: &Arc<Systrap>) {
    let mut spinning = Guest::new(platform, spin_forever());
    // Most of these come while the stub's code runs.
    let mut asking = patched(platform, patched_read_link());
    know(&mut asking, b"/usr");
    for guest in [&mut spinning, &mut asking] {
        let kicker = guest.context.kicker();
        // Before the run.
        kicker.kick();
        assert_eq!(guest.run(), TrapEvent::Interrupted);
        // During the run, again and again.
        for _ in 0..200 {
            let other = Arc::clone(&kicker);
            let kick = std::thread::spawn(move || other.kick());
            assert_eq!(guest.run(), TrapEvent::Interrupted);
            kick.join().expect("the kicking thread");
        }
    }
}

fn kicks_race_with_traps(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    let kicking = Kicking::of(&guest);
    let (mut calls, mut interrupted) = (0, 0);
    while calls < 5000 {
        match guest.run() {
            TrapEvent::Syscall => {
                calls += 1;
                guest.regs.rax = 1;
            }
            TrapEvent::Interrupted => interrupted += 1,
            other => panic!("{other:?}"),
        }
        // An interruption never loses or repeats a call.
        assert!(guest.regs.rbx == calls || guest.regs.rbx + 1 == calls, "{} {calls}", guest.regs.rbx);
    }
    assert!(kicking.end() > 0);
    assert!(interrupted > 0);
}

fn copies_stop_at_the_first_bad_page(platform: &Arc<Systrap>) {
    let guest = Guest::new(platform, count_calls());
    guest.space.map(range(SPARE, 2 * PAGE), MapSource::Zero, RW, Sharing::Private).expect("map");
    let from = SPARE + PAGE;
    let mut buffer = vec![0; 3 * PAGE as usize];
    assert_eq!(guest.space.copy_in(from + 100, &mut buffer, FaultMode::Normal), Ok(PAGE as usize - 100));
    assert_eq!(guest.space.copy_out(from + 100, &buffer, FaultMode::Normal), Ok(PAGE as usize - 100));
    let beyond = SPARE + 2 * PAGE;
    let fault = |addr, access| Err(Fault { addr, access });
    assert_eq!(guest.space.copy_in(beyond, &mut buffer, FaultMode::Normal), fault(beyond, Prot::READ));
    guest.space.protect(range(SPARE, PAGE), Prot::READ).expect("protect");
    assert_eq!(guest.space.copy_out(SPARE, &buffer, FaultMode::Normal), fault(SPARE, Prot::WRITE));
    assert_eq!(guest.space.copy_in(beyond, &mut [], FaultMode::Normal), Ok(0));
    // Beyond what applications may use there is nothing to copy, though the stub is mapped there.
    let stub = platform.user_range().end;
    assert_eq!(guest.space.copy_in(stub, &mut buffer, FaultMode::Normal), fault(stub, Prot::READ));
    let high = u64::MAX - 10;
    assert_eq!(guest.space.copy_out(high, &buffer, FaultMode::Normal), fault(high, Prot::WRITE));
    guest.space.map(range(SPARE, PAGE), MapSource::Reserve, RW, Sharing::Private).expect("reserve");
    assert_eq!(guest.space.copy_in(SPARE, &mut buffer, FaultMode::Normal), fault(SPARE, Prot::READ));
}

guest_code!(call_clock, "mov edi, 1\n mov rsi, rbx\n call r12\n mov r13, rax\n mov eax, 24\n syscall");

/// Address of a function in an ELF image that is loaded at `base`.
fn symbol(image: &[u8], base: u64, name: &str) -> Option<u64> {
    let word = |at: u64| u64::from_le_bytes(image[at as usize..][..8].try_into().expect("a word"));
    let half =
        |at: u64| u64::from(u16::from_le_bytes(image[at as usize..][..2].try_into().expect("two bytes")));
    let int = |at: u64| word(at) & 0xffff_ffff;
    let sections = (0..half(60)).map(|index| word(40) + index * half(58));
    let table = sections.clone().find(|at| int(at + 4) == 11)?;
    let strings = word(word(40) + int(table + 40) * half(58) + 24);
    let (start, size) = (word(table + 24), word(table + 32));
    (start..start + size).step_by(24).find_map(|at| {
        let text = &image[(strings + int(at)) as usize..];
        let end = text.iter().position(|byte| *byte == 0)?;
        (text[..end] == *name.as_bytes()).then(|| base + word(at + 8))
    })
}

fn time_is_read_without_a_trap(platform: &Arc<Systrap>) {
    let vdso = platform.vdso().expect("this host has a vDSO");
    let mut guest = Guest::new(platform, call_clock());
    let mut image = vec![0; vdso.len() as usize];
    assert_eq!(guest.space.copy_in(vdso.start, &mut image, FaultMode::Normal), Ok(image.len()));
    guest.regs.r12 = symbol(&image, vdso.start, "__vdso_clock_gettime").expect("the symbol");
    guest.regs.rbx = DATA;
    let before = hostsys::futex::monotonic_ns();
    assert_eq!(guest.syscall(), 24, "the first trap is the call after the vDSO returned");
    let after = hostsys::futex::monotonic_ns();
    assert_eq!(guest.regs.r13, 0);
    let [seconds, ns] = [DATA, DATA + 8].map(|at| u64::from_ne_bytes(guest.read(at)));
    assert!((before..=after).contains(&(seconds * 1_000_000_000 + ns)));
}

guest_code!(
    vector_registers,
    "mov rax, 0x1122334455667788
     movq xmm5, rax
     pinsrq xmm5, rbx, 1
     mov eax, 24
     syscall
     2:
     movq r12, xmm5
     pextrq r13, xmm5, 1
     stmxcsr [rsp - 8]
     mov r14d, [rsp - 8]
     mov eax, 24
     syscall
     jmp 2b"
);

fn extended_state_survives_and_moves(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, vector_registers());
    guest.regs.rbx = 42;
    guest.syscall();
    let state = guest.fpu().expect("the state");
    assert!(state.0.len() > 512);
    let mut child = Guest::on(platform, guest.space.fork(&[], &[]).expect("fork"));
    child.regs = guest.regs;
    child.context.set_fpu(&state).expect("the parent's state is good");
    // Another context in the space starts clean.
    let mut clean = Guest::on(platform, Arc::clone(&guest.space));
    clean.regs.rip = guest.regs.rip;
    for (guest, low, high) in
        [(&mut guest, 0x1122334455667788, 42), (&mut child, 0x1122334455667788, 42), (&mut clean, 0, 0)]
    {
        guest.syscall();
        assert_eq!((guest.regs.r12, guest.regs.r13, guest.regs.r14), (low, high, 0x1f80));
    }
    // And back: the round trip is exact.
    assert_eq!(child.fpu().expect("the state"), guest.fpu().expect("the state"));
    child.context.set_fpu(&platform::FpuState::default()).expect("the initial state");
    child.syscall();
    assert_eq!((child.regs.r12, child.regs.r13), (0, 0));

    // Images that the host would refuse are errors, and change nothing.
    let spoil = |at: usize, value: u8| {
        let mut bad = state.clone();
        bad.0[at] = value;
        bad
    };
    let end = state.0.len() - 1;
    for (what, bad) in [
        ("MXCSR with reserved bits", spoil(27, 0xff)),
        ("compacted", spoil(527, 0x80)),
        ("unknown components", spoil(519, 0x7f)),
        ("reserved header", spoil(540, 1)),
        ("no magic", spoil(464, 0)),
        ("no second magic", spoil(end, 0)),
        ("wrong length", platform::FpuState(state.0[..end - 3].to_vec())),
        ("short", platform::FpuState(vec![1; 100])),
    ] {
        assert!(guest.context.set_fpu(&bad).is_err(), "{what}");
    }
    guest.syscall();
    assert_eq!((guest.regs.r12, guest.regs.r13), (0x1122334455667788, 42));
}

fn a_task_goes_to_another_space(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    for _ in 0..20 {
        guest.syscall();
        let mut next = Guest::new(platform, store_and_call());
        next.regs.rdi = DATA;
        next.regs.rsi = 3;
        guest = next;
        guest.syscall();
        assert_eq!(u64::from_ne_bytes(guest.read(DATA)), 3);
    }
}

guest_code!(call_rax, "2: syscall\n mov rax, rbx\n jmp 2b");

fn arguments_come_along(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, call_rax());
    guest.space.copy_out(DATA, b"/usr/bin/env\0rest", FaultMode::Normal).expect("write");
    let call = |number: i64, regs: Regs, guest: &mut Guest| {
        let rip = guest.regs.rip;
        guest.regs = Regs { rax: number as u64, rbx: number as u64, rsp: STACK - 64, rip, ..regs };
        guest.syscall();
        guest.regs.rip = CODE;
    };
    call(libc::SYS_openat, Regs { rsi: DATA, ..Regs::default() }, &mut guest);
    assert_eq!(guest.context.staged(DATA), Some(&b"/usr/bin/env\0"[..]));
    assert_eq!(guest.context.staged(DATA + 1), None);
    call(libc::SYS_write, Regs { rsi: DATA + 13, rdx: 4, ..Regs::default() }, &mut guest);
    assert_eq!(guest.context.staged(DATA + 13), Some(&b"rest"[..]));
    assert_eq!(guest.context.staged(DATA), None, "of the last call");
    call(libc::SYS_rename, Regs { rdi: DATA, rsi: DATA + 4, ..Regs::default() }, &mut guest);
    assert_eq!(guest.context.staged(DATA), Some(&b"/usr/bin/env\0"[..]));
    assert_eq!(guest.context.staged(DATA + 4), Some(&b"/bin/env\0"[..]));
    // What is too long or not there does not come along, and the call arrives all the same.
    call(libc::SYS_write, Regs { rsi: DATA, rdx: 4096, ..Regs::default() }, &mut guest);
    assert_eq!(guest.context.staged(DATA), None);
    call(libc::SYS_openat, Regs { rsi: SPARE, ..Regs::default() }, &mut guest);
    assert_eq!(guest.context.staged(SPARE), None);
    assert_eq!(guest.regs.rsi, SPARE);
    call(libc::SYS_rename, Regs { rdi: SPARE, rsi: DATA, ..Regs::default() }, &mut guest);
    assert_eq!(guest.context.staged(DATA), Some(&b"/usr/bin/env\0"[..]));
    call(libc::SYS_writev, Regs { rsi: DATA, rdx: u64::MAX, ..Regs::default() }, &mut guest);
    assert_eq!(guest.context.staged(DATA), None);
    call(39, Regs::default(), &mut guest);
    assert_eq!(guest.context.staged(DATA), None);
}

fn atomic_operations_are_atomic_and_fault(platform: &Arc<Systrap>) {
    let guest = Guest::new(platform, count_calls());
    let at = DATA + 4;
    let mut expected = 0u32;
    for (op, next) in [
        (AtomicOp::Store(5), 5),
        (AtomicOp::Add(u32::MAX), 4),
        (AtomicOp::Or(0x8000_0000), 0x8000_0004),
        (AtomicOp::And(0x8000_00ff), 0x8000_0004),
        (AtomicOp::Xor(0x8000_0001), 5),
        (AtomicOp::CompareExchange { current: 6, new: 7 }, 5),
        (AtomicOp::CompareExchange { current: 5, new: 7 }, 7),
        (AtomicOp::Load, 7),
    ] {
        assert_eq!(guest.space.atomic_u32(at, op), Ok(expected), "{op:?}");
        expected = next;
        assert_eq!(u32::from_ne_bytes(guest.read(at)), expected, "{op:?}");
    }
    for bad in [SPARE, CODE, DATA + 2, platform.user_range().end + 8] {
        assert!(guest.space.atomic_u32(bad, AtomicOp::Add(1)).is_err());
    }
    assert_eq!(guest.space.atomic_u32(at, AtomicOp::Add(1)), Ok(7), "a fault leaves the agent usable");
    // Pages that nobody has touched, at either end.
    guest.space.map(range(SPARE, 2 * PAGE), MapSource::Zero, RW, Sharing::Private).expect("map");
    assert_eq!(guest.space.atomic_u32(SPARE, AtomicOp::Add(2)), Ok(0));
    assert_eq!(guest.space.atomic_u32(SPARE + 2 * PAGE - 4, AtomicOp::Store(9)), Ok(0));
    assert!(guest.space.atomic_u32(SPARE + 2 * PAGE, AtomicOp::Store(9)).is_err());
    // A word is the child's own after a fork, whoever writes first.
    let child = guest.space.fork(&[], &[]).expect("fork");
    assert_eq!(child.atomic_u32(SPARE, AtomicOp::Add(10)), Ok(2));
    assert_eq!(guest.space.atomic_u32(SPARE, AtomicOp::Add(100)), Ok(2));
    assert_eq!(child.atomic_u32(SPARE, AtomicOp::Load), Ok(12));
    assert_eq!(guest.space.atomic_u32(SPARE, AtomicOp::Load), Ok(102));
    // Only what may be written, and from the moment on that it may.
    for prot in [Prot::READ, Prot::READ | Prot::EXEC, Prot::empty()] {
        guest.space.protect(range(SPARE, PAGE), prot).expect("protect");
        let fault = Fault { addr: SPARE, access: Prot::WRITE };
        assert_eq!(guest.space.atomic_u32(SPARE, AtomicOp::Add(1)), Err(fault), "{prot:?}");
        let same = AtomicOp::CompareExchange { current: 0, new: 1 };
        assert_eq!(guest.space.atomic_u32(SPARE, same), Err(fault), "{prot:?}");
    }
    guest.space.protect(range(SPARE, PAGE), RW).expect("protect");
    assert_eq!(guest.space.atomic_u32(SPARE, AtomicOp::Load), Ok(102));
    guest.space.unmap(range(SPARE, PAGE)).expect("unmap");
    assert!(guest.space.atomic_u32(SPARE, AtomicOp::Add(1)).is_err());
    // Memory that two processes share, and the end of a file.
    let file = hostsys::memory::memfd(c"words").expect("a file");
    hostsys::memory::set_len(file.as_fd(), PAGE).expect("its length");
    let source = MapSource::File { file: file.as_fd(), offset: 0, writable: true };
    for space in [&guest.space, &child] {
        space.map(range(SPARE, 2 * PAGE), source, RW, Sharing::Shared).expect("map");
    }
    assert_eq!(guest.space.atomic_u32(SPARE + 8, AtomicOp::Or(6)), Ok(0));
    assert_eq!(child.atomic_u32(SPARE + 8, AtomicOp::Xor(5)), Ok(6));
    assert_eq!(guest.space.atomic_u32(SPARE + 8, AtomicOp::Load), Ok(3));
    assert!(guest.space.atomic_u32(SPARE + PAGE, AtomicOp::Add(1)).is_err());
    hostsys::memory::set_len(file.as_fd(), 0).expect("its length");
    assert!(guest.space.atomic_u32(SPARE + 8, AtomicOp::Add(1)).is_err());
    assert_eq!(guest.space.atomic_u32(at, AtomicOp::Load), Ok(8), "the process lives");
}

fn contexts_may_be_dropped_at_any_time(platform: &Arc<Systrap>) {
    let space = Guest::new(platform, spin_forever()).space;
    for _ in 0..30 {
        let mut guest = Guest::on(platform, Arc::clone(&space));
        let waker = std::task::Waker::noop();
        let polled = guest.context.poll_switch(&mut std::task::Context::from_waker(waker), &mut guest.regs);
        assert!(polled.is_pending());
        drop(guest);
        platform.poll_traps();
    }
    drop(space);
    // A space goes with everything in it.
    let mut guest = Guest::new(platform, spin_forever());
    let waker = std::task::Waker::noop();
    assert!(
        guest.context.poll_switch(&mut std::task::Context::from_waker(waker), &mut guest.regs).is_pending()
    );
    drop(guest);
    let mut guest = Guest::new(platform, count_calls());
    guest.syscall();
}

fn several_workers_serve_many_processes(platform: &Arc<Systrap>) {
    let left = Arc::new(AtomicUsize::new(6));
    let threads: Vec<_> = (0..6)
        .map(|worker| {
            let platform = Arc::clone(platform);
            let left = Arc::clone(&left);
            std::thread::spawn(move || {
                let mut guest = Guest::new(&platform, count_calls()).served_by(worker);
                guest.spin = worker % 2 == 0;
                for turn in 0..2000 {
                    guest.syscall();
                    guest.regs.rax = 1;
                    if turn % 100 == 0 {
                        let child = guest.space.fork(&[], &[]).expect("fork");
                        let mut child = Guest::on(&platform, child).served_by(worker);
                        child.syscall();
                        let at = range(SPARE + turn * PAGE, PAGE);
                        guest.space.map(at, MapSource::Zero, RW, Sharing::Private).expect("map");
                    }
                }
                assert_eq!(guest.regs.rbx, 1999);
                // A worker serves as long as there is work: a wake-up that it took may be another guest's.
                left.fetch_sub(1, Ordering::SeqCst);
                while left.load(Ordering::SeqCst) > 0 {
                    platform.poll_traps();
                    platform.park(worker, None, false);
                }
                (0..6).for_each(|worker| platform.unpark(worker));
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a worker");
    }
}

fn results_travel_with_the_return(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    // Before its first call a thread has nowhere to take a fault.
    assert!(!guest.context.give(&[(DATA, 1)], &[1]));
    guest.syscall();
    let bytes: Vec<u8> = (0..4096).map(|n| (n % 251) as u8).collect();
    assert!(guest.context.give(&[(DATA + 1, 144), (DATA + 0x1ff0, 3952)], &bytes));
    assert_eq!(guest.syscall(), 39);
    assert_eq!(guest.read::<144>(DATA + 1), bytes[..144]);
    assert_eq!(guest.read::<3952>(DATA + 0x1ff0), bytes[144..]);
    assert_eq!(guest.read::<1>(DATA), [0]);
    // More than there is room for, lengths that do not match, the stub's own memory.
    let stub = platform.user_range().end;
    assert!(!guest.context.give(&[(DATA, 4097)], &[0; 4097]));
    assert!(!guest.context.give(&[(DATA, 4)], &[0; 3]));
    assert!(!guest.context.give(&[(DATA, 1); 9], &[0; 9]));
    assert!(!guest.context.give(&[(stub, 1)], &[0]));
    assert!(!guest.context.give(&[(stub - 1, 2)], &[0; 2]));
    assert!(!guest.context.give(&[(u64::MAX, 2)], &[0; 2]));
    // Once given they are not given again.
    guest.space.copy_out(DATA, &[9; 200], FaultMode::Normal).expect("copy");
    guest.syscall();
    assert_eq!(guest.read::<200>(DATA), [9; 200]);
}

fn results_without_memory_come_back(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    guest.syscall();
    guest.space.map(range(SPARE, PAGE), MapSource::Zero, RW, Sharing::Private).expect("map");
    let calls = guest.regs;
    // Half of it reaches the end of the memory.
    assert!(guest.context.give(&[(DATA, 1), (SPARE + PAGE - 2, 4)], &[7, 1, 2, 3, 4]));
    assert_eq!(guest.run(), TrapEvent::Undelivered);
    assert_eq!((guest.regs.rip, guest.regs.rsp, guest.regs.rbx), (calls.rip, calls.rsp, calls.rbx));
    assert_eq!((guest.read::<1>(DATA), guest.read::<2>(SPARE + PAGE - 2)), ([7], [1, 2]));
    // It is not tried again, and the next ones are as good as ever.
    guest.regs.rax = 5;
    assert_eq!(guest.syscall(), 39);
    assert_eq!(guest.regs.rbx, 5);
    guest.space.protect(range(SPARE, PAGE), Prot::READ).expect("protect");
    assert!(guest.context.give(&[(SPARE, 1)], &[1]));
    assert_eq!(guest.run(), TrapEvent::Undelivered);
    assert!(guest.context.give(&[(DATA, 1)], &[3]));
    guest.syscall();
    assert_eq!(guest.read::<1>(DATA), [3]);
    // A kick that comes first gives them back.
    assert!(guest.context.give(&[(DATA, 1)], &[4]));
    guest.context.kicker().kick();
    assert_eq!(guest.run(), TrapEvent::Undelivered);
    assert_eq!(guest.syscall(), 39);
    assert_eq!(guest.read::<1>(DATA), [3]);
}

guest_code!(
    who_am_i,
    "mov eax, 24; syscall; mov r8, rax
     mov eax, 39; syscall; mov r9, rax
     mov eax, 186; syscall; mov r12, rax
     mov eax, 102; syscall; mov r13, rax
     mov eax, 107; syscall; mov r14, rax
     mov eax, 104; syscall; mov r15, rax
     mov eax, 108; syscall; mov rbx, rax
     mov eax, 110; syscall
     mov eax, 39; syscall"
);

fn identity_is_answered_without_a_trap(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, who_am_i());
    let identity = platform::Identity { pid: 11, tid: 12, uid: 13, euid: 14, gid: u32::MAX, egid: 16 };
    guest.context.answer(Some(identity));
    guest.regs.rdx = 0x77;
    assert_eq!(guest.syscall(), 110);
    let r = guest.regs;
    assert_eq!((r.r8, r.r9, r.r12, r.r13, r.r14, r.r15, r.rbx), (0, 11, 12, 13, 14, 0xffff_ffff, 16));
    assert_eq!((r.rdx, r.rcx), (0x77, r.rip));
    guest.context.answer(None);
    guest.regs.rax = 1;
    assert_eq!(guest.syscall(), 39);
}

guest_code!(
    read_links,
    "mov eax, 89; syscall; mov r13, rax
     mov rsi, rdi; mov eax, 267; syscall; mov r14, rax
     mov eax, 110; syscall"
);

/// A platform has one epoch, which no guest writes.
fn directories_are_no_links_for_an_epoch(platform: &Arc<Systrap>) {
    let epoch = platform.epoch().expect("the platform has one");
    let now = || epoch.load(Ordering::Relaxed);
    let paths: Vec<Vec<u8>> = [
        "/",
        "/usr",
        "/usr/lib",
        "/usr/lib/gcc/x86_64",
        "/a/path/of/fifty-one/characters/is/the/longest/here",
    ]
    .map(|path| path.as_bytes().to_vec())
    .into_iter()
    // Enough for each set to be full at some time.
    .chain((0..200).map(|n| format!("/{n}/d").into_bytes()))
    .collect();
    for path in paths {
        let mut guest = Guest::new(platform, read_links());
        guest.context.answer(Some(platform::Identity::default()));
        let mut text = path.clone();
        text.push(0);
        guest.write(DATA, &text);
        guest.regs.rdi = DATA;
        let start = guest.regs.rip;
        let again = |guest: &mut Guest, traps: bool| {
            guest.regs.rip = start;
            guest.regs.rdi = DATA;
            if traps {
                assert_eq!(guest.syscall(), 89);
                guest.regs.rax = 5;
                assert_eq!(guest.syscall(), 267);
                guest.regs.rax = 6;
            }
            assert_eq!(guest.syscall(), 110);
            let results = if traps { (5, 6) } else { ((-22_i64) as u64, (-22_i64) as u64) };
            assert_eq!((guest.regs.r13, guest.regs.r14), results, "{}", String::from_utf8_lossy(&path));
        };
        again(&mut guest, true);
        guest.context.remember_directory(&path, now());
        again(&mut guest, false);
        // Another one's answer is not this one's.
        guest.write(DATA, b"/us\0");
        again(&mut guest, true);
        guest.write(DATA, &text);
        again(&mut guest, false);
        epoch.fetch_add(1, Ordering::SeqCst);
        again(&mut guest, true);
        guest.context.remember_directory(&path, now());
        again(&mut guest, false);
        guest.context.answer(None);
        again(&mut guest, true);
        guest.context.answer(Some(platform::Identity::default()));
        again(&mut guest, true);
    }
    // A thread that takes over the channel of one that has ended starts anew.
    let mut guest = Guest::new(platform, read_links());
    for _ in 0..3 {
        let space = Arc::clone(&guest.space);
        drop(guest);
        guest = Guest::on(platform, space);
        know(&mut guest, b"/usr");
        let space = Arc::clone(&guest.space);
        drop(guest);
        guest = Guest::on(platform, space);
        guest.context.answer(Some(platform::Identity::default()));
        guest.regs.rdi = DATA;
        assert_eq!(guest.syscall(), 89);
    }
    let mut guest = Guest::new(platform, read_links());
    guest.context.answer(Some(platform::Identity::default()));
    let long = [&b"/"[..], &[b'x'; 51]].concat();
    guest.context.remember_directory(&long, now());
    guest.write(DATA, &[&long[..], b"\0"].concat());
    guest.regs.rdi = DATA;
    assert_eq!(guest.syscall(), 89);
}

/// Has calls be answered by the context: the process is number 1, and `path`, to which rdi points, is a directory.
fn know(guest: &mut Guest, path: &[u8]) {
    guest.context.answer(Some(platform::Identity { pid: 1, ..Default::default() }));
    guest.write(DATA, &[path, b"\0"].concat());
    guest.regs.rdi = DATA;
    let epoch = guest.platform.epoch().expect("the platform has one");
    // Nobody else has made one here, and none is zero.
    let _ = epoch.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
    guest.context.remember_directory(path, epoch.load(Ordering::Relaxed));
}

fn directories_are_found_while_alignment_is_checked(platform: &Arc<Systrap>) {
    const ALIGNMENT_CHECK: u64 = 0x4_0000;
    for len in 1..20 {
        let mut guest = Guest::new(platform, read_links());
        know(&mut guest, &[&b"/"[..], &vec![b'x'; len]].concat());
        guest.regs.eflags |= ALIGNMENT_CHECK;
        assert_eq!(guest.syscall(), 110);
        assert_eq!((guest.regs.r13, guest.regs.r14), ((-22_i64) as u64, (-22_i64) as u64));
        assert_eq!(guest.regs.eflags & ALIGNMENT_CHECK, ALIGNMENT_CHECK);
    }
}

guest_code!(read_link_of_the_other_table, "mov eax, 89; int 0x80; mov eax, 110; syscall");

fn no_directory_answers_for_the_32_bit_table(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, read_link_of_the_other_table());
    know(&mut guest, b"/usr");
    let event = guest.run();
    assert!(matches!(event, TrapEvent::Exception(info) if info.signo == libc::SIGSEGV), "{event:?}");
}

guest_code!(
    patched_calls,
    // What a patched site does: the entry is in r15, and the instruction itself stands before the place to go on.
    "2: mov eax, 39
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: add rbx, rax
     jmp 2b"
);
guest_code!(
    patched_registers,
    "lea rcx, [rip + 2f]
     jmp r15
     syscall
     2: mov r14, rsp
     inc rbx; inc rbp; inc r12; inc r13; inc rdx; inc rdi; inc rsi; inc r8; inc r9; inc r10
     mov eax, 1
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3:"
);
guest_code!(
    patched_vectors,
    "mov rax, 0x1122334455667788
     movq xmm5, rax
     pinsrq xmm5, rbx, 1
     2: mov eax, 77
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: movq r12, xmm5
     pextrq r13, xmm5, 1
     stmxcsr [rsp - 8]
     mov r14d, [rsp - 8]
     jmp 2b"
);
guest_code!(
    patched_identity,
    "2: mov eax, 39
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: add rbx, rax
     inc r12
     jmp 2b"
);

guest_code!(
    patched_read_link,
    "2: mov eax, 89
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: sub rbx, rax
     add r12, 22
     jmp 2b"
);

fn patched(platform: &Arc<Systrap>, code: &[u8]) -> Guest {
    let mut guest = Guest::new(platform, code);
    guest.regs.r15 = guest.space.call_entry().expect("the platform takes calls");
    guest
}

fn patched_calls_are_calls(platform: &Arc<Systrap>) {
    let mut guest = patched(platform, patched_calls());
    for turn in 0..1000 {
        assert_eq!(guest.syscall(), 39);
        assert_eq!(guest.regs.rbx, turn * 2);
        assert_eq!((guest.regs.rcx, guest.regs.gs_base), (guest.regs.rip, 0));
        assert_eq!(guest.read::<2>(guest.regs.rip - 2), [0x0f, 0x05]);
        guest.regs.rax = 2;
    }
    // The instruction itself takes over from there, and where the application has a gs of its own.
    guest.regs.rip -= 2;
    guest.regs.rax = 77;
    assert_eq!(guest.syscall(), 77);
    guest.regs.gs_base = DATA;
    guest.regs.rax = 0;
    assert_eq!(guest.syscall(), 39);
    assert_eq!(guest.regs.gs_base, DATA);
    guest.regs.gs_base = 0;
    guest.spin = false;
    for _ in 0..100 {
        assert_eq!(guest.syscall(), 39);
    }
    // Results travel, and come back when there is no memory for them.
    assert!(guest.context.give(&[(DATA, 3)], &[1, 2, 3]));
    guest.syscall();
    assert_eq!(guest.read::<3>(DATA), [1, 2, 3]);
    let before = guest.regs;
    assert!(guest.context.give(&[(SPARE, 3)], &[1, 2, 3]));
    assert_eq!(guest.run(), TrapEvent::Undelivered);
    assert_eq!((guest.regs.rip, guest.regs.rsp, guest.regs.rbx), (before.rip, before.rsp, before.rbx));
    guest.syscall();
}

fn patched_calls_carry_every_register(platform: &Arc<Systrap>) {
    let mut guest = patched(platform, patched_registers());
    let entry = guest.regs.r15;
    let start =
        Regs { rbx: 1, rbp: 2, r12: 3, r13: 4, rdx: 5, rdi: 6, rsi: 7, r8: 8, r9: 9, r10: 10, ..guest.regs };
    guest.regs = start;
    guest.regs.rax = 5000;
    // A number that is none goes to the instruction.
    assert_eq!(guest.syscall(), 5000);
    assert_eq!(guest.regs.rdi, 6);
    guest.regs = start;
    guest.regs.rax = 500;
    assert_eq!(guest.syscall(), 500);
    let r = guest.regs;
    let all = |r: &Regs| [r.rbx, r.rbp, r.r12, r.r13, r.rdx, r.rdi, r.rsi, r.r8, r.r9, r.r10, r.r15, r.rsp];
    assert_eq!(all(&r), all(&start));
    guest.regs.fs_base = DATA + 8;
    assert_eq!(guest.syscall(), 1);
    assert_eq!(all(&guest.regs), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, entry, start.rsp]);
    assert_eq!((guest.regs.r14, guest.regs.fs_base), (start.rsp, DATA + 8));
    // Somewhere else altogether, with other flags.
    guest.regs = Regs { rip: CODE, rcx: 55, eflags: 0x202 | 0x400, rax: 500, ..start };
    guest.syscall();
    assert_eq!(guest.regs.eflags & 0x400, 0x400, "the direction flag");
}

fn patched_calls_keep_the_extended_state(platform: &Arc<Systrap>) {
    let mut guest = patched(platform, patched_vectors());
    guest.regs.rbx = 42;
    let low = 0x1122_3344_5566_7788;
    for _ in 0..3 {
        assert_eq!(guest.syscall(), 77);
    }
    assert_eq!((guest.regs.r12, guest.regs.r13, guest.regs.r14), (low, 42, 0x1f80));
    let state = guest.fpu().expect("the state");
    // To look at it changes nothing; it is good for another thread, and for the same one.
    guest.syscall();
    assert_eq!((guest.regs.r12, guest.regs.r13), (low, 42));
    let mut child = Guest::on(platform, guest.space.fork(&[], &[]).expect("fork"));
    child.regs = guest.regs;
    child.context.set_fpu(&state).expect("the parent's state is good");
    child.syscall();
    assert_eq!((child.regs.r12, child.regs.r13, child.regs.r14), (low, 42, 0x1f80));
    let mut bad = state.clone();
    bad.0[464] = 0;
    assert!(guest.context.set_fpu(&bad).is_err());
    guest.syscall();
    assert_eq!((guest.regs.r12, guest.regs.r13), (low, 42));
    guest.context.set_fpu(&platform::FpuState::default()).expect("the initial state");
    guest.syscall();
    assert_eq!((guest.regs.r12, guest.regs.r13), (0, 0));
    guest.context.set_fpu(&state).expect("back again");
    guest.syscall();
    assert_eq!((guest.regs.r12, guest.regs.r13), (low, 42));
    // A single step does not go through the stub's own code.
    guest.regs.eflags |= 0x100;
    let TrapEvent::Exception(info) = guest.run() else { panic!("{:x?}", guest.regs) };
    assert_eq!(info.signo, libc::SIGTRAP);
    assert!((CODE..CODE + PAGE).contains(&guest.regs.rip));
    guest.regs.eflags &= !0x100;
    guest.syscall();
    assert_eq!((guest.regs.r12, guest.regs.r13), (low, 42));
}

fn kicks_race_with_patched_calls(platform: &Arc<Systrap>) {
    for (code, step) in [(patched_calls(), 1), (patched_identity(), 1), (patched_read_link(), 22)] {
        let resident = code != patched_calls();
        let mut guest = patched(platform, code);
        if resident {
            know(&mut guest, b"/usr");
        }
        let kicking = Kicking::of(&guest);
        let (mut calls, mut interrupted) = (0, 0);
        let text = CODE..CODE + PAGE;
        while calls < 2000 && interrupted < 500 {
            match guest.run() {
                TrapEvent::Syscall => {
                    calls += 1;
                    guest.regs.rax = 1;
                }
                TrapEvent::Interrupted => interrupted += 1,
                other => panic!("{other:?}"),
            }
            assert!(text.contains(&guest.regs.rip), "the application is shown itself: {:x}", guest.regs.rip);
            let (sum, count) = (guest.regs.rbx, if resident { guest.regs.r12 } else { calls });
            // Interrupted between the two additions, or before the first.
            assert!(sum == count || sum + step == count || sum == count + step, "{sum} {count}");
        }
        kicking.end();
        assert!(interrupted > 0);
    }
}

fn main() {
    run(cases![
        system_calls_return_what_the_sentry_says,
        every_register_is_carried,
        threads_share_memory,
        fork_parts_ways,
        faults_name_address_and_access,
        files_are_mapped_private_and_shared,
        pages_move,
        kicks_are_never_lost,
        kicks_race_with_traps,
        copies_stop_at_the_first_bad_page,
        time_is_read_without_a_trap,
        extended_state_survives_and_moves,
        a_task_goes_to_another_space,
        arguments_come_along,
        results_travel_with_the_return,
        results_without_memory_come_back,
        identity_is_answered_without_a_trap,
        directories_are_no_links_for_an_epoch,
        directories_are_found_while_alignment_is_checked,
        no_directory_answers_for_the_32_bit_table,
        patched_calls_are_calls,
        patched_calls_carry_every_register,
        patched_calls_keep_the_extended_state,
        kicks_race_with_patched_calls,
        atomic_operations_are_atomic_and_fault,
        contexts_may_be_dropped_at_any_time,
        several_workers_serve_many_processes,
    ]);
}
