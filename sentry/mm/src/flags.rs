//! The flags of a mapping, and the limits that apply to a process' memory.

use platform::Prot;

bitflags::bitflags! {
    /// Flags of a VMA, with the values of `include/linux/mm.h` (`VM_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct VmFlags: u64 {
        const READ = 0x1;
        const WRITE = 0x2;
        const EXEC = 0x4;
        /// Stores reach a file that others see. A shared mapping of a file opened for reading has `MAYSHARE` alone.
        const SHARED = 0x8;
        const MAYREAD = 0x10;
        const MAYWRITE = 0x20;
        const MAYEXEC = 0x40;
        /// Made with `MAP_SHARED`.
        const MAYSHARE = 0x80;
        const GROWSDOWN = 0x100;
        const LOCKED = 0x2000;
        const SEQ_READ = 0x8000;
        const RAND_READ = 0x1_0000;
        /// `MADV_DONTFORK`.
        const DONTCOPY = 0x2_0000;
        const LOCKONFAULT = 0x8_0000;
        const NORESERVE = 0x20_0000;
        const WIPEONFORK = 0x200_0000;
        const DONTDUMP = 0x400_0000;
        const HUGEPAGE = 0x2000_0000;
        const NOHUGEPAGE = 0x4000_0000;
        const MERGEABLE = 0x8000_0000;
        /// The Sentry's own, in no list and no sum.
        const HIDDEN = 0x100_0000_0000;

        const ACCESS = Self::READ.bits() | Self::WRITE.bits() | Self::EXEC.bits();
        const MAY_ACCESS = Self::MAYREAD.bits() | Self::MAYWRITE.bits() | Self::MAYEXEC.bits();
        const LOCK_MASK = Self::LOCKED.bits() | Self::LOCKONFAULT.bits();
    }
}

impl VmFlags {
    /// The access flags of `PROT_*` bits; other bits are dropped.
    pub fn from_prot(prot: u32) -> Self {
        Self::from_bits_truncate(u64::from(prot)) & Self::ACCESS
    }

    /// The protection that the host gets.
    pub fn prot(self) -> Prot {
        Prot::from_bits_truncate(u32::try_from((self & Self::ACCESS).bits()).unwrap_or(0))
    }

    pub fn is_shared(self) -> bool {
        self.contains(Self::MAYSHARE)
    }

    /// Private, writable and not a stack: what `RLIMIT_DATA` counts.
    pub(crate) fn is_data(self) -> bool {
        self.contains(Self::WRITE) && !self.intersects(Self::SHARED | Self::GROWSDOWN)
    }
}

/// Resource limits of the calling process that its memory calls obey (`getrlimit(2)`), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmLimits {
    /// `RLIMIT_AS`.
    pub address_space: u64,
    /// `RLIMIT_DATA`.
    pub data: u64,
    /// `RLIMIT_STACK`.
    pub stack: u64,
    /// `RLIMIT_MEMLOCK`.
    pub memlock: u64,
    /// `CAP_IPC_LOCK`: `memlock` does not apply.
    pub may_lock: bool,
}

impl MmLimits {
    /// No limits but Linux's usual 8 MiB of stack and 8 MiB of locked memory.
    pub const DEFAULT: Self =
        Self { address_space: u64::MAX, data: u64::MAX, stack: 8 << 20, memlock: 8 << 20, may_lock: false };

    /// Whether any memory may be locked (`can_do_mlock`).
    pub(crate) fn can_lock(&self) -> bool {
        self.may_lock || self.memlock > 0
    }
}

impl Default for MmLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The most mappings of one address space (`/proc/sys/vm/max_map_count`).
pub const MAX_MAP_COUNT: usize = 65530;

/// Bytes that stay free below a mapping that grows down (`stack_guard_gap`).
pub(crate) const STACK_GUARD_GAP: u64 = 256 << 12;
