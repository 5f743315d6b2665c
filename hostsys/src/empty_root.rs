//! An empty read-only root for a process that needs no files (`pivot_root(2)`).

use std::ffi::CStr;
use std::io;

fn checked(done: libc::c_int) -> io::Result<()> {
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    let data = data.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a C string that lives for the call.
    checked(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data.cast()) })
}

/// Replaces the root of the calling process by an empty, read-only tmpfs of no size and lets go of the old one.
///
/// The process must be alone in its mount namespace, with `CAP_SYS_ADMIN` there. It needs no `/proc`.
pub fn enter() -> io::Result<()> {
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // Any directory that surely exists will do: the mount hides it in this namespace alone.
    mount(c"none", c"/", Some(c"tmpfs"), flags, Some(c"size=4k,nr_inodes=2,mode=555"))?;
    // The path "/" still names the old root; ".." of the root crosses into the mount on top of it.
    chdir(c"/..")?;
    // SAFETY: both are C strings.
    let done = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // The old root now lies over the new one, where "." still names it.
    // SAFETY: the path is a C string.
    checked(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    chdir(c"/")?;
    mount(c"none", c"/", None, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | flags, None)
}

fn chdir(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a C string.
    checked(unsafe { libc::chdir(path.as_ptr()) })
}
