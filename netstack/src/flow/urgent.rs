//! Urgent data of a connection over packets (`tcp(7)`): what the other end's segments say of it, and what ours say.
//!
//! A segment names its urgent byte by how far behind its own first byte the one *after* that is, as BSD and Linux have it
//! (`net.ipv4.tcp_stdurg` of 0). There is one urgent byte at a time, and a newer one takes the place of an older. What that
//! means to who reads is [`crate::stream`]'s matter.

use std::net::IpAddr;

use smoltcp::socket::tcp::State;

use super::TcpFlow;
use crate::frame::Frame;
use crate::packet::{HEADER_V4, HEADER_V6, Packet};
use crate::stream::Mark;
use crate::table::{ACK, FIN, PSH, RST, SYN, Segment, URG};

/// Where fields of a TCP header are.
const SEQUENCE: usize = 4;
const FLAGS: usize = 13;
const POINTER: usize = 18;

/// What a stream has received when a segment comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Bytes without a hole, and the sequence number of the next one.
    pub(super) received: u64,
    pub(super) expected: u32,
    /// Bytes that may come beyond those.
    pub(super) window: usize,
}

/// What the other end has said of its urgent byte.
#[derive(Debug, Default)]
pub(super) struct Heard {
    mark: Option<Mark>,
    is_new: bool,
}

impl Heard {
    /// Looks at a segment before its bytes are taken in (`tcp_check_urg` and `tcp_urg` of `net/ipv4/tcp_input.c`): in order
    /// or not, the byte is taken from the segment that has it.
    pub(super) fn segment(&mut self, segment: &Segment, data: &[u8], progress: Progress) {
        let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let Ok(received) = i64::try_from(progress.received) else { return };
        let ahead = i64::from(segment.sequence.wrapping_sub(progress.expected).cast_signed());
        // The place of the segment's first byte in the stream.
        let start = received.saturating_add(ahead);
        if start.saturating_add(signed(data.len())) < received || ahead > signed(progress.window) {
            return;
        }
        if segment.flags & URG != 0 {
            let at = start.saturating_add(i64::from(segment.urgent.saturating_sub(1)));
            // What is received already is past being urgent, and an older pointer says nothing.
            let news = u64::try_from(at).ok().filter(|at| *at >= progress.received);
            if let Some(at) = news.filter(|at| self.mark.is_none_or(|known| known.at < *at)) {
                self.mark = Some(Mark { at, byte: None });
                self.is_new = true;
            }
        }
        if let Some(mark) = self.mark.as_mut().filter(|mark| mark.byte.is_none()) {
            let inside =
                i64::try_from(mark.at).ok().and_then(|at| usize::try_from(at.checked_sub(start)?).ok());
            if let Some(byte) = inside.and_then(|at| data.get(at)) {
                mark.byte = Some(*byte);
                self.is_new = true;
            }
        }
    }

    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// The mark, if it is new or its byte has come.
    pub(super) fn take(&mut self) -> Option<Mark> {
        core::mem::take(&mut self.is_new).then_some(self.mark).flatten()
    }
}

/// What a TCP packet of ours consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// Where the TCP header begins and where it ends, in bytes of the packet.
    pub(super) start: usize,
    pub(super) headers: usize,
    pub(super) segment: Segment,
}

fn put(frame: &mut Frame, at: usize, bytes: &[u8]) {
    if let Some(room) = frame.packet_mut().get_mut(at..at.saturating_add(bytes.len())) {
        room.copy_from_slice(bytes);
    }
}

/// Has a segment say that the byte before sequence number `urgent` is urgent (`tcp_transmit_skb`). Its `size` first bytes of
/// payload go with that; what is left over is given back as a segment of its own, since a link that cut the whole would say
/// of each part what is true of the first one. `told` is the number behind everything that has been sent.
pub(super) fn point(
    frame: &mut Frame,
    shape: &mut Shape,
    urgent: u32,
    size: usize,
    told: u32,
) -> Option<Frame> {
    let head = shape.segment;
    let ahead = urgent.wrapping_sub(head.sequence);
    if ahead.cast_signed() <= 0 || head.flags & (SYN | RST) != 0 {
        return None;
    }
    let rest = (head.len > size).then(|| split(frame, shape, size));
    // Where that is too far to say it is told that it is far, unless that would be among what has been sent.
    let far = head.sequence.wrapping_add(u32::from(u16::MAX)).wrapping_sub(told).cast_signed() > 0;
    if let Some(pointer) = u16::try_from(ahead).ok().or(far.then_some(u16::MAX)) {
        put(frame, shape.start + FLAGS, &[shape.segment.flags | URG]);
        put(frame, shape.start + POINTER, &pointer.to_be_bytes());
    }
    rest
}

/// Cuts a segment after `size` bytes of its payload; gives what is behind them.
fn split(frame: &mut Frame, shape: &mut Shape, size: usize) -> Frame {
    let Shape { start, headers, segment, .. } = *shape;
    let (head, data) = frame.packet().split_at_checked(headers).unwrap_or_default();
    let (first, second) = data.split_at_checked(size).unwrap_or((data, &[]));
    let (mut first, mut rest) = (Frame::of(&[head, first]), Frame::of(&[head, second]));
    shape.segment = Segment { len: size, flags: segment.flags & !(FIN | PSH), ..segment };
    put(&mut first, start + FLAGS, &[shape.segment.flags]);
    let next = segment.sequence.wrapping_add(u32::try_from(size).unwrap_or(0));
    put(&mut rest, start + SEQUENCE, &next.to_be_bytes());
    for part in [&mut first, &mut rest] {
        set_length(part, start);
    }
    *frame = first;
    rest
}

/// Writes the length of a packet into its IP header, `start` bytes long, and the sum of that where it has one.
fn set_length(frame: &mut Frame, start: usize) {
    let len = frame.packet().len();
    let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    if frame.packet().first().is_some_and(|byte| byte >> 4 == 6) {
        return put(frame, 4, &short(len.saturating_sub(HEADER_V6)));
    }
    put(frame, 2, &short(len));
    put(frame, 10, &[0, 0]);
    let header = frame.packet().get(..start.max(HEADER_V4)).unwrap_or_default();
    let sum = crate::icmp::checksum(&[header]);
    put(frame, 10, &sum.to_be_bytes());
}

/// A count of bytes as a sequence number counts.
fn low(n: u64) -> u32 {
    u32::try_from(n & u64::from(u32::MAX)).unwrap_or(0)
}

impl TcpFlow {
    /// Has segments say, until it is acknowledged, that what is sent before byte `end` of the stream is urgent; that may be
    /// yet to be given to [`TcpFlow::send`] (`tcp_mark_urg`).
    pub fn send_urgent(&mut self, end: u64) {
        self.urgent = Some(end);
        self.settle_nagle();
    }

    pub(super) fn urgent_end(&self) -> Option<u32> {
        self.urgent.map(|end| self.first.wrapping_add(low(end)))
    }

    /// Urgent data waits for nothing (`tcp_nagle_test`).
    pub(super) fn settle_nagle(&mut self) {
        let waits = !self.no_delay && self.urgent.is_none();
        self.socket_mut().set_nagle_enabled(waits);
    }

    /// Whether [`TcpFlow::take_urgent`] has something.
    pub fn has_urgent(&self) -> bool {
        self.heard.is_new()
    }

    /// The other end's urgent byte, where it has named a new one, or that has come which it had named.
    pub fn take_urgent(&mut self) -> Option<Mark> {
        self.heard.take()
    }

    /// What a segment that has come is to be judged by, before it is taken in.
    pub(super) fn words_of<'p>(&self, packet: &'p [u8]) -> Option<Words<'p>> {
        let payload = Packet::parse(packet)?.payload;
        let segment = Segment::parse(payload)?;
        let received = self.given + self.readable() as u64;
        let progress = self.first_of_other.map(|first| Progress {
            received,
            expected: first.wrapping_add(low(received)),
            window: self.socket().recv_capacity().saturating_sub(self.readable()),
        });
        let stands = matches!(
            self.socket().state(),
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2
        );
        let acknowledged = self.sent.saturating_sub(self.unacknowledged() as u64);
        let beyond = |number: u32| number.wrapping_sub(self.first.wrapping_add(low(acknowledged)));
        let fits = segment.flags & (SYN | RST | ACK) == ACK
            && beyond(segment.acknowledged) <= beyond(self.told.next);
        let data = payload.get(payload.len() - segment.len..)?;
        Some(Words { segment, data, progress: progress.filter(|_| stands && fits) })
    }

    /// The segment of these words has been taken in; before that the connection was in state `before`.
    pub(super) fn take_words(&mut self, before: State, words: Option<Words<'_>>) {
        let Some(Words { segment, data, progress }) = words else { return };
        let state = self.socket().state();
        if matches!(before, State::Listen | State::SynSent) && segment.flags & SYN != 0 {
            self.first_of_other = Some(segment.sequence.wrapping_add(1));
        }
        self.told.is_full = segment.window == 0;
        if let Some(progress) = progress
            && !matches!(state, State::Listen | State::SynReceived | State::Closed)
        {
            self.heard.segment(&segment, data, progress);
        }
        if self.urgent.is_some_and(|end| end <= self.sent.saturating_sub(self.unacknowledged() as u64)) {
            self.urgent = None;
            self.settle_nagle();
        }
    }
}

/// A segment that has come, and what was received then if the connection takes it in.
#[derive(Debug)]
pub(super) struct Words<'p> {
    segment: Segment,
    data: &'p [u8],
    progress: Option<Progress>,
}

#[cfg(test)]
#[path = "urgent_tests.rs"]
mod tests;
