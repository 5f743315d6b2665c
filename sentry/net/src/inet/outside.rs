//! The way out of a network: its links, what comes in by them, and what goes out (`ip_rcv`, `ip_queue_xmit`).
//!
//! A thread of the sandbox process reads frames from descriptors that the runtime has opened, and hands them to
//! [`Links`]; whoever has something to send writes to them at once. Time-outs are kept in one list, which that thread
//! looks at.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use netstack::asker::{Asker, TYPE_ASKER};
use netstack::flow::Tuple;
use netstack::frame::{
    Arrived, EVERYBODY, Frame, HEADROOM, Hardware, OFFLOAD_HEADER, TYPE_ARP, TYPE_V4, TYPE_V6,
};
use netstack::icmp;
use netstack::iface::{Interface, Route, StaticRoute};
use netstack::neighbor::{Addressed, Arp, Discovery, Neighbors, Station};
use netstack::packet::{Header, ICMP, ICMPV6, Packet, Reassembler, TCP, UDP, pseudo_header};
use netstack::ports::Binding;
use netstack::router::Advertisement;
use netstack::stats::Counter;
use netstack::table::{FlowTable, MAX_HALF_OPEN, Orphan, Segment, reset_for, tuple_of};
use sentry_base::{Mutex, Nanos, lock::rank, mono_now};
use sentry_vfs::Caller;

use super::flow::Flow;
use super::memory::Granted;
use super::resolver::{self, Resolver};
use super::{Inet, raw};
use crate::packet::{Sight, Taps, kind, kind_of};

/// The descriptors of a network, as the sandbox process has them.
pub trait LinkHost: Send + Sync + core::fmt::Debug {
    /// Writes a frame, behind its `struct virtio_net_hdr`, to a link. One that finds no room is lost.
    fn send(&self, interface: u32, frame: &[u8]);
    /// Wakes the thread that waits for [`Links::deadline`].
    fn ring(&self);
    /// Passes a query on to the engine's resolver.
    fn ask_resolver(&self, query: &[u8]);
}

/// A network's links and routes, to begin with.
#[derive(Debug)]
pub struct LinkSetup {
    pub interfaces: Vec<Interface>,
    pub routes: Vec<StaticRoute>,
    /// Links whose routers are believed.
    pub routed: Vec<u32>,
    pub host: Arc<dyn LinkHost>,
    /// Whether queries to [`super::resolver::ADDRESS`] are passed on.
    pub resolver: bool,
    /// Whether [`super::resolver::LINK`] leads to it.
    pub resolver_stream: bool,
    /// Whether the other end of the links is to hear which program begins a connection.
    pub tell_askers: bool,
}

/// One link, and what it has carried.
#[derive(Debug)]
struct Port {
    station: Station,
    received: Traffic,
    sent: Traffic,
    accepts_routers: bool,
    /// Frames that were not for us, broken or of no known kind.
    dropped: Counter,
}

#[derive(Debug, Default)]
struct Traffic {
    packets: Counter,
    bytes: Counter,
}

/// What a network has besides its loopback.
#[derive(Debug)]
pub(crate) struct Outside {
    host: Arc<dyn LinkHost>,
    taps: Arc<Taps>,
    ports: BTreeMap<u32, Port>,
    pub(crate) neighbors: Mutex<Neighbors, { rank::LEAF }>,
    pub(super) flows: Mutex<FlowTable<Arc<Flow>>, { rank::LEAF }>,
    partial: Mutex<Reassembler, { rank::LEAF }>,
    timers: Timers,
    /// Connections that others have begun, oldest first; those that stand by now are passed over.
    half_open: Mutex<VecDeque<Weak<Flow>>, { rank::LEAF }>,
    /// Flows that have taken packets and are yet to answer; of the links' thread alone.
    stirred: Mutex<Vec<Arc<Flow>>, { rank::LEAF }>,
    next_id: AtomicU32,
    /// Errors that may still be sent this second, and the second (`icmp_ratelimit`).
    errors: Mutex<(Nanos, u32), { rank::LEAF }>,
    pub(super) resolver: Option<Resolver>,
    pub(super) resolver_stream: bool,
    pub(super) tell_askers: bool,
}

/// ICMP errors in a second.
const ERRORS_PER_SECOND: u32 = 100;

/// Who is to be woken when.
#[derive(Debug, Default)]
struct Timers {
    flows: Mutex<BTreeMap<(Nanos, u64), Weak<Flow>>, { rank::LEAF }>,
    serial: AtomicU64,
    /// Until when the link's thread sleeps.
    armed: AtomicU64,
    neighbors: AtomicU64,
}

/// The links of a network, for the thread that serves them.
#[derive(Debug, Clone)]
pub struct Links(Arc<Inet>);

impl Inet {
    /// Gives this network its links; the first time counts.
    pub fn attach(self: &Arc<Self>, setup: LinkSetup) -> Links {
        let stations = setup.interfaces.iter().map(|i| (i.index, i.hardware));
        let hidden = setup.resolver_stream.then_some((resolver::LINK, resolver::OUR_STATION));
        let ports = stations.chain(hidden).map(|(index, hardware)| {
            let port = Port {
                station: Station { interface: index, hardware },
                accepts_routers: setup.routed.contains(&index),
                received: Traffic::default(),
                sent: Traffic::default(),
                dropped: Counter::default(),
            };
            (index, port)
        });
        let outside = Outside {
            host: setup.host,
            taps: Arc::clone(&self.taps),
            ports: ports.collect(),
            neighbors: Mutex::default(),
            flows: Mutex::default(),
            partial: Mutex::default(),
            timers: Timers { neighbors: AtomicU64::new(Nanos::MAX), ..Timers::default() },
            half_open: Mutex::default(),
            stirred: Mutex::default(),
            next_id: AtomicU32::new(1),
            errors: Mutex::new((0, 0)),
            resolver: setup.resolver.then(Resolver::default),
            resolver_stream: setup.resolver_stream,
            tell_askers: setup.tell_askers,
        };
        outside.timers.armed.store(Nanos::MAX, Ordering::Relaxed);
        let mut interfaces = self.interfaces.lock();
        for interface in setup.interfaces {
            interfaces.add(interface);
        }
        for route in setup.routes {
            interfaces.add_route(route);
        }
        drop(interfaces);
        let _ = self.outside.set(outside);
        Links(Arc::clone(self))
    }

    /// The route of a packet that leaves this network, by the interface `device` where that is not 0.
    pub(super) fn route_out(&self, device: u32, to: IpAddr, from: IpAddr) -> Option<(&Outside, Route)> {
        let outside = self.outside.get()?;
        let from = Some(from).filter(|ip| !ip.is_unspecified());
        let route = self.interfaces.lock().route_by(device, to, from).ok()?;
        route.next_hop.is_some().then_some((outside, route))
    }
}

impl Links {
    /// Takes what has come by a link: a frame behind its `struct virtio_net_hdr`. Call [`Links::answer`] when there are no more
    /// for now.
    pub fn arrived(&self, interface: u32, bytes: &[u8]) {
        let Some(outside) = self.0.outside.get() else { return };
        outside.arrived(&self.0, interface, bytes);
    }

    /// Does what the frames that have arrived ask for.
    pub fn answer(&self) {
        let Some(outside) = self.0.outside.get() else { return };
        let flows = core::mem::take(&mut *outside.stirred.lock());
        for flow in flows {
            flow.answer();
        }
    }

    /// Takes an answer of the engine's resolver.
    pub fn resolved(&self, answer: &[u8]) {
        if let Some(resolver) = self.0.outside.get().and_then(|outside| outside.resolver.as_ref()) {
            resolver.answered(&self.0, answer);
        }
    }

    /// When [`Links::tick`] is to be called; until then the thread may sleep. It is woken if that changes.
    pub fn deadline(&self) -> Option<Nanos> {
        let timers = &self.0.outside.get()?.timers;
        let flows = timers.flows.lock();
        let neighbors = timers.neighbors.load(Ordering::Relaxed);
        let first = flows.keys().next().map_or(Nanos::MAX, |(at, _)| *at).min(neighbors);
        // Under the lock: who adds an earlier one sees it.
        timers.armed.store(first, Ordering::Relaxed);
        Some(first).filter(|at| *at < Nanos::MAX)
    }

    /// Does what time has come for.
    pub fn tick(&self) {
        let Some(outside) = self.0.outside.get() else { return };
        let now = mono_now();
        loop {
            let due = {
                let mut flows = outside.timers.flows.lock();
                match flows.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => break,
                }
            };
            if let Some(flow) = due.upgrade() {
                flow.timer_fired();
            }
        }
        if outside.timers.neighbors.load(Ordering::Relaxed) <= now {
            outside.tick_neighbors(&self.0, now);
        }
    }
}

impl Timers {
    /// Neighbours are to be looked at when that time comes.
    fn wait_for_neighbors(&self, host: &dyn LinkHost, at: Nanos) {
        let wakes = {
            // What the thread sleeps until is settled under this lock.
            let _flows = self.flows.lock();
            self.neighbors.fetch_min(at, Ordering::Relaxed);
            self.armed.fetch_min(at, Ordering::Relaxed) > at
        };
        if wakes {
            host.ring();
        }
    }
}

impl Outside {
    /// Has `flow` woken at `at`.
    pub(super) fn schedule(&self, flow: &Weak<Flow>, at: Nanos) {
        let serial = self.timers.serial.fetch_add(1, Ordering::Relaxed);
        let wakes = {
            let mut flows = self.timers.flows.lock();
            flows.insert((at, serial), Weak::clone(flow));
            self.timers.armed.fetch_min(at, Ordering::Relaxed) > at
        };
        if wakes {
            self.host.ring();
        }
    }

    /// A number for a packet that may be cut into fragments.
    pub(super) fn packet_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn ask_resolver(&self, query: &[u8]) {
        self.host.ask_resolver(query);
    }

    fn transmit(&self, frames: Vec<Addressed>) {
        for Addressed { interface, to, kind, mut frame } in frames {
            let Some(port) = self.ports.get(&interface) else { continue };
            port.sent.packets.add(1);
            port.sent.bytes.add(frame.packet().len() as u64);
            let bytes = frame.finish(to, port.station.hardware, kind);
            self.taps.show(&sight(interface, kind::OUTGOING, bytes));
            self.host.send(interface, bytes);
        }
    }

    /// Sends what a packet socket has made: a frame behind its `struct virtio_net_hdr`.
    pub(crate) fn send_raw(&self, interface: u32, bytes: &[u8]) {
        let Some(port) = self.ports.get(&interface) else { return };
        port.sent.packets.add(1);
        port.sent.bytes.add(bytes.len().saturating_sub(HEADROOM) as u64);
        self.host.send(interface, bytes);
    }

    /// Tells the other end of a link who is about to begin something from a port of ours, where it wants to know.
    pub(super) fn tell_asker(&self, interface: u32, protocol: u8, port: u16, caller: &dyn Caller) {
        let Some(link) = self.ports.get(&interface).filter(|_| self.tell_askers) else { return };
        let pid = u32::try_from(caller.show_pid(caller.pid())).unwrap_or(0);
        let mut frame = Asker { protocol, port, pid, name: caller.comm() }.frame();
        self.host.send(interface, frame.finish(EVERYBODY, link.station.hardware, TYPE_ASKER));
    }

    /// Sends a packet along a route.
    pub(super) fn send(&self, route: &Route, frame: Frame) {
        let (Some(port), Some(next_hop)) = (self.ports.get(&route.interface), route.next_hop) else { return };
        if route.interface == resolver::LINK {
            let mut frame = frame;
            let bytes = frame.finish(resolver::ITS_STATION, resolver::OUR_STATION, TYPE_V4);
            return self.host.send(resolver::LINK, bytes);
        }
        let now = mono_now();
        let mut out = Vec::with_capacity(2);
        let (taken, deadline) = {
            let mut neighbors = self.neighbors.lock();
            let hop = (route.source, next_hop);
            let taken = neighbors.send(port.station, hop, frame, now, &mut out);
            // More or less than the packet itself: somebody was asked.
            let asked = out.len() != 1 || out.iter().any(|a| a.kind == TYPE_ARP || a.to[0] & 1 != 0);
            (taken, asked.then(|| neighbors.deadline()).flatten())
        };
        if !taken {
            port.dropped.add(1);
        }
        if let Some(at) = deadline {
            self.timers.wait_for_neighbors(self.host.as_ref(), at);
        }
        self.transmit(out);
    }

    fn tick_neighbors(&self, net: &Arc<Inet>, now: Nanos) {
        let mut out = Vec::new();
        let lost = {
            let mut neighbors = self.neighbors.lock();
            let lost = neighbors.tick(now, |index| self.ports.get(&index).map(|p| p.station), &mut out);
            // Under the lock: what is asked after this comes before it or is added to it.
            let deadline = neighbors.deadline().unwrap_or(Nanos::MAX);
            self.timers.neighbors.store(deadline, Ordering::Relaxed);
            lost
        };
        self.transmit(out);
        for frame in lost {
            if let Some(packet) = Packet::parse(frame.packet()) {
                super::icmp_errors::no_neighbor(net, self, &packet);
            }
        }
    }

    fn arrived(&self, net: &Arc<Inet>, interface: u32, bytes: &[u8]) {
        let Some(port) = self.ports.get(&interface) else { return };
        let Some(frame) = Arrived::parse(bytes) else { return port.dropped.add(1) };
        if interface == resolver::LINK {
            return self.of_resolver(net, &frame);
        }
        if net.taps.any() && net.interfaces.lock().by_index(interface).is_some_and(Interface::is_up) {
            net.taps.show(&sight(interface, kind_of(frame.to, port.station.hardware), bytes));
        }
        let own = frame.to == port.station.hardware || frame.to[0] & 1 != 0;
        if !own || !net.interfaces.lock().by_index(interface).is_some_and(Interface::is_up) {
            return port.dropped.add(1);
        }
        port.received.packets.add(1);
        port.received.bytes.add(frame.packet.len() as u64);
        match frame.kind {
            TYPE_ARP => self.arp(net, port, &frame),
            TYPE_V4 | TYPE_V6 => self.packet(net, port, &frame),
            _ => port.dropped.add(1),
        }
    }

    /// What comes by the resolver's link: segments of connections to it, and nothing else is taken.
    fn of_resolver(&self, net: &Arc<Inet>, frame: &Arrived<'_>) {
        let Some(packet) = Packet::parse(frame.packet).filter(|_| frame.kind == TYPE_V4) else { return };
        if packet.protocol != TCP || packet.from != resolver::ADDRESS.ip() || packet.fragment.is_some() {
            return;
        }
        let Some(segment) = Segment::parse(packet.payload) else { return };
        let flow = self.flows.lock().get(&tuple_of(&packet, &segment)).map(Arc::clone);
        if let Some(flow) = flow.filter(|_| frame.verified || packet.is_intact()) {
            net.stats.tcp_received.add(1);
            self.bring(flow, &packet);
        }
    }

    fn arp(&self, net: &Arc<Inet>, port: &Port, frame: &Arrived<'_>) {
        let Some(arp) = Arp::parse(frame.packet) else { return port.dropped.add(1) };
        let interface = port.station.interface;
        let ours = |ip| {
            net.interfaces.lock().by_index(interface).is_some_and(|i| i.addresses.iter().any(|a| a.ip == ip))
        };
        let wanted = arp.is_question && ours(IpAddr::V4(arp.target));
        let mut out = Vec::new();
        let (hardware, ip) = arp.sender;
        if !ours(IpAddr::V4(ip)) {
            let mut neighbors = self.neighbors.lock();
            neighbors.learn(interface, IpAddr::V4(ip), hardware, wanted, mono_now(), &mut out);
        }
        if wanted {
            out.push(arp.answer(port.station));
        }
        self.transmit(out);
    }

    fn packet(&self, net: &Arc<Inet>, port: &Port, frame: &Arrived<'_>) {
        let Some(packet) = Packet::parse(frame.packet) else { return port.dropped.add(1) };
        let interface = port.station.interface;
        let allowed = {
            let interfaces = net.interfaces.lock();
            // Nobody outside is this host, a group or everybody.
            let martian = packet.from.is_multicast()
                || packet.from.is_loopback()
                || packet.to.is_loopback()
                || interfaces.is_broadcast(packet.from)
                || interfaces.local(packet.from).is_some();
            !martian && interfaces.is_for_us(packet.to, interface)
        };
        if !allowed {
            return port.dropped.add(1);
        }
        if packet.fragment.is_none() {
            return self.whole_packet(net, port, frame, &packet);
        }
        let joined = self.partial.lock().join(&packet, mono_now());
        let Some(joined) = joined else { return };
        let Some(packet) = Packet::parse(joined.packet()) else { return };
        self.whole_packet(net, port, &Arrived { verified: false, ..*frame }, &packet);
    }

    fn whole_packet(&self, net: &Arc<Inet>, port: &Port, frame: &Arrived<'_>, packet: &Packet<'_>) {
        if !frame.verified && !packet.is_intact() {
            return port.dropped.add(1);
        }
        let interface = port.station.interface;
        net.deliver_raw_outside(packet, interface);
        match packet.protocol {
            TCP => self.segment(net, port, packet),
            UDP => {
                let taken = net.receive_udp(packet, interface) || is_group(net, packet.to);
                if !taken {
                    super::icmp_errors::no_port(net, self, packet);
                }
            }
            ICMP => self.icmp(net, packet),
            ICMPV6 => self.icmp_v6(net, port, frame.from, packet),
            _ => {}
        }
    }

    fn icmp(&self, net: &Arc<Inet>, packet: &Packet<'_>) {
        if let Some(reply) = icmp::reply_v4(packet.payload) {
            if !is_group(net, packet.to) {
                self.answer(net, packet, ICMP, &reply);
            }
        } else {
            super::icmp_errors::received(net, self, packet);
        }
    }

    fn icmp_v6(&self, net: &Arc<Inet>, port: &Port, from: Hardware, packet: &Packet<'_>) {
        let (IpAddr::V6(asker), IpAddr::V6(to)) = (packet.from, packet.to) else { return };
        let interface = port.station.interface;
        if let Some(about) = Discovery::parse(packet.payload).filter(|_| packet.hops == 255) {
            let ours = {
                let interfaces = net.interfaces.lock();
                let own = interfaces.by_index(interface).map(|i| i.addresses.as_slice()).unwrap_or_default();
                own.iter().any(|a| a.ip == IpAddr::V6(about.target))
            };
            let mut out = Vec::new();
            if about.is_question && ours {
                if let Some(hardware) = about.hardware {
                    let mut neighbors = self.neighbors.lock();
                    neighbors.learn(interface, asker.into(), hardware, true, mono_now(), &mut out);
                }
                out.extend(about.answer(port.station, asker, from));
            } else if !about.is_question && !ours {
                let hardware = about.hardware.unwrap_or(from);
                let mut neighbors = self.neighbors.lock();
                neighbors.learn(interface, about.target.into(), hardware, false, mono_now(), &mut out);
            }
            self.transmit(out);
        } else if let Some(said) = Advertisement::parse(packet.payload)
            .filter(|_| packet.hops == 255 && asker.is_unicast_link_local() && port.accepts_routers)
        {
            said.apply(&mut net.interfaces.lock(), interface, asker);
        } else if let Some(reply) = icmp::reply_v6(packet.payload, to, asker).filter(|_| !to.is_multicast()) {
            self.answer(net, packet, ICMPV6, &reply);
        } else {
            super::icmp_errors::received(net, self, packet);
        }
    }

    /// Sends an answer to a packet back to where it came from.
    pub(super) fn answer(&self, net: &Arc<Inet>, packet: &Packet<'_>, protocol: u8, payload: &[u8]) {
        let Ok(route) = net.interfaces.lock().route(packet.from, Some(packet.to)) else { return };
        net.stats.icmp_messages.add(1);
        let header = Header {
            from: packet.to,
            to: packet.from,
            protocol,
            hops: 64,
            class: packet.class,
            id: self.packet_id(),
            dont_fragment: false,
        };
        for frame in header.frames(payload, route.mtu as usize).unwrap_or_default() {
            self.send(&route, frame);
        }
    }

    /// Whether one more error may be sent now.
    pub(super) fn may_send_error(&self) -> bool {
        let second = mono_now() / 1_000_000_000;
        let mut errors = self.errors.lock();
        if errors.0 != second {
            *errors = (second, ERRORS_PER_SECOND);
        }
        let left = errors.1;
        errors.1 = left.saturating_sub(1);
        left > 0
    }

    fn bring(&self, flow: Arc<Flow>, packet: &Packet<'_>) {
        if flow.arrived(packet.whole) {
            let mut stirred = self.stirred.lock();
            if !stirred.iter().rev().any(|other| Arc::ptr_eq(other, &flow)) {
                stirred.push(flow);
            }
        }
    }

    /// Brings a segment to its flow (`tcp_v4_rcv`).
    fn segment(&self, net: &Arc<Inet>, port: &Port, packet: &Packet<'_>) {
        let Some(segment) = Segment::parse(packet.payload) else { return port.dropped.add(1) };
        if is_group(net, packet.to) {
            return;
        }
        net.stats.tcp_received.add(1);
        let tuple = tuple_of(packet, &segment);
        let now = mono_now();
        let (flow, orphan) = {
            let mut flows = self.flows.lock();
            match flows.get(&tuple) {
                Some(flow) => (Some(Arc::clone(flow)), Orphan::Stray),
                None => (None, flows.orphan(&tuple, &segment, now)),
            }
        };
        if let Some(flow) = flow {
            return self.bring(flow, packet);
        }
        let answer = match orphan {
            Orphan::Rests(answer) => answer,
            Orphan::Stray => refusal(net, packet),
            Orphan::Opens => match self.open(net, tuple, packet, port.station.interface) {
                Opened::Yes | Opened::Later => None,
                Opened::Nobody => refusal(net, packet),
            },
        };
        let Some(frame) = answer else { return };
        let route = net.interfaces.lock().route(packet.from, Some(packet.to));
        if let Ok(route) = route {
            self.send(&route, frame);
        }
    }

    /// A SYN: whose listener is it for?
    fn open(&self, net: &Arc<Inet>, tuple: Tuple, packet: &Packet<'_>, interface: u32) -> Opened {
        let listener = {
            let table = net.tcp.lock();
            let found = table.find(tuple.local, tuple.remote, |binding| listens(binding, interface));
            found.and_then(|binding| binding.owner.upgrade())
        };
        let Some(listener) = listener else { return Opened::Nobody };
        if !listener.has_room_for_syn() {
            // The other end asks again.
            net.stats.listen_overflows.add(1);
            return Opened::Later;
        }
        let (remote, local) = (tuple.remote.ip(), Some(tuple.local.ip()));
        let Ok(route) = net.interfaces.lock().route_by(listener.options.device(), remote, local) else {
            return Opened::Later;
        };
        let Some(granted) = self.memory_for_flow(net) else {
            net.stats.listen_overflows.add(1);
            return Opened::Later;
        };
        if let Some(flow) = Flow::half_open(net, self, &listener, (tuple, route), granted) {
            self.note_half_open(&flow);
            self.bring(flow, packet);
        }
        Opened::Yes
    }

    /// Memory for a connection that another end begins. Where there is none, those that have begun longest ago lose their
    /// place, unless they stand.
    fn memory_for_flow(&self, net: &Inet) -> Option<Granted> {
        loop {
            if let Some(granted) = net.memory.grant(false) {
                return Some(granted);
            }
            let oldest = self.half_open.lock().pop_front()?;
            if let Some(flow) = oldest.upgrade() {
                flow.lose_place();
            }
        }
    }

    /// Makes room for one more connection that others have begun: who has had the longest time to go on loses its place, so
    /// that a flood of beginnings does not keep out who means it.
    fn note_half_open(&self, flow: &Arc<Flow>) {
        let mut gone = Vec::new();
        {
            let mut all = self.half_open.lock();
            while all.len() >= MAX_HALF_OPEN {
                gone.extend(all.pop_front());
            }
            all.push_back(flow.weak());
        }
        for flow in gone.iter().filter_map(Weak::upgrade) {
            flow.lose_place();
        }
    }

    /// Sends a datagram (`udp_send_skb`). `EMSGSIZE` where it is too long and must not be cut.
    pub(super) fn send_udp(
        &self,
        route: &Route,
        from: SocketAddr,
        to: SocketAddr,
        data: &[u8],
        how: HowSent,
    ) -> bool {
        let message = udp_message(from, to, data);
        self.send_message(route, (from.ip(), to.ip()), UDP, &message, how)
    }

    /// Sends a message of any protocol. False where it is too long and must not be cut.
    pub(super) fn send_message(
        &self,
        route: &Route,
        (from, to): (IpAddr, IpAddr),
        protocol: u8,
        message: &[u8],
        how: HowSent,
    ) -> bool {
        let header = Header {
            from,
            to,
            protocol,
            hops: how.hops,
            class: how.class,
            id: self.packet_id(),
            dont_fragment: how.dont_fragment,
        };
        let Some(frames) = header.frames(message, route.mtu as usize) else { return false };
        for frame in frames {
            self.send(route, frame);
        }
        true
    }
}

/// A datagram with its header.
fn udp_message(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(data.len() + 8).unwrap_or(u16::MAX);
    let mut message = Vec::with_capacity(data.len() + 8);
    message.extend_from_slice(&from.port().to_be_bytes());
    message.extend_from_slice(&to.port().to_be_bytes());
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(data);
    let sum = icmp::checksum(&[&pseudo_header(from.ip(), to.ip(), UDP, message.len()), &message]);
    // Zero would say that there is no sum.
    let sum = if sum == 0 { 0xffff } else { sum };
    if let Some(field) = message.get_mut(6..8) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// A frame of a link, behind its `struct virtio_net_hdr`, as packet sockets see it.
fn sight(interface: u32, kind: u8, bytes: &[u8]) -> Sight<'_> {
    // `VIRTIO_NET_HDR_F_NEEDS_CSUM`; `ARPHRD_ETHER`.
    let unsummed = bytes.first().is_some_and(|flags| flags & 1 != 0);
    let frame = bytes.get(OFFLOAD_HEADER..).unwrap_or_default();
    Sight { interface, hardware: 1, kind, frame, unsummed }
}

fn is_group(net: &Inet, ip: IpAddr) -> bool {
    ip.is_multicast() || net.interfaces.lock().is_broadcast(ip)
}

fn refusal(net: &Inet, packet: &Packet<'_>) -> Option<Frame> {
    net.stats.tcp_resets.add(1);
    reset_for(packet)
}

/// How well a listener takes what comes by an interface, 0 for not at all.
pub(super) fn listens<T>(binding: &Binding<T>, interface: u32) -> u32 {
    let score = binding.local.score_of_device(interface).filter(|_| binding.listening);
    score.map_or(0, |score| score + 1)
}

/// What came of a SYN.
enum Opened {
    Yes,
    /// Nothing is said, and the other end asks again.
    Later,
    Nobody,
}

/// Fields of the IP header that a socket chooses.
#[derive(Debug, Clone, Copy)]
pub(super) struct HowSent {
    pub(super) hops: u8,
    pub(super) class: u8,
    pub(super) dont_fragment: bool,
}

/// What an interface has carried, in packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Carried {
    pub(crate) received: (u64, u64),
    pub(crate) sent: (u64, u64),
    pub(crate) dropped: u64,
}

impl Inet {
    /// The counters of an interface.
    pub(crate) fn carried(&self, interface: u32) -> Carried {
        if let Some(port) = self.outside.get().and_then(|outside| outside.ports.get(&interface)) {
            return Carried {
                received: (port.received.packets.get(), port.received.bytes.get()),
                sent: (port.sent.packets.get(), port.sent.bytes.get()),
                dropped: port.dropped.get(),
            };
        }
        let all = (self.stats.packets.get(), self.stats.bytes.get());
        Carried { received: all, sent: all, dropped: 0 }
    }

    /// The counters of all interfaces together.
    pub(crate) fn carried_in_all(&self) -> Carried {
        let links = self.outside.get().into_iter().flat_map(|outside| outside.ports.keys());
        // What is no link is the loopback.
        links.chain([&0]).map(|index| self.carried(*index)).fold(Carried::default(), |sum, one| Carried {
            received: (sum.received.0 + one.received.0, sum.received.1 + one.received.1),
            sent: (sum.sent.0 + one.sent.0, sum.sent.1 + one.sent.1),
            dropped: sum.dropped + one.dropped,
        })
    }

    /// Waits until every connection's last bytes have been acknowledged outside, `limit` at the longest. A kernel goes on
    /// sending what a dead process has written; so does the sandbox before it ends.
    pub fn settle(&self, limit: core::time::Duration) {
        const STEP: core::time::Duration = core::time::Duration::from_millis(2);
        let Some(outside) = self.outside.get() else { return };
        let until = std::time::Instant::now() + limit;
        let waits = || {
            let flows: Vec<Arc<Flow>> = outside.flows.lock().values().map(Arc::clone).collect();
            flows.iter().any(|flow| flow.has_unsent())
        };
        while waits() && std::time::Instant::now() < until {
            std::thread::sleep(STEP);
        }
    }

    /// Neighbours whose hardware addresses are known, and whether they were heard of lately.
    pub(crate) fn neighbors(&self) -> Vec<(u32, IpAddr, Hardware, bool)> {
        self.outside.get().map(|o| o.neighbors.lock().known(mono_now())).unwrap_or_default()
    }

    /// Shows a datagram of the loopback to packet sockets.
    pub(super) fn show_udp(&self, from: SocketAddr, to: SocketAddr, data: &[u8], how: HowSent) {
        if self.taps.any() {
            self.show_message((from.ip(), to.ip()), UDP, &udp_message(from, to, data), how);
        }
    }

    /// Shows a message of the loopback to packet sockets.
    pub(super) fn show_message(
        &self,
        (from, to): (IpAddr, IpAddr),
        protocol: u8,
        payload: &[u8],
        how: HowSent,
    ) {
        let HowSent { hops, class, dont_fragment } = how;
        let header = Header { from, to, protocol, hops, class, id: 0, dont_fragment };
        for frame in header.frames(payload, usize::from(u16::MAX)).unwrap_or_default() {
            self.show_loopback(frame.packet());
        }
    }

    /// Raw sockets see every packet for this host.
    fn deliver_raw_outside(&self, packet: &Packet<'_>, interface: u32) {
        if self.raws.lock().is_empty() {
            return;
        }
        self.deliver_raw(&raw::Message::of(packet, interface));
    }
}
