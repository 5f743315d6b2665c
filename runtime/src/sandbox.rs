//! The processes of one sandbox: started together, ended together.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use control_protocol::{Channel, Descriptor};
use hostsys::launch::{ALL_NAMESPACES, Child, Command};
use hostsys::process::Exit;
use hostsys::{credentials, pidfd, polling, process, sealed};

use crate::cgroup::ControlGroup;
use crate::error::{Context, Result};
use crate::log::Log;
use crate::plan::Plan;
use crate::signal_names;

/// The name under which the binary runs the Sentry.
pub const SENTRY_NAME: &str = "casemate-sentry";

/// The host user and group that a Sentry started by root runs as: nobody.
const NOBODY: u32 = 65534;

/// Connections between a Sentry and its gofer.
const GOFER_CONNECTIONS: u32 = 2;

/// A child process that does not outlive this value, unless it is set free.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    exit: Option<Exit>,
    free: bool,
}

impl Guarded {
    pub fn new(child: Child) -> Self {
        Self { child, exit: None, free: false }
    }

    /// Lets the child execute its program.
    pub fn release(&mut self) -> io::Result<()> {
        self.child.release()
    }

    /// Lets the child outlive this value.
    pub fn set_free(&mut self) {
        self.free = true;
    }

    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    pub fn kill(&self, signo: i32) {
        if self.exit.is_none() {
            // Fails only when it is gone already.
            let _ = process::pidfd_send_signal(self.child.pidfd.as_fd(), signo);
        }
    }

    /// Waits for at most `patience` and reaps; `None` if it still runs.
    pub fn wait(&mut self, patience: Duration) -> Option<Exit> {
        let until = Instant::now() + patience;
        while self.exit.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let mut interests = [polling::Interest::new(self.child.pidfd.as_fd(), libc::POLLIN)];
            let _ = polling::wait(&mut interests, Some(left_ms));
            self.exit = match pidfd::wait(&self.child.pidfd, false) {
                Ok(exit) => exit,
                Err(_) => Some(Exit::Code(0)),
            };
            if left.is_zero() {
                break;
            }
        }
        self.exit
    }

    /// Waits for `patience`, then kills.
    pub fn end(&mut self, patience: Duration) -> Exit {
        if let Some(exit) = self.wait(patience) {
            return exit;
        }
        self.kill(libc::SIGKILL);
        self.wait(Duration::from_secs(10)).unwrap_or(Exit::Signal(libc::SIGKILL))
    }
}

impl AsFd for Guarded {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.free {
            self.end(Duration::ZERO);
        }
    }
}

/// A file server, and the Sentry's ends of the connections to it until they are handed over.
#[derive(Debug)]
pub(crate) struct Gofer {
    pub process: Guarded,
    pub says: LastWords,
    pub connections: Vec<OwnedFd>,
}

impl Gofer {
    /// Starts a gofer for the attach points of `plan`.
    pub fn start(plan: &Plan) -> Result<Self> {
        let (says, stderr) = LastWords::new().context(|| "pipe".into())?;
        let config = gofer::Config {
            mounts: plan
                .attachments
                .iter()
                .map(|attachment| gofer::Mount {
                    source: attachment.source.clone(),
                    read_only: attachment.read_only,
                    allow_special: !attachment.read_only,
                })
                .collect(),
            connections: GOFER_CONNECTIONS,
        };
        let running = gofer::launch::start(&config, stderr.as_fd()).context(|| "start the gofer".into())?;
        Ok(Self { process: Guarded::new(running.child), says, connections: running.connections })
    }
}

/// The running processes, and the ends of what joins them to this command.
#[derive(Debug)]
pub(crate) struct Sandbox {
    // Fields are dropped in this order: the Sentry takes its stubs along, then the gofer goes.
    pub sentry: Guarded,
    pub gofer: Guarded,
    /// Its network, where that is a process of ours: a NAT, or the broker of its sockets.
    _network: Option<Guarded>,
    pub control: Channel,
    pub sentry_says: LastWords,
    pub gofer_says: LastWords,
}

impl Sandbox {
    /// Starts gofer and Sentry and hands the boot message over. `descriptors` go to the Sentry.
    pub fn start(
        plan: &mut Plan,
        mut descriptors: Vec<(Descriptor, OwnedFd)>,
        cgroup: &ControlGroup,
        log: &Log,
    ) -> Result<(Self, Vec<String>)> {
        let (control, sentry_control) = Channel::pair().context(|| "socketpair".into())?;
        let (sentry_says, sentry_stderr) = LastWords::new().context(|| "pipe".into())?;
        // First the one that takes longer until the other is needed.
        let mut warnings = Vec::new();
        let sentry = start_sentry(&sentry_control, sentry_stderr.as_fd(), cgroup, &mut warnings)?;
        drop((sentry_control, sentry_stderr));
        log.moment("sandbox process started");
        let Gofer { process: gofer, says: gofer_says, connections } = Gofer::start(plan)?;
        warnings.extend(cgroup.add(gofer.pid())?);
        log.moment("gofer started");

        let mut network = None;
        if let Some(policy) = &plan.nat {
            let (process, link) = crate::nat::start(policy)?;
            warnings.extend(cgroup.add(process.pid())?);
            plan.boot.network = Some(crate::nat::network());
            descriptors.push((Descriptor::Link, link));
            network = Some(process);
        }
        if let Some(grant) = &plan.sockets {
            let (process, seen, channel) = crate::sockets::start(grant)?;
            warnings.extend(cgroup.add(process.pid())?);
            plan.boot.network = Some(seen);
            descriptors.push((Descriptor::Broker, channel));
            network = Some(process);
        }
        if let Some(file) = plan.filestore.open()? {
            descriptors.push((Descriptor::Filestore, file));
        }
        plan.boot.options.filestore_limit = plan.filestore.limit.unwrap_or(0);
        for connection in connections {
            descriptors.push((Descriptor::Gofer, connection));
        }
        plan.boot.descriptors = descriptors.iter().map(|(role, _)| *role).collect();
        let borrowed: Vec<_> = descriptors.iter().map(|(_, fd)| fd.as_fd()).collect();
        // A Sentry that died meanwhile is found by the caller, with its cause.
        let _ = control.send_boot(&plan.boot, &borrowed);
        log.moment("boot message sent");
        Ok((Self { sentry, gofer, _network: network, control, sentry_says, gofer_says }, warnings))
    }
}

fn start_sentry(
    control: &Channel,
    stderr: BorrowedFd<'_>,
    cgroup: &ControlGroup,
    warnings: &mut Vec<String>,
) -> Result<Guarded> {
    let privileged = credentials::effective_uid() == 0;
    let program = program(privileged).context(|| "open our own program".into())?;
    let null =
        File::options().read(true).write(true).open("/dev/null").context(|| "open /dev/null".into())?;
    let descriptors = [null.as_fd(), null.as_fd(), stderr, control.as_fd()];
    let command = Command {
        program: program.as_fd(),
        arguments: vec![std::ffi::CString::new(SENTRY_NAME).unwrap_or_default()],
        environment: Vec::new(),
        namespaces: ALL_NAMESPACES,
        descriptors: &descriptors,
        become_root: true,
        outlives: false,
    };
    let child = command.start().context(|| "start the sandbox process in new namespaces".into())?;
    // Root gives its Sentry an identity that owns nothing on the host.
    let mapped = privileged && child.map_root_to(NOBODY, NOBODY, true).is_ok();
    if !mapped {
        let (uid, gid) = (credentials::effective_uid(), credentials::effective_gid());
        child
            .map_root_to(uid, gid, false)
            .context(|| "write the identity map of the sandbox process".into())?;
    }
    warnings.extend(cgroup.add(child.pid)?);
    let mut sentry = Guarded::new(child);
    sentry.child.release().context(|| "start the sandbox process".into())?;
    Ok(sentry)
}

/// Our own program, in a form that the sandbox's user may execute and nobody can change through it.
pub(crate) fn program(privileged: bool) -> io::Result<OwnedFd> {
    const ANYBODY: u32 = 0o005;
    let path = File::options().read(true).custom_flags(libc::O_PATH).open("/proc/self/exe")?;
    // Read permission is wanted too: without it the kernel takes from the process the right to look at its own stubs.
    if !privileged || path.metadata()?.mode() & ANYBODY == ANYBODY {
        return Ok(path.into());
    }
    sealed::executable(&mut fs::File::open("/proc/self/exe")?)
}

/// What a process wrote to its standard error, of which only the end is kept.
#[derive(Debug)]
pub(crate) struct LastWords {
    pipe: io::PipeReader,
    text: Vec<u8>,
    open: bool,
}

impl LastWords {
    const KEPT: usize = 16 << 10;

    fn new() -> io::Result<(Self, io::PipeWriter)> {
        let (pipe, writer) = io::pipe()?;
        Ok((Self { pipe, text: Vec::new(), open: true }, writer))
    }

    pub fn interest(&self) -> polling::Interest {
        if self.open {
            polling::Interest::new(self.pipe.as_fd(), libc::POLLIN)
        } else {
            polling::Interest::none()
        }
    }

    /// Takes what is there without waiting.
    pub fn read(&mut self) {
        let mut buffer = [0; 4096];
        while self.open {
            let mut interests = [polling::Interest::new(self.pipe.as_fd(), libc::POLLIN)];
            if !matches!(polling::wait(&mut interests, Some(0)), Ok(1..)) {
                break;
            }
            match self.pipe.read(&mut buffer) {
                Ok(0) | Err(_) => self.open = false,
                Ok(len) => self.text.extend_from_slice(buffer.get(..len).unwrap_or_default()),
            }
            let excess = self.text.len().saturating_sub(Self::KEPT);
            self.text.drain(..excess);
        }
    }

    /// The lines, joined to one.
    pub fn sentence(&mut self) -> String {
        self.read();
        let text = String::from_utf8_lossy(&self.text);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.join("; ")
    }
}

/// "was killed by SIGKILL", "ended with status 3".
pub(crate) fn how(exit: Exit) -> String {
    match exit {
        Exit::Signal(signo) => format!("was killed by {}", signal_names::name(signo)),
        Exit::Code(code) => format!("ended with status {code}"),
    }
}

/// The exit status by which a command shows such an end.
pub(crate) fn code_of(exit: Exit) -> u8 {
    match exit {
        Exit::Signal(signo) => u8::try_from(128 + signo).unwrap_or(u8::MAX),
        Exit::Code(code) => u8::try_from(code).unwrap_or(1).max(1),
    }
}
