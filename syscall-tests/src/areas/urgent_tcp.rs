//! Urgent data of TCP connections: tcp(7), recv(2), sockatmark(3).

use super::urgent::mark;
use crate::harness::Outcome;
use crate::inet::*;
use crate::sys::{self, fd_write, nonblock};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    two_urgent_bytes_in_a_row_leave_the_stream,
    the_second_urgent_byte_makes_the_first_ordinary,
    the_second_urgent_byte_removes_the_first_from_before_its_reader,
    peeks_stop_at_the_urgent_byte,
    peeks_from_an_offset_know_the_urgent_byte,
    reads_of_nothing_leave_the_mark,
    the_urgent_byte_outlives_the_end_of_the_stream,
    the_urgent_byte_does_not_outlive_a_reset,
    the_urgent_byte_may_be_thrown_away,
    what_a_part_of_a_send_ends_with_is_urgent,
];

fn waiting(s: &OwnedFd) -> i32 {
    let mut n = 0i32;
    if unsafe { ioctl(s.as_raw_fd(), FIONREAD, &raw mut n) } < 0 { -1 } else { n }
}

fn take_urgent(s: &OwnedFd) -> Result<Vec<u8>, String> {
    recv_flags(s, 4, MSG_OOB)
}

/// What a read finds that does not wait.
fn look(s: &OwnedFd, flags: i32) -> Result<Vec<u8>, String> {
    recv_flags(s, 32, MSG_DONTWAIT | flags)
}

/// Sends urgent data and waits until its last byte is there.
fn send_urgent(c: &OwnedFd, a: &OwnedFd, data: &[u8]) -> Outcome {
    let last = data.last().copied();
    same!(send_flags(c, data, MSG_OOB), data.len() as isize);
    let inline = get_int(a, SOL_SOCKET, SO_OOBINLINE)? != 0;
    sys::eventually("the urgent byte", || {
        let there = poll_for(a.as_raw_fd(), POLLPRI, 0) == Ok(POLLPRI);
        there
            && (inline || recv_flags(a, 1, MSG_OOB | MSG_PEEK).is_ok_and(|got| got.first().copied() == last))
    })
}

fn two_urgent_bytes_in_a_row_leave_the_stream() -> Outcome {
    let (c, a) = pair()?;
    send_urgent(&c, &a, b"A")?;
    send_urgent(&c, &a, b"B")?;
    same!((waiting(&a), mark(&a)?), (0, 1));
    same!(take_urgent(&a)?, b"B");
    fails!(EAGAIN, try_recv(&a, MSG_DONTWAIT));
    same!(mark(&a)?, 0);
    Ok(())
}

fn the_second_urgent_byte_makes_the_first_ordinary() -> Outcome {
    let (c, a) = pair()?;
    send_urgent(&c, &a, b"xA")?;
    send_urgent(&c, &a, b"B")?;
    same!((waiting(&a), mark(&a)?), (2, 0));
    same!(look(&a, 0)?, b"xA");
    same!(mark(&a)?, 1);
    same!(take_urgent(&a)?, b"B");
    Ok(())
}

fn the_second_urgent_byte_removes_the_first_from_before_its_reader() -> Outcome {
    for inline in [false, true] {
        let (c, a) = pair()?;
        ok!(set_int(&a, SOL_SOCKET, SO_OOBINLINE, i32::from(inline)));
        send_urgent(&c, &a, b"xA")?;
        same!(look(&a, 0)?, b"x");
        same!(mark(&a)?, 1);
        same!(send_flags(&c, b"yB", MSG_OOB), 2);
        let more = if inline { 3 } else { 1 };
        sys::eventually("the second byte", || waiting(&a) == more)?;
        same!(mark(&a)?, 0);
        same!(look(&a, 0)?, if inline { &b"Ay"[..] } else { b"y" });
        same!(mark(&a)?, 1);
    }
    Ok(())
}

fn peeks_stop_at_the_urgent_byte() -> Outcome {
    for inline in [false, true] {
        let (c, a) = pair()?;
        ok!(set_int(&a, SOL_SOCKET, SO_OOBINLINE, i32::from(inline)));
        send_urgent(&c, &a, b"abX")?;
        fd_write(&c, b"cd")?;
        sys::sleep_ms(5);
        same!(look(&a, MSG_PEEK)?, b"ab");
        same!(look(&a, 0)?, b"ab");
        let rest: &[u8] = if inline { b"Xcd" } else { b"cd" };
        same!(look(&a, MSG_PEEK)?, rest);
        same!(mark(&a)?, 1);
        same!(look(&a, 0)?, rest);
        same!(mark(&a)?, 0);
    }
    Ok(())
}

fn peeks_from_an_offset_know_the_urgent_byte() -> Outcome {
    let (c, a) = pair()?;
    send_urgent(&c, &a, b"abX")?;
    fd_write(&c, b"cd")?;
    sys::sleep_ms(5);
    let starts: [(i32, &[&[u8]]); 3] = [(1, &[b"b", b"cd", b"d"]), (3, &[b"cd"]), (2, &[b"cd", b"d"])];
    for (from, seen) in starts {
        ok!(set_int(&a, SOL_SOCKET, SO_PEEK_OFF, from));
        for part in seen {
            same!(look(&a, MSG_PEEK)?, *part);
        }
        fails!(EAGAIN, try_recv(&a, MSG_PEEK | MSG_DONTWAIT));
    }
    Ok(())
}

fn reads_of_nothing_leave_the_mark() -> Outcome {
    for inline in [false, true] {
        let (c, a) = pair()?;
        ok!(set_int(&a, SOL_SOCKET, SO_OOBINLINE, i32::from(inline)));
        send_urgent(&c, &a, b"X")?;
        same!(recv_flags(&a, 0, MSG_DONTWAIT)?, b"");
        same!(mark(&a)?, 1);
        if inline {
            same!(look(&a, 0)?, b"X");
        } else {
            same!(take_urgent(&a)?, b"X");
        }
    }
    Ok(())
}

fn the_urgent_byte_outlives_the_end_of_the_stream() -> Outcome {
    let (c, a) = pair()?;
    send_urgent(&c, &a, b"ab")?;
    drop(c);
    same!(poll_for(a.as_raw_fd(), POLLRDHUP, 5000)?, POLLRDHUP);
    same!(recv_flags(&a, 4, MSG_OOB | MSG_PEEK)?, b"b");
    same!(look(&a, 0)?, b"a");
    same!(look(&a, 0)?, b"");
    fails!(EINVAL, try_recv(&a, MSG_OOB));
    Ok(())
}

fn the_urgent_byte_does_not_outlive_a_reset() -> Outcome {
    let (c, a) = pair()?;
    send_urgent(&c, &a, b"ab")?;
    let value = linger { l_onoff: 1, l_linger: 0 };
    ok!(setsockopt(c.as_raw_fd(), SOL_SOCKET, SO_LINGER, (&raw const value).cast(), 8));
    drop(c);
    same!(poll_for(a.as_raw_fd(), POLLRDHUP, 5000)? & POLLHUP, POLLHUP);
    fails!(ENOTCONN, try_recv(&a, MSG_OOB));
    Ok(())
}

fn the_urgent_byte_may_be_thrown_away() -> Outcome {
    let (c, a) = pair()?;
    send_urgent(&c, &a, b"ab")?;
    let mut kept = [7u8; 4];
    same!(ok!(recv(a.as_raw_fd(), kept.as_mut_ptr().cast(), 4, MSG_OOB | MSG_TRUNC)), 1);
    same!(kept, [7; 4]);
    fails!(EINVAL, try_recv(&a, MSG_OOB));
    Ok(())
}

fn what_a_part_of_a_send_ends_with_is_urgent() -> Outcome {
    let (c, a) = pair()?;
    nonblock(&c)?;
    let data = vec![b'x'; 32 << 20];
    let sent = send_flags(&c, &data, MSG_OOB);
    same!(sent > 0 && sent < data.len() as isize, true);
    let mut got = 0;
    loop {
        let part = recv_flags(&a, 1 << 20, MSG_DONTWAIT).unwrap_or_default();
        got += part.len() as isize;
        if got == sent - 1 {
            break;
        }
        if part.is_empty() {
            same!(poll_for(a.as_raw_fd(), POLLIN, 5000)?, POLLIN);
        }
    }
    same!(mark(&a)?, 1);
    sys::eventually("the urgent byte", || poll_for(a.as_raw_fd(), POLLPRI, 0) == Ok(POLLPRI))?;
    same!(take_urgent(&a)?, b"x");
    fails!(EAGAIN, try_recv(&a, MSG_DONTWAIT));
    Ok(())
}
