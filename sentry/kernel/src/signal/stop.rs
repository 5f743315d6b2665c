//! Job control: stopping and continuing a process, and telling its parent.

use std::sync::Arc;

use abi::signal::{CLD_CONTINUED, CLD_STOPPED, SA_NOCLDSTOP, SIG_IGN, SigInfo, sig};
use abi::time::ticks;
use sentry_base::{Events, WaitClass};

use super::{Origin, recalc};
use crate::group::{GroupSignals, StopState};
use crate::task::work;
use crate::{Current, TaskState, ThreadGroup};

impl ThreadGroup {
    /// Begins to stop every thread.
    pub(crate) fn begin_stop(&self, signo: i32) {
        let mut group = self.signals.lock();
        if group.exit.is_some() || group.stop != StopState::Running {
            return;
        }
        group.stop = StopState::Stopping(signo);
        for thread in &group.threads {
            thread.notify(work::STOP);
        }
    }

    /// Completes a stop once every thread stands still; the signal to report then.
    pub(crate) fn stop_completed(group: &mut GroupSignals) -> Option<i32> {
        let StopState::Stopping(signo) = group.stop else { return None };
        if group.threads.is_empty() || !group.threads.iter().all(|t| t.signals.lock().stopped) {
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

/// Stands still until the process is continued or the task is killed.
pub(super) async fn stop(cx: &mut Current) {
    let task = Arc::clone(&cx.task);
    let report = {
        let mut group = task.group().signals.lock();
        if group.stop == StopState::Running {
            task.clear_work(work::STOP);
            recalc(&group, &task, &task.signals.lock());
            return;
        }
        task.signals.lock().stopped = true;
        ThreadGroup::stop_completed(&mut group)
    };
    if let Some(signo) = report {
        task.group().report_to_parent(CLD_STOPPED, signo);
    }
    task.set_state(TaskState::Stopped);
    loop {
        task.sleeper().arm();
        let running = task.group().signals.lock().stop == StopState::Running;
        if running || task.sleeper().is_killed() {
            break;
        }
        cx.sleep(WaitClass::Killable, None).await;
    }
    task.set_state(TaskState::Interrupt);
    let group = task.group().signals.lock();
    let mut own = task.signals.lock();
    own.stopped = false;
    if group.stop == StopState::Running {
        task.clear_work(work::STOP);
    }
    recalc(&group, &task, &own);
}
