//! What `/dev` of a container holds (OCI runtime specification, "Default Devices").

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_vfs::{Inode, Owner};

const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// Name, major, minor and permissions of the devices.
const DEVICES: &[(&str, u32, u32, u32)] = &[
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Fills `root`, the root of a fresh tmpfs: devices, links, and the directories that devpts, `/dev/shm` and `/dev/mqueue`
/// are mounted on. With `console` there is a `/dev/console`, too. What exists already stays.
pub fn populate(root: &Arc<dyn Inode>, console: bool) -> Result<()> {
    let exists_is_fine = |result: Result<Arc<dyn Inode>>| match result {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    };
    for (name, major, minor, permissions) in DEVICES {
        let rdev = libc::makedev(*major, *minor);
        exists_is_fine(root.mknod(name.as_bytes(), libc::S_IFCHR | permissions, rdev, ROOT))?;
    }
    if console {
        exists_is_fine(root.mknod(b"console", libc::S_IFCHR | 0o600, libc::makedev(5, 1), ROOT))?;
    }
    for (name, target) in LINKS {
        exists_is_fine(root.symlink(name.as_bytes(), target.as_bytes(), ROOT))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        exists_is_fine(root.mkdir(name.as_bytes(), 0o755, ROOT))?;
    }
    Ok(())
}
