//! epoll(7).

use crate::harness::Outcome;
use crate::sys::{self, fd_read, fd_write, own, pipe};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd};

cases![
    level_reports_until_read,
    edge_reports_once_a_change,
    oneshot_reports_once_until_rearmed,
    data_comes_back_as_given,
    ctl_errors,
    wait_errors,
    closed_descriptions_leave_the_set,
    dup_keeps_the_registration,
    hup_is_always_reported,
    epoll_is_pollable_and_nests,
    loops_are_refused,
    more_ready_than_asked_come_in_turn,
    wait_times_out_and_wakes,
    regular_files_are_refused,
    pwait_swaps_the_mask,
    exclusive_wakes_one_of_the_waiting,
    exclusive_passes_over_those_who_do_not_wait,
];

fn make() -> Result<OwnedFd, String> {
    Ok(own(ok!(epoll_create1(EPOLL_CLOEXEC))))
}

fn ctl(ep: &OwnedFd, op: i32, fd: i32, events: i32, data: u64) -> i32 {
    let mut ev = epoll_event { events: events as u32, u64: data };
    unsafe { epoll_ctl(ep.as_raw_fd(), op, fd, &raw mut ev) }
}

/// The (events, data) pairs that a wait gives.
fn wait(ep: &OwnedFd, max: i32, ms: i32) -> Result<Vec<(i32, u64)>, String> {
    let mut evs = vec![epoll_event { events: 0, u64: 0 }; max as usize];
    let n = ok!(epoll_wait(ep.as_raw_fd(), evs.as_mut_ptr(), max, ms));
    Ok(evs[..n as usize].iter().map(|e| (e.events as i32, e.u64)).collect())
}

fn level_reports_until_read() -> Outcome {
    let (rd, wr) = pipe()?;
    let ep = make()?;
    ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN, 7));
    same!(wait(&ep, 4, 0)?, vec![]);
    fd_write(&wr, b"ab")?;
    same!(wait(&ep, 4, 0)?, vec![(EPOLLIN, 7)]);
    fd_read(&rd, 1)?;
    same!(wait(&ep, 4, 0)?, vec![(EPOLLIN, 7)]);
    fd_read(&rd, 1)?;
    same!(wait(&ep, 4, 0)?, vec![]);
    Ok(())
}

fn edge_reports_once_a_change() -> Outcome {
    let (rd, wr) = pipe()?;
    let ep = make()?;
    ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN | EPOLLET, 7));
    fd_write(&wr, b"a")?;
    same!(wait(&ep, 4, 0)?.len(), 1);
    same!(wait(&ep, 4, 0)?, vec![]);
    fd_write(&wr, b"b")?;
    same!(wait(&ep, 4, 0)?.len(), 1);
    same!(wait(&ep, 4, 0)?, vec![]);
    Ok(())
}

fn oneshot_reports_once_until_rearmed() -> Outcome {
    let (rd, wr) = pipe()?;
    let ep = make()?;
    ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN | EPOLLONESHOT, 7));
    fd_write(&wr, b"a")?;
    same!(wait(&ep, 4, 0)?.len(), 1);
    fd_write(&wr, b"b")?;
    same!(wait(&ep, 4, 0)?, vec![]);
    ok!(ctl(&ep, EPOLL_CTL_MOD, rd.as_raw_fd(), EPOLLIN | EPOLLONESHOT, 8));
    same!(wait(&ep, 4, 0)?, vec![(EPOLLIN, 8)]);
    Ok(())
}

fn data_comes_back_as_given() -> Outcome {
    let (_rd, wr) = pipe()?;
    let ep = make()?;
    ok!(ctl(&ep, EPOLL_CTL_ADD, wr.as_raw_fd(), EPOLLOUT, u64::MAX - 5));
    same!(wait(&ep, 4, 0)?, vec![(EPOLLOUT, u64::MAX - 5)]);
    Ok(())
}

fn ctl_errors() -> Outcome {
    let (rd, _wr) = pipe()?;
    let ep = make()?;
    let raw = rd.as_raw_fd();
    fails!(ENOENT, ctl(&ep, EPOLL_CTL_MOD, raw, EPOLLIN, 0));
    fails!(ENOENT, ctl(&ep, EPOLL_CTL_DEL, raw, EPOLLIN, 0));
    ok!(ctl(&ep, EPOLL_CTL_ADD, raw, EPOLLIN, 0));
    fails!(EEXIST, ctl(&ep, EPOLL_CTL_ADD, raw, EPOLLIN, 0));
    fails!(EBADF, ctl(&ep, EPOLL_CTL_ADD, 500, EPOLLIN, 0));
    fails!(EINVAL, ctl(&ep, 99, raw, EPOLLIN, 0));
    fails!(EINVAL, ctl(&ep, EPOLL_CTL_ADD, ep.as_raw_fd(), EPOLLIN, 0));
    fails!(EINVAL, epoll_ctl(raw, EPOLL_CTL_DEL, ep.as_raw_fd(), std::ptr::null_mut()));
    fails!(EFAULT, epoll_ctl(ep.as_raw_fd(), EPOLL_CTL_MOD, raw, 8 as *mut epoll_event));
    ok!(epoll_ctl(ep.as_raw_fd(), EPOLL_CTL_DEL, raw, std::ptr::null_mut()));
    fails!(EINVAL, epoll_create1(1));
    fails!(EINVAL, syscall(SYS_epoll_create, 0));
    Ok(())
}

fn wait_errors() -> Outcome {
    let ep = make()?;
    let (rd, _wr) = pipe()?;
    let mut ev = epoll_event { events: 0, u64: 0 };
    fails!(EINVAL, epoll_wait(ep.as_raw_fd(), &raw mut ev, 0, 0));
    fails!(EINVAL, epoll_wait(rd.as_raw_fd(), &raw mut ev, 1, 0));
    fails!(EBADF, epoll_wait(500, &raw mut ev, 1, 0));
    Ok(())
}

fn closed_descriptions_leave_the_set() -> Outcome {
    let (rd, wr) = pipe()?;
    let ep = make()?;
    ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN, 7));
    fd_write(&wr, b"a")?;
    drop(rd);
    same!(wait(&ep, 4, 0)?, vec![]);
    Ok(())
}

fn dup_keeps_the_registration() -> Outcome {
    let (rd, wr) = pipe()?;
    let ep = make()?;
    let copy = own(ok!(dup(rd.as_raw_fd())));
    ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN, 7));
    drop(rd);
    fd_write(&wr, b"a")?;
    same!(wait(&ep, 4, 0)?, vec![(EPOLLIN, 7)]);
    drop(copy);
    same!(wait(&ep, 4, 0)?, vec![]);
    Ok(())
}

fn hup_is_always_reported() -> Outcome {
    let (rd, wr) = pipe()?;
    let ep = make()?;
    ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), 0, 7));
    drop(wr);
    same!(wait(&ep, 4, 1000)?, vec![(EPOLLHUP, 7)]);
    Ok(())
}

fn epoll_is_pollable_and_nests() -> Outcome {
    let (rd, wr) = pipe()?;
    let (inner, outer) = (make()?, make()?);
    ok!(ctl(&inner, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN, 1));
    ok!(ctl(&outer, EPOLL_CTL_ADD, inner.as_raw_fd(), EPOLLIN, 2));
    same!(wait(&outer, 4, 0)?, vec![]);
    fd_write(&wr, b"a")?;
    same!(wait(&outer, 4, 1000)?, vec![(EPOLLIN, 2)]);
    let mut p = pollfd { fd: inner.as_raw_fd(), events: POLLIN, revents: 0 };
    same!(ok!(poll(&raw mut p, 1, 0)), 1);
    same!(wait(&inner, 4, 0)?, vec![(EPOLLIN, 1)]);
    Ok(())
}

fn loops_are_refused() -> Outcome {
    let (a, b) = (make()?, make()?);
    ok!(ctl(&a, EPOLL_CTL_ADD, b.as_raw_fd(), EPOLLIN, 0));
    fails!(ELOOP, ctl(&b, EPOLL_CTL_ADD, a.as_raw_fd(), EPOLLIN, 0));
    Ok(())
}

fn more_ready_than_asked_come_in_turn() -> Outcome {
    let ep = make()?;
    let pipes: Vec<_> = (0..6).map(|_| pipe()).collect::<Result<_, _>>()?;
    for (i, (rd, wr)) in pipes.iter().enumerate() {
        ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN, i as u64));
        fd_write(wr, b"x")?;
    }
    let mut seen: Vec<u64> = Vec::new();
    for _ in 0..3 {
        seen.extend(wait(&ep, 2, 0)?.iter().map(|e| e.1));
    }
    seen.sort_unstable();
    same!(seen, vec![0, 1, 2, 3, 4, 5]);
    Ok(())
}

fn wait_times_out_and_wakes() -> Outcome {
    let (rd, wr) = pipe()?;
    let ep = make()?;
    ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN, 7));
    let start = sys::clock(CLOCK_MONOTONIC)?;
    same!(wait(&ep, 4, 30)?, vec![]);
    want!(sys::clock(CLOCK_MONOTONIC)? - start >= 29_000_000, "the wait ended too early");
    let kid = sys::fork(|| {
        sys::sleep_ms(20);
        fd_write(&wr, b"x")?;
        Ok(())
    })?;
    same!(wait(&ep, 4, 10_000)?, vec![(EPOLLIN, 7)]);
    kid.ok()
}

fn regular_files_are_refused() -> Outcome {
    let ep = make()?;
    let fd = sys::create("f")?;
    fails!(EPERM, ctl(&ep, EPOLL_CTL_ADD, fd.as_raw_fd(), EPOLLIN, 0));
    Ok(())
}

fn pwait_swaps_the_mask() -> Outcome {
    sys::on_signal(SIGUSR1, sys::count_handler, 0)?;
    sys::block(&[SIGUSR1])?;
    ok!(raise(SIGUSR1));
    let ep = make()?;
    let none = sys::sigset(&[]);
    let mut ev = epoll_event { events: 0, u64: 0 };
    fails!(EINTR, epoll_pwait(ep.as_raw_fd(), &raw mut ev, 1, 5000, &raw const none));
    same!(sys::hits(), 1);
    Ok(())
}

fn exclusive_wakes_one_of_the_waiting() -> Outcome {
    let (rd, wr) = pipe()?;
    let (ready_rd, ready_wr) = pipe()?;
    let mut kids = Vec::new();
    for _ in 0..4 {
        kids.push(sys::fork(|| {
            let ep = make()?;
            ok!(ctl(&ep, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN | EPOLLEXCLUSIVE, 1));
            fd_write(&ready_wr, b"r")?;
            // The one that is woken leaves the byte there: no other hears of it.
            let woken = wait(&ep, 4, 700)?.len();
            want!(woken <= 1, "{woken} events");
            unsafe { _exit(woken as i32) }
        })?);
    }
    let mut started = 0;
    while started < 4 {
        started += fd_read(&ready_rd, 4)?.len();
    }
    sys::sleep_ms(200);
    fd_write(&wr, b"x")?;
    let mut woken = 0;
    for kid in kids {
        let status = kid.status()?;
        want!(WIFEXITED(status), "wait status {status:#x}");
        woken += WEXITSTATUS(status);
    }
    same!(woken, 1);
    Ok(())
}

fn exclusive_passes_over_those_who_do_not_wait() -> Outcome {
    let (rd, wr) = pipe()?;
    let (idle, plain, busy) = (make()?, make()?, make()?);
    ok!(ctl(&idle, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 1));
    ok!(ctl(&busy, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN | EPOLLEXCLUSIVE, 2));
    ok!(ctl(&plain, EPOLL_CTL_ADD, rd.as_raw_fd(), EPOLLIN | EPOLLET, 3));
    let kid = sys::fork(|| {
        sys::sleep_ms(60);
        fd_write(&wr, b"x")?;
        Ok(())
    })?;
    same!(wait(&busy, 4, 5000)?, vec![(EPOLLIN, 2)]);
    kid.ok()?;
    // Each that was told on the way has its edge.
    same!(wait(&idle, 4, 0)?, vec![(EPOLLIN, 1)]);
    same!(wait(&plain, 4, 0)?, vec![(EPOLLIN, 3)]);
    Ok(())
}
