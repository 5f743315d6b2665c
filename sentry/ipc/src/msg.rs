//! System V message queues (`msgsnd(2)`, `ipc/msg.c`).

use std::collections::VecDeque;
use std::sync::Arc;

use abi::ipc::{IPC_PRIVATE, IpcPerm, MsqidDs};
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank};
use sentry_vfs::{Credentials, IoStart, cap};

use crate::registry::{Entry, Registry};
use crate::{Limit, Limits, Perm, now_s};

#[derive(Debug)]
struct Message {
    kind: i64,
    text: Arc<[u8]>,
}

#[derive(Debug)]
struct State {
    perm: Perm,
    messages: VecDeque<Message>,
    bytes: u64,
    limit: u64,
    stime: i64,
    rtime: i64,
    ctime: i64,
    last_sender: i32,
    last_receiver: i32,
    removed: bool,
}

/// A queue.
#[derive(Debug)]
pub struct MessageQueue {
    state: Mutex<State, { rank::LEAF }>,
    changed: WaitQueue,
}

/// Which message is wanted (`msgtyp` of `msgrcv(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    First,
    Type(i64),
    /// `MSG_EXCEPT`.
    Not(i64),
    /// The lowest type that is no more than this.
    UpTo(i64),
    /// `MSG_COPY`: at this position, which stays.
    Copy(usize),
}

/// A message as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub kind: i64,
    /// Cut to the room that there is.
    pub text: Vec<u8>,
}

impl Registry<MessageQueue> {
    /// The queue of `key`, or a new one.
    pub fn get_queue(&self, key: i32, flags: u32, creds: &Credentials) -> Result<i32> {
        let bytes = self.limits().get(Limit::MsgMnb);
        self.get(key, flags, creds, |_| Ok(()), |perm, _| Ok(MessageQueue::new(perm, bytes)))
    }

    /// `/proc/sysvipc/msg`.
    pub fn table(&self) -> String {
        use core::fmt::Write;
        let mut out = String::from(
            "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      \
             rtime      ctime\n",
        );
        for queue in self.all() {
            let (perm, s) = (queue.perm(), queue.stat());
            let _ = writeln!(
                out,
                "{:10} {:10}  {:4o}  {:10} {:10} {:5} {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10}",
                perm.key,
                perm.id,
                perm.mode,
                s.cbytes,
                s.qnum,
                s.lspid,
                s.lrpid,
                perm.uid,
                perm.gid,
                perm.cuid,
                perm.cgid,
                s.stime,
                s.rtime,
                s.ctime,
            );
        }
        out
    }
}

impl MessageQueue {
    fn new(perm: Perm, limit: u64) -> Self {
        let state = State {
            perm,
            messages: VecDeque::new(),
            bytes: 0,
            limit,
            stime: 0,
            rtime: 0,
            ctime: now_s(),
            last_sender: 0,
            last_receiver: 0,
            removed: false,
        };
        Self { state: Mutex::new(state), changed: WaitQueue::new() }
    }

    /// `IN` after a message came, `OUT` after one went.
    pub fn changed(&self) -> &WaitQueue {
        &self.changed
    }

    pub fn stat(&self) -> MsqidDs {
        let state = self.state.lock();
        MsqidDs {
            perm: state.perm.show(),
            stime: state.stime,
            rtime: state.rtime,
            ctime: state.ctime,
            cbytes: state.bytes,
            qnum: state.messages.len() as u64,
            qbytes: state.limit,
            lspid: state.last_sender,
            lrpid: state.last_receiver,
            ..MsqidDs::default()
        }
    }

    /// `IPC_SET`. `EPERM` for a larger queue than usual without `CAP_SYS_RESOURCE`.
    pub fn set(&self, from: &IpcPerm, limit: u64, creds: &Credentials, limits: &Limits) -> Result<()> {
        if limit > limits.get(Limit::MsgMnb) && !creds.has_cap(cap::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        {
            let mut state = self.state.lock();
            state.perm.set(from);
            state.limit = limit;
            state.ctime = now_s();
        }
        self.changed.notify(Events::IN | Events::OUT);
        Ok(())
    }

    /// The queue is gone: whoever waits gets `EIDRM`.
    pub fn end(&self) {
        self.state.lock().removed = true;
        self.changed.notify(Events::IN | Events::OUT);
    }

    /// Adds a message if there is room.
    pub fn try_send(
        &self,
        kind: i64,
        text: &Arc<[u8]>,
        pid: i32,
        creds: &Credentials,
    ) -> Result<IoStart<()>> {
        {
            let mut state = self.state.lock();
            if state.removed {
                return Err(Errno::EIDRM);
            }
            state.perm.check(0o222, creds)?;
            let bytes = state.bytes + text.len() as u64;
            if bytes > state.limit || state.messages.len() as u64 + 1 > state.limit {
                return Ok(IoStart::WouldBlock);
            }
            state.bytes = bytes;
            state.messages.push_back(Message { kind, text: Arc::clone(text) });
            state.stime = now_s();
            state.last_sender = pid;
        }
        self.changed.notify(Events::IN);
        Ok(IoStart::Done(()))
    }

    /// Takes a message of at most `room` bytes. `E2BIG` for a longer one unless it may be cut, `ENOMSG` for a copy of a
    /// message that is not there.
    pub fn try_receive(
        &self,
        pick: Pick,
        room: usize,
        may_cut: bool,
        pid: i32,
        creds: &Credentials,
    ) -> Result<IoStart<Received>> {
        let received = {
            let mut state = self.state.lock();
            if state.removed {
                return Err(Errno::EIDRM);
            }
            state.perm.check(0o444, creds)?;
            let Some(at) = state.find(pick) else {
                return if matches!(pick, Pick::Copy(_)) {
                    Err(Errno::ENOMSG)
                } else {
                    Ok(IoStart::WouldBlock)
                };
            };
            let Some(message) = state.messages.get(at) else { return Ok(IoStart::WouldBlock) };
            if message.text.len() > room && !may_cut {
                return Err(Errno::E2BIG);
            }
            let text = message.text.iter().copied().take(room).collect();
            let received = Received { kind: message.kind, text };
            if !matches!(pick, Pick::Copy(_)) {
                let length = message.text.len() as u64;
                state.messages.remove(at);
                state.bytes = state.bytes.saturating_sub(length);
                state.rtime = now_s();
                state.last_receiver = pid;
            }
            received
        };
        self.changed.notify(Events::OUT);
        Ok(IoStart::Done(received))
    }
}

impl State {
    fn find(&self, pick: Pick) -> Option<usize> {
        match pick {
            Pick::First => (!self.messages.is_empty()).then_some(0),
            Pick::Type(kind) => self.messages.iter().position(|m| m.kind == kind),
            Pick::Not(kind) => self.messages.iter().position(|m| m.kind != kind),
            Pick::UpTo(most) => {
                let lowest = self.messages.iter().map(|m| m.kind).filter(|k| *k <= most).min()?;
                self.messages.iter().position(|m| m.kind == lowest)
            }
            Pick::Copy(at) => (at < self.messages.len()).then_some(at),
        }
    }
}

impl Entry for MessageQueue {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }

    fn forget_key(&self) {
        self.state.lock().perm.key = IPC_PRIVATE;
    }
}
