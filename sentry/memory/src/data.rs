//! The bytes of one file of memory: a sparse map from file offsets to runs of the memory file.

use std::collections::BTreeMap;
use std::sync::Arc;

use platform::PAGE_SIZE;
use sentry_base::{Errno, Result};

use crate::file::{Chunk, MemoryFile};

/// A file that is appended to gets runs as long as the file already is, up to this size.
const GROW_MAX: u64 = 16 * 1024 * 1024;
/// A hole up to this size is filled when it is mapped; a larger one page window by page window, as it is touched.
const MAP_HOLE_MAX: u64 = 1 << 30;

/// Part of the file's bytes.
#[derive(Debug, Clone)]
struct Extent {
    len: u64,
    chunk: Arc<Chunk>,
    /// Where the extent starts in `chunk`.
    at: u64,
}

/// A piece of file data that is contiguous in the memory file, to be mapped.
#[derive(Debug, Clone)]
pub struct DataPiece {
    /// Byte of the file; page-aligned.
    pub offset: u64,
    /// Bytes; a multiple of the page size.
    pub len: u64,
    /// Byte of the memory file.
    pub fd_offset: u64,
    /// Keep it as long as the piece is mapped anywhere.
    pub chunk: Arc<Chunk>,
}

/// The contents of a file of memory. The owner keeps it under its own lock and knows the file's size: `PagedData`
/// knows of no end. Holes read as zeroes; whole pages past the size that have been reserved for growth are zero.
///
/// Copy from and to application memory only through a buffer: a user copy may fault, and the fault may ask this very
/// file for its pages. `UserWriter::fill(limit, |buf, at| { lock; data.read(pos + at, buf); Ok(n) })` is the shape.
#[derive(Debug)]
pub struct PagedData {
    file: Arc<MemoryFile>,
    /// By offset in the file; page-aligned, not overlapping.
    extents: BTreeMap<u64, Extent>,
    reserved: u64,
}

fn page_floor(at: u64) -> u64 {
    at - at % PAGE_SIZE
}

fn page_ceil(at: u64) -> u64 {
    at.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX - (PAGE_SIZE - 1))
}

impl PagedData {
    pub fn new(file: &Arc<MemoryFile>) -> Self {
        Self { file: Arc::clone(file), extents: BTreeMap::new(), reserved: 0 }
    }

    pub fn memory_file(&self) -> &Arc<MemoryFile> {
        &self.file
    }

    /// The extents that overlap `start..end`, as `(offset, extent)`.
    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &Extent)> {
        let first = self
            .extents
            .range(..=start)
            .next_back()
            .filter(|(at, e)| **at + e.len > start)
            .map_or(start, |(at, _)| *at);
        self.extents.range(first..end.max(first)).map(|(at, e)| (*at, e))
    }

    /// The holes in `start..end` (page-aligned).
    fn holes(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut at = start;
        for (offset, extent) in self.overlapping(start, end) {
            if offset > at {
                holes.push((at, offset));
            }
            at = offset + extent.len;
        }
        if at < end {
            holes.push((at, end));
        }
        holes
    }

    /// Bytes of pages that [`PagedData::write`] of this range would have to add to a file of `size` bytes, for quotas.
    pub fn new_bytes(&self, offset: u64, len: u64, size: u64) -> u64 {
        let (start, end) = (page_floor(offset), page_ceil(offset.saturating_add(len)));
        let holes: u64 = self.holes(start, end).iter().map(|(s, e)| e - s).sum();
        // Reserved pages past the old end have not been charged yet.
        let past = page_ceil(size).max(start);
        let reserved: u64 = self
            .overlapping(past, end)
            .map(|(at, e)| (at + e.len).min(end).saturating_sub(at.max(past)))
            .sum();
        holes + reserved
    }

    /// Bytes of pages below `size` (`st_blocks`, quotas).
    pub fn allocated(&self, size: u64) -> u64 {
        let end = page_ceil(size);
        self.overlapping(0, end).map(|(at, e)| (at + e.len).min(end) - at).sum()
    }

    /// Copies from `offset`; holes read as zeroes. The caller has cut `dst` at the file's end.
    pub fn read(&self, offset: u64, dst: &mut [u8]) {
        let end = offset.saturating_add(dst.len() as u64);
        let mut at = offset;
        for (start, extent) in self.overlapping(offset, end) {
            let from = start.max(offset);
            let to = (start + extent.len).min(end);
            fill_zero(dst, offset, at, from);
            if let Some(part) = slice_mut(dst, offset, from, to) {
                extent.chunk.read(extent.at + (from - start), part);
            }
            at = to;
        }
        fill_zero(dst, offset, at, end);
    }

    /// Copies to `offset` and returns the bytes written; fewer, or `ENOSPC`, when memory runs out.
    pub fn write(&mut self, offset: u64, src: &[u8]) -> Result<usize> {
        if src.is_empty() {
            return Ok(0);
        }
        let end = offset.saturating_add(src.len() as u64);
        let grown = self.fill_holes(page_floor(offset), page_ceil(end), true);
        let mut done = offset;
        for (start, extent) in self.overlapping(offset, end) {
            if start.max(offset) != done {
                break;
            }
            let to = (start + extent.len).min(end);
            let part = slice(src, offset, done, to).unwrap_or_default();
            extent.chunk.write(extent.at + (done - start), part);
            done = to;
        }
        match grown {
            Err(e) if done == offset => Err(e),
            _ => Ok(usize::try_from(done - offset).unwrap_or(0)),
        }
    }

    /// Backs every page of the range, as `fallocate(2)` does; `ENOSPC` when memory runs out.
    pub fn reserve(&mut self, offset: u64, len: u64) -> Result<()> {
        self.fill_holes(page_floor(offset), page_ceil(offset.saturating_add(len)), false)
    }

    fn fill_holes(&mut self, start: u64, end: u64, growing: bool) -> Result<()> {
        // The common case, a page that is there, without a list of holes.
        if let Some((at, extent)) = self.extents.range(..=start).next_back()
            && *at + extent.len >= end
        {
            return Ok(());
        }
        for (from, to) in self.holes(start, end) {
            self.add_extent(from, to, growing)?;
        }
        Ok(())
    }

    fn add_extent(&mut self, from: u64, to: u64, growing: bool) -> Result<()> {
        let need = to - from;
        let before = self.extents.range(..from).next_back().filter(|(at, e)| **at + e.len == from);
        let near = before.map(|(_, e)| e.chunk.start() + e.at + e.len);
        let mut want = need;
        if growing && near.is_some() {
            let room = self.extents.range(to..).next().map_or(u64::MAX, |(at, _)| *at) - from;
            want = need.max(self.reserved.min(GROW_MAX)).min(room);
        }
        let chunk = loop {
            match self.file.allocate(want, near) {
                Ok(chunk) => break chunk,
                Err(_) if want > need => want = need,
                // A write stores what still fits.
                Err(_) if growing && want > PAGE_SIZE => want = page_ceil(want / 2),
                Err(e) => return Err(e),
            }
        };
        let len = chunk.size();
        self.reserved += len;
        self.extents.insert(from, Extent { len, chunk, at: 0 });
        if len < need { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Forgets everything from `size` on. Mappings of the pages that go are the owner's to revoke.
    pub fn truncate(&mut self, size: u64) {
        let keep = page_ceil(size);
        for extent in self.extents.split_off(&keep).into_values() {
            self.reserved = self.reserved.saturating_sub(extent.len);
        }
        if let Some((at, extent)) = self.extents.range(..keep).next_back()
            && *at + extent.len > size
        {
            let cut = size.saturating_sub(*at);
            extent.chunk.zero(extent.at + cut, extent.len - cut);
        }
    }

    /// Makes the range read as zeroes and gives its whole pages back to the host. Mappings see the zeroes at once.
    pub fn punch_hole(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let mut holes = Vec::new();
        for (start, extent) in self.overlapping(offset, end) {
            let from = start.max(offset);
            let to = (start + extent.len).min(end);
            extent.chunk.zero(extent.at + (from - start), to - from);
            let (from, to) = (page_ceil(from), page_floor(to));
            // Nobody but this file holds the run, so no mapping can tell a hole from the zeroed pages.
            if from < to && self.is_sole_owner(start, extent) {
                holes.push((start, from, to));
            }
        }
        for (start, from, to) in holes {
            let Some(extent) = self.extents.remove(&start) else { continue };
            self.reserved = self.reserved.saturating_sub(to - from);
            let Extent { len, chunk, at } = extent;
            if start + len > to {
                let rest = Extent { len: start + len - to, chunk: Arc::clone(&chunk), at: at + (to - start) };
                self.extents.insert(to, rest);
            }
            if from > start {
                self.extents.insert(start, Extent { len: from - start, chunk, at });
            }
        }
    }

    /// Whether all that hold the run of the extent at `start` are extents of this file.
    fn is_sole_owner(&self, start: u64, extent: &Extent) -> bool {
        let base = start.saturating_sub(extent.at);
        let end = base.saturating_add(extent.chunk.size());
        let own = self.extents.range(base..end).filter(|(_, e)| Arc::ptr_eq(&e.chunk, &extent.chunk)).count();
        Arc::strong_count(&extent.chunk) == own
    }

    /// The first byte at or after `offset` that is not in a hole, below `size` (`SEEK_DATA`).
    pub fn next_data(&self, offset: u64, size: u64) -> Option<u64> {
        let (at, _) = self.overlapping(offset, size).next()?;
        Some(at.max(offset)).filter(|at| *at < size)
    }

    /// The first byte at or after `offset` that is in a hole; the end of the file counts as one (`SEEK_HOLE`).
    pub fn next_hole(&self, offset: u64, size: u64) -> u64 {
        let mut at = offset;
        for (start, extent) in self.overlapping(offset, size) {
            if start > at {
                break;
            }
            at = start + extent.len;
        }
        at.min(size)
    }

    /// The pieces that back `offset..offset + len` (page-aligned) of a file of `size` bytes, in order, neighbours
    /// joined by the caller. Holes are filled first, except very large ones when more than a window is asked for;
    /// pages past the end are left out. `ENOSPC` when memory runs out.
    pub fn pieces(&mut self, offset: u64, len: u64, size: u64) -> Result<Vec<DataPiece>> {
        let end = offset.saturating_add(len).min(page_ceil(size));
        if offset >= end {
            return Ok(Vec::new());
        }
        for (from, to) in self.holes(offset, end) {
            if to - from <= MAP_HOLE_MAX {
                self.add_extent(from, to, false)?;
            }
        }
        let piece = |(start, extent): (u64, &Extent)| {
            let from = start.max(offset);
            DataPiece {
                offset: from,
                len: (start + extent.len).min(end) - from,
                fd_offset: extent.chunk.start() + extent.at + (from - start),
                chunk: Arc::clone(&extent.chunk),
            }
        };
        Ok(self.overlapping(offset, end).map(piece).collect())
    }
}

fn index(offset: u64, at: u64) -> usize {
    usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX)
}

fn slice_mut(dst: &mut [u8], offset: u64, from: u64, to: u64) -> Option<&mut [u8]> {
    dst.get_mut(index(offset, from)..index(offset, to))
}

fn slice(src: &[u8], offset: u64, from: u64, to: u64) -> Option<&[u8]> {
    src.get(index(offset, from)..index(offset, to))
}

fn fill_zero(dst: &mut [u8], offset: u64, from: u64, to: u64) {
    if let Some(part) = slice_mut(dst, offset, from, to) {
        part.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 64 * 1024;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Punch(u64, u64),
        Reserve(u64, u64),
        Map(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let at = 0_u64..MAX as u64;
        let len = 0_u64..20_000;
        prop_oneof![
            (at.clone(), proptest::collection::vec(any::<u8>(), 0..9000)).prop_map(|(a, v)| Op::Write(a, v)),
            at.clone().prop_map(Op::Truncate),
            (at.clone(), len.clone()).prop_map(|(a, l)| Op::Punch(a, l)),
            (at.clone(), len.clone()).prop_map(|(a, l)| Op::Reserve(a, l)),
            (0_u64..16, 1_u64..8).prop_map(|(a, l)| Op::Map(a * PAGE_SIZE, l * PAGE_SIZE)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_flat_array(ops in proptest::collection::vec(op(), 1..40)) {
            let file = MemoryFile::create(1 << 30).unwrap();
            let mut data = PagedData::new(&file);
            let mut model = vec![0_u8; 2 * MAX];
            let mut size = 0;
            for op in ops {
                match op {
                    Op::Write(at, bytes) => {
                        prop_assert_eq!(data.write(at, &bytes).unwrap(), bytes.len());
                        let at = usize::try_from(at).unwrap();
                        model[at..at + bytes.len()].copy_from_slice(&bytes);
                        size = size.max(at + bytes.len());
                    }
                    Op::Truncate(to) => {
                        data.truncate(to);
                        size = usize::try_from(to).unwrap();
                        model[size..].fill(0);
                    }
                    Op::Punch(at, len) => {
                        data.punch_hole(at, len);
                        let at = usize::try_from(at).unwrap();
                        model[at..at + usize::try_from(len).unwrap()].fill(0);
                    }
                    Op::Reserve(at, len) => data.reserve(at, len).unwrap(),
                    Op::Map(at, len) => {
                        let pieces = data.pieces(at, len, size as u64).unwrap();
                        let end = (at + len).min(page_ceil(size as u64));
                        let mut next = at;
                        for piece in &pieces {
                            prop_assert_eq!(piece.offset, next);
                            next += piece.len;
                        }
                        prop_assert!(pieces.is_empty() && end <= at || next == end);
                    }
                }
                let mut out = vec![1; 2 * MAX];
                data.read(0, &mut out);
                prop_assert!(out == model);
                prop_assert_eq!(data.reserved, data.extents.values().map(|e| e.len).sum::<u64>());
            }
            drop(data);
            prop_assert_eq!(file.allocated(), 0);
        }
    }

    #[test]
    fn appends_need_few_runs() {
        let file = MemoryFile::create(1 << 30).unwrap();
        let mut data = PagedData::new(&file);
        for i in 0..4096_u64 {
            assert_eq!(data.write(i * 4096, &[1; 4096]).unwrap(), 4096);
        }
        assert!(data.extents.len() <= 14, "{}", data.extents.len());
        assert_eq!(data.allocated(4096 * 4096), 4096 * 4096);
        assert_eq!(data.new_bytes(4096 * 4096, 1, 4096 * 4096), 4096);
        // The runs follow one another, so the whole file is one host mapping.
        let pieces = data.pieces(0, 1 << 24, 1 << 24).unwrap();
        assert!(pieces.windows(2).all(|w| w[0].fd_offset + w[0].len == w[1].fd_offset));
    }

    #[test]
    fn holes_are_found_and_full_memory_gives_a_short_write() {
        let file = MemoryFile::create(1 << 30).unwrap();
        let mut data = PagedData::new(&file);
        data.write(0, b"x").unwrap();
        data.write(3 * PAGE_SIZE, b"y").unwrap();
        let size = 3 * PAGE_SIZE + 1;
        assert_eq!(data.next_hole(0, size), PAGE_SIZE);
        assert_eq!(data.next_data(1, size), Some(1));
        assert_eq!(data.next_data(PAGE_SIZE, size), Some(3 * PAGE_SIZE));
        assert_eq!(data.next_hole(3 * PAGE_SIZE, size), size);
        assert_eq!(data.next_data(size, size), None);
        assert_eq!(data.allocated(size), 2 * PAGE_SIZE);
        file.set_limit(3 * PAGE_SIZE);
        assert_eq!(data.write(2 * PAGE_SIZE - 1, &[1; 2]).unwrap(), 1);
        file.set_limit(4 * PAGE_SIZE);
        assert_eq!(data.write(3 * PAGE_SIZE, &[1; 8193]).unwrap(), 8192);
        assert_eq!(data.write(5 * PAGE_SIZE, &[1; 1]), Err(Errno::ENOSPC));
    }
}
