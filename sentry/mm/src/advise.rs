//! `madvise(2)`, `msync(2)`, `mincore(2)` and the `mlock(2)` family.

use std::sync::Arc;

use platform::{Addr, AddrRange, Advice, PAGE_SIZE, Prot};
use sentry_base::{Errno, Result};

use crate::fault::FaultOutcome;
use crate::flags::MAX_MAP_COUNT;
use crate::map::page_up;
use crate::mm::{Mm, State, space_errno};
use crate::vma::Vma;
use crate::{Mappable, MmLimits, VmFlags};

/// `MADV_*` with Linux's values on x86-64.
pub mod madv {
    pub const NORMAL: i32 = 0;
    pub const RANDOM: i32 = 1;
    pub const SEQUENTIAL: i32 = 2;
    pub const WILLNEED: i32 = 3;
    pub const DONTNEED: i32 = 4;
    pub const FREE: i32 = 8;
    pub const REMOVE: i32 = 9;
    pub const DONTFORK: i32 = 10;
    pub const DOFORK: i32 = 11;
    pub const MERGEABLE: i32 = 12;
    pub const UNMERGEABLE: i32 = 13;
    pub const HUGEPAGE: i32 = 14;
    pub const NOHUGEPAGE: i32 = 15;
    pub const DONTDUMP: i32 = 16;
    pub const DODUMP: i32 = 17;
    pub const WIPEONFORK: i32 = 18;
    pub const KEEPONFORK: i32 = 19;
    pub const COLD: i32 = 20;
    pub const PAGEOUT: i32 = 21;
    pub const POPULATE_READ: i32 = 22;
    pub const POPULATE_WRITE: i32 = 23;
    pub const DONTNEED_LOCKED: i32 = 24;
    pub const COLLAPSE: i32 = 25;
    pub const HWPOISON: i32 = 100;
    pub const SOFT_OFFLINE: i32 = 101;
}

/// Bytes that one order to the host makes resident: others wait for the lock meanwhile.
const POPULATE_STEP: u64 = 16 << 20;

/// A range argument: aligned start, length rounded up. `None` for an empty range.
fn advice_range(addr: Addr, len: u64, wraps: Errno) -> Result<Option<AddrRange>> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let len = page_up(len).ok_or(wraps)?;
    let range = AddrRange::new(addr, len).ok_or(wraps)?;
    Ok(Some(range).filter(|r| !r.is_empty()))
}

/// What an advice does to a mapping.
enum Effect {
    /// Known and without effect.
    None,
    /// Adds and takes away flags.
    Flags(VmFlags, VmFlags),
    /// The host is told.
    Host(Advice),
    /// Both.
    FlagsAndHost(VmFlags, VmFlags, Advice),
    /// A hole in the file.
    Punch,
    Populate(Prot),
}

fn effect(advice: i32) -> Result<Effect> {
    let none = VmFlags::empty();
    let hints = VmFlags::SEQ_READ | VmFlags::RAND_READ;
    Ok(match advice {
        madv::NORMAL => Effect::Flags(none, hints),
        madv::RANDOM => Effect::Flags(VmFlags::RAND_READ, VmFlags::SEQ_READ),
        madv::SEQUENTIAL => Effect::Flags(VmFlags::SEQ_READ, VmFlags::RAND_READ),
        madv::WILLNEED => Effect::Host(Advice::WillNeed),
        madv::DONTNEED | madv::DONTNEED_LOCKED => Effect::Host(Advice::DontNeed),
        madv::FREE => Effect::Host(Advice::Free),
        madv::REMOVE => Effect::Punch,
        madv::DONTFORK => Effect::Flags(VmFlags::DONTCOPY, none),
        madv::DOFORK => Effect::Flags(none, VmFlags::DONTCOPY),
        madv::MERGEABLE => Effect::Flags(VmFlags::MERGEABLE, none),
        madv::UNMERGEABLE => Effect::Flags(none, VmFlags::MERGEABLE),
        madv::HUGEPAGE => Effect::FlagsAndHost(VmFlags::HUGEPAGE, VmFlags::NOHUGEPAGE, Advice::HugePage),
        madv::NOHUGEPAGE => Effect::FlagsAndHost(VmFlags::NOHUGEPAGE, VmFlags::HUGEPAGE, Advice::NoHugePage),
        madv::DONTDUMP => Effect::Flags(VmFlags::DONTDUMP, none),
        madv::DODUMP => Effect::Flags(none, VmFlags::DONTDUMP),
        madv::WIPEONFORK => Effect::Flags(VmFlags::WIPEONFORK, none),
        madv::KEEPONFORK => Effect::Flags(none, VmFlags::WIPEONFORK),
        madv::COLD | madv::PAGEOUT | madv::COLLAPSE => Effect::None,
        madv::POPULATE_READ => Effect::Populate(Prot::READ),
        madv::POPULATE_WRITE => Effect::Populate(Prot::WRITE),
        madv::HWPOISON | madv::SOFT_OFFLINE => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    })
}

/// Whether a mapping takes this advice.
fn accepts(vma: &Vma, advice: i32) -> Result<()> {
    let locked = vma.flags.contains(VmFlags::LOCKED);
    match advice {
        madv::DONTNEED | madv::COLD | madv::PAGEOUT if locked => Err(Errno::EINVAL),
        madv::FREE | madv::WIPEONFORK if !vma.is_anon() => Err(Errno::EINVAL),
        madv::REMOVE if locked || vma.is_anon() => Err(Errno::EINVAL),
        madv::REMOVE if !vma.flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE) => Err(Errno::EACCES),
        _ => Ok(()),
    }
}

impl Mm {
    /// Gives advice on a range, or an order (`DONTNEED`). Gaps in the range are `ENOMEM` after the rest is done.
    pub fn madvise(&self, addr: Addr, len: u64, advice: i32) -> Result<()> {
        let effect = effect(advice)?;
        let Some(range) = advice_range(addr, len, Errno::EINVAL)? else { return Ok(()) };
        match effect {
            Effect::Populate(access) => return self.populate(range, access),
            Effect::Punch => return self.punch(range),
            _ => {}
        }
        let mut state = self.lock();
        if state.tree.count() + state.tree.splits(range) > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        // Mappings before one that refuses have taken the advice.
        let mut taken = range;
        let mut refused = None;
        for vma in state.tree.overlapping(range) {
            if let Err(error) = accepts(vma, advice) {
                taken.end = vma.start.max(range.start);
                refused = Some(error);
                break;
            }
        }
        let gap = state.tree.first_gap(taken).map(|_| Errno::ENOMEM);
        match effect {
            Effect::Flags(add, remove) => {
                state.tree.update(taken, |vma| vma.flags = (vma.flags - remove) | add);
            }
            Effect::Host(advice) => self.advise_host(&state, taken, advice)?,
            Effect::FlagsAndHost(add, remove, advice) => {
                state.tree.update(taken, |vma| vma.flags = (vma.flags - remove) | add);
                // A host without huge pages refuses; the flag is all that the application can see then.
                let _ = self.advise_host(&state, taken, advice);
            }
            _ => {}
        }
        refused.or(gap).map_or(Ok(()), Err)
    }

    /// Tells the host, once for each run of mapped addresses.
    fn advise_host(&self, state: &State, range: AddrRange, advice: Advice) -> Result<()> {
        let mut runs: Vec<AddrRange> = Vec::new();
        for vma in state.tree.overlapping(range) {
            for part in vma.resident_ranges(range) {
                match runs.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => runs.push(part),
                }
            }
        }
        runs.into_iter().try_for_each(|run| self.space().advise(run, advice).map_err(space_errno))
    }

    /// Touches every page of a range (`MADV_POPULATE_READ`, `MADV_POPULATE_WRITE`).
    fn populate(&self, range: AddrRange, access: Prot) -> Result<()> {
        let advice = if access.contains(Prot::WRITE) { Advice::PopulateWrite } else { Advice::PopulateRead };
        let mut at = range.start;
        while at < range.end {
            let state = self.lock();
            let vma = state.tree.find(at).ok_or(Errno::ENOMEM)?;
            if !crate::map::allows(vma.flags, access) {
                return Err(Errno::EINVAL);
            }
            let (end, missing) = (vma.end.min(range.end), vma.missing_around(at));
            if missing.is_some() {
                drop(state);
                match self.fault(at, access) {
                    FaultOutcome::Resolved => continue,
                    FaultOutcome::Segv(_) | FaultOutcome::Bus => return Err(Errno::EFAULT),
                }
            }
            let ahead = AddrRange { start: at, end: end.min(at.saturating_add(POPULATE_STEP)) };
            let next = vma.resident_ranges(ahead).first().map_or(end, |r| r.end);
            self.space().advise(AddrRange { start: at, end: next }, advice).map_err(
                |e| match space_errno(e) {
                    Errno::ENOMEM => Errno::ENOMEM,
                    _ => Errno::EFAULT,
                },
            )?;
            at = next;
        }
        Ok(())
    }

    /// Makes what is mapped in a range resident, as `MAP_POPULATE` and `mlock` do; memory without access stays as it is
    /// (`__mm_populate`). What cannot be made resident is found out when it is touched.
    pub(crate) fn make_resident(&self, range: AddrRange) -> Result<()> {
        let parts: Vec<(AddrRange, Prot)> = {
            let state = self.lock();
            state
                .tree
                .overlapping(range)
                .filter(|v| v.flags.intersects(VmFlags::ACCESS))
                .map(|v| {
                    // A shared page is not made dirty; a private one is copied before it is needed.
                    let private = v.flags.contains(VmFlags::WRITE) && !v.flags.contains(VmFlags::SHARED);
                    (v.range().intersect(&range), if private { Prot::WRITE } else { Prot::READ })
                })
                .collect()
        };
        parts.into_iter().try_for_each(|(part, access)| self.populate(part, access))
    }

    fn punch(&self, range: AddrRange) -> Result<()> {
        let parts = self.file_parts(range, |vma| accepts(vma, madv::REMOVE))?;
        for (file, offset, len) in &parts.files {
            file.punch(*offset, *len)?;
        }
        if parts.gap { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// The files behind a range, to be called without the lock.
    fn file_parts(&self, range: AddrRange, check: impl Fn(&Vma) -> Result<()>) -> Result<FileParts> {
        let state = self.lock();
        let (mut files, mut written) = (Vec::new(), Vec::new());
        for vma in state.tree.overlapping(range) {
            check(vma)?;
            if let Some(file) = vma.file().filter(|_| vma.flags.contains(VmFlags::SHARED)) {
                let part = vma.range().intersect(&range);
                let offset = file.offset + (part.start - vma.start);
                files.push((Arc::clone(&file.file), offset, part.len()));
                if vma.flags.contains(VmFlags::WRITE) {
                    written.push(Arc::clone(&file.file));
                }
            }
        }
        Ok(FileParts { files, written, gap: !state.tree.covers(range) })
    }

    /// Writes shared file pages back. `flags` are `MS_ASYNC` 1, `MS_INVALIDATE` 2, `MS_SYNC` 4.
    pub fn msync(&self, addr: Addr, len: u64, flags: u32) -> Result<()> {
        const ASYNC: u32 = 1;
        const INVALIDATE: u32 = 2;
        const SYNC: u32 = 4;
        if flags & !(ASYNC | INVALIDATE | SYNC) != 0 || flags & (ASYNC | SYNC) == ASYNC | SYNC {
            return Err(Errno::EINVAL);
        }
        let Some(range) = advice_range(addr, len, Errno::ENOMEM)? else { return Ok(()) };
        let parts = self.file_parts(range, |vma| {
            let busy = flags & INVALIDATE != 0 && vma.flags.contains(VmFlags::LOCKED);
            if busy { Err(Errno::EBUSY) } else { Ok(()) }
        })?;
        parts.written.iter().for_each(|file| file.written());
        if flags & SYNC != 0 {
            for (file, offset, len) in &parts.files {
                file.sync(*offset, *len)?;
            }
        }
        if parts.gap { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Checks the arguments of `mincore(2)`; `None` for an empty range.
    pub fn mincore_range(&self, addr: Addr, len: u64) -> Result<Option<AddrRange>> {
        advice_range(addr, len, Errno::ENOMEM)
    }

    /// Accounts a range as locked; the host pages nothing of a sandbox out on its own account. `on_fault` is
    /// `mlock2(MLOCK_ONFAULT)`.
    pub fn mlock(&self, addr: Addr, len: u64, on_fault: bool, limits: &MmLimits) -> Result<()> {
        if !limits.can_lock() {
            return Err(Errno::EPERM);
        }
        let Some(range) = lock_range(addr, len)? else { return Ok(()) };
        let mut state = self.lock();
        if !limits.may_lock {
            let already: u64 = state
                .tree
                .overlapping(range)
                .filter(|v| v.flags.contains(VmFlags::LOCKED))
                .map(|v| v.range().intersect(&range).len())
                .sum();
            let locked = (state.tree.totals().locked - already).saturating_add(range.len());
            if locked > limits.memlock {
                return Err(Errno::ENOMEM);
            }
        }
        let add = lock_flags(on_fault);
        set_locked(&mut state, range, add)?;
        drop(state);
        if on_fault { Ok(()) } else { self.make_resident(range).map_err(|_| Errno::ENOMEM) }
    }

    pub fn munlock(&self, addr: Addr, len: u64) -> Result<()> {
        let Some(range) = lock_range(addr, len)? else { return Ok(()) };
        set_locked(&mut self.lock(), range, VmFlags::empty())
    }

    /// `mlockall(2)`; `flags` are `MCL_CURRENT` 1, `MCL_FUTURE` 2, `MCL_ONFAULT` 4.
    pub fn mlockall(&self, flags: u32, limits: &MmLimits) -> Result<()> {
        const CURRENT: u32 = 1;
        const FUTURE: u32 = 2;
        const ONFAULT: u32 = 4;
        if flags == 0 || flags & !(CURRENT | FUTURE | ONFAULT) != 0 || flags == ONFAULT {
            return Err(Errno::EINVAL);
        }
        if !limits.can_lock() {
            return Err(Errno::EPERM);
        }
        let add = lock_flags(flags & ONFAULT != 0);
        let mut state = self.lock();
        let total = state.tree.totals().all;
        if flags & CURRENT != 0 && !limits.may_lock && total > limits.memlock {
            return Err(Errno::ENOMEM);
        }
        state.future = if flags & FUTURE != 0 { add } else { VmFlags::empty() };
        if flags & CURRENT != 0 {
            state.tree.update(self.user_range(), |vma| vma.flags = (vma.flags - VmFlags::LOCK_MASK) | add);
            drop(state);
            if flags & ONFAULT == 0 {
                // What cannot be had now is had at a touch.
                let _ = self.make_resident(self.user_range());
            }
        }
        Ok(())
    }

    pub fn munlockall(&self) {
        let mut state = self.lock();
        state.future = VmFlags::empty();
        state.tree.update(self.user_range(), |vma| vma.flags.remove(VmFlags::LOCK_MASK));
    }
}

struct FileParts {
    files: Vec<(Arc<dyn Mappable>, u64, u64)>,
    /// Those that are mapped for writing.
    written: Vec<Arc<dyn Mappable>>,
    gap: bool,
}

fn lock_flags(on_fault: bool) -> VmFlags {
    if on_fault { VmFlags::LOCK_MASK } else { VmFlags::LOCKED }
}

/// `mlock` takes any start and rounds it down.
fn lock_range(addr: Addr, len: u64) -> Result<Option<AddrRange>> {
    let offset = addr % PAGE_SIZE;
    // Wraps as on Linux: the longest lengths are none.
    let len = len.wrapping_add(offset).wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1);
    let range = AddrRange::new(addr - offset, len).ok_or(Errno::EINVAL)?;
    Ok(Some(range).filter(|r| !r.is_empty()))
}

fn set_locked(state: &mut State, range: AddrRange, add: VmFlags) -> Result<()> {
    if state.tree.count() + state.tree.splits(range) > MAX_MAP_COUNT {
        return Err(Errno::ENOMEM);
    }
    let end = state.tree.first_gap(range);
    let range = AddrRange { start: range.start, end: end.unwrap_or(range.end) };
    if !range.is_empty() {
        state.tree.update(range, |vma| vma.flags = (vma.flags - VmFlags::LOCK_MASK) | add);
    }
    if end.is_some() { Err(Errno::ENOMEM) } else { Ok(()) }
}
