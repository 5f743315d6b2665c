//! A platform without a host process: page tables in a map, for tests of everything above a platform.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use platform::{
    Addr, AddrRange, AddressSpace, Advice, AtomicOp, Context, Fault, FaultMode, MapSource, PAGE_SIZE,
    Platform, Prot, Sharing, SpaceError,
};

/// One page of a fake address space.
#[derive(Debug, Clone)]
pub struct FakePage {
    pub prot: Prot,
    /// The host file behind the page: its descriptor's number and the byte.
    pub file: Option<(Arc<File>, i32, u64)>,
    pub shared: bool,
    /// Private bytes, once written.
    bytes: Option<Box<[u8]>>,
}

/// An address space that is a table of pages.
#[derive(Debug, Default)]
pub struct FakeSpace {
    pages: Mutex<BTreeMap<Addr, FakePage>>,
    /// Mapping calls so far.
    ops: AtomicUsize,
}

const USER: AddrRange = AddrRange { start: 0x1_0000, end: 0x7fff_0000_0000 };

fn host(errno: i32) -> SpaceError {
    SpaceError::Host(errno)
}

fn pages_of(range: AddrRange) -> impl Iterator<Item = Addr> {
    (range.start..range.end).step_by(4096)
}

impl FakeSpace {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Addr, FakePage>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn op(&self, range: AddrRange) -> Result<(), SpaceError> {
        self.ops.fetch_add(1, Ordering::Relaxed);
        if !range.is_page_aligned() || range.is_empty() || !USER.contains_range(&range) {
            return Err(SpaceError::BadRange);
        }
        Ok(())
    }

    /// Mapping calls since the last look.
    pub fn take_ops(&self) -> usize {
        self.ops.swap(0, Ordering::Relaxed)
    }

    /// The page at an address, without its bytes.
    pub fn page(&self, addr: Addr) -> Option<FakePage> {
        self.lock().get(&(addr - addr % PAGE_SIZE)).cloned()
    }

    /// Every mapped page.
    pub fn page_addrs(&self) -> Vec<Addr> {
        self.lock().keys().copied().collect()
    }

    fn access(
        &self,
        at: Addr,
        len: usize,
        access: Prot,
        mut each: impl FnMut(&mut FakePage, usize, usize, usize) -> bool,
    ) -> Result<usize, Fault> {
        let mut pages = self.lock();
        let mut done = 0;
        while done < len {
            let addr = at + done as u64;
            let inside = usize::try_from(addr % PAGE_SIZE).unwrap_or(0);
            let n = (4096 - inside).min(len - done);
            let ok = match pages.get_mut(&(addr - addr % PAGE_SIZE)) {
                Some(page) if page.prot.contains(access) => each(page, inside, done, n),
                _ => false,
            };
            if !ok {
                return if done > 0 { Ok(done) } else { Err(Fault { addr, access }) };
            }
            done += n;
        }
        Ok(done)
    }
}

impl FakePage {
    /// The page's bytes as a reader sees them; `None` past the end of the file.
    fn load(&self) -> Option<Vec<u8>> {
        if let Some(bytes) = &self.bytes {
            return Some(bytes.to_vec());
        }
        let mut out = vec![0; 4096];
        if let Some((file, _, offset)) = &self.file {
            let end = file.metadata().ok()?.len();
            if *offset >= end {
                return None;
            }
            let want = usize::try_from(end - offset).unwrap_or(4096).min(4096);
            file.read_exact_at(out.get_mut(..want)?, *offset).ok()?;
        }
        Some(out)
    }

    fn store(&mut self, inside: usize, src: &[u8]) -> Option<()> {
        if let (true, Some((file, _, offset))) = (self.shared, &self.file) {
            self.load()?;
            return file.write_all_at(src, offset + inside as u64).ok();
        }
        let mut bytes = self.load()?;
        bytes.get_mut(inside..inside + src.len())?.copy_from_slice(src);
        self.bytes = Some(bytes.into_boxed_slice());
        Some(())
    }
}

impl AddressSpace for FakeSpace {
    fn map(
        &self,
        range: AddrRange,
        source: MapSource<'_>,
        prot: Prot,
        sharing: Sharing,
    ) -> Result<(), SpaceError> {
        self.op(range)?;
        let shared = sharing == Sharing::Shared;
        let file = match source {
            MapSource::File { file, offset, .. } => {
                let number = BorrowedFd::as_raw_fd(&file);
                let copy = file.try_clone_to_owned().map_err(|_| host(libc::EBADF))?;
                Some((Arc::new(File::from(copy)), number, offset))
            }
            MapSource::Zero | MapSource::Reserve => None,
        };
        let mut pages = self.lock();
        for addr in pages_of(range) {
            if matches!(source, MapSource::Reserve) {
                pages.remove(&addr);
                continue;
            }
            let file = file.as_ref().map(|(f, n, at)| (Arc::clone(f), *n, at + (addr - range.start)));
            pages.insert(addr, FakePage { prot, file, shared, bytes: None });
        }
        Ok(())
    }

    fn unmap(&self, range: AddrRange) -> Result<(), SpaceError> {
        self.op(range)?;
        self.lock().retain(|addr, _| !range.contains(*addr));
        Ok(())
    }

    fn protect(&self, range: AddrRange, prot: Prot) -> Result<(), SpaceError> {
        self.op(range)?;
        let mut pages = self.lock();
        for addr in pages_of(range) {
            pages.get_mut(&addr).ok_or(host(libc::ENOMEM))?.prot = prot;
        }
        Ok(())
    }

    fn move_pages(&self, from: AddrRange, to: Addr, new_len: u64) -> Result<(), SpaceError> {
        self.op(from)?;
        let mut pages = self.lock();
        let moved: Vec<_> = pages_of(from).filter_map(|a| pages.remove(&a).map(|p| (a, p))).collect();
        let last = moved.last().map(|(_, p)| p.clone()).ok_or(host(libc::EFAULT))?;
        if moved.len() as u64 * PAGE_SIZE != from.len() || from.start < to + new_len && to < from.end {
            return Err(host(libc::EFAULT));
        }
        pages.retain(|addr, _| *addr < to || *addr >= to + new_len);
        for (addr, page) in moved {
            if addr - from.start < new_len {
                pages.insert(to + (addr - from.start), page);
            }
        }
        for delta in (from.len()..new_len).step_by(4096) {
            let file = last.file.clone().map(|(f, n, at)| (f, n, at + PAGE_SIZE + delta - from.len()));
            pages.insert(to + delta, FakePage { prot: last.prot, file, shared: last.shared, bytes: None });
        }
        Ok(())
    }

    fn advise(&self, range: AddrRange, advice: Advice) -> Result<(), SpaceError> {
        self.op(range)?;
        let mut pages = self.lock();
        for addr in pages_of(range) {
            let page = pages.get_mut(&addr).ok_or(host(libc::ENOMEM))?;
            if advice == Advice::DontNeed {
                page.bytes = None;
            }
        }
        Ok(())
    }

    fn fork(&self, skip: &[AddrRange], wipe: &[AddrRange]) -> Result<Arc<dyn AddressSpace>, SpaceError> {
        let mut pages = self.lock().clone();
        pages.retain(|addr, _| !skip.iter().any(|r| r.contains(*addr)));
        for (addr, page) in &mut pages {
            if wipe.iter().any(|r| r.contains(*addr)) {
                page.bytes = None;
            }
        }
        Ok(Arc::new(Self { pages: Mutex::new(pages), ops: AtomicUsize::new(0) }))
    }

    fn copy_in(&self, from: Addr, dst: &mut [u8], _mode: FaultMode) -> Result<usize, Fault> {
        self.access(from, dst.len(), Prot::READ, |page, inside, done, n| {
            let Some(bytes) = page.load() else { return false };
            match (dst.get_mut(done..done + n), bytes.get(inside..inside + n)) {
                (Some(to), Some(from)) => to.copy_from_slice(from),
                _ => return false,
            }
            true
        })
    }

    fn copy_out(&self, to: Addr, src: &[u8], _mode: FaultMode) -> Result<usize, Fault> {
        self.access(to, src.len(), Prot::WRITE, |page, inside, done, n| {
            src.get(done..done + n).is_some_and(|part| page.store(inside, part).is_some())
        })
    }

    fn atomic_u32(&self, at: Addr, op: AtomicOp) -> Result<u32, Fault> {
        let mut old = [0; 4];
        self.copy_in(at, &mut old, FaultMode::Normal)?;
        let old = u32::from_ne_bytes(old);
        let new = match op {
            AtomicOp::Load => return Ok(old),
            AtomicOp::Store(v) => v,
            AtomicOp::Add(v) => old.wrapping_add(v),
            AtomicOp::Or(v) => old | v,
            AtomicOp::And(v) => old & v,
            AtomicOp::Xor(v) => old ^ v,
            AtomicOp::CompareExchange { current, new } => {
                if old == current {
                    new
                } else {
                    old
                }
            }
        };
        self.copy_out(at, &new.to_ne_bytes(), FaultMode::Normal)?;
        Ok(old)
    }
}

/// A platform of fake spaces. It runs no code.
#[derive(Debug, Default)]
pub struct FakePlatform;

impl Platform for FakePlatform {
    fn new_space(&self) -> Result<Arc<dyn AddressSpace>, SpaceError> {
        Ok(Arc::new(FakeSpace::default()))
    }
    fn new_context(&self, _space: &Arc<dyn AddressSpace>) -> Result<Box<dyn Context>, SpaceError> {
        Err(SpaceError::Limit)
    }
    fn poll_traps(&self) -> usize {
        0
    }
    fn park(&self, _worker: usize, _until_ns: Option<u64>, _spin: bool) {}
    fn unpark(&self, _worker: usize) {}
    fn user_range(&self) -> AddrRange {
        USER
    }
    fn vdso(&self) -> Option<AddrRange> {
        Some(AddrRange { start: 0x7fff_ffff_0000, end: 0x7fff_ffff_2000 })
    }
    fn shutdown(&self) {}
}
