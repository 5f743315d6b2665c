//! Where functions start and end: as descriptions of frames say, and for code that has none as Go's table or the symbols
//! say.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;

use iced_x86::FlowControl;

use super::elf::{Elf, Reader, Section, Segment, section_bytes, word, word16, word32, word64};
use super::sites::{branch_target, decode};

/// A function, or a part of one that stands apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function {
    pub start: u64,
    pub end: u64,
    /// An exception may go on in it at places that no branch names.
    pub has_pads: bool,
}

/// The functions of a file.
pub(super) struct Functions<'a> {
    elf: &'a Elf,
    text: &'a [u8],
    frames: Option<Frames>,
    /// Those that tables for other purposes name, start and end, in order. Read when frames do not cover a place.
    listed: OnceCell<Vec<(u64, u64)>>,
}

impl<'a> Functions<'a> {
    pub fn of(elf: &'a Elf, text: &'a [u8], read: &mut Reader<'_>) -> Self {
        Self { elf, text, frames: Frames::of(elf, read), listed: OnceCell::new() }
    }

    #[cfg(test)]
    pub fn for_test(elf: &'a Elf, text: &'a [u8], listed: Vec<(u64, u64)>) -> Self {
        Self { elf, text, frames: None, listed: OnceCell::from(listed) }
    }

    /// The function that holds `addr`.
    pub fn around(&self, addr: u64, read: &mut Reader<'_>) -> Option<Function> {
        let framed = self.frames.as_ref().and_then(|frames| frames.around(self.elf, addr, read));
        framed.or_else(|| {
            let listed = self.listed.get_or_init(|| self.list(read));
            let before = listed.partition_point(|(start, _)| *start <= addr);
            let (start, end) = *listed.get(before.checked_sub(1)?)?;
            (addr < end).then_some(Function { start, end, has_pads: false })
        })
    }

    /// Functions by the file's section headers: Go's own table, else the symbols.
    fn list(&self, read: &mut Reader<'_>) -> Vec<(u64, u64)> {
        let sections = self.elf.sections(read);
        let named =
            |wanted: &[u8]| sections.iter().find(|(name, _)| name == wanted).map(|(_, section)| section);
        let go = named(b".gopclntab").or_else(|| named(b".data.rel.ro.gopclntab"));
        if let Some(go) = go {
            let Some(table) = section_bytes(go, read) else { return Vec::new() };
            // Since Go 1.26 the table does not say where the code begins that it is about.
            let base = word64(&table, 24).filter(|base| *base != 0).or_else(|| start_of_go(&sections, read));
            let functions = |base: u64| go_functions(&table, base).unwrap_or_default();
            if let Some(base) = base {
                return functions(base);
            }
            // It is all of the code, if the program begins with a function of Go.
            let functions = named(b".text").map(|text| functions(text.addr)).unwrap_or_default();
            let begins = functions.iter().any(|(start, _)| *start == self.elf.entry);
            return if begins { functions } else { Vec::new() };
        }
        let mut found = Vec::new();
        let of_kind = |kind: u32| sections.iter().find(|(_, section)| section.kind == kind);
        // The one for debuggers has those of the other too, and functions that nobody else is to call.
        let symbols = of_kind(SHT_SYMTAB).or_else(|| of_kind(SHT_DYNSYM));
        if let Some((_, section)) = symbols
            && let Some(table) = section_bytes(section, read)
        {
            found.extend(table.chunks_exact(SYMBOL).filter_map(function_of));
        }
        let found = in_order(found);
        let has_frames = self.frames.as_ref().is_some_and(|frames| frames.entries.len() > FEW);
        let is_complete = has_frames || of_kind(SHT_SYMTAB).is_some();
        if is_complete { found } else { self.with_called(found) }
    }

    /// Adds the functions that others call and that have no names.
    fn with_called(&self, found: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
        let text = self.elf.text.addr..self.elf.text.addr + self.text.len() as u64;
        let mut waiting = found.clone();
        let mut known: BTreeMap<u64, u64> = found.into_iter().collect();
        let mut budget = self.text.len().saturating_mul(2);
        while let Some((start, end)) = waiting.pop() {
            let next = known.range(start + 1..).next().map_or(text.end, |(next, _)| *next);
            let end = if end == 0 { next } else { end };
            let at = |addr: u64| usize::try_from(addr.checked_sub(text.start)?).ok();
            let code = at(start).zip(at(end)).and_then(|(from, to)| self.text.get(from..to));
            let Some((code, left)) = code.and_then(|code| Some((code, budget.checked_sub(code.len())?)))
            else {
                continue;
            };
            budget = left;
            decode(code, start, &mut |here| {
                // Jumps may lead to the middle of a function.
                let calls = here.flow_control() == FlowControl::Call;
                let Some(target) = branch_target(here).filter(|target| calls && text.contains(target)) else {
                    return;
                };
                let inside = (start..end).contains(&target)
                    || known
                        .range(..=target)
                        .next_back()
                        .is_some_and(|(from, to)| target < *to || target == *from);
                if !inside {
                    known.insert(target, 0);
                    waiting.push((target, 0));
                }
            });
        }
        in_order(known.into_iter().collect())
    }
}

/// What descriptions of frames have in common.
#[derive(Debug, Clone, Copy)]
enum Common {
    Plain,
    /// They may name a table of landing pads.
    MayHavePads,
    /// Not understood, or of what unwinders find below a handler, which starts a byte before its code.
    Other,
}

impl Common {
    fn read(elf: &Elf, addr: u64, read: &mut Reader<'_>) -> Self {
        let head = elf.offset_of(addr).and_then(|at| read(at, 32)).unwrap_or_default();
        Self::parse(&head).unwrap_or(Self::Other)
    }

    fn parse(head: &[u8]) -> Option<Self> {
        let augmentation = head.get(9..)?.split(|byte| *byte == 0).next()?;
        let (b'z', letters) = augmentation.split_first()? else { return None };
        // Behind the letters a factor, another, a register, and how many bytes are about the letters: of one byte each.
        let mut at = 9 + augmentation.len() + 1 + 4;
        let (mut is_relative, mut has_pads) = (false, false);
        for letter in letters {
            let encoding = *head.get(at)?;
            at += 1;
            match letter {
                b'R' => is_relative = encoding == PCREL_SDATA4,
                b'L' => has_pads = true,
                b'P' => at += 4,
                _ => return None,
            }
        }
        is_relative.then_some(if has_pads { Self::MayHavePads } else { Self::Plain })
    }
}

/// The functions that frame descriptions are about: where each starts and where its description stands, in the order of
/// their addresses as far as the file is honest.
struct Frames {
    entries: Vec<(u64, u64)>,
    commons: RefCell<BTreeMap<u64, Common>>,
}

impl Frames {
    fn of(elf: &Elf, read: &mut Reader<'_>) -> Option<Self> {
        let entries = match elf.frames {
            Some(frames) => Self::header(frames, read)?,
            None => Self::section(elf, read)?,
        };
        Some(Self { entries, commons: RefCell::default() })
    }

    /// What `.eh_frame_hdr` has.
    fn header(frames: Segment, read: &mut Reader<'_>) -> Option<Vec<(u64, u64)>> {
        // Version 1; a pointer of any kind in four bytes; a count of four bytes; a table of four bytes, relative to itself.
        const UDATA4: u8 = 3;
        const DATAREL_SDATA4: u8 = 0x3b;
        let table = read(frames.offset, frames.len.min(16 << 20))?;
        if word::<4>(&table, 0)? != [1, PCREL_SDATA4, UDATA4, DATAREL_SDATA4] {
            return None;
        }
        let entries = table.get(12..)?.chunks_exact(8).take(word32(&table, 8)? as usize);
        let address = |bytes: &[u8], at: usize| {
            let distance = word(bytes, at).map(i32::from_le_bytes)?;
            frames.addr.checked_add_signed(i64::from(distance))
        };
        entries.map(|entry| Some((address(entry, 0)?, address(entry, 4)?))).collect()
    }

    /// What `.eh_frame` has, for a program that has no table of it.
    fn section(elf: &Elf, read: &mut Reader<'_>) -> Option<Vec<(u64, u64)>> {
        let sections = elf.sections(read);
        let (_, section) = sections.iter().find(|(name, _)| name == b".eh_frame")?;
        let bytes = section_bytes(section, read)?;
        let (mut at, mut entries) = (0, Vec::new());
        while let Some(len @ 1..0xffff_fff0) = word32(&bytes, at) {
            let frame = section.addr.checked_add(at as u64)?;
            // Others say what descriptions have in common.
            if word32(&bytes, at + 4)? != 0 {
                let distance = word(&bytes, at + 8).map(i32::from_le_bytes)?;
                entries.push(((frame + 8).checked_add_signed(i64::from(distance))?, frame));
            }
            at = at.checked_add(4)?.checked_add(len as usize)?;
        }
        entries.sort_unstable();
        Some(entries)
    }

    /// The function that holds `addr`. The description's own start must agree, and its length says where it ends.
    fn around(&self, elf: &Elf, addr: u64, read: &mut Reader<'_>) -> Option<Function> {
        let before = self.entries.partition_point(|(start, _)| *start <= addr);
        let (start, frame) = *self.entries.get(before.checked_sub(1)?)?;
        let described = read(elf.offset_of(frame)?, 24)?;
        let distance = word(&described, 8).map(i32::from_le_bytes)?;
        let named = frame.checked_add(8)?.checked_add_signed(i64::from(distance))?;
        let end = start.checked_add(u64::from(word32(&described, 12)?))?;
        if named != start || addr >= end {
            return None;
        }
        let common = (frame + 4).checked_sub(u64::from(word32(&described, 4)?))?;
        let known = self.commons.borrow().get(&common).copied();
        let kind = known.unwrap_or_else(|| {
            let kind = Common::read(elf, common, read);
            self.commons.borrow_mut().insert(common, kind);
            kind
        });
        let has_pads = match kind {
            Common::Plain => false,
            // One byte of length, then the pointer to the table, of four bytes wherever it matters here.
            Common::MayHavePads => *described.get(16)? != 4 || word32(&described, 17)? != 0,
            Common::Other => return None,
        };
        Some(Function { start, end, has_pads })
    }
}

/// A distance of four bytes from where it stands.
const PCREL_SDATA4: u8 = 0x1b;
/// So many frames, or fewer, stand for those few functions alone.
const FEW: usize = 16;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;
/// Bytes of a symbol.
const SYMBOL: usize = 24;

/// The function that a symbol is the name of, with its end, or zero where the symbol does not tell.
fn function_of(symbol: &[u8]) -> Option<(u64, u64)> {
    const STT_FUNC: u8 = 2;
    let is_function = symbol.get(4)? & 15 == STT_FUNC && word16(symbol, 6)? != 0;
    let (start, len) = (word64(symbol, 8)?, word64(symbol, 16)?);
    let end = if len == 0 { 0 } else { start.checked_add(len)? };
    is_function.then_some((start, end))
}

/// Functions by their start, each once, those without an end reaching to the next.
fn in_order(mut found: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    // Of two names of one place the one that knows the end counts.
    found.sort_unstable_by_key(|(start, end)| (*start, u64::MAX - *end));
    found.dedup_by_key(|(start, _)| *start);
    let next = found.iter().skip(1).map(|(start, _)| *start).chain([0]).collect::<Vec<_>>();
    let ends = |((start, end), next): ((u64, u64), u64)| {
        let overlaps = next != 0 && end > next;
        (
            start,
            if end == 0 {
                next
            } else if overlaps {
                0
            } else {
                end
            },
        )
    };
    found.into_iter().zip(next).map(ends).collect()
}

/// Where Go's code begins, from the symbols.
fn start_of_go(sections: &[(Vec<u8>, Section)], read: &mut Reader<'_>) -> Option<u64> {
    let (_, symbols) = sections.iter().find(|(_, section)| section.kind == SHT_SYMTAB)?;
    let names = section_bytes(&sections.get(symbols.link as usize)?.1, read)?;
    let table = section_bytes(symbols, read)?;
    let is_it = |symbol: &&[u8]| {
        let name = word32(symbol, 0).and_then(|at| names.get(at as usize..));
        name.is_some_and(|name| name.starts_with(b"runtime.text\0"))
    };
    word64(table.chunks_exact(SYMBOL).find(is_it)?, 8)
}

/// The functions that Go's table names (`runtime/symtab.go`, Go 1.18 and later). Go's code begins at `base`.
fn go_functions(table: &[u8], base: u64) -> Option<Vec<(u64, u64)>> {
    const VERSIONS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
    // No padding, instructions of one byte, pointers of eight.
    if !VERSIONS.contains(&word32(table, 0)?) || word::<4>(table, 4)? != [0, 0, 1, 8] {
        return None;
    }
    let count = usize::try_from(word64(table, 8)?).ok()?;
    let entries = table.get(usize::try_from(word64(table, 64)?).ok()?..)?;
    // A last entry says where the last function ends.
    let entries = entries.get(..count.checked_mul(8)?.checked_add(4)?)?;
    let starts: Option<Vec<u64>> =
        entries.chunks(8).map(|entry| base.checked_add(u64::from(word32(entry, 0)?))).collect();
    let starts = starts?;
    let ordered = starts.is_sorted();
    ordered.then(|| starts.iter().copied().zip(starts.iter().skip(1).copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_frames_are_told_apart() {
        let head = |letters: &[u8], about: &[u8]| {
            let mut head = vec![0; 9];
            head.extend(letters);
            head.extend([0, 1, 0x78, 16, 1]);
            head.extend(about);
            Common::parse(&head)
        };
        assert!(matches!(head(b"zR", &[0x1b]), Some(Common::Plain)));
        assert!(matches!(head(b"zPLR", &[0x9b, 1, 2, 3, 4, 0x1b, 0x1b]), Some(Common::MayHavePads)));
        assert!(head(b"zR", &[3]).is_none(), "addresses");
        assert!(head(b"zRS", &[0x1b]).is_none(), "below a handler");
        assert!(head(b"", &[]).is_none(), "none is said");
    }

    #[test]
    fn symbols_make_functions() {
        // Two names of one place, one without a length, one that reaches into the next, one without an end.
        let found = vec![(0x30, 0x50), (0x10, 0), (0x10, 0x20), (0x40, 0x60), (0x80, 0)];
        assert_eq!(in_order(found), [(0x10, 0x20), (0x30, 0), (0x40, 0x60), (0x80, 0)]);
        assert_eq!(in_order(vec![(0x10, 0), (0x18, 0x20)]), [(0x10, 0x18), (0x18, 0x20)]);
    }

    #[test]
    fn a_table_of_go_is_read() {
        let mut table = vec![0; 72];
        let mut put = |at: usize, bytes: &[u8]| table[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8]);
        put(8, &2_u64.to_le_bytes());
        put(64, &72_u64.to_le_bytes());
        for (start, at) in [(0_u32, 7_u32), (0x40, 9)] {
            table.extend(start.to_le_bytes());
            table.extend(at.to_le_bytes());
        }
        assert_eq!(go_functions(&table, 0x1000), None, "the end is missing");
        table.extend(0x60_u32.to_le_bytes());
        assert_eq!(go_functions(&table, 0x1000), Some(vec![(0x1000, 0x1040), (0x1040, 0x1060)]));
        table[0] = 0xfb;
        assert_eq!(go_functions(&table, 0x1000), None, "an older version");
    }
}
