//! The system calls: one file a family, each a list of rows and the short functions behind them.
//!
//! A row gives number, name, arguments, dispatch, trace and support note. A function takes typed arguments, calls
//! into the object that does the work, and returns its result or errno; it holds no lock over a wait.
//!
//! **Threat.** Every argument is the application's.

mod args;
mod at_hand;
mod closing;
mod files;
mod fs_args;
mod net_args;
mod sys_aio;
mod sys_attr;
mod sys_cred;
mod sys_epoll;
mod sys_event;
mod sys_exec;
mod sys_fd;
mod sys_futex;
mod sys_inotify;
mod sys_io;
mod sys_misc;
mod sys_mm;
mod sys_mount;
mod sys_mount_fd;
mod sys_mqueue;
mod sys_path;
mod sys_pipe;
mod sys_poll;
mod sys_process;
mod sys_ptrace;
mod sys_sched;
mod sys_seccomp;
mod sys_signal;
mod sys_socket;
mod sys_stat;
mod sys_sysv;
mod sys_time;
mod sys_timer;
mod table;
mod turn;

pub use table::Table;
