//! Raw and ping sockets over the loopback: raw(7), icmp(7). Most cases need the right to make raw sockets.

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::own;
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    echo_through_a_raw_socket,
    filter_keeps_types_out,
    raw_needs_a_protocol,
    raw_v6_has_no_header,
    connected_raw_socket,
    ping_socket_has_an_identifier,
    ping_socket_sends_echo_alone,
    other_protocols_are_seen_by_their_own,
];

fn raw(domain: i32, protocol: i32) -> Result<OwnedFd, String> {
    let fd = unsafe { socket(domain, SOCK_RAW | SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        skip!("no right to make raw sockets");
    }
    Ok(own(fd))
}

fn sum(message: &[u8]) -> u16 {
    let mut sum: u32 =
        message.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn echo(id: u16) -> Vec<u8> {
    let mut m = vec![8, 0, 0, 0];
    m.extend_from_slice(&id.to_be_bytes());
    m.extend_from_slice(b"\x00\x01payload!");
    let s = sum(&m);
    m[2..4].copy_from_slice(&s.to_be_bytes());
    m
}

/// An identifier of this process alone.
fn id() -> u16 {
    unsafe { getpid() as u16 }
}

/// Receives until a message of ours of ICMP type `kind` comes.
fn wait_for(s: &OwnedFd, kind: u8) -> Result<Vec<u8>, String> {
    for _ in 0..200 {
        let got = recv_flags(s, 2000, 0)?;
        if got.len() >= 28 && got[20] == kind && got[24..26] == id().to_be_bytes() {
            return Ok(got);
        }
    }
    Err(format!("no message of type {kind}"))
}

fn echo_through_a_raw_socket() -> Outcome {
    let s = raw(AF_INET, IPPROTO_ICMP)?;
    let m = echo(id());
    same!(ok!(send_to(&s, &m, 0)), m.len() as isize);
    let request = wait_for(&s, 8)?;
    same!((request[0], request[9], &request[12..16]), (0x45, 1, &LOCALHOST[..]));
    same!(request[20..], m);
    let reply = wait_for(&s, 0)?;
    same!(reply[24..], m[4..]);
    same!(sum(&reply[20..]), 0);
    same!(u16::from_be_bytes([reply[2], reply[3]]) as usize, reply.len());
    Ok(())
}

fn filter_keeps_types_out() -> Outcome {
    let s = raw(AF_INET, IPPROTO_ICMP)?;
    // All but echo replies.
    let filter = !1u32;
    ok!(setsockopt(s.as_raw_fd(), 255, 1, (&raw const filter).cast(), 4));
    // What another case has sent before the filter was there.
    while recv_flags(&s, 2000, MSG_DONTWAIT).is_ok() {}
    ok!(send_to(&s, &echo(id()), 0));
    let first = recv_flags(&s, 2000, 0)?;
    same!(first[20], 0);
    Ok(())
}

fn raw_needs_a_protocol() -> Outcome {
    fails!(EPROTONOSUPPORT, socket(AF_INET, SOCK_RAW, 0));
    let s = raw(AF_INET, IPPROTO_ICMP)?;
    fails!(EDESTADDRREQ, send_flags(&s, b"xxxxxxxx", 0));
    fails!(EOPNOTSUPP, listen(s.as_raw_fd(), 1));
    same!(get_int(&s, SOL_SOCKET, SO_TYPE)?, SOCK_RAW);
    same!(get_int(&s, SOL_SOCKET, SO_PROTOCOL)?, IPPROTO_ICMP);
    fails!(EAGAIN, try_recv(&raw(AF_INET, 253)?, MSG_DONTWAIT));
    Ok(())
}

fn raw_v6_has_no_header() -> Outcome {
    let s = raw(AF_INET6, IPPROTO_ICMPV6)?;
    let mut m = echo(id());
    m[0] = 128;
    let to = v6(LO6, 0);
    let n = unsafe { sendto(s.as_raw_fd(), m.as_ptr().cast(), m.len(), 0, (&raw const to).cast(), 28) };
    if n < 0 {
        skip!("no IPv6 loopback here");
    }
    for _ in 0..200 {
        let got = recv_flags(&s, 2000, 0)?;
        if got.len() == m.len() && got[0] == 129 && got[4..6] == id().to_be_bytes() {
            same!(got[4..], m[4..]);
            return Ok(());
        }
    }
    Err("no reply".into())
}

fn connected_raw_socket() -> Outcome {
    let s = raw(AF_INET, IPPROTO_ICMP)?;
    ok!(connect4(&s, LOCALHOST, 0));
    same!(&name_of(&s, false)?.1[..4], &LOCALHOST[..]);
    ok!(send_flags(&s, &echo(id()), 0));
    wait_for(&s, 0)?;
    Ok(())
}

fn ping() -> Result<OwnedFd, String> {
    let fd = unsafe { socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP) };
    if fd < 0 {
        skip!("ping sockets are not allowed here");
    }
    Ok(own(fd))
}

fn ping_socket_has_an_identifier() -> Outcome {
    let s = ping()?;
    ok!(send_to(&s, &echo(1), 0));
    let m = recv_message(&s, 100, 0)?;
    let port = port_of(&s)?;
    same!((m.data[0], m.port), (0, 0));
    same!(m.data[4..6], port.to_be_bytes());
    same!(sum(&m.data), 0);
    Ok(())
}

fn ping_socket_sends_echo_alone() -> Outcome {
    let s = ping()?;
    let mut m = echo(1);
    m[0] = 3;
    fails!(EINVAL, send_to(&s, &m, 0));
    fails!(EINVAL, send_to(&s, &echo(1)[..4], 0));
    Ok(())
}

fn other_protocols_are_seen_by_their_own() -> Outcome {
    let (a, b) = (raw(AF_INET, 253)?, raw(AF_INET, 254)?);
    ok!(send_to(&a, b"experiment", 0));
    let got = recv_flags(&a, 100, 0)?;
    same!((got[9], &got[20..]), (253, &b"experiment"[..]));
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    Ok(())
}
