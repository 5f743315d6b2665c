//! Process descriptors: a process named without the danger that its number is reused (`pidfd_open(2)`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// How a process ended (`wait(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    /// Killed by this signal.
    Signaled(i32),
}

/// Opens a descriptor that stands for the process `pid`. `ESRCH` if there is none.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let flags: libc::c_uint = 0;
    // SAFETY: the call reads two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signo` to the process (`pidfd_send_signal(2)`); signal 0 only asks whether it is alive.
pub fn send_signal(process: BorrowedFd<'_>, signo: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    let flags: libc::c_uint = 0;
    // SAFETY: a null `siginfo_t` is allowed; the rest are integers.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signo, info, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for a child to end and reaps it; with `block` unset, `None` while it still runs.
pub fn wait(child: impl AsFd, block: bool) -> io::Result<Option<Ended>> {
    let options = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    let id = libc::id_t::try_from(child.as_fd().as_raw_fd())
        .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    loop {
        // SAFETY: `siginfo_t` is plain data; zero is a valid value of it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is writable for the call.
        let done = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, options) };
        if done != 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        // SAFETY: `waitid` filled the child's part of `info`, or left it zero.
        let pid = unsafe { info.si_pid() };
        if pid == 0 {
            return Ok(None);
        }
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        return Ok(Some(if info.si_code == libc::CLD_EXITED {
            Ended::Exited(status)
        } else {
            Ended::Signaled(status)
        }));
    }
}
