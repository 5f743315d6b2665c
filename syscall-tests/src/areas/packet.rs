//! Packet sockets on the loopback: packet(7). Most cases need the right to make raw sockets.

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::own;
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};

cases![
    a_frame_of_the_loopback_is_seen_twice,
    a_cooked_socket_sees_no_link_header,
    a_frame_that_is_sent_arrives,
    a_cooked_frame_that_is_sent_arrives,
    frames_of_127_are_seen_and_not_taken_in,
    a_filter_chooses_frames,
    filters_that_are_none,
    statistics_begin_anew_when_they_are_read,
    outgoing_frames_can_be_ignored,
    a_small_buffer_drops,
    names_of_packet_sockets,
    what_packet_sockets_do_not_do,
    sends_that_go_nowhere,
    memberships_are_counted,
    options_of_packet_sockets,
    auxiliary_data_tells_lengths,
    a_ring_is_filled,
    rings_of_no_shape,
];

const ETH_IP: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_ALL: u16 = 3;
const ADD_MEMBERSHIP: i32 = 1;
const DROP_MEMBERSHIP: i32 = 2;
const RX_RING: i32 = 5;
const STATISTICS: i32 = 6;
const AUXDATA: i32 = 8;
const VERSION: i32 = 10;
const HDRLEN: i32 = 11;
const RESERVE: i32 = 12;
const IGNORE_OUTGOING: i32 = 23;

fn packet(kind: i32, protocol: u16) -> Result<OwnedFd, String> {
    let fd = unsafe { socket(AF_PACKET, kind | SOCK_CLOEXEC, i32::from(protocol.to_be())) };
    if fd < 0 {
        skip!("no right to make packet sockets");
    }
    let s = own(fd);
    let wait = timeval { tv_sec: 20, tv_usec: 0 };
    ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_RCVTIMEO, (&raw const wait).cast(), 16));
    Ok(s)
}

fn at(interface: i32, protocol: u16) -> sockaddr_ll {
    let mut a: sockaddr_ll = unsafe { std::mem::zeroed() };
    a.sll_family = AF_PACKET as u16;
    a.sll_protocol = protocol.to_be();
    a.sll_ifindex = interface;
    a.sll_halen = 6;
    a
}

fn bind_to(s: &OwnedFd, interface: i32, protocol: u16) -> i32 {
    let a = at(interface, protocol);
    unsafe { bind(s.as_raw_fd(), (&raw const a).cast(), 20) }
}

/// A socket on the loopback that sees IPv4 datagrams to `port` alone.
fn watch(kind: i32, protocol: u16, port: u16) -> Result<OwnedFd, String> {
    let s = packet(kind, 0)?;
    attach(&s, &to_port(kind, port, u32::MAX))?;
    ok!(bind_to(&s, 1, protocol));
    Ok(s)
}

/// The program that gives `cut` bytes of what goes to a UDP port.
fn to_port(kind: i32, port: u16, cut: u32) -> Vec<sock_filter> {
    let link = if kind == SOCK_RAW { 14 } else { 0 };
    let one = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        one(0x30, 0, 0, link + 9),
        one(0x15, 0, 3, 17),
        one(0x28, 0, 0, link + 22),
        one(0x15, 0, 1, port.into()),
        one(0x06, 0, 0, cut),
        one(0x06, 0, 0, 0),
    ]
}

fn try_attach(s: &OwnedFd, program: &[sock_filter]) -> i32 {
    let given = sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    unsafe { setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_ATTACH_FILTER, (&raw const given).cast(), 16) }
}

fn attach(s: &OwnedFd, program: &[sock_filter]) -> Outcome {
    ok!(try_attach(s, program));
    Ok(())
}

/// A frame, its real length, and where it came from.
fn receive(s: &OwnedFd, max: usize) -> Result<(Vec<u8>, usize, sockaddr_ll), String> {
    let mut buf = vec![0u8; max];
    let (mut from, mut len) = (at(0, 0), 20u32);
    let got = ok!(recvfrom(
        s.as_raw_fd(),
        buf.as_mut_ptr().cast(),
        max,
        MSG_TRUNC,
        (&raw mut from).cast(),
        &raw mut len
    )) as usize;
    same!(len, 20);
    buf.truncate(got.min(max));
    Ok((buf, got, from))
}

fn a_frame_of_the_loopback_is_seen_twice() -> Outcome {
    let (a, pa, _b, pb) = udp_pair()?;
    let s = watch(SOCK_RAW, ETH_ALL, pb)?;
    ok!(send_to(&a, b"through the loopback", pb));
    for kind in [4, 0] {
        let (frame, len, from) = receive(&s, 2000)?;
        same!(len, 14 + 28 + 20);
        same!(frame[..14], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
        same!((frame[14], frame[23]), (0x45, 17));
        same!(frame[34..36], pa.to_be_bytes());
        same!(&frame[42..], b"through the loopback");
        same!((from.sll_family, from.sll_protocol), (AF_PACKET as u16, ETH_IP.to_be()));
        same!((from.sll_ifindex, from.sll_hatype), (1, 772));
        same!((from.sll_pkttype, from.sll_halen), (kind, 6));
    }
    fails!(EAGAIN, recv(s.as_raw_fd(), null_mut(), 0, MSG_DONTWAIT));
    Ok(())
}

fn a_cooked_socket_sees_no_link_header() -> Outcome {
    let (a, _, _b, pb) = udp_pair()?;
    let s = watch(SOCK_DGRAM, ETH_IP, pb)?;
    ok!(send_to(&a, b"cooked", pb));
    // A socket of one protocol sees what comes, not what goes.
    let (packet, len, from) = receive(&s, 24)?;
    same!((packet.len(), len, packet[0]), (24, 34, 0x45));
    same!(from.sll_pkttype, 0);
    fails!(EAGAIN, recv(s.as_raw_fd(), null_mut(), 0, MSG_DONTWAIT));
    Ok(())
}

fn total(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u32 =
        bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn udp_head(from: u16, to: u16, len: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat()
}

/// A datagram from 127.0.0.1 to itself, as a packet, without a sum.
fn datagram4(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let len = (28 + data.len()) as u16;
    let mut p = vec![0x45, 0];
    p.extend_from_slice(&len.to_be_bytes());
    p.extend_from_slice(&[0, 1, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    let sum = total(&[&p]);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p.extend_from_slice(&udp_head(from, to, len - 20));
    p.extend_from_slice(data);
    p
}

/// The same from ::1.
fn datagram6(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len()) as u16;
    let mut udp = udp_head(from, to, len);
    udp.extend_from_slice(data);
    let sum = total(&[&LO6, &LO6, &[0, 0], &len.to_be_bytes(), &[0, 0, 0, 17], &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut p = vec![0x60, 0, 0, 0];
    p.extend_from_slice(&len.to_be_bytes());
    p.extend_from_slice(&[17, 64]);
    p.extend_from_slice(&LO6);
    p.extend_from_slice(&LO6);
    p.extend_from_slice(&udp);
    p
}

/// UDP sockets at ::1, and their ports.
fn udp6_pair() -> Result<(OwnedFd, u16, OwnedFd, u16), String> {
    let (a, b) = (sock(AF_INET6, SOCK_DGRAM)?, sock(AF_INET6, SOCK_DGRAM)?);
    let wait = timeval { tv_sec: 20, tv_usec: 0 };
    for s in [&a, &b] {
        ok!(bind6(s, LO6, 0));
        ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_RCVTIMEO, (&raw const wait).cast(), 16));
    }
    let (pa, pb) = (port_of(&a)?, port_of(&b)?);
    Ok((a, pa, b, pb))
}

fn send_frame(s: &OwnedFd, frame: &[u8], to: Option<sockaddr_ll>) -> isize {
    let (to, len) = match &to {
        Some(to) => (std::ptr::from_ref(to).cast(), 20),
        None => (null(), 0),
    };
    unsafe { sendto(s.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, len) }
}

fn a_frame_that_is_sent_arrives() -> Outcome {
    let (_a, pa, b, pb) = udp6_pair()?;
    let sender = packet(SOCK_RAW, 0)?;
    let s = packet(SOCK_RAW, 0)?;
    let one = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let to_port6 = [
        one(0x28, 0, 0, 12),
        one(0x15, 0, 3, u32::from(ETH_IPV6)),
        one(0x28, 0, 0, 14 + 40 + 2),
        one(0x15, 0, 1, pb.into()),
        one(0x06, 0, 0, u32::MAX),
        one(0x06, 0, 0, 0),
    ];
    attach(&s, &to_port6)?;
    ok!(bind_to(&s, 1, ETH_ALL));
    let mut frame = vec![0; 12];
    frame.extend_from_slice(&ETH_IPV6.to_be_bytes());
    frame.extend_from_slice(&datagram6(pa, pb, b"by hand"));
    same!(ok!(send_frame(&sender, &frame, Some(at(1, ETH_IPV6)))), frame.len() as isize);
    same!(recv_flags(&b, 100, 0)?, b"by hand");
    for kind in [4, 0] {
        let (seen, _, from) = receive(&s, 2000)?;
        same!(seen, frame);
        same!(from.sll_pkttype, kind);
    }
    // What is for another station is seen and not taken in.
    frame[0] = 2;
    ok!(send_frame(&sender, &frame, Some(at(1, ETH_IPV6))));
    for kind in [4, 3] {
        same!(receive(&s, 2000)?.2.sll_pkttype, kind);
    }
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    Ok(())
}

fn a_cooked_frame_that_is_sent_arrives() -> Outcome {
    let (_a, pa, b, pb) = udp6_pair()?;
    let sender = packet(SOCK_DGRAM, 0)?;
    ok!(bind_to(&sender, 1, ETH_IPV6));
    let p = datagram6(pa, pb, b"cooked by hand");
    same!(ok!(send_frame(&sender, &p, Some(at(1, ETH_IPV6)))), p.len() as isize);
    same!(recv_flags(&b, 100, 0)?, b"cooked by hand");
    same!(ok!(send_frame(&sender, &p, None)), p.len() as isize);
    same!(recv_flags(&b, 100, 0)?, b"cooked by hand");
    Ok(())
}

fn frames_of_127_are_seen_and_not_taken_in() -> Outcome {
    let (_a, pa, b, pb) = udp_pair()?;
    let sender = packet(SOCK_DGRAM, 0)?;
    let s = watch(SOCK_RAW, ETH_ALL, pb)?;
    let p = datagram4(pa, pb, b"martian");
    same!(ok!(send_frame(&sender, &p, Some(at(1, ETH_IP)))), p.len() as isize);
    for kind in [4, 0] {
        let (seen, _, from) = receive(&s, 2000)?;
        same!(seen[14..], p);
        same!(from.sll_pkttype, kind);
    }
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    Ok(())
}

fn a_filter_chooses_frames() -> Outcome {
    let (a, _, _b, pb) = udp_pair()?;
    let s = packet(SOCK_RAW, 0)?;
    attach(&s, &to_port(SOCK_RAW, pb, 20))?;
    ok!(bind_to(&s, 1, ETH_IP));
    ok!(send_to(&a, b"other", pb.wrapping_add(1).max(1)));
    ok!(send_to(&a, b"cut", pb));
    let (frame, len, _) = receive(&s, 2000)?;
    same!((frame.len(), len), (20, 20));
    fails!(EINVAL, setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_DETACH_FILTER, null(), 0));
    ok!(set_int(&s, SOL_SOCKET, SO_DETACH_FILTER, 0));
    fails!(ENOENT, set_int(&s, SOL_SOCKET, SO_DETACH_FILTER, 0));
    Ok(())
}

fn filters_that_are_none() -> Outcome {
    let s = packet(SOCK_RAW, 0)?;
    let one = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    for bad in [
        vec![],
        vec![one(0, 0, 0, 1)],
        vec![one(5, 0, 0, 1), one(6, 0, 0, 0)],
        vec![one(0x15, 0, 1, 0), one(6, 0, 0, 0)],
        vec![one(0x34, 0, 0, 0), one(6, 0, 0, 0)],
        vec![one(2, 0, 0, 16), one(6, 0, 0, 0)],
        vec![one(0xff, 0, 0, 0), one(6, 0, 0, 0)],
    ] {
        fails!(EINVAL, try_attach(&s, &bad));
    }
    let given = sock_fprog { len: 1, filter: 8 as *mut sock_filter };
    let fd = s.as_raw_fd();
    fails!(EFAULT, setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, (&raw const given).cast(), 16));
    fails!(EINVAL, setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, (&raw const given).cast(), 8));
    Ok(())
}

fn statistics(s: &OwnedFd) -> Result<(u32, u32), String> {
    let (mut words, mut len) = ([0u32; 4], 16u32);
    ok!(getsockopt(s.as_raw_fd(), SOL_PACKET, STATISTICS, words.as_mut_ptr().cast(), &raw mut len));
    same!(len, 8);
    Ok((words[0], words[1]))
}

fn statistics_begin_anew_when_they_are_read() -> Outcome {
    let (a, _, _b, pb) = udp_pair()?;
    let s = watch(SOCK_RAW, ETH_IP, pb)?;
    for _ in 0..3 {
        ok!(send_to(&a, b"count", pb));
    }
    for _ in 0..3 {
        receive(&s, 100)?;
    }
    same!(statistics(&s)?, (3, 0));
    same!(statistics(&s)?, (0, 0));
    Ok(())
}

fn outgoing_frames_can_be_ignored() -> Outcome {
    let (a, _, _b, pb) = udp_pair()?;
    let s = watch(SOCK_RAW, ETH_ALL, pb)?;
    ok!(set_int(&s, SOL_PACKET, IGNORE_OUTGOING, 1));
    ok!(send_to(&a, b"once", pb));
    same!(receive(&s, 100)?.2.sll_pkttype, 0);
    fails!(EAGAIN, recv(s.as_raw_fd(), null_mut(), 0, MSG_DONTWAIT));
    Ok(())
}

fn a_small_buffer_drops() -> Outcome {
    let (a, _, _b, pb) = udp_pair()?;
    let s = watch(SOCK_RAW, ETH_IP, pb)?;
    ok!(set_int(&s, SOL_SOCKET, SO_RCVBUF, 4096));
    for _ in 0..100 {
        ok!(send_to(&a, &[7; 500], pb));
    }
    let (all, dropped) = statistics(&s)?;
    same!(all, 100);
    want!(dropped > 80 && dropped < 100, "{dropped} dropped");
    for _ in 0..all - dropped {
        receive(&s, 100)?;
    }
    fails!(EAGAIN, recv(s.as_raw_fd(), null_mut(), 0, MSG_DONTWAIT));
    Ok(())
}

fn names_of_packet_sockets() -> Outcome {
    let s = packet(SOCK_RAW, 0)?;
    let name = || -> Result<(sockaddr_ll, u32), String> {
        let (mut a, mut len) = (at(0, 0), 20u32);
        ok!(getsockname(s.as_raw_fd(), (&raw mut a).cast(), &raw mut len));
        Ok((a, len))
    };
    let (a, len) = name()?;
    same!((len, a.sll_family, a.sll_ifindex, a.sll_halen), (12, AF_PACKET as u16, 0, 0));
    ok!(bind_to(&s, 1, ETH_IP));
    let (a, len) = name()?;
    same!((len, a.sll_protocol, a.sll_ifindex), (18, ETH_IP.to_be(), 1));
    same!((a.sll_hatype, a.sll_halen), (772, 6));
    fails!(ENODEV, bind_to(&s, 99_999, ETH_IP));
    let bad = at(1, ETH_IP);
    fails!(EINVAL, bind(s.as_raw_fd(), (&raw const bad).cast(), 12));
    let mut bad = bad;
    bad.sll_family = AF_INET as u16;
    fails!(EINVAL, bind(s.as_raw_fd(), (&raw const bad).cast(), 20));
    Ok(())
}

fn what_packet_sockets_do_not_do() -> Outcome {
    let s = packet(SOCK_RAW, 0)?;
    let fd = s.as_raw_fd();
    let to = at(1, ETH_IP);
    fails!(EOPNOTSUPP, connect(fd, (&raw const to).cast(), 20));
    fails!(EOPNOTSUPP, listen(fd, 1));
    fails!(EOPNOTSUPP, shutdown(fd, SHUT_RDWR));
    let (mut a, mut len) = (at(0, 0), 20u32);
    fails!(EOPNOTSUPP, getpeername(fd, (&raw mut a).cast(), &raw mut len));
    fails!(EINVAL, recv(fd, null_mut(), 0, MSG_OOB | MSG_DONTWAIT));
    fails!(ESOCKTNOSUPPORT, socket(AF_PACKET, SOCK_STREAM, 0));
    fails!(
        ENODEV,
        mmap(null_mut(), 4096, PROT_READ, MAP_PRIVATE, own(ok!(epoll_create1(0))).as_raw_fd(), 0) as i64
    );
    fails!(EINVAL, mmap(null_mut(), 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) as i64);
    Ok(())
}

fn sends_that_go_nowhere() -> Outcome {
    let s = packet(SOCK_RAW, 0)?;
    fails!(ENXIO, send_frame(&s, &[0; 60], None));
    fails!(ENXIO, send_frame(&s, &[0; 60], Some(at(99_999, ETH_IP))));
    let to = at(1, ETH_IP);
    fails!(EINVAL, sendto(s.as_raw_fd(), [0u8; 60].as_ptr().cast(), 60, 0, (&raw const to).cast(), 12));
    fails!(EMSGSIZE, send_frame(&s, &vec![0; 70_000], Some(to)));
    Ok(())
}

fn memberships_are_counted() -> Outcome {
    let s = packet(SOCK_RAW, 0)?;
    let change = |name: i32, interface: i32, kind: u16| {
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&interface.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        unsafe { setsockopt(s.as_raw_fd(), SOL_PACKET, name, bytes.as_ptr().cast(), 16) }
    };
    ok!(change(ADD_MEMBERSHIP, 1, 1));
    ok!(change(ADD_MEMBERSHIP, 1, 2));
    ok!(change(DROP_MEMBERSHIP, 1, 1));
    fails!(ENODEV, change(ADD_MEMBERSHIP, 99_999, 1));
    fails!(EINVAL, setsockopt(s.as_raw_fd(), SOL_PACKET, ADD_MEMBERSHIP, [0u8; 8].as_ptr().cast(), 8));
    Ok(())
}

fn options_of_packet_sockets() -> Outcome {
    let s = packet(SOCK_DGRAM, ETH_IP)?;
    same!(get_int(&s, SOL_SOCKET, SO_TYPE)?, SOCK_DGRAM);
    same!(get_int(&s, SOL_SOCKET, SO_DOMAIN)?, AF_PACKET);
    same!(get_int(&s, SOL_SOCKET, SO_PROTOCOL)?, 0);
    same!(get_int(&s, SOL_SOCKET, SO_ERROR)?, 0);
    for name in [AUXDATA, IGNORE_OUTGOING] {
        same!(get_int(&s, SOL_PACKET, name)?, 0);
        ok!(set_int(&s, SOL_PACKET, name, 1));
        same!(get_int(&s, SOL_PACKET, name)?, 1);
    }
    same!(get_int(&s, SOL_PACKET, VERSION)?, 0);
    ok!(set_int(&s, SOL_PACKET, VERSION, 1));
    same!(get_int(&s, SOL_PACKET, VERSION)?, 1);
    fails!(EINVAL, set_int(&s, SOL_PACKET, VERSION, 77));
    ok!(set_int(&s, SOL_PACKET, RESERVE, 64));
    same!(get_int(&s, SOL_PACKET, RESERVE)?, 64);
    for (version, len) in [(0, 32), (1, 32)] {
        let (mut value, mut room) = (version, 4u32);
        ok!(getsockopt(s.as_raw_fd(), SOL_PACKET, HDRLEN, (&raw mut value).cast(), &raw mut room));
        same!(value, len);
    }
    let (mut value, mut room) = (77, 4u32);
    fails!(EINVAL, getsockopt(s.as_raw_fd(), SOL_PACKET, HDRLEN, (&raw mut value).cast(), &raw mut room));
    fails!(ENOPROTOOPT, set_int(&s, SOL_PACKET, 999, 1));
    fails!(ENOPROTOOPT, try_get(&s, SOL_PACKET, 999));
    fails!(ENOPROTOOPT, set_int(&s, IPPROTO_IP, IP_TTL, 9));
    Ok(())
}

fn auxiliary_data_tells_lengths() -> Outcome {
    let (a, _, _b, pb) = udp_pair()?;
    let s = packet(SOCK_RAW, 0)?;
    ok!(set_int(&s, SOL_PACKET, AUXDATA, 1));
    attach(&s, &to_port(SOCK_RAW, pb, 40))?;
    ok!(bind_to(&s, 1, ETH_IP));
    ok!(send_to(&a, b"with a tail", pb));
    let (mut data, mut control) = ([0u8; 100], [0u64; 16]);
    let mut iov = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 100 };
    let mut msg: msghdr = unsafe { std::mem::zeroed() };
    (msg.msg_iov, msg.msg_iovlen) = (&raw mut iov, 1);
    (msg.msg_control, msg.msg_controllen) = (control.as_mut_ptr().cast(), 128);
    same!(ok!(recvmsg(s.as_raw_fd(), &raw mut msg, 0)), 40);
    let first = unsafe { &*CMSG_FIRSTHDR(&raw const msg) };
    same!((first.cmsg_level, first.cmsg_type, first.cmsg_len), (SOL_PACKET, AUXDATA, 16 + 20));
    let word = |at: usize| (control[2 + at / 2] >> (32 * (at % 2))) as u32;
    // In use; the whole and the cut length; the link's header first, then the network's.
    same!((word(0) & 1, word(1), word(2), word(3)), (1, 53, 40, 14 << 16));
    Ok(())
}

fn ring(s: &OwnedFd, shape: [u32; 4]) -> i32 {
    unsafe { setsockopt(s.as_raw_fd(), SOL_PACKET, RX_RING, shape.as_ptr().cast(), 16) }
}

fn a_ring_is_filled() -> Outcome {
    let (a, _, _b, pb) = udp_pair()?;
    let s = packet(SOCK_RAW, 0)?;
    ok!(set_int(&s, SOL_PACKET, VERSION, 1));
    ok!(ring(&s, [8192, 1, 2048, 4]));
    let map = unsafe { mmap(null_mut(), 8192, PROT_READ | PROT_WRITE, MAP_SHARED, s.as_raw_fd(), 0) };
    want!(map != MAP_FAILED, "mmap failed");
    attach(&s, &to_port(SOCK_RAW, pb, u32::MAX))?;
    ok!(bind_to(&s, 1, ETH_IP));
    same!(poll_now(s.as_raw_fd(), POLLIN)?, 0);
    for n in 0..6_u8 {
        ok!(send_to(&a, &[b'a' + n; 10], pb));
    }
    same!(poll_for(s.as_raw_fd(), POLLIN, 20_000)?, POLLIN);
    let slot = |n: usize| unsafe { map.cast::<u8>().add(n * 2048) };
    let word = |n: usize, at: usize| unsafe { slot(n).add(at).cast::<u32>().read_volatile() };
    for n in 0..4 {
        same!((word(n, 0) & 1, word(n, 4), word(n, 8)), (1, 52, 52));
        let (mac, net) = (word(n, 12) & 0xffff, word(n, 12) >> 16);
        same!((mac, net), (66, 80));
        same!(unsafe { slot(n).add(66 + 42).read_volatile() }, b'a' + n as u8);
        // The address of the sender: family and protocol.
        same!(word(n, 32), u32::from(AF_PACKET as u16) | u32::from(ETH_IP.to_be()) << 16);
    }
    // Two found no room.
    same!(statistics(&s)?, (6, 2));
    fails!(EBUSY, ring(&s, [8192, 1, 2048, 4]));
    for n in 0..4 {
        unsafe { slot(n).cast::<u32>().write_volatile(0) };
    }
    ok!(send_to(&a, b"again", pb));
    same!(poll_for(s.as_raw_fd(), POLLIN, 20_000)?, POLLIN);
    same!((word(0, 0) & 1, word(0, 4)), (1, 47));
    ok!(munmap(map, 8192));
    Ok(())
}

fn rings_of_no_shape() -> Outcome {
    let s = packet(SOCK_RAW, 0)?;
    ok!(set_int(&s, SOL_PACKET, VERSION, 1));
    for bad in
        [[4095, 1, 2048, 2], [0, 1, 2048, 2], [4096, 1, 2048, 3], [4096, 1, 16, 256], [4096, 1, 2040, 2]]
    {
        fails!(EINVAL, ring(&s, bad));
    }
    fails!(EINVAL, ring(&s, [4096, 0, 2048, 2]));
    fails!(EINVAL, setsockopt(s.as_raw_fd(), SOL_PACKET, RX_RING, [0u8; 8].as_ptr().cast(), 8));
    ok!(ring(&s, [4096, 1, 2048, 2]));
    ok!(ring(&s, [0; 4]));
    ok!(ring(&s, [4096, 2, 1024, 8]));
    Ok(())
}
