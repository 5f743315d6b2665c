//! Orders to the agents: the one way in which the Sentry has a stub process do a host call.
//!
//! An agent rests inside a call that its seccomp filter reports to the Sentry. To order, the Sentry writes the order page
//! (which the process maps read-only) and answers that call; the agent does the calls of the page one by one from
//! registers, and reports again. The report's arguments carry the result, so that nothing which the application can
//! write takes part in an exchange: neither what is done nor what came of it. Application threads cannot report: their
//! own filter traps the same call.
//!
//! All agents share one notification descriptor, as filters are inherited. Whoever waits first receives for all and
//! hands out what is not its own.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use hostsys::seccomp::{self, Notification};
use parking_lot::{Condvar, Mutex, RwLock};
use platform::{Cause, DeathWatch, Kept, SpaceError};

use crate::channel::Window;
use crate::layout::{MAX_ORDERS, ORDER_FIRST, ORDER_SIZE, atomic};

/// One host call for an agent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call {
    number: u64,
    arguments: [u64; 6],
    /// Where a child of `clone` goes on, and its argument.
    child: (u64, u64),
}

impl Call {
    pub fn new<const N: usize>(number: i64, arguments: [u64; N]) -> Self {
        let mut call = Self { number: number as u64, ..Self::default() };
        for (slot, value) in call.arguments.iter_mut().zip(arguments) {
            *slot = value;
        }
        call
    }

    /// `clone` with `flags`; the child goes on at stub address `entry` with `argument`.
    pub fn clone_at(flags: u64, parent_tid: u64, entry: u64, argument: u64) -> Self {
        Self { child: (entry, argument), ..Self::new(libc::SYS_clone, [flags, 0, parent_tid]) }
    }
}

impl Call {
    /// An atomic operation of [`atomic`] on the word at `at`. The call before it in the same batch has to make its page
    /// writable.
    pub fn atomic(operation: u64, at: u64, operand: u32, expected: u32) -> Self {
        let arguments = [at, u64::from(operand), u64::from(expected), 0, 0, 0];
        Self { number: atomic::FIRST + operation, arguments, child: (0, 0) }
    }

    /// The call with descriptor `file` where it maps the one that was injected.
    pub fn with_file(mut self, file: u64) -> Self {
        const ANONYMOUS: u64 = libc::MAP_ANONYMOUS as u64;
        if self.number == libc::SYS_mmap as u64 && self.arguments[3] & ANONYMOUS == 0 {
            self.arguments[4] = file;
        }
        self
    }
}

/// A descriptor number that the agent's empty table gives an injected descriptor.
pub const INJECTED: u64 = 0;

/// Writes `calls` into an order page. At most [`MAX_ORDERS`].
pub fn write_orders(page: &Window, calls: &[Call]) {
    debug_assert!(calls.len() <= MAX_ORDERS, "an order page has room for its orders");
    for (index, call) in calls.iter().take(MAX_ORDERS).enumerate() {
        let at = ORDER_FIRST + index * ORDER_SIZE;
        page.store64(at, call.number);
        for (slot, value) in call.arguments.iter().enumerate() {
            page.store64(at + 8 + slot * 8, *value);
        }
        page.store64(at + 56, call.child.0);
        page.store64(at + 64, call.child.1);
    }
    page.store64(0, calls.len().min(MAX_ORDERS) as u64);
}

/// The notification descriptor, shared by all who wait for a report.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    inner: Mutex<Mail>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Mail {
    receiving: bool,
    reports: HashMap<i32, Notification>,
}

impl Listener {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, inner: Mutex::default(), changed: Condvar::new() }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next report of the agent `pid`, or [`SpaceError::Gone`] once `gone` says so.
    pub fn wait(&self, pid: i32, gone: &AtomicBool) -> Result<Notification, SpaceError> {
        let mut mail = self.inner.lock();
        loop {
            if let Some(report) = mail.reports.remove(&pid) {
                return Ok(report);
            }
            if gone.load(Ordering::Acquire) {
                return Err(SpaceError::Gone);
            }
            if mail.receiving {
                self.changed.wait(&mut mail);
                continue;
            }
            mail.receiving = true;
            drop(mail);
            let received = seccomp::receive(self.fd());
            mail = self.inner.lock();
            mail.receiving = false;
            self.changed.notify_all();
            match received {
                Ok(report) if report.tid as i32 == pid => return Ok(report),
                Ok(report) => {
                    mail.reports.insert(report.tid as i32, report);
                }
                // A caller died between its call and our receiving it, or we were interrupted.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR)) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    // Nobody may be left who could report. Let the reaper say so.
                    drop(mail);
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    mail = self.inner.lock();
                }
                Err(error) => return Err(host_error(&error)),
            }
        }
    }

    /// Forgets the reports of a dead agent, and has all who wait look again.
    pub fn forget(&self, pid: i32) {
        self.inner.lock().reports.remove(&pid);
        self.changed.notify_all();
    }

    /// Whether someone waits inside the host call, where only a report can wake it.
    pub fn is_receiving(&self) -> bool {
        self.inner.lock().receiving
    }
}

/// A host error as the trait has it.
pub fn host_error(error: &io::Error) -> SpaceError {
    SpaceError::Host(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A stub process: what outlives its space and contexts, and what the reaper works on.
pub struct Process {
    pub pid: i32,
    /// Set once, when the process is known to be dead.
    pub gone: AtomicBool,
    /// Why, once `gone` is set.
    cause: Mutex<Option<Cause>>,
    /// True until the process is reaped: under a read lock of it the pid names this process and no other.
    unreaped: RwLock<bool>,
    agent: Mutex<Agent>,
    /// Who is to be told when it dies; emptied when its end is wanted.
    watches: Mutex<Vec<DeathWatch>>,
    /// Channel groups, in order of their address in the process.
    pub groups: Mutex<Vec<u64>>,
    /// Slots whose thread is parked and belongs to no context.
    pub spares: Mutex<Vec<u64>>,
    /// What is dropped when the process is dead.
    kept: Mutex<Vec<Kept>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process({})", self.pid)
    }
}

#[derive(Debug)]
struct Agent {
    orders: Window,
    rest: Rest,
}

/// What the Sentry knows of an agent.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// It has not reported yet on its first orders, which are as many as this.
    Born(usize),
    /// This report waits for an answer.
    Reported(u64),
    /// An exchange failed half-way: the process is dead or about to be.
    Lost,
}

impl Process {
    /// Process `pid`, whose agent is about to report on `nr_first` orders.
    pub fn new(pid: i32, orders: Window, group: u64, nr_first: usize) -> Self {
        Self {
            pid,
            gone: AtomicBool::new(false),
            cause: Mutex::new(None),
            unreaped: RwLock::new(true),
            agent: Mutex::new(Agent { orders, rest: Rest::Born(nr_first) }),
            watches: Mutex::new(Vec::new()),
            groups: Mutex::new(vec![group]),
            spares: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Waits until a new agent has carried out its first orders.
    pub fn meet(&self, listener: &Listener) -> Result<(), SpaceError> {
        self.met(&mut self.agent.lock(), listener).map(drop)
    }

    /// The report that waits for an answer.
    fn met(&self, agent: &mut Agent, listener: &Listener) -> Result<u64, SpaceError> {
        match agent.rest {
            Rest::Reported(id) => Ok(id),
            Rest::Lost => Err(SpaceError::Gone),
            Rest::Born(nr_first) => {
                agent.rest = Rest::Lost;
                let report = listener.wait(self.pid, &self.gone)?;
                agent.rest = Rest::Reported(report.id);
                let [_, done, ..] = report.arguments;
                if done == nr_first as u64 {
                    return Ok(report.id);
                }
                self.kill(Cause::Protocol("the host refused what a new process needs"));
                Err(SpaceError::Gone)
            }
        }
    }

    /// Has the agent do `calls` in order, up to the first that fails; returns the result of the last `clone` among them, or
    /// the old value of the last atomic operation.
    ///
    /// A `file` is in the agent's descriptor table as [`INJECTED`] when the first call is made; the calls must close it.
    pub fn order(
        &self,
        listener: &Listener,
        calls: &[Call],
        file: Option<BorrowedFd<'_>>,
    ) -> Result<u64, SpaceError> {
        let mut agent = self.agent.lock();
        match self.exchange(&mut agent, listener, calls, file.as_slice()) {
            Err(Failed { errno, closed: false }) if file.is_some() => {
                let close = [Call::new(libc::SYS_close, [INJECTED])];
                self.exchange(&mut agent, listener, &close, &[]).map_err(|_| SpaceError::Gone)?;
                Err(errno)
            }
            other => other.map_err(|failed| failed.errno),
        }
    }

    /// Has the agent do `calls`, which find `files` from [`INJECTED`] on and must close them. After an error the process
    /// is of no use.
    pub fn order_all(
        &self,
        listener: &Listener,
        calls: &[Call],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), SpaceError> {
        let mut agent = self.agent.lock();
        let mut files = files;
        for some in calls.chunks(MAX_ORDERS) {
            self.exchange(&mut agent, listener, some, files).map_err(|failed| failed.errno)?;
            files = &[];
        }
        Ok(())
    }

    fn exchange(
        &self,
        agent: &mut Agent,
        listener: &Listener,
        calls: &[Call],
        files: &[BorrowedFd<'_>],
    ) -> Result<u64, Failed> {
        let failed = |errno| Failed { errno, closed: true };
        loop {
            let id = self.met(agent, listener).map_err(failed)?;
            write_orders(&agent.orders, calls);
            let add = |(number, file): (u32, &BorrowedFd<'_>), answer| {
                seccomp::add_fd(listener.fd(), id, *file, number, answer)
            };
            let mut numbered =
                files.iter().enumerate().map(|(index, file)| (INJECTED as u32 + index as u32, file));
            let answered = match numbered.next_back() {
                Some(last) => numbered.try_for_each(|file| add(file, false)).and_then(|()| add(last, true)),
                None => seccomp::respond(listener.fd(), id, 0),
            };
            match answered {
                Ok(()) => {
                    agent.rest = Rest::Lost;
                    break;
                }
                // The agent is dead, or the freezer has interrupted the call in which it rests (`cgroups(7)`): then it makes
                // that call again as soon as it runs, and nothing of the orders was done.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    agent.rest = Rest::Lost;
                    let report = listener.wait(self.pid, &self.gone).map_err(failed)?;
                    agent.rest = Rest::Reported(report.id);
                }
                // Nothing was answered: the agent rests where it was.
                Err(error) => return Err(failed(host_error(&error))),
            }
        }
        let report = listener.wait(self.pid, &self.gone).map_err(failed)?;
        agent.rest = Rest::Reported(report.id);
        let [last, done, cloned, ..] = report.arguments;
        let done = usize::try_from(done).unwrap_or(usize::MAX);
        if done >= calls.len() {
            return Ok(cloned);
        }
        let errno = i32::try_from((last as i64).wrapping_neg()).unwrap_or(libc::EIO);
        let closed = calls.iter().take(done).any(|call| call.number == libc::SYS_close as u64);
        Err(Failed { errno: SpaceError::Host(errno), closed })
    }

    /// Does `act` with the pid, if it still names this process.
    pub fn with_pid<T>(&self, act: impl FnOnce(i32) -> T) -> Option<T> {
        let unreaped = self.unreaped.read();
        unreaped.then(|| act(self.pid))
    }

    /// Kills the process for `cause`, which is what its contexts report.
    pub fn kill(&self, cause: Cause) {
        self.cause.lock().get_or_insert(cause);
        // Already dead is as good.
        let _ = self.with_pid(|pid| hostsys::process::kill(pid, libc::SIGKILL));
    }

    /// Whether the platform itself wants it dead, or knows it to be.
    pub fn is_condemned(&self) -> bool {
        self.cause.lock().is_some()
    }

    /// Notes that the process is dead. The first cause stays.
    pub fn mark_gone(&self, cause: Cause) {
        self.cause.lock().get_or_insert(cause);
        self.gone.store(true, Ordering::Release);
        let watches = std::mem::take(&mut *self.watches.lock());
        for tell in watches {
            tell(self.cause());
        }
    }

    /// Has `tell` called when the process dies; at once if it is dead.
    pub fn watch(&self, tell: DeathWatch) {
        self.watches.lock().push(tell);
        if self.is_gone() {
            // It may have died before the push, when nobody will look again.
            self.mark_gone(self.cause());
        }
    }

    /// Drops `kept` when the process is dead, at once if it is.
    pub fn keep(&self, kept: Vec<Kept>) {
        self.kept.lock().extend(kept);
        if self.is_gone() {
            self.let_go();
        }
    }

    /// To be called when it is dead.
    pub fn let_go(&self) {
        let kept = std::mem::take(&mut *self.kept.lock());
        drop(kept);
    }

    /// Tells nobody: the end of the process is wanted.
    pub fn unwatch(&self) {
        self.watches.lock().clear();
    }

    /// To be called right before the pid is given back to the host.
    pub fn mark_reaped(&self) {
        *self.unreaped.write() = false;
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Why the process is gone.
    pub fn cause(&self) -> Cause {
        self.cause.lock().unwrap_or(Cause::HostSignal(libc::SIGKILL))
    }
}

#[derive(Clone, Copy)]
struct Failed {
    errno: SpaceError,
    /// No injected descriptor is left in the agent's table.
    closed: bool,
}
