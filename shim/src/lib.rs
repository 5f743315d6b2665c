//! `containerd-shim-casemate-v1`: what containerd runs between itself and the containers of the runtime
//! `io.containerd.casemate.v1` (`core/runtime/v2/README.md` of containerd).
//!
//! One shim serves one container, or all containers of a pod, over ttRPC at a socket that `start` prints. It makes containers
//! by our own command line ([`oci`]) and manages them by the library. It is the subreaper of what stands for
//! their processes on the host, and so learns how they end.
//!
//! **Invariants.** Events are told in their order: create, start, exit, delete; the ends of executed processes before
//! init's, and out of memory before the end that it has caused. Every wait has a deadline but that for a process' end. If
//! the shim is killed, containerd runs its `delete`, which needs nothing of it.
//!
//! **Threat.** Who can connect to the socket is root on the host. What the sandbox sends is read by the runtime library
//! alone.

mod container;
mod events;
mod io;
mod messages;
mod oci;
mod rootfs;
mod service;
mod settings;
mod start;
mod stats;
mod ttrpc;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

pub use start::main;

/// The name that containerd looks for.
pub const NAME: &str = "containerd-shim-casemate-v1";

/// Whether a program that is called this is the shim.
pub fn is_its_name(name: &OsString) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(NAME))
}

/// Says what could not be done, as the last thing on standard error.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{NAME}: {error}");
    ExitCode::FAILURE
}
