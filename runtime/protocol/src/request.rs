//! What a command asks of a running Sentry over a connection of its own.

use serde::{Deserialize, Serialize};

use crate::{Boot, Descriptor, Network, Process};

/// The first message on a connection. It travels as the boot message does, in a memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Take a network over, before init runs. Answered by [`Answer`].
    Connect(Box<Network>),
    /// Write every frame of the links to the file that comes along, in the format of `pcap-savefile(5)`, from now on; without
    /// a file no more. Answered by [`Answer`].
    Capture,
    /// Let a held init run. Answered by [`Answer`].
    Start,
    /// The container may use so many bytes of memory from now on; 0 for no limit. Answered by [`Answer`].
    LimitMemory(u64),
    /// Send a signal to init, or to every process. Answered by [`Answer`].
    Kill { signal: i32, all: bool },
    /// List the processes. Answered by some [`Answer::Processes`], then [`Answer::Done`].
    Processes,
    /// Tell what the sandbox holds, and turn the trace of system calls on or off. Answered by some
    /// [`Answer::Inspected`], then [`Answer::Done`].
    Inspect {
        /// On: into the file that came along.
        trace: Option<bool>,
        files: bool,
    },
    /// Start another process. Answered by [`crate::Event`]s; the process is killed when the connection ends.
    Exec {
        process: Box<Process>,
        /// What the descriptors that came along are, in their order.
        descriptors: Vec<Descriptor>,
    },
    /// Asked of a sandbox' first container alone: make another one in the sandbox, whose init is held until a
    /// [`Request::Start`] at its own listener. Answered by [`crate::Event`]s; the container is killed when the connection
    /// ends. What the descriptors are is in the boot message.
    Create {
        boot: Box<Boot>,
        /// Whether its processes are numbered from 1, or as the first container's are.
        own_pids: bool,
    },
}

/// The answer to a request that makes no process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Done,
    /// Init runs already.
    AlreadyStarted,
    /// No process that the request is about is there.
    NotRunning,
    Processes(Vec<ProcessInfo>),
    /// Lines to show.
    Inspected(Vec<String>),
    Refused(String),
}

/// A process of the container, as `ps` shows it. Numbers are the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    pub pid: i32,
    pub ppid: i32,
    pub uid: u32,
    pub gid: u32,
    /// Milliseconds since the process was made.
    pub age_ms: u64,
    /// User and system time, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that it has on the host, in bytes.
    pub resident: u64,
    /// The number of its controlling terminal in devpts.
    pub terminal: Option<u32>,
    /// The arguments, or the name in brackets where there are none, cut to a few hundred bytes.
    pub command: String,
}
