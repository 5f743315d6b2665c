//! The process that touches host files for a sandbox, and nothing else in the sandbox does.
//!
//! The command starts a gofer with [`launch::start`]: the same binary, executed under [`launch::SUBCOMMAND`], which ends
//! in [`main`]. A gofer puts itself in a jail ([`jail`]), says hello on every connection, and answers requests
//! ([`serve`]) until a connection ends; then the process ends, and with it the sandbox. Whoever kills a gofer is noticed
//! by the Sentry as the end of its connections.
//!
//! **The jail.** Own user, mount, pid, network, IPC and UTS namespaces. The root is an empty read-only tmpfs that holds
//! the mounted trees alone, `nosuid`, `nodev`, and read-only where asked; kernel file systems under them (`/proc`,
//! `/sys`, `/dev`) are covered. Landlock, `no_new_privs`, the few capabilities that serving files with their owners
//! takes, and a seccomp allow-list.
//!
//! **Invariants.** The gofer keeps no state for the Sentry but files kept open, whose number is bounded. Descriptors are
//! donated for regular files alone. A mount that is read-only is so at three places: here, in the mount's flags, and in
//! the Landlock rules.
//!
//! **Threat.** The Sentry is taken to be under the application's control. Its requests may be any bytes; the host
//! tree may change under a request. Neither may reach a file outside of the mounts, block the gofer, or make it
//! panic.

mod config;
mod filter;
mod jail;
pub mod launch;
mod serve;
mod tree;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use gofer_protocol::{DecodeError, Hello, MAX_MESSAGE, Request, VERSION};
use hostsys::sock;

pub use config::{Config, Mount};
pub use jail::is_kernel_file_system;
use tree::Tree;

/// Why a gofer stopped serving.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The Sentry closed its side.
    #[error("the connection was closed")]
    Closed,
    #[error("the Sentry broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    #[error("the Sentry sent a descriptor or a message over the length cap")]
    Excess,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the system call filter was not accepted: {0}")]
    Filter(#[from] seccompiler::Error),
}

/// The life of a gofer. Expects the descriptors that [`launch::start`] lays out.
pub fn main() -> ExitCode {
    match run() {
        Ok(End::Closed) => ExitCode::SUCCESS,
        Ok(end) => complain(&end),
        Err(cause) => complain(&cause),
    }
}

fn complain(cause: &dyn Display) -> ExitCode {
    eprintln!("casemate-gofer: {cause}");
    ExitCode::FAILURE
}

/// What went wrong before serving began.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot read the configuration: {0}")]
    Config(io::Error),
    #[error("the configuration is not valid: {0}")]
    Json(#[from] serde_json::Error),
    #[error("connection {0} was not given: {1}")]
    Connection(u32, io::Error),
    #[error("the configuration asks for no connection")]
    NoConnection,
    #[error(transparent)]
    Jail(#[from] jail::JailError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

fn run() -> Result<End, StartError> {
    let config = hostsys::fd::take_inherited(config::CONFIG_FD).map_err(StartError::Config)?;
    let mut text = String::new();
    File::from(config).read_to_string(&mut text).map_err(StartError::Config)?;
    let config: Config = serde_json::from_str(&text)?;
    let mut connections = Vec::new();
    for n in 0..config.connections {
        let number = config::FIRST_CONNECTION_FD.saturating_add_unsigned(n);
        let fd = hostsys::fd::take_inherited(number).map_err(|e| StartError::Connection(n, e))?;
        connections.push(fd);
    }
    match begin(&config, &connections) {
        Ok(tree) => serve_all(tree, connections),
        Err(error) => {
            say_hello(&connections, &Hello::Failed { cause: error.to_string() });
            Err(error)
        }
    }
}

fn begin(config: &Config, connections: &[OwnedFd]) -> Result<Arc<Tree>, StartError> {
    if connections.is_empty() {
        return Err(StartError::NoConnection);
    }
    let root = jail::enter(config)?;
    Ok(Arc::new(Tree::new(root, config.mounts.clone())))
}

fn say_hello(connections: &[OwnedFd], hello: &Hello) {
    let mut message = Vec::new();
    hello.encode(&mut message);
    for connection in connections {
        // A peer that is gone is noticed by the first receive.
        let _ = sock::send(connection.as_fd(), &message, &[], 0);
    }
}

/// Serves the directories `0`, `1`, … of `root` as mounts from threads of the calling process, without a jail. Gives the
/// ends to send requests to, each with its hello waiting. For tests of what lies on the other side of the protocol.
#[doc(hidden)]
pub fn serve_unjailed(
    root: &std::path::Path,
    mounts: Vec<Mount>,
    connections: u32,
) -> io::Result<Vec<OwnedFd>> {
    let tree = Arc::new(Tree::new(File::open(root)?.into(), mounts));
    let mut ours = Vec::new();
    for _ in 0..connections {
        let (near, far) = sock::packet_pair()?;
        let far = [far];
        say_hello(&far, &Hello::Ready { version: VERSION });
        let (tree, [far]) = (Arc::clone(&tree), far);
        thread::spawn(move || serve(&tree, &far));
        ours.push(near);
    }
    Ok(ours)
}

/// Serves every connection on a thread of its own until the first one ends.
fn serve_all(tree: Arc<Tree>, connections: Vec<OwnedFd>) -> Result<End, StartError> {
    say_hello(&connections, &Hello::Ready { version: VERSION });
    let (ended, end) = mpsc::channel();
    // One filter for all: each would be compiled by the kernel. Nobody serves before it holds.
    let held = Arc::new(Barrier::new(connections.len() + 1));
    for connection in connections {
        let (tree, ended, held) = (Arc::clone(&tree), ended.clone(), Arc::clone(&held));
        let thread = thread::Builder::new().name("connection".into()).stack_size(256 * 1024);
        thread
            .spawn(move || {
                held.wait();
                held.wait();
                let Err(end) = serve(&tree, &connection);
                let _ = ended.send(end);
            })
            .map_err(StartError::Thread)?;
    }
    drop(ended);
    // What the start of a thread takes is not in the filter.
    held.wait();
    if let Err(error) = filter::install_for_all() {
        return Ok(error.into());
    }
    held.wait();
    hostsys::text::let_go_of_code();
    Ok(end.recv().unwrap_or(End::Closed))
}

/// Answers requests on one connection.
fn serve(tree: &Tree, connection: &OwnedFd) -> Result<std::convert::Infallible, End> {
    let mut request = Vec::with_capacity(MAX_MESSAGE);
    let mut reply = Vec::with_capacity(MAX_MESSAGE);
    loop {
        let received = hostsys::retry(|| sock::receive_into(connection.as_fd(), &mut request, 0))?;
        if received.truncated || !received.fds.is_empty() {
            return Err(End::Excess);
        }
        if request.is_empty() {
            return Err(End::Closed);
        }
        let files = serve::answer(tree, &Request::decode(&request)?, &mut reply);
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        match hostsys::retry(|| sock::send(connection.as_fd(), &reply, &fds, 0)) {
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Err(End::Closed),
            other => other?,
        };
    }
}

#[cfg(test)]
mod tests;
