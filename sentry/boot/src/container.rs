//! From a boot message to a running kernel with its first process.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use abi::process::Rlimit;
use control_protocol::{Boot, Descriptor, Failure, Phase, Process};
use fs_dev::{Devices, HostSide, Terminals};
use fs_gofer::Session;
use fs_host::{HostFile, Watcher};
use fs_pipe::Fifos;
use fs_tmpfs::TmpfsType;
use platform::Platform;
use sentry_base::Errno;
use sentry_kernel::{InitError, InitSpec, Kernel, KernelConfig, TraceSink};
use sentry_loader::Machine;
use sentry_memory::MemoryFile;
use sentry_syscalls::Table;
use sentry_vfs::{
    CapSet, Credentials, FdTable, FileDescription, FileOps, NR_OPEN, OpenFlags, OpenHow, Opened, Terminal,
    Vfs,
};

use crate::console::{Bell, Console};
use crate::log::Log;
use crate::tree::{Parts, Tree};

/// Tasks at the same time if nothing limits them (`kernel.pid_max`).
const MAX_TASKS: usize = 32_768;

/// What was made before the filter, for one container.
#[derive(Debug)]
pub struct Ground {
    pub platform: Arc<dyn Platform>,
    pub memory: Arc<MemoryFile>,
    pub watcher: Arc<Watcher>,
    pub bell: Arc<Bell>,
    pub ear: UnixStream,
    pub nr_cpus: usize,
    pub machine: Machine,
    pub total_memory: u64,
}

/// A container whose init is ready to run as soon as workers do.
#[derive(Debug)]
pub struct Container {
    pub kernel: Arc<Kernel>,
    pub gofer: Arc<Session>,
    pub terminal: Option<Arc<HostSide>>,
    /// The relay of the terminal, to be run on a thread of its own.
    pub console: Option<Console>,
}

/// The descriptors of a boot message by their roles.
#[derive(Debug, Default)]
struct Descriptors {
    guest: Vec<(u32, OwnedFd)>,
    gofer: Vec<OwnedFd>,
    log: Option<OwnedFd>,
    console: Option<OwnedFd>,
}

impl Descriptors {
    fn sort(boot: &Boot, fds: Vec<OwnedFd>) -> Self {
        let mut sorted = Self::default();
        for (role, fd) in boot.descriptors.iter().zip(fds) {
            match role {
                Descriptor::Guest(number) => sorted.guest.push((*number, fd)),
                Descriptor::Gofer => sorted.gofer.push(fd),
                Descriptor::Log => sorted.log = Some(fd),
                Descriptor::Console => sorted.console = Some(fd),
            }
        }
        sorted
    }
}

fn failed(phase: Phase, error: impl std::fmt::Display) -> Failure {
    Failure { phase, message: error.to_string() }
}

impl Container {
    /// Builds everything. `ended` is called on a worker when init and every other task is gone.
    pub fn build(
        boot: &Boot,
        fds: Vec<OwnedFd>,
        ground: Ground,
        ended: crate::control::Ending,
    ) -> Result<Self, Failure> {
        let fds = Descriptors::sort(boot, fds);
        let log = Log::new(fds.log, boot.options.log_json, boot.options.debug);
        let gofer = Session::connect(fds.gofer).map_err(|error| failed(Phase::Mount, error))?;
        log.debug("the gofer serves");

        let vfs = Vfs::new();
        let kernel = Kernel::new(KernelConfig {
            platform: ground.platform,
            memory: Arc::clone(&ground.memory),
            vfs: Arc::clone(&vfs),
            machine: ground.machine,
            table: Arc::new(Table::new()),
            hostname: boot.hostname.as_deref().unwrap_or("casemate").as_bytes().to_vec(),
            domainname: boot.domainname.as_deref().unwrap_or("(none)").as_bytes().to_vec(),
            nr_cpus: cpus(boot, ground.nr_cpus),
            total_memory: memory_size(boot, ground.total_memory),
            max_tasks: usize::try_from(boot.options.tasks).ok().filter(|max| *max > 0).unwrap_or(MAX_TASKS),
            trace: trace_sink(boot, &log),
        });
        let sink: Arc<dyn sentry_vfs::SignalSink> = Arc::clone(&kernel) as _;
        let terminals = Terminals::new(sink);
        Devices::new(Arc::clone(&terminals)).register(&vfs);
        vfs.register_fifo(Arc::new(Fifos));
        let memory = Arc::clone(&ground.memory);
        let total_memory = kernel.total_memory();
        vfs.register_type("tmpfs", Arc::new(TmpfsType { memory, total_memory }));

        vfs.register_type("proc", Arc::new(fs_proc::ProcType));
        vfs.register_type("sysfs", Arc::new(fs_sys::SysType { cpus: kernel.nr_cpus() }));
        vfs.register_type("devpts", Arc::new(fs_dev::DevPtsType { terminals: Arc::clone(&terminals) }));

        let parts = Parts { kernel: &kernel, memory: &ground.memory, gofer: &gofer, terminals: &terminals };
        let tree = Tree::build(boot, &parts).map_err(|error| failed(Phase::Mount, error))?;
        log.debug("the mounts stand");

        let table = FdTable::new();
        let mut terminal = None;
        if let Some(size) = boot.process.terminal {
            let side = terminals
                .new_console(boot.process.uid)
                .map_err(|errno| failed(Phase::Init, format!("cannot make the terminal: {errno}")))?;
            side.resize(size.rows, size.columns);
            open_terminal(&tree, &terminals, &side, &table)
                .map_err(|errno| failed(Phase::Init, format!("cannot open the terminal: {errno}")))?;
            terminal = Some(Arc::new(side));
        }
        let owner = (boot.process.uid, boot.process.gid);
        for (number, fd) in fds.guest {
            let refused = |error: &dyn std::fmt::Display| {
                failed(Phase::Init, format!("cannot pass descriptor {number} on: {error}"))
            };
            let file = HostFile::open(fd, &ground.watcher, owner).map_err(|error| refused(&error))?;
            place(&table, number, file).map_err(|errno| refused(&errno))?;
        }
        let console = match (&terminal, fds.console) {
            (Some(side), Some(socket)) => Some(Console::new(side, socket, &ground.bell, ground.ear)),
            _ => None,
        };

        let spec = init_spec(&boot.process, &tree, table, terminal.as_deref(), ended);
        kernel.create_init(spec).map_err(|error| init_failure(&boot.process, &error))?;
        log.debug("init is ready");
        Ok(Self { kernel, gofer, terminal, console })
    }
}

fn cpus(boot: &Boot, host: usize) -> u32 {
    let host = u32::try_from(host).unwrap_or(1).max(1);
    match boot.options.cpus {
        0 => host,
        quota => quota.min(host),
    }
}

fn memory_size(boot: &Boot, host: u64) -> u64 {
    match boot.options.memory {
        0 => host,
        limit => limit.min(host),
    }
}

fn trace_sink(boot: &Boot, log: &Log) -> Option<TraceSink> {
    let log = log.clone();
    boot.options.strace.then(|| -> TraceSink { Arc::new(move |line: &str| log.trace(line)) })
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

fn init_spec(
    process: &Process,
    tree: &Tree,
    fds: Arc<FdTable>,
    terminal: Option<&HostSide>,
    ended: crate::control::Ending,
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
        mount_ns: Arc::clone(&tree.ns),
        root: tree.root(),
        cwd: process.cwd.0.clone(),
        umask: process.umask.unwrap_or(0o022),
        terminal: terminal.map(|side| Arc::clone(side.tty()) as Arc<dyn Terminal>),
        oom_score_adj: process.oom_score_adj.unwrap_or(0),
        shielded: process.shielded,
        on_exit: Some(ended),
    }
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
            (Phase::Init, format!("chdir to cwd ({path:?}) set in config.json failed: {errno}"))
        }
        other => (Phase::Init, other.to_string()),
    };
    Failure { phase, message }
}
