//! Where functions start and end: as descriptions of frames say.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::elf::{Elf, Reader, Segment, word, word32};

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
    frames: Option<Frames>,
}

impl<'a> Functions<'a> {
    pub fn of(elf: &'a Elf, read: &mut Reader<'_>) -> Self {
        Self { elf, frames: Frames::of(elf, read) }
    }

    /// The function that holds `addr`.
    pub fn around(&self, addr: u64, read: &mut Reader<'_>) -> Option<Function> {
        self.frames.as_ref()?.around(self.elf, addr, read)
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
        let entries = Self::header(elf.frames?, read)?;
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
}
