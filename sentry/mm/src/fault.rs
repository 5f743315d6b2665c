//! Faults that reach the Sentry, copies that fault, atomic words and futex keys.

use std::sync::Arc;

use platform::{Addr, AddrRange, AtomicOp, Fault, FaultMode, PAGE_SIZE, Prot};
use sentry_base::{Errno, Result};
use sentry_memory::UserMemory;

use crate::VmFlags;
use crate::flags::{MAX_MAP_COUNT, STACK_GUARD_GAP};
use crate::map::{Prepared, allows};
use crate::mm::{MMAP_MIN, Mm, State};
use crate::vma::{Backing, Vma};

/// `si_code` of a SIGSEGV (`sigaction(2)`): nothing is mapped there.
pub const SEGV_MAPERR: i32 = 1;
/// `si_code` of a SIGSEGV: the mapping does not allow the access.
pub const SEGV_ACCERR: i32 = 2;

/// What a fault leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The access can be tried again.
    Resolved,
    /// SIGSEGV with this `si_code`.
    Segv(i32),
    /// SIGBUS with `BUS_ADRERR`: the page is past the end of its file.
    Bus,
}

/// A stack grows by at least this much, so that not every page of it costs a trap.
const STACK_STEP: u64 = 128 << 10;
/// Pages of a file are resolved in aligned windows of this size.
const WINDOW: u64 = 2 << 20;
/// A present page that faults this often in a row is past the end of a host file, or lost.
const SPURIOUS_MAX: u32 = 8;

/// Identifies the word that a futex call names (`union futex_key`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FutexKey {
    Private { mm: u64, addr: Addr },
    Shared { device: u64, inode: u64, offset: u64 },
}

enum Step {
    Over(FaultOutcome),
    Retry,
}

impl Mm {
    /// Resolves a fault of the application, or of a copy on its behalf.
    pub fn fault(&self, addr: Addr, access: Prot) -> FaultOutcome {
        // Each retry means that the mapping or the file has changed meanwhile.
        for _ in 0..16 {
            if let Step::Over(outcome) = self.fault_step(addr, access) {
                return outcome;
            }
        }
        FaultOutcome::Resolved
    }

    fn fault_step(&self, addr: Addr, access: Prot) -> Step {
        let mut state = self.lock();
        let Some(vma) = state.tree.find(addr) else {
            return Step::Over(self.grow_stack(&mut state, addr, access));
        };
        if !allows(vma.flags, access) {
            return Step::Over(FaultOutcome::Segv(SEGV_ACCERR));
        }
        let page = addr - addr % PAGE_SIZE;
        let Some(file) = vma.file() else {
            return Step::Over(spurious(&mut state, page, FaultOutcome::Segv(SEGV_MAPERR)));
        };
        let (source, offset) = (Arc::clone(&file.file), file.offset);
        let at = offset + (page - vma.start);
        let write = vma.flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE);
        let window = match vma.missing_around(addr) {
            None if source.is_host_file() => AddrRange { start: page, end: page + PAGE_SIZE },
            None => return Step::Over(spurious(&mut state, page, FaultOutcome::Bus)),
            Some(gap) if source.is_host_file() => gap,
            Some(gap) => {
                let start = addr - addr % WINDOW;
                AddrRange { start, end: start.saturating_add(WINDOW) }.intersect(&gap)
            }
        };
        let (from, known) = (offset + (window.start - vma.start), vma.missing_around(addr).is_none());
        drop(state);

        let Ok(prepared) = Prepared::of(self, source.as_ref(), from, window.len(), write) else {
            return Step::Over(FaultOutcome::Bus);
        };
        if !prepared.pieces.iter().any(|p| p.offset <= at && at - p.offset < p.len) {
            return Step::Over(FaultOutcome::Bus);
        }
        let mut state = self.lock();
        if known {
            return Step::Over(spurious(&mut state, page, FaultOutcome::Bus));
        }
        if prepared.is_stale(source.as_ref()) {
            return Step::Retry;
        }
        let Some(start) = state.tree.find(addr).map(|v| v.start) else { return Step::Retry };
        let Some(vma) = state.tree.get_mut(start) else { return Step::Retry };
        let same = |file: &crate::vma::FileBacking| file.is_file(source.as_ref());
        if !vma.file().is_some_and(|f| same(f) && f.offset + (page - vma.start) == at) {
            return Step::Retry;
        }
        // Another fault may have resolved part of the window, or all of it.
        let Some(gap) = vma.missing_around(addr) else { return Step::Over(FaultOutcome::Resolved) };
        let window = window.intersect(&gap);
        match self.map_pieces(vma, window, &prepared.pieces, false) {
            Ok(()) => Step::Over(FaultOutcome::Resolved),
            Err(_) => Step::Over(FaultOutcome::Bus),
        }
    }

    /// Grows the stack down to `addr` if a growing mapping is next and may become so long (`expand_downwards`).
    fn grow_stack(&self, state: &mut State, addr: Addr, access: Prot) -> FaultOutcome {
        const NO: FaultOutcome = FaultOutcome::Segv(SEGV_MAPERR);
        let Some(vma) = state.tree.next(addr).filter(|v| v.flags.contains(VmFlags::GROWSDOWN)) else {
            return NO;
        };
        let page = addr - addr % PAGE_SIZE;
        let (old, end, flags) = (vma.start, vma.end, vma.flags);
        let mut lowest = MMAP_MIN.max(self.user_range().start).max(end.saturating_sub(state.stack_limit));
        if let Some(below) = state.tree.previous(old) {
            let guarded =
                below.flags.intersects(VmFlags::ACCESS) && !below.flags.contains(VmFlags::GROWSDOWN);
            lowest = lowest.max(if guarded { below.end.saturating_add(STACK_GUARD_GAP) } else { below.end });
        }
        let lowest = lowest.next_multiple_of(PAGE_SIZE);
        if page < lowest || state.tree.count() >= MAX_MAP_COUNT {
            return NO;
        }
        if !allows(flags, access) {
            return FaultOutcome::Segv(SEGV_ACCERR);
        }
        let start = page.min(old.saturating_sub(STACK_STEP)).max(lowest);
        let more = Vma { start, end: old, flags, backing: Backing::Anon, anon_name: None };
        match self.place(state, more, &[], &mut Vec::new()) {
            Ok(()) => FaultOutcome::Resolved,
            Err(_) => NO,
        }
    }

    /// An atomic operation on an aligned word; returns the old value. `EFAULT` for memory that may not be touched.
    pub fn atomic_u32(&self, addr: Addr, op: AtomicOp) -> Result<u32> {
        let mut tries = 0;
        loop {
            match self.space().atomic_u32(addr, op) {
                Ok(old) => return Ok(old),
                Err(_) if tries >= 2 => return Err(Errno::EFAULT),
                Err(fault) => self.settle(fault)?,
            }
            tries += 1;
        }
    }

    pub fn load_u32(&self, addr: Addr) -> Result<u32> {
        self.atomic_u32(addr, AtomicOp::Load)
    }

    /// Stores `new` if the word is `current`; returns the old value either way.
    pub fn cmpxchg_u32(&self, addr: Addr, current: u32, new: u32) -> Result<u32> {
        self.atomic_u32(addr, AtomicOp::CompareExchange { current, new })
    }

    /// The identity of a futex word. `private` is `FUTEX_PRIVATE_FLAG`: no look at the mappings is needed then.
    pub fn futex_key(&self, addr: Addr, private: bool) -> Result<FutexKey> {
        let key = FutexKey::Private { mm: self.id(), addr };
        if private {
            return Ok(key);
        }
        let state = self.lock();
        let vma = state.tree.find(addr).ok_or(Errno::EFAULT)?;
        match vma.file().filter(|_| vma.flags.is_shared()) {
            None => Ok(key),
            Some(file) => {
                let (device, inode) = file.file.identity();
                Ok(FutexKey::Shared { device, inode, offset: file.offset + (addr - vma.start) })
            }
        }
    }

    /// Whether a copy to `len` bytes at `addr` finds a mapping that allows it, and memory of the host behind it.
    pub fn takes(&self, addr: Addr, len: usize) -> bool {
        let Some(end) = addr.checked_add(len as u64) else { return false };
        let state = self.lock();
        let mut at = addr;
        while at < end {
            let Some(vma) = state.tree.find(at) else { return false };
            let last = vma.end.min(end) - 1;
            if !allows(vma.flags, Prot::WRITE)
                || vma.missing_around(at).is_some()
                || vma.missing_around(last).is_some()
            {
                return false;
            }
            at = vma.end;
        }
        true
    }

    /// Resolves a fault of a copy, or says that it cannot be.
    fn settle(&self, fault: Fault) -> Result<()> {
        match self.fault(fault.addr, fault.access) {
            FaultOutcome::Resolved => Ok(()),
            FaultOutcome::Segv(_) | FaultOutcome::Bus => Err(Errno::EFAULT),
        }
    }

    /// Runs `copy` from each position until all is moved or a fault stays.
    fn copy_all(
        &self,
        addr: Addr,
        len: usize,
        access: Prot,
        mut copy: impl FnMut(Addr, usize) -> Result<usize, Fault>,
    ) -> Result<usize> {
        let mut done = 0;
        let mut stuck = 0;
        while done < len {
            let at = addr.checked_add(done as u64).ok_or(Errno::EFAULT);
            let settled = at.and_then(|at| match copy(at, done) {
                Ok(0) => self.settle(Fault { addr: at, access }),
                Ok(n) => {
                    done += n;
                    stuck = 0;
                    Ok(())
                }
                Err(fault) => self.settle(fault),
            });
            stuck += 1;
            if settled.is_err() || stuck > 2 {
                return if done > 0 { Ok(done) } else { Err(Errno::EFAULT) };
            }
        }
        Ok(done)
    }
}

/// A fault on a page that the host has: a race with another thread's call, unless it happens again and again.
fn spurious(state: &mut State, page: Addr, at_last: FaultOutcome) -> FaultOutcome {
    let (last, count) = state.last_fault;
    let count = if last == page { count + 1 } else { 1 };
    state.last_fault = (page, count);
    if count > SPURIOUS_MAX {
        state.last_fault = (0, 0);
        return at_last;
    }
    FaultOutcome::Resolved
}

impl UserMemory for Mm {
    fn copy_in_partial(&self, addr: u64, dst: &mut [u8]) -> Result<usize> {
        let len = dst.len();
        self.copy_all(addr, len, Prot::READ, |at, done| {
            self.space().copy_in(at, dst.get_mut(done..).unwrap_or_default(), FaultMode::Normal)
        })
    }

    fn copy_out_partial(&self, addr: u64, src: &[u8]) -> Result<usize> {
        self.copy_all(addr, src.len(), Prot::WRITE, |at, done| {
            self.space().copy_out(at, src.get(done..).unwrap_or_default(), FaultMode::Normal)
        })
    }
}
