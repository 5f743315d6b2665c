//! Watches host descriptors for those who wait (`epoll(7)`).
//!
//! A descriptor is armed for one report (`EPOLLONESHOT`) when somebody finds that he has to wait: a busy pipe that nobody
//! waits for wakes nothing.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno as HostErrno;
use sentry_base::lock::rank;
use sentry_base::wait::Observer;
use sentry_base::{Errno, Events, Mutex, Result};

use crate::from_rustix;

/// The token of the descriptor that ends [`Watcher::run`].
const STOP: u64 = 0;

struct Watch {
    observer: Weak<dyn Observer>,
    /// What is armed now.
    armed: Events,
    /// Every change is told.
    followed: bool,
}

#[derive(Default)]
struct Watches {
    last_token: u64,
    by_token: HashMap<u64, Watch>,
}

/// An epoll instance and those who wait on it.
pub struct Watcher {
    epoll: OwnedFd,
    stop: OwnedFd,
    watches: Mutex<Watches, { rank::LEAF }>,
}

impl core::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Watcher")
    }
}

fn flags(events: Events) -> EventFlags {
    // The values are the same (`EPOLLIN` is `POLLIN`).
    EventFlags::from_bits_truncate(events.bits()) | EventFlags::ONESHOT
}

impl Watcher {
    /// A watcher that nobody runs yet: give a thread to [`Watcher::run`].
    pub fn new() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(Arc::new(Self { epoll, stop, watches: Mutex::default() }))
    }

    /// Serves until [`Watcher::stop`]. Needs `epoll_wait` and `epoll_ctl` of the host.
    pub fn run(&self) {
        let mut buf: Vec<Event> = Vec::with_capacity(64);
        loop {
            buf.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut buf), None) {
                Ok(_) | Err(HostErrno::INTR) => {}
                Err(_) => return,
            }
            for event in &buf {
                let Event { flags, data } = *event;
                if data.u64() == STOP {
                    return;
                }
                self.report(data.u64(), Events::from_bits_truncate(flags.bits()));
            }
        }
    }

    /// Ends [`Watcher::run`], now or when it is called.
    pub fn stop(&self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    fn report(&self, token: u64, found: Events) {
        let (observer, events) = {
            let mut watches = self.watches.lock();
            let Some(watch) = watches.by_token.get_mut(&token) else { return };
            if watch.followed {
                (watch.observer.upgrade(), found)
            } else {
                // The kernel has disarmed it as a whole: who waits for the rest is told too, looks again and arms it anew.
                let events = found | core::mem::take(&mut watch.armed);
                (watch.observer.upgrade(), events)
            }
        };
        if let Some(observer) = observer {
            observer.notify(events);
        }
    }

    /// Enters a descriptor, disarmed. `EPERM` for one that is always ready.
    pub fn enter(&self, fd: BorrowedFd<'_>, observer: Weak<dyn Observer>) -> Result<u64> {
        let mut watches = self.watches.lock();
        watches.last_token += 1;
        let token = watches.last_token;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::ONESHOT).map_err(from_rustix)?;
        watches.by_token.insert(token, Watch { observer, armed: Events::empty(), followed: false });
        // Armed for nothing, it may still report a hang-up once; that is a spurious notification.
        Ok(token)
    }

    /// Asks for one report of `events`, or of an error or hang-up. At once if it is so already.
    pub fn arm(&self, fd: BorrowedFd<'_>, token: u64, events: Events) {
        let mut watches = self.watches.lock();
        let Some(watch) = watches.by_token.get_mut(&token) else { return };
        if watch.followed {
            return;
        }
        let wanted = watch.armed | events;
        if wanted != watch.armed
            && epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags(wanted)).is_ok()
        {
            watch.armed = wanted;
        }
    }

    /// Has every change told from now on, as an edge-triggered watch has it: for those who look at a descriptor now and then
    /// and want to hear of what is new.
    pub fn follow(&self, fd: BorrowedFd<'_>, token: u64) {
        let all = EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let mut watches = self.watches.lock();
        if let Some(watch) = watches.by_token.get_mut(&token) {
            watch.followed =
                watch.followed || epoll::modify(&self.epoll, fd, EventData::new_u64(token), all).is_ok();
        }
    }

    /// Forgets a descriptor, before it is closed.
    pub fn leave(&self, fd: BorrowedFd<'_>, token: u64) {
        let watch = self.watches.lock().by_token.remove(&token);
        let _ = epoll::delete(&self.epoll, fd);
        drop(watch);
    }

    /// Tells `observer` once when `fd` has one of `events`, an error or a hang-up: the gofer's end, for one. The watch
    /// lasts as long as the observer; `fd` must stay open until then.
    pub fn watch(&self, fd: BorrowedFd<'_>, events: Events, observer: &Arc<dyn Observer>) -> Result<()> {
        let token = self.enter(fd, Arc::downgrade(observer))?;
        self.arm(fd, token, events | Events::RDHUP);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a descriptor has at this moment (`poll(2)` without waiting).
pub fn ready_now(fd: BorrowedFd<'_>, events: Events) -> Result<Events> {
    let wanted = i16::try_from(events.bits()).map_err(|_| Errno::EINVAL)?;
    let mut interest = [hostsys::polling::Interest::new(fd.as_fd(), wanted)];
    hostsys::polling::wait(&mut interest, Some(0)).map_err(|e| Errno::from_io(&e))?;
    let found = interest.first().map_or(0, hostsys::polling::Interest::found);
    Ok(Events::from_bits_truncate(u32::from(found.cast_unsigned())))
}
