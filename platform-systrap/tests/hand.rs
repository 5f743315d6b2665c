//! Files at hand: what the stub answers of an open file by itself, and what it leaves to the Sentry.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::exit,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![allow(unsafe_code, reason = "reads the addresses of the code that is copied into guests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use platform::{AtHand, HandFile, HandPiece, HandUse, MapSource, Platform, Prot, Sharing, TrapEvent};
use platform_systrap::Systrap;

const RW: Prot = Prot::READ.union(Prot::WRITE);
/// A page that no guest maps by itself.
const SPARE: u64 = 0x6000_0000;
/// The call that every piece of guest code here ends with.
const END: u64 = 110;
const FD: u64 = 5;
const SIZE: usize = 20_000;

const CLOSE: u64 = libc::SYS_close as u64;
const READ: u64 = libc::SYS_read as u64;
const PREAD: u64 = libc::SYS_pread64 as u64;
const SEEK: u64 = libc::SYS_lseek as u64;
const FSTAT: u64 = libc::SYS_fstat as u64;
const FSTATAT: u64 = libc::SYS_newfstatat as u64;
const IOCTL: u64 = libc::SYS_ioctl as u64;

guest_code!(one_call, "syscall; mov r12, rax; mov eax, 110; syscall");
guest_code!(
    one_patched_call,
    "lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: mov r12, rax
     mov eax, 110
     syscall"
);
guest_code!(one_call_of_the_other_table, "int 0x80; mov r12, rax; mov eax, 110; syscall");

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Answered(i64),
    Trapped,
}
use End::{Answered, Trapped};

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|n| (n % 251) as u8 ^ (n >> 8) as u8).collect()
}

fn stat() -> Vec<u8> {
    (1..=144).collect()
}

fn epoch(platform: &Arc<Systrap>) -> u64 {
    let epoch = platform.file_epoch().expect("the platform has one");
    // Nobody else has made one here, and none is zero.
    let _ = epoch.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
    epoch.load(Ordering::Relaxed)
}

/// Puts a file at hand, of which `available` bytes are there.
fn put(guest: &Guest, available: usize) -> (Arc<dyn AtHand>, u64) {
    let place = guest.context.at_hand().expect("a place");
    let number = place.put(&HandFile {
        fd: FD as u32,
        stat: &stat(),
        position: 0,
        size: SIZE as u64,
        piece: HandPiece { start: 0, bytes: &bytes()[..available] },
        epoch: epoch(&guest.platform),
        may_close: true,
    });
    (place, number)
}

fn ask(guest: &mut Guest, call: u64, args: [u64; 4]) -> End {
    guest.regs.rip = CODE;
    guest.regs.rax = call;
    [guest.regs.rdi, guest.regs.rsi, guest.regs.rdx, guest.regs.r10] = args;
    let nr = guest.syscall();
    if nr == END {
        return Answered(guest.regs.r12.cast_signed());
    }
    assert_eq!(nr, call);
    assert_eq!([guest.regs.rdi, guest.regs.rsi, guest.regs.rdx, guest.regs.r10], args);
    guest.regs.rax = 7;
    assert_eq!(guest.syscall(), END);
    assert_eq!(guest.regs.r12, 7);
    Trapped
}

/// A guest for each way into the stub.
fn both(platform: &Arc<Systrap>) -> [Guest; 2] {
    let mut patched = Guest::new(platform, one_patched_call());
    patched.regs.r15 = patched.space.call_entry().expect("the platform takes calls");
    let mut both = [Guest::new(platform, one_call()), patched];
    for guest in &mut both {
        guest.context.answer(Some(platform::Identity::default()));
    }
    both
}

fn a_file_at_hand_is_read_without_a_trap(platform: &Arc<Systrap>) {
    let all = bytes();
    for mut guest in both(platform) {
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Trapped);
        let (place, number) = put(&guest, SIZE);
        assert_eq!(ask(&mut guest, FSTAT, [FD, DATA, 0, 0]), Answered(0));
        assert_eq!(guest.read::<145>(DATA)[..], [&stat()[..], &[0]].concat());
        guest.write(DATA, &[0; 200]);
        // A path of nothing is on a page of zeroes.
        let flags = libc::AT_EMPTY_PATH as u64;
        assert_eq!(ask(&mut guest, FSTATAT, [FD, DATA + 0x200, DATA + 1, flags]), Answered(0));
        assert_eq!(guest.read::<146>(DATA)[..], [&[0], &stat()[..], &[0]].concat());
        assert_eq!(ask(&mut guest, IOCTL, [FD, libc::TCGETS, 0, 0]), Answered(-25));
        assert_eq!(place.position(number), Some(0));
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 100, 0]), Answered(100));
        assert_eq!(guest.read::<101>(DATA)[..100], all[..100]);
        assert_eq!(place.position(number), Some(100));
        assert_eq!(ask(&mut guest, PREAD, [FD, DATA, 100, 1000]), Answered(100));
        assert_eq!(guest.read::<100>(DATA)[..], all[1000..1100]);
        // More than there is, to an odd place.
        assert_eq!(ask(&mut guest, READ, [FD, DATA + 3, 0x7fff_f000, 0]), Answered(SIZE as i64 - 100));
        assert_eq!(guest.read::<{ SIZE - 100 }>(DATA + 3)[..], all[100..]);
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 1, 0]), Answered(0));
        assert_eq!(ask(&mut guest, PREAD, [FD, DATA, 1, SIZE as u64]), Answered(0));
        assert_eq!(place.position(number), Some(SIZE as u64));
        let used = HandUse { calls: 8, reads: 5, read_bytes: SIZE as u64 + 100 };
        assert_eq!(place.take_use(number), used);
        assert_eq!(place.take_use(number), HandUse::default());
    }
}

fn a_file_at_hand_is_closed_once(platform: &Arc<Systrap>) {
    for mut guest in both(platform) {
        let (place, number) = put(&guest, SIZE);
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 100, 0]), Answered(100));
        assert!(!place.is_closed(number));
        assert_eq!(ask(&mut guest, CLOSE, [FD + 1, 0, 0, 0]), Trapped);
        assert_eq!(ask(&mut guest, CLOSE, [FD, 0, 0, 0]), Answered(0));
        assert!(place.is_closed(number));
        assert_eq!((place.position(number), place.take_use(number).calls), (Some(100), 2));
        for call in [CLOSE, READ, FSTAT, SEEK] {
            assert_eq!(ask(&mut guest, call, [FD, DATA, 1, 0]), Trapped);
        }
        // It stays so for those who look later.
        place.revoke(number);
        assert!(place.is_closed(number));
        let (_, second) = put(&guest, SIZE);
        assert!(!place.is_closed(number) && !place.is_closed(second));
        place.revoke(second);
        assert_eq!(ask(&mut guest, CLOSE, [FD, 0, 0, 0]), Trapped);
        assert!(!place.is_closed(second));
        // Another epoch, or one that is not to be closed here.
        let (_, third) = put(&guest, SIZE);
        platform.file_epoch().expect("an epoch").fetch_add(1, Ordering::SeqCst);
        assert_eq!(ask(&mut guest, CLOSE, [FD, 0, 0, 0]), Trapped);
        let file = HandFile {
            fd: FD as u32,
            stat: &stat(),
            position: 0,
            size: 1,
            piece: HandPiece { start: 0, bytes: &[1] },
            epoch: epoch(platform),
            may_close: false,
        };
        let fourth = place.put(&file);
        assert_eq!(ask(&mut guest, CLOSE, [FD, 0, 0, 0]), Trapped);
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 100, 0]), Answered(1));
        assert!(!place.is_closed(third) && !place.is_closed(fourth));
    }
}

fn got(guest: &Guest, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(guest.space.copy_in(DATA, &mut bytes, platform::FaultMode::Normal), Ok(len));
    bytes
}

fn a_piece_of_a_file_is_read(platform: &Arc<Systrap>) {
    const START: usize = 8192;
    const LEN: usize = 4096;
    let all = bytes();
    for mut guest in both(platform) {
        let (place, number) = put(&guest, 100);
        place.put_piece(number, HandPiece { start: START as u64, bytes: &all[START..][..LEN] });
        for (at, len) in [(START, 10), (START + LEN - 7, 7), (START, LEN), (START + 1, LEN - 1)] {
            let args = [FD, DATA, len as u64, at as u64];
            assert_eq!(ask(&mut guest, PREAD, args), Answered(len as i64));
            assert_eq!(got(&guest, len), all[at..][..len]);
        }
        for (at, len) in
            [(0, 1), (START - 1, 1), (START - 1, 2), (START + LEN - 1, 2), (START + LEN, 1), (0, SIZE)]
        {
            assert_eq!(ask(&mut guest, PREAD, [FD, DATA, len as u64, at as u64]), Trapped);
        }
        // The end of the file needs no bytes.
        assert_eq!(ask(&mut guest, PREAD, [FD, DATA, 10, SIZE as u64]), Answered(0));
        place.renew(number, START as u64 + 5, epoch(platform));
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
        assert_eq!(got(&guest, 10), all[START + 5..][..10]);
        assert_eq!(place.position(number), Some(START as u64 + 15));
        // Nothing is put there for a file that has gone.
        let (_, second) = put(&guest, 100);
        place.renew(number, 3, 0);
        place.put_piece(number, HandPiece::default());
        assert_eq!(place.position(second), Some(0));
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
        // Nor does one that was revoked come back.
        place.revoke(second);
        place.renew(second, 3, epoch(platform));
        assert_eq!(ask(&mut guest, SEEK, [FD, 0, 1, 0]), Trapped);
    }
}

fn of_a_file_that_changes_the_position_is_known(platform: &Arc<Systrap>) {
    for mut guest in both(platform) {
        let place = guest.context.at_hand().expect("a place");
        let number = place.put(&HandFile {
            fd: FD as u32,
            stat: &[],
            position: 70,
            size: 0,
            piece: HandPiece::default(),
            epoch: epoch(platform),
            may_close: false,
        });
        assert_eq!(ask(&mut guest, SEEK, [FD, 0, 1, 0]), Answered(70));
        assert_eq!(ask(&mut guest, SEEK, [FD, 1 << 40, 0, 0]), Answered(1 << 40));
        assert_eq!(ask(&mut guest, SEEK, [FD, (-5_i64).cast_unsigned(), 1, 0]), Answered((1 << 40) - 5));
        assert_eq!(place.position(number), Some((1 << 40) - 5));
        assert_eq!(ask(&mut guest, SEEK, [FD, 0, 2, 0]), Trapped);
        for (call, args) in [
            (READ, [FD, DATA, 10, 0]),
            (PREAD, [FD, DATA, 10, 0]),
            (FSTAT, [FD, DATA, 0, 0]),
            (IOCTL, [FD, 0x5401, DATA, 0]),
            (CLOSE, [FD, 0, 0, 0]),
        ] {
            assert_eq!(ask(&mut guest, call, args), Trapped, "{call}");
        }
        assert_eq!(place.position(number), Some((1 << 40) - 5));
    }
}

fn seeks_are_those_of_a_file(platform: &Arc<Systrap>) {
    let (minus, most) = (|n: i64| (-n).cast_unsigned(), i64::MAX);
    for mut guest in both(platform) {
        let (place, number) = put(&guest, SIZE);
        let seeks = [
            (7, 0, Answered(7)),
            (0, 1, Answered(7)),
            (3, 1, Answered(10)),
            (minus(10), 1, Answered(0)),
            (minus(1), 1, Trapped),
            (minus(1), 0, Trapped),
            (minus(1), 2, Answered(SIZE as i64 - 1)),
            (5, 2, Answered(SIZE as i64 + 5)),
            (most.cast_unsigned(), 1, Trapped),
            (most.cast_unsigned(), 0, Answered(most)),
            (1, 1, Trapped),
            (0, 3, Trapped),
            (0, 4, Trapped),
            (0, 1 << 32, Answered(0)),
            (minus(SIZE as i64), 2, Answered(0)),
            (minus(SIZE as i64 + 1), 2, Trapped),
        ];
        let mut at = 0;
        for (offset, whence, end) in seeks {
            assert_eq!(ask(&mut guest, SEEK, [FD, offset, whence, 0]), end, "{offset} {whence}");
            if let Answered(to) = end {
                at = to.cast_unsigned();
            }
            assert_eq!(place.position(number), Some(at));
        }
        assert_eq!(ask(&mut guest, SEEK, [FD, 0, 2, 0]), Answered(SIZE as i64));
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 5, 0]), Answered(0));
        // A range that passes the last offset is an error.
        assert_eq!(ask(&mut guest, SEEK, [FD, most.cast_unsigned(), 0, 0]), Answered(most));
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 5, 0]), Trapped);
        assert_eq!(ask(&mut guest, PREAD, [FD, DATA, 5, most.cast_unsigned() - 4]), Trapped);
        assert_eq!(ask(&mut guest, PREAD, [FD, DATA, 5, most.cast_unsigned() - 5]), Answered(0));
    }
}

fn all_else_is_left_to_the_sentry(platform: &Arc<Systrap>) {
    const STUB: u64 = 0x7ffe_0000_0000;
    let empty = libc::AT_EMPTY_PATH as u64;
    for mut guest in both(platform) {
        guest.write(DATA + 0x200, b"x\0");
        let (place, number) = put(&guest, 4096);
        for (call, args) in [
            (READ, [FD + 1, DATA, 10, 0]),
            (READ, [u64::from(u32::MAX), DATA, 10, 0]),
            (READ, [FD, DATA, 0, 0]),
            (READ, [FD, DATA, 0x7fff_f001, 0]),
            (READ, [FD, DATA, u64::MAX, 0]),
            (READ, [FD, DATA, 4097, 0]),
            (READ, [FD, STUB - 1, 2, 0]),
            (READ, [FD, STUB, 1, 0]),
            (READ, [FD, u64::MAX, 2, 0]),
            (READ, [FD, SPARE, 1, 0]),
            (READ, [FD, 0, 1, 0]),
            (PREAD, [FD, DATA, 10, u64::MAX]),
            (PREAD, [FD, DATA, 2, 4095]),
            (FSTAT, [FD + 1, DATA, 0, 0]),
            (FSTAT, [FD, STUB - 143, 0, 0]),
            (FSTAT, [FD, SPARE, 0, 0]),
            (FSTAT, [FD, DATA + 0x1_0000 - 143, 0, 0]),
            (FSTATAT, [FD, DATA + 0x200, DATA, empty]),
            (FSTATAT, [FD, DATA + 0x201, DATA, 0]),
            (FSTATAT, [FD, DATA + 0x201, DATA, empty | 0x100]),
            (FSTATAT, [FD, SPARE, DATA, empty]),
            (FSTATAT, [FD, 0, DATA, empty]),
            (FSTATAT, [libc::AT_FDCWD as u64, DATA + 0x201, DATA, empty]),
            (IOCTL, [FD, libc::FIOCLEX, 0, 0]),
        ] {
            assert_eq!(ask(&mut guest, call, args), Trapped, "{call} {args:x?}");
            assert_eq!(place.position(number), Some(0));
        }
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 4096, 0]), Answered(4096));
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 1, 0]), Trapped);
        assert_eq!(
            ask(&mut guest, FSTATAT, [FD | 1 << 40, DATA + 0x5000, DATA, empty | 1 << 40]),
            Answered(0)
        );
    }
    let mut guest = Guest::new(platform, one_call_of_the_other_table());
    guest.context.answer(Some(platform::Identity::default()));
    let _ = put(&guest, SIZE);
    guest.regs.rax = FSTAT;
    (guest.regs.rdi, guest.regs.rsi) = (FD, DATA);
    let event = guest.run();
    assert!(matches!(event, TrapEvent::Exception(info) if info.signo == libc::SIGSEGV), "{event:?}");
}

fn a_copy_that_fails_moves_nothing(platform: &Arc<Systrap>) {
    let all = bytes();
    for mut guest in both(platform) {
        let (place, number) = put(&guest, SIZE);
        // Half of the buffer is there, then all of it may be read, then written.
        let end = DATA + 0x1_0000;
        for _ in 0..3 {
            assert_eq!(ask(&mut guest, READ, [FD, end - 100, 200, 0]), Trapped);
            assert_eq!(place.position(number), Some(0));
        }
        guest.space.map(range(end, PAGE), MapSource::Zero, Prot::READ, Sharing::Private).expect("mapping");
        assert_eq!(ask(&mut guest, READ, [FD, end - 100, 200, 0]), Trapped);
        assert_eq!(ask(&mut guest, READ, [FD, end - 100, 100, 0]), Answered(100));
        guest.space.protect(range(end, PAGE), RW).expect("protecting");
        assert_eq!(ask(&mut guest, READ, [FD, end - 100, 200, 0]), Answered(200));
        assert_eq!(guest.read::<200>(end - 100)[..], all[100..300]);
    }
}

fn an_epoch_ends_and_so_does_what_was_revoked(platform: &Arc<Systrap>) {
    let [mut guest, mut other] = both(platform);
    let (place, number) = put(&guest, SIZE);
    let (others_place, others) = put(&other, SIZE);
    assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
    platform.file_epoch().expect("an epoch").fetch_add(1, Ordering::SeqCst);
    assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Trapped);
    assert_eq!(ask(&mut other, FSTAT, [FD, DATA, 10, 0]), Trapped);
    // What was read before stays read.
    assert_eq!(place.position(number), Some(10));
    let (_, second) = put(&guest, SIZE);
    assert_eq!((place.position(number), place.position(second)), (None, Some(0)));
    place.revoke(number);
    place.clear(number);
    assert_eq!(place.take_use(number), HandUse::default());
    assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
    assert_eq!(others_place.position(others), Some(0));
    place.revoke(second);
    assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Trapped);
    assert_eq!(place.position(second), Some(10));
    assert_eq!(place.take_use(second).calls, 1);
    place.clear(second);
    assert_eq!(place.position(second), None);
    // New answers, and none, take it away.
    for identity in [Some(platform::Identity::default()), None] {
        let _ = put(&guest, SIZE);
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
        guest.context.answer(identity);
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Trapped);
    }
    // And a thread that takes over the channel of one that has ended starts anew.
    let mut guest = guest;
    for _ in 0..3 {
        let _ = put(&guest, SIZE);
        let space = Arc::clone(&guest.space);
        drop(guest);
        guest = Guest::on(platform, space);
        assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Trapped);
    }
    platform.set_answers(false);
    assert!(guest.context.at_hand().is_none());
}

fn a_child_has_no_file_at_hand(platform: &Arc<Systrap>) {
    let [mut guest, _] = both(platform);
    let (place, number) = put(&guest, SIZE);
    assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
    let mut child = Guest::on(platform, guest.space.fork(&[], &[]).expect("fork"));
    assert_eq!(ask(&mut child, READ, [FD, DATA, 10, 0]), Trapped);
    let mut sibling = Guest::on(platform, Arc::clone(&guest.space));
    assert_eq!(ask(&mut sibling, READ, [FD, DATA, 10, 0]), Trapped);
    assert_eq!(place.position(number), Some(10));
    assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
}

guest_code!(
    read_bytes,
    // Adds up what it reads byte by byte, and counts; at the end it seeks back.
    "2: mov eax, 0
     mov edi, 5
     mov edx, 1
     syscall
     cmp rax, 1
     jne 4f
     movzx eax, byte ptr [rsi]
     add rbx, rax
     inc r12
     jmp 2b
     4: mov r13, rax
     mov eax, 110
     syscall"
);
guest_code!(
    read_bytes_patched,
    "2: mov eax, 0
     mov edi, 5
     mov edx, 1
     lea rcx, [rip + 3f]
     jmp r15
     syscall
     3: cmp rax, 1
     jne 4f
     movzx eax, byte ptr [rsi]
     add rbx, rax
     inc r12
     jmp 2b
     4: mov r13, rax
     mov eax, 110
     syscall"
);

/// Every byte is read once, however often the thread is interrupted: inside the stub, on its way in and on its way out.
fn kicks_lose_and_double_nothing(platform: &Arc<Systrap>) {
    let (size, sum) = (SIZE as u64, bytes().iter().map(|byte| u64::from(*byte)).sum::<u64>());
    for code in [read_bytes(), read_bytes_patched()] {
        let mut interrupted = 0;
        let mut inside = 0;
        // Where a kick meets the thread is chance: the more, the better.
        for round in 0..40 {
            if round >= 4 && inside > 0 {
                break;
            }
            let mut guest = Guest::new(platform, code);
            guest.regs.r15 = guest.space.call_entry().expect("the platform takes calls");
            guest.regs.rsi = DATA;
            guest.context.answer(Some(platform::Identity::default()));
            let (place, number) = put(&guest, SIZE);
            let kicking = Kicking::of(&guest);
            loop {
                match guest.run() {
                    TrapEvent::Syscall if guest.regs.orig_rax == END => break,
                    TrapEvent::Interrupted => {}
                    other => panic!("{other:?}: {:x?}", guest.regs),
                }
                interrupted += 1;
                assert!((CODE..CODE + PAGE).contains(&guest.regs.rip), "the application is shown itself");
                let at = place.position(number).expect("a position");
                let counted = guest.regs.r12;
                inside += usize::from(at != counted);
                assert!(at == counted || at == counted + 1, "{at} {counted}");
            }
            kicking.end();
            assert_eq!((guest.regs.r12, guest.regs.rbx, guest.regs.r13), (size, sum, 0));
            let used = HandUse { calls: SIZE as u32 + 1, reads: SIZE as u32 + 1, read_bytes: size };
            assert_eq!(place.take_use(number), used);
        }
        assert!(interrupted > 0);
    }
}

/// What a channel says of itself is the application's: nothing of it is believed that no call could bring about.
fn a_forged_file_hurts_the_forger_alone(platform: &Arc<Systrap>) {
    const CHANNEL: u64 = 0x7fff_0000_0000;
    let mut witness = Guest::new(platform, one_call());
    for word in [0, 1, 1 << 32, 1 << 31, 1 << 47, i64::MAX.cast_unsigned(), 1 << 63, u64::MAX] {
        for mut guest in both(platform) {
            let (place, number) = put(&guest, SIZE);
            assert_eq!(ask(&mut guest, READ, [FD, DATA, 10, 0]), Answered(10));
            for at in [0x608, 0x610, 0x618, 0x620, 0x628, 0x630, 0x638] {
                forge(&guest, CHANNEL + at, word);
            }
            let position = place.position(number);
            assert!(position.is_none_or(|at| i64::try_from(at).is_ok()));
            let used = place.take_use(number);
            assert!(used.read_bytes <= u64::from(used.reads) * platform::HAND_BYTES as u64);
            // Whatever comes of it: an answer, a trap, a fault, or copies until it is told to stop.
            guest.regs.rip = CODE;
            guest.regs.rax = READ;
            [guest.regs.rdi, guest.regs.rsi, guest.regs.rdx] = [FD, DATA, 0x1000];
            let kicker = guest.context.kicker();
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let until = std::time::Instant::now() + std::time::Duration::from_millis(10);
            while std::time::Instant::now() < until
                && guest.context.poll_switch(&mut cx, &mut guest.regs).is_pending()
            {
                kicker.kick();
            }
            drop(guest);
            assert_eq!(ask(&mut witness, READ, [FD, DATA, 1, 0]), Trapped);
        }
    }
}

fn forge(guest: &Guest, at: u64, word: u64) {
    let pid = stub_of(guest, at ^ word ^ 0xf0f3);
    hostsys::memory::write_process(pid, at, &word.to_ne_bytes()).expect("forging");
}

fn main() {
    run(cases![
        a_file_at_hand_is_read_without_a_trap,
        a_file_at_hand_is_closed_once,
        a_piece_of_a_file_is_read,
        of_a_file_that_changes_the_position_is_known,
        seeks_are_those_of_a_file,
        all_else_is_left_to_the_sentry,
        a_copy_that_fails_moves_nothing,
        an_epoch_ends_and_so_does_what_was_revoked,
        a_child_has_no_file_at_hand,
        kicks_lose_and_double_nothing,
        a_forged_file_hurts_the_forger_alone,
    ]);
}
