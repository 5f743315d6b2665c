//! Names and connections: bind, listen, connect, accept, shutdown.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use abi::net::Ucred;
use sentry_base::{Errno, Events, Result};
use sentry_vfs::IoStart;

use super::addr::Address;
use super::{Bound, Core, Kind, Listening, State, UnixSocket};
use crate::{SockCtx, Socket};

/// `net.core.somaxconn`.
const SOMAXCONN: usize = 4096;

impl Core {
    /// `unix_bind`: to a path, an abstract name or, for an address without a name, to any abstract name.
    pub(super) fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        let address = Address::parse(address)?;
        if address == Address::Unnamed {
            return self.autobind();
        }
        if self.state.lock().address != Address::Unnamed {
            return Err(Errno::EINVAL);
        }
        match &address {
            Address::Unnamed => {}
            Address::Abstract(name) => {
                self.ns.claim(self.kind.raw(), name, &self.me)?;
                let mut state = self.state.lock();
                if state.address == Address::Unnamed {
                    state.address = address;
                } else {
                    drop(state);
                    self.ns.release(self.kind.raw(), name);
                    return Err(Errno::EINVAL);
                }
            }
            Address::Path(path) => {
                let inode = cx.paths.make(path)?;
                let attachment = inode.attachment().ok_or(Errno::EOPNOTSUPP)?;
                attachment.set(Arc::new(Bound(self.me.clone())));
                let mut state = self.state.lock();
                state.address = address;
                state.inode = Some(inode);
            }
        }
        Ok(())
    }

    pub(super) fn listen(&self, cx: &SockCtx<'_>, backlog: i32) -> Result<()> {
        if !self.kind.connects() {
            return Err(Errno::EOPNOTSUPP);
        }
        // A negative one is a large unsigned one.
        let limit = usize::try_from(backlog).unwrap_or(SOMAXCONN).min(SOMAXCONN);
        let creds = cx.credentials();
        let waiting = {
            let mut state = self.state.lock();
            if state.address == Address::Unnamed || state.connected {
                return Err(Errno::EINVAL);
            }
            match &mut state.listening {
                Some(listening) => {
                    listening.limit = limit;
                    listening.creds = creds;
                }
                slot => *slot = Some(Listening { limit, queue: VecDeque::new(), creds }),
            }
            state.peer_creds = Some(creds);
            core::mem::take(&mut state.waiting)
        };
        // The limit may have grown.
        Self::wake_waiting(waiting);
        Ok(())
    }

    pub(super) fn try_connect(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<IoStart<()>> {
        if self.kind == Kind::Datagram {
            return self.connect_datagram(cx, address).map(IoStart::Done);
        }
        let address = Address::parse(address)?;
        if self.options.passes_credentials() {
            self.autobind()?;
        }
        {
            let state = self.state.lock();
            if state.connected {
                return Err(Errno::EISCONN);
            }
            if state.listening.is_some() {
                return Err(Errno::EINVAL);
            }
        }
        let target = self.find(cx, &address)?;
        let (name, listener) = {
            let mut state = target.state.lock();
            match room_at_listener(&state)? {
                Some(creds) => (state.address.clone(), creds),
                None if cx.nonblock => return Err(Errno::EAGAIN),
                None => {
                    state.waiting.push(self.me.clone());
                    return Ok(IoStart::WouldBlock);
                }
            }
        };
        let me = self.me.upgrade().ok_or(Errno::EINVAL)?;
        let server = State {
            address: name,
            peer: Some(me),
            connected: true,
            peer_creds: Some(cx.credentials()),
            ..State::default()
        };
        let creds = cx.caller.creds();
        let server = Self::new(self.kind, &self.ns, creds.fsuid, creds.fsgid, server);
        server.embryo.store(true, Ordering::Relaxed);
        server.options.inherit(&target.options);
        // This end first: whoever accepts may answer at once.
        {
            let mut state = self.state.lock();
            if state.connected {
                drop(state);
                server.state.lock().peer = None;
                return Err(Errno::EISCONN);
            }
            state.connected = true;
            state.peer = Some(Arc::clone(&server));
            state.peer_creds = Some(listener);
        }
        let handle = UnixSocket(Arc::clone(&server));
        let mut state = target.state.lock();
        let room = room_at_listener(&state);
        if let (Ok(Some(_)), Some(listening)) = (room, &mut state.listening) {
            listening.queue.push_back(handle);
            drop(state);
            target.queue.notify(Events::READABLE);
            return Ok(IoStart::Done(()));
        }
        // Another connection took the room, or the listener has gone: back to before.
        let outcome = match room {
            Err(errno) => Err(errno),
            Ok(_) if cx.nonblock => Err(Errno::EAGAIN),
            Ok(_) => {
                state.waiting.push(self.me.clone());
                Ok(IoStart::WouldBlock)
            }
        };
        drop(state);
        server.state.lock().peer = None;
        let mut state = self.state.lock();
        state.connected = false;
        state.peer = None;
        state.peer_creds = None;
        drop(state);
        drop(handle);
        outcome
    }

    /// Sets or, for an address of family `AF_UNSPEC`, clears where datagrams go and come from.
    fn connect_datagram(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        let family = address.first_chunk().map(|f| u16::from_ne_bytes(*f)).ok_or(Errno::EINVAL)?;
        let target = if i32::from(family) == libc::AF_UNSPEC {
            None
        } else {
            let address = Address::parse(address)?;
            if self.options.passes_credentials() {
                self.autobind()?;
            }
            let target = self.find(cx, &address)?;
            if !target.accepts_from(self) {
                return Err(Errno::EPERM);
            }
            Some(target)
        };
        let mut state = self.state.lock();
        let old = core::mem::replace(&mut state.peer, target);
        // What came from the old peer is not for the new one.
        let stale = match (&old, &state.peer) {
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => VecDeque::new(),
            (Some(_), _) => {
                state.unread = 0;
                core::mem::take(&mut state.inbox)
            }
            _ => VecDeque::new(),
        };
        drop(state);
        drop(stale);
        self.queue.notify(Events::WRITABLE);
        Ok(())
    }

    /// Whether a datagram of `sender` is let in (`unix_may_send`): a connected socket hears its peer alone.
    pub(super) fn accepts_from(&self, sender: &Self) -> bool {
        self.state.lock().peer.as_ref().is_none_or(|peer| core::ptr::eq(&raw const **peer, sender))
    }

    pub(super) fn try_accept(&self) -> Result<IoStart<Arc<dyn Socket>>> {
        if !self.kind.connects() {
            return Err(Errno::EOPNOTSUPP);
        }
        let (socket, waiting) = {
            let mut state = self.state.lock();
            let shut = state.shut_read;
            let listening = state.listening.as_mut().ok_or(Errno::EINVAL)?;
            let Some(socket) = listening.queue.pop_front() else {
                return if shut { Err(Errno::EINVAL) } else { Ok(IoStart::WouldBlock) };
            };
            (socket, core::mem::take(&mut state.waiting))
        };
        socket.0.embryo.store(false, Ordering::Relaxed);
        Self::wake_waiting(waiting);
        Ok(IoStart::Done(Arc::new(socket)))
    }

    pub(super) fn shutdown(&self, how: i32) -> Result<()> {
        let (read, write) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let (peer, waiting) = {
            let mut state = self.state.lock();
            state.shut_read |= read;
            state.shut_write |= write;
            let waiting = if read { core::mem::take(&mut state.waiting) } else { Vec::new() };
            (state.peer.clone().filter(|_| self.kind.connects()), waiting)
        };
        let changed = Events::READABLE | Events::WRITABLE | Events::RDHUP | Events::HUP;
        if let Some(peer) = peer {
            let mut state = peer.state.lock();
            state.shut_read |= write;
            state.shut_write |= read;
            drop(state);
            peer.queue.notify(changed);
        }
        self.queue.notify(changed);
        Self::wake_waiting(waiting);
        Ok(())
    }
}

/// The listener's credentials if it takes one more connection, `None` if it is full; `ECONNREFUSED` where nobody listens.
fn room_at_listener(state: &State) -> Result<Option<Ucred>> {
    match &state.listening {
        Some(listening) if !state.dead && !state.shut_read => {
            Ok((listening.queue.len() <= listening.limit).then_some(listening.creds))
        }
        _ => Err(Errno::ECONNREFUSED),
    }
}
