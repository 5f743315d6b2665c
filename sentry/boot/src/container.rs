//! From a boot message to a running kernel with its first process.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use control_protocol::{Boot, Failure, Network, Phase};
use fs_dev::{Devices, HostSide, Terminals};
use fs_gofer::Session;
use fs_host::Watcher;
use fs_pipe::Fifos;
use fs_tmpfs::TmpfsType;
use platform::Platform;
use sentry_kernel::{Kernel, KernelConfig, Prepared, TraceSink};
use sentry_loader::Machine;
use sentry_memory::MemoryFile;
use sentry_net::NetworkNamespace;
use sentry_syscalls::Table;
use sentry_vfs::Vfs;

use crate::console::Console;
use crate::link::{self, Capture, LinkBell};
use crate::log::Log;
use crate::started::{Descriptors, Factory, Kind, Made, failed};
use crate::tree::{Parts, Tree};

/// Tasks at the same time if nothing limits them (`kernel.pid_max`).
const MAX_TASKS: usize = 32_768;

/// What was made before the filter, for one container.
#[derive(Debug)]
pub struct Ground {
    pub platform: Arc<dyn Platform>,
    pub memory: Arc<MemoryFile>,
    pub watcher: Arc<Watcher>,
    pub nr_cpus: usize,
    pub machine: Machine,
    pub total_memory: u64,
    pub link_bell: LinkBell,
}

/// A container whose init is ready to run.
#[derive(Debug)]
pub struct Container {
    pub log: Log,
    pub kernel: Arc<Kernel>,
    pub gofer: Arc<Session>,
    pub factory: Arc<Factory>,
    pub terminal: Option<Arc<HostSide>>,
    /// The relay of the terminal, to be run on a thread of its own.
    pub console: Option<Console>,
    /// Init, until it is started.
    pub held: Option<Prepared>,
    /// Where commands connect to.
    pub listener: Option<OwnedFd>,
    /// For the links, until there are some.
    link_bell: Mutex<Option<LinkBell>>,
    capture: Arc<Capture>,
}

impl Container {
    /// Builds everything. `ended` is called on a worker when init and every other task is gone.
    pub fn build(
        boot: &Boot,
        fds: Vec<OwnedFd>,
        ground: Ground,
        ended: crate::started::Ending,
    ) -> Result<Self, Failure> {
        let fds = Descriptors::sort(&boot.descriptors, fds);
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

        let disk = match fds.filestore {
            Some(file) => Some(
                MemoryFile::on_disk(file)
                    .map_err(|errno| failed(Phase::Mount, format!("cannot map the filestore: {errno}")))?,
            ),
            None => None,
        };
        let filestore = disk.as_ref().unwrap_or(&ground.memory);
        let parts = Parts {
            kernel: &kernel,
            memory: &ground.memory,
            filestore,
            gofer: &gofer,
            terminals: &terminals,
        };
        let tree = Tree::build(boot, &parts).map_err(|error| failed(Phase::Mount, error))?;
        log.debug("the mounts stand");

        let mut link_bell = Some(ground.link_bell);
        let capture = Arc::<Capture>::default();
        if let (Some(network), Some(bell)) = (&boot.network, link_bell.take_if(|_| boot.network.is_some())) {
            let first = kernel.first_network().extension::<NetworkNamespace>();
            link::connect(first.inet(), bell, &capture, network, fds.links)
                .map_err(|error| failed(Phase::Init, error))?;
        }

        let factory =
            Arc::new(Factory { kernel: Arc::clone(&kernel), tree, terminals, watcher: ground.watcher });
        let init = factory.make(Kind::Init, &boot.process, fds.guest, fds.console, ended)?;
        log.debug("init is ready");
        let Made { prepared, terminal, console, .. } = init;
        Ok(Self {
            log,
            kernel,
            gofer,
            factory,
            terminal,
            console,
            held: Some(prepared),
            listener: fds.listener,
            link_bell: Mutex::new(link_bell),
            capture,
        })
    }

    /// Takes over a network for the container, once.
    pub fn connect(&self, network: &Network, fds: Vec<OwnedFd>) -> Result<(), String> {
        let bell = self.link_bell.lock().ok().and_then(|mut bell| bell.take());
        let bell = bell.ok_or("the container has a network already")?;
        let first = self.kernel.first_network().extension::<NetworkNamespace>();
        link::connect(first.inet(), bell, &self.capture, network, fds)
    }

    /// Begins to write frames to a file, or ends it.
    pub fn capture(&self, fds: Vec<OwnedFd>) -> Result<(), String> {
        self.capture.to(fds.into_iter().next()).map_err(|error| error.to_string())
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
