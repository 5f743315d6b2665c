//! Address spaces as Linux keeps them: the VMA tree and the mmap family over a platform's address space.
//!
//! There are no page tables here: the platform maps what the tree says, and the host resolves first touches and
//! copies on write. A fault reaches [`Mm`] only where the host mapping deliberately has a hole.
//!
//! **Lock ranks:** `MmMapping` 100 over `AddressSpace` 120.

mod mappable;

pub use mappable::{Mappable, MappedPiece};
