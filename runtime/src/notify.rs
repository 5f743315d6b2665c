//! `NOTIFY_SOCKET` (`sd_notify(3)`): whoever starts a container as a service learns from it when it is ready.
//!
//! The container has a socket of its own in the sandbox. What it says there comes to the process that watches over it, and
//! that tells on that the service is ready, and no more: not which process is the main one, which it says itself, nor what
//! else a manager does for those it trusts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use control_protocol::{Boot, Text};
use hostsys::polling::Interest;

use crate::error::{Context, Result};

const VARIABLE: &str = "NOTIFY_SOCKET";

/// The longest name of a socket, without the byte that makes it abstract.
const MAX_NAME: usize = 107;

/// A connection to the caller's notify socket, if it has one; the container is told of its own by its environment.
pub(crate) fn connect(boot: &mut Boot) -> Result<Option<OwnedFd>> {
    let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) else { return Ok(None) };
    let name = boot.notify_name();
    if name.len() > MAX_NAME {
        return Ok(None);
    }
    let connect = || -> io::Result<OwnedFd> {
        let socket = UnixDatagram::unbound()?;
        match path.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => socket.connect(&path)?,
        }
        Ok(socket.into())
    };
    let socket = connect().context(|| format!("connect to {VARIABLE} {}", path.display()))?;
    let prefix = format!("{VARIABLE}=");
    boot.process.env.retain(|entry| !entry.0.starts_with(prefix.as_bytes()));
    boot.process.env.push(Text::from(format!("{prefix}@{name}").as_str()));
    Ok(Some(socket))
}

/// Tells on what a container says.
#[derive(Debug)]
pub(crate) struct Notifier {
    container: UnixDatagram,
    manager: UnixDatagram,
}

impl Notifier {
    /// With it comes the end that the Sentry gets.
    pub fn new(manager: OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let (container, theirs) = UnixDatagram::pair()?;
        for end in [&container, &theirs] {
            end.set_nonblocking(true)?;
        }
        Ok((Self { container, manager: manager.into() }, theirs.into()))
    }

    pub fn interest(&self) -> Interest {
        Interest::new(self.container.as_fd(), libc::POLLIN)
    }

    /// Takes what is there; `pid` stands for the container's main process on the host. False once nothing more can come.
    pub fn turn(&self, pid: u32) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.container.recv(&mut buffer) {
                // The Sentry has gone.
                Ok(0) => return false,
                Ok(len) => {
                    let message = buffer.get(..len).unwrap_or_default();
                    if message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                        // A manager that is not there any more needs no news.
                        let _ = self.manager.send(format!("MAINPID={pid}\nREADY=1\n").as_bytes());
                    }
                }
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// What to wait for of a notifier that may not be there.
pub(crate) fn interest(notifier: Option<&Notifier>) -> Interest {
    notifier.map_or(Interest::none(), Notifier::interest)
}

/// Has it take its turn, and drops it when that was the last.
pub(crate) fn turn(notifier: &mut Option<Notifier>, pid: u32) {
    if notifier.as_ref().is_some_and(|notifier| !notifier.turn(pid)) {
        *notifier = None;
    }
}
