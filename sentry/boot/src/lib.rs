//! The sandbox process: confines itself, starts the platform, builds the mounts and the kernel, runs init, reports.
//!
//! The `casemate` command executes it by descriptor in new namespaces, as PID 1 of its own, with descriptor 3 as the
//! control connection and descriptor 2 for last words. The order of the start is what the confinement is made of:
//! empty root and no capabilities first, with one thread; then the platform's zygote; then the seccomp filter; only
//! then is a message read, a gofer asked, or a file parsed.
//!
//! Commands that come later connect to a socket that the command has given: the main thread accepts them and passes
//! messages on ([`session`]); processes for them are made on workers. So are further containers of a pod ([`container`]):
//! each has its own gofer, files, terminals and, where it asks for them, numbers of processes; the rest of the kernel is
//! shared.
//!
//! **Invariants.** After [`filter::Lock::close`] no host call names a path. Nothing in the process is worth more than the
//! sandbox itself: whatever ends it ends PID 1, and with it every stub.
//!
//! **Threat.** From its first instruction on the application talks to this process with hostile bytes. What a taken-over
//! Sentry can still do is what `filter` lists, on the descriptors that the command gave.

mod caller;
mod cgroup;
mod confine;
mod console;
mod container;
mod control;
mod filter;
mod forward;
mod inspect;
mod link;
mod log;
mod notify;
mod session;
mod sockets;
mod started;
mod tree;

use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use control_protocol::{Channel, Event, Failure, Phase};
use fs_host::Watcher;
use hostsys::{process, signals};
use platform::FREE_WORKERS;
use platform_systrap::Systrap;
use sentry_base::Executor;
use sentry_loader::Machine;
use sentry_memory::MemoryFile;

use crate::console::Bell;
use crate::container::{Container, Ground};
use crate::control::{End, Mailbox, Server};
use crate::filter::Role;
use crate::log::Moment;

/// Where the command puts its connection.
const CONTROL_FD: RawFd = 3;

/// The most workers (the executor's idle set is one word).
const MAX_WORKERS: usize = 64;

/// How long the end of a sandbox waits for acknowledgements from outside: the last
/// segment may be sent again three times.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(3);

/// The exit code of a Sentry with a fault of its own: that of a program that aborts.
const PANICKED: i32 = 134;

/// Runs the Sentry to its end.
pub fn main() -> ExitCode {
    let control = match hostsys::fd::take_inherited(CONTROL_FD) {
        Ok(fd) if std::process::id() == 1 => Channel::from_socket(fd),
        _ => {
            eprintln!("this is started by the casemate command alone");
            return ExitCode::FAILURE;
        }
    };
    hostsys::allocator::use_one_arena();
    // The default report would look for the binary's symbols, which no thread here may open.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        leave(PANICKED);
    }));
    match run(&control) {
        Ok(()) => leave(0),
        Err(failure) => tell(&control, &Event::Failed(failure)),
    }
}

/// Tells how it ended, and ends.
fn tell(control: &Channel, event: &Event) -> ! {
    let code = match control.send(event) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    leave(code)
}

/// Ends the process at once: the host takes back what it holds faster than destructors would.
fn leave(code: i32) -> ! {
    #[expect(clippy::exit, reason = "workers still run, and everything they hold ends with the process")]
    std::process::exit(code)
}

/// Says which step of the confinement failed.
fn confining<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure {
        phase: Phase::Confine,
        message: format!("cannot confine the sandbox: {step}: {error}"),
    }
}

/// Runs the container until there is nobody to tell about it; its end is told from here.
fn run(control: &Channel) -> Result<(), Failure> {
    signals::block_ordinary().map_err(confining("blocking signals"))?;
    let pending = signals::descriptor().map_err(confining("signalfd"))?;
    let nr_cpus = process::nr_cpus();
    let begun = Moment::now("begun");
    let seen = confine::enter().map_err(confining("giving up privileges"))?;
    let alone = Moment::now("privileges given up");
    let options = platform_systrap::Options { nr_cpus, nr_blank: 1, patch: false };
    let platform = Systrap::begin(options, &seen.maps).map_err(confining("starting the platform"))?;
    // The first stub gets ready meanwhile.
    let memory = MemoryFile::create(MemoryFile::DEFAULT_SIZE).map_err(confining("making the memory file"))?;
    let watcher = Watcher::new().map_err(confining("epoll"))?;
    let mut mailbox = Mailbox::new().map_err(confining("socketpair"))?;
    let link_bell = link::LinkBell::new().map_err(confining("socketpair"))?;
    let lock = filter::Lock::new().map_err(confining("filtering system calls"))?;
    let filtered = Moment::now("filters made");
    let platform = platform.finish().map_err(confining("starting the platform"))?;
    let started = Moment::now("platform started");
    lock.close().map_err(confining("filtering system calls"))?;
    let confined = Moment::now("confined");
    let cannot_start = |error| Failure { phase: Phase::Init, message: error };
    let worker = FirstWorker::start().map_err(cannot_start)?;

    let (boot, fds) =
        control.receive_boot().map_err(|error| Failure { phase: Phase::Init, message: error.to_string() })?;
    let told = Moment::now("boot message read");
    platform.set_patch(boot.options.patch);
    platform.set_slow(boot.options.slow);
    platform.set_answers(!boot.options.no_answers);
    let ground = Ground {
        platform,
        memory,
        watcher: Arc::clone(&watcher),
        nr_cpus,
        machine: Machine::from_auxv(&seen.auxv),
        total_memory: seen.total_memory,
        link_bell,
        main: mailbox.address.clone(),
        moments: vec![begun, alone, filtered, started, confined, told],
    };
    let mut container = Container::build(&boot, fds, ground, mailbox.ending())?;
    let threads = Threads::start(&mut container, worker, watcher, nr_cpus).map_err(cannot_start)?;
    filter::enter_role(Role::Control).map_err(confining("filtering system calls"))?;
    control
        .send(&Event::Ready)
        .map_err(|error| Failure { phase: Phase::Init, message: error.to_string() })?;

    container.log.moment("complete");
    hostsys::text::let_go_of_code();
    if !boot.held {
        container.start();
    }
    let server = Server { control, pending: &pending, mailbox: &mut mailbox, container: &container };
    match server.serve() {
        Ok(End::Exited(status)) => {
            if let Some((console, bell)) = threads.console {
                // What programs have written to the terminal goes out before the end is told.
                bell.end();
                let _ = console.join();
            }
            // So does what they have sent: the other end's network knows nothing of the end of this one.
            let network = container.kernel().first_network().extension::<sentry_net::NetworkNamespace>();
            network.inet().settle(LAST_WORDS);
            // Before anything is taken down: that may take its time, and the gofer leaves when its connection goes.
            tell(control, &Event::Exited(control::report(&container, status)))
        }
        Ok(End::Abandoned) => Ok(()),
        Err(error) => Err(Failure { phase: Phase::Init, message: error.to_string() }),
    }
}

/// A thread that narrows itself to its role while the container is built: the host takes its time to compile a filter.
struct FirstWorker(mpsc::Sender<NarrowedWork>);

/// What it does then, and is told how that went.
type NarrowedWork = Box<dyn FnOnce(Result<(), String>) + Send>;

impl FirstWorker {
    fn start() -> Result<Self, String> {
        let (given, work) = mpsc::channel::<NarrowedWork>();
        spawn("worker", move || {
            let entered = filter::enter_role(Role::Worker).map_err(|error| error.to_string());
            if let Ok(work) = work.recv() {
                work(entered);
            }
        })?;
        Ok(Self(given))
    }
}

/// The threads that run once the container is built.
struct Threads {
    console: Option<(thread::JoinHandle<()>, Arc<Bell>)>,
}

impl Threads {
    /// Starts workers, watcher and console, each narrowed to its role before it does anything.
    fn start(
        container: &mut Container,
        worker: FirstWorker,
        watcher: Arc<Watcher>,
        nr_cpus: usize,
    ) -> Result<Self, String> {
        let (narrowed, all) = mpsc::channel();
        let mut started = 1;
        let mut console = None;
        if let Some(relay) = container.console.take() {
            started += 1;
            let bell = relay.bell();
            let narrowed = narrowed.clone();
            let thread = spawn("console", move || {
                let entered = filter::enter_role(Role::Control).map_err(|error| error.to_string());
                let failed = entered.is_err();
                let _ = narrowed.send(entered);
                if !failed {
                    relay.run();
                }
            })?;
            console = Some((thread, bell));
        }
        // The others of its role are started by the first one: a filter is inherited, and the host takes longer to
        // compile one than to start a thread.
        let executor: Arc<Executor> = Arc::clone(container.kernel().executor());
        let others = Arc::clone(&executor);
        let crew = move || {
            spawn("host-files", move || watcher.run())?;
            for worker in 1..(nr_cpus + FREE_WORKERS).min(MAX_WORKERS) {
                let executor = Arc::clone(&others);
                spawn("worker", move || executor.run_worker(worker))?;
            }
            Ok(())
        };
        let work = move |entered: Result<(), String>| {
            let ready = entered.and_then(|()| crew());
            let failed = ready.is_err();
            let _ = narrowed.send(ready);
            if !failed {
                executor.run_worker(0);
            }
        };
        worker.0.send(Box::new(work)).map_err(|error| error.to_string())?;
        for _ in 0..started {
            all.recv().map_err(|error| error.to_string())??;
        }
        Ok(Self { console })
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, String> {
    let named = thread::Builder::new().name(name.to_owned());
    named.spawn(run).map_err(|error| format!("cannot start a thread: {error}"))
}
