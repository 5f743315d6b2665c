//! The thread that reaps stub processes and tells their spaces.
//!
//! Stubs raise no `SIGCHLD`, so the wait for them (`__WCLONE`) takes no other child of the Sentry.
//!
//! It also holds a reserve of memory for the case that the host kills a stub for want of it while a worker copies into
//! that very stub. The copy keeps the dead stub's memory in being and waits for a page of its own; a kernel that finds
//! none takes the next victim, which may be the Sentry. So the reserve is given back as soon as the death is seen.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hostsys::process::{self, Exit};
use hostsys::reserve::Reserve;
use parking_lot::Mutex;
use platform::Cause;

use crate::Inner;
use crate::agent::{Call, Process};

/// How much memory is held for the end of a copy, in bytes.
const RESERVE: usize = 64 << 10;

/// The living stub processes.
#[derive(Debug, Default)]
pub struct Registry {
    processes: Mutex<HashMap<i32, Arc<Process>>>,
    /// Processes that are being cloned and not registered yet.
    nr_births: AtomicUsize,
    reserve: Mutex<Option<Reserve>>,
}

/// While it lives, an unknown child that died may still be registered.
#[derive(Debug)]
pub struct Birth<'a>(&'a Registry);

impl Drop for Birth<'_> {
    fn drop(&mut self) {
        self.0.nr_births.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Registry {
    pub fn birth(&self) -> Birth<'_> {
        self.nr_births.fetch_add(1, Ordering::AcqRel);
        Birth(self)
    }

    pub fn register(&self, process: &Arc<Process>) {
        self.processes.lock().insert(process.pid, Arc::clone(process));
    }

    fn find(&self, pid: i32) -> Option<Arc<Process>> {
        self.processes.lock().get(&pid).cloned()
    }

    /// Takes the reserve if there is none. Not before the Sentry is in its control group, which is to be charged.
    pub fn refill(&self) {
        let mut reserve = self.reserve.lock();
        if reserve.is_none() {
            *reserve = Reserve::take(RESERVE).ok();
        }
    }

    /// Kills every stub.
    pub fn kill_all(&self) {
        let all: Vec<_> = self.processes.lock().values().cloned().collect();
        for process in all {
            process.kill(Cause::HostSignal(libc::SIGKILL));
        }
    }
}

/// Reaps until no stub is left, which is after the zygote is dead.
pub fn run(inner: &Arc<Inner>) {
    loop {
        let (pid, exit) = match process::wait_any(true, false) {
            Ok(dead) => dead,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(_) => return,
        };
        let process = inner.reaper.find(pid);
        if process.is_none() && inner.reaper.nr_births.load(Ordering::Acquire) > 0 {
            // It may be about to be registered.
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let by_host = process.as_ref().is_some_and(|process| !process.is_condemned());
        if by_host && exit == Exit::Signal(libc::SIGKILL) {
            inner.reaper.reserve.lock().take();
        }
        if let Some(process) = &process {
            bury(inner, process, exit);
        }
        let _ = process::wait_pid(pid, true, true);
        if let Some(process) = process {
            inner.reaper.processes.lock().remove(&pid);
            for group in process.groups.lock().drain(..) {
                inner.arena.return_group(group);
            }
        }
    }
}

/// Tells everyone who waits for a process that it is dead.
fn bury(inner: &Arc<Inner>, process: &Process, exit: Exit) {
    process.mark_gone(match exit {
        Exit::Signal(signal) => Cause::HostSignal(signal),
        Exit::Code(_) => Cause::Protocol("the stub ended by itself"),
    });
    process.let_go();
    process.mark_reaped();
    inner.listener.forget(process.pid);
    inner.running.poll();
    // Someone may sleep in the listener until this very process reports. A report of the zygote, which is asked for
    // nothing, wakes whoever sleeps there. By a thread of its own: the zygote may be at work for someone who in turn
    // waits for us.
    if inner.listener.is_receiving() && process.pid != inner.zygote.pid {
        let inner = Arc::clone(inner);
        let nudge = move || inner.zygote.order(&inner.listener, &[] as &[Call], None);
        let _ = std::thread::Builder::new().name("stub-nudge".into()).spawn(nudge);
    }
}
