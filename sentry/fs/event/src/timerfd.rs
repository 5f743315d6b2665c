//! timerfd: a timer to wait on (`timerfd_create(2)`, `fs/timerfd.c`).

use core::any::Any;
use std::sync::{Arc, Weak};

use sentry_base::{
    Errno, Events, Executor, Mutex, Nanos, Result, TimerId, TimerTarget, WaitQueue, boot_now, lock::rank,
    mono_now, real_now,
};
use sentry_memory::UserWriter;
use sentry_vfs::{Attr, FileOps, IoCtx, IoStart, Pos};

/// The clock of a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerClock {
    Monotonic,
    Realtime,
    Boottime,
}

impl TimerClock {
    /// The clock of this number (`CLOCK_*`), the alarm clocks as the clocks they run by.
    pub fn from_id(id: i32) -> Option<Self> {
        Some(match id {
            libc::CLOCK_MONOTONIC => Self::Monotonic,
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => Self::Realtime,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Self::Boottime,
            _ => return None,
        })
    }

    fn id(self) -> i32 {
        match self {
            Self::Monotonic => libc::CLOCK_MONOTONIC,
            Self::Realtime => libc::CLOCK_REALTIME,
            Self::Boottime => libc::CLOCK_BOOTTIME,
        }
    }

    pub fn now(self) -> Nanos {
        match self {
            Self::Monotonic => mono_now(),
            Self::Realtime => real_now(),
            Self::Boottime => boot_now(),
        }
    }
}

/// Nanoseconds until the next expiry and between expiries; 0 for disarmed and for once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerSetting {
    pub value: Nanos,
    pub interval: Nanos,
}

#[derive(Debug, Default)]
struct State {
    /// The next expiry on the timer's clock; `None` for disarmed.
    next: Option<Nanos>,
    interval: Nanos,
    pending: Option<TimerId>,
    /// Grows with every setting: an expiry of an older one that is under way does not count.
    generation: u64,
}

/// A timer. It expires lazily: after the first expiry nothing runs until somebody reads, and the count is made up
/// from the clock.
#[derive(Debug)]
pub struct TimerFd {
    clock: TimerClock,
    executor: Arc<Executor>,
    state: Mutex<State, { rank::WAIT_QUEUE }>,
    queue: WaitQueue,
}

/// An armed timer in the executor's set. Weak, so that a closed timer goes away at once.
struct Alarm {
    timer: Weak<TimerFd>,
    generation: u64,
}

impl TimerTarget for Alarm {
    fn fire(self: Arc<Self>) {
        let Some(timer) = self.timer.upgrade() else { return };
        {
            let mut state = timer.state.lock();
            if state.generation != self.generation {
                return;
            }
            state.pending = None;
            // The wall clock may have been set back since: wait for the rest.
            if state.next.is_some_and(|next| timer.clock.now() < next) {
                timer.schedule(&mut state);
                return;
            }
        }
        timer.queue.notify(Events::IN);
    }
}

impl TimerFd {
    pub fn new(executor: Arc<Executor>, clock: TimerClock) -> Arc<Self> {
        Arc::new(Self { clock, executor, state: Mutex::new(State::default()), queue: WaitQueue::new() })
    }

    fn schedule(self: &Arc<Self>, state: &mut State) {
        if let Some(next) = state.next {
            let wait = next.saturating_sub(self.clock.now());
            let alarm = Alarm { timer: Arc::downgrade(self), generation: state.generation };
            let at = mono_now().saturating_add(wait);
            state.pending = Some(self.executor.timers().add(at, Arc::new(alarm)));
        }
    }

    /// Takes the expiries up to now and goes on with the interval.
    fn take_expiries(self: &Arc<Self>, state: &mut State) -> u64 {
        let now = self.clock.now();
        let Some(next) = state.next.filter(|next| *next <= now) else { return 0 };
        if let Some(id) = state.pending.take() {
            self.executor.timers().cancel(id);
        }
        let Some(more) = (now - next).checked_div(state.interval) else {
            state.next = None;
            return 1;
        };
        let count = more + 1;
        state.next = Some(next.saturating_add(count.saturating_mul(state.interval)));
        self.schedule(state);
        count
    }

    fn setting(&self, state: &State) -> TimerSetting {
        let now = self.clock.now();
        let value = match state.next {
            None => 0,
            Some(next) if next > now => next - now,
            // Expired and not read: the time to the next one of the interval, 0 for once.
            Some(next) => (now - next).checked_rem(state.interval).map_or(0, |into| state.interval - into),
        };
        TimerSetting { value, interval: state.interval }
    }

    /// The time left and the interval (`timerfd_gettime(2)`).
    pub fn get(&self) -> TimerSetting {
        self.setting(&self.state.lock())
    }

    /// Arms, with `value` on the timer's clock if `absolute`, or disarms; returns the setting before
    /// (`timerfd_settime(2)`).
    pub fn set(self: &Arc<Self>, new: TimerSetting, absolute: bool) -> TimerSetting {
        let mut state = self.state.lock();
        let old = self.setting(&state);
        if let Some(id) = state.pending.take() {
            self.executor.timers().cancel(id);
        }
        state.generation += 1;
        state.interval = new.interval;
        state.next = match new.value {
            0 => None,
            at if absolute => Some(at),
            after => Some(self.clock.now().saturating_add(after)),
        };
        self.schedule(&mut state);
        old
    }

    fn expired(&self, state: &State) -> bool {
        state.next.is_some_and(|next| next <= self.clock.now())
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        if let Some(id) = self.state.get_mut().pending.take() {
            self.executor.timers().cancel(id);
        }
    }
}

/// The open file of a timer.
///
/// A type of its own because rearming needs the timer's `Arc`.
#[derive(Debug)]
pub struct TimerFile(pub Arc<TimerFd>);

impl FileOps for TimerFile {
    fn readiness(&self) -> Events {
        if self.0.expired(&self.0.state.lock()) { Events::IN } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.queue)
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let count = self.0.take_expiries(&mut self.0.state.lock());
        if count == 0 {
            return Ok(IoStart::WouldBlock);
        }
        if dst.write(&count.to_ne_bytes())? < 8 {
            return Err(Errno::EFAULT);
        }
        Ok(IoStart::Done(8))
    }

    fn attr(&self) -> Option<Result<Attr>> {
        Some(Ok(crate::anon_attr()))
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:[timerfd]".into())
    }

    fn fdinfo(&self) -> String {
        let state = self.0.state.lock();
        let ticks = u32::from(self.0.expired(&state));
        let left = self.0.setting(&state);
        let split = |ns: Nanos| format!("({}, {})", ns / 1_000_000_000, ns % 1_000_000_000);
        format!(
            "clockid: {}\nticks: {ticks}\nsettime flags: 00\nit_value: {}\nit_interval: {}\n",
            self.0.clock.id(),
            split(left.value),
            split(left.interval),
        )
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sentry_base::Reactor;
    use sentry_vfs::OpenFlags;
    use sentry_vfs::testing::TestCaller;

    struct NoTraps;

    impl Reactor for NoTraps {
        fn poll(&self) -> usize {
            0
        }
        fn park(&self, _worker: usize, _until: Option<Nanos>, _spin: bool) {}
        fn unpark(&self, _worker: usize) {}
    }

    fn read(file: &TimerFile) -> Option<u64> {
        let c = TestCaller::new(1);
        let mut buf = [0; 8];
        let start = file
            .try_read(&c.io(OpenFlags::default()), &mut UserWriter::buffer(&mut buf), Pos::Stream)
            .unwrap();
        matches!(start, IoStart::Done(8)).then(|| u64::from_ne_bytes(buf))
    }

    #[test]
    fn counts_what_the_clock_has_passed() {
        let executor = Executor::new(Arc::new(NoTraps));
        for clock in [TimerClock::Monotonic, TimerClock::Realtime, TimerClock::Boottime] {
            let file = TimerFile(TimerFd::new(Arc::clone(&executor), clock));
            assert_eq!(read(&file), None);
            // An hour ago, every forty minutes: two expiries, the next in twenty minutes.
            let minute = 60_000_000_000;
            let at = clock.now().saturating_sub(60 * minute).max(1);
            let young = clock.now() < 61 * minute;
            file.0.set(TimerSetting { value: at, interval: 40 * minute }, true);
            assert_eq!(file.readiness(), Events::IN);
            let count = read(&file).unwrap();
            assert!(count == 2 || young, "{count}");
            assert_eq!(read(&file), None);
            let left = file.0.get();
            assert_eq!(left.interval, 40 * minute);
            assert!(left.value > 0 && left.value <= 40 * minute);
            let old = file.0.set(TimerSetting::default(), false);
            assert_eq!(old.interval, 40 * minute);
            assert_eq!(file.0.get().value, 0);
        }
        assert_eq!(executor.timers().earliest(), None);
    }

    #[test]
    fn an_expiry_is_announced() {
        let executor = Executor::new(Arc::new(NoTraps));
        let file = TimerFile(TimerFd::new(Arc::clone(&executor), TimerClock::Monotonic));
        let seen = Arc::new(sentry_base::Sleeper::default());
        file.wait_queue().unwrap().add(Events::IN, Arc::clone(&seen) as Arc<dyn sentry_base::Observer>);
        file.0.set(TimerSetting { value: 1, interval: 0 }, true);
        assert_eq!(executor.timers().fire_due(), 1);
        assert_eq!(read(&file), Some(1));
        assert_eq!(read(&file), None);
    }
}
