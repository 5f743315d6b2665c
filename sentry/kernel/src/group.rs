//! Processes: what the threads of one process share (`struct signal_struct` of Linux).

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use abi::process::{Rlimit, WaitStatus};
use abi::signal::SigSet;
use sentry_base::{Mutex, Nanos, WaitQueue, lock::rank, mono_now};

use crate::signal::{Actions, Pending};
use crate::timers::ProcessTimers;
use crate::{IoCounters, IoUse, Kernel, Limits, PidNs, Task};

/// Job control's view of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopState {
    Running,
    /// Every thread is on its way to stop for this signal.
    Stopping(i32),
    Stopped(i32),
}

/// A thread that executes a program waits for its siblings to be gone.
#[derive(Debug)]
pub(crate) struct ExecWait {
    pub thread: Arc<Task>,
}

/// The signal state of a process.
#[derive(Debug)]
pub(crate) struct GroupSignals {
    pub pending: Pending,
    pub actions: Arc<Actions>,
    /// Threads that have not begun to exit, oldest first.
    pub threads: Vec<Arc<Task>>,
    /// The process ends with this status; every thread is on its way out.
    pub exit: Option<WaitStatus>,
    /// The status that the leader gave to `exit(2)`, while other threads live on.
    pub leader_exit: Option<WaitStatus>,
    pub stop: StopState,
    pub exec: Option<ExecWait>,
}

/// A process.
#[derive(Debug)]
pub struct ThreadGroup {
    pid: i32,
    /// The PID namespace that the process is in, for good.
    pid_ns: Arc<PidNs>,
    /// Whether it is the init of its PID namespace.
    ns_init: bool,
    kernel: Arc<Kernel>,
    /// Copies of what the task set says, for reading without its lock.
    pub(crate) ppid: AtomicI32,
    pub(crate) pgid: AtomicI32,
    pub(crate) sid: AtomicI32,
    /// Sent to the parent at exit; 0 for none.
    pub(crate) exit_signal: AtomicI32,
    pub(crate) signals: Mutex<GroupSignals, { rank::SIG_HAND }>,
    limits: Mutex<Limits, { rank::LEAF }>,
    /// Announces changes of children to those who wait for them.
    pub(crate) child_events: WaitQueue,
    /// Announces this process's own signals to signalfd readers.
    pub(crate) signal_events: WaitQueue,
    /// Announces this process's end to pidfd pollers.
    pub(crate) exit_events: WaitQueue,
    pub(crate) subreaper: AtomicBool,
    pub(crate) dumpable: AtomicI32,
    started: Nanos,
    /// CPU time of threads that are gone, in nanoseconds.
    pub(crate) dead_utime: AtomicU64,
    /// Of threads that have ended and children that were waited for.
    pub(crate) dead_io: IoCounters,
    pub(crate) dead_stime: AtomicU64,
    /// CPU time of children that were waited for, in nanoseconds.
    pub(crate) children_utime: AtomicU64,
    pub(crate) children_stime: AtomicU64,
    pub(crate) timers: ProcessTimers,
    pub(crate) oom_score_adj: AtomicI32,
    /// The number of its container in the sandbox.
    container: AtomicU32,
    /// The most resident bytes of the process, and of any child that was waited for.
    peak_resident: AtomicU64,
    pub(crate) children_peak_resident: AtomicU64,
}

impl ThreadGroup {
    pub(crate) fn new(
        kernel: Arc<Kernel>,
        pid: i32,
        pid_ns: Arc<PidNs>,
        actions: Arc<Actions>,
        limits: Limits,
    ) -> Arc<Self> {
        let ns_init = pid_ns.local(pid) == 1;
        Arc::new(Self {
            pid,
            pid_ns,
            ns_init,
            kernel,
            ppid: AtomicI32::new(0),
            pgid: AtomicI32::new(0),
            sid: AtomicI32::new(0),
            exit_signal: AtomicI32::new(0),
            signals: Mutex::new(GroupSignals {
                pending: Pending::default(),
                actions,
                threads: Vec::new(),
                exit: None,
                leader_exit: None,
                stop: StopState::Running,
                exec: None,
            }),
            limits: Mutex::new(limits),
            child_events: WaitQueue::new(),
            signal_events: WaitQueue::new(),
            exit_events: WaitQueue::new(),
            subreaper: AtomicBool::new(false),
            dumpable: AtomicI32::new(1),
            started: mono_now(),
            dead_utime: AtomicU64::new(0),
            dead_io: IoCounters::default(),
            dead_stime: AtomicU64::new(0),
            children_utime: AtomicU64::new(0),
            children_stime: AtomicU64::new(0),
            timers: ProcessTimers::default(),
            oom_score_adj: AtomicI32::new(0),
            container: AtomicU32::new(0),
            peak_resident: AtomicU64::new(0),
            children_peak_resident: AtomicU64::new(0),
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Which of the sandbox's containers it belongs to; 0 is the first one.
    pub fn container(&self) -> u32 {
        self.container.load(Ordering::Relaxed)
    }

    pub(crate) fn set_container(&self, container: u32) {
        self.container.store(container, Ordering::Relaxed);
    }

    /// The PID namespace that the process is in.
    pub fn pid_ns(&self) -> &Arc<PidNs> {
        &self.pid_ns
    }

    /// Whether it is the init of its PID namespace.
    pub fn is_ns_init(&self) -> bool {
        self.ns_init
    }

    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// The parent's process id; 0 for init.
    pub fn ppid(&self) -> i32 {
        self.ppid.load(Ordering::Relaxed)
    }

    pub fn pgid(&self) -> i32 {
        self.pgid.load(Ordering::Relaxed)
    }

    pub fn sid(&self) -> i32 {
        self.sid.load(Ordering::Relaxed)
    }

    /// When the process was made (`CLOCK_MONOTONIC`).
    pub fn started(&self) -> Nanos {
        self.started
    }

    /// Threads that have not begun to exit, oldest first.
    pub fn threads(&self) -> Vec<Arc<Task>> {
        self.signals.lock().threads.clone()
    }

    pub fn nr_threads(&self) -> usize {
        self.signals.lock().threads.len()
    }

    pub fn actions(&self) -> Arc<Actions> {
        Arc::clone(&self.signals.lock().actions)
    }

    /// Signals pending for the process as a whole.
    pub fn pending_signals(&self) -> SigSet {
        self.signals.lock().pending.set()
    }

    pub fn limits(&self) -> Limits {
        *self.limits.lock()
    }

    pub fn rlimit(&self, resource: u32) -> u64 {
        self.limits.lock().soft(resource)
    }

    /// Replaces a limit; the caller has checked that it may.
    pub fn set_rlimit(&self, resource: u32, limit: Rlimit) {
        self.limits.lock().set(resource, limit);
    }

    /// User and system CPU time of all threads that were ever in the process, in nanoseconds.
    pub fn cpu_times(&self) -> (u64, u64) {
        let mut times = (self.dead_utime.load(Ordering::Relaxed), self.dead_stime.load(Ordering::Relaxed));
        for thread in &self.signals.lock().threads {
            let (utime, stime) = thread.cpu_times();
            times.0 = times.0.saturating_add(utime);
            times.1 = times.1.saturating_add(stime);
        }
        times
    }

    /// Bytes and calls of all threads that were ever in the process, and of the children that were waited for.
    pub fn io(&self) -> IoUse {
        let dead = self.dead_io.now();
        self.signals.lock().threads.iter().fold(dead, |sum, thread| sum.plus(thread.io().now()))
    }

    /// User and system CPU time of the children that were waited for, in nanoseconds.
    pub fn children_cpu_times(&self) -> (u64, u64) {
        (self.children_utime.load(Ordering::Relaxed), self.children_stime.load(Ordering::Relaxed))
    }

    /// The most resident bytes that the process has had, as far as it was asked for.
    pub fn peak_resident(&self) -> u64 {
        self.peak_resident.load(Ordering::Relaxed)
    }

    /// Notes how much was resident at most; returns the most of all.
    pub fn note_peak_resident(&self, bytes: u64) -> u64 {
        self.peak_resident.fetch_max(bytes, Ordering::Relaxed).max(bytes)
    }

    /// The most resident bytes of any child that was waited for, or of its own children.
    pub fn children_peak_resident(&self) -> u64 {
        self.children_peak_resident.load(Ordering::Relaxed)
    }

    /// `/proc/PID/oom_score_adj`: kept, and without effect.
    pub fn oom_score_adj(&self) -> i32 {
        self.oom_score_adj.load(Ordering::Relaxed)
    }

    pub fn set_oom_score_adj(&self, value: i32) {
        self.oom_score_adj.store(value, Ordering::Relaxed);
    }

    /// `PR_GET_DUMPABLE`.
    pub fn dumpable(&self) -> i32 {
        self.dumpable.load(Ordering::Relaxed)
    }

    /// `PR_SET_DUMPABLE`; the caller has checked the value.
    pub fn set_dumpable(&self, value: i32) {
        self.dumpable.store(value, Ordering::Relaxed);
    }

    pub fn is_subreaper(&self) -> bool {
        self.subreaper.load(Ordering::Relaxed)
    }

    pub fn set_subreaper(&self, on: bool) {
        self.subreaper.store(on, Ordering::Relaxed);
    }

    /// The queue on which the end of the process is announced.
    pub fn exit_events(&self) -> &WaitQueue {
        &self.exit_events
    }

    /// The queue on which arriving signals are announced.
    pub fn signal_events(&self) -> &WaitQueue {
        &self.signal_events
    }
}
