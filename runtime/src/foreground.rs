//! Runs a container in the foreground: starts it, forwards signals and the terminal, waits, and cleans up.
//!
//! Whatever ends this function, by whichever path, ends the sandbox and removes what it left. If the command itself
//! is killed, the Sentry and the gofer die with it (`PR_SET_PDEATHSIG`), the stubs with the Sentry's pid namespace;
//! the state directory then stays, and shows a stopped container.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use control_protocol::{
    Channel, ChannelError, Descriptor, Event, Failure, Order, Phase, Report, TerminalSize,
};
use hostsys::polling::{self, Interest};
use hostsys::process::Exit;
use hostsys::{credentials, signals};

use crate::cgroup::ControlGroup;
use crate::config::Config;
use crate::error::{Context, Error, Result, show};
use crate::log::{Level, Log};
use crate::plan::Plan;
use crate::relay::Relay;
use crate::sandbox::{Sandbox, code_of, how};
use crate::state::{self, ContainerDir, HostProcess, State, StateRoot};
use crate::timestamp;

/// How long a Sentry that has reported its end may take to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// How long a Sentry may live on after its gofer has left by itself.
const GRACE: Duration = Duration::from_millis(300);

/// A container to register in a state directory.
#[derive(Debug, Clone)]
pub struct Registration<'a> {
    pub root: &'a StateRoot,
    pub config: &'a Config,
    pub pid_file: Option<PathBuf>,
    /// Leave the state behind.
    pub keep: bool,
}

/// Runs `plan` to its end. Call it while this process has one thread.
pub fn run(mut plan: Plan, registration: Option<Registration<'_>>, log: &Log) -> Result<Report> {
    // From here on signals wait until the loop below takes them.
    signals::block_ordinary().context(|| "block signals".into())?;
    let pending = signals::descriptor().context(|| "signalfd".into())?;

    let mut dir = match &registration {
        Some(registration) => Some(registration.root.create(&plan.boot.id)?),
        None => None,
    };
    let (cgroup, warnings) = ControlGroup::create(&plan.limits);
    log.warnings(warnings);

    let (relay, descriptors) = descriptors(&mut plan, log)?;
    let (sandbox, warnings) = Sandbox::start(&mut plan, descriptors, &cgroup)?;
    log.warnings(warnings);
    log.write(
        Level::Debug,
        &format!("sandbox process {}, gofer {}", sandbox.sentry.pid(), sandbox.gofer.pid()),
    );

    if let (Some(registration), Some(dir)) = (&registration, &mut dir) {
        register(registration, dir, &plan, &sandbox, &cgroup)?;
        if registration.keep {
            dir.keep();
        }
    }
    let mut run = Run { sandbox, relay, pending, ready: false, report: None, failure: None };
    run.drive(&cgroup)
}

type Descriptors = Vec<(Descriptor, OwnedFd)>;

/// The descriptors that go to the Sentry besides those of the gofer.
fn descriptors(plan: &mut Plan, log: &Log) -> Result<(Option<Relay>, Descriptors)> {
    let mut descriptors = Vec::new();
    if let Some(file) = log.descriptor(plan.boot.options.strace).context(|| "duplicate the log".into())? {
        descriptors.push((Descriptor::Log, file));
    }
    if let Some(size) = &mut plan.boot.process.terminal {
        if let Some(now) = Relay::window_size()
            && *size == TerminalSize::default()
        {
            *size = TerminalSize { rows: now.rows, columns: now.columns };
        }
        let (relay, socket) = Relay::new().context(|| "set up the terminal".into())?;
        descriptors.push((Descriptor::Console, socket));
        return Ok((Some(relay), descriptors));
    }
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for (number, name, fd) in
        [(0, "stdin", stdin.as_fd()), (1, "stdout", stdout.as_fd()), (2, "stderr", stderr.as_fd())]
    {
        refuse_directory(name, fd)?;
        let copy = fd.try_clone_to_owned().context(|| format!("duplicate {name}"))?;
        descriptors.push((Descriptor::Guest(number), copy));
    }
    Ok((None, descriptors))
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

fn register(
    registration: &Registration<'_>,
    dir: &ContainerDir,
    plan: &Plan,
    sandbox: &Sandbox,
    cgroup: &ControlGroup,
) -> Result<()> {
    let spec = &registration.config.spec;
    let pid = sandbox.sentry.pid();
    dir.write(&State {
        oci_version: spec.version().clone(),
        id: plan.boot.id.clone(),
        bundle: registration.config.bundle.clone(),
        rootfs: registration.config.rootfs.clone(),
        created: timestamp::nanoseconds(SystemTime::now()),
        owner: credentials::effective_uid(),
        sandbox: HostProcess::of(pid).context(|| format!("read the start time of process {pid}"))?,
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<BTreeMap<_, _>>(),
        cgroups: cgroup.made().to_vec(),
    })?;
    if let Some(path) = &registration.pid_file {
        state::write_whole(path, pid.to_string().as_bytes(), 0o644)
            .context(|| format!("write {}", show(path)))?;
    }
    Ok(())
}

struct Run {
    sandbox: Sandbox,
    relay: Option<Relay>,
    pending: OwnedFd,
    ready: bool,
    report: Option<Report>,
    failure: Option<Failure>,
}

impl Run {
    fn drive(&mut self, cgroup: &ControlGroup) -> Result<Report> {
        let mut cause = None;
        let mut leave_by: Option<Instant> = None;
        let exit = loop {
            let relay_interests = match &self.relay {
                Some(relay) => relay.interests(&io::stdin(), &io::stdout()),
                None => [Interest::none(); 3],
            };
            let [input, output, socket] = relay_interests;
            let over = self.report.is_some() || self.failure.is_some();
            let mut interests = [
                Interest::new(self.sandbox.sentry.as_fd(), libc::POLLIN),
                if over { Interest::none() } else { Interest::new(self.sandbox.gofer.as_fd(), libc::POLLIN) },
                if over {
                    Interest::none()
                } else {
                    Interest::new(self.sandbox.control.as_fd(), libc::POLLIN)
                },
                Interest::new(self.pending.as_fd(), libc::POLLIN),
                self.sandbox.sentry_says.interest(),
                self.sandbox.gofer_says.interest(),
                input,
                output,
                socket,
            ];
            let timeout = leave_by.map(|at| {
                i32::try_from(at.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(i32::MAX)
            });
            polling::wait(&mut interests, timeout).context(|| "poll".into())?;
            let [sentry, gofer, control, pending, sentry_says, gofer_says, relay @ ..] = &interests;

            if sentry_says.any() {
                self.sandbox.sentry_says.read();
            }
            if gofer_says.any() {
                self.sandbox.gofer_says.read();
            }
            if let Some(terminal) = &mut self.relay {
                terminal.turn(relay);
            }
            if control.any() || sentry.any() {
                self.take_events();
            }
            if pending.any()
                && let Some(abort) = self.take_signals()?
            {
                // Nothing of the container runs yet: the signal ends its start.
                self.sandbox.sentry.kill(libc::SIGKILL);
                self.sandbox.sentry.end(LEAVE);
                return Err(Error::Sandbox { code: code_of(Exit::Signal(abort)), message: String::new() });
            }
            if sentry.any() {
                break self.sandbox.sentry.end(LEAVE);
            }
            let over = self.report.is_some() || self.failure.is_some();
            if over && leave_by.is_none() {
                leave_by = Some(Instant::now() + LEAVE);
            }
            if !over && gofer.any() && cause.is_none() {
                let exit = self.sandbox.gofer.end(LEAVE);
                // A gofer also leaves when its Sentry is gone, and may be seen first.
                let alone = matches!(exit, Exit::Signal(_)) || self.sandbox.sentry.wait(GRACE).is_none();
                if alone {
                    let words = self.sandbox.gofer_says.sentence();
                    let words = words.strip_prefix("casemate-gofer: ").unwrap_or(&words);
                    let colon = if words.is_empty() { "" } else { ": " };
                    let message = format!("the file server (gofer) {}{colon}{words}", how(exit));
                    cause = Some(Error::Sandbox { code: code_of(exit), message });
                    self.sandbox.sentry.kill(libc::SIGKILL);
                }
                break self.sandbox.sentry.end(LEAVE);
            }
            if leave_by.is_some_and(|at| at <= Instant::now()) {
                self.sandbox.sentry.kill(libc::SIGKILL);
                leave_by = None;
            }
        };
        self.take_events();
        if let Some(relay) = &mut self.relay {
            relay.drain();
        }
        // The terminal gets its mode back before anything is said.
        self.relay = None;
        self.sandbox.gofer.end(Duration::from_secs(1));
        self.conclude(exit, cause, cgroup)
    }

    fn conclude(&mut self, exit: Exit, cause: Option<Error>, cgroup: &ControlGroup) -> Result<Report> {
        if let Some(report) = self.report.take() {
            return Ok(report);
        }
        if let Some(failure) = self.failure.take() {
            let code = match failure.phase {
                Phase::NotFound => 127,
                Phase::NotExecutable => 126,
                _ => 1,
            };
            return Err(Error::Start { code, message: failure.message });
        }
        if let Some(cause) = cause {
            return Err(cause);
        }
        let words = self.sandbox.sentry_says.sentence();
        let mut message = format!("the sandbox process {}", how(exit));
        if !words.is_empty() {
            message = format!("{message}: {words}");
        } else if exit == Exit::Signal(libc::SIGKILL) && cgroup.out_of_memory() {
            message.push_str(": out of memory");
        }
        Err(Error::Sandbox { code: code_of(exit), message })
    }

    /// Takes what the Sentry has told.
    fn take_events(&mut self) {
        while self.report.is_none() && self.failure.is_none() {
            match self.sandbox.control.receive::<Event>(false) {
                Ok(Some(Event::Ready)) => self.ready = true,
                Ok(Some(Event::Failed(failure))) => self.failure = Some(failure),
                Ok(Some(Event::Exited(report))) => self.report = Some(report),
                Ok(None) | Err(ChannelError::Closed) => break,
                Err(error) => {
                    let message = format!("the sandbox process sent nonsense: {error}");
                    self.failure = Some(Failure { phase: Phase::Init, message });
                    self.sandbox.sentry.kill(libc::SIGKILL);
                }
            }
        }
    }

    /// Forwards the signals that have come. One that came before the container was ready, and would end a program,
    /// is returned.
    fn take_signals(&mut self) -> Result<Option<i32>> {
        while let Some(signal) = signals::next(self.pending.as_fd()).context(|| "read signals".into())? {
            match signal.signo {
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU => {}
                libc::SIGWINCH => {
                    if let Some(now) = Relay::window_size().filter(|_| self.relay.is_some()) {
                        self.order(&Order::Resize(TerminalSize { rows: now.rows, columns: now.columns }));
                    } else {
                        self.order(&Order::Signal(signal.signo));
                    }
                }
                libc::SIGTSTP => {
                    self.order(&Order::Signal(libc::SIGTSTP));
                    if let Some(relay) = &mut self.relay {
                        relay.suspend();
                    }
                    signals::stop_self();
                    if let Some(relay) = &mut self.relay {
                        relay.resume();
                    }
                }
                signo
                    if !self.ready
                        && [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP].contains(&signo) =>
                {
                    return Ok(Some(signo));
                }
                signo => self.order(&Order::Signal(signo)),
            }
        }
        Ok(None)
    }

    fn order(&self, order: &Order) {
        // A Sentry that is gone is found by the loop.
        let _ = Channel::send(&self.sandbox.control, order);
    }
}
