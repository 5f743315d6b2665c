//! `AF_PACKET` sockets: frames as the links and the loopback carry them (`packet(7)`, `net/packet/af_packet.c`).
//!
//! TCP over the loopback has no packets and shows none. A frame that is sent by a link is not seen by this network's own
//! protocols; one that is sent by the loopback is taken in by them, as far as it carries UDP or ICMP of IPv6.
//!
//! **Threat.** A sender is whoever holds `CAP_NET_RAW` over this network. What waits at a receiver is bounded by its
//! `SO_RCVBUF`, or by the ring that it has made.

mod options;
mod ring;
mod transfer;

pub(crate) use options::kind_of;

use core::any::Any;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use netstack::bpf::{Program, View};
use netstack::datagram::weight;
use netstack::frame::{ETHERNET_HEADER, Hardware};
use sentry_base::{Errno, Events, Mutex, Nanos, Result, WaitQueue, lock::rank, real_now};
use sentry_mm::Mappable;
use sentry_vfs::{Attr, Caller, IoStart, cap};

use crate::inet::options::{Options, Transport};
use crate::inet::{Domain, netdev};
use crate::socket::new_attr;
use crate::{Inet, RecvMsg, SendMsg, SockCtx, Socket};
use ring::Ring;

/// `net.core.rmem_default`, in bytes.
const BUFFER_DEFAULT: usize = 212_992;
const SIOCINQ: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;
const SIOCGSTAMP: u32 = 0x8906;
/// Every protocol (`ETH_P_ALL`).
const ALL: u16 = 3;
/// Bytes of `struct sockaddr_ll`.
const ADDRESS: usize = 20;

/// `PACKET_HOST`, `PACKET_BROADCAST`, `PACKET_MULTICAST`, `PACKET_OTHERHOST`, `PACKET_OUTGOING`.
pub(crate) mod kind {
    pub(crate) const HOST: u8 = 0;
    pub(crate) const BROADCAST: u8 = 1;
    pub(crate) const MULTICAST: u8 = 2;
    pub(crate) const OTHER: u8 = 3;
    pub(crate) const OUTGOING: u8 = 4;
}

/// A frame on its way, as a tap sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight<'f> {
    pub(crate) interface: u32,
    /// `ARPHRD_*` of the interface.
    pub(crate) hardware: u16,
    pub(crate) kind: u8,
    /// From the Ethernet header on.
    pub(crate) frame: &'f [u8],
    /// The sum of its transport is yet to be made.
    pub(crate) unsummed: bool,
}

impl Sight<'_> {
    fn protocol(&self) -> u16 {
        self.frame.get(12..).and_then(<[u8]>::first_chunk).map_or(0, |b| u16::from_be_bytes(*b))
    }

    fn source(&self) -> Hardware {
        self.frame.get(6..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default()
    }

    /// `struct sockaddr_ll` of the sender.
    fn address(&self) -> Vec<u8> {
        let source = self.source();
        address(self.protocol(), self.interface, self.hardware, self.kind, Some(&source))
    }
}

/// `struct sockaddr_ll`, whole.
fn address(protocol: u16, interface: u32, hardware: u16, kind: u8, station: Option<&Hardware>) -> Vec<u8> {
    let mut out = Vec::with_capacity(ADDRESS);
    out.extend_from_slice(&u16::try_from(libc::AF_PACKET).unwrap_or(17).to_ne_bytes());
    out.extend_from_slice(&protocol.to_be_bytes());
    out.extend_from_slice(&interface.to_ne_bytes());
    out.extend_from_slice(&hardware.to_ne_bytes());
    out.extend_from_slice(&[kind, if station.is_some() { 6 } else { 0 }]);
    out.extend_from_slice(station.map(Hardware::as_slice).unwrap_or_default());
    out.resize(ADDRESS, 0);
    out
}

/// A frame that waits.
#[derive(Debug, Clone)]
struct Held {
    data: Vec<u8>,
    from: Vec<u8>,
    /// Bytes before a filter has cut it, and where its network header is in what the socket sees.
    len: usize,
    network: usize,
    unsummed: bool,
    stamp: Nanos,
}

#[derive(Debug)]
struct State {
    /// `ETH_P_*`; 0 for none.
    protocol: u16,
    /// 0 for all.
    interface: u32,
    inbox: VecDeque<Held>,
    held: usize,
    /// Since they were asked for last (`PACKET_STATISTICS`).
    taken: u32,
    dropped: u32,
    filter: Option<Arc<Program>>,
    ring: Option<Ring>,
    /// Groups and modes of interfaces that it has asked for: interface, `PACKET_MR_*`, address.
    memberships: Vec<(u32, u16, Vec<u8>)>,
    /// When what was read last had come.
    read_stamp: Option<Nanos>,
}

/// What a socket is, apart from who holds it.
#[derive(Debug)]
pub(crate) struct PacketCore {
    me: Weak<PacketCore>,
    net: Arc<Inet>,
    /// `SOCK_DGRAM`: without Ethernet headers.
    cooked: bool,
    attr: Attr,
    state: Mutex<State, { rank::FILE_DATA }>,
    queue: WaitQueue,
    options: Options,
    numbers: options::Numbers,
}

/// The packet sockets of one network.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    list: Mutex<Vec<Weak<PacketCore>>, { rank::LEAF }>,
    count: AtomicUsize,
}

impl Taps {
    /// Whether anybody looks.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    fn all(&self) -> Vec<Arc<PacketCore>> {
        self.list.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Shows a frame to all who want it.
    pub(crate) fn show(&self, sight: &Sight<'_>) {
        if self.any() {
            self.show_but(sight, None);
        }
    }

    /// The same without its sender.
    fn show_but(&self, sight: &Sight<'_>, sender: Option<&PacketCore>) {
        for core in self.all() {
            if !sender.is_some_and(|sender| core::ptr::eq(sender, core.as_ref())) {
                core.see(sight);
            }
        }
    }

    /// Lines of `/proc/net/packet`.
    pub(crate) fn rows(&self) -> String {
        let mut out = String::from("sk       RefCnt Type Proto  Iface R Rmem   User   Inode\n");
        for core in self.all() {
            let (protocol, interface, held) = {
                let state = core.state.lock();
                (state.protocol, state.interface, state.held)
            };
            let kind = if core.cooked { libc::SOCK_DGRAM } else { libc::SOCK_RAW };
            let (uid, ino) = (core.attr.uid, core.attr.ino);
            let runs = u8::from(protocol != 0);
            let _ = writeln!(
                out,
                "0000000000000000 3      {kind:<4} {protocol:04x}   {interface:<5} {runs} {held:<6} {uid:<6} {ino:<6}"
            );
        }
        out
    }
}

/// A socket's handle: dropping it closes.
#[derive(Debug)]
pub struct PacketSocket(Arc<PacketCore>);

impl PacketSocket {
    /// `socket(AF_PACKET, kind, protocol)`; `kind` without its flags, the protocol in network order.
    pub fn new(caller: &dyn Caller, net: &Arc<Inet>, kind: i32, protocol: i32) -> Result<Arc<Self>> {
        // Frames of the host's own links are nobody's here.
        if net.is_the_hosts() || !net.allows(caller, cap::NET_RAW) {
            return Err(Errno::EPERM);
        }
        if ![libc::SOCK_RAW, libc::SOCK_DGRAM].contains(&kind) {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        let creds = caller.creds();
        let [low, high, ..] = protocol.to_ne_bytes();
        let core = Arc::new_cyclic(|me| PacketCore {
            me: Weak::clone(me),
            net: Arc::clone(net),
            cooked: kind == libc::SOCK_DGRAM,
            attr: new_attr(creds.fsuid, creds.fsgid),
            state: Mutex::new(State {
                protocol: u16::from_be_bytes([low, high]),
                interface: 0,
                inbox: VecDeque::new(),
                held: 0,
                taken: 0,
                dropped: 0,
                filter: None,
                ring: None,
                memberships: Vec::new(),
                read_stamp: None,
            }),
            queue: WaitQueue::new(),
            options: Options::new(Transport::Other, Domain::V4, BUFFER_DEFAULT, BUFFER_DEFAULT),
            numbers: options::Numbers::default(),
        });
        let mut list = net.taps.list.lock();
        list.push(core.me.clone());
        net.taps.count.store(list.len(), Ordering::Relaxed);
        drop(list);
        Ok(Arc::new(Self(core)))
    }
}

impl Drop for PacketSocket {
    fn drop(&mut self) {
        let me = Arc::downgrade(&self.0);
        let taps = &self.0.net.taps;
        let mut list = taps.list.lock();
        list.retain(|core| !core.ptr_eq(&me));
        taps.count.store(list.len(), Ordering::Relaxed);
        drop(list);
        let mut state = self.0.state.lock();
        let gone = (core::mem::take(&mut state.inbox), state.ring.take());
        drop(state);
        drop(gone);
    }
}

impl PacketCore {
    /// Takes a frame in, where the socket wants it (`packet_rcv`, `tpacket_rcv`).
    fn see(&self, sight: &Sight<'_>) {
        let protocol = sight.protocol();
        let outgoing = sight.kind == kind::OUTGOING;
        let mut state = self.state.lock();
        let wanted = state.protocol == ALL || (state.protocol == protocol && !outgoing);
        let here = state.interface == 0 || state.interface == sight.interface;
        if !wanted || !here || (outgoing && self.numbers.ignores_outgoing()) {
            return;
        }
        let start = if self.cooked { ETHERNET_HEADER } else { 0 };
        let Some(bytes) = sight.frame.get(start..) else { return };
        let mut len = bytes.len();
        if let Some(filter) = &state.filter {
            let view = View {
                frame: sight.frame,
                start,
                network: ETHERNET_HEADER,
                protocol,
                kind: sight.kind,
                interface: sight.interface,
                hardware: sight.hardware,
            };
            match filter.run(&view) {
                0 => return,
                cut => len = len.min(usize::try_from(cut).unwrap_or(usize::MAX)),
            }
        }
        let held = Held {
            data: bytes.get(..len).unwrap_or_default().to_vec(),
            from: sight.address(),
            len: bytes.len(),
            network: ETHERNET_HEADER - start,
            unsummed: sight.unsummed,
            stamp: real_now(),
        };
        let dropped = state.dropped;
        let taken = if let Some(ring) = &mut state.ring {
            ring.put(&held, dropped > 0)
        } else {
            let room = state.held < self.options.receive_buffer();
            if room {
                state.held += weight(held.data.len());
                state.inbox.push_back(held);
            }
            room
        };
        let count = if taken { &mut state.taken } else { &mut state.dropped };
        *count = count.saturating_add(1);
        drop(state);
        if taken {
            self.queue.notify(Events::READABLE);
        }
    }

    /// `packet_bind`.
    fn bind(&self, at: &[u8]) -> Result<()> {
        let at: &[u8; ADDRESS] = at.first_chunk().ok_or(Errno::EINVAL)?;
        let [f0, f1, p0, p1, i0, i1, i2, i3, ..] = *at;
        if i32::from(u16::from_ne_bytes([f0, f1])) != libc::AF_PACKET {
            return Err(Errno::EINVAL);
        }
        let interface = u32::from_ne_bytes([i0, i1, i2, i3]);
        if interface != 0 && self.net.interfaces.lock().by_index(interface).is_none() {
            return Err(Errno::ENODEV);
        }
        let mut state = self.state.lock();
        state.interface = interface;
        match u16::from_be_bytes([p0, p1]) {
            0 => {}
            protocol => state.protocol = protocol,
        }
        Ok(())
    }

    fn readiness(&self) -> Events {
        let state = self.state.lock();
        let waits = match &state.ring {
            Some(ring) => ring.has_some(),
            None => !state.inbox.is_empty(),
        };
        let ready = Events::WRITABLE | Events::WRBAND;
        if waits { ready | Events::READABLE } else { ready }
    }

    fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        let value = match command {
            SIOCINQ => self.state.lock().inbox.front().map_or(0, |held| held.data.len()),
            SIOCOUTQ => 0,
            SIOCGSTAMP => {
                let stamp = self.state.lock().read_stamp.ok_or(Errno::ENOENT)?;
                let words = [stamp / 1_000_000_000, stamp % 1_000_000_000 / 1000].map(u64::to_ne_bytes);
                caller.mem().copy_out(arg, words.as_flattened())?;
                return Ok(0);
            }
            _ => return netdev::ioctl(&self.net, caller, command, arg),
        };
        caller.mem().copy_out(arg, &i32::try_from(value).unwrap_or(i32::MAX).to_ne_bytes())?;
        Ok(0)
    }
}

impl Socket for PacketSocket {
    fn domain(&self) -> i32 {
        libc::AF_PACKET
    }

    fn kind(&self) -> i32 {
        if self.0.cooked { libc::SOCK_DGRAM } else { libc::SOCK_RAW }
    }

    fn bind(&self, _cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        self.0.bind(address)
    }

    fn listen(&self, _cx: &SockCtx<'_>, _backlog: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn try_connect(&self, _cx: &SockCtx<'_>, _address: &[u8]) -> Result<IoStart<()>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn try_accept(&self, _cx: &SockCtx<'_>) -> Result<IoStart<Arc<dyn Socket>>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn try_send(&self, _cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.send(msg).map(IoStart::Done)
    }

    fn try_recv(&self, _cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.try_recv(msg)
    }

    fn shutdown(&self, _how: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        let (protocol, interface) = {
            let state = self.0.state.lock();
            (state.protocol, state.interface)
        };
        let found = {
            let interfaces = self.0.net.interfaces.lock();
            interfaces.by_index(interface).map(|found| (found.kind, found.hardware))
        };
        let (hardware, station) = found.map_or((0, None), |(kind, station)| (kind, Some(station)));
        let mut out = address(protocol, interface, hardware, 0, station.as_ref());
        // As long as the hardware's address is.
        out.truncate(if station.is_some() { 18 } else { 12 });
        Ok(out)
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn get_option(&self, _caller: &dyn Caller, level: i32, name: i32) -> Result<Vec<u8>> {
        self.0.get_option(level, name)
    }

    fn answers_by_value(&self, level: i32, name: i32) -> bool {
        (level, name) == (libc::SOL_PACKET, options::HDRLEN)
    }

    fn get_option_for(&self, _caller: &dyn Caller, level: i32, name: i32, given: &[u8]) -> Result<Vec<u8>> {
        options::header_len(given).map_or_else(|| self.0.get_option(level, name), Ok)
    }

    fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.0.set_option(caller, level, name, value)
    }

    fn timeout(&self, sending: bool) -> Option<Nanos> {
        self.0.options.timeout(sending)
    }

    fn readiness(&self) -> Events {
        self.0.readiness()
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.0.queue
    }

    fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        self.0.ioctl(caller, command, arg)
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        let state = self.0.state.lock();
        state.ring.as_ref().map(Ring::mappable).ok_or(Errno::EINVAL)
    }

    fn attr(&self) -> Attr {
        self.0.attr
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
