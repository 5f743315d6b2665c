//! The pseudo-terminal of an engine: it gets the master side over a socket that it listens on, we keep the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use control_protocol::TerminalSize;
use hostsys::sock;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{Context, Result, show};

/// Makes a pseudo-terminal of `size` and sends its master side to whoever listens at `path`; gives the other side.
pub(crate) fn offer(path: &Path, size: TerminalSize) -> Result<OwnedFd> {
    let socket = UnixStream::connect(path).context(|| format!("connect to console socket {}", show(path)))?;
    let make = || -> io::Result<(OwnedFd, OwnedFd, Vec<u8>)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let ours = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        if size != TerminalSize::default() {
            let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(&ours, size)?;
        }
        Ok((master, ours, name.into_bytes()))
    };
    let (master, ours, name) = make().context(|| "make a pseudo-terminal".into())?;
    hostsys::retry(|| sock::send(socket.as_fd(), &name, &[master.as_fd()], 0))
        .context(|| format!("send the terminal to console socket {}", show(path)))?;
    Ok(ours)
}

/// Sends a descriptor of process `pid` to whoever listens at `path`; `what` is runc's word for the kind of process.
pub(crate) fn offer_pidfd(path: &Path, pid: u32, what: &str) -> Result<()> {
    let to = || format!("send a process descriptor to pidfd socket {}", show(path));
    let socket = UnixStream::connect(path).context(to)?;
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH)).context(to)?;
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let fd = fd.map_err(io::Error::from).context(to)?;
    hostsys::retry(|| sock::send(socket.as_fd(), what.as_bytes(), &[fd.as_fd()], 0)).context(to)?;
    Ok(())
}

/// Makes the terminal that of this process, which leads a session: changes of its size are told by `SIGWINCH`.
pub(crate) fn take_control(terminal: &OwnedFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(terminal)?)
}
