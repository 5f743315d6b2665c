//! Waiting for children (`wait(2)`, `kernel/exit.c`).

use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::process::WaitStatus;
use abi::signal::{CLD_CONTINUED, CLD_STOPPED, CLD_TRAPPED, sig};
use sentry_base::{Errno, Result};
use sentry_vfs::IoStart;

use crate::exit::{Notice, SetGuard, child_code, tell_parent};
use crate::ptrace::TraceLink;
use crate::task_set::{Process, TaskSet, Zombie};
use crate::{Task, ThreadGroup};

/// Which children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    Any,
    Process(i32),
    Group(i32),
}

/// What to report, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitOptions {
    pub exited: bool,
    pub stopped: bool,
    pub continued: bool,
    /// Leave the report for another wait.
    pub nowait: bool,
    /// `__WALL`, `__WCLONE`, `__WNOTHREAD`.
    pub all: bool,
    pub clone: bool,
    pub own_thread_only: bool,
}

/// A child's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// As the caller sees it.
    pub pid: i32,
    pub uid: u32,
    /// As `wait4` returns it.
    pub status: WaitStatus,
    /// `si_code` and `si_status` of `waitid`.
    pub code: i32,
    pub value: i32,
    /// CPU time of the child and the children that it waited for, in nanoseconds.
    pub utime: u64,
    pub stime: u64,
    /// The most resident bytes of the child, or of a child that it waited for.
    pub peak_resident: u64,
}

fn peak_of(group: &ThreadGroup) -> u64 {
    group.peak_resident().max(group.children_peak_resident())
}

impl Waited {
    fn of(process: &Process, status: WaitStatus, code: i32, value: i32) -> Self {
        let (utime, stime) = process.group.cpu_times();
        let (cu, cs) = process.group.children_cpu_times();
        let uid = process.leader.creds().uid;
        Self {
            pid: process.group.pid(),
            uid,
            status,
            code,
            value,
            utime: utime + cu,
            stime: stime + cs,
            peak_resident: peak_of(&process.group),
        }
    }

    fn of_tracee(task: &Task, status: WaitStatus, code: i32, value: i32) -> Self {
        let (utime, stime) = task.cpu_times();
        Self {
            pid: task.tid(),
            uid: task.creds().uid,
            status,
            code,
            value,
            utime,
            stime,
            peak_resident: peak_of(task.group()),
        }
    }

    fn of_zombie(process: &Process, zombie: &Zombie) -> Self {
        let (code, value) = child_code(zombie.status);
        Self {
            pid: process.group.pid(),
            peak_resident: peak_of(&process.group),
            uid: zombie.uid,
            status: zombie.status,
            code,
            value,
            utime: zombie.utime.saturating_add(zombie.children_utime),
            stime: zombie.stime.saturating_add(zombie.children_stime),
        }
    }
}

/// Looks for a report among the caller's children; `WouldBlock` if there are children to wait for and none has one.
/// `ECHILD` if there are none.
pub fn try_wait(task: &Task, which: WaitFor, options: WaitOptions) -> Result<IoStart<Waited>> {
    let mut released = None;
    let mut notices = Vec::new();
    let result = {
        let mut set = task.kernel().task_set();
        let (traced_any, traced) =
            if set.traces.is_empty() { (false, None) } else { tracee_report(&set, task, which, options) };
        if let Some(waited) = traced {
            let shown = task.show_pid(waited.pid);
            if !options.nowait {
                let gone = take_tracee_report(&mut set, task, &waited, &mut notices);
                drop(set);
                drop(gone);
                for notice in notices {
                    notice.give();
                }
                if !task.group().pid_ns().is_first() {
                    crate::exit::after_wait(task.kernel());
                }
            }
            return Ok(IoStart::Done(Waited { pid: shown, ..waited }));
        }
        let own = set.process(task.pid())?;
        let mut found = None;
        let mut any = traced_any;
        for pid in &own.children {
            let Ok(child) = set.process(*pid) else { continue };
            if !is_eligible(task, child, which, options) {
                continue;
            }
            any = true;
            // A traced child is its tracer's to wait for; where that is the parent itself, it was looked at as such.
            if set.traces.contains_key(pid) && child.zombie.is_some() {
                continue;
            }
            found = report(child, options);
            if found.is_some() {
                break;
            }
        }
        if !any {
            return Err(Errno::ECHILD);
        }
        match found {
            None => IoStart::WouldBlock,
            Some(waited) => {
                let pid = waited.pid;
                // Its number is given up with the process.
                let waited = Waited { pid: task.show_pid(pid), ..waited };
                if !options.nowait {
                    let child = set.process_mut(pid)?;
                    if let Some(zombie) = child.zombie {
                        count_child_times(task, &child.group, &zombie);
                        released = set.remove_process(pid);
                    } else if waited.code == CLD_STOPPED {
                        child.stop_report = None;
                    } else {
                        child.continue_report = false;
                    }
                }
                IoStart::Done(waited)
            }
        }
    };
    if released.as_ref().is_some_and(|p| !p.group.pid_ns().is_first()) {
        crate::exit::after_wait(task.kernel());
    }
    drop(released);
    Ok(result)
}

/// The tracees of a task: whether there are any, and the report of one (`ptrace_do_wait`).
fn tracee_report(set: &TaskSet, task: &Task, which: WaitFor, options: WaitOptions) -> (bool, Option<Waited>) {
    let mut any = false;
    for (tid, link) in &set.traces {
        let own =
            link.tracer.pid() == task.pid() && (!options.own_thread_only || link.tracer.tid() == task.tid());
        let selected = match which {
            WaitFor::Any => true,
            WaitFor::Process(wanted) => wanted == *tid,
            WaitFor::Group(pgid) => link.tracee.group().pgid() == pgid,
        };
        if !own || !selected {
            continue;
        }
        any = true;
        let ended = link
            .zombie
            .or_else(|| set.processes.get(tid).and_then(|p| p.zombie.as_ref()).map(|zombie| zombie.status));
        if let Some(status) = ended {
            if options.exited {
                let (code, value) = child_code(status);
                return (true, Some(Waited::of_tracee(&link.tracee, status, code, value)));
            }
            continue;
        }
        let signals = link.tracee.signals.lock();
        let report = signals
            .trace
            .as_ref()
            .and_then(|t| t.report)
            .filter(|_| signals.stops.standing == crate::ptrace::Standing::Traced);
        drop(signals);
        if let Some(report) = report {
            let status = WaitStatus(report << 8 | 0x7f);
            return (true, Some(Waited::of_tracee(&link.tracee, status, CLD_TRAPPED, report)));
        }
    }
    (any, None)
}

/// Takes the report that [`tracee_report`] has found. Returns what is not needed any more.
fn take_tracee_report(
    set: &mut SetGuard<'_>,
    task: &Task,
    waited: &Waited,
    notices: &mut Vec<Notice>,
) -> Option<(TraceLink, Vec<Arc<Task>>)> {
    let tid = waited.pid;
    if waited.code == CLD_TRAPPED {
        if let Some(link) = set.traces.get(&tid)
            && let Some(trace) = &mut link.tracee.signals.lock().trace
        {
            trace.report = None;
        }
        return None;
    }
    let elsewhere = set.is_traced_elsewhere(tid);
    let link = set.traces.remove(&tid)?;
    link.tracee.signals.lock().trace = None;
    let mut released = Vec::new();
    if link.zombie.is_some() {
        released.extend(set.tasks.remove(&tid));
    } else if elsewhere {
        // The parent's turn.
        tell_parent(set, tid, notices, &mut released);
    } else {
        if let Ok(process) = set.process(tid)
            && let Some(zombie) = &process.zombie
        {
            count_child_times(task, &process.group, zombie);
        }
        released.extend(set.remove_process(tid).map(|p| p.leader));
    }
    Some((link, released))
}

/// Adds a child's time to its parent's.
fn count_child_times(task: &Task, child: &ThreadGroup, zombie: &Zombie) {
    let group = task.group();
    group.children_peak_resident.fetch_max(peak_of(child), Ordering::Relaxed);
    let add = |to: &core::sync::atomic::AtomicU64, v: u64| {
        to.fetch_add(v, Ordering::Relaxed);
    };
    group.dead_io.add(child.io());
    add(&group.children_utime, zombie.utime.saturating_add(zombie.children_utime));
    add(&group.children_stime, zombie.stime.saturating_add(zombie.children_stime));
}

fn is_eligible(task: &Task, child: &Process, which: WaitFor, options: WaitOptions) -> bool {
    let selected = match which {
        WaitFor::Any => true,
        WaitFor::Process(pid) => child.group.pid() == pid,
        WaitFor::Group(pgid) => child.pgid == pgid,
    };
    if !selected || (options.own_thread_only && child.parent_tid != task.tid()) {
        return false;
    }
    let is_clone_child = child.group.exit_signal.load(Ordering::Relaxed) != sig::CHLD;
    options.all || is_clone_child == options.clone
}

fn report(child: &Process, options: WaitOptions) -> Option<Waited> {
    if let Some(zombie) = &child.zombie {
        if child.lingers {
            return None;
        }
        return options.exited.then(|| Waited::of_zombie(child, zombie));
    }
    if let Some(signo) = child.stop_report.filter(|_| options.stopped) {
        return Some(Waited::of(child, WaitStatus::stopped(signo), CLD_STOPPED, signo));
    }
    if child.continue_report && options.continued {
        return Some(Waited::of(child, WaitStatus::CONTINUED, CLD_CONTINUED, sig::CONT));
    }
    None
}

impl ThreadGroup {
    /// The queue on which changes of children are announced.
    pub fn child_events(self: &Arc<Self>) -> &sentry_base::WaitQueue {
        &self.child_events
    }
}
