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
mod mem;
mod namespaces;
mod net;
mod process;
mod root;
mod smaps;
mod status;
mod sysctl;
mod sysctl_ipc;

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::{Kernel, PidNs};
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{Caller, FileSystem, FsType, anonymous_dev, cap};

/// `PROC_SUPER_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: u64 = 0x9fa0;
/// Inode numbers below this are of files that are there for good.
const FIRST_INO: u64 = 0xf000_0000;

/// The `/proc` of the first PID namespace of `kernel`, with device number `dev`.
pub fn new(kernel: &Arc<Kernel>, dev: u64) -> Arc<dyn FileSystem> {
    of_namespace(kernel, kernel.first_pid_ns(), dev)
}

/// The `/proc` of the PID namespace `ns` of `kernel`, with device number `dev`.
pub fn of_namespace(kernel: &Arc<Kernel>, ns: &Arc<PidNs>, dev: u64) -> Arc<dyn FileSystem> {
    let fs = PseudoFs::new("proc", MAGIC, dev, FIRST_INO);
    fs.set_root(root::Root::new(&fs, kernel, ns));
    fs
}

/// procfs as `mount(2)` makes it: of the PID namespace of who mounts.
#[derive(Debug)]
pub struct ProcType;

impl FsType for ProcType {
    fn mount(&self, _source: &str, data: &str, caller: &dyn Caller) -> Result<Arc<dyn FileSystem>> {
        for option in data.split(',').filter(|o| !o.is_empty()) {
            let known = match option.split_once('=') {
                Some(("hidepid", value)) => {
                    matches!(value, "0" | "1" | "2" | "4" | "off" | "noaccess" | "invisible" | "ptraceable")
                }
                Some(("gid", value)) => value.parse::<u32>().is_ok(),
                Some(("subset", value)) => value == "pid",
                _ => false,
            };
            if !known {
                return Err(Errno::EINVAL);
            }
        }
        let task = task_of(caller).ok_or(Errno::EPERM)?;
        // The namespace's owner must rule it: a new user namespace alone is not enough.
        let ns = task.group().pid_ns();
        if !caller.creds().has_cap_in(ns.user_ns(), cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        Ok(of_namespace(task.kernel(), ns, anonymous_dev()))
    }
}

/// The kernel's task behind a caller of the VFS.
fn task_of(caller: &dyn sentry_vfs::Caller) -> Option<&sentry_kernel::Task> {
    caller.as_any().downcast_ref()
}
