//! dup(2), fcntl(2), close(2), close_range(2), descriptor numbers.

use crate::harness::Outcome;
use crate::sys::{self, fork};
use libc::*;
use std::os::fd::{AsRawFd, IntoRawFd};

cases![
    lowest_free_number_is_used,
    dup_shares_the_offset_and_not_cloexec,
    dup2_to_itself_and_over_an_open_one,
    dup3_rules,
    dupfd_starts_at_the_minimum,
    getfl_and_setfl,
    setfl_keeps_the_access_mode,
    close_twice_is_ebadf,
    close_range_closes_a_range,
    close_range_sets_cloexec,
    number_limit_is_emfile,
    lock_conflicts_between_processes,
    lock_is_dropped_when_any_descriptor_closes,
    lock_getlk_names_the_holder,
    flock_belongs_to_the_description,
    ofd_locks_conflict_between_descriptions,
    blocking_lock_waits,
    fcntl_bad_command_is_einval,
];

fn lowest_free_number_is_used() -> Outcome {
    let a = ok!(dup(0));
    let b = ok!(dup(0));
    same!((a, b), (3, 4));
    ok!(close(a));
    same!(ok!(dup(0)), 3);
    Ok(())
}

fn dup_shares_the_offset_and_not_cloexec() -> Outcome {
    sys::put("f", b"abcdef")?;
    let a = sys::open("f", O_RDONLY)?;
    let b = sys::own(ok!(dup(a.as_raw_fd())));
    same!(sys::fd_read(&a, 3)?, b"abc");
    same!(sys::fd_read(&b, 3)?, b"def");
    same!(ok!(fcntl(a.as_raw_fd(), F_GETFD)), FD_CLOEXEC);
    same!(ok!(fcntl(b.as_raw_fd(), F_GETFD)), 0);
    Ok(())
}

fn dup2_to_itself_and_over_an_open_one() -> Outcome {
    let (rd, wr) = sys::pipe()?;
    same!(ok!(dup2(rd.as_raw_fd(), rd.as_raw_fd())), rd.as_raw_fd());
    fails!(EBADF, dup2(50, 50));
    fails!(EBADF, dup2(50, 3));
    fails!(EBADF, dup2(0, -1));
    // The write end goes away when it is replaced.
    ok!(dup2(0, wr.as_raw_fd()));
    same!(sys::fd_read(&rd, 1)?, b"");
    Ok(())
}

fn dup3_rules() -> Outcome {
    fails!(EINVAL, dup3(0, 0, 0));
    fails!(EINVAL, dup3(0, 10, O_APPEND));
    same!(ok!(dup3(0, 10, O_CLOEXEC)), 10);
    same!(ok!(fcntl(10, F_GETFD)), FD_CLOEXEC);
    Ok(())
}

fn dupfd_starts_at_the_minimum() -> Outcome {
    same!(ok!(fcntl(0, F_DUPFD, 20)), 20);
    same!(ok!(fcntl(0, F_DUPFD, 20)), 21);
    same!(ok!(fcntl(0, F_DUPFD_CLOEXEC, 20)), 22);
    same!(ok!(fcntl(22, F_GETFD)), FD_CLOEXEC);
    fails!(EINVAL, fcntl(0, F_DUPFD, -1));
    Ok(())
}

fn getfl_and_setfl() -> Outcome {
    let fd = sys::open("f", O_CREAT | O_RDWR | O_APPEND)?;
    let flags = ok!(fcntl(fd.as_raw_fd(), F_GETFL));
    same!(flags & (O_ACCMODE | O_APPEND | O_NONBLOCK), O_RDWR | O_APPEND);
    ok!(fcntl(fd.as_raw_fd(), F_SETFL, O_NONBLOCK));
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETFL)) & (O_ACCMODE | O_APPEND | O_NONBLOCK), O_RDWR | O_NONBLOCK);
    Ok(())
}

fn setfl_keeps_the_access_mode() -> Outcome {
    sys::put("f", b"x")?;
    let fd = sys::open("f", O_RDONLY)?;
    ok!(fcntl(fd.as_raw_fd(), F_SETFL, O_RDWR | O_CREAT | O_TRUNC));
    fails!(EBADF, write(fd.as_raw_fd(), b"y".as_ptr().cast(), 1));
    same!(sys::slurp("f")?, "x");
    Ok(())
}

fn close_twice_is_ebadf() -> Outcome {
    let fd = ok!(dup(0));
    ok!(close(fd));
    fails!(EBADF, close(fd));
    fails!(EBADF, close(-1));
    fails!(EBADF, fcntl(fd, F_GETFD));
    Ok(())
}

fn close_range_closes_a_range() -> Outcome {
    for _ in 0..6 {
        ok!(dup(0));
    }
    ok!(syscall(SYS_close_range, 4u32, 6u32, 0));
    ok!(fcntl(3, F_GETFD));
    fails!(EBADF, fcntl(4, F_GETFD));
    fails!(EBADF, fcntl(6, F_GETFD));
    ok!(fcntl(7, F_GETFD));
    fails!(EINVAL, syscall(SYS_close_range, 6u32, 4u32, 0));
    Ok(())
}

fn close_range_sets_cloexec() -> Outcome {
    for _ in 0..3 {
        ok!(dup(0));
    }
    ok!(syscall(SYS_close_range, 4u32, 4u32, CLOSE_RANGE_CLOEXEC));
    same!(ok!(fcntl(3, F_GETFD)), 0);
    same!(ok!(fcntl(4, F_GETFD)), FD_CLOEXEC);
    same!(ok!(fcntl(5, F_GETFD)), 0);
    Ok(())
}

fn number_limit_is_emfile() -> Outcome {
    let limit = rlimit { rlim_cur: 12, rlim_max: 4096 };
    ok!(setrlimit(RLIMIT_NOFILE, &raw const limit));
    for n in 3..12 {
        same!(ok!(dup(0)), n);
    }
    fails!(EMFILE, dup(0));
    fails!(EMFILE, open(c"/dev/null".as_ptr(), O_RDONLY));
    fails!(EBADF, dup2(0, 12));
    fails!(EINVAL, fcntl(0, F_DUPFD, 12));
    Ok(())
}

fn lock_of(kind: i32, start: i64, len: i64) -> flock {
    let mut l: flock = unsafe { std::mem::zeroed() };
    l.l_type = kind as i16;
    l.l_whence = SEEK_SET as i16;
    l.l_start = start;
    l.l_len = len;
    l
}

fn lock_conflicts_between_processes() -> Outcome {
    let fd = sys::create("f")?;
    let own = lock_of(F_WRLCK, 0, 10);
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const own));
    // One's own locks never conflict.
    let again = lock_of(F_RDLCK, 5, 10);
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const again));
    fork(|| {
        let mine = lock_of(F_WRLCK, 0, 1);
        fails!(EAGAIN, fcntl(fd.as_raw_fd(), F_SETLK, &raw const mine));
        let shared = lock_of(F_RDLCK, 7, 2);
        ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const shared));
        let beyond = lock_of(F_WRLCK, 15, 0);
        ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const beyond));
        Ok(())
    })?
    .ok()
}

fn lock_is_dropped_when_any_descriptor_closes() -> Outcome {
    let fd = sys::create("f")?;
    let own = lock_of(F_WRLCK, 0, 0);
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const own));
    drop(sys::open("f", O_RDONLY)?);
    fork(|| {
        let mine = lock_of(F_WRLCK, 0, 0);
        ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const mine));
        Ok(())
    })?
    .ok()
}

fn lock_getlk_names_the_holder() -> Outcome {
    let fd = sys::create("f")?;
    let own = lock_of(F_WRLCK, 3, 4);
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const own));
    let parent = unsafe { getpid() };
    fork(|| {
        let mut probe = lock_of(F_RDLCK, 0, 0);
        ok!(fcntl(fd.as_raw_fd(), F_GETLK, &raw mut probe));
        same!((probe.l_type, probe.l_start, probe.l_len, probe.l_pid), (F_WRLCK as i16, 3, 4, parent));
        let mut free = lock_of(F_WRLCK, 7, 0);
        ok!(fcntl(fd.as_raw_fd(), F_GETLK, &raw mut free));
        same!(free.l_type, F_UNLCK as i16);
        Ok(())
    })?
    .ok()
}

fn flock_belongs_to_the_description() -> Outcome {
    let a = sys::create("f")?;
    let b = sys::open("f", O_RDWR)?;
    ok!(flock(a.as_raw_fd(), LOCK_EX));
    fails!(EWOULDBLOCK, flock(b.as_raw_fd(), LOCK_SH | LOCK_NB));
    let copy = ok!(dup(a.as_raw_fd()));
    ok!(flock(copy, LOCK_EX | LOCK_NB));
    ok!(flock(copy, LOCK_UN));
    ok!(flock(b.as_raw_fd(), LOCK_SH | LOCK_NB));
    ok!(flock(a.as_raw_fd(), LOCK_SH | LOCK_NB));
    fails!(EWOULDBLOCK, flock(a.as_raw_fd(), LOCK_EX | LOCK_NB));
    fails!(EINVAL, flock(a.as_raw_fd(), 9));
    Ok(())
}

fn ofd_locks_conflict_between_descriptions() -> Outcome {
    let a = sys::create("f")?;
    let b = sys::open("f", O_RDWR)?;
    let l = lock_of(F_WRLCK, 0, 5);
    ok!(fcntl(a.as_raw_fd(), F_OFD_SETLK, &raw const l));
    fails!(EAGAIN, fcntl(b.as_raw_fd(), F_OFD_SETLK, &raw const l));
    drop(a);
    ok!(fcntl(b.as_raw_fd(), F_OFD_SETLK, &raw const l));
    Ok(())
}

fn blocking_lock_waits() -> Outcome {
    let fd = sys::create("f")?;
    let own = lock_of(F_WRLCK, 0, 0);
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const own));
    let kid = fork(|| {
        let mine = lock_of(F_WRLCK, 0, 0);
        ok!(fcntl(fd.as_raw_fd(), F_SETLKW, &raw const mine));
        same!(sys::slurp("g")?, "done");
        Ok(())
    })?;
    sys::sleep_ms(50);
    sys::put("g", b"done")?;
    let un = lock_of(F_UNLCK, 0, 0);
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const un));
    kid.ok()
}

fn fcntl_bad_command_is_einval() -> Outcome {
    fails!(EINVAL, fcntl(0, 9999));
    let fd = sys::create("f")?.into_raw_fd();
    fails!(EBADF, fcntl(fd, F_GETPIPE_SZ));
    Ok(())
}
