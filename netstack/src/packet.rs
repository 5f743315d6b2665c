//! IP packets: read, made, cut into fragments and put together again (RFC 791, RFC 8200).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::Frame;
use crate::icmp::checksum;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// Bytes of the headers without options.
pub const HEADER_V4: usize = 20;
pub const HEADER_V6: usize = 40;
const FRAGMENT_HEADER: usize = 8;
/// Extension headers of IPv6: hop by hop, routing, fragment, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;
/// Extension headers that one packet may have.
const MAX_EXTENSIONS: usize = 8;

/// The place of a fragment in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    /// Bytes.
    pub offset: usize,
    pub more: bool,
}

/// A packet that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'p> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub hops: u8,
    pub class: u8,
    pub fragment: Option<Fragment>,
    /// All of it, from the IP header on.
    pub whole: &'p [u8],
    /// What follows the headers.
    pub payload: &'p [u8],
}

impl<'p> Packet<'p> {
    /// Reads a packet; `None` for what is none.
    pub fn parse(bytes: &'p [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'p [u8]) -> Option<Self> {
        let head: &[u8; HEADER_V4] = bytes.first_chunk()?;
        let header = usize::from(head[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if header < HEADER_V4 || total < header || checksum(&[bytes.get(..header)?]) != 0 {
            return None;
        }
        let whole = bytes.get(..total)?;
        let flags = u16::from_be_bytes([head[6], head[7]]);
        let (more, offset) = (flags & 0x2000 != 0, usize::from(flags & 0x1fff) * 8);
        let id = u32::from(u16::from_be_bytes([head[4], head[5]]));
        Some(Self {
            from: IpAddr::V4(Ipv4Addr::new(head[12], head[13], head[14], head[15])),
            to: IpAddr::V4(Ipv4Addr::new(head[16], head[17], head[18], head[19])),
            protocol: head[9],
            hops: head[8],
            class: head[1],
            fragment: (more || offset > 0).then_some(Fragment { id, offset, more }),
            whole,
            payload: whole.get(header..)?,
        })
    }

    fn parse_v6(bytes: &'p [u8]) -> Option<Self> {
        let head: &[u8; HEADER_V6] = bytes.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let whole = bytes.get(..HEADER_V6 + len)?;
        let mut payload = whole.get(HEADER_V6..)?;
        let mut protocol = head[6];
        let mut fragment = None;
        for _ in 0..MAX_EXTENSIONS {
            if EXTENSIONS.contains(&protocol) {
                let skip = (usize::from(*payload.get(1)?) + 1) * 8;
                protocol = *payload.first()?;
                payload = payload.get(skip..)?;
            } else if protocol == FRAGMENT && fragment.is_none() {
                let head: &[u8; FRAGMENT_HEADER] = payload.first_chunk()?;
                let word = u16::from_be_bytes([head[2], head[3]]);
                let id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                let (offset, more) = (usize::from(word & !7), word & 1 != 0);
                protocol = head[0];
                payload = payload.get(FRAGMENT_HEADER..)?;
                fragment = (more || offset > 0).then_some(Fragment { id, offset, more });
                if fragment.is_some() {
                    break;
                }
            } else {
                break;
            }
        }
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let ip = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk::<16>).map(|b| Ipv6Addr::from(*b));
        Some(Self {
            from: IpAddr::V6(ip(8)?),
            to: IpAddr::V6(ip(24)?),
            protocol,
            hops: head[7],
            class: u8::try_from(word >> 20 & 0xff).ok()?,
            fragment,
            whole,
            payload,
        })
    }

    /// Whether the transport's sum over the payload and the addresses is right.
    pub fn is_intact(&self) -> bool {
        match self.protocol {
            // A sum of zero says that there is none.
            UDP if self.from.is_ipv4() && self.payload.get(6..8) == Some(&[0, 0]) => true,
            TCP | UDP | ICMPV6 => {
                checksum(&[
                    &pseudo_header(self.from, self.to, self.protocol, self.payload.len()),
                    self.payload,
                ]) == 0
            }
            ICMP => checksum(&[self.payload]) == 0,
            _ => true,
        }
    }
}

/// What the sums of the transports cover besides their own bytes. Of even length.
pub fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    let len = u32::try_from(len).unwrap_or(0).to_be_bytes();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            out.extend_from_slice(&[0, protocol, len[2], len[3]]);
        }
        (from, to) => {
            for ip in [from, to] {
                let ip = match ip {
                    IpAddr::V6(ip) => ip,
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                };
                out.extend_from_slice(&ip.octets());
            }
            out.extend_from_slice(&len);
            out.extend_from_slice(&[0, 0, 0, protocol]);
        }
    }
    out
}

/// The header of a packet to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub hops: u8,
    pub class: u8,
    /// Names the packet where it is cut into fragments.
    pub id: u32,
    pub dont_fragment: bool,
}

impl Header {
    fn v4(&self, payload: usize, fragment: Option<(usize, bool)>) -> [u8; HEADER_V4] {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.from, self.to) else { return [0; HEADER_V4] };
        let total = u16::try_from(payload + HEADER_V4).unwrap_or(u16::MAX).to_be_bytes();
        let [_, _, id0, id1] = self.id.to_be_bytes();
        let (offset, more) = fragment.unwrap_or((0, false));
        let mut word = u16::try_from(offset / 8).unwrap_or(0);
        if more {
            word |= 0x2000;
        }
        if self.dont_fragment {
            word |= 0x4000;
        }
        let ([w0, w1], f, t) = (word.to_be_bytes(), from.octets(), to.octets());
        let mut header = [
            0x45,
            self.class,
            total[0],
            total[1],
            id0,
            id1,
            w0,
            w1,
            self.hops,
            self.protocol,
            0,
            0,
            f[0],
            f[1],
            f[2],
            f[3],
            t[0],
            t[1],
            t[2],
            t[3],
        ];
        let sum = checksum(&[&header]).to_be_bytes();
        header[10] = sum[0];
        header[11] = sum[1];
        header
    }

    fn v6(&self, payload: usize, protocol: u8) -> [u8; HEADER_V6] {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (self.from, self.to) else { return [0; HEADER_V6] };
        let mut header = [0; HEADER_V6];
        header[..4].copy_from_slice(&(0x6000_0000 | u32::from(self.class) << 20).to_be_bytes());
        header[4..6].copy_from_slice(&u16::try_from(payload).unwrap_or(u16::MAX).to_be_bytes());
        header[6] = protocol;
        header[7] = self.hops;
        header[8..24].copy_from_slice(&from.octets());
        header[24..40].copy_from_slice(&to.octets());
        header
    }

    /// The packet, or its fragments where it is longer than `mtu` bytes. `None` where it must not be cut.
    pub fn frames(&self, payload: &[u8], mtu: usize) -> Option<Vec<Frame>> {
        let six = self.to.is_ipv6();
        let header = if six { HEADER_V6 } else { HEADER_V4 };
        if payload.len() + header <= mtu {
            return Some(vec![if six {
                Frame::of(&[&self.v6(payload.len(), self.protocol), payload])
            } else {
                Frame::of(&[&self.v4(payload.len(), None), payload])
            }]);
        }
        if self.dont_fragment && !six {
            return None;
        }
        let room = mtu.checked_sub(header + if six { FRAGMENT_HEADER } else { 0 })? / 8 * 8;
        if room == 0 {
            return None;
        }
        let mut frames = Vec::new();
        let mut offset = 0;
        for part in payload.chunks(room) {
            let more = offset + part.len() < payload.len();
            frames.push(if six {
                let word = u16::try_from(offset).ok()? | u16::from(more);
                let mut head = [0; FRAGMENT_HEADER];
                head[0] = self.protocol;
                head[2..4].copy_from_slice(&word.to_be_bytes());
                head[4..8].copy_from_slice(&self.id.to_be_bytes());
                Frame::of(&[&self.v6(part.len() + FRAGMENT_HEADER, FRAGMENT), &head, part])
            } else {
                Frame::of(&[&self.v4(part.len(), Some((offset, more))), part])
            });
            offset += part.len();
        }
        Some(frames)
    }
}

/// Packets that are put together at the same time, and what one of them and all of them may hold, in bytes.
const MAX_PARTIAL: usize = 256;
const MAX_PACKET: usize = 65_535;
const MAX_HELD: usize = 4 << 20;
/// Fragments of one packet: what the smallest MTU cuts the longest packet into, and then some.
const MAX_FRAGMENTS: usize = 160;
/// How long the rest of a packet may take, in nanoseconds (`net.ipv4.ipfrag_time`).
const PATIENCE_NS: u64 = 30_000_000_000;

type PartialKey = (IpAddr, IpAddr, u8, u32);

#[derive(Debug, Default)]
struct Partial {
    /// Offset and bytes, in order and without overlap.
    parts: Vec<(usize, Vec<u8>)>,
    /// The length, once the last fragment has come.
    total: Option<usize>,
    until: u64,
    held: usize,
}

/// Puts fragments together. A fragment that overlaps another one ends the packet (RFC 5722, CVE-2018-5391).
#[derive(Debug, Default)]
pub struct Reassembler {
    partial: HashMap<PartialKey, Partial>,
    held: usize,
}

impl Reassembler {
    fn forget(&mut self, key: &PartialKey) {
        if let Some(gone) = self.partial.remove(key) {
            self.held = self.held.saturating_sub(gone.held);
        }
    }

    /// Takes a fragment; gives the packet, as if it had come in one piece, when that is whole.
    pub fn join(&mut self, packet: &Packet<'_>, now: u64) -> Option<Frame> {
        let payload = self.take(packet, now)?;
        let header = Header {
            from: packet.from,
            to: packet.to,
            protocol: packet.protocol,
            hops: packet.hops,
            class: packet.class,
            id: 0,
            dont_fragment: false,
        };
        header.frames(&payload, 65_575)?.pop()
    }

    /// Takes a fragment; gives the payload of the packet when that is whole.
    fn take(&mut self, packet: &Packet<'_>, now: u64) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        let key = (packet.from, packet.to, packet.protocol, fragment.id);
        let (start, end) = (fragment.offset, fragment.offset + packet.payload.len());
        let crooked = fragment.more && !packet.payload.len().is_multiple_of(8);
        if end > MAX_PACKET || crooked || packet.payload.is_empty() {
            return None;
        }
        if self.held + packet.payload.len() > MAX_HELD || self.partial.len() >= MAX_PARTIAL {
            let old: Vec<_> = self.partial.iter().filter(|(_, p)| p.until <= now).map(|(k, _)| *k).collect();
            for key in &old {
                self.forget(key);
            }
            // Full of packets that are young: the oldest goes.
            if old.is_empty()
                && let Some(key) = self.partial.iter().min_by_key(|(_, p)| p.until).map(|(k, _)| *k)
            {
                self.forget(&key);
            }
        }
        if self.partial.get(&key).is_some_and(|p| p.until <= now) {
            self.forget(&key);
        }
        let partial = self.partial.entry(key).or_default();
        if partial.until == 0 {
            partial.until = now + PATIENCE_NS;
        }
        let at = partial.parts.partition_point(|(offset, _)| *offset < start);
        let before = at.checked_sub(1).and_then(|at| partial.parts.get(at));
        let overlaps = before.is_some_and(|(offset, bytes)| offset + bytes.len() > start)
            || partial.parts.get(at).is_some_and(|(offset, _)| *offset < end)
            || partial.total.is_some_and(|total| if fragment.more { end > total } else { end != total })
            || (!fragment.more && partial.parts.last().is_some_and(|(o, b)| o + b.len() > end));
        if overlaps || partial.parts.len() >= MAX_FRAGMENTS {
            // The same one twice is no attack.
            if partial.parts.get(at).is_some_and(|(o, b)| *o == start && b.as_slice() == packet.payload) {
                return None;
            }
            self.forget(&key);
            return None;
        }
        partial.parts.insert(at, (start, packet.payload.to_vec()));
        partial.held += packet.payload.len();
        self.held += packet.payload.len();
        if !fragment.more {
            partial.total = Some(end);
        }
        // Parts do not overlap, so that their lengths say whether there are holes.
        if partial.total != Some(partial.held) {
            return None;
        }
        let parts = core::mem::take(&mut partial.parts);
        self.forget(&key);
        Some(parts.into_iter().flat_map(|(_, bytes)| bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(to: &str, from: &str) -> Header {
        Header {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: UDP,
            hops: 64,
            class: 8,
            id: 77,
            dont_fragment: false,
        }
    }

    #[test]
    fn packets_are_cut_and_put_together() {
        let payload: Vec<u8> = (0..5000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for header in [header("10.0.0.1", "10.0.0.2"), header("fd00::1", "fd00::2")] {
            let frames = header.frames(&payload, 1500).unwrap();
            assert_eq!(frames.len(), 4);
            for rotation in 0..frames.len() {
                let mut order = frames.clone();
                order.rotate_left(rotation);
                order.insert(1, order[0].clone());
                let mut all = Reassembler::default();
                let whole: Vec<_> = order
                    .iter()
                    .filter_map(|f| {
                        assert!(f.packet().len() <= 1500);
                        all.take(&Packet::parse(f.packet()).unwrap(), 0)
                    })
                    .collect();
                assert_eq!(whole, std::slice::from_ref(&payload));
                assert_eq!(all.held, 0);
            }
            let small = header.frames(b"hello", 1500).unwrap();
            let packet = Packet::parse(small[0].packet()).unwrap();
            assert_eq!((packet.payload, packet.class, packet.hops), (&b"hello"[..], 8, 64));
            assert_eq!((packet.from, packet.to), (header.from, header.to));
        }
    }

    #[test]
    fn a_fragment_that_overlaps_ends_the_packet() {
        let header = header("10.0.0.1", "10.0.0.2");
        let frames = header.frames(&[1; 64], 20 + 32).unwrap();
        let mut evil = frames[1].clone();
        // The second half, moved eight bytes down.
        let bytes = evil.packet_mut();
        bytes[7] -= 1;
        bytes[10..12].fill(0);
        let sum = checksum(&[&bytes[..20]]).to_be_bytes();
        bytes[10..12].copy_from_slice(&sum);
        let mut all = Reassembler::default();
        for frame in [&frames[0], &evil, &frames[1]] {
            assert_eq!(all.take(&Packet::parse(frame.packet()).unwrap(), 0), None);
        }
    }

    #[test]
    fn a_flood_of_beginnings_is_bounded() {
        let mut all = Reassembler::default();
        for id in 0..100_000 {
            let frames = Header { id: id % 60_000, ..header("10.0.0.1", "10.0.0.2") }
                .frames(&[0; 4000], 1500)
                .unwrap();
            all.take(&Packet::parse(frames[0].packet()).unwrap(), u64::from(id));
        }
        assert!(all.partial.len() <= MAX_PARTIAL && all.held <= MAX_HELD);
    }
}
