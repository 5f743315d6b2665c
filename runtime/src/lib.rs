//! The life of a container as a library: its state directory, its checked configuration, its processes.
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

mod capability;
mod cgroup;
mod config;
mod error;
mod foreground;
mod lifecycle;
pub mod log;
mod mounts;
mod plan;
mod relay;
mod sandbox;
pub mod signal_names;
mod state;
pub mod timestamp;
mod validate;

pub use config::Config;
pub use error::{Error, Result};
pub use foreground::{Registration, run};
pub use lifecycle::{delete, kill};
pub use mounts::Attachment;
pub use plan::{HostCommand, Limits, Plan, of_bundle, of_host_command};
pub use sandbox::SENTRY_NAME;
pub use state::{HostProcess, State, StateRoot, check_id};
