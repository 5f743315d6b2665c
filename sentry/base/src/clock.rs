//! Host clocks, read through the host's vDSO.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds of `CLOCK_MONOTONIC` or `CLOCK_REALTIME`; wraps after 584 years.
pub type Nanos = u64;

/// `CLOCK_MONOTONIC` now, the same value that application code reads through its vDSO.
pub fn mono_now() -> Nanos {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    host_clock(libc::CLOCK_MONOTONIC, &mut ts);
    to_nanos(ts.tv_sec, ts.tv_nsec)
}

/// `CLOCK_REALTIME` now.
pub fn real_now() -> Nanos {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| u64::try_from(d.as_nanos()).ok())
        .unwrap_or(0)
}

/// When `CLOCK_REALTIME` will show `at`, as a time of `CLOCK_MONOTONIC`: a little later if the thread is kept from running
/// between the two clocks, never sooner. It does not follow a change of the clock.
pub fn mono_at_real(at: Nanos) -> Nanos {
    let wait = at.saturating_sub(real_now());
    mono_now().saturating_add(wait)
}

/// `CLOCK_BOOTTIME` now: monotonic time with the host's suspended time added.
pub fn boot_now() -> Nanos {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    host_clock(libc::CLOCK_BOOTTIME, &mut ts);
    to_nanos(ts.tv_sec, ts.tv_nsec)
}

fn host_clock(clock: libc::clockid_t, ts: &mut libc::timespec) {
    hostsys::clock::gettime(clock, ts);
}

fn to_nanos(sec: i64, nsec: i64) -> Nanos {
    u64::try_from(sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(nsec).unwrap_or(0))
}

/// `CLOCK_MONOTONIC` as of the last clock tick: a few nanoseconds to read, a few milliseconds exact.
pub fn coarse_now() -> Nanos {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    host_clock(libc::CLOCK_MONOTONIC_COARSE, &mut ts);
    to_nanos(ts.tv_sec, ts.tv_nsec)
}
