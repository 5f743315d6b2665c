//! From a configuration, or a command line, to what the Sentry and the gofer are told.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use control_protocol::{
    Boot, Capabilities, MountFlags, MountKind, Options, Process, Rlimit, Root, TerminalSize, Text,
};

use crate::capability;
use crate::config::Config;
use crate::error::Result;
use crate::mounts::{self, Attachment};
use crate::validate::resource_number;

/// What to run and what of the host it sees.
#[derive(Debug, Clone)]
pub struct Plan {
    pub boot: Boot,
    /// Attach points of the gofer; the first one is the root.
    pub attachments: Vec<Attachment>,
    /// Limits of the sandbox's control group, if it is to have one.
    pub limits: Limits,
}

/// What the sandbox's control group limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// A path below each hierarchy's mount; none makes no group.
    pub path: Option<PathBuf>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Microseconds of processor time a period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
}

impl Limits {
    fn any(&self) -> bool {
        self.memory.is_some() || self.pids.is_some() || self.cpu_quota.is_some()
    }

    /// How many processors the quota is worth, rounded up; 0 without a quota.
    fn cpus(&self) -> u32 {
        let (Some(quota), Some(period)) = (self.cpu_quota, self.cpu_period) else { return 0 };
        let Ok(quota) = u64::try_from(quota) else { return 0 };
        u32::try_from(quota.div_ceil(period.max(1))).unwrap_or(0)
    }
}

/// The plan of an OCI bundle.
pub fn of_bundle(id: &str, config: &Config, options: Options) -> Result<Plan> {
    let spec = &config.spec;
    let mut attachments = vec![Attachment { source: config.rootfs.clone(), read_only: true }];
    let mut mounts = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let parsed = mounts::parse(index, mount)?;
        mounts.push(mounts::resolve(index, parsed, &config.bundle, &mut attachments)?);
    }
    let process = spec.process().as_ref().map(of_process).unwrap_or_default();
    let linux = spec.linux().as_ref();
    let list = |paths: Option<&Option<Vec<String>>>| paths.cloned().flatten().unwrap_or_default();
    let limits = linux.map(|linux| limits_of(id, linux)).unwrap_or_default();
    let boot = Boot {
        version: Boot::VERSION,
        id: id.to_owned(),
        process,
        hostname: spec.hostname().clone(),
        domainname: spec.domainname().clone(),
        root: Root {
            attach: 0,
            readonly: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
        },
        mounts,
        masked_paths: list(linux.map(oci_spec::runtime::Linux::masked_paths)),
        readonly_paths: list(linux.map(oci_spec::runtime::Linux::readonly_paths)),
        options: Options {
            cpus: limits.cpus(),
            tasks: limits.pids.unwrap_or(0),
            memory: limits.memory.unwrap_or(0),
            ..options
        },
        descriptors: Vec::new(),
    };
    Ok(Plan { boot, attachments, limits })
}

fn limits_of(id: &str, linux: &oci_spec::runtime::Linux) -> Limits {
    let mut limits = Limits::default();
    if let Some(resources) = linux.resources() {
        let positive = |value: i64| u64::try_from(value).ok();
        limits.pids = resources.pids().as_ref().and_then(|pids| positive(pids.limit()));
        if let Some(memory) = resources.memory() {
            limits.memory = memory.limit().and_then(positive).filter(|limit| *limit > 0);
        }
        if let Some(cpu) = resources.cpu() {
            limits.cpu_quota = cpu.quota().filter(|quota| *quota > 0);
            limits.cpu_period = limits.cpu_quota.map(|_| cpu.period().unwrap_or(100_000));
        }
    }
    let asked = linux.cgroups_path().as_ref().filter(|path| !path.as_os_str().is_empty());
    limits.path = match asked {
        Some(path) => Some(relative(path)),
        None if limits.any() => Some(PathBuf::from("casemate").join(id)),
        None => None,
    };
    limits
}

fn relative(path: &Path) -> PathBuf {
    mounts::clean(path).strip_prefix("/").map(Path::to_path_buf).unwrap_or_default()
}

fn of_process(process: &oci_spec::runtime::Process) -> Process {
    let texts = |list: &Option<Vec<String>>| list.iter().flatten().map(|s| Text::from(s.as_str())).collect();
    let user = process.user();
    let mut size = TerminalSize::default();
    if let Some(asked) = process.console_size() {
        size.rows = u16::try_from(asked.height()).unwrap_or(0);
        size.columns = u16::try_from(asked.width()).unwrap_or(0);
    }
    Process {
        args: texts(process.args()),
        env: texts(process.env()),
        cwd: Text::from(mounts::clean(process.cwd()).as_os_str()),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        terminal: process.terminal().unwrap_or(false).then_some(size),
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| Rlimit {
                resource: resource_number(limit.typ()),
                soft: limit.soft(),
                hard: limit.hard(),
            })
            .collect(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        capabilities: process.capabilities().as_ref().map(capability::to_sets).unwrap_or_default(),
        oom_score_adj: process.oom_score_adj(),
        shielded: true,
    }
}

/// A host command and the identity that it runs with.
#[derive(Debug, Clone)]
pub struct HostCommand {
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    /// Soft and hard limits in the order of their numbers.
    pub limits: Vec<(u64, u64)>,
    pub terminal: Option<TerminalSize>,
}

/// The plan of a host command whose root is the host's root under a throw-away layer.
pub fn of_host_command(id: &str, command: HostCommand, options: Options) -> Plan {
    let mount = |destination: &str, kind: MountKind, noexec: bool| control_protocol::Mount {
        destination: Text::from(destination),
        kind,
        flags: MountFlags { nosuid: true, noexec, ..MountFlags::default() },
    };
    let tmpfs = || MountKind::Tmpfs { data: "mode=1777".into() };
    let mut mounts = vec![
        mount("/proc", MountKind::Proc, true),
        mount("/sys", MountKind::Sysfs, true),
        mount("/dev", MountKind::Dev { data: "mode=755".into() }, false),
        mount("/dev/pts", MountKind::Devpts { data: "mode=620,ptmxmode=666".into() }, true),
        mount("/dev/shm", tmpfs(), false),
    ];
    // A command that is run from below /tmp works on files there: they stay visible, under the layer.
    if !command.cwd.starts_with("/tmp") {
        mounts.push(mount("/tmp", tmpfs(), false));
    }
    let capabilities = if command.uid == 0 {
        let all = capability::ALL;
        Capabilities { bounding: all, effective: all, permitted: all, ..Capabilities::default() }
    } else {
        Capabilities { bounding: capability::ALL, ..Capabilities::default() }
    };
    let process = Process {
        args: command.args.into_iter().map(Text::from).collect(),
        env: command
            .env
            .into_iter()
            .map(|(mut entry, value)| {
                entry.push("=");
                entry.push(value);
                Text::from(entry)
            })
            .collect(),
        cwd: Text::from(command.cwd.as_os_str()),
        uid: command.uid,
        gid: command.gid,
        additional_gids: command.groups,
        umask: Some(command.umask),
        terminal: command.terminal,
        rlimits: command
            .limits
            .into_iter()
            .zip(0..)
            .map(|((soft, hard), resource)| Rlimit { resource, soft, hard })
            .collect(),
        no_new_privileges: false,
        capabilities,
        oom_score_adj: None,
        shielded: false,
    };
    let boot = Boot {
        version: Boot::VERSION,
        id: id.to_owned(),
        process,
        hostname: None,
        domainname: None,
        root: Root { attach: 0, readonly: false },
        mounts,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        options,
        descriptors: Vec::new(),
    };
    let attachments = vec![Attachment { source: PathBuf::from("/"), read_only: true }];
    Plan { boot, attachments, limits: Limits::default() }
}
