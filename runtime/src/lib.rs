//! The life of a container as a library: its state directory, its checked configuration, its processes.
//!
//! A container that runs in the foreground is owned by its command. One that is created is owned by a process that stands
//! for its init on the host ([`detached`]); other commands reach its Sentry through a socket in the state directory.
//! Containers of a pod share one sandbox ([`pod`]).
//!
//! It knows the Sentry by the control protocol alone and imports none of its crates.
//!
//! **Invariants.** Nothing is done on the host before the configuration is checked whole. What a run makes (state
//! directory, control group, processes, terminal mode) is owned by a value whose drop undoes it. A process is
//! signalled by descriptor, never by a bare number.
//!
//! **Threat.** `config.json` and the bundle may come from a stranger: sizes are capped, paths are checked, values
//! are compared with what is known. The Sentry may be taken over by its guest: its messages are numbers and text to
//! show.

mod bandwidth;
mod capability;
mod cgroup;
mod config;
pub mod detached;
mod drive;
mod error;
mod filestore;
mod filter;
mod foreground;
#[doc(hidden)]
pub mod fuzzing;
mod hooks;
mod lifecycle;
pub mod log;
mod memory;
mod mounts;
mod mounts_below;
mod nat;
mod netlink;
mod network;
mod network_mode;
mod notify;
mod plan;
mod pod;
mod pty;
mod registration;
mod relay;
mod sandbox;
mod seccomp;
mod session;
mod shown;
pub mod signal_names;
mod sockets;
mod state;
mod systemd;
pub mod timestamp;
mod validate;

pub use bandwidth::parse as parse_bandwidth;
pub use capability::{bit as capability_bit, names as capability_names};
pub use cgroup::Group;
pub use config::Config;
pub use error::{Error, Result, words};
pub use filestore::Filestore;
pub use foreground::{Registration, run, take_preserved};
pub use lifecycle::{Creation, create, delete, kill, pause, processes, resume, start, update};
pub use mounts::{Attachment, options as mount_options};
pub use network_mode::NetworkMode;
pub use plan::{HostCommand, Limits, Plan, of_bundle, of_host_command};
pub use sandbox::SENTRY_NAME;
pub use session::{EXEC_FAILED, Execution, Trace, exec, inspect, process_of_bundle, process_of_json};
pub use state::{HostProcess, State, StateRoot, Status, check_id};
