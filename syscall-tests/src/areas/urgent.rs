//! Urgent data of local streams, and the signals of sockets and pipes: send(2), unix(7), fcntl(2), sockatmark(3).

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::{self, block, fd_read, fd_write, nonblock, pending, pipe, socketpair};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    local_urgent_byte_beside_the_stream,
    local_urgent_byte_is_taken_once,
    local_urgent_byte_is_passed_over,
    local_urgent_byte_inline,
    local_urgent_byte_is_peeked_at,
    second_urgent_byte_makes_the_first_ordinary,
    urgent_data_that_is_not_there,
    urgent_data_is_for_streams_alone,
    urgent_data_needs_a_peer,
    urgent_data_of_no_length,
    one_urgent_byte_alone,
    select_tells_of_urgent_data,
    urgent_data_is_a_signal,
    urgent_data_is_a_signal_over_tcp,
    urgent_data_without_an_owner_is_none,
    urgent_data_signals_a_group,
    who_set_the_owner_must_be_allowed_to_signal_it,
    readable_sockets_signal_their_owner,
    readable_tcp_signals_its_owner,
    readable_datagrams_signal_their_owner,
    readable_pipes_signal_their_owner,
    another_signal_may_be_chosen,
    no_signal_without_the_flag,
    the_signals_end_with_the_flag,
    a_listener_signals_its_owner,
    the_end_of_a_peer_is_a_signal,
    owner_is_shown,
];

const SIOCATMARK: u64 = 0x8905;

pub(super) fn mark(s: &OwnedFd) -> Result<i32, String> {
    let mut n = 0i32;
    ok!(ioctl(s.as_raw_fd(), SIOCATMARK, &raw mut n));
    Ok(n)
}

fn waiting(s: &OwnedFd) -> Result<i32, String> {
    let mut n = 0i32;
    ok!(ioctl(s.as_raw_fd(), FIONREAD, &raw mut n));
    Ok(n)
}

fn take_urgent(s: &OwnedFd) -> Result<Vec<u8>, String> {
    recv_flags(s, 4, MSG_OOB | MSG_DONTWAIT)
}

/// What a read finds that does not wait.
fn look(s: &OwnedFd) -> Result<Vec<u8>, String> {
    recv_flags(s, 32, MSG_DONTWAIT)
}

fn local() -> Result<(OwnedFd, OwnedFd), String> {
    socketpair(SOCK_STREAM)
}

fn local_urgent_byte_beside_the_stream() -> Outcome {
    let (a, b) = local()?;
    same!(send_flags(&a, b"hello", MSG_OOB), 5);
    same!(poll_now(b.as_raw_fd(), ALL)?, POLLIN | POLLPRI | POLLOUT);
    same!(waiting(&b)?, 5);
    same!(mark(&b)?, 0);
    same!(look(&b)?, b"hell");
    same!(mark(&b)?, 1);
    let got = recv_message(&b, 9, MSG_OOB)?;
    same!((got.data.as_slice(), got.flags & MSG_OOB), (&b"o"[..], MSG_OOB));
    fails!(EAGAIN, try_recv(&b, MSG_DONTWAIT));
    Ok(())
}

fn local_urgent_byte_is_taken_once() -> Outcome {
    let (a, b) = local()?;
    same!(send_flags(&a, b"ab", MSG_OOB), 2);
    same!(take_urgent(&b)?, b"b");
    fails!(EINVAL, try_recv(&b, MSG_OOB | MSG_DONTWAIT));
    same!(waiting(&b)?, 1);
    same!(poll_now(b.as_raw_fd(), ALL)?, POLLIN | POLLOUT);
    same!(look(&b)?, b"a");
    Ok(())
}

fn local_urgent_byte_is_passed_over() -> Outcome {
    let (a, b) = local()?;
    same!(send_flags(&a, b"ab", MSG_OOB), 2);
    fd_write(&a, b"cd")?;
    same!(waiting(&b)?, 4);
    same!(look(&b)?, b"a");
    same!(mark(&b)?, 1);
    same!(look(&b)?, b"cd");
    same!(mark(&b)?, 0);
    fails!(EINVAL, try_recv(&b, MSG_OOB | MSG_DONTWAIT));
    Ok(())
}

fn local_urgent_byte_inline() -> Outcome {
    let (a, b) = local()?;
    ok!(set_int(&b, SOL_SOCKET, SO_OOBINLINE, 1));
    same!(send_flags(&a, b"ab", MSG_OOB), 2);
    fd_write(&a, b"cd")?;
    fails!(EINVAL, try_recv(&b, MSG_OOB | MSG_DONTWAIT));
    same!(look(&b)?, b"a");
    same!(mark(&b)?, 1);
    same!(look(&b)?, b"bcd");
    Ok(())
}

fn local_urgent_byte_is_peeked_at() -> Outcome {
    let (a, b) = local()?;
    same!(send_flags(&a, b"ab", MSG_OOB), 2);
    same!(recv_flags(&b, 4, MSG_OOB | MSG_PEEK)?, b"b");
    same!(recv_flags(&b, 4, MSG_PEEK | MSG_DONTWAIT)?, b"a");
    same!(take_urgent(&b)?, b"b");
    same!(waiting(&b)?, 1);
    Ok(())
}

fn second_urgent_byte_makes_the_first_ordinary() -> Outcome {
    let (a, b) = local()?;
    same!(send_flags(&a, b"ab", MSG_OOB), 2);
    same!(send_flags(&a, b"cd", MSG_OOB), 2);
    same!(take_urgent(&b)?, b"d");
    same!(look(&b)?, b"abc");
    Ok(())
}

fn urgent_data_that_is_not_there() -> Outcome {
    let (a, b) = local()?;
    fails!(EINVAL, try_recv(&b, MSG_OOB | MSG_DONTWAIT));
    fd_write(&a, b"x")?;
    fails!(EINVAL, try_recv(&b, MSG_OOB | MSG_DONTWAIT));
    same!(mark(&b)?, 0);
    Ok(())
}

fn urgent_data_is_for_streams_alone() -> Outcome {
    for kind in [SOCK_DGRAM, SOCK_SEQPACKET] {
        let (a, b) = socketpair(kind)?;
        fails!(EOPNOTSUPP, send_flags(&a, b"x", MSG_OOB));
        fails!(EOPNOTSUPP, try_recv(&b, MSG_OOB | MSG_DONTWAIT));
        let mut n = 0i32;
        fails!(EOPNOTSUPP, ioctl(b.as_raw_fd(), SIOCATMARK, &raw mut n));
    }
    Ok(())
}

fn urgent_data_needs_a_peer() -> Outcome {
    let (a, b) = local()?;
    drop(b);
    fails!(EPIPE, send_flags(&a, b"x", MSG_OOB));
    let lone = sock(AF_UNIX, SOCK_STREAM)?;
    fails!(ENOTCONN, send_flags(&lone, b"x", MSG_OOB));
    Ok(())
}

fn urgent_data_of_no_length() -> Outcome {
    let (a, b) = local()?;
    fails!(EOPNOTSUPP, send_flags(&a, b"", MSG_OOB));
    same!(poll_now(b.as_raw_fd(), ALL)?, POLLOUT);
    Ok(())
}

fn one_urgent_byte_alone() -> Outcome {
    let (a, b) = local()?;
    same!(send_flags(&a, b"!", MSG_OOB), 1);
    same!(mark(&b)?, 1);
    same!(take_urgent(&b)?, b"!");
    same!(waiting(&b)?, 0);
    fd_write(&a, b"next")?;
    same!(look(&b)?, b"next");
    Ok(())
}

fn select_tells_of_urgent_data() -> Outcome {
    let (a, b) = local()?;
    let fd = b.as_raw_fd();
    let exceptional = || {
        let mut set: fd_set = unsafe { std::mem::zeroed() };
        let mut now = timeval { tv_sec: 0, tv_usec: 0 };
        unsafe {
            FD_SET(fd, &raw mut set);
            select(fd + 1, std::ptr::null_mut(), std::ptr::null_mut(), &raw mut set, &raw mut now)
        }
    };
    same!(exceptional(), 0);
    same!(send_flags(&a, b"!", MSG_OOB), 1);
    same!(exceptional(), 1);
    same!(take_urgent(&b)?, b"!");
    same!(exceptional(), 0);
    Ok(())
}

/// Blocks the signals of this area, and has `s` tell this process, by `F_SETFL` too if `told` says so.
fn own_it(s: &OwnedFd, told: bool) -> Outcome {
    block(&[SIGURG, SIGIO, SIGUSR1])?;
    ok!(fcntl(s.as_raw_fd(), F_SETOWN, getpid()));
    if told {
        let flags = ok!(fcntl(s.as_raw_fd(), F_GETFL));
        ok!(fcntl(s.as_raw_fd(), F_SETFL, flags | O_ASYNC));
    }
    Ok(())
}

/// Takes a pending signal of these, 0 for none.
fn taken(signals: &[i32]) -> i32 {
    let set = sys::sigset(signals);
    let now = timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) }.max(0)
}

fn comes(signal: i32) -> Outcome {
    sys::eventually("the signal", || taken(&[signal]) == signal)
}

fn urgent_data_is_a_signal() -> Outcome {
    let (a, b) = local()?;
    own_it(&b, false)?;
    fd_write(&a, b"x")?;
    same!(pending(SIGURG)?, false);
    same!(send_flags(&a, b"y", MSG_OOB), 1);
    comes(SIGURG)?;
    same!(pending(SIGIO)?, false);
    Ok(())
}

fn urgent_data_is_a_signal_over_tcp() -> Outcome {
    let (c, a) = pair()?;
    own_it(&a, false)?;
    fd_write(&c, b"x")?;
    same!(pending(SIGURG)?, false);
    same!(send_flags(&c, b"yz", MSG_OOB), 2);
    comes(SIGURG)?;
    same!(recv_flags(&a, 4, MSG_OOB)?, b"z");
    same!(taken(&[SIGURG]), 0);
    Ok(())
}

fn urgent_data_without_an_owner_is_none() -> Outcome {
    let (a, b) = local()?;
    block(&[SIGURG])?;
    same!(send_flags(&a, b"y", MSG_OOB), 1);
    same!(pending(SIGURG)?, false);
    ok!(fcntl(b.as_raw_fd(), F_SETOWN, getpid()));
    ok!(fcntl(b.as_raw_fd(), F_SETOWN, 0));
    same!(send_flags(&a, b"y", MSG_OOB), 1);
    same!(pending(SIGURG)?, false);
    Ok(())
}

fn urgent_data_signals_a_group() -> Outcome {
    let (a, b) = local()?;
    block(&[SIGURG])?;
    let group = unsafe { getpgrp() };
    ok!(fcntl(b.as_raw_fd(), F_SETOWN, -group));
    same!(unsafe { fcntl(b.as_raw_fd(), F_GETOWN) }, -group);
    same!(send_flags(&a, b"y", MSG_OOB), 1);
    comes(SIGURG)
}

fn who_set_the_owner_must_be_allowed_to_signal_it() -> Outcome {
    let (a, b) = local()?;
    block(&[SIGURG])?;
    let (me, urgent) = (unsafe { getpid() }, b.as_raw_fd());
    let stranger = sys::fork(move || {
        sys::drop_root()?;
        ok!(fcntl(urgent, F_SETOWN, me));
        Ok(())
    })?;
    stranger.ok()?;
    same!(unsafe { fcntl(urgent, F_GETOWN) }, me);
    same!(send_flags(&a, b"y", MSG_OOB), 1);
    sys::sleep_ms(20);
    same!(pending(SIGURG)?, false);
    ok!(fcntl(urgent, F_SETOWN, me));
    same!(send_flags(&a, b"y", MSG_OOB), 1);
    comes(SIGURG)
}

fn readable_sockets_signal_their_owner() -> Outcome {
    let (a, b) = local()?;
    own_it(&b, true)?;
    same!(taken(&[SIGIO]), 0);
    fd_write(&a, b"x")?;
    comes(SIGIO)?;
    fd_read(&b, 4)?;
    fd_write(&a, b"x")?;
    comes(SIGIO)
}

fn readable_tcp_signals_its_owner() -> Outcome {
    let (c, a) = pair()?;
    own_it(&a, true)?;
    fd_write(&c, b"x")?;
    comes(SIGIO)
}

fn readable_datagrams_signal_their_owner() -> Outcome {
    let (a, _, b, port) = udp_pair()?;
    own_it(&b, true)?;
    same!(send_to(&a, b"x", port), 1);
    comes(SIGIO)
}

fn readable_pipes_signal_their_owner() -> Outcome {
    let (r, w) = pipe()?;
    own_it(&r, true)?;
    fd_write(&w, b"x")?;
    comes(SIGIO)?;
    same!(taken(&[SIGURG]), 0);
    Ok(())
}

fn another_signal_may_be_chosen() -> Outcome {
    const F_SETSIG: i32 = 10;
    const F_GETSIG: i32 = 11;
    let (a, b) = local()?;
    own_it(&b, true)?;
    ok!(fcntl(b.as_raw_fd(), F_SETSIG, SIGUSR1));
    same!(unsafe { fcntl(b.as_raw_fd(), F_GETSIG) }, SIGUSR1);
    fd_write(&a, b"x")?;
    comes(SIGUSR1)?;
    same!(pending(SIGIO)?, false);
    Ok(())
}

fn no_signal_without_the_flag() -> Outcome {
    let (a, b) = local()?;
    own_it(&b, false)?;
    fd_write(&a, b"x")?;
    same!(pending(SIGIO)?, false);
    Ok(())
}

fn the_signals_end_with_the_flag() -> Outcome {
    let (a, b) = local()?;
    own_it(&b, true)?;
    nonblock(&b)?;
    let flags = ok!(fcntl(b.as_raw_fd(), F_GETFL));
    same!(flags & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK);
    ok!(fcntl(b.as_raw_fd(), F_SETFL, flags & !O_ASYNC));
    fd_write(&a, b"x")?;
    same!(pending(SIGIO)?, false);
    Ok(())
}

fn a_listener_signals_its_owner() -> Outcome {
    let (s, port) = server(5)?;
    own_it(&s, true)?;
    let c = tcp()?;
    ok!(connect4(&c, LOCALHOST, port));
    comes(SIGIO)
}

fn the_end_of_a_peer_is_a_signal() -> Outcome {
    let (a, b) = local()?;
    own_it(&b, true)?;
    drop(a);
    comes(SIGIO)
}

fn owner_is_shown() -> Outcome {
    let (a, _b) = local()?;
    same!(unsafe { fcntl(a.as_raw_fd(), F_GETOWN) }, 0);
    let me = unsafe { getpid() };
    ok!(fcntl(a.as_raw_fd(), F_SETOWN, me));
    same!(unsafe { fcntl(a.as_raw_fd(), F_GETOWN) }, me);
    fails!(ESRCH, fcntl(a.as_raw_fd(), F_SETOWN, 0x3fff_fff0));
    Ok(())
}
