//! Host clocks.

/// Reads a host clock (`clock_gettime(2)`); an unknown clock leaves `ts` as it was.
pub fn gettime(clock: libc::clockid_t, ts: &mut libc::timespec) {
    // SAFETY: `ts` is a valid, writable timespec for the call.
    let _ = unsafe { libc::clock_gettime(clock, ts) };
}
