//! Runs a container in the foreground: starts it, waits, and cleans up.
//!
//! If the command is killed, the sandbox dies with it; the state directory then stays, and shows a stopped container.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use control_protocol::{Channel, Descriptor, Order, Report, TerminalSize};
use hostsys::{signals, terminal};
use rustix::fs::{Mode, OFlags};

use crate::cgroup::ControlGroup;
use crate::config::Config;
use crate::detached::Network;
use crate::drive::{Overseer, Progress, Run};
use crate::error::{Context, Error, Result};
use crate::hooks::{self, HookState};
use crate::lifecycle::network_of;
use crate::log::{Level, Log};
use crate::network;
use crate::network_mode::{self, NetworkMode};
use crate::notify::{self, Notifier};
use crate::plan::Plan;
use crate::pod;
use crate::registration::{self, Processes};
use crate::relay::Relay;
use crate::sandbox::{Guarded, Sandbox};
use crate::sockets;
use crate::state::{State, StateRoot};

/// A container to register in a state directory.
#[derive(Debug)]
pub struct Registration<'a> {
    pub root: &'a StateRoot,
    pub config: &'a Config,
    pub pid_file: Option<PathBuf>,
    /// Leave the state behind.
    pub keep: bool,
    /// Descriptors that become the container's from 3 on ([`take_preserved`]).
    pub preserved: Vec<OwnedFd>,
    /// Whose sockets it gets where it has a network namespace of its own.
    pub network: NetworkMode,
    /// What it may reach where its sockets are the host's (JSON): everything, if nothing says otherwise.
    pub net_policy: Option<String>,
}

/// Runs `plan` to its end. Call it while this process has one thread.
pub fn run(mut plan: Plan, mut registration: Option<Registration<'_>>, log: &Log) -> Result<Report> {
    // From here on signals wait until the loop takes them.
    signals::block_ordinary().context(|| "block signals".into())?;
    let pending = signals::descriptor().context(|| "signalfd".into())?;

    let mut dir = match &registration {
        Some(registration) => Some(registration.root.create(&plan.boot.id)?),
        None => None,
    };
    let mut cgroup = ControlGroup::plan(&plan.boot.id, &plan.limits, log)?;
    if let Some(dir) = &dir {
        dir.write_group(cgroup.group())?;
    }
    log.warnings(cgroup.make(&plan.limits));
    log.moment("control group made");

    let taken =
        registration.as_mut().map_or(Vec::new(), |registration| std::mem::take(&mut registration.preserved));
    let (relay, mut descriptors) = descriptors(&mut plan, taken, log)?;
    if let Some(dir) = &dir {
        descriptors.push((Descriptor::Listener, dir.listen()?));
    }
    let mut notifier = None;
    if registration.is_some()
        && let Some(manager) = notify::connect(&mut plan.boot)?
    {
        let (ours, theirs) = Notifier::new(manager).context(|| "socketpair".into())?;
        notifier = Some(ours);
        descriptors.push((Descriptor::Notify, theirs));
    }
    if let Some(registration) = &registration {
        pod::check_alone(registration.config)?;
    }
    let hooks = registration.as_ref().and_then(|registration| registration.config.spec.hooks().clone());
    let network = registration.as_ref().map_or(Network::Host, |registration| network_of(registration.config));
    let host_sockets = match &mut registration {
        Some(Registration { config, network: mode, net_policy, .. }) => {
            let asked = (*mode, net_policy.take());
            network_mode::decide(&mut plan, config, asked, None, log)?
        }
        None => None,
    };
    plan.boot.held = hooks.is_some() || matches!(network, Network::Join(_)) || host_sockets.is_some();
    let (sandbox, warnings) = Sandbox::start(&mut plan, descriptors, &cgroup, log)?;
    log.warnings(warnings);
    log.write(
        Level::Debug,
        &format!("sandbox process {}, gofer {}", sandbox.sentry.pid(), sandbox.gofer.pid()),
    );

    let mut state = None;
    if let (Some(registration), Some(dir)) = (&registration, &mut dir) {
        let (sandbox, gofer) = (sandbox.sentry.pid(), sandbox.gofer.pid());
        let processes = Processes { init: sandbox, sandbox, gofer };
        if plan.boot.held {
            dir.mark_held()?;
        }
        let (config, id) = (registration.config, &plan.boot.id);
        let written = registration::write(config, dir, id, None, &processes, cgroup.group(), host_sockets)?;
        if let Some(path) = &registration.pid_file {
            registration::write_pid_file(path, processes.init)?;
        }
        state = Some(written);
        if registration.keep {
            dir.keep();
        }
    }
    let group = cgroup.group().clone();
    let mut attendant = Attendant { state: state.as_ref(), network, broker: None, log };
    let mut run = Run {
        sandbox,
        relay,
        pending,
        foreground: true,
        notifier,
        overseer: &mut attendant,
        state: Progress::default(),
    };
    let report = run.drive(&group);
    drop(run);
    log.moment("sandbox gone");
    if registration.as_ref().is_some_and(|registration| registration.keep) {
        cgroup.keep();
    } else if let Some(state) = &state {
        hooks::post_stop(state, log);
    }
    report
}

/// Starts the container when it is complete, with its hooks before and after.
struct Attendant<'a> {
    state: Option<&'a State>,
    network: Network,
    /// Of its sockets, where they are the host's in a namespace of its own.
    broker: Option<Guarded>,
    log: &'a Log,
}

impl Attendant<'_> {
    /// Gives the sandbox the network that its configuration names, or that hooks have made for it.
    fn connect(&mut self, state: &State) -> Result<()> {
        let namespace = match &self.network {
            Network::Host => return Ok(()),
            Network::Join(path) => path.clone(),
            Network::New => network::of_process(state.init.pid),
        };
        let taken = match &state.host_sockets {
            Some(sockets) => {
                let taken = sockets::take_over(&namespace, sockets, (&state.cgroup, true), self.log)?;
                taken.map(|(network, broker)| {
                    self.broker = Some(broker);
                    network
                })
            }
            None => network::take_over(&namespace, false, self.log)?,
        };
        taken.map_or(Ok(()), |network| network.hand_over(&state.dir))
    }
}

impl Overseer for Attendant<'_> {
    fn ready(&mut self, sandbox: &Sandbox) -> Result<()> {
        self.log.moment("container is complete");
        let Some(state) = self.state else { return Ok(()) };
        if let Some(hooks) = &state.hooks {
            let shown = HookState::new(state, state.sandbox.pid);
            hooks::before_start(hooks, &shown.with_status("creating"), self.log)?;
            hooks::in_container(hooks, state, &shown.with_status("created"))?;
            self.connect(state)?;
            // Before the program's first instruction: nothing of the command's touches files beside it.
            state.mark_started()?;
            Channel::send(&sandbox.control, &Order::Start)?;
            hooks::after_start(hooks, &shown.with_status("running"), self.log)?;
        } else if matches!(self.network, Network::Join(_)) || state.host_sockets.is_some() {
            self.connect(state)?;
            state.mark_started()?;
            Channel::send(&sandbox.control, &Order::Start)?;
        }
        Ok(())
    }
}

pub(crate) type Descriptors = Vec<(Descriptor, OwnedFd)>;

/// The descriptors that go to the Sentry besides those of the gofer.
fn descriptors(plan: &mut Plan, taken: Vec<OwnedFd>, log: &Log) -> Result<(Option<Relay>, Descriptors)> {
    let mut descriptors = Vec::new();
    if let Some(file) = log.descriptor(plan.boot.options.strace).context(|| "duplicate the log".into())? {
        descriptors.push((Descriptor::Log, file));
    }
    descriptors.extend(preserved(taken));
    if let Some(size) = &mut plan.boot.process.terminal {
        let (relay, socket) = Relay::of_caller().context(|| "set up the terminal".into())?;
        if let Some(now) = relay.window_size()
            && *size == TerminalSize::default()
        {
            *size = TerminalSize { rows: now.rows, columns: now.columns };
        }
        descriptors.push((Descriptor::Console, socket));
        return Ok((Some(relay), descriptors));
    }
    standard(&mut descriptors)?;
    Ok((None, descriptors))
}

/// Our own standard input, output and error.
pub(crate) fn standard(descriptors: &mut Descriptors) -> Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for (number, name, fd) in
        [(0, "stdin", stdin.as_fd()), (1, "stdout", stdout.as_fd()), (2, "stderr", stderr.as_fd())]
    {
        refuse_directory(name, fd)?;
        let own = match unblocked(fd) {
            Some(terminal) => terminal,
            None => fd.try_clone_to_owned().context(|| format!("duplicate {name}"))?,
        };
        descriptors.push((Descriptor::Guest(number), own));
    }
    Ok(())
}

/// A terminal once more, in a file of its own whose reads and writes do not wait: a terminal cannot be asked how much it
/// takes, and the Sentry must not wait for one that is held up. `None` for what is no terminal or may not be opened.
fn unblocked(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    if !terminal::is_terminal(fd) {
        return None;
    }
    let access = rustix::fs::fcntl_getfl(fd).ok()? & OFlags::RWMODE;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// The most descriptors that are handed on besides the standard ones.
const MAX_PRESERVED: u32 = 32;

/// Takes descriptors `3..3 + count` of ours for the container. Call it before anything else is opened: what is found
/// at these numbers is the caller's.
pub fn take_preserved(count: u32) -> Result<Vec<OwnedFd>> {
    if count > MAX_PRESERVED {
        let problem = format!("--preserve-fds: at most {MAX_PRESERVED} can be passed on, got {count}");
        return Err(Error::Usage(problem));
    }
    let mut taken = Vec::new();
    for number in 3..3 + count {
        let missing = || format!("please check that preserved-fd {number} (of {count}) is present");
        let raw = i32::try_from(number).unwrap_or(i32::MAX);
        let fd = hostsys::fd::take_inherited(raw).map_err(|_| Error::Usage(missing()))?;
        refuse_directory(&format!("descriptor {number}"), fd.as_fd())?;
        taken.push(fd);
    }
    Ok(taken)
}

/// The numbers that taken descriptors have in the container.
pub(crate) fn preserved(taken: Vec<OwnedFd>) -> impl Iterator<Item = (Descriptor, OwnedFd)> {
    taken.into_iter().zip(3..).map(|(fd, number)| (Descriptor::Guest(number), fd))
}

/// A directory would be a way from the sandbox to the host's files.
fn refuse_directory(name: &str, fd: BorrowedFd<'_>) -> Result<()> {
    let metadata = fd
        .try_clone_to_owned()
        .and_then(|copy| std::fs::File::from(copy).metadata())
        .context(|| format!("stat {name}"))?;
    if metadata.is_dir() {
        return Err(Error::Config(format!("{name} is a directory, which cannot be given to a sandbox")));
    }
    Ok(())
}
