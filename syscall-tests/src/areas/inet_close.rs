//! Sockets that connect to themselves, and closing that waits: tcp(7), socket(7), "SO_LINGER".

use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::{self, fd_read, fd_write, nonblock};
use libc::*;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

cases![
    a_socket_connects_to_itself,
    what_is_sent_to_oneself_comes_back,
    a_half_closed_circle_ends,
    a_circle_has_two_equal_names,
    a_circle_is_ready_for_what_it_holds,
    linger_of_an_empty_socket_is_short,
    linger_waits_for_its_time,
    linger_ends_when_all_is_taken,
    linger_ends_with_a_signal,
    linger_off_closes_at_once,
    linger_waits_for_the_last_descriptor,
    linger_is_shown,
    keep_alive_options_have_bounds,
    user_timeout_is_kept,
];

fn circle() -> Result<(OwnedFd, u16), String> {
    let s = tcp()?;
    ok!(bind4(&s, LOCALHOST, 0));
    let port = port_of(&s)?;
    ok!(connect4(&s, LOCALHOST, port));
    Ok((s, port))
}

fn a_socket_connects_to_itself() -> Outcome {
    let (s, port) = circle()?;
    fails!(EISCONN, connect4(&s, LOCALHOST, port));
    same!(get_int(&s, SOL_SOCKET, SO_ERROR)?, 0);
    fails!(EINVAL, listen(s.as_raw_fd(), 1));
    Ok(())
}

fn what_is_sent_to_oneself_comes_back() -> Outcome {
    let (s, _) = circle()?;
    fails!(EAGAIN, try_recv(&s, MSG_DONTWAIT));
    fd_write(&s, b"hello")?;
    sys::sleep_ms(2);
    same!(recv_flags(&s, 3, MSG_PEEK)?, b"hel");
    same!(fd_read(&s, 9)?, b"hello");
    let data = pattern(20_000);
    send_all(&s, &data)?;
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(recv_flags(&s, 7000, 0)?);
    }
    same!(got == data, true);
    Ok(())
}

fn a_half_closed_circle_ends() -> Outcome {
    let (s, _) = circle()?;
    fd_write(&s, b"last")?;
    ok!(shutdown(s.as_raw_fd(), SHUT_WR));
    sys::sleep_ms(5);
    same!(recv_flags(&s, 9, 0)?, b"last");
    same!(recv_flags(&s, 9, 0)?, b"");
    fails!(EPIPE, send_flags(&s, b"x", 0));
    Ok(())
}

fn a_circle_has_two_equal_names() -> Outcome {
    let (s, port) = circle()?;
    same!(name_of(&s, false)?, name_of(&s, true)?);
    same!(name_of(&s, true)?.2, port);
    Ok(())
}

fn a_circle_is_ready_for_what_it_holds() -> Outcome {
    let (s, _) = circle()?;
    same!(poll_now(s.as_raw_fd(), ALL)?, POLLOUT);
    fd_write(&s, b"x")?;
    same!(poll_for(s.as_raw_fd(), POLLIN, 1000)?, POLLIN);
    same!(poll_now(s.as_raw_fd(), ALL)?, POLLIN | POLLOUT);
    let mut n = 0i32;
    ok!(ioctl(s.as_raw_fd(), FIONREAD, &raw mut n));
    same!(n, 1);
    Ok(())
}

fn set_linger(s: &OwnedFd, on: i32, seconds: i32) -> Outcome {
    let value = linger { l_onoff: on, l_linger: seconds };
    ok!(setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw const value).cast(), 8));
    Ok(())
}

/// How long `close` takes.
fn closing(s: OwnedFd) -> Result<Duration, String> {
    let before = Instant::now();
    ok!(close(s.into_raw_fd()));
    Ok(before.elapsed())
}

/// A connection that has taken all that fits, without anybody who reads.
fn full() -> Result<(OwnedFd, OwnedFd), String> {
    let (c, a) = pair()?;
    nonblock(&c)?;
    let data = vec![7; 1 << 16];
    while unsafe { send(c.as_raw_fd(), data.as_ptr().cast(), data.len(), MSG_NOSIGNAL) } > 0 {}
    let flags = ok!(fcntl(c.as_raw_fd(), F_GETFL));
    ok!(fcntl(c.as_raw_fd(), F_SETFL, flags & !O_NONBLOCK));
    Ok((c, a))
}

fn linger_of_an_empty_socket_is_short() -> Outcome {
    let (c, a) = pair()?;
    fd_write(&c, b"x")?;
    set_linger(&c, 1, 20)?;
    same!(closing(c)? < Duration::from_secs(10), true);
    same!(fd_read(&a, 4)?, b"x");
    same!(fd_read(&a, 4)?, b"");
    Ok(())
}

fn linger_waits_for_its_time() -> Outcome {
    let (c, _a) = full()?;
    set_linger(&c, 1, 1)?;
    let took = closing(c)?;
    same!(took >= Duration::from_millis(900), true);
    Ok(())
}

fn linger_ends_when_all_is_taken() -> Outcome {
    let (c, a) = full()?;
    set_linger(&c, 1, 60)?;
    let reader = std::thread::spawn(move || {
        sys::sleep_ms(50);
        drain(&a).map(|bytes| bytes.len())
    });
    let took = closing(c)?;
    same!(took < Duration::from_secs(40), true);
    same!(reader.join().map_err(|_| "the reader")?? > 1 << 16, true);
    Ok(())
}

fn linger_ends_with_a_signal() -> Outcome {
    let (c, _a) = full()?;
    set_linger(&c, 1, 60)?;
    sys::on_signal(SIGALRM, sys::count_handler, 0)?;
    sys::tick(50)?;
    let took = closing(c)?;
    sys::tick(0)?;
    same!(took < Duration::from_secs(40), true);
    Ok(())
}

fn linger_off_closes_at_once() -> Outcome {
    let (c, _a) = full()?;
    set_linger(&c, 0, 60)?;
    same!(closing(c)? < Duration::from_secs(30), true);
    Ok(())
}

fn linger_waits_for_the_last_descriptor() -> Outcome {
    let (c, _a) = full()?;
    set_linger(&c, 1, 1)?;
    let other = ok!(dup(c.as_raw_fd()));
    let other = sys::own(other);
    same!(closing(c)? < Duration::from_millis(900), true);
    same!(closing(other)? >= Duration::from_millis(900), true);
    Ok(())
}

fn linger_is_shown() -> Outcome {
    let s = tcp()?;
    set_linger(&s, 1, 5)?;
    let (mut value, mut len) = (linger { l_onoff: 9, l_linger: 9 }, 8u32);
    ok!(getsockopt(s.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw mut value).cast(), &raw mut len));
    same!((value.l_onoff, value.l_linger, len), (1, 5, 8));
    Ok(())
}

fn keep_alive_options_have_bounds() -> Outcome {
    let s = tcp()?;
    for (name, most) in [(TCP_KEEPIDLE, 32_767), (TCP_KEEPINTVL, 32_767), (TCP_KEEPCNT, 127)] {
        fails!(EINVAL, set_int(&s, IPPROTO_TCP, name, 0));
        fails!(EINVAL, set_int(&s, IPPROTO_TCP, name, most + 1));
        ok!(set_int(&s, IPPROTO_TCP, name, most));
        same!(get_int(&s, IPPROTO_TCP, name)?, most);
    }
    ok!(set_int(&s, SOL_SOCKET, SO_KEEPALIVE, 7));
    same!(get_int(&s, SOL_SOCKET, SO_KEEPALIVE)?, 1);
    Ok(())
}

fn user_timeout_is_kept() -> Outcome {
    let (c, a) = pair()?;
    ok!(set_int(&c, IPPROTO_TCP, TCP_USER_TIMEOUT, 50));
    same!(get_int(&c, IPPROTO_TCP, TCP_USER_TIMEOUT)?, 50);
    fails!(EINVAL, set_int(&c, IPPROTO_TCP, TCP_USER_TIMEOUT, -1));
    // Over the loopback everything is acknowledged.
    fd_write(&c, b"x")?;
    sys::sleep_ms(120);
    fd_write(&c, b"y")?;
    same!(fd_read(&a, 4)?, b"xy");
    Ok(())
}
