//! Datagrams of UDP: send and receive, control messages and returned errors (`udp_sendmsg`, `udp_recvmsg`,
//! `ip_recv_error`).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use abi::net::{In6PktInfo, InPktInfo, SockExtendedErr};
use netstack::datagram::Datagram;
use netstack::iface::{Route, or_this_host};
use netstack::packet::{Packet, UDP};
use netstack::ports::{Binding, PortTable};
use sentry_base::{Errno, Events, Result, real_now};
use sentry_vfs::IoStart;
use zerocopy::{FromBytes, IntoBytes};

use super::Inet;
use super::addr::{self, Domain};
use super::control;
use super::outside::HowSent;
use super::udp::{ReturnedError, UdpCore};
use crate::{RecvMsg, SendMsg, SockCtx};

/// The longest datagrams: an IP packet's 65,535 bytes without its headers.
const MAX_V4: usize = 65_507;
const MAX_V6: usize = 65_527;
/// Bytes of a datagram's own header.
const UDP_HEADER: usize = 8;
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

    pub(super) fn send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<usize> {
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
        self.tell_asker(cx, SocketAddr::new(source, port), to);
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

    /// Tells the other end of the link who sends, before the first datagram to a destination.
    fn tell_asker(&self, cx: &SockCtx<'_>, from: SocketAddr, to: SocketAddr) {
        if !self.net.outside.get().is_some_and(|outside| outside.tell_askers)
            || self.state.lock().told.replace(to) == Some(to)
        {
            return;
        }
        if let Some((outside, route)) = self.net.route_out(self.options.device(), to.ip(), from.ip()) {
            outside.tell_asker(route.interface, UDP, from.port(), cx.caller);
        }
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
        let six = to.is_ipv6();
        let level = if six { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
        let set_or =
            |name: i32, default| u8::try_from(self.options.set_or(level, name, default)).unwrap_or(0);
        let group = to.ip().is_multicast();
        let hops = asked.hops.unwrap_or_else(|| match (six, group) {
            (true, false) => set_or(libc::IPV6_UNICAST_HOPS, 64),
            (true, true) => set_or(libc::IPV6_MULTICAST_HOPS, 1),
            (false, false) => set_or(libc::IP_TTL, 64),
            (false, true) => set_or(libc::IP_MULTICAST_TTL, 1),
        });
        let class =
            asked.class.unwrap_or_else(|| set_or(if six { libc::IPV6_TCLASS } else { libc::IP_TOS }, 0));
        let stats = &self.net.stats;
        stats.udp_sent.add(1);
        if self.ask_resolver(&data, from, to) {
            return;
        }
        if group {
            self.deliver_to_group(&data, from, to, HowSent { hops, class, dont_fragment: false });
            return;
        }
        if let Some((outside, route)) = self.net.route_out(self.options.device(), to.ip(), from.ip()) {
            outside.send_udp(&route, from, to, &data, HowSent { hops, class, dont_fragment: false });
            return;
        }
        stats.packet(data.len() + 28);
        stats.udp_received.add(1);
        self.net.show_udp(from, to, &data, HowSent { hops, class, dont_fragment: false });
        let interface = self.net.arrives_by(to.ip());
        let receiver = {
            let table = self.net.udp.lock();
            let found = table.find(to, from, |binding| takes(binding, from, interface));
            found.and_then(|binding| binding.owner.upgrade())
        };
        let Some(receiver) = receiver else {
            stats.udp_no_ports.add(1);
            self.refused(data, to, connected);
            return;
        };
        let datagram = Datagram { data, from, to: to.ip(), interface: 1, hops, class, stamp: real_now() };
        receiver.take_in(datagram);
    }

    /// Brings a datagram to the members of a group: here, where that is wanted, and beyond a link.
    fn deliver_to_group(&self, data: &[u8], from: SocketAddr, to: SocketAddr, how: HowSent) {
        let Ok((interface, _)) = self.group_route(to.ip()) else { return };
        let mtu = self.net.interfaces.lock().by_index(interface).map(|i| i.mtu);
        if let (Some(mtu), Some(outside)) = (mtu, self.net.outside.get())
            && interface != 1
            && how.hops > 0
        {
            let route = Route { interface, source: from.ip(), next_hop: Some(to.ip()), mtu };
            outside.send_udp(&route, from, to, data, how);
        }
        let (level, name) = if to.is_ipv6() {
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP)
        } else {
            (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP)
        };
        // What goes out by the loopback interface comes back by it, wanted or not (net/ipv4/route.c: __mkroute_output).
        if interface != 1 && self.options.set_or(level, name, 1) == 0 {
            return;
        }
        if interface == 1 {
            self.net.stats.packet(data.len() + 28);
            self.net.show_udp(from, to, data, how);
        }
        for core in self.net.group_takers(from, to, interface) {
            core.take_in(Datagram {
                data: data.to_vec(),
                from,
                to: to.ip(),
                interface,
                hops: how.hops,
                class: how.class,
                stamp: real_now(),
            });
        }
    }

    /// Passes a query on to the engine's resolver, where there is one and this goes to it.
    fn ask_resolver(&self, data: &[u8], from: SocketAddr, to: SocketAddr) -> bool {
        if to != super::resolver::ADDRESS {
            return false;
        }
        let Some(outside) = self.net.outside.get() else { return false };
        let Some(resolver) = &outside.resolver else { return false };
        if let Some(query) = resolver.ask(data, from) {
            outside.ask_resolver(&query);
        }
        true
    }

    /// Queues what has come.
    fn take_in(&self, datagram: Datagram) {
        let taken = self.state.lock().inbox.push(datagram);
        if taken {
            self.queue.notify(Events::READABLE);
        } else {
            self.net.stats.udp_dropped.add(1);
        }
    }

    /// Nobody has the port: an ICMP error comes back.
    fn refused(&self, data: Vec<u8>, to: SocketAddr, connected: bool) {
        if self.wants_error(to, connected) {
            self.note_error(Errno::ECONNREFUSED, data, to);
        }
    }

    fn wants_error(&self, to: SocketAddr, connected: bool) -> bool {
        connected && self.state.lock().peer.is_some() || self.wants_errors(to)
    }

    fn wants_errors(&self, to: SocketAddr) -> bool {
        let (level, name) = if to.is_ipv6() {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        } else {
            (libc::IPPROTO_IP, libc::IP_RECVERR)
        };
        self.options.flag(level, name)
    }

    /// An error for a datagram that this socket has sent to `to`.
    fn note_error(&self, errno: Errno, data: Vec<u8>, to: SocketAddr) {
        let wants_errors = self.wants_errors(to);
        {
            let mut state = self.state.lock();
            state.fault = Some(errno);
            if wants_errors && state.errors.len() < MAX_ERRORS {
                state.errors.push_back(ReturnedError { errno, data, to });
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

/// Every socket that takes datagrams from `from` to `to`.
fn at_port(
    table: &PortTable<Weak<UdpCore>>,
    from: SocketAddr,
    to: SocketAddr,
    interface: u32,
) -> Vec<Arc<UdpCore>> {
    let fits = |b: &&Binding<_>| b.local.score(to.ip()) > 0 && takes(b, from, interface) > 0;
    table.at(to.port()).iter().filter(fits).filter_map(|b| b.owner.upgrade()).collect()
}

/// How well a socket takes what comes from an address by an interface, 0 for not at all (`compute_score` of net/ipv4/udp.c).
fn takes<T>(binding: &Binding<T>, from: SocketAddr, interface: u32) -> u32 {
    let by_peer = match binding.peer {
        None => 1,
        Some(peer) if peer == from => 5,
        Some(_) => return 0,
    };
    binding.local.score_of_device(interface).map_or(0, |score| score + by_peer)
}

impl Inet {
    /// The sockets that take a datagram to a group which came in by, or goes out by, `interface` (`ip_mc_sf_allow`).
    fn group_takers(&self, from: SocketAddr, to: SocketAddr, interface: u32) -> Vec<Arc<UdpCore>> {
        let all: Vec<_> = self.udp.lock().iter().filter_map(|b| b.owner.upgrade()).collect();
        // Nobody hears of a group that nobody has joined.
        if !all.iter().any(|core| core.is_member(to.ip(), interface)) {
            return Vec::new();
        }
        let mut takers = at_port(&self.udp.lock(), from, to, interface);
        takers.retain(|core| {
            let (joined, takes_all) = core.group_taste(to.ip());
            core.is_member(to.ip(), interface) || (!joined && takes_all)
        });
        takers
    }

    /// Brings a datagram from outside to the sockets that take it; false where there is none (`__udp4_lib_rcv`).
    pub(crate) fn receive_udp(&self, packet: &Packet<'_>, interface: u32) -> bool {
        let Some((head, data)) = packet.payload.split_at_checked(UDP_HEADER) else { return true };
        let short =
            |at: usize| head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u16::from_be_bytes(*b));
        let len = usize::from(short(4));
        // A length of zero is that of a packet of more than 64 KiB, which no link here carries.
        let Some(data) = len.checked_sub(UDP_HEADER).and_then(|len| data.get(..len)) else { return true };
        let from = SocketAddr::new(packet.from, short(0));
        let to = SocketAddr::new(packet.to, short(2));
        self.stats.udp_received.add(1);
        let group = packet.to.is_multicast() || self.interfaces.lock().is_broadcast(packet.to);
        let takers: Vec<Arc<UdpCore>> = if packet.to.is_multicast() {
            self.group_takers(from, to, interface)
        } else {
            let table = self.udp.lock();
            if group {
                at_port(&table, from, to, interface)
            } else {
                let found = table.find(to, from, |binding| takes(binding, from, interface));
                found.and_then(|binding| binding.owner.upgrade()).into_iter().collect()
            }
        };
        let mut taken = false;
        for core in takers {
            taken = true;
            core.take_in(Datagram {
                data: data.to_vec(),
                from,
                to: packet.to,
                interface,
                hops: packet.hops,
                class: packet.class,
                stamp: real_now(),
            });
        }
        if !taken {
            self.stats.udp_no_ports.add(1);
        }
        taken
    }

    /// Brings an answer to the socket at `to`.
    pub(super) fn receive_answer(&self, data: Vec<u8>, from: SocketAddr, to: SocketAddr) {
        let taker = {
            let table = self.udp.lock();
            let found = table.find(to, from, |binding| match binding.peer {
                None => 1,
                Some(peer) if peer == from => 5,
                Some(_) => 0,
            });
            found.and_then(|binding| binding.owner.upgrade())
        };
        if let Some(core) = taker {
            let (to, stamp) = (to.ip(), real_now());
            core.take_in(Datagram { data, from, to, interface: 1, hops: 64, class: 0, stamp });
        }
    }

    /// An error has come back for a datagram from `from` to `to` (`__udp4_lib_err`).
    pub(super) fn udp_error(&self, errno: Errno, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        let sender = {
            let table = self.udp.lock();
            let found = table.find(from, to, |binding| match binding.peer {
                None => 1,
                Some(peer) if peer == to => 5,
                Some(_) => 0,
            });
            found.and_then(|binding| binding.owner.upgrade())
        };
        if let Some(core) = sender
            && core.wants_error(to, true)
        {
            core.note_error(errno, data.to_vec(), to);
        }
    }
}
