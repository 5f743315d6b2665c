//! Structures and numbers of the process calls (`clone(2)`, `wait(2)`, `getrlimit(2)`, `prctl(2)`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags::bitflags! {
    /// `CLONE_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct CloneFlags: u64 {
        const VM = 0x100;
        const FS = 0x200;
        const FILES = 0x400;
        const SIGHAND = 0x800;
        const PIDFD = 0x1000;
        const PTRACE = 0x2000;
        const VFORK = 0x4000;
        const PARENT = 0x8000;
        const THREAD = 0x10000;
        const NEWNS = 0x20000;
        const SYSVSEM = 0x40000;
        const SETTLS = 0x80000;
        const PARENT_SETTID = 0x100000;
        const CHILD_CLEARTID = 0x200000;
        const DETACHED = 0x400000;
        const UNTRACED = 0x800000;
        const CHILD_SETTID = 0x1000000;
        const NEWCGROUP = 0x2000000;
        const NEWUTS = 0x4000000;
        const NEWIPC = 0x8000000;
        const NEWUSER = 0x10000000;
        const NEWPID = 0x20000000;
        const NEWNET = 0x40000000;
        const IO = 0x80000000;
        const CLEAR_SIGHAND = 0x1_0000_0000;
        const INTO_CGROUP = 0x2_0000_0000;
        const _ = !0;
    }
}

impl CloneFlags {
    /// Every flag that makes a namespace.
    pub const NEW_ANY: Self = Self::NEWNS
        .union(Self::NEWCGROUP)
        .union(Self::NEWUTS)
        .union(Self::NEWIPC)
        .union(Self::NEWUSER)
        .union(Self::NEWPID)
        .union(Self::NEWNET);
}

/// `struct clone_args` (version 2, 88 bytes).
#[allow(missing_docs, reason = "fields as clone3(2) names them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// `struct rusage`.
#[allow(missing_docs, reason = "fields as getrusage(2) names them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Rusage {
    pub utime: crate::time::Timeval,
    pub stime: crate::time::Timeval,
    pub maxrss: i64,
    pub ixrss: i64,
    pub idrss: i64,
    pub isrss: i64,
    pub minflt: i64,
    pub majflt: i64,
    pub nswap: i64,
    pub inblock: i64,
    pub oublock: i64,
    pub msgsnd: i64,
    pub msgrcv: i64,
    pub nsignals: i64,
    pub nvcsw: i64,
    pub nivcsw: i64,
}

const _: () = assert!(size_of::<Rusage>() == 144);

/// `struct rlimit64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Rlimit {
    /// The soft limit.
    pub cur: u64,
    /// The hard limit.
    pub max: u64,
}

/// `RLIM_INFINITY`.
pub const RLIM_INFINITY: u64 = u64::MAX;
/// The number of resources.
pub const RLIM_NLIMITS: usize = 16;

/// `RLIMIT_*`.
#[allow(missing_docs, reason = "names as getrlimit(2) has them")]
pub mod rlimit {
    pub const CPU: u32 = 0;
    pub const FSIZE: u32 = 1;
    pub const DATA: u32 = 2;
    pub const STACK: u32 = 3;
    pub const CORE: u32 = 4;
    pub const RSS: u32 = 5;
    pub const NPROC: u32 = 6;
    pub const NOFILE: u32 = 7;
    pub const MEMLOCK: u32 = 8;
    pub const AS: u32 = 9;
    pub const LOCKS: u32 = 10;
    pub const SIGPENDING: u32 = 11;
    pub const MSGQUEUE: u32 = 12;
    pub const NICE: u32 = 13;
    pub const RTPRIO: u32 = 14;
    pub const RTTIME: u32 = 15;
}

/// `struct new_utsname`.
#[allow(missing_docs, reason = "fields as uname(2) names them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Utsname {
    pub sysname: [u8; 65],
    pub nodename: [u8; 65],
    pub release: [u8; 65],
    pub version: [u8; 65],
    pub machine: [u8; 65],
    pub domainname: [u8; 65],
}

/// `struct sysinfo`.
#[allow(missing_docs, reason = "fields as sysinfo(2) names them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sysinfo {
    pub uptime: i64,
    pub loads: [u64; 3],
    pub totalram: u64,
    pub freeram: u64,
    pub sharedram: u64,
    pub bufferram: u64,
    pub totalswap: u64,
    pub freeswap: u64,
    pub procs: u16,
    pub pad: u16,
    pub pad2: u32,
    pub totalhigh: u64,
    pub freehigh: u64,
    pub mem_unit: u32,
    pub tail: u32,
}

const _: () = assert!(size_of::<Sysinfo>() == 112);

/// `struct sched_param`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SchedParam {
    /// 1 to 99 for real-time policies, else 0.
    pub priority: i32,
}

/// `struct robust_list_head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RobustListHead {
    /// The first entry; the head's own address for an empty list.
    pub next: u64,
    /// From an entry to its futex word.
    pub futex_offset: i64,
    /// An entry that is being added or removed.
    pub pending: u64,
}

/// A wait status as `wait(2)` returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WaitStatus(pub i32);

impl WaitStatus {
    /// The child called `exit(code)`.
    pub fn exited(code: i32) -> Self {
        Self((code & 0xff) << 8)
    }

    /// The child died of `signo`.
    pub fn signaled(signo: i32, dumped_core: bool) -> Self {
        Self(signo & 0x7f | if dumped_core { 0x80 } else { 0 })
    }

    /// The child was stopped by `signo`.
    pub fn stopped(signo: i32) -> Self {
        Self(signo << 8 | 0x7f)
    }

    /// The child was continued.
    pub const CONTINUED: Self = Self(0xffff);

    /// The signal that ended the process, if one did.
    pub fn signal(self) -> Option<i32> {
        let signo = self.0 & 0x7f;
        (signo != 0 && signo != 0x7f).then_some(signo)
    }

    /// The code of `exit`, if the process called it.
    pub fn code(self) -> Option<i32> {
        (self.0 & 0x7f == 0).then_some(self.0 >> 8 & 0xff)
    }

    /// Whether the process dumped core.
    pub fn dumped_core(self) -> bool {
        self.signal().is_some() && self.0 & 0x80 != 0
    }

    /// What a shell would report: the code, or 128 and the signal.
    pub fn shell_code(self) -> i32 {
        self.signal().map_or_else(|| self.code().unwrap_or(0), |signo| 128 + signo)
    }
}
