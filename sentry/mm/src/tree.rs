//! The mappings of an address space in order, with totals and the search for free addresses.

use std::collections::BTreeMap;

use platform::{Addr, AddrRange};

use crate::{VmFlags, vma::Vma};

/// Bytes by what limits count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub all: u64,
    pub data: u64,
    pub exec: u64,
    pub stack: u64,
    pub locked: u64,
    pub shared: u64,
}

impl Totals {
    fn apply(&mut self, vma: &Vma, op: impl Fn(u64, u64) -> u64) {
        if vma.flags.contains(VmFlags::HIDDEN) {
            return;
        }
        let len = vma.len();
        let count = |yes: bool, total: &mut u64| {
            if yes {
                *total = op(*total, len);
            }
        };
        count(true, &mut self.all);
        count(vma.flags.is_data(), &mut self.data);
        count(vma.flags.contains(VmFlags::EXEC) && !vma.flags.contains(VmFlags::WRITE), &mut self.exec);
        count(vma.flags.contains(VmFlags::GROWSDOWN), &mut self.stack);
        count(vma.flags.contains(VmFlags::LOCKED), &mut self.locked);
        count(vma.flags.is_shared(), &mut self.shared);
    }
}

/// The mappings by start address. Neighbours that can be one are one, after [`VmaTree::insert`] and
/// [`VmaTree::update`].
#[derive(Debug, Clone, Default)]
pub(crate) struct VmaTree {
    map: BTreeMap<Addr, Vma>,
    totals: Totals,
}

impl VmaTree {
    pub fn count(&self) -> usize {
        self.map.len()
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> {
        self.map.values()
    }

    /// The mapping that holds `addr`.
    pub fn find(&self, addr: Addr) -> Option<&Vma> {
        self.map.range(..=addr).next_back().map(|(_, v)| v).filter(|v| addr < v.end)
    }

    /// The first mapping that starts at or after `addr`.
    pub fn next(&self, addr: Addr) -> Option<&Vma> {
        self.map.range(addr..).next().map(|(_, v)| v)
    }

    /// The last mapping that ends at or before `addr`, or holds it.
    pub fn previous(&self, addr: Addr) -> Option<&Vma> {
        self.map.range(..addr).next_back().map(|(_, v)| v)
    }

    pub fn overlapping(&self, range: AddrRange) -> impl Iterator<Item = &Vma> {
        let first = self.find(range.start).map_or(range.start, |v| v.start);
        self.map.range(first..range.end.max(first)).map(|(_, v)| v)
    }

    pub fn overlaps(&self, range: AddrRange) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// Whether mappings cover the range without a gap.
    pub fn covers(&self, range: AddrRange) -> bool {
        self.first_gap(range).is_none()
    }

    /// The first address of the range without a mapping.
    pub fn first_gap(&self, range: AddrRange) -> Option<Addr> {
        let mut at = range.start;
        for vma in self.overlapping(range) {
            if vma.start > at {
                return Some(at);
            }
            at = vma.end;
        }
        (at < range.end).then_some(at)
    }

    /// How many mappings there would be more if the range's ends were split off.
    pub fn splits(&self, range: AddrRange) -> usize {
        let inside = |at: Addr| self.find(at).is_some_and(|v| v.start < at);
        usize::from(inside(range.start)) + usize::from(inside(range.end))
    }

    fn add(&mut self, vma: Vma) {
        self.totals.apply(&vma, u64::saturating_add);
        self.map.insert(vma.start, vma);
    }

    fn take(&mut self, start: Addr) -> Option<Vma> {
        let vma = self.map.remove(&start)?;
        self.totals.apply(&vma, u64::saturating_sub);
        Some(vma)
    }

    fn split_at(&mut self, at: Addr) {
        let Some(start) = self.find(at).map(|v| v.start).filter(|s| *s < at) else { return };
        if let Some(mut lower) = self.take(start) {
            let upper = lower.split_off(at);
            self.add(lower);
            self.add(upper);
        }
    }

    /// Takes the range out and returns what was there.
    pub fn remove(&mut self, range: AddrRange) -> Vec<Vma> {
        self.split_at(range.start);
        self.split_at(range.end);
        let starts: Vec<_> = self.overlapping(range).map(|v| v.start).collect();
        starts.into_iter().filter_map(|s| self.take(s)).collect()
    }

    /// Puts a mapping into free space and joins it with its neighbours.
    pub fn insert(&mut self, vma: Vma) {
        let start = vma.start;
        self.add(vma);
        self.join_with_next(start);
        if let Some(before) = self.previous(start).map(|v| v.start) {
            self.join_with_next(before);
        }
    }

    fn join_with_next(&mut self, start: Addr) {
        let (Some(vma), Some(next)) = (self.map.get(&start), self.next(start + 1)) else { return };
        if !vma.can_merge(next) {
            return;
        }
        let next = next.start;
        if let (Some(mut vma), Some(next)) = (self.take(start), self.take(next)) {
            vma.merge(next);
            self.add(vma);
        }
    }

    /// Changes every mapping of the range, split at its ends, and joins what has become alike.
    pub fn update(&mut self, range: AddrRange, mut change: impl FnMut(&mut Vma)) {
        for mut vma in self.remove(range) {
            change(&mut vma);
            self.insert(vma);
        }
    }

    /// Changes the one mapping at `start` in place, where that changes neither its extent nor its flags.
    pub fn get_mut(&mut self, start: Addr) -> Option<&mut Vma> {
        self.map.get_mut(&start)
    }

    /// The highest free address for `len` bytes in `low..high` (`arch_get_unmapped_area_topdown`), the highest bytes
    /// first. Also returns the largest hole that was passed over.
    pub fn search_down(&self, len: u64, low: Addr, high: Addr) -> (Option<Addr>, u64) {
        let mut end = high;
        if let Some(above) = self.map.range(high.saturating_sub(1)..).next() {
            end = end.min(above.1.guarded_start());
        }
        let mut largest = 0;
        for vma in self.map.range(..high).rev().map(|(_, v)| v) {
            let start = vma.end.max(low);
            if start < end {
                let hole = end - start;
                if hole >= len {
                    return (Some(end - len), largest);
                }
                largest = largest.max(hole);
            }
            end = end.min(vma.guarded_start());
            if end <= low {
                return (None, largest);
            }
        }
        if end.checked_sub(low).is_some_and(|hole| hole >= len) {
            return (Some(end - len), largest);
        }
        (None, largest)
    }

    /// The lowest free address for `len` bytes in `low..high`.
    pub fn search_up(&self, len: u64, low: Addr, high: Addr) -> Option<Addr> {
        let mut start = self.find(low).map_or(low, |v| v.end);
        for vma in self.map.range(start..).map(|(_, v)| v) {
            let hole_end = vma.guarded_start().min(high);
            if hole_end.checked_sub(start).is_some_and(|hole| hole >= len) {
                return Some(start);
            }
            start = start.max(vma.end);
            if start >= high {
                return None;
            }
        }
        high.checked_sub(start).is_some_and(|hole| hole >= len).then_some(start)
    }
}
