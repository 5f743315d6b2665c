//! Helpers for Internet sockets: addresses on the loopback, pairs, options.

use crate::harness::Outcome;
use crate::sys::own;
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

pub const LOCALHOST: [u8; 4] = [127, 0, 0, 1];

pub fn v4(ip: [u8; 4], port: u16) -> sockaddr_in {
    sockaddr_in {
        sin_family: AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: in_addr { s_addr: u32::from_ne_bytes(ip) },
        sin_zero: [0; 8],
    }
}

pub fn v6(ip: [u8; 16], port: u16) -> sockaddr_in6 {
    sockaddr_in6 {
        sin6_family: AF_INET6 as u16,
        sin6_port: port.to_be(),
        sin6_flowinfo: 0,
        sin6_addr: in6_addr { s6_addr: ip },
        sin6_scope_id: 0,
    }
}

pub const ANY6: [u8; 16] = [0; 16];
pub const LO6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub const MAPPED_LO: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

pub fn sock(domain: i32, kind: i32) -> Result<OwnedFd, String> {
    Ok(own(ok!(socket(domain, kind | SOCK_CLOEXEC, 0))))
}

pub fn tcp() -> Result<OwnedFd, String> {
    sock(AF_INET, SOCK_STREAM)
}

pub fn udp() -> Result<OwnedFd, String> {
    sock(AF_INET, SOCK_DGRAM)
}

pub fn bind4(s: &OwnedFd, ip: [u8; 4], port: u16) -> i32 {
    let a = v4(ip, port);
    unsafe { bind(s.as_raw_fd(), (&raw const a).cast(), 16) }
}

pub fn bind6(s: &OwnedFd, ip: [u8; 16], port: u16) -> i32 {
    let a = v6(ip, port);
    unsafe { bind(s.as_raw_fd(), (&raw const a).cast(), 28) }
}

pub fn connect4(s: &OwnedFd, ip: [u8; 4], port: u16) -> i32 {
    let a = v4(ip, port);
    unsafe { connect(s.as_raw_fd(), (&raw const a).cast(), 16) }
}

pub fn connect6(s: &OwnedFd, ip: [u8; 16], port: u16) -> i32 {
    let a = v6(ip, port);
    unsafe { connect(s.as_raw_fd(), (&raw const a).cast(), 28) }
}

/// The local (or, with `peer`, the other) address: IPv4 as four bytes of the sixteen.
pub fn name_of(s: &OwnedFd, peer: bool) -> Result<(i32, [u8; 16], u16), String> {
    let mut a: sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut len = 28;
    if peer {
        ok!(getpeername(s.as_raw_fd(), (&raw mut a).cast(), &raw mut len));
    } else {
        ok!(getsockname(s.as_raw_fd(), (&raw mut a).cast(), &raw mut len));
    }
    if i32::from(a.sin6_family) == AF_INET6 {
        return Ok((AF_INET6, a.sin6_addr.s6_addr, u16::from_be(a.sin6_port)));
    }
    let mut ip = [0; 16];
    ip[..4].copy_from_slice(&a.sin6_flowinfo.to_ne_bytes());
    Ok((i32::from(a.sin6_family), ip, u16::from_be(a.sin6_port)))
}

pub fn port_of(s: &OwnedFd) -> Result<u16, String> {
    Ok(name_of(s, false)?.2)
}

/// A listener on 127.0.0.1 and its port.
pub fn server(backlog: i32) -> Result<(OwnedFd, u16), String> {
    let s = tcp()?;
    ok!(bind4(&s, LOCALHOST, 0));
    ok!(listen(s.as_raw_fd(), backlog));
    let port = port_of(&s)?;
    Ok((s, port))
}

pub fn accept_on(s: &OwnedFd) -> Result<OwnedFd, String> {
    Ok(own(ok!(accept4(s.as_raw_fd(), null_mut(), null_mut(), SOCK_CLOEXEC))))
}

/// A connection over the loopback: the end that connected, and the one that was accepted.
pub fn pair() -> Result<(OwnedFd, OwnedFd), String> {
    let (s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let a = accept_on(&s)?;
    Ok((c, a))
}

/// Two UDP sockets on 127.0.0.1 with their ports.
pub fn udp_pair() -> Result<(OwnedFd, u16, OwnedFd, u16), String> {
    let (a, b) = (udp()?, udp()?);
    ok!(bind4(&a, LOCALHOST, 0));
    ok!(bind4(&b, LOCALHOST, 0));
    let (pa, pb) = (port_of(&a)?, port_of(&b)?);
    Ok((a, pa, b, pb))
}

pub fn send_to(s: &OwnedFd, data: &[u8], port: u16) -> isize {
    let a = v4(LOCALHOST, port);
    unsafe { sendto(s.as_raw_fd(), data.as_ptr().cast(), data.len(), 0, (&raw const a).cast(), 16) }
}

pub fn send_flags(s: &OwnedFd, data: &[u8], flags: i32) -> isize {
    unsafe { send(s.as_raw_fd(), data.as_ptr().cast(), data.len(), flags | MSG_NOSIGNAL) }
}

pub fn recv_flags(s: &OwnedFd, max: usize, flags: i32) -> Result<Vec<u8>, String> {
    let mut buf = vec![0u8; max];
    let n = ok!(recv(s.as_raw_fd(), buf.as_mut_ptr().cast(), max, flags));
    buf.truncate(n as usize);
    Ok(buf)
}

/// `recv` for its errno alone.
pub fn try_recv(s: &OwnedFd, flags: i32) -> isize {
    let mut buf = [0u8; 64];
    unsafe { recv(s.as_raw_fd(), buf.as_mut_ptr().cast(), 64, flags) }
}

pub fn get_int(s: &OwnedFd, level: i32, name: i32) -> Result<i32, String> {
    let (mut value, mut len) = (0i32, 4u32);
    ok!(getsockopt(s.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len));
    Ok(value)
}

pub fn set_int(s: &OwnedFd, level: i32, name: i32, value: i32) -> i32 {
    unsafe { setsockopt(s.as_raw_fd(), level, name, (&raw const value).cast(), 4) }
}

pub fn try_get(s: &OwnedFd, level: i32, name: i32) -> i32 {
    let (mut value, mut len) = ([0u8; 64], 64u32);
    unsafe { getsockopt(s.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) }
}

/// What `poll` says at once.
pub fn poll_now(fd: RawFd, events: i16) -> Result<i16, String> {
    poll_for(fd, events, 0)
}

pub fn poll_for(fd: RawFd, events: i16, ms: i32) -> Result<i16, String> {
    let mut p = pollfd { fd, events, revents: 0 };
    ok!(poll(&raw mut p, 1, ms));
    Ok(p.revents)
}

/// All that `poll` can say.
pub const ALL: i16 = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;

/// Reads until the end of the stream.
pub fn drain(s: &OwnedFd) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    loop {
        let part = recv_flags(s, 65_536, 0)?;
        if part.is_empty() {
            return Ok(out);
        }
        out.extend_from_slice(&part);
    }
}

/// Sends all of `data`.
pub fn send_all(s: &OwnedFd, mut data: &[u8]) -> Outcome {
    while !data.is_empty() {
        let n = ok!(send(s.as_raw_fd(), data.as_ptr().cast(), data.len(), MSG_NOSIGNAL));
        data = &data[n as usize..];
    }
    Ok(())
}

/// Pseudo-random bytes that both ends can make.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut x = 12345u32;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(1_103_515_245).wrapping_add(12345);
            (x >> 16) as u8
        })
        .collect()
}

/// Adjacent control messages of a received message: level, type, data.
pub fn control_of(hdr: &msghdr) -> Vec<(i32, i32, Vec<u8>)> {
    let mut out = Vec::new();
    unsafe {
        let mut at = CMSG_FIRSTHDR(hdr);
        while !at.is_null() {
            let len = (*at).cmsg_len - CMSG_LEN(0) as usize;
            let data = std::slice::from_raw_parts(CMSG_DATA(at), len).to_vec();
            out.push(((*at).cmsg_level, (*at).cmsg_type, data));
            at = CMSG_NXTHDR(hdr, at);
        }
    }
    out
}

/// Receives one message with its control data and flags.
pub fn recv_message(s: &OwnedFd, max: usize, flags: i32) -> Result<Message, String> {
    let mut data = vec![0u8; max];
    let mut control = [0u64; 64];
    let mut name: sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut iov = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: max };
    let mut hdr: msghdr = unsafe { std::mem::zeroed() };
    hdr.msg_name = (&raw mut name).cast();
    hdr.msg_namelen = 28;
    hdr.msg_iov = &raw mut iov;
    hdr.msg_iovlen = 1;
    hdr.msg_control = control.as_mut_ptr().cast();
    hdr.msg_controllen = 512;
    let n = ok!(recvmsg(s.as_raw_fd(), &raw mut hdr, flags));
    data.truncate((n as usize).min(max));
    Ok(Message {
        data,
        n: n as usize,
        flags: hdr.msg_flags,
        control: control_of(&hdr),
        name_len: hdr.msg_namelen,
        port: u16::from_be(name.sin6_port),
    })
}

#[derive(Debug)]
pub struct Message {
    pub data: Vec<u8>,
    pub n: usize,
    pub flags: i32,
    pub control: Vec<(i32, i32, Vec<u8>)>,
    pub name_len: u32,
    pub port: u16,
}
