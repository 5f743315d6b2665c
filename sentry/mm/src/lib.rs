//! Address spaces as Linux keeps them: the VMA tree and the mmap family over a platform's address space.
//!
//! There are no page tables here: the platform maps what the tree says, and the host resolves first touches and
//! copies on write. A fault reaches [`Mm`] only where the host mapping deliberately has a hole: a stack that grows, or a
//! page that its file did not have when it was mapped.
//!
//! **Invariants.** What the host maps in the user range is what the tree says, less the pages of files that no fault has
//! resolved yet. A page of the memory file is pinned as long as any mapping shows it, and the pin is dropped only
//! after the host has unmapped it. Files are called without the lock ([`Mappable`]).
//!
//! **Lock ranks:** `MmMapping` 100 over `FileRmap` 110 and `AddressSpace` 120.
//!
//! **Threat.** Every address, length and flag is the application's.

mod advise;
mod detour;
mod fault;
mod flags;
mod force;
mod map;
mod mappable;
mod mm;
mod protect;
mod remap;
mod resident;
mod shared;
mod text;
mod tree;
mod vma;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use advise::madv;
pub use detour::Place;
pub use fault::{FaultOutcome, FutexKey, SEGV_ACCERR, SEGV_MAPERR};
pub use flags::{MAX_MAP_COUNT, MmLimits, VmFlags};
pub use map::{FileMapping, MmapArgs, map_flags};
pub use mappable::{FileMappings, Mappable, MappedFile, MappedPiece};
pub use mm::{FileAt, Layout, MapInfo, MapName, Mm, MmConfig, Usage};
pub use remap::remap_flags;
pub use resident::{PagePresence, Resident};
pub use shared::{SharedAnon, ZeroPages};
pub use text::{TextImage, TextSlot};
