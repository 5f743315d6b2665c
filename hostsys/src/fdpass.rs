//! Datagrams with descriptors between our own processes (`unix(7)`, `SCM_RIGHTS`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors that one message may carry here.
pub const MAX_FDS: usize = 16;

const CONTROL_LEN: usize = 16 + MAX_FDS * size_of::<RawFd>();

#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// A connected pair of `SOCK_SEQPACKET` sockets: messages keep their borders, and a dead peer reads as the end.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for the two descriptors.
    let done = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let [a, b] = fds;
    // SAFETY: the kernel has just made the descriptor for us alone.
    let a = unsafe { OwnedFd::from_raw_fd(a) };
    // SAFETY: as above.
    let b = unsafe { OwnedFd::from_raw_fd(b) };
    Ok((a, b))
}

/// Sends one message whole, with copies of `fds`.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_LEN]);
    // SAFETY: `msghdr` is plain data; zero is a valid value of it.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = u32::try_from(size_of_val(fds)).unwrap_or(0);
        // SAFETY: the macro only computes.
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as usize;
        msg.msg_control = (&raw mut control).cast();
        // SAFETY: `msg` has a control buffer of the length it states.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const msg) };
        // SAFETY: the macro only computes.
        let len = unsafe { libc::CMSG_LEN(payload) } as usize;
        // SAFETY: the buffer has room for a header and is aligned for it.
        unsafe {
            header.write(libc::cmsghdr {
                cmsg_len: len,
                cmsg_level: libc::SOL_SOCKET,
                cmsg_type: libc::SCM_RIGHTS,
            });
        }
        // The data begins right behind the header, whose size is a multiple of its alignment.
        let data = header.wrapping_add(1).cast::<RawFd>();
        for (at, fd) in fds.iter().enumerate() {
            // SAFETY: the buffer has room for `MAX_FDS` descriptors, and `at` is below that.
            unsafe { data.wrapping_add(at).write(fd.as_raw_fd()) };
        }
    }
    loop {
        // SAFETY: `msg` points to a valid vector and control buffer for the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL) };
        if usize::try_from(sent) == Ok(bytes.len()) {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// One received message.
#[derive(Debug, Default)]
pub struct Message {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Receives one message of at most `max_len` bytes; empty at the end. A longer message, or one with more than
/// [`MAX_FDS`] descriptors, is an error, and its descriptors are closed. With `block` unset `WouldBlock` says
/// that there is none.
pub fn receive(socket: BorrowedFd<'_>, max_len: usize, block: bool) -> io::Result<Message> {
    let mut bytes = vec![0_u8; max_len];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_LEN]);
    // SAFETY: `msghdr` is plain data; zero is a valid value of it.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = (&raw mut control).cast();
    msg.msg_controllen = CONTROL_LEN;
    let flags = libc::MSG_CMSG_CLOEXEC | if block { 0 } else { libc::MSG_DONTWAIT };
    let got = loop {
        // SAFETY: `msg` points to a valid vector and control buffer for the call.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut msg, flags) };
        if let Ok(got) = usize::try_from(got) {
            break got;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let fds = received_fds(&msg);
    if msg.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    bytes.truncate(got);
    Ok(Message { bytes, fds })
}

fn received_fds(msg: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: `msg` has the control buffer that the kernel has just filled.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(msg) };
    while !header.is_null() {
        // SAFETY: the macro returned a header inside the control buffer.
        let head = unsafe { header.read() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the macro only computes.
            let start = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = head.cmsg_len.saturating_sub(start) / size_of::<RawFd>();
            // The data begins right behind the header, whose size is a multiple of its alignment.
            let data = header.wrapping_add(1).cast::<RawFd>();
            for at in 0..count {
                // SAFETY: the header's length says that `count` descriptors follow.
                let fd = unsafe { data.wrapping_add(at).read() };
                // SAFETY: the kernel has just made the descriptor for us alone.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `header` came from this message.
        header = unsafe { libc::CMSG_NXTHDR(msg, header) };
    }
    fds
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_message_keeps_its_border_and_its_descriptors() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(a.as_fd(), b"one", &[writer.as_fd()]).unwrap();
        send(a.as_fd(), b"two", &[]).unwrap();
        drop(writer);
        let mut one = receive(b.as_fd(), 64, true).unwrap();
        assert_eq!(one.bytes, b"one");
        let mut passed = std::fs::File::from(one.fds.pop().unwrap());
        passed.write_all(b"through").unwrap();
        drop(passed);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(receive(b.as_fd(), 64, true).unwrap().bytes, b"two");
        let none = receive(b.as_fd(), 64, false).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(receive(b.as_fd(), 64, true).unwrap().bytes.is_empty());
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[1; 100], &[]).unwrap();
        assert_eq!(receive(b.as_fd(), 10, true).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    }
}
