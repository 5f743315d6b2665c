//! The descriptor that answers `SECCOMP_RET_USER_NOTIF`: a supervisor receives the calls of others and says what they
//! return (`seccomp_unotify(2)`).
//!
//! ```text
//!   Waiting ── receive ──► Sent ── reply ──► Replied
//! ```
//! A call whose task is interrupted takes its notification back, whatever its state.

use core::any::Any;
use std::sync::Arc;

use abi::seccomp::{NOTIF_CONTINUE, SeccompData, SeccompNotif, SeccompNotifResp};
use sentry_base::{Errno, Events, Mutex, Result, WaitClass, WaitEnd, WaitQueue, lock::rank};
use sentry_vfs::{FileDescription, FileOps, IoStart, OpenFlags};

use super::Gate;
use crate::{Current, Restart, Stop, Task};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Sent,
    Replied { value: i64, error: i32, flags: u32 },
}

#[derive(Debug)]
struct Notice {
    id: u64,
    task: Arc<Task>,
    data: SeccompData,
    state: State,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    notices: Vec<Notice>,
    /// The last descriptor is closed.
    closed: bool,
    /// No task has the filter any more.
    orphaned: bool,
}

/// What a filter asks, and a supervisor answers.
#[derive(Debug)]
pub struct Listener {
    inner: Mutex<Inner, { rank::LEAF }>,
    events: WaitQueue,
    /// A call whose notification was received is interrupted by fatal signals alone.
    killable: bool,
}

impl Listener {
    pub(super) fn new(killable: bool) -> Arc<Self> {
        // Ids do not repeat over listeners, so that a stale one is not taken for another's.
        let next_id = sentry_base::rand::next_u64();
        let inner = Inner { next_id, ..Inner::default() };
        Arc::new(Self { inner: Mutex::new(inner), events: WaitQueue::new(), killable })
    }

    /// A description for the supervisor.
    pub fn open(self: &Arc<Self>) -> Arc<FileDescription> {
        FileDescription::new(Arc::new(ListenerFile(Arc::clone(self))), OpenFlags::RDWR, None)
    }

    /// The listener behind a description, if it is one.
    pub fn of(file: &FileDescription) -> Option<Arc<Self>> {
        file.ops().as_any().downcast_ref::<ListenerFile>().map(|f| Arc::clone(&f.0))
    }

    /// The last task with the filter is gone.
    pub(super) fn orphan(&self) {
        self.inner.lock().orphaned = true;
        self.events.notify(Events::HUP);
    }

    fn close(&self) {
        let waiting: Vec<_> = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            inner.notices.iter().map(|n| Arc::clone(&n.task)).collect()
        };
        for task in waiting {
            task.sleeper().wake();
        }
    }

    /// Has the supervisor decide about a call of `cx`.
    pub(super) async fn ask(self: &Arc<Self>, cx: &mut Current, data: SeccompData) -> Gate {
        let refused = || Gate::Answer(Err(Stop::Errno(Errno::ENOSYS)));
        let id = {
            let mut inner = self.inner.lock();
            if inner.closed {
                return refused();
            }
            let id = inner.next_id;
            inner.next_id = id.wrapping_add(1);
            inner.notices.push(Notice { id, task: Arc::clone(&cx.task), data, state: State::Waiting });
            id
        };
        self.events.notify(Events::READABLE);
        loop {
            cx.sleeper().arm();
            let class = {
                let mut inner = self.inner.lock();
                let Some(at) = inner.notices.iter().position(|n| n.id == id) else { return refused() };
                let state = inner.notices.get(at).map(|n| n.state);
                if let Some(State::Replied { value, error, flags }) = state {
                    inner.notices.remove(at);
                    if flags & NOTIF_CONTINUE != 0 {
                        return Gate::Pass;
                    }
                    return Gate::Answer(match error {
                        0 => Ok(value.cast_unsigned()),
                        // Whatever the supervisor says, as a return value.
                        error => Ok(i64::from(error).cast_unsigned()),
                    });
                }
                if inner.closed {
                    inner.notices.remove(at);
                    return refused();
                }
                if self.killable && state == Some(State::Sent) {
                    WaitClass::Killable
                } else {
                    WaitClass::Interruptible
                }
            };
            match cx.sleep(class, None).await {
                WaitEnd::Ready | WaitEnd::TimedOut => {}
                WaitEnd::Interrupted | WaitEnd::Killed => {
                    let mut inner = self.inner.lock();
                    // An answer that has come meanwhile counts.
                    if let Some(at) = inner.notices.iter().position(|n| n.id == id) {
                        if matches!(inner.notices.get(at).map(|n| n.state), Some(State::Replied { .. })) {
                            continue;
                        }
                        inner.notices.remove(at);
                    }
                    return Gate::Answer(Err(Stop::Restart(Restart::Sys)));
                }
            }
        }
    }

    /// Takes the next notification, for [`Current::block_on`]. `ENOENT` if none can come.
    pub fn receive(&self) -> Result<IoStart<SeccompNotif>> {
        let mut inner = self.inner.lock();
        let orphaned = inner.orphaned;
        match inner.notices.iter_mut().find(|n| n.state == State::Waiting) {
            Some(notice) => {
                notice.state = State::Sent;
                let pid = notice.task.tid().cast_unsigned();
                Ok(IoStart::Done(SeccompNotif { id: notice.id, pid, flags: 0, data: notice.data }))
            }
            None if orphaned => Err(Errno::ENOENT),
            None => Ok(IoStart::WouldBlock),
        }
    }

    /// Puts a notification back that could not be handed over.
    pub fn unreceive(&self, id: u64) {
        if let Some(notice) = self.inner.lock().notices.iter_mut().find(|n| n.id == id) {
            notice.state = State::Waiting;
        }
        self.events.notify(Events::READABLE);
    }

    /// The task behind a notification that was received; `ENOENT` if it is gone, `EINPROGRESS` if it is not received or
    /// has an answer.
    pub fn task_of(&self, id: u64) -> Result<Arc<Task>> {
        let inner = self.inner.lock();
        let notice = inner.notices.iter().find(|n| n.id == id).ok_or(Errno::ENOENT)?;
        if notice.state == State::Sent { Ok(Arc::clone(&notice.task)) } else { Err(Errno::EINPROGRESS) }
    }

    /// Answers a notification, under the rules of [`Listener::task_of`].
    pub fn reply(&self, answer: &SeccompNotifResp) -> Result<()> {
        let task = {
            let mut inner = self.inner.lock();
            let notice = inner.notices.iter_mut().find(|n| n.id == answer.id).ok_or(Errno::ENOENT)?;
            if notice.state != State::Sent {
                return Err(Errno::EINPROGRESS);
            }
            notice.state = State::Replied { value: answer.val, error: answer.error, flags: answer.flags };
            Arc::clone(&notice.task)
        };
        task.sleeper().wake();
        Ok(())
    }

    /// Where arriving notifications are announced.
    pub fn events(&self) -> &WaitQueue {
        &self.events
    }
}

/// The supervisor's end.
#[derive(Debug)]
struct ListenerFile(Arc<Listener>);

impl Drop for ListenerFile {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl FileOps for ListenerFile {
    fn readiness(&self) -> Events {
        let inner = self.0.inner.lock();
        let mut events = Events::empty();
        for notice in &inner.notices {
            match notice.state {
                State::Waiting => events |= Events::READABLE,
                State::Sent => events |= Events::WRITABLE,
                State::Replied { .. } => {}
            }
        }
        if inner.orphaned {
            events |= Events::HUP;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.events)
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:seccomp notify".to_owned())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
