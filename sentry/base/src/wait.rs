//! Waiting: readiness events, queues of observers, and the sleeper that each task waits on.
//!
//! An object keeps a [`WaitQueue`] and calls [`WaitQueue::notify`] *after* it has changed state and released its own
//! lock. A task that wants to wait adds its [`Sleeper`] to the queue, checks the state once more, and sleeps. The
//! sleep ends with a [`WaitEnd`]; nothing is cancelled by dropping.
//!
//! ```text
//!           wake()                      interrupt() / kill()
//!   Idle ───────────► Woken           flags stay set until the task clears them
//!    ▲                  │
//!    └── sleep returns ─┘
//! ```

use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Poll, Waker};
use std::sync::{Arc, Weak};

use crate::clock::{Nanos, mono_now};
use crate::lock::{Mutex, rank};
use crate::relay;
use crate::timer::{TimerTarget, Timers};

bitflags::bitflags! {
    /// Readiness, with the values of `poll(2)` and `epoll(7)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Events: u32 {
        const IN = 0x001;
        const PRI = 0x002;
        const OUT = 0x004;
        const ERR = 0x008;
        const HUP = 0x010;
        const NVAL = 0x020;
        const RDNORM = 0x040;
        const RDBAND = 0x080;
        const WRNORM = 0x100;
        const WRBAND = 0x200;
        const MSG = 0x400;
        const RDHUP = 0x2000;
        /// Not of poll(2): a socket has heard that urgent data is on its way (`sk_send_sigurg`), be it there or not.
        const URGENT = 0x1_0000;

        const READABLE = Self::IN.bits() | Self::RDNORM.bits();
        const WRITABLE = Self::OUT.bits() | Self::WRNORM.bits();
        const ALWAYS = Self::ERR.bits() | Self::HUP.bits();
    }
}

/// How a wait may be ended early (`include/linux/sched.h`: `TASK_INTERRUPTIBLE` and its kin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitClass {
    /// Any deliverable signal ends it.
    Interruptible,
    /// Only a fatal signal ends it.
    Killable,
    /// Nothing but the event ends it; use it only where the event is certain.
    Uninterruptible,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitEnd {
    Ready,
    TimedOut,
    Interrupted,
    Killed,
}

/// Somebody who wants to know of readiness.
pub trait Observer: Send + Sync {
    /// Called without the queue's lock. Must not block, and must not take a lock of rank below `WaitQueue` that the
    /// notifier may hold; in practice: set a flag, wake a waker, push to a ready list.
    fn notify(&self, events: Events);

    /// The same for an exclusive observer; false when it has nobody to act on it, so that the next one is to be told.
    fn notify_exclusive(&self, events: Events) -> bool {
        self.notify(events);
        true
    }
}

/// Names an observer within one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WaitId(u64);

struct Entry {
    id: WaitId,
    mask: Events,
    exclusive: bool,
    /// `None` once it is removed.
    observer: Option<Arc<dyn Observer>>,
}

/// Ids only grow, so the list is in their order. What is removed leaves a gap until half of the list is gaps: a call
/// that waits for very many files must not move the list once for each of them.
#[derive(Default)]
struct Entries {
    next_id: u64,
    nr_gaps: usize,
    list: Vec<Entry>,
}

impl Entries {
    fn remove(&mut self, id: WaitId) -> Option<Arc<dyn Observer>> {
        let at = self.list.binary_search_by_key(&id.0, |entry| entry.id.0).ok()?;
        let gone = self.list.get_mut(at)?.observer.take()?;
        self.nr_gaps += 1;
        while self.list.pop_if(|last| last.observer.is_none()).is_some() {
            self.nr_gaps -= 1;
        }
        if self.nr_gaps > self.list.len() / 2 {
            self.list.retain(|entry| entry.observer.is_some());
            self.nr_gaps = 0;
        }
        Some(gone)
    }
}

/// The observers of one object, in order of arrival.
#[derive(Default)]
pub struct WaitQueue {
    entries: Mutex<Entries, { rank::WAIT_QUEUE }>,
}

impl core::fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("WaitQueue")
    }
}

impl WaitQueue {
    pub const fn new() -> Self {
        Self { entries: Mutex::new(Entries { next_id: 0, nr_gaps: 0, list: Vec::new() }) }
    }

    /// Adds an observer for the events in `mask` (`ERR` and `HUP` always count).
    pub fn add(&self, mask: Events, observer: Arc<dyn Observer>) -> WaitId {
        self.insert(mask, observer, false)
    }

    /// Like [`WaitQueue::add`], but one notification ends with the first exclusive observer that takes it; the others
    /// are told before (`__wake_up_common`, `kernel/sched/wait.c`).
    pub fn add_exclusive(&self, mask: Events, observer: Arc<dyn Observer>) -> WaitId {
        self.insert(mask, observer, true)
    }

    fn insert(&self, mask: Events, observer: Arc<dyn Observer>, exclusive: bool) -> WaitId {
        let mut entries = self.entries.lock();
        entries.next_id += 1;
        let id = WaitId(entries.next_id);
        let mask = mask | Events::ALWAYS;
        entries.list.push(Entry { id, mask, exclusive, observer: Some(observer) });
        id
    }

    /// Removes an observer; a notification that is already under way may still reach it.
    pub fn remove(&self, id: WaitId) {
        let gone = self.entries.lock().remove(id);
        // What goes with the observer needs no lock of ours.
        drop(gone);
    }

    /// Tells the observers of any of `events`, and whoever they pass it on to. Call it after the object's own lock is
    /// released.
    pub fn notify(&self, events: Events) {
        relay::during(|| self.tell(events));
    }

    fn tell(&self, events: Events) {
        let mut due: Vec<Arc<dyn Observer>> = Vec::new();
        let mut exclusive: Vec<Arc<dyn Observer>> = Vec::new();
        {
            let entries = self.entries.lock();
            for entry in entries.list.iter().filter(|entry| entry.mask.intersects(events)) {
                let list = if entry.exclusive { &mut exclusive } else { &mut due };
                list.extend(entry.observer.clone());
            }
        }
        for observer in due {
            observer.notify(events);
        }
        for observer in exclusive {
            if observer.notify_exclusive(events) {
                break;
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.lock().list.is_empty()
    }
}

const WOKEN: u32 = 1;
const INTERRUPTED: u32 = 2;
const KILLED: u32 = 4;
const EXPIRED: u32 = 8;

/// A task's place to sleep. One per task; shared with the queues it waits in.
#[derive(Debug)]
pub struct Sleeper {
    flags: AtomicU32,
    waker: Mutex<Option<Waker>, { rank::LEAF }>,
}

impl Default for Sleeper {
    fn default() -> Self {
        Self { flags: AtomicU32::new(0), waker: Mutex::new(None) }
    }
}

impl Observer for Sleeper {
    fn notify(&self, _events: Events) {
        self.wake();
    }
}

impl TimerTarget for Sleeper {
    fn fire(self: Arc<Self>) {
        self.raise(EXPIRED);
    }
}

impl Sleeper {
    fn raise(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::SeqCst);
        let waker = self.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the present or next sleep with [`WaitEnd::Ready`].
    pub fn wake(&self) {
        self.raise(WOKEN);
    }

    /// Ends interruptible sleeps until [`Sleeper::clear_interrupt`].
    pub fn interrupt(&self) {
        self.raise(INTERRUPTED);
    }

    /// Ends interruptible and killable sleeps for good.
    pub fn kill(&self) {
        self.raise(KILLED | INTERRUPTED);
    }

    pub fn clear_interrupt(&self) {
        self.flags.fetch_and(!INTERRUPTED, Ordering::SeqCst);
    }

    pub fn is_interrupted(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & INTERRUPTED != 0
    }

    pub fn is_killed(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & KILLED != 0
    }

    /// Forgets an earlier wake-up. Call it before adding the sleeper to a queue.
    pub fn arm(&self) {
        self.flags.fetch_and(!WOKEN, Ordering::SeqCst);
    }

    /// Sleeps until woken, interrupted as `class` allows, or past `deadline` (`CLOCK_MONOTONIC`).
    pub async fn sleep(
        self: &Arc<Self>,
        class: WaitClass,
        deadline: Option<Nanos>,
        timers: &Timers,
    ) -> WaitEnd {
        let timer = match deadline {
            Some(at) if at <= mono_now() => {
                // Ready wins over a deadline in the past: poll(0) on a ready file reports it.
                return self.check(class, deadline).unwrap_or(WaitEnd::TimedOut);
            }
            Some(at) => Some(timers.add(at, Arc::clone(self) as Arc<dyn TimerTarget>)),
            None => None,
        };
        let end = Sleep { sleeper: self, class, deadline }.await;
        if let Some(timer) = timer {
            timers.cancel(timer);
        }
        end
    }

    fn check(&self, class: WaitClass, deadline: Option<Nanos>) -> Option<WaitEnd> {
        let flags = self.flags.load(Ordering::SeqCst);
        if flags & WOKEN != 0 {
            self.flags.fetch_and(!WOKEN, Ordering::SeqCst);
            return Some(WaitEnd::Ready);
        }
        if flags & KILLED != 0 && class != WaitClass::Uninterruptible {
            return Some(WaitEnd::Killed);
        }
        if flags & INTERRUPTED != 0 && class == WaitClass::Interruptible {
            return Some(WaitEnd::Interrupted);
        }
        if flags & EXPIRED != 0 {
            // The timer of an earlier sleep may fire when that sleep has long ended. Forgotten before the clock is read: if
            // ours fires in between, its time has come.
            self.flags.fetch_and(!EXPIRED, Ordering::SeqCst);
            if deadline.is_some_and(|at| at <= mono_now()) {
                return Some(WaitEnd::TimedOut);
            }
        }
        None
    }
}

struct Sleep<'a> {
    sleeper: &'a Sleeper,
    class: WaitClass,
    deadline: Option<Nanos>,
}

impl Future for Sleep<'_> {
    type Output = WaitEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<WaitEnd> {
        if let Some(end) = self.sleeper.check(self.class, self.deadline) {
            return Poll::Ready(end);
        }
        *self.sleeper.waker.lock() = Some(cx.waker().clone());
        // A flag raised between the check and the line above found no waker.
        match self.sleeper.check(self.class, self.deadline) {
            Some(end) => Poll::Ready(end),
            None => Poll::Pending,
        }
    }
}

/// A queue whose source is a host descriptor: it is told what the host says of that, and tells what is ready by it.
#[derive(Debug, Default)]
pub struct WatchedQueue(pub WaitQueue);

impl WatchedQueue {
    /// Itself, as what watches descriptors takes it.
    pub fn observer(self: &Arc<Self>) -> Weak<dyn Observer> {
        let me: Arc<dyn Observer> = Arc::clone(self) as _;
        Arc::downgrade(&me)
    }
}

impl Observer for WatchedQueue {
    fn notify(&self, events: Events) {
        let mut events = events;
        if events.contains(Events::IN) {
            events |= Events::READABLE;
        }
        if events.contains(Events::OUT) {
            events |= Events::WRITABLE;
        }
        // The host tells of urgent data when it is there.
        if events.contains(Events::PRI) {
            events |= Events::URGENT;
        }
        self.0.notify(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_timer_of_an_earlier_sleep_ends_no_other() {
        let (timers, sleeper) = (Timers::default(), Arc::new(Sleeper::default()));
        let mut cx = Context::from_waker(Waker::noop());
        for deadline in [None, Some(mono_now() + 3_600_000_000_000)] {
            let mut sleep = core::pin::pin!(sleeper.sleep(WaitClass::Interruptible, deadline, &timers));
            assert!(sleep.as_mut().poll(&mut cx).is_pending());
            Arc::clone(&sleeper).fire();
            assert!(sleep.as_mut().poll(&mut cx).is_pending());
            sleeper.wake();
            assert_eq!(sleep.as_mut().poll(&mut cx), Poll::Ready(WaitEnd::Ready));
        }
    }
}
