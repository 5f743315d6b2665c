//! Starts a gofer from the command.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hostsys::launch::{ALL_NAMESPACES, Child, Command};

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

/// Starts a gofer in new namespaces; its messages go to `log`. It dies with the calling thread.
///
/// Call it while this process has one thread. Returns before the jail is built: whether it stands is said by the hello.
pub fn start(config: &Config, log: BorrowedFd<'_>) -> io::Result<Running> {
    start_program(&File::open("/proc/self/exe")?, SUBCOMMAND, config, log)
}

/// Like [`start`], with the program and its first argument named.
pub fn start_program(
    program: &File,
    subcommand: &str,
    config: &Config,
    log: BorrowedFd<'_>,
) -> io::Result<Running> {
    let text = hostsys::sealed::of_bytes(&serde_json::to_vec(config)?)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let mut connections = Vec::new();
    let mut served = Vec::new();
    for _ in 0..config.connections {
        let (ours, theirs) = hostsys::sock::packet_pair()?;
        connections.push(ours);
        served.push(theirs);
    }
    let mut descriptors = vec![null.as_fd(), null.as_fd(), log, text.as_fd()];
    descriptors.extend(served.iter().map(AsFd::as_fd));
    let mut command = Command {
        program: program.as_fd(),
        arguments: vec![c"casemate-gofer".into(), CString::new(subcommand)?],
        environment: Vec::new(),
        namespaces: ALL_NAMESPACES,
        descriptors: &descriptors,
        // It already is, by the maps below: root keeps its identity and all others', and a user becomes root.
        become_root: false,
        outlives: false,
    };
    let mut child = match command.start() {
        Ok(child) => {
            write_maps(&child)?;
            child
        }
        // User namespaces are switched off on some hosts; root can do without one.
        Err(error) if hostsys::credentials::effective_uid() == 0 => {
            command.namespaces &= !(libc::CLONE_NEWUSER.cast_unsigned() as u64);
            command.start().map_err(|_| error)?
        }
        Err(error) => return Err(error),
    };
    child.release()?;
    Ok(Running { child, connections })
}

/// Maps every identity of this user namespace onto itself, so that files keep their owners; without the right to, the
/// caller alone, as root.
fn write_maps(child: &Child) -> io::Result<()> {
    let uid = hostsys::credentials::effective_uid();
    if uid == 0 {
        child.write_maps(&identity_map("/proc/self/uid_map")?, &identity_map("/proc/self/gid_map")?)
    } else {
        child.map_root_to(uid, hostsys::credentials::effective_gid(), false)
    }
}

fn identity_map(of: &str) -> io::Result<String> {
    let mut map = String::new();
    for line in fs::read_to_string(of)?.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(inside), _, Some(count)) = (words.next(), words.next(), words.next()) {
            map.extend([inside, " ", inside, " ", count, "\n"]);
        }
    }
    Ok(map)
}
