//! AF_UNIX sockets: unix(7), socketpair(2), send(2), recv(2).

use crate::harness::Outcome;
use crate::sys::{self, fd_read, fd_write, own, socketpair};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

cases![
    stream_carries_bytes_both_ways,
    datagrams_keep_their_bounds,
    seqpacket_keeps_bounds_and_ends,
    bind_listen_connect_accept,
    abstract_names,
    connect_errors,
    bind_errors,
    shutdown_halves,
    peer_close_is_the_end_and_epipe,
    nosignal_suppresses_sigpipe,
    peek_and_dontwait,
    descriptors_are_passed,
    passed_descriptors_share_the_offset,
    credentials_of_the_peer,
    getsockname_and_peername,
    socket_options,
    sendto_a_bound_datagram_socket,
    poll_states_of_a_pair,
    full_buffer_is_eagain_or_waits,
    internet_families_fail_clearly,
    accept4_flags,
    closed_listener_refuses,
    peek_offset_of_a_stream,
    peek_offset_of_datagrams,
    seqpacket_over_an_abstract_name,
    datagrams_over_abstract_names,
    autobind_gives_a_name,
];

fn stream_carries_bytes_both_ways() -> Outcome {
    let (a, b) = socketpair(SOCK_STREAM)?;
    fd_write(&a, b"ping")?;
    fd_write(&a, b"pong")?;
    same!(fd_read(&b, 99)?, b"pingpong");
    fd_write(&b, b"back")?;
    same!(fd_read(&a, 2)?, b"ba");
    same!(fd_read(&a, 9)?, b"ck");
    Ok(())
}

fn datagrams_keep_their_bounds() -> Outcome {
    let (a, b) = socketpair(SOCK_DGRAM)?;
    fd_write(&a, b"first")?;
    fd_write(&a, b"second")?;
    let mut buf = [0u8; 3];
    // The rest of a datagram is lost, and MSG_TRUNC tells its length.
    same!(ok!(recv(b.as_raw_fd(), buf.as_mut_ptr().cast(), 3, MSG_TRUNC)), 5);
    same!(&buf, b"fir");
    same!(fd_read(&b, 99)?, b"second");
    Ok(())
}

fn seqpacket_keeps_bounds_and_ends() -> Outcome {
    let (a, b) = socketpair(SOCK_SEQPACKET)?;
    fd_write(&a, b"one")?;
    fd_write(&a, b"two")?;
    same!(fd_read(&b, 99)?, b"one");
    same!(fd_read(&b, 99)?, b"two");
    drop(a);
    same!(fd_read(&b, 99)?, b"");
    Ok(())
}

fn address(name: &[u8]) -> (sockaddr_un, socklen_t) {
    let mut addr: sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = AF_UNIX as u16;
    for (i, b) in name.iter().enumerate() {
        addr.sun_path[i] = *b as c_char;
    }
    let path_nul = usize::from(name.first().is_some_and(|b| *b != 0));
    (addr, (2 + name.len() + path_nul) as socklen_t)
}

fn socket_of(kind: i32) -> Result<OwnedFd, String> {
    Ok(own(ok!(socket(AF_UNIX, kind | SOCK_CLOEXEC, 0))))
}

fn bind_to(s: &OwnedFd, name: &[u8]) -> i32 {
    let (addr, len) = address(name);
    unsafe { bind(s.as_raw_fd(), (&raw const addr).cast(), len) }
}

fn connect_to(s: &OwnedFd, name: &[u8]) -> i32 {
    let (addr, len) = address(name);
    unsafe { connect(s.as_raw_fd(), (&raw const addr).cast(), len) }
}

fn server(name: &[u8]) -> Result<OwnedFd, String> {
    let s = socket_of(SOCK_STREAM)?;
    ok!(bind_to(&s, name));
    ok!(listen(s.as_raw_fd(), 5));
    Ok(s)
}

fn accept_on(s: &OwnedFd) -> Result<OwnedFd, String> {
    Ok(own(ok!(accept4(s.as_raw_fd(), null_mut(), null_mut(), SOCK_CLOEXEC))))
}

fn bind_listen_connect_accept() -> Outcome {
    let s = server(b"sock")?;
    same!(sys::lstat("sock")?.st_mode & S_IFMT, S_IFSOCK);
    let kid = sys::fork(|| {
        let c = socket_of(SOCK_STREAM)?;
        ok!(connect_to(&c, b"sock"));
        fd_write(&c, b"hello")?;
        same!(fd_read(&c, 9)?, b"welcome");
        Ok(())
    })?;
    let c = accept_on(&s)?;
    same!(fd_read(&c, 9)?, b"hello");
    fd_write(&c, b"welcome")?;
    kid.ok()?;
    fails!(ENXIO, open(sys::c("sock").as_ptr(), O_RDWR));
    Ok(())
}

fn unique(tag: &str) -> Vec<u8> {
    format!("\0casemate-{tag}-{}", unsafe { getpid() }).into_bytes()
}

fn abstract_names() -> Outcome {
    let name = unique("a");
    let s = server(&name)?;
    let again = socket_of(SOCK_STREAM)?;
    fails!(EADDRINUSE, bind_to(&again, &name));
    let c = socket_of(SOCK_STREAM)?;
    ok!(connect_to(&c, &name));
    drop(accept_on(&s)?);
    drop(s);
    let late = socket_of(SOCK_STREAM)?;
    fails!(ECONNREFUSED, connect_to(&late, &name));
    Ok(())
}

fn connect_errors() -> Outcome {
    let c = socket_of(SOCK_STREAM)?;
    fails!(ENOENT, connect_to(&c, b"none"));
    sys::put("f", b"")?;
    fails!(ECONNREFUSED, connect_to(&c, b"f"));
    let bound = socket_of(SOCK_STREAM)?;
    ok!(bind_to(&bound, b"quiet"));
    fails!(ECONNREFUSED, connect_to(&c, b"quiet"));
    let dgram = socket_of(SOCK_DGRAM)?;
    ok!(bind_to(&dgram, b"dgram"));
    fails!(EPROTOTYPE, connect_to(&c, b"dgram"));
    fails!(ENOTCONN, send(c.as_raw_fd(), b"x".as_ptr().cast(), 1, MSG_NOSIGNAL));
    let (addr, len) = address(b"f");
    fails!(ENOTSOCK, connect(0, (&raw const addr).cast(), len));
    let s = server(b"sock")?;
    ok!(connect_to(&c, b"sock"));
    fails!(EISCONN, connect_to(&c, b"sock"));
    drop(s);
    Ok(())
}

fn bind_errors() -> Outcome {
    let s = socket_of(SOCK_STREAM)?;
    sys::put("f", b"")?;
    fails!(EADDRINUSE, bind_to(&s, b"f"));
    fails!(ENOENT, bind_to(&s, b"none/s"));
    ok!(bind_to(&s, b"s"));
    fails!(EINVAL, bind_to(&s, b"t"));
    let d = socket_of(SOCK_DGRAM)?;
    fails!(EOPNOTSUPP, listen(d.as_raw_fd(), 1));
    Ok(())
}

fn shutdown_halves() -> Outcome {
    let (a, b) = socketpair(SOCK_STREAM)?;
    fd_write(&a, b"last")?;
    ok!(shutdown(a.as_raw_fd(), SHUT_WR));
    same!(fd_read(&b, 9)?, b"last");
    same!(fd_read(&b, 9)?, b"");
    fd_write(&b, b"still")?;
    same!(fd_read(&a, 9)?, b"still");
    fails!(EPIPE, send(a.as_raw_fd(), b"x".as_ptr().cast(), 1, MSG_NOSIGNAL));
    fails!(EINVAL, shutdown(a.as_raw_fd(), 9));
    Ok(())
}

fn peer_close_is_the_end_and_epipe() -> Outcome {
    sys::on_signal(SIGPIPE, sys::count_handler, 0)?;
    let (a, b) = socketpair(SOCK_STREAM)?;
    drop(b);
    same!(fd_read(&a, 9)?, b"");
    fails!(EPIPE, write(a.as_raw_fd(), b"x".as_ptr().cast(), 1));
    same!(sys::hits(), 1);
    Ok(())
}

fn nosignal_suppresses_sigpipe() -> Outcome {
    let (a, b) = socketpair(SOCK_STREAM)?;
    drop(b);
    fails!(EPIPE, send(a.as_raw_fd(), b"x".as_ptr().cast(), 1, MSG_NOSIGNAL));
    Ok(())
}

fn peek_and_dontwait() -> Outcome {
    let (a, b) = socketpair(SOCK_STREAM)?;
    let mut buf = [0u8; 4];
    fails!(EAGAIN, recv(b.as_raw_fd(), buf.as_mut_ptr().cast(), 4, MSG_DONTWAIT));
    fd_write(&a, b"seen")?;
    same!(ok!(recv(b.as_raw_fd(), buf.as_mut_ptr().cast(), 4, MSG_PEEK)), 4);
    same!(fd_read(&b, 9)?, b"seen");
    Ok(())
}

/// Sends `fd` with one byte.
pub(super) fn send_fd(s: &OwnedFd, fd: i32) -> isize {
    let mut byte = *b"x";
    let mut iov = iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 4];
    unsafe {
        let mut msg: msghdr = std::mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = CMSG_SPACE(4) as usize;
        let c = CMSG_FIRSTHDR(&raw const msg);
        (*c).cmsg_level = SOL_SOCKET;
        (*c).cmsg_type = SCM_RIGHTS;
        (*c).cmsg_len = CMSG_LEN(4) as usize;
        CMSG_DATA(c).cast::<i32>().write_unaligned(fd);
        sendmsg(s.as_raw_fd(), &raw const msg, 0)
    }
}

pub(super) fn recv_fd(s: &OwnedFd) -> Result<OwnedFd, String> {
    let mut byte = [0u8; 1];
    let mut iov = iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 4];
    unsafe {
        let mut msg: msghdr = std::mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = 32;
        same!(ok!(recvmsg(s.as_raw_fd(), &raw mut msg, MSG_CMSG_CLOEXEC)), 1);
        let c = CMSG_FIRSTHDR(&raw const msg);
        want!(!c.is_null() && (*c).cmsg_type == SCM_RIGHTS, "no descriptor came along");
        Ok(own(CMSG_DATA(c).cast::<i32>().read_unaligned()))
    }
}

fn descriptors_are_passed() -> Outcome {
    let (a, b) = socketpair(SOCK_STREAM)?;
    let (rd, wr) = sys::pipe()?;
    let kid = sys::fork(|| {
        let got = recv_fd(&b)?;
        same!(ok!(fcntl(got.as_raw_fd(), F_GETFD)), FD_CLOEXEC);
        fd_write(&got, b"through")?;
        Ok(())
    })?;
    ok!(send_fd(&a, wr.as_raw_fd()));
    drop(wr);
    kid.ok()?;
    same!(fd_read(&rd, 9)?, b"through");
    drop(b);
    fails!(EBADF, send_fd(&a, 500));
    Ok(())
}

fn passed_descriptors_share_the_offset() -> Outcome {
    sys::put("f", b"abcdef")?;
    let f = sys::open("f", O_RDONLY)?;
    let (a, b) = socketpair(SOCK_DGRAM)?;
    ok!(send_fd(&a, f.as_raw_fd()));
    let g = recv_fd(&b)?;
    same!(fd_read(&g, 3)?, b"abc");
    same!(fd_read(&f, 3)?, b"def");
    Ok(())
}

fn credentials_of_the_peer() -> Outcome {
    let (a, _b) = socketpair(SOCK_STREAM)?;
    let mut cred = ucred { pid: 0, uid: 9, gid: 9 };
    let mut len = size_of::<ucred>() as socklen_t;
    ok!(getsockopt(a.as_raw_fd(), SOL_SOCKET, SO_PEERCRED, (&raw mut cred).cast(), &raw mut len));
    same!((cred.pid, cred.uid, cred.gid), (unsafe { getpid() }, 0, 0));
    Ok(())
}

fn name_len(f: impl FnOnce(*mut sockaddr, *mut socklen_t) -> i32) -> Result<(Vec<u8>, socklen_t), String> {
    let (mut addr, mut len) = (address(b"").0, 110);
    ok!(f((&raw mut addr).cast(), &raw mut len));
    let n = (len as usize).saturating_sub(2);
    Ok((addr.sun_path[..n.min(108)].iter().map(|b| *b as u8).collect(), len))
}

fn getsockname_and_peername() -> Outcome {
    let s = server(b"here")?;
    let c = socket_of(SOCK_STREAM)?;
    same!(name_len(|a, l| unsafe { getsockname(c.as_raw_fd(), a, l) })?.1, 2);
    let mut none = 0;
    fails!(ENOTCONN, getpeername(c.as_raw_fd(), null_mut(), &raw mut none));
    ok!(connect_to(&c, b"here"));
    let (name, _) = name_len(|a, l| unsafe { getpeername(c.as_raw_fd(), a, l) })?;
    same!(name, b"here\0");
    let (name, _) = name_len(|a, l| unsafe { getsockname(s.as_raw_fd(), a, l) })?;
    same!(name, b"here\0");
    Ok(())
}

fn option(s: &OwnedFd, name: i32) -> Result<i32, String> {
    let (mut value, mut len) = (-1, 4);
    ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len));
    Ok(value)
}

fn socket_options() -> Outcome {
    let s = server(b"s")?;
    same!(option(&s, SO_TYPE)?, SOCK_STREAM);
    same!(option(&s, SO_DOMAIN)?, AF_UNIX);
    same!(option(&s, SO_ACCEPTCONN)?, 1);
    same!(option(&s, SO_ERROR)?, 0);
    let (a, _b) = socketpair(SOCK_STREAM)?;
    same!(option(&a, SO_ACCEPTCONN)?, 0);
    let size = 8192;
    ok!(setsockopt(a.as_raw_fd(), SOL_SOCKET, SO_SNDBUF, (&raw const size).cast(), 4));
    same!(option(&a, SO_SNDBUF)?, 16384);
    let mut four = 4;
    fails!(ENOPROTOOPT, getsockopt(a.as_raw_fd(), SOL_SOCKET, 9999, null_mut(), &raw mut four));
    Ok(())
}

fn sendto_a_bound_datagram_socket() -> Outcome {
    let s = socket_of(SOCK_DGRAM)?;
    ok!(bind_to(&s, b"box"));
    let c = socket_of(SOCK_DGRAM)?;
    ok!(bind_to(&c, b"from"));
    let (to, len) = address(b"box");
    same!(ok!(sendto(c.as_raw_fd(), b"note".as_ptr().cast(), 4, 0, (&raw const to).cast(), len)), 4);
    let mut buf = [0u8; 9];
    let (name, _) =
        name_len(|a, l| unsafe { recvfrom(s.as_raw_fd(), buf.as_mut_ptr().cast(), 9, 0, a, l) as i32 })?;
    same!((&buf[..4], name.as_slice()), (&b"note"[..], &b"from\0"[..]));
    let (to, len) = address(b"nobody");
    fails!(ENOENT, sendto(c.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, (&raw const to).cast(), len));
    Ok(())
}

fn poll_states_of_a_pair() -> Outcome {
    let state = |fd: &OwnedFd| -> Result<i16, String> {
        let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN | POLLOUT | POLLRDHUP, revents: 0 };
        ok!(poll(&raw mut p, 1, 0));
        Ok(p.revents)
    };
    let (a, b) = socketpair(SOCK_STREAM)?;
    same!(state(&a)?, POLLOUT);
    fd_write(&b, b"x")?;
    same!(state(&a)?, POLLIN | POLLOUT);
    ok!(shutdown(b.as_raw_fd(), SHUT_WR));
    same!(state(&a)?, POLLIN | POLLOUT | POLLRDHUP);
    drop(b);
    same!(state(&a)?, POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    let s = server(b"s")?;
    same!(state(&s)? & POLLIN, 0);
    let c = socket_of(SOCK_STREAM)?;
    ok!(connect_to(&c, b"s"));
    same!(state(&s)? & POLLIN, POLLIN);
    Ok(())
}

fn full_buffer_is_eagain_or_waits() -> Outcome {
    let (a, b) = socketpair(SOCK_STREAM)?;
    let block = vec![7u8; 65536];
    let mut sent = 0usize;
    loop {
        let n = unsafe { send(a.as_raw_fd(), block.as_ptr().cast(), block.len(), MSG_DONTWAIT) };
        if n < 0 {
            same!(crate::harness::errno(), EAGAIN);
            break;
        }
        sent += n as usize;
        want!(sent < 100_000_000, "the buffer has no end");
    }
    let kid = sys::fork(|| {
        same!(fd_write(&a, &block)?, block.len());
        Ok(())
    })?;
    let mut left = sent + block.len();
    while left > 0 {
        left -= fd_read(&b, left.min(65536))?.len();
    }
    kid.ok()
}

fn internet_families_fail_clearly() -> Outcome {
    // With a network they open; without one the errno says so.
    let fd = unsafe { socket(AF_INET, SOCK_STREAM, 0) };
    want!(fd >= 0 || crate::harness::errno() == EAFNOSUPPORT, "errno {}", crate::harness::errno());
    fails!(EAFNOSUPPORT, socket(99, SOCK_STREAM, 0));
    let kind = unsafe { socket(AF_UNIX, 77, 0) };
    want!(kind == -1, "a socket of type 77");
    fails!(EPROTONOSUPPORT, socket(AF_UNIX, SOCK_STREAM, 99));
    Ok(())
}

fn accept4_flags() -> Outcome {
    let s = server(b"s")?;
    fails!(EINVAL, accept4(s.as_raw_fd(), null_mut(), null_mut(), 0x40));
    ok!(fcntl(s.as_raw_fd(), F_SETFL, O_NONBLOCK));
    fails!(EAGAIN, accept4(s.as_raw_fd(), null_mut(), null_mut(), 0));
    let c = socket_of(SOCK_STREAM)?;
    ok!(connect_to(&c, b"s"));
    let got = own(ok!(accept4(s.as_raw_fd(), null_mut(), null_mut(), SOCK_NONBLOCK)));
    same!(ok!(fcntl(got.as_raw_fd(), F_GETFL)) & O_NONBLOCK, O_NONBLOCK);
    let (a, _b) = socketpair(SOCK_STREAM)?;
    fails!(EINVAL, accept(a.as_raw_fd(), null_mut(), null_mut()));
    Ok(())
}

fn closed_listener_refuses() -> Outcome {
    let s = server(b"s")?;
    let c = socket_of(SOCK_STREAM)?;
    ok!(connect_to(&c, b"s"));
    drop(s);
    // The connection that nobody accepted is reset.
    let mut b = [0u8; 1];
    let n = unsafe { read(c.as_raw_fd(), b.as_mut_ptr().cast(), 1) };
    want!(n == 0 || (n == -1 && crate::harness::errno() == ECONNRESET), "read gave {n}");
    Ok(())
}

fn peek_at(s: &OwnedFd, n: usize) -> Result<Vec<u8>, String> {
    crate::inet::recv_flags(s, n, MSG_PEEK)
}

fn peek_offset_of_a_stream() -> Outcome {
    let (a, b) = socketpair(SOCK_STREAM)?;
    same!(crate::inet::get_int(&b, SOL_SOCKET, SO_PEEK_OFF)?, -1);
    ok!(crate::inet::set_int(&b, SOL_SOCKET, SO_PEEK_OFF, 0));
    fd_write(&a, b"abcd")?;
    fd_write(&a, b"efgh")?;
    same!(peek_at(&b, 3)?, b"abc");
    same!(peek_at(&b, 3)?, b"def");
    same!(crate::inet::get_int(&b, SOL_SOCKET, SO_PEEK_OFF)?, 6);
    same!(fd_read(&b, 2)?, b"ab");
    same!(crate::inet::get_int(&b, SOL_SOCKET, SO_PEEK_OFF)?, 4);
    same!(peek_at(&b, 9)?, b"gh");
    Ok(())
}

fn peek_offset_of_datagrams() -> Outcome {
    let (a, b) = socketpair(SOCK_DGRAM)?;
    ok!(crate::inet::set_int(&b, SOL_SOCKET, SO_PEEK_OFF, 0));
    fd_write(&a, b"abcd")?;
    same!(peek_at(&b, 2)?, b"ab");
    same!(peek_at(&b, 9)?, b"cd");
    same!(fd_read(&b, 9)?, b"abcd");
    Ok(())
}

fn seqpacket_over_an_abstract_name() -> Outcome {
    let name = unique("seq");
    let s = socket_of(SOCK_SEQPACKET)?;
    ok!(bind_to(&s, &name));
    ok!(listen(s.as_raw_fd(), 1));
    let stream = socket_of(SOCK_STREAM)?;
    // Names of other types are apart.
    fails!(ECONNREFUSED, connect_to(&stream, &name));
    let c = socket_of(SOCK_SEQPACKET)?;
    ok!(connect_to(&c, &name));
    let a = accept_on(&s)?;
    fd_write(&c, b"one")?;
    fd_write(&c, b"two")?;
    let mut buf = [0u8; 2];
    same!(ok!(recv(a.as_raw_fd(), buf.as_mut_ptr().cast(), 2, MSG_TRUNC)), 3);
    same!(fd_read(&a, 9)?, b"two");
    Ok(())
}

fn datagrams_over_abstract_names() -> Outcome {
    let (one, two) = (unique("d1"), unique("d2"));
    let (a, b) = (socket_of(SOCK_DGRAM)?, socket_of(SOCK_DGRAM)?);
    ok!(bind_to(&a, &one));
    ok!(bind_to(&b, &two));
    ok!(connect_to(&a, &two));
    fd_write(&a, b"hello")?;
    let m = crate::inet::recv_message(&b, 9, 0)?;
    same!((m.data.as_slice(), m.name_len as usize), (&b"hello"[..], 2 + one.len()));
    Ok(())
}

fn autobind_gives_a_name() -> Outcome {
    let s = socket_of(SOCK_DGRAM)?;
    let family = AF_UNIX as u16;
    ok!(bind(s.as_raw_fd(), (&raw const family).cast(), 2));
    let mut a: sockaddr_un = unsafe { std::mem::zeroed() };
    let mut len = 110;
    ok!(getsockname(s.as_raw_fd(), (&raw mut a).cast(), &raw mut len));
    same!((len, a.sun_path[0]), (8, 0));
    Ok(())
}
