//! Memory that is held to be given back when the control group has none left.

use std::io;

use crate::memory::unmap;

/// Private memory whose pages are there, and charged to the control group; given back to it when dropped.
#[derive(Debug)]
pub struct Reserve {
    at: *mut u8,
    len: usize,
}

// SAFETY: nothing reads or writes the pages, and any thread may unmap them.
unsafe impl Send for Reserve {}

impl Reserve {
    /// Takes `len` bytes, a multiple of the page size (`mmap(2)`, `MAP_POPULATE`). Fewer of them may be there when
    /// memory is short.
    pub fn take(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel finds room touches no memory that is in use.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at: at.cast(), len })
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing points into it.
        let _ = unsafe { unmap(self.at, self.len) };
    }
}
