//! Interval timers and POSIX timers of a process (`setitimer(2)`, `timer_create(2)`).
//!
//! A periodic timer that has sent its signal is not armed again before the signal is taken: what expired meanwhile is
//! counted as overruns, so a short period cannot flood the Sentry.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use abi::process::{RLIM_INFINITY, WaitStatus, rlimit};
use abi::signal::{SI_KERNEL, SI_TIMER, SigInfo, sig};
use sentry_base::{Errno, Mutex, Nanos, Result, TimerId, TimerTarget, lock::rank, mono_now};

use crate::signal::Origin;
use crate::{Kernel, Task, ThreadGroup};

/// What a timer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerClock {
    /// Time of day is monotonic time plus a constant here.
    Monotonic,
    Realtime,
    /// User time of the process.
    ProcessUser,
    /// User and system time of the process.
    ProcessCpu,
    /// User and system time of a thread.
    ThreadCpu(i32),
}

/// Whom a timer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerNotify {
    None,
    /// `RLIMIT_CPU` is reached.
    CpuLimit,
    /// `ITIMER_*`: the signal of the kernel.
    Interval(i32),
    /// A POSIX timer's signal with its value, to the process or to one thread.
    Signal {
        signo: i32,
        value: u64,
        thread: Option<i32>,
    },
}

/// Names a timer of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerKey {
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
    Interval(u32),
    Posix(i32),
    /// The watch over `RLIMIT_CPU`.
    CpuLimit,
}

#[derive(Debug)]
struct Timer {
    clock: TimerClock,
    notify: TimerNotify,
    /// On the timer's own clock, in nanoseconds; `None` while disarmed.
    deadline: Option<Nanos>,
    interval: Nanos,
    /// The signal is sent and not yet taken.
    fired: bool,
    overrun: i32,
    pending: Option<TimerId>,
    /// Tells an expiry of an earlier setting from one of this.
    generation: u64,
}

/// The timers of a process.
#[derive(Debug, Default)]
pub(crate) struct ProcessTimers {
    timers: Mutex<BTreeMap<TimerKey, Timer>, { rank::TASK }>,
}

const SECOND: Nanos = 1_000_000_000;
/// At most this many POSIX timers a process.
const MAX_TIMERS: usize = 1024;
/// An ignored periodic timer is looked at no more often than this.
const IGNORED_PERIOD: Nanos = 10_000_000;
/// CPU time is looked at no more often than this.
const CPU_PERIOD: Nanos = 1_000_000;

/// An expiry to come.
struct Expiry {
    group: Weak<ThreadGroup>,
    key: TimerKey,
    generation: u64,
}

impl TimerTarget for Expiry {
    fn fire(self: Arc<Self>) {
        if let Some(group) = self.group.upgrade() {
            group.timers.expire(&group, self.key, self.generation);
        }
    }
}

impl TimerClock {
    /// The clock's time now.
    pub fn now(self, group: &ThreadGroup) -> Nanos {
        match self {
            Self::Monotonic => mono_now(),
            Self::Realtime => sentry_base::real_now(),
            Self::ProcessUser => group.cpu_times().0,
            Self::ProcessCpu => {
                let (user, system) = group.cpu_times();
                user.saturating_add(system)
            }
            Self::ThreadCpu(tid) => group.kernel().task(tid).map_or(0, |t| {
                let (user, system) = t.cpu_times();
                user.saturating_add(system)
            }),
        }
    }

    /// When to look at the timer, on the monotonic clock.
    fn look_at(self, now: Nanos, deadline: Nanos, group: &ThreadGroup) -> Nanos {
        let left = deadline.saturating_sub(now);
        let wait = match self {
            Self::Monotonic | Self::Realtime => left,
            Self::ThreadCpu(_) => left.max(CPU_PERIOD),
            Self::ProcessUser | Self::ProcessCpu => {
                (left / (group.nr_threads().max(1) as u64)).max(CPU_PERIOD)
            }
        };
        mono_now().saturating_add(wait)
    }
}

impl ProcessTimers {
    /// A timer is due, or it is time to look at a CPU clock.
    fn expire(&self, group: &Arc<ThreadGroup>, key: TimerKey, generation: u64) {
        let clock = match self.timers.lock().get(&key) {
            Some(timer) if timer.generation == generation => timer.clock,
            _ => return,
        };
        let now = clock.now(group);
        if group.nr_threads() == 0 {
            return;
        }
        let notify = {
            let mut timers = self.timers.lock();
            let Some(timer) = timers.get_mut(&key).filter(|t| t.generation == generation) else { return };
            timer.pending = None;
            let Some(deadline) = timer.deadline else { return };
            if now < deadline {
                drop(timers);
                self.rearm(group, key, generation, now);
                return;
            }
            if timer.interval == 0 {
                timer.deadline = None;
            }
            timer.fired = true;
            timer.notify
        };
        let sent = match (notify, key) {
            (TimerNotify::Signal { signo, value, thread }, TimerKey::Posix(id)) => {
                let info = SigInfo::timer(signo, id, 0, value);
                match thread.map(|tid| group.kernel().task(tid)) {
                    None => group.send_signal_reporting(None, info),
                    Some(Some(task)) if Arc::ptr_eq(task.group(), group) => {
                        group.send_signal_reporting(Some(&task), info)
                    }
                    Some(_) => false,
                }
            }
            (TimerNotify::Interval(signo), _) => {
                group.send_signal_reporting(None, SigInfo::kernel(signo, SI_KERNEL))
            }
            (TimerNotify::CpuLimit, _) => {
                group.cpu_limit_reached(now);
                true
            }
            _ => false,
        };
        if !sent {
            self.advance(group, key, IGNORED_PERIOD);
        }
    }

    fn rearm(&self, group: &Arc<ThreadGroup>, key: TimerKey, generation: u64, now: Nanos) {
        let mut timers = self.timers.lock();
        if let Some(timer) = timers.get_mut(&key).filter(|t| t.generation == generation) {
            // Looking at the clock takes the process's lock, which is outside of this one: `now` was read before.
            let left = timer.deadline.unwrap_or(0).saturating_sub(now).max(CPU_PERIOD);
            timer.generation = timer.generation.wrapping_add(1);
            let expiry = Expiry { group: Arc::downgrade(group), key, generation: timer.generation };
            timer.pending = Some(
                group.kernel().executor().timers().add(mono_now().saturating_add(left), Arc::new(expiry)),
            );
        }
    }

    /// Moves a periodic timer past now, counts what it missed, and arms it again.
    fn advance(&self, group: &Arc<ThreadGroup>, key: TimerKey, at_least: Nanos) -> i32 {
        let Some(clock) = self.timers.lock().get(&key).map(|t| t.clock) else { return 0 };
        let now = clock.now(group);
        let mut timers = self.timers.lock();
        let Some(timer) = timers.get_mut(&key) else { return 0 };
        timer.fired = false;
        timer.overrun = 0;
        let (Some(deadline), interval) = (timer.deadline, timer.interval) else { return 0 };
        if interval == 0 {
            return 0;
        }
        let target = now.saturating_add(at_least);
        let periods = target.saturating_sub(deadline) / interval + 1;
        timer.deadline = Some(deadline.saturating_add(periods.saturating_mul(interval)));
        timer.overrun = i32::try_from(periods - 1).unwrap_or(i32::MAX);
        let overrun = timer.overrun;
        let left = timer.deadline.unwrap_or(0).saturating_sub(now);
        let wait = if matches!(timer.clock, TimerClock::Monotonic | TimerClock::Realtime) {
            left
        } else {
            left.max(CPU_PERIOD)
        };
        timer.generation = timer.generation.wrapping_add(1);
        let expiry = Expiry { group: Arc::downgrade(group), key, generation: timer.generation };
        timer.pending =
            Some(group.kernel().executor().timers().add(mono_now().saturating_add(wait), Arc::new(expiry)));
        overrun
    }

    /// A signal was taken off a queue: a timer's goes on from here.
    pub fn taken(&self, group: &Arc<ThreadGroup>, mut info: SigInfo) -> SigInfo {
        let key = match (info.code, info.signo) {
            (SI_TIMER, _) => TimerKey::Posix(info.pid()),
            (SI_KERNEL, sig::ALRM) => TimerKey::Interval(0),
            (SI_KERNEL, sig::VTALRM) => TimerKey::Interval(1),
            (SI_KERNEL, sig::PROF) => TimerKey::Interval(2),
            _ => return info,
        };
        let fired = self.timers.lock().get(&key).is_some_and(|t| t.fired);
        if fired {
            let overrun = self.advance(group, key, 0);
            if info.code == SI_TIMER {
                info.set_overrun(overrun);
            }
        }
        info
    }

    /// Stops every timer: the process is gone, or executes (which keeps interval timers).
    pub fn clear(&self, kernel: &Kernel) {
        let timers = core::mem::take(&mut *self.timers.lock());
        for id in timers.into_values().filter_map(|t| t.pending) {
            kernel.executor().timers().cancel(id);
        }
    }

    pub fn clear_posix(&self, kernel: &Kernel) {
        let mut timers = self.timers.lock();
        timers.retain(|key, timer| {
            let keep = matches!(key, TimerKey::Interval(_) | TimerKey::CpuLimit);
            if let Some(id) = timer.pending.filter(|_| !keep) {
                kernel.executor().timers().cancel(id);
            }
            keep
        });
    }
}

/// A timer's setting: time left and period, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerSetting {
    pub left: Nanos,
    pub interval: Nanos,
}

impl ThreadGroup {
    /// Makes a POSIX timer; its id.
    pub fn create_timer(
        &self,
        clock: TimerClock,
        signal: Option<(i32, u64, Option<i32>)>,
        default_value: bool,
    ) -> Result<i32> {
        let mut timers = self.timers.timers.lock();
        if timers.len() >= MAX_TIMERS {
            return Err(Errno::EAGAIN);
        }
        let id = (0..i32::MAX).find(|id| !timers.contains_key(&TimerKey::Posix(*id))).ok_or(Errno::EAGAIN)?;
        let notify = match signal {
            None => TimerNotify::None,
            Some((signo, value, thread)) => {
                let value = if default_value { u64::from(id.cast_unsigned()) } else { value };
                TimerNotify::Signal { signo, value, thread }
            }
        };
        timers.insert(TimerKey::Posix(id), Timer::new(clock, notify));
        Ok(id)
    }

    /// Removes a POSIX timer.
    pub fn delete_timer(&self, id: i32) -> Result<()> {
        let timer = self.timers.timers.lock().remove(&TimerKey::Posix(id)).ok_or(Errno::EINVAL)?;
        if let Some(pending) = timer.pending {
            self.kernel().executor().timers().cancel(pending);
        }
        Ok(())
    }

    /// The clock of a timer.
    pub fn timer_clock(&self, key: TimerKey) -> Result<TimerClock> {
        self.timers.timers.lock().get(&key).map(|t| t.clock).ok_or(Errno::EINVAL)
    }

    /// What is left of a timer; nothing for one that was never set.
    pub fn timer(&self, key: TimerKey) -> TimerSetting {
        let Ok(clock) = self.timer_clock(key) else { return TimerSetting::default() };
        let now = clock.now(self);
        self.timers.timers.lock().get(&key).map_or(TimerSetting::default(), |t| t.setting(now))
    }

    /// The overrun count of the last signal that was taken.
    pub fn timer_overrun(&self, id: i32) -> Result<i32> {
        self.timers.timers.lock().get(&TimerKey::Posix(id)).map(|t| t.overrun).ok_or(Errno::EINVAL)
    }

    /// Sets a timer and returns its old setting. `deadline` is on the timer's clock; `None` disarms.
    pub fn set_timer(
        self: &Arc<Self>,
        key: TimerKey,
        deadline: Option<Nanos>,
        interval: Nanos,
    ) -> Result<TimerSetting> {
        if let TimerKey::Interval(which) = key {
            let (clock, signo) = match which {
                0 => (TimerClock::Monotonic, sig::ALRM),
                1 => (TimerClock::ProcessUser, sig::VTALRM),
                2 => (TimerClock::ProcessCpu, sig::PROF),
                _ => return Err(Errno::EINVAL),
            };
            let make = || Timer::new(clock, TimerNotify::Interval(signo));
            self.timers.timers.lock().entry(key).or_insert_with(make);
        }
        if key == TimerKey::CpuLimit {
            let make = || Timer::new(TimerClock::ProcessCpu, TimerNotify::CpuLimit);
            self.timers.timers.lock().entry(key).or_insert_with(make);
        }
        let clock = self.timer_clock(key)?;
        let now = clock.now(self);
        let look_at = deadline.map(|d| clock.look_at(now, d, self));
        let mut timers = self.timers.timers.lock();
        let timer = timers.get_mut(&key).ok_or(Errno::EINVAL)?;
        let old = timer.setting(now);
        let queue = self.kernel().executor().timers();
        if let Some(pending) = timer.pending.take() {
            queue.cancel(pending);
        }
        timer.generation = timer.generation.wrapping_add(1);
        timer.deadline = deadline;
        timer.interval = interval;
        timer.fired = false;
        timer.overrun = 0;
        if let Some(at) = look_at {
            let expiry = Expiry { group: Arc::downgrade(self), key, generation: timer.generation };
            timer.pending = Some(queue.add(at, Arc::new(expiry)));
        }
        Ok(old)
    }

    /// Watches over `RLIMIT_CPU`, which is new or has changed.
    pub fn watch_cpu_limit(self: &Arc<Self>) {
        let Some(limit) = self.limits().get(rlimit::CPU) else { return };
        let seconds = limit.cur.min(limit.max);
        let watched = self.timer_clock(TimerKey::CpuLimit).is_ok();
        if seconds == RLIM_INFINITY && !watched {
            return;
        }
        let deadline = (seconds != RLIM_INFINITY).then(|| seconds.saturating_mul(SECOND));
        // The clock is there, so this cannot fail.
        let _ = self.set_timer(TimerKey::CpuLimit, deadline, 0);
    }

    /// SIGXCPU for every second past the soft limit, SIGKILL at the hard one (`check_process_timers`).
    fn cpu_limit_reached(self: &Arc<Self>, now: Nanos) {
        let Some(mut limit) = self.limits().get(rlimit::CPU) else { return };
        if now >= limit.max.saturating_mul(SECOND) {
            self.end(WaitStatus::signaled(sig::KILL, false));
            return;
        }
        if now >= limit.cur.saturating_mul(SECOND) {
            self.send_signal_reporting(None, SigInfo::kernel(sig::XCPU, SI_KERNEL));
            limit.cur = limit.cur.saturating_add(1);
            self.set_rlimit(rlimit::CPU, limit);
        }
        self.watch_cpu_limit();
    }

    fn send_signal_reporting(self: &Arc<Self>, target: Option<&Task>, info: SigInfo) -> bool {
        self.send_signal(target, info, Origin::Inside).unwrap_or(false)
    }
}

impl Timer {
    fn new(clock: TimerClock, notify: TimerNotify) -> Self {
        Self {
            clock,
            notify,
            deadline: None,
            interval: 0,
            fired: false,
            overrun: 0,
            pending: None,
            generation: 0,
        }
    }

    fn setting(&self, now: Nanos) -> TimerSetting {
        // An armed timer never shows zero.
        let left = self.deadline.map_or(0, |d| {
            if d > now {
                return d - now;
            }
            if self.interval > 0 { self.interval - (now - d) % self.interval } else { 1 }
        });
        TimerSetting { left, interval: self.interval }
    }
}
