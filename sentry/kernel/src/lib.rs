//! The user-space kernel's core: tasks, processes, sessions, signals, futexes, timers, exec, exit and wait.
//!
//! A task is one future ([`run`]) and a stored state; what a task does next is decided from that state and never
//! from a suspended stack. The kernel sees a platform and a system-call table as traits and nothing of files beyond
//! the VFS.
//!
//! **Lock ranks:** `TaskSet` 70, `SigHand` 80, `Task` 90, `FutexBucket` 140.
//!
//! **Threat.** Everything in registers and user memory is the application's. Nothing here may panic on it.

mod accounting;
pub mod aio;
mod at_hand;
mod attributes;
mod clone;
mod cpu;
pub mod current;
mod exec;
mod exec_creds;
mod exit;
mod futex;
mod futex_pi;
mod group;
mod init;
mod injection;
mod ipc;
mod jobs;
mod kernel;
mod limits;
mod midway;
mod no_space;
pub mod ns;
mod outbox;
pub mod pidfd;
pub mod ptrace;
mod robust;
mod run;
pub mod seccomp;
pub mod sigio;
pub mod signal;
pub mod syscall;
pub mod task;
mod task_set;
mod timers;
mod user_dispatch;
mod wait;

pub use accounting::{IoCounters, IoUse};
pub use at_hand::HAND_PIECE;
pub use clone::{CloneSpec, clone_task};
pub use current::{BlockEnd, Current};
pub use exec::{ExecSpec, execve};
pub use futex::{FutexTable, FutexWaiter, MATCH_ANY};
pub use futex_pi::{PiAttempt, PiWaiter};
pub use group::ThreadGroup;
pub use init::{InitError, Prepared};
pub use kernel::{
    ExitCallback, InitSpec, Kernel, KernelConfig, RELEASE, TraceSink, Unsupported, UtsNames, VERSION,
};
pub use limits::Limits;
pub use ns::{Namespaces, PidNs};
pub use outbox::CallerMemory;
pub use sentry_mm::Mm;
pub use sentry_vfs::{FdTable, FsContext, MountNamespace, Vfs};
pub use syscall::{Call, Handler, IntoRax, Restart, Row, Stop, SysResult, SyscallTable};
pub use task::{RestartBlock, Scheduling, Task, TaskState};
pub use task_set::PID_MAX;
pub use timers::{TimerClock, TimerKey, TimerSetting};
pub use user_dispatch::UserDispatch;
pub use wait::{WaitFor, WaitOptions, Waited, try_wait};
