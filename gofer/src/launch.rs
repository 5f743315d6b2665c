//! Starts a gofer from the command.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hostsys::spawn::{Child, Spawn};

use crate::Config;

/// The first argument under which the binary must call [`crate::main`].
pub const SUBCOMMAND: &str = "gofer-process";

/// A running gofer.
#[derive(Debug)]
pub struct Running {
    pub child: Child,
    /// The Sentry's ends, one for each connection of the configuration. The first message on each is the gofer's hello.
    pub connections: Vec<OwnedFd>,
}

/// Starts a gofer in new namespaces. Its messages go to `log`.
///
/// Returns as soon as the program has been executed; whether the jail could be built is said by the hello.
pub fn start(config: &Config, log: BorrowedFd<'_>) -> io::Result<Running> {
    let exe = File::open("/proc/self/exe")?;
    start_program(&exe, &[SUBCOMMAND], config, log)
}

/// Like [`start`], with the program and its arguments named.
pub fn start_program(
    exe: &File,
    arguments: &[&str],
    config: &Config,
    log: BorrowedFd<'_>,
) -> io::Result<Running> {
    let mut text = File::from(hostsys::memory::memfd(c"gofer-config")?);
    text.write_all(&serde_json::to_vec(config)?)?;
    text.rewind()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let mut connections = Vec::new();
    let mut served = Vec::new();
    for _ in 0..config.connections {
        let (ours, theirs) = hostsys::sock::packet_pair()?;
        connections.push(ours);
        served.push(theirs);
    }
    let mut args = vec![CString::from(c"casemate-gofer")];
    for argument in arguments {
        args.push(CString::new(*argument)?);
    }
    let mut fds = vec![null.as_fd(), null.as_fd(), log, text.as_fd()];
    fds.extend(served.iter().map(AsFd::as_fd));
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let mut spawn = Spawn { exe: exe.as_fd(), args, env: Vec::new(), fds, namespaces };
    let child = match spawn.start() {
        // User namespaces are switched off on some hosts; root can do without one.
        Err(error) if is_refusal(&error) => {
            spawn.namespaces &= !libc::CLONE_NEWUSER;
            spawn.start().map_err(|_| error)?
        }
        other => other?,
    };
    Ok(Running { child, connections })
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSPC | libc::EINVAL | libc::EACCES))
}
