//! Packet and netlink sockets (`packet(7)`, `netlink(7)`), and network namespaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// `PACKET_VNET_HDR`, `PACKET_IGNORE_OUTGOING` (`linux/if_packet.h`).
const PACKET_VNET_HDR: i32 = 15;
const PACKET_IGNORE_OUTGOING: i32 = 23;

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers alone.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    check(fd.into())?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads the one int, which lives through the call.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    check(set.into()).map(drop)
}

/// A non-blocking packet socket on the interface `index` of the calling thread's network: reads what comes in, writes
/// frames, each behind a `struct virtio_net_hdr`. `buffer` is the bytes that may wait in either direction.
pub fn link_socket(index: u32, buffer: i32) -> io::Result<OwnedFd> {
    // Of no protocol until it is bound, so that no other interface's frames come.
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0)?;
    set_option(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    set_option(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
    // Beyond the host's limit where we may; else up to it.
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set_option(&fd, libc::SOL_SOCKET, force, buffer).is_err() {
            set_option(&fd, libc::SOL_SOCKET, plain, buffer)?;
        }
    }
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    at.sll_family = libc::AF_PACKET as u16;
    at.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    at.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the kernel reads the address, which lives through the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const at).cast(), len) }.into())?;
    Ok(fd)
}

/// A socket for route messages of the calling thread's network.
pub fn route_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
}

/// Puts the calling thread into a network namespace (`setns(2)`).
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes numbers alone.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }.into()).map(drop)
}
