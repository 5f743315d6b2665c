//! Shared anonymous memory: pages of the memory file under a file of their own (`mm/shmem.c`, `shmem_zero_setup`).

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result};
use sentry_memory::{MemoryFile, PagedData};

use crate::{Mappable, MappedPiece};

/// Memory without a name that several address spaces can map: `MAP_SHARED | MAP_ANONYMOUS`, `/dev/zero`, System V
/// segments.
#[derive(Debug)]
pub struct SharedAnon {
    ino: u64,
    len: u64,
    data: Mutex<PagedData, { rank::FILE_DATA }>,
}

impl SharedAnon {
    /// `len` bytes of zeroes; memory is taken as it is mapped.
    pub fn new(memory: &Arc<MemoryFile>, len: u64) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ino = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { ino, len, data: Mutex::new(PagedData::new(memory)) })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.len
    }
}

impl Mappable for SharedAnon {
    fn pieces(&self, offset: u64, len: u64, _write: bool) -> Result<Vec<MappedPiece>> {
        let mut data = self.data.lock();
        let pieces = data.pieces(offset, len, self.len)?;
        Ok(MappedPiece::of_data(data.memory_file(), &pieces))
    }

    fn identity(&self) -> (u64, u64) {
        // The kernel's internal tmpfs is the first device without a disk.
        (1, self.ino)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.data.lock().punch_hole(offset, len);
        Ok(())
    }
}

/// `/dev/zero` as something to map.
#[derive(Debug)]
pub struct ZeroPages;

impl Mappable for ZeroPages {
    fn pieces(&self, _offset: u64, _len: u64, _write: bool) -> Result<Vec<MappedPiece>> {
        // Never asked: the address space makes memory of its own.
        Err(Errno::ENODEV)
    }

    fn is_zero_device(&self) -> bool {
        true
    }

    fn identity(&self) -> (u64, u64) {
        (0, 0)
    }
}
