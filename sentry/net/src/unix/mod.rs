//! `AF_UNIX` sockets (`unix(7)`, `net/unix/af_unix.c`).
//!
//! A [`UnixSocket`] is the handle that an open file or a listener's backlog owns; dropping it closes. Behind it is a
//! [`Core`], which peers and messages in flight may keep a while longer.

mod addr;
mod connect;
mod garbage;
mod message;
mod options;
pub(crate) mod report;
mod transfer;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use abi::net::Ucred;
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank};
use sentry_vfs::{Attachment, Attr, Caller, FileKind, Inode, IoStart};

use crate::socket::new_attr;
use crate::{RecvMsg, SendMsg, SockCtx, Socket};
use addr::Address;
pub use addr::UnixNamespace;
use message::Message;
use options::Options;

/// `net.unix.max_dgram_qlen`: datagrams that wait at a receiver.
const MAX_DATAGRAMS: usize = 10;

/// `SOCK_*` of this family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    Datagram,
    SeqPacket,
}

impl Kind {
    fn raw(self) -> i32 {
        match self {
            Self::Stream => libc::SOCK_STREAM,
            Self::Datagram => libc::SOCK_DGRAM,
            Self::SeqPacket => libc::SOCK_SEQPACKET,
        }
    }

    /// Streams and sequenced packets have connections.
    fn connects(self) -> bool {
        self != Self::Datagram
    }
}

/// A listener's queue.
#[derive(Debug)]
struct Listening {
    limit: usize,
    /// Server ends of connections that nobody has accepted yet.
    queue: VecDeque<UnixSocket>,
    /// Who listens, for the peers' `SO_PEERCRED`.
    creds: Ucred,
}

#[derive(Debug, Default)]
struct State {
    address: Address,
    /// The socket file that it is bound to: its attachment leads here.
    inode: Option<Arc<dyn Inode>>,
    inbox: VecDeque<Message>,
    /// Unread bytes in the inbox.
    unread: usize,
    peer: Option<Arc<Core>>,
    /// A stream or seqpacket socket that has had a peer.
    connected: bool,
    listening: Option<Listening>,
    shut_read: bool,
    shut_write: bool,
    dead: bool,
    error: Option<Errno>,
    peer_creds: Option<Ucred>,
    /// Who waits for room here: in the inbox of a datagram socket, in the queue of a listener.
    waiting: Vec<Weak<Core>>,
}

/// What a socket is, apart from who holds it.
#[derive(Debug)]
pub(crate) struct Core {
    me: Weak<Core>,
    kind: Kind,
    ns: Arc<UnixNamespace>,
    attr: Attr,
    state: Mutex<State, { rank::FILE_DATA }>,
    queue: WaitQueue,
    /// Bytes of this socket's messages that wait at others.
    sent: AtomicUsize,
    options: Options,
    /// Not accepted yet.
    embryo: AtomicBool,
}

/// What hangs on the inode of a socket file.
#[derive(Debug)]
struct Bound(Weak<Core>);

impl Core {
    fn new(kind: Kind, ns: &Arc<UnixNamespace>, uid: u32, gid: u32, state: State) -> Arc<Self> {
        let attr = new_attr(uid, gid);
        let core = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            kind,
            ns: Arc::clone(ns),
            attr,
            state: Mutex::new(state),
            queue: WaitQueue::new(),
            sent: AtomicUsize::new(0),
            options: Options::default(),
            embryo: AtomicBool::new(false),
        });
        ns.sockets.lock().insert(attr.ino, Arc::downgrade(&core));
        core
    }

    /// Whether the buffer is at most a quarter full: what `poll` calls writable (`unix_writable`).
    fn has_write_space(&self) -> bool {
        self.sent.load(Ordering::SeqCst).saturating_mul(4) <= self.options.send_buffer()
    }

    /// Whether something may be sent at all (`sock_alloc_send_pskb`).
    fn has_buffer(&self) -> bool {
        self.sent.load(Ordering::SeqCst) < self.options.send_buffer()
    }

    /// Tells those who waited for room here.
    fn wake_waiting(waiting: Vec<Weak<Self>>) {
        for core in waiting {
            if let Some(core) = core.upgrade() {
                core.queue.notify(Events::WRITABLE | Events::WRBAND);
            }
        }
    }

    /// Closes (`unix_release_sock`): what is unread is lost, and a connected peer learns of it.
    fn release(&self) {
        self.ns.sockets.lock().remove(&self.attr.ino);
        let (state, peer) = {
            let mut state = self.state.lock();
            state.dead = true;
            state.shut_read = true;
            state.shut_write = true;
            let taken = State {
                inbox: core::mem::take(&mut state.inbox),
                listening: state.listening.take(),
                inode: state.inode.take(),
                waiting: core::mem::take(&mut state.waiting),
                address: core::mem::take(&mut state.address),
                ..State::default()
            };
            (taken, state.peer.take())
        };
        // The name of an accepted socket is its listener's.
        if let Address::Abstract(name) = &state.address
            && self.ns.find(self.kind.raw(), name).is_none_or(|c| c.me.ptr_eq(&self.me))
        {
            self.ns.release(self.kind.raw(), name);
        }
        if let Some(peer) = peer
            && self.kind.connects()
        {
            let mut theirs = peer.state.lock();
            theirs.shut_read = true;
            theirs.shut_write = true;
            if !state.inbox.is_empty() || self.embryo.load(Ordering::Relaxed) {
                theirs.error = Some(Errno::ECONNRESET);
            }
            drop(theirs);
            peer.queue
                .notify(Events::READABLE | Events::WRITABLE | Events::RDHUP | Events::HUP | Events::ERR);
        }
        let mut state = state;
        Self::wake_waiting(core::mem::take(&mut state.waiting));
        drop(state);
        self.ns.collect_garbage();
    }

    /// The descriptions that travel with unread messages, here or at connections that wait to be accepted.
    fn rights_held(&self) -> Vec<u64> {
        let (mut ids, embryos) = {
            let state = self.state.lock();
            let ids: Vec<u64> = state.inbox.iter().flat_map(|m| m.rights.ids()).collect();
            let embryos: Vec<Arc<Self>> =
                state.listening.iter().flat_map(|l| l.queue.iter().map(|s| Arc::clone(&s.0))).collect();
            (ids, embryos)
        };
        for embryo in embryos {
            ids.extend(embryo.state.lock().inbox.iter().flat_map(|m| m.rights.ids()));
        }
        ids
    }

    /// Takes what is unread and unaccepted, for the caller to drop.
    fn drain(&self) -> (VecDeque<Message>, VecDeque<UnixSocket>) {
        let mut state = self.state.lock();
        state.unread = 0;
        let embryos = state.listening.as_mut().map(|l| core::mem::take(&mut l.queue)).unwrap_or_default();
        (core::mem::take(&mut state.inbox), embryos)
    }

    /// Binds to a free abstract name unless bound (`unix_autobind`).
    fn autobind(&self) -> Result<()> {
        if self.state.lock().address != Address::Unnamed {
            return Ok(());
        }
        let name = self.ns.claim_any(self.kind.raw(), &self.me)?;
        let mut state = self.state.lock();
        if state.address == Address::Unnamed {
            state.address = Address::Abstract(name);
        } else {
            drop(state);
            self.ns.release(self.kind.raw(), &name);
        }
        Ok(())
    }

    /// The live socket of this kind at `address`; `ECONNREFUSED` where there is none, `EPROTOTYPE` where it is of another
    /// kind.
    fn find(&self, cx: &SockCtx<'_>, address: &Address) -> Result<Arc<Self>> {
        let found = match address {
            Address::Unnamed => return Err(Errno::EINVAL),
            Address::Abstract(name) => self.ns.find(self.kind.raw(), name).ok_or(Errno::ECONNREFUSED)?,
            Address::Path(path) => {
                let inode = cx.paths.find(path)?;
                if inode.kind() != FileKind::Socket {
                    return Err(Errno::ECONNREFUSED);
                }
                inode
                    .attachment()
                    .and_then(Attachment::get::<Bound>)
                    .and_then(|bound| bound.0.upgrade())
                    .ok_or(Errno::ECONNREFUSED)?
            }
        };
        if found.state.lock().dead {
            return Err(Errno::ECONNREFUSED);
        }
        if found.kind != self.kind {
            return Err(Errno::EPROTOTYPE);
        }
        Ok(found)
    }
}

/// A socket's handle: dropping it closes.
#[derive(Debug)]
pub struct UnixSocket(Arc<Core>);

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl UnixSocket {
    fn kind_of(kind: i32, protocol: i32) -> Result<Kind> {
        if protocol != 0 && protocol != libc::PF_UNIX {
            return Err(Errno::EPROTONOSUPPORT);
        }
        match kind {
            libc::SOCK_STREAM => Ok(Kind::Stream),
            // Linux takes raw sockets for datagram ones.
            libc::SOCK_DGRAM | libc::SOCK_RAW => Ok(Kind::Datagram),
            libc::SOCK_SEQPACKET => Ok(Kind::SeqPacket),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }

    /// `socket(AF_UNIX, kind, protocol)`; `kind` without its flags.
    pub fn new(caller: &dyn Caller, ns: &Arc<UnixNamespace>, kind: i32, protocol: i32) -> Result<Arc<Self>> {
        let kind = Self::kind_of(kind, protocol)?;
        let creds = caller.creds();
        Ok(Arc::new(Self(Core::new(kind, ns, creds.fsuid, creds.fsgid, State::default()))))
    }

    /// `socketpair(AF_UNIX, kind, protocol)`.
    pub fn pair(
        caller: &dyn Caller,
        ns: &Arc<UnixNamespace>,
        kind: i32,
        protocol: i32,
    ) -> Result<(Arc<Self>, Arc<Self>)> {
        let a = Self::new(caller, ns, kind, protocol)?;
        let b = Self::new(caller, ns, kind, protocol)?;
        let creds = caller.creds();
        let me = Ucred { pid: caller.pid(), uid: creds.euid, gid: creds.egid };
        for (one, other) in [(&a, &b), (&b, &a)] {
            let mut state = one.0.state.lock();
            state.peer = Some(Arc::clone(&other.0));
            state.connected = one.0.kind.connects();
            state.peer_creds = Some(me);
        }
        Ok((a, b))
    }
}

impl Socket for UnixSocket {
    fn domain(&self) -> i32 {
        libc::AF_UNIX
    }

    fn kind(&self) -> i32 {
        self.0.kind.raw()
    }

    fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        self.0.bind(cx, address)
    }

    fn listen(&self, cx: &SockCtx<'_>, backlog: i32) -> Result<()> {
        self.0.listen(cx, backlog)
    }

    fn try_connect(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<IoStart<()>> {
        self.0.try_connect(cx, address)
    }

    fn try_accept(&self, _cx: &SockCtx<'_>) -> Result<IoStart<Arc<dyn Socket>>> {
        self.0.try_accept()
    }

    fn try_send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        if msg.flags & libc::MSG_OOB != 0 && (self.0.kind != Kind::Stream || msg.data.remaining() == 0) {
            return Err(Errno::EOPNOTSUPP);
        }
        match self.0.kind {
            Kind::Stream => self.0.send_stream(cx, msg),
            Kind::Datagram | Kind::SeqPacket => self.0.send_datagram(cx, msg),
        }
    }

    fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        match self.0.kind {
            _ if msg.flags & libc::MSG_OOB != 0 => self.0.recv_urgent(msg).map(IoStart::Done),
            Kind::Stream => self.0.recv_stream(msg),
            Kind::Datagram | Kind::SeqPacket => self.0.recv_datagram(cx, msg),
        }
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        self.0.shutdown(how)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        Ok(self.0.state.lock().address.to_bytes())
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let peer = self.0.state.lock().peer.clone().ok_or(Errno::ENOTCONN)?;
        Ok(peer.state.lock().address.to_bytes())
    }

    crate::socket::served_by_shared_part!();
}

#[cfg(test)]
mod tests;
