//! Program text in which system calls jump to the platform instead of trapping.
//!
//! The instructions before a `syscall`, as many as have five bytes, are replaced by a jump to a *detour*, which does what
//! they do, notes where to go on, and jumps to the platform's entry:
//!
//! ```text
//! before            after                     detour (32 bytes, just below the program)
//! mov  rsi, rcx     jmp detour                mov  rsi, rcx
//! mov  rdi, rbx                               mov  rdi, rbx
//! syscall           syscall                   lea  rcx, [after the syscall]
//! ...               ...                       jmp  [entry]
//! ```
//!
//! The `syscall` stays where it is: whoever comes to it by another way, a restarted call for one, makes the call as ever.
//! Nothing may lead to an instruction that was replaced but the first; [`sites`] says how that is known. Instructions are
//! found by decoding functions from their start ([`functions`]); code whose functions nobody names is left alone.
//!
//! The file is hostile. Whatever it makes of its own text is its own affair: an image is only ever mapped where the file
//! was, with no more rights.

mod elf;
mod functions;
mod sites;

use std::sync::Arc;

use platform::{Addr, AddrRange, PAGE_SIZE};
use sentry_base::lock::rank;
use sentry_base::{Mutex, Result};
use sentry_memory::{MemoryFile, PagedData};

use self::elf::{Elf, Reader, Window};
use self::sites::{Moved, Step};
use crate::{Mappable, MappedPiece};

/// Bytes of a detour, and of the pointer to the entry at the start of their area.
const SLOT: u64 = 32;
/// `jmp rel32`.
const JUMP: usize = 5;
/// The most that fits into a detour of what was replaced.
const MOVABLE: usize = 32 - TAIL;
/// `lea rcx, [rip + x]` and `jmp [rip + x]` behind what was replaced.
const TAIL: usize = 7 + 6;
/// Unchanged pages between two changed ones that are mapped with them, to spare a mapping.
const BRIDGED: u64 = 4;

/// Where a file keeps its image: one for each state of its contents.
#[derive(Debug, Default)]
pub struct TextSlot(Mutex<Option<(u64, Option<Arc<TextImage>>)>, { rank::LEAF }>);

impl TextSlot {
    /// The image for contents with this `stamp`, made if there is none yet.
    pub(crate) fn image(
        &self,
        file: &dyn Mappable,
        stamp: u64,
        entry: Addr,
        memory: &Arc<MemoryFile>,
    ) -> Option<Arc<TextImage>> {
        if let Some((known, image)) = &*self.0.lock()
            && *known == stamp
        {
            return image.clone();
        }
        let image = TextImage::of(file, entry, memory).map(Arc::new);
        *self.0.lock() = Some((stamp, image.clone()));
        image
    }
}
/// A changed place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    /// Byte of the file where the first replaced instruction starts.
    pub at: u64,
    /// What stood there.
    pub original: Vec<u8>,
    /// The same as instructions.
    steps: Vec<Step>,
}

impl Site {
    /// Byte of the file where the `syscall` stands.
    pub fn call(&self) -> u64 {
        self.at + self.original.len() as u64
    }

    /// Byte of the file where the instruction stands that byte `into` of the detour stands for.
    pub fn place(&self, into: u64) -> u64 {
        let (mut at, mut moved) = (self.at, 0);
        for step in &self.steps {
            if moved >= into {
                return at;
            }
            at += u64::from(step.len);
            moved += u64::from(step.moved_len());
        }
        self.call()
    }

    /// What a detour at address `at` does before it leaves for the entry.
    fn moved(&self, at: u64) -> Result<Vec<u8>> {
        let mut code = Vec::with_capacity(MOVABLE);
        let mut rest = self.original.as_slice();
        for step in &self.steps {
            let whole = rest.split_at_checked(usize::from(step.len)).ok_or(sentry_base::Errno::ENOEXEC)?;
            let start = code.len();
            let end = at + (start + usize::from(step.moved_len())) as u64;
            match step.moved {
                Moved::Same => code.extend(whole.0),
                Moved::Relative { field, target } => {
                    code.extend(whole.0);
                    put(&mut code, start + usize::from(field), &distance(end, target)?)?;
                }
                Moved::Branch { condition, target } => {
                    code.extend([0x0f, 0x80 | condition]);
                    code.extend(distance(end, target)?);
                }
            }
            rest = whole.1;
        }
        Ok(code)
    }
}

/// Pages of the file that differ, and where the memory file has them.
#[derive(Debug, Clone)]
struct Run {
    offset: u64,
    len: u64,
}

/// The changed text of one file.
pub struct TextImage {
    /// In the order of the file; detour number n + 1 belongs to site n.
    pub(crate) sites: Vec<Site>,
    /// Changed pages; `offset` is the file's.
    pub(crate) pages: Vec<MappedPiece>,
    /// The detours' pages; `offset` counts from the start of their area.
    pub(crate) detours: Vec<MappedPiece>,
    /// The executable segment: byte of the file and address at which it starts, in whole pages, and its pages' bytes.
    text: (u64, u64, u64),
    /// The lowest address of the program, in whole pages.
    lowest: u64,
    area_len: u64,
}

impl core::fmt::Debug for TextImage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "TextImage({} calls)", self.sites.len())
    }
}

impl TextImage {
    fn of(file: &dyn Mappable, entry: Addr, memory: &Arc<MemoryFile>) -> Option<Self> {
        let mut window = Window::new(file);
        let mut read = |offset: u64, len: u64| window.read(offset, len);
        let elf = Elf::parse(&mut read)?;
        let plan = Plan::of(&elf, &mut read)?;
        plan.image(&elf, entry, memory).ok()
    }

    /// Where the detours go when byte `offset` of the file is mapped at `start`.
    pub fn area(&self, start: Addr, offset: u64) -> Option<AddrRange> {
        let (text_offset, text_at, text_len) = self.text;
        let into = offset.checked_sub(text_offset).filter(|into| *into < text_len)?;
        let lowest = start.checked_sub((text_at - self.lowest).checked_add(into)?)?;
        Some(AddrRange { start: lowest.checked_sub(self.area_len)?, end: lowest })
    }

    /// Number `index` of the detours belongs to this site.
    pub(crate) fn site(&self, index: u64) -> Option<&Site> {
        self.sites.get(usize::try_from(index.checked_sub(1)?).ok()?)
    }

    /// Puts what the file has into `bytes`, which were read at byte `offset` of it.
    pub fn restore(&self, offset: u64, bytes: &mut [u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        let first = self.sites.partition_point(|site| site.call() <= offset);
        for site in self.sites.iter().skip(first).take_while(|site| site.at < end) {
            for (at, original) in (site.at..).zip(&site.original) {
                let place = at.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
                if let Some(byte) = place.and_then(|at| bytes.get_mut(at)) {
                    *byte = *original;
                }
            }
        }
    }
}

/// The detour that holds an address, and which byte of it that is.
pub(crate) fn detour_at(area: AddrRange, addr: Addr) -> Option<(u64, u64)> {
    let into = area.contains(addr).then(|| addr - area.start)?;
    Some((into / SLOT, into % SLOT))
}

/// What is to be changed.
struct Plan {
    /// The pages that hold text, whole.
    pages: Vec<u8>,
    sites: Vec<Site>,
}

impl Plan {
    fn of(elf: &Elf, read: &mut Reader<'_>) -> Option<Self> {
        let (first, _, len) = elf.text_pages();
        let pages = read(first, len)?;
        let head = usize::try_from(elf.text.offset - first).ok()?;
        let text = pages.get(head..head.checked_add(usize::try_from(elf.text.len).ok()?)?)?;
        let ranges = sites::find(elf, text, read);
        let into = |addr: u64| addr - elf.text.addr;
        let site = |range: sites::Range| {
            let bytes = usize::try_from(into(range.start)).ok()?..usize::try_from(into(range.call)).ok()?;
            let original = text.get(bytes)?.to_vec();
            Some(Site { at: elf.text.offset + into(range.start), original, steps: range.steps })
        };
        let sites: Vec<Site> = ranges.into_iter().filter_map(site).collect();
        (!sites.is_empty()).then_some(Self { pages, sites })
    }

    fn image(self, elf: &Elf, entry: Addr, memory: &Arc<MemoryFile>) -> Result<TextImage> {
        use sentry_base::Errno;
        let Self { pages: mut text, sites } = self;
        let (first, first_addr, text_len) = elf.text_pages();
        let addr_of = |offset: u64| elf.text.addr + (offset - elf.text.offset);
        let area_len = (SLOT * (sites.len() as u64 + 1)).next_multiple_of(PAGE_SIZE);
        // Below the program, perhaps below zero: only distances count.
        let area = elf.lowest.wrapping_sub(area_len);
        let mut detours = vec![0xcc; usize::try_from(area_len).map_err(|_| Errno::ENOEXEC)?];
        put(&mut detours, 0, &entry.to_le_bytes())?;
        for (index, site) in sites.iter().enumerate() {
            let slot = SLOT * (index as u64 + 1);
            let mut code = site.moved(area.wrapping_add(slot))?;
            let len = code.len();
            code.extend([0x48, 0x8d, 0x0d]);
            code.extend(distance(area.wrapping_add(slot + (len + 7) as u64), addr_of(site.call() + 2))?);
            code.extend([0xff, 0x25]);
            code.extend(distance(slot + (len + TAIL) as u64, 0)?);
            put(&mut detours, usize::try_from(slot).map_err(|_| Errno::ENOEXEC)?, &code)?;
            let mut jump = vec![0xe9];
            jump.extend(distance(addr_of(site.at) + JUMP as u64, area.wrapping_add(slot))?);
            jump.resize(site.original.len(), 0x90);
            put(&mut text, usize::try_from(site.at - first).map_err(|_| Errno::ENOEXEC)?, &jump)?;
        }
        let pages = runs(&sites);
        let mut data = PagedData::new(memory);
        let mut at = 0;
        let mut placed = Vec::new();
        for run in &pages {
            let from = usize::try_from(run.offset - first).map_err(|_| Errno::ENOEXEC)?;
            let to = from.saturating_add(usize::try_from(run.len).map_err(|_| Errno::ENOEXEC)?);
            let part = text.get(from..to).ok_or(Errno::ENOEXEC)?;
            data.write(at, part)?;
            placed.push((run.clone(), at));
            at += run.len;
        }
        data.write(at, &detours)?;
        let total = at + area_len;
        let pieces = MappedPiece::of_data(memory, &data.pieces(0, total, total)?);
        let cut = |from: u64, len: u64, offset: u64| pieces_in(&pieces, from, len, offset);
        Ok(TextImage {
            pages: placed.iter().flat_map(|(run, at)| cut(*at, run.len, run.offset)).collect(),
            detours: cut(at, area_len, 0),
            text: (first, first_addr, text_len),
            lowest: elf.lowest,
            sites,
            area_len,
        })
    }
}

/// The part `from..from + len` of `pieces`, as pieces of something in which it starts at `offset`.
fn pieces_in(pieces: &[MappedPiece], from: u64, len: u64, offset: u64) -> Vec<MappedPiece> {
    let mut out = Vec::new();
    for piece in pieces {
        let (start, end) = (piece.offset.max(from), (piece.offset + piece.len).min(from + len));
        if start < end {
            out.push(MappedPiece {
                offset: offset + (start - from),
                len: end - start,
                fd: Arc::clone(&piece.fd),
                fd_offset: piece.fd_offset + (start - piece.offset),
                pin: piece.pin.clone(),
            });
        }
    }
    out
}

/// Whole pages with changes, those close to each other as one.
fn runs(sites: &[Site]) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for site in sites {
        let start = site.at - site.at % PAGE_SIZE;
        let end = site.call().next_multiple_of(PAGE_SIZE);
        match out.last_mut() {
            Some(last) if start <= last.offset + last.len + BRIDGED * PAGE_SIZE => {
                last.len = last.len.max(end - last.offset);
            }
            _ => out.push(Run { offset: start, len: end - start }),
        }
    }
    out
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) -> Result<()> {
    let place = at.checked_add(what.len()).and_then(|end| bytes.get_mut(at..end));
    place.ok_or(sentry_base::Errno::ENOEXEC)?.copy_from_slice(what);
    Ok(())
}

/// A displacement of four bytes.
fn distance(from: u64, to: u64) -> Result<[u8; 4]> {
    let distance = to.wrapping_sub(from).cast_signed();
    i32::try_from(distance).map(i32::to_le_bytes).map_err(|_| sentry_base::Errno::ENOEXEC)
}

#[cfg(test)]
mod tests;
