//! The memory file: one sparse memfd whose runs of pages back tmpfs, overlay uppers and shared anonymous memory.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use platform::PAGE_SIZE;
use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result};

use crate::alloc::FreeMap;

/// Runs up to this size are kept with their old bytes for a while when they are freed, and cleared by hand when
/// they are handed out again: that is several times cheaper than a hole punched and pages faulted in anew.
const RECYCLE_MAX: u64 = 64 * 1024;
/// At most this many bytes are kept that way.
const RECYCLE_TOTAL: u64 = 4 * 1024 * 1024;

#[derive(Debug)]
struct State {
    free: FreeMap,
    /// Starts of freed runs that still hold old bytes, by length.
    stale: BTreeMap<u64, Vec<u64>>,
    stale_bytes: u64,
    allocated: u64,
}

/// The file. Its whole length is mapped once into the Sentry, so that copies need no host call.
pub struct MemoryFile {
    fd: Arc<OwnedFd>,
    base: NonNull<u8>,
    size: u64,
    limit: AtomicU64,
    /// Space is reserved on the host's file system before it is handed out: a write to a mapping of a full one would end
    /// the process.
    reserves: bool,
    state: Mutex<State, { rank::MEMORY_FILE }>,
}

// SAFETY: `base` is a shared mapping that lives as long as the value; the bytes behind it are only ever copied by
// raw pointers, and other processes may change them at any time anyway.
unsafe impl Send for MemoryFile {}
// SAFETY: as above; the bookkeeping is under `state`.
unsafe impl Sync for MemoryFile {}

impl core::fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "MemoryFile({} of {} bytes allocated)", self.allocated(), self.size)
    }
}

fn stat_of(fd: &OwnedFd) -> Result<libc::stat> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is writable for the structure's size.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(last_error());
    }
    // SAFETY: a successful fstat fills the structure.
    Ok(unsafe { stat.assume_init() })
}

impl MemoryFile {
    /// The usual size: 4 TiB of file offsets; only touched pages cost memory.
    pub const DEFAULT_SIZE: u64 = 1 << 42;

    /// Takes over an empty memfd, makes it `size` bytes long (a multiple of the page size) and maps it.
    /// No other mapping or descriptor call is needed afterwards except `fallocate(2)`.
    pub fn new(fd: OwnedFd, size: u64) -> Result<Arc<Self>> {
        let host_size = i64::try_from(size).map_err(|_| Errno::EINVAL)?;
        let map_size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: no pointer is passed.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), host_size) } != 0 {
            return Err(last_error());
        }
        Self::map(fd, size, map_size, false)
    }

    /// Takes over a sparse file of the host's file system, at its length.
    pub fn on_disk(fd: OwnedFd) -> Result<Arc<Self>> {
        let size = u64::try_from(stat_of(&fd)?.st_size).map_err(|_| Errno::EINVAL)?;
        let map_size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        Self::map(fd, size, map_size, true)
    }

    fn map(fd: OwnedFd, size: u64, map_size: usize, reserves: bool) -> Result<Arc<Self>> {
        // SAFETY: a fresh mapping at an address that the host chooses touches no existing memory.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                map_size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(last_error());
        }
        // File pages of the workload have no business in a core dump of the Sentry; a refusal changes nothing else.
        // SAFETY: the range is the mapping made above, and the advice does not change its contents.
        let _ = unsafe { libc::madvise(base, map_size, libc::MADV_DONTDUMP) };
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        let state = State { free: FreeMap::new(size), stale: BTreeMap::new(), stale_bytes: 0, allocated: 0 };
        Ok(Arc::new(Self {
            fd: Arc::new(fd),
            base,
            size,
            limit: AtomicU64::new(size),
            reserves,
            state: Mutex::new(state),
        }))
    }

    /// A memory file on a memfd of its own, for tests and for a process without seccomp rules yet.
    pub fn create(size: u64) -> Result<Arc<Self>> {
        // SAFETY: the name is a NUL-terminated literal.
        let raw = unsafe { libc::memfd_create(c"casemate-memory".as_ptr(), libc::MFD_CLOEXEC) };
        if raw < 0 {
            return Err(last_error());
        }
        // SAFETY: `raw` is a fresh descriptor that nothing else owns.
        let fd = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) };
        Self::new(fd, size)
    }

    /// The descriptor, to be mapped into address spaces.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes in runs that are handed out, touched or not.
    pub fn allocated(&self) -> u64 {
        self.state.lock().allocated
    }

    /// The most bytes that may be handed out.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets [`MemoryFile::limit`]; runs that are already out stay.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes.min(self.size), Ordering::Relaxed);
    }

    /// Bytes of host memory behind the file now (`st_blocks`).
    pub fn resident(&self) -> Result<u64> {
        Ok(u64::try_from(stat_of(&self.fd)?.st_blocks).unwrap_or(0).saturating_mul(512))
    }

    /// Hands out a run of `len` bytes (rounded up to pages) that reads as zeroes, right after byte `near` of the file
    /// if that is free. `ENOSPC` past the limit or when no run is long enough.
    pub fn allocate(self: &Arc<Self>, len: u64, near: Option<u64>) -> Result<Arc<Chunk>> {
        let len = len.checked_next_multiple_of(PAGE_SIZE).filter(|l| *l > 0).ok_or(Errno::ENOSPC)?;
        let mut state = self.state.lock();
        if state.allocated.saturating_add(len) > self.limit() {
            return Err(Errno::ENOSPC);
        }
        let stale = state.stale.get_mut(&len).and_then(Vec::pop);
        let start = if let Some(start) = stale {
            state.stale_bytes -= len;
            start
        } else {
            match state.free.take(len, near) {
                Some(start) => start,
                None => return Err(Errno::ENOSPC),
            }
        };
        state.allocated += len;
        drop(state);
        if self.reserves && stale.is_none() {
            let reserved = self.fallocate(libc::FALLOC_FL_KEEP_SIZE, start, len);
            if reserved.is_err() {
                let mut state = self.state.lock();
                state.allocated = state.allocated.saturating_sub(len);
                state.free.give(start, len);
                return Err(Errno::ENOSPC);
            }
        }
        let chunk = Arc::new(Chunk { file: Arc::clone(self), start, len });
        if stale.is_some() {
            chunk.clear(0, len);
        }
        Ok(chunk)
    }

    fn release(&self, start: u64, len: u64) {
        {
            let mut state = self.state.lock();
            state.allocated = state.allocated.saturating_sub(len);
            if len <= RECYCLE_MAX && state.stale_bytes + len <= RECYCLE_TOTAL {
                state.stale_bytes += len;
                state.stale.entry(len).or_default().push(start);
                return;
            }
        }
        // The run is nobody's until it is back in the map, so the hole is punched without the lock.
        if self.punch(start, len).is_ok() {
            self.state.lock().free.give(start, len);
        }
        // Where the host refuses the hole, the run stays out of use: its old bytes must never be seen again.
    }

    fn punch(&self, start: u64, len: u64) -> Result<()> {
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, start, len)
    }

    fn fallocate(&self, mode: i32, start: u64, len: u64) -> Result<()> {
        let (start, len) = (i64::try_from(start), i64::try_from(len));
        let (Ok(start), Ok(len)) = (start, len) else { return Err(Errno::EINVAL) };
        loop {
            // SAFETY: no pointer is passed.
            if unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, start, len) } == 0 {
                return Ok(());
            }
            let error = last_error();
            if error != Errno::EINTR {
                return Err(error);
            }
        }
    }

    /// The address of byte `at`, if `len` bytes from there are inside the file.
    fn address(&self, at: u64, len: usize) -> Option<*mut u8> {
        let end = at.checked_add(len as u64)?;
        if end > self.size {
            return None;
        }
        let at = usize::try_from(at).ok()?;
        // SAFETY: `at` is at most the mapping's length.
        Some(unsafe { self.base.as_ptr().add(at) })
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let size = usize::try_from(self.size).unwrap_or(0);
        // SAFETY: `base` and `size` are the mapping made in `new`; no chunk is left, since each holds the file.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), size) };
    }
}

/// A run of pages of the memory file. The last owner, a file or a mapping, frees it by dropping it: a run is never
/// handed out again while anybody can still see it.
pub struct Chunk {
    file: Arc<MemoryFile>,
    start: u64,
    len: u64,
}

impl core::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Chunk({:#x}+{:#x})", self.start, self.len)
    }
}

impl Chunk {
    /// Where the run starts in the memory file, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes; a multiple of the page size, never zero.
    pub fn size(&self) -> u64 {
        self.len
    }

    pub fn file(&self) -> &Arc<MemoryFile> {
        &self.file
    }

    fn address(&self, at: u64, len: usize) -> Option<*mut u8> {
        if at.checked_add(len as u64)? > self.len {
            return None;
        }
        self.file.address(self.start.checked_add(at)?, len)
    }

    /// Copies from byte `at` of the run; bytes past its end read as zeroes.
    pub fn read(&self, at: u64, dst: &mut [u8]) {
        let room = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(dst.len());
        let (dst, past) = dst.split_at_mut(room);
        past.fill(0);
        if let Some(from) = self.address(at, dst.len()) {
            // SAFETY: `from` is valid for `dst.len()` bytes of a shared mapping, which no Rust reference covers and
            // which cannot overlap `dst`. Another process may write the bytes meanwhile: any mix of old and new is a
            // fair result, and it is looked at only after it has been copied.
            unsafe { core::ptr::copy_nonoverlapping(from, dst.as_mut_ptr(), dst.len()) };
        }
    }

    /// Copies to byte `at` of the run and returns the bytes that fitted.
    pub fn write(&self, at: u64, src: &[u8]) -> usize {
        let room = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(src.len());
        let src = src.get(..room).unwrap_or_default();
        match self.address(at, src.len()) {
            Some(to) => {
                // SAFETY: `to` is valid for `src.len()` bytes of a shared mapping that no Rust reference covers and that
                // cannot overlap `src`.
                unsafe { core::ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) };
                src.len()
            }
            None => 0,
        }
    }

    /// Makes `len` bytes from `at` read as zeroes and gives whole pages back to the host.
    pub fn zero(&self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.len);
        if at >= end {
            return;
        }
        let first = at.next_multiple_of(PAGE_SIZE);
        let last = end - end % PAGE_SIZE;
        if first >= last {
            self.clear(at, end - at);
            return;
        }
        self.clear(at, first - at);
        self.clear(last, end - last);
        if self.file.punch(self.start + first, last - first).is_err() {
            self.clear(first, last - first);
        }
    }

    /// Writes zeroes.
    fn clear(&self, at: u64, len: u64) {
        let Ok(len) = usize::try_from(len) else { return };
        if let Some(to) = self.address(at, len) {
            // SAFETY: `to` is valid for `len` bytes of a shared mapping that no Rust reference covers.
            unsafe { core::ptr::write_bytes(to, 0, len) };
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.file.release(self.start, self.len);
    }
}

fn last_error() -> Errno {
    Errno::from_io(&std::io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_runs_come_back_as_zeroes() {
        let file = MemoryFile::create(1 << 30).unwrap();
        for len in [PAGE_SIZE, 1 << 20] {
            let chunk = file.allocate(len, None).unwrap();
            let start = chunk.start();
            assert_eq!(chunk.write(10, b"secret"), 6);
            drop(chunk);
            let chunk = file.allocate(len, None).unwrap();
            assert_eq!(chunk.start(), start);
            let mut buf = [1; 32];
            chunk.read(0, &mut buf);
            assert_eq!(buf, [0; 32]);
        }
    }

    #[test]
    fn punched_pages_return_to_the_host() {
        let file = MemoryFile::create(1 << 30).unwrap();
        let chunk = file.allocate(1 << 20, None).unwrap();
        chunk.write(0, &vec![7; 1 << 20]);
        assert!(file.resident().unwrap() >= 1 << 20);
        chunk.zero(100, (1 << 20) - 200);
        assert_eq!(file.resident().unwrap(), 2 * PAGE_SIZE);
        let mut ends = [0; 101];
        chunk.read(0, &mut ends);
        assert_eq!((ends[99], ends[100]), (7, 0));
        chunk.read((1 << 20) - 101, &mut ends);
        assert_eq!((ends[0], ends[1]), (0, 7));
        drop(chunk);
        assert_eq!(file.resident().unwrap(), 0);
    }

    #[test]
    fn the_limit_holds_and_bounds_are_checked() {
        let file = MemoryFile::create(1 << 30).unwrap();
        file.set_limit(3 * PAGE_SIZE);
        let chunk = file.allocate(2 * PAGE_SIZE, None).unwrap();
        assert_eq!(file.allocate(2 * PAGE_SIZE, None).unwrap_err(), Errno::ENOSPC);
        assert_eq!(file.allocate(u64::MAX, None).unwrap_err(), Errno::ENOSPC);
        assert_eq!(chunk.write(2 * PAGE_SIZE - 2, b"abcd"), 2);
        assert_eq!(chunk.write(u64::MAX, b"abcd"), 0);
        let mut buf = [9; 4];
        chunk.read(2 * PAGE_SIZE - 2, &mut buf);
        assert_eq!(&buf, b"ab\0\0");
        chunk.zero(PAGE_SIZE, u64::MAX);
        drop(chunk);
        assert_eq!(file.allocated(), 0);
    }
}
