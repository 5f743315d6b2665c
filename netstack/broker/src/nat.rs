//! The loop: frames of the sandbox on one side, host sockets on the other.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use hostsys::polling::{self, Interest};
use netstack::asker::{Asker, TYPE_ASKER};
use netstack::flow::Tuple;
use netstack::frame::{Arrived, EVERYBODY, Frame, TYPE_ARP, TYPE_V4};
use netstack::icmp;
use netstack::neighbor::{Arp, Station};
use netstack::packet::{Header, ICMP, Packet, Reassembler, TCP, UDP};
use netstack::table::{FlowTable, Orphan, Segment, reset_for, tuple_of};

use crate::denials::Denials;
use crate::policy::{Names, Policy, Protocol, is_out_of_bounds};
use crate::tcp::{Connection, Verdict};
use crate::udp::Pair;
use crate::{GATEWAY, GATEWAY_HARDWARE, GUEST, GUEST_HARDWARE};

/// Connections and pairs of datagrams at the same time; more are not begun.
const MAX_CONNECTIONS: usize = 4096;
const MAX_PAIRS: usize = 1024;
/// Frames that are read before host sockets have their turn.
const TURN: usize = 128;
/// Bytes of the longest frame.
const LONGEST: usize = 66_000;

#[derive(Debug)]
pub(crate) struct Nat {
    link: OwnedFd,
    policy: Policy,
    resolvers: Vec<IpAddr>,
    /// All that may be reached, by TCP alone, where this serves a resolver.
    only: Option<SocketAddr>,
    names: Names,
    connections: HashMap<Tuple, Connection>,
    pairs: HashMap<(SocketAddr, SocketAddr), Pair>,
    /// For sequence numbers and what rests; the flows themselves are in `connections`.
    table: FlowTable<()>,
    partial: Reassembler,
    next_id: u32,
    denials: Denials,
    gone: bool,
}

fn now() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    hostsys::clock::gettime(libc::CLOCK_MONOTONIC, &mut ts);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(ts.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(ts.tv_nsec))
}

impl Nat {
    pub fn new(link: OwnedFd, policy: Policy, resolvers: Vec<IpAddr>, only: Option<SocketAddr>) -> Self {
        Self {
            link,
            policy,
            resolvers,
            only,
            names: Names::default(),
            connections: HashMap::new(),
            pairs: HashMap::new(),
            table: FlowTable::default(),
            partial: Reassembler::default(),
            next_id: 1,
            denials: Denials::default(),
            gone: false,
        }
    }

    /// Serves until the sandbox is gone.
    pub fn serve(mut self) -> io::Result<()> {
        let mut buffer = vec![0; LONGEST];
        while !self.gone {
            let tuples: Vec<Tuple> = self.connections.keys().copied().collect();
            let pairs: Vec<(SocketAddr, SocketAddr)> = self.pairs.keys().copied().collect();
            let start = now();
            let mut deadline: Option<u64> = None;
            let mut interests = vec![Interest::new(self.link.as_fd(), libc::POLLIN)];
            for tuple in &tuples {
                let Some(connection) = self.connections.get_mut(tuple) else { continue };
                deadline = [deadline, connection.deadline(start)].into_iter().flatten().min();
                // A socket that nothing is wanted of would say again and again that its other end is gone.
                let events = connection.interest();
                interests.push(if events == 0 {
                    Interest::none()
                } else {
                    Interest::new(connection.fd(), events)
                });
            }
            for pair in &pairs {
                let Some(pair) = self.pairs.get(pair) else { continue };
                deadline = [deadline, Some(pair.until())].into_iter().flatten().min();
                interests.push(Interest::new(pair.fd(), libc::POLLIN));
            }
            let timeout = deadline
                .map(|at| i32::try_from(at.saturating_sub(start).div_ceil(1_000_000)).unwrap_or(i32::MAX));
            polling::wait(&mut interests, timeout)?;
            let [link, hosts @ ..] = interests.as_slice() else { continue };
            if link.any() {
                self.read_link(&mut buffer);
            }
            let now = now();
            let (of_tcp, of_udp) = hosts.split_at(tuples.len().min(hosts.len()));
            for (tuple, interest) in tuples.iter().zip(of_tcp) {
                self.turn(tuple, interest.found(), now);
            }
            for (key, interest) in pairs.iter().zip(of_udp) {
                if interest.any() {
                    self.read_pair(key, &mut buffer, now);
                }
            }
            self.pairs.retain(|_, pair| pair.until() > now);
        }
        Ok(())
    }

    fn send(&self, mut frame: Frame, kind: u16) {
        // One that finds no room is lost.
        let _ = rustix::io::write(&self.link, frame.finish(GUEST_HARDWARE, GATEWAY_HARDWARE, kind));
    }

    fn send_all(&self, frames: Vec<Frame>) {
        for frame in frames {
            self.send(frame, TYPE_V4);
        }
    }

    fn read_link(&mut self, buffer: &mut [u8]) {
        for _ in 0..TURN {
            match rustix::io::read(&self.link, &mut *buffer) {
                Ok(0) => {
                    self.gone = true;
                    return;
                }
                Ok(got) => {
                    let bytes = buffer.get(..got).unwrap_or_default();
                    if let Some(frame) = Arrived::parse(bytes) {
                        self.frame(&frame);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn frame(&mut self, frame: &Arrived<'_>) {
        if frame.to != GATEWAY_HARDWARE && frame.to != EVERYBODY {
            return;
        }
        match frame.kind {
            TYPE_ARP => {
                let Some(arp) = Arp::parse(frame.packet).filter(|arp| arp.is_question) else { return };
                // Everything but the sandbox itself is behind this link.
                if arp.target != GUEST {
                    let me = Station { interface: 0, hardware: GATEWAY_HARDWARE };
                    self.send(arp.answer(me).frame, TYPE_ARP);
                }
            }
            TYPE_ASKER => {
                if let Some(asker) = Asker::parse(frame.packet) {
                    self.denials.announce(asker);
                }
            }
            TYPE_V4 => {
                let Some(packet) = Packet::parse(frame.packet) else { return };
                if packet.from != IpAddr::V4(GUEST) && self.only.is_none() {
                    return;
                }
                if packet.fragment.is_none() {
                    return self.packet(&packet);
                }
                let joined = self.partial.join(&packet, now());
                if let Some(packet) = joined.as_ref().and_then(|frame| Packet::parse(frame.packet())) {
                    self.packet(&packet);
                }
            }
            _ => {}
        }
    }

    fn packet(&mut self, packet: &Packet<'_>) {
        match packet.protocol {
            TCP => self.segment(packet),
            UDP => self.datagram(packet),
            ICMP if packet.to == IpAddr::V4(GATEWAY) => {
                if let Some(reply) = icmp::reply_v4(packet.payload) {
                    self.answer(packet, &reply);
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, packet: &Packet<'_>, message: &[u8]) {
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header {
            from: packet.to,
            to: packet.from,
            protocol: ICMP,
            hops: 64,
            class: 0,
            id: self.next_id,
            dont_fragment: false,
        };
        self.send_all(header.frames(message, usize::from(crate::MTU)).unwrap_or_default());
    }

    /// `ICMP_DEST_UNREACH` of this code for a packet.
    fn unreachable(&mut self, packet: &Packet<'_>, code: u8) {
        let mut message = vec![3, code, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(packet.whole.get(..packet.whole.len().min(548)).unwrap_or_default());
        icmp::seal_v4(&mut message);
        self.answer(packet, &message);
    }

    /// Whether the policy lets a connection from the sandbox's `port` through; says so where it does not. `asked` is the
    /// name that a query is for.
    fn allows(&mut self, protocol: Protocol, port: u16, to: SocketAddr, asked: Option<String>) -> bool {
        if let Some(only) = self.only {
            return protocol == Protocol::Tcp && to == only;
        }
        let resolver = to.port() == 53 && self.resolvers.contains(&to.ip());
        let allowed = !is_out_of_bounds(to.ip())
            && to.ip() != IpAddr::V4(GATEWAY)
            && (resolver || self.policy.allows(protocol, to, &self.names));
        if allowed {
            self.denials.forget(protocol, port);
        } else {
            let mut about = self.names.of(to.ip()).to_vec();
            about.extend(asked.map(|name| format!("a query for {name}")));
            if let Some(line) = self.denials.line(protocol, port, to, &about) {
                eprintln!("{line}");
            }
        }
        allowed
    }

    fn segment(&mut self, packet: &Packet<'_>) {
        let Some(segment) = Segment::parse(packet.payload) else { return };
        let tuple = tuple_of(packet, &segment);
        let now = now();
        if let Some(connection) = self.connections.get_mut(&tuple) {
            let mut out = Vec::new();
            connection.arrived(packet.whole, now, &mut out);
            self.send_all(out);
            return self.turn(&tuple, 0, now);
        }
        match self.table.orphan(&tuple, &segment, now) {
            Orphan::Rests(answer) => self.send_all(answer.into_iter().collect()),
            Orphan::Stray => self.send_all(reset_for(packet).into_iter().collect()),
            Orphan::Opens => {
                if !self.allows(Protocol::Tcp, tuple.remote.port(), tuple.local, None) {
                    return self.unreachable(packet, 13);
                }
                if self.connections.len() >= MAX_CONNECTIONS {
                    return;
                }
                let first = self.table.first_sequence(&tuple, now);
                match Connection::open(tuple, first, packet.whole, now) {
                    Ok(connection) => drop(self.connections.insert(tuple, connection)),
                    Err(_) => self.unreachable(packet, 1),
                }
            }
        }
    }

    fn turn(&mut self, tuple: &Tuple, ready: i16, now: u64) {
        let Some(connection) = self.connections.get_mut(tuple) else { return };
        let mut out = Vec::new();
        let syn = connection.syn().map(<[u8]>::to_vec);
        let verdict = connection.turn(ready, now, &mut out);
        let rests = connection.rests();
        self.send_all(out);
        match verdict {
            Verdict::Goes => {}
            Verdict::Over => {
                if let Some((ours, expected)) = rests {
                    self.table.rest(*tuple, ours, expected, now);
                }
                self.connections.remove(tuple);
            }
            Verdict::Refused(why) => {
                self.connections.remove(tuple);
                let Some(packet) = syn.as_deref().and_then(Packet::parse) else { return };
                match why {
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                        self.send_all(reset_for(&packet).into_iter().collect());
                    }
                    io::ErrorKind::NetworkUnreachable => self.unreachable(&packet, 0),
                    _ => self.unreachable(&packet, 1),
                }
            }
        }
    }

    fn datagram(&mut self, packet: &Packet<'_>) {
        let Some((head, data)) = packet.payload.split_first_chunk::<8>() else { return };
        let guest = SocketAddr::new(packet.from, u16::from_be_bytes([head[0], head[1]]));
        let to = SocketAddr::new(packet.to, u16::from_be_bytes([head[2], head[3]]));
        let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let Some(data) = len.checked_sub(8).and_then(|len| data.get(..len)) else { return };
        let now = now();
        let key = (guest, to);
        if !self.pairs.contains_key(&key) {
            let asked = if to.port() == 53 { crate::dns::question(data) } else { None };
            if !self.allows(Protocol::Udp, guest.port(), to, asked) {
                return self.unreachable(packet, 13);
            }
            if self.pairs.len() >= MAX_PAIRS {
                let oldest = self.pairs.iter().min_by_key(|(_, pair)| pair.until()).map(|(key, _)| *key);
                oldest.and_then(|key| self.pairs.remove(&key));
            }
            match Pair::open(guest, to, now) {
                Ok(pair) => drop(self.pairs.insert(key, pair)),
                Err(_) => return self.unreachable(packet, 1),
            }
        }
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.send(data, now);
        }
    }

    fn read_pair(&mut self, key: &(SocketAddr, SocketAddr), buffer: &mut [u8], now: u64) {
        let Some(pair) = self.pairs.get_mut(key) else { return };
        for _ in 0..TURN {
            let Some(data) = pair.receive(buffer, now) else { return };
            // Names are believed of the host's own resolvers alone.
            if pair.to.port() == 53
                && self.resolvers.contains(&pair.to.ip())
                && let Some((name, found)) = crate::dns::answer(data)
            {
                for ip in found {
                    self.names.learn(&name, ip);
                }
            }
            self.next_id = self.next_id.wrapping_add(1);
            for mut frame in pair.frames(data, self.next_id) {
                let bytes = frame.finish(GUEST_HARDWARE, GATEWAY_HARDWARE, TYPE_V4);
                let _ = rustix::io::write(&self.link, bytes);
            }
        }
    }
}
