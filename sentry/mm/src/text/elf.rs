//! What is needed of an ELF file: its segments, its sections, and a reader of small pieces.

use platform::PAGE_SIZE;

use crate::{Mappable, MappedPiece};

/// Larger text is left alone.
const TEXT_MAX: u64 = 8 << 20;
/// The most that is read of a table, in bytes.
const TABLE_MAX: u64 = 16 << 20;

pub(super) type Reader<'a> = dyn FnMut(u64, u64) -> Option<Vec<u8>> + 'a;

/// Reads a file, small pieces out of a larger one that is kept.
pub(super) struct Window<'a> {
    file: &'a dyn Mappable,
    piece: Option<MappedPiece>,
    /// Byte of the file at the start of `bytes`.
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    /// What is read at once, in bytes.
    const SIZE: u64 = 16 << 10;

    pub fn new(file: &'a dyn Mappable) -> Self {
        Self { file, piece: None, start: 0, bytes: Vec::new() }
    }

    pub fn read(&mut self, offset: u64, len: u64) -> Option<Vec<u8>> {
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
        let len = usize::try_from(len).ok()?;
        let mut bytes = sentry_memory::room(len);
        while bytes.len() < len {
            let done = bytes.len() as u64;
            match rustix::io::pread(&*piece.fd, rustix::buffer::spare_capacity(&mut bytes), at + done) {
                Ok(0) => break,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        bytes.truncate(len);
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

/// A segment of the program's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub offset: u64,
    pub addr: u64,
    pub len: u64,
    pub is_text: bool,
}

/// A section, of which only the tables of functions are of use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    name: u64,
    pub kind: u32,
    pub addr: u64,
    pub offset: u64,
    pub len: u64,
    /// The table of names that goes with it.
    pub link: u32,
}

/// A program or library.
pub(super) struct Elf {
    pub text: Segment,
    /// `.eh_frame_hdr`
    pub frames: Option<Segment>,
    pub loads: Vec<Segment>,
    pub lowest: u64,
    pub entry: u64,
    /// Linked for one address (`ET_EXEC`).
    pub is_fixed: bool,
    /// Where the section headers stand, how many there are, and which of them holds their names.
    sections: (u64, u64, u64),
}

pub(super) fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    word(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    word(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    word(bytes, at).map(u64::from_le_bytes)
}

impl Elf {
    pub fn parse(read: &mut Reader<'_>) -> Option<Self> {
        const PT_LOAD: u32 = 1;
        const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
        const ET_EXEC: u16 = 2;
        let head = read(0, 64)?;
        if head.get(..6)? != b"\x7fELF\x02\x01" || word16(&head, 18)? != 62 {
            return None;
        }
        let (size, count) = (word16(&head, 54)?, word16(&head, 56)?);
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
        let sections = match word16(&head, 58)? {
            64 => (word64(&head, 40)?, u64::from(word16(&head, 60)?), u64::from(word16(&head, 62)?)),
            _ => (0, 0, 0),
        };
        let (entry, is_fixed) = (word64(&head, 24)?, word16(&head, 16)? == ET_EXEC);
        fits.then_some(Self { text, frames, loads, lowest, entry, is_fixed, sections })
    }

    /// The whole pages of the text: byte of the file, address and length.
    pub fn text_pages(&self) -> (u64, u64, u64) {
        let head = self.text.offset % PAGE_SIZE;
        (self.text.offset - head, self.text.addr - head, (head + self.text.len).next_multiple_of(PAGE_SIZE))
    }

    #[cfg(test)]
    pub fn for_test(text: Segment, loads: Vec<Segment>) -> Self {
        Self { text, frames: None, loads, lowest: 0, entry: 0, is_fixed: false, sections: (0, 0, 0) }
    }

    /// The byte of the file that is loaded at `addr`.
    pub fn offset_of(&self, addr: u64) -> Option<u64> {
        let holds = |segment: &&Segment| addr >= segment.addr && addr - segment.addr < segment.len;
        self.loads.iter().find(holds).map(|segment| segment.offset + (addr - segment.addr))
    }

    /// The sections, with their names; none where the file has been stripped of them.
    pub fn sections(&self, read: &mut Reader<'_>) -> Vec<(Vec<u8>, Section)> {
        self.read_sections(read).unwrap_or_default()
    }

    fn read_sections(&self, read: &mut Reader<'_>) -> Option<Vec<(Vec<u8>, Section)>> {
        let (at, count, names) = self.sections;
        let table = read(at, count.checked_mul(64)?)?;
        let mut sections = Vec::new();
        for entry in table.chunks_exact(64) {
            sections.push(Section {
                name: u64::from(word32(entry, 0)?),
                kind: word32(entry, 4)?,
                addr: word64(entry, 16)?,
                offset: word64(entry, 24)?,
                len: word64(entry, 32)?,
                link: word32(entry, 40)?,
            });
        }
        let names = section_bytes(sections.get(usize::try_from(names).ok()?)?, read)?;
        let named = |section: Section| {
            let rest = names.get(usize::try_from(section.name).ok()?..)?;
            Some((rest.split(|byte| *byte == 0).next()?.to_vec(), section))
        };
        sections.into_iter().map(named).collect()
    }
}

/// The whole of a section, unless it is too large to be looked at.
pub(super) fn section_bytes(section: &Section, read: &mut Reader<'_>) -> Option<Vec<u8>> {
    (section.len <= TABLE_MAX).then(|| read(section.offset, section.len))?
}
