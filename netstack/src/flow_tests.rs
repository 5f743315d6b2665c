//! Two flows that talk to each other over a list of packets, some of which are lost, doubled or late.
#![allow(clippy::unwrap_used, reason = "test code")]

use super::*;
use crate::packet::Packet;

pub(super) const BUFFER: usize = 65_536;
pub(super) const SETTINGS: Settings = Settings { mtu: 1500, hops: 64, no_delay: true, keep_alive: None };

pub(super) fn tuple(v6: bool) -> Tuple {
    let (a, b) = if v6 { ("[fd00::1]:1000", "[fd00::2]:80") } else { ("10.0.0.1:1000", "10.0.0.2:80") };
    Tuple { local: a.parse().unwrap(), remote: b.parse().unwrap() }
}

pub(super) fn turned(tuple: Tuple) -> Tuple {
    Tuple { local: tuple.remote, remote: tuple.local }
}

/// A cheap generator with a fixed start.
pub(super) fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Two flows with a connection between them, whose numbers begin at `first`, and the time.
pub(super) fn connected(v6: bool, first: u32) -> (TcpFlow, TcpFlow, u64) {
    let mut now = 1_000_000;
    let tuple = tuple(v6);
    let mut a = TcpFlow::connect(tuple, first, BUFFER, &SETTINGS, now).unwrap();
    let mut b = TcpFlow::accept(turned(tuple), first, BUFFER, &SETTINGS, now).unwrap();
    let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        a.advance(now, &mut to_b);
        to_b.drain(..).for_each(|f| b.arrive(f.packet(), now, &mut to_a));
        b.advance(now, &mut to_a);
        to_a.drain(..).for_each(|f| a.arrive(f.packet(), now, &mut to_b));
        now += 100_000_000;
    }
    assert_eq!(a.state(), TcpState::Established);
    (a, b, now)
}

#[test]
fn the_first_sequence_number_is_the_one_that_was_asked_for() {
    for first in [0, 1, 0xdead_beef, u32::MAX, 0x1234_5678] {
        for v6 in [false, true] {
            let mut flow = TcpFlow::connect(tuple(v6), first, BUFFER, &SETTINGS, 5).unwrap();
            let mut out = Vec::new();
            flow.advance(5, &mut out);
            let packet = Packet::parse(out[0].packet()).unwrap();
            assert_eq!(packet.payload[4..8], first.to_be_bytes());
            let mut other = TcpFlow::accept(turned(tuple(v6)), !first, BUFFER, &SETTINGS, 5).unwrap();
            let mut back = Vec::new();
            other.arrive(out[0].packet(), 5, &mut back);
            other.advance(5, &mut back);
            assert_eq!(Packet::parse(back[0].packet()).unwrap().payload[4..8], (!first).to_be_bytes());
        }
    }
}

#[test]
fn a_stream_survives_a_bad_link() {
    for v6 in [false, true] {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let mut now = 1_000_000;
        let mut a = TcpFlow::connect(tuple(v6), 1, BUFFER, &SETTINGS, now).unwrap();
        let mut b = TcpFlow::accept(turned(tuple(v6)), u32::MAX - 5, BUFFER, &SETTINGS, now).unwrap();
        let data: Vec<u8> = (0..200_000_u32).map(|n| (n * 7).to_le_bytes()[0]).collect();
        let (mut sent, mut got) = (0, Vec::new());
        let mut closed = false;
        for _ in 0..200_000 {
            let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
            sent += a.send(&data[sent..]);
            if sent == data.len() && !closed {
                a.close();
                closed = true;
            }
            a.advance(now, &mut to_b);
            b.advance(now, &mut to_a);
            for frame in to_b.drain(..) {
                // Lost, doubled, or well.
                let times = [0, 2].get(usize::try_from(next(&mut seed) % 20).unwrap()).copied().unwrap_or(1);
                for _ in 0..times {
                    b.arrive(frame.packet(), now, &mut to_a);
                }
            }
            let mut late = Vec::new();
            for frame in to_a.drain(..).rev() {
                if !next(&mut seed).is_multiple_of(20) {
                    a.arrive(frame.packet(), now, &mut late);
                }
            }
            let mut buffer = vec![0; 10_000];
            let n = b.receive(&mut buffer);
            got.extend_from_slice(&buffer[..n]);
            if b.is_finished() {
                b.close();
            }
            if b.is_over() && matches!(a.state(), TcpState::TimeWait | TcpState::Close) {
                break;
            }
            now += 10_000_000;
        }
        let state = (a.state(), b.state(), a.unacknowledged(), sent, a.deadline(now), now);
        assert!(got == data, "{} of {} bytes: {state:?} {:?}", got.len(), data.len(), a.ended());
        assert_eq!((a.ended(), b.ended()), (None, None));
    }
}

#[test]
fn what_a_path_does_not_carry_is_cut_smaller() {
    let (mut a, _, now) = connected(false, 1);
    let mut to_b = Vec::new();
    a.send(&[7; 9000]);
    a.advance(now, &mut to_b);
    assert_eq!(to_b[0].offload.segment, Some((1460, 40)));
    a.narrow_path(1000);
    a.send(&[7; 9000]);
    to_b.clear();
    a.advance(now + 2_000_000_000, &mut to_b);
    assert_eq!(to_b[0].offload.segment, Some((960, 40)));
}

#[test]
fn what_is_sent_again_is_counted() {
    let mut now = 1_000_000;
    let mut a = TcpFlow::connect(tuple(false), 1, BUFFER, &SETTINGS, now).unwrap();
    let mut b = TcpFlow::accept(turned(tuple(false)), 2, 4096, &SETTINGS, now).unwrap();
    let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
    // The first SYN is lost.
    a.advance(now, &mut to_b);
    assert_eq!((to_b.drain(..).len(), a.take_sent_again()), (1, 0));
    now += 1_500_000_000;
    let mut exchange = |a: &mut TcpFlow, b: &mut TcpFlow, now: &mut u64| {
        for _ in 0..6 {
            a.advance(*now, &mut to_b);
            to_b.drain(..).for_each(|f| b.arrive(f.packet(), *now, &mut to_a));
            b.advance(*now, &mut to_a);
            to_a.drain(..).for_each(|f| a.arrive(f.packet(), *now, &mut to_b));
            *now += 20_000_000;
        }
    };
    exchange(&mut a, &mut b, &mut now);
    assert_eq!((a.state(), a.take_sent_again()), (TcpState::Established, 1));
    let mut out = Vec::new();
    a.probe(now, &mut out);
    assert_eq!((out.drain(..).len(), a.take_sent_again()), (1, 0));
    // One segment may be on its way so early. It is lost, and goes again; the rest of the bytes are new.
    a.send(&[1; 2000]);
    a.advance(now, &mut out);
    assert_eq!(a.take_sent_again(), 0);
    now += 2_000_000_000;
    out.clear();
    a.advance(now, &mut out);
    assert_eq!((out.len(), a.take_sent_again()), (1, 1));
    b.arrive(out[0].packet(), now, &mut Vec::new());
    exchange(&mut a, &mut b, &mut now);
    assert_eq!((b.readable(), a.take_sent_again()), (2000, 0));
    // Into a buffer that is full, and stays so for a while.
    a.send(&[1; 4000]);
    exchange(&mut a, &mut b, &mut now);
    assert_eq!((b.readable(), a.take_sent_again()), (4096, 0));
    for _ in 0..10 {
        now += 1_000_000_000;
        exchange(&mut a, &mut b, &mut now);
    }
    assert!(a.unacknowledged() > 0);
    b.receive(&mut [0; 4096]);
    exchange(&mut a, &mut b, &mut now);
    assert_eq!((b.readable(), a.unacknowledged(), a.take_sent_again()), (1904, 0, 0));
}

#[test]
fn a_refusal_and_a_reset_are_told_apart() {
    let now = 1_000_000;
    let mut a = TcpFlow::connect(tuple(false), 1, BUFFER, &SETTINGS, now).unwrap();
    let mut out = Vec::new();
    a.advance(now, &mut out);
    let syn = Packet::parse(out[0].packet()).unwrap();
    let mut reset = crate::table::reset_for(&syn).unwrap();
    a.arrive(reset.packet_mut(), now, &mut Vec::new());
    assert_eq!((a.ended(), a.is_over()), (Some(Error::Refused), true));
}
