//! eventfd(2), timerfd_create(2), signalfd(2).

use crate::harness::Outcome;
use crate::sys::{self, fd_read, fd_write, own, ts};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    eventfd_adds_and_clears,
    eventfd_semaphore_counts_down,
    eventfd_limits_and_sizes,
    eventfd_poll_states,
    timerfd_fires_once,
    timerfd_counts_intervals,
    timerfd_gettime_and_disarm,
    timerfd_absolute_and_errors,
    signalfd_reads_a_blocked_signal,
    signalfd_is_pollable,
    signalfd_changes_its_mask,
];

fn eventfd_of(init: u32, flags: i32) -> Result<OwnedFd, String> {
    Ok(own(ok!(eventfd(init, flags | EFD_NONBLOCK))))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(u64::MAX, u64::from_ne_bytes)
}

fn eventfd_adds_and_clears() -> Outcome {
    let fd = eventfd_of(3, 0)?;
    fd_write(&fd, &4u64.to_ne_bytes())?;
    same!(number(&fd_read(&fd, 8)?), 7);
    let mut b = [0u8; 8];
    fails!(EAGAIN, read(fd.as_raw_fd(), b.as_mut_ptr().cast(), 8));
    Ok(())
}

fn eventfd_semaphore_counts_down() -> Outcome {
    let fd = eventfd_of(2, EFD_SEMAPHORE)?;
    same!(number(&fd_read(&fd, 8)?), 1);
    same!(number(&fd_read(&fd, 8)?), 1);
    let mut b = [0u8; 8];
    fails!(EAGAIN, read(fd.as_raw_fd(), b.as_mut_ptr().cast(), 8));
    Ok(())
}

fn eventfd_limits_and_sizes() -> Outcome {
    let fd = eventfd_of(0, 0)?;
    let max = (u64::MAX - 1).to_ne_bytes();
    fd_write(&fd, &max)?;
    let one = 1u64.to_ne_bytes();
    fails!(EAGAIN, write(fd.as_raw_fd(), one.as_ptr().cast(), 8));
    fails!(EINVAL, write(fd.as_raw_fd(), one.as_ptr().cast(), 4));
    let all = u64::MAX.to_ne_bytes();
    fails!(EINVAL, write(fd.as_raw_fd(), all.as_ptr().cast(), 8));
    let mut b = [0u8; 8];
    fails!(EINVAL, read(fd.as_raw_fd(), b.as_mut_ptr().cast(), 7));
    fails!(EINVAL, syscall(SYS_eventfd2, 0, 0x4));
    Ok(())
}

fn eventfd_poll_states() -> Outcome {
    let fd = eventfd_of(0, 0)?;
    let state = || -> Result<i16, String> {
        let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN | POLLOUT, revents: 0 };
        ok!(poll(&raw mut p, 1, 0));
        Ok(p.revents)
    };
    same!(state()?, POLLOUT);
    fd_write(&fd, &1u64.to_ne_bytes())?;
    same!(state()?, POLLIN | POLLOUT);
    fd_read(&fd, 8)?;
    fd_write(&fd, &(u64::MAX - 1).to_ne_bytes())?;
    same!(state()?, POLLIN);
    Ok(())
}

fn timer(flags: i32, value_ms: i64, interval_ms: i64) -> Result<OwnedFd, String> {
    let fd = own(ok!(timerfd_create(CLOCK_MONOTONIC, flags)));
    let spec = itimerspec { it_interval: ts(interval_ms), it_value: ts(value_ms) };
    ok!(timerfd_settime(fd.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()));
    Ok(fd)
}

fn timerfd_fires_once() -> Outcome {
    let fd = timer(0, 20, 0)?;
    same!(number(&fd_read(&fd, 8)?), 1);
    let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 30)), 0);
    Ok(())
}

fn timerfd_counts_intervals() -> Outcome {
    let fd = timer(TFD_NONBLOCK, 10, 10)?;
    sys::sleep_ms(100);
    let n = number(&fd_read(&fd, 8)?);
    want!((5..=100).contains(&n), "{n} expirations in 100 ms of 10 ms each");
    Ok(())
}

fn timerfd_gettime_and_disarm() -> Outcome {
    let fd = timer(TFD_NONBLOCK, 100_000, 7000)?;
    let mut now = itimerspec { it_interval: ts(0), it_value: ts(0) };
    ok!(timerfd_gettime(fd.as_raw_fd(), &raw mut now));
    want!((98..=100).contains(&now.it_value.tv_sec), "{} s are left of 100", now.it_value.tv_sec);
    same!(now.it_interval.tv_sec, 7);
    let off = itimerspec { it_interval: ts(0), it_value: ts(0) };
    ok!(timerfd_settime(fd.as_raw_fd(), 0, &raw const off, &raw mut now));
    want!(now.it_value.tv_sec >= 98, "the old value is {} s", now.it_value.tv_sec);
    ok!(timerfd_gettime(fd.as_raw_fd(), &raw mut now));
    same!((now.it_value.tv_sec, now.it_value.tv_nsec), (0, 0));
    Ok(())
}

fn timerfd_absolute_and_errors() -> Outcome {
    let fd = own(ok!(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)));
    let mut b = [0u8; 8];
    fails!(EAGAIN, read(fd.as_raw_fd(), b.as_mut_ptr().cast(), 8));
    let past = itimerspec { it_interval: ts(0), it_value: ts(1) };
    ok!(timerfd_settime(fd.as_raw_fd(), TFD_TIMER_ABSTIME, &raw const past, std::ptr::null_mut()));
    let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 5000)), 1);
    let bad = itimerspec { it_interval: ts(0), it_value: timespec { tv_sec: 0, tv_nsec: -1 } };
    fails!(EINVAL, timerfd_settime(fd.as_raw_fd(), 0, &raw const bad, std::ptr::null_mut()));
    fails!(EINVAL, timerfd_create(99, 0));
    fails!(EINVAL, timerfd_settime(0, 0, &raw const past, std::ptr::null_mut()));
    Ok(())
}

fn signalfd_reads_a_blocked_signal() -> Outcome {
    sys::block(&[SIGUSR1, SIGUSR2])?;
    let set = sys::sigset(&[SIGUSR1, SIGUSR2]);
    let fd = own(ok!(signalfd(-1, &raw const set, SFD_NONBLOCK)));
    let mut b = [0u8; 128];
    fails!(EAGAIN, read(fd.as_raw_fd(), b.as_mut_ptr().cast(), 128));
    ok!(kill(getpid(), SIGUSR2));
    let got = fd_read(&fd, 256)?;
    same!(got.len(), 128);
    same!(u32::from_ne_bytes(got[..4].try_into().map_err(|_| "short")?), SIGUSR2 as u32);
    same!(i32::from_ne_bytes(got[12..16].try_into().map_err(|_| "short")?), unsafe { getpid() });
    want!(!sys::pending(SIGUSR2)?, "the signal is still pending");
    fails!(EINVAL, read(fd.as_raw_fd(), b.as_mut_ptr().cast(), 100));
    Ok(())
}

fn signalfd_is_pollable() -> Outcome {
    sys::block(&[SIGUSR1])?;
    let set = sys::sigset(&[SIGUSR1]);
    let fd = own(ok!(signalfd(-1, &raw const set, 0)));
    let parent = unsafe { getpid() };
    let kid = sys::fork(|| {
        sys::sleep_ms(20);
        ok!(kill(parent, SIGUSR1));
        Ok(())
    })?;
    let mut p = pollfd { fd: fd.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 10_000)), 1);
    same!(fd_read(&fd, 128)?.len(), 128);
    kid.ok()
}

fn signalfd_changes_its_mask() -> Outcome {
    sys::block(&[SIGUSR1, SIGUSR2])?;
    let one = sys::sigset(&[SIGUSR1]);
    let fd = own(ok!(signalfd(-1, &raw const one, SFD_NONBLOCK)));
    ok!(raise(SIGUSR2));
    let mut b = [0u8; 128];
    fails!(EAGAIN, read(fd.as_raw_fd(), b.as_mut_ptr().cast(), 128));
    let two = sys::sigset(&[SIGUSR2]);
    same!(ok!(signalfd(fd.as_raw_fd(), &raw const two, 0)), fd.as_raw_fd());
    same!(fd_read(&fd, 128)?.len(), 128);
    fails!(EINVAL, signalfd(0, &raw const two, 0));
    Ok(())
}
