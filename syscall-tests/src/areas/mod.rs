//! The table of areas; each module states one family of system calls.

use crate::harness::Area;

mod aio;
mod attack;
mod attr;
mod copy;
mod cred;
mod dir;
mod epoll;
mod event;
mod exec;
mod execcred;
mod fd;
mod file;
mod fileio;
mod frames;
mod futex;
mod futex_pi;
mod futexv;
mod hand;
mod inet_close;
mod inet_dgram;
mod inet_group;
mod inet_options;
mod inet_raw;
mod inet_stream;
mod inet_wait;
mod inotify;
mod ipc_limits;
mod limits;
mod lock;
mod long;
mod membarrier;
mod memfd;
mod mm;
mod mm_limits;
mod mount;
mod mount_limits;
mod mqueue;
mod netdev;
mod netdiag;
mod netset;
mod ns;
mod openat2;
mod packet;
mod path;
mod pidfd;
mod pidns;
mod pipe;
mod poll;
mod prctl;
mod process;
mod procfs;
mod ptrace;
mod ptrace_events;
mod pty;
mod realpath;
mod rename;
mod rlimit;
mod sched;
mod seccomp;
mod sigaction;
mod sigframe;
mod sigio;
mod signal;
mod straight;
mod sysv;
mod thread;
mod time;
mod tmpfs;
mod tree;
mod tty;
mod unix;
mod urgent;
mod urgent_tcp;
mod xattr;

/// Every area, in the order in which `list` prints them.
pub const AREAS: &[Area] = &[
    Area { name: "process", cases: process::CASES },
    Area { name: "exec", cases: exec::CASES },
    Area { name: "signal", cases: signal::CASES },
    Area { name: "sigio", cases: sigio::CASES },
    Area { name: "sigaction", cases: sigaction::CASES },
    Area { name: "sigframe", cases: sigframe::CASES },
    Area { name: "straight", cases: straight::CASES },
    Area { name: "ptrace", cases: ptrace::CASES },
    Area { name: "ptrace-events", cases: ptrace_events::CASES },
    Area { name: "futex", cases: futex::CASES },
    Area { name: "thread", cases: thread::CASES },
    Area { name: "mm", cases: mm::CASES },
    Area { name: "mm-limits", cases: mm_limits::CASES },
    Area { name: "memfd", cases: memfd::CASES },
    Area { name: "time", cases: time::CASES },
    Area { name: "fd", cases: fd::CASES },
    Area { name: "file", cases: file::CASES },
    Area { name: "poll", cases: poll::CASES },
    Area { name: "epoll", cases: epoll::CASES },
    Area { name: "pipe", cases: pipe::CASES },
    Area { name: "event", cases: event::CASES },
    Area { name: "unix", cases: unix::CASES },
    Area { name: "hand", cases: hand::CASES },
    Area { name: "inet_stream", cases: inet_stream::CASES },
    Area { name: "inet_dgram", cases: inet_dgram::CASES },
    Area { name: "inet_wait", cases: inet_wait::CASES },
    Area { name: "inet_raw", cases: inet_raw::CASES },
    Area { name: "inet_group", cases: inet_group::CASES },
    Area { name: "inet_options", cases: inet_options::CASES },
    Area { name: "netdev", cases: netdev::CASES },
    Area { name: "netset", cases: netset::CASES },
    Area { name: "netdiag", cases: netdiag::CASES },
    Area { name: "inet_close", cases: inet_close::CASES },
    Area { name: "urgent", cases: urgent::CASES },
    Area { name: "urgent_tcp", cases: urgent_tcp::CASES },
    Area { name: "tty", cases: tty::CASES },
    Area { name: "pty", cases: pty::CASES },
    Area { name: "packet", cases: packet::CASES },
    Area { name: "path", cases: path::CASES },
    Area { name: "dir", cases: dir::CASES },
    Area { name: "realpath", cases: realpath::CASES },
    Area { name: "rename", cases: rename::CASES },
    Area { name: "attr", cases: attr::CASES },
    Area { name: "tree", cases: tree::CASES },
    Area { name: "openat2", cases: openat2::CASES },
    Area { name: "fileio", cases: fileio::CASES },
    Area { name: "long", cases: long::CASES },
    Area { name: "copy", cases: copy::CASES },
    Area { name: "lock", cases: lock::CASES },
    Area { name: "xattr", cases: xattr::CASES },
    Area { name: "inotify", cases: inotify::CASES },
    Area { name: "ipc_limits", cases: ipc_limits::CASES },
    Area { name: "tmpfs", cases: tmpfs::CASES },
    Area { name: "ns", cases: ns::CASES },
    Area { name: "pidns", cases: pidns::CASES },
    Area { name: "mount", cases: mount::CASES },
    Area { name: "mount_limits", cases: mount_limits::CASES },
    Area { name: "proc", cases: procfs::CASES },
    Area { name: "aio", cases: aio::CASES },
    Area { name: "attack", cases: attack::CASES },
    Area { name: "cred", cases: cred::CASES },
    Area { name: "rlimit", cases: rlimit::CASES },
    Area { name: "seccomp", cases: seccomp::CASES },
    Area { name: "futex_pi", cases: futex_pi::CASES },
    Area { name: "futexv", cases: futexv::CASES },
    Area { name: "sysv", cases: sysv::CASES },
    Area { name: "mqueue", cases: mqueue::CASES },
    Area { name: "execcred", cases: execcred::CASES },
    Area { name: "prctl", cases: prctl::CASES },
    Area { name: "sched", cases: sched::CASES },
    Area { name: "pidfd", cases: pidfd::CASES },
    Area { name: "frames", cases: frames::CASES },
    Area { name: "limits", cases: limits::CASES },
    Area { name: "membarrier", cases: membarrier::CASES },
];
