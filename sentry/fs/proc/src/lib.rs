//! The Sentry's `/proc`: processes, the system and the switches that programs read (`proc(5)`).
//!
//! It shows the sandbox and nothing of the host. Everything is made when it is read; directories of processes are
//! looked up anew each time, because processes come and go without the VFS being told.
//!
//! **Lock ranks:** none of its own; reading a file takes the kernel's locks one at a time.
//!
//! **Threat.** Files of another user's process are refused as Linux refuses them (`ptrace_may_access`), so that a
//! set-user-id program's memory map and environment stay its own.

mod fds;
mod global;
mod net;
mod process;
mod root;
mod status;
mod sysctl;

use std::sync::Arc;

use sentry_kernel::Kernel;
use sentry_vfs::FileSystem;
use sentry_vfs::pseudo::PseudoFs;

/// `PROC_SUPER_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: u64 = 0x9fa0;
/// Inode numbers below this are of files that are there for good.
const FIRST_INO: u64 = 0xf000_0000;

/// The `/proc` of `kernel`, with device number `dev`.
pub fn new(kernel: &Arc<Kernel>, dev: u64) -> Arc<dyn FileSystem> {
    let fs = PseudoFs::new("proc", MAGIC, dev, FIRST_INO);
    fs.set_root(root::Root::new(&fs, kernel));
    fs
}

/// The kernel's task behind a caller of the VFS.
fn task_of(caller: &dyn sentry_vfs::Caller) -> Option<&sentry_kernel::Task> {
    caller.as_any().downcast_ref()
}
