//! Packets over Unix sockets, with descriptors; and calls on sockets of any family, whose addresses, options and control
//! data are bytes as the kernel has them.

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
    receive_at(socket, libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }, flags)
}

/// [`receive`] in place of what `data` holds, of as many bytes as it has room for: no page of it is touched that the packet
/// does not reach.
pub fn receive_into(socket: BorrowedFd<'_>, data: &mut Vec<u8>, flags: i32) -> io::Result<Received> {
    data.clear();
    let room = data.spare_capacity_mut();
    let iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let received = receive_at(socket, iov, flags)?;
    let len = received.len.min(data.capacity());
    // SAFETY: the vector has the room, and the kernel has written that much of it.
    unsafe { data.set_len(len) };
    Ok(received)
}

fn receive_at(socket: BorrowedFd<'_>, mut iov: libc::iovec, flags: i32) -> io::Result<Received> {
    let mut control = Control([0; HEADER + FD_BYTES]);
    let mut message = header(&mut iov, &mut control, HEADER + FD_BYTES);
    // SAFETY: the kernel writes the data, the control block and the message, which live through the call: the first as the
    // callers' buffers do.
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

/// Bytes of the longest address (`struct sockaddr_storage`).
pub const MAX_ADDRESS: usize = 128;

/// Bytes of control data that one message brings here.
const MAX_CONTROL: usize = 1024;

#[repr(C, align(8))]
struct Address([u8; MAX_ADDRESS]);

#[repr(C, align(8))]
struct ControlData([u8; MAX_CONTROL]);

impl Address {
    fn cut(&self, len: libc::socklen_t) -> Vec<u8> {
        let len = usize::try_from(len).unwrap_or(0).min(MAX_ADDRESS);
        self.0.get(..len).unwrap_or_default().to_vec()
    }
}

fn with_address(number: libc::c_long, socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    // SAFETY: `bind` and `connect` read `address.len()` bytes.
    check(unsafe { libc::syscall(number, socket.as_raw_fd(), address.as_ptr(), address.len()) })?;
    Ok(())
}

/// `bind(2)` to a `struct sockaddr`.
pub fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    with_address(libc::SYS_bind, socket, address)
}

/// `connect(2)` to a `struct sockaddr`.
pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    with_address(libc::SYS_connect, socket, address)
}

/// The address of this end, or of the other one with `peer` (`getsockname(2)`, `getpeername(2)`).
pub fn address(socket: BorrowedFd<'_>, peer: bool) -> io::Result<Vec<u8>> {
    let number = if peer { libc::SYS_getpeername } else { libc::SYS_getsockname };
    let mut address = Address([0; MAX_ADDRESS]);
    let mut len = MAX_ADDRESS as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes of the address, and `len`.
    check(unsafe { libc::syscall(number, socket.as_raw_fd(), address.0.as_mut_ptr(), &raw mut len) })?;
    Ok(address.cut(len))
}

/// Takes a connection that waits at a listening socket, and its peer's address (`accept4(2)`). The new socket does not
/// block, and is closed on exec.
pub fn accept(socket: BorrowedFd<'_>) -> io::Result<(OwnedFd, Vec<u8>)> {
    let mut address = Address([0; MAX_ADDRESS]);
    let mut len = MAX_ADDRESS as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes at most `len` bytes of the address, and `len`.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_accept4, socket.as_raw_fd(), address.0.as_mut_ptr(), &raw mut len, flags)
    })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) };
    Ok((fd, address.cut(len)))
}

/// The value of an option, of at most `max` bytes (`getsockopt(2)`).
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32, max: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; max];
    let mut len = libc::socklen_t::try_from(max).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes of the value, and `len`.
    check(unsafe {
        libc::syscall(libc::SYS_getsockopt, socket.as_raw_fd(), level, name, value.as_mut_ptr(), &raw mut len)
    })?;
    value.truncate(usize::try_from(len).unwrap_or(0));
    Ok(value)
}

/// Sets an option (`setsockopt(2)`). Callers know which: some of them take addresses of memory.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `value.len()` bytes.
    check(unsafe {
        libc::syscall(libc::SYS_setsockopt, socket.as_raw_fd(), level, name, value.as_ptr(), value.len())
    })?;
    Ok(())
}

/// A number that a socket tells by `ioctl(2)`: `SIOCINQ` and its kin, which write an int.
pub fn queued(socket: BorrowedFd<'_>, command: u32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let command = libc::c_ulong::from(command);
    // SAFETY: the kernel writes an int.
    check(unsafe { libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), command, &raw mut value) })?;
    Ok(value)
}

/// Sends to a `struct sockaddr`, or to the connected peer if that is empty, with control messages as the kernel reads
/// them (`sendmsg(2)`). `flags` are `MSG_*`; `MSG_NOSIGNAL` is always set.
pub fn send_to(
    socket: BorrowedFd<'_>,
    data: &[u8],
    to: &[u8],
    control: &[u8],
    flags: i32,
) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut none = Control([0; HEADER + FD_BYTES]);
    let mut message = header(&mut iov, &mut none, 0);
    if !to.is_empty() {
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = libc::socklen_t::try_from(to.len()).unwrap_or(0);
    }
    if !control.is_empty() {
        message.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len();
    }
    // SAFETY: the kernel reads the message, its address, data and control block, which live through the call.
    let sent = check(unsafe {
        libc::syscall(libc::SYS_sendmsg, socket.as_raw_fd(), &raw const message, flags | libc::MSG_NOSIGNAL)
    })?;
    Ok(sent as usize)
}

/// A message that was received, with what came along, as the kernel writes it.
#[derive(Debug, Default)]
pub struct Message {
    pub len: usize,
    pub from: Vec<u8>,
    pub control: Vec<u8>,
    /// `MSG_*`.
    pub flags: i32,
}

/// Receives into `data` (`recvmsg(2)`). `flags` are `MSG_*`. Only for sockets that carry no descriptors.
pub fn receive_from(socket: BorrowedFd<'_>, data: &mut [u8], flags: i32) -> io::Result<Message> {
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut none = Control([0; HEADER + FD_BYTES]);
    let mut address = Address([0; MAX_ADDRESS]);
    let mut control = ControlData([0; MAX_CONTROL]);
    let mut message = header(&mut iov, &mut none, 0);
    message.msg_name = address.0.as_mut_ptr().cast();
    message.msg_namelen = MAX_ADDRESS as libc::socklen_t;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = MAX_CONTROL;
    // SAFETY: the kernel writes the message, its address, data and control block, which live through the call.
    let len =
        check(unsafe { libc::syscall(libc::SYS_recvmsg, socket.as_raw_fd(), &raw mut message, flags) })?;
    let used = message.msg_controllen.min(MAX_CONTROL);
    Ok(Message {
        len: len as usize,
        from: address.cut(message.msg_namelen),
        control: control.0.get(..used).unwrap_or_default().to_vec(),
        flags: message.msg_flags,
    })
}
