//! Signals: numbers, sets, `siginfo_t`, and the x86-64 signal frame (`signal(7)`, `arch/x86/include/uapi/asm/sigcontext.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Signal numbers of x86-64.
#[allow(missing_docs, reason = "the names are those of signal(7)")]
pub mod sig {
    pub const HUP: i32 = 1;
    pub const INT: i32 = 2;
    pub const QUIT: i32 = 3;
    pub const ILL: i32 = 4;
    pub const TRAP: i32 = 5;
    pub const ABRT: i32 = 6;
    pub const BUS: i32 = 7;
    pub const FPE: i32 = 8;
    pub const KILL: i32 = 9;
    pub const USR1: i32 = 10;
    pub const SEGV: i32 = 11;
    pub const USR2: i32 = 12;
    pub const PIPE: i32 = 13;
    pub const ALRM: i32 = 14;
    pub const TERM: i32 = 15;
    pub const STKFLT: i32 = 16;
    pub const CHLD: i32 = 17;
    pub const CONT: i32 = 18;
    pub const STOP: i32 = 19;
    pub const TSTP: i32 = 20;
    pub const TTIN: i32 = 21;
    pub const TTOU: i32 = 22;
    pub const URG: i32 = 23;
    pub const XCPU: i32 = 24;
    pub const XFSZ: i32 = 25;
    pub const VTALRM: i32 = 26;
    pub const PROF: i32 = 27;
    pub const WINCH: i32 = 28;
    pub const IO: i32 = 29;
    pub const PWR: i32 = 30;
    pub const SYS: i32 = 31;
    /// The first real-time signal as the kernel counts.
    pub const RT_MIN: i32 = 32;
    /// The last signal.
    pub const MAX: i32 = 64;
}

/// The name of a signal, such as `SIGTERM`; real-time signals are `SIGRT_n`.
pub fn signal_name(signo: i32) -> &'static str {
    const NAMES: [&str; 32] = [
        "SIG_0",
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    usize::try_from(signo).ok().and_then(|n| NAMES.get(n)).copied().unwrap_or("SIGRT")
}

/// A set of signals: bit `n - 1` for signal `n` (`sigset_t` of the kernel, 8 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SigSet(pub u64);

impl SigSet {
    /// No signal.
    pub const EMPTY: Self = Self(0);
    /// SIGKILL and SIGSTOP, which no mask holds.
    pub const UNBLOCKABLE: Self = Self(1 << (sig::KILL - 1) | 1 << (sig::STOP - 1));

    /// The set of one signal; empty for a number out of range.
    pub const fn of(signo: i32) -> Self {
        if signo >= 1 && signo <= sig::MAX { Self(1 << (signo - 1)) } else { Self(0) }
    }

    /// The set of several signals.
    pub const fn of_all(signos: &[i32]) -> Self {
        let mut set = Self(0);
        let mut rest = signos;
        while let [first, tail @ ..] = rest {
            set.0 |= Self::of(*first).0;
            rest = tail;
        }
        set
    }

    /// Whether the signal is in the set.
    pub const fn has(self, signo: i32) -> bool {
        self.0 & Self::of(signo).0 != 0
    }

    /// Both sets' signals.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The signals in both sets.
    #[must_use]
    pub const fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The signals of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set has no signal.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest signal, or `None`.
    pub const fn first(self) -> Option<i32> {
        if self.0 == 0 { None } else { Some(self.0.trailing_zeros() as i32 + 1) }
    }
}

/// `siginfo_t` of x86-64: 128 bytes, the union kept as bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct SigInfo {
    /// `si_signo`.
    pub signo: i32,
    /// `si_errno`.
    pub errno: i32,
    /// `si_code`.
    pub code: i32,
    /// Alignment of the union.
    pub pad: i32,
    /// The union `_sifields`.
    pub fields: [u64; 14],
}

impl core::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SigInfo({}, code {})", signal_name(self.signo), self.code)
    }
}

/// `SI_USER`: sent by `kill`.
pub const SI_USER: i32 = 0;
/// `SI_KERNEL`: sent by the kernel.
pub const SI_KERNEL: i32 = 0x80;
/// `SI_QUEUE`: sent by `sigqueue`.
pub const SI_QUEUE: i32 = -1;
/// `SI_TIMER`: a POSIX timer expired.
pub const SI_TIMER: i32 = -2;
/// `SI_TKILL`: sent by `tkill` or `tgkill`.
pub const SI_TKILL: i32 = -6;
/// `SEGV_MAPERR`: nothing is mapped there.
pub const SEGV_MAPERR: i32 = 1;
/// `SEGV_ACCERR`: the mapping does not allow the access.
pub const SEGV_ACCERR: i32 = 2;
/// `BUS_ADRERR`: past the end of a mapped file.
pub const BUS_ADRERR: i32 = 2;
/// `CLD_EXITED`: the child called `exit`.
pub const CLD_EXITED: i32 = 1;
/// `CLD_KILLED`: the child died of a signal.
pub const CLD_KILLED: i32 = 2;
/// `CLD_DUMPED`: the child died of a signal that dumps core.
pub const CLD_DUMPED: i32 = 3;
/// `TRAP_BRKPT`: a breakpoint, or the end of a stepped system call.
pub const TRAP_BRKPT: i32 = 1;
/// `TRAP_TRACE`: one instruction was stepped.
pub const TRAP_TRACE: i32 = 2;
/// `CLD_TRAPPED`: a traced child has stopped for its tracer.
pub const CLD_TRAPPED: i32 = 4;
/// `CLD_STOPPED`: the child was stopped.
pub const CLD_STOPPED: i32 = 5;
/// `CLD_CONTINUED`: the child was continued.
pub const CLD_CONTINUED: i32 = 6;

/// `SI_MESGQ`: a message came to an empty queue (`mq_notify(3)`).
pub const SI_MESGQ: i32 = -3;
/// `SYS_SECCOMP`: a seccomp filter raised SIGSYS.
pub const SYS_SECCOMP: i32 = 1;
/// `SYS_USER_DISPATCH`: syscall user dispatch raised SIGSYS.
pub const SYS_USER_DISPATCH: i32 = 2;

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl SigInfo {
    /// A signal of the kernel, without a sender.
    pub const fn kernel(signo: i32, code: i32) -> Self {
        Self { signo, errno: 0, code, pad: 0, fields: [0; 14] }
    }

    /// A signal that process `pid` of user `uid` sent with `kill` or `tkill`.
    pub fn user(signo: i32, code: i32, pid: i32, uid: u32) -> Self {
        Self::kernel(signo, code).with(0, pair(pid.cast_unsigned(), uid))
    }

    /// The SIGSYS of a seccomp filter for call `nr` of architecture `arch`; `errno` is the filter's data.
    pub fn seccomp(call_addr: u64, nr: i32, arch: u32, errno: i32) -> Self {
        let info =
            Self::kernel(sig::SYS, SYS_SECCOMP).with(0, call_addr).with(1, pair(nr.cast_unsigned(), arch));
        Self { errno, ..info }
    }

    /// A signal with a value, of process `pid` of user `uid`.
    pub fn queued(signo: i32, code: i32, pid: i32, uid: u32, value: u64) -> Self {
        Self::user(signo, code, pid, uid).with(1, value)
    }

    /// An event on descriptor `fd`: `code` is `POLL_IN` or its kin, `band` as `poll(2)` would report it.
    pub fn poll(signo: i32, code: i32, band: u32, fd: i32) -> Self {
        Self::kernel(signo, code).with(0, u64::from(band)).with(1, u64::from(fd.cast_unsigned()))
    }

    /// A fault at `addr`.
    pub fn fault(signo: i32, code: i32, addr: u64) -> Self {
        Self::kernel(signo, code).with(0, addr)
    }

    /// SIGCHLD's fields; `utime` and `stime` in clock ticks.
    pub fn child(signo: i32, code: i32, pid: i32, uid: u32, status: i32, utime: u64, stime: u64) -> Self {
        Self::kernel(signo, code)
            .with(0, pair(pid.cast_unsigned(), uid))
            .with(1, u64::from(status.cast_unsigned()))
            .with(2, utime)
            .with(3, stime)
    }

    /// The expiry of POSIX timer `id`, missed `overrun` times, with the `sigev_value` of its maker.
    pub fn timer(signo: i32, id: i32, overrun: i32, value: u64) -> Self {
        Self::kernel(signo, SI_TIMER)
            .with(0, pair(id.cast_unsigned(), overrun.cast_unsigned()))
            .with(1, value)
    }

    #[must_use]
    fn with(mut self, index: usize, value: u64) -> Self {
        if let Some(field) = self.fields.get_mut(index) {
            *field = value;
        }
        self
    }

    fn field(&self, index: usize) -> u64 {
        self.fields.get(index).copied().unwrap_or(0)
    }

    /// `si_pid`, or the timer's id.
    pub fn pid(&self) -> i32 {
        (self.field(0) & 0xffff_ffff) as i32
    }

    /// `si_uid`, or a timer's overrun count.
    pub fn uid(&self) -> u32 {
        (self.field(0) >> 32) as u32
    }

    /// `si_addr`.
    pub fn addr(&self) -> u64 {
        self.field(0)
    }

    /// `si_value` of queued signals and timers.
    pub fn value(&self) -> u64 {
        self.field(1)
    }

    /// `si_status` of SIGCHLD.
    pub fn status(&self) -> i32 {
        (self.field(1) & 0xffff_ffff) as i32
    }

    /// `si_utime` and `si_stime` of SIGCHLD, in clock ticks.
    pub fn child_times(&self) -> (u64, u64) {
        (self.field(2), self.field(3))
    }

    /// Sets the overrun count of a timer's signal.
    pub fn set_overrun(&mut self, overrun: i32) {
        *self = self.with(0, pair(self.pid().cast_unsigned(), overrun.cast_unsigned()));
    }
}

/// `SIG_DFL`.
pub const SIG_DFL: u64 = 0;
/// `SIG_IGN`.
pub const SIG_IGN: u64 = 1;

/// No SIGCHLD when children stop.
pub const SA_NOCLDSTOP: u64 = 1;
/// Children leave no zombies.
pub const SA_NOCLDWAIT: u64 = 2;
/// The handler takes three arguments.
pub const SA_SIGINFO: u64 = 4;
/// `sa_restorer` is set.
pub const SA_RESTORER: u64 = 0x0400_0000;
/// Run the handler on the alternate stack.
pub const SA_ONSTACK: u64 = 0x0800_0000;
/// Interrupted calls are restarted.
pub const SA_RESTART: u64 = 0x1000_0000;
/// The signal is not blocked while its handler runs.
pub const SA_NODEFER: u64 = 0x4000_0000;
/// Back to the default action when the handler is entered.
pub const SA_RESETHAND: u64 = 0x8000_0000;
/// The flags that the kernel knows; others are cleared, so that programs can probe for them.
pub const SA_KNOWN: u64 = SA_NOCLDSTOP
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_RESTORER
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND
    | 0x800;

/// `struct sigaction` as the system call takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigAction {
    /// `SIG_DFL`, `SIG_IGN` or an address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: SigSet,
}

impl SigAction {
    /// What `rt_sigaction(2)` keeps of it: flags that it knows, and no signals that cannot be blocked.
    #[must_use]
    pub fn kept(self) -> Self {
        Self { flags: self.flags & SA_KNOWN, mask: self.mask.without(SigSet::UNBLOCKABLE), ..self }
    }
}

/// `SS_ONSTACK`: the thread runs on the alternate stack.
pub const SS_ONSTACK: i32 = 1;
/// `SS_DISABLE`: there is no alternate stack.
pub const SS_DISABLE: i32 = 2;
/// `SS_AUTODISARM`: cleared when a handler is entered.
pub const SS_AUTODISARM: i32 = i32::MIN;
/// `MINSIGSTKSZ` of x86-64.
pub const MINSIGSTKSZ: u64 = 2048;

/// `stack_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StackT {
    /// Lowest address.
    pub sp: u64,
    /// `SS_*`.
    pub flags: i32,
    /// Padding.
    pub pad: i32,
    /// Bytes.
    pub size: u64,
}

/// `struct sigcontext_64`.
#[allow(missing_docs, reason = "registers by their own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigContext {
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rsp: u64,
    pub rip: u64,
    pub eflags: u64,
    pub cs: u16,
    pub gs: u16,
    pub fs: u16,
    pub ss: u16,
    pub err: u64,
    pub trapno: u64,
    pub oldmask: u64,
    pub cr2: u64,
    /// The address of the XSAVE image, 0 for none.
    pub fpstate: u64,
    pub reserved: [u64; 8],
}

/// `UC_FP_XSTATE`: the frame has an extended XSAVE image.
pub const UC_FP_XSTATE: u64 = 1;
/// `UC_SIGCONTEXT_SS`: `ss` is saved.
pub const UC_SIGCONTEXT_SS: u64 = 2;
/// `UC_STRICT_RESTORE_SS`: `ss` is restored as it is.
pub const UC_STRICT_RESTORE_SS: u64 = 4;

/// `struct ucontext`.
#[allow(missing_docs, reason = "fields by their own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UContext {
    pub flags: u64,
    pub link: u64,
    pub stack: StackT,
    pub mcontext: SigContext,
    pub sigmask: SigSet,
}

/// `struct rt_sigframe` without the return address in front.
#[allow(missing_docs, reason = "fields by their own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RtSigFrame {
    pub pretcode: u64,
    pub uc: UContext,
    pub info: SigInfo,
}

const _: () = assert!(size_of::<SigInfo>() == 128);
const _: () = assert!(size_of::<SigContext>() == 256);
const _: () = assert!(size_of::<UContext>() == 304);
const _: () = assert!(size_of::<RtSigFrame>() == 440);
