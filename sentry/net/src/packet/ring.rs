//! `PACKET_RX_RING`: memory that the socket's owner maps, in which frames are put down without a call
//! (`Documentation/networking/packet_mmap.rst`, `TPACKET_V2`).
//!
//! The owner writes to it as well and is not believed: what is read from it is one word, whether a slot is free.

use std::sync::Arc;

use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_memory::{MemoryFile, PagedData};
use sentry_mm::{Mappable, MappedPiece};

use super::Held;
use crate::socket::next_ino;

/// Bytes of `struct tpacket2_hdr` and of an address behind it (`TPACKET2_HDRLEN`); what a header of the link is given.
const ADDRESS_AT: u64 = 32;
const HEADERS: u64 = ADDRESS_AT + 20;
const LINK_ROOM: u64 = 16;
/// Bytes of `struct tpacket_hdr` and `struct tpacket2_hdr`.
pub(super) const HEADER_V1: i32 = 32;
pub(super) const HEADER_V2: i32 = 32;
pub(super) const MAX_RESERVE: i32 = 1 << 16;
/// Bytes of the largest ring. Linux takes what memory there is.
const MAX_RING: u64 = 64 << 20;
const PAGE: u64 = 4096;

const STATUS_USER: u32 = 1;
const STATUS_LOSING: u32 = 4;
const STATUS_UNSUMMED: u32 = 8;

/// `struct tpacket_req`, and the room that is left before each frame; sizes in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) block_size: u64,
    pub(super) blocks: u64,
    pub(super) frame_size: u64,
    pub(super) frames: u64,
    pub(super) reserve: u64,
}

impl Shape {
    fn check(&self) -> Result<u64> {
        let fits = self.block_size > 0
            && self.block_size.is_multiple_of(PAGE)
            && self.frame_size >= HEADERS + self.reserve
            && self.frame_size.is_multiple_of(16)
            && self.block_size >= self.frame_size;
        let per_block = self.block_size.checked_div(self.frame_size).unwrap_or(0);
        if !fits || per_block.checked_mul(self.blocks) != Some(self.frames) {
            return Err(Errno::EINVAL);
        }
        let size = self.block_size.checked_mul(self.blocks).filter(|size| *size <= MAX_RING);
        size.ok_or(Errno::ENOMEM)
    }
}

#[derive(Debug)]
struct Memory {
    ino: u64,
    size: u64,
    data: Mutex<PagedData, { rank::FILE_DATA }>,
}

impl Mappable for Memory {
    fn pieces(&self, offset: u64, len: u64, _write: bool) -> Result<Vec<MappedPiece>> {
        let mut data = self.data.lock();
        let pieces = data.pieces(offset, len, self.size)?;
        Ok(MappedPiece::of_data(data.memory_file(), &pieces))
    }

    fn identity(&self) -> (u64, u64) {
        // The device of sockets.
        (8, self.ino)
    }
}

#[derive(Debug)]
pub(super) struct Ring {
    memory: Arc<Memory>,
    shape: Shape,
    /// Bytes of the link's header that a frame begins with.
    link: u64,
    /// The slot that is filled next.
    next: u64,
}

impl Ring {
    pub(super) fn new(memory: &Arc<MemoryFile>, shape: Shape, cooked: bool) -> Result<Self> {
        let size = shape.check()?;
        let mut data = PagedData::new(memory);
        data.reserve(0, size).map_err(|_| Errno::ENOMEM)?;
        let memory = Arc::new(Memory { ino: next_ino(), size, data: Mutex::new(data) });
        Ok(Self { memory, shape, link: if cooked { 0 } else { 14 }, next: 0 })
    }

    pub(super) fn mappable(&self) -> Arc<dyn Mappable> {
        Arc::clone(&self.memory) as Arc<dyn Mappable>
    }

    /// Where a slot is, in bytes.
    fn offset(&self, slot: u64) -> u64 {
        let per_block = (self.shape.block_size / self.shape.frame_size.max(1)).max(1);
        slot / per_block * self.shape.block_size + slot % per_block * self.shape.frame_size
    }

    fn is_free(data: &PagedData, at: u64) -> bool {
        let mut word = [0; 4];
        data.read(at, &mut word);
        u32::from_ne_bytes(word) == 0
    }

    /// Whether the frame that was put down last has not been taken yet.
    pub(super) fn has_some(&self) -> bool {
        let last = self.next.checked_sub(1).unwrap_or(self.shape.frames.saturating_sub(1));
        !Self::is_free(&self.memory.data.lock(), self.offset(last))
    }

    /// Puts a frame down; false where its slot is not free.
    pub(super) fn put(&mut self, held: &Held, losing: bool) -> bool {
        let at = self.offset(self.next);
        let mut data = self.memory.data.lock();
        if !Self::is_free(&data, at) {
            return false;
        }
        let room = self.link.max(LINK_ROOM);
        let (network, first) = if self.link == 0 {
            let start = HEADERS.next_multiple_of(16) + LINK_ROOM + self.shape.reserve;
            (start, start)
        } else {
            let network = (HEADERS + room).next_multiple_of(16) + self.shape.reserve;
            (network, network - self.link)
        };
        let fits = usize::try_from(self.shape.frame_size.saturating_sub(first)).unwrap_or(0);
        let bytes = held.data.get(..held.data.len().min(fits)).unwrap_or_default();
        let word = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_ne_bytes();
        let half = |n: u64| u16::try_from(n).unwrap_or(u16::MAX).to_ne_bytes();
        let mut status = STATUS_USER;
        if losing {
            status |= STATUS_LOSING;
        }
        if held.unsummed {
            status |= STATUS_UNSUMMED;
        }
        let mut head = Vec::with_capacity(64);
        head.extend_from_slice(&word(held.len as u64));
        head.extend_from_slice(&word(bytes.len() as u64));
        head.extend_from_slice(&half(first));
        head.extend_from_slice(&half(network));
        head.extend_from_slice(&word(held.stamp / 1_000_000_000));
        head.extend_from_slice(&word(held.stamp % 1_000_000_000));
        // No tag of a virtual network.
        head.extend_from_slice(&[0; 8]);
        head.extend_from_slice(&held.from);
        // The word that gives the slot away comes last.
        let written = data.write(at + first, bytes).is_ok()
            && data.write(at + 4, &head).is_ok()
            && data.write(at, &status.to_ne_bytes()).is_ok();
        if written {
            self.next = (self.next + 1) % self.shape.frames.max(1);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_filled_and_given_back() {
        let memory = MemoryFile::create(1 << 20).unwrap();
        let shape = Shape { block_size: 4096, blocks: 1, frame_size: 2048, frames: 2, reserve: 0 };
        let mut ring = Ring::new(&memory, shape, false).unwrap();
        let held = Held {
            data: (0..200).collect(),
            from: vec![7; 20],
            len: 200,
            network: 14,
            unsummed: false,
            stamp: 5_000_000_007,
        };
        assert!(!ring.has_some());
        assert!(ring.put(&held, false) && ring.put(&held, false) && !ring.put(&held, true));
        assert!(ring.has_some());
        let mut head = [0; 52];
        ring.memory.data.lock().read(2048, &mut head);
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8), word(16), word(20)), (1, 200, 200, 5, 7));
        assert_eq!((head[12], head[14], head[32]), (66, 80, 7));
        let mut byte = [0; 3];
        ring.memory.data.lock().read(66 + 10, &mut byte);
        assert_eq!(byte, [10, 11, 12]);
        ring.memory.data.lock().write(0, &[0; 4]).unwrap();
        assert!(ring.put(&held, false));
    }

    #[test]
    fn rings_of_no_shape_are_refused() {
        let memory = MemoryFile::create(1 << 20).unwrap();
        let good = Shape { block_size: 4096, blocks: 2, frame_size: 2048, frames: 4, reserve: 0 };
        let refused = |shape| Ring::new(&memory, shape, false).err();
        assert_eq!(refused(good), None);
        for bad in [
            Shape { block_size: 4095, ..good },
            Shape { block_size: 0, ..good },
            Shape { frames: 3, ..good },
            Shape { frame_size: 48, ..good },
            Shape { frame_size: 2040, ..good },
            Shape { frame_size: 8192, ..good },
            Shape { blocks: u64::MAX, ..good },
        ] {
            assert_eq!(refused(bad), Some(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(refused(Shape { blocks: 1 << 20, frames: 1 << 21, ..good }), Some(Errno::ENOMEM));
    }
}
