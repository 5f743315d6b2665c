//! What of an address space is in memory, by the host's account (`mincore(2)`).
//!
//! The host holds private memory and knows what of it was touched. It is asked when somebody wants to know, so that
//! nothing has to be counted on the way. Pages of a file count where they are in the host's page cache, which is a
//! little more than what Linux counts for a process.

use platform::{AddrRange, PAGE_SIZE};
use sentry_base::{Errno, Result};

use crate::VmFlags;
use crate::mm::{MapInfo, Mm};

/// Bytes of an address space that are in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    pub anon: u64,
    pub file: u64,
    /// Shared memory without a file.
    pub shmem: u64,
}

impl Resident {
    pub fn total(&self) -> u64 {
        self.anon.saturating_add(self.file).saturating_add(self.shmem)
    }
}

/// What is at a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagePresence {
    Absent,
    Anon,
    File,
}

/// Memory without access is not asked for beyond this: runtimes reserve large parts of the address space.
const RESERVED: u64 = 64 << 20;

impl Mm {
    /// Every mapping but the vDSO, with its resident bytes.
    pub fn resident_maps(&self) -> Vec<(MapInfo, u64)> {
        let state = self.lock();
        let mut maps = Vec::new();
        let mut ranges = Vec::new();
        let mut owners = Vec::new();
        for (index, vma) in state.tree.iter().enumerate() {
            maps.push((MapInfo::of(vma, &state.layout), 0_u64));
            if !vma.flags.intersects(VmFlags::ACCESS) && vma.len() > RESERVED {
                continue;
            }
            for part in vma.resident_ranges(vma.range()) {
                ranges.push(part);
                owners.push(index);
            }
        }
        // A host process that is gone has nothing in memory.
        let _ = self.space().resident(&ranges, &mut |range, pages| {
            let count = pages.iter().filter(|p| **p & 1 != 0).count() as u64;
            if let Some((_, bytes)) = owners.get(range).and_then(|owner| maps.get_mut(*owner)) {
                *bytes += count * PAGE_SIZE;
            }
        });
        drop(state);
        maps
    }

    /// What is in memory, by kind.
    pub fn resident(&self) -> Resident {
        let mut sum = Resident::default();
        for (map, bytes) in self.resident_maps() {
            if map.is_anon {
                sum.anon += bytes;
            } else if map.is_shared_memory() {
                sum.shmem += bytes;
            } else {
                sum.file += bytes;
            }
        }
        sum
    }

    /// What is at each page of a range that need not be mapped (`/proc/PID/pagemap`).
    pub fn presence(&self, range: AddrRange) -> Vec<PagePresence> {
        let pages = usize::try_from(range.len() / PAGE_SIZE).unwrap_or(0);
        let mut out = vec![PagePresence::Absent; pages];
        let state = self.lock();
        let mut ranges = Vec::new();
        let mut kinds = Vec::new();
        for vma in state.tree.overlapping(range) {
            for part in vma.resident_ranges(range) {
                ranges.push(part);
                kinds.push(if vma.is_anon() { PagePresence::Anon } else { PagePresence::File });
            }
        }
        let mut seen = vec![0_u64; ranges.len()];
        let _ = self.space().resident(&ranges, &mut |index, found| {
            let (Some(part), Some(seen), Some(kind)) =
                (ranges.get(index), seen.get_mut(index), kinds.get(index))
            else {
                return;
            };
            let start = (part.start - range.start) / PAGE_SIZE + *seen;
            *seen += found.len() as u64;
            let slots = usize::try_from(start).ok().and_then(|start| out.get_mut(start..));
            for (slot, page) in slots.unwrap_or_default().iter_mut().zip(found) {
                if *page & 1 != 0 {
                    *slot = *kind;
                }
            }
        });
        drop(state);
        out
    }

    /// The most bytes that were in memory at a time.
    pub fn peak_resident(&self) -> u64 {
        self.space().peak_resident_bytes()
    }

    /// Which pages of a range are in memory, one byte each (`mincore(2)`); `ENOMEM` for a gap. Pages of files that the
    /// host has not mapped yet count as there: their file is in memory, or is read at a touch.
    pub fn mincore(&self, range: AddrRange) -> Result<Vec<u8>> {
        let state = self.lock();
        if !state.tree.covers(range) {
            return Err(Errno::ENOMEM);
        }
        let pages = usize::try_from(range.len() / PAGE_SIZE).map_err(|_| Errno::ENOMEM)?;
        let mut out = vec![1; pages];
        let mut ranges = Vec::new();
        for vma in state.tree.overlapping(range).filter(|v| v.is_anon()) {
            let part = vma.range().intersect(&range);
            ranges.push(part);
            fill(&mut out, range, part, 0);
        }
        let mut seen = vec![0_u64; ranges.len()];
        let _ = self.space().resident(&ranges, &mut |index, found| {
            let (Some(part), Some(seen)) = (ranges.get(index), seen.get_mut(index)) else { return };
            let start = (part.start - range.start) / PAGE_SIZE + *seen;
            *seen += found.len() as u64;
            let slots = usize::try_from(start).ok().and_then(|start| out.get_mut(start..));
            for (slot, page) in slots.unwrap_or_default().iter_mut().zip(found) {
                *slot = *page & 1;
            }
        });
        drop(state);
        Ok(out)
    }
}

fn fill(out: &mut [u8], whole: AddrRange, part: AddrRange, value: u8) {
    let from = usize::try_from((part.start - whole.start) / PAGE_SIZE).unwrap_or(usize::MAX);
    let to = usize::try_from((part.end - whole.start) / PAGE_SIZE).unwrap_or(usize::MAX);
    if let Some(slots) = out.get_mut(from..to) {
        slots.fill(value);
    }
}
