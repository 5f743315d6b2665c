//! From a configuration, or a command line, to what the Sentry and the gofer are told.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use control_protocol::{
    Boot, Capabilities, MountFlags, MountKind, Options, Process, Rlimit, Root, TerminalSize, Text,
};

use net_broker::sockets::Grant as Sockets;
use oci_spec::runtime::{LinuxMemory, LinuxNamespaceType, LinuxResources};
use serde::{Deserialize, Serialize};

use crate::capability;
use crate::cgroup::weight_of;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::filestore::Filestore;
use crate::mounts::{self, Attachment};
use crate::pod;
use crate::seccomp;
use crate::sockets;
use crate::state::is_rootless;
use crate::systemd::{self, Scope};
use crate::validate::resource_number;

/// What to run and what of the host it sees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub boot: Boot,
    /// Attach points of the gofer; the first one is the root.
    pub attachments: Vec<Attachment>,
    /// Where what the container writes on its root is kept.
    #[serde(default)]
    pub filestore: Filestore,
    /// The policy of a user-mode NAT (JSON, or empty for the usual one), if the sandbox is to have one.
    #[serde(default)]
    pub nat: Option<String>,
    /// What a sandbox may have whose sockets are those of the network namespace that its processes on the host are in.
    #[serde(default)]
    pub sockets: Option<Sockets>,
    /// Limits of the sandbox's control group, if it is to have one.
    #[serde(skip)]
    pub limits: Limits,
    /// What of the configuration was left out without harm.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl Plan {
    /// Makes the sandbox' sockets the host's, under a policy (JSON) or under none. Call it when the program's capabilities
    /// are known.
    pub fn use_host_sockets(&mut self, policy: Option<String>) -> Result<()> {
        self.sockets = Some(self.host_sockets(policy)?);
        Ok(())
    }

    /// What it may have of host sockets under a policy.
    pub(crate) fn host_sockets(&self, policy: Option<String>) -> Result<Sockets> {
        let grant = Sockets { policy, capabilities: self.boot.process.capabilities.bounding };
        sockets::check(&grant)?;
        Ok(grant)
    }

    /// Has what is written to the root reach the host's files as it is written, where it can be written at all.
    pub fn write_through(&mut self) {
        if self.boot.root.readonly {
            return;
        }
        self.boot.root.write_through = true;
        if let Some(root) = self.attachments.first_mut() {
            root.read_only = false;
        }
    }
}

/// What the sandbox's control group limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// A path below each hierarchy's mount; none makes no group.
    pub path: Option<PathBuf>,
    /// The scope whose group `path` is, if systemd is to make it.
    pub scope: Option<Scope>,
    pub resources: Option<LinuxResources>,
}

/// How many processors the quota is worth, rounded up; 0 without a quota.
fn cpus(resources: &LinuxResources) -> u32 {
    let Some(cpu) = resources.cpu() else { return 0 };
    let Some(quota) = cpu.quota().and_then(|quota| u64::try_from(quota).ok()) else { return 0 };
    u32::try_from(quota.div_ceil(cpu.period().unwrap_or(100_000).max(1))).unwrap_or(0)
}

/// What the Sentry is told of the limits that it shows or keeps itself.
fn told(options: Options, limits: &Limits) -> Options {
    let Some(resources) = &limits.resources else { return options };
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    let cpu = resources.cpu().as_ref();
    let shares = cpu.and_then(oci_spec::runtime::LinuxCpu::shares).filter(|shares| *shares > 0);
    let period = cpu.and_then(oci_spec::runtime::LinuxCpu::period).filter(|period| *period > 0);
    Options {
        cpus: cpus(resources),
        cpu_quota: cpu.and_then(oci_spec::runtime::LinuxCpu::quota).map_or(0, positive),
        cpu_period: period.unwrap_or(0),
        cpu_weight: shares.map_or(0, weight_of),
        tasks: resources.pids().as_ref().map_or(0, |pids| positive(pids.limit())),
        memory: resources.memory().as_ref().and_then(LinuxMemory::limit).map_or(0, positive),
        ..options
    }
}

/// The plan of an OCI bundle.
///
/// With `systemd`, a control group path of the form `slice:prefix:name` is that of a scope.
pub fn of_bundle(id: &str, config: &Config, options: Options, systemd: bool) -> Result<Plan> {
    let spec = &config.spec;
    let mut attachments = vec![Attachment::read_only(&config.rootfs)];
    let mut mounts = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let parsed = mounts::parse(index, mount)?;
        mounts::resolve(index, parsed, &config.bundle, &mut attachments, &mut mounts)?;
    }
    let process = spec.process().as_ref().map(of_process).unwrap_or_default();
    let linux = spec.linux().as_ref();
    let list = |paths: Option<&Option<Vec<String>>>| paths.cloned().flatten().unwrap_or_default();
    let mut limits = linux.map(|linux| limits_of(id, linux, systemd)).transpose()?.unwrap_or_default();
    if let (Some(scope), Some(annotations)) = (&mut limits.scope, spec.annotations()) {
        scope.given = systemd::given(annotations)?;
    }
    pod::adjust(&mut limits, config);
    let mut options = options;
    crate::bandwidth::tighten(&mut options, spec.annotations().as_ref())?;
    let readonly = spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false);
    let mut notes = Vec::new();
    let filter = match linux.and_then(|linux| linux.seccomp().as_ref()) {
        Some(profile) => {
            let compiled = seccomp::compile(profile)?;
            if !compiled.skipped.is_empty() {
                notes.push(format!(
                    "linux.seccomp: calls that are not known: {}",
                    compiled.skipped.join(", ")
                ));
            }
            Some(compiled.filter)
        }
        None => None,
    };
    let sysctls = linux.and_then(|linux| linux.sysctl().as_ref()).into_iter().flatten();
    let mut sysctls: Vec<_> = sysctls.map(|(name, value)| (name.clone(), value.clone())).collect();
    sysctls.sort_unstable();
    let boot = Boot {
        version: Boot::VERSION,
        id: id.to_owned(),
        process,
        hostname: spec.hostname().clone().or_else(|| hosts_name(linux)),
        domainname: spec.domainname().clone(),
        root: Root { attach: 0, readonly, write_through: false },
        mounts,
        masked_paths: list(linux.map(oci_spec::runtime::Linux::masked_paths)),
        readonly_paths: list(linux.map(oci_spec::runtime::Linux::readonly_paths)),
        filter,
        sysctls,
        options: told(options, &limits),
        network: None,
        held: false,
        descriptors: Vec::new(),
    };
    let filestore = Filestore::default();
    Ok(Plan { boot, attachments, filestore, nat: None, sockets: None, limits, notes })
}

/// The name of the host, for a container that is to have no other.
fn hosts_name(linux: Option<&oci_spec::runtime::Linux>) -> Option<String> {
    let mut namespaces = linux?.namespaces().iter().flatten();
    if namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Uts) {
        return None;
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

pub(crate) fn limits_of(id: &str, linux: &oci_spec::runtime::Linux, systemd: bool) -> Result<Limits> {
    let asked = linux.cgroups_path().as_ref().filter(|path| !path.as_os_str().is_empty());
    let (path, scope) = match asked {
        _ if systemd => {
            let default = if is_rootless() { "user.slice" } else { "system.slice" };
            scope(id, asked.map(|path| path.to_string_lossy()).as_deref(), default)?
        }
        Some(path) => (relative(path), None),
        None => (PathBuf::from(id), None),
    };
    Ok(Limits { path: Some(path), scope, resources: linux.resources().clone() })
}

/// Where systemd puts the scope that `slice:prefix:name` stands for (`systemd.slice(5)`), by the rules of runc, and that scope.
/// A slice in its place is a directory alone: no process can be put into a slice by way of systemd.
fn scope(id: &str, asked: Option<&str>, default: &str) -> Result<(PathBuf, Option<Scope>)> {
    let wrong = |problem: String| Err(Error::field("linux.cgroupsPath", problem));
    let (slice, prefix, name) = match asked {
        None => ("", "runc", id),
        Some(asked) => {
            let parts: Vec<&str> = asked.split(':').collect();
            let &[slice, prefix, name] = parts.as_slice() else {
                return wrong(format!(
                    "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {asked:?} instead"
                ));
            };
            (slice, prefix, name)
        }
    };
    let slice = if slice.is_empty() { default } else { slice };
    // A slash in any of them would lead to a directory that is not systemd's.
    let plain = |word: &str| !word.contains('/') && word != "." && word != "..";
    let stem = slice.strip_suffix(".slice").filter(|stem| !stem.is_empty() && plain(stem));
    let Some(stem) = stem else {
        return wrong(format!("invalid slice name: {slice}"));
    };
    let mut path = PathBuf::new();
    if stem != "-" {
        // "a-b.slice" lies in "a.slice".
        let mut upto = String::new();
        for word in stem.split('-') {
            if word.is_empty() {
                return wrong(format!("invalid slice name: {slice}"));
            }
            if !upto.is_empty() {
                upto.push('-');
            }
            upto.push_str(word);
            path.push(format!("{upto}.slice"));
        }
    }
    let is_slice = name.rsplit_once('.').is_some_and(|(_, kind)| kind == "slice");
    let unit = if is_slice { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    if name.is_empty() || !plain(&unit) {
        return wrong(format!("invalid unit name: {unit}"));
    }
    path.push(&unit);
    let scope = (!is_slice).then(|| Scope { slice: slice.to_owned(), unit, given: Vec::new() });
    Ok((path, scope))
}

fn relative(path: &Path) -> PathBuf {
    mounts::clean(path).strip_prefix("/").map(Path::to_path_buf).unwrap_or_default()
}

pub(crate) fn of_process(process: &oci_spec::runtime::Process) -> Process {
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
    let tmpfs = || MountKind::Tmpfs { data: "mode=1777".into(), copy_up: false };
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
        root: Root { attach: 0, readonly: false, write_through: false },
        mounts,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        filter: None,
        sysctls: Vec::new(),
        options,
        network: None,
        held: false,
        descriptors: Vec::new(),
    };
    let attachments = vec![Attachment::read_only("/")];
    Plan {
        boot,
        attachments,
        filestore: Filestore::default(),
        nat: None,
        sockets: None,
        limits: Limits::default(),
        notes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_lie_where_systemd_puts_them() {
        let of = |asked| scope("id", asked, "system.slice");
        let at = |asked| of(asked).map(|(path, _)| path.display().to_string()).map_err(|e| e.to_string());
        let unit = |asked| of(Some(asked)).unwrap().1.map(|scope| (scope.slice, scope.unit));
        assert_eq!(unit("a-b.slice:p:n"), Some(("a-b.slice".into(), "p-n.scope".into())));
        assert_eq!(unit("a.slice::b.slice"), None);
        let ok = |path: &str| Ok(path.to_owned());
        assert_eq!(at(None), ok("system.slice/runc-id.scope"));
        assert_eq!(at(Some(":docker:abc")), ok("system.slice/docker-abc.scope"));
        assert_eq!(at(Some("machine.slice:libpod:abc")), ok("machine.slice/libpod-abc.scope"));
        assert_eq!(
            at(Some("kubepods-burstable-podx.slice:cri-containerd:c")),
            ok(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-containerd-c.scope"
            )
        );
        assert_eq!(at(Some("-.slice:p:n")), ok("p-n.scope"));
        assert_eq!(at(Some("a.slice::b.slice")), ok("a.slice/b.slice"));
        for wrong in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "/a.slice:b:c",
            "a.slice:b:../c",
            "a--b.slice:c:d",
            ".slice:a:b",
            "a.slice:/etc:b",
            "a.slice:b:",
            "..slice:a/b:c",
        ] {
            assert!(at(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
