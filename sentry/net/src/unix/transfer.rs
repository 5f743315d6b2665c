//! Sending, receiving, readiness.

use core::mem::take;
use std::sync::Arc;

use abi::net::Ucred;
use sentry_base::{Errno, Events, Result};
use sentry_vfs::{Caller, IoStart};

use super::addr::Address;
use super::message::{Charge, Mark, Message, OVERHEAD, Rights};
use super::{Core, Kind, MAX_DATAGRAMS, State};
use crate::inet::netdev;
use crate::{RecvMsg, SendMsg, SockCtx};

/// A piece of a stream is at most this long: Linux's limit for data without pages of its own.
const PIECE: usize = 32 * 1024;
/// Small pieces of one sender are put together up to this length.
const MERGED: usize = 4096;

/// `SIOCINQ` and `SIOCOUTQ`.
const SIOCINQ: u32 = abi::tty::ioc::FIONREAD;
const SIOCOUTQ: u32 = abi::tty::ioc::TIOCOUTQ;
const SIOCATMARK: u32 = 0x8905;

impl Core {
    /// `unix_stream_sendmsg`.
    pub(super) fn send_stream(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        let (peer, from) = {
            let mut state = self.state.lock();
            if msg.to.is_some() {
                return Err(if state.connected { Errno::EISCONN } else { Errno::EOPNOTSUPP });
            }
            let peer = state.peer.clone().filter(|_| state.connected).ok_or(Errno::ENOTCONN)?;
            if state.shut_write {
                // A reset that nobody has heard of yet comes before the broken pipe.
                if let Some(errno) = state.error.take() {
                    return Err(errno);
                }
                drop(state);
                return Err(broken_pipe(cx.caller, msg.flags));
            }
            (peer, state.address.clone())
        };
        let creds = msg.control.creds.unwrap_or_else(|| cx.credentials());
        let me = self.me.upgrade().ok_or(Errno::EPIPE)?;
        let mut sent = 0;
        loop {
            if !self.has_buffer() {
                return Ok(if sent > 0 { IoStart::Done(sent) } else { IoStart::WouldBlock });
            }
            // The last byte may be urgent: it is a piece of its own.
            let left = msg.data.remaining();
            let urgent = msg.flags & libc::MSG_OOB != 0;
            let is_mark = urgent && left == 1;
            let mut data = vec![0; if urgent && left > 1 { left - 1 } else { left }.min(PIECE)];
            if data.is_empty() {
                return Ok(IoStart::Done(sent));
            }
            let want = data.len();
            let got = match msg.data.read(&mut data) {
                Ok(got) => got,
                Err(errno) if sent == 0 => return Err(errno),
                Err(_) => return Ok(IoStart::Done(sent)),
            };
            data.truncate(got);
            let rights = Rights::new(take(&mut msg.control.rights), &self.ns)?;
            let mut state = peer.state.lock();
            if state.dead || state.shut_read {
                drop(state);
                drop(rights);
                return if sent > 0 {
                    Ok(IoStart::Done(sent))
                } else {
                    Err(broken_pipe(cx.caller, msg.flags))
                };
            }
            state.unread += got;
            let is_mark = is_mark && got == 1;
            if is_mark {
                state.forget_urgent();
            }
            match state.inbox.back_mut() {
                Some(last)
                    if rights.is_empty()
                        && !is_mark
                        && last.mark == Mark::None
                        && last.rights.is_empty()
                        && last.creds == creds
                        && last.data.len() + got <= MERGED =>
                {
                    last.data.extend_from_slice(&data);
                    last.charge.grow(got);
                }
                _ => {
                    let charge = Charge::new(&me, got + OVERHEAD);
                    state.inbox.push_back(Message {
                        data,
                        read: 0,
                        from: from.clone(),
                        creds,
                        rights,
                        charge,
                        mark: if is_mark { Mark::Urgent } else { Mark::None },
                    });
                }
            }
            drop(state);
            let urgent = if is_mark { Events::PRI | Events::URGENT } else { Events::empty() };
            peer.queue.notify(Events::READABLE | urgent);
            sent += got;
            if got < want {
                return Ok(IoStart::Done(sent));
            }
        }
    }

    /// `unix_stream_read_generic`.
    pub(super) fn recv_stream(&self, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        let peek = msg.flags & libc::MSG_PEEK != 0;
        let pass = self.options.passes_credentials();
        let mut freed = Vec::new();
        let mut copied = 0;
        let mut failed = None;
        let mut at = 0;
        // Where a peek begins (`SO_PEEK_OFF`).
        let mut skip = if peek { self.options.peek_offset() } else { 0 };
        let mut state = self.state.lock();
        if !state.connected {
            return Err(Errno::EINVAL);
        }
        while msg.data.remaining() > 0 && msg.rights.is_empty() {
            if state.inbox.get(at).is_some_and(|message| message.mark != Mark::None) {
                // A read ends at the urgent byte's place; the next one begins behind it (`manage_oob`).
                if copied > 0 {
                    break;
                }
                match (self.options.takes_urgent_inline(), peek) {
                    (true, false) => state.forget_urgent(),
                    (true, true) => {}
                    (false, true) => {
                        at += 1;
                        continue;
                    }
                    (false, false) => {
                        let gone = state.inbox.remove(at);
                        state.unread -= gone.as_ref().map_or(0, |m| m.rest().len()).min(state.unread);
                        freed.extend(gone);
                        continue;
                    }
                }
            }
            let Some(message) = state.inbox.get_mut(at) else { break };
            // One call never glues together what different senders wrote.
            if msg.creds.is_some_and(|creds| creds != message.creds) {
                break;
            }
            let Some(rest) = message.rest().get(skip..).filter(|rest| !rest.is_empty()) else {
                skip -= message.rest().len();
                at += 1;
                continue;
            };
            let len = rest.len();
            skip = 0;
            let n = match msg.data.write(rest) {
                Ok(n) => n,
                Err(errno) => {
                    failed = Some(errno);
                    break;
                }
            };
            if pass {
                msg.creds = Some(message.creds);
            }
            if msg.from.is_none() {
                msg.from = Some(message.from.sender_bytes());
            }
            copied += n;
            let whole = n == len;
            if peek {
                msg.rights = message.rights.peek();
                at += 1;
            } else {
                msg.rights = message.rights.take();
                message.read += n;
                state.unread = state.unread.saturating_sub(n);
                if whole {
                    freed.extend(state.inbox.pop_front());
                }
            }
            if !whole {
                break;
            }
        }
        let outcome = if copied > 0 || msg.data.remaining() == 0 {
            Ok(IoStart::Done(copied))
        } else if let Some(errno) = failed.or_else(|| state.error.take()) {
            Err(errno)
        } else if state.shut_read {
            Ok(IoStart::Done(0))
        } else {
            Ok(IoStart::WouldBlock)
        };
        drop(state);
        drop(freed);
        self.options.move_peek_offset(copied, peek);
        outcome
    }

    /// `unix_stream_recv_urg`.
    pub(super) fn recv_urgent(&self, msg: &mut RecvMsg<'_, '_>) -> Result<usize> {
        if self.kind != Kind::Stream {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut gone = None;
        let mut state = self.state.lock();
        if self.options.takes_urgent_inline() {
            return Err(Errno::EINVAL);
        }
        let at = state.inbox.iter().position(|message| message.mark == Mark::Urgent).ok_or(Errno::EINVAL)?;
        let message = state.inbox.get_mut(at).ok_or(Errno::EINVAL)?;
        let byte = message.data.first().copied().ok_or(Errno::EINVAL)?;
        if msg.flags & libc::MSG_PEEK == 0 {
            message.mark = Mark::Taken;
            message.data.clear();
            if at == 0 {
                gone = state.inbox.pop_front();
            }
            state.unread = state.unread.saturating_sub(1);
        }
        msg.out_flags |= libc::MSG_OOB;
        msg.from = Some(Vec::new());
        let taken = if msg.data.remaining() == 0 { Ok(0) } else { msg.data.write(&[byte]) };
        drop(state);
        drop(gone);
        taken
    }

    /// Where a datagram goes: to the address given, else to the peer.
    fn datagram_target(&self, cx: &SockCtx<'_>, msg: &SendMsg<'_, '_>) -> Result<(Arc<Self>, bool)> {
        let (peer, connected) = {
            let mut state = self.state.lock();
            if let Some(errno) = state.error.take() {
                return Err(errno);
            }
            (state.peer.clone(), state.connected)
        };
        if self.kind == Kind::SeqPacket {
            // An address is ignored on a connection.
            return peer.filter(|_| connected).map(|p| (p, true)).ok_or(Errno::ENOTCONN);
        }
        match msg.to {
            Some(address) => {
                let address = Address::parse(address)?;
                Ok((self.find(cx, &address)?, false))
            }
            None => peer.map(|p| (p, true)).ok_or(Errno::ENOTCONN),
        }
    }

    /// `unix_dgram_sendmsg`.
    pub(super) fn send_datagram(
        &self,
        cx: &SockCtx<'_>,
        msg: &mut SendMsg<'_, '_>,
    ) -> Result<IoStart<usize>> {
        if self.options.passes_credentials() && self.kind == Kind::Datagram {
            self.autobind()?;
        }
        let (target, is_peer) = self.datagram_target(cx, msg)?;
        let len = msg.data.remaining();
        if len > self.options.send_buffer().saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        let me = self.me.upgrade().ok_or(Errno::EPIPE)?;
        let from = {
            let state = self.state.lock();
            if state.shut_write {
                return Err(Errno::EPIPE);
            }
            state.address.clone()
        };
        if !self.has_buffer() {
            return Ok(IoStart::WouldBlock);
        }
        // A look: should there be no room, the message stays the caller's.
        let mut look = msg.data.clone();
        let mut data = vec![0; len];
        if look.read(&mut data)? < len {
            return Err(Errno::EFAULT);
        }
        let creds = msg.control.creds.unwrap_or_else(|| cx.credentials());
        let mut state = target.state.lock();
        let pair = state.peer.as_ref().is_some_and(|p| Arc::ptr_eq(p, &me));
        if state.dead && self.kind == Kind::Datagram {
            drop(state);
            if is_peer {
                let mut mine = self.state.lock();
                if mine.peer.as_ref().is_some_and(|p| Arc::ptr_eq(p, &target)) {
                    mine.peer = None;
                }
            }
            return Err(Errno::ECONNREFUSED);
        }
        if !pair && state.peer.is_some() {
            return Err(Errno::EPERM);
        }
        if state.dead || state.shut_read {
            return Err(Errno::EPIPE);
        }
        if !pair && state.inbox.len() > MAX_DATAGRAMS {
            wait_for_room(&mut state, &me);
            return Ok(IoStart::WouldBlock);
        }
        let rights = match Rights::new(take(&mut msg.control.rights), &self.ns) {
            Ok(rights) => rights,
            Err(errno) => {
                drop(state);
                return Err(errno);
            }
        };
        let charge = Charge::new(&me, len + OVERHEAD);
        state.unread += len;
        let mark = Mark::None;
        state.inbox.push_back(Message { data, read: 0, from, creds, rights, charge, mark });
        drop(state);
        *msg.data = look;
        target.queue.notify(Events::READABLE);
        Ok(IoStart::Done(len))
    }

    /// `unix_dgram_recvmsg` and `unix_seqpacket_recvmsg`.
    pub(super) fn recv_datagram(
        &self,
        cx: &SockCtx<'_>,
        msg: &mut RecvMsg<'_, '_>,
    ) -> Result<IoStart<usize>> {
        let peek = msg.flags & libc::MSG_PEEK != 0;
        let mut state = self.state.lock();
        if self.kind == Kind::SeqPacket && !state.connected {
            return Err(Errno::ENOTCONN);
        }
        let Some(message) = state.inbox.front_mut() else {
            if let Some(errno) = state.error.take() {
                return Err(errno);
            }
            // A datagram socket has an end of file only for those who wait for it.
            let end = state.shut_read && (self.kind == Kind::SeqPacket || !cx.nonblock);
            return Ok(if end { IoStart::Done(0) } else { IoStart::WouldBlock });
        };
        let whole = message.data.len();
        let skip = if peek { self.options.peek_offset().min(whole) } else { 0 };
        let shown = message.data.get(skip..).unwrap_or_default();
        let len = shown.len();
        let room = msg.data.remaining();
        let copied = if len == 0 || room == 0 { Ok(0) } else { msg.data.write(shown) };
        if len > room {
            msg.out_flags |= libc::MSG_TRUNC;
        }
        if self.options.passes_credentials() {
            msg.creds = Some(message.creds);
        }
        msg.from = Some(message.from.sender_bytes());
        let mut waiting = Vec::new();
        let freed = if peek {
            msg.rights = message.rights.peek();
            None
        } else {
            msg.rights = message.rights.take();
            state.unread = state.unread.saturating_sub(whole);
            waiting = take(&mut state.waiting);
            state.inbox.pop_front()
        };
        drop(state);
        drop(freed);
        Self::wake_waiting(waiting);
        let n = copied?;
        self.options.move_peek_offset(n, peek);
        Ok(IoStart::Done(if msg.flags & libc::MSG_TRUNC != 0 { len } else { n }))
    }

    /// `unix_poll` and `unix_dgram_poll`.
    pub(super) fn readiness(&self) -> Events {
        let (mut events, peer) = {
            let state = self.state.lock();
            let mut events = Events::empty();
            if state.error.is_some() {
                events |= Events::ERR;
            }
            if state.shut_read {
                events |= Events::RDHUP | Events::READABLE;
                if state.shut_write {
                    events |= Events::HUP;
                }
            }
            let pending = state.listening.as_ref().is_some_and(|l| !l.queue.is_empty());
            if !state.inbox.is_empty() || pending {
                events |= Events::READABLE;
            }
            if self.kind == Kind::Stream && state.inbox.iter().any(|m| m.mark == Mark::Urgent) {
                events |= Events::PRI;
            }
            if self.kind.connects() && !state.connected && state.listening.is_none() {
                events |= Events::HUP;
            }
            if state.listening.is_some() {
                return events;
            }
            (events, state.peer.clone().filter(|_| self.kind == Kind::Datagram))
        };
        if !self.has_write_space() {
            return events;
        }
        if let (Some(peer), Some(me)) = (peer, self.me.upgrade()) {
            let mut state = peer.state.lock();
            let pair = state.peer.as_ref().is_some_and(|p| Arc::ptr_eq(p, &me));
            if !pair && !state.dead && state.inbox.len() > MAX_DATAGRAMS {
                wait_for_room(&mut state, &me);
                return events;
            }
        }
        events |= Events::WRITABLE | Events::WRBAND;
        events
    }

    pub(super) fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        let value = match command {
            SIOCINQ => {
                let state = self.state.lock();
                if state.listening.is_some() {
                    return Err(Errno::EINVAL);
                }
                match self.kind {
                    Kind::Stream => state.unread,
                    _ => state.inbox.front().map_or(0, |m| m.data.len()),
                }
            }
            SIOCATMARK if self.kind != Kind::Stream => return Err(Errno::EOPNOTSUPP),
            SIOCATMARK => {
                let state = self.state.lock();
                usize::from(state.inbox.front().is_some_and(|message| message.mark != Mark::None))
            }
            SIOCOUTQ => self.sent.load(core::sync::atomic::Ordering::Relaxed),
            _ => return netdev::ioctl(&self.ns.inet, caller, command, arg),
        };
        caller.mem().copy_out(arg, &i32::try_from(value).unwrap_or(i32::MAX).to_ne_bytes())?;
        Ok(0)
    }

    pub(super) fn peer_credentials(&self) -> Ucred {
        self.state.lock().peer_creds.unwrap_or(Ucred { pid: 0, uid: u32::MAX, gid: u32::MAX })
    }
}

impl State {
    /// The urgent byte becomes one like any other: another has come, or they are read in line.
    fn forget_urgent(&mut self) {
        self.inbox.retain(|message| message.mark != Mark::Taken);
        for message in &mut self.inbox {
            message.mark = Mark::None;
        }
    }
}

fn broken_pipe(caller: &dyn Caller, flags: i32) -> Errno {
    if flags & libc::MSG_NOSIGNAL == 0 {
        caller.signal_self(libc::SIGPIPE);
    }
    Errno::EPIPE
}

/// Notes that `core` wants to know when datagrams are taken from here.
fn wait_for_room(state: &mut State, core: &Arc<Core>) {
    state.waiting.retain(|w| w.strong_count() > 0);
    let weak = Arc::downgrade(core);
    if !state.waiting.iter().any(|w| w.ptr_eq(&weak)) {
        state.waiting.push(weak);
    }
}
