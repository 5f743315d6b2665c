//! Control messages of received datagrams (`ip(7)`, `ipv6(7)`, `socket(7)`; `ip_cmsg_recv`, `ip6_datagram_recv_ctl`).

use std::net::{IpAddr, SocketAddr};

use abi::net::{In6PktInfo, InPktInfo, SockTimeval};
use abi::time::Timespec;
use netstack::datagram::Datagram;
use zerocopy::IntoBytes;

use super::addr::{self, Domain};
use super::options::{IPV6_2292HOPLIMIT, IPV6_2292PKTINFO, Options};
use crate::RecvMsg;

/// The control messages that the socket has asked for, in Linux's order.
pub(super) fn describe(
    options: &Options,
    domain: Domain,
    datagram: &Datagram,
    dropped: u32,
    port: u16,
    msg: &mut RecvMsg<'_, '_>,
) {
    if !options.any_set() {
        return;
    }
    let flag = |level, name| options.set_or(level, name, 0) != 0;
    let (sec, nsec) = (datagram.stamp / 1_000_000_000, datagram.stamp % 1_000_000_000);
    let sec = i64::try_from(sec).unwrap_or(0);
    if flag(libc::SOL_SOCKET, libc::SO_TIMESTAMP) {
        let stamp = SockTimeval { sec, usec: i64::try_from(nsec / 1000).unwrap_or(0) };
        msg.describe(libc::SOL_SOCKET, libc::SO_TIMESTAMP, stamp.as_bytes());
    } else if flag(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) {
        let stamp = Timespec { sec, nsec: i64::try_from(nsec).unwrap_or(0) };
        msg.describe(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, stamp.as_bytes());
    }
    if flag(libc::SOL_SOCKET, libc::SO_RXQ_OVFL) && dropped > 0 {
        msg.describe(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &dropped.to_ne_bytes());
    }
    if domain == Domain::V6 {
        let old = IPV6_2292PKTINFO;
        for (asked, name) in [(libc::IPV6_RECVPKTINFO, libc::IPV6_PKTINFO), (old, old)] {
            if !flag(libc::IPPROTO_IPV6, asked) {
                continue;
            }
            let addr = match datagram.to {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let info = In6PktInfo { addr, ifindex: datagram.interface };
            msg.describe(libc::IPPROTO_IPV6, name, info.as_bytes());
        }
        let old = IPV6_2292HOPLIMIT;
        for (asked, name) in [(libc::IPV6_RECVHOPLIMIT, libc::IPV6_HOPLIMIT), (old, old)] {
            if flag(libc::IPPROTO_IPV6, asked) && datagram.to.is_ipv6() {
                msg.describe(libc::IPPROTO_IPV6, name, &i32::from(datagram.hops).to_ne_bytes());
            }
        }
        if flag(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS) && datagram.to.is_ipv6() {
            let class = i32::from(datagram.class).to_ne_bytes();
            msg.describe(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class);
        }
    }
    let IpAddr::V4(to) = datagram.to else { return };
    if flag(libc::IPPROTO_IP, libc::IP_PKTINFO) {
        let ifindex = i32::try_from(datagram.interface).unwrap_or(0);
        let info = InPktInfo { ifindex, spec_dst: to.octets(), addr: to.octets() };
        msg.describe(libc::IPPROTO_IP, libc::IP_PKTINFO, info.as_bytes());
    }
    if flag(libc::IPPROTO_IP, libc::IP_RECVTTL) {
        msg.describe(libc::IPPROTO_IP, libc::IP_TTL, &i32::from(datagram.hops).to_ne_bytes());
    }
    if flag(libc::IPPROTO_IP, libc::IP_RECVTOS) {
        msg.describe(libc::IPPROTO_IP, libc::IP_TOS, &[datagram.class]);
    }
    if flag(libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR) {
        let at = addr::to_bytes(Domain::V4, SocketAddr::new(datagram.to, port));
        msg.describe(libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR, &at);
    }
}
