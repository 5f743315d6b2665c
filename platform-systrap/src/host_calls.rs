//! The host system calls that the Sentry makes for this platform, for its own seccomp filter.

/// A system call, and the values that one of its arguments may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCall {
    pub number: i64,
    /// Argument index and its allowed values; empty for any.
    pub allowed: Option<(u8, &'static [u64])>,
}

const fn any(number: i64) -> HostCall {
    HostCall { number, allowed: None }
}

const fn only(number: i64, argument: u8, values: &'static [u64]) -> HostCall {
    HostCall { number, allowed: Some((argument, values)) }
}

/// Calls made after [`crate::Systrap::new`] has returned. What Rust's runtime needs for threads and memory (`mmap`,
/// `munmap`, `mprotect`, `clone3`, `futex`, ...) is not repeated here, but for the futex forms that cross processes.
pub fn host_calls() -> Vec<HostCall> {
    vec![
        // The notification descriptor: receive, respond, add a descriptor.
        only(libc::SYS_ioctl, 1, &[0xC050_2100, 0xC018_2101, 0x4018_2103]),
        // A worker, of itself.
        only(libc::SYS_sched_setaffinity, 0, &[0]),
        any(libc::SYS_futex),
        any(libc::SYS_futex_waitv),
        any(libc::SYS_process_vm_readv),
        any(libc::SYS_process_vm_writev),
        only(libc::SYS_tgkill, 2, &[libc::SIGURG as u64]),
        only(libc::SYS_kill, 1, &[libc::SIGKILL as u64]),
        any(libc::SYS_waitid),
        // Channel groups of the dead are emptied.
        only(libc::SYS_fallocate, 1, &[(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u64]),
        any(libc::SYS_clock_nanosleep),
    ]
}
