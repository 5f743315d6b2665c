//! `mremap(2)`.

use platform::{Addr, AddrRange, MapSource, PAGE_SIZE, Sharing};
use sentry_base::{Errno, Result};

use crate::flags::MAX_MAP_COUNT;
use crate::map::{check_limits, page_up};
use crate::mm::{Mm, State, space_errno};
use crate::vma::Vma;
use crate::{MmLimits, VmFlags};

/// `MREMAP_*` with Linux's values.
pub mod remap_flags {
    pub const MAYMOVE: u32 = 1;
    pub const FIXED: u32 = 2;
    pub const DONTUNMAP: u32 = 4;
}
use remap_flags as rf;

/// What a call wants, with lengths in whole pages.
#[derive(Debug, Clone, Copy)]
struct Move {
    addr: Addr,
    old_len: u64,
    new_len: u64,
    keep_source: bool,
}

impl Move {
    fn from(&self) -> AddrRange {
        AddrRange { start: self.addr, end: self.addr + self.old_len }
    }
}

impl Mm {
    /// Grows, shrinks or moves a mapping and returns its address.
    pub fn mremap(
        &self,
        addr: Addr,
        old_len: u64,
        new_len: u64,
        flags: u32,
        new_addr: Addr,
        limits: &MmLimits,
    ) -> Result<Addr> {
        let keep_source = flags & rf::DONTUNMAP != 0;
        let fixed = flags & rf::FIXED != 0;
        let may_move = flags & rf::MAYMOVE != 0;
        if flags & !(rf::MAYMOVE | rf::FIXED | rf::DONTUNMAP) != 0
            || fixed && !may_move
            || keep_source && (!may_move || old_len != new_len)
            || !addr.is_multiple_of(PAGE_SIZE)
        {
            return Err(Errno::EINVAL);
        }
        let old_len = page_up(old_len).ok_or(Errno::EINVAL)?;
        let new_len = page_up(new_len).filter(|l| *l > 0).ok_or(Errno::EINVAL)?;
        let user = self.user_range();
        AddrRange::new(addr, old_len).filter(|r| r.end <= user.end).ok_or(Errno::EFAULT)?;
        let mut dropped = Vec::new();
        let mut state = self.lock();
        state.tree.find(addr).ok_or(Errno::EFAULT)?;
        self.undo_detours(&mut state, AddrRange { start: addr, end: addr + old_len });
        let mut plan = Move { addr, old_len, new_len, keep_source };
        let result = if fixed || keep_source {
            self.remap_to(&mut state, &mut plan, fixed.then_some(new_addr), limits, &mut dropped)
        } else if old_len >= new_len {
            let tail = AddrRange { start: addr + new_len, end: addr + old_len };
            self.remove(&mut state, tail).map(|mut removed| {
                dropped.append(&mut removed);
                addr
            })
        } else {
            self.grow(&mut state, plan, may_move, limits, &mut dropped)
        };
        drop(state);
        drop(dropped);
        result
    }

    /// The forms that name, or ask for, a new place (`mremap_to`).
    fn remap_to(
        &self,
        state: &mut State,
        plan: &mut Move,
        target: Option<Addr>,
        limits: &MmLimits,
        dropped: &mut Vec<Vma>,
    ) -> Result<Addr> {
        let user = self.user_range();
        if let Some(target) = target {
            if !target.is_multiple_of(PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            let to = AddrRange::new(target, plan.new_len).ok_or(Errno::EINVAL)?;
            if !user.contains_range(&to) || to.overlaps(&plan.from()) {
                return Err(Errno::EINVAL);
            }
            if state.tree.count() + 2 >= MAX_MAP_COUNT {
                return Err(Errno::ENOMEM);
            }
            dropped.append(&mut self.remove(state, to)?);
        }
        if plan.old_len > plan.new_len {
            let tail = AddrRange { start: plan.addr + plan.new_len, end: plan.addr + plan.old_len };
            dropped.append(&mut self.remove(state, tail)?);
            plan.old_len = plan.new_len;
        }
        check_resize(state, *plan, limits)?;
        let target = match target {
            Some(target) => target,
            None => state.find_free(plan.new_len, user).ok_or(Errno::ENOMEM)?,
        };
        self.move_to(state, *plan, target, dropped)
    }

    fn grow(
        &self,
        state: &mut State,
        plan: Move,
        may_move: bool,
        limits: &MmLimits,
        dropped: &mut Vec<Vma>,
    ) -> Result<Addr> {
        check_resize(state, plan, limits)?;
        let vma = state.tree.find(plan.addr).ok_or(Errno::EFAULT)?;
        let grown = AddrRange { start: plan.addr + plan.old_len, end: plan.addr + plan.new_len };
        let in_place = plan.old_len > 0
            && vma.end == grown.start
            && self.user_range().contains_range(&grown)
            && state.tree.next(grown.start).is_none_or(|next| grown.end <= next.guarded_start());
        if in_place {
            let (mut more, anon) = (vma.clone(), vma.is_anon());
            let old_start = more.start;
            more.start = grown.start;
            more.end = grown.end;
            if let Some(file) = more.file_mut() {
                file.offset += grown.start - old_start;
                // The host gets the new pages when they are touched.
                file.resident.clear();
            }
            if anon {
                self.place(state, more, &[], dropped)?;
            } else {
                state.tree.insert(more);
            }
            return Ok(plan.addr);
        }
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let target = state.find_free(plan.new_len, self.user_range()).ok_or(Errno::ENOMEM)?;
        self.move_to(state, plan, target, dropped)
    }

    /// Moves the pages to free addresses (`move_vma`).
    fn move_to(&self, state: &mut State, plan: Move, target: Addr, dropped: &mut Vec<Vma>) -> Result<Addr> {
        if state.tree.count() + 3 > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        let from = plan.from();
        let vma = state.tree.find(plan.addr).ok_or(Errno::EFAULT)?;
        let mut moved = vma.clone();
        if moved.start < from.start {
            moved = moved.split_off(from.start);
        }
        if plan.old_len > 0 && moved.end > from.end {
            moved.split_off(from.end);
        }
        let anon = moved.is_anon();
        if plan.old_len == 0 {
            // A second view of shared memory, which is filled as it is touched.
            if let Some(file) = moved.file_mut() {
                file.resident.clear();
            }
        } else if anon {
            self.space().move_pages(from, target, plan.new_len).map_err(space_errno)?;
        } else {
            for part in moved.resident_ranges(from) {
                let to = target + (part.start - from.start);
                if let Err(error) = self.space().move_pages(part, to, part.len()) {
                    // Some pieces are at the new place and some at the old one. A file's pages can be mapped again
                    // where they belong, so both places are emptied.
                    let to = AddrRange { start: target, end: target + plan.new_len };
                    if self.space().unmap(to).is_ok() && self.space().unmap(from).is_ok() {
                        dropped.push(moved);
                        state.tree.update(from, |vma| vma.drop_resident(0, u64::MAX));
                    }
                    return Err(space_errno(error));
                }
            }
        }
        if plan.keep_source {
            let mut emptied = None;
            state.tree.update(from, |vma| {
                vma.flags.remove(VmFlags::LOCK_MASK);
                vma.drop_resident(0, u64::MAX);
                emptied = Some(vma.flags.prot());
            });
            if let (true, Some(prot)) = (anon, emptied) {
                self.space().map(from, MapSource::Zero, prot, Sharing::Private).map_err(space_errno)?;
            }
        } else if plan.old_len > 0 {
            dropped.append(&mut state.forget(from));
        }
        moved.start = target;
        moved.end = target + plan.new_len;
        state.tree.insert(moved);
        state.peak = state.peak.max(state.tree.totals().all);
        Ok(target)
    }
}

/// Whether the one mapping at the start may become so long (`vma_to_resize`).
fn check_resize(state: &State, plan: Move, limits: &MmLimits) -> Result<()> {
    let vma = state.tree.find(plan.addr).ok_or(Errno::EFAULT)?;
    if plan.old_len == 0 && !vma.flags.is_shared() {
        return Err(Errno::EINVAL);
    }
    if plan.old_len > vma.end - plan.addr {
        return Err(Errno::EFAULT);
    }
    if let Some(file) = vma.file() {
        let start = file.offset + (plan.addr - vma.start);
        if start.checked_add(plan.new_len).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Errno::EINVAL);
        }
    }
    let grow = plan.new_len - plan.old_len.min(plan.new_len);
    if vma.flags.contains(VmFlags::LOCKED)
        && !limits.may_lock
        && state.tree.totals().locked.saturating_add(grow) > limits.memlock
    {
        return Err(Errno::EAGAIN);
    }
    let grow = if plan.keep_source { plan.new_len } else { grow };
    check_limits(state, None, vma.flags, grow, limits)
}
