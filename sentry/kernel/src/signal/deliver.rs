//! Delivery: what a task does with its signals on the way back to its application.

use std::sync::Arc;

use abi::process::WaitStatus;
use abi::signal::{SA_NODEFER, SA_RESETHAND, SA_RESTART, SIG_DFL, SIG_IGN, SigAction, SigInfo, SigSet, sig};
use sentry_base::Errno;

use super::send::end_process;
use super::{Disposition, STOPS, frame, recalc, stop};
use crate::task::work;
use crate::{Current, Restart, Task, TaskState, ptrace};

/// The number of `restart_syscall`.
const NR_RESTART_SYSCALL: u64 = 219;
/// The length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// How the way back goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Resume,
    Exit,
}

/// Does all work of a task that is about to go back to its application: stops, signals, restarts.
pub(crate) async fn interrupt(cx: &mut Current) -> Outcome {
    let task = Arc::clone(&cx.task);
    task.set_state(TaskState::Interrupt);
    loop {
        let work = task.work();
        if work & work::KILL != 0 {
            return Outcome::Exit;
        }
        if work & work::STOP != 0 {
            stop::stop(cx).await;
            continue;
        }
        if work & work::SIGNAL == 0 {
            break;
        }
        let Some(info) = next_signal(cx) else { continue };
        let info = if task.is_traced() && info.signo != sig::KILL {
            match Box::pin(ptrace::signal_stop(cx, info)).await {
                Some(info) => info,
                None => continue,
            }
        } else {
            info
        };
        let action = take_action(&task, info.signo);
        match action.handler {
            SIG_IGN => {}
            SIG_DFL => default_action(cx, info.signo),
            _ => {
                cx.settle_state().await;
                run_handler(cx, &info, &action);
                if task.is_traced() {
                    Box::pin(ptrace::after_handler(cx)).await;
                }
            }
        }
    }
    // No handler ran, or the last one's frame holds the outcome already.
    match cx.restart.take() {
        None => {}
        Some(Restart::Block) => {
            cx.regs.rax = NR_RESTART_SYSCALL;
            cx.regs.rip = cx.regs.rip.wrapping_sub(SYSCALL_LEN);
        }
        Some(Restart::Sys | Restart::NoIntr | Restart::NoHand) => again(cx),
    }
    if task.work() & work::RESTORE_MASK != 0 {
        task.clear_work(work::RESTORE_MASK);
        let saved = task.signals.lock().saved_mask.take();
        if let Some(saved) = saved {
            task.set_signal_mask(saved);
        }
    }
    Outcome::Resume
}

/// Makes the call again when the application goes on.
fn again(cx: &mut Current) {
    cx.regs.rax = cx.syscall_nr;
    cx.regs.rip = cx.regs.rip.wrapping_sub(SYSCALL_LEN);
}

/// Takes the next signal that is not blocked.
fn next_signal(cx: &Current) -> Option<SigInfo> {
    let task = &cx.task;
    let mut group = task.group().signals.lock();
    let mut own = task.signals.lock();
    let wanted = SigSet(!own.mask.0);
    let info = own.pending.take(wanted).or_else(|| group.pending.take(wanted));
    recalc(&group, task, &own);
    let info = info?;
    own.stops.dequeued |= STOPS.has(info.signo);
    drop(own);
    drop(group);
    Some(task.group().timers.taken(task.group(), info))
}

/// The action of a signal that is delivered now.
fn take_action(task: &Task, signo: i32) -> SigAction {
    let group = task.group().signals.lock();
    let action = group.actions.get(signo);
    if action.flags & SA_RESETHAND != 0 && !matches!(action.handler, SIG_DFL | SIG_IGN) {
        group.actions.set(signo, SigAction { handler: SIG_DFL, ..action });
    }
    action
}

fn default_action(cx: &Current, signo: i32) {
    let group = cx.task.group();
    match Disposition::of(signo) {
        Disposition::Ignore | Disposition::Continue => {}
        _ if group.is_shielded() => {}
        Disposition::Stop => {
            // A stop from the terminal would leave an orphaned group without anybody to continue it.
            let orphaned = signo != sig::STOP && {
                let set = group.kernel().task_set();
                set.is_orphaned(group.pgid(), None)
            };
            if !orphaned {
                group.begin_stop(&cx.task, signo);
            }
        }
        Disposition::Terminate | Disposition::Core => {
            end_process(&mut group.signals.lock(), WaitStatus::signaled(signo, false));
        }
    }
}

/// Puts a handler in the way: the application goes on there. The extended state has to be settled.
fn run_handler(cx: &mut Current, info: &SigInfo, action: &SigAction) {
    match cx.restart.take() {
        None => {}
        Some(Restart::NoIntr) => again(cx),
        Some(Restart::Sys) if action.flags & SA_RESTART != 0 => again(cx),
        Some(_) => cx.regs.rax = Errno::EINTR.to_rax(),
    }
    let task = Arc::clone(&cx.task);
    let (mask, saved, alt_stack) = {
        let mut own = task.signals.lock();
        (own.mask, own.saved_mask.take(), own.alt_stack)
    };
    task.clear_work(work::RESTORE_MASK);
    if frame::push(cx, info, action, saved.unwrap_or(mask), alt_stack).is_err() {
        // No room for the frame. Where SIGSEGV is what could not be delivered its handler is no help.
        if info.signo == sig::SEGV {
            task.force_fatal(sig::SEGV);
        } else {
            task.force_signal(SigInfo::kernel(sig::SEGV, abi::signal::SI_KERNEL));
        }
        return;
    }
    let mut blocked = mask.union(action.mask);
    if action.flags & SA_NODEFER == 0 {
        blocked = blocked.union(SigSet::of(info.signo));
    }
    task.set_signal_mask(blocked);
}
