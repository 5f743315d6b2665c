//! Locks and leases: fcntl(2) record locks, open file description locks, flock(2), `F_SETLEASE`.

use crate::harness::Outcome;
use crate::sys::{self, c, put};
use libc::*;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

cases![
    getlk_of_an_unlocked_range,
    ranges_from_current_and_end,
    negative_length_locks_before,
    zero_length_reaches_past_the_end,
    upgrade_and_downgrade,
    unlock_in_the_middle_splits,
    read_locks_share,
    write_lock_needs_write_access,
    read_lock_needs_read_access,
    closing_another_descriptor_drops_them,
    locks_are_not_inherited_by_fork,
    locks_survive_exec_like_dup,
    deadlock_is_edeadlk,
    interrupted_wait_is_eintr,
    bad_arguments,
    overflow_is_eoverflow_or_einval,
    ofd_locks_follow_the_description,
    ofd_locks_conflict_with_posix_locks,
    ofd_getlk_has_pid_minus_one,
    ofd_needs_zero_pid,
    ofd_lock_of_a_fork_is_shared,
    flock_shared_and_exclusive,
    flock_converts,
    flock_is_inherited_and_shared,
    flock_and_fcntl_are_apart,
    flock_errors,
    flock_waits,
    lock_on_a_directory_and_on_a_pipe,
    lease_is_set_and_read,
    lease_needs_no_other_openers,
    lease_is_broken_by_an_open,
    nonblocking_open_of_a_leased_file_is_ewouldblock,
    read_lease_allows_readers,
    lease_errors,
    locks_of_a_deleted_file,
];

fn lk(kind: c_int, whence: c_int, start: i64, len: i64) -> flock {
    let mut l: flock = unsafe { std::mem::zeroed() };
    l.l_type = kind as c_short;
    l.l_whence = whence as c_short;
    l.l_start = start;
    l.l_len = len;
    l
}

fn set(fd: RawFd, kind: c_int, start: i64, len: i64) -> c_int {
    unsafe { fcntl(fd, F_SETLK, &raw const *Box::new(lk(kind, SEEK_SET, start, len))) }
}

fn ofd(fd: RawFd, kind: c_int, start: i64, len: i64) -> c_int {
    unsafe { fcntl(fd, F_OFD_SETLK, &raw const *Box::new(lk(kind, SEEK_SET, start, len))) }
}

/// What another process is told when it asks for a write lock: type, start, length, pid.
fn asked(path: &str, start: i64, len: i64) -> Result<(i32, i64, i64, bool), String> {
    let shared = sys::Map::shared(4096)?;
    let parent = unsafe { getpid() };
    sys::fork(|| {
        let fd = sys::open(path, O_RDWR)?;
        let mut l = lk(F_WRLCK, SEEK_SET, start, len);
        ok!(fcntl(fd.as_raw_fd(), F_GETLK, &raw mut l));
        let words: [i64; 4] = [l.l_type.into(), l.l_start, l.l_len, i64::from(l.l_pid == parent)];
        for (i, w) in words.iter().enumerate() {
            for (j, b) in w.to_ne_bytes().iter().enumerate() {
                shared.set(i * 8 + j, *b);
            }
        }
        Ok(())
    })?
    .ok()?;
    let word = |i: usize| i64::from_ne_bytes(shared.bytes()[i * 8..i * 8 + 8].try_into().unwrap());
    Ok((word(0) as i32, word(1), word(2), word(3) == 1))
}

fn getlk_of_an_unlocked_range() -> Outcome {
    let fd = sys::create("f")?;
    let mut l = lk(F_RDLCK, SEEK_SET, 7, 3);
    ok!(fcntl(fd.as_raw_fd(), F_GETLK, &raw mut l));
    same!((i32::from(l.l_type), l.l_start, l.l_len), (F_UNLCK, 7, 3));
    Ok(())
}

fn ranges_from_current_and_end() -> Outcome {
    put("f", &[0; 100])?;
    let fd = sys::open("f", O_RDWR)?;
    ok!(lseek(fd.as_raw_fd(), 50, SEEK_SET));
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const *Box::new(lk(F_WRLCK, SEEK_CUR, 5, 10))));
    same!(asked("f", 0, 0)?, (F_WRLCK, 55, 10, true));
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const *Box::new(lk(F_UNLCK, SEEK_SET, 0, 0))));
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const *Box::new(lk(F_WRLCK, SEEK_END, -10, 5))));
    same!(asked("f", 0, 0)?, (F_WRLCK, 90, 5, true));
    Ok(())
}

fn negative_length_locks_before() -> Outcome {
    let fd = sys::create("f")?;
    ok!(fcntl(fd.as_raw_fd(), F_SETLK, &raw const *Box::new(lk(F_WRLCK, SEEK_SET, 20, -5))));
    same!(asked("f", 0, 0)?, (F_WRLCK, 15, 5, true));
    same!(asked("f", 20, 1)?.0, F_UNLCK);
    fails!(EINVAL, fcntl(fd.as_raw_fd(), F_SETLK, &raw const *Box::new(lk(F_WRLCK, SEEK_SET, 3, -5))));
    Ok(())
}

fn zero_length_reaches_past_the_end() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_WRLCK, 10, 0));
    same!(asked("f", 1 << 40, 1)?, (F_WRLCK, 10, 0, true));
    same!(asked("f", 0, 10)?.0, F_UNLCK);
    Ok(())
}

fn upgrade_and_downgrade() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_RDLCK, 0, 10));
    same!(asked("f", 0, 0)?.0, F_RDLCK);
    ok!(set(fd.as_raw_fd(), F_WRLCK, 3, 4));
    same!(asked("f", 0, 3)?, (F_RDLCK, 0, 3, true));
    same!(asked("f", 4, 1)?, (F_WRLCK, 3, 4, true));
    same!(asked("f", 7, 3)?, (F_RDLCK, 7, 3, true));
    ok!(set(fd.as_raw_fd(), F_RDLCK, 3, 4));
    same!(asked("f", 0, 0)?, (F_RDLCK, 0, 10, true));
    Ok(())
}

fn unlock_in_the_middle_splits() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_WRLCK, 0, 100));
    ok!(set(fd.as_raw_fd(), F_UNLCK, 40, 20));
    same!(asked("f", 0, 0)?, (F_WRLCK, 0, 40, true));
    same!(asked("f", 40, 20)?.0, F_UNLCK);
    same!(asked("f", 40, 0)?, (F_WRLCK, 60, 40, true));
    Ok(())
}

fn read_locks_share() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_RDLCK, 0, 0));
    sys::fork(|| {
        let fd = sys::open("f", O_RDWR)?;
        ok!(set(fd.as_raw_fd(), F_RDLCK, 0, 0));
        fails!(EAGAIN, set(fd.as_raw_fd(), F_WRLCK, 0, 0));
        Ok(())
    })?
    .ok()
}

fn write_lock_needs_write_access() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    fails!(EBADF, set(fd.as_raw_fd(), F_WRLCK, 0, 0));
    fails!(EBADF, ofd(fd.as_raw_fd(), F_WRLCK, 0, 0));
    ok!(set(fd.as_raw_fd(), F_RDLCK, 0, 0));
    Ok(())
}

fn read_lock_needs_read_access() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_WRONLY)?;
    fails!(EBADF, set(fd.as_raw_fd(), F_RDLCK, 0, 0));
    ok!(set(fd.as_raw_fd(), F_WRLCK, 0, 0));
    let path = sys::open("f", O_PATH)?;
    fails!(EBADF, set(path.as_raw_fd(), F_UNLCK, 0, 0));
    Ok(())
}

fn closing_another_descriptor_drops_them() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_WRLCK, 0, 0));
    drop(sys::open("f", O_RDONLY)?);
    same!(asked("f", 0, 0)?.0, F_UNLCK);
    Ok(())
}

fn locks_are_not_inherited_by_fork() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_WRLCK, 0, 0));
    sys::fork(|| {
        fails!(EAGAIN, set(fd.as_raw_fd(), F_WRLCK, 0, 0));
        ok!(set(fd.as_raw_fd(), F_UNLCK, 0, 0));
        Ok(())
    })?
    .ok()?;
    same!(asked("f", 0, 0)?.0, F_WRLCK);
    Ok(())
}

fn locks_survive_exec_like_dup() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_WRLCK, 0, 0));
    let copy = sys::own(ok!(dup(fd.as_raw_fd())));
    // Its own lock is no conflict, through whatever descriptor.
    ok!(set(copy.as_raw_fd(), F_RDLCK, 0, 0));
    same!(asked("f", 0, 0)?.0, F_RDLCK);
    drop(copy);
    same!(asked("f", 0, 0)?.0, F_UNLCK);
    Ok(())
}

fn deadlock_is_edeadlk() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_WRLCK, 0, 1));
    let (here, there) = sys::pipe()?;
    let kid = sys::fork(|| {
        let fd = sys::open("f", O_RDWR)?;
        ok!(set(fd.as_raw_fd(), F_WRLCK, 1, 1));
        sys::fd_write(&there, b"x")?;
        ok!(fcntl(fd.as_raw_fd(), F_SETLKW, &raw const *Box::new(lk(F_WRLCK, SEEK_SET, 0, 1))));
        Ok(())
    })?;
    sys::fd_read(&here, 1)?;
    sys::sleep_ms(100);
    fails!(EDEADLK, fcntl(fd.as_raw_fd(), F_SETLKW, &raw const *Box::new(lk(F_WRLCK, SEEK_SET, 1, 1))));
    ok!(set(fd.as_raw_fd(), F_UNLCK, 0, 1));
    kid.ok()
}

fn interrupted_wait_is_eintr() -> Outcome {
    let fd = sys::create("f")?;
    ok!(set(fd.as_raw_fd(), F_WRLCK, 0, 0));
    sys::fork(|| {
        let fd = sys::open("f", O_RDWR)?;
        sys::on_signal(SIGALRM, sys::count_handler, 0)?;
        sys::tick(30)?;
        fails!(EINTR, fcntl(fd.as_raw_fd(), F_SETLKW, &raw const *Box::new(lk(F_WRLCK, SEEK_SET, 0, 0))));
        fails!(EINTR, fcntl(fd.as_raw_fd(), F_OFD_SETLKW, &raw const *Box::new(lk(F_WRLCK, SEEK_SET, 0, 0))));
        Ok(())
    })?
    .ok()
}

fn bad_arguments() -> Outcome {
    let fd = sys::create("f")?;
    let n = fd.as_raw_fd();
    fails!(EINVAL, fcntl(n, F_SETLK, &raw const *Box::new(lk(7, SEEK_SET, 0, 0))));
    fails!(EINVAL, fcntl(n, F_SETLK, &raw const *Box::new(lk(F_RDLCK, 9, 0, 0))));
    fails!(EINVAL, fcntl(n, F_SETLK, &raw const *Box::new(lk(F_RDLCK, SEEK_SET, -1, 0))));
    fails!(EINVAL, fcntl(n, F_GETLK, &raw mut *Box::new(lk(F_UNLCK, SEEK_SET, 0, 0))));
    fails!(EFAULT, fcntl(n, F_SETLK, 8));
    fails!(EFAULT, fcntl(n, F_GETLK, 8));
    fails!(EBADF, fcntl(99, F_SETLK, 8));
    Ok(())
}

fn overflow_is_eoverflow_or_einval() -> Outcome {
    put("f", &[0; 10])?;
    let fd = sys::open("f", O_RDWR)?;
    let n = fd.as_raw_fd();
    ok!(lseek(n, 10, SEEK_SET));
    fails!(EOVERFLOW, fcntl(n, F_SETLK, &raw const *Box::new(lk(F_RDLCK, SEEK_CUR, i64::MAX, 0))));
    fails!(EOVERFLOW, fcntl(n, F_SETLK, &raw const *Box::new(lk(F_RDLCK, SEEK_SET, i64::MAX, 2))));
    ok!(fcntl(n, F_SETLK, &raw const *Box::new(lk(F_RDLCK, SEEK_SET, i64::MAX, 1))));
    ok!(fcntl(n, F_SETLK, &raw const *Box::new(lk(F_RDLCK, SEEK_SET, i64::MAX, 0))));
    Ok(())
}

fn ofd_locks_follow_the_description() -> Outcome {
    let fd = sys::create("f")?;
    ok!(ofd(fd.as_raw_fd(), F_WRLCK, 0, 0));
    let other = sys::open("f", O_RDWR)?;
    fails!(EAGAIN, ofd(other.as_raw_fd(), F_RDLCK, 0, 0));
    drop(other);
    // Closing another descriptor of the file does not matter, closing a copy of this one neither.
    drop(sys::own(ok!(dup(fd.as_raw_fd()))));
    same!(asked("f", 0, 0)?.0, F_WRLCK);
    drop(fd);
    same!(asked("f", 0, 0)?.0, F_UNLCK);
    Ok(())
}

fn ofd_locks_conflict_with_posix_locks() -> Outcome {
    let (a, b) = (sys::create("f")?, sys::open("f", O_RDWR)?);
    ok!(ofd(a.as_raw_fd(), F_WRLCK, 0, 10));
    fails!(EAGAIN, set(b.as_raw_fd(), F_RDLCK, 5, 1));
    fails!(EAGAIN, set(a.as_raw_fd(), F_RDLCK, 5, 1));
    ok!(set(b.as_raw_fd(), F_WRLCK, 10, 1));
    fails!(EAGAIN, ofd(a.as_raw_fd(), F_RDLCK, 10, 1));
    Ok(())
}

fn ofd_getlk_has_pid_minus_one() -> Outcome {
    let (a, b) = (sys::create("f")?, sys::open("f", O_RDWR)?);
    ok!(ofd(a.as_raw_fd(), F_WRLCK, 3, 4));
    let mut l = lk(F_RDLCK, SEEK_SET, 0, 0);
    ok!(fcntl(b.as_raw_fd(), F_OFD_GETLK, &raw mut l));
    same!((i32::from(l.l_type), l.l_start, l.l_len, l.l_pid), (F_WRLCK, 3, 4, -1));
    let mut l = lk(F_RDLCK, SEEK_SET, 0, 0);
    ok!(fcntl(b.as_raw_fd(), F_GETLK, &raw mut l));
    same!((i32::from(l.l_type), l.l_pid), (F_WRLCK, -1));
    Ok(())
}

fn ofd_needs_zero_pid() -> Outcome {
    let fd = sys::create("f")?;
    for command in [F_OFD_SETLK, F_OFD_SETLKW, F_OFD_GETLK] {
        let mut l = lk(F_WRLCK, SEEK_SET, 0, 0);
        l.l_pid = 1;
        fails!(EINVAL, fcntl(fd.as_raw_fd(), command, &raw mut l));
    }
    Ok(())
}

fn ofd_lock_of_a_fork_is_shared() -> Outcome {
    let fd = sys::create("f")?;
    ok!(ofd(fd.as_raw_fd(), F_WRLCK, 0, 0));
    sys::fork(|| {
        ok!(ofd(fd.as_raw_fd(), F_WRLCK, 0, 0));
        ok!(ofd(fd.as_raw_fd(), F_UNLCK, 0, 0));
        Ok(())
    })?
    .ok()?;
    same!(asked("f", 0, 0)?.0, F_UNLCK);
    Ok(())
}

fn flock_shared_and_exclusive() -> Outcome {
    let (a, b) = (sys::create("f")?, sys::open("f", O_RDONLY)?);
    ok!(flock(a.as_raw_fd(), LOCK_SH));
    ok!(flock(b.as_raw_fd(), LOCK_SH | LOCK_NB));
    fails!(EWOULDBLOCK, flock(b.as_raw_fd(), LOCK_EX | LOCK_NB));
    ok!(flock(a.as_raw_fd(), LOCK_UN));
    ok!(flock(b.as_raw_fd(), LOCK_EX | LOCK_NB));
    fails!(EWOULDBLOCK, flock(a.as_raw_fd(), LOCK_SH | LOCK_NB));
    Ok(())
}

fn flock_converts() -> Outcome {
    let (a, b) = (sys::create("f")?, sys::open("f", O_RDONLY)?);
    ok!(flock(a.as_raw_fd(), LOCK_EX));
    ok!(flock(a.as_raw_fd(), LOCK_EX));
    ok!(flock(a.as_raw_fd(), LOCK_SH));
    ok!(flock(b.as_raw_fd(), LOCK_SH | LOCK_NB));
    Ok(())
}

fn flock_is_inherited_and_shared() -> Outcome {
    let (a, b) = (sys::create("f")?, sys::open("f", O_RDONLY)?);
    ok!(flock(a.as_raw_fd(), LOCK_EX));
    sys::fork(|| {
        ok!(flock(a.as_raw_fd(), LOCK_EX | LOCK_NB));
        fails!(EWOULDBLOCK, flock(b.as_raw_fd(), LOCK_EX | LOCK_NB));
        ok!(flock(a.as_raw_fd(), LOCK_UN));
        Ok(())
    })?
    .ok()?;
    ok!(flock(b.as_raw_fd(), LOCK_EX | LOCK_NB));
    Ok(())
}

fn flock_and_fcntl_are_apart() -> Outcome {
    let (a, b) = (sys::create("f")?, sys::open("f", O_RDWR)?);
    ok!(flock(a.as_raw_fd(), LOCK_EX));
    ok!(ofd(b.as_raw_fd(), F_WRLCK, 0, 0));
    Ok(())
}

fn flock_errors() -> Outcome {
    let fd = sys::create("f")?;
    fails!(EINVAL, flock(fd.as_raw_fd(), 0));
    fails!(EINVAL, flock(fd.as_raw_fd(), LOCK_SH | LOCK_EX));
    fails!(EBADF, flock(99, LOCK_SH));
    let path = sys::open("f", O_PATH)?;
    fails!(EBADF, flock(path.as_raw_fd(), LOCK_SH));
    Ok(())
}

fn flock_waits() -> Outcome {
    let a = sys::create("f")?;
    ok!(flock(a.as_raw_fd(), LOCK_EX));
    let kid = sys::fork(|| {
        let b = sys::open("f", O_RDONLY)?;
        ok!(flock(b.as_raw_fd(), LOCK_EX));
        Ok(())
    })?;
    sys::sleep_ms(50);
    ok!(flock(a.as_raw_fd(), LOCK_UN));
    kid.ok()?;
    ok!(flock(a.as_raw_fd(), LOCK_EX));
    sys::fork(|| {
        let b = sys::open("f", O_RDONLY)?;
        sys::on_signal(SIGALRM, sys::count_handler, 0)?;
        sys::tick(30)?;
        fails!(EINTR, flock(b.as_raw_fd(), LOCK_EX));
        Ok(())
    })?
    .ok()
}

fn lock_on_a_directory_and_on_a_pipe() -> Outcome {
    let d = sys::open(".", O_RDONLY | O_DIRECTORY)?;
    ok!(flock(d.as_raw_fd(), LOCK_EX));
    ok!(set(d.as_raw_fd(), F_RDLCK, 0, 0));
    fails!(EBADF, set(d.as_raw_fd(), F_WRLCK, 0, 0));
    let (r, _w) = sys::pipe()?;
    ok!(set(r.as_raw_fd(), F_RDLCK, 0, 0));
    Ok(())
}

fn lease(fd: &OwnedFd, kind: c_int) -> c_int {
    unsafe { fcntl(fd.as_raw_fd(), F_SETLEASE, kind) }
}

fn lease_is_set_and_read() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETLEASE)), F_UNLCK);
    if lease(&fd, F_RDLCK) != 0 && crate::harness::errno() == EINVAL {
        skip!("this file system has no leases");
    }
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETLEASE)), F_RDLCK);
    ok!(lease(&fd, F_UNLCK));
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETLEASE)), F_UNLCK);
    Ok(())
}

fn lease_needs_no_other_openers() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    if lease(&fd, F_RDLCK) != 0 && crate::harness::errno() == EINVAL {
        skip!("this file system has no leases");
    }
    ok!(lease(&fd, F_UNLCK));
    let writer = sys::open("f", O_RDWR)?;
    fails!(EAGAIN, lease(&fd, F_RDLCK));
    drop(writer);
    let reader = sys::open("f", O_RDONLY)?;
    fails!(EAGAIN, lease(&fd, F_WRLCK));
    ok!(lease(&fd, F_RDLCK));
    drop(reader);
    ok!(lease(&fd, F_WRLCK));
    Ok(())
}

fn lease_is_broken_by_an_open() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    sys::on_signal(SIGIO, sys::count_handler, SA_RESTART)?;
    if lease(&fd, F_RDLCK) != 0 && crate::harness::errno() == EINVAL {
        skip!("this file system has no leases");
    }
    let kid = sys::fork(|| {
        // Waits until the holder gives the lease up.
        sys::open("f", O_WRONLY)?;
        Ok(())
    })?;
    sys::eventually("SIGIO", || sys::hits() > 0)?;
    // A read lease is being broken to none.
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETLEASE)), F_UNLCK);
    ok!(lease(&fd, F_UNLCK));
    kid.ok()
}

fn nonblocking_open_of_a_leased_file_is_ewouldblock() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    sys::on_signal(SIGIO, sys::count_handler, SA_RESTART)?;
    if lease(&fd, F_WRLCK) != 0 && crate::harness::errno() == EINVAL {
        skip!("this file system has no leases");
    }
    sys::fork(|| {
        fails!(EWOULDBLOCK, open(c("f").as_ptr(), O_RDONLY | O_NONBLOCK));
        Ok(())
    })?
    .ok()?;
    sys::eventually("SIGIO", || sys::hits() > 0)?;
    // A write lease is being broken to a read lease.
    same!(ok!(fcntl(fd.as_raw_fd(), F_GETLEASE)), F_RDLCK);
    ok!(lease(&fd, F_RDLCK));
    sys::open("f", O_RDONLY | O_NONBLOCK)?;
    Ok(())
}

fn read_lease_allows_readers() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDONLY)?;
    if lease(&fd, F_RDLCK) != 0 && crate::harness::errno() == EINVAL {
        skip!("this file system has no leases");
    }
    sys::on_signal(SIGIO, sys::count_handler, SA_RESTART)?;
    sys::open("f", O_RDONLY | O_NONBLOCK)?;
    same!(sys::hits(), 0);
    drop(fd);
    sys::open("f", O_RDWR | O_NONBLOCK)?;
    Ok(())
}

fn lease_errors() -> Outcome {
    put("f", b"")?;
    let fd = sys::open("f", O_RDWR)?;
    // A read lease wants a description that is open for reading alone.
    fails!(EAGAIN, lease(&fd, F_RDLCK));
    fails!(EINVAL, lease(&fd, 9));
    fails!(EAGAIN, lease(&fd, F_UNLCK));
    let d = sys::open(".", O_RDONLY)?;
    fails!(EINVAL, lease(&d, F_RDLCK));
    let (r, _w) = sys::pipe()?;
    fails!(EINVAL, lease(&r, F_RDLCK));
    ok!(chown(c("f").as_ptr(), 0, 0));
    ok!(chmod(c("f").as_ptr(), 0o644));
    sys::fork(|| {
        sys::drop_root()?;
        let fd = sys::open("f", O_RDONLY)?;
        fails!(EACCES, lease(&fd, F_RDLCK));
        Ok(())
    })?
    .ok()
}

fn locks_of_a_deleted_file() -> Outcome {
    let (a, b) = (sys::create("f")?, sys::open("f", O_RDWR)?);
    ok!(unlink(c("f").as_ptr()));
    ok!(ofd(a.as_raw_fd(), F_WRLCK, 0, 0));
    fails!(EAGAIN, ofd(b.as_raw_fd(), F_WRLCK, 0, 0));
    put("f", b"")?;
    let new = sys::open("f", O_RDWR)?;
    ok!(ofd(new.as_raw_fd(), F_WRLCK, 0, 0));
    Ok(())
}
