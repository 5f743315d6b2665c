//! Entering new files into the caller's descriptor table.

use std::sync::Arc;

use sentry_base::Result;
use sentry_kernel::Current;
use sentry_vfs::{FileDescription, FileOps, OpenFlags};

/// Enters a new file of the kernel's own at the lowest free descriptor.
pub(crate) fn add_file(cx: &Current, ops: Arc<dyn FileOps>, flags: OpenFlags, cloexec: bool) -> Result<i32> {
    add_description(cx, FileDescription::new(ops, flags, None), cloexec)
}

pub(crate) fn add_description(cx: &Current, file: Arc<FileDescription>, cloexec: bool) -> Result<i32> {
    cx.fds().add(file, cloexec, cx.rlimit(libc::RLIMIT_NOFILE))
}
