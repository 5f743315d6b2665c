//! What the Sentry asks of a platform: address spaces to map into, contexts to run application code in.
//!
//! The kernel sees `dyn Platform` alone. A platform traps every system call and fault of the application and
//! hands it over as a [`TrapEvent`]; it never interprets one.
//!
//! **Threat.** Application code runs in a context and is hostile. Every word that a platform reads from
//! memory that the application can write passes once through [`Untrusted`].

mod addr;
mod hand;
mod regs;
mod space;
mod untrusted;

pub use addr::{Addr, AddrRange, PAGE_SIZE};
pub use hand::{AtHand, HAND_BYTES, HAND_CALLS, HandFile, HandPiece, HandUse};
pub use regs::{FpuState, Regs};
pub use space::{Advice, AtomicOp, Barrier, Fault, FaultMode, HostFd, MapSource, Prot, Sharing, SpaceError};
pub use untrusted::Untrusted;

use std::sync::Arc;
use std::task::{Context as Poller, Poll};

/// Why a context stopped running application code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapEvent {
    /// A system call; number and arguments are in [`Regs`] (`orig_rax`, `rdi`, `rsi`, `rdx`, `r10`, `r8`, `r9`).
    Syscall,
    /// An access that the host's mappings do not allow.
    Fault { addr: Addr, access: Prot },
    /// A processor exception other than a page fault, as the signal that Linux would send for it.
    Exception(SigInfo),
    /// A [`Context::kick`] arrived while the application ran; registers are whole.
    Interrupted,
    /// What [`Context::give`] took has not reached the application's memory, or not all of it, and nothing ran.
    Undelivered,
    /// The host side of the context is gone: its process was killed or broke the protocol.
    Died(Cause),
}

/// The part of `siginfo_t` that a processor exception fills (`sigaction(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SigInfo {
    pub signo: i32,
    pub code: i32,
    pub addr: u64,
}

/// Why a context died on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The host process was killed by this signal from outside the sandbox (or by the host's OOM killer).
    HostSignal(i32),
    /// The stub broke the protocol: a host call that the Sentry had not approved, or no answer in time.
    Protocol(&'static str),
}

/// The calls that a context may answer by itself: see [`Context::answer`].
pub const ANSWERED: [i64; 11] = [
    libc::SYS_sched_yield,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_clock_gettime,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rt_sigaction,
];

/// What a task's own identity calls answer, each as its namespaces show it. `sched_yield(2)` needs no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    pub pid: u32,
    pub tid: u32,
    pub uid: u32,
    pub euid: u32,
    pub gid: u32,
    pub egid: u32,
}

/// Signals (a bit each, from signal 1 on) that were set to `SIG_DFL`, all with the same rest of an action, as the application
/// has passed it. None is one that is ignored by default, or cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaulted {
    pub signals: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// Bytes and pieces that [`Context::give`] takes at most.
pub const GIVEN_BYTES: usize = 4096;
pub const GIVEN_PIECES: usize = 8;

/// Told of the death of a space's host process.
pub type DeathWatch = Box<dyn FnOnce(Cause) + Send>;
/// What keeps pages from being used by others.
pub type Kept = std::sync::Arc<dyn std::any::Any + Send + Sync>;

/// The workers of the lowest numbers, which run on whichever CPU is free. A sandbox has one more for each CPU.
pub const FREE_WORKERS: usize = 2;

/// A source of address spaces and contexts.
pub trait Platform: Send + Sync {
    /// A new empty address space.
    fn new_space(&self) -> Result<Arc<dyn AddressSpace>, SpaceError>;

    /// A new context that runs in `space`; its registers are set by the first [`Context::poll_switch`].
    fn new_context(&self, space: &Arc<dyn AddressSpace>) -> Result<Box<dyn Context>, SpaceError>;

    /// Takes every trap that has arrived, wakes the tasks that wait for them, and returns how many.
    ///
    /// Every worker calls it between tasks. Never blocks.
    fn poll_traps(&self) -> usize;

    /// Sleeps until a trap arrives, [`Platform::unpark`] names this worker, or `until` (`CLOCK_MONOTONIC`, in
    /// nanoseconds) has passed. A spurious return is allowed. With `spin` the platform may spin briefly first.
    ///
    /// Each worker is a thread of its own, and always the same. From [`FREE_WORKERS`] on the platform may keep it to one CPU.
    fn park(&self, worker: usize, until_ns: Option<u64>, spin: bool);

    /// The calling worker begins something else than to look for traps.
    fn at_work(&self) {}

    /// Ends the current or next [`Platform::park`] of `worker`. Never lost.
    fn unpark(&self, worker: usize);

    /// Addresses that applications may use.
    fn user_range(&self) -> AddrRange;

    /// The host's vDSO image inside every new space, if the platform provides one (`AT_SYSINFO_EHDR`).
    fn vdso(&self) -> Option<AddrRange>;

    /// A number that contexts read and applications cannot write, for [`Context::remember_directory`]; none if they remember
    /// nothing.
    fn epoch(&self) -> Option<&'static std::sync::atomic::AtomicU64> {
        None
    }

    /// A number of the same kind for [`AtHand`]; none if contexts have no files at hand.
    fn file_epoch(&self) -> Option<&'static std::sync::atomic::AtomicU64> {
        None
    }

    /// Stops every application process. Called once, when the sandbox ends.
    fn shutdown(&self);
}

/// The memory of one application process, in terms of Linux mappings.
///
/// Addresses and lengths are page-aligned and inside [`Platform::user_range`]; others are refused.
/// Calls may be made from any thread. They are made without any lock of rank below `AddressSpace` free to be
/// taken inside, and may take tens of microseconds.
pub trait AddressSpace: std::any::Any + Send + Sync {
    /// Maps `source` at `range`, replacing what was there (`mmap` with `MAP_FIXED`).
    fn map(
        &self,
        range: AddrRange,
        source: MapSource<'_>,
        prot: Prot,
        sharing: Sharing,
    ) -> Result<(), SpaceError>;
    /// Maps parts of one file, each from a byte of it on, private and read-only in effect, as [`AddressSpace::map`] would.
    /// After an error some may be mapped.
    fn map_parts(&self, parts: &[(AddrRange, u64)], file: HostFd<'_>, prot: Prot) -> Result<(), SpaceError> {
        parts.iter().try_for_each(|(range, offset)| {
            let source = MapSource::File { file, offset: *offset, writable: false };
            self.map(*range, source, prot, Sharing::Private)
        })
    }
    fn unmap(&self, range: AddrRange) -> Result<(), SpaceError>;

    /// From here on mappings may be collected instead of being made, until [`AddressSpace::release`] or anything that
    /// needs them. For a space in which nothing runs yet.
    fn hold(&self) {}

    /// Makes the mappings that were collected. After an error the space is of no use.
    fn release(&self) -> Result<(), SpaceError> {
        Ok(())
    }

    fn protect(&self, range: AddrRange, prot: Prot) -> Result<(), SpaceError>;
    /// Moves mapped pages to `to`, replacing what was there; `new_len` may differ (`mremap` with
    /// `MREMAP_MAYMOVE | MREMAP_FIXED`).
    fn move_pages(&self, from: AddrRange, to: Addr, new_len: u64) -> Result<(), SpaceError>;
    fn advise(&self, range: AddrRange, advice: Advice) -> Result<(), SpaceError>;
    /// A copy of this space: private memory is copied on write, shared memory is shared. `skip` ranges
    /// are absent from the copy (`MADV_DONTFORK`), `wipe` ranges read as zeroes (`MADV_WIPEONFORK`).
    fn fork(&self, skip: &[AddrRange], wipe: &[AddrRange]) -> Result<Arc<dyn AddressSpace>, SpaceError>;

    /// Copies from application memory. Returns the bytes copied before the first fault; an error only when
    /// that is none of a non-empty request.
    fn copy_in(&self, from: Addr, dst: &mut [u8], mode: FaultMode) -> Result<usize, Fault>;
    /// Copies to application memory, under the rule of [`AddressSpace::copy_in`]. Respects protections.
    fn copy_out(&self, to: Addr, src: &[u8], mode: FaultMode) -> Result<usize, Fault>;
    /// An atomic operation on an aligned word of application memory; returns the old value.
    fn atomic_u32(&self, at: Addr, op: AtomicOp) -> Result<u32, Fault>;
    /// Where code of the application may jump instead of making a system call, if the platform has such a place: with
    /// the number in rax, the address to go on at in rcx, arguments as for `syscall`, of which two bytes stand before that
    /// address. r11 and the arithmetic flags are lost.
    fn call_entry(&self) -> Option<Addr> {
        None
    }
    /// Calls `tell` when the host process behind the space dies while the space is in use, with the cause; at once if it
    /// is dead already. A task that sleeps in the kernel learns of it in no other way. Called on any thread.
    fn on_death(&self, tell: DeathWatch) {
        drop(tell);
    }
    /// Has every thread that `reach` names pass a memory barrier before it returns (`membarrier(2)`).
    fn barrier(&self, reach: Barrier) -> Result<(), SpaceError> {
        let _ = reach;
        Err(SpaceError::Host(libc::ENOSYS))
    }
    /// Nothing more is asked of this space: what it has mapped in `range` may be used by others when `kept` is dropped, so that
    /// is when the application can reach it no more.
    fn bury(&self, range: AddrRange, kept: Vec<Kept>) {
        let _ = self.unmap(range);
        drop(kept);
    }
    /// Says of mapped ranges which of their pages are resident on the host: `tell` gets the range's index and one byte
    /// for each page, not zero if it is there, in one piece or several. For accounting: the application can falsify it.
    /// A range of which part is not mapped is told in part or not at all.
    fn resident(&self, ranges: &[AddrRange], tell: &mut dyn FnMut(usize, &[u8])) -> Result<(), SpaceError> {
        let _ = (ranges, tell);
        Err(SpaceError::Gone)
    }
    /// The most resident bytes that the space has had on the host, for accounting; zero when unknown.
    fn peak_resident_bytes(&self) -> u64 {
        0
    }
}

/// One thread of application code. Owned by one task; dropped with it.
pub trait Context: Send {
    /// Runs application code with `regs` until it traps.
    ///
    /// The first call after a `Ready` starts the run and answers `Pending`; the waker of `cx` is woken when a
    /// trap has arrived. On `Ready`, `regs` holds the registers at the trap. The extended state (FPU, AVX)
    /// stays with the context from one run to the next.
    fn poll_switch(&mut self, cx: &mut Poller<'_>, regs: &mut Regs) -> Poll<TrapEvent>;

    /// Bytes that the trap carried along from `addr` on (paths, small buffers), without a host call.
    /// A snapshot taken at the trap: use it where one fetch is what Linux does too.
    fn staged(&self, addr: Addr) -> Option<&[u8]>;

    /// Has the next run begin with copies to the application's memory, without a host call: `pieces` are addresses and
    /// lengths, `bytes` their contents one after the other. True if it takes them, all or none. When one of them cannot be
    /// written, the run ends at once with [`TrapEvent::Undelivered`].
    fn give(&mut self, pieces: &[(Addr, usize)], bytes: &[u8]) -> bool {
        let _ = (pieces, bytes);
        false
    }

    /// Lets the context answer `getpid(2)`, `gettid(2)`, `getuid(2)` and their kin, and `sched_yield(2)`, without a trap from
    /// the next run on; `None` has every call trap. A platform may do neither.
    fn answer(&mut self, identity: Option<Identity>) {
        let _ = identity;
    }

    /// Lets the context answer `rt_sigaction(2)` that asks for the action of a signal of `untouched` (a bit each, from signal 1
    /// on) with one that is all zero, from the next run on, while it may answer calls ([`Context::answer`]). It may also let
    /// the application set some of them to the default, which [`Context::take_defaulted`] tells.
    fn answer_actions(&mut self, untouched: u64) {
        let _ = untouched;
    }

    /// What the application has set in the last run without a trap; to be asked for after each. The signals are among those
    /// that [`Context::answer_actions`] has named, and are none of them from then on.
    fn take_defaulted(&mut self) -> Option<Defaulted> {
        None
    }

    /// Lets the context answer `readlink(2)` of `path` with `EINVAL` by itself from the next run on: it is absolute, has no
    /// NUL, and leads to a directory for as long as the epoch ([`Platform::epoch`]) is `epoch`. [`Context::answer`] makes it
    /// forget.
    fn remember_directory(&mut self, path: &[u8], epoch: u64) {
        let _ = (path, epoch);
    }

    /// Where a file can be put that the context answers for by itself; `None` if it answers for none. Nothing is there in a
    /// new context, nor after [`Context::answer`].
    fn at_hand(&self) -> Option<Arc<dyn AtHand>> {
        None
    }

    /// Makes the extended state known to the platform, which may have left it in the processor. To be ready before
    /// [`Context::fpu`] is called after a run. The thread may have to do something for it: one that does not within two
    /// seconds dies with all that shares its address space.
    fn poll_settle(&mut self, cx: &mut Poller<'_>) -> Poll<Result<(), SpaceError>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// The extended state at the last trap, in the XSAVE layout of the host (`fpstate` of a signal frame). `EBUSY` unless
    /// [`Context::poll_settle`] was ready.
    fn fpu(&mut self) -> Result<FpuState, SpaceError>;
    /// Replaces the extended state for the next run; an image that the host would refuse is an error.
    fn set_fpu(&mut self, state: &FpuState) -> Result<(), SpaceError>;

    /// Tells the platform that the task is about to block, so that nothing spins for it.
    fn will_block(&mut self) {}

    /// Lets the next [`Context::poll_switch`] wait some microseconds for the trap, where that has paid off of late, instead of
    /// returning at once: its caller has nothing else to do.
    fn may_linger(&mut self, may: bool) {
        let _ = may;
    }

    /// A handle that interrupts this context from any thread.
    fn kicker(&self) -> Arc<dyn Kick>;
}

/// Interrupts a running context.
pub trait Kick: Send + Sync {
    /// Makes the current or next run end with [`TrapEvent::Interrupted`] soon. Never lost; a spurious
    /// interruption is allowed.
    fn kick(&self);

    /// A kick of a context that is to run no more. One whose thread does not stop soon dies with all that shares its
    /// address space: the application can keep a thread of its own from being stopped.
    fn kick_to_end(&self) {
        self.kick();
    }
}

impl std::fmt::Debug for dyn Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Platform")
    }
}
impl std::fmt::Debug for dyn AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AddressSpace")
    }
}
impl std::fmt::Debug for dyn Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}
impl std::fmt::Debug for dyn Kick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kick")
    }
}
