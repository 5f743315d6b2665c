//! poll(2), ppoll(2), select(2).

use crate::harness::Outcome;
use crate::sys::{self, fd_write, pipe};
use libc::*;
use std::os::fd::AsRawFd;

cases![
    poll_only_writes_revents,
    poll_ignores_negative_and_reports_closed,
    poll_times_out,
    poll_wakes_on_data,
    poll_of_a_regular_file_is_always_ready,
    poll_errors,
    poll_is_interrupted,
    ppoll_swaps_the_mask,
    select_sets_and_counts,
    select_updates_the_timeout,
    select_errors,
    pselect_with_mask,
];

fn pfd(fd: i32, events: i16) -> pollfd {
    pollfd { fd, events, revents: 0x55 }
}

fn poll_only_writes_revents() -> Outcome {
    let (rd, wr) = pipe()?;
    fd_write(&wr, b"x")?;
    let mut p = [pfd(rd.as_raw_fd(), POLLIN), pfd(wr.as_raw_fd(), POLLIN)];
    same!(ok!(poll(p.as_mut_ptr(), 2, 0)), 1);
    same!((p[0].fd, p[0].events, p[0].revents), (rd.as_raw_fd(), POLLIN, POLLIN));
    same!((p[1].fd, p[1].events, p[1].revents), (wr.as_raw_fd(), POLLIN, 0));
    Ok(())
}

fn poll_ignores_negative_and_reports_closed() -> Outcome {
    let mut p = [pfd(-1, POLLIN), pfd(500, POLLIN)];
    same!(ok!(poll(p.as_mut_ptr(), 2, -1)), 1);
    same!((p[0].revents, p[1].revents), (0, POLLNVAL));
    Ok(())
}

fn poll_times_out() -> Outcome {
    let (rd, _wr) = pipe()?;
    let mut p = pfd(rd.as_raw_fd(), POLLIN);
    let start = sys::clock(CLOCK_MONOTONIC)?;
    same!(ok!(poll(&raw mut p, 1, 30)), 0);
    want!(sys::clock(CLOCK_MONOTONIC)? - start >= 29_000_000, "poll returned too early");
    same!(ok!(poll(std::ptr::null_mut(), 0, 1)), 0);
    Ok(())
}

fn poll_wakes_on_data() -> Outcome {
    let (rd, wr) = pipe()?;
    let kid = sys::fork(|| {
        sys::sleep_ms(20);
        fd_write(&wr, b"x")?;
        Ok(())
    })?;
    let mut p = pfd(rd.as_raw_fd(), POLLIN);
    same!(ok!(poll(&raw mut p, 1, 10_000)), 1);
    same!(p.revents, POLLIN);
    kid.ok()
}

fn poll_of_a_regular_file_is_always_ready() -> Outcome {
    let fd = sys::create("f")?;
    let mut p = pfd(fd.as_raw_fd(), POLLIN | POLLOUT);
    same!(ok!(poll(&raw mut p, 1, -1)), 1);
    same!(p.revents, POLLIN | POLLOUT);
    Ok(())
}

fn poll_errors() -> Outcome {
    fails!(EFAULT, poll(8 as *mut pollfd, 1, 0));
    let limit = rlimit { rlim_cur: 20, rlim_max: 20 };
    ok!(setrlimit(RLIMIT_NOFILE, &raw const limit));
    let mut p = vec![pfd(-1, 0); 30];
    fails!(EINVAL, poll(p.as_mut_ptr(), 30, 0));
    Ok(())
}

fn poll_is_interrupted() -> Outcome {
    sys::on_signal(SIGALRM, sys::count_handler, SA_RESTART)?;
    let (rd, _wr) = pipe()?;
    sys::tick(20)?;
    let mut p = pfd(rd.as_raw_fd(), POLLIN);
    fails!(EINTR, poll(&raw mut p, 1, -1));
    sys::tick(0)
}

fn ppoll_swaps_the_mask() -> Outcome {
    sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
    sys::block(&[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    let none = sys::sigset(&[]);
    let (rd, _wr) = pipe()?;
    let mut p = pfd(rd.as_raw_fd(), POLLIN);
    fails!(EINTR, ppoll(&raw mut p, 1, std::ptr::null(), &raw const none));
    same!(sys::hits(), 1);
    // The old mask is back.
    ok!(raise(SIGUSR1));
    same!(sys::hits(), 1);
    want!(sys::pending(SIGUSR1)?, "the signal is not blocked again");
    Ok(())
}

fn set_of(fds: &[i32]) -> fd_set {
    unsafe {
        let mut set = std::mem::zeroed();
        for fd in fds {
            FD_SET(*fd, &raw mut set);
        }
        set
    }
}

fn select_sets_and_counts() -> Outcome {
    let (rd, wr) = pipe()?;
    let (r, w) = (rd.as_raw_fd(), wr.as_raw_fd());
    fd_write(&wr, b"x")?;
    let mut rs = set_of(&[r, w]);
    let mut ws = set_of(&[r, w]);
    let mut zero = timeval { tv_sec: 0, tv_usec: 0 };
    same!(ok!(select(w.max(r) + 1, &raw mut rs, &raw mut ws, std::ptr::null_mut(), &raw mut zero)), 2);
    unsafe {
        same!((FD_ISSET(r, &raw const rs), FD_ISSET(w, &raw const rs)), (true, false));
        same!((FD_ISSET(r, &raw const ws), FD_ISSET(w, &raw const ws)), (false, true));
    }
    Ok(())
}

fn select_updates_the_timeout() -> Outcome {
    let (rd, wr) = pipe()?;
    fd_write(&wr, b"x")?;
    let mut rs = set_of(&[rd.as_raw_fd()]);
    let mut t = timeval { tv_sec: 100, tv_usec: 0 };
    let null = std::ptr::null_mut();
    same!(ok!(select(rd.as_raw_fd() + 1, &raw mut rs, null, null, &raw mut t)), 1);
    want!(t.tv_sec >= 98 && t.tv_sec <= 100, "{} s are left", t.tv_sec);
    let mut t = timeval { tv_sec: 0, tv_usec: 20_000 };
    same!(ok!(select(0, null, null, null, &raw mut t)), 0);
    same!((t.tv_sec, t.tv_usec), (0, 0));
    Ok(())
}

fn select_errors() -> Outcome {
    let null = std::ptr::null_mut();
    let mut rs = set_of(&[60]);
    let mut zero = timeval { tv_sec: 0, tv_usec: 0 };
    fails!(EBADF, select(61, &raw mut rs, null, null, &raw mut zero));
    fails!(EINVAL, select(-1, null, null, null, &raw mut zero));
    let mut bad = timeval { tv_sec: -1, tv_usec: 0 };
    fails!(EINVAL, select(0, null, null, null, &raw mut bad));
    Ok(())
}

fn pselect_with_mask() -> Outcome {
    sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
    sys::block(&[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    let none = sys::sigset(&[]);
    let null = std::ptr::null_mut();
    fails!(EINTR, pselect(0, null, null, null, &sys::ts(5000), &raw const none));
    same!(sys::hits(), 1);
    Ok(())
}
