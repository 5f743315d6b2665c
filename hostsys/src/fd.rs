//! Descriptors that were inherited at a known number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::check;

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
