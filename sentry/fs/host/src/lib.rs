//! Files of the caller inside the sandbox: the standard input, output and error that a command was started with.
//!
//! The open file descriptions behind these descriptors are shared with processes outside: their flags are never
//! changed, and their offsets only as reading and writing change them. No call may block a worker: each transfer is made
//! only where the host has said that it can, and in pieces that it then takes as a whole. Who has to wait waits on the
//! file's queue, which the [`Watcher`] serves.
//!
//! **Invariants.** Nothing that changes a terminal is passed on; what may be asked of one is a short list
//! ([`hostsys::terminal_query`]).
//!
//! **Lock ranks:** all leaves.
//!
//! **Threat.** The application reads and writes what its caller gave it, and reaches nothing else through it: no
//! `TIOCSTI`, no flags, no descriptor.

mod file;
mod watcher;

pub use file::{HostFile, HostFileError};
pub use watcher::{Watcher, ready_now};

use sentry_base::Errno;

fn from_rustix(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

#[cfg(test)]
mod tests;
