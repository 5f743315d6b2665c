//! What a file gives to be mapped.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use sentry_base::Result;

/// Pages of a file as pages of a host descriptor.
#[derive(Clone)]
pub struct MappedPiece {
    /// Where the piece starts, in bytes of the file; page-aligned.
    pub offset: u64,
    /// Bytes; a multiple of the page size.
    pub len: u64,
    pub fd: Arc<OwnedFd>,
    /// Where the piece starts in `fd`; page-aligned.
    pub fd_offset: u64,
    /// Keeps the pages from being handed out again while they are mapped.
    pub pin: Option<Arc<dyn Any + Send + Sync>>,
}

impl core::fmt::Debug for MappedPiece {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "MappedPiece({:#x}+{:#x} at {:#x})", self.offset, self.len, self.fd_offset)
    }
}

/// A file that can be mapped.
pub trait Mappable: Send + Sync {
    /// The pieces that back `offset..offset + len`, in order. Pages past the end of the file are left out: touching
    /// them is SIGBUS. Pages of a hole are given as soon as `write` asks for a shared writable mapping; for reading
    /// they may be left out only past the end.
    fn pieces(&self, offset: u64, len: u64, write: bool) -> Result<Vec<MappedPiece>>;

    /// True where every page of the file, present and future, is at its own offset in one host descriptor, which
    /// raises SIGBUS past its end by itself: the whole range is then mapped at once.
    fn is_host_file(&self) -> bool {
        false
    }

    /// Device and inode number, for `/proc/PID/maps` and futex keys.
    fn identity(&self) -> (u64, u64);
}

impl core::fmt::Debug for dyn Mappable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Mappable")
    }
}
