//! The stops that a tracee makes: for signals, system calls, events, and stops of its whole process.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::signal::{CLD_STOPPED, CLD_TRAPPED, SA_NOCLDSTOP, SI_USER, SIG_IGN, SigInfo, TRAP_BRKPT, sig};
use abi::time::ticks;
use sentry_base::{Errno, Events, WaitClass};

use super::regs::{show_restart, take_restart};
use super::{Standing, StopRecord, mode, options};
use crate::group::StopState;
use crate::no_space::NoContext;
use crate::signal::{Origin, recalc};
use crate::task::work;
use crate::{Current, Task, TaskState, ThreadGroup};

/// What a stop tells the tracer.
struct Report {
    /// The wait status without its low byte.
    code: i32,
    /// `CLD_TRAPPED`, or `CLD_STOPPED` for a stop of the process.
    why: i32,
    message: u64,
    info: Option<SigInfo>,
    /// The task is ending: only its tracer or SIGKILL makes it go on.
    ending: bool,
}

/// How the tracer lets a tracee go on.
#[derive(Debug, Default)]
struct Resumed {
    /// The signal that it wants delivered; 0 for none.
    signo: i32,
    /// The information that it has left (`PTRACE_SETSIGINFO`).
    info: Option<SigInfo>,
}

/// Stops until the tracer says to go on (`ptrace_stop`).
async fn stop(cx: &mut Current, report: Report) -> Resumed {
    // The tracer may read and replace it.
    cx.settle_state().await;
    let task = Arc::clone(&cx.task);
    let group = Arc::clone(task.group());
    let Report { code, why, message, info, ending } = report;
    let (tracer, completed) = {
        let _signals = group.signals.lock();
        let killed = !ending && task.work() & work::KILL != 0;
        let mut own = task.signals.lock();
        let own = &mut *own;
        let Some(trace) = own.trace.as_mut().filter(|_| !killed) else { return Resumed::default() };
        trace.report = Some(code);
        trace.message = message;
        trace.info = info;
        trace.inject = 0;
        let tracer = Arc::clone(&trace.tracer);
        if why == CLD_STOPPED && own.stops.pending {
            own.stops.pending = false;
            own.stops.joined = true;
        }
        own.stops.trap = false;
        if code >> 8 == options::EVENT_STOP {
            own.stops.notify = false;
        }
        show_restart(cx);
        cx.context.will_block();
        let context = core::mem::replace(&mut cx.context, Box::new(NoContext));
        *task.trace_stop.lock() = Some(StopRecord { regs: cx.regs, context });
        own.stops.standing = Standing::Traced;
        (tracer, why == CLD_STOPPED)
    };
    let completed = completed.then(|| ThreadGroup::stop_completed(&mut group.signals.lock())).flatten();
    task.set_state(TaskState::Traced);
    tell_tracer(&task, &tracer, why, code);
    if let Some(signo) = completed
        && tracer.pid() != group.ppid()
    {
        group.report_to_parent(CLD_STOPPED, signo);
    }
    let class = if ending { WaitClass::Uninterruptible } else { WaitClass::Killable };
    loop {
        task.sleeper().arm();
        let running = task.signals.lock().stops.standing == Standing::Running;
        if running || (!ending && task.sleeper().is_killed()) {
            break;
        }
        cx.sleep(class, None).await;
    }
    let resumed = {
        let signals = group.signals.lock();
        let mut own = task.signals.lock();
        own.stops.standing = Standing::Running;
        let detach_signal = core::mem::take(&mut own.detach_signal);
        let resumed = match &mut own.trace {
            Some(trace) => {
                trace.report = None;
                trace.message = 0;
                Resumed { signo: core::mem::take(&mut trace.inject), info: trace.info.take() }
            }
            None => Resumed { signo: detach_signal, info: None },
        };
        recalc(&signals, &task, &own);
        resumed
    };
    if let Some(record) = task.trace_stop.lock().take() {
        cx.regs = record.regs;
        cx.context = record.context;
    }
    take_restart(cx);
    task.set_state(if ending { TaskState::Exiting } else { TaskState::Interrupt });
    resumed
}

/// SIGCHLD for the tracer, and an end to its wait (`do_notify_parent_cldstop`).
fn tell_tracer(task: &Task, tracer: &Arc<Task>, why: i32, code: i32) {
    let group = tracer.group();
    let action = group.actions().get(sig::CHLD);
    if action.handler != SIG_IGN && action.flags & SA_NOCLDSTOP == 0 {
        let (utime, stime) = task.cpu_times();
        let status = code & 0x7f;
        let uid = task.creds().uid;
        let info = SigInfo::child(
            sig::CHLD,
            why,
            tracer.show_pid(task.tid()),
            uid,
            status,
            ticks(utime),
            ticks(stime),
        );
        let _ = group.send(info, Origin::Inside);
    }
    group.child_events.notify(Events::IN);
}

/// A stop with information of its own making (`ptrace_do_notify`).
async fn notify(cx: &mut Current, signo: i32, code: i32, why: i32, message: u64) -> i32 {
    let info = SigInfo::user(signo, code, cx.task.tid(), cx.task.creds().uid);
    stop(cx, Report { code, why, message, info: Some(info), ending: false }).await.signo
}

/// A stop for a signal that is about to be delivered; what to deliver instead, `None` for nothing (`ptrace_signal`).
pub(crate) async fn signal_stop(cx: &mut Current, info: SigInfo) -> Option<SigInfo> {
    let task = Arc::clone(&cx.task);
    task.signals.lock().stops.dequeued = true;
    let report = Report { code: info.signo, why: CLD_TRAPPED, message: 0, info: Some(info), ending: false };
    let tracer = task.signals.lock().trace.as_ref().map(|t| Arc::clone(&t.tracer));
    if tracer.is_none() || task.work() & work::KILL != 0 {
        return Some(info);
    }
    let Resumed { signo, info: changed } = stop(cx, report).await;
    if signo == 0 {
        return None;
    }
    let mut info = changed.unwrap_or(info);
    if info.signo != signo {
        let (pid, uid) = tracer.map_or((0, 0), |t| (t.pid(), t.creds().uid));
        info = SigInfo::user(signo, SI_USER, pid, uid);
    }
    let group = task.group().signals.lock();
    let mut own = task.signals.lock();
    if own.mask.has(signo) || task.work() & work::KILL != 0 {
        own.pending.add(info);
        recalc(&group, &task, &own);
        return None;
    }
    Some(info)
}

/// What a tracee does about a stop of its process, or because its tracer interrupts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// The task has no tracer, or nothing to stop for.
    Nothing,
    /// It has stopped, and goes on.
    Stopped,
}

/// Stops where job control or the tracer asks for it (`do_jobctl_trap`).
pub(crate) async fn group_stop(cx: &mut Current) -> Group {
    let task = Arc::clone(&cx.task);
    let (seized, signo) = {
        let group = task.group().signals.lock();
        let mut own = task.signals.lock();
        let Some(seized) = own.trace.as_ref().map(|t| t.seized) else { return Group::Nothing };
        if own.stops.pending {
            own.stops.trap = true;
        }
        if !own.stops.trap && !own.stops.notify {
            return Group::Nothing;
        }
        let signo = match group.stop {
            StopState::Running if seized => sig::TRAP,
            StopState::Running if own.stops.signo == 0 => sig::STOP,
            _ => own.stops.signo,
        };
        (seized, signo)
    };
    if seized {
        let code = signo | options::EVENT_STOP << 8;
        notify(cx, signo, code, CLD_STOPPED, 0).await;
    } else {
        let report = Report { code: signo, why: CLD_STOPPED, message: 0, info: None, ending: false };
        stop(cx, report).await;
    }
    Group::Stopped
}

/// The option of an event, if the tracer has set it.
fn wants(task: &Task, event: i32) -> bool {
    task.is_traced() && task.signals.lock().trace.as_ref().is_some_and(|t| t.options & (1 << event) != 0)
}

async fn event(cx: &mut Current, event: i32, message: u64) {
    if wants(&cx.task, event) {
        let code = sig::TRAP | event << 8;
        notify(cx, sig::TRAP, code, CLD_TRAPPED, message).await;
    }
}

/// Which event a new child is to its parent's tracer, if that wants to know of it (`kernel_clone`).
pub(crate) fn new_child(parent: &Task, vfork: bool, exit_signal: i32, untraced: bool) -> Option<i32> {
    let event = if vfork {
        options::EVENT_VFORK
    } else if exit_signal == sig::CHLD {
        options::EVENT_FORK
    } else {
        options::EVENT_CLONE
    };
    (!untraced && wants(parent, event)).then_some(event)
}

/// A thread id as the tracer of `task` sees it.
fn shown(task: &Task, tid: i32) -> u64 {
    let tracer = task.signals.lock().trace.as_ref().map(|t| Arc::clone(&t.tracer));
    u64::from(tracer.map_or(tid, |t| t.show_pid(tid)).cast_unsigned())
}

/// The stop of a parent whose child `tid` has begun to run.
pub(crate) async fn child_stop(cx: &mut Current, kind: i32, tid: i32) {
    let message = shown(&cx.task, tid);
    event(cx, kind, message).await;
}

/// The stop of a parent whose vfork child has left its memory.
pub(crate) async fn vfork_done(cx: &mut Current, tid: i32) {
    let message = shown(&cx.task, tid);
    event(cx, options::EVENT_VFORK_DONE, message).await;
}

/// A new program is in place; the task was `old_tid` before. Without the option an attached tracee gets a SIGTRAP.
pub(crate) async fn exec_stop(cx: &mut Current, old_tid: i32) {
    if wants(&cx.task, options::EVENT_EXEC) {
        event(cx, options::EVENT_EXEC, u64::from(old_tid.cast_unsigned())).await;
        return;
    }
    let seized = cx.task.signals.lock().trace.as_ref().is_none_or(|t| t.seized);
    if !seized {
        let info = SigInfo::user(sig::TRAP, SI_USER, cx.task.tid(), cx.task.creds().uid);
        let _ = cx.task.send(info, Origin::Inside);
    }
}

/// The stop of a task that is about to end with `status`.
pub(crate) async fn exit_stop(cx: &mut Current, status: i32) {
    if !wants(&cx.task, options::EVENT_EXIT) {
        return;
    }
    let code = sig::TRAP | options::EVENT_EXIT << 8;
    let info = SigInfo::user(sig::TRAP, code, cx.task.tid(), cx.task.creds().uid);
    let message = u64::from(status.cast_unsigned());
    stop(cx, Report { code, why: CLD_TRAPPED, message, info: Some(info), ending: true }).await;
}

/// A seccomp filter asks the tracer about a call; false if there is none that wants to know.
pub(crate) async fn seccomp_stop(cx: &mut Current, data: u32) -> bool {
    if !wants(&cx.task, options::EVENT_SECCOMP) {
        return false;
    }
    cx.regs.rax = Errno::ENOSYS.to_rax();
    event(cx, options::EVENT_SECCOMP, u64::from(data)).await;
    true
}

/// A stop at one end of a system call (`ptrace_report_syscall`).
async fn call_stop(cx: &mut Current, message: u64) {
    let good = cx.task.signals.lock().trace.as_ref().is_some_and(|t| t.options & options::TRACESYSGOOD != 0);
    let code = sig::TRAP | if good { 0x80 } else { 0 };
    let signo = notify(cx, sig::TRAP, code, CLD_TRAPPED, message).await;
    if signo != 0 {
        let _ =
            cx.task.send(SigInfo::user(signo, SI_USER, cx.task.tid(), cx.task.creds().uid), Origin::Inside);
    }
}

/// The stop before a system call; false if the call is not to be made, and `rax` is what the tracer has left there
/// (`syscall_trace_enter`).
pub(crate) async fn calls_begin(cx: &mut Current) -> bool {
    cx.regs.rax = Errno::ENOSYS.to_rax();
    let emulated = cx.task.trace_mode.load(Ordering::Relaxed) & mode::EMULATED != 0;
    call_stop(cx, options::EVENTMSG_SYSCALL_ENTRY).await;
    let cancelled = (cx.regs.orig_rax & 0xffff_ffff) as u32 == u32::MAX;
    !emulated && !cancelled && cx.task.work() & work::KILL == 0
}

/// The stop after a system call (`syscall_exit_work`).
pub(crate) async fn calls_end(cx: &mut Current) {
    let mode = cx.task.trace_mode.load(Ordering::Relaxed);
    if mode & mode::STEP != 0 && mode & mode::EMULATED == 0 {
        cx.task.force_signal(SigInfo::fault(sig::TRAP, TRAP_BRKPT, cx.regs.rip));
    } else if mode & mode::CALLS != 0 {
        call_stop(cx, options::EVENTMSG_SYSCALL_EXIT).await;
    }
}

/// A tracee that steps has a handler put in its way: it stops at the handler's first instruction.
pub(crate) async fn after_handler(cx: &mut Current) {
    if cx.task.trace_mode.load(Ordering::Relaxed) & mode::STEP != 0 {
        cx.task.trace_mode.fetch_and(!mode::STEP, Ordering::Relaxed);
        notify(cx, sig::TRAP, sig::TRAP, CLD_TRAPPED, 0).await;
    }
}
