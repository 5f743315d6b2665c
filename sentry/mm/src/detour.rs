//! Mapping text in which system calls take a detour instead of a trap, and giving the original back.
//!
//! A private, executable, read-only mapping of a file that has a [`TextImage`] shows the image's pages where they differ. The
//! detours stand just below the program in a mapping that no list shows. The file's own pages come back for good as
//! soon as someone could tell the difference: a tracer attaches, the text becomes writable or moves, something else is
//! mapped where the detours are. The detours themselves stay until then, since a thread may be in one.

use std::os::fd::AsFd;
use std::sync::Arc;

use platform::{Addr, AddrRange, MapSource, PAGE_SIZE, Sharing, SpaceError};

use crate::mm::{Mm, State};
use crate::text::{TextImage, detour_at};
use crate::vma::{Backing, Vma};
use crate::{Mappable, MappedPiece, VmFlags};

/// Text that takes detours.
#[derive(Clone)]
pub(crate) struct Detour {
    pub area: AddrRange,
    /// The text, and the byte of the file at its start.
    pub text: AddrRange,
    pub offset: u64,
    pub image: Arc<TextImage>,
    pub file: Arc<dyn Mappable>,
    /// The text is as in the file again.
    pub undone: bool,
}

/// Where a thread is, as the application may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where it was found.
    Plain,
    /// In a detour, and as good as at this address: the first instruction that the detour replaces, or the call.
    At(Addr),
    /// In a detour between two instructions that it replaces. Of these the text still has none: who goes on at this address
    /// does so after [`Mm::show_text_of`] alone.
    Between(Addr),
}

/// What a mapping must be for its text to be changed.
fn is_plain_text(flags: VmFlags) -> bool {
    flags.contains(VmFlags::READ | VmFlags::EXEC) && !flags.intersects(VmFlags::WRITE | VmFlags::MAYSHARE)
}

impl Mm {
    /// The image of a file that is about to be mapped with `flags`. Called without a lock.
    pub(crate) fn text_image(&self, file: &dyn Mappable, flags: VmFlags) -> Option<Arc<TextImage>> {
        if !is_plain_text(flags) || !file.is_host_file() {
            return None;
        }
        let entry = self.space().call_entry()?;
        let (slot, stamp) = file.text()?;
        slot.image(file, stamp, entry, self.memory_file())
    }

    /// Changes the text that has just been mapped at `text`. Where something is in the way it stays as it is.
    pub(crate) fn detour(
        &self,
        state: &mut State,
        text: AddrRange,
        offset: u64,
        image: &Arc<TextImage>,
        file: &Arc<dyn Mappable>,
    ) {
        if state.keeps_text {
            return;
        }
        let Some(area) = image.area(text.start, offset) else { return };
        if !self.user_range().contains_range(&area) || state.tree.overlaps(area) || area.overlaps(&text) {
            return;
        }
        let flags = VmFlags::READ | VmFlags::EXEC | VmFlags::MAYREAD | VmFlags::MAYEXEC | VmFlags::HIDDEN;
        let Some(file_of_all) = image.detours.first().map(|piece| Arc::clone(&piece.fd)) else { return };
        let detour =
            Detour { area, text, offset, image: Arc::clone(image), file: Arc::clone(file), undone: false };
        let stubs = image.detours.iter().map(|piece| {
            let start = area.start + piece.offset;
            (AddrRange { start, end: start + piece.len }, piece.fd_offset)
        });
        let changed = parts(&detour).map(|(range, piece)| (range, piece.fd_offset));
        let all: Vec<_> = stubs.chain(changed).collect();
        if self.space().map_parts(&all, file_of_all.as_fd(), flags.prot()).is_err() {
            // Where the host refuses this too, the process is gone.
            let _ = self.show_file(state, &detour);
            let _ = self.space().unmap(area);
            return;
        }
        let vma = Vma { start: area.start, end: area.end, flags, backing: Backing::Anon, anon_name: None };
        state.tree.insert(vma);
        state.detours.push(detour);
    }

    /// Has the text that `range` touches be as in the file.
    pub(crate) fn undo_detours(&self, state: &mut State, range: AddrRange) {
        self.undo(state, |detour| detour.text.overlaps(&range));
    }

    /// The detours in `range` are about to go.
    pub(crate) fn drop_detours(&self, state: &mut State, range: AddrRange) {
        if state.detours.iter().any(|detour| detour.area.overlaps(&range)) {
            self.undo(state, |detour| detour.area.overlaps(&range) && !range.contains_range(&detour.text));
            state.detours.retain(|detour| !range.contains_range(&detour.area));
        }
    }

    fn undo(&self, state: &mut State, which: impl Fn(&Detour) -> bool) {
        if !state.detours.iter().any(|detour| !detour.undone && which(detour)) {
            return;
        }
        let mut detours = core::mem::take(&mut state.detours);
        for detour in detours.iter_mut().filter(|detour| !detour.undone && which(detour)) {
            detour.undone = true;
            // Where the host refuses, the process is gone.
            let _ = self.show_file(state, detour);
        }
        state.detours = detours;
    }

    fn show_file(&self, state: &State, detour: &Detour) -> Result<(), SpaceError> {
        for (range, piece) in parts(detour) {
            for vma in state.tree.overlapping(range) {
                let Some(file) = vma.file().filter(|file| file.is_file(detour.file.as_ref())) else {
                    continue;
                };
                let part = vma.range().intersect(&range);
                let offset = file.offset + (part.start - vma.start);
                if offset != piece.offset + (part.start - range.start) {
                    continue;
                }
                let Ok(originals) = detour.file.pieces(offset, part.len(), false) else { continue };
                for original in originals {
                    let start = part.start + (original.offset - offset);
                    let range = AddrRange { start, end: start + original.len };
                    let source = MapSource::File {
                        file: original.fd.as_fd(),
                        offset: original.fd_offset,
                        writable: false,
                    };
                    self.space().map(range, source, vma.flags.prot(), Sharing::Private)?;
                }
            }
        }
        Ok(())
    }

    /// Shows every file as it is, from now on and for good: someone is going to look closely.
    pub fn keep_text(&self) {
        let mut state = self.lock();
        state.keeps_text = true;
        let all = self.user_range();
        self.undo_detours(&mut state, all);
    }

    /// Shows every file that is mapped from now on as it is.
    pub fn keep_later_text(&self) {
        self.lock().keeps_text = true;
    }

    /// Where a thread is that was found at `addr`.
    pub fn shown_place(&self, addr: Addr) -> Place {
        let state = self.lock();
        let found = state.detours.iter().find_map(|detour| {
            let (index, into) = detour_at(detour.area, addr)?;
            let site = detour.image.site(index)?;
            let at = site.place(into);
            let place = detour.text.start + at.checked_sub(detour.offset)?;
            let whole = detour.undone || at == site.at || at == site.call();
            Some(if whole { Place::At(place) } else { Place::Between(place) })
        });
        found.unwrap_or(Place::Plain)
    }

    /// Shows the file of the text whose detour holds `addr` as it is, for good.
    pub fn show_text_of(&self, addr: Addr) {
        self.undo(&mut self.lock(), |detour| detour.area.contains(addr));
    }

    /// Puts what the files have into `bytes`, which were read at `addr`.
    pub fn show_originals(&self, addr: Addr, bytes: &mut [u8]) {
        let state = self.lock();
        let Some(range) = AddrRange::new(addr, bytes.len() as u64) else { return };
        for detour in state.detours.iter().filter(|d| !d.undone && d.text.overlaps(&range)) {
            for vma in state.tree.overlapping(detour.text.intersect(&range)) {
                let part = vma.range().intersect(&range);
                let Some(file) = vma.file().filter(|file| file.is_file(detour.file.as_ref())) else {
                    continue;
                };
                let from = usize::try_from(part.start - addr).unwrap_or(usize::MAX);
                let to = usize::try_from(part.end - addr).unwrap_or(usize::MAX);
                if let Some(bytes) = bytes.get_mut(from..to) {
                    detour.image.restore(file.offset + (part.start - vma.start), bytes);
                }
            }
        }
    }
}

/// The changed pages of a text, by address.
fn parts(detour: &Detour) -> impl Iterator<Item = (AddrRange, MappedPiece)> + '_ {
    let end = detour.offset + detour.text.len();
    detour.image.pages.iter().filter_map(move |piece| {
        let from = piece.offset.max(detour.offset);
        let to = (piece.offset + piece.len).min(end);
        debug_assert!(from.is_multiple_of(PAGE_SIZE), "images consist of pages");
        (from < to).then(|| {
            let start = detour.text.start + (from - detour.offset);
            let cut = MappedPiece {
                offset: from,
                len: to - from,
                fd: Arc::clone(&piece.fd),
                fd_offset: piece.fd_offset + (from - piece.offset),
                pin: piece.pin.clone(),
            };
            (AddrRange { start, end: start + (to - from) }, cut)
        })
    })
}
