//! One command's connection to the running Sentry: a request, and what comes of it.
//!
//! Whatever touches files or memory of the application is done on a worker, which may make the host calls for it. The
//! main thread only passes messages on.

use std::sync::Arc;
use std::thread;

use abi::process::WaitStatus;
use control_protocol::{
    Answer, Channel, Descriptor, Event, Failure, Order, Phase, Process, ProcessInfo, Report, Request,
};
use fs_dev::{HostSide, Tty};
use hostsys::polling::Interest;
use sentry_base::mono_now;
use sentry_kernel::{Kernel, Prepared, ThreadGroup};
use sentry_memory::UserMemory;
use sentry_vfs::JobControl;
use std::os::fd::{AsFd, OwnedFd};

use crate::console::{Bell, Console};
use crate::container::Container;
use crate::control::{Address, Note, send, status_of};
use crate::started::{Descriptors, Factory, Kind, failed};

/// What workers and relays tell about a session.
#[derive(Debug)]
pub enum SessionEvent {
    Built(Result<Built, Failure>),
    Listed(Vec<ProcessInfo>),
    Ended(WaitStatus),
    /// The relay has sent everything.
    Drained,
}

/// A process that was made for a session and is being started.
#[derive(Debug)]
pub struct Built {
    group: Arc<ThreadGroup>,
    terminal: Option<Arc<HostSide>>,
    console: Option<Console>,
}

#[derive(Debug)]
enum State {
    /// Nothing was asked yet.
    Fresh,
    /// A worker is at it. `gone` once the command is.
    Working {
        process: bool,
        gone: bool,
    },
    Running(Running),
}

#[derive(Debug)]
struct Running {
    group: Arc<ThreadGroup>,
    terminal: Option<Arc<HostSide>>,
    /// Of the relay, while it runs.
    bell: Option<Arc<Bell>>,
    ended: Option<WaitStatus>,
    gone: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    channel: Channel,
    state: State,
}

impl Session {
    pub fn new(channel: Channel) -> Self {
        Self { channel, state: State::Fresh }
    }

    pub fn interest(&self) -> Interest {
        match &self.state {
            State::Working { gone: true, .. } | State::Running(Running { gone: true, .. }) => {
                Interest::none()
            }
            _ => Interest::new(self.channel.as_fd(), libc::POLLIN),
        }
    }

    /// Whether the end of a process has yet to be told.
    pub fn awaits_end(&self) -> bool {
        matches!(&self.state, State::Working { process: true, .. } | State::Running(_))
    }

    /// Takes what the command has sent. True if the session is over.
    pub fn turn(
        &mut self,
        number: u64,
        container: &Container,
        held: &mut Option<Prepared>,
        address: &Address,
    ) -> bool {
        match &mut self.state {
            State::Fresh => match self.channel.receive_sealed::<Request>(false) {
                Ok(None) => false,
                Ok(Some((request, fds))) => self.begin(number, request, fds, container, held, address),
                Err(_) => true,
            },
            State::Working { process, gone } => {
                // Orders may come before the process is there; they are for nobody.
                match self.channel.receive::<Order>(false) {
                    Ok(_) => false,
                    Err(_) if *process => {
                        *gone = true;
                        false
                    }
                    Err(_) => true,
                }
            }
            State::Running(running) => {
                match self.channel.receive::<Order>(false) {
                    Ok(None | Some(Order::Start)) => {}
                    Ok(Some(Order::Signal(signo))) => send(&running.group, signo),
                    Ok(Some(Order::Resize(size))) => {
                        if let Some(terminal) = &running.terminal {
                            terminal.resize(size.rows, size.columns);
                        }
                    }
                    // Nobody waits for it any more.
                    Err(_) => {
                        running.gone = true;
                        send(&running.group, libc::SIGKILL);
                    }
                }
                false
            }
        }
    }

    fn begin(
        &mut self,
        number: u64,
        request: Request,
        fds: Vec<OwnedFd>,
        container: &Container,
        held: &mut Option<Prepared>,
        address: &Address,
    ) -> bool {
        let answer = match request {
            Request::Connect(network) => match container.connect(&network, fds) {
                Ok(()) => Answer::Done,
                Err(problem) => Answer::Refused(problem),
            },
            Request::Capture => match container.capture(fds) {
                Ok(()) => Answer::Done,
                Err(problem) => Answer::Refused(problem),
            },
            Request::Start => match held.take() {
                Some(init) => {
                    init.start();
                    Answer::Done
                }
                None => Answer::AlreadyStarted,
            },
            Request::Kill { signal, all } => kill(&container.kernel, signal, all),
            Request::Processes => {
                self.state = State::Working { process: false, gone: false };
                let (kernel, address) = (Arc::clone(&container.kernel), address.clone());
                container.kernel.executor().spawn(async move {
                    address.post(Note::Session(number, SessionEvent::Listed(list(&kernel))));
                });
                return false;
            }
            Request::Exec { process, descriptors } => {
                if descriptors.len() != fds.len() {
                    return true;
                }
                self.state = State::Working { process: true, gone: false };
                let (factory, address) = (Arc::clone(&container.factory), address.clone());
                container.kernel.executor().spawn(async move {
                    execute(&factory, &process, &descriptors, fds, number, &address);
                });
                return false;
            }
        };
        let _ = self.channel.send(&answer);
        true
    }

    /// Takes what a worker or the relay tells. True if the session is over.
    pub fn take(&mut self, event: SessionEvent, number: u64, address: &Address) -> bool {
        match event {
            SessionEvent::Listed(list) => {
                for part in list.chunks(PER_ANSWER) {
                    let _ = self.channel.send(&Answer::Processes(part.to_vec()));
                }
                let _ = self.channel.send(&Answer::Done);
                return true;
            }
            SessionEvent::Built(Err(failure)) => {
                let _ = self.channel.send(&Event::Failed(failure));
                return true;
            }
            SessionEvent::Built(Ok(Built { group, terminal, console })) => {
                let gone = matches!(self.state, State::Working { gone: true, .. });
                let bell = console.and_then(|relay| relay_on_a_thread(relay, number, address));
                if gone {
                    send(&group, libc::SIGKILL);
                } else {
                    let _ = self.channel.send(&Event::Ready);
                }
                self.state = State::Running(Running { group, terminal, bell, ended: None, gone });
            }
            SessionEvent::Ended(status) => {
                if let State::Running(running) = &mut self.state {
                    running.ended = Some(status);
                    if let Some(bell) = &running.bell {
                        // What the program has written to its terminal goes out before its end is told.
                        bell.end();
                    }
                }
            }
            SessionEvent::Drained => {
                if let State::Running(running) = &mut self.state {
                    running.bell = None;
                }
            }
        }
        let State::Running(Running { bell: None, ended: Some(status), .. }) = &self.state else {
            return false;
        };
        let report = Report { status: status_of(*status), unsupported: Vec::new(), cause: None };
        let _ = self.channel.send(&Event::Exited(report));
        true
    }
}

/// Starts the relay; the terminal is dead without one.
fn relay_on_a_thread(relay: Console, number: u64, address: &Address) -> Option<Arc<Bell>> {
    let (bell, address) = (relay.bell(), address.clone());
    let run = move || {
        relay.run();
        address.post(Note::Session(number, SessionEvent::Drained));
    };
    thread::Builder::new().name("console".into()).spawn(run).ok().map(|_| bell)
}

fn kill(kernel: &Kernel, signal: i32, all: bool) -> Answer {
    if !(0..=64).contains(&signal) {
        return Answer::Refused(format!("{signal} is no signal"));
    }
    let to = if all { kernel.processes() } else { kernel.process(1).into_iter().collect() };
    if to.is_empty() {
        return Answer::NotRunning;
    }
    if signal != 0 {
        for group in to {
            send(&group, signal);
        }
    }
    Answer::Done
}

/// Makes and starts a process. The order of the notes is that of the events: there before it is over.
fn execute(
    factory: &Arc<Factory>,
    process: &Process,
    roles: &[Descriptor],
    fds: Vec<OwnedFd>,
    number: u64,
    address: &Address,
) {
    let fds = Descriptors::sort(roles, fds);
    let told = address.clone();
    let ended = Box::new(move |status| told.post(Note::Session(number, SessionEvent::Ended(status))));
    let built = if process.args.is_empty() {
        Err(failed(Phase::Init, "args must not be empty"))
    } else {
        factory.make(Kind::Later, process, fds.guest, fds.console, ended)
    };
    match built {
        Err(failure) => address.post(Note::Session(number, SessionEvent::Built(Err(failure)))),
        Ok(made) => {
            let built = Built { group: made.group, terminal: made.terminal, console: made.console };
            address.post(Note::Session(number, SessionEvent::Built(Ok(built))));
            made.prepared.start();
        }
    }
}

/// The longest command that is shown, in bytes.
const MAX_COMMAND: usize = 256;

/// Processes that fit into one answer, whatever their names are made of.
const PER_ANSWER: usize = 32;

/// Processes that are shown.
const MAX_LISTED: usize = 4096;

fn list(kernel: &Arc<Kernel>) -> Vec<ProcessInfo> {
    let now = mono_now();
    let mut listed = Vec::new();
    for group in kernel.processes() {
        let threads = group.threads();
        // A zombie is not shown.
        let Some(task) = threads.first() else { continue };
        let (utime, stime) = group.cpu_times();
        let layout = task.mm().layout();
        let len = usize::try_from(layout.arg_end.saturating_sub(layout.arg_start)).unwrap_or(0);
        let mut arguments = vec![0; len.min(MAX_COMMAND)];
        let got = task.mm().copy_in_partial(layout.arg_start, &mut arguments).unwrap_or(0);
        arguments.truncate(got);
        let shown: Vec<u8> =
            arguments.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }).collect();
        let mut command = String::from_utf8_lossy(&shown).trim_end().to_owned();
        if command.is_empty() {
            command = format!("[{}]", String::from_utf8_lossy(&task.comm()));
        }
        let terminal = task.controlling_terminal();
        listed.push(ProcessInfo {
            pid: group.pid(),
            ppid: group.ppid(),
            uid: task.creds().euid,
            age_ms: now.saturating_sub(group.started()) / 1_000_000,
            cpu_ms: utime.saturating_add(stime) / 1_000_000,
            terminal: terminal.and_then(|t| t.as_any().downcast_ref::<Tty>().map(Tty::index)),
            command,
        });
        if listed.len() == MAX_LISTED {
            break;
        }
    }
    listed
}
