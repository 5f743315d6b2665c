//! Job control: stopping and continuing a process, and telling its parent.

use std::sync::Arc;

use abi::signal::{CLD_CONTINUED, CLD_STOPPED, SA_NOCLDSTOP, SIG_IGN, SigInfo, sig};
use abi::time::ticks;
use sentry_base::{Events, WaitClass};

use super::{Origin, recalc};
use crate::group::{GroupSignals, StopState};
use crate::ptrace::{self, Standing};
use crate::task::{TaskSignals, work};
use crate::{Current, Task, TaskState, ThreadGroup};

/// Sets or clears the task's interest in stops. Under the process's lock.
pub(super) fn recalc_stop(task: &Task, own: &TaskSignals) {
    if own.stops.pending || own.stops.trap || own.stops.notify {
        task.notify(work::STOP);
    } else {
        task.clear_work(work::STOP);
    }
}

/// A seized tracee is to tell its tracer that a stop of its process began or ended (`ptrace_trap_notify`).
pub(super) fn trap_notify(task: &Task, own: &mut TaskSignals) {
    own.stops.notify = true;
    if own.stops.standing == Standing::Listening {
        own.stops.standing = Standing::Running;
        task.sleeper().wake();
    }
}

impl ThreadGroup {
    /// Begins to stop every thread, for a signal that `current` has taken (`do_signal_stop`). A tracee that runs while
    /// its process is stopped stops again.
    pub(crate) fn begin_stop(&self, current: &Task, signo: i32) {
        let mut group = self.signals.lock();
        let due = {
            let own = current.signals.lock();
            own.stops.dequeued && !own.stops.pending
        };
        if group.exit.is_some() || !due {
            return;
        }
        if !matches!(group.stop, StopState::Stopped(_)) {
            group.stop = StopState::Stopping(signo);
        }
        for thread in &group.threads {
            let mut own = thread.signals.lock();
            if own.stops.standing == Standing::Stopped {
                continue;
            }
            own.stops.pending = true;
            own.stops.joined = false;
            own.stops.signo = signo;
            if own.trace.as_ref().is_some_and(|t| t.seized) && !core::ptr::eq(Arc::as_ptr(thread), current) {
                trap_notify(thread, &mut own);
            }
            thread.notify(work::STOP);
        }
    }

    /// Completes a stop once every thread has taken part in it; the signal to report then.
    pub(crate) fn stop_completed(group: &mut GroupSignals) -> Option<i32> {
        let StopState::Stopping(signo) = group.stop else { return None };
        if group.threads.is_empty() || !group.threads.iter().all(|t| t.signals.lock().stops.joined) {
            return None;
        }
        group.stop = StopState::Stopped(signo);
        Some(signo)
    }

    /// Tells the parent of a stop or continuation (`do_notify_parent_cldstop`).
    pub(crate) fn report_to_parent(self: &Arc<Self>, code: i32, status: i32) {
        let (parent, uid) = {
            let mut set = self.kernel().task_set();
            let Ok(process) = set.process_mut(self.pid()) else { return };
            if code == CLD_STOPPED {
                process.stop_report = Some(status);
                process.continue_report = false;
            } else if code == CLD_CONTINUED {
                process.stop_report = None;
                process.continue_report = true;
            }
            let (parent, leader) = (process.parent, Arc::clone(&process.leader));
            let Ok(parent) = set.process(parent) else { return };
            (Arc::clone(&parent.group), leader.creds().uid)
        };
        let action = parent.actions().get(sig::CHLD);
        if action.handler != SIG_IGN && action.flags & SA_NOCLDSTOP == 0 {
            let (utime, stime) = self.cpu_times();
            let (pid, uid) = (parent.pid_ns().local(self.pid()), parent.user_ns().show_uid(uid));
            let info = SigInfo::child(sig::CHLD, code, pid, uid, status, ticks(utime), ticks(stime));
            let _ = parent.send(info, Origin::Inside);
        }
        parent.child_events.notify(Events::IN);
    }
}

/// Stops for job control or for the tracer, until continued or killed.
pub(super) async fn stop(cx: &mut Current) {
    // Boxed, as every stop for a tracer: what is rare does not make the future of each task larger.
    if Box::pin(ptrace::group_stop(cx)).await == ptrace::Group::Nothing {
        stand_still(cx).await;
    }
    let task = Arc::clone(&cx.task);
    let group = task.group().signals.lock();
    let own = task.signals.lock();
    recalc_stop(&task, &own);
    recalc(&group, &task, &own);
}

/// Takes part in a stop of the process and stands still until its end.
async fn stand_still(cx: &mut Current) {
    let task = Arc::clone(&cx.task);
    let report = {
        let mut group = task.group().signals.lock();
        {
            let mut own = task.signals.lock();
            if !own.stops.pending || own.trace.is_some() {
                return;
            }
            own.stops.pending = false;
            own.stops.joined = true;
            own.stops.standing = Standing::Stopped;
        }
        ThreadGroup::stop_completed(&mut group)
    };
    if let Some(signo) = report {
        task.group().report_to_parent(CLD_STOPPED, signo);
    }
    task.set_state(TaskState::Stopped);
    loop {
        task.sleeper().arm();
        let running = task.signals.lock().stops.standing == Standing::Running;
        if running || task.sleeper().is_killed() {
            break;
        }
        cx.sleep(WaitClass::Killable, None).await;
    }
    task.set_state(TaskState::Interrupt);
    task.signals.lock().stops.standing = Standing::Running;
}
