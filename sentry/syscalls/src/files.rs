//! What several families do with files: entering new ones, reading `iovec` arrays.

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::{Current, Task};
use sentry_memory::IoSeg;
use sentry_vfs::{FileDescription, FileOps, OpenFlags};

/// The most segments of a vectored transfer (`UIO_MAXIOV`).
const UIO_MAXIOV: usize = 1024;
/// The most bytes that one transfer moves (`MAX_RW_COUNT`).
pub(crate) const MAX_RW_COUNT: u64 = 0x7fff_f000;

/// Enters a new file of the kernel's own at the lowest free descriptor.
pub(crate) fn add_file(cx: &Current, ops: Arc<dyn FileOps>, flags: OpenFlags, cloexec: bool) -> Result<i32> {
    add_description(cx, FileDescription::new(ops, flags, None), cloexec)
}

pub(crate) fn add_description(cx: &Current, file: Arc<FileDescription>, cloexec: bool) -> Result<i32> {
    cx.fds().add(file, cloexec, cx.rlimit(libc::RLIMIT_NOFILE))
}

/// Reads an array of `count` `struct iovec`: `EINVAL` for too many or a negative length. What is past the longest
/// transfer is cut off.
pub(crate) fn read_iovec(task: &Task, addr: u64, count: usize) -> Result<Vec<IoSeg>> {
    if count > UIO_MAXIOV {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; count * 16];
    sentry_memory::UserMemory::copy_in(task, addr, &mut bytes)?;
    let word = |b: &[u8]| b.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
    let mut left = MAX_RW_COUNT;
    let mut segs = Vec::with_capacity(count);
    for entry in bytes.chunks_exact(16) {
        let (addr, len) = entry.split_at(8);
        let (addr, len) = (word(addr), word(len));
        if i64::try_from(len).is_err() {
            return Err(Errno::EINVAL);
        }
        let len = len.min(left);
        left -= len;
        segs.push(IoSeg { addr, len });
    }
    Ok(segs)
}

/// One segment, cut to the longest transfer.
pub(crate) fn one_segment(addr: u64, len: usize) -> [IoSeg; 1] {
    [IoSeg { addr, len: (len as u64).min(MAX_RW_COUNT) }]
}
