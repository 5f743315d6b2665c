//! Contexts of native asynchronous I/O (`io_setup(2)`, `fs/aio.c`): completions that wait to be fetched, and polls that
//! wait for their file.
//!
//! Transfers are done by the submitter before its call returns, as Linux does for buffered files; what is left to do
//! later is polls alone. A context belongs to the memory of its maker, and its name is the address of a mapping in it,
//! as programs expect; nothing is kept in that mapping, so that nobody can mistake it for Linux's ring.
//!
//! **Threat.** A sandbox has at most [`MAX_REQUESTS`] requests in its contexts by their own figures, and at most
//! [`MAX_EVENTS`] completions and polls that are really there.

use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use abi::aio::IoEvent;
use platform::{AddrRange, PAGE_SIZE};
use sentry_base::lock::rank;
use sentry_base::{Errno, Events, Executor, Mutex, Observer, Result, WaitQueue, wait::WaitId};
use sentry_mm::Mm;
use sentry_vfs::FileDescription;

/// `/proc/sys/fs/aio-max-nr`.
pub const MAX_REQUESTS: u64 = 65536;

/// Completions and polls of a sandbox.
const MAX_EVENTS: u64 = 4 * MAX_REQUESTS;

/// Somebody who is told of each completion: an eventfd.
pub trait Bell: Send + Sync {
    fn ring(&self);
}

impl core::fmt::Debug for dyn Bell {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Bell")
    }
}

/// What the contexts of a sandbox hold together.
#[derive(Debug, Default)]
pub struct AioUsage {
    /// `/proc/sys/fs/aio-nr`.
    requests: AtomicU64,
    events: AtomicU64,
}

impl AioUsage {
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

fn take_from(counter: &AtomicU64, n: u64, max: u64) -> Result<()> {
    let add = |now: u64| now.checked_add(n).filter(|sum| *sum <= max);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map(drop).map_err(|_| Errno::EAGAIN)
}

/// A request as its completion names it.
#[derive(Debug, Clone)]
pub struct AioRequest {
    pub data: u64,
    /// Address of the `struct iocb`.
    pub obj: u64,
    pub bell: Option<Arc<dyn Bell>>,
}

/// A poll that waits for its file.
#[derive(Debug)]
struct PendingPoll {
    request: AioRequest,
    file: Arc<FileDescription>,
    events: Events,
    waiter: Option<WaitId>,
}

#[derive(Debug, Default)]
struct State {
    dead: bool,
    /// Requests between [`AioContext::reserve`] and their completion, polls included.
    in_flight: usize,
    next_poll: u64,
    done: VecDeque<IoEvent>,
    polls: BTreeMap<u64, PendingPoll>,
}

/// One context.
#[derive(Debug)]
pub struct AioContext {
    mapping: AddrRange,
    requests: u64,
    /// Completions that may be outstanding.
    slots: usize,
    state: Mutex<State, { rank::LEAF }>,
    queue: WaitQueue,
    usage: Arc<AioUsage>,
    executor: Arc<Executor>,
}

/// How large a context for `requests` is (`aio_setup_ring`): bytes of its mapping, and completions it has room for.
pub fn context_size(requests: u32, cpus: u32) -> Result<(u64, usize)> {
    let wanted = u64::from(requests.max(cpus.saturating_mul(4))) * 2;
    if wanted > 0x1000_0000 / 32 {
        return Err(Errno::EINVAL);
    }
    if u64::from(requests) > MAX_REQUESTS {
        return Err(Errno::EAGAIN);
    }
    let bytes = (32 + 32 * (wanted + 2)).next_multiple_of(PAGE_SIZE);
    let slots = (bytes - 32) / 32 - 1;
    Ok((bytes, usize::try_from(slots).unwrap_or(0)))
}

impl AioContext {
    /// The address that names the context.
    pub fn id(&self) -> u64 {
        self.mapping.start
    }

    pub fn mapping(&self) -> AddrRange {
        self.mapping
    }

    /// The most requests that one `io_submit` takes.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Announces completions, and the end of the context, with `IN`.
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// Sets a place aside for the completion of one request; `EAGAIN` when all are taken.
    pub fn reserve(&self) -> Result<()> {
        take_from(&self.usage.events, 1, MAX_EVENTS)?;
        let mut state = self.state.lock();
        if state.dead || state.in_flight + state.done.len() >= self.slots {
            drop(state);
            self.usage.events.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::EAGAIN);
        }
        state.in_flight += 1;
        Ok(())
    }

    /// Gives such a place back: the request was refused.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        drop(state);
        self.usage.events.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends a request for which a place is set aside.
    pub fn complete(&self, request: &AioRequest, res: i64) {
        let event = IoEvent { data: request.data, obj: request.obj, res, res2: 0 };
        {
            let mut state = self.state.lock();
            state.in_flight = state.in_flight.saturating_sub(1);
            state.done.push_back(event);
        }
        self.queue.notify(Events::IN);
        if let Some(bell) = &request.bell {
            bell.ring();
        }
    }

    /// Takes up to `max` completions; `EINVAL` from a context that is destroyed.
    pub fn take(&self, max: usize) -> Result<Vec<IoEvent>> {
        let mut state = self.state.lock();
        if state.dead {
            return Err(Errno::EINVAL);
        }
        let n = max.min(state.done.len());
        let taken: Vec<IoEvent> = state.done.drain(..n).collect();
        drop(state);
        self.usage.events.fetch_sub(taken.len() as u64, Ordering::Relaxed);
        Ok(taken)
    }

    /// Gives back what could not be handed on.
    pub fn untake(&self, events: Vec<IoEvent>) {
        self.usage.events.fetch_add(events.len() as u64, Ordering::Relaxed);
        let mut state = self.state.lock();
        for event in events.into_iter().rev() {
            state.done.push_front(event);
        }
    }

    /// Waits for `events` of `file`, for which a place is set aside; the completion tells what has come.
    pub fn poll(self: &Arc<Self>, request: AioRequest, file: Arc<FileDescription>, events: Events) {
        let events = events | Events::ALWAYS;
        let number = {
            let mut state = self.state.lock();
            if state.dead {
                drop(state);
                self.release();
                return;
            }
            let number = state.next_poll;
            state.next_poll += 1;
            let poll = PendingPoll { request, file: Arc::clone(&file), events, waiter: None };
            state.polls.insert(number, poll);
            number
        };
        if let Some(queue) = file.ops().wait_queue() {
            let observer = Arc::new_cyclic(|me| PollObserver {
                me: Weak::clone(me),
                context: Arc::downgrade(self),
                number,
                due: AtomicBool::new(false),
            });
            let id = queue.add(events, observer);
            let gone = match self.state.lock().polls.get_mut(&number) {
                Some(poll) => {
                    poll.waiter = Some(id);
                    false
                }
                None => true,
            };
            if gone {
                queue.remove(id);
            }
        }
        self.look(number);
    }

    /// Completes a poll whose file is ready.
    fn look(&self, number: u64) {
        let found = self.state.lock().polls.get(&number).map(|poll| (Arc::clone(&poll.file), poll.events));
        let Some((file, events)) = found else { return };
        let ready = file.ops().readiness() & events;
        if !ready.is_empty() {
            self.end_poll(number, i64::from(ready.bits()));
        }
    }

    fn end_poll(&self, number: u64, res: i64) {
        let Some(poll) = self.state.lock().polls.remove(&number) else { return };
        leave(&poll);
        self.complete(&poll.request, res);
    }

    /// `io_cancel(2)`: ends the poll that was submitted from `obj`; false if there is none.
    pub fn cancel(&self, obj: u64) -> bool {
        let number = {
            let state = self.state.lock();
            state.polls.iter().find(|(_, poll)| poll.request.obj == obj).map(|(number, _)| *number)
        };
        if let Some(number) = number {
            self.end_poll(number, 0);
        }
        number.is_some()
    }

    /// Ends the context: waiters get `EINVAL`, polls are forgotten.
    fn kill(&self) {
        let (polls, held) = {
            let mut state = self.state.lock();
            if state.dead {
                return;
            }
            state.dead = true;
            let polls = core::mem::take(&mut state.polls);
            let held = state.done.len() + polls.len();
            state.in_flight = state.in_flight.saturating_sub(polls.len());
            state.done = VecDeque::new();
            (polls, held)
        };
        self.usage.events.fetch_sub(held as u64, Ordering::Relaxed);
        self.usage.requests.fetch_sub(self.requests, Ordering::Relaxed);
        polls.values().for_each(leave);
        self.queue.notify(Events::IN);
    }
}

impl Drop for AioContext {
    fn drop(&mut self) {
        self.kill();
        // What was submitted and is done after the end of the context.
        let state = self.state.get_mut();
        let left = state.done.len() + state.in_flight;
        self.usage.events.fetch_sub(left as u64, Ordering::Relaxed);
    }
}

fn leave(poll: &PendingPoll) {
    if let (Some(id), Some(queue)) = (poll.waiter, poll.file.ops().wait_queue()) {
        queue.remove(id);
    }
}

/// Sits in the queue of a polled file.
struct PollObserver {
    me: Weak<PollObserver>,
    context: Weak<AioContext>,
    number: u64,
    /// A look is under way.
    due: AtomicBool,
}

impl Observer for PollObserver {
    /// The look itself takes the file's lock, which the notifier may be about to take: it happens elsewhere.
    fn notify(&self, _events: Events) {
        if self.due.swap(true, Ordering::SeqCst) {
            return;
        }
        let (Some(me), Some(context)) = (self.me.upgrade(), self.context.upgrade()) else { return };
        let executor = Arc::clone(&context.executor);
        drop(context);
        executor.spawn(async move {
            me.due.store(false, Ordering::SeqCst);
            if let Some(context) = me.context.upgrade() {
                context.look(me.number);
            }
        });
    }
}

/// The contexts of one memory, by name.
#[derive(Debug, Default)]
struct Contexts(Mutex<BTreeMap<u64, Arc<AioContext>>, { rank::LEAF }>);

fn contexts(mm: &Mm) -> Option<&Contexts> {
    let attached: &(dyn Any + Send + Sync) =
        mm.attachment().get_or_init(|| Arc::new(Contexts::default())).as_ref();
    attached.downcast_ref()
}

/// Makes a context for `requests` whose name is the start of `mapping`; `EAGAIN` where the sandbox has too many.
pub fn add(
    mm: &Mm,
    mapping: AddrRange,
    requests: u32,
    slots: usize,
    usage: &Arc<AioUsage>,
    executor: &Arc<Executor>,
) -> Result<()> {
    let requests = u64::from(requests);
    let contexts = contexts(mm).ok_or(Errno::ENOMEM)?;
    take_from(&usage.requests, requests, MAX_REQUESTS)?;
    let context = Arc::new(AioContext {
        mapping,
        requests,
        slots,
        state: Mutex::new(State::default()),
        queue: WaitQueue::new(),
        usage: Arc::clone(usage),
        executor: Arc::clone(executor),
    });
    // One whose mapping was unmapped behind its back, and whose name is given anew.
    let old = contexts.0.lock().insert(mapping.start, context);
    if let Some(old) = old {
        old.kill();
    }
    Ok(())
}

/// The context of this name; `EINVAL` if there is none.
pub fn find(mm: &Mm, id: u64) -> Result<Arc<AioContext>> {
    contexts(mm).and_then(|all| all.0.lock().get(&id).map(Arc::clone)).ok_or(Errno::EINVAL)
}

/// Ends the context of this name and returns it; `EINVAL` if there is none.
pub fn remove(mm: &Mm, id: u64) -> Result<Arc<AioContext>> {
    let context = contexts(mm).and_then(|all| all.0.lock().remove(&id)).ok_or(Errno::EINVAL)?;
    context.kill();
    Ok(context)
}
