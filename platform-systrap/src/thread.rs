//! One host thread of application code, and the list of those that run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;

use hostsys::futex::{self, WAIT_ANY_MAX, WaitWord};
use parking_lot::Mutex;
use platform::{Cause, Kick};

use crate::agent::Process;
use crate::channel::Arena;
use crate::frame::Channel;
use crate::hand::Hand;
use crate::known::Known;
use crate::layout::{KICK, NO_SPIN_ALONE, doing, state, word};
use crate::worker::{self, Worker};

/// What the Sentry knows about a thread; the application cannot write it.
mod phase {
    /// At rest: a trap was taken, or it never ran.
    pub const PARKED: u32 = 0;
    /// Runs application code; is in the running list, or about to be.
    pub const RUNNING: u32 = 1;
    /// Its trap has arrived and waits to be taken by the context.
    pub const TRAPPED: u32 = 2;
    /// Stores its extended state, as it was told; listed like one that runs. Kicks wait for its next run.
    pub const SAVING: u32 = 3;
}

/// How often a thread that is to stop for good is told so again.
const TELL_NS: u64 = 50_000_000;
/// How often it may be told in vain. Counted, since all of a sandbox may be frozen between two tellings.
const MAX_TELLINGS: u32 = 40;

/// A host thread of a stub process.
#[derive(Debug)]
pub struct Thread {
    pub process: Arc<Process>,
    pub channel: Channel,
    pub slot: u64,
    phase: AtomicU32,
    kicked: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// Whether the stub's spins of late have paid off.
    luck: Luck,
    /// Whether those of the worker that set it running have.
    patience: Luck,
    /// The table of directories in the channel.
    pub known: Known,
    /// The file at hand in the channel.
    pub hand: Hand,
    /// The context is dropped: when the thread traps it goes to the spares.
    orphan: AtomicBool,
    /// How often it was told to stop for good; zero if it may run.
    told: AtomicU32,
    /// [`Running::nr_told`].
    nr_told: Arc<AtomicUsize>,
}

impl Thread {
    pub fn new(running: &Running, process: Arc<Process>, channel: Channel, slot: u64) -> Self {
        Self {
            process,
            channel,
            slot,
            phase: AtomicU32::new(phase::PARKED),
            kicked: AtomicBool::new(false),
            waker: Mutex::new(None),
            luck: Luck::default(),
            patience: Luck::default(),
            known: Known::default(),
            hand: Hand::default(),
            orphan: AtomicBool::new(false),
            told: AtomicU32::new(0),
            nr_told: Arc::clone(&running.nr_told),
        }
    }

    fn state(&self) -> &AtomicU32 {
        self.channel.window.u32(word::STATE)
    }

    /// Whether the stub has posted a trap since it was last resumed.
    fn has_posted(&self) -> bool {
        self.state().load(Ordering::Acquire) != state::RUN
    }

    pub fn is_running(&self) -> bool {
        self.phase.load(Ordering::Acquire) == phase::RUNNING
    }

    fn is_saving(&self) -> bool {
        self.phase.load(Ordering::Acquire) == phase::SAVING
    }

    pub fn set_waker(&self, waker: &Waker) {
        let mut slot = self.waker.lock();
        match &mut *slot {
            Some(old) => old.clone_from(waker),
            None => *slot = Some(waker.clone()),
        }
    }

    /// Lets the stub go on, which may spin for `spin_cycles` at its next trap. True if it sleeps, and must be woken.
    fn set_running(&self, spin_cycles: u32, is_alone: bool) -> bool {
        let spun = self.channel.window.load32(word::SPIN);
        if spun & !NO_SPIN_ALONE != 0 {
            self.luck.note(self.asleep().load(Ordering::Relaxed) == 0);
        }
        let spin_cycles = match self.luck.try_again() {
            true => spin_cycles & !NO_SPIN_ALONE,
            false if is_alone => NO_SPIN_ALONE,
            false => 0,
        };
        // The stub watches this cache line: every store takes it away from there, to be fetched again.
        if spun != spin_cycles {
            self.channel.window.store32(word::SPIN, spin_cycles);
        }
        if self.channel.window.load32(word::SLEEPERS) != 0 {
            self.channel.window.store32(word::SLEEPERS, 0);
        }
        // A full barrier: either the stub sees the state before it sleeps, or we see that it sleeps.
        self.state().swap(state::RUN, Ordering::SeqCst);
        self.asleep().load(Ordering::SeqCst) != 0
    }

    fn asleep(&self) -> &AtomicU32 {
        self.channel.window.u32(word::ASLEEP)
    }

    fn wake(&self) {
        self.asleep().store(0, Ordering::SeqCst);
        futex::wake(self.asleep(), 1, false);
    }

    /// Has the stub sleep at once if it is spinning.
    pub fn stop_spinning(&self) {
        self.channel.window.store32(word::SPIN, 0);
    }

    /// Takes a kick that came while the thread was parked.
    pub fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::AcqRel)
    }

    /// Gives a thread whose context is dropped to the spares; false if it is none.
    fn retire_orphan(&self) -> bool {
        let orphan = self.orphan.swap(false, Ordering::SeqCst);
        if orphan {
            // What this one was told is not for the next.
            self.known.forget(&self.channel.window);
            self.hand.forget(&self.channel.window);
            self.process.spares.lock().push(self.slot);
        }
        orphan
    }

    /// Tells a running thread to stop for good: until it does, workers tell it again, and at last kill its process.
    fn tell_to_stop(&self) {
        self.expect_to_stop();
        self.send_kick();
    }

    /// From here on workers count how long it takes to stop.
    fn expect_to_stop(&self) {
        if self.told.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.nr_told.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// To be called when it has stopped.
    fn has_stopped(&self) {
        if self.told.load(Ordering::Relaxed) != 0 && self.told.swap(0, Ordering::AcqRel) != 0 {
            self.nr_told.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn send_kick(&self) {
        // The thread's id lies in the channel, where the application may falsify it; the signal cannot leave the process
        // though, which is named by what the Sentry knows.
        let tid = self.channel.window.load32(word::TID) as i32;
        let _ = self.process.with_pid(|pid| hostsys::process::tgkill(pid, tid, KICK));
    }
}

impl Kick for Thread {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if self.is_running() {
            self.send_kick();
        }
    }

    fn kick_to_end(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if self.is_running() {
            self.tell_to_stop();
        }
    }
}

/// Says whether to spin, by how spins have ended of late: no count of what runs tells whether the other side has a CPU, for
/// other sandboxes may have it, or both sides may have landed on the same one.
#[derive(Debug, Default)]
struct Luck<const PAUSE: i32 = 200>(AtomicI32);

impl<const PAUSE: i32> Luck<PAUSE> {
    /// Counted up to this by spins that paid off: so many failures in a row are forgiven.
    const BEST: i32 = 8;
    /// What a failure costs.
    const LOSS: i32 = 4;

    fn note(&self, paid_off: bool) {
        let old = self.0.load(Ordering::Relaxed);
        let new = if paid_off {
            (old + 1).min(Self::BEST)
        } else if old >= Self::LOSS {
            old - Self::LOSS
        } else {
            -PAUSE
        };
        self.0.store(new, Ordering::Relaxed);
    }

    fn try_again(&self) -> bool {
        let old = self.0.load(Ordering::Relaxed);
        if old < 0 {
            self.0.store(old + 1, Ordering::Relaxed);
        }
        old >= 0
    }
}

/// Knows whether several threads trap, or one alone.
#[derive(Debug, Default)]
struct Company {
    /// Who has trapped last, by its address, and when somebody else did.
    last: AtomicUsize,
    last_at: AtomicU64,
    other_at: AtomicU64,
}

impl Company {
    /// Notes a trap of `thread`, and says whether no other thread has trapped for long: many spins.
    fn is_alone(&self, thread: &Thread, spin_cycles: u32) -> bool {
        // Of two at once, one may be missed.
        let (now, thread) = (cycles(), std::ptr::from_ref(thread).addr());
        if self.last.swap(thread, Ordering::Relaxed) != thread {
            self.other_at.store(self.last_at.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.last_at.store(now, Ordering::Relaxed);
        now.wrapping_sub(self.other_at.load(Ordering::Relaxed)) > u64::from(spin_cycles) * LONG_SPINS
    }
}

/// The threads that run application code, and the workers that wait for them.
#[derive(Debug)]
pub struct Running {
    list: Mutex<Vec<Arc<Thread>>>,
    /// Length of the list, to be read without the lock.
    nr_listed: AtomicUsize,
    /// Threads that are told to stop for good and have not.
    nr_told: Arc<AtomicUsize>,
    /// When they are told again.
    next_telling_ns: AtomicU64,
    workers: Vec<Worker>,
    spinner: AtomicBool,
    /// Whether its spins of late have paid off.
    hope: Luck<20>,
    company: Company,
    /// Cycles of the time-stamp counter that make up the longest spin; zero on a single CPU.
    spin_cycles: u32,
}

/// The longest spin.
const SPIN_NS: u64 = 40_000;
/// Threads that one sleep watches, besides two words of the worker; with more, sleeps are short.
const MAX_WATCHED: usize = WAIT_ANY_MAX - 2;
const SHORT_SLEEP_NS: u64 = 500_000;
/// After so many of the longest spins without a trap of another thread, one counts as alone: 20 ms.
const LONG_SPINS: u64 = 500;
/// The longest sleep while threads run.
const LONG_SLEEP_NS: u64 = 1_000_000_000;

impl Running {
    pub fn new(nr_cpus: usize, arena: &Arena) -> Self {
        Self {
            list: Mutex::default(),
            nr_listed: AtomicUsize::new(0),
            nr_told: Arc::default(),
            next_telling_ns: AtomicU64::new(0),
            workers: Worker::all(arena),
            spinner: AtomicBool::new(false),
            hope: Luck::default(),
            company: Company::default(),
            spin_cycles: if nr_cpus > 1 { measure_spin_cycles() } else { 0 },
        }
    }

    /// Starts a parked thread whose frame is ready. False if a kick came first. Its trap is found by [`Running::linger`], or
    /// after [`Running::list`]. The caller `is_free` if it will then look for traps, and do nothing else.
    pub fn start(&self, thread: &Thread, is_free: bool) -> bool {
        thread.phase.store(phase::RUNNING, Ordering::SeqCst);
        if thread.take_kick() {
            thread.phase.store(phase::PARKED, Ordering::SeqCst);
            return false;
        }
        if is_free {
            worker::be(doing::LOOKING);
        }
        if thread.set_running(self.spin_cycles, self.company.is_alone(thread, self.spin_cycles)) {
            thread.wake();
        }
        true
    }

    /// Has a parked thread store its extended state, as its channel says. True when it has done so already; else its post
    /// is found after [`Running::list`], and is to come soon: workers kill the process of one that does not.
    pub fn start_saving(&self, thread: &Thread) -> bool {
        thread.phase.store(phase::SAVING, Ordering::SeqCst);
        thread.expect_to_stop();
        if thread.set_running(self.spin_cycles, self.company.is_alone(thread, self.spin_cycles)) {
            thread.wake();
            return false;
        }
        // It is awake, and may be done in no time.
        self.spin_for(thread)
    }

    /// Waits as long as a spin for the trap of a thread that was just started and is not listed. True when it is there, and
    /// taken.
    pub fn linger(&self, thread: &Thread) -> bool {
        // Nobody else would look after those that are listed.
        if self.nr_listed.load(Ordering::Relaxed) != 0
            || self.spin_cycles == 0
            || !thread.patience.try_again()
        {
            return false;
        }
        let found = self.spin_for(thread);
        thread.patience.note(found);
        if found {
            worker::be(doing::OTHER);
        }
        found
    }

    fn spin_for(&self, thread: &Thread) -> bool {
        let start = cycles();
        let mut found = thread.has_posted();
        while !found && cycles().wrapping_sub(start) < u64::from(self.spin_cycles) {
            std::hint::spin_loop();
            found = thread.has_posted();
        }
        if found {
            thread.phase.store(phase::PARKED, Ordering::SeqCst);
            thread.has_stopped();
        }
        found
    }

    /// Has workers look for the trap of a started thread, and wake its task.
    pub fn list(&self, thread: &Arc<Thread>) {
        let mut list = self.list.lock();
        list.push(Arc::clone(thread));
        self.nr_listed.store(list.len(), Ordering::Relaxed);
    }

    /// Takes the trap of a listed thread, if it has one or its process is gone.
    pub fn finish(&self, thread: &Arc<Thread>) -> bool {
        if thread.is_running() || thread.is_saving() {
            if !thread.has_posted() && !thread.process.is_gone() {
                return false;
            }
            let mut list = self.list.lock();
            list.retain(|other| !Arc::ptr_eq(other, thread));
            self.nr_listed.store(list.len(), Ordering::Relaxed);
        }
        thread.phase.store(phase::PARKED, Ordering::SeqCst);
        thread.has_stopped();
        true
    }

    /// Wakes the tasks of all threads whose trap has arrived.
    pub fn poll(&self) -> usize {
        if self.nr_listed.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut arrived = Vec::new();
        {
            let mut list = self.list.lock();
            let mut index = 0;
            while let Some(thread) = list.get(index) {
                if thread.has_posted() || thread.process.is_gone() {
                    let thread = list.swap_remove(index);
                    // Taken before the context can see the trap, and set the waker of its next run; noted before that run
                    // can be told anything.
                    let waker = thread.waker.lock().take();
                    thread.has_stopped();
                    thread.phase.store(phase::TRAPPED, Ordering::SeqCst);
                    worker::be(doing::OTHER);
                    arrived.push((thread, waker));
                } else {
                    index += 1;
                }
            }
            if !arrived.is_empty() {
                self.nr_listed.store(list.len(), Ordering::Relaxed);
            }
        }
        let count = arrived.len();
        for (thread, waker) in arrived {
            if thread.retire_orphan() {
                continue;
            }
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        if self.nr_told.load(Ordering::Relaxed) > 0 {
            self.tell_again();
        }
        count
    }

    /// Disposes of a thread whose context is dropped: at once if it is parked, else when it traps.
    pub fn abandon(thread: &Thread) {
        thread.orphan.store(true, Ordering::SeqCst);
        if thread.is_running() {
            thread.tell_to_stop();
        } else if thread.is_saving() {
            // It is told already.
        } else {
            // It may have been told when it had just stopped.
            thread.has_stopped();
            thread.retire_orphan();
        }
    }

    /// Tells those that have not stopped again, and kills the processes of those that were told often enough.
    fn tell_again(&self) {
        let now = futex::monotonic_ns();
        let due = self.next_telling_ns.load(Ordering::Relaxed);
        let is_mine = now >= due
            && self
                .next_telling_ns
                .compare_exchange(due, now + TELL_NS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !is_mine {
            return;
        }
        let list = self.list.lock();
        for thread in list.iter() {
            match thread.told.load(Ordering::Relaxed) {
                0 => {}
                MAX_TELLINGS.. => {
                    thread.process.kill(Cause::Protocol(if thread.is_saving() {
                        "a thread did not store its state"
                    } else {
                        "a thread did not stop when it was told to"
                    }));
                }
                told => {
                    // Lost if it has stopped meanwhile, which is as good.
                    let _ = thread.told.compare_exchange(told, told + 1, Ordering::AcqRel, Ordering::Relaxed);
                    if !thread.is_saving() {
                        thread.send_kick();
                    }
                }
            }
        }
    }

    /// [`platform::Platform::park`].
    pub fn park(&self, worker: usize, until_ns: Option<u64>, spin: bool) {
        let Some(own) = self.workers.get(worker) else {
            std::thread::sleep(std::time::Duration::from_micros(100));
            return;
        };
        if own.token.swap(0, Ordering::AcqRel) != 0 {
            return;
        }
        if spin && self.spin(own) {
            own.token.store(0, Ordering::Release);
            return;
        }
        own.arrive();
        worker::be(doing::ASLEEP);
        self.sleep(own, until_ns);
        worker::be(doing::OTHER);
        own.token.store(0, Ordering::Release);
    }

    /// Spins while a thread runs, one worker at a time. True when there is something to do.
    fn spin(&self, own: &Worker) -> bool {
        if self.nr_listed.load(Ordering::Relaxed) == 0
            || self.spin_cycles == 0
            || !self.hope.try_again()
            || self.spinner.swap(true, Ordering::Acquire)
        {
            return false;
        }
        let watched: Vec<Arc<Thread>> = self.list.lock().iter().take(8).cloned().collect();
        let start = cycles();
        let mut found = false;
        while !found && cycles().wrapping_sub(start) < u64::from(self.spin_cycles) {
            std::hint::spin_loop();
            found =
                own.token.load(Ordering::Acquire) != 0 || watched.iter().any(|thread| thread.has_posted());
        }
        self.hope.note(found);
        self.spinner.store(false, Ordering::Release);
        found
    }

    fn sleep(&self, own: &Worker, until_ns: Option<u64>) {
        let mut words = [WaitWord::default(); WAIT_ANY_MAX];
        let mut used = 0;
        let mut until_ns = until_ns;
        // Holds what the words point into.
        let mut watched: Vec<Arc<Thread>> = Vec::new();
        {
            let list = self.list.lock();
            // Who tells a thread to stop may be no worker: while any runs, some look around.
            let longest = match list.len() {
                0 => None,
                len if len > MAX_WATCHED => Some(SHORT_SLEEP_NS),
                _ if self.nr_told.load(Ordering::Relaxed) > 0 => Some(TELL_NS),
                _ => Some(LONG_SLEEP_NS),
            };
            if let Some(longest) = longest {
                let limit = futex::monotonic_ns() + longest;
                until_ns = Some(until_ns.map_or(limit, |until| until.min(limit)));
            }
            for thread in list.iter().take(MAX_WATCHED) {
                if thread.has_posted() || thread.process.is_gone() {
                    return;
                }
                thread.channel.window.store32(word::SLEEPERS, 1);
                watched.push(Arc::clone(thread));
            }
        }
        // The flags must be seen by a stub that posts after the kernel has looked at its word.
        std::sync::atomic::fence(Ordering::SeqCst);
        for (slot, thread) in words.iter_mut().zip(&watched) {
            *slot = WaitWord::new(thread.state(), state::RUN, false);
            used += 1;
        }
        let own_words = [
            Some(WaitWord::new(&own.token, 0, true)),
            worker::own_word().map(|word| WaitWord::new(word, doing::ASLEEP, false)),
        ];
        for (slot, word) in words.iter_mut().skip(used).zip(own_words.into_iter().flatten()) {
            *slot = word;
            used += 1;
        }
        let Some(words) = words.get(..used) else { return };
        match futex::wait_any(words, until_ns) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                // Linux 5.15 has no futex_waitv: watch the own word alone, and look around often.
                let short = futex::monotonic_ns() + SHORT_SLEEP_NS;
                let until = until_ns.map_or(short, |until| until.min(short));
                let _ = futex::wait(&own.token, 0, Some(until), true);
            }
            _ => {}
        }
    }

    /// [`platform::Platform::unpark`].
    pub fn unpark(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker)
            && worker.token.swap(1, Ordering::AcqRel) == 0
        {
            worker.is_called();
            futex::wake(&worker.token, 1, true);
        }
    }
}

/// The time-stamp counter.
fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and a process that may not use it could not run this platform's stubs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// How many cycles the longest spin is, by the host's clock.
fn measure_spin_cycles() -> u32 {
    const SAMPLE_NS: u64 = 20_000;
    let (start_ns, start) = (futex::monotonic_ns(), cycles());
    while futex::monotonic_ns() - start_ns < SAMPLE_NS {
        std::hint::spin_loop();
    }
    let spent = cycles().wrapping_sub(start);
    u32::try_from(spent * SPIN_NS / SAMPLE_NS).unwrap_or(0)
}
