//! Datagrams of UDP: send and receive, control messages and returned errors (`udp_sendmsg`, `udp_recvmsg`,
//! `ip_recv_error`).

use std::net::{IpAddr, SocketAddr};

use abi::net::{In6PktInfo, InPktInfo, SockExtendedErr};
use netstack::datagram::Datagram;
use netstack::iface::or_this_host;
use sentry_base::{Errno, Events, Result, real_now};
use sentry_vfs::IoStart;
use zerocopy::{FromBytes, IntoBytes};

use super::addr::{self, Domain};
use super::control;
use super::udp::{ReturnedError, UdpCore};
use crate::{RecvMsg, SendMsg, SockCtx};

/// The longest datagrams: an IP packet's 65,535 bytes without its headers.
const MAX_V4: usize = 65_507;
const MAX_V6: usize = 65_527;
/// Errors that wait to be read at one socket.
const MAX_ERRORS: usize = 64;
/// `SO_EE_ORIGIN_ICMP`, `SO_EE_ORIGIN_ICMP6`.
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

/// What control messages ask of one datagram.
#[derive(Default)]
struct Asked {
    source: Option<IpAddr>,
    hops: Option<u8>,
    class: Option<u8>,
    segment: Option<usize>,
}

impl UdpCore {
    fn asked(&self, msg: &SendMsg<'_, '_>) -> Result<Asked> {
        let mut asked = Asked::default();
        let byte = |data: &[u8]| match data {
            [one] => Ok(*one),
            _ => super::options::int(data).and_then(|n| u8::try_from(n).map_err(|_| Errno::EINVAL)),
        };
        // A whole `int`, of which -1 is the socket's own value (`ip6_datagram_send_ctl`, `net/ipv6/datagram.c`).
        let of_six = |data: &[u8]| {
            let word: [u8; 4] = data.try_into().map_err(|_| Errno::EINVAL)?;
            match i32::from_ne_bytes(word) {
                -1 => Ok(None),
                n => u8::try_from(n).map(Some).map_err(|_| Errno::EINVAL),
            }
        };
        for control in &msg.control.other {
            let data = control.data.as_slice();
            match (control.level, control.kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = InPktInfo::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
                    let ip = IpAddr::from(info.spec_dst);
                    if !ip.is_unspecified() {
                        asked.source = Some(ip);
                    }
                    self.check_interface(u32::try_from(info.ifindex).unwrap_or(u32::MAX))?;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if self.domain == Domain::V6 => {
                    let info = In6PktInfo::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
                    let ip = addr::canonical(IpAddr::from(info.addr));
                    if !ip.is_unspecified() {
                        asked.source = Some(ip);
                    }
                    self.check_interface(info.ifindex)?;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => asked.hops = of_six(data)?,
                // Linux sends the -1 itself, cut to a byte.
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    asked.class = of_six(data)?.or(Some(u8::MAX));
                }
                (libc::IPPROTO_IP, libc::IP_TTL) => asked.hops = Some(byte(data)?),
                (libc::IPPROTO_IP, libc::IP_TOS) => asked.class = Some(byte(data)?),
                (libc::IPPROTO_UDP, libc::UDP_SEGMENT) => {
                    let size: &[u8; 2] = data.first_chunk().ok_or(Errno::EINVAL)?;
                    asked.segment = Some(usize::from(u16::from_ne_bytes(*size)));
                }
                (libc::SOL_SOCKET | libc::IPPROTO_IPV6, _) => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        if let Some(ip) = asked.source
            && !self.net.interfaces.lock().may_bind(ip)
        {
            return Err(Errno::EINVAL);
        }
        Ok(asked)
    }

    fn check_interface(&self, index: u32) -> Result<()> {
        if index == 0 || self.net.interfaces.lock().by_index(index).is_some() {
            Ok(())
        } else {
            Err(Errno::ENODEV)
        }
    }

    pub(super) fn send(&self, msg: &mut SendMsg<'_, '_>) -> Result<usize> {
        let len = msg.data.remaining();
        if len > 0xffff {
            return Err(Errno::EMSGSIZE);
        }
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let given = match msg.to {
            Some(address) => addr::parse_destination(self.domain, address)?,
            None => None,
        };
        if given.is_some_and(|to| to.port() == 0) {
            return Err(Errno::EINVAL);
        }
        let (peer, local, bound_ip) = {
            let state = self.state.lock();
            (state.peer, state.local, state.bound_ip)
        };
        let to = given.or(peer).ok_or(Errno::EDESTADDRREQ)?;
        let to = SocketAddr::new(or_this_host(to.ip()), to.port());
        if len > if to.is_ipv4() { MAX_V4 } else { MAX_V6 } {
            return Err(Errno::EMSGSIZE);
        }
        let asked = self.asked(msg)?;
        let from_ip =
            asked.source.unwrap_or(if bound_ip || given.is_none() { local.ip() } else { self.domain.any() });
        let source = self.route(to.ip(), from_ip)?;
        self.autobind()?;
        let port = {
            let mut state = self.state.lock();
            if let Some(errno) = state.fault.take() {
                return Err(errno);
            }
            if state.shut_write {
                return Err(Errno::EPIPE);
            }
            state.local.port()
        };
        let mut data = vec![0; len];
        if msg.data.read(&mut data)? < len {
            return Err(Errno::EFAULT);
        }
        let more =
            msg.flags & libc::MSG_MORE != 0 || self.options.set_or(libc::IPPROTO_UDP, libc::UDP_CORK, 0) != 0;
        let Some((data, to)) = self.cork(data, to, more)? else { return Ok(len) };
        let from = SocketAddr::new(source, port);
        let segment = asked
            .segment
            .or_else(|| usize::try_from(self.options.set_or(libc::IPPROTO_UDP, libc::UDP_SEGMENT, 0)).ok());
        let connected = given.is_none() || peer == Some(to);
        match segment.filter(|size| *size > 0 && *size < data.len()) {
            Some(size) => {
                for piece in data.chunks(size) {
                    self.deliver(piece.to_vec(), from, to, &asked, connected);
                }
            }
            None => self.deliver(data, from, to, &asked, connected),
        }
        Ok(len)
    }

    /// Adds to what a corked socket gathers; gives the whole datagram when it is due.
    fn cork(&self, data: Vec<u8>, to: SocketAddr, more: bool) -> Result<Option<(Vec<u8>, SocketAddr)>> {
        let mut state = self.state.lock();
        match (&mut state.corked, more) {
            (None, false) => Ok(Some((data, to))),
            (None, true) => {
                state.corked = Some((data, to));
                Ok(None)
            }
            (Some((gathered, _)), _) => {
                if gathered.len() + data.len() > MAX_V4 {
                    return Err(Errno::EMSGSIZE);
                }
                gathered.extend_from_slice(&data);
                Ok(if more { None } else { state.corked.take() })
            }
        }
    }

    /// Sends what a corked socket has gathered.
    pub(super) fn uncork(&self) {
        let (data, to, from) = {
            let mut state = self.state.lock();
            let Some((data, to)) = state.corked.take() else { return };
            (data, to, state.local)
        };
        if let Ok(source) = self.route(to.ip(), from.ip()) {
            self.deliver(data, SocketAddr::new(source, from.port()), to, &Asked::default(), true);
        }
    }

    /// Brings a datagram to the socket at `to`. Where there is none, a connected sender hears of it.
    fn deliver(&self, data: Vec<u8>, from: SocketAddr, to: SocketAddr, asked: &Asked, connected: bool) {
        let stats = &self.net.stats;
        stats.packet(data.len() + 28);
        stats.udp_datagrams.add(1);
        let receiver = {
            let table = self.net.udp.lock();
            let found = table.find(to, from, |binding| match binding.peer {
                None => 1,
                Some(peer) if peer == from => 5,
                Some(_) => 0,
            });
            found.and_then(|binding| binding.owner.upgrade())
        };
        let Some(receiver) = receiver else {
            stats.udp_no_ports.add(1);
            self.refused(data, to, connected);
            return;
        };
        let six = to.is_ipv6();
        let level = if six { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
        let set_or =
            |name: i32, default| u8::try_from(self.options.set_or(level, name, default)).unwrap_or(0);
        let datagram = Datagram {
            data,
            from,
            to: to.ip(),
            interface: 1,
            hops: asked
                .hops
                .unwrap_or_else(|| set_or(if six { libc::IPV6_UNICAST_HOPS } else { libc::IP_TTL }, 64)),
            class: asked
                .class
                .unwrap_or_else(|| set_or(if six { libc::IPV6_TCLASS } else { libc::IP_TOS }, 0)),
            stamp: real_now(),
        };
        let taken = receiver.state.lock().inbox.push(datagram);
        if taken {
            receiver.queue.notify(Events::READABLE);
        } else {
            stats.udp_dropped.add(1);
        }
    }

    /// Nobody has the port: an ICMP error comes back.
    fn refused(&self, data: Vec<u8>, to: SocketAddr, connected: bool) {
        let (level, name) = if to.is_ipv6() {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        } else {
            (libc::IPPROTO_IP, libc::IP_RECVERR)
        };
        let wants_errors = self.options.flag(level, name);
        if !connected && !wants_errors {
            return;
        }
        {
            let mut state = self.state.lock();
            if state.peer.is_none() && !wants_errors {
                return;
            }
            state.fault = Some(Errno::ECONNREFUSED);
            if wants_errors && state.errors.len() < MAX_ERRORS {
                state.errors.push_back(ReturnedError { errno: Errno::ECONNREFUSED, data, to });
            }
        }
        self.queue.notify(Events::ERR | Events::READABLE);
    }

    pub(super) fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        if msg.flags & libc::MSG_ERRQUEUE != 0 {
            return self.recv_error(msg).map(IoStart::Done);
        }
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let peek = msg.flags & libc::MSG_PEEK != 0;
        let mut state = self.state.lock();
        if let Some(errno) = state.fault.take() {
            return Err(errno);
        }
        let offset = if peek { self.options.set_or(libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1) } else { -1 };
        let offset = usize::try_from(offset).unwrap_or(0);
        let dropped = state.inbox.dropped();
        let Some(datagram) = state.inbox.pop() else {
            let end = state.shut_read && !cx.nonblock;
            return Ok(if end { IoStart::Done(0) } else { IoStart::WouldBlock });
        };
        if peek {
            state.inbox.unpop(datagram.clone());
        }
        drop(state);
        let bytes = datagram.data.get(offset..).unwrap_or_default();
        let (len, room) = (bytes.len(), msg.data.remaining());
        let copied = if len == 0 || room == 0 { 0 } else { msg.data.write(bytes)? };
        if len > room {
            msg.out_flags |= libc::MSG_TRUNC;
        }
        msg.from = Some(addr::to_bytes(self.domain, datagram.from));
        let port = self.state.lock().local.port();
        control::describe(&self.options, self.domain, &datagram, dropped, port, msg);
        if peek && self.options.set_or(libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1) >= 0 {
            let next = i32::try_from(offset + copied).unwrap_or(i32::MAX);
            self.options.put_number(libc::SOL_SOCKET, libc::SO_PEEK_OFF, next);
        }
        Ok(IoStart::Done(if msg.flags & libc::MSG_TRUNC != 0 { len } else { copied }))
    }

    /// `MSG_ERRQUEUE`: the datagram that came back, and what was wrong with it.
    fn recv_error(&self, msg: &mut RecvMsg<'_, '_>) -> Result<usize> {
        let error = {
            let mut state = self.state.lock();
            let error = state.errors.pop_front().ok_or(Errno::EAGAIN)?;
            state.fault = state.errors.front().map(|next| next.errno);
            error
        };
        let copied = if error.data.is_empty() { 0 } else { msg.data.write(&error.data)? };
        msg.out_flags |= libc::MSG_ERRQUEUE;
        if copied < error.data.len() {
            msg.out_flags |= libc::MSG_TRUNC;
        }
        msg.from = Some(addr::to_bytes(self.domain, error.to));
        let (level, name, origin, kind, code) = match error.to.ip() {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR, ORIGIN_ICMP, 3, 3),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, ORIGIN_ICMP6, 1, 4),
        };
        let what = SockExtendedErr {
            errno: error.errno.raw().cast_unsigned(),
            origin,
            kind,
            code,
            ..SockExtendedErr::default()
        };
        // Who sent the error: the address that the datagram went to.
        let domain = if error.to.is_ipv4() { Domain::V4 } else { Domain::V6 };
        let mut data = what.as_bytes().to_vec();
        data.extend_from_slice(&addr::to_bytes(domain, SocketAddr::new(error.to.ip(), 0)));
        msg.describe(level, name, &data);
        Ok(copied)
    }
}
