//! Orders to a running Sentry, and what it tells.

use serde::{Deserialize, Serialize};

use crate::TerminalSize;

/// From the command, after the boot message or [`crate::Request::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// Send this signal to the process as from outside its pid namespace: `SIGKILL` and `SIGSTOP` are not ignored.
    Signal(i32),
    /// The terminal's new size.
    Resize(TerminalSize),
    /// Let a held init run.
    Start,
    /// Tell how much memory the container has; for one in another one's sandbox.
    Memory,
}

/// From the Sentry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// The process is about to run its first instruction; one that is held is complete and waits for its start.
    Ready,
    /// The process could not be started.
    Failed(Failure),
    /// The process is gone; if it was init, with it every process of the container.
    Exited(Report),
    /// The container's memory in bytes, as far as it is nobody else's and in no file.
    Memory(u64),
}

/// A start that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub phase: Phase,
    /// One sentence: what failed, on what, why.
    pub message: String,
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Namespaces, platform, filters.
    Confine,
    /// The root file system and the mounts.
    Mount,
    /// The program was not found.
    NotFound,
    /// The program was found and cannot be executed.
    NotExecutable,
    /// Anything else about the init process.
    Init,
}

/// How the container, or a process that was executed in it, ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub status: Status,
    pub unsupported: Vec<Unsupported>,
    /// Set if the sandbox, not the program, is the cause of the end.
    pub cause: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    Exited(u8),
    Signaled(u8),
}

impl Status {
    /// As a shell shows it: the exit code, or 128 and the signal's number.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signo) => signo.saturating_add(128),
        }
    }
}

/// A system call that the Sentry does not have, and who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    pub name: String,
    pub program: String,
    pub count: u64,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let times = if self.count == 1 { "time" } else { "times" };
        write!(f, "unsupported: {} (called by {}, {} {times})", self.name, self.program, self.count)
    }
}
