//! Futexes: wait on one word or on several, wake one word.

use std::io;
use std::sync::atomic::AtomicU32;

use crate::check;

/// The most words that [`wait_any`] takes (`FUTEX_WAITV_MAX`).
pub const WAIT_ANY_MAX: usize = 128;

/// One word of [`wait_any`]: `struct futex_waitv` of `<linux/futex.h>`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct WaitWord {
    expected: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

const FUTEX2_SIZE_U32: u32 = 0x02;
const FUTEX2_PRIVATE: u32 = 128;

impl WaitWord {
    /// Waits while `word` holds `expected`. `private` words are shared with no other process.
    ///
    /// The word is named by address: a word that is gone when the call is made is an error (`EFAULT`), not a hazard.
    pub fn new(word: &AtomicU32, expected: u32, private: bool) -> Self {
        let private = if private { FUTEX2_PRIVATE } else { 0 };
        Self {
            expected: u64::from(expected),
            address: std::ptr::from_ref(word) as u64,
            flags: FUTEX2_SIZE_U32 | private,
            reserved: 0,
        }
    }
}

/// Sleeps until one of `words` is woken, or differs from what is expected (`EAGAIN`), or `until_ns` on
/// `CLOCK_MONOTONIC` has passed (`ETIMEDOUT`). Linux 5.16 or newer (`ENOSYS` before).
pub fn wait_any(words: &[WaitWord], until_ns: Option<u64>) -> io::Result<usize> {
    let deadline = until_ns.map(timespec);
    let deadline = deadline.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel only reads the array and the time, both of which live through the call.
    let woken = check(unsafe {
        libc::syscall(libc::SYS_futex_waitv, words.as_ptr(), words.len(), 0, deadline, libc::CLOCK_MONOTONIC)
    })?;
    Ok(woken as usize)
}

/// Sleeps while `word` holds `expected`, until it is woken or `until_ns` on `CLOCK_MONOTONIC` has passed.
pub fn wait(word: &AtomicU32, expected: u32, until_ns: Option<u64>, private: bool) -> io::Result<()> {
    let deadline = until_ns.map(timespec);
    let deadline = deadline.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // FUTEX_WAIT_BITSET takes an absolute time.
    let operation = libc::FUTEX_WAIT_BITSET | if private { libc::FUTEX_PRIVATE_FLAG } else { 0 };
    // SAFETY: the kernel only reads the word and the time, both of which live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation,
            expected,
            deadline,
            std::ptr::null::<u32>(),
            u32::MAX,
        )
    })?;
    Ok(())
}

/// Wakes up to `count` waiters of `word`; returns how many.
pub fn wake(word: &AtomicU32, count: i32, private: bool) -> usize {
    let operation = libc::FUTEX_WAKE | if private { libc::FUTEX_PRIVATE_FLAG } else { 0 };
    // SAFETY: the kernel uses the address as a key alone.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, count) };
    usize::try_from(woken).unwrap_or(0)
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// `CLOCK_MONOTONIC` now, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel (or the vDSO) writes the one timespec that is passed.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
