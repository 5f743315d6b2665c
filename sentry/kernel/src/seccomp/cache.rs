//! Which calls a chain of filters always allows (`kernel/seccomp.c: seccomp_cache_check_allow`).
//!
//! Most filters look at a call's number alone for all but a few calls. What such a one says is found when the call is made
//! for the first time, and remembered: later calls run no program.

use core::sync::atomic::{AtomicU64, Ordering};

/// Numbers from here on are not remembered.
const NUMBERS: usize = 512;

/// Answers by number, each found once.
#[derive(Debug, Default)]
pub(super) struct Cache {
    known: [AtomicU64; NUMBERS / 64],
    allowed: [AtomicU64; NUMBERS / 64],
}

impl Cache {
    /// What `find` says of call `nr`, or has said before. False for numbers that no call has.
    pub fn asks(&self, nr: i32, find: impl FnOnce() -> bool) -> bool {
        let Ok(nr) = usize::try_from(nr) else { return false };
        let (Some(known), Some(allowed)) = (self.known.get(nr / 64), self.allowed.get(nr / 64)) else {
            return false;
        };
        let bit = 1 << (nr % 64);
        if allowed.load(Ordering::Relaxed) & bit != 0 {
            return true;
        }
        // Pairs with the release below: who sees that it is known sees the answer.
        if known.load(Ordering::Acquire) & bit != 0 {
            return allowed.load(Ordering::Relaxed) & bit != 0;
        }
        let answer = find();
        if answer {
            allowed.fetch_or(bit, Ordering::Relaxed);
        }
        known.fetch_or(bit, Ordering::Release);
        answer
    }
}
