//! What may be asked of a descriptor that is shared with the caller, and how its terminal is set (`ioctl_tty(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// A question and the kernel structure that answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// `TCGETS`: `struct termios` of the kernel, 36 bytes.
    Attributes,
    /// `TIOCGWINSZ`: `struct winsize`, 8 bytes.
    WindowSize,
    /// `FIONREAD`: bytes that can be read, 4 bytes.
    Readable,
}

impl Query {
    /// The length of the answer, in bytes.
    pub fn answer_len(self) -> usize {
        match self {
            Self::Attributes => 36,
            Self::WindowSize => 8,
            Self::Readable => 4,
        }
    }

    fn command(self) -> libc::c_ulong {
        match self {
            Self::Attributes => libc::TCGETS,
            Self::WindowSize => libc::TIOCGWINSZ,
            Self::Readable => libc::FIONREAD,
        }
    }
}

/// The answer, in the first [`Query::answer_len`] bytes.
pub fn ask(fd: BorrowedFd<'_>, query: Query) -> io::Result<[u8; 64]> {
    // Room to spare: the longest of the three structures is 36 bytes.
    let mut answer = [0_u8; 64];
    // SAFETY: the commands of `Query` write at most 36 bytes to `answer`.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), query.command(), answer.as_mut_ptr()) })?;
    Ok(answer)
}

/// Sets the attributes of a terminal (`TCSETS`): `attributes` is a `struct termios` of the kernel. Does not wait for
/// output to drain, which may take for ever.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: &[u8; 36]) -> io::Result<()> {
    // SAFETY: `TCSETS` reads 36 bytes.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), libc::TCSETS, attributes.as_ptr()) })?;
    Ok(())
}

/// Drops what was typed and not read yet (`TCFLSH` with `TCIFLUSH`).
pub fn flush_input(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `TCFLSH` takes a number.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), libc::TCFLSH, libc::TCIFLUSH) })?;
    Ok(())
}
