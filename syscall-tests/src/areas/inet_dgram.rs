//! UDP over the loopback: udp(7), ip(7), send(2), recv(2), and the control messages of datagrams.

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::{self, fd_read, fd_write, nonblock};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

cases![
    datagrams_keep_their_bounds,
    sender_is_named,
    empty_datagram,
    too_long_for_the_buffer,
    too_long_to_send,
    send_without_destination,
    send_to_errors,
    first_send_takes_a_port,
    connected_socket_sends_and_filters,
    connected_names,
    connect_to_another_peer,
    disconnect_by_unspec,
    refused_is_told_to_the_connected,
    refused_is_not_told_to_others,
    error_queue_of_recverr,
    peek_and_dontwait,
    peek_offset,
    poll_states,
    address_in_use,
    reuse_address_last_wins,
    reuse_port_spreads,
    broadcast_needs_an_option,
    packet_info,
    ttl_and_tos,
    time_stamps,
    shutdown_of_datagrams,
    full_receiver_drops,
    listen_and_accept_are_not_supported,
    next_length_by_ioctl,
    receive_timeout,
    v6_datagrams,
    v6_packet_info,
    v6_hops_and_class_of_one_datagram,
    v6_takes_v4,
    v6_sends_to_v4_address,
    mmsg_calls,
    waitforone,
    cork_gathers_one_datagram,
    segment_splits,
    epoll_edges_per_datagram,
    blocked_receiver_wakes,
    multicast_membership,
    receive_buffer_sizes,
    control_is_cut,
    read_and_write,
    scatter_and_gather,
];

fn datagrams_keep_their_bounds() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    same!(ok!(send_to(&a, b"first", pb)), 5);
    same!(ok!(send_to(&a, b"second", pb)), 6);
    same!(recv_flags(&b, 99, 0)?, b"first");
    same!(recv_flags(&b, 99, 0)?, b"second");
    Ok(())
}

fn sender_is_named() -> Outcome {
    let (a, pa, b, pb) = udp_pair()?;
    ok!(send_to(&a, b"x", pb));
    let m = recv_message(&b, 9, 0)?;
    same!((m.port, m.name_len, m.flags), (pa, 16, 0));
    Ok(())
}

fn empty_datagram() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    same!(ok!(send_to(&a, b"", pb)), 0);
    same!(poll_for(b.as_raw_fd(), POLLIN, 1000)?, POLLIN);
    same!(recv_flags(&b, 9, 0)?, b"");
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    Ok(())
}

fn too_long_for_the_buffer() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(send_to(&a, b"abcdef", pb));
    let m = recv_message(&b, 3, 0)?;
    same!((m.n, m.flags, m.data.as_slice()), (3, MSG_TRUNC, &b"abc"[..]));
    ok!(send_to(&a, b"abcdef", pb));
    let m = recv_message(&b, 3, MSG_TRUNC)?;
    same!((m.n, m.flags), (6, MSG_TRUNC));
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    Ok(())
}

fn too_long_to_send() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    fails!(EMSGSIZE, send_to(&a, &vec![0; 65_508], pb));
    fails!(EMSGSIZE, send_to(&a, &vec![0; 70_000], pb));
    same!(ok!(send_to(&a, &pattern(65_507), pb)), 65_507);
    want!(recv_flags(&b, 70_000, 0)? == pattern(65_507), "the bytes differ");
    Ok(())
}

fn send_without_destination() -> Outcome {
    let a = udp()?;
    fails!(EDESTADDRREQ, send_flags(&a, b"x", 0));
    fails!(EDESTADDRREQ, write(a.as_raw_fd(), b"x".as_ptr().cast(), 1));
    Ok(())
}

fn send_to_errors() -> Outcome {
    let a = udp()?;
    let to = v4(LOCALHOST, 9);
    let at: *const sockaddr = (&raw const to).cast();
    fails!(EINVAL, sendto(a.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, at, 8));
    fails!(EINVAL, send_to(&a, b"x", 0));
    let six = v6(LO6, 9);
    fails!(EAFNOSUPPORT, sendto(a.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, (&raw const six).cast(), 28));
    fails!(EOPNOTSUPP, sendto(a.as_raw_fd(), b"x".as_ptr().cast(), 1, MSG_OOB, at, 16));
    Ok(())
}

fn first_send_takes_a_port() -> Outcome {
    let (_, _, b, pb) = udp_pair()?;
    let a = udp()?;
    same!(port_of(&a)?, 0);
    ok!(send_to(&a, b"x", pb));
    let port = port_of(&a)?;
    want!(port >= 32768, "the port is {port}");
    // The address stays open.
    same!(name_of(&a, false)?.1, [0; 16]);
    same!(recv_message(&b, 9, 0)?.port, port);
    fails!(EINVAL, bind4(&a, LOCALHOST, 0));
    Ok(())
}

fn connected_socket_sends_and_filters() -> Outcome {
    let (a, pa, b, pb) = udp_pair()?;
    ok!(connect4(&a, LOCALHOST, pb));
    fd_write(&a, b"hi")?;
    same!(recv_message(&b, 9, 0)?.port, pa);
    let stranger = udp()?;
    ok!(send_to(&stranger, b"spam", pa));
    ok!(send_to(&b, b"ham", pa));
    same!(recv_flags(&a, 9, 0)?, b"ham");
    fails!(EAGAIN, try_recv(&a, MSG_DONTWAIT));
    // Another address may still be given.
    ok!(send_to(&a, b"self", pa));
    Ok(())
}

fn connected_names() -> Outcome {
    let (_, _, _b, pb) = udp_pair()?;
    let c = udp()?;
    let mut addr = v4([0; 4], 0);
    let mut len = 16;
    fails!(ENOTCONN, getpeername(c.as_raw_fd(), (&raw mut addr).cast(), &raw mut len));
    ok!(connect4(&c, LOCALHOST, pb));
    let (_, ip, port) = name_of(&c, false)?;
    same!((&ip[..4], port >= 32768), (&LOCALHOST[..], true));
    same!(name_of(&c, true)?.2, pb);
    Ok(())
}

fn connect_to_another_peer() -> Outcome {
    let (a, pa, b, pb) = udp_pair()?;
    let c = udp()?;
    ok!(connect4(&c, LOCALHOST, pa));
    ok!(connect4(&c, LOCALHOST, pb));
    fd_write(&c, b"to b")?;
    same!(recv_flags(&b, 9, 0)?, b"to b");
    fails!(EAGAIN, try_recv(&a, MSG_DONTWAIT));
    Ok(())
}

fn disconnect_by_unspec() -> Outcome {
    let (_, _, b, pb) = udp_pair()?;
    let c = udp()?;
    ok!(connect4(&c, LOCALHOST, pb));
    let none = sockaddr { sa_family: AF_UNSPEC as u16, sa_data: [0; 14] };
    ok!(connect(c.as_raw_fd(), &raw const none, 16));
    fails!(EDESTADDRREQ, send_flags(&c, b"x", 0));
    same!(name_of(&c, false)?.1, [0; 16]);
    ok!(send_to(&c, b"y", pb));
    same!(recv_flags(&b, 9, 0)?, b"y");
    Ok(())
}

fn dead_port() -> Result<u16, String> {
    let s = udp()?;
    ok!(bind4(&s, LOCALHOST, 0));
    port_of(&s)
}

fn refused_is_told_to_the_connected() -> Outcome {
    let port = dead_port()?;
    let c = udp()?;
    ok!(connect4(&c, LOCALHOST, port));
    same!(ok!(send_flags(&c, b"x", 0)), 1);
    same!(poll_for(c.as_raw_fd(), POLLIN, 1000)? & POLLERR, POLLERR);
    fails!(ECONNREFUSED, try_recv(&c, 0));
    ok!(send_flags(&c, b"x", 0));
    sys::sleep_ms(5);
    fails!(ECONNREFUSED, send_flags(&c, b"x", 0));
    ok!(send_flags(&c, b"x", 0));
    sys::sleep_ms(5);
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, ECONNREFUSED);
    fails!(EAGAIN, try_recv(&c, MSG_DONTWAIT));
    Ok(())
}

fn refused_is_not_told_to_others() -> Outcome {
    let port = dead_port()?;
    let c = udp()?;
    ok!(send_to(&c, b"x", port));
    sys::sleep_ms(5);
    ok!(send_to(&c, b"x", port));
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, 0);
    fails!(EAGAIN, try_recv(&c, MSG_DONTWAIT));
    Ok(())
}

fn error_queue_of_recverr() -> Outcome {
    let port = dead_port()?;
    let c = udp()?;
    ok!(set_int(&c, IPPROTO_IP, IP_RECVERR, 1));
    fails!(EAGAIN, try_recv(&c, MSG_ERRQUEUE));
    ok!(send_to(&c, b"lost", port));
    sys::sleep_ms(5);
    same!(poll_now(c.as_raw_fd(), POLLIN)? & POLLERR, POLLERR);
    let m = recv_message(&c, 99, MSG_ERRQUEUE)?;
    same!((m.data.as_slice(), m.flags, m.port), (&b"lost"[..], MSG_ERRQUEUE, port));
    let (level, kind, data) = &m.control[0];
    same!((*level, *kind, data.len()), (IPPROTO_IP, IP_RECVERR, 32));
    same!(data[..8], [ECONNREFUSED as u8, 0, 0, 0, 2, 3, 3, 0]);
    same!(data[20..24], LOCALHOST);
    fails!(EAGAIN, try_recv(&c, MSG_ERRQUEUE));
    Ok(())
}

fn peek_and_dontwait() -> Outcome {
    let (a, pa, b, pb) = udp_pair()?;
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    nonblock(&b)?;
    fails!(EAGAIN, try_recv(&b, 0));
    ok!(send_to(&a, b"look", pb));
    let m = recv_message(&b, 2, MSG_PEEK)?;
    same!((m.data.as_slice(), m.flags, m.port), (&b"lo"[..], MSG_TRUNC, pa));
    same!(recv_flags(&b, 9, 0)?, b"look");
    Ok(())
}

fn peek_offset() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(set_int(&b, SOL_SOCKET, SO_PEEK_OFF, 0));
    ok!(send_to(&a, b"abcdef", pb));
    same!(recv_flags(&b, 2, MSG_PEEK)?, b"ab");
    same!(recv_flags(&b, 2, MSG_PEEK)?, b"cd");
    same!(recv_flags(&b, 9, 0)?, b"abcdef");
    Ok(())
}

fn poll_states() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    same!(poll_now(b.as_raw_fd(), ALL)?, POLLOUT);
    ok!(send_to(&a, b"x", pb));
    same!(poll_for(b.as_raw_fd(), POLLIN, 1000)?, POLLIN);
    same!(poll_now(b.as_raw_fd(), ALL)?, POLLIN | POLLOUT);
    let fresh = udp()?;
    same!(poll_now(fresh.as_raw_fd(), ALL)?, POLLOUT);
    Ok(())
}

fn address_in_use() -> Outcome {
    let a = udp()?;
    ok!(bind4(&a, LOCALHOST, 0));
    let port = port_of(&a)?;
    let b = udp()?;
    fails!(EADDRINUSE, bind4(&b, LOCALHOST, port));
    fails!(EADDRINUSE, bind4(&b, [0; 4], port));
    ok!(bind4(&b, [127, 0, 0, 9], port));
    fails!(EADDRNOTAVAIL, bind4(&udp()?, [192, 0, 2, 7], 0));
    Ok(())
}

fn reuse_address_last_wins() -> Outcome {
    let (a, b, c) = (udp()?, udp()?, udp()?);
    for s in [&a, &b] {
        ok!(set_int(s, SOL_SOCKET, SO_REUSEADDR, 1));
    }
    ok!(bind4(&a, LOCALHOST, 0));
    let port = port_of(&a)?;
    ok!(bind4(&b, LOCALHOST, port));
    ok!(send_to(&c, b"x", port));
    sys::sleep_ms(5);
    same!(recv_flags(&b, 9, MSG_DONTWAIT)?, b"x");
    fails!(EAGAIN, try_recv(&a, MSG_DONTWAIT));
    Ok(())
}

fn reuse_port_spreads() -> Outcome {
    let socks = [udp()?, udp()?];
    for s in &socks {
        ok!(set_int(s, SOL_SOCKET, SO_REUSEPORT, 1));
    }
    ok!(bind4(&socks[0], LOCALHOST, 0));
    let port = port_of(&socks[0])?;
    ok!(bind4(&socks[1], LOCALHOST, port));
    for _ in 0..40 {
        ok!(send_to(&udp()?, b"x", port));
    }
    sys::sleep_ms(5);
    let mut counts = [0; 2];
    for (i, s) in socks.iter().enumerate() {
        while try_recv(s, MSG_DONTWAIT) == 1 {
            counts[i] += 1;
        }
    }
    same!(counts[0] + counts[1], 40);
    want!(counts[0] > 0 && counts[1] > 0, "all went to one: {counts:?}");
    Ok(())
}

fn broadcast_needs_an_option() -> Outcome {
    let s = udp()?;
    let to = v4([127, 255, 255, 255], 9);
    let at: *const sockaddr = (&raw const to).cast();
    fails!(EACCES, sendto(s.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, at, 16));
    fails!(EACCES, connect(s.as_raw_fd(), at, 16));
    ok!(set_int(&s, SOL_SOCKET, SO_BROADCAST, 1));
    ok!(sendto(s.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, at, 16));
    Ok(())
}

fn packet_info() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(set_int(&b, IPPROTO_IP, IP_PKTINFO, 1));
    ok!(send_to(&a, b"x", pb));
    let m = recv_message(&b, 9, 0)?;
    let mut want = vec![1, 0, 0, 0];
    want.extend_from_slice(&LOCALHOST);
    want.extend_from_slice(&LOCALHOST);
    same!(m.control, [(IPPROTO_IP, IP_PKTINFO, want)]);
    Ok(())
}

fn ttl_and_tos() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(set_int(&b, IPPROTO_IP, IP_RECVTTL, 1));
    ok!(set_int(&b, IPPROTO_IP, IP_RECVTOS, 1));
    ok!(set_int(&a, IPPROTO_IP, IP_TTL, 7));
    ok!(set_int(&a, IPPROTO_IP, IP_TOS, 0x10));
    ok!(send_to(&a, b"x", pb));
    let m = recv_message(&b, 9, 0)?;
    same!(m.control, [(IPPROTO_IP, IP_TTL, vec![7, 0, 0, 0]), (IPPROTO_IP, IP_TOS, vec![0x10])]);
    fails!(EINVAL, set_int(&a, IPPROTO_IP, IP_TTL, 0));
    fails!(EINVAL, set_int(&a, IPPROTO_IP, IP_TTL, 256));
    ok!(set_int(&a, IPPROTO_IP, IP_TTL, -1));
    same!(get_int(&a, IPPROTO_IP, IP_TTL)?, 64);
    Ok(())
}

fn time_stamps() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(set_int(&b, SOL_SOCKET, SO_TIMESTAMP, 1));
    ok!(send_to(&a, b"x", pb));
    let m = recv_message(&b, 9, 0)?;
    same!((m.control.len(), m.control[0].0, m.control[0].1), (1, SOL_SOCKET, SO_TIMESTAMP));
    let sec = i64::from_ne_bytes(m.control[0].2[..8].try_into().map_err(|_| "short")?);
    let now = ok!(time(null_mut()));
    want!((sec - now).abs() <= 2, "stamped {sec}, now {now}");
    ok!(set_int(&b, SOL_SOCKET, SO_TIMESTAMPNS, 1));
    ok!(send_to(&a, b"x", pb));
    same!(recv_message(&b, 9, 0)?.control[0].1, SO_TIMESTAMPNS);
    Ok(())
}

fn shutdown_of_datagrams() -> Outcome {
    let s = udp()?;
    fails!(ENOTCONN, shutdown(s.as_raw_fd(), SHUT_WR));
    let (a, _, b, pb) = udp_pair()?;
    ok!(connect4(&a, LOCALHOST, pb));
    ok!(shutdown(a.as_raw_fd(), SHUT_WR));
    fails!(EPIPE, send_flags(&a, b"x", 0));
    ok!(shutdown(a.as_raw_fd(), SHUT_RD));
    same!(ok!(try_recv(&a, 0)), 0);
    fails!(EAGAIN, try_recv(&a, MSG_DONTWAIT));
    same!(poll_now(a.as_raw_fd(), ALL)?, POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    drop(b);
    Ok(())
}

fn full_receiver_drops() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(set_int(&b, SOL_SOCKET, SO_RCVBUF, 4096));
    for _ in 0..200 {
        same!(ok!(send_to(&a, &[7; 512], pb)), 512);
    }
    sys::sleep_ms(5);
    let mut n = 0;
    while try_recv(&b, MSG_DONTWAIT) > 0 {
        n += 1;
    }
    want!((2..100).contains(&n), "{n} datagrams fit into 8 KiB");
    Ok(())
}

fn listen_and_accept_are_not_supported() -> Outcome {
    let s = udp()?;
    fails!(EOPNOTSUPP, listen(s.as_raw_fd(), 1));
    fails!(EOPNOTSUPP, accept(s.as_raw_fd(), null_mut(), null_mut()));
    same!(get_int(&s, SOL_SOCKET, SO_ACCEPTCONN)?, 0);
    same!(get_int(&s, SOL_SOCKET, SO_TYPE)?, SOCK_DGRAM);
    same!(get_int(&s, SOL_SOCKET, SO_PROTOCOL)?, IPPROTO_UDP);
    same!(get_int(&s, SOL_SOCKET, SO_DOMAIN)?, AF_INET);
    Ok(())
}

fn next_length_by_ioctl() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(send_to(&a, b"12345", pb));
    ok!(send_to(&a, b"123", pb));
    sys::sleep_ms(5);
    let mut n = 0i32;
    ok!(ioctl(b.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 5);
    recv_flags(&b, 9, 0)?;
    ok!(ioctl(b.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 3);
    Ok(())
}

fn receive_timeout() -> Outcome {
    let (_a, _, b, _) = udp_pair()?;
    let t = timeval { tv_sec: 0, tv_usec: 20_000 };
    ok!(setsockopt(b.as_raw_fd(), SOL_SOCKET, SO_RCVTIMEO, (&raw const t).cast(), 16));
    let started = std::time::Instant::now();
    fails!(EAGAIN, try_recv(&b, 0));
    want!(started.elapsed().as_millis() >= 15, "after {:?}", started.elapsed());
    Ok(())
}

fn v6_bound(ip: [u8; 16]) -> Result<(OwnedFd, u16), String> {
    let s = sock(AF_INET6, SOCK_DGRAM)?;
    if bind6(&s, ip, 0) != 0 {
        skip!("no IPv6 loopback here");
    }
    let port = port_of(&s)?;
    Ok((s, port))
}

fn send_to6(s: &OwnedFd, data: &[u8], ip: [u8; 16], port: u16) -> isize {
    let a = v6(ip, port);
    unsafe { sendto(s.as_raw_fd(), data.as_ptr().cast(), data.len(), 0, (&raw const a).cast(), 28) }
}

fn v6_datagrams() -> Outcome {
    let (a, pa) = v6_bound(LO6)?;
    let (b, pb) = v6_bound(LO6)?;
    ok!(send_to6(&a, b"six", LO6, pb));
    let m = recv_message(&b, 9, 0)?;
    same!((m.data.as_slice(), m.port, m.name_len), (&b"six"[..], pa, 28));
    ok!(send_to6(&a, b"any", ANY6, pb));
    same!(recv_flags(&b, 9, 0)?, b"any");
    Ok(())
}

fn v6_packet_info() -> Outcome {
    let (a, _) = v6_bound(LO6)?;
    let (b, pb) = v6_bound(LO6)?;
    ok!(set_int(&b, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1));
    ok!(set_int(&b, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1));
    ok!(send_to6(&a, b"x", LO6, pb));
    let m = recv_message(&b, 9, 0)?;
    let mut info = LO6.to_vec();
    info.extend_from_slice(&[1, 0, 0, 0]);
    let hops = vec![64, 0, 0, 0];
    same!(m.control, [(IPPROTO_IPV6, IPV6_PKTINFO, info), (IPPROTO_IPV6, IPV6_HOPLIMIT, hops)]);
    Ok(())
}

fn v6_hops_and_class_of_one_datagram() -> Outcome {
    let (a, _) = v6_bound(LO6)?;
    let (b, pb) = v6_bound(LO6)?;
    ok!(set_int(&b, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1));
    ok!(set_int(&b, IPPROTO_IPV6, IPV6_RECVTCLASS, 1));
    let to = v6(LO6, pb);
    let send = |values: &[(i32, i32)], len: usize| {
        let mut control = Vec::new();
        for (kind, value) in values {
            control.extend((16 + len).to_ne_bytes());
            control.extend([IPPROTO_IPV6.to_ne_bytes(), kind.to_ne_bytes(), value.to_ne_bytes()].concat());
            control.resize(control.len().next_multiple_of(8), 0);
        }
        let mut iov = iovec { iov_base: c"m".as_ptr().cast_mut().cast(), iov_len: 1 };
        let mut msg: msghdr = unsafe { std::mem::zeroed() };
        msg.msg_name = (&raw const to).cast_mut().cast();
        msg.msg_namelen = size_of_val(&to) as u32;
        (msg.msg_iov, msg.msg_iovlen) = (&raw mut iov, 1);
        (msg.msg_control, msg.msg_controllen) = (control.as_mut_ptr().cast(), control.len());
        unsafe { sendmsg(a.as_raw_fd(), &raw const msg, 0) }
    };
    ok!(send(&[(IPV6_HOPLIMIT, 7), (IPV6_TCLASS, 0x20)], 4));
    ok!(send(&[(IPV6_HOPLIMIT, -1), (IPV6_TCLASS, -1)], 4));
    for (hops, class) in [(7, 0x20), (64, 255)] {
        let m = recv_message(&b, 9, 0)?;
        let value = |n: u8| vec![n, 0, 0, 0];
        same!(
            m.control,
            [(IPPROTO_IPV6, IPV6_HOPLIMIT, value(hops)), (IPPROTO_IPV6, IPV6_TCLASS, value(class))]
        );
    }
    fails!(EINVAL, send(&[(IPV6_HOPLIMIT, 256)], 4));
    fails!(EINVAL, send(&[(IPV6_TCLASS, -2)], 4));
    fails!(EINVAL, send(&[(IPV6_TCLASS, 1)], 5));
    Ok(())
}

fn v6_takes_v4() -> Outcome {
    let s = sock(AF_INET6, SOCK_DGRAM)?;
    ok!(bind6(&s, ANY6, 0));
    let port = port_of(&s)?;
    let c = udp()?;
    ok!(send_to(&c, b"four", port));
    let m = recv_message(&s, 9, 0)?;
    same!((m.data.as_slice(), m.name_len, m.port), (&b"four"[..], 28, port_of(&c)?));
    Ok(())
}

fn v6_sends_to_v4_address() -> Outcome {
    let (_, _, b, pb) = udp_pair()?;
    let s = sock(AF_INET6, SOCK_DGRAM)?;
    ok!(send_to6(&s, b"mapped", MAPPED_LO, pb));
    same!(recv_flags(&b, 9, 0)?, b"mapped");
    ok!(send_to(&s, b"plain", pb));
    same!(recv_flags(&b, 9, 0)?, b"plain");
    ok!(connect4(&s, LOCALHOST, pb));
    same!(name_of(&s, true)?, (AF_INET6, MAPPED_LO, pb));
    same!(name_of(&s, false)?.1, MAPPED_LO);
    Ok(())
}

fn mmsg_calls() -> Outcome {
    let (a, pa, b, pb) = udp_pair()?;
    ok!(connect4(&a, LOCALHOST, pb));
    let mut out = [
        iovec { iov_base: b"one".as_ptr() as *mut _, iov_len: 3 },
        iovec { iov_base: b"three".as_ptr() as *mut _, iov_len: 5 },
    ];
    let mut msgs: [mmsghdr; 2] = unsafe { std::mem::zeroed() };
    for (m, iov) in msgs.iter_mut().zip(&mut out) {
        m.msg_hdr.msg_iov = iov;
        m.msg_hdr.msg_iovlen = 1;
    }
    same!(ok!(sendmmsg(a.as_raw_fd(), msgs.as_mut_ptr(), 2, 0)), 2);
    let mut bufs = [[0u8; 8]; 3];
    let mut names = [v4([0; 4], 0); 3];
    let mut msgs: [mmsghdr; 3] = unsafe { std::mem::zeroed() };
    let mut iovs: Vec<iovec> =
        bufs.iter_mut().map(|b| iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 8 }).collect();
    for ((m, iov), name) in msgs.iter_mut().zip(&mut iovs).zip(&mut names) {
        m.msg_hdr.msg_iov = iov;
        m.msg_hdr.msg_iovlen = 1;
        m.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
        m.msg_hdr.msg_namelen = 16;
    }
    same!(ok!(recvmmsg(b.as_raw_fd(), msgs.as_mut_ptr(), 3, MSG_DONTWAIT, null_mut())), 2);
    same!((msgs[0].msg_len, msgs[1].msg_len), (3, 5));
    same!((&bufs[0][..3], &bufs[1][..5]), (&b"one"[..], &b"three"[..]));
    same!(u16::from_be(names[1].sin_port), pa);
    Ok(())
}

fn waitforone() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(send_to(&a, b"only", pb));
    let mut buf = [0u8; 8];
    let mut iov = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: 8 };
    let mut msgs: [mmsghdr; 2] = unsafe { std::mem::zeroed() };
    for m in &mut msgs {
        m.msg_hdr.msg_iov = &raw mut iov;
        m.msg_hdr.msg_iovlen = 1;
    }
    same!(ok!(recvmmsg(b.as_raw_fd(), msgs.as_mut_ptr(), 2, MSG_WAITFORONE, null_mut())), 1);
    Ok(())
}

fn cork_gathers_one_datagram() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(connect4(&a, LOCALHOST, pb));
    same!(ok!(send_flags(&a, b"head ", MSG_MORE)), 5);
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    same!(ok!(send_flags(&a, b"body", 0)), 4);
    same!(recv_flags(&b, 99, 0)?, b"head body");
    ok!(set_int(&a, IPPROTO_UDP, UDP_CORK, 1));
    ok!(send_flags(&a, b"x", 0));
    ok!(send_flags(&a, b"y", 0));
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    ok!(set_int(&a, IPPROTO_UDP, UDP_CORK, 0));
    same!(recv_flags(&b, 99, 0)?, b"xy");
    Ok(())
}

fn segment_splits() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(set_int(&a, IPPROTO_UDP, UDP_SEGMENT, 4));
    ok!(send_to(&a, b"abcdefghij", pb));
    for want in [&b"abcd"[..], b"efgh", b"ij"] {
        same!(recv_flags(&b, 99, 0)?, want);
    }
    Ok(())
}

fn epoll_edges_per_datagram() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    let ep = sys::own(ok!(epoll_create1(EPOLL_CLOEXEC)));
    let mut ev = epoll_event { events: EPOLLIN as u32 | EPOLLET as u32, u64: 0 };
    ok!(epoll_ctl(ep.as_raw_fd(), EPOLL_CTL_ADD, b.as_raw_fd(), &raw mut ev));
    let mut out = [epoll_event { events: 0, u64: 0 }; 2];
    for _ in 0..2 {
        ok!(send_to(&a, b"x", pb));
        same!(ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 2, 1000)), 1);
        same!(ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 2, 0)), 0);
    }
    Ok(())
}

fn blocked_receiver_wakes() -> Outcome {
    let (a, pa, b, pb) = udp_pair()?;
    let kid = sys::fork(|| {
        same!(recv_flags(&b, 9, 0)?, b"wake");
        ok!(send_to(&b, b"up", pa));
        Ok(())
    })?;
    sys::sleep_ms(30);
    ok!(send_to(&a, b"wake", pb));
    same!(recv_flags(&a, 9, 0)?, b"up");
    kid.ok()
}

fn multicast_membership() -> Outcome {
    let s = udp()?;
    let group = ip_mreq {
        imr_multiaddr: in_addr { s_addr: u32::from_ne_bytes([239, 1, 2, 3]) },
        imr_interface: in_addr { s_addr: u32::from_ne_bytes(LOCALHOST) },
    };
    let at: *const c_void = (&raw const group).cast();
    let fd = s.as_raw_fd();
    fails!(EINVAL, setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, at, 4));
    ok!(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, at, 8));
    fails!(EADDRINUSE, setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, at, 8));
    ok!(setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, at, 8));
    fails!(EADDRNOTAVAIL, setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, at, 8));
    same!(get_int(&s, IPPROTO_IP, IP_MULTICAST_TTL)?, 1);
    same!(get_int(&s, IPPROTO_IP, IP_MULTICAST_LOOP)?, 1);
    ok!(set_int(&s, IPPROTO_IP, IP_MULTICAST_TTL, 4));
    same!(get_int(&s, IPPROTO_IP, IP_MULTICAST_TTL)?, 4);
    Ok(())
}

fn receive_buffer_sizes() -> Outcome {
    let s = udp()?;
    for name in [SO_SNDBUF, SO_RCVBUF] {
        ok!(set_int(&s, SOL_SOCKET, name, 10_000));
        same!(get_int(&s, SOL_SOCKET, name)?, 20_000);
    }
    ok!(set_int(&s, SOL_SOCKET, SO_RCVBUF, 1));
    same!(get_int(&s, SOL_SOCKET, SO_RCVBUF)?, 2304);
    ok!(set_int(&s, SOL_SOCKET, SO_SNDBUF, 1));
    same!(get_int(&s, SOL_SOCKET, SO_SNDBUF)?, 4608);
    Ok(())
}

fn control_is_cut() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(set_int(&b, IPPROTO_IP, IP_PKTINFO, 1));
    ok!(send_to(&a, b"x", pb));
    let mut data = [0u8; 4];
    let mut iov = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 4 };
    let mut hdr: msghdr = unsafe { std::mem::zeroed() };
    hdr.msg_iov = &raw mut iov;
    hdr.msg_iovlen = 1;
    same!(ok!(recvmsg(b.as_raw_fd(), &raw mut hdr, 0)), 1);
    same!(hdr.msg_flags & MSG_CTRUNC, MSG_CTRUNC);
    Ok(())
}

fn read_and_write() -> Outcome {
    let (a, pa, b, pb) = udp_pair()?;
    ok!(connect4(&a, LOCALHOST, pb));
    ok!(connect4(&b, LOCALHOST, pa));
    fd_write(&a, b"write")?;
    same!(fd_read(&b, 99)?, b"write");
    same!(ok!(write(b.as_raw_fd(), b"".as_ptr().cast(), 0)), 0);
    same!(fd_read(&a, 99)?, b"");
    Ok(())
}

fn scatter_and_gather() -> Outcome {
    let (a, _, b, pb) = udp_pair()?;
    ok!(connect4(&a, LOCALHOST, pb));
    let parts = [
        iovec { iov_base: b"abc".as_ptr() as *mut _, iov_len: 3 },
        iovec { iov_base: b"defgh".as_ptr() as *mut _, iov_len: 5 },
    ];
    same!(ok!(writev(a.as_raw_fd(), parts.as_ptr(), 2)), 8);
    let (mut x, mut y) = ([0u8; 5], [0u8; 5]);
    let into = [
        iovec { iov_base: x.as_mut_ptr().cast(), iov_len: 5 },
        iovec { iov_base: y.as_mut_ptr().cast(), iov_len: 5 },
    ];
    same!(ok!(readv(b.as_raw_fd(), into.as_ptr(), 2)), 8);
    same!((&x, &y[..3]), (b"abcde", &b"fgh"[..]));
    Ok(())
}
