//! Structures of the time calls (`clock_gettime(2)`, `setitimer(2)`, `timer_create(2)`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct timespec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: i64,
}

impl Timespec {
    /// From nanoseconds.
    pub fn from_nanos(ns: u64) -> Self {
        Self { sec: (ns / 1_000_000_000).cast_signed(), nsec: (ns % 1_000_000_000).cast_signed() }
    }

    /// In nanoseconds; `None` for a value that Linux refuses, the largest value where it does not fit.
    pub fn to_nanos(self) -> Option<u64> {
        if self.sec < 0 || !(0..1_000_000_000).contains(&self.nsec) {
            return None;
        }
        let ns = self.sec.cast_unsigned().saturating_mul(1_000_000_000);
        Some(ns.saturating_add(self.nsec.cast_unsigned()))
    }
}

/// `struct timeval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timeval {
    /// Seconds.
    pub sec: i64,
    /// Microseconds.
    pub usec: i64,
}

impl Timeval {
    /// From nanoseconds, rounded down.
    pub fn from_nanos(ns: u64) -> Self {
        Self { sec: (ns / 1_000_000_000).cast_signed(), usec: (ns / 1000 % 1_000_000).cast_signed() }
    }

    /// In nanoseconds; `None` for a value that Linux refuses.
    pub fn to_nanos(self) -> Option<u64> {
        if self.sec < 0 || !(0..1_000_000).contains(&self.usec) {
            return None;
        }
        let ns = self.sec.cast_unsigned().saturating_mul(1_000_000_000);
        Some(ns.saturating_add(self.usec.cast_unsigned() * 1000))
    }
}

/// `struct itimerval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Itimerval {
    /// The period, zero for one shot.
    pub interval: Timeval,
    /// Until the next expiry, zero for disarmed.
    pub value: Timeval,
}

/// `struct itimerspec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Itimerspec {
    /// The period, zero for one shot.
    pub interval: Timespec,
    /// Until the next expiry, zero for disarmed.
    pub value: Timespec,
}

/// `struct tms` of `times(2)`, in clock ticks.
#[allow(missing_docs, reason = "fields as times(2) names them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tms {
    pub utime: i64,
    pub stime: i64,
    pub cutime: i64,
    pub cstime: i64,
}

/// `struct sigevent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigEvent {
    /// `sigev_value`.
    pub value: u64,
    /// `sigev_signo`.
    pub signo: i32,
    /// `sigev_notify`.
    pub notify: i32,
    /// `sigev_notify_thread_id` for `SIGEV_THREAD_ID`.
    pub tid: i32,
    /// The rest of the union.
    pub pad: [i32; 11],
}

const _: () = assert!(size_of::<SigEvent>() == 64);

/// Clock ticks a second that user space sees (`USER_HZ`).
pub const USER_HZ: u64 = 100;

/// Nanoseconds as clock ticks.
pub fn ticks(ns: u64) -> u64 {
    ns / (1_000_000_000 / USER_HZ)
}
