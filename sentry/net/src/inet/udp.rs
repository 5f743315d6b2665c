//! UDP sockets: names, peers, options, and the interface that system calls see (`udp(7)`, `net/ipv4/udp.c`,
//! `net/ipv4/datagram.c`).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use netstack::datagram::DatagramQueue;
use netstack::iface::or_this_host;
use netstack::ports::{BindingId, Local, Sharing};
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank, mono_now};
use sentry_vfs::{Attr, Caller, IoStart};

use super::Inet;
use super::addr::{self, Domain, errno};
use super::options::{Options, Transport, int};
use crate::{RecvMsg, SendMsg, SockCtx, Socket};

/// `net.core.rmem_default` and `wmem_default`, in bytes.
const BUFFER_DEFAULT: usize = 212_992;

const SIOCINQ: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;

/// Groups that one socket may join (`net.ipv4.igmp_max_memberships`).
const MAX_GROUPS: usize = 20;

/// An error that came back for a datagram, for `MSG_ERRQUEUE`.
#[derive(Debug)]
pub(super) struct ReturnedError {
    pub(super) errno: Errno,
    pub(super) data: Vec<u8>,
    pub(super) to: SocketAddr,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) binding: Option<BindingId>,
    pub(super) local: SocketAddr,
    pub(super) bound_port: bool,
    pub(super) bound_ip: bool,
    pub(super) peer: Option<SocketAddr>,
    pub(super) inbox: DatagramQueue,
    pub(super) fault: Option<Errno>,
    pub(super) errors: VecDeque<ReturnedError>,
    pub(super) shut_read: bool,
    pub(super) shut_write: bool,
    /// What a corked socket has gathered for its next datagram, and where that goes.
    pub(super) corked: Option<(Vec<u8>, SocketAddr)>,
    groups: Vec<(IpAddr, u32)>,
    /// The destination for which the asker was told last.
    pub(super) told: Option<SocketAddr>,
}

/// What a socket is, apart from who holds it.
#[derive(Debug)]
pub(crate) struct UdpCore {
    pub(super) me: Weak<UdpCore>,
    pub(super) net: Arc<Inet>,
    pub(super) domain: Domain,
    pub(super) attr: Attr,
    pub(super) state: Mutex<State, { rank::FILE_DATA }>,
    pub(super) queue: WaitQueue,
    pub(super) options: Options,
}

impl UdpCore {
    fn sharing(&self) -> Sharing {
        Sharing {
            address: self.options.flag(libc::SOL_SOCKET, libc::SO_REUSEADDR),
            port: self.options.flag(libc::SOL_SOCKET, libc::SO_REUSEPORT),
            uid: self.attr.uid,
        }
    }

    fn v6_only(&self) -> bool {
        self.domain == Domain::V6 && self.options.set_or(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0) != 0
    }

    fn local(&self, ip: IpAddr) -> Local {
        Local { ip, v6_only: self.v6_only(), device: self.options.device() }
    }

    /// Takes a port and enters it.
    fn take_port(&self, ip: IpAddr, port: u16, by_bind: bool) -> Result<()> {
        let (local, sharing) = (self.local(ip), self.sharing());
        let id =
            self.net.udp.lock().bind(local, port, sharing, self.me.clone(), mono_now()).map_err(errno)?;
        let mut state = self.state.lock();
        if state.binding.is_some() {
            drop(state);
            self.net.udp.lock().release(id);
            return if by_bind { Err(Errno::EINVAL) } else { Ok(()) };
        }
        state.binding = Some(id);
        state.local = SocketAddr::new(ip, id.port);
        if by_bind {
            state.bound_port = port != 0;
            state.bound_ip = !ip.is_unspecified();
        }
        Ok(())
    }

    fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        let at = addr::parse_for_bind(self.domain, address)?;
        let ip = at.ip();
        if self.v6_only() && ip.is_ipv4() {
            return Err(Errno::EINVAL);
        }
        let free = self.options.flag(libc::IPPROTO_IP, libc::IP_FREEBIND) || ip.is_multicast();
        if !free && !self.net.interfaces.lock().may_bind(ip) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.net.check_port(cx.caller, at.port())?;
        if self.state.lock().binding.is_some() {
            return Err(Errno::EINVAL);
        }
        self.take_port(ip, at.port(), true)
    }

    /// Takes any port, unless there is one.
    pub(super) fn autobind(&self) -> Result<()> {
        let ip = {
            let state = self.state.lock();
            if state.binding.is_some() {
                return Ok(());
            }
            state.local.ip()
        };
        self.take_port(ip, 0, false).map_err(|_| Errno::EAGAIN)
    }

    /// Whether a datagram may go to `to`, and the address that it comes from.
    pub(super) fn route(&self, to: IpAddr, local: IpAddr) -> Result<IpAddr> {
        if self.v6_only() && to.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        let given = Some(local).filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
        if given.is_some_and(|ip| ip.is_ipv4() != to.is_ipv4()) {
            return Err(Errno::ENETUNREACH);
        }
        if to.is_multicast() {
            let (_, source) = self.group_route(to)?;
            return Ok(given.unwrap_or(source));
        }
        let route = self.net.interfaces.lock().route_by(self.options.device(), to, given).map_err(errno)?;
        let broadcast = match to {
            IpAddr::V4(ip) => {
                ip.is_broadcast() || (ip.is_loopback() && ip.to_bits() & 0xff_ffff == 0xff_ffff)
            }
            IpAddr::V6(_) => false,
        };
        if broadcast && !self.options.flag(libc::SOL_SOCKET, libc::SO_BROADCAST) {
            return Err(Errno::EACCES);
        }
        Ok(route.source)
    }

    /// The interface by which a datagram to a group goes out, and the address that it comes from.
    pub(super) fn group_route(&self, to: IpAddr) -> Result<(u32, IpAddr)> {
        let (address, index) = self.options.group_interface(to.is_ipv6());
        let interfaces = self.net.interfaces.lock();
        let chosen = match (self.options.device(), address, index) {
            (0, Some(ip), _) => interfaces.local(ip),
            (0, None, 0) => None,
            (0, None, index) => interfaces.by_index(index),
            // One that it is bound to comes before one that it sends to groups by.
            (device, ..) => interfaces.by_index(device),
        };
        let Some(chosen) = chosen else {
            let route = interfaces.route(to, None).map_err(errno)?;
            return Ok((route.interface, route.source));
        };
        let own = chosen.addresses.iter().find(|a| a.ip.is_ipv4() == to.is_ipv4()).map(|a| a.ip);
        let source = address.or(own).ok_or(Errno::EADDRNOTAVAIL)?;
        Ok((chosen.index, source))
    }

    /// Whether this socket has joined a group on any interface, and takes those of others besides (`IP_MULTICAST_ALL`).
    pub(super) fn group_taste(&self, group: IpAddr) -> (bool, bool) {
        let joined = self.state.lock().groups.iter().any(|(ip, _)| *ip == group);
        let all = if group.is_ipv4() {
            self.options.set_or(libc::IPPROTO_IP, 49, 1)
        } else {
            self.options.set_or(libc::IPPROTO_IPV6, 29, 1)
        };
        (joined, all != 0)
    }

    /// `__ip4_datagram_connect` and `__udp_disconnect`.
    fn connect(&self, address: &[u8]) -> Result<()> {
        if addr::family(address)? == libc::AF_UNSPEC {
            return self.disconnect();
        }
        let to = match self.domain {
            Domain::V4 => addr::parse(self.domain, address)?,
            Domain::V6 => addr::parse_destination(self.domain, address)?.ok_or(Errno::EAFNOSUPPORT)?,
        };
        let to = SocketAddr::new(or_this_host(to.ip()), to.port());
        let given = {
            let state = self.state.lock();
            if state.bound_ip { state.local.ip() } else { self.domain.any() }
        };
        let source = self.route(to.ip(), given)?;
        self.autobind()?;
        let mut state = self.state.lock();
        state.peer = Some(to);
        state.local.set_ip(source);
        if let Some(binding) = state.binding.and_then(|id| {
            self.net.udp.lock().get_mut(id).map(|b| {
                b.local.ip = source;
                b.peer = Some(to);
                b.id
            })
        }) {
            state.binding = Some(binding);
        }
        Ok(())
    }

    fn disconnect(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.peer = None;
        if !state.bound_ip {
            state.local.set_ip(self.domain.any());
        }
        let Some(id) = state.binding else { return Ok(()) };
        if state.bound_port {
            let ip = state.local.ip();
            if let Some(binding) = self.net.udp.lock().get_mut(id) {
                binding.local.ip = ip;
                binding.peer = None;
            }
        } else {
            state.local.set_port(0);
            state.binding = None;
            self.net.udp.lock().release(id);
        }
        Ok(())
    }

    /// `datagram_poll`.
    fn readiness(&self) -> Events {
        let state = self.state.lock();
        let mut events = Events::WRITABLE | Events::WRBAND;
        if state.fault.is_some() || !state.errors.is_empty() {
            events |= Events::ERR;
        }
        if state.shut_read {
            events |= Events::READABLE | Events::RDHUP;
            if state.shut_write {
                events |= Events::HUP;
            }
        }
        if !state.inbox.is_empty() {
            events |= Events::READABLE;
        }
        events
    }

    fn get_option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_TYPE) => libc::SOCK_DGRAM,
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => self.domain.raw(),
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => libc::IPPROTO_UDP,
            (libc::SOL_SOCKET, libc::SO_ERROR) => self.state.lock().fault.take().map_or(0, Errno::raw),
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => 0,
            (libc::SOL_SOCKET, libc::SO_COOKIE) => return Ok(self.attr.ino.to_ne_bytes().to_vec()),
            (libc::IPPROTO_IP, libc::IP_MTU) | (libc::IPPROTO_IPV6, libc::IPV6_MTU) => {
                if self.state.lock().peer.is_none() {
                    return Err(Errno::ENOTCONN);
                }
                if level == libc::IPPROTO_IP { 65_535 } else { 65_536 }
            }
            _ => return self.options.get(level, name),
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.net.bind_to_device(caller, &self.options, (level, name), value)?;
        match (level, name) {
            (
                libc::SOL_SOCKET,
                libc::SO_TYPE
                | libc::SO_DOMAIN
                | libc::SO_PROTOCOL
                | libc::SO_ERROR
                | libc::SO_ACCEPTCONN
                | libc::SO_COOKIE,
            ) => return Err(Errno::ENOPROTOOPT),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) if self.domain == Domain::V6 => {
                int(value)?;
                if self.state.lock().binding.is_some() {
                    return Err(Errno::EINVAL);
                }
            }
            (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | libc::IP_DROP_MEMBERSHIP) => {
                return self.group_v4(value, name == libc::IP_ADD_MEMBERSHIP);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | libc::IPV6_DROP_MEMBERSHIP)
                if self.domain == Domain::V6 =>
            {
                return self.group_v6(value, name == libc::IPV6_ADD_MEMBERSHIP);
            }
            _ => {}
        }
        self.options.set(caller, level, name, value)?;
        if (level, name) == (libc::IPPROTO_UDP, libc::UDP_CORK) && int(value)? == 0 {
            self.uncork();
        }
        if level == libc::SOL_SOCKET {
            let sharing = self.sharing();
            let mut state = self.state.lock();
            state.inbox.set_limit(self.options.receive_buffer());
            if let Some(id) = state.binding
                && let Some(binding) = self.net.udp.lock().get_mut(id)
            {
                binding.sharing = sharing;
                binding.local.device = self.options.device();
            }
        }
        Ok(())
    }

    /// `struct ip_mreq` or `struct ip_mreqn`.
    fn group_v4(&self, value: &[u8], join: bool) -> Result<()> {
        let word = |at: usize| value.get(at..).and_then(<[u8]>::first_chunk::<4>).copied();
        let group = IpAddr::from(word(0).ok_or(Errno::EINVAL)?);
        let device = IpAddr::from(word(4).ok_or(Errno::EINVAL)?);
        let index = word(8).map_or(0, u32::from_ne_bytes);
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let interface = {
            let interfaces = self.net.interfaces.lock();
            let found = match index {
                0 if device.is_unspecified() => interfaces.by_index(1),
                0 => interfaces.local(device),
                index => interfaces.by_index(index),
            };
            found.map(|i| i.index).ok_or(Errno::ENODEV)?
        };
        self.change_groups((group, interface), join)
    }

    /// `struct ipv6_mreq`.
    fn group_v6(&self, value: &[u8], join: bool) -> Result<()> {
        let group: [u8; 16] = *value.first_chunk().ok_or(Errno::EINVAL)?;
        let index = value.get(16..).and_then(<[u8]>::first_chunk).ok_or(Errno::EINVAL)?;
        let index = u32::from_ne_bytes(*index);
        let group = IpAddr::from(group);
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let index = if index == 0 { 1 } else { index };
        if self.net.interfaces.lock().by_index(index).is_none() {
            return Err(Errno::ENODEV);
        }
        self.change_groups((group, index), join)
    }

    fn change_groups(&self, group: (IpAddr, u32), join: bool) -> Result<()> {
        let mut state = self.state.lock();
        let at = state.groups.iter().position(|g| *g == group);
        match (join, at) {
            (true, Some(_)) => Err(Errno::EADDRINUSE),
            (true, None) if state.groups.len() >= MAX_GROUPS => Err(Errno::ENOBUFS),
            (true, None) => {
                state.groups.push(group);
                self.net.groups.join(group);
                Ok(())
            }
            (false, Some(at)) => {
                state.groups.swap_remove(at);
                self.net.groups.leave(group);
                Ok(())
            }
            (false, None) => Err(Errno::EADDRNOTAVAIL),
        }
    }

    /// Whether datagrams to a group that came in by `interface` are for this socket (`IP_MULTICAST_ALL` aside).
    pub(super) fn is_member(&self, group: IpAddr, interface: u32) -> bool {
        self.state.lock().groups.contains(&(group, interface))
    }

    fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        let value = match command {
            SIOCINQ => self.state.lock().inbox.front().map_or(0, |d| d.data.len()),
            SIOCOUTQ => 0,
            _ => return super::netdev::ioctl(&self.net, caller, command, arg),
        };
        caller.mem().copy_out(arg, &i32::try_from(value).unwrap_or(i32::MAX).to_ne_bytes())?;
        Ok(0)
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let (read, write) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let connected = {
            let mut state = self.state.lock();
            state.shut_read |= read;
            state.shut_write |= write;
            state.peer.is_some()
        };
        self.queue.notify(Events::READABLE | Events::WRITABLE | Events::RDHUP | Events::HUP);
        if connected { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn release(&self) {
        let (binding, inbox, groups) = {
            let mut state = self.state.lock();
            let empty = DatagramQueue::new(0);
            let groups = core::mem::take(&mut state.groups);
            (state.binding.take(), core::mem::replace(&mut state.inbox, empty), groups)
        };
        for group in groups {
            self.net.groups.leave(group);
        }
        if let Some(id) = binding {
            self.net.udp.lock().release(id);
        }
        drop(inbox);
    }
}

/// A socket's handle: dropping it closes.
#[derive(Debug)]
pub(crate) struct UdpSocket(Arc<UdpCore>);

impl UdpSocket {
    pub(super) fn new(caller: &dyn Caller, net: &Arc<Inet>, domain: Domain) -> Arc<Self> {
        let creds = caller.creds();
        let state = State {
            binding: None,
            local: domain.nowhere(),
            bound_port: false,
            bound_ip: false,
            peer: None,
            inbox: DatagramQueue::new(BUFFER_DEFAULT),
            fault: None,
            errors: VecDeque::new(),
            shut_read: false,
            shut_write: false,
            corked: None,
            groups: Vec::new(),
            told: None,
        };
        Arc::new(Self(Arc::new_cyclic(|me| UdpCore {
            me: Weak::clone(me),
            net: Arc::clone(net),
            domain,
            attr: crate::socket::new_attr(creds.fsuid, creds.fsgid),
            state: Mutex::new(state),
            queue: WaitQueue::new(),
            options: Options::new(Transport::Udp, domain, BUFFER_DEFAULT, BUFFER_DEFAULT),
        })))
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Socket for UdpSocket {
    fn domain(&self) -> i32 {
        self.0.domain.raw()
    }

    fn kind(&self) -> i32 {
        libc::SOCK_DGRAM
    }

    fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        self.0.bind(cx, address)
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

    fn try_send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.send(cx, msg).map(IoStart::Done)
    }

    fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.try_recv(cx, msg)
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        self.0.shutdown(how)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        Ok(addr::to_bytes(self.0.domain, self.0.state.lock().local))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let peer = self.0.state.lock().peer.ok_or(Errno::ENOTCONN)?;
        Ok(addr::to_bytes(self.0.domain, peer))
    }

    crate::socket::served_by_shared_part!();
}
