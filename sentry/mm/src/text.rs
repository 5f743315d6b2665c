//! Program text in which system calls jump to the platform instead of trapping.
//!
//! Of a `syscall` instruction that follows an instruction of five bytes or more, that one is replaced by a jump to a
//! *detour*, which does the replaced instruction, notes where to go on, and jumps to the platform's entry:
//!
//! ```text
//! before            after                     detour (32 bytes, just below the program)
//! mov  eax, 257     jmp detour                mov  eax, 257
//! syscall           syscall                   lea  rcx, [after the syscall]
//! ...               ...                       jmp  [entry]
//! ```
//!
//! The `syscall` stays where it is: whoever comes to it by another way, a restarted call for one, makes the call as ever.
//! One instruction is replaced and no more, so that no jump can lead into the middle of what was replaced. Instructions
//! are found by decoding functions from their start, as `.eh_frame_hdr` names them; a file without one is left alone.
//!
//! The file is hostile. Whatever it makes of its own text is its own affair: an image is only ever mapped where the file
//! was, with no more rights.

use std::sync::Arc;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};
use platform::{Addr, AddrRange, PAGE_SIZE};
use sentry_base::lock::rank;
use sentry_base::{Mutex, Result};
use sentry_memory::{MemoryFile, PagedData};

use crate::{Mappable, MappedPiece};

/// Bytes of a detour, and of the pointer to the entry at the start of their area.
const SLOT: u64 = 32;
/// `jmp rel32`.
const JUMP: usize = 5;
/// The longest instruction that fits into a detour.
const MOVABLE: usize = 32 - TAIL;
/// `lea rcx, [rip + x]` and `jmp [rip + x]` behind the replaced instruction.
const TAIL: usize = 7 + 6;
/// Larger text is left alone.
const TEXT_MAX: u64 = 8 << 20;
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
    /// Byte of the file where the replaced instruction starts.
    pub at: u64,
    /// What stood there.
    pub original: Vec<u8>,
}

impl Site {
    /// Byte of the file where the `syscall` stands.
    pub fn call(&self) -> u64 {
        self.at + self.original.len() as u64
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
        let mut window = Window { file, piece: None, start: 0, bytes: Vec::new() };
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

/// Reads a file, small pieces out of a larger one that is kept.
struct Window<'a> {
    file: &'a dyn Mappable,
    piece: Option<MappedPiece>,
    /// Byte of the file at the start of `bytes`.
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// What is read at once, in bytes.
    const SIZE: u64 = 16 << 10;

    fn read(&mut self, offset: u64, len: u64) -> Option<Vec<u8>> {
        if len > Self::SIZE {
            return self.fetch(offset, len).filter(|bytes| bytes.len() as u64 == len);
        }
        let end = offset.checked_add(len)?;
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            self.start = offset;
            self.bytes = self.fetch(offset, Self::SIZE)?;
        }
        let from = usize::try_from(offset - self.start).ok()?;
        self.bytes.get(from..from.checked_add(usize::try_from(len).ok()?)?).map(<[u8]>::to_vec)
    }

    /// Up to `len` bytes, fewer at the end of the file.
    fn fetch(&mut self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let piece = self.piece(offset, len)?;
        let at = piece.fd_offset + (offset - piece.offset);
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&*piece.fd, rest, at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        bytes.truncate(done);
        Some(bytes)
    }

    /// The piece of a host descriptor that holds byte `offset`, and `len` bytes from there as far as the file goes.
    fn piece(&mut self, offset: u64, len: u64) -> Option<MappedPiece> {
        let holds = |piece: &MappedPiece| offset >= piece.offset && offset - piece.offset < piece.len;
        if let Some(known) = self.piece.as_ref().filter(|known| holds(known)) {
            return Some(known.clone());
        }
        let start = offset - offset % PAGE_SIZE;
        let end = offset.checked_add(len)?.checked_next_multiple_of(PAGE_SIZE)?;
        let found = self.file.pieces(start, end - start, false).ok()?.into_iter().next().filter(holds)?;
        self.piece = Some(found.clone());
        Some(found)
    }
}

/// The detour that holds an address, and whether it is still at its start.
pub(crate) fn detour_at(area: AddrRange, addr: Addr) -> Option<(u64, bool)> {
    let into = area.contains(addr).then(|| addr - area.start)?;
    Some((into / SLOT, into % SLOT == 0))
}

/// A segment of the program's header.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    addr: u64,
    len: u64,
    is_text: bool,
}

/// What is needed of an ELF file.
struct Elf {
    text: Segment,
    frames: Segment,
    loads: Vec<Segment>,
    lowest: u64,
}

type Reader<'a> = dyn FnMut(u64, u64) -> Option<Vec<u8>> + 'a;

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    word(bytes, at).map(u32::from_le_bytes)
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    word(bytes, at).map(u64::from_le_bytes)
}

impl Elf {
    fn parse(read: &mut Reader<'_>) -> Option<Self> {
        const PT_LOAD: u32 = 1;
        const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
        let head = read(0, 64)?;
        let machine = word(&head, 18).map(u16::from_le_bytes)?;
        if head.get(..6)? != b"\x7fELF\x02\x01" || machine != 62 {
            return None;
        }
        let (size, count) =
            (word(&head, 54).map(u16::from_le_bytes)?, word(&head, 56).map(u16::from_le_bytes)?);
        if size != 56 || count == 0 || count > 64 {
            return None;
        }
        let table = read(word64(&head, 32)?, u64::from(count) * 56)?;
        let (mut loads, mut frames) = (Vec::new(), None);
        for entry in table.chunks_exact(56) {
            let segment = Segment {
                offset: word64(entry, 8)?,
                addr: word64(entry, 16)?,
                len: word64(entry, 32)?,
                is_text: word32(entry, 4)? & 1 != 0,
            };
            segment.addr.checked_add(segment.len)?;
            segment.offset.checked_add(segment.len)?;
            match word32(entry, 0)? {
                PT_LOAD => loads.push(segment),
                PT_GNU_EH_FRAME => frames = Some(segment),
                _ => {}
            }
        }
        let mut texts = loads.iter().filter(|segment| segment.is_text);
        let (text, None) = (*texts.next()?, texts.next()) else { return None };
        let lowest = loads.iter().map(|segment| segment.addr - segment.addr % PAGE_SIZE).min()?;
        let fits = text.len <= TEXT_MAX && text.addr % PAGE_SIZE == text.offset % PAGE_SIZE;
        fits.then_some(Self { text, frames: frames?, loads, lowest })
    }

    /// The byte of the file that is loaded at `addr`.
    fn offset_of(&self, addr: u64) -> Option<u64> {
        let holds = |segment: &&Segment| addr >= segment.addr && addr - segment.addr < segment.len;
        self.loads.iter().find(holds).map(|segment| segment.offset + (addr - segment.addr))
    }
}

/// What is to be changed.
struct Plan {
    text: Vec<u8>,
    sites: Vec<Site>,
}

/// The functions that `.eh_frame_hdr` names: where each starts and where its frame description stands, in the order of
/// their addresses as far as the file is honest.
struct Functions {
    base: u64,
    table: Vec<u8>,
    count: usize,
}

impl Functions {
    const HEAD: usize = 12;
    const ENTRY: usize = 8;

    fn of(elf: &Elf, read: &mut Reader<'_>) -> Option<Self> {
        // Version 1; a pointer of any kind in four bytes; a count of four bytes; a table of four bytes, relative to itself.
        const UDATA4: u8 = 3;
        const DATAREL_SDATA4: u8 = 0x3b;
        let table = read(elf.frames.offset, elf.frames.len.min(16 << 20))?;
        if word::<4>(&table, 0)? != [1, 0x1b, UDATA4, DATAREL_SDATA4] {
            return None;
        }
        let count = word32(&table, 8)? as usize;
        let whole = count.checked_mul(Self::ENTRY)?.checked_add(Self::HEAD)? <= table.len();
        whole.then_some(Self { base: elf.frames.addr, table, count })
    }

    /// Start and frame description of function number `index`.
    fn entry(&self, index: usize) -> Option<(u64, u64)> {
        let at = Self::HEAD + index * Self::ENTRY;
        let address = |at: usize| {
            let distance = word(&self.table, at).map(i32::from_le_bytes)?;
            self.base.checked_add_signed(i64::from(distance))
        };
        Some((address(at)?, address(at + 4)?))
    }

    /// The last function that starts at or before `addr`.
    fn before(&self, addr: u64) -> Option<(u64, u64)> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.0 <= addr { low = middle + 1 } else { high = middle }
        }
        self.entry(low.checked_sub(1)?)
    }
}

impl Plan {
    fn of(elf: &Elf, read: &mut Reader<'_>) -> Option<Self> {
        let text = read(elf.text.offset, elf.text.len)?;
        let calls: Vec<u64> =
            memchr::memmem::find_iter(&text, &[0x0f, 0x05]).map(|at| elf.text.addr + at as u64).collect();
        if calls.is_empty() {
            return None;
        }
        let functions = Functions::of(elf, read)?;
        let mut sites = Vec::new();
        let mut calls = calls.into_iter().peekable();
        while let Some(call) = calls.peek().copied() {
            let Some((start, frame)) = functions.before(call) else {
                calls.next();
                continue;
            };
            // The description's own start must agree, and its length says where the function ends.
            let end = elf.offset_of(frame).and_then(|at| read(at, 16)).and_then(|frame_bytes| {
                let from = word(&frame_bytes, 8).map(i32::from_le_bytes)?;
                let named = (frame + 8).checked_add_signed(i64::from(from))?;
                (named == start).then_some(start.checked_add(u64::from(word32(&frame_bytes, 12)?))?)
            });
            let mut inside = Vec::new();
            while let Some(call) = calls.next_if(|call| end.is_some_and(|end| *call < end)) {
                inside.push(call);
            }
            if inside.is_empty() {
                calls.next();
            } else {
                find(elf, &text, start, &inside, &mut sites);
            }
        }
        (!sites.is_empty()).then_some(Self { text, sites })
    }

    fn image(self, elf: &Elf, entry: Addr, memory: &Arc<MemoryFile>) -> Result<TextImage> {
        use sentry_base::Errno;
        let Self { mut text, sites } = self;
        let addr_of = |offset: u64| elf.text.addr + (offset - elf.text.offset);
        let area_len = (SLOT * (sites.len() as u64 + 1)).next_multiple_of(PAGE_SIZE);
        // Below the program, perhaps below zero: only distances count.
        let area = elf.lowest.wrapping_sub(area_len);
        let mut detours = vec![0xcc; usize::try_from(area_len).map_err(|_| Errno::ENOEXEC)?];
        put(&mut detours, 0, &entry.to_le_bytes())?;
        for (index, site) in sites.iter().enumerate() {
            let slot = SLOT * (index as u64 + 1);
            let len = site.original.len();
            let mut code = site.original.clone();
            code.extend([0x48, 0x8d, 0x0d]);
            code.extend(distance(area + slot + (len + 7) as u64, addr_of(site.call() + 2))?);
            code.extend([0xff, 0x25]);
            code.extend(distance(area + slot + (len + TAIL) as u64, area)?);
            put(&mut detours, usize::try_from(slot).map_err(|_| Errno::ENOEXEC)?, &code)?;
            let mut jump = vec![0xe9];
            jump.extend(distance(addr_of(site.at) + JUMP as u64, area + slot)?);
            jump.resize(len, 0x90);
            put(&mut text, usize::try_from(site.at - elf.text.offset).map_err(|_| Errno::ENOEXEC)?, &jump)?;
        }
        let head = elf.text.offset % PAGE_SIZE;
        let first = elf.text.offset - head;
        let pages = runs(&sites);
        let mut data = PagedData::new(memory);
        let mut at = 0;
        let mut placed = Vec::new();
        for run in &pages {
            // The bytes around the segment in its first and last page are the file's, which has not been read: such
            // pages stay as they are.
            let from = run.offset.checked_sub(elf.text.offset).and_then(|n| usize::try_from(n).ok());
            let part =
                from.and_then(|from| text.get(from..from.checked_add(usize::try_from(run.len).ok()?)?));
            let Some(part) = part else { continue };
            data.write(at, part)?;
            placed.push((run.clone(), at));
            at += run.len;
        }
        data.write(at, &detours)?;
        let total = at + area_len;
        let pieces = MappedPiece::of_data(memory, &data.pieces(0, total, total)?);
        let cut = |from: u64, len: u64, offset: u64| pieces_in(&pieces, from, len, offset);
        let kept = |site: &Site| {
            placed.iter().any(|(run, _)| site.at >= run.offset && site.call() <= run.offset + run.len)
        };
        if !sites.iter().all(kept) {
            return Err(Errno::ENOEXEC);
        }
        Ok(TextImage {
            pages: placed.iter().flat_map(|(run, at)| cut(*at, run.len, run.offset)).collect(),
            detours: cut(at, area_len, 0),
            text: (first, elf.text.addr - head, (head + elf.text.len).next_multiple_of(PAGE_SIZE)),
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

/// Decodes a function and notes which of `calls` can be changed.
fn find(elf: &Elf, text: &[u8], start: u64, calls: &[u64], sites: &mut Vec<Site>) {
    let Some(at) = start.checked_sub(elf.text.addr).and_then(|at| usize::try_from(at).ok()) else { return };
    let (Some(code), Some(last)) = (text.get(at..), calls.last()) else { return };
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let mut previous = Instruction::default();
    let mut here = Instruction::default();
    while decoder.can_decode() && decoder.ip() <= *last {
        decoder.decode_out(&mut here);
        if here.is_invalid() {
            return;
        }
        if here.code() == Code::Syscall && calls.contains(&here.ip()) && may_move(&previous, here.ip()) {
            let from = usize::try_from(previous.ip() - elf.text.addr).unwrap_or(usize::MAX);
            if let Some(original) = from.checked_add(previous.len()).and_then(|end| text.get(from..end)) {
                let at = elf.text.offset + (previous.ip() - elf.text.addr);
                sites.push(Site { at, original: original.to_vec() });
            }
        }
        previous = here;
    }
}

/// Whether an instruction before a call at `call` does the same elsewhere, and leaves room for a jump.
fn may_move(instruction: &Instruction, call: u64) -> bool {
    const RT_SIGRETURN: u64 = 15;
    let moves = instruction.next_ip() == call
        && (JUMP..=MOVABLE).contains(&instruction.len())
        && instruction.flow_control() == FlowControl::Next
        && !instruction.is_ip_rel_memory_operand()
        && instruction.code() != Code::Syscall;
    // Unwinders know the return from a handler by its bytes.
    let sigreturn =
        matches!(instruction.code(), Code::Mov_r32_imm32 | Code::Mov_rm64_imm32 | Code::Mov_r64_imm64)
            && instruction.immediate(1) == RT_SIGRETURN;
    moves && !sigreturn
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An instruction of `bytes` at address 0x1000, in front of a call.
    fn movable(bytes: &[u8]) -> bool {
        let mut decoder = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE);
        let instruction = decoder.decode();
        may_move(&instruction, 0x1000 + bytes.len() as u64)
    }

    #[test]
    fn only_whole_plain_instructions_move() {
        assert!(movable(&[0xb8, 39, 0, 0, 0]), "mov eax, 39");
        assert!(movable(&[0x4c, 0x8b, 0x4c, 0x24, 0x08]), "mov r9, [rsp + 8]");
        assert!(movable(&[0x48, 0xc7, 0xc0, 14, 0, 0, 0]), "mov rax, 14");
        assert!(!movable(&[0x48, 0xc7, 0xc0, 15, 0, 0, 0]), "the return from a handler");
        assert!(!movable(&[0x31, 0xc0]), "too short for a jump");
        assert!(!movable(&[0x48, 0x8d, 0x35, 1, 0, 0, 0]), "relative to where it is");
        assert!(!movable(&[0xe8, 0, 0, 0, 0]), "a call");
        assert!(!movable(&[0x0f, 0x84, 0, 0, 0, 0]), "a branch");
    }

    fn image(sites: Vec<Site>) -> TextImage {
        TextImage {
            sites,
            pages: Vec::new(),
            detours: Vec::new(),
            text: (0x2000, 0x40_2000, 0x3000),
            lowest: 0x40_0000,
            area_len: 0x1000,
        }
    }

    #[test]
    fn originals_show_in_any_window() {
        let sites = vec![
            Site { at: 0x2ffd, original: vec![1, 2, 3, 4, 5] },
            Site { at: 0x3010, original: vec![6, 7, 8, 9, 10, 11] },
        ];
        let image = image(sites);
        let mut all = [0; 0x40];
        image.restore(0x2ff0, &mut all);
        assert_eq!(all[0xd..0x12], [1, 2, 3, 4, 5]);
        assert_eq!(all[0x20..0x26], [6, 7, 8, 9, 10, 11]);
        assert_eq!(all.iter().filter(|byte| **byte != 0).count(), 11);
        let mut part = [0; 3];
        image.restore(0x2fff, &mut part);
        assert_eq!(part, [3, 4, 5]);
        let mut end = [0; 4];
        image.restore(0x3014, &mut end);
        assert_eq!(end, [10, 11, 0, 0]);
    }

    #[test]
    fn detours_stand_below_the_program() {
        let image = image(Vec::new());
        let area = image.area(0x7f00_0000_2000, 0x2000);
        assert_eq!(area, Some(AddrRange { start: 0x7eff_ffff_f000, end: 0x7f00_0000_0000 }));
        assert_eq!(image.area(0x7f00_0000_3000, 0x3000), area);
        assert_eq!(image.area(0x7f00_0000_3000, 0x5000), None);
        assert_eq!(image.area(0x1000, 0x2000), None);
        let range = area.unwrap();
        assert_eq!(detour_at(range, range.start + 32), Some((1, true)));
        assert_eq!(detour_at(range, range.start + 45), Some((1, false)));
        assert_eq!(detour_at(range, range.end), None);
    }
}
