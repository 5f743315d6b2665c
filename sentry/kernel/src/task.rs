//! Tasks: threads of application code (`struct task_struct` of Linux).

use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use abi::signal::{SigSet, StackT};
use platform::Kick;
use sentry_base::{Errno, Mutex, Nanos, Result, Sleeper, lock::rank};
use sentry_ipc::UndoList;
use sentry_memory::{MemoryFile, UserMemory};
use sentry_vfs::{Caller, Credentials, FileDescription, JobControl, OpenFlags, Terminal};

use crate::at_hand::Held;
use crate::cpu::CpuClock;
use crate::ptrace::{StopRecord, Stops, Trace};
use crate::seccomp::Seccomp;
use crate::signal::Pending;
use crate::{FdTable, FsContext, IoCounters, Kernel, Mm, MountNamespace, Namespaces, ThreadGroup};

/// What a task does now; what it does next is decided from this and its [`work`] flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskState {
    /// Runs application code.
    App,
    /// Runs a system call or a fault.
    Syscall,
    /// Delivers signals on the way back to the application.
    Interrupt,
    /// Stopped by job control.
    Stopped,
    /// Stopped for its tracer.
    Traced,
    /// Waits for a child made with `CLONE_VFORK`.
    VforkWait,
    /// Has a new image, changes credentials.
    ExecCreds,
    /// Waits for sibling threads to be gone.
    ExecSiblings,
    Exiting,
    Dead,
}

impl TaskState {
    const ALL: [Self; 10] = [
        Self::App,
        Self::Syscall,
        Self::Interrupt,
        Self::Stopped,
        Self::Traced,
        Self::VforkWait,
        Self::ExecCreds,
        Self::ExecSiblings,
        Self::Exiting,
        Self::Dead,
    ];
}

/// What a task has to look at before it goes back to its application.
pub(crate) mod work {
    /// A signal may be deliverable.
    pub const SIGNAL: u32 = 1;
    /// The process stops, or the tracer wants a stop.
    pub const STOP: u32 = 2;
    /// The task ends.
    pub const KILL: u32 = 4;
    /// A temporary signal mask is to be put back.
    pub const RESTORE_MASK: u32 = 8;
}

/// A task's own signal state.
#[derive(Debug, Default)]
pub(crate) struct TaskSignals {
    pub pending: Pending,
    pub mask: SigSet,
    /// The mask to put back after a call that set one for its time (`sigsuspend`, `ppoll`).
    pub saved_mask: Option<SigSet>,
    /// The mask outside of a `sigtimedwait`, while one runs.
    pub waited_for: SigSet,
    pub alt_stack: StackT,
    pub stops: Stops,
    /// Who traces the task, and how.
    pub trace: Option<Trace>,
    /// What a tracer that let go wants delivered.
    pub detach_signal: i32,
    /// Ends with this status if the process as a whole does not end.
    pub exit: Option<abi::process::WaitStatus>,
}

/// Memory places that the kernel writes when the task exits.
#[derive(Debug, Default)]
pub(crate) struct ExitPlaces {
    /// `set_tid_address(2)`; 0 for none.
    pub clear_child_tid: AtomicU64,
    /// `set_robust_list(2)`; 0 for none.
    pub robust_list: AtomicU64,
}

/// How a call that was interrupted goes on (`restart_syscall(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartBlock {
    /// A sleep until `deadline` (`CLOCK_MONOTONIC`); what is left goes to `remaining`.
    Sleep { deadline: Nanos, remaining: u64 },
    /// A futex wait.
    Futex { addr: u64, value: u32, bitset: u32, shared: bool, deadline: Nanos },
    /// `poll(2)` on `nfds` entries at `fds`.
    Poll { fds: u64, nfds: u64, deadline: Option<Nanos> },
}

/// A task: one thread of application code.
pub struct Task {
    tid: AtomicI32,
    kernel: Arc<Kernel>,
    group: Arc<ThreadGroup>,
    sleeper: Arc<Sleeper>,
    state: AtomicU8,
    /// Bits of [`work`].
    work: AtomicU32,
    in_app: AtomicBool,
    kicker: Mutex<Option<Arc<dyn Kick>>, { rank::LEAF }>,
    creds: Mutex<Arc<Credentials>, { rank::LEAF }>,
    mm: Mutex<Arc<Mm>, { rank::LEAF }>,
    fds: Mutex<Arc<FdTable>, { rank::LEAF }>,
    /// The file at hand while its context may answer for it.
    pub(crate) at_hand: Mutex<Option<Arc<Held>>, { rank::LEAF }>,
    fs: Mutex<Arc<FsContext>, { rank::LEAF }>,
    namespaces: Mutex<Arc<Namespaces>, { rank::LEAF }>,
    comm: Mutex<[u8; 16], { rank::LEAF }>,
    exe: Mutex<Option<Arc<FileDescription>>, { rank::LEAF }>,
    pub(crate) signals: Mutex<TaskSignals, { rank::TASK }>,
    pub(crate) exit_places: ExitPlaces,
    /// The parent that waits in `vfork`, to be woken when this task executes or exits.
    pub(crate) vfork_parent: Mutex<Option<Arc<VforkGate>>, { rank::LEAF }>,
    pub(crate) pdeath_signal: AtomicI32,
    pub(crate) cpu: CpuClock,
    io: IoCounters,
    pub(crate) scheduling: Mutex<Scheduling, { rank::LEAF }>,
    pub(crate) restart_block: Mutex<Option<RestartBlock>, { rank::LEAF }>,
    pub(crate) timer_slack: AtomicU64,
    pub(crate) first_timer_slack: AtomicU64,
    pub(crate) personality: AtomicU32,
    pub(crate) seccomp: Seccomp,
    /// The number of its last system call.
    last_call: AtomicU32,
    /// What its semaphore operations take back at its end.
    pub(crate) sem_undo: Mutex<Option<Arc<UndoList>>, { rank::LEAF }>,
    /// Whether it may have made shared memory segments in its IPC namespace.
    pub(crate) made_shm: AtomicBool,
    /// The change to the present user exceeded `RLIMIT_NPROC`.
    pub(crate) over_task_limit: AtomicBool,
    /// Bits of [`crate::ptrace::mode`].
    pub(crate) trace_mode: AtomicU8,
    /// What the task has left to its tracer while it stands still for it.
    pub(crate) trace_stop: Mutex<Option<StopRecord>, { rank::LEAF }>,
}

/// Opens when a child made with `CLONE_VFORK` has left its parent's memory.
#[derive(Debug)]
pub(crate) struct VforkGate {
    pub open: AtomicBool,
    pub parent: Arc<Sleeper>,
}

impl VforkGate {
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    pub fn release(&self) {
        self.open.store(true, Ordering::SeqCst);
        self.parent.wake();
    }
}

/// What the scheduling calls set and get; the host schedules.
#[derive(Debug, Clone, Copy)]
pub struct Scheduling {
    pub policy: i32,
    pub priority: i32,
    pub nice: i32,
    pub reset_on_fork: bool,
    /// CPUs by bit.
    pub affinity: [u64; 2],
    /// Class and level of `ioprio_set(2)`; 0 for none of its own.
    pub io_priority: i32,
}

impl Scheduling {
    /// The ordinary policy on the first `nr_cpus` CPUs.
    pub(crate) fn of_cpus(nr_cpus: u32) -> Self {
        let mask = |cpus: u32| if cpus >= 64 { u64::MAX } else { (1 << cpus) - 1 };
        Self {
            policy: libc::SCHED_OTHER,
            priority: 0,
            nice: 0,
            reset_on_fork: false,
            affinity: [mask(nr_cpus), mask(nr_cpus.saturating_sub(64))],
            io_priority: 0,
        }
    }
}

impl core::fmt::Debug for Task {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Task({}, {:?})", self.tid(), self.state())
    }
}

/// What a new task starts with.
pub(crate) struct TaskParts {
    pub tid: i32,
    pub kernel: Arc<Kernel>,
    pub group: Arc<ThreadGroup>,
    pub creds: Arc<Credentials>,
    pub mm: Arc<Mm>,
    pub fds: Arc<FdTable>,
    pub fs: Arc<FsContext>,
    pub namespaces: Arc<Namespaces>,
    pub comm: [u8; 16],
    pub mask: SigSet,
    pub scheduling: Scheduling,
}

impl Task {
    pub(crate) fn new(parts: TaskParts) -> Arc<Self> {
        Arc::new(Self {
            tid: AtomicI32::new(parts.tid),
            kernel: parts.kernel,
            group: parts.group,
            sleeper: Arc::new(Sleeper::default()),
            state: AtomicU8::new(TaskState::App as u8),
            work: AtomicU32::new(0),
            in_app: AtomicBool::new(false),
            kicker: Mutex::new(None),
            creds: Mutex::new(parts.creds),
            mm: Mutex::new(parts.mm),
            fds: Mutex::new(parts.fds),
            at_hand: Mutex::new(None),
            fs: Mutex::new(parts.fs),
            namespaces: Mutex::new(parts.namespaces),
            comm: Mutex::new(parts.comm),
            exe: Mutex::new(None),
            signals: Mutex::new(TaskSignals {
                mask: parts.mask,
                alt_stack: StackT { flags: abi::signal::SS_DISABLE, ..StackT::default() },
                ..TaskSignals::default()
            }),
            exit_places: ExitPlaces::default(),
            vfork_parent: Mutex::new(None),
            pdeath_signal: AtomicI32::new(0),
            cpu: CpuClock::default(),
            io: IoCounters::default(),
            scheduling: Mutex::new(parts.scheduling),
            restart_block: Mutex::new(None),
            timer_slack: AtomicU64::new(50_000),
            first_timer_slack: AtomicU64::new(50_000),
            personality: AtomicU32::new(0),
            seccomp: Seccomp::default(),
            last_call: AtomicU32::new(u32::MAX),
            sem_undo: Mutex::new(None),
            made_shm: AtomicBool::new(false),
            over_task_limit: AtomicBool::new(false),
            trace_mode: AtomicU8::new(0),
            trace_stop: Mutex::new(None),
        })
    }

    /// The thread id.
    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// Takes over the process id (`execve` by a thread that is not the leader).
    pub(crate) fn set_tid(&self, tid: i32) {
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.group.pid()
    }

    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    pub fn sleeper(&self) -> &Arc<Sleeper> {
        &self.sleeper
    }

    pub fn group(&self) -> &Arc<ThreadGroup> {
        &self.group
    }

    /// The system call that it is in, by number, if it is in one.
    pub fn current_call(&self) -> Option<u32> {
        let waits = matches!(self.state(), TaskState::Syscall | TaskState::VforkWait);
        Some(self.last_call.load(Ordering::Relaxed)).filter(|nr| waits && *nr != u32::MAX)
    }

    pub(crate) fn note_call(&self, nr: u64) {
        self.last_call.store(u32::try_from(nr).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    pub fn state(&self) -> TaskState {
        let state = usize::from(self.state.load(Ordering::Relaxed));
        TaskState::ALL.get(state).copied().unwrap_or(TaskState::Dead)
    }

    pub(crate) fn set_state(&self, state: TaskState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub fn creds(&self) -> Arc<Credentials> {
        Arc::clone(&self.creds.lock())
    }

    /// Whether these are the task's credentials, not others like them.
    pub(crate) fn has_creds(&self, creds: &Arc<Credentials>) -> bool {
        Arc::ptr_eq(&self.creds.lock(), creds)
    }

    pub fn set_creds(&self, creds: Arc<Credentials>) {
        *self.creds.lock() = creds;
    }

    pub fn mm(&self) -> Arc<Mm> {
        Arc::clone(&self.mm.lock())
    }

    pub(crate) fn set_mm(&self, mm: Arc<Mm>) {
        let old = core::mem::replace(&mut *self.mm.lock(), mm);
        drop(old);
    }

    pub fn fds(&self) -> Arc<FdTable> {
        Arc::clone(&self.fds.lock())
    }

    /// Replaces the descriptor table (`unshare(CLONE_FILES)`, `execve`).
    pub fn set_fds(&self, fds: Arc<FdTable>) {
        let old = core::mem::replace(&mut *self.fds.lock(), fds);
        drop(old);
    }

    /// The file of a descriptor; `EBADF` for one that is not open or was opened with `O_PATH`.
    pub fn file(&self, fd: i32) -> Result<Arc<FileDescription>> {
        let file = self.file_or_path(fd)?;
        if file.flags().contains(OpenFlags::PATH) { Err(Errno::EBADF) } else { Ok(file) }
    }

    /// The file of a descriptor, `O_PATH` included.
    pub fn file_or_path(&self, fd: i32) -> Result<Arc<FileDescription>> {
        self.fds().get(fd)
    }

    pub fn fs(&self) -> Arc<FsContext> {
        Arc::clone(&self.fs.lock())
    }

    /// Replaces root, working directory and umask (`unshare(CLONE_FS)`).
    pub fn set_fs(&self, fs: Arc<FsContext>) {
        let old = core::mem::replace(&mut *self.fs.lock(), fs);
        drop(old);
    }

    pub fn mount_ns(&self) -> Arc<MountNamespace> {
        Arc::clone(&self.namespaces.lock().mnt)
    }

    /// The namespaces that the task has.
    pub fn namespaces(&self) -> Arc<Namespaces> {
        Arc::clone(&self.namespaces.lock())
    }

    pub(crate) fn set_namespaces(&self, set: Arc<Namespaces>) {
        let old = core::mem::replace(&mut *self.namespaces.lock(), set);
        drop(old);
    }

    /// Whether another task has the same root, working directory and umask (`CLONE_FS`).
    pub(crate) fn shares_fs(&self) -> bool {
        let fs = self.fs();
        Arc::strong_count(&fs) > 2
            && self
                .kernel
                .tasks()
                .iter()
                .any(|t| !core::ptr::eq(t.as_ref(), self) && Arc::ptr_eq(&t.fs(), &fs))
    }

    /// The thread id and process id that the task itself sees (`gettid(2)`, `getpid(2)`).
    pub fn ns_tid(&self) -> i32 {
        self.group.pid_ns().local(self.tid())
    }

    pub fn ns_pid(&self) -> i32 {
        self.group.pid_ns().local(self.pid())
    }

    /// The number of a task, process, group or session as this task sees it; 0 for one outside of its PID namespace.
    pub fn show_pid(&self, number: i32) -> i32 {
        self.group.pid_ns().local(number)
    }

    /// The Sentry's number for one that this task names; `ESRCH` for one that it cannot see.
    pub fn resolve_pid(&self, number: i32) -> Result<i32> {
        self.group.pid_ns().global(number).ok_or(Errno::ESRCH)
    }

    /// The task that this one calls `tid`.
    pub fn find_task(&self, tid: i32) -> Option<Arc<Self>> {
        self.kernel.task(self.group.pid_ns().global(tid)?)
    }

    /// The process that this task calls `pid`.
    pub fn find_process(&self, pid: i32) -> Option<Arc<ThreadGroup>> {
        self.kernel.process(self.group.pid_ns().global(pid)?)
    }

    pub fn rlimit(&self, resource: u32) -> u64 {
        self.group.rlimit(resource)
    }

    /// The process ids of the children that this thread made and has not waited for.
    pub fn children(&self) -> Vec<i32> {
        let set = self.kernel.task_set();
        let Ok(own) = set.process(self.pid()) else { return Vec::new() };
        let made = |pid: &i32| set.process(*pid).is_ok_and(|p| p.parent_tid == self.tid());
        own.children.iter().copied().filter(|pid| made(pid)).collect()
    }

    /// The name that `PR_SET_NAME` sets, without its NULs.
    pub fn comm(&self) -> Vec<u8> {
        let comm = *self.comm.lock();
        comm.iter().copied().take_while(|b| *b != 0).collect()
    }

    pub(crate) fn comm_raw(&self) -> [u8; 16] {
        *self.comm.lock()
    }

    /// Sets the name; the rest after 15 bytes is cut.
    pub fn set_comm(&self, name: &[u8]) {
        *self.comm.lock() = comm_from(name);
    }

    /// The program that runs (`/proc/PID/exe`); `None` for a zombie.
    pub fn exe(&self) -> Option<Arc<FileDescription>> {
        self.exe.lock().clone()
    }

    pub(crate) fn set_exe(&self, exe: Option<Arc<FileDescription>>) {
        let old = core::mem::replace(&mut *self.exe.lock(), exe);
        drop(old);
    }

    /// User and system CPU time, in nanoseconds.
    pub fn cpu_times(&self) -> (u64, u64) {
        self.cpu.times()
    }

    /// Bytes and calls of its reads and writes.
    pub fn io(&self) -> &IoCounters {
        &self.io
    }

    /// Blocked signals.
    pub fn signal_mask(&self) -> SigSet {
        self.signals.lock().mask
    }

    /// Signals pending for this task or its process.
    pub fn pending_signals(&self) -> SigSet {
        let group = self.group.signals.lock();
        let own = self.signals.lock().pending.set();
        group.pending.set().union(own)
    }

    pub(crate) fn work(&self) -> u32 {
        self.work.load(Ordering::SeqCst)
    }

    pub(crate) fn clear_work(&self, bits: u32) {
        self.work.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Sets work flags of the running task itself.
    pub(crate) fn add_work(&self, bits: u32) {
        self.work.fetch_or(bits, Ordering::SeqCst);
    }

    /// Sets work flags and makes the task look at them: ends its sleep, or its run of application code.
    pub(crate) fn notify(&self, bits: u32) {
        self.work.fetch_or(bits, Ordering::SeqCst);
        if bits & work::KILL != 0 {
            self.sleeper.kill();
        } else if bits & (work::SIGNAL | work::STOP) != 0 {
            self.sleeper.interrupt();
        }
        // The run loop sets `in_app` before it looks at `work`: one of the two sees the other.
        if self.in_app.load(Ordering::SeqCst) {
            let kicker = self.kicker.lock().clone();
            match kicker {
                Some(kicker) if bits & work::KILL != 0 => kicker.kick_to_end(),
                Some(kicker) => kicker.kick(),
                None => {}
            }
        }
    }

    /// Marks the task as running application code; false if there is work to do first.
    pub(crate) fn enter_app(&self) -> bool {
        self.in_app.store(true, Ordering::SeqCst);
        if self.work() == 0 {
            return true;
        }
        self.in_app.store(false, Ordering::SeqCst);
        false
    }

    pub(crate) fn leave_app(&self) {
        self.in_app.store(false, Ordering::SeqCst);
    }

    pub(crate) fn set_kicker(&self, kicker: Arc<dyn Kick>) {
        *self.kicker.lock() = Some(kicker);
    }

    /// Takes over what a child has of its parent beyond [`TaskParts`].
    pub(crate) fn inherit(&self, parent: &Self) {
        self.set_exe(parent.exe());
        let slack = parent.timer_slack.load(Ordering::Relaxed);
        self.timer_slack.store(slack, Ordering::Relaxed);
        self.first_timer_slack.store(slack, Ordering::Relaxed);
        self.personality.store(parent.personality.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Lets a parent that waits in `vfork` go on.
    pub(crate) fn open_vfork_gate(&self) {
        let gate = self.vfork_parent.lock().take();
        if let Some(gate) = gate {
            gate.release();
        }
    }

    /// Lets go of what a zombie does not keep: memory, files, places.
    pub(crate) fn release_resources(&self) {
        *self.kicker.lock() = None;
        *self.at_hand.lock() = None;
        self.set_mm(Arc::clone(self.kernel.no_mm()));
        self.set_fds(Arc::clone(self.kernel.no_fds()));
        self.set_exe(None);
        self.set_fs(Arc::clone(self.kernel.no_fs()));
        let set = self.kernel.first_namespaces().with_mounts(self.kernel.no_mounts());
        self.set_namespaces(set);
    }
}

/// A `comm` from a name of any length.
pub(crate) fn comm_from(name: &[u8]) -> [u8; 16] {
    let mut comm = [0; 16];
    for (slot, byte) in comm.iter_mut().zip(name.iter().take(15).take_while(|b| **b != 0)) {
        *slot = *byte;
    }
    comm
}

impl UserMemory for Task {
    fn copy_in_partial(&self, addr: u64, dst: &mut [u8]) -> Result<usize> {
        self.mm().copy_in_partial(addr, dst)
    }

    fn copy_out_partial(&self, addr: u64, src: &[u8]) -> Result<usize> {
        self.mm().copy_out_partial(addr, src)
    }
}

impl Caller for Task {
    fn creds(&self) -> Arc<Credentials> {
        Self::creds(self)
    }

    fn mem(&self) -> &dyn UserMemory {
        self
    }

    fn tid(&self) -> i32 {
        Self::tid(self)
    }

    fn pid(&self) -> i32 {
        Self::pid(self)
    }

    fn comm(&self) -> Vec<u8> {
        Self::comm(self)
    }

    fn memory_file(&self) -> Option<Arc<MemoryFile>> {
        Some(Arc::clone(self.mm().memory_file()))
    }

    fn rlimit(&self, resource: u32) -> u64 {
        Self::rlimit(self, resource)
    }

    fn signal_self(&self, signal: i32) {
        self.send_to_self(signal);
    }

    fn show_pid(&self, number: i32) -> i32 {
        Self::show_pid(self, number)
    }

    fn resolve_pid(&self, number: i32) -> Option<i32> {
        self.group.pid_ns().global(number)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl JobControl for Task {
    fn pgid(&self) -> i32 {
        self.group.pgid()
    }

    fn sid(&self) -> i32 {
        self.group.sid()
    }

    fn session_of_group(&self, pgid: i32) -> Option<i32> {
        self.kernel.task_set().session_of_group(pgid)
    }

    fn group_is_orphaned(&self) -> bool {
        self.kernel.task_set().is_orphaned(self.group.pgid(), None)
    }

    fn ignores_or_blocks(&self, signal: i32) -> bool {
        let group = self.group.signals.lock();
        let blocked = self.signals.lock().mask.has(signal);
        blocked || group.actions.get(signal).handler == abi::signal::SIG_IGN
    }

    fn signal_group(&self, pgid: i32, signal: i32) {
        self.kernel.signal_process_group(pgid, signal);
    }

    fn controlling_terminal(&self) -> Option<Arc<dyn Terminal>> {
        self.kernel.task_set().sessions.get(&self.group.sid())?.terminal.clone()
    }

    fn set_controlling_terminal(&self, terminal: Arc<dyn Terminal>, steal: bool) -> Result<()> {
        self.take_terminal(terminal, steal)
    }

    fn drop_controlling_terminal(&self) -> Result<()> {
        self.give_up_terminal()
    }
}
