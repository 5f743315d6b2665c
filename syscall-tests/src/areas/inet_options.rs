//! Socket options of the Internet families: socket(7), ip(7), ipv6(7), tcp(7), udp(7).

use crate::harness::Outcome;
use crate::inet::*;
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

cases![
    defaults_of_a_stream,
    defaults_of_datagrams,
    flags_are_zero_or_one,
    keep_alive_ranges,
    tcp_numbers,
    tcp_info_of_states,
    congestion_control,
    maximum_segment_size,
    linger_value,
    timeouts_round_trip,
    buffer_sizes_double,
    short_and_bad_values,
    read_only_options,
    unknown_options,
    levels_of_the_other_family,
    type_domain_protocol,
    v6_numbers,
    v6_level_on_v4,
    ip_values_in_one_byte,
    bind_to_device,
    bound_to_the_loopback,
    another_device_wants_a_capability,
    priority_and_mark,
    value_is_cut_to_the_room,
    low_water_values,
    multicast_defaults,
    options_survive_connect,
    mtu_of_a_connection,
    time_stamp_forms_exclude,
    peer_name_by_option,
];

fn each(s: &OwnedFd, rows: &[(i32, i32, i32)]) -> Outcome {
    for (level, name, want) in rows {
        let got = get_int(s, *level, *name).map_err(|e| format!("option {level}/{name}: {e}"))?;
        want!(got == *want, "option {level}/{name} is {got}, expected {want}");
    }
    Ok(())
}

fn defaults_of_a_stream() -> Outcome {
    let s = tcp()?;
    each(
        &s,
        &[
            (SOL_SOCKET, SO_REUSEADDR, 0),
            (SOL_SOCKET, SO_KEEPALIVE, 0),
            (SOL_SOCKET, SO_BROADCAST, 0),
            (SOL_SOCKET, SO_OOBINLINE, 0),
            (SOL_SOCKET, SO_DONTROUTE, 0),
            (SOL_SOCKET, SO_ERROR, 0),
            (SOL_SOCKET, SO_ACCEPTCONN, 0),
            (SOL_SOCKET, SO_RCVLOWAT, 1),
            (SOL_SOCKET, SO_SNDLOWAT, 1),
            (SOL_SOCKET, SO_SNDBUF, 16_384),
            (SOL_SOCKET, SO_RCVBUF, 131_072),
            (IPPROTO_TCP, TCP_NODELAY, 0),
            (IPPROTO_TCP, TCP_CORK, 0),
            (IPPROTO_TCP, TCP_KEEPIDLE, 7200),
            (IPPROTO_TCP, TCP_KEEPINTVL, 75),
            (IPPROTO_TCP, TCP_KEEPCNT, 9),
            (IPPROTO_TCP, TCP_SYNCNT, 6),
            (IPPROTO_TCP, TCP_LINGER2, 60),
            (IPPROTO_TCP, TCP_DEFER_ACCEPT, 0),
            (IPPROTO_TCP, TCP_QUICKACK, 1),
            (IPPROTO_TCP, TCP_USER_TIMEOUT, 0),
            (IPPROTO_TCP, TCP_MAXSEG, 536),
            (IPPROTO_IP, IP_TTL, 64),
            (IPPROTO_IP, IP_TOS, 0),
            (IPPROTO_IP, IP_MTU_DISCOVER, 1),
            (IPPROTO_IP, IP_RECVERR, 0),
            (IPPROTO_IP, IP_FREEBIND, 0),
        ],
    )
}

fn defaults_of_datagrams() -> Outcome {
    each(
        &udp()?,
        &[
            (SOL_SOCKET, SO_SNDBUF, 212_992),
            (SOL_SOCKET, SO_RCVBUF, 212_992),
            (SOL_SOCKET, SO_NO_CHECK, 0),
            (SOL_SOCKET, SO_TIMESTAMP, 0),
            (SOL_SOCKET, SO_PEEK_OFF, -1),
            (IPPROTO_IP, IP_PKTINFO, 0),
            (IPPROTO_IP, IP_RECVTTL, 0),
            (IPPROTO_IP, IP_MULTICAST_TTL, 1),
            (IPPROTO_IP, IP_MULTICAST_LOOP, 1),
            (IPPROTO_UDP, UDP_CORK, 0),
            (IPPROTO_UDP, UDP_SEGMENT, 0),
        ],
    )
}

fn flags_are_zero_or_one() -> Outcome {
    let s = tcp()?;
    for (level, name) in [
        (SOL_SOCKET, SO_REUSEADDR),
        (SOL_SOCKET, SO_REUSEPORT),
        (SOL_SOCKET, SO_KEEPALIVE),
        (SOL_SOCKET, SO_BROADCAST),
        (SOL_SOCKET, SO_OOBINLINE),
        (SOL_SOCKET, SO_DONTROUTE),
        (IPPROTO_TCP, TCP_NODELAY),
        (IPPROTO_TCP, TCP_CORK),
        (IPPROTO_IP, IP_RECVTOS),
        (IPPROTO_IP, IP_FREEBIND),
    ] {
        ok!(set_int(&s, level, name, 77));
        same!((name, get_int(&s, level, name)?), (name, 1));
        ok!(set_int(&s, level, name, 0));
        same!((name, get_int(&s, level, name)?), (name, 0));
    }
    Ok(())
}

fn keep_alive_ranges() -> Outcome {
    let s = tcp()?;
    for (name, good, bad) in
        [(TCP_KEEPIDLE, 32_767, 32_768), (TCP_KEEPINTVL, 32_767, 32_768), (TCP_KEEPCNT, 127, 128)]
    {
        ok!(set_int(&s, IPPROTO_TCP, name, good));
        same!(get_int(&s, IPPROTO_TCP, name)?, good);
        fails!(EINVAL, set_int(&s, IPPROTO_TCP, name, bad));
        fails!(EINVAL, set_int(&s, IPPROTO_TCP, name, 0));
        fails!(EINVAL, set_int(&s, IPPROTO_TCP, name, -1));
    }
    Ok(())
}

fn tcp_numbers() -> Outcome {
    let s = tcp()?;
    ok!(set_int(&s, IPPROTO_TCP, TCP_USER_TIMEOUT, 12_345));
    same!(get_int(&s, IPPROTO_TCP, TCP_USER_TIMEOUT)?, 12_345);
    fails!(EINVAL, set_int(&s, IPPROTO_TCP, TCP_USER_TIMEOUT, -1));
    ok!(set_int(&s, IPPROTO_TCP, TCP_SYNCNT, 3));
    same!(get_int(&s, IPPROTO_TCP, TCP_SYNCNT)?, 3);
    fails!(EINVAL, set_int(&s, IPPROTO_TCP, TCP_SYNCNT, 256));
    ok!(set_int(&s, IPPROTO_TCP, TCP_FASTOPEN, 5));
    ok!(set_int(&s, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16_384));
    same!(get_int(&s, IPPROTO_TCP, TCP_NOTSENT_LOWAT)?, 16_384);
    Ok(())
}

fn tcp_info_of_states() -> Outcome {
    let state = |s: &OwnedFd| -> Result<u8, String> {
        let mut info = [0u8; 104];
        let mut len = 104;
        ok!(getsockopt(s.as_raw_fd(), IPPROTO_TCP, TCP_INFO, info.as_mut_ptr().cast(), &raw mut len));
        same!(len, 104);
        Ok(info[0])
    };
    same!(state(&tcp()?)?, 7);
    same!(state(&server(1)?.0)?, 10);
    let (c, a) = pair()?;
    same!((state(&c)?, state(&a)?), (1, 1));
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    crate::sys::sleep_ms(50);
    same!((state(&c)?, state(&a)?), (5, 8));
    drop(a);
    crate::sys::sleep_ms(5);
    same!(state(&c)?, 7);
    Ok(())
}

fn congestion_control() -> Outcome {
    let s = tcp()?;
    let mut name = [0u8; 16];
    let mut len = 16;
    ok!(getsockopt(s.as_raw_fd(), IPPROTO_TCP, TCP_CONGESTION, name.as_mut_ptr().cast(), &raw mut len));
    same!(len, 16);
    want!(name[0].is_ascii_lowercase(), "the name is {name:?}");
    ok!(setsockopt(s.as_raw_fd(), IPPROTO_TCP, TCP_CONGESTION, b"reno".as_ptr().cast(), 4));
    ok!(getsockopt(s.as_raw_fd(), IPPROTO_TCP, TCP_CONGESTION, name.as_mut_ptr().cast(), &raw mut len));
    same!(&name[..5], b"reno\0");
    fails!(ENOENT, setsockopt(s.as_raw_fd(), IPPROTO_TCP, TCP_CONGESTION, b"nope9".as_ptr().cast(), 5));
    Ok(())
}

fn maximum_segment_size() -> Outcome {
    let s = tcp()?;
    fails!(EINVAL, set_int(&s, IPPROTO_TCP, TCP_MAXSEG, 20));
    fails!(EINVAL, set_int(&s, IPPROTO_TCP, TCP_MAXSEG, 40_000));
    ok!(set_int(&s, IPPROTO_TCP, TCP_MAXSEG, 1000));
    let (c, _a) = pair()?;
    want!(get_int(&c, IPPROTO_TCP, TCP_MAXSEG)? > 20_000, "small segments on the loopback");
    Ok(())
}

fn linger_value() -> Outcome {
    let s = tcp()?;
    let mut l = linger { l_onoff: 9, l_linger: 9 };
    let mut len = 8;
    let at = (&raw mut l).cast::<c_void>();
    ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_LINGER, at, &raw mut len));
    same!((l.l_onoff, l.l_linger, len), (0, 0, 8));
    l = linger { l_onoff: 1, l_linger: 5 };
    ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw const l).cast(), 8));
    ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw mut l).cast(), &raw mut len));
    same!((l.l_onoff, l.l_linger), (1, 5));
    fails!(EINVAL, setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw const l).cast(), 4));
    Ok(())
}

fn timeouts_round_trip() -> Outcome {
    let s = tcp()?;
    for name in [SO_RCVTIMEO, SO_SNDTIMEO] {
        let t = timeval { tv_sec: 3, tv_usec: 500_000 };
        ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, name, (&raw const t).cast(), 16));
        let mut got = timeval { tv_sec: 0, tv_usec: 0 };
        let mut len = 16;
        ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, name, (&raw mut got).cast(), &raw mut len));
        same!((got.tv_sec, got.tv_usec), (3, 500_000));
        let bad = timeval { tv_sec: 0, tv_usec: 1_000_000 };
        fails!(EDOM, setsockopt(s.as_raw_fd(), SOL_SOCKET, name, (&raw const bad).cast(), 16));
        fails!(EINVAL, setsockopt(s.as_raw_fd(), SOL_SOCKET, name, (&raw const t).cast(), 8));
    }
    Ok(())
}

fn buffer_sizes_double() -> Outcome {
    let s = tcp()?;
    for (name, least) in [(SO_SNDBUF, 4608), (SO_RCVBUF, 2304)] {
        ok!(set_int(&s, SOL_SOCKET, name, 50_000));
        same!(get_int(&s, SOL_SOCKET, name)?, 100_000);
        ok!(set_int(&s, SOL_SOCKET, name, 0));
        same!(get_int(&s, SOL_SOCKET, name)?, least);
    }
    Ok(())
}

fn short_and_bad_values() -> Outcome {
    let s = tcp()?;
    let one = 1i32;
    let at: *const c_void = (&raw const one).cast();
    fails!(EINVAL, setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_KEEPALIVE, at, 3));
    fails!(EINVAL, setsockopt(s.as_raw_fd(), IPPROTO_TCP, TCP_NODELAY, at, 3));
    fails!(EINVAL, setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_KEEPALIVE, at, -1i32 as u32));
    fails!(EFAULT, setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_KEEPALIVE, std::ptr::null(), 4));
    fails!(EFAULT, getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_KEEPALIVE, null_mut(), null_mut()));
    let mut len = -1i32 as u32;
    let mut out = 0i32;
    fails!(EINVAL, getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_TYPE, (&raw mut out).cast(), &raw mut len));
    fails!(ENOTSOCK, setsockopt(0, SOL_SOCKET, SO_KEEPALIVE, at, 4));
    fails!(EBADF, setsockopt(-1, SOL_SOCKET, SO_KEEPALIVE, at, 4));
    Ok(())
}

fn read_only_options() -> Outcome {
    let s = tcp()?;
    for name in [SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ERROR, SO_ACCEPTCONN, SO_SNDLOWAT] {
        fails!(ENOPROTOOPT, set_int(&s, SOL_SOCKET, name, 1));
    }
    Ok(())
}

fn unknown_options() -> Outcome {
    let s = tcp()?;
    for level in [SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP] {
        fails!(ENOPROTOOPT, set_int(&s, level, 9999, 1));
        fails!(ENOPROTOOPT, try_get(&s, level, 9999));
    }
    fails!(EOPNOTSUPP, try_get(&s, 12_345, 1));
    Ok(())
}

fn levels_of_the_other_family() -> Outcome {
    fails!(ENOPROTOOPT, set_int(&udp()?, IPPROTO_TCP, TCP_NODELAY, 1));
    fails!(EOPNOTSUPP, try_get(&udp()?, IPPROTO_TCP, TCP_NODELAY));
    fails!(ENOPROTOOPT, set_int(&tcp()?, IPPROTO_UDP, UDP_CORK, 1));
    Ok(())
}

fn type_domain_protocol() -> Outcome {
    for (domain, kind, protocol) in [
        (AF_INET, SOCK_STREAM, IPPROTO_TCP),
        (AF_INET, SOCK_DGRAM, IPPROTO_UDP),
        (AF_INET6, SOCK_STREAM, IPPROTO_TCP),
        (AF_INET6, SOCK_DGRAM, IPPROTO_UDP),
    ] {
        let s = sock(domain, kind)?;
        each(
            &s,
            &[
                (SOL_SOCKET, SO_DOMAIN, domain),
                (SOL_SOCKET, SO_TYPE, kind),
                (SOL_SOCKET, SO_PROTOCOL, protocol),
            ],
        )?;
    }
    Ok(())
}

fn v6_numbers() -> Outcome {
    let s = sock(AF_INET6, SOCK_DGRAM)?;
    each(
        &s,
        &[
            (IPPROTO_IPV6, IPV6_V6ONLY, 0),
            (IPPROTO_IPV6, IPV6_UNICAST_HOPS, 64),
            (IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 1),
            (IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 1),
            (IPPROTO_IPV6, IPV6_RECVPKTINFO, 0),
            (IPPROTO_IPV6, IPV6_TCLASS, 0),
            (IPPROTO_IPV6, IPV6_MTU_DISCOVER, 1),
        ],
    )?;
    ok!(set_int(&s, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9));
    same!(get_int(&s, IPPROTO_IPV6, IPV6_UNICAST_HOPS)?, 9);
    fails!(EINVAL, set_int(&s, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 256));
    ok!(set_int(&s, IPPROTO_IPV6, IPV6_TCLASS, 0x20));
    same!(get_int(&s, IPPROTO_IPV6, IPV6_TCLASS)?, 0x20);
    // The IPv4 level works on an IPv6 socket.
    ok!(set_int(&s, IPPROTO_IP, IP_TTL, 9));
    same!(get_int(&s, IPPROTO_IP, IP_TTL)?, 9);
    Ok(())
}

fn v6_level_on_v4() -> Outcome {
    fails!(ENOPROTOOPT, set_int(&tcp()?, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    fails!(EOPNOTSUPP, try_get(&udp()?, IPPROTO_IPV6, IPV6_V6ONLY));
    Ok(())
}

fn ip_values_in_one_byte() -> Outcome {
    let s = udp()?;
    let value = 33u8;
    ok!(setsockopt(s.as_raw_fd(), IPPROTO_IP, IP_TTL, (&raw const value).cast(), 1));
    same!(get_int(&s, IPPROTO_IP, IP_TTL)?, 33);
    let mut one = 0u8;
    let mut len = 1;
    ok!(getsockopt(s.as_raw_fd(), IPPROTO_IP, IP_TTL, (&raw mut one).cast(), &raw mut len));
    same!((one, len), (33, 1));
    Ok(())
}

fn bind_to_device() -> Outcome {
    let s = tcp()?;
    fails!(ENODEV, setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, c"none9".as_ptr().cast(), 6));
    ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, c"lo".as_ptr().cast(), 3));
    let mut name = [0u8; 16];
    let mut len = 16;
    ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, name.as_mut_ptr().cast(), &raw mut len));
    same!((len, &name[..3]), (3, c"lo".to_bytes_with_nul()));
    Ok(())
}

const SO_BINDTOIFINDEX: c_int = 62;

/// Name and number are two sides of one; the loopback is reached by it, and nothing else is.
fn bound_to_the_loopback() -> Outcome {
    let (a, b) = (udp()?, udp()?);
    same!(get_int(&a, SOL_SOCKET, SO_BINDTOIFINDEX)?, 0);
    fails!(EINVAL, set_int(&a, SOL_SOCKET, SO_BINDTOIFINDEX, -1));
    ok!(set_int(&a, SOL_SOCKET, SO_BINDTOIFINDEX, 1));
    let mut name = [0u8; 16];
    let mut len = 16;
    ok!(getsockopt(a.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, name.as_mut_ptr().cast(), &raw mut len));
    same!((len, &name[..3]), (3, c"lo".to_bytes_with_nul()));
    ok!(bind4(&a, LOCALHOST, 0));
    let port = port_of(&a)?;
    // One that is bound to no interface would take the same.
    fails!(EADDRINUSE, bind4(&b, LOCALHOST, port));
    same!(send_to(&b, b"here", port), 4);
    same!(recv_flags(&a, 8, 0)?, b"here");
    let s = tcp()?;
    ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, c"lo".as_ptr().cast(), 3));
    same!(get_int(&s, SOL_SOCKET, SO_BINDTOIFINDEX)?, 1);
    ok!(bind4(&s, LOCALHOST, 0));
    ok!(listen(s.as_raw_fd(), 1));
    let c = tcp()?;
    ok!(set_int(&c, SOL_SOCKET, SO_BINDTOIFINDEX, 1));
    ok!(connect4(&c, LOCALHOST, port_of(&s)?));
    same!(get_int(&accept_on(&s)?, SOL_SOCKET, SO_BINDTOIFINDEX)?, 1);
    ok!(set_int(&c, SOL_SOCKET, SO_BINDTOIFINDEX, 0));
    let mut len = 16;
    ok!(getsockopt(c.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, name.as_mut_ptr().cast(), &raw mut len));
    same!(len, 0);
    Ok(())
}

fn another_device_wants_a_capability() -> Outcome {
    if unsafe { geteuid() } != 0 {
        return Ok(());
    }
    crate::sys::fork(|| {
        crate::sys::drop_root()?;
        let s = udp()?;
        ok!(set_int(&s, SOL_SOCKET, SO_BINDTOIFINDEX, 1));
        fails!(EPERM, set_int(&s, SOL_SOCKET, SO_BINDTOIFINDEX, 0));
        fails!(EPERM, setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, c"".as_ptr().cast(), 0));
        Ok(())
    })?
    .ok()
}

fn priority_and_mark() -> Outcome {
    let s = udp()?;
    ok!(set_int(&s, SOL_SOCKET, SO_PRIORITY, 5));
    same!(get_int(&s, SOL_SOCKET, SO_PRIORITY)?, 5);
    if unsafe { geteuid() } != 0 {
        return Ok(());
    }
    crate::sys::fork(|| {
        crate::sys::drop_root()?;
        let s = udp()?;
        fails!(EPERM, set_int(&s, SOL_SOCKET, SO_PRIORITY, 7));
        fails!(EPERM, set_int(&s, SOL_SOCKET, SO_MARK, 1));
        fails!(EPERM, set_int(&s, SOL_SOCKET, SO_RCVBUFFORCE, 1));
        fails!(EPERM, set_int(&s, IPPROTO_IP, IP_TRANSPARENT, 1));
        fails!(EACCES, set_int(&s, SOL_SOCKET, SO_DEBUG, 1));
        Ok(())
    })?
    .ok()
}

fn value_is_cut_to_the_room() -> Outcome {
    let s = tcp()?;
    let mut two = [9u8; 4];
    let mut len = 2;
    ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_TYPE, two.as_mut_ptr().cast(), &raw mut len));
    same!((len, two), (2, [1, 0, 9, 9]));
    let mut len = 64;
    let mut many = [9u8; 64];
    ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_TYPE, many.as_mut_ptr().cast(), &raw mut len));
    same!((len, many[4]), (4, 9));
    Ok(())
}

fn low_water_values() -> Outcome {
    let s = tcp()?;
    ok!(set_int(&s, SOL_SOCKET, SO_RCVLOWAT, 0));
    same!(get_int(&s, SOL_SOCKET, SO_RCVLOWAT)?, 1);
    ok!(set_int(&s, SOL_SOCKET, SO_RCVLOWAT, 500));
    same!(get_int(&s, SOL_SOCKET, SO_RCVLOWAT)?, 500);
    Ok(())
}

fn multicast_defaults() -> Outcome {
    let s = udp()?;
    let mut a = [9u8; 4];
    let mut len = 4;
    ok!(getsockopt(s.as_raw_fd(), IPPROTO_IP, IP_MULTICAST_IF, a.as_mut_ptr().cast(), &raw mut len));
    same!((len, a), (4, [0; 4]));
    ok!(setsockopt(s.as_raw_fd(), IPPROTO_IP, IP_MULTICAST_IF, LOCALHOST.as_ptr().cast(), 4));
    ok!(getsockopt(s.as_raw_fd(), IPPROTO_IP, IP_MULTICAST_IF, a.as_mut_ptr().cast(), &raw mut len));
    same!(a, LOCALHOST);
    Ok(())
}

fn options_survive_connect() -> Outcome {
    let (s, port) = server(1)?;
    let c = tcp()?;
    ok!(set_int(&c, IPPROTO_TCP, TCP_NODELAY, 1));
    ok!(set_int(&c, SOL_SOCKET, SO_RCVBUF, 30_000));
    ok!(connect4(&c, LOCALHOST, port));
    same!(get_int(&c, IPPROTO_TCP, TCP_NODELAY)?, 1);
    same!(get_int(&c, SOL_SOCKET, SO_RCVBUF)?, 60_000);
    drop(s);
    Ok(())
}

fn mtu_of_a_connection() -> Outcome {
    let s = udp()?;
    fails!(ENOTCONN, try_get(&s, IPPROTO_IP, IP_MTU));
    ok!(connect4(&s, LOCALHOST, 9));
    want!(get_int(&s, IPPROTO_IP, IP_MTU)? >= 65_535, "a small MTU on the loopback");
    Ok(())
}

fn time_stamp_forms_exclude() -> Outcome {
    let s = udp()?;
    ok!(set_int(&s, SOL_SOCKET, SO_TIMESTAMP, 1));
    ok!(set_int(&s, SOL_SOCKET, SO_TIMESTAMPNS, 1));
    same!((get_int(&s, SOL_SOCKET, SO_TIMESTAMP)?, get_int(&s, SOL_SOCKET, SO_TIMESTAMPNS)?), (0, 1));
    Ok(())
}

fn peer_name_by_option() -> Outcome {
    let (c, a) = pair()?;
    let mut name = v4([0; 4], 0);
    let mut len = 16;
    ok!(getsockopt(c.as_raw_fd(), SOL_SOCKET, SO_PEERNAME, (&raw mut name).cast(), &raw mut len));
    same!(u16::from_be(name.sin_port), port_of(&a)?);
    Ok(())
}
