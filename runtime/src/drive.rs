//! Looks after a running sandbox: forwards signals and the terminal, waits for its end, and finds the cause of it.
//!
//! Whatever ends [`Run::drive`], by whichever path, ends the sandbox. If the process itself is killed, the Sentry and the
//! gofer die with it (`PR_SET_PDEATHSIG`), the stubs with the Sentry's pid namespace.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use control_protocol::{Channel, ChannelError, Event, Failure, Order, Phase, Report, TerminalSize};
use hostsys::polling::{self, Interest};
use hostsys::process::Exit;
use hostsys::signals;

use crate::cgroup::Group;
use crate::error::{Context, Error, Result};
use crate::notify::{self, Notifier};
use crate::relay::Relay;
use crate::sandbox::{Sandbox, code_of, how};

/// How long a Sentry that has reported its end may take to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// How long a Sentry may live on after its gofer has left by itself.
const GRACE: Duration = Duration::from_millis(300);

/// Who wants to know how the sandbox gets on.
pub(crate) trait Overseer {
    /// The container is complete. `held` ones are started by [`Order::Start`].
    fn ready(&mut self, sandbox: &Sandbox) -> Result<()>;

    /// The same for a container in another one's sandbox, by the numbers of its processes on the host.
    fn is_there(&mut self, _sandbox: u32, _gofer: u32) -> Result<()> {
        Ok(())
    }

    /// A descriptor of its own to wait for.
    fn interest(&self) -> Interest {
        Interest::none()
    }

    /// The descriptor has something. An error ends the sandbox.
    fn turn(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A sandbox that runs, and the terminal that is relayed to it.
pub(crate) struct Run<'a> {
    pub sandbox: Sandbox,
    pub relay: Option<Relay>,
    /// Signals to this process.
    pub pending: OwnedFd,
    /// Whether this process is somebody's foreground job, rather than alone with a pseudo-terminal.
    pub foreground: bool,
    /// Whom the container tells that it is ready.
    pub notifier: Option<Notifier>,
    pub overseer: &'a mut dyn Overseer,
    pub state: Progress,
}

/// What the Sentry has told so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    ready: bool,
    report: Option<Report>,
    failure: Option<Failure>,
}

impl Run<'_> {
    /// Runs to the end: everything of the sandbox is gone then.
    pub fn drive(&mut self, cgroup: &Group) -> Result<Report> {
        let mut cause = None;
        let mut leave_by: Option<Instant> = None;
        let exit = loop {
            let relay_interests = match &self.relay {
                Some(relay) => relay.interests(),
                None => [Interest::none(); 3],
            };
            let [input, output, socket] = relay_interests;
            let over = self.state.report.is_some() || self.state.failure.is_some();
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
                self.overseer.interest(),
                notify::interest(self.notifier.as_ref()),
                input,
                output,
                socket,
            ];
            let timeout = leave_by.map(|at| {
                i32::try_from(at.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(i32::MAX)
            });
            polling::wait(&mut interests, timeout).context(|| "poll".into())?;
            let [sentry, gofer, control, pending, sentry_says, gofer_says, overseer, notes, relay @ ..] =
                &interests;

            if sentry_says.any() {
                self.sandbox.sentry_says.read();
            }
            if gofer_says.any() {
                self.sandbox.gofer_says.read();
            }
            if let Some(terminal) = &mut self.relay {
                terminal.turn(relay);
            }
            if overseer.any()
                && let Err(error) = self.overseer.turn()
            {
                return Err(self.abort(error));
            }
            if notes.any() {
                let pid = if self.foreground { self.sandbox.sentry.pid() } else { std::process::id() };
                notify::turn(&mut self.notifier, pid);
            }
            if control.any() || sentry.any() {
                let before = self.state.ready;
                self.take_events();
                if self.state.ready && !before {
                    if let Err(error) = self.overseer.ready(&self.sandbox) {
                        return Err(self.abort(error));
                    }
                    // From here on this process waits.
                    hostsys::text::let_go_of_code();
                }
            }
            if pending.any()
                && let Some(abort) = self.take_signals()?
            {
                // Nothing of the container runs yet: the signal ends its start.
                let code = code_of(Exit::Signal(abort));
                return Err(self.abort(Error::Sandbox { code, message: String::new() }));
            }
            if sentry.any() {
                break self.sandbox.sentry.end(LEAVE);
            }
            let over = self.state.report.is_some() || self.state.failure.is_some();
            if over && leave_by.is_none() {
                leave_by = Some(Instant::now() + LEAVE);
                // Nobody asks it for anything any more: it goes while the Sentry does.
                self.sandbox.gofer.kill(libc::SIGKILL);
            }
            if !over && gofer.any() && cause.is_none() {
                let exit = self.sandbox.gofer.end(LEAVE);
                // A gofer also leaves when its Sentry is gone, without a fault of its own, and may be seen first: a Sentry
                // that held much memory takes its time to end on a busy machine, and it is its end that counts.
                let patience = if exit == Exit::Code(0) { LEAVE } else { GRACE };
                let alone = matches!(exit, Exit::Signal(_)) || self.sandbox.sentry.wait(patience).is_none();
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

    fn abort(&mut self, error: Error) -> Error {
        self.sandbox.sentry.kill(libc::SIGKILL);
        self.sandbox.sentry.end(LEAVE);
        error
    }

    fn conclude(&mut self, exit: Exit, cause: Option<Error>, cgroup: &Group) -> Result<Report> {
        if let Some(report) = self.state.report.take() {
            return Ok(report);
        }
        if let Some(failure) = self.state.failure.take() {
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
            if let Some((limit, peak)) = cgroup.memory_peak() {
                message = format!("{message} (limit {limit} bytes, peak {peak})");
            }
        }
        Err(Error::Sandbox { code: code_of(exit), message })
    }

    /// Takes what the Sentry has told.
    fn take_events(&mut self) {
        while self.state.report.is_none() && self.state.failure.is_none() {
            match self.sandbox.control.receive::<Event>(false) {
                Ok(Some(Event::Ready)) => self.state.ready = true,
                Ok(Some(Event::Failed(failure))) => self.state.failure = Some(failure),
                Ok(Some(Event::Exited(report))) => self.state.report = Some(report),
                // Asked for by nobody.
                Ok(Some(Event::Memory(_))) => {}
                Ok(None) | Err(ChannelError::Closed) => break,
                Err(error) => {
                    let message = format!("the sandbox process sent nonsense: {error}");
                    self.state.failure = Some(Failure { phase: Phase::Init, message });
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
                // The hang-up of the terminal reaches the container as such.
                libc::SIGHUP if signal.code > 0 && self.relay.is_some() && !self.foreground => {}
                libc::SIGWINCH => {
                    if let Some(now) = self.relay.as_ref().and_then(Relay::window_size) {
                        self.order(&Order::Resize(TerminalSize { rows: now.rows, columns: now.columns }));
                    } else {
                        self.order(&Order::Signal(signal.signo));
                    }
                }
                libc::SIGTSTP if self.foreground => {
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
                    if !self.state.ready
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
