//! Files in which lseek(2) has moved the position: seeks, reads and writes of any of them, and of a large one that nobody
//! has changed.

use super::*;

/// Opens a new file to read and write.
fn fresh(name: &str) -> Result<OwnedFd, String> {
    sys::create(name)
}

pub fn a_file_that_is_written_is_sought_in() -> Outcome {
    let fd = fresh("written")?;
    let mut wanted = vec![0; 5000];
    for n in 0..200_i64 {
        let at = n * 37 % 4900;
        same!(seek(&fd, at, SEEK_SET)?, at);
        same!(seek(&fd, at, SEEK_SET)?, at);
        same!(seek(&fd, 0, SEEK_CUR)?, at);
        let bytes = [n as u8 + 1; 10];
        sys::fd_write(&fd, &bytes)?;
        wanted[at as usize..][..10].copy_from_slice(&bytes);
        same!(seek(&fd, 0, SEEK_CUR)?, at + 10);
        same!(seek(&fd, -3, SEEK_CUR)?, at + 7);
        same!(read_n(&fd, 3)?, bytes[..3]);
        fails!(EINVAL, lseek(fd.as_raw_fd(), -1, SEEK_SET));
        fails!(EINVAL, lseek(fd.as_raw_fd(), -6000, SEEK_CUR));
        same!(seek(&fd, 0, SEEK_CUR)?, at + 10);
    }
    let size = sys::fstat(&fd)?.st_size;
    wanted.truncate(size as usize);
    same!(seek(&fd, 0, SEEK_END)?, size);
    same!(read_n(&fd, 1)?, b"");
    same!(seek(&fd, 0, SEEK_SET)?, 0);
    same!(read_n(&fd, 6000)?, wanted);
    same!(seek(&fd, 1 << 40, SEEK_SET)?, 1 << 40);
    same!(read_n(&fd, 1)?, b"");
    fails!(EINVAL, lseek(fd.as_raw_fd(), i64::MAX, SEEK_CUR));
    Ok(())
}

pub fn a_file_that_changes_is_read_anew() -> Outcome {
    drop(fresh("changes")?);
    let again = sys::open("changes", O_RDONLY)?;
    let other = Other::new(|order| {
        let fd = sys::open("changes", O_WRONLY)?;
        ok!(ftruncate(fd.as_raw_fd(), 0));
        sys::fd_write(&fd, &[order; 50])?;
        Ok(())
    })?;
    for order in 1..30_u8 {
        for _ in 0..3 {
            same!(seek(&again, 10, SEEK_SET)?, 10);
            let there = read_n(&again, 20)?;
            same!(there, vec![order - 1; if order == 1 { 0 } else { 20 }]);
        }
        other.does(order)?;
        same!(seek(&again, 10, SEEK_SET)?, 10);
        same!(read_n(&again, 20)?, [order; 20]);
        same!(by_fd(&again)?.5, 50);
    }
    other.ends()
}

pub fn two_files_are_sought_in_by_turns() -> Outcome {
    let files = [fresh("one")?, fresh("two")?];
    for (n, fd) in files.iter().enumerate() {
        sys::fd_write(fd, &[n as u8; 100])?;
    }
    for n in 0..100 {
        for (index, fd) in files.iter().enumerate() {
            let at = (n * 3 + index as i64) % 90;
            same!(seek(fd, at, SEEK_SET)?, at);
            let other = &files[1 - index];
            let there = seek(other, 0, SEEK_CUR)?;
            same!(read_n(fd, 5)?, [index as u8; 5]);
            same!(seek(other, 0, SEEK_CUR)?, there);
            same!(seek(fd, 0, SEEK_CUR)?, at + 5);
        }
    }
    Ok(())
}

pub fn appends_move_to_the_end() -> Outcome {
    let fd = fresh("appended")?;
    let append = sys::open("appended", O_RDWR | O_APPEND)?;
    for n in 0..50 {
        same!(seek(&append, 1, SEEK_SET)?, 1);
        same!(seek(&append, 2, SEEK_SET)?, 2);
        sys::fd_write(&append, b"ten bytes.")?;
        same!(seek(&append, 0, SEEK_CUR)?, (n + 1) * 10);
        same!(seek(&fd, 0, SEEK_END)?, (n + 1) * 10);
    }
    Ok(())
}

pub fn a_duplicate_is_sought_in() -> Outcome {
    let fd = fresh("duplicate")?;
    for _ in 0..20 {
        same!(seek(&fd, 5, SEEK_SET)?, 5);
        same!(seek(&fd, 6, SEEK_SET)?, 6);
        let copy = ok!(dup(fd.as_raw_fd()));
        same!(ok!(lseek(copy, 3, SEEK_CUR)), 9);
        same!(seek(&fd, 1, SEEK_CUR)?, 10);
        same!(ok!(lseek(copy, 0, SEEK_CUR)), 10);
        // Another file under its number.
        let other = fresh("another")?;
        ok!(dup2(other.as_raw_fd(), copy));
        same!(ok!(lseek(copy, 70, SEEK_SET)), 70);
        same!(seek(&other, 0, SEEK_CUR)?, 70);
        same!(seek(&fd, 0, SEEK_CUR)?, 10);
        ok!(close(copy));
    }
    Ok(())
}

pub fn a_child_is_sought_with() -> Outcome {
    let fd = fresh("child")?;
    for n in 0..20 {
        same!(seek(&fd, n, SEEK_SET)?, n);
        same!(seek(&fd, n + 1, SEEK_SET)?, n + 1);
        sys::fork(|| {
            same!(seek(&fd, 10, SEEK_CUR)?, n + 11);
            same!(seek(&fd, 10, SEEK_CUR)?, n + 21);
            Ok(())
        })?
        .ok()?;
        same!(seek(&fd, 0, SEEK_CUR)?, n + 21);
    }
    let there = seek(&fd, 0, SEEK_CUR)?;
    same!(std::thread::scope(|scope| scope.spawn(|| seek(&fd, 1, SEEK_CUR)).join().unwrap())?, there + 1);
    same!(seek(&fd, 1, SEEK_CUR)?, there + 2);
    Ok(())
}

pub fn others_see_and_move_a_place() -> Outcome {
    let parent = unsafe { getpid() };
    let outside = Outside::new(|turns| {
        let pidfd = sys::own(ok!(syscall(SYS_pidfd_open, parent, 0)) as i32);
        for turn in 1..40 {
            let number = turns.wait(turn)?;
            let info = sys::slurp(&format!("/proc/{parent}/fdinfo/{number}"))?;
            let at = info.lines().find_map(|line| line.strip_prefix("pos:\t")).map(str::to_string);
            same!(at, Some((turn * 7).to_string()));
            if turn % 3 == 0 {
                let fd = sys::own(ok!(syscall(SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0)) as i32);
                same!(seek(&fd, 100, SEEK_CUR)?, i64::from(turn * 7 + 100));
            }
            turns.done(turn);
        }
        Ok(())
    })?;
    let fd = fresh("others")?;
    for turn in 1..40_i32 {
        same!(seek(&fd, 1, SEEK_SET)?, 1);
        same!(seek(&fd, i64::from(turn * 7), SEEK_SET)?, i64::from(turn * 7));
        outside.turn(turn, fd.as_raw_fd());
        let moved = if turn % 3 == 0 { 100 } else { 0 };
        same!(seek(&fd, 0, SEEK_CUR)?, i64::from(turn * 7 + moved));
    }
    outside.ends()
}

pub fn a_large_file_is_read_here_and_there() -> Outcome {
    let path = file("a_large_file_is_read_here_and_there", 0)?;
    let all = text(BIG);
    let big = path.replace("f0", "big");
    let fd = open(&big)?;
    let mut at = 1_usize;
    for n in 0..600_usize {
        let len = [1, 10, 700, 4096, 5000, 20_000][n % 6];
        if n % 3 == 0 {
            at = (at * 7919 + n) % (BIG + 10);
            same!(seek(&fd, at as i64, SEEK_SET)?, at as i64);
        }
        if n % 5 == 0 {
            let mut there = vec![0; len];
            let got = ok!(pread(fd.as_raw_fd(), there.as_mut_ptr().cast(), len, at as i64));
            same!(there[..got as usize], all[at.min(BIG)..(at + len).min(BIG)]);
        }
        let got = read_n(&fd, len)?;
        same!(got, all[at.min(BIG)..(at + len).min(BIG)]);
        at += got.len();
        same!(seek(&fd, 0, SEEK_CUR)?, at as i64);
    }
    Ok(())
}

pub fn a_large_file_is_changed_between() -> Outcome {
    let path = file("a_large_file_is_changed_between", 0)?;
    let big = path.replace("f0", "big");
    let fd = open(&big)?;
    let mut all = text(BIG);
    let other = Other::new(|order| {
        let fd = sys::open(&big, O_WRONLY)?;
        let at = i64::from(order) * 1000;
        same!(ok!(pwrite(fd.as_raw_fd(), [order; 100].as_ptr().cast(), 100, at)), 100);
        Ok(())
    })?;
    for order in 1..40_usize {
        for at in [order * 1000 - 50, 3, order * 1000 - 50] {
            same!(seek(&fd, at as i64, SEEK_SET)?, at as i64);
            same!(read_n(&fd, 200)?, all[at..][..200]);
        }
        let before = by_fd(&fd)?;
        other.does(order as u8)?;
        all[order * 1000..][..100].fill(order as u8);
        // A descriptor from before a copy was made may show the file as it was; a new one shows what is there.
        let again = open(&big)?;
        for at in [order * 1000 - 50, 3] {
            same!(seek(&again, at as i64, SEEK_SET)?, at as i64);
            same!(read_n(&again, 200)?, all[at..][..200]);
        }
        same!(by_fd(&again)?.5, before.5);
        if order == 1 {
            ok!(dup2(again.as_raw_fd(), fd.as_raw_fd()));
        }
    }
    other.ends()
}

pub fn a_pipe_and_a_directory_are_sought_in() -> Outcome {
    let (from, _to) = sys::pipe()?;
    let dir = sys::open("/", O_RDONLY | O_DIRECTORY)?;
    let maps = sys::open("/proc/self/maps", O_RDONLY)?;
    for _ in 0..10 {
        fails!(ESPIPE, lseek(from.as_raw_fd(), 0, SEEK_SET));
        same!(seek(&dir, 0, SEEK_SET)?, 0);
        same!(seek(&maps, 10, SEEK_SET)?, 10);
        same!(read_n(&maps, 5)?.len(), 5);
        same!(seek(&maps, 0, SEEK_CUR)?, 15);
    }
    Ok(())
}

/// While the closer makes no call, others get what it has given up.
pub fn a_close_after_a_seek_gives_up_locks() -> Outcome {
    let first = file("a_close_after_a_seek_gives_up_locks", 0)?;
    let path = |turn: i32| first.replace("f0", &format!("f{turn}"));
    let whole = |kind: i32| flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    let outside = Outside::new(|turns| {
        for turn in 1..19 {
            turns.wait(turn)?;
            let how = if turn % 3 == 0 { O_RDONLY } else { O_RDWR };
            let fd = sys::open(&path(turn), how | O_NONBLOCK)?;
            if turn % 3 == 0 {
                ok!(libc::flock(fd.as_raw_fd(), LOCK_EX | LOCK_NB));
            } else {
                let lock = whole(F_WRLCK);
                ok!(fcntl(fd.as_raw_fd(), F_OFD_SETLK, &raw const lock));
            }
            turns.done(turn);
        }
        Ok(())
    })?;
    for turn in 1..19 {
        let fd = open(&path(turn))?;
        let lock = whole(F_RDLCK);
        match turn % 3 {
            0 => ok!(libc::flock(fd.as_raw_fd(), LOCK_EX)),
            1 => ok!(fcntl(fd.as_raw_fd(), F_OFD_SETLK, &raw const lock)),
            _ => ok!(fcntl(fd.as_raw_fd(), F_SETLEASE, F_RDLCK)),
        };
        same!(seek(&fd, 5, SEEK_SET)?, 5);
        same!(seek(&fd, 6, SEEK_SET)?, 6);
        shut(fd)?;
        outside.turn(turn, 0);
    }
    outside.ends()
}
