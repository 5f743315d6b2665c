//! The end of tasks and processes (`kernel/exit.c`).

use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::process::WaitStatus;
use abi::signal::{
    CLD_DUMPED, CLD_EXITED, CLD_KILLED, CLD_STOPPED, SA_NOCLDWAIT, SI_KERNEL, SIG_IGN, SigInfo, sig,
};
use abi::time::ticks;
use sentry_base::{Events, MutexGuard, lock::rank};
use sentry_memory::UserMemory;

use crate::group::StopState;
use crate::signal::{Origin, recalc};
use crate::task_set::{TaskSet, Zombie};
use crate::{Current, Kernel, Task, TaskState, ThreadGroup, ptrace, robust};

/// A signal to send once the task set's lock is free.
pub(crate) struct Notice {
    to: Arc<ThreadGroup>,
    /// `None` to wake waiters alone.
    info: Option<SigInfo>,
}

impl Notice {
    pub fn give(self) {
        if let Some(info) = self.info {
            let _ = self.to.send(info, Origin::Inside);
        }
        self.to.child_events.notify(Events::IN);
    }
}

/// The status that a task ends with, once it is on its way out.
pub(crate) fn status_of(task: &Task) -> WaitStatus {
    let group = task.group().signals.lock();
    let own = task.signals.lock();
    // Its own `exit(2)` counts unless the process ends as a whole.
    group.exit.or(own.exit).unwrap_or(WaitStatus(0))
}

/// Ends a task: the last thing that its future does.
pub(crate) fn exit(cx: Current) {
    let task = Arc::clone(&cx.task);
    task.set_state(TaskState::Exiting);
    let kernel = Arc::clone(task.kernel());
    let group = Arc::clone(task.group());
    leave_memory(&task);
    task.leave_sem_undo();
    let ipc = task.ipc_of_made_shm();
    let last = leave_group(&task);
    // A vfork child that ends is in its parent's memory still.
    if last && Arc::strong_count(&task.mm()) <= 2 {
        group.note_peak_resident(task.mm().peak_resident());
    }
    if last {
        group.timers.clear(&kernel);
    }
    // Files are closed and memory is gone before the parent is told, as a waiting parent expects.
    let Current { context, .. } = cx;
    drop(context);
    task.release_resources();
    if let Some(ipc) = ipc {
        task.leave_shm(&ipc);
    }
    task.set_state(TaskState::Dead);
    leave_tree(&kernel, &task, last);
}

/// Lets go of what other tasks may wait for in the memory that they share.
pub(crate) fn leave_memory(task: &Arc<Task>) {
    let robust = task.exit_places.robust_list.swap(0, Ordering::Relaxed);
    if robust != 0 {
        robust::release(task, robust);
    }
    task.kernel().futexes().pi_owner_died(task);
    let clear = task.exit_places.clear_child_tid.swap(0, Ordering::Relaxed);
    if clear != 0 {
        // Written even where nobody waits, as Linux does.
        if task.mm().copy_out(clear, &[0; 4]).is_ok() {
            task.futex_wake_addr(clear, 1);
        }
    }
    task.open_vfork_gate();
}

/// Takes the task out of its process; true if it was the last thread.
fn leave_group(task: &Arc<Task>) -> bool {
    let group = task.group();
    let (utime, stime) = task.cpu_times();
    let (last, report) = {
        let mut signals = group.signals.lock();
        signals.threads.retain(|t| !Arc::ptr_eq(t, task));
        group.dead_utime.fetch_add(utime, Ordering::Relaxed);
        group.dead_stime.fetch_add(stime, Ordering::Relaxed);
        group.dead_io.add(task.io().now());
        task.kernel().count_dead(utime, stime);
        // Signals of the process that this thread was to take are another's now.
        for thread in &signals.threads {
            recalc(&signals, thread, &thread.signals.lock());
        }
        if let Some(exec) = &signals.exec {
            exec.thread.sleeper().wake();
        }
        let own = task.signals.lock().exit.unwrap_or(WaitStatus(0));
        if task.tid() == task.pid() {
            signals.leader_exit = Some(own);
        }
        let last = signals.threads.is_empty();
        if last && signals.exit.is_none() {
            // Every thread called `exit(2)`: the leader's code counts.
            signals.exit = Some(signals.leader_exit.unwrap_or(own));
        }
        (last, ThreadGroup::stop_completed(&mut signals))
    };
    if let Some(signo) = report {
        group.report_to_parent(CLD_STOPPED, signo);
    }
    last
}

/// Takes the task off the tree of processes and tells whoever has to know.
fn leave_tree(kernel: &Arc<Kernel>, task: &Arc<Task>, last: bool) {
    let mut notices = Vec::new();
    let mut hang_ups = Vec::new();
    let mut finished = None;
    let mut released = Vec::new();
    {
        let mut set = kernel.task_set();
        parent_death_signals(&set, task, &mut notices);
        leave_tracees(&mut set, task, &mut notices, &mut released);
        if task.tid() == task.pid() {
            // A thread that executed may have taken the leader's place already.
            if let Ok(process) = set.process_mut(task.pid())
                && Arc::ptr_eq(&process.leader, task)
            {
                process.leader_dead = true;
            }
        } else if set.traces.contains_key(&task.tid()) {
            // The tracer waits for each thread.
            let status = status_of(task);
            if let Some(link) = set.traces.get_mut(&task.tid()) {
                link.zombie = Some(status);
                notices.push(tracer_notice(task, &link.tracer, status));
            }
        } else {
            released.extend(set.tasks.remove(&task.tid()));
            set.give_back(task.tid(), task.group().pid_ns());
        }
        if last {
            end_of_process(&mut set, task, &mut notices, &mut hang_ups, &mut released);
        }
        report_lone_inits(&mut set, &mut notices, &mut released);
        if set.closed && set.processes.values().all(|p| p.zombie.is_some()) {
            finished = kernel.init_status();
        }
        drop(set);
    }
    for terminal in hang_ups {
        terminal.hang_up();
    }
    if last {
        task.group().exit_events.notify(Events::IN | Events::HUP);
    }
    for notice in notices {
        notice.give();
    }
    drop(released);
    if last && let Some(callback) = kernel.take_exit_callback(task.pid()) {
        let status = task.group().signals.lock().exit.unwrap_or(WaitStatus(0));
        callback(status);
    }
    if let Some(status) = finished {
        kernel.finish(status);
    }
}

/// What a tracer is told of the end of a tracee.
fn tracer_notice(task: &Task, tracer: &Task, status: WaitStatus) -> Notice {
    let (code, value) = child_code(status);
    let (utime, stime) = task.cpu_times();
    let ignored = tracer.group().actions().get(sig::CHLD).handler == SIG_IGN;
    let uid = task.creds().uid;
    let info = SigInfo::child(sig::CHLD, code, task.tid(), uid, value, ticks(utime), ticks(stime));
    Notice { to: Arc::clone(tracer.group()), info: (!ignored).then_some(info) }
}

/// A tracer ends: its tracees go on without it, or die with it, and those that have ended become their parents' to wait for.
fn leave_tracees(
    set: &mut SetGuard<'_>,
    task: &Arc<Task>,
    notices: &mut Vec<Notice>,
    released: &mut Vec<Arc<Task>>,
) {
    let (ended, doomed) = ptrace::let_go_of_tracees(set, task);
    for tracee in ended {
        // Its own children are told to init, if it is the one that ends now.
        if tracee.group().ppid() != task.pid() {
            tell_parent(set, tracee.pid(), notices, released);
        }
    }
    for tracee in doomed {
        let info = Some(SigInfo::kernel(sig::KILL, SI_KERNEL));
        notices.push(Notice { to: Arc::clone(tracee.group()), info });
    }
}

/// `PR_SET_PDEATHSIG`: for the children that this thread made.
fn parent_death_signals(set: &TaskSet, task: &Task, notices: &mut Vec<Notice>) {
    let Ok(own) = set.process(task.pid()) else { return };
    for child in &own.children {
        let Ok(child) = set.process(*child) else { continue };
        let signo = child.leader.pdeath_signal.load(Ordering::Relaxed);
        if child.parent_tid == task.tid() && signo != 0 {
            let info = child.group.info_from(signo, abi::signal::SI_USER, task);
            notices.push(Notice { to: Arc::clone(&child.group), info: Some(info) });
        }
    }
}

pub(crate) type SetGuard<'a> = MutexGuard<'a, TaskSet, { rank::TASK_SET }>;

fn end_of_process(
    set: &mut SetGuard<'_>,
    task: &Arc<Task>,
    notices: &mut Vec<Notice>,
    hang_ups: &mut Vec<Arc<dyn sentry_vfs::Terminal>>,
    released: &mut Vec<Arc<Task>>,
) {
    let group = task.group();
    let pid = task.pid();
    let status = group.signals.lock().exit.unwrap_or(WaitStatus(0));
    let is_init = pid == 1;
    if is_init {
        task.kernel().set_init_status(status);
        set.closed = true;
        for process in set.processes.values() {
            if process.group.pid() != 1 {
                process.group.end(WaitStatus::signaled(sig::KILL, false));
            }
        }
    }
    let ends_ns = !is_init && group.is_ns_init();
    if ends_ns {
        // `zap_pid_ns_processes`: everything in the namespace ends with its init.
        group.pid_ns().close();
        for process in set.processes.values() {
            if process.group.pid() != pid && group.pid_ns().local(process.group.pid()) != 0 {
                process.group.end(WaitStatus::signaled(sig::KILL, false));
            }
        }
    }
    reparent_children(set, pid, notices, released);
    orphan_groups_after(set, pid, notices);
    let Ok(process) = set.process_mut(pid) else { return };
    let (utime, stime) = group.cpu_times();
    let (children_utime, children_stime) = group.children_cpu_times();
    let uid = process.leader.creds().uid;
    process.zombie = Some(Zombie { status, utime, stime, children_utime, children_stime, uid });
    process.stop_report = None;
    process.continue_report = false;
    if process.sid == pid
        && let Some(session) = set.sessions.get_mut(&pid)
        && let Some(terminal) = session.terminal.take()
    {
        hang_ups.push(terminal);
    }
    if ends_ns && !group.pid_ns().is_only_init_left() {
        if let Ok(process) = set.process_mut(pid) {
            process.lingers = true;
        }
        set.nr_lingering += 1;
    } else if !is_init {
        tell_parent(set, pid, notices, released);
    }
}

/// Gives the children of `pid` to the nearest subreaper above, or to init.
fn reparent_children(
    set: &mut SetGuard<'_>,
    pid: i32,
    notices: &mut Vec<Notice>,
    released: &mut Vec<Arc<Task>>,
) {
    let Ok(own) = set.process_mut(pid) else { return };
    let children = core::mem::take(&mut own.children);
    if children.is_empty() {
        return;
    }
    let mut ancestor = own.parent;
    let ns = Arc::clone(own.group.pid_ns());
    // Its own children stay with an init that ends: they go without anybody being told.
    let init = ns.init().unwrap_or(1);
    let reaper = loop {
        match set.process(ancestor) {
            _ if init == pid => break init,
            Ok(p) if !p.group.pid_ns().is_same(&ns) => break init,
            Ok(p) if p.zombie.is_none() && p.group.is_subreaper() => break ancestor,
            Ok(p) => ancestor = p.parent,
            Err(_) => break init,
        }
    };
    let reaper_tid = reaper;
    for child in children {
        let before = set.process(child).map_or(0, |p| p.pgid);
        let orphaned_before = set.is_orphaned(before, None);
        set.set_parent(child, reaper, reaper_tid);
        if let Ok(parent) = set.process_mut(reaper) {
            parent.children.push(child);
        }
        if let Ok(process) = set.process(child) {
            // A new parent cannot know what signal the old one asked for.
            process.group.exit_signal.store(sig::CHLD, Ordering::Relaxed);
            if process.zombie.is_some() {
                tell_parent(set, child, notices, released);
            }
        }
        if !orphaned_before && set.is_orphaned(before, None) {
            wake_orphaned(set, before, notices);
        }
    }
}

/// The exit of `pid` may leave its own process group without anybody who could continue it.
fn orphan_groups_after(set: &SetGuard<'_>, pid: i32, notices: &mut Vec<Notice>) {
    let Ok(own) = set.process(pid) else { return };
    let joins = set.process(own.parent).is_ok_and(|p| p.pgid != own.pgid && p.sid == own.sid);
    if joins && set.is_orphaned(own.pgid, Some(pid)) {
        wake_orphaned(set, own.pgid, notices);
    }
}

/// A newly orphaned group with a stopped member gets SIGHUP and SIGCONT.
fn wake_orphaned(set: &TaskSet, pgid: i32, notices: &mut Vec<Notice>) {
    let members = set.members(pgid);
    let stopped = members.iter().any(|g| g.signals.lock().stop != StopState::Running);
    if !stopped {
        return;
    }
    for signo in [sig::HUP, sig::CONT] {
        for member in &members {
            let info = Some(SigInfo::kernel(signo, SI_KERNEL));
            notices.push(Notice { to: Arc::clone(member), info });
        }
    }
}

/// Tells the parent of a zombie, or removes the zombie if the parent does not want to know (`do_notify_parent`).
pub(crate) fn tell_parent(
    set: &mut SetGuard<'_>,
    pid: i32,
    notices: &mut Vec<Notice>,
    released: &mut Vec<Arc<Task>>,
) {
    let Ok(process) = set.process(pid) else { return };
    let Some(zombie) = process.zombie else { return };
    if set.is_traced_elsewhere(pid) {
        // Its tracer comes first.
        if let Some(link) = set.traces.get(&pid) {
            notices.push(tracer_notice(&link.tracee, &link.tracer, zombie.status));
        }
        return;
    }
    let parent = match set.process(process.parent) {
        Ok(parent) if parent.zombie.is_none() => Arc::clone(&parent.group),
        // Init is gone: nobody waits any more.
        _ => {
            released.extend(set.remove_process(pid).map(|p| p.leader));
            return;
        }
    };
    let signo = process.group.exit_signal.load(Ordering::Relaxed);
    let mut reaped = false;
    let mut send = signo != 0;
    if signo == sig::CHLD {
        let action = parent.actions().get(sig::CHLD);
        let traced = set.traces.contains_key(&pid);
        reaped = !traced && (action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0);
        send = action.handler != SIG_IGN;
    }
    let info = send.then(|| {
        let (code, value) = child_code(zombie.status);
        let (pid, uid) = (parent.pid_ns().local(pid), parent.user_ns().show_uid(zombie.uid));
        SigInfo::child(signo, code, pid, uid, value, ticks(zombie.utime), ticks(zombie.stime))
    });
    if reaped {
        released.extend(set.remove_process(pid).map(|p| p.leader));
    }
    notices.push(Notice { to: parent, info });
}

/// Tells the parents of inits that lingered until everybody else in their namespace was gone.
fn report_lone_inits(set: &mut SetGuard<'_>, notices: &mut Vec<Notice>, released: &mut Vec<Arc<Task>>) {
    loop {
        // An init that goes may be the last one that another, above, waits for.
        let lone = set.take_lone_inits();
        if lone.is_empty() {
            return;
        }
        for pid in lone {
            tell_parent(set, pid, notices, released);
        }
    }
}

/// After a process was waited for: inits may be free to be reported.
pub(crate) fn after_wait(kernel: &Kernel) {
    let (mut notices, mut released) = (Vec::new(), Vec::new());
    report_lone_inits(&mut kernel.task_set(), &mut notices, &mut released);
    for notice in notices {
        notice.give();
    }
    drop(released);
}

/// `si_code` and `si_status` of a process that ended with `status`.
pub(crate) fn child_code(status: WaitStatus) -> (i32, i32) {
    match status.signal() {
        Some(signo) if status.dumped_core() => (CLD_DUMPED, signo),
        Some(signo) => (CLD_KILLED, signo),
        None => (CLD_EXITED, status.code().unwrap_or(0)),
    }
}

impl Task {
    /// Ends this thread (`exit(2)`); the process lives on if it has others.
    pub fn exit_thread(&self, code: i32) {
        self.signals.lock().exit = Some(WaitStatus::exited(code));
        self.notify(crate::task::work::KILL);
    }
}
