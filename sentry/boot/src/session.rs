//! One command's connection to the running Sentry: a request, and what comes of it.
//!
//! Whatever touches files or memory of the application is done on a worker, which may make the host calls for it. The
//! main thread only passes messages on.

use std::sync::Arc;
use std::thread;

use abi::process::WaitStatus;
use control_protocol::{
    Answer, Boot, Channel, Descriptor, Event, Failure, Order, Phase, Process, ProcessInfo, Report, Request,
};
use fs_dev::{HostSide, Tty};
use hostsys::polling::Interest;
use sentry_base::mono_now;
use sentry_kernel::{Kernel, ThreadGroup};
use sentry_memory::UserMemory;
use sentry_vfs::JobControl;
use std::os::fd::{AsFd, OwnedFd};

use crate::console::{Bell, Console};
use crate::container::{Container, Shared, Which, members};
use crate::control::{Address, Note, send, status_of};
use crate::inspect;
use crate::started::{Descriptors, Factory, Kind, Made, failed};

/// What workers and relays tell about a session.
#[derive(Debug)]
pub enum SessionEvent {
    Built(Result<Built, Failure>),
    Listed(Vec<ProcessInfo>),
    Inspected(Vec<String>),
    Ended(WaitStatus),
    /// Bytes of memory of the container.
    Measured(u64),
    /// The relay has sent everything.
    Drained,
}

/// A process that was made for a session and is being started.
#[derive(Debug)]
pub struct Built {
    group: Arc<ThreadGroup>,
    terminal: Option<Arc<HostSide>>,
    console: Option<Console>,
    /// The container whose init it is, until the main thread takes it.
    container: Option<Box<Container>>,
}

impl SessionEvent {
    /// The container that was made.
    pub fn take_container(&mut self) -> Option<Container> {
        match self {
            Self::Built(Ok(built)) => built.container.take().map(|container| *container),
            _ => None,
        }
    }
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
    asked: Option<u64>,
}

impl Session {
    /// A connection to the listener of the container that was made for the session `asked`, or to the first one's.
    pub fn new(channel: Channel, asked: Option<u64>) -> Self {
        Self { channel, state: State::Fresh, asked }
    }

    /// Which container is asked.
    pub fn asks(&self) -> Option<u64> {
        self.asked
    }

    /// Whether the command is gone.
    pub fn is_gone(&self) -> bool {
        matches!(&self.state, State::Working { gone: true, .. } | State::Running(Running { gone: true, .. }))
    }

    pub fn interest(&self) -> Interest {
        if self.is_gone() { Interest::none() } else { Interest::new(self.channel.as_fd(), libc::POLLIN) }
    }

    /// Whether the end of a process has yet to be told.
    pub fn awaits_end(&self) -> bool {
        matches!(&self.state, State::Working { process: true, .. } | State::Running(_))
    }

    /// Takes what the command has sent. True if the session is over.
    pub fn turn(&mut self, number: u64, container: Option<&Container>, address: &Address) -> bool {
        match &mut self.state {
            State::Fresh => match (self.channel.receive_sealed::<Request>(false), container) {
                (Ok(None), Some(_)) => false,
                (Ok(Some((request, fds))), Some(container)) => {
                    self.begin(number, request, fds, container, address)
                }
                _ => true,
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
                    // The number of the session that made a container is the container's.
                    Ok(Some(Order::Memory)) => {
                        if let (Ok(which), Some(container)) = (u32::try_from(number), container) {
                            let (kernel, address) = (Arc::clone(container.kernel()), address.clone());
                            container.kernel().executor().spawn(async move {
                                let event = SessionEvent::Measured(memory_of(&kernel, which));
                                address.post(Note::Session(number, event));
                            });
                        }
                    }
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
        address: &Address,
    ) -> bool {
        let answer = match request {
            Request::Connect(network) => match container.shared.connect(&network, fds) {
                Ok(()) => Answer::Done,
                Err(problem) => Answer::Refused(problem),
            },
            Request::Capture => match container.shared.capture(fds) {
                Ok(()) => Answer::Done,
                Err(problem) => Answer::Refused(problem),
            },
            Request::LimitMemory(limit) => {
                container.limit_memory(limit);
                Answer::Done
            }
            Request::Start if container.start() => Answer::Done,
            Request::Start => Answer::AlreadyStarted,
            Request::Kill { signal, all } => kill(container, signal, all),
            Request::Processes => {
                self.state = State::Working { process: false, gone: false };
                let (factory, address) = (Arc::clone(&container.factory), address.clone());
                container.kernel().executor().spawn(async move {
                    address.post(Note::Session(number, SessionEvent::Listed(list(&factory))));
                });
                return false;
            }
            Request::Create { boot, own_pids } => {
                if boot.descriptors.len() != fds.len() || container.number != 0 {
                    return true;
                }
                let Ok(new) = u32::try_from(number) else { return true };
                self.state = State::Working { process: true, gone: false };
                let (shared, address) = (Arc::clone(&container.shared), address.clone());
                let which = Which { number: new, own_pids };
                container.kernel().executor().spawn(async move {
                    add(&shared, &boot, fds, which, number, &address);
                });
                return false;
            }
            Request::Inspect { trace, files } => {
                match (trace, fds.into_iter().next()) {
                    (Some(true), Some(file)) => container.kernel().set_trace(Some(inspect::trace_to(file))),
                    (Some(false), _) => container.kernel().set_trace(None),
                    _ => {}
                }
                self.state = State::Working { process: false, gone: false };
                let (kernel, address) = (Arc::clone(container.kernel()), address.clone());
                container.kernel().executor().spawn(async move {
                    let lines = inspect::lines(&kernel, files);
                    address.post(Note::Session(number, SessionEvent::Inspected(lines)));
                });
                return false;
            }
            Request::Exec { process, descriptors } => {
                if descriptors.len() != fds.len() {
                    return true;
                }
                self.state = State::Working { process: true, gone: false };
                let (factory, address) = (Arc::clone(&container.factory), address.clone());
                container.kernel().executor().spawn(async move {
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
            SessionEvent::Inspected(lines) => {
                for part in lines.chunks(PER_ANSWER) {
                    let _ = self.channel.send(&Answer::Inspected(part.to_vec()));
                }
                let _ = self.channel.send(&Answer::Done);
                return true;
            }
            SessionEvent::Built(Err(failure)) => {
                let _ = self.channel.send(&Event::Failed(failure));
                return true;
            }
            SessionEvent::Built(Ok(Built { group, terminal, console, container: _ })) => {
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
            SessionEvent::Measured(bytes) => {
                let _ = self.channel.send(&Event::Memory(bytes));
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

/// The memory of a container's processes. What they have in common is counted once where that is known: an address space of
/// two, and of shared memory the most that any of them has.
fn memory_of(kernel: &Arc<Kernel>, container: u32) -> u64 {
    let mut spaces = Vec::new();
    for group in members(kernel, container) {
        let Some(mm) = group.threads().first().map(|task| task.mm()) else { continue };
        if !spaces.iter().any(|known| Arc::ptr_eq(known, &mm)) {
            spaces.push(mm);
        }
    }
    let (mut anonymous, mut shared) = (0_u64, 0_u64);
    for mm in spaces {
        let resident = mm.resident();
        anonymous = anonymous.saturating_add(resident.anon);
        shared = shared.max(resident.shmem);
    }
    anonymous.saturating_add(shared)
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

fn kill(container: &Container, signal: i32, all: bool) -> Answer {
    if !(0..=64).contains(&signal) {
        return Answer::Refused(format!("{signal} is no signal"));
    }
    let init = container.init.pid();
    let to = if all { container.processes() } else { container.kernel().process(init).into_iter().collect() };
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
            let Made { prepared, group, terminal, console } = made;
            let built = Built { group, terminal, console, container: None };
            address.post(Note::Session(number, SessionEvent::Built(Ok(built))));
            prepared.start();
        }
    }
}

/// Makes a container whose init is held.
fn add(shared: &Arc<Shared>, boot: &Boot, fds: Vec<OwnedFd>, which: Which, number: u64, address: &Address) {
    let (told, kernel) = (address.clone(), Arc::clone(&shared.kernel));
    let ended = Box::new(move |status| {
        // What shares its numbers with another container is not ended by the kernel.
        for group in members(&kernel, which.number) {
            send(&group, libc::SIGKILL);
        }
        told.post(Note::Session(number, SessionEvent::Ended(status)));
    });
    let built = Container::add(shared, boot, fds, which, ended).map(|mut container| Built {
        group: Arc::clone(&container.init),
        terminal: container.terminal.clone(),
        console: container.console.take(),
        container: Some(Box::new(container)),
    });
    address.post(Note::Session(number, SessionEvent::Built(built)));
}

/// The longest command that is shown, in bytes.
const MAX_COMMAND: usize = 256;

/// Processes that fit into one answer, whatever their names are made of.
const PER_ANSWER: usize = 32;

/// Processes that are shown.
const MAX_LISTED: usize = 4096;

fn list(factory: &Factory) -> Vec<ProcessInfo> {
    let now = mono_now();
    let mut listed = Vec::new();
    for group in members(&factory.kernel, factory.container) {
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
            pid: factory.pid_ns.local(group.pid()),
            ppid: factory.pid_ns.local(group.ppid()),
            uid: task.creds().euid,
            gid: task.creds().egid,
            age_ms: now.saturating_sub(group.started()) / 1_000_000,
            cpu_ms: utime.saturating_add(stime) / 1_000_000,
            resident: task.mm().resident().total(),
            terminal: terminal.and_then(|t| t.as_any().downcast_ref::<Tty>().map(Tty::index)),
            command,
        });
        if listed.len() == MAX_LISTED {
            break;
        }
    }
    listed
}
