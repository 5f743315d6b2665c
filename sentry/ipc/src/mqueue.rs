//! POSIX message queues (`mq_overview(7)`, `ipc/mqueue.c`).

use core::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use abi::ipc::MqAttr;
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank};
use sentry_memory::UserWriter;
use sentry_vfs::{Attr, Credentials, FileKind, FileOps, IoCtx, IoStart, OpenFlags, Pos, cap};

use crate::{Limit, Limits};

/// Priorities are below this (`MQ_PRIO_MAX`).
pub const PRIORITY_MAX: u32 = 32_768;
/// What nobody exceeds (`HARD_MSGMAX`, `HARD_MSGSIZEMAX`).
const HARD_MESSAGES: i64 = 65_536;
const HARD_MESSAGE_BYTES: i64 = 16 << 20;

/// Whom a message on an empty queue is announced to; called once with the sender's process and user.
pub type Tell = Box<dyn FnOnce(i32, u32) + Send>;

/// A registration of `mq_notify(3)`.
pub struct Notifier {
    pub pid: i32,
    /// What the queue's text says: 0 for a signal, 1 for none, 2 for a thread.
    pub kind: i32,
    pub signo: i32,
    /// `None` for `SIGEV_NONE`.
    pub tell: Option<Tell>,
}

impl core::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Notifier({})", self.pid)
    }
}

#[derive(Debug)]
struct State {
    /// By priority, the oldest of each first.
    messages: BTreeMap<u32, VecDeque<Vec<u8>>>,
    count: i64,
    bytes: u64,
    notifier: Option<Notifier>,
    /// Receivers that wait: a message goes to them and is not announced.
    receivers: u32,
}

/// A queue.
#[derive(Debug)]
pub struct Mqueue {
    ino: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    max_messages: i64,
    message_bytes: i64,
    /// What it counts against its maker's `RLIMIT_MSGQUEUE`.
    charge: u64,
    state: Mutex<State, { rank::LEAF }>,
    events: WaitQueue,
}

#[derive(Debug, Default)]
struct Names {
    by_name: HashMap<Vec<u8>, Arc<Mqueue>>,
    /// Every queue that is not yet gone, unlinked ones included, for the users' limits.
    all: Vec<std::sync::Weak<Mqueue>>,
    next_ino: u64,
}

/// The queues of a namespace.
#[derive(Debug)]
pub struct Queues {
    limits: Arc<Limits>,
    names: Mutex<Names, { rank::FILE_DATA }>,
}

/// How a queue is to be opened.
#[derive(Debug)]
pub struct MqOpen<'a> {
    pub name: &'a [u8],
    pub flags: OpenFlags,
    /// The mode of a new queue, the umask applied.
    pub mode: u32,
    pub attr: Option<MqAttr>,
    /// `RLIMIT_MSGQUEUE`, in bytes.
    pub limit: u64,
}

fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" => Err(Errno::ENOENT),
        n if n.len() > 255 => Err(Errno::ENAMETOOLONG),
        n if n.contains(&b'/') || n == b"." || n == b".." => Err(Errno::EACCES),
        _ => Ok(()),
    }
}

/// Messages and bytes a message of a new queue (`mq_attr_ok`).
fn sizes(attr: Option<MqAttr>, creds: &Credentials, limits: &Limits) -> Result<(i64, i64)> {
    let limit = |limit| i64::from(limits.int(limit));
    let (messages, bytes) = (limit(Limit::MqMsgMax), limit(Limit::MqMsgsizeMax));
    let Some(attr) = attr else {
        let default = (limit(Limit::MqMsgDefault), limit(Limit::MqMsgsizeDefault));
        return Ok((messages.min(default.0), bytes.min(default.1)));
    };
    let (most, longest) = if creds.has_cap(cap::SYS_RESOURCE) {
        (HARD_MESSAGES, HARD_MESSAGE_BYTES)
    } else {
        (messages, bytes)
    };
    if (1..=most).contains(&attr.maxmsg) && (1..=longest).contains(&attr.msgsize) {
        Ok((attr.maxmsg, attr.msgsize))
    } else {
        Err(Errno::EINVAL)
    }
}

/// What a queue counts against the limit: the messages, and the kernel's records of them.
fn charge(messages: i64, bytes: i64) -> u64 {
    const RECORD: u64 = 48;
    let messages = messages.unsigned_abs();
    let records = messages * RECORD + messages.min(u64::from(PRIORITY_MAX)) * RECORD;
    records.saturating_add(messages.saturating_mul(bytes.unsigned_abs()))
}

impl Queues {
    pub(crate) fn new(limits: &Arc<Limits>) -> Self {
        Self { limits: Arc::clone(limits), names: Mutex::default() }
    }

    /// Opens or makes a queue (`mq_open(3)`); the name comes without its slash.
    pub fn open(&self, open: &MqOpen<'_>, creds: &Credentials) -> Result<Arc<MqueueFile>> {
        check_name(open.name)?;
        let mut names = self.names.lock();
        let found = names.by_name.get(open.name).cloned();
        let queue = match found {
            Some(_) if open.flags.contains(OpenFlags::CREAT | OpenFlags::EXCL) => {
                return Err(Errno::EEXIST);
            }
            Some(queue) => {
                queue.check_access(open.flags, creds)?;
                queue
            }
            None if !open.flags.contains(OpenFlags::CREAT) => return Err(Errno::ENOENT),
            None => {
                names.all.retain(|q| q.strong_count() > 0);
                let most = self.limits.count(Limit::MqQueuesMax);
                if names.by_name.len() >= most && !creds.has_cap(cap::SYS_RESOURCE) {
                    return Err(Errno::ENOSPC);
                }
                let (max_messages, message_bytes) = sizes(open.attr, creds, &self.limits)?;
                let charge = charge(max_messages, message_bytes);
                let used: u64 = names
                    .all
                    .iter()
                    .filter_map(std::sync::Weak::upgrade)
                    .filter(|q| q.uid == creds.fsuid)
                    .map(|q| q.charge)
                    .sum();
                if used.saturating_add(charge) > open.limit {
                    return Err(Errno::EMFILE);
                }
                names.next_ino += 1;
                let queue = Arc::new(Mqueue {
                    ino: names.next_ino,
                    mode: open.mode & 0o777,
                    uid: creds.fsuid,
                    gid: creds.fsgid,
                    max_messages,
                    message_bytes,
                    charge,
                    state: Mutex::new(State {
                        messages: BTreeMap::new(),
                        count: 0,
                        bytes: 0,
                        notifier: None,
                        receivers: 0,
                    }),
                    events: WaitQueue::new(),
                });
                names.by_name.insert(open.name.to_vec(), Arc::clone(&queue));
                names.all.push(Arc::downgrade(&queue));
                queue
            }
        };
        Ok(Arc::new(MqueueFile { queue }))
    }

    /// Removes a name (`mq_unlink(3)`); those who have the queue open keep it.
    pub fn unlink(&self, name: &[u8], creds: &Credentials) -> Result<()> {
        check_name(name)?;
        let removed = {
            let mut names = self.names.lock();
            let queue = names.by_name.get(name).ok_or(Errno::ENOENT)?;
            // The directory is sticky and anybody may write to it.
            if queue.uid != creds.fsuid && !creds.has_cap(cap::FOWNER) {
                return Err(Errno::EPERM);
            }
            names.by_name.remove(name)
        };
        drop(removed);
        Ok(())
    }
}

impl Mqueue {
    fn check_access(&self, flags: OpenFlags, creds: &Credentials) -> Result<()> {
        let mut want = 0;
        if flags.bits() & 3 != 1 {
            want |= 4;
        }
        if flags.bits() & 3 != 0 {
            want |= 2;
        }
        let granted = if creds.fsuid == self.uid {
            self.mode >> 6
        } else if creds.in_group(self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if want & !granted == 0 || creds.has_cap(cap::DAC_OVERRIDE) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// `mq_getattr(3)`, the flags aside.
    pub fn attr(&self) -> MqAttr {
        MqAttr {
            maxmsg: self.max_messages,
            msgsize: self.message_bytes,
            curmsgs: self.state.lock().count,
            ..MqAttr::default()
        }
    }

    /// The longest message in bytes.
    pub fn message_bytes(&self) -> usize {
        usize::try_from(self.message_bytes).unwrap_or(0)
    }

    /// Where changes are announced.
    pub fn events(&self) -> &WaitQueue {
        &self.events
    }

    /// Adds a message if there is room; `sender` is its process and user. A message on an empty queue is announced unless
    /// somebody waits for it.
    pub fn try_send(&self, message: &[u8], priority: u32, sender: (i32, u32)) -> IoStart<()> {
        let told = {
            let mut state = self.state.lock();
            if state.count >= self.max_messages {
                return IoStart::WouldBlock;
            }
            let was_empty = state.count == 0;
            state.messages.entry(priority).or_default().push_back(message.to_vec());
            state.count += 1;
            state.bytes += message.len() as u64;
            if was_empty && state.receivers == 0 { state.notifier.take() } else { None }
        };
        if let Some(tell) = told.and_then(|n| n.tell) {
            tell(sender.0, sender.1);
        }
        self.events.notify(Events::READABLE);
        IoStart::Done(())
    }

    /// Takes the oldest message of the highest priority.
    pub fn try_receive(&self) -> IoStart<(Vec<u8>, u32)> {
        let taken = {
            let mut state = self.state.lock();
            let Some(mut entry) = state.messages.last_entry() else { return IoStart::WouldBlock };
            let priority = *entry.key();
            let message = entry.get_mut().pop_front().unwrap_or_default();
            if entry.get().is_empty() {
                entry.remove();
            }
            state.count -= 1;
            state.bytes = state.bytes.saturating_sub(message.len() as u64);
            (message, priority)
        };
        self.events.notify(Events::WRITABLE);
        IoStart::Done(taken)
    }

    /// A receiver begins (`true`) or ends to wait.
    pub fn set_waiting(&self, waits: bool) {
        let mut state = self.state.lock();
        state.receivers = if waits { state.receivers + 1 } else { state.receivers.saturating_sub(1) };
    }

    /// Registers the one to be told of the next message (`mq_notify(3)`). `EBUSY` if there is one.
    pub fn notify_me(&self, notifier: Notifier) -> Result<()> {
        let mut state = self.state.lock();
        if state.notifier.is_some() {
            return Err(Errno::EBUSY);
        }
        state.notifier = Some(notifier);
        Ok(())
    }

    /// Takes back the registration of process `pid`, if it is its.
    pub fn forget_notifier(&self, pid: i32) {
        let old = {
            let mut state = self.state.lock();
            let own = state.notifier.as_ref().is_some_and(|n| n.pid == pid);
            if own { state.notifier.take() } else { None }
        };
        drop(old);
    }
}

/// A queue's descriptor.
#[derive(Debug)]
pub struct MqueueFile {
    queue: Arc<Mqueue>,
}

impl MqueueFile {
    pub fn queue(&self) -> &Arc<Mqueue> {
        &self.queue
    }
}

impl FileOps for MqueueFile {
    fn readiness(&self) -> Events {
        let count = self.queue.state.lock().count;
        let mut events = Events::empty();
        if count > 0 {
            events |= Events::READABLE;
        }
        if count < self.queue.max_messages {
            events |= Events::WRITABLE;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue.events)
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let text = {
            let state = self.queue.state.lock();
            let (kind, signo, pid) = state.notifier.as_ref().map_or((0, 0, 0), |n| (n.kind, n.signo, n.pid));
            format!("QSIZE:{:<10} NOTIFY:{kind:<5} SIGNO:{signo:<5} NOTIFY_PID:{pid:<6}\n", state.bytes)
        };
        let from = match pos {
            Pos::At(at) => usize::try_from(at).unwrap_or(usize::MAX),
            _ => 0,
        };
        let rest = text.as_bytes().get(from..).unwrap_or_default();
        Ok(IoStart::Done(dst.write(rest)?))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn attr(&self) -> Option<Result<Attr>> {
        let queue = &self.queue;
        let attr = Attr::new(FileKind::Regular, queue.mode, queue.ino, libc::makedev(0, 19));
        Some(Ok(Attr { uid: queue.uid, gid: queue.gid, size: 80, ..attr }))
    }

    fn flush(&self, pid: i32) {
        self.queue.forget_notifier(pid);
    }

    fn link_text(&self) -> Option<String> {
        Some("/mqueue".to_owned())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
