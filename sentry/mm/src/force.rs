//! Copies that a tracer makes against the protection of mappings (`FOLL_FORCE`, `mm/gup.c`).
//!
//! A debugger writes breakpoints into text that its program may only execute, and reads what the program may not. The
//! host makes its copies by the protection of its own mappings, so that of one page is widened for the time of a copy.
//! A private page is copied by the host before it is written; a shared one that the program may not write stays as it is.

use platform::{AddrRange, FaultMode, PAGE_SIZE, Prot};
use sentry_base::{Errno, Result};
use sentry_memory::UserMemory;

use crate::VmFlags;
use crate::mm::Mm;

impl Mm {
    /// Reads memory whatever its protection. The bytes before the first that cannot be read at all; `EFAULT` if that is
    /// the first.
    pub fn copy_in_forced(&self, addr: u64, dst: &mut [u8]) -> Result<usize> {
        let len = dst.len();
        let got = by_pages(addr, len, |at, done, part| {
            let Some(to) = dst.get_mut(done..done + part) else { return Ok(0) };
            match self.copy_in_partial(at, to) {
                Ok(got) if got == part => Ok(got),
                _ => self.widened(at, Prot::READ, |mm| {
                    mm.space().copy_in(at, to, FaultMode::NoFault).map_err(|_| Errno::EFAULT)
                }),
            }
        })?;
        if let Some(read) = dst.get_mut(..got) {
            self.show_originals(addr, read);
        }
        Ok(got)
    }

    /// Writes memory whatever its protection, but not into a shared mapping that may not be written.
    pub fn copy_out_forced(&self, addr: u64, src: &[u8]) -> Result<usize> {
        if let Some(range) = AddrRange::new(addr, src.len() as u64) {
            self.undo_detours(&mut self.lock(), range);
        }
        by_pages(addr, src.len(), |at, done, part| {
            let Some(from) = src.get(done..done + part) else { return Ok(0) };
            match self.copy_out_partial(at, from) {
                Ok(put) if put == part => Ok(put),
                _ => self.widened(at, Prot::READ | Prot::WRITE, |mm| {
                    mm.space().copy_out(at, from, FaultMode::NoFault).map_err(|_| Errno::EFAULT)
                }),
            }
        })
    }

    /// Runs `copy` while the page of `at` has the protection `access`.
    fn widened(&self, at: u64, access: Prot, copy: impl FnOnce(&Self) -> Result<usize>) -> Result<usize> {
        // Have the host map a page of a file that nobody has touched yet.
        let _ = self.fault(at, Prot::empty());
        let state = self.lock();
        let vma = state.tree.find(at).ok_or(Errno::EFAULT)?;
        let flags = vma.flags;
        let refused = if access.contains(Prot::WRITE) {
            flags.contains(VmFlags::WRITE)
                || flags.contains(VmFlags::MAYSHARE)
                || !flags.contains(VmFlags::MAYWRITE)
        } else {
            flags.contains(VmFlags::READ) || !flags.contains(VmFlags::MAYREAD)
        };
        if refused || vma.missing_around(at).is_some() {
            return Err(Errno::EFAULT);
        }
        let start = at - at % PAGE_SIZE;
        let page = AddrRange { start, end: start + PAGE_SIZE };
        self.space().protect(page, access).map_err(|_| Errno::EFAULT)?;
        let copied = copy(self);
        // Where this fails the host process is gone, and with it the page.
        let _ = self.space().protect(page, flags.prot());
        drop(state);
        copied
    }
}

/// Runs `copy` (address, bytes done, length) for the part of each page until one comes short.
fn by_pages(
    addr: u64,
    len: usize,
    mut copy: impl FnMut(u64, usize, usize) -> Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    while done < len {
        let Some(at) = addr.checked_add(done as u64) else { break };
        let in_page = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0);
        let part = in_page.min(len - done);
        match copy(at, done, part) {
            Ok(n) => {
                done += n;
                if n < part {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    if done == 0 && len > 0 { Err(Errno::EFAULT) } else { Ok(done) }
}
