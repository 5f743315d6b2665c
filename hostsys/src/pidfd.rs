//! Waiting for a child by its descriptor (`waitid(2)`, `P_PIDFD`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::process::Exit;

/// Waits for a child to end and reaps it; with `block` unset, `None` while it still runs.
pub fn wait(child: impl AsFd, block: bool) -> io::Result<Option<Exit>> {
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
            Exit::Code(status)
        } else {
            Exit::Signal(status)
        }));
    }
}
