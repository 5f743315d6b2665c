//! Application addresses and ranges of them.

/// The page size of x86-64.
pub const PAGE_SIZE: u64 = 4096;

/// An address in an application's address space.
pub type Addr = u64;

/// The half-open range `start..end`; never wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddrRange {
    pub start: Addr,
    pub end: Addr,
}

impl AddrRange {
    /// `start..start + len`, or `None` where that wraps.
    pub fn new(start: Addr, len: u64) -> Option<Self> {
        Some(Self { start, end: start.checked_add(len)? })
    }

    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    pub fn contains(&self, addr: Addr) -> bool {
        self.start <= addr && addr < self.end
    }

    pub fn contains_range(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    pub fn intersect(&self, other: &Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    pub fn is_page_aligned(&self) -> bool {
        self.start.is_multiple_of(PAGE_SIZE) && self.end.is_multiple_of(PAGE_SIZE)
    }
}
