//! What a gofer is told at its start, and how its descriptors are laid out.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a gofer serves. Written by the command that starts it; the Sentry has no say in it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Config {
    /// A mount's index here is what the Sentry attaches to.
    pub mounts: Vec<Mount>,
    /// Sockets that the gofer serves, each with a thread of its own. At least 1.
    pub connections: u32,
}

/// One host tree, or one host file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute; symbolic links in it are followed, once, at the start.
    pub source: PathBuf,
    pub read_only: bool,
    /// The sandbox may make FIFOs and nodes of sockets here. They are names and attributes: what is sent through
    /// them stays in the sandbox.
    pub allow_special: bool,
    /// What is mounted below the source is served, too.
    pub recursive: bool,
}

/// The configuration, as JSON, is read from this descriptor to its end.
pub(crate) const CONFIG_FD: RawFd = 3;

/// Connections start here.
pub(crate) const FIRST_CONNECTION_FD: RawFd = 4;
