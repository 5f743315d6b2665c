//! The flow table: who gets a TCP segment, what rests in TIME_WAIT, and answers to segments that nobody wants.

use core::hash::{BuildHasher, Hash};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::flow::Tuple;
use crate::frame::Frame;
use crate::packet::{Header, Packet, TCP, pseudo_header};

/// `TCP_TIMEWAIT_LEN`, in nanoseconds.
const REST_NS: u64 = 60_000_000_000;
/// Connections at the same time, those that are half open, and those that rest.
pub const MAX_FLOWS: usize = 131_072;
pub const MAX_HALF_OPEN: usize = 1024;
const MAX_RESTING: usize = 65_536;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URG: u8 = 32;

/// The fixed part of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub from_port: u16,
    pub to_port: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    /// Without the scale that was agreed on.
    pub window: u16,
    /// The urgent pointer, which counts where the flags say so.
    pub urgent: u16,
    /// Bytes of payload.
    pub len: usize,
}

impl Segment {
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let head: &[u8; 20] = payload.first_chunk()?;
        let header = usize::from(head[12] >> 4) * 4;
        if header < head.len() {
            return None;
        }
        let four = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk).map(|b| u32::from_be_bytes(*b));
        Some(Self {
            from_port: u16::from_be_bytes([head[0], head[1]]),
            to_port: u16::from_be_bytes([head[2], head[3]]),
            sequence: four(4)?,
            acknowledged: four(8)?,
            flags: head[13],
            window: u16::from_be_bytes([head[14], head[15]]),
            urgent: u16::from_be_bytes([head[18], head[19]]),
            len: payload.len().checked_sub(header)?,
        })
    }

    /// The sequence number that comes after it.
    pub fn end(&self) -> u32 {
        let controls = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.sequence.wrapping_add(u32::try_from(self.len).unwrap_or(0)).wrapping_add(controls)
    }

    /// A SYN that opens a connection.
    pub fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    pub fn resets(&self) -> bool {
        self.flags & RST != 0
    }
}

/// The two ends of a segment's connection, from this side.
pub fn tuple_of(packet: &Packet<'_>, segment: &Segment) -> Tuple {
    Tuple {
        local: SocketAddr::new(packet.to, segment.to_port),
        remote: SocketAddr::new(packet.from, segment.from_port),
    }
}

/// A segment without options and payload from `tuple.local` to `tuple.remote`.
fn bare(tuple: Tuple, sequence: u32, acknowledged: u32, flags: u8, window: u16) -> Option<Frame> {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&tuple.local.port().to_be_bytes());
    segment[2..4].copy_from_slice(&tuple.remote.port().to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14..16].copy_from_slice(&window.to_be_bytes());
    let (from, to) = (tuple.local.ip(), tuple.remote.ip());
    let sum = crate::icmp::checksum(&[&pseudo_header(from, to, TCP, segment.len()), &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let header = Header { from, to, protocol: TCP, hops: 64, class: 0, id: 0, dont_fragment: true };
    header.frames(&segment, 1280)?.pop()
}

/// The reset that answers a segment of no connection (`tcp_v4_send_reset`); none answers a reset.
pub fn reset_for(packet: &Packet<'_>) -> Option<Frame> {
    let segment = Segment::parse(packet.payload)?;
    if segment.resets() {
        return None;
    }
    let tuple = tuple_of(packet, &segment);
    if segment.flags & ACK != 0 {
        return bare(tuple, segment.acknowledged, 0, RST, 0);
    }
    bare(tuple, 0, segment.end(), RST | ACK, 0)
}

/// What is kept of a connection whose last acknowledgement may get lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest {
    /// The next sequence number of either side, where they are known.
    expected: u32,
    ours: u32,
    until: u64,
}

/// What to do with a segment of no flow.
#[derive(Debug, PartialEq, Eq)]
pub enum Orphan {
    /// Its connection rests; the answer, if one is due.
    Rests(Option<Frame>),
    /// It opens a connection, one that may follow another that rested included.
    Opens,
    Stray,
}

/// The flows of one network, and what is left of those that ended.
#[derive(Debug)]
pub struct FlowTable<T> {
    flows: HashMap<Tuple, T>,
    resting: HashMap<Tuple, Rest>,
    /// In the order in which they began to rest.
    order: VecDeque<Tuple>,
    key: RandomState,
}

impl<T> Default for FlowTable<T> {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            resting: HashMap::new(),
            order: VecDeque::new(),
            key: RandomState::new(),
        }
    }
}

impl<T> FlowTable<T> {
    pub fn get(&self, tuple: &Tuple) -> Option<&T> {
        self.flows.get(tuple)
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.flows.values()
    }

    /// Adds a flow; false where there is one, or too many.
    pub fn insert(&mut self, tuple: Tuple, flow: T) -> bool {
        if self.flows.len() >= MAX_FLOWS || self.flows.contains_key(&tuple) {
            return false;
        }
        self.resting.remove(&tuple);
        self.flows.insert(tuple, flow);
        true
    }

    /// Removes a flow, if it is the one that is meant and not another that has taken its place.
    pub fn remove(&mut self, tuple: &Tuple, is_meant: impl FnOnce(&T) -> bool) -> Option<T> {
        self.flows.get(tuple).is_some_and(is_meant).then(|| self.flows.remove(tuple)).flatten()
    }

    /// Puts a connection to rest; the numbers are those that come next on either side.
    pub fn rest(&mut self, tuple: Tuple, ours: u32, expected: u32, now: u64) {
        while self.order.len() >= MAX_RESTING
            || self.order.front().and_then(|t| self.resting.get(t)).is_some_and(|rest| rest.until <= now)
        {
            if let Some(old) = self.order.pop_front() {
                self.resting.remove(&old);
            }
        }
        self.resting.insert(tuple, Rest { expected, ours, until: now + REST_NS });
        self.order.push_back(tuple);
    }

    /// The first sequence number of a connection (RFC 6528): a secret function of its ends, and a clock.
    pub fn first_sequence(&self, tuple: &Tuple, now: u64) -> u32 {
        let mut hasher = self.key.build_hasher();
        tuple.hash(&mut hasher);
        let [a, b, c, d, ..] = core::hash::Hasher::finish(&hasher).to_ne_bytes();
        // As Linux has it: one step in 64 nanoseconds.
        let [e, f, g, h, ..] = (now / 64).to_le_bytes();
        u32::from_ne_bytes([a, b, c, d]).wrapping_add(u32::from_le_bytes([e, f, g, h]))
    }

    /// What a segment is that belongs to no flow (`tcp_timewait_state_process`).
    pub fn orphan(&mut self, tuple: &Tuple, segment: &Segment, now: u64) -> Orphan {
        let Some(rest) = self.resting.get(tuple).copied().filter(|rest| rest.until > now) else {
            return if segment.opens() { Orphan::Opens } else { Orphan::Stray };
        };
        let ahead = segment.sequence.wrapping_sub(rest.expected).cast_signed();
        if segment.opens() && ahead > 0 {
            return Orphan::Opens;
        }
        if segment.resets() {
            // Resets do not shorten the rest (RFC 1337).
            return Orphan::Rests(None);
        }
        let needs_answer = segment.len > 0 || segment.flags & (FIN | SYN) != 0;
        let answer = needs_answer.then(|| bare(*tuple, rest.ours, rest.expected, ACK, 65_535)).flatten();
        Orphan::Rests(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple() -> Tuple {
        Tuple { local: "10.0.0.1:80".parse().unwrap(), remote: "10.0.0.2:1000".parse().unwrap() }
    }

    fn segment(sequence: u32, flags: u8) -> Segment {
        Segment {
            from_port: 1000,
            to_port: 80,
            sequence,
            acknowledged: 0,
            flags,
            window: 9,
            urgent: 0,
            len: 0,
        }
    }

    #[test]
    fn a_resting_connection_answers_and_gives_way() {
        let mut table = FlowTable::<()>::default();
        assert_eq!(table.orphan(&tuple(), &segment(5, SYN), 0), Orphan::Opens);
        assert_eq!(table.orphan(&tuple(), &segment(5, FIN | ACK), 0), Orphan::Stray);
        table.rest(tuple(), 100, 200, 0);
        let Orphan::Rests(Some(answer)) = table.orphan(&tuple(), &segment(199, FIN | ACK), 1) else {
            panic!("no answer")
        };
        let packet = Packet::parse(answer.packet()).unwrap();
        assert!(packet.is_intact());
        let got = Segment::parse(packet.payload).unwrap();
        assert_eq!((got.sequence, got.acknowledged, got.flags), (100, 200, ACK));
        assert_eq!(table.orphan(&tuple(), &segment(200, RST), 1), Orphan::Rests(None));
        assert!(matches!(table.orphan(&tuple(), &segment(150, SYN), 1), Orphan::Rests(Some(_))));
        assert_eq!(table.orphan(&tuple(), &segment(201, SYN), 1), Orphan::Opens);
        assert_eq!(table.orphan(&tuple(), &segment(199, FIN | ACK), REST_NS), Orphan::Stray);
    }

    #[test]
    fn first_numbers_differ_by_ends_and_rise_with_time() {
        let table = FlowTable::<()>::default();
        let other = Tuple { local: tuple().remote, remote: tuple().local };
        assert_ne!(table.first_sequence(&tuple(), 0), table.first_sequence(&other, 0));
        let (a, b) = (table.first_sequence(&tuple(), 0), table.first_sequence(&tuple(), 64_000));
        assert_eq!(b.wrapping_sub(a), 1000);
        assert_ne!(a, FlowTable::<()>::default().first_sequence(&tuple(), 0));
    }
}
