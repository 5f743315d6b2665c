//! Tracing: one task watches and steers another (`ptrace(2)`, `kernel/ptrace.c`).
//!
//! A tracee stops itself ([`stop`]): it leaves its registers and its platform context in [`crate::Task::trace_stop`], where its
//! tracer works on them ([`request`]) until it lets the tracee go on. Who traces whom is in the set of tasks
//! ([`link`]) and, for the tracee's own use, in its signal state under the task's lock.

mod access;
mod link;
pub mod options;
mod regs;
mod request;
mod stop;

use std::sync::Arc;

use abi::signal::SigInfo;
use platform::{Context, Regs};

use crate::Task;

pub use access::{Access, may_access};
pub use link::{attach, trace_me};
pub use regs::{NR_USER_REGS, RegsError, USER_REGS_SIZE};
pub use request::{Go, SyscallInfo, Tracee, check_options};

pub(crate) use link::{TraceLink, inherit, let_go_of_tracees, move_link};
pub(crate) use stop::{
    Group, after_handler, calls_begin, calls_end, child_stop, exec_stop, exit_stop, group_stop, new_child,
    seccomp_stop, signal_stop, vfork_done,
};

/// Where a task stands with regard to stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Standing {
    #[default]
    Running,
    /// Stopped by job control.
    Stopped,
    /// Stopped for its tracer.
    Traced,
    /// Stopped for its tracer, which listens: it does not count as stopped to requests (`PTRACE_LISTEN`).
    Listening,
}

/// What a task has before it of stops (`task->jobctl`).
#[derive(Debug, Default)]
pub(crate) struct Stops {
    /// A stop of the process is to be taken part in.
    pub pending: bool,
    /// A stop signal was taken from the queue, and no SIGCONT came since.
    pub dequeued: bool,
    /// The signal of the present or last stop of the process.
    pub signo: i32,
    /// The task is to stop for its tracer.
    pub trap: bool,
    /// The tracer is to learn that the stop of the process began or ended.
    pub notify: bool,
    /// Has taken part in the present stop of the process.
    pub joined: bool,
    pub standing: Standing,
}

/// A tracee's own view of its tracing.
#[derive(Debug)]
pub(crate) struct Trace {
    pub tracer: Arc<Task>,
    /// `PTRACE_SEIZE`, not `PTRACE_ATTACH`.
    pub seized: bool,
    /// `PTRACE_O_*`.
    pub options: u32,
    /// The code of the present stop, until somebody has waited for it.
    pub report: Option<i32>,
    /// `PTRACE_GETEVENTMSG`.
    pub message: u64,
    /// What `PTRACE_GETSIGINFO` shows; `None` at a group stop.
    pub info: Option<SigInfo>,
    /// The signal that the tracer wants delivered.
    pub inject: i32,
}

impl Trace {
    pub fn new(tracer: &Arc<Task>, seized: bool, options: u32) -> Self {
        Self { tracer: Arc::clone(tracer), seized, options, report: None, message: 0, info: None, inject: 0 }
    }
}

/// What a tracee in a stop leaves to its tracer.
pub(crate) struct StopRecord {
    pub regs: Regs,
    pub context: Box<dyn Context>,
}

impl core::fmt::Debug for StopRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("StopRecord")
    }
}

/// Bits that the run loop looks at, of [`Task::trace_mode`].
pub(crate) mod mode {
    /// Has a tracer.
    pub const TRACED: u8 = 1;
    /// Stops at the begin and the end of system calls.
    pub const CALLS: u8 = 2;
    /// Stops at the begin of system calls and does not do them.
    pub const EMULATED: u8 = 4;
    /// Stops after one instruction.
    pub const STEP: u8 = 8;
}
