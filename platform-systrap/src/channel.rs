//! The channel file as the Sentry maps it: groups of slots, order pages, and one slot's words.
//!
//! The application writes slots at will. Each word is read through an atomic, once, and checked by who uses it; a slot is
//! never lent as a slice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use hostsys::memory;
use parking_lot::Mutex;
use platform::PAGE_SIZE;

use crate::layout::{
    CHANNEL_FILE, EPOCH_OFFSET, GROUP, NR_GROUPS, NR_WORKERS, ORDERS_OFFSET, SLOT, WORKER_SHIFT, WORKERS,
};

/// The channel file and its mapping; lives as long as the program.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    base: Base,
    groups: Mutex<Groups>,
}

#[derive(Debug, Clone, Copy)]
struct Base(*mut u8);

// SAFETY: the mapping is never unmapped, and all access to it is by atomics.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

#[derive(Debug, Default)]
struct Groups {
    next: u64,
    free: Vec<u64>,
}

impl Arena {
    pub fn new() -> io::Result<Self> {
        let file = memory::memfd(c"casemate-channels")?;
        memory::set_len(file.as_fd(), CHANNEL_FILE)?;
        memory::add_seals(file.as_fd(), libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)?;
        let len = usize::try_from(CHANNEL_FILE).map_err(io::Error::other)?;
        let base = Base(memory::map_shared(file.as_fd(), 0, len, true)?);
        Ok(Self { file, base, groups: Mutex::default() })
    }

    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A group that reads as zeroes and that no process maps.
    pub fn take_group(&self) -> Option<u64> {
        let mut groups = self.groups.lock();
        groups.free.pop().or_else(|| {
            (groups.next < NR_GROUPS).then(|| {
                groups.next += 1;
                groups.next - 1
            })
        })
    }

    /// Takes a group back whose process is dead and reaped. What it left is thrown away first: the next process must
    /// not see it. A group that cannot be emptied is never used again.
    pub fn return_group(&self, group: u64) {
        let slots = memory::punch_hole(self.file(), group * GROUP, GROUP);
        let orders = self.orders(group);
        for at in (0..PAGE_SIZE as usize).step_by(8) {
            orders.store64(at, 0);
        }
        if slots.is_ok() {
            self.groups.lock().free.push(group);
        }
    }

    /// Offset in the file of the order page of `group`.
    pub fn orders_offset(group: u64) -> u64 {
        ORDERS_OFFSET + group * PAGE_SIZE
    }

    pub fn orders(&self, group: u64) -> Window {
        self.window(Self::orders_offset(group), PAGE_SIZE)
    }

    /// The word at `offset` of the page that every stub reads and none can write.
    pub fn epoch(&self, offset: u64) -> &'static AtomicU64 {
        let page = self.window(EPOCH_OFFSET, PAGE_SIZE);
        // SAFETY: as in `Window::u64`; the mapping is never unmapped.
        unsafe { AtomicU64::from_ptr(page.at(offset as usize, 8).cast()) }
    }

    /// The word of the worker with this number in the layout, if it has one.
    pub fn worker(&self, index: usize) -> Option<&'static AtomicU32> {
        if index as u64 >= NR_WORKERS {
            return None;
        }
        let page = self.window(EPOCH_OFFSET, PAGE_SIZE);
        // SAFETY: as in `Window::u32`; the mapping is never unmapped.
        Some(unsafe { AtomicU32::from_ptr(page.at(WORKERS as usize + (index << WORKER_SHIFT), 4).cast()) })
    }

    /// Slot `index` (below [`crate::layout::GROUP_SLOTS`]) of `group`.
    pub fn slot(&self, group: u64, index: u64) -> Window {
        self.window(group * GROUP + index * SLOT, SLOT)
    }

    fn window(&self, offset: u64, len: u64) -> Window {
        assert!(offset + len <= CHANNEL_FILE, "a window of the channel file lies inside it");
        Window { base: Base(self.base.0.wrapping_add(offset as usize)), len: len as usize }
    }
}

/// A part of the channel file. Offsets are checked against its length.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    base: Base,
    len: usize,
}

impl Window {
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(
            offset.is_multiple_of(size) && offset + size <= self.len,
            "a word of a channel lies inside it"
        );
        self.base.0.wrapping_add(offset)
    }

    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the place is aligned and inside a mapping that lives for ever; atomics may be shared with anyone.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u32`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as in `u32`.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    pub fn load32(&self, offset: usize) -> u32 {
        self.u32(offset).load(Ordering::Relaxed)
    }

    pub fn load64(&self, offset: usize) -> u64 {
        self.u64(offset).load(Ordering::Relaxed)
    }

    pub fn store32(&self, offset: usize, value: u32) {
        self.u32(offset).store(value, Ordering::Relaxed);
    }

    pub fn store64(&self, offset: usize, value: u64) {
        self.u64(offset).store(value, Ordering::Relaxed);
    }

    /// Copies out of the window, each byte fetched once. `offset` is a multiple of eight.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let mut chunks = into.chunks_exact_mut(8);
        let mut at = offset;
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.load64(at).to_ne_bytes());
            at += 8;
        }
        for byte in chunks.into_remainder() {
            *byte = self.u8(at).load(Ordering::Relaxed);
            at += 1;
        }
    }

    /// Copies into the window. `offset` is a multiple of eight.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let mut at = offset;
        let mut chunks = from.chunks_exact(8);
        for chunk in &mut chunks {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            self.store64(at, u64::from_ne_bytes(bytes));
            at += 8;
        }
        for byte in chunks.remainder() {
            self.u8(at).store(*byte, Ordering::Relaxed);
            at += 1;
        }
    }
}
