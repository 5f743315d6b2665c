//! Datagrams: a host socket for each pair of a sandbox's port and a destination, until nothing has been said for a while.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netstack::frame::Frame;
use netstack::icmp;
use netstack::packet::{Header, UDP, pseudo_header};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// How long a pair is kept, in nanoseconds; a question to a name server needs less.
const KEPT: u64 = 60_000_000_000;
const KEPT_DNS: u64 = 15_000_000_000;

#[derive(Debug)]
pub(crate) struct Pair {
    socket: OwnedFd,
    pub guest: SocketAddr,
    pub to: SocketAddr,
    last: u64,
}

impl Pair {
    pub fn open(guest: SocketAddr, to: SocketAddr, now: u64) -> io::Result<Self> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        rustix::net::connect(&socket, &to)?;
        Ok(Self { socket, guest, to, last: now })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn send(&mut self, data: &[u8], now: u64) {
        self.last = now;
        // A datagram that the host does not take is lost, as any may be.
        let _ = rustix::io::write(&self.socket, data);
    }

    /// What has come, if anything has.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8], now: u64) -> Option<&'b [u8]> {
        let got = rustix::io::read(&self.socket, &mut *buffer).ok()?;
        self.last = now;
        buffer.get(..got)
    }

    /// When it is let go.
    pub fn until(&self) -> u64 {
        self.last + if self.to.port() == 53 { KEPT_DNS } else { KEPT }
    }

    /// A datagram for the sandbox, as frames.
    pub fn frames(&self, data: &[u8], id: u32) -> Vec<Frame> {
        let len = u16::try_from(data.len() + 8).unwrap_or(u16::MAX);
        let mut message = Vec::with_capacity(data.len() + 8);
        message.extend_from_slice(&self.to.port().to_be_bytes());
        message.extend_from_slice(&self.guest.port().to_be_bytes());
        message.extend_from_slice(&len.to_be_bytes());
        message.extend_from_slice(&[0, 0]);
        message.extend_from_slice(data);
        let (from, to) = (self.to.ip(), self.guest.ip());
        let sum = icmp::checksum(&[&pseudo_header(from, to, UDP, message.len()), &message]);
        if let Some(field) = message.get_mut(6..8) {
            field.copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
        }
        let header = Header { from, to, protocol: UDP, hops: 64, class: 0, id, dont_fragment: false };
        header.frames(&message, usize::from(crate::MTU)).unwrap_or_default()
    }
}
