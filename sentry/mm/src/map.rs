//! `mmap(2)`, `munmap(2)` and `brk(2)`.

use std::sync::Arc;

use platform::{Addr, AddrRange, MapSource, PAGE_SIZE, Prot, Sharing, SpaceError};
use sentry_base::{Errno, Result};
use std::os::fd::AsFd;

use crate::flags::MAX_MAP_COUNT;
use crate::mm::{MMAP_MIN, Mm, State, space_errno};
use crate::shared::SharedAnon;
use crate::vma::{Backing, FileBacking, Vma};
use crate::{Mappable, MappedFile, MappedPiece, MmLimits, VmFlags};

/// `MAP_*` flags with Linux's values (`mmap(2)`); those not named here are hints without effect.
pub mod map_flags {
    pub const SHARED: u32 = 0x01;
    pub const PRIVATE: u32 = 0x02;
    pub const SHARED_VALIDATE: u32 = 0x03;
    pub const TYPE: u32 = 0x0f;
    pub const FIXED: u32 = 0x10;
    pub const ANONYMOUS: u32 = 0x20;
    pub const BITS32: u32 = 0x40;
    pub const GROWSDOWN: u32 = 0x100;
    pub const LOCKED: u32 = 0x2000;
    pub const NORESERVE: u32 = 0x4000;
    pub const POPULATE: u32 = 0x8000;
    pub const NONBLOCK: u32 = 0x1_0000;
    pub const HUGETLB: u32 = 0x4_0000;
    pub const SYNC: u32 = 0x8_0000;
    pub const FIXED_NOREPLACE: u32 = 0x10_0000;
    /// What `SHARED_VALIDATE` accepts (`LEGACY_MAP_MASK`).
    pub(super) const KNOWN: u32 = 0x17_ff7f;
}
use map_flags as mf;

/// A file to map, and what its descriptor allows.
#[derive(Debug, Clone)]
pub struct FileMapping {
    pub file: Arc<dyn Mappable>,
    /// Names the mapping and keeps the file open.
    pub name: Option<Arc<dyn MappedFile>>,
    /// Byte of the file where the mapping starts; page-aligned.
    pub offset: u64,
    /// Opened for reading.
    pub readable: bool,
    /// Opened for writing.
    pub writable: bool,
    /// On a file system mounted with `noexec`.
    pub noexec: bool,
}

/// The arguments of `mmap(2)`, with the descriptor resolved.
#[derive(Debug, Clone)]
pub struct MmapArgs {
    pub addr: Addr,
    pub len: u64,
    pub prot: u32,
    pub flags: u32,
    /// `None` with `MAP_ANONYMOUS`.
    pub file: Option<FileMapping>,
}

/// Room for the detours of a thousand calls.
const DETOUR_ROOM: u64 = 32 << 10;

pub(crate) fn page_up(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE_SIZE)
}

/// What the flags and the file together allow (`do_mmap`).
fn vm_flags(args: &MmapArgs) -> Result<VmFlags> {
    let mut flags = VmFlags::from_prot(args.prot) | VmFlags::MAY_ACCESS;
    let kind = args.flags & mf::TYPE;
    if args.flags & mf::NORESERVE != 0 {
        flags |= VmFlags::NORESERVE;
    }
    if args.flags & mf::LOCKED != 0 {
        flags |= VmFlags::LOCKED;
    }
    if let Some(file) = &args.file {
        if kind == mf::SHARED_VALIDATE && args.flags & !mf::KNOWN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match kind {
            mf::SHARED | mf::SHARED_VALIDATE => {
                if flags.contains(VmFlags::WRITE) && !file.writable {
                    return Err(Errno::EACCES);
                }
                flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
                if !file.writable {
                    flags.remove(VmFlags::MAYWRITE | VmFlags::SHARED);
                }
            }
            mf::PRIVATE => {}
            _ => return Err(Errno::EINVAL),
        }
        if !file.readable {
            return Err(Errno::EACCES);
        }
        if file.noexec {
            if flags.contains(VmFlags::EXEC) {
                return Err(Errno::EPERM);
            }
            flags.remove(VmFlags::MAYEXEC);
        }
        if args.flags & mf::GROWSDOWN != 0 {
            return Err(Errno::EINVAL);
        }
    } else {
        match kind {
            mf::SHARED | mf::SHARED_VALIDATE => {
                if args.flags & mf::GROWSDOWN != 0 {
                    return Err(Errno::EINVAL);
                }
                flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
            }
            mf::PRIVATE => {
                if args.flags & mf::GROWSDOWN != 0 {
                    flags |= VmFlags::GROWSDOWN;
                }
            }
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(flags)
}

impl Mm {
    /// Maps a file or memory and returns the address.
    pub fn mmap(&self, args: &MmapArgs, limits: &MmLimits) -> Result<Addr> {
        if args.len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_up(args.len).ok_or(Errno::ENOMEM)?;
        if len > self.user_range().len() {
            return Err(Errno::ENOMEM);
        }
        let offset = args.file.as_ref().map_or(0, |f| f.offset);
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Errno::EOVERFLOW);
        }
        let mut flags = vm_flags(args)?;
        if args.flags & mf::HUGETLB != 0 {
            // No huge pages are set aside, so there are never enough of them.
            return Err(Errno::ENOMEM);
        }
        if args.flags & mf::LOCKED != 0 && !limits.can_lock() {
            return Err(Errno::EPERM);
        }
        // `/dev/zero` is another way to ask for memory.
        let (file, offset) = match args.file.as_ref().filter(|f| !f.file.is_zero_device()) {
            Some(f) => (Some((Arc::clone(&f.file), f.name.clone())), offset),
            None if flags.is_shared() => {
                let memory: Arc<dyn Mappable> = SharedAnon::new(self.memory_file(), len);
                (Some((memory, None)), 0)
            }
            None => (None, 0),
        };
        let write = flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE);
        let image = file.as_ref().and_then(|(file, _)| self.text_image(file.as_ref(), flags));
        loop {
            // Pieces are asked for before the lock is taken, since they come from under the file's own lock.
            let prepared = match &file {
                Some((file, _)) => Prepared::of(self, file.as_ref(), offset, len, write)?,
                None => Prepared::default(),
            };
            let mut state = self.lock();
            if file.as_ref().is_some_and(|(file, _)| prepared.is_stale(file.as_ref())) {
                continue;
            }
            if state.tree.count() >= MAX_MAP_COUNT {
                return Err(Errno::ENOMEM);
            }
            let addr = self.choose(&mut state, args, len)?;
            let range = AddrRange { start: addr, end: addr + len };
            flags |= state.future;
            if flags.contains(VmFlags::LOCKED) && !limits.may_lock {
                let locked = state.tree.totals().locked.saturating_add(len);
                if locked > limits.memlock {
                    return Err(Errno::EAGAIN);
                }
            }
            check_limits(&state, Some(range), flags, len, limits)?;
            let backing = match &file {
                None => Backing::Anon,
                Some((file, name)) => Backing::File(FileBacking {
                    file: Arc::clone(file),
                    name: name.clone(),
                    offset,
                    resident: Vec::new(),
                }),
            };
            let vma = Vma { start: addr, end: addr + len, flags, backing, anon_name: None };
            state.stack_limit = limits.stack;
            let mut dropped = Vec::new();
            // Where code has been, a thread may be in the midst of what would be replaced.
            let runs = state.tree.overlapping(range).any(|vma| vma.flags.contains(VmFlags::EXEC));
            let placed = self.place(&mut state, vma, &prepared.pieces, &mut dropped);
            if let (Ok(()), Some(image), Some((file, _)), false) = (&placed, &image, &file, runs) {
                self.detour(&mut state, range, offset, image, file);
            }
            drop(state);
            drop(dropped);
            placed?;
            let populate = args.flags & (mf::POPULATE | mf::NONBLOCK) == mf::POPULATE
                || flags & VmFlags::LOCK_MASK == VmFlags::LOCKED;
            if populate {
                // What cannot be had now is had, or refused, at a touch.
                let _ = self.make_resident(range);
            }
            return Ok(addr);
        }
    }

    /// Where a mapping of `len` bytes goes (`get_unmapped_area`).
    fn choose(&self, state: &mut State, args: &MmapArgs, len: u64) -> Result<Addr> {
        let user = self.user_range();
        if args.flags & (mf::FIXED | mf::FIXED_NOREPLACE) != 0 {
            if !args.addr.is_multiple_of(PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            let range = AddrRange::new(args.addr, len).ok_or(Errno::ENOMEM)?;
            if args.addr < MMAP_MIN {
                return Err(Errno::EPERM);
            }
            if !user.contains_range(&range) {
                return Err(Errno::ENOMEM);
            }
            if args.flags & mf::FIXED_NOREPLACE != 0 && state.tree.overlaps(range) {
                return Err(Errno::EEXIST);
            }
            return Ok(args.addr);
        }
        if args.flags & mf::BITS32 != 0 {
            let (low, high) = (0x4000_0000_u64.max(user.start), 0x8000_0000_u64.min(user.end));
            return state.tree.search_up(len, low, high).ok_or(Errno::ENOMEM);
        }
        if args.addr != 0
            && let Some(hint) = page_up(args.addr).map(|a| a.max(MMAP_MIN))
            && let Some(range) = AddrRange::new(hint, len)
            && user.contains_range(&range)
            && !state.tree.overlaps(range)
            && state.tree.next(range.end).is_none_or(|next| range.end <= next.guarded_start())
        {
            return Ok(hint);
        }
        // Programs begin with a mapping of their first byte: leave room for the detours of its text.
        let program = args.file.as_ref().is_some_and(|f| f.offset == 0 && f.file.text().is_some());
        if program
            && len >= DETOUR_ROOM
            && self.space().call_entry().is_some()
            && let Some(found) = state.find_free(len.saturating_add(DETOUR_ROOM), user)
        {
            return Ok(found + DETOUR_ROOM);
        }
        state.find_free(len, user).ok_or(Errno::ENOMEM)
    }

    /// Puts a mapping on the host and into the tree, over what was there, which goes to `dropped`: files may be closed
    /// only after the lock is released.
    pub(crate) fn place(
        &self,
        state: &mut State,
        mut vma: Vma,
        pieces: &[MappedPiece],
        dropped: &mut Vec<Vma>,
    ) -> Result<()> {
        let range = vma.range();
        let occupied = state.tree.overlaps(range);
        if occupied {
            self.drop_detours(state, range);
        }
        if occupied && state.tree.count() + state.tree.splits(range) >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        let mapped = if vma.is_anon() {
            self.space().map(range, MapSource::Zero, vma.flags.prot(), Sharing::Private)
        } else {
            self.map_pieces(&mut vma, range, pieces, occupied)
        };
        if let Err(error) = mapped {
            // The host may have replaced part of the range already: what was there is gone.
            if self.space().unmap(range).is_ok() && occupied {
                dropped.append(&mut state.forget(range));
            }
            return Err(space_errno(error));
        }
        if occupied {
            dropped.append(&mut state.forget(range));
        }
        state.tree.insert(vma);
        state.peak = state.peak.max(state.tree.totals().all);
        Ok(())
    }

    /// Maps the parts of `within` that `pieces` back; the rest is left, or made, unmapped and resolved by a fault.
    pub(crate) fn map_pieces(
        &self,
        vma: &mut Vma,
        within: AddrRange,
        pieces: &[MappedPiece],
        occupied: bool,
    ) -> Result<(), SpaceError> {
        let Some(offset) = vma.file().map(|f| f.offset) else { return Ok(()) };
        let sharing = if vma.flags.is_shared() { Sharing::Shared } else { Sharing::Private };
        let writable = vma.flags.contains(VmFlags::MAYSHARE | VmFlags::MAYWRITE);
        let prot = vma.flags.prot();
        let mut done = within.start;
        for piece in pieces {
            let Some(piece) = clip(piece, vma.start, offset, within) else { continue };
            let start = vma.start + (piece.offset - offset);
            if start < done {
                // Pieces out of order or overlapping: the first wins.
                continue;
            }
            if occupied && done < start {
                self.space().unmap(AddrRange { start: done, end: start })?;
            }
            let source = MapSource::File { file: piece.fd.as_fd(), offset: piece.fd_offset, writable };
            let range = AddrRange { start, end: start + piece.len };
            self.space().map(range, source, prot, sharing)?;
            done = range.end;
            vma.add_resident(&piece);
        }
        if occupied && done < within.end {
            self.space().unmap(AddrRange { start: done, end: within.end })?;
        }
        Ok(())
    }

    /// Where `len` bytes would go if they were mapped now without a hint. Only the loader may rely on it, which has the
    /// space for itself.
    pub fn pick_free(&self, len: u64) -> Result<Addr> {
        self.lock().find_free(len, self.user_range()).ok_or(Errno::ENOMEM)
    }

    /// Whether nothing is mapped in the range and all of it could be.
    pub fn is_free(&self, range: AddrRange) -> bool {
        self.user_range().contains_range(&range) && !self.lock().tree.overlaps(range)
    }

    /// Unmaps a range. No mapping there is no error.
    pub fn munmap(&self, addr: Addr, len: u64) -> Result<()> {
        let len = page_up(len).filter(|l| *l > 0).ok_or(Errno::EINVAL)?;
        let range = AddrRange::new(addr, len).ok_or(Errno::EINVAL)?;
        if !addr.is_multiple_of(PAGE_SIZE) || range.end > self.user_range().end {
            return Err(Errno::EINVAL);
        }
        let mut state = self.lock();
        let dropped = self.remove(&mut state, range)?;
        drop(state);
        drop(dropped);
        Ok(())
    }

    /// Unmaps a range on the host and in the tree. Returns what must be dropped after the lock.
    pub(crate) fn remove(&self, state: &mut State, range: AddrRange) -> Result<Vec<Vma>> {
        let mut hit: Option<AddrRange> = None;
        for vma in state.tree.overlapping(range) {
            let part = vma.range().intersect(&range);
            hit = Some(AddrRange { start: hit.map_or(part.start, |h| h.start), end: part.end });
        }
        let Some(hit) = hit else { return Ok(Vec::new()) };
        if state.tree.splits(hit) == 2 && state.tree.count() >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.drop_detours(state, hit);
        self.space().unmap(hit).map_err(space_errno)?;
        Ok(state.forget(hit))
    }

    /// Sets the end of the heap and returns where it is then; on any failure that is where it was.
    pub fn brk(&self, to: Addr, limits: &MmLimits) -> Addr {
        let mut state = self.lock();
        let (start, old) = (state.layout.start_brk, state.layout.brk);
        if to < start || start == 0 {
            return old;
        }
        let data = state.layout.end_data.saturating_sub(state.layout.start_data);
        if (to - start).saturating_add(data) > limits.data {
            return old;
        }
        let (Some(new_end), Some(old_end)) = (page_up(to), page_up(old)) else { return old };
        if new_end == old_end {
            state.layout.brk = to;
            return to;
        }
        if new_end < old_end {
            let Ok(dropped) = self.remove(&mut state, AddrRange { start: new_end, end: old_end }) else {
                return old;
            };
            state.layout.brk = to;
            drop(state);
            drop(dropped);
            return to;
        }
        let range = AddrRange { start: old_end, end: new_end };
        let room = self.user_range().contains_range(&range)
            && !state.tree.overlaps(range)
            && state.tree.next(new_end).is_none_or(|next| new_end <= next.guarded_start());
        let flags = VmFlags::READ | VmFlags::WRITE | VmFlags::MAY_ACCESS | state.future;
        let locked = state.tree.totals().locked.saturating_add(range.len());
        if !room
            || state.tree.count() >= MAX_MAP_COUNT
            || check_limits(&state, None, flags, range.len(), limits).is_err()
            || flags.contains(VmFlags::LOCKED) && !limits.may_lock && locked > limits.memlock
        {
            return old;
        }
        let vma = Vma { start: old_end, end: new_end, flags, backing: Backing::Anon, anon_name: None };
        if self.place(&mut state, vma, &[], &mut Vec::new()).is_err() {
            return old;
        }
        state.layout.brk = to;
        drop(state);
        if flags & VmFlags::LOCK_MASK == VmFlags::LOCKED {
            let _ = self.make_resident(range);
        }
        to
    }

    /// Names anonymous memory (`prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME)`); `None` takes the name away. `ENOMEM` where
    /// part of the range is not mapped, `EBADF` where it is a file's.
    pub fn set_anon_name(&self, addr: Addr, len: u64, name: Option<&[u8]>) -> Result<()> {
        let len = page_up(len).ok_or(Errno::ENOMEM)?;
        let range = AddrRange::new(addr, len).ok_or(Errno::ENOMEM)?;
        if !addr.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let name: Option<Arc<[u8]>> = name.map(Arc::from);
        let mut state = self.lock();
        if state.tree.count() + state.tree.splits(range) > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        if state.tree.overlapping(range).any(|v| !v.is_anon()) {
            return Err(Errno::EBADF);
        }
        let whole = state.tree.covers(range);
        state.tree.update(range, |vma| vma.anon_name.clone_from(&name));
        if whole { Ok(()) } else { Err(Errno::ENOMEM) }
    }
}

/// `RLIMIT_AS` and `RLIMIT_DATA` for `grow` more bytes, of which those mapped in `replaced` come back
/// (`may_expand_vm`).
pub(crate) fn check_limits(
    state: &State,
    replaced: Option<AddrRange>,
    flags: VmFlags,
    grow: u64,
    limits: &MmLimits,
) -> Result<()> {
    let totals = state.tree.totals();
    let freed: u64 = match replaced {
        Some(range) if limits.address_space != u64::MAX => {
            state.tree.overlapping(range).map(|v| v.range().intersect(&range).len()).sum()
        }
        _ => 0,
    };
    if (totals.all - freed.min(totals.all)).saturating_add(grow) > limits.address_space {
        return Err(Errno::ENOMEM);
    }
    if flags.is_data() && totals.data.saturating_add(grow) > limits.data {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

/// The part of `piece` that shows in `within`, for a mapping that starts at `start` with byte `offset`.
fn clip(piece: &MappedPiece, start: Addr, offset: u64, within: AddrRange) -> Option<MappedPiece> {
    let low = offset + (within.start - start);
    let high = offset + (within.end - start);
    let from = piece.offset.max(low);
    let to = piece.offset.checked_add(piece.len)?.min(high);
    let aligned = from.is_multiple_of(PAGE_SIZE) && to.is_multiple_of(PAGE_SIZE);
    (from < to && aligned).then(|| MappedPiece {
        offset: from,
        len: to - from,
        fd: Arc::clone(&piece.fd),
        fd_offset: piece.fd_offset + (from - piece.offset),
        pin: piece.pin.clone(),
    })
}

/// Pieces that were asked for without the lock, and what must still hold when they are mapped.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub pieces: Vec<MappedPiece>,
    generation: u64,
}

impl Prepared {
    pub fn of(mm: &Mm, file: &dyn Mappable, offset: u64, len: u64, write: bool) -> Result<Self> {
        let generation = file.mappings().map_or(0, |mappings| {
            mappings.register(mm.id(), mm.myself());
            mappings.generation()
        });
        let pieces = match file.pieces(offset, len, write) {
            Ok(pieces) => pieces,
            Err(Errno::ENOSPC) => return Err(Errno::ENOMEM),
            Err(error) => return Err(error),
        };
        Ok(Self { pieces, generation })
    }

    /// Whether pages have left the file since. Call it under the lock.
    pub fn is_stale(&self, file: &dyn Mappable) -> bool {
        file.mappings().is_some_and(|m| m.generation() != self.generation)
    }
}

impl State {
    /// Takes a range out of the tree, and lets the search for free addresses see the hole.
    pub fn forget(&mut self, range: AddrRange) -> Vec<Vma> {
        let removed = self.tree.remove(range);
        let hole_end = self.tree.next(range.start).map_or(u64::MAX, Vma::guarded_start).min(self.mmap_base);
        self.search_from = self.search_from.max(hole_end);
        removed
    }

    /// The highest free address for `len` bytes below the mmap base, else the lowest above it.
    pub fn find_free(&mut self, len: u64, user: AddrRange) -> Option<Addr> {
        if len <= self.passed_hole {
            self.search_from = self.mmap_base;
            self.passed_hole = 0;
        }
        let (found, passed) = self.tree.search_down(len, user.start, self.search_from);
        match found {
            Some(addr) => {
                self.passed_hole = self.passed_hole.max(passed);
                self.search_from = addr + len;
                Some(addr)
            }
            None => self.tree.search_up(len, self.mmap_base, user.end),
        }
    }
}

/// Whether an access of this kind is allowed by the mapping's protection.
pub(crate) fn allows(flags: VmFlags, access: Prot) -> bool {
    // x86 has no pages that can be written or executed and not read.
    let readable = flags.intersects(VmFlags::ACCESS);
    (!access.contains(Prot::WRITE) || flags.contains(VmFlags::WRITE))
        && (!access.contains(Prot::EXEC) || flags.contains(VmFlags::EXEC))
        && (!access.contains(Prot::READ) || readable)
}
