//! What applications may not do: reach the host, break a neighbour, or spoil the Sentry's view of anything but themselves.
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

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use platform::{
    AddressSpace, AtomicOp, Cause, FaultMode, MapSource, Prot, Regs, Sharing, SpaceError, TrapEvent,
};
use platform_systrap::Systrap;

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Where the stub region's parts lie, as an attacker knows from the source.
const STUB: u64 = 0x7ffe_0000_0000;
const ORDERS: u64 = STUB + 0x20_0000;
const CHANNEL: u64 = STUB + 0x1_0000_0000;

guest_code!(count_calls, "2: mov eax, 39\n syscall\n add rbx, rax\n jmp 2b");
guest_code!(jump_rcx, "jmp rcx");
guest_code!(interrupt_80, "mov eax, 20\n int 0x80\n mov eax, 24\n syscall");
guest_code!(call_rcx, "call rcx\n mov r12, rax\n mov eax, 24\n syscall");
guest_code!(plain_call, "syscall\n mov eax, 24\n syscall");

/// Runs until `guest` is dead, or has trapped so often that it lives.
fn dies(guest: &mut Guest) -> bool {
    (0..50).any(|_| matches!(guest.run(), TrapEvent::Died(_)))
}

fn other_entries_do_not_reach_the_host(platform: &Arc<Systrap>) {
    // getpid of the 32-bit table.
    let mut guest = Guest::new(platform, interrupt_80());
    let TrapEvent::Exception(info) = guest.run() else { panic!("{:?}", guest.regs) };
    assert_eq!(info.signo, libc::SIGSEGV);
    // The x32 table: its number arrives as it is.
    let mut guest = Guest::new(platform, plain_call());
    guest.regs.rax = 0x4000_0000 + 39;
    assert_eq!(guest.syscall(), 0x4000_0027);
    // A number with high bits that Linux ignores.
    let mut guest = Guest::new(platform, plain_call());
    guest.regs.rax = 0xffff_ffff_0000_0027;
    assert_eq!(guest.syscall(), 39);
    guest.regs.rax = 0;
    assert_eq!(guest.syscall(), 24);
    // gettimeofday, time and getcpu of the vsyscall page: a trap, or a fault where the host has none.
    for entry in 0..3 {
        let mut guest = Guest::new(platform, call_rcx());
        guest.regs.rcx = 0xffff_ffff_ff60_0000 + entry * 1024;
        guest.regs.rdi = DATA;
        guest.regs.rsi = 0;
        let at = guest.regs.rcx;
        match guest.run() {
            TrapEvent::Syscall => {
                assert!([96, 201, 309].contains(&guest.regs.orig_rax), "{}", guest.regs.orig_rax);
                guest.regs.rax = 77;
                assert_eq!(guest.syscall(), 24);
                assert_eq!(guest.regs.r12, 77);
            }
            TrapEvent::Fault { addr, .. } => assert_eq!(addr, at),
            TrapEvent::Exception(info) => assert_eq!(info.signo, libc::SIGSEGV),
            other => panic!("{other:?}"),
        }
        assert_eq!(u64::from_ne_bytes(guest.read(DATA)), 0, "nothing was written");
    }
}

/// Offsets in the stub's code where a `syscall` instruction stands.
fn stub_syscalls(guest: &Guest) -> Vec<u64> {
    // The platform refuses copies from the stub, so look through the host.
    let pid = stub_of(guest, 0x5bab_1e00);
    let mut code = vec![0; 0x1000];
    assert_eq!(hostsys::memory::read_process(pid, STUB, &mut code).expect("reading the stub"), code.len());
    (0..code.len() - 1).filter(|at| code[*at..*at + 2] == [0x0f, 0x05]).map(|at| STUB + at as u64).collect()
}

fn the_stubs_own_instructions_are_of_no_use(platform: &Arc<Systrap>) {
    let guest = Guest::new(platform, count_calls());
    let places = stub_syscalls(&guest);
    assert!(places.len() >= 8, "{places:x?}");
    drop(guest);
    let witness = Guest::new(platform, count_calls());
    let calls = [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_clone,
        libc::SYS_fork,
        libc::SYS_execve,
        libc::SYS_openat,
        libc::SYS_write,
        libc::SYS_socket,
        libc::SYS_getpid,
        libc::SYS_kill,
        libc::SYS_seccomp,
        libc::SYS_prctl,
        libc::SYS_sched_yield,
        libc::SYS_exit_group,
        libc::SYS_futex,
    ];
    let mut yields = 0;
    for place in places {
        for call in calls {
            let mut guest = Guest::new(platform, jump_rcx());
            guest.regs.rax = call as u64;
            guest.regs.rcx = place;
            // For the memory calls: make the code writable. For futex: requeue.
            let arguments = [CODE, PAGE, 7, 0x32, u64::MAX, 0];
            [guest.regs.rdi, guest.regs.rsi, guest.regs.rdx, guest.regs.r10, guest.regs.r8, guest.regs.r9] =
                arguments;
            if call == libc::SYS_futex {
                guest.regs.rsi = libc::FUTEX_REQUEUE as u64;
            }
            let event = guest.run();
            if call == libc::SYS_sched_yield && matches!(event, TrapEvent::Fault { .. }) {
                // At its own place a thread may give its CPU away, for what that is worth; the code after it then faults.
                yields += 1;
                continue;
            }
            assert_eq!(event, TrapEvent::Syscall, "call {call} at {place:x}");
            assert_eq!(guest.regs.orig_rax, call as u64);
            assert_eq!(guest.regs.rip, place + 2);
            assert!(guest.space.copy_out(CODE, &[0], FaultMode::Normal).is_err(), "code stays read-only");
        }
    }
    assert_eq!(yields, 1);
    assert_eq!(witness.read::<4>(CODE), count_calls()[..4]);
}

/// Whoever waited there could be woken in the worker's stead, when a thread of another process has trapped.
fn nobody_waits_on_the_words_of_workers(platform: &Arc<Systrap>) {
    const WORDS: u64 = STUB + 0x28_0000 + 64;
    let guest = Guest::new(platform, count_calls());
    let places = stub_syscalls(&guest);
    drop(guest);
    for place in places {
        for index in 0..4 {
            let mut guest = Guest::new(platform, jump_rcx());
            guest.regs.rax = libc::SYS_futex as u64;
            guest.regs.rcx = place;
            // Until they hold what no worker's word ever does: a call that is let through returns, and the stub's code goes on.
            let arguments = [WORDS + index * 64, libc::FUTEX_WAIT as u64, 77];
            [guest.regs.rdi, guest.regs.rsi, guest.regs.rdx] = arguments;
            guest.regs.r10 = 0;
            assert_eq!(guest.run(), TrapEvent::Syscall, "at {place:x}");
            assert_eq!((guest.regs.orig_rax, guest.regs.rip), (libc::SYS_futex as u64, place + 2));
        }
    }
}

fn every_place_of_the_stub_may_be_jumped_to(platform: &Arc<Systrap>) {
    // Whatever comes of it, it comes to the one who jumped, and the platform goes on.
    let mut witness = Guest::new(platform, count_calls());
    witness.syscall();
    let started = Instant::now();
    for offset in (0..0x780).step_by(3) {
        if started.elapsed() > Duration::from_secs(20) {
            break;
        }
        let mut guest = Guest::new(platform, jump_rcx());
        guest.regs.rcx = STUB + offset;
        for register in [&mut guest.regs.rbx, &mut guest.regs.rdi, &mut guest.regs.rdx, &mut guest.regs.r14] {
            *register = CHANNEL;
        }
        let kicker = guest.context.kicker();
        let kick = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(3));
            kicker.kick();
        });
        // It may have put itself to sleep for ever; then only its end helps.
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        let until = Instant::now() + Duration::from_millis(30);
        while guest.context.poll_switch(&mut cx, &mut guest.regs).is_pending() && Instant::now() < until {
            std::thread::yield_now();
        }
        kick.join().expect("the kicking thread");
        drop(guest);
        witness.regs.rax = 1;
        let before = witness.regs.rbx;
        witness.syscall();
        assert_eq!(witness.regs.rbx, before + 1);
    }
}

guest_code!(
    write_channel,
    // Fill the first page of the channel with rax, but for the state; then trap.
    "mov rdi, rbx
     mov ecx, 512
     rep stosq
     mov eax, 39
     syscall"
);

fn forged_channel_words_hurt_the_forger_alone(platform: &Arc<Systrap>) {
    let mut witness = Guest::new(platform, count_calls());
    for value in [0u64, 1, 2, 0xffff_ffff, !0, CHANNEL, CHANNEL + 0xfff8, STUB, 0x1_0001, CODE] {
        let mut guest = Guest::new(platform, write_channel());
        guest.regs.rbx = CHANNEL;
        guest.regs.rax = value;
        let kicker = guest.context.kicker();
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        let until = Instant::now() + Duration::from_millis(50);
        let mut nr_traps = 0;
        while Instant::now() < until && nr_traps < 20 {
            if guest.context.poll_switch(&mut cx, &mut guest.regs).is_ready() {
                nr_traps += 1;
            }
            kicker.kick();
        }
        let _ = guest.fpu();
        let _ = guest.context.staged(value);
        drop(guest);
        witness.syscall();
    }
    // A frame that is said to be elsewhere.
    let mut guest = Guest::new(platform, count_calls());
    let mut sibling = Guest::on(platform, Arc::clone(&guest.space));
    guest.syscall();
    sibling.syscall();
    let pid = stub_of(&guest, 0xf0f0);
    for place in [0u64, CHANNEL - 8, CHANNEL + 0x1ff8, CHANNEL + 0xffff, CHANNEL + 0x1_0000, !0 - 7, STUB] {
        hostsys::memory::write_process(pid, CHANNEL + 0x48, &place.to_ne_bytes()).expect("forging");
        let _ = guest.fpu();
        let _ = guest.context.set_fpu(&platform::FpuState::default());
    }
}

fn forged_results_and_answers_hurt_the_forger_alone(platform: &Arc<Systrap>) {
    let mut witness = Guest::new(platform, count_calls());
    for place in
        [0, DATA, CODE, STUB, ORDERS, CHANNEL, CHANNEL + 0x2000, CHANNEL + 0xfff8, 0x8000_0000_0000, !0]
    {
        for len in [1, 0x1000, 0x10_0000, 1 << 40, !0] {
            let mut guest = Guest::new(platform, count_calls());
            guest.syscall();
            assert!(guest.context.give(&[(DATA, 1)], &[1]));
            let pid = stub_of(&guest, 0xf0f1);
            let forge = |at: u64, words: &[u64]| {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                hostsys::memory::write_process(pid, CHANNEL + at, &bytes).expect("forging");
            };
            forge(0x100, &[place, len].repeat(16));
            forge(0x200, &[!0; 16]);
            // As many pieces as the word holds, and every bit of the mask.
            forge(0xa8, &[u64::MAX]);
            let kicker = guest.context.kicker();
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let until = Instant::now() + Duration::from_millis(10);
            while Instant::now() < until && guest.context.poll_switch(&mut cx, &mut guest.regs).is_pending() {
                kicker.kick();
            }
            drop(guest);
            witness.syscall();
        }
    }
}

guest_code!(
    forge_trap,
    // The sibling's channel: a trap is posted while it runs.
    "2: mov dword ptr [rbx], 1
     lea rdi, [rbx]
     pause
     jmp 2b"
);
guest_code!(spin_forever, "2: inc r15\n jmp 2b");

fn a_trap_forged_for_a_sibling_is_the_siblings_loss(platform: &Arc<Systrap>) {
    let mut witness = Guest::new(platform, count_calls());
    let mut victim = Guest::new(platform, spin_forever());
    let mut forger = Guest::on(platform, Arc::clone(&victim.space));
    victim.space.map(range(CODE + 0x10_0000, PAGE), MapSource::Zero, RW, Sharing::Private).expect("map");
    victim.space.copy_out(CODE + 0x10_0000, forge_trap(), FaultMode::Normal).expect("write");
    victim.space.protect(range(CODE + 0x10_0000, PAGE), Prot::READ | Prot::EXEC).expect("protect");
    forger.regs.rip = CODE + 0x10_0000;
    forger.regs.rbx = CHANNEL;
    let waker = std::task::Waker::noop();
    let mut cx = std::task::Context::from_waker(waker);
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until {
        let _ = victim.context.poll_switch(&mut cx, &mut victim.regs);
        let _ = forger.context.poll_switch(&mut cx, &mut forger.regs);
        forger.context.kicker().kick();
    }
    witness.syscall();
    drop((victim, forger));
    witness.syscall();
}

fn the_stub_region_is_refused(platform: &Arc<Systrap>) {
    let guest = Guest::new(platform, count_calls());
    let space: &dyn AddressSpace = &*guest.space;
    let bad = Err(SpaceError::BadRange);
    for target in [
        range(STUB, PAGE),
        range(STUB - PAGE, 2 * PAGE),
        range(ORDERS, PAGE),
        range(CHANNEL, PAGE),
        range(0x7fff_ffff_e000, PAGE),
        range(0x8000_0000_0000, PAGE),
        range(0xffff_ffff_ff60_0000, PAGE),
        range(0, PAGE),
        range(DATA + 1, PAGE),
        range(DATA, 100),
        range(DATA, 0),
    ] {
        assert_eq!(space.map(target, MapSource::Zero, RW, Sharing::Private), bad, "{target:x?}");
        assert_eq!(space.unmap(target), bad, "{target:x?}");
        assert_eq!(space.protect(target, RW), bad);
        assert_eq!(space.advise(target, platform::Advice::DontNeed), bad);
        assert_eq!(space.move_pages(target, DATA + 0x1000_0000, PAGE), bad);
        assert_eq!(space.fork(&[target], &[]).err(), Some(SpaceError::BadRange));
    }
    assert_eq!(space.move_pages(range(DATA, PAGE), STUB, PAGE), bad);
    assert_eq!(space.move_pages(range(DATA, PAGE), STUB - PAGE, 2 * PAGE), bad);
    assert_eq!(space.move_pages(range(DATA, PAGE), u64::MAX - 4095, PAGE), bad);
}

guest_code!(write_word, "mov [rdi], rax\n mov eax, 24\n syscall");

fn the_stubs_code_and_orders_cannot_be_written(platform: &Arc<Systrap>) {
    for at in [STUB, STUB + 0x1000, ORDERS, ORDERS + 64] {
        let mut guest = Guest::new(platform, write_word());
        guest.regs.rdi = at;
        assert_eq!(guest.run(), TrapEvent::Fault { addr: at, access: Prot::WRITE });
        let mut sixteen = [0; 16];
        assert!(guest.space.copy_in(at, &mut sixteen, FaultMode::Normal).is_err());
        assert!(guest.space.atomic_u32(at, platform::AtomicOp::Store(1)).is_err());
    }
}

fn a_killed_stub_is_noticed(platform: &Arc<Systrap>) {
    let mut witness = Guest::new(platform, count_calls());
    // While it is parked, while it runs, and while it is given orders.
    let mut guest = Guest::new(platform, count_calls());
    guest.syscall();
    hostsys::process::kill(stub_of(&guest, 1), libc::SIGKILL).expect("kill");
    let until = Instant::now() + Duration::from_secs(5);
    while guest.space.copy_in(CODE, &mut [0], FaultMode::Normal).is_ok() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(dies(&mut guest));
    assert!(guest.space.map(range(DATA, PAGE), MapSource::Zero, RW, Sharing::Private).is_err());
    assert!(guest.space.fork(&[], &[]).is_err());
    assert!(guest.space.copy_in(CODE, &mut [0], FaultMode::Normal).is_err());
    assert!(guest.space.atomic_u32(DATA, platform::AtomicOp::Store(1)).is_err());

    let mut guest = Guest::new(platform, spin_forever());
    let pid = stub_of(&guest, 2);
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        hostsys::process::kill(pid, libc::SIGKILL).expect("kill");
    });
    assert_eq!(guest.run(), TrapEvent::Died(Cause::HostSignal(libc::SIGKILL)));
    killer.join().expect("the killing thread");

    for round in 0..20u64 {
        let guest = Guest::new(platform, count_calls());
        let pid = stub_of(&guest, 100 + round);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 100));
            hostsys::process::kill(pid, libc::SIGKILL).expect("kill");
        });
        let at = range(DATA, PAGE);
        while guest.space.map(at, MapSource::Zero, RW, Sharing::Private).is_ok() {}
        killer.join().expect("the killing thread");
    }
    witness.syscall();
}

fn a_stopped_stub_goes_on(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    guest.syscall();
    let pid = stub_of(&guest, 3);
    // While thread and agent both sleep in a call that the Sentry has yet to answer: they make it again.
    for _ in 0..3 {
        hostsys::process::kill(pid, libc::SIGSTOP).expect("stop");
        std::thread::sleep(Duration::from_millis(5));
        hostsys::process::kill(pid, libc::SIGCONT).expect("continue");
        guest.space.protect(range(DATA, PAGE), RW).expect("an order");
        guest.syscall();
    }
}

fn channels_of_the_dead_are_empty(platform: &Arc<Systrap>) {
    let secret = 0x0053_4543_5245_5421_u64;
    for round in 0..40u64 {
        let mut guest = Guest::new(platform, write_word());
        let pid = stub_of(&guest, 0xabc0 + round);
        // Nothing of an earlier guest is in the channels of this one.
        let mut slot = vec![0; 0x10_0000];
        assert_eq!(hostsys::memory::read_process(pid, CHANNEL, &mut slot).expect("reading"), slot.len());
        assert!(!slot.chunks_exact(8).any(|word| word == secret.to_ne_bytes()), "round {round}");
        guest.regs.rax = secret;
        guest.regs.rdi = CHANNEL + 0x2_0000 * 7 + 0x3000;
        assert_eq!(guest.syscall(), 24);
        let file = secret.to_ne_bytes().repeat(platform::HAND_BYTES / 8);
        guest.context.at_hand().expect("a place").put(&platform::HandFile {
            fd: 3,
            stat: &[],
            position: 0,
            size: 1 << 20,
            piece: platform::HandPiece { start: 0, bytes: &file },
            epoch: 1,
            may_close: true,
        });
        guest.space.copy_out(DATA, &[0; 8], FaultMode::Normal).expect("unmark");
        drop(guest);
        // Reaping is another thread's work.
        let until = Instant::now() + Duration::from_secs(5);
        while stubs().contains(&pid) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn stubs_have_no_rights(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    guest.syscall();
    let file = std::fs::File::open("/proc/self/exe").expect("open");
    let source = MapSource::File { file: std::os::fd::AsFd::as_fd(&file), offset: 0, writable: false };
    guest.space.map(range(0x6000_0000, PAGE), source, Prot::READ, Sharing::Private).expect("map");
    let mut forked = Guest::on(platform, guest.space.fork(&[], &[]).expect("fork"));
    forked.syscall();
    // Others may be in the making.
    for pid in [stub_of(&guest, 11), stub_of(&forked, 22)] {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
        let mut nr_filters = Vec::new();
        for task in tasks {
            let task = task.expect("a task").path();
            let open = std::fs::read_dir(task.join("fd")).expect("descriptors").count();
            assert_eq!(open, 0, "{}", task.display());
            let status = std::fs::read_to_string(task.join("status")).expect("status");
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                line.split_whitespace().nth(1).unwrap_or_default().to_owned()
            };
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
            }
            assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
            nr_filters.push(field("Seccomp_filters:"));
        }
        // The agent has one filter, application threads a second; none has fewer.
        assert!(nr_filters.iter().all(|number| number == "1" || number == "2"), "{nr_filters:?}");
        assert_eq!(nr_filters.iter().filter(|number| *number == "1").count(), 1, "{nr_filters:?}");
        // Nothing of the Sentry's memory is left: no mapping but the stub's and the guest's.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
        for line in maps.lines() {
            let start =
                u64::from_str_radix(line.split('-').next().expect("an address"), 16).expect("a number");
            let known = [CODE..CODE + 0x20_0000, DATA..STACK, STUB..u64::MAX];
            assert!(known.iter().any(|part| part.contains(&start)), "{line}");
        }
    }
}

/// Contexts of one space, at least one of which runs on and cannot be interrupted: it has blocked the kick by a return from
/// a frame of its own making.
fn refusing(platform: &Arc<Systrap>) -> (Arc<dyn AddressSpace>, Vec<Guest>) {
    let guest = Guest::new(platform, jump_rcx());
    let places = stub_syscalls(&guest);
    let frame = DATA + 0x1000;
    let word = |offset: u64, value: u64| {
        guest.space.copy_out(frame + offset, &value.to_ne_bytes(), FaultMode::Normal).expect("write");
    };
    word(0, 7);
    word(40 + 15 * 8, STACK - 64);
    word(40 + 16 * 8, CODE + 0x100);
    word(40 + 17 * 8, 0x202);
    word(40 + 18 * 8, 0x33 | (0x2b << 48));
    word(296, !0);
    guest.space.protect(range(CODE, 0x1_0000), RW).expect("protect");
    guest.space.copy_out(CODE + 0x100, &[0xeb, 0xfe], FaultMode::Normal).expect("write");
    guest.space.protect(range(CODE, 0x1_0000), Prot::READ | Prot::EXEC).expect("protect");
    let space = Arc::clone(&guest.space);
    let mut running = Vec::new();
    for place in places {
        let mut context = Guest::on(platform, Arc::clone(&space));
        context.regs = Regs { rip: CODE, rcx: place, rax: 15, rsp: frame, ..Regs::default() };
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        let until = Instant::now() + Duration::from_millis(50);
        let mut trapped = false;
        while Instant::now() < until && !trapped {
            trapped = context.context.poll_switch(&mut cx, &mut context.regs).is_ready()
                && context.regs.orig_rax != u64::MAX;
        }
        if !trapped {
            running.push(context);
        }
    }
    assert!(!running.is_empty(), "one of the instructions is the return from the handler");
    (space, running)
}

/// Waits until the process of `space` is gone, while something else runs.
fn is_put_to_an_end(platform: &Arc<Systrap>, space: &Arc<dyn AddressSpace>) {
    let until = Instant::now() + Duration::from_secs(20);
    let mut witness = Guest::new(platform, count_calls());
    while space.copy_in(CODE, &mut [0], FaultMode::Normal).is_ok() {
        assert!(Instant::now() < until, "the stub still runs");
        witness.syscall();
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn a_thread_that_refuses_to_stop_is_killed(platform: &Arc<Systrap>) {
    let (space, running) = refusing(platform);
    drop(running);
    is_put_to_an_end(platform, &space);
}

fn a_task_that_refuses_to_end_is_killed(platform: &Arc<Systrap>) {
    let (space, running) = refusing(platform);
    for guest in &running {
        // Its context is there until it traps.
        guest.context.kicker().kick_to_end();
    }
    is_put_to_an_end(platform, &space);
    for mut guest in running {
        assert!(dies(&mut guest), "{:x?}", guest.regs);
    }
}

guest_code!(
    forge_call,
    // A call of patched code, as the channel tells it: fork. Then the thread does its own things.
    "mov dword ptr [rbx + 0x40], 31
     lea rax, [rbx + 0xc00]
     mov [rbx + 0x48], rax
     mov dword ptr [rbx + 0xd48], 57
     mov eax, 1
     xchg [rbx], eax
     2: jmp 2b"
);

/// A guest that has told of a call of patched code, and does not look at its channel.
fn deaf(platform: &Arc<Systrap>) -> Guest {
    let mut guest = Guest::new(platform, forge_call());
    guest.regs.rbx = CHANNEL;
    assert_eq!(guest.syscall(), 57);
    guest
}

fn a_thread_that_does_not_store_its_state_keeps_nobody(platform: &Arc<Systrap>) {
    const CAUSE: Cause = Cause::Protocol("a thread did not store its state");
    let mut witness = Guest::new(platform, count_calls());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    // Where someone asks for the state.
    let mut guest = deaf(platform);
    let mut served = 0_u64;
    while guest.context.poll_settle(&mut cx).is_pending() {
        witness.syscall();
        served += 1;
    }
    assert!(served > 0, "the worker was kept");
    assert!(guest.context.fpu().is_err());
    assert_eq!(guest.run(), TrapEvent::Died(CAUSE));
    // Where the way back leads through the host.
    let mut guest = deaf(platform);
    guest.regs.eflags |= 0x100;
    served = 0;
    let event = loop {
        match guest.context.poll_switch(&mut cx, &mut guest.regs) {
            std::task::Poll::Ready(event) => break event,
            std::task::Poll::Pending => witness.syscall(),
        };
        served += 1;
    };
    assert_eq!(event, TrapEvent::Died(CAUSE));
    assert!(served > 0, "the worker was kept");
    // Where its task is gone before it has answered.
    let mut guest = deaf(platform);
    assert!(guest.context.poll_settle(&mut cx).is_pending());
    let space = Arc::clone(&guest.space);
    drop(guest);
    is_put_to_an_end(platform, &space);
}

fn a_state_that_is_none_ends_its_process(platform: &Arc<Systrap>) {
    let mut guest = deaf(platform);
    let pid = stub_of(&guest, 0x5a5a);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    guest.regs.eflags |= 0x100;
    assert!(guest.context.poll_switch(&mut cx, &mut guest.regs).is_pending());
    hostsys::memory::write_process(pid, CHANNEL + 0xd000, &[0xff; 0x3000]).expect("forging");
    hostsys::memory::write_process(pid, CHANNEL, &1_u32.to_ne_bytes()).expect("posting");
    let event = guest.run();
    let cause = Cause::Protocol("a thread stored a state that the host would refuse");
    assert_eq!(event, TrapEvent::Died(cause));
}

guest_code!(
    silence_siblings,
    // Whatever the other threads post is taken back, and what they are told to do.
    "2: mov dword ptr [rbx + 0x10000], 0
     mov dword ptr [rbx + 0x1000c], 0
     mov dword ptr [rbx + 0x20000], 0
     mov dword ptr [rbx + 0x2000c], 0
     inc dword ptr [rdi]
     jmp 2b"
);
guest_code!(count_forever, "2: lock inc dword ptr [rdi]\n jmp 2b");

fn atomic_operations_need_no_thread_of_the_application(platform: &Arc<Systrap>) {
    for (code, alone) in [(silence_siblings(), true), (count_forever(), false)] {
        let mut guest = Guest::new(platform, code);
        let mut sibling = Guest::on(platform, Arc::clone(&guest.space));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for thread in [&mut guest, &mut sibling] {
            thread.regs.rbx = CHANNEL;
            thread.regs.rdi = DATA;
        }
        assert!(guest.context.poll_switch(&mut cx, &mut guest.regs).is_pending());
        if !alone {
            assert!(sibling.context.poll_switch(&mut cx, &mut sibling.regs).is_pending());
        }
        while guest.read::<4>(DATA) == [0; 4] {
            std::thread::yield_now();
        }
        let space = &guest.space;
        for round in 0..200 {
            assert_eq!(space.atomic_u32(DATA + 8, AtomicOp::Add(1)), Ok(round), "an unchallenged word");
            // One that others change all the time.
            let high = u32::from(round % 2 == 0) << 31;
            assert!(space.atomic_u32(DATA, AtomicOp::And(0x7fff_ffff)).is_ok(), "round {round}");
            assert!(space.atomic_u32(DATA, AtomicOp::Or(high)).is_ok(), "round {round}");
            assert!(space.atomic_u32(DATA, AtomicOp::Xor(high)).is_ok(), "round {round}");
        }
    }
}

guest_code!(
    patched_count,
    "2: mov eax, 77
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: add rbx, rax
     jmp 2b"
);

/// A kick that was sent before its thread stopped may arrive when it has.
fn a_late_kick_spoils_no_frame(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, patched_count());
    guest.regs.r15 = guest.space.call_entry().expect("the platform takes calls");
    let pid = stub_of(&guest, 0x1a7e);
    let word = |at: u64| {
        let mut word = [0; 4];
        hostsys::memory::read_process(pid, CHANNEL + at, &mut word).expect("reading a channel");
        u32::from_ne_bytes(word)
    };
    for (round, lost) in [false, true].into_iter().cycle().take(8).enumerate() {
        assert_eq!(guest.syscall(), 77);
        if lost {
            assert!(guest.context.give(&[(0x9000, 1)], &[1]));
            assert_eq!(guest.run(), TrapEvent::Undelivered);
        }
        let state = guest.fpu().expect("the state");
        guest.context.set_fpu(&state).expect("it is good");
        hostsys::process::tgkill(pid, word(0x44) as i32, libc::SIGURG).expect("a kick");
        let until = Instant::now() + Duration::from_secs(10);
        while word(0xb4) == 0 {
            assert!(Instant::now() < until, "the kick of round {round} does not arrive");
            std::thread::sleep(Duration::from_millis(1));
        }
        guest.regs.rax = 3;
        let before = guest.regs;
        assert_eq!(guest.run(), TrapEvent::Interrupted, "round {round}");
        assert_eq!(
            Regs { orig_rax: before.orig_rax, eflags: before.eflags, ..guest.regs },
            before,
            "round {round}"
        );
        assert_eq!(guest.syscall(), 77);
        assert_eq!(guest.regs.rbx, before.rbx + 3);
        guest.regs.rax = 0;
    }
}

fn stubs_die_with_the_sentry(platform: &Arc<Systrap>) {
    // A child of this process plays the Sentry, and is killed.
    let _ = platform;
    if std::env::var("CASEMATE_PLAY").is_ok() {
        let mut guest = Guest::new(platform, spin_forever());
        let waker = std::task::Waker::noop();
        let polled = guest.context.poll_switch(&mut std::task::Context::from_waker(waker), &mut guest.regs);
        assert!(polled.is_pending());
        for pid in stubs() {
            println!("{pid}");
        }
        println!("end");
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .env("CASEMATE_PLAY", "1")
        .env("CASEMATE_CASE", "stubs_die_with_the_sentry")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starting a Sentry");
    let out = std::io::BufReader::new(child.stdout.take().expect("its output"));
    let pids: Vec<String> = std::io::BufRead::lines(out)
        .map(|line| line.expect("a line"))
        .take_while(|line| line != "end")
        .collect();
    assert!(pids.len() >= 2);
    child.kill().expect("kill");
    child.wait().expect("wait");
    let until = Instant::now() + Duration::from_secs(10);
    let alive = |pid: &String| {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| !status.contains("State:\tZ"))
    };
    while pids.iter().any(alive) {
        assert!(Instant::now() < until, "a stub outlived its Sentry");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn main() {
    run(cases![
        other_entries_do_not_reach_the_host,
        the_stubs_own_instructions_are_of_no_use,
        nobody_waits_on_the_words_of_workers,
        every_place_of_the_stub_may_be_jumped_to,
        forged_channel_words_hurt_the_forger_alone,
        forged_results_and_answers_hurt_the_forger_alone,
        a_trap_forged_for_a_sibling_is_the_siblings_loss,
        the_stub_region_is_refused,
        the_stubs_code_and_orders_cannot_be_written,
        a_killed_stub_is_noticed,
        a_stopped_stub_goes_on,
        channels_of_the_dead_are_empty,
        stubs_have_no_rights,
        a_thread_that_refuses_to_stop_is_killed,
        a_task_that_refuses_to_end_is_killed,
        a_thread_that_does_not_store_its_state_keeps_nobody,
        a_state_that_is_none_ends_its_process,
        atomic_operations_need_no_thread_of_the_application,
        a_late_kick_spoils_no_frame,
        stubs_die_with_the_sentry,
    ]);
}
