//! Pods: several containers in one sandbox.
//!
//! Engines say by annotations which container a pod's sandbox is made for, and which ones belong to it. The first one's
//! monitor owns the Sentry. Each further one has a monitor and a gofer of its own, and lives as long as its connection
//! to the Sentry: whatever ends the monitor ends the container, and the sandbox' end is its end too.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use control_protocol::{
    Channel, ChannelError, Descriptor, Event, Order, Phase, Report, Request, TerminalSize,
};
use hostsys::credentials;
use hostsys::polling::{self, Interest};
use hostsys::process::Exit;
use hostsys::signals;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxNamespaceType, LinuxResources, Spec};

use crate::config::Config;
use crate::drive::Overseer;
use crate::error::{Context, Error, Result};
use crate::log::{Level, Log};
use crate::memory::Guard;
use crate::notify::{self, Notifier};
use crate::plan::{Limits, Plan};
use crate::relay::Relay;
use crate::sandbox::{Gofer, code_of, how};
use crate::state::{State, StateRoot, Status};

/// Annotations that name the kind of a container and its sandbox: of containerd's CRI, and of CRI-O and podman.
const ANNOTATIONS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// Limits of the whole pod, which containerd's CRI puts into the annotations of its sandbox.
const SANDBOX_LIMITS: &str = "io.kubernetes.cri.sandbox-";

/// A container's part in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Alone,
    /// The pod's sandbox is made for it.
    Sandbox,
    /// It goes into the sandbox of the container of this ID.
    Member(String),
}

impl Part {
    pub fn of(spec: &Spec) -> Self {
        let all = spec.annotations().iter().flatten();
        Self::said(all)
    }

    /// By annotations.
    pub fn said<'a>(annotations: impl IntoIterator<Item = (&'a String, &'a String)> + Clone) -> Self {
        let get = |name: &str| {
            let mut all = annotations.clone().into_iter();
            all.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        for (kind, sandbox) in ANNOTATIONS {
            match (get(kind).map(String::as_str), get(sandbox)) {
                (Some("sandbox"), _) => return Self::Sandbox,
                (Some("container"), Some(id)) => return Self::Member(id.clone()),
                _ => {}
            }
        }
        Self::Alone
    }
}

/// The process whose namespace a path names, as in `/proc/PID/ns/net`.
pub(crate) fn process_of(path: &Path) -> Option<u32> {
    let (pid, kind) = path.to_str()?.strip_prefix("/proc/")?.split_once("/ns/")?;
    ["net", "pid", "ipc", "uts"].contains(&kind).then(|| pid.parse().ok()).flatten()
}

/// The container whose network, processes or shared memory the configuration asks to share, if it is one of ours: engines
/// name its process.
fn joined(root: &StateRoot, config: &Config) -> Result<Option<State>> {
    let namespaces = config.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let paths = namespaces.into_iter().flatten().filter_map(|namespace| namespace.path().as_ref());
    let named: Vec<u32> = paths.filter_map(|path| process_of(path)).collect();
    if named.is_empty() {
        return Ok(None);
    }
    let all = root.list(|_, _| {})?;
    let found =
        all.into_iter().find(|state| named.contains(&state.init.pid) && state.status() != Status::Stopped);
    match found {
        Some(State { pod: Some(pod), .. }) if shares_pids(config) => {
            let message = format!("the container's processes are numbered apart in the sandbox of {pod}");
            Err(Error::Sandbox { code: 1, message })
        }
        Some(State { pod: Some(pod), .. }) => root.load(&pod).map(Some),
        found => Ok(found),
    }
}

/// Whether the container is to see another one's processes.
fn shares_pids(config: &Config) -> bool {
    let namespaces = config.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut all = namespaces.into_iter().flatten();
    all.any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Pid
            && namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
    })
}

/// The sandbox that the container is to go into: that of its pod, or of the container whose namespaces it is to share.
pub(crate) fn sandbox_of(root: &StateRoot, config: &Config) -> Result<Option<State>> {
    let Part::Member(id) = Part::of(&config.spec) else {
        let found = joined(root, config)?;
        if found.is_none() {
            check_alone(config)?;
        }
        return Ok(found);
    };
    let state = match root.load(&id) {
        // The pod is not ours: the container gets a sandbox of its own.
        Err(Error::DoesNotExist | Error::InvalidId(_)) => return Ok(None),
        state => state?,
    };
    // Annotations may come from whoever writes the pod: they lead to a container that was made to hold one, and to no other.
    let holds_a_pod = Part::said(&state.annotations) == Part::Sandbox && state.pod.is_none();
    if !holds_a_pod || state.owner != credentials::effective_uid() {
        return Ok(None);
    }
    match state.status() {
        Status::Created | Status::Running => Ok(Some(state)),
        status => {
            let message = format!("the sandbox {id} of the container's pod is {status}");
            Err(Error::Sandbox { code: 1, message })
        }
    }
}

/// Refuses what a container with a sandbox of its own cannot have.
pub(crate) fn check_alone(config: &Config) -> Result<()> {
    if shares_pids(config) && !matches!(Part::of(&config.spec), Part::Member(_)) {
        let problem =
            "a pid namespace of the host cannot be joined; must be absent, or a container's of ours";
        return Err(Error::field("linux.namespaces", problem));
    }
    Ok(())
}

/// Whether the container numbers its processes itself, rather than as another one or the host does.
pub(crate) fn has_own_pids(config: &Config) -> bool {
    let namespaces = config.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut all = namespaces.into_iter().flatten();
    let pid = all.find(|namespace| namespace.typ() == LinuxNamespaceType::Pid);
    pid.is_some_and(|pid| pid.path().as_ref().is_none_or(|path| path.as_os_str().is_empty()))
}

/// The limits of a pod's sandbox: those of the pod, where the engine says them, in place of those of the container that does
/// nothing but hold it.
pub(crate) fn adjust(limits: &mut Limits, config: &Config) {
    if Part::of(&config.spec) == Part::Sandbox
        && let Some(annotations) = config.spec.annotations()
    {
        adjust_by(limits, annotations);
    }
}

fn adjust_by(limits: &mut Limits, annotations: &HashMap<String, String>) {
    let said = |name: &str| annotations.get(&format!("{SANDBOX_LIMITS}{name}"))?.parse::<i64>().ok();
    let positive = |name: &str| said(name).filter(|value| *value > 0);
    let resources = limits.resources.get_or_insert_with(LinuxResources::default);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive("cpu-shares").and_then(|value| u64::try_from(value).ok()));
    cpu.set_quota(positive("cpu-quota"));
    cpu.set_period(positive("cpu-period").and_then(|value| u64::try_from(value).ok()));
    if let Some(old) = resources.cpu() {
        cpu.set_cpus(old.cpus().clone());
        cpu.set_mems(old.mems().clone());
    }
    resources.set_cpu(Some(cpu));
    let mut memory = LinuxMemory::default();
    memory.set_limit(positive("memory"));
    resources.set_memory(Some(memory));
}

/// How long a container may live on after its gofer has left by itself.
const GRACE: Duration = Duration::from_millis(300);

/// A container in another one's sandbox.
pub(crate) struct Member<'a> {
    pub gofer: Gofer,
    /// The connection to the Sentry that the container lives by.
    pub sentry: Channel,
    pub relay: Option<Relay>,
    /// Signals to this process.
    pub pending: OwnedFd,
    pub notifier: Option<Notifier>,
    /// Holds it to a limit of its own.
    pub memory: Option<Guard>,
    pub log: &'a Log,
    pub overseer: &'a mut dyn Overseer,
}

impl Member<'_> {
    /// Asks the Sentry for the container of `plan`.
    pub fn ask(
        sentry: &Channel,
        plan: &mut Plan,
        gofer: &mut Gofer,
        mut descriptors: Vec<(Descriptor, OwnedFd)>,
        own_pids: bool,
    ) -> Result<()> {
        if let Some(file) = plan.filestore.open()? {
            descriptors.push((Descriptor::Filestore, file));
        }
        plan.boot.options.filestore_limit = plan.filestore.limit.unwrap_or(0);
        let connections = std::mem::take(&mut gofer.connections);
        descriptors.extend(connections.into_iter().map(|connection| (Descriptor::Gofer, connection)));
        plan.boot.descriptors = descriptors.iter().map(|(role, _)| *role).collect();
        let borrowed: Vec<_> = descriptors.iter().map(|(_, fd)| fd.as_fd()).collect();
        let request = Request::Create { boot: Box::new(plan.boot.clone()), own_pids };
        Ok(sentry.send_sealed(&request, &borrowed)?)
    }

    /// Looks after the container until its end.
    pub fn attend(&mut self) -> Result<Report> {
        let mut ready = false;
        let mut gofer_end: Option<(Exit, Instant)> = None;
        let mut looked = Instant::now();
        loop {
            let relay_interests = self.relay.as_ref().map_or([Interest::none(); 3], Relay::interests);
            let [input, output, socket] = relay_interests;
            let mut interests = [
                Interest::new(self.sentry.as_fd(), libc::POLLIN),
                match gofer_end {
                    Some(_) => Interest::none(),
                    None => Interest::new(self.gofer.process.as_fd(), libc::POLLIN),
                },
                Interest::new(self.pending.as_fd(), libc::POLLIN),
                self.gofer.says.interest(),
                self.overseer.interest(),
                notify::interest(self.notifier.as_ref()),
                input,
                output,
                socket,
            ];
            let turn = self.memory.as_ref().map(|memory| looked + memory.turn());
            let until = gofer_end.map(|(_, at)| at + GRACE).into_iter().chain(turn).min();
            let timeout = until.map(|until| {
                let left = until.saturating_duration_since(Instant::now());
                // Rounded up, so that the time has come when it is over.
                i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
            });
            polling::wait(&mut interests, timeout).context(|| "poll".into())?;
            let [sentry, gofer, pending, says, overseer, notes, of_relay @ ..] = &interests;
            if let Some(memory) = &self.memory
                && looked.elapsed() >= memory.turn()
            {
                looked = Instant::now();
                if ready && memory.near().is_some() {
                    // A Sentry that is gone is found below.
                    let _ = self.sentry.send(&Order::Memory);
                }
            }
            if says.any() {
                self.gofer.says.read();
            }
            if let Some(relay) = &mut self.relay {
                relay.turn(of_relay);
            }
            if overseer.any() {
                self.overseer.turn()?;
            }
            if pending.any() {
                self.take_signals()?;
            }
            if notes.any() {
                notify::turn(&mut self.notifier, std::process::id());
            }
            if sentry.any() {
                match self.sentry.receive::<Event>(false) {
                    Ok(None) => {}
                    Ok(Some(Event::Ready)) if !ready => {
                        ready = true;
                        self.overseer.is_there(std::process::id(), self.gofer.process.pid())?;
                    }
                    Ok(Some(Event::Ready)) => {}
                    Ok(Some(Event::Memory(bytes))) => self.hold_to_limit(bytes)?,
                    Ok(Some(Event::Exited(report))) => {
                        if let Some(relay) = &mut self.relay {
                            relay.drain();
                        }
                        return Ok(report);
                    }
                    Ok(Some(Event::Failed(failure))) => {
                        let code = match failure.phase {
                            Phase::NotFound => 127,
                            Phase::NotExecutable => 126,
                            _ => 1,
                        };
                        return Err(Error::Start { code, message: failure.message });
                    }
                    Err(ChannelError::Closed) => {
                        let message = "the sandbox of the container's pod has ended".into();
                        return Err(Error::Sandbox { code: 137, message });
                    }
                    Err(error) => return Err(error.into()),
                }
            } else if gofer.any() {
                gofer_end = Some((self.gofer.process.end(Duration::from_secs(1)), Instant::now()));
            }
            // A gofer also leaves when its container is gone, and may be seen first.
            if let Some((exit, at)) = gofer_end
                && (matches!(exit, Exit::Signal(_)) || at.elapsed() >= GRACE)
            {
                let words = self.gofer.says.sentence();
                let words = words.strip_prefix("casemate-gofer: ").unwrap_or(&words);
                let colon = if words.is_empty() { "" } else { ": " };
                let message = format!("the file server (gofer) {}{colon}{words}", how(exit));
                return Err(Error::Sandbox { code: code_of(exit), message });
            }
        }
    }

    /// Ends the container, and this process, if `bytes` are more than it may have.
    fn hold_to_limit(&mut self, bytes: u64) -> Result<()> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        let Some(limit) = memory.near().filter(|limit| bytes > *limit) else { return Ok(()) };
        let message = format!("memory ran out: the container's limit is {limit} bytes, and it had {bytes}");
        self.log.write(Level::Error, &message);
        memory.run_out();
        Err(Error::Sandbox { code: 137, message: "the container was ended for want of memory".into() })
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(signal) = signals::next(self.pending.as_fd()).context(|| "read signals".into())? {
            let order = match signal.signo {
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU => continue,
                // The hang-up of the terminal reaches the container as such.
                libc::SIGHUP if signal.code > 0 && self.relay.is_some() => continue,
                libc::SIGWINCH => match self.relay.as_ref().and_then(Relay::window_size) {
                    Some(now) => Order::Resize(TerminalSize { rows: now.rows, columns: now.columns }),
                    None => continue,
                },
                signo => Order::Signal(signo),
            };
            // A Sentry that is gone is found by the loop.
            let _ = self.sentry.send(&order);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn paths_that_name_a_process() {
        let of = |path: &str| process_of(Path::new(path));
        assert_eq!(of("/proc/17/ns/net"), Some(17));
        assert_eq!(of("/proc/17/ns/pid"), Some(17));
        for other in ["/proc/17/ns/mnt", "/proc/self/ns/net", "/run/netns/x", "/proc/-1/ns/net", "17"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn parts_of_a_pod() {
        let id = ("io.kubernetes.cri.sandbox-id", "pod");
        let part = |pairs: &[(&str, &str)]| Part::said(&annotations(pairs));
        assert_eq!(part(&[]), Part::Alone);
        assert_eq!(part(&[id]), Part::Alone);
        assert_eq!(part(&[("io.kubernetes.cri.container-type", "sandbox"), id]), Part::Sandbox);
        assert_eq!(
            part(&[("io.kubernetes.cri.container-type", "container"), id]),
            Part::Member("pod".into())
        );
        let crio =
            [("io.kubernetes.cri-o.ContainerType", "container"), ("io.kubernetes.cri-o.SandboxID", "x")];
        assert_eq!(part(&crio), Part::Member("x".into()));
    }

    #[test]
    fn a_sandbox_has_the_limits_of_its_pod() {
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(Some(2));
        let mut resources = LinuxResources::default();
        resources.set_cpu(Some(cpu));
        let mut limits = Limits { resources: Some(resources), ..Limits::default() };
        let pod = [
            ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "0"),
            ("io.kubernetes.cri.sandbox-cpu-shares", "512"),
            ("io.kubernetes.cri.sandbox-memory", "1048576"),
        ];
        adjust_by(&mut limits, &annotations(&pod));
        let resources = limits.resources.unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(512), None, Some(100_000)));
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1_048_576));
    }
}
