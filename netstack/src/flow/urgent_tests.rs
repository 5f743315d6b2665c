//! Urgent data as segments carry it, between flows and from others that mean no good.
#![allow(clippy::unwrap_used, reason = "test code")]

use super::super::tests::{SETTINGS, connected, next};
use super::*;
use crate::flow::Tuple;

const LOW: u32 = u32::MAX - 70_000;

/// A connection after so many bytes that many may be on their way; how many those were.
fn warm(v6: bool) -> (TcpFlow, u64, u64) {
    let (mut a, mut b, mut now) = connected(v6, LOW);
    let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        a.send(&[0; 4000]);
        for _ in 0..3 {
            a.advance(now, &mut to_b);
            to_b.drain(..).for_each(|f| b.arrive(f.packet(), now, &mut to_a));
            b.receive(&mut [0; 4000]);
            b.advance(now + 100_000_000, &mut to_a);
            to_a.drain(..).for_each(|f| a.arrive(f.packet(), now, &mut to_b));
            now += 100_000_000;
        }
    }
    assert_eq!((a.unacknowledged(), a.sent), (0, 120_000));
    (a, 120_000, now)
}

/// The segment in a frame, and its payload. What the link has to add to its sum is added, and the whole is right then.
fn read(frame: &Frame) -> (Segment, Vec<u8>) {
    let mut whole = frame.clone();
    let (start, sum) = frame.offload.checksum.unwrap();
    let bytes = whole.packet_mut();
    let got = crate::icmp::checksum(&[&bytes[usize::from(start)..]]);
    let at = usize::from(start + sum);
    bytes[at..at + 2].copy_from_slice(&got.to_be_bytes());
    let packet = Packet::parse(whole.packet()).unwrap();
    assert!(packet.is_intact());
    assert_eq!(packet.whole.len(), frame.packet().len());
    let segment = Segment::parse(packet.payload).unwrap();
    (segment, packet.payload[packet.payload.len() - segment.len..].to_vec())
}

fn pointer(segment: &Segment) -> Option<u16> {
    (segment.flags & URG != 0).then_some(segment.urgent)
}

/// A segment of `a`'s end with these bytes, as its packet, to be changed and sent by hand.
fn by_hand(a: &TcpFlow, ahead: u32, data: &[u8], flags: u8, urgent: u16) -> Frame {
    let mut segment = vec![0; 20];
    let Tuple { local, remote } = a.tuple();
    segment[..2].copy_from_slice(&local.port().to_be_bytes());
    segment[2..4].copy_from_slice(&remote.port().to_be_bytes());
    segment[4..8].copy_from_slice(&a.told.next.wrapping_add(ahead).to_be_bytes());
    segment[8..12].copy_from_slice(&a.told.acknowledged.to_be_bytes());
    segment[12..16].copy_from_slice(&[5 << 4, flags | ACK, 0xff, 0xff]);
    segment[18..20].copy_from_slice(&urgent.to_be_bytes());
    segment.extend_from_slice(data);
    let header = crate::packet::Header {
        from: local.ip(),
        to: remote.ip(),
        protocol: crate::packet::TCP,
        hops: 64,
        class: 0,
        id: 0,
        dont_fragment: true,
    };
    header.frames(&segment, 65_535).unwrap().pop().unwrap()
}

#[test]
fn segments_point_behind_the_urgent_byte_until_it_is_acknowledged() {
    for v6 in [false, true] {
        let (mut a, mut b, now) = connected(v6, LOW);
        let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
        a.send(b"ab!");
        a.send_urgent(3);
        a.send(b"cd");
        a.advance(now, &mut to_b);
        let (segment, data) = read(&to_b[0]);
        assert_eq!((to_b.len(), pointer(&segment), data.as_slice()), (1, Some(3), &b"ab!cd"[..]));
        // It is lost, and sent again as it was.
        to_b.clear();
        a.advance(now + 2_000_000_000, &mut to_b);
        assert_eq!(pointer(&read(&to_b[0]).0), Some(3));
        b.arrive(to_b[0].packet(), now, &mut to_a);
        assert_eq!(b.take_urgent(), Some(Mark { at: 2, byte: Some(b'!') }));
        assert_eq!((b.take_urgent(), b.readable()), (None, 5));
        b.advance(now + 1_000_000_000, &mut to_a);
        assert_eq!(pointer(&read(&to_a[0]).0), None);
        a.arrive(to_a[0].packet(), now, &mut Vec::new());
        a.send(b"ef");
        to_b.clear();
        a.advance(now + 3_000_000_000, &mut to_b);
        assert_eq!(pointer(&read(&to_b[0]).0), None);
    }
}

#[test]
fn a_long_packet_is_cut_up_to_the_urgent_byte() {
    for v6 in [false, true] {
        let (mut a, base, now) = warm(v6);
        let data: Vec<u8> = (0..14_000_u32).map(|n| (n * 7).to_le_bytes()[0]).collect();
        a.send_urgent(base + 5000);
        a.send(&data);
        let mut out = Vec::new();
        a.advance(now, &mut out);
        let (mut got, mut long) = (Vec::new(), 0);
        for frame in &out {
            let (segment, part) = read(frame);
            let at = u16::try_from(got.len()).unwrap();
            assert_eq!(segment.sequence, a.first.wrapping_add(low(base) + u32::from(at)));
            assert_eq!(pointer(&segment), (at < 5000).then(|| 5000 - at));
            assert!(part.len() <= 1460 || at >= 5000);
            assert_eq!(segment.flags & PSH != 0, got.len() + part.len() == data.len());
            long += usize::from(frame.offload.segment.is_some());
            got.extend_from_slice(&part);
        }
        assert!(got == data[..got.len()] && got.len() > 9000, "{}", got.len());
        // Behind it the link cuts again, where smoltcp lets it.
        assert_eq!(long, usize::from(!v6));
    }
}

#[test]
fn a_far_urgent_byte_is_said_to_be_far() {
    let (mut a, base, now) = warm(false);
    a.send_urgent(base + 100_000);
    a.send(&[7; 14_000]);
    let mut out = Vec::new();
    a.advance(now, &mut out);
    assert!(out.len() > 5);
    assert!(out.iter().all(|frame| pointer(&read(frame).0) == Some(u16::MAX)));
    // A second one takes the place of the first.
    a.send_urgent(base + 100_001);
    assert_eq!(a.urgent_end(), Some(a.first.wrapping_add(low(base) + 100_001)));
}

#[test]
fn urgent_data_waits_for_no_acknowledgement() {
    let (mut a, _, now) = connected(false, LOW);
    a.configure(&crate::flow::Settings { no_delay: false, ..SETTINGS });
    let mut out = Vec::new();
    for (text, urgent, packets) in [(b"x", None, 1), (b"y", None, 0), (b"!", Some(3), 1)] {
        a.send(text);
        if let Some(end) = urgent {
            a.send_urgent(end);
        }
        a.advance(now, &mut out);
        assert_eq!(out.drain(..).len(), packets);
    }
}

#[test]
fn a_pointer_is_heard_before_the_byte() {
    let (a, mut b, now) = connected(false, LOW);
    let mut out = Vec::new();
    // A segment without bytes, as one sends that has no window for them; then the byte, out of order.
    b.arrive(by_hand(&a, 0, b"", URG, 3).packet(), now, &mut out);
    assert_eq!(b.take_urgent(), Some(Mark { at: 2, byte: None }));
    b.arrive(by_hand(&a, 0, b"", URG, 3).packet(), now, &mut out);
    assert!(!b.has_urgent());
    b.arrive(by_hand(&a, 2, b"!c", 0, 0).packet(), now, &mut out);
    assert_eq!((b.take_urgent(), b.readable()), (Some(Mark { at: 2, byte: Some(b'!') }), 0));
    b.arrive(by_hand(&a, 0, b"ab", URG, 3).packet(), now, &mut out);
    assert_eq!((b.take_urgent(), b.readable()), (None, 4));
    // The same once more, and packets that a link has joined; the newer pointer is the one that counts.
    b.arrive(by_hand(&a, 2, b"!c", URG, 1).packet(), now, &mut out);
    assert_eq!(b.take_urgent(), None);
    b.arrive(by_hand(&a, 4, &[5; 9000], URG, 8001).packet(), now, &mut out);
    assert_eq!(b.take_urgent(), Some(Mark { at: 8004, byte: Some(5) }));
    // None is one at the segment's own first byte, and so is the next one (`tcp_check_urg`).
    b.arrive(by_hand(&a, 9004, b"?", URG, 0).packet(), now, &mut out);
    assert_eq!(b.take_urgent(), Some(Mark { at: 9004, byte: Some(b'?') }));
    b.arrive(by_hand(&a, 9005, b"!", URG | FIN, 1).packet(), now, &mut out);
    assert_eq!(b.take_urgent(), Some(Mark { at: 9005, byte: Some(b'!') }));
    // Nothing comes behind a FIN.
    b.arrive(by_hand(&a, 9007, b"!", URG, 1).packet(), now, &mut out);
    assert_eq!(b.take_urgent(), None);
}

#[test]
fn words_of_strangers_are_not_heard() {
    let (a, mut b, now) = connected(false, LOW);
    let mut out = Vec::new();
    b.arrive(by_hand(&a, 0, b"abcd", 0, 0).packet(), now, &mut out);
    let window = u32::try_from(b.socket().recv_capacity() - b.readable()).unwrap();
    let mut number = by_hand(&a, 4, b"x", URG, 1);
    // An acknowledgement of what was never sent.
    let at = HEADER_V4 + 8;
    number.packet_mut()[at] ^= 0x40;
    for frame in [
        number,
        // Of what was received already; behind the window; before the beginning; and segments that take no urgent data.
        by_hand(&a, 0, b"abcd", URG, 2),
        by_hand(&a, 0u32.wrapping_sub(40_000), b"x", URG, u16::MAX),
        by_hand(&a, 5 + window, b"x", URG, 1),
        by_hand(&a, 1 << 31, b"x", URG, 1),
        by_hand(&a, 4, b"x", URG | SYN, 1),
    ] {
        b.arrive(frame.packet(), now, &mut out);
        assert_eq!(b.take_urgent(), None);
    }
    // A pointer may lead beyond the window, as Linux has it.
    b.arrive(by_hand(&a, 4 + window, b"", URG, u16::MAX).packet(), now, &mut out);
    let far = 4 + u64::from(window) + 65_534;
    assert_eq!(b.take_urgent(), Some(Mark { at: far, byte: None }));
    b.arrive(by_hand(&a, 4, b"x", URG, 1).packet(), now, &mut out);
    assert_eq!(b.take_urgent(), None);
}

#[test]
fn urgent_bytes_survive_a_bad_link() {
    for v6 in [false, true] {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let (mut a, mut b, mut now) = connected(v6, LOW);
        let data: Vec<u8> = (0..400_000_u32).map(|n| ((n * 7) ^ (n >> 8)).to_le_bytes()[0]).collect();
        let (mut sent, mut got, mut ends, mut marks) = (0, Vec::new(), Vec::new(), Vec::new());
        for _ in 0..200_000 {
            let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
            if sent < data.len() && next(&mut seed).is_multiple_of(3) && a.room() > 0 {
                let part = usize::try_from(next(&mut seed) % 30_000 + 1).unwrap();
                sent += a.send(&data[sent..data.len().min(sent + part)]);
                if next(&mut seed).is_multiple_of(4) || sent == data.len() {
                    a.send_urgent(sent as u64);
                    ends.push(sent as u64);
                }
            }
            a.advance(now, &mut to_b);
            b.advance(now, &mut to_a);
            // Some overtake others, some are lost, some come twice.
            if next(&mut seed).is_multiple_of(3) {
                to_b.reverse();
            }
            for frame in to_b.drain(..) {
                let times = [0, 2].get(usize::try_from(next(&mut seed) % 20).unwrap()).copied().unwrap_or(1);
                for _ in 0..times {
                    b.arrive(frame.packet(), now, &mut to_a);
                    if let Some(mark) = b.take_urgent() {
                        // A pointer that is too far away for its field is told by steps.
                        assert!(mark.byte.is_none_or(|byte| byte == data[usize::try_from(mark.at).unwrap()]));
                        marks.push(mark);
                    }
                }
            }
            for frame in to_a.drain(..) {
                if !next(&mut seed).is_multiple_of(20) {
                    a.arrive(frame.packet(), now, &mut Vec::new());
                }
            }
            let mut buffer = vec![0; 10_000];
            let n = b.receive(&mut buffer);
            got.extend_from_slice(&buffer[..n]);
            if got.len() == data.len() && a.unacknowledged() == 0 {
                break;
            }
            now += 10_000_000;
        }
        assert!(got == data, "{} of {} bytes, {sent} sent", got.len(), data.len());
        assert!(ends.len() > 5 && marks.is_sorted_by_key(|mark| mark.at));
        let known = marks.iter().filter(|mark| ends.contains(&(mark.at + 1))).count();
        assert!(known > 5, "{known} of {} marks, {} urgent", marks.len(), ends.len());
        let last = Mark { at: data.len() as u64 - 1, byte: data.last().copied() };
        assert_eq!((marks.last(), a.urgent), (Some(&last), None));
    }
}
