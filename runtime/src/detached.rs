//! Processes that stand on the host for those of a container that nobody runs in the foreground.
//!
//! The *monitor* starts and owns the sandbox of a created container: what an engine takes for the container's init. It
//! ends with init's exit code, or by the signal that ended it, so that whoever reaps it learns the truth; if it is killed,
//! the sandbox dies with it. A *proxy* does the same for one executed process.
//!
//! Both are this binary again, executed by descriptor. The monitor is in the container's network namespace, and in a mount
//! namespace whose root is the container's: engines find both by init's number.
//!
//! **Threat.** The monitor keeps root's identity for the control groups' sake, and of its rights only that to signal the
//! sandbox. It talks to the Sentry alone, in bounded messages.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use control_protocol::{Channel, ChannelError, Descriptor, Process, Report, Status};
use hostsys::credentials::{self, Limit};
use hostsys::launch::Command;
use hostsys::polling::Interest;
use hostsys::{fd, process, sealed, signals};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};
use serde::{Deserialize, Serialize};

use crate::cgroup::{ControlGroup, Group};
use crate::drive::{Overseer, Progress, Run};
use crate::error::{Context, Error, Result, show};
use crate::log::{Format, Level, Log};
use crate::memory::Guard;
use crate::notify::Notifier;
use crate::plan::Plan;
use crate::pod::Member;
use crate::relay::Relay;
use crate::sandbox::{Gofer, Guarded, Sandbox, program};
use crate::shown::{self, Shown};
use crate::{pty, session};

/// The name under which the binary runs a monitor.
pub const MONITOR_NAME: &str = "casemate-monitor";

/// The name under which the binary runs a proxy.
pub const PROXY_NAME: &str = "casemate-proxy";

/// What the process is told at its start.
const ERRAND_FD: RawFd = 3;

/// The connection to the command that starts a monitor, or to the Sentry for a proxy.
const CHANNEL_FD: RawFd = 4;

/// Further descriptors start here.
const FIRST_FD: RawFd = 5;

/// What a monitor is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Errand {
    plan: Plan,
    /// The descriptors from [`FIRST_FD`] on.
    roles: Vec<Role>,
    group: Group,
    /// Of a container in another one's sandbox: the group of that.
    around: Group,
    /// The network namespace to join.
    netns: Option<PathBuf>,
    /// Of a container in another one's sandbox: whether it numbers its processes itself.
    own_pids: bool,
    debug: bool,
    json: bool,
}

/// What a descriptor of a monitor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// It goes to the Sentry.
    Sentry(Descriptor),
    Log,
    /// Our side of the engine's pseudo-terminal.
    Terminal,
    /// A connection to the Sentry of the pod, which the container goes into.
    Sandbox,
    /// A connection to the caller's notify socket.
    Notify,
    /// The state directory.
    State,
}

/// From the monitor to the command that creates.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Ready { sandbox: u32, gofer: u32 },
    Failed { code: u8, message: String },
}

/// From that command: everything is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Commit;

/// The network namespace that the container's init is to be in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Network {
    /// The host's own, by sockets that are the host's ([`crate::sockets`]).
    #[default]
    Host,
    New,
    Join(PathBuf),
}

/// A monitor that has been started, until it is told that it may stay.
#[derive(Debug)]
pub(crate) struct Monitor {
    process: Guarded,
    channel: Channel,
    pub sandbox: u32,
    pub gofer: u32,
}

fn null() -> Result<File> {
    File::options().read(true).write(true).open("/dev/null").context(|| "open /dev/null".into())
}

fn start(
    arguments: Vec<CString>,
    namespaces: u64,
    errand: &OwnedFd,
    channel: &Channel,
    others: &[BorrowedFd<'_>],
) -> Result<hostsys::launch::Child> {
    let program = program(false).context(|| "open our own program".into())?;
    let null = null()?;
    let mut descriptors = vec![null.as_fd(), null.as_fd(), null.as_fd(), errand.as_fd(), channel.as_fd()];
    descriptors.extend_from_slice(others);
    let command = Command {
        program: program.as_fd(),
        arguments,
        environment: Vec::new(),
        namespaces,
        descriptors: &descriptors,
        become_root: false,
        outlives: true,
    };
    command.start().context(|| "start a process that stands for the container's".into())
}

/// The name of a process, and for those who list the host's processes the program that it stands for.
fn arguments(name: &str, process: &Process) -> Vec<CString> {
    /// What is shown of one, and how many are.
    const LONGEST: usize = 256;
    const MOST: usize = 32;
    let shown = process.args.iter().take(MOST).map(|word| {
        let bytes = word.as_bytes();
        bytes.get(..LONGEST).unwrap_or(bytes).to_vec()
    });
    std::iter::once(name.as_bytes().to_vec())
        .chain(shown)
        .filter_map(|word| CString::new(word).ok())
        .collect()
}

impl Monitor {
    /// Starts a sandbox under a new monitor and waits until the container is complete.
    pub fn launch(
        plan: Plan,
        network: &Network,
        own_pids: bool,
        descriptors: Vec<(Role, OwnedFd)>,
        cgroup: &ControlGroup,
        around: Option<&Group>,
        log: &Log,
    ) -> Result<Self> {
        let shown = arguments(MONITOR_NAME, &plan.boot.process);
        let errand = Errand {
            plan,
            roles: descriptors.iter().map(|(role, _)| *role).collect(),
            group: cgroup.group().clone(),
            around: around.cloned().unwrap_or_default(),
            netns: match network {
                Network::Join(path) => Some(path.clone()),
                _ => None,
            },
            own_pids,
            debug: log.is_debug(),
            json: log.format() == Format::Json,
        };
        let text = serde_json::to_vec(&errand).map_err(|error| Error::Config(error.to_string()))?;
        let text = sealed::of_bytes(&text).context(|| "memfd_create".into())?;
        let (channel, theirs) = Channel::pair().context(|| "socketpair".into())?;
        let others: Vec<_> = descriptors.iter().map(|(_, fd)| fd.as_fd()).collect();
        // Namespaces of its own are for root alone. Without, it shows the host's mounts and network; nobody could set up
        // another network for it.
        let is_root = credentials::effective_uid() == 0;
        let network = if is_root && *network == Network::New { libc::CLONE_NEWNET } else { 0 };
        let mounts = if is_root { libc::CLONE_NEWNS } else { 0 };
        let namespaces = u64::from((network | mounts).cast_unsigned());
        let child = start(shown, namespaces, &text, &theirs, &others)?;
        let mut process = Guarded::new(child);
        drop((theirs, descriptors));
        // Everything that the monitor starts begins its life in the group.
        log.warnings(cgroup.add(process.pid())?);
        process.release().context(|| "start the monitor".into())?;
        match channel.receive::<Told>(true) {
            Ok(Some(Told::Ready { sandbox, gofer })) => Ok(Self { process, channel, sandbox, gofer }),
            Ok(Some(Told::Failed { code, message })) => Err(Error::Start { code, message }),
            Ok(None) | Err(ChannelError::Closed) => {
                let exit = process.end(Duration::from_secs(1));
                let message = format!("the monitor of the container {}", crate::sandbox::how(exit));
                Err(Error::Sandbox { code: 1, message })
            }
            Err(error) => Err(error.into()),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Lets the container live on.
    pub fn commit(mut self) -> Result<()> {
        self.channel.send(&Commit)?;
        self.process.set_free();
        Ok(())
    }
}

/// Starts a proxy for the process behind `channel`. With a terminal: our side of it, and the socket to relay it to.
pub(crate) fn launch_proxy(channel: &Channel, terminal: Option<(OwnedFd, OwnedFd)>) -> Result<Guarded> {
    let text = serde_json::to_vec(&terminal.is_some()).map_err(|error| Error::Config(error.to_string()))?;
    let text = sealed::of_bytes(&text).context(|| "memfd_create".into())?;
    let others: Vec<_> = terminal.iter().flat_map(|(ours, socket)| [ours.as_fd(), socket.as_fd()]).collect();
    let name = vec![CString::new(PROXY_NAME).unwrap_or_default()];
    let mut process = Guarded::new(start(name, 0, &text, channel, &others)?);
    process.release().context(|| "start the proxy".into())?;
    Ok(process)
}

fn errand<T: serde::de::DeserializeOwned>() -> Result<T> {
    let mut text = Vec::new();
    let file =
        fd::take_inherited(ERRAND_FD).context(|| "this is started by the casemate command alone".into())?;
    File::from(file).read_to_end(&mut text).context(|| "read the errand".into())?;
    serde_json::from_slice(&text).map_err(|error| Error::Config(error.to_string()))
}

fn inherited(number: RawFd) -> Result<OwnedFd> {
    fd::take_inherited(number).context(|| format!("descriptor {number}"))
}

/// Waits for the end of an executed process, and ends like it.
pub fn proxy_main() -> ExitCode {
    let serve = || -> Result<Status> {
        let has_terminal: bool = errand()?;
        let channel = Channel::from_socket(inherited(CHANNEL_FD)?);
        signals::block_ordinary().context(|| "block signals".into())?;
        let pending = signals::descriptor().context(|| "signalfd".into())?;
        let mut relay = None;
        if has_terminal {
            let (terminal, socket) = (inherited(FIRST_FD)?, inherited(FIRST_FD + 1)?);
            relay = Some(relay_of(terminal, socket)?);
        }
        settle_down();
        session::attend(&channel, relay, &pending)
    };
    match serve() {
        Ok(status) => end_like(status),
        Err(_) => ExitCode::from(session::EXEC_FAILED),
    }
}

fn relay_of(terminal: OwnedFd, socket: OwnedFd) -> Result<Relay> {
    pty::take_control(&terminal).context(|| "take the terminal".into())?;
    Relay::of_terminal(terminal, socket).context(|| "set up the terminal".into())
}

/// Makes the container's root that of our mount namespace: engines find a container's files by its init, and a process that
/// has nothing to do with the host's files has no need to see them.
///
/// Says whether it is so now. Without, who wants to look at the container's files finds them all the same by its bundle.
fn show_root(plan: &Plan) -> bool {
    let Some(root) = plan.attachments.first().map(|root| root.source.as_path()) else { return false };
    if credentials::effective_uid() != 0 {
        return false;
    }
    let enter = || -> io::Result<()> {
        // First of all, so that nothing of what follows is seen outside.
        let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", alone)?;
        rustix::mount::mount_bind_recursive(root, root)?;
        rustix::process::chdir(root)?;
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        Ok(rustix::process::chdir("/")?)
    };
    enter().is_ok()
}

/// Holds on to nothing of the host, and to no right but that to signal the sandbox.
fn settle_down() {
    let _ = std::env::set_current_dir("/");
    // What it may not do any more is a matter of prudence: a host that refuses is no reason to end the container.
    let _ = process::set_no_new_privs();
    if let Ok(held) = rustix::thread::capabilities(None) {
        let keep = CapabilitySet::KILL & held.permitted;
        let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
        let _ = rustix::thread::set_capabilities(None, sets);
    }
}

/// Ends this process as the container's did: by the same code, or by the same signal.
fn end_like(status: Status) -> ExitCode {
    match status {
        Status::Exited(code) => ExitCode::from(code),
        Status::Signaled(signo) => {
            // There is nothing of ours to look at in a core file.
            let _ = credentials::set_limit(Limit::CoreSize, 0);
            signals::die_of(i32::from(signo));
            ExitCode::from(status.code())
        }
    }
}

/// Runs a sandbox for a command that leaves when the container is complete.
pub fn monitor_main() -> ExitCode {
    let errand: Errand = match errand() {
        Ok(errand) => errand,
        Err(error) => {
            eprintln!("casemate-monitor: {error}");
            return ExitCode::FAILURE;
        }
    };
    let channel = match inherited(CHANNEL_FD) {
        Ok(socket) => Channel::from_socket(socket),
        Err(_) => return ExitCode::FAILURE,
    };
    let format = if errand.json { Format::Json } else { Format::Text };
    let stopwatch = errand.plan.boot.options.timing;
    let mut log = Log::of_file(None, format, errand.debug).with_moments("monitor", stopwatch);
    let mut creator = Creator { channel: Some(channel), shown: None };
    let ended = monitor(errand, &mut creator, &mut log);
    match ended {
        Ok(report) => {
            log.warnings(report.unsupported.iter().map(ToString::to_string));
            if let Some(cause) = &report.cause {
                log.write(Level::Error, cause);
            }
            end_like(report.status)
        }
        Err(error) => {
            let message = error.to_string();
            let code = error.exit_code();
            match creator.channel.take() {
                // The command says it.
                Some(channel) => drop(channel.send(&Told::Failed { code, message })),
                None => log.write(Level::Error, &message),
            }
            match code.checked_sub(128) {
                Some(signo) if signo > 0 => end_like(Status::Signaled(signo)),
                _ => ExitCode::from(code),
            }
        }
    }
}

fn monitor(errand: Errand, creator: &mut Creator, log: &mut Log) -> Result<Report> {
    signals::block_ordinary().context(|| "block signals".into())?;
    let pending = signals::descriptor().context(|| "signalfd".into())?;
    let Errand { mut plan, roles, mut group, around, netns, own_pids, .. } = errand;
    let mut descriptors = Vec::new();
    let mut relay = None;
    let mut pod = None;
    let mut notifier = None;
    let mut state = None;
    let boot = shown::boot_time();
    for (role, number) in roles.into_iter().zip(FIRST_FD..) {
        let fd = inherited(number)?;
        match role {
            Role::Sentry(role) => descriptors.push((role, fd)),
            Role::Log => log.set_file(fd.into()),
            Role::State => state = Some(fd),
            Role::Sandbox => pod = Some(Channel::from_socket(fd)),
            Role::Notify => {
                let (ours, theirs) = Notifier::new(fd).context(|| "socketpair".into())?;
                notifier = Some(ours);
                descriptors.push((Descriptor::Notify, theirs));
            }
            Role::Terminal => {
                let (socket, theirs) = UnixStream::pair().context(|| "socketpair".into())?;
                relay = Some(relay_of(fd, socket.into())?);
                descriptors.push((Descriptor::Console, theirs.into()));
            }
        }
    }
    if let Some(path) = netns {
        let join = || -> io::Result<()> {
            let namespace = File::open(&path)?;
            let kind = Some(LinkNameSpaceType::Network);
            Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?)
        };
        join().context(|| format!("join the network namespace {}", show(&path)))?;
    }
    if let Some(adjustment) = plan.boot.process.oom_score_adj {
        // Refused to those without the right to lower it; what is started has the same.
        let _ = std::fs::write("/proc/self/oom_score_adj", adjustment.to_string());
    }
    if let Some(sentry) = pod {
        let mut gofer = Gofer::start(&plan)?;
        Member::ask(&sentry, &mut plan, &mut gofer, descriptors, own_pids)?;
        let memory = Guard::new(&group, &around);
        creator.show(&plan, state, boot);
        settle_down();
        return Member { gofer, sentry, relay, pending, notifier, memory, log, overseer: creator }.attend();
    }
    // The group is this process's own already, and children begin in it.
    log.moment("begun");
    let (sandbox, _) = Sandbox::start(&mut plan, descriptors, &ControlGroup::default(), log)?;
    group.hold();
    creator.show(&plan, state, boot);
    settle_down();
    let mut run = Run {
        sandbox,
        relay,
        pending,
        foreground: false,
        notifier,
        overseer: creator,
        state: Progress::default(),
    };
    run.drive(&group)
}

/// The command that creates the container, until it has written everything down.
struct Creator {
    channel: Option<Channel>,
    /// After that: those who look at the container's processes.
    shown: Option<Shown>,
}

impl Creator {
    /// Shows engines the container's root and processes where they look for them.
    fn show(&mut self, plan: &Plan, state: Option<OwnedFd>, boot: Option<SystemTime>) {
        // Mounts are made in no other tree than the container's, which is ours alone here.
        if show_root(plan) {
            // A kernel without it, or a user namespace, shows no processes.
            self.shown = state.zip(boot).and_then(|(state, boot)| Shown::new(state, boot).ok());
        }
    }
}

impl Overseer for Creator {
    fn ready(&mut self, sandbox: &Sandbox) -> Result<()> {
        self.is_there(sandbox.sentry.pid(), sandbox.gofer.pid())
    }

    fn is_there(&mut self, sandbox: u32, gofer: u32) -> Result<()> {
        if let Some(channel) = &self.channel {
            channel.send(&Told::Ready { sandbox, gofer })?;
        }
        Ok(())
    }

    fn interest(&self) -> Interest {
        match (&self.channel, &self.shown) {
            (Some(channel), _) => Interest::new(channel.as_fd(), libc::POLLIN),
            (None, Some(shown)) => shown.interest(),
            (None, None) => Interest::none(),
        }
    }

    fn turn(&mut self) -> Result<()> {
        let Some(channel) = &self.channel else {
            if let Some(shown) = &mut self.shown {
                shown.turn();
            }
            return Ok(());
        };
        match channel.receive::<Commit>(false) {
            Ok(None) => Ok(()),
            Ok(Some(Commit)) => {
                self.channel = None;
                Ok(())
            }
            // The command has died, or gave up.
            Err(error) => Err(error.into()),
        }
    }
}
