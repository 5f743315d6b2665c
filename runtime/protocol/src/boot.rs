//! What the command asks the Sentry to run, checked and resolved.

use serde::{Deserialize, Serialize};

use crate::{Network, Stopwatch, Text};

/// Everything that the Sentry needs to start one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Both sides come from one binary, so any other value is a mistake.
    pub version: u32,
    pub id: String,
    pub process: Process,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub root: Root,
    /// In the order in which they are mounted.
    pub mounts: Vec<Mount>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// What every process of the container starts with.
    pub filter: Option<SyscallFilter>,
    /// Settings of the kernel: names with dots, and their values.
    pub sysctls: Vec<(String, String)>,
    pub options: Options,
    /// The network, where it is known already.
    #[serde(default)]
    pub network: Option<Network>,
    /// Whether init waits for [`crate::Request::Start`] before its first instruction.
    pub held: bool,
    /// What the descriptors that came along with this message are, in their order.
    pub descriptors: Vec<Descriptor>,
}

impl Boot {
    pub const VERSION: u32 = 4;

    /// The abstract name of the container's notify socket, where it has one.
    pub fn notify_name(&self) -> String {
        format!("casemate/{}/notify", self.id)
    }
}

/// The role of a descriptor that travels with the boot message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Descriptor {
    /// Becomes this descriptor of the container's init.
    Guest(u32),
    /// A connection to the gofer that serves the attach points.
    Gofer,
    /// The log, opened for appending.
    Log,
    /// A stream socket to relay to the master side of the process' terminal.
    Console,
    /// A sparse file for the contents of what the container writes on its root.
    Filestore,
    /// A link of [`Boot::network`], in their order.
    Link,
    /// A connection to the broker that makes host sockets.
    Broker,
    /// The kernel's list of the sockets of that network, open for reading: TCP, TCP over IPv6, UDP, UDP over IPv6.
    SocketTable(u8),
    /// A listening socket: each connection carries one [`crate::Request`].
    Listener,
    /// A datagram socket that takes what comes to the container's notify socket ([`Boot::notify_name`]).
    Notify,
}

/// A process that the runtime starts: the container's init, or one that is executed in it later.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Process {
    /// Never empty.
    pub args: Vec<Text>,
    /// `NAME=value` each.
    pub env: Vec<Text>,
    /// Absolute.
    pub cwd: Text,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub umask: Option<u32>,
    /// Set if init gets a pseudo-terminal of the sandbox as its descriptors 0, 1 and 2.
    pub terminal: Option<TerminalSize>,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub capabilities: Capabilities,
    pub oom_score_adj: Option<i32>,
    /// Init alone: whether it is PID 1 of a namespace to signals too: those that it does not handle are dropped.
    pub shielded: bool,
}

/// A filter of system calls in classic BPF (`seccomp(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyscallFilter {
    pub program: Vec<FilterInsn>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// `struct sock_filter` (`linux/filter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilterInsn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Rows and columns, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// A limit by its number in `getrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// Sets of capabilities; bit `n` is capability number `n` (`capabilities(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// The root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The gofer's attach point.
    pub attach: u32,
    /// With `readonly` nothing can be written.
    pub readonly: bool,
    /// Whether writes go to the host's files, rather than to an upper layer inside the sandbox.
    pub write_through: bool,
}

/// One mount below the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, without `.`, `..` and empty components; created if it is missing.
    pub destination: Text,
    pub kind: MountKind,
    pub flags: MountFlags,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MountKind {
    Proc,
    Sysfs,
    /// A tmpfs with the sandbox's device nodes in it.
    Dev {
        data: String,
    },
    Devpts {
        data: String,
    },
    Mqueue,
    Cgroup,
    Tmpfs {
        /// Options of the file system itself, such as `size=64k,mode=755`.
        data: String,
        /// Whether it starts with what lies at its place below.
        copy_up: bool,
    },
    /// A file or directory of the host.
    Bind {
        attach: u32,
        is_directory: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountFlags {
    pub readonly: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub noatime: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Log what the Sentry does.
    pub debug: bool,
    /// Log every system call of the container.
    pub strace: bool,
    /// Seed of interruptions of system calls that no signal has caused, for tests; 0 for none.
    #[serde(default)]
    pub interruptions: u64,
    /// Log lines are JSON objects.
    pub log_json: bool,
    /// CPUs that the container is told of; 0 for as many as the host lets us use.
    pub cpus: u32,
    /// Processes and threads that the container may have; 0 for the usual limit.
    pub tasks: u64,
    /// Memory that the container is told of, in bytes; 0 for the host's.
    pub memory: u64,
    /// Processor time in a period that the container is told of, in microseconds; 0 for no limit.
    pub cpu_quota: u64,
    /// In microseconds; 0 for the usual one.
    pub cpu_period: u64,
    /// `cpu.weight` of a control group of version 2, 1 to 10000; 0 for the usual one.
    pub cpu_weight: u64,
    /// Bytes that the files which the container writes on its root may take; 0 for no limit.
    pub filestore_limit: u64,
    /// Let programs' text call the platform without a trap, where it can be changed to do so.
    pub patch: bool,
    /// Seed of the calls of such text that take a trap all the same, for tests; 0 for none.
    #[serde(default)]
    pub slow: u64,
    /// The stub answers no call itself, for tests.
    #[serde(default)]
    pub no_answers: bool,
    /// Bits in a second that each link carries to and from the sandbox; 0 for no limit.
    #[serde(default)]
    pub ingress_bandwidth: u64,
    #[serde(default)]
    pub egress_bandwidth: u64,
    /// Log the moments of the start, by this clock.
    #[serde(default)]
    pub timing: Option<Stopwatch>,
}
