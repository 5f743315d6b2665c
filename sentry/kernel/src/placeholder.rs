//! Types of lower crates that are not in this tree yet, in the shape that the kernel uses.

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_memory::UserMemory;
use sentry_vfs::FileDescription;

/// An address space.
#[derive(Debug)]
pub struct Mm;

impl UserMemory for Mm {
    fn copy_in_partial(&self, _addr: u64, _dst: &mut [u8]) -> Result<usize> {
        Err(Errno::EFAULT)
    }
    fn copy_out_partial(&self, _addr: u64, _src: &[u8]) -> Result<usize> {
        Err(Errno::EFAULT)
    }
}

/// A descriptor table.
#[derive(Debug)]
pub struct FdTable;

impl FdTable {
    pub fn get(&self, _fd: i32) -> Result<Arc<FileDescription>> {
        Err(Errno::EBADF)
    }
}

/// A tree of mounts.
#[derive(Debug)]
pub struct MountNamespace;
