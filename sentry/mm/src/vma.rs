//! One mapping: where it is, what it may do, what it shows, and which of its pages the host has.

use std::any::Any;
use std::sync::Arc;

use platform::{Addr, AddrRange};

use crate::{Mappable, MappedFile, MappedPiece, VmFlags};

/// Part of a file that is mapped on the host.
#[derive(Clone)]
pub(crate) struct Resident {
    /// Byte of the file.
    pub offset: u64,
    pub len: u64,
    pub pin: Option<Arc<dyn Any + Send + Sync>>,
}

impl Resident {
    fn end(&self) -> u64 {
        self.offset + self.len
    }

    fn same_pin(&self, other: &Self) -> bool {
        match (&self.pin, &other.pin) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A mapping of a file.
#[derive(Clone)]
pub(crate) struct FileBacking {
    pub file: Arc<dyn Mappable>,
    pub name: Option<Arc<dyn MappedFile>>,
    /// Byte of the file at the start of the mapping.
    pub offset: u64,
    /// What the host has, by offset; the rest is resolved when it is touched.
    pub resident: Vec<Resident>,
}

impl FileBacking {
    pub fn is_file(&self, file: &dyn Mappable) -> bool {
        core::ptr::addr_eq(Arc::as_ptr(&self.file), core::ptr::from_ref(file))
    }
}

#[derive(Clone)]
pub(crate) enum Backing {
    /// Private zeroes: the host holds all of it.
    Anon,
    File(FileBacking),
}

/// A virtual memory area (`struct vm_area_struct`).
#[derive(Clone)]
pub(crate) struct Vma {
    pub start: Addr,
    pub end: Addr,
    pub flags: VmFlags,
    pub backing: Backing,
    /// `prctl(PR_SET_VMA_ANON_NAME)`.
    pub anon_name: Option<Arc<[u8]>>,
}

impl core::fmt::Debug for Vma {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Vma({:#x}..{:#x} {:?}", self.start, self.end, self.flags)?;
        match &self.backing {
            Backing::Anon => f.write_str(")"),
            Backing::File(file) => write!(f, " file at {:#x})", file.offset),
        }
    }
}

impl Vma {
    pub fn range(&self) -> AddrRange {
        AddrRange { start: self.start, end: self.end }
    }

    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn file(&self) -> Option<&FileBacking> {
        match &self.backing {
            Backing::Anon => None,
            Backing::File(file) => Some(file),
        }
    }

    pub fn file_mut(&mut self) -> Option<&mut FileBacking> {
        match &mut self.backing {
            Backing::Anon => None,
            Backing::File(file) => Some(file),
        }
    }

    pub fn is_anon(&self) -> bool {
        matches!(self.backing, Backing::Anon)
    }

    /// Where the mapping really starts for a neighbour: a stack keeps its guard gap free.
    pub fn guarded_start(&self) -> Addr {
        if self.flags.contains(VmFlags::GROWSDOWN) {
            self.start.saturating_sub(crate::flags::STACK_GUARD_GAP)
        } else {
            self.start
        }
    }

    /// Ranges of `within` that the host has mapped for this mapping, neighbours joined.
    pub fn resident_ranges(&self, within: AddrRange) -> Vec<AddrRange> {
        let within = self.range().intersect(&within);
        let Backing::File(file) = &self.backing else { return vec![within] };
        let mut out: Vec<AddrRange> = Vec::new();
        for piece in &file.resident {
            let start = self.start + (piece.offset - file.offset);
            let range = AddrRange { start, end: start + piece.len }.intersect(&within);
            if range.is_empty() {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => out.push(range),
            }
        }
        out
    }

    /// The largest range around `addr` that the host has not mapped for this mapping; `None` if it has the page.
    pub fn missing_around(&self, addr: Addr) -> Option<AddrRange> {
        let file = self.file()?;
        let at = file.offset + (addr - self.start);
        let mut gap = self.range();
        for piece in &file.resident {
            if piece.offset <= at && at < piece.end() {
                return None;
            }
            if piece.end() <= at {
                gap.start = self.start + (piece.end() - file.offset);
            } else {
                gap.end = self.start + (piece.offset - file.offset);
                break;
            }
        }
        Some(gap)
    }

    /// Notes that the host maps `piece` (which lies inside the mapping, where nothing was resident).
    pub fn add_resident(&mut self, piece: &MappedPiece) {
        if let Some(file) = self.file_mut() {
            let at = file.resident.partition_point(|p| p.offset < piece.offset);
            let new = Resident { offset: piece.offset, len: piece.len, pin: piece.pin.clone() };
            file.resident.insert(at, new);
        }
    }

    /// Notes that the host no longer maps `from..to` (bytes of the file).
    pub fn drop_resident(&mut self, from: u64, to: u64) {
        if let Some(file) = self.file_mut() {
            let old = core::mem::take(&mut file.resident);
            file.resident = cut(old.iter(), 0, from).chain(cut(old.iter(), to, u64::MAX)).collect();
        }
    }

    /// Splits at `at`, strictly inside; `self` keeps the lower part.
    pub fn split_off(&mut self, at: Addr) -> Self {
        let mut upper = self.clone();
        upper.start = at;
        let delta = at - self.start;
        self.end = at;
        if let (Some(low), Some(high)) = (self.file_mut(), upper.file_mut()) {
            high.offset = low.offset + delta;
            let all = core::mem::take(&mut low.resident);
            low.resident = cut(all.iter(), 0, high.offset).collect();
            high.resident = cut(all.iter(), high.offset, u64::MAX).collect();
        }
        upper
    }

    /// Whether `next`, which starts where this ends, can be one mapping with it (`vma_merge`).
    pub fn can_merge(&self, next: &Self) -> bool {
        if self.end != next.start || self.flags != next.flags || self.anon_name != next.anon_name {
            return false;
        }
        match (&self.backing, &next.backing) {
            (Backing::Anon, Backing::Anon) => true,
            (Backing::File(a), Backing::File(b)) => {
                let same_name = match (&a.name, &b.name) {
                    (None, None) => true,
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    _ => false,
                };
                same_name && a.is_file(b.file.as_ref()) && a.offset + self.len() == b.offset
            }
            _ => false,
        }
    }

    /// Appends `next`, for which [`Vma::can_merge`] holds.
    pub fn merge(&mut self, next: Self) {
        self.end = next.end;
        if let (Some(file), Backing::File(mut more)) = (self.file_mut(), next.backing) {
            if let (Some(last), Some(first)) = (file.resident.last_mut(), more.resident.first())
                && last.end() == first.offset
                && last.same_pin(first)
            {
                last.len += first.len;
                more.resident.remove(0);
            }
            file.resident.append(&mut more.resident);
        }
    }
}

/// The parts of `pieces` inside `from..to`.
fn cut<'a>(pieces: impl Iterator<Item = &'a Resident>, from: u64, to: u64) -> impl Iterator<Item = Resident> {
    pieces.filter_map(move |piece| {
        let (offset, end) = (piece.offset.max(from), piece.end().min(to));
        (offset < end).then(|| Resident { offset, len: end - offset, pin: piece.pin.clone() })
    })
}
