//! The kernel of one sandbox: what all its tasks share.

use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use abi::process::{Rlimit, WaitStatus};
use platform::{AddrRange, Cause, Platform};
use sentry_base::{Executor, Mutex, MutexGuard, Nanos, Reactor, lock::rank, mono_now, real_now};
use sentry_loader::Machine;
use sentry_memory::MemoryFile;
use sentry_mm::{Mm, MmConfig};
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{Credentials, Location, MountFlags, SignalSink, Terminal};

use crate::accounting::Load;
use crate::aio::AioUsage;
use crate::no_space::NoSpace;
use crate::ns::{Extensions, FirstNamespaces, NsFs};
use crate::task_set::TaskSet;
use crate::{FdTable, FsContext, FutexTable, MountNamespace, PidNs, SyscallTable, Task, ThreadGroup, Vfs};

/// The kernel that the sandbox shows (`uname -r`): the interface that the calls follow.
pub const RELEASE: &str = "6.12.0-casemate";
/// Its build, as `uname -v` and `/proc/version` show it.
pub const VERSION: &str = "#1 SMP PREEMPT_DYNAMIC";

/// Where trace lines go (`--strace`).
pub type TraceSink = Arc<dyn Fn(&str) + Send + Sync>;

/// Told how a process ended.
pub type ExitCallback = Box<dyn FnOnce(WaitStatus) + Send>;

/// What a kernel is made from.
pub struct KernelConfig {
    pub platform: Arc<dyn Platform>,
    pub memory: Arc<MemoryFile>,
    pub vfs: Arc<Vfs>,
    /// The processor's features, from the host's auxiliary vector.
    pub machine: Machine,
    pub table: Arc<dyn SyscallTable>,
    pub hostname: Vec<u8>,
    pub domainname: Vec<u8>,
    /// CPUs that the application sees: what its quota allows, rounded up.
    pub nr_cpus: u32,
    /// Bytes of memory that the application sees.
    pub total_memory: u64,
    /// Tasks at the same time; more get `EAGAIN`.
    pub max_tasks: usize,
    pub trace: Option<TraceSink>,
    /// Seed of interruptions that no signal has caused, for tests; 0 for none.
    pub interruptions: u64,
}

impl core::fmt::Debug for KernelConfig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("KernelConfig")
    }
}

/// The trace of system calls, which can be turned on and off while tasks run.
struct TraceSwitch {
    /// Read on every call.
    on: AtomicBool,
    sink: Mutex<Option<TraceSink>, { rank::LEAF }>,
}

impl TraceSwitch {
    fn new(sink: Option<TraceSink>) -> Self {
        Self { on: AtomicBool::new(sink.is_some()), sink: Mutex::new(sink) }
    }
}

/// A process that is started from outside.
pub struct InitSpec {
    /// `argv[0]` is looked up in `PATH` of `env` unless it holds a slash.
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub creds: Credentials,
    /// Resource number, soft and hard limit; others are Linux's for init.
    pub rlimits: Vec<(u32, Rlimit)>,
    pub fds: Arc<FdTable>,
    pub mount_ns: Arc<MountNamespace>,
    pub root: Location,
    /// Absolute, inside `root`.
    pub cwd: Vec<u8>,
    pub umask: u32,
    /// Becomes the controlling terminal of init's session.
    pub terminal: Option<Arc<dyn Terminal>>,
    /// The PID namespace to live in; none is the sandbox's first. In one that is empty the process is its init.
    pub pid_ns: Option<Arc<PidNs>>,
    /// Which of the sandbox's containers the process and all that it makes belong to.
    pub container: u32,
    pub oom_score_adj: i32,
    /// What its calls pass, and those of its children.
    pub filter: Option<Arc<crate::seccomp::Filter>>,
    /// Init alone: whether signals that it does not handle are dropped, as in a PID namespace. False makes it an ordinary
    /// process, for a command that its user wants to interrupt.
    pub shielded: bool,
    /// Called once, on a worker, when the process has ended, and for init when every other task is gone too.
    pub on_exit: Option<ExitCallback>,
}

impl core::fmt::Debug for InitSpec {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "InitSpec({:?})", self.argv.first().map(|a| String::from_utf8_lossy(a)))
    }
}

/// Host and domain name (`uts_namespaces(7)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UtsNames {
    pub hostname: Vec<u8>,
    pub domainname: Vec<u8>,
}

/// A call that the table does not have, with who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    pub name: String,
    pub comm: String,
    pub count: u64,
}

/// The kernel of one sandbox.
pub struct Kernel {
    executor: Arc<Executor>,
    platform: Arc<dyn Platform>,
    table: Arc<dyn SyscallTable>,
    vfs: Arc<Vfs>,
    machine: Machine,
    first: FirstNamespaces,
    nsfs: Arc<NsFs>,
    no_fs: Arc<FsContext>,
    no_mounts: Arc<MountNamespace>,
    boot_mono: Nanos,
    boot_real: Nanos,
    nr_cpus: u32,
    total_memory: AtomicU64,
    pub(crate) max_tasks: usize,
    trace: TraceSwitch,
    pub(crate) interruptions: u64,
    tasks: Mutex<TaskSet, { rank::TASK_SET }>,
    extensions: Extensions,
    unsupported: Mutex<BTreeMap<(String, String), u64>, { rank::LEAF }>,
    no_mm: Arc<Mm>,
    no_fds: Arc<FdTable>,
    init_exit: InitExit,
    /// Of processes without a parent, by process id.
    exit_callbacks: parking_lot::Mutex<HashMap<i32, ExitCallback>>,
    init_shielded: AtomicBool,
    futexes: FutexTable,
    memory: Arc<MemoryFile>,
    host_deaths: Mutex<Vec<String>, { rank::LEAF }>,
    aio: Arc<AioUsage>,
    /// User and system CPU time of tasks that have ended.
    dead_cpu: (AtomicU64, AtomicU64),
    load: Load,
}

/// How init ended, for whoever waits for it.
#[derive(Default)]
pub(crate) struct InitExit {
    /// Known as soon as init has ended, while others still do.
    pending: parking_lot::Mutex<Option<WaitStatus>>,
    status: parking_lot::Mutex<Option<WaitStatus>>,
    changed: parking_lot::Condvar,
    callback: parking_lot::Mutex<Option<ExitCallback>>,
}

impl core::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Kernel")
    }
}

/// The platform as the executor's source of events.
struct Traps(Arc<dyn Platform>);

impl Reactor for Traps {
    fn poll(&self) -> usize {
        self.0.poll_traps()
    }
    fn park(&self, worker: usize, until: Option<Nanos>, spin: bool) {
        self.0.park(worker, until, spin);
    }
    fn at_work(&self) {
        self.0.at_work();
    }
    fn unpark(&self, worker: usize) {
        self.0.unpark(worker);
    }
}

impl Kernel {
    /// A kernel without tasks. Run its workers with [`Executor::run_worker`].
    pub fn new(config: KernelConfig) -> Arc<Self> {
        if let Some(word) = config.platform.epoch() {
            sentry_vfs::epoch::keep_in(word);
        }
        if let Some(word) = config.platform.file_epoch() {
            sentry_vfs::file_epoch::keep_in(word);
        }
        let empty = PseudoFs::new("none", 0, 0, 1);
        empty.set_root(empty.dir([]));
        let no_mounts = MountNamespace::new(&config.vfs, empty, MountFlags::empty(), "none");
        let nothing = no_mounts.root();
        Arc::new(Self {
            executor: Executor::new(Arc::new(Traps(Arc::clone(&config.platform)))),
            no_mm: Mm::over(
                Arc::new(NoSpace),
                AddrRange { start: 0, end: 0 },
                None,
                &config.memory,
                MmConfig { randomize: false, stack_limit: 0 },
            ),
            no_fds: FdTable::new(),
            memory: config.memory,
            platform: config.platform,
            table: config.table,
            vfs: config.vfs,
            machine: config.machine,
            first: FirstNamespaces::new(UtsNames {
                hostname: config.hostname,
                domainname: config.domainname,
            }),
            nsfs: NsFs::new(),
            no_fs: FsContext::new(nothing.clone(), nothing, 0),
            no_mounts,
            boot_mono: mono_now(),
            boot_real: real_now(),
            nr_cpus: config.nr_cpus.max(1),
            total_memory: AtomicU64::new(config.total_memory),
            max_tasks: config.max_tasks,
            trace: TraceSwitch::new(config.trace),
            interruptions: config.interruptions,
            tasks: Mutex::new(TaskSet::default()),
            extensions: Extensions::default(),
            unsupported: Mutex::new(BTreeMap::new()),
            init_exit: InitExit::default(),
            exit_callbacks: parking_lot::Mutex::new(HashMap::new()),
            init_shielded: AtomicBool::new(true),
            futexes: FutexTable::default(),
            host_deaths: Mutex::new(Vec::new()),
            aio: Arc::default(),
            dead_cpu: (AtomicU64::new(0), AtomicU64::new(0)),
            load: Load::new(mono_now()),
        })
    }

    /// Where a line for each system call goes, if anywhere.
    pub(crate) fn trace(&self) -> Option<TraceSink> {
        if self.trace.on.load(Ordering::Relaxed) { self.trace.sink.lock().clone() } else { None }
    }

    /// Whether every system call is to be seen.
    pub(crate) fn traces(&self) -> bool {
        self.trace.on.load(Ordering::Relaxed)
    }

    /// Turns the trace of system calls on or off.
    pub fn set_trace(&self, sink: Option<TraceSink>) {
        let on = sink.is_some();
        let old = core::mem::replace(&mut *self.trace.sink.lock(), sink);
        self.trace.on.store(on, Ordering::Relaxed);
        drop(old);
        // Calls that they answer by themselves must show from here on.
        for task in self.tasks() {
            task.notify(0);
        }
    }

    pub fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    pub(crate) fn count_dead(&self, utime: u64, stime: u64) {
        self.dead_cpu.0.fetch_add(utime, Ordering::Relaxed);
        self.dead_cpu.1.fetch_add(stime, Ordering::Relaxed);
    }

    /// User and system CPU time of all tasks that there ever were, in nanoseconds.
    pub fn cpu_times(&self) -> (u64, u64) {
        let dead = (self.dead_cpu.0.load(Ordering::Relaxed), self.dead_cpu.1.load(Ordering::Relaxed));
        self.tasks().iter().fold(dead, |sum, task| {
            let (utime, stime) = task.cpu_times();
            (sum.0.saturating_add(utime), sum.1.saturating_add(stime))
        })
    }

    /// The tasks that wanted a CPU, on average over one, five and fifteen minutes.
    pub fn load_averages(&self) -> [f64; 3] {
        let (utime, stime) = self.cpu_times();
        self.load.averages(utime.saturating_add(stime))
    }

    /// What the contexts of asynchronous I/O hold.
    pub fn aio(&self) -> &Arc<AioUsage> {
        &self.aio
    }

    pub fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    pub fn table(&self) -> &Arc<dyn SyscallTable> {
        &self.table
    }

    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
    }

    /// The sandbox's one value of type `T`, made when it is first asked for: for what a family of system calls shares and
    /// the kernel itself has no use for.
    pub fn extension<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        self.extensions.get()
    }

    /// The sandbox's first network namespace.
    pub fn first_network(&self) -> &Arc<crate::ns::ObjectNs> {
        &self.first.net
    }

    /// The sandbox's first IPC namespace.
    pub fn first_ipc(&self) -> &Arc<crate::ns::ObjectNs> {
        &self.first.ipc
    }

    /// The names of the sandbox's first UTS namespace.
    pub fn uts(&self) -> UtsNames {
        self.first.uts.names()
    }

    /// The sandbox's first UTS namespace.
    pub fn first_uts(&self) -> &Arc<crate::ns::UtsNs> {
        &self.first.uts
    }

    pub(crate) fn first_namespaces(&self) -> &FirstNamespaces {
        &self.first
    }

    /// The sandbox's first PID namespace.
    pub fn first_pid_ns(&self) -> &Arc<PidNs> {
        &self.first.pid
    }

    /// A PID namespace below the first, for another container.
    pub fn new_pid_ns(&self) -> Arc<PidNs> {
        PidNs::below(self.first_pid_ns())
    }

    /// The files of namespaces.
    pub fn nsfs(&self) -> &Arc<NsFs> {
        &self.nsfs
    }

    /// What a zombie has in place of a root and working directory.
    pub(crate) fn no_fs(&self) -> &Arc<FsContext> {
        &self.no_fs
    }

    pub(crate) fn no_mounts(&self) -> &Arc<MountNamespace> {
        &self.no_mounts
    }

    /// `CLOCK_MONOTONIC` at boot.
    pub fn boot_mono(&self) -> Nanos {
        self.boot_mono
    }

    /// `CLOCK_REALTIME` at boot (`btime` of `/proc/stat`).
    pub fn boot_real(&self) -> Nanos {
        self.boot_real
    }

    pub fn futexes(&self) -> &FutexTable {
        &self.futexes
    }

    pub fn nr_cpus(&self) -> u32 {
        self.nr_cpus
    }

    /// The memory that the first container may use, in bytes.
    pub fn total_memory(&self) -> u64 {
        self.total_memory.load(Ordering::Relaxed)
    }

    pub fn set_total_memory(&self, bytes: u64) {
        self.total_memory.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn task_set(&self) -> MutexGuard<'_, TaskSet, { rank::TASK_SET }> {
        self.tasks.lock()
    }

    pub(crate) fn no_mm(&self) -> &Arc<Mm> {
        &self.no_mm
    }

    pub(crate) fn no_fds(&self) -> &Arc<FdTable> {
        &self.no_fds
    }

    /// Every task, zombie leaders included, in no order.
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.tasks.lock().tasks.values().cloned().collect()
    }

    /// The task of a thread id.
    pub fn task(&self, tid: i32) -> Option<Arc<Task>> {
        self.tasks.lock().tasks.get(&tid).cloned()
    }

    /// Every process, zombies included, by process id.
    pub fn processes(&self) -> Vec<Arc<ThreadGroup>> {
        self.tasks.lock().processes.values().map(|p| Arc::clone(&p.group)).collect()
    }

    /// The processes of a group.
    pub(crate) fn group_members(&self, pgid: i32) -> Vec<Arc<ThreadGroup>> {
        self.tasks.lock().members(pgid)
    }

    /// The process of a process id.
    pub fn process(&self, pid: i32) -> Option<Arc<ThreadGroup>> {
        self.tasks.lock().processes.get(&pid).map(|p| Arc::clone(&p.group))
    }

    /// Counts a call that is not there.
    pub fn count_unsupported(&self, name: &str, task: &Task) {
        let comm = String::from_utf8_lossy(&task.comm()).into_owned();
        let mut counts = self.unsupported.lock();
        // Names of programs are the application's: bounded.
        if counts.len() < 1000 || counts.contains_key(&(name.to_owned(), comm.clone())) {
            *counts.entry((name.to_owned(), comm)).or_insert(0) += 1;
        }
    }

    /// What was called and is not there.
    pub fn unsupported_report(&self) -> Vec<Unsupported> {
        let counts = self.unsupported.lock();
        counts
            .iter()
            .map(|((name, comm), count)| Unsupported {
                name: name.clone(),
                comm: comm.clone(),
                count: *count,
            })
            .collect()
    }

    /// Waits, on a thread that is no worker, until init has ended and every other task is gone.
    pub fn wait_init_exit(&self) -> WaitStatus {
        let mut status = self.init_exit.status.lock();
        loop {
            if let Some(status) = *status {
                return status;
            }
            self.init_exit.changed.wait(&mut status);
        }
    }

    pub(crate) fn set_exit_callback(&self, callback: Option<ExitCallback>) {
        *self.init_exit.callback.lock() = callback;
    }

    /// Has `callback` called once, on a worker, when the process has ended.
    pub(crate) fn on_process_exit(&self, pid: i32, callback: ExitCallback) {
        self.exit_callbacks.lock().insert(pid, callback);
    }

    pub(crate) fn take_exit_callback(&self, pid: i32) -> Option<ExitCallback> {
        self.exit_callbacks.lock().remove(&pid)
    }

    pub(crate) fn set_init_shielded(&self, shielded: bool) {
        self.init_shielded.store(shielded, Ordering::Relaxed);
    }

    /// What the processor offers, for the auxiliary vector.
    pub(crate) fn machine(&self) -> Machine {
        self.machine
    }

    /// The memory file that new address spaces are backed by.
    pub fn memory(&self) -> &Arc<MemoryFile> {
        &self.memory
    }

    pub(crate) fn init_is_shielded(&self) -> bool {
        self.init_shielded.load(Ordering::Relaxed)
    }

    pub(crate) fn set_init_status(&self, status: WaitStatus) {
        self.init_exit.pending.lock().get_or_insert(status);
    }

    pub(crate) fn init_status(&self) -> Option<WaitStatus> {
        *self.init_exit.pending.lock()
    }

    /// The last task is gone.
    pub(crate) fn finish(&self, status: WaitStatus) {
        let callback = self.init_exit.callback.lock().take();
        if let Some(callback) = callback {
            callback(status);
        }
        let mut done = self.init_exit.status.lock();
        done.get_or_insert(status);
        self.init_exit.changed.notify_all();
    }

    /// A context was lost on the host: its process is killed, and the cause is kept for the report at the end.
    pub(crate) fn record_host_death(&self, task: &Task, cause: Cause) {
        let comm = String::from_utf8_lossy(&task.comm()).into_owned();
        let text = match cause {
            Cause::HostSignal(signal) => {
                format!("process {} ({comm}) was killed on the host by signal {signal}", task.pid())
            }
            Cause::Protocol(what) => {
                format!(
                    "process {} ({comm}) was killed: its host process broke the protocol: {what}",
                    task.pid()
                )
            }
        };
        let mut deaths = self.host_deaths.lock();
        if deaths.len() < 100 && !deaths.contains(&text) {
            deaths.push(text);
        }
    }

    /// Has the tasks of `mm` killed when its host process dies, wherever they are: one that sleeps here would not notice.
    pub(crate) fn watch_space(self: &Arc<Self>, mm: &Arc<Mm>) {
        let (kernel, watched) = (Arc::downgrade(self), Arc::downgrade(mm));
        mm.space().on_death(Box::new(move |cause| {
            let (Some(kernel), Some(mm)) = (kernel.upgrade(), watched.upgrade()) else { return };
            for task in kernel.tasks() {
                if Arc::ptr_eq(&task.mm(), &mm) {
                    kernel.record_host_death(&task, cause);
                    task.group().end(WaitStatus::signaled(abi::signal::sig::KILL, false));
                }
            }
        }));
    }

    /// Processes that were lost on the host, one sentence each.
    pub fn host_deaths(&self) -> Vec<String> {
        self.host_deaths.lock().clone()
    }
}

impl SignalSink for Kernel {
    fn signal_group(&self, pgid: i32, signal: i32) {
        self.signal_process_group(pgid, signal);
    }

    fn signal_owner(&self, file: &sentry_vfs::FileDescription, fd: i32) {
        crate::sigio::tell_owner(self, file, fd);
    }
}
