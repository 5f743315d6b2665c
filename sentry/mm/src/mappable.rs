//! What a file gives to be mapped, and how it takes pages back.

use core::sync::atomic::{AtomicU64, Ordering};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result};
use sentry_memory::{Chunk, DataPiece, MemoryFile};

use crate::{Mm, TextSlot};

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

impl MappedPiece {
    /// Pieces of the memory file, with neighbours joined and every chunk pinned.
    pub fn of_data(file: &MemoryFile, data: &[DataPiece]) -> Vec<Self> {
        let mut out: Vec<(Self, Vec<Arc<Chunk>>)> = Vec::new();
        for piece in data {
            if let Some((last, pins)) = out.last_mut()
                && last.offset + last.len == piece.offset
                && last.fd_offset + last.len == piece.fd_offset
            {
                last.len += piece.len;
                pins.push(Arc::clone(&piece.chunk));
                continue;
            }
            let joined = Self {
                offset: piece.offset,
                len: piece.len,
                fd: Arc::clone(file.fd()),
                fd_offset: piece.fd_offset,
                pin: None,
            };
            out.push((joined, vec![Arc::clone(&piece.chunk)]));
        }
        let pin = |(piece, mut pins): (Self, Vec<Arc<Chunk>>)| {
            let pin: Option<Arc<dyn Any + Send + Sync>> = match pins.len() {
                1 => pins.pop().map(|p| p as Arc<dyn Any + Send + Sync>),
                _ => Some(Arc::new(pins)),
            };
            Self { pin, ..piece }
        };
        out.into_iter().map(pin).collect()
    }
}

/// A file that can be mapped. Called without any lock of the address space.
pub trait Mappable: Send + Sync {
    /// The pieces that back `offset..offset + len`, in order. Pages past the end of the file are left out: touching
    /// them is SIGBUS. Holes are filled for reading too, since a later write must show in the mapping. A file may leave
    /// out other pages when a large range is asked for: they are asked for again when they are touched, a small
    /// window at a time. `write` is true where the mapping is shared and may be written.
    fn pieces(&self, offset: u64, len: u64, write: bool) -> Result<Vec<MappedPiece>>;

    /// True where every page of the file, present and future, is at its own offset in one host descriptor, which
    /// raises SIGBUS past its end by itself: the whole range is then mapped at once.
    fn is_host_file(&self) -> bool {
        false
    }

    /// Where the file keeps its text for the platform, and a number that changes with its contents; `None` where nobody
    /// keeps count of that.
    fn text(&self) -> Option<(&TextSlot, u64)> {
        None
    }

    /// True for `/dev/zero`: a private mapping is anonymous memory, a shared one is new shared memory.
    fn is_zero_device(&self) -> bool {
        false
    }

    /// Device and inode number, for `/proc/PID/maps` and futex keys.
    fn identity(&self) -> (u64, u64);

    /// The mappings of this file, where its pages can go while it is mapped (a truncated tmpfs file).
    fn mappings(&self) -> Option<&FileMappings> {
        None
    }

    /// A shared mapping may have written to the file: its times change. Stores are not seen one by one, so this comes
    /// with `msync(2)`, as POSIX asks for.
    fn written(&self) {}

    /// Writes dirty pages of the range back (`msync(MS_SYNC)`).
    fn sync(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Punches a hole (`madvise(MADV_REMOVE)`).
    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(Errno::EOPNOTSUPP)
    }
}

impl core::fmt::Debug for dyn Mappable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Mappable")
    }
}

/// The open file behind a mapping: it stays open as long as the mapping exists, and names it in `/proc`.
pub trait MappedFile: Send + Sync {
    /// The file's path, as far as it is known without a viewer's root directory.
    fn path(&self) -> Option<Vec<u8>> {
        None
    }
    /// The file description of the VFS, which `/proc` asks for the path that its reader may see.
    fn as_any(&self) -> &dyn Any;
}

impl core::fmt::Debug for dyn MappedFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.path() {
            Some(path) => write!(f, "MappedFile({})", String::from_utf8_lossy(&path)),
            None => f.write_str("MappedFile"),
        }
    }
}

/// Which address spaces may map a file, so that truncation can take pages away from them (`i_mmap`).
///
/// ```text
/// mapping:     register ─ read generation ─ pieces() ─ lock Mm ─ generation unchanged? ─ map
/// truncation:  drop pages ─ generation += 1 ─ lock each registered Mm ─ unmap there
/// ```
/// Whichever is second sees the other.
#[derive(Default)]
pub struct FileMappings {
    spaces: Mutex<Vec<(u64, Weak<Mm>)>, { rank::FILE_RMAP }>,
    generation: AtomicU64,
}

impl core::fmt::Debug for FileMappings {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FileMappings")
    }
}

impl FileMappings {
    pub const fn new() -> Self {
        Self { spaces: Mutex::new(Vec::new()), generation: AtomicU64::new(0) }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(crate) fn register(&self, id: u64, mm: &Weak<Mm>) {
        let mut spaces = self.spaces.lock();
        if spaces.iter().all(|(known, _)| *known != id) {
            spaces.push((id, Weak::clone(mm)));
        }
    }

    /// Runs `seal` if no address space maps `file` for writing, and has mappings that are under way look again; false,
    /// and nothing is run, if one does. The file's own lock is held.
    pub fn seal_writes(&self, file: &dyn Mappable, seal: impl FnOnce()) -> bool {
        // First: a mapping that is made from now on on old pieces looks again, and finds the seal.
        self.generation.fetch_add(1, Ordering::SeqCst);
        let spaces = self.spaces.lock().clone();
        if spaces.iter().filter_map(|(_, mm)| mm.upgrade()).any(|mm| mm.maps_for_writing(file)) {
            return false;
        }
        seal();
        true
    }

    /// Takes the pages of `file` from byte `from` (rounded up to a page) on out of every address space. Call it after the pages have left the
    /// file. The file's own lock may be held.
    pub fn revoke(&self, file: &dyn Mappable, from: u64) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let spaces = {
            let mut spaces = self.spaces.lock();
            // A live space stays even if it no longer maps the file: it might be about to map it again.
            spaces.retain(|(_, mm)| mm.strong_count() > 0);
            spaces.clone()
        };
        for mm in spaces.iter().filter_map(|(_, mm)| mm.upgrade()) {
            mm.revoke(file, from);
        }
    }
}
