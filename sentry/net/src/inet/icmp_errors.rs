//! ICMP errors: those that come for what this network has sent, and those that it sends (`icmp(7)`, RFC 1122, RFC 4443).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netstack::flow::Tuple;
use netstack::icmp;
use netstack::packet::{ICMP, ICMPV6, Packet, TCP, UDP};
use sentry_base::Errno;

use super::Inet;
use super::outside::Outside;

/// Bytes of a packet that an error quotes.
const QUOTED_V4: usize = 548;
const QUOTED_V6: usize = 1232;

/// What an error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Stop: the errno for the socket.
    Failed(Errno),
    /// The path carries packets of so many bytes.
    Narrow(usize),
}

/// The meaning of type and code (`icmp_err_convert`, `icmpv6_err_convert`).
fn meaning(v4: bool, kind: u8, code: u8, rest: u32) -> Option<Meaning> {
    let failed = |errno| Some(Meaning::Failed(errno));
    if v4 {
        return match (kind, code) {
            (3, 4) => Some(Meaning::Narrow(usize::try_from(rest & 0xffff).ok()?)),
            (3, 0 | 6 | 11) => failed(Errno::ENETUNREACH),
            (3, 2) => failed(Errno::ENOPROTOOPT),
            (3, 3) => failed(Errno::ECONNREFUSED),
            (3 | 11, _) => failed(Errno::EHOSTUNREACH),
            _ => None,
        };
    }
    match (kind, code) {
        (2, _) => Some(Meaning::Narrow(usize::try_from(rest).ok()?)),
        (1, 0) => failed(Errno::ENETUNREACH),
        (1, 1 | 5 | 6) => failed(Errno::EACCES),
        (1, 4) => failed(Errno::ECONNREFUSED),
        (1 | 3, _) => failed(Errno::EHOSTUNREACH),
        _ => None,
    }
}

/// What a quoted packet was: its ends, and its payload.
struct Quoted<'q> {
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
    sequence: u32,
    data: &'q [u8],
}

/// Reads the beginning of a packet of ours. The rest may be missing, so that lengths and sums say nothing.
fn quoted(bytes: &[u8]) -> Option<Quoted<'_>> {
    let (from, to, protocol, payload): (IpAddr, IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
        4 => {
            let words = usize::from(bytes.first()? & 0xf) * 4;
            let ip = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|b| IpAddr::from(*b));
            (ip(12)?, ip(16)?, *bytes.get(9)?, bytes.get(words..)?)
        }
        6 => {
            let ip =
                |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<16>).map(|b| IpAddr::from(*b));
            (ip(8)?, ip(24)?, *bytes.get(6)?, bytes.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| payload.get(at..).and_then(<[u8]>::first_chunk).map(|b| u16::from_be_bytes(*b));
    Some(Quoted {
        protocol,
        local: SocketAddr::new(from, port(0)?),
        remote: SocketAddr::new(to, port(2)?),
        sequence: payload.get(4..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_be_bytes(*b)),
        data: payload.get(8..).unwrap_or_default(),
    })
}

/// An ICMP message that is no question of neighbours and no echo request.
pub(super) fn received(net: &Arc<Inet>, outside: &Outside, packet: &Packet<'_>) {
    let message = packet.payload;
    let Some((head, inner)) = message.split_first_chunk::<8>() else { return };
    let rest = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let Some(meaning) = meaning(packet.to.is_ipv4(), head[0], head[1], rest) else { return };
    let Some(quoted) = quoted(inner) else { return };
    // An error is for what this network has sent.
    if net.interfaces.lock().local(quoted.local.ip()).is_none() {
        return;
    }
    report(net, outside, &quoted, meaning);
}

fn report(net: &Arc<Inet>, outside: &Outside, quoted: &Quoted<'_>, meaning: Meaning) {
    match quoted.protocol {
        TCP => {
            let tuple = Tuple { local: quoted.local, remote: quoted.remote };
            let flow = outside.flows.lock().get(&tuple).cloned();
            let Some(flow) = flow.filter(|flow| flow.has_sent(quoted.sequence)) else { return };
            match meaning {
                Meaning::Narrow(mtu) => flow.narrow_path(mtu),
                Meaning::Failed(Errno::ENETUNREACH) => flow.unreachable(netstack::Error::Unreachable),
                Meaning::Failed(Errno::ECONNREFUSED) => flow.unreachable(netstack::Error::Refused),
                Meaning::Failed(_) => flow.unreachable(netstack::Error::NoHost),
            }
        }
        UDP => {
            let errno = match meaning {
                Meaning::Narrow(_) => Errno::EMSGSIZE,
                Meaning::Failed(errno) => errno,
            };
            net.udp_error(errno, quoted.local, quoted.remote, quoted.data);
        }
        _ => {}
    }
}

/// The neighbour of a packet does not answer (`arp_error_report`).
pub(super) fn no_neighbor(net: &Arc<Inet>, outside: &Outside, packet: &Packet<'_>) {
    if let Some(quoted) = quoted(packet.whole) {
        report(net, outside, &quoted, Meaning::Failed(Errno::EHOSTUNREACH));
    }
}

/// No socket takes a datagram: says so (`icmp_send`, `ICMP_PORT_UNREACH`).
pub(super) fn no_port(net: &Arc<Inet>, outside: &Outside, packet: &Packet<'_>) {
    // Answers of name servers may be those that the engine's own resolver, on the same addresses, has asked for.
    let from_resolver = packet.payload.first_chunk::<2>() == Some(&[0, 53]) && outside.resolver.is_some();
    if from_resolver || packet.from.is_unspecified() || !outside.may_send_error() {
        return;
    }
    let v4 = packet.to.is_ipv4();
    let quoted = packet.whole.get(..packet.whole.len().min(if v4 { QUOTED_V4 } else { QUOTED_V6 }));
    let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quoted.unwrap_or_default());
    match (packet.to, packet.from) {
        (IpAddr::V6(from), IpAddr::V6(to)) => icmp::seal_v6(&mut message, from, to),
        _ => icmp::seal_v4(&mut message),
    }
    outside.answer(net, packet, if v4 { ICMP } else { ICMPV6 }, &message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_packet_is_recognised() {
        let mut packet =
            icmp::ipv4_header([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), UDP, 64, 0, 0, 100).to_vec();
        packet.extend_from_slice(&[0x12, 0x34, 0, 53, 0, 108, 0, 0, b'x']);
        let got = quoted(&packet).unwrap();
        assert_eq!(
            (got.local, got.remote),
            ("10.0.0.1:4660".parse().unwrap(), "10.0.0.2:53".parse().unwrap())
        );
        assert_eq!((got.protocol, got.data), (UDP, &b"x"[..]));
        assert!(quoted(&packet[..21]).is_none());
        assert_eq!(meaning(true, 3, 4, 1400), Some(Meaning::Narrow(1400)));
        assert_eq!(meaning(false, 1, 4, 0), Some(Meaning::Failed(Errno::ECONNREFUSED)));
        assert_eq!(meaning(true, 5, 0, 0), None);
    }
}
