//! The options of a host socket that a sandbox may set and read: those that concern the socket itself, and none that takes
//! programs, addresses of memory or rules of the host's (`socket(7)`, `ip(7)`, `ipv6(7)`, `tcp(7)`, `udp(7)`).

/// Options that are set and read.
const BOTH: &[(i32, &[i32])] = &[
    (
        libc::SOL_SOCKET,
        &[
            libc::SO_REUSEADDR,
            libc::SO_REUSEPORT,
            libc::SO_DONTROUTE,
            libc::SO_BROADCAST,
            libc::SO_KEEPALIVE,
            libc::SO_OOBINLINE,
            libc::SO_NO_CHECK,
            libc::SO_PRIORITY,
            libc::SO_RCVLOWAT,
            libc::SO_SNDBUF,
            libc::SO_RCVBUF,
            libc::SO_LINGER,
            libc::SO_TIMESTAMP,
            libc::SO_TIMESTAMPNS,
            libc::SO_RXQ_OVFL,
            libc::SO_INCOMING_CPU,
            libc::SO_PEEK_OFF,
            libc::SO_SELECT_ERR_QUEUE,
            libc::SO_BINDTODEVICE,
            SO_BINDTOIFINDEX,
        ],
    ),
    (
        libc::IPPROTO_IP,
        &[
            libc::IP_TOS,
            libc::IP_TTL,
            libc::IP_PKTINFO,
            libc::IP_RECVERR,
            libc::IP_RECVTTL,
            libc::IP_RECVTOS,
            libc::IP_RECVORIGDSTADDR,
            libc::IP_MTU_DISCOVER,
            libc::IP_MULTICAST_IF,
            libc::IP_MULTICAST_TTL,
            libc::IP_MULTICAST_LOOP,
            IP_MULTICAST_ALL,
            libc::IP_FREEBIND,
            IP_BIND_ADDRESS_NO_PORT,
            libc::IP_MINTTL,
        ],
    ),
    (
        libc::IPPROTO_IPV6,
        &[
            libc::IPV6_V6ONLY,
            libc::IPV6_UNICAST_HOPS,
            libc::IPV6_MULTICAST_HOPS,
            libc::IPV6_MULTICAST_LOOP,
            libc::IPV6_MULTICAST_IF,
            libc::IPV6_RECVPKTINFO,
            libc::IPV6_RECVHOPLIMIT,
            libc::IPV6_RECVTCLASS,
            libc::IPV6_TCLASS,
            libc::IPV6_RECVERR,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_DONTFRAG,
            IPV6_CHECKSUM,
        ],
    ),
    (
        libc::IPPROTO_TCP,
        &[
            libc::TCP_NODELAY,
            libc::TCP_CORK,
            libc::TCP_MAXSEG,
            libc::TCP_KEEPIDLE,
            libc::TCP_KEEPINTVL,
            libc::TCP_KEEPCNT,
            libc::TCP_SYNCNT,
            libc::TCP_LINGER2,
            libc::TCP_DEFER_ACCEPT,
            libc::TCP_WINDOW_CLAMP,
            libc::TCP_QUICKACK,
            libc::TCP_USER_TIMEOUT,
            libc::TCP_CONGESTION,
            libc::TCP_NOTSENT_LOWAT,
            libc::TCP_INQ,
        ],
    ),
    (libc::IPPROTO_UDP, &[libc::UDP_CORK, libc::UDP_SEGMENT, libc::UDP_GRO]),
    (libc::IPPROTO_ICMPV6, &[ICMP_FILTER]),
    (libc::SOL_RAW, &[ICMP_FILTER]),
];

const ONLY_SET: &[(i32, &[i32])] = &[
    (
        libc::IPPROTO_IP,
        &[
            libc::IP_ADD_MEMBERSHIP,
            libc::IP_DROP_MEMBERSHIP,
            libc::IP_ADD_SOURCE_MEMBERSHIP,
            libc::IP_DROP_SOURCE_MEMBERSHIP,
            MCAST_JOIN_GROUP,
            MCAST_LEAVE_GROUP,
        ],
    ),
    (
        libc::IPPROTO_IPV6,
        &[libc::IPV6_ADD_MEMBERSHIP, libc::IPV6_DROP_MEMBERSHIP, MCAST_JOIN_GROUP, MCAST_LEAVE_GROUP],
    ),
];

const ONLY_GET: &[(i32, &[i32])] = &[
    (libc::SOL_SOCKET, &[libc::SO_ERROR, libc::SO_ACCEPTCONN, libc::SO_SNDLOWAT, libc::SO_COOKIE]),
    (libc::IPPROTO_IP, &[libc::IP_MTU]),
    (libc::IPPROTO_IPV6, &[libc::IPV6_MTU]),
    (libc::IPPROTO_TCP, &[libc::TCP_INFO]),
];

const SO_BINDTOIFINDEX: i32 = 62;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IP_MULTICAST_ALL: i32 = 49;
const IPV6_CHECKSUM: i32 = 7;
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_LEAVE_GROUP: i32 = 45;
/// `ICMP_FILTER`, `ICMP6_FILTER`.
const ICMP_FILTER: i32 = 1;

fn has(lists: &[&[(i32, &[i32])]], level: i32, name: i32) -> bool {
    lists.iter().copied().flatten().any(|(of, names)| *of == level && names.contains(&name))
}

pub(super) fn may_set(level: i32, name: i32) -> bool {
    has(&[BOTH, ONLY_SET], level, name)
}

pub(super) fn may_get(level: i32, name: i32) -> bool {
    has(&[BOTH, ONLY_GET], level, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_rules_and_memory_are_out_of_reach() {
        for (level, name) in [
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
            (libc::SOL_SOCKET, libc::SO_ATTACH_BPF),
            (libc::SOL_SOCKET, libc::SO_MARK),
            (libc::SOL_SOCKET, libc::SO_PEERCRED),
            (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            (libc::IPPROTO_IP, libc::IP_HDRINCL),
            // `IPT_SO_SET_REPLACE`
            (libc::IPPROTO_IP, 64),
            (libc::IPPROTO_TCP, libc::TCP_ULP),
            (libc::IPPROTO_TCP, libc::TCP_REPAIR),
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT),
            // `TCP_ZEROCOPY_RECEIVE`
            (libc::IPPROTO_TCP, 35),
        ] {
            assert!(!may_set(level, name) && !may_get(level, name), "{level} {name}");
        }
        assert!(may_get(libc::SOL_SOCKET, libc::SO_ERROR) && !may_set(libc::SOL_SOCKET, libc::SO_ERROR));
    }
}
