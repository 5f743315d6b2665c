//! Further processes of a running container, and what else is asked of its Sentry.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use control_protocol::{
    Answer, Channel, ChannelError, Descriptor, Event, Order, Process, ProcessInfo, Request, Status,
    TerminalSize,
};
use hostsys::polling::{self, Interest};
use hostsys::process::Exit;
use hostsys::{sealed, signals};

use crate::config::Config;
use crate::detached;
use crate::error::{Context, Error, Result};
use crate::foreground::{Descriptors, preserved, standard};
use crate::log::Log;
use crate::registration;
use crate::relay::Relay;
use crate::sandbox::code_of;
use crate::state::{self, StateRoot, Status as Life};
use crate::{capability, plan, pty, validate};

/// How long a Sentry may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the Sentry of the container whose state is in `dir`.
fn connect(dir: &Path) -> Result<Channel> {
    match state::connect(dir) {
        Ok(socket) => Ok(Channel::from_socket(socket)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Error::NotRunning),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotRunning),
        Err(source) => Err(Error::Host { what: "connect to the sandbox".into(), source }),
    }
}

/// Waits for a message; an error if none comes in time.
fn await_message(channel: &Channel, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut interests = [Interest::new(channel.as_fd(), libc::POLLIN)];
        match polling::wait(&mut interests, Some(left_ms)) {
            Ok(0) if left.is_zero() => {
                return Err(Error::Sandbox { code: 1, message: "the sandbox does not answer".into() });
            }
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Host { what: "poll".into(), source }),
        }
    }
}

fn answer(channel: &Channel) -> Result<Answer> {
    await_message(channel, PATIENCE)?;
    match channel.receive(true) {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) | Err(ChannelError::Closed) => Err(Error::NotRunning),
        Err(error) => Err(error.into()),
    }
}

fn settle(answer: Answer) -> Result<()> {
    match answer {
        Answer::Done => Ok(()),
        Answer::AlreadyStarted => Err(Error::AlreadyRunning),
        Answer::NotRunning => Err(Error::NotRunning),
        Answer::Refused(message) => Err(Error::Sandbox { code: 1, message }),
        Answer::Processes(_) | Answer::Inspected(_) => {
            Err(Error::Sandbox { code: 1, message: "the sandbox process sent nonsense".into() })
        }
    }
}

/// Asks for what is answered by yes or no.
pub(crate) fn ask(dir: &Path, request: &Request) -> Result<()> {
    ask_with(dir, request, &[])
}

/// The same with descriptors.
pub(crate) fn ask_with(dir: &Path, request: &Request, descriptors: &[OwnedFd]) -> Result<()> {
    let channel = connect(dir)?;
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    channel.send_sealed(request, &borrowed)?;
    settle(answer(&channel)?)
}

/// Leaves a request with a Sentry that does not run now.
pub(crate) fn leave(dir: &Path, request: &Request) -> Result<()> {
    Ok(connect(dir)?.send_sealed(request, &[])?)
}

/// The container's processes.
pub(crate) fn processes(dir: &Path) -> Result<Vec<ProcessInfo>> {
    processes_on(&connect(dir)?)
}

/// The same on a connection of its own.
pub(crate) fn processes_on(channel: &Channel) -> Result<Vec<ProcessInfo>> {
    channel.send_sealed(&Request::Processes, &[])?;
    let mut all = Vec::new();
    loop {
        match answer(channel)? {
            Answer::Processes(some) if all.len() < 100_000 => all.extend(some),
            other => {
                settle(other)?;
                return Ok(all);
            }
        }
    }
}

/// What the sandbox holds, in lines to show. With `trace` its calls are written to that file from now on, or, for
/// [`Trace::Off`], no more.
pub fn inspect(root: &StateRoot, id: &str, files: bool, trace: Trace) -> Result<Vec<String>> {
    let state = root.load(id)?;
    match state.status() {
        Life::Stopped => return Err(Error::NotRunning),
        Life::Paused => return Err(Error::Usage("the container is paused; resume it first".into())),
        _ => {}
    }
    let channel = connect(&state.dir)?;
    let (on, file) = match trace {
        Trace::Unchanged => (None, None),
        Trace::Off => (Some(false), None),
        Trace::To(file) => (Some(true), Some(file)),
    };
    let descriptors: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    channel.send_sealed(&Request::Inspect { trace: on, files }, &descriptors)?;
    let mut all = Vec::new();
    loop {
        match answer(&channel)? {
            Answer::Inspected(some) if all.len() < 100_000 => all.extend(some),
            other => {
                settle(other)?;
                return Ok(all);
            }
        }
    }
}

/// What becomes of the trace of system calls.
#[derive(Debug)]
pub enum Trace {
    Unchanged,
    Off,
    To(std::fs::File),
}

/// A process to execute in a running container.
#[derive(Debug)]
pub struct Execution {
    pub process: Process,
    pub console_socket: Option<PathBuf>,
    /// Gets a descriptor of what stands for the process; with `detach` alone.
    pub pidfd_socket: Option<PathBuf>,
    pub detach: bool,
    pub pid_file: Option<PathBuf>,
    /// Descriptors that become the process' from 3 on ([`crate::take_preserved`]).
    pub preserved: Vec<OwnedFd>,
    pub ignore_paused: bool,
}

/// The base of a process that is executed in a container: what its bundle says of the first one.
pub fn process_of_bundle(bundle: &Path) -> Result<Process> {
    let config = Config::load(bundle)?;
    Ok(config.spec.process().as_ref().map(plan::of_process).unwrap_or_default())
}

/// The process that an engine describes in a file: the `process` of a configuration.
pub fn process_of_json(text: &[u8]) -> Result<Process> {
    let mut value = serde_json::json!({ "process": serde_json::from_slice::<serde_json::Value>(text)
        .map_err(|error| Error::Usage(format!("process.json: {error}")))? });
    capability::remove_unknown(&mut value);
    let process = value.get_mut("process").map(serde_json::Value::take).unwrap_or_default();
    let process: oci_spec::runtime::Process = serde_path_to_error::deserialize(process).map_err(|error| {
        let path = error.path().to_string();
        // Of the whole, the path is a dot.
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Error::Usage(format!("process.json: {place}{}", error.inner()))
    })?;
    validate::check_process(&process, &mut Vec::new())?;
    Ok(plan::of_process(&process))
}

/// The exit status with which `exec` says that it could not start the process.
pub const EXEC_FAILED: u8 = 255;

/// Executes a process; its exit status, or 0 for one that is detached. Call it while this process has one thread.
pub fn exec(root: &StateRoot, id: &str, mut execution: Execution, log: &Log) -> Result<u8> {
    let state = root.load(id)?;
    match state.status() {
        Life::Stopped => return Err(Error::ExecStopped),
        Life::Paused if !execution.ignore_paused => return Err(Error::ExecPaused),
        _ => {}
    }
    if execution.detach && execution.process.terminal.is_some() && execution.console_socket.is_none() {
        return Err(Error::Usage(
            "cannot allocate tty if runc will detach without setting console socket".into(),
        ));
    }
    if execution.console_socket.is_some() && !(execution.detach && execution.process.terminal.is_some()) {
        return Err(Error::Usage("cannot use console socket if runc will not detach or allocate tty".into()));
    }
    signals::block_ordinary().context(|| "block signals".into())?;
    let pending = signals::descriptor().context(|| "signalfd".into())?;

    let mut descriptors: Descriptors = preserved(std::mem::take(&mut execution.preserved)).collect();
    let mut relay = None;
    let mut terminal = None;
    match &mut execution.process.terminal {
        None => standard(&mut descriptors)?,
        Some(size) => {
            if let Some(path) = &execution.console_socket {
                let ours = pty::offer(path, *size)?;
                let (socket, theirs) = UnixStream::pair().context(|| "socketpair".into())?;
                descriptors.push((Descriptor::Console, theirs.into()));
                terminal = Some((ours, OwnedFd::from(socket)));
            } else {
                let (ours, theirs) = Relay::of_caller().context(|| "set up the terminal".into())?;
                if let Some(now) = ours.window_size()
                    && *size == TerminalSize::default()
                {
                    *size = TerminalSize { rows: now.rows, columns: now.columns };
                }
                descriptors.push((Descriptor::Console, theirs));
                relay = Some(ours);
            }
        }
    }
    let channel = begin(&state.dir, execution.process, descriptors, Some(&pending))?;
    if !execution.detach {
        if let Some(path) = &execution.pid_file {
            registration::write_pid_file(path, std::process::id())?;
        }
        return Ok(attend(&channel, relay, &pending)?.code());
    }
    let mut proxy = detached::launch_proxy(&channel, terminal)?;
    if let Some(path) = &execution.pidfd_socket {
        pty::offer_pidfd(path, proxy.pid(), "setns")?;
    }
    if let Some(path) = &execution.pid_file {
        registration::write_pid_file(path, proxy.pid())?;
    }
    proxy.set_free();
    log.write(crate::log::Level::Debug, &format!("process {} stands for the executed one", proxy.pid()));
    Ok(0)
}

/// Has the Sentry start a process, and waits until it has; a signal that would end a program ends the wait.
fn begin(
    dir: &Path,
    process: Process,
    descriptors: Descriptors,
    pending: Option<&OwnedFd>,
) -> Result<Channel> {
    let channel = connect(dir)?;
    let roles = descriptors.iter().map(|(role, _)| *role).collect();
    let request = Request::Exec { process: Box::new(process), descriptors: roles };
    let borrowed: Vec<_> = descriptors.iter().map(|(_, fd)| fd.as_fd()).collect();
    channel.send_sealed(&request, &borrowed)?;
    drop(descriptors);
    if let Some(pending) = pending {
        await_answer(&channel, pending)?;
    }
    let message = match channel.receive::<Event>(true) {
        Ok(Some(Event::Ready)) => return Ok(channel),
        Ok(Some(Event::Failed(failure))) => {
            format!("exec failed: unable to start container process: {}", failure.message)
        }
        Ok(None | Some(Event::Exited(_) | Event::Memory(_))) => {
            "the sandbox process sent nonsense".to_owned()
        }
        Err(ChannelError::Closed) => "exec failed: the container has ended".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::Start { code: EXEC_FAILED, message })
}

/// Waits until the Sentry has something to say. A paused container has nothing before it is resumed.
fn await_answer(channel: &Channel, pending: &OwnedFd) -> Result<()> {
    loop {
        let mut interests =
            [Interest::new(channel.as_fd(), libc::POLLIN), Interest::new(pending.as_fd(), libc::POLLIN)];
        polling::wait(&mut interests, None).context(|| "poll".into())?;
        let [answer, signal] = &interests;
        if answer.any() {
            return Ok(());
        }
        if signal.any()
            && let Some(signal) = signals::next(pending.as_fd()).context(|| "read signals".into())?
            && [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP].contains(&signal.signo)
        {
            let code = code_of(Exit::Signal(signal.signo));
            return Err(Error::Sandbox { code, message: String::new() });
        }
    }
}

/// Forwards signals and the terminal to a process of the container until its end.
pub(crate) fn attend(channel: &Channel, mut relay: Option<Relay>, pending: &OwnedFd) -> Result<Status> {
    loop {
        let relay_interests = relay.as_ref().map_or([Interest::none(); 3], Relay::interests);
        let [input, output, socket] = relay_interests;
        let mut interests = [
            Interest::new(channel.as_fd(), libc::POLLIN),
            Interest::new(pending.as_fd(), libc::POLLIN),
            input,
            output,
            socket,
        ];
        polling::wait(&mut interests, None).context(|| "poll".into())?;
        let [events, signals_now, of_relay @ ..] = &interests;
        if let Some(relay) = &mut relay {
            relay.turn(of_relay);
        }
        if signals_now.any() {
            while let Some(signal) = signals::next(pending.as_fd()).context(|| "read signals".into())? {
                forward(channel, relay.as_ref(), signal);
            }
        }
        if events.any() {
            let status = match channel.receive::<Event>(false) {
                Ok(Some(Event::Exited(report))) => report.status,
                Ok(_) => continue,
                // The sandbox is gone, and the process with it.
                Err(_) => Status::Signaled(9),
            };
            if let Some(relay) = &mut relay {
                relay.drain();
            }
            return Ok(status);
        }
    }
}

fn forward(channel: &Channel, relay: Option<&Relay>, signal: signals::Received) {
    let order = match signal.signo {
        libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU => return,
        // The hang-up of the terminal reaches the process as such.
        libc::SIGHUP if signal.code > 0 && relay.is_some() => return,
        libc::SIGWINCH => match relay.and_then(Relay::window_size) {
            Some(now) => Order::Resize(TerminalSize { rows: now.rows, columns: now.columns }),
            None => return,
        },
        signo => Order::Signal(signo),
    };
    // A Sentry that is gone is found by the loop.
    let _ = channel.send(&order);
}

/// Runs a process without output; it reads `input`.
pub(crate) fn run_quietly(
    dir: &Path,
    process: Process,
    input: &[u8],
    patience: Option<Duration>,
) -> Result<Status> {
    // A file and no pipe: the process need not read it, however long it is.
    let text = sealed::of_bytes(input).context(|| "memfd_create".into())?;
    let null = || std::fs::File::options().read(true).write(true).open("/dev/null");
    let mut descriptors: Descriptors = vec![(Descriptor::Guest(0), text)];
    for number in 1..3 {
        descriptors.push((Descriptor::Guest(number), null().context(|| "open /dev/null".into())?.into()));
    }
    let channel = begin(dir, process, descriptors, None)?;
    let until = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = until.map_or(Duration::from_hours(1), |at| at.saturating_duration_since(Instant::now()));
        match await_message(&channel, left) {
            Ok(()) => {}
            Err(_) if until.is_none() => continue,
            Err(_) => return Err(Error::Hook("it runs past its time limit".into())),
        }
        if let Some(Event::Exited(report)) = channel.receive::<Event>(true)? {
            return Ok(report.status);
        }
    }
}
