//! Actions of signals that the stub tells by itself: which calls it takes, and what it leaves to the Sentry.
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

use common::*;
use platform::{Defaulted, Identity, MapSource, Prot, Regs, Sharing, TrapEvent};
use platform_systrap::Systrap;

const SIGACTION: u64 = libc::SYS_rt_sigaction as u64;
/// A page that no guest maps by itself.
const SPARE: u64 = 0x6000_0000;
const STUB: u64 = 0x7ffe_0000_0000;
const CHANNEL: u64 = STUB + 0x1_0000_0000;

guest_code!(ask, "2: mov eax, 13\n syscall\n inc rbx\n mov eax, 110\n syscall\n jmp 2b");
guest_code!(ask_by_the_other_table, "mov eax, 13\n int 0x80\n mov eax, 110\n syscall");
guest_code!(
    patched_ask,
    "2: mov eax, 13
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: inc rbx
     mov eax, 110
     lea rcx, [rip + 4f]
     jmp r15
     syscall
     4: jmp 2b"
);
guest_code!(
    patched_asks,
    "2: mov eax, 13
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: inc rbx
     add rbx, rax
     add r12, 1
     jmp 2b"
);

/// A guest with the two ways into the stub, which may tell the actions of `untouched`.
fn guests(platform: &Arc<Systrap>, untouched: u64) -> [Guest; 2] {
    [ask(), patched_ask()].map(|code| {
        let mut guest = Guest::new(platform, code);
        guest.regs.r15 = guest.space.call_entry().expect("the platform takes calls");
        guest.context.answer(Some(Identity::default()));
        guest.context.answer_actions(untouched);
        guest
    })
}

/// Asks for the action of `signal` into `old`; true if the stub has told it.
fn asks(guest: &mut Guest, signal: u64, old: u64) -> bool {
    asks_with(guest, [signal, 0, old, 8])
}

fn asks_with(guest: &mut Guest, [rdi, rsi, rdx, r10]: [u64; 4]) -> bool {
    let before = guest.regs.rbx;
    guest.regs = Regs { rip: CODE, rdi, rsi, rdx, r10, ..guest.regs };
    let told = match guest.syscall() {
        SIGACTION => {
            assert_eq!((guest.regs.rdi, guest.regs.rsi), (rdi, rsi));
            guest.regs.rax = 5;
            assert_eq!(guest.syscall(), 110);
            false
        }
        other => {
            assert_eq!(other, 110);
            true
        }
    };
    let r = guest.regs;
    assert_eq!((r.rbx, r.rdi, r.rsi, r.rdx, r.r10), (before + 1, rdi, rsi, rdx, r10));
    told
}

fn what_nobody_has_set_is_told(platform: &Arc<Systrap>) {
    for mut guest in guests(platform, !(1 << 9)) {
        for signal in 1..=64 {
            guest.write(DATA, &[7; 48]);
            assert_eq!(asks(&mut guest, signal, DATA + 8), signal != 10);
            let zero = if signal == 10 { [7; 32] } else { [0; 32] };
            assert_eq!(guest.read::<48>(DATA), [&[7; 8][..], &zero, &[7; 8]].concat()[..]);
            assert_eq!(asks(&mut guest, signal, 0), signal != 10);
        }
        // Of the number, only an int counts.
        assert!(asks(&mut guest, 1 << 32 | 1, DATA));
        guest.context.answer_actions(0);
        assert!(!asks(&mut guest, 1, DATA));
        guest.context.answer_actions(1);
        assert!(asks(&mut guest, 1, DATA));
        assert!(!asks(&mut guest, 2, DATA));
        guest.context.answer(None);
        assert!(!asks(&mut guest, 1, DATA));
    }
}

fn other_calls_are_for_the_sentry(platform: &Arc<Systrap>) {
    for mut guest in guests(platform, !0) {
        for signal in [0, 65, 128, 1 << 31, u64::MAX, 1 << 32] {
            assert!(!asks(&mut guest, signal, DATA));
        }
        for size in [0, 4, 16, 1 << 32 | 8] {
            assert!(!asks_with(&mut guest, [1, 0, DATA, size]));
        }
        guest.write(DATA, &[1; 32]);
        assert!(!asks_with(&mut guest, [1, DATA, DATA + 64, 8]));
        assert!(!asks_with(&mut guest, [1, 8, DATA + 64, 8]));
        assert!(!asks_with(&mut guest, [1, 1 << 40, DATA + 64, 8]));
    }
}

/// Sets what `DATA` holds; true if the stub has taken it.
fn sets(guest: &mut Guest, signal: u64, old: u64) -> bool {
    asks_with(guest, [signal, DATA, old, 8])
}

const DEFAULT: [u64; 4] = [0, 0x0400_0000, 0x1234, 1 << 5];

fn put(guest: &Guest, action: [u64; 4]) {
    guest.write(DATA, &action.map(u64::to_ne_bytes).concat());
}

fn the_default_may_be_set_where_it_is_set(platform: &Arc<Systrap>) {
    const IGNORED: [u64; 6] = [9, 17, 18, 19, 23, 28];
    for mut guest in guests(platform, !(1 << 9)) {
        put(&guest, DEFAULT);
        assert_eq!(guest.context.take_defaulted(), None);
        let mut signals = 0;
        for signal in 1..=64 {
            guest.write(DATA + 64, &[7; 32]);
            let taken = signal != 10 && !IGNORED.contains(&signal);
            assert_eq!(sets(&mut guest, signal, DATA + 64), taken, "{signal}");
            assert_eq!(guest.read::<32>(DATA + 64), [if taken { 0 } else { 7 }; 32]);
            signals |= u64::from(taken) << (signal - 1);
            // From then on it has been set.
            assert_eq!(asks(&mut guest, signal, 0), !taken && signal != 10);
            assert!(!taken || !sets(&mut guest, signal, 0));
        }
        let [_, flags, restorer, mask] = DEFAULT;
        let all = Defaulted { signals, flags, restorer, mask };
        assert_eq!(guest.context.take_defaulted(), Some(all));
        assert_eq!(guest.context.take_defaulted(), None);
        guest.context.answer_actions(!0);
        for action in [[1, 0, 0, 0], [1 << 63, 0, 0, 0], [0x1000, 0, 0, 0]] {
            put(&guest, action);
            assert!(!sets(&mut guest, 1, 0));
        }
        // All since the Sentry has looked are the same.
        put(&guest, [0, 7, 8, 9]);
        assert!(sets(&mut guest, 1, DATA));
        assert_eq!(guest.read::<32>(DATA), [0; 32]);
        for other in [[0, 6, 8, 9], [0, 7, 6, 9], [0, 7, 8, 6], [0, 0, 0, 0]] {
            put(&guest, other);
            assert!(!sets(&mut guest, 2, 0));
        }
        put(&guest, [0, 7, 8, 9]);
        assert!(sets(&mut guest, 64, 0));
        let two = Defaulted { signals: 1 << 63 | 1, flags: 7, restorer: 8, mask: 9 };
        assert_eq!(guest.context.take_defaulted(), Some(two));
        put(&guest, [0; 4]);
        assert!(sets(&mut guest, 2, 0));
        let none = Defaulted { signals: 2, flags: 0, restorer: 0, mask: 0 };
        assert_eq!(guest.context.take_defaulted(), Some(none));
        // Nothing is set where the old one finds no memory, nor where the new one cannot be read whole.
        assert!(!sets(&mut guest, 3, SPARE));
        assert!(!asks_with(&mut guest, [3, DATA + 0xfff0, 0, 8]));
        assert_eq!(guest.context.take_defaulted(), None);
        guest.context.answer(None);
        assert!(!sets(&mut guest, 3, 0));
        assert_eq!(guest.context.take_defaulted(), None);
    }
}

guest_code!(
    scribble,
    "rdgsbase rax
     mov [rax + 0x60], rbx
     mov [rax + 0x238], rbx
     mov eax, 110
     syscall"
);

fn only_what_was_named_is_believed(platform: &Arc<Systrap>) {
    for named in [0, !0, 0x8000_0000_0000_00ff] {
        let mut guest = Guest::new(platform, scribble());
        guest.context.answer(Some(Identity::default()));
        guest.context.answer_actions(named);
        guest.regs.rbx = !0;
        assert_eq!(guest.syscall(), 110);
        let taken = guest.context.take_defaulted().map(|taken| taken.signals);
        let never = [9, 17, 18, 19, 23, 28].iter().fold(0, |set, signal| set | 1 << (signal - 1));
        assert_eq!(taken, Some(named & !never));
        // And once.
        guest.regs.rip = CODE;
        assert_eq!(guest.syscall(), 110);
        assert_eq!(guest.context.take_defaulted().map(|taken| taken.signals), Some(0));
    }
}

fn bad_memory_is_for_the_sentry(platform: &Arc<Systrap>) {
    for mut guest in guests(platform, !0) {
        let page = range(SPARE, PAGE);
        guest.space.map(page, MapSource::Zero, Prot::READ, Sharing::Private).expect("a page");
        let end = DATA + 0x1_0000;
        let places = [1, SPARE, end, end - 1, end - 16, end - 31, STUB - 31, STUB, STUB + 1, CHANNEL];
        for old in places.into_iter().chain([CHANNEL + 0x100, 1 << 47, 1 << 63, u64::MAX - 31, u64::MAX]) {
            assert!(!asks(&mut guest, 1, old), "{old:#x}");
        }
        assert!(asks(&mut guest, 1, end - 32));
        // Told where there is memory again.
        guest.space.protect(page, Prot::READ | Prot::WRITE).expect("the page");
        assert!(asks(&mut guest, 1, SPARE));
    }
}

fn alignment_is_not_asked_for(platform: &Arc<Systrap>) {
    const ALIGNMENT_CHECK: u64 = 0x4_0000;
    for mut guest in guests(platform, !0) {
        for at in 0..16 {
            guest.write(DATA, &[7; 64]);
            guest.regs.eflags |= ALIGNMENT_CHECK;
            if asks(&mut guest, 1, DATA + at) {
                assert_eq!(guest.read::<32>(DATA + at), [0; 32]);
            }
            assert_eq!(guest.regs.eflags & ALIGNMENT_CHECK, ALIGNMENT_CHECK);
        }
        assert!(asks(&mut guest, 1, DATA));
    }
}

fn a_new_thread_is_told_nothing(platform: &Arc<Systrap>) {
    let [_, mut guest] = guests(platform, !0);
    for _ in 0..3 {
        assert!(asks(&mut guest, 1, DATA));
        let (space, r15) = (Arc::clone(&guest.space), guest.regs.r15);
        drop(guest);
        // In the channel of the one before.
        guest = Guest::on(platform, space);
        guest.regs.r15 = r15;
        guest.context.answer(Some(Identity::default()));
        assert!(!asks(&mut guest, 1, DATA));
        assert_eq!(guest.context.take_defaulted(), None);
        guest.context.answer_actions(!0);
        put(&guest, DEFAULT);
        assert!(sets(&mut guest, 2, 0));
    }
}

fn the_32_bit_table_is_another(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, ask_by_the_other_table());
    guest.context.answer(Some(Identity::default()));
    guest.context.answer_actions(!0);
    guest.regs = Regs { rdi: 1, rsi: 0, rdx: DATA, r10: 8, ..guest.regs };
    let event = guest.run();
    assert!(matches!(event, TrapEvent::Exception(info) if info.signo == libc::SIGSEGV), "{event:?}");
}

fn kicks_are_not_lost_to_an_answer(platform: &Arc<Systrap>) {
    // One answer is written where it can be, the other faults each time.
    for old in [DATA, SPARE] {
        let mut guest = Guest::new(platform, patched_asks());
        guest.regs.r15 = guest.space.call_entry().expect("the platform takes calls");
        guest.context.answer(Some(Identity::default()));
        guest.context.answer_actions(!0);
        guest.regs = Regs { rdi: 1, rsi: 0, rdx: old, r10: 8, ..guest.regs };
        let kicking = Kicking::of(&guest);
        let (mut calls, mut interrupted) = (0, 0);
        while calls < 2000 && interrupted < 500 {
            match guest.run() {
                TrapEvent::Syscall => {
                    calls += 1;
                    assert_eq!((old, guest.regs.orig_rax), (SPARE, SIGACTION));
                    guest.regs.rax = 0;
                }
                TrapEvent::Interrupted => interrupted += 1,
                other => panic!("{other:?}"),
            }
            let r = guest.regs;
            assert!((CODE..CODE + PAGE).contains(&r.rip), "the application is shown itself: {:x}", r.rip);
            assert!(r.rbx == r.r12 || r.rbx == r.r12 + 1, "{} {}", r.rbx, r.r12);
        }
        kicking.end();
        assert!(interrupted > 0);
    }
}

fn main() {
    run(cases![
        what_nobody_has_set_is_told,
        other_calls_are_for_the_sentry,
        the_default_may_be_set_where_it_is_set,
        only_what_was_named_is_believed,
        bad_memory_is_for_the_sentry,
        alignment_is_not_asked_for,
        a_new_thread_is_told_nothing,
        the_32_bit_table_is_another,
        kicks_are_not_lost_to_an_answer,
    ]);
}
