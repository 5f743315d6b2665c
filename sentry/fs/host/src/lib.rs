//! Host descriptors as files of the sandbox: what the caller gave as standard input, output and error.
//!
//! Pipes, sockets, terminals and regular files; never a directory. Readiness comes from one epoll instance in
//! edge-triggered mode ([`Watcher`]): a change on the host becomes a notification on the file's queue.
//!
//! **Invariants.** A call on a host descriptor does not wait: it is made with `RWF_NOWAIT`, or after a poll has said that
//! it may proceed. The position of a regular file is the host's own, which other holders of the same description share.
//!
//! **Lock ranks:** none of its own.
//!
//! **Threat.** The far side may be anybody: what it sends are bytes. A terminal's settings cannot be changed and nothing
//! can be typed into it from inside.

mod file;
mod watcher;

pub use file::{HostFile, HostFileError};
pub use watcher::Watcher;
