//! Packets over Unix sockets, with descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::check;

/// The most descriptors that one packet carries here.
pub const MAX_FDS: usize = 64;

/// A connected pair of sockets that keep packet bounds, closed on exec (`socketpair(2)`, `SOCK_SEQPACKET`).
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0i32; 2];
    // SAFETY: the kernel writes the two descriptors.
    check(unsafe {
        libc::syscall(
            libc::SYS_socketpair,
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            fds.as_mut_ptr(),
        )
    })?;
    let [a, b] = fds;
    // SAFETY: the kernel has just made this descriptor for us alone.
    let a = unsafe { OwnedFd::from_raw_fd(a) };
    // SAFETY: the kernel has just made this descriptor for us alone.
    let b = unsafe { OwnedFd::from_raw_fd(b) };
    Ok((a, b))
}

const FD_BYTES: usize = MAX_FDS * 4;
const HEADER: usize = std::mem::size_of::<libc::cmsghdr>();

#[repr(C, align(8))]
struct Control([u8; HEADER + FD_BYTES]);

fn header(iov: &mut libc::iovec, control: &mut Control, control_len: usize) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    if control_len > 0 {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control_len;
    }
    message
}

/// Sends one packet with up to [`MAX_FDS`] descriptors (`sendmsg(2)`, `SCM_RIGHTS`). `flags` are `MSG_*`;
/// `MSG_NOSIGNAL` is always set.
pub fn send(socket: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>], flags: i32) -> io::Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut control = Control([0; HEADER + FD_BYTES]);
    let used = if fds.is_empty() { 0 } else { HEADER + fds.len() * 4 };
    if used > 0 {
        let head = [
            (used as u64).to_ne_bytes(),
            // cmsg_level and cmsg_type are two ints.
            ((libc::SOL_SOCKET as u64) | ((libc::SCM_RIGHTS as u64) << 32)).to_ne_bytes(),
        ];
        let body = fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes());
        for (slot, byte) in control.0.iter_mut().zip(head.into_iter().flatten().chain(body)) {
            *slot = byte;
        }
    }
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let padded = used.next_multiple_of(8);
    let message = header(&mut iov, &mut control, padded);
    // SAFETY: the kernel reads the message, its data and its control block, which live through the call.
    let sent = check(unsafe {
        libc::syscall(libc::SYS_sendmsg, socket.as_raw_fd(), &raw const message, flags | libc::MSG_NOSIGNAL)
    })?;
    Ok(sent as usize)
}

/// A packet that was received.
#[derive(Debug, Default)]
pub struct Received {
    pub len: usize,
    /// Descriptors that came along, closed on exec, in order.
    pub fds: Vec<OwnedFd>,
    /// Data or descriptors did not fit and were cut off.
    pub truncated: bool,
}

/// Receives one packet into `data` (`recvmsg(2)`). A length of zero is the end of the stream. `flags` are `MSG_*`;
/// `MSG_CMSG_CLOEXEC` is always set.
pub fn receive(socket: BorrowedFd<'_>, data: &mut [u8], flags: i32) -> io::Result<Received> {
    let mut control = Control([0; HEADER + FD_BYTES]);
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut message = header(&mut iov, &mut control, HEADER + FD_BYTES);
    // SAFETY: the kernel writes the data, the control block and the message, which live through the call.
    let len = check(unsafe {
        libc::syscall(libc::SYS_recvmsg, socket.as_raw_fd(), &raw mut message, flags | libc::MSG_CMSG_CLOEXEC)
    })? as usize;
    let mut received = Received {
        len,
        fds: Vec::new(),
        truncated: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
    };
    let got = message.msg_controllen;
    let word = |at: usize| {
        control.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(RawFd::from_ne_bytes)
    };
    if got >= HEADER && word(8) == Some(libc::SOL_SOCKET) && word(12) == Some(libc::SCM_RIGHTS) {
        let used = usize::try_from(word(0).unwrap_or(0)).unwrap_or(0).min(got);
        let mut at = HEADER;
        while at + 4 <= used {
            if let Some(fd) = word(at) {
                // SAFETY: the kernel has just made this descriptor for us alone.
                received.fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            at += 4;
        }
    }
    Ok(received)
}
