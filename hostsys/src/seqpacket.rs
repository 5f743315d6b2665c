//! Messages with at most one descriptor over `SOCK_SEQPACKET` sockets (`unix(7)`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Two connected sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message, with a copy of `fd` where there is one. A peer that is gone gives `EPIPE`, without a signal.
pub fn send(socket: BorrowedFd<'_>, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(n) if n == message.len() => return Ok(()),
            Ok(_) => return Err(io::Error::other("a message was sent in part")),
        }
    }
}

/// Receives one message into `buf`; a length of 0 is the end of the connection.
///
/// With `take_fd` one descriptor may come along. Descriptors beyond that are closed and the message is an error, as is
/// one longer than `buf`.
pub fn recv(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    take_fd: bool,
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let room = if take_fd { space.len() } else { 0 };
    let mut control = RecvAncillaryBuffer::new(space.get_mut(..room).unwrap_or_default());
    let message = loop {
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buf)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(message) => break message,
        }
    };
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            fds.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || fds.len() > 1 {
        return Err(io::Error::other("a message carried more bytes or descriptors than allowed"));
    }
    Ok((message.bytes, fds.pop()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn one_descriptor_travels_where_it_is_wanted() {
        let (a, b) = pair().unwrap();
        let zero = File::open("/dev/zero").unwrap();
        let mut buf = [0; 8];
        send(a.as_fd(), b"hello", Some(zero.as_fd())).unwrap();
        let (n, fd) = recv(b.as_fd(), &mut buf, true).unwrap();
        assert_eq!(&buf[..n], b"hello");
        let mut byte = [1];
        File::from(fd.unwrap()).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [0]);

        send(a.as_fd(), b"hello", Some(zero.as_fd())).unwrap();
        assert!(recv(b.as_fd(), &mut buf, false).is_err());
        send(a.as_fd(), b"longer than eight", None).unwrap();
        assert!(recv(b.as_fd(), &mut buf, true).is_err());
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut buf, true).unwrap().0, 0);
        assert_eq!(send(b.as_fd(), b"x", None).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }
}
