//! Datagram sockets of a sandbox under a policy: the sandbox has one end of a pair of packet sockets, and each datagram is
//! looked at on its way.
//!
//! What cannot be passed on at once is dropped, as any datagram may be. What goes wrong with one is told in place of a
//! received one: a packet of the byte 0xff and an errno.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hostsys::sock;
use netstack::broker::{Datagram, MAX_DATAGRAM, error_packet};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::{Gate, errno};
use crate::policy::Protocol;

/// Datagrams of one relay before another one's turn.
const TURN: usize = 32;

#[derive(Debug)]
struct Relay {
    socket: OwnedFd,
    /// Our end.
    link: OwnedFd,
    /// What the sandbox' end is known by.
    inode: u64,
}

/// All of them, and the epoll instance that watches them.
#[derive(Debug)]
pub(super) struct Relays {
    poll: OwnedFd,
    last: u64,
    /// By number; the tokens of the epoll instance are twice that for the link, and one more for the socket.
    by_number: HashMap<u64, Relay>,
    by_inode: HashMap<u64, u64>,
    buffer: Vec<u8>,
}

fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

impl Relays {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            poll: epoll::create(CreateFlags::CLOEXEC)?,
            last: 0,
            by_number: HashMap::new(),
            by_inode: HashMap::new(),
            buffer: vec![0; MAX_DATAGRAM],
        })
    }

    pub fn poll(&self) -> &OwnedFd {
        &self.poll
    }

    /// Begins to relay for a socket; gives the sandbox' end.
    pub fn add(&mut self, socket: OwnedFd) -> io::Result<OwnedFd> {
        let (link, theirs) = sock::packet_pair()?;
        let inode = inode(theirs.as_fd())?;
        self.last += 1;
        let number = self.last;
        epoll::add(&self.poll, &link, EventData::new_u64(number * 2), EventFlags::IN)?;
        epoll::add(&self.poll, &socket, EventData::new_u64(number * 2 + 1), EventFlags::IN)?;
        self.by_inode.insert(inode, number);
        self.by_number.insert(number, Relay { socket, link, inode });
        Ok(theirs)
    }

    /// The socket behind the sandbox' end of a relay.
    pub fn socket_of(&self, theirs: BorrowedFd<'_>) -> Option<BorrowedFd<'_>> {
        let number = self.by_inode.get(&inode(theirs).ok()?)?;
        self.by_number.get(number).map(|relay| relay.socket.as_fd())
    }

    /// Passes on what has come on one side of a relay.
    pub fn turn(&mut self, token: u64, gate: &mut Gate) {
        let number = token / 2;
        let Some(relay) = self.by_number.get(&number) else { return };
        let open = if token.is_multiple_of(2) {
            relay.outward(&mut self.buffer, gate)
        } else {
            relay.inward(&mut self.buffer);
            true
        };
        if !open && let Some(relay) = self.by_number.remove(&number) {
            // Unless the number has a new owner already.
            if self.by_inode.get(&relay.inode) == Some(&number) {
                self.by_inode.remove(&relay.inode);
            }
        }
    }
}

impl Relay {
    /// False where the sandbox has closed its end.
    fn outward(&self, buffer: &mut [u8], gate: &mut Gate) -> bool {
        for _ in 0..TURN {
            let got = match sock::receive(self.link.as_fd(), buffer, libc::MSG_DONTWAIT) {
                Ok(got) if got.len > 0 => got.len,
                Ok(_) => return false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            };
            let Some(datagram) = Datagram::parse(buffer.get(..got).unwrap_or_default()) else { continue };
            let sent = self.pass(&datagram, gate);
            if let Err(errno) = sent
                && errno != libc::EAGAIN
            {
                let _ = sock::send(self.link.as_fd(), &error_packet(errno), &[], libc::MSG_DONTWAIT);
            }
        }
        true
    }

    fn pass(&self, datagram: &Datagram<'_>, gate: &mut Gate) -> Result<(), i32> {
        // Without an address it goes to the peer that a connect has passed already. One of no family is an IPv4 address
        // to an IPv4 socket, and none to an IPv6 one.
        let mut to = datagram.address.to_vec();
        if !to.is_empty() {
            if to.get(..2) == Some(&[0, 0]) {
                return Err(libc::EAFNOSUPPORT);
            }
            gate.check(Protocol::Udp, &to)?;
            to.truncate(28);
        }
        let flags = libc::MSG_DONTWAIT;
        let sent = sock::send_to(self.socket.as_fd(), datagram.data, &to, &[], flags);
        sent.map(drop).map_err(|error| errno(&error))
    }

    fn inward(&self, buffer: &mut [u8]) {
        for _ in 0..TURN {
            let packet = match sock::receive_from(self.socket.as_fd(), buffer, libc::MSG_DONTWAIT) {
                Ok(got) => {
                    let data = buffer.get(..got.len).unwrap_or_default();
                    Datagram { address: &got.from, data }.to_bytes()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => error_packet(errno(&error)).to_vec(),
            };
            let _ = sock::send(self.link.as_fd(), &packet, &[], libc::MSG_DONTWAIT);
        }
    }
}
