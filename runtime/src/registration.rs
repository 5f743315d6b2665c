//! Writes down a container that has been made.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use hostsys::credentials;

use crate::cgroup::Group;
use crate::config::Config;
use crate::error::{Context, Result, show};
use crate::network_mode::HostSockets;
use crate::state::{self, ContainerDir, HostProcess, State};
use crate::timestamp;

/// The processes of a sandbox, by their numbers on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processes {
    pub init: u32,
    pub sandbox: u32,
    pub gofer: u32,
}

/// Writes the state of the container `id`, which may be in the sandbox of the container `pod`.
pub(crate) fn write(
    config: &Config,
    dir: &ContainerDir,
    id: &str,
    pod: Option<String>,
    processes: &Processes,
    cgroup: &Group,
    host_sockets: Option<HostSockets>,
) -> Result<State> {
    let process = |pid: u32| HostProcess::of(pid).context(|| format!("read the start time of process {pid}"));
    let spec = &config.spec;
    let state = State {
        oci_version: spec.version().clone(),
        id: id.to_owned(),
        bundle: config.bundle.clone(),
        rootfs: config.rootfs.clone(),
        created: timestamp::nanoseconds(SystemTime::now()),
        owner: credentials::effective_uid(),
        init: process(processes.init)?,
        sandbox: process(processes.sandbox)?,
        gofer: process(processes.gofer)?,
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<BTreeMap<_, _>>(),
        pod,
        cgroup: cgroup.clone(),
        hooks: spec.hooks().clone(),
        host_sockets,
        dir: dir.path().to_owned(),
    };
    dir.write(&state)?;
    Ok(state)
}

/// Writes a process number for an engine, whole or not at all.
pub(crate) fn write_pid_file(path: &Path, pid: u32) -> Result<()> {
    // The file that is opened is the hidden one, which runc names in its error, too.
    let name = path.file_name().unwrap_or_default().display();
    let hidden = path.with_file_name(format!(".{name}"));
    state::write_whole(path, pid.to_string().as_bytes(), 0o644).context(|| format!("open {}", show(&hidden)))
}
