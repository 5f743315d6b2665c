//! The systrap platform: application code in stub processes on the host, trapped by seccomp.
//!
//! **Purpose.** One host process for each application address space. Every system call of the application ends in a
//! `SIGSYS`, every bad access in a `SIGSEGV`; the handler (stub code in a region that the application cannot map) posts
//! the trap in a channel that is shared with the Sentry, and rests until it is told to return. The host kernel itself
//! writes the registers into the channel, as the signal frame, and takes them from there.
//!
//! **Orders.** Each stub process has one thread more, the agent, that does the host calls (`mmap`, `clone`, ...) which the
//! Sentry orders. See `src/agent.rs`: it keeps everything in registers, obeys a page that is
//! read-only in its process, and reports in the arguments of a call that its seccomp filter hands to the Sentry.
//! Application threads have a second filter that allows them a futex on their own memory and the return from the
//! handler, and nothing else.
//!
//! **Processes.** A zygote is cloned from the Sentry before that has threads, leaves all of its memory and descriptors
//! behind, and is then the parent image of every blank stub; `fork` clones the stub of the forking process. All are
//! children of the Sentry (`CLONE_PARENT`) and die with it: their agents see the notification descriptor go.
//!
//! **Invariants.**
//! 1. No application thread ever runs without the thread filter: it is set before the first return to application code
//!    by code that uses registers alone.
//! 2. Nothing that an agent does depends on memory that the application can write, but for the old value of a word that it
//!    was to change, which it reports.
//! 3. No order names an address of the stub region, but for channel groups, at addresses that the Sentry picks.
//! 4. A channel group goes to another process only after the last one is reaped and its pages are thrown away.
//! 5. A pid is used only under the lock that holds off its reaping.
//!
//! **Lock ranks** (inside `AddressSpace` 120 of the Sentry; none is held while a waker is called): slot and held locks of a
//! space, then the agent of a process, then the listener's mail, then the registry, groups and spares; the running list
//! is taken with none of them held and takes only a thread's own locks inside.
//!
//! **Threat.** Everything in a channel, and the whole memory of the stub but code and order page, is the application's to
//! forge. What it can reach by that is its own registers, its own memory and its own end.
#![allow(
    unsafe_code,
    reason = "maps and reads memory shared with stub processes, and starts the first of them"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "usize is 64 bits on the one architecture that stubs are written for"
)]

mod agent;
mod channel;
mod context;
mod frame;
mod hand;
mod host_calls;
mod known;
mod layout;
mod reaper;
mod space;
mod stub;
mod thread;
mod worker;
mod zygote;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use platform::{AddrRange, AddressSpace, Context, Platform, SpaceError};

pub use host_calls::{HostCall, host_calls};

use crate::agent::{Listener, Process};
use crate::channel::Arena;
use crate::reaper::Registry;
use crate::space::Space;
use crate::thread::Running;

/// How a platform is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// CPUs that the sandbox may use; zero for as many as the host lets the Sentry use.
    pub nr_cpus: usize,
    /// Blank stubs that are kept ready for exec.
    pub nr_blank: usize,
    /// Lets patched code call the stub without a trap.
    pub patch: bool,
}

/// The systrap platform.
#[derive(Debug)]
pub struct Systrap {
    inner: Arc<Inner>,
    stock: Arc<Stock>,
}

/// What spaces and contexts share.
#[derive(Debug)]
pub(crate) struct Inner {
    arena: Arena,
    listener: Listener,
    zygote: Process,
    entries: stub::Entries,
    vdso: Option<AddrRange>,
    running: Running,
    patches: AtomicBool,
    /// Seed of the calls of patched code that take a trap all the same; zero for none.
    slow: AtomicU64,
    answers: AtomicBool,
    reaper: Registry,
}

/// Blank spaces, made ahead of their use by a thread of their own.
#[derive(Debug)]
struct Stock {
    state: Mutex<StockState>,
    changed: Condvar,
    target: usize,
}

#[derive(Debug, Default)]
struct StockState {
    ready: Vec<Space>,
    closed: bool,
}

impl Systrap {
    /// Starts the platform: makes the zygote, then the threads that reap and stock stubs.
    ///
    /// To be called while the process has one thread, and by a thread that lives as long as the sandbox. Reads
    /// `/proc/self/maps` if it can: without it there is no vDSO. Errors name the step that the host refused.
    pub fn new(options: Options) -> io::Result<Arc<Self>> {
        Self::with_maps(options, &std::fs::read_to_string("/proc/self/maps").unwrap_or_default())
    }

    /// Like [`Systrap::new`] for a process that has no `/proc` any more: `maps` is what it has read before from
    /// `/proc/self/maps`.
    pub fn with_maps(options: Options, maps: &str) -> io::Result<Arc<Self>> {
        Self::begin(options, maps)?.finish()
    }

    /// The first part of [`Systrap::with_maps`]: makes the zygote, which gets ready while the caller does other things.
    pub fn begin(options: Options, maps: &str) -> io::Result<Starting> {
        if !has_fsgsbase() {
            return Err(io::Error::other(
                "systrap: the host does not let programs use rdfsbase (Linux 5.9, FSGSBASE)",
            ));
        }
        let arena = Arena::new().map_err(step("making the channel file"))?;
        let vdso = zygote::Vdso::of(maps);
        let image = stub::image(vdso.clock()).map_err(step("making the stub image"))?;
        let entries = stub::Entries::new();
        let group = arena.take_group().ok_or_else(|| io::Error::other("systrap: no channel group"))?;
        let born = zygote::make(&image, &arena, entries, group, &vdso).map_err(step("making the zygote"))?;
        Ok(Starting { options, arena, entries, group, born })
    }
}

/// A platform whose zygote gets ready.
#[derive(Debug)]
pub struct Starting {
    options: Options,
    arena: Arena,
    entries: stub::Entries,
    group: u64,
    born: zygote::Born,
}

impl Starting {
    /// Starts the platform. To be called by the thread that began, while the process still has one thread.
    pub fn finish(self) -> io::Result<Arc<Systrap>> {
        let Self { options, arena, entries, group, born } = self;
        let nr_cpus = if options.nr_cpus == 0 { hostsys::process::nr_cpus() } else { options.nr_cpus };
        let running = Running::new(nr_cpus, &arena);
        let listener = zygote::take_listener(born.pid).map_err(step("making the zygote"))?;
        // Only a matter of speed, and absent before Linux 6.6.
        let _ = hostsys::seccomp::set_sync_wake(std::os::fd::AsFd::as_fd(&listener));
        let listener = Listener::new(listener);
        let zygote = Process::new(born.pid, arena.orders(group), group, 0);
        let failed =
            |error: SpaceError| io::Error::other(format!("systrap: first orders to the zygote: {error}"));
        zygote.meet(&listener).map_err(failed)?;
        zygote.order(&listener, &zygote::first_orders(), None).map_err(failed)?;
        let inner = Arc::new(Inner {
            arena,
            listener,
            zygote,
            entries,
            vdso: born.vdso,
            running,
            patches: AtomicBool::new(options.patch),
            slow: AtomicU64::new(0),
            answers: AtomicBool::new(true),
            reaper: Registry::default(),
        });
        let stock = Arc::new(Stock {
            state: Mutex::default(),
            changed: Condvar::new(),
            target: options.nr_blank.max(1),
        });
        let reaping = Arc::clone(&inner);
        spawn("stub-reaper", move || reaper::run(&reaping)).map_err(step("starting the reaper"))?;
        let (stocking, shelf) = (Arc::clone(&inner), Arc::clone(&stock));
        spawn("stub-stock", move || shelf.fill(&stocking)).map_err(step("starting the stock"))?;
        Ok(Arc::new(Systrap { inner, stock }))
    }
}

/// Says which step of the start the host refused.
fn step(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("systrap: {what}: {error}"))
}

impl Systrap {
    /// Whether spaces say where patched code may call. To be chosen before the first context is made.
    pub fn set_patch(&self, patch: bool) {
        self.inner.patches.store(patch, Ordering::Relaxed);
    }

    /// Has calls of patched code take a trap now and then, by chance that `seed` decides: for tests. Zero for none.
    pub fn set_slow(&self, seed: u64) {
        self.inner.slow.store(seed, Ordering::Relaxed);
    }

    /// Whether stubs answer the calls of [`platform::ANSWERED`] themselves, where the Sentry lets them.
    pub fn set_answers(&self, answers: bool) {
        self.inner.answers.store(answers, Ordering::Relaxed);
    }
}

impl Inner {
    pub(crate) fn takes_calls(&self) -> bool {
        self.patches.load(Ordering::Relaxed)
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

/// Whether the kernel lets programs read and write their segment bases (`AT_HWCAP2`, `HWCAP2_FSGSBASE`).
fn has_fsgsbase() -> bool {
    // SAFETY: reads the auxiliary vector.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    capabilities & 2 != 0
}

impl Stock {
    /// Keeps the stock full until it is closed.
    fn fill(&self, inner: &Arc<Inner>) {
        let mut state = self.state.lock();
        while !state.closed {
            if state.ready.len() >= self.target {
                self.changed.wait(&mut state);
                continue;
            }
            parking_lot::MutexGuard::unlocked(&mut state, || {
                let space = Space::clone_process(inner, &inner.zygote, &[]);
                match space.and_then(|space| space.settle().map(|()| space)) {
                    Ok(space) => {
                        let mut state = self.state.lock();
                        if !state.closed {
                            state.ready.push(space);
                        }
                    }
                    // Whoever needs a space will see the error itself.
                    Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
                }
            });
        }
    }

    fn take(&self) -> Option<Space> {
        let space = self.state.lock().ready.pop();
        self.changed.notify_one();
        space
    }
}

impl Platform for Systrap {
    fn new_space(&self) -> Result<Arc<dyn AddressSpace>, SpaceError> {
        let ready = std::iter::from_fn(|| self.stock.take()).find(|space| !space.process.is_gone());
        match ready {
            Some(space) => Ok(Arc::new(space)),
            None => Ok(Arc::new(Space::clone_process(&self.inner, &self.inner.zygote, &[])?)),
        }
    }

    fn new_context(&self, space: &Arc<dyn AddressSpace>) -> Result<Box<dyn Context>, SpaceError> {
        let space: Arc<dyn AddressSpace> = Arc::clone(space);
        let any: Arc<dyn std::any::Any + Send + Sync> = space;
        let space = any.downcast::<Space>().map_err(|_| SpaceError::BadRange)?;
        self.inner.reaper.refill();
        Ok(Box::new(space.context()?))
    }

    fn poll_traps(&self) -> usize {
        self.inner.running.poll()
    }

    fn park(&self, worker: usize, until_ns: Option<u64>, spin: bool) {
        self.inner.running.park(worker, until_ns, spin);
    }

    fn at_work(&self) {
        worker::be(layout::doing::OTHER);
    }

    fn unpark(&self, worker: usize) {
        self.inner.running.unpark(worker);
    }

    fn user_range(&self) -> AddrRange {
        layout::user_range()
    }

    fn vdso(&self) -> Option<AddrRange> {
        self.inner.vdso
    }

    fn epoch(&self) -> Option<&'static std::sync::atomic::AtomicU64> {
        Some(self.inner.arena.epoch(0))
    }

    fn file_epoch(&self) -> Option<&'static std::sync::atomic::AtomicU64> {
        Some(self.inner.arena.epoch(layout::FILE_EPOCH))
    }

    fn shutdown(&self) {
        let blanks = {
            let mut state = self.stock.state.lock();
            state.closed = true;
            std::mem::take(&mut state.ready)
        };
        self.stock.changed.notify_all();
        drop(blanks);
        self.inner.reaper.kill_all();
        self.inner.zygote.kill(platform::Cause::HostSignal(libc::SIGKILL));
    }
}

impl Drop for Systrap {
    fn drop(&mut self) {
        self.shutdown();
    }
}
