//! Tells files of changes on their host descriptors.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use sentry_base::lock::rank;
use sentry_base::{Events, Mutex, WaitQueue};

/// Changes that one look takes at most.
const BATCH: usize = 32;

#[derive(Default)]
struct Watched {
    next: u64,
    queues: HashMap<u64, Weak<WaitQueue>>,
}

/// One epoll instance and the files that wait on it.
pub struct Watcher {
    epoll: OwnedFd,
    watched: Mutex<Watched, { rank::LEAF }>,
}

impl core::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    pub fn new() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Arc::new(Self { epoll, watched: Mutex::default() }))
    }

    /// Notifies `queue` of every change of `fd` from now on, until `fd` is closed. False for a file that is always
    /// ready.
    pub fn watch(&self, fd: impl AsFd, queue: &Arc<WaitQueue>) -> io::Result<bool> {
        let id = {
            let mut watched = self.watched.lock();
            watched.queues.retain(|_, queue| queue.strong_count() > 0);
            watched.next += 1;
            let id = watched.next;
            watched.queues.insert(id, Arc::downgrade(queue));
            id
        };
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET;
        match epoll::add(&self.epoll, fd, EventData::new_u64(id), flags) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => {
                self.watched.lock().queues.remove(&id);
                Ok(false)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Passes changes on, for as long as the process lives. For a thread of its own.
    pub fn run(&self) {
        let mut found: Vec<Event> = Vec::with_capacity(BATCH);
        loop {
            found.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut found), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            for event in &found {
                let queue = self.watched.lock().queues.get(&event.data.u64()).and_then(Weak::upgrade);
                let flags = event.flags;
                if let Some(queue) = queue {
                    let events = Events::from_bits_truncate(flags.bits() & 0xffff);
                    let mut all = events;
                    if events.contains(Events::IN) {
                        all |= Events::READABLE;
                    }
                    if events.contains(Events::OUT) {
                        all |= Events::WRITABLE;
                    }
                    queue.notify(all);
                }
            }
        }
    }
}
