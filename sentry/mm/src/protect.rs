//! `mprotect(2)`.

use platform::{Addr, AddrRange, PAGE_SIZE};
use sentry_base::{Errno, Result};

use crate::flags::MAX_MAP_COUNT;
use crate::map::page_up;
use crate::mm::{Mm, State, space_errno};
use crate::{MmLimits, VmFlags};

const PROT_SEM: u32 = 0x8;
const PROT_GROWSDOWN: u32 = 0x0100_0000;
const PROT_GROWSUP: u32 = 0x0200_0000;

impl Mm {
    /// Changes the protection of a range. As on Linux the mappings before the first one that refuses have changed.
    pub fn mprotect(&self, addr: Addr, len: u64, prot: u32, limits: &MmLimits) -> Result<()> {
        let grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
        let prot = prot & !grows;
        if grows == PROT_GROWSDOWN | PROT_GROWSUP || !addr.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let len = page_up(len).ok_or(Errno::ENOMEM)?;
        let mut range = AddrRange::new(addr, len).ok_or(Errno::ENOMEM)?;
        if prot & !(7 | PROT_SEM) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut state = self.lock();
        let first = state.tree.overlapping(range).next().ok_or(Errno::ENOMEM)?;
        match grows {
            PROT_GROWSDOWN if !first.flags.contains(VmFlags::GROWSDOWN) => return Err(Errno::EINVAL),
            PROT_GROWSDOWN => range.start = first.start,
            PROT_GROWSUP => return Err(Errno::EINVAL),
            _ => {}
        }
        let access = VmFlags::from_prot(prot);
        let (end, refused) = allowed_until(&state, range, access, limits);
        range.end = end;
        if access.contains(VmFlags::WRITE) {
            self.undo_detours(&mut state, range);
        }
        let (end, failed) = self.protect_host(&state, range, access);
        range.end = end;
        if !range.is_empty() {
            state.tree.update(range, |vma| vma.flags = (vma.flags - VmFlags::ACCESS) | access);
        }
        failed.or(refused).map_or(Ok(()), Err)
    }

    /// Protects what the host has of the range, in as few calls as there are gaps. Returns how far it came.
    fn protect_host(&self, state: &State, range: AddrRange, access: VmFlags) -> (Addr, Option<Errno>) {
        let mut runs: Vec<AddrRange> = Vec::new();
        for vma in state.tree.overlapping(range) {
            if vma.flags & VmFlags::ACCESS == access {
                continue;
            }
            for part in vma.resident_ranges(range) {
                match runs.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => runs.push(part),
                }
            }
        }
        for run in runs {
            if let Err(error) = self.space().protect(run, access.prot()) {
                return (run.start, Some(space_errno(error)));
            }
        }
        (range.end, None)
    }
}

/// How far the range may get this access, and why no further.
fn allowed_until(
    state: &State,
    range: AddrRange,
    access: VmFlags,
    limits: &MmLimits,
) -> (Addr, Option<Errno>) {
    if state.tree.count() + state.tree.splits(range) > MAX_MAP_COUNT {
        return (range.start, Some(Errno::ENOMEM));
    }
    let mut at = range.start;
    let mut data = state.tree.totals().data;
    for vma in state.tree.overlapping(range) {
        if vma.start > at {
            return (at, Some(Errno::ENOMEM));
        }
        // VM_MAYREAD and so on are VM_READ and so on, four bits up.
        let may = VmFlags::from_bits_truncate(vma.flags.bits() >> 4);
        let new = (vma.flags - VmFlags::ACCESS) | access;
        if !may.contains(access) {
            return (at, Some(Errno::EACCES));
        }
        let end = vma.end.min(range.end);
        if new.is_data() && !vma.flags.is_data() {
            data = data.saturating_add(end - at);
            if data > limits.data {
                return (at, Some(Errno::ENOMEM));
            }
        }
        at = end;
    }
    if at < range.end { (at, Some(Errno::ENOMEM)) } else { (at, None) }
}
