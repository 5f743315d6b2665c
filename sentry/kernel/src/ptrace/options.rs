//! Numbers of the tracing interface (`<linux/ptrace.h>`).

#![allow(missing_docs, reason = "names as ptrace(2) has them")]

pub const TRACESYSGOOD: u32 = 1;
pub const TRACEFORK: u32 = 1 << EVENT_FORK;
pub const TRACEVFORK: u32 = 1 << EVENT_VFORK;
pub const TRACECLONE: u32 = 1 << EVENT_CLONE;
pub const TRACEEXEC: u32 = 1 << EVENT_EXEC;
pub const TRACEVFORKDONE: u32 = 1 << EVENT_VFORK_DONE;
pub const TRACEEXIT: u32 = 1 << EVENT_EXIT;
pub const TRACESECCOMP: u32 = 1 << EVENT_SECCOMP;
pub const EXITKILL: u32 = 1 << 20;
pub const SUSPEND_SECCOMP: u32 = 1 << 21;
/// Every option.
pub const ALL: u32 = 0xff | EXITKILL | SUSPEND_SECCOMP;

pub const EVENT_FORK: i32 = 1;
pub const EVENT_VFORK: i32 = 2;
pub const EVENT_CLONE: i32 = 3;
pub const EVENT_EXEC: i32 = 4;
pub const EVENT_VFORK_DONE: i32 = 5;
pub const EVENT_EXIT: i32 = 6;
pub const EVENT_SECCOMP: i32 = 7;
pub const EVENT_STOP: i32 = 128;

pub const EVENTMSG_SYSCALL_ENTRY: u64 = 1;
pub const EVENTMSG_SYSCALL_EXIT: u64 = 2;
