//! The caller's terminal: raw mode and window size (`termios(3)`, `ioctl_tty(2)`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Rows and columns of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

/// Whether the descriptor is a terminal.
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    get_attributes(fd).is_ok()
}

/// The terminal's size; an error if it is no terminal.
pub fn window_size(fd: BorrowedFd<'_>) -> io::Result<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is writable for the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// A terminal in raw mode; its former mode comes back when this is dropped.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Attributes,
}

struct Attributes(libc::termios);

impl std::fmt::Debug for Attributes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attributes")
    }
}

impl RawMode {
    /// Sets the terminal behind `fd` to raw mode (`cfmakeraw`).
    pub fn enter(fd: impl AsFd) -> io::Result<Self> {
        let terminal = fd.as_fd().try_clone_to_owned()?;
        let before = get_attributes(terminal.as_fd())?;
        let mut raw = before;
        // SAFETY: `raw` is a valid termios.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        set_attributes(terminal.as_fd(), &raw)?;
        Ok(Self { terminal, before: Attributes(before) })
    }

    /// Gives the former mode back now; `enter` again to continue.
    pub fn restore(&self) -> io::Result<()> {
        set_attributes(self.terminal.as_fd(), &self.before.0)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = self.restore();
    }
}

/// The mode of a terminal that somebody else may change; it comes back when this is dropped.
#[derive(Debug)]
pub struct KeptMode {
    terminal: OwnedFd,
    before: Attributes,
}

impl KeptMode {
    /// Remembers the mode of the terminal behind `fd`.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let terminal = fd.as_fd().try_clone_to_owned()?;
        let before = Attributes(get_attributes(terminal.as_fd())?);
        Ok(Self { terminal, before })
    }
}

impl Drop for KeptMode {
    fn drop(&mut self) {
        let Ok(now) = get_attributes(self.terminal.as_fd()) else { return };
        let before = &self.before.0;
        let same = now.c_iflag == before.c_iflag
            && now.c_oflag == before.c_oflag
            && now.c_lflag == before.c_lflag
            && now.c_cc == before.c_cc;
        // In the background, the terminal is somebody else's, and setting it would stop this process.
        if !same && in_foreground(self.terminal.as_fd()) {
            let _ = set_attributes(self.terminal.as_fd(), before);
        }
    }
}

/// Whether the caller's process group is the one that the terminal listens to.
fn in_foreground(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: the call takes a descriptor.
    let foreground = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
    // SAFETY: the call takes nothing.
    foreground == unsafe { libc::getpgrp() }
}

fn get_attributes(fd: BorrowedFd<'_>) -> io::Result<libc::termios> {
    // SAFETY: `termios` is plain data; zero is a valid value of it.
    let mut now: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `now` is writable for the call.
    let done = unsafe { libc::tcgetattr(fd.as_raw_fd(), &raw mut now) };
    if done == 0 { Ok(now) } else { Err(io::Error::last_os_error()) }
}

fn set_attributes(fd: BorrowedFd<'_>, attributes: &libc::termios) -> io::Result<()> {
    // SAFETY: `attributes` is a valid termios.
    let done = unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSADRAIN, attributes) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
