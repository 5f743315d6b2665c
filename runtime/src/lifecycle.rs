//! Commands on containers: made, started, signalled, paused, deleted, each by a command of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use control_protocol::{Descriptor, ProcessInfo, Request, TerminalSize};
use hostsys::{polling, process, signals};
use oci_spec::runtime::{LinuxMemory, LinuxNamespaceType, LinuxResources};

use crate::cgroup::ControlGroup;
use crate::config::Config;
use crate::detached::{Monitor, Network, Role};
use crate::error::{Context, Error, Result};
use crate::foreground::{preserved, standard};
use crate::hooks::{self, HookState};
use crate::log::{Level, Log};
use crate::network::Taken;
use crate::network_mode::{self, NetworkMode};
use crate::plan::Plan;
use crate::registration::{self, Processes};
use crate::state::{HostProcess, State, StateRoot, Status};
use crate::{network, notify, pod, pty, session, sockets, state};

/// What a container is made with besides its configuration.
#[derive(Debug, Default)]
pub struct Creation {
    pub pid_file: Option<PathBuf>,
    /// Where the master side of the container's terminal is sent to.
    pub console_socket: Option<PathBuf>,
    /// Gets a descriptor of what stands for the container's init.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors that become the container's from 3 on ([`crate::take_preserved`]).
    pub preserved: Vec<OwnedFd>,
    /// Whose sockets it gets where it has a network namespace of its own.
    pub network: NetworkMode,
    /// What it may reach where its sockets are the host's (JSON): everything, if nothing says otherwise.
    pub net_policy: Option<String>,
}

pub(crate) fn network_of(config: &Config) -> Network {
    let namespaces = config.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut all = namespaces.into_iter().flatten();
    let Some(network) = all.find(|namespace| namespace.typ() == LinuxNamespaceType::Network) else {
        return Network::Host;
    };
    match network.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => Network::Join(path.clone()),
        None => Network::New,
    }
}

/// Whether a container's network is that of this process: it has no namespace of its own, or one that is ours by another name.
pub(crate) fn is_hosts(network: &Network) -> bool {
    let inode = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.ino()).ok();
    match network {
        Network::Host => true,
        Network::New => false,
        Network::Join(path) => {
            inode(path).is_some_and(|theirs| inode(Path::new("/proc/self/ns/net")) == Some(theirs))
        }
    }
}

/// Makes a container whose program does not run yet. Call it while this process has one thread.
pub fn create(
    root: &StateRoot,
    config: &Config,
    mut plan: Plan,
    creation: Creation,
    log: &Log,
) -> Result<()> {
    let terminal = plan.boot.process.terminal;
    if terminal.is_some() && creation.console_socket.is_none() {
        return Err(Error::Usage(
            "cannot allocate tty if runc will detach without setting console socket".into(),
        ));
    }
    if terminal.is_none() && creation.console_socket.is_some() {
        return Err(Error::Usage("cannot use console socket if runc will not detach or allocate tty".into()));
    }
    // A signal must not leave half of a container; the command is over soon enough.
    signals::block_ordinary().context(|| "block signals".into())?;
    let pod = pod::sandbox_of(root, config)?;
    let asked = (creation.network, creation.net_policy);
    let host_sockets = network_mode::decide(&mut plan, config, asked, pod.as_ref(), log)?;
    let mut dir = root.create(&plan.boot.id)?;
    let mut cgroup = ControlGroup::plan(&plan.boot.id, &plan.limits, log)?;
    dir.write_group(cgroup.group())?;
    log.warnings(cgroup.make(&plan.limits));
    log.moment("control group made");
    dir.write_group(cgroup.group())?;

    let mut to_sentry: Vec<_> = preserved(creation.preserved).collect();
    let mut descriptors: Vec<(Role, OwnedFd)> = Vec::new();
    match (&creation.console_socket, terminal) {
        (Some(path), Some(size)) => descriptors.push((Role::Terminal, pty::offer(path, size)?)),
        _ => standard(&mut to_sentry)?,
    }
    to_sentry.push((Descriptor::Listener, dir.listen()?));
    descriptors.push((Role::State, dir.open()?));
    let strace = plan.boot.options.strace;
    if let Some(file) = log.descriptor(strace).context(|| "duplicate the log".into())? {
        let copy = file.try_clone().context(|| "duplicate the log".into())?;
        to_sentry.push((Descriptor::Log, copy));
        descriptors.push((Role::Log, file));
    }
    if let Some(manager) = notify::connect(&mut plan.boot)? {
        descriptors.push((Role::Notify, manager));
    }
    descriptors.extend(to_sentry.into_iter().map(|(role, fd)| (Role::Sentry(role), fd)));
    if let Some(pod) = &pod {
        let socket = state::connect(&pod.dir).context(|| format!("connect to the sandbox {}", pod.id))?;
        descriptors.push((Role::Sandbox, socket));
    }
    plan.boot.held = true;
    let id = plan.boot.id.clone();
    if terminal.is_some_and(|size| size == TerminalSize::default()) {
        // The usual size of a terminal whose size nobody has said.
        plan.boot.process.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    }
    let own_pids = pod::has_own_pids(config);
    let network = network_of(config);
    let around = pod.as_ref().map(|pod| &pod.cgroup);
    let launched = Monitor::launch(plan, &network, own_pids, descriptors, &cgroup, around, log);
    let monitor = launched.map_err(|error| {
        match error {
            // What is wrong with the program itself is told as engines expect it.
            Error::Start { code: 126 | 127, message } => {
                Error::Start { code: 1, message: format!("unable to start container process: {message}") }
            }
            Error::Start { message, .. } => Error::Start { code: 1, message },
            other => other,
        }
    })?;
    log.moment("container is complete");
    dir.mark_held()?;
    let processes = Processes { init: monitor.pid(), sandbox: monitor.sandbox, gofer: monitor.gofer };
    let pod = pod.map(|pod| pod.id);
    let state = registration::write(config, &dir, &id, pod, &processes, cgroup.group(), host_sockets)?;
    if let Some(hooks) = &state.hooks {
        hooks::before_start(hooks, &HookState::new(&state, monitor.pid()), log)?;
    }
    if let Some(path) = &creation.pidfd_socket {
        pty::offer_pidfd(path, monitor.pid(), "standard")?;
    }
    if let Some(path) = &creation.pid_file {
        registration::write_pid_file(path, monitor.pid())?;
    }
    log.write(
        Level::Debug,
        &format!("monitor {}, sandbox {}, gofer {}", processes.init, processes.sandbox, processes.gofer),
    );
    monitor.commit()?;
    cgroup.keep();
    dir.keep();
    log.moment("container is written down");
    Ok(())
}

/// Lets the program of a created container run.
pub fn start(root: &StateRoot, id: &str, log: &Log) -> Result<()> {
    // Hooks run, and a network is handed over, once.
    let _alone = root.lock_start(id)?;
    let state = root.load(id)?;
    match state.status() {
        Status::Created => {}
        Status::Stopped => return Err(Error::HasStopped),
        Status::Running => return Err(Error::AlreadyRunning),
        Status::Paused => return Err(Error::StartPaused),
    }
    if let Some(hooks) = &state.hooks
        && let Err(error) =
            hooks::in_container(hooks, &state, &HookState::new(&state, state.init.pid).with_status("created"))
    {
        end(&state)?;
        return Err(error);
    }
    if let Some(network) = network_for(root, &state, log)? {
        network.hand_over(&state.dir)?;
        log.moment("network handed over");
    }
    match session::ask(&state.dir, &Request::Start) {
        Err(Error::NotRunning) => return Err(Error::HasStopped),
        // Somebody else has started it and did not live to write that down.
        Err(Error::AlreadyRunning) => {
            state.mark_started()?;
            return Err(Error::AlreadyRunning);
        }
        done => done?,
    }
    log.moment("program started");
    state.mark_started()?;
    if let Some(hooks) = &state.hooks {
        let shown = HookState::new(&state, state.init.pid).with_status("running");
        if let Err(error) = hooks::after_start(hooks, &shown, log) {
            end(&state)?;
            return Err(error);
        }
    }
    Ok(())
}

/// The network of a created container's namespace, for its sandbox.
fn network_for(root: &StateRoot, state: &State, log: &Log) -> Result<Option<Taken>> {
    let namespace = network::of_process(state.init.pid);
    if let Some(sockets) = &state.host_sockets {
        let taken = sockets::take_over(&namespace, sockets, (&state.cgroup, false), log)?;
        return Ok(taken.map(|(network, _)| network));
    }
    let pod = state.pod.as_ref().map(|pod| root.load(pod)).transpose()?;
    if pod.is_some_and(|pod| pod.host_sockets.is_some()) {
        // The namespace is the host's kernel to serve, and the sandbox has its sockets there.
        return Ok(None);
    }
    let forward = pod::Part::said(&state.annotations) == pod::Part::Sandbox;
    network::take_over(&namespace, forward, log)
}

/// Sends a signal to a container's init, or with `all` to every process. `SIGKILL` ends the sandbox.
pub fn kill(root: &StateRoot, id: &str, signo: i32, all: bool) -> Result<()> {
    let state = root.load(id)?;
    let status = state.status();
    if status == Status::Stopped {
        return Err(Error::NotRunning);
    }
    if !(0..=64).contains(&signo) {
        return Err(Error::Usage("unable to signal init: invalid argument".into()));
    }
    if signo == libc::SIGKILL {
        kill_process(&state.sandbox, libc::SIGKILL)?;
        if status == Status::Paused {
            // A frozen process dies when it is thawed.
            state.cgroup.freeze(false).context(|| "thaw the container".into())?;
        }
        return Ok(());
    }
    let request = Request::Kill { signal: signo, all };
    if status == Status::Paused {
        session::leave(&state.dir, &request)
    } else {
        session::ask(&state.dir, &request)
    }
}

/// Signals a process by a descriptor, so that no other is hit that has got its number meanwhile.
fn kill_process(target: &HostProcess, signo: i32) -> Result<()> {
    let opened =
        target.open().context(|| format!("open process {}", target.pid))?.ok_or(Error::NotRunning)?;
    match process::pidfd_send_signal(opened.as_fd(), signo) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(Error::NotRunning),
        sent => sent.context(|| format!("send a signal to process {}", target.pid)),
    }
}

/// Stops every process of a container where it stands.
pub fn pause(root: &StateRoot, id: &str) -> Result<()> {
    let state = root.load(id)?;
    if let Some(pod) = &state.pod {
        let message = format!("cannot pause container {id} alone: it runs in the sandbox of {pod}");
        return Err(Error::Sandbox { code: 1, message });
    }
    match state.status() {
        Status::Running | Status::Created => {
            state.cgroup.freeze(true).context(|| format!("pause container {id}"))
        }
        Status::Paused | Status::Stopped => Err(Error::NotRunning),
    }
}

/// Lets a paused container go on.
pub fn resume(root: &StateRoot, id: &str) -> Result<()> {
    let state = root.load(id)?;
    if state.status() != Status::Paused {
        return Err(Error::NotPaused);
    }
    state.cgroup.freeze(false).context(|| format!("resume container {id}"))
}

/// Changes the limits of a container to those of `resources`, the JSON of `linux.resources`.
pub fn update(root: &StateRoot, id: &str, resources: &[u8]) -> Result<()> {
    let state = root.load(id)?;
    let resources: LinuxResources =
        serde_json::from_slice(resources).map_err(|error| Error::Usage(format!("resources: {error}")))?;
    let status = state.status();
    if status == Status::Stopped {
        return Err(Error::NotRunning);
    }
    if let Some(message) = state.cgroup.apply(&resources).into_iter().next() {
        return Err(Error::Sandbox { code: 1, message });
    }
    let Some(limit) = resources.memory().as_ref().and_then(LinuxMemory::limit) else { return Ok(()) };
    let request = Request::LimitMemory(u64::try_from(limit).unwrap_or(0));
    let told = if status == Status::Paused {
        session::leave(&state.dir, &request)
    } else {
        session::ask(&state.dir, &request)
    };
    match told {
        // It has ended meanwhile, and wants no memory any more.
        Err(Error::NotRunning) => Ok(()),
        told => told,
    }
}

/// The processes of a container by the container's own numbers.
pub fn processes(root: &StateRoot, id: &str) -> Result<(State, Vec<ProcessInfo>)> {
    let state = root.load(id)?;
    let listed = match state.status() {
        Status::Stopped => return Err(Error::NotRunning),
        Status::Paused => Vec::new(),
        _ => session::processes(&state.dir)?,
    };
    Ok((state, listed))
}

/// Removes a stopped container; with `force` also a running one, a half-made one, or none at all.
pub fn delete(root: &StateRoot, id: &str, force: bool, log: &Log) -> Result<()> {
    let claimed = root.lock_removal(id).and_then(|claim| match claim {
        Some(claim) => Ok(Some((claim, root.load(id)?))),
        None => Ok(None),
    });
    let (_claim, state) = match claimed {
        // It was left half-made, or its state cannot be read.
        Err(Error::DoesNotExist | Error::Config(_)) if force => return root.remove_half_made(id),
        // Another command has removed it meanwhile.
        Ok(None) if force => return Ok(()),
        claimed => claimed?.ok_or(Error::DoesNotExist)?,
    };
    match state.status() {
        Status::Stopped => {}
        Status::Created => end(&state)?,
        status if !force => {
            return Err(Error::NotStopped { id: id.to_owned(), status: status.to_string() });
        }
        _ => end(&state)?,
    }
    // Its sandbox may outlive an init that was killed by a moment.
    for process in [&state.sandbox, &state.gofer] {
        let _ = kill_process(process, libc::SIGKILL);
        await_end(process, &state.id)?;
    }
    state.cgroup.kill();
    state.cgroup.remove();
    root.remove(id)?;
    hooks::post_stop(&state, log);
    Ok(())
}

/// Kills the sandbox and waits until its init is gone, too.
fn end(state: &State) -> Result<()> {
    // Gone in between is as good.
    match kill_process(&state.sandbox, libc::SIGKILL) {
        Err(Error::NotRunning) => {}
        done => done?,
    }
    if state.cgroup.is_frozen() {
        state.cgroup.freeze(false).context(|| "thaw the container".into())?;
    }
    await_end(&state.init, &state.id)
}

/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

fn await_end(target: &HostProcess, id: &str) -> Result<()> {
    let opened = target.open().context(|| format!("open process {}", target.pid))?;
    let Some(opened) = opened else { return Ok(()) };
    let until = Instant::now() + DEATH;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut interests = [polling::Interest::new(opened.as_fd(), libc::POLLIN)];
        if polling::wait(&mut interests, Some(left_ms)).context(|| "poll".into())? > 0 {
            return Ok(());
        }
        if left.is_zero() {
            let message = format!("process {} of container {id} does not end", target.pid);
            return Err(Error::Sandbox { code: 1, message });
        }
    }
}
