//! Processes that the runtime starts: the container's init, and those that are executed in it later.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use abi::process::{Rlimit, WaitStatus};
use abi::seccomp::SockFilter;
use control_protocol::{Descriptor, Failure, FilterInsn, Phase, Process, SyscallFilter};
use fs_dev::{HostSide, Terminals};
use fs_host::{HostFile, Watcher};
use sentry_base::Errno;
use sentry_kernel::seccomp::{Filter, Program};
use sentry_kernel::{InitError, InitSpec, Kernel, PidNs, Prepared, ThreadGroup};
use sentry_vfs::{
    CapSet, Credentials, FdTable, FileDescription, FileOps, NR_OPEN, OpenFlags, OpenHow, Opened, Terminal,
};

use crate::console::Console;
use crate::tree::Tree;

/// Takes the wait status of a process, on a worker.
pub type Ending = Box<dyn FnOnce(WaitStatus) + Send>;

/// Descriptors that came with a message, by their roles.
#[derive(Debug, Default)]
pub struct Descriptors {
    pub guest: Vec<(u32, OwnedFd)>,
    pub gofer: Vec<OwnedFd>,
    pub log: Option<OwnedFd>,
    pub console: Option<OwnedFd>,
    pub listener: Option<OwnedFd>,
    pub notify: Option<OwnedFd>,
    pub filestore: Option<OwnedFd>,
    pub links: Vec<OwnedFd>,
    pub broker: Option<OwnedFd>,
}

impl Descriptors {
    pub fn sort(roles: &[Descriptor], fds: Vec<OwnedFd>) -> Self {
        let mut sorted = Self::default();
        for (role, fd) in roles.iter().zip(fds) {
            match role {
                Descriptor::Guest(number) => sorted.guest.push((*number, fd)),
                Descriptor::Gofer => sorted.gofer.push(fd),
                Descriptor::Log => sorted.log = Some(fd),
                Descriptor::Console => sorted.console = Some(fd),
                Descriptor::Filestore => sorted.filestore = Some(fd),
                Descriptor::Link => sorted.links.push(fd),
                Descriptor::Broker => sorted.broker = Some(fd),
                Descriptor::Listener => sorted.listener = Some(fd),
                Descriptor::Notify => sorted.notify = Some(fd),
            }
        }
        sorted
    }
}

pub fn failed(phase: Phase, error: impl std::fmt::Display) -> Failure {
    Failure { phase, message: error.to_string() }
}

/// Which process is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Init,
    Later,
}

/// A process that has yet to be started, and the terminal that was made for it.
#[derive(Debug)]
pub struct Made {
    pub prepared: Prepared,
    pub group: Arc<ThreadGroup>,
    pub terminal: Option<Arc<HostSide>>,
    /// The relay of the terminal, to be run on a thread of its own.
    pub console: Option<Console>,
}

/// What a container's processes are made from.
#[derive(Debug)]
pub struct Factory {
    pub kernel: Arc<Kernel>,
    pub tree: Tree,
    pub terminals: Arc<Terminals>,
    pub watcher: Arc<Watcher>,
    pub pid_ns: Arc<PidNs>,
    /// The container's number.
    pub container: u32,
    /// What the calls of every process pass.
    pub filter: Option<Arc<Filter>>,
}

/// The filter that a configuration asks for. `None` is what the runtime should not have sent.
pub fn filter_of(asked: &SyscallFilter) -> Option<Arc<Filter>> {
    let insn = |insn: &FilterInsn| SockFilter { code: insn.code, jt: insn.jt, jf: insn.jf, k: insn.k };
    let program: Vec<_> = asked.program.iter().map(insn).collect();
    Program::check(&program).ok().map(Filter::first)
}

impl Factory {
    /// Makes a process with the descriptors `guest`, or with a terminal that is relayed to `console`.
    pub fn make(
        &self,
        kind: Kind,
        process: &Process,
        guest: Vec<(u32, OwnedFd)>,
        console: Option<OwnedFd>,
        ended: Ending,
    ) -> Result<Made, Failure> {
        let table = FdTable::new();
        let mut terminal = None;
        if let Some(size) = process.terminal {
            let side = match kind {
                Kind::Init => self.terminals.new_console(process.uid),
                Kind::Later => self.terminals.new_host_terminal(process.uid),
            };
            let side =
                side.map_err(|errno| failed(Phase::Init, format!("cannot make the terminal: {errno}")))?;
            side.resize(size.rows, size.columns);
            open_terminal(&self.tree, &self.terminals, &side, &table)
                .map_err(|errno| failed(Phase::Init, format!("cannot open the terminal: {errno}")))?;
            terminal = Some(Arc::new(side));
        }
        let owner = (process.uid, process.gid);
        for (number, fd) in guest {
            let refused = |error: &dyn std::fmt::Display| {
                failed(Phase::Init, format!("cannot pass descriptor {number} on: {error}"))
            };
            let file = HostFile::open(fd, &self.watcher, owner).map_err(|error| refused(&error))?;
            place(&table, number, file).map_err(|errno| refused(&errno))?;
        }
        let console = match (&terminal, console) {
            (Some(side), Some(socket)) => {
                Some(Console::new(side, socket).map_err(|error| failed(Phase::Init, error))?)
            }
            _ => None,
        };
        let spec = self.spec(process, table, terminal.as_deref(), ended);
        let prepared = match kind {
            Kind::Init => self.kernel.create_init(spec),
            Kind::Later => self.kernel.create_process(spec),
        };
        let prepared = prepared.map_err(|error| init_failure(process, &error))?;
        let group = self
            .kernel
            .process(prepared.pid())
            .ok_or_else(|| failed(Phase::Init, "the process is gone before its start"))?;
        Ok(Made { prepared, group, terminal, console })
    }

    fn spec(
        &self,
        process: &Process,
        fds: Arc<FdTable>,
        terminal: Option<&HostSide>,
        ended: Ending,
    ) -> InitSpec {
        let bytes = |texts: &[control_protocol::Text]| texts.iter().map(|text| text.0.clone()).collect();
        InitSpec {
            argv: bytes(&process.args),
            env: bytes(&process.env),
            creds: credentials(process),
            rlimits: process
                .rlimits
                .iter()
                .map(|limit| (limit.resource, Rlimit { cur: limit.soft, max: limit.hard }))
                .collect(),
            fds,
            mount_ns: Arc::clone(&self.tree.ns),
            root: self.tree.root(),
            cwd: process.cwd.0.clone(),
            umask: process.umask.unwrap_or(0o022),
            terminal: terminal.map(|side| Arc::clone(side.tty()) as Arc<dyn Terminal>),
            pid_ns: Some(Arc::clone(&self.pid_ns)),
            container: self.container,
            filter: self.filter.clone(),
            oom_score_adj: process.oom_score_adj.unwrap_or(0),
            shielded: process.shielded,
            on_exit: Some(ended),
        }
    }
}

fn place(table: &FdTable, number: u32, file: Arc<FileDescription>) -> Result<(), Errno> {
    let number = i32::try_from(number).map_err(|_| Errno::EBADF)?;
    table.set(number, file, false, NR_OPEN).map(|_| ())
}

/// Opens the terminal as descriptors 0, 1 and 2: by its name in devpts, so that programs can tell its name.
fn open_terminal(
    tree: &Tree,
    terminals: &Arc<Terminals>,
    side: &HostSide,
    table: &FdTable,
) -> Result<(), Errno> {
    let flags = OpenFlags::RDWR | OpenFlags::NOCTTY;
    let path = format!("/dev/pts/{}", side.index());
    let file = if let Ok(Opened::File(file)) = tree.walk().open(None, path.as_bytes(), OpenHow::new(flags)) {
        file
    } else {
        // A container without devpts has its terminal all the same.
        let ops: Arc<dyn FileOps> = terminals.open_slave(side.index(), flags, tree.caller())?;
        sentry_vfs::anonymous(ops, flags)
    };
    for number in 0..3 {
        place(table, number, Arc::clone(&file))?;
    }
    Ok(())
}

fn credentials(process: &Process) -> Credentials {
    let sets = process.capabilities;
    let known = |bits: u64| CapSet(bits).intersect(CapSet::FULL);
    Credentials {
        permitted: known(sets.permitted),
        effective: known(sets.effective),
        inheritable: known(sets.inheritable),
        bounding: known(sets.bounding),
        ambient: known(sets.ambient),
        no_new_privs: process.no_new_privileges,
        ..Credentials::new(
            process.uid,
            process.gid,
            Arc::from(process.additional_gids.as_slice()),
            CapSet::EMPTY,
        )
    }
}

/// An error as the C library words it, in lower case.
fn words(errno: Errno) -> String {
    match errno {
        Errno::ENOENT => "no such file or directory".to_owned(),
        Errno::ENOTDIR => "not a directory".to_owned(),
        Errno::EACCES => "permission denied".to_owned(),
        other => other.to_string(),
    }
}

/// The sentences of runc, which engines look for.
fn init_failure(process: &Process, error: &InitError) -> Failure {
    let name = process.args.first().map(ToString::to_string).unwrap_or_default();
    let (phase, message) = match error {
        InitError::NotInPath(name) => {
            (Phase::NotFound, format!("exec: {name:?}: executable file not found in $PATH"))
        }
        InitError::Exec { path, errno: Errno::ENOENT } => {
            (Phase::NotFound, format!("exec: {path:?}: stat {path}: no such file or directory"))
        }
        InitError::Exec { errno: Errno::EACCES, .. } => {
            (Phase::NotExecutable, format!("exec: {name:?}: permission denied"))
        }
        InitError::Exec { errno: Errno::ENOEXEC, .. } => {
            (Phase::NotExecutable, format!("exec {name}: exec format error"))
        }
        InitError::Exec { path, errno } => (Phase::NotExecutable, format!("exec: {path:?}: {errno}")),
        InitError::WorkingDirectory { path, errno } => {
            (Phase::Init, format!("chdir to cwd ({path:?}) set in config.json failed: {}", words(*errno)))
        }
        other => (Phase::Init, other.to_string()),
    };
    Failure { phase, message }
}
