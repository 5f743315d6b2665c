//! A task's life: run application code, answer its traps, do its pending work, until it ends.

use core::fmt::Write;
use core::future::poll_fn;
use std::sync::Arc;

use abi::process::WaitStatus;
use abi::signal::{BUS_ADRERR, SEGV_MAPERR, SigInfo, sig};
use platform::{Prot, TrapEvent};
use sentry_base::{Errno, WaitClass};
use sentry_mm::FaultOutcome;

use crate::ptrace::{self, mode};
use crate::seccomp::{self, Gate};
use crate::signal::{FaultRecord, Outcome, interrupt};
use crate::task::VforkGate;
use crate::{Call, Current, Row, Stop, SysResult, TaskState, TraceSink, exit, midway, user_dispatch};

/// Traps in a row that a worker waits for before it looks at timers and other tasks.
const LINGERS: u32 = 16;

/// TF of RFLAGS.
const TRAP_FLAG: u64 = 0x100;

/// Runs a task from its first instruction to its end.
pub(crate) async fn run(mut cx: Current) {
    cx.task.set_kicker(cx.context.kicker());
    let mut lingered = 0;
    // The thread is between instructions of a detour, and is to step out of them before anything else.
    let mut midway = false;
    loop {
        if !midway {
            if cx.task.work() != 0 || cx.restart.is_some() {
                cx.settle_call();
                if interrupt(&mut cx).await == Outcome::Exit {
                    break;
                }
            }
            if !cx.task.enter_app() {
                continue;
            }
        }
        cx.task.set_state(TaskState::App);
        cx.task.cpu.enter_app();
        let forced = midway || forces_trap(&cx);
        if forced {
            cx.regs.eflags |= TRAP_FLAG;
        }
        cx.update_answers();
        cx.follow();
        cx.give_results();
        // A worker with nothing else to do waits for the next trap itself: that is quicker than to be woken for it.
        let may_linger = lingered < LINGERS && !cx.task.kernel().executor().has_work();
        cx.context.may_linger(may_linger);
        lingered = if may_linger { lingered + 1 } else { 0 };
        let event = poll_fn(|poller| {
            let event = cx.context.poll_switch(poller, &mut cx.regs);
            if event.is_pending() {
                lingered = 0;
            }
            event
        })
        .await;
        if forced {
            cx.regs.eflags &= !TRAP_FLAG;
        }
        cx.task.leave_app();
        cx.take_defaulted();
        cx.task.cpu.leave_app();
        cx.task.set_state(TaskState::Syscall);
        if event == TrapEvent::Undelivered {
            cx.settle_call();
            continue;
        }
        cx.forget_results();
        cx.absorb(event);
        if event != TrapEvent::Syscall && midway::settle(&mut cx, &event, &mut midway) {
            continue;
        }
        match event {
            TrapEvent::Undelivered => {}
            TrapEvent::Syscall => syscall(&mut cx).await,
            TrapEvent::Fault { addr, access } => {
                fault(&mut cx, addr, access);
            }
            TrapEvent::Exception(info) => {
                cx.task.force_signal(SigInfo::fault(info.signo, info.code, info.addr));
            }
            TrapEvent::Interrupted => {}
            TrapEvent::Died(cause) => {
                let kernel = Arc::clone(cx.task.kernel());
                kernel.record_host_death(&cx.task, cause);
                cx.task.group().end(WaitStatus::signaled(sig::KILL, false));
            }
        }
    }
    if cx.task.is_traced() {
        let status = exit::status_of(&cx.task);
        Box::pin(ptrace::exit_stop(&mut cx, status.0)).await;
    }
    exit::exit(cx);
}

/// The tracer wants single steps, and the trap flag is not the application's own.
fn forces_trap(cx: &Current) -> bool {
    cx.task.trace_mode() & mode::STEP != 0 && cx.regs.eflags & TRAP_FLAG == 0
}

/// After a call that has made a child: the tracer learns of it, and a parent in `vfork` waits.
async fn after_clone(cx: &mut Current) {
    if let Some((event, tid)) = cx.new_child.take() {
        Box::pin(ptrace::child_stop(cx, event, tid)).await;
    }
    if let Some((gate, tid)) = cx.vfork.take() {
        wait_for_vfork(cx, &gate).await;
        if cx.task.is_traced() && gate.is_open() {
            Box::pin(ptrace::vfork_done(cx, tid)).await;
        }
    }
}

/// Waits until a child made with `CLONE_VFORK` has another image or is gone; only a fatal signal ends the wait early.
async fn wait_for_vfork(cx: &mut Current, gate: &VforkGate) {
    cx.task.set_state(TaskState::VforkWait);
    loop {
        cx.task.sleeper().arm();
        if gate.is_open() || cx.task.sleeper().is_killed() {
            return;
        }
        cx.sleep(WaitClass::Killable, None).await;
    }
}

/// The call's number. Linux takes it as an `int`.
fn number(cx: &Current) -> u64 {
    cx.regs.orig_rax & 0xffff_ffff
}

async fn syscall(cx: &mut Current) {
    cx.injection.call();
    if user_dispatch::catches(cx) {
        return;
    }
    if cx.task.trace_mode() & (mode::CALLS | mode::EMULATED) != 0 && !Box::pin(ptrace::calls_begin(cx)).await
    {
        Box::pin(ptrace::calls_end(cx)).await;
        return;
    }
    cx.syscall_nr = number(cx);
    let gate = if cx.task.seccomp_mode() == 0 { Gate::Pass } else { Box::pin(seccomp::enter(cx)).await };
    // A tracer that a filter asked may have changed the call.
    let nr = number(cx);
    let args = cx.regs.syscall_args();
    cx.syscall_nr = nr;
    cx.task.note_call(nr);
    let row = cx.task.kernel().table().row(nr).copied();
    let result = match gate {
        Gate::Answer(result) => result,
        Gate::Pass => match cx.task.kernel().trace() {
            None => call(cx, row, nr, args).await,
            Some(trace) => Box::pin(traced(cx, row, nr, args, trace)).await,
        },
    };
    match result {
        Ok(value) => cx.regs.rax = value,
        Err(Stop::Errno(errno)) => cx.regs.rax = errno.to_rax(),
        Err(Stop::Restart(restart)) => {
            cx.regs.rax = Errno::EINTR.to_rax();
            cx.restart = Some(restart);
        }
        Err(Stop::RegistersSet) => {}
    }
    if cx.new_child.is_some() || cx.vfork.is_some() {
        after_clone(cx).await;
    }
    if cx.task.trace_mode() & (mode::CALLS | mode::STEP) != 0 {
        cx.settle_call();
        Box::pin(ptrace::calls_end(cx)).await;
    }
}

async fn call(cx: &mut Current, row: Option<Row>, nr: u64, args: [u64; 6]) -> SysResult {
    let Some(row) = row else {
        let name = cx.task.kernel().table().name(nr);
        cx.task.kernel().count_unsupported(name, &cx.task);
        return Err(Stop::Errno(Errno::ENOSYS));
    };
    match (row.call)(cx, args) {
        Call::Done(result) => result,
        Call::Wait(future) => future.await,
    }
}

/// A call with a line in the trace: `[tid comm] name(args) = result`.
async fn traced(cx: &mut Current, row: Option<Row>, nr: u64, args: [u64; 6], trace: TraceSink) -> SysResult {
    let comm = cx.task.comm();
    let mut line = format!(
        "[{} {}] {}(",
        cx.task.tid(),
        String::from_utf8_lossy(&comm),
        cx.task.kernel().table().name(nr)
    );
    match row {
        Some(row) => {
            for (index, (arg, raw)) in row.args.iter().zip(args).enumerate() {
                if index > 0 {
                    line.push_str(", ");
                }
                (arg.show)(cx, raw, &mut line);
            }
        }
        None => {
            let _ = write!(line, "{:#x}, {:#x}, {:#x}, ...", args[0], args[1], args[2]);
        }
    }
    let result = call(cx, row, nr, args).await;
    let _ = match &result {
        Ok(value) if *value > i32::MAX as u64 => write!(line, ") = {value:#x}"),
        Ok(value) => write!(line, ") = {value}"),
        Err(Stop::Errno(errno)) => write!(line, ") = -1 {errno}"),
        Err(Stop::Restart(restart)) => write!(line, ") = ? restart {restart:?}"),
        Err(Stop::RegistersSet) => write!(line, ") = ?"),
    };
    trace(&line);
    result
}

/// A page fault that the host could not resolve. True if it is resolved; else a signal is on its way.
pub(crate) fn fault(cx: &mut Current, addr: u64, access: Prot) -> bool {
    let info = match cx.task.mm().fault(addr, access) {
        FaultOutcome::Resolved => return true,
        FaultOutcome::Segv(code) => SigInfo::fault(sig::SEGV, code, addr),
        FaultOutcome::Bus => SigInfo::fault(sig::BUS, BUS_ADRERR, addr),
    };
    let present = u64::from(info.code != SEGV_MAPERR);
    let write = u64::from(access.contains(Prot::WRITE)) << 1;
    let fetch = u64::from(access.contains(Prot::EXEC)) << 4;
    cx.last_fault = FaultRecord { trapno: 14, err: 4 | present | write | fetch, cr2: addr };
    cx.task.force_signal(info);
    false
}
