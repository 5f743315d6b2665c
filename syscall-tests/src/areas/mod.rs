//! The table of areas; each module states one family of system calls.

use crate::harness::Area;

mod attr;
mod cred;
mod dir;
mod epoll;
mod event;
mod exec;
mod fd;
mod file;
mod futex;
mod mm;
mod mount;
mod ns;
mod path;
mod pidns;
mod pipe;
mod pty;
mod poll;
mod process;
mod procfs;
mod ptrace;
mod ptrace_events;
mod rename;
mod rlimit;
mod sigframe;
mod signal;
mod thread;
mod time;
mod tmpfs;
mod tty;
mod unix;

/// Every area, in the order in which `list` prints them.
pub const AREAS: &[Area] = &[
    Area { name: "process", cases: process::CASES },
    Area { name: "exec", cases: exec::CASES },
    Area { name: "signal", cases: signal::CASES },
    Area { name: "sigframe", cases: sigframe::CASES },
    Area { name: "ptrace", cases: ptrace::CASES },
    Area { name: "ptrace-events", cases: ptrace_events::CASES },
    Area { name: "futex", cases: futex::CASES },
    Area { name: "thread", cases: thread::CASES },
    Area { name: "mm", cases: mm::CASES },
    Area { name: "time", cases: time::CASES },
    Area { name: "fd", cases: fd::CASES },
    Area { name: "file", cases: file::CASES },
    Area { name: "poll", cases: poll::CASES },
    Area { name: "epoll", cases: epoll::CASES },
    Area { name: "pipe", cases: pipe::CASES },
    Area { name: "event", cases: event::CASES },
    Area { name: "unix", cases: unix::CASES },
    Area { name: "tty", cases: tty::CASES },
    Area { name: "pty", cases: pty::CASES },
    Area { name: "path", cases: path::CASES },
    Area { name: "dir", cases: dir::CASES },
    Area { name: "rename", cases: rename::CASES },
    Area { name: "attr", cases: attr::CASES },
    Area { name: "tmpfs", cases: tmpfs::CASES },
    Area { name: "ns", cases: ns::CASES },
    Area { name: "pidns", cases: pidns::CASES },
    Area { name: "mount", cases: mount::CASES },
    Area { name: "proc", cases: procfs::CASES },
    Area { name: "cred", cases: cred::CASES },
    Area { name: "rlimit", cases: rlimit::CASES },
];
