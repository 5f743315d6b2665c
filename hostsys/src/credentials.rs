//! Giving up what a process may do: identities, capabilities, new privileges, limits (`credentials(7)`).

use std::io;

fn checked(done: libc::c_int) -> io::Result<()> {
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The effective user of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: no argument, no failure.
    unsafe { libc::geteuid() }
}

/// The effective group of this process.
pub fn effective_gid() -> u32 {
    // SAFETY: no argument, no failure.
    unsafe { libc::getegid() }
}

/// The supplementary groups of this process (`getgroups(2)`).
pub fn groups() -> io::Result<Vec<u32>> {
    // SAFETY: a length of zero asks for the count alone.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let len = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut groups = vec![0_u32; len];
    // SAFETY: `groups` has room for `count` entries.
    let got = unsafe { libc::getgroups(count, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(got).map_err(|_| io::Error::last_os_error())?);
    Ok(groups)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3` (`capability.h`).
const CAP_VERSION: u32 = 0x2008_0522;

/// Drops every capability from every set, the bounding set included. There is no way back.
pub fn drop_capabilities() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: integers only. The first number past the kernel's last capability ends the loop.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if done != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    // SAFETY: integers only.
    checked(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    let none = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: `header` and the two data words are what version 3 of the call reads.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `PR_SET_CHILD_SUBREAPER`: orphaned descendants become children of this process.
pub fn set_child_subreaper() -> io::Result<()> {
    // SAFETY: integers only.
    checked(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })
}

/// A resource limit that our own processes set for themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    OpenFiles,
    CoreSize,
}

impl Limit {
    fn resource(self) -> libc::__rlimit_resource_t {
        match self {
            Limit::OpenFiles => libc::RLIMIT_NOFILE,
            Limit::CoreSize => libc::RLIMIT_CORE,
        }
    }
}

/// Sets both the soft and the hard limit to `value`, or to the present hard limit if that is lower.
pub fn set_limit(limit: Limit, value: u64) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `now` is writable for the call.
    checked(unsafe { libc::getrlimit(limit.resource(), &raw mut now) })?;
    let value = value.min(now.rlim_max);
    let new = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `new` is a valid limit.
    checked(unsafe { libc::setrlimit(limit.resource(), &raw const new) })
}

/// Soft and hard limit of every resource, in the order of the kernel's numbers (`getrlimit(2)`).
pub fn limits() -> Vec<(u64, u64)> {
    let mut limits = Vec::new();
    for resource in 0..16 {
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `now` is writable for the call.
        if unsafe { libc::getrlimit(resource, &raw mut now) } != 0 {
            break;
        }
        limits.push((now.rlim_cur, now.rlim_max));
    }
    limits
}

/// The file mode creation mask; asked by setting it twice, so call it while there is one thread.
pub fn umask() -> u32 {
    // SAFETY: integers only.
    let now = unsafe { libc::umask(0o022) };
    // SAFETY: as above.
    let _ = unsafe { libc::umask(now) };
    now
}
