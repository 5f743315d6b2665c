//! epoll: many files watched as one (`epoll(7)`, `fs/eventpoll.c`).
//!
//! An item sits in the wait queue of the file that it watches. A notification puts it on the instance's ready list
//! once; collecting takes it off *before* it asks the file, so that an event in between puts it back. A
//! level-triggered item that is still ready goes to the end of the list again.

use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Weak};

use abi::poll::{EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLWAKEUP, EpollEvent};
use sentry_base::{Errno, Events, Mutex, Observer, Relay, Result, WaitId, WaitQueue, lock::rank, relay};
use sentry_vfs::{Attr, CloseWatcher, FileDescription, FileOps};

/// Bits of an item's event word that are no events.
const PRIVATE: u32 = EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE;
/// What may be asked together with `EPOLLEXCLUSIVE`.
const WITH_EXCLUSIVE: u32 = Events::IN.bits()
    | Events::OUT.bits()
    | Events::ERR.bits()
    | Events::HUP.bits()
    | EPOLLWAKEUP
    | EPOLLET
    | EPOLLEXCLUSIVE;
/// Instances below one another, the outermost included.
const MAX_NESTS: usize = 5;
/// Instances that may watch one instance (`path_limits` of `fs/eventpoll.c`, for one step).
const MAX_PARENTS: usize = 500;

/// Held while instances are put into one another, so that two such calls cannot close a loop together.
static TOPOLOGY: Mutex<(), 47> = Mutex::new(());

/// A change of the interest set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpollOp {
    Add(EpollEvent),
    Modify(EpollEvent),
    Delete,
}

/// A descriptor number and the id of the description behind it when it was added.
type Key = (i32, u64);

/// One watched descriptor.
struct Item {
    me: Weak<Item>,
    epoll: Weak<Epoll>,
    file: Weak<FileDescription>,
    key: Key,
    /// Whether the file is an instance itself.
    nested: bool,
    /// The event word as set, `ERR` and `HUP` included; only private bits while a one-shot item is spent.
    events: AtomicU32,
    data: AtomicU64,
    queued: AtomicBool,
    wait: Mutex<Option<WaitId>, { rank::LEAF }>,
}

impl Item {
    /// The events to look for; empty for a spent item.
    fn mask(&self) -> Events {
        Events::from_bits_truncate(self.events.load(Ordering::SeqCst) & !PRIVATE)
    }

    fn set(&self, event: EpollEvent) {
        self.data.store(event.data, Ordering::SeqCst);
        self.events.store(event.events | Events::ALWAYS.bits(), Ordering::SeqCst);
    }

    fn detach(&self, ops: &Arc<dyn FileOps>) {
        let id = self.wait.lock().take();
        if let (Some(queue), Some(id)) = (ops.wait_queue(), id) {
            queue.remove(id);
        }
        if let Some(inner) = ops.as_any().downcast_ref::<Epoll>() {
            inner.parents.lock().retain(|p| !p.ptr_eq(&self.epoll));
        }
    }
}

impl Observer for Item {
    fn notify(&self, events: Events) {
        if !self.mask().intersects(events) {
            return;
        }
        let Some(epoll) = self.epoll.upgrade() else { return };
        epoll.make_ready(self);
        if !epoll.told.swap(true, Ordering::SeqCst) {
            relay::pass_on(epoll);
        }
    }

    /// An instance on which nobody waits lets the next one be told (`ep_poll_callback`, `fs/eventpoll.c`).
    fn notify_exclusive(&self, events: Events) -> bool {
        let waited_for = self.epoll.upgrade().is_some_and(|epoll| !epoll.queue.is_empty());
        self.notify(events);
        waited_for && self.mask().intersects(events)
    }
}

/// An epoll instance.
pub struct Epoll {
    me: Weak<Epoll>,
    interest: Mutex<BTreeMap<Key, Arc<Item>>, { rank::EPOLL_INTEREST }>,
    ready: Mutex<VecDeque<Arc<Item>>, { rank::LEAF }>,
    queue: WaitQueue,
    /// Whether its observers are about to be told.
    told: AtomicBool,
    /// The instances that watch this one, each once for every item.
    parents: Mutex<Vec<Weak<Epoll>>, { rank::LEAF }>,
}

impl core::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Epoll")
    }
}

impl Epoll {
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            interest: Mutex::new(BTreeMap::new()),
            ready: Mutex::new(VecDeque::new()),
            queue: WaitQueue::new(),
            told: AtomicBool::new(false),
            parents: Mutex::new(Vec::new()),
        })
    }

    fn make_ready(&self, item: &Item) {
        if !item.queued.swap(true, Ordering::SeqCst)
            && let Some(item) = item.me.upgrade()
        {
            self.ready.lock().push_back(item);
        }
    }

    /// Changes the interest in `file`, known to the caller as descriptor `fd` (`epoll_ctl(2)`). `EPERM` for a file
    /// that cannot be waited for, `ELOOP` for instances in a circle or too deep.
    pub fn control(&self, fd: i32, file: &Arc<FileDescription>, op: EpollOp) -> Result<()> {
        let ops = file.ops();
        let Some(queue) = ops.wait_queue() else { return Err(Errno::EPERM) };
        let inner = ops.as_any().downcast_ref::<Self>();
        if inner.is_some_and(|inner| core::ptr::eq(inner, self)) {
            return Err(Errno::EINVAL);
        }
        let exclusive = |e: &EpollEvent| e.events & EPOLLEXCLUSIVE != 0;
        match op {
            EpollOp::Add(event)
                if exclusive(&event) && (inner.is_some() || event.events & !WITH_EXCLUSIVE != 0) =>
            {
                return Err(Errno::EINVAL);
            }
            EpollOp::Modify(event) if exclusive(&event) => return Err(Errno::EINVAL),
            _ => {}
        }
        let key = (fd, file.id());
        match op {
            EpollOp::Add(event) => self.add(key, file, queue, inner, event),
            EpollOp::Modify(event) => {
                let item = self.interest.lock().get(&key).map(Arc::clone).ok_or(Errno::ENOENT)?;
                if item.events.load(Ordering::SeqCst) & EPOLLEXCLUSIVE != 0 {
                    return Err(Errno::EINVAL);
                }
                item.set(event);
                self.look(&item, ops);
                Ok(())
            }
            EpollOp::Delete => {
                let item = self.interest.lock().remove(&key).ok_or(Errno::ENOENT)?;
                item.detach(ops);
                Ok(())
            }
        }
    }

    fn add(
        &self,
        key: Key,
        file: &Arc<FileDescription>,
        queue: &WaitQueue,
        inner: Option<&Self>,
        event: EpollEvent,
    ) -> Result<()> {
        let topology = inner.map(|_| TOPOLOGY.lock());
        if let Some(inner) = inner {
            if inner.reaches(self, &mut BTreeSet::new()) {
                return Err(Errno::ELOOP);
            }
            if self.height(&mut BTreeMap::new()) + inner.depth(&mut BTreeMap::new()) > MAX_NESTS {
                return Err(Errno::ELOOP);
            }
            if inner.parents.lock().len() >= MAX_PARENTS {
                return Err(Errno::EINVAL);
            }
        }
        let item = Arc::new_cyclic(|me| Item {
            me: Weak::clone(me),
            epoll: Weak::clone(&self.me),
            file: Arc::downgrade(file),
            key,
            nested: inner.is_some(),
            events: AtomicU32::new(0),
            data: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            wait: Mutex::new(None),
        });
        item.set(event);
        {
            let mut interest = self.interest.lock();
            if interest.contains_key(&key) {
                return Err(Errno::EEXIST);
            }
            interest.insert(key, Arc::clone(&item));
        }
        if let Some(inner) = inner {
            inner.parents.lock().push(Weak::clone(&self.me));
        }
        drop(topology);
        file.watch_close(Weak::clone(&self.me) as Weak<dyn CloseWatcher>);
        // All events: which ones count may change later without touching the file.
        let observer = Arc::clone(&item) as Arc<dyn Observer>;
        let id = if event.events & EPOLLEXCLUSIVE == 0 {
            queue.add(Events::all(), observer)
        } else {
            queue.add_exclusive(Events::all(), observer)
        };
        *item.wait.lock() = Some(id);
        self.look(&item, file.ops());
        Ok(())
    }

    /// Makes the item ready if its file is.
    fn look(&self, item: &Item, ops: &Arc<dyn FileOps>) {
        if item.mask().intersects(ops.readiness()) {
            self.make_ready(item);
            self.queue.notify(Events::READABLE);
        }
    }

    /// The instances that this one watches.
    fn children(&self) -> Vec<Arc<FileDescription>> {
        self.interest.lock().values().filter(|i| i.nested).filter_map(|i| i.file.upgrade()).collect()
    }

    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Whether `target` is this instance or below it; `seen` are those known not to lead there. There are no circles, and
    /// no more than [`MAX_NESTS`] steps.
    fn reaches(&self, target: &Self, seen: &mut BTreeSet<usize>) -> bool {
        if core::ptr::eq(self, target) {
            return true;
        }
        seen.insert(self.address())
            && self.children().iter().any(|file| {
                file.ops().as_any().downcast_ref::<Self>().is_some_and(|child| child.reaches(target, seen))
            })
    }

    /// Instances from this one down, itself included; `known` are those that were asked before.
    fn depth(&self, known: &mut BTreeMap<usize, usize>) -> usize {
        if let Some(depth) = known.get(&self.address()) {
            return *depth;
        }
        let mut deepest = 0;
        for file in self.children() {
            if let Some(child) = file.ops().as_any().downcast_ref::<Self>() {
                deepest = deepest.max(child.depth(known));
            }
        }
        known.insert(self.address(), deepest + 1);
        deepest + 1
    }

    /// Instances from this one up, itself included; `known` as above.
    fn height(&self, known: &mut BTreeMap<usize, usize>) -> usize {
        if let Some(height) = known.get(&self.address()) {
            return *height;
        }
        let parents: Vec<Arc<Self>> = self.parents.lock().iter().filter_map(Weak::upgrade).collect();
        let highest = parents.iter().map(|parent| parent.height(known)).max().unwrap_or(0);
        known.insert(self.address(), highest + 1);
        highest + 1
    }

    /// Takes up to `max` events that are due now (`ep_send_events`).
    pub fn collect(&self, max: usize) -> Vec<EpollEvent> {
        let mut out = Vec::new();
        // Files are let go after the lock: the last reference to one closes it, which comes back here.
        let mut held = Vec::new();
        let interest = self.interest.lock();
        let mut batch = core::mem::take(&mut *self.ready.lock());
        let mut again = Vec::new();
        while out.len() < max {
            let Some(item) = batch.pop_front() else { break };
            item.queued.store(false, Ordering::SeqCst);
            if !interest.get(&item.key).is_some_and(|i| Arc::ptr_eq(i, &item)) {
                continue;
            }
            let Some(file) = item.file.upgrade() else { continue };
            let word = item.events.load(Ordering::SeqCst);
            let due = file.ops().readiness() & item.mask();
            held.push(file);
            if due.is_empty() {
                continue;
            }
            out.push(EpollEvent { events: due.bits(), data: item.data.load(Ordering::SeqCst) });
            if word & EPOLLONESHOT != 0 {
                item.events.store(word & PRIVATE, Ordering::SeqCst);
            } else if word & EPOLLET == 0 {
                again.push(item);
            }
        }
        {
            let mut ready = self.ready.lock();
            // What was not looked at keeps its place before what came meanwhile.
            while let Some(item) = batch.pop_back() {
                ready.push_front(item);
            }
            for item in again {
                if !item.queued.swap(true, Ordering::SeqCst) {
                    ready.push_back(item);
                }
            }
        }
        drop(interest);
        drop(held);
        out
    }
}

impl Relay for Epoll {
    fn pass_on(&self) {
        // First, so that whoever comes after this is passed on again.
        self.told.store(false, Ordering::SeqCst);
        self.queue.notify(Events::READABLE);
    }
}

impl CloseWatcher for Epoll {
    fn closed(&self, id: u64, ops: &Arc<dyn FileOps>) {
        let mut gone = Vec::new();
        self.interest.lock().retain(|key, item| {
            let keep = key.1 != id;
            if !keep {
                gone.push(Arc::clone(item));
            }
            keep
        });
        for item in gone {
            item.detach(ops);
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for item in core::mem::take(self.interest.get_mut()).into_values() {
            if let Some(file) = item.file.upgrade() {
                item.detach(file.ops());
            }
        }
    }
}

impl FileOps for Epoll {
    fn readiness(&self) -> Events {
        let mut held = Vec::new();
        let interest = self.interest.lock();
        let mut due = false;
        loop {
            let Some(item) = self.ready.lock().front().map(Arc::clone) else { break };
            let file = item.file.upgrade();
            let known = interest.get(&item.key).is_some_and(|i| Arc::ptr_eq(i, &item));
            if known && let Some(file) = &file {
                // Off the list before the question, as in `collect`.
                self.ready.lock().pop_front();
                item.queued.store(false, Ordering::SeqCst);
                if file.ops().readiness().intersects(item.mask()) {
                    if !item.queued.swap(true, Ordering::SeqCst) {
                        self.ready.lock().push_front(item);
                    }
                    due = true;
                }
            } else {
                self.ready.lock().pop_front();
                item.queued.store(false, Ordering::SeqCst);
            }
            held.push(file);
            if due {
                break;
            }
        }
        drop(interest);
        drop(held);
        if due { Events::READABLE } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Option<Result<Attr>> {
        Some(Ok(crate::anon_attr()))
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:[eventpoll]".into())
    }

    fn fdinfo(&self) -> String {
        let mut out = String::new();
        for item in self.interest.lock().values() {
            let _ = writeln!(
                out,
                "tfd: {:8} events: {:8x} data: {:16x}  pos:0 ino:0 sdev:0",
                item.key.0,
                item.events.load(Ordering::Relaxed),
                item.data.load(Ordering::Relaxed),
            );
        }
        out
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventFd;
    use sentry_base::Sleeper;
    use sentry_memory::{UserReader, UserWriter};
    use sentry_vfs::testing::TestCaller;
    use sentry_vfs::{OpenFlags, Pos};

    fn open(ops: Arc<dyn FileOps>) -> Arc<FileDescription> {
        FileDescription::new(ops, OpenFlags::RDWR, None)
    }

    fn event(events: u32, data: u64) -> EpollEvent {
        EpollEvent { events, data }
    }

    fn add(fd: &Arc<FileDescription>, n: u64) {
        let c = TestCaller::new(1);
        let io = c.io(OpenFlags::default());
        fd.ops().try_write(&io, &mut UserReader::buffer(&n.to_ne_bytes()), Pos::Stream).unwrap();
    }

    fn drain(fd: &Arc<FileDescription>) {
        let c = TestCaller::new(1);
        let io = c.io(OpenFlags::default());
        fd.ops().try_read(&io, &mut UserWriter::buffer(&mut [0; 8]), Pos::Stream).unwrap();
    }

    const IN: u32 = Events::IN.bits();

    #[test]
    fn level_edge_and_oneshot() {
        let epoll = Epoll::new();
        let file = open(EventFd::new(0, false));
        for (flags, after_first) in [(0, 1), (EPOLLET, 0), (EPOLLONESHOT, 0)] {
            epoll.control(3, &file, EpollOp::Add(event(IN | flags, 7))).unwrap();
            assert_eq!(epoll.control(3, &file, EpollOp::Add(event(IN, 7))), Err(Errno::EEXIST));
            assert!(epoll.collect(10).is_empty());
            add(&file, 1);
            assert_eq!(epoll.collect(10), [event(IN, 7)]);
            assert_eq!(epoll.collect(10).len(), after_first);
            add(&file, 1);
            assert_eq!(epoll.collect(10).len(), usize::from(flags != EPOLLONESHOT));
            epoll.control(3, &file, EpollOp::Modify(event(IN | flags, 8))).unwrap();
            assert_eq!(epoll.collect(10), [event(IN, 8)]);
            drain(&file);
            assert!(epoll.collect(10).is_empty());
            epoll.control(3, &file, EpollOp::Delete).unwrap();
            add(&file, 1);
            assert!(epoll.collect(10).is_empty());
            drain(&file);
        }
        assert_eq!(epoll.control(3, &file, EpollOp::Delete), Err(Errno::ENOENT));
    }

    #[test]
    fn closing_the_description_removes_the_item() {
        let epoll = Epoll::new();
        let counter = EventFd::new(1, false);
        let file = open(Arc::clone(&counter) as Arc<dyn FileOps>);
        epoll.control(3, &file, EpollOp::Add(event(IN, 1))).unwrap();
        epoll.control(4, &file, EpollOp::Add(event(IN, 2))).unwrap();
        assert_eq!(epoll.collect(10).len(), 2);
        drop(file);
        assert!(epoll.collect(10).is_empty());
        assert!(counter.wait_queue().unwrap().is_empty());
        let file = open(Arc::clone(&counter) as Arc<dyn FileOps>);
        epoll.control(3, &file, EpollOp::Add(event(IN, 1))).unwrap();
        drop(epoll);
        assert!(counter.wait_queue().unwrap().is_empty());
    }

    #[test]
    fn instances_nest_but_not_in_circles() {
        let file = open(EventFd::new(0, false));
        let chain: Vec<_> = (0..6).map(|_| Epoll::new()).collect();
        let files: Vec<_> = chain.iter().map(|e| open(Arc::clone(e) as Arc<dyn FileOps>)).collect();
        chain[0].control(9, &file, EpollOp::Add(event(IN, 0))).unwrap();
        // From the outside in, so that only a look both ways finds the depth.
        for i in (0..4).rev() {
            chain[i + 1].control(0, &files[i], EpollOp::Add(event(IN, 0))).unwrap();
        }
        assert_eq!(chain[5].control(0, &files[4], EpollOp::Add(event(IN, 0))), Err(Errno::ELOOP));
        assert_eq!(chain[0].control(0, &files[4], EpollOp::Add(event(IN, 0))), Err(Errno::ELOOP));
        assert_eq!(chain[0].control(0, &files[0], EpollOp::Add(event(IN, 0))), Err(Errno::EINVAL));
        let sleeper = Arc::new(Sleeper::default());
        chain[4].wait_queue().unwrap().add(Events::IN, sleeper);
        assert_eq!(chain[4].readiness(), Events::empty());
        add(&file, 1);
        assert_eq!(chain[4].readiness(), Events::READABLE);
        assert_eq!(chain[4].collect(1).len(), 1);
        drain(&file);
        assert_eq!(chain[4].readiness(), Events::empty());
        // Out of the chain, the inner one may be put elsewhere.
        chain[4].control(0, &files[3], EpollOp::Delete).unwrap();
        chain[5].control(0, &files[3], EpollOp::Add(event(IN, 0))).unwrap();
    }

    /// Counts how often it is told.
    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Observer for Counter {
        fn notify(&self, _events: Events) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn many_ways_to_an_instance_tell_it_once() {
        let file = open(EventFd::new(0, false));
        let counter = Arc::new(Counter::default());
        let mut layers = vec![vec![Arc::clone(&file)]];
        for at in 0..4 {
            let layer: Vec<_> = (0..20).map(|_| Epoll::new()).collect();
            for instance in &layer {
                for (fd, watched) in (0..).zip(&layers[at]) {
                    instance.control(fd, watched, EpollOp::Add(event(IN, 0))).unwrap();
                }
            }
            layers.push(layer.into_iter().map(|epoll| open(epoll as Arc<dyn FileOps>)).collect());
        }
        let top = &layers[4][0];
        top.ops().wait_queue().unwrap().add(Events::IN, Arc::clone(&counter) as Arc<dyn Observer>);
        add(&file, 1);
        assert_eq!(counter.0.load(Ordering::Relaxed), 1);
        assert_eq!(top.ops().readiness(), Events::READABLE);
    }

    #[test]
    fn the_number_of_events_is_kept_and_turns_are_taken() {
        let epoll = Epoll::new();
        let files: Vec<_> = (0..3).map(|_| open(EventFd::new(1, false))).collect();
        for (i, file) in (0..).zip(&files) {
            epoll.control(i, file, EpollOp::Add(event(IN, u64::try_from(i).unwrap()))).unwrap();
        }
        let seen: Vec<u64> = (0..6).flat_map(|_| epoll.collect(1)).map(|e| e.data).collect();
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }
}
