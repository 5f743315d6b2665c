//! Sending: who gets a signal, and what it does at once.

use std::sync::Arc;

use abi::process::{WaitStatus, rlimit};
use abi::signal::{CLD_CONTINUED, SI_KERNEL, SI_USER, SIG_DFL, SIG_IGN, SigAction, SigInfo, SigSet, sig};
use sentry_base::{Errno, Events, Result};

use super::{Disposition, STOPS};
use crate::group::{GroupSignals, StopState};
use crate::ptrace::Standing;
use crate::task::{TaskSignals, work};
use crate::{Kernel, Task, ThreadGroup};

/// Where a signal comes from; decides what it can do to init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A process of the sandbox, or the kernel on its own behalf.
    Inside,
    /// The runtime: SIGKILL and SIGSTOP reach init too.
    Outside,
}

/// Sets or clears the task's interest in signals after its mask or the queues changed. Under the process's lock.
pub(crate) fn recalc(group: &GroupSignals, task: &Task, own: &TaskSignals) {
    let due = own.pending.set().union(group.pending.set()).without(own.mask);
    if !due.is_empty() {
        task.notify(work::SIGNAL);
        return;
    }
    task.clear_work(work::SIGNAL);
    if task.work() & (work::STOP | work::KILL) == 0 {
        task.sleeper().clear_interrupt();
    }
}

/// Ends the process with `status`. Under the process's lock. The first status stays.
pub(crate) fn end_process(group: &mut GroupSignals, status: WaitStatus) -> WaitStatus {
    let status = *group.exit.get_or_insert(status);
    for thread in &group.threads {
        // One that stands before its end for its tracer goes on too.
        let mut own = thread.signals.lock();
        if own.stops.standing == Standing::Traced {
            own.stops.standing = Standing::Running;
            thread.sleeper().wake();
        }
        drop(own);
        thread.notify(work::KILL);
    }
    status
}

impl ThreadGroup {
    /// Sends a signal to the process as a whole: any thread that does not block it may take it.
    pub fn send(self: &Arc<Self>, info: SigInfo, origin: Origin) -> Result<()> {
        self.send_signal(None, info, origin).map(drop)
    }

    /// Where a signal of `sender` comes from: a process of a PID namespace above can do to an init what it likes.
    pub fn origin_of(&self, sender: &Task) -> Origin {
        if self.is_ns_init() && self.pid_ns().local(sender.pid()) == 0 {
            Origin::Outside
        } else {
            Origin::Inside
        }
    }

    /// `info`, of a signal that `sender` sends, with the sender's ids as this process sees them.
    #[must_use]
    pub fn info_from(&self, signal: i32, code: i32, sender: &Task) -> SigInfo {
        let uid = self.user_ns().show_uid(sender.creds().uid);
        SigInfo::user(signal, code, self.pid_ns().local(sender.pid()), uid)
    }

    /// The user namespace of its leader.
    pub(crate) fn user_ns(&self) -> Arc<sentry_vfs::UserNs> {
        match self.signals.lock().threads.first() {
            Some(thread) => Arc::clone(&thread.creds().user_ns),
            None => sentry_vfs::UserNs::initial(),
        }
    }

    /// Ends the process (`exit_group(2)`).
    pub fn end(&self, status: WaitStatus) {
        end_process(&mut self.signals.lock(), status);
    }

    /// Whether this is init and signals that it does not handle are dropped.
    pub(crate) fn is_shielded(&self) -> bool {
        self.is_ns_init() && (self.pid() != 1 || self.kernel().init_is_shielded())
    }

    fn ignores(&self, group: &GroupSignals, signo: i32, origin: Origin) -> bool {
        let handler = group.actions.get(signo).handler;
        if self.is_shielded() && handler == SIG_DFL {
            return !(origin == Origin::Outside && SigSet::UNBLOCKABLE.has(signo));
        }
        group.actions.ignores(signo)
    }

    /// Sends to the process or to one of its threads; true if the signal is pending now because of this.
    pub(crate) fn send_signal(
        self: &Arc<Self>,
        target: Option<&Task>,
        info: SigInfo,
        origin: Origin,
    ) -> Result<bool> {
        let mut report = None;
        let queued = {
            let mut group = self.signals.lock();
            let result = self.queue_signal(&mut group, target, info, origin, &mut report);
            drop(group);
            result
        };
        if let Some(signo) = report {
            self.report_to_parent(CLD_CONTINUED, signo);
        }
        let queued = queued?;
        if queued {
            self.signal_events.notify(Events::IN);
        }
        Ok(queued)
    }

    /// The part of sending under the process's lock. True if the signal is now pending.
    fn queue_signal(
        &self,
        group: &mut GroupSignals,
        target: Option<&Task>,
        info: SigInfo,
        origin: Origin,
        report: &mut Option<i32>,
    ) -> Result<bool> {
        let signo = info.signo;
        let Some(first) = group.threads.first().cloned() else {
            return Ok(false);
        };
        let main: &Task = target.unwrap_or(&first);
        if signo == sig::CONT {
            Self::discard(group, STOPS);
            if !self.ignores_continue(origin) {
                *report = Self::resume(group);
            }
        } else if STOPS.has(signo) {
            Self::discard(group, SigSet::of(sig::CONT));
        }
        let seen = {
            // A tracer sees signals that are ignored too.
            let own = main.signals.lock();
            own.mask.has(signo) || own.waited_for.has(signo) || (own.trace.is_some() && signo != sig::KILL)
        };
        if !seen && self.ignores(group, signo, origin) {
            return Ok(false);
        }
        let limit = usize::try_from(self.rlimit(rlimit::SIGPENDING)).unwrap_or(usize::MAX);
        let mut own = main.signals.lock();
        let pending = if target.is_some() { &mut own.pending } else { &mut group.pending };
        if signo < sig::RT_MIN && pending.set().has(signo) {
            return Ok(false);
        }
        if signo >= sig::RT_MIN && pending.queued() >= limit {
            if info.code != SI_USER && info.code != SI_KERNEL {
                return Err(Errno::EAGAIN);
            }
            pending.add_bare(signo);
        } else {
            pending.add(info);
        }
        drop(own);
        self.wake_for(group, main, target.is_some(), signo, origin);
        Ok(true)
    }

    /// Finds a thread to take the signal and tells it; a fatal signal ends the process at once (`complete_signal`).
    fn wake_for(&self, group: &mut GroupSignals, main: &Task, to_thread: bool, signo: i32, origin: Origin) {
        let wants = |task: &Task| {
            let own = task.signals.lock();
            signo == sig::KILL || (!own.mask.has(signo) && own.stops.standing == Standing::Running)
        };
        let is_main = wants(main);
        let chosen = if is_main {
            None
        } else if to_thread {
            return;
        } else {
            match group.threads.iter().find(|t| wants(t)) {
                Some(task) => Some(Arc::clone(task)),
                None => return,
            }
        };
        let chosen: &Task = chosen.as_deref().unwrap_or(main);
        let fatal = group.actions.get(signo).handler == SIG_DFL
            && matches!(Disposition::of(signo), Disposition::Terminate | Disposition::Core)
            && (!self.is_shielded() || (signo == sig::KILL && origin == Origin::Outside))
            && !chosen.signals.lock().waited_for.has(signo)
            && (signo == sig::KILL || !chosen.is_traced());
        if fatal {
            end_process(group, WaitStatus::signaled(signo, false));
        } else {
            chosen.notify(work::SIGNAL);
        }
    }

    /// A shielded init is not continued from inside either, because it cannot be stopped.
    fn ignores_continue(&self, origin: Origin) -> bool {
        self.is_shielded() && origin == Origin::Inside
    }

    /// Takes pending signals off every queue.
    pub(crate) fn discard(group: &mut GroupSignals, set: SigSet) {
        group.pending.discard(set);
        for thread in &group.threads {
            thread.signals.lock().pending.discard(set);
        }
    }

    /// Ends a stop; the stop's signal if there was one to report the end of.
    fn resume(group: &mut GroupSignals) -> Option<i32> {
        let was = core::mem::replace(&mut group.stop, StopState::Running);
        for thread in &group.threads {
            let mut own = thread.signals.lock();
            own.stops.pending = false;
            own.stops.dequeued = false;
            own.stops.joined = false;
            if own.trace.as_ref().is_some_and(|t| t.seized) {
                super::stop::trap_notify(thread, &mut own);
            } else if own.stops.standing == Standing::Stopped {
                own.stops.standing = Standing::Running;
                thread.sleeper().wake();
            }
            super::stop::recalc_stop(thread, &own);
            recalc(group, thread, &own);
        }
        (was != StopState::Running).then_some(sig::CONT)
    }
}

impl Task {
    /// Sends a signal to this thread.
    pub fn send(&self, info: SigInfo, origin: Origin) -> Result<()> {
        self.group().send_signal(Some(self), info, origin).map(drop)
    }

    /// Sends a signal of the kernel to this thread (SIGPIPE, SIGXFSZ).
    pub fn send_to_self(&self, signal: i32) {
        // Full queues exist for real-time signals alone.
        let _ = self.send(SigInfo::kernel(signal, SI_KERNEL), Origin::Inside);
    }

    /// Sends a signal that cannot be refused: a blocked or ignored one gets the default action, and ends init too
    /// (`force_sig_info`).
    pub(crate) fn force_signal(&self, info: SigInfo) {
        let mut group = self.group().signals.lock();
        let mut own = self.signals.lock();
        let blocked = own.mask.has(info.signo);
        let action = group.actions.get(info.signo);
        if blocked || action.handler == SIG_IGN {
            group.actions.set(info.signo, SigAction { handler: SIG_DFL, ..action });
            own.mask = own.mask.without(SigSet::of(info.signo));
        }
        // A tracer is asked before the process ends.
        let fatal = own.trace.is_none() && (blocked || matches!(action.handler, SIG_DFL | SIG_IGN));
        own.pending.add(info);
        drop(own);
        if fatal {
            end_process(&mut group, WaitStatus::signaled(info.signo, false));
        } else {
            self.notify(work::SIGNAL);
        }
    }

    /// As [`Task::force_signal`], and no handler runs (`force_fatal_sig`): a signal frame could not be written.
    pub(crate) fn force_fatal(&self, signo: i32) {
        end_process(&mut self.group().signals.lock(), WaitStatus::signaled(signo, false));
    }
}

impl Kernel {
    /// Sends a signal of the kernel to every process of a group.
    pub fn signal_process_group(&self, pgid: i32, signal: i32) {
        let members = self.task_set().members(pgid);
        for group in members {
            let _ = group.send(SigInfo::kernel(signal, SI_KERNEL), Origin::Inside);
        }
    }

    /// Sends a signal to init from outside. A signal that a shielded init does not handle is dropped, but for SIGKILL and
    /// SIGSTOP (`pid_namespaces(7)`).
    pub fn signal_init(&self, signal: i32) {
        if let Some(init) = self.process(1) {
            let _ = init.send(SigInfo::user(signal, SI_USER, 0, 0), Origin::Outside);
        }
    }

    /// Sends a signal to the foreground process group of init's terminal, or to init without one.
    pub fn signal_foreground(&self, signal: i32) {
        let terminal = {
            let set = self.task_set();
            let sid = set.processes.get(&1).map_or(0, |p| p.sid);
            set.sessions.get(&sid).and_then(|s| s.terminal.clone())
        };
        match terminal.map(|t| t.foreground()) {
            Some(pgid) if pgid > 0 => {
                let members = self.task_set().members(pgid);
                for group in members {
                    let _ = group.send(SigInfo::user(signal, SI_USER, 0, 0), Origin::Outside);
                }
            }
            _ => self.signal_init(signal),
        }
    }

    /// Ends every process with SIGKILL, init included.
    pub fn kill_all(&self) {
        let groups: Vec<_> = {
            let mut set = self.task_set();
            set.closed = true;
            set.processes.values().map(|p| Arc::clone(&p.group)).collect()
        };
        for group in groups {
            group.end(WaitStatus::signaled(sig::KILL, false));
        }
    }
}
