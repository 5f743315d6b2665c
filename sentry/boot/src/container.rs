//! From a boot message to a running kernel with its first process.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use control_protocol::{Boot, Failure, Network, Phase};
use fs_dev::{Devices, HostSide, Terminals};
use fs_gofer::Session;
use fs_host::Watcher;
use fs_pipe::Fifos;
use fs_tmpfs::TmpfsType;
use platform::Platform;
use sentry_base::{Mutex, lock::rank};
use sentry_kernel::{Kernel, KernelConfig, Prepared, ThreadGroup, TraceSink};
use sentry_loader::Machine;
use sentry_memory::MemoryFile;
use sentry_net::NetworkNamespace;
use sentry_syscalls::Table;
use sentry_vfs::Vfs;

use crate::console::Console;
use crate::control::Address;
use crate::forward;
use crate::link::{self, Bandwidth, Capture, LinkBell};
use crate::log::{Log, Moment};
use crate::notify;
use crate::sockets::HostSockets;
use crate::started::{self, Descriptors, Ending, Factory, Kind, Made, failed};
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
    pub main: Address,
    /// What was done before there was a log.
    pub moments: Vec<Moment>,
}

/// What the containers of a sandbox share.
#[derive(Debug)]
pub struct Shared {
    pub kernel: Arc<Kernel>,
    memory: Arc<MemoryFile>,
    watcher: Arc<Watcher>,
    /// Of the main thread.
    main: Address,
    /// For the links of the network, until there are some.
    link_bell: Mutex<Option<LinkBell>, { rank::LEAF }>,
    capture: Arc<Capture>,
    bandwidth: Bandwidth,
    /// In bytes.
    host_memory: u64,
}

impl Shared {
    /// Takes over a network for the sandbox, once.
    pub fn connect(&self, network: &Network, mut fds: Vec<OwnedFd>) -> Result<(), String> {
        if network.host {
            let mut fds = fds.into_iter();
            let broker = fds.next().ok_or("no channel to the broker of sockets has come")?;
            return self.be_the_hosts(network, broker, network.tables.iter().copied().zip(fds).collect());
        }
        let forwarded = if network.forward { fds.pop() } else { None };
        let bell = self.link_bell.lock().take().ok_or("the sandbox has a network already")?;
        let first = self.kernel.first_network().extension::<NetworkNamespace>();
        link::connect(first.inet(), bell, &self.capture, (network, self.bandwidth), fds)?;
        match forwarded {
            Some(listener) => forward::serve(first.inet(), listener).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// Makes the network the host's, whose sockets a broker makes.
    fn be_the_hosts(
        &self,
        network: &Network,
        broker: OwnedFd,
        tables: Vec<(u8, OwnedFd)>,
    ) -> Result<(), String> {
        // Another network cannot be taken over besides.
        self.link_bell.lock().take().ok_or("the sandbox has a network already")?;
        let first = self.kernel.first_network().extension::<NetworkNamespace>();
        let broker = HostSockets::new(broker, tables, Arc::clone(&self.watcher));
        let inet = first.inet();
        if let Some(port) = network.port_start {
            inet.set_unprivileged_port_start(port);
        }
        inet.be_the_hosts(broker, link::interfaces(network), link::routes(network));
        Ok(())
    }

    /// Says what the sandbox may use of memory, in bytes, 0 for the host's: what it shows, and what connections may hold.
    fn limit_memory(&self, limit: u64) {
        let total = memory_size(limit, self.host_memory);
        self.kernel.set_total_memory(total);
        let first = self.kernel.first_network().extension::<NetworkNamespace>();
        first.inet().set_memory(total);
    }

    /// Begins to write frames to a file, or ends it.
    pub fn capture(&self, fds: Vec<OwnedFd>) -> Result<(), String> {
        self.capture.to(fds.into_iter().next()).map_err(|error| error.to_string())
    }
}

/// A container whose init is ready to run.
#[derive(Debug)]
pub struct Container {
    /// 0 for the sandbox' first one.
    pub number: u32,
    pub shared: Arc<Shared>,
    pub log: Log,
    pub gofer: Arc<Session>,
    pub factory: Arc<Factory>,
    pub init: Arc<ThreadGroup>,
    pub terminal: Option<Arc<HostSide>>,
    /// The relay of the terminal, to be run on a thread of its own.
    pub console: Option<Console>,
    /// Init, until it is started.
    held: Mutex<Option<Prepared>, { rank::LEAF }>,
    /// Where commands connect to.
    pub listener: Option<OwnedFd>,
    /// The limit of its memory, in bytes; 0 for none.
    memory_limit: Arc<AtomicU64>,
}

/// Which container of a sandbox is made.
#[derive(Debug, Clone, Copy)]
pub struct Which {
    /// 0 for the first one.
    pub number: u32,
    /// Whether its processes are numbered from 1 beside those of the first one.
    pub own_pids: bool,
}

impl Container {
    /// Builds the kernel and the first container. `ended` is called on a worker when init and every other task is gone.
    pub fn build(boot: &Boot, fds: Vec<OwnedFd>, ground: Ground, ended: Ending) -> Result<Self, Failure> {
        let mut fds = Descriptors::sort(&boot.descriptors, fds);
        let log = Log::new(fds.log.take(), &boot.options);
        log.moments(&ground.moments);
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
            total_memory: memory_size(boot.options.memory, ground.total_memory),
            max_tasks: usize::try_from(boot.options.tasks).ok().filter(|max| *max > 0).unwrap_or(MAX_TASKS),
            trace: trace_sink(boot, &log),
            interruptions: boot.options.interruptions,
        });
        let terminals = terminals_of(&kernel);
        Devices::new(Arc::clone(&terminals)).register(&vfs);
        vfs.register_fifo(Arc::new(Fifos));
        let memory = Arc::clone(&ground.memory);
        let total_memory = kernel.total_memory();
        vfs.register_type("tmpfs", Arc::new(TmpfsType { memory, total_memory }));

        vfs.register_type("proc", Arc::new(fs_proc::ProcType));
        vfs.register_type("sysfs", Arc::new(fs_sys::SysType { cpus: kernel.nr_cpus() }));
        vfs.register_type("devpts", Arc::new(fs_dev::DevPtsType { terminals: Arc::clone(&terminals) }));

        let shared = Arc::new(Shared {
            kernel,
            memory: ground.memory,
            watcher: ground.watcher,
            main: ground.main,
            link_bell: Mutex::new(Some(ground.link_bell)),
            capture: Arc::default(),
            bandwidth: Bandwidth {
                ingress: boot.options.ingress_bandwidth,
                egress: boot.options.egress_bandwidth,
            },
            host_memory: ground.total_memory,
        });
        shared.limit_memory(boot.options.memory);
        if let Some(network) = &boot.network {
            let links = core::mem::take(&mut fds.links);
            let done = match fds.broker.take() {
                Some(broker) if network.host => {
                    shared.be_the_hosts(network, broker, core::mem::take(&mut fds.socket_tables))
                }
                _ => shared.connect(network, links),
            };
            done.map_err(|error| failed(Phase::Init, error))?;
        }
        let which = Which { number: 0, own_pids: false };
        Self::assemble(&shared, boot, fds, log, terminals, which, ended)
    }

    /// Adds a container to a running sandbox. Call it on a worker; `ended` is called on one when init is gone.
    pub fn add(
        shared: &Arc<Shared>,
        boot: &Boot,
        fds: Vec<OwnedFd>,
        which: Which,
        ended: Ending,
    ) -> Result<Self, Failure> {
        let mut fds = Descriptors::sort(&boot.descriptors, fds);
        let log = Log::new(fds.log.take(), &boot.options);
        Self::assemble(shared, boot, fds, log, terminals_of(&shared.kernel), which, ended)
    }

    fn assemble(
        shared: &Arc<Shared>,
        boot: &Boot,
        mut fds: Descriptors,
        log: Log,
        terminals: Arc<Terminals>,
        which: Which,
        ended: Ending,
    ) -> Result<Self, Failure> {
        let kernel = &shared.kernel;
        let gofer = Session::connect(fds.gofer).map_err(|error| failed(Phase::Mount, error))?;
        log.debug("the gofer serves");
        log.moment("gofer serves");
        let disk = match fds.filestore {
            Some(file) => Some(
                MemoryFile::on_disk(file)
                    .map_err(|errno| failed(Phase::Mount, format!("cannot map the filestore: {errno}")))?,
            ),
            None => None,
        };
        let filestore = disk.as_ref().unwrap_or(&shared.memory);
        let pid_ns = if which.own_pids { kernel.new_pid_ns() } else { Arc::clone(kernel.first_pid_ns()) };
        let memory_limit = Arc::new(AtomicU64::new(boot.options.memory));
        let parts = Parts {
            options: &boot.options,
            memory_limit: &memory_limit,
            kernel,
            memory: &shared.memory,
            filestore,
            gofer: &gofer,
            terminals: &terminals,
            pid_ns: &pid_ns,
            // The device of that name is the first container's.
            console: which.number == 0 && boot.process.terminal.is_some(),
        };
        let tree = Tree::build(boot, &parts).map_err(|error| failed(Phase::Mount, error))?;
        for note in &tree.notes {
            log.debug(note);
        }
        log.debug("the mounts stand");
        log.moment("mounts stand");

        let filter = match &boot.filter {
            Some(asked) => Some(started::filter_of(asked).ok_or_else(|| {
                failed(Phase::Init, "the filter of system calls is not one that Linux would take")
            })?),
            None => None,
        };
        if let Some(watcher) = fds.notify.take() {
            let network = kernel.first_network().extension::<NetworkNamespace>();
            notify::serve(&network, &boot.notify_name(), watcher)
                .map_err(|error| failed(Phase::Init, error))?;
        }
        let factory = Arc::new(Factory {
            kernel: Arc::clone(kernel),
            tree,
            terminals,
            watcher: Arc::clone(&shared.watcher),
            pid_ns,
            container: which.number,
            filter,
        });
        let kind = if which.number == 0 { Kind::Init } else { Kind::Later };
        let init = factory.make(kind, &boot.process, fds.guest, fds.console, ended)?;
        log.debug("init is ready");
        log.moment("init is loaded");
        gofer.on_loss(shared.main.loss(which.number));
        let Made { prepared, group, terminal, console } = init;
        Ok(Self {
            number: which.number,
            shared: Arc::clone(shared),
            log,
            gofer,
            factory,
            init: group,
            terminal,
            console,
            held: Mutex::new(Some(prepared)),
            listener: fds.listener,
            memory_limit,
        })
    }

    /// Takes another limit of its memory, in bytes; 0 for none. The sandbox' is that of its first container.
    pub fn limit_memory(&self, limit: u64) {
        self.memory_limit.store(limit, Ordering::Relaxed);
        if self.number == 0 {
            self.shared.limit_memory(limit);
        }
    }

    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.shared.kernel
    }

    /// Lets init run; false if it does already.
    pub fn start(&self) -> bool {
        let held = self.held.lock().take();
        held.map(Prepared::start).is_some()
    }

    /// Its processes, zombies included.
    pub fn processes(&self) -> Vec<Arc<ThreadGroup>> {
        members(self.kernel(), self.number)
    }
}

/// The processes of the container of this number.
pub fn members(kernel: &Kernel, container: u32) -> Vec<Arc<ThreadGroup>> {
    let mut all = kernel.processes();
    all.retain(|group| group.container() == container);
    all
}

/// Each container has terminals of its own: their numbers start at 0, and no other one's are seen.
fn terminals_of(kernel: &Arc<Kernel>) -> Arc<Terminals> {
    let sink: Arc<dyn sentry_vfs::SignalSink> = Arc::clone(kernel) as _;
    Terminals::new(sink)
}

fn cpus(boot: &Boot, host: usize) -> u32 {
    let host = u32::try_from(host).unwrap_or(1).max(1);
    match boot.options.cpus {
        0 => host,
        quota => quota.min(host),
    }
}

fn memory_size(limit: u64, host: u64) -> u64 {
    match limit {
        0 => host,
        limit => limit.min(host),
    }
}

fn trace_sink(boot: &Boot, log: &Log) -> Option<TraceSink> {
    let log = log.clone();
    boot.options.strace.then(|| -> TraceSink { Arc::new(move |line: &str| log.trace(line)) })
}
