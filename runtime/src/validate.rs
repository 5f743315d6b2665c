//! Checks every value of a configuration before anything is done with it.
//!
//! Unknown fields are ignored, as the specification wants; a value that is wrong, or that asks for something that
//! this runtime cannot give, is an error that names the field. What may be left out without harm is a warning.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::{
    Hooks, Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, PosixRlimitType, Process, Spec, User,
};

use crate::error::{Error, Result};
use crate::mounts;
use crate::pod::{Part, process_of};
use crate::seccomp;

/// `HOST_NAME_MAX` (`limits.h`).
const HOST_NAME_MAX: usize = 64;

/// Checks the whole configuration; returns warnings.
pub(crate) fn spec(spec: &Spec) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    version(spec.version())?;
    match spec.root() {
        Some(root) => {
            if root.path().as_os_str().is_empty() {
                return Err(Error::field("root.path", "must be the path of a directory, got \"\""));
            }
            no_nul("root.path", root.path().as_os_str().as_bytes())?;
        }
        None => {
            return Err(Error::field(
                "root",
                "must be set to an object with the \"path\" of the root directory",
            ));
        }
    }
    match spec.process() {
        Some(process) => check_process(process, &mut warnings)?,
        None => return Err(Error::field("process", "process property must not be empty")),
    }
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if let Some(name) = name {
            no_nul(field, name.as_bytes())?;
            if name.len() > HOST_NAME_MAX {
                let problem = format!("must be at most {HOST_NAME_MAX} bytes, got {}", name.len());
                return Err(Error::field(field, problem));
            }
        }
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        mounts::parse(index, mount)?;
    }
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
    for (field, set) in [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("zos", spec.zos().is_some()),
    ] {
        if set {
            return Err(Error::field(field, "is for another platform; must be absent"));
        }
    }
    if spec.vm().is_some() {
        return Err(Error::field("vm", "virtual machines cannot be run yet; must be absent"));
    }
    if let Some(linux) = spec.linux() {
        check_linux(linux, spec, &mut warnings)?;
    }
    Ok(warnings)
}

fn check_hooks(hooks: &Hooks) -> Result<()> {
    let lists = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in lists {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = format!("hooks.{name}[{index}]");
            absolute(&format!("{field}.path"), hook.path())?;
            if let Some(timeout) = hook.timeout()
                && timeout <= 0
            {
                return Err(Error::field(
                    format!("{field}.timeout"),
                    format!("must be above 0, got {timeout}"),
                ));
            }
            for text in hook.args().iter().chain(hook.env()).flatten() {
                no_nul(&field, text.as_bytes())?;
            }
        }
    }
    Ok(())
}

fn version(version: &str) -> Result<()> {
    // Older bundles leave it out, and runc takes them.
    if version.is_empty() {
        return Ok(());
    }
    let major = version.split(['.', '-', '+']).next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(1) => Ok(()),
        _ => Err(Error::field(
            "ociVersion",
            format!("must be a version 1.x, such as \"1.2.0\", got {version:?}"),
        )),
    }
}

fn no_nul(field: &str, bytes: &[u8]) -> Result<()> {
    if bytes.contains(&0) {
        return Err(Error::field(field, "must not contain a NUL byte"));
    }
    Ok(())
}

fn absolute(field: &str, path: &Path) -> Result<()> {
    no_nul(field, path.as_os_str().as_bytes())?;
    if !path.is_absolute() {
        return Err(Error::field(
            field,
            format!("must be an absolute path, got {:?}", path.display().to_string()),
        ));
    }
    Ok(())
}

pub(crate) fn check_process(process: &Process, warnings: &mut Vec<String>) -> Result<()> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(Error::field("process.args", "args must not be empty"));
    }
    for (index, arg) in args.iter().enumerate() {
        no_nul(&format!("process.args[{index}]"), arg.as_bytes())?;
    }
    for (index, entry) in process.env().iter().flatten().enumerate() {
        let field = format!("process.env[{index}]");
        no_nul(&field, entry.as_bytes())?;
        if entry.find('=').is_none_or(|at| at == 0) {
            return Err(Error::field(field, format!("must be NAME=value, got {entry:?}")));
        }
    }
    absolute("process.cwd", process.cwd())?;
    check_user(process.user())?;
    let mut seen = HashSet::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if !seen.insert(resource_number(limit.typ())) {
            return Err(Error::field(field, format!("{:?} is set twice", limit.typ().to_string())));
        }
        if limit.soft() > limit.hard() {
            let problem = format!("soft ({}) must not be above hard ({})", limit.soft(), limit.hard());
            return Err(Error::field(field, problem));
        }
    }
    if let Some(score) = process.oom_score_adj()
        && !(-1000..=1000).contains(&score)
    {
        return Err(Error::field("process.oomScoreAdj", format!("must be from -1000 to 1000, got {score}")));
    }
    if let Some(size) = process.console_size() {
        for (field, value) in [("height", size.height()), ("width", size.width())] {
            if u16::try_from(value).is_err() {
                let problem = format!("must be at most 65535, got {value}");
                return Err(Error::field(format!("process.consoleSize.{field}"), problem));
            }
        }
    }
    let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    for (field, set) in [
        ("process.selinuxLabel", given(process.selinux_label())),
        ("process.apparmorProfile", given(process.apparmor_profile())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ] {
        if set {
            warnings.push(format!("{field}: not applied inside the sandbox"));
        }
    }
    Ok(())
}

fn check_user(user: &User) -> Result<()> {
    // 2^32-1 means "unchanged" to the kernel's calls, so it is no identity.
    let identity = |field: &str, id: u32| {
        if id == u32::MAX {
            return Err(Error::field(field, format!("must be from 0 to {}, got {id}", u32::MAX - 1)));
        }
        Ok(())
    };
    identity("process.user.uid", user.uid())?;
    identity("process.user.gid", user.gid())?;
    for (index, gid) in user.additional_gids().iter().flatten().enumerate() {
        identity(&format!("process.user.additionalGids[{index}]"), *gid)?;
    }
    if let Some(umask) = user.umask()
        && umask > 0o777
    {
        return Err(Error::field("process.user.umask", format!("must be at most 0777, got {umask:#o}")));
    }
    Ok(())
}

fn check_linux(linux: &Linux, spec: &Spec, warnings: &mut Vec<String>) -> Result<()> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let mut seen = HashSet::new();
    let is_member = matches!(Part::of(spec), Part::Member(_));
    for (index, namespace) in namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if !seen.insert(namespace.typ()) {
            return Err(Error::field(
                field,
                format!("duplicate namespace {:?}", namespace.typ().to_string()),
            ));
        }
        let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else {
            continue;
        };
        absolute(&format!("{field}.path"), path)?;
        match namespace.typ() {
            // Those of the pod, which its containers share as one sandbox.
            LinuxNamespaceType::Pid | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts if is_member => {}
            // That of another container of ours, or it is refused when the container is made.
            LinuxNamespaceType::Pid if process_of(path).is_some() => {}
            // What is there becomes the sandbox' network, or makes its sockets.
            LinuxNamespaceType::Network => {}
            // Engines join those of a pod's first container. A sandbox has one of its own: it shares less.
            LinuxNamespaceType::Cgroup | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts => {
                warnings.push(format!("{field}.path: the sandbox has a namespace of its own instead"));
            }
            kind => {
                let problem = format!("a {kind} namespace of the host cannot be joined; must be absent");
                return Err(Error::field(format!("{field}.path"), problem));
            }
        }
    }
    if spec.hostname().is_some() && !seen.contains(&LinuxNamespaceType::Uts) {
        return Err(Error::field("hostname", "unable to set hostname without a private UTS namespace"));
    }
    for (name, maps) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
        for (index, map) in maps.iter().flatten().enumerate() {
            let field = format!("linux.{name}[{index}]");
            if map.size() == 0 {
                return Err(Error::field(field, "size must be at least 1"));
            }
            if map.container_id().checked_add(map.size()).is_none()
                || map.host_id().checked_add(map.size()).is_none()
            {
                return Err(Error::field(field, "containerID or hostID plus size must stay below 2^32"));
            }
        }
    }
    for (name, paths) in [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())] {
        for (index, path) in paths.iter().flatten().enumerate() {
            absolute(&format!("linux.{name}[{index}]"), Path::new(path))?;
        }
    }
    for (key, value) in linux.sysctl().iter().flatten() {
        let field = format!("linux.sysctl[{key:?}]");
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if key.is_empty() || !key.chars().all(plain) || key.contains("..") {
            return Err(Error::field(
                field,
                "must be named by letters, digits, \".\", \"_\", \"-\" and \"/\"",
            ));
        }
        if value.contains(['\n', '\0']) {
            return Err(Error::field(field, format!("must be one line, got {value:?}")));
        }
        check_sysctl(key, namespaces)?;
    }
    if let Some(path) = linux.cgroups_path() {
        no_nul("linux.cgroupsPath", path.as_os_str().as_bytes())?;
        if path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(Error::field(
                "linux.cgroupsPath",
                format!("must not contain \"..\", got {:?}", path.display().to_string()),
            ));
        }
    }
    match linux.rootfs_propagation().as_deref() {
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => {}
        Some(other) => {
            let problem = format!("must be \"private\" or \"slave\", got {other:?}");
            return Err(Error::field("linux.rootfsPropagation", problem));
        }
    }
    if let Some(resources) = linux.resources() {
        check_resources(resources, warnings)?;
    }
    if let Some(profile) = linux.seccomp() {
        seccomp::compile(profile)?;
    }
    for (field, set) in [
        ("linux.mountLabel", linux.mount_label().as_deref().is_some_and(|label| !label.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
    ] {
        if set {
            warnings.push(format!("{field}: not applied inside the sandbox"));
        }
    }
    Ok(())
}

/// Only what belongs to a namespace of the container's own can be set; the sentences are runc's.
fn check_sysctl(key: &str, namespaces: &[LinuxNamespace]) -> Result<()> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let own = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    // With slashes the dots of a name, such as those of an interface, are no separators.
    let name = if key.contains('/') { key.replace('.', "\u{1}").replace('/', ".") } else { key.to_owned() };
    let refused = |problem: String| Err(Error::Usage(problem));
    if name == "kernel.hostname" {
        return refused(format!(
            "sysctl {key:?} is not allowed as it conflicts with the OCI \"hostname\" field"
        ));
    }
    if name == "kernel.domainname" {
        return if own(LinuxNamespaceType::Uts) {
            Ok(())
        } else {
            refused(format!("sysctl {key:?} requires a separate UTS namespace"))
        };
    }
    if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
        return if own(LinuxNamespaceType::Ipc) {
            Ok(())
        } else {
            refused(format!("sysctl {key:?} is not allowed in the hosts ipc namespace"))
        };
    }
    if name.starts_with("net.") {
        return if own(LinuxNamespaceType::Network) {
            Ok(())
        } else {
            refused(format!("sysctl {key:?} not allowed in host network namespace"))
        };
    }
    refused(format!("sysctl {key:?} is not in a separate kernel namespace"))
}

fn check_resources(resources: &LinuxResources, warnings: &mut Vec<String>) -> Result<()> {
    if let Some(pids) = resources.pids()
        && pids.limit() < -1
    {
        let problem = format!("must be -1 (no limit) or more, got {}", pids.limit());
        return Err(Error::field("linux.resources.pids.limit", problem));
    }
    if let Some(memory) = resources.memory() {
        for (field, value) in
            [("limit", memory.limit()), ("reservation", memory.reservation()), ("swap", memory.swap())]
        {
            if let Some(value) = value
                && value < -1
            {
                let problem = format!("must be -1 (no limit) or a number of bytes, got {value}");
                return Err(Error::field(format!("linux.resources.memory.{field}"), problem));
            }
        }
    }
    if let Some(cpu) = resources.cpu() {
        for (field, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
            if let Some(list) = list
                && !list.chars().all(|c| c.is_ascii_digit() || ",- \n".contains(c))
            {
                let problem = format!("must be a list such as \"0-3,7\", got {list:?}");
                return Err(Error::field(format!("linux.resources.cpu.{field}"), problem));
            }
        }
    }
    for (key, value) in resources.unified().iter().flatten() {
        if key.is_empty() || key.contains(['/', '\0']) || key.starts_with('.') || value.contains('\0') {
            let field = format!("linux.resources.unified[{key:?}]");
            return Err(Error::field(field, "must name a file of the control group"));
        }
    }
    for (field, set) in [
        ("hugepageLimits", resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty())),
        ("network", resources.network().is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|limits| !limits.is_empty())),
    ] {
        if set {
            warnings.push(format!("linux.resources.{field}: not applied yet"));
        }
    }
    Ok(())
}

/// The number of a limit (`getrlimit(2)`).
pub(crate) fn resource_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
