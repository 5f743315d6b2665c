//! Descriptors: results of raw calls, copies, and those that were inherited at a known number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The result of a raw system call made through libc.
pub fn check(rc: libc::c_long) -> io::Result<libc::c_long> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// A copy of `fd` at the lowest free number from `first` on, with `O_CLOEXEC` (`F_DUPFD_CLOEXEC`).
pub fn duplicate_from(fd: BorrowedFd<'_>, first: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with an integer argument touches no memory.
    let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first) };
    let copy = check(rc.into()).and_then(|n| RawFd::try_from(n).map_err(io::Error::other))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Takes a descriptor that this process inherited at a number fixed by its parent, and sets `O_CLOEXEC` on it.
///
/// A closed number is an error. Take each number once, at the start of the program: the returned value owns it.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with an integer argument touches no memory.
    let rc = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    check(rc.into())?;
    // SAFETY: the number is open, and the start-up code that calls this hands it to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
