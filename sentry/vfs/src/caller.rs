//! What a file may ask of the task that calls it, without knowing the kernel's task type.

use core::any::Any;
use std::sync::Arc;

use sentry_base::Result;
use sentry_memory::{MemoryFile, UserMemory};

use crate::Credentials;

/// The task on whose behalf a file operation runs.
pub trait Caller: JobControl {
    fn creds(&self) -> Arc<Credentials>;
    /// The caller's memory, for `ioctl` arguments and the like.
    fn mem(&self) -> &dyn UserMemory;
    /// Thread id, process id.
    fn tid(&self) -> i32;
    fn pid(&self) -> i32;
    /// Where the caller's memory is taken from, for files that make memory to be mapped.
    fn memory_file(&self) -> Option<Arc<MemoryFile>> {
        None
    }
    /// The name of the calling task (`PR_SET_NAME`), without its zero.
    fn comm(&self) -> Vec<u8> {
        Vec::new()
    }
    /// The soft limit of a resource (`RLIMIT_*`, `getrlimit(2)`).
    fn rlimit(&self, resource: u32) -> u64;
    /// The number of a process, group or session as the caller sees it; 0 for one outside of its PID namespace.
    fn show_pid(&self, number: i32) -> i32 {
        number
    }
    /// The Sentry's number for one that the caller names; `None` for one that it cannot see.
    fn resolve_pid(&self, number: i32) -> Option<i32> {
        Some(number)
    }
    /// Sends a signal to the caller itself (SIGPIPE, SIGXFSZ).
    fn signal_self(&self, signal: i32);
    /// The kernel's own task, for files of the kernel (procfs).
    fn as_any(&self) -> &dyn Any;
}

/// Process groups and sessions, as a terminal needs them (`credentials(7)`, `drivers/tty/tty_jobctrl.c`).
pub trait JobControl: Send + Sync {
    fn pgid(&self) -> i32;
    fn sid(&self) -> i32;
    /// The session that a process group belongs to, if it exists.
    fn session_of_group(&self, pgid: i32) -> Option<i32>;
    /// Whether the caller's process group is orphaned (no parent outside it in the same session).
    fn group_is_orphaned(&self) -> bool;
    /// Whether the caller blocks or ignores the signal.
    fn ignores_or_blocks(&self, signal: i32) -> bool;
    /// Sends a signal to every process of a group.
    fn signal_group(&self, pgid: i32, signal: i32);
    /// The controlling terminal of the caller's session.
    fn controlling_terminal(&self) -> Option<Arc<dyn Terminal>>;
    /// Makes `terminal` the controlling terminal of the caller's session, whose leader the caller must be (`EPERM`
    /// otherwise, or where the session has one).
    fn set_controlling_terminal(&self, terminal: Arc<dyn Terminal>, steal: bool) -> Result<()>;
    /// Gives up the controlling terminal (`TIOCNOTTY`).
    fn drop_controlling_terminal(&self) -> Result<()>;
}

/// A terminal as a session holds it.
pub trait Terminal: Send + Sync {
    /// Device number (`st_rdev`), for `/proc/PID/stat`.
    fn rdev(&self) -> u64;
    /// The foreground process group; 0 for none.
    fn foreground(&self) -> i32;
    fn set_foreground(&self, pgid: i32);
    /// The session that it controls; 0 for none.
    fn session(&self) -> i32;
    fn set_session(&self, sid: i32);
    /// The session leader exited: hang up.
    fn hang_up(&self);
    fn as_any(&self) -> &dyn Any;
}

/// Where a line discipline sends its signals when no task is at hand (input that arrives from the host).
pub trait SignalSink: Send + Sync {
    fn signal_group(&self, pgid: i32, signal: i32);
    /// Tells the owner of a file (`F_SETOWN`) that its lease is to be given up.
    fn signal_owner(&self, file: &crate::FileDescription, fd: i32) {
        let _ = (file, fd);
    }
}
