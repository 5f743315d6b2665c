//! Hardware addresses of neighbours: ARP (RFC 826) and neighbour discovery (RFC 4861), and packets that wait for them
//! (`arp(7)`, `net/core/neighbour.c`).

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::{EVERYBODY, Frame, Hardware, TYPE_ARP, TYPE_V4, TYPE_V6};
use crate::icmp;
use crate::packet::{Header, ICMPV6};

/// How long an address is trusted without another look, and how long it may be used at all, in nanoseconds.
const FRESH_NS: u64 = 30_000_000_000;
const KEPT_NS: u64 = 600_000_000_000;
/// Between two questions (`retrans_time_ms`), and how many there are (`mcast_solicit`).
const AGAIN_NS: u64 = 1_000_000_000;
const TRIES: u32 = 3;
/// Packets that wait for one neighbour, and neighbours that are remembered.
const MAX_WAITING: usize = 64;
const MAX_NEIGHBORS: usize = 1024;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A link's own side: what questions are asked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    pub interface: u32,
    pub hardware: Hardware,
}

/// A frame with where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressed {
    pub interface: u32,
    pub to: Hardware,
    pub kind: u16,
    pub frame: Frame,
}

#[derive(Debug)]
struct Entry {
    hardware: Option<Hardware>,
    /// When it was heard of last.
    heard: u64,
    /// The next question, and how many have gone unanswered.
    next: Option<u64>,
    tries: u32,
    source: IpAddr,
    waiting: VecDeque<Frame>,
}

/// The neighbours of all links.
#[derive(Debug, Default)]
pub struct Neighbors {
    table: HashMap<(u32, IpAddr), Entry>,
}

/// What the link type of an IP packet is.
pub fn kind_of(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { TYPE_V4 } else { TYPE_V6 }
}

/// The station that takes packets for a group (RFC 1112, RFC 2464).
pub fn group_hardware(ip: IpAddr) -> Option<Hardware> {
    match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => Some(EVERYBODY),
        IpAddr::V4(ip) if ip.is_multicast() => {
            let [_, b, c, d] = ip.octets();
            Some([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(ip) if ip.is_multicast() => {
            let [.., a, b, c, d] = ip.octets();
            Some([0x33, 0x33, a, b, c, d])
        }
        _ => None,
    }
}

fn arp(operation: u8, own: (Hardware, Ipv4Addr), other: (Hardware, Ipv4Addr)) -> Frame {
    let operation = [0, operation];
    Frame::of(&[&[0, 1, 8, 0, 6, 4], &operation, &own.0, &own.1.octets(), &other.0, &other.1.octets()])
}

/// A neighbour message of ICMPv6 about `target`, with our hardware address as its option.
fn discovery(
    kind: u8,
    flags: u8,
    (from, to, target): (Ipv6Addr, Ipv6Addr, Ipv6Addr),
    hardware: Hardware,
) -> Option<Frame> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[if kind == SOLICITATION { 1 } else { 2 }, 1]);
    message.extend_from_slice(&hardware);
    icmp::seal_v6(&mut message, from, to);
    let header = Header {
        from: from.into(),
        to: to.into(),
        protocol: ICMPV6,
        hops: 255,
        class: 0,
        id: 0,
        dont_fragment: true,
    };
    header.frames(&message, 1280)?.pop()
}

fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., b, c, d] = ip.octets();
    let low = u16::from_be_bytes([c, d]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(b), low)
}

impl Station {
    /// The question who has `ip`, from `source`; to one station if its address is known.
    fn question(&self, ip: IpAddr, source: IpAddr, known: Option<Hardware>) -> Option<Addressed> {
        let interface = self.interface;
        match (ip, source) {
            (IpAddr::V4(ip), IpAddr::V4(source)) => Some(Addressed {
                interface,
                to: known.unwrap_or(EVERYBODY),
                kind: TYPE_ARP,
                frame: arp(1, (self.hardware, source), ([0; 6], ip)),
            }),
            (IpAddr::V6(ip), IpAddr::V6(source)) => {
                let group = solicited_node(ip);
                let to = known.or_else(|| group_hardware(group.into()))?;
                let frame = discovery(SOLICITATION, 0, (source, group, ip), self.hardware)?;
                Some(Addressed { interface, to, kind: TYPE_V6, frame })
            }
            _ => None,
        }
    }
}

impl Neighbors {
    /// Sends `frame` from `source` to the neighbour `ip`, now or when its address is known. What is to go out now is put
    /// into `out`. False where the neighbour does not answer, or too much waits for it.
    pub fn send(
        &mut self,
        station: Station,
        (source, ip): (IpAddr, IpAddr),
        frame: Frame,
        now: u64,
        out: &mut Vec<Addressed>,
    ) -> bool {
        let interface = station.interface;
        if let Some(to) = group_hardware(ip) {
            out.push(Addressed { interface, to, kind: kind_of(ip), frame });
            return true;
        }
        if self.table.len() >= MAX_NEIGHBORS && !self.table.contains_key(&(interface, ip)) {
            self.make_room(now);
        }
        let entry = self.table.entry((interface, ip)).or_insert_with(|| Entry {
            hardware: None,
            heard: 0,
            next: None,
            tries: 0,
            source,
            waiting: VecDeque::new(),
        });
        if entry.hardware.is_some() && now.saturating_sub(entry.heard) > KEPT_NS {
            entry.hardware = None;
        }
        let known = entry.hardware;
        let stale = now.saturating_sub(entry.heard) > FRESH_NS || known.is_none();
        if stale && entry.next.is_none() {
            entry.source = source;
            entry.tries = 1;
            entry.next = Some(now + AGAIN_NS);
            out.extend(station.question(ip, source, known));
        }
        match known {
            Some(to) => {
                out.push(Addressed { interface, to, kind: kind_of(ip), frame });
                true
            }
            None if entry.waiting.len() < MAX_WAITING => {
                entry.waiting.push_back(frame);
                true
            }
            None => false,
        }
    }

    /// Forgets who has not been heard of longest.
    fn make_room(&mut self, now: u64) {
        self.table.retain(|_, e| now.saturating_sub(e.heard) < KEPT_NS || !e.waiting.is_empty());
        if self.table.len() >= MAX_NEIGHBORS
            && let Some(key) = self.table.iter().min_by_key(|(_, e)| e.heard).map(|(key, _)| *key)
        {
            self.table.remove(&key);
        }
    }

    /// Notes a neighbour's address; what has waited for it goes out. One that nobody has asked about is noted only if it
    /// asked for us (`wanted`).
    pub fn learn(
        &mut self,
        interface: u32,
        ip: IpAddr,
        hardware: Hardware,
        wanted: bool,
        now: u64,
        out: &mut Vec<Addressed>,
    ) {
        if hardware[0] & 1 != 0 || ip.is_unspecified() || ip.is_multicast() {
            return;
        }
        if !self.table.contains_key(&(interface, ip)) {
            if !wanted {
                return;
            }
            if self.table.len() >= MAX_NEIGHBORS {
                self.make_room(now);
            }
        }
        let entry = self.table.entry((interface, ip)).or_insert_with(|| Entry {
            hardware: None,
            heard: now,
            next: None,
            tries: 0,
            source: ip,
            waiting: VecDeque::new(),
        });
        entry.hardware = Some(hardware);
        entry.heard = now;
        entry.next = None;
        entry.tries = 0;
        for frame in entry.waiting.drain(..) {
            out.push(Addressed { interface, to: hardware, kind: kind_of(ip), frame });
        }
    }

    /// Asks again where no answer has come. Gives the packets whose neighbours are not there.
    pub fn tick(
        &mut self,
        now: u64,
        station: impl Fn(u32) -> Option<Station>,
        out: &mut Vec<Addressed>,
    ) -> Vec<Frame> {
        let mut lost = Vec::new();
        self.table.retain(|(interface, ip), entry| {
            if entry.next.is_none_or(|next| next > now) {
                return true;
            }
            let Some(station) = station(*interface) else { return false };
            if entry.tries >= TRIES {
                lost.extend(entry.waiting.drain(..));
                return false;
            }
            entry.tries += 1;
            entry.next = Some(now + AGAIN_NS);
            // The last question goes to everybody: the neighbour may have another card.
            let known = entry.hardware.filter(|_| entry.tries < TRIES);
            out.extend(station.question(*ip, entry.source, known));
            true
        });
        lost
    }

    /// When [`Neighbors::tick`] has something to do.
    pub fn deadline(&self) -> Option<u64> {
        self.table.values().filter_map(|entry| entry.next).min()
    }

    /// The neighbours whose addresses are known: interface, address, hardware address, and whether it is fresh.
    pub fn known(&self, now: u64) -> Vec<(u32, IpAddr, Hardware, bool)> {
        let known = self.table.iter().filter_map(|((interface, ip), entry)| {
            let fresh = now.saturating_sub(entry.heard) <= FRESH_NS;
            entry.hardware.map(|hardware| (*interface, *ip, hardware, fresh))
        });
        known.collect()
    }
}

/// A question or an answer of ARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    pub is_question: bool,
    pub sender: (Hardware, Ipv4Addr),
    pub target: Ipv4Addr,
}

impl Arp {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 28] = bytes.first_chunk()?;
        if bytes[..6] != [0, 1, 8, 0, 6, 4] || bytes[6] != 0 || ![1, 2].contains(&bytes[7]) {
            return None;
        }
        let four = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|b| Ipv4Addr::from(*b));
        Some(Self {
            is_question: bytes[7] == 1,
            sender: (*bytes.get(8..)?.first_chunk()?, four(14)?),
            target: four(24)?,
        })
    }

    /// The answer to a question about an address of ours.
    pub fn answer(&self, station: Station) -> Addressed {
        Addressed {
            interface: station.interface,
            to: self.sender.0,
            kind: TYPE_ARP,
            frame: arp(2, (station.hardware, self.target), self.sender),
        }
    }
}

/// A solicitation or an advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discovery {
    pub is_question: bool,
    pub target: Ipv6Addr,
    /// The address that it carries: the asker's, or the target's.
    pub hardware: Option<Hardware>,
}

impl Discovery {
    /// Reads an ICMPv6 message that came with 255 hops left.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let kind = *message.first()?;
        if ![SOLICITATION, ADVERTISEMENT].contains(&kind) || message.get(1) != Some(&0) {
            return None;
        }
        let target = Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?);
        let wanted = if kind == SOLICITATION { 1 } else { 2 };
        let mut options = message.get(24..)?;
        let mut hardware = None;
        while let [option, words, ..] = options {
            let len = usize::from(*words) * 8;
            if len == 0 {
                return None;
            }
            if *option == wanted {
                hardware = options.get(2..).and_then(<[u8]>::first_chunk::<6>).copied();
            }
            options = options.get(len..).unwrap_or_default();
        }
        Some(Self { is_question: kind == SOLICITATION, target, hardware })
    }

    /// The answer to `asker`'s question about an address of ours; an unspecified asker checks for a duplicate.
    pub fn answer(&self, station: Station, asker: Ipv6Addr, asker_hardware: Hardware) -> Option<Addressed> {
        const SOLICITED: u8 = 0x40;
        const OVERRIDE: u8 = 0x20;
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let (to, flags) =
            if asker.is_unspecified() { (all_nodes, OVERRIDE) } else { (asker, SOLICITED | OVERRIDE) };
        let frame = discovery(ADVERTISEMENT, flags, (self.target, to, self.target), station.hardware)?;
        let hardware = group_hardware(to.into()).or(self.hardware).unwrap_or(asker_hardware);
        Some(Addressed { interface: station.interface, to: hardware, kind: TYPE_V6, frame })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;

    const ME: Station = Station { interface: 2, hardware: [2, 0, 0, 0, 0, 1] };

    #[test]
    fn a_packet_waits_for_the_answer() {
        let mut all = Neighbors::default();
        let (own, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut out = Vec::new();
        assert!(all.send(ME, (own, other), Frame::of(&[b"x"]), 0, &mut out));
        assert_eq!((out.len(), out[0].to, out[0].kind), (1, EVERYBODY, TYPE_ARP));
        let question = Arp::parse(out[0].frame.packet()).unwrap();
        assert!(question.is_question && IpAddr::V4(question.target) == other);
        let them = Station { interface: 9, hardware: [2, 0, 0, 0, 0, 2] };
        let answer = Arp::parse(question.answer(them).frame.packet()).unwrap();
        out.clear();
        all.learn(2, answer.sender.1.into(), answer.sender.0, false, 1, &mut out);
        assert_eq!((out.len(), out[0].to, out[0].frame.packet()), (1, them.hardware, &b"x"[..]));
        assert_eq!(all.deadline(), None);
    }

    #[test]
    fn nobody_there_is_told_after_three_questions() {
        let mut all = Neighbors::default();
        let (own, other): (IpAddr, IpAddr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let mut out = Vec::new();
        all.send(ME, (own, other), Frame::of(&[b"x"]), 0, &mut out);
        let packet = Packet::parse(out[0].frame.packet()).unwrap();
        assert!(packet.is_intact());
        let question = Discovery::parse(packet.payload).unwrap();
        assert_eq!((question.is_question, IpAddr::V6(question.target)), (true, other));
        assert_eq!(question.hardware, Some(ME.hardware));
        let mut lost = Vec::new();
        while let Some(at) = all.deadline() {
            lost = all.tick(at, |_| Some(ME), &mut out);
        }
        assert_eq!((out.len(), lost.len()), (3, 1));
    }

    #[test]
    fn strangers_do_not_fill_the_table() {
        let mut all = Neighbors::default();
        let mut out = Vec::new();
        for n in 0..5000_u32 {
            let ip = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n));
            all.learn(2, ip, [2, 0, 0, 0, 0, 9], n % 2 == 0, u64::from(n), &mut out);
        }
        assert!(all.table.len() <= MAX_NEIGHBORS);
    }
}
