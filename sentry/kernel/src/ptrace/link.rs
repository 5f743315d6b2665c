//! Who traces whom: attaching, letting go, and what is inherited.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::process::WaitStatus;
use abi::signal::{SI_KERNEL, SigInfo, sig};
use sentry_base::{Errno, Result};

use super::{Access, Standing, Trace, mode, options};
use crate::group::{GroupSignals, StopState};
use crate::signal::{Origin, recalc};
use crate::task::{TaskSignals, work};
use crate::task_set::TaskSet;
use crate::{Task, ptrace::may_access};

/// A tracee in the set of tasks, by its thread id.
#[derive(Debug)]
pub(crate) struct TraceLink {
    pub tracee: Arc<Task>,
    pub tracer: Arc<Task>,
    /// A thread other than the leader has ended with this, and its tracer was not told yet.
    pub zombie: Option<WaitStatus>,
}

/// Makes `tracer` the tracer. Under the lock of the set of tasks.
fn link(set: &mut TaskSet, tracee: &Arc<Task>, tracer: &Arc<Task>, seized: bool, options: u32) {
    set.traces.insert(
        tracee.tid(),
        TraceLink { tracee: Arc::clone(tracee), tracer: Arc::clone(tracer), zombie: None },
    );
    tracee.signals.lock().trace = Some(Trace::new(tracer, seized, options));
    tracee.trace_mode.store(mode::TRACED, Ordering::SeqCst);
    tracee.mm().keep_text();
}

/// Ends the tracing of a task, which goes on where it stands or takes part in a stop of its process (`__ptrace_unlink`).
/// Under the lock of its process.
pub(super) fn unlink(group: &GroupSignals, tracee: &Task, own: &mut TaskSignals) {
    tracee.trace_mode.store(0, Ordering::SeqCst);
    own.trace = None;
    own.stops.trap = false;
    own.stops.notify = false;
    if group.exit.is_none() && group.stop != StopState::Running {
        own.stops.pending = true;
        if own.stops.signo == 0 {
            own.stops.signo = sig::STOP;
        }
        tracee.notify(work::STOP);
    }
    if matches!(own.stops.standing, Standing::Traced | Standing::Listening) {
        own.stops.standing = Standing::Running;
        tracee.sleeper().wake();
    }
    recalc(group, tracee, own);
}

/// `PTRACE_TRACEME`: the caller's parent traces it.
pub fn trace_me(task: &Arc<Task>) -> Result<()> {
    let mut set = task.kernel().task_set();
    if set.traces.contains_key(&task.tid()) {
        return Err(Errno::EPERM);
    }
    let process = set.process(task.pid())?;
    // Init's parent is outside: nobody there traces.
    let parent = set.process(process.parent).map_err(|_| Errno::EPERM)?;
    let tracer = match set.tasks.get(&process.parent_tid) {
        Some(thread) if thread.pid() == parent.group.pid() => Arc::clone(thread),
        _ => Arc::clone(&parent.leader),
    };
    link(&mut set, task, &tracer, false, 0);
    Ok(())
}

/// `PTRACE_ATTACH`, or `PTRACE_SEIZE` with options. True if the tracee was stopped by job control: it is on its way to
/// a stop for its tracer, which Linux waits for.
pub fn attach(tracer: &Arc<Task>, tid: i32, seize: Option<u32>) -> Result<bool> {
    let kernel = tracer.kernel();
    let tracee = tracer.find_task(tid).ok_or(Errno::ESRCH)?;
    if Arc::ptr_eq(tracee.group(), tracer.group()) || !may_access(tracer, &tracee, Access::Attach) {
        return Err(Errno::EPERM);
    }
    {
        let mut set = kernel.task_set();
        let alive = tracee.group().signals.lock().threads.iter().any(|t| Arc::ptr_eq(t, &tracee));
        if !alive || set.traces.contains_key(&tracee.tid()) {
            return Err(Errno::EPERM);
        }
        link(&mut set, &tracee, tracer, seize.is_some(), seize.unwrap_or(0));
    }
    if seize.is_none() {
        let _ = tracee.send(SigInfo::kernel(sig::STOP, SI_KERNEL), Origin::Inside);
    }
    let group = tracee.group().signals.lock();
    let mut own = tracee.signals.lock();
    if own.stops.standing != Standing::Stopped {
        return Ok(false);
    }
    own.stops.trap = true;
    own.stops.standing = Standing::Running;
    tracee.notify(work::STOP);
    tracee.sleeper().wake();
    drop(own);
    drop(group);
    Ok(true)
}

/// Has a new child traced by its parent's tracer, if `wanted` (`ptrace_init_task`). Before the child runs.
pub(crate) fn inherit(set: &mut TaskSet, parent: &Task, child: &Arc<Task>, wanted: bool) {
    if !wanted {
        return;
    }
    let (tracer, seized, options) = match &parent.signals.lock().trace {
        Some(trace) => (Arc::clone(&trace.tracer), trace.seized, trace.options),
        None => return,
    };
    link(set, child, &tracer, seized, options);
    let group = child.group().signals.lock();
    let mut own = child.signals.lock();
    if seized {
        own.stops.trap = true;
        child.notify(work::STOP);
    } else {
        own.pending.add_bare(sig::STOP);
    }
    recalc(&group, child, &own);
}

/// The thread `tid` takes the number of its process, whose old leader is gone.
pub(crate) fn move_link(set: &mut TaskSet, tid: i32, pid: i32) -> Option<TraceLink> {
    let old_leader = set.traces.remove(&pid);
    if let Some(link) = set.traces.remove(&tid) {
        set.traces.insert(pid, link);
    }
    old_leader
}

/// Lets go of everything that a tracer traces when it ends (`exit_ptrace`).
///
/// Returns the ended tracees, whose parents may be told now, and the processes that are to be killed with their tracer.
pub(crate) fn let_go_of_tracees(set: &mut TaskSet, tracer: &Task) -> (Vec<Arc<Task>>, Vec<Arc<Task>>) {
    let mut ended = Vec::new();
    let mut doomed = Vec::new();
    let tids: Vec<i32> = set
        .traces
        .iter()
        .filter(|(_, link)| core::ptr::eq(Arc::as_ptr(&link.tracer), tracer))
        .map(|(tid, _)| *tid)
        .collect();
    for tid in tids {
        let Some(link) = set.traces.remove(&tid) else { continue };
        let group = link.tracee.group().signals.lock();
        let mut own = link.tracee.signals.lock();
        if own.trace.as_ref().is_some_and(|t| t.options & options::EXITKILL != 0) {
            doomed.push(Arc::clone(&link.tracee));
        }
        unlink(&group, &link.tracee, &mut own);
        drop(own);
        drop(group);
        if link.zombie.is_some() {
            set.tasks.remove(&tid);
        } else if set.processes.get(&tid).is_some_and(|p| p.zombie.is_some()) {
            ended.push(link.tracee);
        }
    }
    (ended, doomed)
}

impl TaskSet {
    /// Whether a process's leader is traced by another than its parent, and so is not the parent's to wait for yet.
    pub fn is_traced_elsewhere(&self, pid: i32) -> bool {
        let Some(link) = self.traces.get(&pid) else { return false };
        self.processes.get(&pid).is_some_and(|p| p.parent != link.tracer.pid())
    }
}

impl Task {
    /// The thread id of the task's tracer; 0 without one (`TracerPid` of `/proc/PID/status`).
    pub fn tracer_tid(&self) -> i32 {
        self.signals.lock().trace.as_ref().map_or(0, |t| t.tracer.tid())
    }

    /// Whether the task stands in a stop for its tracer.
    pub fn stands_for_tracer(&self) -> bool {
        matches!(self.signals.lock().stops.standing, Standing::Traced | Standing::Listening)
    }

    /// Whether the task has stops before it.
    pub fn has_stops_due(&self) -> bool {
        self.work() & (work::STOP | work::KILL) == work::STOP
    }

    /// Bits of [`mode`].
    pub(crate) fn trace_mode(&self) -> u8 {
        self.trace_mode.load(Ordering::Relaxed)
    }

    /// Whether a tracer may look at this task's system calls.
    pub fn is_traced(&self) -> bool {
        self.trace_mode.load(Ordering::Relaxed) & mode::TRACED != 0
    }
}
