//! TCP over the loopback: connections, transfers, shutdown and close: tcp(7), ip(7), connect(2), accept(2).

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::{self, fd_read, fd_write, nonblock};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};

cases![
    bytes_go_both_ways,
    names_of_both_ends,
    accept_tells_the_peer,
    nobody_listens_is_refused,
    nonblocking_connect_is_in_progress,
    nonblocking_connect_is_refused_later,
    connect_twice_is_eisconn,
    connect_to_zero_is_this_host,
    connect_address_errors,
    bind_errors,
    bind_of_no_family_is_any,
    bind_to_any_loopback_address,
    low_ports_need_a_capability,
    listen_errors,
    listen_without_bind_takes_a_port,
    accept_errors,
    accept_on_nothing_is_eagain,
    backlog_queues_before_accept,
    address_in_use,
    reuse_address_rules,
    reuse_port_shares,
    half_close_and_late_answer,
    close_then_read_is_the_end,
    close_with_unread_bytes_resets,
    write_after_peer_close,
    linger_of_zero_resets,
    listener_close_resets_the_unaccepted,
    shutdown_errors_and_states,
    shutdown_read_is_the_end,
    shutdown_both_then_peer_write,
    shutdown_of_a_listener_ends_accept,
    send_without_connection,
    recv_without_connection,
    sigpipe_unless_told_not_to,
    peek_leaves_the_bytes,
    peek_offset_moves,
    trunc_throws_bytes_away,
    waitall_waits_for_all,
    dontwait_is_eagain,
    recv_of_zero_bytes,
    readv_and_writev,
    big_transfer_is_whole,
    full_buffer_stops_the_writer,
    poll_of_fresh_and_listening,
    poll_of_connection_states,
    poll_after_reset,
    epoll_edge_and_level,
    urgent_byte_beside_the_stream,
    urgent_byte_inline,
    low_water_mark,
    receive_timeout,
    fionread_and_outq,
    socket_error_is_read_once,
    disconnect_by_unspec,
    reconnect_after_refusal,
    v6_stream,
    v6_takes_v4,
    v6_only_does_not,
    v6_address_errors,
    dual_stack_conflicts,
    sendfile_to_a_socket,
    splice_through_a_pipe,
    accept_wakes_and_child_talks,
    threads_send_and_receive,
    accepted_inherits_options,
    socket_arguments,
    time_wait_holds_the_port,
    sendmmsg_on_a_stream,
    many_connections,
    msg_more_and_cork_arrive,
    error_queue_is_empty,
    bind_twice_is_einval,
    accept_of_a_peer_that_has_gone,
    local_port_of_connection_is_ephemeral,
];

fn bytes_go_both_ways() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"ping")?;
    fd_write(&c, b"pong")?;
    same!(recv_flags(&a, 8, MSG_WAITALL)?, b"pingpong");
    fd_write(&a, b"back")?;
    same!(fd_read(&c, 2)?, b"ba");
    same!(fd_read(&c, 9)?, b"ck");
    Ok(())
}

fn names_of_both_ends() -> Outcome {
    let (c, a) = pair()?;
    same!(name_of(&c, false)?, name_of(&a, true)?);
    same!(name_of(&c, true)?, name_of(&a, false)?);
    let (family, ip, port) = name_of(&c, false)?;
    same!((family, &ip[..4], port != 0), (AF_INET, &LOCALHOST[..], true));
    let s = tcp()?;
    same!(name_of(&s, false)?, (AF_INET, [0; 16], 0));
    let mut addr = v4([0; 4], 0);
    let mut len = 16;
    fails!(ENOTCONN, getpeername(s.as_raw_fd(), (&raw mut addr).cast(), &raw mut len));
    // A short buffer gets a part, and the length tells the whole.
    let mut len = 3;
    let mut part = [9u8; 4];
    ok!(getsockname(c.as_raw_fd(), part.as_mut_ptr().cast(), &raw mut len));
    same!((len, part[3]), (16, 9));
    Ok(())
}

fn accept_tells_the_peer() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let mut addr = v4([0; 4], 0);
    let mut len = 16;
    let a = sys::own(ok!(accept4(
        s.as_raw_fd(),
        (&raw mut addr).cast(),
        &raw mut len,
        SOCK_NONBLOCK | SOCK_CLOEXEC
    )));
    same!((len, u16::from_be(addr.sin_port)), (16, port_of(&c)?));
    fails!(EAGAIN, try_recv(&a, 0));
    same!(ok!(fcntl(a.as_raw_fd(), F_GETFD)), FD_CLOEXEC);
    same!(port_of(&a)?, port);
    Ok(())
}

/// A port that nobody listens at: it was free a moment ago.
fn dead_port() -> Result<(OwnedFd, u16), String> {
    let s = tcp()?;
    ok!(bind4(&s, LOCALHOST, 0));
    let port = port_of(&s)?;
    Ok((s, port))
}

fn nobody_listens_is_refused() -> Outcome {
    let (_holder, port) = dead_port()?;
    let c = tcp()?;
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, 0);
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    Ok(())
}

fn nonblocking_connect_is_in_progress() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    nonblock(&c)?;
    fails!(EINPROGRESS, connect4(&c, LOCALHOST, port));
    same!(poll_for(c.as_raw_fd(), POLLOUT, 1000)?, POLLOUT);
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, 0);
    ok!(connect4(&c, LOCALHOST, port));
    fails!(EISCONN, connect4(&c, LOCALHOST, port));
    drop(accept_on(&s)?);
    Ok(())
}

fn nonblocking_connect_is_refused_later() -> Outcome {
    let (_holder, port) = dead_port()?;
    let c = tcp()?;
    nonblock(&c)?;
    fails!(EINPROGRESS, connect4(&c, LOCALHOST, port));
    let got = poll_for(c.as_raw_fd(), POLLIN | POLLOUT, 1000)?;
    same!(got, POLLIN | POLLOUT | POLLERR | POLLHUP);
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, ECONNREFUSED);
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, 0);
    fails!(ECONNABORTED, connect4(&c, LOCALHOST, port));
    fails!(EINPROGRESS, connect4(&c, LOCALHOST, port));
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    Ok(())
}

fn connect_twice_is_eisconn() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    fails!(EISCONN, connect4(&c, LOCALHOST, port));
    fails!(EISCONN, connect4(&s, LOCALHOST, port));
    Ok(())
}

fn connect_to_zero_is_this_host() -> Outcome {
    let (_s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, [0; 4], port));
    same!(&name_of(&c, true)?.1[..4], &LOCALHOST[..]);
    Ok(())
}

fn connect_address_errors() -> Outcome {
    let c = tcp()?;
    let a = v4(LOCALHOST, 1);
    let at = (&raw const a).cast();
    fails!(EINVAL, connect(c.as_raw_fd(), at, 1));
    fails!(EINVAL, connect(c.as_raw_fd(), at, 15));
    fails!(EINVAL, connect(c.as_raw_fd(), at, -1i32 as u32));
    fails!(EFAULT, connect(c.as_raw_fd(), null(), 16));
    let six = v6(LO6, 1);
    fails!(EAFNOSUPPORT, connect(c.as_raw_fd(), (&raw const six).cast(), 28));
    fails!(EBADF, connect(-1, at, 16));
    fails!(ENOTSOCK, connect(0, at, 16));
    fails!(ENETUNREACH, connect4(&c, [224, 0, 0, 1], 9));
    Ok(())
}

fn bind_errors() -> Outcome {
    let s = tcp()?;
    let a = v4(LOCALHOST, 0);
    let at = (&raw const a).cast();
    fails!(EINVAL, bind(s.as_raw_fd(), at, 15));
    let six = v6(LO6, 0);
    fails!(EAFNOSUPPORT, bind(s.as_raw_fd(), (&raw const six).cast(), 28));
    fails!(EADDRNOTAVAIL, bind4(&s, [192, 0, 2, 1], 0));
    ok!(set_int(&s, IPPROTO_IP, IP_FREEBIND, 1));
    ok!(bind4(&s, [192, 0, 2, 1], 0));
    Ok(())
}

fn bind_of_no_family_is_any() -> Outcome {
    let s = tcp()?;
    let mut a = v4([0; 4], 0);
    a.sin_family = AF_UNSPEC as u16;
    ok!(bind(s.as_raw_fd(), (&raw const a).cast(), 16));
    let s = tcp()?;
    let mut a = v4(LOCALHOST, 0);
    a.sin_family = AF_UNSPEC as u16;
    fails!(EAFNOSUPPORT, bind(s.as_raw_fd(), (&raw const a).cast(), 16));
    Ok(())
}

fn bind_to_any_loopback_address() -> Outcome {
    let s = tcp()?;
    ok!(bind4(&s, [127, 3, 2, 1], 0));
    ok!(listen(s.as_raw_fd(), 1));
    let port = port_of(&s)?;
    let c = tcp()?;
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    let c = tcp()?;
    ok!(connect4(&c, [127, 3, 2, 1], port));
    let a = accept_on(&s)?;
    same!(&name_of(&a, true)?.1[..4], &LOCALHOST[..]);
    same!(&name_of(&a, false)?.1[..4], &[127, 3, 2, 1]);
    Ok(())
}

fn low_ports_need_a_capability() -> Outcome {
    if unsafe { geteuid() } != 0 {
        skip!("not root");
    }
    sys::fork(|| {
        sys::drop_root()?;
        let s = tcp()?;
        fails!(EACCES, bind4(&s, LOCALHOST, 81));
        fails!(EPERM, socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
        Ok(())
    })?
    .ok()
}

fn listen_errors() -> Outcome {
    let u = udp()?;
    fails!(EOPNOTSUPP, listen(u.as_raw_fd(), 1));
    fails!(ENOTSOCK, listen(0, 1));
    let (c, _a) = pair()?;
    fails!(EINVAL, listen(c.as_raw_fd(), 1));
    Ok(())
}

fn listen_without_bind_takes_a_port() -> Outcome {
    let s = tcp()?;
    ok!(listen(s.as_raw_fd(), -1));
    let port = port_of(&s)?;
    want!(port >= 32768, "the port is {port}");
    same!(get_int(&s, SOL_SOCKET, SO_ACCEPTCONN)?, 1);
    ok!(listen(s.as_raw_fd(), 7));
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    Ok(())
}

fn accept_errors() -> Outcome {
    let s = tcp()?;
    fails!(EINVAL, accept(s.as_raw_fd(), null_mut(), null_mut()));
    let u = udp()?;
    fails!(EOPNOTSUPP, accept(u.as_raw_fd(), null_mut(), null_mut()));
    fails!(EINVAL, accept4(s.as_raw_fd(), null_mut(), null_mut(), 1));
    let (c, _a) = pair()?;
    fails!(EINVAL, accept(c.as_raw_fd(), null_mut(), null_mut()));
    Ok(())
}

fn accept_on_nothing_is_eagain() -> Outcome {
    let (s, _) = server(1)?;
    nonblock(&s)?;
    fails!(EAGAIN, accept(s.as_raw_fd(), null_mut(), null_mut()));
    Ok(())
}

fn backlog_queues_before_accept() -> Outcome {
    let (s, port) = server(1)?;
    let mut clients = Vec::new();
    // The queue holds one more than the backlog says.
    for i in 0..2u8 {
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        fd_write(&c, &[i])?;
        clients.push(c);
    }
    let late = tcp()?;
    nonblock(&late)?;
    fails!(EINPROGRESS, connect4(&late, LOCALHOST, port));
    same!(poll_now(late.as_raw_fd(), ALL)?, 0);
    fails!(EALREADY, connect4(&late, LOCALHOST, port));
    for i in 0..2u8 {
        let a = accept_on(&s)?;
        same!(fd_read(&a, 9)?, [i]);
    }
    same!(poll_for(late.as_raw_fd(), POLLOUT, 5000)?, POLLOUT);
    drop(accept_on(&s)?);
    Ok(())
}

fn address_in_use() -> Outcome {
    let (s, port) = server(1)?;
    let t = tcp()?;
    fails!(EADDRINUSE, bind4(&t, LOCALHOST, port));
    fails!(EADDRINUSE, bind4(&t, [0; 4], port));
    ok!(bind4(&t, [127, 0, 0, 2], port));
    // UDP has ports of its own.
    let u = udp()?;
    ok!(bind4(&u, LOCALHOST, port));
    drop(s);
    let t = tcp()?;
    ok!(bind4(&t, LOCALHOST, port));
    Ok(())
}

fn reuse_address_rules() -> Outcome {
    let (a, b) = (tcp()?, tcp()?);
    ok!(set_int(&a, SOL_SOCKET, SO_REUSEADDR, 1));
    ok!(set_int(&b, SOL_SOCKET, SO_REUSEADDR, 1));
    ok!(bind4(&a, LOCALHOST, 0));
    let port = port_of(&a)?;
    ok!(bind4(&b, LOCALHOST, port));
    ok!(listen(a.as_raw_fd(), 1));
    fails!(EADDRINUSE, listen(b.as_raw_fd(), 1));
    let c = tcp()?;
    ok!(set_int(&c, SOL_SOCKET, SO_REUSEADDR, 1));
    fails!(EADDRINUSE, bind4(&c, LOCALHOST, port));
    Ok(())
}

fn reuse_port_shares() -> Outcome {
    let (a, b, c) = (tcp()?, tcp()?, tcp()?);
    ok!(set_int(&a, SOL_SOCKET, SO_REUSEPORT, 1));
    ok!(set_int(&b, SOL_SOCKET, SO_REUSEPORT, 1));
    ok!(bind4(&a, LOCALHOST, 0));
    let port = port_of(&a)?;
    ok!(listen(a.as_raw_fd(), 64));
    ok!(bind4(&b, LOCALHOST, port));
    ok!(listen(b.as_raw_fd(), 64));
    fails!(EADDRINUSE, bind4(&c, LOCALHOST, port));
    nonblock(&a)?;
    nonblock(&b)?;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        clients.push(c);
    }
    let mut counts = [0; 2];
    for (i, s) in [&a, &b].into_iter().enumerate() {
        loop {
            let fd = unsafe { accept4(s.as_raw_fd(), null_mut(), null_mut(), SOCK_CLOEXEC) };
            if fd < 0 {
                break;
            }
            drop(sys::own(fd));
            counts[i] += 1;
        }
    }
    same!(counts[0] + counts[1], 40);
    want!(counts[0] > 0 && counts[1] > 0, "all went to one: {counts:?}");
    Ok(())
}

fn half_close_and_late_answer() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"question")?;
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    fails!(EPIPE, send_flags(&c, b"more", 0));
    same!(fd_read(&a, 99)?, b"question");
    same!(fd_read(&a, 99)?, b"");
    fd_write(&a, b"answer")?;
    same!(fd_read(&c, 99)?, b"answer");
    drop(a);
    same!(fd_read(&c, 99)?, b"");
    Ok(())
}

fn close_then_read_is_the_end() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&a, b"last words")?;
    drop(a);
    same!(fd_read(&c, 4)?, b"last");
    same!(fd_read(&c, 99)?, b" words");
    same!(fd_read(&c, 99)?, b"");
    same!(fd_read(&c, 99)?, b"");
    Ok(())
}

fn close_with_unread_bytes_resets() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"never read")?;
    fd_write(&a, b"sent before")?;
    drop(a);
    same!(fd_read(&c, 99)?, b"sent before");
    fails!(ECONNRESET, try_recv(&c, 0));
    same!(fd_read(&c, 99)?, b"");
    fails!(EPIPE, send_flags(&c, b"x", 0));
    Ok(())
}

fn write_after_peer_close() -> Outcome {
    let (c, a) = pair()?;
    drop(a);
    same!(fd_read(&c, 9)?, b"");
    ok!(send_flags(&c, b"x", 0));
    fails!(EPIPE, send_flags(&c, b"y", 0));
    same!(fd_read(&c, 9)?, b"");
    let mut addr = v4([0; 4], 0);
    let mut len = 16;
    fails!(ENOTCONN, getpeername(c.as_raw_fd(), (&raw mut addr).cast(), &raw mut len));
    Ok(())
}

fn linger_of_zero_resets() -> Outcome {
    let (c, a) = pair()?;
    let value = linger { l_onoff: 1, l_linger: 0 };
    ok!(setsockopt(a.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw const value).cast(), 8));
    drop(a);
    fails!(ECONNRESET, try_recv(&c, 0));
    fails!(EPIPE, send_flags(&c, b"x", 0));
    let (c, a) = pair()?;
    let value = linger { l_onoff: 1, l_linger: 1 };
    ok!(setsockopt(a.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw const value).cast(), 8));
    fd_write(&a, b"bye")?;
    drop(a);
    same!(drain(&c)?, b"bye");
    Ok(())
}

fn listener_close_resets_the_unaccepted() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    drop(s);
    fails!(ECONNRESET, try_recv(&c, 0));
    let c = tcp()?;
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    Ok(())
}

fn shutdown_errors_and_states() -> Outcome {
    let s = tcp()?;
    fails!(ENOTCONN, shutdown(s.as_raw_fd(), SHUT_RD));
    fails!(EINVAL, shutdown(s.as_raw_fd(), 7));
    let (c, a) = pair()?;
    fails!(EINVAL, shutdown(c.as_raw_fd(), -1));
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    ok!(shutdown(a.as_raw_fd(), SHUT_WR));
    // Both directions are over: the connection is gone.
    fails!(ENOTCONN, shutdown(a.as_raw_fd(), SHUT_WR));
    fails!(ENOTCONN, shutdown(c.as_raw_fd(), SHUT_RD));
    Ok(())
}

fn shutdown_read_is_the_end() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&a, b"before")?;
    ok!(shutdown(c.as_raw_fd(), SHUT_RD));
    same!(fd_read(&c, 99)?, b"before");
    same!(fd_read(&c, 99)?, b"");
    // What comes now is still taken in.
    fd_write(&a, b"after")?;
    same!(fd_read(&c, 99)?, b"after");
    same!(fd_read(&c, 99)?, b"");
    Ok(())
}

fn shutdown_both_then_peer_write() -> Outcome {
    let (c, a) = pair()?;
    ok!(shutdown(c.as_raw_fd(), SHUT_RDWR));
    same!(fd_read(&a, 9)?, b"");
    ok!(send_flags(&a, b"x", 0));
    fails!(EPIPE, send_flags(&a, b"y", 0));
    fails!(ECONNRESET, try_recv(&c, 0));
    Ok(())
}

fn shutdown_of_a_listener_ends_accept() -> Outcome {
    let (s, port) = server(5)?;
    let fd = s.as_raw_fd();
    let waiter = std::thread::spawn(move || {
        let ret = unsafe { accept(fd, null_mut(), null_mut()) };
        (ret, crate::harness::errno())
    });
    sys::sleep_ms(50);
    ok!(shutdown(fd, SHUT_RD));
    same!(waiter.join().map_err(|_| "the thread died")?, (-1, EINVAL));
    let c = tcp()?;
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    ok!(listen(fd, 1));
    same!(port_of(&s)? != 0, true);
    Ok(())
}

fn send_without_connection() -> Outcome {
    let s = tcp()?;
    fails!(EPIPE, send_flags(&s, b"x", 0));
    let (s, _) = server(1)?;
    fails!(EPIPE, send_flags(&s, b"x", 0));
    Ok(())
}

fn recv_without_connection() -> Outcome {
    let s = tcp()?;
    fails!(ENOTCONN, try_recv(&s, 0));
    fails!(ENOTCONN, try_recv(&s, MSG_PEEK));
    let (s, _) = server(1)?;
    fails!(ENOTCONN, try_recv(&s, 0));
    Ok(())
}

fn sigpipe_unless_told_not_to() -> Outcome {
    sys::dies_of(SIGPIPE, || {
        if let Ok((c, _a)) = pair() {
            unsafe {
                shutdown(c.as_raw_fd(), SHUT_WR);
                write(c.as_raw_fd(), b"x".as_ptr().cast(), 1);
            }
        }
    })?;
    let (c, _a) = pair()?;
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    fails!(EPIPE, send_flags(&c, b"x", 0));
    Ok(())
}

fn peek_leaves_the_bytes() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"peek me")?;
    same!(recv_flags(&a, 4, MSG_PEEK)?, b"peek");
    same!(recv_flags(&a, 99, MSG_PEEK)?, b"peek me");
    same!(fd_read(&a, 99)?, b"peek me");
    fails!(EAGAIN, try_recv(&a, MSG_PEEK | MSG_DONTWAIT));
    Ok(())
}

fn peek_offset_moves() -> Outcome {
    let (c, a) = pair()?;
    if set_int(&a, SOL_SOCKET, SO_PEEK_OFF, 0) != 0 {
        skip!("this kernel has no SO_PEEK_OFF on TCP");
    }
    fd_write(&c, b"abcdef")?;
    sys::sleep_ms(5);
    same!(recv_flags(&a, 2, MSG_PEEK)?, b"ab");
    same!(recv_flags(&a, 2, MSG_PEEK)?, b"cd");
    same!(fd_read(&a, 3)?, b"abc");
    same!(recv_flags(&a, 9, MSG_PEEK)?, b"ef");
    Ok(())
}

fn trunc_throws_bytes_away() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"abcdef")?;
    sys::sleep_ms(5);
    let mut buf = [b'.'; 4];
    same!(ok!(recv(a.as_raw_fd(), buf.as_mut_ptr().cast(), 4, MSG_TRUNC)), 4);
    same!(&buf, b"....");
    same!(fd_read(&a, 9)?, b"ef");
    Ok(())
}

fn waitall_waits_for_all() -> Outcome {
    let (c, a) = pair()?;
    let kid = sys::fork(|| {
        fd_write(&c, b"one ")?;
        sys::sleep_ms(30);
        fd_write(&c, b"two ")?;
        sys::sleep_ms(30);
        fd_write(&c, b"three")?;
        Ok(())
    })?;
    same!(recv_flags(&a, 13, MSG_WAITALL)?, b"one two three");
    kid.ok()?;
    fd_write(&c, b"end")?;
    drop(c);
    same!(recv_flags(&a, 13, MSG_WAITALL)?, b"end");
    Ok(())
}

fn dontwait_is_eagain() -> Outcome {
    let (c, a) = pair()?;
    fails!(EAGAIN, try_recv(&a, MSG_DONTWAIT));
    fd_write(&c, b"x")?;
    same!(recv_flags(&a, 9, 0)?, b"x");
    nonblock(&a)?;
    fails!(EAGAIN, try_recv(&a, 0));
    fails!(EAGAIN, read(a.as_raw_fd(), [0u8; 4].as_mut_ptr().cast(), 4));
    Ok(())
}

fn recv_of_zero_bytes() -> Outcome {
    let (c, a) = pair()?;
    same!(ok!(read(a.as_raw_fd(), null_mut(), 0)), 0);
    fails!(EAGAIN, recv(a.as_raw_fd(), null_mut(), 0, MSG_DONTWAIT));
    fd_write(&c, b"x")?;
    sys::sleep_ms(5);
    same!(ok!(recv(a.as_raw_fd(), null_mut(), 0, 0)), 0);
    same!(ok!(send(c.as_raw_fd(), null(), 0, 0)), 0);
    same!(fd_read(&a, 9)?, b"x");
    Ok(())
}

fn readv_and_writev() -> Outcome {
    let (c, a) = pair()?;
    let parts = [
        iovec { iov_base: b"abc".as_ptr() as *mut _, iov_len: 3 },
        iovec { iov_base: null_mut(), iov_len: 0 },
        iovec { iov_base: b"defgh".as_ptr() as *mut _, iov_len: 5 },
    ];
    same!(ok!(writev(c.as_raw_fd(), parts.as_ptr(), 3)), 8);
    let (mut x, mut y) = ([0u8; 5], [0u8; 5]);
    let into = [
        iovec { iov_base: x.as_mut_ptr().cast(), iov_len: 5 },
        iovec { iov_base: y.as_mut_ptr().cast(), iov_len: 5 },
    ];
    sys::sleep_ms(5);
    same!(ok!(readv(a.as_raw_fd(), into.as_ptr(), 2)), 8);
    same!((&x, &y[..3]), (b"abcde", &b"fgh"[..]));
    let guard = sys::Map::guarded()?;
    fails!(EFAULT, send(c.as_raw_fd(), guard.at(sys::PAGE).cast(), 4, 0));
    fd_write(&c, b"kept")?;
    fails!(EFAULT, recv(a.as_raw_fd(), guard.at(sys::PAGE).cast(), 4, 0));
    same!(fd_read(&a, 9)?, b"kept");
    Ok(())
}

fn big_transfer_is_whole() -> Outcome {
    let (c, a) = pair()?;
    let data = pattern(3_000_000);
    let kid = sys::fork(|| send_all(&c, &pattern(3_000_000)))?;
    let got = recv_flags(&a, data.len(), MSG_WAITALL)?;
    kid.ok()?;
    want!(got == data, "{} bytes came, or they differ", got.len());
    Ok(())
}

fn full_buffer_stops_the_writer() -> Outcome {
    let (c, a) = pair()?;
    nonblock(&c)?;
    let block = pattern(65_536);
    let mut sent = 0usize;
    loop {
        let n = send_flags(&c, &block, 0);
        if n < 0 {
            same!(crate::harness::errno(), EAGAIN);
            break;
        }
        sent += n as usize;
        want!(sent < 64 << 20, "no end of buffers");
    }
    want!(sent >= 65_536, "only {sent} bytes fit");
    sys::sleep_ms(20);
    same!(poll_now(c.as_raw_fd(), POLLOUT)?, 0);
    let mut left = sent;
    while left > 0 {
        left -= recv_flags(&a, left.min(65_536), 0)?.len();
    }
    same!(poll_for(c.as_raw_fd(), POLLOUT, 1000)?, POLLOUT);
    Ok(())
}

fn poll_of_fresh_and_listening() -> Outcome {
    let s = tcp()?;
    same!(poll_now(s.as_raw_fd(), ALL)?, POLLOUT | POLLHUP);
    let (s, port) = server(1)?;
    same!(poll_now(s.as_raw_fd(), ALL)?, 0);
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    same!(poll_for(s.as_raw_fd(), ALL, 1000)?, POLLIN);
    Ok(())
}

fn poll_of_connection_states() -> Outcome {
    let (c, a) = pair()?;
    same!(poll_now(c.as_raw_fd(), ALL)?, POLLOUT);
    fd_write(&a, b"x")?;
    same!(poll_for(c.as_raw_fd(), POLLIN, 1000)?, POLLIN);
    same!(fd_read(&c, 9)?, b"x");
    ok!(shutdown(a.as_raw_fd(), SHUT_WR));
    same!(poll_for(c.as_raw_fd(), POLLRDHUP, 1000)?, POLLRDHUP);
    same!(poll_now(c.as_raw_fd(), ALL)?, POLLIN | POLLOUT | POLLRDHUP);
    same!(poll_now(a.as_raw_fd(), ALL)?, POLLOUT);
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    sys::sleep_ms(5);
    same!(poll_now(c.as_raw_fd(), ALL)?, POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    same!(poll_now(a.as_raw_fd(), ALL)?, POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    Ok(())
}

fn poll_after_reset() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"x")?;
    sys::sleep_ms(5);
    drop(a);
    let all = POLLIN | POLLOUT | POLLRDHUP | POLLERR | POLLHUP;
    same!(poll_for(c.as_raw_fd(), ALL, 1000)?, all);
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, ECONNRESET);
    same!(poll_now(c.as_raw_fd(), ALL)?, all & !POLLERR);
    Ok(())
}

fn epoll_edge_and_level() -> Outcome {
    let (c, a) = pair()?;
    for (flag, again) in [(0u32, 1), (EPOLLET as u32, 0)] {
        let ep = sys::own(ok!(epoll_create1(EPOLL_CLOEXEC)));
        let mut ev = epoll_event { events: EPOLLIN as u32 | EPOLLRDHUP as u32 | flag, u64: 7 };
        ok!(epoll_ctl(ep.as_raw_fd(), EPOLL_CTL_ADD, a.as_raw_fd(), &raw mut ev));
        let mut out = [epoll_event { events: 0, u64: 0 }; 4];
        same!(ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 4, 0)), 0);
        fd_write(&c, b"ab")?;
        same!(ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 4, 1000)), 1);
        same!({ out[0].events }, EPOLLIN as u32);
        // A partial read is no new edge.
        same!(fd_read(&a, 1)?, b"a");
        same!(ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 4, 0)), again);
        fd_write(&c, b"c")?;
        same!(ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 4, 1000)), 1);
        same!(fd_read(&a, 9)?, b"bc");
        same!(ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 4, 0)), 0);
    }
    Ok(())
}

fn urgent_byte_beside_the_stream() -> Outcome {
    let (c, a) = pair()?;
    fails!(EINVAL, try_recv(&a, MSG_OOB));
    fd_write(&c, b"ab")?;
    same!(send_flags(&c, b"X", MSG_OOB), 1);
    fd_write(&c, b"cd")?;
    same!(poll_for(a.as_raw_fd(), POLLPRI, 1000)?, POLLPRI);
    sys::sleep_ms(5);
    let mut n = 0i32;
    ok!(ioctl(a.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 2);
    same!(fd_read(&a, 9)?, b"ab");
    ok!(ioctl(a.as_raw_fd(), 0x8905, &raw mut n));
    same!(n, 1);
    let got = recv_message(&a, 9, MSG_OOB)?;
    same!((got.data.as_slice(), got.flags & MSG_OOB), (&b"X"[..], MSG_OOB));
    fails!(EINVAL, try_recv(&a, MSG_OOB));
    same!(fd_read(&a, 9)?, b"cd");
    ok!(ioctl(a.as_raw_fd(), 0x8905, &raw mut n));
    same!(n, 0);
    Ok(())
}

fn urgent_byte_inline() -> Outcome {
    let (c, a) = pair()?;
    ok!(set_int(&a, SOL_SOCKET, SO_OOBINLINE, 1));
    fd_write(&c, b"ab")?;
    same!(send_flags(&c, b"X", MSG_OOB), 1);
    fd_write(&c, b"cd")?;
    sys::sleep_ms(5);
    fails!(EINVAL, try_recv(&a, MSG_OOB));
    same!(fd_read(&a, 9)?, b"ab");
    same!(fd_read(&a, 9)?, b"Xcd");
    Ok(())
}

fn low_water_mark() -> Outcome {
    let (c, a) = pair()?;
    ok!(set_int(&a, SOL_SOCKET, SO_RCVLOWAT, 4));
    same!(get_int(&a, SOL_SOCKET, SO_RCVLOWAT)?, 4);
    fd_write(&c, b"ab")?;
    sys::sleep_ms(5);
    same!(poll_now(a.as_raw_fd(), POLLIN)?, 0);
    // One who does not wait gets what is there.
    same!(recv_flags(&a, 1, MSG_DONTWAIT)?, b"a");
    fd_write(&c, b"cde")?;
    same!(poll_for(a.as_raw_fd(), POLLIN, 1000)?, POLLIN);
    same!(fd_read(&a, 9)?, b"bcde");
    fd_write(&c, b"e")?;
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    same!(fd_read(&a, 9)?, b"e");
    Ok(())
}

fn receive_timeout() -> Outcome {
    let (c, a) = pair()?;
    let t = timeval { tv_sec: 0, tv_usec: 30_000 };
    ok!(setsockopt(a.as_raw_fd(), SOL_SOCKET, SO_RCVTIMEO, (&raw const t).cast(), 16));
    let started = std::time::Instant::now();
    fails!(EAGAIN, try_recv(&a, 0));
    want!(started.elapsed().as_millis() >= 25, "after {:?}", started.elapsed());
    fd_write(&c, b"x")?;
    same!(fd_read(&a, 9)?, b"x");
    let (s, _) = server(1)?;
    ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_RCVTIMEO, (&raw const t).cast(), 16));
    fails!(EAGAIN, accept(s.as_raw_fd(), null_mut(), null_mut()));
    Ok(())
}

fn fionread_and_outq() -> Outcome {
    let (c, a) = pair()?;
    let mut n = -1i32;
    ok!(ioctl(a.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 0);
    fd_write(&c, b"12345")?;
    sys::sleep_ms(5);
    ok!(ioctl(a.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 5);
    ok!(ioctl(c.as_raw_fd(), TIOCOUTQ, &raw mut n));
    same!(n, 0);
    let (s, _) = server(1)?;
    fails!(EINVAL, ioctl(s.as_raw_fd(), FIONREAD, &raw mut n));
    let one = 1i32;
    ok!(ioctl(a.as_raw_fd(), FIONBIO, &raw const one));
    same!(fd_read(&a, 9)?, b"12345");
    fails!(EAGAIN, try_recv(&a, 0));
    Ok(())
}

fn socket_error_is_read_once() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"x")?;
    sys::sleep_ms(5);
    drop(a);
    sys::sleep_ms(5);
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, ECONNRESET);
    same!(get_int(&c, SOL_SOCKET, SO_ERROR)?, 0);
    same!(fd_read(&c, 9)?, b"");
    Ok(())
}

fn disconnect_by_unspec() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let a = accept_on(&s)?;
    let none = sockaddr { sa_family: AF_UNSPEC as u16, sa_data: [0; 14] };
    ok!(connect(c.as_raw_fd(), &raw const none, 16));
    fails!(ECONNRESET, try_recv(&a, 0));
    same!(name_of(&c, false)?.1, [0; 16]);
    ok!(connect4(&c, LOCALHOST, port));
    fd_write(&c, b"again")?;
    same!(fd_read(&accept_on(&s)?, 9)?, b"again");
    Ok(())
}

fn reconnect_after_refusal() -> Outcome {
    let (holder, port) = dead_port()?;
    let c = tcp()?;
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    ok!(listen(holder.as_raw_fd(), 1));
    ok!(connect4(&c, LOCALHOST, port));
    fd_write(&c, b"now")?;
    same!(fd_read(&accept_on(&holder)?, 9)?, b"now");
    Ok(())
}

fn v6_stream() -> Outcome {
    let s = sock(AF_INET6, SOCK_STREAM)?;
    if bind6(&s, LO6, 0) != 0 {
        skip!("no IPv6 loopback here");
    }
    ok!(listen(s.as_raw_fd(), 1));
    let port = port_of(&s)?;
    let c = sock(AF_INET6, SOCK_STREAM)?;
    ok!(connect6(&c, LO6, port));
    let a = accept_on(&s)?;
    fd_write(&c, b"six")?;
    same!(fd_read(&a, 9)?, b"six");
    same!(name_of(&a, true)?, name_of(&c, false)?);
    same!(name_of(&a, true)?.1, LO6);
    let four = tcp()?;
    fails!(ECONNREFUSED, connect4(&four, LOCALHOST, port));
    Ok(())
}

fn v6_takes_v4() -> Outcome {
    let s = sock(AF_INET6, SOCK_STREAM)?;
    ok!(set_int(&s, IPPROTO_IPV6, IPV6_V6ONLY, 0));
    ok!(bind6(&s, ANY6, 0));
    fails!(EINVAL, set_int(&s, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    ok!(listen(s.as_raw_fd(), 3));
    let port = port_of(&s)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let a = accept_on(&s)?;
    same!(name_of(&a, true)?, (AF_INET6, MAPPED_LO, port_of(&c)?));
    same!(name_of(&a, false)?.1, MAPPED_LO);
    let c = sock(AF_INET6, SOCK_STREAM)?;
    ok!(connect6(&c, MAPPED_LO, port));
    same!(name_of(&c, false)?.1, MAPPED_LO);
    Ok(())
}

fn v6_only_does_not() -> Outcome {
    // The port is another one for IPv4.
    let t = tcp()?;
    ok!(bind4(&t, [0; 4], 0));
    let port = port_of(&t)?;
    let s = sock(AF_INET6, SOCK_STREAM)?;
    ok!(set_int(&s, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    same!(get_int(&s, IPPROTO_IPV6, IPV6_V6ONLY)?, 1);
    ok!(bind6(&s, ANY6, port));
    ok!(listen(s.as_raw_fd(), 3));
    let c = tcp()?;
    fails!(ECONNREFUSED, connect4(&c, LOCALHOST, port));
    let c = sock(AF_INET6, SOCK_STREAM)?;
    ok!(set_int(&c, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    fails!(ENETUNREACH, connect6(&c, MAPPED_LO, port));
    Ok(())
}

fn v6_address_errors() -> Outcome {
    let s = sock(AF_INET6, SOCK_STREAM)?;
    let a = v6(LO6, 0);
    fails!(EINVAL, bind(s.as_raw_fd(), (&raw const a).cast(), 16));
    fails!(EINVAL, connect(s.as_raw_fd(), (&raw const a).cast(), 16));
    let four = v4(LOCALHOST, 9);
    fails!(EINVAL, bind(s.as_raw_fd(), (&raw const four).cast(), 16));
    let mut doc = LO6;
    doc[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    fails!(EADDRNOTAVAIL, bind6(&s, doc, 0));
    Ok(())
}

fn dual_stack_conflicts() -> Outcome {
    let six = sock(AF_INET6, SOCK_STREAM)?;
    ok!(bind6(&six, ANY6, 0));
    let port = port_of(&six)?;
    let four = tcp()?;
    fails!(EADDRINUSE, bind4(&four, [0; 4], port));
    fails!(EADDRINUSE, bind4(&four, LOCALHOST, port));
    Ok(())
}

fn sendfile_to_a_socket() -> Outcome {
    let (c, a) = pair()?;
    let data = pattern(100_000);
    sys::put("f", &data)?;
    let f = sys::open("f", O_RDONLY)?;
    let kid = sys::fork(|| {
        let mut left = 100_000usize;
        while left > 0 {
            left -= ok!(sendfile(c.as_raw_fd(), f.as_raw_fd(), null_mut(), left)) as usize;
        }
        Ok(())
    })?;
    want!(recv_flags(&a, 100_000, MSG_WAITALL)? == data, "the bytes differ");
    kid.ok()
}

fn splice_through_a_pipe() -> Outcome {
    let (c, a) = pair()?;
    let (r, w) = sys::pipe()?;
    fd_write(&c, b"through")?;
    sys::sleep_ms(5);
    same!(ok!(splice(a.as_raw_fd(), null_mut(), w.as_raw_fd(), null_mut(), 99, 0)), 7);
    same!(ok!(splice(r.as_raw_fd(), null_mut(), a.as_raw_fd(), null_mut(), 99, 0)), 7);
    same!(fd_read(&c, 99)?, b"through");
    drop(c);
    same!(ok!(splice(a.as_raw_fd(), null_mut(), w.as_raw_fd(), null_mut(), 99, 0)), 0);
    Ok(())
}

fn accept_wakes_and_child_talks() -> Outcome {
    let (s, port) = server(5)?;
    let kid = sys::fork(|| {
        sys::sleep_ms(30);
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        fd_write(&c, b"hello")?;
        same!(fd_read(&c, 9)?, b"welcome");
        Ok(())
    })?;
    let a = accept_on(&s)?;
    same!(fd_read(&a, 9)?, b"hello");
    fd_write(&a, b"welcome")?;
    kid.ok()
}

fn threads_send_and_receive() -> Outcome {
    let (c, a) = pair()?;
    let echo = std::thread::spawn(move || -> Outcome {
        loop {
            let part = fd_read(&a, 1000)?;
            if part.is_empty() {
                return Ok(());
            }
            send_all(&a, &part)?;
        }
    });
    for i in 0..200u32 {
        let data = i.to_ne_bytes();
        fd_write(&c, &data)?;
        same!(recv_flags(&c, 4, MSG_WAITALL)?, data);
    }
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    echo.join().map_err(|_| "the thread died")?
}

fn accepted_inherits_options() -> Outcome {
    let (s, port) = server(5)?;
    ok!(set_int(&s, SOL_SOCKET, SO_KEEPALIVE, 1));
    ok!(set_int(&s, IPPROTO_TCP, TCP_NODELAY, 1));
    ok!(set_int(&s, IPPROTO_TCP, TCP_KEEPIDLE, 33));
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let a = accept_on(&s)?;
    same!(get_int(&a, SOL_SOCKET, SO_KEEPALIVE)?, 1);
    same!(get_int(&a, IPPROTO_TCP, TCP_NODELAY)?, 1);
    same!(get_int(&a, IPPROTO_TCP, TCP_KEEPIDLE)?, 33);
    same!(get_int(&a, SOL_SOCKET, SO_ACCEPTCONN)?, 0);
    Ok(())
}

fn socket_arguments() -> Outcome {
    fails!(EPROTONOSUPPORT, socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    fails!(EPROTONOSUPPORT, socket(AF_INET, SOCK_DGRAM, IPPROTO_TCP));
    fails!(EINVAL, socket(AF_INET, SOCK_STREAM, 4000));
    fails!(ESOCKTNOSUPPORT, socket(AF_INET, SOCK_SEQPACKET, 0));
    fails!(EINVAL, socket(AF_INET, 11, 0));
    // No type (0), datagrams of congestion control (6), and numbers without a meaning.
    for kind in [0, 6, 7, 9] {
        fails!(ESOCKTNOSUPPORT, socket(AF_INET, kind, 0));
        fails!(ESOCKTNOSUPPORT, socket(AF_INET6, kind, 33));
        fails!(ESOCKTNOSUPPORT, socket(AF_UNIX, kind, 0));
    }
    fails!(EINVAL, socket(AF_UNIX, 11, 0));
    fails!(EAFNOSUPPORT, socket(45, SOCK_STREAM, 0));
    fails!(EAFNOSUPPORT, socket(-1, SOCK_STREAM, 0));
    let mut fds = [0; 2];
    fails!(EOPNOTSUPP, socketpair(AF_INET, SOCK_STREAM, 0, fds.as_mut_ptr()));
    drop(sys::own(ok!(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP))));
    drop(sys::own(ok!(socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP))));
    Ok(())
}

fn time_wait_holds_the_port() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let a = accept_on(&s)?;
    // The server closes first: its address rests.
    drop(a);
    same!(fd_read(&c, 1)?, b"");
    drop(c);
    drop(s);
    sys::sleep_ms(5);
    let t = tcp()?;
    fails!(EADDRINUSE, bind4(&t, LOCALHOST, port));
    ok!(set_int(&t, SOL_SOCKET, SO_REUSEADDR, 1));
    // The resting socket did not allow it.
    fails!(EADDRINUSE, bind4(&t, LOCALHOST, port));
    let s = tcp()?;
    ok!(set_int(&s, SOL_SOCKET, SO_REUSEADDR, 1));
    ok!(bind4(&s, LOCALHOST, 0));
    ok!(listen(s.as_raw_fd(), 1));
    let port = port_of(&s)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    drop(accept_on(&s)?);
    same!(fd_read(&c, 1)?, b"");
    drop(c);
    drop(s);
    sys::sleep_ms(5);
    let t = tcp()?;
    ok!(set_int(&t, SOL_SOCKET, SO_REUSEADDR, 1));
    ok!(bind4(&t, LOCALHOST, port));
    ok!(listen(t.as_raw_fd(), 1));
    Ok(())
}

fn sendmmsg_on_a_stream() -> Outcome {
    let (c, a) = pair()?;
    let mut iovs = [
        iovec { iov_base: b"one".as_ptr() as *mut _, iov_len: 3 },
        iovec { iov_base: b"three".as_ptr() as *mut _, iov_len: 5 },
    ];
    let mut msgs: [mmsghdr; 2] = unsafe { std::mem::zeroed() };
    for (m, iov) in msgs.iter_mut().zip(&mut iovs) {
        m.msg_hdr.msg_iov = iov;
        m.msg_hdr.msg_iovlen = 1;
    }
    same!(ok!(sendmmsg(c.as_raw_fd(), msgs.as_mut_ptr(), 2, 0)), 2);
    same!((msgs[0].msg_len, msgs[1].msg_len), (3, 5));
    same!(recv_flags(&a, 8, MSG_WAITALL)?, b"onethree");
    Ok(())
}

fn many_connections() -> Outcome {
    let (s, port) = server(128)?;
    let mut ends = Vec::new();
    for i in 0..100u8 {
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        fd_write(&c, &[i])?;
        let a = accept_on(&s)?;
        ends.push((c, a));
    }
    let mut ports: Vec<u16> = Vec::new();
    for (i, (c, a)) in ends.iter().enumerate() {
        same!(fd_read(a, 2)?, [i as u8]);
        ports.push(port_of(c)?);
    }
    ports.sort_unstable();
    ports.dedup();
    same!(ports.len(), 100);
    Ok(())
}

fn msg_more_and_cork_arrive() -> Outcome {
    let (c, a) = pair()?;
    same!(send_flags(&c, b"head ", MSG_MORE), 5);
    same!(send_flags(&c, b"body", 0), 4);
    same!(recv_flags(&a, 9, MSG_WAITALL)?, b"head body");
    ok!(set_int(&c, IPPROTO_TCP, TCP_CORK, 1));
    fd_write(&c, b"corked")?;
    ok!(set_int(&c, IPPROTO_TCP, TCP_CORK, 0));
    same!(fd_read(&a, 99)?, b"corked");
    Ok(())
}

fn error_queue_is_empty() -> Outcome {
    let (c, _a) = pair()?;
    fails!(EAGAIN, try_recv(&c, MSG_ERRQUEUE));
    Ok(())
}

fn bind_twice_is_einval() -> Outcome {
    let s = tcp()?;
    ok!(bind4(&s, LOCALHOST, 0));
    fails!(EINVAL, bind4(&s, LOCALHOST, 0));
    let (c, _a) = pair()?;
    fails!(EINVAL, bind4(&c, LOCALHOST, 0));
    Ok(())
}

fn local_port_of_connection_is_ephemeral() -> Outcome {
    let (c, _a) = pair()?;
    let port = port_of(&c)?;
    want!((32768..61000).contains(&port), "the port is {port}");
    Ok(())
}

fn accept_of_a_peer_that_has_gone() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    let mine = port_of(&c)?;
    fd_write(&c, b"bye")?;
    let value = linger { l_onoff: 1, l_linger: 0 };
    ok!(setsockopt(c.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw const value).cast(), 8));
    drop(c);
    sys::sleep_ms(5);
    let mut addr = v4([0; 4], 0);
    let mut len = 16;
    let a = sys::own(ok!(accept(s.as_raw_fd(), (&raw mut addr).cast(), &raw mut len)));
    same!(u16::from_be(addr.sin_port), mine);
    same!(fd_read(&a, 9)?, b"bye");
    fails!(ECONNRESET, try_recv(&a, 0));
    Ok(())
}
