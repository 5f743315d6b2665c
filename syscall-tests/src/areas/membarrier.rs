//! membarrier(2).

use crate::harness::Outcome;
use crate::sys;
use libc::*;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

cases![
    query_offers_the_usual_commands,
    private_barrier_needs_registration,
    code_barrier_needs_registration,
    global_barrier_needs_none,
    global_expedited_needs_no_registration_of_the_caller,
    flags_and_unknown_commands_are_einval,
    registration_survives_fork_and_not_exec,
    asymmetric_dekker_never_loses,
];

const QUERY: i32 = 0;
const GLOBAL: i32 = 1;
const GLOBAL_EXPEDITED: i32 = 2;
const REGISTER_GLOBAL_EXPEDITED: i32 = 4;
const PRIVATE: i32 = 8;
const REGISTER_PRIVATE: i32 = 16;
const PRIVATE_CODE: i32 = 32;
const REGISTER_PRIVATE_CODE: i32 = 64;

pub fn membarrier(command: i32, flags: u32) -> i64 {
    unsafe { syscall(SYS_membarrier, command, flags, 0) }
}

fn query_offers_the_usual_commands() -> Outcome {
    let all = ok!(membarrier(QUERY, 0)) as i32;
    let usual = GLOBAL | GLOBAL_EXPEDITED | REGISTER_GLOBAL_EXPEDITED | PRIVATE | REGISTER_PRIVATE;
    same!(all & usual, usual);
    Ok(())
}

fn private_barrier_needs_registration() -> Outcome {
    fails!(EPERM, membarrier(PRIVATE, 0));
    ok!(membarrier(REGISTER_PRIVATE, 0));
    same!(ok!(membarrier(PRIVATE, 0)), 0);
    ok!(membarrier(REGISTER_PRIVATE, 0));
    same!(ok!(membarrier(PRIVATE, 0)), 0);
    Ok(())
}

fn code_barrier_needs_registration() -> Outcome {
    fails!(EPERM, membarrier(PRIVATE_CODE, 0));
    ok!(membarrier(REGISTER_PRIVATE_CODE, 0));
    same!(ok!(membarrier(PRIVATE_CODE, 0)), 0);
    Ok(())
}

fn global_barrier_needs_none() -> Outcome {
    same!(ok!(membarrier(GLOBAL, 0)), 0);
    Ok(())
}

fn global_expedited_needs_no_registration_of_the_caller() -> Outcome {
    same!(ok!(membarrier(GLOBAL_EXPEDITED, 0)), 0);
    ok!(membarrier(REGISTER_GLOBAL_EXPEDITED, 0));
    same!(ok!(membarrier(GLOBAL_EXPEDITED, 0)), 0);
    Ok(())
}

fn flags_and_unknown_commands_are_einval() -> Outcome {
    fails!(EINVAL, membarrier(QUERY, 1));
    fails!(EINVAL, membarrier(GLOBAL, 2));
    fails!(EINVAL, membarrier(3, 0));
    fails!(EINVAL, membarrier(-1, 0));
    fails!(EINVAL, membarrier(1 << 20, 0));
    Ok(())
}

fn registration_survives_fork_and_not_exec() -> Outcome {
    ok!(membarrier(REGISTER_PRIVATE, 0));
    sys::fork(|| {
        ok!(membarrier(PRIVATE, 0));
        Ok(())
    })?
    .ok()?;
    let (out, status) = sys::helper(&["membarrier"], &[], || Ok(()))?;
    same!(status, 0);
    same!(out.as_str(), "EPERM");
    Ok(())
}

/// Two threads each raise a flag and look at the other's; without a barrier both may see none. One side leaves its
/// barrier out and the other makes it for both.
fn asymmetric_dekker_never_loses() -> Outcome {
    static MINE: AtomicI32 = AtomicI32::new(0);
    static THEIRS: AtomicI32 = AtomicI32::new(0);
    static ROUND: AtomicI32 = AtomicI32::new(0);
    static SEEN: AtomicI32 = AtomicI32::new(-1);
    static STOP: AtomicBool = AtomicBool::new(false);
    ok!(membarrier(REGISTER_PRIVATE, 0));
    let fast = std::thread::spawn(|| {
        let mut done = 0;
        while !STOP.load(Ordering::Relaxed) {
            let round = ROUND.load(Ordering::Acquire);
            if round == done {
                std::hint::spin_loop();
                continue;
            }
            THEIRS.store(1, Ordering::Relaxed);
            std::sync::atomic::compiler_fence(Ordering::SeqCst);
            let seen = MINE.load(Ordering::Relaxed);
            done = round;
            SEEN.store(round << 1 | seen, Ordering::Release);
        }
    });
    let mut lost = 0;
    for round in 1..200 {
        MINE.store(0, Ordering::Relaxed);
        THEIRS.store(0, Ordering::Relaxed);
        ROUND.store(round, Ordering::Release);
        MINE.store(1, Ordering::Relaxed);
        ok!(membarrier(PRIVATE, 0));
        let seen = THEIRS.load(Ordering::Relaxed);
        while SEEN.load(Ordering::Acquire) >> 1 != round {
            std::hint::spin_loop();
        }
        lost += i32::from(seen == 0 && SEEN.load(Ordering::Acquire) & 1 == 0);
    }
    STOP.store(true, Ordering::Relaxed);
    fast.join().map_err(|_| "the thread panicked".to_string())?;
    same!(lost, 0);
    Ok(())
}
