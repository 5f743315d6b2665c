//! The vocabulary of mappings: what is mapped, how, and how it fails.

use std::os::fd::BorrowedFd;

use crate::Addr;

bitflags::bitflags! {
    /// Page protections, with the values of `PROT_*` (`mmap(2)`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Prot: u32 {
        const READ = 1;
        const WRITE = 2;
        const EXEC = 4;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Private,
    Shared,
}

/// A host file that may be mapped: a regular file's or a memfd's descriptor.
pub type HostFd<'a> = BorrowedFd<'a>;

/// What a mapping shows.
#[derive(Debug, Clone, Copy)]
pub enum MapSource<'a> {
    /// Zeroes; with [`Sharing::Private`] ordinary anonymous memory.
    Zero,
    /// Nothing: the range is reserved and every access faults, whatever the protection.
    Reserve,
    /// Pages of a host file (a donated file, or the Sentry's memory file), from byte `offset` on.
    File { file: HostFd<'a>, offset: u64, writable: bool },
}

/// Advice that reaches the host (`madvise(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    Normal,
    DontNeed,
    Free,
    WillNeed,
    HugePage,
    NoHugePage,
    /// Reads every page, so that it is there.
    PopulateRead,
    /// Writes every page, which changes nothing in it.
    PopulateWrite,
}

/// How far a memory barrier reaches (`membarrier(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// Every running thread of the space.
    Threads,
    /// The same, and what each thread executes from there on is what is in memory (`SYNC_CORE`).
    Code,
    /// Every thread of every space.
    Everywhere,
}

/// Whether a copy may fault pages in. `NoFault` copies are allowed under a lock and may fail where a plain copy
/// would succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultMode {
    Normal,
    NoFault,
}

/// A copy or atomic access that hit memory it may not touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub addr: Addr,
    pub access: Prot,
}

/// An operation for [`crate::AddressSpace::atomic_u32`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicOp {
    Load,
    Store(u32),
    Add(u32),
    Or(u32),
    And(u32),
    Xor(u32),
    CompareExchange { current: u32, new: u32 },
}

/// Why the host refused an operation on an address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// The host answered with this errno.
    #[error("the host refused with errno {0}")]
    Host(i32),
    /// The range is misaligned, or touches addresses that applications may not use.
    #[error("range not usable by applications")]
    BadRange,
    /// The host process behind the space is gone.
    #[error("the application's host process is gone")]
    Gone,
    /// A limit on threads or processes was reached.
    #[error("out of host threads or processes")]
    Limit,
}
