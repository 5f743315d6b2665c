//! Waiting on Internet sockets: poll(2), select(2), epoll(7), signals, descriptors shared and passed.

use crate::harness::{Outcome, errno};
use crate::inet::*;
use crate::sys::{self, fd_read, fd_write, own};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

cases![
    signal_restarts_recv,
    signal_interrupts_without_restart,
    signal_interrupts_recv_with_a_timeout,
    signal_restarts_accept,
    signal_ends_a_long_send_with_a_count,
    signal_ends_waitall_with_a_part,
    select_sees_both_directions,
    poll_waits_for_a_connection,
    poll_waits_for_room,
    poll_sees_the_end,
    epoll_of_a_listener,
    epoll_oneshot,
    epoll_out_edge_after_room,
    epoll_rdhup_and_hup,
    epoll_exclusive_listener,
    epoll_before_connect,
    duplicate_keeps_the_connection,
    child_keeps_the_connection,
    connection_is_passed_over_unix,
    two_readers_share_the_stream,
    iovec_errors,
    message_header_errors,
    send_timeout,
    nonblocking_flag_is_of_the_description,
    accept_by_two_children,
    exec_keeps_what_is_not_cloexec,
    fstat_of_a_socket,
    seek_and_truncate_are_refused,
    proc_fd_names_the_socket,
];

fn signal_restarts_recv() -> Outcome {
    let (c, a) = pair()?;
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    let kid = sys::fork(|| {
        sys::sleep_ms(120);
        fd_write(&c, b"late")?;
        Ok(())
    })?;
    sys::tick(20)?;
    same!(recv_flags(&a, 9, 0)?, b"late");
    want!(sys::hits() >= 1, "no signal came");
    kid.ok()
}

fn signal_interrupts_without_restart() -> Outcome {
    let (_c, a) = pair()?;
    sys::on_signal(SIGALRM, sys::count_handler, 0)?;
    sys::tick(20)?;
    fails!(EINTR, try_recv(&a, 0));
    let (s, _) = server(1)?;
    sys::tick(20)?;
    fails!(EINTR, accept(s.as_raw_fd(), null_mut(), null_mut()));
    let (_x, _, u, _) = udp_pair()?;
    sys::tick(20)?;
    fails!(EINTR, try_recv(&u, 0));
    Ok(())
}

fn signal_interrupts_recv_with_a_timeout() -> Outcome {
    let (_c, a) = pair()?;
    let t = timeval { tv_sec: 5, tv_usec: 0 };
    ok!(setsockopt(a.as_raw_fd(), SOL_SOCKET, SO_RCVTIMEO, (&raw const t).cast(), 16));
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    sys::tick(20)?;
    fails!(EINTR, try_recv(&a, 0));
    Ok(())
}

fn signal_restarts_accept() -> Outcome {
    let (s, port) = server(1)?;
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    let kid = sys::fork(|| {
        sys::sleep_ms(120);
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        Ok(())
    })?;
    sys::tick(20)?;
    drop(accept_on(&s)?);
    want!(sys::hits() >= 1, "no signal came");
    kid.ok()
}

fn signal_ends_a_long_send_with_a_count() -> Outcome {
    let (c, _a) = pair()?;
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    let data = pattern(32 << 20);
    sys::tick(100)?;
    let n = ok!(send(c.as_raw_fd(), data.as_ptr().cast(), data.len(), 0));
    want!(n > 0 && (n as usize) < data.len(), "{n} bytes went");
    Ok(())
}

fn signal_ends_waitall_with_a_part() -> Outcome {
    let (c, a) = pair()?;
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    fd_write(&c, b"part")?;
    sys::tick(40)?;
    same!(recv_flags(&a, 9, MSG_WAITALL)?, b"part");
    Ok(())
}

fn select_now(fd: RawFd) -> Result<(bool, bool), String> {
    let mut t = timeval { tv_sec: 0, tv_usec: 0 };
    unsafe {
        let (mut r, mut w): (fd_set, fd_set) = (std::mem::zeroed(), std::mem::zeroed());
        FD_SET(fd, &raw mut r);
        FD_SET(fd, &raw mut w);
        ok!(select(fd + 1, &raw mut r, &raw mut w, null_mut(), &raw mut t));
        Ok((FD_ISSET(fd, &raw const r), FD_ISSET(fd, &raw const w)))
    }
}

fn select_sees_both_directions() -> Outcome {
    let (c, a) = pair()?;
    same!(select_now(a.as_raw_fd())?, (false, true));
    fd_write(&c, b"x")?;
    sys::sleep_ms(5);
    same!(select_now(a.as_raw_fd())?, (true, true));
    let (s, _) = server(1)?;
    same!(select_now(s.as_raw_fd())?, (false, false));
    Ok(())
}

fn poll_waits_for_a_connection() -> Outcome {
    let (s, port) = server(1)?;
    let kid = sys::fork(|| {
        sys::sleep_ms(30);
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        Ok(())
    })?;
    same!(poll_for(s.as_raw_fd(), POLLIN, 5000)?, POLLIN);
    drop(accept_on(&s)?);
    kid.ok()
}

/// Sends until the buffers are full.
fn fill(s: &OwnedFd) -> Result<usize, String> {
    let block = pattern(65_536);
    let mut sent = 0;
    loop {
        let n = send_flags(s, &block, MSG_DONTWAIT);
        if n < 0 {
            same!(errno(), EAGAIN);
            // What is on its way may make room once more.
            sys::sleep_ms(5);
            if send_flags(s, &block[..1], MSG_DONTWAIT) < 0 {
                return Ok(sent);
            }
            sent += 1;
            continue;
        }
        sent += n as usize;
    }
}

fn take(s: &OwnedFd, mut n: usize) -> Outcome {
    while n > 0 {
        let got = recv_flags(s, n.min(65_536), 0)?.len();
        want!(got > 0, "the stream ended");
        n -= got;
    }
    Ok(())
}

fn poll_waits_for_room() -> Outcome {
    let (c, a) = pair()?;
    let n = fill(&c)?;
    same!(poll_for(c.as_raw_fd(), POLLOUT, 10)?, 0);
    let kid = sys::fork(|| {
        sys::sleep_ms(30);
        take(&a, n)
    })?;
    same!(poll_for(c.as_raw_fd(), POLLOUT, 5000)?, POLLOUT);
    kid.ok()
}

fn poll_sees_the_end() -> Outcome {
    let (c, a) = pair()?;
    let kid = sys::fork(|| {
        ok!(close(a.as_raw_fd()));
        Ok(())
    })?;
    // The parent's copy still holds the connection.
    kid.ok()?;
    same!(poll_for(c.as_raw_fd(), POLLIN | POLLRDHUP, 20)?, 0);
    Ok(())
}

fn epoll() -> Result<OwnedFd, String> {
    Ok(own(ok!(epoll_create1(EPOLL_CLOEXEC))))
}

fn watch(ep: &OwnedFd, s: &OwnedFd, events: i32) -> Outcome {
    let mut ev = epoll_event { events: events as u32, u64: 1 };
    ok!(epoll_ctl(ep.as_raw_fd(), EPOLL_CTL_ADD, s.as_raw_fd(), &raw mut ev));
    Ok(())
}

fn due(ep: &OwnedFd, ms: i32) -> Result<i32, String> {
    let mut out = [epoll_event { events: 0, u64: 0 }; 2];
    let n = ok!(epoll_wait(ep.as_raw_fd(), out.as_mut_ptr(), 2, ms));
    Ok(if n == 0 { 0 } else { out[0].events as i32 })
}

fn epoll_of_a_listener() -> Outcome {
    let (s, port) = server(5)?;
    let ep = epoll()?;
    watch(&ep, &s, EPOLLIN | EPOLLET)?;
    same!(due(&ep, 0)?, 0);
    for _ in 0..2 {
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        same!(due(&ep, 1000)?, EPOLLIN);
        same!(due(&ep, 0)?, 0);
    }
    Ok(())
}

fn epoll_oneshot() -> Outcome {
    let (c, a) = pair()?;
    let ep = epoll()?;
    watch(&ep, &a, EPOLLIN | EPOLLONESHOT)?;
    fd_write(&c, b"x")?;
    same!(due(&ep, 1000)?, EPOLLIN);
    fd_write(&c, b"y")?;
    same!(due(&ep, 10)?, 0);
    let mut ev = epoll_event { events: (EPOLLIN | EPOLLONESHOT) as u32, u64: 1 };
    ok!(epoll_ctl(ep.as_raw_fd(), EPOLL_CTL_MOD, a.as_raw_fd(), &raw mut ev));
    same!(due(&ep, 1000)?, EPOLLIN);
    Ok(())
}

fn epoll_out_edge_after_room() -> Outcome {
    let (c, a) = pair()?;
    let ep = epoll()?;
    watch(&ep, &c, EPOLLOUT | EPOLLET)?;
    same!(due(&ep, 0)?, EPOLLOUT);
    same!(due(&ep, 0)?, 0);
    let n = fill(&c)?;
    while due(&ep, 10)? != 0 {}
    take(&a, n)?;
    same!(due(&ep, 1000)?, EPOLLOUT);
    Ok(())
}

fn epoll_rdhup_and_hup() -> Outcome {
    let (c, a) = pair()?;
    let ep = epoll()?;
    watch(&ep, &c, EPOLLIN | EPOLLRDHUP)?;
    ok!(shutdown(a.as_raw_fd(), SHUT_WR));
    same!(due(&ep, 1000)?, EPOLLIN | EPOLLRDHUP);
    ok!(shutdown(c.as_raw_fd(), SHUT_WR));
    same!(due(&ep, 1000)?, EPOLLIN | EPOLLRDHUP | EPOLLHUP);
    Ok(())
}

fn epoll_exclusive_listener() -> Outcome {
    let (s, port) = server(5)?;
    let ep = epoll()?;
    watch(&ep, &s, EPOLLIN | EPOLLEXCLUSIVE)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    same!(due(&ep, 1000)?, EPOLLIN);
    Ok(())
}

fn epoll_before_connect() -> Outcome {
    let (s, port) = server(5)?;
    let c = tcp()?;
    sys::nonblock(&c)?;
    let ep = epoll()?;
    watch(&ep, &c, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)?;
    same!(due(&ep, 0)?, EPOLLOUT | EPOLLHUP);
    fails!(EINPROGRESS, connect4(&c, LOCALHOST, port));
    same!(due(&ep, 1000)?, EPOLLOUT);
    fd_write(&accept_on(&s)?, b"x")?;
    same!(due(&ep, 1000)? & EPOLLIN, EPOLLIN);
    Ok(())
}

fn duplicate_keeps_the_connection() -> Outcome {
    let (c, a) = pair()?;
    let again = own(ok!(fcntl(a.as_raw_fd(), F_DUPFD_CLOEXEC, 0)));
    drop(a);
    fd_write(&c, b"still")?;
    same!(fd_read(&again, 9)?, b"still");
    drop(again);
    same!(fd_read(&c, 9)?, b"");
    Ok(())
}

fn child_keeps_the_connection() -> Outcome {
    let (c, a) = pair()?;
    let kid = sys::fork(|| {
        sys::sleep_ms(40);
        fd_write(&a, b"from the child")?;
        Ok(())
    })?;
    drop(a);
    same!(recv_flags(&c, 99, 0)?, b"from the child");
    kid.ok()?;
    same!(fd_read(&c, 9)?, b"");
    Ok(())
}

fn connection_is_passed_over_unix() -> Outcome {
    let (c, a) = pair()?;
    let (x, y) = sys::socketpair(SOCK_STREAM)?;
    let mut control = [0u64; 4];
    let mut iov = iovec { iov_base: b"!".as_ptr() as *mut _, iov_len: 1 };
    let mut hdr: msghdr = unsafe { std::mem::zeroed() };
    hdr.msg_iov = &raw mut iov;
    hdr.msg_iovlen = 1;
    hdr.msg_control = control.as_mut_ptr().cast();
    hdr.msg_controllen = 24;
    unsafe {
        let at = CMSG_FIRSTHDR(&raw const hdr);
        (*at).cmsg_level = SOL_SOCKET;
        (*at).cmsg_type = SCM_RIGHTS;
        (*at).cmsg_len = 20;
        CMSG_DATA(at).cast::<i32>().write(a.as_raw_fd());
    }
    ok!(sendmsg(x.as_raw_fd(), &raw const hdr, 0));
    drop(a);
    let m = recv_message(&y, 9, 0)?;
    same!((m.control.len(), m.control[0].1), (1, SCM_RIGHTS));
    let fd = i32::from_ne_bytes(m.control[0].2[..4].try_into().map_err(|_| "short")?);
    let passed = own(fd);
    fd_write(&c, b"passed")?;
    same!(fd_read(&passed, 9)?, b"passed");
    Ok(())
}

fn two_readers_share_the_stream() -> Outcome {
    let (c, a) = pair()?;
    let mut kids = Vec::new();
    for _ in 0..2 {
        kids.push(sys::fork(|| {
            same!(recv_flags(&a, 4, MSG_WAITALL)?.len(), 4);
            Ok(())
        })?);
    }
    sys::sleep_ms(30);
    fd_write(&c, b"aaaa")?;
    fd_write(&c, b"bbbb")?;
    for kid in kids {
        kid.ok()?;
    }
    Ok(())
}

fn iovec_errors() -> Outcome {
    let (c, _a) = pair()?;
    let v = vec![iovec { iov_base: null_mut(), iov_len: 0 }; 1025];
    fails!(EINVAL, writev(c.as_raw_fd(), v.as_ptr(), 1025));
    fails!(EINVAL, writev(c.as_raw_fd(), v.as_ptr(), -1));
    same!(ok!(writev(c.as_raw_fd(), v.as_ptr(), 1024)), 0);
    fails!(EFAULT, send(c.as_raw_fd(), std::ptr::without_provenance(8), 4, 0));
    Ok(())
}

fn message_header_errors() -> Outcome {
    let (c, _a) = pair()?;
    fails!(EFAULT, sendmsg(c.as_raw_fd(), null_mut(), 0));
    let mut hdr: msghdr = unsafe { std::mem::zeroed() };
    hdr.msg_iovlen = 1025;
    fails!(EMSGSIZE, sendmsg(c.as_raw_fd(), &raw const hdr, 0));
    hdr.msg_iovlen = 0;
    same!(ok!(sendmsg(c.as_raw_fd(), &raw const hdr, 0)), 0);
    fails!(EBADF, sendmsg(-1, &raw const hdr, 0));
    fails!(ENOTSOCK, sendmsg(0, &raw const hdr, 0));
    Ok(())
}

fn send_timeout() -> Outcome {
    let (c, _a) = pair()?;
    let t = timeval { tv_sec: 0, tv_usec: 30_000 };
    ok!(setsockopt(c.as_raw_fd(), SOL_SOCKET, SO_SNDTIMEO, (&raw const t).cast(), 16));
    fill(&c)?;
    fails!(EAGAIN, send_flags(&c, b"x", 0));
    Ok(())
}

fn nonblocking_flag_is_of_the_description() -> Outcome {
    let (_c, a) = pair()?;
    let other = own(ok!(dup(a.as_raw_fd())));
    sys::nonblock(&other)?;
    fails!(EAGAIN, try_recv(&a, 0));
    let (s, port) = server(1)?;
    sys::nonblock(&s)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    poll_for(s.as_raw_fd(), POLLIN, 1000)?;
    let a = accept_on(&s)?;
    // It is not inherited by what is accepted.
    same!(ok!(fcntl(a.as_raw_fd(), F_GETFL)) & O_NONBLOCK, 0);
    Ok(())
}

fn accept_by_two_children() -> Outcome {
    let (s, port) = server(5)?;
    let mut kids = Vec::new();
    for _ in 0..2 {
        kids.push(sys::fork(|| {
            let a = accept_on(&s)?;
            fd_write(&a, b"served")?;
            Ok(())
        })?);
    }
    sys::sleep_ms(20);
    for _ in 0..2 {
        let c = tcp()?;
        ok!(connect4(&c, LOCALHOST, port));
        same!(drain(&c)?, b"served");
    }
    for kid in kids {
        kid.ok()?;
    }
    Ok(())
}

fn exec_keeps_what_is_not_cloexec() -> Outcome {
    let (c, a) = pair()?;
    ok!(fcntl(a.as_raw_fd(), F_SETFD, 0));
    let args = ["fd-open", &a.as_raw_fd().to_string(), &c.as_raw_fd().to_string()];
    let (out, _) = sys::helper(&args, &[], || Ok(()))?;
    same!(out, "open closed ");
    Ok(())
}

fn fstat_of_a_socket() -> Outcome {
    for s in [tcp()?, udp()?] {
        let st = sys::fstat(&s)?;
        same!((st.st_mode & S_IFMT, st.st_mode & 0o777, st.st_size), (S_IFSOCK, 0o777, 0));
    }
    Ok(())
}

fn seek_and_truncate_are_refused() -> Outcome {
    let (c, _a) = pair()?;
    fails!(ESPIPE, lseek(c.as_raw_fd(), 0, SEEK_CUR));
    fails!(EINVAL, ftruncate(c.as_raw_fd(), 0));
    fails!(ESPIPE, pread(c.as_raw_fd(), [0u8; 4].as_mut_ptr().cast(), 4, 0));
    fails!(ENODEV, mmap(null_mut(), 4096, PROT_READ, MAP_PRIVATE, udp()?.as_raw_fd(), 0));
    Ok(())
}

fn proc_fd_names_the_socket() -> Outcome {
    let s = tcp()?;
    let name = std::fs::read_link(format!("/proc/self/fd/{}", s.as_raw_fd())).map_err(|e| e.to_string())?;
    same!(name.display().to_string(), format!("socket:[{}]", sys::fstat(&s)?.st_ino));
    fails!(ENXIO, open(sys::c(&format!("/proc/self/fd/{}", s.as_raw_fd())).as_ptr(), O_RDWR));
    Ok(())
}
