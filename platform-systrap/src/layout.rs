//! Where everything lies: the stub region of an application's address space, the channel file, and the words of a channel.
//!
//! ```text
//! STUB_BASE  code (read, execute)         one sealed file, the same pages in every process
//! VDSO       the host's vvar and vDSO     moved here once, in the zygote
//! ORDERS     order page (read only)       written by the Sentry through its own mapping
//! EPOCH      numbers (read only)          the same page in every process, written by the Sentry
//! SCRATCH    results of some agent calls  read by the Sentry, for accounting alone
//! CHANNELS   slots of SLOT bytes          one for each host thread that runs application code
//! STUB_END   the end of the address space
//! ```

use platform::{AddrRange, PAGE_SIZE};

/// First address that applications cannot use.
pub const STUB_BASE: u64 = 0x7ffe_0000_0000;
/// End of the addresses of a process on x86-64 with four-level page tables.
pub const STUB_END: u64 = 0x7fff_ffff_f000;
/// Lowest address that applications may use: the usual `vm.mmap_min_addr`.
pub const USER_START: u64 = 0x1_0000;

/// Stub code and its constant data.
pub const CODE: u64 = STUB_BASE;
/// Length of the code image.
pub const CODE_LEN: u64 = 0x4000;
/// The host's vvar pages, then its vDSO.
pub const VDSO: u64 = STUB_BASE + 0x10_0000;
/// The agent's order page.
pub const ORDERS: u64 = STUB_BASE + 0x20_0000;
/// The epoch of directories, in eight bytes: see [`known`].
pub const EPOCH: u64 = STUB_BASE + 0x28_0000;
/// Offset in that page of the epoch of files: see [`hand`].
pub const FILE_EPOCH: u64 = 16;
/// Offset in that page of what workers do: a word in a cache line for each, first those of the free workers, then those of
/// the CPUs. See [`doing`].
pub const WORKERS: u64 = 64;
/// Binary logarithm of the distance between two.
pub const WORKER_SHIFT: u32 = 6;
/// How many have one.
pub const NR_WORKERS: u64 = (PAGE_SIZE - WORKERS) >> WORKER_SHIFT;
/// Where the agent's calls put what they find out, mapped when it is first needed.
pub const SCRATCH: u64 = STUB_BASE + 0x30_0000;
/// Bytes of it.
pub const SCRATCH_LEN: u64 = 0x4_0000;
/// Channel slots.
pub const CHANNELS: u64 = STUB_BASE + 0x1_0000_0000;

/// Bytes of a slot; a power of two, as stub code finds its slot by masking the stack pointer.
pub const SLOT: u64 = 0x2_0000;
/// Slots that are mapped at once.
pub const GROUP_SLOTS: u64 = 8;
/// Bytes of a group of slots.
pub const GROUP: u64 = SLOT * GROUP_SLOTS;
/// Groups in the channel file.
pub const NR_GROUPS: u64 = 16384;
/// Groups that one space may have: 4,096 threads.
pub const MAX_GROUPS_OF_SPACE: usize = 512;
/// Offset of the order pages in the channel file: one page for each group.
pub const ORDERS_OFFSET: u64 = GROUP * NR_GROUPS;
/// Offset of the page of the epoch.
pub const EPOCH_OFFSET: u64 = ORDERS_OFFSET + NR_GROUPS * PAGE_SIZE;
/// Length of the channel file.
pub const CHANNEL_FILE: u64 = EPOCH_OFFSET + PAGE_SIZE;

/// The first entry of an order page; before it stands the number of entries.
pub const ORDER_FIRST: usize = 64;
/// Bytes of an entry: call number, six arguments, child address, child argument, spare.
pub const ORDER_SIZE: usize = 80;
/// Entries of an order page.
pub const MAX_ORDERS: usize = (4096 - ORDER_FIRST) / ORDER_SIZE;

/// Offsets of the words of a channel.
pub mod word {
    /// What the thread does: [`super::state`]. Workers sleep on it while the thread runs.
    pub const STATE: usize = 0x00;
    /// Not zero while a worker sleeps on the state word.
    pub const SLEEPERS: usize = 0x04;
    /// Cycles that the stub may spin after it has posted a trap, or [`super::NO_SPIN_ALONE`].
    pub const SPIN: usize = 0x08;
    /// Not zero when the stub is to store the extended state instead of running the application.
    pub const SAVE: usize = 0x0c;
    /// One while the stub sleeps on this word until it is to run. Not the state word: a wake-up of the stub there could
    /// go to a worker.
    pub const ASLEEP: usize = 0x10;
    /// Signal of the trap.
    pub const SIGNAL: usize = 0x40;
    /// Host thread id, written by the host kernel at clone.
    pub const TID: usize = 0x44;
    /// Address of the `ucontext` to return to.
    pub const CONTEXT: usize = 0x48;
    pub const FS_BASE: usize = 0x50;
    pub const GS_BASE: usize = 0x58;
    /// Signals of [`UNTOUCHED`] that the application has set to [`DEFAULT`] since it was set running; left to the Sentry.
    pub const DEFAULTED: usize = 0x60;
    /// Where to store it.
    pub const SAVE_ADDRESS: usize = 0x80;
    /// Pieces that are to be copied to the application before it goes on.
    pub const GIVEN_COUNT: usize = 0xa8;
    /// Which calls the stub answers itself: bits by [`super::resident`].
    pub const RESIDENT: usize = 0xac;
    /// Two pieces of staged data: address and length each.
    pub const STAGE: usize = 0xc0;
    /// Not zero when calls of patched code may come in without a trap.
    pub const TAKES_CALLS: usize = 0xb0;
    /// Not zero when a kick came while the stub's own code ran.
    pub const KICKED: usize = 0xb4;
    /// Not zero while the host's vDSO runs on the stub's behalf.
    pub const IN_CLOCK: usize = 0xb8;
    /// Counts calls of `sched_yield(2)` that took no trap.
    pub const YIELDS: usize = 0xbc;
    /// The pieces that are to be copied: address and length each.
    pub const GIVEN: usize = 0x100;
    /// Answers of the calls in [`super::resident`], four bytes each.
    pub const ANSWERS: usize = 0x200;
    /// Signals of which [`super::resident::ACTION`] may say that nobody has set an action: bits from signal 1 on.
    pub const UNTOUCHED: usize = 0x238;
    /// What [`DEFAULTED`] were set to, after the handler, which is `SIG_DFL`: flags, restorer, mask.
    pub const DEFAULT: usize = 0x240;
    /// A `struct timespec` on its way to the application.
    pub const CLOCK_RESULT: usize = 0x280;
    /// Bytes of the staged pieces, [`super::STAGE_MAX`] each.
    pub const STAGE_DATA: usize = 0x800;
    /// Registers of a call of patched code, laid out like a signal frame.
    pub const CALL_FRAME: usize = 0xc00;
    /// Bytes of the pieces that are to be copied, one after the other.
    pub const GIVEN_DATA: usize = 0x1000;
    /// The directories of [`super::known`].
    pub const KNOWN: usize = 0x2000;
    /// The alternate signal stack.
    pub const STACK: usize = 0x3000;
    /// Where the stack pointer is while a call of patched code waits: signals go below, frames that the Sentry makes stand
    /// above.
    pub const CALL_STACK: usize = 0x8000;
    pub const STACK_END: usize = 0x1_0000;
    /// The bytes of the file at hand: see [`super::hand`].
    pub const HAND_DATA: usize = 0x1_0000;
}

/// Bytes of one staged piece.
pub const STAGE_MAX: usize = 512;
/// Pieces that a trap may carry.
pub const NR_STAGED: usize = 2;

/// Values of the word of a worker, in the order in which stub code tells them apart.
pub mod doing {
    /// It has nothing to do, and looks at the threads before it sleeps.
    pub const LOOKING: u32 = 0;
    /// It sleeps, on this word and others.
    pub const ASLEEP: u32 = 1;
    /// It is at work, or there is none.
    pub const OTHER: u32 = 2;
}

/// Value of [`word::SPIN`] for a thread that is not to spin, and is served by a free worker all the same: as no other thread of
/// the sandbox traps, nobody else needs one.
pub const NO_SPIN_ALONE: u32 = 1;

/// Values of [`word::STATE`].
pub mod state {
    /// The application runs, or may.
    pub const RUN: u32 = 0;
    /// A trap is posted, and the stub waits to be set running.
    pub const POSTED: u32 = 1;
}

/// Calls that the stub answers by itself: bits of [`word::RESIDENT`] and places in [`word::ANSWERS`].
pub mod resident {
    pub const YIELD: u32 = 0;
    pub const PID: u32 = 1;
    pub const TID: u32 = 2;
    pub const UID: u32 = 3;
    pub const EUID: u32 = 4;
    pub const GID: u32 = 5;
    pub const EGID: u32 = 6;
    /// `clock_gettime(2)`, of calls of patched code alone; answered by the vDSO.
    pub const CLOCK: u32 = 7;
    /// `readlink(2)` and `readlinkat(2)` of an absolute path that is in the table of [`super::known`].
    pub const DIRECTORY: u32 = 8;
    /// `rt_sigaction(2)` that asks for the action of a signal of [`super::word::UNTOUCHED`], or sets it to the default.
    pub const ACTION: u32 = 9;
    /// All of them.
    pub const ALL: u32 = 0x3ff;
}

/// Signals that may be set to the default action without the Sentry, where they have it already. Those that this would take off
/// the queue are not among them, as they are ignored by default, nor those that never change.
pub const MAY_DEFAULT: u64 = !(bit(libc::SIGKILL)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH));

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Directories that are known to be no symbolic links: sets of two entries, each with the epoch in which it was true, the
/// length of the path and the path with its NUL. One of another epoch is void.
pub mod known {
    pub const NR_SETS: usize = 32;
    /// Entries of a set.
    pub const WAYS: usize = 2;
    pub const ENTRY: usize = 64;
    /// Of an entry: its length, and then the path.
    pub const LEN: usize = 8;
    pub const PATH: usize = 12;
    /// Bytes of the longest path, with its NUL.
    pub const MAX: usize = ENTRY - PATH;
    /// The set of a path is the upper five bits of its last eight bytes (zeroes before a short one) and its length, added and
    /// multiplied by this (two to the 64th over the golden ratio).
    pub const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    pub const SHIFT: u32 = 64 - NR_SETS.trailing_zeros();
}

/// Offsets of what a channel says of the file at hand: see [`platform::AtHand`].
pub mod hand {
    /// The descriptor with [`OPEN`] set, or [`CLOSED`]; zero for no file.
    pub const WHICH: usize = 0x600;
    /// The epoch of files in which it holds.
    pub const EPOCH: usize = 0x608;
    /// Moved by the stub.
    pub const POSITION: usize = 0x610;
    /// Bytes of the file.
    pub const SIZE: usize = 0x618;
    /// Where the piece ends that is in the channel.
    pub const END: usize = 0x620;
    /// Counted by the stub: all answers, those that were reads, and the bytes that these gave.
    pub const CALLS: usize = 0x628;
    pub const READS: usize = 0x62c;
    pub const READ_BYTES: usize = 0x630;
    /// Not zero if the stub may close the file.
    pub const MAY_CLOSE: usize = 0x638;
    /// A `struct stat`, and its bytes.
    pub const STAT: usize = 0x640;
    pub const STAT_LEN: usize = 144;
    /// Where the piece starts.
    pub const START: usize = 0x6d0;
    /// Not zero if more is known than the position.
    pub const IS_STEADY: usize = 0x6d8;

    /// A bit of [`WHICH`] that no descriptor has.
    pub const OPEN: u64 = 1 << 32;
    /// What the stub makes of [`WHICH`] when the application closes the file.
    pub const CLOSED: u64 = 1 << 33;
}

/// Values of [`word::SIGNAL`] that are no signal.
pub mod signal {
    /// A piece of [`word::GIVEN`] could not be copied.
    pub const UNDELIVERED: u32 = 0x100;
}

/// Orders that are no host call, above the number of any: atomic operations on a word of the application, in the order in
/// which stub code tells them apart.
pub mod atomic {
    /// The first number.
    pub const FIRST: u64 = 0x1_0000;
    pub const STORE: u64 = 0;
    pub const ADD: u64 = 1;
    pub const COMPARE_EXCHANGE: u64 = 2;
    pub const OR: u64 = 3;
    pub const AND: u64 = 4;
    pub const XOR: u64 = 5;
    /// Attempts of those that need several, until the order fails with `EAGAIN`.
    pub const TRIES: u32 = 0x1_0000;
}

/// Offsets in the kernel's `struct ucontext` and in what follows it in a signal frame (`arch/x86/include/asm/sigframe.h`).
pub mod ucontext {
    pub const FLAGS: usize = 0;
    pub const STACK_POINTER: usize = 16;
    pub const STACK_FLAGS: usize = 24;
    pub const STACK_SIZE: usize = 32;
    pub const REGS: usize = 40;
    pub const RAX: usize = 144;
    pub const RIP: usize = 168;
    pub const ERROR: usize = 192;
    pub const TRAP: usize = 200;
    pub const FPSTATE: usize = 224;
    pub const SIGMASK: usize = 296;
    pub const SIZE: usize = 304;
    pub const INFO_CODE: usize = SIZE + 8;
    pub const INFO_ADDRESS: usize = SIZE + 16;
    pub const INFO_SYSCALL: usize = SIZE + 24;
    pub const INFO_ARCH: usize = SIZE + 28;
    pub const INFO_SIZE: usize = 128;
}

/// The signal that interrupts application code: ignored by default, so that a stray one is harmless.
pub const KICK: i32 = libc::SIGURG;

/// Addresses that applications may use.
pub fn user_range() -> AddrRange {
    AddrRange { start: USER_START, end: STUB_BASE }
}
