//! Mount calls that `rustix` lacks, and how mount tables write paths.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// `struct mount_attr` (`include/uapi/linux/mount.h`).
#[repr(C)]
#[derive(Debug, Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Adds `attributes` (`MOUNT_ATTR_*`) to the mount that `tree` is the root of and to every mount under it, and makes
/// them private (`mount_setattr(2)` with `AT_RECURSIVE`).
pub fn restrict_tree(tree: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    let attr = MountAttr { attr_set: attributes, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    // SAFETY: the path is a constant that ends with NUL, and `attr` is readable for the size that is passed.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_RECURSIVE | libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(rc).map(|_| ())
}

/// Changes the mode of what `node` (which may be `O_PATH`) refers to (`fchmodat2(2)` with `AT_EMPTY_PATH`,
/// Linux 6.6; `ENOSYS` before).
pub fn chmod_node(node: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    /// Absent from older C libraries.
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: the path is a constant that ends with NUL.
    let rc =
        unsafe { libc::syscall(SYS_FCHMODAT2, node.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    check(rc).map(|_| ())
}

/// Turns the `\040` and the like of a field of a mount table (`proc_pid_mountinfo(5)`) back into bytes.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = value {
            out.push(byte);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}
