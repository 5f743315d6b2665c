//! Ping sockets and raw sockets: whole IP messages, of which the loopback answers echo requests (`icmp(7)`, `raw(7)`,
//! `net/ipv4/ping.c`, `net/ipv4/raw.c`).

use core::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use netstack::datagram::{Datagram, DatagramQueue};
use netstack::icmp;
use netstack::iface::or_this_host;
use netstack::packet::Packet;
use sentry_base::{Errno, Events, Mutex, Nanos, Result, WaitQueue, lock::rank, real_now};
use sentry_vfs::{Attr, Caller, IoStart};

use super::addr::{self, Domain, errno};
use super::control;
use super::options::{Options, Transport};
use super::outside::HowSent;
use super::{Inet, netdev};
use crate::socket::new_attr;
use crate::{RecvMsg, SendMsg, SockCtx, Socket};

const BUFFER_DEFAULT: usize = 212_992;
const SIOCINQ: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;
/// `SOL_RAW`, `ICMP_FILTER`; `SOL_ICMPV6`, `ICMPV6_FILTER`.
const SOL_RAW: i32 = 255;
const ICMP_FILTER: i32 = 1;
const SOL_ICMPV6: i32 = 58;
/// The longest message: an IP packet without its header.
const MAX_MESSAGE: usize = 65_507;
const IP_HEADER: usize = 20;

#[derive(Debug)]
struct State {
    local: IpAddr,
    /// The identifier of a ping socket's messages; 0 until it has one.
    ident: u16,
    peer: Option<IpAddr>,
    inbox: DatagramQueue,
    shut_read: bool,
    shut_write: bool,
    /// ICMP types that are kept out, a bit each (`ICMP_FILTER`).
    filter: u32,
}

/// What a socket is, apart from who holds it.
#[derive(Debug)]
pub(crate) struct RawCore {
    me: Weak<RawCore>,
    net: Arc<Inet>,
    domain: Domain,
    /// A ping socket: echo messages under an identifier of its own.
    ping: bool,
    protocol: u8,
    attr: Attr,
    state: Mutex<State, { rank::FILE_DATA }>,
    queue: WaitQueue,
    options: Options,
}

/// A socket's handle: dropping it closes.
#[derive(Debug)]
pub(crate) struct RawSocket(Arc<RawCore>);

/// The sockets of one network that see whole messages.
pub(crate) type RawTable = Mutex<Vec<Weak<RawCore>>, { rank::LEAF }>;

impl RawSocket {
    pub(super) fn new(
        caller: &dyn Caller,
        net: &Arc<Inet>,
        domain: Domain,
        ping: bool,
        protocol: u8,
    ) -> Arc<Self> {
        let creds = caller.creds();
        let core = Arc::new_cyclic(|me| RawCore {
            me: Weak::clone(me),
            net: Arc::clone(net),
            domain,
            ping,
            protocol,
            attr: new_attr(creds.fsuid, creds.fsgid),
            state: Mutex::new(State {
                local: domain.any(),
                ident: 0,
                peer: None,
                inbox: DatagramQueue::new(BUFFER_DEFAULT),
                shut_read: false,
                shut_write: false,
                filter: 0,
            }),
            queue: WaitQueue::new(),
            options: Options::new(Transport::Other, domain, BUFFER_DEFAULT, BUFFER_DEFAULT),
        });
        let mut table = net.raws.lock();
        table.retain(|core| core.strong_count() > 0);
        table.push(core.me.clone());
        drop(table);
        Arc::new(Self(core))
    }
}

/// A message that has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'p> {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    pub(super) payload: &'p [u8],
    pub(super) hops: u8,
    pub(super) class: u8,
    pub(super) interface: u32,
}

impl<'p> Message<'p> {
    /// What a packet that came by an interface carries.
    pub(crate) fn of(packet: &Packet<'p>, interface: u32) -> Self {
        Self {
            from: packet.from,
            to: packet.to,
            protocol: packet.protocol,
            payload: packet.payload,
            hops: packet.hops,
            class: packet.class,
            interface,
        }
    }

    /// Counts it, and shows it to packet sockets, as the loopback carries it.
    fn show(&self, net: &Inet) {
        net.stats.packet(self.payload.len() + IP_HEADER);
        if net.taps.any() {
            let how = HowSent { hops: self.hops, class: self.class, dont_fragment: false };
            net.show_message((self.from, self.to), self.protocol, self.payload, how);
        }
    }
}

impl Inet {
    /// Brings a message to all sockets that see it.
    pub(crate) fn deliver_raw(&self, packet: &Message<'_>) {
        let cores: Vec<Arc<RawCore>> = self.raws.lock().iter().filter_map(Weak::upgrade).collect();
        for core in cores {
            core.receive(packet);
        }
    }
}

impl RawCore {
    fn receive(&self, packet: &Message<'_>) {
        let own = (self.domain == Domain::V4) == packet.to.is_ipv4();
        let device = self.options.device();
        if !own || self.protocol != packet.protocol || (device != 0 && device != packet.interface) {
            return;
        }
        let kind = packet.payload.first().copied().unwrap_or(0);
        let mut state = self.state.lock();
        let local = state.local.is_unspecified() || state.local == packet.to;
        let peer = state.peer.is_none_or(|peer| peer == packet.from);
        if !local
            || !peer
            || (self.protocol == 1 && 1_u32.checked_shl(kind.into()).unwrap_or(0) & state.filter != 0)
        {
            return;
        }
        if self.ping {
            let reply = [icmp::ECHO_REPLY, icmp::ECHO_REPLY_V6].contains(&kind);
            if !reply || state.ident == 0 || icmp::identifier(packet.payload) != Some(state.ident) {
                return;
            }
        }
        let mut data = Vec::new();
        if let (false, IpAddr::V4(from), IpAddr::V4(to)) = (self.ping, packet.from, packet.to) {
            let (len, hops, class) = (packet.payload.len(), packet.hops, packet.class);
            data.extend_from_slice(&icmp::ipv4_header(from, to, packet.protocol, hops, class, 0, len));
        }
        data.extend_from_slice(packet.payload);
        let taken = state.inbox.push(Datagram {
            data,
            from: SocketAddr::new(packet.from, 0),
            to: packet.to,
            interface: packet.interface,
            hops: packet.hops,
            class: packet.class,
            stamp: real_now(),
        });
        drop(state);
        if taken {
            self.queue.notify(Events::READABLE);
        }
    }

    fn take_ident(&self) -> u16 {
        let taken: Vec<u16> = {
            let cores: Vec<Arc<Self>> = self.net.raws.lock().iter().filter_map(Weak::upgrade).collect();
            cores.iter().filter(|c| c.ping).map(|c| c.state.lock().ident).collect()
        };
        let start = u16::try_from(self.attr.ino % 0xffff).unwrap_or(0);
        let free = (0..u16::MAX).map(|n| start.wrapping_add(n)).find(|n| *n != 0 && !taken.contains(n));
        let mut state = self.state.lock();
        if state.ident == 0 {
            state.ident = free.unwrap_or(1);
        }
        state.ident
    }

    fn parse(&self, address: &[u8]) -> Result<IpAddr> {
        let at = addr::parse(self.domain, address)?.ip();
        if (self.domain == Domain::V4) == at.is_ipv4() {
            Ok(or_this_host(at))
        } else {
            Err(Errno::ENETUNREACH)
        }
    }

    fn bind(&self, address: &[u8]) -> Result<()> {
        let at = addr::parse_for_bind(self.domain, address)?;
        if !self.net.interfaces.lock().may_bind(at.ip()) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let mut state = self.state.lock();
        state.local = at.ip();
        if self.ping && at.port() != 0 {
            state.ident = at.port();
        }
        drop(state);
        if self.ping {
            self.take_ident();
        }
        Ok(())
    }

    fn connect(&self, address: &[u8]) -> Result<()> {
        if addr::family(address)? == libc::AF_UNSPEC {
            self.state.lock().peer = None;
            return Ok(());
        }
        let to = self.parse(address)?;
        let route = self.net.interfaces.lock().route_by(self.options.device(), to, None).map_err(errno)?;
        let mut state = self.state.lock();
        state.peer = Some(to);
        if state.local.is_unspecified() {
            state.local = route.source;
        }
        Ok(())
    }

    fn send(&self, msg: &mut SendMsg<'_, '_>) -> Result<usize> {
        let len = msg.data.remaining();
        if len > MAX_MESSAGE + IP_HEADER {
            return Err(Errno::EMSGSIZE);
        }
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let given = msg.to.map(|address| self.parse(address)).transpose()?;
        let (peer, local, shut) = {
            let state = self.state.lock();
            (state.peer, state.local, state.shut_write)
        };
        let to = given.or(peer).ok_or(Errno::EDESTADDRREQ)?;
        let from = Some(local).filter(|ip| !ip.is_unspecified());
        let route = self.net.interfaces.lock().route_by(self.options.device(), to, from).map_err(errno)?;
        if shut {
            return Err(Errno::EPIPE);
        }
        let mut data = vec![0; len];
        if msg.data.read(&mut data)? < len {
            return Err(Errno::EFAULT);
        }
        if self.ping {
            self.seal_ping(&mut data)?;
        } else if self.domain == Domain::V4 && self.options.flag(libc::IPPROTO_IP, libc::IP_HDRINCL) {
            // The header is the caller's; the message is what follows it.
            let words = data.first().map_or(0, |first| usize::from(first & 0xf) * 4);
            if words < IP_HEADER || words > data.len() {
                return Err(Errno::EINVAL);
            }
            data.drain(..words);
        }
        if let (58, IpAddr::V6(from), IpAddr::V6(to)) = (self.protocol, route.source, to) {
            icmp::seal_v6(&mut data, from, to);
        }
        let (level, name) = match self.domain {
            Domain::V4 => (libc::IPPROTO_IP, libc::IP_TTL),
            Domain::V6 => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
        };
        let hops = u8::try_from(self.options.number(level, name)).unwrap_or(64);
        let class = u8::try_from(self.options.number(libc::IPPROTO_IP, libc::IP_TOS)).unwrap_or(0);
        if let (Some(_), Some(outside)) = (route.next_hop, self.net.outside.get()) {
            let how = HowSent { hops, class, dont_fragment: false };
            let sent = outside.send_message(&route, (route.source, to), self.protocol, &data, how);
            return if sent { Ok(len) } else { Err(Errno::EMSGSIZE) };
        }
        let request = Message {
            from: route.source,
            to,
            protocol: self.protocol,
            payload: &data,
            hops,
            class,
            interface: self.net.arrives_by(to),
        };
        request.show(&self.net);
        self.net.deliver_raw(&request);
        let reply = match (self.protocol, route.source, to) {
            (1, IpAddr::V4(_), _) => icmp::reply_v4(&data),
            (58, IpAddr::V6(source), IpAddr::V6(to)) => icmp::reply_v6(&data, to, source),
            _ => None,
        };
        if let Some(reply) = reply {
            self.net.stats.icmp_messages.add(1);
            let packet = Message { from: to, to: route.source, payload: &reply, hops: 64, ..request };
            packet.show(&self.net);
            self.net.deliver_raw(&packet);
        }
        Ok(len)
    }

    /// A ping socket sends echo requests alone, under its own identifier.
    fn seal_ping(&self, data: &mut [u8]) -> Result<()> {
        let wanted = if self.domain == Domain::V4 { icmp::ECHO_REQUEST } else { icmp::ECHO_REQUEST_V6 };
        if data.len() < icmp::HEADER || data.first() != Some(&wanted) || data.get(1) != Some(&0) {
            return Err(Errno::EINVAL);
        }
        icmp::set_identifier(data, self.take_ident());
        if self.domain == Domain::V4 {
            icmp::seal_v4(data);
        }
        Ok(())
    }

    fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        if msg.flags & libc::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        if msg.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.state.lock();
        let dropped = state.inbox.dropped();
        let Some(datagram) = state.inbox.pop() else {
            let end = state.shut_read && !cx.nonblock;
            return Ok(if end { IoStart::Done(0) } else { IoStart::WouldBlock });
        };
        if msg.flags & libc::MSG_PEEK != 0 {
            state.inbox.unpop(datagram.clone());
        }
        drop(state);
        let (len, room) = (datagram.data.len(), msg.data.remaining());
        let copied = if len == 0 || room == 0 { 0 } else { msg.data.write(&datagram.data)? };
        if len > room {
            msg.out_flags |= libc::MSG_TRUNC;
        }
        msg.from = Some(addr::to_bytes(self.domain, datagram.from));
        control::describe(&self.options, self.domain, &datagram, dropped, 0, msg);
        Ok(IoStart::Done(if msg.flags & libc::MSG_TRUNC != 0 { len } else { copied }))
    }
}

impl Drop for RawSocket {
    fn drop(&mut self) {
        self.0.state.lock().inbox.clear();
        let me = Arc::downgrade(&self.0);
        self.0.net.raws.lock().retain(|core| !core.ptr_eq(&me));
    }
}

impl Socket for RawSocket {
    fn domain(&self) -> i32 {
        self.0.domain.raw()
    }

    fn kind(&self) -> i32 {
        if self.0.ping { libc::SOCK_DGRAM } else { libc::SOCK_RAW }
    }

    fn bind(&self, _cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        self.0.bind(address)
    }

    fn listen(&self, _cx: &SockCtx<'_>, _backlog: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn try_connect(&self, _cx: &SockCtx<'_>, address: &[u8]) -> Result<IoStart<()>> {
        self.0.connect(address).map(IoStart::Done)
    }

    fn try_accept(&self, _cx: &SockCtx<'_>) -> Result<IoStart<Arc<dyn Socket>>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn try_send(&self, _cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.send(msg).map(IoStart::Done)
    }

    fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.try_recv(cx, msg)
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
            return Err(Errno::EINVAL);
        }
        let mut state = self.0.state.lock();
        state.shut_read |= how != libc::SHUT_WR;
        state.shut_write |= how != libc::SHUT_RD;
        let connected = state.peer.is_some();
        drop(state);
        self.0.queue.notify(Events::READABLE | Events::WRITABLE | Events::HUP);
        if connected { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        let state = self.0.state.lock();
        let port = if self.0.ping { state.ident } else { u16::from(self.0.protocol) };
        Ok(addr::to_bytes(self.0.domain, SocketAddr::new(state.local, port)))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let peer = self.0.state.lock().peer.ok_or(Errno::ENOTCONN)?;
        Ok(addr::to_bytes(self.0.domain, SocketAddr::new(peer, 0)))
    }

    fn get_option(&self, _caller: &dyn Caller, level: i32, name: i32) -> Result<Vec<u8>> {
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_TYPE) => self.kind(),
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => self.domain(),
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => i32::from(self.0.protocol),
            (libc::SOL_SOCKET, libc::SO_ERROR | libc::SO_ACCEPTCONN) => 0,
            (SOL_RAW, ICMP_FILTER) if self.0.protocol == 1 && !self.0.ping => {
                self.0.state.lock().filter.cast_signed()
            }
            _ => return self.0.options.get(level, name),
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.0.net.bind_to_device(caller, &self.0.options, (level, name), value)?;
        match (level, name) {
            (SOL_RAW, ICMP_FILTER) if self.0.protocol == 1 && !self.0.ping => {
                let filter = value.first_chunk().ok_or(Errno::EINVAL)?;
                self.0.state.lock().filter = u32::from_ne_bytes(*filter);
                Ok(())
            }
            // Filters by type and checksums at an offset: every message comes, and sums are right.
            (SOL_ICMPV6, 1) | (libc::IPPROTO_IPV6 | SOL_RAW, 7) => Ok(()),
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) => Ok(()),
            _ => {
                self.0.options.set(caller, level, name, value)?;
                self.0.state.lock().inbox.set_limit(self.0.options.receive_buffer());
                Ok(())
            }
        }
    }

    fn timeout(&self, sending: bool) -> Option<Nanos> {
        self.0.options.timeout(sending)
    }

    fn readiness(&self) -> Events {
        let state = self.0.state.lock();
        let mut events = Events::WRITABLE | Events::WRBAND;
        if !state.inbox.is_empty() || state.shut_read {
            events |= Events::READABLE;
        }
        events
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.0.queue
    }

    fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        let value = match command {
            SIOCINQ => self.0.state.lock().inbox.front().map_or(0, |d| d.data.len()),
            SIOCOUTQ => 0,
            _ => return netdev::ioctl(&self.0.net, caller, command, arg),
        };
        caller.mem().copy_out(arg, &i32::try_from(value).unwrap_or(i32::MAX).to_ne_bytes())?;
        Ok(0)
    }

    fn attr(&self) -> Attr {
        self.0.attr
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
